// SPDX-License-Identifier: GPL-2.0-only
/*
 * testtier - make a node the slower one, for tests of demotion
 *
 * The kernel sorts nodes into tiers by what the firmware says of their memory, when a
 * node gets its first memory.  The emulated firmware says nothing, so this module says
 * it, and has the node lose and get its memory as far as the tiers are concerned.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kprobes.h>
#include <linux/memory-tiers.h>
#include <linux/module.h>
#include <linux/node.h>
#include <linux/notifier.h>

/* Functions begin at multiples of this; a probe may sit behind a landing pad. */
#define TESTTIER_ALIGN	16
/* So many times as slow as what every node is taken for: a tier of its own. */
#define TESTTIER_FACTOR	5

static int node = 1;
module_param(node, int, 0444);

static int testtier_distance(struct notifier_block *nb, unsigned long nid,
			     void *data)
{
	int *distance = data;

	if (nid != node)
		return NOTIFY_OK;
	*distance = MEMTIER_ADISTANCE_DRAM * TESTTIER_FACTOR;
	return NOTIFY_STOP;
}

static struct notifier_block testtier_nb = {
	.notifier_call = testtier_distance,
	/* Before those who know the machine. */
	.priority = INT_MAX,
};

static int __init testtier_init(void)
{
	struct kprobe probe = { .symbol_name = "memtier_hotplug_callback" };
	struct node_notify change = { .nid = node };
	notifier_fn_t tiers;
	int rc;

	if (node < 0 || node >= MAX_NUMNODES || !node_state(node, N_MEMORY))
		return -EINVAL;
	rc = register_kprobe(&probe);
	if (rc)
		return rc;
	tiers = (notifier_fn_t)round_down((unsigned long)probe.addr,
					  TESTTIER_ALIGN);
	unregister_kprobe(&probe);

	rc = register_mt_adistance_algorithm(&testtier_nb);
	if (rc)
		return rc;
	tiers(NULL, NODE_REMOVED_LAST_MEMORY, &change);
	/* Whoever has given the node its kind of memory is not asked. */
	clear_node_memory_type(node, NULL);
	tiers(NULL, NODE_ADDED_FIRST_MEMORY, &change);
	unregister_mt_adistance_algorithm(&testtier_nb);

	return 0;
}

static void __exit testtier_exit(void)
{
}

module_init(testtier_init);
module_exit(testtier_exit);

MODULE_DESCRIPTION("Slower node for tests of demotion");
MODULE_LICENSE("GPL");
