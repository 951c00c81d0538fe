//! What the bare guest and its harness need no machine for: the tables that firmware leaves in
//! memory, and the commands on the serial line.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod command;
