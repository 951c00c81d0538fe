/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PTDMA migrator: what the C files share
 *
 * C does what only the kernel can do: bind PCI functions, map memory, wait,
 * reset, register.  What to copy with which engine, and what an engine's answer
 * means, is decided by the Rust library behind include/ptdma_kshim.h.
 */
#ifndef _PTDMA_MIGRATOR_H
#define _PTDMA_MIGRATOR_H

#include <linux/atomic.h>
#include <linux/dma-mapping.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/rcuwait.h>
#include <linux/rwsem.h>
#include <linux/timer.h>
#include <linux/types.h>
#include <linux/wait.h>

#include "include/ptdma_kshim.h"

#define PTDMA_DRIVER_NAME	"ptdma_migrator"

/* Folios that are copied in one round; a longer batch takes several. */
#define PTDMA_ROUND_FOLIOS	PTDMA_MAX_ROUND_FOLIOS
/*
 * Mapped parts of a round.  A folio that is striped over all channels takes one
 * for each; a round that needs more has the rest copied by the CPU.
 */
#define PTDMA_ROUND_PARTS	1024
/*
 * Windows of contiguous IOVA of a round, see mapping.c: two for each of 16
 * channels.
 */
#define PTDMA_ROUND_WINDOWS	32
/* Batches in flight at once.  The next one is left to the CPU at once. */
#define PTDMA_MAX_BATCHES	8

struct folio;

/**
 * struct ptdma_chan - One PTDMA function, as the kernel sees it.
 * @pdev: The function.
 * @index: Number of the channel, in all of the Rust library's calls.
 * @node: NUMA node, or NUMA_NO_NODE.
 * @bar: BAR 2.
 * @ring: Memory of the descriptor ring.
 * @ring_dma: Where the function sees it.
 * @ring_bytes: Its size, a power of two.
 * @irq: Linux's number of the one interrupt.
 * @irq_on: Whether the handler is installed.
 * @translated: An IOMMU translates for it, see mapping.c.
 * @up: The Rust library drives the function's queue.
 * @suspended: Down for suspend or reset, comes up again.
 * @leaked: Down, and its engine not proved stopped: its ring stays where it is.
 * @event: Number of its latest interrupt among those of all channels, so that none
 *	is missed between look and sleep.
 * @wq: Batches that sleep until the engine interrupts.
 * @reset_lock: Serialises recovery of this function.
 * @proofs: Number of the last proof that the function has stopped, of all proofs
 *	of all channels; written under @reset_lock.
 * @recoveries: Successful recoveries.
 * @sleeps: Times that a batch slept until the engine interrupts.
 * @overdue_waits: Those of them that ended because their time was over.
 */
struct ptdma_chan {
	struct pci_dev *pdev;
	unsigned int index;
	int node;
	void __iomem *bar;
	void *ring;
	dma_addr_t ring_dma;
	size_t ring_bytes;
	int irq;
	bool irq_on;
	bool translated;
	bool up;
	bool suspended;
	bool leaked;
	u64 event;
	wait_queue_head_t wq;
	struct mutex reset_lock; /* resetting the function */
	unsigned long proofs;
	atomic_long_t recoveries;
	atomic_long_t sleeps;
	atomic_long_t overdue_waits;
};

/**
 * struct ptdma_part - A mapped part of a folio.
 * @src: Bus address to read from.
 * @dst: Bus address to write to.
 * @offset: Where in the folio the part begins, in bytes.
 * @len: Bytes.
 * @top: End of the furthest of this part and those behind it in the list, so that
 *	a part behind all of them, as most are, is known for a new one at once.
 * @next: Index of the folio's next part, PTDMA_NO_PART at the end.
 * @chan: Channel it is mapped for.
 * @windowed: It lies in a window, and is unmapped with that.
 */
struct ptdma_part {
	dma_addr_t src;
	dma_addr_t dst;
	u32 offset;
	u32 len;
	u32 top;
	u16 next;
	u8 chan;
	bool windowed;
};

#define PTDMA_NO_PART	U16_MAX
/* Instead of a channel: is not mapped any more. */
#define PTDMA_NO_CHANNEL	U8_MAX

/**
 * struct ptdma_window - Scattered parts at contiguous bus addresses.
 * @src: IOVA of the sources.
 * @dst: IOVA of the destinations.
 * @used: Bytes linked on both sides.
 * @src_linked: Bytes linked on the source side, for undoing a half failure.
 * @chan: Channel it is mapped for.
 */
struct ptdma_window {
	struct dma_iova_state src;
	struct dma_iova_state dst;
	u32 used;
	u32 src_linked;
	u8 chan;
};

/**
 * struct ptdma_batch - Everything that a batch in flight needs, from a pool.
 * @list: In the pool of free ones, or among those in quarantine.
 * @scratch: The Rust library's working memory for this batch.
 * @folios: The round, for the Rust library.
 * @outcomes: An enum ptdma_outcome for each folio.
 * @first_part: Index of the first mapped part of each folio.
 * @parts: Mapped parts.
 * @nr_parts: How many.
 * @windows: Windows.
 * @nr_windows: How many.
 * @must_unmap: There is something to undo for parts that lie in no window.
 * @seen: Number of the latest interrupt that the batch knows of.
 * @held: References to folios in quarantine.
 * @nr_held: How many.
 * @unproven: Channels that may still write to them.
 * @doubted: Channels of which it was asked in vain whether they have stopped.
 * @doubted_at: Number of the last proof when that was asked last.
 * @orphan: One of these was removed: they stay in quarantine for good.
 * @sleeps: Times that the batch slept.
 * @sleeper: Its task, while that sleeps.
 * @alarm: Ends a sleep that no interrupt ends.
 */
struct ptdma_batch {
	struct list_head list;
	void *scratch;
	struct ptdma_folio folios[PTDMA_ROUND_FOLIOS];
	u8 outcomes[PTDMA_ROUND_FOLIOS];
	u16 first_part[PTDMA_ROUND_FOLIOS];
	struct ptdma_part parts[PTDMA_ROUND_PARTS];
	unsigned int nr_parts;
	struct ptdma_window windows[PTDMA_ROUND_WINDOWS];
	unsigned int nr_windows;
	bool must_unmap;
	u64 seen;
	struct folio **held;
	unsigned int nr_held;
	u64 unproven;
	u64 doubted;
	unsigned long doubted_at;
	bool orphan;
	unsigned int sleeps;
	struct rcuwait sleeper;
	struct timer_list alarm;
};

/**
 * struct ptdma_totals - Counts since load.
 * @folios_migrated: Folios copied and marked.
 * @folios_failures: Folios of accepted batches left to the CPU.
 * @batches: Batches accepted.
 * @declined: Batches left to the CPU at once because they are small.
 * @busy: Batches left to the CPU because no resources were free.
 * @bytes: Bytes copied and marked.
 * @quarantined: Folios in quarantine now.
 */
struct ptdma_totals {
	atomic64_t folios_migrated;
	atomic64_t folios_failures;
	atomic64_t batches;
	atomic64_t declined;
	atomic64_t busy;
	atomic64_t bytes;
	atomic64_t quarantined;
};

/*
 * Held for reading while engines copy, for writing while channels come, go, or
 * change.  Migration only tries to get it: it may run below the writer, in
 * reclaim.
 */
extern struct rw_semaphore ptdma_topology;
extern struct ptdma_chan *ptdma_chans[PTDMA_MAX_CHANNELS];
/* One past the highest number that a channel ever had. */
extern unsigned int ptdma_chans_end;
extern struct ptdma_system *ptdma_system;
extern struct ptdma_totals ptdma_totals;

/* channel.c */
int ptdma_chan_up(struct ptdma_chan *chan);
void ptdma_chan_down(struct ptdma_chan *chan);
bool ptdma_chan_settle(struct ptdma_chan *chan);
int ptdma_chans_reopen(void);
size_t ptdma_chans_bytes(void);

/* recovery.c */
bool ptdma_chan_prove_stopped(struct ptdma_chan *chan);

/* services.c */
extern atomic64_t ptdma_events;
void ptdma_alarm(struct timer_list *timer);

/* batch.c */
int ptdma_pool_init(void);
void ptdma_pool_exit(void);
void ptdma_pool_join(struct ptdma_batch *batch);
void ptdma_pool_leave(void);
size_t ptdma_pool_bytes(void);
struct ptdma_batch *ptdma_batch_get(void);
void ptdma_batch_put(struct ptdma_batch *batch);
void ptdma_batch_free(struct ptdma_batch *batch);
int ptdma_offload_copy(struct list_head *dst, struct list_head *src,
		       unsigned int folio_cnt);
int ptdma_batch_round(struct ptdma_batch *batch, unsigned int nr, int only,
		      struct ptdma_result *result);

/* quarantine.c */
void ptdma_quarantine(struct ptdma_batch *batch, struct list_head *dst,
		      u64 unproven);
void ptdma_quarantine_release(u64 proven);
void ptdma_quarantine_remove(struct ptdma_chan *chan);
void ptdma_quarantine_abandon(void);

/* mapping.c */
bool ptdma_is_translated(struct device *dev);
bool ptdma_maps_channel(struct ptdma_batch *batch, unsigned int chan);
void ptdma_unmap_channel(struct ptdma_batch *batch, unsigned int chan);
void ptdma_lose_channel(struct ptdma_batch *batch, unsigned int chan);
void ptdma_unmap_round(struct ptdma_batch *batch);

/* migrator.c */
int ptdma_migrator_start(void);
void ptdma_migrator_stop(void);
bool ptdma_migrator_active(void);
unsigned long ptdma_migrator_reasons(void);
int ptdma_migrator_set_reasons(unsigned long mask);

/* params.c */
int ptdma_params_init(struct ptdma_system *system);
int ptdma_params_start(void);
void ptdma_params_exit(void);

/* selftest.c */
int ptdma_selftest(void);
int ptdma_selftest_result(char *buf);

/* sysfs.c */
extern const struct attribute_group *ptdma_chan_groups[];

/* pci.c */
extern struct pci_driver ptdma_pci_driver;

#endif /* _PTDMA_MIGRATOR_H */
