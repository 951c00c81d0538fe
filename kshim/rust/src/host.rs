//! The kernel's place, for tests on the host.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::abi::{Batch, Event, LockKind, Piece, RawLock, Segment};

fn flag(lock: *mut RawLock) -> *mut AtomicBool {
    lock.cast()
}

pub(crate) unsafe fn ptdma_k_lock_init(_lock: *mut RawLock, _kind: LockKind) {}

pub(crate) unsafe fn ptdma_k_lock(lock: *mut RawLock) -> u64 {
    // SAFETY: room for a lock, by the caller's promise.
    let flag = unsafe { &*flag(lock) };
    while flag.swap(true, Ordering::Acquire) {
        std::thread::yield_now();
    }
    0
}

pub(crate) unsafe fn ptdma_k_unlock(lock: *mut RawLock, _flags: u64) {
    // SAFETY: as above.
    unsafe { &*flag(lock) }.store(false, Ordering::Release);
}

pub(crate) fn ptdma_k_now_ns() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

pub(crate) unsafe fn ptdma_k_wait(
    _batch: *mut Batch,
    _chan: u32,
    _spin_ns: u64,
    _timeout_ns: u64,
) -> bool {
    std::thread::yield_now();
    false
}

pub(crate) fn ptdma_k_nap(ns: u64) {
    std::thread::sleep(std::time::Duration::from_nanos(ns));
}

pub(crate) fn ptdma_k_yield() {
    std::thread::yield_now();
}

pub(crate) fn ptdma_k_master_on(_chan: u32) {}

pub(crate) unsafe fn ptdma_k_prove_stopped(_batch: *mut Batch, _chan: u32) -> bool {
    false
}

pub(crate) unsafe fn ptdma_k_map(
    _batch: *mut Batch,
    _chan: u32,
    piece: *const Piece,
    segment: *mut Segment,
) -> i32 {
    // SAFETY: both are references of the caller's.
    let piece = unsafe { &*piece };
    let answer = Segment {
        src: piece.src,
        dst: piece.dst,
        len: piece.len,
    };
    // SAFETY: as above.
    unsafe { *segment = answer };
    0
}

pub(crate) unsafe fn ptdma_k_cpu_copy(_dst: u64, _src: u64, _len: u64) -> i32 {
    -crate::errno::EIO
}

pub(crate) fn ptdma_k_report(_chan: u32, _event: Event, _code: u64) {}
