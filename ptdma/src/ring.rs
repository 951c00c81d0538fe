//! The descriptor ring: slots, free-running counters, and the head register's meaning.
//!
//! No register is touched here. The counters are shadows: memory that the device can reach is
//! written, never read back.

use core::fmt;
use core::mem::ManuallyDrop;

use crate::addr::{DmaAddr, DmaRange, RangeError};
use crate::cookie::Cookie;
use crate::descriptor::{CommandWord, DESCRIPTOR_LEN_BYTES, Descriptor};
use crate::io::RingMemory;

/// Fewest entries of a ring: one slot always stays empty, so that head == tail means "drained".
pub const MIN_ENTRIES: usize = 2;
/// Most entries of a ring. AMD's DPDK driver runs 8192 (SIZE = 12) on silicon; the SIZE field
/// could say more, but nobody is known to have tried.
pub const MAX_ENTRIES: usize = 8192;

/// A descriptor's size as the head and tail registers count.
const STRIDE_BYTES: u32 = DESCRIPTOR_LEN_BYTES as u32;

/// Why memory cannot serve as a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RingError {
    /// The number of entries is not a power of two from [`MIN_ENTRIES`] to [`MAX_ENTRIES`].
    Entries {
        /// The number that was given.
        entries: usize,
    },
    /// The base is not aligned to the size of the whole ring. AMD's drivers align so: 1 KiB rings
    /// to a page, 256 KiB rings to 256 KiB. The ring then lies within one 4 GiB stretch, of which
    /// head and tail hold the low half.
    Misaligned {
        /// The base that was given.
        base: DmaAddr,
        /// What it has to be a multiple of, in bytes.
        align_bytes: u64,
    },
    /// The base is a multiple of 4 GiB. A reset leaves 0 in head and tail, which would name slot 0
    /// there. Work that was lost would count as done. Take other memory.
    LooksReset {
        /// The base that was given.
        base: DmaAddr,
    },
    /// The ring lies out of the engine's reach.
    Range(RangeError),
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entries { entries } => write!(
                f,
                "{entries} ring entries: must be a power of two from {MIN_ENTRIES} to {MAX_ENTRIES}"
            ),
            Self::Misaligned { base, align_bytes } => {
                write!(f, "ring at {base} is not aligned to {align_bytes:#x} bytes")
            }
            Self::LooksReset { base } => write!(
                f,
                "ring at {base}, a multiple of 4 GiB: head and tail of a function that was reset would name a slot of it; take other memory"
            ),
            Self::Range(e) => write!(f, "ring: {e}"),
        }
    }
}

impl core::error::Error for RingError {}

/// Where the head register says that the engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadPosition {
    /// This many more descriptors are done than were known to be.
    Advanced(u64),
    /// The head is at no slot of this ring, or at one that the engine has not been given.
    Garbage,
}

/// A ring and its free-running counters: `retired <= handed <= issued <= filled`.
///
/// `issued` is what the owner has rung the doorbell for, `handed` what the tail register says. The
/// two differ only while descriptors are run one at a time, after an error.
pub(crate) struct Ring<M> {
    // Not dropped with the ring: an engine that was not proved stopped may still fetch from it.
    memory: ManuallyDrop<M>,
    base_low: u32,
    base_high: u16,
    mask: u64,
    filled: u64,
    issued: u64,
    handed: u64,
    retired: u64,
    /// `retired + mask`, at which `filled` ends: kept, for each submission looks at it.
    full: u64,
}

impl<M: RingMemory> Ring<M> {
    /// Checks the memory; on failure gives it back.
    pub(crate) fn new(memory: M, first: Cookie) -> Result<Self, (RingError, M)> {
        let entries = memory.entries();
        if !(MIN_ENTRIES..=MAX_ENTRIES).contains(&entries) || !entries.is_power_of_two() {
            return Err((RingError::Entries { entries }, memory));
        }
        let base = memory.base();
        // At most 8192 * 32: no overflow.
        let len_bytes = (entries as u64).wrapping_mul(u64::from(STRIDE_BYTES));
        if let Err(e) = DmaRange::new(base, len_bytes) {
            return Err((RingError::Range(e), memory));
        }
        if !base.is_aligned_to(len_bytes) {
            let align_bytes = len_bytes;
            return Err((RingError::Misaligned { base, align_bytes }, memory));
        }
        if base.low() == 0 {
            return Err((RingError::LooksReset { base }, memory));
        }
        let mask = (entries as u64).wrapping_sub(1);
        Ok(Self {
            memory: ManuallyDrop::new(memory),
            base_low: base.low(),
            base_high: base.high(),
            mask,
            filled: first.number(),
            issued: first.number(),
            handed: first.number(),
            retired: first.number(),
            full: first.number().wrapping_add(mask),
        })
    }

    pub(crate) fn base_high(&self) -> u16 {
        self.base_high
    }

    pub(crate) fn log2_entries(&self) -> u32 {
        self.entries().trailing_zeros()
    }

    /// Most descriptors that can be outstanding.
    pub(crate) fn capacity(&self) -> usize {
        self.mask as usize
    }

    /// Slots that can be filled now.
    #[inline]
    pub(crate) fn free(&self) -> usize {
        self.full.wrapping_sub(self.filled) as usize
    }

    /// Entries that the engine walks.
    pub(crate) fn entries(&self) -> usize {
        (self.mask as usize).wrapping_add(1)
    }

    /// Uses the first `entries` only, a power of two. With nothing outstanding.
    pub(crate) fn shorten(&mut self, entries: usize) {
        if entries.is_power_of_two() && entries >= MIN_ENTRIES && entries < self.entries() {
            self.mask = (entries as u64).wrapping_sub(1);
            self.retire_before(self.retired);
        }
    }

    /// Descriptors that the owner has issued and that are not retired.
    #[inline]
    pub(crate) fn in_flight(&self) -> u64 {
        self.issued.wrapping_sub(self.retired)
    }

    /// Descriptors that the engine can reach and that are not retired.
    #[inline]
    pub(crate) fn handed_out(&self) -> u64 {
        self.handed.wrapping_sub(self.retired)
    }

    /// Descriptors filled but not issued.
    #[inline]
    pub(crate) fn unissued(&self) -> u64 {
        self.filled.wrapping_sub(self.issued)
    }

    /// Cookie of the oldest descriptor that is not retired.
    #[inline]
    pub(crate) fn oldest(&self) -> Cookie {
        Cookie::new(self.retired)
    }

    /// Cookie that the next filled descriptor gets.
    #[inline]
    pub(crate) fn next(&self) -> Cookie {
        Cookie::new(self.filled)
    }

    /// Writes a descriptor to the next slot, or `None` if the ring is full.
    #[inline]
    pub(crate) fn fill(&mut self, descriptor: Descriptor) -> Option<Cookie> {
        if self.free() == 0 {
            return None;
        }
        let cookie = self.filled;
        self.memory
            .store((cookie & self.mask) as usize, &descriptor);
        self.filled = cookie.wrapping_add(1);
        Some(Cookie::new(cookie))
    }

    /// Fills slots with what `describe` makes of `items`; returns how many. It ends with the items,
    /// with one of which nothing is made, or with the ring. An item for which there is no slot is
    /// not taken.
    #[inline]
    pub(crate) fn fill_all<T>(
        &mut self,
        mut items: impl Iterator<Item = T>,
        mut describe: impl FnMut(T) -> Option<Descriptor>,
    ) -> usize {
        let (first, mask, full) = (self.filled, self.mask, self.full);
        let mut filled = first;
        while filled != full {
            let Some(descriptor) = items.next().and_then(&mut describe) else {
                break;
            };
            self.memory.store((filled & mask) as usize, &descriptor);
            filled = filled.wrapping_add(1);
        }
        self.filled = filled;
        filled.wrapping_sub(first) as usize
    }

    /// Writes the same descriptor to every slot. With nothing outstanding.
    pub(crate) fn fill_whole(&mut self, descriptor: Descriptor) {
        for slot in 0..self.entries() {
            self.memory.store(slot, &descriptor);
        }
        self.memory.publish();
    }

    /// Makes the slot of a descriptor that is not issued interrupt on completion.
    pub(crate) fn flag(&mut self, cookie: Cookie) {
        if cookie.number().wrapping_sub(self.issued) < self.unissued() {
            let slot = cookie.number() & self.mask;
            self.memory
                .store_command(slot as usize, CommandWord::COPY_IOC);
        }
    }

    /// Makes the newest slot interrupt on completion. Only while it is not issued.
    pub(crate) fn flag_newest(&mut self) {
        if self.unissued() > 0 {
            let slot = self.filled.wrapping_sub(1) & self.mask;
            self.memory
                .store_command(slot as usize, CommandWord::COPY_IOC);
        }
    }

    /// Orders the stores before the doorbell and returns what to write to the tail register.
    #[inline]
    pub(crate) fn issue(&mut self) -> u32 {
        self.memory.publish();
        self.issued = self.filled;
        self.handed = self.filled;
        self.register_value(self.issued)
    }

    /// Counts everything filled as issued, without handing it to the engine.
    pub(crate) fn issue_later(&mut self) {
        self.memory.publish();
        self.issued = self.filled;
    }

    /// Takes everything back that the engine was given and that is not retired.
    pub(crate) fn rewind(&mut self) {
        self.handed = self.retired;
    }

    /// Hands the oldest descriptor to the engine, alone, and returns the tail that says so. With
    /// `interrupt` the descriptor interrupts when it completed.
    pub(crate) fn hand_one(&mut self, interrupt: bool) -> u32 {
        if interrupt {
            let slot = self.retired & self.mask;
            self.memory
                .store_command(slot as usize, CommandWord::COPY_IOC);
        }
        self.memory.publish();
        self.handed = self.retired.wrapping_add(self.in_flight().min(1));
        self.register_value(self.handed)
    }

    /// Hands everything issued to the engine, and returns the tail that says so.
    pub(crate) fn hand_all(&mut self) -> u32 {
        self.memory.publish();
        self.handed = self.issued;
        self.register_value(self.handed)
    }

    /// Low half of the bus address of the slot of descriptor `number`.
    #[inline]
    fn register_value(&self, number: u64) -> u32 {
        let slot = (number & self.mask) as u32;
        self.base_low.wrapping_add(slot.wrapping_mul(STRIDE_BYTES))
    }

    /// Register value of the slot of the oldest descriptor that is not retired.
    pub(crate) fn oldest_register_value(&self) -> u32 {
        self.register_value(self.retired)
    }

    /// Register value of the tail as last written.
    pub(crate) fn handed_register_value(&self) -> u32 {
        self.register_value(self.handed)
    }

    /// Register value of a slot.
    pub(crate) fn slot_register_value(&self, slot: usize) -> u32 {
        self.register_value(slot as u64)
    }

    /// The slot that a register value names.
    pub(crate) fn slot_of(&self, register: u32) -> Option<usize> {
        let offset = register.wrapping_sub(self.base_low);
        let slot = offset / STRIDE_BYTES;
        let is_slot = offset.is_multiple_of(STRIDE_BYTES) && u64::from(slot) <= self.mask;
        is_slot.then_some(slot as usize)
    }

    /// A descriptor that copies the slot `from` of the ring to the slot `to`.
    pub(crate) fn copy_of_slot(&self, command: CommandWord, from: u64, to: u64) -> Descriptor {
        let addr = |number: u64| {
            let high = u64::from(self.base_high) << 32;
            DmaAddr::new(high | u64::from(self.register_value(number)))
        };
        Descriptor::copy(command, addr(from), addr(to), STRIDE_BYTES)
    }

    /// A descriptor for the next slot that copies it to the slot behind it, in which the engine of
    /// an idle ring has no business.
    pub(crate) fn copy_of_next(&self, command: CommandWord) -> Descriptor {
        self.copy_of_slot(command, self.filled, self.filled.wrapping_add(1))
    }

    /// Register value of the slot where filling goes on.
    pub(crate) fn next_register_value(&self) -> u32 {
        self.register_value(self.filled)
    }

    /// What a head register value means against the counters. That of a function which was reset
    /// behind our back (by firmware, by its link) is 0, and no slot.
    #[inline]
    pub(crate) fn locate(&self, head: u32) -> HeadPosition {
        let offset = head.wrapping_sub(self.base_low);
        let slot = u64::from(offset / STRIDE_BYTES);
        if !offset.is_multiple_of(STRIDE_BYTES) || slot > self.mask {
            return HeadPosition::Garbage;
        }
        let advanced = slot.wrapping_sub(self.retired) & self.mask;
        if advanced > self.handed_out() {
            return HeadPosition::Garbage;
        }
        HeadPosition::Advanced(advanced)
    }

    /// Retires `count` descriptors, at most those handed out.
    #[inline]
    pub(crate) fn retire(&mut self, count: u64) {
        self.retire_before(self.retired.wrapping_add(count.min(self.handed_out())));
    }

    #[inline]
    fn retire_before(&mut self, number: u64) {
        self.retired = number;
        self.full = number.wrapping_add(self.mask);
    }

    /// Forgets everything outstanding, issued or not; filling goes on in the next slot. Returns
    /// how many descriptors that were.
    pub(crate) fn drop_outstanding(&mut self) -> u64 {
        let dropped = self.filled.wrapping_sub(self.retired);
        self.issued = self.filled;
        self.handed = self.filled;
        self.retire_before(self.filled);
        dropped
    }

    /// Gives the memory back. The caller has proved that the engine does not fetch from it.
    pub(crate) fn into_memory(self) -> M {
        ManuallyDrop::into_inner(self.memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) struct FakeMemory {
        pub(crate) base: u64,
        pub(crate) slots: std::vec::Vec<Option<Descriptor>>,
    }

    impl RingMemory for FakeMemory {
        fn base(&self) -> DmaAddr {
            DmaAddr::new(self.base)
        }
        fn entries(&self) -> usize {
            self.slots.len()
        }
        fn store(&mut self, slot: usize, descriptor: &Descriptor) {
            self.slots[slot] = Some(*descriptor);
        }
        fn store_command(&mut self, slot: usize, command: CommandWord) {
            if let Some(descriptor) = &mut self.slots[slot] {
                descriptor.command.set(command.bits());
            }
        }
        fn publish(&mut self) {}
    }

    fn memory(base: u64, entries: usize) -> FakeMemory {
        FakeMemory {
            base,
            slots: std::vec![None; entries],
        }
    }

    fn descriptor(n: u32) -> Descriptor {
        Descriptor::copy(
            crate::descriptor::CommandWord::COPY,
            DmaAddr::new(0),
            DmaAddr::new(0x1000),
            n,
        )
    }

    fn error(base: u64, entries: usize) -> RingError {
        match Ring::new(memory(base, entries), Cookie::new(0)) {
            Ok(_) => panic!("ring of {entries} at {base:#x} was accepted"),
            Err((e, _)) => e,
        }
    }

    #[test]
    fn bad_memory_is_refused() {
        for entries in [0, 1, 3, 31, 16384] {
            assert_eq!(error(1 << 20, entries), RingError::Entries { entries });
        }
        assert!(matches!(
            error(512, 32),
            RingError::Misaligned {
                align_bytes: 1024,
                ..
            }
        ));
        assert!(matches!(error(1 << 48, 32), RingError::Range(_)));
        for base in [0, 1 << 32, 3 << 32] {
            let base = DmaAddr::new(base);
            assert_eq!(error(base.get(), 32), RingError::LooksReset { base });
        }
        for entries in [2, 32, 8192] {
            let Ok(ring) = Ring::new(memory(0xf_0010_0000, entries), Cookie::new(0)) else {
                panic!("ring of {entries} was refused")
            };
            drop(ring.into_memory());
        }
    }

    /// All states of a small ring, across the wrap of the 64-bit counters. Every head value means
    /// what it should, and every other value is garbage.
    #[test]
    fn head_is_located_exactly_in_every_state() {
        // Miri is slow, and looks for other mistakes.
        let sizes: &[usize] = if cfg!(miri) { &[2, 4] } else { &[2, 4, 8] };
        for &entries in sizes {
            let n = entries as u64;
            for start in (u64::MAX - 2 * n..=u64::MAX).chain(0..2 * n) {
                for fly in 0..n {
                    let Ok(mut ring) = Ring::new(memory(0xffff_ff00, entries), Cookie::new(start))
                    else {
                        panic!("ring refused")
                    };
                    for i in 0..fly {
                        assert_eq!(
                            ring.fill(descriptor(i as u32 + 1)),
                            Some(Cookie::new(start.wrapping_add(i)))
                        );
                    }
                    ring.issue();
                    assert_eq!(ring.in_flight(), fly);
                    for slot in 0..n {
                        let head = 0xffff_ff00_u32 + slot as u32 * 32;
                        let advanced = slot.wrapping_sub(start) & (n - 1);
                        let expected = if advanced <= fly {
                            HeadPosition::Advanced(advanced)
                        } else {
                            HeadPosition::Garbage
                        };
                        assert_eq!(ring.locate(head), expected);
                        assert_eq!(ring.locate(head + 1), HeadPosition::Garbage);
                    }
                    assert_eq!(
                        ring.locate(0xffff_ff00_u32.wrapping_add(32 * entries as u32)),
                        HeadPosition::Garbage
                    );
                    assert_eq!(ring.locate(0), HeadPosition::Garbage);
                    assert_eq!(ring.locate(u32::MAX), HeadPosition::Garbage);
                    drop(ring.into_memory());
                }
            }
        }
    }

    #[test]
    fn full_means_one_slot_left() {
        let Ok(mut ring) = Ring::new(memory(0x1000, 4), Cookie::new(0)) else {
            panic!("ring refused")
        };
        for i in 0..3 {
            assert!(ring.fill(descriptor(i + 1)).is_some());
        }
        assert_eq!((ring.free(), ring.fill(descriptor(9))), (0, None));
        assert_eq!(ring.issue(), 0x1000 + 3 * 32);
        ring.retire(2);
        assert_eq!((ring.free(), ring.in_flight()), (2, 1));
        ring.retire(99);
        assert_eq!((ring.free(), ring.in_flight()), (3, 0));
        drop(ring.into_memory());
    }
}
