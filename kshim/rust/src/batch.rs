//! A round, from folios to outcomes.

use batch_copy::{
    BadInput, Batch, CostModel, CpuCopier, CpuCopyError, FailReason, FolioSource, Host, MAP_CHUNK,
    MapError, Mapper, Naps, Options, OverlapCheck, Policy, Rescue, Wait, WaitFor, Wake,
};

use crate::abi::{
    Folio, MAX_CHANNELS, MAX_ROUND_FOLIOS, Outcome, Piece, Round, RoundResult, Settings,
};
use crate::channel::bus;
use crate::errno;
use crate::kernel::{self, BatchContext};
use crate::system::System;

/// How long a batch sleeps before it suspects that an interrupt was lost, in nanoseconds. Twice
/// the time that a full ring of a usual batch takes; looking too early costs one register read.
const OVERDUE_NS: u64 = 10_000_000;

/// Longest time that a batch of somebody who must not sleep may take by the cost model, in
/// nanoseconds: what a scheduler's tick of 1000 Hz allows twice over. The CPU copies longer ones.
const POLLED_NS: u64 = 500_000;

/// How long such a batch polls at the most, in nanoseconds: ten times the longest, for engines that
/// are shared. Others run on this CPU meanwhile, if they want to.
const POLLED_LIMIT_NS: u64 = 5_000_000;

/// Folios are cut at whole pages, so that an IOMMU can put parts next to each other.
const STRIPE_ALIGN_BYTES: u64 = 4096;

/// Working memory of a batch in flight.
pub struct Scratch {
    batch: Batch<MAX_CHANNELS>,
    outcomes: [batch_copy::Outcome; MAX_ROUND_FOLIOS],
    mapping: Mapping,
}

/// What a chunk is to C: more than a kilobyte, which is too much for a kernel stack.
struct Mapping {
    pieces: [Piece; MAP_CHUNK],
}

impl Scratch {
    /// Makes it in place: it is too large for a kernel stack.
    ///
    /// # Safety
    ///
    /// `at` is valid for writes and aligned.
    pub(crate) unsafe fn init(at: *mut Self) {
        // SAFETY: `at` is valid (caller).
        let batch = unsafe { &raw mut (*at).batch };
        // SAFETY: within `*at`. A constant with nothing in it, so nothing large is moved.
        unsafe { batch.write(const { Batch::new() }) };
        // SAFETY: `at` is valid (caller).
        let outcomes = unsafe { &raw mut (*at).outcomes }.cast::<batch_copy::Outcome>();
        for index in 0..MAX_ROUND_FOLIOS {
            // SAFETY: `index` is below the array's length.
            let outcome = unsafe { outcomes.add(index) };
            // SAFETY: within `*at`.
            unsafe { outcome.write(batch_copy::Outcome::Dma) };
        }
        // SAFETY: `at` is valid (caller).
        let mapping = unsafe { &raw mut (*at).mapping };
        // SAFETY: within `*at`, and numbers, of which zero is one.
        unsafe { mapping.write_bytes(0, 1) };
    }
}

/// What becomes of the folios, for C: bytes that are only written.
pub(crate) struct Outcomes<'a>(pub(crate) &'a mut [u8]);

/// The round's folios, for `batch-copy`.
struct Folios<'a>(&'a [Folio]);

impl FolioSource for Folios<'_> {
    #[inline]
    fn folio(&self, index: usize) -> Option<batch_copy::Folio> {
        self.0
            .get(index)
            .map(|folio| batch_copy::Folio::new(bus(folio.src), bus(folio.dst), folio.len))
    }
}

#[inline]
fn abi_piece(piece: &batch_copy::Piece) -> Piece {
    Piece {
        src: piece.src.get(),
        dst: piece.dst.get(),
        len: piece.len_bytes,
        offset: piece.offset_bytes,
        // Below MAX_ROUND_FOLIOS.
        folio: piece.folio as u32,
    }
}

/// Maps parts on the function that copies them.
struct KernelMapper<'a> {
    context: BatchContext,
    mapping: &'a mut Mapping,
}

impl Mapper for KernelMapper<'_> {
    fn map(
        &mut self,
        channel: usize,
        piece: &batch_copy::Piece,
    ) -> Result<batch_copy::Segment, MapError> {
        let mut mapped = [batch_copy::Segment::default()];
        match self.context.map(channel, &[abi_piece(piece)], &mut mapped) {
            0 => Err(MapError),
            _ => Ok(mapped[0]),
        }
    }

    /// One call of C for all of them.
    #[inline]
    fn map_chunk(
        &mut self,
        channel: usize,
        pieces: impl Iterator<Item = batch_copy::Piece>,
        segments: &mut [batch_copy::Segment],
    ) -> usize {
        let raw_pieces = &mut self.mapping.pieces;
        let mut nr: usize = 0;
        let room = segments.len().min(MAP_CHUNK);
        for (raw, piece) in raw_pieces.iter_mut().take(room).zip(pieces) {
            *raw = abi_piece(&piece);
            nr = nr.wrapping_add(1);
        }
        let raw_pieces = raw_pieces.get(..nr).unwrap_or_default();
        self.context.map(channel, raw_pieces, segments)
    }
}

/// The CPU's share of a hybrid batch.
struct KernelCpu(BatchContext);

impl CpuCopier for KernelCpu {
    fn copy(&mut self, piece: &batch_copy::Piece) -> Result<(), CpuCopyError> {
        if self.0.cpu_copy(&abi_piece(piece)) {
            Ok(())
        } else {
            Err(CpuCopyError)
        }
    }
}

/// Has functions cut off from memory, and remembers where that was not proved.
struct KernelRescue {
    context: BatchContext,
    unproven: u64,
}

impl Rescue for KernelRescue {
    fn prove_stopped(&mut self, channel: usize) -> bool {
        self.context.prove_stopped(channel)
    }

    fn quarantined(&mut self, channel: usize, _piece: &batch_copy::Piece) {
        // MAX_CHANNELS is 64.
        self.unproven |= 1_u64.checked_shl(channel as u32).unwrap_or(u64::MAX);
    }
}

/// Spins if it should not take long, then sleeps, in both cases until the interrupt of the channel
/// that is needed next: its handler finds out what was done, so waiting costs no register read.
struct KernelWait {
    context: BatchContext,
    /// Time to spin that is left to this batch.
    spin_ns: u64,
    naps: Naps,
    /// Until when a channel that will not interrupt is looked at without a pause.
    look_until_ns: Option<u64>,
    /// Whoever migrates may sleep.
    may_sleep: bool,
}

impl KernelWait {
    const fn new(context: BatchContext, spin_ns: u64, may_sleep: bool) -> Self {
        Self {
            context,
            spin_ns,
            naps: Naps::new(),
            look_until_ns: None,
            may_sleep,
        }
    }

    /// The channel will not interrupt: it should be done by now, or very soon.
    fn wait_for_a_quiet_one(&mut self, now: u64, latest_ns: u64) -> Wake {
        let until = *self
            .look_until_ns
            .get_or_insert(now.saturating_add(self.spin_ns));
        if now < until {
            // Reading a register is pause enough.
            kernel::yield_now();
        } else {
            let ns = self.naps.next_ns().min(latest_ns.saturating_sub(now));
            self.context.nap(ns);
        }
        Wake::Poll
    }
}

impl Wait for KernelWait {
    fn now_ns(&self) -> u64 {
        kernel::now_ns()
    }

    fn wants_interrupts(&self) -> bool {
        self.may_sleep
    }

    fn wait(&mut self, wait: &WaitFor) -> Wake {
        let now = kernel::now_ns();
        if !self.may_sleep {
            kernel::yield_now();
            return Wake::Poll;
        }
        if !wait.announced {
            return self.wait_for_a_quiet_one(now, wait.latest_ns);
        }
        let until = now
            .max(wait.expected_ns)
            .saturating_add(OVERDUE_NS)
            .min(wait.latest_ns);
        let timeout_ns = until.saturating_sub(now);
        // What takes longer anyway is not worth spinning for.
        let spins = wait.expected_ns <= now.saturating_add(self.spin_ns);
        let spin_ns = if spins {
            self.spin_ns.min(timeout_ns)
        } else {
            0
        };
        let interrupted = self.context.wait(wait.channel, spin_ns, timeout_ns);
        if spin_ns != 0 {
            let spent = kernel::now_ns().saturating_sub(now);
            self.spin_ns = self.spin_ns.saturating_sub(spent);
        }
        if interrupted {
            Wake::Interrupted
        } else {
            Wake::Overdue
        }
    }
}

/// What the settings and the cost model say about batches, for a machine with `channels` channels
/// behind `ports` ports.
pub(crate) fn policy(settings: &Settings, channels: usize, ports: usize) -> Policy {
    let most = match settings.nr_dma_chan {
        0 => channels,
        set => channels.min(set as usize),
    };
    let mut model = CostModel::default();
    model.ports = ports as u64;
    let mut policy = Policy::new(model, most);
    if settings.min_batch_kb != 0 {
        policy.min_batch_bytes = u64::from(settings.min_batch_kb).wrapping_mul(1024);
    }
    policy
}

/// A NUMA node of C's; -1 is none.
fn node(raw: i32) -> Option<u16> {
    u16::try_from(raw).ok()
}

/// How to run a round; `None` if it is not worth an engine.
fn options(
    round: &Round,
    active: usize,
    settings: &Settings,
    policy: &Policy,
    bytes: u64,
) -> Option<Options> {
    let timeout_ns = settings.timeout_ns();
    let mut base = Options::default();
    base.only = usize::try_from(round.only).ok();
    base.rules.min_part_bytes = u64::from(settings.stripe_kb).wrapping_mul(1024);
    base.rules.align_bytes = STRIPE_ALIGN_BYTES;
    base.src_node = node(round.src_node);
    base.dst_node = node(round.dst_node);
    base.budget_ns = timeout_ns;
    base.grace_ns = timeout_ns / 4;
    base.hang_ns = timeout_ns / 2;
    // Physical addresses: what bus addresses the engine can reach is the mapper's affair.
    base.addr_limit = u64::MAX;
    base.repair = false;
    if base.only.is_some() {
        base.channels = 1;
        return Some(base);
    }
    let folios = round.nr as usize;
    let mut options = if settings.nr_dma_chan == 0 {
        let mut policy = *policy;
        // Small rounds at the end of a large batch are run like the others.
        policy.min_batch_bytes = 0;
        policy.max_channels = active;
        policy.options(folios, bytes, active, &base)?
    } else {
        let channels = settings.nr_dma_chan as usize;
        base.channels = channels;
        base.engine_ns_per_mib = policy.model.share_ns_per_mib(channels.min(active));
        base
    };
    if round.may_sleep == 0 {
        let channels = options.channels.min(active) as u64;
        if policy.model.of_batch(folios as u64, bytes).engine_ns(
            channels.max(1),
            folios as u64,
            bytes,
        ) > POLLED_NS
        {
            return None;
        }
        options.budget_ns = POLLED_LIMIT_NS.min(timeout_ns);
        // What is in work then, at most 2 MiB, takes 144 us.
        options.grace_ns = POLLED_NS;
        return Some(options);
    }
    options.repair = round.repair != 0;
    options.cpu_share_bytes = bytes
        .saturating_mul(u64::from(settings.hybrid_percent))
        .wrapping_div(100);
    Some(options)
}

const fn abi_outcome(outcome: batch_copy::Outcome) -> Outcome {
    match outcome {
        batch_copy::Outcome::Dma => Outcome::Dma,
        batch_copy::Outcome::Cpu => Outcome::Cpu,
        batch_copy::Outcome::Failed(FailReason::Quarantined) => Outcome::Quarantined,
        batch_copy::Outcome::Failed(_) => Outcome::Failed,
        batch_copy::Outcome::NotAttempted(_) => Outcome::NotAttempted,
    }
}

/// Tells C what became of each folio, and counts.
#[cold]
fn tell(raw: &[batch_copy::Outcome], outcomes: Outcomes<'_>, result: &mut RoundResult) {
    for (to, from) in outcomes.0.iter_mut().zip(raw) {
        let outcome = abi_outcome(*from);
        *to = outcome as u8;
        let count = match outcome {
            Outcome::Dma => &mut result.by_dma,
            Outcome::Cpu => &mut result.by_cpu,
            Outcome::Failed | Outcome::Quarantined => &mut result.failed,
            Outcome::NotAttempted => &mut result.not_attempted,
        };
        *count = count.wrapping_add(1);
    }
}

/// Copies a round. 0, or a negative error number: nothing was tried.
pub(crate) fn run(
    system: &System,
    context: BatchContext,
    round: &Round,
    folios: &[Folio],
    scratch: &mut Scratch,
    outcomes: Outcomes<'_>,
    result: &mut RoundResult,
) -> i32 {
    let bytes = folios
        .iter()
        .fold(0_u64, |sum, folio| sum.saturating_add(folio.len));
    let active = system.channels().active();
    let (poll_ns, options) = system.with_settings(|settings, policy| {
        let options = options(round, active, settings, policy, bytes);
        (settings.poll_ns(), options)
    });
    let Some(options) = options else {
        outcomes.0.fill(Outcome::NotAttempted as u8);
        result.not_attempted = round.nr;
        return 0;
    };
    let mut host = Host::new(KernelWait::new(context, poll_ns, round.may_sleep != 0))
        .with_mapper(KernelMapper {
            context,
            mapping: &mut scratch.mapping,
        })
        .with_cpu(KernelCpu(context))
        .with_rescue(KernelRescue {
            context,
            unproven: 0,
        });
    let Some(raw) = scratch.outcomes.get_mut(..folios.len()) else {
        return -errno::EINVAL;
    };
    let report = match scratch.batch.run(
        system.channels(),
        &Folios(folios),
        // Each folio is memory of its own.
        OverlapCheck::CallerKnows,
        &options,
        &mut host,
        raw,
    ) {
        Ok(report) => report,
        Err(BadInput::NoChannels) => return -errno::ENODEV,
        Err(_) => return -errno::EINVAL,
    };
    if report.folios_dma == folios.len() {
        // The usual round.
        outcomes.0.fill(Outcome::Dma as u8);
        result.by_dma = round.nr;
    } else {
        tell(raw, outcomes, result);
    }
    result.channels = report.channels as u32;
    result.descriptors = u32::try_from(report.descriptors).unwrap_or(u32::MAX);
    result.unproven = host.rescue.unproven;
    if report.quarantined_bytes != 0 && result.unproven == 0 {
        // Cannot be, but then no channel is above suspicion.
        result.unproven = u64::MAX;
    }
    0
}
