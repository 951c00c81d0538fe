//! System calls about nodes of memory, which no crate wraps.

use std::io;
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
    /// Maps memory, zeroed.
    ///
    /// # Errors
    /// The kernel has no room.
    pub(crate) fn new(len_bytes: usize) -> Result<Self> {
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
        // SAFETY: within the mapping, whose content it does not change. Without huge pages the
        // memory is as good.
        let _ = unsafe {
            libc::madvise(
                whole.wrapping_byte_add(start - first),
                len_bytes,
                libc::MADV_HUGEPAGE,
            )
        };
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
        let mut memory = HugeMemory::new(2 * HUGE_BYTES)?;
        assert_eq!(memory.range().start % HUGE_BYTES as u64, 0);
        assert_eq!(memory.range().len_bytes(), 2 * HUGE_BYTES as u64);
        let words = memory.words();
        assert_eq!(words.len(), 2 * HUGE_BYTES / 8);
        words.fill(7);
        assert!(words.iter().all(|word| *word == 7));
        Ok(())
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        // Above the largest number that a process can have.
        assert!(nodes_of(u32::MAX >> 1, &[0x1000]).is_err());
    }
}
