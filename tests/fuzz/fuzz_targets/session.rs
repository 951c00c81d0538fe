//! What a vfio-user client sends: the server answers, hangs up, and never ends.
//!
//! The bytes are messages: one byte for the command, one for flags and descriptors that come along,
//! two for the payload's length, then the payload. Now and then a header lies about its length.
#![no_main]

use std::fs::File;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use ptdma_model::ModelConfig;
use ptdma_server::function::Function;
use ptdma_server::session;
use ptdma_server::wire::{FLAG_NO_REPLY, FLAG_REPLY, HEADER_LEN_BYTES, Header};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use zerocopy::IntoBytes;

/// All that one run sends: it must fit into a socket's buffer, for nobody reads meanwhile.
const MOST_BYTES: usize = 16 << 10;
/// Bytes of the memory that a client hands over.
const MEMORY_LEN_BYTES: u64 = 64 << 10;

fn send(stream: &UnixStream, bytes: &[u8], files: &[File]) {
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
    }
    let slices = [IoSlice::new(bytes)];
    let sent = rustix::net::sendmsg(stream, &slices, &mut ancillary, SendFlags::NOSIGNAL);
    assert_eq!(sent, Ok(bytes.len()), "the buffer has room for all of it");
}

fuzz_target!(|data: &[u8]| {
    let data = &data[..data.len().min(MOST_BYTES)];
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    // The server may answer more than the buffer holds: it hangs up then, as on any error.
    theirs.set_nonblocking(true).expect("a socket");
    let header = |command, payload_len: usize, flags| Header {
        message_id: 7,
        command,
        message_len_bytes: (HEADER_LEN_BYTES + payload_len) as u32,
        flags,
        error: 0,
    };
    let version = b"\0\0\0\0{}\0";
    let mut stream = &ours;
    stream
        .write_all(&[header(1, version.len(), 0).as_bytes(), version].concat())
        .expect("room");
    let mut rest = data;
    while let [command, flags, low, high, after @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high % 2])).min(after.len());
        let (payload, after) = after.split_at(len);
        rest = after;
        let kind = match flags & 3 {
            1 => FLAG_NO_REPLY,
            2 => FLAG_REPLY,
            _ => 0,
        };
        let mut header = header(u16::from(*command), len, kind);
        if flags & 0xf0 == 0xf0 {
            header.message_len_bytes = u32::from(*low) << (*high % 32);
        }
        let files: Vec<File> = (0..(flags >> 2) & 3)
            .map(|_| {
                let memory = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC)
                    .expect("memory");
                let file = File::from(memory);
                file.set_len(MEMORY_LEN_BYTES).expect("memory");
                file
            })
            .collect();
        send(&ours, &[header.as_bytes(), payload].concat(), &files);
    }
    ours.shutdown(std::net::Shutdown::Write).expect("a socket");
    let function = Function::new(0, ModelConfig::default()).expect("a function");
    function.connect();
    let _ended = session::serve(&function, theirs);
    function.disconnect();
    let status = function.status();
    assert_eq!(
        (status.maps, status.mapped_bytes),
        (0, 0),
        "memory stays mapped"
    );
    function.stop();
});
