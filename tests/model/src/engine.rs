//! The engine: one step of it, and the thread that makes steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;
use ptdma::descriptor::{DESCRIPTOR_LEN_BYTES, Descriptor};
use ptdma::{DmaAddr, ErrorCode};
use zerocopy::FromBytes;

use crate::bus::{self, BURST_LEN_BYTES, BusError, BusMemory, CopyError, Side};
use crate::decode::{self, Copy, Effect};
use crate::model::{Model, Shared, StepOutcome};
use crate::state::{Ended, InFlight, Next, State};

/// Between two looks at whether a reset wants the engine to stop: small enough that a reset is
/// quick, big enough to cost nothing.
const CHUNK_LEN_BYTES: u64 = 1 << 20;
/// How often a stalled engine thread looks again; also the length of one step of a stall then.
const STALL_POLL: Duration = Duration::from_millis(1);
/// How long an idle engine thread sleeps without being woken. Everything that gives it work wakes
/// it; this only bounds the harm of a mistake.
const IDLE_POLL: Duration = Duration::from_millis(500);

/// Keeps a thread's engine at the speed of the timing: remembers when the last descriptor was due
/// to end, so that oversleeping is made up for by the next one.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    due: Option<Instant>,
}

impl Pace {
    /// How far back a descriptor may be taken to have started: more than a sleep's usual error,
    /// less than anybody would call a burst.
    const SLACK: Duration = Duration::from_millis(2);

    /// When a descriptor that started now and takes `cost` is to end; `None` is never.
    fn end(&mut self, started: Instant, cost: Duration) -> Option<Instant> {
        let recent = |due: &Instant| started.saturating_duration_since(*due) < Self::SLACK;
        let base = self.due.filter(recent).unwrap_or(started);
        let end = base.checked_add(cost);
        self.due = end;
        end
    }
}

/// Reads the descriptor at head, if the engine is to take one up, so that it is in flight.
///
/// Gives the lock back with what there is to do then; `None` if the work became void meanwhile.
fn take_up<'a>(
    shared: &'a Shared,
    mut state: MutexGuard<'a, State>,
    started: Instant,
) -> (MutexGuard<'a, State>, Option<Next>) {
    let next = state.next(started);
    let Next::Fetch { ring, head } = next else {
        return (state, Some(next));
    };
    let mut bytes = [0; DESCRIPTOR_LEN_BYTES];
    let addr = ring.addr(head);
    let unknown = state.forks().unknown_engine;
    let reachable = state.bus_master();
    let (mut state, fetched) = unlocked(shared, state, || {
        if reachable {
            shared.bus.read(addr, &mut bytes)
        } else {
            Err(BusError::Unmapped { addr })
        }
    });
    let Some(fetched) = fetched else {
        return (state, None);
    };
    let copy = match (fetched, Descriptor::read_from_bytes(&bytes)) {
        (Ok(()), Ok(descriptor)) => decode::copy(&descriptor, unknown),
        (Err(e), _) => Err(decode::bus_code(Side::Source, e)),
        (Ok(()), Err(_size)) => Err(ptdma::KnownError::IllegalBufferLength),
    };
    state.start(ring, head, copy, started);
    (state, None)
}

/// Takes up the next descriptor without executing it. Returns how long it will occupy the engine
/// and how many bytes it will move, or nothing if there is none.
pub(crate) fn prefetch(shared: &Shared) -> Option<(u64, u64)> {
    let mut state = shared.state.lock();
    if state.in_flight().is_none() {
        state = take_up(shared, state, Instant::now()).0;
    }
    let in_flight = state.answers().then(|| state.in_flight())??;
    let len_bytes = in_flight.copy.map_or(0, |c| c.src.len_bytes());
    Some((cost_ns(shared, &in_flight), len_bytes))
}

/// How long a descriptor occupies the engine.
fn cost_ns(shared: &Shared, in_flight: &InFlight) -> u64 {
    let len_bytes = in_flight.copy.map_or(0, |c| c.src.len_bytes());
    let timing = &shared.config.timing;
    timing
        .descriptor_ns(len_bytes)
        .saturating_add(in_flight.strike.delay_ns)
}

/// Makes one step. With a pace it takes as long as the timing says.
pub(crate) fn step(shared: &Shared, pace: Option<&mut Pace>) -> StepOutcome {
    let started = Instant::now();
    let (mut state, next) = take_up(shared, shared.state.lock(), started);
    let next = match next {
        Some(next) => next,
        None => state.next(started),
    };
    match next {
        // Not reached for a fetch: there is a descriptor in flight by now.
        Next::Idle | Next::Fetch { .. } => StepOutcome::Idle,
        Next::Stalled => StepOutcome::Stalled,
        Next::Broken(code) => StepOutcome::Failed { code: code.code() },
        Next::Execute(in_flight) => {
            let cost_ns = cost_ns(shared, &in_flight);
            let generation = state.generation;
            let reachable = state.bus_master();
            let (mut state, ended) = unlocked(shared, state, || {
                let ended = execute(shared, &in_flight, generation, reachable)?;
                if let Some(pace) = pace {
                    let end = pace.end(started, Duration::from_nanos(cost_ns));
                    wait_until(shared, end, generation);
                }
                Some(ended)
            });
            let Some(Some(ended)) = ended else {
                return StepOutcome::Idle;
            };
            state.finish(ended, cost_ns);
            match ended {
                Ended::Done { len_bytes } => StepOutcome::Completed { len_bytes },
                Ended::Failed { code, .. } => StepOutcome::Failed {
                    code: ErrorCode::from_status(u32::from(code)),
                },
            }
        }
    }
}

/// Runs `work` without the lock, marked busy. No result if the work became void meanwhile.
fn unlocked<'a, T>(
    shared: &'a Shared,
    mut state: MutexGuard<'a, State>,
    work: impl FnOnce() -> T,
) -> (MutexGuard<'a, State>, Option<T>) {
    state.busy = true;
    let generation = state.generation;
    drop(state);
    let result = work();
    let mut state = shared.state.lock();
    state.busy = false;
    shared.wake.notify_all();
    let valid = state.generation == generation && state.answers();
    (state, valid.then_some(result))
}

/// Moves the bytes of a descriptor; `None` if a reset interrupted it.
fn execute(
    shared: &Shared,
    in_flight: &InFlight,
    generation: u64,
    reachable: bool,
) -> Option<Ended> {
    let failed = |code, done_bytes| Some(Ended::Failed { code, done_bytes });
    let copy = match (in_flight.copy, in_flight.strike.failure) {
        (_, Some((code, 0))) => return failed(code, 0),
        (Err(code), _) => return failed(code as u8, 0),
        (Ok(copy), _) => copy,
    };
    let whole = copy.src.len_bytes();
    if copy.effect == Effect::Nothing {
        return Some(Ended::Done { len_bytes: 0 });
    }
    if !reachable {
        // An engine that waits for the bus does not come this far.
        let start = copy.src.start();
        let code = decode::bus_code(Side::Source, BusError::Unmapped { addr: start });
        return failed(code as u8, 0);
    }
    let wanted = in_flight
        .strike
        .failure
        .map_or(whole, |(_, n)| n.min(whole));
    let mut done = 0;
    while done < wanted {
        let step = (wanted - done).min(CHUNK_LEN_BYTES);
        if let Err(e) = move_bytes(&*shared.bus, copy, done, step) {
            return failed(decode::copy_code(&e) as u8, done + e.done_bytes);
        }
        done += step;
        if done < wanted {
            let state = shared.state.lock();
            if state.generation != generation || !state.answers() {
                return None;
            }
        }
    }
    if let Some((code, _)) = in_flight.strike.failure {
        return failed(code, done);
    }
    if in_flight.strike.corrupt {
        invert_first_byte(&*shared.bus, copy.dst.start());
    }
    Some(Ended::Done { len_bytes: whole })
}

fn move_bytes(memory: &dyn BusMemory, copy: Copy, at: u64, len: u64) -> Result<(), CopyError> {
    let src = bus::offset(copy.src.start(), at);
    let dst = bus::offset(copy.dst.start(), at);
    if copy.src.overlaps(copy.dst) {
        bus::copy_by(memory, src, dst, len, &mut [0; BURST_LEN_BYTES])
    } else {
        memory.copy(src, dst, len)
    }
}

fn invert_first_byte(memory: &dyn BusMemory, addr: DmaAddr) {
    let mut byte = [0];
    // The copy just reached this address; should it have been unmapped since, there is nothing to
    // corrupt.
    if memory.read(addr, &mut byte).is_ok() {
        let _gone = memory.write(addr, &[!byte[0]]);
    }
}

/// Holds a descriptor back until `end`, unless a reset interrupts.
fn wait_until(shared: &Shared, end: Option<Instant>, generation: u64) {
    let mut state = shared.state.lock();
    while state.generation == generation && end.is_none_or(|end| Instant::now() < end) {
        match end {
            Some(end) => {
                shared.wake.wait_until(&mut state, end);
            }
            None => shared.wake.wait(&mut state),
        }
    }
}

/// The thread that runs a model's engine. Dropping it stops and joins the thread; a descriptor that
/// is being copied or stalled stays in flight, unreported, and starts over if the engine is driven
/// again.
#[derive(Debug)]
pub struct EngineThread {
    model: Model,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Model {
    /// Starts a thread that runs the engine whenever there is work, at the speed of
    /// [`crate::ModelConfig::timing`].
    ///
    /// # Errors
    ///
    /// If the system has no thread to give.
    pub fn spawn_engine(&self) -> std::io::Result<EngineThread> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new()
            .name("ptdma-engine".to_owned())
            .spawn({
                let (model, stop) = (self.clone(), Arc::clone(&stop));
                move || work(&model, &stop)
            })?;
        Ok(EngineThread {
            model: self.clone(),
            stop,
            thread: Some(thread),
        })
    }
}

fn work(model: &Model, stop: &AtomicBool) {
    let shared = &model.shared;
    let mut pace = Pace::default();
    while !stop.load(Ordering::Relaxed) {
        let outcome = step(shared, Some(&mut pace));
        model.deliver();
        let mut state = shared.state.lock();
        match outcome {
            StepOutcome::Idle if !state.has_work() && !stop.load(Ordering::Relaxed) => {
                shared.wake.wait_for(&mut state, IDLE_POLL);
            }
            StepOutcome::Stalled => {
                shared.wake.wait_for(&mut state, STALL_POLL);
            }
            _ => {}
        }
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        {
            // Under the lock, so that the thread cannot miss it between its look and its wait.
            let mut state = self.model.shared.state.lock();
            state.interrupt_step();
            self.stop.store(true, Ordering::Relaxed);
        }
        self.model.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the engine is a bug of the model and must fail the test, but not while
            // another panic is on its way.
            let result = thread.join();
            if let Err(panic) = result
                && !std::thread::panicking()
            {
                std::panic::resume_unwind(panic);
            }
        }
    }
}
