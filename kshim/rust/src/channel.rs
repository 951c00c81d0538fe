//! A PTDMA channel of the kernel's: its clock, and its events for the kernel's tracepoints.

use batch_copy::{Observer, PtdmaQueue};
use ptdma::regs::{ALL_ONES, QueueControl, Register};
use ptdma::{
    Anomaly, Channel, ChannelConfig, Clock, CoherentRing, Cookie, Deadline, DmaAddr, Fault, Mmio,
    NotStopped, ProbeError, Progress, RegisterIo, Signalling, Terminated,
};

use crate::abi::{ChannelSetup, Event};
use crate::errno;
use crate::kernel;

/// How long an engine gets to stop when it is told to, in nanoseconds. It finishes the descriptor
/// in work, at most 2 MiB, which takes 144 us, and twice that if its port is shared. Waited for
/// with interrupts off; an engine that takes longer is cut off from memory, where sleeping is
/// possible.
const HALT_NS: u64 = 300_000;

/// How long an engine gets to show at bring-up what it is like, in nanoseconds. Silicon takes
/// microseconds. An emulated engine is a thread, which a host with eight times more to do than
/// processors was seen not to run for a second.
const FIND_OUT_NS: u64 = 3_000_000_000;

/// The kernel's clock. One type for all waits: each would have code of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelClock {
    /// Others may run while a wait lasts: no lock is held.
    yields: bool,
}

impl KernelClock {
    const LOCKED: Self = Self { yields: false };
    const YIELDING: Self = Self { yields: true };
}

impl Clock for KernelClock {
    #[inline]
    fn now(&self) -> u64 {
        if self.yields {
            kernel::yield_now();
        }
        kernel::now_ns()
    }
}

/// Whether the queue has lost the size of its ring, which is written at bring-up and is never 0.
pub(crate) fn was_reset(registers: &Mmio) -> bool {
    has_lost_ring(registers.read(Register::Control))
}

const fn has_lost_ring(control: u32) -> bool {
    let set_up = QueueControl::SIZE.bits() | QueueControl::RUN.bits();
    control != ALL_ONES && control & set_up == 0
}

/// A channel of the system.
pub(crate) type KernelQueue = PtdmaQueue<Mmio, CoherentRing, KernelClock, Reports>;

/// Brings a channel up on registers and ring memory. The error is a negative error number, see
/// [`ptdma_rs_channel_up`](crate::exports::ptdma_rs_channel_up).
pub(crate) fn bring_up(
    number: usize,
    registers: Mmio,
    ring: CoherentRing,
    setup: &ChannelSetup,
    first_cookie: Cookie,
) -> Result<KernelQueue, i32> {
    let mut config = ChannelConfig::default();
    config.signalling = Signalling::Interrupts;
    config.first_cookie = first_cookie;
    // Memory that is not taken goes back to its owner, who has kept its address.
    let mut engine =
        Channel::bring_up(registers, ring, config).map_err(|(e, _, _)| errno::of_bring_up(e))?;
    // Not before: an engine that a previous owner left running would go on.
    kernel::master_on(number);
    // Copies inside the ring show what this engine is like.
    let deadline = Deadline::after(&KernelClock::YIELDING, FIND_OUT_NS);
    if let Err(e) = engine.find_out(&KernelClock::YIELDING, deadline) {
        if let ProbeError::NothingMoves {
            control,
            head,
            tail,
            ..
        } = e
        {
            kernel::report(number, Event::NotStopped, u64::from(control));
            let seen = u64::from(head).wrapping_shl(32) | u64::from(tail);
            kernel::report(number, Event::NothingMoves, seen);
        }
        // It knows the ring by now.
        return Err(-errno::ETIMEDOUT);
    }
    let node = u16::try_from(setup.node).ok();
    Ok(PtdmaQueue::new(engine, node)
        .with_port(u32::try_from(setup.port).ok())
        .with_clock(KernelClock::LOCKED, HALT_NS)
        .with_observer(Reports(number)))
}

/// Turns a queue off. The engine was stopped before, so this is for the function's own peace. A
/// function that does not even answer any more has nothing to be turned off.
pub(crate) fn shut_down(number: usize, queue: KernelQueue) {
    let deadline = Deadline::after(&KernelClock::YIELDING, HALT_NS);
    if let Err((e, _)) = queue
        .into_channel()
        .shutdown(&KernelClock::YIELDING, deadline)
    {
        kernel::report(number, Event::NotStopped, u64::from(e.control));
    }
}

/// Tells the kernel of what happens to the channel with this number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reports(usize);

impl Observer for Reports {
    #[cold]
    fn noticed(&self, progress: &Progress) {
        if let Some(failure) = progress.failure {
            kernel::report(self.0, Event::Error, u64::from(failure.code.raw()));
        }
        match progress.anomaly {
            Some(Anomaly::Restarted) => kernel::report(self.0, Event::Restarted, 0),
            Some(Anomaly::LostInterrupt) => kernel::report(self.0, Event::LostInterrupt, 0),
            _ => {}
        }
    }

    #[cold]
    fn faulted(&self, fault: Fault) {
        kernel::report(self.0, Event::Fault, fault_code(fault));
    }

    fn terminated(&self, terminated: &Terminated) {
        kernel::report(self.0, Event::Terminated, terminated.dropped);
    }

    fn not_stopped(&self, not_stopped: &NotStopped) {
        kernel::report(self.0, Event::NotStopped, u64::from(not_stopped.control));
    }
}

/// What a fault tells tracepoints: the raw register where there is one.
fn fault_code(fault: Fault) -> u64 {
    match fault {
        Fault::BadHead { raw } => u64::from(raw),
        Fault::WillNotHalt { code } => u64::from(code.raw()),
        _ => u64::from(u32::MAX),
    }
}

/// A bus address.
pub(crate) const fn bus(addr: u64) -> DmaAddr {
    DmaAddr::new(addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_queue_without_a_size_was_reset() {
        for log2_entries in 5..=13 {
            let set_up = QueueControl::empty()
                .with_size(log2_entries)
                .with_base_high(3);
            assert!(!has_lost_ring(set_up.bits()), "2^{log2_entries}");
            assert!(!has_lost_ring((set_up | QueueControl::HALT).bits()));
        }
        assert!(has_lost_ring(0));
        // Out of reset an engine may say that it stands.
        assert!(has_lost_ring(QueueControl::HALT.bits()));
        assert!(!has_lost_ring(QueueControl::RUN.bits()));
        assert!(!has_lost_ring(ALL_ONES), "nobody answers");
    }
}
