//! Messages that no client should send: each is an error, and the next client is served.
#![forbid(unsafe_code)]

mod common;

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::{Guest, LIMIT, PAGE, RAM_AT, memfd, serve, sockets};
use ptdma_model::ModelConfig;
use ptdma_server::wire::{
    DmaMap, DmaUnmap, FLAG_ERROR, FLAG_NO_REPLY, FLAG_REPLY, Header, MAX_MESSAGE_LEN_BYTES,
    RegionAccess, SetIrqs,
};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vfio_user::Command;
use zerocopy::{FromBytes, IntoBytes};

/// A client that says whatever it is told to.
struct Raw {
    stream: UnixStream,
}

impl Raw {
    fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Self { stream }
    }

    fn negotiated(socket: &Path) -> Self {
        let mut raw = Self::connect(socket);
        assert_eq!(raw.ask(Command::Version, b"\0\0\0\0{}\0"), Ok(()));
        raw
    }

    fn header(command: u16, payload_len: usize, flags: u32) -> Header {
        Header {
            message_id: 7,
            command,
            message_len_bytes: (size_of::<Header>() + payload_len) as u32,
            flags,
            error: 0,
        }
    }

    fn send(&mut self, header: Header, payload: &[u8], fds: &[File]) {
        let bytes = [header.as_bytes(), payload].concat();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(20))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let slices = [IoSlice::new(&bytes)];
        let sent = rustix::net::sendmsg(&self.stream, &slices, &mut ancillary, SendFlags::NOSIGNAL);
        // The server may have hung up on an earlier part already.
        if let Ok(sent) = sent
            && sent < bytes.len()
        {
            let _hung_up = self.stream.write_all(&bytes[sent..]);
        }
    }

    fn reply(&mut self) -> Result<(), Errno> {
        let mut bytes = [0; size_of::<Header>()];
        self.stream.read_exact(&mut bytes).unwrap();
        let header = Header::read_from_bytes(&bytes).unwrap();
        assert_eq!(header.message_id, 7);
        let mut payload = vec![0; header.message_len_bytes as usize - bytes.len()];
        self.stream.read_exact(&mut payload).unwrap();
        match header.flags {
            FLAG_REPLY => Ok(()),
            flags => {
                assert_eq!(flags, FLAG_REPLY | FLAG_ERROR);
                assert!(header.error != 0, "an error that says success");
                Err(Errno::from_raw_os_error(header.error as i32))
            }
        }
    }

    fn ask(&mut self, command: Command, payload: &[u8]) -> Result<(), Errno> {
        self.ask_with(command, payload, &[])
    }

    fn ask_with(&mut self, command: Command, payload: &[u8], fds: &[File]) -> Result<(), Errno> {
        let header = Self::header(command as u16, payload.len(), 0);
        self.send(header, payload, fds);
        self.reply()
    }

    /// Whether the server closes the connection.
    fn hangs_up(mut self) -> bool {
        let mut rest = Vec::new();
        // A reset is a way of hanging up, too.
        self.stream
            .read_to_end(&mut rest)
            .is_ok_and(|_| rest.is_empty())
            || rest.is_empty()
    }
}

fn works(socket: &Path) {
    let mut guest = Guest::new(socket);
    guest.put(RAM_AT + 0x1_0000, b"still here");
    assert_eq!(guest.copy(RAM_AT + 0x1_0000, RAM_AT + 0x2_0000, 64), 0);
    assert_eq!(guest.get(RAM_AT + 0x2_0000, 10), b"still here");
}

const BAR2: u32 = common::BAR2;

fn access(offset: u64, region: u32, count: u32) -> RegionAccess {
    RegionAccess {
        offset,
        region,
        count,
    }
}

#[test]
fn errors_keep_the_stream_in_step() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let socket = &sockets(&server)[0];
    let mut raw = Raw::negotiated(socket);
    let invalid = Err(Errno::INVAL);
    // Short payloads of every command, the version's included.
    for command in (1..=10).filter_map(Command::n) {
        let takes = match command {
            Command::GetRegionIoFds => Err(Errno::OPNOTSUPP),
            _ => invalid,
        };
        assert_eq!(raw.ask(command, &[1]), takes, "{command:?}");
    }
    // Commands that exist and are not served, and ones that do not exist.
    for command in [0, 6, 11, 12, 14, 15, 999, u16::MAX] {
        raw.send(Raw::header(command, 3, 0), &[1, 2, 3], &[]);
        assert_eq!(raw.reply(), Err(Errno::OPNOTSUPP), "{command}");
    }
    // Regions.
    let read = Command::RegionRead;
    for bad in [
        access(0, BAR2, u32::MAX),
        access(0, BAR2, 0x1_0001),
        access(0xffff, BAR2, 2),
        access(u64::MAX, BAR2, 4),
        access(0, 0, 4),
        access(0, 9, 4),
        access(0, u32::MAX, 4),
    ] {
        assert_eq!(raw.ask(read, bad.as_bytes()), invalid, "{bad:?}");
    }
    assert_eq!(raw.ask(read, access(0xfffc, BAR2, 4).as_bytes()), Ok(()));
    assert_eq!(raw.ask(read, access(0, BAR2, 0x1_0000).as_bytes()), Ok(()));
    assert_eq!(raw.ask(read, access(0, BAR2, 0).as_bytes()), Ok(()));
    let write = [access(0x1004, BAR2, 4).as_bytes(), &[1, 2, 3]].concat();
    assert_eq!(raw.ask(Command::RegionWrite, &write), invalid);
    let write = [access(0x1004, BAR2, 4).as_bytes(), &[1, 2, 3, 4, 5]].concat();
    assert_eq!(raw.ask(Command::RegionWrite, &write), invalid);
    // Information about what does not exist.
    let mut info = [0u8; 32];
    info[8..12].copy_from_slice(&9u32.to_ne_bytes());
    assert_eq!(raw.ask(Command::DeviceGetRegionInfo, &info), invalid);
    assert_eq!(raw.ask(Command::GetIrqInfo, &info), invalid);
    assert_eq!(raw.ask(Command::DeviceReset, &[]), Ok(()));
    drop(raw);
    works(socket);
}

#[test]
fn maps_and_interrupts_that_make_no_sense() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let socket = &sockets(&server)[0];
    let mut raw = Raw::negotiated(socket);
    let map = |flags, offset, address, size| DmaMap {
        argsz: 32,
        flags,
        offset,
        address,
        size,
    };
    let fd = |n| (0..n).map(|_| memfd(PAGE)).collect::<Vec<_>>();
    let mut ask = |m: DmaMap, fds: &[File]| raw.ask_with(Command::DmaMap, m.as_bytes(), fds);
    let invalid = Err(Errno::INVAL);
    assert_eq!(ask(map(3, 0, 0, PAGE), &fd(2)), invalid);
    assert_eq!(ask(map(0xff, 0, 0, PAGE), &fd(1)), invalid);
    assert_eq!(ask(map(3, 0, 0, 0), &fd(1)), invalid);
    assert_eq!(ask(map(3, 0, 0, PAGE + 1), &fd(1)), invalid);
    assert_eq!(ask(map(3, u64::MAX, 0, 2), &fd(1)), invalid);
    assert_eq!(ask(map(3, 0, u64::MAX, 2), &fd(1)), invalid);
    let pipe = File::from(rustix::pipe::pipe().unwrap().0);
    assert_eq!(ask(map(3, 0, 0, PAGE), &[pipe]), invalid);
    assert_eq!(ask(map(3, 0, 0, PAGE), &fd(1)), Ok(()));
    assert_eq!(ask(map(3, 0, 0, PAGE), &fd(1)), Err(Errno::EXIST));
    // No descriptor is a range that exists and cannot be reached.
    assert_eq!(ask(map(3, 0, 0x10000, PAGE), &[]), Ok(()));
    let unmap = |flags, address, size| DmaUnmap {
        argsz: 24,
        flags,
        address,
        size,
    };
    let mut ask = |u: DmaUnmap| raw.ask(Command::DmaUnmap, u.as_bytes());
    assert_eq!(ask(unmap(0, 0, 0)), invalid);
    assert_eq!(ask(unmap(0, 2, u64::MAX)), invalid);
    assert_eq!(ask(unmap(4, 0, 1)), invalid);
    assert_eq!(ask(unmap(2, 0, PAGE)), Err(Errno::OPNOTSUPP));
    assert_eq!(server.report().devices[0].maps, 2);
    assert_eq!(ask(unmap(4, 0, 0)), Ok(()));
    assert_eq!(server.report().devices[0].maps, 0);
    let irqs = |flags, index, start, count| SetIrqs {
        argsz: 20,
        flags,
        index,
        start,
        count,
    };
    for bad in [
        irqs(0x24, 7, 0, 1),
        irqs(0x24, 2, 0, 2),
        irqs(0x24, 2, 5, 0),
        irqs(0x0c, 2, 0, 1),
        irqs(0, 2, 0, 1),
        irqs(0x22, 2, 0, 1),
        irqs(0x24, 2, u32::MAX, u32::MAX),
    ] {
        assert_eq!(
            raw.ask(Command::SetIrqs, bad.as_bytes()),
            invalid,
            "{bad:?}"
        );
    }
    drop(raw);
    works(socket);
}

#[test]
fn lengths_that_make_no_sense_end_the_connection() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let socket = &sockets(&server)[0];
    for len in [0, 1, 15, MAX_MESSAGE_LEN_BYTES + 1, u32::MAX] {
        let mut raw = Raw::negotiated(socket);
        let mut header = Raw::header(Command::DeviceGetInfo as u16, 0, 0);
        header.message_len_bytes = len;
        raw.send(header, &[0; 64], &[]);
        assert!(raw.hangs_up(), "{len}");
        works(socket);
    }
}

#[test]
fn half_a_message_and_gone() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let socket = &sockets(&server)[0];
    for len in [1, 15, 16, 20] {
        let mut raw = Raw::negotiated(socket);
        let header = Raw::header(Command::RegionRead as u16, 16, 0);
        let bytes = [header.as_bytes(), &[0; 16]].concat();
        raw.stream.write_all(&bytes[..len]).unwrap();
        drop(raw);
        works(socket);
    }
    // A client that sends and never reads the answers.
    let mut raw = Raw::negotiated(socket);
    let read = access(0, BAR2, 0x1_0000);
    for _ in 0..64 {
        raw.send(
            Raw::header(Command::RegionRead as u16, 16, 0),
            read.as_bytes(),
            &[],
        );
    }
    drop(raw);
    works(socket);
}

#[test]
fn the_version_comes_first_and_must_be_json() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let socket = &sockets(&server)[0];
    let mut raw = Raw::connect(socket);
    assert_eq!(raw.ask(Command::DeviceReset, &[]), Err(Errno::PROTO));
    let read = access(0, BAR2, 4);
    assert_eq!(
        raw.ask(Command::RegionRead, read.as_bytes()),
        Err(Errno::PROTO)
    );
    for (payload, answer) in [
        (&b""[..], Err(Errno::INVAL)),
        (b"\0\0\0", Err(Errno::INVAL)),
        (b"\x01\0\0\0{}\0", Err(Errno::OPNOTSUPP)),
        (b"\0\0\0\0{}", Err(Errno::INVAL)),
        (b"\0\0\0\0{\0", Err(Errno::INVAL)),
        (b"\0\0\0\0\xff\xfe\0", Err(Errno::INVAL)),
        (b"\0\0\0\0{\"capabilities\":5}\0", Err(Errno::INVAL)),
        (b"\0\0\0\0", Ok(())),
        (b"\0\0\x09\0{\"capabilities\":{\"new\":[1]}}\0", Ok(())),
    ] {
        assert_eq!(raw.ask(Command::Version, payload), answer, "{payload:?}");
    }
    assert_eq!(raw.ask(Command::RegionRead, read.as_bytes()), Ok(()));
}

#[test]
fn posted_messages_have_no_answer_and_replies_are_ignored() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let socket = &sockets(&server)[0];
    let mut raw = Raw::negotiated(socket);
    let write = [access(0x1004, BAR2, 4).as_bytes(), &[0x20, 0, 0, 0]].concat();
    let posted = Raw::header(Command::RegionWrite as u16, write.len(), FLAG_NO_REPLY);
    raw.send(posted, &write, &[]);
    // An error has no answer either.
    let posted = Raw::header(Command::RegionWrite as u16, 2, FLAG_NO_REPLY);
    raw.send(posted, &[0; 2], &[]);
    let reply = Raw::header(Command::DmaRead as u16, 4, FLAG_REPLY);
    raw.send(reply, &[0; 4], &[]);
    // The next answer is the one to this.
    assert_eq!(raw.ask(Command::GetRegionIoFds, &[]), Err(Errno::OPNOTSUPP));
    let counters = server.report().sum;
    assert_eq!((counters.doorbells, counters.mmio_writes), (1, 1));
}

#[test]
fn descriptors_do_not_leak() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let socket = &sockets(&server)[0];
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut raw = Raw::negotiated(socket);
    let events: Vec<File> = (0..8).map(|_| memfd(PAGE)).collect();
    let before = open();
    for _ in 0..50 {
        // Refused, with descriptors attached to each kind of message.
        let answer = raw.ask_with(Command::DeviceReset, &[], &events);
        assert_eq!(answer, Ok(()));
        let answer = raw.ask_with(Command::DmaMap, &[0; 32], &events);
        assert_eq!(answer, Err(Errno::INVAL));
    }
    // Other tests of this process open some meanwhile; a leak would be 800.
    assert!(open() < before + 200);
}

/// Random bytes behind good headers, and random headers: whatever happens, the server goes on.
#[test]
fn noise() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let socket = &sockets(&server)[0];
    let mut random = 0x1234_5678_9abc_def0_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..40 {
        let mut raw = Raw::negotiated(socket);
        raw.stream.set_nonblocking(true).unwrap();
        for _ in 0..50 {
            let len = (next() % 80) as usize;
            let payload: Vec<u8> = (0..len)
                .map(|_| if next() % 3 == 0 { next() as u8 } else { 0 })
                .collect();
            let mut header = Raw::header((next() % 16) as u16, len, 0);
            if next() % 64 == 0 {
                header.message_len_bytes = next() as u32;
            }
            let fds: Vec<File> = (0..next() % 3).map(|_| memfd(PAGE)).collect();
            raw.send(header, &payload, &fds);
            let mut sink = [0; 4096];
            while matches!(raw.stream.read(&mut sink), Ok(1..)) {}
        }
    }
    works(socket);
}
