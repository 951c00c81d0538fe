/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The migrator interface in its newer shape, for a compile test
 *
 * A const struct without should_batch(), registered with a mask of reasons, and
 * marks that providers set themselves.  `make check-newer-interface` includes
 * this first, so that its guard keeps the kernel's own header out.
 */
#ifndef _LINUX_MIGRATE_COPY_OFFLOAD_H
#define _LINUX_MIGRATE_COPY_OFFLOAD_H

#include <linux/bits.h>
#include <linux/migrate_mode.h>
#include <linux/mm_types.h>
#include <linux/types.h>

#define MIGRATOR_NAME_LEN	32
#define FOLIO_CONTENT_COPIED	BIT(2)

struct list_head;
struct module;

struct migrator {
	char name[MIGRATOR_NAME_LEN];
	int (*offload_copy)(struct list_head *dst, struct list_head *src,
			    unsigned int folio_cnt);
	struct module *owner;
};

int migrate_offload_register(const struct migrator *m,
			     unsigned long reason_mask);
int migrate_offload_unregister(const struct migrator *m);
int migrate_offload_set_reason_mask(const struct migrator *m,
				    unsigned long reason_mask);
int migrate_offload_reason_mask_parse(const char *buf,
				      unsigned long *reason_mask);
int migrate_offload_reason_mask_format(char *buf, size_t size,
				       unsigned long reason_mask);

#endif /* _LINUX_MIGRATE_COPY_OFFLOAD_H */
