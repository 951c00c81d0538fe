//! The machine: functions, channels and a CPU in one virtual time.

use anyhow::{anyhow, bail};
use batch_copy::{
    Batch, CostModel, CpuCopier, CpuCopyError, CutRules, Engines, Folio, Host, Options, Outcome,
    OverlapCheck, Piece, Policy, Port, PtdmaQueue, Wait, WaitFor, Wake,
};
use ptdma::descriptor::{CommandWord, Descriptor};
use ptdma::io::RingMemory;
use ptdma::{Channel, ChannelConfig, DmaAddr, Limits};
use ptdma_model::{
    Access, BusBuffer, BusMemory, BusRing, BusSpace, ModelConfig, SimulatedFunction, Simulation,
    SimulationConfig, Timing,
};

use crate::Assumptions;

/// Most channels of the published machine.
pub const MAX_CHANNELS: usize = 16;
/// Ring of each channel: a whole batch of 512 base pages and one more.
const RING_ENTRIES: usize = 1024;
/// How long a poll that found nothing waits before the next one.
const POLL_GAP_NS: u64 = 200;

type Queue = PtdmaQueue<SimulatedFunction, PricedRing>;
type QueueLock = spin::Mutex<Port<Queue>>;

/// A ring whose stores cost the CPU what preparing a descriptor costs.
struct PricedRing {
    ring: BusRing,
    simulation: Simulation,
    prepare_ns: u64,
}

impl RingMemory for PricedRing {
    fn base(&self) -> DmaAddr {
        self.ring.base()
    }
    fn entries(&self) -> usize {
        self.ring.entries()
    }
    fn store(&mut self, slot: usize, descriptor: &Descriptor) {
        self.simulation.spend(self.prepare_ns);
        self.ring.store(slot, descriptor);
    }
    fn store_command(&mut self, slot: usize, command: CommandWord) {
        self.ring.store_command(slot, command);
    }
    fn publish(&mut self) {
        self.ring.publish();
    }
}

/// Polls in virtual time.
struct VirtualPolling(Simulation);

impl Wait for VirtualPolling {
    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }
    fn wants_interrupts(&self) -> bool {
        false
    }
    fn wait(&mut self, wait: &WaitFor) -> Wake {
        let until = wait.expected_ns.min(wait.latest_ns);
        let ahead = until.saturating_sub(self.0.now_ns());
        self.0.spend(ahead.max(POLL_GAP_NS));
        Wake::Poll
    }
}

/// Copies at the price of the published machine's CPU.
struct PricedCpu<'a> {
    machine: &'a Machine,
}

impl CpuCopier for PricedCpu<'_> {
    fn copy(&mut self, piece: &Piece) -> Result<(), CpuCopyError> {
        let ns = (self.machine.costs.cpu_ns_per_mib * piece.len_bytes) >> 20;
        self.machine.simulation.spend(ns);
        self.machine
            .bus
            .copy(piece.src, piece.dst, piece.len_bytes)
            .map_err(|_hole| CpuCopyError)
    }
}

/// A batch of folios in memory.
pub struct Memory {
    src: BusBuffer,
    dst: BusBuffer,
    /// The folios.
    pub folios: Vec<Folio>,
}

/// The machine.
pub struct Machine {
    bus: BusSpace,
    simulation: Simulation,
    engines: Engines<Queue, QueueLock, MAX_CHANNELS>,
    costs: CostModel,
    hybrid: bool,
    /// Nanoseconds to map a folio; nothing where addresses are physical.
    map_ns: Option<u64>,
}

impl Machine {
    /// A machine with so many channels, brought up.
    ///
    /// # Errors
    ///
    /// If driver and model do not get on.
    pub fn new(assumed: &Assumptions, channels: usize, hybrid: bool) -> anyhow::Result<Self> {
        let bus = BusSpace::new();
        let simulation = Simulation::new(SimulationConfig {
            read_ns: assumed.read_ns,
            write_ns: assumed.write_ns,
            interrupt_ns: 0,
            fabric_bytes_per_second: assumed.fabric_bytes_per_second,
        });
        let config = ModelConfig {
            timing: Timing {
                setup_ns: assumed.descriptor_ns,
                bytes_per_second: assumed.engine_bytes_per_second,
                ..Timing::default()
            },
            ..ModelConfig::default()
        };
        let mut engines = Engines::new();
        for _ in 0..channels {
            let ring = PricedRing {
                ring: BusRing::new(&bus, RING_ENTRIES)?,
                simulation: simulation.clone(),
                prepare_ns: assumed.prepare_ns,
            };
            let channel_config = ChannelConfig {
                limits: Limits::with_max_len_bytes(2 << 20),
                ..ChannelConfig::default()
            };
            let function = simulation.add(config, bus.clone());
            let channel = Channel::bring_up(function, ring, channel_config)
                .map_err(|(e, ..)| anyhow!("bring-up: {e}"))?;
            let port = Port::new(PtdmaQueue::new(channel, None));
            if engines.add(spin::Mutex::new(port)).is_err() {
                bail!("more than {MAX_CHANNELS} channels");
            }
        }
        Ok(Self {
            bus,
            simulation,
            engines,
            costs: assumed.cost_model(),
            hybrid,
            map_ns: (!assumed.untranslated).then_some(assumed.map_ns),
        })
    }

    /// Puts folios into memory: each by itself, or as an IOMMU lets the engines see them.
    ///
    /// # Errors
    ///
    /// If the bus is full.
    pub fn lay_out(&self, len_bytes: u64, count: usize) -> anyhow::Result<Memory> {
        let len = usize::try_from(len_bytes)?;
        // Every second place: no two folios are contiguous.
        let pitch = if self.map_ns.is_some() { len } else { 2 * len };
        let total = pitch * count;
        let src = self.bus.alloc(total, 4096, Access::ReadWrite)?;
        let dst = self.bus.alloc(total, 4096, Access::ReadWrite)?;
        let mut folios = Vec::with_capacity(count);
        for n in 0..count {
            let at = pitch * n;
            let mark = (n as u64 + 1).to_le_bytes();
            src.write(at, &mark)?;
            src.write(at + len - mark.len(), &mark)?;
            folios.push(Folio::new(src.addr_of(at)?, dst.addr_of(at)?, len_bytes));
        }
        Ok(Memory { src, dst, folios })
    }

    /// Copies a batch as the policy says. Returns the virtual time that it took.
    ///
    /// # Errors
    ///
    /// If anything was not copied, or not copied right.
    pub fn copy(&self, memory: &Memory) -> anyhow::Result<u64> {
        let bytes = memory.folios.iter().map(|f| f.len_bytes).sum::<u64>();
        let count = memory.folios.len();
        let policy = Policy {
            hybrid: self.hybrid,
            ..Policy::new(self.costs, self.engines.len())
        };
        let base = Options {
            rules: CutRules {
                min_part_bytes: self.costs.min_part_bytes(),
                ..CutRules::default()
            },
            ..Options::default()
        };
        let start = self.simulation.now_ns();
        match policy.options(count, bytes, self.engines.active(), &base) {
            None => self.copy_alone(memory)?,
            Some(options) => {
                let mapping = self.map_ns.unwrap_or(0) * count as u64;
                self.simulation.spend(mapping);
                let mut host = Host::new(VirtualPolling(self.simulation.clone()))
                    .with_cpu(PricedCpu { machine: self });
                let mut outcomes = vec![Outcome::Dma; count];
                let folios = &memory.folios[..];
                let overlap = OverlapCheck::CallerKnows;
                let report = Batch::<MAX_CHANNELS>::new()
                    .run(
                        &self.engines,
                        folios,
                        overlap,
                        &options,
                        &mut host,
                        &mut outcomes,
                    )
                    .map_err(|e| anyhow!("{e:?}"))?;
                if !report.is_complete() || !outcomes.iter().all(|o| o.is_copied()) {
                    bail!("not everything was copied: {report:?}");
                }
            }
        }
        let took = self.simulation.now_ns() - start;
        self.check(memory)?;
        Ok(took)
    }

    fn copy_alone(&self, memory: &Memory) -> anyhow::Result<()> {
        for folio in &memory.folios {
            self.simulation.spend(self.costs.cpu_ns(1, folio.len_bytes));
            self.bus.copy(folio.src, folio.dst, folio.len_bytes)?;
        }
        Ok(())
    }

    /// That what counts as copied is there.
    fn check(&self, memory: &Memory) -> anyhow::Result<()> {
        if memory.src.to_vec() != memory.dst.to_vec() {
            bail!("the destination differs");
        }
        Ok(())
    }
}
