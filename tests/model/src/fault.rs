//! Faults: what goes wrong, and when.
//!
//! A fault is plain data, so it travels as JSON:
//!
//! ```
//! use ptdma_model::{Fault, FaultKind, Trigger};
//! let text = r#"{"trigger":{"at":3},"kind":{"error":{"code":19}},"times":1}"#;
//! let fault: Fault = serde_json::from_str(text)?;
//! assert_eq!(fault.trigger, Trigger::At(3));
//! assert_eq!(fault.kind, FaultKind::Error { code: 19 });
//! # Ok::<(), serde_json::Error>(())
//! ```

use ptdma::{DmaAddr, DmaRange};
use serde::{Deserialize, Serialize};

use crate::bus::Side;

/// When a fault fires. Descriptors are counted from 0 at the moment the fault was added, each
/// start of a descriptor once, so a retried descriptor has a new number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Trigger {
    /// At once. A kind that belongs to a descriptor strikes the next one.
    Now,
    /// At every descriptor.
    Always,
    /// At the descriptor with this number.
    At(u64),
    /// At descriptors `offset`, `offset + n`, `offset + 2n`, ...; never if `n` is 0.
    Every {
        /// Distance.
        n: u64,
        /// First.
        #[serde(default)]
        offset: u64,
    },
    /// Where the bits of the number that `mask` selects equal `value`.
    Mask {
        /// Bits that count.
        mask: u64,
        /// What they must be.
        value: u64,
    },
    /// By chance, the same for the same seed.
    Chance {
        /// Probability in millionths.
        per_million: u32,
        /// Seed of the generator.
        seed: u64,
    },
    /// Where a descriptor reads or writes any of these bus addresses.
    Touches {
        /// First bus address.
        start: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultKind {
    /// The descriptor fails with this code (6 bits); no byte is moved.
    Error {
        /// Raw code.
        code: u8,
    },
    /// The descriptor moves its first bytes, then fails.
    PartialWrite {
        /// Bytes moved, at most the descriptor's length.
        len_bytes: u64,
        /// Raw code.
        code: u8,
    },
    /// The descriptor fails as if this side was not mapped on the bus.
    Unmapped {
        /// Which side.
        side: Side,
    },
    /// The descriptor completes without an error, but its first byte is inverted at the
    /// destination: what no driver can see, so that a test can show that its check would.
    SilentCorruption,
    /// The descriptor stays in flight, then goes on.
    Stall {
        /// How long.
        #[serde(rename = "for")]
        duration: StallFor,
        /// Whether a halt (RUN cleared) gets rid of it, with head still at the descriptor. If
        /// not, only a function reset does.
        #[serde(default)]
        haltable: bool,
    },
    /// The descriptor takes this much longer (real time in threaded mode, virtual time always).
    Delay {
        /// Nanoseconds.
        ns: u64,
    },
    /// Messages that this descriptor causes are not sent; the status is latched as usual.
    LostInterrupt,
    /// A message without a reason, before the descriptor is executed.
    SpuriousInterrupt,
    /// The function does not answer: reads are all ones, writes are lost, the engine stops. Ends
    /// after that many reads, of registers or by [`crate::Model::miss`], or when the fault is
    /// removed; state is as it was before, and the engine goes on.
    AllOnes {
        /// Reads until it answers again; none: for ever.
        #[serde(default)]
        reads: Option<u64>,
    },
    /// The head register reads as this value, though the engine knows better.
    HeadGarbage {
        /// What is read.
        value: u32,
        /// How many reads; none: until the fault is removed.
        #[serde(default)]
        reads: Option<u64>,
    },
    /// From here on the engine does not stop when RUN is cleared or HALT is set, until the fault
    /// is removed or the function is reset.
    IgnoreHalt,
}

/// How long a stall lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StallFor {
    /// Until a reset, or until the fault is removed.
    Ever,
    /// That many calls of [`crate::Model::step`] (threaded mode makes one about every
    /// millisecond while stalled).
    Steps(u64),
    /// That much real time.
    Micros(u64),
}

/// A fault to inject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When.
    pub trigger: Trigger,
    /// What.
    pub kind: FaultKind,
    /// How often at most; none: as often as the trigger fires.
    #[serde(default)]
    pub times: Option<u64>,
}

impl Fault {
    /// `kind` whenever `trigger` fires.
    #[must_use]
    pub fn new(trigger: Trigger, kind: FaultKind) -> Self {
        Self {
            trigger,
            kind,
            times: None,
        }
    }

    /// `kind` at the descriptor that is number `index` from now.
    #[must_use]
    pub fn at(index: u64, kind: FaultKind) -> Self {
        Self::new(Trigger::At(index), kind)
    }

    /// `kind` at once, or at the next descriptor if it belongs to one.
    #[must_use]
    pub fn now(kind: FaultKind) -> Self {
        Self::new(Trigger::Now, kind)
    }

    /// How many times at most.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }
}

/// Names a fault that was injected, so that it can be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FaultId(pub u64);

/// A fault in place, with its own count of descriptors.
#[derive(Clone, Debug)]
pub(crate) struct Armed {
    pub(crate) id: FaultId,
    pub(crate) fault: Fault,
    seen: u64,
    left: Option<u64>,
    random: u64,
}

impl Armed {
    pub(crate) fn new(id: FaultId, fault: Fault) -> Self {
        let random = match fault.trigger {
            Trigger::Chance { seed, .. } => seed,
            _ => 0,
        };
        let left = fault.times;
        Self {
            id,
            fault,
            seen: 0,
            left,
            random,
        }
    }

    /// Whether the fault strikes the descriptor that starts now; `touched` are the addresses of
    /// its two sides, as far as they make sense.
    pub(crate) fn fires(&mut self, touched: &[DmaRange]) -> bool {
        let index = self.seen;
        self.seen = self.seen.wrapping_add(1);
        if self.left == Some(0) {
            return false;
        }
        let hit = match self.fault.trigger {
            Trigger::Now => index == 0,
            Trigger::Always => true,
            Trigger::At(at) => index == at,
            Trigger::Every { n, offset } => {
                n != 0 && index.checked_sub(offset).is_some_and(|i| i % n == 0)
            }
            Trigger::Mask { mask, value } => index & mask == value,
            Trigger::Chance { per_million, .. } => {
                splitmix(&mut self.random) % 1_000_000 < u64::from(per_million)
            }
            Trigger::Touches { start, len_bytes } => DmaRange::new(DmaAddr::new(start), len_bytes)
                .is_ok_and(|r| touched.iter().any(|t| t.overlaps(r))),
        };
        if hit {
            self.left = self.left.map(|n| n - 1);
        }
        hit
    }
}

/// The next number of the `SplitMix64` generator (Steele, Lea, Flood 2014; public domain): tiny,
/// and the same everywhere.
pub fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(trigger: Trigger, times: Option<u64>) -> Vec<u64> {
        let fault = Fault {
            trigger,
            kind: FaultKind::LostInterrupt,
            times,
        };
        let mut armed = Armed::new(FaultId(0), fault);
        (0..12).filter(|_| armed.fires(&[])).collect()
    }

    #[test]
    fn triggers() {
        assert_eq!(hits(Trigger::Now, None), [0]);
        assert_eq!(hits(Trigger::At(5), None), [5]);
        assert_eq!(hits(Trigger::Always, Some(2)), [0, 1]);
        let every = Trigger::Every { n: 4, offset: 2 };
        assert_eq!(hits(every, None), [2, 6, 10]);
        assert_eq!(hits(Trigger::Every { n: 0, offset: 0 }, None), [0; 0]);
        let mask = Trigger::Mask { mask: 3, value: 1 };
        assert_eq!(hits(mask, None), [1, 5, 9]);
    }

    #[test]
    fn chance_is_seeded_and_about_right() {
        let draws = if cfg!(miri) { 1000 } else { 100_000 };
        let run = |seed| {
            let trigger = Trigger::Chance {
                per_million: 10_000,
                seed,
            };
            let mut armed = Armed::new(FaultId(0), Fault::new(trigger, FaultKind::LostInterrupt));
            (0..draws).filter(|_| armed.fires(&[])).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let expected = draws / 100;
        assert!((expected * 8 / 10..=expected * 2).contains(&run(3).len()));
    }

    #[test]
    fn json_is_strict() {
        let ok = |s| serde_json::from_str::<Fault>(s).is_ok();
        assert!(ok(r#"{"trigger":"now","kind":{"all_ones":{}}}"#));
        assert!(ok(
            r#"{"trigger":{"every":{"n":100}},"kind":{"stall":{"for":{"micros":10}}}}"#
        ));
        assert!(ok(
            r#"{"trigger":"always","kind":{"unmapped":{"side":"source"}}}"#
        ));
        assert!(!ok(r#"{"trigger":"now","kind":{"all_ones":{"read":1}}}"#));
        assert!(!ok(r#"{"trigger":"now","kind":"lost_interrupt","time":1}"#));
    }
}
