//! One channel on one modelled function, with memory to copy and a memory of what was asked.

use ptdma::{
    Channel, ChannelConfig, Cookie, Deadline, ErrorHead, FunctionQuiesced, Notify, Progress,
    Restart, Signalling, SubmitError,
};
use ptdma_model::forks::{self, Forks};
use ptdma_model::{Access, BusBuffer, BusRing, BusSpace, Model, ModelConfig, Timing};

/// Length of every copy: small, because tests make many, and odd, because hardware does not care.
pub const COPY_LEN_BYTES: usize = 68;

/// How a rig is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Ring entries.
    pub entries: usize,
    /// The engine goes on by itself when the tail moves.
    pub lenient: bool,
    /// The error code stays in the status register.
    pub sticky_status: bool,
    /// The head is left one past a failed descriptor.
    pub head_past_error: bool,
    /// The driver is told where the head stays and what sets the queue going.
    pub told: bool,
    /// How the driver learns of completions.
    pub signalling: Signalling,
    /// Engine steps per register read: 1 makes a polling driver's engine go, 0 leaves it to the
    /// test.
    pub auto_step: u32,
    /// First cookie.
    pub first_cookie: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            entries: 8,
            lenient: false,
            sticky_status: false,
            head_past_error: false,
            told: true,
            signalling: Signalling::Polled,
            auto_step: 0,
            first_cookie: 0,
        }
    }
}

impl Setup {
    /// Every combination of engine and signalling, for tests that must hold on all.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for bits in 0..16 {
            all.push(Self {
                lenient: bits & 1 != 0,
                sticky_status: bits & 2 != 0,
                head_past_error: bits & 4 != 0,
                signalling: if bits & 8 != 0 {
                    Signalling::Interrupts
                } else {
                    Signalling::Polled
                },
                ..Self::default()
            });
        }
        all
    }
}

/// The word that a modelled function can touch no memory.
#[allow(unsafe_code)]
#[must_use]
pub fn quiesced() -> FunctionQuiesced {
    // SAFETY: the model reaches the memory of its bus alone, which takes any bytes at any time. A
    // word that is not true makes a test fail, and nothing worse.
    unsafe { FunctionQuiesced::by_owner() }
}

/// A channel, its function, and pairs of buffers, one pair per copy.
#[derive(Debug)]
pub struct Pair {
    /// Where the copy reads.
    pub src: BusBuffer,
    /// Where it writes.
    pub dst: BusBuffer,
}

impl Pair {
    /// Whether every byte arrived.
    #[must_use]
    pub fn copied(&self) -> bool {
        self.src.to_vec() == self.dst.to_vec()
    }

    /// Whether no byte was written: sources have no zero bytes.
    #[must_use]
    pub fn untouched(&self) -> bool {
        self.dst.to_vec().iter().all(|byte| *byte == 0)
    }
}

/// A channel on a modelled function.
pub struct Rig {
    /// The bus.
    pub bus: BusSpace,
    /// The function.
    pub model: Model,
    /// The driver.
    pub channel: Channel<Model, BusRing>,
    /// What was submitted: the copy of the n-th cookie is number n.
    pub pairs: Vec<Pair>,
    /// Cookie of the first copy.
    pub first: Cookie,
}

impl Rig {
    /// Brings a channel up.
    ///
    /// # Panics
    ///
    /// If the model and the driver do not get on: a bug in one of them.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let bus = BusSpace::new();
        let config = ModelConfig {
            forks: Forks {
                error_code: if setup.sticky_status {
                    forks::ErrorCode::Kept
                } else {
                    forks::ErrorCode::ClearedByRun
                },
                error_head: if setup.head_past_error {
                    forks::ErrorHead::Past
                } else {
                    forks::ErrorHead::At
                },
                ..if setup.lenient {
                    Forks::LENIENT
                } else {
                    Forks::TODAY
                }
            },
            auto_step: setup.auto_step,
            // Makes virtual time pass for drivers that wait.
            timing: Timing {
                read_ns: 100,
                write_ns: 10,
                ..Timing::default()
            },
        };
        let model = Model::new(config, bus.clone());
        let ring = BusRing::new(&bus, setup.entries).expect("a ring fits on an empty bus");
        let mut config = ChannelConfig::default();
        config.signalling = setup.signalling;
        config.error_head = match (setup.told, setup.head_past_error) {
            (false, _) => ErrorHead::Unknown,
            (true, true) => ErrorHead::PastFailing,
            (true, false) => ErrorHead::AtFailing,
        };
        config.restart = match (setup.told, setup.lenient) {
            (false, _) => Restart::Unknown,
            (true, true) => Restart::ByTail,
            (true, false) => Restart::ByRun,
        };
        config.first_cookie = Cookie::new(setup.first_cookie);
        let channel = match Channel::bring_up(model.clone(), ring, config) {
            Ok(channel) => channel,
            Err((e, ..)) => panic!("bring-up: {e}"),
        };
        let _bring_up = model.take_counters();
        Self {
            bus,
            model,
            channel,
            pairs: Vec::new(),
            first: Cookie::new(setup.first_cookie),
        }
    }

    /// Submits one copy of fresh buffers.
    ///
    /// # Errors
    ///
    /// As the channel's `submit`.
    ///
    /// # Panics
    ///
    /// If cookies are not consecutive.
    pub fn submit(&mut self, notify: Notify) -> Result<Cookie, SubmitError> {
        let number = self.pairs.len();
        let buffer = || {
            self.bus
                .alloc(COPY_LEN_BYTES, 4, Access::ReadWrite)
                .expect("the bus is large")
        };
        let (src, dst) = (buffer(), buffer());
        let fill: Vec<u8> = (0..COPY_LEN_BYTES)
            .map(|i| ((number * 31 + i * 7) % 255 + 1) as u8)
            .collect();
        src.write(0, &fill).expect("in bounds");
        let request = self
            .channel
            .prep_copy(src.addr(), dst.addr(), COPY_LEN_BYTES as u64)
            .expect("addresses of the bus are fine");
        let cookie = self.channel.submit(&request, notify)?;
        assert_eq!(cookie, self.first.after(number as u64));
        self.pairs.push(Pair { src, dst });
        Ok(cookie)
    }

    /// Submits and issues a burst.
    ///
    /// # Panics
    ///
    /// If it does not fit.
    pub fn burst(&mut self, count: usize, notify: Notify) -> Vec<Cookie> {
        let cookies = (0..count)
            .map(|_| self.submit(Notify::Silent).expect("room in the ring"))
            .collect();
        self.channel.issue_pending(notify);
        cookies
    }

    /// The copy that a cookie stands for.
    ///
    /// # Panics
    ///
    /// If there is no such cookie.
    #[must_use]
    pub fn pair(&self, cookie: Cookie) -> &Pair {
        &self.pairs[cookie.since(self.first) as usize]
    }

    /// Steps the engine and polls (or takes the interrupts that were raised) until nothing is
    /// outstanding, and returns what was noteworthy on the way.
    ///
    /// # Panics
    ///
    /// If that does not come to an end, or the channel reports a fault.
    pub fn drain(&mut self) -> Vec<Progress> {
        let mut seen = Vec::new();
        for _ in 0..20_000 {
            if self.channel.outstanding() == 0 {
                return seen;
            }
            self.model.step();
            let progress = self.channel.poll().expect("no fault");
            if progress.failure.is_some() || progress.anomaly.is_some() {
                seen.push(progress);
            }
        }
        panic!("{} descriptors never came", self.channel.outstanding());
    }

    /// A deadline in the model's virtual time, long enough for anything that works: 1 ms, which
    /// is 10,000 register reads.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        Deadline::after(&self.model, 1_000_000)
    }
}
