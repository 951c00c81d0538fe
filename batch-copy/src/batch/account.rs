//! The books of a batch: every byte ends up in one column, every folio with one outcome.

use ptdma::{DmaAddr, Lock};

use super::Run;
use super::share::CPU_CHUNK_BYTES;

use crate::channel::CopyChannel;
use crate::cursor::{Cursor, Place};
use crate::engines::Port;
use crate::folio::{FailReason, Outcome, SkipReason};
use crate::host::{CpuCopier, Rescue};
use crate::map::{Mapper, Piece};
use crate::plan::Stretch;
use crate::source::FolioSource;
use crate::stats::Report;
use crate::wait::Wait;

/// What is to become of a part of the stream that no engine copied.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    Fail(FailReason),
    Skip(SkipReason),
    Quarantine { channel: usize },
}

impl<S, C, L, W, M, K, R, const N: usize> Run<'_, S, C, L, W, M, K, R, N>
where
    S: FolioSource + ?Sized,
    C: CopyChannel,
    L: Lock<Port<C>>,
    W: Wait,
    M: Mapper,
    K: CpuCopier,
    R: Rescue,
{
    /// Accounts for a part of the stream that no engine copied and none has any more. Parts of it
    /// that were refused before are accounted for already.
    pub(super) fn settle(&mut self, stretch: Stretch, fate: Fate) {
        self.account(stretch, fate, false);
    }

    pub(super) fn account(&mut self, stretch: Stretch, fate: Fate, refused_too: bool) {
        if stretch.len_bytes() == 0 {
            return;
        }
        let mut cursor = Cursor::at(self.source, Place::default());
        cursor.seek_forward(stretch.start);
        while let Some(mut piece) = cursor.piece(stretch.end) {
            if !refused_too {
                let position = cursor.position();
                let skip = self
                    .state
                    .refused
                    .iter()
                    .find(|r| r.end > position && r.start <= position);
                if let Some(skip) = skip {
                    cursor.advance(piece.len_bytes.min(skip.end.saturating_sub(position)));
                    continue;
                }
                let next = self
                    .state
                    .refused
                    .iter()
                    .filter(|r| r.start > position)
                    .map(|r| r.start)
                    .min();
                if let Some(next) = next {
                    piece.len_bytes = piece.len_bytes.min(next.saturating_sub(position));
                }
            }
            cursor.advance(piece.len_bytes);
            self.account_piece(piece, fate);
        }
    }

    pub(super) fn account_piece(&mut self, piece: Piece, fate: Fate) {
        let repairable = self.options.repair
            && K::AVAILABLE
            && !matches!(
                fate,
                Fate::Quarantine { .. } | Fate::Skip(SkipReason::Deadline)
            );
        if repairable {
            self.copy_with_cpu(&piece);
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
        self.mark(piece.folio, outcome);
    }

    pub(super) fn mark(&mut self, folio: usize, outcome: Outcome) {
        if let Some(slot) = self.outcomes.get_mut(folio) {
            *slot = slot.worse(outcome);
        }
    }

    /// Copies a part of a folio with the CPU, in chunks.
    pub(super) fn copy_with_cpu(&mut self, piece: &Piece) {
        let mut done: u64 = 0;
        while done < piece.len_bytes {
            let len_bytes = piece.len_bytes.saturating_sub(done).min(CPU_CHUNK_BYTES);
            let chunk = Piece {
                folio: piece.folio,
                offset_bytes: piece.offset_bytes.wrapping_add(done),
                // In range: the folio was checked.
                src: DmaAddr::new(piece.src.get().wrapping_add(done)),
                dst: DmaAddr::new(piece.dst.get().wrapping_add(done)),
                len_bytes,
            };
            let (outcome, count) = match self.host.cpu.copy(&chunk) {
                Ok(()) => (Outcome::Cpu, &mut self.report.cpu_bytes),
                Err(_) => (
                    Outcome::Failed(FailReason::CpuCopy),
                    &mut self.report.failed_bytes,
                ),
            };
            *count = count.wrapping_add(len_bytes);
            self.mark(chunk.folio, outcome);
            done = done.wrapping_add(len_bytes);
        }
    }

    /// Balances the books and turns them into outcomes.
    pub(super) fn finish(mut self) -> Report {
        let report = &mut self.report;
        let known = [
            report.dma_bytes,
            report.cpu_bytes,
            report.failed_bytes,
            report.skipped_bytes,
            report.quarantined_bytes,
        ]
        .iter()
        .fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
        report.unaccounted_bytes = report.bytes.abs_diff(known);
        let balanced = report.unaccounted_bytes == 0;
        if balanced && report.dma_bytes == report.bytes {
            self.outcomes.fill(Outcome::Dma);
            report.folios_dma = self.outcomes.len();
        } else {
            for outcome in self.outcomes.iter_mut() {
                if balanced && *outcome == Outcome::Failed(FailReason::Unaccounted) {
                    *outcome = Outcome::Dma;
                }
                let count = match outcome {
                    Outcome::Dma => &mut report.folios_dma,
                    Outcome::Cpu => &mut report.folios_cpu,
                    Outcome::Failed(_) | Outcome::NotAttempted(_) => &mut report.folios_left,
                };
                *count = count.wrapping_add(1);
            }
        }
        self.engines
            .count_batch(report.folios_dma, report.folios_cpu, report.folios_left);
        *report
    }
}
