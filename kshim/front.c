// SPDX-License-Identifier: GPL-2.0-only
/*
 * What every front does around the rounds of a batch
 *
 * A front is a way into this module: migrator.c on kernels with the patches,
 * folio.c on kernels without.
 */
#include <linux/rwsem.h>

#include "ptdma_migrator.h"
#include "trace.h"

/**
 * ptdma_front_begin - Take what a batch needs.
 * @nr: Folios of the batch.
 * @may_sleep: The caller of the migration may sleep.
 * @copied: Set to nothing copied.
 *
 * Context: Process context.
 * Return: The batch, with ptdma_topology held for reading; NULL leaves the folios
 *	to the CPU.
 */
struct ptdma_batch *ptdma_front_begin(unsigned int nr, bool may_sleep,
				      struct ptdma_copied *copied)
{
	struct ptdma_batch *batch;

	*copied = (struct ptdma_copied){};
	if (!down_read_trylock(&ptdma_topology)) {
		atomic64_inc(&ptdma_totals.busy);
		return NULL;
	}
	batch = ptdma_batch_get(may_sleep);
	if (!batch) {
		up_read(&ptdma_topology);
		atomic64_inc(&ptdma_totals.busy);
		return NULL;
	}

	trace_ptdma_batch_start(nr);
	if (trace_ptdma_batch_end_enabled())
		copied->start = ptdma_k_now_ns();
	batch->sleeps = 0;
	batch->proof_end = 0;
	return batch;
}

/**
 * ptdma_front_end - Count a batch, and give back what ptdma_front_begin() took.
 * @batch: The batch.
 * @nr: Folios of the batch.
 * @copied: What the batch copied.  After an error nobody trusts any of it.
 * @rc: How the batch ended.  -EOWNERDEAD: the batch is in quarantine.
 */
void ptdma_front_end(struct ptdma_batch *batch, unsigned int nr,
		     const struct ptdma_copied *copied, int rc)
{
	unsigned int folios = rc ? 0 : copied->folios;

	if (trace_ptdma_batch_end_enabled())
		/* start is 0 if the event was enabled meanwhile. */
		trace_ptdma_batch_end(nr, folios, copied->sleeps,
				      copied->start ?
				      ptdma_k_now_ns() - copied->start : 0, rc);

	atomic64_inc(&ptdma_totals.batches);
	atomic64_add(folios, &ptdma_totals.folios_migrated);
	atomic64_add(nr - folios, &ptdma_totals.folios_failures);
	atomic64_add(rc ? 0 : copied->bytes, &ptdma_totals.bytes);
	if (rc != -EOWNERDEAD)
		ptdma_batch_put(batch);
	up_read(&ptdma_topology);
}
