//! The lock around what several CPUs share.

/// A mutual-exclusion lock that owns what it protects.
///
/// The executor holds at most one lock at a time and never waits, maps, copies or calls the
/// caller while it does, so there is no lock order to get wrong. Held for at most
/// [`CHUNK`](crate::CHUNK) descriptors. A kernel supplies its own (irq-safe where the interrupt
/// handler calls [`Engines::interrupt`](crate::Engines::interrupt)); bare metal uses [`spin`].
pub trait Lock<T> {
    /// A lock around `value`.
    fn new(value: T) -> Self;
    /// Runs `f` with exclusive access.
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R;
}

impl<T> Lock<T> for spin::Mutex<T> {
    fn new(value: T) -> Self {
        Self::new(value)
    }
    #[inline]
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.lock())
    }
}
