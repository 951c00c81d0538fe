//! Batches of all processors on the same channels, every byte compared.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;

use batch_copy::{
    Batch, Channels, Folio, Host, Options, Outcome, OverlapCheck, Piece, Polling, PtdmaQueue,
    Rescue, ServiceState, SharedChannel, Sleeper, SpinThenSleep, Wait,
};
use heapless::Vec;
use ptdma::{Channel, Deadline, DmaAddr, FunctionQuiesced};
use ptdma_uefi::work::{Arena, Copy, Kind, Work, lay_out};
use spin::{Mutex, Once};

use crate::console::print;
use crate::functions::{Function, Regs, Ring, Space};
use crate::lock::IrqLock;
use crate::memory;
use crate::processors::{self, MAX_PROCESSORS};
use crate::time::{Nanoseconds, now_ns, stall};

/// Functions that take part.
pub(crate) const MAX_FUNCTIONS: usize = 16;
/// Folios of the longest list.
const MAX_FOLIOS: usize = MAX_FUNCTIONS * Kind::Pages.copies();
/// How long an engine may take to stop: far over the 250 us of 1 MiB at 4 GB/s. An emulated one
/// waits for its turn, and interrupts are off meanwhile.
const STOP_NS: u64 = 20_000_000;
/// How long an engine may stand still with work before its work is given to others. An emulated
/// one may have to wait for a processor of a busy host: 300 ms were seen to be too short.
const HANG_NS: u64 = 1_000_000_000;
/// How long an interrupt may be late.
const OVERDUE_NS: u64 = 10_000_000;

type Queue = PtdmaQueue<Regs, Ring, Nanoseconds>;
type Shared = Channels<Queue, IrqLock<SharedChannel<Queue>>, MAX_FUNCTIONS>;

static CHANNELS: Once<Shared> = Once::new();
static FUNCTIONS: Once<Vec<Function, MAX_FUNCTIONS>> = Once::new();

/// Wrong and stray bytes of all runs.
static BAD: AtomicU64 = AtomicU64::new(0);

fn queue(channel: Channel<Regs, Ring>) -> Queue {
    PtdmaQueue::new(channel, None).with_clock(Nanoseconds, STOP_NS)
}

/// Brings all functions up; returns how many.
pub(crate) fn set_up(spaces: impl Iterator<Item = Space>) -> usize {
    let mut channels = Shared::new();
    let mut functions = Vec::new();
    for space in spaces.take(MAX_FUNCTIONS) {
        let number = functions.len();
        match Function::bring_up(space, number as u8) {
            Ok((function, channel)) => {
                print(format_args!("engine {number}: {}\n", channel.traits()));
                // There is room for as many as are looked at.
                let _ = functions.push(function);
                let _ = channels.add(IrqLock::new(SharedChannel::new(queue(channel))));
            }
            Err(error) => print(format_args!("{space:?} is not used: {error}\n")),
        }
    }
    let count = functions.len();
    FUNCTIONS.call_once(|| functions);
    CHANNELS.call_once(|| channels);
    count
}

/// The interrupt of a function.
pub(crate) fn on_interrupt(number: usize) {
    if let Some(channels) = CHANNELS.get() {
        channels.interrupt(number, now_ns());
    }
}

/// What came of some batches.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    folios: u64,
    copied: u64,
    failed: u64,
    skipped: u64,
    quarantined: u64,
    refused: u64,
    late: u64,
    right: u64,
    wrong: u64,
    stray: u64,
    excused: u64,
    descriptors: u64,
    errors: u64,
    moved: u64,
    resets: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.folios += other.folios;
        self.copied += other.copied;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.quarantined += other.quarantined;
        self.refused += other.refused;
        self.late += other.late;
        self.right += other.right;
        self.wrong += other.wrong;
        self.stray += other.stray;
        self.excused += other.excused;
        self.descriptors += other.descriptors;
        self.errors += other.errors;
        self.moved += other.moved;
        self.resets += other.resets;
    }
}

/// What all processors are to do: a number that grows with each run, and how.
static RUN: AtomicU32 = AtomicU32::new(0);
static ROUNDS: AtomicU32 = AtomicU32::new(0);
static BY_INTERRUPT: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicUsize = AtomicUsize::new(0);
static TALLY: Mutex<Option<Tally>> = Mutex::new(None);

/// Has all processors run, and says what came of it.
pub(crate) fn run(interrupts: bool, rounds: u32) {
    let _ = processors::take_interrupts();
    *TALLY.lock() = Some(Tally::default());
    DONE.store(0, Ordering::Relaxed);
    ROUNDS.store(rounds, Ordering::Relaxed);
    BY_INTERRUPT.store(u32::from(interrupts), Ordering::Relaxed);
    let began = now_ns();
    RUN.fetch_add(1, Ordering::Release);
    processors::wake_all();
    take_part(0);
    // Each batch is bounded, and so is this: a processor that is not done would be a bug, and the
    // harness does not wait for ever.
    while DONE.load(Ordering::Acquire) < processors::count() {
        core::hint::spin_loop();
    }
    let tally = TALLY.lock().take().unwrap_or_default();
    BAD.fetch_add(tally.wrong + tally.stray, Ordering::Relaxed);
    let active = CHANNELS.get().map_or(0, Shared::active);
    let Tally {
        folios,
        copied,
        failed,
        skipped,
        quarantined,
        refused,
        late,
        right,
        wrong,
        stray,
        excused,
        descriptors,
        errors,
        moved,
        resets,
    } = tally;
    print(format_args!(
        "result folios={folios} copied={copied} failed={failed} skipped={skipped} \
         quarantined={quarantined} refused={refused} late={late} right={right} wrong={wrong} \
         stray={stray} excused={excused} descriptors={descriptors} errors={errors} moved={moved} \
         resets={resets} interrupts={} active={active} processors={} ms={}\n",
        processors::take_interrupts(),
        processors::count(),
        now_ns().wrapping_sub(began) / 1_000_000,
    ));
}

/// What a further processor does for ever.
pub(crate) fn serve(number: usize) -> ! {
    let mut seen = 0;
    loop {
        let run = RUN.load(Ordering::Acquire);
        if run == seen {
            processors::sleep_until(number, u64::MAX);
            continue;
        }
        seen = run;
        take_part(number);
    }
}

fn take_part(number: usize) {
    let tally = copy_lists(number);
    if let Some(all) = TALLY.lock().as_mut() {
        all.add(&tally);
    }
    DONE.fetch_add(1, Ordering::Release);
}

/// Memory of each processor's lists.
static ARENAS: [Mutex<Option<(Arena, Arena)>>; MAX_PROCESSORS] =
    [const { Mutex::new(None) }; MAX_PROCESSORS];

fn copy_lists(number: usize) -> Tally {
    let mut tally = Tally::default();
    let Some(channels) = CHANNELS.get() else {
        return tally;
    };
    let rounds = ROUNDS.load(Ordering::Relaxed);
    for round in 0..rounds {
        for kind in Kind::ALL {
            let seed = u64::from(RUN.load(Ordering::Relaxed)) << 40
                | u64::from(round) << 8
                | (number as u64) << 4
                | kind as u64;
            let copied = if BY_INTERRUPT.load(Ordering::Relaxed) == 0 {
                copy(number, channels, kind, seed, Polling(Nanoseconds))
            } else {
                let bell = Bell(number);
                let wait = SpinThenSleep::new(Nanoseconds, bell, 0, OVERDUE_NS);
                copy(number, channels, kind, seed, wait)
            };
            match copied {
                Some(copied) => tally.add(&copied),
                None => tally.refused += 1,
            }
        }
    }
    tally
}

/// Copies a list; `None` if there is no memory for it.
fn copy<W: Wait>(
    number: usize,
    channels: &Shared,
    kind: Kind,
    seed: u64,
    wait: W,
) -> Option<Tally> {
    let count = channels.len();
    let mut arenas = ARENAS.get(number)?.lock();
    let (source, destination) = match *arenas {
        Some(both) => both,
        None => {
            let len = Kind::ALL.iter().map(|kind| kind.arena_len_bytes(count));
            let len = len.max()?;
            (memory::arena(len)?, memory::arena(len)?)
        }
    };
    *arenas = Some((source, destination));
    let mut room = [Copy::default(); MAX_FOLIOS];
    let copies = lay_out(kind, count, &mut room);
    let len = kind.arena_len_bytes(count);
    let work = Work {
        source: source.first(len),
        destination: destination.first(len),
        copies,
        seed,
    };
    work.prepare();
    let at = |arena: Arena, offset: usize| {
        DmaAddr::new((arena.start().expose_provenance().get() + offset) as u64)
    };
    let folios: Vec<Folio, MAX_FOLIOS> = copies
        .iter()
        .map(|copy| {
            let (src, dst) = (at(source, copy.src), at(destination, copy.dst));
            Folio::new(src, dst, copy.len_bytes as u64)
        })
        .collect();
    let mut outcomes = [Outcome::Dma; MAX_FOLIOS];
    let mut options = Options::default();
    options.hang_ns = HANG_NS;
    let mut host = Host::new(wait).with_rescue(Last::default());
    let report = Batch::<MAX_FUNCTIONS>::new().run(
        channels,
        &folios[..],
        OverlapCheck::Pairwise,
        &options,
        &mut host,
        &mut outcomes,
    );
    let Ok(report) = report else {
        return None;
    };
    let mut tally = Tally {
        folios: report.folios as u64,
        descriptors: report.descriptors,
        errors: report.errors,
        moved: report.moved_bytes,
        late: u64::from(report.late),
        resets: host.rescue.resets,
        ..Tally::default()
    };
    let mut excused: Vec<Range<usize>, MAX_FOLIOS> = Vec::new();
    for (copy, outcome) in copies.iter().zip(&outcomes) {
        match outcome {
            Outcome::Dma | Outcome::Cpu => tally.copied += 1,
            Outcome::Failed(_) if outcome.is_quarantined() => tally.quarantined += 1,
            Outcome::Failed(_) => tally.failed += 1,
            Outcome::NotAttempted(_) => tally.skipped += 1,
        }
        if !outcome.is_copied() {
            // One for each copy at the most.
            let _ = excused.push(copy.dst..copy.dst + copy.len_bytes);
        }
    }
    let found = work.check(&mut excused);
    tally.right = found.right;
    tally.wrong = found.wrong;
    tally.stray = found.stray;
    tally.excused = found.excused;
    if tally.quarantined > 0 {
        // An engine may write to it later: it is nobody's any more.
        *arenas = None;
    }
    Some(tally)
}

/// Wakes a processor that sleeps.
struct Bell(usize);

impl Sleeper for Bell {
    fn sleep_until(&mut self, latest_ns: u64) -> bool {
        processors::sleep_until(self.0, latest_ns)
    }
}

/// The last resort: a reset of the function.
#[derive(Default)]
struct Last {
    resets: u64,
}

/// Several batches may ask about the same function: one resets it at a time.
static RESETS: Mutex<()> = Mutex::new(());

impl Rescue for Last {
    fn prove_stopped(&mut self, channel: usize) -> bool {
        let _one = RESETS.lock();
        let function = FUNCTIONS.get().and_then(|all| all.get(channel));
        let proved = function.is_some_and(|function| function.reset().is_ok());
        self.resets += u64::from(proved);
        proved
    }

    fn quarantined(&mut self, _channel: usize, _piece: &Piece) {}
}

/// Brings what is out of service back, by resets; says how many are in service.
pub(crate) fn revive() {
    let (Some(channels), Some(functions)) = (CHANNELS.get(), FUNCTIONS.get()) else {
        return;
    };
    let mut revived = 0;
    for (number, function) in functions.iter().enumerate() {
        if channels.service(number) == Some(ServiceState::Active) {
            continue;
        }
        match revive_one(channels, number, function) {
            Ok(()) => revived += 1,
            Err(why) => print(format_args!("function {number} stays away: {why}\n")),
        }
    }
    print(format_args!(
        "revived {revived} active={}\n",
        channels.active()
    ));
}

fn revive_one(channels: &Shared, number: usize, function: &Function) -> Result<(), &'static str> {
    /// Batches take note of a loss when they look next; none runs now.
    const TRIES: u32 = 100;
    function.reset().map_err(|_| "it cannot be reset")?;
    channels.confirm_stopped(number);
    let mut taken = None;
    for _ in 0..TRIES {
        if let Ok(queue) = channels.take(number) {
            taken = Some(queue);
            break;
        }
        stall(Duration::from_millis(1));
    }
    let mut channel = taken.ok_or("its channel is held")?.into_channel();
    // SAFETY: the caller has stopped the function, or reset it; nothing has started it since.
    let proof = unsafe { FunctionQuiesced::by_owner() };
    let _dropped = channel.recover(proof).map_err(|_| "it does not come up")?;
    function.route().ok_or("it has no vector")?;
    channels
        .put(number, queue(channel))
        .map_err(|_| "its place is taken")
}

/// Shuts every channel down; whether all did, and whether no byte was ever wrong.
pub(crate) fn shut_down() -> bool {
    let (Some(channels), Some(functions)) = (CHANNELS.get(), FUNCTIONS.get()) else {
        return false;
    };
    let mut down = 0;
    for (number, function) in functions.iter().enumerate() {
        channels.retire(number, now_ns());
        let Ok(queue) = channels.take(number) else {
            print(format_args!("function {number} was not taken out\n"));
            continue;
        };
        let deadline = Deadline::after(&Nanoseconds, STOP_NS);
        match queue.into_channel().shutdown(&Nanoseconds, deadline) {
            Ok(_) => {
                function.give_back();
                down += 1;
            }
            Err((error, _)) => print(format_args!("function {number}: {error}\n")),
        }
    }
    let bad = BAD.load(Ordering::Relaxed);
    let good = down == functions.len() && bad == 0;
    print(format_args!(
        "verdict {}: {down} of {} channels shut down, {bad} wrong bytes\n",
        if good { "good" } else { "bad" },
        functions.len()
    ));
    good
}
