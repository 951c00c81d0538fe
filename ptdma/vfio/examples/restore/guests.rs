//! The snapshot, the image, and guests made from them.

use std::ops::Range;

use ptdma_vfio::{
    Access, CopyRange, HUGE_PAGE_LEN_BYTES, Mapping, Memory, Mover, PAGE_LEN_BYTES, PciAddress,
    Setup, Space, Waiting,
};

type Failure = Box<dyn std::error::Error>;

const GUEST_LEN_BYTES: u64 = 4 << 20;
const PAGES: u64 = GUEST_LEN_BYTES / PAGE_LEN_BYTES;
/// Guests made from one image.
const CLONES: u16 = 2;

/// What it took.
#[derive(Debug, Default)]
struct Tally {
    ranges: usize,
    descriptors: u64,
    doorbells: u64,
    dma_bytes: u64,
    cpu_bytes: u64,
}

/// Who copies.
enum By<'a> {
    Engines(&'a Mover),
    Cpu,
}

/// A range of one memory that belongs at an offset of another one.
struct Part {
    from: u64,
    to: u64,
    len_bytes: u64,
}

impl By<'_> {
    fn name(&self) -> &'static str {
        match self {
            By::Engines(_) => "engines",
            By::Cpu => "cpu",
        }
    }

    fn copy(
        &self,
        from: &Mapping,
        to: &Mapping,
        parts: &[Part],
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        tally.ranges += parts.len();
        match self {
            By::Engines(mover) => {
                let list = parts
                    .iter()
                    .map(|part| CopyRange::new(from, part.from, to, part.to, part.len_bytes))
                    .collect::<Result<Vec<_>, _>>()?;
                let copied = mover.copy(&list, Waiting::Asleep)?;
                if !copied.is_complete() {
                    return Err(format!("not all was copied: {:?}", copied.report).into());
                }
                tally.descriptors += copied.report.descriptors;
                tally.doorbells += copied.report.doorbells;
                tally.dma_bytes += copied.report.dma_bytes;
            }
            By::Cpu => {
                let mut page = [0; PAGE_LEN_BYTES as usize];
                for part in parts {
                    for at in (0..part.len_bytes).step_by(PAGE_LEN_BYTES as usize) {
                        from.read(part.from + at, &mut page)?;
                        to.write(part.to + at, &page)?;
                        tally.cpu_bytes += PAGE_LEN_BYTES;
                    }
                }
            }
        }
        Ok(())
    }
}

fn bytes_of(memory: &Memory) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; memory.len_bytes() as usize];
    memory.read(0, &mut bytes)?;
    Ok(bytes)
}

/// Bytes in which each word is another one.
fn content(len_bytes: u64, seed: u64) -> Vec<u8> {
    (0..len_bytes / 8)
        .flat_map(|word| {
            (word ^ seed)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .to_ne_bytes()
        })
        .collect()
}

/// The runs of pages that a guest had in use: of growing length, with gaps of one page to seven.
fn runs_in_use() -> Vec<Range<u64>> {
    let mut runs = Vec::new();
    let mut page = 1;
    for n in 0.. {
        let end = page + 1 + n % 17;
        if end > PAGES {
            break;
        }
        runs.push(page..end);
        page = end + 1 + n % 7;
    }
    runs
}

/// Has a packed snapshot unpacked into new memory.
fn restore(space: &Space, by: &By<'_>, seed: u64) -> Result<Tally, Failure> {
    let runs = runs_in_use();
    let used: u64 = runs.iter().map(|run| run.end - run.start).sum();
    let packed = content(used * PAGE_LEN_BYTES, seed);
    let file = Memory::memfd("snapshot", used * PAGE_LEN_BYTES)?;
    file.write(0, &packed)?;
    let snapshot = space.map_for(file, Access::Read)?;
    let guest = space.map(Memory::memfd("guest", GUEST_LEN_BYTES)?)?;

    let mut from = 0;
    let mut parts = Vec::new();
    for run in &runs {
        let len_bytes = (run.end - run.start) * PAGE_LEN_BYTES;
        parts.push(Part {
            from,
            to: run.start * PAGE_LEN_BYTES,
            len_bytes,
        });
        from += len_bytes;
    }
    let mut tally = Tally::default();
    by.copy(&snapshot, &guest, &parts, &mut tally)?;

    // Built by itself, page by page, not from the list under test.
    let mut expected = vec![0; GUEST_LEN_BYTES as usize];
    let page_len = PAGE_LEN_BYTES as usize;
    let pages = runs.into_iter().flatten();
    for (page, bytes) in pages.zip(packed.chunks_exact(page_len)) {
        let at = page as usize * page_len;
        expected[at..at + page_len].copy_from_slice(bytes);
    }
    // As the guest sees it: by a mapping of its own.
    let seen = guest.again()?.ok_or("no file")?;
    if bytes_of(&seen)? != expected {
        return Err("the restored guest differs from its snapshot".into());
    }
    Ok(tally)
}

/// Makes guests from one image; each writes to its own memory afterwards.
fn clone(space: &Space, by: &By<'_>, seed: u64) -> Result<Tally, Failure> {
    let golden = content(GUEST_LEN_BYTES, seed);
    let file = Memory::memfd("image", GUEST_LEN_BYTES)?;
    file.write(0, &golden)?;
    let image = space.map_for(file, Access::Read)?;
    let parts: Vec<Part> = (0..GUEST_LEN_BYTES)
        .step_by(HUGE_PAGE_LEN_BYTES as usize)
        .map(|at| Part {
            from: at,
            to: at,
            len_bytes: HUGE_PAGE_LEN_BYTES,
        })
        .collect();
    let mut tally = Tally::default();
    let mut guests = Vec::new();
    for number in 0..CLONES {
        let memory = Memory::memfd("guest", GUEST_LEN_BYTES)?.on_node(number % 2)?;
        let guest = space.map(memory)?;
        by.copy(&image, &guest, &parts, &mut tally)?;
        guests.push(guest);
    }
    for (number, guest) in (0_u64..).zip(&guests) {
        let seen = guest.again()?.ok_or("no file")?;
        if bytes_of(&seen)? != golden {
            return Err("a clone differs from its image".into());
        }
        seen.write(number * PAGE_LEN_BYTES, &[0xff; PAGE_LEN_BYTES as usize])?;
    }
    // Each guest's write is its own.
    for (number, guest) in (0_usize..).zip(&guests) {
        let mut expected = golden.clone();
        let at = number * PAGE_LEN_BYTES as usize;
        expected[at..at + PAGE_LEN_BYTES as usize].fill(0xff);
        if bytes_of(guest)? != expected {
            return Err("a clone has what another one wrote".into());
        }
    }
    if bytes_of(&image)? != golden {
        return Err("the image was changed".into());
    }
    Ok(tally)
}

pub(crate) fn restore_and_clone(addresses: &[PciAddress]) -> Result<(), Failure> {
    let space = Space::new()?;
    let mover = Mover::open_in(&space, addresses, Setup::default())?;
    for by in [By::Engines(&mover), By::Cpu] {
        for what in ["restore", "clone"] {
            let tally = match what {
                "restore" => restore(&space, &by, 1)?,
                _ => clone(&space, &by, 2)?,
            };
            println!(
                "by={} what={what} ranges={} descriptors={} doorbells={} dma_bytes={} \
                 cpu_bytes={}",
                by.name(),
                tally.ranges,
                tally.descriptors,
                tally.doorbells,
                tally.dma_bytes,
                tally.cpu_bytes,
            );
        }
    }
    println!("every byte of each guest, snapshot and image was compared");
    mover.close()?;
    Ok(())
}
