// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counts of each channel, in the ptdma/ folder of its PCI function
 */
#include <linux/device.h>
#include <linux/pci.h>
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
PTDMA_COUNT(restarts);
PTDMA_COUNT(stops);
PTDMA_COUNT(hangs);

/* What C counts, for as long as the function is bound. */
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

static ssize_t state_show(struct device *dev, struct device_attribute *attr,
			  char *buf)
{
	struct ptdma_chan *chan = dev_get_drvdata(dev);
	struct ptdma_channel_stats stats = {};
	static const char * const names[] = {
		[PTDMA_STATE_DOWN] = "down",
		[PTDMA_STATE_RUNNING] = "running",
		[PTDMA_STATE_FAULTED] = "faulted",
		[PTDMA_STATE_RETIRED] = "retired",
	};

	ptdma_rs_channel_stats(ptdma_system, chan->index, &stats);
	if (stats.state >= ARRAY_SIZE(names))
		return -EIO;
	return sysfs_emit(buf, "%s\n", names[stats.state]);
}
static DEVICE_ATTR_RO(state);

static struct attribute *ptdma_chan_attrs[] = {
	&dev_attr_index.attr,
	&dev_attr_state.attr,
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
