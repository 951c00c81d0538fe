//! First touches of a mapping, by userfaultfd's minor mode.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use ptdma_vfio::Memory;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Requests and constants of `linux/userfaultfd.h`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_CONTINUE: libc::c_ulong = 0xc020_aa07;
const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const FEATURE_MINOR_SHMEM: u64 = 1 << 10;
const REGISTER_MODE_MINOR: u64 = 1 << 2;
const EVENT_PAGEFAULT: u8 = 0x12;
/// Length of a message, and where the address of a fault is in it.
const MESSAGE_LEN_BYTES: usize = 32;
const MESSAGE_ADDRESS: usize = 16;

/// The first touches of a mapping of shared memory.
pub(crate) struct Faults<'m> {
    memory: &'m Memory,
    file: OwnedFd,
}

fn request<T>(file: &OwnedFd, number: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: each caller gives the structure that its request reads and writes, of the size that
    // is in the request's number. What the requests do to the mapping is to let pages of its own
    // file appear in it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), number, std::ptr::from_mut(argument)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

impl<'m> Faults<'m> {
    /// Catches first touches from now on. Nobody has touched the mapping yet.
    pub(crate) fn catch(memory: &'m Memory) -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
        // SAFETY: userfaultfd takes flags and touches no memory.
        let number = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        let file = unsafe { OwnedFd::from_raw_fd(number as libc::c_int) };
        request(&file, UFFDIO_API, &mut [UFFD_API, FEATURE_MINOR_SHMEM, 0])?;
        let start = memory.as_ptr().as_ptr().addr() as u64;
        let mut range = [start, memory.len_bytes(), REGISTER_MODE_MINOR, 0];
        request(&file, UFFDIO_REGISTER, &mut range)?;
        Ok(Self { memory, file })
    }

    fn start(&self) -> u64 {
        self.memory.as_ptr().as_ptr().addr() as u64
    }

    /// The offset of a touch that waits, if one comes within a time.
    pub(crate) fn next(&self, wait: Timespec) -> io::Result<Option<u64>> {
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        poll(&mut fds, Some(&wait))?;
        let mut message = [0; MESSAGE_LEN_BYTES];
        match rustix::io::read(self.file.as_fd(), &mut message) {
            Ok(MESSAGE_LEN_BYTES) if message[0] == EVENT_PAGEFAULT => {}
            Ok(_) | Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let mut address = [0; 8];
        address.copy_from_slice(&message[MESSAGE_ADDRESS..MESSAGE_ADDRESS + 8]);
        Ok(Some(u64::from_ne_bytes(address) - self.start()))
    }

    /// Lets pages appear, whose content has arrived, and wakes who waits for them.
    pub(crate) fn arrived(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        let mut range = [self.start() + offset, len_bytes, 0, 0];
        request(&self.file, UFFDIO_CONTINUE, &mut range)
    }

    /// Wakes who waits for pages that have appeared meanwhile.
    pub(crate) fn wake(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        request(
            &self.file,
            UFFDIO_WAKE,
            &mut [self.start() + offset, len_bytes],
        )
    }
}
