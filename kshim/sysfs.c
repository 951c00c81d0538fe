// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counts of each channel, in the ptdma/ folder of its PCI function
 */
#include <linux/device.h>
#include <linux/pci.h>
#include <linux/string.h>
#include <linux/sysfs.h>

#include "ptdma_migrator.h"

#define PTDMA_COUNT(count)						\
	static ssize_t count##_show(struct device *dev,			\
				    struct device_attribute *attr,	\
				    char *buf)				\
	{								\
		struct ptdma_chan *chan = dev_get_drvdata(dev);		\
		struct ptdma_channel_stats stats = {};			\
									\
		ptdma_rs_channel_stats(ptdma_system, chan->index, &stats); \
		return sysfs_emit(buf, "%llu\n", (u64)stats.count);	\
	}								\
	static struct device_attribute dev_attr_##count = {		\
		.attr = { .name = #count, .mode = 0444 },		\
		.show = count##_show,					\
	}

PTDMA_COUNT(head_stays);
PTDMA_COUNT(submitted);
PTDMA_COUNT(submitted_bytes);
PTDMA_COUNT(completed);
PTDMA_COUNT(failed);
PTDMA_COUNT(dropped);
PTDMA_COUNT(coalesced);
PTDMA_COUNT(doorbells);
PTDMA_COUNT(interrupts);
PTDMA_COUNT(polls);
PTDMA_COUNT(spurious_interrupts);
PTDMA_COUNT(lost_interrupts);
PTDMA_COUNT(replays);
PTDMA_COUNT(restarts);
PTDMA_COUNT(stops);
PTDMA_COUNT(hangs);

/* Counts of the C side, since the function was bound. */
static ssize_t recoveries_show(struct device *dev,
			       struct device_attribute *attr, char *buf)
{
	struct ptdma_chan *chan = dev_get_drvdata(dev);

	return sysfs_emit(buf, "%ld\n", atomic_long_read(&chan->recoveries));
}
static DEVICE_ATTR_RO(recoveries);

static ssize_t sleeps_show(struct device *dev,
			   struct device_attribute *attr, char *buf)
{
	struct ptdma_chan *chan = dev_get_drvdata(dev);

	return sysfs_emit(buf, "%ld\n", atomic_long_read(&chan->sleeps));
}
static DEVICE_ATTR_RO(sleeps);

static ssize_t overdue_waits_show(struct device *dev,
				  struct device_attribute *attr, char *buf)
{
	struct ptdma_chan *chan = dev_get_drvdata(dev);

	return sysfs_emit(buf, "%ld\n", atomic_long_read(&chan->overdue_waits));
}
static DEVICE_ATTR_RO(overdue_waits);

static ssize_t index_show(struct device *dev, struct device_attribute *attr,
			  char *buf)
{
	struct ptdma_chan *chan = dev_get_drvdata(dev);

	return sysfs_emit(buf, "%u\n", chan->index);
}
static DEVICE_ATTR_RO(index);

static ssize_t port_show(struct device *dev, struct device_attribute *attr,
			 char *buf)
{
	struct ptdma_chan *chan = dev_get_drvdata(dev);

	if (chan->port < 0)
		return sysfs_emit(buf, "unknown\n");
	return sysfs_emit(buf, "%#x\n", chan->port);
}
static DEVICE_ATTR_RO(port);

static ssize_t state_show(struct device *dev, struct device_attribute *attr,
			  char *buf)
{
	struct ptdma_chan *chan = dev_get_drvdata(dev);
	static const char * const names[] = {
		[PTDMA_CHAN_DOWN] = "down",
		[PTDMA_CHAN_UP] = "running",
		[PTDMA_CHAN_STOPPED] = "stopped",
		[PTDMA_CHAN_SUSPECT] = "suspect",
		[PTDMA_CHAN_LEAKED] = "leaked",
	};
	enum ptdma_chan_state state = READ_ONCE(chan->state);

	if (chan->bounces)
		return sysfs_emit(buf, "bounces\n");
	/* Out of service, and the work item has not run yet. */
	if (state == PTDMA_CHAN_UP &&
	    ptdma_rs_channel_service(ptdma_system, chan->index) !=
	    PTDMA_SERVICE_ACTIVE)
		return sysfs_emit(buf, "faulted\n");
	return sysfs_emit(buf, "%s\n", names[state]);
}
static DEVICE_ATTR_RO(state);

/**
 * ptdma_engine_text - Describe what a channel's engine has shown of itself.
 * @chan: The channel.
 * @text: Where to, PTDMA_ENGINE_TEXT bytes.
 *
 * Return: @text.
 */
const char *ptdma_engine_text(struct ptdma_chan *chan, char *text)
{
	static const char * const restarts[] = {
		[PTDMA_RESTART_UNKNOWN] = "restart not known",
		[PTDMA_RESTART_BY_TAIL] = "goes on by the tail",
		[PTDMA_RESTART_BY_RUN] = "needs RUN for each burst",
	};
	static const char * const heads[] = {
		[PTDMA_ERROR_HEAD_UNKNOWN] = "not known",
		[PTDMA_ERROR_HEAD_AT_FAILING] = "at the failure",
		[PTDMA_ERROR_HEAD_PAST_FAILING] = "behind the failure",
	};
	struct ptdma_engine engine;

	if (!ptdma_rs_channel_engine(ptdma_system, chan->index, &engine)) {
		strscpy(text, "no queue", PTDMA_ENGINE_TEXT);
		return text;
	}
	scnprintf(text, PTDMA_ENGINE_TEXT,
		  "%s, head after an error %s, ring %u of %u, HALT %c at rest %c drained %c stopped %c cleared by a write, RUN %c drained, job field %c, %u failed copies",
		  restarts[engine.restart], heads[engine.error_head],
		  engine.ring_entries, engine.memory_entries,
		  engine.halt_at_rest, engine.halt_drained, engine.halt_stopped,
		  engine.halt_cleared_by_write, engine.run_drained,
		  engine.job_status, engine.failed_copies);
	return text;
}

static ssize_t engine_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	char text[PTDMA_ENGINE_TEXT];

	return sysfs_emit(buf, "%s\n",
			  ptdma_engine_text(dev_get_drvdata(dev), text));
}
static DEVICE_ATTR_RO(engine);

static struct attribute *ptdma_chan_attrs[] = {
	&dev_attr_index.attr,
	&dev_attr_port.attr,
	&dev_attr_state.attr,
	&dev_attr_engine.attr,
	&dev_attr_head_stays.attr,
	&dev_attr_submitted.attr,
	&dev_attr_submitted_bytes.attr,
	&dev_attr_completed.attr,
	&dev_attr_failed.attr,
	&dev_attr_dropped.attr,
	&dev_attr_coalesced.attr,
	&dev_attr_doorbells.attr,
	&dev_attr_interrupts.attr,
	&dev_attr_polls.attr,
	&dev_attr_spurious_interrupts.attr,
	&dev_attr_lost_interrupts.attr,
	&dev_attr_replays.attr,
	&dev_attr_restarts.attr,
	&dev_attr_stops.attr,
	&dev_attr_hangs.attr,
	&dev_attr_recoveries.attr,
	&dev_attr_sleeps.attr,
	&dev_attr_overdue_waits.attr,
	NULL
};

static const struct attribute_group ptdma_chan_group = {
	.name = "ptdma",
	.attrs = ptdma_chan_attrs,
};

const struct attribute_group *ptdma_chan_groups[] = {
	&ptdma_chan_group,
	NULL
};
