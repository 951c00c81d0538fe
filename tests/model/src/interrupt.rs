//! Where interrupt messages go.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Called for every message, from whichever thread made it happen, with no lock held: it may use
/// the model.
pub(crate) type Sink = Arc<dyn Fn() + Send + Sync>;

/// A counter of interrupt messages that a thread can wait on. Clones share it.
#[derive(Clone, Default)]
pub struct InterruptLine {
    inner: Arc<(Mutex<u64>, Condvar)>,
}

impl fmt::Debug for InterruptLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InterruptLine({})", self.count())
    }
}

impl InterruptLine {
    /// A line on which nothing has happened.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Delivers one message.
    pub fn raise(&self) {
        *self.inner.0.lock() += 1;
        self.inner.1.notify_all();
    }

    /// Messages so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        *self.inner.0.lock()
    }

    /// Waits until more than `seen` messages have come, at most `limit`. Returns the count then:
    /// still `seen` on a time-out.
    #[must_use]
    pub fn wait_beyond(&self, seen: u64, limit: Duration) -> u64 {
        let deadline = Instant::now() + limit;
        let mut count = self.inner.0.lock();
        while *count <= seen {
            if self.inner.1.wait_until(&mut count, deadline).timed_out() {
                break;
            }
        }
        *count
    }
}
