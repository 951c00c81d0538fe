//! No descriptor crosses a multiple of 4 GiB, on either side: no driver is known to have made
//! silicon do that.
#![allow(missing_docs)]

use batch_copy::{
    Batch, Folio, Host, Identity, MapError, Mapper, Options, Outcome, OverlapCheck, Piece, Segment,
};
use batch_copy_tests::rig::{MAX_CHANNELS, Rig, Setup};
use ptdma::DmaAddr;
use ptdma_model::Access;

/// Bytes of all folios together.
const LEN_BYTES: usize = 64 * 4096;

/// Copies `lens` from one contiguous stretch to another, and says how many descriptors it took.
fn descriptors(src: u64, dst: u64, lens: &[usize]) -> u64 {
    let rig = Rig::new(Setup::default());
    let map = |at| {
        rig.bus
            .map_at(DmaAddr::new(at), LEN_BYTES, Access::ReadWrite)
            .expect("nothing else is there")
    };
    let (source, destination) = (map(src), map(dst));
    let fill: Vec<u8> = (0..LEN_BYTES).map(|i| (i / 7 % 255) as u8 + 1).collect();
    source.write(0, &fill).expect("own buffer");
    let mut at = 0;
    let folios: Vec<Folio> = lens
        .iter()
        .map(|&len| {
            let len = len as u64;
            let folio = Folio::new(DmaAddr::new(src + at), DmaAddr::new(dst + at), len);
            at += len;
            folio
        })
        .collect();
    let mut outcomes = vec![Outcome::Dma; folios.len()];
    let mut host = Host::new(rig.stepping());
    let report = Batch::<MAX_CHANNELS>::new()
        .run(
            &rig.channels,
            &folios[..],
            OverlapCheck::CallerKnows,
            &Options::default(),
            &mut host,
            &mut outcomes,
        )
        .expect("a sound batch");
    assert!(report.is_complete(), "{report:?}");
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Dma));
    assert_eq!(destination.to_vec(), fill);
    rig.counters().descriptors
}

#[test]
fn neighbours_are_joined_up_to_the_boundary() {
    let pages = [4096; 64];
    let (near, far) = (0x1_fffe_0000, 0x40_0000_0000);
    assert_eq!(descriptors(far, far + (1 << 33), &pages), 1);
    assert_eq!(descriptors(near, far, &pages), 2);
    assert_eq!(descriptors(far, near, &pages), 2);
}

/// A folio that is not aligned to its size may lie across one.
#[test]
fn a_folio_is_cut_at_the_boundary() {
    let whole = [LEN_BYTES];
    let (near, far) = (0x1_fffe_0000, 0x40_0000_0000);
    assert_eq!(descriptors(near, far, &whole), 2);
    assert_eq!(descriptors(far, near, &whole), 2);
    // Each side in another place.
    assert_eq!(descriptors(near, 0x2_ffff_0000, &whole), 3);
    // One of several, none of which continues the one before.
    assert_eq!(
        descriptors(near, far, &[LEN_BYTES / 4, LEN_BYTES / 2, LEN_BYTES / 4]),
        2
    );
}

/// Addresses are the same on every side, but nobody knows that before asking.
#[derive(Clone, Copy)]
struct Same;

impl Mapper for Same {
    fn map(&mut self, _channel: usize, piece: &Piece) -> Result<Segment, MapError> {
        Ok(Segment {
            src: piece.src,
            dst: piece.dst,
            len_bytes: piece.len_bytes,
        })
    }
}

/// Five folios that lie apart, of which number `index` lies across the boundary.
fn cut_one_alone<M: Mapper>(mapper: M, index: usize) {
    let rig = Rig::new(Setup::default());
    let len = 0x4000;
    let map = |at: u64| {
        rig.bus
            .map_at(DmaAddr::new(at), len, Access::ReadWrite)
            .expect("nothing else is there")
    };
    let at = |side: u64, i: usize| match i == index {
        true => ((i as u64 + side + 1) << 34) - 0x1000,
        false => ((i as u64 + side + 1) << 34) + 0x8000,
    };
    let pairs: Vec<_> = (0..5).map(|i| (map(at(0, i)), map(at(100, i)))).collect();
    let mut folios = Vec::new();
    for (i, (src, dst)) in pairs.iter().enumerate() {
        src.write(0, &vec![i as u8 + 1; len]).expect("own buffer");
        folios.push(Folio::new(src.addr(), dst.addr(), len as u64));
    }
    let mut outcomes = vec![Outcome::Dma; folios.len()];
    let mut host = Host::new(rig.stepping()).with_mapper(mapper);
    let report = Batch::<MAX_CHANNELS>::new()
        .run(
            &rig.channels,
            &folios[..],
            OverlapCheck::CallerKnows,
            &Options::default(),
            &mut host,
            &mut outcomes,
        )
        .expect("a sound batch");
    assert!(report.is_complete(), "{index}: {report:?}");
    for (i, (src, dst)) in pairs.iter().enumerate() {
        assert_eq!(dst.to_vec(), src.to_vec(), "{index}: folio {i}");
    }
    assert_eq!(rig.counters().descriptors, 6, "{index}");
}

/// Folios that lie apart are given to the channel as they are: not the one across the boundary.
#[test]
fn a_folio_among_others_is_cut_alone() {
    for index in [0, 1, 3, 4] {
        cut_one_alone(Identity, index);
        cut_one_alone(Same, index);
    }
}
