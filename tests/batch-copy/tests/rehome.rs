//! What a channel lost goes to another one, which has work of its own in its ring: both are told
//! apart when something goes wrong again.
#![allow(missing_docs)]

use batch_copy::{FailReason, Host, Options, Outcome, Wait, WaitFor, Wake};
use batch_copy_tests::memory::{Layout, Memory};
use batch_copy_tests::rig::{Rig, Setup};
use ptdma_model::{Fault, FaultKind};

const FOLIO_BYTES: u64 = 1 << 20;

/// Takes channel 1 away before any engine has moved; then the engines work.
struct TakenAway<'a> {
    rig: &'a Rig,
    now_ns: u64,
}

impl Wait for TakenAway<'_> {
    fn now_ns(&self) -> u64 {
        self.now_ns
    }
    fn wants_interrupts(&self) -> bool {
        false
    }
    fn wait(&mut self, _wait: &WaitFor) -> Wake {
        if self.now_ns == 0 {
            assert!(self.rig.channels.retire(1, self.now_ns));
        } else {
            self.rig.models[0].run(1000);
        }
        self.now_ns += 1000;
        Wake::Poll
    }
}

/// Two folios that follow each other on both sides, one on each channel. Channel 0 is still at its
/// own when it is given the other one, and fails that: a walk over both would find one descriptor
/// where there are two, and could not tell which was lost.
#[test]
fn a_failure_behind_the_seam_is_not_that_of_the_folio_before_it() {
    let rig = Rig::new(Setup {
        channels: 2,
        ..Setup::default()
    });
    let memory = Memory::new(&rig.bus, &[FOLIO_BYTES as usize; 2], Layout::Contiguous, 3);
    rig.models[0].inject(Fault::at(1, FaultKind::Error { code: 19 }));
    let mut host = Host::new(TakenAway {
        rig: &rig,
        now_ns: 0,
    });
    let (report, outcomes) = rig.run(&memory, &Options::default(), &mut host);
    // One descriptor on each channel, and the second one again on the first.
    assert_eq!((report.channels, report.descriptors), (2, 3), "{report:?}");
    assert_eq!(report.moved_bytes, FOLIO_BYTES, "{report:?}");
    assert_eq!(
        outcomes,
        [Outcome::Dma, Outcome::Failed(FailReason::Engine(19))]
    );
    assert_eq!(
        (report.dma_bytes, report.failed_bytes),
        (FOLIO_BYTES, FOLIO_BYTES)
    );
}
