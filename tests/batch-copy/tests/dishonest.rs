//! Channels, mappers and waits that do not keep their promises: nothing is claimed that is not
//! so, and nothing is forgotten that may still be written.
#![allow(missing_docs)]

use std::cell::Cell;
use std::rc::Rc;

use batch_copy::{
    Batch, ChannelLimits, Channels, CopyChannel, CopyProgress, FailReason, Folio, Health, Host,
    MapError, Mapper, Options, Outcome, OverlapCheck, Piece, PrepError, Prepared, Report, Rescue,
    Segment, ServiceState, SharedChannel, Stopped, Wait, WaitFor, Wake,
};
use batch_copy_tests::memory::{Layout, Memory};
use batch_copy_tests::rig::{Rig, Setup};
use ptdma::{Cookie, DmaAddr};
use ptdma_model::fault::StallFor;
use ptdma_model::{Fault, FaultKind, Model};

/// The second answer about a folio is another one than the first: in two parts, far apart.
struct Fickle {
    asked: Vec<bool>,
}

impl Mapper for Fickle {
    fn map(&mut self, _channel: usize, piece: &Piece) -> Result<Segment, MapError> {
        let again = std::mem::replace(&mut self.asked[piece.folio], true);
        let (apart, len_bytes) = match (again, piece.offset_bytes) {
            (false, _) => (0, piece.len_bytes),
            (true, 0) => (0, piece.len_bytes.div_ceil(2)),
            (true, _) => (1 << 40, piece.len_bytes),
        };
        Ok(Segment {
            src: DmaAddr::new(piece.src.get() + apart),
            dst: piece.dst,
            len_bytes,
        })
    }
}

#[derive(Default)]
struct NoReset {
    quarantined: Vec<(usize, Piece)>,
}

impl Rescue for NoReset {
    fn prove_stopped(&mut self, _channel: usize) -> bool {
        false
    }
    fn quarantined(&mut self, channel: usize, piece: &Piece) {
        self.quarantined.push((channel, *piece));
    }
}

/// Eight folios on one channel, whose engine fails the second one and hangs at the fourth; the
/// failure makes the batch give the whole burst up, since the mapper answers differently.
fn given_up<R: Rescue>(rescue: impl FnOnce(Model) -> R) -> (Rig, Memory, Report, Vec<Outcome>, R) {
    let rig = Rig::new(Setup::default());
    let memory = Memory::new(&rig.bus, &[4096; 8], Layout::Scattered, 2);
    rig.models[0].inject(Fault::at(1, FaultKind::Error { code: 19 }));
    rig.models[0].inject(Fault::at(
        3,
        FaultKind::Stall {
            duration: StallFor::Ever,
            haltable: false,
        },
    ));
    let mut host = Host::new(rig.stepping())
        .with_mapper(Fickle {
            asked: vec![false; 8],
        })
        .with_rescue(rescue(rig.models[0].clone()));
    let mut options = Options::default();
    options.hang_ns = 1_000_000;
    let (report, outcomes) = rig.run(&memory, &options, &mut host);
    let rescue = host.rescue;
    (rig, memory, report, outcomes, rescue)
}

/// A function reset, which works.
struct WithReset {
    model: Model,
    asked: usize,
}

impl Rescue for WithReset {
    fn prove_stopped(&mut self, _channel: usize) -> bool {
        self.asked += 1;
        self.model.function_reset()
    }
    fn quarantined(&mut self, _channel: usize, _piece: &Piece) {}
}

/// Nobody writes to it any more after the reset, and what became of it was said before.
#[test]
fn what_was_given_up_is_not_moved_when_the_engine_is_stopped() {
    let (rig, _, report, outcomes, rescue) = given_up(|model| WithReset { model, asked: 0 });
    assert_eq!(rescue.asked, 1);
    assert_eq!(rig.channels.service(0), Some(ServiceState::Retired));
    assert_eq!(outcomes, [Outcome::Failed(FailReason::Engine(19)); 8]);
    assert_eq!(report.failed_bytes, report.bytes, "{report:?}");
    assert_eq!(
        (report.moved_bytes, report.unaccounted_bytes),
        (0, 0),
        "{report:?}"
    );
}

/// What the engine is at when it hangs still has to be named.
#[test]
fn what_was_given_up_is_quarantined_when_the_engine_does_not_stop() {
    let (rig, memory, report, _, rescue) = given_up(|_| NoReset::default());
    assert_eq!(rig.channels.service(0), Some(ServiceState::Unproven));
    assert!(report.quarantined_bytes != 0, "{report:?}");
    let named = &rescue.quarantined;
    for (index, folio) in memory.folios.iter().enumerate().skip(3) {
        assert!(
            named.iter().any(|(channel, piece)| *channel == 0
                && piece.folio == index
                && piece.dst == folio.dst),
            "folio {index} may be written and is not named: {named:?}"
        );
    }
}

/// Always says that some interrupt came; every turn takes longer than a hang.
struct FalseAlarms<'a> {
    rig: &'a Rig,
    now_ns: Cell<u64>,
}

impl Wait for FalseAlarms<'_> {
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }
    fn wants_interrupts(&self) -> bool {
        true
    }
    fn wait(&mut self, _wait: &WaitFor) -> Wake {
        self.now_ns.set(self.now_ns.get() + 2_000_000);
        for model in &self.rig.models {
            model.run(2);
        }
        Wake::Interrupted
    }
}

#[test]
fn an_engine_that_works_in_silence_does_not_hang() {
    let rig = Rig::new(Setup {
        channels: 2,
        ..Setup::default()
    });
    let memory = Memory::new(&rig.bus, &[4096; 40], Layout::Scattered, 4);
    let mut host = Host::new(FalseAlarms {
        rig: &rig,
        now_ns: Cell::new(0),
    });
    let mut options = Options::default();
    options.hang_ns = 1_000_000;
    let (report, _outcomes) = rig.run(&memory, &options, &mut host);
    assert!(report.is_complete(), "{report:?}");
    for channel in 0..2 {
        let stats = rig.channels.channel_stats(channel).unwrap();
        assert_eq!((stats.hangs, stats.stops), (0, 0), "{stats:?}");
    }
}

/// Takes copies under cookies that are not the next ones.
struct WrongCookies {
    rung: Rc<Cell<usize>>,
}

impl CopyChannel for WrongCookies {
    fn limits(&self) -> ChannelLimits {
        ChannelLimits::new(1 << 20, 64)
    }
    fn next_cookie(&self) -> Cookie {
        Cookie::new(0)
    }
    fn free_slots(&self) -> usize {
        64
    }
    fn prep(&mut self, _copy: Segment, _interrupt: bool) -> Result<Cookie, PrepError> {
        Ok(Cookie::new(7))
    }
    fn prep_all(
        &mut self,
        copies: impl Iterator<Item = Segment>,
        _mark: Option<usize>,
    ) -> Prepared {
        let lens: Vec<u64> = copies.map(|copy| copy.len_bytes).collect();
        Prepared {
            first: Some(Cookie::new(7)),
            count: lens.len(),
            bytes: lens.iter().sum(),
            error: None,
        }
    }
    fn issue_pending(&mut self, _interrupt: bool) {
        self.rung.set(self.rung.get() + 1);
    }
    fn poll(&mut self, _now_ns: u64) -> CopyProgress {
        CopyProgress {
            done_before: Cookie::new(0),
            failure: None,
            begun_again: false,
            health: Health::Alive,
        }
    }
    fn terminate(&mut self, _now_ns: u64) -> Stopped {
        Stopped {
            done_before: Cookie::new(0),
            proven: true,
            health: Health::Alive,
        }
    }
}

#[test]
fn copies_that_no_batch_knows_of_are_not_started() {
    struct NoTime;
    impl Wait for NoTime {
        fn now_ns(&self) -> u64 {
            0
        }
        fn wants_interrupts(&self) -> bool {
            false
        }
        fn wait(&mut self, _wait: &WaitFor) -> Wake {
            Wake::Poll
        }
    }
    let rung = Rc::new(Cell::new(0));
    let mut channels: Channels<WrongCookies, spin::Mutex<SharedChannel<WrongCookies>>, 1> =
        Channels::new();
    let port = SharedChannel::new(WrongCookies {
        rung: Rc::clone(&rung),
    });
    assert!(channels.add(spin::Mutex::new(port)).is_ok());
    let folios = [Folio::new(DmaAddr::new(0x1000), DmaAddr::new(0x9000), 4096)];
    let mut outcomes = [Outcome::Dma];
    Batch::<1>::new()
        .run(
            &channels,
            &folios[..],
            OverlapCheck::CallerKnows,
            &Options::default(),
            &mut Host::new(NoTime),
            &mut outcomes,
        )
        .unwrap();
    assert!(!outcomes[0].is_copied());
    assert_eq!(rung.get(), 0);
}
