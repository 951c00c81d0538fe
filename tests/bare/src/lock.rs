//! Spin locks that keep interrupts off the processor that holds them.

use ptdma::Lock;
use spin::Mutex;

/// Runs `f` with interrupts off, and leaves them as they were.
pub(crate) fn without_interrupts<U>(f: impl FnOnce() -> U) -> U {
    x86_64::instructions::interrupts::without_interrupts(f)
}

/// A lock that an interrupt handler takes too: its holder is not interrupted, so that the handler
/// never waits for the processor that it runs on.
pub(crate) struct IrqLock<T>(Mutex<T>);

impl<T> IrqLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }
}

impl<T> Lock<T> for IrqLock<T> {
    fn with<U>(&self, f: impl FnOnce(&mut T) -> U) -> U {
        without_interrupts(|| f(&mut self.0.lock()))
    }
}
