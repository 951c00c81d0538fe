// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that an engine may still write to
 *
 * It belongs to nobody until the function is proved stopped, or is gone.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

#include "ptdma_migrator.h"

static LIST_HEAD(ptdma_quarantined);
static DEFINE_SPINLOCK(ptdma_quarantine_lock);

static void ptdma_quarantine_end(struct ptdma_batch *batch)
{
	unsigned int i;

	ptdma_unmap_round(batch);
	for (i = 0; i < batch->nr_held; i++)
		folio_put(batch->held[i]);
	atomic64_sub(batch->nr_held, &ptdma_totals.quarantined);
	pr_notice("%u folios are out of quarantine\n", batch->nr_held);
	kvfree(batch->held);
	batch->held = NULL;
	batch->nr_held = 0;
	ptdma_pool_join(batch);
}

/* Those of the channels that were not proved stopped since the batch asked. */
static u64 ptdma_still_unproven(struct ptdma_batch *batch, u64 unproven)
{
	unsigned int i;

	for (i = 0; i < ptdma_chans_end; i++) {
		struct ptdma_chan *chan = ptdma_chans[i];

		if (chan && batch->doubted & BIT_ULL(i) &&
		    (long)(READ_ONCE(chan->proofs) - batch->doubted_at) > 0)
			unproven &= ~BIT_ULL(i);
	}
	return unproven;
}

/**
 * ptdma_quarantine - Keep the destinations of a batch from everybody.
 * @batch: The batch, which goes into quarantine with its mappings.
 * @dst: All destinations.
 * @unproven: Channels that may still write to them.
 *
 * Context: Process context, ptdma_topology held.
 */
void ptdma_quarantine(struct ptdma_batch *batch, struct list_head *dst,
		      u64 unproven)
{
	unsigned int nr = list_count_nodes(dst);
	struct folio *folio;

	/* If there is no memory to remember them, they are never given back. */
	batch->held = kvmalloc_array(nr, sizeof(*batch->held), GFP_NOIO);
	batch->nr_held = 0;
	list_for_each_entry(folio, dst, lru) {
		folio_get(folio);
		if (batch->held)
			batch->held[batch->nr_held++] = folio;
	}
	atomic64_add(nr, &ptdma_totals.quarantined);
	ptdma_pool_leave();

	/*
	 * Whoever proves it from here on finds the batch in the list; of who has
	 * proved it before, @proofs tells.
	 */
	spin_lock(&ptdma_quarantine_lock);
	unproven = ptdma_still_unproven(batch, unproven);
	batch->unproven = unproven;
	list_add_tail(&batch->list, &ptdma_quarantined);
	spin_unlock(&ptdma_quarantine_lock);

	if (unproven)
		pr_crit("channels %#llx can not be stopped: %u folios that they may write to are in quarantine\n",
			unproven, nr);
	else
		ptdma_quarantine_release(0);
}

/**
 * ptdma_quarantine_release - Give back what only stopped engines wrote to.
 * @proven: Channels that have been proved stopped since.
 *
 * Context: Process context, ptdma_topology held.
 */
void ptdma_quarantine_release(u64 proven)
{
	struct ptdma_batch *batch, *next;
	LIST_HEAD(free);

	spin_lock(&ptdma_quarantine_lock);
	list_for_each_entry_safe(batch, next, &ptdma_quarantined, list) {
		batch->unproven &= ~proven;
		if (!batch->unproven && !batch->orphan)
			list_move(&batch->list, &free);
	}
	spin_unlock(&ptdma_quarantine_lock);

	list_for_each_entry_safe(batch, next, &free, list) {
		list_del(&batch->list);
		ptdma_quarantine_end(batch);
	}
}

/**
 * ptdma_quarantine_remove - A channel goes.
 * @chan: The channel, which is down.
 *
 * If its engine was not proved stopped, what waits for that is never given back:
 * the number of the channel can be somebody else's soon.
 *
 * Context: Process context, ptdma_topology held for writing.
 */
void ptdma_quarantine_remove(struct ptdma_chan *chan)
{
	struct ptdma_batch *batch;

	/* Nobody else changes the list while ptdma_topology is ours. */
	list_for_each_entry(batch, &ptdma_quarantined, list) {
		if (!chan->leaked) {
			ptdma_unmap_channel(batch, chan->index);
			continue;
		}
		if (batch->unproven & BIT_ULL(chan->index) ||
		    ptdma_maps_channel(batch, chan->index))
			batch->orphan = true;
		ptdma_lose_channel(batch, chan->index);
	}
}

/**
 * ptdma_quarantine_abandon - The module goes; what is in quarantine stays there.
 *
 * The references to the folios are never dropped, so nobody gets the memory.
 * The functions are bound to no driver then, and are no bus masters.
 */
void ptdma_quarantine_abandon(void)
{
	struct ptdma_batch *batch, *next;

	list_for_each_entry_safe(batch, next, &ptdma_quarantined, list) {
		pr_crit("%u folios stay in quarantine for good: channels %#llx were never proved stopped\n",
			batch->nr_held, batch->unproven);
		list_del(&batch->list);
		kvfree(batch->held);
		ptdma_batch_free(batch);
	}
}
