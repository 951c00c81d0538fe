//! Descriptors that were not copied, until their owners have taken note.

use heapless::Vec;
use ptdma::Cookie;

use super::port::{Port, Service};

use crate::channel::CopyChannel;

/// Losses that a channel remembers until their owners have taken note. While it is full the
/// channel is not looked at, so that an engine that waits behind a failure goes on waiting; every
/// waiting batch takes its own out each time it looks.
pub(super) const LOG_SLOTS: usize = 8;

/// At most one loss for each entry of the log, and one for a channel that is out of service.
pub(crate) type Losses = Vec<Loss, { LOG_SLOTS + 1 }>;

/// What happened to descriptors that were not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The engine failed it; raw code.
    Failed(u8),
    /// It was dropped when the engine was stopped; it may be copied again by anybody.
    Dropped,
    /// The engine was not proven to have stopped.
    Unproven,
}

/// Descriptors `first..end` were not copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loss {
    pub(crate) first: Cookie,
    pub(crate) end: Cookie,
    pub(crate) cause: Cause,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct LogEntry {
    pub(super) loss: Loss,
    /// Descriptors whose owners have not taken note.
    pub(super) unclaimed: u64,
}

impl<C: CopyChannel> Port<C> {
    /// Hands over what `first..end`, which belongs to the caller, has lost.
    pub(super) fn claim(&mut self, first: Cookie, end: Cookie, losses: &mut Losses) {
        let mut index = 0;
        while let Some(entry) = self.log.get_mut(index) {
            let from = later(entry.loss.first, first);
            let to = earlier(entry.loss.end, end);
            if from.is_before(to) {
                let mine = Loss {
                    first: from,
                    end: to,
                    cause: entry.loss.cause,
                };
                // One for each entry and one more: there is room.
                let _ = losses.push(mine);
                entry.unclaimed = entry.unclaimed.saturating_sub(to.since(from));
                if entry.unclaimed == 0 {
                    self.log.swap_remove(index);
                    continue;
                }
            }
            index = index.wrapping_add(1);
        }
        if self.service != Service::Active {
            let from = later(self.done_before, first);
            if from.is_before(end) {
                let cause = match self.service {
                    Service::Unproven => Cause::Unproven,
                    Service::Active | Service::Retired => Cause::Dropped,
                };
                let _ = losses.push(Loss {
                    first: from,
                    end,
                    cause,
                });
            }
        }
    }
}

fn later(a: Cookie, b: Cookie) -> Cookie {
    if a.is_before(b) { b } else { a }
}

fn earlier(a: Cookie, b: Cookie) -> Cookie {
    if a.is_before(b) { a } else { b }
}
