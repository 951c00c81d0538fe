//! Process 1.

use std::io;
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, mount};
use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

/// (file system, where, needed by the agent itself)
const MOUNTS: &[(&str, &str, bool)] = &[
    ("proc", "/proc", true),
    ("sysfs", "/sys", true),
    ("devtmpfs", "/dev", true),
    ("tmpfs", "/tmp", true),
    ("tmpfs", "/dev/shm", false),
    ("devpts", "/dev/pts", false),
    ("debugfs", "/sys/kernel/debug", false),
    ("tracefs", "/sys/kernel/tracing", false),
    ("configfs", "/sys/kernel/config", false),
    ("cgroup2", "/sys/fs/cgroup", false),
];

/// Modules of the agent's line to the host, where they are not built into the kernel.
const LINE_MODULES: &[&str] = &["virtio_pci", "virtio_console"];

/// Loads what the agent needs to hear the host, on kernels that have it as modules.
fn load_drivers() {
    for module in LINE_MODULES {
        if !Path::new("/modules").join(format!("{module}.ko")).exists() {
            continue;
        }
        match Command::new("/bin/modprobe").arg(module).status() {
            Ok(status) if status.success() => {}
            Ok(status) => eprintln!("ptdma-guest-agent: modprobe {module}: {status}"),
            Err(error) => eprintln!("ptdma-guest-agent: modprobe {module}: {error}"),
        }
    }
}

/// Mounts, starts the agent, collects orphans until the agent ends, powers off.
pub(crate) fn run() -> io::Result<()> {
    for &(kind, target, needed) in MOUNTS {
        if target.starts_with("/dev/") {
            std::fs::create_dir_all(target)?;
        }
        match mount(kind, target, kind, MountFlags::empty(), None) {
            Ok(()) => {}
            Err(error) if needed => {
                return Err(io::Error::other(format!("mount {target}: {error}")));
            }
            Err(error) => eprintln!("ptdma-guest-agent: mount {target}: {error}"),
        }
    }
    load_drivers();
    let agent = Command::new("/proc/self/exe").spawn()?;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if pid.as_raw_nonzero().get() as u32 == agent.id() => break,
            Ok(_) => {}
            Err(error) if error == rustix::io::Errno::INTR => {}
            Err(_) => break,
        }
    }
    // The host sees the machine go and fails the test that was running.
    eprintln!("ptdma-guest-agent: the agent has ended, powering off");
    reboot(RebootCommand::PowerOff)?;
    Ok(())
}
