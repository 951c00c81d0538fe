//! Calibration, decisions and sizes.
#![allow(missing_docs)]

use std::cell::Cell;

use batch_copy::{
    Batch, CALIBRATION_BYTES, CalibrationError, Channels, CostModel, CpuChannel, CpuCopier,
    CpuCopyError, Folio, Host, Options, Outcome, OverlapCheck, Piece, Policy, PtdmaQueue,
    SharedChannel, Wait, WaitFor, Wake, calibrate,
};
use batch_copy_tests::memory::{Layout, Memory};
use batch_copy_tests::rig::{MAX_CHANNELS, Rig, Setup};
use ptdma::{CoherentRing, DmaAddr, Mmio};
use ptdma_model::{ModelConfig, Timing};

/// What the machine in these tests really costs.
const ENGINE_NS_PER_MIB: u64 = 70_000;
const CPU_NS_PER_MIB: u64 = 94_000;
const DESCRIPTOR_NS: u64 = 2_000;

/// Time is what the functions need; all run at the same time.
struct Simulated<'a> {
    rig: &'a Rig,
    cpu_ns: &'a Cell<u64>,
}

impl Wait for Simulated<'_> {
    fn now_ns(&self) -> u64 {
        let busiest = self
            .rig
            .models
            .iter()
            .map(ptdma_model::Model::virtual_ns)
            .max();
        // Functions that did nothing have not moved on: add up, which only makes it later.
        busiest.unwrap_or(0) + self.cpu_ns.get()
    }
    fn wants_interrupts(&self) -> bool {
        false
    }
    fn wait(&mut self, _wait: &WaitFor) -> Wake {
        for model in &self.rig.models {
            model.run(100);
        }
        Wake::Poll
    }
}

struct TimedCpu<'a> {
    ns: &'a Cell<u64>,
}

impl CpuCopier for TimedCpu<'_> {
    fn copy(&mut self, piece: &Piece) -> Result<(), CpuCopyError> {
        self.ns
            .set(self.ns.get() + ((piece.len_bytes * CPU_NS_PER_MIB) >> 20));
        Ok(())
    }
}

fn rig(channels: usize) -> Rig {
    let timing = Timing {
        setup_ns: DESCRIPTOR_NS,
        bytes_per_second: (1_000_000_000 << 20) / ENGINE_NS_PER_MIB,
        ..Timing::default()
    };
    Rig::new(Setup {
        channels,
        model: ModelConfig {
            timing,
            ..ModelConfig::default()
        },
        ..Setup::default()
    })
}

fn near(a: u64, b: u64) -> bool {
    a.abs_diff(b) * 50 < b
}

#[test]
fn calibration_finds_what_the_machine_costs() {
    let rig = rig(1);
    let memory = Memory::new(&rig.bus, &[2 << 20], Layout::Scattered, 1);
    let cpu_ns = Cell::new(0);
    let mut host = Host::new(Simulated {
        rig: &rig,
        cpu_ns: &cpu_ns,
    })
    .with_cpu(TimedCpu { ns: &cpu_ns });
    let mut base = CostModel::default();
    base.channel_ns = 0;
    let model = calibrate(
        &rig.channels,
        &mut Batch::new(),
        &mut host,
        memory.folios[0],
        &base,
    )
    .unwrap();
    assert!(
        near(model.engine_ns_per_mib, ENGINE_NS_PER_MIB),
        "{model:?}"
    );
    assert!(near(model.cpu_ns_per_mib, CPU_NS_PER_MIB), "{model:?}");
    // The short copy: its descriptor and 4 KiB.
    assert!(
        near(
            model.engine_batch_ns,
            DESCRIPTOR_NS + ((4096 * ENGINE_NS_PER_MIB) >> 20)
        ),
        "{model:?}"
    );
    assert!(model.fabric_ns_per_mib <= model.engine_ns_per_mib);
}

#[test]
fn calibration_refuses_what_it_cannot_measure() {
    let rig = rig(1);
    let memory = Memory::new(
        &rig.bus,
        &[CALIBRATION_BYTES as usize - 1],
        Layout::Scattered,
        1,
    );
    let base = CostModel::default();
    let cpu_ns = Cell::new(0);
    let mut host = Host::new(Simulated {
        rig: &rig,
        cpu_ns: &cpu_ns,
    });
    let result = calibrate(
        &rig.channels,
        &mut Batch::new(),
        &mut host,
        memory.folios[0],
        &base,
    );
    assert_eq!(
        result,
        Err(CalibrationError::ScratchTooShort {
            len_bytes: CALIBRATION_BYTES - 1
        })
    );
    // A clock that stands still.
    let memory = Memory::new(
        &rig.bus,
        &[CALIBRATION_BYTES as usize],
        Layout::Scattered,
        1,
    );
    let still = Rig::new(Setup::default());
    let there = Memory::new(
        &still.bus,
        &[CALIBRATION_BYTES as usize],
        Layout::Scattered,
        1,
    );
    let mut host = Host::new(Simulated {
        rig: &still,
        cpu_ns: &cpu_ns,
    });
    let result = calibrate(
        &still.channels,
        &mut Batch::new(),
        &mut host,
        there.folios[0],
        &base,
    );
    assert_eq!(result, Err(CalibrationError::Clock));
    drop(memory);
}

#[test]
fn options_follow_the_decision() {
    let policy = Policy::default();
    let base = Options::default();
    assert_eq!(policy.options(1, 4096, 16, &base), None);
    let options = policy.options(512, 2 << 20, 16, &base).unwrap();
    assert!((2..=16).contains(&options.channels));
    assert_eq!(options.cpu_share_bytes, 0);
    let mut hybrid = policy;
    hybrid.hybrid = true;
    let options = hybrid.options(8, 16 << 20, 1, &base).unwrap();
    assert_eq!(options.channels, 1);
    // One engine at 14.8 GB/s, and a CPU at 11.6 GB/s: a little less than half for the CPU.
    assert!(
        (6 << 20..8 << 20).contains(&options.cpu_share_bytes),
        "{}",
        options.cpu_share_bytes
    );
    let mut off = policy;
    off.enabled = false;
    assert_eq!(off.options(512, 2 << 20, 16, &base), None);
    assert!(!off.should_batch(3) && policy.should_batch(3) && !policy.should_batch(10));
}

/// 16 channels and 8 batches at the same time: everything but ring memory, under 64 KiB.
#[test]
fn state_is_small() {
    type Real = PtdmaQueue<Mmio, CoherentRing>;
    let channels = size_of::<Channels<Real, spin::Mutex<SharedChannel<Real>>, 16>>();
    let batch = size_of::<Batch<16>>();
    let all = channels + 8 * batch;
    println!("channels {channels}, batch {batch}, all {all} bytes");
    assert!(all < 64 << 10, "{channels} + 8 * {batch} = {all}");
}

/// One suite for engines and for the CPU as a channel.
#[test]
fn the_cpu_is_a_channel_like_any_other() {
    use std::sync::Mutex;
    struct Bytes(Mutex<Vec<u8>>);
    impl CpuCopier for &Bytes {
        fn copy(&mut self, piece: &Piece) -> Result<(), CpuCopyError> {
            let range = |addr: DmaAddr| {
                let start = addr.get() as usize;
                start..start + piece.len_bytes as usize
            };
            let mut memory = self.0.lock().unwrap();
            let (src, dst) = (range(piece.src), range(piece.dst));
            if src.end > memory.len() || dst.end > memory.len() {
                return Err(CpuCopyError);
            }
            memory.copy_within(src, dst.start);
            Ok(())
        }
    }
    struct Look;
    impl Wait for Look {
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
    for count in [1, 3, 16] {
        let filled = (0..1_u32 << 20).map(|n| if n < 1 << 19 { (n % 251) as u8 } else { 255 });
        let bytes = Bytes(Mutex::new(filled.collect()));
        type Channel<'a> = CpuChannel<&'a Bytes, 4>;
        let mut channels =
            Channels::<Channel<'_>, spin::Mutex<SharedChannel<Channel<'_>>>, MAX_CHANNELS>::new();
        for _ in 0..count {
            assert!(
                channels
                    .add(spin::Mutex::new(SharedChannel::new(CpuChannel::new(
                        &bytes, None
                    ))))
                    .is_ok()
            );
        }
        let mut folios: Vec<Folio> = (0..100)
            .map(|n| {
                Folio::new(
                    DmaAddr::new(n * 5000),
                    DmaAddr::new((1 << 19) + n * 5000),
                    4000,
                )
            })
            .collect();
        // Out of memory: the copier fails, as an engine would.
        folios.push(Folio::new(
            DmaAddr::new(1 << 30),
            DmaAddr::new(1 << 31),
            4000,
        ));
        let mut outcomes = vec![Outcome::Dma; folios.len()];
        let report = Batch::new()
            .run(
                &channels,
                &folios[..],
                OverlapCheck::Pairwise,
                &Options::default(),
                &mut Host::new(Look),
                &mut outcomes,
            )
            .unwrap();
        let failed = Outcome::Failed(batch_copy::FailReason::Engine(batch_copy::CPU_COPY_FAILED));
        assert_eq!(outcomes.pop(), Some(failed));
        assert!(outcomes.iter().all(|o| *o == Outcome::Dma));
        assert_eq!(report.channels, count);
        let memory = bytes.0.lock().unwrap();
        for n in 0..100 {
            let (src, dst) = (n * 5000, (1 << 19) + n * 5000);
            assert_eq!(memory[src..src + 4000], memory[dst..dst + 4000]);
            assert_eq!(memory[dst + 4000], 255);
        }
    }
}
