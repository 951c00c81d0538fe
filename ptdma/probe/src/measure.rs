//! What things take.

use ptdma::descriptor::CommandWord;
use ptdma::regs::{Interrupts, QueueControl, Register};
use ptdma::{Clock, RegisterIo};

use crate::halt::Hypotheses;
use crate::platform::Platform;
use crate::queue::{ENTRIES, LIMIT_NS, Queue};
use crate::report::Stop;

/// Lengths of copies whose rate is measured.
pub const MEASURED_LENGTHS: [u32; 6] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20];
/// Bytes to copy for one rate, at the least: 16 MiB take 1 ms at 16 GB/s, long beside a doorbell.
const RATE_LEN_BYTES: u64 = 16 << 20;
/// Register accesses for one figure.
const ACCESSES: u32 = 256;
/// Rounds of which the median counts.
const ROUNDS: usize = 15;
/// Polls of one wait, if the clock stands still.
const MOST_POLLS: u32 = 1 << 28;

/// Bytes copied in a time.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Rate {
    /// Length of each descriptor.
    pub len_bytes: u32,
    /// Bytes of all.
    pub bytes: u64,
    /// From the first doorbell until head had passed the last.
    pub ns: u64,
}

impl Rate {
    /// Bytes per nanosecond, which is GB/s.
    #[must_use]
    pub fn gb_per_s(&self) -> f64 {
        self.bytes as f64 / self.ns.max(1) as f64
    }
}

/// A register read, and a register write, in nanoseconds.
pub(crate) fn accesses<P: Platform>(queue: &Queue<'_, P>) -> (f64, f64) {
    let start = queue.now();
    for _ in 0..ACCESSES {
        let _ = queue.read(Register::Version);
    }
    let read = queue.now().wrapping_sub(start) as f64 / f64::from(ACCESSES);
    let start = queue.now();
    for _ in 0..ACCESSES {
        // As bring-up writes it.
        queue.write(Register::RequestId, 0);
    }
    // A read waits for the writes before it. It counts as one of them: to take it off again would
    // leave less than nothing where it happens to be quick.
    let _ = queue.read(Register::Version);
    let write = queue.now().wrapping_sub(start) as f64 / f64::from(ACCESSES);
    (read, write)
}

/// Fills the ring with copies of one length, lets the engine go, and waits.
fn burst<P: Platform>(queue: &mut Queue<'_, P>, len: u32, count: usize) -> Result<u64, Stop> {
    let room = queue.p.room_len_bytes();
    let slices = (room / u64::from(len.max(1))).max(1);
    for n in 0..count as u64 {
        let at = (n % slices) * u64::from(len);
        let (src, dst) = (queue.source(at), queue.target(at));
        queue.put(CommandWord::COPY, src, dst, len);
    }
    let start = queue.now();
    queue.go();
    queue.wait_drained()?;
    Ok(queue.now().wrapping_sub(start))
}

/// A copy of 32 bytes alone, from the tail write to the head's move, the median.
pub(crate) fn lone_copy<P: Platform>(queue: &mut Queue<'_, P>) -> Result<f64, Stop> {
    let mut times = [0; ROUNDS];
    for time in &mut times {
        *time = burst(queue, 32, 1)?;
    }
    Ok(median(&mut times))
}

pub(crate) fn median(times: &mut [u64]) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or(0) as f64
}

/// A descriptor of 32 bytes in a full ring: what a burst takes beyond a lone copy.
pub(crate) fn descriptor<P: Platform>(queue: &mut Queue<'_, P>, lone_ns: f64) -> Result<f64, Stop> {
    let count = queue.entries.saturating_sub(1).max(2);
    let mut times = [0; ROUNDS];
    for time in &mut times {
        *time = burst(queue, 32, count)?;
    }
    Ok(((median(&mut times) - lone_ns) / (count as f64 - 1.0)).max(0.0))
}

/// Copies of one length with the ring full.
pub(crate) fn rate<P: Platform>(queue: &mut Queue<'_, P>, len: u32) -> Result<Option<Rate>, Stop> {
    if u64::from(len) > queue.p.room_len_bytes() {
        return Ok(None);
    }
    let mut rate = Rate {
        len_bytes: len,
        ..Rate::default()
    };
    let count = queue.entries.saturating_sub(1);
    while rate.bytes < RATE_LEN_BYTES {
        rate.ns = rate.ns.saturating_add(burst(queue, len, count)?);
        rate.bytes = rate
            .bytes
            .saturating_add((count as u64).saturating_mul(u64::from(len)));
    }
    Ok(Some(rate))
}

/// Has several functions copy at once, each between its own buffers, and measures. Each was asked
/// by [`probe`](crate::probe) before, which found nothing in the way.
///
/// # Errors
///
/// [`Stop`] of the first function that does not do its copies. The engines of the others may be at
/// work then.
pub fn together<P: Platform>(platforms: &mut [P], len_bytes: u32) -> Result<Rate, Stop> {
    let count = ENTRIES - 1;
    let mut rate = Rate {
        len_bytes,
        ..Rate::default()
    };
    let fits = |p: &P| u64::from(len_bytes) <= p.room_len_bytes();
    if platforms.is_empty() || !platforms.iter().all(fits) {
        return Err(Stop::NoStart);
    }
    while rate.bytes < RATE_LEN_BYTES * platforms.len() as u64 {
        for p in platforms.iter_mut() {
            let mut queue = Queue::set_up(p, Hypotheses::new(false), ENTRIES)?;
            let slices = (queue.p.room_len_bytes() / u64::from(len_bytes.max(1))).max(1);
            for n in 0..count as u64 {
                let at = (n % slices) * u64::from(len_bytes);
                let (src, dst) = (queue.source(at), queue.target(at));
                queue.put(CommandWord::COPY, src, dst, len_bytes);
            }
            queue.move_tail();
        }
        // One clock for all: those of different functions may begin at different times.
        let Some(clock) = platforms.first().map(Platform::clock) else {
            break;
        };
        let start = clock.now();
        for p in platforms.iter_mut() {
            resume(p);
        }
        for p in platforms.iter_mut() {
            arrive(p, &clock, start)?;
        }
        rate.ns = rate.ns.saturating_add(clock.now().wrapping_sub(start));
        let copied = (count * platforms.len()) as u64 * u64::from(len_bytes);
        rate.bytes = rate.bytes.saturating_add(copied);
    }
    for p in platforms.iter_mut() {
        switch_off(p);
    }
    Ok(rate)
}

/// Writes RUN to a queue whose tail was moved.
fn resume<P: Platform>(p: &P) {
    let control = p.regs().read(Register::Control);
    let halt = QueueControl::HALT.bits();
    let run = QueueControl::RUN.bits();
    p.regs().write(Register::Control, (control & !halt) | run);
}

/// Waits until a queue is drained.
fn arrive<P: Platform>(p: &P, clock: &P::Clock, start: u64) -> Result<(), Stop> {
    let tail = p.regs().read(Register::Tail);
    for _ in 0..MOST_POLLS {
        let over = clock.now().wrapping_sub(start) >= LIMIT_NS;
        let head = p.regs().read(Register::Head);
        if head == tail {
            let status = p.regs().read(Register::InterruptStatus);
            let failed = Interrupts::from_bits_retain(status).contains(Interrupts::ERROR);
            return if failed { Err(Stop::NoStart) } else { Ok(()) };
        }
        if over {
            break;
        }
    }
    Err(Stop::NotStopped)
}

/// Leaves a queue off whose engine stands.
pub(crate) fn switch_off<P: Platform>(p: &P) {
    p.regs().write(Register::InterruptEnable, 0);
    p.regs().write(Register::Control, 0);
    p.regs()
        .write(Register::InterruptStatus, Interrupts::KNOWN.bits());
}
