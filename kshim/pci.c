// SPDX-License-Identifier: GPL-2.0-only
/*
 * PTDMA functions: probe and remove, interrupt, suspend and reset
 */
#include <linux/interrupt.h>
#include <linux/module.h>
#include <linux/pci.h>

#include "ptdma_migrator.h"
#include "trace.h"

#define PTDMA_BAR		2
/* 48 bits is what the descriptor's address fields hold. */
#define PTDMA_DMA_BITS		48
#define PCI_DEVICE_ID_AMD_PTDMA	0x1498

DECLARE_RWSEM(ptdma_topology);

static char *functions;
module_param(functions, charp, 0444);
MODULE_PARM_DESC(functions,
		 "PCI functions to bind, like 0000:c1:00.2, separated by commas (default: all)");

static bool by_port = true;
module_param(by_port, bool, 0444);
MODULE_PARM_DESC(by_port,
		 "Spread a batch over the ports that functions share, as far as PCI shows them (default: Y)");

static bool ptdma_wanted(struct pci_dev *pdev)
{
	const char *name = pci_name(pdev);
	size_t len = strlen(name);
	const char *at = functions;

	if (!at || !*at)
		return true;

	while (*at) {
		size_t part = strcspn(at, ",\n ");

		if (part == len && !strncmp(at, name, len))
			return true;
		at += part;
		at += strspn(at, ",\n ");
	}
	return false;
}

/*
 * On the machine of the published figures two functions share a root complex, on
 * adjacent buses below root ports of their own, and 16.6 GB/s, of which one takes
 * 14.8.  A root complex is a root bus to Linux.  Where all functions are below the
 * only root bus, that says nothing, and the root port counts.  A number that is
 * wrong, or the same for two ports, costs speed.
 */
static int ptdma_port_of(struct pci_dev *pdev)
{
	struct pci_bus *root = NULL, *bus = pdev->bus;
	struct pci_dev *port;
	unsigned int roots = 0;
	u32 number;

	if (!by_port)
		return -1;
	while ((root = pci_find_next_bus(root)))
		roots++;
	while (!pci_is_root_bus(bus))
		bus = bus->parent;
	if (roots > 1) {
		number = (u32)pci_domain_nr(bus) << 16 | PCI_DEVID(bus->number, 0);
	} else {
		port = pcie_find_root_port(pdev);
		if (!port || port == pdev)
			return -1;
		number = (u32)pci_domain_nr(bus) << 16 | pci_dev_id(port);
	}
	return number & S32_MAX;
}

static irqreturn_t ptdma_irq(int irq, void *data)
{
	struct ptdma_chan *chan = data;

	/* The channel fell out of service, and no later batch may notice it. */
	if (unlikely(!ptdma_rs_interrupt(ptdma_system, chan->index)))
		ptdma_chan_rescue(chan);
	WRITE_ONCE(chan->event, atomic64_inc_return(&ptdma_events));
	/* Orders the event before the look at who sleeps. */
	if (wq_has_sleeper(&chan->wq))
		wake_up(&chan->wq);
	/*
	 * Message-signalled vectors are never shared, and a poll may have cleared
	 * the status before this handler ran.  IRQ_NONE would let the detector of
	 * spurious interrupts disable the vector.
	 */
	return IRQ_HANDLED;
}

static int ptdma_slot_get(struct ptdma_chan *chan)
{
	unsigned int i;

	for (i = 0; i < PTDMA_MAX_CHANNELS; i++) {
		if (ptdma_chans[i])
			continue;
		chan->index = i;
		ptdma_chans[i] = chan;
		ptdma_chans_end = max(ptdma_chans_end, i + 1);
		ptdma_nodes_update();
		return 0;
	}
	return -ENOSPC;
}

static int ptdma_irq_get(struct ptdma_chan *chan)
{
	struct pci_dev *pdev = chan->pdev;
	int rc;

	rc = pci_alloc_irq_vectors(pdev, 1, 1, PCI_IRQ_MSIX | PCI_IRQ_MSI);
	if (rc < 0)
		return rc;
	chan->irq = pci_irq_vector(pdev, 0);
	snprintf(chan->irq_name, sizeof(chan->irq_name), "%s-%s",
		 PTDMA_DRIVER_NAME, pci_name(pdev));
	rc = request_irq(chan->irq, ptdma_irq, 0, chan->irq_name, chan);
	if (rc) {
		pci_free_irq_vectors(pdev);
		return rc;
	}
	/* Batches run near their memory, and so do most tasks that sleep here. */
	if (chan->node != NUMA_NO_NODE)
		irq_set_affinity_and_hint(chan->irq, cpumask_of_node(chan->node));
	chan->irq_on = true;
	return 0;
}

static void ptdma_irq_put(struct ptdma_chan *chan)
{
	if (!chan->irq_on)
		return;
	irq_update_affinity_hint(chan->irq, NULL);
	free_irq(chan->irq, chan);
	pci_free_irq_vectors(chan->pdev);
	chan->irq_on = false;
}

static void ptdma_unbind(struct ptdma_chan *chan)
{
	ptdma_chan_part(chan);
	down_write(&ptdma_topology);
	ptdma_irq_put(chan);
	/* The handler is gone, so nothing queues another report. */
	cancel_work_sync(&chan->report);
	pci_clear_master(chan->pdev);
	ptdma_chan_leave(chan);
	ptdma_chans[chan->index] = NULL;
	ptdma_nodes_update();
	up_write(&ptdma_topology);
	/* Before 6.10 it may still be queued, to do nothing; see compat.h. */
	cancel_delayed_work_sync(&chan->rescue);
}

static int ptdma_try_up(struct ptdma_chan *chan)
{
	int rc;

	down_write(&ptdma_topology);
	rc = ptdma_chan_up(chan);
	/* The CPU does the work, but the function stays bound, visible in sysfs. */
	if (chan->bounces)
		rc = 0;
	/* From now on the work item returns the channel to service. */
	chan->wanted = !rc;
	if (!rc) {
		pci_set_drvdata(chan->pdev, chan);
		/* What ptdma_slot_reset() restores: enabled, with its MSI-X. */
		pci_save_state(chan->pdev);
	}
	up_write(&ptdma_topology);
	return rc;
}

/* Gives the channel a number, an interrupt, and its queue. */
static int ptdma_bind(struct ptdma_chan *chan)
{
	struct pci_dev *pdev = chan->pdev;
	int rc;

	down_write(&ptdma_topology);
	rc = ptdma_slot_get(chan);
	if (rc) {
		up_write(&ptdma_topology);
		return dev_err_probe(&pdev->dev, rc,
				     "all %d channels are taken\n",
				     PTDMA_MAX_CHANNELS);
	}
	rc = ptdma_irq_get(chan);
	up_write(&ptdma_topology);

	if (!rc)
		rc = ptdma_try_up(chan);
	/* The engine works for a previous owner, or does not stop for us. */
	if (rc == -EBUSY || rc == -ETIMEDOUT) {
		int reset = ptdma_chan_reset(chan);

		if (!reset) {
			down_read(&ptdma_topology);
			scoped_guard(mutex, &chan->lock)
				chan->cut = false;
			ptdma_chan_proved(chan);
			up_read(&ptdma_topology);
			rc = ptdma_try_up(chan);
		} else {
			chan->tried = true;
			pci_err(pdev,
				"the engine is busy and cannot be stopped: reset the function by other means, or power-cycle the machine\n");
		}
	}
	if (!rc)
		return 0;
	ptdma_unbind(chan);
	return dev_err_probe(&pdev->dev, rc, "cannot bring the queue up\n");
}

static int ptdma_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct device *dev = &pdev->dev;
	struct ptdma_chan *chan;
	int rc;

	if (!ptdma_wanted(pdev))
		return -ENODEV;

	chan = devm_kzalloc(dev, sizeof(*chan), GFP_KERNEL);
	if (!chan)
		return -ENOMEM;
	chan->pdev = pdev;
	chan->node = dev_to_node(dev);
	chan->port = ptdma_port_of(pdev);
	init_waitqueue_head(&chan->wq);
	ptdma_chan_init_recovery(chan);

	rc = pcim_enable_device(pdev);
	if (rc)
		return dev_err_probe(dev, rc, "cannot enable the device\n");
	if (pci_resource_len(pdev, PTDMA_BAR) < PTDMA_BAR_BYTES)
		return dev_err_probe(dev, -ENODEV,
				     "BAR %d is too short for a PTDMA function\n",
				     PTDMA_BAR);
	chan->bar = pcim_iomap_region(pdev, PTDMA_BAR, PTDMA_DRIVER_NAME);
	if (IS_ERR(chan->bar))
		return dev_err_probe(dev, PTR_ERR(chan->bar),
				     "cannot map BAR %d\n", PTDMA_BAR);
	rc = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(PTDMA_DMA_BITS));
	if (rc)
		return dev_err_probe(dev, rc, "no %d-bit DMA\n",
				     PTDMA_DMA_BITS);
	/* The length of a descriptor is a 32-bit word. */
	dma_set_max_seg_size(dev, U32_MAX);

	rc = ptdma_bind(chan);
	if (rc)
		return rc;

	if (chan->state == PTDMA_CHAN_UP)
		pci_info(pdev, "channel %u, node %d, ring of %u descriptors\n",
			 chan->index, chan->node, chan->ring.entries);
	return 0;
}

static void ptdma_remove(struct pci_dev *pdev)
{
	ptdma_unbind(pci_get_drvdata(pdev));
}

static void ptdma_shutdown(struct pci_dev *pdev)
{
	struct ptdma_chan *chan = pci_get_drvdata(pdev);

	/* The engine must not write into the memory of a kernel that kexec starts. */
	ptdma_work_disable(&chan->rescue, &chan->rescue_off);
	down_write(&ptdma_topology);
	ptdma_chan_down(chan);
	pci_clear_master(pdev);
	up_write(&ptdma_topology);
}

/* Takes the channel down until ptdma_go_on(). */
static void ptdma_pause(struct ptdma_chan *chan)
{
	if (!chan->suspended)
		ptdma_work_disable(&chan->rescue, &chan->rescue_off);
	down_write(&ptdma_topology);
	chan->suspended = true;
	ptdma_chan_down(chan);
	up_write(&ptdma_topology);
}

static void ptdma_go_on(struct ptdma_chan *chan)
{
	bool paused = chan->suspended;
	int rc = 0;

	down_write(&ptdma_topology);
	chan->suspended = false;
	/* A function that has lost its queue was reset meanwhile: a proof. */
	if ((chan->state == PTDMA_CHAN_LEAKED || chan->cut) &&
	    ptdma_chan_was_reset(chan)) {
		scoped_guard(mutex, &chan->lock)
			chan->cut = false;
		ptdma_chan_proved(chan);
	}
	if (chan->state == PTDMA_CHAN_DOWN && !chan->cut && chan->wanted)
		rc = ptdma_chan_up(chan);
	if (rc && !chan->bounces)
		pci_err(chan->pdev, "channel %u does not return to service: %d\n",
			chan->index, rc);
	/*
	 * A batch that loses the only channel requests the work item once, so the
	 * work item must be enabled before batches can run.
	 */
	if (paused)
		ptdma_work_enable(&chan->rescue, &chan->rescue_off);
	up_write(&ptdma_topology);

	if (chan->state != PTDMA_CHAN_UP && chan->wanted && !chan->bounces) {
		/* A reset or resume may have cured it: retry without back-off. */
		chan->not_before = jiffies;
		ptdma_chan_rescue(chan);
	}
}

static int ptdma_suspend(struct device *dev)
{
	ptdma_pause(dev_get_drvdata(dev));
	return 0;
}

static int ptdma_resume(struct device *dev)
{
	/* Migration works without this channel, so resume must not fail. */
	ptdma_go_on(dev_get_drvdata(dev));
	return 0;
}

static DEFINE_SIMPLE_DEV_PM_OPS(ptdma_pm_ops, ptdma_suspend, ptdma_resume);

static void ptdma_reset_prepare(struct pci_dev *pdev)
{
	struct ptdma_chan *chan = pci_get_drvdata(pdev);

	if (chan)
		ptdma_pause(chan);
}

static void ptdma_reset_done(struct pci_dev *pdev)
{
	struct ptdma_chan *chan = pci_get_drvdata(pdev);

	if (chan)
		ptdma_go_on(chan);
}

static pci_ers_result_t ptdma_error_detected(struct pci_dev *pdev,
					     pci_channel_state_t state)
{
	struct ptdma_chan *chan = pci_get_drvdata(pdev);

	ptdma_pause(chan);
	return state == pci_channel_io_perm_failure ?
		PCI_ERS_RESULT_DISCONNECT : PCI_ERS_RESULT_NEED_RESET;
}

static pci_ers_result_t ptdma_slot_reset(struct pci_dev *pdev)
{
	pci_restore_state(pdev);
	/* Older kernels restore what was saved once only. */
	pci_save_state(pdev);
	return PCI_ERS_RESULT_RECOVERED;
}

static void ptdma_error_resume(struct pci_dev *pdev)
{
	ptdma_go_on(pci_get_drvdata(pdev));
}

static const struct pci_error_handlers ptdma_error_handlers = {
	.error_detected = ptdma_error_detected,
	.slot_reset = ptdma_slot_reset,
	.resume = ptdma_error_resume,
	.reset_prepare = ptdma_reset_prepare,
	.reset_done = ptdma_reset_done,
};

static const struct pci_device_id ptdma_ids[] = {
	{ PCI_VDEVICE(AMD, PCI_DEVICE_ID_AMD_PTDMA) },
	{ }
};
MODULE_DEVICE_TABLE(pci, ptdma_ids);

struct pci_driver ptdma_pci_driver = {
	.name = PTDMA_DRIVER_NAME,
	.id_table = ptdma_ids,
	.probe = ptdma_probe,
	.remove = ptdma_remove,
	.shutdown = ptdma_shutdown,
	.err_handler = &ptdma_error_handlers,
	.dev_groups = ptdma_chan_groups,
	.driver.pm = pm_sleep_ptr(&ptdma_pm_ops),
};
