//! Whether a batch is worth an engine, how many, and what the CPU does meanwhile.
//!
//! All times are whole nanoseconds and nanoseconds per MiB: kernels have no floating point.

use core::fmt;

use crate::options::Options;
use crate::plan::CutRules;
use crate::reason::Reasons;

/// 2^20, the unit of the per-byte costs.
const MIB_SHIFT: u32 = 20;

/// Base pages of 1 MiB.
const PAGES_PER_MIB: u64 = 256;

/// What one entry of an IOMMU's table translates, if all of it is one folio.
pub(crate) const LARGE_BYTES: u64 = 2 << 20;

/// Bounds of the minimum part that [`CostModel::min_part_bytes`] derives. Below the first, parts of
/// one folio are no longer than what an IOMMU merges anyway. Above the second, a 2 MiB folio would
/// not reach eight channels.
const MIN_PART_RANGE_BYTES: (u64, u64) = (64 << 10, 256 << 10);

/// Below this the CPU's share is not worth a look at the clock.
const MIN_SHARE_BYTES: u64 = 16 << 10;

/// Engines get a batch if they are faster than the CPU by one part in this many of their own time.
/// A tie is no reason to involve a device.
const MARGIN: u64 = 8;

/// What copying costs, on the CPU and on engines.
///
/// The defaults describe the two-socket Zen 3 machine of the published tables; only
/// [`calibrate`](crate::calibrate()) knows the machine at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CostModel {
    /// The CPU, per folio: call, clearing and checks around the copy.
    pub cpu_folio_ns: u64,
    /// The CPU, per MiB.
    pub cpu_ns_per_mib: u64,
    /// Engines, per call: what a migration costs more because it does not copy folio by folio. Beside
    /// the copy, so it counts for the decision alone.
    pub call_ns: u64,
    /// Engines, per batch: the interrupt or the poll that ends it, and waking up.
    pub engine_batch_ns: u64,
    /// The CPU, per channel that takes part: doorbell, look, lock.
    pub channel_ns: u64,
    /// The CPU, per descriptor that it prepares and collects.
    pub prepare_ns: u64,
    /// An engine, per descriptor, beside its bytes.
    pub descriptor_ns: u64,
    /// One engine, per MiB.
    pub engine_ns_per_mib: u64,
    /// One engine, per base page of folios below 2 MiB: the wait for an IOMMU's translation. Larger
    /// folios have one entry for each 2 MiB.
    pub page_ns: u64,
    /// One port, per MiB: what the engines behind it share.
    pub port_ns_per_mib: u64,
    /// Ports that the engines are behind: [`Channels::ports`](crate::Channels::ports). 0 where that
    /// is not known: each engine has one of its own.
    pub ports: u64,
    /// All engines together, per MiB: the fabric they share.
    pub fabric_ns_per_mib: u64,
}

impl Default for CostModel {
    fn default() -> Self {
        Self {
            cpu_folio_ns: 50,
            // 11.64 GB/s. This figure, and those of engine, port and page, are fitted to the
            // published tables: `tests/predict`.
            cpu_ns_per_mib: 90_100,
            // One folio of 2 MiB in a call: the published path with engines took so much longer than
            // its copy and the CPU's path explain.
            call_ns: 80_000,
            // A descriptor by itself, with its interrupt and callback, took 5.2 us in the first
            // version of the published series. A batch has one interrupt, not one per descriptor.
            engine_batch_ns: 5_200,
            // Two posted writes and one read of a PCIe function.
            channel_ns: 1_000,
            // 100 instructions at 3 GHz.
            prepare_ns: 35,
            // Unknown with a full ring. A tenth of the published driver's round trip.
            descriptor_ns: 500,
            // 14.8 GB/s.
            engine_ns_per_mib: 70_900,
            // The dearer of two explanations for the published cost of folios below 2 MiB. The
            // other one is the published driver's own, and leaves engines faster than this says.
            page_ns: 271,
            // 16.6 GB/s: little more than one engine alone.
            port_ns_per_mib: 63_300,
            ports: 0,
            // 132 GB/s: the eight ports of that machine. Nothing narrower showed on 16 channels.
            fabric_ns_per_mib: 7_900,
        }
    }
}

const fn scale(bytes: u64, ns_per_mib: u64) -> u64 {
    bytes.saturating_mul(ns_per_mib) >> MIB_SHIFT
}

/// `count` times `part / whole`, rounded up, for counts and lengths that are no nonsense.
const fn part_of(count: u64, part: u64, whole: u64) -> u64 {
    match count
        .saturating_mul(part)
        .saturating_add(whole.saturating_sub(1))
        .checked_div(whole)
    {
        Some(count) => count,
        None => count,
    }
}

impl CostModel {
    /// The time for the CPU to copy `bytes` in `folios` folios.
    #[must_use]
    pub const fn cpu_ns(&self, folios: u64, bytes: u64) -> u64 {
        scale(bytes, self.cpu_ns_per_mib).saturating_add(folios.saturating_mul(self.cpu_folio_ns))
    }

    /// The time for `channels` engines to copy `bytes` with `descriptors` descriptors.
    #[must_use]
    pub const fn engine_ns(&self, channels: u64, descriptors: u64, bytes: u64) -> u64 {
        let channels = if channels == 0 { 1 } else { channels };
        let all = descriptors.saturating_mul(self.descriptor_ns);
        let share = match all.checked_div(channels) {
            Some(share) => share,
            None => all,
        };
        self.engine_batch_ns
            .saturating_add(channels.saturating_mul(self.channel_ns))
            // The first engine begins when its own descriptors are there; the last one has to
            // wait for all of them.
            .saturating_add(descriptors.saturating_mul(self.prepare_ns))
            .saturating_add(share)
            .saturating_add(scale(bytes, self.slope(channels)))
    }

    /// Nanoseconds per MiB of `channels` engines together, in equal parts.
    const fn slope(&self, channels: u64) -> u64 {
        let port = self
            .port_ns_per_mib
            .saturating_mul(self.on_fullest_port(channels));
        let slowest = if port > self.engine_ns_per_mib {
            port
        } else {
            self.engine_ns_per_mib
        };
        let together = match slowest.checked_div(channels) {
            Some(together) => together,
            None => slowest,
        };
        if together > self.fabric_ns_per_mib {
            together
        } else {
            self.fabric_ns_per_mib
        }
    }

    /// How many of `channels` engines are behind the same port, where one of each port is taken
    /// first.
    pub(crate) const fn on_fullest_port(&self, channels: u64) -> u64 {
        if self.ports == 0 || channels <= self.ports {
            1
        } else {
            channels.div_ceil(self.ports)
        }
    }

    /// The costs of a batch of `folios` folios, `bytes` bytes in all: engines pay for the pages of
    /// folios that are shorter than 2 MiB on average.
    #[must_use]
    pub const fn of_batch(&self, folios: u64, bytes: u64) -> Self {
        let mut model = *self;
        if bytes < folios.saturating_mul(LARGE_BYTES) {
            let pages = self.page_ns.saturating_mul(PAGES_PER_MIB);
            model.engine_ns_per_mib = model.engine_ns_per_mib.saturating_add(pages);
        }
        model
    }

    /// Nanoseconds that each of `channels` engines takes for 1 MiB while all of them are at work.
    #[must_use]
    pub const fn share_ns_per_mib(&self, channels: usize) -> u64 {
        let channels = channels as u64;
        self.slope(channels).saturating_mul(channels)
    }

    /// Shortest part into which a run is worth being cut. The fixed cost of one more channel is at
    /// most a quarter of what the part takes to copy. A power of two, 64 to 256 KiB.
    #[must_use]
    pub const fn min_part_bytes(&self) -> u64 {
        let fixed = self
            .channel_ns
            .saturating_add(self.descriptor_ns)
            .saturating_add(self.prepare_ns);
        let (low, high) = MIN_PART_RANGE_BYTES;
        let mut part = low;
        while part < high && scale(part, self.engine_ns_per_mib) < fixed.saturating_mul(4) {
            part <<= 1;
        }
        part
    }
}

/// How engines are to be used. Everything in it can be changed at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// Whether engines are used at all.
    pub enabled: bool,
    /// The reasons for which engines are used.
    pub reasons: Reasons,
    /// Smaller batches are left to the CPU, and so are larger ones that the model says the CPU
    /// copies faster. 0: none is, whatever the model says.
    pub min_batch_bytes: u64,
    /// Batches of fewer folios are left to the CPU.
    pub min_folios: usize,
    /// Most channels to use.
    pub max_channels: usize,
    /// Whether the CPU copies a share while it would otherwise wait. Shortest time for the batch;
    /// leave it off where the CPU has better things to do.
    pub hybrid: bool,
    /// The costs that decisions are made from.
    pub model: CostModel,
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(CostModel::default(), 16)
    }
}

/// What to do with a batch.
///
/// The set is closed: a batch goes to engines or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Leave it to the CPU.
    Decline,
    /// Use engines.
    #[non_exhaustive]
    Engines {
        /// How many.
        channels: usize,
        /// Bytes for the CPU meanwhile.
        cpu_share_bytes: u64,
        /// The time that this should take.
        expected_ns: u64,
    },
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decline => f.write_str("left to the CPU"),
            Self::Engines {
                channels,
                cpu_share_bytes,
                expected_ns,
            } => write!(
                f,
                "{channels} channels, {cpu_share_bytes} bytes for the CPU, {expected_ns} ns expected"
            ),
        }
    }
}

impl Policy {
    /// The policy that a cost model suggests for a machine with `channels` channels: all reasons,
    /// every batch that engines copy faster than the CPU.
    #[must_use]
    pub fn new(model: CostModel, channels: usize) -> Self {
        let mut policy = Self {
            enabled: true,
            reasons: Reasons::all(),
            min_batch_bytes: 0,
            min_folios: 0,
            max_channels: channels,
            hybrid: false,
            model,
        };
        policy.min_batch_bytes = policy
            .break_even_bytes()
            .min(policy.break_even_as(|_pages| 1));
        policy
    }

    /// The smallest batch of scattered base pages that engines copy faster than the CPU, by a
    /// margin of one eighth. It is `u64::MAX` if there is none below 1 GiB.
    ///
    /// [`min_batch_bytes`](Self::min_batch_bytes) may be smaller: one large folio needs fewer
    /// descriptors.
    #[must_use]
    pub fn break_even_bytes(&self) -> u64 {
        self.break_even_as(|pages| pages)
    }

    /// The break-even for batches in which so many base pages are so many folios.
    fn break_even_as(&self, folios: impl Fn(u64) -> u64) -> u64 {
        const PAGE: u64 = 4096;
        let wins = |pages: u64| {
            let (folios, bytes) = (folios(pages), pages.saturating_mul(PAGE));
            let shaped = Self {
                model: self.model.of_batch(folios, bytes),
                ..*self
            };
            shaped.wins(folios, bytes, shaped.best(folios, bytes).1)
        };
        let mut high = 1;
        while !wins(high) {
            high <<= 1;
            if high > (1 << 30) / PAGE {
                return u64::MAX;
            }
        }
        let mut low = high / 2;
        // Engines lose at `low` pages and win at `high`.
        while high.saturating_sub(low) > 1 {
            let middle = low.saturating_add(high.saturating_sub(low) / 2);
            if wins(middle) {
                high = middle;
            } else {
                low = middle;
            }
        }
        high.saturating_mul(PAGE)
    }

    /// Whether batches for the kernel's migration reason `reason` may use engines.
    #[must_use]
    #[inline]
    pub const fn should_batch(&self, reason: u32) -> bool {
        self.enabled && self.reasons.contains_value(reason)
    }

    /// Whether a batch of this size is worth a closer look. A handful of instructions.
    #[must_use]
    #[inline]
    pub const fn admits(&self, folios: usize, bytes: u64) -> bool {
        self.enabled
            && bytes >= self.min_batch_bytes
            && folios >= self.min_folios
            && self.max_channels != 0
    }

    /// What to do with a batch of `folios` folios, `bytes` bytes in all, given `active` channels.
    #[must_use]
    #[inline]
    pub fn decide(&self, folios: usize, bytes: u64, active: usize) -> Decision {
        if active == 0 || !self.admits(folios, bytes) {
            return Decision::Decline;
        }
        self.weigh(folios, bytes, active)
    }

    /// The closer look at a batch that is [admitted](Self::admits).
    // Out of line: then a caller's options cost nothing where the batch is declined before.
    #[inline(never)]
    fn weigh(&self, folios: usize, bytes: u64, active: usize) -> Decision {
        let folios = folios as u64;
        let capped = Self {
            max_channels: self.max_channels.min(active),
            model: self.model.of_batch(folios, bytes),
            ..*self
        };
        let (channels, alone_ns) = capped.best(folios, bytes);
        let cpu_share_bytes = if self.hybrid {
            capped.share(channels, folios, bytes, alone_ns)
        } else {
            0
        };
        let engine_bytes = bytes.saturating_sub(cpu_share_bytes);
        let expected_ns = capped.model.engine_ns(
            channels,
            part_of(
                capped.descriptors(folios, bytes, channels),
                engine_bytes,
                bytes,
            ),
            engine_bytes,
        );
        // The bytes alone do not tell: many small folios may be faster by hand where one large
        // one is not.
        if self.min_batch_bytes != 0 && !self.wins(folios, bytes, expected_ns) {
            return Decision::Decline;
        }
        Decision::Engines {
            channels: usize::try_from(channels).unwrap_or(usize::MAX),
            cpu_share_bytes,
            expected_ns,
        }
    }

    /// [`decide`](Self::decide), as options for [`Batch::run`](crate::Batch::run); `None` to
    /// decline. What the policy does not know is taken from `base`.
    #[must_use]
    #[inline]
    pub fn options(
        &self,
        folios: usize,
        bytes: u64,
        active: usize,
        base: &Options,
    ) -> Option<Options> {
        // Here and not in what is called: a tiny batch is declined in a few instructions.
        if active == 0 || !self.admits(folios, bytes) {
            return None;
        }
        self.weighed_options(folios, bytes, active, base)
    }

    #[inline(always)]
    fn weighed_options(
        &self,
        folios: usize,
        bytes: u64,
        active: usize,
        base: &Options,
    ) -> Option<Options> {
        match self.weigh(folios, bytes, active) {
            Decision::Decline => None,
            Decision::Engines {
                channels,
                cpu_share_bytes,
                ..
            } => Some(Options {
                channels,
                cpu_share_bytes,
                // At the earliest: whether pages cost anything is not known.
                engine_ns_per_mib: self.model.share_ns_per_mib(channels),
                rules: CutRules {
                    min_part_bytes: base.rules.min_part_bytes.max(1),
                    ..base.rules
                },
                ..*base
            }),
        }
    }

    /// Whether engines that take `engines_ns` beat the CPU by the margin.
    const fn wins(&self, folios: u64, bytes: u64, engines_ns: u64) -> bool {
        let all_ns = engines_ns.saturating_add(self.model.call_ns);
        all_ns.saturating_add(all_ns / MARGIN) <= self.model.cpu_ns(folios, bytes)
    }

    /// How many descriptors a batch has at most, if nothing of it is contiguous.
    fn descriptors(&self, folios: u64, bytes: u64, channels: u64) -> u64 {
        // Every channel may cut one folio, but not below the minimum part.
        folios.max(channels.min(self.parts(bytes)))
    }

    /// Parts that so many bytes can be cut into at most.
    fn parts(&self, bytes: u64) -> u64 {
        // A power of two.
        bytes >> self.model.min_part_bytes().trailing_zeros()
    }

    /// The number of channels that copies a batch fastest, and the time it takes. Of two numbers
    /// that differ by less than 1/32 in time the smaller one: others can use the rest.
    fn best(&self, folios: u64, bytes: u64) -> (u64, u64) {
        // The same for every number of channels, so looked at once.
        let parts = self.parts(bytes);
        let time = |channels: u64| {
            let descriptors = folios.max(channels.min(parts));
            self.model.engine_ns(channels, descriptors, bytes)
        };
        // Neither more than there is work for.
        let most = (self.max_channels as u64).min(folios.max(parts)).max(1);
        let mut best = (1, time(1));
        for channels in 2..=most {
            let ns = time(channels);
            if ns.saturating_add(ns / 32) < best.1 {
                best = (channels, ns);
            }
        }
        best
    }

    /// Bytes that the CPU can copy itself while `channels` engines copy the rest: both end at the
    /// same time. The CPU begins when it has submitted everything.
    fn share(&self, channels: u64, folios: u64, bytes: u64, alone_ns: u64) -> u64 {
        let model = &self.model;
        let busy_ns = channels.saturating_mul(model.channel_ns).saturating_add(
            self.descriptors(folios, bytes, channels)
                .saturating_mul(model.prepare_ns),
        );
        // A byte that the CPU takes over saves the engines a part of a descriptor, too.
        let descriptors_ns = self
            .descriptors(folios, bytes, channels)
            .saturating_mul(model.descriptor_ns)
            .checked_div(channels)
            .unwrap_or(0);
        let descriptors_per_mib = (descriptors_ns << MIB_SHIFT)
            .checked_div(bytes)
            .unwrap_or(0);
        let both_per_mib = model
            .cpu_ns_per_mib
            .saturating_add(model.slope(channels))
            .saturating_add(descriptors_per_mib);
        let share = (alone_ns.saturating_sub(busy_ns) << MIB_SHIFT)
            .checked_div(both_per_mib)
            .unwrap_or(0)
            .min(bytes);
        if share < MIN_SHARE_BYTES { 0 } else { share }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_batches_are_declined_and_big_ones_use_all_channels() {
        let policy = Policy::default();
        assert_eq!(policy.decide(1, 4096, 16), Decision::Decline);
        let Decision::Engines { channels, .. } = policy.decide(16, 32 << 20, 16) else {
            panic!("declined")
        };
        assert!(channels >= 6, "{channels}");
        assert_eq!(policy.decide(16, 32 << 20, 0), Decision::Decline);
    }

    #[test]
    fn one_folio_is_worth_as_many_channels_as_it_has_parts_that_pay() {
        let policy = Policy::default();
        let channels = |bytes| match policy.decide(1, bytes, 16) {
            Decision::Engines { channels, .. } => channels,
            Decision::Decline => 0,
        };
        // Each one more is a doorbell, and saves less than the one before.
        assert!(
            (6..=12).contains(&channels(2 << 20)),
            "{}",
            channels(2 << 20)
        );
        // Two of the shortest parts are not cut into three.
        assert!(channels(2 * policy.model.min_part_bytes()) <= 2);
    }

    #[test]
    fn one_channel_of_each_port_is_enough_for_large_folios() {
        let model = |ports| CostModel {
            ports,
            ..CostModel::default()
        };
        let channels = |ports, most, folios: usize, bytes| match Policy::new(model(ports), most)
            .decide(folios, bytes, most)
        {
            Decision::Engines { channels, .. } => channels,
            Decision::Decline => 0,
        };
        assert_eq!(channels(8, 16, 1, 2 << 20), 8);
        assert_eq!(channels(4, 8, 1, 2 << 20), 4);
        // A ninth channel would make two of the ports slower for all.
        assert_eq!(channels(8, 12, 512, 1 << 30), 8);
        // All of both on each port end earlier than one of each.
        assert_eq!(channels(8, 16, 512, 1 << 30), 16);
        // Engines that wait for translations leave a port to each other.
        assert_eq!(channels(8, 12, 16384, 1 << 30), 12);
        // One port has little for a second engine.
        let two = model(1);
        let gain = two.engine_ns(1, 16, 32 << 20) - two.engine_ns(2, 16, 32 << 20);
        assert!(gain * 8 < two.engine_ns(1, 16, 32 << 20), "{gain}");
    }

    #[test]
    fn break_even_is_where_times_meet() {
        let policy = Policy::default();
        let bytes = policy.break_even_bytes();
        let at = |bytes: u64| {
            let pages = bytes / 4096;
            let mut shaped = policy;
            shaped.model = policy.model.of_batch(pages, bytes);
            let all = shaped.best(pages, bytes).1 + policy.model.call_ns;
            all + all / MARGIN <= policy.model.cpu_ns(pages, bytes)
        };
        assert!(at(bytes) && !at(bytes - 4096), "{bytes}");
        // More than a compaction batch, and less than what the stock kernel lets through.
        assert!((1 << 20..2 << 20).contains(&bytes), "{bytes}");
        let slow = CostModel {
            engine_ns_per_mib: 1_000_000,
            fabric_ns_per_mib: 1_000_000,
            ..CostModel::default()
        };
        assert_eq!(Policy::new(slow, 16).min_batch_bytes, u64::MAX);
    }

    #[test]
    fn shape_decides_and_not_bytes_alone() {
        // An engine that is slower than the CPU for each base page, and faster for each MiB.
        let model = CostModel {
            descriptor_ns: 1_000,
            page_ns: 0,
            call_ns: 0,
            ..CostModel::default()
        };
        let policy = Policy::new(model, 1);
        assert_eq!(policy.break_even_bytes(), u64::MAX);
        assert_eq!(policy.decide(512, 2 << 20, 1), Decision::Decline);
        let engines = |d| matches!(d, Decision::Engines { .. });
        assert!(engines(policy.decide(1, 2 << 20, 1)));
        assert!(policy.min_batch_bytes < 1 << 20);
        // More channels make up for it.
        assert!(engines(Policy::new(model, 16).decide(512, 2 << 20, 16)));
        // Who sets no minimum is not contradicted.
        let forced = Policy {
            min_batch_bytes: 0,
            ..policy
        };
        assert!(engines(forced.decide(1, 4096, 1)));
    }

    #[test]
    fn more_work_never_takes_less_time_and_more_channels_never_lose() {
        let model = CostModel::default();
        for shift in 12..30 {
            let pages = 1 << (shift - 12);
            let (_, few) = Policy::new(model, 4).best(pages, 1 << shift);
            let (_, many) = Policy::new(model, 16).best(pages, 1 << shift);
            let (_, more_work) = Policy::new(model, 16).best(pages * 2, 2 << shift);
            assert!(many <= few && many <= more_work);
        }
    }

    #[test]
    fn hybrid_ends_together() {
        let policy = Policy {
            hybrid: true,
            ..Policy::default()
        };
        for (folios, bytes, active) in [(8, 16 << 20, 1), (512, 2 << 20, 16), (64, 128 << 20, 4)] {
            let Decision::Engines {
                channels,
                cpu_share_bytes,
                expected_ns,
            } = policy.decide(folios, bytes, active)
            else {
                panic!("declined")
            };
            let descriptors = policy.descriptors(folios as u64, bytes, channels as u64);
            let descriptors = part_of(descriptors, bytes - cpu_share_bytes, bytes);
            let busy =
                channels as u64 * policy.model.channel_ns + descriptors * policy.model.prepare_ns;
            let cpu_ns = busy + scale(cpu_share_bytes, policy.model.cpu_ns_per_mib);
            assert!(
                cpu_ns.abs_diff(expected_ns) * 50 < expected_ns,
                "{cpu_ns} {expected_ns}"
            );
        }
    }

    #[test]
    fn extreme_models_do_not_overflow() {
        let max = u64::MAX;
        let model = CostModel {
            cpu_folio_ns: max,
            cpu_ns_per_mib: max,
            call_ns: max,
            engine_batch_ns: max,
            channel_ns: max,
            prepare_ns: max,
            descriptor_ns: max,
            engine_ns_per_mib: max,
            page_ns: max,
            port_ns_per_mib: max,
            ports: max,
            fabric_ns_per_mib: max,
        };
        for model in [
            model,
            CostModel {
                engine_ns_per_mib: 0,
                fabric_ns_per_mib: 0,
                ports: 1,
                ..model
            },
        ] {
            let policy = Policy {
                hybrid: true,
                min_batch_bytes: 0,
                ..Policy::new(model, 64)
            };
            let _ = policy.decide(usize::MAX, u64::MAX, usize::MAX);
            let _ = model.min_part_bytes();
        }
    }
}
