/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PTDMA migrator: what fronts in modules of their own call
 */
#ifndef _PTDMA_FOLIO_H
#define _PTDMA_FOLIO_H

#include <linux/types.h>

struct folio;

/* Pairs of one call: as many as folios of a round, so that a call is one batch. */
#define PTDMA_MAX_PAIRS	512U

/**
 * enum ptdma_pair_state - What became of the content of a pair.
 * @PTDMA_PAIR_LEFT: The destination lacks bytes; the CPU must copy all of them.
 * @PTDMA_PAIR_BY_ENGINES: Engines copied every byte.
 * @PTDMA_PAIR_BY_BOTH: The destination has every byte; the CPU copied some.
 * @PTDMA_PAIR_HELD: An engine may still write to the destination.  The quarantine
 *	has a reference to the destination; the caller drops its own, and nobody
 *	uses the folio.
 */
enum ptdma_pair_state {
	PTDMA_PAIR_LEFT,
	PTDMA_PAIR_BY_ENGINES,
	PTDMA_PAIR_BY_BOTH,
	PTDMA_PAIR_HELD,
};

/**
 * struct ptdma_pair - A folio to copy.
 * @dst: Destination, which nobody else uses.
 * @src: Source, locked and unmapped, of the same size.
 * @state: What became of it.
 */
struct ptdma_pair {
	struct folio *dst;
	struct folio *src;
	enum ptdma_pair_state state;
};

void ptdma_copy_pairs(struct ptdma_pair *pairs, unsigned int nr, bool may_sleep);
int ptdma_copy_folio(struct folio *dst, struct folio *src, bool may_sleep);
bool ptdma_is_poisoned(struct folio *folio);

#endif /* _PTDMA_FOLIO_H */
