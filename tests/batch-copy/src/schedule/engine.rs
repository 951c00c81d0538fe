//! An engine with a tiny ring, in as few lines as it takes to misbehave in every way.

use std::collections::VecDeque;
use std::rc::Rc;

use batch_copy::{
    ChannelLimits, CopyChannel, CopyFailure, CopyProgress, Health, PrepError, Segment, Stopped,
};
use ptdma::Cookie;

use super::world::World;

/// Bus addresses of channel `n` begin at `n + 1` times this: where no ring is.
pub(super) const DOMAIN_LEN_BYTES: u64 = 1 << 40;

/// Addresses with this bit are out of every channel's reach.
pub(super) const OUT_OF_REACH: u64 = 1 << 48;

#[derive(Clone, Copy, Debug)]
struct Descriptor {
    copy: Segment,
    interrupt: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stuck {
    No,
    /// Until it is stopped.
    Haltable,
    /// Until its function is reset; now and then it wakes up by itself.
    Deaf,
}

/// The hardware behind a channel.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) number: usize,
    pub(super) limits: ChannelLimits,
    /// Whether addresses are translated for it.
    pub(super) translated: bool,
    ring: VecDeque<Descriptor>,
    /// Announced, of those in the ring.
    issued: usize,
    /// Cookie of the oldest in the ring.
    first: u64,
    /// All before this were told.
    told: u64,
    /// The first half of the oldest was copied.
    begun: bool,
    failed: Option<u8>,
    stuck: Stuck,
    /// It has forgotten its ring, or lost its way.
    faulted: bool,
    pub(super) raised: bool,
}

impl Engine {
    pub(super) fn new(number: usize, limits: ChannelLimits, translated: bool) -> Self {
        Self {
            number,
            limits,
            translated,
            ring: VecDeque::with_capacity(limits.ring_slots),
            issued: 0,
            // Cookies wrap soon.
            first: u64::MAX - 20,
            told: u64::MAX - 20,
            begun: false,
            failed: None,
            stuck: Stuck::No,
            faulted: false,
            raised: false,
        }
    }

    fn next(&self) -> u64 {
        self.first.wrapping_add(self.ring.len() as u64)
    }

    pub(super) fn is_at_work(&self) -> bool {
        self.issued != 0 && self.failed.is_none() && !self.faulted && self.stuck != Stuck::Haltable
    }

    fn copy(&self, world: &World, copy: Segment, from: u64, to: u64) {
        let base = if self.translated {
            (self.number as u64 + 1) * DOMAIN_LEN_BYTES
        } else {
            0
        };
        let local = |at: u64| at.wrapping_sub(base).wrapping_add(from) as usize;
        world.engine_copies(
            self.number,
            local(copy.src.get()),
            local(copy.dst.get()),
            (to - from) as usize,
        );
    }

    /// Does half a descriptor, or meets a fault.
    pub(super) fn step(&mut self, world: &Rc<World>) {
        if !self.is_at_work() {
            return;
        }
        if self.stuck == Stuck::Deaf {
            if world.one_in(50) {
                self.stuck = Stuck::No;
            }
            return;
        }
        let Some(&Descriptor { copy, interrupt }) = self.ring.front() else {
            return;
        };
        world.count_event();
        let half = copy.len_bytes / 2;
        if !self.begun {
            self.begun = true;
            if world.one_in(world.manners.fault_one_in) {
                self.meet_fault(world, copy);
                return;
            }
            self.copy(world, copy, 0, half);
            if world.one_in(2) {
                return;
            }
        }
        self.copy(world, copy, half, copy.len_bytes);
        self.pass();
        self.raised |= interrupt;
    }

    /// The oldest is over.
    fn pass(&mut self) {
        self.ring.pop_front();
        self.first = self.first.wrapping_add(1);
        self.issued = self.issued.saturating_sub(1);
        self.begun = false;
    }

    fn meet_fault(&mut self, world: &World, copy: Segment) {
        world.trouble.set(true);
        // Nothing of it was copied yet.
        self.begun = false;
        match world.below(8) {
            0..4 => {
                let code = world.below(64) as u8;
                world.note(|| format!("channel {} fails {} ({code})", self.number, self.first));
                if world.one_in(2) {
                    self.copy(world, copy, 0, copy.len_bytes / 2);
                }
                self.failed = Some(code);
                self.raised = true;
            }
            4 | 5 => {
                world.note(|| format!("channel {} hangs at {}", self.number, self.first));
                self.stuck = Stuck::Haltable;
            }
            6 => {
                world.note(|| format!("channel {} is deaf at {}", self.number, self.first));
                self.stuck = Stuck::Deaf;
            }
            _ => {
                world.note(|| format!("channel {} faults at {}", self.number, self.first));
                self.faulted = true;
                self.raised = true;
            }
        }
    }

    /// Its function is reset: it knows nothing, and reaches nothing.
    pub(super) fn reset(&mut self) {
        self.issued = 0;
        self.begun = false;
        self.failed = None;
        self.stuck = Stuck::No;
        self.faulted = true;
    }

    fn empty(&mut self) {
        self.first = self.next();
        self.ring.clear();
        self.issued = 0;
        self.begun = false;
        self.failed = None;
        self.told = self.first;
    }

    fn look(&mut self) -> CopyProgress {
        let mut failure = None;
        if let Some(code) = self.failed.take() {
            failure = Some(CopyFailure {
                cookie: Cookie::new(self.first),
                code,
            });
            self.pass();
        }
        self.told = self.first;
        CopyProgress {
            done_before: Cookie::new(self.told),
            failure,
            begun_again: false,
            health: if self.faulted {
                Health::Faulted
            } else {
                Health::Alive
            },
        }
    }
}

/// A channel on one of the world's engines.
pub(super) struct EngineChannel {
    pub(super) world: Rc<World>,
    pub(super) number: usize,
}

impl EngineChannel {
    fn with<T>(&self, f: impl FnOnce(&mut Engine) -> T) -> T {
        f(&mut self.world.engines[self.number].engine().borrow_mut())
    }

    /// Brings a channel that was taken away back.
    pub(super) fn recover(&self) {
        self.with(|engine| {
            engine.empty();
            engine.stuck = Stuck::No;
            engine.faulted = false;
        });
    }
}

impl CopyChannel for EngineChannel {
    fn limits(&self) -> ChannelLimits {
        self.with(|engine| engine.limits)
    }

    fn next_cookie(&self) -> Cookie {
        Cookie::new(self.with(|engine| engine.next()))
    }

    fn free_slots(&self) -> usize {
        self.with(|engine| {
            let used = engine.next().wrapping_sub(engine.told) as usize;
            engine.limits.ring_slots.saturating_sub(used)
        })
    }

    fn prep(&mut self, copy: Segment, interrupt: bool) -> Result<Cookie, PrepError> {
        if self.free_slots() == 0 {
            return Err(PrepError::Full);
        }
        let world = Rc::clone(&self.world);
        self.with(|engine| {
            let limits = engine.limits;
            let bits = copy.src.get() | copy.dst.get() | copy.len_bytes;
            if bits & OUT_OF_REACH != 0
                || bits & (limits.align_bytes - 1) != 0
                || copy.len_bytes == 0
                || copy.len_bytes > limits.max_len_bytes
            {
                return Err(PrepError::Rejected);
            }
            let cookie = Cookie::new(engine.next());
            world.note(|| format!("channel {} takes {cookie}: {copy:x?}", engine.number));
            engine.ring.push_back(Descriptor { copy, interrupt });
            Ok(cookie)
        })
    }

    fn issue_pending(&mut self, interrupt: bool) {
        self.with(|engine| {
            let all = engine.ring.len();
            if all > engine.issued
                && interrupt
                && let Some(newest) = engine.ring.back_mut()
            {
                newest.interrupt = true;
            }
            if !engine.faulted {
                engine.issued = all;
            }
        });
    }

    fn poll(&mut self, _now_ns: u64) -> CopyProgress {
        self.with(Engine::look)
    }

    fn poll_head(&mut self, _now_ns: u64) -> Option<Cookie> {
        self.with(|engine| {
            if engine.failed.is_some() || engine.faulted {
                return None;
            }
            engine.told = engine.first;
            Some(Cookie::new(engine.told))
        })
    }

    fn terminate(&mut self, _now_ns: u64) -> Stopped {
        let world = Rc::clone(&self.world);
        self.with(|engine| {
            world.note(|| format!("channel {} is stopped", engine.number));
            if engine.stuck == Stuck::Deaf {
                return Stopped {
                    done_before: Cookie::new(engine.told),
                    proven: false,
                    health: Health::Faulted,
                };
            }
            // What it is at may still get through.
            if engine.begun
                && engine.stuck == Stuck::No
                && engine.failed.is_none()
                && !engine.faulted
                && world.one_in(2)
                && let Some(oldest) = engine.ring.front().copied()
            {
                let half = oldest.copy.len_bytes / 2;
                engine.copy(&world, oldest.copy, half, oldest.copy.len_bytes);
                engine.pass();
            }
            let done_before = Cookie::new(engine.first);
            engine.empty();
            engine.stuck = Stuck::No;
            engine.faulted = world.manners.fault_one_in != 0 && world.one_in(8);
            Stopped {
                done_before,
                proven: true,
                health: if engine.faulted {
                    Health::Faulted
                } else {
                    Health::Alive
                },
            }
        })
    }
}
