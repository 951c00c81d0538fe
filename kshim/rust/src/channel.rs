//! A PTDMA channel as `batch-copy` wants it, with events for the kernel's tracepoints.

use batch_copy::{
    CopyChannel, Failure, Health, Limits, PrepError, Prepared, Progress, Segment, Stopped,
};
use ptdma::{
    Anomaly, BringUpError, Channel, ChannelConfig, Clock, CoherentRing, Cookie, CookieStart,
    Deadline, DmaAddr, ErrorHead, Fault, FunctionQuiesced, Mmio, Notify, ProbeError, Signalling,
    Stats, SubmitError,
};

use crate::abi::{ChannelSetup, Event};
use crate::kernel;

/// How long an engine gets to stop when it is told to, in nanoseconds: it finishes the descriptor
/// in work, at most 2 MiB, which takes 140 us. Waited for with interrupts off.
const HALT_NS: u64 = 2_000_000;

/// How long an engine gets to refuse a descriptor at bring-up, in nanoseconds. Silicon takes
/// microseconds. An emulated engine is a thread, which a busy host was seen not to run for 50 ms;
/// and an engine of which this is not known is treated with caution for as long as it is up.
const PROBE_NS: u64 = 1_000_000_000;

/// The kernel's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelClock;

impl Clock for KernelClock {
    #[inline]
    fn now(&self) -> u64 {
        kernel::now_ns()
    }
}

/// A channel of the system.
pub(crate) struct KernelChannel {
    number: usize,
    node: Option<u16>,
    error_head: ErrorHead,
    engine: Channel<Mmio<'static>, CoherentRing<'static>>,
}

impl KernelChannel {
    /// Brings a channel up on registers and ring memory.
    pub(crate) fn bring_up(
        number: usize,
        registers: Mmio<'static>,
        ring: CoherentRing<'static>,
        setup: &ChannelSetup,
        first_cookie: Cookie,
    ) -> Result<Self, BringUpError> {
        let config = ChannelConfig {
            signalling: Signalling::Interrupts,
            first_cookie: CookieStart(first_cookie),
            ..ChannelConfig::default()
        };
        // Memory that is not taken goes back to its owner, who has kept its address.
        let mut engine = Channel::bring_up(registers, ring, config).map_err(|(e, _, _)| e)?;
        // A head that had passed a failed descriptor would count as a copy, so nothing is taken
        // for granted. An engine that does not fail what it should is treated with caution.
        let clock = KernelClock;
        let deadline = Deadline::after(&clock, PROBE_NS);
        let error_head = match engine.probe_error_head(&clock, deadline) {
            Ok(error_head) => error_head,
            Err(ProbeError::NotRefused) => {
                kernel::report(number, Event::NotRefused, 0);
                ErrorHead::PastFailing
            }
            Err(_) => return Err(BringUpError::StillRunning { control: u32::MAX }),
        };
        Ok(Self {
            number,
            node: u16::try_from(setup.node).ok(),
            error_head,
            engine,
        })
    }

    /// Whether the head stays at a descriptor that failed.
    pub(crate) fn head_stays(&self) -> bool {
        self.error_head == ErrorHead::AtFailing
    }

    /// Programs the queue anew, on the owner's word that the function touches no memory.
    pub(crate) fn recover(&mut self, proof: FunctionQuiesced) -> Result<(), BringUpError> {
        match self.engine.recover(proof) {
            Ok(_) => Ok(()),
            Err((e, _)) => Err(e),
        }
    }

    /// Turns the queue off. The engine was stopped before, so this is for the function's own
    /// peace; a function that does not even answer any more has nothing to be turned off.
    pub(crate) fn shut_down(self) {
        let clock = KernelClock;
        let deadline = Deadline::after(&clock, HALT_NS);
        if let Err((e, _)) = self.engine.shutdown(&clock, deadline) {
            kernel::report(self.number, Event::NotStopped, u64::from(e.control));
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        self.engine.stats()
    }

    fn progress(&self, answer: Result<ptdma::Progress, Fault>) -> Progress {
        match answer {
            Ok(progress) => {
                if progress.failure.is_some() || progress.anomaly.is_some() {
                    self.report(&progress);
                }
                Progress {
                    done_before: progress.done_before,
                    failure: progress.failure.map(|failure| Failure {
                        cookie: failure.cookie,
                        code: failure.code.raw(),
                    }),
                    health: Health::Alive,
                }
            }
            Err(fault) => {
                kernel::report(self.number, Event::Fault, fault_code(fault));
                Progress {
                    done_before: self.engine.done_before(),
                    failure: None,
                    health: Health::Faulted,
                }
            }
        }
    }

    #[cold]
    fn report(&self, progress: &ptdma::Progress) {
        if let Some(failure) = progress.failure {
            kernel::report(self.number, Event::Error, u64::from(failure.code.raw()));
        }
        match progress.anomaly {
            Some(Anomaly::Restarted) => kernel::report(self.number, Event::Restarted, 0),
            Some(Anomaly::LostInterrupt) => kernel::report(self.number, Event::LostInterrupt, 0),
            _ => {}
        }
    }
}

/// What a fault tells tracepoints: the raw register where there is one.
fn fault_code(fault: Fault) -> u64 {
    match fault {
        Fault::BadHead { raw } => u64::from(raw),
        Fault::UnattributedError { code } | Fault::WillNotHalt { code } => u64::from(code.raw()),
        _ => u64::from(u32::MAX),
    }
}

impl CopyChannel for KernelChannel {
    fn limits(&self) -> Limits {
        Limits {
            max_len_bytes: u64::from(self.engine.limits().max_len_bytes()),
            align_bytes: 1,
            node: self.node,
            ring_slots: self.engine.capacity(),
        }
    }

    fn next_cookie(&self) -> Cookie {
        self.engine.next_cookie()
    }

    #[inline]
    fn free_slots(&self) -> usize {
        self.engine.burst_capacity()
    }

    #[inline]
    fn prep(&mut self, copy: Segment, interrupt: bool) -> Result<Cookie, PrepError> {
        let request = self
            .engine
            .prep_copy(copy.src, copy.dst, copy.len_bytes)
            .map_err(|_| PrepError::Rejected)?;
        let notify = notify(interrupt);
        self.engine.submit(&request, notify).map_err(prep_error)
    }

    #[inline]
    fn prep_all(&mut self, copies: impl Iterator<Item = Segment>, mark: Option<usize>) -> Prepared {
        let copies = copies.map(|copy| (copy.src, copy.dst, copy.len_bytes));
        let submitted = self.engine.submit_all(copies, mark);
        Prepared {
            first: Some(submitted.first),
            count: submitted.count,
            bytes: submitted.bytes,
            error: submitted.error.map(prep_error),
        }
    }

    #[inline]
    fn issue_pending(&mut self, interrupt: bool) {
        self.engine.issue_pending(notify(interrupt));
    }

    fn poll(&mut self, _now_ns: u64) -> Progress {
        let answer = self.engine.poll();
        self.progress(answer)
    }

    fn interrupt(&mut self, _now_ns: u64) -> Progress {
        let answer = self.engine.handle_interrupt();
        self.progress(answer)
    }

    fn overdue(&mut self, _now_ns: u64) -> Progress {
        let answer = self.engine.check_lost_interrupt();
        self.progress(answer)
    }

    fn terminate(&mut self, _now_ns: u64) -> Stopped {
        let clock = KernelClock;
        let deadline = Deadline::after(&clock, HALT_NS);
        match self.engine.terminate(&clock, deadline) {
            Ok(terminated) => {
                kernel::report(self.number, Event::Terminated, terminated.dropped);
                Stopped {
                    done_before: terminated.first_dropped,
                    proven: true,
                    health: match self.engine.fault() {
                        None => Health::Alive,
                        Some(_) => Health::Faulted,
                    },
                }
            }
            Err(e) => {
                kernel::report(self.number, Event::NotStopped, u64::from(e.control));
                Stopped {
                    done_before: e.first,
                    proven: false,
                    health: Health::Faulted,
                }
            }
        }
    }
}

fn prep_error(error: SubmitError) -> PrepError {
    match error {
        SubmitError::Request(_) => PrepError::Rejected,
        SubmitError::RingFull { .. } => PrepError::Full,
        _ => PrepError::Faulted,
    }
}

const fn notify(interrupt: bool) -> Notify {
    if interrupt {
        Notify::Interrupt
    } else {
        Notify::Silent
    }
}

/// A bus address.
pub(crate) const fn bus(addr: u64) -> DmaAddr {
    DmaAddr::new(addr)
}
