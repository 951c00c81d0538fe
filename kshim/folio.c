// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pairs of folios, for fronts in modules of their own
 *
 * The livepatch has one folio at a time, as whoever migrates on an unpatched kernel
 * copies it.  The engines gain by cutting a large folio into parts for all channels.
 * The device has many folios at a time.
 */
#include <linux/bits.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/page-flags.h>
#include <linux/sched/mm.h>

#include "ptdma_migrator.h"
#include "ptdma_folio.h"
#include "trace.h"

static_assert(PTDMA_MAX_PAIRS == PTDMA_ROUND_FOLIOS);

/**
 * ptdma_is_poisoned - Whether the kernel knows memory of a folio as bad.
 * @folio: The folio.
 *
 * An engine may copy poison without an error; the CPU notices it.
 *
 * Return: true if it does.
 */
bool ptdma_is_poisoned(struct folio *folio)
{
	return PageHWPoison(&folio->page) ||
	       (folio_test_large(folio) && folio_test_has_hwpoisoned(folio));
}
EXPORT_SYMBOL_GPL(ptdma_is_poisoned);

static void ptdma_hold_pairs(struct ptdma_batch *batch, struct ptdma_pair *pairs,
			     unsigned int nr)
{
	unsigned int i;

	ptdma_quarantine_hold(batch, nr);
	for (i = 0; i < nr; i++) {
		folio_get(pairs[i].dst);
		ptdma_quarantine_add(batch, pairs[i].dst);
		pairs[i].state = PTDMA_PAIR_HELD;
	}
}

static void ptdma_mark_pairs(const struct ptdma_batch *batch,
			     struct ptdma_pair *pairs, unsigned int nr,
			     struct ptdma_copied *copied)
{
	unsigned int i;

	for (i = 0; i < nr; i++) {
		u8 outcome = batch->outcomes[i];

		if (outcome != PTDMA_OUTCOME_DMA && outcome != PTDMA_OUTCOME_CPU)
			continue;
		if (ptdma_is_poisoned(pairs[i].src))
			continue;
		pairs[i].state = outcome == PTDMA_OUTCOME_DMA ?
				 PTDMA_PAIR_BY_ENGINES : PTDMA_PAIR_BY_BOTH;
		copied->folios++;
		copied->bytes += batch->folios[i].len;
	}
}

static int ptdma_pairs_round(struct ptdma_batch *batch, struct ptdma_pair *pairs,
			     unsigned int nr, struct ptdma_copied *copied)
{
	struct ptdma_result result = {};
	unsigned int i;
	int rc;

	for (i = 0; i < nr; i++)
		batch->folios[i] = (struct ptdma_folio) {
			.src = PFN_PHYS(folio_pfn(pairs[i].src)),
			.dst = PFN_PHYS(folio_pfn(pairs[i].dst)),
			.len = folio_size(pairs[i].src),
		};
	/* Of 1 GiB the CPU copies the stretches that failed, not all of it again. */
	batch->repair = true;
	rc = ptdma_batch_round(batch, nr, -1, &result);
	trace_ptdma_round(nr, &result);
	copied->sleeps = batch->sleeps;
	if (result.unproven) {
		ptdma_hold_pairs(batch, pairs, nr);
		ptdma_quarantine(batch, &result);
		return -EOWNERDEAD;
	}
	if (!rc)
		ptdma_mark_pairs(batch, pairs, nr, copied);
	return rc;
}

/**
 * ptdma_copy_pairs - Copy the content of folios with the engines.
 * @pairs: The folios; their states are filled in.
 * @nr: How many, at most PTDMA_MAX_PAIRS.
 * @may_sleep: The caller of the migration may sleep.  Otherwise the batch polls, or
 *	is left to the CPU if it would take longer than polling is worth.
 *
 * Context: Process context.
 */
void ptdma_copy_pairs(struct ptdma_pair *pairs, unsigned int nr, bool may_sleep)
{
	struct ptdma_copied copied;
	struct ptdma_batch *batch;
	unsigned int i, noio;
	u64 bytes = 0;
	int rc;

	for (i = 0; i < nr; i++) {
		pairs[i].state = PTDMA_PAIR_LEFT;
		bytes += folio_size(pairs[i].src);
	}
	if (!nr || WARN_ON_ONCE(nr > PTDMA_MAX_PAIRS))
		return;
	if (bytes < ptdma_rs_min_bytes(ptdma_system)) {
		atomic64_inc(&ptdma_totals.declined);
		return;
	}
	batch = ptdma_front_begin(nr, may_sleep, &copied);
	if (!batch)
		return;
	/* Reclaim on behalf of a locked folio must not wait for I/O. */
	noio = memalloc_noio_save();
	rc = ptdma_pairs_round(batch, pairs, nr, &copied);
	memalloc_noio_restore(noio);
	ptdma_front_end(batch, nr, &copied, rc);
}
EXPORT_SYMBOL_GPL(ptdma_copy_pairs);

/**
 * ptdma_copy_folio - Copy the content of a folio with the engines.
 * @dst: Destination, which nobody else uses.
 * @src: Source, locked and unmapped, of the same size.
 * @may_sleep: As for ptdma_copy_pairs().
 *
 * Context: Process context.
 * Return: 0 if @dst has every byte; -EAGAIN if the CPU must copy; -EOWNERDEAD if an
 *	engine may still write to @dst, and a reference was taken that keeps it.
 */
int ptdma_copy_folio(struct folio *dst, struct folio *src, bool may_sleep)
{
	struct ptdma_pair pair = { .dst = dst, .src = src };

	ptdma_copy_pairs(&pair, 1, may_sleep);
	switch (pair.state) {
	case PTDMA_PAIR_BY_ENGINES:
	case PTDMA_PAIR_BY_BOTH:
		return 0;
	case PTDMA_PAIR_HELD:
		return -EOWNERDEAD;
	default:
		return -EAGAIN;
	}
}
EXPORT_SYMBOL_GPL(ptdma_copy_folio);
