//! Lists of ranges, and the comparison of every byte.

use ptdma_vfio::{CopyRange, Error, Mapping, Memory, Mover, Options, Outcome, Space, Waiting};

use crate::Failure;

/// Source and destination of a list.
pub(crate) struct Pair {
    from: Mapping,
    to: Mapping,
}

/// Kinds of memory, by the names that the suite uses.
fn memory(kind: &str, len_bytes: u64) -> Result<Memory, Error> {
    match kind {
        "huge" => Memory::huge(len_bytes),
        "memfd" => Memory::memfd("vfio-test", len_bytes),
        "memfd-huge" => Memory::memfd_huge("vfio-test", len_bytes),
        _ => Memory::anonymous(len_bytes),
    }
}

/// What cannot be in a destination before it is copied there: `pattern` never has it.
const BEFORE: u8 = 0xff;

/// The source's byte at an offset; a prime period, so that a page in the wrong place differs.
fn pattern(offset: u64, seed: u64) -> u8 {
    ((offset.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 7) % 251) as u8
}

/// A range as numbers.
#[derive(Clone, Copy, Debug)]
struct Part {
    from: u64,
    to: u64,
    len: u64,
}

/// Ranges of many lengths and alignments that fill `size` bytes of a source, in another order in
/// the destination.
fn parts(size: u64) -> Vec<Part> {
    const LENGTHS: [u64; 8] = [4096, 4096, 100, 8192, 1, 65536, 4095, 12288];
    let mut lengths = Vec::new();
    let mut sum = 0;
    for len in LENGTHS.into_iter().cycle() {
        if sum + len > size {
            break;
        }
        lengths.push(len);
        sum += len;
    }
    let mut from = 0;
    let mut parts: Vec<Part> = lengths
        .into_iter()
        .map(|len| {
            let part = Part { from, to: 0, len };
            from += len;
            part
        })
        .collect();
    // Another order: every seventh first, then the next of each seven.
    let count = parts.len();
    let mut to = 0;
    for first in 0..7 {
        for part in parts.iter_mut().take(count).skip(first).step_by(7) {
            part.to = to;
            to += part.len;
        }
    }
    parts
}

/// What a copy came to, compared byte by byte.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) ranges: usize,
    pub(crate) by_engines: usize,
    pub(crate) by_cpu: usize,
    pub(crate) failed: usize,
    pub(crate) not_attempted: usize,
    pub(crate) quarantined: usize,
    pub(crate) bytes: u64,
    pub(crate) channels: usize,
    pub(crate) errors: u64,
    pub(crate) descriptors: u64,
    pub(crate) doorbells: u64,
    first_failure: Option<String>,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "ranges={} engines={} cpu={} failed={} skipped={} quarantined={} bytes={} channels={} \
             errors={} descriptors={} doorbells={} first={}",
            self.ranges,
            self.by_engines,
            self.by_cpu,
            self.failed,
            self.not_attempted,
            self.quarantined,
            self.bytes,
            self.channels,
            self.errors,
            self.descriptors,
            self.doorbells,
            self.first_failure
                .as_deref()
                .unwrap_or("none")
                .replace(' ', "-"),
        )
    }
}

impl Pair {
    pub(crate) fn new(space: &Space, kind: &str, len_bytes: u64) -> Result<Self, Error> {
        Ok(Self {
            from: space.map(memory(kind, len_bytes)?)?,
            to: space.map(memory(kind, len_bytes)?)?,
        })
    }

    /// Where engines find the destination.
    pub(crate) fn target(&self) -> u64 {
        self.to.addr().get()
    }

    fn fill(&self, seed: u64) -> Result<(), Error> {
        let len = self.from.len_bytes();
        let bytes: Vec<u8> = (0..len).map(|offset| pattern(offset, seed)).collect();
        self.from.write(0, &bytes)?;
        self.to.write(0, &vec![BEFORE; bytes.len()])
    }

    /// Fills, copies, compares. What is reported as copied must be right; what lies between ranges
    /// must be as it was.
    pub(crate) fn copy(
        &self,
        mover: &Mover,
        waiting: Waiting,
        options: &Options,
        seed: u64,
    ) -> Result<Verdict, Failure> {
        self.fill(seed)?;
        let parts = parts(self.from.len_bytes());
        let list = parts
            .iter()
            .map(|part| CopyRange::new(&self.from, part.from, &self.to, part.to, part.len))
            .collect::<Result<Vec<_>, _>>()?;
        let copied = mover.copy_with(&list, waiting, options)?;
        let mut verdict = Verdict {
            ranges: list.len(),
            bytes: copied.report.dma_bytes,
            channels: copied.report.channels,
            errors: copied.report.errors,
            descriptors: copied.report.descriptors,
            doorbells: copied.report.doorbells,
            ..Verdict::default()
        };
        let mut all = vec![0; self.to.len_bytes() as usize];
        self.to.read(0, &mut all)?;
        let mut used = 0;
        for (index, (part, outcome)) in parts.iter().zip(&copied.outcomes).enumerate() {
            used = used.max(part.to + part.len);
            let place = part.to as usize..(part.to + part.len) as usize;
            let right = all[place]
                .iter()
                .zip(part.from..)
                .all(|(byte, offset)| *byte == pattern(offset, seed));
            match outcome {
                Outcome::Dma => verdict.by_engines += 1,
                Outcome::Cpu => verdict.by_cpu += 1,
                Outcome::Failed(_) => verdict.failed += 1,
                Outcome::NotAttempted(_) => verdict.not_attempted += 1,
            }
            verdict.quarantined += usize::from(outcome.is_quarantined());
            if !outcome.is_copied() && verdict.first_failure.is_none() {
                verdict.first_failure = Some(outcome.to_string());
            }
            if outcome.is_copied() && !right {
                return Err(format!("range {index} is reported as copied and is wrong").into());
            }
        }
        if all[used as usize..].iter().any(|byte| *byte != BEFORE) {
            return Err("bytes behind all ranges were overwritten".into());
        }
        let complete = verdict.by_engines + verdict.by_cpu == verdict.ranges;
        if complete != copied.is_complete() {
            return Err(format!("the report does not fit: {:?}", copied.report).into());
        }
        Ok(verdict)
    }
}
