//! `ptdma move`: the anonymous memory of a process, to another node.

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::counts::{Counts, Front};
use crate::device::{self, Device};
use crate::ranges::{self, PAGE_BYTES, Range};
use crate::say;
use crate::syscalls::{self, HUGE_BYTES};
use crate::sysfs::Root;

/// What is moved by one system call: enough huge pages that entering the kernel costs nothing, and
/// few enough that the bar moves.
const WINDOW_BYTES: u64 = 16 * HUGE_BYTES as u64;

/// What is to be moved.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) pid: u32,
    pub(crate) to: u32,
    /// All anonymous memory if empty.
    pub(crate) ranges: Vec<Range>,
    pub(crate) shared: bool,
}

/// What became of it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Moved {
    /// Bytes that are on the node now, and were not.
    pub(crate) moved_bytes: u64,
    /// Bytes that were there before.
    pub(crate) there_bytes: u64,
    /// Bytes that stay where they are, by the kernel's reason.
    pub(crate) left_bytes: BTreeMap<String, u64>,
    /// Bytes that engines copied for the device: batches of small pages.
    pub(crate) device_bytes: u64,
    /// Time of the calls that moved something, in nanoseconds.
    pub(crate) ns: u64,
}

impl Moved {
    fn left(&self) -> u64 {
        self.left_bytes.values().sum()
    }
}

/// Moves, and tells. False if something was left behind.
pub(crate) fn run(root: &Root, job: &Job, json: bool) -> Result<bool> {
    ensure!(
        root.has(&format!("sys/devices/system/node/node{}", job.to)),
        "there is no node {}: see /sys/devices/system/node",
        job.to
    );
    let maps = root.path(&format!("proc/{}/maps", job.pid));
    let maps = std::fs::read_to_string(&maps).map_err(|error| explained(error, job.pid))?;
    let ranges = chosen(&ranges::anonymous(&maps), &job.ranges);
    ensure!(
        !ranges.is_empty(),
        "process {} has no anonymous memory there",
        job.pid
    );

    let device = Device::of(root, job.pid);
    let before = Counts::read(root);
    let total = ranges.iter().map(|range| range.len_bytes()).sum();
    let bar = bar(total);
    let mut moved = Moved::default();
    for window in ranges.iter().flat_map(|range| range.windows(WINDOW_BYTES)) {
        move_window(root, job, device.as_ref(), window, &mut moved)
            .map_err(|error| explained(error, job.pid))?;
        bar.inc(window.len_bytes());
    }
    bar.finish_and_clear();
    let by_engines = Counts::read(root)
        .zip(before)
        .map(|(after, before)| after.bytes_since(&before));
    tell(root, job, &moved, by_engines, json)?;
    Ok(moved.left() == 0)
}

/// What both the process and the user name.
fn chosen(all: &[Range], wanted: &[Range]) -> Vec<Range> {
    if wanted.is_empty() {
        return all.to_vec();
    }
    all.iter()
        .flat_map(|range| wanted.iter().filter_map(|wish| range.overlap(*wish)))
        .collect()
}

fn explained(error: io::Error, pid: u32) -> anyhow::Error {
    let advice = match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => "there is no such process",
        Some(libc::EPERM) => "its memory is not yours to move: run this as root",
        Some(libc::EACCES) => "not allowed: not yours, or the node is outside of its cpuset",
        Some(libc::ENODEV) => "the node has no memory",
        _ => "the kernel refuses",
    };
    anyhow::Error::new(error).context(format!("process {pid}: {advice}"))
}

fn bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}  {bytes_per_sec}  {eta}")
    {
        bar.set_style(style);
    }
    bar
}

/// Moves what is not on the node.
///
/// The device moves small pages, if there is one. Nobody tells the size of folios without root. So
/// the first page of each huge page goes next, which takes a whole huge folio along; then what is
/// still elsewhere goes, page by page.
fn move_window(
    root: &Root,
    job: &Job,
    device: Option<&Device>,
    window: Range,
    moved: &mut Moved,
) -> io::Result<()> {
    let pages = syscalls::pages_of(window);
    let before = syscalls::nodes_of(job.pid, &pages)?;
    let to = job.to as i32;
    let elsewhere = |nodes: &[i32]| -> Vec<u64> {
        let both = pages.iter().zip(nodes);
        both.filter(|(_, node)| **node >= 0 && **node != to)
            .map(|(page, _)| *page)
            .collect()
    };
    let there = before.iter().filter(|node| **node == to).count();
    moved.there_bytes += there as u64 * PAGE_BYTES;
    let wanted = elsewhere(&before);
    if wanted.is_empty() {
        return Ok(());
    }

    let exclusive = match device {
        Some(_) if !job.shared => device::exclusive(root, job.pid, window),
        _ => None,
    };
    let began = Instant::now();
    let mut wanted_now = wanted.clone();
    if let Some(device) = device.filter(|_| job.shared || exclusive.is_some()) {
        let node_of = |index: usize| before.get(index).copied().unwrap_or(-1);
        let own = |index: usize| {
            let own = exclusive
                .as_ref()
                .is_none_or(|own| own.get(index) == Some(&true));
            own || node_of(index) < 0
        };
        let is_elsewhere = |index: usize| node_of(index) >= 0 && node_of(index) != to;
        for run in device::runs(&pages, is_elsewhere, own) {
            // What the device refuses, the kernel's own call moves, or says why not.
            moved.device_bytes += device.move_range(run, job.to).unwrap_or_default();
        }
        wanted_now = elsewhere(&syscalls::nodes_of(job.pid, &pages)?);
    }
    let first = first_of_each(&wanted_now, HUGE_BYTES as u64);
    if !first.is_empty() {
        syscalls::move_pages(job.pid, &first, job.to, job.shared)?;
    }
    let mut left = elsewhere(&syscalls::nodes_of(job.pid, &pages)?);
    let mut refused = BTreeMap::new();
    // Each turn tries what is left and was not refused, and ends when none of that moves.
    loop {
        let mut lot = left.clone();
        lot.retain(|page| !refused.contains_key(page));
        if lot.is_empty() {
            break;
        }
        let status = syscalls::move_pages(job.pid, &lot, job.to, job.shared)?;
        for (page, status) in lot.iter().zip(&status) {
            if *status < 0 && *status != syscalls::NOT_REACHED {
                refused.insert(*page, *status);
            }
        }
        let before = left.len();
        left = elsewhere(&syscalls::nodes_of(job.pid, &pages)?);
        if left.len() >= before {
            break;
        }
    }
    moved.ns += u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);

    for page in &left {
        let reason = refused
            .get(page)
            .map_or("the kernel gives no reason", |status| reason(*status));
        *moved.left_bytes.entry(reason.to_owned()).or_default() += PAGE_BYTES;
    }
    let after = syscalls::nodes_of(job.pid, &wanted)?;
    let there = after.iter().filter(|node| **node == to).count();
    moved.moved_bytes += there as u64 * PAGE_BYTES;
    Ok(())
}

/// Of each aligned block the first address.
fn first_of_each(pages: &[u64], block_bytes: u64) -> Vec<u64> {
    let mut first: Vec<u64> = Vec::new();
    for page in pages {
        let block = page / block_bytes;
        if first.last().is_none_or(|last| last / block_bytes != block) {
            first.push(*page);
        }
    }
    first
}

/// Why a page has stayed, in words.
fn reason(status: i32) -> &'static str {
    match -status {
        libc::EBUSY => "in use (EBUSY)",
        libc::EACCES => "mapped by others: --shared (EACCES)",
        libc::ENOMEM => "no memory on the node (ENOMEM)",
        libc::EAGAIN => "pinned or changing (EAGAIN)",
        libc::EIO => "copy failed (EIO)",
        libc::ENOENT => "not there (ENOENT)",
        libc::EFAULT => "not to be moved (EFAULT)",
        _ => "other reasons",
    }
}

#[derive(Serialize)]
struct Told<'a> {
    pid: u32,
    node: u32,
    #[serde(flatten)]
    moved: &'a Moved,
    engine_bytes: Option<u64>,
    front: Front,
}

fn tell(root: &Root, job: &Job, moved: &Moved, by_engines: Option<u64>, json: bool) -> Result<()> {
    let front = Front::read(root);
    if json {
        return say::print_json(&Told {
            pid: job.pid,
            node: job.to,
            moved,
            engine_bytes: by_engines,
            front,
        });
    }
    let mut table = say::table(&["", "bytes", ""]);
    let rate = say::rate(moved.moved_bytes, moved.ns);
    let took = format!("{:.1} ms, {rate:.1} GB/s", moved.ns as f64 / 1e6);
    table.add_row(["moved".to_owned(), say::size(moved.moved_bytes), took]);
    if let Some(bytes) = by_engines {
        let note = "by all migrations of this time";
        table.add_row(["by engines".into(), say::size(bytes), note.into()]);
    }
    table.add_row([
        format!("on node {} before", job.to),
        say::size(moved.there_bytes),
        String::new(),
    ]);
    for (reason, bytes) in &moved.left_bytes {
        table.add_row(["left".to_owned(), say::size(*bytes), reason.clone()]);
    }
    say::print(&table.trim_fmt())?;
    if !front.is_on() && by_engines.is_none_or(|bytes| bytes == 0) {
        say::print("The CPU has copied. To have engines do it, see `ptdma status`.")?;
    }
    Ok(())
}

/// Moves a range of this process; for [`crate::bench`].
pub(crate) fn move_own(
    root: &Root,
    device: Option<&Device>,
    range: Range,
    to: u32,
) -> Result<Moved> {
    let job = Job {
        pid: std::process::id(),
        to,
        ranges: Vec::new(),
        shared: false,
    };
    let mut moved = Moved::default();
    for window in range.windows(WINDOW_BYTES) {
        move_window(root, &job, device, window, &mut moved)
            .with_context(|| format!("cannot move own memory to node {to}"))?;
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_page_of_each_huge_page_goes_first() {
        let pages = [0x1ff000, 0x200000, 0x201000, 0x600000];
        assert_eq!(
            first_of_each(&pages, HUGE_BYTES as u64),
            [0x1ff000, 0x200000, 0x600000]
        );
    }

    #[test]
    fn only_what_both_name_is_moved() {
        let range = |start, end| Range { start, end };
        let all = [range(0x1000, 0x5000), range(0x8000, 0x9000)];
        assert_eq!(chosen(&all, &[]), all);
        assert_eq!(
            chosen(&all, &[range(0x4000, 0x9000)]),
            [range(0x4000, 0x5000), range(0x8000, 0x9000)]
        );
        assert!(chosen(&all, &[range(0x6000, 0x7000)]).is_empty());
    }

    #[test]
    fn refusals_say_what_to_do() {
        let text = |code| format!("{:#}", explained(io::Error::from_raw_os_error(code), 7));
        assert!(text(libc::EPERM).contains("root"));
        assert!(text(libc::ESRCH).contains("process 7: there is no such process"));
    }

    #[test]
    fn own_memory_moves_to_the_node_that_it_is_on() -> Result<()> {
        let mut memory = syscalls::HugeMemory::new(HUGE_BYTES, false)?;
        memory.words().fill(3);
        let range = memory.range();
        let nodes = syscalls::nodes_of(std::process::id(), &syscalls::pages_of(range));
        let Ok(nodes) = nodes else {
            eprintln!("SKIPPED: this kernel has no move_pages(2)");
            return Ok(());
        };
        let node = u32::try_from(nodes[0])?;
        let moved = move_own(&Root::real(), None, range, node)?;
        assert_eq!(moved.left(), 0);
        assert_eq!(moved.there_bytes + moved.moved_bytes, HUGE_BYTES as u64);
        assert!(memory.words().iter().all(|word| *word == 3));
        Ok(())
    }
}
