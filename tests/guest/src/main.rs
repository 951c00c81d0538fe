//! Init of the test machine: mounts what tests need, then runs what the host asks for.
//!
//! As process 1 it only starts itself again as the agent and collects orphans: a
//! process 1 that waits for any child would steal the exit status from the agent.

#![forbid(unsafe_code)]

/// As the standard one, but a console that takes nothing is no panic: of process 1 that would be
/// the kernel's.
macro_rules! eprintln {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _closed = writeln!(std::io::stderr(), $($words)*);
    }};
}

mod agent;
mod init;

fn main() {
    let result = if rustix::process::getpid().is_init() {
        init::run()
    } else {
        agent::run()
    };
    if let Err(error) = result {
        eprintln!("ptdma-guest-agent: {error}");
        std::process::exit(1);
    }
}
