// SPDX-License-Identifier: GPL-2.0-only
/*
 * DMA core batch migrator: page migration copies with any dmaengine channel
 *
 * The published strategy for offloading the copy, as the thing to compare with:
 * for each batch it takes up to nr_dma_chan channels that can copy memory, deals
 * the folios out to them by number, maps them with one scatter table for each
 * direction and channel, gives the channel one descriptor for each mapped
 * segment, and sleeps until all callbacks have been seen.  Whatever does not
 * work out is left to the CPU.
 *
 * Three things are done differently, none of which costs time:
 *
 * - The channels are requested when offloading is switched on, not for every
 *   batch.  Requesting takes a lock of dmaengine under which memory is allocated;
 *   when that allocation compacts memory, it comes here.
 * - Source and destination may be merged into segments of different sizes by an
 *   IOMMU.  The segments are walked side by side, instead of giving up.
 * - A channel that does not answer in time is not terminated, because not every
 *   driver stops the hardware then (ptdma does not), and a late write would hit
 *   a page that has been given to somebody else.  The channel is set aside with
 *   everything it may still use, until it does answer.
 *
 * A result is as good as the provider's report: the stock ptdma driver reports
 * success for descriptors that have failed, so with it such a folio counts as
 * copied.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/bitmap.h>
#include <linux/cleanup.h>
#include <linux/completion.h>
#include <linux/dma-mapping.h>
#include <linux/dmaengine.h>
#include <linux/kobject.h>
#include <linux/kstrtox.h>
#include <linux/migrate_copy_offload.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/scatterlist.h>
#include <linux/sysfs.h>
#include <linux/workqueue.h>

/* Twice the number of PTDMA functions of a two-socket EPYC. */
#define DCBM_MAX_CHANNELS	32

/* A 2 MiB copy takes less than a millisecond; this is for dead hardware. */
#define DCBM_TIMEOUT_MS		10000

static unsigned int nr_dma_chan = 1;
static unsigned int timeout_ms = DCBM_TIMEOUT_MS;
static unsigned long reason_mask = MIGRATE_OFFLOAD_ALL_REASONS;
static bool offloading;

/*
 * For offloading, reason_mask, and which channels we have.  Not to be taken in
 * the copy: those who hold it wait for memory, and for copies to end.
 */
static DEFINE_MUTEX(dcbm_mutex);

static atomic64_t folios_migrated;
static atomic64_t folios_failures;
static atomic_t channels_abandoned;

static struct workqueue_struct *dcbm_wq;

/* Who has to clean up: the one who waits, or the last callback. */
enum dcbm_state {
	DCBM_RUNNING,
	DCBM_DONE,
	DCBM_ABANDONED,
};

/**
 * struct dcbm_share - A channel, and what it does for a batch.
 * @chan: The channel, NULL if there is none in this place.
 * @dst: First destination folio; the following ones are on the list.
 * @folio_cnt: Number of folios.
 * @src_sgt: Mapped sources.
 * @dst_sgt: Mapped destinations.
 * @mapped: Both tables are mapped.
 * @pending: Descriptors on their way, and one while they are submitted.
 * @failed: A descriptor could not be submitted, or has failed.
 * @state: An enum dcbm_state.
 * @done: No descriptor is on its way.
 * @cleanup: Takes a share back that had been set aside.
 *
 * All but @chan belongs to the one who has claimed the share, see dcbm_busy.
 */
struct dcbm_share {
	struct dma_chan *chan;
	struct folio *dst;
	unsigned int folio_cnt;
	struct sg_table src_sgt;
	struct sg_table dst_sgt;
	bool mapped;
	atomic_t pending;
	bool failed;
	atomic_t state;
	struct completion done;
	struct work_struct cleanup;
};

static struct dcbm_share dcbm_shares[DCBM_MAX_CHANNELS];

/* Shares that work on a batch, were set aside, or are being released. */
static DECLARE_BITMAP(dcbm_busy, DCBM_MAX_CHANNELS);

static struct device *dcbm_dev(struct dcbm_share *share)
{
	return dmaengine_get_dma_device(share->chan);
}

static void dcbm_unmap(struct dcbm_share *share)
{
	if (!share->mapped)
		return;

	dma_unmap_sgtable(dcbm_dev(share), &share->src_sgt, DMA_TO_DEVICE, 0);
	dma_unmap_sgtable(dcbm_dev(share), &share->dst_sgt, DMA_FROM_DEVICE, 0);
	share->mapped = false;
}

/* Make a share available again. */
static void dcbm_release_share(struct dcbm_share *share)
{
	sg_free_table(&share->src_sgt);
	sg_free_table(&share->dst_sgt);
	clear_bit_unlock(share - dcbm_shares, dcbm_busy);
}

/* Get a share that has a channel, or NULL. */
static struct dcbm_share *dcbm_claim_share(unsigned int first)
{
	struct dcbm_share *share;
	unsigned int i;

	for (i = first; i < DCBM_MAX_CHANNELS; i++) {
		share = &dcbm_shares[i];
		if (!READ_ONCE(share->chan) || test_bit(i, dcbm_busy) ||
		    test_and_set_bit_lock(i, dcbm_busy))
			continue;
		if (!READ_ONCE(share->chan)) {
			clear_bit_unlock(i, dcbm_busy);
			continue;
		}
		share->failed = false;
		atomic_set(&share->pending, 1);
		atomic_set(&share->state, DCBM_RUNNING);
		reinit_completion(&share->done);
		return share;
	}

	return NULL;
}

/* Have at least @nr channels, as far as there are any. */
static int dcbm_get_channels(unsigned int nr)
{
	struct dma_chan *chan;
	dma_cap_mask_t mask;
	unsigned int i, have = 0;

	lockdep_assert_held(&dcbm_mutex);

	dma_cap_zero(mask);
	dma_cap_set(DMA_MEMCPY, mask);
	for (i = 0; i < DCBM_MAX_CHANNELS; i++)
		have += !!dcbm_shares[i].chan;
	for (i = 0; i < DCBM_MAX_CHANNELS && have < nr; i++) {
		if (dcbm_shares[i].chan)
			continue;
		chan = dma_request_chan_by_mask(&mask);
		if (IS_ERR(chan))
			break;
		WRITE_ONCE(dcbm_shares[i].chan, chan);
		have++;
	}

	return have ? 0 : -ENODEV;
}

/* Release every channel that was not set aside. */
static void dcbm_put_channels(void)
{
	struct dma_chan *chan;
	unsigned int i;

	lockdep_assert_held(&dcbm_mutex);

	for (i = 0; i < DCBM_MAX_CHANNELS; i++) {
		chan = dcbm_shares[i].chan;
		if (!chan || test_and_set_bit_lock(i, dcbm_busy))
			continue;
		WRITE_ONCE(dcbm_shares[i].chan, NULL);
		clear_bit_unlock(i, dcbm_busy);
		dma_release_channel(chan);
	}
}

/* The last descriptor of an abandoned share has completed after all. */
static void dcbm_cleanup(struct work_struct *work)
{
	struct dcbm_share *share = container_of(work, struct dcbm_share,
						cleanup);
	struct scatterlist *sg;
	unsigned int i;

	dcbm_unmap(share);
	for_each_sgtable_sg(&share->dst_sgt, sg, i)
		folio_put(page_folio(sg_page(sg)));

	pr_info("%s has answered\n", dma_chan_name(share->chan));
	atomic_dec(&channels_abandoned);
	dcbm_release_share(share);
	scoped_guard(mutex, &dcbm_mutex) {
		if (!offloading)
			dcbm_put_channels();
	}
	module_put(THIS_MODULE);
}

/* Drop a reference to @share->pending. */
static void dcbm_put_pending(struct dcbm_share *share)
{
	if (!atomic_dec_and_test(&share->pending))
		return;

	if (atomic_xchg(&share->state, DCBM_DONE) == DCBM_ABANDONED)
		queue_work(dcbm_wq, &share->cleanup);
	else
		complete(&share->done);
}

static void dcbm_callback(void *param, const struct dmaengine_result *result)
{
	struct dcbm_share *share = param;

	if (result && result->result != DMA_TRANS_NOERROR)
		WRITE_ONCE(share->failed, true);
	dcbm_put_pending(share);
}

static bool dcbm_submit_one(struct dcbm_share *share, dma_addr_t dst,
			    dma_addr_t src, size_t len)
{
	struct dma_async_tx_descriptor *tx;

	tx = dmaengine_prep_dma_memcpy(share->chan, dst, src, len,
				       DMA_PREP_INTERRUPT | DMA_CTRL_ACK);
	if (!tx)
		return false;

	tx->callback_result = dcbm_callback;
	tx->callback_param = share;
	atomic_inc(&share->pending);
	if (dma_submit_error(dmaengine_submit(tx))) {
		atomic_dec(&share->pending);
		return false;
	}

	return true;
}

/*
 * Give the channel its descriptors: one for each stretch that is contiguous in
 * both address spaces and not longer than a segment or a folio, whichever is
 * more.  (A table has a folio in pieces that are not longer than the device
 * claims to support for a segment.)
 */
static void dcbm_submit(struct dcbm_share *share)
{
	struct scatterlist *src_sg = share->src_sgt.sgl;
	struct scatterlist *dst_sg = share->dst_sgt.sgl;
	size_t src_off = 0, dst_off = 0, len, run = 0, folio_left;
	unsigned int src_left = share->src_sgt.nents;
	unsigned int dst_left = share->dst_sgt.nents;
	dma_addr_t src, dst, run_src = 0, run_dst = 0;
	struct folio *folio = share->dst;
	unsigned int folio_cnt = share->folio_cnt;

	folio_left = folio_size(folio);
	while (src_left && dst_left) {
		src = sg_dma_address(src_sg) + src_off;
		dst = sg_dma_address(dst_sg) + dst_off;
		len = min(sg_dma_len(src_sg) - src_off,
			  sg_dma_len(dst_sg) - dst_off);

		if (run && (folio_left == folio_size(folio) ||
			    src != run_src + run || dst != run_dst + run)) {
			if (!dcbm_submit_one(share, run_dst, run_src, run))
				goto failed;
			run = 0;
		}
		if (!run) {
			run_src = src;
			run_dst = dst;
		}
		run += len;

		src_off += len;
		if (src_off == sg_dma_len(src_sg)) {
			src_sg = sg_next(src_sg);
			src_off = 0;
			src_left--;
		}
		dst_off += len;
		if (dst_off == sg_dma_len(dst_sg)) {
			dst_sg = sg_next(dst_sg);
			dst_off = 0;
			dst_left--;
		}
		/* Which folio is next, and how much of it is left? */
		while (len >= folio_left && folio_cnt) {
			len -= folio_left;
			if (!--folio_cnt)
				break;
			folio = list_next_entry(folio, lru);
			folio_left = folio_size(folio);
		}
		if (folio_cnt)
			folio_left -= len;
	}
	/* Everything there is has been given out, or it does not fit. */
	if (folio_cnt || src_left || dst_left ||
	    !dcbm_submit_one(share, run_dst, run_src, run))
		goto failed;
	return;

failed:
	WRITE_ONCE(share->failed, true);
}

static int dcbm_fill_table(struct sg_table *sgt, struct folio *folio,
			   unsigned int folio_cnt, size_t max_seg)
{
	struct folio *first = folio;
	unsigned int i, nents = 0;
	struct scatterlist *sg;
	size_t off, len;
	int rc;

	for (i = 0; i < folio_cnt; i++, folio = list_next_entry(folio, lru))
		nents += DIV_ROUND_UP(folio_size(folio), max_seg);

	rc = sg_alloc_table(sgt, nents, GFP_NOWAIT);
	if (rc)
		return rc;

	sg = sgt->sgl;
	folio = first;
	for (i = 0; i < folio_cnt; i++, folio = list_next_entry(folio, lru)) {
		for (off = 0; off < folio_size(folio); off += len) {
			len = min(folio_size(folio) - off, max_seg);
			sg_set_folio(sg, folio, len, off);
			sg = sg_next(sg);
		}
	}

	return 0;
}

/* Map the folios of a share. */
static int dcbm_map(struct dcbm_share *share, struct folio *src)
{
	struct device *dev = dcbm_dev(share);
	size_t max_seg = max_t(size_t, PAGE_SIZE,
			       rounddown_pow_of_two(dma_get_max_seg_size(dev)));
	int rc;

	rc = dcbm_fill_table(&share->src_sgt, src, share->folio_cnt, max_seg);
	if (rc)
		return rc;
	rc = dcbm_fill_table(&share->dst_sgt, share->dst, share->folio_cnt,
			     max_seg);
	if (rc)
		return rc;

	rc = dma_map_sgtable(dev, &share->src_sgt, DMA_TO_DEVICE, 0);
	if (rc)
		return rc;
	rc = dma_map_sgtable(dev, &share->dst_sgt, DMA_FROM_DEVICE, 0);
	if (rc) {
		dma_unmap_sgtable(dev, &share->src_sgt, DMA_TO_DEVICE, 0);
		return rc;
	}
	share->mapped = true;

	return 0;
}

/*
 * Leave a share to its last callback.  Returns false if that has been seen
 * meanwhile.
 */
static bool dcbm_abandon(struct dcbm_share *share)
{
	struct scatterlist *sg;
	unsigned int i;

	__module_get(THIS_MODULE);
	for_each_sgtable_sg(&share->dst_sgt, sg, i)
		folio_get(page_folio(sg_page(sg)));
	atomic_inc(&channels_abandoned);
	pr_warn("%s does not answer, set aside with %u folios\n",
		dma_chan_name(share->chan), share->folio_cnt);

	/* From here on, the share may vanish. */
	if (atomic_cmpxchg(&share->state, DCBM_RUNNING, DCBM_ABANDONED) ==
	    DCBM_RUNNING)
		return true;

	atomic_dec(&channels_abandoned);
	for_each_sgtable_sg(&share->dst_sgt, sg, i)
		folio_put(page_folio(sg_page(sg)));
	module_put(THIS_MODULE);
	wait_for_completion(&share->done);

	return false;
}

static void dcbm_mark(struct dcbm_share *share)
{
	struct folio *dst = share->dst;
	unsigned int i;

	for (i = 0; i < share->folio_cnt; i++) {
		folio_mark_content_copied(dst);
		dst = list_next_entry(dst, lru);
	}
}

static int dcbm_offload_copy(struct list_head *dst_list,
			     struct list_head *src_list, unsigned int folio_cnt)
{
	struct dcbm_share *shares[DCBM_MAX_CHANNELS];
	unsigned int want, nr = 0, i, j, copied = 0;
	struct dcbm_share *share;
	struct folio *src, *dst;
	unsigned long deadline;
	int rc = 0;

	want = min3(READ_ONCE(nr_dma_chan), folio_cnt, DCBM_MAX_CHANNELS);
	for (i = 0; nr < want; i = share - dcbm_shares + 1) {
		share = dcbm_claim_share(i);
		if (!share)
			break;
		shares[nr++] = share;
	}
	if (!nr) {
		atomic64_add(folio_cnt, &folios_failures);
		return -ENODEV;
	}

	/* The first channels get the folios that are left when divided. */
	src = list_first_entry(src_list, struct folio, lru);
	dst = list_first_entry(dst_list, struct folio, lru);
	for (i = 0; i < nr; i++) {
		share = shares[i];
		share->dst = dst;
		share->folio_cnt = folio_cnt / nr + (i < folio_cnt % nr);
		if (dcbm_map(share, src))
			share->failed = true;
		for (j = 0; j < share->folio_cnt; j++) {
			src = list_next_entry(src, lru);
			dst = list_next_entry(dst, lru);
		}
	}
	for (i = 0; i < nr; i++) {
		if (shares[i]->mapped)
			dcbm_submit(shares[i]);
	}
	for (i = 0; i < nr; i++) {
		dma_async_issue_pending(shares[i]->chan);
		dcbm_put_pending(shares[i]);
	}

	deadline = jiffies + msecs_to_jiffies(READ_ONCE(timeout_ms));
	for (i = 0; i < nr; i++) {
		unsigned long now = jiffies;
		unsigned long left;

		share = shares[i];
		left = time_before(now, deadline) ? deadline - now : 0;
		if (!wait_for_completion_timeout(&share->done, left) &&
		    dcbm_abandon(share)) {
			rc = -EOWNERDEAD;
			continue;
		}

		/* Unmap before marking: bounce buffers are copied by it. */
		dcbm_unmap(share);
		if (!READ_ONCE(share->failed)) {
			dcbm_mark(share);
			copied += share->folio_cnt;
		}
		dcbm_release_share(share);
	}

	if (rc)
		copied = 0;
	atomic64_add(copied, &folios_migrated);
	atomic64_add(folio_cnt - copied, &folios_failures);

	return rc;
}

static const struct migrator dcbm_migrator = {
	.name = "dcbm",
	.offload_copy = dcbm_offload_copy,
	.owner = THIS_MODULE,
};

/*
 * /sys/kernel/dcbm
 */
static ssize_t offloading_show(struct kobject *kobj,
			       struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%d\n", READ_ONCE(offloading));
}

static ssize_t offloading_store(struct kobject *kobj,
				struct kobj_attribute *attr, const char *buf,
				size_t count)
{
	bool on;
	int rc;

	rc = kstrtobool(buf, &on);
	if (rc)
		return rc;

	guard(mutex)(&dcbm_mutex);
	if (on == offloading)
		return count;
	if (on) {
		rc = dcbm_get_channels(nr_dma_chan);
		if (!rc)
			rc = migrate_offload_register(&dcbm_migrator,
						      reason_mask);
	} else {
		rc = migrate_offload_unregister(&dcbm_migrator);
	}
	if (!rc)
		WRITE_ONCE(offloading, on);
	if (!offloading)
		dcbm_put_channels();

	return rc ?: count;
}

static ssize_t nr_dma_chan_show(struct kobject *kobj,
				struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(nr_dma_chan));
}

static ssize_t nr_dma_chan_store(struct kobject *kobj,
				 struct kobj_attribute *attr, const char *buf,
				 size_t count)
{
	unsigned int nr;
	int rc;

	rc = kstrtouint(buf, 0, &nr);
	if (rc)
		return rc;
	if (!nr || nr > DCBM_MAX_CHANNELS)
		return -ERANGE;

	guard(mutex)(&dcbm_mutex);
	WRITE_ONCE(nr_dma_chan, nr);
	if (offloading)
		dcbm_get_channels(nr);

	return count;
}

static ssize_t timeout_ms_show(struct kobject *kobj,
			       struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(timeout_ms));
}

static ssize_t timeout_ms_store(struct kobject *kobj,
				struct kobj_attribute *attr, const char *buf,
				size_t count)
{
	unsigned int ms;
	int rc;

	rc = kstrtouint(buf, 0, &ms);
	if (rc)
		return rc;
	if (!ms || ms > DCBM_TIMEOUT_MS)
		return -ERANGE;
	WRITE_ONCE(timeout_ms, ms);

	return count;
}

static ssize_t reason_mask_show(struct kobject *kobj,
				struct kobj_attribute *attr, char *buf)
{
	int len;

	guard(mutex)(&dcbm_mutex);
	len = migrate_offload_reason_mask_format(buf, PAGE_SIZE - 1,
						 reason_mask);
	return len + sysfs_emit_at(buf, len, "\n");
}

static ssize_t reason_mask_store(struct kobject *kobj,
				 struct kobj_attribute *attr, const char *buf,
				 size_t count)
{
	unsigned long mask;
	int rc;

	rc = migrate_offload_reason_mask_parse(buf, &mask);
	if (rc)
		return rc;

	guard(mutex)(&dcbm_mutex);
	if (offloading) {
		rc = migrate_offload_set_reason_mask(&dcbm_migrator, mask);
		if (rc)
			return rc;
	}
	reason_mask = mask;

	return count;
}

static ssize_t folios_migrated_show(struct kobject *kobj,
				    struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lld\n", atomic64_read(&folios_migrated));
}

static ssize_t folios_failures_show(struct kobject *kobj,
				    struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lld\n", atomic64_read(&folios_failures));
}

static ssize_t channels_abandoned_show(struct kobject *kobj,
				       struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%d\n", atomic_read(&channels_abandoned));
}

static struct kobj_attribute offloading_attr = __ATTR_RW(offloading);
static struct kobj_attribute nr_dma_chan_attr = __ATTR_RW(nr_dma_chan);
static struct kobj_attribute timeout_ms_attr = __ATTR_RW(timeout_ms);
static struct kobj_attribute reason_mask_attr = __ATTR_RW(reason_mask);
static struct kobj_attribute folios_migrated_attr = __ATTR_RO(folios_migrated);
static struct kobj_attribute folios_failures_attr = __ATTR_RO(folios_failures);
static struct kobj_attribute channels_abandoned_attr =
	__ATTR_RO(channels_abandoned);

static struct attribute *dcbm_attrs[] = {
	&offloading_attr.attr,
	&nr_dma_chan_attr.attr,
	&timeout_ms_attr.attr,
	&reason_mask_attr.attr,
	&folios_migrated_attr.attr,
	&folios_failures_attr.attr,
	&channels_abandoned_attr.attr,
	NULL
};

static const struct attribute_group dcbm_attr_group = {
	.attrs = dcbm_attrs,
};

static struct kobject *dcbm_kobj;

static int __init dcbm_init(void)
{
	unsigned int i;
	int rc;

	for (i = 0; i < DCBM_MAX_CHANNELS; i++) {
		init_completion(&dcbm_shares[i].done);
		INIT_WORK(&dcbm_shares[i].cleanup, dcbm_cleanup);
	}

	dcbm_wq = alloc_workqueue("dcbm", WQ_UNBOUND, 0);
	if (!dcbm_wq)
		return -ENOMEM;

	dcbm_kobj = kobject_create_and_add("dcbm", kernel_kobj);
	if (!dcbm_kobj) {
		rc = -ENOMEM;
		goto err_wq;
	}
	rc = sysfs_create_group(dcbm_kobj, &dcbm_attr_group);
	if (rc)
		goto err_kobj;

	return 0;

err_kobj:
	kobject_put(dcbm_kobj);
err_wq:
	destroy_workqueue(dcbm_wq);
	return rc;
}

/* Not while registered, nor while a channel is set aside: both hold us. */
static void __exit dcbm_exit(void)
{
	kobject_put(dcbm_kobj);
	/* A cleanup that has dropped its reference may still be returning. */
	destroy_workqueue(dcbm_wq);
}

module_init(dcbm_init);
module_exit(dcbm_exit);

MODULE_DESCRIPTION("Page migration copies by dmaengine channels");
MODULE_LICENSE("GPL");
