//! Looking at a channel on behalf of the owner of some of its descriptors.

use super::member::{Losses, ServiceState, SharedChannel};
use super::ownership::Share;

use crate::copy_channel::CopyChannel;

/// How to look at a channel.
///
/// The set is closed: these are the three polls of a [`CopyChannel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollKind {
    /// At what is known: no hardware, unless that is so old that the engine seems to hang.
    Known,
    /// Poll it.
    Poll,
    /// The channel's interrupt is overdue.
    Overdue,
}

/// How a channel was last seen to move by somebody who waits for it. Each waiter goes by its own
/// clock: those of others need not have begun at the same moment.
#[derive(Clone, Copy, Debug)]
pub struct Motion {
    /// What its [`moves`](SharedChannel::moves) were.
    moves: u64,
    /// When that was seen first.
    since_ns: u64,
}

impl Motion {
    /// The motion of a channel that was not seen yet.
    #[inline]
    pub const fn since(now_ns: u64) -> Self {
        Self {
            moves: 0,
            since_ns: now_ns,
        }
    }

    /// How long ago that was.
    #[inline]
    pub const fn age_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.since_ns)
    }

    /// Whether it has stood still for `hang_ns`, now that its moves are `moves`.
    #[inline]
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
///
/// The fields are closed: an owner states each of them.
#[derive(Debug)]
pub struct Watch<'m, S> {
    /// The descriptors.
    pub share: S,
    /// How their owner has seen the channel move.
    pub motion: &'m mut Motion,
    /// The time on the owner's clock.
    pub now_ns: u64,
    /// How long the engine may stand still.
    pub hang_ns: u64,
}

/// What a look found out for the owner of some descriptors.
#[derive(Debug)]
#[non_exhaustive]
pub struct ShareStatus {
    /// Whether all of them are over. If nothing was lost, they are not held any more.
    pub over: bool,
    /// Descriptors that the ring would take now.
    pub free_slots: usize,
    /// Whether the channel is in service.
    pub active: bool,
}

/// What a glance at a channel tells the owner of some descriptors.
///
/// The set is closed: [`Unusual`](Self::Unusual) stands for everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaped {
    /// All of them are over, none was lost, and they are not held any more.
    All,
    /// Not all of them are over, as far as is known.
    NotYet,
    /// The answer takes a [`poll_share`](super::Channels::poll).
    Unusual,
}

impl<C: CopyChannel> SharedChannel<C> {
    /// Looks at the channel on behalf of the owner of a share.
    pub(super) fn poll_share(
        &mut self,
        watch: Watch<'_, &mut Share>,
        look: PollKind,
        losses: &mut Losses,
    ) -> ShareStatus {
        let Watch {
            share,
            motion,
            now_ns,
            hang_ns,
        } = watch;
        if !self.books.is_over(share) {
            match look {
                // What is known may be old: between interrupts nobody looks.
                PollKind::Known if !self.stands(motion, now_ns, hang_ns) => {}
                PollKind::Known | PollKind::Poll => self.poll(now_ns),
                PollKind::Overdue => {
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
        ShareStatus {
            over,
            free_slots: self.free_slots(),
            active,
        }
    }

    /// What [`poll_share`](Self::poll_share) comes to where nothing is amiss; `ask` says whether to poll.
    #[inline]
    pub(super) fn try_reap(&mut self, watch: &mut Watch<'_, &Share>, ask: bool) -> Reaped {
        if !self.is_well() {
            return Reaped::Unusual;
        }
        if !self.books.is_over(watch.share) {
            if ask && !self.poll_well(watch.now_ns) {
                return Reaped::Unusual;
            }
            if !self.books.is_over(watch.share) {
                return if self.stands(watch.motion, watch.now_ns, watch.hang_ns) {
                    Reaped::Unusual
                } else {
                    Reaped::NotYet
                };
            }
        }
        self.books.let_go(watch.share.count());
        Reaped::All
    }

    /// Whether it is in service, and nobody's descriptors were lost.
    #[inline]
    pub(super) fn is_well(&self) -> bool {
        self.service == ServiceState::Active && self.books.is_quiet()
    }

    /// Whether the engine has work and has not been seen to move for `hang_ns`.
    fn stands(&self, motion: &mut Motion, now_ns: u64, hang_ns: u64) -> bool {
        motion.stands(self.moves(), now_ns, hang_ns)
            && self.service == ServiceState::Active
            && self.books.in_flight() != 0
            && self.books.has_room()
    }
}
