//! Bus memory for tests: regions at bus addresses that have nothing to do with host addresses.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use ptdma::{DmaAddr, DmaRange, RangeError};

use crate::bus::{BusError, BusMemory, CopyError, Side, offset};
use crate::region::Region;

/// Where [`BusSpace::alloc`] starts: over 4 GiB, so that a driver which loses the high half of an
/// address hits a hole, and with distinct digits, so that a wrong address is seen in a log.
const ALLOC_START: u64 = 0x12_3456_0000;
/// Hole after each allocation, so that running over an end is an error and not a neighbour.
const GUARD_LEN_BYTES: u64 = 4096;

/// What the engine may do with a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anything.
    ReadWrite,
    /// Only read: a write is refused.
    ReadOnly,
    /// Only write: a read is refused.
    WriteOnly,
}

impl Access {
    fn reads(self) -> bool {
        self != Self::WriteOnly
    }
    fn writes(self) -> bool {
        self != Self::ReadOnly
    }
}

/// Why memory could not be put on, or taken from, the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// Not an address range that an engine can reach.
    #[error("not addressable: {0}")]
    Range(#[from] RangeError),
    /// The range is taken, wholly or in part.
    #[error("bus addresses at {addr} are taken")]
    Taken {
        /// Start of the region that is in the way.
        addr: DmaAddr,
    },
    /// The alignment is not a power of two.
    #[error("alignment {0} is not a power of two")]
    Alignment(u64),
    /// Nothing is mapped there.
    #[error("nothing is mapped at {addr}")]
    NotMapped {
        /// The address that was given.
        addr: DmaAddr,
    },
    /// A buffer was accessed past its end.
    #[error("bytes {offset}..{end} of a buffer of {len_bytes}")]
    OutOfBounds {
        /// First byte asked for.
        offset: usize,
        /// One past the last byte asked for.
        end: usize,
        /// Length of the buffer.
        len_bytes: usize,
    },
}

struct Mapping {
    region: Arc<Region>,
    access: Access,
}

#[derive(Default)]
struct Map {
    by_start: BTreeMap<u64, Mapping>,
    next: u64,
}

impl Map {
    /// The mapping that holds `addr`, with the offset into it.
    fn find(&self, addr: DmaAddr) -> Result<(&Mapping, usize), BusError> {
        let hit = self.by_start.range(..=addr.get()).next_back();
        hit.and_then(|(start, mapping)| {
            let offset = usize::try_from(addr.get() - start).ok()?;
            (offset < mapping.region.len_bytes()).then_some((mapping, offset))
        })
        .ok_or(BusError::Unmapped { addr })
    }

    fn readable(&self, addr: DmaAddr) -> Result<(&Region, usize), BusError> {
        let (mapping, offset) = self.find(addr)?;
        if mapping.access.reads() {
            Ok((&mapping.region, offset))
        } else {
            Err(BusError::Refused { addr })
        }
    }

    fn writable(&self, addr: DmaAddr) -> Result<(&Region, usize), BusError> {
        let (mapping, offset) = self.find(addr)?;
        if mapping.access.writes() {
            Ok((&mapping.region, offset))
        } else {
            Err(BusError::Refused { addr })
        }
    }

    fn in_the_way(&self, range: DmaRange) -> Option<u64> {
        let (start, mapping) = self.by_start.range(..range.end()).next_back()?;
        let end = start.saturating_add(mapping.region.len_bytes() as u64);
        (end > range.start().get()).then_some(*start)
    }
}

/// A bus with memory on it. Clones share it.
#[derive(Clone, Default)]
pub struct BusSpace {
    map: Arc<RwLock<Map>>,
}

impl fmt::Debug for BusSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BusSpace({} regions)", self.map.read().by_start.len())
    }
}

impl BusSpace {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts zeroed memory at an address of the bus's choice, with a hole behind it.
    ///
    /// # Errors
    ///
    /// [`AllocError`] for a length of zero, an alignment that is no power of two, or a bus that
    /// is full.
    pub fn alloc(
        &self,
        len_bytes: usize,
        align_bytes: u64,
        access: Access,
    ) -> Result<BusBuffer, AllocError> {
        if !align_bytes.is_power_of_two() {
            return Err(AllocError::Alignment(align_bytes));
        }
        let mut map = self.map.write();
        let mut start = map.next.max(ALLOC_START);
        let range = loop {
            // Saturating: an overflow is out of reach for DmaRange as well.
            let aligned = start.saturating_add(align_bytes - 1) & !(align_bytes - 1);
            let range = DmaRange::new(DmaAddr::new(aligned), len_bytes as u64)?;
            match map.in_the_way(range) {
                None => break range,
                Some(taken) => {
                    let len = map.by_start.get(&taken).map_or(1, |m| m.region.len_bytes());
                    start = taken.saturating_add(len as u64);
                }
            }
        };
        map.next = range.end().saturating_add(GUARD_LEN_BYTES);
        Ok(Self::insert(&mut map, range, access))
    }

    /// Puts zeroed memory at a given address.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if the range is out of reach or taken.
    pub fn map_at(
        &self,
        addr: DmaAddr,
        len_bytes: usize,
        access: Access,
    ) -> Result<BusBuffer, AllocError> {
        let range = DmaRange::new(addr, len_bytes as u64)?;
        let mut map = self.map.write();
        match map.in_the_way(range) {
            Some(taken) => Err(AllocError::Taken {
                addr: DmaAddr::new(taken),
            }),
            None => Ok(Self::insert(&mut map, range, access)),
        }
    }

    /// Takes the region that starts at `addr` off the bus, after any access in progress. Its
    /// [`BusBuffer`]s stay readable.
    ///
    /// # Errors
    ///
    /// [`AllocError::NotMapped`] if no region starts there.
    pub fn unmap(&self, addr: DmaAddr) -> Result<(), AllocError> {
        match self.map.write().by_start.remove(&addr.get()) {
            Some(_) => Ok(()),
            None => Err(AllocError::NotMapped { addr }),
        }
    }

    /// Puts a buffer that was unmapped back to where it was.
    ///
    /// # Errors
    ///
    /// [`AllocError::Taken`] if something else is there now.
    pub fn remap(&self, buffer: &BusBuffer, access: Access) -> Result<(), AllocError> {
        let range = DmaRange::new(buffer.addr, buffer.len_bytes() as u64)?;
        let mut map = self.map.write();
        if let Some(taken) = map.in_the_way(range) {
            return Err(AllocError::Taken {
                addr: DmaAddr::new(taken),
            });
        }
        let region = Arc::clone(&buffer.region);
        map.by_start
            .insert(buffer.addr.get(), Mapping { region, access });
        Ok(())
    }

    fn insert(map: &mut Map, range: DmaRange, access: Access) -> BusBuffer {
        // A range was built from a usize.
        let region = Arc::new(Region::zeroed(range.len_bytes() as usize));
        let mapping = Mapping {
            region: Arc::clone(&region),
            access,
        };
        map.by_start.insert(range.start().get(), mapping);
        BusBuffer {
            addr: range.start(),
            region,
        }
    }
}

impl BusMemory for BusSpace {
    fn read(&self, addr: DmaAddr, buf: &mut [u8]) -> Result<(), BusError> {
        let map = self.map.read();
        let mut done = 0;
        while done < buf.len() {
            let (region, at) = map.readable(offset(addr, done as u64))?;
            let step = (buf.len() - done).min(region.len_bytes() - at);
            region.load(at, &mut buf[done..done + step]);
            done += step;
        }
        Ok(())
    }

    fn write(&self, addr: DmaAddr, data: &[u8]) -> Result<(), BusError> {
        let map = self.map.read();
        let mut done = 0;
        while done < data.len() {
            let (region, at) = map.writable(offset(addr, done as u64))?;
            let step = (data.len() - done).min(region.len_bytes() - at);
            region.store(at, &data[done..done + step]);
            done += step;
        }
        Ok(())
    }

    fn copy(&self, src: DmaAddr, dst: DmaAddr, len_bytes: u64) -> Result<(), CopyError> {
        let map = self.map.read();
        let mut done = 0;
        while done < len_bytes {
            let fail = |side, error| CopyError {
                side,
                error,
                done_bytes: done,
            };
            let (from, from_at) = map
                .readable(offset(src, done))
                .map_err(|e| fail(Side::Source, e))?;
            let (to, to_at) = map
                .writable(offset(dst, done))
                .map_err(|e| fail(Side::Destination, e))?;
            let step = usize::try_from(len_bytes - done)
                .unwrap_or(usize::MAX)
                .min(from.len_bytes() - from_at)
                .min(to.len_bytes() - to_at);
            from.copy_to(from_at, to, to_at, step);
            done += step as u64;
        }
        Ok(())
    }
}

/// The host's view of a region on the bus: where it is for the engine, and its bytes for tests.
///
/// Not bound by the region's [`Access`], and usable after an unmap. Clones share the bytes.
#[derive(Clone)]
pub struct BusBuffer {
    addr: DmaAddr,
    region: Arc<Region>,
}

impl fmt::Debug for BusBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BusBuffer({} + {:#x})", self.addr, self.len_bytes())
    }
}

impl BusBuffer {
    /// Bus address of the first byte.
    #[must_use]
    pub fn addr(&self) -> DmaAddr {
        self.addr
    }

    /// Length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.region.len_bytes()
    }

    /// Bus address of the byte at `offset`, which may be one past the end.
    ///
    /// # Errors
    ///
    /// [`AllocError::OutOfBounds`] beyond that.
    pub fn addr_of(&self, offset: usize) -> Result<DmaAddr, AllocError> {
        self.check(offset, 0)?;
        Ok(crate::bus::offset(self.addr, offset as u64))
    }

    /// Reads bytes.
    ///
    /// # Errors
    ///
    /// [`AllocError::OutOfBounds`] past the end; nothing is read then.
    pub fn read(&self, offset: usize, buf: &mut [u8]) -> Result<(), AllocError> {
        self.check(offset, buf.len())?;
        self.region.load(offset, buf);
        Ok(())
    }

    /// Writes bytes.
    ///
    /// # Errors
    ///
    /// [`AllocError::OutOfBounds`] past the end; nothing is written then.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<(), AllocError> {
        self.check(offset, data.len())?;
        self.region.store(offset, data);
        Ok(())
    }

    /// All bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; self.len_bytes()];
        self.region.load(0, &mut all);
        all
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), AllocError> {
        let end = offset.saturating_add(len);
        if end <= self.len_bytes() {
            Ok(())
        } else {
            Err(AllocError::OutOfBounds {
                offset,
                end,
                len_bytes: self.len_bytes(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_apart_and_holes_are_unmapped() {
        let bus = BusSpace::new();
        let a = bus.alloc(100, 32, Access::ReadWrite).unwrap();
        let b = bus.alloc(100, 1 << 20, Access::ReadWrite).unwrap();
        assert!(b.addr().is_aligned_to(1 << 20));
        assert!(b.addr().get() >= a.addr().get() + 100 + GUARD_LEN_BYTES);
        let hole = a.addr_of(100).unwrap();
        assert_eq!(
            bus.read(hole, &mut [0]),
            Err(BusError::Unmapped { addr: hole })
        );
        assert_eq!(
            bus.read(a.addr(), &mut [0; 101]),
            Err(BusError::Unmapped { addr: hole })
        );
    }

    #[test]
    fn access_is_enforced_for_the_engine_only() {
        let bus = BusSpace::new();
        let ro = bus.alloc(64, 64, Access::ReadOnly).unwrap();
        let wo = bus.alloc(64, 64, Access::WriteOnly).unwrap();
        let refused = |b: &BusBuffer| Err(BusError::Refused { addr: b.addr() });
        assert_eq!(bus.write(ro.addr(), &[1]), refused(&ro));
        assert_eq!(bus.read(wo.addr(), &mut [0]), refused(&wo));
        ro.write(3, &[9]).unwrap();
        bus.copy(ro.addr(), wo.addr(), 64).unwrap();
        assert_eq!(wo.to_vec()[3], 9);
        let e = bus.copy(wo.addr(), ro.addr(), 64).unwrap_err();
        assert_eq!((e.side, e.done_bytes), (Side::Source, 0));
    }

    #[test]
    fn a_copy_over_neighbouring_regions_is_seamless_and_stops_at_the_hole() {
        let bus = BusSpace::new();
        let at = |n| DmaAddr::new(n);
        let a = bus.map_at(at(0x1003), 5, Access::ReadWrite).unwrap();
        let b = bus.map_at(at(0x1008), 8, Access::ReadWrite).unwrap();
        let c = bus.map_at(at(0x8000), 64, Access::ReadWrite).unwrap();
        a.write(0, &[1, 2, 3, 4, 5]).unwrap();
        b.write(0, &[6; 8]).unwrap();
        bus.copy(at(0x1003), at(0x8001), 13).unwrap();
        assert_eq!(c.to_vec()[1..14], [1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6, 6, 6]);
        let e = bus.copy(at(0x1003), at(0x8001), 14).unwrap_err();
        assert_eq!((e.side, e.done_bytes), (Side::Source, 13));
        assert!(bus.map_at(at(0x1007), 2, Access::ReadWrite).is_err());
        bus.unmap(at(0x1008)).unwrap();
        let e = bus.copy(at(0x8000), at(0x1003), 6).unwrap_err();
        assert_eq!((e.side, e.done_bytes), (Side::Destination, 5));
        bus.remap(&b, Access::ReadWrite).unwrap();
        bus.copy(at(0x8000), at(0x1003), 6).unwrap();
    }
}
