//! A function made of plain memory, for benchmarks: the real [`Mmio`] and [`CoherentRing`] on it,
//! so that what is measured is the code that runs on hardware, without a device's own cost.

#![allow(unsafe_code)]

use std::ptr::NonNull;

use ptdma::descriptor::DESCRIPTOR_LEN_BYTES;
use ptdma::regs::{BAR_LEN_BYTES, Register};
use ptdma::{
    Channel, ChannelConfig, CoherentRing, DmaAddr, ErrorHead, Mmio, Notify, RegisterIo, Restart,
    Signalling,
};

/// Bus address of the ring; aligned for the longest one.
const RING_BASE: u64 = 0x1_0010_0000;

/// Bytes that each descriptor asks for: a base page.
const COPY_LEN_BYTES: u64 = 4096;

/// A channel on plain memory. The memory is leaked: benchmarks make a handful.
pub struct FakeFunction {
    channel: Channel<Mmio, CoherentRing>,
    registers: Mmio,
    entries: u64,
    issued: u64,
}

impl FakeFunction {
    /// A channel with a ring of `entries`, of an engine that `restart` sets going.
    ///
    /// # Panics
    ///
    /// If `entries` is no size for a ring.
    #[must_use]
    pub fn new(entries: usize, signalling: Signalling, restart: Restart) -> Self {
        let bar = vec![0_u32; BAR_LEN_BYTES / 4].leak();
        let bar = NonNull::from(&mut *bar).cast::<u8>();
        let ring = vec![0_u64; entries * DESCRIPTOR_LEN_BYTES / 8].leak();
        let ring = NonNull::from(&mut *ring).cast::<u8>();
        // SAFETY: BAR_LEN_BYTES bytes, 4-byte aligned, never freed.
        let registers = unsafe { Mmio::new(bar) };
        // SAFETY: the same memory; this handle only plays the device.
        let device = unsafe { Mmio::new(bar) };
        // SAFETY: `entries` descriptors' worth of memory, 8-byte aligned, never freed, used
        // through this value alone.
        let memory = unsafe { CoherentRing::new(ring, DmaAddr::new(RING_BASE), entries) };
        let mut config = ChannelConfig::default();
        config.signalling = signalling;
        // Plain memory fails nothing, and holds what is written to its status.
        config.error_head = ErrorHead::AtFailing;
        config.restart = restart;
        let Ok(channel) = Channel::bring_up(registers, memory, config) else {
            panic!("{entries} entries are no ring")
        };
        Self {
            channel,
            registers: device,
            entries: entries as u64,
            issued: 0,
        }
    }

    /// Prepares, submits and issues `burst` descriptors, plays an engine that completes them, and
    /// polls once. What a channel does for its user, all of it.
    ///
    /// # Panics
    ///
    /// If anything of that fails.
    pub fn polled_burst(&mut self, burst: u64) {
        self.submit(burst, Notify::Silent);
        self.complete(burst);
        let progress = self.channel.poll().expect("plain memory has no faults");
        assert_eq!(progress.retired, burst);
    }

    /// The same with an interrupt.
    ///
    /// # Panics
    ///
    /// If anything of that fails.
    pub fn interrupt_burst(&mut self, burst: u64) {
        self.submit(burst, Notify::Interrupt);
        self.complete(burst);
        let progress = self.channel.handle_interrupt().expect("no faults");
        assert_eq!(progress.retired, burst);
    }

    #[inline]
    fn submit(&mut self, burst: u64, notify: Notify) {
        for i in 0..burst {
            let src = std::hint::black_box(0x10_0000 + i * 2 * COPY_LEN_BYTES);
            let request = self
                .channel
                .prep_copy(
                    DmaAddr::new(src),
                    DmaAddr::new(src + COPY_LEN_BYTES),
                    COPY_LEN_BYTES,
                )
                .expect("a good copy");
            self.channel
                .submit(&request, Notify::Silent)
                .expect("room in the ring");
        }
        self.channel.issue_pending(notify);
    }

    #[inline]
    fn complete(&mut self, burst: u64) {
        self.issued += burst;
        let slot = self.issued % self.entries;
        let head = RING_BASE as u32 + slot as u32 * DESCRIPTOR_LEN_BYTES as u32;
        self.registers.write(Register::Head, head);
    }
}
