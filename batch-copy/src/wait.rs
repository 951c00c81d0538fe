//! How a batch waits for its engines.

use ptdma::Clock;

/// What there is to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WaitFor {
    /// The channel whose progress is needed first; that of others is welcome.
    pub channel: usize,
    /// Whether that channel will interrupt when it is there. If not, it has finished in silence or
    /// soon will, as another lane's interrupt stood for all. Look again at once, or after a short
    /// sleep: nobody will wake the waiter. Coming back late costs time, nothing else.
    pub announced: bool,
    /// When that is expected, by the cost model; in the past if nothing is known. Looking earlier
    /// would only cost register reads.
    pub expected_ns: u64,
    /// When to come back at the latest: the deadline, or the time to suspect a hang.
    pub latest_ns: u64,
}

/// Why a wait ended.
///
/// The set is closed: a batch believes what is in memory, polls one engine, or asks all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// An interrupt handler has called [`Channels::interrupt`](crate::Channels::interrupt) for some
    /// channel: what it found is in memory, no register has to be read. Wrong alarms do no harm.
    Interrupted,
    /// Nobody has looked; ask the engine.
    Poll,
    /// An interrupt is overdue; ask all engines, and make sure that the next one is raised.
    Overdue,
}

/// Clock and wait of one batch, supplied by the caller.
pub trait Wait {
    /// The time in nanoseconds since some moment; never goes back, never wraps.
    fn now_ns(&self) -> u64;

    /// Whether the engines shall raise interrupts (at the end of a burst, and at the refill mark
    /// of a long one).
    fn wants_interrupts(&self) -> bool;

    /// Waits until it is worth looking again, at most until `wait.latest_ns`. May return at once.
    fn wait(&mut self, wait: &WaitFor) -> Wake;
}

impl<T: Wait + ?Sized> Wait for &mut T {
    fn now_ns(&self) -> u64 {
        (**self).now_ns()
    }
    fn wants_interrupts(&self) -> bool {
        (**self).wants_interrupts()
    }
    fn wait(&mut self, wait: &WaitFor) -> Wake {
        (**self).wait(wait)
    }
}

/// First sleep of a waiter that nobody will wake: about what falling asleep and waking up costs.
const FIRST_NAP_NS: u64 = 20_000;

/// Longest: no more is lost when an engine finishes right after a look.
const LONGEST_NAP_NS: u64 = 1_000_000;

/// How long to sleep, time and again, where no interrupt will end it. The first sleep is short,
/// since what is waited for should be over by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Naps {
    next_ns: u64,
}

impl Default for Naps {
    fn default() -> Self {
        Self::new()
    }
}

impl Naps {
    /// No sleep yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            next_ns: FIRST_NAP_NS,
        }
    }

    /// Length of the next sleep in nanoseconds: 20 us, then twice the one before, up to 1 ms.
    pub const fn next_ns(&mut self) -> u64 {
        let ns = self.next_ns;
        let doubled = ns.saturating_mul(2);
        self.next_ns = if doubled < LONGEST_NAP_NS {
            doubled
        } else {
            LONGEST_NAP_NS
        };
        ns
    }
}

/// Most turns of a spin before it looks at an engine, whatever the clock says: a clock that stands
/// still must not stop the batch. Some 10 ms.
const SPIN_TURNS: u32 = 1 << 22;

/// Spins until `until_ns`, at most `turns` turns.
fn spin_until<C: Clock>(clock: &C, until_ns: u64, turns: u32) {
    for _ in 0..turns {
        if clock.now() >= until_ns {
            return;
        }
        core::hint::spin_loop();
    }
}

/// Waits by polling: no interrupts, the CPU is busy all the time. The clock's unit must be
/// nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Polling<C>(pub C);

impl<C: Clock> Wait for Polling<C> {
    fn now_ns(&self) -> u64 {
        self.0.now()
    }

    fn wants_interrupts(&self) -> bool {
        false
    }

    fn wait(&mut self, wait: &WaitFor) -> Wake {
        spin_until(&self.0, wait.expected_ns.min(wait.latest_ns), SPIN_TURNS);
        core::hint::spin_loop();
        Wake::Poll
    }
}

/// Puts the caller to sleep until an interrupt handler wakes it.
pub trait Sleeper {
    /// Sleeps until woken, or until `latest_ns`; `true` if woken. A wake-up since the last call
    /// must make it return at once: it is called after the state was looked at.
    fn sleep_until(&mut self, latest_ns: u64) -> bool;
}

/// Polls for a while, then sleeps until an interrupt: short batches end without the cost of
/// scheduling, long ones free the CPU. With a `spin_ns` of 0 it is a wait by interrupt alone.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SpinThenSleep<C, S> {
    /// Clock in nanoseconds.
    pub clock: C,
    /// How to sleep.
    pub sleeper: S,
    /// How long to poll before sleeping.
    pub spin_ns: u64,
    /// How long to sleep before an interrupt is thought to be lost.
    pub overdue_ns: u64,
    /// When the spinning of this batch ends; `None` before its first wait.
    pub spin_end_ns: Option<u64>,
    /// How long to sleep where no interrupt will come.
    pub naps: Naps,
}

impl<C: Clock, S: Sleeper> SpinThenSleep<C, S> {
    /// Polls for `spin_ns`, then sleeps; looks after lost interrupts every `overdue_ns`.
    pub const fn new(clock: C, sleeper: S, spin_ns: u64, overdue_ns: u64) -> Self {
        Self {
            clock,
            sleeper,
            spin_ns,
            overdue_ns,
            spin_end_ns: None,
            naps: Naps::new(),
        }
    }
}

impl<C: Clock, S: Sleeper> Wait for SpinThenSleep<C, S> {
    fn now_ns(&self) -> u64 {
        self.clock.now()
    }

    fn wants_interrupts(&self) -> bool {
        true
    }

    fn wait(&mut self, wait: &WaitFor) -> Wake {
        let now = self.clock.now();
        if self.spin_ns != 0 {
            let end = *self
                .spin_end_ns
                .get_or_insert(now.saturating_add(self.spin_ns));
            // Not worth spinning for something that takes longer anyway.
            if now < end && wait.expected_ns <= end {
                spin_until(
                    &self.clock,
                    wait.expected_ns.min(wait.latest_ns),
                    SPIN_TURNS,
                );
                core::hint::spin_loop();
                return Wake::Poll;
            }
        }
        if !wait.announced {
            let until = now.saturating_add(self.naps.next_ns()).min(wait.latest_ns);
            self.sleeper.sleep_until(until);
            return Wake::Poll;
        }
        let overdue = now
            .max(wait.expected_ns)
            .saturating_add(self.overdue_ns)
            .min(wait.latest_ns);
        if self.sleeper.sleep_until(overdue) {
            Wake::Interrupted
        } else {
            Wake::Overdue
        }
    }
}
