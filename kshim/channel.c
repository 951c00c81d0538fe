// SPDX-License-Identifier: GPL-2.0-only
/*
 * A channel's ring, and its way up and down
 */
#include <linux/dma-mapping.h>
#include <linux/pci.h>

#include "ptdma_migrator.h"

struct ptdma_chan *ptdma_chans[PTDMA_MAX_CHANNELS];
unsigned int ptdma_chans_end;

static int ptdma_ring_alloc(struct ptdma_chan *chan, u32 entries)
{
	/*
	 * A power of two of pages comes aligned to its own size, which is what
	 * the engine wants of the ring; a ring is never less than a page.
	 */
	chan->ring_bytes = max_t(size_t, PAGE_SIZE,
				 entries * PTDMA_DESCRIPTOR_BYTES);
	chan->ring = dma_alloc_coherent(&chan->pdev->dev, chan->ring_bytes,
					&chan->ring_dma, GFP_KERNEL);
	return chan->ring ? 0 : -ENOMEM;
}

static void ptdma_ring_free(struct ptdma_chan *chan)
{
	if (!chan->ring)
		return;
	if (chan->leaked) {
		pci_crit(chan->pdev,
			 "the engine is not proved stopped: its ring of %zu bytes stays allocated\n",
			 chan->ring_bytes);
		return;
	}
	dma_free_coherent(&chan->pdev->dev, chan->ring_bytes, chan->ring,
			  chan->ring_dma);
	chan->ring = NULL;
}

/**
 * ptdma_chan_up - Allocate a channel's ring and start its queue.
 * @chan: The channel, which is down.
 *
 * An engine that somebody else left running is reset.
 *
 * Context: Process context, ptdma_topology held for writing.
 * Return: 0 or a negative error code, and the channel is down.
 */
int ptdma_chan_up(struct ptdma_chan *chan)
{
	struct ptdma_channel_setup setup;
	struct ptdma_settings settings;
	int rc;

	lockdep_assert_held_write(&ptdma_topology);

	/*
	 * Read once: ring_entries can be set at any time, and memory and engine
	 * must agree on the size.
	 */
	ptdma_rs_settings_get(ptdma_system, &settings);
	rc = ptdma_ring_alloc(chan, settings.ring_entries);
	if (rc)
		return rc;

	chan->translated = ptdma_is_translated(&chan->pdev->dev);
	setup = (struct ptdma_channel_setup) {
		.bar = (void __force *)chan->bar,
		.ring = chan->ring,
		.ring_dma = chan->ring_dma,
		.ring_bytes = chan->ring_bytes,
		.ring_entries = settings.ring_entries,
		.node = chan->node,
	};
	rc = ptdma_rs_channel_up(ptdma_system, chan->index, &setup);
	if (rc == -EBUSY && ptdma_chan_prove_stopped(chan))
		rc = ptdma_rs_channel_up(ptdma_system, chan->index, &setup);
	if (rc) {
		/* It may have seen the ring, and not have stopped. */
		if (rc == -EBUSY && !ptdma_chan_prove_stopped(chan))
			chan->leaked = true;
		ptdma_ring_free(chan);
		return rc;
	}

	chan->up = true;
	return 0;
}

/**
 * ptdma_chan_down - Stop a channel's queue and free its ring.
 * @chan: The channel.
 *
 * If the engine can be stopped in no way, the ring stays allocated.
 *
 * Context: Process context, ptdma_topology held for writing.
 */
void ptdma_chan_down(struct ptdma_chan *chan)
{
	lockdep_assert_held_write(&ptdma_topology);

	if (!chan->up)
		return;

	if (ptdma_rs_channel_down(ptdma_system, chan->index) &&
	    !ptdma_chan_prove_stopped(chan))
		chan->leaked = true;
	/* Proved or not: no register of it is touched from here on. */
	ptdma_rs_channel_forget(ptdma_system, chan->index);
	chan->up = false;
	if (!chan->leaked)
		ptdma_quarantine_release(BIT_ULL(chan->index));
	ptdma_ring_free(chan);
}

/**
 * ptdma_chan_settle - Try once more to prove a leaked channel stopped.
 * @chan: The channel, which is down.
 *
 * For when something has changed: the function answers again, or was reset.
 *
 * Context: Process context, ptdma_topology held for writing; sleeps.
 * Return: Whether it can come up: it was not leaked, or is not any more.
 */
bool ptdma_chan_settle(struct ptdma_chan *chan)
{
	lockdep_assert_held_write(&ptdma_topology);

	if (!chan->leaked)
		return true;
	if (!ptdma_chan_prove_stopped(chan))
		return false;
	chan->leaked = false;
	ptdma_quarantine_release(BIT_ULL(chan->index));
	ptdma_ring_free(chan);
	return true;
}

/**
 * ptdma_chans_bytes - Memory that the channels take.
 *
 * Context: Process context.
 * Return: Bytes of all rings, those of the channels that are in use no more but
 * could not be freed included, and of the kernel's side of channels.
 */
size_t ptdma_chans_bytes(void)
{
	size_t bytes = 0;
	unsigned int i;

	down_read(&ptdma_topology);
	for (i = 0; i < PTDMA_MAX_CHANNELS; i++) {
		struct ptdma_chan *chan = ptdma_chans[i];

		if (!chan)
			continue;
		bytes += sizeof(*chan);
		if (chan->ring)
			bytes += chan->ring_bytes;
	}
	up_read(&ptdma_topology);
	return bytes;
}

/**
 * ptdma_chans_reopen - Take all channels down and up again, for a new ring size.
 *
 * Context: Process context.
 * Return: 0, or the error of the last channel that did not come up.
 */
int ptdma_chans_reopen(void)
{
	unsigned int i;
	int rc = 0;

	down_write(&ptdma_topology);
	for (i = 0; i < PTDMA_MAX_CHANNELS; i++) {
		struct ptdma_chan *chan = ptdma_chans[i];
		int err;

		if (!chan || !chan->up)
			continue;
		ptdma_chan_down(chan);
		err = chan->leaked ? -EIO : ptdma_chan_up(chan);
		if (err) {
			pci_err(chan->pdev, "channel %u is out of use: %d\n",
				i, err);
			rc = err;
		}
	}
	up_write(&ptdma_topology);
	return rc;
}
