//! Instructions of one function of the guest's kernel, by the function graph tracer.
//!
//! The tracer's clock is the guest's time, and that is instructions here: from entry to
//! exit everything is counted that the processor does, interrupts included. What the
//! program's leftover thread gets while the function sleeps is nobody's work, and taken
//! off; no other thread wants to run.

use anyhow::{Context, Result, ensure};

use super::measure::{Migrator, run};
use crate::machine::Guest;

const TRACING: &str = "/sys/kernel/tracing";
/// Room for an entry of each of some ten thousand folios.
const BUFFER_KIB: u32 = 16 << 10;

/// How often a run is repeated whose figures contradict each other.
const ATTEMPTS: u32 = 3;

/// Instructions that a program's migrations spend in the migrator's copy, the
/// interrupts that come meanwhile included; `None` if it cannot be told.
///
/// The leftover thread may also run while `move_pages` sleeps elsewhere. With few folios that
/// can be more than the copy itself: then the difference means nothing.
pub(super) fn instructions(
    guest: &mut Guest,
    migrator: Migrator,
    command: &str,
) -> Result<Option<u64>> {
    for _ in 0..ATTEMPTS {
        let (inside, left) = attempt(guest, migrator, command)?;
        if left < inside {
            return Ok(Some(inside - left));
        }
    }
    Ok(None)
}

/// Instructions between entries and exits of the copy, and those of the leftover thread.
fn attempt(guest: &mut Guest, migrator: Migrator, command: &str) -> Result<(u64, u64)> {
    let function = migrator.copy_function();
    guest.ok(&format!(
        "cd {TRACING} && echo nop > current_tracer && echo {BUFFER_KIB} > buffer_size_kb \
         && echo 1 > options/sleep-time && echo 1 > options/funcgraph-tail \
         && echo {function} > set_ftrace_filter && echo function_graph > current_tracer \
         && echo > trace && echo 1 > tracing_on"
    ))?;
    let report = run(guest, command);
    let log = guest.ok(&format!(
        "cd {TRACING} && echo 0 > tracing_on && grep ' us ' trace; \
         grep -h overrun per_cpu/cpu*/stats; \
         echo nop > current_tracer && echo > set_ftrace_filter && echo > trace"
    ))?;
    for line in log.lines().filter(|line| line.contains("overrun:")) {
        let lost = line.rsplit(' ').next().unwrap_or_default();
        ensure!(lost == "0", "the trace lost entries: {line}");
    }
    let inside = total(&log, function)?;
    ensure!(
        inside > 0,
        "{function} was never called, or cannot be traced"
    );
    match migrator {
        // It does not sleep.
        Migrator::Cpu => report.map(|_| (inside, 0)),
        _ => Ok((inside, report?.number("/phase_ns/left")?)),
    }
}

/// Sums the durations of outermost calls, which are indented by two spaces:
/// ` 0)   1.234 us    |  func();` or ` 0) + 12.345 us   |  } /* func */`.
fn total(log: &str, function: &str) -> Result<u64> {
    let mut sum = 0;
    for line in log.lines() {
        let Some((time, call)) = line.split_once(" us ") else {
            continue;
        };
        let Some((_, call)) = call.split_once('|') else {
            continue;
        };
        let outermost = call.starts_with("  ") && !call.starts_with("   ");
        if !outermost || !call.contains(function) {
            continue;
        }
        let microseconds = time.rsplit(' ').next().unwrap_or_default();
        let value: f64 = microseconds
            .parse()
            .with_context(|| format!("no duration in {line}"))?;
        sum += (value * 1000.0).round() as u64;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outermost_calls_are_summed() -> Result<()> {
        let log = " 0)   1.234 us    |  handle_edge_irq();\n \
                   0)               |  dcbm_offload_copy [dcbm]() {\n \
                   0)   9.000 us    |    handle_edge_irq();\n \
                   0) + 12.500 us   |  } /* dcbm_offload_copy [dcbm] */\n \
                   0)   2.000 us    |  handle_edge_irq();\n\
                   overrun: 0\n";
        assert_eq!(total(log, "handle_edge_irq")?, 3234);
        assert_eq!(total(log, "dcbm_offload_copy")?, 12500);
        assert_eq!(total("", "x")?, 0);
        Ok(())
    }
}
