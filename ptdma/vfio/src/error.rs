//! What can go wrong, with what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use batch_copy::BadInput;
use ptdma::{BringUpError, NotStopped, ProbeError};

use crate::address::PciAddress;

/// Why an operation failed. The message says what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The text is no address of a PCI function.
    BadAddress(String),
    /// The machine has no function with this address.
    NoSuchFunction(PciAddress),
    /// The function is not a PTDMA engine.
    NotPtdma {
        /// The function.
        address: PciAddress,
        /// Vendor and device number, as sysfs has them.
        ids: String,
    },
    /// The function is in no IOMMU group.
    NoIommu(PciAddress),
    /// The kernel offers no VFIO with a translating IOMMU.
    NoVfio {
        /// What was asked for.
        what: &'static str,
    },
    /// The user may not open or write a file.
    NoPermission {
        /// The file.
        path: PathBuf,
    },
    /// The function belongs to another driver, or to none.
    NotTaken {
        /// The function.
        address: PciAddress,
        /// The driver.
        driver: Option<String>,
    },
    /// A driver other than vfio-pci has a function of the same IOMMU group.
    GroupNotViable {
        /// The group.
        group: u32,
        /// Functions of the group with drivers in the way.
        others: Vec<(PciAddress, String)>,
    },
    /// Somebody has the function open already: another process, or this one.
    InUse(PciAddress),
    /// The kernel did not do what was asked of a driver.
    DriverRefused {
        /// The function.
        address: PciAddress,
        /// The driver that should have the function.
        wanted: String,
        /// The driver that has it.
        driver: Option<String>,
    },
    /// BAR 2 is too short, or cannot be mapped.
    BadRegisters {
        /// The function.
        address: PciAddress,
        /// Its length in bytes.
        len_bytes: u64,
        /// Whether the kernel lets it be mapped.
        mappable: bool,
    },
    /// The command register did not take memory decoding and bus mastering.
    NoBusMaster {
        /// The function.
        address: PciAddress,
        /// What the command register holds.
        command: u16,
    },
    /// The space has no bus addresses before its first function is open.
    NoFunctionYet,
    /// A number is not a multiple of what it must be a multiple of.
    Unaligned {
        /// What the number is.
        what: &'static str,
        /// The number.
        value: u64,
        /// What it must be a multiple of.
        align: u64,
    },
    /// Something has no bytes.
    Empty {
        /// What.
        what: &'static str,
    },
    /// A range does not lie in the memory.
    OutOfBounds {
        /// First byte of the range.
        offset: u64,
        /// Length of the range in bytes.
        len_bytes: u64,
        /// Length of the memory in bytes.
        size: u64,
    },
    /// A range was mapped in another space than the engines are in: they cannot reach it.
    Unmapped {
        /// Index of the range in the list.
        range: usize,
    },
    /// The destination was mapped for reading only.
    ReadOnly,
    /// The kernel pins no more memory for this process.
    MemoryLimit {
        /// Bytes that were to be mapped.
        asked: u64,
        /// `RLIMIT_MEMLOCK` in bytes.
        limit: u64,
    },
    /// No memory of this kind is left.
    NoMemory {
        /// What kind.
        kind: &'static str,
        /// Bytes that were asked for.
        asked: u64,
    },
    /// The kernel takes no further mapping in this space.
    TooManyMappings,
    /// No stretch of bus addresses is long enough.
    NoBusAddresses {
        /// Bytes that were asked for.
        asked: u64,
    },
    /// There is no such NUMA node, or it has no memory.
    NoSuchNode(u16),
    /// The function raises no MSI-X or MSI.
    NoInterrupt(PciAddress),
    /// The queue did not come up.
    BringUp(PciAddress, BringUpError),
    /// The engine moved nothing when it was tried.
    Engine(PciAddress, ProbeError),
    /// The function could not be reset.
    NotReset {
        /// The function.
        address: PciAddress,
        /// What the kernel said.
        source: io::Error,
    },
    /// The engine is not proved to have stopped.
    NotStopped(PciAddress, NotStopped),
    /// More functions than a mover drives.
    TooManyFunctions {
        /// The most.
        most: usize,
    },
    /// The list of ranges is unsound: overlapping, empty, or too long.
    BadList(BadInput),
    /// Another thread is bringing the channel back, or batches hold descriptors of it.
    Busy(PciAddress),
    /// The mover has no channel with this number.
    NoSuchChannel(usize),
    /// The kernel refused something for a reason that has no advice here.
    System {
        /// What was to be done.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// An error of the system while doing `what`.
    pub(crate) fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System {
            what: what.into(),
            source: source.into(),
        }
    }

    /// An error of the system about a file: a permission that lacks is named.
    pub(crate) fn about(path: &Path, what: &str, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::NoPermission {
                path: path.to_owned(),
            },
            _ => Self::system(format!("{what} {}", path.display()), source),
        }
    }
}

fn driver_name(driver: Option<&String>) -> &str {
    driver.map_or("no driver", String::as_str)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadAddress(text) => write!(
                f,
                "{text:?} is no PCI address: write domain:bus:device.function, as 0000:21:00.2"
            ),
            Self::NoSuchFunction(address) => write!(
                f,
                "there is no PCI function {address}: `lspci -d 1022:1498` lists the engines"
            ),
            Self::NotPtdma { address, ids } => write!(
                f,
                "{address} is {ids}, not a PTDMA engine (1022:1498): `lspci -d 1022:1498` lists the engines"
            ),
            Self::NoIommu(address) => write!(
                f,
                "{address} is in no IOMMU group: switch the IOMMU on, in the firmware's setup and with \
                 amd_iommu=on (or intel_iommu=on) on the kernel's command line"
            ),
            Self::NoVfio { what } => write!(
                f,
                "the kernel has no {what}: `modprobe vfio-pci vfio_iommu_type1` as root"
            ),
            Self::NoPermission { path } => write!(
                f,
                "no permission for {}: run as root, or have root give the file to this user (chown)",
                path.display()
            ),
            Self::NotTaken { address, driver } => write!(
                f,
                "{address} belongs to {}, not to vfio-pci: take it first (`ptdma_vfio::take`, as root)",
                driver_name(driver.as_ref())
            ),
            Self::GroupNotViable { group, others } => {
                write!(
                    f,
                    "IOMMU group {group} is shared with other drivers: unbind or take"
                )?;
                for (address, driver) in others {
                    write!(f, " {address} ({driver})")?;
                }
                Ok(())
            }
            Self::InUse(address) => write!(
                f,
                "{address} is in use: end the process that has its /dev/vfio file open, or drop the \
                 space that holds it in this one"
            ),
            Self::DriverRefused {
                address,
                wanted,
                driver,
            } => write!(
                f,
                "{address} should belong to {wanted} and belongs to {}: is the module {wanted} loaded? \
                 The kernel's log may say more",
                driver_name(driver.as_ref())
            ),
            Self::BadRegisters {
                address,
                len_bytes,
                mappable,
            } => write!(
                f,
                "BAR 2 of {address} does not hold an engine's registers: {len_bytes:#x} bytes, {}",
                if *mappable {
                    "too short"
                } else {
                    "which the kernel does not map"
                }
            ),
            Self::NoBusMaster { address, command } => write!(
                f,
                "{address} does not take bus mastering: its command register holds {command:#06x}; \
                 reset the function, or the machine"
            ),
            Self::NoFunctionYet => f.write_str(
                "the space has no bus addresses yet: open a function in it before mapping memory",
            ),
            Self::Unaligned { what, value, align } => write!(
                f,
                "{what} {value:#x} is not a multiple of {align:#x}: round it to whole pages"
            ),
            Self::Empty { what } => write!(f, "{what} has no bytes: leave it out"),
            Self::OutOfBounds {
                offset,
                len_bytes,
                size,
            } => write!(
                f,
                "{len_bytes:#x} bytes at {offset:#x} do not lie in {size:#x} bytes of memory"
            ),
            Self::Unmapped { range } => write!(
                f,
                "range {range} is not mapped for these engines: map its memory in the mover's own space"
            ),
            Self::ReadOnly => f.write_str(
                "the destination is mapped for reading only: map it with Access::ReadWrite",
            ),
            Self::MemoryLimit { asked, limit } => write!(
                f,
                "{asked:#x} more bytes exceed the limit of locked memory, {limit:#x} bytes: raise the limit \
                 (`ulimit -l`, LimitMEMLOCK= of systemd, limits.conf)"
            ),
            Self::NoMemory { kind, asked } => write!(
                f,
                "no {asked:#x} bytes of {kind} are free; for huge pages, write more into \
                 /proc/sys/vm/nr_hugepages"
            ),
            Self::TooManyMappings => f.write_str(
                "the kernel takes no further mapping: map fewer, larger pieces, or raise the parameter \
                 dma_entry_limit of vfio_iommu_type1",
            ),
            Self::NoBusAddresses { asked } => write!(
                f,
                "no {asked:#x} bytes of bus addresses are free in one piece: unmap something first"
            ),
            Self::NoSuchNode(node) => write!(
                f,
                "there is no NUMA node {node} with memory: see /sys/devices/system/node"
            ),
            Self::NoInterrupt(address) => {
                write!(f, "{address} raises neither MSI-X nor MSI: poll it")
            }
            Self::BringUp(address, error) => write!(f, "{address}: {error}"),
            Self::Engine(address, error) => write!(f, "{address}: {error}"),
            Self::NotReset { address, source } => write!(
                f,
                "{address} could not be reset ({source}): its engine may still access mapped memory; \
                 unmap the memory, or close the function"
            ),
            Self::NotStopped(address, error) => write!(f, "{address}: {error}"),
            Self::TooManyFunctions { most } => {
                write!(f, "a mover drives at most {most} functions: use two movers")
            }
            Self::BadList(error) => error.fmt(f),
            Self::Busy(address) => {
                write!(f, "batches still hold descriptors of {address}: try again later")
            }
            Self::NoSuchChannel(number) => {
                write!(f, "the mover has no channel {number}: numbers begin at 0")
            }
            Self::System { what, source } => write!(f, "{what}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System { source, .. } | Self::NotReset { source, .. } => Some(source),
            Self::BringUp(_, error) => Some(error),
            Self::Engine(_, error) => Some(error),
            Self::NotStopped(_, error) => Some(error),
            Self::BadList(error) => Some(error),
            _ => None,
        }
    }
}
