//! What a platform gives the probe.

use ptdma::{Clock, DmaAddr, RegisterIo, RingMemory};

/// What became of a function-level reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetOutcome {
    /// The function was reset, and answers.
    Works,
    /// The function has none.
    Absent,
    /// The function does not answer since.
    Lost,
    /// The platform could not try it, for this reason.
    Untried(&'static str),
}

/// One function in the hands of the probe: registers, a ring, two buffers, time.
///
/// # What an implementer promises
///
/// Nobody else drives the function. Its engine reaches the ring, the buffers and
/// [`refusing`](Self::refusing) memory, and whatever else it reaches may be overwritten. All three
/// stay mapped as long as the function may be a bus master, if the report's
/// [`stop`](crate::FunctionReport::stop) says that the engine may still run.
pub trait Platform {
    /// Registers of the function.
    type Regs: RegisterIo;
    /// Memory of a ring.
    type Ring: RingMemory;
    /// A clock in nanoseconds.
    type Clock: Clock + Copy;

    /// The registers and the ring. The ring has as many entries as shall be tried: 8192 are the
    /// most that a driver has used on silicon.
    fn parts(&mut self) -> (&Self::Regs, &mut Self::Ring);
    /// The registers.
    fn regs(&self) -> &Self::Regs;
    /// The clock.
    fn clock(&self) -> Self::Clock;

    /// Bus address of the buffer that engines read.
    fn source(&self) -> DmaAddr;
    /// Bus address of the buffer that engines write.
    fn target(&self) -> DmaAddr;
    /// Length of each of the two in bytes: at least 64 KiB, and 2 MiB for all measurements.
    fn room_len_bytes(&self) -> u64;
    /// Writes bytes of the source. A range that is out of bounds may be cut.
    fn write_source(&mut self, at: u64, bytes: &[u8]);
    /// Writes bytes of the target, as [`write_source`](Self::write_source).
    fn write_target(&mut self, at: u64, bytes: &[u8]);
    /// Reads bytes of the target. Bytes that are out of bounds stay as they are.
    fn read_target(&self, at: u64, into: &mut [u8]);

    /// Bus address of a page that engines may read and must not write, because an IOMMU refuses
    /// it. `None` where nothing can refuse: then nothing can be learned of failures that happen
    /// while data moves.
    fn refusing(&self) -> Option<DmaAddr>;
    /// Bus address of two pages of the target's kind with a multiple of 4 GiB in their middle;
    /// `None` if the platform has no such memory.
    fn across_4_gib(&self) -> Option<DmaAddr> {
        None
    }
    /// Reads bytes of [`across_4_gib`](Self::across_4_gib).
    fn read_across(&self, at: u64, into: &mut [u8]) {
        let _ = (at, into);
    }
    /// Writes bytes of [`across_4_gib`](Self::across_4_gib).
    fn write_across(&mut self, at: u64, bytes: &[u8]) {
        let _ = (at, bytes);
    }

    /// Lets the function use the bus, or not. False if it does not obey, or cannot be told.
    fn set_bus_master(&mut self, on: bool) -> bool;
    /// Waits for an interrupt of the function, `limit_ns` at most, and takes it. False if none
    /// came. `None` where interrupts cannot be taken.
    fn take_interrupt(&mut self, limit_ns: u64) -> Option<bool>;
    /// Resets the function, by itself alone, and lets it use the bus again.
    fn reset(&mut self) -> ResetOutcome;
}
