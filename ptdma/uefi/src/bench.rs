//! The trial: channels brought up, lists copied by one and by all, every byte compared.

use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ops::Range;

use ptdma::{
    BringUpError, Channel, ChannelConfig, Channels, Clock, CoherentRing, DmaAddr, EngineTraits,
    EntryResult, ErrorCode, Fault, FunctionQuiesced, ListCopy, Mmio, NotStopped, Notify, Observer,
    ProbeError, Progress, PtdmaQueue, Segment, ServiceState, SharedChannel, Stats, Terminated,
};
use ptdma_uefi::pci::{self, Saved, Unproved};
use ptdma_uefi::work::{Copy, Kind, Work, lay_out};
use uefi::println;

use crate::firmware::{Location, Machine, Pages, Ticks, registers};

/// Functions that take part: machines have up to 64.
pub(crate) const MAX_FUNCTIONS: usize = 64;
/// Descriptors of a ring. A page holds them, which is as aligned as such a ring must be.
const RING_ENTRIES: usize = 128;
/// How long an engine may stand still. The longest copy, 1 MiB, takes 250 us at 4 GB/s, the slowest that was published. An
/// emulated engine may wait seconds for its turn on a busy machine.
const COPY_MS: u64 = 3_000;
/// An engine shows what it is like within microseconds; an emulated one as above: one second was
/// seen to be too short.
const FIND_OUT_MS: u64 = 3_000;
/// An engine halts when its descriptor is done, within the same 250 us.
const STOP_MS: u64 = 100;
/// How often the list of pages is copied by all together: so that failures that are rare, and
/// functions that stop after a while, come to light.
const ROUNDS: u64 = 8;

type Ring = CoherentRing;
type Regs = Mmio;
type Driver = Channel<Regs, Ring>;
type Queue<'n> = PtdmaQueue<Regs, Ring, Ticks, &'n Notes>;
type Shared<'n> = Channels<Queue<'n>, spin::Mutex<SharedChannel<Queue<'n>>>, MAX_FUNCTIONS>;

/// What a channel has reported while it copied a list.
#[derive(Default)]
struct Notes {
    first_code: Cell<Option<ErrorCode>>,
    stops: Cell<u64>,
}

impl Observer for &Notes {
    fn noticed(&self, progress: &Progress) {
        if let (Some(failure), None) = (progress.failure, self.first_code.get()) {
            self.first_code.set(Some(failure.code));
        }
    }
    fn faulted(&self, _fault: Fault) {}
    fn terminated(&self, _terminated: &Terminated) {
        self.stops.set(self.stops.get() + 1);
    }
    fn not_stopped(&self, _not_stopped: &NotStopped) {
        self.stops.set(self.stops.get() + 1);
    }
}

/// Why a function is of no use any more, or never was.
#[derive(Clone, Copy)]
pub(crate) enum Lost {
    /// It has no registers on the bus.
    NoRegisters,
    /// The firmware has no memory for a ring.
    NoMemory,
    /// Its channel does not come up.
    BringUp(BringUpError),
    /// Its engine does not do the least copy; it was stopped by a reset.
    Silent(ProbeError),
    /// It could not be proved stopped; what it may write is kept.
    Unproved(Unproved),
}

/// A function and what it has done.
pub(crate) struct Function {
    pub(crate) location: Location,
    saved: Option<Saved>,
    at: u64,
    ring: Option<Pages>,
    /// Usable descriptors of its ring.
    pub(crate) capacity: usize,
    pub(crate) stats: Stats,
    /// What its engine is like, if it has shown it.
    pub(crate) traits: Option<EngineTraits>,
    /// Code of the first descriptor that it failed.
    pub(crate) first_code: Option<ErrorCode>,
    /// Times that it had to be stopped, and that only a reset did it.
    pub(crate) stops: u64,
    pub(crate) resets: u64,
    /// Bytes that were wrong where it copied alone.
    pub(crate) wrong: u64,
    pub(crate) lost: Option<Lost>,
}

/// The trial of a machine.
pub(crate) struct Bench {
    pub(crate) machine: Machine,
    pub(crate) ticks: Ticks,
    pub(crate) functions: Vec<Function>,
    /// Channels that work, with the numbers of their functions.
    channels: Vec<(usize, Driver)>,
    /// Bytes that are not what they should be, and of which no failure was told.
    pub(crate) wrong: u64,
    /// Bytes that are never given back, because an engine may still write them.
    pub(crate) kept: u64,
    /// Lists that could not be tried.
    pub(crate) untried: u64,
}

impl Bench {
    pub(crate) fn new(machine: Machine) -> Self {
        let functions = machine
            .functions
            .iter()
            .take(MAX_FUNCTIONS)
            .map(|&location| Function {
                location,
                saved: None,
                at: 0,
                ring: None,
                capacity: 0,
                stats: Stats::default(),
                traits: None,
                first_code: None,
                stops: 0,
                resets: 0,
                wrong: 0,
                lost: None,
            })
            .collect();
        Self {
            machine,
            ticks: Ticks::measure(),
            functions,
            channels: Vec::new(),
            wrong: 0,
            kept: 0,
            untried: 0,
        }
    }

    /// Brings every function's channel up.
    pub(crate) fn bring_up(&mut self) {
        for number in 0..self.functions.len() {
            let mut found = self.open_and_find_out(number);
            if matches!(found, Err(Lost::Silent(_))) {
                // It was reset: a new start, which is what helps if anything does.
                self.give_back(number);
                found = self.open_and_find_out(number);
            }
            match found {
                Ok(channel) => {
                    self.functions[number].capacity = channel.capacity();
                    self.channels.push((number, channel));
                }
                Err(lost) => {
                    self.functions[number].lost = Some(lost);
                    if !matches!(lost, Lost::Unproved(_)) {
                        self.give_back(number);
                    }
                }
            }
        }
    }

    fn open_and_find_out(&mut self, number: usize) -> Result<Driver, Lost> {
        let channel = self.open(number)?;
        self.find_out(number, channel)
    }

    fn open(&mut self, number: usize) -> Result<Driver, Lost> {
        let function = &mut self.functions[number];
        let location = function.location;
        let gone = Lost::Unproved(Unproved::Gone);
        let (saved, at) = self
            .machine
            .config(location, |config| {
                let saved = Saved::take(config);
                pci::switch_on(config);
                (saved, pci::registers(config))
            })
            .ok_or(gone)?;
        function.saved = Some(saved);
        function.at = at.ok_or(Lost::NoRegisters)?;
        let regs = registers(function.at).ok_or(Lost::NoRegisters)?;
        let pages = Pages::allocate_ring(RING_ENTRIES * ptdma::descriptor::DESCRIPTOR_LEN_BYTES)
            .map_err(|_| Lost::NoMemory)?;
        // SAFETY: the pages hold that many descriptors, are this ring's alone, are mapped for the
        // device one to one, and are not freed before the channel has given the ring back.
        let ring = unsafe { CoherentRing::new(pages.start(), pages.bus_address(), RING_ENTRIES) };
        function.ring = Some(pages);
        match Driver::bring_up(regs, ring, ChannelConfig::default()) {
            Ok(channel) => Ok(channel),
            Err((BringUpError::StillRunning { .. }, regs, ring)) => {
                // Somebody before us left it at work. A reset is the end of that.
                function.resets += 1;
                self.machine
                    .reset(location, &saved, &regs)
                    .map_err(Lost::Unproved)?;
                Driver::bring_up(regs, ring, ChannelConfig::default())
                    .map_err(|(error, ..)| Lost::BringUp(error))
            }
            Err((error, ..)) => Err(Lost::BringUp(error)),
        }
    }

    /// Has the engine show what it is like, by copies inside its ring.
    fn find_out(&mut self, number: usize, mut channel: Driver) -> Result<Driver, Lost> {
        match channel.find_out(&self.ticks, self.ticks.after(FIND_OUT_MS)) {
            Ok(_) => Ok(channel),
            // It may do the copy later. Only a reset makes the ring ours again.
            Err(error) => match self.reset(number) {
                Ok(()) => {
                    // SAFETY: its function was reset just now, and nothing has started it since.
                    let proof = unsafe { FunctionQuiesced::by_owner() };
                    let _ = channel.shutdown_quiesced(proof);
                    Err(Lost::Silent(error))
                }
                Err(why) => Err(Lost::Unproved(why)),
            },
        }
    }

    /// Copies and compares: each channel alone, then all together.
    pub(crate) fn run(&mut self) {
        crate::report::course_head();
        for kind in [Kind::Pages, Kind::Odd] {
            let mut line = Line::new("each alone", kind);
            for (number, channel) in core::mem::take(&mut self.channels) {
                let mut channels = Vec::from([(number, channel)]);
                let seed = self.seed();
                self.round(&mut channels, kind, seed, &mut line);
                self.channels.append(&mut channels);
            }
            line.print();
        }
        for kind in Kind::ALL {
            let mut line = Line::new("together", kind);
            let rounds = if kind == Kind::Pages { ROUNDS } else { 1 };
            for _ in 0..rounds {
                let mut channels = core::mem::take(&mut self.channels);
                let seed = self.seed();
                self.round(&mut channels, kind, seed, &mut line);
                self.channels.append(&mut channels);
            }
            line.print();
        }
    }

    /// Different for every round: what an earlier one has left is not taken for a copy.
    fn seed(&self) -> u64 {
        self.ticks.now()
    }

    /// Has `channels` copy a list, and compares. Those that cannot be used any more are taken out.
    fn round(
        &mut self,
        channels: &mut Vec<(usize, Driver)>,
        kind: Kind,
        seed: u64,
        line: &mut Line,
    ) {
        if channels.is_empty() {
            return;
        }
        let alone = channels.len() == 1;
        let len = kind.arena_len_bytes(channels.len());
        let (Ok(from), Ok(to)) = (Pages::allocate(len), Pages::allocate(len)) else {
            self.untried += 1;
            println!(
                "The firmware has no 2 x {len} bytes: {} not tried.",
                kind.name()
            );
            return;
        };
        let mut room = Vec::new();
        room.resize(channels.len() * kind.copies(), Copy::default());
        let copies = lay_out(kind, channels.len(), &mut room);
        let work = Work {
            source: from.arena(),
            destination: to.arena(),
            copies,
            seed,
        };
        work.prepare();
        let list: Vec<Segment> = copies.iter().map(|copy| entry(copy, &from, &to)).collect();

        let numbers: Vec<usize> = channels.iter().map(|(number, _)| *number).collect();
        let notes: Vec<Notes> = numbers.iter().map(|_| Notes::default()).collect();
        let mut shared = Shared::new();
        for ((_, channel), notes) in channels.drain(..).zip(&notes) {
            let queue = PtdmaQueue::new(channel, None)
                .with_clock(self.ticks, self.ticks.of(STOP_MS))
                .with_observer(notes);
            // Never more than there is room for: as many functions as that were taken.
            let _ = shared.add_channel(queue);
        }
        let mut results = vec![EntryResult::default(); list.len()];
        let tried = self.copy(&shared, &list, &mut results, kind);

        let mut dead = false;
        for (channel, &number) in numbers.iter().enumerate() {
            line.descriptors += shared.channel_stats(channel).map_or(0, |s| s.submitted);
            let function = &mut self.functions[number];
            function.stops += notes[channel].stops.get();
            function.first_code = function.first_code.or(notes[channel].first_code.get());
            dead |= !self.restore(&shared, channel, number);
        }
        for (&number, queue) in numbers.iter().zip(shared.into_channels()) {
            let Some(queue) = queue else { continue };
            let channel = queue.into_channel();
            self.functions[number].stats = channel.stats();
            self.functions[number].traits = Some(channel.traits());
            // A channel that is dropped keeps its ring from ever being freed.
            if self.functions[number].lost.is_none() {
                channels.push((number, channel));
            }
        }

        if tried {
            let failed = copies.iter().zip(&results).filter(|(_, r)| !r.is_copied());
            let range = |copy: &Copy| copy.dst..copy.dst + copy.len_bytes;
            let mut excused: Vec<Range<usize>> = failed.map(|(copy, _)| range(copy)).collect();
            let found = work.check(&mut excused);
            line.channels = line.channels.max(numbers.len());
            line.right += found.right;
            line.wrong += found.wrong + found.stray;
            line.not_copied += found.excused;
            self.wrong += found.wrong + found.stray;
            if alone {
                self.functions[numbers[0]].wrong += found.wrong + found.stray;
            }
        }
        if dead {
            self.kept += 2 * len as u64;
        } else {
            // SAFETY: the list is over, and every engine that was not proved stopped was reset: none
            // will touch the list's memory. The arenas of `work` are not used below.
            unsafe { from.free() };
            // SAFETY: as above.
            unsafe { to.free() };
        }
    }

    /// Copies a list. Returns whether it was tried.
    fn copy(
        &mut self,
        shared: &Shared<'_>,
        list: &[Segment],
        results: &mut [EntryResult],
        kind: Kind,
    ) -> bool {
        let (ticks, hang) = (self.ticks, self.ticks.of(COPY_MS));
        match ListCopy::start(shared, list, results, Notify::Silent, hang, ticks.now()) {
            Ok(mut copy) => {
                // Time for one engine to be stopped, and for the others to go on meanwhile.
                let deadline = ticks.after(2 * COPY_MS);
                if copy.wait(&ticks, deadline, core::hint::spin_loop).is_err() {
                    copy.stop(ticks.now());
                }
                true
            }
            Err(error) => {
                self.untried += 1;
                println!("The list of {} was refused: {error}.", kind.name());
                false
            }
        }
    }

    /// Gets a channel back that does not work any more, by a reset of its function. Returns `false`
    /// if its engine may still write.
    fn restore(&mut self, shared: &Shared<'_>, channel: usize, number: usize) -> bool {
        let faulted = |queue: &mut Queue<'_>| queue.channel().fault().is_some();
        let unproven = shared.service(channel) == Some(ServiceState::Unproven);
        if !unproven && shared.with_channel(channel, faulted) != Some(true) {
            return true;
        }
        let lost = match self.reset(number) {
            Ok(()) => {
                // SAFETY: its function was reset just now, and nothing has started it since.
                let proof = unsafe { FunctionQuiesced::by_owner() };
                let recover = |queue: &mut Queue<'_>| queue.channel().recover(proof);
                match shared.with_channel(channel, recover) {
                    Some(Err((error, _))) => Lost::BringUp(error),
                    _ => return true,
                }
            }
            Err(why) => Lost::Unproved(why),
        };
        self.functions[number].lost = Some(lost);
        !matches!(lost, Lost::Unproved(_))
    }

    /// Stops every engine and gives back what can be given back.
    pub(crate) fn shut_down(&mut self) {
        for (number, channel) in core::mem::take(&mut self.channels) {
            self.functions[number].stats = channel.stats();
            let stopped = match channel.shutdown(&self.ticks, self.ticks.after(STOP_MS)) {
                Ok(_) => Ok(()),
                Err((_, channel)) => self.reset(number).map(|()| {
                    // SAFETY: its function was reset just now, and nothing has started it since.
                    let proof = unsafe { FunctionQuiesced::by_owner() };
                    let _ = channel.shutdown_quiesced(proof);
                }),
            };
            match stopped {
                Ok(()) => self.give_back(number),
                Err(why) => self.functions[number].lost = Some(Lost::Unproved(why)),
            }
        }
        let rings = self.functions.iter().filter(|one| one.ring.is_some());
        self.kept +=
            (rings.count() * RING_ENTRIES * ptdma::descriptor::DESCRIPTOR_LEN_BYTES) as u64;
    }

    /// The functions that did all that they were to do.
    pub(crate) fn in_order(&self) -> Vec<Location> {
        let whole = |one: &&Function| {
            one.lost.is_none() && one.stops == 0 && one.wrong == 0 && one.stats.failed == 0
        };
        let functions = self.functions.iter().filter(whole);
        functions.map(|one| one.location).collect()
    }

    /// Frees the ring of a function whose channel has given it back, or never took it, and leaves
    /// the function as it was found.
    fn give_back(&mut self, number: usize) {
        let function = &mut self.functions[number];
        if let Some(ring) = function.ring.take() {
            // SAFETY: the channel has given its ring back: the engine was proved stopped, or was
            // never set running on it.
            unsafe { ring.free() };
        }
        if let Some(saved) = function.saved {
            self.machine
                .config(function.location, |config| saved.restore(config));
        }
    }

    /// Resets a function, as the proof that its engine has stopped.
    fn reset(&mut self, number: usize) -> Result<(), Unproved> {
        let function = &mut self.functions[number];
        let (Some(saved), Some(regs)) = (function.saved, registers(function.at)) else {
            return Err(Unproved::Gone);
        };
        self.machine.reset(function.location, &saved, &regs)?;
        function.resets += 1;
        Ok(())
    }
}

fn entry(copy: &Copy, from: &Pages, to: &Pages) -> Segment {
    let at = |pages: &Pages, offset: usize| DmaAddr::new(pages.bus_address().get() + offset as u64);
    Segment {
        src: at(from, copy.src),
        dst: at(to, copy.dst),
        len_bytes: copy.len_bytes as u64,
    }
}

/// What a line of the course says.
struct Line {
    who: &'static str,
    kind: Kind,
    channels: usize,
    descriptors: u64,
    right: u64,
    wrong: u64,
    not_copied: u64,
}

impl Line {
    fn new(who: &'static str, kind: Kind) -> Self {
        Self {
            who,
            kind,
            channels: 0,
            descriptors: 0,
            right: 0,
            wrong: 0,
            not_copied: 0,
        }
    }

    fn print(&self) {
        crate::report::course(&[
            &self.who,
            &self.kind.name(),
            &self.channels,
            &self.descriptors,
            &self.right,
            &self.wrong,
            &self.not_copied,
        ]);
    }
}
