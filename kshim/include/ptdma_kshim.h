/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The border between C and the Rust library of the PTDMA migrator
 *
 * rust/src/abi.rs and exports.rs say the same in Rust; rust/tests/header.rs fails
 * if they differ.
 */
#ifndef _PTDMA_KSHIM_H
#define _PTDMA_KSHIM_H

#include <linux/types.h>

/* Channels that can be bound at once. */
#define PTDMA_MAX_CHANNELS	64
/* Folios of one round. */
#define PTDMA_MAX_ROUND_FOLIOS	512
/* Bytes of a descriptor. */
#define PTDMA_DESCRIPTOR_BYTES	32
/* Bytes of BAR 2 that hold registers. */
#define PTDMA_BAR_BYTES		0x6008

/* All channels and the settings; the library's own. */
struct ptdma_system;

/* Working memory of the library for a batch in flight. */
struct ptdma_scratch;

/* A batch in flight; the library hands it back to ptdma_k_ functions. */
struct ptdma_batch;

/**
 * struct ptdma_folio - A folio to copy.
 * @src: Physical address of the source.
 * @dst: Physical address of the destination.
 * @len: Length in bytes.
 */
struct ptdma_folio {
	u64 src;
	u64 dst;
	u64 len;
};

/**
 * struct ptdma_piece - A part of a folio that is about to go to a channel.
 * @src: Physical address of the source.
 * @dst: Physical address of the destination.
 * @len: Length in bytes.
 * @offset: Where in the folio the part begins, in bytes.
 * @folio: Index of the folio in its round.
 */
struct ptdma_piece {
	u64 src;
	u64 dst;
	u64 len;
	u64 offset;
	u32 folio;
};

/**
 * struct ptdma_segment - A part of a folio as a channel sees it.
 * @src: Bus address of the source.
 * @dst: Bus address of the destination.
 * @len: Length in bytes.
 */
struct ptdma_segment {
	u64 src;
	u64 dst;
	u64 len;
};

/**
 * enum ptdma_outcome - What became of a folio; an u8.
 * @PTDMA_OUTCOME_NOT_ATTEMPTED: Every byte is left to the caller.
 * @PTDMA_OUTCOME_DMA: Copied by engines, every byte.
 * @PTDMA_OUTCOME_CPU: Copied, every byte, some of them by the CPU.
 * @PTDMA_OUTCOME_FAILED: Tried and failed; nobody writes to it any more.
 * @PTDMA_OUTCOME_QUARANTINED: An engine may still write to it.
 */
enum ptdma_outcome {
	PTDMA_OUTCOME_NOT_ATTEMPTED = 0,
	PTDMA_OUTCOME_DMA = 1,
	PTDMA_OUTCOME_CPU = 2,
	PTDMA_OUTCOME_FAILED = 3,
	PTDMA_OUTCOME_QUARANTINED = 4,
};

/**
 * struct ptdma_result - What became of a round.
 * @by_dma: Folios copied by engines.
 * @by_cpu: Folios copied with the CPU's help.
 * @failed: Folios that failed.
 * @not_attempted: Folios that nobody tried.
 * @channels: Channels that were given work.
 * @descriptors: Descriptors that it took.
 * @unproven: Channels, a bit each, that were not proved stopped and may still
 *	write to the round.
 */
struct ptdma_result {
	u32 by_dma;
	u32 by_cpu;
	u32 failed;
	u32 not_attempted;
	u32 channels;
	u32 descriptors;
	u64 unproven;
};

/**
 * struct ptdma_settings - What can be set; params.c has the ranges.
 * @nr_dma_chan: Channels that one batch uses; 0: the cost model decides.
 * @ring_entries: Descriptors of each ring.
 * @min_batch_kb: Smaller batches are left to the CPU; 0: the cost model decides.
 * @stripe_kb: Shortest part that a folio is cut into, in KiB.
 * @poll_us: How long a batch spins before it sleeps.
 * @timeout_ms: How long a batch may take.
 * @hybrid_percent: Share of a batch that the CPU copies while it would wait.
 */
struct ptdma_settings {
	u32 nr_dma_chan;
	u32 ring_entries;
	u32 min_batch_kb;
	u32 stripe_kb;
	u32 poll_us;
	u32 timeout_ms;
	u32 hybrid_percent;
};

/**
 * struct ptdma_channel_setup - What it takes to bring a channel up.
 * @bar: BAR 2, mapped uncached.
 * @ring: Coherent memory.
 * @ring_dma: Its bus address, aligned to its size.
 * @ring_bytes: Its size.
 * @ring_entries: Descriptors of the ring, which fit into the memory.
 * @node: NUMA node of the function, or NUMA_NO_NODE.
 */
struct ptdma_channel_setup {
	u8 *bar;
	u8 *ring;
	u64 ring_dma;
	u64 ring_bytes;
	u32 ring_entries;
	s32 node;
};

/**
 * enum ptdma_channel_state - What a channel is doing; an u32.
 * @PTDMA_STATE_DOWN: Not brought up.
 * @PTDMA_STATE_RUNNING: In use.
 * @PTDMA_STATE_FAULTED: Out of order, until it is recovered.
 * @PTDMA_STATE_RETIRED: Out of use for good.
 */
enum ptdma_channel_state {
	PTDMA_STATE_DOWN = 0,
	PTDMA_STATE_RUNNING = 1,
	PTDMA_STATE_FAULTED = 2,
	PTDMA_STATE_RETIRED = 3,
};

/**
 * struct ptdma_channel_stats - Counts since the channel was brought up.
 * @state: An enum ptdma_channel_state.
 * @head_stays: 1 if the head stays at a descriptor that failed, as was found out
 *	at bring-up.
 * @submitted: Descriptors put into the ring.
 * @submitted_bytes: Bytes that those were to copy.
 * @completed: Descriptors that the engine completed.
 * @failed: Descriptors that the engine failed.
 * @dropped: Descriptors that were taken back.
 * @coalesced: Folio parts that needed no descriptor of their own.
 * @doorbells: Bursts handed to the engine.
 * @interrupts: Interrupts.
 * @polls: Looks at the engine by waiting batches.
 * @spurious_interrupts: Interrupts without a cause.
 * @lost_interrupts: Completions whose interrupt never came.
 * @restarts: Times that a halted engine was started again.
 * @stops: Times that the engine was stopped by force.
 * @hangs: Times that it stood still for too long.
 */
struct ptdma_channel_stats {
	u32 state;
	u32 head_stays;
	u64 submitted;
	u64 submitted_bytes;
	u64 completed;
	u64 failed;
	u64 dropped;
	u64 coalesced;
	u64 doorbells;
	u64 interrupts;
	u64 polls;
	u64 spurious_interrupts;
	u64 lost_interrupts;
	u64 restarts;
	u64 stops;
	u64 hangs;
};

/**
 * enum ptdma_event - Things that the library reports; an u32.
 * @PTDMA_EVENT_ERROR: A descriptor failed; the engine's error code.
 * @PTDMA_EVENT_FAULT: The channel is out of order.
 * @PTDMA_EVENT_RESTARTED: A halted engine was started again.
 * @PTDMA_EVENT_LOST_INTERRUPT: An interrupt did not come.
 * @PTDMA_EVENT_TERMINATED: The engine was stopped; how many descriptors were
 *	taken back.
 * @PTDMA_EVENT_NOT_STOPPED: The engine could not be proved stopped; its control
 *	register.
 * @PTDMA_EVENT_REVIVED: The channel is in use again.
 * @PTDMA_EVENT_RETIRED: The channel does not come up again, and is out of use.
 * @PTDMA_EVENT_NOT_REFUSED: At bring-up the engine did not refuse what it should:
 *	where its head stays is not known.
 */
enum ptdma_event {
	PTDMA_EVENT_ERROR = 0,
	PTDMA_EVENT_FAULT = 1,
	PTDMA_EVENT_RESTARTED = 2,
	PTDMA_EVENT_LOST_INTERRUPT = 3,
	PTDMA_EVENT_TERMINATED = 4,
	PTDMA_EVENT_NOT_STOPPED = 5,
	PTDMA_EVENT_REVIVED = 6,
	PTDMA_EVENT_RETIRED = 7,
	PTDMA_EVENT_NOT_REFUSED = 8,
};

/**
 * struct ptdma_lock - Room for a spinlock_t with all of its debugging.
 * @words: The kernel's.
 */
struct ptdma_lock {
	u64 words[16];
};

/* The library: documented in rust/src/exports.rs. */
size_t ptdma_rs_system_bytes(void);
void ptdma_rs_system_init(struct ptdma_system *system);
size_t ptdma_rs_scratch_bytes(void);
void ptdma_rs_scratch_init(struct ptdma_scratch *scratch);

void ptdma_rs_settings_default(struct ptdma_settings *settings);
s32 ptdma_rs_settings_check(const struct ptdma_settings *settings);
s32 ptdma_rs_settings_set(const struct ptdma_system *system,
			  const struct ptdma_settings *settings);
void ptdma_rs_settings_get(const struct ptdma_system *system,
			   struct ptdma_settings *settings);

s32 ptdma_rs_channel_up(const struct ptdma_system *system, u32 chan,
			const struct ptdma_channel_setup *setup);
s32 ptdma_rs_channel_down(const struct ptdma_system *system, u32 chan);
void ptdma_rs_channel_forget(const struct ptdma_system *system, u32 chan);
void ptdma_rs_channel_stats(const struct ptdma_system *system, u32 chan,
			    struct ptdma_channel_stats *stats);
void ptdma_rs_interrupt(const struct ptdma_system *system, u32 chan);

u64 ptdma_rs_min_bytes(const struct ptdma_system *system);
s32 ptdma_rs_batch_run(const struct ptdma_system *system,
		       struct ptdma_batch *batch,
		       struct ptdma_scratch *scratch,
		       const struct ptdma_folio *folios, u8 *outcomes, u32 nr,
		       s32 only, struct ptdma_result *result);

/* What the library has the kernel do: services.c, mapping.c. */
void ptdma_k_lock_init(struct ptdma_lock *lock);
u64 ptdma_k_lock(struct ptdma_lock *lock);
void ptdma_k_unlock(struct ptdma_lock *lock, u64 flags);
u64 ptdma_k_now_ns(void);
bool ptdma_k_wait(struct ptdma_batch *batch, u32 chan, u64 spin_ns,
		  u64 timeout_ns);
void ptdma_k_nap(u64 ns);
bool ptdma_k_prove_stopped(struct ptdma_batch *batch, u32 chan);
s32 ptdma_k_map(struct ptdma_batch *batch, u32 chan,
		const struct ptdma_piece *piece, struct ptdma_segment *segment);
s32 ptdma_k_cpu_copy(u64 dst, u64 src, u64 len);
void ptdma_k_report(u32 chan, u32 event, u64 code);

#endif /* _PTDMA_KSHIM_H */
