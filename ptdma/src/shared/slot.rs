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
    /// The channels behind the same port, by number, itself among them: a bit each.
    pub(super) peers: AtomicU64,
}

/// The bit of a channel in a set of channels. Channels of higher numbers have no port in common
/// with anybody.
pub(super) fn bit(number: usize) -> u64 {
    u32::try_from(number)
        .ok()
        .and_then(|number| 1_u64.checked_shl(number))
        .unwrap_or(0)
}

impl<L> ChannelSlot<L> {
    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    pub(super) fn peers(&self) -> u64 {
        self.peers.load(Ordering::Relaxed)
    }

    pub(super) fn load_bytes(&self) -> u64 {
        self.load_bytes.load(Ordering::Relaxed)
    }

    /// 0 near the destination, 1 near the source, 2 elsewhere.
    #[inline]
    pub(super) fn distance(&self, dst_node: Option<u16>, src_node: Option<u16>) -> usize {
        match self.limits.node() {
            node @ Some(_) if node == dst_node => 0,
            node @ Some(_) if node == src_node => 1,
            _ => 2,
        }
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
    /// [`NO_PORT`] if not known.
    port: AtomicU64,
}

/// Larger than any node number.
const NO_NODE: u32 = u32::MAX;
/// Larger than any port number.
const NO_PORT: u64 = u64::MAX;

impl SharedLimits {
    #[inline]
    pub(super) fn new(limits: ChannelLimits) -> Self {
        let shared = Self {
            max_len_bytes: AtomicU64::new(0),
            align_bytes: AtomicU64::new(0),
            node: AtomicU32::new(0),
            ring_slots: AtomicUsize::new(0),
            port: AtomicU64::new(0),
        };
        shared.set(limits);
        shared
    }

    #[inline]
    pub(super) fn set(&self, limits: ChannelLimits) {
        let node = limits.node.map_or(NO_NODE, u32::from);
        let port = limits.port.map_or(NO_PORT, u64::from);
        self.max_len_bytes
            .store(limits.max_len_bytes, Ordering::Relaxed);
        self.align_bytes
            .store(limits.align_bytes, Ordering::Relaxed);
        self.node.store(node, Ordering::Relaxed);
        self.ring_slots.store(limits.ring_slots, Ordering::Relaxed);
        self.port.store(port, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn get(&self) -> ChannelLimits {
        ChannelLimits {
            max_len_bytes: self.max_len_bytes.load(Ordering::Relaxed),
            align_bytes: self.align_bytes.load(Ordering::Relaxed),
            node: self.node(),
            ring_slots: self.ring_slots.load(Ordering::Relaxed),
            port: self.port(),
        }
    }

    #[inline]
    fn node(&self) -> Option<u16> {
        u16::try_from(self.node.load(Ordering::Relaxed)).ok()
    }

    #[inline]
    pub(super) fn port(&self) -> Option<u32> {
        u32::try_from(self.port.load(Ordering::Relaxed)).ok()
    }
}
