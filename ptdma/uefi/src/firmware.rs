//! What the firmware gives: root bridges, configuration space, memory, time.

use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::ptr::NonNull;
use core::time::Duration;

use ptdma::regs::Register;
use ptdma::{Clock, Deadline, DmaAddr, Mmio, RegisterIo};
use ptdma_uefi::pci::{self, Config, Saved, Unproved};
use ptdma_uefi::work::Arena;
use uefi::boot::{self, AllocateType, OpenProtocolAttributes, OpenProtocolParams, ScopedProtocol};
use uefi::mem::memory_map::MemoryType;
use uefi::proto::pci::PciIoAddress;
use uefi::proto::pci::root_bridge::PciRootBridgeIo;

/// A page of the firmware's allocator.
pub(crate) const PAGE_LEN_BYTES: usize = boot::PAGE_SIZE;

/// All root bridges, and the PTDMA functions behind them.
pub(crate) struct Machine {
    bridges: Vec<RefCell<ScopedProtocol<PciRootBridgeIo>>>,
    pub(crate) functions: Vec<Location>,
}

/// Where a function is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Location {
    segment: u32,
    address: PciIoAddress,
    /// Which root bridge it is behind: what is nearest to a node without an interpreter for the
    /// firmware's tables.
    pub(crate) bridge: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PciIoAddress { bus, dev, fun, .. } = self.address;
        write!(f, "{:04x}:{bus:02x}:{dev:02x}.{fun}", self.segment)
    }
}

impl Machine {
    /// Looks at every function of every root bridge.
    pub(crate) fn find() -> uefi::Result<Self> {
        let mut machine = Self {
            bridges: Vec::new(),
            functions: Vec::new(),
        };
        for handle in boot::find_handles::<PciRootBridgeIo>()? {
            let parameters = OpenProtocolParams {
                handle,
                agent: boot::image_handle(),
                controller: None,
            };
            // SAFETY: root bridges do not go away. Opened beside the firmware's own PCI driver,
            // because opening it for this program alone would take away every device behind it:
            // the console, and the drive that this program came from.
            let bridge = unsafe {
                boot::open_protocol::<PciRootBridgeIo>(
                    parameters,
                    OpenProtocolAttributes::GetProtocol,
                )
            };
            // One that does not open, or cannot be walked, keeps the others from nothing.
            let Ok(mut bridge) = bridge else {
                continue;
            };
            let segment = bridge.segment_nr();
            let number = machine.bridges.len();
            if let Ok(tree) = bridge.enumerate() {
                for address in tree.iter() {
                    let location = Location {
                        segment,
                        address: *address,
                        bridge: number,
                    };
                    let known =
                        |other: &Location| (other.segment, other.address) == (segment, *address);
                    let mut config = Space(&mut bridge, *address);
                    if pci::is_ptdma(&mut config) && !machine.functions.iter().any(known) {
                        machine.functions.push(location);
                    }
                }
            }
            machine.bridges.push(RefCell::new(bridge));
        }
        machine.functions.sort_unstable();
        Ok(machine)
    }

    /// Root bridges that could be opened.
    pub(crate) fn bridges(&self) -> usize {
        self.bridges.len()
    }

    /// Does something with the configuration space of a function.
    pub(crate) fn config<U>(
        &self,
        location: Location,
        f: impl FnOnce(&mut Space<'_>) -> U,
    ) -> Option<U> {
        let bridge = self.bridges.get(location.bridge)?;
        let mut bridge = bridge.borrow_mut();
        Some(f(&mut Space(&mut bridge, location.address)))
    }

    /// Proves that a function's engine has stopped for good, by resetting the function.
    pub(crate) fn reset(
        &self,
        location: Location,
        saved: &Saved,
        registers: &Mmio,
    ) -> Result<(), Unproved> {
        let control = || registers.read(Register::Control);
        self.config(location, |config| {
            pci::reset(config, saved, control, boot::stall)
        })
        .unwrap_or(Err(Unproved::Gone))
    }
}

/// Configuration space of one function, by its root bridge. What cannot be read is all ones; what
/// cannot be written is found by reading it again.
pub(crate) struct Space<'a>(&'a mut PciRootBridgeIo, PciIoAddress);

impl Space<'_> {
    fn at(&self, offset: u16) -> PciIoAddress {
        self.1.with_extended_register(u32::from(offset))
    }
}

impl Config for Space<'_> {
    fn read(&mut self, offset: u16) -> u32 {
        let at = self.at(offset);
        self.0.pci().read_one(at).unwrap_or(u32::MAX)
    }
    fn write(&mut self, offset: u16, value: u32) {
        let at = self.at(offset);
        let _ = self.0.pci().write_one(at, value);
    }
    fn write_half(&mut self, offset: u16, value: u16) {
        let at = self.at(offset);
        let _ = self.0.pci().write_one(at, value);
    }
}

/// Registers at a bus address.
pub(crate) fn registers(at: u64) -> Option<Mmio> {
    let at = NonNull::new(at as *mut u8)?;
    // SAFETY: the address is that of the function's BAR 2, which the firmware has mapped one to
    // one and uncached, as all memory of devices. No driver of the firmware is for such functions.
    Some(unsafe { Mmio::new(at) })
}

/// Memory of which the firmware's map says for ever that nobody may use it, unless it is freed: an
/// operating system that is started after this program keeps off what an engine may still write.
/// It is never freed by being dropped.
pub(crate) struct Pages {
    start: NonNull<u8>,
    pages: usize,
}

impl Pages {
    /// At least so many bytes, aligned to a page.
    pub(crate) fn allocate(len_bytes: usize) -> uefi::Result<Self> {
        let pages = len_bytes.div_ceil(PAGE_LEN_BYTES);
        let kind = MemoryType::RESERVED;
        let start = boot::allocate_pages(AllocateType::AnyPages, kind, pages)?;
        Ok(Self { start, pages })
    }

    /// The same for a ring, which must not begin at a multiple of 4 GiB.
    pub(crate) fn allocate_ring(len_bytes: usize) -> uefi::Result<Self> {
        let first = Self::allocate(len_bytes)?;
        if first.bus_address().low() != 0 {
            return Ok(first);
        }
        let second = Self::allocate(len_bytes);
        // SAFETY: no engine was told of it, and nobody uses it.
        unsafe { first.free() };
        second
    }

    /// Where engines find it. Firmware maps memory one to one, and so do root bridges, unless
    /// protection against DMA is on: then engines fail every descriptor.
    pub(crate) fn bus_address(&self) -> DmaAddr {
        DmaAddr::new(self.start.as_ptr() as u64)
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Where a part of it begins; `None` if it is not within.
    pub(crate) fn part(&self, offset: usize, len_bytes: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len_bytes)?;
        if end > self.pages * PAGE_LEN_BYTES {
            return None;
        }
        // SAFETY: within the allocation.
        Some(unsafe { self.start.add(offset) })
    }

    /// All of it, as memory that engines write.
    pub(crate) fn arena(&self) -> Arena {
        // SAFETY: allocated by `allocate`, aligned to a page, and nobody has a reference into it.
        // It is valid until `free`, whose caller gives up what it has of it.
        unsafe { Arena::new(self.start, self.pages * PAGE_LEN_BYTES) }
    }

    /// Gives it back.
    ///
    /// # Safety
    ///
    /// No engine can reach it any more: everything that was to copy from it or to it is retired
    /// or was proved stopped. Nobody uses an [`Arena`] or a ring of it any more.
    pub(crate) unsafe fn free(self) {
        // SAFETY: allocated by `allocate` with this number of pages, and unused by the caller's
        // promise. A firmware that refuses keeps the memory, which is safe.
        let _ = unsafe { boot::free_pages(self.start, self.pages) };
    }
}

/// Time by the processor's time stamp counter, in its ticks.
#[derive(Clone, Copy)]
pub(crate) struct Ticks {
    per_millisecond: u64,
}

impl Clock for Ticks {
    fn now(&self) -> u64 {
        // SAFETY: every x86-64 processor has a time stamp counter.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
}

impl Ticks {
    /// Measures the counter against the firmware's own clock.
    pub(crate) fn measure() -> Self {
        /// Long beside the call's own time.
        const TIME: Duration = Duration::from_millis(10);
        let mut ticks = Self { per_millisecond: 1 };
        let start = ticks.now();
        boot::stall(TIME);
        let passed = ticks.now().wrapping_sub(start);
        ticks.per_millisecond = (passed / TIME.as_millis() as u64).max(1);
        ticks
    }

    /// Ticks of this many milliseconds.
    pub(crate) const fn of(&self, milliseconds: u64) -> u64 {
        milliseconds.saturating_mul(self.per_millisecond)
    }

    /// Now, in nanoseconds.
    pub(crate) fn nanoseconds(&self) -> u64 {
        const PER_MILLISECOND: u128 = 1_000_000;
        let ns = u128::from(self.now()) * PER_MILLISECOND / u128::from(self.per_millisecond);
        // 584 years after the counter began.
        u64::try_from(ns).unwrap_or(u64::MAX)
    }

    /// So many milliseconds from now.
    pub(crate) fn after(&self, milliseconds: u64) -> Deadline {
        Deadline::after(self, self.of(milliseconds))
    }
}
