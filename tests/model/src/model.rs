//! The handle: registers for the driver, steps for the engine, faults and counters for the test.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};
use ptdma::ErrorCode;
use ptdma::io::{Clock, RegisterIo};
use ptdma::regs::Register;
use serde::{Deserialize, Serialize};

use crate::bus::BusMemory;
use crate::counters::Counters;
use crate::engine;
use crate::fault::{Fault, FaultId};
use crate::forks::Forks;
use crate::interrupt::{InterruptLine, Sink};
use crate::state::State;
use crate::timing::Timing;

/// What kind of engine to model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// What nobody has told us of it.
    pub forks: Forks,
    /// How long things take.
    pub timing: Timing,
    /// In single-step mode: calls of [`Model::step`] before every register read, so that a driver
    /// that polls makes the engine go. 0 when a thread drives the engine.
    pub auto_step: u32,
}

/// What one step of the engine did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepOutcome {
    /// Nothing to do (or nothing that may be done: halted, gone, reset in between).
    Idle,
    /// The descriptor in flight does not make progress.
    Stalled,
    /// A descriptor completed.
    Completed {
        /// Its length.
        len_bytes: u64,
    },
    /// A descriptor failed, and the engine halted.
    Failed {
        /// What the status register says.
        code: ErrorCode,
    },
}

pub(crate) struct Shared {
    pub(crate) config: ModelConfig,
    pub(crate) bus: Box<dyn BusMemory>,
    pub(crate) state: Mutex<State>,
    /// Notified at everything that an engine thread or a reset may wait for.
    pub(crate) wake: Condvar,
    sink: Mutex<Option<Sink>>,
}

/// One emulated PTDMA function. Clones are the same function.
///
/// Registers are reached through [`RegisterIo`] (or by raw offset), the engine by
/// [`step`](Self::step) or [`spawn_engine`](Self::spawn_engine).
#[derive(Clone)]
pub struct Model {
    pub(crate) shared: Arc<Shared>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.shared.state.lock(), f)
    }
}

impl Model {
    /// A function just powered on, with `bus` behind it.
    #[must_use]
    pub fn new(config: ModelConfig, bus: impl BusMemory + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                config,
                bus: Box::new(bus),
                state: Mutex::new(State::new(config.forks)),
                wake: Condvar::new(),
                sink: Mutex::new(None),
            }),
        }
    }

    /// What it was made with, but for the forks, which are the present ones.
    #[must_use]
    pub fn config(&self) -> ModelConfig {
        ModelConfig {
            forks: self.forks(),
            ..self.shared.config
        }
    }

    /// What kind of engine it is.
    #[must_use]
    pub fn forks(&self) -> Forks {
        self.shared.state.lock().forks()
    }

    /// Makes it another kind of engine. Registers and what is in flight stay as they are; all that
    /// happens from now on goes the new way.
    pub fn set_forks(&self, forks: Forks) {
        let mut state = self.shared.state.lock();
        state.set_forks(forks);
        self.settle(state);
    }

    /// Says whether the function may use the bus, as its command register would. It may from the
    /// start. Returns once the engine touches no memory any more, if it may not.
    ///
    /// Not to be called from an interrupt sink.
    pub fn set_bus_master(&self, on: bool) {
        let mut state = self.shared.state.lock();
        if state.bus_master() == on {
            return;
        }
        state.set_bus_master(on);
        if !on {
            self.drain_step(&mut state);
        }
        self.settle(state);
    }

    /// Sends interrupt messages to `sink` from now on. It is called from whichever thread caused
    /// the message, with no lock held, and may use the model.
    pub fn on_interrupt(&self, sink: impl Fn() + Send + Sync + 'static) {
        *self.shared.sink.lock() = Some(Arc::new(sink));
    }

    /// Sends interrupt messages to a line that can be waited on.
    #[must_use]
    pub fn interrupt_line(&self) -> InterruptLine {
        let line = InterruptLine::new();
        let raised = line.clone();
        self.on_interrupt(move || raised.raise());
        line
    }

    /// Reads the 32-bit word at a byte offset of the BAR; 0 where nothing is.
    #[must_use]
    pub fn read_word(&self, offset: u64) -> u32 {
        for _ in 0..self.shared.config.auto_step {
            self.step();
        }
        let mut state = self.shared.state.lock();
        let gone = !state.answers();
        let value = state.read(offset);
        state.virtual_ns = state
            .virtual_ns
            .saturating_add(self.shared.config.timing.read_ns);
        if gone && state.answers() {
            self.shared.wake.notify_all();
        }
        value
    }

    /// Writes the 32-bit word at a byte offset of the BAR; ignored where nothing is.
    pub fn write_word(&self, offset: u64, value: u32) {
        let mut state = self.shared.state.lock();
        state.write(offset, value);
        state.virtual_ns = state
            .virtual_ns
            .saturating_add(self.shared.config.timing.write_ns);
        self.settle(state);
    }

    /// Reads bytes of the BAR as a CPU would: word by word where aligned, and out of the
    /// containing word otherwise (one register read for each word touched).
    pub fn read_bytes(&self, offset: u64, buf: &mut [u8]) {
        let mut done = 0;
        while done < buf.len() {
            let at = offset.wrapping_add(done as u64);
            let within = (at % 4) as usize;
            let step = (4 - within).min(buf.len() - done);
            if step != 4 {
                self.shared.state.lock().counters.unknown_accesses += 1;
            }
            let word = self.read_word(at - within as u64).to_le_bytes();
            buf[done..done + step].copy_from_slice(&word[within..within + step]);
            done += step;
        }
    }

    /// Writes bytes of the BAR: aligned words are register writes; a part of a word is ignored
    /// (and counted as unknown), because what a byte enable does here is not known.
    pub fn write_bytes(&self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset.wrapping_add(done as u64);
            let within = (at % 4) as usize;
            let step = (4 - within).min(data.len() - done);
            match data[done..].first_chunk::<4>() {
                Some(word) if step == 4 => self.write_word(at, u32::from_le_bytes(*word)),
                _ => {
                    let mut state = self.shared.state.lock();
                    state.counters.mmio_writes += 1;
                    state.counters.unknown_accesses += 1;
                }
            }
            done += step;
        }
    }

    /// Lets the engine do one thing: finish at most one descriptor, or spend one step of a stall.
    pub fn step(&self) -> StepOutcome {
        let outcome = engine::step(&self.shared, None);
        self.deliver();
        outcome
    }

    /// Takes up the next descriptor without executing it: [`step`](Self::step) does that later.
    /// Returns the nanoseconds and the bytes of it.
    pub(crate) fn prefetch(&self) -> Option<(u64, u64)> {
        let next = engine::prefetch(&self.shared);
        self.deliver();
        next
    }

    /// Steps until there is nothing to do, at most `limit` times. Returns the number of
    /// descriptors that completed or failed.
    pub fn run(&self, limit: u64) -> u64 {
        let mut ended = 0;
        for _ in 0..limit {
            match self.step() {
                StepOutcome::Idle => break,
                StepOutcome::Stalled => {}
                StepOutcome::Completed { .. } | StepOutcome::Failed { .. } => ended += 1,
            }
        }
        ended
    }

    /// Function-level reset: registers as after power-on, the descriptor in flight dropped.
    /// Returns once the engine touches no memory any more. Faults that wait for a descriptor and
    /// counters stay.
    ///
    /// False, with nothing changed, if the function does not answer ([`crate::FaultKind::AllOnes`])
    /// or has no such reset ([`crate::forks::Reset`]).
    ///
    /// Not to be called from an interrupt sink.
    #[must_use]
    pub fn function_reset(&self) -> bool {
        let mut state = self.shared.state.lock();
        if !state.reset() {
            return false;
        }
        self.drain_step(&mut state);
        true
    }

    /// Power off and on: what no function can refuse, whether it answers or not. Faults and
    /// counters stay; what a reset has made absent is there again.
    ///
    /// Not to be called from an interrupt sink.
    pub fn power_cycle(&self) {
        let mut state = self.shared.state.lock();
        state.power_on();
        self.drain_step(&mut state);
    }

    /// Waits until a step whose work became void has noticed.
    fn drain_step(&self, state: &mut MutexGuard<'_, State>) {
        self.shared.wake.notify_all();
        while state.busy {
            self.shared.wake.wait(state);
        }
    }

    /// Whether the function answers on the bus at all.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.shared.state.lock().answers()
    }

    /// A read of something else than its registers, its configuration space say, where the
    /// function does not answer either: counts among those of [`crate::FaultKind::AllOnes`].
    pub fn miss(&self) {
        let mut state = self.shared.state.lock();
        state.miss();
        self.settle(state);
    }

    /// Whether its queue is set up: it has a ring, runs, or may interrupt. Not after a reset, nor
    /// after a driver has turned it off.
    #[must_use]
    pub fn programmed(&self) -> bool {
        self.shared.state.lock().programmed()
    }

    /// Adds a fault.
    pub fn inject(&self, fault: Fault) -> FaultId {
        let mut state = self.shared.state.lock();
        let id = state.inject(fault, Instant::now());
        self.settle(state);
        id
    }

    /// Removes a fault and ends what it caused (a stall, garbage, a function that is gone).
    pub fn remove_fault(&self, id: FaultId) {
        let mut state = self.shared.state.lock();
        state.remove_faults(|other| other == id);
        self.settle(state);
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        let mut state = self.shared.state.lock();
        state.remove_faults(|_| true);
        self.settle(state);
    }

    /// The faults that wait for a descriptor.
    #[must_use]
    pub fn faults(&self) -> Vec<(FaultId, Fault)> {
        self.shared.state.lock().faults()
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.state.lock().counters
    }

    /// What happened so far, and starts again from zero.
    #[must_use]
    pub fn take_counters(&self) -> Counters {
        std::mem::take(&mut self.shared.state.lock().counters)
    }

    /// Virtual time that the engine and register accesses took together, by
    /// [`ModelConfig::timing`].
    #[must_use]
    pub fn virtual_ns(&self) -> u64 {
        self.shared.state.lock().virtual_ns
    }

    /// Releases the lock, wakes whoever waits for a change, and delivers messages.
    fn settle(&self, state: MutexGuard<'_, State>) {
        drop(state);
        self.shared.wake.notify_all();
        self.deliver();
    }

    pub(crate) fn deliver(&self) {
        let messages = std::mem::take(&mut self.shared.state.lock().messages);
        if messages == 0 {
            return;
        }
        let sink = self.shared.sink.lock().clone();
        if let Some(sink) = sink {
            for _ in 0..messages {
                sink();
            }
        }
    }
}

impl RegisterIo for Model {
    fn read(&self, register: Register) -> u32 {
        self.read_word(register.offset() as u64)
    }
    fn write(&self, register: Register, value: u32) {
        self.write_word(register.offset() as u64, value);
    }
}

/// Virtual time as a clock: a driver's deadlines are then as deterministic as the steps.
impl Clock for Model {
    fn now(&self) -> u64 {
        self.virtual_ns()
    }
}
