//! Asks a PTDMA function what its engine does, where no public source says it, and measures it.
//!
//! Three programs are to use one library: `ptdma probe` (Linux, by VFIO), `ptdma.efi` (firmware),
//! and the tests, which compare its answers with how a device model was set. A platform implements
//! [`Platform`]; [`probe`] returns a [`FunctionReport`]; [`together`] measures several functions at
//! once.
//!
//! # What is safe
//!
//! Each step is safe whatever the engine's answer is. Engines are only given copies between buffers
//! of the platform's own, and one write that the platform's IOMMU refuses. Every wait is bounded.
//! A queue that works for somebody else is left alone. A step that finds an engine which does not
//! come to rest is the last one, and the report says that the engine may still write.
//!
//! Two questions may cost the function until the power goes off: whether a function-level reset
//! works, and what a descriptor for an unknown engine does. [`Consent`] has to name them.
//!
//! # What an answer is worth
//!
//! An [`Answer::Is`] was seen. Where several answers behave the same in every step, they are
//! [`Answer::Among`]. What could not be asked is [`Answer::Unknown`], with the reason. "Nothing
//! happened" is an answer only after [`SILENCE_NS`], several times.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::todo,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

mod answer;
mod ask;
mod error_steps;
mod halt;
mod measure;
mod pattern;
mod platform;
mod queue;
mod report;

pub use answer::{Answer, Question, Word};
pub use measure::{MEASURED_LENGTHS, Rate, together};
pub use platform::{Platform, ResetOutcome};
pub use queue::SILENCE_NS;
pub use report::{FunctionReport, HaltSeen, Measured, SCHEMA, Stop};

/// What the owner of the machine allows beyond what is safe whatever the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Consent {
    /// Whether to reset the function, and, if that works, to have it run a descriptor for an
    /// unknown engine. A function that does not come back from its reset is lost until the power
    /// goes off.
    pub reset: bool,
}

/// Asks one function everything, and measures it. The function is left with its queue off.
pub fn probe<P: Platform>(platform: &mut P, consent: Consent) -> FunctionReport {
    ask::ask(platform, consent)
}
