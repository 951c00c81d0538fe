//! Which channels a batch gets that does not take all of them.
//!
//! Two functions share a port of the root complex, and its bandwidth is little more than that of one.
//! A batch that takes few channels is fastest on one of each port.

use super::Choice;
use super::slot::{ChannelSlot, bit};

/// A candidate's rank and place in one number: the lower, the sooner it is taken. From the top: what
/// keeps it out of the round, its distance, its load, whether its port is busy, its place in the
/// order of candidates.
type Rank = usize;

/// Set in the rank of a candidate whose port gave a channel in this round.
const NEXT_ROUND: Rank = 1 << (usize::BITS - 1);

/// Two bits below hold the distance.
const DISTANCE_SHIFT: u32 = usize::BITS - 3;

/// Loads are compared by KiB: less than that is no load.
const LOAD_SHIFT: u32 = 10;

/// Picks up to `most` channels of those in service, beginning to look at number `first`.
pub(super) fn pick<L, const N: usize>(
    used: &[ChannelSlot<L>],
    first: usize,
    most: usize,
    (dst_node, src_node): (Option<u16>, Option<u16>),
    choice: &mut Choice<N>,
) {
    let place_bits = usize::BITS.wrapping_sub(N.leading_zeros());
    let busy_port = 1_usize.checked_shl(place_bits).unwrap_or(0);
    let load_bits = place_bits.saturating_add(1);
    let most_load = (1_usize << DISTANCE_SHIFT)
        .checked_shr(load_bits)
        .unwrap_or(1)
        .saturating_sub(1);
    let number_at = |place: usize| {
        let number = first.wrapping_add(place);
        // Both are below the length.
        if number >= used.len() {
            number.wrapping_sub(used.len())
        } else {
            number
        }
    };
    let mut loaded = 0_u64;
    for place in 0..used.len() {
        let number = number_at(place);
        let Some(slot) = used.get(number).filter(|slot| slot.is_active()) else {
            continue;
        };
        let load = usize::try_from(slot.load_bytes() >> LOAD_SHIFT).unwrap_or(usize::MAX);
        if load != 0 {
            loaded |= bit(number);
        }
        let distance = slot.distance(dst_node, src_node) << DISTANCE_SHIFT;
        let load = load.min(most_load).checked_shl(load_bits).unwrap_or(0);
        // As many as there are places.
        let _ = choice.push(distance | load | place);
    }
    let places = busy_port.wrapping_sub(1);
    let candidates = core::cell::Cell::from_mut(choice.as_mut_slice()).as_slice_of_cells();
    let slot_of = |rank: Rank| {
        let number = number_at(rank & places);
        used.get(number).map(|slot| (number, slot))
    };
    if loaded != 0 {
        for candidate in candidates {
            let rank = candidate.get();
            if let Some((number, slot)) = slot_of(rank)
                && slot.peers() & loaded & !bit(number) != 0
            {
                candidate.set(rank | busy_port);
            }
        }
    }
    // Selection: `most` passes over few channels.
    for done in 0..most.min(candidates.len()) {
        let rest = candidates.get(done..).unwrap_or_default();
        let Some(best) = rest.iter().min_by_key(|candidate| candidate.get()) else {
            break;
        };
        let rank = best.get();
        if let Some(here) = rest.first() {
            here.swap(best);
            here.set(number_at(rank & places));
        }
        let left = rest.get(1..).unwrap_or_default();
        if rank & NEXT_ROUND != 0 {
            // Every port gave one.
            for other in left {
                other.set(other.get() & !NEXT_ROUND);
            }
        }
        let Some((number, slot)) = slot_of(rank) else {
            continue;
        };
        let peers = slot.peers();
        if peers != bit(number) {
            for other in left {
                if let Some((number, _)) = slot_of(other.get())
                    && bit(number) & peers != 0
                {
                    other.set(other.get() | NEXT_ROUND);
                }
            }
        }
    }
    choice.truncate(most);
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicBool, AtomicU64};

    use super::*;
    use crate::copy_channel::ChannelLimits;
    use crate::shared::slot::SharedLimits;

    const NEAR: Option<u16> = Some(1);
    const FAR: Option<u16> = Some(0);

    /// Channels by their port and node, in PCI order.
    fn slots(of: &[(u32, Option<u16>)]) -> std::vec::Vec<ChannelSlot<()>> {
        let slot = |(number, &(port, node)): (usize, &(u32, Option<u16>))| {
            let mut limits = ChannelLimits::new(1 << 20, 32);
            (limits.port, limits.node) = (Some(port), node);
            let peers = of.iter().enumerate();
            let peers = peers.filter(|(_, other)| other.0 == port);
            let peers = peers.fold(0, |set, (other, _)| set | bit(other));
            assert!(peers & bit(number) != 0);
            ChannelSlot {
                channel: (),
                limits: SharedLimits::new(limits),
                load_bytes: AtomicU64::new(0),
                active: AtomicBool::new(true),
                peers: AtomicU64::new(peers),
            }
        };
        of.iter().enumerate().map(slot).collect()
    }

    /// Two functions on each port, half of the ports on either node.
    fn pairs() -> std::vec::Vec<ChannelSlot<()>> {
        let all: std::vec::Vec<_> = (0..16)
            .map(|n| (n / 2, if n < 8 { FAR } else { NEAR }))
            .collect();
        slots(&all)
    }

    fn picked(slots: &[ChannelSlot<()>], first: usize, most: usize) -> std::vec::Vec<usize> {
        let mut choice = Choice::<16>::new();
        pick(slots, first, most, (NEAR, None), &mut choice);
        choice.iter().copied().collect()
    }

    fn ports(slots: &[ChannelSlot<()>], numbers: &[usize]) -> std::vec::Vec<u32> {
        let port = |&number: &usize| slots[number].limits.port().unwrap();
        let mut ports: std::vec::Vec<u32> = numbers.iter().map(port).collect();
        ports.sort_unstable();
        ports
    }

    #[test]
    fn each_port_gives_one_before_any_gives_two_and_near_ones_come_first() {
        let slots = pairs();
        for first in 0..16 {
            let eight = picked(&slots, first, 8);
            assert_eq!(ports(&slots, &eight), [0, 1, 2, 3, 4, 5, 6, 7]);
            assert_eq!(ports(&slots, &eight[..4]), [4, 5, 6, 7]);
            let twelve = picked(&slots, first, 12);
            assert_eq!(ports(&slots, &twelve[8..]), [4, 5, 6, 7]);
            let mut all = picked(&slots, first, 16);
            all.sort_unstable();
            assert_eq!(all, (0..16).collect::<std::vec::Vec<_>>());
        }
    }

    #[test]
    fn rounds_go_on_where_ports_are_unequal() {
        // Four on the first port, one on each other one.
        let slots = slots(&[
            (0, None),
            (0, None),
            (0, None),
            (0, None),
            (1, None),
            (2, None),
        ]);
        for first in 0..6 {
            let four = picked(&slots, first, 4);
            assert_eq!(ports(&slots, &four), [0, 0, 1, 2], "{four:?}");
            let five = picked(&slots, first, 5);
            assert_eq!(ports(&slots, &five), [0, 0, 0, 1, 2], "{five:?}");
        }
    }

    #[test]
    fn an_idle_channel_beats_a_busy_one_and_an_idle_port_a_busy_one() {
        let slots = slots(&[(0, None), (0, None), (1, None), (1, None)]);
        slots[0]
            .load_bytes
            .store(1 << 20, core::sync::atomic::Ordering::Relaxed);
        for first in 0..4 {
            let two = picked(&slots, first, 2);
            assert!(two[0] >= 2, "{two:?}");
            assert_eq!(two[1], 1);
        }
        // Loads over what a rank can tell apart are equal, and no other field suffers.
        for slot in &slots {
            slot.load_bytes
                .store(u64::MAX, core::sync::atomic::Ordering::Relaxed);
        }
        assert_eq!(ports(&slots, &picked(&slots, 1, 2)), [0, 1]);
    }

    #[test]
    fn channels_out_of_service_are_passed_over() {
        let slots = pairs();
        for gone in [0, 2, 4, 6, 8, 10, 12, 14] {
            slots[gone]
                .active
                .store(false, core::sync::atomic::Ordering::Relaxed);
        }
        let mut eight = picked(&slots, 5, 16);
        eight.sort_unstable();
        assert_eq!(eight, [1, 3, 5, 7, 9, 11, 13, 15]);
    }
}
