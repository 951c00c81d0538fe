/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PTDMA migrator: what the C files share
 *
 * C does what only the kernel can do: bind PCI functions, map memory, wait,
 * reset, register.  The Rust library behind include/ptdma_kshim.h decides which
 * engine copies what, and what an engine's answer means.
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
#include <linux/workqueue.h>

#include "compat.h"
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
 * enum ptdma_chan_state - What the engine of a channel may do; see ARCHITECTURE.md.
 * @PTDMA_CHAN_DOWN: The library has no queue, and the engine touches no memory.
 * @PTDMA_CHAN_UP: The library drives the queue.
 * @PTDMA_CHAN_STOPPED: The library has the queue, out of service.  The engine
 *	touches no memory until the channel's work item starts it again.
 * @PTDMA_CHAN_SUSPECT: The library has the queue, out of service.  The engine
 *	may write to the destinations of its descriptors.
 * @PTDMA_CHAN_LEAKED: The library has no queue.  The engine may use the ring, and
 *	write to the destinations of its descriptors.
 *
 * Written with the channel's lock held.
 */
enum ptdma_chan_state {
	PTDMA_CHAN_DOWN,
	PTDMA_CHAN_UP,
	PTDMA_CHAN_STOPPED,
	PTDMA_CHAN_SUSPECT,
	PTDMA_CHAN_LEAKED,
};

/**
 * struct ptdma_ring - Memory of a descriptor ring.
 * @mem: The memory, NULL if there is none.
 * @dma: Where the function sees it.
 * @bytes: Its size, a power of two.
 * @entries: Descriptors that are used of it.
 */
struct ptdma_ring {
	void *mem;
	dma_addr_t dma;
	size_t bytes;
	u32 entries;
};

/**
 * struct ptdma_chan - One PTDMA function, as the kernel sees it.
 * @pdev: The function.
 * @index: Number of the channel, in all of the Rust library's calls.
 * @node: NUMA node, or NUMA_NO_NODE.
 * @port: The same number for all functions that share a port, or -1; see pci.c.
 * @bar: BAR 2.
 * @ring: The ring that the engine knows.
 * @irq: Linux's number of the one interrupt.
 * @irq_on: Whether the handler is installed.
 * @irq_name: What /proc/interrupts calls it.
 * @translated: An IOMMU translates for it, see mapping.c.
 * @bounces: The kernel bounces its mappings, so the CPU copies faster.
 * @lock: Protects writes to @state, @cut and @resetting.
 * @state: What the engine may do.
 * @cut: Only the lack of bus mastering keeps the engine from memory.  The function
 *	must be reset, or its engine seen to stand, before it is a bus master again.
 * @resetting: The work item is resetting the function.
 * @wanted: The function is bound, and its channel should be in service.
 * @suspended: The channel is down for suspend or reset, and comes up afterwards.
 * @tried: The reset that should prove the engine stopped before removal failed.
 * @rescue: Work item: resets the function and returns the channel to service.
 * @rescue_off: Before 6.10: how often @rescue was disabled.  It does nothing until
 *	this is 0.
 * @not_before: Earliest time of the next @rescue, in jiffies.
 * @delay: Back-off before the last @rescue, in jiffies; 0: none yet.
 * @report: Prints the events that were recorded where printing is not allowed.
 * @events: Events to print, a bit for each enum ptdma_event.
 * @codes: Detail of each event, as ptdma_k_report() got it.
 * @event: Value of ptdma_events at the channel's latest interrupt, so that no
 *	interrupt between poll and sleep is missed.
 * @wq: Batches that sleep until the engine interrupts.
 * @recoveries: Returns to service.
 * @sleeps: Times that a batch slept until the engine interrupts.
 * @overdue_waits: Sleeps that ended by their time limit.
 */
struct ptdma_chan {
	struct pci_dev *pdev;
	unsigned int index;
	int node;
	int port;
	void __iomem *bar;
	struct ptdma_ring ring;
	int irq;
	bool irq_on;
	char irq_name[32];
	bool translated;
	bool bounces;
	struct mutex lock; /* state, cut, resetting */
	enum ptdma_chan_state state;
	bool cut;
	bool resetting;
	bool wanted;
	bool suspended;
	bool tried;
	struct delayed_work rescue;
	atomic_t rescue_off;
	unsigned long not_before;
	unsigned long delay;
	struct work_struct report;
	unsigned long events;
	u64 codes[PTDMA_EVENTS];
	u64 event;
	wait_queue_head_t wq;
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
 * @top: Largest end offset among this part and its successors in the list.  A
 *	part that starts at or after it overlaps none of them, so the list need
 *	not be searched.
 * @next: Index of the folio's next part, PTDMA_NO_PART at the end.
 * @chan: Channel it is mapped for.
 * @windowed: The part lies in a window, and is unmapped with the window.
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
/* In place of a channel: the part is not mapped any more. */
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
 * @list: Entry of the pool of free batches, or of the list of doubtful ones.
 * @scratch: The Rust library's working memory for this batch.
 * @folios: The round, for the Rust library.
 * @outcomes: An enum ptdma_outcome for each folio.
 * @first_part: Index of the first mapped part of each folio.
 * @parts: Mapped parts.
 * @nr_parts: How many.
 * @windows: Windows.
 * @nr_windows: How many.
 * @must_unmap: Parts that lie in no window need to be unmapped.
 * @seen: Value of ptdma_events when the batch last looked.
 * @may_sleep: The caller of the migration may sleep.
 * @repair: The CPU copies the parts that engines fail to copy.
 * @proof_end: Deadline for the stop proofs of this batch; 0: no proof requested.
 * @doubted: A proof failed: the batch is on the list of doubtful batches, and must
 *	go into quarantine.
 * @quarantined: The batch is in quarantine, no longer in flight.
 * @unproven: Channels that may still write to the batch's folios.
 * @orphan: A channel in @unproven was removed: the folios stay in quarantine for
 *	good.
 * @held: References to folios in quarantine.
 * @nr_held: How many.
 * @sleeps: Times that the batch slept.
 * @sleeper: The batch's task, while it sleeps.
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
	bool may_sleep;
	bool repair;
	u64 proof_end;
	bool doubted;
	bool quarantined;
	u64 unproven;
	bool orphan;
	struct folio **held;
	unsigned int nr_held;
	unsigned int sleeps;
	struct rcuwait sleeper;
	struct timer_list alarm;
};

/**
 * struct ptdma_copied - What a batch has copied, every byte.
 * @folios: Folios.
 * @bytes: Their bytes.
 * @sleeps: Copy of the batch's @sleeps: a batch in quarantine may be freed any time.
 * @start: When it began, in nanoseconds; 0 if nobody traces.
 */
struct ptdma_copied {
	unsigned int folios;
	u64 bytes;
	unsigned int sleeps;
	u64 start;
};

/**
 * struct ptdma_totals - Counts since load.
 * @folios_migrated: Folios copied and marked.
 * @folios_failures: Folios of accepted batches left to the CPU.
 * @batches: Batches accepted.
 * @declined: Batches left to the CPU at once because they are small, or no
 *	channel is in service.
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
 * change.  Migration only tries to take it: the writer may allocate memory, and
 * migrate in reclaim.
 */
extern struct rw_semaphore ptdma_topology;
extern struct ptdma_chan *ptdma_chans[PTDMA_MAX_CHANNELS];
/* One past the highest number that a channel ever had. */
extern unsigned int ptdma_chans_end;
extern struct ptdma_system *ptdma_system;
extern struct ptdma_totals ptdma_totals;
/* Bytes of all batches, including those in quarantine. */
extern atomic_long_t ptdma_pool_memory;

/* channel.c */
int ptdma_chan_up(struct ptdma_chan *chan);
void ptdma_chan_down(struct ptdma_chan *chan);
void ptdma_chan_proved(struct ptdma_chan *chan);
bool ptdma_chan_was_reset(struct ptdma_chan *chan);
void ptdma_chan_leave(struct ptdma_chan *chan);
void ptdma_nodes_update(void);
int ptdma_near_node(int nid);
int ptdma_chans_reopen(void);
size_t ptdma_chans_bytes(void);

/* recovery.c */
int ptdma_recovery_init(void);
void ptdma_recovery_exit(void);
void ptdma_chan_init_recovery(struct ptdma_chan *chan);
bool ptdma_chan_cut_off(struct ptdma_chan *chan, u64 until, bool may_sleep);
u64 ptdma_proof_end(void);
int ptdma_chan_reset(struct ptdma_chan *chan);
void ptdma_chan_rescue(struct ptdma_chan *chan);
void ptdma_chans_rescue(u64 chans);
void ptdma_chan_part(struct ptdma_chan *chan);
void ptdma_chans_part(void);
void ptdma_report_queue(struct ptdma_chan *chan);

/* services.c */
void ptdma_report_work(struct work_struct *work);
extern atomic64_t ptdma_events;
void ptdma_alarm(struct timer_list *timer);

/* batch.c */
int ptdma_pool_init(void);
void ptdma_pool_exit(void);
void ptdma_pool_join(struct ptdma_batch *batch);
void ptdma_pool_leave(gfp_t gfp);
gfp_t ptdma_batch_gfp(const struct ptdma_batch *batch);
struct ptdma_batch *ptdma_batch_get(bool may_sleep);
void ptdma_batch_put(struct ptdma_batch *batch);
void ptdma_batch_free(struct ptdma_batch *batch);
int ptdma_batch_round(struct ptdma_batch *batch, unsigned int nr, int only,
		      struct ptdma_result *result);

/* front.c */
struct ptdma_batch *ptdma_front_begin(unsigned int nr, bool may_sleep,
				      struct ptdma_copied *copied);
void ptdma_front_end(struct ptdma_batch *batch, unsigned int nr,
		     const struct ptdma_copied *copied, int rc);

/* quarantine.c */
bool ptdma_quarantine_doubt(struct ptdma_batch *batch, unsigned int chan);
void ptdma_quarantine_hold(struct ptdma_batch *batch, unsigned int nr);
void ptdma_quarantine_add(struct ptdma_batch *batch, struct folio *folio);
void ptdma_quarantine(struct ptdma_batch *batch,
		      const struct ptdma_result *result);
void ptdma_quarantine_release(unsigned int chan);
void ptdma_quarantine_remove(struct ptdma_chan *chan);
void ptdma_quarantine_abandon(void);

/* mapping.c */
bool ptdma_is_translated(struct device *dev);
bool ptdma_bounces(struct device *dev, bool translated);
bool ptdma_maps_channel(struct ptdma_batch *batch, unsigned int chan);
void ptdma_unmap_channel(struct ptdma_batch *batch, unsigned int chan);
void ptdma_unmap_round(struct ptdma_batch *batch);

/* migrator.c, on kernels with the patches */
#ifdef PTDMA_PATCHED
int ptdma_migrator_start(void);
void ptdma_migrator_stop(void);
bool ptdma_migrator_active(void);
unsigned long ptdma_migrator_reasons(void);
int ptdma_migrator_set_reasons(unsigned long mask);
#else
static inline int ptdma_migrator_start(void)
{
	return 0;
}

static inline void ptdma_migrator_stop(void)
{
}
#endif

/* params.c */
int ptdma_params_init(struct ptdma_system *system);
int ptdma_params_start(void);
void ptdma_params_exit(void);

/* selftest.c */
int ptdma_selftest(void);
int ptdma_selftest_result(char *buf);

/* sysfs.c */
/* Longest description of an engine, with its NUL. */
#define PTDMA_ENGINE_TEXT	256
const char *ptdma_engine_text(struct ptdma_chan *chan, char *text);
extern const struct attribute_group *ptdma_chan_groups[];

/* pci.c */
extern struct pci_driver ptdma_pci_driver;

#endif /* _PTDMA_MIGRATOR_H */
