// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * compactor - fragment the memory of a node, have it compacted, check every byte.
 *
 * Fills memory of small pages, frees every other page of each huge page's range, so
 * that half of the memory is free and none of it in large pieces, and then asks for
 * large pieces: by /proc/sys/vm/compact_memory, or by touching memory that wants huge
 * pages, whose faults compact (the kernel's reason for that migration is the same).
 * Optionally a thread hogs the processor meanwhile. Prints one JSON object.
 *
 * What is left to chance, compaction avoids. So the rest of the node is taken first, by
 * huge pages, which compaction leaves where they are: else the pages of the workload
 * may all be at that end of a zone to which compaction moves, and it finds nothing to
 * do. And before huge pages are asked for, those that are free already are taken: else
 * the faults are served from them. The kernel does not compact by itself meanwhile, as
 * in the published experiment. And free pages do not stay on a processor's own lists: by
 * themselves those grow to an eighth of a zone, and compaction takes nothing from there.
 */
#include "memory.h"

#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>

enum { MAX_COUNTERS = 8 };

/*
 * Left free for the kernel, above the watermarks below which compaction finds no free
 * page (they are up to a tenth of a small node, for the sake of huge pages).
 */
#define RESERVE_BYTES (16UL << 20)
/* Free blocks of this order (2 MiB) and above are huge pages without compaction. */
#define HUGE_ORDER 9
#define MAX_ORDERS 16

static struct {
	size_t bytes, huge_bytes;
	int node;
	bool hog, count;
	const char *counters[MAX_COUNTERS];
	unsigned int nr_counters;
} opt = {
	.bytes = 0,
};

static atomic_bool stop;
static atomic_ullong hog_turns;

static void *hog(void *argument)
{
	unsigned long long turns = 0;

	(void)argument;
	run_on_node(opt.node);
	while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
		turns++;
		__asm__ volatile("" : "+r"(turns));
	}
	atomic_store(&hog_turns, turns);
	return NULL;
}

/* user, system and idle time of a processor, in clock ticks */
static void cpu_times(unsigned int cpu, unsigned long long times[3])
{
	FILE *file = fopen("/proc/stat", "r");
	unsigned long long user, nice_time, system, idle;
	char line[256], name[16];

	if (!file)
		fail_errno("/proc/stat");
	snprintf(name, sizeof(name), "cpu%u ", cpu);
	memset(times, 0, 3 * sizeof(*times));
	while (fgets(line, sizeof(line), file)) {
		if (strncmp(line, name, strlen(name)))
			continue;
		if (sscanf(line + strlen(name), "%llu %llu %llu %llu", &user, &nice_time, &system,
			   &idle) != 4)
			fail("/proc/stat: %s", line);
		times[0] = user + nice_time;
		times[1] = system;
		times[2] = idle;
	}
	fclose(file);
}

/* The sum of the high watermarks of a node's zones. */
static size_t watermark_bytes(int node)
{
	FILE *file = fopen("/proc/zoneinfo", "r");
	size_t pages, sum = 0;
	int at = -1;
	char line[256];

	if (!file)
		fail_errno("/proc/zoneinfo");
	while (fgets(line, sizeof(line), file)) {
		sscanf(line, "Node %d, zone", &at);
		if (at == node && sscanf(line, " high %zu", &pages) == 1)
			sum += pages * PAGE_BYTES;
	}
	fclose(file);
	return sum;
}

/* How many huge pages the free memory of a node holds as it is. */
static size_t free_huge_pages(int node)
{
	FILE *file = fopen("/proc/buddyinfo", "r");
	size_t blocks, found = 0;
	unsigned int order;
	char line[512], *at;
	int of, length;

	if (!file)
		fail_errno("/proc/buddyinfo");
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "Node %d, zone %*s%n", &of, &length) != 1 || of != node)
			continue;
		at = line + length;
		for (order = 0; order < MAX_ORDERS; order++, at += length) {
			if (sscanf(at, "%zu%n", &blocks, &length) != 1)
				break;
			if (order >= HUGE_ORDER)
				found += blocks << (order - HUGE_ORDER);
		}
	}
	fclose(file);
	return found;
}

/* Whether a huge page's fault compacts, or takes only what is there. */
static void let_faults_compact(bool on)
{
	must_write("/sys/kernel/mm/transparent_hugepage/defrag", on ? "always" : "never");
}

/*
 * Whether the lists of free pages that each processor has are short, or of the size that the
 * kernel finds. Four times the pages that go to a list at once are the least.
 */
static void hold_few_pages(bool few)
{
	must_write("/proc/sys/vm/percpu_pagelist_high_fraction", few ? "1000000" : "0");
}

/*
 * Take free huge pages of the node, without compaction, until all of them are taken or
 * only so much is free. They are kept until the program ends.
 */
static void take_huge_pages(int node, size_t leave_bytes)
{
	size_t most = free_huge_pages(node) * HUGE_BYTES, taken;
	char *memory;

	if (!most)
		return;
	memory = make_memory(KIND_ANON, most, HUGE_BYTES, node, NULL);
	let_faults_compact(false);
	for (taken = 0; taken < most; taken += HUGE_BYTES) {
		if (!free_huge_pages(node) || free_on_node(node) < leave_bytes + HUGE_BYTES)
			break;
		*(volatile char *)(memory + taken) = 1;
	}
}

static const char *const names[] = {
	"pgmigrate_success", "pgmigrate_fail",	    "compact_stall",	   "compact_success",
	"compact_fail",	     "compact_isolated",   "compact_migrate_scanned",
	"thp_fault_alloc",   "thp_fault_fallback",
};
#define NR_NAMES (sizeof(names) / sizeof(*names))

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "bytes-mib", 1, NULL, 'b' }, { "huge-mib", 1, NULL, 'g' },
		{ "node", 1, NULL, 'n' },      { "hog", 0, NULL, 'h' },
		{ "counter", 1, NULL, 'C' },   { "count", 0, NULL, 'c' },
		{ NULL, 0, NULL, 0 },
	};
	int which;

	while ((which = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (which) {
		case 'b': opt.bytes = strtoul(optarg, NULL, 0) << 20; break;
		case 'g': opt.huge_bytes = strtoul(optarg, NULL, 0) << 20; break;
		case 'n': opt.node = atoi(optarg); break;
		case 'h': opt.hog = true; break;
		case 'c': opt.count = true; break;
		case 'C':
			if (opt.nr_counters < MAX_COUNTERS) {
				opt.counters[opt.nr_counters++] = optarg;
				break;
			}
			/* fall through */
		default:
			fputs("usage: compactor [--bytes-mib N] [--huge-mib 0] [--node 0] [--hog]\n"
			      "                 [--count] [--counter FILE]...\n"
			      "Fragments so much of the node's memory, and takes what else is free.\n"
			      "Without --bytes-mib nearly all free memory of the node is fragmented.\n"
			      "With --huge-mib that much memory is touched as huge pages, else\n"
			      "/proc/sys/vm/compact_memory is written.\n",
			      stderr);
			exit(2);
		}
	}
}

/*
 * Whether a page stays when memory is fragmented: one of each pair, so that no two free
 * pages merge. Which one is as good as random, since the kernel looks for free pages at
 * every 2nd, 4th, ... 32nd place once it has found none for a while: of an even pattern
 * it may miss all.
 */
static bool kept(size_t page)
{
	/* The golden ratio in 64 bits, as a hash of the pair. */
	uint64_t hash = (page / 2) * 0x9e3779b97f4a7c15ULL;

	return (page & 1) == (hash >> 63);
}

/* Make the node's memory such that compaction has to work for what follows. */
static char *fragment(void)
{
	size_t free_bytes, keep = RESERVE_BYTES + watermark_bytes(opt.node), page;
	char *memory;

	try_write("/proc/sys/vm/compaction_proactiveness", "0");
	hold_few_pages(true);
	/* Clean page cache would be given up for huge pages before anything moves. */
	must_write("/proc/sys/vm/drop_caches", "1");
	free_bytes = free_on_node(opt.node);
	if (free_bytes < keep + (opt.bytes ? opt.bytes : 2 * HUGE_BYTES))
		fail("node %d has only %zu MiB free, and %zu MiB are kept", opt.node,
		     free_bytes >> 20, keep >> 20);
	if (!opt.bytes)
		opt.bytes = free_bytes - keep;
	opt.bytes = opt.bytes / HUGE_BYTES * HUGE_BYTES;
	if (opt.huge_bytes > opt.bytes / 2)
		fail("%zu MiB of huge pages are more than the half of %zu MiB that will be free",
		     opt.huge_bytes >> 20, opt.bytes >> 20);
	take_huge_pages(opt.node, opt.bytes + keep);

	memory = make_memory(KIND_ANON, opt.bytes, PAGE_BYTES, opt.node, NULL);
	fill_pages(memory, opt.bytes, 7);
	for (page = 0; page < opt.bytes / PAGE_BYTES; page++)
		if (!kept(page) && madvise(memory + page * PAGE_BYTES, PAGE_BYTES, MADV_DONTNEED))
			fail_errno("madvise(MADV_DONTNEED)");
	if (opt.huge_bytes)
		take_huge_pages(opt.node, 0);
	let_faults_compact(true);
	return memory;
}

int main(int argc, char **argv)
{
	unsigned long long before[NR_NAMES], after[NR_NAMES], old_times[3], new_times[3];
	long long counted[MAX_COUNTERS], took[MAX_COUNTERS];
	size_t pages, page, word, i, huge_folios = 0;
	uint64_t begin, wall_ns, busy_ns = 0;
	uint64_t *words, expected;
	pthread_t hog_thread;
	char *memory, *huge = NULL;
	atomic_ullong longest_fault_ns = 0;
	unsigned long long early;
	char path[96];
	unsigned int cpu;

	parse(argc, argv);
	try_write("/proc/self/oom_score_adj", "-1000");
	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/cpulist", opt.node);
	cpu = (unsigned int)read_number(path);
	early = vmstat("pgmigrate_success");
	memory = fragment();
	early = vmstat("pgmigrate_success") - early;
	pages = opt.bytes / PAGE_BYTES;

	if (opt.hog && pthread_create(&hog_thread, NULL, hog, NULL))
		fail("pthread_create");
	for (i = 0; i < NR_NAMES; i++)
		before[i] = vmstat(names[i]);
	for (i = 0; i < opt.nr_counters; i++)
		counted[i] = read_number(opt.counters[i]);
	cpu_times(cpu, old_times);

	if (opt.count) {
		start_leftover();
		busy_ns = leftover_ns();
	}
	begin = now_ns();
	if (opt.huge_bytes) {
		huge = make_memory(KIND_ANON, opt.huge_bytes, HUGE_BYTES, opt.node, NULL);
		for (i = 0; i < opt.huge_bytes; i += HUGE_BYTES) {
			uint64_t fault = now_ns();

			*(volatile char *)(huge + i) = 1;
			keep_longest(&longest_fault_ns, fault);
		}
	} else {
		must_write("/proc/sys/vm/compact_memory", "1");
	}
	wall_ns = now_ns() - begin;
	if (opt.count) {
		busy_ns = wall_ns - (leftover_ns() - busy_ns);
		stop_leftover();
	}

	cpu_times(cpu, new_times);
	for (i = 0; i < NR_NAMES; i++)
		after[i] = vmstat(names[i]);
	for (i = 0; i < opt.nr_counters; i++)
		took[i] = read_number(opt.counters[i]) - counted[i];
	atomic_store(&stop, true);
	if (opt.hog)
		pthread_join(hog_thread, NULL);

	if (opt.huge_bytes) {
		/* A range that got no huge page has one touched page; find those that did. */
		for (i = 0; i < opt.huge_bytes; i += HUGE_BYTES) {
			unsigned char present[HUGE_BYTES / PAGE_BYTES];

			if (mincore(huge + i, HUGE_BYTES, present))
				fail_errno("mincore");
			huge_folios += present[HUGE_BYTES / PAGE_BYTES - 1] & 1;
		}
	}

	for (page = 0; page < pages; page++) {
		if (!kept(page))
			continue;
		words = (uint64_t *)(memory + page * PAGE_BYTES);
		for (word = 0; word < PAGE_WORDS; word++) {
			expected = word < PATTERN_WORDS ? pattern_word(7, page, word) : 0;
			if (words[word] != expected)
				fail("after compaction: page %zu, byte %zu is %#llx, expected %#llx",
				     page, word * sizeof(*words), (unsigned long long)words[word],
				     (unsigned long long)expected);
		}
	}

	hold_few_pages(false);
	printf("{\"fragmented_pages\":%zu,\"migrated_early\":%llu,\"by\":\"%s\",\"huge_folios\":%zu,\"wall_ns\":%llu,\"busy_ns\":%llu,\"longest_us\":%llu,"
	       "\"hog\":%s,\"hog_turns\":%llu,\"ticks\":{\"user\":%llu,\"system\":%llu,"
	       "\"idle\":%llu}",
	       pages / 2, early, opt.huge_bytes ? "huge-page-faults" : "compact_memory", huge_folios,
	       (unsigned long long)wall_ns, (unsigned long long)busy_ns,
	       (unsigned long long)atomic_load(&longest_fault_ns) / 1000, opt.hog ? "true" : "false",
	       (unsigned long long)atomic_load(&hog_turns), new_times[0] - old_times[0],
	       new_times[1] - old_times[1], new_times[2] - old_times[2]);
	printf(",\"vmstat\":{");
	for (i = 0; i < NR_NAMES; i++)
		printf("%s\"%s\":%llu", i ? "," : "", names[i], after[i] - before[i]);
	printf("},\"counters\":{");
	for (i = 0; i < opt.nr_counters; i++)
		printf("%s\"%s\":%lld", i ? "," : "", opt.counters[i], took[i]);
	printf("}}\n");
	return 0;
}
