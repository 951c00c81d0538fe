//! The probe of functions that the trial has found in order.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ptdma::descriptor::DESCRIPTOR_LEN_BYTES;
use ptdma::{Clock, CoherentRing, DmaAddr, Mmio};
use ptdma_probe::{
    Answer, Consent, FunctionReport, MEASURED_LENGTHS, Platform, Question, Rate, ResetOutcome,
    SCHEMA, Stop, probe, together,
};
use ptdma_uefi::pci::{self, Saved};
use ptdma_uefi::table::Align::{Left, Right};
use ptdma_uefi::table::{CONSOLE_WIDTH, Table, wrapped};
use ptdma_uefi::work::Arena;
use uefi::{print, println};

use crate::firmware::{Location, Machine, Pages, Ticks, registers};

/// Entries of the ring: the most that a driver has used on silicon.
const RING_ENTRIES: usize = 8192;
const RING_LEN_BYTES: usize = RING_ENTRIES * DESCRIPTOR_LEN_BYTES;
/// Length of either buffer: 4 MiB, of which a machine with 64 functions takes 512 MiB in all.
const ROOM_LEN_BYTES: usize = 4 << 20;

const ANSWERS: Table<2> = Table([("question", 44, Left), ("answer", 33, Left)]);

const COSTS: Table<8> = Table([
    ("function", 12, Left),
    ("read ns", 8, Right),
    ("write ns", 8, Right),
    ("descr ns", 8, Right),
    ("copy ns", 9, Right),
    ("4K GB/s", 8, Right),
    ("64K GB/s", 8, Right),
    ("2M GB/s", 8, Right),
]);

const _: () = {
    assert!(ANSWERS.width() < CONSOLE_WIDTH);
    assert!(COSTS.width() < CONSOLE_WIDTH);
};

/// Time in nanoseconds.
#[derive(Clone, Copy)]
struct Nanoseconds(Ticks);

impl Clock for Nanoseconds {
    fn now(&self) -> u64 {
        self.0.nanoseconds()
    }
}

/// A function in the hands of the probe.
struct Open<'m> {
    machine: &'m Machine,
    location: Location,
    saved: Saved,
    regs: Mmio,
    ring: CoherentRing,
    ring_pages: Pages,
    source: Pages,
    target: Pages,
    clock: Nanoseconds,
}

impl<'m> Open<'m> {
    fn new(machine: &'m Machine, location: Location, ticks: Ticks) -> Option<Self> {
        let (saved, at) = machine.config(location, |config| {
            let saved = Saved::take(config);
            pci::switch_on(config);
            (saved, pci::registers(config))
        })?;
        let regs = registers(at?)?;
        // Twice as long, so that an aligned ring lies in it.
        let ring_pages = Pages::allocate(2 * RING_LEN_BYTES).ok()?;
        let source = Pages::allocate(ROOM_LEN_BYTES).ok()?;
        let target = Pages::allocate(ROOM_LEN_BYTES).ok()?;
        let start = ring_pages.bus_address().get();
        let mut base = start.next_multiple_of(RING_LEN_BYTES as u64);
        if DmaAddr::new(base).low() == 0 {
            // The ring before it begins at no multiple of 4 GiB, and is in the pages if they
            // begin there.
            base = base.checked_sub(RING_LEN_BYTES as u64)?;
        }
        let offset = usize::try_from(base.checked_sub(start)?).ok()?;
        let virt = ring_pages.part(offset, RING_LEN_BYTES)?;
        // SAFETY: within the pages, which are this ring's alone, mapped for the device one to one,
        // and never freed before the engine was seen at rest (see `close`).
        let ring = unsafe { CoherentRing::new(virt, DmaAddr::new(base), RING_ENTRIES) };
        Some(Self {
            machine,
            location,
            saved,
            regs,
            ring,
            ring_pages,
            source,
            target,
            clock: Nanoseconds(ticks),
        })
    }

    /// Gives everything back, if the engine is known to be at rest. Returns the bytes that are
    /// kept from whatever starts next.
    fn close(self, at_rest: bool) -> u64 {
        if !at_rest {
            self.machine.config(self.location, |config| {
                pci::set_bus_master(config, false);
            });
            return 2 * (RING_LEN_BYTES + ROOM_LEN_BYTES) as u64;
        }
        self.machine
            .config(self.location, |config| self.saved.restore(config));
        for pages in [self.ring_pages, self.source, self.target] {
            // SAFETY: the probe has seen the queue drained and has switched it off; the ring and
            // the arenas end with `self`.
            unsafe { pages.free() };
        }
        0
    }

    fn arena(pages: &Pages) -> Arena {
        pages.arena()
    }
}

impl Platform for Open<'_> {
    type Regs = Mmio;
    type Ring = CoherentRing;
    type Clock = Nanoseconds;

    fn parts(&mut self) -> (&Mmio, &mut CoherentRing) {
        (&self.regs, &mut self.ring)
    }
    fn regs(&self) -> &Mmio {
        &self.regs
    }
    fn clock(&self) -> Nanoseconds {
        self.clock
    }
    fn source(&self) -> DmaAddr {
        self.source.bus_address()
    }
    fn target(&self) -> DmaAddr {
        self.target.bus_address()
    }
    fn room_len_bytes(&self) -> u64 {
        ROOM_LEN_BYTES as u64
    }
    fn write_source(&mut self, at: u64, bytes: &[u8]) {
        Self::arena(&self.source).write(at as usize, bytes);
    }
    fn write_target(&mut self, at: u64, bytes: &[u8]) {
        Self::arena(&self.target).write(at as usize, bytes);
    }
    fn read_target(&self, at: u64, into: &mut [u8]) {
        Self::arena(&self.target).read(at as usize, into);
    }
    // Memory is mapped one to one here, for reading and writing.
    fn refusing(&self) -> Option<DmaAddr> {
        None
    }
    fn set_bus_master(&mut self, on: bool) -> bool {
        let set = |config: &mut crate::firmware::Space<'_>| pci::set_bus_master(config, on);
        self.machine.config(self.location, set).unwrap_or(false)
    }
    // Without an operating system, polled.
    fn take_interrupt(&mut self, _limit_ns: u64) -> Option<bool> {
        None
    }
    // Never asked for: there is nobody here to consent.
    fn reset(&mut self) -> ResetOutcome {
        ResetOutcome::Untried("`ptdma probe --reset` on Linux asks this")
    }
}

/// Probes functions one after the other, then measures all together; shows what was found. Returns
/// the bytes that an engine may still write.
pub(crate) fn run(machine: &Machine, locations: &[Location], ticks: Ticks) -> u64 {
    if locations.is_empty() {
        return 0;
    }
    println!("\nProbe ({SCHEMA}): what the engines are like, asked one by one.");
    let mut kept = 0;
    let mut told: Vec<(Location, FunctionReport)> = Vec::new();
    let mut open = Vec::new();
    for &location in locations {
        let Some(mut function) = Open::new(machine, location, ticks) else {
            println!("{location}: no memory to probe it.");
            continue;
        };
        let report = probe(&mut function, Consent::default());
        if report.stop.is_none() {
            open.push(function);
        } else {
            kept += function.close(!report.stop.is_some_and(Stop::may_write));
        }
        told.push((location, report));
    }
    show(&told);
    let mut at_rest = true;
    for len in [MEASURED_LENGTHS[2], MEASURED_LENGTHS[5]] {
        if !at_rest || open.len() < 2 {
            break;
        }
        match together(&mut open, len) {
            Ok(rate) => println!(
                "{} together, copies of {} KiB: {} GB/s",
                open.len(),
                len >> 10,
                gb_per_s(Some(&rate))
            ),
            Err(stop) => {
                println!("Together: {}.", stop.text());
                at_rest = false;
            }
        }
    }
    for function in open {
        kept += function.close(at_rest);
    }
    kept
}

/// Prints the answers, once for all functions that are alike, then what was measured.
fn show(told: &[(Location, FunctionReport)]) {
    let answers = |report: &FunctionReport| -> Vec<Answer> {
        let all = Question::ALL.iter();
        all.map(|question| report.answer(*question)).collect()
    };
    let mut shown: Vec<(Vec<Answer>, Option<Stop>)> = Vec::new();
    for (_, report) in told {
        let kind = (answers(report), report.stop);
        if shown.contains(&kind) {
            continue;
        }
        let mut text = String::from("probe of");
        for (location, other) in told {
            if (answers(other), other.stop) == kind {
                text.push_str(&format!(" {location}"));
            }
        }
        print_wrapped(&text);
        print_answers(report);
        if let Some(stop) = report.stop {
            println!("  ended early: {}", stop.text());
        }
        shown.push(kind);
    }
    let mut text = String::new();
    let mut written = COSTS.head(&mut text);
    for (location, report) in told {
        let m = &report.measured;
        let rate = |index: usize| gb_per_s(m.rates.get(index).and_then(Option::as_ref));
        written = written.and_then(|()| {
            COSTS.row(
                &mut text,
                [
                    location,
                    &ns(m.read_ns),
                    &ns(m.write_ns),
                    &ns(m.descriptor_ns),
                    &ns(m.lone_copy_ns),
                    &rate(0),
                    &rate(2),
                    &rate(5),
                ],
            )
        });
    }
    // Writing to a string does not fail.
    let _ = written;
    print!("{text}");
}

fn print_answers(report: &FunctionReport) {
    let mut text = String::new();
    let mut reasons: Vec<(&str, String)> = Vec::new();
    let _ = ANSWERS.head(&mut text);
    for question in Question::ALL {
        let answer = report.answer(*question);
        let Answer::Unknown(why) = answer else {
            let _ = ANSWERS.row(&mut text, [&question.text(), &answer]);
            continue;
        };
        match reasons.iter_mut().find(|(reason, _)| *reason == why) {
            Some((_, keys)) => keys.push_str(&format!(" {}", question.key())),
            None => reasons.push((why, question.key().into())),
        }
    }
    print!("{text}");
    for (why, keys) in reasons {
        print_wrapped(&format!("unknown {keys}: {why}"));
    }
}

fn print_wrapped(text: &str) {
    let mut lines = String::new();
    if wrapped(&mut lines, text).is_ok() {
        print!("{lines}");
    }
}

fn ns(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.0}"))
}

fn gb_per_s(rate: Option<&Rate>) -> String {
    rate.map_or_else(|| "-".into(), |rate| format!("{:.2}", rate.gb_per_s()))
}
