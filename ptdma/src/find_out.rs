//! Finding out what an engine does, where no public source says it.
//!
//! The means are copies of 32 bytes from one slot of the ring to another one, unused or with the
//! same content. The copies harm nobody. An engine that runs one twice, late, or out of turn leaves
//! the ring as it was.

use core::fmt;

use crate::channel::{Channel, ErrorHead, REST_LOOKS, State, has_halted, has_run};
use crate::clock::Deadline;
use crate::descriptor::CommandWord;
use crate::error::{BringUpError, Fault, NotStopped};
use crate::error_code::ErrorCode;
use crate::io::{Clock, RegisterIo, RingMemory};
use crate::regs::{ALL_ONES, Interrupts, QueueControl, Register};
use crate::ring::{HeadPosition, MIN_ENTRIES};
use crate::stats::Stats;
use crate::traits::{EngineTraits, Restart, Seen};

/// How often a copy that failed is tried again. One failure may be chance, four are not.
const TRIES: u32 = 4;
/// Fewest looks for an engine that goes on by the tail: 100 us, as a look is two reads of 100 ns or
/// more each. The sibling's boot loader counts on some time between the start and the first byte.
/// More makes bring-up longer for every engine that needs RUN: an emulated one of a virtual machine
/// takes 0.1 ms for a look.
const TAIL_LOOKS: u32 = 500;
/// How many times longer than with RUN an engine may take to go on by the tail before it is taken
/// not to. An emulated engine is a thread, which may wait for its turn; to be wrong costs a read
/// and a write for each burst.
const TAIL_PATIENCE: u32 = 2;
/// The longest ring that is used if the walk over a longer one could not be watched. Each user of
/// Linux has run with its 32 entries.
pub(crate) const PROVEN_ENTRIES: usize = 32;

/// How many tails in a row the engine has to reach, and stay at for [`REST_LOOKS`] looks, before it
/// counts as having come to each. Once may be one long copy, four times is no chance.
const ROUNDS: u32 = 4;

/// A walk over a shorter ring that is to end.
///
/// The engine is moving when the tail is put in its way. It may just be in the copy of that slot:
/// then it passes, and the head at the tail proves nothing. A head that was elsewhere since, and
/// is at the tail, proves that the engine came there and stands. An engine may also be too fast to
/// be seen elsewhere; it comes wherever the tail is put, again and again.
struct Detour {
    /// The slot of the tail.
    target: usize,
    /// Where the head was at the last look.
    slot: usize,
    /// Looks in a row that found it there.
    looks: u32,
    /// Whether the head was elsewhere since the tail was moved.
    was_elsewhere: bool,
    /// Tails in a row at which the engine was found, and nowhere else.
    rounds: u32,
}

/// What became of a copy inside the ring.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Done, after so many looks.
    Done { looks: u32 },
    /// The engine failed it.
    Failed,
    /// Neither in time.
    Silent,
}

/// Why [`Channel::find_out`] or [`Channel::probe_error_head`] found nothing out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProbeError {
    /// Work is outstanding, or the channel is paused.
    NotIdle,
    /// The engine completed a descriptor that it should refuse, or took too long over it.
    NotRefused,
    /// The engine does not do a copy of 32 bytes in time: neither the tail nor RUN sets it going.
    /// It may still do so later, and read and write the ring.
    NothingMoves {
        /// The control register.
        control: u32,
        /// The head register.
        head: u32,
        /// The tail register.
        tail: u32,
        /// The interrupt status.
        interrupts: u32,
    },
    /// The channel has a fault.
    Faulted(Fault),
    /// The queue does not take its ring again.
    BringUp(BringUpError),
    /// The engine could not be stopped afterwards.
    NotStopped(NotStopped),
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotIdle => f.write_str("the channel is not idle"),
            Self::NotRefused => f.write_str(
                "the engine completed a descriptor that it should refuse, or took too long over it",
            ),
            Self::NothingMoves {
                control,
                head,
                tail,
                interrupts,
            } => write!(
                f,
                "the engine does not start (control {control:#x}, head {head:#x}, tail {tail:#x}, interrupts {interrupts:#x}); reset the function and try again"
            ),
            Self::Faulted(fault) => fault.fmt(f),
            Self::BringUp(e) => e.fmt(f),
            Self::NotStopped(e) => e.fmt(f),
        }
    }
}

impl core::error::Error for ProbeError {}

impl From<Fault> for ProbeError {
    fn from(fault: Fault) -> Self {
        Self::Faulted(fault)
    }
}

impl<R: RegisterIo, M: RingMemory> Channel<R, M> {
    /// Finds out what sets this engine going, what its control register says meanwhile, and how
    /// long a ring it walks, and sets the channel accordingly.
    ///
    /// For bring-up, before the first submission. Only copies of 32 bytes inside the ring are run,
    /// a few more than twice the binary logarithm of its entries.
    /// [`CoherentRing`](crate::CoherentRing) has the ring's memory writable for the device. The
    /// copies take cookies. A ring that the engine walks only in part is shortened, see
    /// [`capacity`](Self::capacity).
    ///
    /// Each copy may take as long as the deadline says, from its own start on. A machine with slow
    /// registers has slow waits for what an engine does not do, and its engine is not dead. The
    /// first copy that takes longer ends the whole.
    ///
    /// If the copies fail again and again, the channel comes up all the same. It does what is right
    /// on every engine, with a ring of 32 entries at the most.
    ///
    /// # Errors
    ///
    /// [`ProbeError`]. Where nothing moves, the channel has [`Fault::Halted`]: shut it down, reset
    /// the function, and try again. A channel that is terminated or recovered instead uses 32
    /// entries of its ring at the most. The walk over the rest was not watched to its end.
    pub fn find_out<C: Clock + ?Sized>(
        &mut self,
        clock: &C,
        deadline: Deadline,
    ) -> Result<EngineTraits, ProbeError> {
        self.is_idle()?;
        // These copies are nobody's work, and count for nothing once they are over. Those that an
        // error leaves in the ring are dropped like any other, and count as such.
        let (stats, next) = (self.stats, self.ring.next());
        self.unwalked = self.ring.entries() > PROVEN_ENTRIES;
        let found = self.find_all(clock, deadline);
        let copies = self.ring.next().since(next);
        let copies = copies.saturating_sub(self.outstanding());
        self.stats = Stats {
            submitted: stats.submitted.wrapping_sub(copies),
            ..stats
        };
        found.map(|()| self.traits)
    }

    fn find_all<C: Clock + ?Sized>(
        &mut self,
        clock: &C,
        deadline: Deadline,
    ) -> Result<(), ProbeError> {
        if !self.started {
            let control = self.control_or_gone()?;
            self.traits.halt_at_rest = Seen::of(has_halted(control));
        }
        if !self.find_restart(clock, deadline)? {
            return self.use_proven_ring();
        }
        self.find_control(clock, deadline.again(clock))?;
        if self.find_length(clock, deadline)? {
            Ok(())
        } else {
            self.use_proven_ring()
        }
    }

    fn is_idle(&self) -> Result<(), ProbeError> {
        match self.state {
            State::Faulted(fault) => Err(ProbeError::Faulted(fault)),
            State::Running if self.outstanding() == 0 => Ok(()),
            State::Running | State::Paused => Err(ProbeError::NotIdle),
        }
    }

    fn control_or_gone(&mut self) -> Result<u32, Fault> {
        match self.read_control() {
            ALL_ONES => Err(self.set_fault(Fault::DeviceGone)),
            control => Ok(control),
        }
    }

    /// Whether RUN or the tail alone sets the drained queue going. False if that could not be
    /// seen, because copies fail.
    fn find_restart<C: Clock + ?Sized>(
        &mut self,
        clock: &C,
        deadline: Deadline,
    ) -> Result<bool, ProbeError> {
        // Nothing is taken for granted, whatever the owner said.
        self.traits.restart = Restart::Unknown;
        self.armed = false;
        for _ in 0..TRIES {
            let looks = match self.copy_by_run(clock, deadline.again(clock))? {
                Outcome::Done { looks } => looks,
                Outcome::Failed => continue,
                Outcome::Silent => return Err(self.nothing_moves()),
            };
            let patience = looks.saturating_mul(TAIL_PATIENCE).max(TAIL_LOOKS);
            let short = deadline.again(clock).with_poll_limit(patience);
            match self.copy_by_tail(clock, short, deadline)? {
                Outcome::Done { .. } => return Ok(true),
                Outcome::Failed => {}
                Outcome::Silent => return Err(self.nothing_moves()),
            }
        }
        Ok(false)
    }

    /// A copy that is announced by tail and RUN.
    fn copy_by_run<C: Clock + ?Sized>(
        &mut self,
        clock: &C,
        deadline: Deadline,
    ) -> Result<Outcome, ProbeError> {
        let descriptor = self.ring.copy_of_next(CommandWord::COPY);
        let Some(control) = self.still_has_ring() else {
            return Err(Fault::Reset.into());
        };
        if control == ALL_ONES {
            return Err(self.set_fault(Fault::DeviceGone).into());
        }
        if self.ring.fill(descriptor).is_none() {
            return Err(ProbeError::NotIdle);
        }
        let tail = self.ring.issue();
        self.ring_idle(control, tail);
        self.await_copy(clock, deadline)
    }

    /// A copy that is announced by the tail alone; by RUN too, if that does nothing in a `short`
    /// time.
    fn copy_by_tail<C: Clock + ?Sized>(
        &mut self,
        clock: &C,
        short: Deadline,
        deadline: Deadline,
    ) -> Result<Outcome, ProbeError> {
        let descriptor = self.ring.copy_of_next(CommandWord::COPY);
        if self.ring.fill(descriptor).is_none() {
            return Err(ProbeError::NotIdle);
        }
        let tail = self.ring.issue();
        self.regs.write(Register::Tail, tail);
        match self.await_copy(clock, short)? {
            Outcome::Done { looks } => {
                self.traits.restart = Restart::ByTail;
                self.armed = true;
                Ok(Outcome::Done { looks })
            }
            Outcome::Failed => Ok(Outcome::Failed),
            Outcome::Silent => {
                if self.still_has_ring().is_none() {
                    return Err(Fault::Reset.into());
                }
                self.start();
                let outcome = self.await_copy(clock, deadline.again(clock))?;
                if matches!(outcome, Outcome::Done { .. }) {
                    self.traits.restart = Restart::ByRun;
                }
                Ok(outcome)
            }
        }
    }

    /// Waits for the one descriptor that the engine was given, and retires it, copied or failed.
    fn await_copy<C: Clock + ?Sized>(
        &mut self,
        clock: &C,
        mut deadline: Deadline,
    ) -> Result<Outcome, ProbeError> {
        let mut looks = 0_u32;
        loop {
            // Asked before the look, so that there is a last look after the deadline: whoever
            // looks may not have run for all of the time.
            let last = deadline.expired(clock);
            let head = self.regs.read(Register::Head);
            let failed = self.error_pending()?;
            if failed {
                self.traits.failed_copies = self.traits.failed_copies.saturating_add(1);
                let _ = self.take_failure()?;
                if let State::Faulted(fault) = self.state {
                    return Err(fault.into());
                }
                return Ok(Outcome::Failed);
            }
            match self.ring.locate(head) {
                HeadPosition::Advanced(0) => {}
                HeadPosition::Advanced(count) => {
                    self.ring.retire(count);
                    return Ok(Outcome::Done { looks });
                }
                HeadPosition::Garbage => return Err(self.bad_head(head).into()),
            }
            if last {
                return Ok(Outcome::Silent);
            }
            looks = looks.saturating_add(1);
        }
    }

    /// What control and status say of the drained queue, with RUN and without.
    fn find_control<C: Clock + ?Sized>(
        &mut self,
        clock: &C,
        mut deadline: Deadline,
    ) -> Result<(), ProbeError> {
        let mut control = self.control_or_gone()?;
        // HALT may follow the head with a delay.
        for _ in 0..crate::channel::REST_LOOKS {
            if has_halted(control) || deadline.expired(clock) {
                break;
            }
            control = self.control_or_gone()?;
        }
        let status = self.regs.read(Register::Status);
        if status != ALL_ONES {
            self.note_job_status(status);
        }
        let was_halted = has_halted(control);
        self.traits.halt_drained = Seen::of(was_halted);
        self.traits.run_drained = Seen::of(has_run(control));
        self.take_run();
        let stopped = self.control_or_gone()?;
        self.traits.halt_stopped = Seen::of(has_halted(stopped));
        if was_halted {
            self.traits.halt_cleared_by_write = Seen::of(!has_halted(stopped));
        }
        Ok(())
    }

    /// Whether the engine walks the whole ring; if it wraps before, the ring is shortened. False if
    /// that could not be seen.
    ///
    /// All slots hold the same copy, of slot 0 to slot 1, which changes nothing there. The driver
    /// puts the head on the last slot of the first half, quarter ... of the ring. An engine with a
    /// shorter ring goes to slot 0 from there.
    fn find_length<C: Clock + ?Sized>(
        &mut self,
        clock: &C,
        deadline: Deadline,
    ) -> Result<bool, ProbeError> {
        let same = self.ring.copy_of_slot(CommandWord::COPY, 0, 1);
        self.ring.fill_whole(same);
        let whole = self.ring.entries();
        let mut length = MIN_ENTRIES;
        while length < whole {
            let mut tries = 0;
            let walked = loop {
                match self.walk_over(length, clock, deadline.again(clock))? {
                    None if tries < TRIES => tries = tries.saturating_add(1),
                    walked => break walked,
                }
            };
            match walked {
                None => return Ok(false),
                Some(true) => length = length.saturating_mul(2),
                Some(false) => {
                    self.use_ring_of(length)?;
                    return Ok(true);
                }
            }
        }
        self.use_ring_of(whole)?;
        Ok(true)
    }

    /// Moves the tail to a slot of a ring of `entries`, a power of two, and says which.
    fn end_walk_at(&self, slot: usize, entries: usize) -> usize {
        let slot = slot & entries.wrapping_sub(1);
        self.regs
            .write(Register::Tail, self.ring.slot_register_value(slot));
        slot
    }

    /// Whether the engine goes from the slot before `end` to that slot. Nothing if the copy there
    /// failed. The engine stands before and after, and RUN is off.
    fn walk_over<C: Clock + ?Sized>(
        &mut self,
        end: usize,
        clock: &C,
        mut deadline: Deadline,
    ) -> Result<Option<bool>, ProbeError> {
        let from = self.ring.slot_register_value(end.saturating_sub(1));
        let to = self.ring.slot_register_value(end);
        if self.still_has_ring().is_none() {
            return Err(Fault::Reset.into());
        }
        self.regs.write(Register::Tail, to);
        self.regs.write(Register::Head, from);
        self.walking = true;
        self.start();
        let all = Interrupts::KNOWN.bits();
        let mut detour: Option<Detour> = None;
        let mut failed = false;
        loop {
            let last = deadline.expired(clock);
            let head = self.regs.read(Register::Head);
            if self.error_pending()? {
                self.traits.failed_copies = self.traits.failed_copies.saturating_add(1);
                let goes_on = self.raced;
                if !goes_on {
                    self.come_to_rest(ErrorCode::from_status(0))?;
                    self.walking = false;
                }
                self.regs.write(Register::InterruptStatus, all);
                if !goes_on {
                    return Ok(None);
                }
                // RUN may have set it going over the failure: it has yet to come to its tail.
                failed = true;
            }
            let Some(slot) = self.ring.slot_of(head) else {
                return Err(self.bad_head(head).into());
            };
            match &mut detour {
                None if head == to => {
                    self.walking = false;
                    self.take_run();
                    return Ok(Some(true));
                }
                _ if slot >= end => return Err(self.bad_head(head).into()),
                None if head == from => {}
                // It walks the shorter ring, and would for ever: end that.
                None => {
                    detour = Some(Detour {
                        target: self.end_walk_at(slot.wrapping_add(end / 2), end),
                        slot,
                        looks: 0,
                        was_elsewhere: false,
                        rounds: 0,
                    });
                }
                Some(detour) => {
                    if self.has_ended(detour, slot, end)? {
                        self.walking = false;
                        self.take_run();
                        return Ok((!failed).then_some(false));
                    }
                }
            }
            if last {
                return Err(self.nothing_moves());
            }
        }
    }

    /// Whether the engine, whose head is at `slot` of a ring of `end`, has come to the end of its
    /// walk and stands. Sets it going on if it may have stopped before.
    fn has_ended(&mut self, detour: &mut Detour, slot: usize, end: usize) -> Result<bool, Fault> {
        let arrived = slot == detour.target;
        if arrived && detour.was_elsewhere {
            return Ok(true);
        }
        detour.was_elsewhere |= !arrived;
        if slot != detour.slot {
            detour.slot = slot;
            detour.looks = 0;
        }
        detour.looks = detour.looks.saturating_add(1);
        if detour.looks < REST_LOOKS {
            return Ok(false);
        }
        detour.looks = 0;
        if arrived {
            detour.rounds = detour.rounds.saturating_add(1);
            if detour.rounds >= ROUNDS {
                return Ok(true);
            }
            // As far away as can be: the engine is most likely to be seen on its way there.
            detour.target = self.end_walk_at(slot.wrapping_sub(1), end);
        }
        // The engine may have drained where the tail was before. It may also be at slot 0, if it
        // takes the tail for that one.
        if self.traits.restart == Restart::ByRun {
            self.start_again();
            if let State::Faulted(fault) = self.state {
                return Err(fault);
            }
        }
        Ok(false)
    }

    /// Goes on with a ring of that many entries. The engine stands, and RUN is off.
    fn use_ring_of(&mut self, entries: usize) -> Result<(), ProbeError> {
        if entries < self.ring.entries() && !self.shorten(entries) {
            let offset = Register::Control.offset();
            let reads = QueueControl::from_bits_retain(self.run).bits();
            return Err(self.set_fault(Fault::NotAccepted { offset, reads }).into());
        }
        self.unwalked = false;
        // All registers: a reset in between, which the ring's own would hide, took the others too.
        self.program().map_err(|e| {
            self.set_fault(Fault::of_bring_up(e));
            ProbeError::BringUp(e)
        })
    }

    /// Goes on with what needs no watching: the engine stood after the last failure.
    fn use_proven_ring(&mut self) -> Result<(), ProbeError> {
        if !self.run_taken {
            self.take_run();
        }
        self.use_ring_of(self.ring.entries().min(PROVEN_ENTRIES))
    }

    fn nothing_moves(&mut self) -> ProbeError {
        let oldest = self.ring.oldest();
        self.set_fault(Fault::Halted { oldest });
        ProbeError::NothingMoves {
            control: self.read_control(),
            head: self.regs.read(Register::Head),
            tail: self.regs.read(Register::Tail),
            interrupts: self.regs.read(Register::InterruptStatus),
        }
    }

    /// Finds out where this engine's head stays on an error, and sets the channel accordingly. It
    /// runs descriptors for an engine number that no function has (error 1, illegal engine).
    ///
    /// Not needed: an engine shows it when a descriptor fails for the first time, and the channel
    /// is right until then. For an owner who can reset the function: an engine may ignore such a
    /// descriptor, or hang on it. The descriptor reads one slot of the ring and writes another one,
    /// unused, so an engine that runs it does no harm.
    ///
    /// That a descriptor which fails while it moves data leaves the head in the same place is
    /// inferred. The channel must be idle.
    ///
    /// # Errors
    ///
    /// [`ProbeError`]: the channel was not idle, or the engine did not refuse the descriptor in
    /// time. It is terminated then, and set to [`ErrorHead::Unknown`].
    pub fn probe_error_head<C: Clock + ?Sized>(
        &mut self,
        clock: &C,
        mut deadline: Deadline,
    ) -> Result<ErrorHead, ProbeError> {
        self.is_idle()?;
        let Some(control) = self.still_has_ring() else {
            return Err(Fault::Reset.into());
        };
        let halt_deadline = deadline;
        let command = CommandWord::COPY | CommandWord::ENGINE;
        // Two, where they fit: behind one alone, "one past it" and "at the tail" are the same.
        let refused = self.ring.copy_of_next(command);
        let count = self.ring.capacity().min(2);
        for _ in 0..count {
            if self.ring.fill(refused).is_none() {
                return Err(ProbeError::NotIdle);
            }
        }
        let tail = self.ring.issue();
        self.ring_idle(control, tail);
        let found = self.await_refusal(tail, clock, &mut deadline)?;
        self.traits.error_head = found.unwrap_or_default();
        self.set_caution();
        match self.terminate(clock, halt_deadline) {
            Ok(_) => found.ok_or(ProbeError::NotRefused),
            Err(e) => Err(ProbeError::NotStopped(e)),
        }
    }

    /// Where the head is once the engine has refused the descriptors before `tail`; nothing if it
    /// has not by the deadline.
    fn await_refusal<C: Clock + ?Sized>(
        &mut self,
        tail: u32,
        clock: &C,
        deadline: &mut Deadline,
    ) -> Result<Option<ErrorHead>, Fault> {
        loop {
            let last = deadline.expired(clock);
            let head = self.regs.read(Register::Head);
            if self.error_pending()? {
                break;
            }
            // An engine that ran them: there is nothing to wait for.
            if last || head == tail {
                return Ok(None);
            }
        }
        // The head may move after the error is shown. What counts is where it comes to rest.
        self.come_to_rest(ErrorCode::from_status(0))?;
        let head = self.regs.read(Register::Head);
        match self.ring.locate(head) {
            HeadPosition::Advanced(0) if self.head_stays_at(head) => Ok(Some(ErrorHead::AtFailing)),
            HeadPosition::Advanced(1) if head != tail => Ok(Some(ErrorHead::PastFailing)),
            HeadPosition::Advanced(_) => Ok(Some(ErrorHead::Unknown)),
            HeadPosition::Garbage => Err(self.set_fault(Fault::BadHead { raw: head })),
        }
    }
}
