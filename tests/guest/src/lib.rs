//! What the test machine's agent and the harness on the host say to each other.
//!
//! One JSON object a line, in both directions, over a virtio serial port named
//! [`PORT_NAME`]. Requests run at the same time; replies carry the request's id.

#![forbid(unsafe_code)]

pub mod protocol;

/// Name of the virtio serial port that the agent serves.
pub const PORT_NAME: &str = "ptdma.agent";

/// Directory of the guest that holds the kernel modules of this boot.
pub const MODULE_DIR: &str = "/modules";
