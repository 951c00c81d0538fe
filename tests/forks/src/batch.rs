//! Batches on shared channels: one that begins while another one is at work, and what becomes of
//! both.

use std::cell::{Cell, RefCell};

use batch_copy::{
    Batch, Channels, CpuCopier, Host, Options, Outcome, OverlapCheck, Piece, PtdmaQueue, Rescue,
    ServiceState, SharedChannel, SkipReason, Wait, WaitFor, Wake,
};
use batch_copy_tests::memory::{GAP_LEN_BYTES, Layout, Memory, UNTOUCHED};
use ptdma::Signalling;
use ptdma_model::fault::StallFor;
use ptdma_model::{BusRing, BusSpace, Fault, FaultKind, Side, Trigger};

use crate::random::Random;
use crate::stepper::{Event, Stepper};
use crate::{LATE_STEPS, Verdict};

/// Channels that the batches share.
const CHANNELS: usize = 2;
/// Number of the batch that begins in the middle of number 1.
const INNER: u64 = 2;
/// Folios of a batch.
const FOLIOS: usize = 24;
/// Time that one wait takes.
const ROUND_NS: u64 = 1_000;
/// How long an engine may stand still: longer than any stall that ends by itself takes.
const HANG_NS: u64 = 2_500_000;
/// Time for the batch that begins in the middle of the other one, which sleeps all the while.
const INNER_BUDGET_NS: u64 = 4 * HANG_NS;
/// Time for the other one.
const OUTER_BUDGET_NS: u64 = 4 * INNER_BUDGET_NS;
/// Waits of one case, at the most: all times of its three batches together, and some more.
const MAX_WAITS: u64 = 100_000;
/// Looks of a queue that has to stop.
const STOP_POLLS: u32 = 6_000;

/// What happens while the batches run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// Nothing.
    Clean,
    /// Some folios of both batches fail, whoever copies them.
    SomeFail,
    /// As before, and the CPU repairs.
    Repaired,
    /// Every 17th descriptor that an engine begins fails.
    Every17th,
    /// A descriptor of the last channel takes long.
    Slow,
    /// One hangs; taking RUN away gets rid of it.
    Hang,
    /// One hangs for good, and the platform takes the bus away.
    HangRescued,
    /// One hangs for good, and nobody can do anything.
    HangForGood,
    /// Messages come without a reason, and others get lost.
    BadMessages,
    /// A function does not answer for some reads.
    Vanish,
    /// A function is reset, and nobody says so.
    UntoldReset,
}

impl crate::Scenario for Scenario {
    const SUBJECT: &'static str = "batch";
    const ALL: &'static [Self] = &[
        Self::Clean,
        Self::SomeFail,
        Self::Repaired,
        Self::Every17th,
        Self::Slow,
        Self::Hang,
        Self::HangRescued,
        Self::HangForGood,
        Self::BadMessages,
        Self::Vanish,
        Self::UntoldReset,
    ];
}

impl Scenario {
    /// Whether nothing happens that would take a channel out of service.
    fn keeps_channels(self) -> bool {
        matches!(
            self,
            Self::Clean
                | Self::SomeFail
                | Self::Repaired
                | Self::Every17th
                | Self::Slow
                | Self::BadMessages
        )
    }
}

type Queue = PtdmaQueue<Stepper, BusRing>;

/// Two functions, their channels, and one clock for all batches.
struct Lab {
    case: Case,
    steppers: Vec<Stepper>,
    channels: Channels<Queue, spin::Mutex<SharedChannel<Queue>>, CHANNELS>,
    now_ns: Cell<u64>,
    random: RefCell<Random>,
    /// Destinations that an engine may write for ever.
    quarantined: RefCell<Vec<Piece>>,
    waits: Cell<u64>,
}

/// One case.
pub type Case = crate::Case<Scenario>;

/// Runs a case.
///
/// # Errors
///
/// What did not hold.
pub fn run(case: &Case) -> Verdict {
    let bus = BusSpace::new();
    let lab = Lab::new(case, &bus)?;
    let lens: Vec<usize> = {
        let mut random = lab.random.borrow_mut();
        (0..FOLIOS).map(|_| 16 + random.index(200)).collect()
    };
    let memories = [1, 2].map(|n| Memory::new(&bus, &lens, Layout::Scattered, case.seed + n));
    let failing = lab.inject(&memories);
    let inner = || lab.batch(&memories[1], INNER, &failing[1], &|| Ok(()));
    lab.batch(&memories[0], 1, &failing[0], &inner)?;
    lab.untouched(&memories)?;
    if case.scenario.keeps_channels() {
        lab.all_active()?;
    }
    // What an engine was at is over some day.
    for stepper in &lab.steppers {
        stepper.forget();
        stepper.model().clear_faults();
        stepper.model().run(LATE_STEPS);
    }
    lab.untouched(&memories)?;
    if lab.revive()? {
        // As if nothing had happened.
        let again = Memory::new(&bus, &lens, Layout::Scattered, case.seed + 3);
        lab.batch(&again, 3, &[], &|| Ok(()))?;
        lab.all_active()?;
        lab.untouched(&[again])?;
    }
    for stepper in &lab.steppers {
        stepper.model().run(LATE_STEPS);
    }
    lab.untouched(&memories)
}

fn bring_up(stepper: &Stepper, bus: &BusSpace, case: &Case) -> Result<Queue, String> {
    let ring = BusRing::new(bus, case.entries).map_err(|e| e.to_string())?;
    let channel = crate::bring_up(stepper, ring, case.signalling, case.knowledge)?;
    Ok(PtdmaQueue::new(channel, None).with_stop_polls(STOP_POLLS))
}

impl Lab {
    fn new(case: &Case, bus: &BusSpace) -> Result<Self, String> {
        let mut channels = Channels::new();
        let mut steppers = Vec::new();
        for n in 0..CHANNELS as u64 {
            let stepper = Stepper::new(case.forks, bus, case.seed ^ n << 32);
            let queue = bring_up(&stepper, bus, case)?;
            channels
                .add(spin::Mutex::new(SharedChannel::new(queue)))
                .map_err(|_full| "no room for a channel")?;
            steppers.push(stepper);
        }
        Ok(Self {
            case: *case,
            steppers,
            channels,
            now_ns: Cell::new(1),
            random: RefCell::new(Random::new(!case.seed)),
            quarantined: RefCell::default(),
            waits: Cell::new(0),
        })
    }

    /// Injects what the scenario says; returns the folios of each batch that must fail.
    fn inject(&self, memories: &[Memory; 2]) -> [Vec<usize>; 2] {
        let mut failing = [Vec::new(), Vec::new()];
        let last = &self.steppers[CHANNELS - 1];
        let at = self.random.borrow_mut().below(6);
        let stall = |duration, haltable| Fault::at(at, FaultKind::Stall { duration, haltable });
        let every = |n, offset, kind| Fault::new(Trigger::Every { n, offset }, kind);
        match self.case.scenario {
            Scenario::Clean => {}
            Scenario::SomeFail | Scenario::Repaired => {
                for (memory, list) in memories.iter().zip(&mut failing) {
                    // The first, neighbours, and the last.
                    *list = vec![0, 7, 8, FOLIOS - 1];
                    for (n, folio) in list.iter().enumerate() {
                        let kind = match n % 3 {
                            0 => FaultKind::Error { code: 19 },
                            1 => FaultKind::PartialWrite {
                                len_bytes: 9,
                                code: 38,
                            },
                            _ => FaultKind::Unmapped { side: Side::Source },
                        };
                        let folio = &memory.folios[*folio];
                        let touches = Trigger::Touches {
                            start: folio.dst.get(),
                            len_bytes: folio.len_bytes,
                        };
                        for stepper in &self.steppers {
                            let fault = Fault::new(touches.clone(), kind.clone());
                            stepper.model().inject(fault);
                        }
                    }
                }
            }
            Scenario::Every17th => {
                for stepper in &self.steppers {
                    let error = FaultKind::Error { code: 19 };
                    stepper.model().inject(every(17, 3, error));
                }
            }
            Scenario::Slow => {
                let steps = 200 + self.random.borrow_mut().below(1500);
                last.model().inject(stall(StallFor::Steps(steps), false));
            }
            Scenario::Hang => {
                last.model().inject(stall(StallFor::Ever, true));
            }
            Scenario::HangRescued | Scenario::HangForGood => {
                last.model().inject(stall(StallFor::Ever, false));
            }
            Scenario::BadMessages => {
                let model = last.model();
                model.inject(every(3, 1, FaultKind::SpuriousInterrupt));
                model.inject(every(2, 0, FaultKind::LostInterrupt));
            }
            Scenario::Vanish => {
                let reads = 1 + self.random.borrow_mut().below(40);
                last.plan(Event::Vanish(reads), 20);
            }
            Scenario::UntoldReset => last.plan(Event::Reset, 20),
        }
        failing
    }

    /// Runs a batch, and compares memory with what it reports; then the memory is its owner's.
    fn batch(
        &self,
        memory: &Memory,
        number: u64,
        failing: &[usize],
        meanwhile: &dyn Fn() -> Verdict,
    ) -> Verdict {
        let mut options = Options::default();
        options.budget_ns = if number == INNER {
            INNER_BUDGET_NS
        } else {
            OUTER_BUDGET_NS
        };
        options.grace_ns = HANG_NS;
        options.hang_ns = HANG_NS;
        options.repair = self.case.scenario == Scenario::Repaired;
        let wait = Turns {
            lab: self,
            meanwhile: Some(meanwhile),
            found: Ok(()),
        };
        let host = Host::new(wait).with_rescue(Platform(self));
        let mut outcomes = vec![Outcome::Dma; FOLIOS];
        let found = if self.case.scenario == Scenario::Repaired {
            let mut host = host.with_cpu(memory.cpu());
            self.perform(memory, &options, &mut host, &mut outcomes)?;
            host.wait.finish()
        } else {
            let mut host = host;
            self.perform(memory, &options, &mut host, &mut outcomes)?;
            host.wait.finish()
        };
        memory
            .verify(&outcomes)
            .map_err(|e| format!("WRONG BYTES: {e}"))?;
        if self.case.scenario.keeps_channels() && self.case.scenario != Scenario::Every17th {
            for (folio, outcome) in outcomes.iter().enumerate() {
                let repaired = self.case.scenario == Scenario::Repaired;
                let right = match outcome {
                    Outcome::Dma => !failing.contains(&folio),
                    Outcome::Cpu => repaired && failing.contains(&folio),
                    Outcome::Failed(_) => !repaired && failing.contains(&folio),
                    // It cannot have slots that hold what the sleeping one has to look at.
                    Outcome::NotAttempted(SkipReason::Deadline) => number == INNER,
                    Outcome::NotAttempted(_) => false,
                };
                if !right {
                    return Err(format!(
                        "WRONG OUTCOME: folio {folio} of batch {number} is {outcome:?}"
                    ));
                }
            }
        }
        // The owner uses it for something else.
        memory.refill(number);
        found
    }

    fn perform<K: CpuCopier>(
        &self,
        memory: &Memory,
        options: &Options,
        host: &mut Host<Turns<'_>, batch_copy::Identity, K, Platform<'_>>,
        outcomes: &mut [Outcome],
    ) -> Verdict {
        Batch::<CHANNELS>::new()
            .run(
                &self.channels,
                &memory.folios[..],
                OverlapCheck::CallerKnows,
                options,
                host,
                outcomes,
            )
            .map(|_report| ())
            .map_err(|e| format!("refused: {e:?}"))
    }

    /// Nothing is written that was given back.
    fn untouched(&self, memories: &[Memory]) -> Verdict {
        let quarantined = self.quarantined.borrow();
        for memory in memories {
            let bytes = memory.snapshot();
            let Some(base) = memory.folios.iter().map(|f| f.dst.get()).min() else {
                continue;
            };
            // The first folio lies behind one gap.
            let start = base - GAP_LEN_BYTES as u64;
            for (at, byte) in bytes.iter().enumerate() {
                let addr = start + at as u64;
                let lost = |p: &Piece| (p.dst.get()..p.dst.get() + p.len_bytes).contains(&addr);
                if *byte != UNTOUCHED && !quarantined.iter().any(lost) {
                    return Err(format!("WRITTEN AFTER IT WAS GIVEN BACK: byte {at}"));
                }
            }
        }
        Ok(())
    }

    fn all_active(&self) -> Verdict {
        for channel in 0..CHANNELS {
            let service = self.channels.service(channel);
            if service != Some(ServiceState::Active) {
                return Err(format!("LOST CHANNEL: {channel} is {service:?}"));
            }
        }
        Ok(())
    }

    /// Brings channels back that went out of service, with a reset where the function has one.
    /// False if one cannot be had.
    fn revive(&self) -> Result<bool, String> {
        for (channel, stepper) in self.steppers.iter().enumerate() {
            if self.channels.service(channel) == Some(ServiceState::Active) {
                continue;
            }
            if !crate::reset(stepper.model()) {
                return Ok(false);
            }
            self.channels.confirm_stopped(channel);
            let mut queue = self
                .channels
                .take(channel)
                .map_err(|e| format!("channel {channel}: {e}"))?;
            let _dropped = queue
                .channel()
                .recover(crate::quiesced())
                .map_err(|(e, _)| format!("LOST CHANNEL after a reset: {e}"))?;
            if self.channels.put(channel, queue).is_err() {
                return Err("the place is taken".to_owned());
            }
        }
        Ok(true)
    }
}

/// Waits by letting the engines go on, and another batch begin.
struct Turns<'a> {
    lab: &'a Lab,
    meanwhile: Option<&'a dyn Fn() -> Verdict>,
    found: Verdict,
}

impl Turns<'_> {
    /// What the other batch came to; it runs now if it did not get its turn before.
    fn finish(&mut self) -> Verdict {
        if let Some(other) = self.meanwhile.take() {
            other()?;
        }
        self.found.clone()
    }
}

impl Wait for Turns<'_> {
    fn now_ns(&self) -> u64 {
        self.lab.now_ns.get()
    }

    fn wants_interrupts(&self) -> bool {
        self.lab.case.signalling == Signalling::Interrupts
    }

    fn wait(&mut self, wait: &WaitFor) -> Wake {
        let lab = self.lab;
        lab.waits.set(lab.waits.get() + 1);
        assert!(lab.waits.get() < MAX_WAITS, "NEVER OVER: {MAX_WAITS} waits");
        lab.now_ns.set(lab.now_ns.get() + ROUND_NS);
        let turn = lab.random.borrow_mut().one_in(4);
        if turn && let Some(other) = self.meanwhile.take() {
            self.found = other();
        }
        for stepper in &lab.steppers {
            stepper.advance(2);
        }
        if !self.wants_interrupts() {
            return Wake::Poll;
        }
        let mut any = false;
        for (channel, stepper) in lab.steppers.iter().enumerate() {
            while stepper.take_interrupt() {
                lab.channels.interrupt(channel, lab.now_ns.get());
                any = true;
            }
        }
        match (any, wait.announced, lab.random.borrow_mut().one_in(16)) {
            (true, ..) => Wake::Interrupted,
            (false, true, true) => Wake::Overdue,
            // A wrong alarm: nothing is lost by it.
            (false, true, false) => Wake::Interrupted,
            (false, false, _) => Wake::Poll,
        }
    }
}

/// What the platform can do about an engine that does not stop.
struct Platform<'a>(&'a Lab);

impl Rescue for Platform<'_> {
    fn prove_stopped(&mut self, channel: usize) -> bool {
        if self.0.case.scenario == Scenario::HangForGood {
            return false;
        }
        // Off, and nothing is pending: it stays so until the function was reset.
        self.0.steppers[channel].model().set_bus_master(false);
        true
    }

    fn quarantined(&mut self, _channel: usize, piece: &Piece) {
        self.0.quarantined.borrow_mut().push(*piece);
    }
}
