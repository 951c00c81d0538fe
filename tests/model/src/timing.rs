//! How long the engine takes.

use serde::{Deserialize, Serialize};

/// Cost of a descriptor, and of register accesses as the CPU sees them. All zero by default.
///
/// In threaded mode the engine paces itself by these; in single-step mode they only add up in
/// [`crate::Model::virtual_ns`], so that a prediction does not depend on the host's speed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timing {
    /// Nanoseconds per descriptor, whatever its length.
    pub setup_ns: u64,
    /// Bytes per second once moving; 0 stands for no limit.
    pub bytes_per_second: u64,
    /// Nanoseconds that a register read keeps the CPU waiting (virtual time only).
    pub read_ns: u64,
    /// Nanoseconds that a register write keeps the CPU waiting (virtual time only).
    pub write_ns: u64,
}

impl Timing {
    /// Nanoseconds that one descriptor of `len_bytes` occupies the engine.
    #[must_use]
    pub fn descriptor_ns(&self, len_bytes: u64) -> u64 {
        const NS_PER_SECOND: u128 = 1_000_000_000;
        let moving = match self.bytes_per_second {
            0 => 0,
            rate => u128::from(len_bytes) * NS_PER_SECOND / u128::from(rate),
        };
        self.setup_ns
            .saturating_add(u64::try_from(moving).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_setup_plus_bytes() {
        let t = Timing {
            setup_ns: 500,
            bytes_per_second: 1_000_000_000,
            ..Timing::default()
        };
        assert_eq!(t.descriptor_ns(4096), 4596);
        assert_eq!(Timing::default().descriptor_ns(u64::MAX), 0);
    }
}
