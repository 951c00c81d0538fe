//! One guest's memory copied to another's, both as rust-vmm's `vm-memory` has them.

use ptdma_vfio::{Access, Error, Mover, Space, Waiting};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::Failure;

const MIB: usize = 1 << 20;
/// Regions with a hole between them, as below and above the window of PCI; those of the second
/// guest end elsewhere, so that ranges are split on either side.
const FROM: [(u64, usize); 3] = [(0, MIB), (MIB as u64, 2 * MIB), (1 << 32, MIB)];
const TO: [(u64, usize); 3] = [(0, 2 * MIB), (2 * MIB as u64, MIB), (1 << 32, MIB)];
/// What is copied: by guest-physical address, from and to, and how many bytes.
const COPIES: [(u64, u64, u64); 4] = [
    // Across the ends of regions on both sides.
    (0x8_0000, 0x8_0000, 2 * MIB as u64),
    // To another address, at odd offsets.
    (0x2_8001, 0x2a_8003, 12_345),
    ((1 << 32) + 0x1000, (1 << 32) + 0x9000, 0x4000),
    (0x1000, (1 << 32) + 0x8_0000, 0x1000),
];

fn guest(regions: &[(u64, usize)]) -> Result<GuestMemoryMmap<()>, Failure> {
    let regions: Vec<_> = regions
        .iter()
        .map(|(start, len)| (GuestAddress(*start), *len))
        .collect();
    Ok(GuestMemoryMmap::from_ranges(&regions)?)
}

/// Fills a guest with bytes that follow from their place.
fn fill(guest: &GuestMemoryMmap<()>, regions: &[(u64, usize)], salt: u8) -> Result<(), Failure> {
    for (start, len) in regions {
        let bytes: Vec<u8> = (*start..).take(*len).map(|at| byte(at, salt)).collect();
        guest.write_slice(&bytes, GuestAddress(*start))?;
    }
    Ok(())
}

fn byte(at: u64, salt: u8) -> u8 {
    let mixed = at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8 ^ salt
}

pub(crate) fn copy(space: &Space, mover: &Mover, waiting: Waiting) -> Result<String, Failure> {
    let (old, new) = (guest(&FROM)?, guest(&TO)?);
    fill(&old, &FROM, 0)?;
    fill(&new, &TO, 0xff)?;
    let from = space.map_guest(&old, Access::Read)?;
    let to = space.map_guest(&new, Access::ReadWrite)?;
    let mut ranges = 0;
    let mut list = Vec::new();
    for (source, target, len_bytes) in COPIES {
        let parts = from.ranges_to(GuestAddress(source), &to, GuestAddress(target), len_bytes)?;
        ranges += parts.len();
        list.extend(parts);
    }
    // The first is split where the old guest's first region ends, and where the new one's does.
    if ranges != COPIES.len() + 2 {
        return Err(format!("{ranges} ranges").into());
    }
    let copied = mover.copy(&list, waiting)?;
    if !copied.is_complete() {
        return Err(format!("not all was copied: {:?}", copied.outcomes).into());
    }
    drop(list);
    for (start, len) in [(3 * MIB as u64 - 1, 2), (u64::MAX, 2), (1 << 31, 1)] {
        match from.ranges_to(GuestAddress(start), &to, GuestAddress(0), len) {
            Err(Error::OutOfBounds { .. }) => {}
            other => return Err(format!("a hole at {start:#x}: {other:?}").into()),
        }
    }
    if !matches!(
        to.ranges_to(GuestAddress(0), &from, GuestAddress(0), 1),
        Err(Error::ReadOnly)
    ) {
        return Err("a guest that is mapped for reading can be written".into());
    }
    from.unmap()?;
    to.unmap()?;

    // Byte for byte, the rest of the new guest too.
    let mut compared = 0;
    for (start, len) in TO {
        let mut bytes = vec![0; len];
        new.read_slice(&mut bytes, GuestAddress(start))?;
        for (at, is) in (start..).zip(bytes) {
            // The last copy wins; they do not overlap.
            let source = COPIES.iter().find_map(|(source, target, len)| {
                (*target..*target + *len)
                    .contains(&at)
                    .then(|| *source + (at - *target))
            });
            let wanted = source.map_or_else(|| byte(at, 0xff), |at| byte(at, 0));
            if is != wanted {
                return Err(format!("the byte at {at:#x} is {is:#x}, not {wanted:#x}").into());
            }
            compared += 1;
        }
    }
    for (start, len) in FROM {
        let mut bytes = vec![0; len];
        old.read_slice(&mut bytes, GuestAddress(start))?;
        if (start..).zip(bytes).any(|(at, is)| is != byte(at, 0)) {
            return Err("the old guest was changed".into());
        }
    }
    let regions = old.num_regions() + new.num_regions();
    Ok(format!(
        "regions={regions} ranges={ranges} compared={compared} dma_bytes={}",
        copied.report.dma_bytes
    ))
}
