//! What HALT and RUN may mean: every combination of answers, of which each look rules some out.
//!
//! The probe tells this module each event of the queue in order. Each hypothesis follows the
//! events by its own rules, and is dropped at the first look at control that it does not predict.

use crate::answer::Answer;

/// Words of [`crate::Question::Halt`], by number.
const HALT: &[&str] = &[
    "standing", "not_busy", "on_stop", "on_error", "on_drain", "never",
];
const STANDING: u8 = 0;
const NOT_BUSY: u8 = 1;
const ON_STOP: u8 = 2;
const ON_ERROR: u8 = 3;
const ON_DRAIN: u8 = 4;
const HALT_KINDS: u8 = 6;

/// Words of [`crate::Question::IdleStop`].
const IDLE_STOP: &[&str] = &["reads", "nothing"];
/// Words of [`crate::Question::ControlWrite`].
const CONTROL_WRITE: &[&str] = &["keeps", "clears"];

/// Words of [`crate::Question::Run`].
const RUN: &[&str] = &["both", "stays", "on_error", "on_drain"];
const RUN_BOTH: u8 = 0;
const RUN_ON_ERROR: u8 = 2;
const RUN_ON_DRAIN: u8 = 3;
const RUN_KINDS: u8 = 4;

const COUNT: usize = HALT_KINDS as usize * 2 * 2 * RUN_KINDS as usize;

const NO_FIT: Answer = Answer::Unknown("what control read fits no kind of engine that is known");

/// Something that happened to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// RUN was written, with work in the ring or without.
    Run { work: bool },
    /// Control was written without RUN; the engine stands now, with work left or without.
    Stop { work_left: bool },
    /// The engine has taken up work, and the ring is drained now.
    Drained,
    /// The engine has taken up work, and stands because of an error.
    Error,
}

/// One combination of answers, and what it says of the queue as it is.
#[derive(Clone, Copy, Debug, Default)]
struct Engine {
    halt: u8,
    idle_stop_reads: bool,
    write_clears: bool,
    run: u8,
    ruled_out: bool,
    // What it predicts.
    running: bool,
    run_reads: bool,
    latch: bool,
    cleared: bool,
    /// RUN was taken away while the engine was idle, and HALT does not tell.
    untold: bool,
}

impl Engine {
    fn stands(&mut self, why: u8) {
        self.cleared = false;
        self.untold = false;
        self.latch |= self.halt == why;
    }

    fn takes_up(&mut self) {
        self.latch = false;
        self.run_reads |= self.running;
    }

    fn drained(&mut self, goes_on_by_tail: bool) {
        self.running &= goes_on_by_tail;
        if matches!(self.run, RUN_BOTH | RUN_ON_DRAIN) {
            self.run_reads = false;
        }
        self.stands(ON_DRAIN);
    }

    fn follow(&mut self, event: Event, goes_on_by_tail: bool) {
        match event {
            Event::Run { work } => {
                self.cleared |= self.write_clears;
                self.untold = false;
                self.latch = false;
                self.running = true;
                self.run_reads = true;
                if !work && !goes_on_by_tail {
                    self.drained(false);
                }
            }
            Event::Stop { work_left } => {
                self.cleared |= self.write_clears;
                let walked = core::mem::replace(&mut self.running, false);
                let ran = core::mem::replace(&mut self.run_reads, false) || walked;
                if (walked && work_left) || (ran && self.idle_stop_reads) {
                    self.stands(ON_STOP);
                } else if ran {
                    self.untold |= walked;
                }
            }
            Event::Drained => {
                self.takes_up();
                self.drained(goes_on_by_tail);
            }
            Event::Error => {
                self.takes_up();
                self.running = false;
                if matches!(self.run, RUN_BOTH | RUN_ON_ERROR) {
                    self.run_reads = false;
                }
                self.stands(ON_ERROR);
            }
        }
    }

    /// What HALT reads while the engine has nothing in work.
    fn halted(&self) -> bool {
        let halted = match self.halt {
            STANDING => !self.running && !self.untold,
            NOT_BUSY => true,
            ON_STOP | ON_ERROR | ON_DRAIN => self.latch,
            _ => false,
        };
        halted && !self.cleared
    }
}

/// All combinations that no look has ruled out.
pub(crate) struct Hypotheses {
    engines: [Engine; COUNT],
    goes_on_by_tail: bool,
    /// Whether what happened since the last RUN is known: looks count only then.
    certain: bool,
    looks: u32,
}

impl Hypotheses {
    pub(crate) fn new(goes_on_by_tail: bool) -> Self {
        let mut engines = [Engine::default(); COUNT];
        for (number, engine) in (0_u8..).zip(engines.iter_mut()) {
            engine.halt = number % HALT_KINDS;
            let rest = number / HALT_KINDS;
            engine.idle_stop_reads = rest & 1 == 0;
            engine.write_clears = rest & 2 != 0;
            engine.run = rest / 4;
        }
        Self {
            engines,
            goes_on_by_tail,
            certain: false,
            looks: 0,
        }
    }

    pub(crate) fn follow(&mut self, event: Event) {
        for engine in &mut self.engines {
            engine.follow(event, self.goes_on_by_tail);
        }
        // A drained or failed queue is defined by what was done since RUN was written.
        self.certain |= matches!(event, Event::Drained | Event::Error);
    }

    /// Something happened whose order cannot be told. Looks count again from the next drain on.
    pub(crate) fn lose_track(&mut self) {
        self.certain = false;
    }

    /// The engine has nothing in work, and control reads this.
    pub(crate) fn look(&mut self, halt: bool, run: bool) {
        if !self.certain {
            return;
        }
        self.looks = self.looks.saturating_add(1);
        for engine in &mut self.engines {
            engine.ruled_out |= engine.halted() != halt || engine.run_reads != run;
        }
    }

    /// HALT stayed at 1 while the engine worked: no kind does that.
    pub(crate) fn fits_none(&mut self) {
        for engine in &mut self.engines {
            engine.ruled_out = true;
        }
        self.looks = self.looks.saturating_add(1);
    }

    fn left(&self, words: &'static [&'static str], word: impl Fn(&Engine) -> u8) -> Answer {
        if self.looks == 0 {
            return crate::answer::NOT_ASKED;
        }
        let mut mask = 0_u8;
        for engine in self.engines.iter().filter(|engine| !engine.ruled_out) {
            mask |= 1_u8.checked_shl(u32::from(word(engine))).unwrap_or(0);
        }
        let first = words.get(mask.trailing_zeros() as usize);
        match (mask.count_ones(), first) {
            (0, _) | (_, None) => NO_FIT,
            (1, Some(word)) => Answer::is(word),
            _ => Answer::Among { words, mask },
        }
    }

    pub(crate) fn halt(&self) -> Answer {
        self.left(HALT, |engine| engine.halt)
    }

    pub(crate) fn idle_stop(&self) -> Answer {
        self.left(IDLE_STOP, |engine| u8::from(!engine.idle_stop_reads))
    }

    pub(crate) fn control_write(&self) -> Answer {
        self.left(CONTROL_WRITE, |engine| u8::from(engine.write_clears))
    }

    pub(crate) fn run(&self) -> Answer {
        self.left(RUN, |engine| engine.run)
    }
}
