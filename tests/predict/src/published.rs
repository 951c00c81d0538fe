//! The published tables, as they lie in `data/`.

use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes of a base page.
pub const PAGE_BYTES: u64 = 4 << 10;

/// Bytes that each cell of the first table moves, in one call. The published "1 GB" is taken as
/// the 2^30 bytes that hold a whole number of folios of each size.
pub const TABLE_BYTES: u64 = 1 << 30;

/// Channels of the published machine.
pub const MACHINE_CHANNELS: usize = 16;

/// Numbers of channels of the first table.
pub const CHANNELS: [usize; 6] = [1, 2, 4, 8, 12, 16];

/// The size of a folio. It reads and prints as the tables do: "64K", "2M".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FolioSize(u64);

impl FolioSize {
    /// The sizes of all columns.
    pub const ALL: [Self; 8] = [
        Self(4 << 10),
        Self(16 << 10),
        Self(64 << 10),
        Self(128 << 10),
        Self(256 << 10),
        Self(512 << 10),
        Self(1 << 20),
        Self(2 << 20),
    ];
    /// A base page.
    pub const BASE: Self = Self(PAGE_BYTES);
    /// 64 KiB.
    pub const MIDDLE: Self = Self(64 << 10);
    /// 2 MiB: one entry of a page table of the second level.
    pub const HUGE: Self = Self(2 << 20);

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Which one of [`ALL`](Self::ALL).
    #[must_use]
    pub fn index(self) -> usize {
        Self::ALL.iter().position(|&s| s == self).unwrap_or(0)
    }

    /// Parses "64K".
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.to_string() == text)
    }
}

impl fmt::Display for FolioSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if self.0 >= 1 << 20 {
            format!("{}M", self.0 >> 20)
        } else {
            format!("{}K", self.0 >> 10)
        };
        f.pad(&text)
    }
}

impl Serialize for FolioSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FolioSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no size of the tables")))
    }
}

/// Which table a cell stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// By number of channels, version 4.
    Channels,
    /// The two sizes of version 3.
    MoreSizes,
    /// By number of folios, version 4.
    FolioCount,
}

/// One published cell: throughput of `move_pages`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// Where it stands.
    pub source: Source,
    /// Channels; 0 is the CPU alone.
    pub channels: usize,
    /// Folio size.
    pub folio: FolioSize,
    /// Folios of the call.
    pub folios: u64,
    /// GB/s.
    pub gb_per_s: f64,
    /// The published +-, if there is one.
    pub spread: Option<f64>,
}

impl Cell {
    /// How far a prediction may be off: a tenth, or the published spread if that is larger.
    #[must_use]
    pub fn tolerance(&self) -> f64 {
        self.spread.unwrap_or(0.0).max(0.1 * self.gb_per_s)
    }

    /// The cell that stands apart: 1M on one channel is at 7.38 in version 4, and at 4.36, 4.78
    /// and 4.62 in versions 2, 3 and 5.
    #[must_use]
    pub fn is_outlier(&self) -> bool {
        self.source == Source::Channels && self.channels == 1 && self.folio == FolioSize(1 << 20)
    }

    /// Nanoseconds for each folio.
    #[must_use]
    pub fn folio_ns(&self) -> f64 {
        self.folio.bytes() as f64 / self.gb_per_s
    }
}

/// One row of the compaction experiment.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CompactionRun {
    /// What copied, and whether a hog shared the CPU.
    pub mode: String,
    /// Milliseconds until all allocations were done.
    pub wall_ms: f64,
    /// Base pages that were moved.
    pub migrated: f64,
    /// Loops of the hog.
    pub hog_iterations: Option<f64>,
    /// Share of the CPU in user space.
    pub user_pct: f64,
    /// Share of the CPU in the kernel.
    pub sys_pct: f64,
    /// Share of the CPU that nobody used.
    pub idle_pct: f64,
}

/// A cell of another version of the series.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct OtherVersion {
    /// Which one.
    pub version: String,
    /// Channels; 0 is the CPU alone.
    pub channels: usize,
    /// Folio size.
    pub folio: FolioSize,
    /// GB/s.
    pub gb_per_s: f64,
}

/// All tables.
#[derive(Debug)]
pub struct Tables {
    /// Every cell of the published driver: 36, ten, and the four of version 3.
    pub cells: Vec<Cell>,
    /// The CPU alone, in the same tables.
    pub cpu: Vec<Cell>,
    /// The compaction experiment.
    pub compaction: Vec<CompactionRun>,
    /// Other versions.
    pub other_versions: Vec<OtherVersion>,
}

#[derive(Deserialize)]
struct ChannelRow {
    channels: usize,
    folio: FolioSize,
    gb_per_s: f64,
    spread: Option<f64>,
}

#[derive(Deserialize)]
struct CountRow {
    folios: u64,
    cpu: f64,
    dcbm: f64,
}

fn rows<T: for<'de> Deserialize<'de>>(text: &str) -> Vec<T> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    reader
        .deserialize()
        .collect::<Result<_, _>>()
        .expect("the files are part of this crate, and the tests read all of them")
}

/// The tables.
///
/// # Panics
///
/// If a file of this crate's `data` directory is damaged.
pub static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let (mut cells, mut cpu) = (Vec::new(), Vec::new());
    let by_channels = [
        (Source::Channels, include_str!("../data/channels.csv")),
        (Source::MoreSizes, include_str!("../data/more_sizes.csv")),
    ];
    for (source, text) in by_channels {
        for row in rows::<ChannelRow>(text) {
            let list = if row.channels == 0 {
                &mut cpu
            } else {
                &mut cells
            };
            list.push(Cell {
                source,
                channels: row.channels,
                folio: row.folio,
                folios: TABLE_BYTES / row.folio.bytes(),
                gb_per_s: row.gb_per_s,
                spread: row.spread,
            });
        }
    }
    for row in rows::<CountRow>(include_str!("../data/folio_count.csv")) {
        for (list, channels, gb_per_s) in [(&mut cpu, 0, row.cpu), (&mut cells, 1, row.dcbm)] {
            list.push(Cell {
                source: Source::FolioCount,
                channels,
                folio: FolioSize::HUGE,
                folios: row.folios,
                gb_per_s,
                spread: None,
            });
        }
    }
    Tables {
        cells,
        cpu,
        compaction: rows(include_str!("../data/compaction.csv")),
        other_versions: rows(include_str!("../data/other_versions.csv")),
    }
});

impl Tables {
    /// The CPU's cell for this folio size, 1 GB in all.
    #[must_use]
    pub fn cpu_of(&self, folio: FolioSize) -> &Cell {
        let same = |c: &&Cell| c.folio == folio && c.source != Source::FolioCount;
        self.cpu
            .iter()
            .find(same)
            .expect("every size has a cell of the CPU, and a test looks at each")
    }

    /// The cells of one table.
    pub fn of(&self, source: Source) -> impl Iterator<Item = &Cell> {
        self.cells.iter().filter(move |c| c.source == source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_read_and_whole() {
        let count = |source| TABLES.of(source).count();
        assert_eq!(count(Source::Channels), 36);
        assert_eq!(count(Source::MoreSizes), 4);
        assert_eq!(count(Source::FolioCount), 10);
        assert_eq!(TABLES.compaction.len(), 4);
        assert_eq!(TABLES.other_versions.len(), 40);
        for folio in FolioSize::ALL {
            assert!(TABLES.cpu_of(folio).gb_per_s > 3.0, "{folio}");
            assert_eq!(FolioSize::ALL[folio.index()], folio);
        }
        assert_eq!(TABLES.cells.iter().filter(|c| c.is_outlier()).count(), 1);
    }

    #[test]
    fn the_outlier_stands_apart_from_every_other_version() {
        let outlier = TABLES.cells.iter().find(|c| c.is_outlier()).unwrap();
        let others = TABLES.other_versions.iter();
        let same = others.filter(|o| o.channels == 1 && o.folio == outlier.folio);
        let highest = same.map(|o| o.gb_per_s).fold(0.0, f64::max);
        assert!(highest > 0.0 && outlier.gb_per_s > 1.5 * highest);
    }
}
