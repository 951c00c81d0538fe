//! The seam between the driver and the hardware: registers, ring memory, time.
//!
//! The driver proper is safe code over these traits. [`crate::mmio::Mmio`] and
//! [`crate::ring_memory::CoherentRing`] implement them for real hardware. The device model of the
//! test tree and recording mocks implement them for tests. A kernel or hypervisor may bring its
//! own.

use crate::addr::DmaAddr;
use crate::descriptor::{CommandWord, Descriptor};
use crate::regs::Register;

/// Access to the registers of one function.
///
/// # What an implementer promises
///
/// - Every call is exactly one 32-bit access, in program order, neither merged, torn, repeated
///   nor left out.
/// - A [`write`](Self::write) is not overtaken by an earlier [`RingMemory::publish`]: once the
///   device sees the written value it also sees every descriptor published before. On `x86_64`
///   an uncached store after a compiler barrier has this property; elsewhere the implementation
///   must fence.
/// - A [`read`](Self::read) of a register returns after the device's earlier writes to memory are
///   visible to this CPU. PCI ordering has a read completion push posted writes ahead of it. Data
///   is thus there once the head register says so.
///
/// # What the driver promises
///
/// It reads and writes only the registers of [`Register`], never in an unbounded loop.
pub trait RegisterIo {
    /// Reads a register.
    fn read(&self, register: Register) -> u32;
    /// Writes a register.
    fn write(&self, register: Register, value: u32);
}

impl<T: RegisterIo + ?Sized> RegisterIo for &T {
    #[inline]
    fn read(&self, register: Register) -> u32 {
        (**self).read(register)
    }
    #[inline]
    fn write(&self, register: Register, value: u32) {
        (**self).write(register, value);
    }
}

/// The memory that a ring of descriptors lives in: DMA-coherent, readable by the device at
/// [`base`](Self::base).
///
/// # What an implementer promises
///
/// - The memory has room for [`entries`](Self::entries) descriptors and stays mapped for the
///   device at [`base`](Self::base) as long as the value lives; both are constant.
/// - After [`publish`](Self::publish) returned, a register write lets the device see all earlier
///   [`store`](Self::store)s.
///
/// # What the driver promises
///
/// A channel never reads the memory back, and never stores to a slot that the engine may still
/// read. It keeps `slot < entries()`; an implementation ignores a store beyond that.
pub trait RingMemory {
    /// Bus address of slot 0: a multiple of the ring's size, and none of 4 GiB.
    fn base(&self) -> DmaAddr;
    /// Number of slots.
    fn entries(&self) -> usize;
    /// Writes a descriptor to a slot.
    fn store(&mut self, slot: usize, descriptor: &Descriptor);
    /// Rewrites word 0 of a slot that was stored and not yet published to the engine. The slot's
    /// interrupt flag is set without the rest being at hand.
    fn store_command(&mut self, slot: usize, command: CommandWord);
    /// Orders all earlier stores before the next register write.
    fn publish(&mut self);
}

/// A monotonic clock, for deadlines.
///
/// The unit is the caller's (TSC cycles, nanoseconds, jiffies, polls); the driver only compares.
/// A clock that does not advance makes waits end by their bound on polls instead.
pub trait Clock {
    /// Now, in the clock's own unit; never decreases, may wrap.
    fn now(&self) -> u64;
}

impl<T: Clock + ?Sized> Clock for &T {
    #[inline]
    fn now(&self) -> u64 {
        (**self).now()
    }
}
