// SPDX-License-Identifier: GPL-2.0-only
/*
 * testfail - makes a call of another module fail, in a test
 *
 * Parameters name the module under test, and the kernel's functions that may fail.
 * This module counts the calls from the module under test and suppresses the one
 * that was asked for.  The caller gets the value that the function returns when it
 * fails; some entries of the table return the value for success instead.
 * Unlike the kernel's own fault injection this works on any kernel with kprobes, and
 * no retry inside a function hides the failure.
 *
 * The module also reports a PCI function as pulled, or in a bus error, which the
 * emulator cannot do to functions under test.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/device.h>
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/errno.h>
#include <linux/kprobes.h>
#include <linux/limits.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/pci.h>
#include <linux/spinlock.h>
#include <linux/string.h>

/* What a function returns when it has failed. */
struct testfail_probe {
	struct kprobe kp;
	unsigned long failure;
};

#define PROBE(name, value) {						\
	.kp = { .symbol_name = name, .pre_handler = testfail_handler },	\
	.failure = (unsigned long)(value),				\
}

static int testfail_handler(struct kprobe *kp, struct pt_regs *regs);

static struct testfail_probe probes[] = {
	PROBE("__kvmalloc_node_noprof", 0),
	PROBE("__kmalloc_cache_noprof", 0),
	PROBE("alloc_pages_node_noprof", 0),
	PROBE("devm_kmalloc", 0),
	PROBE("pcim_enable_device", -ENOMEM),
	PROBE("pcim_iomap_region", -ENOMEM),
	PROBE("dma_set_mask", -EIO),
	PROBE("pci_alloc_irq_vectors", -ENOSPC),
	PROBE("request_threaded_irq", -ENOMEM),
	PROBE("__pci_register_driver", -ENOMEM),
	PROBE("migrate_offload_register", -EBUSY),
	PROBE("dma_map_phys", DMA_MAPPING_ERROR),
	PROBE("dma_iova_try_alloc", false),
	PROBE("dma_iova_link", -ENOMEM),
	PROBE("dma_iova_sync", -ENOMEM),
	/* Memory that is never given back. */
	PROBE("kvfree", 0),
	/* The device status cannot be read. */
	PROBE("pcie_capability_read_word", -EIO),
	/* A reset that reports success and never reaches the function. */
	PROBE("pcie_reset_flr", 0),
	/* Delayed work that never runs. */
	PROBE("queue_delayed_work_on", false),
	/* A lie: the engine may write on.  Loaded after the module it belongs to. */
	PROBE("ptdma_k_prove_stopped", true),
};

static char *caller = "ptdma_migrator";
module_param(caller, charp, 0444);
MODULE_PARM_DESC(caller, "module under test, whose calls are counted");

static char *functions;
module_param(functions, charp, 0444);
MODULE_PARM_DESC(functions,
		 "functions that may fail, separated by commas (default: all known ones, which needs the module under test)");

static DEFINE_SPINLOCK(testfail_lock);
/* The first call that fails, from 1, or 0; and from then on every so many. */
static unsigned int nth, every;
static unsigned int calls, struck;
/* The call that failed last: which function, and where it was called. */
static char last[2 * KSYM_SYMBOL_LEN];

module_param(every, uint, 0644);
MODULE_PARM_DESC(every,
		 "after the first failure, every Nth call fails as well; 0: none (default: 0)");
module_param(calls, uint, 0444);
MODULE_PARM_DESC(calls, "calls since nth was written");
module_param(struck, uint, 0444);
MODULE_PARM_DESC(struck, "calls that failed since nth was written");
module_param_string(last, last, sizeof(last), 0444);
MODULE_PARM_DESC(last, "function that failed last");

static int nth_set(const char *val, const struct kernel_param *kp)
{
	unsigned int value;
	int rc;

	rc = kstrtouint(val, 0, &value);
	if (rc)
		return rc;
	guard(spinlock_irqsave)(&testfail_lock);
	nth = value;
	calls = 0;
	struck = 0;
	last[0] = '\0';
	return 0;
}

static const struct kernel_param_ops nth_ops = {
	.set = nth_set,
	.get = param_get_uint,
};
module_param_cb(nth, &nth_ops, &nth, 0644);
MODULE_PARM_DESC(nth,
		 "number of the call that fails, from 1; 0: none; a write restarts the count");

/* To be put by the caller. */
static struct pci_dev *testfail_pci_get(const char *name)
{
	unsigned int domain, bus, device, function;
	struct pci_dev *pdev;

	if (sscanf(name, "%x:%x:%x.%x", &domain, &bus, &device, &function) != 4)
		return ERR_PTR(-EINVAL);
	pdev = pci_get_domain_bus_and_slot(domain, bus,
					   PCI_DEVFN(device, function));
	return pdev ?: ERR_PTR(-ENODEV);
}

/* As the port of a slot does when that is empty all of a sudden. */
static int unplugged_set(const char *val, const struct kernel_param *kp)
{
	struct pci_dev *pdev = testfail_pci_get(val);

	if (IS_ERR(pdev))
		return PTR_ERR(pdev);
	WRITE_ONCE(pdev->error_state, pci_channel_io_perm_failure);
	pci_dev_put(pdev);
	return 0;
}

static const struct kernel_param_ops unplugged_ops = {
	.set = unplugged_set,
};
module_param_cb(unplugged, &unplugged_ops, NULL, 0200);
MODULE_PARM_DESC(unplugged,
		 "PCI function to report as pulled, like 0000:c1:00.2");

static int testfail_recover(struct pci_dev *pdev)
{
	const struct pci_error_handlers *hooks;
	int rc;

	hooks = pdev->driver ? pdev->driver->err_handler : NULL;
	if (!hooks || !hooks->error_detected || !hooks->slot_reset ||
	    !hooks->resume)
		return -EOPNOTSUPP;

	WRITE_ONCE(pdev->error_state, pci_channel_io_frozen);
	if (hooks->error_detected(pdev, pci_channel_io_frozen) !=
	    PCI_ERS_RESULT_NEED_RESET)
		return -EPROTO;
	/* Like that of the whole bus, it leaves nothing as it was. */
	rc = pcie_reset_flr(pdev, false);
	if (rc)
		return rc;
	WRITE_ONCE(pdev->error_state, pci_channel_io_normal);
	if (hooks->slot_reset(pdev) != PCI_ERS_RESULT_RECOVERED)
		return -EPROTO;
	hooks->resume(pdev);
	return 0;
}

/* As the kernel does when a port reports an error that is not to be corrected. */
static int frozen_set(const char *val, const struct kernel_param *kp)
{
	struct pci_dev *pdev = testfail_pci_get(val);
	int rc;

	if (IS_ERR(pdev))
		return PTR_ERR(pdev);
	scoped_guard(device, &pdev->dev)
		rc = testfail_recover(pdev);
	pci_dev_put(pdev);
	return rc;
}

static const struct kernel_param_ops frozen_ops = {
	.set = frozen_set,
};
module_param_cb(frozen, &frozen_ops, NULL, 0200);
MODULE_PARM_DESC(frozen,
		 "PCI function whose driver sees a bus error and the recovery from it");

/*
 * Where a call goes that does not take place: returns at once, with the value that
 * the register for it holds already.
 */
static noinline notrace void testfail_return(void)
{
	asm volatile("");
}

static int testfail_handler(struct kprobe *kp, struct pt_regs *regs)
{
	struct testfail_probe *probe = container_of(kp, struct testfail_probe,
						    kp);
	/* At the entry of a function the stack begins with its caller. */
	void *from = (void *)*(unsigned long *)kernel_stack_pointer(regs);
	char where[KSYM_SYMBOL_LEN], *name;

	if (!READ_ONCE(nth))
		return 0;
	snprintf(where, sizeof(where), "%pS", from);
	/* "function+0x10/0x20 [module]" */
	name = strrchr(where, '[');
	if (!name || strncmp(name + 1, caller, strlen(caller)) ||
	    name[1 + strlen(caller)] != ']')
		return 0;

	guard(spinlock_irqsave)(&testfail_lock);
	if (!nth)
		return 0;
	calls++;
	if (calls < nth || (calls > nth && !every) ||
	    (every && (calls - nth) % every))
		return 0;
	struck++;
	snprintf(last, sizeof(last), "%s in %s", kp->symbol_name, where);

	regs->ax = probe->failure;
	instruction_pointer_set(regs, (unsigned long)testfail_return);
	return 1;
}

static bool testfail_wanted(const char *name)
{
	const char *at = functions;

	if (!at || !*at)
		return true;
	for (; *at; at += strcspn(at, ","), at += *at == ',')
		if (strcspn(at, ",") == strlen(name) &&
		    !strncmp(at, name, strlen(name)))
			return true;
	return false;
}

static void testfail_unregister(int registered)
{
	while (registered--)
		if (testfail_wanted(probes[registered].kp.symbol_name))
			unregister_kprobe(&probes[registered].kp);
}

static int __init testfail_init(void)
{
	int i, rc;

	for (i = 0; i < ARRAY_SIZE(probes); i++) {
		if (!testfail_wanted(probes[i].kp.symbol_name))
			continue;
		rc = register_kprobe(&probes[i].kp);
		if (rc) {
			pr_err("cannot probe %s: %d\n",
			       probes[i].kp.symbol_name, rc);
			testfail_unregister(i);
			return rc;
		}
	}
	return 0;
}

static void __exit testfail_exit(void)
{
	testfail_unregister(ARRAY_SIZE(probes));
}

module_init(testfail_init);
module_exit(testfail_exit);

MODULE_DESCRIPTION("Makes a call of another module fail, in a test");
MODULE_LICENSE("GPL");
