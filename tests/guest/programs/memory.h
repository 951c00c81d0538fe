/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What the migration programs share: memory of a kind, folio size and node; a
 * pattern that no two pages have in common; where pages are; counters.
 *
 * Errors are fatal: these are tests, and exit status 1 with a line that says what
 * was expected is all they have to say about one.
 */
#ifndef GUEST_MEMORY_H
#define GUEST_MEMORY_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))

#define PAGE_BYTES 4096UL
#define HUGE_BYTES (2UL << 20)
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))
/* The last words of a page are for writers, one each; the rest is the pattern. */
#define WRITER_WORDS 16UL
#define PATTERN_WORDS (PAGE_WORDS - WRITER_WORDS)

/* linux/mempolicy.h */
#ifndef MPOL_BIND
#define MPOL_DEFAULT 0
#define MPOL_BIND 2
#define MPOL_MF_STRICT 1
#define MPOL_MF_MOVE 2
#define MPOL_MF_MOVE_ALL 4
#endif
/* linux/kernel-page-flags.h */
#define FLAG_COMPOUND_TAIL (1ULL << 16)
#define MAX_NODES 64UL

static UNUSED void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
static UNUSED void fail(const char *format, ...)
{
	va_list args;

	fflush(stdout);
	va_start(args, format);
	fprintf(stderr, "FAIL: ");
	vfprintf(stderr, format, args);
	fprintf(stderr, "\n");
	va_end(args);
	exit(1);
}

static UNUSED void fail_errno(const char *what)
{
	fail("%s: %s", what, strerror(errno));
}

static UNUSED uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

/* Raises the longest of something to what has passed since a moment, if that is longer. */
static UNUSED void keep_longest(atomic_ullong *longest_ns, uint64_t began)
{
	unsigned long long took = now_ns() - began, longest = atomic_load(longest_ns);

	while (took > longest && !atomic_compare_exchange_weak(longest_ns, &longest, took))
		;
}

/* Processor time of this process. */
static UNUSED uint64_t cpu_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

/* --- small files ----------------------------------------------------------- */

static UNUSED bool try_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	ssize_t length = (ssize_t)strlen(text);
	bool done;

	if (fd < 0)
		return false;
	done = write(fd, text, (size_t)length) == length;
	close(fd);
	return done;
}

static UNUSED void must_write(const char *path, const char *text)
{
	if (!try_write(path, text))
		fail("write \"%s\" to %s: %s", text, path, strerror(errno));
}

static UNUSED long long read_number(const char *path)
{
	FILE *file = fopen(path, "r");
	long long value;

	if (!file)
		fail("open %s: %s", path, strerror(errno));
	if (fscanf(file, "%lld", &value) != 1)
		fail("%s holds no number", path);
	fclose(file);
	return value;
}

/*
 * What is left of the processor: a thread that runs when nothing else wants to. With
 * one processor, and an emulator that counts instructions as time, the time that the
 * thread did not get is the number of instructions that everything else took,
 * interrupts included.
 */
static UNUSED pthread_t leftover_thread;
static UNUSED clockid_t leftover_clock;
static UNUSED atomic_bool leftover_stop;

static UNUSED void *leftover(void *argument)
{
	struct sched_param none = { 0 };

	(void)argument;
	if (sched_setscheduler(0, SCHED_IDLE, &none))
		fail_errno("sched_setscheduler(SCHED_IDLE)");
	while (!atomic_load_explicit(&leftover_stop, memory_order_relaxed))
		;
	return NULL;
}

static UNUSED void start_leftover(void)
{
	if (pthread_create(&leftover_thread, NULL, leftover, NULL) ||
	    pthread_getcpuclockid(leftover_thread, &leftover_clock))
		fail("cannot start the leftover thread");
	/* It has its low rank once it has run. */
	usleep(20000);
}

static UNUSED void stop_leftover(void)
{
	atomic_store(&leftover_stop, true);
	pthread_join(leftover_thread, NULL);
}

/* The time that the leftover thread has had. */
static UNUSED uint64_t leftover_ns(void)
{
	struct timespec time;

	if (clock_gettime(leftover_clock, &time))
		fail_errno("clock_gettime");
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* A counter of /proc/vmstat, 0 if this kernel does not have it. */
static UNUSED unsigned long long vmstat(const char *name)
{
	FILE *file = fopen("/proc/vmstat", "r");
	unsigned long long value, found = 0;
	char line[128], word[100];

	if (!file)
		fail_errno("/proc/vmstat");
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%99s %llu", word, &value) == 2 && !strcmp(word, name)) {
			found = value;
			break;
		}
	}
	fclose(file);
	return found;
}

/* --- pattern --------------------------------------------------------------- */

/* A word that differs for every page, word and seed. (The finisher of SplitMix64.) */
static inline uint64_t pattern_word(uint64_t seed, uint64_t page, uint64_t word)
{
	uint64_t value = seed + page * 0x9e3779b97f4a7c15ULL + word * 0xbf58476d1ce4e5b9ULL;

	value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
	value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
	return value ^ (value >> 31);
}

static UNUSED void fill_pages(void *memory, size_t bytes, uint64_t seed)
{
	uint64_t *words = memory;
	size_t page, word;

	for (page = 0; page < bytes / PAGE_BYTES; page++, words += PAGE_WORDS) {
		for (word = 0; word < PATTERN_WORDS; word++)
			words[word] = pattern_word(seed, page, word);
		for (; word < PAGE_WORDS; word++)
			words[word] = 0;
	}
}

/* Check every byte of the pattern; with_writers leaves the writers' words out. */
static UNUSED void check_pages(const void *memory, size_t bytes, uint64_t seed,
			       bool with_writers, const char *when)
{
	const uint64_t *words = memory;
	size_t page, word;
	uint64_t expected;

	for (page = 0; page < bytes / PAGE_BYTES; page++, words += PAGE_WORDS) {
		for (word = 0; word < PAGE_WORDS; word++) {
			if (word >= PATTERN_WORDS && with_writers)
				break;
			expected = word < PATTERN_WORDS ? pattern_word(seed, page, word) : 0;
			if (words[word] != expected)
				fail("%s: page %zu, byte %zu is %#llx, expected %#llx", when, page,
				     word * sizeof(*words), (unsigned long long)words[word],
				     (unsigned long long)expected);
		}
	}
}

/* --- nodes ----------------------------------------------------------------- */

static UNUSED long sys_move_pages(int pid, unsigned long count, void **pages, const int *nodes,
				  int *status, int flags)
{
	return syscall(SYS_move_pages, pid, count, pages, nodes, status, flags);
}

static UNUSED void bind_memory(void *memory, size_t bytes, int node, unsigned int flags)
{
	unsigned long mask = 1UL << node;

	if (syscall(SYS_mbind, memory, bytes, MPOL_BIND, &mask, MAX_NODES + 1, flags))
		fail("mbind to node %d: %s", node, strerror(errno));
}

/* Allow every node again; pages stay where they are. */
static UNUSED void unbind_memory(void *memory, size_t bytes)
{
	if (syscall(SYS_mbind, memory, bytes, MPOL_DEFAULT, NULL, 0, 0))
		fail_errno("mbind to the default");
}

/* The processors of a node are those that its cpulist starts with. */
static UNUSED void run_on_node(int node)
{
	char path[96];
	cpu_set_t set;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/cpulist", node);
	CPU_ZERO(&set);
	CPU_SET((size_t)read_number(path), &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail_errno("sched_setaffinity");
}

/* How many of the pages are on the node. */
static UNUSED size_t pages_on_node(void *memory, size_t bytes, int node)
{
	enum { CHUNK = 512 };
	void *pages[CHUNK];
	int status[CHUNK];
	size_t count = bytes / PAGE_BYTES, first, i, chunk, found = 0;

	for (first = 0; first < count; first += chunk) {
		chunk = count - first < CHUNK ? count - first : CHUNK;
		for (i = 0; i < chunk; i++)
			pages[i] = (char *)memory + (first + i) * PAGE_BYTES;
		if (sys_move_pages(0, chunk, pages, NULL, status, 0))
			fail_errno("move_pages (query)");
		for (i = 0; i < chunk; i++)
			found += status[i] == node;
	}
	return found;
}

/* Free memory of a node. */
static UNUSED size_t free_on_node(int node)
{
	unsigned long long kib = 0;
	char path[96], line[160];
	FILE *file;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/meminfo", node);
	file = fopen(path, "r");
	if (!file)
		fail("open %s: %s", path, strerror(errno));
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "Node %*d MemFree: %llu", &kib) == 1)
			break;
	fclose(file);
	return kib << 10;
}

/* --- folios ---------------------------------------------------------------- */

static UNUSED int open_or_fail(const char *path)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		fail("open %s: %s", path, strerror(errno));
	return fd;
}

/*
 * Find the folios under a range: their first addresses go to heads (room for one
 * for each page). A folio that begins before the range counts from its start, and a
 * page that is being migrated just now counts by itself.
 */
static UNUSED size_t find_folios(void *memory, size_t bytes, void **heads)
{
	int pagemap = open_or_fail("/proc/self/pagemap");
	int kpageflags = open_or_fail("/proc/kpageflags");
	size_t page, found = 0;
	uint64_t entry, flags;
	char *at;

	for (page = 0; page < bytes / PAGE_BYTES; page++) {
		at = (char *)memory + page * PAGE_BYTES;
		if (pread(pagemap, &entry, sizeof(entry),
			  (off_t)((uintptr_t)at / PAGE_BYTES * sizeof(entry))) != sizeof(entry))
			fail_errno("/proc/self/pagemap");
		if (!(entry >> 63)) {
			heads[found++] = at;
			continue;
		}
		entry &= (1ULL << 55) - 1;
		if (pread(kpageflags, &flags, sizeof(flags),
			  (off_t)(entry * sizeof(flags))) != sizeof(flags))
			fail_errno("/proc/kpageflags");
		if (!page || !(flags & FLAG_COMPOUND_TAIL))
			heads[found++] = at;
	}
	close(pagemap);
	close(kpageflags);
	return found;
}

/* --- allocation ------------------------------------------------------------ */

enum kind { KIND_ANON, KIND_SHMEM, KIND_FILE, KIND_HUGETLB };

static UNUSED enum kind kind_of(const char *name)
{
	static const char *const names[] = { "anon", "shmem", "file", "hugetlb" };
	size_t i;

	for (i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (!strcmp(name, names[i]))
			return (enum kind)i;
	fail("unknown kind of memory: %s", name);
}

/* Before 6.8 folios are huge or small, and each kind has one switch. */
static UNUSED bool choose_huge_folios(size_t bytes, const char *file)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/kernel/mm/transparent_hugepage/%s", file);
	return bytes == HUGE_BYTES &&
	       try_write(path, *file == 's' ? "advise" : "madvise");
}

/* Only folios of this size (and 4 KiB) for those who ask by MADV_HUGEPAGE. */
static UNUSED void choose_folio_size(size_t bytes)
{
	static const char *const files[] = { "enabled", "shmem_enabled" };
	char path[128];
	size_t kib, i;
	bool on;

	for (kib = 8; kib <= HUGE_BYTES >> 10; kib *= 2) {
		on = kib << 10 == bytes;
		for (i = 0; i < sizeof(files) / sizeof(*files); i++) {
			snprintf(path, sizeof(path),
				 "/sys/kernel/mm/transparent_hugepage/hugepages-%zukB/%s", kib,
				 files[i]);
			if (!try_write(path, on ? (i ? "advise" : "madvise") : "never") && on &&
			    !choose_huge_folios(bytes, files[i]))
				fail("no folios of %zu KiB: cannot set %s", kib, path);
		}
	}
	/* Compact and reclaim for them, else their number is a matter of luck. */
	try_write("/sys/kernel/mm/transparent_hugepage/defrag", "always");
}

static UNUSED size_t round_up(size_t bytes, size_t to)
{
	return (bytes + to - 1) / to * to;
}

/* Address space aligned to a huge page. */
static UNUSED char *reserve(size_t bytes)
{
	size_t size = round_up(bytes, HUGE_BYTES) + HUGE_BYTES;
	char *memory = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		fail_errno("mmap");
	return (char *)round_up((uintptr_t)memory, HUGE_BYTES);
}

/*
 * Map and populate memory on a node. For KIND_FILE, path names a file to create
 * (it is unlinked). Sizes above a page are wishes: see find_folios().
 */
static UNUSED void *make_memory(enum kind kind, size_t bytes, size_t folio_bytes, int node,
				const char *path)
{
	int flags = MAP_FIXED, fd = -1, protection = PROT_READ | PROT_WRITE;
	char *memory = reserve(bytes);

	switch (kind) {
	case KIND_ANON:
		flags |= MAP_PRIVATE | MAP_ANONYMOUS;
		break;
	case KIND_HUGETLB:
		flags |= MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
		break;
	case KIND_SHMEM:
		flags |= MAP_SHARED;
		fd = memfd_create("mover", 0);
		break;
	case KIND_FILE:
		flags |= MAP_SHARED;
		if (!path)
			fail("--kind file needs --path");
		fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
		break;
	}
	if (flags & MAP_SHARED) {
		if (fd < 0)
			fail_errno(path ? path : "memfd_create");
		if (ftruncate(fd, (off_t)bytes))
			fail_errno("ftruncate");
		if (path)
			unlink(path);
	}
	if (mmap(memory, bytes, protection, flags, fd, 0) == MAP_FAILED)
		fail_errno("mmap");
	if (fd >= 0)
		close(fd);
	if (kind != KIND_HUGETLB) {
		if (folio_bytes > PAGE_BYTES)
			choose_folio_size(folio_bytes);
		if (madvise(memory, bytes,
			    folio_bytes > PAGE_BYTES ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) &&
		    folio_bytes > PAGE_BYTES)
			fail_errno("madvise(MADV_HUGEPAGE)");
	}
	/* The policy of a file mapping does not apply to its page cache. */
	run_on_node(node);
	bind_memory(memory, bytes, node, 0);
	return memory;
}

#endif
