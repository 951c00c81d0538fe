/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PTDMA migrator: what fronts in modules of their own call
 */
#ifndef _PTDMA_FOLIO_H
#define _PTDMA_FOLIO_H

#include <linux/types.h>

struct folio;

int ptdma_copy_folio(struct folio *dst, struct folio *src, bool may_sleep);

#endif /* _PTDMA_FOLIO_H */
