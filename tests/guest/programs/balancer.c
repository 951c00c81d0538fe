// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * balancer - have NUMA balancing pull pages to the node that uses them.
 *
 * Puts memory on one node, runs on another, reads and writes it until the kernel has
 * moved most of it here (or time is up), and checks every byte. Prints one JSON object.
 */
#include "memory.h"

#include <getopt.h>

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "bytes-mib", 1, NULL, 'b' }, { "folio-kib", 1, NULL, 'f' },
		{ "from", 1, NULL, 'F' },      { "to", 1, NULL, 'T' },
		{ "for-ms", 1, NULL, 'm' },    { "counter", 1, NULL, 'C' },
		{ NULL, 0, NULL, 0 },
	};
	size_t bytes = 16UL << 20, folio = PAGE_BYTES, pages, page, here = 0;
	unsigned long long promoted, moved;
	const char *counter = NULL;
	uint64_t begin, limit_ms = 30000, turns = 0, round = 0;
	int from = 1, to = 0, which;
	long long counted = 0;
	char *memory;

	while ((which = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (which) {
		case 'b': bytes = strtoul(optarg, NULL, 0) << 20; break;
		case 'f': folio = strtoul(optarg, NULL, 0) << 10; break;
		case 'F': from = atoi(optarg); break;
		case 'T': to = atoi(optarg); break;
		case 'm': limit_ms = strtoull(optarg, NULL, 0); break;
		case 'C': counter = optarg; break;
		default:
			fputs("usage: balancer [--bytes-mib 16] [--folio-kib 4] [--from 1] [--to 0]\n"
			      "                [--for-ms 30000] [--counter FILE]\n",
			      stderr);
			exit(2);
		}
	}
	pages = bytes / PAGE_BYTES;

	must_write("/proc/sys/kernel/numa_balancing", "1");
	/* Scan early and often: the defaults are made for hours, not for a test. */
	try_write("/sys/kernel/debug/sched/numa_balancing/scan_delay_ms", "10");
	try_write("/sys/kernel/debug/sched/numa_balancing/scan_period_min_ms", "20");
	try_write("/sys/kernel/debug/sched/numa_balancing/scan_period_max_ms", "100");
	try_write("/sys/kernel/debug/sched/numa_balancing/scan_size_mb", "64");

	memory = make_memory(KIND_ANON, bytes, folio, from, NULL);
	fill_pages(memory, bytes, 3);
	if (pages_on_node(memory, bytes, from) != pages)
		fail("the pages do not begin on node %d", from);
	unbind_memory(memory, bytes);
	run_on_node(to);

	moved = vmstat("numa_pages_migrated");
	promoted = vmstat("pgmigrate_success");
	if (counter)
		counted = read_number(counter);
	begin = now_ns();
	while (here < pages * 3 / 4 && now_ns() - begin < limit_ms * 1000000) {
		/* Every page once, a byte read and a byte written back. */
		round++;
		for (page = 0; page < pages; page++) {
			volatile uint64_t *word = (volatile uint64_t *)(memory + page * PAGE_BYTES) +
						  PATTERN_WORDS;

			if (*word != round - 1)
				fail("page %zu has round %llu, expected %llu", page,
				     (unsigned long long)*word, (unsigned long long)(round - 1));
			*word = round;
			turns++;
		}
		if (!(round % 64))
			here = pages_on_node(memory, bytes, to);
	}
	here = pages_on_node(memory, bytes, to);
	must_write("/proc/sys/kernel/numa_balancing", "0");
	moved = vmstat("numa_pages_migrated") - moved;
	promoted = vmstat("pgmigrate_success") - promoted;
	if (counter)
		counted = read_number(counter) - counted;

	check_pages(memory, bytes, 3, true, "after balancing");
	for (page = 0; page < pages; page++)
		if (*((uint64_t *)(memory + page * PAGE_BYTES) + PATTERN_WORDS) != round)
			fail("page %zu missed a round", page);
	if (!here)
		fail("no page was moved within %llu ms", (unsigned long long)limit_ms);
	printf("{\"pages\":%zu,\"moved_here\":%zu,\"folio_bytes\":%zu,\"rounds\":%llu,"
	       "\"touches\":%llu,\"wall_ns\":%llu,\"counter\":%lld,"
	       "\"vmstat\":{\"numa_pages_migrated\":%llu,\"pgmigrate_success\":%llu}}\n",
	       pages, here, folio, (unsigned long long)round, (unsigned long long)turns,
	       (unsigned long long)(now_ns() - begin), counted, moved, promoted);
	return 0;
}
