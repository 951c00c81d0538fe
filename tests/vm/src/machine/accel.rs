//! Hardware virtualisation or emulation: decided by trying.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::Result;
use clap::ValueEnum;

use crate::key::Key;
use crate::paths;
use crate::qemu::Qemu;

/// How guest code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accel {
    /// Emulated by QEMU: works everywhere; only counts can be compared.
    Tcg,
    /// By the processor.
    Kvm,
}

/// Names the choice for those who know better than the probe.
pub(crate) const VARIABLE: &str = "PTDMA_ACCEL";

/// Why KVM is not worth trying, if so.
pub(crate) fn kvm_obstacle() -> Option<&'static str> {
    if Path::new("/sys/module/kvm_pvm").is_dir() {
        // Nested without hardware support: it exists, and hangs or is slower.
        return Some("/dev/kvm is the paravirtual one of a guest (kvm_pvm)");
    }
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => None,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some("there is no /dev/kvm"),
        Err(_) => Some("/dev/kvm is not accessible for this user"),
    }
}

/// Decides once per run; `try_kvm` boots something small and says whether it worked.
///
/// The result of the trial is kept until the host is booted again or the emulator
/// changes.
pub(super) fn choose(qemu: &Qemu, try_kvm: impl FnOnce(Accel) -> Result<()>) -> Accel {
    static CHOSEN: OnceLock<Accel> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        match std::env::var(VARIABLE).as_deref() {
            Ok("kvm") => return Accel::Kvm,
            Ok("tcg") => return Accel::Tcg,
            Ok(other) => eprintln!("note: {VARIABLE}={other} is neither kvm nor tcg, trying"),
            Err(_) => {}
        }
        if kvm_obstacle().is_some() {
            return Accel::Tcg;
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mut key = Key::new("kvm-probe");
        key.text(&boot).text(qemu.version());
        let record = paths::cache_dir("kvm")
            .ok()
            .map(|folder| folder.join(key.finish()));
        let known = record
            .as_ref()
            .and_then(|path| std::fs::read_to_string(path).ok());
        let works = match known.as_deref() {
            Some(text) => text == "works",
            None => try_kvm(Accel::Kvm).is_ok(),
        };
        if let Some(path) = record
            && known.is_none()
        {
            // Not being able to remember only costs the next run a trial.
            let _ = std::fs::write(path, if works { "works" } else { "fails" });
        }
        if works { Accel::Kvm } else { Accel::Tcg }
    })
}
