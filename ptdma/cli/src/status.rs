//! `ptdma status`: what there is, what it does, and what to do next.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::bench::{ALL_TO_THE_CPU, SMALLEST};
use crate::counts::{Counts, Front, PARAMETERS};
use crate::device;
use crate::say;
use crate::sysfs::{Root, text};

const DEVICES: &str = "sys/bus/pci/devices";
/// A PTDMA function: Linux's own driver, `ptdma`, binds this one.
const VENDOR: &str = "0x1022";
const DEVICE: &str = "0x1498";
const DRIVER: &str = "ptdma_migrator";

/// A PTDMA function.
#[derive(Debug, Serialize)]
struct Function {
    address: String,
    node: Option<u32>,
    /// Functions below the same port of the root share its way to memory.
    port: Option<String>,
    driver: Option<String>,
    state: Option<String>,
    engine: Option<String>,
    submitted_bytes: Option<u64>,
    failed: Option<u64>,
    hangs: Option<u64>,
}

/// All of it.
#[derive(Debug, Serialize)]
struct Status {
    functions: Vec<Function>,
    counts: Option<Counts>,
    front: Front,
    /// There is the device that moves batches of small pages.
    device: bool,
    next: Option<String>,
}

/// Looks, and tells.
pub(crate) fn run(root: &Root, json: bool) -> Result<bool> {
    let status = look(root);
    if json {
        say::print_json(&status)?;
    } else {
        print(&status)?;
    }
    Ok(true)
}

fn look(root: &Root) -> Status {
    let functions = functions(root);
    let counts = Counts::read(root);
    let front = Front::read(root);
    let smallest = root.text(&format!("{PARAMETERS}/{SMALLEST}"));
    let next = next_step(&functions, counts.as_ref(), front).or_else(|| {
        (smallest.as_deref() == Some(ALL_TO_THE_CPU)).then(|| {
            format!("All batches are left to the CPU: write 0 to /{PARAMETERS}/{SMALLEST}.")
        })
    });
    Status {
        functions,
        counts,
        front,
        device: root.has(device::PATH),
        next,
    }
}

fn functions(root: &Root) -> Vec<Function> {
    let entries = fs::read_dir(root.path(DEVICES)).into_iter().flatten();
    let mut found: Vec<Function> = entries
        .filter_map(|entry| function(&entry.ok()?.path()))
        .collect();
    found.sort_by(|a, b| a.address.cmp(&b.address));
    found
}

fn function(folder: &Path) -> Option<Function> {
    let get = |name: &str| text(&folder.join(name));
    if get("vendor")? != VENDOR || get("device")? != DEVICE {
        return None;
    }
    let number = |name: &str| get(name)?.parse().ok();
    let name_of = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    let driver = fs::read_link(folder.join("driver")).ok();
    Some(Function {
        address: name_of(folder)?,
        // -1 where the firmware does not say.
        node: get("numa_node").and_then(|node| node.parse().ok()),
        port: fs::canonicalize(folder)
            .ok()
            .and_then(|path| name_of(path.parent()?)),
        driver: driver.and_then(|path| name_of(&path)),
        state: get("ptdma/state"),
        engine: get("ptdma/engine"),
        submitted_bytes: number("ptdma/submitted_bytes"),
        failed: number("ptdma/failed"),
        hangs: number("ptdma/hangs"),
    })
}

/// What keeps engines from copying, and how to change that.
fn next_step(functions: &[Function], counts: Option<&Counts>, front: Front) -> Option<String> {
    let ours = |function: &&Function| function.driver.as_deref() == Some(DRIVER);
    let running = |function: &&Function| function.state.as_deref() == Some("running");
    if functions.is_empty() {
        return Some(
            "This machine shows no PTDMA function (lspci -d 1022:1498). Some firmware can hide them."
                .to_owned(),
        );
    }
    let Some(counts) = counts else {
        return Some(
            "The module is not loaded: systemctl start ptdma-migrator, or modprobe ptdma_migrator."
                .to_owned(),
        );
    };
    if counts.quarantined != 0 {
        return Some(format!(
            "{} folios are kept because an engine may still write to them: see dmesg.",
            counts.quarantined
        ));
    }
    if let Some(other) = functions.iter().find(|function| !ours(function)) {
        let driver = other.driver.as_deref().unwrap_or("no driver");
        return Some(format!(
            "{} has {driver}. Give it to {DRIVER}: driver_override, see the documentation of the module.",
            other.address
        ));
    }
    if let Some(down) = functions.iter().find(|function| !running(function)) {
        let state = down.state.as_deref().unwrap_or("unknown");
        return Some(format!("{} is {state}: see dmesg.", down.address));
    }
    match front {
        Front::Livepatch | Front::Migrator => None,
        Front::LivepatchInTransition => Some(
            "The livepatch waits until no task is inside of what it replaces: wait.".to_owned(),
        ),
        Front::MigratorOff => {
            Some("Switch on: echo 1 > /sys/module/ptdma_migrator/parameters/offloading.".to_owned())
        }
        Front::None => Some(
            "Switch on: systemctl start ptdma-migrator, or modprobe ptdma_livepatch.".to_owned(),
        ),
    }
}

fn print(status: &Status) -> Result<()> {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let number = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
    if !status.functions.is_empty() {
        let mut table = say::table(&[
            "function", "node", "port", "driver", "state", "copied", "failed", "hangs",
        ]);
        for function in &status.functions {
            table.add_row([
                function.address.clone(),
                function
                    .node
                    .map_or("-".to_owned(), |node| node.to_string()),
                text(&function.port),
                text(&function.driver),
                text(&function.state),
                function.submitted_bytes.map_or("-".to_owned(), say::size),
                number(function.failed),
                number(function.hangs),
            ]);
        }
        say::print(&table.trim_fmt())?;
        say::print("")?;
    }
    if let Some(counts) = &status.counts {
        let mut table = say::table(&["since load", ""]);
        for (name, value) in [
            ("folios by engines", counts.folios.to_string()),
            ("bytes by engines", say::size(counts.bytes)),
            (
                "folios that fell back to the CPU",
                counts.failures.to_string(),
            ),
            ("batches", counts.batches.to_string()),
            ("batches too small for engines", counts.declined.to_string()),
            ("batches that found all in use", counts.busy.to_string()),
            ("folios in quarantine", counts.quarantined.to_string()),
        ] {
            table.add_row([name.to_owned(), value]);
        }
        say::print(&table.trim_fmt())?;
        say::print("")?;
    }
    say::print(&format!("Offloading is {}.", status.front.describe()))?;
    if status.device {
        say::print("The device is there: small pages in batches, for processes that open it.")?;
    }
    if let Some(next) = &status.next {
        say::print(next)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A machine with two functions of ours and a network card.
    fn machine() -> Result<(tempfile::TempDir, Root)> {
        let folder = tempfile::tempdir()?;
        let root = Root::at(folder.path());
        for (address, vendor, device, state) in [
            ("0000:21:00.0", VENDOR, DEVICE, "running"),
            ("0000:22:00.0", VENDOR, DEVICE, "running"),
            ("0000:01:00.0", "0x8086", "0x10d3", ""),
        ] {
            let place = root.path(&format!("{DEVICES}/{address}"));
            fs::create_dir_all(place.join("ptdma"))?;
            fs::write(place.join("vendor"), format!("{vendor}\n"))?;
            fs::write(place.join("device"), format!("{device}\n"))?;
            fs::write(place.join("numa_node"), "1\n")?;
            fs::write(place.join("ptdma/state"), state)?;
            symlink("../../bus/pci/drivers/ptdma_migrator", place.join("driver"))?;
        }
        Ok((folder, root))
    }

    fn load(root: &Root) -> Result<()> {
        fs::create_dir_all(root.path(crate::counts::PARAMETERS))?;
        for name in [
            "folios_migrated",
            "bytes_migrated",
            "folios_failures",
            "batches",
            "batches_declined",
            "batches_busy",
            "folios_quarantined",
        ] {
            root.write(&format!("{}/{name}", crate::counts::PARAMETERS), "0\n")?;
        }
        Ok(())
    }

    fn next(root: &Root) -> String {
        look(root).next.unwrap_or_default()
    }

    #[test]
    fn each_obstacle_has_a_next_step() -> Result<()> {
        let empty = tempfile::tempdir()?;
        assert!(next(&Root::at(empty.path())).contains("no PTDMA function"));

        let (_folder, root) = machine()?;
        assert_eq!(look(&root).functions.len(), 2);
        assert!(next(&root).contains("not loaded"), "{}", next(&root));
        load(&root)?;
        assert!(next(&root).contains("ptdma_livepatch"), "{}", next(&root));

        let livepatch = "sys/kernel/livepatch/ptdma_livepatch";
        fs::create_dir_all(root.path(livepatch))?;
        root.write(&format!("{livepatch}/enabled"), "1")?;
        root.write(&format!("{livepatch}/transition"), "1")?;
        assert!(next(&root).contains("wait"), "{}", next(&root));
        root.write(&format!("{livepatch}/transition"), "0")?;
        assert_eq!(next(&root), "");
        assert!(look(&root).front.is_on());
        let smallest = format!("{PARAMETERS}/{SMALLEST}");
        root.write(&smallest, ALL_TO_THE_CPU)?;
        assert!(next(&root).contains("left to the CPU"), "{}", next(&root));
        root.write(&smallest, "0")?;

        root.write(&format!("{DEVICES}/0000:22:00.0/ptdma/state"), "suspect")?;
        assert!(
            next(&root).contains("22:00.0 is suspect"),
            "{}",
            next(&root)
        );
        let driver = root.path(&format!("{DEVICES}/0000:21:00.0/driver"));
        fs::remove_file(&driver)?;
        assert!(
            next(&root).contains("21:00.0 has no driver"),
            "{}",
            next(&root)
        );
        let file = format!("{}/folios_quarantined", crate::counts::PARAMETERS);
        root.write(&file, "3")?;
        assert!(
            next(&root).starts_with("3 folios are kept"),
            "{}",
            next(&root)
        );
        Ok(())
    }

    #[test]
    fn a_patched_kernel_is_told_by_its_migrator() -> Result<()> {
        let (_folder, root) = machine()?;
        load(&root)?;
        fs::create_dir_all(root.path("sys/kernel/mm/migrate_offload"))?;
        root.write("sys/kernel/mm/migrate_offload/migrator", "none\n")?;
        assert!(next(&root).contains("offloading"), "{}", next(&root));
        root.write("sys/kernel/mm/migrate_offload/migrator", "ptdma_migrator\n")?;
        assert_eq!(look(&root).front, Front::Migrator);
        assert_eq!(next(&root), "");
        Ok(())
    }
}
