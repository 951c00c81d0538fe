// SPDX-License-Identifier: GPL-2.0-only
/*
 * Registration as the kernel's migrator
 */
#include <linux/bits.h>
#include <linux/migrate_copy_offload.h>
#include <linux/module.h>
#include <linux/mutex.h>

#include "ptdma_migrator.h"

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
