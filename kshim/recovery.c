// SPDX-License-Identifier: GPL-2.0-only
/*
 * Getting an engine back that does not stop when told to
 *
 * Memory that an engine may still write must not be given back.  The Rust
 * library stops engines by their own registers, and says of which ones it could
 * not prove that they have stopped.  For these there is the ladder here: cut the
 * function off from memory and reset it, or see that it is not there any more.
 */
#include <linux/delay.h>
#include <linux/pci.h>

#include "ptdma_migrator.h"
#include "trace.h"

/* Proofs so far, of all channels: tells which of two came first. */
static atomic_long_t ptdma_proofs;

/*
 * Somebody else may hold the device lock, and may wait for us meanwhile (remove
 * and suspend wait for batches in flight), so it is tried for this long only.
 */
#define PTDMA_RESET_LOCK_TRIES	50
#define PTDMA_RESET_LOCK_MS	2

/*
 * A function whose configuration space does not answer gets this long to do so:
 * the longest completion timeout that devices commonly use, so that one lost
 * answer is not taken for an absent device.
 */
#define PTDMA_ABSENT_MS		50

static bool ptdma_chan_answers(struct pci_dev *pdev)
{
	if (pci_device_is_present(pdev))
		return true;
	msleep(PTDMA_ABSENT_MS);
	return pci_device_is_present(pdev);
}

/*
 * Whether it was pulled: its port has seen the slot empty or the link down,
 * which no engine survives.  That a function does not answer proves nothing: it
 * may answer again in a moment, with its engine where it was.
 */
static bool ptdma_chan_unplugged(struct pci_dev *pdev)
{
	return READ_ONCE(pdev->error_state) == pci_channel_io_perm_failure;
}

/*
 * Whether a reset has reached the function: it is not allowed anything then.  It
 * may have been out of reach while it was told to reset, and be back since.
 */
static bool ptdma_chan_was_reset(struct pci_dev *pdev)
{
	u16 command;

	if (pci_read_config_word(pdev, PCI_COMMAND, &command))
		return false;
	return !(command & (PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER));
}

static int ptdma_chan_reset(struct pci_dev *pdev)
{
	bool quiet;
	int tries, rc;

	/* Whoever empties reset_method in sysfs knows why. */
	if (!pdev->reset_methods[0])
		return -ENOTTY;

	if (!pcie_reset_flr(pdev, PCI_RESET_PROBE)) {
		/*
		 * Keeps user space from reading the configuration space of a
		 * function that is being reset.  Only tried, for the reason given
		 * above: user space may see all ones then, no more.
		 */
		quiet = pci_cfg_access_trylock(pdev);
		rc = pcie_reset_flr(pdev, PCI_RESET_DO_RESET);
		if (quiet)
			pci_cfg_access_unlock(pdev);
		/*
		 * -ENOTTY: it does not come back.  Whatever else could reset it
		 * takes its neighbours along.
		 */
		return rc == -ENOTTY ? -EIO : rc;
	}

	/* No FLR.  Other ways to reset want the device lock. */
	for (tries = 0; tries < PTDMA_RESET_LOCK_TRIES; tries++) {
		if (pci_dev_trylock(pdev)) {
			rc = __pci_reset_function_locked(pdev);
			pci_dev_unlock(pdev);
			return rc;
		}
		msleep(PTDMA_RESET_LOCK_MS);
	}
	return -EBUSY;
}

/**
 * ptdma_chan_prove_stopped - Make sure that a function touches no memory.
 * @chan: The channel.
 *
 * Bus mastering is turned off, then the function is reset, which ends whatever
 * its engine was at.  After success the function is a bus master again, with
 * its queue not set up.  A function that does not answer is not proved stopped,
 * but if it was pulled.
 *
 * Context: Process context, ptdma_topology held; sleeps, for 0.1 s if all is well
 * and for a minute if the function does not come back from its reset, which is
 * how long the PCI core waits.
 * Return: Whether it is proved.
 */
bool ptdma_chan_prove_stopped(struct ptdma_chan *chan)
{
	struct pci_dev *pdev = chan->pdev;
	int rc;

	lockdep_assert_held(&ptdma_topology);

	if (!ptdma_chan_answers(pdev)) {
		bool unplugged = ptdma_chan_unplugged(pdev);

		trace_ptdma_recovery(chan->index, PTDMA_RECOVERY_ABSENT,
				     unplugged ? 0 : -ENODEV);
		if (!unplugged)
			pci_err(pdev, "does not answer, and can not be reset\n");
		return unplugged;
	}

	/*
	 * One that was reset while it did not answer knows nothing that is worth
	 * to be kept: it gets back what was saved before.
	 */
	if (!ptdma_chan_was_reset(pdev)) {
		pci_clear_master(pdev);
		/*
		 * As it is to be if the reset fails: what is saved here during
		 * suspend is what the PCI core writes back during resume.
		 */
		pci_save_state(pdev);
	}
	rc = ptdma_chan_reset(pdev);
	if (!rc && !ptdma_chan_was_reset(pdev))
		rc = -EIO;
	trace_ptdma_recovery(chan->index, PTDMA_RECOVERY_RESET, rc);
	if (rc) {
		/* Stays off the bus. */
		pci_err(pdev, "reset failed: %d\n", rc);
		return ptdma_chan_unplugged(pdev);
	}
	pci_restore_state(pdev);
	pci_set_master(pdev);
	return true;
}

/**
 * ptdma_k_prove_stopped - Make sure that a channel touches no memory.
 * @batch: The batch that asks, which gives the channel no more work.
 * @index: The channel.
 *
 * Context: Process context, ptdma_topology held for reading; sleeps.
 * Return: Whether it is proved.
 */
bool ptdma_k_prove_stopped(struct ptdma_batch *batch, u32 index)
{
	struct ptdma_chan *chan = ptdma_chans[index];
	unsigned long before;
	bool proved;

	if (!chan)
		return false;

	/*
	 * Whoever comes first proves it for all who wait here: they gave the
	 * channel their work before.
	 */
	before = READ_ONCE(chan->proofs);
	mutex_lock(&chan->reset_lock);
	proved = chan->proofs != before;
	if (!proved && ptdma_chan_prove_stopped(chan)) {
		WRITE_ONCE(chan->proofs, atomic_long_inc_return(&ptdma_proofs));
		/*
		 * Only here: what another batch puts into quarantine after this
		 * proof, because of a later hang, is not covered by it.
		 */
		ptdma_quarantine_release(BIT_ULL(index));
		proved = true;
	}
	if (!proved) {
		batch->doubted |= BIT_ULL(index);
		batch->doubted_at = atomic_long_read(&ptdma_proofs);
	}
	mutex_unlock(&chan->reset_lock);

	return proved;
}
