//! What happened, in numbers.

use std::ops::AddAssign;

use ptdma::regs::Register;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// One count per register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegisterCounts([u64; Register::ALL.len()]);

impl RegisterCounts {
    /// The count of one register.
    #[must_use]
    pub fn get(&self, register: Register) -> u64 {
        Self::slot(register).map_or(0, |i| self.0[i])
    }

    /// The sum over all registers.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(crate) fn add(&mut self, register: Register) {
        if let Some(i) = Self::slot(register) {
            self.0[i] += 1;
        }
    }

    fn slot(register: Register) -> Option<usize> {
        Register::ALL.iter().position(|&r| r == register)
    }
}

impl AddAssign for RegisterCounts {
    fn add_assign(&mut self, other: Self) {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a += b;
        }
    }
}

/// As a map from register name to count, without the zeroes.
impl Serialize for RegisterCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (register, count) in Register::ALL.iter().zip(self.0).filter(|(_, n)| *n != 0) {
            map.serialize_entry(&format!("{register:?}"), &count)?;
        }
        map.end()
    }
}

/// Everything that a model counts, since it was made or since the last
/// [`crate::Model::take_counters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// Register reads, unknown offsets included.
    pub mmio_reads: u64,
    /// Register writes, unknown offsets included.
    pub mmio_writes: u64,
    /// Reads by register.
    pub reads: RegisterCounts,
    /// Writes by register.
    pub writes: RegisterCounts,
    /// Accesses to offsets where nothing is known to be, or of a width that is no 32-bit word.
    pub unknown_accesses: u64,
    /// Tail writes.
    pub doorbells: u64,
    /// Control writes with RUN set.
    pub run_writes: u64,
    /// Descriptors that completed.
    pub descriptors: u64,
    /// Bytes of descriptors that completed.
    pub bytes: u64,
    /// Bytes that reached a destination though their descriptor failed.
    pub partial_bytes: u64,
    /// Descriptors that failed; the same one is counted again when it is tried again.
    pub errors: u64,
    /// Interrupt messages sent, the spurious ones included.
    pub interrupts: u64,
    /// Interrupt messages lost to a fault.
    pub interrupts_lost: u64,
    /// Of the messages sent, those that a fault made up.
    pub interrupts_spurious: u64,
    /// Times that the engine drained its ring.
    pub drained: u64,
    /// Descriptors whose source and destination overlapped.
    pub overlaps: u64,
    /// Faults that fired.
    pub faults: u64,
    /// Function resets.
    pub resets: u64,
}

impl Counters {
    /// Register accesses of both kinds.
    #[must_use]
    pub fn mmio(&self) -> u64 {
        self.mmio_reads + self.mmio_writes
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        // Destructured, so that a new field cannot be forgotten.
        let Self {
            mmio_reads,
            mmio_writes,
            reads,
            writes,
            unknown_accesses,
            doorbells,
            run_writes,
            descriptors,
            bytes,
            partial_bytes,
            errors,
            interrupts,
            interrupts_lost,
            interrupts_spurious,
            drained,
            overlaps,
            faults,
            resets,
        } = other;
        self.mmio_reads += mmio_reads;
        self.mmio_writes += mmio_writes;
        self.reads += reads;
        self.writes += writes;
        self.unknown_accesses += unknown_accesses;
        self.doorbells += doorbells;
        self.run_writes += run_writes;
        self.descriptors += descriptors;
        self.bytes += bytes;
        self.partial_bytes += partial_bytes;
        self.errors += errors;
        self.interrupts += interrupts;
        self.interrupts_lost += interrupts_lost;
        self.interrupts_spurious += interrupts_spurious;
        self.drained += drained;
        self.overlaps += overlaps;
        self.faults += faults;
        self.resets += resets;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_names() {
        let mut a = Counters::default();
        a.reads.add(Register::Head);
        a.bytes = 5;
        let mut sum = a;
        sum += a;
        assert_eq!(sum.reads.get(Register::Head), 2);
        assert_eq!(sum.reads.total(), 2);
        let json = serde_json::to_value(sum).unwrap();
        assert_eq!(json["reads"]["Head"], 2);
        assert_eq!(json["bytes"], 10);
        assert_eq!(json["writes"], serde_json::json!({}));
    }
}
