//! The guest, and its memory that arrives.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ptdma_vfio::{
    CopyRange, Mapping, Memory, Mover, PAGE_LEN_BYTES, PciAddress, Setup, Space, Waiting,
};
use rustix::event::Timespec;

use crate::faults::Faults;

type Failure = Box<dyn std::error::Error>;

const GUEST_LEN_BYTES: u64 = 8 << 20;
const WORD_LEN_BYTES: u64 = 8;
const WORDS: u64 = GUEST_LEN_BYTES / WORD_LEN_BYTES;

/// What a touch brings, 64 KiB: one descriptor of an engine, and sixteen faults fewer.
const CHUNK_LEN_BYTES: u64 = 64 << 10;
const CHUNKS: usize = (GUEST_LEN_BYTES / CHUNK_LEN_BYTES) as usize;

/// How long the handler waits for a touch before it copies what nobody has touched: the guest comes
/// first.
const TURN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};
/// The guest's CPU rests between two touches.
const REST: Duration = Duration::from_micros(200);
/// Touches of the guest after all has arrived.
const TOUCHES_AFTER: u64 = 200;

/// The guest's CPU.
#[derive(Default)]
struct Cpu {
    stop: AtomicBool,
    touches: AtomicU64,
    wrong: AtomicU64,
}

impl Cpu {
    /// Reads a word and writes another one, here and there, until it is stopped. `shadow` has what
    /// the memory must hold.
    fn run(&self, memory: &Memory, shadow: &mut [u64]) -> Result<(), ptdma_vfio::Error> {
        let mut random = 1_u64;
        let mut left = TOUCHES_AFTER;
        while left > 0 {
            if self.stop.load(Ordering::Acquire) {
                left -= 1;
            }
            for write in [false, true] {
                // A generator of Knuth's; the upper bits are the better ones.
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let word = (random >> 33) % WORDS;
                let at = word * WORD_LEN_BYTES;
                if write {
                    memory.write(at, &random.to_ne_bytes())?;
                    shadow[word as usize] = random;
                    continue;
                }
                let mut bytes = [0; WORD_LEN_BYTES as usize];
                memory.read(at, &mut bytes)?;
                if u64::from_ne_bytes(bytes) != shadow[word as usize] {
                    self.wrong.fetch_add(1, Ordering::Relaxed);
                }
            }
            self.touches.fetch_add(2, Ordering::Relaxed);
            std::thread::sleep(REST);
        }
        Ok(())
    }
}

/// What it took.
#[derive(Debug, Default)]
struct Tally {
    touched: u64,
    untouched: u64,
    descriptors: u64,
    doorbells: u64,
    dma_bytes: u64,
    cpu_bytes: u64,
}

/// Who copies.
enum By<'a> {
    Engines(&'a Mover),
    Cpu,
}

impl By<'_> {
    fn copy(
        &self,
        from: &Mapping,
        to: &Mapping,
        at: u64,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        match self {
            By::Engines(mover) => {
                let list = [CopyRange::new(from, at, to, at, CHUNK_LEN_BYTES)?];
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
                for at in (at..at + CHUNK_LEN_BYTES).step_by(PAGE_LEN_BYTES as usize) {
                    from.read(at, &mut page)?;
                    to.write(at, &page)?;
                    tally.cpu_bytes += PAGE_LEN_BYTES;
                }
            }
        }
        Ok(())
    }
}

/// Serves first touches of the guest until everything has arrived.
fn serve(
    faults: &Faults<'_>,
    old: &Mapping,
    new: &Mapping,
    by: &By<'_>,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let mut arrived = [false; CHUNKS];
    while let Some(next) = arrived.iter().position(|here| !here) {
        let touch = faults.next(TURN)?;
        let chunk = match touch {
            Some(offset) => (offset / CHUNK_LEN_BYTES) as usize,
            None => next,
        };
        let at = chunk as u64 * CHUNK_LEN_BYTES;
        if arrived[chunk] {
            // Touched before it appeared, read from the queue afterwards.
            faults.wake(at, CHUNK_LEN_BYTES)?;
            continue;
        }
        // Once, and before the guest sees it: what the guest writes is never overwritten.
        by.copy(old, new, at, tally)?;
        faults.arrived(at, CHUNK_LEN_BYTES)?;
        arrived[chunk] = true;
        match touch {
            Some(_) => tally.touched += 1,
            None => tally.untouched += 1,
        }
    }
    Ok(())
}

fn bytes_of(memory: &Memory) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; memory.len_bytes() as usize];
    memory.read(0, &mut bytes)?;
    Ok(bytes)
}

/// The nodes that the pages of a mapping are on, as the kernel says: `N1=2048`, one for each.
fn nodes(memory: &Memory) -> Result<String, Failure> {
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

/// Lets the guest run on `new` at once, while its memory arrives from `old`. Returns the bytes that
/// it has in the end.
fn post_copy(
    old: &Mapping,
    new: &Mapping,
    shadow: &mut [u64],
    by: &By<'_>,
) -> Result<(Tally, String, u64), Failure> {
    // What the guest's CPU uses: a mapping of its own, which no engine knows.
    let guest = new.again()?.ok_or("no file")?;
    let faults = Faults::catch(&guest)?;
    let cpu = Cpu::default();
    let mut tally = Tally::default();
    std::thread::scope(|scope| -> Result<(), Failure> {
        let running = scope.spawn(|| cpu.run(&guest, shadow));
        let served = serve(&faults, old, new, by, &mut tally);
        cpu.stop.store(true, Ordering::Release);
        if served.is_err() {
            // Or the guest waits for ever: what it sees then is reported as an error anyway.
            let _ = faults.arrived(0, GUEST_LEN_BYTES);
        }
        running.join().map_err(|_| "the guest's CPU panicked")??;
        served
    })?;
    let wrong = cpu.wrong.load(Ordering::Relaxed);
    if wrong > 0 {
        return Err(format!("the guest has read {wrong} wrong words").into());
    }
    let expected: Vec<u8> = shadow.iter().flat_map(|word| word.to_ne_bytes()).collect();
    if bytes_of(&guest)? != expected {
        return Err("the guest's memory is not what it has written".into());
    }
    Ok((tally, nodes(&guest)?, cpu.touches.load(Ordering::Relaxed)))
}

pub(crate) fn there_and_back(addresses: &[PciAddress]) -> Result<(), Failure> {
    let space = Space::new()?;
    let mover = Mover::open_in(&space, addresses, Setup::default())?;
    let first = space.map(file_on(0)?)?;
    let second = space.map(file_on(1)?)?;
    let third = space.map(file_on(0)?)?;
    let mut shadow: Vec<u64> = (0..WORDS)
        .map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .collect();
    let bytes: Vec<u8> = shadow.iter().flat_map(|word| word.to_ne_bytes()).collect();
    first.write(0, &bytes)?;
    for (name, old, new, by) in [
        ("engines", &first, &second, By::Engines(&mover)),
        ("cpu", &second, &third, By::Cpu),
    ] {
        let (tally, nodes, touches) = post_copy(old, new, &mut shadow, &by)?;
        println!(
            "by={name} nodes={nodes} touches={touches} touched_chunks={} untouched_chunks={} \
             descriptors={} doorbells={} dma_bytes={} cpu_bytes={}",
            tally.touched,
            tally.untouched,
            tally.descriptors,
            tally.doorbells,
            tally.dma_bytes,
            tally.cpu_bytes,
        );
    }
    println!("{GUEST_LEN_BYTES} bytes compared after each move");
    drop((first, second, third));
    mover.close()?;
    Ok(())
}
