//! A batch: checked, cut, submitted, watched to its end, accounted for.

mod account;
mod kinds;
mod look;
mod part;
mod refill;
mod rehome;
mod share;

use heapless::Vec;
use ptdma::Lock;

use crate::closing::closing;
use crate::cursor::Place;
use crate::folio::{FailReason, Outcome, SkipReason};
use crate::gather::{Chunk, Refused};
use crate::host::{CpuCopier, Host, Rescue};
use crate::lane::{Burst, Lane, Span};
use crate::map::Mapper;
use crate::options::Options;
use crate::orphans::Orphans;
use crate::overlap::OverlapCheck;
use crate::plan::{CutRules, Plan, Stretch};
use crate::source::FolioSource;
use crate::stats::Report;
use crate::sum::{Covered, Sum};
use crate::survey::{BadInput, Bounds, Survey};
use crate::wait::{Wait, WaitFor, Wake};
use ptdma::CopyChannel;
use ptdma::shared::{Channels, Choice, Share as RingShare, SharedChannel};

use account::Fate;
use kinds::Kinds;
use refill::Serviced;
use share::Share;

pub use share::CPU_CHUNK_BYTES;

/// Turns without any progress after which a batch takes its time for up if its clock stands still
/// meanwhile. Some 0.1 s of polling; at most some hours of sleeping, 10 ms at a time. A clock that
/// goes on by ticks, even of 10 ms, goes on before that.
const MAX_STILL_TURNS: u32 = 1 << 20;

/// The state of one batch at a time, for up to `N` channels. Some 5.5 KiB for 16; it does not grow
/// with the batch. Kept in a pool by callers whose stack is small.
#[derive(Debug)]
pub struct Batch<const N: usize> {
    lanes: Vec<Lane, N>,
    refused: Refused,
    /// Parts of the stream that lost their channel.
    orphans: Orphans<N>,
    /// What a ring has that no lane has yet.
    unfiled: Option<Unfiled>,
    chunk: Chunk,
    survey: Survey,
    plan: Plan<N>,
    choice: Choice<N>,
}

/// Descriptors that were accepted, while their places are looked up.
#[derive(Debug)]
struct Unfiled {
    channel: usize,
    share: RingShare,
    span: Span,
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
            orphans: Orphans::new(),
            unfiled: None,
            chunk: Chunk::new(),
            survey: Survey::new(),
            plan: Plan::empty(),
            choice: Vec::new(),
        }
    }

    /// Copies a batch. When it returns, every byte is accounted for, and no engine can write to any
    /// of it (except what is reported as quarantined).
    ///
    /// `outcomes` receives what happened to each folio, by its index; entries behind the last folio
    /// are left alone. The batch ends `budget_ns + grace_ns` after it began at the latest, plus a
    /// bounded time. That is the time for stopping engines, for one look at all channels, and for
    /// the CPU's copy in work, a chunk of [`CPU_CHUNK_BYTES`].
    ///
    /// # Panics
    ///
    /// Not by itself. If something that it calls panics, engines that have work of the batch are
    /// stopped on the way out. Other batches have their dropped work copied by other channels. For
    /// what an engine may still write then, [`Rescue::prove_stopped`] is asked and
    /// [`Rescue::quarantined`] told. A panic in these two on the way out aborts, as any second
    /// panic does. Nothing is left behind in the channels.
    ///
    /// # Errors
    ///
    /// [`BadInput`]: nothing was submitted, `outcomes` is as it was.
    pub fn run<S, C, L, W, M, K, R>(
        &mut self,
        channels: &Channels<C, L, N>,
        source: &S,
        overlap: OverlapCheck<'_>,
        options: &Options,
        host: &mut Host<W, M, K, R>,
        outcomes: &mut [Outcome],
    ) -> Result<Report, BadInput>
    where
        S: FolioSource + ?Sized,
        C: CopyChannel,
        L: Lock<SharedChannel<C>>,
        W: Wait,
        M: Mapper,
        K: CpuCopier,
        R: Rescue,
    {
        if channels.is_empty() || options.channels == 0 {
            return Err(BadInput::NoChannels);
        }
        let align_bytes = channels.align_bytes();
        for align_bytes in [align_bytes, options.rules.align_bytes.max(1)] {
            if !align_bytes.is_power_of_two() {
                return Err(BadInput::OddAlignment { align_bytes });
            }
        }
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
        self.unfiled = None;
        let start_ns = host.wait.now_ns();
        let report = Report {
            folios: self.survey.folios,
            bytes: self.survey.bytes,
            ..Report::default()
        };
        let mut run: Run<'_, (&S, C, L, W, M, K, R), N> = Run {
            state: self,
            channels,
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
            dma: Covered::NOTHING,
            others: Sum::NOTHING,
            clock_ns: start_ns,
            still: 0,
            report,
        };
        let rest = run.start(start_ns);
        run.drive(rest, start_ns);
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

/// A batch in work.
struct Run<'a, T: Kinds, const N: usize> {
    state: &'a mut Batch<N>,
    channels: &'a Channels<T::Channel, T::Lock, N>,
    source: &'a T::Source,
    host: &'a mut Host<T::Wait, T::Mapper, T::Cpu, T::Rescue>,
    outcomes: &'a mut [Outcome],
    rules: CutRules,
    options: &'a Options,
    phase: Phase,
    phase_end_ns: u64,
    cpu: Share,
    /// What engines copied.
    dma: Covered,
    /// What is in any other column of the books.
    others: Sum,
    /// The latest time that the clock said.
    clock_ns: u64,
    /// Turns without progress since it said so.
    still: u32,
    report: Report,
}

/// A batch that does not end by itself is one whose caller panicked in something that the batch
/// called. Its memory will be used for something else, so no engine may have any of it.
impl<T: Kinds, const N: usize> Drop for Run<'_, T, N> {
    fn drop(&mut self) {
        if !self.state.lanes.is_empty() || self.state.unfiled.is_some() {
            self.abandon();
        }
    }
}

impl<T: Kinds, const N: usize> Run<'_, T, N> {
    /// Lets go of everything in every ring. What an engine may still write is put into quarantine,
    /// to the end of the lane's burst.
    #[cold]
    fn abandon(&mut self) {
        let now_ns = self.clock_ns;
        if let Some(Unfiled {
            channel,
            share,
            span,
        }) = self.state.unfiled.take()
        {
            self.abandon_burst(channel, share, &span, now_ns);
        }
        for index in 0..self.state.lanes.len() {
            while let Some(lane) = self.state.lanes.get_mut(index)
                && let Some(Burst { share, span, .. }) = lane.bursts.pop_front()
            {
                let channel = lane.channel;
                self.abandon_burst(channel, share, &span, now_ns);
            }
        }
        self.state.lanes.clear();
    }

    fn abandon_burst(&mut self, channel: usize, mut share: RingShare, span: &Span, now_ns: u64) {
        let unproven = self.channels.abandon(channel, &mut share, now_ns);
        self.channels.sub_load(channel, span.bytes());
        if unproven && !self.is_proved_stopped(channel) {
            let stretch = Stretch {
                start: span.start.position,
                end: span.end_position,
            };
            self.settle(stretch, span.start, Fate::Quarantine { channel });
        }
    }

    /// Cuts the batch and gives every channel its first burst: the first ones copy while the last
    /// ones are still being prepared. Returns whether a lane has more than its ring took.
    fn start(&mut self, now_ns: u64) -> bool {
        let useful = usize::try_from(self.state.survey.parts).unwrap_or(usize::MAX);
        self.channels.choose(
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
            return false;
        }
        let state = &mut *self.state;
        state.plan.cut(
            self.source,
            &state.survey,
            end,
            state.choice.len(),
            &self.rules,
        );
        let closing = self.closing_lane();
        let (mut channels, mut parts) = (0_usize, 0_u64);
        let mut rest = false;
        let mut number = 0;
        while number < self.state.plan.len() {
            let (mut start, mut end) = (self.state.plan.start(number), self.state.plan.end(number));
            if end.folio.wrapping_sub(start.folio) <= 1 {
                let begun = self.begin_parts(number, closing, now_ns);
                parts = parts.wrapping_add(begun as u64);
                channels = channels.wrapping_add(begun);
                number = number.wrapping_add(begun);
                if number >= self.state.plan.len() {
                    break;
                }
                (start, end) = (self.state.plan.start(number), self.state.plan.end(number));
            }
            let this = number;
            number = number.wrapping_add(1);
            let Some(&channel) = self.state.choice.get(this) else {
                break;
            };
            let stretch = Stretch {
                start: start.position,
                end: end.position,
            };
            if stretch.len_bytes() == 0 {
                continue;
            }
            let mut lane = Lane::new(channel, start, end, now_ns);
            lane.spoken_for = closing.is_some_and(|closing| closing != this);
            let index = self.state.lanes.len();
            if self.state.lanes.push(lane).is_err() {
                self.orphan(stretch);
                continue;
            }
            channels = channels.wrapping_add(1);
            // Usually all of the ring is free; if it is not, it takes what it can.
            if let Some(limits) = self.channels.limits(channel) {
                self.refill(index, &limits, limits.ring_slots, now_ns);
            }
            let lane = self.state.lanes.get(index);
            rest |= lane.is_some_and(|lane| lane.rest() != 0);
        }
        self.report.channels = channels;
        self.report.descriptors = self.report.descriptors.wrapping_add(parts);
        self.report.doorbells = self.report.doorbells.wrapping_add(parts);
        rest
    }

    /// The one lane of the plan that interrupts; `None` if all do.
    fn closing_lane(&self) -> Option<usize> {
        if !self.options.one_interrupt || !self.host.wait.wants_interrupts() {
            return None;
        }
        let plan = &self.state.plan;
        // The usual case, and all that it costs: nobody else's work, and equal parts.
        let last = plan.last_of_equals();
        let channels = self.state.choice.get(..plan.len()).unwrap_or_default();
        if last.is_some() && self.channels.are_idle(channels) {
            return last;
        }
        let lanes = self.state.choice.iter().take(plan.len()).enumerate();
        closing(lanes.map(|(number, &channel)| {
            // Other batches' work comes first. A lane without work of its own is none.
            match plan.stretch(number).len_bytes() {
                0 => 0,
                own => own.saturating_add(self.channels.load_bytes(channel)),
            }
        }))
    }

    /// Hands out, watches and collects until nothing is left.
    ///
    /// `rest`: whether anything is left to be handed out now; `start_ns`: when handing out began.
    fn drive(&mut self, rest: bool, start_ns: u64) {
        // Nothing can be over yet: what is known is enough for the first look.
        let mut wake = Wake::Interrupted;
        let mut idle: u32 = 0;
        let mut fresh = !rest && self.state.orphans.is_empty() && self.cpu.rest() == 0;
        loop {
            if fresh {
                // Everything was submitted a moment ago.
                fresh = false;
                if let Some(focus) = self.awaited(false) {
                    wake = self.wait(Some(focus), false, start_ns);
                }
            }
            let now_ns = self.host.wait.now_ns();
            self.keep_time(now_ns);
            let Serviced { mut moved, done } = self.look_at_lanes(wake, idle, now_ns);
            if done && self.state.orphans.is_empty() && self.cpu.rest() == 0 {
                return;
            }
            moved |= self.adopt(now_ns);
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
                self.still = 0;
                continue;
            }
            let rest = self.has_rest();
            let Some(focus) = self.first_in_flight() else {
                if rest {
                    // A ring is full of other batches' work.
                    idle = idle.saturating_add(1);
                    self.still = self.still.saturating_add(1);
                    wake = self.wait(None, rest, now_ns);
                    continue;
                }
                if self.state.orphans.is_empty() {
                    return;
                }
                // Nobody took them: no channel is left.
                while let Some(stretch) = self.state.orphans.pop() {
                    self.settle(stretch, Place::default(), Fate::Skip(SkipReason::NoChannel));
                }
                continue;
            };
            idle = idle.saturating_add(1);
            self.still = self.still.saturating_add(1);
            wake = self.wait(Some(self.awaited(rest).unwrap_or(focus)), rest, now_ns);
        }
    }

    /// Waits for lane `focus`; `rest` says whether anything is still to be handed out.
    fn wait(&mut self, focus: Option<usize>, rest: bool, now_ns: u64) -> Wake {
        self.report.waits = self.report.waits.wrapping_add(1);
        let lane = focus.and_then(|index| self.state.lanes.get(index));
        let wait = WaitFor {
            channel: lane.map_or(0, |lane| lane.channel),
            announced: lane.is_some_and(Lane::announced),
            // A ring that has to be refilled is looked at before its burst is over. By a clock that
            // stands still, nothing is ever due.
            expected_ns: match lane {
                Some(lane) if !rest && self.still < 2 => lane.expected_ns,
                _ => 0,
            },
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

    /// The lane to wait for: one that will interrupt, if there is one. With everything submitted,
    /// the lane that was filled last is the last to be over. Waiting for that lane is one wait
    /// instead of one for each lane.
    fn awaited(&self, rest: bool) -> Option<usize> {
        let lanes = self.state.lanes.iter();
        if rest {
            let announced = lanes.clone().position(Lane::announced);
            return announced.or_else(|| self.first_in_flight());
        }
        let announced = lanes.clone().rposition(Lane::announced);
        announced.or_else(|| lanes.clone().rposition(|lane| !lane.bursts.is_empty()))
    }

    fn has_rest(&self) -> bool {
        self.state.lanes.iter().any(|lane| lane.rest() != 0)
    }

    /// Ends the phase whose time is up.
    fn keep_time(&mut self, now_ns: u64) {
        if now_ns > self.clock_ns {
            self.clock_ns = now_ns;
            self.still = 0;
        }
        let up = now_ns >= self.phase_end_ns || self.still >= MAX_STILL_TURNS;
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
                        self.settle(stretch, Place::default(), Fate::Skip(SkipReason::Deadline));
                    }
                }
                while let Some(stretch) = self.state.orphans.pop() {
                    self.settle(stretch, Place::default(), Fate::Skip(SkipReason::Deadline));
                }
                let own = Stretch {
                    start: self.cpu.next.position,
                    end: self.cpu.end,
                };
                self.cpu = Share::default();
                self.settle(own, Place::default(), Fate::Skip(SkipReason::Deadline));
            }
            Phase::Draining => {
                self.phase = Phase::Stopped;
                // Whatever is left after this is a matter of looking once more.
                self.phase_end_ns = u64::MAX;
                for lane in &self.state.lanes {
                    if !lane.bursts.is_empty() {
                        // An engine that was at work is not to blame for a deadline.
                        let blame = lane.motion.age_ns(now_ns) >= self.options.hang_ns;
                        self.channels.stop(lane.channel, now_ns, blame);
                    }
                }
            }
            Phase::Stopped => {}
        }
    }
}
