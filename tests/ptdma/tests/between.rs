//! What happens between any two accesses of the driver: the engine moves or fails, the function is
//! reset, or is out of reach for a moment.
//!
//! A seed decides. Every byte is compared with what was claimed, on every kind of engine, whatever
//! the driver was told of it. Memory that was given back is overwritten at once, so an engine that
//! still writes there is seen. A run that fails names its seed, and prints the last accesses.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use ptdma::io::RegisterIo;
use ptdma::regs::Register;
use ptdma::{
    Channel, ChannelConfig, Cookie, Deadline, ErrorHead, Failure, Notify, Restart, Signalling,
};
use ptdma_model::fault::StallFor;
use ptdma_model::forks::{self, Forks};
use ptdma_model::{
    Access, BusBuffer, BusRing, BusSpace, Fault as Injected, FaultKind, Model, ModelConfig, Timing,
    Trigger,
};
use ptdma_tests::rig::quiesced;

const LEN_BYTES: usize = 32;
const OWNED: [u8; LEN_BYTES] = [0xaa; LEN_BYTES];

/// Runs of each machine, told each thing, with each chaos.
const SEEDS: std::ops::Range<u64> = 0..2;
/// Accesses that a run that fails prints.
const PRINTED: usize = 60;

/// What happens to the function, besides that its engine moves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Chaos {
    Nothing,
    /// It is out of reach for a few reads, and what is written meanwhile is lost.
    OutOfReach,
    /// Nobody announced it.
    Reset,
    /// The same, and head and tail stay where they were.
    ResetButHead,
}

/// What the driver knows of the engine, right or wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    Nothing,
    /// It finds out, and is disturbed while it does.
    FindsOut,
    /// That it needs RUN.
    ByRun,
    /// That it needs RUN; and of those that keep their head at a failure, that they do.
    ByRunAndHead,
}

/// SplitMix64.
struct Rng(Cell<u64>);

impl Rng {
    fn below(&self, n: u64) -> u64 {
        let x = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(x);
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % n
    }
}

/// What was done and seen, in order.
#[derive(Default)]
struct Trace(RefCell<Vec<String>>);

impl Trace {
    fn note(&self, line: impl Into<String>) {
        self.0.borrow_mut().push(line.into());
    }
}

struct Between<'m> {
    model: &'m Model,
    rng: &'m Rng,
    chaos: Chaos,
    on: &'m Cell<bool>,
    trace: &'m Trace,
}

impl Between<'_> {
    fn act(&self) {
        match self.rng.below(4) {
            0 | 1 => {}
            2 => {
                self.model.step();
            }
            _ => {
                for _ in 0..self.rng.below(6) {
                    self.model.step();
                }
            }
        }
        if !self.on.get() {
            return;
        }
        match self.chaos {
            Chaos::Nothing => {}
            Chaos::OutOfReach if self.rng.below(200) == 0 => {
                let reads = Some(1 + self.rng.below(4));
                self.model
                    .inject(Injected::new(Trigger::Now, FaultKind::AllOnes { reads }));
                self.trace.note("  ALLONES");
            }
            Chaos::Reset if self.rng.below(100) == 0 => {
                reset(self.model);
                self.trace.note("  RESET");
            }
            Chaos::ResetButHead if self.rng.below(100) == 0 => {
                let head = self.model.read(Register::Head);
                let tail = self.model.read(Register::Tail);
                reset(self.model);
                self.model.write(Register::Head, head);
                self.model.write(Register::Tail, tail);
                self.trace.note("  RESET keeping");
            }
            _ => {}
        }
    }
}

impl RegisterIo for Between<'_> {
    fn read(&self, register: Register) -> u32 {
        self.act();
        let value = self.model.read(register);
        self.trace.note(format!("  r {register:?} {value:#x}"));
        value
    }
    fn write(&self, register: Register, value: u32) {
        self.act();
        self.trace.note(format!("  w {register:?} {value:#x}"));
        self.model.write(register, value);
    }
}

fn reset(model: &Model) {
    let forks = model.forks();
    model.set_forks(Forks {
        reset: forks::Reset::Works,
        ..forks
    });
    assert!(model.function_reset());
    model.set_forks(forks);
}

struct Copy {
    src: BusBuffer,
    dst: BusBuffer,
}

/// What became of the copies.
#[derive(Clone, Copy, Debug, Default)]
struct Stats {
    good: u64,
    failed: u64,
    dropped: u64,
}

struct Run<'m> {
    bus: BusSpace,
    model: &'m Model,
    channel: Channel<Between<'m>, BusRing>,
    copies: BTreeMap<u64, Copy>,
    owned: Vec<(u64, BusBuffer)>,
    rng: &'m Rng,
    trace: &'m Trace,
    wrong: Option<String>,
    stats: Stats,
}

impl Run<'_> {
    fn submit(&mut self) {
        let number = self.channel.next_cookie().number();
        let src = self.bus.alloc(LEN_BYTES, 4, Access::ReadOnly).unwrap();
        let dst = self.bus.alloc(LEN_BYTES, 4, Access::ReadWrite).unwrap();
        let fill: Vec<u8> = (0..LEN_BYTES)
            .map(|i| (number as usize * 7 + i) as u8 | 1)
            .collect();
        src.write(0, &fill).unwrap();
        let trigger = Trigger::Touches {
            start: dst.addr().get(),
            len_bytes: 1,
        };
        let mut what = "";
        let fault = |kind, times| {
            let mut f = Injected::new(trigger.clone(), kind);
            f.times = times;
            self.model.inject(f);
        };
        match self.rng.below(8) {
            0 => {
                what = "bad";
                fault(
                    FaultKind::PartialWrite {
                        len_bytes: 5,
                        code: 38,
                    },
                    None,
                );
            }
            1 | 2 => {
                // Fails once only; is slow after that.
                what = "bad once";
                fault(
                    FaultKind::PartialWrite {
                        len_bytes: 5,
                        code: 38,
                    },
                    Some(1),
                );
                if self.rng.below(2) == 0 {
                    what = "bad once, slow";
                    let duration = StallFor::Steps(self.rng.below(900));
                    fault(
                        FaultKind::Stall {
                            duration,
                            haltable: false,
                        },
                        None,
                    );
                }
            }
            3 => {
                what = "slow";
                let duration = StallFor::Steps(self.rng.below(900));
                fault(
                    FaultKind::Stall {
                        duration,
                        haltable: false,
                    },
                    None,
                );
            }
            _ => {}
        }
        let request = self
            .channel
            .prep_copy(src.addr(), dst.addr(), LEN_BYTES as u64)
            .unwrap();
        if self.channel.submit(&request, Notify::Silent).is_ok() {
            self.trace.note(format!("submit {number} {what}"));
            self.copies.insert(number, Copy { src, dst });
        }
    }

    fn give_back(&mut self, number: u64, copy: Copy) {
        copy.dst.write(0, &OWNED).unwrap();
        self.owned.push((number, copy.dst));
    }

    fn take(&mut self, done_before: Cookie, failure: Option<Failure>) {
        let failed = failure.map(|f| f.cookie.number());
        self.trace
            .note(format!("done before {done_before}, {failure:?}"));
        while let Some(entry) = self.copies.first_entry() {
            let number = *entry.key();
            if !Cookie::new(number).is_before(done_before) {
                break;
            }
            let copy = entry.remove();
            if failed == Some(number) {
                self.stats.failed += 1;
            } else {
                self.stats.good += 1;
                if copy.src.to_vec() != copy.dst.to_vec() {
                    self.wrong.get_or_insert(format!("{number} is not there"));
                }
            }
            self.give_back(number, copy);
        }
    }

    fn drop_all(&mut self) {
        while let Some((number, copy)) = self.copies.pop_first() {
            self.stats.dropped += 1;
            self.give_back(number, copy);
        }
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.model, 3_000_000)
    }

    fn stop(&mut self) {
        self.trace.note("terminate");
        match self.channel.terminate(self.model, self.deadline()) {
            Ok(t) => {
                self.trace.note(format!("{t:?}"));
                self.take(t.first_dropped, None);
                self.drop_all();
                self.expect_owners();
            }
            Err(e) => {
                self.trace.note(format!("{e:?}, reset"));
                // Registers of a function that is out of reach for a moment.
                while !self.model.answers() {
                    self.model.miss();
                }
                reset(self.model);
                let _ = self.channel.recover(quiesced());
                self.drop_all();
            }
        }
    }

    fn look(&mut self) {
        let progress = match self.rng.below(8) {
            0 => self.channel.handle_interrupt(),
            1 => self.channel.check_lost_interrupt(),
            2 | 3 => {
                if let Some(done_before) = self.channel.poll_head() {
                    self.take(done_before, None);
                    return;
                }
                self.channel.poll()
            }
            _ => self.channel.poll(),
        };
        match progress {
            Ok(progress) => self.take(progress.done_before, progress.failure),
            Err(fault) => {
                self.trace.note(format!("{fault:?}"));
                self.stop();
            }
        }
    }

    fn expect_owners(&mut self) {
        for (number, dst) in &self.owned {
            if dst.to_vec() != OWNED {
                self.wrong.get_or_insert(format!("{number} written again"));
            }
        }
    }
}

fn one(forks: Forks, told: Told, chaos: Chaos, seed: u64) -> Stats {
    let rng = Rng(Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
    for _ in 0..4 {
        rng.below(2);
    }
    let bus = BusSpace::new();
    let model = Model::new(
        ModelConfig {
            forks,
            timing: Timing {
                read_ns: 100,
                write_ns: 10,
                ..Timing::default()
            },
            auto_step: 0,
        },
        bus.clone(),
    );
    let on = Cell::new(false);
    let trace = Trace::default();
    let regs = Between {
        model: &model,
        rng: &rng,
        chaos,
        on: &on,
        trace: &trace,
    };
    let entries = 1 << (1 + rng.below(if told == Told::FindsOut { 6 } else { 4 }));
    let at = forks.error_head == forks::ErrorHead::At;
    let mut config = ChannelConfig::default();
    config.signalling = [Signalling::Polled, Signalling::Interrupts][rng.below(2) as usize];
    config.restart = match told {
        Told::ByRun | Told::ByRunAndHead => Restart::ByRun,
        _ => Restart::Unknown,
    };
    config.error_head = match told {
        Told::ByRunAndHead if at => ErrorHead::AtFailing,
        _ => ErrorHead::Unknown,
    };
    let ring = BusRing::new(&bus, entries).unwrap();
    let Ok(channel) = Channel::bring_up(regs, ring, config) else {
        panic!("{forks}")
    };
    let mut run = Run {
        bus,
        model: &model,
        channel,
        copies: BTreeMap::new(),
        owned: Vec::new(),
        rng: &rng,
        trace: &trace,
        wrong: None,
        stats: Stats::default(),
    };
    on.set(true);
    if told == Told::FindsOut {
        let deadline = run.deadline();
        trace.note("find out");
        let found = run.channel.find_out(&model, deadline);
        trace.note(format!("{found:?}"));
        if found.is_err() {
            if chaos == Chaos::Nothing {
                run.wrong.get_or_insert(format!("find_out: {found:?}"));
            }
            // A ring that was not walked may be longer than the engine's: find out again, in peace.
            on.set(false);
            run.stop();
            let deadline = run.deadline();
            let again = run.channel.find_out(&model, deadline);
            assert!(again.is_ok(), "{forks}, seed {seed}: {again:?}");
            on.set(true);
        }
    }
    for _ in 0..40 {
        if run.wrong.is_some() {
            break;
        }
        match rng.below(30) {
            0 => run.stop(),
            1 => {
                trace.note("pause");
                let d = Deadline::after(&model, rng.below(20_000));
                let r = run.channel.pause(&model, d);
                trace.note(format!("{r:?}"));
                for _ in 0..rng.below(20) {
                    run.look();
                }
                trace.note("resume");
                run.channel.resume();
            }
            _ => {}
        }
        for _ in 0..rng.below(run.channel.burst_capacity() as u64 + 1) {
            run.submit();
        }
        trace.note("issue");
        run.channel
            .issue_pending([Notify::Silent, Notify::Interrupt][rng.below(2) as usize]);
        let looks = match rng.below(6) {
            0 => rng.below(600),
            _ => rng.below(25),
        };
        for _ in 0..looks {
            run.look();
        }
    }
    for _ in 0..30_000 {
        if run.channel.outstanding() == 0 || run.wrong.is_some() {
            break;
        }
        run.look();
    }
    if run.channel.outstanding() != 0 && run.wrong.is_none() {
        run.wrong = Some("never came".to_owned());
    }
    for _ in 0..3000 {
        model.step();
    }
    run.expect_owners();
    if let Some(wrong) = &run.wrong {
        let lines = trace.0.borrow();
        for line in &lines[lines.len().saturating_sub(PRINTED)..] {
            println!("{line}");
        }
        panic!("{forks}, told {told:?}, chaos {chaos:?}, seed {seed}: {wrong}");
    }
    run.stats
}

/// All machines, told everything.
fn all_runs(chaos: Chaos) {
    let named = Forks::MACHINES.iter().map(|machine| machine.forks);
    let machines: Vec<Forks> = named.chain(Forks::covering()).collect();
    let mut total = Stats::default();
    for told in [
        Told::Nothing,
        Told::FindsOut,
        Told::ByRun,
        Told::ByRunAndHead,
    ] {
        for &forks in &machines {
            for seed in SEEDS {
                let stats = one(forks, told, chaos, seed);
                total.good += stats.good;
                total.failed += stats.failed;
                total.dropped += stats.dropped;
            }
        }
    }
    println!("{chaos:?}: {total:?}");
    // Else nothing was tried.
    assert!(total.good > 1000 && total.failed > 1000 && total.dropped > 1000);
}

#[test]
fn the_engine_moves_between_two_accesses() {
    all_runs(Chaos::Nothing);
}

#[test]
fn the_function_is_out_of_reach_between_two_accesses() {
    all_runs(Chaos::OutOfReach);
}

#[test]
fn the_function_is_reset_between_two_accesses() {
    all_runs(Chaos::Reset);
}

#[test]
fn the_function_is_reset_and_keeps_its_head_between_two_accesses() {
    all_runs(Chaos::ResetButHead);
}
