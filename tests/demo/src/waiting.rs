//! Time and sleep of the batches, and the thread that plays the interrupt controller.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use batch_copy::{Sleeper, SpinThenSleep, Wait, WaitFor, Wake};
use parking_lot::{Condvar, Mutex};
use ptdma::Clock;

use crate::cli::WaitName;
use crate::machine::Machine;

/// Nanoseconds since the program began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nanos(pub(crate) Instant);

impl Clock for Nanos {
    fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Wakes every batch that sleeps, at every interrupt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bell(Arc<(Mutex<u64>, Condvar)>);

impl Bell {
    /// Something happened.
    pub(crate) fn ring(&self) {
        *self.0.0.lock() += 1;
        self.0.1.notify_all();
    }
}

/// One batch's ear for the bell.
#[derive(Debug)]
pub(crate) struct Ear {
    bell: Bell,
    clock: Nanos,
    heard: u64,
}

impl Sleeper for Ear {
    fn sleep_until(&mut self, latest_ns: u64) -> bool {
        let mut rings = self.bell.0.0.lock();
        while *rings == self.heard {
            let left = latest_ns.saturating_sub(self.clock.now());
            if left == 0 {
                return false;
            }
            let _ = self
                .bell
                .0
                .1
                .wait_for(&mut rings, Duration::from_nanos(left));
        }
        self.heard = *rings;
        true
    }
}

/// One of the ways to wait.
#[derive(Debug)]
pub(crate) enum AnyWait {
    /// Yields between looks: engines are threads here, and there are fewer CPUs than threads.
    Poll(Nanos),
    /// Spins, then sleeps; with no spin, sleeps at once.
    Sleep(SpinThenSleep<Nanos, Ear>),
}

/// How long to look before sleeping. Real engines end a small batch within this.
const SPIN_NS: u64 = 20_000;
/// When an interrupt is taken for lost: long for an engine, short for a person.
const OVERDUE_NS: u64 = 100_000_000;

impl AnyWait {
    /// A wait of the kind that was asked for.
    pub(crate) fn new(name: WaitName, clock: Nanos, bell: &Bell) -> Self {
        let ear = Ear {
            bell: bell.clone(),
            clock,
            heard: *bell.0.0.lock(),
        };
        let sleep = |spin_ns, ear| Self::Sleep(SpinThenSleep::new(clock, ear, spin_ns, OVERDUE_NS));
        match name {
            WaitName::Poll => Self::Poll(clock),
            WaitName::Interrupt => sleep(0, ear),
            WaitName::SpinThenSleep => sleep(SPIN_NS, ear),
        }
    }
}

impl Wait for AnyWait {
    fn now_ns(&self) -> u64 {
        match self {
            Self::Poll(clock) => clock.now(),
            Self::Sleep(sleep) => sleep.now_ns(),
        }
    }

    fn wants_interrupts(&self) -> bool {
        matches!(self, Self::Sleep(_))
    }

    fn wait(&mut self, wait: &WaitFor) -> Wake {
        match self {
            Self::Poll(_) => {
                std::thread::yield_now();
                Wake::Poll
            }
            Self::Sleep(sleep) => sleep.wait(wait),
        }
    }
}

/// Serves interrupts, given as channel numbers, until all senders are gone.
pub(crate) fn serve_interrupts(machine: &Machine, clock: Nanos, raised: &Receiver<usize>) {
    while let Ok(channel) = raised.recv() {
        machine.channels.interrupt(channel, clock.now());
        machine.bell.ring();
    }
}

/// Where the modelled functions send their messages.
pub(crate) type InterruptSender = Sender<usize>;
