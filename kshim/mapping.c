// SPDX-License-Identifier: GPL-2.0-only
/*
 * Bus addresses of folios
 *
 * Each function has an IOMMU domain of its own, so a part of a folio is mapped
 * for the function that copies it, once the Rust library has chosen it.
 *
 * Where the IOMMU translates, windows of bus addresses hold scattered folios side
 * by side, and the library makes one descriptor of them.  Windows are 128 KiB, the
 * largest size for which the IOVA allocator keeps caches.  Larger windows fragment
 * the address space, and the allocator gets slow.
 */
#include <linux/cc_platform.h>
#include <linux/dma-mapping.h>
#include <linux/mem_encrypt.h>
#include <linux/sizes.h>

#include "ptdma_migrator.h"

#define PTDMA_WINDOW_BYTES	SZ_128K

static struct device *ptdma_dev(unsigned int chan)
{
	return &ptdma_chans[chan]->pdev->dev;
}

/* The newest window of a channel, if there is room for @len in it. */
static struct ptdma_window *ptdma_window_find(struct ptdma_batch *batch,
					      unsigned int chan, u32 len)
{
	unsigned int i = batch->nr_windows;

	while (i--) {
		struct ptdma_window *window = &batch->windows[i];

		if (window->chan != chan)
			continue;
		if (window->src_linked != window->used ||
		    window->used + len > PTDMA_WINDOW_BYTES)
			return NULL;
		return window;
	}
	return NULL;
}

static struct ptdma_window *ptdma_window_new(struct ptdma_batch *batch,
					     unsigned int chan)
{
	struct device *dev = ptdma_dev(chan);
	struct ptdma_window *window;

	if (batch->nr_windows == PTDMA_ROUND_WINDOWS)
		return NULL;

	window = &batch->windows[batch->nr_windows];
	memset(window, 0, sizeof(*window));
	window->chan = chan;
	if (!dma_iova_try_alloc(dev, &window->src, 0, PTDMA_WINDOW_BYTES))
		return NULL;
	if (!dma_iova_try_alloc(dev, &window->dst, 0, PTDMA_WINDOW_BYTES)) {
		dma_iova_free(dev, &window->src);
		return NULL;
	}
	batch->nr_windows++;
	return window;
}

/**
 * ptdma_is_translated - Whether bus addresses can be chosen for a function.
 * @dev: The function.
 *
 * Return: true if the IOMMU translates for it.
 */
bool ptdma_is_translated(struct device *dev)
{
	struct dma_iova_state state;

	if (!dma_iova_try_alloc(dev, &state, 0, PTDMA_WINDOW_BYTES))
		return false;
	dma_iova_free(dev, &state);
	return true;
}

/**
 * ptdma_bounces - Whether the kernel itself copies what is mapped for a function.
 * @dev: The function.
 * @translated: An IOMMU translates for it.
 *
 * The CPU copies bounced memory three times, so that the engine cannot win.  Memory
 * bounces if the function does not reach all of it, if the kernel forces a buffer
 * (swiotlb=force, encrypted guests), or if the bit that tells encrypted memory is
 * not among the bits of the function's addresses.
 *
 * Return: true if mappings go through a bounce buffer.
 */
bool ptdma_bounces(struct device *dev, bool translated)
{
	if (dma_max_mapping_size(dev) != SIZE_MAX || dma_addressing_limited(dev))
		return true;
#ifdef CONFIG_AMD_MEM_ENCRYPT
	if (cc_platform_has(CC_ATTR_HOST_MEM_ENCRYPT) && !translated &&
	    dma_get_mask(dev) <= DMA_BIT_MASK(__ffs64(sme_me_mask)))
		return true;
#endif
	return false;
}

static int ptdma_link(struct device *dev, struct dma_iova_state *state,
		      phys_addr_t phys, u32 offset, u32 len,
		      enum dma_data_direction dir)
{
	int rc;

	rc = dma_iova_link(dev, state, phys, offset, len, dir, 0);
	if (rc)
		return rc;
	/* From here on the part may become a descriptor at any time. */
	rc = dma_iova_sync(dev, state, offset, len);
	if (rc)
		dma_iova_unlink(dev, state, offset, len, dir, 0);
	return rc;
}

/* Not inlined: most machines have no use for it, see ptdma_k_map(). */
static noinline bool ptdma_map_windowed(struct ptdma_batch *batch,
					unsigned int chan,
					const struct ptdma_piece *piece,
					struct ptdma_part *part)
{
	struct device *dev = ptdma_dev(chan);
	struct ptdma_window *window;
	u32 len = piece->len;

	if (piece->len > PTDMA_WINDOW_BYTES / 2 ||
	    !PAGE_ALIGNED(piece->src | piece->dst | piece->len))
		return false;

	window = ptdma_window_find(batch, chan, len);
	if (!window)
		window = ptdma_window_new(batch, chan);
	if (!window)
		return false;

	if (ptdma_link(dev, &window->src, piece->src, window->used, len,
		       DMA_TO_DEVICE))
		return false;
	window->src_linked += len;
	/* On failure the window ends here: its two sides do not match. */
	if (ptdma_link(dev, &window->dst, piece->dst, window->used, len,
		       DMA_FROM_DEVICE))
		return false;

	part->src = window->src.addr + window->used;
	part->dst = window->dst.addr + window->used;
	window->used += len;
	return true;
}

/*
 * Searches the parts of the folio for a piece, from part @i on.  Returns 1 if the
 * piece is not mapped.
 */
static noinline int ptdma_map_again(struct ptdma_batch *batch, u32 chan,
				    const struct ptdma_piece *piece, u16 i,
				    struct ptdma_segment *segment)
{
	for (; i != PTDMA_NO_PART; i = batch->parts[i].next) {
		struct ptdma_part *part = &batch->parts[i];
		u64 into;

		if (piece->offset >= part->top)
			break;
		if (piece->offset + piece->len <= part->offset ||
		    piece->offset >= (u64)part->offset + part->len)
			continue;
		/*
		 * Mapped for a channel that has gone out of use meanwhile, or
		 * cut differently: never map anything twice.
		 */
		if (part->chan != chan || piece->offset < part->offset)
			return -EBUSY;

		into = piece->offset - part->offset;
		segment->src = part->src + into;
		segment->dst = part->dst + into;
		segment->len = min(piece->len, part->len - into);
		return 0;
	}
	return 1;
}

static __always_inline bool ptdma_map_part(struct device *dev,
					   const struct ptdma_piece *piece,
					   struct ptdma_part *part)
{
	dma_addr_t src, dst;

	src = dma_map_phys(dev, piece->src, piece->len, DMA_TO_DEVICE, 0);
	if (dma_mapping_error(dev, src))
		return false;
	part->src = src;
	dst = dma_map_phys(dev, piece->dst, piece->len, DMA_FROM_DEVICE, 0);
	if (dma_mapping_error(dev, dst)) {
		dma_unmap_phys(dev, src, piece->len, DMA_TO_DEVICE, 0);
		return false;
	}
	part->dst = dst;
	part->windowed = false;
	return true;
}

/*
 * Maps a piece, or finds that it is mapped.  Sets @direct if it was mapped outside
 * of windows just now.  Returns 0, or a negative error code.
 */
static __always_inline int ptdma_map_piece(struct ptdma_batch *batch, u32 chan,
					   struct ptdma_chan *channel,
					   const struct ptdma_piece *piece,
					   struct ptdma_segment *segment,
					   bool *direct)
{
	u16 *first = &batch->first_part[piece->folio];
	u64 end = piece->offset + piece->len;
	struct ptdma_part *part;

	if (*first != PTDMA_NO_PART &&
	    piece->offset < batch->parts[*first].top) {
		int rc = ptdma_map_again(batch, chan, piece, *first, segment);

		if (rc <= 0)
			return rc;
	}

	if (batch->nr_parts == PTDMA_ROUND_PARTS || piece->len > U32_MAX ||
	    end > U32_MAX)
		return -ENOSPC;

	part = &batch->parts[batch->nr_parts];
	if (unlikely(channel->translated) &&
	    ptdma_map_windowed(batch, chan, piece, part))
		part->windowed = true;
	else if (ptdma_map_part(&channel->pdev->dev, piece, part))
		*direct = true;
	else
		return -EIO;

	part->chan = chan;
	part->offset = piece->offset;
	part->len = piece->len;
	part->top = end;
	part->next = *first;
	if (part->next != PTDMA_NO_PART)
		part->top = max(part->top, batch->parts[part->next].top);
	*first = batch->nr_parts++;
	segment->src = part->src;
	segment->dst = part->dst;
	segment->len = piece->len;
	return 0;
}

/**
 * ptdma_k_map - Give parts of folios bus addresses.
 * @batch: The batch they belong to.
 * @chan: Channel that will copy them.
 * @pieces: The parts.
 * @segments: Filled in from the first one on: the beginning of each of @pieces, as
 *	far as it is contiguous for the channel.
 * @nr: Entries of @pieces and of @segments.
 *
 * A second call for the same part gives the same answer.  The first part that
 * cannot be mapped, or not as a whole, ends the call.  The CPU must copy a part that is the first of a
 * call that maps none.
 *
 * Context: Process context, no locks but ptdma_topology.
 * Return: How many parts, from the first one on, have bus addresses.
 */
u32 ptdma_k_map(struct ptdma_batch *batch, u32 chan,
		const struct ptdma_piece *pieces,
		struct ptdma_segment *segments, u32 nr)
{
	struct ptdma_chan *channel = ptdma_chans[chan];
	bool direct = false;
	u32 i;

	for (i = 0; i < nr; i++) {
		if (ptdma_map_piece(batch, chan, channel, &pieces[i],
				    &segments[i], &direct))
			break;
		/* The rest of this part is asked about before the next one. */
		if (segments[i].len < pieces[i].len) {
			i++;
			break;
		}
	}
	/*
	 * Where bus addresses are physical ones, nothing needs to be unmapped.  The
	 * API tells so after the last mapping that matters.
	 */
	if (direct && dma_need_unmap(&channel->pdev->dev))
		batch->must_unmap = true;
	return i;
}

static void ptdma_unmap_part(struct ptdma_part *part)
{
	struct device *dev = ptdma_dev(part->chan);

	if (!part->windowed) {
		dma_unmap_phys(dev, part->src, part->len, DMA_TO_DEVICE, 0);
		dma_unmap_phys(dev, part->dst, part->len, DMA_FROM_DEVICE, 0);
	}
	part->chan = PTDMA_NO_CHANNEL;
}

static void ptdma_unmap_window(struct ptdma_window *window)
{
	struct device *dev = ptdma_dev(window->chan);

	dma_iova_destroy(dev, &window->src, window->src_linked, DMA_TO_DEVICE,
			 0);
	dma_iova_destroy(dev, &window->dst, window->used, DMA_FROM_DEVICE, 0);
	window->chan = PTDMA_NO_CHANNEL;
}

/**
 * ptdma_maps_channel - Whether a batch has anything mapped for a channel.
 * @batch: The batch.
 * @chan: The channel.
 *
 * Return: true if it has.
 */
bool ptdma_maps_channel(struct ptdma_batch *batch, unsigned int chan)
{
	unsigned int i;

	for (i = 0; i < batch->nr_parts; i++)
		if (batch->parts[i].chan == chan)
			return true;
	for (i = 0; i < batch->nr_windows; i++)
		if (batch->windows[i].chan == chan)
			return true;
	return false;
}

/**
 * ptdma_unmap_channel - Undo what a batch has mapped for one channel.
 * @batch: The batch.
 * @chan: The channel, whose engine no longer writes to the batch's memory.
 *
 * Context: Process context, ptdma_topology held.
 */
void ptdma_unmap_channel(struct ptdma_batch *batch, unsigned int chan)
{
	unsigned int i;

	for (i = 0; i < batch->nr_parts; i++)
		if (batch->parts[i].chan == chan)
			ptdma_unmap_part(&batch->parts[i]);
	for (i = 0; i < batch->nr_windows; i++)
		if (batch->windows[i].chan == chan)
			ptdma_unmap_window(&batch->windows[i]);
}

/**
 * ptdma_unmap_round - Undo the mappings of a round.
 * @batch: The batch, whose memory no engine writes to any more.
 *
 * With bounce buffers, the data reach the folios only here.
 *
 * Context: Process context, ptdma_topology held.
 */
void ptdma_unmap_round(struct ptdma_batch *batch)
{
	unsigned int i;

	for (i = 0; batch->must_unmap && i < batch->nr_parts; i++)
		if (batch->parts[i].chan != PTDMA_NO_CHANNEL)
			ptdma_unmap_part(&batch->parts[i]);
	batch->must_unmap = false;
	batch->nr_parts = 0;
	for (i = 0; i < batch->nr_windows; i++)
		if (batch->windows[i].chan != PTDMA_NO_CHANNEL)
			ptdma_unmap_window(&batch->windows[i]);
	batch->nr_windows = 0;
}
