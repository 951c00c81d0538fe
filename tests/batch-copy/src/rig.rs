//! Modelled functions behind channels, stepped by whoever waits for them.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use batch_copy::{
    Batch, Channels, CpuCopier, Host, Mapper, Options, Outcome, OverlapCheck, PtdmaQueue, Report,
    Rescue, SharedChannel, Wait, WaitFor, Wake,
};
use ptdma::{Channel, ChannelConfig, Deadline, ErrorHead, Limits, Restart, Signalling};
use ptdma_model::forks;
use ptdma_model::{BusRing, BusSpace, Counters, Model, ModelConfig};

use crate::memory::Memory;

/// Most channels of a rig.
pub const MAX_CHANNELS: usize = 16;

/// A channel on a modelled function.
pub type Queue = PtdmaQueue<Model, BusRing>;
/// Its lock.
pub type QueueLock = spin::Mutex<SharedChannel<Queue>>;
/// All channels of a rig.
pub type RigChannels = Channels<Queue, QueueLock, MAX_CHANNELS>;

/// How a rig is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Channels.
    pub channels: usize,
    /// Ring entries of each.
    pub entries: usize,
    /// How completions are signalled.
    pub signalling: Signalling,
    /// Longest descriptor in bytes.
    pub max_len_bytes: u32,
    /// What the functions are like.
    pub model: ModelConfig,
    /// Whether bring-up finds out what they do, beside what the channels are told.
    pub find_out: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            channels: 1,
            entries: 512,
            signalling: Signalling::Polled,
            max_len_bytes: 2 << 20,
            model: ModelConfig::default(),
            find_out: false,
        }
    }
}

/// Modelled functions and the channels on them.
pub struct Rig {
    /// The bus that all functions and folios are on.
    pub bus: BusSpace,
    /// The functions.
    pub models: Vec<Model>,
    /// The channels.
    pub channels: RigChannels,
    /// Interrupts of each function that were sent and not handled.
    pub pending: Vec<Arc<AtomicU64>>,
    /// How it was set up.
    pub setup: Setup,
}

/// Model time to find an engine out in, in nanoseconds: a thousand times what it takes.
const FIND_OUT_NS: u64 = 1_000_000_000;

/// The NUMA node of channel `index`: the first half on node 0, the others on node 1.
#[must_use]
pub fn node_of(index: usize, channels: usize) -> u16 {
    u16::from(index >= channels.div_ceil(2))
}

impl Rig {
    /// Brings the channels up.
    ///
    /// # Panics
    ///
    /// If model and driver do not get on.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let bus = BusSpace::new();
        let mut channels = Channels::new();
        let mut models = Vec::new();
        let mut pending = Vec::new();
        for index in 0..setup.channels {
            let model = Model::new(setup.model, bus.clone());
            let count = Arc::new(AtomicU64::new(0));
            let raised = Arc::clone(&count);
            model.on_interrupt(move || {
                raised.fetch_add(1, Ordering::SeqCst);
            });
            let ring = BusRing::new(&bus, setup.entries).expect("a ring fits on the bus");
            let mut config = ChannelConfig::default();
            config.signalling = setup.signalling;
            config.limits = Limits::with_max_len_bytes(setup.max_len_bytes);
            // Told, not found out: faults are counted by descriptors.
            config.error_head = match setup.model.forks.error_head {
                forks::ErrorHead::At => ErrorHead::AtFailing,
                forks::ErrorHead::Past => ErrorHead::PastFailing,
                forks::ErrorHead::Tail => ErrorHead::Unknown,
            };
            config.restart = match setup.model.forks.restart {
                forks::Restart::Tail => Restart::ByTail,
                forks::Restart::Run => Restart::ByRun,
            };
            let mut channel = match Channel::bring_up(model.clone(), ring, config) {
                Ok(channel) => channel,
                Err((e, ..)) => panic!("bring-up: {e}"),
            };
            if setup.find_out {
                let _runs = model.spawn_engine().expect("a thread");
                let deadline = Deadline::after(&model, FIND_OUT_NS);
                channel
                    .find_out(&model, deadline)
                    .expect("the model shows what it does");
            }
            let queue = PtdmaQueue::new(channel, Some(node_of(index, setup.channels)))
                .with_stop_polls(2000);
            let lock = QueueLock::new(SharedChannel::new(queue));
            assert!(channels.add(lock).is_ok(), "room for {MAX_CHANNELS}");
            let _bring_up = model.take_counters();
            models.push(model);
            pending.push(count);
        }
        Self {
            bus,
            models,
            channels,
            pending,
            setup,
        }
    }

    /// A wait that steps the functions.
    #[must_use]
    pub fn stepping(&self) -> Stepping<'_> {
        Stepping {
            rig: self,
            now_ns: Cell::new(0),
            steps: 1000,
            round_ns: 1000,
        }
    }

    /// Runs a batch of all folios of `memory`, and compares memory with what it reports.
    ///
    /// # Panics
    ///
    /// If the batch is refused, or an outcome is not what memory holds.
    pub fn run<W: Wait, M: Mapper, K: CpuCopier, R: Rescue>(
        &self,
        memory: &Memory,
        options: &Options,
        host: &mut Host<W, M, K, R>,
    ) -> (Report, Vec<Outcome>) {
        // An outcome that the batch forgets to write stays a claim, which memory refutes.
        let mut outcomes = vec![Outcome::Dma; memory.folios.len()];
        let report = Batch::<MAX_CHANNELS>::new()
            .run(
                &self.channels,
                &memory.folios[..],
                OverlapCheck::CallerKnows,
                options,
                host,
                &mut outcomes,
            )
            .expect("a sound batch");
        memory.verify(&outcomes).expect("outcomes hold");
        (report, outcomes)
    }

    /// What all functions counted, added up.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for model in &self.models {
            sum += model.counters();
        }
        sum
    }

    /// Handles every interrupt that was sent. Returns whether there was one.
    pub fn deliver(&self, now_ns: u64) -> bool {
        let mut any = false;
        for (channel, pending) in self.pending.iter().enumerate() {
            for _ in 0..pending.swap(0, Ordering::SeqCst) {
                self.channels.interrupt(channel, now_ns);
                any = true;
            }
        }
        any
    }
}

/// Waits by letting every function make some steps: the same on every run.
pub struct Stepping<'a> {
    rig: &'a Rig,
    now_ns: Cell<u64>,
    /// Steps of each function per wait.
    pub steps: u64,
    /// Time that a wait takes.
    pub round_ns: u64,
}

impl Wait for Stepping<'_> {
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn wants_interrupts(&self) -> bool {
        self.rig.setup.signalling == Signalling::Interrupts
    }

    fn wait(&mut self, wait: &WaitFor) -> Wake {
        self.now_ns.set(self.now_ns.get() + self.round_ns);
        for model in &self.rig.models {
            model.run(self.steps);
        }
        if !self.wants_interrupts() {
            return Wake::Poll;
        }
        if self.rig.deliver(self.now_ns.get()) {
            return Wake::Interrupted;
        }
        if !wait.announced {
            return Wake::Poll;
        }
        // Nobody woke us: as if it had slept for a while.
        let overdue = self.now_ns.get() + 50_000;
        self.now_ns
            .set(overdue.min(wait.latest_ns.max(self.now_ns.get())));
        Wake::Overdue
    }
}
