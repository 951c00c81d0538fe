//! A lane that is one part of one folio: the share of a large folio that is handed out whole.
//!
//! It is one descriptor, so nothing has to be gathered, and nothing can be merged.

use ptdma::DmaAddr;

use super::kinds::Kinds;
use super::{Batch, Run};

use crate::gather::Digest;
use crate::lane::{Burst, Lane, Span, done_ns};
use crate::map::{Mapper, Piece};
use crate::source::FolioSource;
use crate::sum::Sum;
use crate::wait::Wait;

impl<T: Kinds, const N: usize> Run<'_, T, N> {
    /// Begins lanes whose stretches make one descriptor each, with that submitted, from stretch
    /// number `from` on. It ends at the first stretch that does not, that was not mapped whole, or
    /// that was not accepted. Nothing of that stretch was submitted and it has no lane;
    /// [`refill`](Self::refill) finds out what becomes of it. Returns how many were begun; the
    /// caller counts their descriptors and doorbells.
    // A function of its own, so that its variables have registers of their own.
    #[inline(never)]
    pub(super) fn begin_parts(
        &mut self,
        from: usize,
        closing: Option<usize>,
        now_ns: u64,
    ) -> usize {
        let Batch {
            lanes,
            refused,
            plan,
            choice,
            ..
        } = &mut *self.state;
        let mut begun: usize = 0;
        if !refused.is_empty() {
            return begun;
        }
        let interrupts = self.host.wait.wants_interrupts();
        let ns_per_mib = self.options.engine_ns_per_mib;
        let mut start = plan.start(from);
        let Some(mut folio) = self.source.folio(start.folio) else {
            return begun;
        };
        let ends = plan.ends(from);
        let channels = choice.get(from..).unwrap_or_default();
        let closing = closing.map(|closing| closing.wrapping_sub(from));
        // Most parts are as long as the one before.
        let (mut length, mut expected_ns) = (0, now_ns);
        for (&end, &channel) in ends.iter().zip(channels) {
            // More folios than one: the usual case of a batch of small ones.
            if end.folio.wrapping_sub(start.folio) > 1 || lanes.is_full() {
                break;
            }
            let bytes = end.position.wrapping_sub(start.position);
            let left = folio.len_bytes.wrapping_sub(start.offset_bytes);
            // Nothing, or what makes no sense, is more than there can be.
            if bytes.wrapping_sub(1) >= left || left > folio.len_bytes {
                break;
            }
            let piece = Piece {
                folio: start.folio,
                offset_bytes: start.offset_bytes,
                // In range: the folio was checked.
                src: DmaAddr::new(folio.src.get().wrapping_add(start.offset_bytes)),
                dst: DmaAddr::new(folio.dst.get().wrapping_add(start.offset_bytes)),
                len_bytes: bytes,
            };
            let Ok(mut copy) = self.host.mapper.map(channel, &piece) else {
                break;
            };
            if copy.len_bytes < bytes {
                break;
            }
            copy.len_bytes = bytes;
            let spoken_for = closing.is_some_and(|closing| closing != begun);
            let interrupt = interrupts && !spoken_for;
            let submitted = self.channels.submit_one(channel, now_ns, copy, interrupt);
            let Some(share) = submitted else {
                break;
            };
            let burst = Burst {
                share,
                span: Span {
                    start,
                    end_position: end.position,
                    left_out: Sum::NOTHING,
                    digest: Digest::of_start(start),
                },
                doubt: None,
            };
            if bytes != length {
                length = bytes;
                expected_ns = done_ns(now_ns, bytes, ns_per_mib);
            }
            let lane =
                Lane::handed_out_whole(channel, burst, end, spoken_for, (now_ns, expected_ns));
            // There is room: looked at above.
            let _ = lanes.push(lane);
            begun = begun.wrapping_add(1);
            if end.folio != start.folio {
                match self.source.folio(end.folio) {
                    Some(next) => folio = next,
                    None => break,
                }
            }
            start = end;
        }
        begun
    }
}
