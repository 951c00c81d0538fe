// SPDX-License-Identifier: GPL-2.0-only
/*
 * Livepatch: migration on an unpatched kernel copies large folios with the engines
 *
 * Replaces the function that copies a folio that migrates.  Every caller of migration
 * profits.  Small folios, folios of files, and callers that must not sleep take the
 * kernel's own way.  An engine that cannot be stopped costs the folio a reference
 * and fails its migration: the kernel undoes it, and the memory stays in quarantine.
 *
 * The livepatch that was loaded last owns a function.  This one taints the kernel, as
 * each does.
 */
#include <linux/highmem.h>
#include <linux/livepatch.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/sched.h>

#include "ptdma_folio.h"

/*
 * The test for a small folio comes first: it is all that migration pays that does not
 * profit.  Folios of files may be copied in atomic context, with locks held.
 */
static inline bool ptdma_may_copy(struct folio *src)
{
	return folio_test_large(src) && folio_test_anon(src) && !in_atomic() &&
	       !irqs_disabled();
}

#if PTDMA_KERNEL >= 6011
/* The kernel's folio_mc_copy(), with the engines first. */
static int ptdma_folio_mc_copy(struct folio *dst, struct folio *src)
{
	long nr = folio_nr_pages(src);
	long i = 0;

	if (ptdma_may_copy(src)) {
		/* This function is not told whether migration is asynchronous. */
		int rc = ptdma_copy_folio(dst, src, true);

		if (rc != -EAGAIN)
			return rc == -EOWNERDEAD ? -EIO : rc;
	}

	for (;;) {
		if (copy_mc_highpage(folio_page(dst, i), folio_page(src, i)))
			return -EHWPOISON;
		if (++i == nr)
			break;
		cond_resched();
	}
	return 0;
}

static struct klp_func ptdma_funcs[] = {
	{
		.old_name = "folio_mc_copy",
		.new_func = ptdma_folio_mc_copy,
	},
	{ }
};
#else
/*
 * This kernel moves the mapping first, and then cannot fail any more.  So engines copy
 * before that, while the references are those that the mapping will expect: nobody
 * has the folio who could write to it.
 */
static bool ptdma_is_ours(struct address_space *mapping, struct folio *src,
			  int extra_count)
{
	int expected = 1 + extra_count;

	if (mapping)
		expected += folio_nr_pages(src) + folio_test_private(src);
	return folio_ref_count(src) == expected;
}

static int ptdma_migrate_folio_extra(struct address_space *mapping,
				     struct folio *dst, struct folio *src,
				     enum migrate_mode mode, int extra_count)
{
	bool copied = mode == MIGRATE_SYNC_NO_COPY;
	int rc;

	/* As in the kernel's own: writeback must be complete. */
	BUG_ON(folio_test_writeback(src));

	if (!copied && ptdma_may_copy(src) &&
	    ptdma_is_ours(mapping, src, extra_count)) {
		rc = ptdma_copy_folio(dst, src, mode != MIGRATE_ASYNC);
		if (rc == -EOWNERDEAD)
			return -EIO;
		copied = !rc;
	}

	rc = folio_migrate_mapping(mapping, dst, src, extra_count);
	if (rc != MIGRATEPAGE_SUCCESS)
		return rc;
	if (copied)
		folio_migrate_flags(dst, src);
	else
		folio_migrate_copy(dst, src);
	return MIGRATEPAGE_SUCCESS;
}

static int ptdma_migrate_folio(struct address_space *mapping, struct folio *dst,
			       struct folio *src, enum migrate_mode mode)
{
	return ptdma_migrate_folio_extra(mapping, dst, src, mode, 0);
}

/* Both: the compiler may have inlined one into the other. */
static struct klp_func ptdma_funcs[] = {
	{
		.old_name = "migrate_folio",
		.new_func = ptdma_migrate_folio,
	},
	{
		.old_name = "migrate_folio_extra",
		.new_func = ptdma_migrate_folio_extra,
	},
	{ }
};
#endif

static struct klp_object ptdma_objs[] = {
	{
		/* No name: the kernel itself. */
		.funcs = ptdma_funcs,
	},
	{ }
};

static struct klp_patch ptdma_patch = {
	.mod = THIS_MODULE,
	.objs = ptdma_objs,
};

static int __init ptdma_livepatch_init(void)
{
	return klp_enable_patch(&ptdma_patch);
}

/* Runs once the livepatch is disabled, and nobody is inside of it. */
static void __exit ptdma_livepatch_exit(void)
{
}

module_init(ptdma_livepatch_init);
module_exit(ptdma_livepatch_exit);

MODULE_DESCRIPTION("Copies migrating folios with AMD PTDMA engines, on unpatched kernels");
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
