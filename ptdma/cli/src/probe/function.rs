//! A function in the hands of this program, as the probe's platform.

use std::rc::Rc;
use std::time::Duration;

use ptdma::{DmaAddr, RegisterIo};
use ptdma_probe::{Platform, ResetOutcome};
use ptdma_vfio::{
    Access, Bar, Error, FunctionHandle, Mapping, Memory, Monotonic, PAGE_LEN_BYTES, PciAddress,
    ResetResult, ResetsOff, Ring, Space,
};

use super::SharedSlot;

/// Entries of the ring: the most that a driver has used on silicon.
const RING_ENTRIES: usize = 8192;

/// Memory that all functions use.
#[derive(Debug)]
pub(super) struct Shared {
    source: Mapping,
    refusing: Mapping,
    across: Option<Mapping>,
}

impl Shared {
    fn new(space: &Space, room_len_bytes: u64) -> Result<Self, Error> {
        let page = Memory::anonymous(PAGE_LEN_BYTES)?;
        let two = Memory::anonymous(2 * PAGE_LEN_BYTES)?;
        Ok(Self {
            source: space.map_for(Memory::anonymous(room_len_bytes)?, Access::Read)?,
            refusing: space.map_for(page, Access::Read)?,
            across: space.map_across_4_gib(two)?,
        })
    }
}

/// An open function.
#[derive(Debug)]
pub(super) struct Opened {
    bar: Bar,
    ring: Ring,
    handle: FunctionHandle,
    target: Mapping,
    shared: Rc<Shared>,
    resets: Option<ResetsOff>,
}

impl Opened {
    /// Opens a function and maps what the probe needs.
    pub(super) fn open(
        space: &Space,
        address: PciAddress,
        resets: Option<ResetsOff>,
        shared: &mut SharedSlot,
        room_len_bytes: u64,
    ) -> Result<Self, Error> {
        let function = ptdma_vfio::Function::open(space, address)?;
        let shared = match shared {
            Some(shared) => Rc::clone(shared),
            None => Rc::clone(shared.insert(Rc::new(Shared::new(space, room_len_bytes)?))),
        };
        let (bar, handle) = function.into_registers();
        Ok(Self {
            bar,
            handle,
            ring: space.ring(RING_ENTRIES)?,
            target: space.map(Memory::anonymous(room_len_bytes)?)?,
            shared,
            resets,
        })
    }

    pub(super) fn address(&self) -> PciAddress {
        self.handle.address()
    }

    /// Closes the function: the kernel takes bus mastering away, and the memory is unmapped. Resets
    /// stay off as long as what is returned lives.
    pub(super) fn close(self) -> Option<ResetsOff> {
        self.resets
    }
}

impl Platform for Opened {
    type Regs = Bar;
    type Ring = Ring;
    type Clock = Monotonic;

    fn parts(&mut self) -> (&Bar, &mut Ring) {
        (&self.bar, &mut self.ring)
    }
    fn regs(&self) -> &Bar {
        &self.bar
    }
    fn clock(&self) -> Monotonic {
        Monotonic
    }
    fn source(&self) -> DmaAddr {
        self.shared.source.addr()
    }
    fn target(&self) -> DmaAddr {
        self.target.addr()
    }
    fn room_len_bytes(&self) -> u64 {
        self.target.len_bytes()
    }
    fn write_source(&mut self, at: u64, bytes: &[u8]) {
        // Out of bounds at the worst, which changes nothing.
        let _ = self.shared.source.write(at, bytes);
    }
    fn write_target(&mut self, at: u64, bytes: &[u8]) {
        let _ = self.target.write(at, bytes);
    }
    fn read_target(&self, at: u64, into: &mut [u8]) {
        let _ = self.target.read(at, into);
    }
    fn refusing(&self) -> Option<DmaAddr> {
        Some(self.shared.refusing.addr())
    }
    fn across_4_gib(&self) -> Option<DmaAddr> {
        self.shared.across.as_ref().map(Mapping::addr)
    }
    fn read_across(&self, at: u64, into: &mut [u8]) {
        if let Some(across) = &self.shared.across {
            let _ = across.read(at, into);
        }
    }
    fn write_across(&mut self, at: u64, bytes: &[u8]) {
        if let Some(across) = &self.shared.across {
            let _ = across.write(at, bytes);
        }
    }
    fn set_bus_master(&mut self, on: bool) -> bool {
        self.handle.set_bus_master(on).is_ok()
    }
    fn take_interrupt(&mut self, limit_ns: u64) -> Option<bool> {
        let limit = Duration::from_nanos(limit_ns);
        self.handle.take_interrupt(limit).ok().flatten()
    }
    fn reset(&mut self) -> ResetOutcome {
        const NO_SYSFS: &str = "the kernel has no file reset_method for the function (Linux 5.15)";
        let Some(resets) = &self.resets else {
            return ResetOutcome::Untried(NO_SYSFS);
        };
        match resets.reset_once() {
            Ok(ResetResult::Absent) => ResetOutcome::Absent,
            Ok(ResetResult::Done) if self.answers() && self.set_bus_master(true) => {
                ResetOutcome::Works
            }
            Ok(ResetResult::Done | ResetResult::Failed) if !self.answers() => ResetOutcome::Lost,
            Ok(_) => ResetOutcome::Untried("the kernel's reset failed, and the function answers"),
            Err(_) => ResetOutcome::Untried("the kernel refused to reset the function"),
        }
    }
}

impl Opened {
    fn answers(&self) -> bool {
        let version = self.bar.read(ptdma::regs::Register::Version);
        self.handle.answers() && version != ptdma::regs::ALL_ONES
    }
}
