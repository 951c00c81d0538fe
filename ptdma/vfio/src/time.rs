//! Clock, lock and sleep of a process.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use batch_copy::Sleeper;
use ptdma::{Clock, Lock};

/// `CLOCK_MONOTONIC`, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Monotonic;

impl Monotonic {
    /// A length of time in the clock's unit.
    #[must_use]
    pub fn ticks(time: Duration) -> u64 {
        u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Clock for Monotonic {
    fn now(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let rest = u64::try_from(now.tv_nsec).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(rest)
    }
}

/// The lock around a channel: one that sleeps, for threads that can be preempted while they hold
/// it.
#[derive(Debug, Default)]
pub struct ThreadLock<T>(Mutex<T>);

impl<T> ThreadLock<T> {
    /// A lock that nobody holds.
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }
}

impl<T> Lock<T> for ThreadLock<T> {
    fn with<U>(&self, f: impl FnOnce(&mut T) -> U) -> U {
        // The crates' closures do not panic; if one did, its channel would find out by itself what
        // its engine has done.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the thread that hears interrupts rings, and batches sleep on.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rings: Mutex<u64>,
    rung: Condvar,
}

impl Bell {
    /// Wakes all that sleep.
    pub(crate) fn ring(&self) {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        *rings = rings.wrapping_add(1);
        self.rung.notify_all();
    }

    /// Someone who hears what is rung from now on.
    pub(crate) fn listen(&self) -> Ear<'_> {
        Ear {
            bell: self,
            heard: *self.rings.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// One batch that sleeps.
#[derive(Debug)]
pub(crate) struct Ear<'a> {
    bell: &'a Bell,
    heard: u64,
}

impl Sleeper for Ear<'_> {
    fn sleep_until(&mut self, latest_ns: u64) -> bool {
        let rings = self
            .bell
            .rings
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let left = Duration::from_nanos(latest_ns.saturating_sub(Monotonic.now()));
        let (rings, _) = self
            .bell
            .rung
            .wait_timeout_while(rings, left, |rings| *rings == self.heard)
            .unwrap_or_else(PoisonError::into_inner);
        let woken = *rings != self.heard;
        self.heard = *rings;
        woken
    }
}

/// The time now, for a bounded loop of a program's own.
pub(crate) fn after(time: Duration) -> Instant {
    Instant::now() + time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_before_the_sleep_ends_it_at_once() {
        let bell = Bell::default();
        let mut ear = bell.listen();
        bell.ring();
        // A wait that is not woken would take an hour.
        let hour = Monotonic.now() + Monotonic::ticks(Duration::from_secs(3600));
        assert!(ear.sleep_until(hour));
    }

    #[test]
    fn every_ear_hears_a_ring_and_silence_ends_in_time() {
        let bell = Bell::default();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let mut ear = bell.listen();
                let hour = Monotonic.now() + Monotonic::ticks(Duration::from_secs(3600));
                scope.spawn(move || assert!(ear.sleep_until(hour)));
            }
            bell.ring();
        });
        let mut late = bell.listen();
        assert!(!late.sleep_until(Monotonic.now() + 1_000_000));
        assert!(!late.sleep_until(0), "a time that is over");
    }
}
