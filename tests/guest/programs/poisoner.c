// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * poisoner - take pages out of use while they are where they are, or while they move.
 *
 * soft: the kernel moves the content away first; every byte is there afterwards.
 * hard: the memory is declared bad while a batch copies it. The kernel can do no more than
 * mark the page then. Who touches the page dies of it, or finds the right bytes.
 * Prints one JSON object.
 */
#include "device.h"
#include "memory.h"

#include <getopt.h>
#include <setjmp.h>
#include <signal.h>

#define OFFLINE "/sys/devices/system/memory/%s_offline_page"

static char *memory;
static size_t bytes = 2UL << 20;
static unsigned int nr_bad = 4;
static sigjmp_buf touched;
static atomic_bool over;
/* What moves the pages, if move_pages(2) does not. */
static int device = -1;

static uint64_t frame_of(const void *page)
{
	uint64_t entry;
	int fd = open_or_fail("/proc/self/pagemap");

	if (pread(fd, &entry, sizeof(entry), (off_t)((uintptr_t)page / PAGE_BYTES * sizeof(entry))) !=
	    sizeof(entry))
		fail_errno("pagemap");
	close(fd);
	/* linux/Documentation/admin-guide/mm/pagemap.rst: 55 bits of frame, bit 63: present. */
	if (!(entry >> 63))
		return 0;
	return entry & ((1ULL << 55) - 1);
}

/* Whether the kernel knows a frame as bad. */
static bool is_marked(uint64_t frame)
{
	uint64_t flags;
	int fd = open_or_fail("/proc/kpageflags");

	if (pread(fd, &flags, sizeof(flags), (off_t)(frame * sizeof(flags))) != sizeof(flags))
		fail_errno("kpageflags");
	close(fd);
	/* linux/kernel-page-flags.h: KPF_HWPOISON. */
	return flags & (1ULL << 19);
}

static bool take_out(const char *how, uint64_t frame)
{
	char path[80], text[32];

	snprintf(path, sizeof(path), OFFLINE, how);
	snprintf(text, sizeof(text), "%#llx", (unsigned long long)(frame * PAGE_BYTES));
	return try_write(path, text);
}

static void on_bus_error(int signal)
{
	(void)signal;
	siglongjmp(touched, 1);
}

/* Whether a page can be read; then it has every byte. */
static bool readable(size_t page)
{
	const volatile uint64_t *words = (const volatile uint64_t *)(memory + page * PAGE_BYTES);
	size_t word;

	if (sigsetjmp(touched, 1))
		return false;
	for (word = 0; word < PATTERN_WORDS; word++)
		if (words[word] != pattern_word(5, page, word))
			fail("page %zu, byte %zu is %#llx, expected %#llx", page,
			     word * sizeof(*words), (unsigned long long)words[word],
			     (unsigned long long)pattern_word(5, page, word));
	return true;
}

/* Moves all of it to and fro. Pages that are bad stay where they are. */
static void *mover(void *argument)
{
	size_t count = bytes / PAGE_BYTES, i;
	void **pages = malloc(count * sizeof(*pages));
	int *nodes = malloc(count * sizeof(*nodes)), *status = malloc(count * sizeof(*status));
	int node = 1;

	(void)argument;
	if (!pages || !nodes || !status)
		fail_errno("malloc");
	for (; !atomic_load(&over); node = !node) {
		if (device >= 0) {
			device_move(device, memory, bytes, node, 0);
			continue;
		}
		for (i = 0; i < count; i++) {
			pages[i] = memory + i * PAGE_BYTES;
			nodes[i] = node;
		}
		if (sys_move_pages(0, count, pages, nodes, status, MPOL_MF_MOVE) < 0)
			fail_errno("move_pages");
	}
	free(pages);
	free(nodes);
	free(status);
	return NULL;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "how", 1, NULL, 'h' },     { "bytes-mib", 1, NULL, 'b' },
		{ "pages", 1, NULL, 'p' },   { "counter", 1, NULL, 'C' },
		{ "batches", 1, NULL, 'B' }, { "device", 0, NULL, 'd' },
		{ NULL, 0, NULL, 0 },
	};
	struct sigaction action = { .sa_handler = on_bus_error };
	const char *how = "soft", *counter = NULL, *batches = NULL;
	unsigned int i, taken = 0, marked = 0, moved = 0, unreadable = 0;
	long long counted = 0, began;
	pthread_t thread;
	size_t page, pages;
	uint64_t *frames;
	int which;

	while ((which = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (which) {
		case 'h': how = optarg; break;
		case 'b': bytes = strtoul(optarg, NULL, 0) << 20; break;
		case 'p': nr_bad = (unsigned int)atoi(optarg); break;
		case 'C': counter = optarg; break;
		case 'B': batches = optarg; break;
		case 'd': device = device_open(); break;
		default:
			fputs("usage: poisoner [--how soft|hard] [--bytes-mib 2] [--pages 4]\n"
			      "                [--counter FILE] [--batches FILE] [--device]\n",
			      stderr);
			exit(2);
		}
	}
	pages = bytes / PAGE_BYTES;
	if (!nr_bad || nr_bad > pages || (!strcmp(how, "hard") && !batches))
		fail("a number of pages, and for hard a counter of batches that begin");
	frames = calloc(nr_bad, sizeof(*frames));
	if (!frames)
		fail_errno("calloc");
	sigaction(SIGBUS, &action, NULL);

	memory = make_memory(KIND_ANON, bytes, PAGE_BYTES, 0, NULL);
	fill_pages(memory, bytes, 5);
	unbind_memory(memory, bytes);
	if (counter)
		counted = read_number(counter);

	if (!strcmp(how, "hard")) {
		if (pthread_create(&thread, NULL, mover, NULL))
			fail("pthread_create");
		for (i = 0; i < nr_bad; i++) {
			page = i * (pages / nr_bad);
			/* Where it is now, which is where the next batch reads it. */
			while (!(frames[i] = frame_of(memory + page * PAGE_BYTES)))
				usleep(100);
			began = read_number(batches);
			while (read_number(batches) == began)
				usleep(100);
			taken += take_out("hard", frames[i]);
			marked += is_marked(frames[i]);
		}
		atomic_store(&over, true);
		pthread_join(thread, NULL);
	} else {
		for (i = 0; i < nr_bad; i++) {
			page = i * (pages / nr_bad);
			frames[i] = frame_of(memory + page * PAGE_BYTES);
			taken += take_out("soft", frames[i]);
			moved += frame_of(memory + page * PAGE_BYTES) != frames[i];
		}
	}
	if (counter)
		counted = read_number(counter) - counted;
	for (page = 0; page < pages; page++)
		unreadable += !readable(page);
	if (unreadable > nr_bad || (unreadable && strcmp(how, "hard")))
		fail("%u pages cannot be read", unreadable);

	printf("{\"pages\":%zu,\"taken\":%u,\"marked\":%u,\"moved\":%u,"
	       "\"unreadable\":%u,\"counter\":%lld}\n",
	       pages, taken, marked, moved, unreadable, counted);
	return 0;
}
