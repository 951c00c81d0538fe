//! The client's memory, as the engine's bus.
//!
//! Maps come as (bus address, length, descriptor, offset, direction). Under a virtual IOMMU there
//! are thousands of single pages, each with its own duplicate of the same descriptor, so one file
//! is kept open once, and neighbours that continue each other in the file are accessed in one go.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};

use parking_lot::RwLock;
use ptdma::DmaAddr;
use ptdma_model::{BusError, BusMemory};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

/// Bytes copied at a time where source and destination are longer than a page.
const BUFFER_LEN_BYTES: usize = 64 << 10;
/// Buffer for short copies: one page.
const SMALL_BUFFER_LEN_BYTES: usize = 4 << 10;

/// An open file, once for all maps of it.
#[derive(Debug)]
struct Backing {
    file: File,
    identity: Identity,
}

/// What makes two descriptors interchangeable: the same file, opened for the same accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    access: OFlags,
}

/// What a map is made of.
#[derive(Debug)]
pub struct MapRequest {
    /// First bus address.
    pub addr: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// The file behind it; none: the range is known but cannot be reached.
    pub file: Option<File>,
    /// Where in the file the range starts.
    pub file_offset: u64,
    /// Whether the engine may read it.
    pub readable: bool,
    /// Whether the engine may write it.
    pub writable: bool,
}

#[derive(Clone, Debug)]
struct Map {
    len_bytes: u64,
    backing: Option<Arc<Backing>>,
    file_offset: u64,
    readable: bool,
    writable: bool,
}

impl Map {
    fn allows(&self, write: bool) -> bool {
        if write { self.writable } else { self.readable }
    }

    /// The rest of the map from `skip` bytes on.
    fn tail(&self, skip: u64) -> Self {
        Self {
            len_bytes: self.len_bytes.saturating_sub(skip),
            // Cannot overflow: the map's end was checked against the file's length.
            file_offset: self.file_offset.saturating_add(skip),
            ..self.clone()
        }
    }
}

#[derive(Debug, Default)]
struct Maps {
    by_start: BTreeMap<u64, Map>,
    len_bytes: u64,
    /// The files of all maps; a client has one or two.
    files: Vec<Weak<Backing>>,
}

/// A stretch of a file that holds consecutive bus addresses.
struct Run<'a> {
    file: &'a File,
    file_offset: u64,
    len: usize,
}

impl Maps {
    /// The file that is open already, if `new` is the same, so that its descriptor is closed.
    fn share(&mut self, new: Backing) -> Arc<Backing> {
        let mut known = self.files.iter().filter_map(Weak::upgrade);
        if let Some(same) = known.find(|known| known.identity == new.identity) {
            return same;
        }
        self.files.retain(|file| file.strong_count() != 0);
        let new = Arc::new(new);
        self.files.push(Arc::downgrade(&new));
        new
    }

    fn remove(&mut self, start: u64) -> Option<Map> {
        let map = self.by_start.remove(&start)?;
        self.len_bytes = self.len_bytes.saturating_sub(map.len_bytes);
        Some(map)
    }

    fn insert(&mut self, start: u64, map: Map) {
        self.len_bytes = self.len_bytes.saturating_add(map.len_bytes);
        self.by_start.insert(start, map);
    }

    /// The longest run from `addr`, at most `wanted` bytes.
    fn run(&self, addr: u64, wanted: usize, write: bool) -> Result<Run<'_>, BusError> {
        let bus_addr = DmaAddr::new(addr);
        let unmapped = BusError::Unmapped { addr: bus_addr };
        let refused = BusError::Refused { addr: bus_addr };
        let mut maps = self.by_start.range(..=addr).next_back().into_iter();
        let (start, first) = maps.next().ok_or(unmapped)?;
        let skip = addr - start;
        if skip >= first.len_bytes {
            return Err(unmapped);
        }
        let backing = first.backing.as_ref().ok_or(refused)?;
        if !first.allows(write) {
            return Err(refused);
        }
        let file_offset = first.file_offset + skip;
        let mut len = first.len_bytes - skip;
        let wanted = wanted as u64;
        if len < wanted {
            // Bus addresses do not wrap: a map that ends at 2^64 has no neighbour.
            let after = self.by_start.range(addr.saturating_add(1)..);
            for (start, next) in after {
                let continues = *start == addr.saturating_add(len)
                    && next
                        .backing
                        .as_ref()
                        .is_some_and(|b| Arc::ptr_eq(b, backing))
                    && next.file_offset == file_offset + len
                    && next.allows(write);
                if !continues || len >= wanted {
                    break;
                }
                len += next.len_bytes;
            }
        }
        Ok(Run {
            file: &backing.file,
            file_offset,
            len: usize::try_from(len.min(wanted)).unwrap_or(usize::MAX),
        })
    }
}

/// All maps of one client.
///
/// An access holds the maps for its duration, so an unmap returns only when no access to the
/// memory is in progress, and none will start.
#[derive(Debug, Default)]
pub struct GuestMemory {
    maps: RwLock<Maps>,
}

impl GuestMemory {
    /// Memory of a client that has not mapped anything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a map.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a length of zero, a range that wraps, something that is no regular file, or a
    /// range that the file does not have; `EEXIST` if bus addresses are mapped already; `EACCES`
    /// if the file is not open for what the map is to allow.
    pub fn map(&self, request: MapRequest) -> Result<(), Errno> {
        let MapRequest {
            addr,
            len_bytes,
            file,
            file_offset,
            readable,
            writable,
        } = request;
        let end = addr.checked_add(len_bytes).ok_or(Errno::INVAL)?;
        if len_bytes == 0 {
            return Err(Errno::INVAL);
        }
        let file = match file {
            None => None,
            Some(file) => {
                let file_end = file_offset.checked_add(len_bytes).ok_or(Errno::INVAL)?;
                Some(check_file(file, file_end, readable, writable)?)
            }
        };
        let mut maps = self.maps.write();
        let before = maps.by_start.range(..end).next_back();
        if before.is_some_and(|(start, map)| start.saturating_add(map.len_bytes) > addr) {
            return Err(Errno::EXIST);
        }
        let backing = file.map(|new| maps.share(new));
        let map = Map {
            len_bytes,
            backing,
            file_offset,
            readable,
            writable,
        };
        maps.insert(addr, map);
        Ok(())
    }

    /// Removes whatever is mapped in a range, cutting maps that reach over its ends, after the
    /// accesses in progress. Returns the number of bytes that were mapped.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the range is empty or wraps.
    pub fn unmap(&self, addr: u64, len_bytes: u64) -> Result<u64, Errno> {
        if len_bytes == 0 {
            return Err(Errno::INVAL);
        }
        // The last address, so that a range may end at 2^64.
        let last = addr.checked_add(len_bytes - 1).ok_or(Errno::INVAL)?;
        let mut maps = self.maps.write();
        let before = maps.len_bytes;
        let cut_start = maps
            .by_start
            .range(..addr)
            .next_back()
            .filter(|(start, map)| *start + (map.len_bytes - 1) >= addr)
            .map(|(start, _)| *start);
        let inside: Vec<u64> = maps.by_start.range(addr..=last).map(|(s, _)| *s).collect();
        for start in cut_start.into_iter().chain(inside) {
            let Some(map) = maps.remove(start) else {
                continue;
            };
            let map_last = start + (map.len_bytes - 1);
            if start < addr {
                let head = Map {
                    len_bytes: addr - start,
                    ..map.clone()
                };
                maps.insert(start, head);
            }
            if map_last > last {
                maps.insert(last + 1, map.tail(last + 1 - start));
            }
        }
        Ok(before - maps.len_bytes)
    }

    /// Removes everything, after the accesses in progress.
    pub fn unmap_all(&self) {
        *self.maps.write() = Maps::default();
    }

    /// Number of maps, and bytes that they cover.
    #[must_use]
    pub fn size(&self) -> (usize, u64) {
        let maps = self.maps.read();
        (maps.by_start.len(), maps.len_bytes)
    }

    fn each_run(
        &self,
        addr: DmaAddr,
        len: usize,
        write: bool,
        mut access: impl FnMut(Run<'_>, usize) -> std::io::Result<()>,
    ) -> Result<(), BusError> {
        let maps = self.maps.read();
        let mut done = 0;
        while done < len {
            // A wrapped address has no map.
            let at = addr.get().wrapping_add(done as u64);
            let run = maps.run(at, len - done, write)?;
            let step = run.len;
            access(run, done).map_err(|e| {
                log::warn!("guest memory at {at:#x}: {e}");
                BusError::Refused {
                    addr: DmaAddr::new(at),
                }
            })?;
            done += step;
        }
        Ok(())
    }
}

impl BusMemory for GuestMemory {
    fn read(&self, addr: DmaAddr, buf: &mut [u8]) -> Result<(), BusError> {
        let len = buf.len();
        self.each_run(addr, len, false, |run, at| {
            let part = buf.get_mut(at..at + run.len).unwrap_or_default();
            run.file.read_exact_at(part, run.file_offset)
        })
    }

    fn write(&self, addr: DmaAddr, data: &[u8]) -> Result<(), BusError> {
        self.each_run(addr, data.len(), true, |run, at| {
            let part = data.get(at..at + run.len).unwrap_or_default();
            // Never grows the file: a write past the end would succeed where a read fails.
            let end = run.file_offset + part.len() as u64;
            if run.file.metadata()?.len() < end {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            run.file.write_all_at(part, run.file_offset)
        })
    }

    fn copy(
        &self,
        src: DmaAddr,
        dst: DmaAddr,
        len_bytes: u64,
    ) -> Result<(), ptdma_model::CopyError> {
        if len_bytes <= SMALL_BUFFER_LEN_BYTES as u64 {
            let mut buffer = [0; SMALL_BUFFER_LEN_BYTES];
            ptdma_model::bus::copy_by(self, src, dst, len_bytes, &mut buffer)
        } else {
            let mut buffer = vec![0; BUFFER_LEN_BYTES];
            ptdma_model::bus::copy_by(self, src, dst, len_bytes, &mut buffer)
        }
    }
}

/// A regular file that is long enough, and open for the access that is needed.
fn check_file(file: File, end: u64, readable: bool, writable: bool) -> Result<Backing, Errno> {
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let len_bytes = u64::try_from(stat.st_size).map_err(|_negative| Errno::INVAL)?;
    if end > len_bytes {
        return Err(Errno::INVAL);
    }
    let access = rustix::fs::fcntl_getfl(&file)? & OFlags::RWMODE;
    let can_read = access == OFlags::RDWR || access == OFlags::RDONLY;
    let can_write = access == OFlags::RDWR || access == OFlags::WRONLY;
    if readable && !can_read || writable && !can_write {
        return Err(Errno::ACCESS);
    }
    let identity = Identity {
        device: stat.st_dev,
        inode: stat.st_ino,
        access,
    };
    Ok(Backing { file, identity })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const PAGE: u64 = 4096;

    fn file(pages: u64) -> File {
        let mut file = tempfile::tempfile().unwrap();
        for page in 0..pages {
            file.write_all(&[page as u8 + 1; PAGE as usize]).unwrap();
        }
        file
    }

    fn request(addr: u64, len_bytes: u64, file: &File, file_offset: u64) -> MapRequest {
        MapRequest {
            addr,
            len_bytes,
            file: Some(file.try_clone().unwrap()),
            file_offset,
            readable: true,
            writable: true,
        }
    }

    fn memory() -> GuestMemory {
        GuestMemory::new()
    }

    fn byte(memory: &GuestMemory, addr: u64) -> Result<u8, BusError> {
        let mut byte = [0];
        memory.read(DmaAddr::new(addr), &mut byte)?;
        Ok(byte[0])
    }

    fn unmapped(addr: u64) -> BusError {
        BusError::Unmapped {
            addr: DmaAddr::new(addr),
        }
    }

    fn refused(addr: u64) -> BusError {
        BusError::Refused {
            addr: DmaAddr::new(addr),
        }
    }

    #[test]
    fn nothing_is_there_before_a_map() {
        let m = memory();
        assert_eq!(byte(&m, 0), Err(unmapped(0)));
        m.map(request(0, PAGE, &file(1), 0)).unwrap();
        assert_eq!(byte(&m, 0), Ok(1));
    }

    #[test]
    fn scattered_pages_read_as_one_and_share_one_descriptor() {
        let m = memory();
        let f = file(8);
        // In reverse order, so that no two pages continue each other, then two that do.
        for page in 0..6 {
            m.map(request(0x10000 + page * PAGE, PAGE, &f, (5 - page) * PAGE))
                .unwrap();
        }
        m.map(request(0x16000, PAGE, &f, 6 * PAGE)).unwrap();
        m.map(request(0x17000, PAGE, &f, 7 * PAGE)).unwrap();
        let mut all = vec![0; 8 * PAGE as usize];
        m.read(DmaAddr::new(0x10000), &mut all).unwrap();
        let firsts: Vec<u8> = all.iter().step_by(PAGE as usize).copied().collect();
        assert_eq!(firsts, [6, 5, 4, 3, 2, 1, 7, 8]);
        let maps = m.maps.read();
        let first = maps.by_start[&0x10000].backing.as_ref().unwrap();
        assert_eq!(Arc::strong_count(first), 8);
        assert_eq!(maps.run(0x16000, 9000, false).unwrap().len, 8192);
        drop(maps);
        assert_eq!(m.maps.read().files.len(), 1);
        assert_eq!(m.size(), (8, 8 * PAGE));
        let e = m.read(DmaAddr::new(0x10001), &mut all).unwrap_err();
        assert_eq!(e, unmapped(0x18000));
    }

    #[test]
    fn directions_are_kept() {
        let m = memory();
        let f = file(2);
        let mut read_only = request(0, PAGE, &f, 0);
        read_only.writable = false;
        m.map(read_only).unwrap();
        let mut write_only = request(PAGE, PAGE, &f, PAGE);
        write_only.readable = false;
        m.map(write_only).unwrap();
        assert_eq!(m.write(DmaAddr::new(5), &[9]), Err(refused(5)));
        assert_eq!(byte(&m, PAGE), Err(refused(PAGE)));
        m.write(DmaAddr::new(PAGE), &[9]).unwrap();
        assert_eq!(byte(&m, 0), Ok(1));
        let mut across = [0; 8];
        let e = m.read(DmaAddr::new(PAGE - 4), &mut across).unwrap_err();
        assert_eq!(e, refused(PAGE));
        assert_eq!(across, [1, 1, 1, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn bad_maps_are_refused() {
        let m = memory();
        let f = file(2);
        let invalid = Err(Errno::INVAL);
        assert_eq!(m.map(request(0, 0, &f, 0)), invalid);
        assert_eq!(m.map(request(0, 3 * PAGE, &f, 0)), invalid);
        assert_eq!(m.map(request(0, PAGE, &f, 2 * PAGE)), invalid);
        assert_eq!(m.map(request(0, PAGE, &f, u64::MAX)), invalid);
        assert_eq!(m.map(request(u64::MAX, 2, &f, 0)), invalid);
        m.map(request(PAGE, PAGE, &f, 0)).unwrap();
        for (addr, len) in [
            (PAGE, PAGE),
            (0, 2 * PAGE),
            (PAGE + 1, 1),
            (2 * PAGE - 1, 1),
        ] {
            assert_eq!(m.map(request(addr, len, &f, 0)), Err(Errno::EXIST));
        }
        m.map(request(0, PAGE, &f, 0)).unwrap();
        m.map(request(2 * PAGE, PAGE, &f, 0)).unwrap();
        let no_file = File::open("/dev/zero").unwrap();
        assert_eq!(m.map(request(1 << 30, PAGE, &no_file, 0)), invalid);
    }

    #[test]
    fn a_descriptor_opened_for_reading_cannot_be_mapped_for_writing() {
        let m = memory();
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(PAGE).unwrap();
        let read_only = File::open(named.path()).unwrap();
        let bad = request(0, PAGE, &read_only, 0);
        assert_eq!(m.map(bad), Err(Errno::ACCESS));
        let mut good = request(0, PAGE, &read_only, 0);
        good.writable = false;
        m.map(good).unwrap();
        // The same file opened for both is another descriptor, and is not mixed up with it.
        m.map(request(PAGE, PAGE, named.as_file(), 0)).unwrap();
        m.write(DmaAddr::new(PAGE), &[7]).unwrap();
        assert_eq!(byte(&m, 0), Ok(7));
    }

    #[test]
    fn a_map_without_a_file_is_known_and_not_reachable() {
        let m = memory();
        let mut bare = request(0, PAGE, &file(1), 0);
        bare.file = None;
        m.map(bare).unwrap();
        assert_eq!(byte(&m, 10), Err(refused(10)));
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_and_never_grows_back() {
        let m = memory();
        let f = file(2);
        m.map(request(0, 2 * PAGE, &f, 0)).unwrap();
        f.set_len(PAGE + 10).unwrap();
        assert_eq!(byte(&m, PAGE + 9), Ok(2));
        assert_eq!(byte(&m, PAGE + 10), Err(refused(PAGE + 10)));
        let e = m.write(DmaAddr::new(PAGE + 100), &[1]).unwrap_err();
        assert_eq!(e, refused(PAGE + 100));
        assert_eq!(f.metadata().unwrap().len(), PAGE + 10);
    }

    #[test]
    fn unmap_cuts_and_counts() {
        let m = memory();
        let f = file(8);
        m.map(request(0, 4 * PAGE, &f, 0)).unwrap();
        m.map(request(4 * PAGE, 4 * PAGE, &f, 4 * PAGE)).unwrap();
        assert_eq!(m.unmap(PAGE, 5 * PAGE), Ok(5 * PAGE));
        assert_eq!(m.size(), (2, 3 * PAGE));
        assert_eq!(byte(&m, 0), Ok(1));
        assert_eq!(byte(&m, PAGE), Err(unmapped(PAGE)));
        assert_eq!(byte(&m, 6 * PAGE - 1), Err(unmapped(6 * PAGE - 1)));
        assert_eq!(byte(&m, 6 * PAGE), Ok(7));
        assert_eq!(m.unmap(7 * PAGE, PAGE), Ok(PAGE));
        assert_eq!(byte(&m, 6 * PAGE), Ok(7));
        assert_eq!(m.unmap(0, u64::MAX), Ok(2 * PAGE));
        assert_eq!(m.unmap(0, 0), Err(Errno::INVAL));
        assert_eq!(m.unmap(2, u64::MAX), Err(Errno::INVAL));
        assert_eq!(m.size(), (0, 0));
        // The middle of one map.
        m.map(request(0, 4 * PAGE, &f, 0)).unwrap();
        assert_eq!(m.unmap(PAGE, PAGE), Ok(PAGE));
        assert_eq!(byte(&m, 2 * PAGE), Ok(3));
        assert_eq!(byte(&m, 0), Ok(1));
    }

    #[test]
    fn thousands_of_maps_are_quick() {
        let m = memory();
        let f = file(64);
        let start = std::time::Instant::now();
        for page in 0..20_000 {
            m.map(request(page * PAGE, PAGE, &f, (page * 7 % 64) * PAGE))
                .unwrap();
        }
        for page in 0..20_000 {
            assert_eq!(byte(&m, page * PAGE), Ok((page * 7 % 64) as u8 + 1));
        }
        for page in 0..20_000 {
            assert_eq!(m.unmap(page * PAGE, PAGE), Ok(PAGE));
        }
        // Far above what it takes; a linear search would take minutes.
        assert!(start.elapsed() < std::time::Duration::from_secs(20));
    }
}
