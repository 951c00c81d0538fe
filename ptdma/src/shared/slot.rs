//! What is asked about a channel without its lock.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::copy_channel::ChannelLimits;

/// A channel with what is asked about it without its lock.
#[derive(Debug)]
pub(super) struct ChannelSlot<L> {
    pub(super) channel: L,
    pub(super) limits: SharedLimits,
    /// Bytes that owners have given to the channel and not got back. A hint.
    pub(super) load_bytes: AtomicU64,
    /// A hint: the truth is behind the lock.
    pub(super) active: AtomicBool,
}

impl<L> ChannelSlot<L> {
    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    pub(super) fn rank(&self, dst_node: Option<u16>, src_node: Option<u16>) -> (u8, u64) {
        let node = self.limits.get().node;
        let distance = match node {
            Some(_) if node == dst_node => 0,
            Some(_) if node == src_node => 1,
            _ => 2,
        };
        (distance, self.load_bytes.load(Ordering::Relaxed))
    }
}

/// A channel's limits, read without its lock.
#[derive(Debug)]
pub(super) struct SharedLimits {
    max_len_bytes: AtomicU64,
    align_bytes: AtomicU64,
    /// [`NO_NODE`] if not known.
    node: AtomicU32,
    ring_slots: AtomicUsize,
}

/// Larger than any node number.
const NO_NODE: u32 = u32::MAX;

impl SharedLimits {
    #[inline]
    pub(super) fn new(limits: ChannelLimits) -> Self {
        Self {
            max_len_bytes: AtomicU64::new(limits.max_len_bytes),
            align_bytes: AtomicU64::new(limits.align_bytes),
            node: AtomicU32::new(limits.node.map_or(NO_NODE, u32::from)),
            ring_slots: AtomicUsize::new(limits.ring_slots),
        }
    }

    #[inline]
    pub(super) fn set(&self, limits: ChannelLimits) {
        let node = limits.node.map_or(NO_NODE, u32::from);
        self.max_len_bytes
            .store(limits.max_len_bytes, Ordering::Relaxed);
        self.align_bytes
            .store(limits.align_bytes, Ordering::Relaxed);
        self.node.store(node, Ordering::Relaxed);
        self.ring_slots.store(limits.ring_slots, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn get(&self) -> ChannelLimits {
        ChannelLimits {
            max_len_bytes: self.max_len_bytes.load(Ordering::Relaxed),
            align_bytes: self.align_bytes.load(Ordering::Relaxed),
            node: u16::try_from(self.node.load(Ordering::Relaxed)).ok(),
            ring_slots: self.ring_slots.load(Ordering::Relaxed),
        }
    }
}
