//! PCI configuration space of the function.
//!
//! Layout from the PCI Express base specification; the identity from [`ptdma::regs`]. Registers
//! that the client emulates itself (base addresses, the MSI-X table) are kept here too, so that any
//! client may rely on them.

use ptdma::regs::{PCI_CLASS, PCI_DEVICE_ID, PCI_VENDOR_ID};
use vfio_bindings::bindings::vfio::{VFIO_PCI_BAR2_REGION_INDEX, VFIO_PCI_BAR5_REGION_INDEX};

/// Length of a PCI Express function's configuration space.
pub const LEN_BYTES: usize = 4096;
/// Length of BAR 2, the registers: the map ends at 0x6008 and a BAR is a power of two; 64 KiB.
pub const REGISTER_BAR_LEN_BYTES: u32 = 64 << 10;
/// Length of BAR 5, which holds the MSI-X table and its pending bits.
pub const MSIX_BAR_LEN_BYTES: u32 = 4 << 10;
/// Where the pending bits are in BAR 5.
const MSIX_PBA_OFFSET: u32 = 0x800;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CLASS: usize = 0x08;
const BARS: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

const PCIE: usize = 0x40;
const MSIX: usize = 0x80;
const MSI: usize = 0x90;

/// Capability identifiers.
const CAP_MSI: u8 = 0x05;
const CAP_PCIE: u8 = 0x10;
const CAP_MSIX: u8 = 0x11;

/// Command register: memory space, bus master, parity, SERR, INTx disable can be written.
const COMMAND_WRITABLE: u16 = 0x0546;
/// Command register: bus master.
const COMMAND_BUS_MASTER: u8 = 1 << 2;
/// Status register: there is a list of capabilities.
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Device capabilities: role-based error reporting, which the specification requires.
const DEVCAP_ROLE_BASED_ERRORS: u32 = 1 << 15;
/// Device capabilities: function-level reset.
const DEVCAP_FLR: u32 = 1 << 28;
/// Device control, high byte: initiate function-level reset.
const DEVCTL_HIGH_FLR: u8 = 1 << 7;
/// Link: 16 GT/s, 16 lanes, as an internal function of an EPYC reports (inferred; nothing here
/// depends on it).
const LINK: u16 = 0x0104;

/// What a write asks for beside the change of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// A function-level reset.
    FunctionReset,
}

/// The bytes, and which of them can be written.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: Box<[u8; LEN_BYTES]>,
    writable: Box<[u8; LEN_BYTES]>,
}

impl ConfigSpace {
    /// As after power-on, of a function with or without a function-level reset.
    #[must_use]
    pub fn new(resets: bool) -> Self {
        let mut c = Self {
            bytes: Box::new([0; LEN_BYTES]),
            writable: Box::new([0; LEN_BYTES]),
        };
        c.put(0, &PCI_VENDOR_ID.to_le_bytes());
        c.put(2, &PCI_DEVICE_ID.to_le_bytes());
        c.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        c.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        // The lowest byte is the revision, 0.
        c.put(CLASS, &(PCI_CLASS << 8).to_le_bytes());
        c.put(SUBSYSTEM, &PCI_VENDOR_ID.to_le_bytes());
        c.put(SUBSYSTEM + 2, &PCI_DEVICE_ID.to_le_bytes());
        // 32-bit memory BARs: the low bits read zero, the size is what can be written.
        c.allow_bar(VFIO_PCI_BAR2_REGION_INDEX, REGISTER_BAR_LEN_BYTES);
        c.allow_bar(VFIO_PCI_BAR5_REGION_INDEX, MSIX_BAR_LEN_BYTES);
        c.allow(INTERRUPT_LINE, &[0xff]);

        c.put(CAPABILITIES, &[PCIE as u8]);
        // Version 2, an endpoint.
        c.put(PCIE, &[CAP_PCIE, MSIX as u8, 2, 0]);
        c.put(PCIE + 4, &DEVCAP_ROLE_BASED_ERRORS.to_le_bytes());
        c.set_resets(resets);
        // Device control but for the reset bit, which reads zero.
        c.allow(PCIE + 8, &[0xff, !DEVCTL_HIGH_FLR]);
        c.put(PCIE + 0x0c, &u32::from(LINK).to_le_bytes());
        c.allow(PCIE + 0x10, &[0xc3, 0x03]);
        c.put(PCIE + 0x12, &LINK.to_le_bytes());

        // One vector (encoded as 0); enable and function mask can be written.
        c.put(MSIX, &[CAP_MSIX, MSI as u8, 0, 0]);
        c.allow(MSIX + 3, &[0xc0]);
        let bir = VFIO_PCI_BAR5_REGION_INDEX;
        c.put(MSIX + 4, &bir.to_le_bytes());
        c.put(MSIX + 8, &(MSIX_PBA_OFFSET | bir).to_le_bytes());

        // 64-bit addresses, one vector.
        c.put(MSI, &[CAP_MSI, 0, 0x80, 0]);
        c.allow(MSI + 2, &[0x71]);
        c.allow(MSI + 4, &[0xfc, 0xff, 0xff, 0xff]);
        c.allow(MSI + 8, &[0xff; 6]);
        c
    }

    /// Says from now on that the function has a function-level reset, or that it has none.
    pub fn set_resets(&mut self, resets: bool) {
        let flr = if resets { DEVCAP_FLR } else { 0 };
        let devcap = DEVCAP_ROLE_BASED_ERRORS | flr;
        self.put(PCIE + 4, &devcap.to_le_bytes());
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        for (to, from) in self.writable.iter_mut().skip(at).zip(mask) {
            *to = *from;
        }
    }

    fn allow_bar(&mut self, index: u32, len_bytes: u32) {
        self.allow(BARS + 4 * index as usize, &(!(len_bytes - 1)).to_le_bytes());
    }

    /// Reads bytes; zero past the end.
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        buf.fill(0);
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        for (to, from) in buf.iter_mut().zip(self.bytes.iter().skip(offset)) {
            *to = *from;
        }
    }

    /// Writes what can be written of `data`; ignores the rest.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let Ok(offset) = usize::try_from(offset) else {
            return Effect::None;
        };
        let mut effect = Effect::None;
        let slots = self.bytes.iter_mut().zip(self.writable.iter()).enumerate();
        for ((at, (byte, mask)), new) in slots.skip(offset).zip(data) {
            *byte = (*byte & !mask) | (new & mask);
            if at == PCIE + 9 && new & DEVCTL_HIGH_FLR != 0 {
                effect = Effect::FunctionReset;
            }
        }
        effect
    }

    /// Whether the function may use the bus.
    #[must_use]
    pub fn bus_master(&self) -> bool {
        self.bytes[COMMAND] & COMMAND_BUS_MASTER != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(c: &ConfigSpace, at: u64) -> u32 {
        let mut b = [0; 4];
        c.read(at, &mut b);
        u32::from_le_bytes(b)
    }

    #[test]
    fn identity_and_bars() {
        let mut c = ConfigSpace::new(true);
        assert_eq!(word(&c, 0), 0x1498_1022);
        assert_eq!(word(&c, 8), 0x1300_0000);
        for bar in 0..6 {
            let at = 0x10 + 4 * bar;
            c.write(at, &[0xff; 4]);
            let expected = match bar {
                2 => 0xffff_0000,
                5 => 0xffff_f000,
                _ => 0,
            };
            assert_eq!(word(&c, at), expected, "BAR {bar}");
        }
        c.write(0, &[0; 4]);
        assert_eq!(word(&c, 0), 0x1498_1022);
    }

    #[test]
    fn the_capability_list_ends_and_has_three() {
        let c = ConfigSpace::new(true);
        let mut at = u64::from(c.bytes[CAPABILITIES]);
        let mut found = vec![];
        while at != 0 {
            assert!(found.len() < 4);
            found.push(word(&c, at) as u8);
            at = u64::from(word(&c, at) >> 8 & 0xff);
        }
        assert_eq!(found, [CAP_PCIE, CAP_MSIX, CAP_MSI]);
    }

    #[test]
    fn reset_bit_acts_and_reads_zero() {
        let mut c = ConfigSpace::new(true);
        assert_eq!(c.write(PCIE as u64 + 8, &[0x10, 0x00]), Effect::None);
        let effect = c.write(PCIE as u64 + 8, &[0x10, 0x80]);
        assert_eq!(effect, Effect::FunctionReset);
        assert_eq!(word(&c, PCIE as u64 + 8) & 0xffff, 0x0010);
        assert_eq!(c.write(PCIE as u64 + 9, &[0x80]), Effect::FunctionReset);
    }

    #[test]
    fn the_reset_is_announced_only_where_there_is_one() {
        let has = |c: &ConfigSpace| word(c, PCIE as u64 + 4) & DEVCAP_FLR != 0;
        let mut c = ConfigSpace::new(false);
        assert!(!has(&c));
        c.set_resets(true);
        assert!(has(&c) && has(&ConfigSpace::new(true)));
        assert_ne!(word(&c, PCIE as u64 + 4) & DEVCAP_ROLE_BASED_ERRORS, 0);
    }

    #[test]
    fn any_place_can_be_accessed() {
        let mut c = ConfigSpace::new(true);
        let mut all = vec![1; 2 * LEN_BYTES];
        c.read(0, &mut all);
        assert_eq!(all[LEN_BYTES..], vec![0; LEN_BYTES]);
        c.read(u64::MAX, &mut all);
        c.write(u64::MAX, &all);
        c.write(4094, &[0xff; 8]);
        assert!(!c.bus_master());
        c.write(4, &[0xff, 0xff]);
        assert!(c.bus_master());
        assert_eq!(word(&c, 4) & 0xffff, u32::from(COMMAND_WRITABLE));
    }
}
