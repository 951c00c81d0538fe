//! What the PTDMA migrator of the kernel decides.
//!
//! The module is thin C around this library. C binds functions, maps memory, waits and registers.
//! The library decides which engine copies what, and what its answer means, with the crates `ptdma`
//! and `batch-copy`. The border is `exports.rs` (C calls Rust), `kernel.rs` (Rust calls C) and
//! `abi.rs` (what both know); nothing else here is unsafe.

#![cfg_attr(target_os = "none", no_std)]

pub mod abi;
mod batch;
mod channel;
mod errno;
pub mod exports;
#[cfg(not(target_os = "none"))]
pub mod host;
mod kernel;
mod settings;
mod system;

pub use batch::Scratch;
pub use system::System;

#[cfg(target_os = "none")]
mod panic {
    unsafe extern "C" {
        /// Nobody defines it: code that can panic does not link (`imports.list`).
        safe fn ptdma_panic() -> !;
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        ptdma_panic()
    }
}
