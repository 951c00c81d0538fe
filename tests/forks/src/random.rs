//! Numbers that look random and repeat; a fuzzer's [tape] goes first.

use ptdma_model::fault::splitmix;
use ptdma_model::tape;

/// A generator with its state.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        match tape::below(bound) {
            Some(taped) => taped,
            None => splitmix(&mut self.0).checked_rem(bound).unwrap_or(0),
        }
    }

    /// A place in a list of `len`.
    pub fn index(&mut self, len: usize) -> usize {
        // It is below a usize.
        self.below(len as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
