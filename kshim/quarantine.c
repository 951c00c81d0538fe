// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that an engine may still write to
 *
 * It belongs to nobody until the function is proved stopped, or is gone.  Which
 * channels may write to a batch's folios is told by batch->unproven alone: a bit
 * is set when a proof was asked for in vain, and cleared by the proof.  From the
 * first doubt on, the batch is in the list here, so that no proof misses it.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

#include "ptdma_migrator.h"

/* Batches that were ever doubted: in quarantine, or in flight and about to be. */
static LIST_HEAD(ptdma_doubtful);
/* Protects the list, and in each of its batches doubted, quarantined, unproven. */
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
	batch->doubted = false;
	batch->quarantined = false;
	ptdma_pool_join(batch);
}

/**
 * ptdma_quarantine_doubt - Note that a channel may still write to a batch's folios.
 * @batch: The batch, in flight; it goes into quarantine when it ends.
 * @chan: The channel.
 *
 * A proof that came while the batch asked for its own is one, too.  Nothing is
 * revived before the batch has let go of its descriptors, so the proof still holds.
 * Without this look the doubt could come behind the release, and would stay.
 *
 * Context: Process context, ptdma_topology held.
 * Return: Whether it is in doubt.
 */
bool ptdma_quarantine_doubt(struct ptdma_batch *batch, unsigned int chan)
{
	guard(spinlock)(&ptdma_quarantine_lock);

	if (READ_ONCE(ptdma_chans[chan]->state) == PTDMA_CHAN_STOPPED)
		return false;
	batch->unproven |= BIT_ULL(chan);
	if (batch->doubted)
		return true;
	batch->doubted = true;
	list_add_tail(&batch->list, &ptdma_doubtful);
	return true;
}

/**
 * ptdma_quarantine_hold - Make room for references to folios.
 * @batch: The batch that goes into quarantine.
 * @nr: How many folios.
 *
 * If there is no memory to remember them, they are never given back.
 *
 * Context: Process context, may be within reclaim.
 */
void ptdma_quarantine_hold(struct ptdma_batch *batch, unsigned int nr)
{
	batch->held = kvmalloc_array(nr, sizeof(*batch->held),
				     ptdma_batch_gfp(batch));
	batch->nr_held = 0;
	atomic64_add(nr, &ptdma_totals.quarantined);
}

/**
 * ptdma_quarantine_add - Keep a folio for as long as an engine may write to it.
 * @batch: The batch, which has room.
 * @folio: The folio, with a reference that becomes the batch's.
 */
void ptdma_quarantine_add(struct ptdma_batch *batch, struct folio *folio)
{
	if (batch->held)
		batch->held[batch->nr_held++] = folio;
}

/**
 * ptdma_quarantine - Keep a batch from everybody, with its folios and mappings.
 * @batch: The batch, with the references to its folios.
 * @result: What the library says of its last round.
 *
 * Context: Process context, ptdma_topology held.
 */
void ptdma_quarantine(struct ptdma_batch *batch,
		      const struct ptdma_result *result)
{
	unsigned int nr = batch->nr_held;
	u64 unproven;

	ptdma_pool_leave(ptdma_batch_gfp(batch));

	spin_lock(&ptdma_quarantine_lock);
	if (!batch->doubted) {
		/* Can not be: the library has not asked whom it doubts. */
		batch->unproven = result->unproven;
		list_add_tail(&batch->list, &ptdma_doubtful);
		batch->doubted = true;
	}
	batch->quarantined = true;
	unproven = batch->unproven;
	spin_unlock(&ptdma_quarantine_lock);

	if (unproven)
		pr_crit("channels %#llx can not be stopped: %u folios that they may write to are in quarantine\n",
			unproven, nr);
	/* A proof may have come while it was in flight. */
	ptdma_quarantine_release(PTDMA_MAX_CHANNELS);
}

/**
 * ptdma_quarantine_release - Give back what only stopped engines wrote to.
 * @chan: Channel that has been proved stopped, and has got no work since;
 *	PTDMA_MAX_CHANNELS: none.
 *
 * Context: Process context, ptdma_topology held.
 */
void ptdma_quarantine_release(unsigned int chan)
{
	u64 proven = chan < PTDMA_MAX_CHANNELS ? BIT_ULL(chan) : 0;
	struct ptdma_batch *batch, *next;
	LIST_HEAD(free);

	spin_lock(&ptdma_quarantine_lock);
	list_for_each_entry_safe(batch, next, &ptdma_doubtful, list) {
		batch->unproven &= ~proven;
		if (batch->quarantined && !batch->unproven && !batch->orphan)
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
 * Its mappings go: the number of the channel, and with it the IOMMU domain in which
 * a batch has mappings, can be another function's soon.  If the engine was not
 * proved stopped, what it may write to is never given back.
 *
 * Context: Process context, ptdma_topology held for writing.
 */
void ptdma_quarantine_remove(struct ptdma_chan *chan)
{
	struct ptdma_batch *batch;

	/* Nobody else changes the list while ptdma_topology is ours. */
	list_for_each_entry(batch, &ptdma_doubtful, list) {
		if (chan->state == PTDMA_CHAN_LEAKED &&
		    (batch->unproven & BIT_ULL(chan->index) ||
		     ptdma_maps_channel(batch, chan->index)))
			batch->orphan = true;
		ptdma_unmap_channel(batch, chan->index);
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

	list_for_each_entry_safe(batch, next, &ptdma_doubtful, list) {
		pr_crit("%u folios stay in quarantine for good: channels %#llx were never proved stopped\n",
			batch->nr_held, batch->unproven);
		list_del(&batch->list);
		kvfree(batch->held);
		ptdma_batch_free(batch);
	}
}
