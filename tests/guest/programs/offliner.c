// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * offliner - take memory blocks of a node offline under live data, check every byte.
 *
 * Fills memory, finds the memory blocks that its pages are in, has the kernel empty
 * and switch off those that it can (which are those of the movable zone), sees that
 * no page of ours is left in them, checks all bytes, and switches them on again.
 * Prints one JSON object.
 */
#include "memory.h"

#include <getopt.h>

enum { MAX_BLOCKS = 4096 };

/* A page that somebody else holds for a moment refuses a block (-EBUSY): ask again. */
#define TRIES 20
#define PAUSE_US 50000

/*
 * Blocks with memory that the kernel reserved for itself at boot, or with a hole, never go
 * offline, and only trying tells which those are. As long as all that we have is in such, we take
 * more: half a gigabyte with the usual sizes, which is a node.
 */
#define MAX_TAKES 16

static uint64_t block_bytes(void)
{
	FILE *file = fopen("/sys/devices/system/memory/block_size_bytes", "r");
	unsigned long long bytes;

	if (!file || fscanf(file, "%llx", &bytes) != 1 || !bytes)
		fail("no memory hot-plug in this kernel");
	fclose(file);
	return bytes;
}

/* How many pages are in each block. */
static void count_blocks(void *memory, size_t bytes, uint64_t block, unsigned int *counts)
{
	int pagemap = open_or_fail("/proc/self/pagemap");
	uint64_t entry, index;
	size_t page;

	memset(counts, 0, MAX_BLOCKS * sizeof(*counts));
	for (page = 0; page < bytes / PAGE_BYTES; page++) {
		uintptr_t at = (uintptr_t)memory + page * PAGE_BYTES;

		if (pread(pagemap, &entry, sizeof(entry),
			  (off_t)(at / PAGE_BYTES * sizeof(entry))) != sizeof(entry))
			fail_errno("/proc/self/pagemap");
		if (!(entry >> 63))
			fail("page %zu is not present", page);
		index = (entry & ((1ULL << 55) - 1)) * PAGE_BYTES / block;
		if (index >= MAX_BLOCKS)
			fail("page %zu is in block %llu", page, (unsigned long long)index);
		counts[index]++;
	}
	close(pagemap);
}

/* What was tried, of all blocks. */
struct tried {
	bool refused[MAX_BLOCKS];
	unsigned int blocks, nr_refused, nr_emptied;
};

/* Has each block with pages of ours emptied that was not refused before. */
static void empty_blocks(void *memory, size_t bytes, struct tried *tried)
{
	static unsigned int counts[MAX_BLOCKS], left[MAX_BLOCKS];
	uint64_t block = block_bytes();
	unsigned int index, try;
	char path[96];

	count_blocks(memory, bytes, block, counts);
	for (index = 0; index < MAX_BLOCKS; index++) {
		if (!counts[index] || tried->refused[index])
			continue;
		tried->blocks++;
		snprintf(path, sizeof(path), "/sys/devices/system/memory/memory%u/state", index);
		for (try = 0; try < TRIES && !try_write(path, "offline"); try++)
			usleep(PAUSE_US);
		if (try == TRIES) {
			tried->refused[index] = true;
			tried->nr_refused++;
			continue;
		}
		count_blocks(memory, bytes, block, left);
		if (left[index])
			fail("block %u is offline with %u of our pages", index, left[index]);
		tried->nr_emptied++;
		check_pages(memory, bytes, 5, false, "with a block offline");
		must_write(path, "online_movable");
	}
	check_pages(memory, bytes, 5, false, "with all blocks online again");
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "bytes-mib", 1, NULL, 'b' }, { "folio-kib", 1, NULL, 'f' },
		{ "node", 1, NULL, 'n' },      { "counter", 1, NULL, 'C' },
		{ NULL, 0, NULL, 0 },
	};
	static struct tried tried;
	size_t bytes = 32UL << 20, folio = PAGE_BYTES;
	unsigned long long moved;
	const char *counter = NULL;
	long long counted = 0;
	int node = 1, which, take;
	uint64_t begin;

	while ((which = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (which) {
		case 'b': bytes = strtoul(optarg, NULL, 0) << 20; break;
		case 'f': folio = strtoul(optarg, NULL, 0) << 10; break;
		case 'n': node = atoi(optarg); break;
		case 'C': counter = optarg; break;
		default:
			fputs("usage: offliner [--bytes-mib 32] [--folio-kib 4] [--node 1]\n"
			      "                [--counter FILE]\n",
			      stderr);
			exit(2);
		}
	}
	moved = vmstat("pgmigrate_success");
	if (counter)
		counted = read_number(counter);
	begin = now_ns();
	for (take = 0; take < MAX_TAKES && !tried.nr_emptied; take++) {
		void *memory = make_memory(KIND_ANON, bytes, folio, node, NULL);

		fill_pages(memory, bytes, 5);
		/* Offlining may have to put them on another node. */
		unbind_memory(memory, bytes);
		empty_blocks(memory, bytes, &tried);
	}
	moved = vmstat("pgmigrate_success") - moved;
	if (counter)
		counted = read_number(counter) - counted;
	if (!tried.nr_emptied)
		fail("none of %u blocks could be taken offline", tried.blocks);
	printf("{\"pages\":%zu,\"blocks\":%u,\"emptied\":%u,\"refused\":%u,\"wall_ns\":%llu,"
	       "\"counter\":%lld,\"vmstat\":{\"pgmigrate_success\":%llu}}\n",
	       take * bytes / PAGE_BYTES, tried.blocks, tried.nr_emptied, tried.nr_refused,
	       (unsigned long long)(now_ns() - begin), counted, moved);
	return 0;
}
