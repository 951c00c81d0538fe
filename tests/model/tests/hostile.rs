//! Whatever software writes where, the model answers, and touches only memory that it may.
#![forbid(unsafe_code)]

use proptest::prelude::*;
use ptdma::descriptor::Descriptor;
use ptdma::io::{RegisterIo, RingMemory};
use ptdma::regs::{QueueControl, Register};
use ptdma_model::fault::StallFor;
use ptdma_model::forks::Reset;
use ptdma_model::{
    Access, BusRing, BusSpace, Fault, FaultKind, Forks, Model, ModelConfig, Side, StepOutcome,
    Trigger,
};
use zerocopy::FromBytes;

/// Cases per run: enough to meet every pair of operations many times, within seconds.
const CASES: u32 = if cfg!(miri) { 4 } else { 1000 };

#[derive(Clone, Debug)]
enum Operation {
    Read(u64, usize),
    Write(Register, u32),
    WriteBytes(u64, Vec<u8>),
    Store(usize, [u8; 32]),
    /// A descriptor that makes sense, with offsets into source and destination.
    Copy(usize, u64, u64, u32),
    Tail(usize),
    Run,
    Step,
    Inject(Fault),
    Clear,
    Reset,
}

fn register() -> impl Strategy<Value = Register> {
    prop::sample::select(Register::ALL.to_vec())
}

fn fault() -> impl Strategy<Value = Fault> {
    let trigger = prop_oneof![
        Just(Trigger::Now),
        Just(Trigger::Always),
        (0..4u64).prop_map(Trigger::At),
        (0..4u64, 0..4u64).prop_map(|(n, offset)| Trigger::Every { n, offset }),
        any::<(u64, u64)>().prop_map(|(start, len_bytes)| Trigger::Touches { start, len_bytes }),
    ];
    let side = prop_oneof![Just(Side::Source), Just(Side::Destination)];
    let reads = prop::option::of(0..3u64);
    let kind = prop_oneof![
        any::<u8>().prop_map(|code| FaultKind::Error { code }),
        (any::<u64>(), any::<u8>())
            .prop_map(|(len_bytes, code)| FaultKind::PartialWrite { len_bytes, code }),
        side.prop_map(|side| FaultKind::Unmapped { side }),
        Just(FaultKind::SilentCorruption),
        (0..3u64, any::<bool>()).prop_map(|(n, haltable)| FaultKind::Stall {
            duration: StallFor::Steps(n),
            haltable
        }),
        any::<bool>().prop_map(|haltable| FaultKind::Stall {
            duration: StallFor::Ever,
            haltable
        }),
        any::<u64>().prop_map(|ns| FaultKind::Delay { ns }),
        Just(FaultKind::LostInterrupt),
        Just(FaultKind::SpuriousInterrupt),
        reads.clone().prop_map(|reads| FaultKind::AllOnes { reads }),
        (any::<u32>(), reads).prop_map(|(value, reads)| FaultKind::HeadGarbage { value, reads }),
        Just(FaultKind::IgnoreHalt),
    ];
    (trigger, kind, prop::option::of(0..3u64)).prop_map(|(trigger, kind, times)| Fault {
        trigger,
        kind,
        times,
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        1 => (prop_oneof![0..0x6010u64, any::<u64>()], 0..20usize)
            .prop_map(|(at, len)| Operation::Read(at, len)),
        1 => (register(), any::<u32>()).prop_map(|(r, v)| Operation::Write(r, v)),
        1 => (register(), 0..16u32).prop_map(|(r, v)| Operation::Write(r, v)),
        1 => (any::<u64>(), prop::collection::vec(any::<u8>(), 0..12))
            .prop_map(|(at, data)| Operation::WriteBytes(at, data)),
        1 => (0..8usize, any::<[u8; 32]>()).prop_map(|(slot, d)| Operation::Store(slot, d)),
        4 => (0..8usize, 0..5000u64, 0..5000u64, 0..5000u32)
            .prop_map(|(slot, s, d, len)| Operation::Copy(slot, s, d, len)),
        4 => (0..8usize).prop_map(Operation::Tail),
        4 => Just(Operation::Run),
        8 => Just(Operation::Step),
        1 => fault().prop_map(Operation::Inject),
        1 => Just(Operation::Clear),
        1 => Just(Operation::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_history_is_survived(
        machine in prop::sample::select(Forks::MACHINES),
        operations in prop::collection::vec(operation(), 1..60),
    ) {
        let bus = BusSpace::new();
        let model = Model::new(ModelConfig { forks: machine.forks, ..ModelConfig::default() }, bus.clone());
        let mut ring = BusRing::new(&bus, 8).unwrap();
        let src = bus.alloc(4096, 4096, Access::ReadOnly).unwrap();
        let dst = bus.alloc(4096, 4096, Access::ReadWrite).unwrap();
        let marks: Vec<u8> = (0..4096u32).map(|i| (i % 255) as u8 + 1).collect();
        src.write(0, &marks).unwrap();
        let line = model.interrupt_line();
        let control = QueueControl::empty().with_size(3).with_base_high(ring.base().high());
        model.write(Register::Head, ring.base().low());
        let mut ended = 0;
        let mut failed = 0;
        for operation in operations {
            match operation {
                Operation::Read(at, len) => model.read_bytes(at, &mut vec![0; len]),
                Operation::Write(register, value) => model.write(register, value),
                Operation::WriteBytes(at, data) => model.write_bytes(at, &data),
                Operation::Store(slot, bytes) => {
                    ring.store(slot, &Descriptor::read_from_bytes(&bytes).unwrap());
                }
                Operation::Copy(slot, s, d, len) => {
                    let (s, d) = (src.addr().get() + s, dst.addr().get() + d);
                    let addr = ptdma::DmaAddr::new;
                    let command = ptdma::descriptor::CommandWord::COPY_IOC;
                    ring.store(slot, &Descriptor::copy(command, addr(s), addr(d), len));
                }
                Operation::Tail(slot) => {
                    model.write(Register::Tail, ring.base().low() + slot as u32 * 32);
                }
                Operation::Run => {
                    model.write(Register::Control, (control | QueueControl::RUN).bits());
                }
                Operation::Step => match model.step() {
                    StepOutcome::Completed { .. } => ended += 1,
                    StepOutcome::Failed { .. } => failed += 1,
                    _ => {}
                },
                Operation::Inject(fault) => {
                    model.inject(fault);
                }
                Operation::Clear => model.clear_faults(),
                Operation::Reset => {
                    let can = model.answers() && machine.forks.reset != Reset::Absent;
                    prop_assert_eq!(model.function_reset(), can);
                }
            }
        }
        let c = model.counters();
        prop_assert_eq!((c.descriptors, c.errors), (ended, failed));
        prop_assert!(c.interrupts >= c.interrupts_spurious);
        // A reset forgets messages that were not delivered yet, and none is left over here.
        prop_assert_eq!(line.count(), c.interrupts);
        prop_assert_eq!(src.to_vec(), marks);
        // Always back to life.
        model.clear_faults();
        model.power_cycle();
        ring.store(0, &Descriptor::copy(
            ptdma::descriptor::CommandWord::COPY, src.addr(), dst.addr(), 4096));
        model.write(Register::Head, ring.base().low());
        model.write(Register::Tail, ring.base().low() + 32);
        model.write(Register::Control, (control | QueueControl::RUN).bits());
        prop_assert_eq!(model.run(10), 1);
        prop_assert_eq!(dst.to_vec(), src.to_vec());
    }
}
