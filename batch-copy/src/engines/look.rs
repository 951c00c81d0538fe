//! Looking at a channel on behalf of the owner of some of its descriptors.

use super::ownership::Share;
use super::port::{Losses, Port, Service};

use crate::channel::CopyChannel;

/// How to look at a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// At what is known: no hardware, unless that is so old that the engine seems to hang.
    Known,
    /// Poll it.
    Poll,
    /// Its interrupt is overdue.
    Overdue,
}

/// How a channel was last seen to move, by somebody who waits for it: each on its own clock, since
/// those of others need not have begun at the same moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Motion {
    /// What its [`moves`](Port::moves) were.
    moves: u64,
    /// When that was seen first.
    since_ns: u64,
}

impl Motion {
    /// Not seen yet.
    pub(crate) const fn since(now_ns: u64) -> Self {
        Self {
            moves: 0,
            since_ns: now_ns,
        }
    }

    /// How long ago that was.
    pub(crate) const fn age_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.since_ns)
    }

    /// Whether it has stood still for `hang_ns`, now that its moves are `moves`.
    fn stands(&mut self, moves: u64, now_ns: u64, hang_ns: u64) -> bool {
        if self.moves != moves {
            *self = Self {
                moves,
                since_ns: now_ns,
            };
        }
        // A clock that goes back makes it look younger.
        self.age_ns(now_ns) >= hang_ns
    }
}

/// What is looked at: descriptors of one owner.
#[derive(Debug)]
pub(crate) struct Watch<'m, S> {
    pub(crate) share: S,
    pub(crate) motion: &'m mut Motion,
    pub(crate) now_ns: u64,
    /// How long the engine may stand still.
    pub(crate) hang_ns: u64,
}

/// What a look found out for the owner of some descriptors.
#[derive(Debug)]
pub(crate) struct Sight {
    /// Whether all of them are over. If nothing was lost, they are not held any more.
    pub(crate) over: bool,
    pub(crate) free_slots: usize,
    pub(crate) active: bool,
}

/// What a glance at a channel tells the owner of some descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Glance {
    /// All of them are over, none was lost, and they are not held any more.
    Over,
    /// Not all of them are over, as far as is known.
    NotYet,
    /// That takes a [`look`](super::Engines::look).
    Unusual,
}

impl<C: CopyChannel> Port<C> {
    /// Looks at the channel on behalf of the owner of a share.
    pub(super) fn look(
        &mut self,
        watch: Watch<'_, &mut Share>,
        look: Look,
        losses: &mut Losses,
    ) -> Sight {
        let Watch {
            share,
            motion,
            now_ns,
            hang_ns,
        } = watch;
        if !self.books.is_over(share) {
            match look {
                // What is known may be old: between interrupts nobody looks.
                Look::Known if !self.stands(motion, now_ns, hang_ns) => {}
                Look::Known | Look::Poll => self.poll(now_ns),
                Look::Overdue => {
                    self.stats.polls = self.stats.polls.wrapping_add(1);
                    self.ask(now_ns, C::overdue);
                }
            }
            if self.stands(motion, now_ns, hang_ns) {
                self.stats.hangs = self.stats.hangs.wrapping_add(1);
                self.stop(now_ns, true);
            }
        }
        let fate = self.fate_in_flight();
        if !self.books.is_quiet() || fate.is_some() {
            // One for each entry and one more: there is room.
            self.books.claim(share, fate, |loss| {
                let _ = losses.push(loss);
            });
        }
        let active = fate.is_none();
        let over = self.books.is_over(share) || !active;
        // What was lost is still being dealt with: see `let_go`.
        if over && losses.is_empty() {
            self.books.let_go(share.count());
        }
        Sight {
            over,
            free_slots: self.free_slots(),
            active,
        }
    }

    /// What [`look`](Self::look) comes to where nothing is amiss; `ask` says whether to poll.
    #[inline]
    pub(super) fn glance(&mut self, watch: &mut Watch<'_, &Share>, ask: bool) -> Glance {
        if !self.is_well() {
            return Glance::Unusual;
        }
        if !self.books.is_over(watch.share) {
            if ask && !self.poll_well(watch.now_ns) {
                return Glance::Unusual;
            }
            if !self.books.is_over(watch.share) {
                return if self.stands(watch.motion, watch.now_ns, watch.hang_ns) {
                    Glance::Unusual
                } else {
                    Glance::NotYet
                };
            }
        }
        self.books.let_go(watch.share.count());
        Glance::Over
    }

    /// Whether it is in service, and nobody's descriptors were lost.
    #[inline]
    pub(super) fn is_well(&self) -> bool {
        self.service == Service::Active && self.books.is_quiet()
    }

    /// Whether the engine has work and has not been seen to move for `hang_ns`.
    fn stands(&self, motion: &mut Motion, now_ns: u64, hang_ns: u64) -> bool {
        motion.stands(self.moves(), now_ns, hang_ns)
            && self.service == Service::Active
            && self.books.in_flight() != 0
            && self.books.has_room()
    }
}
