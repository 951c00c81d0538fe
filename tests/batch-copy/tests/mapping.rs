//! Mappers that translate, split unevenly, and refuse.
#![allow(missing_docs)]

use batch_copy::{
    Batch, Folio, Host, MapError, Mapper, Options, Outcome, OverlapCheck, Piece, Segment,
    SkipReason, Wait, WaitFor, Wake,
};
use batch_copy_tests::memory::{Layout, Memory};
use batch_copy_tests::rig::{MAX_CHANNELS, Rig, Setup};
use proptest::prelude::*;
use ptdma::{DmaAddr, Signalling};
use ptdma_model::{Fault, FaultKind};

/// What the caller's addresses have over those on the bus: far over 48 bits.
const PHYSICAL: u64 = 1 << 52;

/// An IOMMU that merged sources in pieces of one length and destinations in pieces of another.
struct Iommu {
    src_window: u64,
    dst_window: u64,
    /// Every so many folios cannot be mapped; 0: all can.
    refuse_every: usize,
    /// Answers differ from the second time on, as they must not.
    lies: bool,
    asked: u64,
}

impl Mapper for Iommu {
    fn map(&mut self, _channel: usize, piece: &Piece) -> Result<Segment, MapError> {
        self.asked += 1;
        if self.refuse_every != 0 && piece.folio % self.refuse_every == self.refuse_every - 1 {
            return Err(MapError);
        }
        let (src, dst) = (piece.src.get() - PHYSICAL, piece.dst.get() - PHYSICAL);
        let mut len = piece
            .len_bytes
            .min(self.src_window - src % self.src_window)
            .min(self.dst_window - dst % self.dst_window);
        if self.lies && self.asked.is_multiple_of(7) {
            len = len.div_ceil(2);
        }
        Ok(Segment {
            src: DmaAddr::new(src),
            dst: DmaAddr::new(dst),
            len_bytes: len,
        })
    }
}

fn physical(memory: &Memory) -> Vec<Folio> {
    let up = |addr: DmaAddr| DmaAddr::new(addr.get() + PHYSICAL);
    memory
        .folios
        .iter()
        .map(|f| Folio::new(up(f.src), up(f.dst), f.len_bytes))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn uneven_merging_and_refusals_are_exact(
        lens in prop::collection::vec(prop_oneof![Just(4096_usize), Just(65536), 1_usize..200_000], 1..60),
        channels in 1_usize..=8,
        entries in prop::sample::select(vec![4_usize, 32, 256]),
        layout in prop::sample::select(vec![Layout::Scattered, Layout::Contiguous, Layout::Runs(5)]),
        interrupts in any::<bool>(),
        src_window in prop::sample::select(vec![4096_u64, 65536, 1 << 30]),
        dst_window in prop::sample::select(vec![4096_u64, 49152, 1 << 30]),
        refuse_every in prop::sample::select(vec![0_usize, 1, 2, 7]),
        fail_at in prop::option::of(0_u64..20),
        lies in prop::bool::weighted(0.2),
    ) {
        let signalling = if interrupts { Signalling::Interrupts } else { Signalling::Polled };
        let rig = Rig::new(Setup { channels, entries, signalling, max_len_bytes: 100_000, ..Setup::default() });
        let memory = Memory::new(&rig.bus, &lens, layout, 5);
        if let Some(at) = fail_at {
            rig.models[0].inject(Fault::at(at, FaultKind::Error { code: 19 }));
        }
        let mapper = Iommu { src_window, dst_window, refuse_every, lies, asked: 0 };
        let mut host = Host::new(rig.stepping()).with_mapper(mapper);
        let mut outcomes = vec![Outcome::Dma; lens.len()];
        let mut options = Options::default();
        options.addr_limit = 1 << 53;
        let report = Batch::<MAX_CHANNELS>::new()
            .run(&rig.channels, &physical(&memory)[..], OverlapCheck::Pairwise, &options, &mut host, &mut outcomes)
            .unwrap();
        prop_assert!(memory.verify(&outcomes).is_ok(), "{:?}", memory.verify(&outcomes));
        prop_assert_eq!(report.unaccounted_bytes, 0, "{:?} {:?}", report, outcomes);
        for (index, outcome) in outcomes.iter().enumerate() {
            let refused = refuse_every != 0 && index % refuse_every == refuse_every - 1;
            if refused {
                prop_assert_eq!(*outcome, Outcome::NotAttempted(SkipReason::Unmapped));
            } else if fail_at.is_none() && lens.len() <= 16 {
                // More refusals than are remembered leave the rest of a stretch out.
                prop_assert_eq!(*outcome, Outcome::Dma);
            }
        }
        if fail_at.is_some() && !lies && refuse_every == 0 {
            // One descriptor failed, of at most 100 000 bytes: the folios that it touched.
            prop_assert!(report.failed_bytes <= 100_000);
        }
    }
}

#[test]
fn scattered_folios_at_one_range_of_bus_addresses_are_one_copy() {
    /// What `dma_iova_link` gives: everything of one lane, end to end.
    struct Linked {
        folios: Vec<(u64, u64)>,
        src: u64,
        dst: u64,
    }
    impl Mapper for Linked {
        fn map(&mut self, _channel: usize, piece: &Piece) -> Result<Segment, MapError> {
            let (offset, _) = self.folios[piece.folio];
            let at = offset + piece.offset_bytes;
            Ok(Segment {
                src: DmaAddr::new(self.src + at),
                dst: DmaAddr::new(self.dst + at),
                len_bytes: piece.len_bytes,
            })
        }
    }
    let rig = Rig::new(Setup {
        channels: 4,
        ..Setup::default()
    });
    // Contiguous on the bus, scattered for the caller.
    let memory = Memory::new(&rig.bus, &[4096; 64], Layout::Contiguous, 3);
    let scattered: Vec<Folio> = (0..64)
        .map(|n| {
            Folio::new(
                DmaAddr::new(0x1000 * (2 * n + 1)),
                DmaAddr::new(0x100_0000 + 0x1000 * (3 * n)),
                4096,
            )
        })
        .collect();
    let mapper = Linked {
        folios: (0..64).map(|n| (n * 4096, 4096)).collect(),
        src: memory.folios[0].src.get(),
        dst: memory.folios[0].dst.get(),
    };
    let mut host = Host::new(rig.stepping()).with_mapper(mapper);
    let mut outcomes = vec![Outcome::Dma; 64];
    let report = Batch::<MAX_CHANNELS>::new()
        .run(
            &rig.channels,
            &scattered[..],
            OverlapCheck::Pairwise,
            &Options::default(),
            &mut host,
            &mut outcomes,
        )
        .unwrap();
    memory.verify(&outcomes).unwrap();
    assert!(report.is_complete());
    assert_eq!((report.descriptors, report.coalesced), (4, 60));
}

/// Folios that no engine can be given: not mapped, or mapped beyond what an engine reaches.
struct Gaps {
    first: usize,
    mapped: bool,
}

impl Mapper for Gaps {
    fn map(&mut self, _channel: usize, piece: &Piece) -> Result<Segment, MapError> {
        let out_of_reach = if piece.folio < self.first {
            0
        } else if self.mapped {
            1 << 50
        } else {
            return Err(MapError);
        };
        Ok(Segment {
            src: DmaAddr::new(piece.src.get() | out_of_reach),
            dst: piece.dst,
            len_bytes: piece.len_bytes,
        })
    }
}

/// Counts the waits for an interrupt that nobody raised.
struct Overdue<W> {
    wait: W,
    overdue: usize,
}

impl<W: Wait> Wait for Overdue<W> {
    fn now_ns(&self) -> u64 {
        self.wait.now_ns()
    }
    fn wants_interrupts(&self) -> bool {
        self.wait.wants_interrupts()
    }
    fn wait(&mut self, wait: &WaitFor) -> Wake {
        let wake = self.wait.wait(wait);
        self.overdue += usize::from(wake == Wake::Overdue);
        wake
    }
}

/// Wherever a lane ends that no engine can be given the rest of, the interrupt is asked for before:
/// within the first chunk of descriptors, at its end, behind it, where the ring is full.
#[test]
fn a_lane_whose_end_is_refused_interrupts_before_it() {
    const FOLIOS: usize = 96;
    for channels in [1, 3] {
        for one_interrupt in [false, true] {
            for mapped in [false, true] {
                for first in FOLIOS / 2..FOLIOS {
                    let rig = Rig::new(Setup {
                        channels,
                        entries: 64,
                        signalling: Signalling::Interrupts,
                        ..Setup::default()
                    });
                    let memory = Memory::new(&rig.bus, &[4096; FOLIOS], Layout::Scattered, 6);
                    let mut host = Host::new(Overdue {
                        wait: rig.stepping(),
                        overdue: 0,
                    })
                    .with_mapper(Gaps { first, mapped });
                    let mut options = Options::default();
                    options.one_interrupt = one_interrupt;
                    let (report, _outcomes) = rig.run(&memory, &options, &mut host);
                    assert_eq!(report.unaccounted_bytes, 0, "{report:?}");
                    assert_eq!(
                        host.wait.overdue, 0,
                        "{channels} channels, refused from {first} on, mapped: {mapped}, one \
                         interrupt: {one_interrupt}: {report:?}"
                    );
                }
            }
        }
    }
}
