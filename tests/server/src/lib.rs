//! Serves the device model of `tests/model` as PCI functions over vfio-user.
#![forbid(unsafe_code)]
