//! Memory of a guest, as rust-vmm's `vm-memory` has it.

use std::fmt;
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion};

use crate::error::Error;
use crate::list::CopyRange;
use crate::memory::Memory;
use crate::space::{Access, Mapping, Space};

/// A guest's memory at bus addresses: source and target of copies by guest-physical address.
///
/// It keeps the regions alive. Dropping it unmaps them.
pub struct GuestMapping {
    /// By guest-physical address.
    regions: Vec<Region>,
}

struct Region {
    start: u64,
    mapping: Mapping,
}

impl fmt::Debug for GuestMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let regions = self.regions.iter();
        f.debug_map()
            .entries(regions.map(|region| (region.start, &region.mapping)))
            .finish()
    }
}

impl Space {
    /// Maps all regions of a guest's memory for all engines of the space, to read, or to write too.
    ///
    /// The guest may go on: its CPUs and `vm-memory` take it for memory that others write. The
    /// kernel pins the pages; what replaces them by others (`MAP_FIXED`, `MADV_DONTNEED`, a balloon)
    /// has engines go on with the old ones, as with any device that is passed through.
    ///
    /// # Errors
    ///
    /// As [`Space::map_for`]; [`Error::Unaligned`] if a region is no whole pages;
    /// [`Error::ReadOnly`] if this process may not write a region.
    pub fn map_guest<B>(
        &self,
        guest: &GuestMemoryMmap<B>,
        access: Access,
    ) -> Result<GuestMapping, Error>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let mut regions = guest
            .iter()
            .map(|region| {
                let owner: Arc<MmapRegion<B>> = region.get_mmap();
                let memory = Memory::of_guest_region(owner)?;
                Ok(Region {
                    start: region.start_addr().0,
                    mapping: self.map_for(memory, access)?,
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        regions.sort_by_key(|region| region.start);
        Ok(GuestMapping { regions })
    }
}

impl GuestMapping {
    /// The ranges that copy `len_bytes` bytes at `from` of this guest to `to` of another one: one,
    /// unless a region ends within.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`]; [`Error::OutOfBounds`] if either guest has a hole there;
    /// [`Error::ReadOnly`].
    pub fn ranges_to<'m>(
        &'m self,
        from: GuestAddress,
        other: &'m Self,
        to: GuestAddress,
        len_bytes: u64,
    ) -> Result<Vec<CopyRange<'m>>, Error> {
        if len_bytes == 0 {
            return Err(Error::Empty { what: "range" });
        }
        let mut list = Vec::new();
        let mut done = 0;
        while done < len_bytes {
            let left = len_bytes.saturating_sub(done);
            let (source, source_at, source_len) = self.find(from, done, left)?;
            let (target, target_at, target_len) = other.find(to, done, left)?;
            let len = source_len.min(target_len);
            list.push(CopyRange::new(source, source_at, target, target_at, len)?);
            done = done.saturating_add(len);
        }
        Ok(list)
    }

    /// The mapping that holds the byte `done` bytes behind an address, where in it, and how many
    /// bytes from there on are in it, `most` at the most.
    fn find(
        &self,
        start: GuestAddress,
        done: u64,
        most: u64,
    ) -> Result<(&Mapping, u64, u64), Error> {
        let hole = |address| Error::OutOfBounds {
            offset: address,
            len_bytes: most,
            size: self.end(),
        };
        let address = start.0.checked_add(done).ok_or_else(|| hole(start.0))?;
        let after = self
            .regions
            .partition_point(|region| region.start <= address);
        let before = after.checked_sub(1).and_then(|at| self.regions.get(at));
        let region = before.ok_or_else(|| hole(address))?;
        let at = address.saturating_sub(region.start);
        let len = region.mapping.len_bytes().saturating_sub(at).min(most);
        if len == 0 {
            return Err(hole(address));
        }
        Ok((&region.mapping, at, len))
    }

    /// The address behind the last region.
    fn end(&self) -> u64 {
        self.regions.last().map_or(0, |region| {
            region.start.saturating_add(region.mapping.len_bytes())
        })
    }

    /// Unmaps all regions. This is a proof: no engine can reach the guest any more.
    ///
    /// # Errors
    ///
    /// One of the system. Regions that were not unmapped are leaked.
    pub fn unmap(self) -> Result<(), Error> {
        let mut result = Ok(());
        for region in self.regions {
            let unmapped = region.mapping.unmap().map(drop).map_err(Error::from);
            result = result.and(unmapped);
        }
        result
    }
}
