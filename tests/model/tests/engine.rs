//! The model against its own description: every rule and every fault.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use ptdma::descriptor::{CommandWord, Descriptor};
use ptdma::io::{RegisterIo, RingMemory};
use ptdma::regs::{ALL_ONES, Interrupts, QueueControl, Register};
use ptdma::{DmaAddr, ErrorCode, KnownError};
use ptdma_model::fault::StallFor;
use ptdma_model::forks;
use ptdma_model::{
    Access, BusBuffer, BusRing, BusSpace, EngineThread, Fault, FaultKind, Forks, InterruptLine,
    Model, ModelConfig, Side, StepOutcome, Timing, Trigger,
};

const ENTRIES: usize = 32;
const LEN: usize = 256;
/// Bound on every wait for a thread; far more than any of them needs.
const LIMIT: Duration = Duration::from_secs(20);

/// A minimal driver: just enough to put descriptors into the ring.
struct Bench {
    bus: BusSpace,
    model: Model,
    ring: BusRing,
    control: QueueControl,
    next: usize,
    src: BusBuffer,
    dst: BusBuffer,
    line: InterruptLine,
}

impl Bench {
    fn new(config: ModelConfig) -> Self {
        let bus = BusSpace::new();
        let model = Model::new(config, bus.clone());
        let ring = BusRing::new(&bus, ENTRIES).unwrap();
        let control = QueueControl::empty()
            .with_size(5)
            .with_base_high(ring.base().high());
        let src = bus.alloc(ENTRIES * LEN, 4096, Access::ReadWrite).unwrap();
        let dst = bus.alloc(ENTRIES * LEN, 4096, Access::ReadWrite).unwrap();
        let pattern: Vec<u8> = (0..ENTRIES * LEN).map(|i| (i % 251) as u8 + 1).collect();
        src.write(0, &pattern).unwrap();
        let line = model.interrupt_line();
        let mut bench = Self {
            bus,
            model,
            ring,
            control,
            next: 0,
            src,
            dst,
            line,
        };
        bench.set_up();
        bench
    }

    fn strict() -> Self {
        Self::new(ModelConfig::default())
    }

    fn lenient() -> Self {
        Self::with(Forks::LENIENT)
    }

    fn with(forks: Forks) -> Self {
        Self::new(ModelConfig {
            forks,
            ..ModelConfig::default()
        })
    }

    fn set_up(&mut self) {
        self.next = 0;
        self.model.write(Register::Control, self.control.bits());
        self.model.write(Register::Tail, self.ring.base().low());
        self.model.write(Register::Head, self.ring.base().low());
    }

    fn slot_addr(&self, slot: usize) -> u32 {
        self.ring.base().low() + (slot % ENTRIES) as u32 * 32
    }

    fn put(&mut self, descriptor: &Descriptor) {
        self.ring.store(self.next % ENTRIES, descriptor);
        self.next += 1;
    }

    /// Copies part `slot` of the source to the same part of the destination.
    fn copy(&self, command: CommandWord, slot: usize) -> Descriptor {
        let at = slot % ENTRIES * LEN;
        Descriptor::copy(
            command,
            self.src.addr_of(at).unwrap(),
            self.dst.addr_of(at).unwrap(),
            LEN as u32,
        )
    }

    fn queue(&mut self, count: usize, command: CommandWord) {
        for _ in 0..count {
            let descriptor = self.copy(command, self.next);
            self.put(&descriptor);
        }
        self.ring.publish();
    }

    fn ring_doorbell(&self) {
        self.model.write(Register::Tail, self.slot_addr(self.next));
    }

    fn run(&self) {
        let run = self.control | QueueControl::RUN;
        self.model.write(Register::Control, run.bits());
    }

    fn go(&mut self, count: usize, command: CommandWord) {
        self.queue(count, command);
        self.ring_doorbell();
        self.run();
    }

    fn control(&self) -> QueueControl {
        QueueControl::from_bits_retain(self.model.read(Register::Control))
    }

    fn stopped(&self) -> bool {
        let c = self.control();
        c.contains(QueueControl::HALT) && !c.contains(QueueControl::RUN)
    }

    fn status(&self) -> Interrupts {
        Interrupts::from_bits_retain(self.model.read(Register::InterruptStatus))
    }

    fn enable(&self, bits: Interrupts) {
        self.model.write(Register::InterruptEnable, bits.bits());
    }

    fn ack(&self) {
        let status = self.status();
        self.model.write(Register::InterruptStatus, status.bits());
    }

    /// Whether part `slot` has arrived.
    fn arrived(&self, slot: usize) -> bool {
        let at = slot * LEN;
        self.src.to_vec()[at..at + LEN] == self.dst.to_vec()[at..at + LEN]
    }

    fn untouched(&self, slot: usize) -> bool {
        let at = slot * LEN;
        self.dst.to_vec()[at..at + LEN].iter().all(|&b| b == 0)
    }

    fn head_slot(&self) -> usize {
        ((self.model.read(Register::Head) - self.ring.base().low()) / 32) as usize
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

const DONE: StepOutcome = StepOutcome::Completed {
    len_bytes: LEN as u64,
};

fn failed(code: KnownError) -> StepOutcome {
    StepOutcome::Failed { code: code.code() }
}

#[test]
fn one_step_is_one_descriptor() {
    let mut b = Bench::strict();
    b.go(3, CommandWord::COPY);
    assert_eq!(
        b.control() & (QueueControl::RUN | QueueControl::HALT),
        QueueControl::RUN
    );
    for n in 0..3 {
        assert_eq!(b.head_slot(), n);
        assert!(b.untouched(n));
        assert_eq!(b.model.step(), DONE);
        assert!(b.arrived(n));
    }
    assert_eq!(b.model.step(), StepOutcome::Idle);
    assert_eq!(b.head_slot(), 3);
    assert!(b.stopped());
    let c = b.model.counters();
    assert_eq!(
        (c.descriptors, c.bytes, c.drained, c.errors),
        (3, 768, 1, 0)
    );
    assert_eq!((c.doorbells, c.run_writes, c.interrupts), (2, 1, 0));
}

#[test]
fn strict_needs_run_again_and_lenient_does_not() {
    for (mut b, lenient) in [(Bench::strict(), false), (Bench::lenient(), true)] {
        b.go(2, CommandWord::COPY);
        assert_eq!(b.model.run(100), 2);
        assert_eq!(b.stopped(), !lenient);
        let stopped = b.status().contains(Interrupts::STOPPED);
        assert_eq!(stopped, !lenient);
        assert!(b.status().contains(Interrupts::EMPTY));
        b.queue(1, CommandWord::COPY);
        b.ring_doorbell();
        assert_eq!(b.model.run(100), u64::from(lenient));
        b.run();
        assert_eq!(b.model.run(100), u64::from(!lenient));
        assert_eq!(b.head_slot(), 3);
    }
}

#[test]
fn a_tail_write_while_running_is_seen_by_a_strict_engine() {
    let mut b = Bench::strict();
    b.go(2, CommandWord::COPY);
    assert_eq!(b.model.step(), DONE);
    b.queue(2, CommandWord::COPY);
    b.ring_doorbell();
    assert_eq!(b.model.run(100), 3);
    assert!(b.stopped());
}

#[test]
fn the_ring_wraps() {
    let mut b = Bench::strict();
    for round in 0..5 {
        b.go(ENTRIES - 1, CommandWord::COPY);
        assert_eq!(b.model.run(100), ENTRIES as u64 - 1, "round {round}");
    }
    assert_eq!(b.head_slot(), 5 * (ENTRIES - 1) % ENTRIES);
}

#[test]
fn soc_stops_with_work_left_and_run_goes_on() {
    let mut b = Bench::strict();
    b.queue(1, CommandWord::COPY | CommandWord::SOC);
    b.go(1, CommandWord::COPY);
    assert_eq!(b.model.run(100), 1);
    assert!(b.stopped());
    assert_eq!(b.head_slot(), 1);
    assert_eq!(b.status(), Interrupts::STOPPED);
    b.run();
    assert_eq!(b.model.run(100), 1);
}

#[test]
fn status_latches_without_enable_and_is_cleared_by_ones() {
    let mut b = Bench::strict();
    b.go(2, CommandWord::COPY_IOC);
    b.model.step();
    assert_eq!(b.status(), Interrupts::COMPLETION);
    b.model.write(Register::InterruptStatus, 0);
    assert_eq!(b.status(), Interrupts::COMPLETION);
    b.ack();
    assert_eq!(b.status(), Interrupts::empty());
    b.model.step();
    let all = Interrupts::COMPLETION | Interrupts::EMPTY | Interrupts::STOPPED;
    assert_eq!(b.status(), all);
    assert_eq!(b.line.count(), 0);
}

#[test]
fn messages_follow_status_and_enable() {
    let mut b = Bench::strict();
    b.enable(Interrupts::COMPLETION | Interrupts::ERROR);
    b.go(3, CommandWord::COPY_IOC);
    b.model.step();
    assert_eq!(b.line.count(), 1);
    // Still asserted: no edge, no message.
    b.model.step();
    assert_eq!(b.line.count(), 1);
    // What the Linux handler does: off, read, clear, on.
    b.enable(Interrupts::empty());
    b.ack();
    b.enable(Interrupts::COMPLETION);
    assert_eq!(b.line.count(), 1);
    b.model.step();
    assert_eq!(b.line.count(), 2);
    // Re-raise: enable written while status is pending.
    b.enable(Interrupts::empty());
    assert_eq!(b.line.count(), 2);
    b.enable(Interrupts::COMPLETION);
    assert_eq!(b.line.count(), 3);
    // The same value again is no edge.
    b.enable(Interrupts::COMPLETION);
    assert_eq!(b.line.count(), 3);
    assert_eq!(b.model.counters().interrupts, 3);
}

#[test]
fn without_ioc_only_empty_and_stopped_can_interrupt() {
    let mut b = Bench::strict();
    b.enable(Interrupts::COMPLETION | Interrupts::EMPTY);
    b.go(3, CommandWord::COPY);
    b.model.step();
    b.model.step();
    assert_eq!(b.line.count(), 0);
    b.model.step();
    assert_eq!(b.line.count(), 1);
    assert!(!b.status().contains(Interrupts::COMPLETION));
}

#[test]
fn error_halts_at_the_descriptor_and_software_skips_it() {
    for index in 0..5 {
        let mut b = Bench::strict();
        b.enable(Interrupts::ERROR);
        b.model
            .inject(Fault::at(index, FaultKind::Error { code: 19 }));
        b.go(5, CommandWord::COPY_IOC);
        b.model.run(100);
        let bad = index as usize;
        assert_eq!(b.head_slot(), bad);
        assert!(b.stopped());
        assert_eq!(b.model.read(Register::Status), 19);
        assert!(b.status().contains(Interrupts::ERROR));
        assert_eq!(b.line.count(), 1);
        assert!(b.untouched(bad));
        b.ack();
        b.model.write(Register::Head, b.slot_addr(bad + 1));
        b.run();
        assert_eq!(b.model.read(Register::Status), 0);
        b.model.run(100);
        assert_eq!(b.head_slot(), 5);
        assert!((0..5).all(|n| b.arrived(n) == (n != bad)));
        let c = b.model.counters();
        assert_eq!((c.descriptors, c.errors, c.faults), (4, 1, 1));
    }
}

#[test]
fn run_without_moving_head_tries_again() {
    let mut b = Bench::strict();
    b.model.inject(Fault::at(0, FaultKind::Error { code: 63 }));
    b.go(1, CommandWord::COPY);
    let code = ErrorCode::from_status(63);
    assert_eq!(b.model.step(), StepOutcome::Failed { code });
    b.run();
    assert_eq!(b.model.step(), DONE);
    assert!(b.arrived(0));
}

#[test]
fn a_sticky_status_survives_run() {
    let mut b = Bench::with(Forks {
        error_code: forks::ErrorCode::Kept,
        ..Forks::TODAY
    });
    b.model.inject(Fault::at(0, FaultKind::Error { code: 9 }));
    b.go(1, CommandWord::COPY);
    b.model.step();
    b.run();
    assert_eq!(b.model.step(), DONE);
    assert_eq!(b.model.read(Register::Status), 9);
}

#[test]
fn head_can_be_past_the_error() {
    let mut b = Bench::with(Forks {
        error_head: forks::ErrorHead::Past,
        ..Forks::TODAY
    });
    b.model.inject(Fault::at(1, FaultKind::Error { code: 9 }));
    b.go(3, CommandWord::COPY);
    assert_eq!(b.model.run(100), 2);
    assert_eq!(b.head_slot(), 2);
    assert!(b.stopped());
    b.run();
    assert_eq!(b.model.run(100), 1);
    assert!(b.arrived(0) && b.untouched(1) && b.arrived(2));
}

#[test]
fn bad_descriptors_fail_with_their_code() {
    let mut b = Bench::strict();
    let mut zero = b.copy(CommandWord::COPY, 0);
    zero.len_bytes.set(0);
    b.put(&zero);
    let other_engine = CommandWord::from_bits_retain(0x0030_0010);
    b.put(&b.copy(other_engine, 1));
    b.go(1, CommandWord::COPY);
    assert_eq!(b.model.step(), failed(KnownError::IllegalBufferLength));
    b.model.write(Register::Head, b.slot_addr(1));
    b.run();
    assert_eq!(b.model.step(), failed(KnownError::IllegalEngine));
}

#[test]
fn bus_errors_have_the_code_of_their_side() {
    let mut b = Bench::strict();
    let ro = b.bus.alloc(4096, 4096, Access::ReadOnly).unwrap();
    let wo = b.bus.alloc(4096, 4096, Access::WriteOnly).unwrap();
    let hole = DmaAddr::new(0x66_0000_0000);
    let good = (b.src.addr(), b.dst.addr());
    let cases = [
        (hole, good.1, KnownError::Input0DecodeError),
        (good.0, hole, KnownError::Output0DecodeError),
        (wo.addr(), good.1, KnownError::Input0SlaveError),
        (good.0, ro.addr(), KnownError::Output0SlaveError),
    ];
    for (n, (src, dst, code)) in cases.into_iter().enumerate() {
        b.model.write(Register::Head, b.slot_addr(n));
        b.put(&Descriptor::copy(CommandWord::COPY, src, dst, 64));
        b.ring_doorbell();
        b.run();
        assert_eq!(b.model.step(), failed(code));
    }
    assert_eq!(b.model.counters().bytes, 0);
    assert!(ro.to_vec().iter().all(|&byte| byte == 0));
}

#[test]
fn an_unmapped_ring_is_a_read_error() {
    let mut b = Bench::strict();
    b.bus.unmap(b.ring.base()).unwrap();
    b.go(1, CommandWord::COPY);
    assert_eq!(b.model.step(), failed(KnownError::Input0DecodeError));
    assert!(b.stopped());
}

#[test]
fn a_ring_that_makes_no_sense_is_an_error_and_not_a_walk() {
    let mut b = Bench::strict();
    b.queue(1, CommandWord::COPY);
    b.model.write(Register::Tail, b.ring.base().low() + 0x4000);
    b.run();
    assert_eq!(b.model.step(), failed(KnownError::IllegalMemoryAddress));
    assert_eq!(b.model.step(), StepOutcome::Idle);
}

#[test]
fn a_copy_that_hits_a_hole_leaves_what_it_did() {
    let mut b = Bench::strict();
    let end = b.dst.addr_of(b.dst.len_bytes() - 100).unwrap();
    b.put(&Descriptor::copy(CommandWord::COPY, b.src.addr(), end, 200));
    b.ring_doorbell();
    b.run();
    assert_eq!(b.model.step(), failed(KnownError::Output0DecodeError));
    let dst = b.dst.to_vec();
    assert_eq!(dst[dst.len() - 100..], b.src.to_vec()[..100]);
    let c = b.model.counters();
    assert_eq!((c.bytes, c.partial_bytes), (0, 100));
}

#[test]
fn overlap_upwards_repeats_a_burst() {
    let mut b = Bench::strict();
    let to = b.src.addr_of(64).unwrap();
    let before = b.src.to_vec();
    b.put(&Descriptor::copy(CommandWord::COPY, b.src.addr(), to, 256));
    b.ring_doorbell();
    b.run();
    b.model.step();
    let after = b.src.to_vec();
    for n in 0..5 {
        assert_eq!(after[n * 64..][..64], before[..64]);
    }
    assert_eq!(b.model.counters().overlaps, 1);
}

#[test]
fn halt_takes_effect_after_the_descriptor() {
    let mut b = Bench::strict();
    b.go(3, CommandWord::COPY);
    b.model.step();
    b.model.write(Register::Control, b.control.bits());
    assert!(b.stopped());
    assert_eq!(b.status(), Interrupts::STOPPED);
    assert_eq!(b.model.run(100), 0);
    assert_eq!(b.head_slot(), 1);
    b.run();
    assert_eq!(b.model.run(100), 2);
}

#[test]
fn halt_bit_wins_over_run() {
    let mut b = Bench::strict();
    b.queue(1, CommandWord::COPY);
    b.ring_doorbell();
    let both = b.control | QueueControl::RUN | QueueControl::HALT;
    b.model.write(Register::Control, both.bits());
    assert_eq!(b.model.run(100), 0);
}

#[test]
fn run_on_an_empty_ring_latches_nothing() {
    let b = Bench::strict();
    b.run();
    assert!(b.stopped());
    assert_eq!(b.status(), Interrupts::empty());
}

#[test]
fn a_stop_of_an_idle_engine_latches_nothing() {
    for mut b in [Bench::strict(), Bench::lenient()] {
        b.go(1, CommandWord::COPY);
        b.model.run(100);
        b.ack();
        b.model.write(Register::Control, b.control.bits());
        assert!(b.stopped());
        assert_eq!(b.status(), Interrupts::empty());
    }
}

#[test]
fn stall_for_steps_then_goes_on() {
    let mut b = Bench::strict();
    let kind = FaultKind::Stall {
        duration: StallFor::Steps(3),
        haltable: false,
    };
    b.model.inject(Fault::at(1, kind));
    b.go(2, CommandWord::COPY);
    assert_eq!(b.model.step(), DONE);
    for _ in 0..3 {
        assert_eq!(b.model.step(), StepOutcome::Stalled);
    }
    assert_eq!(b.model.step(), DONE);
}

#[test]
fn a_stall_for_ever_ends_by_reset_or_removal_and_by_halt_if_it_may() {
    for haltable in [false, true] {
        let mut b = Bench::strict();
        let kind = FaultKind::Stall {
            duration: StallFor::Ever,
            haltable,
        };
        let id = b.model.inject(Fault::at(0, kind.clone()));
        b.go(1, CommandWord::COPY);
        assert_eq!(b.model.step(), StepOutcome::Stalled);
        b.model.write(Register::Control, b.control.bits());
        assert_eq!(b.stopped(), haltable);
        if haltable {
            assert_eq!(b.head_slot(), 0);
            assert!(b.untouched(0));
            b.run();
            assert_eq!(b.model.step(), DONE);
        } else {
            b.model.remove_fault(id);
            assert_eq!(b.model.step(), DONE);
            assert!(b.stopped());
        }
        b.model.inject(Fault::at(0, kind));
        b.go(1, CommandWord::COPY);
        assert_eq!(b.model.step(), StepOutcome::Stalled);
        assert!(b.model.function_reset());
        assert!(b.stopped());
        assert!(b.untouched(1));
        b.set_up();
        b.go(1, CommandWord::COPY);
        assert_eq!(b.model.step(), DONE);
    }
}

#[test]
fn lost_interrupt_keeps_the_status() {
    let mut b = Bench::strict();
    b.enable(Interrupts::COMPLETION);
    b.model.inject(Fault::at(0, FaultKind::LostInterrupt));
    b.go(1, CommandWord::COPY_IOC);
    b.model.step();
    assert_eq!(b.line.count(), 0);
    assert!(b.status().contains(Interrupts::COMPLETION));
    assert_eq!(b.model.counters().interrupts_lost, 1);
    // Acknowledged, the next one is heard again.
    b.ack();
    b.go(1, CommandWord::COPY_IOC);
    b.model.step();
    assert_eq!(b.line.count(), 1);
}

#[test]
fn spurious_interrupt_has_no_status() {
    let b = Bench::strict();
    b.model.inject(Fault::now(FaultKind::SpuriousInterrupt));
    assert_eq!(b.line.count(), 1);
    assert_eq!(b.status(), Interrupts::empty());
    assert_eq!(b.model.counters().interrupts_spurious, 1);
}

#[test]
fn partial_write_then_error() {
    let mut b = Bench::strict();
    let kind = FaultKind::PartialWrite {
        len_bytes: 100,
        code: 38,
    };
    b.model.inject(Fault::at(0, kind));
    b.go(1, CommandWord::COPY);
    assert_eq!(b.model.step(), failed(KnownError::Output0SlaveError));
    let dst = b.dst.to_vec();
    assert_eq!(dst[..100], b.src.to_vec()[..100]);
    assert!(dst[100..].iter().all(|&byte| byte == 0));
    assert_eq!(b.model.counters().partial_bytes, 100);
}

#[test]
fn silent_corruption_is_silent() {
    let mut b = Bench::strict();
    b.model.inject(Fault::at(0, FaultKind::SilentCorruption));
    b.go(1, CommandWord::COPY);
    assert_eq!(b.model.step(), DONE);
    assert_eq!(b.dst.to_vec()[0], !b.src.to_vec()[0]);
    assert_eq!(b.dst.to_vec()[1..LEN], b.src.to_vec()[1..LEN]);
}

#[test]
fn unmapped_fault_fails_without_a_byte() {
    for (side, code) in [
        (Side::Source, KnownError::Input0DecodeError),
        (Side::Destination, KnownError::Output0DecodeError),
    ] {
        let mut b = Bench::strict();
        b.model.inject(Fault::at(0, FaultKind::Unmapped { side }));
        b.go(1, CommandWord::COPY);
        assert_eq!(b.model.step(), failed(code));
        assert!(b.untouched(0));
    }
}

#[test]
fn all_ones_for_some_reads_or_for_ever() {
    let mut b = Bench::strict();
    b.go(2, CommandWord::COPY);
    b.model.step();
    b.model
        .inject(Fault::now(FaultKind::AllOnes { reads: Some(2) }));
    assert!(!b.model.answers());
    assert_eq!(b.model.step(), StepOutcome::Idle);
    b.model.write(Register::Tail, 0x1234);
    assert_eq!(b.model.read(Register::Head), ALL_ONES);
    assert_eq!(b.model.read(Register::Control), ALL_ONES);
    assert_eq!(b.head_slot(), 1);
    assert_eq!(b.model.run(100), 1);
    let id = b
        .model
        .inject(Fault::now(FaultKind::AllOnes { reads: None }));
    for register in Register::ALL {
        assert_eq!(b.model.read(register), ALL_ONES);
    }
    assert!(!b.model.function_reset());
    b.model.remove_fault(id);
    assert_eq!(b.head_slot(), 2);
}

#[test]
fn device_vanishes_at_a_descriptor() {
    let mut b = Bench::strict();
    b.model
        .inject(Fault::at(1, FaultKind::AllOnes { reads: None }));
    b.go(3, CommandWord::COPY);
    assert_eq!(b.model.run(100), 1);
    assert_eq!(b.model.read(Register::Head), ALL_ONES);
    assert!(b.arrived(0) && b.untouched(1) && b.untouched(2));
}

#[test]
fn head_garbage_is_only_seen_by_software() {
    let mut b = Bench::strict();
    b.go(2, CommandWord::COPY);
    b.model.inject(Fault::now(FaultKind::HeadGarbage {
        value: 0xdead_beef,
        reads: Some(2),
    }));
    b.model.step();
    assert_eq!(b.model.read(Register::Head), 0xdead_beef);
    assert_eq!(b.model.read(Register::Head), 0xdead_beef);
    assert_eq!(b.head_slot(), 1);
    assert_eq!(b.model.step(), DONE);
}

#[test]
fn an_engine_that_ignores_halt_goes_on_until_reset() {
    let mut b = Bench::strict();
    b.model.inject(Fault::now(FaultKind::IgnoreHalt));
    b.go(3, CommandWord::COPY);
    b.model.step();
    b.model.write(Register::Control, b.control.bits());
    assert!(!b.stopped());
    assert_eq!(b.model.step(), DONE);
    assert!(b.model.function_reset());
    assert!(b.stopped());
    assert_eq!(b.model.run(100), 0);
}

#[test]
fn touches_finds_the_descriptor_by_address() {
    let mut b = Bench::strict();
    let start = b.dst.addr_of(3 * LEN + 10).unwrap().get();
    b.model.inject(Fault::new(
        Trigger::Touches {
            start,
            len_bytes: 1,
        },
        FaultKind::Error { code: 43 },
    ));
    b.go(6, CommandWord::COPY);
    b.model.run(100);
    assert_eq!(b.head_slot(), 3);
}

#[test]
fn removed_faults_do_not_fire() {
    let mut b = Bench::strict();
    let id = b
        .model
        .inject(Fault::new(Trigger::Always, FaultKind::Error { code: 1 }));
    assert_eq!(b.model.faults().len(), 1);
    b.model.remove_fault(id);
    assert!(b.model.faults().is_empty());
    b.go(4, CommandWord::COPY);
    assert_eq!(b.model.run(100), 4);
}

#[test]
fn reset_is_power_on() {
    let mut b = Bench::strict();
    b.enable(Interrupts::KNOWN);
    b.model.write(Register::QueuePriority, 6);
    b.go(4, CommandWord::COPY_IOC);
    b.model.step();
    assert!(b.model.function_reset());
    let fresh = Model::new(ModelConfig::default(), BusSpace::new());
    for register in Register::ALL {
        assert_eq!(b.model.read(register), fresh.read(register), "{register:?}");
    }
    assert_eq!(b.model.run(100), 0);
    assert_eq!(b.model.counters().resets, 1);
}

#[test]
fn raw_accesses_of_any_width_and_place_are_answered() {
    let b = Bench::strict();
    let mut eight = [0xff; 8];
    b.model.read_bytes(0x1004, &mut eight);
    let base = b.ring.base().low().to_le_bytes();
    assert_eq!(eight[..4], base);
    assert_eq!(eight[4..], base);
    let mut byte = [0xff];
    b.model.read_bytes(0x1005, &mut byte);
    assert_eq!(byte[0], base[1]);
    let mut word = [0xff; 4];
    b.model.read_bytes(0x0f00, &mut word);
    assert_eq!(word, [0; 4]);
    b.model.read_bytes(u64::MAX, &mut byte);
    b.model.write_bytes(u64::MAX - 1, &[1, 2, 3, 4]);
    b.model.write_bytes(0x1004, &[1, 2]);
    assert_eq!(b.model.read(Register::Tail), b.ring.base().low());
    b.model.write_bytes(0x1008, &[0x20, 0, 0, 0]);
    assert_eq!(b.model.read(Register::Head), 0x20);
    assert!(b.model.counters().unknown_accesses >= 5);
}

#[test]
fn counters_start_again() {
    let mut b = Bench::strict();
    b.go(2, CommandWord::COPY);
    b.model.run(100);
    let c = b.model.take_counters();
    assert_eq!(c.writes.get(Register::Tail), 2);
    assert_eq!(c.writes.get(Register::Control), 2);
    assert_eq!(c.mmio_writes, c.writes.total());
    assert_eq!(b.model.counters(), ptdma_model::Counters::default());
}

#[test]
fn auto_step_lets_a_polling_driver_make_progress() {
    let mut b = Bench::new(ModelConfig {
        auto_step: 1,
        ..ModelConfig::default()
    });
    b.go(3, CommandWord::COPY);
    assert_eq!(b.head_slot(), 1);
    assert_eq!(b.head_slot(), 2);
    assert_eq!(b.head_slot(), 3);
}

#[test]
fn virtual_time_adds_up() {
    let timing = Timing {
        setup_ns: 1000,
        bytes_per_second: 1_000_000_000,
        read_ns: 700,
        write_ns: 100,
    };
    let mut b = Bench::new(ModelConfig {
        timing,
        ..ModelConfig::default()
    });
    let start = b.model.virtual_ns();
    b.model.inject(Fault::at(1, FaultKind::Delay { ns: 50 }));
    b.go(2, CommandWord::COPY);
    b.model.run(100);
    let _head = b.model.read(Register::Head);
    assert_eq!(
        b.model.virtual_ns() - start,
        2 * (1000 + 256) + 50 + 2 * 100 + 700
    );
}

fn threaded(config: ModelConfig) -> (Bench, EngineThread) {
    let b = Bench::new(config);
    let thread = b.model.spawn_engine().unwrap();
    (b, thread)
}

#[test]
fn the_thread_copies_and_interrupts() {
    for lenient in [false, true] {
        let (mut b, thread) = threaded(ModelConfig {
            forks: if lenient {
                Forks::LENIENT
            } else {
                Forks::TODAY
            },
            ..ModelConfig::default()
        });
        b.enable(Interrupts::COMPLETION);
        for round in 0..20 {
            b.queue(15, CommandWord::COPY);
            let seen = b.line.count();
            b.go(1, CommandWord::COPY_IOC);
            assert_eq!(b.line.wait_beyond(seen, LIMIT), seen + 1, "round {round}");
            assert_eq!(b.head_slot(), b.next % ENTRIES);
            b.ack();
        }
        assert!((0..ENTRIES).all(|n| b.arrived(n)));
        assert_eq!(b.model.counters().descriptors, 320);
        drop(thread);
    }
}

#[test]
fn the_thread_stops_while_stalled_and_a_reset_frees_it() {
    let (mut b, thread) = threaded(ModelConfig::default());
    let kind = FaultKind::Stall {
        duration: StallFor::Ever,
        haltable: false,
    };
    b.model.inject(Fault::at(0, kind.clone()));
    b.go(1, CommandWord::COPY);
    until("stall", || b.model.counters().faults == 1);
    b.model.write(Register::Control, b.control.bits());
    std::thread::sleep(Duration::from_millis(5));
    assert!(!b.stopped());
    assert!(b.model.function_reset());
    assert!(b.stopped());
    b.set_up();
    b.go(1, CommandWord::COPY);
    until("copy after reset", || b.head_slot() == 1);
    b.model.inject(Fault::at(0, kind));
    b.go(1, CommandWord::COPY);
    until("second stall", || b.model.counters().faults == 2);
    drop(thread);
    assert!(b.untouched(1));
}

#[test]
fn a_stall_of_real_time_passes() {
    let (mut b, _thread) = threaded(ModelConfig::default());
    let kind = FaultKind::Stall {
        duration: StallFor::Micros(20_000),
        haltable: false,
    };
    b.model.inject(Fault::at(0, kind));
    let start = Instant::now();
    b.go(1, CommandWord::COPY);
    until("end of the stall", || b.head_slot() == 1);
    assert!(start.elapsed() >= Duration::from_millis(20));
}

#[test]
fn the_thread_keeps_to_its_timing() {
    let (mut b, _thread) = threaded(ModelConfig {
        timing: Timing {
            setup_ns: 2_000_000,
            ..Timing::default()
        },
        ..ModelConfig::default()
    });
    let start = Instant::now();
    b.go(10, CommandWord::COPY);
    until("ten slow descriptors", || b.head_slot() == 10);
    assert!(start.elapsed() >= Duration::from_millis(20));
}

#[test]
fn a_reset_in_the_middle_of_a_long_copy_stops_it() {
    let (mut b, _thread) = threaded(ModelConfig {
        timing: Timing {
            setup_ns: 3_600_000_000_000,
            ..Timing::default()
        },
        ..ModelConfig::default()
    });
    b.go(1, CommandWord::COPY);
    until("start", || !b.untouched(0));
    assert!(b.model.function_reset());
    assert!(b.stopped());
    assert_eq!(b.model.counters().descriptors, 0);
}

#[test]
fn a_sink_may_use_the_model() {
    let mut b = Bench::strict();
    let model = b.model.clone();
    b.model.on_interrupt(move || {
        // As the Linux handler: off, read, clear, on.
        model.write(Register::InterruptEnable, 0);
        let status = model.read(Register::InterruptStatus);
        model.write(Register::InterruptStatus, status);
        model.write(Register::InterruptEnable, 1);
    });
    b.enable(Interrupts::COMPLETION);
    b.go(3, CommandWord::COPY_IOC);
    assert_eq!(b.model.run(100), 3);
    assert_eq!(b.status(), Interrupts::empty());
    assert_eq!(b.model.counters().interrupts, 3);
}

#[test]
fn unmap_waits_for_the_copy() {
    let (mut b, _thread) = threaded(ModelConfig::default());
    let len = 64 << 20;
    let big_src = b.bus.alloc(len, 4096, Access::ReadWrite).unwrap();
    let big_dst = b.bus.alloc(len, 4096, Access::ReadWrite).unwrap();
    big_src.write(0, &vec![7; len]).unwrap();
    b.put(&Descriptor::copy(
        CommandWord::COPY,
        big_src.addr(),
        big_dst.addr(),
        len as u32,
    ));
    b.ring_doorbell();
    b.run();
    let mut byte = [0];
    until("first bytes", || {
        big_dst.read(0, &mut [0]).unwrap();
        big_dst.to_vec()[0] == 7 || b.head_slot() == 1
    });
    b.bus.unmap(big_dst.addr()).unwrap();
    let at_unmap = big_dst.to_vec();
    until("end", || b.stopped());
    // Nothing was written after the unmap returned.
    assert!(big_dst.to_vec() == at_unmap);
    big_dst.read(0, &mut byte).unwrap();
    assert_eq!(byte, [7]);
}
