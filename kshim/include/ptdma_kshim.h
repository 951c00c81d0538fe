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
/* Kinds of events, see enum ptdma_event. */
#define PTDMA_EVENTS		9

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
 * @out_of_service: Channels, a bit each, that are up but not in service.
 */
struct ptdma_result {
	u32 by_dma;
	u32 by_cpu;
	u32 failed;
	u32 not_attempted;
	u32 channels;
	u32 descriptors;
	u64 unproven;
	u64 out_of_service;
};

/**
 * struct ptdma_round - A round to run.
 * @folios: The folios.
 * @outcomes: An enum ptdma_outcome for each folio; written.
 * @nr: How many.
 * @only: The one channel to use; negative: as many as are worth it.
 * @src_node: NUMA node of the sources, or NUMA_NO_NODE.
 * @dst_node: NUMA node of the destinations, or NUMA_NO_NODE.
 * @may_sleep: Not 0: whoever migrates may sleep.
 * @repair: Not 0: the CPU copies the parts that engines fail to copy.  Otherwise
 *	the whole folio is left.
 */
struct ptdma_round {
	const struct ptdma_folio *folios;
	u8 *outcomes;
	u32 nr;
	s32 only;
	s32 src_node;
	s32 dst_node;
	u32 may_sleep;
	u32 repair;
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
 * @port: The same number for all functions that share a port; negative: not known.
 * @fresh: Not 0: the function was bound just now, and its counts begin at 0.
 */
struct ptdma_channel_setup {
	u8 *bar;
	u8 *ring;
	u64 ring_dma;
	u64 ring_bytes;
	u32 ring_entries;
	s32 node;
	s32 port;
	u32 fresh;
};

/**
 * enum ptdma_service - Whether batches use a channel; an u32.
 * @PTDMA_SERVICE_ABSENT: It is not up.
 * @PTDMA_SERVICE_ACTIVE: They do.
 * @PTDMA_SERVICE_STOPPED: They do not; its engine is proved stopped.
 * @PTDMA_SERVICE_UNPROVEN: They do not; its engine may still write.
 */
enum ptdma_service {
	PTDMA_SERVICE_ABSENT = 0,
	PTDMA_SERVICE_ACTIVE = 1,
	PTDMA_SERVICE_STOPPED = 2,
	PTDMA_SERVICE_UNPROVEN = 3,
};

/**
 * struct ptdma_channel_stats - Counts since the function was bound.
 * @head_stays: 1 if the head is known to stay at a descriptor that failed.
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
 * @replays: Errors that did not say which descriptor had failed.
 * @restarts: Times that a halted engine was started again.
 * @stops: Times that the engine was stopped by force.
 * @hangs: Times that it stood still for too long.
 */
struct ptdma_channel_stats {
	u64 head_stays;
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
	u64 replays;
	u64 restarts;
	u64 stops;
	u64 hangs;
};

/**
 * enum ptdma_restart - What sets a drained queue going again; an u8.
 * @PTDMA_RESTART_UNKNOWN: Not known: the driver does what is right for both others.
 * @PTDMA_RESTART_BY_TAIL: The tail alone.
 * @PTDMA_RESTART_BY_RUN: RUN, written behind the tail.
 */
enum ptdma_restart {
	PTDMA_RESTART_UNKNOWN = 0,
	PTDMA_RESTART_BY_TAIL = 1,
	PTDMA_RESTART_BY_RUN = 2,
};

/**
 * enum ptdma_error_head - Where the head stays on an error; an u8.
 * @PTDMA_ERROR_HEAD_UNKNOWN: Not known: failures are found by doing copies again,
 *	one by one.
 * @PTDMA_ERROR_HEAD_AT_FAILING: At the descriptor that failed.
 * @PTDMA_ERROR_HEAD_PAST_FAILING: Behind it.
 */
enum ptdma_error_head {
	PTDMA_ERROR_HEAD_UNKNOWN = 0,
	PTDMA_ERROR_HEAD_AT_FAILING = 1,
	PTDMA_ERROR_HEAD_PAST_FAILING = 2,
};

/**
 * struct ptdma_engine - What an engine has shown of itself.
 * @restart: An enum ptdma_restart.
 * @error_head: An enum ptdma_error_head.
 * @ring_entries: Entries of the ring that the engine walks.
 * @memory_entries: Entries of the ring's memory.
 * @halt_at_rest: HALT before RUN was written for the first time, like all bits
 *	here the character 0, 1, or ? for not looked at.
 * @halt_drained: HALT of a drained queue, RUN written.
 * @halt_stopped: HALT of a drained queue, RUN taken away.
 * @halt_cleared_by_write: Whether HALT, at 1, read 0 after control was written.
 * @run_drained: RUN of a drained queue, as it reads back.
 * @job_status: Whether the job field of the status register was ever not zero.
 * @failed_copies: Copies inside the ring that failed meanwhile.
 */
struct ptdma_engine {
	u8 restart;
	u8 error_head;
	u16 ring_entries;
	u16 memory_entries;
	u8 halt_at_rest;
	u8 halt_drained;
	u8 halt_stopped;
	u8 halt_cleared_by_write;
	u8 run_drained;
	u8 job_status;
	u8 failed_copies;
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
 * @PTDMA_EVENT_RETIRED: The channel does not come up again; a reset may help.
 * @PTDMA_EVENT_NOTHING_MOVES: At bring-up the engine did not start; its head
 *	register in the upper half, its tail register in the lower one.
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
	PTDMA_EVENT_NOTHING_MOVES = 8,
};

/**
 * enum ptdma_lock_kind - What a lock is for; an u32.
 * @PTDMA_LOCK_SETTINGS: The settings.
 * @PTDMA_LOCK_SEAT: What is known of a channel number.
 * @PTDMA_LOCK_PORT: A channel.
 */
enum ptdma_lock_kind {
	PTDMA_LOCK_SETTINGS = 0,
	PTDMA_LOCK_SEAT = 1,
	PTDMA_LOCK_PORT = 2,
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
s32 ptdma_rs_channel_revive(const struct ptdma_system *system, u32 chan);
u32 ptdma_rs_channel_service(const struct ptdma_system *system, u32 chan);
bool ptdma_rs_channel_engine(const struct ptdma_system *system, u32 chan,
			     struct ptdma_engine *engine);
bool ptdma_rs_was_reset(u8 *bar);
void ptdma_rs_channel_stats(const struct ptdma_system *system, u32 chan,
			    struct ptdma_channel_stats *stats);
bool ptdma_rs_interrupt(const struct ptdma_system *system, u32 chan);

u64 ptdma_rs_min_bytes(const struct ptdma_system *system);
s32 ptdma_rs_batch_run(const struct ptdma_system *system,
		       struct ptdma_batch *batch,
		       struct ptdma_scratch *scratch,
		       const struct ptdma_round *round,
		       struct ptdma_result *result);

/* What the library has the kernel do: services.c, mapping.c. */
void ptdma_k_lock_init(struct ptdma_lock *lock, u32 kind);
u64 ptdma_k_lock(struct ptdma_lock *lock);
void ptdma_k_unlock(struct ptdma_lock *lock, u64 flags);
u64 ptdma_k_now_ns(void);
bool ptdma_k_wait(struct ptdma_batch *batch, u32 chan, u64 spin_ns,
		  u64 timeout_ns);
void ptdma_k_nap(u64 ns);
void ptdma_k_yield(void);
void ptdma_k_master_on(u32 chan);
bool ptdma_k_prove_stopped(struct ptdma_batch *batch, u32 chan);
u32 ptdma_k_map(struct ptdma_batch *batch, u32 chan,
		const struct ptdma_piece *pieces,
		struct ptdma_segment *segments, u32 nr);
s32 ptdma_k_cpu_copy(u64 dst, u64 src, u64 len);
void ptdma_k_report(u32 chan, u32 event, u64 code);

#endif /* _PTDMA_KSHIM_H */
