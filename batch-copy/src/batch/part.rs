//! A lane that is one part of one folio: the share of a large folio that is handed out whole.
//!
//! It is one descriptor, so nothing has to be gathered, and nothing can be merged.

use ptdma::{DmaAddr, Lock};

use super::Run;

use crate::channel::{CopyChannel, Segment};
use crate::cursor::Place;
use crate::engines::Port;
use crate::gather::Digest;
use crate::host::{CpuCopier, Rescue};
use crate::lane::{Burst, Lane, done_ns};
use crate::map::{Mapper, Piece};
use crate::source::FolioSource;
use crate::wait::Wait;

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
    /// Begins a lane whose stretch makes one descriptor, with that submitted. `None` if it does
    /// not, or not all of it was mapped, or it was not accepted: then nothing was submitted, there
    /// is no such lane yet, and [`refill`](Self::refill) finds out what becomes of it. The caller
    /// counts the descriptor and its doorbell.
    #[inline]
    pub(super) fn begin_part(
        &mut self,
        channel: usize,
        (start, end): (Place, Place),
        spoken_for: bool,
        now_ns: u64,
    ) -> Option<()> {
        // More folios than one: the usual case of a batch of small ones, and all that it costs.
        if end.folio.wrapping_sub(start.folio) > 1
            || !self.state.refused.is_empty()
            || self.state.lanes.is_full()
        {
            return None;
        }
        let folio = self.source.folio(start.folio)?;
        let bytes = end.position.checked_sub(start.position)?;
        let left = folio.len_bytes.checked_sub(start.offset_bytes)?;
        if bytes == 0 || bytes > left {
            return None;
        }
        let piece = Piece {
            folio: start.folio,
            offset_bytes: start.offset_bytes,
            // In range: the folio was checked.
            src: DmaAddr::new(folio.src.get().wrapping_add(start.offset_bytes)),
            dst: DmaAddr::new(folio.dst.get().wrapping_add(start.offset_bytes)),
            len_bytes: bytes,
        };
        let mapped = self.host.mapper.map(channel, &piece).ok()?;
        if mapped.len_bytes < bytes {
            return None;
        }
        let copy = Segment {
            len_bytes: bytes,
            ..mapped
        };
        let interrupt = self.host.wait.wants_interrupts() && !spoken_for;
        let first = self.engines.submit_one(channel, now_ns, copy, interrupt)?;
        let burst = Burst {
            first,
            end: first.after(1),
            start,
            end_position: end.position,
            bytes,
            lost_bytes: 0,
            digest: Digest::of_start(start),
        };
        let expected_ns = done_ns(now_ns, bytes, self.options.engine_ns_per_mib);
        let lane = Lane::handed_out_whole(channel, burst, end, spoken_for, expected_ns);
        // There is room: looked at above.
        let _ = self.state.lanes.push(lane);
        Some(())
    }
}
