//! Chance that a fuzzer decides.
//!
//! Tests that leave something to chance draw numbers from a seed. A coverage-guided fuzzer cannot
//! steer a seed: one changed bit changes everything. While a *tape* plays, the fuzzer's bytes decide
//! the draws of this thread, one after another; the seed decides the draws behind the end of the tape.

use std::cell::RefCell;

#[derive(Debug)]
struct Tape {
    bytes: Vec<u8>,
    at: usize,
}

thread_local! {
    static TAPE: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// Takes the tape out again, also when what plays it panics.
struct Playing;

impl Drop for Playing {
    fn drop(&mut self) {
        TAPE.with_borrow_mut(|tape| *tape = None);
    }
}

/// Runs `f` with `bytes` as the tape of this thread. A tape that plays already ends.
pub fn play<T>(bytes: &[u8], f: impl FnOnce() -> T) -> T {
    let tape = Tape {
        bytes: bytes.to_vec(),
        at: 0,
    };
    TAPE.with_borrow_mut(|slot| *slot = Some(tape));
    let _playing = Playing;
    f()
}

/// The next draw below `bound` that a tape decides: `None` without a tape, behind its end, and for
/// a bound of 0.
///
/// A draw takes as few bytes as its bound needs, so that a changed byte changes one decision.
#[must_use]
pub fn below(bound: u64) -> Option<u64> {
    TAPE.with_borrow_mut(|tape| {
        let tape = tape.as_mut()?;
        let len = match bound {
            0 => return None,
            1..=0x100 => 1,
            0x101..=0x1_0000 => 2,
            _ => 8,
        };
        let end = tape.at.checked_add(len)?;
        let mut word = [0; 8];
        let taken = tape.bytes.get(tape.at..end)?;
        word[..len].copy_from_slice(taken);
        tape.at = end;
        Some(u64::from_le_bytes(word) % bound)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tape_decides_and_then_the_seed() {
        assert_eq!(below(10), None);
        play(&[13, 0x34, 0x12, 7], || {
            assert_eq!(below(10), Some(3));
            assert_eq!(below(0x1_0000), Some(0x1234));
            assert_eq!(below(0), None);
            // Eight bytes are no longer there; one is.
            assert_eq!(below(u64::MAX), None);
            assert_eq!(below(8), Some(7));
            assert_eq!(below(8), None);
        });
        assert_eq!(below(10), None);
    }

    #[test]
    fn a_panic_takes_the_tape_out() {
        let caught = std::panic::catch_unwind(|| play(&[1, 2, 3], || panic!("on purpose")));
        assert!(caught.is_err());
        assert_eq!(below(10), None);
    }
}
