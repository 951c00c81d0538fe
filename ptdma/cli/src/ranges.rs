//! Ranges of addresses of a process.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

/// Bytes of a page of x86-64.
pub(crate) const PAGE_BYTES: u64 = 4096;

/// Addresses from `start` up to `end`, whole pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Range {
    /// Bytes of the range.
    pub(crate) const fn len_bytes(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// What both have.
    pub(crate) fn overlap(self, other: Self) -> Option<Self> {
        let both = Self {
            start: self.start.max(other.start),
            end: self.end.min(other.end),
        };
        (both.start < both.end).then_some(both)
    }

    /// The parts of at most `bytes`, cut at multiples of `bytes`.
    pub(crate) fn windows(self, bytes: u64) -> impl Iterator<Item = Self> {
        let mut start = self.start;
        std::iter::from_fn(move || {
            (start < self.end).then(|| {
                let cut = (start / bytes + 1).saturating_mul(bytes);
                let window = Self {
                    start,
                    end: cut.min(self.end),
                };
                start = window.end;
                window
            })
        })
    }
}

impl FromStr for Range {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let address = |text: &str| {
            u64::from_str_radix(text.trim_start_matches("0x"), 16)
                .with_context(|| format!("{text} is no hexadecimal address"))
        };
        let (start, end) = text
            .split_once('-')
            .context("a range is START-END, as in /proc/PID/maps")?;
        let (start, end) = (address(start)?, address(end)?);
        ensure!(start < end, "the range {text} is empty");
        ensure!(
            start % PAGE_BYTES == 0 && end % PAGE_BYTES == 0,
            "the range {text} does not begin and end at pages of {PAGE_BYTES} bytes"
        );
        Ok(Self { start, end })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.start, self.end)
    }
}

/// The anonymous memory of a process, by the text of its `/proc/PID/maps`.
///
/// Private mappings of files are left out: their pages are the file's until somebody writes.
pub(crate) fn anonymous(maps: &str) -> Vec<Range> {
    maps.lines().filter_map(anonymous_line).collect()
}

fn anonymous_line(line: &str) -> Option<Range> {
    // 7f0000000000-7f0000200000 rw-p 00000000 00:00 0    [heap]
    let mut words = line.split_whitespace();
    let range = words.next()?.parse().ok()?;
    let access = words.next()?;
    let (_offset, _device) = (words.next()?, words.next()?);
    let inode = words.next()?;
    let name = words.next().unwrap_or_default();
    let special = matches!(name, "[vdso]" | "[vvar]" | "[vvar_vclock]" | "[vsyscall]");
    // Private huge pages of hugetlb have a file that nobody sees.
    let anonymous = (inode == "0" && !special) || name == "/anon_hugepage";
    (access.ends_with('p') && anonymous).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_memory_is_found() {
        let maps = "\
            55d0c0000000-55d0c0001000 r-xp 00000000 08:01 131 /usr/bin/cat\n\
            55d0c1000000-55d0c1021000 rw-p 00000000 00:00 0    [heap]\n\
            7f0000000000-7f0000400000 rw-p 00000000 00:00 0\n\
            7f0000800000-7f0000a00000 rw-s 00000000 00:01 1024 /memfd:x (deleted)\n\
            7f0000c00000-7f0000e00000 rw-p 00000000 00:10 4096 /anon_hugepage (deleted)\n\
            7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0    [stack]\n\
            7ffc00030000-7ffc00034000 r--p 00000000 00:00 0    [vvar]\n\
            broken line\n";
        let found: Vec<String> = anonymous(maps).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "55d0c1000000-55d0c1021000",
                "7f0000000000-7f0000400000",
                "7f0000c00000-7f0000e00000",
                "7ffc00000000-7ffc00021000"
            ]
        );
    }

    #[test]
    fn ranges_are_read_and_refused() {
        assert_eq!(
            "0x1000-3000".parse::<Range>().ok(),
            Some(Range {
                start: 0x1000,
                end: 0x3000
            })
        );
        for text in ["1000", "3000-1000", "1000-1000", "1001-2000", "x-y", ""] {
            assert!(text.parse::<Range>().is_err(), "{text}");
        }
    }

    #[test]
    fn windows_cover_a_range_once_and_are_aligned() {
        let range = Range {
            start: 0x1000,
            end: 0x9000,
        };
        let windows: Vec<Range> = range.windows(0x4000).collect();
        assert_eq!(windows.len(), 3);
        assert_eq!(windows[0].end, 0x4000);
        assert_eq!(windows[1].len_bytes(), 0x4000);
        assert_eq!(
            windows.iter().map(|window| window.len_bytes()).sum::<u64>(),
            range.len_bytes()
        );
    }

    #[test]
    fn overlaps_are_what_both_have() {
        let range = |start, end| Range { start, end };
        assert_eq!(range(1, 5).overlap(range(3, 9)), Some(range(3, 5)));
        assert_eq!(range(1, 3).overlap(range(3, 9)), None);
    }
}
