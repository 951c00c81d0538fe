//! The guest, and its move in rounds.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ptdma_vfio::{
    CopyRange, Mapping, Memory, Mover, PAGE_LEN_BYTES, PciAddress, Setup, Space, Waiting,
};

use crate::dirty::{DirtyLog, replace};

type Failure = Box<dyn std::error::Error>;

const GUEST_LEN_BYTES: u64 = 8 << 20;
const WORD_LEN_BYTES: u64 = 8;
const WORDS_PER_PAGE: u64 = PAGE_LEN_BYTES / WORD_LEN_BYTES;

/// Pages that the guest writes to most of the time.
const HOT_PAGES: u64 = 16;
/// The guest's CPU rests between two writes: one that writes without end never converges.
const REST: Duration = Duration::from_micros(100);

/// A round that leaves no more pages than these is followed by the pause: fewer than the hot ones.
const FEW_PAGES: usize = 12;
/// Most rounds before the pause, whatever is left.
const MOST_ROUNDS: u32 = 20;

/// What the guest's CPU does before it is moved, and afterwards.
const WRITES_AROUND: u64 = 200;
/// How long to wait for that.
const PATIENCE: Duration = Duration::from_secs(20);

/// A CPU of the guest, which writes here and there and knows what it has written.
struct Cpu {
    pause: AtomicBool,
    paused: AtomicBool,
    stop: AtomicBool,
    writes: AtomicU64,
}

impl Cpu {
    const fn new() -> Self {
        Self {
            pause: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            writes: AtomicU64::new(0),
        }
    }

    /// Runs until it is stopped; `shadow` gets what the memory must hold.
    fn run(&self, memory: &Memory, shadow: &mut [u64]) -> Result<(), ptdma_vfio::Error> {
        let pages = memory.len_bytes() / PAGE_LEN_BYTES;
        let mut random = 1_u64;
        while !self.stop.load(Ordering::Acquire) {
            if self.pause.load(Ordering::Acquire) {
                self.paused.store(true, Ordering::Release);
                std::thread::sleep(REST);
                continue;
            }
            self.paused.store(false, Ordering::Release);
            // A generator of Knuth's; the upper bits are the better ones.
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let draw = random >> 33;
            // Three of four writes go to the hot pages.
            let page = if draw.is_multiple_of(4) {
                (draw >> 2) % pages
            } else {
                (draw >> 2) % HOT_PAGES
            };
            let word = page * WORDS_PER_PAGE + random % WORDS_PER_PAGE;
            memory.write(word * WORD_LEN_BYTES, &random.to_ne_bytes())?;
            shadow[word as usize] = random;
            self.writes.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(REST);
        }
        Ok(())
    }

    fn wait_for(&self, what: &str, is: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        let end = Instant::now() + PATIENCE;
        while !is(self) {
            if Instant::now() > end {
                return Err(format!("the guest does not {what}").into());
            }
            std::thread::sleep(REST);
        }
        Ok(())
    }

    /// Waits until it has written some more.
    fn let_write(&self) -> Result<(), Failure> {
        let goal = self.writes.load(Ordering::Relaxed) + WRITES_AROUND;
        self.wait_for("write", |cpu| cpu.writes.load(Ordering::Relaxed) >= goal)
    }
}

/// What a move took.
#[derive(Debug, Default)]
struct Tally {
    rounds: u32,
    pages: usize,
    pause_pages: usize,
    faults: u64,
    descriptors: u64,
    doorbells: u64,
    dma_bytes: u64,
    cpu_bytes: u64,
}

/// Who copies pages.
enum By<'a> {
    Engines(&'a Mover),
    Cpu,
}

impl By<'_> {
    fn copy(
        &self,
        from: &Mapping,
        to: &Mapping,
        pages: &[usize],
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        tally.pages += pages.len();
        let offsets = pages.iter().map(|page| *page as u64 * PAGE_LEN_BYTES);
        match self {
            By::Engines(mover) => {
                let list = offsets
                    .map(|at| CopyRange::new(from, at, to, at, PAGE_LEN_BYTES))
                    .collect::<Result<Vec<_>, _>>()?;
                if list.is_empty() {
                    return Ok(());
                }
                let copied = mover.copy(&list, Waiting::Asleep)?;
                if !copied.is_complete() {
                    return Err(format!("not all was copied: {:?}", copied.report).into());
                }
                tally.descriptors += copied.report.descriptors;
                tally.doorbells += copied.report.doorbells;
                tally.dma_bytes += copied.report.dma_bytes;
            }
            By::Cpu => {
                let mut page = [0; PAGE_LEN_BYTES as usize];
                for at in offsets {
                    from.read(at, &mut page)?;
                    to.write(at, &page)?;
                    tally.cpu_bytes += PAGE_LEN_BYTES;
                }
            }
        }
        Ok(())
    }
}

fn bytes_of(memory: &Memory) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; memory.len_bytes() as usize];
    memory.read(0, &mut bytes)?;
    Ok(bytes)
}

/// Moves what the guest sees at `guest` from one file to another while its CPU writes.
fn migrate(
    guest: &Memory,
    old: &Mapping,
    new: &Mapping,
    cpu: &Cpu,
    by: &By<'_>,
) -> Result<Tally, Failure> {
    let log = DirtyLog::new(guest)?;
    let mut tally = Tally::default();
    std::thread::scope(|scope| -> Result<(), Failure> {
        let handler = scope.spawn(|| log.handle());
        let moved = (|| -> Result<(), Failure> {
            loop {
                let dirty = log.take()?;
                if tally.rounds > 0 && (dirty.len() <= FEW_PAGES || tally.rounds >= MOST_ROUNDS) {
                    // Taken, so they have to be copied: in the pause, with what comes until then.
                    by.copy(old, new, &dirty, &mut tally)?;
                    break;
                }
                by.copy(old, new, &dirty, &mut tally)?;
                tally.rounds += 1;
            }
            cpu.pause.store(true, Ordering::Release);
            cpu.wait_for("pause", |cpu| cpu.paused.load(Ordering::Acquire))?;
            let last = log.take()?;
            tally.pause_pages = last.len();
            by.copy(old, new, &last, &mut tally)?;
            if bytes_of(old)? != bytes_of(new)? {
                return Err("old and new memory differ".into());
            }
            replace(guest, new)?;
            Ok(())
        })();
        log.end();
        cpu.pause.store(false, Ordering::Release);
        handler.join().map_err(|_| "the handler panicked")??;
        moved
    })?;
    tally.faults = log.faults.load(Ordering::Relaxed);
    Ok(tally)
}

/// The nodes that the pages of a mapping are on, as the kernel says: `N1=2048`, one for each.
fn nodes(memory: &Memory) -> Result<String, Failure> {
    // Pages count once this mapping has seen them.
    bytes_of(memory)?;
    let start = format!("{:x} ", memory.as_ptr().as_ptr().addr());
    let maps = std::fs::read_to_string("/proc/self/numa_maps")?;
    let line = maps.lines().find(|line| line.starts_with(&start));
    let line = line.ok_or("the kernel does not know the mapping")?;
    let words = line.split(' ').filter(|word| {
        word.strip_prefix('N')
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    Ok(words.collect::<Vec<_>>().join(","))
}

fn file_on(node: u16) -> Result<Memory, ptdma_vfio::Error> {
    Memory::memfd("guest", GUEST_LEN_BYTES)?.on_node(node)
}

pub(crate) fn there_and_back(addresses: &[PciAddress]) -> Result<(), Failure> {
    let space = Space::new()?;
    let mover = Mover::open_in(&space, addresses, Setup::default())?;
    let first = space.map(file_on(0)?)?;
    let second = space.map(file_on(1)?)?;
    let third = space.map(file_on(0)?)?;
    // What the guest's CPU uses: a mapping of its own, which no engine knows.
    let guest = first.again()?.ok_or("no file")?;
    let mut shadow: Vec<u64> = (0..GUEST_LEN_BYTES / WORD_LEN_BYTES)
        .map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .collect();
    let bytes: Vec<u8> = shadow.iter().flat_map(|word| word.to_ne_bytes()).collect();
    guest.write(0, &bytes)?;

    let cpu = Cpu::new();
    let tallies = std::thread::scope(|scope| -> Result<_, Failure> {
        let running = scope.spawn(|| cpu.run(&guest, &mut shadow));
        let moved = (|| -> Result<_, Failure> {
            let mut tallies = Vec::new();
            for (name, old, new, by) in [
                ("engines", &first, &second, By::Engines(&mover)),
                ("cpu", &second, &third, By::Cpu),
            ] {
                cpu.let_write()?;
                let before = nodes(&guest)?;
                let tally = migrate(&guest, old, new, &cpu, &by)?;
                cpu.let_write()?;
                tallies.push((name, tally, before, nodes(&guest)?));
            }
            Ok(tallies)
        })();
        cpu.stop.store(true, Ordering::Release);
        running.join().map_err(|_| "the guest's CPU panicked")??;
        moved
    })?;

    let expected: Vec<u8> = shadow.iter().flat_map(|word| word.to_ne_bytes()).collect();
    if bytes_of(&guest)? != expected {
        return Err("the guest's memory is not what it has written".into());
    }
    for (name, tally, before, after) in tallies {
        println!(
            "by={name} nodes={before}->{after} rounds={} pages={} pause_pages={} faults={} \
             descriptors={} doorbells={} dma_bytes={} cpu_bytes={}",
            tally.rounds,
            tally.pages,
            tally.pause_pages,
            tally.faults,
            tally.descriptors,
            tally.doorbells,
            tally.dma_bytes,
            tally.cpu_bytes,
        );
    }
    println!(
        "{} bytes compared, twice in a pause and once at the end, after {} writes of the guest",
        GUEST_LEN_BYTES,
        cpu.writes.load(Ordering::Relaxed)
    );
    drop((first, second, third));
    mover.close()?;
    Ok(())
}
