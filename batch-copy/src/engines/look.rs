//! Looking at a channel on behalf of the owner of some of its descriptors.

use ptdma::Cookie;

use super::loss::Losses;
use super::port::{Port, Service};

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

/// What is looked at: descriptors of one owner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    pub(crate) first: Cookie,
    /// One past the last.
    pub(crate) end: Cookie,
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
    /// Looks at the channel on behalf of the owner of `first..end`.
    pub(super) fn look(&mut self, watch: &Watch, look: Look, losses: &mut Losses) -> Sight {
        let Watch {
            first,
            end,
            now_ns,
            hang_ns,
        } = *watch;
        if self.done_before.is_before(end) {
            match look {
                // What is known may be old: between interrupts nobody looks.
                Look::Known if !self.stands(now_ns, hang_ns) => {}
                Look::Known | Look::Poll => self.poll(now_ns),
                Look::Overdue => {
                    self.stats.polls = self.stats.polls.wrapping_add(1);
                    self.ask(now_ns, C::overdue);
                }
            }
            if self.stands(now_ns, hang_ns) {
                self.stats.hangs = self.stats.hangs.wrapping_add(1);
                self.stop(now_ns, true);
            }
        }
        if !self.log.is_empty() || self.service != Service::Active {
            self.claim(first, end, losses);
        }
        let active = self.service == Service::Active;
        let over = !self.done_before.is_before(end) || !active;
        // What was lost is still being dealt with: see `let_go`.
        if over && losses.is_empty() {
            self.held = self.held.saturating_sub(end.since(first));
        }
        Sight {
            over,
            free_slots: self.free_slots(),
            active,
        }
    }

    /// What [`look`](Self::look) comes to where nothing is amiss; `ask` says whether to poll.
    #[inline]
    pub(super) fn glance(&mut self, watch: &Watch, ask: bool) -> Glance {
        if !self.is_well() {
            return Glance::Unusual;
        }
        if self.done_before.is_before(watch.end) {
            if ask && !self.poll_well(watch.now_ns) {
                return Glance::Unusual;
            }
            if self.done_before.is_before(watch.end) {
                return if self.stands(watch.now_ns, watch.hang_ns) {
                    Glance::Unusual
                } else {
                    Glance::NotYet
                };
            }
        }
        self.held = self.held.saturating_sub(watch.end.since(watch.first));
        Glance::Over
    }

    /// Whether it is in service, and nobody's descriptors were lost.
    #[inline]
    pub(super) fn is_well(&self) -> bool {
        self.service == Service::Active && self.log.is_empty()
    }

    /// Whether the engine has work and has not been seen to move for `hang_ns`.
    fn stands(&self, now_ns: u64, hang_ns: u64) -> bool {
        self.service == Service::Active
            && self.in_flight() != 0
            && now_ns.saturating_sub(self.moved_ns) >= hang_ns
            && !self.log.is_full()
    }
}
