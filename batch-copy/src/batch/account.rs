//! The books of a batch: every byte ends up in one column, every folio with one outcome.

use ptdma::DmaAddr;

use super::kinds::Kinds;
use super::share::CPU_CHUNK_BYTES;
use super::{Phase, Run};

use crate::cursor::{Cursor, Place};
use crate::folio::{FailReason, Outcome, SkipReason};
use crate::gather::{find_refused, next_refused};
use crate::host::{CpuCopier, Rescue};
use crate::map::Piece;
use crate::plan::Stretch;
use crate::stats::Report;
use crate::sum::Sum;
use crate::wait::Wait;

/// What is to become of a part of the stream that no engine copied.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    Fail(FailReason),
    Skip(SkipReason),
    Quarantine { channel: usize },
}

impl<T: Kinds, const N: usize> Run<'_, T, N> {
    /// Accounts for a part of the stream that no engine copied and none has any more. Parts of it
    /// that were refused before are accounted for already. `near` is a place before it, the nearer
    /// the better.
    pub(super) fn settle(&mut self, stretch: Stretch, near: Place, fate: Fate) {
        if stretch.len_bytes() == 0 {
            return;
        }
        let mut cursor = Cursor::at(self.source, near);
        cursor.seek_forward(stretch.start);
        loop {
            let position = cursor.position();
            let refused = find_refused(&self.state.refused, position);
            let end = match refused {
                Some(part) => part.end,
                None => next_refused(&self.state.refused, position),
            };
            let Some(piece) = cursor.piece(stretch.end.min(end)) else {
                return;
            };
            cursor.advance(piece.len_bytes);
            if refused.is_none() {
                self.account(piece, position, fate);
            }
        }
    }

    /// Accounts for a part of a folio, `position` bytes from the beginning of the stream.
    pub(super) fn account(&mut self, mut piece: Piece, mut position: u64, fate: Fate) {
        let repairable = self.options.repair
            && T::Cpu::AVAILABLE
            && !matches!(
                fate,
                Fate::Quarantine { .. } | Fate::Skip(SkipReason::Deadline)
            );
        while repairable && piece.len_bytes != 0 {
            // Repairs are work like any other: after the deadline they are left to the caller.
            if self.phase != Phase::Running || self.host.wait.now_ns() >= self.phase_end_ns {
                self.report.late = true;
                break;
            }
            let copied = self.copy_with_cpu(piece, position);
            position = position.wrapping_add(copied);
            piece = Piece {
                folio: piece.folio,
                offset_bytes: piece.offset_bytes.wrapping_add(copied),
                // In range: the folio was checked.
                src: DmaAddr::new(piece.src.get().wrapping_add(copied)),
                dst: DmaAddr::new(piece.dst.get().wrapping_add(copied)),
                len_bytes: piece.len_bytes.saturating_sub(copied),
            };
        }
        if piece.len_bytes == 0 {
            return;
        }
        let (outcome, count) = match fate {
            Fate::Fail(reason) => (Outcome::Failed(reason), &mut self.report.failed_bytes),
            Fate::Skip(reason) => (
                Outcome::NotAttempted(reason),
                &mut self.report.skipped_bytes,
            ),
            Fate::Quarantine { channel } => {
                self.host.rescue.quarantined(channel, &piece);
                (
                    Outcome::Failed(FailReason::Quarantined),
                    &mut self.report.quarantined_bytes,
                )
            }
        };
        *count = count.wrapping_add(piece.len_bytes);
        self.enter(&piece, position, outcome);
    }

    /// Enters a part of a folio into the books.
    fn enter(&mut self, piece: &Piece, position: u64, outcome: Outcome) {
        let end = position.wrapping_add(piece.len_bytes);
        self.others = self.others.plus(Sum::of(position, end));
        self.mark(piece.folio, outcome);
    }

    pub(super) fn mark(&mut self, folio: usize, outcome: Outcome) {
        if let Some(slot) = self.outcomes.get_mut(folio) {
            *slot = slot.worse(outcome);
        }
    }

    /// Copies a chunk of a part of a folio with the CPU; returns how much that was.
    pub(super) fn copy_with_cpu(&mut self, mut piece: Piece, position: u64) -> u64 {
        piece.len_bytes = piece.len_bytes.min(CPU_CHUNK_BYTES);
        let (outcome, count) = match self.host.cpu.copy(&piece) {
            Ok(()) => (Outcome::Cpu, &mut self.report.cpu_bytes),
            Err(_) => (
                Outcome::Failed(FailReason::CpuCopy),
                &mut self.report.failed_bytes,
            ),
        };
        *count = count.wrapping_add(piece.len_bytes);
        self.enter(&piece, position, outcome);
        piece.len_bytes
    }

    /// Balances the books and turns them into outcomes.
    ///
    /// Sums alone could balance by accident, with one part counted twice and another one not at
    /// all. So the books also say which parts they are about.
    pub(super) fn finish(mut self) -> Report {
        let report = &mut self.report;
        let dma = self.dma.sum();
        report.dma_bytes = dma.bytes;
        let known = dma.plus(self.others);
        let balanced = known == Sum::of(0, report.bytes);
        report.unaccounted_bytes = match report.bytes.abs_diff(known.bytes) {
            // As many bytes as there should be, but not those.
            0 if !balanced => report.bytes,
            missing => missing,
        };
        if balanced && report.dma_bytes == report.bytes {
            self.outcomes.fill(Outcome::Dma);
            report.folios_dma = self.outcomes.len();
        } else {
            for outcome in self.outcomes.iter_mut() {
                match (*outcome, balanced) {
                    (Outcome::Failed(FailReason::Unaccounted), true) => *outcome = Outcome::Dma,
                    (Outcome::Dma | Outcome::Cpu, false) => {
                        *outcome = Outcome::Failed(FailReason::Unaccounted);
                    }
                    _ => {}
                }
                let count = match outcome {
                    Outcome::Dma => &mut report.folios_dma,
                    Outcome::Cpu => &mut report.folios_cpu,
                    Outcome::Failed(_) | Outcome::NotAttempted(_) => &mut report.folios_left,
                };
                *count = count.wrapping_add(1);
            }
        }
        // Every lane is through: there is nothing for `drop` to stop.
        self.state.lanes.clear();
        self.report
    }
}
