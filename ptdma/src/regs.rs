//! The register map of one PTDMA function (PCI 1022:1498, BAR 2), shared by the driver and the
//! device model.
//!
//! Every offset and bit is a fact read from drivers. They are Linux's for this engine and for its
//! ancestor, the CCP command queue (`drivers/dma/amd/ptdma`, `drivers/crypto/ccp`), and DPDK's
//! `rawdev/ptdma`. An item says so where its meaning is inferred. Nothing here touches hardware:
//! see [`crate::io::RegisterIo`].

use bitflags::bitflags;

/// PCI vendor of the function: AMD. Source: Linux `pt-pci`.
pub const PCI_VENDOR_ID: u16 = 0x1022;
/// PCI device of the function. Source: Linux `pt-pci`; `lspci` calls it "Starship/Matisse PTDMA".
pub const PCI_DEVICE_ID: u16 = 0x1498;
/// PCI class code (base, sub, interface) of the function, 0x130000.
pub const PCI_CLASS: u32 = 0x13_0000;
/// BAR that holds the registers. Source: Linux `pt-pci` (`dev_vdata.bar`).
pub const BAR_INDEX: u8 = 2;
/// Bytes of BAR 2 that the map covers, up to and including the last register known.
pub const BAR_LEN_BYTES: usize = 0x6008;

/// A register by its byte offset from the start of BAR 2. All registers are 32 bits wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum Register {
    /// Queue priority mask; Linux writes bits 2:1 at bring-up.
    QueuePriority = 0x0000,
    /// Request-identifier configuration; Linux writes 0.
    RequestId = 0x0004,
    /// Command timeout; 0 disables it.
    CommandTimeout = 0x0008,
    /// Version, see [`Version`].
    Version = 0x0010,
    /// Function-wide interrupt mask.
    IrqMask = 0x0040,
    /// Function-wide interrupt status.
    IrqStatus = 0x0200,
    /// Queue control, see [`QueueControl`].
    Control = 0x1000,
    /// Queue tail, the doorbell: low half of the bus address of the next free descriptor.
    Tail = 0x1004,
    /// Queue head: low half of the bus address of the descriptor to execute next. Writable, which
    /// is how software skips or flushes descriptors.
    Head = 0x1008,
    /// Interrupt enable, see [`Interrupts`].
    InterruptEnable = 0x100C,
    /// Interrupt status, write 1 to clear, see [`Interrupts`].
    InterruptStatus = 0x1010,
    /// Queue status: the error code in bits 5:0, see [`crate::ErrorCode`].
    Status = 0x1100,
    /// Queue interrupt status; read once at bring-up.
    QueueInterruptStatus = 0x1104,
    /// DMA status; diagnostic.
    DmaStatus = 0x1108,
    /// DMA read status; diagnostic.
    DmaReadStatus = 0x110C,
    /// DMA write status; diagnostic.
    DmaWriteStatus = 0x1110,
    /// Abort. Named in Linux, never written there; the effect of writing it is unknown, so this
    /// driver does not.
    Abort = 0x1114,
    /// AXI cache attributes.
    AxiCache = 0x1118,
    /// Function configuration, see [`Config`].
    Config = 0x1120,
    /// Clock-gate control, see [`ClockGate`].
    ClockGate = 0x6004,
}

impl Register {
    /// All registers, in order of offset.
    pub const ALL: [Self; 20] = [
        Self::QueuePriority,
        Self::RequestId,
        Self::CommandTimeout,
        Self::Version,
        Self::IrqMask,
        Self::IrqStatus,
        Self::Control,
        Self::Tail,
        Self::Head,
        Self::InterruptEnable,
        Self::InterruptStatus,
        Self::Status,
        Self::QueueInterruptStatus,
        Self::DmaStatus,
        Self::DmaReadStatus,
        Self::DmaWriteStatus,
        Self::Abort,
        Self::AxiCache,
        Self::Config,
        Self::ClockGate,
    ];

    /// Byte offset from the start of BAR 2.
    #[must_use]
    pub const fn offset(self) -> usize {
        self as usize
    }

    /// The register at a byte offset, or `None` if nothing is known to be there.
    #[must_use]
    pub fn from_offset(offset: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.offset() == offset)
    }
}

bitflags! {
    /// Bits of [`Register::Control`] that are flags. The other fields of the register are
    /// [`QueueControl::with_size`] and [`QueueControl::with_base_high`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct QueueControl: u32 {
        /// The engine walks the ring while this is set and head differs from tail.
        const RUN = 1 << 0;
        /// The engine has stopped, or is told to. Reads 1 after the queue drained (source: DPDK
        /// and Linux both set RUN again for every start).
        const HALT = 1 << 1;
        /// Ring lives in local memory rather than system memory (inferred from its name; 0 here).
        const MEM_LOCATION = 1 << 2;
        /// Field: log2(entries) - 1.
        const SIZE = 0x1f << Self::SIZE_SHIFT;
        /// Field: bits 47:32 of the bus address of the ring.
        const BASE_HIGH = 0xffff << Self::BASE_HIGH_SHIFT;
        /// Bits without a known meaning are kept.
        const _ = !0;
    }
}

impl QueueControl {
    /// Position of the SIZE field.
    pub const SIZE_SHIFT: u32 = 3;
    /// Position of the high half of the ring's bus address.
    pub const BASE_HIGH_SHIFT: u32 = 16;

    /// The same value with the SIZE field set to `log2_entries - 1` (5 bits).
    #[must_use]
    pub const fn with_size(self, log2_entries: u32) -> Self {
        let field = (log2_entries.saturating_sub(1) << Self::SIZE_SHIFT) & Self::SIZE.bits();
        Self::from_bits_retain((self.bits() & !Self::SIZE.bits()) | field)
    }

    /// The same value with bits 31:16 set to the high half of the ring's bus address.
    #[must_use]
    pub const fn with_base_high(self, high: u16) -> Self {
        Self::from_bits_retain(
            (self.bits() & !Self::BASE_HIGH.bits()) | ((high as u32) << Self::BASE_HIGH_SHIFT),
        )
    }

    /// Number of ring entries that the SIZE field stands for.
    #[must_use]
    pub const fn entries(self) -> u64 {
        // The field has 5 bits.
        2 << ((self.bits() & Self::SIZE.bits()) >> Self::SIZE_SHIFT)
    }

    /// High half of the ring's bus address.
    #[must_use]
    pub const fn base_high(self) -> u16 {
        (self.bits() >> Self::BASE_HIGH_SHIFT) as u16
    }
}

bitflags! {
    /// Bits of [`Register::InterruptEnable`] and [`Register::InterruptStatus`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Interrupts: u32 {
        /// A descriptor with IOC completed.
        const COMPLETION = 1 << 0;
        /// A descriptor failed; the queue is halted at it.
        const ERROR = 1 << 1;
        /// The queue stopped.
        const STOPPED = 1 << 2;
        /// The queue ran empty.
        const EMPTY = 1 << 3;
        /// Bits without a known meaning are kept.
        const _ = !0;
    }
}

impl Interrupts {
    /// The four sources that are known.
    pub const KNOWN: Self = Self::COMPLETION
        .union(Self::ERROR)
        .union(Self::STOPPED)
        .union(Self::EMPTY);
}

bitflags! {
    /// Bits of [`Register::Config`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Config: u32 {
        /// "VHB" enable; Linux sets it first of all at bring-up.
        const VHB_ENABLE = 1 << 0;
        /// Bits without a known meaning are kept.
        const _ = !0;
    }
}

bitflags! {
    /// Bits of [`Register::ClockGate`] that Linux sets at bring-up.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct ClockGate: u32 {
        /// Hardware (dynamic) clock gating.
        const DYNAMIC = 1 << 0;
        /// Delay between gating off and on.
        const ON_OFF_DELAY = 1 << 12;
        /// Bits without a known meaning are kept.
        const _ = !0;
    }
}

/// What Linux writes to [`Register::QueuePriority`]: bits 2:1.
pub const QUEUE_PRIORITY_DEFAULT: u32 = 0b110;

/// Value of [`Register::Version`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version(u32);

impl Version {
    /// Wraps the raw register value.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// The raw register value.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Version number, bits 5:0.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0 & 0x3f
    }

    /// Number of queues, bits 18:15.
    #[must_use]
    pub const fn queues(self) -> u32 {
        (self.0 >> 15) & 0xf
    }
}

/// What every register reads as when the function does not answer: removed, powered off, or its
/// link is down (PCI's master abort).
pub const ALL_ONES: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_the_published_ones() {
        let expected: [usize; 20] = [
            0x0000, 0x0004, 0x0008, 0x0010, 0x0040, 0x0200, 0x1000, 0x1004, 0x1008, 0x100C, 0x1010,
            0x1100, 0x1104, 0x1108, 0x110C, 0x1110, 0x1114, 0x1118, 0x1120, 0x6004,
        ];
        assert_eq!(Register::ALL.map(Register::offset), expected);
        for r in Register::ALL {
            assert_eq!(Register::from_offset(r.offset()), Some(r));
        }
        assert_eq!(Register::from_offset(0x1001), None);
    }

    #[test]
    fn control_fields_do_not_disturb_each_other() {
        let c = QueueControl::RUN.with_size(5).with_base_high(0xabcd);
        assert_eq!(c.bits(), 0xabcd_0021);
        assert_eq!(c.entries(), 32);
        assert_eq!(c.base_high(), 0xabcd);
        assert_eq!(QueueControl::empty().with_size(13).entries(), 8192);
        assert_eq!(QueueControl::empty().with_size(13).bits(), 12 << 3);
        assert_eq!(QueueControl::empty().with_size(1).entries(), 2);
    }

    #[test]
    fn version_fields() {
        let v = Version::from_raw((1 << 15) | 5);
        assert_eq!((v.number(), v.queues()), (5, 1));
    }
}
