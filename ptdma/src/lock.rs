//! The lock around a channel that several CPUs share, supplied by the platform.

/// A mutual-exclusion lock.
///
/// # What an implementer promises
///
/// - No two calls of [`with`](Self::with) run their closures at the same time, and each sees what the
///   one before it wrote.
/// - An interrupt handler that calls a channel's interrupt entry point is kept off the CPU that
///   holds the lock (in Linux: `spin_lock_irqsave`).
///
/// # What the crate promises
///
/// Closures are bounded and short, and never call back into the same lock. Only one lock is held at
/// a time, so no order between locks is needed. The longest closure stops an engine.
pub trait Lock<T> {
    /// Runs `f` with the value, waiting for the lock if it is held.
    fn with<U>(&self, f: impl FnOnce(&mut T) -> U) -> U;
}

/// The lock of shared channels that name none: a spin lock, which the default feature `spin` brings.
#[cfg(feature = "spin")]
pub type DefaultLock<T> = spin::Mutex<T>;

/// No lock, in the place of one: the feature `spin` is off, so shared channels name their own lock.
#[cfg(not(feature = "spin"))]
#[derive(Debug)]
pub struct DefaultLock<T>(core::marker::PhantomData<T>);

/// The lock of bare metal leaves interrupts on: poll, or take the interrupt on a CPU that does not
/// submit.
#[cfg(feature = "spin")]
impl<T> Lock<T> for spin::Mutex<T> {
    fn with<U>(&self, f: impl FnOnce(&mut T) -> U) -> U {
        f(&mut self.lock())
    }
}
