//! A turn: which lanes are looked at, and how.

use super::Run;
use super::kinds::Kinds;
use super::refill::Serviced;

use crate::lane::Lane;
use crate::wait::Wake;
use ptdma::shared::{Losses, PollKind, Reaped, Watch};

/// While it polls, a batch polls one channel until that is done, then the next. Every so many turns
/// without progress it polls all, because another one may wait behind a failure.
const LOOK_AT_ALL: u32 = 8;

/// What came of a [`sweep`](Run::sweep).
struct Swept {
    /// Whether a lane was over.
    moved: bool,
    /// So many lanes, from the first one on, are left to look at.
    left: usize,
    /// What was seen of the last one of these, if it was glanced at.
    glance: Option<Reaped>,
}

impl<T: Kinds, const N: usize> Run<'_, T, N> {
    /// One turn, after `idle` turns without progress. Says whether anything happened, and whether
    /// nothing is left of any lane.
    ///
    /// From the lane that was filled last: when that is over, the others usually are, and one turn
    /// is enough for all.
    pub(super) fn look_at_lanes(&mut self, wake: Wake, idle: u32, now_ns: u64) -> Serviced {
        let Swept {
            mut moved,
            left,
            mut glance,
        } = self.sweep(wake, now_ns);
        let mut in_turn = true;
        let mut done = true;
        let mut losses = Losses::new();
        let mut announced = left != 0 && self.has_announced();
        for index in (0..left).rev() {
            let glance = glance.take();
            let Some(lane) = self.state.lanes.get(index) else {
                break;
            };
            if lane.is_done() {
                continue;
            }
            let rest = lane.rest() != 0;
            let quiet = lane.quiet;
            let look = match (glance, wake) {
                (Some(Reaped::NotYet), _) => {
                    in_turn = false;
                    done = false;
                    continue;
                }
                // Somebody's loss may have kept it from being asked.
                (Some(_), Wake::Poll) => PollKind::Poll,
                (Some(_), _) if quiet => PollKind::Poll,
                (Some(_), _) => PollKind::Known,
                // It is looked at when the lane that speaks for it is through.
                (None, Wake::Interrupted) if quiet && announced && !rest => {
                    done = false;
                    continue;
                }
                (None, Wake::Interrupted | Wake::Overdue) if quiet => PollKind::Poll,
                (None, Wake::Interrupted) => PollKind::Known,
                (None, Wake::Overdue) => PollKind::Overdue,
                (None, Wake::Poll) if rest || in_turn || idle % LOOK_AT_ALL == LOOK_AT_ALL - 1 => {
                    PollKind::Poll
                }
                // Its channel would have to be asked; that is for later.
                (None, Wake::Poll) => {
                    done = false;
                    continue;
                }
            };
            let serviced = self.service(index, look, now_ns, &mut losses);
            moved |= serviced.moved;
            in_turn &= serviced.moved;
            done &= serviced.done;
            if serviced.moved && !quiet {
                announced = self.has_announced();
            }
        }
        Serviced { moved, done }
    }

    /// The usual end of a batch, and all that it costs. From the last lane on, it lets go of lanes
    /// that are over, as long as nothing is to be submitted and nothing is amiss.
    // A function of its own, so that its variables have registers of their own.
    #[inline(never)]
    fn sweep(&mut self, wake: Wake, now_ns: u64) -> Swept {
        let mut lanes = self.state.lanes.as_mut_slice();
        // Whoever looks after lost interrupts has more to do than to glance at them.
        if wake == Wake::Overdue {
            return Swept {
                moved: false,
                left: lanes.len(),
                glance: None,
            };
        }
        let (mut left, mut moved, mut last) = (lanes.len(), false, None);
        let poll = wake == Wake::Poll;
        let hang_ns = self.options.hang_ns;
        let mut dma = self.dma;
        // While an interrupt is on its way, quiet lanes are not looked at.
        let mut may_ask = poll;
        while let Some((lane, before)) = lanes.split_last_mut() {
            if !lane.is_done() {
                let Some(burst) = lane.bursts.only() else {
                    break;
                };
                if lane.rest() != 0 || burst.doubt.is_some() {
                    break;
                }
                if lane.quiet && !may_ask {
                    if before.iter().any(Lane::announced) {
                        break;
                    }
                    may_ask = true;
                }
                let ask = poll || lane.quiet;
                let motion = &mut lane.motion;
                let glance = self.channels.try_reap(
                    lane.channel,
                    ask,
                    move || Watch {
                        share: &burst.share,
                        motion,
                        now_ns,
                        hang_ns,
                    },
                    || burst.span.bytes(),
                );
                if glance != Reaped::All {
                    last = Some(glance);
                    break;
                }
                let span = &burst.span;
                dma.add(span.start.position, span.end_position, span.left_out);
                lane.bursts.pop_only();
                moved = true;
            }
            left = before.len();
            lanes = before;
        }
        self.dma = dma;
        Swept {
            moved,
            left,
            glance: last,
        }
    }

    /// Whether an interrupt is on its way.
    fn has_announced(&self) -> bool {
        self.state.lanes.iter().any(Lane::announced)
    }
}
