//! Mappers that answer for a chunk of pieces at once: the same descriptors, outcomes and bytes as
//! with one piece at a time, wherever an answer is missing.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use batch_copy::{
    CHUNK, Host, MAP_CHUNK, MapError, Mapper, Options, Outcome, Piece, Report, Segment, SkipReason,
};
use batch_copy_tests::memory::{Layout, Memory};
use batch_copy_tests::rig::{Rig, Setup};
use proptest::prelude::*;
use ptdma::DmaAddr;
use ptdma_model::fault::StallFor;
use ptdma_model::{Fault, FaultKind};

/// What an answer holds that nobody gave: no engine reaches it.
const GARBAGE: Segment = Segment {
    src: DmaAddr::new(1 << 60),
    dst: DmaAddr::new(1 << 60),
    len_bytes: 4096,
};

/// A mapper as a kernel's is: a part is mapped once, for one channel, and stays mapped.
#[derive(Clone, Default)]
struct Kernel {
    /// Folios that cannot be mapped.
    refuses: BTreeSet<usize>,
    /// Answers end at multiples of this many bytes; 0: at the end of the piece.
    window: u64,
    /// Answers for a whole chunk.
    by_chunk: bool,
    /// Stops each so many answers, though it could go on; 0: never.
    tires_after: usize,
    /// Says that it has answered for more than there was room for.
    boasts: bool,
    calls: usize,
    /// Channel of each part, by folio and offset.
    mapped: BTreeMap<(usize, u64), usize>,
    /// Parts of which another channel was refused the mapping.
    taken: usize,
}

impl Kernel {
    fn answer(&mut self, channel: usize, piece: &Piece) -> Option<Segment> {
        if self.refuses.contains(&piece.folio) {
            return None;
        }
        let key = (piece.folio, piece.offset_bytes);
        if *self.mapped.entry(key).or_insert(channel) != channel {
            self.taken += 1;
            return None;
        }
        let len_bytes = match self.window {
            0 => piece.len_bytes,
            window => piece.len_bytes.min(window - piece.src.get() % window),
        };
        Some(Segment {
            src: piece.src,
            dst: piece.dst,
            len_bytes,
        })
    }
}

impl Mapper for Kernel {
    fn map(&mut self, channel: usize, piece: &Piece) -> Result<Segment, MapError> {
        self.calls += 1;
        self.answer(channel, piece).ok_or(MapError)
    }

    fn map_chunk(
        &mut self,
        channel: usize,
        pieces: impl Iterator<Item = Piece>,
        segments: &mut [Segment],
    ) -> usize {
        assert!(!segments.is_empty() && segments.len() <= MAP_CHUNK);
        segments.fill(GARBAGE);
        let mut answered = 0;
        for (segment, piece) in segments.iter_mut().zip(pieces) {
            let answer = if self.by_chunk {
                self.answer(channel, &piece)
            } else {
                self.map(channel, &piece).ok()
            };
            let Some(answer) = answer else { break };
            *segment = answer;
            answered += 1;
            if !self.by_chunk || answered == self.tires_after {
                break;
            }
        }
        self.calls += usize::from(self.by_chunk);
        if self.boasts && answered != 0 {
            usize::MAX
        } else {
            answered
        }
    }
}

fn run(rig: &Rig, memory: &Memory, kernel: Kernel) -> (Report, Vec<Outcome>, Kernel) {
    let mut host = Host::new(rig.stepping()).with_mapper(kernel);
    let (report, outcomes) = rig.run(memory, &Options::default(), &mut host);
    assert_eq!(report.unaccounted_bytes, 0, "{report:?}");
    (report, outcomes, host.mapper)
}

/// A folio is refused at each position of the first chunk and of the second.
#[test]
fn a_refusal_anywhere_in_a_chunk_is_that_folio_s_alone() {
    const FOLIOS: usize = 2 * CHUNK + 6;
    for layout in [Layout::Scattered, Layout::Contiguous, Layout::Runs(5)] {
        for position in 0..FOLIOS {
            // The second one may be its neighbour, or in the next chunk.
            for other in [position, position + 1, position + CHUNK] {
                let rig = Rig::new(Setup::default());
                let memory = Memory::new(&rig.bus, &[4096; FOLIOS], layout, 8);
                let kernel = Kernel {
                    refuses: [position, other].into(),
                    by_chunk: true,
                    ..Kernel::default()
                };
                let refuses = kernel.refuses.clone();
                let (_, outcomes, _) = run(&rig, &memory, kernel);
                for (index, outcome) in outcomes.iter().enumerate() {
                    let expected = if refuses.contains(&index) {
                        Outcome::NotAttempted(SkipReason::Unmapped)
                    } else {
                        Outcome::Dma
                    };
                    assert_eq!(*outcome, expected, "{refuses:?}, {layout:?}: {index}");
                }
            }
        }
    }
}

/// A mapper says that it has given more answers than there were questions. Each folio is several
/// descriptors, so that the executor asks about few of them, and has room for many answers.
#[test]
fn answers_to_no_question_are_not_used() {
    const FOLIOS: usize = 20;
    let mut mixed = [200_000; FOLIOS];
    // Questions about short folios end at the first long one.
    mixed.iter_mut().step_by(3).for_each(|len| *len = 4096);
    let shapes = [[200_000; FOLIOS], mixed];
    for (max_len_bytes, lens) in [4096, 65536, 100_000]
        .into_iter()
        .flat_map(|max| shapes.map(|lens| (max, lens)))
    {
        let rig = Rig::new(Setup {
            max_len_bytes,
            ..Setup::default()
        });
        let memory = Memory::new(&rig.bus, &lens, Layout::Scattered, 9);
        let kernel = Kernel {
            by_chunk: true,
            boasts: true,
            ..Kernel::default()
        };
        let (report, outcomes, _) = run(&rig, &memory, kernel);
        assert_eq!(outcomes, [Outcome::Dma; FOLIOS], "{report:?}");
    }
}

/// One call for each chunk of descriptors, and for each chunk of pieces that one descriptor holds.
#[test]
fn a_chunk_is_one_call() {
    for (layout, channels, calls) in [
        (Layout::Scattered, 1, 16),
        (Layout::Scattered, 16, 16),
        (Layout::Contiguous, 1, 16),
        (Layout::Contiguous, 16, 16),
    ] {
        let rig = Rig::new(Setup {
            channels,
            entries: 1024,
            ..Setup::default()
        });
        let memory = Memory::new(&rig.bus, &[4096; 512], layout, 10);
        let kernel = Kernel {
            by_chunk: true,
            ..Kernel::default()
        };
        let (report, _, kernel) = run(&rig, &memory, kernel);
        assert!(report.is_complete());
        assert_eq!(kernel.calls, calls, "{layout:?}, {channels} channels");
    }
}

/// A channel hangs with a chunk mapped for it that it was not given, or that it was given in part.
/// No other channel is given a mapping of its domain, what the others copy is right, and nothing
/// more is left to the CPU than with one piece at a time.
#[test]
fn what_was_mapped_for_a_channel_that_stops_is_no_other_channel_s() {
    const FOLIOS: usize = 4 * CHUNK;
    // Folios that a descriptor holds with room to spare, just holds, and that take several.
    let shapes = [
        (4096, 2 << 20),
        (4096, 4096),
        (6000, 4096),
        (200_000, 65536),
    ];
    for (entries, (len, max_len_bytes)) in [4, 8, 32, 64]
        .into_iter()
        .flat_map(|entries| shapes.map(|shape| (entries, shape)))
    {
        for at in [0, 1, 5, 31] {
            let hang = |by_chunk| {
                let rig = Rig::new(Setup {
                    channels: 2,
                    entries,
                    max_len_bytes,
                    ..Setup::default()
                });
                rig.models[0].inject(Fault::at(
                    at,
                    FaultKind::Stall {
                        duration: StallFor::Ever,
                        haltable: true,
                    },
                ));
                let memory = Memory::new(&rig.bus, &[len; FOLIOS], Layout::Scattered, 11);
                let kernel = Kernel {
                    by_chunk,
                    ..Kernel::default()
                };
                let mut host = Host::new(rig.stepping()).with_mapper(kernel);
                let mut options = Options::default();
                options.hang_ns = 100_000;
                let (report, outcomes) = rig.run(&memory, &options, &mut host);
                assert_eq!(report.unaccounted_bytes, 0, "{report:?}");
                (report, outcomes, host.mapper.mapped, host.mapper.taken)
            };
            let (single, by_chunk) = (hang(false), hang(true));
            let what = format!("ring of {entries}, {len} in {max_len_bytes}, hangs at {at}");
            if len == 4096 {
                assert!(by_chunk.3 != 0, "the test is about these: {what}");
                assert!(by_chunk.0.dma_bytes >= (FOLIOS as u64 / 2 + at) * 4096);
            }
            assert_eq!(single.0, by_chunk.0, "{what}");
            assert_eq!(single.1, by_chunk.1, "{what}");
            assert_eq!(single.2, by_chunk.2, "{what}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn by_the_chunk_is_as_one_by_one(
        lens in prop::collection::vec(prop_oneof![4 => Just(4096_usize), 1 => Just(65536), 1 => 1_usize..200_000], 1..120),
        channels in 1_usize..=4,
        entries in prop::sample::select(vec![4_usize, 32, 256]),
        layout in prop::sample::select(vec![Layout::Scattered, Layout::Contiguous, Layout::Runs(5), Layout::SourceOnly]),
        max_len_bytes in prop::sample::select(vec![3000_u32, 4096, 100_000, 2 << 20]),
        window in prop::sample::select(vec![0_u64, 4096, 65536]),
        refuses in prop::collection::btree_set(0_usize..120, 0..6),
        tires_after in prop::sample::select(vec![0_usize, 1, 3]),
        fail_at in prop::option::of(0_u64..40),
    ) {
        let once = |by_chunk| {
            let rig = Rig::new(Setup { channels, entries, max_len_bytes, ..Setup::default() });
            let memory = Memory::new(&rig.bus, &lens, layout, 5);
            if let Some(at) = fail_at {
                rig.models[0].inject(Fault::at(at, FaultKind::Error { code: 19 }));
            }
            let kernel = Kernel {
                refuses: refuses.clone(),
                window,
                by_chunk,
                tires_after,
                ..Kernel::default()
            };
            run(&rig, &memory, kernel)
        };
        let (single, by_chunk) = (once(false), once(true));
        prop_assert_eq!(&single.1, &by_chunk.1);
        prop_assert_eq!(single.0, by_chunk.0);
        let all_whole = window == 0 && lens.iter().all(|len| *len <= max_len_bytes as usize);
        if all_whole {
            // Nothing is mapped ahead that would not be mapped one by one.
            prop_assert_eq!(single.2.mapped, by_chunk.2.mapped);
            prop_assert!(by_chunk.2.calls <= single.2.calls);
        }
    }
}
