// SPDX-License-Identifier: GPL-2.0-only
/*
 * testdma - a dmaengine client that looks closely
 *
 * dmatest does not take results from callbacks, asks for the status only when a copy is over, and
 * uses its buffers again after a copy that has timed out.  This module does what it leaves out,
 * with one channel, at load: it ends with an error only if it could not try.  What it saw is in
 * /sys/module/testdma/parameters/.
 *
 * Nothing is given back to the kernel before the channel: what a driver does to memory that its
 * client has reclaimed is seen, and hurts nobody.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/dmaengine.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/string.h>

/* As many descriptors as the driver's ring has places. */
#define TESTDMA_MAX_DEPTH	32
/* What the client writes to a destination that it has reclaimed. */
#define TESTDMA_RECLAIMED	0xee
/* For a copy that should take microseconds; the emulated device takes milliseconds. */
#define TESTDMA_TIMEOUT_MS	5000

static unsigned int copies = 1;
module_param(copies, uint, 0444);
MODULE_PARM_DESC(copies, "Copies to make");
static unsigned int depth = 1;
module_param(depth, uint, 0444);
MODULE_PARM_DESC(depth, "Copies to submit at once");
static unsigned int bytes = 4096;
module_param(bytes, uint, 0444);
MODULE_PARM_DESC(bytes, "Bytes of each copy");
static bool interrupt = true;
module_param(interrupt, bool, 0444);
MODULE_PARM_DESC(interrupt, "Ask for interrupts");
static bool poll;
module_param(poll, bool, 0444);
MODULE_PARM_DESC(poll, "Ask for the status all the time, on each processor");
static unsigned int terminate_ms;
module_param(terminate_ms, uint, 0444);
MODULE_PARM_DESC(terminate_ms, "Terminate one copy after this time, instead of waiting");
static unsigned int hold_ms;
module_param(hold_ms, uint, 0444);
MODULE_PARM_DESC(hold_ms, "After that, look at the memory for this time");
static bool pause;
module_param(pause, bool, 0444);
MODULE_PARM_DESC(pause, "Pause the channel before terminating");

/* Callbacks without an error, and with each error. */
static unsigned int good, read_failed, write_failed, aborted;
module_param(good, uint, 0444);
module_param(read_failed, uint, 0444);
module_param(write_failed, uint, 0444);
module_param(aborted, uint, 0444);
/* Callbacks without an error before the data was there, or in spite of an error. */
static unsigned int early;
module_param(early, uint, 0444);
/* Second callbacks of the same copy. */
static unsigned int twice;
module_param(twice, uint, 0444);
/* Copies of which the status was an error. */
static unsigned int status_failed;
module_param(status_failed, uint, 0444);
/* Copies without a callback in time. */
static unsigned int timed_out;
module_param(timed_out, uint, 0444);
/* Descriptors that the driver refused to prepare. */
static unsigned int refused;
module_param(refused, uint, 0444);
/* How long the termination took. */
static unsigned int terminated_ms;
module_param(terminated_ms, uint, 0444);
/* Bytes of reclaimed memory that were written to. */
static unsigned int late;
module_param(late, uint, 0444);
/* Callbacks after the termination. */
static unsigned int late_callbacks;
module_param(late_callbacks, uint, 0444);

struct testdma_copy {
	u8 *src, *dst;
	dma_addr_t src_dma, dst_dma;
	dma_cookie_t cookie;
	bool terminated;
	struct completion done;
};

static struct testdma_copy testdma_copies[TESTDMA_MAX_DEPTH];
static struct dma_chan *chan;
static struct device *dev;

static void testdma_callback(void *param, const struct dmaengine_result *result)
{
	struct testdma_copy *copy = param;

	if (copy->terminated) {
		late_callbacks++;
		return;
	}
	if (completion_done(&copy->done)) {
		twice++;
		return;
	}

	switch (result->result) {
	case DMA_TRANS_NOERROR:
		good++;
		if (memcmp(copy->src, copy->dst, bytes))
			early++;
		break;
	case DMA_TRANS_READ_FAILED:
		read_failed++;
		break;
	case DMA_TRANS_WRITE_FAILED:
		write_failed++;
		break;
	case DMA_TRANS_ABORTED:
		aborted++;
		break;
	}
	complete_all(&copy->done);
}

static int testdma_submit(struct testdma_copy *copy, unsigned int number)
{
	struct dma_async_tx_descriptor *tx;

	memset(copy->src, number % 0xff + 1, bytes);
	memset(copy->dst, 0, bytes);
	copy->terminated = false;
	reinit_completion(&copy->done);

	tx = dmaengine_prep_dma_memcpy(chan, copy->dst_dma, copy->src_dma, bytes,
				       DMA_CTRL_ACK | (interrupt ? DMA_PREP_INTERRUPT : 0));
	if (!tx) {
		refused++;
		return -EBUSY;
	}
	tx->callback_result = testdma_callback;
	tx->callback_param = copy;
	copy->cookie = dmaengine_submit(tx);

	return dma_submit_error(copy->cookie);
}

static void testdma_wait(struct testdma_copy *copy)
{
	if (!wait_for_completion_timeout(&copy->done, msecs_to_jiffies(TESTDMA_TIMEOUT_MS)))
		timed_out++;
}

static struct task_struct *pollers[NR_CPUS];

static int testdma_poll(void *unused)
{
	while (!kthread_should_stop()) {
		dma_async_is_tx_complete(chan, chan->cookie, NULL, NULL);
		cond_resched();
	}

	return 0;
}

static void testdma_stop_polling(void)
{
	unsigned int cpu;

	for_each_possible_cpu(cpu) {
		if (pollers[cpu])
			kthread_stop(pollers[cpu]);
		pollers[cpu] = NULL;
	}
}

static int testdma_start_polling(void)
{
	struct task_struct *task;
	unsigned int cpu;

	for_each_online_cpu(cpu) {
		task = kthread_create(testdma_poll, NULL, "testdma/%u", cpu);
		if (IS_ERR(task)) {
			testdma_stop_polling();
			return PTR_ERR(task);
		}
		kthread_bind(task, cpu);
		pollers[cpu] = task;
		wake_up_process(task);
	}

	return 0;
}

static int testdma_copy_all(void)
{
	unsigned int made, count, i;
	int rc;

	for (made = 0; made < copies && !timed_out; made += count) {
		count = min(depth, copies - made);
		for (i = 0; i < count; i++) {
			rc = testdma_submit(&testdma_copies[i], made + i);
			if (rc)
				return rc;
		}
		dma_async_issue_pending(chan);
		for (i = 0; i < count; i++)
			testdma_wait(&testdma_copies[i]);
		/* Of the last one: a driver need not remember the others. */
		if (dma_async_is_tx_complete(chan, testdma_copies[count - 1].cookie, NULL, NULL) ==
		    DMA_ERROR)
			status_failed++;
	}

	return 0;
}

static int testdma_terminate(void)
{
	struct testdma_copy *copy = &testdma_copies[0];
	ktime_t start;
	unsigned int i;
	int rc;

	rc = testdma_submit(copy, 0);
	if (rc)
		return rc;
	dma_async_issue_pending(chan);
	msleep(terminate_ms);
	if (pause)
		dmaengine_pause(chan);

	start = ktime_get();
	rc = dmaengine_terminate_sync(chan);
	if (rc)
		return rc;
	terminated_ms = ktime_ms_delta(ktime_get(), start);

	/* From here on the memory is not the driver's. */
	copy->terminated = true;
	memset(copy->dst, TESTDMA_RECLAIMED, bytes);
	msleep(hold_ms);
	for (i = 0; i < bytes; i++)
		late += READ_ONCE(copy->dst[i]) != TESTDMA_RECLAIMED;

	return 0;
}

static int __init testdma_init(void)
{
	dma_cap_mask_t mask;
	unsigned int i;
	int rc = -ENOMEM;

	if (!copies || !depth || depth > TESTDMA_MAX_DEPTH || !bytes)
		return -EINVAL;

	dma_cap_zero(mask);
	dma_cap_set(DMA_MEMCPY, mask);
	chan = dma_request_chan_by_mask(&mask);
	if (IS_ERR(chan))
		return PTR_ERR(chan);
	dev = dmaengine_get_dma_device(chan);

	for (i = 0; i < depth; i++) {
		struct testdma_copy *copy = &testdma_copies[i];

		init_completion(&copy->done);
		copy->src = dma_alloc_coherent(dev, bytes, &copy->src_dma, GFP_KERNEL);
		copy->dst = dma_alloc_coherent(dev, bytes, &copy->dst_dma, GFP_KERNEL);
		if (!copy->src || !copy->dst)
			goto out;
	}

	rc = poll ? testdma_start_polling() : 0;
	if (!rc)
		rc = terminate_ms ? testdma_terminate() : testdma_copy_all();
	testdma_stop_polling();
	/* The driver's refusal is a result. */
	if (rc == -EBUSY)
		rc = 0;

	/* What is left of the copies must not write to memory that is freed. */
	if (timed_out)
		dmaengine_terminate_sync(chan);
out:
	dma_release_channel(chan);
	for (i = 0; i < depth; i++) {
		struct testdma_copy *copy = &testdma_copies[i];

		if (copy->src)
			dma_free_coherent(dev, bytes, copy->src, copy->src_dma);
		if (copy->dst)
			dma_free_coherent(dev, bytes, copy->dst, copy->dst_dma);
	}

	return rc;
}

static void __exit testdma_exit(void)
{
}

module_init(testdma_init);
module_exit(testdma_exit);

MODULE_DESCRIPTION("dmaengine client for tests of drivers");
MODULE_LICENSE("GPL");
