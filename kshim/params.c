// SPDX-License-Identifier: GPL-2.0-only
/*
 * Controls and counts, in /sys/module/ptdma_migrator/parameters/
 *
 * User space can change all of them at any time.  The Rust library uses the values,
 * and knows their ranges.
 */
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/string.h>

#include "ptdma_migrator.h"
#ifdef PTDMA_PATCHED
#include <linux/migrate_copy_offload.h>
#endif

/* Parameters of the command line, until the system exists. */
static struct ptdma_settings ptdma_early;
static bool ptdma_early_set;
static bool ptdma_early_offloading;
static bool ptdma_early_selftest;
/* The module goes: writes to parameters start nothing any more. */
static bool ptdma_closed;
static DEFINE_MUTEX(ptdma_params_lock);

struct ptdma_knob {
	size_t offset;
	bool reopen;
};

static void ptdma_settings_now(struct ptdma_settings *settings)
{
	if (ptdma_system) {
		ptdma_rs_settings_get(ptdma_system, settings);
		return;
	}
	if (!ptdma_early_set)
		ptdma_rs_settings_default(&ptdma_early);
	ptdma_early_set = true;
	*settings = ptdma_early;
}

static u32 *ptdma_knob_value(struct ptdma_settings *settings,
			     const struct kernel_param *kp)
{
	const struct ptdma_knob *knob = kp->arg;

	return (void *)settings + knob->offset;
}

static int ptdma_knob_set(const char *val, const struct kernel_param *kp)
{
	const struct ptdma_knob *knob = kp->arg;
	struct ptdma_settings settings;
	u32 value;
	int rc;

	rc = kstrtou32(val, 0, &value);
	if (rc)
		return rc;

	guard(mutex)(&ptdma_params_lock);
	if (ptdma_closed)
		return -ENODEV;
	ptdma_settings_now(&settings);
	*ptdma_knob_value(&settings, kp) = value;
	if (!ptdma_system) {
		rc = ptdma_rs_settings_check(&settings);
		if (!rc)
			ptdma_early = settings;
		return rc;
	}
	rc = ptdma_rs_settings_set(ptdma_system, &settings);
	if (!rc && knob->reopen)
		rc = ptdma_chans_reopen();
	return rc;
}

static int ptdma_knob_get(char *buf, const struct kernel_param *kp)
{
	struct ptdma_settings settings;

	guard(mutex)(&ptdma_params_lock);
	if (ptdma_closed)
		return -ENODEV;
	ptdma_settings_now(&settings);
	return sysfs_emit(buf, "%u\n", *ptdma_knob_value(&settings, kp));
}

static const struct kernel_param_ops ptdma_knob_ops = {
	.set = ptdma_knob_set,
	.get = ptdma_knob_get,
};

#define PTDMA_KNOB(field, reopens)					\
	static struct ptdma_knob ptdma_knob_##field = {			\
		.offset = offsetof(struct ptdma_settings, field),	\
		.reopen = reopens,					\
	}

PTDMA_KNOB(nr_dma_chan, false);
module_param_cb(nr_dma_chan, &ptdma_knob_ops, &ptdma_knob_nr_dma_chan, 0644);
MODULE_PARM_DESC(nr_dma_chan,
		 "channels that one batch uses, 0 to 64; 0: let the cost model decide (default: 0)");

PTDMA_KNOB(ring_entries, true);
module_param_cb(ring_entries, &ptdma_knob_ops, &ptdma_knob_ring_entries, 0644);
MODULE_PARM_DESC(ring_entries,
		 "descriptors of each ring, a power of two from 32 to 8192 (default: 1024)");

PTDMA_KNOB(min_batch_kb, false);
module_param_cb(min_batch_kb, &ptdma_knob_ops, &ptdma_knob_min_batch_kb, 0644);
MODULE_PARM_DESC(min_batch_kb,
		 "leave batches of less than this many KiB to the CPU; 0: let the cost model decide (default: 0)");

PTDMA_KNOB(stripe_kb, false);
module_param_cb(stripe_kb, &ptdma_knob_ops, &ptdma_knob_stripe_kb, 0644);
MODULE_PARM_DESC(stripe_kb,
		 "shortest part that a folio is cut into, in KiB, 4 to 2048 (default: 64)");

PTDMA_KNOB(poll_us, false);
module_param_cb(poll_us, &ptdma_knob_ops, &ptdma_knob_poll_us, 0644);
MODULE_PARM_DESC(poll_us,
		 "microseconds that a batch spins before it sleeps, 0 to 10000 (default: 10)");

PTDMA_KNOB(timeout_ms, false);
module_param_cb(timeout_ms, &ptdma_knob_ops, &ptdma_knob_timeout_ms, 0644);
MODULE_PARM_DESC(timeout_ms,
		 "milliseconds that a batch may take, 10 to 60000 (default: 2000)");

PTDMA_KNOB(hybrid_percent, false);
module_param_cb(hybrid_percent, &ptdma_knob_ops, &ptdma_knob_hybrid_percent, 0644);
MODULE_PARM_DESC(hybrid_percent,
		 "share of a batch that the CPU copies while it would wait, 0 to 50 (default: 0)");

#ifdef PTDMA_PATCHED
static int ptdma_offloading_set(const char *val, const struct kernel_param *kp)
{
	bool on;
	int rc;

	rc = kstrtobool(val, &on);
	if (rc)
		return rc;
	guard(mutex)(&ptdma_params_lock);
	if (ptdma_closed)
		return -ENODEV;
	if (!ptdma_system) {
		ptdma_early_offloading = on;
		return 0;
	}
	if (on)
		return ptdma_migrator_start();
	ptdma_migrator_stop();
	return 0;
}

static int ptdma_offloading_get(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%d\n", ptdma_system ? ptdma_migrator_active() :
						      ptdma_early_offloading);
}

static const struct kernel_param_ops ptdma_offloading_ops = {
	.set = ptdma_offloading_set,
	.get = ptdma_offloading_get,
};
module_param_cb(offloading, &ptdma_offloading_ops, NULL, 0644);
MODULE_PARM_DESC(offloading, "be the kernel's migrator, 0 or 1 (default: 0)");

static int ptdma_reasons_set(const char *val, const struct kernel_param *kp)
{
	unsigned long mask;
	int rc;

	/* No name at all is more likely a mistake than a wish for "none". */
	if (!*skip_spaces(val))
		return -EINVAL;
	rc = migrate_offload_reason_mask_parse(val, &mask);
	return rc ?: ptdma_migrator_set_reasons(mask);
}

static int ptdma_reasons_get(char *buf, const struct kernel_param *kp)
{
	int len;

	len = migrate_offload_reason_mask_format(buf, PAGE_SIZE - 1,
						 ptdma_migrator_reasons());
	return len + sysfs_emit_at(buf, len, "\n");
}

static const struct kernel_param_ops ptdma_reasons_ops = {
	.set = ptdma_reasons_set,
	.get = ptdma_reasons_get,
};
module_param_cb(reason_mask, &ptdma_reasons_ops, NULL, 0644);
MODULE_PARM_DESC(reason_mask,
		 "reasons of migration to copy for: names separated by commas, all, none, or a number (default: all)");
#endif /* PTDMA_PATCHED */

static int ptdma_selftest_set(const char *val, const struct kernel_param *kp)
{
	bool on;
	int rc;

	rc = kstrtobool(val, &on);
	if (rc || !on)
		return rc;
	guard(mutex)(&ptdma_params_lock);
	if (ptdma_closed)
		return -ENODEV;
	if (!ptdma_system) {
		ptdma_early_selftest = true;
		return 0;
	}
	return ptdma_selftest();
}

static int ptdma_selftest_get(char *buf, const struct kernel_param *kp)
{
	return ptdma_selftest_result(buf);
}

static const struct kernel_param_ops ptdma_selftest_ops = {
	.set = ptdma_selftest_set,
	.get = ptdma_selftest_get,
};
module_param_cb(selftest, &ptdma_selftest_ops, NULL, 0644);
MODULE_PARM_DESC(selftest,
		 "write 1: copy and compare through each channel; read: the results");

static int ptdma_total_get(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%lld\n", atomic64_read(kp->arg));
}

static const struct kernel_param_ops ptdma_total_ops = {
	.get = ptdma_total_get,
};

module_param_cb(folios_migrated, &ptdma_total_ops,
		&ptdma_totals.folios_migrated, 0444);
MODULE_PARM_DESC(folios_migrated, "folios copied (read only)");

module_param_cb(folios_failures, &ptdma_total_ops,
		&ptdma_totals.folios_failures, 0444);
MODULE_PARM_DESC(folios_failures,
		 "folios of accepted batches that were left to the CPU (read only)");

module_param_cb(bytes_migrated, &ptdma_total_ops, &ptdma_totals.bytes, 0444);
MODULE_PARM_DESC(bytes_migrated, "bytes copied (read only)");

module_param_cb(batches, &ptdma_total_ops, &ptdma_totals.batches, 0444);
MODULE_PARM_DESC(batches, "batches accepted (read only)");

module_param_cb(batches_declined, &ptdma_total_ops,
		&ptdma_totals.declined, 0444);
MODULE_PARM_DESC(batches_declined,
		 "batches left to the CPU for their size, or because no channel is in service (read only)");

module_param_cb(batches_busy, &ptdma_total_ops, &ptdma_totals.busy, 0444);
MODULE_PARM_DESC(batches_busy,
		 "batches left to the CPU for want of resources (read only)");

module_param_cb(folios_quarantined, &ptdma_total_ops,
		&ptdma_totals.quarantined, 0444);
MODULE_PARM_DESC(folios_quarantined,
		 "folios that an engine may still write to (read only)");

static int ptdma_memory_get(char *buf, const struct kernel_param *kp)
{
	guard(mutex)(&ptdma_params_lock);
	if (ptdma_closed || !ptdma_system)
		return -ENODEV;
	return sysfs_emit(buf, "%zu\n", ptdma_rs_system_bytes() +
			  atomic_long_read(&ptdma_pool_memory) +
			  ptdma_chans_bytes());
}

static const struct kernel_param_ops ptdma_memory_ops = {
	.get = ptdma_memory_get,
};
module_param_cb(memory_bytes, &ptdma_memory_ops, NULL, 0444);
MODULE_PARM_DESC(memory_bytes,
		 "memory of rings, batches and state, in bytes (read only)");

/**
 * ptdma_params_init - Put parameters of the command line into effect.
 * @system: The system that parameters refer to from here on.
 *
 * Called before functions are bound.
 *
 * Return: 0 or a negative error code.
 */
int ptdma_params_init(struct ptdma_system *system)
{
	guard(mutex)(&ptdma_params_lock);
	ptdma_system = system;
	return ptdma_early_set ?
		ptdma_rs_settings_set(ptdma_system, &ptdma_early) : 0;
}

/**
 * ptdma_params_start - Start the self-test and offloading, if the command line says so.
 *
 * Called after functions were bound.
 *
 * Return: 0 or a negative error code.
 */
int ptdma_params_start(void)
{
	int rc = 0;

	if (ptdma_early_selftest)
		rc = ptdma_selftest();
	if (!rc && ptdma_early_offloading)
		rc = ptdma_migrator_start();
	return rc;
}

/**
 * ptdma_params_exit - End the effect of all parameters.
 */
void ptdma_params_exit(void)
{
	guard(mutex)(&ptdma_params_lock);
	ptdma_closed = true;
}
