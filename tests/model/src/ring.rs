//! A ring of descriptors in bus memory.

use std::sync::atomic::{Ordering, fence};

use ptdma::DmaAddr;
use ptdma::descriptor::{CommandWord, DESCRIPTOR_LEN_BYTES, Descriptor};
use ptdma::io::RingMemory;
use zerocopy::IntoBytes;

use crate::bus_space::{Access, AllocError, BusBuffer, BusSpace};

/// Ring memory for a driver under test. The engine may write it, too: a driver may find out what
/// kind of engine it has by copies inside of its ring.
#[derive(Debug)]
pub struct BusRing {
    buffer: BusBuffer,
    entries: usize,
}

impl BusRing {
    /// Allocates a ring aligned to its own size, and not at a multiple of 4 GiB, where the driver
    /// takes none.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if `entries` is zero or no power of two.
    pub fn new(bus: &BusSpace, entries: usize) -> Result<Self, AllocError> {
        let len_bytes = entries.saturating_mul(DESCRIPTOR_LEN_BYTES);
        let alloc = || bus.alloc(len_bytes, len_bytes as u64, Access::ReadWrite);
        let mut buffer = alloc()?;
        if buffer.addr().low() == 0 {
            let first = std::mem::replace(&mut buffer, alloc()?);
            bus.unmap(first.addr())?;
        }
        Ok(Self { buffer, entries })
    }

    /// Uses the start of a buffer as a ring, without a check: for tests of bad rings.
    #[must_use]
    pub fn in_buffer(buffer: BusBuffer, entries: usize) -> Self {
        Self { buffer, entries }
    }

    /// The bytes of the ring.
    #[must_use]
    pub fn buffer(&self) -> &BusBuffer {
        &self.buffer
    }
}

impl RingMemory for BusRing {
    fn base(&self) -> DmaAddr {
        self.buffer.addr()
    }

    fn entries(&self) -> usize {
        self.entries
    }

    fn store(&mut self, slot: usize, descriptor: &Descriptor) {
        // A slot beyond the end is ignored, as the trait asks.
        if slot < self.entries {
            let offset = slot.saturating_mul(DESCRIPTOR_LEN_BYTES);
            let _past_the_end = self.buffer.write(offset, descriptor.as_bytes());
        }
    }

    fn store_command(&mut self, slot: usize, command: CommandWord) {
        if slot < self.entries {
            let offset = slot.saturating_mul(DESCRIPTOR_LEN_BYTES);
            let word = command.bits().to_le_bytes();
            let _past_the_end = self.buffer.write(offset, &word);
        }
    }

    fn publish(&mut self) {
        fence(Ordering::Release);
    }
}
