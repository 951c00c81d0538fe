//! One client: reads a message, does it, answers.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde::Deserialize;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_EVENTFD,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use vfio_user::{Command, DmaMapFlags, DmaUnmapFlags};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::function::{Function, NUM_REGIONS, region_len_bytes};
use crate::guest_memory::MapRequest;
use crate::interrupts::{NUM_INDICES, vectors};
use crate::wire::{
    DeviceInfo, DmaMap, DmaUnmap, FLAG_COMMAND, FLAG_ERROR, FLAG_NO_REPLY, FLAG_REPLY,
    FLAG_TYPE_MASK, HEADER_LEN_BYTES, Header, IrqInfo, MAX_DATA_LEN_BYTES, MAX_MESSAGE_FDS,
    MAX_MESSAGE_LEN_BYTES, RegionAccess, RegionInfo, SetIrqs, VERSION_MAJOR, VERSION_MINOR,
    Version, parse,
};

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The socket failed.
    #[error("socket: {0}")]
    Io(#[from] std::io::Error),
    /// The length in a header makes no sense, so the next message cannot be found.
    #[error("a message of {0} bytes")]
    Length(u32),
}

/// What the client says of itself. Only used to show it in the log, and to find out that it is
/// JSON at all.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClientVersion {
    capabilities: serde_json::Map<String, serde_json::Value>,
}

/// Serves a client of `function` until it goes away.
///
/// # Errors
///
/// [`SessionError`]: the connection is of no use any more.
pub fn serve(function: &Function, stream: UnixStream) -> Result<(), SessionError> {
    Session::new(function, stream).run()
}

struct Session<'a> {
    function: &'a Function,
    stream: UnixStream,
    negotiated: bool,
    payload: Vec<u8>,
    reply: Vec<u8>,
}

impl<'a> Session<'a> {
    fn new(function: &'a Function, stream: UnixStream) -> Self {
        Self {
            function,
            stream,
            negotiated: false,
            payload: Vec::new(),
            reply: Vec::new(),
        }
    }

    /// Serves the client until it goes away.
    fn run(mut self) -> Result<(), SessionError> {
        while let Some((header, fds)) = self.receive_header()? {
            let len = header.message_len_bytes;
            let payload_len = usize::try_from(len)
                .ok()
                .filter(|_| len <= MAX_MESSAGE_LEN_BYTES)
                .and_then(|len| len.checked_sub(HEADER_LEN_BYTES))
                .ok_or(SessionError::Length(len))?;
            self.payload.resize(payload_len, 0);
            self.stream.read_exact(&mut self.payload)?;
            if header.flags & FLAG_TYPE_MASK != FLAG_COMMAND {
                // The server sends no commands, so nobody has anything to reply to.
                log::warn!("{}: a message that is no command: {header:?}", self.name());
                continue;
            }
            self.reply.clear();
            self.reply.resize(HEADER_LEN_BYTES, 0);
            let result = self.handle(&header, fds);
            if let Err(errno) = result {
                let command = Command::n(header.command);
                log::warn!("{}: {command:?} ({header:?}): {errno}", self.name());
            }
            if header.flags & FLAG_NO_REPLY == 0 {
                self.answer(&header, result)?;
            }
        }
        Ok(())
    }

    fn name(&self) -> String {
        format!("function {}", self.function.index())
    }

    /// The next header with the descriptors that came along, or none at the end of the stream.
    fn receive_header(&mut self) -> Result<Option<(Header, Vec<File>)>, SessionError> {
        let mut bytes = [0; HEADER_LEN_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MESSAGE_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            match rustix::net::recvmsg(&self.stream, &mut slices, &mut ancillary, flags) {
                Err(Errno::INTR) => {}
                Err(e) => return Err(SessionError::Io(e.into())),
                Ok(message) => break message.bytes,
            }
        };
        if received == 0 {
            return Ok(None);
        }
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights.map(File::from));
            }
        }
        let rest = bytes.get_mut(received..).unwrap_or_default();
        self.stream.read_exact(rest)?;
        match Header::read_from_bytes(&bytes) {
            Ok(header) => Ok(Some((header, fds))),
            // The buffer has the size of a header.
            Err(_) => Err(SessionError::Length(0)),
        }
    }

    fn answer(&mut self, header: &Header, result: Result<(), Errno>) -> std::io::Result<()> {
        let (flags, error) = match result {
            Ok(()) => (FLAG_REPLY, 0),
            Err(errno) => {
                self.reply.truncate(HEADER_LEN_BYTES);
                let number = errno.raw_os_error().unsigned_abs();
                (FLAG_REPLY | FLAG_ERROR, number)
            }
        };
        let reply = Header {
            message_id: header.message_id,
            command: header.command,
            // Bounded by the size of a message, which fits.
            message_len_bytes: u32::try_from(self.reply.len()).unwrap_or(u32::MAX),
            flags,
            error,
        };
        for (to, from) in self.reply.iter_mut().zip(reply.as_bytes()) {
            *to = *from;
        }
        self.stream.write_all(&self.reply)
    }

    fn say<T: IntoBytes + Immutable>(&mut self, value: T) {
        self.reply.extend_from_slice(value.as_bytes());
    }

    /// Does what a message asks, and leaves the payload of the reply behind the header.
    fn handle(&mut self, header: &Header, fds: Vec<File>) -> Result<(), Errno> {
        let command = Command::n(header.command).ok_or(Errno::OPNOTSUPP)?;
        log::trace!("{}: {command:?} {header:?}", self.name());
        if !self.negotiated && !matches!(command, Command::Version) {
            return Err(Errno::PROTO);
        }
        let payload = std::mem::take(&mut self.payload);
        let result = self.dispatch(command, &payload, fds);
        self.payload = payload;
        result
    }

    fn dispatch(&mut self, command: Command, payload: &[u8], fds: Vec<File>) -> Result<(), Errno> {
        match command {
            Command::Version => self.version(payload),
            Command::DmaMap => self.dma_map(payload, fds),
            Command::DmaUnmap => self.dma_unmap(payload),
            Command::DeviceGetInfo => self.device_info(payload),
            Command::DeviceGetRegionInfo => self.region_info(payload),
            Command::GetIrqInfo => self.irq_info(payload),
            Command::SetIrqs => {
                let (set, data) = parse::<SetIrqs>(payload)?;
                log::debug!("{}: {set:?}, {} descriptors", self.name(), fds.len());
                self.function
                    .set_irqs(set.flags, set.index, set.start, set.count, data, fds)
            }
            Command::RegionRead => self.region_read(payload),
            Command::RegionWrite => self.region_write(payload),
            Command::DeviceReset => {
                log::debug!("{}: reset", self.name());
                self.function.power_cycle();
                Ok(())
            }
            Command::Unknown
            | Command::GetRegionIoFds
            | Command::DmaRead
            | Command::DmaWrite
            | Command::UserDirtyPages => Err(Errno::OPNOTSUPP),
        }
    }

    fn version(&mut self, payload: &[u8]) -> Result<(), Errno> {
        let (version, json) = parse::<Version>(payload)?;
        if version.major != VERSION_MAJOR {
            return Err(Errno::OPNOTSUPP);
        }
        // NUL-terminated; nothing at all is allowed.
        let json = match json {
            [] => &b"{}"[..],
            [json @ .., 0] => json,
            _ => return Err(Errno::INVAL),
        };
        let client: ClientVersion = serde_json::from_slice(json).map_err(|e| {
            log::warn!("{}: version data: {e}", self.name());
            Errno::INVAL
        })?;
        let name = self.name();
        log::info!("{name}: client {version:?} {:?}", client.capabilities);
        self.negotiated = true;
        self.say(Version {
            major: VERSION_MAJOR,
            // The lowest there is, so no client speaks a lower one.
            minor: VERSION_MINOR,
        });
        let capabilities = serde_json::json!({
            "capabilities": {
                "max_msg_fds": MAX_MESSAGE_FDS,
                "max_data_xfer_size": MAX_DATA_LEN_BYTES,
            }
        });
        self.reply
            .extend_from_slice(capabilities.to_string().as_bytes());
        self.reply.push(0);
        Ok(())
    }

    fn dma_map(&mut self, payload: &[u8], mut fds: Vec<File>) -> Result<(), Errno> {
        let (map, _) = parse::<DmaMap>(payload)?;
        log::debug!("{}: {map:x?}, {} descriptors", self.name(), fds.len());
        if fds.len() > 1 {
            return Err(Errno::INVAL);
        }
        let flags = DmaMapFlags::from_bits_retain(map.flags);
        if !DmaMapFlags::READ_WRITE.contains(flags) {
            return Err(Errno::INVAL);
        }
        self.function.map(MapRequest {
            addr: map.address,
            len_bytes: map.size,
            file: fds.pop(),
            file_offset: map.offset,
            readable: flags.contains(DmaMapFlags::READ),
            writable: flags.contains(DmaMapFlags::WRITE),
        })
    }

    fn dma_unmap(&mut self, payload: &[u8]) -> Result<(), Errno> {
        let (unmap, _) = parse::<DmaUnmap>(payload)?;
        log::debug!("{}: {unmap:x?}", self.name());
        let flags = DmaUnmapFlags::from_bits_retain(unmap.flags);
        if flags == DmaUnmapFlags::UNMAP_ALL {
            if unmap.address != 0 || unmap.size != 0 {
                return Err(Errno::INVAL);
            }
            self.function.unmap_all();
        } else if flags.is_empty() {
            self.function.unmap(unmap.address, unmap.size)?;
        } else {
            return Err(Errno::OPNOTSUPP);
        }
        self.say(unmap);
        Ok(())
    }

    fn device_info(&mut self, payload: &[u8]) -> Result<(), Errno> {
        parse::<DeviceInfo>(payload)?;
        self.say(DeviceInfo {
            argsz: size_of::<DeviceInfo>() as u32,
            flags: VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET,
            num_regions: NUM_REGIONS,
            num_irqs: NUM_INDICES,
        });
        Ok(())
    }

    fn region_info(&mut self, payload: &[u8]) -> Result<(), Errno> {
        let (asked, _) = parse::<RegionInfo>(payload)?;
        if asked.index >= NUM_REGIONS {
            return Err(Errno::INVAL);
        }
        let size = region_len_bytes(asked.index);
        self.say(RegionInfo {
            argsz: size_of::<RegionInfo>() as u32,
            flags: match size {
                0 => 0,
                _ => VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
            },
            index: asked.index,
            cap_offset: 0,
            size,
            offset: 0,
        });
        Ok(())
    }

    fn irq_info(&mut self, payload: &[u8]) -> Result<(), Errno> {
        let (asked, _) = parse::<IrqInfo>(payload)?;
        if asked.index >= NUM_INDICES {
            return Err(Errno::INVAL);
        }
        let count = vectors(asked.index);
        self.say(IrqInfo {
            argsz: size_of::<IrqInfo>() as u32,
            flags: if count == 0 { 0 } else { VFIO_IRQ_INFO_EVENTFD },
            index: asked.index,
            count,
        });
        Ok(())
    }

    fn region_read(&mut self, payload: &[u8]) -> Result<(), Errno> {
        let (access, _) = parse::<RegionAccess>(payload)?;
        if access.count > MAX_DATA_LEN_BYTES {
            return Err(Errno::INVAL);
        }
        self.say(access);
        let at = self.reply.len();
        self.reply.resize(at + access.count as usize, 0);
        let data = self.reply.get_mut(at..).unwrap_or_default();
        self.function
            .region_read(access.region, access.offset, data)
    }

    fn region_write(&mut self, payload: &[u8]) -> Result<(), Errno> {
        let (access, data) = parse::<RegionAccess>(payload)?;
        if data.len() as u64 != u64::from(access.count) {
            return Err(Errno::INVAL);
        }
        self.function
            .region_write(access.region, access.offset, data)?;
        self.say(access);
        Ok(())
    }
}
