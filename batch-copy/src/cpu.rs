//! The CPU as a channel.

use heapless::Deque;
use ptdma::Cookie;

use crate::batch::CPU_CHUNK_BYTES;
use crate::host::CpuCopier;
use crate::map::Piece;
use ptdma::{
    ChannelLimits, CopyChannel, CopyFailure, CopyProgress, Health, PrepError, Segment, Stopped,
};

/// The error code of a copy that the CPU could not do. No code of an engine: those have six bits.
pub const CPU_COPY_FAILED: u8 = 0xff;

/// A channel whose engine is the CPU that polls it: one descriptor per poll.
///
/// For machines without engines, for comparison, and to run what was written for channels
/// anywhere. There are no interrupts. The copier is called with the channel's lock held: it is the
/// engine.
#[derive(Debug)]
pub struct CpuChannel<K, const SLOTS: usize> {
    copier: K,
    ring: Deque<Segment, SLOTS>,
    issued: usize,
    done_before: Cookie,
    node: Option<u16>,
}

impl<K: CpuCopier, const SLOTS: usize> CpuChannel<K, SLOTS> {
    /// A channel that copies with `copier`, which is given the parts' bus addresses as they come
    /// out of the mapper, always as folio 0.
    pub const fn new(copier: K, node: Option<u16>) -> Self {
        Self {
            copier,
            ring: Deque::new(),
            issued: 0,
            done_before: Cookie::new(0),
            node,
        }
    }
}

impl<K: CpuCopier, const SLOTS: usize> CopyChannel for CpuChannel<K, SLOTS> {
    fn limits(&self) -> ChannelLimits {
        // A copy is done inside of a look, with the channel's lock held.
        let mut limits = ChannelLimits::new(CPU_CHUNK_BYTES, SLOTS);
        limits.node = self.node;
        limits
    }

    fn next_cookie(&self) -> Cookie {
        self.done_before.after(self.ring.len() as u64)
    }

    fn free_slots(&self) -> usize {
        SLOTS.saturating_sub(self.ring.len())
    }

    fn prep(&mut self, copy: Segment, _interrupt: bool) -> Result<Cookie, PrepError> {
        let cookie = self.next_cookie();
        let fits = |start: u64| start.checked_add(copy.len_bytes).is_some();
        if copy.len_bytes == 0
            || copy.len_bytes > CPU_CHUNK_BYTES
            || !fits(copy.src.get())
            || !fits(copy.dst.get())
        {
            return Err(PrepError::Rejected);
        }
        match self.ring.push_back(copy) {
            Ok(()) => Ok(cookie),
            Err(_) => Err(PrepError::Full),
        }
    }

    fn issue_pending(&mut self, _interrupt: bool) {
        self.issued = self.ring.len();
    }

    fn poll(&mut self, _now_ns: u64) -> CopyProgress {
        let mut failure = None;
        if self.issued != 0
            && let Some(copy) = self.ring.pop_front()
        {
            self.issued = self.issued.saturating_sub(1);
            let piece = Piece {
                folio: 0,
                offset_bytes: 0,
                src: copy.src,
                dst: copy.dst,
                len_bytes: copy.len_bytes,
            };
            if self.copier.copy(&piece).is_err() {
                failure = Some(CopyFailure {
                    cookie: self.done_before,
                    code: CPU_COPY_FAILED,
                });
            }
            self.done_before = self.done_before.after(1);
        }
        CopyProgress {
            done_before: self.done_before,
            failure,
            begun_again: false,
            health: Health::Alive,
        }
    }

    fn terminate(&mut self, _now_ns: u64) -> Stopped {
        let done_before = self.done_before;
        self.done_before = self.next_cookie();
        self.ring.clear();
        self.issued = 0;
        Stopped {
            done_before,
            // It only ever copies inside a poll.
            proven: true,
            health: Health::Alive,
        }
    }
}
