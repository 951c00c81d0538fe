//! Batches on modelled functions: every byte, every outcome, and what it costs.
#![allow(missing_docs)]

use batch_copy::{
    BadInput, Batch, Folio, Host, Interval, Options, Outcome, OverlapCheck, Report, SkipReason,
};
use batch_copy_tests::memory::{Layout, Memory};
use batch_copy_tests::rig::{MAX_CHANNELS, Rig, Setup};
use proptest::prelude::*;
use ptdma::{DmaAddr, Signalling};

fn run(rig: &Rig, memory: &Memory, options: &Options) -> (Report, Vec<Outcome>) {
    let mut host = Host::new(rig.stepping());
    let (report, outcomes) = rig.run(memory, options, &mut host);
    (report, outcomes)
}

fn both() -> [Signalling; 2] {
    [Signalling::Polled, Signalling::Interrupts]
}

#[test]
fn every_size_and_layout_arrives() {
    for signalling in both() {
        for channels in [1, 4, 16] {
            let rig = Rig::new(Setup {
                channels,
                signalling,
                ..Setup::default()
            });
            for layout in [
                Layout::Scattered,
                Layout::Contiguous,
                Layout::Runs(3),
                Layout::SourceOnly,
            ] {
                for (len, count) in [(4096, 1), (4096, 64), (65536, 20), (2 << 20, 3), (1000, 7)] {
                    let memory = Memory::new(&rig.bus, &vec![len; count], layout, 1);
                    let (report, outcomes) = run(&rig, &memory, &Options::default());
                    assert!(outcomes.iter().all(|o| *o == Outcome::Dma));
                    assert!(report.is_complete(), "{report:?}");
                    assert_eq!(report.folios_dma, count);
                }
            }
            for channel in 0..channels {
                let stats = rig.channels.channel_stats(channel).unwrap();
                assert_eq!(stats.submitted, stats.completed);
            }
        }
    }
}

/// The figures that the issue asks for.
#[test]
fn costs_what_was_promised() {
    for signalling in both() {
        let rig = Rig::new(Setup {
            channels: 16,
            signalling,
            find_out: true,
            ..Setup::default()
        });
        let cost = |lens: &[usize], layout| {
            let before = rig.counters();
            let memory = Memory::new(&rig.bus, lens, layout, 7);
            let (report, _) = run(&rig, &memory, &Options::default());
            assert!(report.is_complete());
            let after = rig.counters();
            (
                report,
                after.mmio() - before.mmio(),
                after.interrupts - before.interrupts,
                after.doorbells - before.doorbells,
                after.descriptors - before.descriptors,
            )
        };
        let (report, mmio, interrupts, doorbells, descriptors) =
            cost(&[4096; 512], Layout::Scattered);
        assert_eq!((report.channels, descriptors, doorbells), (16, 512, 16));
        // Each channel: control to know of a reset, tail, RUN, the head; one clears an interrupt.
        assert!(
            mmio <= 80 && interrupts <= 16,
            "{signalling:?}: {mmio} {interrupts}"
        );

        let (report, mmio, interrupts, doorbells, descriptors) =
            cost(&[4096; 512], Layout::Contiguous);
        assert_eq!((report.channels, descriptors, doorbells), (16, 16, 16));
        assert_eq!(report.coalesced, 496);
        // RUN is taken away first, from an engine that was started before.
        assert!(mmio <= 96 && interrupts <= 16);

        let (report, _, _, _, descriptors) = cost(&[2 << 20], Layout::Scattered);
        assert_eq!((report.channels, descriptors), (16, 16));
    }
}

#[test]
fn rings_smaller_than_the_batch_are_refilled_and_never_run_dry() {
    for signalling in both() {
        for channels in [1, 4] {
            let rig = Rig::new(Setup {
                channels,
                entries: 32,
                signalling,
                ..Setup::default()
            });
            let memory = Memory::new(&rig.bus, &[512; 2000], Layout::Scattered, 3);
            let mut host = Host::new(rig.stepping());
            // The waiter looks about every four descriptors.
            host.wait.steps = 4;
            let mut options = Options::default();
            options.channels = channels;
            let (report, _outcomes) = rig.run(&memory, &options, &mut host);
            assert!(report.is_complete());
            let counters = rig.counters();
            // An engine drains its ring once: at the end.
            assert_eq!(counters.drained, channels as u64, "{signalling:?}");
            // Half a ring at a time.
            assert!(
                counters.doorbells <= 2000 / 15 + 2 * channels as u64,
                "{}",
                counters.doorbells
            );
        }
    }
}

#[test]
fn bad_input_is_refused_before_anything_is_submitted() {
    let rig = Rig::new(Setup {
        channels: 2,
        ..Setup::default()
    });
    let at = |src: u64, dst: u64, len: u64| Folio::new(DmaAddr::new(src), DmaAddr::new(dst), len);
    let mark = Outcome::NotAttempted(SkipReason::Declined);
    let attempt = |folios: &[Folio], room: usize, overlap: OverlapCheck<'_>, options: &Options| {
        let mut outcomes = vec![mark; room];
        let error = Batch::<MAX_CHANNELS>::new()
            .run(
                &rig.channels,
                folios,
                overlap,
                options,
                &mut Host::new(rig.stepping()),
                &mut outcomes,
            )
            .unwrap_err();
        assert!(outcomes.iter().all(|o| *o == mark));
        error
    };
    let fine = Options::default();
    let knows = || OverlapCheck::CallerKnows;
    let good = at(0, 0x10_0000, 4096);
    assert_eq!(
        attempt(&[good, at(1, 2, 0)], 2, knows(), &fine),
        BadInput::EmptyFolio { folio: 1 }
    );
    assert_eq!(
        attempt(&[good, good], 1, knows(), &fine),
        BadInput::TooManyFolios { room: 1 }
    );
    let mut on_none = fine;
    on_none.channels = 0;
    assert_eq!(attempt(&[good], 1, knows(), &on_none), BadInput::NoChannels);
    assert_eq!(
        attempt(&[at(0, 2048, 4096)], 1, knows(), &fine),
        BadInput::Overlap { folio: 0, other: 0 }
    );
    let high = (1 << 48) - 4095;
    assert!(matches!(
        attempt(&[at(high, 0, 4096)], 1, knows(), &fine),
        BadInput::OutOfRange { folio: 0, .. }
    ));
    assert!(matches!(
        attempt(&[at(0, u64::MAX - 5, 4096)], 1, knows(), &fine),
        BadInput::OutOfRange { folio: 0, .. }
    ));
    assert!(matches!(
        attempt(&[at(0, 4096, u64::MAX)], 1, knows(), &fine),
        BadInput::OutOfRange { folio: 0, .. }
    ));
    let clash = [good, at(0x20_0000, 0x10_0800, 4096)];
    let overlap = |error| matches!(error, BadInput::Overlap { .. });
    assert!(overlap(attempt(&clash, 2, OverlapCheck::Pairwise, &fine)));
    let mut scratch = [Interval::default(); 4];
    assert!(overlap(attempt(
        &clash,
        2,
        OverlapCheck::Sorted(&mut scratch),
        &fine
    )));
    assert_eq!(
        attempt(&clash, 2, OverlapCheck::Sorted(&mut scratch[..3]), &fine),
        BadInput::ScratchTooSmall { room: 3 }
    );
    let none = batch_copy_tests::rig::RigChannels::new();
    let error = Batch::<MAX_CHANNELS>::new()
        .run(
            &none,
            &[good][..],
            knows(),
            &fine,
            &mut Host::new(rig.stepping()),
            &mut [mark],
        )
        .unwrap_err();
    assert_eq!(error, BadInput::NoChannels);
    assert_eq!(rig.counters().mmio(), 0);
}

#[test]
fn an_empty_batch_is_nothing() {
    let rig = Rig::new(Setup {
        channels: 2,
        ..Setup::default()
    });
    let memory = Memory::new(&rig.bus, &[], Layout::Scattered, 0);
    let (report, _) = run(&rig, &memory, &Options::default());
    assert!(report.is_complete());
    assert_eq!(rig.counters().mmio(), 0);
}

#[test]
fn channels_near_the_destination_come_first() {
    let rig = Rig::new(Setup {
        channels: 8,
        ..Setup::default()
    });
    let used = |options: &Options| {
        let before: Vec<u64> = rig
            .models
            .iter()
            .map(|m| m.counters().descriptors)
            .collect();
        let memory = Memory::new(&rig.bus, &[4096; 64], Layout::Scattered, 0);
        run(&rig, &memory, options);
        rig.models
            .iter()
            .zip(before)
            .map(|(m, b)| m.counters().descriptors > b)
            .collect::<Vec<_>>()
    };
    let between = |src_node, dst_node| {
        let mut options = Options::default();
        options.channels = 4;
        options.src_node = Some(src_node);
        options.dst_node = Some(dst_node);
        options
    };
    let low = [true, true, true, true, false, false, false, false];
    let high = low.map(|used| !used);
    for _ in 0..10 {
        assert_eq!(used(&between(1, 0)), low);
        assert_eq!(used(&between(0, 1)), high);
        // No channel near the destination: the source's node is next best.
        assert_eq!(used(&between(1, 7)), high);
    }
}

#[test]
fn the_cpu_takes_its_share() {
    for signalling in both() {
        let rig = Rig::new(Setup {
            channels: 4,
            signalling,
            ..Setup::default()
        });
        for (lens, layout) in [
            (vec![4096; 512], Layout::Scattered),
            (vec![2 << 20; 4], Layout::Contiguous),
        ] {
            let memory = Memory::new(&rig.bus, &lens, layout, 3);
            let share = memory.bytes() / 5;
            let mut host = Host::new(rig.stepping()).with_cpu(memory.cpu());
            let mut options = Options::default();
            options.cpu_share_bytes = share;
            let (report, _outcomes) = rig.run(&memory, &options, &mut host);
            assert!(report.is_complete(), "{report:?}");
            assert!(report.cpu_bytes > 0);
            assert_eq!(host.cpu.bytes, report.cpu_bytes);
            assert!(report.cpu_bytes <= share + 4096);
            // The model only moves when it is waited for, so a CPU that never waits does the rest of it.
            assert!(report.dma_bytes > 0);
            assert_eq!(report.folios_cpu + report.folios_dma, lens.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn random_batches_arrive(
        lens in prop::collection::vec(prop_oneof![1_usize..9000, Just(4096), Just(65536), 100_000_usize..300_000], 0..80),
        channels in 1_usize..=16,
        entries in prop::sample::select(vec![2_usize, 4, 32, 256]),
        layout in prop::sample::select(vec![Layout::Scattered, Layout::Contiguous, Layout::Runs(4), Layout::SourceOnly]),
        interrupts in any::<bool>(),
        max_len_bytes in prop::sample::select(vec![100_u32, 4096, 5000, 2 << 20]),
        steps in prop::sample::select(vec![1_u64, 3, 1000]),
        use_channels in 1_usize..=20,
    ) {
        let signalling = if interrupts { Signalling::Interrupts } else { Signalling::Polled };
        let rig = Rig::new(Setup { channels, entries, signalling, max_len_bytes, ..Setup::default() });
        let memory = Memory::new(&rig.bus, &lens, layout, 5);
        let mut host = Host::new(rig.stepping());
        host.wait.steps = steps;
        let mut outcomes = vec![Outcome::NotAttempted(SkipReason::Declined); lens.len()];
        let mut options = Options::default();
options.channels = use_channels;
options.budget_ns = u64::MAX;
        let mut scratch = vec![Interval::default(); 2 * lens.len()];
        let report = Batch::<MAX_CHANNELS>::new()
            .run(&rig.channels, &memory.folios[..], OverlapCheck::Sorted(&mut scratch), &options, &mut host, &mut outcomes)
            .unwrap();
        prop_assert!(memory.verify(&outcomes).is_ok(), "{:?}", memory.verify(&outcomes));
        prop_assert!(report.is_complete(), "{:?}", report);
        prop_assert!(outcomes.iter().all(|o| *o == Outcome::Dma));
        prop_assert!(report.channels <= use_channels.min(channels));
        // Every byte once: the functions moved exactly what the batch has.
        prop_assert_eq!(rig.counters().bytes, memory.bytes());
    }
}
