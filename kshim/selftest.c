// SPDX-License-Identifier: GPL-2.0-only
/*
 * Self-test: copy and compare, through each channel by itself
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/sysfs.h>

#include "ptdma_migrator.h"

/* More scattered pages than a small ring holds, so that the ring wraps. */
#define PTDMA_TEST_PAGES	96
/* One large copy: cut or not, it is more than one page. */
#define PTDMA_TEST_ORDER	5
#define PTDMA_TEST_FOLIOS	(PTDMA_TEST_PAGES + 1)

struct ptdma_test {
	struct page *src[PTDMA_TEST_FOLIOS];
	struct page *dst[PTDMA_TEST_FOLIOS];
};

enum ptdma_test_result {
	PTDMA_TEST_NONE,
	PTDMA_TEST_PASSED,
	PTDMA_TEST_NOT_COPIED,
	PTDMA_TEST_DIFFERENT,
	PTDMA_TEST_NO_MEMORY,
};

static u8 ptdma_test_results[PTDMA_MAX_CHANNELS];

static unsigned int ptdma_test_order(unsigned int i)
{
	return i == PTDMA_TEST_PAGES ? PTDMA_TEST_ORDER : 0;
}

static size_t ptdma_test_len(unsigned int i)
{
	return PAGE_SIZE << ptdma_test_order(i);
}

static void ptdma_test_free(struct ptdma_test *test)
{
	unsigned int i;

	for (i = 0; i < PTDMA_TEST_FOLIOS; i++) {
		if (test->src[i])
			__free_pages(test->src[i], ptdma_test_order(i));
		if (test->dst[i])
			__free_pages(test->dst[i], ptdma_test_order(i));
	}
	kfree(test);
}

static struct ptdma_test *ptdma_test_alloc(int node)
{
	struct ptdma_test *test = kzalloc(sizeof(*test), GFP_KERNEL);
	unsigned int i;

	if (!test)
		return NULL;
	for (i = 0; i < PTDMA_TEST_FOLIOS; i++) {
		unsigned int order = ptdma_test_order(i);

		/* Compound: a folio, to be held if its engine cannot be stopped. */
		test->src[i] = alloc_pages_node(node, GFP_KERNEL | __GFP_COMP,
						order);
		test->dst[i] = alloc_pages_node(node, GFP_KERNEL | __GFP_COMP,
						order);
		if (!test->src[i] || !test->dst[i]) {
			ptdma_test_free(test);
			return NULL;
		}
	}
	return test;
}

/* Every word of every page of every channel is different. */
static u64 ptdma_test_word(unsigned int chan, unsigned int i, size_t at)
{
	return ((u64)chan << 56 | (u64)i << 32 | at) * 0x9e3779b97f4a7c15ULL;
}

static void ptdma_test_fill(struct ptdma_test *test, unsigned int chan)
{
	unsigned int i;

	for (i = 0; i < PTDMA_TEST_FOLIOS; i++) {
		u64 *src = page_address(test->src[i]);
		size_t at;

		for (at = 0; at < ptdma_test_len(i) / sizeof(*src); at++)
			src[at] = ptdma_test_word(chan, i, at);
		memset(page_address(test->dst[i]), 0xa5, ptdma_test_len(i));
	}
}

static enum ptdma_test_result ptdma_test_check(struct ptdma_test *test,
					       struct ptdma_batch *batch,
					       unsigned int chan)
{
	unsigned int i;

	for (i = 0; i < PTDMA_TEST_FOLIOS; i++) {
		u64 *dst = page_address(test->dst[i]);
		size_t at;

		if (batch->outcomes[i] != PTDMA_OUTCOME_DMA)
			return PTDMA_TEST_NOT_COPIED;
		for (at = 0; at < ptdma_test_len(i) / sizeof(*dst); at++)
			if (dst[at] != ptdma_test_word(chan, i, at))
				return PTDMA_TEST_DIFFERENT;
	}
	return PTDMA_TEST_PASSED;
}

/* The engine may write to the pages: the batch keeps them. */
static void ptdma_test_hold(struct ptdma_test *test, struct ptdma_batch *batch)
{
	unsigned int i;

	ptdma_quarantine_hold(batch, 2 * PTDMA_TEST_FOLIOS);
	for (i = 0; i < PTDMA_TEST_FOLIOS; i++) {
		ptdma_quarantine_add(batch, page_folio(test->src[i]));
		ptdma_quarantine_add(batch, page_folio(test->dst[i]));
	}
	kfree(test);
}

static enum ptdma_test_result ptdma_test_chan(struct ptdma_chan *chan)
{
	struct ptdma_result result = {};
	enum ptdma_test_result verdict;
	struct ptdma_batch *batch;
	struct ptdma_test *test;
	unsigned int i;
	int rc;

	test = ptdma_test_alloc(chan->node);
	if (!test)
		return PTDMA_TEST_NO_MEMORY;
	batch = ptdma_batch_get(true);
	if (!batch) {
		ptdma_test_free(test);
		return PTDMA_TEST_NO_MEMORY;
	}

	ptdma_test_fill(test, chan->index);
	for (i = 0; i < PTDMA_TEST_FOLIOS; i++) {
		batch->folios[i].src = page_to_phys(test->src[i]);
		batch->folios[i].dst = page_to_phys(test->dst[i]);
		batch->folios[i].len = ptdma_test_len(i);
	}
	batch->proof_end = 0;
	rc = ptdma_batch_round(batch, PTDMA_TEST_FOLIOS, chan->index, &result);
	if (result.unproven) {
		ptdma_test_hold(test, batch);
		ptdma_quarantine(batch, &result);
		return PTDMA_TEST_NOT_COPIED;
	}
	verdict = rc ? PTDMA_TEST_NOT_COPIED :
		       ptdma_test_check(test, batch, chan->index);
	ptdma_batch_put(batch);
	ptdma_test_free(test);
	return verdict;
}

static const char * const ptdma_test_names[] = {
	[PTDMA_TEST_NONE] = "not tested",
	[PTDMA_TEST_PASSED] = "passed",
	[PTDMA_TEST_NOT_COPIED] = "failed: the engine did not copy",
	[PTDMA_TEST_DIFFERENT] = "failed: copied bytes are wrong",
	[PTDMA_TEST_NO_MEMORY] = "not tested: no memory",
};

/**
 * ptdma_selftest - Test each channel that is up.
 *
 * Context: Process context.
 * Return: 0, or -EIO if a channel has failed, -ENODEV if there is none.
 */
int ptdma_selftest(void)
{
	char text[PTDMA_ENGINE_TEXT];
	unsigned int i, channels = 0;
	int rc = 0;

	down_read(&ptdma_topology);
	for (i = 0; i < PTDMA_MAX_CHANNELS; i++) {
		struct ptdma_chan *chan = ptdma_chans[i];
		enum ptdma_test_result result;

		ptdma_test_results[i] = PTDMA_TEST_NONE;
		if (!chan || chan->state != PTDMA_CHAN_UP)
			continue;
		channels++;
		result = ptdma_test_chan(chan);
		ptdma_test_results[i] = result;
		/* For reports: what this machine's engine does. */
		pci_info(chan->pdev, "channel %u: %s\n", i,
			 ptdma_engine_text(chan, text));
		if (result == PTDMA_TEST_PASSED)
			continue;
		pci_err(chan->pdev, "self-test of channel %u: %s\n", i,
			ptdma_test_names[result]);
		rc = result == PTDMA_TEST_NO_MEMORY ? rc ?: -ENOMEM : -EIO;
	}
	up_read(&ptdma_topology);

	if (!channels)
		return -ENODEV;
	if (!rc)
		pr_info("self-test: %u channels copied %u folios each, all bytes right\n",
			channels, PTDMA_TEST_FOLIOS);
	return rc;
}

/**
 * ptdma_selftest_result - Write the results of the last self-test.
 * @buf: A page.
 *
 * Return: Length of the text.
 */
int ptdma_selftest_result(char *buf)
{
	unsigned int i;
	int len = 0;

	down_read(&ptdma_topology);
	for (i = 0; i < PTDMA_MAX_CHANNELS; i++)
		if (ptdma_chans[i])
			len += sysfs_emit_at(buf, len, "%s %s\n",
					     pci_name(ptdma_chans[i]->pdev),
					     ptdma_test_names[ptdma_test_results[i]]);
	up_read(&ptdma_topology);
	return len;
}
