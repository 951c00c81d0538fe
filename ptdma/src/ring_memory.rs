//! Real ring memory: DMA-coherent memory behind a raw pointer.

use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

use crate::addr::DmaAddr;
use crate::descriptor::{CommandWord, DESCRIPTOR_LEN_BYTES, Descriptor};
use crate::io::RingMemory;

/// A descriptor's size in 64-bit words.
const QUADS: usize = DESCRIPTOR_LEN_BYTES / 8;

/// A ring in DMA-coherent memory that this CPU sees at one address and the device at another.
#[derive(Debug)]
pub struct CoherentRing {
    slots: NonNull<[u64; QUADS]>,
    base: DmaAddr,
    entries: usize,
}

// SAFETY: the memory is owned through this value alone (constructor's contract), so it may move
// to another thread with it. There is no interior mutability behind `&self`.
unsafe impl Send for CoherentRing {}
// SAFETY: `&self` only reads the two constants.
unsafe impl Sync for CoherentRing {}

impl CoherentRing {
    /// Takes `entries` descriptors' worth of memory at `virt`, which the device reaches at `base`.
    ///
    /// Whether `entries` and `base` suit the engine is checked when a channel is brought up. A base
    /// whose low 32 bits are 0 does not, see [`RingError::LooksReset`](crate::RingError::LooksReset).
    ///
    /// # Safety
    ///
    /// The caller promises, until this value comes back from
    /// [`shutdown`](crate::Channel::shutdown), [`shutdown_quiesced`](crate::Channel::shutdown_quiesced)
    /// or a [`bring_up`](crate::Channel::bring_up) that failed, and for ever if it does not:
    ///
    /// - `virt` is 8-byte aligned and valid for writes of `entries * 32` bytes, and nobody else in
    ///   this address space uses that memory.
    /// - The memory is coherent with the device: what `dma_alloc_coherent` gives, or ordinary
    ///   memory on a machine whose devices snoop. It is mapped for the device at `base`, to read
    ///   and to write: [`find_out`](crate::Channel::find_out) has the engine copy one slot to
    ///   another.
    ///
    /// In return a channel never gives the memory back before the engine was proved stopped: a
    /// channel that is dropped without [`shutdown`](crate::Channel::shutdown) forgets it instead.
    /// No borrow can say so much, for a channel may be dropped with its engine at work.
    #[must_use]
    pub unsafe fn new(virt: NonNull<u8>, base: DmaAddr, entries: usize) -> Self {
        Self {
            slots: virt.cast(),
            base,
            entries,
        }
    }

    /// Where the memory is for this CPU.
    #[must_use]
    pub fn virt(&self) -> NonNull<u8> {
        self.slots.cast()
    }
}

impl RingMemory for CoherentRing {
    fn base(&self) -> DmaAddr {
        self.base
    }

    fn entries(&self) -> usize {
        self.entries
    }

    #[inline]
    fn store(&mut self, slot: usize, descriptor: &Descriptor) {
        if slot >= self.entries {
            return;
        }
        // SAFETY: `slot < entries`, and the constructor was promised that many slots.
        let target = unsafe { self.slots.as_ptr().add(slot) }.cast::<u64>();
        // One by one: an array written as one takes a detour over the stack.
        for (number, quad) in descriptor.to_quads().into_iter().enumerate() {
            // SAFETY: `number < QUADS`, the size of a slot.
            let word = unsafe { target.add(number) };
            // SAFETY: `word` is valid for writes and 8-byte aligned (constructor's contract), and
            // nobody else in this address space uses it. Volatile, because the device reads it.
            unsafe { word.write_volatile(quad) }
        }
    }

    #[inline]
    fn store_command(&mut self, slot: usize, command: CommandWord) {
        if slot >= self.entries {
            return;
        }
        // SAFETY: `slot < entries`, and the constructor was promised that many slots.
        let target = unsafe { self.slots.as_ptr().add(slot) }.cast::<u32>();
        // SAFETY: as in `store`; word 0 is the first of the slot's bytes.
        unsafe { target.write_volatile(command.bits().to_le()) }
    }

    #[inline]
    fn publish(&mut self) {
        // Ordinary stores before the uncached store of the doorbell: x86 keeps that order by
        // itself, so this only has to hold the compiler. (The crate's registers are of x86.)
        fence(Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    #[test]
    fn a_slot_holds_the_descriptor_and_nothing_beyond_is_touched() {
        let mut memory = std::vec![0_u64; 3 * QUADS];
        let virt = NonNull::new(memory.as_mut_ptr()).unwrap().cast();
        let copy = Descriptor::copy(CommandWord::COPY, DmaAddr::new(1), DmaAddr::new(2), 3);
        // SAFETY: two descriptors fit in `memory`, which outlives the ring and is not used
        // meanwhile.
        let mut ring = unsafe { CoherentRing::new(virt, DmaAddr::new(0), 2) };
        ring.store(1, &copy);
        ring.store(2, &copy);
        ring.store_command(1, CommandWord::COPY_IOC);
        ring.store_command(2, CommandWord::COPY_IOC);
        ring.publish();
        let mut copy = copy;
        copy.command.set(CommandWord::COPY_IOC.bits());
        assert_eq!(memory[..QUADS].as_bytes(), [0; 32]);
        assert_eq!(memory[QUADS..2 * QUADS].as_bytes(), copy.as_bytes());
        assert_eq!(memory[2 * QUADS..].as_bytes(), [0; 32]);
    }
}
