//! Where a batch is cut: one stretch of its byte stream per channel.

use heapless::Vec;

use crate::closing::is_near;
use crate::cursor::{Cursor, Place};
use crate::map::Piece;
use crate::source::FolioSource;
use crate::survey::Survey;

/// Shortest fragment that a run is ever cut into for the sake of balance: a base page. Below it
/// the fixed cost of a descriptor outweighs the bytes that balance would gain.
const MIN_FRAGMENT_BYTES: u64 = 4096;

/// A cut may be moved by one part in this many of a channel's share before balance suffers. Both
/// ends of a share together stay at 1/32, well under the 5 % that is promised for mixed lists.
const BALANCE_DIVISOR: u64 = 64;

/// How a batch may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CutRules {
    /// Shortest part that a run is striped into, in bytes.
    ///
    /// A cut that would leave less is moved to the nearest allowed place. If shares have at least this
    /// length, a cut is not moved where that would unbalance them by more than about 1.5 %. There are
    /// never more cuts than channels, so this costs at most one more
    /// descriptor per channel.
    pub min_part_bytes: u64,
    /// Cuts inside a folio lie at multiples of this from its beginning: a power of two.
    /// [`Batch::run`](crate::Batch::run) refuses everything else, and [`Plan::new`] rounds it up.
    /// 64, a cache line, keeps two engines from writing to the same line.
    pub align_bytes: u64,
}

impl CutRules {
    /// The alignment as a power of two: the next one, if it is none.
    fn unit_bytes(&self) -> u64 {
        self.align_bytes.checked_next_power_of_two().unwrap_or(1)
    }
}

impl Default for CutRules {
    fn default() -> Self {
        Self {
            min_part_bytes: 64 << 10,
            align_bytes: 64,
        }
    }
}

/// A stretch of the batch's byte stream.
///
/// The fields are closed: a stretch has two ends.
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
    /// Where each stretch ends and the next one begins.
    ends: Vec<Place, N>,
    /// No stretch has more bytes.
    longest: u64,
}

impl<const N: usize> Plan<N> {
    /// Cuts the first `bytes` bytes of a surveyed batch for `channels` channels, of which at most
    /// `N` and at most `survey.parts` are used.
    ///
    /// Deterministic: the same batch gives the same plan. Looks at a few folios around every cut.
    #[must_use]
    pub fn new<S: FolioSource + ?Sized>(
        source: &S,
        survey: &Survey,
        bytes: u64,
        channels: usize,
        rules: &CutRules,
    ) -> Self {
        let mut plan = Self::empty();
        let mut cursor = Cursor::at(source, Place::default());
        cursor.seek_forward(bytes.min(survey.bytes));
        plan.cut(source, survey, cursor.place(), channels, rules);
        plan
    }

    /// Nothing to copy.
    pub(crate) const fn empty() -> Self {
        Self {
            ends: Vec::new(),
            longest: 0,
        }
    }

    /// [`new`](Self::new) in place, because it is large for a kernel's stack, for everything
    /// before `end`.
    pub(crate) fn cut<S: FolioSource + ?Sized>(
        &mut self,
        source: &S,
        survey: &Survey,
        end: Place,
        channels: usize,
        rules: &CutRules,
    ) {
        self.ends.clear();
        self.longest = 0;
        let bytes = end.position;
        let stretches = (channels.min(N) as u64).min(survey.parts);
        let Some(share) = bytes.checked_div(stretches) else {
            return;
        };
        let mut cutter = Cutter {
            source,
            survey,
            landmark: 0,
            min_part_bytes: rules.min_part_bytes.max(1),
            align_mask: rules.unit_bytes().wrapping_sub(1),
            tolerance: share / BALANCE_DIVISOR,
            balance_first: share >= rules.min_part_bytes,
            bytes,
        };
        let mut ideals = Ideals {
            share,
            over: bytes.wrapping_sub(share.wrapping_mul(stretches)),
            stretches,
            ..Ideals::default()
        };
        let mut low = Place::default();
        // One cut less than stretches; they may end early below.
        let mut left = stretches.wrapping_sub(1);
        while left != 0 {
            let here = self.ends.len();
            let from = low.position;
            low = cutter.cut(ideals.next(), low);
            let _ = self.ends.push(low);
            self.longest = self.longest.max(low.position.saturating_sub(from));
            left = left.wrapping_sub(1);
            if low.offset_bytes != 0 {
                low = cutter.cut_same_folio(&mut ideals, low, left, &mut self.ends);
                let made = self.ends.len().wrapping_sub(here).wrapping_sub(1);
                left = left.saturating_sub(made as u64);
                if made != 0 {
                    // No part is longer than what balance wants and what aligning moved.
                    let most = share.saturating_add(cutter.align_mask).saturating_add(1);
                    self.longest = self.longest.max(most);
                }
            }
        }
        let _ = self.ends.push(end);
        self.longest = self.longest.max(bytes.saturating_sub(low.position));
    }

    /// The last stretch, if it is so long that of channels without other work its one finishes
    /// last, or about when that does.
    #[inline]
    pub(crate) fn last_of_equals(&self) -> Option<usize> {
        let last = self.ends.len().checked_sub(1)?;
        is_near(self.stretch(last).len_bytes(), self.longest).then_some(last)
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

    /// Where stretch number `index` begins.
    pub(crate) fn start(&self, index: usize) -> Place {
        let before = index.checked_sub(1).and_then(|i| self.ends.get(i));
        before.copied().unwrap_or_default()
    }

    /// Where stretch number `index` ends.
    pub(crate) fn end(&self, index: usize) -> Place {
        self.ends.get(index).copied().unwrap_or_default()
    }

    /// Where the stretches from number `index` on end.
    pub(crate) fn ends(&self, index: usize) -> &[Place] {
        self.ends.get(index..).unwrap_or_default()
    }

    /// Stretch number `index`; an empty one if there is none.
    #[must_use]
    pub fn stretch(&self, index: usize) -> Stretch {
        let start = self.start(index).position;
        Stretch {
            start,
            end: self.ends.get(index).map_or(start, |end| end.position),
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

/// Where balance wants the cuts: number n at `bytes * n / stretches`, rounded down, without a
/// division for each.
#[derive(Clone, Copy, Debug, Default)]
struct Ideals {
    share: u64,
    /// What dividing left over, to be spread.
    over: u64,
    stretches: u64,
    ideal: u64,
    spread: u64,
}

impl Ideals {
    /// Whether, after a cut at `position` just where balance wanted it, it wants all others at
    /// places that are aligned, too.
    const fn are_even(&self, position: u64, align_mask: u64) -> bool {
        self.over == 0 && self.share & align_mask == 0 && self.ideal == position
    }

    #[inline]
    const fn next(&mut self) -> u64 {
        self.ideal = self.ideal.wrapping_add(self.share);
        self.spread = self.spread.wrapping_add(self.over);
        if self.spread >= self.stretches {
            self.spread = self.spread.wrapping_sub(self.stretches);
            self.ideal = self.ideal.wrapping_add(1);
        }
        self.ideal
    }
}

/// Finds places to cut at.
struct Cutter<'a, S: ?Sized> {
    source: &'a S,
    survey: &'a Survey,
    /// The landmark before the last cut.
    landmark: usize,
    min_part_bytes: u64,
    align_mask: u64,
    /// How far a cut may be moved without harm to balance.
    tolerance: u64,
    /// Whether a share is so large that balance is worth a short part.
    balance_first: bool,
    /// What is to be cut.
    bytes: u64,
}

impl<S: FolioSource + ?Sized> Cutter<'_, S> {
    /// Where to cut, given that balance wants `ideal` and that the last cut was at `low`.
    fn cut(&mut self, ideal: u64, low: Place) -> Place {
        if ideal <= low.position {
            return low;
        }
        let (landmark, folio, position) = self.survey.landmark(self.landmark, ideal);
        self.landmark = landmark;
        if position == ideal && self.begins_run(folio) {
            return Place {
                folio,
                offset_bytes: 0,
                position,
            };
        }
        let mut cursor = if low.position > position {
            Cursor::at(self.source, low)
        } else {
            Cursor::at(
                self.source,
                Place {
                    folio,
                    offset_bytes: 0,
                    position,
                },
            )
        };
        // To the folio that holds the ideal place, not into it.
        let mut here = cursor.place();
        while let Some(piece) = cursor.piece(u64::MAX) {
            here = cursor.place();
            if here.position.saturating_add(piece.len_bytes) > ideal {
                break;
            }
            cursor.advance(piece.len_bytes);
            here = cursor.place();
        }
        // Between two folios, the second of which begins a run: nothing gets shorter there.
        if here.position == ideal && here.offset_bytes == 0 && self.begins_run(here.folio) {
            return here;
        }
        // Inside a folio that was cut before, `here` is that cut.
        let inside = ideal.saturating_sub(here.position) & !self.align_mask;
        let aligned = here.position.saturating_add(inside);
        let run = self.run_around(here, low);
        let chosen = self.place(aligned, run);
        self.align(self.walk_to(chosen, here), run)
    }

    /// The nearest place that is aligned within its folio and leaves no part of the run shorter
    /// than the minimum. Where there is none, it is an end of the run.
    fn align(&self, place: Place, run: Stretch) -> Place {
        let over = place.offset_bytes & self.align_mask;
        if over == 0 {
            return place;
        }
        let allowed = |position: u64| {
            let (left, right) = (
                position.saturating_sub(run.start),
                run.end.saturating_sub(position),
            );
            (left == 0 || left >= self.min_part_bytes)
                && (right == 0 || right >= self.min_part_bytes)
        };
        let down = place.position.saturating_sub(over);
        if down >= run.start && allowed(down) {
            return Place {
                folio: place.folio,
                offset_bytes: place.offset_bytes.saturating_sub(over),
                position: down,
            };
        }
        let len = self.source.folio(place.folio).map_or(0, |f| f.len_bytes);
        let left = len.saturating_sub(place.offset_bytes);
        let unit = self.align_mask.saturating_add(1);
        let up = place
            .position
            .saturating_add(unit.saturating_sub(over).min(left));
        let position = if up <= run.end && allowed(up) {
            up
        } else {
            run.start
        };
        self.walk_to(position, place)
    }

    /// What [`cut`](Self::cut) comes to where a large folio holds several cuts, as most do: the
    /// last one, `low`, and those after it. They are far enough from each other and from the
    /// folio's end. No neighbour can change that. Makes at most `most` cuts, and returns the last
    /// one.
    // A function of its own, so that its variables have registers of their own.
    #[inline(never)]
    fn cut_same_folio<const N: usize>(
        &self,
        ideals: &mut Ideals,
        mut low: Place,
        most: u64,
        ends: &mut Vec<Place, N>,
    ) -> Place {
        let Some(folio) = self.source.folio(low.folio) else {
            return low;
        };
        let start = low.position.saturating_sub(low.offset_bytes);
        let end = start.saturating_add(folio.len_bytes).min(self.bytes);
        // Neither the cut nor the place where balance wants it may lie behind this.
        let last = end.saturating_sub(self.min_part_bytes);
        if ideals.are_even(low.position, self.align_mask) && ideals.share >= self.min_part_bytes {
            return self.cut_evenly(ideals, low, last, most, ends);
        }
        for _ in 0..most {
            let mut after = *ideals;
            let ideal = after.next();
            let part = ideal.saturating_sub(low.position) & !self.align_mask;
            if part < self.min_part_bytes || ideal > last {
                break;
            }
            // Not over the ideal, so it does not wrap.
            low.offset_bytes = low.offset_bytes.wrapping_add(part);
            low.position = low.position.wrapping_add(part);
            if ends.push(low).is_err() {
                break;
            }
            *ideals = after;
        }
        low
    }

    /// [`cut_same_folio`](Self::cut_same_folio) where each part is just what balance wants.
    #[inline]
    fn cut_evenly<const N: usize>(
        &self,
        ideals: &mut Ideals,
        mut low: Place,
        last: u64,
        most: u64,
        ends: &mut Vec<Place, N>,
    ) -> Place {
        let share = ideals.share;
        for _ in 0..most {
            let position = low.position.saturating_add(share);
            let next = Place {
                folio: low.folio,
                // No further than the position went.
                offset_bytes: low.offset_bytes.wrapping_add(share),
                position,
            };
            if position > last || ends.push(next).is_err() {
                break;
            }
            low = next;
        }
        ideals.ideal = low.position;
        low
    }

    /// Whether a folio does not continue the one before it.
    fn begins_run(&self, folio: usize) -> bool {
        let before = folio.checked_sub(1).and_then(|b| self.source.folio(b));
        match (before, self.source.folio(folio)) {
            (Some(before), Some(this)) => !before.is_followed_by(&this),
            _ => true,
        }
    }

    /// The run that `here` is in, as far as it matters. It begins no earlier than the last cut, and
    /// goes no further than the minimum part on either side of the folio.
    fn run_around(&self, here: Place, low: Place) -> Stretch {
        let whole = |index: usize| self.source.folio(index);
        let folio_start = here.position.saturating_sub(here.offset_bytes);
        let mut run = Stretch {
            start: folio_start,
            end: folio_start,
        };
        let Some(current) = whole(here.folio) else {
            return run;
        };
        run.end = run.end.saturating_add(current.len_bytes);
        let (mut index, mut first) = (here.folio, current);
        let far = folio_start.saturating_sub(self.min_part_bytes);
        while run.start > far.max(low.position) {
            index = index.wrapping_sub(1);
            let Some(before) = whole(index) else { break };
            if !before.is_followed_by(&first) {
                break;
            }
            run.start = run.start.saturating_sub(before.len_bytes);
            first = before;
        }
        let (mut index, mut last) = (here.folio, current);
        let far = run.end.saturating_add(self.min_part_bytes);
        while run.end < far {
            index = index.wrapping_add(1);
            let Some(next) = whole(index) else { break };
            if !last.is_followed_by(&next) {
                break;
            }
            run.end = run.end.saturating_add(next.len_bytes);
            last = next;
        }
        Stretch {
            start: run.start.max(low.position),
            end: run.end.min(self.bytes),
        }
    }

    /// Where in a run to cut, given that balance wants `ideal`.
    fn place(&self, ideal: u64, run: Stretch) -> u64 {
        let min = self.min_part_bytes;
        let left = ideal.saturating_sub(run.start);
        let right = run.end.saturating_sub(ideal);
        if left >= min && right >= min {
            return ideal;
        }
        // Nearest place where nothing is shorter than the minimum: an end, or just far enough
        // from one.
        let mut best = if left <= right { run.start } else { run.end };
        let mut distance = left.min(right);
        let far_enough = [
            min.checked_add(self.align_mask)
                .and_then(|part| run.start.checked_add(part & !self.align_mask)),
            run.end
                .checked_sub(min)
                .map(|at| at.saturating_sub(at.saturating_sub(run.start) & self.align_mask)),
        ];
        for inner in far_enough.into_iter().flatten() {
            let allowed = inner.checked_sub(run.start).is_some_and(|part| part >= min)
                && run.end.checked_sub(inner).is_some_and(|part| part >= min);
            if allowed && inner.abs_diff(ideal) < distance {
                best = inner;
                distance = inner.abs_diff(ideal);
            }
        }
        let worth_it = self.balance_first
            && distance > self.tolerance
            && left >= MIN_FRAGMENT_BYTES
            && right >= MIN_FRAGMENT_BYTES;
        if worth_it { ideal } else { best }
    }

    /// The place at `position`, which is not far from `near`.
    fn walk_to(&self, position: u64, near: Place) -> Place {
        let mut start = Place {
            offset_bytes: 0,
            position: near.position.saturating_sub(near.offset_bytes),
            ..near
        };
        while start.position > position {
            start.folio = start.folio.saturating_sub(1);
            let before = self.source.folio(start.folio).map_or(0, |f| f.len_bytes);
            if before == 0 {
                start = Place::default();
                break;
            }
            start.position = start.position.saturating_sub(before);
        }
        let mut cursor = Cursor::at(self.source, start);
        cursor.seek_forward(position);
        cursor.place()
    }
}
