//! Messages of vfio-user 0.x, as far as a PCI device needs them.
//!
//! Source: the protocol's specification (QEMU `docs/interop/vfio-user.rst`) and `linux/vfio.h`.
//! Everything is in host byte order, on a local socket.

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most data bytes in one region access; what the server announces as `max_data_xfer_size`.
pub const MAX_DATA_LEN_BYTES: u32 = 1 << 20;
/// Longest message that is taken: the data and the longest fixed part, with room to spare.
pub const MAX_MESSAGE_LEN_BYTES: u32 = MAX_DATA_LEN_BYTES + 4096;
/// Most descriptors in one message; what the server announces as `max_msg_fds`.
pub const MAX_MESSAGE_FDS: usize = 8;
/// Protocol version that is spoken.
pub const VERSION_MAJOR: u16 = 0;
/// Highest minor version that is spoken.
pub const VERSION_MINOR: u16 = 0;

/// Type of a message, in bits 3:0 of the flags.
pub const FLAG_TYPE_MASK: u32 = 0xf;
/// A command.
pub const FLAG_COMMAND: u32 = 0;
/// A reply.
pub const FLAG_REPLY: u32 = 1;
/// The sender wants no reply.
pub const FLAG_NO_REPLY: u32 = 1 << 4;
/// The reply carries an error number.
pub const FLAG_ERROR: u32 = 1 << 5;

/// Starts every message.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Chosen by the sender of the command, echoed in the reply.
    pub message_id: u16,
    /// Which command, see [`vfio_user::Command`].
    pub command: u16,
    /// Length of header and payload in bytes.
    pub message_len_bytes: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// Error number of a reply with [`FLAG_ERROR`].
    pub error: u32,
}

/// Length of a [`Header`].
pub const HEADER_LEN_BYTES: usize = size_of::<Header>();

/// Payload of `VERSION`, followed by JSON and a NUL.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Version {
    /// Major.
    pub major: u16,
    /// Minor.
    pub minor: u16,
}

/// Payload of `DMA_MAP`; the descriptor travels beside it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaMap {
    /// Size of this payload.
    pub argsz: u32,
    /// [`vfio_user::DmaMapFlags`].
    pub flags: u32,
    /// Offset in the descriptor.
    pub offset: u64,
    /// Bus address.
    pub address: u64,
    /// Length in bytes.
    pub size: u64,
}

/// Payload of `DMA_UNMAP`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaUnmap {
    /// Size of this payload.
    pub argsz: u32,
    /// [`vfio_user::DmaUnmapFlags`].
    pub flags: u32,
    /// Bus address.
    pub address: u64,
    /// Length in bytes.
    pub size: u64,
}

/// Payload of `DEVICE_GET_INFO`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceInfo {
    /// Size of this payload.
    pub argsz: u32,
    /// `VFIO_DEVICE_FLAGS_*`.
    pub flags: u32,
    /// Number of regions.
    pub num_regions: u32,
    /// Number of interrupt indices.
    pub num_irqs: u32,
}

/// Payload of `DEVICE_GET_REGION_INFO`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionInfo {
    /// Size of this payload.
    pub argsz: u32,
    /// `VFIO_REGION_INFO_FLAG_*`.
    pub flags: u32,
    /// Which region.
    pub index: u32,
    /// Offset of the first capability; 0 here.
    pub cap_offset: u32,
    /// Length of the region in bytes, 0 if it does not exist.
    pub size: u64,
    /// Offset for mapping it; nothing is mappable here.
    pub offset: u64,
}

/// Payload of `DEVICE_GET_IRQ_INFO`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqInfo {
    /// Size of this payload.
    pub argsz: u32,
    /// `VFIO_IRQ_INFO_*`.
    pub flags: u32,
    /// Which interrupt index.
    pub index: u32,
    /// Number of vectors of it.
    pub count: u32,
}

/// Payload of `DEVICE_SET_IRQS`, followed by data for `DATA_BOOL`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetIrqs {
    /// Size of this payload.
    pub argsz: u32,
    /// `VFIO_IRQ_SET_*`.
    pub flags: u32,
    /// Which interrupt index.
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// Number of vectors.
    pub count: u32,
}

/// Payload of `REGION_READ` and `REGION_WRITE`, followed by the data.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionAccess {
    /// Offset in the region.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// Bytes of data.
    pub count: u32,
}

/// The fixed part of a payload, and what follows it.
///
/// # Errors
///
/// `EINVAL` if the payload is too short.
pub fn parse<T: FromBytes>(payload: &[u8]) -> Result<(T, &[u8]), Errno> {
    T::read_from_prefix(payload).map_err(|_short| Errno::INVAL)
}
