/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What kernels from 6.1 on lack of what this module uses
 *
 * Everything here does less than in a newer kernel, and never something else.
 * Kbuild says in PTDMA_KERNEL which kernel it is: 6012 is Linux 6.12.
 */
#ifndef _PTDMA_COMPAT_H
#define _PTDMA_COMPAT_H

#include <linux/atomic.h>
#include <linux/dma-mapping.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#if PTDMA_KERNEL < 6010
/*
 * A work item that is disabled can still be queued, and looks at @off first.  One
 * that looked before @off grew is running, and is waited for.
 */
static inline void ptdma_work_disable(struct delayed_work *work, atomic_t *off)
{
	atomic_inc(off);
	cancel_delayed_work_sync(work);
}

static inline void ptdma_work_enable(struct delayed_work *work, atomic_t *off)
{
	atomic_dec(off);
}
#else
static inline void ptdma_work_disable(struct delayed_work *work, atomic_t *off)
{
	disable_delayed_work_sync(work);
}

static inline void ptdma_work_enable(struct delayed_work *work, atomic_t *off)
{
	enable_delayed_work(work);
}
#endif

#ifndef kvmalloc_obj
#define kvmalloc_obj(obj, gfp)	kvmalloc(sizeof(obj), gfp)
#endif

#ifndef kvzalloc_obj
#define kvzalloc_obj(obj, gfp)	kvzalloc(sizeof(obj), gfp)
#endif

#if PTDMA_KERNEL < 6004 && defined(copy_mc_to_kernel)
static inline int copy_mc_highpage(struct page *to, struct page *from)
{
	int rc = copy_mc_user_highpage(to, from, 0, NULL);

	if (rc)
		memory_failure_queue(page_to_pfn(from), 0);
	return rc;
}
#endif

#if PTDMA_KERNEL < 6012
/* The whole table of BARs, of which one is used. */
static inline void __iomem *pcim_iomap_region(struct pci_dev *pdev, int bar,
					      const char *name)
{
	int rc = pcim_iomap_regions(pdev, BIT(bar), name);

	return rc ? IOMEM_ERR_PTR(rc) : pcim_iomap_table(pdev)[bar];
}
#endif

#if PTDMA_KERNEL < 6016
/* Without windows of bus addresses, scattered pages are mapped one by one. */
struct dma_iova_state {
	dma_addr_t addr;
};

static inline bool dma_iova_try_alloc(struct device *dev,
				      struct dma_iova_state *state,
				      phys_addr_t phys, size_t size)
{
	return false;
}

static inline void dma_iova_free(struct device *dev,
				 struct dma_iova_state *state)
{
}

static inline void dma_iova_destroy(struct device *dev,
				    struct dma_iova_state *state, size_t len,
				    enum dma_data_direction dir,
				    unsigned long attrs)
{
}

static inline int dma_iova_link(struct device *dev,
				struct dma_iova_state *state, phys_addr_t phys,
				size_t offset, size_t size,
				enum dma_data_direction dir,
				unsigned long attrs)
{
	return -EOPNOTSUPP;
}

static inline void dma_iova_unlink(struct device *dev,
				   struct dma_iova_state *state, size_t offset,
				   size_t size, enum dma_data_direction dir,
				   unsigned long attrs)
{
}

static inline int dma_iova_sync(struct device *dev,
				struct dma_iova_state *state, size_t offset,
				size_t size)
{
	return -EOPNOTSUPP;
}

/* Unmapping what needs no unmapping costs time only. */
static inline bool dma_need_unmap(struct device *dev)
{
	return true;
}
#endif

#if PTDMA_KERNEL < 6018
static inline dma_addr_t dma_map_phys(struct device *dev, phys_addr_t phys,
				      size_t size, enum dma_data_direction dir,
				      unsigned long attrs)
{
	return dma_map_page_attrs(dev, pfn_to_page(PHYS_PFN(phys)),
				  offset_in_page(phys), size, dir, attrs);
}

static inline void dma_unmap_phys(struct device *dev, dma_addr_t addr,
				  size_t size, enum dma_data_direction dir,
				  unsigned long attrs)
{
	dma_unmap_page_attrs(dev, addr, size, dir, attrs);
}
#endif

#if PTDMA_KERNEL < 6019
/* migrate_vma splits huge pages. */
#define PTDMA_KEEPS_HUGE	0
#define PTDMA_PFN_COMPOUND	0
#define PTDMA_SELECT_COMPOUND	0
#else
#define PTDMA_KEEPS_HUGE	1
#define PTDMA_PFN_COMPOUND	MIGRATE_PFN_COMPOUND
#define PTDMA_SELECT_COMPOUND	MIGRATE_VMA_SELECT_COMPOUND
#endif

#endif /* _PTDMA_COMPAT_H */
