//! What a channel lost goes to others.

use core::ops::Range;

use ptdma::Lock;

use super::account::Fate;
use super::{Phase, Run};

use crate::channel::CopyChannel;
use crate::cursor::{Cursor, Place};
use crate::engines::{Cause, Loss, Port};
use crate::folio::{FailReason, SkipReason};
use crate::gather::{Gather, Target};
use crate::host::{CpuCopier, Rescue};
use crate::lane::{Lane, Span};
use crate::map::Mapper;
use crate::plan::Stretch;
use crate::source::FolioSource;
use crate::wait::Wait;

impl<S, C, L, W, M, K, R, const N: usize> Run<'_, S, C, L, W, M, K, R, N>
where
    S: FolioSource + ?Sized,
    C: CopyChannel,
    L: Lock<Port<C>>,
    W: Wait,
    M: Mapper,
    K: CpuCopier,
    R: Rescue,
{
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
            self.settle(stretch, Fate::Skip(SkipReason::Deadline));
            return;
        }
        if let Some(last) = self.state.orphans.last_mut()
            && last.end == stretch.start
        {
            last.end = stretch.end;
            return;
        }
        if let Err(stretch) = self.state.orphans.push(stretch) {
            self.settle(stretch, Fate::Skip(SkipReason::NoChannel));
        }
    }

    /// Gives orphans to lanes that have submitted all of their own. Returns whether one was.
    pub(super) fn adopt(&mut self) -> bool {
        if self.state.orphans.is_empty() {
            return false;
        }
        // Channels that the batch did not use so far may help.
        self.engines.choose(
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
                    .push(Lane::new(channel, Place::default(), Place::default()))
                    .is_err()
            {
                break;
            }
        }
        let usable = |lane: &&Lane| !lane.dead && self.engines.is_active(lane.channel);
        let lanes = self.state.lanes.iter().filter(usable);
        let good = lanes.clone().filter(|lane| !lane.suspect).count();
        // A channel that had to be stopped is only tried again if there is no other.
        let alive = if good == 0 { lanes.count() } else { good };
        let total = self
            .state
            .orphans
            .iter()
            .fold(0_u64, |sum, s| sum.wrapping_add(s.len_bytes()));
        let share = total
            .checked_div(alive as u64)
            .unwrap_or(0)
            .max(self.rules.min_part_bytes)
            .max(self.rules.align_bytes);
        let mut adopted = false;
        for lane in &mut self.state.lanes {
            if lane.dead
                || (lane.suspect && good != 0)
                || lane.rest() != 0
                || !self.engines.is_active(lane.channel)
            {
                continue;
            }
            let Some(mut stretch) = self.state.orphans.pop() else {
                break;
            };
            if stretch.len_bytes() > share.saturating_add(self.rules.min_part_bytes) {
                let part = share & !self.rules.align_bytes.wrapping_sub(1);
                let cut = stretch.start.saturating_add(part);
                // There is room: one was just taken out.
                let _ = self.state.orphans.push(Stretch {
                    start: cut,
                    end: stretch.end,
                });
                stretch.end = cut;
            }
            let mut cursor = Cursor::at(self.source, Place::default());
            cursor.seek_forward(stretch.start);
            lane.next = cursor.place();
            lane.seam = lane.next.position;
            cursor.seek_forward(stretch.end);
            lane.end_at(cursor.place());
            lane.spoken_for = false;
            adopted = true;
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
        let given_up = burst.lost_bytes >= span.bytes;
        if matches!(loss.cause, Cause::Failed(_)) {
            self.report.errors = self.report.errors.wrapping_add(1);
        }
        // All of it was given up before, and went elsewhere then: it must not go there again.
        // Whether it can still be written is another question.
        if given_up && (loss.cause != Cause::Unproven || self.is_proved_stopped(channel)) {
            return;
        }
        let (stretch, lost_bytes) = match self.replay(channel, &span, count, lost) {
            Some(found) => found,
            // The mapper or the source answers differently now: nothing in the burst that was not
            // accounted for can be trusted.
            None => (
                Stretch {
                    start: span.start.position,
                    end: span.end_position,
                },
                span.bytes,
            ),
        };
        if let Some(burst) = self
            .state
            .lanes
            .get_mut(index)
            .and_then(|lane| lane.bursts.front_mut())
        {
            burst.lost_bytes = burst.lost_bytes.saturating_add(lost_bytes);
        }
        match loss.cause {
            Cause::Failed(code) => self.settle(stretch, Fate::Fail(FailReason::Engine(code))),
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
                    self.settle(stretch, Fate::Quarantine { channel });
                }
            }
        }
    }

    /// Has the caller make sure that the channel's engine writes no more.
    fn is_proved_stopped(&mut self, channel: usize) -> bool {
        let stopped = self.host.rescue.prove_stopped(channel);
        if stopped {
            self.engines.confirm_stopped(channel);
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
    ) -> Option<(Stretch, u64)> {
        let max_len_bytes = self.engines.limits(channel)?.max_len_bytes;
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
        let (mut ordinal, mut bytes) = (0_u64, 0_u64);
        let mut found: Option<Stretch> = None;
        while let Some(segment) = gather.next() {
            if lost.contains(&ordinal) {
                bytes = bytes.wrapping_add(segment.len_bytes);
                let end = gather.walked().place.position;
                let start = end.saturating_sub(segment.len_bytes);
                found.get_or_insert(Stretch { start, end }).end = end;
            }
            ordinal = ordinal.wrapping_add(1);
        }
        let digest = gather.walked().digest;
        let same = digest == span.digest && ordinal == count;
        found.filter(|_| same).map(|stretch| (stretch, bytes))
    }
}
