//! Memory with folios in it: laid out, filled, and compared with what was reported.

use batch_copy::{CpuCopier, CpuCopyError, Folio, Outcome, Piece};
use ptdma::DmaAddr;
use ptdma_model::{Access, BusBuffer, BusSpace};

/// What destinations hold before a batch. Sources never have this byte.
pub const UNTOUCHED: u8 = 0;

/// Bytes between folios that are not neighbours: an odd distance, so that alignment is not taken
/// for granted, and never touched by anybody.
pub const GAP_LEN_BYTES: usize = 64 + 1;

/// How folios lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Each one by itself.
    Scattered,
    /// Each one behind the one before, on both sides.
    Contiguous,
    /// Runs of so many.
    Runs(usize),
    /// Contiguous at the source, scattered at the destination.
    SourceOnly,
}

impl Layout {
    fn gap_before(self, index: usize) -> (usize, usize) {
        let gap = GAP_LEN_BYTES;
        match self {
            Self::Scattered => (gap, gap),
            Self::Contiguous => (0, 0),
            Self::Runs(len) if index.is_multiple_of(len.max(1)) => (gap, gap),
            Self::Runs(_) => (0, 0),
            Self::SourceOnly => (0, gap),
        }
    }
}

/// The memory of one batch: all sources in one buffer, all destinations in another.
pub struct Memory {
    src: BusBuffer,
    dst: BusBuffer,
    /// The folios, in order.
    pub folios: Vec<Folio>,
    seed: u64,
}

impl Memory {
    /// Folios of the given lengths in bytes.
    ///
    /// # Panics
    ///
    /// If the bus is full.
    #[must_use]
    pub fn new(bus: &BusSpace, lens: &[usize], layout: Layout, seed: u64) -> Self {
        let (mut src_len, mut dst_len) = (0, 0);
        let mut places = Vec::with_capacity(lens.len());
        for (index, len) in lens.iter().enumerate() {
            let (src_gap, dst_gap) = layout.gap_before(index);
            src_len += src_gap;
            dst_len += dst_gap;
            places.push((src_len, dst_len));
            src_len += len;
            dst_len += len;
        }
        let alloc = |len: usize| {
            bus.alloc(len.max(1), 4096, Access::ReadWrite)
                .expect("room on the bus")
        };
        let (src, dst) = (alloc(src_len), alloc(dst_len));
        let at =
            |buffer: &BusBuffer, offset: usize| DmaAddr::new(buffer.addr().get() + offset as u64);
        let folios = places
            .iter()
            .zip(lens)
            .map(|(&(s, d), &len)| Folio::new(at(&src, s), at(&dst, d), len as u64))
            .collect();
        let memory = Self {
            src,
            dst,
            folios,
            seed,
        };
        memory.refill(seed);
        memory
    }

    /// Fills the sources with new data and clears the destinations.
    ///
    /// # Panics
    ///
    /// Never: the buffers are its own.
    pub fn refill(&self, seed: u64) {
        let mut state = seed ^ self.seed ^ 0x9e37_79b9_7f4a_7c15;
        let data: Vec<u8> = (0..self.src.len_bytes().div_ceil(8))
            .flat_map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                // No byte of a source looks untouched.
                (state | 0x0101_0101_0101_0101).to_le_bytes()
            })
            .take(self.src.len_bytes())
            .collect();
        self.src.write(0, &data).expect("own buffer");
        let clear = vec![UNTOUCHED; self.dst.len_bytes()];
        self.dst.write(0, &clear).expect("own buffer");
    }

    /// Takes the memory off the bus.
    ///
    /// # Panics
    ///
    /// If it was taken off before.
    pub fn release(self, bus: &BusSpace) {
        for buffer in [&self.src, &self.dst] {
            bus.unmap(buffer.addr()).expect("was mapped");
        }
    }

    /// Bytes of all folios.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.folios.iter().map(|folio| folio.len_bytes).sum()
    }

    /// The destination as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        self.dst.to_vec()
    }

    /// Compares every byte with what was reported: a folio that is said to be copied is there,
    /// and nothing outside the folios was written.
    ///
    /// # Errors
    ///
    /// What does not hold.
    pub fn verify(&self, outcomes: &[Outcome]) -> Result<(), String> {
        let (src, dst) = (self.src.to_vec(), self.dst.to_vec());
        let mut outside = vec![true; dst.len()];
        for (index, (folio, outcome)) in self.folios.iter().zip(outcomes).enumerate() {
            let len = folio.len_bytes as usize;
            let s = (folio.src.get() - self.src.addr().get()) as usize;
            let d = (folio.dst.get() - self.dst.addr().get()) as usize;
            outside[d..d + len].fill(false);
            if outcome.is_copied() && src[s..s + len] != dst[d..d + len] {
                let at = (0..len).find(|&i| src[s + i] != dst[d + i]);
                return Err(format!(
                    "folio {index} is reported as {outcome:?} but differs at byte {at:?} of {len}"
                ));
            }
        }
        if let Some(at) = (0..dst.len()).find(|&at| outside[at] && dst[at] != UNTOUCHED) {
            return Err(format!("byte {at} outside all folios was written"));
        }
        if outcomes.len() < self.folios.len() {
            return Err("fewer outcomes than folios".into());
        }
        Ok(())
    }

    /// For each folio whether its destination holds the source's bytes.
    ///
    /// # Panics
    ///
    /// If the destination holds neither those nor nothing.
    #[must_use]
    pub fn arrived(&self) -> Vec<bool> {
        let (src, dst) = (self.src.to_vec(), self.dst.to_vec());
        let folios = self.folios.iter().map(|folio| {
            let len = folio.len_bytes as usize;
            let s = (folio.src.get() - self.src.addr().get()) as usize;
            let d = (folio.dst.get() - self.dst.addr().get()) as usize;
            let there = &dst[d..d + len];
            let copied = src[s..s + len] == *there;
            let untouched = there.iter().all(|&byte| byte == UNTOUCHED);
            assert!(copied || untouched, "only a part of a folio arrived");
            copied
        });
        folios.collect()
    }

    /// A CPU that copies in this memory.
    #[must_use]
    pub fn cpu(&self) -> Cpu<'_> {
        Cpu {
            memory: self,
            fail_every: 0,
            calls: 0,
            bytes: 0,
        }
    }
}

/// Copies by the CPU, in one [`Memory`].
pub struct Cpu<'a> {
    memory: &'a Memory,
    /// Every so many calls fail; 0: none.
    pub fail_every: u64,
    /// Calls so far.
    pub calls: u64,
    /// Bytes copied so far.
    pub bytes: u64,
}

impl CpuCopier for Cpu<'_> {
    fn copy(&mut self, piece: &Piece) -> Result<(), CpuCopyError> {
        self.calls += 1;
        if self.fail_every != 0 && self.calls.is_multiple_of(self.fail_every) {
            return Err(CpuCopyError);
        }
        let memory = self.memory;
        let offset = |buffer: &BusBuffer, addr: DmaAddr| {
            addr.get()
                .checked_sub(buffer.addr().get())
                .and_then(|at| usize::try_from(at).ok())
                .ok_or(CpuCopyError)
        };
        let (s, d) = (
            offset(&memory.src, piece.src)?,
            offset(&memory.dst, piece.dst)?,
        );
        let mut data = vec![0; piece.len_bytes as usize];
        memory.src.read(s, &mut data).map_err(|_| CpuCopyError)?;
        memory.dst.write(d, &data).map_err(|_| CpuCopyError)?;
        self.bytes += piece.len_bytes;
        Ok(())
    }
}
