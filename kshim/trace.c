// SPDX-License-Identifier: GPL-2.0-only
/*
 * The tracepoints: /sys/kernel/tracing/events/ptdma_migrator/
 */
#define CREATE_TRACE_POINTS
#include "trace.h"
