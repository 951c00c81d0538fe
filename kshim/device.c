// SPDX-License-Identifier: GPL-2.0-only
/*
 * Device: a range of a process's memory moves to a node, in batches
 *
 * For unpatched kernels, whose own migration has no batches of small folios.  The
 * kernel unmaps and locks the pages of a window, engines copy all of them, and the
 * kernel maps the copies.  A page that cannot be copied is mapped again where it was.
 *
 * The file is the capability: it has the memory of whoever opened it, and of nobody
 * else.  A module cannot ask what move_pages(2) asks, whether the caller may trace
 * another process.  pidfd_getfd(2) asks that of those who take such a file over.
 */
#include <linux/capability.h>
#include <linux/cpuset.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/huge_mm.h>
#include <linux/migrate.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/nodemask.h>
#include <linux/pgtable.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "include/ptdma_move.h"
#include "ptdma_folio.h"

/*
 * Pages that are unmapped and locked at once.  Where huge pages stay whole it takes
 * several of them to make a batch; small ones alone fill one.
 */
#define PTDMA_WINDOW_PAGES	(PTDMA_KEEPS_HUGE ? 16 * HPAGE_PMD_NR : \
				 PTDMA_MAX_PAIRS)

/* The end of a window is a boundary of huge pages. */
static_assert(PTDMA_WINDOW_PAGES % HPAGE_PMD_NR == 0);

/*
 * New memory is on the node or nowhere, and without reclaim: who waits for the pages
 * of the window would wait for reclaim, too.
 */
#define PTDMA_MOVE_GFP	((GFP_HIGHUSER_MOVABLE & ~__GFP_RECLAIM) | \
			 __GFP_THISNODE | __GFP_NOWARN | __GFP_NOMEMALLOC)

/**
 * struct ptdma_move_window - What a window needs.
 * @src: Pages of the window, as migrate_vma has them.
 * @dst: Their new places.
 * @pairs: Folios that move.
 * @at: For each pair, its index in @src and @dst.
 * @nr_pairs: How many.
 */
struct ptdma_move_window {
	unsigned long src[PTDMA_WINDOW_PAGES];
	unsigned long dst[PTDMA_WINDOW_PAGES];
	struct ptdma_pair pairs[PTDMA_WINDOW_PAGES];
	u16 at[PTDMA_WINDOW_PAGES];
	unsigned int nr_pairs;
};

static_assert(PTDMA_WINDOW_PAGES <= U16_MAX);

/*
 * Before 6.19 a kernel that is to split a huge page whose lock somebody holds forgets
 * to give a reference back, and the page is never free again.  Callers of the device,
 * at least, do not meet in there.
 */
static DEFINE_MUTEX(ptdma_splitting);

static void ptdma_tell(struct ptdma_move *move, enum ptdma_fate fate, u64 bytes)
{
	move->bytes[fate] += bytes;
}

/* The entry for a huge page at an address; none where there is no table of them. */
static pmd_t ptdma_huge_entry(struct mm_struct *mm, unsigned long addr)
{
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;
	pud_t *pud;

	if (pgd_none(*pgd) || pgd_bad(*pgd))
		return __pmd(0);
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(*p4d) || p4d_bad(*p4d))
		return __pmd(0);
	pud = pud_offset(p4d, addr);
	if (pud_none(*pud) || pud_bad(*pud))
		return __pmd(0);
	return READ_ONCE(*pmd_offset(pud, addr));
}

/* Pages that an entry of a window stands for. */
static unsigned int ptdma_entry_pages(unsigned long entry)
{
	return entry & PTDMA_PFN_COMPOUND ? HPAGE_PMD_NR : 1;
}

/* What keeps a folio where it is, PTDMA_BY_CPU if nothing does. */
static enum ptdma_fate ptdma_judge(struct folio *folio, unsigned int pages,
				   int node)
{
	if (folio_nid(folio) == node)
		return PTDMA_THERE;
	/* migrate_vma asks no file system. */
	if (!folio_test_anon(folio) || folio_test_ksm(folio))
		return PTDMA_KIND;
	if (ptdma_is_poisoned(folio))
		return PTDMA_POISONED;
	/* migrate_vma takes this for a bug.  It cannot begin: the folio is locked. */
	if (folio_test_writeback(folio) || folio_nr_pages(folio) != pages)
		return PTDMA_BUSY;
	return PTDMA_BY_CPU;
}

/* Chooses the folios that move, and gives each a new place. */
static void ptdma_choose(struct ptdma_move_window *window, unsigned long npages,
			 struct ptdma_move *move)
{
	unsigned int i, pages;

	window->nr_pairs = 0;
	for (i = 0; i < npages; i += pages) {
		struct page *page = migrate_pfn_to_page(window->src[i]);
		enum ptdma_fate fate;
		struct folio *dst;

		pages = ptdma_entry_pages(window->src[i]);
		window->dst[i] = 0;
		if (!(window->src[i] & MIGRATE_PFN_MIGRATE)) {
			ptdma_tell(move, PTDMA_BUSY, pages * PAGE_SIZE);
			continue;
		}
		if (!page) {
			ptdma_tell(move, PTDMA_ABSENT, pages * PAGE_SIZE);
			continue;
		}
		fate = ptdma_judge(page_folio(page), pages, move->node);
		if (fate != PTDMA_BY_CPU) {
			ptdma_tell(move, fate, pages * PAGE_SIZE);
			continue;
		}
		dst = __folio_alloc(PTDMA_MOVE_GFP, ilog2(pages), move->node,
				    NULL);
		if (!dst) {
			ptdma_tell(move, PTDMA_NO_MEMORY, pages * PAGE_SIZE);
			continue;
		}
		folio_lock(dst);
		window->dst[i] = migrate_pfn(folio_pfn(dst)) |
				 (window->src[i] & PTDMA_PFN_COMPOUND);
		window->at[window->nr_pairs] = i;
		window->pairs[window->nr_pairs++] = (struct ptdma_pair) {
			.dst = dst,
			.src = page_folio(page),
		};
	}
}

static bool ptdma_copy_by_cpu(struct folio *dst, struct folio *src)
{
	long i, nr = folio_nr_pages(src);

	for (i = 0; i < nr; i++) {
		if (copy_mc_highpage(folio_page(dst, i), folio_page(src, i)))
			return false;
		cond_resched();
	}
	return true;
}

static enum ptdma_fate ptdma_copy_rest(struct ptdma_pair *pair)
{
	switch (pair->state) {
	case PTDMA_PAIR_BY_ENGINES:
		return PTDMA_BY_ENGINES;
	case PTDMA_PAIR_HELD:
		return PTDMA_HELD;
	case PTDMA_PAIR_BY_BOTH:
		return PTDMA_BY_CPU;
	default:
		return ptdma_copy_by_cpu(pair->dst, pair->src) ?
		       PTDMA_BY_CPU : PTDMA_UNREADABLE;
	}
}

/* Has engines copy, and then the CPU what they did not; gives up what nobody could. */
static void ptdma_copy_window(struct ptdma_move_window *window,
			      struct ptdma_move *move)
{
	unsigned int i;

	for (i = 0; i < window->nr_pairs; i += PTDMA_MAX_PAIRS)
		ptdma_copy_pairs(window->pairs + i,
				 min(window->nr_pairs - i, PTDMA_MAX_PAIRS),
				 true);

	for (i = 0; i < window->nr_pairs; i++) {
		struct ptdma_pair *pair = &window->pairs[i];
		enum ptdma_fate fate = ptdma_copy_rest(pair);

		if (fate == PTDMA_BY_ENGINES || fate == PTDMA_BY_CPU)
			continue;
		ptdma_tell(move, fate, folio_size(pair->src));
		window->dst[window->at[i]] = 0;
		folio_unlock(pair->dst);
		folio_put(pair->dst);
		pair->dst = NULL;
	}
}

/* The kernel has moved what it could: somebody may have got hold of a page. */
static void ptdma_tell_moved(const struct ptdma_move_window *window,
			     struct ptdma_move *move)
{
	unsigned int i;

	for (i = 0; i < window->nr_pairs; i++) {
		const struct ptdma_pair *pair = &window->pairs[i];
		unsigned long entry = window->src[window->at[i]];
		enum ptdma_fate fate = PTDMA_BY_CPU;

		if (!pair->dst)
			continue;
		if (!(entry & MIGRATE_PFN_MIGRATE))
			fate = PTDMA_BUSY;
		else if (pair->state == PTDMA_PAIR_BY_ENGINES)
			fate = PTDMA_BY_ENGINES;
		ptdma_tell(move, fate, folio_size(pair->dst));
	}
}

/* Moves a window of one area; pages that move are locked until it returns. */
static int ptdma_move_window(struct ptdma_move_window *window,
			     struct vm_area_struct *vma, unsigned long start,
			     unsigned long end, struct ptdma_move *move)
{
	struct migrate_vma args = {
		.vma = vma,
		.src = window->src,
		.dst = window->dst,
		.start = start,
		.end = end,
		.pgmap_owner = THIS_MODULE,
		.flags = MIGRATE_VMA_SELECT_SYSTEM | PTDMA_SELECT_COMPOUND,
	};
	bool splits = !PTDMA_KEEPS_HUGE && move->flags & PTDMA_MOVE_MAY_SPLIT;
	int rc;

	if (splits)
		mutex_lock(&ptdma_splitting);
	rc = migrate_vma_setup(&args);
	if (splits)
		mutex_unlock(&ptdma_splitting);
	if (rc)
		return rc;
	/* The kernel fills in no entry behind the page where it gives up. */
	ptdma_tell(move, PTDMA_BUSY, end - start - args.npages * PAGE_SIZE);
	ptdma_choose(window, args.npages, move);
	ptdma_copy_window(window, move);
	migrate_vma_pages(&args);
	ptdma_tell_moved(window, move);
	migrate_vma_finalize(&args);
	return 0;
}

/* Memory of which migrate_vma can move some. */
static bool ptdma_is_movable(struct vm_area_struct *vma)
{
	return vma_is_anonymous(vma) &&
	       !(vma->vm_flags & (VM_SPECIAL | VM_HUGETLB | VM_LOCKED));
}

/*
 * Treats memory from an address on, up to the end of a window at most.
 * Returns where it has stopped, or a negative error code.
 */
static long ptdma_move_some(struct mm_struct *mm,
			    struct ptdma_move_window *window, unsigned long start,
			    unsigned long end, struct ptdma_move *move)
{
	struct vm_area_struct *vma = find_vma(mm, start);
	unsigned long huge, next;
	bool whole;
	pmd_t pmd;
	int rc;

	if (!vma || vma->vm_start >= end) {
		ptdma_tell(move, PTDMA_ABSENT, end - start);
		return end;
	}
	if (vma->vm_start > start) {
		ptdma_tell(move, PTDMA_ABSENT, vma->vm_start - start);
		return vma->vm_start;
	}
	end = min(end, vma->vm_end);
	if (!ptdma_is_movable(vma)) {
		ptdma_tell(move, PTDMA_KIND, end - start);
		return end;
	}
	end = min(end, ALIGN_DOWN(start + PTDMA_WINDOW_PAGES * PAGE_SIZE,
				  HPAGE_PMD_SIZE));
	huge = ALIGN_DOWN(start, HPAGE_PMD_SIZE);
	next = huge + HPAGE_PMD_SIZE;
	pmd = ptdma_huge_entry(mm, huge);
	if (!pmd_none(pmd) && !pmd_present(pmd)) {
		/*
		 * Somebody migrates a huge page.  From 6.5 to 6.18 the kernel would
		 * spin until that is over, and would not let others run.
		 */
		end = min(end, next);
		ptdma_tell(move, PTDMA_BUSY, end - start);
		return end;
	}
	/* One that a page fault brings after this look is split. */
	whole = PTDMA_KEEPS_HUGE && huge == start && next <= end;
	if (pmd_trans_huge(pmd) && !whole &&
	    !(move->flags & PTDMA_MOVE_MAY_SPLIT)) {
		end = min(end, next);
		ptdma_tell(move, PTDMA_HUGE, end - start);
		return end;
	}
	/* Huge pages that stay whole share a window.  Others have one to themselves. */
	if (!whole || !pmd_trans_huge(pmd))
		end = min(end, next);
	for (; next < end; next += HPAGE_PMD_SIZE) {
		if (end - next < HPAGE_PMD_SIZE ||
		    !pmd_trans_huge(ptdma_huge_entry(mm, next)))
			end = next;
	}
	rc = ptdma_move_window(window, vma, start, end, move);
	return rc ?: end;
}

static int ptdma_move_range(struct mm_struct *mm, struct ptdma_move *move)
{
	struct ptdma_move_window *window;
	u64 end = move->addr + move->len;
	int rc = 0;

	window = kvmalloc_obj(*window, GFP_KERNEL_ACCOUNT);
	if (!window)
		return -ENOMEM;
	while (move->next < end) {
		long stopped;

		if (signal_pending(current)) {
			rc = -EINTR;
			break;
		}
		if (mmap_read_lock_killable(mm)) {
			rc = -EINTR;
			break;
		}
		stopped = ptdma_move_some(mm, window, move->next, end, move);
		mmap_read_unlock(mm);
		if (stopped < 0) {
			rc = stopped;
			break;
		}
		move->next = stopped;
		cond_resched();
	}
	kvfree(window);
	return rc;
}

/* Whether the cpuset of whose memory it is has the node. */
static bool ptdma_owner_allows(struct mm_struct *mm, int node)
{
	bool allows = true;
#if defined(CONFIG_MEMCG) && defined(CONFIG_CPUSETS)
	struct task_struct *owner;

	rcu_read_lock();
	owner = rcu_dereference(mm->owner);
	if (owner)
		allows = node_isset(node, owner->mems_allowed);
	rcu_read_unlock();
#endif
	return allows;
}

static int ptdma_move_check(struct mm_struct *mm, const struct ptdma_move *move)
{
	if (move->flags & ~PTDMA_MOVE_MAY_SPLIT || !move->len ||
	    !PAGE_ALIGNED(move->addr) || !PAGE_ALIGNED(move->len) ||
	    move->addr > TASK_SIZE_MAX || move->len > TASK_SIZE_MAX - move->addr)
		return -EINVAL;
	if (mm != current->mm && !capable(CAP_SYS_NICE))
		return -EPERM;
	/* See ptdma_splitting: who reclaims memory can still be met. */
	if (!PTDMA_KEEPS_HUGE && move->flags & PTDMA_MOVE_MAY_SPLIT &&
	    !capable(CAP_SYS_NICE))
		return -EPERM;
	if (move->node >= MAX_NUMNODES || !node_state(move->node, N_MEMORY))
		return -ENODEV;
	if (!node_isset(move->node, cpuset_current_mems_allowed) ||
	    !ptdma_owner_allows(mm, move->node))
		return -EACCES;
	return 0;
}

static long ptdma_move_ioctl(struct file *file, unsigned int cmd,
			     unsigned long arg)
{
	struct ptdma_move __user *user = (struct ptdma_move __user *)arg;
	struct mm_struct *mm = file->private_data;
	struct ptdma_move move;
	int rc;

	if (cmd != PTDMA_IOC_MOVE)
		return -ENOTTY;
	if (copy_from_user(&move, user, sizeof(move)))
		return -EFAULT;
	if (!mmget_not_zero(mm))
		return -ESRCH;
	rc = ptdma_move_check(mm, &move);
	if (!rc) {
		move.next = move.addr;
		memset(move.bytes, 0, sizeof(move.bytes));
		rc = ptdma_move_range(mm, &move);
		if (copy_to_user(user, &move, sizeof(move)))
			rc = -EFAULT;
	}
	mmput(mm);
	return rc;
}

static int ptdma_move_open(struct inode *inode, struct file *file)
{
	if (!current->mm)
		return -EINVAL;
	mmgrab(current->mm);
	file->private_data = current->mm;
	return nonseekable_open(inode, file);
}

static int ptdma_move_release(struct inode *inode, struct file *file)
{
	mmdrop(file->private_data);
	return 0;
}

static const struct file_operations ptdma_move_fops = {
	.owner = THIS_MODULE,
	.open = ptdma_move_open,
	.release = ptdma_move_release,
	.unlocked_ioctl = ptdma_move_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice ptdma_move_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "ptdma_move",
	.fops = &ptdma_move_fops,
	/* Pages that processes share move for all of them: udev may open it to a group. */
	.mode = 0600,
};

module_misc_device(ptdma_move_device);

MODULE_DESCRIPTION("Moves memory to a node in batches with AMD PTDMA engines, on unpatched kernels");
MODULE_LICENSE("GPL");
