//! Why pages migrate, and which of these reasons may use engines.

use core::fmt;

use bitflags::bitflags;

bitflags! {
    /// A set of reasons. Bit `n` stands for value `n` of the kernel's `enum migrate_reason`
    /// (`include/linux/migrate_mode.h`; the same ten values, in the same order, in 6.12 and 7.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Reasons: u32 {
        /// Making large free blocks.
        const COMPACTION = 1 << 0;
        /// Moving data off memory that fails.
        const MEMORY_FAILURE = 1 << 1;
        /// Emptying memory that is to be unplugged.
        const MEMORY_HOTPLUG = 1 << 2;
        /// `move_pages` and its like.
        const SYSCALL = 1 << 3;
        /// `mbind` and changes of memory policy.
        const MEMPOLICY_MBIND = 1 << 4;
        /// NUMA balancing.
        const NUMA_MISPLACED = 1 << 5;
        /// Making room for a contiguous allocation.
        const CONTIG_RANGE = 1 << 6;
        /// Moving pages out of movable memory before a long-term pin.
        const LONGTERM_PIN = 1 << 7;
        /// Moving cold pages to slower memory.
        const DEMOTION = 1 << 8;
        /// On behalf of the data access monitor.
        const DAMON = 1 << 9;
    }
}

/// Names of the reasons, as users write them.
const NAMES: [(&str, Reasons); 10] = [
    ("compaction", Reasons::COMPACTION),
    ("memory_failure", Reasons::MEMORY_FAILURE),
    ("memory_hotplug", Reasons::MEMORY_HOTPLUG),
    ("syscall", Reasons::SYSCALL),
    ("mempolicy_mbind", Reasons::MEMPOLICY_MBIND),
    ("numa_misplaced", Reasons::NUMA_MISPLACED),
    ("contig_range", Reasons::CONTIG_RANGE),
    ("longterm_pin", Reasons::LONGTERM_PIN),
    ("demotion", Reasons::DEMOTION),
    ("damon", Reasons::DAMON),
];

/// A word in a list of reasons names none.
///
/// The fields are closed: the word is all that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownReason<'a> {
    /// The word.
    pub name: &'a str,
}

impl fmt::Display for UnknownReason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no reason to migrate is called `{}`: write all, none, or some of {}",
            self.name,
            Reasons::all()
        )
    }
}

impl core::error::Error for UnknownReason<'_> {}

impl Reasons {
    /// Whether the kernel's reason `value` is in the set. Values without a name are in no set. A
    /// reason that a later kernel invents is left to the CPU until somebody has thought about it.
    #[must_use]
    #[inline]
    pub const fn contains_value(self, value: u32) -> bool {
        value < 32 && self.bits() & Self::all().bits() & (1 << (value & 31)) != 0
    }

    /// The reason with this name.
    #[must_use]
    pub fn from_reason_name(name: &str) -> Option<Self> {
        let mut names = NAMES.iter();
        names.find(|(known, _)| *known == name).map(|(_, bit)| *bit)
    }

    /// Reads a list such as `syscall,demotion`; `all` and `none` are lists too.
    ///
    /// # Errors
    ///
    /// [`UnknownReason`] with the first word that is no reason.
    pub fn from_names(list: &str) -> Result<Self, UnknownReason<'_>> {
        let mut reasons = Self::empty();
        for word in list.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            reasons |= match word {
                "all" => Self::all(),
                "none" => Self::empty(),
                name => Self::from_reason_name(name).ok_or(UnknownReason { name })?,
            };
        }
        Ok(reasons)
    }
}

/// Writes the list that [`Reasons::from_names`] reads.
impl fmt::Display for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut empty = true;
        for (name, _) in NAMES.iter().filter(|(_, bit)| self.contains(*bit)) {
            if !empty {
                f.write_str(",")?;
            }
            f.write_str(name)?;
            empty = false;
        }
        if empty { f.write_str("none") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_the_kernels_values() {
        for (value, (name, bit)) in NAMES.iter().enumerate() {
            assert_eq!(bit.bits(), 1 << value, "{name}");
            assert!(bit.contains_value(value as u32));
            assert!(!Reasons::all().difference(*bit).contains_value(value as u32));
        }
        for unknown in [10, 31, 32, 33, u32::MAX] {
            assert!(!Reasons::all().contains_value(unknown));
            assert!(!Reasons::from_bits_retain(u32::MAX).contains_value(unknown));
        }
    }

    #[test]
    fn names_round_trip() {
        use std::string::ToString;
        // Miri is slow, and looks for other mistakes.
        for bits in (0..1 << 10).step_by(if cfg!(miri) { 37 } else { 1 }) {
            let set = Reasons::from_bits_retain(bits);
            assert_eq!(Reasons::from_names(&set.to_string()), Ok(set));
        }
        assert_eq!(Reasons::from_names("all"), Ok(Reasons::all()));
        assert_eq!(
            Reasons::from_names(" syscall , damon "),
            Ok(Reasons::SYSCALL | Reasons::DAMON)
        );
        assert_eq!(
            Reasons::from_names("syscall,tuesday"),
            Err(UnknownReason { name: "tuesday" })
        );
        assert_eq!(
            UnknownReason { name: "tuesday" }.to_string(),
            "no reason to migrate is called `tuesday`: write all, none, or some of compaction,\
             memory_failure,memory_hotplug,syscall,mempolicy_mbind,numa_misplaced,contig_range,\
             longterm_pin,demotion,damon"
        );
    }
}
