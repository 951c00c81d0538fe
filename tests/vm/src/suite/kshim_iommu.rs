//! The faults of the device behind an IOMMU.

use super::kshim::{failed_descriptors, faults, hangs, kill_all, kill_one, quarantine};
use super::{BOTH, Check, FAST, Suite};
use crate::machine::{Iommu, Options};

/// Of [`kill_one`], which has the sixth of them die.
const DEVICES: usize = 8;

fn machine(iommu: Iommu, append: &str) -> Options {
    Options {
        devices: DEVICES,
        iommu,
        append: append.into(),
        separate_servers: true,
        modules: vec!["kshim", "testfail"],
        ..Options::default()
    }
}

/// Every fault of the model, and devices that vanish.
const CHECKS: &[Check] = &[
    Check::new("failed-descriptors", failed_descriptors),
    Check::new("faults", faults),
    Check::new("hangs", hangs),
    Check::new("quarantine", quarantine),
    Check::spoiling("kill-one", kill_one),
    Check::spoiling("kill-all", kill_all),
];

pub(super) const SUITES: &[Suite] = &[
    Suite {
        name: "kshim-intel-strict",
        about: "every fault behind Intel's IOMMU, which forgets a mapping at once",
        kernels: BOTH,
        machine: || machine(Iommu::Intel, "iommu.strict=1"),
        checks: CHECKS,
    },
    Suite {
        name: "kshim-intel-lazy",
        about: "every fault behind Intel's IOMMU, which forgets mappings in batches",
        kernels: FAST,
        machine: || machine(Iommu::Intel, "iommu.strict=0"),
        checks: CHECKS,
    },
    Suite {
        name: "kshim-amd-faults",
        about: "every fault behind AMD's IOMMU",
        kernels: FAST,
        machine: || machine(Iommu::Amd, ""),
        checks: CHECKS,
    },
];
