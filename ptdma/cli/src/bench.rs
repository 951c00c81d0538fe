//! `ptdma bench`: memory of this program moved by the engines and by the CPU, every byte compared.

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::counts::{Counts, Front, PARAMETERS};
use crate::device::Device;
use crate::migrate;
use crate::say;
use crate::syscalls::HugeMemory;
use crate::sysfs::Root;

/// What is to be measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) mib: u32,
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) rounds: u32,
    /// In small pages.
    pub(crate) small: bool,
}

/// A way to copy, and what it took.
#[derive(Debug, Serialize)]
struct Measured {
    by: &'static str,
    moved_bytes: u64,
    engine_bytes: u64,
    ns: u64,
}

/// Leaves all batches to the CPU, until it is dropped.
struct EnginesOff<'a> {
    root: &'a Root,
    before: String,
}

/// Batches below this are left to the CPU, in KiB: the largest number that the module takes.
pub(crate) const SMALLEST: &str = "min_batch_kb";
pub(crate) const ALL_TO_THE_CPU: &str = "1048576";

impl<'a> EnginesOff<'a> {
    fn new(root: &'a Root) -> Result<Self> {
        let file = format!("{PARAMETERS}/{SMALLEST}");
        let before = root
            .text(&file)
            .with_context(|| format!("cannot read /{file}"))?;
        ensure!(
            before != ALL_TO_THE_CPU,
            "all batches are left to the CPU: another benchmark runs, or one was killed; \
             then write 0 to /{file}"
        );
        root.write(&file, ALL_TO_THE_CPU)
            .context("to measure the CPU beside the engines takes root")?;
        Ok(Self { root, before })
    }
}

impl Drop for EnginesOff<'_> {
    fn drop(&mut self) {
        let file = format!("{PARAMETERS}/{SMALLEST}");
        if let Err(error) = self.root.write(&file, &self.before) {
            eprintln!("ptdma: {error:#}: write {} there", self.before);
        }
    }
}

/// Measures, and tells. False if the engines copied nothing.
pub(crate) fn run(root: &Root, plan: &Plan, json: bool) -> Result<bool> {
    ensure!(plan.from != plan.to, "--from and --to are the same node");
    for node in [plan.from, plan.to] {
        ensure!(
            root.has(&format!("sys/devices/system/node/node{node}")),
            "there is no node {node}: see /sys/devices/system/node"
        );
    }
    let device = Device::of(root, std::process::id()).filter(|_| plan.small);
    let front = Front::read(root);
    let leads = match plan.small {
        true => device.is_some() || front == Front::Migrator,
        false => front.is_on(),
    };
    ensure!(
        leads && Counts::read(root).is_some(),
        "engines copy no such pages on this machine now: see `ptdma status`"
    );
    let mut memory = HugeMemory::new((plan.mib as usize) << 20, plan.small)?;
    memory.bind([plan.from, plan.to])?;
    fill(memory.words());
    migrate::move_own(root, None, memory.range(), plan.from)?;

    let cpu = {
        let _off = EnginesOff::new(root)?;
        measure(root, plan, None, &mut memory, "CPU")?
    };
    let engines = measure(root, plan, device.as_ref(), &mut memory, "engines")?;
    let copied = engines.engine_bytes != 0;
    if json {
        say::print_json(&[&cpu, &engines])?;
        return Ok(copied);
    }
    let mut table = say::table(&["by", "moved", "by engines", "ms", "GB/s", "beside the CPU"]);
    for measured in [&cpu, &engines] {
        table.add_row([
            measured.by.to_owned(),
            say::size(measured.moved_bytes),
            say::size(measured.engine_bytes),
            format!("{:.1}", measured.ns as f64 / 1e6),
            format!("{:.2}", say::rate(measured.moved_bytes, measured.ns)),
            format!("{:.2}", cpu.ns as f64 / measured.ns.max(1) as f64),
        ]);
    }
    say::print(&table.trim_fmt())?;
    let call = match device {
        Some(_) => "move_pages(2) or of the device",
        None => "move_pages(2)",
    };
    say::print(&format!(
        "Time is that of {call}, all of it. Every byte was compared."
    ))?;
    if !copied {
        say::print("The engines copied nothing: is there memory in such pages on both nodes?")?;
    }
    Ok(copied)
}

fn measure(
    root: &Root,
    plan: &Plan,
    device: Option<&Device>,
    memory: &mut HugeMemory,
    by: &'static str,
) -> Result<Measured> {
    let before = Counts::read(root).unwrap_or_default();
    let mut measured = Measured {
        by,
        moved_bytes: 0,
        engine_bytes: 0,
        ns: 0,
    };
    for _ in 0..plan.rounds {
        for node in [plan.to, plan.from] {
            let moved = migrate::move_own(root, device, memory.range(), node)?;
            measured.moved_bytes += moved.moved_bytes;
            measured.ns += moved.ns;
        }
        check(memory.words())?;
    }
    let after = Counts::read(root).unwrap_or_default();
    measured.engine_bytes = after.bytes_since(&before);
    Ok(measured)
}

/// Each word is unlike its neighbours, and unlike those of other pages.
fn pattern(index: usize) -> u64 {
    // An odd constant: a multiplication that loses nothing.
    (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn fill(words: &mut [u64]) {
    for (index, word) in words.iter_mut().enumerate() {
        *word = pattern(index);
    }
}

fn check(words: &[u64]) -> Result<()> {
    let wrong = words
        .iter()
        .enumerate()
        .find(|(index, word)| **word != pattern(*index));
    match wrong {
        None => Ok(()),
        Some((index, _)) => anyhow::bail!(
            "byte {} is wrong: switch the engines off, and report this",
            index * size_of::<u64>()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_word_is_found() {
        let mut words = [0; 4096];
        fill(&mut words);
        assert!(check(&words).is_ok());
        words[4095] ^= 1 << 63;
        let error = check(&words).unwrap_err().to_string();
        assert!(error.contains("byte 32760"), "{error}");
    }

    #[test]
    fn the_threshold_is_put_back() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let root = Root::at(folder.path());
        std::fs::create_dir_all(root.path(PARAMETERS))?;
        let file = format!("{PARAMETERS}/{SMALLEST}");
        root.write(&file, "128")?;
        let off = EnginesOff::new(&root)?;
        assert_eq!(root.text(&file).as_deref(), Some(ALL_TO_THE_CPU));
        drop(off);
        assert_eq!(root.text(&file).as_deref(), Some("128"));
        Ok(())
    }
}
