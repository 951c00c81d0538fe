// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that an engine may still write to
 *
 * Nobody may use such memory until the function is proved stopped, or is gone.
 * batch->unproven alone says which channels may still write to a batch's folios.
 * A failed proof sets the channel's bit, and a proof clears it.  The first failed
 * proof puts the batch on the list here, so that no later proof misses the batch.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

#include "ptdma_migrator.h"

/* Batches with a failed proof: in quarantine, or in flight and bound for it. */
static LIST_HEAD(ptdma_doubtful);
/* Protects the list, and doubted, quarantined and unproven of its batches. */
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
 * ptdma_quarantine_doubt - Record that a channel may still write to a batch.
 * @batch: The batch, in flight; it goes into quarantine when it ends.
 * @chan: The channel.
 *
 * Another task may have proved the channel stopped while this batch tried.  That
 * proof still holds: the channel is not revived before the batch has released its
 * descriptors.  Without this check the bit could be set after the proof had
 * released the quarantine, and nothing would clear it.
 *
 * Context: Process context, ptdma_topology held.
 * Return: true if the channel may still write, false if it was proved stopped.
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
 * Without memory for the references, the folios are never given back.
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
 * ptdma_quarantine_add - Keep a folio while an engine may write to it.
 * @batch: The batch, after ptdma_quarantine_hold().
 * @folio: The folio, with a reference that becomes the batch's.
 */
void ptdma_quarantine_add(struct ptdma_batch *batch, struct folio *folio)
{
	if (batch->held)
		batch->held[batch->nr_held++] = folio;
}

/**
 * ptdma_quarantine - Put a batch into quarantine, with its folios and mappings.
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
		/* Cannot happen: the library requests a proof before it reports. */
		batch->unproven = result->unproven;
		list_add_tail(&batch->list, &ptdma_doubtful);
		batch->doubted = true;
	}
	batch->quarantined = true;
	unproven = batch->unproven;
	spin_unlock(&ptdma_quarantine_lock);

	if (unproven)
		pr_crit("cannot stop channels %#llx: %u folios that they may write to are in quarantine\n",
			unproven, nr);
	/* A proof may have arrived while the batch was in flight. */
	ptdma_quarantine_release(PTDMA_MAX_CHANNELS);
}

/**
 * ptdma_quarantine_release - Give back memory whose engines are all proved stopped.
 * @chan: Channel that was proved stopped and has received no work since;
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
 * ptdma_quarantine_remove - Detach a channel that is removed from all batches.
 * @chan: The channel, which is down or leaked.
 *
 * Unmaps the channel's mappings: another function may soon have the channel's
 * number, in another IOMMU domain.  If the engine was not proved stopped, the
 * folios that it may write to are never given back.
 *
 * Context: Process context, ptdma_topology held for writing.
 */
void ptdma_quarantine_remove(struct ptdma_chan *chan)
{
	struct ptdma_batch *batch;

	/* ptdma_topology, held for writing, keeps the list stable. */
	list_for_each_entry(batch, &ptdma_doubtful, list) {
		if (chan->state == PTDMA_CHAN_LEAKED &&
		    (batch->unproven & BIT_ULL(chan->index) ||
		     ptdma_maps_channel(batch, chan->index)))
			batch->orphan = true;
		ptdma_unmap_channel(batch, chan->index);
	}
}

/**
 * ptdma_quarantine_abandon - Leave folios in quarantine when the module goes.
 *
 * The references to the folios are never dropped, so nobody gets the memory.
 * No driver has the functions then, and no function is a bus master.
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
