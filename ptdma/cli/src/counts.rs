//! What the module has counted, and who leads migration to it.

use serde::Serialize;

use crate::sysfs::Root;

/// The module's parameters.
pub(crate) const PARAMETERS: &str = "sys/module/ptdma_migrator/parameters";
const LIVEPATCH: &str = "sys/kernel/livepatch/ptdma_livepatch";
const MIGRATOR: &str = "sys/kernel/mm/migrate_offload/migrator";

/// Counts since the module was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    /// Folios that engines copied.
    pub(crate) folios: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Folios that engines were given and the CPU copied.
    pub(crate) failures: u64,
    /// Batches that the module took.
    pub(crate) batches: u64,
    /// Batches that are too small for engines.
    pub(crate) declined: u64,
    /// Batches that found all resources in use.
    pub(crate) busy: u64,
    /// Folios that an engine may still write to, now.
    pub(crate) quarantined: u64,
}

impl Counts {
    /// The module's counts, if it is loaded.
    pub(crate) fn read(root: &Root) -> Option<Self> {
        let get = |name: &str| root.number(&format!("{PARAMETERS}/{name}"));
        Some(Self {
            folios: get("folios_migrated")?,
            bytes: get("bytes_migrated")?,
            failures: get("folios_failures")?,
            batches: get("batches")?,
            declined: get("batches_declined")?,
            busy: get("batches_busy")?,
            quarantined: get("folios_quarantined")?,
        })
    }

    /// The bytes that engines copied since `before`.
    pub(crate) fn bytes_since(&self, before: &Self) -> u64 {
        self.bytes.saturating_sub(before.bytes)
    }
}

/// What leads folios that migrate to the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Front {
    /// The livepatch is in force.
    Livepatch,
    /// The livepatch waits for tasks that are inside of what it replaces.
    LivepatchInTransition,
    /// The module is the patched kernel's migrator.
    Migrator,
    /// The kernel is patched, and the module is not its migrator.
    MigratorOff,
    /// Nothing does.
    None,
}

impl Front {
    /// What is there now.
    pub(crate) fn read(root: &Root) -> Self {
        if let Some(name) = root.text(MIGRATOR) {
            return match name == "ptdma_migrator" {
                true => Self::Migrator,
                false => Self::MigratorOff,
            };
        }
        match root.number(&format!("{LIVEPATCH}/transition")) {
            Some(0) if root.number(&format!("{LIVEPATCH}/enabled")) == Some(1) => Self::Livepatch,
            Some(_) => Self::LivepatchInTransition,
            None => Self::None,
        }
    }

    /// Whether engines copy folios that migrate.
    pub(crate) fn is_on(self) -> bool {
        matches!(self, Self::Livepatch | Self::Migrator)
    }

    /// In words.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Livepatch => "on: livepatch, huge folios one at a time",
            Self::LivepatchInTransition => "livepatch in transition",
            Self::Migrator => "on: migrator of the patched kernel, batches of folios of any size",
            Self::MigratorOff => {
                "off: the kernel is patched, and its migrator is another one or none"
            }
            Self::None => "off: nothing leads migration to the engines",
        }
    }
}
