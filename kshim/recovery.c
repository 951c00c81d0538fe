// SPDX-License-Identifier: GPL-2.0-only
/*
 * Proofs that an engine has stopped, and the way back into service
 *
 * Memory that an engine may still write must not be given back.  The Rust
 * library stops engines by their own registers, and names the engines that it
 * cannot prove stopped.
 *
 * A migration gets one more proof, within milliseconds: bus mastering off, read
 * back, and no transaction pending.  Where that fails, the destinations of the
 * batch go into quarantine.
 *
 * One work item for each channel does everything that takes longer: it resets the
 * function, releases the quarantine, and returns the channel to service.
 */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/pci.h>
#include <linux/workqueue.h>

#include "ptdma_migrator.h"
#include "trace.h"

/*
 * Time that all proofs of one batch may take together.  A transaction ends within
 * microseconds unless its answer is lost; a register of the configuration space
 * takes about one, and some 100 in an emulator: enough for sixteen functions.
 */
#define PTDMA_PROOF_NS		(5 * NSEC_PER_MSEC)

/* First back-off, after a channel that came back fell out of service again. */
#define PTDMA_FIRST_DELAY	msecs_to_jiffies(100)
/* Longest back-off: a channel that always fails costs one batch a minute. */
#define PTDMA_LAST_DELAY	msecs_to_jiffies(60 * MSEC_PER_SEC)
/* Batches that still hold descriptors of a channel release them soon. */
#define PTDMA_HELD_DELAY	msecs_to_jiffies(10)

/*
 * Number of FLR in pci_dev.reset_methods, from Linux 5.15 to 7.3.  The file
 * reset_method in sysfs changes that list, and so allows or forbids FLR.
 */
#define PTDMA_METHOD_FLR	3

static struct workqueue_struct *ptdma_wq;

/*
 * Whether the function was pulled: its port has seen the slot empty or the link
 * down, which no engine survives.  A function that does not answer proves nothing:
 * it may answer again in a moment, with its engine where it was.
 */
static bool ptdma_chan_unplugged(struct pci_dev *pdev)
{
	return READ_ONCE(pdev->error_state) == pci_channel_io_perm_failure;
}

/**
 * ptdma_proof_end - Deadline for the proofs of a batch that begins them now.
 *
 * Return: The deadline, as ptdma_k_now_ns().
 */
u64 ptdma_proof_end(void)
{
	return ptdma_k_now_ns() + PTDMA_PROOF_NS;
}

/**
 * ptdma_chan_cut_off - Turn bus mastering off, and wait for pending transactions.
 * @chan: The channel.
 * @until: How long to wait for transactions that are pending.
 * @may_sleep: Sleep meanwhile.
 *
 * A function without bus mastering starts no transaction.  The completion of the
 * command register's read pushes earlier writes of the function ahead of itself.
 * The device status shows reads that the function still waits for.  The proof
 * holds while bus mastering stays off: the engine may resume its descriptor later.
 *
 * Context: Process context, chan->lock held.
 * Return: Whether the function touches no memory now.
 */
bool ptdma_chan_cut_off(struct ptdma_chan *chan, u64 until, bool may_sleep)
{
	struct pci_dev *pdev = chan->pdev;
	u16 command, status;

	lockdep_assert_held(&chan->lock);

	if (!pci_device_is_present(pdev))
		return ptdma_chan_unplugged(pdev);
	pci_clear_master(pdev);
	if (pci_read_config_word(pdev, PCI_COMMAND, &command) ||
	    PCI_POSSIBLE_ERROR(command) || command & PCI_COMMAND_MASTER ||
	    !pci_is_pcie(pdev))
		return false;
	for (;;) {
		if (pcie_capability_read_word(pdev, PCI_EXP_DEVSTA, &status) ||
		    PCI_POSSIBLE_ERROR(status))
			return false;
		if (!(status & PCI_EXP_DEVSTA_TRPND))
			return true;
		if (ptdma_k_now_ns() >= until)
			return false;
		if (may_sleep)
			usleep_range(20, 50);
		else
			cpu_relax();
	}
}

/* Cuts a channel off whose engine was not proved stopped, and sets its state. */
static bool ptdma_chan_prove(struct ptdma_chan *chan, u64 until, bool may_sleep)
{
	bool proved = ptdma_chan_cut_off(chan, until, may_sleep);

	trace_ptdma_recovery(chan->index, PTDMA_RECOVERY_CUT_OFF,
			     proved ? 0 : -EBUSY);
	chan->cut = true;
	WRITE_ONCE(chan->state, proved ? PTDMA_CHAN_STOPPED :
					 PTDMA_CHAN_SUSPECT);
	return proved;
}

/**
 * ptdma_k_prove_stopped - Prove that a channel touches no memory.
 * @batch: The batch that asks, which submits no more work to the channel.
 * @index: The channel, out of service.
 *
 * Takes milliseconds at most, for all channels of a batch.  The work item does
 * what takes longer.
 *
 * Context: Process context, ptdma_topology held for reading; sleeps if the batch
 * may.
 * Return: true if the channel is proved stopped.
 */
bool ptdma_k_prove_stopped(struct ptdma_batch *batch, u32 index)
{
	struct ptdma_chan *chan = ptdma_chans[index];
	bool proved = false;

	if (!chan)
		return false;

	if (!batch->proof_end)
		batch->proof_end = ptdma_proof_end();
	/* Holders of the lock make the same proof, or change a few variables. */
	if (batch->may_sleep)
		mutex_lock(&chan->lock);
	else if (!mutex_trylock(&chan->lock))
		goto out;
	switch (chan->state) {
	case PTDMA_CHAN_UP:
		if (ptdma_k_now_ns() < batch->proof_end) {
			proved = ptdma_chan_prove(chan, batch->proof_end,
						  batch->may_sleep);
			break;
		}
		chan->cut = true;
		WRITE_ONCE(chan->state, PTDMA_CHAN_SUSPECT);
		break;
	case PTDMA_CHAN_STOPPED:
		proved = true;
		break;
	default:
		break;
	}
	mutex_unlock(&chan->lock);
out:
	if (!proved)
		proved = !ptdma_quarantine_doubt(batch, index);
	ptdma_chan_rescue(chan);
	return proved;
}

/*
 * Whether a reset has reached the function: the reset clears the command register.
 * A function may be out of reach when it is told to reset, and be back afterwards.
 */
static bool ptdma_function_was_reset(struct pci_dev *pdev)
{
	u16 command;

	if (pci_read_config_word(pdev, PCI_COMMAND, &command))
		return false;
	return !(command & (PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER));
}

static int ptdma_chan_flr(struct pci_dev *pdev)
{
	bool quiet;
	int rc;

	/*
	 * Nothing but FLR: other methods reset neighbours too, or cannot be used
	 * in this context.
	 */
	if (!memchr(pdev->reset_methods, PTDMA_METHOD_FLR,
		    sizeof(pdev->reset_methods)) ||
	    pcie_reset_flr(pdev, PCI_RESET_PROBE))
		return -EOPNOTSUPP;

	/*
	 * Keeps user space from reading the configuration space during the reset.
	 * A trylock, since its holder may wait for this work item.  Without the
	 * lock, user space reads all ones, which does no harm.
	 */
	quiet = pci_cfg_access_trylock(pdev);
	rc = pcie_reset_flr(pdev, PCI_RESET_DO_RESET);
	if (quiet)
		pci_cfg_access_unlock(pdev);
	/* FLR exists, so -ENOTTY says that the function did not come back. */
	return rc == -ENOTTY ? -EIO : rc;
}

/**
 * ptdma_chan_reset - Reset a function, as a proof that its engine has stopped.
 * @chan: The channel, out of service.
 *
 * After success the function is configured as before, but no bus master, and its
 * queue is not set up.
 *
 * Context: Process context, without ptdma_topology and chan->lock.  From the work
 * item, or before the work item can run.  Takes 0.1 s if all is well.  The PCI core
 * waits a minute for a function that does not come back.
 * Return: 0, -EOPNOTSUPP if the function has no FLR or FLR is forbidden, or another
 * negative error code.
 */
int ptdma_chan_reset(struct ptdma_chan *chan)
{
	struct pci_dev *pdev = chan->pdev;
	int rc;

	if (!pci_device_is_present(pdev)) {
		rc = ptdma_chan_unplugged(pdev) ? 0 : -ENODEV;
		trace_ptdma_recovery(chan->index, PTDMA_RECOVERY_ABSENT, rc);
		if (rc)
			dev_err_ratelimited(&pdev->dev,
					    "function does not answer and cannot be reset\n");
		return rc;
	}

	/*
	 * A function that was reset while it did not answer has no state worth
	 * saving: the state that was saved before is restored.
	 */
	if (!ptdma_function_was_reset(pdev)) {
		pci_clear_master(pdev);
		pci_save_state(pdev);
	}
	rc = ptdma_chan_flr(pdev);
	if (!rc && !ptdma_function_was_reset(pdev))
		rc = -EIO;
	trace_ptdma_recovery(chan->index, PTDMA_RECOVERY_RESET, rc);
	if (!rc) {
		pci_restore_state(pdev);
		/* The saved state may include bus mastering. */
		pci_clear_master(pdev);
		return 0;
	}
	/* Bus mastering stays off. */
	if (rc == -EOPNOTSUPP && !chan->delay)
		/* Printed once: a later try changes nothing. */
		pci_err(pdev,
			"no function-level reset, so bus mastering stays off: reset the function by other methods (echo 1 > reset) or power-cycle the machine\n");
	else if (rc != -EOPNOTSUPP)
		dev_err_ratelimited(&pdev->dev, "function-level reset failed: %d\n", rc);
	return ptdma_chan_unplugged(pdev) ? 0 : rc;
}

/*
 * First step: decides from the library's view of the channel whether the function
 * needs a reset.  Returns whether there is anything to do.
 */
static bool ptdma_rescue_look(struct ptdma_chan *chan)
{
	guard(mutex)(&chan->lock);

	if (chan->state == PTDMA_CHAN_UP) {
		switch (ptdma_rs_channel_service(ptdma_system, chan->index)) {
		case PTDMA_SERVICE_ACTIVE:
			return false;
		case PTDMA_SERVICE_STOPPED:
			/* Proved by its registers: the channel can be revived. */
			chan->cut = false;
			WRITE_ONCE(chan->state, PTDMA_CHAN_STOPPED);
			break;
		default:
			ptdma_chan_prove(chan, ptdma_proof_end(), true);
		}
	}
	if (chan->state == PTDMA_CHAN_DOWN && !chan->cut && !chan->wanted)
		return false;
	if (chan->tried)
		return false;
	/*
	 * A channel that failed to come up is reset too: its registers showed a
	 * stopped engine, and then the engine did not start.
	 */
	chan->resetting = chan->cut || chan->state == PTDMA_CHAN_SUSPECT ||
			  chan->state == PTDMA_CHAN_LEAKED;
	return true;
}

/* Second step: turns the result of the reset into a proof, or tries another one. */
static void ptdma_rescue_reset_done(struct ptdma_chan *chan, int rc)
{
	bool proved = !rc;

	mutex_lock(&chan->lock);
	chan->resetting = false;
	if (proved)
		chan->cut = false;
	else if (chan->state == PTDMA_CHAN_SUSPECT ||
		 chan->state == PTDMA_CHAN_LEAKED)
		/* Transactions that were pending may have completed by now. */
		proved = ptdma_chan_cut_off(chan, ptdma_proof_end(), true);
	else
		proved = true;
	mutex_unlock(&chan->lock);
	if (proved)
		ptdma_chan_proved(chan);
}

/* Third step: starts a stopped queue again, with the ring that it has. */
static int ptdma_rescue_revive(struct ptdma_chan *chan)
{
	int rc;

	guard(mutex)(&chan->lock);
	/*
	 * Every batch that failed to prove the channel stopped is on the list by
	 * now: it records that before it releases the channel's descriptors, and
	 * the library revives no channel with descriptors of a batch.
	 */
	ptdma_quarantine_release(chan->index);
	pci_set_master(chan->pdev);
	rc = ptdma_rs_channel_revive(ptdma_system, chan->index);
	if (rc) {
		pci_clear_master(chan->pdev);
		/* Reset it next time, unless a batch only held descriptors. */
		chan->cut = chan->cut || rc != -EAGAIN;
		return rc;
	}
	WRITE_ONCE(chan->state, PTDMA_CHAN_UP);
	return 0;
}

/*
 * Returns 0 if the channel is in service again or need not be, 1 if there was
 * nothing to do, or a negative error code.
 */
static int ptdma_rescue(struct ptdma_chan *chan)
{
	struct ptdma_settings settings;
	enum ptdma_chan_state state;
	int reset = 0, rc = 0;
	bool revive;

	down_read(&ptdma_topology);
	if (!ptdma_rescue_look(chan)) {
		up_read(&ptdma_topology);
		return 1;
	}
	up_read(&ptdma_topology);

	/* Takes up to a minute, so no lock of the module is held. */
	if (chan->resetting)
		reset = ptdma_chan_reset(chan);

	down_read(&ptdma_topology);
	ptdma_rescue_reset_done(chan, reset);
	ptdma_rs_settings_get(ptdma_system, &settings);
	revive = chan->wanted && !chan->cut &&
		 chan->state == PTDMA_CHAN_STOPPED &&
		 chan->ring.entries == settings.ring_entries;
	if (revive)
		rc = ptdma_rescue_revive(chan);
	up_read(&ptdma_topology);
	if (revive || !chan->wanted)
		return rc;
	/* The reset itself failed: retry it after the back-off. */
	if (reset && reset != -EOPNOTSUPP)
		return reset;

	/*
	 * A writer that waits for ptdma_topology turns batches away.  So do not take
	 * it again and again for a function that cannot be reset.
	 */
	state = READ_ONCE(chan->state);
	if (state != PTDMA_CHAN_STOPPED && state != PTDMA_CHAN_DOWN)
		return state == PTDMA_CHAN_UP ? 0 : -EBUSY;

	/*
	 * The ring has another size, or is missing, or the engine cannot be reset.
	 * Bring-up checks that the engine stands before it enables bus mastering.
	 */
	down_write(&ptdma_topology);
	if (chan->state == PTDMA_CHAN_STOPPED)
		ptdma_chan_down(chan);
	if (chan->state == PTDMA_CHAN_DOWN) {
		rc = ptdma_chan_up(chan);
		if (!rc)
			ptdma_k_report(chan->index, PTDMA_EVENT_REVIVED, 0);
	} else if (chan->state != PTDMA_CHAN_UP) {
		rc = -EBUSY;
	}
	up_write(&ptdma_topology);
	/* A channel whose mappings bounce stays down on purpose. */
	return chan->bounces ? 0 : rc;
}

static void ptdma_rescue_work(struct work_struct *work)
{
	struct ptdma_chan *chan = container_of(to_delayed_work(work),
					       struct ptdma_chan, rescue);
	int rc;

	if (atomic_read(&chan->rescue_off))
		return;
	rc = ptdma_rescue(chan);

	if (rc == 1)
		return;
	if (rc == -EAGAIN) {
		queue_delayed_work(ptdma_wq, &chan->rescue, PTDMA_HELD_DELAY);
		return;
	}
	/*
	 * The back-off doubles from one try to the next.  The first try has none:
	 * the memory that was copied may be to blame, and not the channel.
	 */
	chan->delay = chan->delay ? min(2 * chan->delay, PTDMA_LAST_DELAY) :
				    PTDMA_FIRST_DELAY;
	WRITE_ONCE(chan->not_before, jiffies + chan->delay);
	if (rc && chan->wanted)
		queue_delayed_work(ptdma_wq, &chan->rescue, chan->delay);
}

/**
 * ptdma_chan_rescue - Queue the work item of a channel that is out of service.
 * @chan: The channel.
 *
 * Context: Any.
 */
void ptdma_chan_rescue(struct ptdma_chan *chan)
{
	unsigned long now = jiffies, at = READ_ONCE(chan->not_before);

	queue_delayed_work(ptdma_wq, &chan->rescue,
			   time_after(at, now) ? at - now : 0);
}

/**
 * ptdma_chans_rescue - Queue the work items of channels that are out of service.
 * @chans: The channels, a bit each.
 *
 * Context: ptdma_topology held.
 */
void ptdma_chans_rescue(u64 chans)
{
	while (chans) {
		struct ptdma_chan *chan = ptdma_chans[__ffs64(chans)];

		chans &= chans - 1;
		if (chan)
			ptdma_chan_rescue(chan);
	}
}

/* Takes a channel down for good; if it does not stop, its work item resets it. */
static void ptdma_chan_part_begin(struct ptdma_chan *chan)
{
	lockdep_assert_held_write(&ptdma_topology);

	chan->wanted = false;
	ptdma_chan_down(chan);
	if ((chan->state == PTDMA_CHAN_LEAKED || chan->cut) && !chan->tried)
		mod_delayed_work(ptdma_wq, &chan->rescue, 0);
}

/**
 * ptdma_chan_part - Stop a channel for good.
 * @chan: The channel.
 *
 * Its state is PTDMA_CHAN_DOWN or PTDMA_CHAN_LEAKED afterwards, and the work item
 * does not run.
 *
 * Context: Process context, without ptdma_topology.  Waits for batches in flight,
 * each of which has a deadline, and for one reset if the engine does not stop.
 */
void ptdma_chan_part(struct ptdma_chan *chan)
{
	down_write(&ptdma_topology);
	ptdma_chan_part_begin(chan);
	up_write(&ptdma_topology);
	flush_delayed_work(&chan->rescue);
	chan->tried = true;
	ptdma_work_disable(&chan->rescue, &chan->rescue_off);
}

/**
 * ptdma_chans_part - Stop all channels for good, side by side.
 *
 * The driver core removes one function after the other: what takes a minute for a
 * function that does not come back from its reset would add up.
 *
 * Context: Process context, without ptdma_topology.
 */
void ptdma_chans_part(void)
{
	unsigned int i;

	down_write(&ptdma_topology);
	for (i = 0; i < PTDMA_MAX_CHANNELS; i++)
		if (ptdma_chans[i])
			ptdma_chan_part_begin(ptdma_chans[i]);
	up_write(&ptdma_topology);
	flush_workqueue(ptdma_wq);
	down_write(&ptdma_topology);
	for (i = 0; i < PTDMA_MAX_CHANNELS; i++)
		if (ptdma_chans[i])
			ptdma_chans[i]->tried = true;
	up_write(&ptdma_topology);
}

/**
 * ptdma_report_queue - Have a channel's events printed soon.
 * @chan: The channel.
 *
 * Context: Any.
 */
void ptdma_report_queue(struct ptdma_chan *chan)
{
	queue_work(ptdma_wq, &chan->report);
}

/**
 * ptdma_chan_init_recovery - What a channel needs to be rescued.
 * @chan: The channel, which is new.
 */
void ptdma_chan_init_recovery(struct ptdma_chan *chan)
{
	mutex_init(&chan->lock);
	chan->not_before = jiffies;
	INIT_DELAYED_WORK(&chan->rescue, ptdma_rescue_work);
	INIT_WORK(&chan->report, ptdma_report_work);
}

/**
 * ptdma_recovery_init - Make what work items run on.
 *
 * Return: 0 or -ENOMEM.
 */
int ptdma_recovery_init(void)
{
	/* Unbound: they sleep for a minute, on whatever CPU. */
	ptdma_wq = alloc_workqueue(PTDMA_DRIVER_NAME, WQ_UNBOUND, 0);
	return ptdma_wq ? 0 : -ENOMEM;
}

/**
 * ptdma_recovery_exit - Free what work items ran on.
 */
void ptdma_recovery_exit(void)
{
	destroy_workqueue(ptdma_wq);
}
