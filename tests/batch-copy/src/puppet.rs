//! A channel that does what a test says, when it says so.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use batch_copy::{
    ChannelLimits, Channels, CopyChannel, CopyFailure, CopyProgress, Health, PrepError, Segment,
    SharedChannel, Stopped,
};
use ptdma::Cookie;

/// What becomes of a descriptor that the engine gets to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It is copied.
    Copy,
    /// It fails with this code.
    Fail(u8),
    /// The engine begins again with it, and nothing more is over.
    BeginAgain,
}

/// The engine's side of a [`Puppet`].
#[derive(Debug, Default)]
pub struct Strings {
    /// Descriptors that were accepted and are not over, oldest first.
    pub ring: VecDeque<Segment>,
    /// So many of them were announced.
    pub issued: usize,
    /// Those that were copied, in order.
    pub copied: Vec<Segment>,
    /// What becomes of the next descriptors; empty: the engine stands.
    pub acts: VecDeque<Act>,
    /// The next look finds the channel out of order.
    pub faulted: bool,
    /// Whether an engine that is stopped is known to have stopped, and works again.
    pub stops: bool,
    /// Looks at the engine so far.
    pub polls: u64,
    /// Doorbells with the interrupt asked for.
    pub interrupts_wanted: u64,
    done: u64,
}

/// A channel whose engine is pulled by [`Strings`].
#[derive(Clone, Debug)]
pub struct Puppet {
    /// What pulls the engine.
    pub strings: Rc<RefCell<Strings>>,
    /// What the channel can do.
    pub limits: ChannelLimits,
    /// Sources at and over this are out of its reach.
    pub reach: u64,
}

/// Channels of this kind.
pub type Puppets<const N: usize> = Channels<Puppet, spin::Mutex<SharedChannel<Puppet>>, N>;

impl Puppet {
    /// A channel with a ring of `slots` descriptors, whose engine stands.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        Self {
            strings: Rc::new(RefCell::new(Strings {
                stops: true,
                ..Strings::default()
            })),
            limits: ChannelLimits::new(1 << 21, slots),
            reach: 1 << 48,
        }
    }

    /// Puts channels into service.
    ///
    /// # Panics
    ///
    /// If there are more than `N`.
    #[must_use]
    pub fn channels<const N: usize>(puppets: &[Self]) -> Puppets<N> {
        let mut channels = Channels::new();
        for puppet in puppets {
            let lock = spin::Mutex::new(SharedChannel::new(puppet.clone()));
            assert!(channels.add(lock).is_ok(), "room for {N}");
        }
        channels
    }
}

impl CopyChannel for Puppet {
    fn limits(&self) -> ChannelLimits {
        self.limits
    }

    fn next_cookie(&self) -> Cookie {
        let strings = self.strings.borrow();
        Cookie::new(strings.done + strings.ring.len() as u64)
    }

    fn free_slots(&self) -> usize {
        self.limits.ring_slots - self.strings.borrow().ring.len()
    }

    fn prep(&mut self, copy: Segment, _interrupt: bool) -> Result<Cookie, PrepError> {
        let misaligned = |at: u64| !at.is_multiple_of(self.limits.align_bytes);
        if misaligned(copy.src.get()) || misaligned(copy.dst.get()) || misaligned(copy.len_bytes) {
            return Err(PrepError::Rejected);
        }
        if copy.len_bytes > self.limits.max_len_bytes || copy.src.get() >= self.reach {
            return Err(PrepError::Rejected);
        }
        if self.free_slots() == 0 {
            return Err(PrepError::Full);
        }
        let cookie = self.next_cookie();
        self.strings.borrow_mut().ring.push_back(copy);
        Ok(cookie)
    }

    fn issue_pending(&mut self, interrupt: bool) {
        let mut strings = self.strings.borrow_mut();
        strings.interrupts_wanted += u64::from(interrupt);
        strings.issued = strings.ring.len();
    }

    fn poll(&mut self, _now_ns: u64) -> CopyProgress {
        let mut strings = self.strings.borrow_mut();
        strings.polls += 1;
        let mut failure = None;
        let mut begun_again = false;
        while failure.is_none() && !begun_again && strings.issued != 0 && !strings.faulted {
            let Some(act) = strings.acts.pop_front() else {
                break;
            };
            if act == Act::BeginAgain {
                begun_again = true;
                break;
            }
            let copy = strings.ring.pop_front().expect("issued");
            strings.issued -= 1;
            match act {
                Act::Copy => strings.copied.push(copy),
                Act::Fail(code) => {
                    failure = Some(CopyFailure {
                        cookie: Cookie::new(strings.done),
                        code,
                    });
                }
                Act::BeginAgain => {}
            }
            strings.done += 1;
        }
        CopyProgress {
            done_before: Cookie::new(strings.done),
            failure,
            begun_again,
            health: if std::mem::take(&mut strings.faulted) {
                Health::Faulted
            } else {
                Health::Alive
            },
        }
    }

    fn terminate(&mut self, _now_ns: u64) -> Stopped {
        let mut strings = self.strings.borrow_mut();
        let done_before = Cookie::new(strings.done);
        if strings.stops {
            strings.done += strings.ring.len() as u64;
            strings.ring.clear();
            strings.issued = 0;
        }
        Stopped {
            done_before,
            proven: strings.stops,
            health: if strings.stops {
                Health::Alive
            } else {
                Health::Faulted
            },
        }
    }
}
