//! The kernel's place, for tests and benchmarks on the host. It counts what it is asked.
//!
//! Each thread has a kernel of its own, so that tests beside each other do not count each other's
//! calls.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::abi::{Batch, Event, LockKind, Piece, RawLock, Segment};

/// What the kernel does beside locks. As it is, it maps addresses to themselves, has no engine go on,
/// and proves nothing.
pub trait Kernel {
    /// Maps pieces for a channel, from the first one on. How many it mapped.
    fn map(&self, chan: u32, pieces: &[Piece], segments: &mut [Segment]) -> usize {
        let _ = chan;
        for (segment, piece) in segments.iter_mut().zip(pieces) {
            *segment = Segment {
                src: piece.src,
                dst: piece.dst,
                len: piece.len,
            };
        }
        pieces.len()
    }

    /// Nanoseconds, monotonic.
    fn now_ns(&self) -> u64 {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }

    /// Waits for a channel's interrupt, no lock held. Whether it came.
    fn wait(&self, chan: u32, timeout_ns: u64) -> bool {
        let _ = (chan, timeout_ns);
        thread::yield_now();
        false
    }

    /// Sleeps, no lock held.
    fn nap(&self, ns: u64) {
        thread::sleep(Duration::from_nanos(ns));
    }

    /// Lets others run, no lock held.
    fn yield_now(&self) {
        thread::yield_now();
    }

    /// Cuts a channel's function off from memory. Whether it is certain that it is.
    fn prove_stopped(&self, chan: u32) -> bool {
        let _ = chan;
        false
    }
}

/// The kernel of threads that have no other.
struct Plain;

impl Kernel for Plain {}

thread_local! {
    static KERNEL: RefCell<Rc<dyn Kernel>> = RefCell::new(Rc::new(Plain));
    static CALLS: [Cell<u64>; IMPORTS.len()] = const { [const { Cell::new(0) }; IMPORTS.len()] };
}

/// Gives this thread another kernel.
pub fn boot(kernel: Rc<dyn Kernel>) {
    KERNEL.set(kernel);
}

fn kernel() -> Rc<dyn Kernel> {
    KERNEL.with_borrow(Rc::clone)
}

/// What the library calls, in the order of `imports.list`.
const IMPORTS: [&str; 12] = [
    "lock_init",
    "lock",
    "unlock",
    "now_ns",
    "wait",
    "nap",
    "yield",
    "master_on",
    "prove_stopped",
    "map",
    "cpu_copy",
    "report",
];

/// Places in [`IMPORTS`].
#[derive(Clone, Copy)]
enum Import {
    LockInit,
    Lock,
    Unlock,
    NowNs,
    Wait,
    Nap,
    Yield,
    MasterOn,
    ProveStopped,
    Map,
    CpuCopy,
    Report,
}

/// How often the library called each import on this thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls([u64; IMPORTS.len()]);

impl Calls {
    /// Takes what was counted so far.
    #[must_use]
    pub fn take() -> Self {
        CALLS.with(|calls| Self(calls.each_ref().map(Cell::take)))
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Those of `ptdma_k_` and this.
    #[must_use]
    pub fn of(&self, import: &str) -> u64 {
        let named = IMPORTS
            .iter()
            .zip(self.0)
            .find(|(name, _)| **name == import);
        named.map_or(0, |(_, count)| count)
    }
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} calls:", self.total())?;
        let called = IMPORTS.iter().zip(self.0).filter(|(_, count)| *count != 0);
        for (name, count) in called {
            write!(f, " {name} {count}")?;
        }
        Ok(())
    }
}

#[inline]
fn count(import: Import) {
    CALLS.with(|calls| {
        if let Some(count) = calls.get(import as usize) {
            count.set(count.get().wrapping_add(1));
        }
    });
}

fn flag(lock: *mut RawLock) -> *mut AtomicBool {
    lock.cast()
}

pub(crate) unsafe fn ptdma_k_lock_init(_lock: *mut RawLock, _kind: LockKind) {
    count(Import::LockInit);
}

pub(crate) unsafe fn ptdma_k_lock(lock: *mut RawLock) -> u64 {
    count(Import::Lock);
    // SAFETY: room for a lock, by the caller's promise.
    let flag = unsafe { &*flag(lock) };
    while flag.swap(true, Ordering::Acquire) {
        thread::yield_now();
    }
    0
}

pub(crate) unsafe fn ptdma_k_unlock(lock: *mut RawLock, _flags: u64) {
    count(Import::Unlock);
    // SAFETY: as above.
    unsafe { &*flag(lock) }.store(false, Ordering::Release);
}

pub(crate) fn ptdma_k_now_ns() -> u64 {
    count(Import::NowNs);
    kernel().now_ns()
}

pub(crate) unsafe fn ptdma_k_wait(
    _batch: *mut Batch,
    chan: u32,
    _spin_ns: u64,
    timeout_ns: u64,
) -> bool {
    count(Import::Wait);
    kernel().wait(chan, timeout_ns)
}

pub(crate) fn ptdma_k_nap(ns: u64) {
    count(Import::Nap);
    kernel().nap(ns);
}

pub(crate) fn ptdma_k_yield() {
    count(Import::Yield);
    kernel().yield_now();
}

pub(crate) fn ptdma_k_master_on(_chan: u32) {
    count(Import::MasterOn);
}

pub(crate) unsafe fn ptdma_k_prove_stopped(_batch: *mut Batch, chan: u32) -> bool {
    count(Import::ProveStopped);
    kernel().prove_stopped(chan)
}

pub(crate) unsafe fn ptdma_k_map(
    _batch: *mut Batch,
    chan: u32,
    pieces: *const Piece,
    segments: *mut Segment,
    nr: u32,
) -> u32 {
    count(Import::Map);
    // SAFETY: as many, by the caller's promise.
    let pieces = unsafe { std::slice::from_raw_parts(pieces, nr as usize) };
    // SAFETY: as above; nobody else has them for the call.
    let segments = unsafe { std::slice::from_raw_parts_mut(segments, nr as usize) };
    kernel().map(chan, pieces, segments) as u32
}

pub(crate) unsafe fn ptdma_k_cpu_copy(_dst: u64, _src: u64, _len: u64) -> i32 {
    count(Import::CpuCopy);
    -crate::errno::EIO
}

pub(crate) fn ptdma_k_report(_chan: u32, _event: Event, _code: u64) {
    count(Import::Report);
}
