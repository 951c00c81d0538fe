/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * /dev/ptdma_move, as programs that use it see it.
 */
#ifndef GUEST_DEVICE_H
#define GUEST_DEVICE_H

#include "memory.h"

#include "../../../kshim/include/ptdma_move.h"

#include <sys/ioctl.h>

static UNUSED const char *const fate_names[PTDMA_FATES] = {
	[PTDMA_BY_ENGINES] = "by_engines", [PTDMA_BY_CPU] = "by_cpu",
	[PTDMA_THERE] = "there",	   [PTDMA_ABSENT] = "absent",
	[PTDMA_KIND] = "kind",		   [PTDMA_HUGE] = "huge",
	[PTDMA_BUSY] = "busy",		   [PTDMA_POISONED] = "poisoned",
	[PTDMA_NO_MEMORY] = "no_memory",   [PTDMA_UNREADABLE] = "unreadable",
	[PTDMA_HELD] = "held",
};

static UNUSED int device_open(void)
{
	int fd = open(PTDMA_MOVE_DEVICE, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		fail_errno(PTDMA_MOVE_DEVICE);
	return fd;
}

/* One call: 0, or the error number. What it says of itself must make sense. */
static UNUSED int device_try(int fd, struct ptdma_move *move)
{
	uint64_t all = 0;
	int error = 0, i;

	if (ioctl(fd, PTDMA_IOC_MOVE, move))
		error = errno;
	if (error && error != EINTR)
		return error;
	for (i = 0; i < PTDMA_MAX_FATES; i++)
		all += move->bytes[i];
	if (move->next < move->addr || move->next > move->addr + move->len ||
	    all != move->next - move->addr ||
	    (!error && move->next != move->addr + move->len))
		fail("the device tells of %llu bytes, and ended at %#llx of %#llx and %#llx",
		     (unsigned long long)all, (unsigned long long)move->next,
		     (unsigned long long)move->addr, (unsigned long long)move->len);
	return error;
}

/* Moves a range, over signals. */
static UNUSED struct ptdma_move device_move(int fd, const void *start, size_t bytes, int node,
					    unsigned int flags)
{
	struct ptdma_move all = { .addr = (uintptr_t)start, .len = bytes, .node = (uint32_t)node,
				  .flags = flags, .next = (uintptr_t)start };

	while (all.next < all.addr + all.len) {
		struct ptdma_move move = all;
		int error, i;

		move.addr = all.next;
		move.len = all.addr + all.len - all.next;
		error = device_try(fd, &move);
		if (error && error != EINTR)
			fail("the device: %s", strerror(error));
		for (i = 0; i < PTDMA_FATES; i++)
			all.bytes[i] += move.bytes[i];
		all.next = move.next;
	}
	return all;
}

#endif
