//! A PTDMA command queue as a channel.

use core::fmt;

use ptdma::{Channel, Clock, Cookie, Deadline, Fault, Notify, RegisterIo, RingMemory, SubmitError};

use crate::channel::{
    CopyChannel, Failure, Health, Limits, PrepError, Prepared, Progress, Segment, Stopped,
};

/// How often a queue that has to stop is looked at before it is given up.
///
/// Stopping takes as long as the descriptor in work, 144 us for 2 MiB, and one look some 100 ns
/// or more: several times what is needed, and about 2 ms with a lock held at the worst.
const STOP_POLLS: u32 = 20_000;

/// A [`ptdma::Channel`] with what a batch has to know besides.
pub struct PtdmaQueue<R, M> {
    channel: Channel<R, M>,
    node: Option<u16>,
    stop_polls: u32,
}

impl<R: RegisterIo, M: RingMemory> PtdmaQueue<R, M> {
    /// Takes a queue that was brought up and is idle. `node` is the NUMA node of its function.
    pub const fn new(channel: Channel<R, M>, node: Option<u16>) -> Self {
        Self {
            channel,
            node,
            stop_polls: STOP_POLLS,
        }
    }

    /// The same with another bound on how often to look while it has to stop.
    #[must_use]
    pub fn with_stop_polls(mut self, stop_polls: u32) -> Self {
        self.stop_polls = stop_polls;
        self
    }

    /// The queue itself, for its owner: statistics, pause and resume, tear-down.
    pub const fn channel(&mut self) -> &mut Channel<R, M> {
        &mut self.channel
    }

    /// Gives the queue back.
    pub fn into_channel(self) -> Channel<R, M> {
        self.channel
    }

    fn progress(&self, result: Result<ptdma::Progress, Fault>) -> Progress {
        match result {
            Ok(progress) => Progress {
                done_before: progress.done_before,
                failure: progress.failure.map(|failure| Failure {
                    cookie: failure.cookie,
                    code: failure.code.raw(),
                }),
                health: Health::Alive,
            },
            Err(_) => Progress {
                done_before: self.channel.done_before(),
                failure: None,
                health: Health::Faulted,
            },
        }
    }
}

impl<R, M> fmt::Debug for PtdmaQueue<R, M> {
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

/// A clock that stands still: where a lock is held, waits are bounded by looks alone.
struct NoTime;

impl Clock for NoTime {
    fn now(&self) -> u64 {
        0
    }
}

impl<R: RegisterIo, M: RingMemory> CopyChannel for PtdmaQueue<R, M> {
    fn limits(&self) -> Limits {
        Limits {
            max_len_bytes: u64::from(self.channel.limits().max_len_bytes()),
            // The descriptor takes any byte address and length.
            align_bytes: 1,
            node: self.node,
            ring_slots: self.channel.capacity(),
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
        let notify = if interrupt {
            Notify::Interrupt
        } else {
            Notify::Silent
        };
        self.channel.submit(&request, notify).map_err(prep_error)
    }

    #[inline]
    fn prep_all(&mut self, copies: impl Iterator<Item = Segment>, mark: Option<usize>) -> Prepared {
        let copies = copies.map(|copy| (copy.src, copy.dst, copy.len_bytes));
        let submitted = self.channel.submit_all(copies, mark);
        Prepared {
            first: Some(submitted.first),
            count: submitted.count,
            bytes: submitted.bytes,
            error: submitted.error.map(prep_error),
        }
    }

    #[inline]
    fn issue_pending(&mut self, interrupt: bool) {
        self.channel.issue_pending(if interrupt {
            Notify::Interrupt
        } else {
            Notify::Silent
        });
    }

    #[inline]
    fn poll(&mut self, _now_ns: u64) -> Progress {
        let result = self.channel.poll();
        self.progress(result)
    }

    fn interrupt(&mut self, _now_ns: u64) -> Progress {
        let result = self.channel.handle_interrupt();
        self.progress(result)
    }

    fn overdue(&mut self, _now_ns: u64) -> Progress {
        let result = self.channel.check_lost_interrupt();
        self.progress(result)
    }

    fn terminate(&mut self, _now_ns: u64) -> Stopped {
        let deadline = Deadline::after(&NoTime, 1).with_poll_limit(self.stop_polls);
        match self.channel.terminate(&NoTime, deadline) {
            Ok(terminated) => Stopped {
                done_before: terminated.first_dropped,
                proven: true,
                health: match self.channel.fault() {
                    None => Health::Alive,
                    Some(_) => Health::Faulted,
                },
            },
            Err(not_stopped) => Stopped {
                done_before: not_stopped.first,
                proven: false,
                health: Health::Faulted,
            },
        }
    }
}
