//! The test machine: what it consists of, starting it, talking to it.

mod accel;
mod agent;
mod command_line;
mod guest;
mod kernel_log;
mod qmp;

pub(crate) use accel::{Accel, kvm_obstacle};
pub(crate) use agent::Job;
pub(crate) use command_line::{Iommu, Options};
pub(crate) use guest::{Guest, Output};
