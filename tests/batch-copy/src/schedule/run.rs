//! One run: a world, its players, and what has to hold at the end.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use batch_copy::{
    BadInput, Batch, ChannelLimits, Channels, FailReason, Folio, FolioSource, Host, Identity,
    Mapper, Options, Outcome, OverlapCheck, Report, ServiceState, SharedChannel,
};
use ptdma::DmaAddr;
use ptdma_model::Forks;

use super::coroutine::{Player, Stacks};
use super::engine::{Engine, EngineChannel};
use super::function::{Function, Kind, SOUND, other_kinds};
use super::hardware::{FuzzChannel, Hardware};
use super::hosts::{Bed, FuzzCpu, FuzzList, FuzzMapper, FuzzRescue, FuzzWait};
use super::world::{
    DST_OFFSET_BYTES, Deliberate, FuzzLock, Manners, SLOT_LEN_BYTES, World, scramble,
};

/// What runs came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Runs.
    pub runs: u64,
    /// Callbacks and steps of engines.
    pub events: u64,
    /// Batches.
    pub batches: u64,
    /// Folios that engines copied.
    pub folios_dma: u64,
    /// Folios that were not copied.
    pub folios_left: u64,
    /// Engines that were stopped.
    pub stops: u64,
    /// Batches with bytes in quarantine.
    pub quarantines: u64,
    /// Batches that a callback's panic ended.
    pub panics: u64,
}

type FuzzChannels<const N: usize> = Channels<FuzzChannel, FuzzLock<SharedChannel<FuzzChannel>>, N>;

/// Most events of one run: some hundred times what an average one takes.
const MOST_EVENTS: u64 = 400_000;

/// Folios of a batch, at most.
const MOST_FOLIOS: u64 = 90;

/// What is behind the channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The fuzzer's own engines.
    Engines,
    /// The driver's channels, on functions of the device model.
    Functions,
}

/// Runs what `seed` says.
///
/// # Errors
///
/// What does not hold.
pub fn run_seed(mode: Mode, seed: u64, tally: &mut Tally) -> Result<(), String> {
    thread_local! {
        static STACKS: RefCell<Stacks> = RefCell::default();
    }
    STACKS.with_borrow_mut(|stacks| {
        // A batch with room for one lane has nowhere to put what it loses.
        if scramble(seed ^ 1).is_multiple_of(5) {
            run::<1>(mode, seed, tally, stacks)
        } else {
            run::<4>(mode, seed, tally, stacks)
        }
    })
}

fn run<const N: usize>(
    mode: Mode,
    seed: u64,
    tally: &mut Tally,
    stacks: &mut Stacks,
) -> Result<(), String> {
    let setup = World::new(seed, CALM, Vec::new(), 0, u64::MAX);
    let channels = 1 + setup.below(N as u64) as usize;
    let players = 2 + setup.below(3) as usize;
    let kind = setup.below(16);
    let translated = setup.one_in(2);
    let align_bytes = setup.one_of(&[1, 1, 4]);
    let manners = Manners {
        switch_one_in: setup.one_of(&[1, 2, 4, 8, 8, 16]),
        fault_one_in: if kind == 0 {
            0
        } else {
            setup.one_of(&[0, 5, 20, 50, 100])
        },
        owners: kind != 0 && setup.one_in(2),
        interrupts_lie: kind != 0 && setup.one_in(3),
        resets_work: setup.one_in(2),
        lies: kind == 1,
        panics: kind == 2,
        slow_lists: setup.one_in(3),
        align_bytes,
    };
    let max_len_bytes = setup.one_of(&[16, 41, 99, 1 << 20]);
    let ring_slots = setup.one_of(&[1, 2, 3, 4, 7, 8, 16, 40, 80]);
    let mut limits = ChannelLimits::new(max_len_bytes, ring_slots);
    limits.align_bytes = align_bytes;
    let kind = function_kind(&setup, limits.max_len_bytes);
    let memory_len_bytes = players * SLOT_LEN_BYTES;
    let hardware = (0..channels).map(|number| match mode {
        Mode::Engines => Hardware::Engine(RefCell::new(Engine::new(number, limits, translated))),
        Mode::Functions => {
            let function = Function::new(number, &kind, translated, memory_len_bytes);
            Hardware::Function(Box::new(function))
        }
    });
    let hardware = hardware.collect();
    let world = World::new(scramble(seed), manners, hardware, players, MOST_EVENTS);
    let mut shared = FuzzChannels::<N>::new();
    for number in 0..channels {
        let channel = match &world.engines[number] {
            Hardware::Engine(_) => FuzzChannel::Engine(EngineChannel {
                world: Rc::clone(&world),
                number,
            }),
            Hardware::Function(function) => {
                // Some kinds cannot be brought up, and say so.
                let Ok(queue) = function.bring_up(&world, &kind) else {
                    return Ok(());
                };
                if manners.fault_one_in != 0 {
                    world.trouble.set(true);
                    function.trouble(&world, manners.fault_one_in);
                }
                if !SOUND.contains(&kind.forks) {
                    world.trouble.set(true);
                }
                let queue = Box::new(queue);
                FuzzChannel::Queue { number, queue }
            }
        };
        let lock = FuzzLock {
            world: Rc::clone(&world),
            value: RefCell::new(SharedChannel::new(channel)),
        };
        assert!(shared.add(lock).is_ok(), "room for {N}");
    }
    let shared = Rc::new(shared);
    let sum = Rc::new(RefCell::new(Tally::default()));
    let beds: Vec<Rc<Bed>> = (0..players).map(|_| Rc::default()).collect();
    let mut left: Vec<(Player, Rc<Bed>)> = (0..players)
        .map(|slot| {
            let (owned, shared, sum) = (Rc::clone(&world), Rc::clone(&shared), Rc::clone(&sum));
            let bed = Rc::clone(&beds[slot]);
            let play = move || {
                let mut state = Batch::<N>::new();
                for _ in 0..1 + owned.below(3) {
                    let batch = one_batch(&owned, &shared, &mut state, slot, translated, &bed);
                    sum.borrow_mut().add(&batch);
                    // Memory in quarantine is nobody's.
                    let in_slot = |at: usize| at / SLOT_LEN_BYTES == slot;
                    let mut parts = owned.quarantined.borrow().clone().into_iter();
                    if owned.wrong.borrow().is_some() || parts.any(|part| in_slot(part.dst)) {
                        break;
                    }
                }
            };
            let player = Player::new(stacks, Rc::clone(&world), play);
            (player, Rc::clone(&beds[slot]))
        })
        .collect();
    while !left.is_empty() {
        if world.wrong.borrow().is_some() {
            break;
        }
        let asleep = |bed: &Bed| {
            bed.heard.get() == world.bell.get()
                && bed
                    .until_ns
                    .get()
                    .is_some_and(|until| until > world.now_ns.get())
        };
        let chance = world.below(8);
        if chance == 0 {
            interfere(&world, &shared);
        } else if left.iter().all(|(_, bed)| asleep(bed)) {
            all_sleep(&world, &shared, &beds);
        } else {
            let index = world.below(left.len() as u64) as usize;
            if asleep(&left[index].1) {
                continue;
            }
            if left[index].0.resume(&world.turn, stacks) {
                drop(left.swap_remove(index));
            }
        }
    }
    let sum = *sum.borrow();
    tally.add(&sum);
    tally.runs += 1;
    tally.events += world.events.get();
    if world.wrong.borrow().is_none() {
        for number in 0..channels {
            tally.stops += shared.channel_stats(number).map_or(0, |stats| stats.stops);
        }
        afterwards(&world, &shared, channels);
    }
    if let Some(trace) = &world.trace {
        for line in trace.borrow().iter() {
            println!("{line}");
        }
    }
    let wrong = world.wrong.borrow_mut().take();
    match wrong {
        Some(what) => {
            // Whoever is still at it stays where it is: it may hold locks that others wait for.
            std::mem::forget(left);
            Err(format!(
                "{what}\n{manners:?}\n{limits:?}, {channels} channels of {N}, {players} players\n{kind:?}"
            ))
        }
        None => Ok(()),
    }
}

/// A kind of function, and how the driver is set up for it.
fn function_kind(setup: &World, max_len_bytes: u64) -> Kind {
    thread_local! {
        static OTHERS: Vec<Forks> = other_kinds();
    }
    let forks = if setup.one_in(2) {
        setup.one_of(&SOUND)
    } else {
        OTHERS.with(|others| setup.one_of(others))
    };
    Kind {
        forks,
        told: setup.one_in(2),
        entries: setup.one_of(&[2, 4, 8, 16, 32]),
        max_len_bytes: max_len_bytes as u32,
    }
}

const CALM: Manners = Manners {
    switch_one_in: 1,
    fault_one_in: 0,
    owners: false,
    interrupts_lie: false,
    resets_work: true,
    lies: false,
    panics: false,
    slow_lists: false,
    align_bytes: 1,
};

impl Tally {
    fn add(&mut self, other: &Self) {
        self.batches += other.batches;
        self.folios_dma += other.folios_dma;
        self.folios_left += other.folios_left;
        self.quarantines += other.quarantines;
        self.panics += other.panics;
    }
}

/// Everybody sleeps: engines go on; if they have nothing left to do, time does.
fn all_sleep<const N: usize>(world: &Rc<World>, shared: &FuzzChannels<N>, beds: &[Rc<Bed>]) {
    world.count_event();
    deliver(world, shared);
    let mut engines = world.engines.iter();
    if engines.any(|engine| engine.goes_on(world)) {
        world.step_an_engine();
        // Now and then an engine takes its time, though never so long that it seems to hang.
        let lasts_ns = if world.one_in(16) { 2000 } else { 20 };
        world.now_ns.set(world.now_ns.get() + lasts_ns);
        return;
    }
    let soonest = beds.iter().filter_map(|bed| bed.until_ns.get()).min();
    if let Some(soonest) = soonest {
        world.now_ns.set(world.now_ns.get().max(soonest));
    }
}

/// Hands interrupts that were raised to whom they concern.
fn deliver<const N: usize>(world: &Rc<World>, shared: &FuzzChannels<N>) {
    if world.locks_held.get() != 0 {
        return;
    }
    for number in 0..world.engines.len() {
        let raised = world.engines[number].take_raised();
        let (lost, spurious) = if world.manners.interrupts_lie {
            (world.one_in(4), world.one_in(16))
        } else {
            (false, false)
        };
        if (raised && !lost) || spurious {
            shared.interrupt(number, world.now_ns.get());
            world.bell.set(world.bell.get() + 1);
        }
    }
}

/// What comes from outside: interrupts, owners, functions that are reset.
fn interfere<const N: usize>(world: &Rc<World>, shared: &FuzzChannels<N>) {
    world.count_event();
    deliver(world, shared);
    if world.locks_held.get() != 0 {
        return;
    }
    // Time passes, whoever has the turn.
    world.now_ns.set(world.now_ns.get() + 10);
    let number = world.below(world.engines.len() as u64) as usize;
    if shared.service(number) != Some(ServiceState::Active) && world.one_in(8) {
        revive(world, shared, number);
    }
    if let Hardware::Function(function) = &world.engines[number]
        && world.one_in(16)
    {
        function.recollect(world);
    }
    if !world.manners.owners || !world.one_in(24) {
        return;
    }
    world.trouble.set(true);
    match world.below(4) {
        0 => {
            world.note(|| format!("channel {number} is retired"));
            shared.retire(number, world.now_ns.get());
        }
        1 => {
            world.note(|| format!("channel {number} is retired, reset, and that is told"));
            shared.retire(number, world.now_ns.get());
            world.reset(number);
            shared.confirm_stopped(number);
        }
        2 => {
            world.note(|| format!("channel {number} is reset, and nobody is told"));
            world.reset(number);
        }
        _ => {
            // Wakes everybody for nothing.
            world.bell.set(world.bell.get() + 1);
        }
    }
}

/// Brings a channel back that is out of service, as a driver's owner would.
fn revive<const N: usize>(world: &Rc<World>, shared: &FuzzChannels<N>, number: usize) {
    if shared.service(number) == Some(ServiceState::Unproven) {
        world.reset(number);
        shared.confirm_stopped(number);
    }
    if let Ok(mut channel) = shared.take(number) {
        world.note(|| format!("channel {number} is brought back"));
        channel.recover(world);
        if shared.put(number, channel).is_err() {
            world.is_wrong(|| format!("channel {number} was put back by somebody else"));
        }
    }
}

/// What has to hold when all batches are over.
fn afterwards<const N: usize>(world: &Rc<World>, shared: &FuzzChannels<N>, channels: usize) {
    // Engines go on with whatever they have.
    for _ in 0..200 {
        world.step_an_engine();
    }
    for number in 0..channels {
        let stats = shared.channel_stats(number).unwrap_or_default();
        if !world.trouble.get() && (stats.stops != 0 || stats.hangs != 0) {
            world.is_wrong(|| format!("a healthy channel was stopped: {stats:?}"));
        }
        shared.retire(number, world.now_ns.get());
        shared.confirm_stopped(number);
        match shared.take(number) {
            Ok(channel) => channel.dismantle(world),
            Err(error) => world.is_wrong(|| format!("channel {number} cannot be taken: {error}")),
        }
    }
}

/// A batch of folios in memory of its own.
fn one_batch<const N: usize>(
    world: &Rc<World>,
    shared: &Rc<FuzzChannels<N>>,
    state: &mut Batch<N>,
    slot: usize,
    translated: bool,
    bed: &Rc<Bed>,
) -> Tally {
    let align = world.manners.align_bytes;
    let folios = lay_out(world, slot, align);
    let bytes: u64 = folios.iter().map(|folio| folio.len_bytes).sum();
    let unit = world.one_of(&[1, 4, 16]);
    let mut options = Options::default();
    options.channels = world.one_of(&[1, 2, 4]);
    options.only = world
        .one_in(8)
        .then(|| world.below(world.engines.len() as u64) as usize);
    options.rules.min_part_bytes = world.one_of(&[1, 20, 200]);
    options.rules.align_bytes = unit;
    options.budget_ns = world.one_of(&[1 << 40, 1 << 40, 1 << 40, 1 << 40, 200, 3000, 20_000]);
    options.grace_ns = world.one_of(&[0, 500, 5000]);
    options.hang_ns = 100_000;
    options.cpu_share_bytes = world.one_of(&[0, 0, 0, bytes / 3]);
    options.repair = world.one_in(3);
    options.one_interrupt = world.one_in(2);
    options.engine_ns_per_mib = world.one_of(&[0, 1 << 20]);
    if options.budget_ns < 1 << 40 {
        world.trouble.set(true);
    }
    let before: Vec<u8> = {
        let memory = world.memory.borrow();
        memory[slot * SLOT_LEN_BYTES..][..SLOT_LEN_BYTES].to_vec()
    };
    world.live[slot].set(true);
    world.note(|| format!("a batch of {} folios begins in slot {slot}", folios.len()));
    // An outcome that the batch forgets to write stays a claim, which memory refutes.
    let mut outcomes = vec![Outcome::Dma; folios.len()];
    bed.heard.set(world.bell.get());
    let mapper = FuzzMapper {
        world: Rc::clone(world),
        refuse_one_in: if world.manners.fault_one_in == 0 {
            0
        } else {
            world.one_of(&[0, 0, 30, 8])
        },
        for_all: world.one_in(2),
        splits: world.one_in(2),
    };
    let list = FuzzList {
        world: Rc::clone(world),
        folios: Rc::clone(&folios),
        lies: false.into(),
    };
    list.lies.set(world.manners.lies);
    let slow = world.manners.slow_lists || world.manners.lies;
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut go = Go {
            world,
            shared,
            state,
            options: &options,
            outcomes: &mut outcomes,
            bed,
        };
        match (translated, slow) {
            (true, true) => go.run(&list, mapper),
            (true, false) => go.run(&folios[..], mapper),
            (false, true) => go.run(&list, Identity),
            (false, false) => go.run(&folios[..], Identity),
        }
    }));
    let mut tally = Tally {
        batches: 1,
        ..Tally::default()
    };
    world.live[slot].set(false);
    match result {
        Err(panic) if panic.is::<Deliberate>() => {
            bed.until_ns.set(None);
            world.note(|| format!("the batch in slot {slot} is unwound"));
            tally.panics = 1;
        }
        Err(panic) => resume_unwind(panic),
        Ok(Err(error)) => {
            if !world.manners.lies {
                world.is_wrong(|| format!("a sound batch is refused: {error}"));
            }
        }
        Ok(Ok(report)) => {
            tally.folios_dma = report.folios_dma as u64;
            tally.folios_left = report.folios_left as u64;
            tally.quarantines = u64::from(report.quarantined_bytes != 0);
            verify(world, slot, &folios, &before, &outcomes, &report, &options);
        }
    }
    tally
}

struct Go<'a, const N: usize> {
    world: &'a Rc<World>,
    shared: &'a FuzzChannels<N>,
    state: &'a mut Batch<N>,
    options: &'a Options,
    outcomes: &'a mut [Outcome],
    bed: &'a Rc<Bed>,
}

impl<const N: usize> Go<'_, N> {
    fn run<S, M>(&mut self, source: &S, mapper: M) -> Result<Report, BadInput>
    where
        S: FolioSource + ?Sized,
        M: Mapper,
    {
        let world = self.world;
        let wait = FuzzWait {
            world: Rc::clone(world),
            interrupts: world.one_in(2),
            epoch_ns: world.one_of(&[0, 1 << 20, 1 << 40]),
            bed: Rc::clone(self.bed),
        };
        let rescue = FuzzRescue {
            world: Rc::clone(world),
        };
        let host = Host::new(wait).with_mapper(mapper).with_rescue(rescue);
        let overlap = OverlapCheck::CallerKnows;
        if world.one_in(2) {
            let cpu = FuzzCpu {
                world: Rc::clone(world),
                fails_one_in: if world.manners.fault_one_in == 0 {
                    0
                } else {
                    world.one_of(&[0, 10])
                },
            };
            let mut host = host.with_cpu(cpu);
            self.state.run(
                self.shared,
                source,
                overlap,
                self.options,
                &mut host,
                self.outcomes,
            )
        } else {
            let mut host = host;
            self.state.run(
                self.shared,
                source,
                overlap,
                self.options,
                &mut host,
                self.outcomes,
            )
        }
    }
}

/// Folios in a slot's memory, their sources filled.
fn lay_out(world: &World, slot: usize, align: u64) -> Rc<Vec<Folio>> {
    let most = world.one_of(&[1, 3, 12, 40, MOST_FOLIOS]);
    let count = 1 + world.below(most);
    let longest = world.one_of(&[4, 16, 60]);
    let contiguous = world.one_of(&[0, 2, 8]);
    let base = (slot * SLOT_LEN_BYTES) as u64;
    let (mut src, mut dst) = (base, base + DST_OFFSET_BYTES as u64);
    let mut folios = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let len_bytes = (1 + world.below(longest)).next_multiple_of(align);
        if contiguous == 0 || world.one_in(contiguous) {
            // Somewhere else, on both sides or on one.
            src += align * world.below(3);
            dst += align * (1 + world.below(2));
        }
        folios.push(Folio::new(DmaAddr::new(src), DmaAddr::new(dst), len_bytes));
        src += len_bytes;
        dst += len_bytes;
    }
    let mut memory = world.memory.borrow_mut();
    let slot = &mut memory[slot * SLOT_LEN_BYTES..][..SLOT_LEN_BYTES];
    let (sources, destinations) = slot.split_at_mut(DST_OFFSET_BYTES);
    let mut state = world.next();
    for eight in sources.chunks_exact_mut(8) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // No byte of a source looks untouched.
        eight.copy_from_slice(&(state | 0x0101_0101_0101_0101).to_le_bytes());
    }
    destinations.fill(0);
    Rc::new(folios)
}

/// Compares every byte with what was reported, and the books with each other.
fn verify(
    world: &World,
    slot: usize,
    folios: &[Folio],
    before: &[u8],
    outcomes: &[Outcome],
    report: &Report,
    options: &Options,
) {
    let context = || format!("{report:?}\n{options:?}\n{outcomes:?}");
    let columns = [
        report.dma_bytes,
        report.cpu_bytes,
        report.failed_bytes,
        report.skipped_bytes,
        report.quarantined_bytes,
    ];
    if world.manners.lies {
        // Nothing is claimed where the books do not balance.
        let claimed = outcomes[..report.folios]
            .iter()
            .any(|outcome| outcome.is_copied());
        if claimed && report.unaccounted_bytes != 0 {
            world.is_wrong(|| format!("claims without books\n{}", context()));
        }
        return;
    }
    let known = columns
        .iter()
        .fold(0_u64, |sum, part| sum.wrapping_add(*part));
    if known != report.bytes || report.unaccounted_bytes != 0 {
        world.is_wrong(|| format!("the books do not balance\n{}", context()));
    }
    let memory = world.memory.borrow();
    let now = &memory[slot * SLOT_LEN_BYTES..][..SLOT_LEN_BYTES];
    if now[..DST_OFFSET_BYTES] != before[..DST_OFFSET_BYTES] {
        world.is_wrong(|| "a source was written".into());
    }
    let local = |at: DmaAddr| at.get() as usize - slot * SLOT_LEN_BYTES;
    let mut gap = DST_OFFSET_BYTES;
    for (index, (folio, outcome)) in folios.iter().zip(outcomes).enumerate() {
        let (src, dst, len) = (local(folio.src), local(folio.dst), folio.len_bytes as usize);
        if now[gap..dst].iter().any(|&byte| byte != 0) {
            world.is_wrong(|| format!("bytes before folio {index} were written\n{}", context()));
        }
        gap = dst + len;
        let arrived = now[src..src + len] == now[dst..dst + len];
        if outcome.is_copied() && !arrived {
            world.is_wrong(|| {
                format!(
                    "folio {index} is reported as {outcome:?} and did not arrive: {folio:x?}\n{}",
                    context()
                )
            });
        }
        if *outcome == Outcome::Failed(FailReason::Unaccounted) {
            world.is_wrong(|| format!("folio {index} is in no book\n{}", context()));
        }
    }
    if now[gap..].iter().any(|&byte| byte != 0) {
        world.is_wrong(|| format!("bytes behind all folios were written\n{}", context()));
    }
    if !world.trouble.get() && !report.is_complete() {
        world.is_wrong(|| format!("nothing went wrong, and not all arrived\n{}", context()));
    }
}
