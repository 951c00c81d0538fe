// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * kinds - what /dev/ptdma_move says of each kind of memory, and of those who may not.
 *
 * Each test makes memory of a kind, has the device move it, and compares fates, nodes
 * and every byte. `kinds NAME...` runs some tests, `kinds` all. Prints one JSON object.
 */
#include "device.h"

#include <getopt.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/uio.h>
#include <sys/wait.h>

/* A window of the device, and a huge page. */
#define BYTES HUGE_BYTES
#define PAGES (BYTES / PAGE_BYTES)

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#define SYS_pidfd_getfd 438
#endif

static int device;
static int keeps_huge;
/* A disk to swap to; without one there is no test of swap. */
static const char *swap_disk;

static char *anonymous(size_t folio_bytes)
{
	char *memory = make_memory(KIND_ANON, BYTES, folio_bytes, 0, NULL);

	fill_pages(memory, BYTES, 7);
	unbind_memory(memory, BYTES);
	return memory;
}

static void moved_to(struct ptdma_move move, uint64_t bytes, const char *what)
{
	if (move.bytes[PTDMA_BY_ENGINES] + move.bytes[PTDMA_BY_CPU] != bytes)
		fail("%s: %llu and %llu bytes moved, not %llu", what,
		     (unsigned long long)move.bytes[PTDMA_BY_ENGINES],
		     (unsigned long long)move.bytes[PTDMA_BY_CPU], (unsigned long long)bytes);
}

static void has_fate(struct ptdma_move move, enum ptdma_fate fate, uint64_t bytes,
		     const char *what)
{
	if (move.bytes[fate] != bytes)
		fail("%s: %llu bytes are %s, not %llu", what,
		     (unsigned long long)move.bytes[fate], fate_names[fate],
		     (unsigned long long)bytes);
}

static void is_intact(char *memory, size_t on_node, int node, const char *what)
{
	size_t found = pages_on_node(memory, BYTES, node);

	if (found != on_node)
		fail("%s: %zu pages are on node %d, not %zu", what, found, node, on_node);
	check_pages(memory, BYTES, 7, false, what);
}

static void small(void)
{
	char *memory = anonymous(PAGE_BYTES);

	moved_to(device_move(device, memory, BYTES, 1, 0), BYTES, "small pages");
	is_intact(memory, PAGES, 1, "small pages");
	has_fate(device_move(device, memory, BYTES, 1, 0), PTDMA_THERE, BYTES, "again");
	/* Part of a window, and not at its begin. */
	moved_to(device_move(device, memory + 3 * PAGE_BYTES, 5 * PAGE_BYTES, 0, 0),
		 5 * PAGE_BYTES, "five pages");
	is_intact(memory, PAGES - 5, 1, "five pages");
}

static void huge(void)
{
	char *memory = anonymous(HUGE_BYTES);
	void *heads[PAGES];

	if (find_folios(memory, BYTES, heads) != 1)
		fail("no huge page to be had");
	has_fate(device_move(device, memory + PAGE_BYTES, PAGE_BYTES, 1, 0), PTDMA_HUGE,
		 PAGE_BYTES, "a part of a huge page");
	if (keeps_huge) {
		moved_to(device_move(device, memory, BYTES, 1, 0), BYTES, "huge page");
		if (find_folios(memory, BYTES, heads) != 1)
			fail("the huge page was split");
		is_intact(memory, PAGES, 1, "huge page");
		moved_to(device_move(device, memory, PAGE_BYTES, 0, PTDMA_MOVE_MAY_SPLIT),
			 PAGE_BYTES, "split");
		is_intact(memory, PAGES - 1, 1, "split");
		return;
	}
	has_fate(device_move(device, memory, BYTES, 1, 0), PTDMA_HUGE, BYTES, "huge page");
	if (find_folios(memory, BYTES, heads) != 1)
		fail("the huge page was split");
	is_intact(memory, PAGES, 0, "huge page");
	moved_to(device_move(device, memory, BYTES, 1, PTDMA_MOVE_MAY_SPLIT), BYTES, "split");
	is_intact(memory, PAGES, 1, "split");
}

/* Times that somebody else moves a huge page while the device is called. */
#define ROUNDS_ELSEWHERE 400

/*
 * Somebody else migrates the huge page. Kernels from 6.5 to 6.18 spin where the device
 * asks them about it meanwhile, and then split it.
 */
static void migrating(void)
{
	char *memory = anonymous(HUGE_BYTES);
	void *heads[PAGES];
	uint64_t busy = 0;
	pid_t child;
	int status;

	if (find_folios(memory, BYTES, heads) != 1)
		fail("no huge page to be had");
	child = fork();
	if (child < 0)
		fail_errno("fork");
	if (!child) {
		int i, node, where;

		for (i = 0; i < ROUNDS_ELSEWHERE; i++) {
			void *page = memory;

			node = 1 - i % 2;
			sys_move_pages(getppid(), 1, &page, &node, &where, MPOL_MF_MOVE_ALL);
		}
		_exit(0);
	}
	while (waitpid(child, &status, WNOHANG) == 0) {
		struct ptdma_move move = device_move(device, memory, BYTES, 1, 0);

		busy += move.bytes[PTDMA_BUSY];
		if (!keeps_huge && move.bytes[PTDMA_HUGE] + move.bytes[PTDMA_BUSY] != BYTES)
			fail("a huge page that somebody migrates was taken for small ones");
	}
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		fail("whoever migrates ended with %#x", status);
	if (!busy)
		fail("the device never met a huge page under way");
	if (find_folios(memory, BYTES, heads) != 1)
		fail("the huge page was split");
	check_pages(memory, BYTES, 7, false, "migrated by somebody else");
}

static void of_kind(char *memory, const char *what)
{
	has_fate(device_move(device, memory, BYTES, 1, 0), PTDMA_KIND, BYTES, what);
	is_intact(memory, PAGES, 0, what);
}

static void files(void)
{
	char *memory = make_memory(KIND_SHMEM, BYTES, PAGE_BYTES, 0, NULL);
	int fd = memfd_create("kinds", 0);

	fill_pages(memory, BYTES, 7);
	of_kind(memory, "shared memory");
	memory = make_memory(KIND_FILE, BYTES, PAGE_BYTES, 0, "/kinds");
	fill_pages(memory, BYTES, 7);
	of_kind(memory, "a file");
	/* Private copies of a file's pages: they are nobody else's, and not asked for. */
	if (fd < 0 || ftruncate(fd, BYTES))
		fail_errno("memfd_create");
	memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (memory == MAP_FAILED)
		fail_errno("mmap");
	bind_memory(memory, BYTES, 0, 0);
	fill_pages(memory, BYTES, 7);
	of_kind(memory, "a file's private pages");
}

static void hugetlb(void)
{
	char *memory = make_memory(KIND_HUGETLB, BYTES, HUGE_BYTES, 0, NULL);

	fill_pages(memory, BYTES, 7);
	of_kind(memory, "hugetlb");
}

static void locked(void)
{
	char *memory = anonymous(PAGE_BYTES);

	if (mlock(memory, BYTES))
		fail_errno("mlock");
	of_kind(memory, "memory under mlock");
	if (munlock(memory, BYTES))
		fail_errno("munlock");
	moved_to(device_move(device, memory, BYTES, 1, 0), BYTES, "memory after munlock");
	is_intact(memory, PAGES, 1, "memory after munlock");
}

static void absent(void)
{
	char *memory = make_memory(KIND_ANON, 2 * BYTES, PAGE_BYTES, 0, NULL);
	const volatile char *zeros = memory;
	size_t page, sum = 0;

	has_fate(device_move(device, memory, BYTES, 1, 0), PTDMA_ABSENT, BYTES, "untouched");
	for (page = 0; page < PAGES; page++)
		sum += (size_t)zeros[page * PAGE_BYTES];
	has_fate(device_move(device, memory, BYTES, 1, 0), PTDMA_ABSENT, BYTES, "zeros");
	if (sum || munmap(memory, BYTES))
		fail("zeros are not zero, or munmap fails");
	memory[BYTES] = 1;
	/* A hole, a page, nothing. */
	memset(memory + BYTES, 1, PAGE_BYTES);
	{
		struct ptdma_move move = device_move(device, memory, 2 * BYTES, 1, 0);

		has_fate(move, PTDMA_ABSENT, 2 * BYTES - PAGE_BYTES, "a hole");
		moved_to(move, PAGE_BYTES, "a page behind a hole");
	}
}

static void pinned(void)
{
	enum { PINNED = 3 };
	char *memory = anonymous(PAGE_BYTES);
	struct ptdma_move move;
	int ends[2], i;

	if (pipe(ends))
		fail_errno("pipe");
	for (i = 0; i < PINNED; i++) {
		struct iovec range = { memory + i * 7 * PAGE_BYTES, PAGE_BYTES };

		if (vmsplice(ends[1], &range, 1, 0) != (ssize_t)PAGE_BYTES)
			fail_errno("vmsplice");
	}
	move = device_move(device, memory, BYTES, 1, 0);
	has_fate(move, PTDMA_BUSY, PINNED * PAGE_BYTES, "pinned pages");
	moved_to(move, BYTES - PINNED * PAGE_BYTES, "pages beside pinned ones");
	is_intact(memory, PAGES - PINNED, 1, "pinned pages");
	close(ends[0]);
	close(ends[1]);
	moved_to(device_move(device, memory, BYTES, 1, 0), PINNED * PAGE_BYTES, "freed pages");
	is_intact(memory, PAGES, 1, "freed pages");
}

/* Pages that a child shares move for both; what one writes the other does not see. */
static void shared_by_fork(void)
{
	char *memory = anonymous(PAGE_BYTES);
	int go[2], status;
	pid_t child;
	char byte;

	if (pipe(go))
		fail_errno("pipe");
	child = fork();
	if (child < 0)
		fail_errno("fork");
	if (!child) {
		if (read(go[0], &byte, 1) != 1)
			_exit(3);
		is_intact(memory, PAGES, 1, "pages in the child");
		memset(memory, 1, BYTES);
		_exit(0);
	}
	moved_to(device_move(device, memory, BYTES, 1, 0), BYTES, "pages shared by fork");
	is_intact(memory, PAGES, 1, "pages in the parent");
	if (write(go[1], "", 1) != 1)
		fail_errno("write");
	if (waitpid(child, &status, 0) != child || status)
		fail("the child has seen something wrong: %d", status);
	is_intact(memory, PAGES, 1, "pages after the child has written");
}

static void merged(void)
{
	char *memory = make_memory(KIND_ANON, BYTES, PAGE_BYTES, 0, NULL);
	struct ptdma_move move;
	size_t page;
	int turn;

	for (page = 0; page < PAGES; page++)
		memset(memory + page * PAGE_BYTES, 0x5a, PAGE_BYTES);
	unbind_memory(memory, BYTES);
	must_write("/sys/kernel/mm/ksm/sleep_millisecs", "1");
	must_write("/sys/kernel/mm/ksm/pages_to_scan", "5000");
	if (madvise(memory, BYTES, MADV_MERGEABLE))
		fail_errno("MADV_MERGEABLE");
	must_write("/sys/kernel/mm/ksm/run", "1");
	for (turn = 0; read_number("/sys/kernel/mm/ksm/pages_sharing") +
			       read_number("/sys/kernel/mm/ksm/pages_shared") <
		       (long long)PAGES;
	     turn++) {
		if (turn == 10000)
			fail("KSM merges nothing");
		usleep(1000);
	}
	must_write("/sys/kernel/mm/ksm/run", "0");
	move = device_move(device, memory, BYTES, 1, 0);
	/* Of a page that is mapped many times, the kernel locks it for the first one. */
	if (!move.bytes[PTDMA_KIND])
		fail("no merged page is of another kind");
	has_fate(move, PTDMA_BUSY, BYTES - move.bytes[PTDMA_KIND], "merged pages");
	for (page = 0; page < BYTES; page++)
		if (memory[page] != 0x5a)
			fail("merged memory: byte %zu is wrong", page);
	must_write("/sys/kernel/mm/ksm/run", "2");
	must_write("/sys/kernel/mm/ksm/run", "0");
}

static void on_signal(int signal)
{
	(void)signal;
}

/* A bad page is out of the process's reach; its neighbours move. */
static void poisoned(void)
{
	/* The kernel tells the process at once. */
	struct sigaction action = { .sa_handler = on_signal };
	char *memory = anonymous(PAGE_BYTES);
	struct ptdma_move move;

	sigaction(SIGBUS, &action, NULL);
	if (madvise(memory + 9 * PAGE_BYTES, PAGE_BYTES, MADV_HWPOISON))
		fail_errno("MADV_HWPOISON");
	move = device_move(device, memory, BYTES, 1, 0);
	has_fate(move, PTDMA_BUSY, PAGE_BYTES, "a bad page");
	moved_to(move, BYTES - PAGE_BYTES, "pages beside a bad one");
	if (pages_on_node(memory, BYTES, 1) != PAGES - 1)
		fail("not all pages beside a bad one are on node 1");
	check_pages(memory, 9 * PAGE_BYTES, 7, false, "pages before a bad one");
	munmap(memory + 9 * PAGE_BYTES, PAGE_BYTES);
}

static void no_memory(void)
{
	size_t most = free_on_node(1) / HUGE_BYTES * HUGE_BYTES;
	char *memory = anonymous(PAGE_BYTES), *filler;
	struct ptdma_move move;
	uint64_t left = 0;
	size_t at;

	/* Takes node 1 down to where the kernel begins to reclaim, and moves to and fro. */
	filler = reserve(most);
	if (mmap(filler, most, PROT_READ | PROT_WRITE,
		 MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED)
		fail_errno("mmap");
	bind_memory(filler, most, 1, 0);
	for (at = 0; at < most && !left; at += HUGE_BYTES) {
		memset(filler + at, 1, HUGE_BYTES);
		if (free_on_node(1) > most / 3)
			continue;
		move = device_move(device, memory, BYTES, 1, 0);
		left = move.bytes[PTDMA_NO_MEMORY];
		moved_to(move, BYTES - left, "pages of a full node");
		is_intact(memory, PAGES - left / PAGE_BYTES, 1, "pages of a full node");
		move = device_move(device, memory, BYTES, 0, 0);
		has_fate(move, PTDMA_THERE, left, "pages that stayed");
	}
	if (!left)
		fail("node 1 is never full");
	munmap(filler, most);
	moved_to(device_move(device, memory, BYTES, 1, 0), BYTES, "pages once there is room");
	is_intact(memory, PAGES, 1, "pages once there is room");
}

static void refused(struct ptdma_move move, int fd, int error, const char *what)
{
	int got = device_try(fd, &move);

	if (got != error)
		fail("%s: %s, expected %s", what, strerror(got), strerror(error));
}

static void arguments(void)
{
	char *memory = anonymous(PAGE_BYTES);
	const struct ptdma_move good = { .addr = (uintptr_t)memory, .len = BYTES, .node = 1 };
	struct ptdma_move move;

#define REFUSED(error, field, value) \
	(move = good, move.field = (value), refused(move, device, error, #field " " #value))
	REFUSED(EINVAL, addr, good.addr + 1);
	REFUSED(EINVAL, len, BYTES - 1);
	REFUSED(EINVAL, len, 0);
	REFUSED(EINVAL, len, -PAGE_BYTES);
	REFUSED(EINVAL, addr, -PAGE_BYTES);
	REFUSED(EINVAL, flags, 2);
	REFUSED(ENODEV, node, 2);
	REFUSED(ENODEV, node, 63);
	REFUSED(ENODEV, node, ~0U);
#undef REFUSED
	if (!ioctl(device, PTDMA_IOC_MOVE + 1, &move) || errno != ENOTTY)
		fail("an unknown ioctl is taken");
	if (!ioctl(device, PTDMA_IOC_MOVE, 8) || errno != EFAULT)
		fail("an address of nothing is taken");
	is_intact(memory, PAGES, 0, "memory after refusals");
}

static void drop_capability(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data))
		fail_errno("capget");
	data[CAP_SYS_NICE / 32].effective &= ~(1U << (CAP_SYS_NICE % 32));
	if (syscall(SYS_capset, &header, data))
		fail_errno("capset");
}

static void must_exit_well(pid_t child, const char *what)
{
	int status;

	if (child < 0 || waitpid(child, &status, 0) != child || status)
		fail("%s: the other process has failed", what);
}

/* The file of this process in the hands of another one. */
static void capability(void)
{
	char *memory = anonymous(PAGE_BYTES);
	struct ptdma_move move = { .addr = (uintptr_t)memory, .len = BYTES, .node = 1 };
	struct stat about;
	pid_t child;

	if (stat(PTDMA_MOVE_DEVICE, &about) || (about.st_mode & 07777) != 0600)
		fail("the device is not for root alone");
	child = fork();
	if (!child) {
		drop_capability();
		refused(move, device, EPERM, "somebody else's memory");
		_exit(0);
	}
	must_exit_well(child, "without CAP_SYS_NICE");
	is_intact(memory, PAGES, 0, "memory after a refusal");
	child = fork();
	if (!child) {
		/* Its own memory at this address is a copy, and stays. */
		moved_to(device_move(device, memory, BYTES, 1, 0), BYTES, "the owner's");
		_exit(0);
	}
	must_exit_well(child, "with CAP_SYS_NICE");
	is_intact(memory, PAGES, 1, "memory that another process moved");
	/* One's own memory takes no capability. */
	child = fork();
	if (!child) {
		drop_capability();
		device = device_open();
		moved_to(device_move(device, memory, BYTES, 0, 0), BYTES, "own memory");
		_exit(0);
	}
	must_exit_well(child, "own memory");
	child = fork();
	if (!child) {
		if (setuid(65534))
			_exit(1);
		_exit(open(PTDMA_MOVE_DEVICE, O_RDWR) >= 0 || errno != EACCES);
	}
	must_exit_well(child, "a user");
}

/* A controller takes the file of another process; the file outlives that process. */
static void taken_over(void)
{
	char *memory = anonymous(PAGE_BYTES);
	int ready[2], go[2], theirs, pidfd;
	struct ptdma_move move;
	pid_t child;
	char byte;

	if (pipe(ready) || pipe(go))
		fail_errno("pipe");
	child = fork();
	if (!child) {
		int own = device_open();

		/* Not shared with the parent any more. */
		fill_pages(memory, BYTES, 7);
		if (dup2(own, 100) != 100 || write(ready[1], "", 1) != 1 ||
		    read(go[0], &byte, 1) != 1)
			_exit(2);
		is_intact(memory, PAGES, 1, "memory that a controller moved");
		_exit(0);
	}
	if (read(ready[0], &byte, 1) != 1)
		fail_errno("read");
	pidfd = (int)syscall(SYS_pidfd_open, child, 0);
	theirs = (int)syscall(SYS_pidfd_getfd, pidfd, 100, 0);
	if (theirs < 0)
		fail_errno("pidfd_getfd");
	moved_to(device_move(theirs, memory, BYTES, 1, 0), BYTES, "memory of a process");
	is_intact(memory, PAGES, 0, "memory of the controller");
	if (write(go[1], "", 1) != 1)
		fail_errno("write");
	must_exit_well(child, "the process");
	move = (struct ptdma_move){ .addr = (uintptr_t)memory, .len = BYTES, .node = 1 };
	refused(move, theirs, ESRCH, "memory of a process that has exited");
	close(theirs);
	close(pidfd);
}

static void cpuset(void)
{
	char *memory = anonymous(PAGE_BYTES);
	struct ptdma_move move = { .addr = (uintptr_t)memory, .len = BYTES, .node = 1 };
	char pid[16];

	mkdir("/cgroup", 0755);
	if (mount("none", "/cgroup", "cgroup2", 0, NULL))
		fail_errno("mount cgroup2");
	must_write("/cgroup/cgroup.subtree_control", "+cpuset");
	if (mkdir("/cgroup/kinds", 0755) && errno != EEXIST)
		fail_errno("mkdir");
	must_write("/cgroup/kinds/cpuset.mems", "0");
	snprintf(pid, sizeof(pid), "%d", getpid());
	must_write("/cgroup/kinds/cgroup.procs", pid);
	refused(move, device, EACCES, "a node outside of the cpuset");
	must_write("/cgroup/cgroup.procs", pid);
	moved_to(device_move(device, memory, BYTES, 1, 0), BYTES, "a node of the cpuset");
	rmdir("/cgroup/kinds");
	umount("/cgroup");
}

/* A signal ends the call between windows; the rest moves by the next call. */
static void signals(void)
{
	enum { WINDOWS = 16 };
	struct sigaction action = { .sa_handler = on_signal };
	struct timespec tick = { .tv_nsec = 2000000 };
	struct itimerspec often = { .it_value = tick, .it_interval = tick };
	char *memory = make_memory(KIND_ANON, WINDOWS * BYTES, PAGE_BYTES, 0, NULL);
	struct ptdma_move move = { .addr = (uintptr_t)memory, .len = WINDOWS * BYTES, .node = 1 };
	unsigned int interrupted = 0, turns;
	uint64_t end = move.addr + move.len, moved = 0;
	timer_t timer;

	fill_pages(memory, WINDOWS * BYTES, 7);
	unbind_memory(memory, WINDOWS * BYTES);
	sigaction(SIGALRM, &action, NULL);
	if (timer_create(CLOCK_MONOTONIC, NULL, &timer) || timer_settime(timer, 0, &often, NULL))
		fail_errno("timer");
	for (turns = 0; move.addr < end; turns++) {
		int error = device_try(device, &move);

		if (error && error != EINTR)
			fail("signals: %s", strerror(error));
		interrupted += error == EINTR;
		moved += move.bytes[PTDMA_BY_ENGINES] + move.bytes[PTDMA_BY_CPU];
		move.addr = move.next;
		move.len = end - move.next;
		/* A busy host may take longer for a window than from tick to tick. */
		if (turns == 64)
			timer_delete(timer);
	}
	if (turns <= 64)
		timer_delete(timer);
	if (!interrupted || moved != WINDOWS * BYTES)
		fail("%u signals, %llu bytes moved", interrupted, (unsigned long long)moved);
	check_pages(memory, WINDOWS * BYTES, 7, false, "signals");
}

/* How many pages are mapped and have a flag of linux/kernel-page-flags.h. */
static size_t pages_with(const char *memory, unsigned int flag)
{
	int pagemap = open_or_fail("/proc/self/pagemap"), kpageflags = open_or_fail("/proc/kpageflags");
	uint64_t entry, flags;
	size_t page, found = 0;

	for (page = 0; page < PAGES; page++) {
		uintptr_t at = (uintptr_t)memory + page * PAGE_BYTES;

		if (pread(pagemap, &entry, 8, (off_t)(at / PAGE_BYTES * 8)) != 8)
			fail_errno("/proc/self/pagemap");
		if (!(entry >> 63))
			continue;
		entry &= (1ULL << 55) - 1;
		if (pread(kpageflags, &flags, 8, (off_t)(entry * 8)) != 8)
			fail_errno("/proc/kpageflags");
		found += flags >> flag & 1;
	}
	close(pagemap);
	close(kpageflags);
	return found;
}

/* The header that mkswap(8) writes. */
static void make_swap(const char *disk)
{
	static uint32_t header[PAGE_BYTES / 4];
	int fd = open(disk, O_RDWR);
	off_t bytes;

	if (fd < 0)
		fail_errno(disk);
	bytes = lseek(fd, 0, SEEK_END);
	/* Behind the boot block: version, last page, bad pages. */
	header[256] = 1;
	header[257] = (uint32_t)(bytes / (off_t)PAGE_BYTES) - 1;
	memcpy((char *)header + PAGE_BYTES - 10, "SWAPSPACE2", 10);
	if (pwrite(fd, header, sizeof(header), 0) != sizeof(header) || fsync(fd) || close(fd))
		fail_errno(disk);
}

/* Pages on their way to a slow disk, that the process uses again meanwhile. */
static void writeback(void)
{
	enum { KPF_WRITEBACK = 8, KPF_SWAPCACHE = 13 };
	const unsigned int turns_ms = 100, most_ms = 60000;
	char *memory = anonymous(PAGE_BYTES);
	size_t writing, cached, moved = 0, left = BYTES;
	struct ptdma_move move;
	unsigned int turn;

	make_swap(swap_disk);
	if (swapon(swap_disk, 0))
		fail_errno("swapon");
	if (madvise(memory, BYTES, MADV_PAGEOUT))
		fail_errno("MADV_PAGEOUT");
	check_pages(memory, BYTES, 7, false, "pages on their way to swap");
	writing = pages_with(memory, KPF_WRITEBACK);
	cached = pages_with(memory, KPF_SWAPCACHE);
	if (!writing || !cached)
		fail("%zu pages are under writeback, and %zu in the swap cache", writing, cached);
	move = device_move(device, memory, BYTES, 1, 0);
	if (!move.bytes[PTDMA_BUSY])
		fail("no page is busy of %zu under writeback", writing);
	for (turn = 0; left && turn < most_ms / turns_ms; turn++) {
		moved += move.bytes[PTDMA_BY_ENGINES] + move.bytes[PTDMA_BY_CPU];
		left = BYTES - moved;
		check_pages(memory, BYTES, 7, false, "pages on their way to swap and to a node");
		if (!left)
			break;
		usleep(turns_ms * 1000);
		move = device_move(device, memory, BYTES, 1, 0);
	}
	is_intact(memory, PAGES, 1, "pages that were written to swap");
	/* What is on the disk, and what the swap cache has, is right where they are now. */
	for (turn = 0; turn < 2; turn++) {
		if (madvise(memory, BYTES, MADV_PAGEOUT))
			fail_errno("MADV_PAGEOUT");
		usleep(turn * 8000000);
		check_pages(memory, BYTES, 7, false, "pages that moved and were swapped again");
	}
	if (swapoff(swap_disk))
		fail_errno("swapoff");
	check_pages(memory, BYTES, 7, false, "pages without swap");
	fprintf(stderr, "%zu pages under writeback, %zu in the swap cache\n", writing, cached);
}

static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
	{ "small", small },
	{ "huge", huge },
	{ "migrating", migrating },
	{ "files", files },
	{ "hugetlb", hugetlb },
	{ "locked", locked },
	{ "absent", absent },
	{ "pinned", pinned },
	{ "shared-by-fork", shared_by_fork },
	{ "merged", merged },
	{ "poisoned", poisoned },
	{ "no-memory", no_memory },
	{ "arguments", arguments },
	{ "capability", capability },
	{ "taken-over", taken_over },
	{ "cpuset", cpuset },
	{ "signals", signals },
	{ "writeback", writeback },
};
#define NR_TESTS (sizeof(tests) / sizeof(*tests))

/* Whether a test was asked for: by its name, or by no name at all. */
static bool is_wanted(const char *name, int argc, char **argv)
{
	int i;

	if (!argc)
		return strcmp(name, "writeback");
	for (i = 0; i < argc; i++)
		if (!strcmp(argv[i], name))
			return true;
	return false;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "keeps-huge", 0, NULL, 'k' },
		{ "swap", 1, NULL, 's' },
		{ NULL, 0, NULL, 0 },
	};
	unsigned int ran = 0;
	size_t test;
	int which;

	while ((which = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (which) {
		case 'k': keeps_huge = 1; break;
		case 's': swap_disk = optarg; break;
		default:
			fputs("usage: kinds [--keeps-huge] [--swap DISK] [TEST]...\n", stderr);
			exit(2);
		}
	}
	device = device_open();
	/* The kernel's balancing would move pages back to who uses them. */
	must_write("/proc/sys/kernel/numa_balancing", "0");
	for (test = 0; test < NR_TESTS; test++) {
		pid_t child;

		if (!is_wanted(tests[test].name, argc - optind, argv + optind))
			continue;
		fprintf(stderr, "%s\n", tests[test].name);
		fflush(stdout);
		/* Each in a process of its own, with a file of its own. */
		child = fork();
		if (!child) {
			device = device_open();
			tests[test].run();
			exit(0);
		}
		must_exit_well(child, tests[test].name);
		ran++;
	}
	if (!ran)
		fail("no test has one of these names");
	printf("{\"tests\":%u}\n", ran);
	return 0;
}
