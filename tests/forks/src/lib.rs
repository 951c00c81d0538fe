//! The driver, and batches on it, on every kind of engine that there may be.
//!
//! [`machines`] lists the kinds: all that hold every pair of answers to the open questions of
//! [`ptdma_model::forks`], each machine with a name, and each answer alone changed from the
//! model's first guess and from the likeliest silicon. [`channel`] asks one channel what it must
//! keep on all of them, [`batch`] asks batches.
//!
//! A case is one machine, one scenario, one ring, one way of signalling, and a seed; it runs in one
//! thread, so it repeats. The engine makes steps inside the driver's register accesses and between
//! its looks, as many as the seed says. What a case asks of bytes: a copy that is reported as done
//! is there, and memory that was given back is refilled by its owner at once and never written
//! again.
#![deny(unsafe_code)]

pub mod batch;
pub mod channel;
pub mod field;
pub mod random;
pub mod stepper;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;

use ptdma::{Channel, ChannelConfig, Deadline, Restart, Signalling};
use ptdma_model::forks::{Late, RingLimit, Span};
use ptdma_model::{BusRing, Forks, Model};

use crate::stepper::Stepper;

/// Time that finding out may take, in register accesses: some hundred are needed.
const FIND_OUT_ACCESSES: u64 = 50_000;
/// Reads in which a function has to come back that says so. Its own number is 400.
const COMEBACK_READS: u32 = 1000;
/// Steps in which an engine that was not stopped would have done all that it still has.
const LATE_STEPS: u64 = 20_000;

/// What a case found wrong, in one line.
pub type Verdict = Result<(), String>;

/// What the driver knows of the engine when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// Nothing.
    Nothing,
    /// What it has found out by copies inside of its ring.
    FoundOut,
}

/// Brings a channel up, and has it find out what there is to know.
///
/// # Errors
///
/// If the driver gives up, or believes what is not so.
pub fn bring_up(
    stepper: &Stepper,
    ring: BusRing,
    signalling: Signalling,
    knowledge: Knowledge,
) -> Result<Channel<Stepper, BusRing>, String> {
    let mut config = ChannelConfig::default();
    config.signalling = signalling;
    let mut channel = Channel::bring_up(stepper.clone(), ring, config)
        .map_err(|(e, ..)| format!("bring-up: {e}"))?;
    if knowledge == Knowledge::Nothing {
        return Ok(channel);
    }
    let deadline = Deadline::after(stepper, FIND_OUT_ACCESSES);
    let traits = channel
        .find_out(stepper, deadline)
        .map_err(|e| format!("find out: {e}"))?;
    let forks = stepper.model().forks();
    let by_tail = forks.restart == ptdma_model::forks::Restart::Tail;
    let right = match traits.restart {
        Restart::Unknown => true,
        Restart::ByTail => by_tail,
        Restart::ByRun => !by_tail,
        // The model has no such engine.
        _ => false,
    };
    let limit = match forks.ring {
        RingLimit::No => u64::MAX,
        RingLimit::ReadsBack(log2) | RingLimit::Wraps(log2) => 1 << log2,
    };
    if !right || channel.capacity() as u64 >= limit {
        return Err(format!("FOUND OUT WHAT IS NOT SO: {traits}"));
    }
    Ok(channel)
}

/// All kinds of engine, each once; those without a length of real time, for a case repeats.
#[must_use]
pub fn machines() -> Vec<Forks> {
    let mut all: Vec<Forks> = Vec::new();
    let named = Forks::MACHINES.iter().map(|m| m.forks);
    let deviations = [Forks::TODAY, Forks::SIBLING]
        .into_iter()
        .flat_map(|base| base.deviations());
    for forks in named.chain(Forks::covering()).chain(deviations) {
        let real_time = matches!(forks.late, Late::For(Span::Micros(_)));
        if !real_time && !all.contains(&forks) {
            all.push(forks);
        }
    }
    all
}

/// A case that failed: how to run it again, and why.
#[derive(Clone, Debug)]
pub struct Failed {
    /// What [`channel::run`] or [`batch::run`] takes, as text.
    pub case: String,
    /// What was wrong.
    pub why: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.case, self.why)
    }
}

/// Runs a case; a panic of whatever is under test is a failure like any other.
///
/// # Errors
///
/// [`Failed`].
pub fn check(case: &impl fmt::Display, run: impl FnOnce() -> Verdict) -> Result<(), Failed> {
    let why = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(why)) => why,
        Err(panic) => {
            let words = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            format!("panicked: {}", words.unwrap_or_default())
        }
    };
    Err(Failed {
        case: case.to_string(),
        why,
    })
}

/// What can happen in a case.
pub trait Scenario: Copy + fmt::Debug + Sized + 'static {
    /// What it happens to, as the first word of a case.
    const SUBJECT: &'static str;
    /// All scenarios.
    const ALL: &'static [Self];
}

/// One case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case<S> {
    /// The kind of engine.
    pub forks: Forks,
    /// What happens.
    pub scenario: S,
    /// Entries of the ring.
    pub entries: usize,
    /// How the driver learns of completions.
    pub signalling: Signalling,
    /// What the driver knows of the engine when it begins.
    pub knowledge: Knowledge,
    /// For everything that is left to chance.
    pub seed: u64,
}

impl<S: Scenario> fmt::Display for Case<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            forks,
            scenario,
            entries,
            signalling,
            knowledge,
            seed,
        } = self;
        let subject = S::SUBJECT;
        write!(
            f,
            "{subject} {scenario:?} {entries} {signalling:?} {knowledge:?} {seed} {forks}"
        )
    }
}

/// Reads what [`Display`](fmt::Display) writes.
impl<S: Scenario> FromStr for Case<S> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [
            subject,
            scenario,
            entries,
            signalling,
            knowledge,
            seed,
            forks,
        ] = words[..]
        else {
            return Err(format!("'{text}' is no case: it has seven words"));
        };
        if subject != S::SUBJECT {
            return Err(format!("{subject} is not {}", S::SUBJECT));
        }
        let named = |s: &&S| format!("{s:?}") == scenario;
        Ok(Self {
            forks: forks.parse().map_err(|e| format!("{e}"))?,
            scenario: *S::ALL.iter().find(named).ok_or("no such scenario")?,
            entries: entries.parse().map_err(|e| format!("{entries}: {e}"))?,
            signalling: match signalling {
                "Polled" => Signalling::Polled,
                "Interrupts" => Signalling::Interrupts,
                _ => return Err(format!("{signalling}: Polled or Interrupts")),
            },
            knowledge: match knowledge {
                "Nothing" => Knowledge::Nothing,
                "FoundOut" => Knowledge::FoundOut,
                _ => return Err(format!("{knowledge}: Nothing or FoundOut")),
            },
            seed: seed.parse().map_err(|e| format!("{seed}: {e}"))?,
        })
    }
}

/// Brings a function back to life as a platform would: the bus taken away, a reset, some patience,
/// the bus given back. False if it cannot be had; the bus stays away then.
pub fn reset(model: &Model) -> bool {
    model.set_bus_master(false);
    let reset = model.function_reset();
    for _ in 0..COMEBACK_READS {
        if model.answers() {
            break;
        }
        let _all_ones = model.read_word(0);
    }
    let back = reset && model.answers();
    if back {
        model.set_bus_master(true);
    }
    back
}

/// The word that a modelled function can touch no memory.
#[allow(unsafe_code)]
fn quiesced() -> ptdma::FunctionQuiesced {
    // SAFETY: the model reaches the memory of its bus alone, which takes any bytes at any time. A
    // word that is not true makes a test fail, and nothing worse.
    unsafe { ptdma::FunctionQuiesced::by_owner() }
}
