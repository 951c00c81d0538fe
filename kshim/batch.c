// SPDX-License-Identifier: GPL-2.0-only
/*
 * The pool of batches, and a round of a batch
 *
 * Everything a batch needs was allocated at load.  A batch that finds no free
 * resources is left to the CPU.
 */
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

#include "ptdma_migrator.h"

static LIST_HEAD(ptdma_pool);
/* Batches in the pool or in flight, without those in quarantine. */
static unsigned int ptdma_pool_batches;
/* Batches in flight. */
static unsigned int ptdma_in_flight;
static DEFINE_SPINLOCK(ptdma_pool_lock);

struct ptdma_totals ptdma_totals;
atomic_long_t ptdma_pool_memory;

/* Counted on in rust/tests/budget.rs. */
static_assert(sizeof(struct ptdma_batch) <= 52 * SZ_1K);

static size_t ptdma_batch_bytes(void)
{
	return sizeof(struct ptdma_batch) + ptdma_rs_scratch_bytes();
}

/**
 * ptdma_batch_free - Free a batch.
 * @batch: The batch, out of the pool.
 */
void ptdma_batch_free(struct ptdma_batch *batch)
{
	timer_shutdown_sync(&batch->alarm);
	kvfree(batch->scratch);
	kvfree(batch);
	atomic_long_sub(ptdma_batch_bytes(), &ptdma_pool_memory);
}

static struct ptdma_batch *ptdma_batch_alloc(gfp_t gfp)
{
	struct ptdma_batch *batch;

	batch = kvzalloc_obj(*batch, gfp);
	if (!batch)
		return NULL;
	batch->scratch = kvzalloc(ptdma_rs_scratch_bytes(), gfp);
	if (!batch->scratch) {
		kvfree(batch);
		return NULL;
	}
	ptdma_rs_scratch_init(batch->scratch);
	rcuwait_init(&batch->sleeper);
	timer_setup(&batch->alarm, ptdma_alarm, 0);
	atomic_long_add(ptdma_batch_bytes(), &ptdma_pool_memory);
	return batch;
}

/**
 * ptdma_pool_join - Put a batch into the pool that is new or leaves quarantine.
 * @batch: The batch, with nothing mapped and nothing held.
 *
 * Frees the batch if another one has taken its place in the pool.
 *
 * Context: Process context.
 */
void ptdma_pool_join(struct ptdma_batch *batch)
{
	bool room;

	spin_lock(&ptdma_pool_lock);
	room = ptdma_pool_batches < PTDMA_MAX_BATCHES;
	if (room) {
		ptdma_pool_batches++;
		list_add(&batch->list, &ptdma_pool);
	}
	spin_unlock(&ptdma_pool_lock);
	if (!room)
		ptdma_batch_free(batch);
}

/**
 * ptdma_batch_gfp - How to allocate while a batch is in flight.
 * @batch: The batch.
 *
 * Reclaim may wait for the batch.  So an allocation here must not wait for I/O, nor
 * use the reserves that reclaim has.  The batch can do without the memory.
 *
 * Return: The flags.
 */
gfp_t ptdma_batch_gfp(const struct ptdma_batch *batch)
{
	return (batch->may_sleep ? GFP_NOIO | __GFP_NORETRY : GFP_NOWAIT) |
	       __GFP_NOMEMALLOC | __GFP_NOWARN;
}

/**
 * ptdma_pool_leave - Replace a batch that goes from flight into quarantine.
 * @gfp: How to allocate the replacement.
 *
 * Without replacements, one engine that cannot be stopped could take all batches
 * that were in flight out of the pool.  Without memory there is no replacement.
 *
 * Context: Process context, may be within reclaim.
 */
void ptdma_pool_leave(gfp_t gfp)
{
	struct ptdma_batch *other = ptdma_batch_alloc(gfp);

	spin_lock(&ptdma_pool_lock);
	ptdma_pool_batches--;
	ptdma_in_flight--;
	spin_unlock(&ptdma_pool_lock);
	if (other)
		ptdma_pool_join(other);
}

/**
 * ptdma_pool_init - Allocate what batches need.
 *
 * Return: 0 or -ENOMEM.
 */
int ptdma_pool_init(void)
{
	unsigned int i;

	ptdma_pool_batches = 0;
	for (i = 0; i < PTDMA_MAX_BATCHES; i++) {
		struct ptdma_batch *batch = ptdma_batch_alloc(GFP_KERNEL);

		if (!batch) {
			ptdma_pool_exit();
			return -ENOMEM;
		}
		ptdma_pool_join(batch);
	}
	return 0;
}

/**
 * ptdma_pool_exit - Free what batches needed.
 */
void ptdma_pool_exit(void)
{
	struct ptdma_batch *batch, *next;

	list_for_each_entry_safe(batch, next, &ptdma_pool, list) {
		list_del(&batch->list);
		ptdma_batch_free(batch);
	}
}

/**
 * ptdma_batch_get - Take a free batch.
 * @may_sleep: The caller of the migration may sleep.
 *
 * A batch that must not sleep would spin behind the work of other batches, and
 * would stop the engines at its deadline.  So it runs only while no other does.
 *
 * Return: The batch, or NULL if all are in use.
 */
struct ptdma_batch *ptdma_batch_get(bool may_sleep)
{
	struct ptdma_batch *batch = NULL;

	spin_lock(&ptdma_pool_lock);
	if (may_sleep || !ptdma_in_flight)
		batch = list_first_entry_or_null(&ptdma_pool,
						 struct ptdma_batch, list);
	if (batch) {
		list_del(&batch->list);
		ptdma_in_flight++;
		batch->may_sleep = may_sleep;
		batch->repair = false;
	}
	spin_unlock(&ptdma_pool_lock);
	return batch;
}

/**
 * ptdma_batch_put - Give a batch back.
 * @batch: The batch, with nothing mapped and nothing held.
 */
void ptdma_batch_put(struct ptdma_batch *batch)
{
	/* The batch that was used last is the one in the cache. */
	spin_lock(&ptdma_pool_lock);
	list_add(&batch->list, &ptdma_pool);
	ptdma_in_flight--;
	spin_unlock(&ptdma_pool_lock);
}

/**
 * ptdma_batch_round - Copy the folios of a round, and undo their mappings.
 * @batch: The batch, with its folios filled in.
 * @nr: How many.
 * @only: The one channel to use, or -1.
 * @result: Filled in.  If its unproven is not zero then nothing was unmapped,
 *	and the channels named there may still write to the destinations.
 *
 * Context: Process context, ptdma_topology held for reading.
 * Return: 0, and batch->outcomes says what became of each folio.
 */
int ptdma_batch_round(struct ptdma_batch *batch, unsigned int nr, int only,
		      struct ptdma_result *result)
{
	const struct ptdma_folio *first = batch->folios;
	struct ptdma_round round;
	int rc;

	lockdep_assert_held(&ptdma_topology);

	memset(batch->first_part, 0xff, nr * sizeof(*batch->first_part));
	memset(batch->outcomes, PTDMA_OUTCOME_NOT_ATTEMPTED, nr);
	batch->seen = atomic64_read(&ptdma_events);
	round = (struct ptdma_round) {
		.folios = batch->folios,
		.outcomes = batch->outcomes,
		.nr = nr,
		.only = only,
		/* Most batches are from one node to another one. */
		.src_node = ptdma_near_node(pfn_to_nid(PHYS_PFN(first->src))),
		.dst_node = ptdma_near_node(pfn_to_nid(PHYS_PFN(first->dst))),
		.may_sleep = batch->may_sleep,
		.repair = batch->repair,
	};

	rc = ptdma_rs_batch_run(ptdma_system, batch, batch->scratch, &round,
				result);
	if (batch->doubted && !result->unproven)
		/* Cannot happen; the quarantine is the safe answer. */
		result->unproven = READ_ONCE(batch->unproven) ?: U64_MAX;
	if (!result->unproven)
		ptdma_unmap_round(batch);
	ptdma_chans_rescue(result->out_of_service);
	return rc;
}
