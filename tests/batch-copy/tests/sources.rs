//! Lists of folios that are no slices, and the edges of what their addresses may be.
#![allow(missing_docs)]

use batch_copy::{
    BadInput, Batch, Folio, FolioFn, FolioSource, Host, MAX_BATCH_BYTES, Options, Outcome,
    OverlapCheck, Report, SkipReason,
};
use batch_copy_tests::memory::{Layout, Memory};
use batch_copy_tests::rig::{MAX_CHANNELS, Rig, Setup};
use ptdma::DmaAddr;

const MARK: Outcome = Outcome::NotAttempted(SkipReason::Declined);

fn run<S: FolioSource + ?Sized>(
    rig: &Rig,
    source: &S,
    options: &Options,
    outcomes: &mut [Outcome],
) -> Result<Report, BadInput> {
    Batch::<MAX_CHANNELS>::new().run(
        &rig.channels,
        source,
        OverlapCheck::CallerKnows,
        options,
        &mut Host::new(rig.stepping()),
        outcomes,
    )
}

fn rig() -> Rig {
    Rig::new(Setup {
        channels: 4,
        ..Setup::default()
    })
}

/// A list kept in blocks, some of them empty: how many folios an iterator over a stretch of it
/// has is known only when it ends.
struct Blocks(Vec<Vec<Folio>>);

impl FolioSource for Blocks {
    fn folio(&self, index: usize) -> Option<Folio> {
        self.0.iter().flatten().nth(index).copied()
    }
    fn range(&self, first: usize, most: usize) -> impl Iterator<Item = Folio> + '_ {
        self.0.iter().flatten().skip(first).take(most).copied()
    }
}

/// Around the lengths of every chunk and landmark that the survey takes at a time.
#[test]
fn computed_and_linked_lists_of_every_length_arrive() {
    let rig = rig();
    for count in (1..70).chain([127, 128, 129, 511, 512, 513]) {
        for len in [512, 4096] {
            let memory = Memory::new(&rig.bus, &vec![len; count], Layout::Scattered, 5);
            let folios = &memory.folios;
            let mut outcomes = vec![MARK; count];
            let computed = FolioFn(|index| folios.get(index).copied());
            let report = run(&rig, &computed, &Options::default(), &mut outcomes).unwrap();
            assert_eq!(report.folios_dma, count);
            assert!(report.is_complete());
            memory.verify(&outcomes).unwrap();

            memory.refill(6);
            outcomes.fill(MARK);
            let mut blocks: Vec<_> = folios.chunks(5).map(<[Folio]>::to_vec).collect();
            blocks.insert(blocks.len() / 2, Vec::new());
            let report = run(&rig, &Blocks(blocks), &Options::default(), &mut outcomes).unwrap();
            assert_eq!(report.folios_dma, count);
            assert!(report.is_complete());
            memory.verify(&outcomes).unwrap();
            memory.release(&rig.bus);
        }
    }
}

/// A sum that wraps ends at an address that looks harmless.
#[test]
fn addresses_that_wrap_around_are_out_of_range() {
    let rig = rig();
    let top = u64::MAX - 4095;
    for (src, dst) in [(top, 0x10_0000), (0x10_0000, top)] {
        for len in [4096, 8192] {
            let folio = Folio::new(DmaAddr::new(src), DmaAddr::new(dst), len);
            let mut outcomes = [MARK];
            let error = run(&rig, &[folio][..], &Options::default(), &mut outcomes).unwrap_err();
            assert!(matches!(error, BadInput::OutOfRange { folio: 0, .. }));
            assert_eq!(outcomes, [MARK]);
        }
    }
    assert_eq!(rig.counters().mmio(), 0);
}

/// The limit is exact, though the common case is decided by its highest bit alone.
#[test]
fn a_limit_that_is_no_power_of_two_is_exact() {
    let rig = rig();
    let memory = Memory::new(&rig.bus, &[4096; 40], Layout::Scattered, 9);
    let ends = |folio: &Folio| folio.src.get().max(folio.dst.get()) + folio.len_bytes;
    let highest = memory.folios.iter().map(ends).max().unwrap();
    let limited = |addr_limit| {
        let mut options = Options::default();
        options.addr_limit = addr_limit;
        options
    };
    let mut outcomes = [MARK; 40];
    let error = run(
        &rig,
        &memory.folios[..],
        &limited(highest - 1),
        &mut outcomes,
    )
    .unwrap_err();
    let BadInput::OutOfRange { folio, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(ends(&memory.folios[folio]), highest);
    assert_eq!(rig.counters().mmio(), 0);
    let report = run(&rig, &memory.folios[..], &limited(highest), &mut outcomes).unwrap();
    assert!(report.is_complete());
    memory.verify(&outcomes).unwrap();
}

/// One folio more than what a batch may be long in all, each of them sound by itself.
#[test]
fn more_bytes_than_a_batch_may_have_are_refused() {
    let rig = rig();
    let len_bytes = 1 << 46;
    let count = usize::try_from(MAX_BATCH_BYTES / len_bytes).unwrap() + 1;
    let folio = Folio::new(DmaAddr::new(0), DmaAddr::new(len_bytes), len_bytes);
    let many = FolioFn(|index| (index < count).then_some(folio));
    let mut outcomes = vec![MARK; count];
    let error = run(&rig, &many, &Options::default(), &mut outcomes).unwrap_err();
    assert_eq!(error, BadInput::TooManyBytes);
    assert!(outcomes.iter().all(|outcome| *outcome == MARK));
    assert_eq!(rig.counters().mmio(), 0);
}
