//! Where a batch is cut: one stretch of its byte stream per channel.

use heapless::Vec;

use crate::cursor::{Cursor, Place};
use crate::folio::Folio;
use crate::map::Piece;
use crate::source::FolioSource;
use crate::survey::Survey;

/// Shortest fragment that a run is ever cut into for the sake of balance: a base page. Below it
/// the fixed cost of a descriptor outweighs the bytes that balance would gain.
const MIN_FRAGMENT_BYTES: u64 = 4096;

/// A cut may be moved by one part in this many of a channel's share before balance suffers: both
/// ends of a share together stay at 1/32, well under the 5 % that is promised for mixed lists.
const BALANCE_DIVISOR: u64 = 64;

/// How a batch may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutRules {
    /// Shortest part that a run is striped into, in bytes.
    ///
    /// A cut that would leave less is moved to the nearest allowed place. Only where that would
    /// unbalance a batch with shares of at least this length by more than about 1.5 % on a side
    /// is the cut left where balance wants it (there are never more cuts than channels, so this
    /// costs at most one more descriptor per channel).
    pub min_part_bytes: u64,
    /// Cuts inside a run lie at multiples of this from its beginning: a power of two. 64, a cache
    /// line, keeps two engines from writing to the same line.
    pub align_bytes: u64,
    /// What a descriptor costs an engine beside its bytes, as bytes it could have copied in that
    /// time. 0 balances by bytes alone.
    pub run_weight_bytes: u64,
}

impl Default for CutRules {
    fn default() -> Self {
        Self {
            min_part_bytes: 64 << 10,
            align_bytes: 64,
            run_weight_bytes: 0,
        }
    }
}

/// A stretch of the batch's byte stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Stretch {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Stretch {
    /// Length in bytes.
    #[must_use]
    pub const fn len_bytes(self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// A batch cut into stretches, in order and without gaps; some may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan<const N: usize> {
    ends: Vec<u64, N>,
}

impl<const N: usize> Plan<N> {
    /// Cuts a surveyed batch for `channels` channels, of which at most `N` and at most
    /// `survey.parts` are used.
    ///
    /// Walks the batch once, deterministically: the same batch gives the same plan.
    #[must_use]
    #[inline]
    pub fn new(
        folios: impl Iterator<Item = Folio>,
        survey: &Survey,
        channels: usize,
        rules: &CutRules,
    ) -> Self {
        Self::of_first(survey.bytes, folios, survey, channels, rules)
    }

    /// Cuts only the first `bytes` bytes of a batch.
    #[inline]
    pub(crate) fn of_first(
        bytes: u64,
        folios: impl Iterator<Item = Folio>,
        survey: &Survey,
        channels: usize,
        rules: &CutRules,
    ) -> Self {
        let bytes = bytes.min(survey.bytes);
        let survey = &Survey { bytes, ..*survey };
        let stretches = (channels.min(N) as u64).min(survey.parts);
        let mut cutter = Cutter::<N>::new(survey, stretches, rules);
        if stretches > 1 {
            let (mut next_src, mut next_dst) = (0, 0);
            let mut run = Stretch::default();
            for folio in folios {
                let (src, dst) = (folio.src.get(), folio.dst.get());
                if src != next_src || dst != next_dst {
                    cutter.run(run);
                    run.start = run.end;
                }
                next_src = src.wrapping_add(folio.len_bytes);
                next_dst = dst.wrapping_add(folio.len_bytes);
                run.end = run.end.wrapping_add(folio.len_bytes).min(bytes);
            }
            cutter.run(run);
        }
        cutter.finish()
    }

    /// Number of stretches, the empty ones too.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is nothing to copy.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Stretch number `index`; an empty one if there is none.
    #[must_use]
    pub fn stretch(&self, index: usize) -> Stretch {
        let end_of = |i: usize| self.ends.get(i).copied();
        let start = index.checked_sub(1).and_then(end_of).unwrap_or(0);
        Stretch {
            start,
            end: end_of(index).unwrap_or(start),
        }
    }

    /// All stretches in order.
    pub fn stretches(&self) -> impl Iterator<Item = Stretch> + '_ {
        (0..self.len()).map(|index| self.stretch(index))
    }
}

/// The parts of folios that a stretch consists of, in order.
pub fn pieces<S>(source: &S, stretch: Stretch) -> impl Iterator<Item = Piece> + '_
where
    S: FolioSource + ?Sized,
{
    let mut cursor = Cursor::at(source, Place::default());
    cursor.seek_forward(stretch.start);
    core::iter::from_fn(move || {
        let piece = cursor.piece(stretch.end)?;
        cursor.advance(piece.len_bytes);
        Some(piece)
    })
}

/// The walk over runs that puts cuts in.
struct Cutter<const N: usize> {
    ends: Vec<u64, N>,
    rules: CutRules,
    stretches: u64,
    /// Bytes and weights of everything.
    total: u64,
    /// Bytes and weights before the current run.
    passed: u64,
    /// Where, in bytes and weights, the next cut should be.
    target: u64,
    /// How far a cut may be moved without harm to balance.
    tolerance: u64,
    /// Whether a share is so large that balance is worth a short part.
    balance_first: bool,
    bytes: u64,
}

impl<const N: usize> Cutter<N> {
    fn new(survey: &Survey, stretches: u64, rules: &CutRules) -> Self {
        let total = survey
            .runs
            .saturating_mul(rules.run_weight_bytes)
            .saturating_add(survey.bytes)
            .min(crate::MAX_BATCH_BYTES);
        let share = total / stretches.max(1);
        let mut cutter = Self {
            ends: Vec::new(),
            rules: CutRules {
                min_part_bytes: rules.min_part_bytes.max(1),
                align_bytes: rules.align_bytes.max(1),
                ..*rules
            },
            stretches,
            total,
            passed: 0,
            target: 0,
            tolerance: share / BALANCE_DIVISOR,
            balance_first: share >= rules.min_part_bytes,
            bytes: survey.bytes,
        };
        cutter.aim();
        cutter
    }

    /// Sets the target of the next cut; there is none behind the last stretch.
    fn aim(&mut self) {
        let cut = (self.ends.len() as u64).saturating_add(1);
        self.target = if cut < self.stretches {
            // At most 2^56 times N.
            self.total.saturating_mul(cut) / self.stretches.max(1)
        } else {
            u64::MAX
        };
    }

    /// Takes the next run and puts all cuts in whose targets lie in it.
    #[inline]
    fn run(&mut self, run: Stretch) {
        let len = run.len_bytes();
        if len == 0 {
            return;
        }
        let weight = self.rules.run_weight_bytes;
        let behind = self.passed.saturating_add(weight).saturating_add(len);
        if self.target < behind {
            self.cut_run(run, len, behind);
        }
        self.passed = behind;
    }

    fn cut_run(&mut self, run: Stretch, len: u64, behind: u64) {
        let mut low = 0;
        while self.target < behind {
            let ideal = self
                .target
                .saturating_sub(self.passed)
                .saturating_sub(self.rules.run_weight_bytes)
                .min(len);
            low = self.place(ideal, low, len);
            // Never more than N - 1 cuts, so there is room.
            let _ = self.ends.push(run.start.saturating_add(low));
            self.aim();
        }
    }

    /// Where in a run of `len` bytes to cut, given that balance wants `ideal` and that the run
    /// was last cut at `low`. At least `low`, at most `len`.
    fn place(&self, ideal: u64, low: u64, len: u64) -> u64 {
        let min = self.rules.min_part_bytes;
        // `align_bytes` is a power of two.
        let aligned = (ideal & !self.rules.align_bytes.wrapping_sub(1)).max(low);
        let left = aligned.saturating_sub(low);
        let right = len.saturating_sub(aligned);
        if left >= min && right >= min {
            return aligned;
        }
        // Nearest place where nothing is shorter than the minimum: an end, or just far enough
        // from one.
        let mut best = if left <= right { low } else { len };
        let mut distance = left.min(right);
        let align_up = |at: u64| at.checked_next_multiple_of(self.rules.align_bytes);
        let far_enough = [
            low.checked_add(min).and_then(align_up),
            len.checked_sub(min)
                .map(|at| at & !self.rules.align_bytes.wrapping_sub(1)),
        ];
        for inner in far_enough.into_iter().flatten() {
            let allowed = inner.checked_sub(low).is_some_and(|part| part >= min)
                && len.checked_sub(inner).is_some_and(|part| part >= min);
            if allowed && inner.abs_diff(aligned) < distance {
                best = inner;
                distance = inner.abs_diff(aligned);
            }
        }
        let worth_it = self.balance_first
            && distance > self.tolerance
            && left >= MIN_FRAGMENT_BYTES
            && right >= MIN_FRAGMENT_BYTES;
        if worth_it { aligned } else { best }
    }

    fn finish(mut self) -> Plan<N> {
        // Targets that no run held (none, unless the iterator changed between two walks).
        while (self.ends.len() as u64) < self.stretches {
            if self.ends.push(self.bytes).is_err() {
                break;
            }
        }
        Plan { ends: self.ends }
    }
}
