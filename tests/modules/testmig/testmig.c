// SPDX-License-Identifier: GPL-2.0-only
/*
 * testmig - a migrator for tests, which does on demand what none should do
 *
 * It copies with the CPU, and /sys/kernel/testmig/mode says how well.  User memory
 * must be intact in every mode.  A mode that leaves a folio to the core first fills
 * the destination with rubbish, so that a copy that the core forgets is noticed.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/cleanup.h>
#include <linux/delay.h>
#include <linux/highmem.h>
#include <linux/kobject.h>
#include <linux/kstrtox.h>
#include <linux/list.h>
#include <linux/migrate_copy_offload.h>
#include <linux/mm.h>
#include <linux/migrate_mode.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#define TESTMIG_RUBBISH		0xa5

/*
 * Every Nth registration waits for a batch to start.  On a debug kernel a batch
 * outlasts many registrations, so without this few of them would overlap one.
 */
#define TESTMIG_CHURN_MEET	8
/* In case that nobody migrates. */
#define TESTMIG_CHURN_MEET_MS	1000

/* Of so many sources of a batch one goes bad: small pages are lost by it. */
#define TESTMIG_POISON_EACH	64
/* A batch has no more large folios than 512 / 4, of which it marks two. */
#define TESTMIG_BAD_TAILS	16

enum testmig_mode {
	TESTMIG_COPY,		/* copy and mark everything */
	TESTMIG_REFUSE,		/* say no in should_batch() */
	TESTMIG_DECLINE,	/* copy nothing, report success */
	TESTMIG_FAIL,		/* copy nothing, report an error */
	TESTMIG_LIE,		/* copy nothing, mark everything, report an error */
	TESTMIG_HALF,		/* copy and mark every other folio */
	TESTMIG_LATE,		/* return after a delay */
	TESTMIG_ABANDON,	/* write to the destinations after returning */
	TESTMIG_POISON,		/* sources go bad after the copy, which is wrong */
};

static const char * const testmig_modes[] = {
	[TESTMIG_COPY] = "copy",
	[TESTMIG_REFUSE] = "refuse",
	[TESTMIG_DECLINE] = "decline",
	[TESTMIG_FAIL] = "fail",
	[TESTMIG_LIE] = "lie",
	[TESTMIG_HALF] = "half",
	[TESTMIG_LATE] = "late",
	[TESTMIG_ABANDON] = "abandon",
	[TESTMIG_POISON] = "poison",
};

/*
 * With pin=0 the migrator has no owner: the module can be removed while it is
 * registered, and unregisters in its exit function.
 */
static bool pin = true;
module_param(pin, bool, 0444);

/* Register for all reasons, not only for those that nobody has to ask for. */
static bool all_reasons;
module_param(all_reasons, bool, 0644);

/* Register with the call that is not told the mode and the reason. */
static bool old_call;
module_param(old_call, bool, 0644);

static enum testmig_mode mode;
static unsigned int delay_ms = 20;
static bool active;
static const struct migrator *active_migrator;
static DEFINE_MUTEX(testmig_mutex); /* active, active_migrator */

enum testmig_counter {
	TESTMIG_CALLS,		/* of offload_copy() */
	TESTMIG_FOLIOS,		/* offered to it */
	TESTMIG_COPIED,		/* copied by it */
	TESTMIG_ASKED,		/* calls of should_batch() */
	TESTMIG_ASYNC,		/* batches whose caller must not sleep */
	TESTMIG_POISONED,	/* sources that were marked as poisoned */
	TESTMIG_MAX_INSIDE,	/* calls of offload_copy() at the same time */
	TESTMIG_NR_COUNTERS,
};

static atomic64_t counters[TESTMIG_NR_COUNTERS];
static int last_reason = MR_TYPES;	/* of copy_batch(); MR_TYPES: not told */
static atomic_t inside;
static DECLARE_WAIT_QUEUE_HEAD(batch_began);

static atomic_t late_writers;
static DECLARE_WAIT_QUEUE_HEAD(late_writers_done);

static void testmig_rubbish(struct folio *folio)
{
	long i;

	for (i = 0; i < folio_nr_pages(folio); i++) {
		memset_page(folio_page(folio, i), 0, TESTMIG_RUBBISH,
			    PAGE_SIZE);
		cond_resched();
	}
}

/* Somebody who writes to destinations that nobody should use any more. */
struct testmig_late_write {
	struct delayed_work work;
	unsigned int nr;
	struct folio *folios[] __counted_by(nr);
};

static void testmig_write_late(struct work_struct *work)
{
	struct testmig_late_write *late = container_of(to_delayed_work(work),
						       struct testmig_late_write,
						       work);
	unsigned int i;

	for (i = 0; i < late->nr; i++) {
		testmig_rubbish(late->folios[i]);
		folio_put(late->folios[i]);
	}
	kvfree(late);
	if (atomic_dec_and_test(&late_writers))
		wake_up(&late_writers_done);
}

static struct workqueue_struct *testmig_wq;

static int testmig_abandon(struct list_head *dst_list, unsigned int folio_cnt)
{
	struct testmig_late_write *late;
	struct folio *dst;

	late = kvzalloc_flex(*late, folios, folio_cnt);
	if (!late)
		return -ENOMEM;

	INIT_DELAYED_WORK(&late->work, testmig_write_late);
	late->nr = folio_cnt;
	folio_cnt = 0;
	list_for_each_entry(dst, dst_list, lru) {
		folio_get(dst);
		late->folios[folio_cnt++] = dst;
	}
	atomic_inc(&late_writers);
	queue_delayed_work(testmig_wq, &late->work,
			   msecs_to_jiffies(READ_ONCE(delay_ms)));

	return -EOWNERDEAD;
}

/* Tail pages that were marked: freed ones are used again, and must not be bad then. */
static struct page *bad_tails[TESTMIG_BAD_TAILS];
static unsigned int nr_bad_tails;
static DEFINE_MUTEX(bad_tails_mutex); /* bad_tails, nr_bad_tails */

static void testmig_heal_tails(void)
{
	guard(mutex)(&bad_tails_mutex);
	while (nr_bad_tails)
		ClearPageHWPoison(bad_tails[--nr_bad_tails]);
}

/*
 * The memory of @src was found bad while, or after, an engine read it: the engine
 * has delivered something else, and does not know.  memory_failure() does to an
 * isolated folio what is done here: it marks the page, and no more.
 *
 * A small page with the mark is not used again once it was freed.
 */
static void testmig_poison(struct folio *dst, struct folio *src)
{
	guard(mutex)(&bad_tails_mutex);
	if (folio_test_large(src)) {
		if (nr_bad_tails == TESTMIG_BAD_TAILS)
			return;
		bad_tails[nr_bad_tails] = folio_page(src, folio_nr_pages(src) - 1);
		SetPageHWPoison(bad_tails[nr_bad_tails++]);
	} else {
		SetPageHWPoison(&src->page);
	}
	testmig_rubbish(dst);
	folio_mark_content_copied(dst);
	atomic64_inc(&counters[TESTMIG_POISONED]);
}

static int testmig_copy(struct list_head *dst_list, struct list_head *src_list,
			enum testmig_mode how)
{
	struct folio *src, *dst;
	bool skip = false;
	unsigned int nth = 0;

	dst = list_first_entry(dst_list, struct folio, lru);
	list_for_each_entry(src, src_list, lru) {
		cond_resched();
		skip = how == TESTMIG_HALF ? !skip :
		       how != TESTMIG_COPY && how != TESTMIG_LATE &&
		       how != TESTMIG_POISON;
		if (how == TESTMIG_POISON && !(nth++ % TESTMIG_POISON_EACH)) {
			testmig_poison(dst, src);
		} else if (skip) {
			testmig_rubbish(dst);
			if (how == TESTMIG_LIE)
				folio_mark_content_copied(dst);
		} else if (!folio_mc_copy(dst, src)) {
			folio_mark_content_copied(dst);
			atomic64_inc(&counters[TESTMIG_COPIED]);
		}
		dst = list_next_entry(dst, lru);
	}

	return how == TESTMIG_FAIL || how == TESTMIG_LIE ? -EIO : 0;
}

static int testmig_copy_batch(const struct migrate_copy_batch *batch)
{
	struct list_head *dst = batch->dst, *src = batch->src;
	unsigned int folio_cnt = batch->nr_folios;
	enum testmig_mode how = READ_ONCE(mode);
	int now, rc;

	/* Others see to it that nobody is in here when the module is gone. */
	now = atomic_inc_return(&inside);
	if (now > atomic64_read(&counters[TESTMIG_MAX_INSIDE]))
		atomic64_set(&counters[TESTMIG_MAX_INSIDE], now);
	atomic64_inc(&counters[TESTMIG_CALLS]);
	atomic64_add(folio_cnt, &counters[TESTMIG_FOLIOS]);
	if (batch->mode == MIGRATE_ASYNC)
		atomic64_inc(&counters[TESTMIG_ASYNC]);
	WRITE_ONCE(last_reason, batch->reason);
	wake_up(&batch_began);

	testmig_heal_tails();
	if (WARN_ON_ONCE(list_count_nodes(dst) != folio_cnt ||
			 list_count_nodes(src) != folio_cnt))
		rc = -EINVAL;
	else if (how == TESTMIG_ABANDON)
		rc = testmig_abandon(dst, folio_cnt);
	else
		rc = testmig_copy(dst, src, how);
	if (how == TESTMIG_LATE)
		msleep(READ_ONCE(delay_ms));

	atomic_dec(&inside);
	return rc;
}

/* The call that the fourth posting has: one that is not told the mode. */
static int testmig_offload_copy(struct list_head *dst, struct list_head *src,
				unsigned int folio_cnt)
{
	const struct migrate_copy_batch batch = {
		.dst = dst,
		.src = src,
		.nr_folios = folio_cnt,
		.mode = MIGRATE_SYNC,
		.reason = MR_TYPES,
	};

	return testmig_copy_batch(&batch);
}

static bool testmig_should_batch(int reason)
{
	atomic64_inc(&counters[TESTMIG_ASKED]);
	return READ_ONCE(mode) != TESTMIG_REFUSE;
}

static struct migrator testmig_migrator = {
	.name = "testmig",
	.copy_batch = testmig_copy_batch,
	.should_batch = testmig_should_batch,
};

/* One who comes second, and is not the owner. */
static struct migrator testmig_other = {
	.name = "testmig-other",
	.offload_copy = testmig_offload_copy,
};

/* Register and unregister this many times. */
static int testmig_churn(unsigned int times)
{
	unsigned int i;
	s64 calls;
	int rc;

	for (i = 0; i < times; i++) {
		calls = atomic64_read(&counters[TESTMIG_CALLS]);
		/* Both pairs of names. */
		rc = i & 1 ? migrate_offload_start(&testmig_migrator) :
			     migrate_offload_register(&testmig_migrator,
						      MIGRATE_OFFLOAD_ALL_REASONS);
		if (rc)
			return rc;
		if (i % TESTMIG_CHURN_MEET)
			/* Often long enough for a batch to begin. */
			usleep_range(2000, 4000);
		else
			wait_event_timeout(batch_began,
					   atomic64_read(&counters[TESTMIG_CALLS]) != calls,
					   msecs_to_jiffies(TESTMIG_CHURN_MEET_MS));
		rc = i & 1 ? migrate_offload_stop(&testmig_migrator) :
			     migrate_offload_unregister(&testmig_migrator);
		if (rc)
			return rc;
		if (WARN_ON_ONCE(atomic_read(&inside)))
			return -EBUSY;
		if (signal_pending(current))
			return -EINTR;
	}

	return 0;
}

/* Returns 1 and says so if a result is not the expected one. */
static int testmig_expect(const char *what, int rc, int expected)
{
	if (rc == expected)
		return 0;
	pr_err("%s is %d, expected %d\n", what, rc, expected);
	return 1;
}

#define EXPECT(what, expected)	testmig_expect(#what, what, expected)

/* The rules of registration, with nobody registered before. */
static int testmig_rules(void)
{
	struct migrator nothing = { .name = "nothing" };
	struct migrator both = {
		.name = "both",
		.offload_copy = testmig_offload_copy,
		.copy_batch = testmig_copy_batch,
	};
	unsigned long mask = 0;
	char text[128];
	int i, bad = 0;

	bad += EXPECT(migrate_offload_stop(&testmig_migrator), -ENODEV);
	bad += EXPECT(migrate_offload_start(NULL), -EINVAL);
	bad += EXPECT(migrate_offload_start(&nothing), -EINVAL);
	bad += EXPECT(migrate_offload_start(&both), -EINVAL);
	bad += EXPECT(migrate_offload_register(&testmig_migrator, BIT(MR_NEVER)),
	       -EINVAL);
	bad += EXPECT(migrate_offload_start(&testmig_migrator), 0);
	bad += EXPECT(migrate_offload_start(&testmig_migrator), -EBUSY);
	bad += EXPECT(migrate_offload_start(&testmig_other), -EBUSY);
	bad += EXPECT(migrate_offload_stop(&testmig_other), -EPERM);
	bad += EXPECT(migrate_offload_set_reason_mask(&testmig_other, 0), -EPERM);
	bad += EXPECT(migrate_offload_set_reason_mask(&testmig_migrator, 0), 0);
	bad += EXPECT(migrate_offload_stop(&testmig_migrator), 0);
	bad += EXPECT(migrate_offload_stop(&testmig_migrator), -ENODEV);
	bad += EXPECT(migrate_offload_start(&testmig_other), 0);
	bad += EXPECT(migrate_offload_stop(&testmig_other), 0);

	for (i = 0; i < MR_NEVER; i++) {
		migrate_offload_reason_mask_format(text, sizeof(text), BIT(i));
		bad += EXPECT(migrate_offload_reason_mask_parse(text, &mask), 0);
		bad += EXPECT(mask == BIT(i), true);
	}
	bad += EXPECT(migrate_offload_reason_mask_parse("demotion, compaction\n",
						 &mask), 0);
	bad += EXPECT(mask == (BIT(MR_DEMOTION) | BIT(MR_COMPACTION)), true);
	bad += EXPECT(migrate_offload_reason_mask_parse("all", &mask), 0);
	bad += EXPECT(mask == MIGRATE_OFFLOAD_ALL_REASONS, true);
	bad += EXPECT(mask & ~MIGRATE_OFFLOAD_DEFAULT_REASONS,
		      BIT(MR_MEMORY_FAILURE));
	bad += EXPECT(migrate_offload_reason_mask_parse("0x9", &mask), 0);
	bad += EXPECT(mask == 0x9, true);
	bad += EXPECT(migrate_offload_reason_mask_parse("none", &mask), 0);
	bad += EXPECT(mask == 0, true);
	bad += EXPECT(migrate_offload_reason_mask_parse("never_migrated", &mask),
	       -EINVAL);
	bad += EXPECT(migrate_offload_reason_mask_parse("0x100000", &mask), -EINVAL);

	return bad ? -EINVAL : 0;
}

/*
 * /sys/kernel/testmig
 */
static ssize_t mode_show(struct kobject *kobj, struct kobj_attribute *attr,
			 char *buf)
{
	return sysfs_emit(buf, "%s\n", testmig_modes[READ_ONCE(mode)]);
}

static ssize_t mode_store(struct kobject *kobj, struct kobj_attribute *attr,
			  const char *buf, size_t count)
{
	int i = sysfs_match_string(testmig_modes, buf);

	if (i < 0)
		return i;
	WRITE_ONCE(mode, i);

	return count;
}

static ssize_t active_show(struct kobject *kobj, struct kobj_attribute *attr,
			   char *buf)
{
	return sysfs_emit(buf, "%d\n", READ_ONCE(active));
}

static ssize_t active_store(struct kobject *kobj, struct kobj_attribute *attr,
			    const char *buf, size_t count)
{
	bool on;
	int rc;

	rc = kstrtobool(buf, &on);
	if (rc)
		return rc;

	guard(mutex)(&testmig_mutex);
	if (on == active)
		return count;
	if (on)
		active_migrator = READ_ONCE(old_call) ? &testmig_other :
							&testmig_migrator;
	if (on && READ_ONCE(all_reasons))
		rc = migrate_offload_register(active_migrator,
					      MIGRATE_OFFLOAD_ALL_REASONS);
	else if (on)
		rc = migrate_offload_start(active_migrator);
	else
		rc = migrate_offload_stop(active_migrator);
	if (rc)
		return rc;
	WRITE_ONCE(active, on);
	testmig_heal_tails();

	return count;
}

static ssize_t delay_ms_store(struct kobject *kobj, struct kobj_attribute *attr,
			      const char *buf, size_t count)
{
	unsigned int ms;
	int rc;

	rc = kstrtouint(buf, 0, &ms);
	if (rc)
		return rc;
	WRITE_ONCE(delay_ms, ms);

	return count;
}

static ssize_t churn_store(struct kobject *kobj, struct kobj_attribute *attr,
			   const char *buf, size_t count)
{
	unsigned int times;
	int rc;

	rc = kstrtouint(buf, 0, &times);
	if (rc)
		return rc;

	guard(mutex)(&testmig_mutex);
	return testmig_churn(times) ?: count;
}

static ssize_t rules_show(struct kobject *kobj, struct kobj_attribute *attr,
			  char *buf)
{
	int rc;

	guard(mutex)(&testmig_mutex);
	rc = testmig_rules();

	return rc ?: sysfs_emit(buf, "ok\n");
}

static ssize_t last_reason_show(struct kobject *kobj,
				struct kobj_attribute *attr, char *buf)
{
	int reason = READ_ONCE(last_reason);
	int len;

	if (reason < 0 || reason >= MR_NEVER)
		return sysfs_emit(buf, "none\n");
	len = migrate_offload_reason_mask_format(buf, PAGE_SIZE - 1, BIT(reason));
	return len + sysfs_emit_at(buf, len, "\n");
}

static ssize_t counter_show(struct kobject *kobj, struct kobj_attribute *attr,
			    char *buf);

static struct kobj_attribute counter_attrs[TESTMIG_NR_COUNTERS] = {
	[TESTMIG_CALLS] = __ATTR(calls, 0444, counter_show, NULL),
	[TESTMIG_FOLIOS] = __ATTR(folios, 0444, counter_show, NULL),
	[TESTMIG_COPIED] = __ATTR(copied, 0444, counter_show, NULL),
	[TESTMIG_ASKED] = __ATTR(asked, 0444, counter_show, NULL),
	[TESTMIG_ASYNC] = __ATTR(async, 0444, counter_show, NULL),
	[TESTMIG_POISONED] = __ATTR(poisoned, 0444, counter_show, NULL),
	[TESTMIG_MAX_INSIDE] = __ATTR(max_inside, 0444, counter_show, NULL),
};

static ssize_t counter_show(struct kobject *kobj, struct kobj_attribute *attr,
			    char *buf)
{
	return sysfs_emit(buf, "%lld\n",
			  atomic64_read(&counters[attr - counter_attrs]));
}

static struct kobj_attribute mode_attr = __ATTR_RW(mode);
static struct kobj_attribute active_attr = __ATTR_RW(active);
static struct kobj_attribute delay_ms_attr = __ATTR_WO(delay_ms);
static struct kobj_attribute churn_attr = __ATTR_WO(churn);
static struct kobj_attribute rules_attr = __ATTR_RO(rules);
static struct kobj_attribute last_reason_attr = __ATTR_RO(last_reason);

static struct attribute *testmig_attrs[] = {
	&mode_attr.attr,
	&active_attr.attr,
	&delay_ms_attr.attr,
	&churn_attr.attr,
	&rules_attr.attr,
	&last_reason_attr.attr,
	&counter_attrs[TESTMIG_CALLS].attr,
	&counter_attrs[TESTMIG_FOLIOS].attr,
	&counter_attrs[TESTMIG_COPIED].attr,
	&counter_attrs[TESTMIG_ASKED].attr,
	&counter_attrs[TESTMIG_ASYNC].attr,
	&counter_attrs[TESTMIG_POISONED].attr,
	&counter_attrs[TESTMIG_MAX_INSIDE].attr,
	NULL
};

static const struct attribute_group testmig_attr_group = {
	.attrs = testmig_attrs,
};

static struct kobject *testmig_kobj;

static int __init testmig_init(void)
{
	int rc;

	if (pin) {
		testmig_migrator.owner = THIS_MODULE;
		testmig_other.owner = THIS_MODULE;
	}

	testmig_wq = alloc_workqueue("testmig", WQ_UNBOUND, 0);
	if (!testmig_wq)
		return -ENOMEM;

	testmig_kobj = kobject_create_and_add("testmig", kernel_kobj);
	if (!testmig_kobj) {
		rc = -ENOMEM;
		goto err_wq;
	}
	rc = sysfs_create_group(testmig_kobj, &testmig_attr_group);
	if (rc)
		goto err_kobj;

	return 0;

err_kobj:
	kobject_put(testmig_kobj);
err_wq:
	destroy_workqueue(testmig_wq);
	return rc;
}

static void __exit testmig_exit(void)
{
	kobject_put(testmig_kobj);
	if (active)
		migrate_offload_stop(active_migrator);
	WARN_ON(atomic_read(&inside));
	/* Delayed work that waits for its time is not drained. */
	wait_event(late_writers_done, !atomic_read(&late_writers));
	destroy_workqueue(testmig_wq);
}

module_init(testmig_init);
module_exit(testmig_exit);

MODULE_DESCRIPTION("Misbehaving migrator for tests");
MODULE_LICENSE("GPL");
