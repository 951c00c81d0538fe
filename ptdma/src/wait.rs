//! Waiting for a cookie, bounded.

use core::fmt;

use crate::channel::Channel;
use crate::clock::Deadline;
use crate::cookie::Cookie;
use crate::error::{Failure, Fault};
use crate::io::{Clock, RegisterIo, RingMemory};

/// Why a wait ended before its cookie was retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitError {
    /// The deadline passed. The engine is still at it, or hangs: its memory is still its own.
    /// Wait again, or [`terminate`](Channel::terminate).
    TimedOut {
        /// The oldest descriptor that is not retired.
        oldest: Cookie,
        /// How many are outstanding.
        outstanding: u64,
    },
    /// The channel is out of order.
    Faulted(Fault),
}

impl fmt::Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut {
                oldest,
                outstanding,
            } => write!(
                f,
                "timed out at descriptor {oldest} with {outstanding} outstanding"
            ),
            Self::Faulted(fault) => fault.fmt(f),
        }
    }
}

impl core::error::Error for WaitError {}

impl<R: RegisterIo, M: RingMemory> Channel<R, M> {
    /// Polls until all descriptors up to and including `cookie` are retired.
    ///
    /// `on_failure` hears of descriptors that fail on the way, of whatever burst, in order. All
    /// others up to `cookie` are copied when this returns `Ok`. `relax` is called between polls:
    /// [`core::hint::spin_loop`], or a scheduler's yield.
    ///
    /// # Errors
    ///
    /// [`WaitError`]. Nothing is lost by it: what was retired stays retired, and the wait can be
    /// taken up again.
    pub fn wait_for<C: Clock + ?Sized>(
        &mut self,
        cookie: Cookie,
        clock: &C,
        mut deadline: Deadline,
        mut relax: impl FnMut(),
        mut on_failure: impl FnMut(Failure),
    ) -> Result<(), WaitError> {
        loop {
            let progress = self.poll().map_err(WaitError::Faulted)?;
            if let Some(failure) = progress.failure {
                on_failure(failure);
            }
            if cookie.is_before(progress.done_before) {
                return Ok(());
            }
            if deadline.expired(clock) {
                return Err(WaitError::TimedOut {
                    oldest: progress.done_before,
                    outstanding: self.outstanding(),
                });
            }
            if progress.retired == 0 {
                relax();
            }
        }
    }
}
