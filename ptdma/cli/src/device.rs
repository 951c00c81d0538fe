//! The device `/dev/ptdma_move`: batches of small pages, on kernels whose migration has none.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use crate::ranges::{PAGE_BYTES, Range};
use crate::syscalls::{self, MoveCall};
use crate::sysfs::Root;

/// Below the root.
pub(crate) const PATH: &str = "dev/ptdma_move";

/// A file that has the memory of one process.
#[derive(Debug)]
pub(crate) struct Device(File);

impl Device {
    /// The device for a process: this one opens it, another one must have it open.
    ///
    /// None: there is no device, or it is not for this user, or not for that process.
    pub(crate) fn of(root: &Root, pid: u32) -> Option<Self> {
        let device = root.path(PATH);
        if pid == std::process::id() {
            let file = File::options().read(true).write(true).open(device);
            return file.ok().map(Self);
        }
        if !device.exists() {
            return None;
        }
        let files = fs::read_dir(root.path(&format!("proc/{pid}/fd"))).ok()?;
        let mut numbers = files.filter_map(|entry| {
            let entry = entry.ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            (target == device).then(|| entry.file_name().to_str()?.parse().ok())?
        });
        syscalls::file_of(pid, numbers.next()?).ok().map(Self)
    }

    /// Moves what it can of a range, and splits no huge page; returns the bytes that engines
    /// copied.
    ///
    /// # Errors
    /// The memory is somebody else's, or the node is none of its.
    pub(crate) fn move_range(&self, range: Range, node: u32) -> io::Result<u64> {
        let mut rest = range;
        let mut by_engines = 0;
        while rest.len_bytes() != 0 {
            let mut call = MoveCall::new(rest, node);
            // After a signal the kernel says where to go on.
            if let Err(error) = syscalls::move_range(&self.0, &mut call)
                && error.kind() != io::ErrorKind::Interrupted
            {
                return Err(error);
            }
            by_engines += call.by_engines_bytes();
            rest.start = call.next().clamp(rest.start, rest.end);
        }
        Ok(by_engines)
    }
}

/// For each page of a range, whether no other process maps it. `move_pages(2)` leaves such pages
/// unless it is asked for them, and the device does not.
pub(crate) fn exclusive(root: &Root, pid: u32, range: Range) -> Option<Vec<bool>> {
    /// linux/Documentation/admin-guide/mm/pagemap.rst: exclusively mapped.
    const EXCLUSIVE: u64 = 1 << 56;
    const ENTRY_BYTES: u64 = size_of::<u64>() as u64;
    let pages = range.len_bytes() / PAGE_BYTES;
    let file = File::open(root.path(&format!("proc/{pid}/pagemap"))).ok()?;
    let mut bytes = vec![0; usize::try_from(pages * ENTRY_BYTES).ok()?];
    file.read_exact_at(&mut bytes, range.start / PAGE_BYTES * ENTRY_BYTES)
        .ok()?;
    let entries = bytes.chunks_exact(ENTRY_BYTES as usize);
    let entries = entries.filter_map(|entry| entry.try_into().ok().map(u64::from_ne_bytes));
    Some(entries.map(|entry| entry & EXCLUSIVE != 0).collect())
}

/// The runs of pages with something to move, without pages that may not move.
pub(crate) fn runs(
    pages: &[u64],
    elsewhere: impl Fn(usize) -> bool,
    may_move: impl Fn(usize) -> bool,
) -> Vec<Range> {
    let mut runs: Vec<Range> = Vec::new();
    let mut open = false;
    for (index, page) in pages.iter().enumerate() {
        let end = page.saturating_add(PAGE_BYTES);
        let wanted = elsewhere(index);
        if !may_move(index) {
            open = false;
        } else if wanted {
            match runs.last_mut().filter(|_| open) {
                // What lies between stays where it is.
                Some(run) => run.end = end,
                None => runs.push(Range { start: *page, end }),
            }
            open = true;
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_bridge_what_is_there_and_stop_at_what_may_not_move() {
        let pages: Vec<u64> = (1..8).map(|page| page * PAGE_BYTES).collect();
        let moves = [true, false, true, true, false, true, false];
        let found = runs(&pages, |index| moves[index], |index| index != 4);
        let range = |start, end| Range {
            start: start * PAGE_BYTES,
            end: end * PAGE_BYTES,
        };
        assert_eq!(found, [range(1, 5), range(6, 7)]);
        assert!(runs(&pages, |_| false, |_| true).is_empty());
    }

    #[test]
    fn own_pages_are_nobody_elses() -> anyhow::Result<()> {
        let mut memory = syscalls::HugeMemory::new(syscalls::HUGE_BYTES, true)?;
        memory.words().fill(1);
        let found = exclusive(&Root::real(), std::process::id(), memory.range());
        let Some(found) = found else {
            eprintln!("SKIPPED: this machine has no /proc/PID/pagemap");
            return Ok(());
        };
        assert_eq!(found.len(), syscalls::HUGE_BYTES / PAGE_BYTES as usize);
        assert!(found.iter().all(|own| *own));
        Ok(())
    }

    #[test]
    fn without_a_device_there_is_none() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let root = Root::at(folder.path());
        assert!(Device::of(&root, std::process::id()).is_none());
        assert!(Device::of(&root, 1).is_none());
        Ok(())
    }
}
