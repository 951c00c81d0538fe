//! One channel on one engine: conformance, faults, stops.

use std::collections::BTreeSet;

use ptdma::io::RegisterIo;
use ptdma::regs::Register;
use ptdma::{
    Channel, Cookie, Deadline, Fault, Notify, Progress, Signalling, SubmitError, Terminated,
};
use ptdma_model::fault::StallFor;
use ptdma_model::{BusRing, BusSpace, Fault as Injected, FaultKind, Side, Trigger};

use crate::field::{Field, LEN_BYTES};
use crate::random::Random;
use crate::stepper::{Event, Stepper};
use crate::{COMEBACK_READS, LATE_STEPS, Verdict};

/// Looks in which a burst has to be over, faults included. The driver looks twice at the latest
/// after 4096 looks without progress, and a burst has a few errors at the most.
const MAX_LOOKS: u32 = 60_000;
/// Looks without an interrupt after which a waiter takes it to be lost.
const OVERDUE_LOOKS: u32 = 40;
/// Time that a stop may take, in register accesses.
const STOP_ACCESSES: u64 = 20_000;
/// The code that injected errors have.
const CODE: u8 = 19;

/// What happens to the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// Bursts of all lengths, one after the other.
    Bursts,
    /// A ring that is refilled before it is empty.
    Refills,
    /// The first descriptor of a burst fails.
    FirstFails,
    /// One in the middle fails.
    MiddleFails,
    /// The last one fails.
    LastFails,
    /// One alone fails.
    OnlyFails,
    /// Several of a burst fail, neighbours among them; some after they moved bytes.
    SeveralFail,
    /// All of a burst fail.
    AllFail,
    /// Every 17th descriptor that the engine begins fails, in a ring that is refilled.
    Every17th,
    /// A descriptor takes long, and the next ones not.
    Slow,
    /// A descriptor hangs; taking RUN away gets rid of it.
    Hang,
    /// A descriptor hangs until its function is reset.
    HangForGood,
    /// Messages come without a reason.
    Spurious,
    /// Messages get lost.
    Lost,
    /// The function does not answer for some reads.
    Vanish,
    /// The function is reset, and nobody says so.
    UntoldReset,
    /// The head reads nonsense for a while.
    BadHead,
    /// The owner stops a channel that is well.
    Stop,
    /// A stop of a channel on which one has failed.
    StopAfterError,
    /// The function was left at work by a previous owner.
    PreviousOwner,
    /// The first descriptors of all fail, or take long: those by which the driver finds out.
    BadBeginning,
}

impl crate::Scenario for Scenario {
    const SUBJECT: &'static str = "channel";
    const ALL: &'static [Self] = &[
        Self::Bursts,
        Self::Refills,
        Self::FirstFails,
        Self::MiddleFails,
        Self::LastFails,
        Self::OnlyFails,
        Self::SeveralFail,
        Self::AllFail,
        Self::Every17th,
        Self::Slow,
        Self::Hang,
        Self::HangForGood,
        Self::Spurious,
        Self::Lost,
        Self::Vanish,
        Self::UntoldReset,
        Self::BadHead,
        Self::Stop,
        Self::StopAfterError,
        Self::PreviousOwner,
        Self::BadBeginning,
    ];
}

/// One case.
pub type Case = crate::Case<Scenario>;

/// Runs a case.
///
/// # Errors
///
/// What did not hold.
pub fn run(case: &Case) -> Verdict {
    let mut lab = Lab::new(case)?;
    let burst = lab.capacity().min(9);
    match case.scenario {
        Scenario::Bursts => {
            for _ in 0..6 {
                let count = 1 + lab.random.index(lab.capacity().min(60));
                lab.burst(count)?;
            }
            // As many as there is room for, often enough for the ring to wrap.
            for _ in 0..3 {
                lab.burst(lab.capacity())?;
            }
        }
        Scenario::Refills => lab.stream(150)?,
        Scenario::FirstFails => lab.failing(burst, &[0])?,
        Scenario::MiddleFails => lab.failing(burst, &[burst / 2])?,
        Scenario::LastFails => lab.failing(burst, &[burst - 1])?,
        Scenario::OnlyFails => lab.failing(1, &[0])?,
        Scenario::SeveralFail => {
            let several: Vec<usize> = (0..burst).filter(|n| [1, 2, 4, 7].contains(n)).collect();
            lab.failing(burst, &several)?;
        }
        Scenario::AllFail => lab.failing(burst, &(0..burst).collect::<Vec<_>>())?,
        Scenario::Every17th => {
            let every = Trigger::Every { n: 17, offset: 3 };
            lab.inject(Injected::new(every, FaultKind::Error { code: CODE }));
            lab.stream(200)?;
            let errors = lab.stepper.model().counters().errors;
            if errors < 8 || lab.failed.len() as u64 > errors {
                return Err(format!("{} failures of {errors} errors", lab.failed.len()));
            }
        }
        Scenario::Slow => {
            let duration = StallFor::Steps(200 + lab.random.below(2000));
            let haltable = false;
            lab.inject(Injected::at(0, FaultKind::Stall { duration, haltable }));
            lab.burst(burst)?;
        }
        Scenario::Hang => lab.hang(true)?,
        Scenario::HangForGood => lab.hang(false)?,
        Scenario::Spurious => {
            let every = Trigger::Every { n: 3, offset: 1 };
            lab.inject(Injected::new(every, FaultKind::SpuriousInterrupt));
            lab.stream(60)?;
        }
        Scenario::Lost => {
            let every = Trigger::Every { n: 2, offset: 0 };
            lab.inject(Injected::new(every, FaultKind::LostInterrupt));
            lab.stream(60)?;
        }
        Scenario::Vanish => lab.disturbed(|lab| {
            let reads = 1 + lab.random.below(40);
            lab.stepper.plan(Event::Vanish(reads), 40);
        })?,
        Scenario::UntoldReset => lab.disturbed(|lab| lab.stepper.plan(Event::Reset, 40))?,
        Scenario::BadHead => lab.disturbed(|lab| {
            let value = [0, 0x20, 0xdead_beef, 0xffff_ffe0][lab.random.index(4)];
            let reads = Some(1 + lab.random.below(3));
            let garbage = FaultKind::HeadGarbage { value, reads };
            let at = lab.random.below(4);
            lab.inject(Injected::at(at, garbage));
        })?,
        Scenario::Stop | Scenario::StopAfterError => {
            for _ in 0..4 {
                if case.scenario == Scenario::StopAfterError {
                    let at = lab.random.below(burst as u64);
                    lab.inject(Injected::at(at, FaultKind::Error { code: CODE }));
                }
                lab.submit(burst)?;
                for _ in 0..lab.random.below(12) {
                    lab.look()
                        .map_err(|fault| format!("LOST CHANNEL: {fault}"))?;
                }
                lab.stop()?;
                // An engine in the middle of a burst that cannot say that it stands, on a function
                // without a reset: nobody can have it back.
                if lab.channel.is_none() {
                    break;
                }
                lab.burst(burst)?;
            }
        }
        Scenario::BadBeginning => {
            lab.stepper.model().clear_faults();
            lab.stream(60)?;
            lab.burst(lab.capacity())?;
        }
        Scenario::PreviousOwner => return lab.previous_owner(),
    }
    lab.finish()
}

/// The channel under test, and the owner of the memory that it copies.
struct Lab {
    case: Case,
    bus: BusSpace,
    stepper: Stepper,
    channel: Option<Channel<Stepper, BusRing>>,
    field: Field,
    random: Random,
    first: Cookie,
    submitted: usize,
    retired: usize,
    failed: Vec<usize>,
    /// Looks since something happened.
    quiet: u32,
}

impl Lab {
    fn new(case: &Case) -> Result<Self, String> {
        let bus = BusSpace::new();
        let stepper = Stepper::new(case.forks, &bus, case.seed);
        let ring = BusRing::new(&bus, case.entries).map_err(|e| e.to_string())?;
        let mut random = Random::new(!case.seed);
        if case.scenario == Scenario::BadBeginning {
            let kind = if random.one_in(2) {
                FaultKind::Error { code: CODE }
            } else {
                let duration = StallFor::Steps(1 + random.below(60));
                let haltable = false;
                FaultKind::Stall { duration, haltable }
            };
            // From some on, once, a few times, or always.
            let offset = random.below(6);
            let every = Trigger::Every { n: 1, offset };
            let times = [1, 2, 5, u64::MAX][random.index(4)];
            stepper
                .model()
                .inject(Injected::new(every, kind).times(times));
        }
        let channel = crate::bring_up(&stepper, ring, case.signalling, case.knowledge)?;
        let pieces = 600 + 4 * case.entries;
        Ok(Self {
            case: *case,
            field: Field::new(&bus, pieces, case.seed),
            bus,
            stepper,
            random,
            first: channel.next_cookie(),
            channel: Some(channel),
            submitted: 0,
            retired: 0,
            failed: Vec::new(),
            quiet: 0,
        })
    }

    fn channel(&mut self) -> Result<&mut Channel<Stepper, BusRing>, String> {
        self.channel.as_mut().ok_or("no channel".to_owned())
    }

    fn capacity(&self) -> usize {
        self.channel.as_ref().map_or(1, Channel::capacity)
    }

    fn inject(&self, fault: Injected) {
        self.stepper.model().inject(fault);
    }

    fn piece_of(&self, cookie: Cookie) -> usize {
        // Cases are short.
        cookie.number().wrapping_sub(self.first.number()) as usize
    }

    /// Submits up to `count` copies, as far as there is room, and rings. Returns how many.
    fn submit(&mut self, count: usize) -> Result<usize, String> {
        let mut done = 0;
        while done < count {
            let piece = self.submitted;
            let (src, dst) = self.field.addrs(piece);
            let channel = self.channel.as_mut().ok_or("no channel")?;
            let request = channel
                .prep_copy(src, dst, LEN_BYTES as u64)
                .map_err(|e| format!("prep: {e}"))?;
            match channel.submit(&request, Notify::Silent) {
                Ok(cookie) => {
                    if self.piece_of(cookie) != piece {
                        return Err(format!("{cookie} for piece {piece}"));
                    }
                }
                Err(SubmitError::RingFull { .. }) => break,
                Err(e) => return Err(format!("submit: {e}")),
            }
            self.field.hand_out(piece);
            self.submitted += 1;
            done += 1;
        }
        self.channel()?.issue_pending(Notify::Interrupt);
        Ok(done)
    }

    /// Looks once, as the owner of the channel would.
    fn look(&mut self) -> Result<(), Fault> {
        self.stepper.advance(3);
        let Some(channel) = &mut self.channel else {
            return Ok(());
        };
        let progress = match self.case.signalling {
            Signalling::Polled => channel.poll()?,
            Signalling::Interrupts if self.stepper.take_interrupt() => {
                channel.handle_interrupt()?
            }
            Signalling::Interrupts if self.quiet >= OVERDUE_LOOKS => {
                self.quiet = 0;
                channel.check_lost_interrupt()?
            }
            Signalling::Interrupts => {
                self.quiet += 1;
                return Ok(());
            }
        };
        self.quiet = 0;
        self.absorb(&progress);
        Ok(())
    }

    /// What is reported as done is the owner's again.
    ///
    /// # Panics
    ///
    /// If it is not done.
    fn absorb(&mut self, progress: &Progress) {
        let end = self.piece_of(progress.done_before);
        let failed = progress.failure.map(|f| self.piece_of(f.cookie));
        assert!(
            (self.retired..=self.submitted).contains(&end),
            "retired {}, now {end}, submitted {}",
            self.retired,
            self.submitted
        );
        assert_eq!(progress.retired, (end - self.retired) as u64);
        if let Some(piece) = failed {
            assert!((self.retired..end).contains(&piece), "failure of {piece}");
            self.failed.push(piece);
        }
        self.claim(end, failed);
    }

    /// All up to `end` is done, but for the one that failed.
    fn claim(&mut self, end: usize, failed: Option<usize>) {
        for piece in self.retired..end {
            assert!(
                failed == Some(piece) || self.field.has_arrived(piece),
                "REPORTED COPIED, AND IS NOT: piece {piece}"
            );
            self.field.take_back(piece);
        }
        self.retired = end;
    }

    /// Looks until everything is over.
    fn drain(&mut self) -> Verdict {
        for _ in 0..MAX_LOOKS {
            if self.retired == self.submitted {
                return self.field.check();
            }
            self.look()
                .map_err(|fault| format!("LOST CHANNEL: {fault}"))?;
        }
        Err(format!(
            "NEVER OVER: {} of {} after {MAX_LOOKS} looks",
            self.retired, self.submitted
        ))
    }

    fn burst(&mut self, count: usize) -> Verdict {
        let done = self.submit(count)?;
        if done != count {
            return Err(format!("room for {done} of {count}"));
        }
        self.drain()
    }

    /// So many copies in a ring that is refilled at random moments.
    fn stream(&mut self, count: usize) -> Verdict {
        let end = self.submitted + count;
        let mut looks = 0;
        while self.submitted < end {
            let wanted = 1 + self.random.index(self.capacity().min(20));
            self.submit(wanted.min(end - self.submitted))?;
            for _ in 0..self.random.below(6) {
                self.look()
                    .map_err(|fault| format!("LOST CHANNEL: {fault}"))?;
            }
            looks += 1;
            if looks > MAX_LOOKS {
                return Err("NEVER OVER: no room in the ring".to_owned());
            }
        }
        self.drain()
    }

    /// A burst in which the named ones fail, whenever they are tried; then another one.
    fn failing(&mut self, count: usize, which: &[usize]) -> Verdict {
        let first = self.submitted;
        for (n, index) in which.iter().enumerate() {
            let kind = match n % 3 {
                0 => FaultKind::Error { code: CODE },
                1 => FaultKind::PartialWrite {
                    len_bytes: 20,
                    code: 38,
                },
                _ => FaultKind::Unmapped {
                    side: Side::Destination,
                },
            };
            let (_, dst) = self.field.addrs(first + index);
            let touches = Trigger::Touches {
                start: dst.get(),
                len_bytes: LEN_BYTES as u64,
            };
            self.inject(Injected::new(touches, kind));
        }
        self.burst(count)?;
        let expected: BTreeSet<usize> = which.iter().map(|index| first + index).collect();
        let found: BTreeSet<usize> = self.failed.iter().copied().collect();
        if expected != found || found.len() != self.failed.len() {
            return Err(format!(
                "WRONG ONES BLAMED: {:?} failed, {expected:?} did",
                self.failed
            ));
        }
        self.burst(count.min(self.capacity()))?;
        if self.failed.len() > expected.len() {
            return Err(format!("BLAMED LATER: {:?}", self.failed));
        }
        Ok(())
    }

    /// Stops the channel, by all means that there are.
    fn stop(&mut self) -> Verdict {
        let deadline = Deadline::after(&self.stepper, STOP_ACCESSES);
        let stepper = self.stepper.clone();
        match self.channel()?.terminate(&stepper, deadline) {
            Ok(terminated) => {
                self.account(&terminated);
                self.field.check()
            }
            Err(_not_stopped) => self.rescue(),
        }
    }

    /// What a stop says of what was outstanding.
    fn account(&mut self, terminated: &Terminated) {
        let end = self.piece_of(terminated.first_dropped);
        assert_eq!(terminated.retired, (end - self.retired) as u64);
        assert_eq!(terminated.dropped, (self.submitted - end) as u64);
        self.claim(end, None);
        for piece in end..self.submitted {
            self.field.take_back(piece);
        }
        self.retired = self.submitted;
        // Cookies go on.
    }

    /// The engine was not proved stopped: what a platform can do. The channel may be gone then.
    fn rescue(&mut self) -> Verdict {
        let proof = crate::quiesced();
        if crate::reset(self.stepper.model()) {
            let terminated = match self.channel()?.recover(proof) {
                Ok(terminated) => terminated,
                Err((e, _)) => return Err(format!("LOST CHANNEL after a reset: {e}")),
            };
            self.account(&terminated);
        } else if let Some(channel) = self.channel.take() {
            // Without the bus it writes nothing; it must stay so.
            let (_, _ring, terminated) = channel.shutdown_quiesced(proof);
            self.account(&terminated);
        }
        self.field.check()
    }

    /// A burst of which one hangs.
    fn hang(&mut self, haltable: bool) -> Verdict {
        let count = self.capacity().min(9);
        for _ in 0..2 {
            let at = self.random.below(count as u64);
            let duration = StallFor::Ever;
            let stall = FaultKind::Stall { duration, haltable };
            self.inject(Injected::at(at, stall));
            self.submit(count)?;
            for _ in 0..200 + self.random.below(400) {
                // A fault is as good as a time-out.
                if self.look().is_err() {
                    break;
                }
            }
            if self.retired == self.submitted {
                return Err("nothing hangs".to_owned());
            }
            self.stop()?;
            // What it was at is over some day, and must not matter.
            self.stepper.model().clear_faults();
            self.stepper.model().run(LATE_STEPS);
            self.field.check()?;
            if self.channel.is_none() {
                return Ok(());
            }
            self.burst(count)?;
        }
        Ok(())
    }

    /// Something happens to the function while it works; then the channel is stopped and used on.
    fn disturbed(&mut self, happen: impl Fn(&mut Self)) -> Verdict {
        for _ in 0..4 {
            happen(self);
            for _ in 0..3 {
                let count = 1 + self.random.index(self.capacity().min(12));
                // A fault is what is expected, here and below.
                if self.submit(count).is_err() {
                    break;
                }
                for _ in 0..60 {
                    if self.look().is_err() || self.retired == self.submitted {
                        break;
                    }
                }
            }
            self.field.check()?;
            self.stepper.model().clear_faults();
            let out_of_order = self.channel()?.fault().is_some();
            if out_of_order || self.retired != self.submitted || !self.stepper.has_happened() {
                self.stop()?;
            }
            self.stepper.forget();
            if self.channel.is_none() {
                return Ok(());
            }
            // A reset that the stop did not meet is found by the work that follows.
            let count = self.capacity().min(5);
            if self.submit(count).is_err() || self.drain().is_err() {
                self.stop()?;
                if self.channel.is_none() {
                    return Ok(());
                }
                self.burst(count)?;
            }
        }
        Ok(())
    }

    /// The engine is at work for an owner who is gone. Its memory is used for something else as
    /// soon as the next owner's channel is up.
    fn previous_owner(mut self) -> Verdict {
        let count = self.capacity().min(9);
        let at = self.random.below(count as u64);
        let duration = if self.random.one_in(2) {
            StallFor::Ever
        } else {
            StallFor::Steps(1 + self.random.below(300))
        };
        let haltable = self.random.one_in(4);
        self.inject(Injected::at(at, FaultKind::Stall { duration, haltable }));
        self.submit(count)?;
        for _ in 0..self.random.below(20) {
            self.stepper.advance(3);
        }
        if self.stepper.model().counters().faults == 0 {
            // The engine did not come so far, and the next owner's work is not to hang.
            self.stepper.model().clear_faults();
        }
        // Time passes: what follows RUN late has followed.
        for _ in 0..COMEBACK_READS {
            let _control = self.stepper.model().read(Register::Control);
        }
        // The ring stays mapped: nobody has told the function.
        drop(self.channel.take());
        let mut reset = false;
        let channel = loop {
            let ring = BusRing::new(&self.bus, self.case.entries).map_err(|e| e.to_string())?;
            let Case {
                signalling,
                knowledge,
                ..
            } = self.case;
            match crate::bring_up(&self.stepper, ring, signalling, knowledge) {
                Ok(channel) => break channel,
                Err(e) if reset => return Err(format!("LOST CHANNEL after a reset: {e}")),
                Err(_still_running) => {
                    reset = crate::reset(self.stepper.model());
                    if !reset {
                        // It cannot be had; that it is declined is all that counts.
                        return Ok(());
                    }
                }
            }
        };
        for piece in self.retired..self.submitted {
            self.field.take_back(piece);
        }
        self.retired = self.submitted;
        let next = channel.next_cookie().number();
        self.first = Cookie::new(next.wrapping_sub(self.submitted as u64));
        self.channel = Some(channel);
        self.stepper.model().clear_faults();
        self.stepper.model().run(LATE_STEPS);
        self.field.check()?;
        self.burst(count)?;
        self.finish()
    }

    /// The channel ends; nothing of it is executed later.
    fn finish(mut self) -> Verdict {
        let mut proved = false;
        if let Some(channel) = self.channel.take() {
            let idle = channel.outstanding() == 0;
            let deadline = Deadline::after(&self.stepper, STOP_ACCESSES);
            match channel.shutdown(&self.stepper, deadline) {
                Ok((_, ring, terminated)) => {
                    self.account(&terminated);
                    proved = true;
                    self.bus
                        .unmap(ring.buffer().addr())
                        .map_err(|e| e.to_string())?;
                }
                Err((e, _)) if idle => return Err(format!("IDLE AND NOT STOPPED: {e}")),
                Err(_) => {
                    for piece in self.retired..self.submitted {
                        self.field.give_up(piece);
                    }
                }
            }
        }
        let model = self.stepper.model();
        model.clear_faults();
        let before = model.counters();
        model.run(LATE_STEPS);
        let after = model.counters();
        if proved && (before.descriptors, before.errors) != (after.descriptors, after.errors) {
            return Err("EXECUTED AFTER THE END".to_owned());
        }
        self.field.check()
    }
}
