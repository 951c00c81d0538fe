//! Memory of this process that engines may read and overwrite.

use std::any::Any;
use std::ffi::{c_long, c_ulong};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use crate::error::Error;
use crate::ioctl;

/// Pages of x86-64: what can be mapped and pinned.
pub const PAGE_LEN_BYTES: u64 = 4096;
/// Huge pages of x86-64. Longer memory begins at a multiple of this, in the process and on the bus:
/// then the IOMMU's tables need one entry for each.
pub const HUGE_PAGE_LEN_BYTES: u64 = 2 << 20;

/// A word of memory: everything is accessed in these, so that no two accesses of this process
/// overlap in part.
const WORD_LEN_BYTES: usize = size_of::<AtomicU64>();

/// A mapping of this process; removed with the last that holds it.
pub(crate) struct Map {
    start: NonNull<u8>,
    len_bytes: usize,
    /// Whether it is ours to remove.
    owned: bool,
    /// Who removes it otherwise, kept alive by this.
    _owner: Option<Box<dyn Any + Send + Sync>>,
}

// SAFETY: the memory belongs to no thread; whoever has the value may remove it.
unsafe impl Send for Map {}
// SAFETY: `&Map` gives out nothing but addresses and atomics.
unsafe impl Sync for Map {}

impl Drop for Map {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: the mapping was made by this type, nobody else removes it, and what was lent
            // from it has ended with it. An error would leave it mapped, which harms nobody.
            let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len_bytes) };
        }
    }
}

/// Memory of this process, made to be read and overwritten by engines.
///
/// Its bytes are reached by [`read`](Self::read) and [`write`](Self::write) only, which are atomic
/// word by word: memory that a device overwrites at any time cannot be lent as a slice. Code that
/// needs pointers takes [`as_ptr`](Self::as_ptr) and keeps to atomic or volatile accesses.
///
/// A child that this process forks does not get it.
pub struct Memory {
    map: Arc<Map>,
    file: Option<OwnedFd>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("start", &self.map.start)
            .field("len_bytes", &self.map.len_bytes)
            .finish_non_exhaustive()
    }
}

/// Checks a length: whole pages, and some.
fn whole_pages(len_bytes: u64, page: u64) -> Result<usize, Error> {
    if len_bytes == 0 {
        return Err(Error::Empty { what: "memory" });
    }
    if !len_bytes.is_multiple_of(page) {
        return Err(Error::Unaligned {
            what: "length",
            value: len_bytes,
            align: page,
        });
    }
    usize::try_from(len_bytes).map_err(|_| Error::NoMemory {
        kind: "memory",
        asked: len_bytes,
    })
}

fn no_memory(kind: &'static str, asked: u64) -> impl FnOnce(rustix::io::Errno) -> Error {
    move |error| match error {
        rustix::io::Errno::NOMEM => Error::NoMemory { kind, asked },
        error => Error::system(format!("map {asked:#x} bytes of {kind}"), error),
    }
}

impl Memory {
    /// Anonymous memory, zeroed, `len_bytes` long: whole pages. Huge pages are asked for, not
    /// insisted on.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::Unaligned`], [`Error::NoMemory`].
    pub fn anonymous(len_bytes: u64) -> Result<Self, Error> {
        let len = whole_pages(len_bytes, PAGE_LEN_BYTES)?;
        Self::make("memory", len, MapFlags::PRIVATE, None)
    }

    /// Anonymous memory in huge pages of 2 MiB, which must be free in the kernel's pool.
    ///
    /// # Errors
    ///
    /// As [`anonymous`](Self::anonymous).
    pub fn huge(len_bytes: u64) -> Result<Self, Error> {
        let len = whole_pages(len_bytes, HUGE_PAGE_LEN_BYTES)?;
        let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
        Self::make("huge pages", len, flags, None)
    }

    /// Memory of a file that has no name (`memfd_create`), zeroed: [`file`](Self::file) can be
    /// mapped again, or sent to another process. It keeps its length for ever.
    ///
    /// # Errors
    ///
    /// As [`anonymous`](Self::anonymous).
    pub fn memfd(name: &str, len_bytes: u64) -> Result<Self, Error> {
        whole_pages(len_bytes, PAGE_LEN_BYTES)?;
        Self::of_new_file(name, len_bytes, MemfdFlags::empty())
    }

    /// As [`memfd`](Self::memfd), in huge pages of 2 MiB, which must be free in the kernel's pool.
    ///
    /// # Errors
    ///
    /// As [`anonymous`](Self::anonymous).
    pub fn memfd_huge(name: &str, len_bytes: u64) -> Result<Self, Error> {
        whole_pages(len_bytes, HUGE_PAGE_LEN_BYTES)?;
        let flags = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        Self::of_new_file(name, len_bytes, flags)
    }

    fn of_new_file(name: &str, len_bytes: u64, flags: MemfdFlags) -> Result<Self, Error> {
        let failed = |error| Error::system(format!("make the memory file {name:?}"), error);
        let flags = flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create(name, flags).map_err(failed)?;
        ftruncate(&file, len_bytes).map_err(failed)?;
        // Or an access to a page that was cut off would end the process.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).map_err(failed)?;
        Self::of_file(file, len_bytes)
    }

    fn of_file(file: OwnedFd, len_bytes: u64) -> Result<Self, Error> {
        let len = whole_pages(len_bytes, PAGE_LEN_BYTES)?;
        Self::make("memory of a file", len, MapFlags::SHARED, Some(file))
    }

    /// Another mapping of the same file, at an address of its own; none without a file.
    ///
    /// # Errors
    ///
    /// As [`anonymous`](Self::anonymous).
    pub fn again(&self) -> Result<Option<Self>, Error> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        let file = file
            .try_clone()
            .map_err(|e| Error::system("duplicate a descriptor", e))?;
        Self::of_file(file, self.len_bytes()).map(Some)
    }

    /// Memory that the process has already.
    ///
    /// # Safety
    ///
    /// As long as this value lives, in a [`Mapping`](crate::Mapping) or by itself, and for ever if
    /// the kernel does not unmap it:
    ///
    /// - `len_bytes` bytes at `start` stay mapped for reading and writing, and are not replaced by
    ///   other pages (`mmap`, `mremap`, `madvise(DONTNEED)`): engines would go on with the old ones.
    /// - Engines and other threads may overwrite them at any time. All accesses of this process
    ///   are atomic on aligned words of eight bytes, or volatile in a program that takes the
    ///   consequences; no reference to the bytes is alive.
    ///
    /// # Errors
    ///
    /// [`Error::Unaligned`] unless both numbers are whole pages; [`Error::Empty`].
    pub unsafe fn of_process(start: NonNull<u8>, len_bytes: u64) -> Result<Self, Error> {
        let len_bytes = whole_pages(len_bytes, PAGE_LEN_BYTES)?;
        let address = start.as_ptr().addr() as u64;
        if !address.is_multiple_of(PAGE_LEN_BYTES) {
            return Err(Error::Unaligned {
                what: "address",
                value: address,
                align: PAGE_LEN_BYTES,
            });
        }
        Ok(Self {
            map: Arc::new(Map {
                start,
                len_bytes,
                owned: false,
                _owner: None,
            }),
            file: None,
        })
    }

    /// A region of a guest's memory, which is kept alive.
    #[cfg(feature = "vm-memory")]
    pub(crate) fn of_guest_region<B>(region: Arc<vm_memory::MmapRegion<B>>) -> Result<Self, Error>
    where
        B: vm_memory::bitmap::Bitmap + Send + Sync + 'static,
    {
        if region.prot() & (libc::PROT_READ | libc::PROT_WRITE)
            != libc::PROT_READ | libc::PROT_WRITE
        {
            return Err(Error::ReadOnly);
        }
        let len_bytes = whole_pages(region.size() as u64, PAGE_LEN_BYTES)?;
        let start = NonNull::new(region.as_ptr()).ok_or(Error::Empty { what: "memory" })?;
        let address = start.as_ptr().addr() as u64;
        if !address.is_multiple_of(PAGE_LEN_BYTES) {
            return Err(Error::Unaligned {
                what: "address",
                value: address,
                align: PAGE_LEN_BYTES,
            });
        }
        // What `of_process` asks for holds: the region is mapped for reading and writing as long
        // as the owner lives; `vm-memory` takes guest memory for memory that others write at any
        // time, so it gives out no reference to the bytes.
        Ok(Self {
            map: Arc::new(Map {
                start,
                len_bytes,
                owned: false,
                _owner: Some(Box::new(region)),
            }),
            file: None,
        })
    }

    fn make(
        kind: &'static str,
        len: usize,
        flags: MapFlags,
        file: Option<OwnedFd>,
    ) -> Result<Self, Error> {
        let failed = |error| no_memory(kind, len as u64)(error);
        let mut place = Map::reserve(len).map_err(failed)?;
        place.fill(flags, file.as_ref()).map_err(failed)?;
        Ok(Self {
            map: Arc::new(place),
            file,
        })
    }

    /// Has the memory come from one NUMA node, and from no other. For memory that was not touched
    /// and not mapped for engines yet: pages that are there stay where they are.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchNode`], or another error of the system.
    pub fn on_node(self, node: u16) -> Result<Self, Error> {
        /// Nodes that a mask of one word names.
        const MOST_NODES: u16 = c_ulong::BITS as u16;
        /// `MPOL_BIND`, of `linux/mempolicy.h`.
        const BIND: c_long = 2;
        if node >= MOST_NODES {
            return Err(Error::NoSuchNode(node));
        }
        let mask: c_ulong = 1 << node;
        // SAFETY: mbind reads one word of nodes; it changes where pages of our own mapping come
        // from, not what is in them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.map.start.as_ptr(),
                self.map.len_bytes,
                BIND,
                &raw const mask,
                // The kernel leaves the last bit out.
                c_ulong::from(MOST_NODES) + 1,
                0 as c_long,
            )
        };
        if result == 0 {
            return Ok(self);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINVAL) => Err(Error::NoSuchNode(node)),
            _ => Err(Error::system(format!("bind memory to node {node}"), error)),
        }
    }

    /// Length in bytes: whole pages.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.map.len_bytes as u64
    }

    /// Where the memory is in this process. Engines may be overwriting it: accesses have to be
    /// atomic or volatile, and no reference may be made of it.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.map.start
    }

    /// The file that the memory is of, if it is of one.
    #[must_use]
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Lets all functions of a container reach the memory at a bus address, from now until
    /// [`Mapping`](crate::Mapping) has unmapped it.
    pub(crate) fn give_to_engines(
        &self,
        container: &impl AsFd,
        iova: u64,
        writable: bool,
    ) -> io::Result<()> {
        let address = self.map.start.as_ptr().addr() as u64;
        if !writable {
            // Pages that nobody has written are all one page of zeroes. Linux before 6.2 pins that
            // one for a reader, who then never sees what this process writes.
            self.have_pages();
        }
        // SAFETY: the memory is made for it: this process reaches its bytes by atomic accesses
        // alone (see `words`), or whoever gave it has promised so. Its owner, a `Mapping`, keeps it
        // until it is unmapped.
        unsafe { ioctl::map(container.as_fd(), address, iova, self.len_bytes(), writable) }
    }

    /// Has the kernel give each page of the memory a place of its own, as a write does.
    fn have_pages(&self) {
        let words_per_page = PAGE_LEN_BYTES as usize / WORD_LEN_BYTES;
        for word in self.words().iter().step_by(words_per_page) {
            let value = word.load(Ordering::Relaxed);
            // A write of what is there; another thread's write meanwhile does as well.
            let _ = word.compare_exchange(value, value, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// What has to stay as long as engines reach the memory.
    pub(crate) fn map(&self) -> Arc<Map> {
        Arc::clone(&self.map)
    }

    fn words(&self) -> &[AtomicU64] {
        let start = self.map.start.as_ptr().cast::<AtomicU64>();
        let count = self.map.len_bytes / WORD_LEN_BYTES;
        // SAFETY: the mapping is whole pages, readable and writable, and lives as long as `self`.
        // This process accesses it by aligned atomic words alone (this function, and the promises
        // of `of_process` and `as_ptr`); what a device writes meanwhile is for an atomic as a
        // write of another thread.
        unsafe { std::slice::from_raw_parts(start, count) }
    }

    fn check(&self, offset: u64, len: usize) -> Result<usize, Error> {
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.len_bytes()) {
            return Err(Error::OutOfBounds {
                offset,
                len_bytes: len as u64,
                size: self.len_bytes(),
            });
        }
        // Not over the length, which is a usize.
        Ok(offset as usize)
    }

    /// Reads `into.len()` bytes at `offset`. Each aligned word of eight bytes is read at once.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`]: nothing was read.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        let offset = self.check(offset, into.len())?;
        let skip = offset % WORD_LEN_BYTES;
        let words = self.words().iter().skip(offset / WORD_LEN_BYTES);
        let mut words = words.map(|word| word.load(Ordering::Relaxed).to_le_bytes());
        let (head, rest) =
            into.split_at_mut(into.len().min((WORD_LEN_BYTES - skip) % WORD_LEN_BYTES));
        if !head.is_empty()
            && let Some(bytes) = words.next()
        {
            let part = bytes.iter().skip(skip);
            head.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
        }
        for (chunk, bytes) in rest.chunks_mut(WORD_LEN_BYTES).zip(words) {
            chunk
                .iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = from);
        }
        Ok(())
    }

    /// Writes bytes at `offset`. Each aligned word of eight bytes is written at once; of a word
    /// that is written in part, the rest keeps what it has, also if an engine writes there.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`]: nothing was written.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), Error> {
        let offset = self.check(offset, from.len())?;
        let skip = offset % WORD_LEN_BYTES;
        let mut words = self.words().iter().skip(offset / WORD_LEN_BYTES);
        let (head, rest) = from.split_at(from.len().min((WORD_LEN_BYTES - skip) % WORD_LEN_BYTES));
        if !head.is_empty()
            && let Some(word) = words.next()
        {
            merge(word, skip, head);
        }
        for (chunk, word) in rest.chunks(WORD_LEN_BYTES).zip(words) {
            match <[u8; WORD_LEN_BYTES]>::try_from(chunk) {
                Ok(bytes) => word.store(u64::from_le_bytes(bytes), Ordering::Relaxed),
                Err(_) => merge(word, 0, chunk),
            }
        }
        Ok(())
    }
}

/// Replaces some bytes of a word.
fn merge(word: &AtomicU64, skip: usize, part: &[u8]) {
    let change = |old: u64| {
        let mut bytes = old.to_le_bytes();
        let places = bytes.iter_mut().skip(skip);
        places.zip(part).for_each(|(to, from)| *to = *from);
        Some(u64::from_le_bytes(bytes))
    };
    // The closure never declines.
    let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
}

impl Map {
    /// Reserves addresses: at a multiple of 2 MiB if there are as many.
    fn reserve(len: usize) -> rustix::io::Result<Self> {
        let huge = HUGE_PAGE_LEN_BYTES as usize;
        let slack = if len >= huge { huge } else { 0 };
        let whole = len.checked_add(slack).ok_or(rustix::io::Errno::NOMEM)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that is
        // there.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), whole, ProtFlags::empty(), flags) }?;
        let mut map = Self {
            start: NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)?,
            len_bytes: whole,
            owned: true,
            _owner: None,
        };
        map.trim(
            start.addr().wrapping_neg() % huge * usize::from(slack > 0),
            len,
        );
        Ok(map)
    }

    /// Gives back what lies before `front` bytes and behind `len` further ones.
    fn trim(&mut self, front: usize, len: usize) {
        let back = self.len_bytes.saturating_sub(front).saturating_sub(len);
        // `front + len` is at most the length: 2 MiB of slack, less than which `front` is.
        let start = self.start.as_ptr().wrapping_add(front);
        let end = start.wrapping_add(len);
        for (at, len) in [(self.start.as_ptr(), front), (end, back)] {
            if len > 0 {
                // SAFETY: whole pages of our own reservation, which nobody has seen yet.
                let _ = unsafe { munmap(at.cast(), len) };
            }
        }
        if let Some(start) = NonNull::new(start) {
            self.start = start;
            self.len_bytes = len;
        }
    }

    /// Puts memory into the place.
    fn fill(&mut self, flags: MapFlags, file: Option<&OwnedFd>) -> rustix::io::Result<()> {
        let at = self.start.as_ptr().cast();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = flags | MapFlags::FIXED;
        match file {
            // SAFETY: it replaces our own reservation, which nobody uses.
            None => unsafe { mmap_anonymous(at, self.len_bytes, prot, flags) },
            // SAFETY: as above.
            Some(file) => unsafe { mmap(at, self.len_bytes, prot, flags, file, 0) },
        }?;
        // A child's write to a private page would leave the engine with the other copy.
        // SAFETY: our own mapping; the advice is about children.
        unsafe { madvise(at, self.len_bytes, Advice::LinuxDontFork) }?;
        if file.is_none() {
            // SAFETY: our own mapping; the advice changes the size of pages, not what is in them.
            // A kernel without huge pages refuses, which is as good.
            let _ = unsafe { madvise(at, self.len_bytes, Advice::LinuxHugepage) };
        }
        Ok(())
    }
}

/// Registers of a function, mapped into this process.
#[derive(Debug)]
pub(crate) struct RegisterMap(Map);

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}+{:#x}", self.start, self.len_bytes)
    }
}

impl RegisterMap {
    /// Maps `len_bytes` at `offset` of a function's file.
    pub(crate) fn new(file: BorrowedFd<'_>, offset: u64, len_bytes: u64) -> io::Result<Self> {
        let len = usize::try_from(len_bytes).map_err(io::Error::other)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that is
        // there.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                prot,
                MapFlags::SHARED,
                file,
                offset,
            )
        }?;
        let map = Map {
            start: NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            len_bytes: len,
            owned: true,
            _owner: None,
        };
        // SAFETY: our own mapping; the advice is about children, which have no business with it.
        unsafe { madvise(start, len, Advice::LinuxDontFork) }?;
        Ok(Self(map))
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.0.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_kinds(len: u64) -> [Memory; 2] {
        [
            Memory::anonymous(len).expect("anonymous memory"),
            Memory::memfd("test", len).expect("a memfd"),
        ]
    }

    #[test]
    fn bytes_are_where_they_were_written_at_any_offset_and_length() {
        for memory in all_kinds(PAGE_LEN_BYTES) {
            for offset in 0..20_u64 {
                for len in 0..20_usize {
                    let before: Vec<u8> = (0..64).map(|n| n ^ 0xa5).collect();
                    memory.write(0, &before).expect("in bounds");
                    let new: Vec<u8> = (0..len as u8).map(|n| n + 100).collect();
                    memory.write(offset, &new).expect("in bounds");
                    let mut expected = before.clone();
                    let at = offset as usize;
                    expected[at..at + len].copy_from_slice(&new);
                    let mut all = [0; 64];
                    memory.read(0, &mut all).expect("in bounds");
                    assert_eq!(all[..], expected[..], "{len} at {offset}");
                    let mut part = vec![0; len];
                    memory.read(offset, &mut part).expect("in bounds");
                    assert_eq!(part, new, "{len} at {offset}");
                }
            }
        }
    }

    #[test]
    fn the_last_byte_is_the_end() {
        for memory in all_kinds(2 * PAGE_LEN_BYTES) {
            let size = memory.len_bytes();
            memory.write(size - 3, &[1, 2, 3]).expect("in bounds");
            let mut three = [0; 3];
            memory.read(size - 3, &mut three).expect("in bounds");
            assert_eq!(three, [1, 2, 3]);
            for (offset, len) in [(size - 3, 4), (size, 1), (u64::MAX, 2)] {
                let error = memory.write(offset, &vec![0; len]);
                assert!(matches!(error, Err(Error::OutOfBounds { .. })), "{offset}");
                let error = memory.read(offset, &mut vec![0; len]);
                assert!(matches!(error, Err(Error::OutOfBounds { .. })), "{offset}");
            }
            memory.read(size, &mut []).expect("nothing is in bounds");
        }
    }

    #[test]
    fn long_memory_begins_at_a_multiple_of_2_mib() {
        for memory in all_kinds(3 * HUGE_PAGE_LEN_BYTES + PAGE_LEN_BYTES) {
            let address = memory.as_ptr().as_ptr().addr() as u64;
            assert!(address.is_multiple_of(HUGE_PAGE_LEN_BYTES), "{address:#x}");
            let last = memory.len_bytes() - 8;
            memory.write(last, &[7; 8]).expect("the last word is there");
        }
    }

    #[test]
    fn two_mappings_of_a_file_are_the_same_memory() -> Result<(), Error> {
        let one = Memory::memfd("test", PAGE_LEN_BYTES)?;
        let two = one.again()?.expect("it is of a file");
        one.write(100, b"hello")?;
        let mut bytes = [0; 5];
        two.read(100, &mut bytes)?;
        assert_eq!(&bytes, b"hello");
        assert!(Memory::anonymous(PAGE_LEN_BYTES)?.again()?.is_none());
        let file = one.file().expect("it is of a file");
        assert!(ftruncate(file, 0).is_err(), "a page could be cut off");
        Ok(())
    }

    #[test]
    fn odd_lengths_and_addresses_are_refused() {
        assert!(matches!(Memory::anonymous(0), Err(Error::Empty { .. })));
        let odd = Memory::anonymous(100).expect_err("no whole page");
        assert!(odd.to_string().contains("multiple of 0x1000"), "{odd}");
        assert!(matches!(Memory::huge(4096), Err(Error::Unaligned { .. })));
        assert!(matches!(
            Memory::memfd_huge("x", 4096),
            Err(Error::Unaligned { .. })
        ));
        let memory = Memory::anonymous(2 * PAGE_LEN_BYTES).expect("memory");
        let inside = memory.as_ptr().as_ptr().wrapping_add(8);
        let inside = NonNull::new(inside).expect("inside");
        // SAFETY: refused, so nothing is promised.
        let error = unsafe { Memory::of_process(inside, PAGE_LEN_BYTES) };
        assert!(matches!(
            error,
            Err(Error::Unaligned {
                what: "address",
                ..
            })
        ));
    }

    #[test]
    fn a_node_that_is_not_there_is_named() {
        for node in [63, 64, 1000] {
            let memory = Memory::anonymous(PAGE_LEN_BYTES).expect("memory");
            let error = memory.on_node(node).expect_err("no such node");
            // Kernels without NUMA have no such call.
            let told = matches!(error, Error::NoSuchNode(n) if n == node)
                || error.to_string().contains("not implemented");
            assert!(told, "{error}");
        }
    }

    #[test]
    fn threads_may_write_beside_each_other() {
        let memory = Memory::anonymous(PAGE_LEN_BYTES).expect("memory");
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let memory = &memory;
                scope.spawn(move || {
                    // Bytes of one word, by four threads: none of them is lost.
                    for round in 0..2000_u64 {
                        memory
                            .write(thread * 2, &[round as u8; 2])
                            .expect("in bounds");
                    }
                });
            }
        });
        let mut word = [0; 8];
        memory.read(0, &mut word).expect("in bounds");
        assert_eq!(word, [(1999_u64 & 0xff) as u8; 8]);
    }
}
