//! A lane that is one part of one folio: the share of a large folio that is handed out whole.
//!
//! It is one descriptor, so nothing has to be gathered, and nothing can be merged.

use ptdma::Lock;

use super::{Batch, Run};

use crate::channel::{CopyChannel, Limits, Segment};
use crate::cursor::Cursor;
use crate::engines::{Announce, Port};
use crate::gather::Digest;
use crate::host::{CpuCopier, Rescue};
use crate::lane::Burst;
use crate::map::Mapper;
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
    /// What [`refill`](Self::refill) comes to for a lane whose rest makes one descriptor. `None` if
    /// it is not so, or not all of that was mapped or accepted: then nothing of it was submitted,
    /// and `refill` finds out what becomes of it.
    pub(super) fn refill_part(
        &mut self,
        index: usize,
        limits: &Limits,
        free: usize,
        now_ns: u64,
    ) -> Option<()> {
        let Batch { lanes, refused, .. } = &mut *self.state;
        let lane = lanes.get_mut(index)?;
        if free == 0 || !refused.is_empty() || lane.bursts.is_full() {
            return None;
        }
        let cursor = Cursor::at(self.source, lane.next);
        let piece = cursor.piece(lane.end)?;
        let bytes = lane.rest();
        if piece.len_bytes != bytes || bytes > limits.max_len_bytes {
            return None;
        }
        let mapped = self.host.mapper.map(lane.channel, &piece).ok()?;
        if mapped.len_bytes < bytes {
            return None;
        }
        let copy = Segment {
            len_bytes: bytes,
            ..mapped
        };
        let announce = Announce {
            ring: true,
            interrupt: self.host.wait.wants_interrupts() && !lane.spoken_for,
            offered: 1,
            coalesced: 0,
        };
        let accepted = self.engines.submit(lane.channel, now_ns, |channel| {
            (channel.prep_all(core::iter::once(copy), None), announce)
        });
        if accepted.count == 0 {
            return None;
        }
        let taken = accepted.count as u64;
        let burst = Burst {
            first: accepted.first,
            end: accepted.first.after(taken),
            start: lane.next,
            end_position: lane.end,
            bytes,
            lost_bytes: 0,
            digest: Digest::of_start(lane.next),
        };
        lane.bursts.add(burst, lane.seam);
        lane.next = cursor.behind(bytes);
        lane.handed_out(bytes, now_ns, self.options.engine_ns_per_mib);
        self.report.descriptors = self.report.descriptors.wrapping_add(taken);
        self.report.doorbells = self.report.doorbells.wrapping_add(1);
        Some(())
    }
}
