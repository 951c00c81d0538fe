/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The two shapes of the migrator interface
 *
 * The one of the fourth posting: migrate_offload_start(), should_batch().  The
 * newer one: migrate_offload_register() with a mask of reasons, and no
 * should_batch().  Kbuild looks which one the kernel's header has.
 */
#ifndef _PTDMA_COMPAT_H
#define _PTDMA_COMPAT_H

#include <linux/migrate_copy_offload.h>

/* Every reason there is; both shapes number them by enum migrate_reason. */
#ifdef MIGRATE_OFFLOAD_ALL_REASONS
#define PTDMA_ALL_REASONS	MIGRATE_OFFLOAD_ALL_REASONS
#else
#define PTDMA_ALL_REASONS	GENMASK(MR_TYPES - 1, 0)
#endif

#ifdef PTDMA_NO_MARK_HELPER
static inline void folio_mark_content_copied(struct folio *dst)
{
	dst->migrate_info |= FOLIO_CONTENT_COPIED;
}
#endif

#endif /* _PTDMA_COMPAT_H */
