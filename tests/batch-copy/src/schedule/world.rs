//! What all players share: chance, time, memory, engines.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use ptdma::Lock;
use ptdma_model::tape;

use super::coroutine::Turn;
use super::hardware::Hardware;

/// Bytes of memory that one batch at a time has for itself.
pub(super) const SLOT_LEN_BYTES: usize = 16 << 10;

/// Of these, so many are for sources; the rest is for destinations.
pub(super) const DST_OFFSET_BYTES: usize = SLOT_LEN_BYTES / 2;

/// How a run is set up: who misbehaves, and how much.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manners {
    /// A batch gives its turn up at one callback in so many, on average.
    pub(super) switch_one_in: u64,
    /// One descriptor in so many meets a fault; 0: none.
    pub(super) fault_one_in: u64,
    /// Whether owners reset functions and take channels away.
    pub(super) owners: bool,
    /// Whether interrupts get lost or come for nothing.
    pub(super) interrupts_lie: bool,
    /// Whether the last resort works.
    pub(super) resets_work: bool,
    /// Whether mappers and sources lie.
    pub(super) lies: bool,
    /// Whether callbacks panic.
    pub(super) panics: bool,
    /// Whether a batch's list of folios is a callback too.
    pub(super) slow_lists: bool,
    /// What addresses and lengths of folios are multiples of.
    pub(super) align_bytes: u64,
}

/// A part of memory that an engine may still reach, as a batch was told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quarantined {
    pub(super) channel: usize,
    pub(super) dst: usize,
    pub(super) len_bytes: usize,
}

/// What all players share.
pub(super) struct World {
    pub(super) seed: u64,
    random: Cell<u64>,
    pub(super) events: Cell<u64>,
    most_events: u64,
    pub(super) now_ns: Cell<u64>,
    pub(super) turn: Turn,
    pub(super) manners: Manners,
    pub(super) engines: Vec<Hardware>,
    pub(super) memory: RefCell<Vec<u8>>,
    /// Whether the batch of each slot is running.
    pub(super) live: Vec<Cell<bool>>,
    pub(super) quarantined: RefCell<Vec<Quarantined>>,
    pub(super) locks_held: Cell<usize>,
    /// Something is not as it has to be.
    pub(super) wrong: RefCell<Option<String>>,
    /// Whether anything happened that a batch may suffer from.
    pub(super) trouble: Cell<bool>,
    /// Wakes of those who sleep.
    pub(super) bell: Cell<u64>,
    pub(super) trace: Option<RefCell<VecDeque<String>>>,
}

impl World {
    pub(super) fn new(
        seed: u64,
        manners: Manners,
        engines: Vec<Hardware>,
        slots: usize,
        most_events: u64,
    ) -> Rc<Self> {
        Rc::new(Self {
            seed,
            random: Cell::new(scramble(seed) | 1),
            events: Cell::new(0),
            most_events,
            now_ns: Cell::new(1_000_000),
            turn: Turn::default(),
            manners,
            engines,
            memory: RefCell::new(vec![0; slots * SLOT_LEN_BYTES]),
            live: (0..slots).map(|_| Cell::new(false)).collect(),
            quarantined: RefCell::default(),
            locks_held: Cell::new(0),
            wrong: RefCell::new(None),
            trouble: Cell::new(false),
            bell: Cell::new(0),
            trace: std::env::var_os("PTDMA_FUZZ_TRACE").map(|_| RefCell::default()),
        })
    }

    /// `xorshift64*`.
    pub(super) fn next(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(super) fn below(&self, bound: u64) -> u64 {
        match tape::below(bound) {
            Some(taped) => taped,
            None => self.next() % bound,
        }
    }

    pub(super) fn one_in(&self, count: u64) -> bool {
        count != 0 && self.below(count) == 0
    }

    pub(super) fn one_of<T: Copy>(&self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Something is not as it has to be: the run ends, and the seed is told.
    pub(super) fn is_wrong(&self, what: impl FnOnce() -> String) {
        let mut wrong = self.wrong.borrow_mut();
        if wrong.is_none() {
            *wrong = Some(what());
        }
    }

    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            let line = format!("{} ns: {}", self.now_ns.get(), what());
            trace.borrow_mut().push_back(line);
        }
    }

    pub(super) fn count_event(&self) {
        let events = self.events.get() + 1;
        self.events.set(events);
        if events > self.most_events {
            self.is_wrong(|| format!("not at an end after {events} events"));
        }
    }

    /// A callback: time passes, an engine may do something, and the turn may go to somebody else.
    pub(super) fn tick(self: &Rc<Self>) {
        self.count_event();
        // All that is read of it is its low 16 bits.
        let chance = tape::below(0x1_0000).unwrap_or_else(|| self.next() & 0xffff);
        self.now_ns.set(self.now_ns.get() + (chance & 31));
        if chance & 32 != 0 {
            self.step_an_engine();
        }
        if (chance >> 8).is_multiple_of(self.manners.switch_one_in) {
            self.turn.give_up();
        }
        // Whatever is wrong is told by who hands out turns.
        while self.wrong.borrow().is_some() && self.turn.give_up() {}
    }

    /// A callback that panics now and then, if they do.
    pub(super) fn tick_or_panic(self: &Rc<Self>) {
        self.tick();
        if self.manners.panics && self.one_in(400) && !std::thread::panicking() {
            self.trouble.set(true);
            self.note(|| "a callback panics".into());
            std::panic::resume_unwind(Box::new(Deliberate));
        }
    }

    pub(super) fn step_an_engine(self: &Rc<Self>) {
        let index = self.below(self.engines.len() as u64) as usize;
        self.engines[index].step(self);
    }

    /// An engine writes: to a batch that runs, or to what was said to be in quarantine.
    pub(super) fn engine_copies(&self, channel: usize, src: usize, dst: usize, len_bytes: usize) {
        if len_bytes == 0 {
            return;
        }
        let mut memory = self.memory.borrow_mut();
        if src + len_bytes > memory.len() || dst + len_bytes > memory.len() {
            if !self.manners.lies {
                self.is_wrong(|| format!("a copy out of bounds on channel {channel}"));
            }
            return;
        }
        let given_back = !self.live[dst / SLOT_LEN_BYTES].get();
        if given_back {
            // A descriptor may span several parts.
            let parts = self.quarantined.borrow();
            let mut at = dst;
            while at < dst + len_bytes
                && let Some(part) = parts.iter().find(|part| {
                    part.channel == channel && part.dst <= at && at < part.dst + part.len_bytes
                })
            {
                at = part.dst + part.len_bytes;
            }
            let known = at >= dst + len_bytes;
            // A mapper that lies has an engine write where nobody can name it.
            if !known && !self.manners.lies {
                self.is_wrong(|| {
                    format!(
                        "channel {channel} writes {len_bytes} bytes at {dst:#x} after the return"
                    )
                });
            }
        }
        memory.copy_within(src..src + len_bytes, dst);
    }

    /// The engine of a channel reaches no memory any more.
    pub(super) fn reset(&self, channel: usize) {
        self.engines[channel].reset();
        self.quarantined
            .borrow_mut()
            .retain(|part| part.channel != channel);
    }
}

/// What callbacks panic with.
pub(super) struct Deliberate;

/// Spreads the bits of a seed.
pub(super) fn scramble(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A lock that gives the turn up before it is taken, and while somebody else holds it.
pub(super) struct FuzzLock<T> {
    pub(super) world: Rc<World>,
    pub(super) value: RefCell<T>,
}

impl<T> Lock<T> for FuzzLock<T> {
    fn with<U>(&self, f: impl FnOnce(&mut T) -> U) -> U {
        self.world.tick();
        loop {
            if let Ok(mut value) = self.value.try_borrow_mut() {
                let held = &self.world.locks_held;
                held.set(held.get() + 1);
                let _let_go = Held(held);
                return f(&mut value);
            }
            self.world.count_event();
            assert!(
                self.world.turn.give_up(),
                "nobody is there to let go of a lock"
            );
        }
    }
}

struct Held<'a>(&'a Cell<usize>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
