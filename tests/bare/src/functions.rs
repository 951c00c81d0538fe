//! The PTDMA functions of the machine: found, brought up, reset, told where to interrupt.

use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

use ptdma::regs::Register;
use ptdma::{
    BringUpError, Channel, ChannelConfig, CoherentRing, Deadline, DmaAddr, Mmio, ProbeError,
    RegisterIo, Signalling,
};
use ptdma_uefi::pci::{self, Config, Msix, Saved, Unproved};
use spin::Mutex;
use x86_64::instructions::port::Port;

use crate::lock::without_interrupts;
use crate::memory;
use crate::processors::{self, FIRST_FUNCTION};
use crate::time::{self, Nanoseconds};

/// Descriptors of a ring.
const RING_ENTRIES: usize = 128;

/// How long an engine gets to show what it is like: microseconds would do; an emulated one waits for
/// its turn on a busy host, for more than a second.
const FIND_OUT_NS: u64 = 3_000_000_000;

pub(crate) type Regs = Mmio;
pub(crate) type Ring = CoherentRing;

/// Address and data ports of configuration space: one access at a time.
static PORTS: Mutex<(Port<u32>, u16)> = Mutex::new((Port::new(0xcf8), 0xcfc));

/// Configuration space of a function, by its bus, device and function in one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space(u16);

impl Space {
    fn access<U>(self, offset: u16, f: impl FnOnce(u16) -> U) -> U {
        without_interrupts(|| {
            let mut ports = PORTS.lock();
            let address = 1 << 31 | u32::from(self.0) << 8 | u32::from(offset & 0xfc);
            // SAFETY: the address port of configuration space, with the lock of both ports held.
            unsafe { ports.0.write(address) };
            f(ports.1 + (offset & 3))
        })
    }
}

impl Config for Space {
    fn read(&mut self, offset: u16) -> u32 {
        // SAFETY: the data port, with the address set and the lock held.
        self.access(offset, |port| unsafe { Port::new(port).read() })
    }
    fn write(&mut self, offset: u16, value: u32) {
        // SAFETY: as in `read`.
        self.access(offset, |port| unsafe { Port::new(port).write(value) });
    }
    fn write_half(&mut self, offset: u16, value: u16) {
        // SAFETY: as in `read`.
        self.access(offset, |port| unsafe { Port::new(port).write(value) });
    }
}

/// All functions of all buses.
pub(crate) fn find() -> impl Iterator<Item = Space> {
    (0..=u16::MAX)
        .map(Space)
        .filter(|space| pci::is_ptdma(&mut { *space }))
}

/// One function.
#[derive(Debug)]
pub(crate) struct Function {
    space: Space,
    saved: Saved,
    registers: NonNull<u8>,
    number: u8,
}

// SAFETY: the pointer is to device registers, which belong to no processor.
unsafe impl Send for Function {}
// SAFETY: as above; configuration space is accessed under a lock.
unsafe impl Sync for Function {}

/// What is wrong with a function.
pub(crate) enum Unusable {
    NoRegisters,
    NoVector,
    NoMemory,
    BringUp(BringUpError),
    Silent(ProbeError),
}

impl core::fmt::Display for Unusable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoRegisters => f.write_str("it has no registers on the bus"),
            Self::NoVector => f.write_str("it has no MSI-X table"),
            Self::NoMemory => f.write_str("there is no memory for its ring"),
            Self::BringUp(error) => error.fmt(f),
            Self::Silent(error) => error.fmt(f),
        }
    }
}

impl Function {
    /// Brings function `number` up, to interrupt the processor that calls.
    pub(crate) fn bring_up(
        space: Space,
        number: u8,
    ) -> Result<(Self, Channel<Regs, Ring>), Unusable> {
        let mut config = space;
        let saved = Saved::take(&mut config);
        pci::switch_on(&mut config);
        let at = pci::registers(&mut config).ok_or(Unusable::NoRegisters)?;
        let registers = NonNull::new(core::ptr::with_exposed_provenance_mut(at as usize))
            .ok_or(Unusable::NoRegisters)?;
        let function = Self {
            space,
            saved,
            registers,
            number,
        };
        function.route().ok_or(Unusable::NoVector)?;
        let len = RING_ENTRIES * ptdma::descriptor::DESCRIPTOR_LEN_BYTES;
        let start = memory::take(len).ok_or(Unusable::NoMemory)?;
        let base = DmaAddr::new(start.expose_provenance().get() as u64);
        // SAFETY: memory of that length, handed out once and never taken back, mapped one to one
        // for this processor and for the device.
        let ring = unsafe { CoherentRing::new(start, base, RING_ENTRIES) };
        let mut config = ChannelConfig::default();
        config.signalling = Signalling::Interrupts;
        let mut channel = Channel::bring_up(function.registers(), ring, config)
            .map_err(|(error, ..)| Unusable::BringUp(error))?;
        let deadline = Deadline::after(&Nanoseconds, FIND_OUT_NS);
        // One that shows nothing may still do so later: the ring is leaked with the channel.
        channel
            .find_out(&Nanoseconds, deadline)
            .map_err(Unusable::Silent)?;
        Ok((function, channel))
    }

    fn registers(&self) -> Regs {
        // SAFETY: BAR 2 of the function, mapped uncached as all that is no memory. One channel
        // drives it; who else asks only reads.
        unsafe { Mmio::new(self.registers) }
    }

    /// Lets the function's one vector interrupt the processor that calls.
    pub(crate) fn route(&self) -> Option<()> {
        let mut config = self.space;
        let msix = Msix::find(&mut config)?;
        let table = pci::bar(&mut config, msix.bar)? + u64::from(msix.offset_bytes);
        let entry = core::ptr::with_exposed_provenance_mut::<u32>(table as usize);
        let address = 0xfee0_0000 | u32::from(processors::id()) << 12;
        let vector = u32::from(FIRST_FUNCTION + self.number);
        // The last word has the mask: cleared when the rest is there.
        for (word, value) in [address, 0, vector, 0].into_iter().enumerate() {
            // SAFETY: the first entry of the function's MSI-X table, mapped uncached.
            unsafe { entry.wrapping_add(word).write_volatile(value) };
        }
        fence(Ordering::SeqCst);
        msix.enable(&mut config, true);
        Some(())
    }

    /// Proves that the function's engine has stopped, by a reset of the function.
    pub(crate) fn reset(&self) -> Result<(), Unproved> {
        let registers = self.registers();
        let control = || registers.read(Register::Control);
        pci::reset(&mut { self.space }, &self.saved, control, time::stall)
    }

    /// Leaves the function as it was found; only once its engine was proved stopped.
    pub(crate) fn give_back(&self) {
        self.saved.restore(&mut { self.space });
    }
}
