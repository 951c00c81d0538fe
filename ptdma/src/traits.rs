//! What an engine has shown of itself.

use core::fmt;

use crate::channel::ErrorHead;

/// What sets a drained queue going again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Restart {
    /// Nobody has tried. The driver does what is right for both others.
    #[default]
    Unknown,
    /// The tail alone. A burst is one fence and one tail write.
    ByTail,
    /// RUN, written behind the tail.
    ByRun,
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "restart not known",
            Self::ByTail => "goes on by the tail",
            Self::ByRun => "needs RUN for each burst",
        })
    }
}

/// An observation that may not have been made.
///
/// The set is closed: a bit reads 0 or 1, or nobody has read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Seen {
    /// Nobody has looked.
    #[default]
    Unknown,
    /// The bit read 0.
    No,
    /// The bit read 1.
    Yes,
}

impl Seen {
    pub(crate) const fn of(is_set: bool) -> Self {
        if is_set { Self::Yes } else { Self::No }
    }

    const fn digit(self) -> char {
        match self {
            Self::Unknown => '?',
            Self::No => '0',
            Self::Yes => '1',
        }
    }
}

/// What an engine has shown of itself, since bring-up and by
/// [`Channel::find_out`](crate::Channel::find_out).
///
/// [`restart`](Self::restart), [`error_head`](Self::error_head) and
/// [`ring_entries`](Self::ring_entries) decide what the driver does. The others are for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct EngineTraits {
    /// What sets a drained queue going again.
    pub restart: Restart,
    /// Where the head stays on an error.
    pub error_head: ErrorHead,
    /// Entries of the ring that the engine walks; fewer than the memory has if the engine is
    /// limited.
    pub ring_entries: u16,
    /// Entries of the ring's memory.
    pub memory_entries: u16,
    /// HALT before RUN was written for the first time.
    pub halt_at_rest: Seen,
    /// HALT of a drained queue, RUN written.
    pub halt_drained: Seen,
    /// HALT of a drained queue, RUN taken away.
    pub halt_stopped: Seen,
    /// Whether HALT, at 1, read 0 after control was written.
    pub halt_cleared_by_write: Seen,
    /// RUN of a drained queue, as it reads back.
    pub run_drained: Seen,
    /// Whether the job field of the status register (bits 9:7) was ever not zero.
    pub job_status: Seen,
    /// How often a copy inside the ring failed while this was found out.
    pub failed_copies: u8,
}

impl fmt::Display for EngineTraits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {}, ring {} of {}, HALT {} at rest {} drained {} stopped {} cleared by a write, RUN {} drained, job field {}",
            self.restart,
            self.error_head,
            self.ring_entries,
            self.memory_entries,
            self.halt_at_rest.digit(),
            self.halt_drained.digit(),
            self.halt_stopped.digit(),
            self.halt_cleared_by_write.digit(),
            self.run_drained.digit(),
            self.job_status.digit(),
        )?;
        if self.failed_copies > 0 {
            write!(f, ", {} copies failed meanwhile", self.failed_copies)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn one_line_says_all() {
        let traits = EngineTraits {
            restart: Restart::ByTail,
            error_head: ErrorHead::AtFailing,
            ring_entries: 32,
            memory_entries: 512,
            halt_at_rest: Seen::Yes,
            halt_drained: Seen::No,
            failed_copies: 2,
            ..EngineTraits::default()
        };
        assert_eq!(
            traits.to_string(),
            "goes on by the tail, head stays at a failure, ring 32 of 512, HALT 1 at rest 0 \
             drained ? stopped ? cleared by a write, RUN ? drained, job field ?, 2 copies failed \
             meanwhile"
        );
    }
}
