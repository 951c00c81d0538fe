//! Shared parts of the host tests.
