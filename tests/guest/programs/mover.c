// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * mover - migrate memory between nodes and check every byte and every node.
 *
 * Fills memory of a kind and folio size with a pattern, moves it to and fro by
 * move_pages(2), migrate_pages(2), mbind(2) or /dev/ptdma_move, with threads that write to the pages
 * meanwhile, several movers at once, or pages that are pinned, and checks. Prints
 * one JSON object.
 */
#include "device.h"
#include "memory.h"

#include <getopt.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

enum call { CALL_MOVE_PAGES, CALL_MIGRATE_PAGES, CALL_MBIND, CALL_DEVICE, NR_CALLS };

enum { MAX_WRITERS = WRITER_WORDS, MAX_MOVERS = 16, MAX_COUNTERS = 8 };

/* Moves of a page that was busy are tried again; a writer may hold it up. */
enum { ATTEMPTS = 50 };

static struct {
	enum kind kind;
	enum call call;
	size_t folio_bytes, bytes;
	int from, to;
	unsigned int rounds, writers, movers, pinned;
	bool overlap, count, timed;
	const char *path, *until, *kind_name, *call_name;
	const char *counters[MAX_COUNTERS];
	unsigned int nr_counters;
	uint64_t seed;
	uint64_t for_ms;
} opt = {
	.kind_name = "anon",
	.call_name = "move_pages",
	.folio_bytes = PAGE_BYTES,
	.bytes = 16UL << 20,
	.from = 0,
	.to = 1,
	.rounds = 1,
	.movers = 1,
	.seed = 1,
};

static char *memory;
static atomic_bool stop;
static atomic_ullong writes, busy;
/* The longest write to a page and the longest call, where they are timed. */
static atomic_ullong longest_write_ns, longest_call_ns;

static const char *const call_names[] = { "move_pages", "migrate_pages", "mbind", "device" };
/* What the device says of all that it was asked to move. */
static atomic_ullong fates[PTDMA_FATES];
static int device = -1;

static size_t size_of(const char *text)
{
	char *end;
	unsigned long long value = strtoull(text, &end, 0);

	switch (*end) {
	case 'k': case 'K':
		value <<= 10;
		break;
	case 'm': case 'M':
		value <<= 20;
		break;
	case 'g': case 'G':
		value <<= 30;
		break;
	case '\0':
		break;
	default:
		fail("not a size: %s", text);
	}
	return value;
}

static void usage(void)
{
	fputs("usage: mover [--kind anon|shmem|file|hugetlb] [--folio 4K..2M] [--bytes 16M]\n"
	      "             [--call move_pages|migrate_pages|mbind|device] [--from 0] [--to 1]\n"
	      "             [--rounds 1 | --for-ms N [--until FILE]] [--writers 0..16]\n"
	      "             [--movers 1..16] [--overlap] [--pinned PAGES] [--path FILE] [--seed N]\n"
	      "             [--count] [--timed] [--counter FILE]...\n",
	      stderr);
	exit(2);
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "kind", 1, NULL, 'k' },    { "folio", 1, NULL, 'f' },
		{ "bytes", 1, NULL, 'b' },   { "call", 1, NULL, 'c' },
		{ "from", 1, NULL, 'F' },    { "to", 1, NULL, 'T' },
		{ "rounds", 1, NULL, 'r' },  { "for-ms", 1, NULL, 'm' },
		{ "until", 1, NULL, 'u' },
		{ "writers", 1, NULL, 'w' }, { "movers", 1, NULL, 'M' },
		{ "overlap", 0, NULL, 'o' }, { "pinned", 1, NULL, 'p' },
		{ "path", 1, NULL, 'P' },    { "seed", 1, NULL, 's' },
		{ "counter", 1, NULL, 'C' }, { "count", 0, NULL, 'n' },
		{ "timed", 0, NULL, 't' },
		{ NULL, 0, NULL, 0 },
	};
	unsigned int i;
	int which;

	while ((which = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (which) {
		case 'k': opt.kind_name = optarg; break;
		case 'f': opt.folio_bytes = size_of(optarg); break;
		case 'b': opt.bytes = size_of(optarg); break;
		case 'c': opt.call_name = optarg; break;
		case 'F': opt.from = atoi(optarg); break;
		case 'T': opt.to = atoi(optarg); break;
		case 'r': opt.rounds = (unsigned int)atoi(optarg); break;
		case 'm': opt.for_ms = (uint64_t)atoll(optarg); break;
		case 'u': opt.until = optarg; break;
		case 'w': opt.writers = (unsigned int)atoi(optarg); break;
		case 'M': opt.movers = (unsigned int)atoi(optarg); break;
		case 'o': opt.overlap = true; break;
		case 'p': opt.pinned = (unsigned int)atoi(optarg); break;
		case 'P': opt.path = optarg; break;
		case 'n': opt.count = true; break;
		case 't': opt.timed = true; break;
		case 's': opt.seed = strtoull(optarg, NULL, 0); break;
		case 'C':
			if (opt.nr_counters == MAX_COUNTERS)
				usage();
			opt.counters[opt.nr_counters++] = optarg;
			break;
		default: usage();
		}
	}
	if (optind != argc || opt.writers > MAX_WRITERS || !opt.movers ||
	    opt.movers > MAX_MOVERS || !opt.folio_bytes ||
	    opt.folio_bytes % PAGE_BYTES || opt.from == opt.to ||
	    (opt.count && opt.movers > 1) || (opt.until && !opt.for_ms))
		usage();
	opt.kind = kind_of(opt.kind_name);
	for (i = 0; i < NR_CALLS; i++)
		if (!strcmp(opt.call_name, call_names[i]))
			break;
	if (i == NR_CALLS)
		usage();
	opt.call = (enum call)i;
	if (opt.kind == KIND_HUGETLB)
		opt.folio_bytes = HUGE_BYTES;
	opt.bytes = round_up(opt.bytes, opt.folio_bytes);
}

/*
 * Writers: each has one word in every page, counts it up, and knows what it must
 * find there. A write that goes to the old copy of a page is seen as lost.
 */
static void *writer(void *argument)
{
	size_t word = PATTERN_WORDS + (size_t)(uintptr_t)argument;
	size_t pages = opt.bytes / PAGE_BYTES, page = word % pages;
	uint64_t *shadow = calloc(pages, sizeof(*shadow));
	volatile uint64_t *at;
	uint64_t written = 0, began = 0;

	if (!shadow)
		fail_errno("calloc");
	while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
		at = (volatile uint64_t *)(memory + page * PAGE_BYTES) + word;
		if (opt.timed)
			began = now_ns();
		if (*at != shadow[page])
			fail("writer %zu: page %zu has %llu, last written was %llu",
			     word - PATTERN_WORDS, page, (unsigned long long)*at,
			     (unsigned long long)shadow[page]);
		*at = ++shadow[page];
		if (opt.timed)
			keep_longest(&longest_write_ns, began);
		written++;
		/* A stride without pattern relative to folios and batches. */
		page = (page + 509) % pages;
	}
	for (page = 0; page < pages; page++) {
		at = (volatile uint64_t *)(memory + page * PAGE_BYTES) + word;
		if (*at != shadow[page])
			fail("writer %zu: in the end page %zu has %llu, expected %llu",
			     word - PATTERN_WORDS, page, (unsigned long long)*at,
			     (unsigned long long)shadow[page]);
	}
	free(shadow);
	atomic_fetch_add(&writes, written);
	return NULL;
}

/* What the calls that move took, without the leftover thread, and what it took. */
static uint64_t busy_ns, left_ns;

/* One call that moves; in between, this program looks for folios, at its own cost. */
static long counted_move(size_t count, void **pages, const int *nodes, int *status)
{
	uint64_t began, left;
	long result;

	if (!opt.count) {
		began = opt.timed ? now_ns() : 0;
		result = sys_move_pages(0, count, pages, nodes, status, MPOL_MF_MOVE);
		if (opt.timed)
			keep_longest(&longest_call_ns, began);
		return result;
	}
	left = leftover_ns();
	began = now_ns();
	result = sys_move_pages(0, count, pages, nodes, status, MPOL_MF_MOVE);
	busy_ns += now_ns() - began;
	left = leftover_ns() - left;
	busy_ns -= left;
	left_ns += left;
	return result;
}

static bool may_fail(void)
{
	return opt.overlap || opt.pinned;
}

/*
 * Move the folios of a range to a node, and return how many there were. The kernel
 * may have split some since the last time (it marks large folios as partly mapped
 * while it unmaps them, and splits such folios when they migrate again).
 */
static size_t move_pages_to(char *start, size_t bytes, int node)
{
	size_t i, left, keep, count = bytes / PAGE_BYTES;
	void **pages = malloc(count * sizeof(*pages));
	int *nodes = malloc(count * sizeof(*nodes));
	int *status = malloc(count * sizeof(*status));
	int attempt;

	if (!pages || !nodes || !status)
		fail_errno("malloc");
	left = count = find_folios(start, bytes, pages);
	for (attempt = 0; left && attempt < ATTEMPTS; attempt++) {
		for (i = 0; i < left; i++) {
			nodes[i] = node;
			status[i] = INT_MIN;
		}
		if (counted_move(left, pages, nodes, status) < 0)
			fail_errno("move_pages");
		/* What did not move may be in use for a moment (-EBUSY, -EAGAIN). */
		if (sys_move_pages(0, left, pages, NULL, status, 0))
			fail_errno("move_pages (query)");
		for (i = keep = 0; i < left; i++)
			if (status[i] != node)
				pages[keep++] = pages[i];
		left = keep;
		if (opt.pinned && left <= opt.pinned)
			break;
		if (left && attempt)
			usleep(1000);
	}
	if (left && !may_fail())
		fail("%zu of %zu folios do not move to node %d", left, count, node);
	atomic_fetch_add(&busy, left);
	free(pages);
	free(nodes);
	free(status);
	return count;
}

/* Move a range by the device; huge pages may be split. */
static size_t move_by_device(char *start, size_t bytes, int node)
{
	size_t left = bytes / PAGE_BYTES;
	int attempt, i;

	for (attempt = 0; attempt < ATTEMPTS; attempt++) {
		struct ptdma_move move = device_move(device, start, bytes, node,
						     PTDMA_MOVE_MAY_SPLIT);

		for (i = 0; i < PTDMA_FATES; i++)
			atomic_fetch_add(&fates[i], move.bytes[i]);
		left = (bytes - move.bytes[PTDMA_BY_ENGINES] - move.bytes[PTDMA_BY_CPU] -
			move.bytes[PTDMA_THERE]) / PAGE_BYTES;
		/* Others who move the same pages back would have it go on for ever. */
		if (left <= opt.pinned || opt.overlap)
			break;
		if (attempt)
			usleep(1000);
	}
	if (left && !may_fail())
		fail("%zu pages do not move to node %d by the device", left, node);
	atomic_fetch_add(&busy, left);
	return bytes / opt.folio_bytes;
}

static size_t move_to(char *start, size_t bytes, int from, int to)
{
	unsigned long old = 1UL << from, new = 1UL << to;
	int attempt;
	long left = 0;

	switch (opt.call) {
	case CALL_MOVE_PAGES:
		return move_pages_to(start, bytes, to);
	case CALL_MIGRATE_PAGES:
		unbind_memory(memory, opt.bytes);
		for (attempt = 0; attempt < ATTEMPTS; attempt++) {
			left = syscall(SYS_migrate_pages, 0, MAX_NODES, &old, &new);
			if (left < 0)
				fail_errno("migrate_pages");
			if (pages_on_node(start, bytes, to) == bytes / PAGE_BYTES)
				return bytes / opt.folio_bytes;
			usleep(1000);
		}
		fail("migrate_pages leaves %ld pages", left);
	case CALL_DEVICE:
		return move_by_device(start, bytes, to);
	case CALL_MBIND:
		for (attempt = 0; attempt < ATTEMPTS; attempt++) {
			bind_memory(start, bytes, to, MPOL_MF_MOVE);
			if (pages_on_node(start, bytes, to) == bytes / PAGE_BYTES)
				return bytes / opt.folio_bytes;
			usleep(1000);
		}
		fail("mbind leaves pages behind");
	case NR_CALLS:
		break;
	}
	return 0;
}

struct share {
	pthread_t thread;
	char *start;
	size_t bytes, folios;
	unsigned int rounds;
	bool backwards;
};

/* Whether rounds that go by time are over: it has passed, or the file is there. */
static bool time_is_up(uint64_t end)
{
	return now_ns() >= end || (opt.until && !access(opt.until, F_OK));
}

/* Moves its share to and fro. */
static void *mover(void *argument)
{
	struct share *share = argument;
	uint64_t end = now_ns() + opt.for_ms * 1000000;
	unsigned int round;

	for (round = 0; opt.for_ms ? !time_is_up(end) : round < opt.rounds; round++) {
		if ((round & 1) ^ share->backwards)
			share->folios += move_to(share->start, share->bytes, opt.to, opt.from);
		else
			share->folios += move_to(share->start, share->bytes, opt.from, opt.to);
	}
	share->rounds = round;
	return NULL;
}

/* Hold references to the first pages, as direct I/O does, in a pipe. */
static int pin(unsigned int pages)
{
	struct iovec range;
	unsigned int i;
	int ends[2];

	if (pipe(ends))
		fail_errno("pipe");
	if (fcntl(ends[1], F_SETPIPE_SZ, (int)(pages * PAGE_BYTES)) < 0)
		fail_errno("F_SETPIPE_SZ");
	for (i = 0; i < pages; i++) {
		range.iov_base = memory + i * opt.folio_bytes;
		range.iov_len = PAGE_BYTES;
		if (vmsplice(ends[1], &range, 1, SPLICE_F_NONBLOCK) != (ssize_t)PAGE_BYTES)
			fail_errno("vmsplice");
	}
	return ends[0];
}

static const char *const vmstat_names[] = {
	"pgmigrate_success", "pgmigrate_fail", "thp_migration_success", "thp_migration_fail",
	"thp_migration_split",
};
#define NR_VMSTAT (sizeof(vmstat_names) / sizeof(*vmstat_names))

int main(int argc, char **argv)
{
	unsigned long long before[NR_VMSTAT], after[NR_VMSTAT];
	long long counted[MAX_COUNTERS], took[MAX_COUNTERS];
	struct share shares[MAX_MOVERS] = { 0 };
	uint64_t begin, fill_ns, move_ns, check_ns, cpu_ns;
	pthread_t writer_threads[MAX_WRITERS];
	size_t pages, expected, folios, moved_folios = 0, on_node;
	void **heads;
	unsigned int i;
	int node;

	parse(argc, argv);
	pages = opt.bytes / PAGE_BYTES;
	if (opt.call == CALL_DEVICE)
		device = device_open();

	begin = now_ns();
	memory = make_memory(opt.kind, opt.bytes, opt.folio_bytes, opt.from, opt.path);
	fill_pages(memory, opt.bytes, opt.seed);
	fill_ns = now_ns() - begin;

	heads = malloc(pages * sizeof(*heads));
	if (!heads)
		fail_errno("malloc");
	folios = find_folios(memory, opt.bytes, heads);
	free(heads);
	if (opt.kind != KIND_FILE && folios * opt.folio_bytes != opt.bytes)
		fail("%zu folios of %zu bytes make no %zu bytes", folios, opt.folio_bytes,
		     opt.bytes);
	on_node = pages_on_node(memory, opt.bytes, opt.from);
	if (on_node != pages)
		fail("only %zu of %zu pages begin on node %d", on_node, pages, opt.from);
	if (opt.pinned > folios)
		fail("cannot pin %u of %zu folios", opt.pinned, folios);
	if (opt.pinned)
		pin(opt.pinned);

	for (i = 0; i < opt.writers; i++)
		if (pthread_create(&writer_threads[i], NULL, writer, (void *)(uintptr_t)i))
			fail("pthread_create");
	if (opt.count)
		start_leftover();
	for (i = 0; i < NR_VMSTAT; i++)
		before[i] = vmstat(vmstat_names[i]);
	for (i = 0; i < opt.nr_counters; i++)
		counted[i] = read_number(opt.counters[i]);

	cpu_ns = cpu_now_ns();
	begin = now_ns();
	for (i = 0; i < opt.movers; i++) {
		size_t units = opt.bytes / opt.folio_bytes;
		size_t first = units * i / opt.movers, end = units * (i + 1) / opt.movers;

		if (opt.overlap) {
			first = 0;
			end = units;
		}
		shares[i].start = memory + first * opt.folio_bytes;
		shares[i].bytes = (end - first) * opt.folio_bytes;
		shares[i].backwards = opt.overlap && (i & 1);
		if (i && pthread_create(&shares[i].thread, NULL, mover, &shares[i]))
			fail("pthread_create");
	}
	mover(&shares[0]);
	for (i = 1; i < opt.movers; i++)
		pthread_join(shares[i].thread, NULL);
	move_ns = now_ns() - begin;
	cpu_ns = cpu_now_ns() - cpu_ns;

	for (i = 0; i < NR_VMSTAT; i++)
		after[i] = vmstat(vmstat_names[i]);
	for (i = 0; i < opt.nr_counters; i++)
		took[i] = read_number(opt.counters[i]) - counted[i];

	atomic_store(&stop, true);
	for (i = 0; i < opt.writers; i++)
		pthread_join(writer_threads[i], NULL);
	if (opt.count)
		stop_leftover();

	begin = now_ns();
	check_pages(memory, opt.bytes, opt.seed, opt.writers, "after the moves");
	if (!opt.overlap) {
		for (i = 0; i < opt.movers; i++) {
			moved_folios += shares[i].folios;
			node = shares[i].rounds & 1 ? opt.to : opt.from;
			expected = shares[i].bytes / PAGE_BYTES;
			if (!i && shares[i].rounds & 1)
				expected -= opt.pinned * (opt.folio_bytes / PAGE_BYTES);
			on_node = pages_on_node(shares[i].start, shares[i].bytes, node);
			if (on_node != expected)
				fail("share %u: %zu pages on node %d, expected %zu", i, on_node,
				     node, expected);
		}
	}
	check_ns = now_ns() - begin;

	printf("{\"kind\":\"%s\",\"call\":\"%s\",\"folio_bytes\":%zu,\"bytes\":%zu,"
	       "\"folios\":%zu,\"rounds\":%u,\"folios_moved\":%zu,\"busy\":%llu,"
	       "\"movers\":%u,\"writers\":%u,\"writes\":%llu,\"pinned\":%u,"
	       "\"move_cpu_ns\":%llu,\"longest_write_us\":%llu,\"longest_call_us\":%llu,"
	       "\"phase_ns\":{\"fill\":%llu,\"move\":%llu,\"check\":%llu,"
	       "\"busy\":%llu,\"left\":%llu}",
	       opt.kind_name, opt.call_name, opt.folio_bytes, opt.bytes, folios,
	       shares[0].rounds, moved_folios, (unsigned long long)atomic_load(&busy),
	       opt.movers, opt.writers, (unsigned long long)atomic_load(&writes), opt.pinned,
	       (unsigned long long)cpu_ns,
	       (unsigned long long)atomic_load(&longest_write_ns) / 1000,
	       (unsigned long long)atomic_load(&longest_call_ns) / 1000,
	       (unsigned long long)fill_ns, (unsigned long long)move_ns,
	       (unsigned long long)check_ns, (unsigned long long)busy_ns,
	       (unsigned long long)left_ns);
	printf(",\"vmstat\":{");
	for (i = 0; i < NR_VMSTAT; i++)
		printf("%s\"%s\":%llu", i ? "," : "", vmstat_names[i], after[i] - before[i]);
	printf("},\"fates\":{");
	for (i = 0; i < PTDMA_FATES; i++)
		printf("%s\"%s\":%llu", i ? "," : "", fate_names[i],
		       (unsigned long long)atomic_load(&fates[i]));
	printf("},\"counters\":{");
	for (i = 0; i < opt.nr_counters; i++)
		printf("%s\"%s\":%lld", i ? "," : "", opt.counters[i], took[i]);
	printf("}}\n");
	return 0;
}
