//! The 32-byte command descriptor, shared by the driver and the device model.
//!
//! Source of the layout: Linux `drivers/dma/amd/ptdma` and DPDK `rawdev/ptdma`.

use core::mem::{offset_of, size_of};

use bitflags::bitflags;
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::addr::DmaAddr;

/// Size of one descriptor in bytes.
pub const DESCRIPTOR_LEN_BYTES: usize = 32;

/// Longest copy that one descriptor can describe: the length word has 32 bits.
///
/// Linux advertises no smaller limit. Nobody is known to have tried lengths near it on silicon, so
/// [`DEFAULT_MAX_LEN_BYTES`](crate::DEFAULT_MAX_LEN_BYTES) applies by default.
pub const MAX_DESCRIPTOR_LEN_BYTES: u64 = u32::MAX as u64;

/// Engine number of pass-through DMA in word 0.
pub const ENGINE_PASS_THROUGH: u32 = 5;

bitflags! {
    /// Word 0 of a descriptor.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct CommandWord: u32 {
        /// Stop the queue on completion of this descriptor.
        const SOC = 1 << 0;
        /// Interrupt on completion.
        const IOC = 1 << 1;
        /// Start of message; only meaningful to the crypto engines.
        const INIT = 1 << 3;
        /// End of message. Linux sets it on every pass-through descriptor, DPDK on none: a copy
        /// needs neither.
        const EOM = 1 << 4;
        /// Field: engine-specific function, see [`PassThrough`].
        const FUNCTION = 0x7fff << Self::FUNCTION_SHIFT;
        /// Field: engine number.
        const ENGINE = 0xf << Self::ENGINE_SHIFT;
        /// Protected.
        const PROT = 1 << 24;
        /// Bits without a known meaning are kept.
        const _ = !0;
    }
}

impl CommandWord {
    /// Position of the function field.
    pub const FUNCTION_SHIFT: u32 = 5;
    /// Position of the engine field.
    pub const ENGINE_SHIFT: u32 = 20;

    /// A plain copy without an interrupt: engine 5, function 0 and no flag. 0x50_0000, the word
    /// that the DPDK driver has used on silicon. (Linux never leaves IOC out.)
    pub const COPY: Self = Self::from_bits_retain(ENGINE_PASS_THROUGH << Self::ENGINE_SHIFT);

    /// A plain copy that interrupts when it completed: the same with IOC and EOM. 0x50_0012, the
    /// word that the Linux driver has used on silicon. (DPDK never sets IOC.)
    pub const COPY_IOC: Self = Self::COPY.union(Self::IOC).union(Self::EOM);

    /// The engine number, bits 23:20.
    #[must_use]
    pub const fn engine(self) -> u32 {
        (self.bits() & Self::ENGINE.bits()) >> Self::ENGINE_SHIFT
    }

    /// The function field, bits 19:5.
    #[must_use]
    pub const fn function(self) -> u32 {
        (self.bits() & Self::FUNCTION.bits()) >> Self::FUNCTION_SHIFT
    }
}

/// The function field of a pass-through descriptor. All zero, the default, is a plain copy.
///
/// Source: Linux `union pt_function` (byte swap 2 bits, bitwise 3 bits, reflect 2 bits) and DPDK
/// for the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct PassThrough(u32);

impl PassThrough {
    /// A plain copy.
    pub const COPY: Self = Self(0);

    /// Wraps the 15-bit field as it stands in the descriptor.
    #[must_use]
    pub const fn from_field(field: u32) -> Self {
        Self(field)
    }

    /// Byte swap, bits 1:0: 0 none, 1 in 32-bit words, 2 in 256-bit words.
    #[must_use]
    pub const fn byte_swap(self) -> u32 {
        self.0 & 0b11
    }

    /// Bitwise operation with a mask, bits 4:2: 0 none, 1 AND, 2 OR, 3 XOR, 4 overwrite.
    #[must_use]
    pub const fn bitwise(self) -> u32 {
        (self.0 >> 2) & 0b111
    }

    /// Reflection, bits 6:5.
    #[must_use]
    pub const fn reflect(self) -> u32 {
        (self.0 >> 5) & 0b11
    }

    /// Bits 14:7 have no meaning; the engine refuses them (error 8).
    #[must_use]
    pub const fn reserved(self) -> u32 {
        self.0 >> 7
    }
}

/// Memory type of an address, in bits 17:16 of its high word. Source: DPDK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum MemoryType {
    /// System memory, the only one used here.
    System = 0,
    /// The engine's local storage block.
    LocalStorage = 1,
    /// Engine-local memory.
    Local = 2,
}

/// One command, as it lies in the ring: eight little-endian 32-bit words.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Descriptor {
    /// Word 0, see [`CommandWord`].
    pub command: U32,
    /// Word 1: bytes to copy.
    pub len_bytes: U32,
    /// Word 2: source address, bits 31:0.
    pub src_low: U32,
    /// Word 3: source address bits 47:32 in 15:0, memory type in 17:16, LSB context in 25:18,
    /// fixed address in 31.
    pub src_high: U32,
    /// Word 4: destination address, bits 31:0.
    pub dst_low: U32,
    /// Word 5: destination address bits 47:32 in 15:0, memory type in 17:16, fixed address in 31.
    pub dst_high: U32,
    /// Words 6 and 7: reserved, zero.
    pub reserved: [U32; 2],
}

const _: () = {
    assert!(size_of::<Descriptor>() == DESCRIPTOR_LEN_BYTES);
    assert!(offset_of!(Descriptor, command) == 0);
    assert!(offset_of!(Descriptor, len_bytes) == 4);
    assert!(offset_of!(Descriptor, src_low) == 8);
    assert!(offset_of!(Descriptor, src_high) == 12);
    assert!(offset_of!(Descriptor, dst_low) == 16);
    assert!(offset_of!(Descriptor, dst_high) == 20);
    assert!(offset_of!(Descriptor, reserved) == 24);
    // Each is a word that silicon has run; EOM without IOC would be one that it has not.
    assert!(CommandWord::COPY.bits() == 0x0050_0000);
    assert!(CommandWord::COPY_IOC.bits() == 0x0050_0012);
};

impl Descriptor {
    /// Bits of a high word that hold the address.
    const ADDR_HIGH: u32 = 0xffff;
    /// Position of the memory type in a high word.
    const MEMORY_TYPE_SHIFT: u32 = 16;
    /// Fixed-address bit of a high word: the address does not advance.
    pub const FIXED: u32 = 1 << 31;

    /// A copy of `len_bytes` bytes of system memory from `src` to `dst`.
    ///
    /// Nothing is checked: [`crate::CopyRequest::new`] does that. Address bits over 47 are
    /// dropped.
    #[must_use]
    #[inline]
    pub const fn copy(command: CommandWord, src: DmaAddr, dst: DmaAddr, len_bytes: u32) -> Self {
        Self {
            command: U32::from_bytes(command.bits().to_le_bytes()),
            len_bytes: U32::from_bytes(len_bytes.to_le_bytes()),
            src_low: U32::from_bytes(src.low().to_le_bytes()),
            src_high: U32::from_bytes((src.high() as u32).to_le_bytes()),
            dst_low: U32::from_bytes(dst.low().to_le_bytes()),
            dst_high: U32::from_bytes((dst.high() as u32).to_le_bytes()),
            reserved: [U32::ZERO; 2],
        }
    }

    /// [`copy`](Self::copy) of addresses that are known to have no bits over 47. Nothing has to be
    /// dropped then, which saves a third of the work.
    #[inline]
    pub(crate) const fn of_checked(
        command: CommandWord,
        src: DmaAddr,
        dst: DmaAddr,
        len_bytes: u32,
    ) -> Self {
        Self {
            src_high: U32::from_bytes(((src.get() >> 32) as u32).to_le_bytes()),
            dst_high: U32::from_bytes(((dst.get() >> 32) as u32).to_le_bytes()),
            ..Self::copy(command, src, dst, len_bytes)
        }
    }

    /// Word 0 with its bits named.
    #[must_use]
    pub fn command(&self) -> CommandWord {
        CommandWord::from_bits_retain(self.command.get())
    }

    /// Source address.
    #[must_use]
    pub fn src(&self) -> DmaAddr {
        Self::addr(self.src_low.get(), self.src_high.get())
    }

    /// Destination address.
    #[must_use]
    pub fn dst(&self) -> DmaAddr {
        Self::addr(self.dst_low.get(), self.dst_high.get())
    }

    /// Raw memory type of the source, 0..=3, see [`MemoryType`].
    #[must_use]
    pub fn src_memory_type(&self) -> u32 {
        (self.src_high.get() >> Self::MEMORY_TYPE_SHIFT) & 0b11
    }

    /// Raw memory type of the destination, 0..=3, see [`MemoryType`].
    #[must_use]
    pub fn dst_memory_type(&self) -> u32 {
        (self.dst_high.get() >> Self::MEMORY_TYPE_SHIFT) & 0b11
    }

    /// The descriptor as four 64-bit stores, little endian, in ascending order of address.
    #[must_use]
    #[inline]
    pub fn to_quads(&self) -> [u64; 4] {
        let pair = |low: U32, high: U32| (u64::from(high.get()) << 32) | u64::from(low.get());
        let [r6, r7] = self.reserved;
        [
            pair(self.command, self.len_bytes).to_le(),
            pair(self.src_low, self.src_high).to_le(),
            pair(self.dst_low, self.dst_high).to_le(),
            pair(r6, r7).to_le(),
        ]
    }

    fn addr(low: u32, high: u32) -> DmaAddr {
        DmaAddr::new((u64::from(high & Self::ADDR_HIGH) << 32) | u64::from(low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Descriptor {
        Descriptor::copy(
            CommandWord::COPY_IOC,
            DmaAddr::new(0x1122_3344_5566),
            DmaAddr::new(0xaabb_ccdd_eeff),
            0x1000,
        )
    }

    #[test]
    fn bytes_are_little_endian_words() {
        assert_eq!(
            sample().as_bytes(),
            [
                0x12, 0x00, 0x50, 0x00, 0x00, 0x10, 0x00, 0x00, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
                0x00, 0x00, 0xff, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x00, 0x00, 0, 0, 0, 0, 0, 0, 0, 0
            ]
        );
    }

    #[test]
    fn fields_come_back() {
        let d = Descriptor::read_from_bytes(sample().as_bytes()).unwrap();
        assert_eq!(d.src().get(), 0x1122_3344_5566);
        assert_eq!(d.dst().get(), 0xaabb_ccdd_eeff);
        assert_eq!(d.len_bytes.get(), 0x1000);
        assert_eq!(d.command(), CommandWord::COPY_IOC);
        assert_eq!((d.command().engine(), d.command().function()), (5, 0));
        assert_eq!((d.src_memory_type(), d.dst_memory_type()), (0, 0));
    }

    #[test]
    fn quads_are_the_bytes() {
        let bytes: [u8; 32] = sample()
            .to_quads()
            .map(u64::to_ne_bytes)
            .concat()
            .try_into()
            .unwrap();
        assert_eq!(&bytes, sample().as_bytes());
    }

    #[test]
    fn pass_through_fields() {
        let f = PassThrough::from_field(0b1100_1101);
        assert_eq!(
            (f.byte_swap(), f.bitwise(), f.reflect(), f.reserved()),
            (1, 3, 2, 1)
        );
    }
}
