//! The two strategies side by side on plain memory, where only the CPU's part is left.

use batch_copy::{
    BadInput, Batch, Channels, Folio, Host, Options, Outcome, OverlapCheck, PtdmaQueue,
    SharedChannel, Wait, WaitFor, Wake,
};
use ptdma::{Channel, ChannelConfig, ErrorHead, Restart, Signalling};

use crate::plain::{PlainRegisters, PlainRing};
use crate::published::{self, STOCK_ENTRIES, StockQueue};
use crate::rig::MAX_CHANNELS;
use crate::workload::Workload;

/// Ring entries on our side: a usual batch is one burst.
pub const ENTRIES: usize = 512;

/// Who copies, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The published migrator on the stock driver.
    Published,
    /// This tree, polled.
    Polled,
    /// This tree, by interrupt.
    Interrupts,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Published, Self::Polled, Self::Interrupts];

    /// What command lines and tables call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Polled => "polled",
            Self::Interrupts => "interrupts",
        }
    }

    /// How its functions signal.
    #[must_use]
    pub const fn signalling(self) -> Signalling {
        match self {
            Self::Polled => Signalling::Polled,
            Self::Published | Self::Interrupts => Signalling::Interrupts,
        }
    }
}

type PlainQueue = PtdmaQueue<PlainRegisters, PlainRing>;
type PlainChannels = Channels<PlainQueue, spin::Mutex<SharedChannel<PlainQueue>>, MAX_CHANNELS>;

/// Plain functions are done when one looks.
struct Immediate<'a> {
    interrupts: bool,
    channels: &'a PlainChannels,
    registers: &'a [PlainRegisters],
}

impl Wait for Immediate<'_> {
    #[inline]
    fn now_ns(&self) -> u64 {
        0
    }

    fn wants_interrupts(&self) -> bool {
        self.interrupts
    }

    fn wait(&mut self, _wait: &WaitFor) -> Wake {
        if !self.interrupts {
            return Wake::Poll;
        }
        for (number, registers) in self.registers.iter().enumerate() {
            for _ in 0..registers.take_interrupts() {
                self.channels.interrupt(number, 0);
            }
        }
        Wake::Interrupted
    }
}

/// Batches of one workload on functions that are done at the doorbell: what allocations,
/// instructions and time are measured of.
pub struct Contest {
    ours: PlainChannels,
    registers: Vec<PlainRegisters>,
    theirs: Vec<StockQueue<PlainRegisters, PlainRing>>,
    strategy: Strategy,
    batch: Batch<MAX_CHANNELS>,
    folios: Vec<Folio>,
    outcomes: Vec<Outcome>,
}

impl Contest {
    /// Brings the channels up.
    ///
    /// # Panics
    ///
    /// With more than [`MAX_CHANNELS`] channels, or if one does not come up.
    #[must_use]
    pub fn new(strategy: Strategy, workload: &Workload, channels: usize) -> Self {
        let folios = workload.folios();
        let mut contest = Self {
            ours: Channels::new(),
            registers: Vec::new(),
            theirs: Vec::new(),
            strategy,
            batch: Batch::new(),
            outcomes: vec![Outcome::Dma; folios.len()],
            folios,
        };
        for _ in 0..channels {
            let registers = PlainRegisters::default();
            if strategy == Strategy::Published {
                let queue = StockQueue::new(registers.clone(), registers.ring(STOCK_ENTRIES));
                contest.theirs.push(queue);
            } else {
                let mut config = ChannelConfig::default();
                config.signalling = strategy.signalling();
                // What the plain functions are like, and the likeliest silicon.
                config.error_head = ErrorHead::AtFailing;
                config.restart = Restart::ByTail;
                let ring = registers.ring(ENTRIES);
                let channel = match Channel::bring_up(registers.clone(), ring, config) {
                    Ok(channel) => channel,
                    Err((error, ..)) => panic!("bring-up: {error}"),
                };
                let lock = spin::Mutex::new(SharedChannel::new(PtdmaQueue::new(channel, None)));
                assert!(contest.ours.add(lock).is_ok(), "too many channels");
            }
            let _ = registers.take_interrupts();
            contest.registers.push(registers);
        }
        contest
    }

    /// Copies one batch; returns whether all of it was copied.
    ///
    /// # Errors
    ///
    /// If the batch is not accepted.
    #[inline(never)]
    pub fn run(&mut self) -> Result<bool, BadInput> {
        if self.strategy == Strategy::Published {
            let remaining = published::start(&self.theirs, &self.folios);
            while remaining.get() != 0 {
                for (queue, registers) in self.theirs.iter().zip(&self.registers) {
                    for _ in 0..registers.take_interrupts() {
                        queue.interrupt();
                    }
                }
            }
            return Ok(true);
        }
        let mut host = Host::new(Immediate {
            interrupts: self.strategy == Strategy::Interrupts,
            channels: &self.ours,
            registers: &self.registers,
        });
        let report = self.batch.run(
            &self.ours,
            &self.folios[..],
            OverlapCheck::CallerKnows,
            &Options::default(),
            &mut host,
            &mut self.outcomes,
        )?;
        Ok(report.is_complete())
    }
}
