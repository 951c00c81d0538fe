//! A space of bus addresses: what functions can reach, and nothing else.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ptdma::descriptor::DESCRIPTOR_LEN_BYTES;
use ptdma::{DmaAddr, MAX_ENTRIES, MIN_ENTRIES};
use rustix::process::{Resource, getrlimit};

use crate::error::Error;
use crate::hardware::Ring;
use crate::ioctl;
use crate::iova::{BusAddresses, Use};
use crate::memory::{HUGE_PAGE_LEN_BYTES, Map, Memory, PAGE_LEN_BYTES};
use crate::sysfs::{Candidate, Sysfs, VFIO_FOLDER};

/// What engines may do with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Access {
    /// Read: a source that no engine can damage.
    Read,
    /// Read and write.
    #[default]
    ReadWrite,
}

/// A space of bus addresses, a VFIO container. The functions that are opened in it reach what is
/// mapped in it, and nothing else.
///
/// It is a handle: clones are of the same space. The kernel's container ends with the last of
/// them, and of its functions and mappings.
#[derive(Clone)]
pub struct Space(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    container: File,
    /// Groups that are in the container. They stay in it: with the last one, the kernel would
    /// forget all mappings.
    groups: Mutex<Vec<Group>>,
    /// None before the first group.
    addresses: Mutex<Option<BusAddresses>>,
}

struct Group {
    number: u32,
    file: File,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is right between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space").finish_non_exhaustive()
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

impl Space {
    /// Makes a space without functions.
    ///
    /// # Errors
    ///
    /// [`Error::NoVfio`], [`Error::NoPermission`].
    pub fn new() -> Result<Self, Error> {
        let path = Path::new(VFIO_FOLDER).join("vfio");
        let container = open(&path).map_err(|error| match error.kind() {
            // The file is there without its module; opening it loads that, or finds none.
            io::ErrorKind::NotFound => Error::NoVfio { what: "VFIO" },
            _ if error.raw_os_error() == Some(libc::ENODEV) => Error::NoVfio { what: "VFIO" },
            _ => Error::about(&path, "open", error),
        })?;
        let failed = |error| Error::about(&path, "ask", error);
        let version = ioctl::api_version(container.as_fd()).map_err(failed)?;
        if version != vfio_bindings::bindings::vfio::VFIO_API_VERSION as i32 {
            return Err(Error::NoVfio {
                what: "VFIO of version 0",
            });
        }
        if !ioctl::has_type1v2(container.as_fd()).map_err(failed)? {
            return Err(Error::NoVfio {
                what: "VFIO for IOMMUs of type 1, version 2",
            });
        }
        Ok(Self(Arc::new(Inner {
            container,
            groups: Mutex::new(Vec::new()),
            addresses: Mutex::new(None),
        })))
    }

    /// Maps memory for all engines of the space, to read and to write.
    ///
    /// The kernel pins the memory; for a user, that counts against `RLIMIT_MEMLOCK`.
    ///
    /// # Errors
    ///
    /// [`Error::NoFunctionYet`], [`Error::MemoryLimit`], [`Error::NoMemory`] (no page was to be
    /// had), [`Error::TooManyMappings`], [`Error::NoBusAddresses`].
    pub fn map(&self, memory: Memory) -> Result<Mapping, Error> {
        self.map_for(memory, Access::ReadWrite)
    }

    /// Maps memory for all engines of the space.
    ///
    /// # Errors
    ///
    /// As [`map`](Self::map).
    pub fn map_for(&self, memory: Memory, access: Access) -> Result<Mapping, Error> {
        let len = memory.len_bytes();
        let align = if len >= HUGE_PAGE_LEN_BYTES {
            HUGE_PAGE_LEN_BYTES
        } else {
            PAGE_LEN_BYTES
        };
        self.map_at(memory, access, align, Use::Data)
    }

    /// Makes a ring of `entries` descriptors, rounded up to a power of two, and maps it: for a
    /// program that drives a queue by its registers ([`Function::into_registers`]).
    ///
    /// # Errors
    ///
    /// As [`map`](Self::map).
    ///
    /// [`Function::into_registers`]: crate::Function::into_registers
    pub fn ring(&self, entries: usize) -> Result<Ring, Error> {
        let entries = entries.clamp(MIN_ENTRIES, MAX_ENTRIES).next_power_of_two();
        let len_bytes = (entries as u64)
            .saturating_mul(DESCRIPTOR_LEN_BYTES as u64)
            .next_multiple_of(PAGE_LEN_BYTES);
        Ring::new(self.map_ring(Memory::anonymous(len_bytes)?)?, entries)
    }

    /// Maps memory so that a multiple of 4 GiB on the bus lies in its middle: for a program that
    /// wants to know whether an engine crosses one. `None` if no such place is free.
    ///
    /// # Errors
    ///
    /// As [`map`](Self::map).
    pub fn map_across_4_gib(&self, memory: Memory) -> Result<Option<Mapping>, Error> {
        let len = memory.len_bytes();
        let half = (len / 2).next_multiple_of(PAGE_LEN_BYTES);
        let taken = match locked(&self.0.addresses).as_mut() {
            None => return Err(Error::NoFunctionYet),
            // The low ones; one of them is free unless most of them are in use.
            Some(addresses) => (1..=16_u64).find_map(|n| {
                let start = (n << 32).checked_sub(half)?;
                addresses.take_at(start, len)
            }),
        };
        taken
            .map(|iova| self.map_to(memory, Access::ReadWrite, iova))
            .transpose()
    }

    /// Maps memory for a ring: at a multiple of its length.
    pub(crate) fn map_ring(&self, memory: Memory) -> Result<Mapping, Error> {
        let align = memory.len_bytes().next_power_of_two();
        self.map_at(memory, Access::ReadWrite, align, Use::Ring)
    }

    fn map_at(
        &self,
        memory: Memory,
        access: Access,
        align: u64,
        what: Use,
    ) -> Result<Mapping, Error> {
        let len = memory.len_bytes();
        let taken = match locked(&self.0.addresses).as_mut() {
            None => return Err(Error::NoFunctionYet),
            Some(addresses) => addresses.take(len, align, what),
        };
        let iova = taken.ok_or(Error::NoBusAddresses { asked: len })?;
        self.map_to(memory, access, iova)
    }

    /// Maps memory at bus addresses that were taken for it.
    fn map_to(&self, memory: Memory, access: Access, iova: u64) -> Result<Mapping, Error> {
        let len = memory.len_bytes();
        match memory.give_to_engines(&self.0.container, iova, access == Access::ReadWrite) {
            Ok(()) => Ok(Mapping {
                lease: Lease {
                    space: Arc::clone(&self.0),
                    map: memory.map(),
                    iova,
                    len_bytes: len,
                    over: false,
                },
                memory,
                access,
            }),
            Err(error) => {
                self.0.give_back(iova);
                Err(map_error(error, len))
            }
        }
    }

    /// Whether both are the same space.
    pub(crate) fn is(&self, other: &Arc<Inner>) -> bool {
        Arc::ptr_eq(&self.0, other)
    }

    /// Opens a function, adding its group to the space if it is not in there.
    pub(crate) fn open_device(&self, candidate: &Candidate) -> Result<File, Error> {
        let address = candidate.address;
        let number = candidate.group.ok_or(Error::NoIommu(address))?;
        let mut groups = locked(&self.0.groups);
        let group = match groups.iter().position(|group| group.number == number) {
            Some(index) => groups.get(index),
            None => {
                let group = self.add_group(candidate, number)?;
                groups.push(group);
                groups.last()
            }
        };
        let group = group.ok_or(Error::NoFunctionYet)?;
        let file = ioctl::device(group.file.as_fd(), &address.to_string())
            .map_err(|e| Error::system(format!("open {address}"), e))?;
        Ok(file.into())
    }

    fn add_group(&self, candidate: &Candidate, number: u32) -> Result<Group, Error> {
        let address = candidate.address;
        let path: PathBuf = [VFIO_FOLDER, &number.to_string()].iter().collect();
        let file = open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => Error::InUse(address),
            io::ErrorKind::NotFound => Error::NotTaken {
                address,
                driver: candidate.driver.clone(),
            },
            _ => Error::about(&path, "open", error),
        })?;
        let failed = |what: &str| {
            let what = format!("{what} group {number}");
            move |error: io::Error| Error::system(what, error)
        };
        if !ioctl::is_viable(file.as_fd()).map_err(failed("ask"))? {
            return Err(Error::GroupNotViable {
                group: number,
                others: Sysfs::new().in_the_way(address),
            });
        }
        let container = self.0.container.as_fd();
        ioctl::set_container(file.as_fd(), container).map_err(failed("use"))?;
        let mut addresses = locked(&self.0.addresses);
        if addresses.is_none() {
            ioctl::set_type1v2(container).map_err(failed("translate for"))?;
            let info = ioctl::iommu_info(container).map_err(failed("ask the IOMMU of"))?;
            // Bit 12: pages of 4 KiB, which all memory here is a multiple of.
            if info.page_sizes & PAGE_LEN_BYTES == 0 {
                return Err(Error::NoVfio {
                    what: "IOMMU with pages of 4 KiB",
                });
            }
            *addresses = Some(BusAddresses::new(info.ranges));
        }
        Ok(Group { number, file })
    }
}

fn map_error(error: io::Error, asked: u64) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => match getrlimit(Resource::Memlock).current {
            // A process with CAP_IPC_LOCK may see a limit that does not hold for it; then there is
            // no memory, for which the limit is a better guess than none.
            Some(limit) => Error::MemoryLimit { asked, limit },
            None => Error::NoMemory {
                kind: "memory",
                asked,
            },
        },
        Some(libc::ENOSPC) => Error::TooManyMappings,
        // The pages could not be had: an empty pool of huge pages, for example.
        Some(libc::EFAULT) => Error::NoMemory {
            kind: "memory of this kind",
            asked,
        },
        _ => Error::system(format!("map {asked:#x} bytes for engines"), error),
    }
}

impl Inner {
    fn give_back(&self, iova: u64) {
        if let Some(addresses) = locked(&self.addresses).as_mut() {
            addresses.give_back(iova);
        }
    }

    fn unmap(&self, iova: u64, len_bytes: u64) -> Result<(), Error> {
        let failed = |e| Error::system(format!("unmap {len_bytes:#x} bytes at {iova:#x}"), e);
        let unmapped = ioctl::unmap(self.container.as_fd(), iova, len_bytes).map_err(failed)?;
        if unmapped != len_bytes {
            let error = io::Error::other(format!("the kernel unmapped {unmapped:#x} bytes"));
            return Err(failed(error));
        }
        self.give_back(iova);
        Ok(())
    }
}

/// Memory that engines can reach, at bus addresses of one space.
///
/// It is the memory, too: [`read`](Memory::read) and [`write`](Memory::write) are there.
/// Dropping it unmaps it first, and leaks the memory if the kernel does not unmap it.
pub struct Mapping {
    // Dropped first.
    lease: Lease,
    memory: Memory,
    access: Access,
}

/// Bus addresses at which engines reach memory.
struct Lease {
    space: Arc<Inner>,
    map: Arc<Map>,
    iova: u64,
    len_bytes: u64,
    over: bool,
}

impl Lease {
    fn end(&mut self) -> Result<(), Error> {
        if !self.over {
            self.space.unmap(self.iova, self.len_bytes)?;
            self.over = true;
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.end().is_err() {
            // Engines may still write: nobody else gets these pages.
            std::mem::forget(Arc::clone(&self.map));
        }
    }
}

/// The kernel did not unmap: engines may still reach the memory.
#[derive(Debug)]
pub struct UnmapError {
    /// What the kernel said.
    pub error: Error,
    /// What is still mapped.
    pub mapping: Mapping,
}

impl fmt::Display for UnmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for UnmapError {}

impl From<UnmapError> for Error {
    /// Gives up the mapping, which leaks its memory if it cannot be unmapped at the second
    /// attempt either.
    fn from(failed: UnmapError) -> Self {
        failed.error
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("iova", &format_args!("{:#x}", self.lease.iova))
            .field("memory", &self.memory)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

impl Deref for Mapping {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        &self.memory
    }
}

impl Mapping {
    /// Where engines find the first byte.
    #[must_use]
    pub fn addr(&self) -> DmaAddr {
        DmaAddr::new(self.lease.iova)
    }

    /// What engines may do with it.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    pub(crate) fn space(&self) -> &Arc<Inner> {
        &self.lease.space
    }

    /// Unmaps the memory and gives it back. This is a proof: once it returns, no engine can read
    /// or write the memory any more, whatever it was told and whatever state it is in.
    ///
    /// # Errors
    ///
    /// [`UnmapError`], with the mapping, if the kernel refuses.
    // The mapping has to come back: its memory must not be lost silently.
    #[allow(clippy::result_large_err)]
    pub fn unmap(mut self) -> Result<Memory, UnmapError> {
        match self.lease.end() {
            Ok(()) => Ok(self.memory),
            Err(error) => Err(UnmapError {
                error,
                mapping: self,
            }),
        }
    }
}
