// SPDX-License-Identifier: GPL-2.0-only
/*
 * Bring-up and take-down of a channel, and the memory of its ring
 */
#include <linux/dma-mapping.h>
#include <linux/gfp.h>
#include <linux/nodemask.h>
#include <linux/pci.h>
#include <linux/topology.h>

#include "ptdma_migrator.h"

struct ptdma_chan *ptdma_chans[PTDMA_MAX_CHANNELS];
unsigned int ptdma_chans_end;

/* The nodes of the functions that are bound. */
static nodemask_t ptdma_nodes;

/**
 * ptdma_nodes_update - Note that a function was bound or unbound.
 *
 * Context: Process context, ptdma_topology held for writing.
 */
void ptdma_nodes_update(void)
{
	unsigned int i;

	lockdep_assert_held_write(&ptdma_topology);

	nodes_clear(ptdma_nodes);
	for (i = 0; i < ptdma_chans_end; i++) {
		struct ptdma_chan *chan = ptdma_chans[i];

		if (chan && chan->node != NUMA_NO_NODE)
			node_set(chan->node, ptdma_nodes);
	}
}

/**
 * ptdma_near_node - Find the node with functions that is nearest to a node.
 * @nid: The node, which may have no processor and no function.
 *
 * Context: ptdma_topology held for reading.
 * Return: The nearest one; @nid itself if no function names its node.
 */
int ptdma_near_node(int nid)
{
	int node, near = nid, least = INT_MAX;

	if (nid == NUMA_NO_NODE || node_isset(nid, ptdma_nodes))
		return nid;
	for_each_node_mask(node, ptdma_nodes) {
		int distance = node_distance(nid, node);

		if (distance < least) {
			least = distance;
			near = node;
		}
	}
	return near;
}

/*
 * Pages of our own, and not dma_alloc_coherent()'s: the memory of a ring that an
 * engine may still touch stays allocated, but its mapping goes with the function.
 * On x86 both are coherent.
 */
static int ptdma_ring_map(struct ptdma_chan *chan, u32 entries,
			  struct ptdma_ring *ring)
{
	struct device *dev = &chan->pdev->dev;
	struct page *page;

	/*
	 * A power of two of pages comes aligned to its own size, as physical
	 * memory and as bus addresses, which is what the engine wants of the
	 * ring; a ring is never less than a page.
	 */
	ring->entries = entries;
	ring->bytes = max_t(size_t, PAGE_SIZE,
			    entries * PTDMA_DESCRIPTOR_BYTES);
	page = alloc_pages_node(chan->node, GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN,
				get_order(ring->bytes));
	if (!page)
		return -ENOMEM;
	ring->mem = page_address(page);
	ring->dma = dma_map_phys(dev, page_to_phys(page), ring->bytes,
				 DMA_BIDIRECTIONAL, 0);
	if (!dma_mapping_error(dev, ring->dma))
		return 0;
	__free_pages(page, get_order(ring->bytes));
	ring->mem = NULL;
	return -ENOMEM;
}

static void ptdma_ring_unmap(struct ptdma_chan *chan, struct ptdma_ring *ring)
{
	dma_unmap_phys(&chan->pdev->dev, ring->dma, ring->bytes,
		       DMA_BIDIRECTIONAL, 0);
}

static void ptdma_ring_free(struct ptdma_chan *chan, struct ptdma_ring *ring)
{
	if (!ring->mem)
		return;
	ptdma_ring_unmap(chan, ring);
	free_pages((unsigned long)ring->mem, get_order(ring->bytes));
	ring->mem = NULL;
}

/*
 * Head and tail hold the low half of a bus address, and read 0 after a reset.  The
 * library refuses a ring that begins where that half is 0.  Allocate another ring
 * while the first one is held.
 */
static int ptdma_ring_alloc(struct ptdma_chan *chan, u32 entries,
			    struct ptdma_ring *ring)
{
	struct ptdma_ring first;
	int rc;

	rc = ptdma_ring_map(chan, entries, ring);
	if (rc || lower_32_bits(ring->dma))
		return rc;
	first = *ring;
	rc = ptdma_ring_map(chan, entries, ring);
	ptdma_ring_free(chan, &first);
	return rc;
}

/* Starts the queue with the channel's new ring. */
static int ptdma_chan_start(struct ptdma_chan *chan)
{
	struct ptdma_channel_setup setup = {
		.bar = (void __force *)chan->bar,
		.ring = chan->ring.mem,
		.ring_dma = chan->ring.dma,
		.ring_bytes = chan->ring.bytes,
		.ring_entries = chan->ring.entries,
		.node = chan->node,
		.port = chan->port,
		/* The counts of a function begin anew at each bring-up. */
		.fresh = !chan->wanted,
	};
	int rc;

	rc = ptdma_rs_channel_up(ptdma_system, chan->index, &setup);

	guard(mutex)(&chan->lock);
	if (!rc) {
		chan->cut = false;
		WRITE_ONCE(chan->state, PTDMA_CHAN_UP);
		return 0;
	}
	/* -ETIMEDOUT: the engine knows the ring, and does not stop. */
	if (rc == -ETIMEDOUT &&
	    !ptdma_chan_cut_off(chan, ptdma_proof_end(), true))
		WRITE_ONCE(chan->state, PTDMA_CHAN_LEAKED);
	else
		ptdma_ring_free(chan, &chan->ring);
	pci_clear_master(chan->pdev);
	chan->cut = chan->cut || rc == -ETIMEDOUT || rc == -EBUSY;
	return rc;
}

/**
 * ptdma_chan_up - Allocate a channel's ring and start its queue.
 * @chan: The channel, whose state is PTDMA_CHAN_DOWN.
 *
 * The function becomes a bus master once its engine is seen to stand.
 *
 * Context: Process context, ptdma_topology held for writing.
 * Return: 0, or a negative error code: the channel is not up.  -EBUSY, -ETIMEDOUT:
 * a reset of the function helps.  -EOPNOTSUPP: the kernel bounces its mappings.
 */
int ptdma_chan_up(struct ptdma_chan *chan)
{
	struct device *dev = &chan->pdev->dev;
	struct ptdma_settings settings;
	int rc;

	lockdep_assert_held_write(&ptdma_topology);

	chan->translated = ptdma_is_translated(dev);
	if (ptdma_bounces(dev, chan->translated)) {
		if (!chan->bounces)
			pci_notice(chan->pdev,
				   "channel %u is not used: the kernel bounces what is mapped for it, and the CPU copies faster\n",
				   chan->index);
		chan->bounces = true;
		return -EOPNOTSUPP;
	}
	chan->bounces = false;

	/*
	 * Read once: user space can set ring_entries at any time, and memory and
	 * engine must agree on the size.
	 */
	ptdma_rs_settings_get(ptdma_system, &settings);
	rc = ptdma_ring_alloc(chan, settings.ring_entries, &chan->ring);
	return rc ?: ptdma_chan_start(chan);
}

/**
 * ptdma_chan_down - Stop a channel's queue and free its ring.
 * @chan: The channel.
 *
 * The state is PTDMA_CHAN_DOWN afterwards.  If the engine is neither proved stopped
 * nor proved cut off from memory, the ring stays allocated, and the state is
 * PTDMA_CHAN_LEAKED.
 *
 * Context: Process context, ptdma_topology held for writing.
 */
void ptdma_chan_down(struct ptdma_chan *chan)
{
	bool stopped;

	lockdep_assert_held_write(&ptdma_topology);

	scoped_guard(mutex, &chan->lock) {
		switch (chan->state) {
		case PTDMA_CHAN_UP:
			stopped = !ptdma_rs_channel_down(ptdma_system,
							 chan->index);
			if (stopped)
				break;
			chan->cut = true;
			stopped = ptdma_chan_cut_off(chan, ptdma_proof_end(),
						     true);
			break;
		case PTDMA_CHAN_STOPPED:
			stopped = true;
			break;
		case PTDMA_CHAN_SUSPECT:
			stopped = ptdma_chan_cut_off(chan, ptdma_proof_end(),
						     true);
			break;
		default:
			return;
		}
		/* The library accesses no register of the function from here on. */
		ptdma_rs_channel_forget(ptdma_system, chan->index);
		WRITE_ONCE(chan->state, PTDMA_CHAN_LEAKED);
	}
	if (stopped)
		ptdma_chan_proved(chan);
}

/**
 * ptdma_chan_proved - Record that a channel's engine touches no memory.
 * @chan: The channel.
 *
 * Gives back memory that waited for the proof.
 *
 * Context: Process context, ptdma_topology held.
 */
void ptdma_chan_proved(struct ptdma_chan *chan)
{
	scoped_guard(mutex, &chan->lock) {
		if (chan->state == PTDMA_CHAN_SUSPECT)
			WRITE_ONCE(chan->state, PTDMA_CHAN_STOPPED);
		if (chan->state == PTDMA_CHAN_LEAKED) {
			ptdma_ring_free(chan, &chan->ring);
			WRITE_ONCE(chan->state, PTDMA_CHAN_DOWN);
		}
	}
	ptdma_quarantine_release(chan->index);
}

/**
 * ptdma_chan_was_reset - Whether a function has forgotten its queue.
 * @chan: The channel, which is not up.
 *
 * Context: Process context, the function answers and its memory is decoded.
 * Return: true if somebody has reset it since its queue was set up.
 */
bool ptdma_chan_was_reset(struct ptdma_chan *chan)
{
	return ptdma_rs_was_reset((void __force *)chan->bar);
}

/**
 * ptdma_chan_leave - Detach a channel whose function is removed.
 * @chan: The channel, down or leaked.
 *
 * Context: Process context, ptdma_topology held for writing.
 */
void ptdma_chan_leave(struct ptdma_chan *chan)
{
	lockdep_assert_held_write(&ptdma_topology);

	ptdma_quarantine_remove(chan);
	if (chan->cut)
		pci_crit(chan->pdev,
			 "the engine may resume if another driver enables bus mastering: reset the function first\n");
	if (chan->state != PTDMA_CHAN_LEAKED)
		return;
	pci_crit(chan->pdev,
		 "cannot prove the engine stopped: its ring of %zu bytes stays allocated\n",
		 chan->ring.bytes);
	ptdma_ring_unmap(chan, &chan->ring);
	chan->ring.mem = NULL;
}

/**
 * ptdma_chans_bytes - Memory that the channels take.
 *
 * Context: Process context.
 * Return: Bytes of struct ptdma_chan and of all rings, including rings that could
 * not be freed.
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
		if (chan->ring.mem)
			bytes += chan->ring.bytes;
	}
	up_read(&ptdma_topology);
	return bytes;
}

/* Allocates the new ring first, so that a failure leaves the old ring in use. */
static int ptdma_chan_reopen(struct ptdma_chan *chan, u32 entries)
{
	struct ptdma_ring ring;
	int rc;

	if (chan->state == PTDMA_CHAN_DOWN)
		return ptdma_chan_up(chan);
	if (chan->state != PTDMA_CHAN_UP)
		return -EBUSY;
	rc = ptdma_ring_alloc(chan, entries, &ring);
	if (rc)
		return rc;
	ptdma_chan_down(chan);
	if (chan->state != PTDMA_CHAN_DOWN || chan->cut) {
		ptdma_ring_free(chan, &ring);
		return -EBUSY;
	}
	chan->ring = ring;
	return ptdma_chan_start(chan);
}

/**
 * ptdma_chans_reopen - Bring all channels up again, with rings of the new size.
 *
 * Context: Process context.
 * Return: 0, or the error of the last channel whose ring has another size.
 */
int ptdma_chans_reopen(void)
{
	struct ptdma_settings settings;
	unsigned int i;
	int rc = 0;

	down_write(&ptdma_topology);
	ptdma_rs_settings_get(ptdma_system, &settings);
	for (i = 0; i < PTDMA_MAX_CHANNELS; i++) {
		struct ptdma_chan *chan = ptdma_chans[i];
		int err;

		if (!chan || !chan->wanted || chan->suspended ||
		    chan->resetting || chan->bounces)
			continue;
		err = ptdma_chan_reopen(chan, settings.ring_entries);
		if (!err)
			continue;
		rc = err;
		if (chan->state == PTDMA_CHAN_UP) {
			pci_err(chan->pdev,
				"channel %u keeps its ring of %u descriptors: %d\n",
				i, chan->ring.entries, err);
			continue;
		}
		pci_err(chan->pdev,
			"channel %u is out of service and will be retried: %d\n",
			i, err);
		ptdma_chan_rescue(chan);
	}
	up_write(&ptdma_topology);
	return rc;
}
