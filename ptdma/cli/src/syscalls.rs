//! System calls about nodes of memory, which no crate wraps.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use anyhow::{Context, Result};

use crate::ranges::{PAGE_BYTES, Range};

/// Of a page, after a call: its node, or the negative error number that `move_pages(2)` names.
pub(crate) type PageStatus = i32;

/// `MPOL_MF_MOVE` and `MPOL_MF_MOVE_ALL` of `linux/mempolicy.h`.
const MOVE: libc::c_int = 1 << 1;
const MOVE_ALL: libc::c_int = 1 << 2;
/// `MPOL_BIND` of the same.
const BIND: libc::c_long = 2;

fn addresses(pages: &[u64]) -> Vec<*mut libc::c_void> {
    pages
        .iter()
        .map(|page| ptr::without_provenance_mut(*page as usize))
        .collect()
}

fn checked(rc: libc::c_long) -> io::Result<libc::c_long> {
    match rc {
        rc if rc < 0 => Err(io::Error::last_os_error()),
        rc => Ok(rc),
    }
}

/// The node of each page of a process, by address.
///
/// # Errors
/// There is no such process, or this one may not look at it.
pub(crate) fn nodes_of(pid: u32, pages: &[u64]) -> io::Result<Vec<PageStatus>> {
    let addresses = addresses(pages);
    let mut status = vec![0; pages.len()];
    // SAFETY: `addresses` and `status` have as many entries as the call is told. The addresses are
    // those of the other process: the kernel only looks them up. Without nodes nothing moves.
    checked(unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            pid,
            pages.len(),
            addresses.as_ptr(),
            ptr::null::<libc::c_int>(),
            status.as_mut_ptr(),
            0,
        )
    })?;
    Ok(status)
}

/// What [`move_pages`] says of a page that the kernel did not come to: it stops behind the first
/// lot of pages of which one does not move.
pub(crate) const NOT_REACHED: PageStatus = PageStatus::MIN;

/// Moves pages of a process to a node; returns what became of each.
///
/// # Errors
/// There is no such process or node, or this process may not move the pages.
pub(crate) fn move_pages(
    pid: u32,
    pages: &[u64],
    node: u32,
    shared: bool,
) -> io::Result<Vec<PageStatus>> {
    let addresses = addresses(pages);
    let nodes = vec![node as libc::c_int; pages.len()];
    // The kernel stores nothing for pages that it did not come to.
    let mut status = vec![NOT_REACHED; pages.len()];
    let flags = match shared {
        true => MOVE_ALL,
        false => MOVE,
    };
    // SAFETY: the three arrays have as many entries as the call is told. What moves keeps its
    // address and its content, so that no reference of either process notices.
    checked(unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            pid,
            pages.len(),
            addresses.as_ptr(),
            nodes.as_ptr(),
            status.as_mut_ptr(),
            flags,
        )
    })?;
    Ok(status)
}

/// Flags of `pidfd_open(2)` and `pidfd_getfd(2)`: none.
const NONE: libc::c_uint = 0;

/// A file that another process has open.
///
/// # Errors
/// There is no such process or file, or this process may not trace that one.
pub(crate) fn file_of(pid: u32, number: RawFd) -> io::Result<File> {
    // SAFETY: the call takes no pointers.
    let process = checked(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, NONE) })?;
    // SAFETY: the kernel has just made the descriptor, for this function alone.
    let process = unsafe { OwnedFd::from_raw_fd(process as RawFd) };
    // SAFETY: the call takes no pointers.
    let file = checked(unsafe {
        libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, NONE)
    })?;
    // SAFETY: as above.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(file as RawFd) }))
}

/// `struct ptdma_move` of `kshim/include/ptdma_move.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct MoveCall {
    addr: u64,
    len: u64,
    node: u32,
    flags: u32,
    next: u64,
    bytes: [u64; 16],
}

/// `PTDMA_BY_ENGINES` of the same.
const BY_ENGINES: usize = 0;
/// `PTDMA_IOC_MOVE` of the same: it reads and writes, the size, its letter, its number.
const MOVE_RANGE: libc::Ioctl =
    (3 << 30) | ((size_of::<MoveCall>() as libc::Ioctl) << 16) | (0xd1 << 8) | 1;

impl MoveCall {
    /// A range to move to a node. Huge pages stay whole, or stay where they are.
    pub(crate) fn new(range: Range, node: u32) -> Self {
        Self {
            addr: range.start,
            len: range.len_bytes(),
            node,
            flags: 0,
            next: range.start,
            bytes: [0; 16],
        }
    }

    /// Where the kernel has stopped.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// What engines have copied.
    pub(crate) fn by_engines_bytes(&self) -> u64 {
        self.bytes[BY_ENGINES]
    }
}

/// Moves a range of the process whose memory the file of `/dev/ptdma_move` has.
///
/// # Errors
/// As the header says. After a signal, [`io::ErrorKind::Interrupted`], the call is filled in.
pub(crate) fn move_range(device: &File, call: &mut MoveCall) -> io::Result<()> {
    // SAFETY: the structure is the kernel's, and is borrowed for the call. What moves keeps its
    // address and its content, so that no reference of either process notices.
    let rc = unsafe { libc::ioctl(device.as_raw_fd(), MOVE_RANGE, ptr::from_mut(call)) };
    checked(rc.into()).map(drop)
}

/// Anonymous memory of this process, in huge pages as far as there are any.
pub(crate) struct HugeMemory {
    whole: *mut libc::c_void,
    whole_bytes: usize,
    start: u64,
    len_bytes: usize,
}

/// Bytes of a huge page of x86-64.
pub(crate) const HUGE_BYTES: usize = 2 << 20;

impl HugeMemory {
    /// Maps memory, zeroed. With `small`, in small pages after all.
    ///
    /// # Errors
    /// The kernel has no room.
    pub(crate) fn new(len_bytes: usize, small: bool) -> Result<Self> {
        let whole_bytes = len_bytes
            .checked_add(HUGE_BYTES)
            .context("more memory than there are addresses")?;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let whole = unsafe {
            libc::mmap(
                ptr::null_mut(),
                whole_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if whole == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("cannot map memory to move");
        }
        let first = whole as usize;
        let start = first.next_multiple_of(HUGE_BYTES);
        let memory = Self {
            whole,
            whole_bytes,
            start: start as u64,
            len_bytes,
        };
        let advice = match small {
            true => libc::MADV_NOHUGEPAGE,
            false => libc::MADV_HUGEPAGE,
        };
        // SAFETY: within the mapping, whose content it does not change. Without huge pages the
        // memory is as good.
        let _ = unsafe { libc::madvise(whole.wrapping_byte_add(start - first), len_bytes, advice) };
        Ok(memory)
    }

    /// Binds it to two nodes. The kernel's balancing leaves memory with a policy where it is, and
    /// would move other memory to the node that looks at it.
    ///
    /// # Errors
    /// One of the nodes has no memory, or is above 63.
    pub(crate) fn bind(&self, nodes: [u32; 2]) -> Result<()> {
        let mut mask: u64 = 0;
        for node in nodes {
            mask |= 1_u64
                .checked_shl(node)
                .with_context(|| format!("node {node} is above 63"))?;
        }
        // SAFETY: the range is mapped, the mask is as long as the call is told, and no page moves:
        // there are no flags.
        checked(unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.start,
                self.len_bytes,
                BIND,
                ptr::from_ref(&mask),
                // The kernel counts one bit less than it is told.
                u64::from(u64::BITS) + 1,
                0,
            )
        })
        .with_context(|| format!("cannot have memory on nodes {} and {}", nodes[0], nodes[1]))?;
        Ok(())
    }

    /// Its addresses.
    pub(crate) fn range(&self) -> Range {
        Range {
            start: self.start,
            end: self.start.saturating_add(self.len_bytes as u64),
        }
    }

    /// Its content.
    pub(crate) fn words(&mut self) -> &mut [u64] {
        let at = self
            .whole
            .wrapping_byte_add((self.start as usize).wrapping_sub(self.whole as usize));
        // SAFETY: mapped, initialised (zeroed by the kernel), aligned to a page, and borrowed as
        // this value is.
        unsafe { std::slice::from_raw_parts_mut(at.cast(), self.len_bytes / size_of::<u64>()) }
    }
}

impl Drop for HugeMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, and nobody has borrowed it.
        unsafe { libc::munmap(self.whole, self.whole_bytes) };
    }
}

/// The pages of a range.
pub(crate) fn pages_of(range: Range) -> Vec<u64> {
    (range.start..range.end)
        .step_by(PAGE_BYTES as usize)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_mapped_on_huge_boundaries_and_keeps_what_is_written() -> Result<()> {
        let mut memory = HugeMemory::new(2 * HUGE_BYTES, false)?;
        assert_eq!(memory.range().start % HUGE_BYTES as u64, 0);
        assert_eq!(memory.range().len_bytes(), 2 * HUGE_BYTES as u64);
        let words = memory.words();
        assert_eq!(words.len(), 2 * HUGE_BYTES / 8);
        words.fill(7);
        assert!(words.iter().all(|word| *word == 7));
        Ok(())
    }

    #[test]
    fn the_call_of_the_device_is_that_of_the_header() {
        let header = include_str!("../../../kshim/include/ptdma_move.h");
        assert!(header.contains("_IOWR(0xd1, 1, struct ptdma_move)"));
        assert!(header.contains("#define PTDMA_MAX_FATES	16"));
        let first = header.split("enum ptdma_fate {").nth(1).unwrap_or_default();
        assert!(first.trim_start().starts_with("PTDMA_BY_ENGINES,"));
        let fields = header
            .split("struct ptdma_move {")
            .nth(1)
            .unwrap_or_default();
        let fields = fields.split('}').next().unwrap_or_default();
        let names: Vec<&str> = fields.split_whitespace().collect();
        assert_eq!(
            names.join(" "),
            "__u64 addr; __u64 len; __u32 node; __u32 flags; __u64 next; \
             __u64 bytes[PTDMA_MAX_FATES];"
        );
        assert_eq!(MOVE_RANGE, 0xc0a0_d101);
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        // Above the largest number that a process can have.
        assert!(nodes_of(u32::MAX >> 1, &[0x1000]).is_err());
    }
}
