// SPDX-License-Identifier: GPL-2.0-only
/*
 * One folio at a time, for kernels that copy them so
 *
 * Whoever migrates a folio on an unpatched kernel copies it by itself.  The engines
 * gain by cutting a large folio into parts for all channels.
 */
#include <linux/bits.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/page-flags.h>
#include <linux/sched/mm.h>

#include "ptdma_migrator.h"
#include "ptdma_folio.h"
#include "trace.h"

/* The engine may have copied poison without an error; the CPU notices it. */
static bool ptdma_is_poisoned(struct folio *folio)
{
	return PageHWPoison(&folio->page) ||
	       (folio_test_large(folio) && folio_test_has_hwpoisoned(folio));
}

static int ptdma_folio_round(struct ptdma_batch *batch, struct folio *dst,
			     struct folio *src, struct ptdma_copied *copied)
{
	struct ptdma_result result = {};
	int rc;

	batch->folios[0] = (struct ptdma_folio) {
		.src = PFN_PHYS(folio_pfn(src)),
		.dst = PFN_PHYS(folio_pfn(dst)),
		.len = folio_size(src),
	};
	/* Of 1 GiB the CPU copies the stretches that failed, not all of it again. */
	batch->repair = true;
	rc = ptdma_batch_round(batch, 1, -1, &result);
	trace_ptdma_round(1, &result);
	copied->sleeps = batch->sleeps;
	if (result.unproven) {
		ptdma_quarantine_hold(batch, 1);
		folio_get(dst);
		ptdma_quarantine_add(batch, dst);
		ptdma_quarantine(batch, &result);
		return -EOWNERDEAD;
	}
	if (rc)
		return rc;
	if (batch->outcomes[0] != PTDMA_OUTCOME_DMA &&
	    batch->outcomes[0] != PTDMA_OUTCOME_CPU)
		return 0;
	if (ptdma_is_poisoned(src))
		return 0;
	copied->folios = 1;
	copied->bytes = folio_size(src);
	return 0;
}

/**
 * ptdma_copy_folio - Copy the content of a folio with the engines.
 * @dst: Destination, which nobody else uses.
 * @src: Source, locked and unmapped, of the same size.
 * @may_sleep: The caller of the migration may sleep.  Otherwise the batch polls, or
 *	is left to the CPU if it would take longer than polling is worth.
 *
 * Context: Process context.
 * Return: 0 if @dst has every byte; -EAGAIN if the CPU must copy; -EOWNERDEAD if an
 *	engine may still write to @dst, and a reference was taken that keeps it.
 */
int ptdma_copy_folio(struct folio *dst, struct folio *src, bool may_sleep)
{
	struct ptdma_copied copied;
	struct ptdma_batch *batch;
	unsigned int noio;
	int rc;

	if (folio_size(src) < ptdma_rs_min_bytes(ptdma_system)) {
		atomic64_inc(&ptdma_totals.declined);
		return -EAGAIN;
	}
	batch = ptdma_front_begin(1, may_sleep, &copied);
	if (!batch)
		return -EAGAIN;
	/* Reclaim on behalf of a locked folio must not wait for I/O. */
	noio = memalloc_noio_save();
	rc = ptdma_folio_round(batch, dst, src, &copied);
	memalloc_noio_restore(noio);
	ptdma_front_end(batch, 1, &copied, rc);
	if (rc == -EOWNERDEAD)
		return rc;
	return copied.folios ? 0 : -EAGAIN;
}
EXPORT_SYMBOL_GPL(ptdma_copy_folio);
