//! The CPU's share of a batch: whoever is done first takes something of what the other still has.
#![allow(missing_docs)]

use batch_copy::{CpuCopier, CpuCopyError, Host, Options, Piece, Report};
use batch_copy_tests::memory::{Cpu, Layout, Memory};
use batch_copy_tests::rig::{Rig, Setup};
use proptest::prelude::*;
use ptdma::Signalling;

/// A CPU that takes its time: every function makes some steps while it copies a chunk.
struct Paced<'a> {
    cpu: Cpu<'a>,
    rig: &'a Rig,
    steps: u64,
}

impl CpuCopier for Paced<'_> {
    fn copy(&mut self, piece: &Piece) -> Result<(), CpuCopyError> {
        for model in &self.rig.models {
            model.run(self.steps);
        }
        // The handler runs on whatever the CPU is at.
        self.rig.deliver(0);
        self.cpu.copy(piece)
    }
}

/// Runs the batch and checks that every byte was copied once, by the one or the other.
fn run(rig: &Rig, memory: &Memory, share: u64, steps: u64) -> Report {
    let mut host = Host::new(rig.stepping()).with_cpu(Paced {
        cpu: memory.cpu(),
        rig,
        steps,
    });
    let mut options = Options::default();
    options.cpu_share_bytes = share;
    options.budget_ns = u64::MAX;
    let (report, _outcomes) = rig.run(memory, &options, &mut host);
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(report.cpu_bytes, host.cpu.cpu.bytes);
    assert_eq!(report.dma_bytes, rig.counters().bytes);
    assert_eq!(report.cpu_bytes + report.dma_bytes, memory.bytes());
    report
}

fn rig(channels: usize, entries: usize, signalling: Signalling) -> Rig {
    Rig::new(Setup {
        channels,
        entries,
        signalling,
        ..Setup::default()
    })
}

const BOTH: [Signalling; 2] = [Signalling::Polled, Signalling::Interrupts];

#[test]
fn without_a_share_the_cpu_copies_nothing() {
    for signalling in BOTH {
        let rig = rig(2, 32, signalling);
        let memory = Memory::new(&rig.bus, &[4096; 2048], Layout::Scattered, 1);
        assert_eq!(run(&rig, &memory, 0, 1).cpu_bytes, 0);
    }
}

#[test]
fn engines_that_are_done_first_take_what_the_cpu_still_has() {
    for signalling in BOTH {
        for (lens, layout) in [
            (vec![4096; 2048], Layout::Scattered),
            (vec![2 << 20; 4], Layout::Scattered),
        ] {
            let rig = rig(4, 1024, signalling);
            let memory = Memory::new(&rig.bus, &lens, layout, 2);
            // Three quarters for the CPU, while engines do all of theirs within its first chunk.
            let share = memory.bytes() / 4 * 3;
            let report = run(&rig, &memory, share, 100_000);
            assert!(report.cpu_bytes > 0);
            // They take half of it, and half of the rest, down to a few chunks.
            assert!(
                report.cpu_bytes < share / 4,
                "{signalling:?}: {} of {share} bytes",
                report.cpu_bytes
            );
        }
    }
}

#[test]
fn a_cpu_that_is_done_first_takes_what_no_ring_holds_yet() {
    for signalling in BOTH {
        let rig = rig(1, 32, signalling);
        let memory = Memory::new(&rig.bus, &[4096; 2048], Layout::Scattered, 3);
        // An engine that does not move at all while the CPU copies.
        let report = run(&rig, &memory, 256 << 10, 0);
        // The engine keeps its ring and what is not worth taking away: eight chunks.
        assert!(
            (1..640 << 10).contains(&report.dma_bytes),
            "{} bytes by the engine",
            report.dma_bytes
        );
    }
}

#[test]
fn a_cpu_that_is_done_first_leaves_alone_what_is_in_the_ring() {
    for signalling in BOTH {
        let rig = rig(1, 1024, signalling);
        let memory = Memory::new(&rig.bus, &[4096; 512], Layout::Scattered, 4);
        let share = 256 << 10;
        assert_eq!(run(&rig, &memory, share, 0).cpu_bytes, share);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_byte_is_copied_once_whatever_the_pace(
        lens in prop::collection::vec(prop_oneof![1_usize..9000, Just(4096), Just(65536), 100_000_usize..600_000], 1..60),
        channels in 1_usize..=8,
        entries in prop::sample::select(vec![2_usize, 32, 256]),
        interrupts in any::<bool>(),
        percent in 0_u64..=100,
        steps in prop::sample::select(vec![0_u64, 1, 20, 100_000]),
    ) {
        let signalling = if interrupts { Signalling::Interrupts } else { Signalling::Polled };
        let rig = rig(channels, entries, signalling);
        let memory = Memory::new(&rig.bus, &lens, Layout::Runs(3), 5);
        run(&rig, &memory, memory.bytes() * percent / 100, steps);
    }
}
