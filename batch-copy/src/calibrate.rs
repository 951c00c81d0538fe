//! Finding out what copying costs on the machine at hand.

use ptdma::{DmaAddr, Lock};

use crate::batch::{Batch, CPU_CHUNK_BYTES};
use crate::folio::{Folio, Outcome, SkipReason};
use crate::host::{CpuCopier, Host, Rescue};
use crate::map::{Mapper, Piece};
use crate::options::Options;
use crate::overlap::OverlapCheck;
use crate::policy::{CostModel, LARGE_BYTES};
use crate::survey::BadInput;
use crate::wait::Wait;
use ptdma::CopyChannel;
use ptdma::shared::{Channels, SharedChannel};

/// Length of the short copy, whose time is all fixed cost: a base page.
const SHORT_BYTES: u64 = 4096;

/// Shortest scratch memory that tells anything: 1 MiB, some 70 us of one engine.
pub const CALIBRATION_BYTES: u64 = 1 << 20;

/// Repetitions of each measurement; the fastest counts, because everything else that happens on a
/// machine only makes it slower.
const ROUNDS: u32 = 5;

/// Why costs could not be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CalibrationError {
    /// The scratch memory is shorter than [`CALIBRATION_BYTES`].
    ScratchTooShort {
        /// The memory's length in bytes.
        len_bytes: u64,
    },
    /// The batch was refused.
    Input(BadInput),
    /// The scratch memory was not copied.
    Failed(Outcome),
    /// The clock stands still, or is too coarse: a long copy took no longer than a short one.
    Clock,
}

impl core::fmt::Display for CalibrationError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::ScratchTooShort { len_bytes } => write!(
                f,
                "scratch memory of {len_bytes:#x} bytes, but {CALIBRATION_BYTES:#x} are needed"
            ),
            Self::Input(error) => error.fmt(f),
            Self::Failed(outcome) => write!(f, "the scratch memory was not copied: {outcome}"),
            Self::Clock => f.write_str("the clock is too coarse to measure a copy with"),
        }
    }
}

impl core::error::Error for CalibrationError {}

impl From<BadInput> for CalibrationError {
    fn from(error: BadInput) -> Self {
        Self::Input(error)
    }
}

/// Measures the costs of copying with these channels and this host, on `scratch`: memory of at
/// least [`CALIBRATION_BYTES`] that nobody else uses, as one folio. To be called while nothing
/// else runs on the channels; it takes some milliseconds. The scratch memory is copied a few dozen
/// times, by one engine, by all, and by the CPU if the host has a [`CpuCopier`].
///
/// What cannot be told from such copies is taken from `base`.
///
/// # Errors
///
/// [`CalibrationError`]; then `base` is the best there is.
pub fn calibrate<C, L, W, M, K, R, const N: usize>(
    channels: &Channels<C, L, N>,
    batch: &mut Batch<N>,
    host: &mut Host<W, M, K, R>,
    scratch: Folio,
    base: &CostModel,
) -> Result<CostModel, CalibrationError>
where
    C: CopyChannel,
    L: Lock<SharedChannel<C>>,
    W: Wait,
    M: Mapper,
    K: CpuCopier,
    R: Rescue,
{
    let len_bytes = scratch.len_bytes;
    if len_bytes < CALIBRATION_BYTES {
        return Err(CalibrationError::ScratchTooShort { len_bytes });
    }
    let short = Folio {
        len_bytes: SHORT_BYTES,
        ..scratch
    };
    let mut time = |folio: Folio, most: usize| {
        let mut best = u64::MAX;
        for _ in 0..ROUNDS {
            let mut outcomes = [Outcome::NotAttempted(SkipReason::Declined)];
            let options = Options {
                channels: most,
                ..Options::default()
            };
            let start = host.wait.now_ns();
            batch.run(
                channels,
                &[folio][..],
                OverlapCheck::CallerKnows,
                &options,
                host,
                &mut outcomes,
            )?;
            let end = host.wait.now_ns();
            if let [outcome] = outcomes
                && outcome != Outcome::Dma
            {
                return Err(CalibrationError::Failed(outcome));
            }
            best = best.min(end.saturating_sub(start));
        }
        Ok(best)
    };
    let short_ns = time(short, 1)?;
    let alone_ns = time(scratch, 1)?;
    let together_ns = time(scratch, N)?;
    let engine_ns_per_mib = slope(short_ns, alone_ns, len_bytes)?;
    let mut model = CostModel {
        engine_batch_ns: short_ns.saturating_sub(base.channel_ns).max(1),
        engine_ns_per_mib,
        // Where the scratch memory has an entry for each page, the engine has waited for them.
        page_ns: if len_bytes < LARGE_BYTES {
            0
        } else {
            base.page_ns
        },
        ports: channels.ports() as u64,
        ..*base
    };
    // What more channels cost to start is known from `base`; the rest is copying.
    let active = channels.active() as u64;
    let fixed_ns = model.engine_ns(active, 1, 0);
    let copying_ns = per_mib(together_ns.saturating_sub(fixed_ns).max(1), len_bytes);
    model.fabric_ns_per_mib = copying_ns.clamp(1, engine_ns_per_mib);
    // What all together took is what a port took for those behind it, at the most.
    let port_ns = copying_ns
        .saturating_mul(active)
        .checked_div(model.on_fullest_port(active))
        .unwrap_or(engine_ns_per_mib);
    model.port_ns_per_mib = port_ns.clamp(1, engine_ns_per_mib);
    if K::AVAILABLE {
        let mut fastest = u64::MAX;
        for _ in 0..ROUNDS {
            let start = host.wait.now_ns();
            copy_all(&mut host.cpu, &scratch)?;
            fastest = fastest.min(host.wait.now_ns().saturating_sub(start));
        }
        model.cpu_ns_per_mib = per_mib(fastest, len_bytes).max(1);
    }
    Ok(model)
}

/// Copies a folio with the CPU, in the pieces that a batch would use.
fn copy_all<K: CpuCopier>(cpu: &mut K, folio: &Folio) -> Result<(), CalibrationError> {
    let mut offset_bytes = 0;
    while offset_bytes < folio.len_bytes {
        let left = folio.len_bytes.saturating_sub(offset_bytes);
        let piece = Piece {
            folio: 0,
            offset_bytes,
            // In range: the folio was run as a batch before.
            src: DmaAddr::new(folio.src.get().wrapping_add(offset_bytes)),
            dst: DmaAddr::new(folio.dst.get().wrapping_add(offset_bytes)),
            len_bytes: left.min(CPU_CHUNK_BYTES),
        };
        if cpu.copy(&piece).is_err() {
            let reason = crate::folio::FailReason::CpuCopy;
            return Err(CalibrationError::Failed(Outcome::Failed(reason)));
        }
        offset_bytes = offset_bytes.saturating_add(piece.len_bytes);
    }
    Ok(())
}

/// Nanoseconds per MiB between a copy of [`SHORT_BYTES`] and one of `len_bytes`.
fn slope(short_ns: u64, long_ns: u64, len_bytes: u64) -> Result<u64, CalibrationError> {
    match long_ns.checked_sub(short_ns) {
        None | Some(0) => Err(CalibrationError::Clock),
        Some(ns) => Ok(per_mib(ns, len_bytes.saturating_sub(SHORT_BYTES)).max(1)),
    }
}

/// `ns` for `len_bytes`, scaled to 1 MiB.
fn per_mib(ns: u64, len_bytes: u64) -> u64 {
    // Times over 2^44 ns, five hours, are not worth more than that.
    (ns.min(1 << 43) << 20).checked_div(len_bytes).unwrap_or(0)
}
