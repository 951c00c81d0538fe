//! Several batches from several threads on engines that run by themselves, while everything goes
//! wrong: errors, hangs, lost interrupts, channels that are taken away and put back.
//!
//! `PTDMA_SOAK_SECONDS=3600 cargo test --release -p batch-copy-tests --test soak -- --nocapture`
//! runs it for an hour; 5 seconds is the default. The seed is printed and can be given in
//! `PTDMA_SOAK_SEED`.
#![allow(missing_docs)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use batch_copy::{
    Batch, Host, Options, Outcome, OverlapCheck, Piece, Polling, PtdmaQueue, Rescue, ServiceState,
    Sleeper, SpinThenSleep, Totals,
};
use batch_copy_tests::memory::{Layout, Memory};
use batch_copy_tests::rig::{MAX_CHANNELS, Rig, Setup};
use ptdma::{Channel, ChannelConfig, Clock, FunctionQuiesced, Signalling};
use ptdma_model::fault::StallFor;
use ptdma_model::{Fault, FaultKind};

const CHANNELS: usize = 6;
const WORKERS: u64 = 4;

/// Small and reproducible (`xorshift64*`).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

#[derive(Clone, Copy)]
struct Uptime(Instant);

impl Clock for Uptime {
    fn now(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// Counts interrupts that were handled; everybody who sleeps waits for the count to change.
#[derive(Default)]
struct Bell {
    rung: Mutex<u64>,
    changed: Condvar,
}

struct Nap<'a> {
    bell: &'a Bell,
    clock: Uptime,
    seen: u64,
}

impl Sleeper for Nap<'_> {
    fn sleep_until(&mut self, latest_ns: u64) -> bool {
        let limit = Duration::from_nanos(latest_ns.saturating_sub(self.clock.now()));
        let rung = self.bell.rung.lock().unwrap();
        let seen = self.seen;
        let (rung, result) = self
            .bell
            .changed
            .wait_timeout_while(rung, limit, |rung| *rung == seen)
            .unwrap();
        self.seen = *rung;
        !result.timed_out()
    }
}

struct Reset<'a>(&'a Rig);

impl Rescue for Reset<'_> {
    fn prove_stopped(&mut self, channel: usize) -> bool {
        self.0.models[channel].function_reset()
    }
    fn quarantined(&mut self, channel: usize, piece: &Piece) {
        panic!("channel {channel} was reset, yet {piece:?} is quarantined");
    }
}

fn worker(rig: &Rig, bell: &Bell, clock: Uptime, seed: u64, stop: &AtomicBool, totals: &Totals) {
    let mut random = Random(seed | 1);
    let mut state = Batch::<MAX_CHANNELS>::new();
    while !stop.load(Ordering::Relaxed) {
        let len = random.one_of(&[1, 3, 32, 100, 300]);
        let lens: Vec<usize> = (0..len)
            .map(|_| random.one_of(&[4096, 4096, 4096, 512, 16384, 65536, 100_000]))
            .collect();
        let layout = random.one_of(&[
            Layout::Scattered,
            Layout::Contiguous,
            Layout::Runs(7),
            Layout::SourceOnly,
        ]);
        let memory = Memory::new(&rig.bus, &lens, layout, random.next());
        let bytes = memory.bytes();
        let mut options = Options::default();
        options.channels = random.one_of(&[1, 2, 6, 16]);
        options.hang_ns = 30_000_000;
        options.grace_ns = 20_000_000;
        options.budget_ns =
            random.one_of(&[60_000_000_000, 60_000_000_000, 60_000_000_000, 300_000]);
        options.cpu_share_bytes = random.one_of(&[0, 0, bytes / 5]);
        options.repair = random.below(3) == 0;
        let mut outcomes = vec![Outcome::Dma; lens.len()];
        let nap = Nap {
            bell,
            clock,
            seen: *bell.rung.lock().unwrap(),
        };
        let folios = &memory.folios[..];
        let report = if random.below(2) == 0 {
            let mut host = Host::new(Polling(clock))
                .with_cpu(memory.cpu())
                .with_rescue(Reset(rig));
            state.run(
                &rig.channels,
                folios,
                OverlapCheck::CallerKnows,
                &options,
                &mut host,
                &mut outcomes,
            )
        } else {
            let spin_ns = random.one_of(&[0, 50_000]);
            let wait = SpinThenSleep::new(clock, nap, spin_ns, 5_000_000);
            let mut host = Host::new(wait)
                .with_cpu(memory.cpu())
                .with_rescue(Reset(rig));
            state.run(
                &rig.channels,
                folios,
                OverlapCheck::CallerKnows,
                &options,
                &mut host,
                &mut outcomes,
            )
        }
        .expect("a sound batch");
        let context = || format!("{options:?}\n{report:?}");
        memory
            .verify(&outcomes)
            .unwrap_or_else(|error| panic!("{error}\n{}", context()));
        assert_eq!(report.unaccounted_bytes, 0, "{}", context());
        assert!(
            !report.late || options.budget_ns == 300_000,
            "{}",
            context()
        );
        // Whoever still writes is caught.
        memory.refill(random.next());
        if random.below(4) == 0 {
            thread::sleep(Duration::from_millis(2));
        }
        assert!(
            memory.snapshot().iter().all(|&byte| byte == 0),
            "late write: {}",
            context()
        );
        memory.release(&rig.bus);
        totals.count(&report);
    }
}

/// Brings a channel that was taken out of service back into it, as a driver's owner would.
fn revive(rig: &Rig, channel: usize) {
    if rig.channels.service(channel) == Some(ServiceState::Active) {
        return;
    }
    if !rig.models[channel].function_reset() {
        return;
    }
    rig.channels.confirm_stopped(channel);
    // Batches may yet have to take note of what became of their work.
    let Ok(queue) = rig.channels.take(channel) else {
        return;
    };
    // SAFETY: the modelled function was reset; it reaches memory through the bus alone.
    let proof = unsafe { FunctionQuiesced::by_owner() };
    let (regs, ring, _) = queue.into_channel().shutdown_quiesced(proof);
    let mut config = ChannelConfig::default();
    config.signalling = Signalling::Interrupts;
    let fresh = match Channel::bring_up(regs, ring, config) {
        Ok(fresh) => fresh,
        Err((error, ..)) => panic!("bring-up after a reset: {error}"),
    };
    let queue = PtdmaQueue::new(fresh, None).with_stop_polls(2000);
    assert!(rig.channels.put(channel, queue).is_ok());
}

fn chaos(rig: &Rig, clock: Uptime, seed: u64, stop: &AtomicBool) -> u64 {
    let mut random = Random(seed | 1);
    let mut faults = 0;
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(1 + random.below(5)));
        let channel = random.below(CHANNELS as u64) as usize;
        let kind = match random.below(40) {
            0..10 => FaultKind::Error {
                code: random.below(64) as u8,
            },
            10..14 => FaultKind::PartialWrite {
                len_bytes: random.below(4096),
                code: 38,
            },
            14..20 => FaultKind::LostInterrupt,
            20..24 => FaultKind::SpuriousInterrupt,
            24..30 => FaultKind::Delay {
                ns: random.below(300_000),
            },
            30..33 => FaultKind::Stall {
                duration: StallFor::Micros(random.below(3000)),
                haltable: random.below(2) == 0,
            },
            33..35 => FaultKind::Stall {
                duration: StallFor::Ever,
                haltable: true,
            },
            35 => FaultKind::Stall {
                duration: StallFor::Ever,
                haltable: false,
            },
            36 => {
                rig.channels.retire(channel, clock.now());
                continue;
            }
            _ => {
                for channel in 0..CHANNELS {
                    revive(rig, channel);
                }
                continue;
            }
        };
        rig.models[channel].inject(Fault::at(random.below(20), kind).times(1));
        faults += 1;
    }
    faults
}

#[test]
fn everything_at_once() {
    let setting = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seconds = setting("PTDMA_SOAK_SECONDS").unwrap_or(5);
    let seed = setting("PTDMA_SOAK_SEED").unwrap_or_else(|| std::process::id().into());
    println!("seed {seed}, {seconds} s");
    let rig = Rig::new(Setup {
        channels: CHANNELS,
        entries: 64,
        signalling: Signalling::Interrupts,
        ..Setup::default()
    });
    let threads: Vec<_> = rig
        .models
        .iter()
        .map(|model| model.spawn_engine().unwrap())
        .collect();
    let clock = Uptime(Instant::now());
    let bell = Bell::default();
    let (stop, quiet) = (AtomicBool::new(false), AtomicBool::new(false));
    let totals = Totals::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            // The interrupt handler.
            while !quiet.load(Ordering::Relaxed) {
                if rig.deliver(clock.now()) {
                    *bell.rung.lock().unwrap() += 1;
                    bell.changed.notify_all();
                } else {
                    thread::sleep(Duration::from_micros(20));
                }
            }
        });
        let troubles = scope.spawn(|| chaos(&rig, clock, seed, &stop));
        let workers: Vec<_> = (0..WORKERS)
            .map(|index| {
                let (rig, bell, stop, totals) = (&rig, &bell, &stop, &totals);
                scope.spawn(move || worker(rig, bell, clock, seed * 31 + index, stop, totals))
            })
            .collect();
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end && !workers.iter().any(thread::ScopedJoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        let results: Vec<_> = workers
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        let faults = troubles.join().unwrap();
        quiet.store(true, Ordering::Relaxed);
        for result in results {
            if let Err(panic) = result {
                std::panic::resume_unwind(panic);
            }
        }
        println!("{faults} faults, {:?}", totals.get());
    });
    // Nothing is left behind: every channel can be taken away at once.
    for channel in 0..CHANNELS {
        rig.channels.retire(channel, clock.now());
        rig.channels.confirm_stopped(channel);
        assert!(rig.channels.take(channel).is_ok(), "channel {channel}");
    }
    assert!(
        totals.get().batches > 10 * seconds,
        "hardly anything was done"
    );
    drop(threads);
}
