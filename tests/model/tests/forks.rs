//! Each switch of [`Forks`]: what a driver sees on either side.
#![forbid(unsafe_code)]

use std::time::Duration;

use ptdma::descriptor::{CommandWord, Descriptor};
use ptdma::io::{RegisterIo, RingMemory};
use ptdma::regs::{ALL_ONES, Interrupts, QueueControl, Register};
use ptdma_model::fault::StallFor;
use ptdma_model::{
    Access, BusBuffer, BusRing, BusSpace, Fault, FaultKind, Forks, Model, ModelConfig, StepOutcome,
};

const ENTRIES: usize = 64;
const LEN: usize = 64;
/// A copy without IOC and EOM, as DPDK makes it.
const BARE: CommandWord = CommandWord::from_bits_retain(0x0050_0000);
/// A copy for engine 3.
const OTHER_ENGINE: CommandWord = CommandWord::from_bits_retain(0x0030_0010);

struct Bench {
    model: Model,
    ring: BusRing,
    control: QueueControl,
    next: usize,
    src: BusBuffer,
    dst: BusBuffer,
}

impl Bench {
    fn new(machine: &str) -> Self {
        let forks: Forks = machine.parse().unwrap();
        let bus = BusSpace::new();
        let config = ModelConfig {
            forks,
            ..ModelConfig::default()
        };
        let model = Model::new(config, bus.clone());
        let ring = BusRing::new(&bus, ENTRIES).unwrap();
        let control = QueueControl::empty()
            .with_size(6)
            .with_base_high(ring.base().high());
        let bytes = ENTRIES * LEN;
        let src = bus.alloc(bytes, 4096, Access::ReadOnly).unwrap();
        let dst = bus.alloc(bytes, 4096, Access::ReadWrite).unwrap();
        src.write(0, &vec![0x5a; bytes]).unwrap();
        let mut bench = Self {
            model,
            ring,
            control,
            next: 0,
            src,
            dst,
        };
        bench.set_up();
        bench
    }

    fn set_up(&mut self) {
        self.next = 0;
        self.model.write(Register::Control, self.control.bits());
        self.model.write(Register::Tail, self.ring.base().low());
        self.model.write(Register::Head, self.ring.base().low());
    }

    fn slot(&self, slot: usize) -> u32 {
        self.ring.base().low() + (slot % ENTRIES) as u32 * 32
    }

    fn put(&mut self, command: CommandWord) {
        let at = self.next % ENTRIES * LEN;
        let (src, dst) = (self.src.addr_of(at).unwrap(), self.dst.addr_of(at).unwrap());
        let descriptor = Descriptor::copy(command, src, dst, LEN as u32);
        self.ring.store(self.next % ENTRIES, &descriptor);
        self.ring.publish();
        self.next += 1;
    }

    fn tail(&self) {
        self.model.write(Register::Tail, self.slot(self.next));
    }

    fn run(&self) {
        let run = self.control | QueueControl::RUN;
        self.model.write(Register::Control, run.bits());
    }

    fn stop(&self) {
        self.model.write(Register::Control, self.control.bits());
    }

    /// Submits `count` copies and lets the engine go, without a step.
    fn go(&mut self, count: usize) {
        for _ in 0..count {
            self.put(CommandWord::COPY);
        }
        self.tail();
        self.run();
    }

    /// Copies `count` times.
    fn copy(&mut self, count: usize) {
        self.go(count);
        assert_eq!(self.model.run(1000), count as u64);
    }

    /// Submits `count` copies of which number `bad` fails, and lets them end.
    fn fail(&mut self, count: usize, bad: u64) {
        let error = FaultKind::Error { code: 19 };
        self.model.inject(Fault::at(bad, error));
        self.go(count);
        assert_eq!(self.model.run(1000), bad + 1);
    }

    fn control(&self) -> QueueControl {
        QueueControl::from_bits_retain(self.model.read(Register::Control))
    }

    fn halt(&self) -> bool {
        self.control().contains(QueueControl::HALT)
    }

    fn runs(&self) -> bool {
        self.control().contains(QueueControl::RUN)
    }

    fn head(&self) -> usize {
        ((self.model.read(Register::Head) - self.ring.base().low()) / 32) as usize
    }

    fn status(&self) -> Interrupts {
        Interrupts::from_bits_retain(self.model.read(Register::InterruptStatus))
    }

    fn code(&self) -> u32 {
        self.model.read(Register::Status)
    }

    fn arrived(&self, slot: usize) -> bool {
        self.dst.to_vec()[slot * LEN..][..LEN]
            .iter()
            .all(|&b| b == 0x5a)
    }

    fn stall(&self, haltable: bool) {
        let kind = FaultKind::Stall {
            duration: StallFor::Ever,
            haltable,
        };
        self.model.inject(Fault::at(0, kind));
    }
}

/// HALT after power-on, with work in the engine, drained, after an error, after a stop of an idle
/// engine, and after a stop with work left.
fn halt_history(machine: &str) -> [bool; 6] {
    let b = Bench::new(machine);
    let power_on = b.halt();
    let mut b = Bench::new(machine);
    b.go(2);
    let working = b.halt();
    assert_eq!(b.model.run(9), 2);
    let drained = b.halt();
    let mut failed = Bench::new(machine);
    failed.fail(2, 0);
    let error = failed.halt();
    // After the drain above; RUN again, so that there is something to take away.
    b.run();
    b.stop();
    let idle = b.halt();
    let mut b = Bench::new(machine);
    b.go(2);
    b.model.step();
    b.stop();
    assert_eq!(b.model.run(9), 0, "a stop is obeyed whatever HALT says");
    [power_on, working, drained, error, idle, b.halt()]
}

#[test]
fn halt_tells_what_the_fork_says() {
    let cases = [
        ("today", [true, false, true, true, true, true]),
        ("lenient", [true, false, false, true, true, true]),
        ("halt=not_busy", [true, false, true, true, true, true]),
        ("sibling", [true, false, true, true, true, true]),
        ("stopper", [true, false, false, false, true, true]),
        (
            "lenient,halt=on_stop",
            [true, false, false, false, true, true],
        ),
        ("halt=on_error", [false, false, false, true, false, false]),
        ("dpdk", [true, false, true, false, true, false]),
        ("silent", [false; 6]),
        ("halt=never", [false; 6]),
        // A stop of an idle engine that does not read back.
        (
            "lenient,idle_stop=nothing",
            [true, false, false, true, false, true],
        ),
        (
            "stopper,idle_stop=nothing",
            [true, false, false, false, false, true],
        ),
    ];
    for (machine, expected) in cases {
        assert_eq!(halt_history(machine), expected, "{machine}");
    }
}

#[test]
fn a_write_of_control_can_clear_halt() {
    for (machine, after) in [("today", true), ("control_write=clears", false)] {
        let mut b = Bench::new(machine);
        b.copy(1);
        assert!(b.halt());
        b.stop();
        assert_eq!(b.halt(), after, "{machine}");
        // The engine stands still once more, and tells.
        b.copy(1);
        assert!(b.halt());
    }
    // The write that stops the engine does not clear what it causes.
    let mut b = Bench::new("sibling,halt=on_stop,control_write=clears");
    b.go(2);
    b.model.step();
    b.stop();
    assert!(b.halt());
}

#[test]
fn halt_can_read_one_long_after_run() {
    let mut b = Bench::new("today,late=3reads");
    b.go(2);
    assert_eq!(
        [b.halt(), b.halt(), b.halt(), b.halt()],
        [true, true, true, false]
    );
    assert_eq!(b.model.run(9), 2);
    // Also while a descriptor is in the engine that was told to stop.
    let mut b = Bench::new("today,late=3reads");
    b.stall(false);
    b.go(1);
    assert_eq!(b.model.step(), StepOutcome::Stalled);
    b.stop();
    assert_eq!(
        [b.halt(), b.halt(), b.halt(), b.halt()],
        [true, true, true, false]
    );

    let mut b = Bench::new("today,late=3000000us");
    b.go(2);
    assert!(b.halt() && b.runs());
    let mut b = Bench::new("today,late=1us");
    b.go(2);
    std::thread::sleep(Duration::from_millis(1));
    assert!(!b.halt());
}

#[test]
fn run_reads_back_as_the_fork_says() {
    let cases = [
        ("today", [true, false, false]),
        ("run=stays", [true, true, true]),
        ("run=on_error", [true, true, false]),
        ("run=on_drain", [true, false, true]),
        ("restart=tail,run=both", [true, false, false]),
        ("lenient", [true, true, false]),
    ];
    for (machine, expected) in cases {
        let mut b = Bench::new(machine);
        b.go(1);
        let working = b.runs();
        b.model.run(9);
        let drained = b.runs();
        let mut b = Bench::new(machine);
        b.fail(2, 0);
        assert_eq!([working, drained, b.runs()], expected, "{machine}");
        // Whatever it reads, an engine that failed needs RUN, and software takes RUN away.
        b.model.write(Register::Head, b.slot(1));
        assert_eq!(b.model.run(9), 0);
        b.run();
        assert_eq!(b.model.run(9), 1);
        b.stop();
        assert!(!b.runs());
    }
}

#[test]
fn a_drained_queue_goes_on_by_the_tail_or_by_run() {
    for (machine, by_tail) in [
        ("today", 0),
        ("sibling", 1),
        ("restart=tail", 1),
        ("run=stays", 0),
    ] {
        let mut b = Bench::new(machine);
        b.copy(2);
        b.put(CommandWord::COPY);
        b.tail();
        assert_eq!(b.model.run(9), by_tail, "{machine}");
        b.run();
        assert_eq!(b.model.run(9), 1 - by_tail);
        assert_eq!(b.head(), 3);
        // Without RUN neither does.
        b.stop();
        b.put(CommandWord::COPY);
        b.tail();
        assert_eq!(b.model.run(9), 0);
    }
}

#[test]
fn job_status_is_beside_the_code() {
    let mut b = Bench::new("sibling");
    assert_eq!(b.code(), 0);
    b.stall(false);
    b.go(2);
    assert_eq!(b.code() >> 7 & 7, 2);
    b.model.step();
    assert_eq!(b.code() >> 7 & 7, 1);
    b.stop();
    assert_eq!(b.code() >> 7 & 7, 5);
    b.model.clear_faults();
    b.model.run(9);
    assert_eq!(b.code(), 0);
    let mut b = Bench::new("sibling");
    b.fail(2, 1);
    assert_eq!(b.code(), 4 << 7 | 19);
    let mut b = Bench::new("today");
    b.fail(2, 1);
    assert_eq!(b.code(), 19);
}

#[test]
fn head_after_an_error() {
    for (machine, expected) in [("today", 1), ("head=past", 2), ("head=tail", 4)] {
        let mut b = Bench::new(machine);
        b.fail(4, 1);
        assert_eq!(b.head(), expected, "{machine}");
        b.run();
        b.model.run(9);
        let arrived: Vec<bool> = (0..4).map(|n| b.arrived(n)).collect();
        // At it: tried again. Past it: left out. At the tail: what is behind is left out, too.
        assert_eq!(arrived, [true, expected == 1, expected != 4, expected != 4]);
    }
}

#[test]
fn the_code_stays_as_long_as_the_fork_says() {
    for (machine, again, after_run) in
        [("today", 19, 0), ("code=kept", 19, 19), ("code=read", 0, 0)]
    {
        let mut b = Bench::new(machine);
        b.fail(2, 0);
        assert_eq!(b.code(), 19);
        assert_eq!(b.code(), again, "{machine}");
        b.run();
        assert_eq!(b.model.run(9), 2);
        assert_eq!(b.code(), after_run, "{machine}");
    }
    // Unread, a code that goes when it is read outlives RUN.
    let mut b = Bench::new("code=read");
    b.fail(2, 0);
    b.run();
    assert_eq!(b.code(), 19);
}

#[test]
fn status_that_is_not_enabled_may_be_lost() {
    for (machine, latches) in [("today", true), ("latch=enabled", false)] {
        let mut b = Bench::new(machine);
        b.copy(1);
        assert_eq!(!b.status().is_empty(), latches, "{machine}");
        b.model.write(Register::InterruptStatus, ALL_ONES);
        b.model
            .write(Register::InterruptEnable, Interrupts::ERROR.bits());
        b.fail(1, 0);
        assert!(b.status().contains(Interrupts::ERROR));
        assert_eq!(b.status().contains(Interrupts::STOPPED), latches);
        assert_eq!(b.model.counters().interrupts, 1);
        // Enabled too late: nothing comes back.
        b.model.write(Register::InterruptStatus, ALL_ONES);
        b.model.write(Register::InterruptEnable, 0);
        b.run();
        b.model.run(9);
        b.model
            .write(Register::InterruptEnable, Interrupts::KNOWN.bits());
        assert_eq!(b.model.counters().interrupts, 1 + u64::from(latches));
    }
}

#[test]
fn completion_may_need_the_end_of_message() {
    for (machine, needs) in [("today", false), ("completion=ioc_eom", true)] {
        for (command, expected) in [
            (BARE | CommandWord::IOC, !needs),
            (CommandWord::COPY_IOC, true),
            (CommandWord::COPY, false),
            (BARE, false),
        ] {
            let mut b = Bench::new(machine);
            b.put(command);
            b.tail();
            b.run();
            assert_eq!(b.model.run(9), 1);
            assert!(b.arrived(0));
            let completion = b.status().contains(Interrupts::COMPLETION);
            assert_eq!(completion, expected, "{machine} {command:?}");
        }
    }
}

#[test]
fn an_unknown_engine() {
    let outcome = |machine| {
        let mut b = Bench::new(machine);
        b.put(OTHER_ENGINE);
        b.go(1);
        b.model.run(50);
        (b.head(), b.arrived(0), b.arrived(1), b.code())
    };
    assert_eq!(outcome("today"), (0, false, false, 1));
    assert_eq!(outcome("engine=ignored"), (2, false, true, 0));
    assert_eq!(outcome("engine=taken"), (2, true, true, 0));
    assert_eq!(outcome("engine=hangs"), (0, false, false, 0));
    let mut b = Bench::new("engine=hangs");
    b.put(OTHER_ENGINE);
    b.go(1);
    b.model.step();
    b.stop();
    b.model.clear_faults();
    assert_eq!(b.model.run(50), 0);
    assert!(!b.halt());
    assert!(b.model.function_reset());
    b.set_up();
    b.copy(1);
    assert!(b.arrived(0));
}

#[test]
fn function_level_reset() {
    let busy = |machine| {
        let mut b = Bench::new(machine);
        b.stall(false);
        b.go(1);
        b.model.step();
        b
    };
    let mut b = busy("today");
    assert!(b.model.function_reset());
    assert!(!b.model.programmed());
    b.set_up();
    b.copy(1);

    let b = busy("reset=absent");
    assert!(!b.model.function_reset());
    assert!(b.model.programmed() && b.model.answers());
    b.model.clear_faults();
    assert_eq!(b.model.run(9), 1);
    assert!(b.arrived(0));

    let b = busy("reset=lost");
    assert!(b.model.function_reset());
    for _ in 0..10_000 {
        assert_eq!(b.model.read(Register::Control), ALL_ONES);
    }
    assert!(!b.model.function_reset());
    b.model.power_cycle();
    assert_eq!(
        b.control() & (QueueControl::RUN | QueueControl::SIZE),
        QueueControl::empty()
    );
    assert!(!b.arrived(0));

    let b = busy("reset=away:3reads");
    assert!(b.model.function_reset());
    // A read of configuration space counts, too.
    b.model.miss();
    assert_eq!(b.model.read(Register::Control), ALL_ONES);
    assert_eq!(b.model.read(Register::Control), ALL_ONES);
    assert_ne!(b.model.read(Register::Control), ALL_ONES);
    assert_eq!(b.model.counters().resets, 1);

    let mut b = busy("reset=away:2000us");
    assert!(b.model.function_reset());
    b.model.write(Register::Tail, 0x1234);
    assert_eq!(b.model.read(Register::Tail), ALL_ONES);
    std::thread::sleep(Duration::from_millis(4));
    assert!(b.model.answers());
    assert_eq!(b.model.read(Register::Tail), 0);
    b.set_up();
    b.copy(1);
}

#[test]
fn a_power_cycle_stops_a_function_that_does_not_answer() {
    let mut b = Bench::new("reset=absent");
    b.stall(false);
    b.go(1);
    b.model.step();
    b.model
        .inject(Fault::now(FaultKind::AllOnes { reads: None }));
    b.model.power_cycle();
    b.model.clear_faults();
    assert_eq!(b.model.run(9), 0);
    assert!(!b.arrived(0) && !b.model.programmed());
}

#[test]
fn without_the_bus_the_engine_fails_or_waits() {
    let mut b = Bench::new("today");
    b.go(2);
    b.model.set_bus_master(false);
    assert!(matches!(b.model.step(), StepOutcome::Failed { .. }));
    assert_eq!((b.head(), b.code()), (0, 20));
    b.model.set_bus_master(true);
    b.run();
    assert_eq!(b.model.run(9), 2);

    let mut b = Bench::new("bus_master=holds");
    b.stall(false);
    b.go(3);
    b.model.step();
    b.model.set_bus_master(false);
    b.model.clear_faults();
    assert_eq!(b.model.run(50), 0);
    assert!(!b.arrived(0) && !b.halt());
    // A stop does not undo what is in the engine.
    b.stop();
    b.model.set_bus_master(true);
    assert_eq!(b.model.run(9), 1);
    assert!(b.arrived(0) && !b.arrived(1) && b.halt());
}

#[test]
fn an_engine_thread_takes_no_more_from_the_bus_once_it_must_not() {
    for machine in ["today", "bus_master=holds"] {
        let mut b = Bench::new(machine);
        let thread = b.model.spawn_engine().unwrap();
        b.go(ENTRIES - 1);
        b.model.set_bus_master(false);
        let seen = b.dst.to_vec();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(b.dst.to_vec(), seen, "{machine}");
        b.model.set_bus_master(true);
        if machine != "today" {
            let start = std::time::Instant::now();
            while b.head() != ENTRIES - 1 {
                assert!(start.elapsed() < Duration::from_secs(20));
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        drop(thread);
    }
}

#[test]
fn rings_can_be_limited() {
    let size = |machine| Bench::new(machine).control().entries();
    assert_eq!(size("today"), 64);
    assert_eq!(size("ring=reads_back:32"), 32);
    assert_eq!(size("ring=reads_back:128"), 64);
    assert_eq!(size("ring=wraps:32"), 64);

    // The driver believes in 64 entries; the engine wraps after 32, and never meets the tail.
    let mut b = Bench::new("ring=wraps:32");
    for _ in 0..31 {
        b.copy(1);
    }
    assert_eq!(b.head(), 31);
    b.go(2);
    assert_eq!(b.model.run(3), 3);
    assert_eq!(b.head(), 2);
    assert!(!b.arrived(32));
    // A tail inside of the short ring ends the walk.
    b.model.write(Register::Tail, b.slot(5));
    assert_eq!(b.model.run(100), 3);
    assert_eq!(b.head(), 5);

    // A short ring is not affected.
    let mut b = Bench::new("ring=wraps:64");
    for _ in 0..5 {
        b.copy(ENTRIES - 1);
    }
    assert_eq!(b.head(), 5 * (ENTRIES - 1) % ENTRIES);
}

#[test]
fn a_machine_can_be_changed_while_it_lives() {
    let mut b = Bench::new("today");
    b.copy(1);
    b.model.set_forks(Forks::SIBLING);
    assert_eq!(b.model.config().forks, Forks::SIBLING);
    b.copy(1);
    b.put(CommandWord::COPY);
    b.tail();
    assert_eq!(b.model.run(9), 1);
    assert!(b.halt() && b.runs());
}

/// The stock driver's way on every machine: one descriptor at a time with IOC and EOM, RUN for
/// each, head moved to the tail after an error, and nothing but the interrupt status believed.
#[test]
fn the_stock_way_works_on_every_machine() {
    let mut machines = Forks::covering();
    machines.extend(Forks::MACHINES.iter().map(|m| m.forks));
    for base in [Forks::TODAY, Forks::SIBLING] {
        machines.extend(base.deviations());
    }
    for forks in machines {
        let mut b = Bench::new(&forks.to_string());
        b.control = b.control.with_size(5);
        b.set_up();
        let enable = Interrupts::COMPLETION | Interrupts::ERROR;
        b.model.write(Register::InterruptEnable, enable.bits());
        for n in 0..100usize {
            if n % 17 == 3 {
                b.model.inject(Fault::at(0, FaultKind::Error { code: 19 }));
            }
            b.dst.write(n % 32 * LEN, &[0; LEN]).unwrap();
            let slot = n % 32;
            b.next = slot;
            b.put(CommandWord::COPY_IOC);
            b.next %= 32;
            b.tail();
            b.run();
            b.model.run(9);
            let status = b.status();
            b.model.write(Register::InterruptStatus, status.bits());
            if status.contains(Interrupts::ERROR) {
                assert_eq!(n % 17, 3, "{forks}: {n}");
                b.model.write(Register::Head, b.slot(b.next));
                b.run();
            } else {
                assert!(status.contains(Interrupts::COMPLETION), "{forks}: {n}");
                assert!(b.arrived(slot), "{forks}: {n}");
            }
        }
        assert_eq!(b.model.counters().errors, 6, "{forks}");
        assert_eq!(b.model.counters().descriptors, 94, "{forks}");
    }
}
