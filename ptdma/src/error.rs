//! What can go wrong with a channel, as values.

use core::fmt;

use crate::cookie::Cookie;
use crate::error_code::ErrorCode;
use crate::request::RequestError;
use crate::ring::RingError;

/// Why a channel is not usable until its owner does something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Every register reads all ones: the function is gone, or its link is. Nothing can be
    /// proved about memory until the function is out of the system or bus mastering is off.
    DeviceGone,
    /// The control register has forgotten where the ring is: the function was reset, and nobody
    /// said so. What was outstanding is not known to have been copied.
    Reset,
    /// The head register holds something that is no slot the engine was given.
    BadHead {
        /// What was read.
        raw: u32,
    },
    /// The engine stands still, or has a stale tail, with work to do and no error, and writing tail and RUN again did
    /// not help.
    Halted {
        /// The descriptor at which it stands.
        oldest: Cookie,
    },
    /// The engine reported an error but did not halt, and would not when told to, so the failed
    /// descriptor cannot be skipped safely.
    WillNotHalt {
        /// The code it left.
        code: ErrorCode,
    },
    /// A register does not hold what was written to it when the channel was to come up again.
    NotAccepted {
        /// Byte offset of the register.
        offset: usize,
        /// What it holds.
        reads: u32,
    },
    /// The engine was found walking a queue when the channel was to come up again.
    StillRunning {
        /// The control register.
        control: u32,
    },
}

impl Fault {
    /// What keeps a channel out of service that could not be brought up again.
    pub(crate) const fn of_bring_up(e: BringUpError) -> Self {
        match e {
            BringUpError::NotAccepted { offset, reads, .. } => Self::NotAccepted { offset, reads },
            BringUpError::StillRunning { control } => Self::StillRunning { control },
            // The ring was accepted when the channel was made.
            BringUpError::DeviceGone | BringUpError::Ring(_) => Self::DeviceGone,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceGone => f.write_str("the device reads all ones: it is gone"),
            Self::Reset => f.write_str("the function was reset, and has forgotten its ring"),
            Self::BadHead { raw } => write!(f, "the head register holds {raw:#x}, no slot in use"),
            Self::Halted { oldest } => {
                write!(f, "the engine halted at {oldest} and does not go on")
            }
            Self::WillNotHalt { code } => write!(f, "{code}, and the engine does not halt"),
            Self::NotAccepted { offset, reads } => {
                write!(
                    f,
                    "register {offset:#x} does not take its value and reads {reads:#x}"
                )
            }
            Self::StillRunning { control } => write!(
                f,
                "the engine is still running (control {control:#x}); reset the function first"
            ),
        }
    }
}

impl core::error::Error for Fault {}

/// Why a channel could not be brought up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BringUpError {
    /// The ring memory does not qualify.
    Ring(RingError),
    /// Every register reads all ones.
    DeviceGone,
    /// The engine is still walking a previous owner's ring and did not halt when told to. A
    /// function-level reset helps.
    StillRunning {
        /// The control register.
        control: u32,
    },
    /// A register does not hold what was just written to it.
    NotAccepted {
        /// Byte offset of the register.
        offset: usize,
        /// What was written.
        wrote: u32,
        /// What it holds.
        reads: u32,
    },
}

impl fmt::Display for BringUpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(e) => e.fmt(f),
            Self::DeviceGone => Fault::DeviceGone.fmt(f),
            Self::StillRunning { control } => write!(
                f,
                "the engine is still running (control {control:#x}); reset the function first"
            ),
            Self::NotAccepted {
                offset,
                wrote,
                reads,
            } => write!(
                f,
                "register {offset:#x} reads {reads:#x} after {wrote:#x} was written"
            ),
        }
    }
}

impl core::error::Error for BringUpError {}

/// Why a copy was not put into a ring. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubmitError {
    /// The copy itself is not acceptable.
    Request(RequestError),
    /// No slot is free: issue what is there, poll, try again.
    RingFull {
        /// How many descriptors the ring holds at the most.
        capacity: usize,
    },
    /// The channel has a fault and takes no work until it is recovered.
    Faulted(Fault),
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(e) => e.fmt(f),
            Self::RingFull { capacity } => write!(f, "all {capacity} slots of the ring are taken"),
            Self::Faulted(fault) => write!(f, "the channel has a fault: {fault}"),
        }
    }
}

impl core::error::Error for SubmitError {}

impl From<RequestError> for SubmitError {
    fn from(e: RequestError) -> Self {
        Self::Request(e)
    }
}

/// A descriptor that the engine failed. Its destination is undefined; all others are unaffected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// Which descriptor.
    pub cookie: Cookie,
    /// What the engine says about it.
    pub code: ErrorCode,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "descriptor {} failed: {}", self.cookie, self.code)
    }
}

impl core::error::Error for Failure {}

/// Something unusual that was noticed and got over. The channel goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Anomaly {
    /// An interrupt came, but nothing had happened.
    SpuriousInterrupt,
    /// Work was done but its interrupt never came; found by
    /// [`Channel::check_lost_interrupt`](crate::Channel::check_lost_interrupt).
    LostInterrupt,
    /// The engine stood still with work to do; tail and RUN were written again.
    Restarted,
    /// The engine reported an error that could be of several descriptors. They are run again, one
    /// at a time.
    Replay,
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SpuriousInterrupt => "an interrupt came without a cause",
            Self::LostInterrupt => "an interrupt was lost",
            Self::Restarted => "the engine had halted with work to do and was started again",
            Self::Replay => "descriptors are run one at a time to find the one that failed",
        })
    }
}

impl core::error::Error for Anomaly {}

/// The engine could not be proved stopped: it may still read its ring, and still write any
/// destination that was outstanding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotStopped {
    /// The control register when the attempt was given up; all ones if the device is gone.
    pub control: u32,
    /// First descriptor whose memory may still be touched.
    pub first: Cookie,
    /// How many descriptors, from `first` on.
    pub count: u64,
}

impl fmt::Display for NotStopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the engine cannot be proved stopped (control {:#x}): {} descriptors from {} on may still be written; disable bus mastering and reset the function",
            self.control, self.count, self.first
        )
    }
}

impl core::error::Error for NotStopped {}
