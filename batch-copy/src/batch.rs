//! A batch: checked, cut, submitted, watched to its end, accounted for.

use heapless::Vec;
use ptdma::{DmaAddr, Lock};

use crate::channel::{CopyChannel, Limits, PrepError};
use crate::cursor::{Cursor, Place};
use crate::engines::{Cause, Choice, Engines, Look, Loss, Losses, Port, Watch};
use crate::folio::{FailReason, Outcome, SkipReason};
use crate::gather::{CHUNK, Chunk, Ended, Gather, Refused, Target};
use crate::hand_out::Order;
use crate::host::{CpuCopier, Host, Rescue};
use crate::lane::{Burst, Lane};
use crate::map::{Mapper, Piece};
use crate::overlap::OverlapCheck;
use crate::plan::{CutRules, Plan, Stretch};
use crate::source::FolioSource;
use crate::stats::Report;
use crate::survey::{BadInput, Bounds, Survey};
use crate::wait::{Wait, WaitFor, Wake};

/// Most bytes that the CPU copies between two looks at the engines: some 6 us, about what an
/// interrupt costs.
pub const CPU_CHUNK_BYTES: u64 = 64 << 10;

/// Turns without any progress after which a batch gives up even if its clock stands still: hours
/// of sleeping, minutes of spinning.
const MAX_IDLE_TURNS: u32 = 1 << 28;

/// While it polls, a batch looks at one channel until that is done, then at the next; every so
/// many turns without progress it looks at all, because another one may wait behind a failure.
const LOOK_AT_ALL: u32 = 8;

/// How a batch is to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Most channels to use; see [`Policy`](crate::Policy).
    pub channels: usize,
    /// The one channel to use, to test it for example.
    pub only: Option<usize>,
    /// How to cut.
    pub rules: CutRules,
    /// NUMA node of the destinations, if they are on one.
    pub dst_node: Option<u16>,
    /// NUMA node of the sources, if they are on one.
    pub src_node: Option<u16>,
    /// Time for the whole batch. Then nothing new is begun, and what was not is left to the
    /// caller.
    pub budget_ns: u64,
    /// Time after that for what engines are at. Then they are stopped.
    pub grace_ns: u64,
    /// How long an engine may have work and not move before it is stopped and its work given to
    /// others. Must exceed the time for the longest descriptor.
    pub hang_ns: u64,
    /// One past the highest address that a folio may have: 2^48 for what PTDMA can reach without
    /// translation.
    pub addr_limit: u64,
    /// Bytes that the CPU copies itself while engines copy the rest; needs a
    /// [`CpuCopier`]. See [`Policy`](crate::Policy).
    pub cpu_share_bytes: u64,
    /// Whether the CPU copies what engines failed, were not given, or did not get to for want of
    /// a channel; needs a [`CpuCopier`]. Otherwise that is left to the caller.
    pub repair: bool,
    /// Time that one channel takes for 1 MiB, to know when looking is worth it. 0: not known.
    pub engine_ns_per_mib: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            channels: usize::MAX,
            only: None,
            rules: CutRules::default(),
            dst_node: None,
            src_node: None,
            // 10 s is what the published migrator waits for a batch.
            budget_ns: 10_000_000_000,
            // The longest descriptor, 2 MiB, takes 144 us on a channel of 14.6 GB/s; a ring of
            // 512 of them 74 ms.
            grace_ns: 100_000_000,
            hang_ns: 1_000_000_000,
            addr_limit: DmaAddr::LIMIT,
            cpu_share_bytes: 0,
            repair: false,
            engine_ns_per_mib: 0,
        }
    }
}

/// The state of one batch at a time, for up to `N` channels. Some 4 KiB for 16; it does not grow
/// with the batch. Kept in a pool by callers whose stack is small.
#[derive(Debug)]
pub struct Batch<const N: usize> {
    lanes: Vec<Lane, N>,
    refused: Refused,
    /// Parts of the stream that lost their channel.
    orphans: Vec<Stretch, N>,
    chunk: Chunk,
    survey: Survey,
    plan: Plan<N>,
    choice: Choice<N>,
}

impl<const N: usize> Default for Batch<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Batch<N> {
    /// No batch yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            lanes: Vec::new(),
            refused: Vec::new(),
            orphans: Vec::new(),
            chunk: Chunk::new(),
            survey: Survey::new(),
            plan: Plan::empty(),
            choice: Vec::new(),
        }
    }

    /// Copies a batch; returns when every byte is accounted for and no engine can write to any of
    /// it any more (except what is reported as quarantined).
    ///
    /// `outcomes` receives what happened to each folio, by its index; entries behind the last
    /// folio are left alone. Ends at the latest `budget_ns + grace_ns` after it began, plus the
    /// time for stopping engines and for one look at all channels.
    ///
    /// # Errors
    ///
    /// [`BadInput`]: nothing was submitted, `outcomes` is as it was.
    pub fn run<S, C, L, W, M, K, R>(
        &mut self,
        engines: &Engines<C, L, N>,
        source: &S,
        overlap: OverlapCheck<'_>,
        options: &Options,
        host: &mut Host<W, M, K, R>,
        outcomes: &mut [Outcome],
    ) -> Result<Report, BadInput>
    where
        S: FolioSource + ?Sized,
        C: CopyChannel,
        L: Lock<Port<C>>,
        W: Wait,
        M: Mapper,
        K: CpuCopier,
        R: Rescue,
    {
        if engines.is_empty() || options.channels == 0 {
            return Err(BadInput::NoChannels);
        }
        let align_bytes = engines.align_bytes();
        let bounds = Bounds {
            addr_limit: options.addr_limit,
            align_bytes,
            max_folios: outcomes.len(),
            min_part_bytes: options.rules.min_part_bytes,
            parts_enough: options.channels.min(N) as u64,
        };
        self.survey.take(source, &bounds)?;
        overlap.check(source.folios())?;
        let Some(outcomes) = outcomes.get_mut(..self.survey.folios) else {
            return Err(BadInput::TooManyFolios {
                room: bounds.max_folios,
            });
        };
        outcomes.fill(Outcome::Failed(FailReason::Unaccounted));

        self.lanes.clear();
        self.refused.clear();
        self.orphans.clear();
        let start_ns = host.wait.now_ns();
        let report = Report {
            folios: self.survey.folios,
            bytes: self.survey.bytes,
            ..Report::default()
        };
        let mut run = Run {
            state: self,
            engines,
            source,
            host,
            outcomes,
            rules: CutRules {
                align_bytes: options.rules.align_bytes.max(align_bytes),
                ..options.rules
            },
            options,
            phase: Phase::Running,
            phase_end_ns: start_ns.saturating_add(options.budget_ns),
            cpu: Share::default(),
            report,
        };
        run.start(start_ns);
        run.drive();
        Ok(run.finish())
    }
}

/// How far the batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Work is handed out.
    Running,
    /// The budget is spent: nothing new, engines may end what they have.
    Draining,
    /// Engines that had work were stopped.
    Stopped,
}

/// The CPU's own stretch.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    next: Place,
    end: u64,
}

impl Share {
    const fn rest(&self) -> u64 {
        self.end.saturating_sub(self.next.position)
    }
}

/// What is to become of a part of the stream that no engine copied.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Fail(FailReason),
    Skip(SkipReason),
    Quarantine { channel: usize },
}

/// What came of a look at a lane.
#[derive(Clone, Copy, Debug)]
struct Serviced {
    /// Whether anything happened.
    moved: bool,
    /// Whether nothing is left of the lane, for certain.
    done: bool,
}

impl Serviced {
    const fn more(moved: bool) -> Self {
        Self { moved, done: false }
    }
}

/// A batch in work.
struct Run<'a, S: ?Sized, C, L, W, M, K, R, const N: usize> {
    state: &'a mut Batch<N>,
    engines: &'a Engines<C, L, N>,
    source: &'a S,
    host: &'a mut Host<W, M, K, R>,
    outcomes: &'a mut [Outcome],
    rules: CutRules,
    options: &'a Options,
    phase: Phase,
    phase_end_ns: u64,
    cpu: Share,
    report: Report,
}

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
    /// Cuts the batch and gives every channel its first burst: the first ones copy while the last
    /// ones are still being prepared.
    fn start(&mut self, now_ns: u64) {
        let useful = usize::try_from(self.state.survey.parts).unwrap_or(usize::MAX);
        self.engines.choose(
            self.options.channels.min(useful),
            self.options.dst_node,
            self.options.src_node,
            self.options.only,
            &mut self.state.choice,
        );
        let end = self.cut_cpu_share();
        if self.state.choice.is_empty() {
            self.orphan(Stretch {
                start: 0,
                end: end.position,
            });
            return;
        }
        let state = &mut *self.state;
        state.plan.cut(
            self.source,
            &state.survey,
            end,
            state.choice.len(),
            &self.rules,
        );
        for number in 0..self.state.plan.len() {
            let Some(&channel) = self.state.choice.get(number) else {
                break;
            };
            let (start, stretch) = (
                self.state.plan.start(number),
                self.state.plan.stretch(number),
            );
            if stretch.len_bytes() == 0 {
                continue;
            }
            let index = self.state.lanes.len();
            let lane = Lane::new(channel, start, self.state.plan.end(number));
            if self.state.lanes.push(lane).is_err() {
                self.orphan(stretch);
                continue;
            }
            // Usually all of the ring is free; if it is not, it takes what it can.
            if let Some(limits) = self.engines.limits(channel) {
                self.refill(index, &limits, limits.ring_slots, now_ns);
            }
            self.report.channels = self.report.channels.wrapping_add(1);
        }
    }

    /// Sets the CPU's share aside at the end of the stream; returns where it begins.
    fn cut_cpu_share(&mut self) -> Place {
        let share = self.options.cpu_share_bytes.min(self.state.survey.bytes);
        let bytes = self.state.survey.bytes;
        self.cpu = Share::default();
        let mut place = Place {
            folio: self.state.survey.folios,
            offset_bytes: 0,
            position: bytes,
        };
        if !K::AVAILABLE || share == 0 {
            return place;
        }
        let target = bytes.saturating_sub(share);
        while place.position > target {
            let index = place.folio.saturating_sub(1);
            let len = self.source.folio(index).map_or(0, |folio| folio.len_bytes);
            let start = place.position.saturating_sub(len);
            let inside = target.saturating_sub(start) & !self.rules.align_bytes.wrapping_sub(1);
            let long_enough = self.rules.min_part_bytes;
            if start >= target || len == 0 {
                place.folio = index;
                place.position = start;
                if place.folio == 0 {
                    break;
                }
            } else if inside >= long_enough && len.saturating_sub(inside) >= long_enough {
                place.folio = index;
                place.offset_bytes = inside;
                place.position = start.saturating_add(inside);
                break;
            } else {
                // The cut would leave a short part: round to the nearer end of the folio.
                if target.saturating_sub(start) < place.position.saturating_sub(target) {
                    place.folio = index;
                    place.position = start;
                }
                break;
            }
        }
        self.cpu = Share {
            next: place,
            end: bytes,
        };
        place
    }

    /// Hands out, watches and collects until nothing is left.
    fn drive(&mut self) {
        // Nothing can be over yet: what is known is enough for the first look.
        let mut wake = Wake::Interrupted;
        let mut idle: u32 = 0;
        let mut fresh = !self.has_rest() && self.state.orphans.is_empty() && self.cpu.rest() == 0;
        loop {
            if fresh {
                // Everything was submitted a moment ago.
                fresh = false;
                if let Some(focus) = self.last_in_flight() {
                    wake = self.wait(Some(focus), self.host.wait.now_ns());
                }
            }
            let now_ns = self.host.wait.now_ns();
            self.keep_time(now_ns, idle);
            let mut moved = false;
            // From the lane that was filled last: when that is over, the others usually are, and
            // one turn is enough for all.
            let mut in_turn = true;
            let mut done = true;
            let mut losses = Losses::new();
            for index in (0..self.state.lanes.len()).rev() {
                let Some(lane) = self.state.lanes.get(index) else {
                    break;
                };
                if lane.is_done() {
                    continue;
                }
                let rest = lane.rest() != 0;
                let look = match wake {
                    Wake::Interrupted => Look::Known,
                    Wake::Overdue => Look::Overdue,
                    Wake::Poll if rest || in_turn || idle % LOOK_AT_ALL == LOOK_AT_ALL - 1 => {
                        Look::Poll
                    }
                    // Its channel would have to be asked; that is for later.
                    Wake::Poll => {
                        done = false;
                        continue;
                    }
                };
                let serviced = self.service(index, look, now_ns, &mut losses);
                moved |= serviced.moved;
                in_turn &= serviced.moved;
                done &= serviced.done;
            }
            if done && self.state.orphans.is_empty() && self.cpu.rest() == 0 {
                return;
            }
            moved |= self.adopt();
            if wake == Wake::Overdue {
                wake = Wake::Interrupted;
            }
            if self.copy_own_share() {
                idle = 0;
                if !self.host.wait.wants_interrupts() {
                    wake = Wake::Poll;
                }
                continue;
            }
            if moved {
                idle = 0;
                continue;
            }
            let Some(focus) = self.first_in_flight() else {
                if self.has_rest() {
                    // A ring is full of other batches' work.
                    idle = idle.saturating_add(1);
                    wake = self.wait(None, now_ns);
                    continue;
                }
                if self.state.orphans.is_empty() {
                    return;
                }
                // Nobody took them: no channel is left.
                while let Some(stretch) = self.state.orphans.pop() {
                    self.settle(stretch, Fate::Skip(SkipReason::NoChannel));
                }
                continue;
            };
            // With everything handed out, the lane that was filled last is the last to be over:
            // waiting for it is one wait instead of one for each lane.
            let focus = if self.has_rest() {
                focus
            } else {
                self.last_in_flight().unwrap_or(focus)
            };
            idle = idle.saturating_add(1);
            wake = self.wait(Some(focus), now_ns);
        }
    }

    fn wait(&mut self, focus: Option<usize>, now_ns: u64) -> Wake {
        self.report.waits = self.report.waits.wrapping_add(1);
        let lane = focus.and_then(|index| self.state.lanes.get(index));
        let rest = self.has_rest();
        let wait = WaitFor {
            channel: lane.map_or(0, |lane| lane.channel),
            // A ring that has to be refilled is looked at before its burst is over.
            expected_ns: lane.map_or(0, |lane| if rest { 0 } else { lane.expected_ns }),
            latest_ns: self
                .phase_end_ns
                .min(now_ns.saturating_add(self.options.hang_ns)),
        };
        self.host.wait.wait(&wait)
    }

    fn first_in_flight(&self) -> Option<usize> {
        let mut lanes = self.state.lanes.iter();
        lanes.position(|lane| !lane.bursts.is_empty())
    }

    fn last_in_flight(&self) -> Option<usize> {
        let mut lanes = self.state.lanes.iter();
        lanes.rposition(|lane| !lane.bursts.is_empty())
    }

    fn has_rest(&self) -> bool {
        self.state.lanes.iter().any(|lane| lane.rest() != 0)
    }

    /// Ends the phase whose time is up.
    fn keep_time(&mut self, now_ns: u64, idle: u32) {
        let up = now_ns >= self.phase_end_ns || idle >= MAX_IDLE_TURNS;
        if !up {
            return;
        }
        match self.phase {
            Phase::Running => {
                self.report.late = true;
                self.phase = Phase::Draining;
                self.phase_end_ns = now_ns.saturating_add(self.options.grace_ns);
                for index in 0..self.state.lanes.len() {
                    if let Some(stretch) = self.take_rest(index) {
                        self.settle(stretch, Fate::Skip(SkipReason::Deadline));
                    }
                }
                while let Some(stretch) = self.state.orphans.pop() {
                    self.settle(stretch, Fate::Skip(SkipReason::Deadline));
                }
                let own = Stretch {
                    start: self.cpu.next.position,
                    end: self.cpu.end,
                };
                self.cpu = Share::default();
                self.settle(own, Fate::Skip(SkipReason::Deadline));
            }
            Phase::Draining => {
                self.phase = Phase::Stopped;
                // Whatever is left after this is a matter of looking once more.
                self.phase_end_ns = u64::MAX;
                for lane in &self.state.lanes {
                    if !lane.bursts.is_empty() {
                        self.engines
                            .stop(lane.channel, now_ns, self.options.hang_ns);
                    }
                }
            }
            Phase::Stopped => {}
        }
    }

    /// Takes what a lane has not submitted away from it.
    fn take_rest(&mut self, index: usize) -> Option<Stretch> {
        let lane = self.state.lanes.get_mut(index)?;
        let stretch = Stretch {
            start: lane.next.position,
            end: lane.end,
        };
        lane.end_at(lane.next);
        (stretch.len_bytes() != 0).then_some(stretch)
    }

    /// Looks at one lane: takes note of losses, lets go of what is over, hands out more. Says
    /// what came of it.
    fn service(
        &mut self,
        index: usize,
        mut look: Look,
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
            let Some(&Burst { first, end, .. }) = lane.bursts.front() else {
                break;
            };
            let watch = Watch {
                first,
                end,
                now_ns,
                hang_ns: self.options.hang_ns,
            };
            let Some(sight) = self.engines.look(channel, &watch, look, losses) else {
                return Serviced::more(moved);
            };
            look = Look::Known;
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
                self.engines.let_go(channel, end.since(first));
                let Some(lane) = self.state.lanes.get_mut(index) else {
                    return Serviced::more(moved);
                };
                lane
            };
            moved = true;
            if let Some(&Burst {
                bytes, lost_bytes, ..
            }) = lane.bursts.front()
            {
                lane.bursts.pop_front();
                let copied = bytes.saturating_sub(lost_bytes);
                self.report.dma_bytes = self.report.dma_bytes.wrapping_add(copied);
                self.engines.sub_load(channel, bytes);
            }
            if lane.is_done() {
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
        lane.dead |= !self.engines.is_active(channel);
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
            None => self.engines.free_slots(channel),
        };
        let Some(limits) = self.engines.limits(channel) else {
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
    fn refill(&mut self, index: usize, limits: &Limits, free: usize, now_ns: u64) -> bool {
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
        let mut going = true;
        while going {
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
                    more_than(self.source, start, lane.end, beyond)
                });
            let order = Order {
                most,
                max_len_bytes: limits.max_len_bytes,
                mark,
                // One doorbell for all that fits into the ring.
                ring_at: budget,
                interrupts,
                now_ns,
            };
            let (accepted, mut walked, all) =
                if M::TRIVIAL && refused.is_empty() && order.suits(self.source, lane) {
                    order.give_scattered(self.engines, self.source, lane)
                } else {
                    let mapper = &mut self.host.mapper;
                    order.give_gathered(self.engines, self.source, lane, mapper, refused, chunk)
                };
            let taken = accepted.count;
            let mut rejected = None;
            if !all {
                let mut gather = Gather::new(
                    self.source,
                    start,
                    (lane.end, start.folio),
                    order.target(lane),
                    &mut self.host.mapper,
                    refused,
                );
                gather.by_ref().take(taken).for_each(drop);
                walked = gather.walked();
                going = accepted.error == Some(PrepError::Rejected);
                if going {
                    rejected = gather.next().map(|segment| {
                        let end = gather.walked().place.position;
                        Stretch {
                            start: end.saturating_sub(segment.len_bytes),
                            end,
                        }
                    });
                    going = rejected.is_some();
                }
            }
            let burst = Burst {
                first: accepted.first,
                end: accepted.first.after(taken as u64),
                start,
                end_position: walked.place.position,
                bytes: walked.bytes,
                lost_bytes: 0,
                digest: walked.digest,
            };
            lane.next = walked.place;
            let lane_done = lane.rest() == 0;
            if taken != 0 {
                lane.bursts.add(burst);
            }
            bytes = bytes.wrapping_add(burst.bytes);
            let coalesced = walked.pieces.saturating_sub(taken as u64);
            self.report.coalesced = self.report.coalesced.wrapping_add(coalesced);
            submitted = submitted.saturating_add(taken);
            if accepted.rang {
                rang_for = submitted;
                self.report.doorbells = self.report.doorbells.wrapping_add(1);
            }
            if let Some(stretch) = rejected {
                self.refuse(index, stretch, SkipReason::Rejected);
            } else if let Ended::Refused(stretch) = walked.ended
                && all
            {
                self.refuse(index, stretch, SkipReason::Unmapped);
            } else if matches!(accepted.error, Some(PrepError::Full | PrepError::Faulted)) {
                going = false;
            } else if lane_done {
                break;
            }
        }
        if rang_for != submitted {
            // The last chunks were followed by nothing that could be submitted.
            if let Some(lane) = self.state.lanes.get(index) {
                self.engines.ring(lane.channel, interrupts);
                self.report.doorbells = self.report.doorbells.wrapping_add(1);
            }
        }
        self.report.descriptors = self.report.descriptors.wrapping_add(submitted as u64);
        if let Some(lane) = self.state.lanes.get_mut(index) {
            let took_ns = bytes.saturating_mul(self.options.engine_ns_per_mib) >> 20;
            lane.expected_ns = lane.expected_ns.max(now_ns).saturating_add(took_ns);
        }
        submitted != 0
    }

    /// A part of a lane's rest cannot be given to an engine: remembers and accounts for it.
    fn refuse(&mut self, index: usize, stretch: Stretch, reason: SkipReason) {
        let mut given_up = stretch;
        if self.state.refused.push(stretch).is_err()
            && let Some(lane) = self.state.lanes.get_mut(index)
        {
            // No room to remember one more: the lane ends here.
            given_up.end = lane.end;
            // How many folios lie before that does not matter: with a part refused, none are
            // taken as they are.
            let end = Place {
                position: stretch.start,
                ..lane.next
            };
            lane.end_at(end);
            if lane.next.position < stretch.start {
                // Everything before the part was submitted, or is part of what is given up.
                given_up.start = lane.next.position;
                lane.end_at(lane.next);
            }
        }
        self.account(given_up, Fate::Skip(reason), true);
    }

    /// A part of the stream lost its channel.
    fn orphan(&mut self, stretch: Stretch) {
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
    fn adopt(&mut self) -> bool {
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
            cursor.seek_forward(stretch.end);
            lane.end_at(cursor.place());
            adopted = true;
        }
        adopted
    }

    /// Takes note that descriptors of a lane's oldest burst were not copied.
    fn lose(&mut self, index: usize, loss: Loss) {
        let Some(lane) = self.state.lanes.get(index) else {
            return;
        };
        let channel = lane.channel;
        let Some(burst) = lane.bursts.front().copied() else {
            return;
        };
        if matches!(loss.cause, Cause::Failed(_)) {
            self.report.errors = self.report.errors.wrapping_add(1);
        }
        // All of it was given up before. Whether it can still be written is another question.
        if burst.lost_bytes >= burst.bytes && loss.cause != Cause::Unproven {
            return;
        }
        let from = loss.first.since(burst.first);
        let count = loss.end.since(loss.first);
        let (stretch, lost_bytes) = match self.replay(channel, &burst, from, count) {
            Some(found) => found,
            // The mapper or the source answers differently now: nothing in the burst that was not
            // accounted for can be trusted.
            None => (
                Stretch {
                    start: burst.start.position,
                    end: burst.end_position,
                },
                burst.bytes,
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
                if self.host.rescue.prove_stopped(channel) {
                    self.engines.confirm_stopped(channel);
                    self.move_away(stretch);
                } else {
                    self.settle(stretch, Fate::Quarantine { channel });
                }
            }
        }
    }

    fn move_away(&mut self, stretch: Stretch) {
        self.report.moved_bytes = self.report.moved_bytes.wrapping_add(stretch.len_bytes());
        self.orphan(stretch);
    }

    /// Walks a burst again to find out what its descriptors `from..from + count` covered. `None`
    /// if the walk does not come to the same descriptors.
    fn replay(
        &mut self,
        channel: usize,
        burst: &Burst,
        from: u64,
        count: u64,
    ) -> Option<(Stretch, u64)> {
        let max_len_bytes = self.engines.limits(channel)?.max_len_bytes;
        let target = Target {
            channel,
            max_len_bytes,
        };
        let mut gather = Gather::new(
            self.source,
            burst.start,
            (burst.end_position, burst.start.folio),
            target,
            &mut self.host.mapper,
            &self.state.refused,
        );
        let (mut ordinal, mut bytes) = (0_u64, 0_u64);
        let mut found: Option<Stretch> = None;
        while let Some(segment) = gather.next() {
            if ordinal >= from && ordinal.wrapping_sub(from) < count {
                bytes = bytes.wrapping_add(segment.len_bytes);
                let end = gather.walked().place.position;
                let start = end.saturating_sub(segment.len_bytes);
                found.get_or_insert(Stretch { start, end }).end = end;
            }
            ordinal = ordinal.wrapping_add(1);
        }
        let digest = gather.walked().digest;
        let same = digest == burst.digest && ordinal == burst.end.since(burst.first);
        found.filter(|_| same).map(|stretch| (stretch, bytes))
    }

    /// Accounts for a part of the stream that no engine copied and none has any more. Parts of it
    /// that were refused before are accounted for already.
    fn settle(&mut self, stretch: Stretch, fate: Fate) {
        self.account(stretch, fate, false);
    }

    fn account(&mut self, stretch: Stretch, fate: Fate, refused_too: bool) {
        if stretch.len_bytes() == 0 {
            return;
        }
        let mut cursor = Cursor::at(self.source, Place::default());
        cursor.seek_forward(stretch.start);
        while let Some(mut piece) = cursor.piece(stretch.end) {
            if !refused_too {
                let position = cursor.position();
                let skip = self
                    .state
                    .refused
                    .iter()
                    .find(|r| r.end > position && r.start <= position);
                if let Some(skip) = skip {
                    cursor.advance(piece.len_bytes.min(skip.end.saturating_sub(position)));
                    continue;
                }
                let next = self
                    .state
                    .refused
                    .iter()
                    .filter(|r| r.start > position)
                    .map(|r| r.start)
                    .min();
                if let Some(next) = next {
                    piece.len_bytes = piece.len_bytes.min(next.saturating_sub(position));
                }
            }
            cursor.advance(piece.len_bytes);
            self.account_piece(piece, fate);
        }
    }

    fn account_piece(&mut self, piece: Piece, fate: Fate) {
        let repairable = self.options.repair
            && K::AVAILABLE
            && !matches!(
                fate,
                Fate::Quarantine { .. } | Fate::Skip(SkipReason::Deadline)
            );
        if repairable {
            self.copy_with_cpu(&piece);
            return;
        }
        let (outcome, count) = match fate {
            Fate::Fail(reason) => (Outcome::Failed(reason), &mut self.report.failed_bytes),
            Fate::Skip(reason) => (
                Outcome::NotAttempted(reason),
                &mut self.report.skipped_bytes,
            ),
            Fate::Quarantine { channel } => {
                self.host.rescue.quarantined(channel, &piece);
                (
                    Outcome::Failed(FailReason::Quarantined),
                    &mut self.report.quarantined_bytes,
                )
            }
        };
        *count = count.wrapping_add(piece.len_bytes);
        self.mark(piece.folio, outcome);
    }

    fn mark(&mut self, folio: usize, outcome: Outcome) {
        if let Some(slot) = self.outcomes.get_mut(folio) {
            *slot = slot.worse(outcome);
        }
    }

    /// Copies a part of a folio with the CPU, in chunks.
    fn copy_with_cpu(&mut self, piece: &Piece) {
        let mut done: u64 = 0;
        while done < piece.len_bytes {
            let len_bytes = piece.len_bytes.saturating_sub(done).min(CPU_CHUNK_BYTES);
            let chunk = Piece {
                folio: piece.folio,
                offset_bytes: piece.offset_bytes.wrapping_add(done),
                // In range: the folio was checked.
                src: DmaAddr::new(piece.src.get().wrapping_add(done)),
                dst: DmaAddr::new(piece.dst.get().wrapping_add(done)),
                len_bytes,
            };
            let (outcome, count) = match self.host.cpu.copy(&chunk) {
                Ok(()) => (Outcome::Cpu, &mut self.report.cpu_bytes),
                Err(_) => (
                    Outcome::Failed(FailReason::CpuCopy),
                    &mut self.report.failed_bytes,
                ),
            };
            *count = count.wrapping_add(len_bytes);
            self.mark(chunk.folio, outcome);
            done = done.wrapping_add(len_bytes);
        }
    }

    /// Copies one chunk of the CPU's share. Returns whether there was one.
    fn copy_own_share(&mut self) -> bool {
        if !K::AVAILABLE || self.options.cpu_share_bytes == 0 {
            return false;
        }
        if self.cpu.rest() == 0 && !self.help_a_lane() {
            return false;
        }
        // Engines that are done before the CPU take half of what it still has.
        let rest = self.cpu.rest();
        if rest >= CPU_CHUNK_BYTES.saturating_mul(4)
            && self.phase == Phase::Running
            && self.first_in_flight().is_none()
            && !self.has_rest()
            && self.engines.active() != 0
        {
            let half = (rest / 2) & !self.rules.align_bytes.wrapping_sub(1);
            let cut = self.cpu.next.position.saturating_add(half);
            let given = Stretch {
                start: cut,
                end: self.cpu.end,
            };
            self.cpu.end = cut;
            self.orphan(given);
        }
        let mut cursor = Cursor::at(self.source, self.cpu.next);
        let Some(mut piece) = cursor.piece(self.cpu.end) else {
            self.cpu = Share::default();
            return false;
        };
        piece.len_bytes = piece.len_bytes.min(CPU_CHUNK_BYTES);
        cursor.advance(piece.len_bytes);
        self.cpu.next = cursor.place();
        self.copy_with_cpu(&piece);
        true
    }

    /// The CPU has copied its share while engines still have more than fits into their rings: it
    /// takes some of that. Returns whether there was any.
    fn help_a_lane(&mut self) -> bool {
        if self.phase != Phase::Running {
            return false;
        }
        let Some(lane) = self.state.lanes.iter_mut().max_by_key(|lane| lane.rest()) else {
            return false;
        };
        // Below this the engine is done sooner than the CPU.
        if lane.rest() < CPU_CHUNK_BYTES.saturating_mul(8) {
            return false;
        }
        let quarter = (lane.rest() / 4) & !self.rules.align_bytes.wrapping_sub(1);
        let cut = lane.end.saturating_sub(quarter);
        let mut cursor = Cursor::at(self.source, lane.next);
        cursor.seek_forward(cut);
        self.cpu = Share {
            next: cursor.place(),
            end: lane.end,
        };
        lane.end_at(cursor.place());
        true
    }

    /// Balances the books and turns them into outcomes.
    fn finish(mut self) -> Report {
        let report = &mut self.report;
        let known = [
            report.dma_bytes,
            report.cpu_bytes,
            report.failed_bytes,
            report.skipped_bytes,
            report.quarantined_bytes,
        ]
        .iter()
        .fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
        report.unaccounted_bytes = report.bytes.abs_diff(known);
        let balanced = report.unaccounted_bytes == 0;
        if balanced && report.dma_bytes == report.bytes {
            self.outcomes.fill(Outcome::Dma);
            report.folios_dma = self.outcomes.len();
        } else {
            for outcome in self.outcomes.iter_mut() {
                if balanced && *outcome == Outcome::Failed(FailReason::Unaccounted) {
                    *outcome = Outcome::Dma;
                }
                let count = match outcome {
                    Outcome::Dma => &mut report.folios_dma,
                    Outcome::Cpu => &mut report.folios_cpu,
                    Outcome::Failed(_) | Outcome::NotAttempted(_) => &mut report.folios_left,
                };
                *count = count.wrapping_add(1);
            }
        }
        self.engines
            .count_batch(report.folios_dma, report.folios_cpu, report.folios_left);
        *report
    }
}

/// Whether the stream from `place` to `end` needs more than `count` descriptors, as far as the
/// caller's addresses tell.
fn more_than<S: FolioSource + ?Sized>(source: &S, place: Place, end: u64, count: usize) -> bool {
    let mut cursor = Cursor::at(source, place);
    let (mut next_src, mut next_dst, mut runs) = (0_u64, 0_u64, 0_usize);
    while let Some(piece) = cursor.piece(end) {
        if piece.src.get() != next_src || piece.dst.get() != next_dst {
            runs = runs.wrapping_add(1);
            if runs > count {
                return true;
            }
        }
        next_src = piece.src.get().wrapping_add(piece.len_bytes);
        next_dst = piece.dst.get().wrapping_add(piece.len_bytes);
        cursor.advance(piece.len_bytes);
    }
    false
}
