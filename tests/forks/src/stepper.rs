//! Registers whose accesses let the engine go on, and make things happen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use ptdma::io::{Clock, RegisterIo};
use ptdma::regs::Register;
use ptdma_model::{BusSpace, Fault, FaultKind, Forks, Model, ModelConfig};

use crate::random::Random;

/// Register accesses of one case, at the most: some ten times what the longest of them needs. A
/// driver that waits without a bound runs into it.
const MAX_ACCESSES: u64 = 3_000_000;

/// Something that happens to a function behind the driver's back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It does not answer for so many reads.
    Vanish(u64),
    /// It is reset, and nobody says so.
    Reset,
}

#[derive(Debug)]
struct State {
    random: Random,
    /// The engine makes fewer steps than this before each access; 0 stops it.
    pace: u64,
    /// What happens, before which access.
    event: Option<(u64, Event)>,
    accesses: u64,
}

/// A function whose engine makes steps before each register access. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Stepper {
    model: Model,
    state: Arc<Mutex<State>>,
    interrupts: Arc<AtomicU64>,
}

impl Stepper {
    /// A function just powered on.
    #[must_use]
    pub fn new(forks: Forks, bus: &BusSpace, seed: u64) -> Self {
        let config = ModelConfig {
            forks,
            ..ModelConfig::default()
        };
        let model = Model::new(config, bus.clone());
        let interrupts = Arc::new(AtomicU64::new(0));
        let raised = Arc::clone(&interrupts);
        model.on_interrupt(move || {
            raised.fetch_add(1, Ordering::Relaxed);
        });
        Self {
            model,
            state: Arc::new(Mutex::new(State {
                random: Random::new(seed),
                pace: 3,
                event: None,
                accesses: 0,
            })),
            interrupts,
        }
    }

    /// The function.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Makes something happen before one of the next `within` accesses.
    pub fn plan(&self, event: Event, within: u64) {
        let mut state = self.state.lock();
        let at = state.accesses + 1 + state.random.below(within);
        state.event = Some((at, event));
    }

    /// Whether what was planned has happened.
    #[must_use]
    pub fn has_happened(&self) -> bool {
        self.state.lock().event.is_none()
    }

    /// What was planned does not happen any more.
    pub fn forget(&self) {
        self.state.lock().event = None;
    }

    /// Lets the engine make up to `most` steps, outside of any access.
    pub fn advance(&self, most: u64) {
        let steps = {
            let mut state = self.state.lock();
            if state.pace == 0 {
                0
            } else {
                state.random.below(most + 1)
            }
        };
        self.model.run(steps);
    }

    /// Takes one interrupt message, if there is one.
    #[must_use]
    pub fn take_interrupt(&self) -> bool {
        let take = |n: u64| n.checked_sub(1);
        self.interrupts
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }

    /// Register accesses so far.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.state.lock().accesses
    }

    fn before_access(&self) {
        let (steps, event) = {
            let mut state = self.state.lock();
            state.accesses += 1;
            assert!(
                state.accesses < MAX_ACCESSES,
                "more than {MAX_ACCESSES} register accesses: a wait without a bound"
            );
            let now = state.accesses;
            let due = state.event.take_if(|(at, _)| *at <= now);
            let pace = state.pace;
            (state.random.below(pace), due)
        };
        match event {
            None => {}
            Some((_, Event::Vanish(reads))) => {
                let all_ones = FaultKind::AllOnes { reads: Some(reads) };
                self.model.inject(Fault::now(all_ones));
            }
            Some((_, Event::Reset)) => self.model.power_cycle(),
        }
        self.model.run(steps);
    }
}

impl RegisterIo for Stepper {
    fn read(&self, register: Register) -> u32 {
        self.before_access();
        self.model.read(register)
    }

    fn write(&self, register: Register, value: u32) {
        self.before_access();
        self.model.write(register, value);
    }
}

/// One tick for each register access: a wait that looks makes time pass.
impl Clock for Stepper {
    fn now(&self) -> u64 {
        self.state.lock().accesses
    }
}
