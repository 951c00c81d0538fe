//! What a channel lost goes to others.

use core::ops::Range;

use super::account::Fate;
use super::kinds::Kinds;
use super::{Phase, Run};

use crate::cursor::{Cursor, Place};
use crate::folio::{FailReason, SkipReason};
use crate::gather::{Gather, Target};
use crate::host::Rescue;
use crate::lane::{Burst, Doubt, Lane, Span};
use crate::plan::Stretch;
use crate::sum::Sum;
use ptdma::shared::{Cause, Loss};

impl<T: Kinds, const N: usize> Run<'_, T, N> {
    /// Takes what a lane has not submitted away from it.
    pub(super) fn take_rest(&mut self, index: usize) -> Option<Stretch> {
        let lane = self.state.lanes.get_mut(index)?;
        let stretch = Stretch {
            start: lane.next.position,
            end: lane.end,
        };
        lane.end_at(lane.next);
        (stretch.len_bytes() != 0).then_some(stretch)
    }

    /// A part of the stream lost its channel.
    pub(super) fn orphan(&mut self, stretch: Stretch) {
        if stretch.len_bytes() == 0 {
            return;
        }
        if self.phase != Phase::Running {
            self.settle(stretch, Place::default(), Fate::Skip(SkipReason::Deadline));
            return;
        }
        if let Err(stretch) = self.state.orphans.push(stretch) {
            let fate = Fate::Skip(SkipReason::NoChannel);
            self.settle(stretch, Place::default(), fate);
        }
    }

    /// Gives orphans to lanes that have submitted all of their own. Returns whether one was.
    pub(super) fn adopt(&mut self, now_ns: u64) -> bool {
        if self.state.orphans.is_empty() {
            return false;
        }
        // Channels that the batch did not use so far may help.
        self.channels.choose(
            N,
            self.options.dst_node,
            self.options.src_node,
            self.options.only,
            &mut self.state.choice,
        );
        let state = &mut *self.state;
        for &channel in &state.choice {
            if state.lanes.iter().all(|lane| lane.channel != channel)
                && state
                    .lanes
                    .push(Lane::new(
                        channel,
                        Place::default(),
                        Place::default(),
                        now_ns,
                    ))
                    .is_err()
            {
                break;
            }
        }
        let usable = |lane: &&Lane| !lane.dead && self.channels.is_active(lane.channel);
        let lanes = self.state.lanes.iter().filter(usable);
        let good = lanes.clone().filter(|lane| !lane.suspect).count();
        // A channel that had to be stopped is only tried again if there is no other.
        let alive = if good == 0 { lanes.count() } else { good };
        let total = self.state.orphans.len_bytes();
        let share = total
            .checked_div(alive as u64)
            .unwrap_or(0)
            .max(self.rules.min_part_bytes)
            .max(self.rules.align_bytes);
        let mut adopted = false;
        for index in 0..self.state.lanes.len() {
            let Some(lane) = self.state.lanes.get(index) else {
                break;
            };
            if lane.dead
                || (lane.suspect && good != 0)
                || lane.rest() != 0
                || !self.channels.is_active(lane.channel)
            {
                continue;
            }
            let Some(stretch) = self.state.orphans.pop() else {
                break;
            };
            let mut cursor = Cursor::at(self.source, Place::default());
            cursor.seek_forward(stretch.start);
            let start = cursor.place();
            let mut end = None;
            if stretch.len_bytes() > share.saturating_add(self.rules.min_part_bytes) {
                let cut = self.cut_near(start, stretch.start.saturating_add(share));
                // There is room: one was just taken out.
                let rest = Stretch {
                    start: cut.position,
                    end: stretch.end,
                };
                if cut.position > start.position && self.state.orphans.push(rest).is_ok() {
                    end = Some(cut);
                }
            }
            let end = end.unwrap_or_else(|| {
                cursor.seek_forward(stretch.end);
                cursor.place()
            });
            if let Some(lane) = self.state.lanes.get_mut(index) {
                lane.next = start;
                lane.seam = start.position;
                lane.end_at(end);
                lane.spoken_for = false;
                adopted = true;
            }
        }
        adopted
    }

    /// Takes note that descriptors of a lane's oldest burst were not copied.
    pub(super) fn lose(&mut self, index: usize, loss: Loss) {
        let Some(lane) = self.state.lanes.get(index) else {
            return;
        };
        let channel = lane.channel;
        let Some(burst) = lane.bursts.front() else {
            return;
        };
        let (span, count) = (burst.span, burst.share.count());
        let lost = burst.share.index_of(loss.first)..burst.share.index_of(loss.end);
        let cause = loss.cause;
        if matches!(cause, Cause::Failed(_)) {
            self.report.errors = self.report.errors.wrapping_add(1);
        }
        let doubted = burst.doubt.is_some();
        let found = if doubted {
            None
        } else {
            self.replay(channel, &span, count, lost)
        };
        let Some((from, stretch, lost)) = found else {
            self.doubt(index, cause);
            return;
        };
        if let Some(burst) = self
            .state
            .lanes
            .get_mut(index)
            .and_then(|lane| lane.bursts.front_mut())
        {
            burst.span.left_out = burst.span.left_out.plus(lost);
            self.channels.sub_load(channel, lost.bytes);
        }
        self.rehome(index, stretch, from, cause);
    }

    /// The mapper or the source answers differently now: nothing in a lane's oldest burst that was
    /// not accounted for can be trusted. What is in the ring has to be over first.
    fn doubt(&mut self, index: usize, cause: Cause) {
        let Some(burst) = self
            .state
            .lanes
            .get_mut(index)
            .and_then(|lane| lane.bursts.front_mut())
        else {
            return;
        };
        let unproven = cause == Cause::Unproven;
        match &mut burst.doubt {
            // What may still be written outweighs everything.
            Some(Doubt::Lost {
                unproven: known, ..
            }) => *known |= unproven,
            doubt => *doubt = Some(Doubt::Lost { cause, unproven }),
        }
    }

    /// Accounts for a burst that is over, of which nobody knows what it copied.
    pub(super) fn give_up(&mut self, index: usize, burst: &Burst, doubt: Doubt) {
        let span = &burst.span;
        let stretch = Stretch {
            start: span.start.position,
            end: span.end_position,
        };
        match doubt {
            Doubt::Unmapped => {
                self.settle(stretch, span.start, Fate::Skip(SkipReason::Unmapped));
            }
            Doubt::Lost {
                cause,
                unproven: true,
            } if cause != Cause::Unproven => {
                // If it is known to have stopped, what became of it was said before.
                let channel = self.state.lanes.get(index).map_or(0, |lane| lane.channel);
                let cause = if self.is_proved_stopped(channel) {
                    cause
                } else {
                    Cause::Unproven
                };
                self.rehome(index, stretch, span.start, cause);
            }
            Doubt::Lost { cause, .. } => self.rehome(index, stretch, span.start, cause),
        }
    }

    /// A part of the stream that lane number `index` had in its ring was not copied.
    fn rehome(&mut self, index: usize, stretch: Stretch, from: Place, cause: Cause) {
        let Some(channel) = self.state.lanes.get(index).map(|lane| lane.channel) else {
            return;
        };
        match cause {
            Cause::Failed(code) => {
                self.settle(stretch, from, Fate::Fail(FailReason::Engine(code)));
            }
            Cause::Dropped => {
                self.move_away(stretch);
                // What it has not got yet goes the same way.
                if let Some(lane) = self.state.lanes.get_mut(index) {
                    lane.suspect = true;
                }
                if let Some(rest) = self.take_rest(index) {
                    self.move_away(rest);
                }
            }
            Cause::Unproven => {
                if self.is_proved_stopped(channel) {
                    self.move_away(stretch);
                } else {
                    self.settle(stretch, from, Fate::Quarantine { channel });
                }
            }
        }
    }

    /// Has the caller make sure that the channel's engine writes no more.
    pub(super) fn is_proved_stopped(&mut self, channel: usize) -> bool {
        let stopped = self.host.rescue.prove_stopped(channel);
        if stopped {
            self.channels.confirm_stopped(channel);
        }
        stopped
    }

    pub(super) fn move_away(&mut self, stretch: Stretch) {
        self.report.moved_bytes = self.report.moved_bytes.wrapping_add(stretch.len_bytes());
        self.orphan(stretch);
    }

    /// Walks a span of `count` descriptors again to find out what the `lost` ones of them covered.
    /// `None` if the walk does not come to the same descriptors.
    pub(super) fn replay(
        &mut self,
        channel: usize,
        span: &Span,
        count: u64,
        lost: Range<u64>,
    ) -> Option<(Place, Stretch, Sum)> {
        let max_len_bytes = self.channels.limits(channel)?.max_len_bytes;
        let target = Target {
            channel,
            max_len_bytes,
        };
        let mut gather = Gather::new(
            self.source,
            span.start,
            (span.end_position, span.start.folio),
            target,
            &mut self.host.mapper,
            &self.state.refused,
        );
        let (mut ordinal, mut sum) = (0_u64, Sum::NOTHING);
        let mut found: Option<(Place, Stretch)> = None;
        loop {
            let near = gather.walked().place;
            let Some(segment) = gather.next() else {
                break;
            };
            if lost.contains(&ordinal) {
                let end = gather.walked().place.position;
                let start = end.saturating_sub(segment.len_bytes);
                sum = sum.plus(Sum::of(start, end));
                let first = (near, Stretch { start, end });
                found.get_or_insert(first).1.end = end;
            }
            ordinal = ordinal.wrapping_add(1);
        }
        let walked = gather.walked();
        let same = walked.digest == span.digest
            && walked.place.position == span.end_position
            && ordinal == count;
        let (near, stretch) = found.filter(|_| same)?;
        Some((near, stretch, sum))
    }
}
