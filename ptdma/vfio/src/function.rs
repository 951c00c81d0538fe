//! One PTDMA function.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ptdma::regs::BAR_LEN_BYTES;
use ptdma::{BringUpError, Channel, ChannelConfig, Deadline, FunctionQuiesced, Signalling};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vfio_bindings::bindings::vfio;

use crate::address::PciAddress;
use crate::error::Error;
use crate::hardware::{Bar, Ring, quiesced_by_reset};
use crate::ioctl;
use crate::memory::RegisterMap;
use crate::space::Space;
use crate::sysfs::{Sysfs, VFIO_DRIVER};
use crate::time::Monotonic;

/// A function's queue, in this process.
pub type VfioChannel = Channel<Bar, Ring>;

/// The command register of configuration space, and two of its bits.
const COMMAND_OFFSET: u64 = 4;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;

/// Revision and class in configuration space, and what they are for a function that does not
/// answer. The kernel makes up other registers, the command register in part.
const CLASS_OFFSET: u64 = 8;
const ABSENT: [u8; 4] = [0xff; 4];

/// How long one copy of 32 bytes may take when a queue is tried, or a queue may take to halt: it
/// takes microseconds, and a second in a virtual machine that has to wait for its turn.
const TRIAL: Duration = Duration::from_secs(2);

/// Functions that this process has open. The kernel waits, for ever if need be, where a process
/// unbinds a function that it holds itself.
static OPEN: Mutex<BTreeSet<PciAddress>> = Mutex::new(BTreeSet::new());

/// An entry of [`OPEN`].
struct OpenMark(PciAddress);

impl OpenMark {
    fn new(address: PciAddress) -> Result<Self, Error> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if open.insert(address) {
            Ok(Self(address))
        } else {
            Err(Error::InUse(address))
        }
    }
}

impl Drop for OpenMark {
    fn drop(&mut self) {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(&self.0);
    }
}

/// An open function: its file, registers and interrupt. Closing it (when the last of its parts is
/// dropped) has the kernel reset it and switch bus mastering off.
pub(crate) struct Device {
    // Dropped in this order: the registers, the file, then what the file needs.
    bar: RegisterMap,
    file: File,
    interrupt: Option<OwnedFd>,
    release: Option<OwnedFd>,
    address: PciAddress,
    node: Option<u16>,
    config_offset: u64,
    space: Space,
    _mark: OpenMark,
}

impl Device {
    pub(crate) fn bar(&self) -> &RegisterMap {
        &self.bar
    }

    fn command(&self) -> io::Result<u16> {
        let mut bytes = [0; 2];
        let at = self.config_offset.saturating_add(COMMAND_OFFSET);
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Switches memory decoding and bus mastering on: vfio-pci hands functions out without the
    /// latter. Nobody else gets at the register, or a read of BAR 2 would be a SIGBUS.
    fn enable(&self) -> Result<(), Error> {
        let failed = |e| Error::system(format!("configuration space of {}", self.address), e);
        let wanted = COMMAND_MEMORY | COMMAND_BUS_MASTER;
        let command = self.command().map_err(failed)?;
        let at = self.config_offset.saturating_add(COMMAND_OFFSET);
        self.file
            .write_all_at(&(command | wanted).to_le_bytes(), at)
            .map_err(failed)?;
        let command = self.command().map_err(failed)?;
        if command & wanted == wanted {
            Ok(())
        } else {
            Err(Error::NoBusMaster {
                address: self.address,
                command,
            })
        }
    }

    fn set_bus_master(&self, on: bool) -> Result<(), Error> {
        let failed = |e| Error::system(format!("configuration space of {}", self.address), e);
        let command = self.command().map_err(failed)?;
        let wanted = match on {
            true => command | COMMAND_BUS_MASTER,
            false => command & !COMMAND_BUS_MASTER,
        };
        let at = self.config_offset.saturating_add(COMMAND_OFFSET);
        self.file
            .write_all_at(&wanted.to_le_bytes(), at)
            .map_err(failed)?;
        let command = self.command().map_err(failed)?;
        if command & COMMAND_BUS_MASTER == wanted & COMMAND_BUS_MASTER {
            Ok(())
        } else {
            Err(Error::NoBusMaster {
                address: self.address,
                command,
            })
        }
    }

    /// Revision and class.
    fn class(&self) -> io::Result<[u8; 4]> {
        let mut class = [0; 4];
        let at = self.config_offset.saturating_add(CLASS_OFFSET);
        self.file.read_exact_at(&mut class, at)?;
        Ok(class)
    }

    /// Resets the function; the kernel restores its configuration space, interrupts included.
    fn reset(&self) -> Result<FunctionQuiesced, Error> {
        let failed = |source| Error::NotReset {
            address: self.address,
            source,
        };
        // The kernel would wait a minute for a function that is not there to come back.
        if self.class().map_err(failed)? == ABSENT {
            return Err(failed(io::Error::other("it does not answer")));
        }
        ioctl::reset(self.file.as_fd())
            .map(quiesced_by_reset)
            .map_err(failed)
    }

    /// An eventfd for interrupt 0 of a kind, if the function has one.
    fn trigger(file: &File, index: u32) -> io::Result<Option<OwnedFd>> {
        // A kind that the kernel does not know is one that the function does not have.
        if ioctl::interrupts(file.as_fd(), index).unwrap_or(0) == 0 {
            return Ok(None);
        }
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ioctl::set_trigger(file.as_fd(), index, event.as_fd())?;
        Ok(Some(event))
    }
}

/// An open function without a queue yet.
pub struct Function {
    device: Arc<Device>,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Function")
            .field(&self.device.address)
            .finish()
    }
}

impl Function {
    /// Opens a function that vfio-pci has ([`take`](crate::take)), maps its registers, has its
    /// interrupt ring an eventfd, and lets it be a bus master. What its engine can reach is what
    /// is mapped in `space`.
    ///
    /// # Errors
    ///
    /// Each says what to do: [`Error::NoSuchFunction`], [`Error::NotPtdma`], [`Error::NoIommu`],
    /// [`Error::NotTaken`], [`Error::NoPermission`], [`Error::GroupNotViable`], [`Error::InUse`],
    /// [`Error::BadRegisters`], [`Error::NoBusMaster`].
    pub fn open(space: &Space, address: PciAddress) -> Result<Self, Error> {
        let candidate = Sysfs::new().engine(address)?;
        if candidate.group.is_none() {
            return Err(Error::NoIommu(address));
        }
        if candidate.driver.as_deref() != Some(VFIO_DRIVER) {
            return Err(Error::NotTaken {
                address,
                driver: candidate.driver,
            });
        }
        let mark = OpenMark::new(address)?;
        let file = space.open_device(&candidate)?;
        let failed = |what: &str| {
            let what = format!("{what} {address}");
            move |error: io::Error| Error::system(what, error)
        };
        if !ioctl::is_pci(file.as_fd()).map_err(failed("ask"))? {
            return Err(Error::NoSuchFunction(address));
        }
        let bar = ioctl::region(file.as_fd(), vfio::VFIO_PCI_BAR2_REGION_INDEX)
            .map_err(failed("find the registers of"))?;
        if !bar.mappable || bar.len_bytes < BAR_LEN_BYTES as u64 {
            return Err(Error::BadRegisters {
                address,
                len_bytes: bar.len_bytes,
                mappable: bar.mappable,
            });
        }
        let config = ioctl::region(file.as_fd(), vfio::VFIO_PCI_CONFIG_REGION_INDEX)
            .map_err(failed("find the configuration space of"))?;
        let mut interrupt = None;
        for kind in [vfio::VFIO_PCI_MSIX_IRQ_INDEX, vfio::VFIO_PCI_MSI_IRQ_INDEX] {
            if interrupt.is_none() {
                interrupt = Device::trigger(&file, kind).map_err(failed("take interrupts of"))?;
            }
        }
        let release = Device::trigger(&file, vfio::VFIO_PCI_REQ_IRQ_INDEX)
            .map_err(failed("hear requests to release"))?;
        let device = Device {
            bar: RegisterMap::new(file.as_fd(), bar.offset, bar.len_bytes)
                .map_err(failed("map the registers of"))?,
            file,
            interrupt,
            release,
            address,
            node: candidate.node,
            config_offset: config.offset,
            space: space.clone(),
            _mark: mark,
        };
        device.enable()?;
        Ok(Self {
            device: Arc::new(device),
        })
    }

    /// Brings the function's queue up with a ring of `entries` descriptors, and finds out what its
    /// engine does. A queue that a killed process left running is reset first.
    ///
    /// # Errors
    ///
    /// [`Error::BringUp`], [`Error::Engine`], or one of [`Space::map`].
    pub fn into_channel(self, entries: usize) -> Result<(VfioChannel, FunctionHandle), Error> {
        let device = &self.device;
        let address = device.address;
        let ring = device.space.ring(entries)?;
        let mut config = ChannelConfig::default();
        config.signalling = match device.interrupt {
            Some(_) => Signalling::Interrupts,
            None => Signalling::Polled,
        };
        let bar = Bar::new(Arc::clone(device));
        let brought_up = match Channel::bring_up(bar, ring, config) {
            Err((BringUpError::StillRunning { .. }, bar, ring)) => {
                // Nobody's work any more: only one process has the function open.
                let _proof = device.reset()?;
                Channel::bring_up(bar, ring, config)
            }
            other => other,
        };
        let mut channel = brought_up.map_err(|(error, ..)| Error::BringUp(address, error))?;
        let deadline = Deadline::after(&Monotonic, Monotonic::ticks(TRIAL));
        if let Err(error) = channel.find_out(&Monotonic, deadline) {
            let handle = FunctionHandle {
                device: Arc::clone(device),
            };
            // Its error counts for less than why there is no channel; the ring is leaked then.
            let _ = handle.shut_down(channel);
            return Err(Error::Engine(address, error));
        }
        let handle = FunctionHandle {
            device: self.device,
        };
        Ok((channel, handle))
    }

    /// Gives the registers out, for a program that drives the queue by itself: nothing was
    /// written to them. An engine reaches what is mapped in the function's space, whatever the
    /// program makes of it.
    #[must_use]
    pub fn into_registers(self) -> (Bar, FunctionHandle) {
        let bar = Bar::new(Arc::clone(&self.device));
        let handle = FunctionHandle {
            device: self.device,
        };
        (bar, handle)
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.device.address
    }

    /// Its NUMA node, if the firmware names one.
    #[must_use]
    pub fn node(&self) -> Option<u16> {
        self.device.node
    }
}

/// A function whose registers are in a channel: what is left to do with it. A clone is of the same
/// function.
#[derive(Clone)]
pub struct FunctionHandle {
    device: Arc<Device>,
}

impl fmt::Debug for FunctionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FunctionHandle")
            .field(&self.device.address)
            .finish()
    }
}

impl FunctionHandle {
    /// Where it is.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.device.address
    }

    /// Its NUMA node, if the firmware names one.
    #[must_use]
    pub fn node(&self) -> Option<u16> {
        self.device.node
    }

    /// The eventfd that the function's interrupt rings, for a program's own `poll` or `epoll`;
    /// none if the function has no interrupt.
    #[must_use]
    pub fn interrupt(&self) -> Option<BorrowedFd<'_>> {
        self.device.interrupt.as_ref().map(AsFd::as_fd)
    }

    /// Waits for an interrupt of the function and takes it; false if none came in time. `None` if
    /// the function has no interrupt.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the kernel does not wait.
    pub fn take_interrupt(&self, limit: Duration) -> Result<Option<bool>, Error> {
        let Some(event) = &self.device.interrupt else {
            return Ok(None);
        };
        let failed = |e: io::Error| Error::system("wait for an interrupt", e);
        let limit = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        let mut wanted = [PollFd::new(event, PollFlags::IN)];
        match poll(&mut wanted, Some(&limit)) {
            // A signal ends the wait early; what came is there to be read.
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
        let mut count = [0; 8];
        match rustix::io::read(event, &mut count) {
            Ok(_) => Ok(Some(true)),
            Err(rustix::io::Errno::AGAIN) => Ok(Some(false)),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Lets the function use the bus, or not. Its registers can be read in both cases.
    ///
    /// # Errors
    ///
    /// [`Error::NoBusMaster`] if the function does not obey; [`Error::System`].
    pub fn set_bus_master(&self, on: bool) -> Result<(), Error> {
        self.device.set_bus_master(on)
    }

    /// Whether the function answers in configuration space.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.device.class().is_ok_and(|class| class != ABSENT)
    }

    /// The eventfd that the kernel rings when somebody wants the function back (its driver is
    /// being unbound): who hears it should shut the channel down and drop all that is of the
    /// function.
    #[must_use]
    pub fn release_request(&self) -> Option<BorrowedFd<'_>> {
        self.device.release.as_ref().map(AsFd::as_fd)
    }

    /// Resets the function. The kernel returns when it answers again, with interrupts and bus
    /// mastering as they were. The engine has forgotten all of its work then, which is what the
    /// channel's [`recover`](Channel::recover) wants to know.
    ///
    /// The kernel waits up to a minute for a function that does not come back from its reset. It
    /// refuses a function that is absent before the reset at once.
    ///
    /// # Errors
    ///
    /// [`Error::NotReset`]: the engine may still touch what is mapped.
    pub fn reset(&self) -> Result<FunctionQuiesced, Error> {
        self.device.reset()
    }

    /// Tears a channel of this function down, by a reset if its engine does not halt, and unmaps
    /// its ring.
    ///
    /// # Errors
    ///
    /// [`Error::NotReset`]: the ring was leaked, and stays mapped until this process ends.
    pub fn shut_down(&self, channel: VfioChannel) -> Result<(), Error> {
        let deadline = Deadline::after(&Monotonic, Monotonic::ticks(TRIAL));
        let (bar, ring, _) = match channel.shutdown(&Monotonic, deadline) {
            Ok(parts) => parts,
            Err((_, channel)) => channel.shutdown_quiesced(self.reset()?),
        };
        drop(bar);
        ring.into_mapping().unmap().map_err(Error::from).map(drop)
    }
}
