/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM ptdma_migrator

#if !defined(_PTDMA_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _PTDMA_TRACE_H

#include <linux/tracepoint.h>

#include "ptdma_migrator.h"

#ifndef PTDMA_RECOVERY_STEPS
#define PTDMA_RECOVERY_STEPS
enum ptdma_recovery_step {
	PTDMA_RECOVERY_ABSENT,
	PTDMA_RECOVERY_RESET,
	PTDMA_RECOVERY_CUT_OFF,
};
#endif

/* What user space needs to know to print the names in TP_printk(). */
TRACE_DEFINE_ENUM(PTDMA_EVENT_ERROR);
TRACE_DEFINE_ENUM(PTDMA_EVENT_FAULT);
TRACE_DEFINE_ENUM(PTDMA_EVENT_RESTARTED);
TRACE_DEFINE_ENUM(PTDMA_EVENT_LOST_INTERRUPT);
TRACE_DEFINE_ENUM(PTDMA_EVENT_TERMINATED);
TRACE_DEFINE_ENUM(PTDMA_EVENT_NOT_STOPPED);
TRACE_DEFINE_ENUM(PTDMA_EVENT_REVIVED);
TRACE_DEFINE_ENUM(PTDMA_EVENT_RETIRED);
TRACE_DEFINE_ENUM(PTDMA_EVENT_NOTHING_MOVES);
TRACE_DEFINE_ENUM(PTDMA_RECOVERY_ABSENT);
TRACE_DEFINE_ENUM(PTDMA_RECOVERY_RESET);
TRACE_DEFINE_ENUM(PTDMA_RECOVERY_CUT_OFF);

TRACE_EVENT(ptdma_batch_start,
	    TP_PROTO(unsigned int folios),
	    TP_ARGS(folios),
	    TP_STRUCT__entry(__field(unsigned int, folios)),
	    TP_fast_assign(__entry->folios = folios;),
	    TP_printk("folios=%u", __entry->folios)
);

TRACE_EVENT(ptdma_batch_end,
	    TP_PROTO(unsigned int folios, unsigned int copied, unsigned int sleeps,
		     u64 ns, int rc),
	    TP_ARGS(folios, copied, sleeps, ns, rc),
	    TP_STRUCT__entry(__field(unsigned int, folios)
			     __field(unsigned int, copied)
			     __field(unsigned int, sleeps)
			     __field(u64, ns)
			     __field(int, rc)),
	    TP_fast_assign(__entry->folios = folios;
			   __entry->copied = copied;
			   __entry->sleeps = sleeps;
			   __entry->ns = ns;
			   __entry->rc = rc;),
	    TP_printk("folios=%u copied=%u sleeps=%u ns=%llu rc=%d",
		      __entry->folios, __entry->copied, __entry->sleeps,
		      __entry->ns, __entry->rc)
);

TRACE_EVENT(ptdma_round,
	    TP_PROTO(unsigned int folios, const struct ptdma_result *result),
	    TP_ARGS(folios, result),
	    TP_STRUCT__entry(__field(unsigned int, folios)
			     __field(u32, by_dma)
			     __field(u32, by_cpu)
			     __field(u32, failed)
			     __field(u32, not_attempted)
			     __field(u32, channels)
			     __field(u32, descriptors)
			     __field(u64, unproven)),
	    TP_fast_assign(__entry->folios = folios;
			   __entry->by_dma = result->by_dma;
			   __entry->by_cpu = result->by_cpu;
			   __entry->failed = result->failed;
			   __entry->not_attempted = result->not_attempted;
			   __entry->channels = result->channels;
			   __entry->descriptors = result->descriptors;
			   __entry->unproven = result->unproven;),
	    TP_printk("folios=%u dma=%u cpu=%u failed=%u not_attempted=%u channels=%u descriptors=%u unproven=%#llx",
		      __entry->folios, __entry->by_dma, __entry->by_cpu,
		      __entry->failed, __entry->not_attempted, __entry->channels,
		      __entry->descriptors, __entry->unproven)
);

TRACE_EVENT(ptdma_channel_event,
	    TP_PROTO(u32 chan, u32 event, u64 code),
	    TP_ARGS(chan, event, code),
	    TP_STRUCT__entry(__field(u32, chan)
			     __field(u32, event)
			     __field(u64, code)),
	    TP_fast_assign(__entry->chan = chan;
			   __entry->event = event;
			   __entry->code = code;),
	    TP_printk("chan=%u event=%s code=%#llx", __entry->chan,
		      __print_symbolic(__entry->event,
				       { PTDMA_EVENT_ERROR, "error" },
				       { PTDMA_EVENT_FAULT, "fault" },
				       { PTDMA_EVENT_RESTARTED, "restarted" },
				       { PTDMA_EVENT_LOST_INTERRUPT, "lost_interrupt" },
				       { PTDMA_EVENT_TERMINATED, "terminated" },
				       { PTDMA_EVENT_NOT_STOPPED, "not_stopped" },
				       { PTDMA_EVENT_REVIVED, "revived" },
				       { PTDMA_EVENT_RETIRED, "retired" },
				       { PTDMA_EVENT_NOTHING_MOVES, "nothing_moves" }),
		      __entry->code)
);

TRACE_EVENT(ptdma_recovery,
	    TP_PROTO(u32 chan, u32 step, int rc),
	    TP_ARGS(chan, step, rc),
	    TP_STRUCT__entry(__field(u32, chan)
			     __field(u32, step)
			     __field(int, rc)),
	    TP_fast_assign(__entry->chan = chan;
			   __entry->step = step;
			   __entry->rc = rc;),
	    TP_printk("chan=%u step=%s rc=%d", __entry->chan,
		      __print_symbolic(__entry->step,
				       { PTDMA_RECOVERY_ABSENT, "absent" },
				       { PTDMA_RECOVERY_RESET, "reset" },
				       { PTDMA_RECOVERY_CUT_OFF, "cut_off" }),
		      __entry->rc)
);

#endif /* _PTDMA_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
