//! What things cost on the machine.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::published::{FolioSize, PAGE_BYTES, TABLE_BYTES, TABLES};

/// Bytes of the pieces in which engines take turns at a port, and in which the second hypothesis
/// splits. The flat cost of the tables begins above 64 KiB.
pub const PIECE_BYTES: u64 = 64 << 10;

/// Where the flat cost of folios below 2 MiB comes from. The published driver cannot tell the two
/// apart: it pays both in the same way. A driver that keeps rings full pays the first only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hypothesis {
    /// The engine waits for the translation of each base page.
    Translation,
    /// The driver's path splits at 64 KiB, with a round trip for each piece.
    Split,
}

impl Hypothesis {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Translation, Self::Split];

    /// A word for tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Translation => "translation",
            Self::Split => "split",
        }
    }
}

/// What [`fit`](crate::fit) finds in the published tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// Bytes of one engine alone, GB/s.
    pub engine_gb_per_s: f64,
    /// Bytes of a port, which two engines share, GB/s.
    pub port_gb_per_s: f64,
    /// A descriptor with its round trip: store, doorbell, interrupt, callback, next one. ns.
    pub round_trip_ns: f64,
    /// First hypothesis: translation of one base page, source and destination. Folios of 2 MiB
    /// have one entry each and pay nothing that shows. ns.
    pub page_ns: f64,
    /// Second hypothesis: one more piece of 64 KiB in the published driver's path. ns.
    pub piece_ns: f64,
    /// S: everything but the copy, per folio on the offload path, by folio size. ns.
    pub other_ns: BTreeMap<String, f64>,
    /// Per call on the offload path, cold: what one folio alone takes beside S and its copy. ns.
    pub call_ns: f64,
    /// The same for the CPU's path. ns.
    pub cpu_call_ns: f64,
    /// What the first MiBs of a call take more, on both paths, ns per MiB.
    pub cold_ns_per_mib: f64,
    /// How many MiBs are cold.
    pub cold_mib: f64,
    /// The CPU's copy, GB/s.
    pub cpu_gb_per_s: f64,
    /// The CPU's whole path, 1 GB in one call, GB/s by folio size: published, and not fitted.
    pub baseline_gb_per_s: BTreeMap<String, f64>,

    // What the tables do not tell.
    /// A descriptor in a full ring, beside its bytes. ns. Nobody has published it.
    pub descriptor_ns: f64,
    /// A register read of a PCIe function. ns.
    pub read_ns: f64,
    /// A posted register write. ns.
    pub write_ns: f64,
    /// Register reads of a look that finds progress, in this tree's driver.
    pub look_reads: f64,
    /// The CPU, per descriptor that it prepares and collects. ns.
    pub prepare_ns: f64,
    /// From an interrupt message to the woken thread. ns.
    pub wake_ns: f64,
    /// Share of S that passes before the copy (unmapping), the rest after it (remapping).
    pub before_share: f64,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Fitted to the published tables, or taken from them as it stands there.
    Fitted,
    /// Nobody has published it.
    Assumed,
    /// From a report of measured values.
    Measured,
}

/// Names of the values that are assumed, each with its reason.
pub const ASSUMED: [(&str, &str); 7] = [
    (
        "descriptor_ns",
        "unknown; a whole round trip of a 4 KiB descriptor took 5200",
    ),
    ("read_ns", "a PCIe round trip"),
    ("write_ns", "a posted write"),
    (
        "look_reads",
        "head, and status until a failure has shown where the head stays",
    ),
    ("prepare_ns", "100 instructions at 3 GHz"),
    (
        "wake_ns",
        "an interrupt with its callback: what v1 of the series took for a descriptor",
    ),
    ("before_share", "half of S before the copy, half after it"),
];

impl Default for Costs {
    /// The values of `data/fitted.json`.
    fn default() -> Self {
        serde_json::from_str(include_str!("../data/fitted.json"))
            .expect("the file is part of this crate, and the tests read it")
    }
}

impl Costs {
    /// Where the fit begins: the assumed values, and rough ones for the rest.
    #[must_use]
    pub fn start() -> Self {
        let other = |folio: FolioSize| {
            // The baseline less a copy by the CPU at 11.5 GB/s.
            let ns = TABLES.cpu_of(folio).folio_ns() - folio.bytes() as f64 / 11.5;
            (folio.to_string(), ns)
        };
        let baseline = |folio: FolioSize| (folio.to_string(), TABLES.cpu_of(folio).gb_per_s);
        Self {
            engine_gb_per_s: 14.0,
            port_gb_per_s: 16.4,
            round_trip_ns: 6_000.0,
            page_ns: 300.0,
            piece_ns: 4_800.0,
            other_ns: FolioSize::ALL.into_iter().map(other).collect(),
            call_ns: 100_000.0,
            cpu_call_ns: 50_000.0,
            cold_ns_per_mib: 20_000.0,
            cold_mib: 32.0,
            cpu_gb_per_s: 11.5,
            baseline_gb_per_s: FolioSize::ALL.into_iter().map(baseline).collect(),
            descriptor_ns: 500.0,
            read_ns: 800.0,
            write_ns: 100.0,
            look_reads: 2.0,
            prepare_ns: 35.0,
            wake_ns: 5_200.0,
            before_share: 0.5,
        }
    }

    /// S of one folio on the offload path.
    #[must_use]
    pub fn other(&self, folio: FolioSize) -> f64 {
        self.other_ns
            .get(&folio.to_string())
            .copied()
            .unwrap_or(0.0)
    }

    /// Sets S of one folio size.
    pub fn set_other(&mut self, folio: FolioSize, ns: f64) {
        self.other_ns.insert(folio.to_string(), ns);
    }

    /// Nanoseconds of an engine for the bytes of a piece, with what hypothesis and path add.
    #[must_use]
    pub fn piece(&self, hypothesis: Hypothesis, path: Path, folio: FolioSize, bytes: u64) -> f64 {
        let copy = bytes as f64 / self.engine_gb_per_s;
        let extra = match (hypothesis, path) {
            _ if folio >= FolioSize::HUGE => 0.0,
            (Hypothesis::Translation, _) => (bytes as f64 / PAGE_BYTES as f64) * self.page_ns,
            (Hypothesis::Split, Path::RoundTrips) => {
                (bytes as f64 / PIECE_BYTES as f64) * self.piece_ns
            }
            (Hypothesis::Split, Path::FullRing) => 0.0,
        };
        copy + extra
    }

    /// What a call costs beside its folios: the fixed part, and the cold part of these bytes.
    #[must_use]
    pub fn call(&self, cpu: bool, bytes: u64) -> f64 {
        let fixed = if cpu { self.cpu_call_ns } else { self.call_ns };
        fixed + self.cold(bytes)
    }

    /// The cold part alone.
    #[must_use]
    pub fn cold(&self, bytes: u64) -> f64 {
        (bytes as f64 / (1u64 << 20) as f64).min(self.cold_mib) * self.cold_ns_per_mib
    }

    /// The CPU's path for one folio, without the call: the baseline less its call.
    #[must_use]
    pub fn cpu_folio(&self, folio: FolioSize) -> f64 {
        let baseline = self.baseline_gb_per_s.get(&folio.to_string());
        let gb_per_s = baseline.copied().unwrap_or(self.cpu_gb_per_s);
        let folios = (TABLE_BYTES / folio.bytes()) as f64;
        folio.bytes() as f64 / gb_per_s - self.call(true, TABLE_BYTES) / folios
    }

    /// The time of the CPU's copy of a number of bytes.
    #[must_use]
    pub fn cpu_copy(&self, bytes: u64) -> f64 {
        bytes as f64 / self.cpu_gb_per_s
    }
}

/// How descriptors reach the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// One at a time, each with its round trip.
    RoundTrips,
    /// All at once.
    FullRing,
}
