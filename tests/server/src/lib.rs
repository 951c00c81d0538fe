//! Serves the device model of `tests/model` as PCI functions over vfio-user, to QEMU or to any
//! other client of the protocol.
//!
//! | module | idea |
//! |---|---|
//! | [`wire`] | the messages: bytes in, checked values out |
//! | [`session`] | one client: reads a message, does it, answers |
//! | [`function`] | one PCI function: regions, interrupts and reset around one model |
//! | [`config_space`] | its PCI configuration space |
//! | [`interrupts`] | event descriptors of the client, signalled by the model |
//! | [`guest_memory`] | the client's memory as the engine's bus |
//! | [`server`] | sockets and threads of all functions |
//! | [`control`] | the control socket: counters, faults, quit |
//!
//! # Why the server side of the protocol is written here
//!
//! The crate `vfio_user` has a server, and its client and its protocol types are used here. Its
//! server could not be: it panics when the version message is shorter than its header says or
//! lacks a NUL, allocates up to 4 GiB because a client says so, loses its place in the stream
//! after every error, answers with error 0 ("success"), and cannot be stopped. A test bed that
//! promises an error and never a crash needs the opposite of each.
//!
//! # What a client cannot do
//!
//! - **Reach memory that it did not hand over**: there is no `unsafe` code in this crate, and
//!   guest memory is never mapped. Every access is a `pread` or `pwrite` on a descriptor that the
//!   client sent, within the range, direction and lifetime of its map. A file that shrinks later
//!   gives a short read, where a mapping would give SIGBUS.
//! - **Stop the server**: a malformed message is answered with an error; one whose length makes no
//!   sense ends that connection, and the next client is accepted.
#![forbid(unsafe_code)]

pub mod config_space;
pub mod control;
pub mod function;
pub mod guest_memory;
pub mod interrupts;
pub mod server;
pub mod session;
pub mod wire;
