//! The system calls of VFIO, one function each.
//!
//! `vfio-bindings` has the structures and constants. `vfio-ioctls` is not used: its reset says
//! nothing of whether the function was reset, its register access hides errors, its maps are
//! always writable, and dropping its device can panic.

use std::ffi::{CString, c_int, c_ulong};
use std::io;
use std::mem::size_of;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use vfio_bindings::bindings::vfio;

/// Requests are `_IO(VFIO_TYPE, VFIO_BASE + number)`: no size and no direction in them.
const fn request(number: c_ulong) -> c_ulong {
    ((vfio::VFIO_TYPE as c_ulong) << 8) | (vfio::VFIO_BASE as c_ulong + number)
}

const GET_API_VERSION: c_ulong = request(0);
const CHECK_EXTENSION: c_ulong = request(1);
const SET_IOMMU: c_ulong = request(2);
const GROUP_GET_STATUS: c_ulong = request(3);
const GROUP_SET_CONTAINER: c_ulong = request(4);
const GROUP_GET_DEVICE_FD: c_ulong = request(6);
const DEVICE_GET_INFO: c_ulong = request(7);
const DEVICE_GET_REGION_INFO: c_ulong = request(8);
const DEVICE_GET_IRQ_INFO: c_ulong = request(9);
const DEVICE_SET_IRQS: c_ulong = request(10);
const DEVICE_RESET: c_ulong = request(11);
const IOMMU_GET_INFO: c_ulong = request(12);
const IOMMU_MAP_DMA: c_ulong = request(13);
const IOMMU_UNMAP_DMA: c_ulong = request(14);

/// The kind of container: mappings are removed as they were made, each whole.
const TYPE1V2: c_ulong = vfio::VFIO_TYPE1v2_IOMMU as c_ulong;

/// Most bytes of an answer with capabilities. A machine has a dozen stretches of bus addresses,
/// 16 bytes each.
const MAX_INFO_LEN_BYTES: u32 = 1 << 16;

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A request with a number, or with none.
fn with_number(fd: BorrowedFd<'_>, request: c_ulong, number: c_ulong) -> io::Result<c_int> {
    // SAFETY: the requests that come here take a number or ignore it: the kernel reads and writes
    // no memory of this process for them.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, number) })
}

/// A request with a structure.
///
/// # Safety
///
/// `argument` is what the request takes and may hold on return, with `argsz` no more than its
/// size.
unsafe fn with<T>(fd: BorrowedFd<'_>, request: c_ulong, argument: &mut T) -> io::Result<c_int> {
    // SAFETY: the pointer is to a live structure of the request's kind (this function's contract).
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) })
}

const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// The version of the interface.
pub(crate) fn api_version(container: BorrowedFd<'_>) -> io::Result<c_int> {
    with_number(container, GET_API_VERSION, 0)
}

/// Whether a container can be of the kind that this crate uses.
pub(crate) fn has_type1v2(container: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(with_number(container, CHECK_EXTENSION, TYPE1V2)? > 0)
}

/// Makes the container one that translates; it must have a group.
pub(crate) fn set_type1v2(container: BorrowedFd<'_>) -> io::Result<()> {
    with_number(container, SET_IOMMU, TYPE1V2).map(drop)
}

/// Whether all functions of a group are free for user space.
pub(crate) fn is_viable(group: BorrowedFd<'_>) -> io::Result<bool> {
    let mut status = vfio::vfio_group_status {
        argsz: size::<vfio::vfio_group_status>(),
        flags: 0,
    };
    // SAFETY: GROUP_GET_STATUS fills this structure, whose size it was told.
    unsafe { with(group, GROUP_GET_STATUS, &mut status) }?;
    Ok(status.flags & vfio::VFIO_GROUP_FLAGS_VIABLE != 0)
}

/// Puts a group into a container.
pub(crate) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let mut number: c_int = container.as_raw_fd();
    // SAFETY: GROUP_SET_CONTAINER reads one `int`.
    unsafe { with(group, GROUP_SET_CONTAINER, &mut number) }.map(drop)
}

/// Opens a function of a group.
pub(crate) fn device(group: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    // SAFETY: GROUP_GET_DEVICE_FD reads a string that ends in a zero byte.
    let fd =
        checked(unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD, name.as_ptr()) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A stretch of a function's file: registers, or configuration space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) offset: u64,
    pub(crate) len_bytes: u64,
    pub(crate) mappable: bool,
}

/// Whether the file is of a PCI function.
pub(crate) fn is_pci(device: BorrowedFd<'_>) -> io::Result<bool> {
    let mut info = vfio::vfio_device_info {
        argsz: size::<vfio::vfio_device_info>(),
        ..Default::default()
    };
    // SAFETY: DEVICE_GET_INFO fills this structure, whose size it was told.
    unsafe { with(device, DEVICE_GET_INFO, &mut info) }?;
    Ok(info.flags & vfio::VFIO_DEVICE_FLAGS_PCI != 0)
}

pub(crate) fn region(device: BorrowedFd<'_>, index: u32) -> io::Result<Region> {
    let mut info = vfio::vfio_region_info {
        argsz: size::<vfio::vfio_region_info>(),
        index,
        ..Default::default()
    };
    // SAFETY: DEVICE_GET_REGION_INFO fills this structure, whose size it was told.
    unsafe { with(device, DEVICE_GET_REGION_INFO, &mut info) }?;
    Ok(Region {
        offset: info.offset,
        len_bytes: info.size,
        mappable: info.flags & vfio::VFIO_REGION_INFO_FLAG_MMAP != 0,
    })
}

/// How many interrupts of a kind the function has that an eventfd can stand for.
pub(crate) fn interrupts(device: BorrowedFd<'_>, index: u32) -> io::Result<u32> {
    let mut info = vfio::vfio_irq_info {
        argsz: size::<vfio::vfio_irq_info>(),
        index,
        ..Default::default()
    };
    // SAFETY: DEVICE_GET_IRQ_INFO fills this structure, whose size it was told.
    unsafe { with(device, DEVICE_GET_IRQ_INFO, &mut info) }?;
    if info.flags & vfio::VFIO_IRQ_INFO_EVENTFD == 0 {
        return Ok(0);
    }
    Ok(info.count)
}

/// `vfio_irq_set` with one descriptor.
#[repr(C)]
struct OneTrigger {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    event: i32,
}

/// Has interrupt 0 of a kind ring an eventfd from now on.
pub(crate) fn set_trigger(
    device: BorrowedFd<'_>,
    index: u32,
    event: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut set = OneTrigger {
        argsz: size::<OneTrigger>(),
        flags: vfio::VFIO_IRQ_SET_DATA_EVENTFD | vfio::VFIO_IRQ_SET_ACTION_TRIGGER,
        index,
        start: 0,
        count: 1,
        event: event.as_raw_fd(),
    };
    // SAFETY: DEVICE_SET_IRQS reads `vfio_irq_set` and `count` descriptors behind it.
    unsafe { with(device, DEVICE_SET_IRQS, &mut set) }.map(drop)
}

/// Resets a function. The kernel waits until the function answers again, and restores its
/// configuration space.
pub(crate) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    with_number(device, DEVICE_RESET, 0).map(drop)
}

/// What a container says of its bus addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IommuInfo {
    /// Bit n: pages of 2^n bytes can be mapped.
    pub(crate) page_sizes: u64,
    /// First and last address of each stretch that can be mapped.
    pub(crate) ranges: Vec<RangeInclusive<u64>>,
}

pub(crate) fn iommu_info(container: BorrowedFd<'_>) -> io::Result<IommuInfo> {
    let mut len = size::<vfio::vfio_iommu_type1_info>();
    // The first answer says how long the whole one is; it cannot grow for ever.
    for _ in 0..3 {
        // 64-bit words, for the alignment of the structure.
        let mut words = vec![0_u64; len.div_ceil(8) as usize];
        if let Some(word) = words.first_mut() {
            *word = u64::from(len);
        }
        // SAFETY: IOMMU_GET_INFO fills at most `argsz` bytes, the first field of the buffer, and
        // the buffer has that many.
        checked(unsafe { libc::ioctl(container.as_raw_fd(), IOMMU_GET_INFO, words.as_mut_ptr()) })?;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let needed = le32(&bytes, 0).unwrap_or(0);
        if needed <= len {
            return parse_info(&bytes);
        }
        len = needed.min(MAX_INFO_LEN_BYTES);
    }
    Err(io::Error::other("the kernel's answer does not end"))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    field.try_into().ok().map(u32::from_le_bytes)
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(8)?)?;
    field.try_into().ok().map(u64::from_le_bytes)
}

/// Reads `vfio_iommu_type1_info` with the capabilities behind it.
fn parse_info(bytes: &[u8]) -> io::Result<IommuInfo> {
    let short = || io::Error::other("the kernel's answer is cut off");
    let flags = le32(bytes, 4).ok_or_else(short)?;
    // Kernels that do not say have pages of 4 KiB.
    let mut info = IommuInfo {
        page_sizes: 1 << 12,
        ranges: Vec::new(),
    };
    if flags & vfio::VFIO_IOMMU_INFO_PGSIZES != 0 {
        info.page_sizes = le64(bytes, 8).ok_or_else(short)?;
    }
    let mut at = match flags & vfio::VFIO_IOMMU_INFO_CAPS {
        0 => 0,
        _ => le32(bytes, 16).ok_or_else(short)? as usize,
    };
    // Each capability has eight bytes at the least, so more than this many are a circle.
    for _ in 0..bytes.len() / 8 {
        if at == 0 {
            break;
        }
        let header = le32(bytes, at).ok_or_else(short)?;
        let next = le32(bytes, at + 4).ok_or_else(short)? as usize;
        if header & 0xffff == vfio::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE {
            let count = le32(bytes, at + 8).ok_or_else(short)? as usize;
            for number in 0..count {
                let start = le64(bytes, at + 16 + 16 * number).ok_or_else(short)?;
                let end = le64(bytes, at + 24 + 16 * number).ok_or_else(short)?;
                info.ranges.push(start..=end);
            }
        }
        at = next;
    }
    if info.ranges.is_empty() {
        return Err(io::Error::other(
            "the kernel does not say which bus addresses can be mapped (Linux 5.4 and newer do)",
        ));
    }
    Ok(info)
}

/// Maps memory of this process at a bus address.
///
/// # Safety
///
/// From now on until it is unmapped, every function of the container may read the memory at any
/// time, and, if `writable`, overwrite it.
pub(crate) unsafe fn map(
    container: BorrowedFd<'_>,
    virt: u64,
    iova: u64,
    len_bytes: u64,
    writable: bool,
) -> io::Result<()> {
    let mut map = vfio::vfio_iommu_type1_dma_map {
        argsz: size::<vfio::vfio_iommu_type1_dma_map>(),
        flags: vfio::VFIO_DMA_MAP_FLAG_READ
            | if writable {
                vfio::VFIO_DMA_MAP_FLAG_WRITE
            } else {
                0
            },
        vaddr: virt,
        iova,
        size: len_bytes,
    };
    // SAFETY: IOMMU_MAP_DMA reads this structure; what follows for the memory the caller allows.
    unsafe { with(container, IOMMU_MAP_DMA, &mut map) }.map(drop)
}

/// Unmaps bus addresses; returns how many bytes were unmapped. When it returns, no function of
/// the container can reach them any more: the kernel has the IOMMU forget them first.
pub(crate) fn unmap(container: BorrowedFd<'_>, iova: u64, len_bytes: u64) -> io::Result<u64> {
    let mut unmap = vfio::vfio_iommu_type1_dma_unmap {
        argsz: size::<vfio::vfio_iommu_type1_dma_unmap>(),
        flags: 0,
        iova,
        size: len_bytes,
        ..Default::default()
    };
    // SAFETY: IOMMU_UNMAP_DMA reads this structure and writes its size back.
    unsafe { with(container, IOMMU_UNMAP_DMA, &mut unmap) }?;
    Ok(unmap.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer with a chain of two capabilities, the second of which has ranges.
    fn answer(next_of_second: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [96_u32, 3, 0x4020_1000, 0, 24, 0] {
            bytes.extend(word.to_le_bytes());
        }
        // At 24: DMA_AVAIL.
        for word in [3_u32 | 1 << 16, 40, 65535, 0] {
            bytes.extend(word.to_le_bytes());
        }
        // At 40: IOVA_RANGE with two stretches.
        for word in [1_u32 | 1 << 16, next_of_second, 2, 0] {
            bytes.extend(word.to_le_bytes());
        }
        for address in [0_u64, 0xfedf_ffff, 0xfef0_0000, 0xffff_ffff_ffff] {
            bytes.extend(address.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn an_answer_is_read() {
        let info = parse_info(&answer(0)).expect("a whole answer");
        assert_eq!(info.page_sizes, 0x4020_1000);
        assert_eq!(
            info.ranges,
            [0..=0xfedf_ffff, 0xfef0_0000..=0xffff_ffff_ffff]
        );
    }

    #[test]
    fn an_answer_that_is_cut_off_or_a_circle_ends() {
        let whole = answer(0);
        for len in 0..whole.len() {
            assert!(parse_info(&whole[..len]).is_err(), "{len}");
        }
        let circle = parse_info(&answer(40)).expect("a circle ends");
        assert_eq!(circle.ranges[0], 0..=0xfedf_ffff);
    }

    #[test]
    fn requests_are_those_of_the_header() {
        assert_eq!(GET_API_VERSION, 0x3b64);
        assert_eq!(DEVICE_RESET, 0x3b6f);
        assert_eq!(IOMMU_GET_INFO, 0x3b70);
    }
}
