//! A CPU and several functions in one virtual time.
//!
//! Real bytes move and the real driver runs, but what a clock shows is computed: a register access
//! takes the CPU so long, a descriptor its engine so long, engines share ports, and all a fabric.
//! The host's speed and load do not matter, and every run is the same: the way to predict what
//! a machine with sixteen engines would do, on one that has none.
//!
//! The CPU is whoever calls: there is one, and time stands still between its calls. Engines make
//! progress exactly as far as the CPU's time goes on, in the order in which descriptors would end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use ptdma::io::{Clock, RegisterIo};
use ptdma::regs::Register;

use crate::bus::BusMemory;
use crate::model::{Model, ModelConfig, StepOutcome};

/// Pause between two steps of a stalled engine, in virtual time.
const STALL_POLL_NS: u64 = 10_000;

/// What things cost that belong to no single engine. All zero by default: free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimulationConfig {
    /// Nanoseconds that a register read keeps the CPU waiting.
    pub read_ns: u64,
    /// Nanoseconds that a (posted) register write takes the CPU.
    pub write_ns: u64,
    /// Nanoseconds from an interrupt message until its handler runs, which the CPU cannot use.
    pub interrupt_ns: u64,
    /// Bytes per second that the engines behind one port move together; 0 for no limit.
    pub port_bytes_per_second: u64,
    /// Bytes per second that all engines move together; 0 for no limit.
    pub fabric_bytes_per_second: u64,
}

#[derive(Debug)]
struct Engine {
    model: Model,
    port: Option<usize>,
    /// When the descriptor in flight ends.
    ends_ns: Option<u64>,
    interrupts: Arc<AtomicU64>,
}

#[derive(Debug)]
struct State {
    config: SimulationConfig,
    now_ns: u64,
    engines: Vec<Engine>,
    /// When the fabric has moved everything that was begun so far.
    fabric_free_ns: u64,
    /// The same for each port, by its number.
    ports_free_ns: BTreeMap<usize, u64>,
}

/// When `len_bytes` have passed something that moves so many bytes per second, one after the other:
/// exact in sum, fair in the long run.
fn pass(free_ns: &mut u64, now_ns: u64, len_bytes: u64, bytes_per_second: u64) -> u64 {
    let share = crate::Timing {
        bytes_per_second,
        ..crate::Timing::default()
    };
    *free_ns = (*free_ns)
        .max(now_ns)
        .saturating_add(share.descriptor_ns(len_bytes));
    *free_ns
}

impl State {
    /// Lets the engine take up its next descriptor now, if it is idle and there is one.
    fn start(&mut self, index: usize) {
        let (now, config) = (self.now_ns, self.config);
        let Some(engine) = self.engines.get_mut(index).filter(|e| e.ends_ns.is_none()) else {
            return;
        };
        let Some((cost_ns, len_bytes)) = engine.model.prefetch() else {
            return;
        };
        let mut ends = now.saturating_add(cost_ns);
        if let (Some(port), 1..) = (engine.port, config.port_bytes_per_second) {
            let free = self.ports_free_ns.entry(port).or_default();
            ends = ends.max(pass(free, now, len_bytes, config.port_bytes_per_second));
        }
        if config.fabric_bytes_per_second != 0 {
            let free = &mut self.fabric_free_ns;
            ends = ends.max(pass(free, now, len_bytes, config.fabric_bytes_per_second));
        }
        engine.ends_ns = Some(ends);
    }

    /// The next descriptor to end, and when.
    fn next_end(&self) -> Option<(u64, usize)> {
        let ends = self.engines.iter().enumerate();
        ends.filter_map(|(index, e)| e.ends_ns.map(|at| (at, index)))
            .min()
    }

    /// Lets the descriptor in flight end, and the next one start.
    fn finish(&mut self, at_ns: u64, index: usize) {
        self.now_ns = self.now_ns.max(at_ns);
        if let Some(engine) = self.engines.get_mut(index) {
            engine.ends_ns = match engine.model.step() {
                StepOutcome::Stalled => Some(self.now_ns.saturating_add(STALL_POLL_NS)),
                _ => None,
            };
        }
        self.start(index);
    }

    fn advance(&mut self, to_ns: u64) {
        while let Some((at, index)) = self.next_end().filter(|(at, _)| *at <= to_ns) {
            self.finish(at, index);
        }
        self.now_ns = self.now_ns.max(to_ns);
    }

    fn spend(&mut self, ns: u64) {
        self.advance(self.now_ns.saturating_add(ns));
    }

    fn interrupted(&self) -> bool {
        let mut engines = self.engines.iter();
        engines.any(|e| e.interrupts.load(Ordering::Relaxed) != 0)
    }
}

/// The virtual machine: a CPU, its time, and functions. Clones share it.
#[derive(Clone, Debug)]
pub struct Simulation {
    state: Arc<Mutex<State>>,
}

impl Simulation {
    /// A machine without functions, at time 0.
    #[must_use]
    pub fn new(config: SimulationConfig) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                config,
                now_ns: 0,
                engines: Vec::new(),
                fabric_free_ns: 0,
                ports_free_ns: BTreeMap::new(),
            })),
        }
    }

    /// Adds a function. Its [`ModelConfig::timing`] says how long a descriptor occupies its
    /// engine; costs of register accesses are the simulation's.
    #[must_use]
    pub fn add(&self, config: ModelConfig, bus: impl BusMemory + 'static) -> SimulatedFunction {
        self.add_behind(None, config, bus)
    }

    /// The same behind the port with this number, which it shares with others.
    #[must_use]
    pub fn add_behind(
        &self,
        port: Option<usize>,
        config: ModelConfig,
        bus: impl BusMemory + 'static,
    ) -> SimulatedFunction {
        let model = Model::new(config, bus);
        let interrupts = Arc::new(AtomicU64::new(0));
        let raised = Arc::clone(&interrupts);
        model.on_interrupt(move || {
            raised.fetch_add(1, Ordering::Relaxed);
        });
        let mut state = self.state.lock();
        let index = state.engines.len();
        state.engines.push(Engine {
            model: model.clone(),
            port,
            ends_ns: None,
            interrupts,
        });
        SimulatedFunction {
            simulation: self.clone(),
            model,
            index,
        }
    }

    /// Virtual time in nanoseconds.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.state.lock().now_ns
    }

    /// The CPU is busy with something else for so long.
    pub fn spend(&self, ns: u64) {
        self.state.lock().spend(ns);
    }

    /// The CPU sleeps until an interrupt message comes (or has come and was not taken), at most
    /// until `latest_ns`. Returns whether there was one.
    #[must_use]
    pub fn sleep_until(&self, latest_ns: u64) -> bool {
        let mut state = self.state.lock();
        while !state.interrupted() {
            match state.next_end().filter(|(at, _)| *at <= latest_ns) {
                Some((at, index)) => state.finish(at, index),
                None => {
                    state.advance(latest_ns);
                    return false;
                }
            }
        }
        let latency = state.config.interrupt_ns;
        state.spend(latency);
        true
    }

    /// The functions whose interrupt messages were not taken yet, by index of [`Self::add`], in
    /// order, once for each message.
    #[must_use]
    pub fn take_interrupts(&self) -> Vec<usize> {
        let state = self.state.lock();
        let mut taken = Vec::new();
        for (index, engine) in state.engines.iter().enumerate() {
            for _ in 0..engine.interrupts.swap(0, Ordering::Relaxed) {
                taken.push(index);
            }
        }
        taken
    }
}

impl Clock for Simulation {
    fn now(&self) -> u64 {
        self.now_ns()
    }
}

/// A function of a [`Simulation`]: its registers, at their price.
#[derive(Clone, Debug)]
pub struct SimulatedFunction {
    simulation: Simulation,
    model: Model,
    index: usize,
}

impl SimulatedFunction {
    /// The model, for counters and faults. Its registers should be reached through this value, or
    /// the access costs nothing.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What [`Simulation::take_interrupts`] calls it.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }
}

impl RegisterIo for SimulatedFunction {
    fn read(&self, register: Register) -> u32 {
        let mut state = self.simulation.state.lock();
        // The device answers when the request arrives, and the CPU waits for the way back, too.
        let there = state.config.read_ns / 2;
        state.spend(there);
        let value = self.model.read(register);
        state.start(self.index);
        let back = state.config.read_ns - there;
        state.spend(back);
        value
    }

    fn write(&self, register: Register, value: u32) {
        let mut state = self.simulation.state.lock();
        let cost = state.config.write_ns;
        state.spend(cost);
        self.model.write(register, value);
        state.start(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, BusBuffer, BusRing, BusSpace, Fault, FaultKind, Timing};
    use ptdma::descriptor::{CommandWord, Descriptor};
    use ptdma::io::RingMemory;
    use ptdma::regs::QueueControl;

    const LEN: u32 = 1 << 16;
    /// 64 KiB at 16.384 GB/s take 4 us.
    const RATE: u64 = 16_384_000_000;

    struct Bench {
        simulation: Simulation,
        functions: Vec<SimulatedFunction>,
        rings: Vec<BusRing>,
        src: BusBuffer,
        dst: BusBuffer,
    }

    impl Bench {
        fn new(count: usize, config: SimulationConfig, setup_ns: u64) -> Self {
            let bus = BusSpace::new();
            let simulation = Simulation::new(config);
            let timing = Timing {
                setup_ns,
                bytes_per_second: RATE,
                ..Timing::default()
            };
            let model = ModelConfig {
                timing,
                ..ModelConfig::default()
            };
            let bytes = 64 * LEN as usize;
            let src = bus.alloc(bytes, 4096, Access::ReadWrite).unwrap();
            let dst = bus.alloc(bytes, 4096, Access::ReadWrite).unwrap();
            // In pairs, which matters where ports have a limit.
            let functions: Vec<_> = (0..count)
                .map(|n| simulation.add_behind(Some(n / 2), model, bus.clone()))
                .collect();
            let rings: Vec<_> = functions
                .iter()
                .map(|f| {
                    let ring = BusRing::new(&bus, 32).unwrap();
                    f.write(Register::Head, ring.base().low());
                    ring
                })
                .collect();
            Self {
                simulation,
                functions,
                rings,
                src,
                dst,
            }
        }

        /// `count` descriptors to one function; the last one interrupts.
        fn go(&mut self, index: usize, count: usize) {
            let (f, ring) = (&self.functions[index], &mut self.rings[index]);
            for n in 0..count {
                let at = n * LEN as usize;
                let command = if n + 1 == count {
                    CommandWord::COPY_IOC
                } else {
                    CommandWord::COPY
                };
                let (src, dst) = (self.src.addr_of(at).unwrap(), self.dst.addr_of(at).unwrap());
                ring.store(n, &Descriptor::copy(command, src, dst, LEN));
            }
            let control = QueueControl::RUN
                .with_size(5)
                .with_base_high(ring.base().high());
            f.write(Register::InterruptEnable, 1);
            f.write(Register::Tail, ring.base().low() + 32 * count as u32);
            f.write(Register::Control, control.bits());
        }

        fn done(&self, index: usize) -> u32 {
            let head = self.functions[index].read(Register::Head);
            (head - self.rings[index].base().low()) / 32
        }
    }

    #[test]
    fn an_engine_takes_its_time_and_the_cpu_sees_it_move() {
        let mut b = Bench::new(1, SimulationConfig::default(), 1000);
        b.go(0, 3);
        for (at, done) in [(4_999, 0), (5_000, 1), (9_999, 1), (10_000, 2), (15_000, 3)] {
            b.simulation.spend(at - b.simulation.now_ns());
            assert_eq!(b.done(0), done, "at {at}");
        }
        assert_eq!(b.simulation.now_ns(), 15_000);
        assert_eq!(b.functions[0].model().counters().descriptors, 3);
    }

    #[test]
    fn register_accesses_cost_and_engines_go_on_meanwhile() {
        let config = SimulationConfig {
            read_ns: 800,
            write_ns: 100,
            ..SimulationConfig::default()
        };
        let mut b = Bench::new(1, config, 0);
        // One write of the set-up.
        assert_eq!(b.simulation.now_ns(), 100);
        b.go(0, 1);
        assert_eq!(b.simulation.now_ns(), 400);
        // RUN arrived at 400, so the copy ends at 4400; the read at 4000 arrives at 4400.
        b.simulation.spend(3599);
        assert_eq!(b.done(0), 0);
        assert_eq!(b.done(0), 1);
        assert_eq!(b.simulation.now_ns(), 5599);
    }

    #[test]
    fn interrupts_wake_the_sleeper_at_the_right_time() {
        let config = SimulationConfig {
            interrupt_ns: 2_000,
            ..SimulationConfig::default()
        };
        let mut b = Bench::new(2, config, 0);
        b.go(0, 2);
        b.go(1, 3);
        assert!(!b.simulation.sleep_until(7_000));
        assert_eq!(b.simulation.now_ns(), 7_000);
        assert!(b.simulation.sleep_until(u64::MAX));
        assert_eq!(b.simulation.now_ns(), 10_000);
        assert_eq!(b.simulation.take_interrupts(), [0]);
        assert!(b.simulation.sleep_until(u64::MAX));
        assert_eq!(b.simulation.take_interrupts(), [1]);
        assert_eq!(b.simulation.now_ns(), 14_000);
        assert!(!b.simulation.sleep_until(20_000));
    }

    #[test]
    fn engines_run_side_by_side_until_the_fabric_is_full() {
        for (fabric, expected_ns) in [(0, 40_000), (8 * RATE, 40_000), (2 * RATE, 80_000)] {
            let config = SimulationConfig {
                fabric_bytes_per_second: fabric,
                ..SimulationConfig::default()
            };
            let mut b = Bench::new(4, config, 0);
            for index in 0..4 {
                b.go(index, 10);
            }
            let mut interrupts = 0;
            while b.simulation.sleep_until(1_000_000) {
                interrupts += b.simulation.take_interrupts().len();
                if interrupts == 4 {
                    break;
                }
            }
            assert_eq!(interrupts, 4);
            assert_eq!(b.simulation.now_ns(), expected_ns, "fabric {fabric}");
        }
    }

    #[test]
    fn two_engines_share_their_port_and_nobody_elses() {
        // Which functions of two pairs copy ten descriptors, and how long that takes.
        for (who, expected_ns) in [(&[0][..], 40_000), (&[0, 2], 40_000), (&[0, 1], 80_000)] {
            let config = SimulationConfig {
                port_bytes_per_second: RATE,
                ..SimulationConfig::default()
            };
            let mut b = Bench::new(4, config, 0);
            for &index in who {
                b.go(index, 10);
            }
            let mut interrupts = 0;
            while interrupts < who.len() && b.simulation.sleep_until(1_000_000) {
                interrupts += b.simulation.take_interrupts().len();
            }
            assert_eq!(interrupts, who.len());
            assert_eq!(b.simulation.now_ns(), expected_ns, "{who:?}");
        }
    }

    #[test]
    fn faults_happen_in_virtual_time_too() {
        let mut b = Bench::new(1, SimulationConfig::default(), 0);
        let model = b.functions[0].model().clone();
        model.inject(Fault::at(1, FaultKind::Delay { ns: 6_000 }));
        model.inject(Fault::at(2, FaultKind::Error { code: 19 }));
        b.go(0, 3);
        b.simulation.spend(13_999);
        assert_eq!(b.done(0), 1);
        b.simulation.spend(1);
        assert_eq!(b.done(0), 2);
        b.simulation.spend(4_000);
        assert_eq!(b.functions[0].read(Register::Status), 19);
        assert_eq!(b.done(0), 2);
        // Stalled for ever: time goes on, the engine does not.
        let stall = FaultKind::Stall {
            duration: crate::fault::StallFor::Ever,
            haltable: false,
        };
        let id = model.inject(Fault::at(0, stall));
        b.functions[0].write(Register::Control, {
            let high = b.rings[0].base().high();
            QueueControl::RUN.with_size(5).with_base_high(high).bits()
        });
        b.simulation.spend(1_000_000);
        assert_eq!(b.done(0), 2);
        model.remove_fault(id);
        b.simulation.spend(STALL_POLL_NS);
        assert_eq!(b.done(0), 3);
    }
}
