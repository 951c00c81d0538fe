//! The emulated machine: memory, functions with their engine threads, channels brought up.

use std::time::Instant;

use anyhow::{Context, anyhow};
use batch_copy::{Channels, Piece, PtdmaQueue, Rescue, SharedChannel};
use ptdma::{Channel, ChannelConfig, Clock, Deadline, ErrorHead, Signalling};
use ptdma_model::forks;
use ptdma_model::{
    Access, BusBuffer, BusRing, BusSpace, EngineThread, Model, ModelConfig, Trigger,
};

use crate::cli::{Args, WaitName};
use crate::waiting::{Bell, InterruptSender};

/// Most channels of the demo.
pub(crate) const MAX_CHANNELS: usize = 16;

/// How long an engine gets to show at bring-up what it is like, in nanoseconds: its thread may have
/// to wait for a turn on a busy machine.
const FIND_OUT_NS: u64 = 10_000_000_000;

/// Real time, for a wait on an engine's thread: each look gives that thread a turn.
struct Yielding(Instant);

impl Clock for Yielding {
    fn now(&self) -> u64 {
        std::thread::yield_now();
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A PTDMA queue on a modelled function.
pub(crate) type Queue = PtdmaQueue<Model, BusRing>;

/// Everything that batches share.
pub(crate) struct Machine {
    /// The functions, by channel number.
    pub(crate) models: Vec<Model>,
    /// The channels.
    pub(crate) channels: Channels<Queue, spin::Mutex<SharedChannel<Queue>>, MAX_CHANNELS>,
    /// Memory that folios are moved from.
    pub(crate) src: BusBuffer,
    /// Memory that they are moved to.
    pub(crate) dst: BusBuffer,
    /// Wakes batches that sleep.
    pub(crate) bell: Bell,
    _threads: Vec<EngineThread>,
}

impl Machine {
    /// Builds it, with `window` bytes of memory on each side.
    pub(crate) fn new(
        args: &Args,
        window: usize,
        raised: &InterruptSender,
    ) -> anyhow::Result<Self> {
        let bus = BusSpace::new();
        let memory = |what| {
            bus.alloc(window, 2 << 20, Access::ReadWrite)
                .map_err(|e| anyhow!("no {what} memory: {e}"))
        };
        let (src, dst) = (memory("source")?, memory("destination")?);
        let mut machine = Self {
            models: Vec::new(),
            channels: Channels::new(),
            src,
            dst,
            bell: Bell::default(),
            _threads: Vec::new(),
        };
        let signalling = match args.wait {
            WaitName::Poll => Signalling::Polled,
            WaitName::Interrupt | WaitName::SpinThenSleep => Signalling::Interrupts,
        };
        for number in 0..usize::from(args.channels) {
            let model = Model::new(
                ModelConfig {
                    forks: args.machine,
                    ..ModelConfig::default()
                },
                bus.clone(),
            );
            let ring = BusRing::new(&bus, args.ring).map_err(|e| anyhow!("no ring: {e}"))?;
            let mut config = ChannelConfig::default();
            config.signalling = signalling;
            // Told, so that each injected fault is seen: what fails once and is run again
            // would be good.
            config.error_head = match args.machine.error_head {
                forks::ErrorHead::At => ErrorHead::AtFailing,
                forks::ErrorHead::Past => ErrorHead::PastFailing,
                forks::ErrorHead::Tail => ErrorHead::Unknown,
            };
            let mut channel = Channel::bring_up(model.clone(), ring, config)
                .map_err(|(e, ..)| anyhow!("channel {number} does not come up: {e}"))?;
            let threads = model.spawn_engine().context("starting an engine thread")?;
            machine._threads.push(threads);
            let clock = Yielding(Instant::now());
            channel
                .find_out(&clock, Deadline::after(&clock, FIND_OUT_NS))
                .map_err(|e| anyhow!("channel {number}: {e}"))?;
            // What follows is the work; bring-up is a matter of once.
            let _bring_up = model.take_counters();
            let raised = raised.clone();
            model.on_interrupt(move || {
                // Nobody listens any more: the program is ending.
                let _ = raised.send(number);
            });
            // Half of the channels near each of two nodes, as on a two-socket machine.
            let node = u16::from(number >= usize::from(args.channels) / 2);
            let queue = PtdmaQueue::new(channel, Some(node));
            machine
                .channels
                .add(spin::Mutex::new(SharedChannel::new(queue)))
                .map_err(|_| anyhow!("more than {MAX_CHANNELS} channels"))?;
            machine.models.push(model);
        }
        for spec in &args.fault {
            for (number, model) in machine.models.iter().enumerate() {
                if spec.channel.is_none_or(|channel| channel == number) {
                    let mut fault = spec.fault.clone();
                    if let Trigger::Chance { seed, .. } = &mut fault.trigger {
                        // Else chance would strike all channels at the same descriptor.
                        *seed = number as u64;
                    }
                    model.inject(fault);
                }
            }
        }
        Ok(machine)
    }

    /// No more messages: lets the interrupt thread end.
    pub(crate) fn disconnect_interrupts(&self) {
        for model in &self.models {
            model.on_interrupt(|| {});
        }
    }
}

/// The last resort about an engine that does not stop: a reset of its function.
pub(crate) struct Reset<'m> {
    /// The machine.
    pub(crate) machine: &'m Machine,
    /// Parts of folios that stay out of use: source and destination, as bus addresses.
    pub(crate) quarantined: Vec<Piece>,
    /// Functions that were reset.
    pub(crate) resets: u64,
}

impl Rescue for Reset<'_> {
    fn prove_stopped(&mut self, channel: usize) -> bool {
        let reset = self
            .machine
            .models
            .get(channel)
            // A function that does not answer cannot be reset either; cutting it off the bus is
            // what a machine would do, and what dropping the model's writes amounts to.
            .is_some_and(|model| model.function_reset() || !model.answers());
        self.resets += u64::from(reset);
        reset
    }

    fn quarantined(&mut self, _channel: usize, piece: &Piece) {
        self.quarantined.push(*piece);
    }
}
