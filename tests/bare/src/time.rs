//! Time by the processor's time stamp counter, measured against the PC's interval timer.

use core::sync::atomic::{AtomicU64, Ordering};

use ptdma::Clock;
use x86_64::instructions::port::Port;

/// Ticks of the counter in 2^20 ns; 0 before [`measure`].
static TICKS: AtomicU64 = AtomicU64::new(0);

/// Nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Nanoseconds;

impl Clock for Nanoseconds {
    fn now(&self) -> u64 {
        let ticks = TICKS.load(Ordering::Relaxed).max(1);
        ((u128::from(counter()) << 20) / u128::from(ticks)) as u64
    }
}

/// Now, in nanoseconds.
pub(crate) fn now_ns() -> u64 {
    Nanoseconds.now()
}

/// Waits; interrupts may come.
pub(crate) fn stall(time: core::time::Duration) {
    let start = now_ns();
    while u128::from(now_ns().wrapping_sub(start)) < time.as_nanos() {
        core::hint::spin_loop();
    }
}

pub(crate) fn counter() -> u64 {
    // SAFETY: every x86-64 processor has a time stamp counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Measures the counter by the interval timer's second channel, which counts 1,193,182 times a
/// second and shows at port 0x61 when it has counted down.
pub(crate) fn measure() {
    /// 10 ms.
    const COUNT: u16 = 11_932;
    const NS: u128 = 10_000_000;
    /// Gate of the channel on, loudspeaker off.
    const GATE: u8 = 1;
    /// The channel has counted down.
    const OUT: u8 = 1 << 5;
    /// Channel 2, low byte first, counting once, in binary.
    const MODE: u8 = 0xb0;
    const CONTROL_PORT: u16 = 0x61;
    const MODE_PORT: u16 = 0x43;
    const DATA_PORT: u16 = 0x42;
    let mut control = Port::<u8>::new(CONTROL_PORT);
    let [low, high] = COUNT.to_le_bytes();
    for (port, value) in [
        (CONTROL_PORT, 0),
        (MODE_PORT, MODE),
        (DATA_PORT, low),
        (DATA_PORT, high),
        (CONTROL_PORT, GATE),
    ] {
        // SAFETY: the ports of a PC's interval timer, which nobody else in this guest uses.
        unsafe { Port::<u8>::new(port).write(value) };
    }
    let start = counter();
    // SAFETY: as above.
    while unsafe { control.read() } & OUT == 0 {
        core::hint::spin_loop();
    }
    let ticks = counter().wrapping_sub(start);
    let per = (u128::from(ticks) << 20) / NS;
    TICKS.store(per as u64, Ordering::Relaxed);
}
