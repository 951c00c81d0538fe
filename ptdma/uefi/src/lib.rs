//! What the programs without an operating system share: the function in its PCI configuration
//! space, work whose every byte can be told right from wrong, and a table for a text console.
//!
//! `ptdma.efi` (`src/main.rs`) and the bare guest (`tests/bare`) link it. Nothing here allocates.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod pci;
pub mod table;
pub mod work;
