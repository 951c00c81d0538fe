/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What sparse 0.6.4, the newest release, does not know of the headers of newer
 * kernels; for its own eyes only (make CHECK="sparse -include ...")
 */
#define __typeof_unqual__	__typeof__
/* MODULE_INFO() compares it with a constant, always for a literal. */
#define __builtin_strlen(s)	(sizeof(s) - 1)
