// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel's migrator: a batch of folios, from the list to the marks
 *
 * A batch that is longer than a round takes several.
 */
#include <linux/bits.h>
#include <linux/list.h>
#include <linux/migrate_copy_offload.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>

#include "ptdma_migrator.h"
#include "trace.h"

static void ptdma_mark_round(struct ptdma_batch *batch, unsigned int nr,
			     struct folio *dst, struct ptdma_copied *copied)
{
	unsigned int i;

	for (i = 0; i < nr; i++, dst = list_next_entry(dst, lru)) {
		if (batch->outcomes[i] != PTDMA_OUTCOME_DMA &&
		    batch->outcomes[i] != PTDMA_OUTCOME_CPU)
			continue;
		folio_mark_content_copied(dst);
		copied->bytes += batch->folios[i].len;
		copied->folios++;
	}
}

/* Holds earlier rounds too: after -EOWNERDEAD the core gives up the whole batch. */
static void ptdma_hold_all(struct ptdma_batch *batch, struct list_head *dst_list)
{
	struct folio *folio;

	ptdma_quarantine_hold(batch, list_count_nodes(dst_list));
	list_for_each_entry(folio, dst_list, lru) {
		folio_get(folio);
		ptdma_quarantine_add(batch, folio);
	}
}

static int ptdma_copy_rounds(struct ptdma_batch *batch,
			     struct list_head *dst_list,
			     struct list_head *src_list,
			     unsigned int folio_cnt,
			     struct ptdma_copied *copied)
{
	struct folio *src = list_first_entry(src_list, struct folio, lru);
	struct folio *dst = list_first_entry(dst_list, struct folio, lru);

	while (folio_cnt) {
		unsigned int nr = min(folio_cnt, PTDMA_ROUND_FOLIOS);
		struct folio *first = dst;
		struct ptdma_result result = {};
		unsigned int i;
		int rc;

		for (i = 0; i < nr; i++) {
			batch->folios[i].src = PFN_PHYS(folio_pfn(src));
			batch->folios[i].dst = PFN_PHYS(folio_pfn(dst));
			batch->folios[i].len = folio_size(src);
			src = list_next_entry(src, lru);
			dst = list_next_entry(dst, lru);
		}

		rc = ptdma_batch_round(batch, nr, -1, &result);
		trace_ptdma_round(nr, &result);
		copied->sleeps = batch->sleeps;
		if (result.unproven) {
			ptdma_hold_all(batch, dst_list);
			ptdma_quarantine(batch, &result);
			return -EOWNERDEAD;
		}
		if (rc)
			return rc;
		ptdma_mark_round(batch, nr, first, copied);
		folio_cnt -= nr;
		cond_resched();
	}
	return 0;
}

/* Stops at the first folio that makes the batch large enough. */
static bool ptdma_is_worth_it(struct list_head *src_list)
{
	u64 least = ptdma_rs_min_bytes(ptdma_system);
	struct folio *src;
	u64 bytes = 0;

	list_for_each_entry(src, src_list, lru) {
		bytes += folio_size(src);
		if (bytes >= least)
			return true;
	}
	return false;
}

static int ptdma_copy_folios(struct list_head *dst_list,
			     struct list_head *src_list,
			     unsigned int folio_cnt, bool may_sleep)
{
	struct ptdma_batch *batch;
	struct ptdma_copied copied;
	int rc;

	if (!folio_cnt)
		return 0;

	if (!ptdma_is_worth_it(src_list)) {
		atomic64_inc(&ptdma_totals.declined);
		return 0;
	}

	batch = ptdma_front_begin(folio_cnt, may_sleep, &copied);
	if (!batch)
		return 0;
	rc = ptdma_copy_rounds(batch, dst_list, src_list, folio_cnt, &copied);
	ptdma_front_end(batch, folio_cnt, &copied, rc);
	return rc;
}

#ifdef PTDMA_COPY_BATCH
/*
 * ptdma_copy_batch - Copy a batch of folios with the engines.
 * @copy: The batch, and how it is to be copied.
 *
 * Marks each destination that holds all bytes of its source; the CPU copies the
 * others.  Asynchronous migration must not sleep: such a batch polls, or is left to
 * the CPU if it would take longer than polling is worth.
 *
 * Return: 0; -EOWNERDEAD if an engine may still write to the destinations, with a
 * reference to each of them taken; another negative error code if the marks must
 * not be trusted.
 */
static int ptdma_copy_batch(const struct migrate_copy_batch *copy)
{
	return ptdma_copy_folios(copy->dst, copy->src, copy->nr_folios,
				 copy->mode != MIGRATE_ASYNC);
}
#else
/*
 * ptdma_offload_copy - Copy a batch of folios with the engines.
 * @dst_list: Destinations.
 * @src_list: Sources, in the same order.
 * @folio_cnt: Entries of each list.
 *
 * For kernels whose interface has no mode and no reason.
 *
 * Return: 0; -EOWNERDEAD if an engine may still write to the destinations, with a
 * reference to each of them taken; another negative error code if the marks must
 * not be trusted.
 */
static int ptdma_offload_copy(struct list_head *dst_list,
			      struct list_head *src_list,
			      unsigned int folio_cnt)
{
	return ptdma_copy_folios(dst_list, src_list, folio_cnt, true);
}
#endif

static DEFINE_MUTEX(ptdma_migrator_lock);
static bool ptdma_registered;
#ifdef MIGRATE_OFFLOAD_DEFAULT_REASONS
/* Without memory failure: an engine may copy poison without an error. */
static unsigned long ptdma_reasons = MIGRATE_OFFLOAD_DEFAULT_REASONS;
#else
static unsigned long ptdma_reasons = MIGRATE_OFFLOAD_ALL_REASONS;
#endif

static const struct migrator ptdma_migrator = {
	.name = PTDMA_DRIVER_NAME,
#ifdef PTDMA_COPY_BATCH
	.copy_batch = ptdma_copy_batch,
#else
	.offload_copy = ptdma_offload_copy,
#endif
	.owner = THIS_MODULE,
};

/**
 * ptdma_migrator_start - Become the kernel's migrator.
 *
 * Context: Process context.
 * Return: 0, also if registered already; -EBUSY if another migrator is registered.
 */
int ptdma_migrator_start(void)
{
	int rc = 0;

	guard(mutex)(&ptdma_migrator_lock);
	if (!ptdma_registered)
		rc = migrate_offload_register(&ptdma_migrator, ptdma_reasons);
	if (!rc)
		ptdma_registered = true;
	return rc;
}

/**
 * ptdma_migrator_stop - Stop being the kernel's migrator.
 *
 * On return no batch is in flight.
 *
 * Context: Process context, without ptdma_topology.
 */
void ptdma_migrator_stop(void)
{
	guard(mutex)(&ptdma_migrator_lock);
	if (ptdma_registered)
		WARN_ON(migrate_offload_unregister(&ptdma_migrator));
	ptdma_registered = false;
}

/**
 * ptdma_migrator_active - Whether the module is the kernel's migrator.
 *
 * Return: true if it is.
 */
bool ptdma_migrator_active(void)
{
	guard(mutex)(&ptdma_migrator_lock);
	return ptdma_registered;
}

/**
 * ptdma_migrator_reasons - Reasons of migration to copy for.
 *
 * Return: A bit for each enum migrate_reason.
 */
unsigned long ptdma_migrator_reasons(void)
{
	return READ_ONCE(ptdma_reasons);
}

/**
 * ptdma_migrator_set_reasons - Change the reasons of migration to copy for.
 * @mask: A bit for each enum migrate_reason.
 *
 * Context: Process context.
 * Return: 0 or -EINVAL.
 */
int ptdma_migrator_set_reasons(unsigned long mask)
{
	if (mask & ~MIGRATE_OFFLOAD_ALL_REASONS)
		return -EINVAL;

	guard(mutex)(&ptdma_migrator_lock);
	if (ptdma_registered) {
		int rc = migrate_offload_set_reason_mask(&ptdma_migrator, mask);

		if (rc)
			return rc;
	}
	WRITE_ONCE(ptdma_reasons, mask);
	return 0;
}
