// SPDX-License-Identifier: GPL-2.0-only
/*
 * PTDMA migrator: page migration copies with AMD's PTDMA engines
 */
#include <linux/module.h>
#include <linux/slab.h>

#include "ptdma_migrator.h"

struct ptdma_system *ptdma_system;

static int __init ptdma_init(void)
{
	struct ptdma_system *system;
	int rc;

	system = kvzalloc(ptdma_rs_system_bytes(), GFP_KERNEL);
	if (!system)
		return -ENOMEM;
	ptdma_rs_system_init(system);

	rc = ptdma_params_init(system);
	if (rc)
		goto out_free;
	rc = ptdma_recovery_init();
	if (rc)
		goto out_free;
	rc = ptdma_pool_init();
	if (rc)
		goto out_recovery;
	rc = pci_register_driver(&ptdma_pci_driver);
	if (rc)
		goto out_pool;
	rc = ptdma_params_start();
	if (rc)
		goto out_unregister;
	return 0;

out_unregister:
	ptdma_params_exit();
	/* Parameters existed before init: user space may have set them. */
	ptdma_migrator_stop();
	ptdma_chans_part();
	pci_unregister_driver(&ptdma_pci_driver);
	ptdma_quarantine_abandon();
out_pool:
	ptdma_params_exit();
	ptdma_migrator_stop();
	ptdma_pool_exit();
out_recovery:
	ptdma_recovery_exit();
out_free:
	ptdma_params_exit();
	ptdma_migrator_stop();
	kvfree(system);
	return rc;
}

static void __exit ptdma_exit(void)
{
	ptdma_params_exit();
	ptdma_migrator_stop();
	ptdma_chans_part();
	pci_unregister_driver(&ptdma_pci_driver);
	ptdma_quarantine_abandon();
	ptdma_pool_exit();
	ptdma_recovery_exit();
	kvfree(ptdma_system);
}

module_init(ptdma_init);
module_exit(ptdma_exit);

MODULE_DESCRIPTION("Page migration with AMD PTDMA engines");
MODULE_LICENSE("GPL");
