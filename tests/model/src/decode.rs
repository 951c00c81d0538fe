//! Where the next descriptor is, and whether it is one that the engine accepts.

use ptdma::descriptor::{
    CommandWord, DESCRIPTOR_LEN_BYTES, Descriptor, ENGINE_PASS_THROUGH, MemoryType, PassThrough,
};
use ptdma::regs::QueueControl;
use ptdma::{DmaAddr, DmaRange, KnownError};

use crate::bus::{BusError, CopyError, Side};
use crate::forks::{RingLimit, UnknownEngine};

/// One descriptor, as the unit of head and tail.
const SLOT: u64 = DESCRIPTOR_LEN_BYTES as u64;

/// The ring as head, tail and control describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    base_high: u64,
    /// Selects the bits of a position in the ring, as far as head wraps.
    mask: u64,
}

impl Ring {
    /// Checks that head and tail lie in one ring, aligned to its size.
    pub(crate) fn new(
        control: QueueControl,
        head: u32,
        tail: u32,
        limit: RingLimit,
    ) -> Result<Self, KnownError> {
        if control.contains(QueueControl::MEM_LOCATION) {
            return Err(KnownError::IllegalMemorySelect);
        }
        let mask = control.entries() * SLOT - 1;
        let wraps = match limit {
            RingLimit::Wraps(log2) => (SLOT << log2) - 1,
            RingLimit::No | RingLimit::ReadsBack(_) => mask,
        };
        let ring = Self {
            base_high: u64::from(control.base_high()) << 32,
            mask: mask.min(wraps),
        };
        let (head, tail) = (u64::from(head), u64::from(tail));
        let sane = mask <= u64::from(u32::MAX)
            && head.is_multiple_of(SLOT)
            && tail.is_multiple_of(SLOT)
            && head & !mask == tail & !mask;
        if sane {
            Ok(ring)
        } else {
            Err(KnownError::IllegalMemoryAddress)
        }
    }

    /// Bus address of the descriptor at `head`.
    pub(crate) fn addr(self, head: u32) -> DmaAddr {
        DmaAddr::new(self.base_high | u64::from(head))
    }

    /// The head after the descriptor at `head`.
    pub(crate) fn next(self, head: u32) -> u32 {
        let head = u64::from(head);
        // The mask is at most 32 bits wide, so this is a 32-bit value.
        ((head & !self.mask) | ((head + SLOT) & self.mask)) as u32
    }
}

/// What executing a descriptor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It moves its bytes.
    Moves,
    /// It completes, and moves nothing.
    Nothing,
    /// It does not end.
    Hangs,
}

/// A plain copy, as the engine understood it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) effect: Effect,
    pub(crate) src: DmaRange,
    pub(crate) dst: DmaRange,
    pub(crate) interrupt: bool,
    pub(crate) end: bool,
    pub(crate) stop: bool,
}

/// Bits of word 0 that have no meaning: 2 and 31:25.
const COMMAND_RESERVED: u32 = 0xfe00_0004;
/// LSB context of word 3, bits 25:18. A plain copy has none.
const LSB_CONTEXT: u32 = 0xff << 18;

/// Reads a descriptor as a plain copy, or gives the code that the engine fails it with.
///
/// Everything but a plain copy of system memory is refused, though silicon does more (byte swaps,
/// masks, fixed addresses): no driver of this tree may produce it. Reserved bits are refused too.
pub(crate) fn copy(descriptor: &Descriptor, unknown: UnknownEngine) -> Result<Copy, KnownError> {
    let command = descriptor.command();
    let effect = match (command.engine(), unknown) {
        (ENGINE_PASS_THROUGH, _) | (_, UnknownEngine::Taken) => Effect::Moves,
        (_, UnknownEngine::Refused) => return Err(KnownError::IllegalEngine),
        (_, UnknownEngine::Ignored) => Effect::Nothing,
        (_, UnknownEngine::Hangs) => Effect::Hangs,
    };
    let function = PassThrough::from_field(command.function());
    if function.reserved() != 0 {
        return Err(KnownError::ReservedFunctionBits);
    }
    if function.bitwise() != 0 || function.reflect() != 0 {
        return Err(KnownError::IllegalFunctionType);
    }
    let fixed = (descriptor.src_high.get() | descriptor.dst_high.get()) & Descriptor::FIXED;
    if function.byte_swap() != 0 || fixed != 0 {
        return Err(KnownError::IllegalFunctionMode);
    }
    let reserved = (command.bits() & COMMAND_RESERVED)
        | descriptor.reserved[0].get()
        | descriptor.reserved[1].get();
    if reserved != 0 {
        return Err(KnownError::Reserved15);
    }
    let system = MemoryType::System as u32;
    if descriptor.src_memory_type() != system || descriptor.dst_memory_type() != system {
        return Err(KnownError::IllegalMemorySelect);
    }
    if descriptor.src_high.get() & LSB_CONTEXT != 0 {
        return Err(KnownError::IllegalContextId);
    }
    let len_bytes = u64::from(descriptor.len_bytes.get());
    if len_bytes == 0 {
        return Err(KnownError::IllegalBufferLength);
    }
    let range = |addr| {
        DmaRange::new(addr, len_bytes).map_err(|_out_of_reach| KnownError::IllegalMemoryAddress)
    };
    Ok(Copy {
        effect,
        src: range(descriptor.src())?,
        dst: range(descriptor.dst())?,
        interrupt: command.contains(CommandWord::IOC),
        end: command.contains(CommandWord::EOM),
        stop: command.contains(CommandWord::SOC),
    })
}

/// The code for a bus error: "decode" where nothing answers, "slave" where something refuses.
pub(crate) fn bus_code(side: Side, error: BusError) -> KnownError {
    match (side, error) {
        (Side::Source, BusError::Unmapped { .. }) => KnownError::Input0DecodeError,
        (Side::Source, BusError::Refused { .. }) => KnownError::Input0SlaveError,
        (Side::Destination, BusError::Unmapped { .. }) => KnownError::Output0DecodeError,
        (Side::Destination, BusError::Refused { .. }) => KnownError::Output0SlaveError,
    }
}

/// The code for a copy that ended early.
pub(crate) fn copy_code(error: &CopyError) -> KnownError {
    bus_code(error.side, error.error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::byteorder::little_endian::U32;

    fn good() -> Descriptor {
        Descriptor::copy(
            CommandWord::COPY,
            DmaAddr::new(0x1_0000_1000),
            DmaAddr::new(0x2_0000_1000),
            4096,
        )
    }

    fn code(change: impl FnOnce(&mut Descriptor)) -> Option<KnownError> {
        let mut d = good();
        change(&mut d);
        copy(&d, UnknownEngine::Refused).err()
    }

    fn or(word: &mut U32, bits: u32) {
        word.set(word.get() | bits);
    }

    #[test]
    fn each_field_has_its_code() {
        use KnownError as E;
        assert_eq!(code(|_| ()), None);
        for engine in (0..16).filter(|&e| e != ENGINE_PASS_THROUGH) {
            let c = code(|d| d.command.set(engine << CommandWord::ENGINE_SHIFT));
            assert_eq!(c, Some(E::IllegalEngine));
        }
        let function = |f: u32| code(|d| or(&mut d.command, f << CommandWord::FUNCTION_SHIFT));
        assert_eq!(function(1), Some(E::IllegalFunctionMode));
        assert_eq!(function(1 << 2), Some(E::IllegalFunctionType));
        assert_eq!(function(1 << 5), Some(E::IllegalFunctionType));
        assert_eq!(function(1 << 7), Some(E::ReservedFunctionBits));
        assert_eq!(code(|d| or(&mut d.command, 4)), Some(E::Reserved15));
        assert_eq!(code(|d| or(&mut d.reserved[1], 1)), Some(E::Reserved15));
        assert_eq!(code(|d| d.len_bytes.set(0)), Some(E::IllegalBufferLength));
        for kind in 1..4 {
            let c = code(|d| or(&mut d.src_high, kind << 16));
            assert_eq!(c, Some(E::IllegalMemorySelect));
            let c = code(|d| or(&mut d.dst_high, kind << 16));
            assert_eq!(c, Some(E::IllegalMemorySelect));
        }
        let c = code(|d| or(&mut d.src_high, 1 << 18));
        assert_eq!(c, Some(E::IllegalContextId));
        let c = code(|d| or(&mut d.dst_high, Descriptor::FIXED));
        assert_eq!(c, Some(E::IllegalFunctionMode));
        let c = code(|d| {
            or(&mut d.dst_high, 0xffff);
            d.dst_low.set(0xffff_f001);
        });
        assert_eq!(c, Some(E::IllegalMemoryAddress));
        // What the two AMD drivers set.
        assert_eq!(code(|d| or(&mut d.command, CommandWord::IOC.bits())), None);
        assert_eq!(code(|d| or(&mut d.command, CommandWord::SOC.bits())), None);
        assert_eq!(code(|d| d.command.set(0x0050_0000)), None);
    }

    #[test]
    fn ring_wraps_and_refuses_nonsense() {
        const ANY: RingLimit = RingLimit::No;
        let control = QueueControl::empty().with_size(5).with_base_high(0x12);
        let ring = Ring::new(control, 0x3456_03e0, 0x3456_0000, ANY).unwrap();
        assert_eq!(ring.addr(0x3456_03e0), DmaAddr::new(0x12_3456_03e0));
        assert_eq!(ring.next(0x3456_03e0), 0x3456_0000);
        assert_eq!(ring.next(0x3456_0000), 0x3456_0020);
        let bad = Err(KnownError::IllegalMemoryAddress);
        assert_eq!(Ring::new(control, 0x3456_0000, 0x3456_0400, ANY), bad);
        assert_eq!(Ring::new(control, 0x3456_0001, 0x3456_0020, ANY), bad);
        assert_eq!(Ring::new(control.with_size(32), 0, 0x20, ANY), bad);
        assert_eq!(
            Ring::new(control | QueueControl::MEM_LOCATION, 0, 0x20, ANY),
            Err(KnownError::IllegalMemorySelect)
        );
        // The last window below 4 GiB.
        let top = Ring::new(control, 0xffff_ffe0, 0xffff_fc00, ANY).unwrap();
        assert_eq!(top.next(0xffff_ffe0), 0xffff_fc00);
    }
}
