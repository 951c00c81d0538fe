//! placeholder
#![no_std]
#![deny(missing_docs, clippy::undocumented_unsafe_blocks)]
#[cfg(test)]
extern crate std;
pub mod addr;
mod channel;
mod clock;
mod completion;
mod cookie;
pub mod descriptor;
mod error;
mod error_code;
pub mod io;
mod lifecycle;
mod lock;
pub mod mmio;
pub mod regs;
mod request;
mod ring;
pub mod ring_memory;
mod stats;
mod wait;
pub use addr::{DmaAddr, DmaRange, RangeError};
pub use channel::{Channel, ChannelConfig, CookieStart, ErrorHead, Signalling};
pub use clock::{Deadline, MAX_POLLS};
pub use completion::Progress;
pub use cookie::Cookie;
pub use descriptor::Descriptor;
pub use error::{Anomaly, BringUpError, Failure, Fault, NotStopped, SubmitError};
pub use error_code::{ErrorCode, KnownError};
pub use io::{Clock, RegisterIo, RingMemory};
pub use lifecycle::{FunctionQuiesced, ProbeError, Terminated};
pub use lock::Lock;
pub use mmio::Mmio;
pub use request::{CopyRequest, DEFAULT_MAX_LEN_BYTES, Limits, Notify, RequestError};
pub use ring::{MAX_ENTRIES, MIN_ENTRIES, RingError};
pub use ring_memory::CoherentRing;
pub use stats::Stats;
pub use wait::WaitError;
