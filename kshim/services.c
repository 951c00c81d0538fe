// SPDX-License-Identifier: GPL-2.0-only
/*
 * Services of the kernel for the Rust library: locks, time, sleep, the CPU's copy
 *
 * Mapping is in mapping.c.
 */
#include <linux/delay.h>
#include <linux/highmem.h>
#include <linux/jiffies.h>
#include <linux/pci.h>
#include <linux/rcuwait.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/timekeeping.h>
#include <linux/timer.h>
#include <linux/uaccess.h>

#include "ptdma_migrator.h"
#include "trace.h"

/*
 * A channel's lock, in memory of the library beside the data that it protects.  The
 * lock is the kernel's, so that lockdep sees it and interrupts stay off.
 */
static spinlock_t *ptdma_spinlock(struct ptdma_lock *lock)
{
	BUILD_BUG_ON(sizeof(spinlock_t) > sizeof(struct ptdma_lock));
	BUILD_BUG_ON(__alignof__(spinlock_t) > __alignof__(struct ptdma_lock));
	return (spinlock_t *)lock;
}

/**
 * ptdma_k_lock_init - Make a lock.
 * @lock: Memory for it.
 * @kind: An enum ptdma_lock_kind.
 */
void ptdma_k_lock_init(struct ptdma_lock *lock, u32 kind)
{
	/* One place of initialisation is one class of locks, for lockdep. */
	switch (kind) {
	case PTDMA_LOCK_SETTINGS:
		spin_lock_init(ptdma_spinlock(lock));
		break;
	case PTDMA_LOCK_SEAT:
		spin_lock_init(ptdma_spinlock(lock));
		break;
	default:
		spin_lock_init(ptdma_spinlock(lock));
		break;
	}
}

/**
 * ptdma_k_lock - Take a lock, and keep interrupts off this CPU.
 * @lock: The lock.
 *
 * Return: Flags for ptdma_k_unlock().
 */
u64 ptdma_k_lock(struct ptdma_lock *lock)
	__acquires(lock)
{
	unsigned long flags;

	spin_lock_irqsave(ptdma_spinlock(lock), flags);
	__acquire(lock);
	return flags;
}

/**
 * ptdma_k_unlock - Release a lock.
 * @lock: The lock.
 * @flags: What ptdma_k_lock() returned.
 */
void ptdma_k_unlock(struct ptdma_lock *lock, u64 flags)
	__releases(lock)
{
	__release(lock);
	spin_unlock_irqrestore(ptdma_spinlock(lock), flags);
}

/**
 * ptdma_k_now_ns - The clock of batches.
 *
 * Return: Nanoseconds since boot, monotonic.
 */
u64 ptdma_k_now_ns(void)
{
	return ktime_get_mono_fast_ns();
}

/* Interrupts of all channels so far. */
atomic64_t ptdma_events;

static bool ptdma_has_event(struct ptdma_batch *batch,
			    struct ptdma_chan *chan)
{
	return READ_ONCE(chan->event) > batch->seen;
}

/**
 * ptdma_alarm - Wake the batch that sleeps.
 * @timer: The batch's alarm.
 */
void ptdma_alarm(struct timer_list *timer)
{
	struct ptdma_batch *batch = container_of(timer, struct ptdma_batch,
						 alarm);

	rcuwait_wake_up(&batch->sleeper);
}

/*
 * Sleeps until the channel interrupts or the time limit, in jiffies, is over.
 * Returns whether the limit is over, even if the channel has interrupted as well.
 *
 * Almost every sleep ends with an interrupt.  So the alarm keeps running afterwards
 * and is not set and stopped each time.  An alarm that rings early costs a read of
 * the clock now and then.
 */
static bool ptdma_sleep(struct ptdma_batch *batch, struct ptdma_chan *chan,
			unsigned long timeout)
{
	unsigned long deadline = jiffies + timeout;
	DEFINE_WAIT(wait);

	prepare_to_rcuwait(&batch->sleeper);
	for (;;) {
		unsigned long expires = READ_ONCE(batch->alarm.expires);

		/* Pairs with wq_has_sleeper() in the interrupt handler. */
		prepare_to_wait(&chan->wq, &wait, TASK_UNINTERRUPTIBLE);
		if (ptdma_has_event(batch, chan) ||
		    time_after_eq(jiffies, deadline))
			break;
		/* An alarm that has expired by now rings, and ends this turn. */
		if (!timer_pending(&batch->alarm) ||
		    time_after(expires, deadline))
			mod_timer(&batch->alarm, deadline);
		schedule();
	}
	finish_wait(&chan->wq, &wait);
	finish_rcuwait(&batch->sleeper);
	return time_after_eq(jiffies, deadline);
}

/**
 * ptdma_k_wait - Wait until a channel has interrupted.
 * @batch: The batch that waits.
 * @index: The channel.
 * @spin_ns: How long to spin first, in nanoseconds.
 * @timeout_ns: Wait no longer than this, in nanoseconds.
 *
 * Returns at once if the channel has interrupted since the batch's last wait: an
 * interrupt between the library's poll and this call must not be slept through.
 *
 * Context: Process context, no locks but ptdma_topology.
 * Return: true if the channel has interrupted.
 */
bool ptdma_k_wait(struct ptdma_batch *batch, u32 index, u64 spin_ns,
		  u64 timeout_ns)
{
	struct ptdma_chan *chan = ptdma_chans[index];
	bool interrupted;

	if (!chan)
		return false;

	if (spin_ns) {
		u64 start = ptdma_k_now_ns();

		while (!ptdma_has_event(batch, chan) && !need_resched() &&
		       ptdma_k_now_ns() - start < spin_ns)
			cpu_relax();
	}

	if (!ptdma_has_event(batch, chan) && spin_ns < timeout_ns) {
		batch->sleeps++;
		atomic_long_inc(&chan->sleeps);
		/* The tick that is running counts as a whole one. */
		if (ptdma_sleep(batch, chan, nsecs_to_jiffies(timeout_ns) + 1))
			atomic_long_inc(&chan->overdue_waits);
	}

	interrupted = ptdma_has_event(batch, chan);
	batch->seen = atomic64_read(&ptdma_events);
	/*
	 * The library polls the channels after this, and so sees every event up to
	 * here.  Later events end the next wait.
	 */
	smp_mb();
	return interrupted;
}

/**
 * ptdma_k_nap - Sleep for a moment, where no interrupt will come.
 * @ns: Nanoseconds, at least.
 *
 * Context: Process context, no locks but ptdma_topology.
 */
void ptdma_k_nap(u64 ns)
{
	unsigned long us = div_u64(ns, NSEC_PER_USEC) + 1;

	/* A quarter more, so that the timers of several batches can meet. */
	usleep_range(us, us + us / 4);
}

/**
 * ptdma_k_yield - Let other tasks run that need this CPU.
 *
 * Context: Process context, no locks but ptdma_topology and chan->lock.
 */
void ptdma_k_yield(void)
{
	cpu_relax();
	cond_resched();
}

/**
 * ptdma_k_master_on - Make a function a bus master.
 * @index: Its channel, whose engine stands.
 *
 * Context: Process context.
 */
void ptdma_k_master_on(u32 index)
{
	struct ptdma_chan *chan = ptdma_chans[index];

	if (chan)
		pci_set_master(chan->pdev);
}

/**
 * ptdma_k_cpu_copy - Copy a part of a folio with the CPU.
 * @dst: Physical address of the destination.
 * @src: Physical address of the source.
 * @len: Bytes.
 *
 * Machine-check safe, like folio_mc_copy().
 *
 * Context: Process context.
 * Return: 0, or -EHWPOISON if the source cannot be read.
 */
int ptdma_k_cpu_copy(u64 dst, u64 src, u64 len)
{
	while (len) {
		u64 run = min3(len, PAGE_SIZE - offset_in_page(src),
			       PAGE_SIZE - offset_in_page(dst));
		char *to = kmap_local_pfn(PHYS_PFN(dst));
		char *from = kmap_local_pfn(PHYS_PFN(src));
		unsigned long left;

		left = copy_mc_to_kernel(to + offset_in_page(dst),
					 from + offset_in_page(src), run);
		kunmap_local(from);
		kunmap_local(to);
		if (left)
			return -EHWPOISON;
		dst += run;
		src += run;
		len -= run;
		cond_resched();
	}
	return 0;
}

static void ptdma_print(struct ptdma_chan *chan, u32 event, u64 code)
{
	struct device *dev = &chan->pdev->dev;

	switch (event) {
	case PTDMA_EVENT_ERROR:
		dev_warn_ratelimited(dev,
				     "channel %u: a descriptor failed with error %llu\n",
				     chan->index, code);
		break;
	case PTDMA_EVENT_FAULT:
		dev_err_ratelimited(dev, "channel %u has a fault (%#llx)\n",
				    chan->index, code);
		break;
	case PTDMA_EVENT_NOT_STOPPED:
		dev_err_ratelimited(dev,
				    "channel %u does not stop (control %#llx)\n",
				    chan->index, code);
		break;
	case PTDMA_EVENT_REVIVED:
		dev_notice_ratelimited(dev, "channel %u is back in service\n",
				       chan->index);
		break;
	case PTDMA_EVENT_RETIRED:
		dev_err_ratelimited(dev,
				    "channel %u does not restart, its function will be reset\n",
				    chan->index);
		break;
	case PTDMA_EVENT_NOTHING_MOVES:
		dev_err(dev,
			"channel %u: the engine does not copy 32 bytes (head %#x, tail %#x)\n",
			chan->index, upper_32_bits(code), lower_32_bits(code));
		break;
	}
}

/**
 * ptdma_report_work - Print the events that ptdma_k_report() has recorded.
 * @work: The channel's work item for reports.
 */
void ptdma_report_work(struct work_struct *work)
{
	struct ptdma_chan *chan = container_of(work, struct ptdma_chan, report);
	u32 event;

	for (event = 0; event < PTDMA_EVENTS; event++)
		if (test_and_clear_bit(event, &chan->events))
			ptdma_print(chan, event, READ_ONCE(chan->codes[event]));
}

/**
 * ptdma_k_report - Record an event of a channel for the log.
 * @index: The channel.
 * @event: What happened, an enum ptdma_event.
 * @code: The engine's error code, or another detail of @event.
 *
 * Printing is left to a work item: a serial console takes milliseconds, too long
 * under the library's lock of the channel and in hard interrupts.
 *
 * Context: Any.
 */
void ptdma_k_report(u32 index, u32 event, u64 code)
{
	struct ptdma_chan *chan = ptdma_chans[index];

	trace_ptdma_channel_event(index, event, code);
	if (!chan || event >= PTDMA_EVENTS)
		return;
	if (event == PTDMA_EVENT_REVIVED)
		atomic_long_inc(&chan->recoveries);
	WRITE_ONCE(chan->codes[event], code);
	set_bit(event, &chan->events);
	ptdma_report_queue(chan);
}
