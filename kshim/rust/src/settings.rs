//! What can be set, and to what.

use crate::abi::{MAX_CHANNELS, Settings};

/// Fewest descriptors of a ring: what the Linux driver runs on silicon.
const MIN_RING: u32 = 32;
/// Most: what AMD's poll-mode driver runs on silicon.
const MAX_RING: u32 = ptdma::MAX_ENTRIES as u32;

impl Default for Settings {
    fn default() -> Self {
        Self {
            // The cost model knows how many are worth it.
            nr_dma_chan: 0,
            // A batch of 512 scattered folios on one channel is one burst, and the rings of 16
            // channels are 512 KiB.
            ring_entries: 1024,
            min_batch_kb: 0,
            // The engine copies this in about as long as a descriptor costs it at the least.
            stripe_kb: 64,
            // About what a sleep and its wake-up cost: to spin for longer than it can save is
            // never much of a gain.
            poll_us: 10,
            // A batch of 2 MiB takes a fifth of a millisecond on one channel; this is for engines that hang.
            timeout_ms: 2000,
            hybrid_percent: 0,
        }
    }
}

impl Settings {
    /// Whether every value is one that the library can work with.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.nr_dma_chan <= MAX_CHANNELS as u32
            && (MIN_RING..=MAX_RING).contains(&self.ring_entries)
            && self.ring_entries.is_power_of_two()
            // A GiB: as much as the kernel lets anybody batch.
            && self.min_batch_kb <= 1 << 20
            && (4..=2048).contains(&self.stripe_kb)
            && self.poll_us <= 10_000
            && (10..=60_000).contains(&self.timeout_ms)
            && self.hybrid_percent <= 50
    }

    /// Time that a batch may take, in nanoseconds.
    pub(crate) fn timeout_ns(&self) -> u64 {
        u64::from(self.timeout_ms).wrapping_mul(1_000_000)
    }

    /// Time that a batch spins, in nanoseconds.
    pub(crate) fn poll_ns(&self) -> u64 {
        u64::from(self.poll_us).wrapping_mul(1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_the_edges_are_where_they_are_documented() {
        let good = Settings::default();
        assert!(good.is_valid());
        type Field = fn(&mut Settings) -> &mut u32;
        let fields: [(Field, u32, u32); 7] = [
            (|s| &mut s.nr_dma_chan, 0, 64),
            (|s| &mut s.ring_entries, 32, 8192),
            (|s| &mut s.min_batch_kb, 0, 1 << 20),
            (|s| &mut s.stripe_kb, 4, 2048),
            (|s| &mut s.poll_us, 0, 10_000),
            (|s| &mut s.timeout_ms, 10, 60_000),
            (|s| &mut s.hybrid_percent, 0, 50),
        ];
        for (field, low, high) in fields {
            for (value, valid) in [
                (low, true),
                (high, true),
                (high + 1, false),
                (low.wrapping_sub(1), false),
            ] {
                let mut settings = good;
                *field(&mut settings) = value;
                assert_eq!(settings.is_valid(), valid, "{settings:?}");
            }
        }
        let odd = Settings {
            ring_entries: 1000,
            ..good
        };
        assert!(!odd.is_valid());
    }
}
