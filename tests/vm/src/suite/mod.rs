//! The guest tests.
//!
//! A [`Suite`] is a machine and the checks that run on it, one after the other, on
//! one boot. After a check that fails, or that leaves the machine unusable, the next
//! one gets a new boot.

mod bare_metal;
mod dcbm;
mod forks;
mod kshim;
mod kshim_binding;
mod kshim_busy;
mod kshim_controls;
mod kshim_iommu;
mod kshim_load;
mod kshim_ports;
mod kshim_pressure;
mod kshim_stale;
mod kshim_turmoil;
mod migration;
pub(crate) mod mover;
mod probe;
mod report;
mod runner;
mod selection;
mod selftests;
mod smoke;
mod stock;
pub(crate) mod stock_debian;
mod stock_debian_cost;
mod stock_debian_device;
mod stock_fixed;
mod suspend;
mod vfio;
mod workload;

use anyhow::Result;

pub(crate) use runner::{Manner, run};
pub(crate) use selection::{Part, Selection, list};

use crate::kernel::Variant;
use crate::machine::{Guest, Options};

/// One named check.
#[derive(Debug)]
pub(crate) struct Check {
    /// Shown as `suite/check`.
    pub(crate) name: &'static str,
    /// Fails, or returns a line for the table ("" when there is nothing to add).
    pub(crate) run: fn(&mut Guest) -> Result<String>,
    /// The machine is of no use afterwards.
    pub(crate) spoils: bool,
    /// Part of the long runs only (`--soak`).
    pub(crate) soak: bool,
    /// The kernels on which it is of the everyday set.
    pub(crate) quick: &'static [Variant],
    /// Runs on the fast kernel only, whatever the suite does.
    pub(crate) fast_only: bool,
}

impl Check {
    /// A check that leaves the machine as it was.
    pub(crate) const fn new(name: &'static str, run: fn(&mut Guest) -> Result<String>) -> Self {
        Self {
            name,
            run,
            spoils: false,
            soak: false,
            quick: &[],
            fast_only: false,
        }
    }

    /// The check is of the everyday set on these kernels: the core of what it belongs to,
    /// and done in seconds.
    pub(crate) const fn quick(mut self, kernels: &'static [Variant]) -> Self {
        self.quick = kernels;
        self
    }

    /// The debug kernel cannot pass the check, for a reason of its own; say which beside it.
    pub(crate) const fn only_fast(mut self) -> Self {
        self.fast_only = true;
        self
    }

    /// A check after which the machine is of no use.
    pub(crate) const fn spoiling(
        name: &'static str,
        run: fn(&mut Guest) -> Result<String>,
    ) -> Self {
        Self {
            spoils: true,
            ..Self::new(name, run)
        }
    }

    /// A check of the long runs.
    pub(crate) const fn soak(name: &'static str, run: fn(&mut Guest) -> Result<String>) -> Self {
        Self {
            soak: true,
            ..Self::new(name, run)
        }
    }
}

/// A machine and what is checked on it.
#[derive(Debug)]
pub(crate) struct Suite {
    /// Short, in kebab case.
    pub(crate) name: &'static str,
    /// What it shows, in one line.
    pub(crate) about: &'static str,
    /// The kernels it runs on.
    pub(crate) kernels: &'static [Variant],
    /// The machine; [`Options::kernel`] is filled in from `kernels`.
    pub(crate) machine: fn() -> Options,
    /// In order.
    pub(crate) checks: &'static [Check],
}

/// For [`Suite::kernels`] and [`Check::quick`].
pub(crate) const FAST: &[Variant] = &[Variant::Fast];
/// For [`Suite::kernels`].
pub(crate) const DEBUG: &[Variant] = &[Variant::Debug];
/// For [`Suite::kernels`] and [`Check::quick`].
pub(crate) const DEBIAN: &[Variant] = &[Variant::Debian];
/// For [`Suite::kernels`]: the kernels that Debian built, of the release that this tree is for.
pub(crate) const PACKAGED: &[Variant] = &[Variant::Debian, Variant::Debian612];
/// For [`Suite::kernels`]: every kernel that Debian built.
pub(crate) const ALL_PACKAGED: &[Variant] =
    &[Variant::Debian, Variant::Debian612, Variant::Debian73];
/// For [`Check::quick`].
pub(crate) const DEBIAN_612: &[Variant] = &[Variant::Debian612];
/// For [`Suite::kernels`] and [`Check::quick`].
pub(crate) const BOTH: &[Variant] = &[Variant::Fast, Variant::Debug];

/// Every suite, in the order in which they run. Add yours here.
pub(crate) const SUITES: &[&[Suite]] = &[
    smoke::SUITES,
    stock::SUITES,
    stock_fixed::SUITES,
    migration::SUITES,
    selftests::SUITES,
    dcbm::SUITES,
    kshim::SUITES,
    kshim_binding::SUITES,
    kshim_load::SUITES,
    kshim_ports::SUITES,
    kshim_iommu::SUITES,
    kshim_stale::SUITES,
    kshim_pressure::SUITES,
    kshim_turmoil::SUITES,
    forks::SUITES,
    vfio::SUITES,
    probe::SUITES,
    stock_debian::SUITES,
    stock_debian_device::SUITES,
    stock_debian_cost::SUITES,
];
