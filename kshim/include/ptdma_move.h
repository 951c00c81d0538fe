/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * /dev/ptdma_move: the memory of a process, moved to a node in batches
 *
 * Who opens the device gives the file its own memory, and nobody else's.  A file of
 * another process, by pidfd_getfd(2) or a socket, is good for the memory of that
 * process to callers with CAP_SYS_NICE.
 */
#ifndef _UAPI_PTDMA_MOVE_H
#define _UAPI_PTDMA_MOVE_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define PTDMA_MOVE_DEVICE	"/dev/ptdma_move"

/*
 * Before 6.19 the kernel splits a huge page that moves by this device.  Without this
 * flag such a page stays where it is: move_pages(2) moves it whole.  With it the call
 * takes CAP_SYS_NICE there: if such a kernel meets somebody else's lock, it never
 * frees the page again.
 *
 * From 6.19 on huge pages stay whole, and only a range that has part of one needs the
 * flag.  The kernel splits other large folios, also without the flag.
 */
#define PTDMA_MOVE_MAY_SPLIT	0x1

/**
 * enum ptdma_fate - What became of memory of the range.
 * @PTDMA_BY_ENGINES: It is on the node now, and engines copied it.
 * @PTDMA_BY_CPU: It is on the node now, and the CPU copied some of it or all.
 * @PTDMA_THERE: It was on the node before.
 * @PTDMA_ABSENT: Nothing is mapped there, or the page of zeros.
 * @PTDMA_KIND: It stays, because of its kind: of a file, shared memory, hugetlb,
 *	locked by mlock(2), or merged with equal pages by KSM.
 * @PTDMA_HUGE: It stays, because a huge page would be split.
 * @PTDMA_BUSY: It stays, because the kernel does not let go of it: swapped out,
 *	pinned, locked, migrated by somebody else, being written out, or, before
 *	6.19, part of a large folio.  Another try can move it.
 * @PTDMA_POISONED: It stays, because the kernel knows it as bad.
 * @PTDMA_NO_MEMORY: It stays, because the node has no free memory.
 * @PTDMA_UNREADABLE: It stays, because the CPU cannot read it.
 * @PTDMA_HELD: It stays, because an engine may still write to the new place, which
 *	is in quarantine.  Another try can move it.
 * @PTDMA_FATES: How many there are.
 */
enum ptdma_fate {
	PTDMA_BY_ENGINES,
	PTDMA_BY_CPU,
	PTDMA_THERE,
	PTDMA_ABSENT,
	PTDMA_KIND,
	PTDMA_HUGE,
	PTDMA_BUSY,
	PTDMA_POISONED,
	PTDMA_NO_MEMORY,
	PTDMA_UNREADABLE,
	PTDMA_HELD,
	PTDMA_FATES,
};

/* Room for fates to come. */
#define PTDMA_MAX_FATES	16

/**
 * struct ptdma_move - A range to move, and what became of it.
 * @addr: First address, a multiple of the size of a page.
 * @len: Bytes, a multiple of the size of a page.
 * @node: The node to move to.
 * @flags: PTDMA_MOVE_MAY_SPLIT or 0.
 * @next: Filled in: the address up to which the range was treated.
 * @bytes: Filled in: for each enum ptdma_fate, how much of the range had it.  Their
 *	sum equals @next - @addr.
 */
struct ptdma_move {
	__u64 addr;
	__u64 len;
	__u32 node;
	__u32 flags;
	__u64 next;
	__u64 bytes[PTDMA_MAX_FATES];
};

/*
 * Moves a range.  Memory that stays is no error: the fates tell of it.
 *
 * EINTR: a signal came; @next and @bytes are filled in, and @next is where to go on.
 * EINVAL: the range or a flag is wrong.  ENODEV: no such node, or without memory.
 * EACCES: the node is outside of the cpuset. EPERM: somebody else's memory, or
 * the flag before 6.19, takes CAP_SYS_NICE. ESRCH: whose memory it is has
 * exited. ENOMEM: for the call itself.
 */
#define PTDMA_IOC_MOVE	_IOWR(0xd1, 1, struct ptdma_move)

#endif /* _UAPI_PTDMA_MOVE_H */
