// SPDX-License-Identifier: GPL-2.0-only
/*
 * Registration as the kernel's migrator
 */
#include <linux/bits.h>
#include <linux/module.h>
#include <linux/mutex.h>

#include "compat.h"
#include "ptdma_migrator.h"

static DEFINE_MUTEX(ptdma_migrator_lock);
static bool ptdma_registered;
static unsigned long ptdma_reasons = PTDMA_ALL_REASONS;

#ifdef PTDMA_MIGRATE_START
static bool ptdma_should_batch(int reason)
{
	return READ_ONCE(ptdma_reasons) & BIT(reason);
}
#endif

static const struct migrator ptdma_migrator = {
	.name = PTDMA_DRIVER_NAME,
	.offload_copy = ptdma_offload_copy,
#ifdef PTDMA_MIGRATE_START
	.should_batch = ptdma_should_batch,
#endif
	.owner = THIS_MODULE,
};

static int ptdma_register(void)
{
#ifdef PTDMA_MIGRATE_START
	return migrate_offload_start(&ptdma_migrator);
#else
	return migrate_offload_register(&ptdma_migrator, ptdma_reasons);
#endif
}

static int ptdma_unregister(void)
{
#ifdef PTDMA_MIGRATE_START
	return migrate_offload_stop(&ptdma_migrator);
#else
	return migrate_offload_unregister(&ptdma_migrator);
#endif
}

/**
 * ptdma_migrator_start - Become the kernel's migrator.
 *
 * Context: Process context.
 * Return: 0, also if it is already; -EBUSY if somebody else is.
 */
int ptdma_migrator_start(void)
{
	int rc = 0;

	guard(mutex)(&ptdma_migrator_lock);
	if (!ptdma_registered)
		rc = ptdma_register();
	if (!rc)
		ptdma_registered = true;
	return rc;
}

/**
 * ptdma_migrator_stop - Be the kernel's migrator no more.
 *
 * On return no batch is in flight.
 *
 * Context: Process context, without ptdma_topology.
 */
void ptdma_migrator_stop(void)
{
	guard(mutex)(&ptdma_migrator_lock);
	if (ptdma_registered)
		WARN_ON(ptdma_unregister());
	ptdma_registered = false;
}

/**
 * ptdma_migrator_active - Whether it is registered.
 *
 * Return: true if it is.
 */
bool ptdma_migrator_active(void)
{
	guard(mutex)(&ptdma_migrator_lock);
	return ptdma_registered;
}

/**
 * ptdma_migrator_reasons - What it copies for.
 *
 * Return: A bit for each enum migrate_reason.
 */
unsigned long ptdma_migrator_reasons(void)
{
	return READ_ONCE(ptdma_reasons);
}

/**
 * ptdma_migrator_set_reasons - Change what it copies for.
 * @mask: A bit for each enum migrate_reason.
 *
 * Context: Process context.
 * Return: 0 or -EINVAL.
 */
int ptdma_migrator_set_reasons(unsigned long mask)
{
	if (mask & ~PTDMA_ALL_REASONS)
		return -EINVAL;

	guard(mutex)(&ptdma_migrator_lock);
#ifndef PTDMA_MIGRATE_START
	if (ptdma_registered) {
		int rc = migrate_offload_set_reason_mask(&ptdma_migrator, mask);

		if (rc)
			return rc;
	}
#endif
	WRITE_ONCE(ptdma_reasons, mask);
	return 0;
}
