//! The processors of the machine, from ACPI's tables (RSDP, RSDT or XSDT, MADT).
//!
//! All is read through a closure that gives bytes of physical memory, so that tests bring their
//! own memory.

/// What is wrong with the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no root pointer where the loader said.
    NoRoot,
    /// There is no MADT.
    NoMadt,
    /// The bytes of a table do not add up to 0.
    Checksum,
    /// A table is longer than any sensible one.
    TooLong,
}

/// Longest table that is read: machines of 512 processors have some 8 KiB.
const MAX_TABLE_LEN: u64 = 64 << 10;
/// Header of every table.
const HEADER_LEN: u64 = 36;
/// Where the MADT's entries begin.
const MADT_ENTRIES: u64 = 44;
/// A processor with its local APIC.
const LOCAL_APIC: u8 = 0;

/// Reads little-endian numbers of physical memory.
struct Memory<F>(F);

impl<F: Fn(u64) -> u8> Memory<F> {
    fn number(&self, at: u64, len: u64) -> u64 {
        (0..len).fold(0, |number, byte| {
            number | u64::from((self.0)(at.wrapping_add(byte))) << (8 * byte)
        })
    }

    fn has(&self, at: u64, text: &[u8]) -> bool {
        (at..).zip(text).all(|(at, byte)| (self.0)(at) == *byte)
    }

    fn adds_up(&self, at: u64, len: u64) -> bool {
        (0..len).fold(0_u8, |sum, byte| {
            sum.wrapping_add((self.0)(at.wrapping_add(byte)))
        }) == 0
    }

    /// Length of a table that is in order.
    fn table(&self, at: u64) -> Result<u64, Error> {
        let len = self.number(at + 4, 4);
        if len > MAX_TABLE_LEN {
            return Err(Error::TooLong);
        }
        if len < HEADER_LEN || !self.adds_up(at, len) {
            return Err(Error::Checksum);
        }
        Ok(len)
    }
}

/// Hands out the number of the local APIC of every processor that can be started.
///
/// # Errors
///
/// [`Error`], if the tables do not say.
pub fn processors(
    root: u64,
    byte: impl Fn(u64) -> u8,
    mut each: impl FnMut(u8),
) -> Result<(), Error> {
    /// The first 20 bytes are the same in all revisions.
    const ROOT_LEN: u64 = 20;
    let memory = Memory(byte);
    if !memory.has(root, b"RSD PTR ") || !memory.adds_up(root, ROOT_LEN) {
        return Err(Error::NoRoot);
    }
    let (list, width) = match memory.number(root + 15, 1) {
        0 | 1 => (memory.number(root + 16, 4), 4),
        _ => (memory.number(root + 24, 8), 8),
    };
    let end = list + memory.table(list)?;
    let mut at = list + HEADER_LEN;
    while at + width <= end {
        let table = memory.number(at, width);
        if memory.has(table, b"APIC") {
            return madt(&memory, table, &mut each);
        }
        at += width;
    }
    Err(Error::NoMadt)
}

fn madt<F: Fn(u64) -> u8>(
    memory: &Memory<F>,
    table: u64,
    each: &mut impl FnMut(u8),
) -> Result<(), Error> {
    /// Enabled, or can be.
    const USABLE: u64 = 1;
    let end = table + memory.table(table)?;
    let mut at = table + MADT_ENTRIES;
    while at + 2 <= end {
        let (kind, len) = (memory.number(at, 1) as u8, memory.number(at + 1, 1));
        // An entry of length 0 would never end the walk.
        if len < 2 {
            break;
        }
        if kind == LOCAL_APIC && memory.number(at + 4, 4) & USABLE != 0 {
            each(memory.number(at + 3, 1) as u8);
        }
        at += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    fn sum(memory: &mut [u8], at: usize, len: usize, place: usize) {
        memory[at + place] = 0;
        let sum = memory[at..at + len]
            .iter()
            .fold(0_u8, |s, b| s.wrapping_add(*b));
        memory[at + place] = sum.wrapping_neg();
    }

    fn table(memory: &mut [u8], at: usize, name: &[u8; 4], body: &[u8]) {
        let len = 36 + body.len();
        memory[at..at + 4].copy_from_slice(name);
        memory[at + 4..at + 8].copy_from_slice(&(len as u32).to_le_bytes());
        memory[at + 36..at + len].copy_from_slice(body);
        sum(memory, at, len, 9);
    }

    /// Three processors, of which one cannot be used; another table comes first.
    fn machine() -> Vec<u8> {
        let mut memory = vec![0; 1024];
        memory[16..24].copy_from_slice(b"RSD PTR ");
        memory[32..36].copy_from_slice(&100_u32.to_le_bytes());
        sum(&mut memory, 16, 20, 8);
        table(&mut memory, 100, b"RSDT", &[200, 0, 0, 0, 44, 1, 0, 0]);
        table(&mut memory, 200, b"FACP", &[]);
        let mut body = vec![0; 8];
        for (apic, usable) in [(0, 1), (7, 0), (2, 1)] {
            body.extend([LOCAL_APIC, 8, 0, apic, usable, 0, 0, 0]);
        }
        body.extend([1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        table(&mut memory, 300, b"APIC", &body);
        memory
    }

    fn found(memory: &[u8]) -> Result<Vec<u8>, Error> {
        let mut found = Vec::new();
        let byte = |at: u64| memory.get(at as usize).copied().unwrap_or(0xff);
        processors(16, byte, |apic| found.push(apic)).map(|()| found)
    }

    #[test]
    fn usable_processors_are_found() {
        assert_eq!(found(&machine()), Ok(vec![0, 2]));
    }

    #[test]
    fn tables_that_are_out_of_order_are_told() {
        let broken = |at: usize, value: u8| {
            let mut memory = machine();
            memory[at] = value;
            found(&memory)
        };
        assert_eq!(broken(16, b'X'), Err(Error::NoRoot));
        assert_eq!(broken(100 + 9, 1), Err(Error::Checksum));
        assert_eq!(broken(300 + 50, 9), Err(Error::Checksum));
        assert_eq!(broken(100 + 7, 1), Err(Error::TooLong));
        let mut memory = machine();
        table(&mut memory, 100, b"RSDT", &[200, 0, 0, 0]);
        assert_eq!(found(&memory), Err(Error::NoMadt));
    }

    #[test]
    fn an_entry_without_a_length_ends_the_walk() {
        let mut memory = machine();
        memory[300 + 45] = 0;
        sum(&mut memory, 300, 36 + 8 + 24 + 12, 9);
        assert_eq!(found(&memory), Ok(vec![]));
    }
}
