//! The engines from user space, by VFIO, on an unmodified kernel of Debian.
//!
//! The program is `vfio-test` of the crate `tests/guest`. It holds functions and does what it is
//! asked, so that faults can be injected in between.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Check, DEBIAN, Suite};
use crate::machine::{Guest, Iommu, Job, Options};

/// Functions of the mover, and one that is driven by hand.
const MOVERS: usize = 4;
const DEVICES: usize = MOVERS + 1;
const LONE: usize = MOVERS;

/// What the program has an engine copy that is driven by hand, in bytes.
const LONE_LEN_BYTES: u64 = 64 << 10;

/// A program that holds functions ends with its check.
const SERVE_LIMIT: Duration = Duration::from_secs(300);

/// How long the program may take to have engines at work.
const WORK_LIMIT: Duration = Duration::from_secs(20);
const WORK_POLL: Duration = Duration::from_millis(50);

pub(super) const SUITES: &[Suite] = &[
    Suite {
        name: "vfio",
        about: "a program copies its memory on Debian's own kernel, and survives every fault",
        kernels: DEBIAN,
        machine: || Options {
            devices: DEVICES,
            iommu: Iommu::Intel,
            // The kinds of memory take four at a time.
            append: "hugepages=16".into(),
            ..Options::default()
        },
        checks: &[
            Check::new("copies", copies).quick(DEBIAN),
            Check::new("memory", memory),
            Check::new("threads", threads),
            Check::new("guest-memory", guest_memory),
            Check::new("failed-descriptors", failed_descriptors),
            Check::new("hang", hang),
            Check::new("absent", absent),
            Check::new("reset", reset),
            Check::new("lost-interrupts", lost_interrupts),
            Check::new("late", late),
            Check::new("cut-off", cut_off),
            Check::new("killed", killed),
            Check::new("errors", errors),
            Check::new("limits", limits),
            Check::new("other-driver", other_driver),
            Check::new("copy-list", copy_list),
            Check::new("released", released),
            Check::new("moves-a-guest", moves_a_guest),
            Check::new("post-copy", post_copy),
            Check::new("restores-a-guest", restores_a_guest),
        ],
    },
    Suite {
        name: "vfio-no-iommu",
        about: "a machine without an IOMMU is refused, with what to do",
        kernels: DEBIAN,
        machine: || Options {
            devices: 1,
            ..Options::default()
        },
        checks: &[Check::new("refused", no_iommu)],
    },
];

fn addresses(guest: &Guest) -> Vec<String> {
    (0..DEVICES)
        .map(|index| guest.options().address_of(index))
        .collect()
}

/// Gives all functions to vfio-pci.
fn take(guest: &mut Guest) -> Result<()> {
    let all = addresses(guest).join(" ");
    guest.ok(&format!(
        "modprobe vfio_iommu_type1 && modprobe vfio-pci && vfio-test take {all}"
    ))?;
    Ok(())
}

/// A program that holds the functions of the mover.
fn serve(guest: &mut Guest) -> Result<Job> {
    take(guest)?;
    let held = addresses(guest)[..MOVERS].join(" ");
    guest.ok("rm -f /vfio-test.sock /vfio-test.ended")?;
    let job = guest.start(
        &format!("vfio-test serve {held}; code=$?; touch /vfio-test.ended; exit $code"),
        SERVE_LIMIT,
    )?;
    let listens = guest.sh("for i in $(seq 300); do [ -S /vfio-test.sock ] && exit 0; \
         [ -e /vfio-test.ended ] && exit 1; sleep 0.1; done; exit 1")?;
    if listens.code != 0 {
        guest.kill(&job)?;
        let out = guest.wait(&job)?;
        anyhow::bail!("the program does not hold its functions: {}", out.text);
    }
    Ok(job)
}

fn ask(guest: &mut Guest, words: &str) -> Result<String> {
    let text = guest.ok(&format!("vfio-test ask {words}"))?;
    Ok(text.trim().to_owned())
}

/// Has the program close everything and end.
fn end(guest: &mut Guest, job: &Job) -> Result<()> {
    ask(guest, "end")?;
    guest.wait_ok(job)?;
    let busy = guest.server()?.programmed()?;
    ensure!(busy.is_empty(), "queues of {busy:?} are still set up");
    Ok(())
}

/// The number behind `name=` in an answer.
fn number(answer: &str, name: &str) -> Result<u64> {
    answer
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .and_then(|digits| digits.parse().ok())
        .with_context(|| format!("no {name} in: {answer}"))
}

/// Copies, and all of it by engines of as many channels.
fn copy_whole(guest: &mut Guest, how: &str, channels: u64) -> Result<String> {
    let answer = ask(guest, &format!("copy {how}"))?;
    ensure!(
        number(&answer, "engines")? == number(&answer, "ranges")?
            && number(&answer, "channels")? == channels,
        "not whole, or not by {channels} channels: {answer}"
    );
    Ok(answer)
}

/// Brings `count` channels back, and has all of them copy.
fn revive(guest: &mut Guest, count: u64) -> Result<()> {
    let answer = ask(guest, "revive")?;
    ensure!(number(&answer, "revived")? == count, "{answer}");
    copy_whole(guest, "asleep", MOVERS as u64)?;
    Ok(())
}

fn active(guest: &mut Guest) -> Result<u64> {
    number(&ask(guest, "channels")?, "active")
}

fn copies(guest: &mut Guest) -> Result<String> {
    let job = serve(guest)?;
    let mut said = Vec::new();
    for how in ["polled", "asleep"] {
        guest.server()?.reset_counters()?;
        let answer = copy_whole(guest, how, MOVERS as u64)?;
        let counted = guest.server()?.counters()?;
        ensure!(
            counted.descriptors == number(&answer, "descriptors")?
                && counted.bytes == number(&answer, "bytes")?
                && counted.errors == 0,
            "the devices have counted otherwise: {counted:?}, {answer}"
        );
        if how == "polled" {
            ensure!(counted.interrupts == 0, "interrupts nobody wants");
        }
        said.push(format!(
            "{how}: {} ranges, {} descriptors, {} + {} accesses, {} interrupts",
            number(&answer, "ranges")?,
            counted.descriptors,
            counted.mmio_reads,
            counted.mmio_writes,
            counted.interrupts
        ));
    }
    end(guest, &job)?;
    Ok(format!("{}: {}", guest.release(), said.join("; ")))
}

fn memory(guest: &mut Guest) -> Result<String> {
    let job = serve(guest)?;
    ask(guest, "kinds polled")?;
    let answer = ask(guest, "kinds asleep")?;
    end(guest, &job)?;
    let reach = guest.server()?.mapped_bytes()?;
    ensure!(
        reach.iter().all(|bytes| *bytes == 0),
        "functions that nobody holds reach {reach:?} bytes"
    );
    Ok(answer)
}

/// Memory of guests as rust-vmm's crate `vm-memory` has it: regions, holes, odd addresses.
fn guest_memory(guest: &mut Guest) -> Result<String> {
    let job = serve(guest)?;
    ask(guest, "guest polled")?;
    let answer = ask(guest, "guest asleep")?;
    ensure!(
        number(&answer, "dma_bytes")? > 2 << 20 && number(&answer, "compared")? == 4 << 20,
        "{answer}"
    );
    end(guest, &job)?;
    let reach = guest.server()?.mapped_bytes()?;
    ensure!(
        reach.iter().all(|bytes| *bytes == 0),
        "functions that nobody holds reach {reach:?} bytes"
    );
    Ok(answer)
}

fn threads(guest: &mut Guest) -> Result<String> {
    let job = serve(guest)?;
    ask(guest, "threads 2 4 polled")?;
    let answer = ask(guest, "threads 4 4 asleep")?;
    let channels = ask(guest, "channels")?;
    ensure!(number(&channels, "interrupts")? > 0, "{channels}");
    end(guest, &job)?;
    Ok(format!("{answer} {channels}"))
}

fn failed_descriptors(guest: &mut Guest) -> Result<String> {
    let job = serve(guest)?;
    // One byte of the destination fails whichever descriptor writes it, at every attempt.
    let byte = number(&ask(guest, "target")?, "target")? + (1 << 20);
    let touches = json!({"touches": {"start": byte, "len_bytes": 1}});
    let fault = json!({"trigger": touches, "kind": {"error": {"code": 19}}});
    for how in ["polled", "asleep"] {
        guest.server()?.fault(None, &fault)?;
        let answer = ask(guest, &format!("copy {how}"))?;
        ensure!(
            number(&answer, "failed")? >= 1
                && number(&answer, "failed")? + number(&answer, "engines")?
                    == number(&answer, "ranges")?
                && answer.contains("error-19"),
            "the descriptor with that byte fails: {answer}"
        );
        guest.server()?.clear_faults(None)?;
    }
    guest.server()?.fault(None, &fault)?;
    let answer = ask(guest, "copy asleep repair")?;
    ensure!(
        number(&answer, "cpu")? >= 1 && number(&answer, "failed")? == 0,
        "the CPU repairs: {answer}"
    );
    guest.server()?.clear_faults(None)?;
    copy_whole(guest, "asleep", MOVERS as u64)?;
    end(guest, &job)?;
    Ok(answer)
}

/// An engine that hangs: one that halts when it is told to, and one that only a reset stops.
fn hang(guest: &mut Guest) -> Result<String> {
    let job = serve(guest)?;
    for (how, haltable) in [("polled", true), ("asleep", false)] {
        let stall = json!({"stall": {"for": "ever", "haltable": haltable}});
        let fault = json!({"trigger": {"at": 2}, "kind": stall, "times": 1});
        guest.server()?.fault(Some(2), &fault)?;
        let answer = ask(guest, &format!("copy {how}"))?;
        ensure!(
            number(&answer, "engines")? == number(&answer, "ranges")?,
            "the others take its work: {answer}"
        );
        guest.server()?.clear_faults(None)?;
        let still = active(guest)?;
        ensure!(still >= 3, "{still} channels are left");
        revive(guest, MOVERS as u64 - still)?;
    }
    let channels = ask(guest, "channels")?;
    ensure!(number(&channels, "hangs")? >= 2, "nothing hung: {channels}");
    end(guest, &job)?;
    Ok(channels)
}

/// A function that reads all ones, for a while.
fn absent(guest: &mut Guest) -> Result<String> {
    let job = serve(guest)?;
    let fault = json!({"trigger": {"at": 1}, "kind": {"all_ones": {}}, "times": 1});
    guest.server()?.fault(Some(0), &fault)?;
    // No byte is claimed that is not right; what the engine may still write is named.
    let answer = ask(guest, "copy asleep")?;
    let sum: u64 = ["engines", "failed", "skipped"]
        .into_iter()
        .map(|name| number(&answer, name))
        .sum::<Result<u64>>()?;
    ensure!(sum == number(&answer, "ranges")?, "{answer}");
    ensure!(active(guest)? == 3, "a channel that is gone is in service");
    let without = copy_whole(guest, "polled", 3)?;
    guest.server()?.clear_faults(None)?;
    revive(guest, 1)?;
    end(guest, &job)?;
    Ok(format!(
        "quarantined={}; then {without}",
        number(&answer, "quarantined")?
    ))
}

/// Somebody resets a function behind the program's back.
fn reset(guest: &mut Guest) -> Result<String> {
    let job = serve(guest)?;
    let address = guest.options().address_of(1);
    guest.ok(&format!("echo 1 > /sys/bus/pci/devices/{address}/reset"))?;
    let answer = ask(guest, "copy asleep")?;
    ensure!(
        number(&answer, "engines")? == number(&answer, "ranges")?,
        "the others take its work: {answer}"
    );
    let left = MOVERS as u64 - active(guest)?;
    revive(guest, left)?;
    end(guest, &job)?;
    Ok(format!("revived={left} {answer}"))
}

fn lost_interrupts(guest: &mut Guest) -> Result<String> {
    let job = serve(guest)?;
    let fault = json!({"trigger": "always", "kind": "lost_interrupt"});
    guest.server()?.reset_counters()?;
    guest.server()?.fault(None, &fault)?;
    let answer = copy_whole(guest, "asleep", MOVERS as u64)?;
    guest.server()?.clear_faults(None)?;
    let lost = guest.server()?.counters()?.interrupts_lost;
    copy_whole(guest, "asleep", MOVERS as u64)?;
    end(guest, &job)?;
    Ok(format!("interrupts_lost={lost} {answer}"))
}

fn late(guest: &mut Guest) -> Result<String> {
    let job = serve(guest)?;
    let slow = json!({"trigger": {"every": {"n": 10}}, "kind": {"delay": {"ns": 20_000_000}}});
    guest.server()?.fault(None, &slow)?;
    copy_whole(guest, "polled", MOVERS as u64)?;
    let answer = copy_whole(guest, "asleep", MOVERS as u64)?;
    let struck = guest.server()?.counters()?.faults;
    ensure!(struck > 0, "no descriptor was late");
    guest.server()?.clear_faults(None)?;
    end(guest, &job)?;
    Ok(answer)
}

/// An engine hangs with a copy in work, and goes on later. With its destination unmapped
/// meanwhile, it writes nothing; with the mapping kept, it writes all.
fn cut_off(guest: &mut Guest) -> Result<String> {
    let job = serve(guest)?;
    let address = guest.options().address_of(LONE);
    let stall = json!({"stall": {"for": "ever"}});
    let fault = json!({"trigger": "now", "kind": stall, "times": 1});
    let mut said = Vec::new();
    for unmap in [false, true] {
        ask(guest, &format!("lone {address}"))?;
        guest.server()?.fault(Some(LONE), &fault)?;
        ask(guest, "hang")?;
        if unmap {
            ask(guest, "unmap")?;
        }
        guest.server()?.clear_faults(Some(LONE))?;
        let answer = ask(guest, "settle")?;
        let (written, code) = (number(&answer, "written")?, number(&answer, "code").ok());
        match unmap {
            true => ensure!(
                written == 0 && code.is_some(),
                "unmapped, and the engine ends otherwise: {answer}"
            ),
            false => ensure!(
                written == LONE_LEN_BYTES && code.is_none(),
                "mapped, and the engine ends otherwise: {answer}"
            ),
        }
        said.push(format!("unmapped {unmap}: {answer}"));
        ask(guest, "lone-end")?;
    }
    end(guest, &job)?;
    Ok(said.join("; "))
}

/// SIGKILL with engines at work: the kernel leaves nothing running, and the next process begins
/// at once.
fn killed(guest: &mut Guest) -> Result<String> {
    let job = serve(guest)?;
    copy_whole(guest, "asleep", MOVERS as u64)?;
    let stall = json!({"stall": {"for": "ever"}});
    let fault = json!({"trigger": {"at": 2}, "kind": stall, "times": 1});
    guest.server()?.fault(None, &fault)?;
    let before = guest.server()?.counters()?.faults;
    let masters = guest.server()?.bus_masters()?;
    ensure!(
        masters == [0, 1, 2, 3],
        "{masters:?} may write memory while their engines are at work"
    );
    let asker = guest.start("vfio-test ask copy asleep", Duration::from_secs(60))?;
    let began = Instant::now();
    while guest.server()?.counters()?.faults <= before {
        ensure!(began.elapsed() < WORK_LIMIT, "no engine hangs");
        std::thread::sleep(WORK_POLL);
    }
    guest.kill(&job)?;
    guest.wait(&job)?;
    guest.wait(&asker)?;
    // A process that was killed closes its files on its way out, function by function.
    guest.ok("while pidof vfio-test > /dev/null; do sleep 0.05; done")?;
    let masters = guest.server()?.bus_masters()?;
    let busy = guest.server()?.programmed()?;
    ensure!(
        masters.is_empty() && busy.is_empty(),
        "after the kill {masters:?} may write memory and {busy:?} are set up"
    );
    guest.server()?.clear_faults(None)?;
    let job = serve(guest)?;
    let answer = copy_whole(guest, "asleep", MOVERS as u64)?;
    end(guest, &job)?;
    Ok(answer)
}

fn errors(guest: &mut Guest) -> Result<String> {
    take(guest)?;
    let address = guest.options().address_of(0);
    let answer = guest.ok(&format!("vfio-test errors arguments {address}"))?;
    let other = guest.options().address_of(1);
    guest.ok(&format!("vfio-test errors other-space {address} {other}"))?;
    guest.ok(&format!(
        "vfio-test give-back {address} && vfio-test errors not-taken {address}"
    ))?;
    let job = serve(guest)?;
    ask(guest, "in-use")?;
    guest.ok(&format!("vfio-test errors in-use {address}"))?;
    end(guest, &job)?;
    Ok(answer.trim().to_owned())
}

/// A user without rights, and one with a group of his own and the kernel's limit of locked memory.
fn limits(guest: &mut Guest) -> Result<String> {
    take(guest)?;
    let address = guest.options().address_of(0);
    let as_user = "chmod 666 /dev/vfio/vfio; vfio-test as-user";
    guest.ok(&format!("{as_user} errors no-permission {address}"))?;
    let group =
        format!("/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/{address}/iommu_group))");
    let answer = guest.ok(&format!(
        "chown 1000 {group} && {as_user} errors memlock {address}"
    ))?;
    Ok(answer.trim().to_owned())
}

/// Functions are taken from another driver, and go back to it.
fn other_driver(guest: &mut Guest) -> Result<String> {
    let all = addresses(guest);
    let (address, rest) = all.split_first().context("no functions")?;
    take(guest)?;
    guest.ok(&format!("vfio-test give-back {address} {}", rest.join(" ")))?;
    guest.ok("modprobe uio_pci_generic && \
              echo 1022 1498 > /sys/bus/pci/drivers/uio_pci_generic/new_id")?;
    let before = guest.ok("vfio-test list")?;
    ensure!(
        before.matches(" uio_pci_generic ").count() == DEVICES,
        "the other driver has not all functions: {before}"
    );
    let taken = guest.ok(&format!("vfio-test take {address}"))?;
    ensure!(
        taken.trim() == format!("{address} uio_pci_generic"),
        "{taken}"
    );
    let held = guest.ok("vfio-test list")?;
    ensure!(held.contains(&format!("{address} vfio-pci ")), "{held}");
    let given = guest.ok(&format!("vfio-test give-back {address}"))?;
    ensure!(
        given.trim() == format!("{address} uio_pci_generic"),
        "{given}"
    );
    guest.ok("rmmod uio_pci_generic")?;
    Ok(given.trim().to_owned())
}

/// The example `copy_list`, as the README starts it: it takes all functions from their driver and
/// gives them back.
fn copy_list(guest: &mut Guest) -> Result<String> {
    let all = addresses(guest).join(" ");
    take(guest)?;
    guest.ok(&format!("vfio-test give-back {all}"))?;
    guest.ok("modprobe uio_pci_generic && \
              { echo 1022 1498 > /sys/bus/pci/drivers/uio_pci_generic/new_id || true; }")?;
    for how in ["", " --polled"] {
        let text = guest.ok(&format!("copy-list --take{how}"))?;
        ensure!(
            text.contains(&format!("by {DEVICES} channel(s)"))
                && text.contains(" 0 page(s) wrong")
                && text.matches("with uio_pci_generic again").count() == DEVICES,
            "{text}"
        );
    }
    guest.ok("rmmod uio_pci_generic")?;
    Ok(String::new())
}

/// The administrator wants a function back: the program hears of it, closes it, and the driver
/// lets go.
fn released(guest: &mut Guest) -> Result<String> {
    let job = serve(guest)?;
    let address = guest.options().address_of(0);
    let unbind = guest.start(
        &format!("echo {address} > /sys/bus/pci/drivers/vfio-pci/unbind"),
        Duration::from_secs(60),
    )?;
    ask(guest, "release")?;
    ask(guest, "end")?;
    guest.wait_ok(&job)?;
    guest.wait_ok(&unbind)?;
    let left = guest.ok("vfio-test list")?;
    ensure!(
        left.contains(&format!("{address} none ")),
        "the driver has it still: {left}"
    );
    Ok(String::new())
}

/// The example `move_guest`: a guest's memory goes from node to node while its CPU writes.
fn moves_a_guest(guest: &mut Guest) -> Result<String> {
    /// Rounds after which the example pauses whatever is left: then it has not converged.
    const MOST_ROUNDS: u64 = 20;
    take(guest)?;
    let held = addresses(guest)[..MOVERS].join(" ");
    guest.server()?.reset_counters()?;
    let text = guest.ok_within(&format!("move-guest {held}"), Duration::from_secs(120))?;
    let line = |name: &str| {
        text.lines()
            .find(|line| line.starts_with(&format!("by={name} ")))
            .with_context(|| format!("nothing of {name}: {text}"))
    };
    let (engines, cpu) = (line("engines")?, line("cpu")?);
    ensure!(
        engines.contains("nodes=N0=2048->N1=2048 ") && cpu.contains("nodes=N1=2048->N0=2048 "),
        "pages are on other nodes: {text}"
    );
    for line in [engines, cpu] {
        let pages = number(line, "pages")?;
        ensure!(
            number(line, "rounds")? < MOST_ROUNDS
                && number(line, "pause_pages")? * 10 < pages
                && pages > 2048
                && number(line, "faults")? > 0,
            "it does not converge, or nobody wrote: {line}"
        );
        let copied = number(line, "dma_bytes")? + number(line, "cpu_bytes")?;
        ensure!(copied == pages * 4096, "bytes are missing: {line}");
    }
    ensure!(
        number(engines, "cpu_bytes")? == 0 && number(cpu, "dma_bytes")? == 0,
        "the wrong one copied: {text}"
    );
    let counted = guest.server()?.counters()?;
    ensure!(
        counted.bytes >= number(engines, "dma_bytes")?,
        "the devices have counted otherwise: {counted:?}"
    );
    Ok(format!("{engines}; {cpu}"))
}

/// Runs an example on the functions of the mover; returns what it says.
fn example(guest: &mut Guest, name: &str) -> Result<String> {
    take(guest)?;
    let held = addresses(guest)[..MOVERS].join(" ");
    guest.server()?.reset_counters()?;
    guest.ok_within(&format!("{name} {held}"), Duration::from_secs(120))
}

/// The line of an example that begins like this.
fn line_of<'a>(text: &'a str, begin: &str) -> Result<&'a str> {
    text.lines()
        .find(|line| line.starts_with(begin))
        .with_context(|| format!("nothing of {begin}: {text}"))
}

/// The example `post_copy`: a guest runs on its new memory while pages arrive as it touches them.
fn post_copy(guest: &mut Guest) -> Result<String> {
    /// Bytes of the guest, and its chunks of 64 KiB.
    const LEN_BYTES: u64 = 8 << 20;
    const CHUNKS: u64 = LEN_BYTES / (64 << 10);
    let text = example(guest, "post-copy")?;
    let (engines, cpu) = (line_of(&text, "by=engines ")?, line_of(&text, "by=cpu ")?);
    ensure!(
        engines.contains("nodes=N1=2048 ") && cpu.contains("nodes=N0=2048 "),
        "pages are on other nodes: {text}"
    );
    for line in [engines, cpu] {
        let touched = number(line, "touched_chunks")?;
        ensure!(
            touched > CHUNKS / 4 && touched + number(line, "untouched_chunks")? == CHUNKS,
            "the guest has not touched much: {line}"
        );
    }
    ensure!(
        number(engines, "dma_bytes")? == LEN_BYTES
            && number(engines, "cpu_bytes")? == 0
            && number(cpu, "dma_bytes")? == 0
            && number(cpu, "cpu_bytes")? == LEN_BYTES,
        "bytes are missing, or the wrong one copied: {text}"
    );
    let counted = guest.server()?.counters()?;
    ensure!(
        counted.bytes >= LEN_BYTES,
        "the devices have counted otherwise: {counted:?}"
    );
    Ok(format!("{engines}; {cpu}"))
}

/// The example `restore`: a packed snapshot and a golden image become guests.
fn restores_a_guest(guest: &mut Guest) -> Result<String> {
    let text = example(guest, "restore-guest")?;
    let mut said = Vec::new();
    for what in ["restore", "clone"] {
        let engines = line_of(&text, &format!("by=engines what={what} "))?;
        let cpu = line_of(&text, &format!("by=cpu what={what} "))?;
        let bytes = number(engines, "dma_bytes")?;
        ensure!(
            bytes > 1 << 20
                && number(engines, "cpu_bytes")? == 0
                && number(cpu, "dma_bytes")? == 0
                && number(cpu, "cpu_bytes")? == bytes
                && number(cpu, "ranges")? == number(engines, "ranges")?,
            "bytes are missing, or the wrong one copied: {text}"
        );
        said.push(engines.to_owned());
    }
    ensure!(text.contains("every byte of each guest"), "{text}");
    Ok(said.join("; "))
}

fn no_iommu(guest: &mut Guest) -> Result<String> {
    guest.ok("modprobe vfio-pci")?;
    let address = guest.options().address_of(0);
    guest.ok(&format!("vfio-test errors no-iommu {address}"))?;
    Ok(String::new())
}
