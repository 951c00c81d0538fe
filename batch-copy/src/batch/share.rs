//! The CPU's own share of a batch.

use super::kinds::Kinds;
use super::{Phase, Run};

use crate::cursor::{Cursor, Place};
use crate::host::CpuCopier;
use crate::plan::Stretch;
use crate::source::FolioSource;

/// Most bytes that the CPU copies between two looks at the engines: some 6 us, about what an
/// interrupt costs.
pub const CPU_CHUNK_BYTES: u64 = 64 << 10;

/// The CPU's own stretch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Share {
    pub(super) next: Place,
    pub(super) end: u64,
}

impl Share {
    pub(super) const fn rest(&self) -> u64 {
        self.end.saturating_sub(self.next.position)
    }
}

impl<T: Kinds, const N: usize> Run<'_, T, N> {
    /// Sets the CPU's share aside at the end of the stream; returns where it begins.
    pub(super) fn cut_cpu_share(&mut self) -> Place {
        let share = self.options.cpu_share_bytes.min(self.state.survey.bytes);
        let bytes = self.state.survey.bytes;
        self.cpu = Share::default();
        let mut place = Place {
            folio: self.state.survey.folios,
            offset_bytes: 0,
            position: bytes,
        };
        if !T::Cpu::AVAILABLE || share == 0 {
            return place;
        }
        let target = bytes.saturating_sub(share);
        while place.position > target {
            let index = place.folio.saturating_sub(1);
            let len = self.source.folio(index).map_or(0, |folio| folio.len_bytes);
            let start = place.position.saturating_sub(len);
            let inside = target.saturating_sub(start) & !self.rules.align_bytes.wrapping_sub(1);
            let long_enough = self.rules.min_part_bytes;
            if start >= target || len == 0 {
                place.folio = index;
                place.position = start;
                if place.folio == 0 {
                    break;
                }
            } else if inside >= long_enough && len.saturating_sub(inside) >= long_enough {
                place.folio = index;
                place.offset_bytes = inside;
                place.position = start.saturating_add(inside);
                break;
            } else {
                // The cut would leave a short part: round to the nearer end of the folio.
                if target.saturating_sub(start) < place.position.saturating_sub(target) {
                    place.folio = index;
                    place.position = start;
                }
                break;
            }
        }
        self.cpu = Share {
            next: place,
            end: bytes,
        };
        place
    }

    /// Copies one chunk of the CPU's share. Returns whether there was one.
    pub(super) fn copy_own_share(&mut self) -> bool {
        if !T::Cpu::AVAILABLE || self.options.cpu_share_bytes == 0 {
            return false;
        }
        if self.cpu.rest() == 0 && !self.help_a_lane() {
            return false;
        }
        // Engines that are done before the CPU take half of what it still has.
        let rest = self.cpu.rest();
        if rest >= CPU_CHUNK_BYTES.saturating_mul(4)
            && self.phase == Phase::Running
            && self.first_in_flight().is_none()
            && !self.has_rest()
            && self.has_channel()
        {
            let middle = self.cpu.next.position.saturating_add(rest / 2);
            let cut = self.cut_near(self.cpu.next, middle).position;
            let given = Stretch {
                start: cut,
                end: self.cpu.end,
            };
            self.cpu.end = cut;
            self.orphan(given);
        }
        let mut cursor = Cursor::at(self.source, self.cpu.next);
        let Some(piece) = cursor.piece(self.cpu.end) else {
            self.cpu = Share::default();
            return false;
        };
        let position = self.cpu.next.position;
        let copied = self.copy_with_cpu(piece, position);
        cursor.advance(copied);
        self.cpu.next = cursor.place();
        true
    }

    /// The CPU has copied its share while engines still have more than fits into their rings: it
    /// takes some of that. Returns whether there was any.
    pub(super) fn help_a_lane(&mut self) -> bool {
        if self.phase != Phase::Running {
            return false;
        }
        let lanes = self.state.lanes.iter().enumerate();
        let Some((index, lane)) = lanes.max_by_key(|(_, lane)| lane.rest()) else {
            return false;
        };
        // Below this the engine is done sooner than the CPU.
        if lane.rest() < CPU_CHUNK_BYTES.saturating_mul(8) {
            return false;
        }
        let (near, end) = (lane.next, lane.end);
        let target = end.saturating_sub(lane.rest() / 4);
        let cut = self.cut_near(near, target);
        let Some(lane) = self.state.lanes.get_mut(index) else {
            return false;
        };
        self.cpu = Share { next: cut, end };
        lane.end_at(cut);
        true
    }

    /// A place to cut at, at or before `target` and not before `near`: inside a folio, as the
    /// rules want it.
    pub(super) fn cut_near(&self, near: Place, target: u64) -> Place {
        let mut cursor = Cursor::at(self.source, near);
        cursor.seek_forward(target);
        let mut place = cursor.place();
        let over = place.offset_bytes & self.rules.align_bytes.wrapping_sub(1);
        if place.position.saturating_sub(over) < near.position {
            return near;
        }
        place.offset_bytes = place.offset_bytes.wrapping_sub(over);
        place.position = place.position.wrapping_sub(over);
        place
    }

    /// Whether there is a channel that may be given work.
    fn has_channel(&self) -> bool {
        match self.options.only {
            Some(only) => self.channels.is_active(only),
            None => self.channels.active() != 0,
        }
    }
}
