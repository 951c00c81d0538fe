//! What was found out and measured.

use crate::answer::{Answer, COUNT, NOT_ASKED, Question};
use crate::measure::{MEASURED_LENGTHS, Rate};

/// Name and version of the report that programs read. The number changes whenever a field gets
/// another meaning or goes; fields may be added.
pub const SCHEMA: &str = "ptdma-probe/1";

/// Why a probe ended before its last question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stop {
    /// The function reads all ones.
    Gone,
    /// The queue was at work for somebody else, or a killed program left it so.
    Busy,
    /// The driver does not bring the queue up, or its engine does not do the least copy.
    NoStart,
    /// The engine did not come to rest, and may still write what it was given.
    NotStopped,
    /// The function does not come back from its reset.
    Lost,
}

impl Stop {
    /// Whether the engine may still write the buffers.
    #[must_use]
    pub const fn may_write(self) -> bool {
        !matches!(self, Self::Busy)
    }

    /// In words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Gone => "the function does not answer",
            Self::Busy => "the queue works for somebody else",
            Self::NoStart => "the engine does not start",
            Self::NotStopped => "the engine did not come to rest",
            Self::Lost => "the function did not come back from its reset",
        }
    }
}

/// What HALT read, where it was looked at: after it had settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HaltSeen {
    /// Before the probe wrote anything.
    pub at_rest: Option<bool>,
    /// While the engine worked.
    pub working: Option<bool>,
    /// Of a drained queue, RUN written.
    pub drained: Option<bool>,
    /// After RUN was taken away from it.
    pub stopped: Option<bool>,
    /// After control was written once more.
    pub written_again: Option<bool>,
    /// After RUN was taken away from an engine with work left.
    pub stopped_at_work: Option<bool>,
    /// After an error.
    pub error: Option<bool>,
}

/// What things take on this machine, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Measured {
    /// A register read.
    pub read_ns: Option<f64>,
    /// A register write, many in a row.
    pub write_ns: Option<f64>,
    /// A descriptor of 32 bytes in a full ring.
    pub descriptor_ns: Option<f64>,
    /// A copy of 32 bytes alone, from the tail write to the head's move.
    pub lone_copy_ns: Option<f64>,
    /// From the tail write of a lone copy to the interrupt's arrival, the median.
    pub interrupt_ns: Option<f64>,
    /// Copies of each length, by one function.
    pub rates: [Option<Rate>; MEASURED_LENGTHS.len()],
    /// How long HALT read 1 after RUN though the engine worked, where it did.
    pub halt_late_ns: Option<u64>,
    /// How long a reset took.
    pub reset_ns: Option<u64>,
}

/// What is known of one function.
#[derive(Clone, Copy, Debug)]
pub struct FunctionReport {
    answers: [Answer; COUNT],
    /// What HALT read.
    pub halt: HaltSeen,
    /// What things take.
    pub measured: Measured,
    /// The version register.
    pub version: u32,
    /// Entries of the ring that the engine walks, of those that the platform gave.
    pub ring_entries: u32,
    /// Why the probe ended early, if it did.
    pub stop: Option<Stop>,
    /// Bytes of copies that were compared.
    pub compared_bytes: u64,
    /// Copies that were not what they should be, though the engine had told of no failure.
    pub wrong_copies: u32,
}

impl FunctionReport {
    /// A report that knows nothing.
    #[must_use]
    pub const fn unknown() -> Self {
        Self {
            answers: [NOT_ASKED; COUNT],
            halt: HaltSeen {
                at_rest: None,
                working: None,
                drained: None,
                stopped: None,
                written_again: None,
                stopped_at_work: None,
                error: None,
            },
            measured: Measured {
                read_ns: None,
                write_ns: None,
                descriptor_ns: None,
                lone_copy_ns: None,
                interrupt_ns: None,
                rates: [None; MEASURED_LENGTHS.len()],
                halt_late_ns: None,
                reset_ns: None,
            },
            version: 0,
            ring_entries: 0,
            stop: None,
            compared_bytes: 0,
            wrong_copies: 0,
        }
    }

    /// The answer to a question.
    #[must_use]
    pub fn answer(&self, question: Question) -> Answer {
        self.answers
            .get(question as usize)
            .copied()
            .unwrap_or(NOT_ASKED)
    }

    /// Notes an answer; of a program that found something out by other means, for example that a
    /// function was lost when it was opened.
    pub fn set(&mut self, question: Question, answer: Answer) {
        if let Some(slot) = self.answers.get_mut(question as usize) {
            *slot = answer;
        }
    }
}
