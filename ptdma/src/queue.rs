//! A PTDMA command queue as a channel.

use core::fmt;

use crate::channel::Channel;
use crate::clock::{Deadline, MAX_POLLS};
use crate::completion::Progress;
use crate::cookie::Cookie;
use crate::copy_channel::{
    ChannelLimits, CopyChannel, CopyFailure, CopyProgress, Health, PrepError, Prepared, Segment,
    Stopped,
};
use crate::error::{Anomaly, Fault, NotStopped, SubmitError};
use crate::io::{Clock, RegisterIo, RingMemory};
use crate::lifecycle::Terminated;
use crate::request::{Notify, RequestError};

/// How often a queue that has to stop is looked at before it is given up.
///
/// Stopping takes as long as the descriptor in work, 144 us for 2 MiB, and one look 100 ns or more.
/// The bound is several times what is needed, and 2 ms with a lock held at the worst.
const STOP_POLLS: u32 = 20_000;

/// A clock that stands still: where a lock is held, waits are bounded by looks alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoClock;

impl Clock for NoClock {
    fn now(&self) -> u64 {
        0
    }
}

/// Hears of what a queue reports, for logs and traces. `()` listens to nothing.
///
/// Called with the channel's lock held, from interrupt handlers too: it must neither wait nor use
/// the channel.
pub trait Observer {
    /// The engine has refused or failed a descriptor, or something was noticed that is not as
    /// usual: `progress` has a failure or an anomaly.
    fn noticed(&self, progress: &Progress);
    /// The channel is out of order.
    fn faulted(&self, fault: Fault);
    /// The channel was stopped, and what it had left was dropped.
    fn terminated(&self, terminated: &Terminated);
    /// The engine does not stop.
    fn not_stopped(&self, not_stopped: &NotStopped);
}

impl Observer for () {
    #[inline]
    fn noticed(&self, _progress: &Progress) {}
    #[inline]
    fn faulted(&self, _fault: Fault) {}
    #[inline]
    fn terminated(&self, _terminated: &Terminated) {}
    #[inline]
    fn not_stopped(&self, _not_stopped: &NotStopped) {}
}

/// A [`Channel`] as a [`CopyChannel`].
///
/// `C` bounds how long the queue may take to stop, `O` hears of what goes wrong.
pub struct PtdmaQueue<R, M, C = NoClock, O = ()> {
    channel: Channel<R, M>,
    node: Option<u16>,
    port: Option<u32>,
    clock: C,
    stop_ticks: u64,
    stop_polls: u32,
    observer: O,
}

impl<R: RegisterIo, M: RingMemory> PtdmaQueue<R, M> {
    /// Takes a queue that was brought up and is idle. `node` is the NUMA node of its function.
    pub const fn new(channel: Channel<R, M>, node: Option<u16>) -> Self {
        Self {
            channel,
            node,
            port: None,
            clock: NoClock,
            stop_ticks: 1,
            stop_polls: STOP_POLLS,
            observer: (),
        }
    }
}

impl<R: RegisterIo, M: RingMemory, C: Clock, O: Observer> PtdmaQueue<R, M, C, O> {
    /// The same behind a known port: see [`ChannelLimits::port`].
    #[must_use]
    pub fn with_port(mut self, port: Option<u32>) -> Self {
        self.port = port;
        self
    }

    /// The same with another bound on how often to look while it has to stop.
    #[must_use]
    pub fn with_stop_polls(mut self, stop_polls: u32) -> Self {
        self.stop_polls = stop_polls;
        self
    }

    /// The same with a bound by time on how long it may take to stop, `stop_ticks` of the clock's
    /// unit, instead of one by looks.
    ///
    /// It is looked at with the lock of the channel held. What is in work then, at most 2 MiB,
    /// takes 144 us.
    #[must_use]
    pub fn with_clock<D: Clock>(self, clock: D, stop_ticks: u64) -> PtdmaQueue<R, M, D, O> {
        PtdmaQueue {
            channel: self.channel,
            node: self.node,
            port: self.port,
            clock,
            stop_ticks,
            stop_polls: MAX_POLLS,
            observer: self.observer,
        }
    }

    /// The same with somebody who hears of what goes wrong.
    #[must_use]
    pub fn with_observer<P: Observer>(self, observer: P) -> PtdmaQueue<R, M, C, P> {
        PtdmaQueue {
            channel: self.channel,
            node: self.node,
            port: self.port,
            clock: self.clock,
            stop_ticks: self.stop_ticks,
            stop_polls: self.stop_polls,
            observer,
        }
    }

    /// The queue itself, for its owner: statistics, pause and resume, tear-down.
    pub const fn channel(&mut self) -> &mut Channel<R, M> {
        &mut self.channel
    }

    /// Gives the queue back.
    pub fn into_channel(self) -> Channel<R, M> {
        self.channel
    }

    #[inline]
    fn progress(&self, result: Result<Progress, Fault>) -> CopyProgress {
        match result {
            Ok(progress) => {
                if progress.failure.is_some() || progress.anomaly.is_some() {
                    self.observer.noticed(&progress);
                }
                CopyProgress {
                    done_before: progress.done_before,
                    failure: progress.failure.map(|failure| CopyFailure {
                        cookie: failure.cookie,
                        code: failure.code.raw(),
                    }),
                    begun_again: matches!(
                        progress.anomaly,
                        Some(Anomaly::Replay | Anomaly::Restarted)
                    ),
                    health: Health::Alive,
                }
            }
            Err(fault) => {
                self.observer.faulted(fault);
                CopyProgress {
                    done_before: self.channel.done_before(),
                    failure: None,
                    begun_again: false,
                    health: Health::Faulted,
                }
            }
        }
    }
}

impl<R, M, C, O> fmt::Debug for PtdmaQueue<R, M, C, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PtdmaQueue")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

fn prep_error(error: SubmitError) -> PrepError {
    match error {
        SubmitError::RingFull { .. } => PrepError::Full,
        SubmitError::Request(_) => PrepError::Rejected,
        _ => PrepError::Faulted,
    }
}

const fn is_boundary(error: &SubmitError) -> bool {
    matches!(error, SubmitError::Request(RequestError::Boundary { .. }))
}

const fn notify(interrupt: bool) -> Notify {
    if interrupt {
        Notify::Interrupt
    } else {
        Notify::Silent
    }
}

impl<R: RegisterIo, M: RingMemory, C: Clock, O: Observer> CopyChannel for PtdmaQueue<R, M, C, O> {
    fn limits(&self) -> ChannelLimits {
        ChannelLimits {
            max_len_bytes: u64::from(self.channel.limits().max_len_bytes()),
            // The descriptor takes any byte address and length.
            align_bytes: 1,
            node: self.node,
            ring_slots: self.channel.capacity(),
            port: self.port,
        }
    }

    fn next_cookie(&self) -> Cookie {
        self.channel.next_cookie()
    }

    #[inline]
    fn free_slots(&self) -> usize {
        self.channel.burst_capacity()
    }

    #[inline]
    fn prep(&mut self, copy: Segment, interrupt: bool) -> Result<Cookie, PrepError> {
        let request = self
            .channel
            .prep_copy(copy.src, copy.dst, copy.len_bytes)
            .map_err(|_| PrepError::Rejected)?;
        self.channel
            .submit(&request, notify(interrupt))
            .map_err(prep_error)
    }

    #[inline]
    fn prep_all(&mut self, copies: impl Iterator<Item = Segment>, mark: Option<usize>) -> Prepared {
        let copies = copies.map(|copy| (copy.src, copy.dst, copy.len_bytes));
        let submitted = self.channel.submit_all(copies, mark);
        Prepared {
            first: Some(submitted.first),
            count: submitted.count,
            bytes: submitted.bytes,
            // A copy across a multiple of 4 GiB is not refused for good: offered again, at the
            // beginning of a walk, it is cut.
            error: submitted.error.filter(|e| !is_boundary(e)).map(prep_error),
        }
    }

    #[inline]
    fn issue_pending(&mut self, interrupt: bool) {
        self.channel.issue_pending(notify(interrupt));
    }

    #[inline]
    fn poll(&mut self, _now_ns: u64) -> CopyProgress {
        let result = self.channel.poll();
        self.progress(result)
    }

    #[inline]
    fn poll_head(&mut self, _now_ns: u64) -> Option<Cookie> {
        self.channel.poll_head()
    }

    fn interrupt(&mut self, _now_ns: u64) -> CopyProgress {
        let result = self.channel.handle_interrupt();
        self.progress(result)
    }

    fn overdue(&mut self, _now_ns: u64) -> CopyProgress {
        let result = self.channel.check_lost_interrupt();
        self.progress(result)
    }

    fn terminate(&mut self, _now_ns: u64) -> Stopped {
        let deadline =
            Deadline::after(&self.clock, self.stop_ticks).with_poll_limit(self.stop_polls);
        match self.channel.terminate(&self.clock, deadline) {
            Ok(terminated) => {
                self.observer.terminated(&terminated);
                Stopped {
                    done_before: terminated.first_dropped,
                    proven: true,
                    health: match self.channel.fault() {
                        None => Health::Alive,
                        Some(_) => Health::Faulted,
                    },
                }
            }
            Err(not_stopped) => {
                self.observer.not_stopped(&not_stopped);
                Stopped {
                    done_before: not_stopped.first,
                    proven: false,
                    health: Health::Faulted,
                }
            }
        }
    }
}
