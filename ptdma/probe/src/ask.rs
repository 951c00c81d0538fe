//! The steps, in order of risk.

use ptdma::descriptor::CommandWord;
use ptdma::regs::{ALL_ONES, Interrupts, QueueControl, Register};
use ptdma::{
    Channel, ChannelConfig, Clock, Deadline, Descriptor, DmaAddr, Fault, ProbeError, RegisterIo,
    RingMemory,
};

use crate::Consent;
use crate::answer::{Answer, Question};
use crate::error_steps;
use crate::halt::{Event, Hypotheses};
use crate::measure;
use crate::pattern;
use crate::platform::{Platform, ResetOutcome};
use crate::queue::{Came, ENTRIES, LIMIT_NS, Queue, SILENCE_NS};
use crate::report::{FunctionReport, Stop};

/// How often nothing has to happen before it counts as nothing.
pub(crate) const TRIES: u32 = 3;
/// Length of the copies of most steps.
pub(crate) const COPY_LEN_BYTES: u32 = 4096;
/// Copies that are compared at once, to see whether head runs ahead of the bytes.
const ARRIVALS: u64 = 64;
/// Entries of the ring for which the descriptor cost is measured, if the engine walks as many.
const FULL_ENTRIES: usize = 1024;
/// Looks at the status register for a job.
const JOB_LOOKS: u32 = 16;
/// Interrupts that are awaited one after the other.
const INTERRUPTS: usize = 15;
/// How long an interrupt may take: 1 s; an emulated one waits for its turn.
const INTERRUPT_NS: u64 = 1_000_000_000;
/// How many times longer than usual an engine stands still before it counts as stopped.
const STILL: u64 = 20;

/// The ring's memory, lent to a driver.
struct Lent<'a, M>(&'a mut M);

impl<M: RingMemory> RingMemory for Lent<'_, M> {
    fn base(&self) -> DmaAddr {
        self.0.base()
    }
    fn entries(&self) -> usize {
        self.0.entries()
    }
    fn store(&mut self, slot: usize, descriptor: &Descriptor) {
        self.0.store(slot, descriptor);
    }
    fn store_command(&mut self, slot: usize, command: CommandWord) {
        self.0.store_command(slot, command);
    }
    fn publish(&mut self) {
        self.0.publish();
    }
}

/// One probe: the platform, and what is known so far.
pub(crate) struct Asker<'p, P: Platform> {
    pub(crate) p: &'p mut P,
    pub(crate) report: FunctionReport,
    goes_on_by_tail: bool,
    seed: u64,
}

pub(crate) fn ask<P: Platform>(p: &mut P, consent: Consent) -> FunctionReport {
    let seed = p.clock().now();
    let mut asker = Asker {
        p,
        report: FunctionReport::unknown(),
        goes_on_by_tail: false,
        seed,
    };
    let stop = asker.all(consent).err();
    asker.report.stop = stop;
    if stop.is_none_or(|stop| stop == Stop::NoStart) {
        measure::switch_off(&*asker.p);
    }
    asker.report
}

impl<P: Platform> Asker<'_, P> {
    pub(crate) fn set(&mut self, question: Question, answer: Answer) {
        self.report.set(question, answer);
    }

    fn all(&mut self, consent: Consent) -> Result<(), Stop> {
        self.first_look()?;
        self.by_the_driver()?;
        self.fill();
        self.restart()?;
        self.halt_and_errors()?;
        self.interrupt_sources()?;
        self.bus_master()?;
        self.lengths()?;
        self.measure()?;
        self.reset_and_unknown_engine(consent)
    }

    /// Reads, and writes nothing.
    fn first_look(&mut self) -> Result<(), Stop> {
        let regs = self.p.regs();
        let version = regs.read(Register::Version);
        let control = regs.read(Register::Control);
        if version == ALL_ONES || control == ALL_ONES {
            return Err(Stop::Gone);
        }
        let control = QueueControl::from_bits_retain(control);
        let works = regs.read(Register::Head) != regs.read(Register::Tail);
        self.report.version = version;
        self.report.halt.at_rest = Some(control.contains(QueueControl::HALT));
        if control.contains(QueueControl::RUN) && works {
            return Err(Stop::Busy);
        }
        Ok(())
    }

    /// What the driver finds out by its own means: whether the engine starts, and its ring.
    fn by_the_driver(&mut self) -> Result<(), Stop> {
        let clock = self.p.clock();
        let deadline = || Deadline::after(&clock, LIMIT_NS);
        let (regs, ring) = self.p.parts();
        let wanted = ring.entries() as u64;
        let config = ChannelConfig::default();
        let mut channel = match Channel::bring_up(regs, Lent(ring), config) {
            Ok(channel) => channel,
            Err(_) => return Err(Stop::NoStart),
        };
        let found = channel.find_out(&clock, deadline());
        let stopped = channel.shutdown(&clock, deadline()).is_ok();
        match found {
            Ok(traits) if stopped => {
                let walked = u64::from(traits.ring_entries);
                self.report.ring_entries = u32::from(traits.ring_entries);
                let answer = self.ring(walked, wanted);
                self.set(Question::Ring, answer);
                Ok(())
            }
            Err(ProbeError::Faulted(Fault::DeviceGone)) => Err(Stop::Gone),
            Err(_) if stopped => Err(Stop::NoStart),
            Ok(_) | Err(_) => Err(Stop::NotStopped),
        }
    }

    /// Whether SIZE itself is limited, or the engine walks fewer entries than SIZE says.
    fn ring(&self, walked: u64, wanted: u64) -> Answer {
        if walked == wanted {
            return Answer::number("any", wanted);
        }
        let size = QueueControl::empty().with_size(wanted.trailing_zeros());
        self.p.regs().write(Register::Control, size.bits());
        let back = QueueControl::from_bits_retain(self.p.regs().read(Register::Control));
        self.p.regs().write(Register::Control, 0);
        if back.entries() == walked {
            Answer::number("reads_back", walked)
        } else if back.entries() == wanted {
            Answer::number("wraps", walked)
        } else {
            Answer::Unknown("SIZE reads back as something else than the ring that is walked")
        }
    }

    fn fill(&mut self) {
        let room = self.p.room_len_bytes();
        pattern::fill_source(self.p, self.seed, room);
    }

    pub(crate) fn queue(&mut self) -> Result<Queue<'_, P>, Stop> {
        let halts = Hypotheses::new(self.goes_on_by_tail);
        Queue::set_up(self.p, halts, ENTRIES)
    }

    /// Spoils the target, has one copy done by tail and RUN, and compares. True if all is right.
    fn copy(&mut self, command: CommandWord, from: u64, to: u64, len: u32) -> Result<bool, Stop> {
        let seed = self.seed;
        pattern::spoil_target(self.p, seed, to, from, u64::from(len));
        let mut queue = self.queue()?;
        let (src, dst) = (queue.source(from), queue.target(to));
        queue.put(command, src, dst, len);
        queue.go();
        let came = queue.wait(LIMIT_NS)?;
        let done = match came {
            Came::Drained => true,
            Came::Failed => {
                queue.recover();
                false
            }
            Came::Nothing => return Err(Stop::NotStopped),
        };
        let right = done && self.compare(from, to, u64::from(len));
        Ok(right)
    }

    /// Compares a copy of which the engine has told no failure.
    fn compare(&mut self, from: u64, to: u64, len: u64) -> bool {
        let right = pattern::has_arrived(self.p, self.seed, to, from, len);
        self.report.compared_bytes = self.report.compared_bytes.saturating_add(len);
        if !right {
            self.report.wrong_copies = self.report.wrong_copies.saturating_add(1);
        }
        right
    }

    /// What sets a drained queue going. The answer is certain one way: a head that moved.
    fn restart(&mut self) -> Result<(), Stop> {
        let right = self.copy(CommandWord::COPY, 0, 0, COPY_LEN_BYTES)?;
        self.set(
            Question::Plain,
            Answer::is(if right { "completes" } else { "fails" }),
        );
        let mut queue = self.queue()?;
        let (src, dst) = (queue.source(0), queue.target(0));
        queue.put(CommandWord::COPY, src, dst, 32);
        queue.go();
        queue.wait_drained()?;
        let mut by_tail = false;
        for _ in 0..TRIES {
            queue.put(CommandWord::COPY, src, dst, 32);
            queue.move_tail();
            match queue.wait(SILENCE_NS)? {
                Came::Drained => {
                    by_tail = true;
                    break;
                }
                Came::Failed => return Err(Stop::NoStart),
                Came::Nothing => {
                    queue.run();
                    queue.wait_drained()?;
                }
            }
        }
        self.goes_on_by_tail = by_tail;
        let word = if by_tail { "tail" } else { "run" };
        self.set(Question::Restart, Answer::is(word));
        Ok(())
    }

    /// HALT and RUN in all their uses, and what an error does.
    fn halt_and_errors(&mut self) -> Result<(), Stop> {
        let seed = self.seed;
        let room = self.p.room_len_bytes();
        let refusing = self.p.refusing();
        let mut queue = self.queue()?;
        let (read_ns, write_ns) = measure::accesses(&queue);
        let (src, dst) = (queue.source(0), queue.target(0));
        queue.put(CommandWord::COPY, src, dst, 32);
        queue.go();
        queue.wait_drained()?;
        let drained = queue.look_at_control()?;
        queue.stop_idle();
        let stopped = queue.look_at_control()?;
        queue.stop_idle();
        let written_again = queue.look_at_control()?;
        let busy = while_busy(&mut queue, room)?;
        let mut at_work = None;
        for _ in 0..TRIES {
            at_work = stop_at_work(&mut queue, room)?;
            if at_work.is_some() {
                break;
            }
        }
        let errors = match refusing {
            None => error_steps::Found::cannot("nothing here refuses a write: it takes an IOMMU"),
            Some(refusing) => error_steps::ask(&mut queue, refusing, seed)?,
        };
        let answers = [
            (Question::Halt, queue.halts.halt()),
            (Question::IdleStop, queue.halts.idle_stop()),
            (Question::ControlWrite, queue.halts.control_write()),
            (Question::Run, queue.halts.run()),
            (Question::Late, busy.late),
            (Question::Job, busy.job),
            (Question::Head, errors.head),
            (Question::Behind, errors.behind),
            (Question::Code, errors.code),
            (Question::ErrorOrder, errors.order),
        ];
        for (question, answer) in answers {
            self.set(question, answer);
        }
        let halt = &mut self.report.halt;
        halt.drained = Some(drained);
        halt.stopped = Some(stopped);
        halt.written_again = Some(written_again);
        halt.working = busy.working;
        halt.stopped_at_work = at_work;
        halt.error = errors.halt;
        let measured = &mut self.report.measured;
        measured.read_ns = Some(read_ns);
        measured.write_ns = Some(write_ns);
        measured.halt_late_ns = busy.late_ns;
        Ok(())
    }

    /// Which descriptors and which enable bits latch, and whether interrupts come again.
    fn interrupt_sources(&mut self) -> Result<(), Stop> {
        const BOTH: Interrupts = Interrupts::COMPLETION.union(Interrupts::ERROR);
        const IOC: CommandWord = CommandWord::COPY.union(CommandWord::IOC);
        let mut queue = self.queue()?;
        queue.write(Register::InterruptEnable, BOTH.bits());
        let reads = queue.read(Register::InterruptEnable) == BOTH.bits();
        let with_both = latches(&mut queue, BOTH, CommandWord::COPY_IOC)?;
        let with_ioc = latches(&mut queue, BOTH, IOC)?;
        let while_off = latches(&mut queue, Interrupts::empty(), CommandWord::COPY_IOC)?;
        queue.write(Register::InterruptEnable, Interrupts::ERROR.bits());

        let never = Answer::Unknown("COMPLETION never latched");
        let completion = match (with_both, with_ioc) {
            (true, true) => Answer::is("ioc"),
            (true, false) => Answer::is("ioc_eom"),
            (false, _) => never,
        };
        let latch = match (with_both, while_off) {
            (true, true) => Answer::is("always"),
            (true, false) => Answer::is("enabled"),
            (false, _) => never,
        };
        let mut times = [0; INTERRUPTS];
        let rearm = interrupts(&mut queue, &mut times)?;
        let all_came = rearm == Answer::is("comes");
        self.set(
            Question::Enable,
            Answer::is(if reads { "reads_back" } else { "does_not" }),
        );
        self.set(Question::Completion, completion);
        self.set(Question::Latch, latch);
        self.set(Question::Rearm, rearm);
        if all_came {
            self.report.measured.interrupt_ns = Some(measure::median(&mut times));
        }
        Ok(())
    }

    /// What the engine does without bus mastering. "Waits" is certain only if nothing happened
    /// several times.
    fn bus_master(&mut self) -> Result<(), Stop> {
        let mut answer = Answer::Unknown("the function's command register does not obey");
        for _ in 0..TRIES {
            let mut queue = self.queue()?;
            if !queue.p.set_bus_master(false) {
                queue.p.set_bus_master(true);
                break;
            }
            let (src, dst) = (queue.source(0), queue.target(0));
            queue.put(CommandWord::COPY, src, dst, COPY_LEN_BYTES);
            queue.go_from_rest();
            let came = queue.wait(SILENCE_NS);
            if !queue.p.set_bus_master(true) {
                return Err(Stop::Gone);
            }
            answer = match came? {
                Came::Failed => {
                    queue.recover();
                    Answer::is("fails")
                }
                Came::Drained => Answer::is("ignored"),
                Came::Nothing => match queue.wait(LIMIT_NS)? {
                    Came::Drained => Answer::is("holds"),
                    Came::Failed => {
                        queue.recover();
                        Answer::is("fails")
                    }
                    Came::Nothing => return Err(Stop::NotStopped),
                },
            };
            if answer != Answer::is("holds") {
                break;
            }
        }
        self.set(Question::BusMaster, answer);
        Ok(())
    }

    /// Lengths, alignment, and whether bytes are there once head has passed.
    fn lengths(&mut self) -> Result<(), Stop> {
        let room = self.p.room_len_bytes();
        let mut longest = 0;
        let mut len = 32_u64;
        while len <= room {
            let Ok(short) = u32::try_from(len) else { break };
            if !self.copy(CommandWord::COPY, 0, 0, short)? {
                break;
            }
            longest = len;
            len = len.saturating_mul(2);
        }
        self.set(Question::Longest, Answer::number("bytes", longest));

        let aligned = self.odd_copies()?;
        self.set(
            Question::Alignment,
            Answer::is(if aligned { "works" } else { "fails" }),
        );

        let mut arrived = true;
        for n in 0..ARRIVALS {
            let len = u64::from(COPY_LEN_BYTES);
            let slices = room / len;
            let (from, to) = (n % slices * len, (n * 7) % slices * len);
            arrived &= self.copy(CommandWord::COPY, from, to, COPY_LEN_BYTES)?;
        }
        self.set(
            Question::Arrival,
            Answer::is(if arrived { "there" } else { "missing" }),
        );
        let boundary = self.boundary()?;
        self.set(Question::Boundary, boundary);
        Ok(())
    }

    /// Copies at addresses and of lengths that are multiples of nothing, with the bytes around
    /// them left alone.
    fn odd_copies(&mut self) -> Result<bool, Stop> {
        /// Bytes that are looked at on each side.
        const AROUND: u64 = 64;
        let mut all = true;
        for (n, len) in (0_u64..).zip([1_u32, 3, 31, 33, 63, 65, 127, 4095, 4097, 5000]) {
            let (from, to) = (n * 733 % 4096 + 1, 8192 + n * 1021 % 4096 + 1);
            let whole = u64::from(len).saturating_add(2 * AROUND);
            // The inverse of what a longer copy would bring.
            let around = from.saturating_sub(AROUND.min(from));
            let before = from.saturating_sub(around);
            pattern::spoil_target(self.p, self.seed, to - before, around, whole);
            all &= self.copy(CommandWord::COPY, from, to, len)?;
            let end = u64::from(len);
            let clean = pattern::is_untouched(self.p, self.seed, to - before, around, before)
                && pattern::is_untouched(self.p, self.seed, to + end, from + end, AROUND);
            if !clean {
                self.report.wrong_copies = self.report.wrong_copies.saturating_add(1);
            }
            all &= clean;
        }
        Ok(all)
    }

    fn boundary(&mut self) -> Result<Answer, Stop> {
        /// Bytes on each side of the boundary.
        const HALF: u32 = 512;
        let Some(across) = self.p.across_4_gib() else {
            return Ok(Answer::Unknown("no memory lies across a multiple of 4 GiB"));
        };
        let start = u64::from(4096 - HALF);
        self.p.write_across(start, &[0; 2 * HALF as usize]);
        let mut queue = self.queue()?;
        let src = queue.source(0);
        let dst = DmaAddr::new(across.get().saturating_add(start));
        queue.put(CommandWord::COPY, src, dst, 2 * HALF);
        queue.go();
        match queue.wait(LIMIT_NS)? {
            Came::Drained => {}
            Came::Failed => {
                queue.recover();
                return Ok(Answer::is("fails"));
            }
            Came::Nothing => return Err(Stop::NotStopped),
        }
        let mut bytes = [0; 2 * HALF as usize];
        self.p.read_across(start, &mut bytes);
        let expected = (0..).map(|at| pattern::byte(self.seed, at));
        let right = bytes
            .into_iter()
            .zip(expected)
            .all(|(is, wanted)| is == wanted);
        Ok(Answer::is(if right { "works" } else { "wrong_bytes" }))
    }

    fn measure(&mut self) -> Result<(), Stop> {
        let walked = self.report.ring_entries as usize;
        let entries = FULL_ENTRIES.min(walked).max(ENTRIES);
        let halts = || Hypotheses::new(self.goes_on_by_tail);
        let mut queue = Queue::set_up(self.p, halts(), entries)?;
        let lone = measure::lone_copy(&mut queue)?;
        let descriptor = measure::descriptor(&mut queue, lone)?;
        let mut queue = Queue::set_up(self.p, halts(), ENTRIES)?;
        let mut rates = [None; measure::MEASURED_LENGTHS.len()];
        for (rate, len) in rates.iter_mut().zip(measure::MEASURED_LENGTHS) {
            *rate = measure::rate(&mut queue, len)?;
        }
        let measured = &mut self.report.measured;
        measured.lone_copy_ns = Some(lone);
        measured.descriptor_ns = Some(descriptor);
        measured.rates = rates;
        Ok(())
    }

    /// What may cost the function; with consent only.
    fn reset_and_unknown_engine(&mut self, consent: Consent) -> Result<(), Stop> {
        const CONSENT: &str = "not asked: a function may be lost by it until the power goes off";
        const NO_RESET: &str = "not asked: no reset of the function would end a hang";
        let no_engine = |asker: &mut Self, why| {
            asker.set(Question::Engine, Answer::Unknown(why));
            asker.set(Question::RefusedHead, Answer::Unknown(why));
        };
        if !consent.reset {
            self.set(Question::Reset, Answer::Unknown(CONSENT));
            self.set(Question::Pointers, Answer::Unknown(CONSENT));
            no_engine(self, CONSENT);
            return Ok(());
        }
        no_engine(self, NO_RESET);
        // So that there is something to forget.
        let mut queue = self.queue()?;
        let (src, dst) = (queue.source(0), queue.target(0));
        queue.put(CommandWord::COPY, src, dst, 32);
        queue.go();
        queue.wait_drained()?;
        let start = self.p.clock().now();
        let outcome = self.p.reset();
        let ns = self.p.clock().now().wrapping_sub(start);
        match outcome {
            ResetOutcome::Works => {}
            ResetOutcome::Absent => {
                self.set(Question::Reset, Answer::is("absent"));
                let why = Answer::Unknown("the function has no reset");
                self.set(Question::Pointers, why);
                return Ok(());
            }
            ResetOutcome::Untried(why) => {
                self.set(Question::Reset, Answer::Unknown(why));
                self.set(Question::Pointers, Answer::Unknown(why));
                return Ok(());
            }
            ResetOutcome::Lost => {
                self.set(Question::Reset, Answer::is("lost"));
                let why = Answer::Unknown("the function is lost");
                self.set(Question::Pointers, why);
                return Err(Stop::Lost);
            }
        }
        let regs = self.p.regs();
        let (head, tail) = (regs.read(Register::Head), regs.read(Register::Tail));
        let control = QueueControl::from_bits_retain(regs.read(Register::Control));
        let forgot = !control.intersects(QueueControl::SIZE | QueueControl::BASE_HIGH);
        self.set(
            Question::Reset,
            Answer::is(if forgot { "works" } else { "no_effect" }),
        );
        self.set(
            Question::Pointers,
            Answer::is(match (head, tail) {
                (0, 0) => "zero",
                _ => "not_zero",
            }),
        );
        self.report.measured.reset_ns = Some(ns);
        if !forgot {
            return Ok(());
        }
        self.bring_up_again()?;
        self.unknown_engine()
    }

    /// The registers that the driver programs beside the queue.
    fn bring_up_again(&mut self) -> Result<(), Stop> {
        let clock = self.p.clock();
        let (regs, ring) = self.p.parts();
        let channel = Channel::bring_up(regs, Lent(ring), ChannelConfig::default());
        let channel = channel.map_err(|_| Stop::NoStart)?;
        let deadline = Deadline::after(&clock, LIMIT_NS);
        channel
            .shutdown(&clock, deadline)
            .map(drop)
            .map_err(|_| Stop::NotStopped)
    }

    /// A descriptor for an engine that no function has, followed by a good one.
    fn unknown_engine(&mut self) -> Result<(), Stop> {
        /// Any number but 5, which stands for pass-through. 15 is the one that the driver's own
        /// probe uses: all bits of the field.
        const OTHER: CommandWord = CommandWord::COPY.union(CommandWord::ENGINE);
        let len = u64::from(COPY_LEN_BYTES);
        let seed = self.seed;
        pattern::spoil_target(self.p, seed, 0, 0, 2 * len);
        let mut queue = self.queue()?;
        let first = queue.next_slot();
        for (at, command) in [(0, OTHER), (len, CommandWord::COPY)] {
            let (src, dst) = (queue.source(at), queue.target(at));
            queue.put(command, src, dst, COPY_LEN_BYTES);
        }
        queue.go_from_rest();
        // Twenty times the silence: what hangs is reset, and a reset is not free.
        let (engine, head) = match queue.wait(STILL * SILENCE_NS)? {
            Came::Failed => {
                let head = error_steps::word_of_head(queue.head_from(first), 0, 2);
                queue.recover();
                (Answer::is("refused"), head)
            }
            Came::Drained => {
                let ran = pattern::has_arrived(self.p, seed, 0, 0, len);
                let word = if ran { "taken" } else { "ignored" };
                (Answer::is(word), Answer::Unknown("it was not refused"))
            }
            Came::Nothing => match self.p.reset() {
                ResetOutcome::Works => {
                    self.bring_up_again()?;
                    (Answer::is("hangs"), Answer::Unknown("it was not refused"))
                }
                ResetOutcome::Lost => return Err(Stop::Lost),
                ResetOutcome::Absent | ResetOutcome::Untried(_) => return Err(Stop::NotStopped),
            },
        };
        self.set(Question::Engine, engine);
        self.set(Question::RefusedHead, head);
        Ok(())
    }
}

/// Why nothing was seen of an engine at work.
const OVER: Answer = Answer::Unknown("the longest work was over before");

/// What was seen while the engine worked.
struct Busy {
    late: Answer,
    late_ns: Option<u64>,
    working: Option<bool>,
    job: Answer,
}

/// Puts some of the longest copies into the ring: work that lasts.
fn put_work<P: Platform>(queue: &mut Queue<'_, P>, room: u64, count: usize) {
    let len = u32::try_from(room).unwrap_or(1 << 30);
    let (src, dst) = (queue.source(0), queue.target(0));
    for _ in 0..count {
        queue.put(CommandWord::COPY, src, dst, len);
    }
}

/// What HALT read after RUN.
struct AfterRun {
    /// Reads until it was 0.
    reads: u64,
    ns: u64,
    /// Whether the engine was at work to the end; HALT fell, or did not.
    fell: Option<bool>,
}

/// Has the engine do some of the longest copies, and reads HALT until it is 0. A ring that runs low
/// is filled up, so that the engine does not come to an end before HALT falls. The engine may still
/// be at work afterwards.
fn read_halt_at_work<P: Platform>(queue: &mut Queue<'_, P>, room: u64, count: usize) -> AfterRun {
    let halt = |queue: &Queue<'_, P>| {
        let control = queue.read(Register::Control);
        control & QueueControl::HALT.bits() != 0
    };
    /// Copies that are left when more are put into the ring: it has 31.
    const LOW: usize = 8;
    put_work(queue, room, count);
    queue.move_tail();
    queue.run();
    let start = queue.now();
    let mut reads = 0_u64;
    let mut fell = !halt(queue);
    while !fell && queue.now().wrapping_sub(start) < LIMIT_NS {
        // How far the tail is ahead of head; 0 is a ring that was drained.
        let behind = queue.head_from(queue.next_slot());
        let left = behind.map_or(0, |slots| queue.entries.wrapping_sub(slots));
        if left == 0 || left == queue.entries {
            break;
        }
        reads = reads.saturating_add(1);
        if left < LOW {
            put_work(queue, room, LOW);
            queue.move_tail();
        }
        fell = !halt(queue);
    }
    let tail = queue.address_of(queue.next_slot());
    AfterRun {
        reads,
        ns: queue.now().wrapping_sub(start),
        fell: (queue.read(Register::Head) != tail).then_some(fell),
    }
}

/// HALT and the job status while the engine works.
fn while_busy<P: Platform>(queue: &mut Queue<'_, P>, room: u64) -> Result<Busy, Stop> {
    /// Attempts, and longest copies in each: a program that has to wait for its turn between RUN
    /// and the first look misses a HALT that is late for a short time.
    const ATTEMPTS: u32 = 8;
    const FEW: usize = 4;
    let mut was_late = false;
    for _ in 0..ATTEMPTS {
        was_late |= read_halt_at_work(queue, room, FEW).reads > 0;
        queue.wait_drained()?;
        if was_late {
            break;
        }
    }
    let mut busy = Busy {
        late: OVER,
        late_ns: None,
        working: None,
        job: OVER,
    };
    for _ in 0..TRIES {
        busy = look_at_work(queue, room, was_late);
        queue.wait_drained()?;
        if busy.working.is_some() && busy.job != OVER {
            break;
        }
    }
    if busy.working == Some(true) {
        queue.halts.fits_none();
    }
    Ok(busy)
}

/// One look at HALT and at the job status of an engine that has a whole ring to do.
fn look_at_work<P: Platform>(queue: &mut Queue<'_, P>, room: u64, was_late: bool) -> Busy {
    /// The job status in the status register.
    const JOB: u32 = 0b111 << 7;
    let whole = queue.entries.saturating_sub(1);
    let after = read_halt_at_work(queue, room, whole);
    let tail = queue.address_of(queue.next_slot());
    let works = |queue: &Queue<'_, P>| queue.read(Register::Head) != tail;
    let working = after.fell.map(|fell| !fell);
    let late = match (working, after.reads > 0 || was_late) {
        (None, _) => OVER,
        (Some(false), false) => Answer::is("no"),
        (Some(false), true) => Answer::is("yes"),
        (Some(true), _) => Answer::Unknown("HALT reads 1 as long as the engine works"),
    };
    // The status has the code of an error, which may go when it is read: none is pending now.
    let mut filled = false;
    for _ in 0..JOB_LOOKS {
        let status = queue.read(Register::Status);
        filled |= status != ALL_ONES && status & JOB != 0;
        if filled {
            break;
        }
    }
    let job = match (filled, works(queue)) {
        (true, _) => Answer::is("filled"),
        (false, true) => Answer::is("absent"),
        (false, false) => OVER,
    };
    Busy {
        late,
        late_ns: (after.reads > 0).then_some(after.ns),
        working,
        job,
    }
}

/// HALT of an engine that was stopped with work left; nothing if it drained the ring before.
fn stop_at_work<P: Platform>(queue: &mut Queue<'_, P>, room: u64) -> Result<Option<bool>, Stop> {
    let len = u32::try_from(room).unwrap_or(1 << 30);
    let (src, dst) = (queue.source(0), queue.target(0));
    queue.put(CommandWord::COPY, src, dst, len);
    let start = queue.now();
    queue.go();
    queue.wait_drained()?;
    let one = queue.now().wrapping_sub(start);
    put_work(queue, room, queue.entries.saturating_sub(1));
    queue.go();
    let tail = queue.address_of(queue.next_slot());
    queue.write_stop();
    let still = one.saturating_mul(STILL).max(SILENCE_NS);
    let begin = queue.now();
    while !queue.head_rests(still) {
        if queue.now().wrapping_sub(begin) > LIMIT_NS + 40 * still {
            return Err(Stop::NotStopped);
        }
    }
    if queue.read(Register::Head) == tail {
        // Before the stop, after it, or in spite of it.
        queue.halts.lose_track();
        return Ok(None);
    }
    queue.halts.follow(Event::Drained);
    queue.halts.follow(Event::Run { work: true });
    queue.halts.follow(Event::Stop { work_left: true });
    let halt = queue.look_at_control()?;
    queue.run();
    queue.wait_drained()?;
    Ok(Some(halt))
}

/// Whether a copy with this command latches COMPLETION while these sources are on.
fn latches<P: Platform>(
    queue: &mut Queue<'_, P>,
    enable: Interrupts,
    command: CommandWord,
) -> Result<bool, Stop> {
    queue.write(Register::InterruptEnable, enable.bits());
    queue.clear_status();
    let (src, dst) = (queue.source(0), queue.target(0));
    queue.put(command, src, dst, COPY_LEN_BYTES);
    queue.go();
    queue.wait_drained()?;
    let mut latched = false;
    for _ in 0..crate::queue::REST_LOOKS {
        latched |= queue.interrupts().contains(Interrupts::COMPLETION);
        if latched {
            break;
        }
    }
    queue.clear_status();
    Ok(latched)
}

/// One interrupt after the other, the status cleared in between; and how long each took.
fn interrupts<P: Platform>(
    queue: &mut Queue<'_, P>,
    times: &mut [u64; INTERRUPTS],
) -> Result<Answer, Stop> {
    const BOTH: Interrupts = Interrupts::COMPLETION.union(Interrupts::ERROR);
    queue.clear_status();
    // Those of earlier steps.
    if queue.p.take_interrupt(0).is_none() {
        return Ok(Answer::Unknown("interrupts cannot be taken here"));
    }
    queue.write(Register::InterruptEnable, BOTH.bits());
    let (src, dst) = (queue.source(0), queue.target(0));
    let mut came = 0;
    for time in times.iter_mut() {
        queue.put(CommandWord::COPY_IOC, src, dst, 32);
        let start = queue.now();
        queue.go();
        if queue.p.take_interrupt(INTERRUPT_NS) == Some(true) {
            came += 1;
            *time = queue.now().wrapping_sub(start);
        }
        queue.wait_drained()?;
        queue.clear_status();
    }
    queue.write(Register::InterruptEnable, Interrupts::ERROR.bits());
    Ok(match came {
        INTERRUPTS => Answer::is("comes"),
        0 => Answer::is("none_came"),
        _ => Answer::is("lost"),
    })
}
