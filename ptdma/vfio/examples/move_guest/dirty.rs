//! Which pages of a mapping were written: write protection by userfaultfd.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ptdma_vfio::{Memory, PAGE_LEN_BYTES};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::{MapFlags, ProtFlags};

/// Requests and constants of `linux/userfaultfd.h`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
const EVENT_PAGEFAULT: u8 = 0x12;
/// Length of a message, and where the address of a fault is in it.
const MESSAGE_LEN_BYTES: usize = 32;
const MESSAGE_ADDRESS: usize = 16;

/// Between two looks at whether the handler is to end.
const HANDLER_TURN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

/// The log of a mapping's written pages.
pub(crate) struct DirtyLog<'m> {
    memory: &'m Memory,
    file: OwnedFd,
    /// Held while a page is marked and set free, and while marks are taken and their pages
    /// protected: else a page could be set free whose mark is gone.
    pages: Mutex<Vec<bool>>,
    pub(crate) faults: AtomicU64,
    over: AtomicBool,
}

fn request<T>(file: &OwnedFd, number: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: each caller gives the structure that its request reads and writes, of the size that
    // is in the request's number. What the requests do to the mapping is to protect it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), number, std::ptr::from_mut(argument)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

impl<'m> DirtyLog<'m> {
    /// Watches a mapping of shared memory; nothing is protected yet.
    pub(crate) fn new(memory: &'m Memory) -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
        // SAFETY: userfaultfd takes flags and touches no memory.
        let number = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        let file = unsafe { OwnedFd::from_raw_fd(number as libc::c_int) };
        let features = FEATURE_PAGEFAULT_FLAG_WP | FEATURE_WP_HUGETLBFS_SHMEM;
        request(&file, UFFDIO_API, &mut [UFFD_API, features, 0])?;
        let start = memory.as_ptr().as_ptr().addr() as u64;
        let mut range = [start, memory.len_bytes(), REGISTER_MODE_WP, 0];
        request(&file, UFFDIO_REGISTER, &mut range)?;
        let count = memory.len_bytes() / PAGE_LEN_BYTES;
        Ok(Self {
            memory,
            file,
            // All of them have to be copied.
            pages: Mutex::new(vec![true; count as usize]),
            faults: AtomicU64::new(0),
            over: AtomicBool::new(false),
        })
    }

    fn protect(&self, first: usize, count: usize, mode: u64) -> io::Result<()> {
        let base = self.memory.as_ptr().as_ptr().addr() as u64;
        let start = base + first as u64 * PAGE_LEN_BYTES;
        let mut range = [start, count as u64 * PAGE_LEN_BYTES, mode];
        request(&self.file, UFFDIO_WRITEPROTECT, &mut range)
    }

    /// Takes the list of pages that were written, and protects them: a write from now on puts its
    /// page into the next list.
    pub(crate) fn take(&self) -> io::Result<Vec<usize>> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let list: Vec<usize> = (0..pages.len()).filter(|page| pages[*page]).collect();
        // Neighbours at once.
        for run in list.chunk_by(|a, b| a + 1 == *b) {
            self.protect(run[0], run.len(), WRITEPROTECT_MODE_WP)?;
        }
        pages.fill(false);
        Ok(list)
    }

    /// Marks pages as they are written and lets the writers go on, until [`end`](Self::end).
    pub(crate) fn handle(&self) -> io::Result<()> {
        while !self.over.load(Ordering::Acquire) {
            let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
            poll(&mut fds, Some(&HANDLER_TURN))?;
            let mut message = [0; MESSAGE_LEN_BYTES];
            match rustix::io::read(self.file.as_fd(), &mut message) {
                Ok(MESSAGE_LEN_BYTES) if message[0] == EVENT_PAGEFAULT => {}
                Ok(_) | Err(rustix::io::Errno::AGAIN) => continue,
                Err(error) => return Err(error.into()),
            }
            let mut address = [0; 8];
            address.copy_from_slice(&message[MESSAGE_ADDRESS..MESSAGE_ADDRESS + 8]);
            let base = self.memory.as_ptr().as_ptr().addr() as u64;
            let page = ((u64::from_ne_bytes(address) - base) / PAGE_LEN_BYTES) as usize;
            let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
            pages[page] = true;
            self.protect(page, 1, 0)?;
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Ends [`handle`](Self::handle).
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }
}

/// Puts another file beneath a mapping, at the same address and in one step.
pub(crate) fn replace(mapping: &Memory, by: &Memory) -> io::Result<()> {
    let file = by.file().ok_or(io::ErrorKind::InvalidInput)?;
    if mapping.len_bytes() != by.len_bytes() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let start: NonNull<u8> = mapping.as_ptr();
    // SAFETY: the place is a mapping of the same length, which engines do not know (it is in no
    // space) and whose bytes are accessed by atomics alone: for those, other bytes appear, the same
    // ones if all was copied.
    unsafe {
        rustix::mm::mmap(
            start.as_ptr().cast(),
            by.len_bytes() as usize,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED | MapFlags::FIXED,
            file,
            0,
        )
    }?;
    Ok(())
}
