//! That the real executor takes the time that the strategy "ours" has in the model.
//!
//! Driver and executor run against the device model in virtual time, at the costs of the fit, on
//! sixteen functions of which two share a port. No hypothesis makes a page dearer.
#![forbid(unsafe_code)]

use batch_copy::{
    Batch, Channels, CostModel, Folio, Host, Options, Outcome, OverlapCheck, Policy, PtdmaQueue,
    SharedChannel, Wait, WaitFor, Wake, calibrate,
};
use ptdma::descriptor::{CommandWord, Descriptor};
use ptdma::io::RingMemory;
use ptdma::{Channel, ChannelConfig, DmaAddr, Limits};
use ptdma_model::{
    Access, BusRing, BusSpace, ModelConfig, SimulatedFunction, Simulation, SimulationConfig, Timing,
};
use ptdma_predict::costs::{Costs, Hypothesis};
use ptdma_predict::published::{FolioSize, MACHINE_CHANNELS};
use ptdma_predict::strategy::{Choice, Load, Ours, ports};

/// Functions, in pairs behind eight ports.
const MAX_CHANNELS: usize = MACHINE_CHANNELS;
/// A whole batch of 512 base pages and one more.
const RING_ENTRIES: usize = 1024;
/// How long a poll that found nothing waits before the next one.
const POLL_GAP_NS: u64 = 200;

type Queue = PtdmaQueue<SimulatedFunction, PricedRing>;
type Shared = Channels<Queue, spin::Mutex<SharedChannel<Queue>>, MAX_CHANNELS>;

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

fn ns(ns: f64) -> u64 {
    ns.round() as u64
}

fn per_mib(gb_per_s: f64) -> u64 {
    ns((1u64 << 20) as f64 / gb_per_s)
}

/// Memory, time, and sixteen functions in pairs behind eight ports, at these costs.
fn machine(costs: &Costs) -> (BusSpace, Simulation, Shared) {
    let bus = BusSpace::new();
    let simulation = Simulation::new(SimulationConfig {
        read_ns: ns(costs.read_ns),
        write_ns: ns(costs.write_ns),
        interrupt_ns: 0,
        port_bytes_per_second: ns(costs.port_gb_per_s * 1e9),
        fabric_bytes_per_second: 0,
    });
    let config = ModelConfig {
        timing: Timing {
            setup_ns: ns(costs.descriptor_ns),
            bytes_per_second: ns(costs.engine_gb_per_s * 1e9),
            ..Timing::default()
        },
        ..ModelConfig::default()
    };
    let mut shared = Shared::new();
    for port in ports() {
        let ring = PricedRing {
            ring: BusRing::new(&bus, RING_ENTRIES).unwrap(),
            simulation: simulation.clone(),
            prepare_ns: ns(costs.prepare_ns),
        };
        let mut channel_config = ChannelConfig::default();
        channel_config.limits = Limits::with_max_len_bytes(2 << 20);
        let function = simulation.add_behind(Some(port), config, bus.clone());
        let Ok(channel) = Channel::bring_up(function, ring, channel_config) else {
            panic!("bring-up failed")
        };
        let queue = PtdmaQueue::new(channel, None).with_port(Some(port as u32));
        assert!(
            shared
                .add(spin::Mutex::new(SharedChannel::new(queue)))
                .is_ok()
        );
    }
    (bus, simulation, shared)
}

/// The executor's own time for a batch, ns, how many channels its policy took of so many, and behind
/// how many ports they are.
fn executed(costs: &Costs, load: Load, channels: usize) -> (f64, usize, usize) {
    let (bus, simulation, shared) = machine(costs);
    let (len, count) = (load.folio.bytes(), load.count as usize);
    // Folios merge to 64 KiB, as in the model: every second place of that length stays empty.
    let group = (64usize << 10).max(len as usize);
    let total = 2 * group * (len as usize * count).div_ceil(group);
    let src = bus.alloc(total, 4096, Access::ReadWrite).unwrap();
    let dst = bus.alloc(total, 4096, Access::ReadWrite).unwrap();
    let folio = |n: usize| {
        let at = n * len as usize;
        let at = at / group * 2 * group + at % group;
        src.write(at, &(n as u64 + 1).to_le_bytes()).unwrap();
        Folio::new(src.addr_of(at).unwrap(), dst.addr_of(at).unwrap(), len)
    };
    let folios: Vec<Folio> = (0..count).map(folio).collect();
    let mut model = CostModel::default();
    model.cpu_folio_ns = 0;
    model.cpu_ns_per_mib = per_mib(costs.cpu_gb_per_s);
    model.engine_batch_ns = 0;
    model.channel_ns = ns(2.0 * costs.write_ns + costs.read_ns);
    model.prepare_ns = ns(costs.prepare_ns);
    model.descriptor_ns = ns(costs.descriptor_ns);
    model.engine_ns_per_mib = per_mib(costs.engine_gb_per_s);
    model.page_ns = 0;
    model.port_ns_per_mib = per_mib(costs.port_gb_per_s);
    model.ports = shared.ports() as u64;
    model.fabric_ns_per_mib = 0;
    let mut policy = Policy::new(model, channels);
    policy.min_batch_bytes = 0;
    let mut base = Options::default();
    base.rules.min_part_bytes = model.min_part_bytes();
    let options = policy.options(count, load.bytes(), shared.active(), &base);
    let options = options.expect("the policy declines nothing");
    let mut host = Host::new(VirtualPolling(simulation.clone()));
    let mut outcomes = vec![Outcome::Dma; count];
    let mut took = 0;
    let mut used_ports = 0;
    let submitted = |number| shared.channel_stats(number).map_or(0, |s| s.submitted);
    // The second batch counts: a driver may look closer at an engine that has shown nothing yet.
    for _ in 0..2 {
        let before: Vec<u64> = (0..MAX_CHANNELS).map(submitted).collect();
        let start = simulation.now_ns();
        let overlap = OverlapCheck::CallerKnows;
        let report = Batch::<MAX_CHANNELS>::new()
            .run(
                &shared,
                &folios[..],
                overlap,
                &options,
                &mut host,
                &mut outcomes,
            )
            .unwrap();
        assert!(report.is_complete() && src.to_vec() == dst.to_vec());
        took = simulation.now_ns() - start;
        let mut used = Vec::from(ports());
        let mut counts = before.into_iter().enumerate();
        used.retain(|_| {
            counts
                .next()
                .is_some_and(|(n, before)| submitted(n) > before)
        });
        used.dedup();
        used_ports = used.len();
    }
    (took as f64, options.channels, used_ports)
}

#[test]
fn the_executor_takes_the_time_of_the_strategy() {
    let costs = Costs::default();
    for (folio, count) in [
        (FolioSize::HUGE, 1),
        (FolioSize::HUGE, 8),
        (FolioSize::MIDDLE, 256),
        (FolioSize::BASE, 512),
    ] {
        let load = Load { folio, count };
        for channels in [1, 2, 4, 8, 12, 16] {
            let ours = Ours {
                costs: &costs,
                hypothesis: Hypothesis::Split,
                channels,
                hybrid: false,
            };
            let (took, used, used_ports) = executed(&costs, load, channels);
            assert_eq!(
                used_ports,
                used.min(8),
                "{folio} x {count}: {used} channels"
            );
            let choice = Choice {
                channels: used,
                polls: true,
                ..ours.fastest(load)
            };
            // The model has two reads for a look. The driver takes three until an engine has shown where
            // its head stays after an error, and one from then on.
            let expected = ours.copy(load, choice).wall_ns + used as f64 * costs.read_ns;
            // Where channels end one after the other, the executor looks at the first ones while the
            // last ones still copy; the model looks at all of them at the end. So a read of each
            // channel may be off. Twice that: `Ours::doorbell` or `look_reads` is of yesterday.
            let allowed = 0.03 * expected + used as f64 * costs.read_ns;
            assert!(
                (took - expected).abs() <= allowed,
                "{folio} x {count} on {used} of {channels}: {took} {expected}"
            );
        }
    }
}

#[test]
fn calibration_finds_engines_and_ports() {
    let costs = Costs::default();
    let (bus, simulation, shared) = machine(&costs);
    // Long enough that sixteen doorbells and looks do not count.
    let bytes = 64 << 20;
    let src = bus.alloc(bytes, 4096, Access::ReadWrite).unwrap();
    let dst = bus.alloc(bytes, 4096, Access::ReadWrite).unwrap();
    let scratch = Folio::new(
        src.addr_of(0).unwrap(),
        dst.addr_of(0).unwrap(),
        bytes as u64,
    );
    let mut host = Host::new(VirtualPolling(simulation));
    let base = CostModel::default();
    let model = calibrate(&shared, &mut Batch::new(), &mut host, scratch, &base).unwrap();
    let near = |found: u64, gb_per_s: f64| {
        let off = found as f64 / per_mib(gb_per_s) as f64 - 1.0;
        assert!(off.abs() < 0.06, "{gb_per_s} GB/s: {off:+.3} in {model:?}");
    };
    assert_eq!(model.ports, 8);
    near(model.engine_ns_per_mib, costs.engine_gb_per_s);
    near(model.port_ns_per_mib, costs.port_gb_per_s);
    near(model.fabric_ns_per_mib, 8.0 * costs.port_gb_per_s);
    // What folios of 2 MiB cannot tell stays.
    assert_eq!(model.page_ns, base.page_ns);
}
