//! A lane looked after: what is over is let go of, and more is handed out in its place.

use ptdma::DmaAddr;

use super::account::Fate;
use super::kinds::Kinds;
use super::{Batch, Run, Unfiled};

use crate::cursor::Cursor;
use crate::folio::SkipReason;
use crate::gather::{CHUNK, Ended, Gather, Target};
use crate::hand_out::Order;
use crate::lane::{Burst, Doubt, Lane, Span};
use crate::map::Mapper;
use crate::plan::Stretch;
use crate::source::FolioSource;
use crate::wait::Wait;
use ptdma::shared::{Accepted, Losses, Motion, PollKind, Share, Watch};
use ptdma::{ChannelLimits, PrepError};

/// What came of a look at a lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Serviced {
    /// Whether anything happened.
    pub(super) moved: bool,
    /// Whether nothing is left of the lane, for certain.
    pub(super) done: bool,
}

impl Serviced {
    pub(super) const fn more(moved: bool) -> Self {
        Self { moved, done: false }
    }
}

/// What a channel took of what it was offered, if that was not all.
struct Taken {
    /// The longest copy that it was offered.
    max_len_bytes: u64,
    share: Share,
    /// All that it was offered.
    span: Span,
    count: usize,
    bytes: u64,
    /// Why it took no more.
    error: Option<PrepError>,
}

impl<T: Kinds, const N: usize> Run<'_, T, N> {
    /// Looks at one lane: takes note of losses, lets go of what is over, hands out more. Says
    /// what came of it.
    pub(super) fn service(
        &mut self,
        index: usize,
        mut look: PollKind,
        now_ns: u64,
        losses: &mut Losses,
    ) -> Serviced {
        let mut moved = false;
        let mut free_slots = None;
        loop {
            let Some(lane) = self.state.lanes.get_mut(index) else {
                return Serviced::more(moved);
            };
            let channel = lane.channel;
            let Some(burst) = lane.bursts.front_mut() else {
                break;
            };
            let count = burst.share.count();
            let watch = Watch {
                share: &mut burst.share,
                motion: &mut lane.motion,
                now_ns,
                hang_ns: self.options.hang_ns,
            };
            let Some(sight) = self.channels.poll(channel, watch, look, losses) else {
                return Serviced::more(moved);
            };
            look = PollKind::Known;
            free_slots = Some(sight.free_slots);
            lane.dead |= !sight.active;
            let lane = if losses.is_empty() {
                if !sight.over {
                    break;
                }
                lane
            } else {
                moved = true;
                while let Some(loss) = losses.pop() {
                    self.lose(index, loss);
                }
                if !sight.over {
                    break;
                }
                self.channels.let_go(channel, count);
                let Some(lane) = self.state.lanes.get_mut(index) else {
                    return Serviced::more(moved);
                };
                lane
            };
            moved = true;
            if let Some(burst) = lane.bursts.pop_front() {
                self.channels.sub_load(channel, burst.span.bytes());
                if let Some(doubt) = burst.doubt {
                    self.give_up(index, &burst, doubt);
                } else {
                    let span = &burst.span;
                    self.dma
                        .add(span.start.position, span.end_position, span.left_out);
                }
            }
            if self.state.lanes.get(index).is_some_and(Lane::is_done) {
                return Serviced { moved, done: true };
            }
        }
        let Some(lane) = self.state.lanes.get_mut(index) else {
            return Serviced::more(moved);
        };
        if lane.rest() == 0 {
            return Serviced {
                moved,
                done: lane.bursts.is_empty(),
            };
        }
        let channel = lane.channel;
        lane.dead |= !self.channels.is_active(channel);
        if lane.dead {
            if let Some(stretch) = self.take_rest(index) {
                self.report.moved_bytes = self.report.moved_bytes.wrapping_add(stretch.len_bytes());
                self.orphan(stretch);
            }
            let done = self.state.lanes.get(index).is_none_or(Lane::is_done);
            return Serviced { moved: true, done };
        }
        let free = match free_slots {
            Some(free) => free,
            None => self.channels.free_slots(channel),
        };
        let Some(limits) = self.channels.limits(channel) else {
            return Serviced::more(moved);
        };
        let ring_slots = limits.ring_slots;
        // Refill by halves: fewer doorbells, and the other half keeps the engine busy meanwhile.
        let enough = free >= ring_slots / 2 || (lane.bursts.is_empty() && free != 0);
        if enough && !lane.bursts.is_full() {
            moved |= self.refill(index, &limits, free, now_ns);
        }
        Serviced::more(moved)
    }

    /// Gives a lane's channel up to `free` descriptors. Returns whether it took any.
    pub(super) fn refill(
        &mut self,
        index: usize,
        limits: &ChannelLimits,
        free: usize,
        now_ns: u64,
    ) -> bool {
        let interrupts = self.host.wait.wants_interrupts();
        // If this fills the ring and work is left, an interrupt is wanted when half is drained.
        let mark_at = if interrupts && free > limits.ring_slots / 2 {
            free.checked_sub(limits.ring_slots / 2)
        } else {
            None
        };
        let mut submitted: usize = 0;
        let mut bytes: u64 = 0;
        let mut rang_for: usize = 0;
        if let Some(lane) = self.state.lanes.get_mut(index)
            && lane.bursts.is_empty()
        {
            // Until now it had no reason to move.
            lane.motion = Motion::since(now_ns);
        }
        loop {
            let Batch {
                lanes,
                refused,
                chunk,
                ..
            } = &mut *self.state;
            let Some(lane) = lanes.get_mut(index) else {
                break;
            };
            let budget = free.saturating_sub(submitted);
            if budget == 0 || lane.rest() == 0 || lane.bursts.is_full() {
                break;
            }
            let start = lane.next;
            let most = budget.min(CHUNK);
            let mark = mark_at
                .and_then(|at| at.checked_sub(submitted))
                .filter(|&at| at < most)
                .filter(|&at| {
                    let beyond = at.saturating_add(limits.ring_slots / 2);
                    more_than(self.source, lane, beyond)
                });
            let order = Order {
                most,
                max_len_bytes: limits.max_len_bytes,
                mark,
                // One doorbell for all that fits into the ring.
                ring_at: budget,
                interrupts,
                quiet_from: lane.spoken_for.then_some(lane.end),
                now_ns,
            };
            let (accepted, walked, all) = if T::Mapper::TRIVIAL
                && T::Source::IN_MEMORY
                && refused.is_empty()
                && order.suits(self.source, lane)
            {
                order.give_scattered(self.channels, self.source, lane)
            } else {
                let mapper = &mut self.host.mapper;
                order.give_gathered(self.channels, self.source, lane, mapper, refused, chunk)
            };
            let Accepted {
                share,
                count: taken,
                bytes: accepted_bytes,
                error,
                rang,
                ..
            } = accepted;
            let offered = walked.place.position.wrapping_sub(start.position);
            bytes = bytes.wrapping_add(accepted_bytes);
            submitted = submitted.saturating_add(taken);
            if rang {
                rang_for = submitted;
                self.report.doorbells = self.report.doorbells.wrapping_add(1);
            }
            if !all || offered.wrapping_sub(walked.left_out.bytes) != accepted_bytes {
                // Made here, so that the usual way keeps nothing in memory for it.
                let part = Taken {
                    max_len_bytes: order.max_len_bytes,
                    share,
                    span: Span::of(start, &walked),
                    count: taken,
                    bytes: accepted_bytes,
                    error,
                };
                if self.take_part(index, part) {
                    continue;
                }
                break;
            }
            lane.next = walked.place;
            let lane_done = lane.rest() == 0;
            if taken != 0 {
                let span = Span::of(start, &walked);
                lane.bursts.add(Burst::new(share, span), lane.seam);
            }
            let coalesced = walked.pieces.saturating_sub(taken as u64);
            self.report.coalesced = self.report.coalesced.wrapping_add(coalesced);
            if let Ended::Refused(stretch) = walked.ended {
                self.refuse(index, stretch, SkipReason::Unmapped);
            } else if lane_done || error.is_some() {
                break;
            } else if taken == 0 {
                // Nothing to offer and nothing refused, though a rest is left: the list of folios
                // has become shorter. Its end is in no book, so nothing will be claimed.
                lane.end_at(walked.place);
                break;
            }
        }
        let mut announced = true;
        if rang_for != submitted {
            // The last chunks were followed by nothing that could be submitted.
            if let Some(lane) = self.state.lanes.get(index) {
                announced = self.channels.ring(lane.channel, interrupts);
                let rung = u64::from(announced);
                self.report.doorbells = self.report.doorbells.wrapping_add(rung);
            }
        }
        self.report.descriptors = self.report.descriptors.wrapping_add(submitted as u64);
        if submitted != 0
            && let Some(lane) = self.state.lanes.get_mut(index)
        {
            lane.handed_out(bytes, now_ns, self.options.engine_ns_per_mib);
            // Somebody else has rung for it, and no interrupt says when it is over.
            lane.quiet |= !announced;
        }
        submitted != 0
    }

    /// The channel did not take what it was offered: finds out by a second walk what it took, and
    /// what of the stream it rejected. Says whether there may be more to hand out.
    #[cold]
    #[inline(never)]
    fn take_part(&mut self, index: usize, part: Taken) -> bool {
        let Some(lane) = self.state.lanes.get(index) else {
            return false;
        };
        let (channel, end, start) = (lane.channel, lane.end, lane.next);
        let target = Target {
            channel,
            max_len_bytes: part.max_len_bytes,
        };
        // Whoever is asked now may panic: what is in the ring has to be known by then.
        self.state.unfiled = Some(Unfiled {
            channel,
            share: part.share,
            span: part.span,
        });
        let mut gather = Gather::new(
            self.source,
            start,
            (end, start.folio),
            target,
            &mut self.host.mapper,
            &self.state.refused,
        );
        gather.by_ref().take(part.count).for_each(drop);
        let mut walked = gather.walked();
        let mut doubt = None;
        let mut rejected = None;
        if Span::of(start, &walked).bytes() != part.bytes {
            // The channel has other copies than the mapper or the source names now. They may
            // reach to the end of the lane.
            doubt = Some(Doubt::Unmapped);
            walked.place.position = end;
        } else if part.error == Some(PrepError::Rejected) {
            rejected = gather.next().map(|segment| {
                let end = gather.walked().place.position;
                Stretch {
                    start: end.saturating_sub(segment.len_bytes),
                    end,
                }
            });
        }
        let unfiled = self.state.unfiled.take();
        if let Some(lane) = self.state.lanes.get_mut(index) {
            lane.next = walked.place;
            if let Some(Unfiled { share, .. }) = unfiled
                && part.count != 0
            {
                let mut burst = Burst::new(share, Span::of(start, &walked));
                burst.doubt = doubt;
                lane.bursts.add(burst, lane.seam);
            }
        }
        let coalesced = walked.pieces.saturating_sub(part.count as u64);
        self.report.coalesced = self.report.coalesced.wrapping_add(coalesced);
        match rejected {
            Some(stretch) => {
                self.refuse(index, stretch, SkipReason::Rejected);
                true
            }
            None => false,
        }
    }

    /// A part of a lane's rest cannot be given to an engine: remembers and accounts for it.
    pub(super) fn refuse(&mut self, index: usize, stretch: Stretch, reason: SkipReason) {
        let Some(lane) = self.state.lanes.get_mut(index) else {
            return;
        };
        let near = lane.next;
        let mut given_up = stretch;
        let fate = Fate::Skip(reason);
        if self.state.refused.is_full() {
            // No room to remember one more: the lane ends here. Everything before the part was
            // submitted, or was refused before.
            given_up.start = near.position.min(stretch.start);
            given_up.end = lane.end;
            lane.end_at(near);
            self.settle(given_up, near, fate);
        } else {
            // It is accounted for first: parts that were refused before are left out then.
            self.settle(given_up, near, fate);
            let _ = self.state.refused.push(stretch);
        }
    }
}

/// What some of the stream needs of descriptors, as far as the caller's addresses tell.
#[derive(Default)]
struct Runs {
    count: usize,
    /// Where the next folio would have to lie to be in the last one.
    src: u64,
    dst: u64,
    /// Bytes.
    len_bytes: u64,
}

impl Runs {
    #[inline(always)]
    const fn add(&mut self, src: DmaAddr, dst: DmaAddr, len_bytes: u64) {
        let (src, dst) = (src.get(), dst.get());
        let begins = (src ^ self.src) | (dst ^ self.dst) != 0;
        self.count = self.count.wrapping_add(begins as usize);
        self.src = src.wrapping_add(len_bytes);
        self.dst = dst.wrapping_add(len_bytes);
        self.len_bytes = self.len_bytes.wrapping_add(len_bytes);
    }
}

/// Whether a lane's rest needs more than `count` descriptors.
// A function of its own, so that its loop has all registers.
#[inline(never)]
fn more_than<S: FolioSource + ?Sized>(source: &S, lane: &Lane, count: usize) -> bool {
    let place = lane.next;
    let Some(piece) = Cursor::at(source, place).piece(lane.end) else {
        return false;
    };
    let mut runs = Runs::default();
    runs.add(piece.src, piece.dst, piece.len_bytes);
    runs.count = 1;
    // These end before the lane does: that need not be looked at for each.
    let first = place.folio.wrapping_add(1);
    let whole = lane.whole_until.saturating_sub(first);
    for folio in source.range(first, whole) {
        runs.add(folio.src, folio.dst, folio.len_bytes);
        if runs.count > count {
            return true;
        }
    }
    for folio in source.range(first.saturating_add(whole), usize::MAX) {
        if runs.len_bytes >= lane.rest() || runs.count > count {
            break;
        }
        runs.add(folio.src, folio.dst, folio.len_bytes);
    }
    runs.count > count
}
