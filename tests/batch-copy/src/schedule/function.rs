//! A function of the device model, and the driver's own channel on it.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use batch_copy::PtdmaQueue;
use ptdma::regs::Register;
use ptdma::{
    BringUpError, Channel, ChannelConfig, Cookie, DmaAddr, ErrorHead, FunctionQuiesced, Limits,
    RegisterIo, Restart, Signalling,
};
use ptdma_model::bus::{BusError, BusMemory, CopyError, Side};
use ptdma_model::fault::{FaultId, StallFor};
use ptdma_model::forks::{self, Late, Span};
use ptdma_model::{
    BusRing, BusSpace, Fault, FaultKind, Forks, Model, ModelConfig, StepOutcome, Trigger,
};

use super::engine::DOMAIN_LEN_BYTES;
use super::world::World;

/// The channel of a function.
pub(super) type Queue = PtdmaQueue<Registers, BusRing>;

/// Looks of a queue that has to stop: the engine makes a step with each, on average.
const STOP_POLLS: u32 = 300;

/// Register accesses of one run, at most: a hundred times what an average one takes.
const MOST_ACCESSES: u64 = 5_000_000;

/// A copy that an engine has made, in the world's own addresses.
#[derive(Clone, Copy, Debug)]
struct Move {
    src: usize,
    dst: usize,
    len_bytes: usize,
}

/// What an engine reaches: its ring, and the world's memory, where it has an address of its own.
struct FuzzBus {
    rings: BusSpace,
    base: u64,
    memory_len_bytes: u64,
    /// What the engine copied in the step that it makes. The world does it when the step is over.
    moves: Arc<Mutex<Vec<Move>>>,
}

impl FuzzBus {
    fn local(&self, addr: DmaAddr, len_bytes: u64) -> Result<usize, BusError> {
        let at = addr.get().wrapping_sub(self.base);
        let end = at.checked_add(len_bytes);
        if end.is_some_and(|end| end <= self.memory_len_bytes) {
            return Ok(at as usize);
        }
        Err(BusError::Unmapped { addr })
    }
}

impl BusMemory for FuzzBus {
    fn read(&self, addr: DmaAddr, buf: &mut [u8]) -> Result<(), BusError> {
        self.rings.read(addr, buf)
    }

    fn write(&self, addr: DmaAddr, _data: &[u8]) -> Result<(), BusError> {
        // Engines write nothing but destinations of copies.
        Err(BusError::Refused { addr })
    }

    fn copy(&self, src: DmaAddr, dst: DmaAddr, len_bytes: u64) -> Result<(), CopyError> {
        let failed = |side| {
            move |error| CopyError {
                side,
                error,
                done_bytes: 0,
            }
        };
        let made = Move {
            src: self.local(src, len_bytes).map_err(failed(Side::Source))?,
            dst: self
                .local(dst, len_bytes)
                .map_err(failed(Side::Destination))?,
            len_bytes: len_bytes as usize,
        };
        self.moves.lock().expect("nobody panics with it").push(made);
        Ok(())
    }
}

/// A function of the device model.
pub(super) struct Function {
    number: usize,
    model: Model,
    moves: Arc<Mutex<Vec<Move>>>,
    raised: Arc<AtomicBool>,
    rings: BusSpace,
    /// Faults that end when somebody ends them.
    lasting: RefCell<Vec<(FaultId, FaultKind, u32)>>,
}

/// What is chosen for the functions of one run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) forks: Forks,
    /// Whether the driver is told what it would have to find out.
    pub(super) told: bool,
    pub(super) entries: usize,
    pub(super) max_len_bytes: u32,
}

/// Engines that keep every promise, and with which nothing goes wrong by itself.
pub(super) const SOUND: [Forks; 2] = [Forks::TODAY, Forks::LENIENT];

/// Engines of other kinds, but for those that go by real time: no run of theirs would be repeated.
pub(super) fn other_kinds() -> Vec<Forks> {
    let mut all = Forks::covering();
    all.retain(|forks| !matches!(forks.late, Late::For(Span::Micros(_))));
    all.retain(|forks| !matches!(forks.reset, forks::Reset::Away(Span::Micros(_))));
    all
}

impl Function {
    pub(super) fn new(
        number: usize,
        kind: &Kind,
        translated: bool,
        memory_len_bytes: usize,
    ) -> Self {
        let rings = BusSpace::new();
        let moves = Arc::<Mutex<Vec<Move>>>::default();
        let bus = FuzzBus {
            rings: rings.clone(),
            base: if translated {
                (number as u64 + 1) * DOMAIN_LEN_BYTES
            } else {
                0
            },
            memory_len_bytes: memory_len_bytes as u64,
            moves: Arc::clone(&moves),
        };
        let config = ModelConfig {
            forks: kind.forks,
            ..ModelConfig::default()
        };
        let model = Model::new(config, bus);
        let raised = Arc::new(AtomicBool::new(false));
        let line = Arc::clone(&raised);
        model.on_interrupt(move || line.store(true, Ordering::Relaxed));
        Self {
            number,
            model,
            moves,
            raised,
            rings,
            lasting: RefCell::default(),
        }
    }

    /// Has the engine make one step. Returns whether a descriptor is over by it.
    pub(super) fn step(&self, world: &World) -> bool {
        let outcome = self.model.step();
        let moves = std::mem::take(&mut *self.moves.lock().expect("nobody panics with it"));
        for Move {
            src,
            dst,
            len_bytes,
        } in moves
        {
            world.note(|| format!("channel {} copies {len_bytes} to {dst:#x}", self.number));
            world.engine_copies(self.number, src, dst, len_bytes);
        }
        if let StepOutcome::Failed { code } = outcome {
            world.note(|| format!("channel {} fails: {code:?}", self.number));
        }
        matches!(
            outcome,
            StepOutcome::Completed { .. } | StepOutcome::Failed { .. }
        )
    }

    pub(super) fn take_raised(&self) -> bool {
        self.raised.swap(false, Ordering::Relaxed)
    }

    /// It knows nothing any more, and reaches nothing before its owner lets it use the bus again.
    pub(super) fn reset(&self) {
        self.model.power_cycle();
        self.model.set_bus_master(false);
    }

    /// Has descriptors meet faults: one in `one_in`.
    pub(super) fn trouble(&self, world: &World, one_in: u64) {
        let stall = |duration, haltable| FaultKind::Stall { duration, haltable };
        let head = world.one_of(&[0, 3, 0x7777_7777]);
        let reads = Some(1 + world.below(60));
        // In hundredths of all faults.
        let once = [
            (FaultKind::Error { code: 19 }, 30),
            (FaultKind::Error { code: 0 }, 3),
            (
                FaultKind::PartialWrite {
                    len_bytes: 1 + world.below(30),
                    code: 38,
                },
                15,
            ),
            (stall(StallFor::Steps(1 + world.below(400)), false), 12),
            (FaultKind::LostInterrupt, 5),
            (FaultKind::SpuriousInterrupt, 5),
            (FaultKind::AllOnes { reads }, 5),
            (FaultKind::HeadGarbage { value: head, reads }, 5),
        ];
        // None has an engine say that it stands, and go on: nobody could tell.
        let lasting = [
            (stall(StallFor::Ever, true), 8),
            (stall(StallFor::Ever, false), 8),
            (FaultKind::AllOnes { reads: None }, 2),
        ];
        let per_million = |share: u32| share * 10_000 / one_in.max(1) as u32;
        for (kind, share) in once {
            self.inject(world, kind, per_million(share));
        }
        for (kind, share) in lasting {
            let id = self.inject(world, kind.clone(), per_million(share));
            self.lasting
                .borrow_mut()
                .push((id, kind, per_million(share)));
        }
    }

    fn inject(&self, world: &World, kind: FaultKind, per_million: u32) -> FaultId {
        let seed = world.next();
        let chance = Trigger::Chance { per_million, seed };
        self.model.inject(Fault::new(chance, kind))
    }

    /// What lasts for ever ends; it may come again.
    pub(super) fn recollect(&self, world: &World) {
        for (id, kind, per_million) in self.lasting.borrow_mut().iter_mut() {
            self.model.remove_fault(*id);
            *id = self.inject(world, kind.clone(), *per_million);
        }
    }

    /// Brings its channel up.
    pub(super) fn bring_up(&self, world: &Rc<World>, kind: &Kind) -> Result<Queue, BringUpError> {
        let registers = Registers {
            world: Rc::clone(world),
            number: self.number,
            accesses: Cell::new(0),
        };
        let ring = BusRing::new(&self.rings, kind.entries).expect("room for one ring");
        let mut config = ChannelConfig::default();
        config.signalling = Signalling::Interrupts;
        config.limits = Limits::with_max_len_bytes(kind.max_len_bytes);
        // Cookies wrap soon.
        config.first_cookie = Cookie::new(u64::MAX - 20);
        if kind.told {
            config.error_head = match kind.forks.error_head {
                forks::ErrorHead::At => ErrorHead::AtFailing,
                forks::ErrorHead::Past => ErrorHead::PastFailing,
                forks::ErrorHead::Tail => ErrorHead::Unknown,
            };
            config.restart = match kind.forks.restart {
                forks::Restart::Tail => Restart::ByTail,
                forks::Restart::Run => Restart::ByRun,
            };
        }
        let channel = Channel::bring_up(registers, ring, config).map_err(|(error, ..)| error)?;
        // It may have been reset meanwhile by its owner.
        self.model.set_bus_master(true);
        Ok(PtdmaQueue::new(channel, None).with_stop_polls(STOP_POLLS))
    }
}

/// The registers of a function. Its engine makes steps while they are accessed.
pub(super) struct Registers {
    world: Rc<World>,
    number: usize,
    accesses: Cell<u64>,
}

impl Registers {
    fn model(&self) -> Model {
        let world = &self.world;
        let function = world.engines[self.number].function();
        self.accesses.set(self.accesses.get() + 1);
        if self.accesses.get() > MOST_ACCESSES {
            world.is_wrong(|| format!("channel {}: a wait without a bound", self.number));
        }
        world.now_ns.set(world.now_ns.get() + world.below(4));
        for _ in 0..world.below(3) {
            function.step(world);
        }
        if world.manners.owners && world.one_in(2000) {
            world.trouble.set(true);
            world.note(|| format!("channel {} is reset between two accesses", self.number));
            world.reset(self.number);
        }
        function.model.clone()
    }
}

impl RegisterIo for Registers {
    fn read(&self, register: Register) -> u32 {
        let value = self.model().read(register);
        self.world
            .note(|| format!("channel {}: {register:?} reads {value:#x}", self.number));
        value
    }

    fn write(&self, register: Register, value: u32) {
        let model = self.model();
        self.world
            .note(|| format!("channel {}: {register:?} = {value:#x}", self.number));
        model.write(register, value);
    }
}

/// Brings the channel of a function up again, which was reset a moment ago.
pub(super) fn recover(world: &World, number: usize, queue: &mut Queue) {
    let reset = world.engines[number].function();
    reset.reset();
    // SAFETY: the function was reset in the line above, and its engine makes no step before its
    // registers are written again.
    let proof = unsafe { FunctionQuiesced::by_owner() };
    let result = queue.channel().recover(proof);
    reset.model.set_bus_master(true);
    world.note(|| format!("channel {number} recovers: {result:?}"));
}

/// Takes the channel of a function apart, with its ring.
pub(super) fn dismantle(world: &World, number: usize, queue: Queue) {
    world.engines[number].function().reset();
    // SAFETY: as in `recover`.
    let proof = unsafe { FunctionQuiesced::by_owner() };
    let (_registers, ring, _dropped) = queue.into_channel().shutdown_quiesced(proof);
    drop(ring);
}
