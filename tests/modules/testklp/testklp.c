// SPDX-License-Identifier: GPL-2.0-only
/*
 * testklp - a livepatch of folio_mc_copy() that does what the kernel does
 *
 * What it adds to a copy is what any livepatch adds: ftrace's trampoline and the way
 * to the new function.  What ptdma_livepatch adds beyond that is its own.
 */
#include <linux/highmem.h>
#include <linux/livepatch.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>

static int testklp_folio_mc_copy(struct folio *dst, struct folio *src)
{
	long nr = folio_nr_pages(src);
	long i = 0;

	for (;;) {
		if (copy_mc_highpage(folio_page(dst, i), folio_page(src, i)))
			return -EHWPOISON;
		if (++i == nr)
			break;
		cond_resched();
	}
	return 0;
}

static struct klp_func testklp_funcs[] = {
	{
		.old_name = "folio_mc_copy",
		.new_func = testklp_folio_mc_copy,
	},
	{ }
};

static struct klp_object testklp_objs[] = {
	{
		.funcs = testklp_funcs,
	},
	{ }
};

static struct klp_patch testklp_patch = {
	.mod = THIS_MODULE,
	.objs = testklp_objs,
};

static int __init testklp_init(void)
{
	return klp_enable_patch(&testklp_patch);
}

static void __exit testklp_exit(void)
{
}

module_init(testklp_init);
module_exit(testklp_exit);

MODULE_DESCRIPTION("Livepatch of folio_mc_copy() that changes nothing, for tests");
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
