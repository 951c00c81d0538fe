// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * presser - use more memory than a node has, and measure for how long it is kept waiting.
 *
 * Runs on a node and fills memory there, so that the kernel has to make room: by moving
 * what was not used lately to a slower node, or for huge pages by compacting. Reads old
 * pages now and then, counts the longest touch of one, and checks every byte in the end.
 * Prints one JSON object.
 */
#include "memory.h"

#include <getopt.h>

/* Between two looks back at old pages. */
#define LOOK_EVERY 64

static atomic_ullong longest_ns;

/* One access, timed. */
static uint64_t touch(volatile uint64_t *word, uint64_t value, bool write)
{
	uint64_t began = now_ns();

	if (write)
		*word = value;
	else
		value = *word;
	keep_longest(&longest_ns, began);
	return value;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "bytes-mib", 1, NULL, 'b' }, { "node", 1, NULL, 'n' },
		{ "huge", 0, NULL, 'h' },      { "counter", 1, NULL, 'C' },
		{ "passes", 1, NULL, 'p' },    { NULL, 0, NULL, 0 },
	};
	static const char *const names[] = {
		"pgdemote_kswapd", "pgdemote_direct", "compact_stall", "allocstall_normal",
		"pgmigrate_success",
	};
	enum { NAMES = sizeof(names) / sizeof(*names) };
	size_t bytes = 256UL << 20, page, pages, old;
	unsigned long long before[NAMES];
	const char *counter = NULL;
	uint64_t seed = 11, began, word, mistakes = 0;
	unsigned int i, pass, passes = 2;
	bool huge = false;
	long long counted = 0;
	int node = 0, which;
	char *memory;

	while ((which = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (which) {
		case 'b': bytes = strtoul(optarg, NULL, 0) << 20; break;
		case 'n': node = atoi(optarg); break;
		case 'h': huge = true; break;
		case 'C': counter = optarg; break;
		case 'p': passes = (unsigned int)atoi(optarg); break;
		default:
			fputs("usage: presser [--bytes-mib 256] [--node 0] [--huge] [--passes 2]\n"
			      "               [--counter FILE]\n",
			      stderr);
			exit(2);
		}
	}
	pages = bytes / PAGE_BYTES;
	for (i = 0; i < NAMES; i++)
		before[i] = vmstat(names[i]);
	if (counter)
		counted = read_number(counter);
	run_on_node(node);
	memory = reserve(bytes);
	if (mmap(memory, bytes, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1,
		 0) == MAP_FAILED)
		fail_errno("mmap");
	if (madvise(memory, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) && huge)
		fail_errno("madvise(MADV_HUGEPAGE)");

	/* From this node, or not at all: nobody makes room while another one has some. */
	bind_memory(memory, bytes, node, 0);

	began = now_ns();
	for (page = 0; page < pages; page++) {
		touch((uint64_t *)(memory + page * PAGE_BYTES), pattern_word(seed, page, 0), true);
		fill_pages(memory + page * PAGE_BYTES, PAGE_BYTES, seed + page);
		if (page % LOOK_EVERY || !page)
			continue;
		/* An old page, which may be on its way. */
		old = pattern_word(seed, page, 1) % page;
		word = touch((uint64_t *)(memory + old * PAGE_BYTES), 0, false);
		mistakes += word != pattern_word(seed + old, 0, 0);
	}
	for (pass = 1; pass < passes; pass++) {
		for (page = 0; page < pages; page++) {
			word = touch((uint64_t *)(memory + page * PAGE_BYTES), 0, false);
			mistakes += word != pattern_word(seed + page, 0, 0);
		}
	}
	began = now_ns() - began;
	for (page = 0; page < pages; page++)
		check_pages(memory + page * PAGE_BYTES, PAGE_BYTES, seed + page, false, "in the end");
	if (mistakes)
		fail("%llu words were wrong under pressure", (unsigned long long)mistakes);

	printf("{\"pages\":%zu,\"on_node\":%zu,\"longest_us\":%llu,\"wall_ms\":%llu,\"counter\":%lld",
	       pages, pages_on_node(memory, bytes, node), (unsigned long long)atomic_load(&longest_ns) / 1000,
	       (unsigned long long)(began / 1000000),
	       counter ? read_number(counter) - counted : 0);
	for (i = 0; i < NAMES; i++)
		printf(",\"%s\":%llu", names[i], vmstat(names[i]) - before[i]);
	printf("}\n");
	return 0;
}
