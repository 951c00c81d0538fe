//! Our migrator while its controls are written, its functions are reset, silent or taken away, and
//! an engine that somebody else has left at work.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::kshim::{
    ALL, FAILURES, LOAD, MIGRATED, OFFLOADING, PARAMETERS, QUARANTINED, RING, TIMEOUT,
    all_by_device, start, stop, stop_after_faults, sum_of,
};
use super::mover::{Load, PROGRAM_LIMIT, get, mover, run, set, wait_to_grow, wait_until};
use super::{BOTH, Check, FAST, Suite};
use crate::machine::{Guest, Iommu, Options};

const DRIVER: &str = "/sys/bus/pci/drivers/ptdma_migrator";

pub(super) const SUITES: &[Suite] = &[
    Suite {
        name: "kshim-turmoil",
        about: "our migrator while its controls are written and its functions are reset or silent",
        kernels: BOTH,
        machine: || Options {
            devices: 4,
            modules: vec!["kshim"],
            ..Options::default()
        },
        checks: &[
            Check::new("ring-size-beside-resets", ring_size_beside_resets),
            Check::new("silent-for-a-moment", silent_for_a_moment).quick(FAST),
            Check::new("self-test-gives-back", self_test_gives_back).quick(FAST),
            Check::new("counts-stay", counts_stay).quick(FAST),
        ],
    },
    Suite {
        name: "kshim-orphan",
        about: "memory held for a function that is gone, and another one that takes its number",
        kernels: BOTH,
        machine: || Options {
            devices: 3,
            iommu: Iommu::Intel,
            append: "iommu.strict=1".into(),
            modules: vec!["kshim"],
            ..Options::default()
        },
        checks: &[Check::spoiling("number-taken", orphan).quick(FAST)],
    },
    Suite {
        name: "kshim-previous-owner",
        about: "an engine that another driver has left with work, and no right to the bus",
        kernels: BOTH,
        machine: || Options {
            devices: 2,
            machines: vec!["sibling"],
            modules: vec!["kshim"],
            ..Options::default()
        },
        checks: &[Check::new("stopped-first", previous_owner).quick(FAST)],
    },
];

/// All functions copy, in order.
fn expect_all_copy(guest: &mut Guest) -> Result<()> {
    guest.server()?.reset_counters()?;
    let report = run(guest, &mover(4, "--bytes 8M --rounds 2", &ALL))?;
    let each = guest.server()?.counters_by_device()?;
    ensure!(
        each.iter().all(|counters| counters.bytes > 0),
        "a channel is out of use: {each:?}"
    );
    all_by_device(guest, &report)
}

/// The size of the rings is written in a loop while a function is reset in another. A ring that is
/// shorter than what the engine was told is written beyond its end: the debug kernel finds that
/// where its pattern in free pages is gone.
fn ring_size_beside_resets(guest: &mut Guest) -> Result<String> {
    const TIMES: u32 = 6;
    start(guest, 4)?;
    let load = Load::start(guest, 4, LOAD, &[])?;
    wait_to_grow(guest, MIGRATED)?;
    let sizes = guest.start(
        &format!(
            "rm -f /no-more-resets; until [ -e /no-more-resets ]; do \
             for n in 64 8192 128 4096; do echo $n > {RING}; usleep 20000; done; done"
        ),
        2 * PROGRAM_LIMIT,
    )?;
    let functions = [1, 3].map(|index| guest.options().address_of(index));
    let resets = guest.ok_within(
        &format!(
            "n=0; for i in $(seq {TIMES}); do for f in {}; do \
             echo 1 > /sys/bus/pci/devices/$f/reset && n=$((n + 1)); done; done; \
             touch /no-more-resets; echo $n",
            functions.join(" ")
        ),
        PROGRAM_LIMIT,
    )?;
    guest.wait(&sizes)?;
    load.end(guest)?;
    // What was freed is used again, and looked at.
    guest.ok(
        "mkdir -p /fill && mount -t tmpfs -o size=100% none /fill && \
         dd if=/dev/zero of=/fill/f bs=1M count=256 2> /dev/null && umount /fill",
    )?;
    guest.expect_clean_dmesg()?;
    set(guest, RING, "1024")?;
    expect_all_copy(guest)?;
    stop(guest)?;
    guest.ok("rmmod ptdma_migrator")?;
    Ok(format!("{} resets", resets.trim()))
}

/// Functions do not answer while the size of the rings is written, or while they are reset. They
/// are back in use once they answer, and so is what was held for them.
fn silent_for_a_moment(guest: &mut Guest) -> Result<String> {
    start(guest, 4)?;
    set(guest, TIMEOUT, "300")?;
    for way in [
        format!("echo 256 > {RING}"),
        format!(
            "echo 1 > /sys/bus/pci/devices/{}/reset",
            guest.options().address_of(2)
        ),
    ] {
        guest.server()?.fault(
            Some(2),
            &json!({"trigger": {"at": 0}, "kind": {"all_ones": {}}}),
        )?;
        run(guest, &mover(4, "--bytes 4M --overlap", &[]))?;
        // It may be refused; what matters is what becomes of the channel.
        guest.sh(&way)?;
        guest.server()?.clear_faults(None)?;
        wait_until(guest, QUARANTINED, "-eq 0").context(way.clone())?;
        let state = format!(
            "/sys/bus/pci/devices/{}/ptdma/state",
            guest.options().address_of(2)
        );
        guest
            .ok_within(
                &format!("until [ $(cat {state}) = running ]; do sleep 0.1; done"),
                Duration::from_secs(20),
            )
            .with_context(|| format!("the channel stays down after `{way}`"))?;
        expect_all_copy(guest).context(way)?;
        set(guest, RING, "1024")?;
    }
    stop_after_faults(guest)?;
    Ok(String::new())
}

/// A self-test on an engine that falls silent ends without its memory, which is counted as held,
/// and comes back once the engine is proved to have stopped.
fn self_test_gives_back(guest: &mut Guest) -> Result<String> {
    const TIMES: u32 = 4;
    start(guest, 4)?;
    set(guest, TIMEOUT, "100")?;
    let device = format!("/sys/bus/pci/devices/{}", guest.options().address_of(1));
    let mut most = 0;
    for _ in 0..TIMES {
        // It does not answer in the middle of a copy, so that nothing can be known of it.
        let silent = json!({"trigger": {"at": 1}, "kind": {"all_ones": {}}});
        guest.server()?.fault(Some(1), &silent)?;
        let out = guest.sh(&format!("echo 1 > {PARAMETERS}/selftest"))?;
        let held = get(guest, QUARANTINED)?;
        guest.server()?.clear_faults(None)?;
        ensure!(
            out.code != 0 && held > 0,
            "the self-test says {}, and {held} folios are held",
            out.code
        );
        most = most.max(held);
        guest.ok(&format!(
            "echo 1 > {device}/reset && until [ $(cat {device}/ptdma/state) = running ]; do \
             sleep 0.1; done"
        ))?;
        wait_until(guest, QUARANTINED, "-eq 0")?;
    }
    let back = guest.ok("dmesg | grep -c 'folios are out of quarantine'; true")?;
    ensure!(
        back.trim().parse::<u32>().context(back.clone())? >= TIMES,
        "only {back} times were folios given back"
    );
    stop_after_faults(guest)?;
    Ok(format!("{most} folios held at most, and given back"))
}

/// Counts go on over resets and other sizes of rings.
fn counts_stay(guest: &mut Guest) -> Result<String> {
    const NAMES: [&str; 6] = [
        "submitted_bytes",
        "completed",
        "doorbells",
        "interrupts",
        "spurious_interrupts",
        "lost_interrupts",
    ];
    start(guest, 4)?;
    set(guest, TIMEOUT, "400")?;
    for kind in ["lost_interrupt", "spurious_interrupt"] {
        let trigger = if kind == "lost_interrupt" {
            json!("always")
        } else {
            json!({"every": {"n": 20, "offset": 3}})
        };
        guest
            .server()?
            .fault(None, &json!({"trigger": trigger, "kind": kind}))?;
        run(guest, &mover(4, "--bytes 8M --rounds 2 --movers 2", &[]))?;
        guest.server()?.clear_faults(None)?;
    }
    let read = |guest: &mut Guest| -> Result<Vec<u64>> {
        NAMES.iter().map(|name| sum_of(guest, name)).collect()
    };
    let counts = read(guest)?;
    ensure!(
        counts.iter().all(|&count| count > 0),
        "{NAMES:?}: {counts:?}"
    );
    for index in 0..guest.options().devices {
        let address = guest.options().address_of(index);
        guest.ok(&format!("echo 1 > /sys/bus/pci/devices/{address}/reset"))?;
    }
    set(guest, RING, "256")?;
    set(guest, RING, "1024")?;
    let after = read(guest)?;
    ensure!(
        counts.iter().zip(&after).all(|(then, now)| now >= then),
        "{NAMES:?}: {counts:?} became {after:?}"
    );
    // With no channel there is nobody to accept a batch.
    let batches = format!("{PARAMETERS}/batches");
    guest.ok(&format!(
        "cd {DRIVER} && for f in 0*; do echo $f > unbind || exit 1; done"
    ))?;
    let before = get(guest, &batches)?;
    run(guest, &mover(4, "--bytes 4M", &[]))?;
    let accepted = get(guest, &batches)? - before;
    ensure!(
        accepted == 0,
        "{accepted} batches accepted without a channel"
    );
    guest.server()?.clear_faults(None)?;
    guest.ok(&format!("echo 0 > {OFFLOADING} && rmmod ptdma_migrator"))?;
    guest.expect_clean_dmesg()?;
    Ok(format!("{counts:?}"))
}

/// A function falls silent with a batch of its own, and is taken from the driver. Another one gets
/// its number, and goes too. What is held for the first has nothing to do with the second.
fn orphan(guest: &mut Guest) -> Result<String> {
    let [lost, other, third] = [0, 1, 2].map(|index| guest.options().address_of(index));
    guest.ok(&format!(
        "modprobe ptdma_migrator functions={lost},{other},{third}"
    ))?;
    guest.ok(&format!(
        "cd {DRIVER} && for f in {lost} {other} {third}; do echo $f > unbind; done"
    ))?;
    let number = |guest: &mut Guest, address: &str| {
        get(
            guest,
            &format!("/sys/bus/pci/devices/{address}/ptdma/index"),
        )
    };
    guest.ok(&format!(
        "cd {DRIVER} && echo {lost} > bind && echo {third} > bind"
    ))?;
    start_loaded(guest)?;
    set(guest, TIMEOUT, "300")?;
    let of_lost = number(guest, &lost)?;
    // The control: nothing is left to the CPU.
    let control = run(guest, &mover(4, "--bytes 4M --rounds 2", &ALL))?.counter(FAILURES)?;

    guest.server()?.fault(
        Some(0),
        &json!({"trigger": {"at": 0}, "kind": {"all_ones": {}}}),
    )?;
    run(guest, &mover(4, "--bytes 4M --overlap", &[]))?;
    let held = get(guest, QUARANTINED)?;
    ensure!(held > 0, "nothing is in quarantine");
    guest.ok(&format!(
        "cd {DRIVER} && echo {lost} > unbind && echo {other} > bind"
    ))?;
    let of_other = number(guest, &other)?;
    ensure!(
        of_other == of_lost,
        "the other has number {of_other}, not {of_lost}: this shows nothing"
    );
    run(guest, &mover(4, "--bytes 4M --rounds 2", &[]))?;
    guest.ok(&format!(
        "cd {DRIVER} && echo {other} > unbind && echo {other} > bind"
    ))?;
    let report = run(guest, &mover(4, "--bytes 4M --rounds 2", &ALL))?;
    let failures = report.counter(FAILURES)?;
    ensure!(
        failures <= control,
        "{failures} folios left to the CPU, {control} before: {report:?}"
    );
    // Ring and memory of the one that is gone stay mapped, which the debug kernel tells.
    guest.expect_clean_dmesg_but(&[
        "DMA-API: *: device driver has pending DMA allocations while released from device",
        "WARNING: kernel/dma/debug.c:* at dma_debug_device_change+",
    ])?;
    Ok(format!("{held} folios held"))
}

/// [`start`] for a module that is loaded.
fn start_loaded(guest: &mut Guest) -> Result<()> {
    start(guest, 64)
}

/// The stock driver leaves an engine with a descriptor and RUN; the kernel takes the bus from its
/// function, so that it waits. It must not go on when our driver turns the bus on: the memory of
/// that descriptor is somebody else's by now.
fn previous_owner(guest: &mut Guest) -> Result<String> {
    // More than all that a bring-up copies to see what an engine is like, and what dmatest asks for
    // in one descriptor at least: it never copies less than half of its buffer.
    const BUFFER_BYTES: u64 = 1 << 20;
    const BRING_UP_BYTES: u64 = 64 << 10;
    guest.ok("modprobe ptdma")?;
    let stall = json!({
        "trigger": "now",
        "kind": {"stall": {"for": "ever", "haltable": false}},
    });
    guest.server()?.fault(None, &stall)?;
    guest.ok(&format!(
        "modprobe dmatest iterations=1 timeout=500 norandom=1 noverify=1 \
         test_buf_size={BUFFER_BYTES} run=1 && cat /sys/module/dmatest/parameters/wait > /dev/null"
    ))?;
    guest.ok("rmmod dmatest && rmmod ptdma")?;
    for index in 0..guest.options().devices {
        let address = guest.options().address_of(index);
        let command = guest.ok(&format!(
            "od -An -tu1 -j4 -N1 /sys/bus/pci/devices/{address}/config"
        ))?;
        let command: u8 = command.trim().parse().context("command register")?;
        ensure!(command & 4 == 0, "the function has the bus still");
    }
    guest.server()?.reset_counters()?;
    guest.server()?.clear_faults(None)?;
    guest.ok("sleep 0.5")?;
    let before = guest.server()?.counters_by_device()?;
    ensure!(
        before.iter().all(|one| one.bytes == 0),
        "the engine does not wait for the bus: {before:?}"
    );
    guest.ok("modprobe ptdma_migrator")?;
    let seen = guest.server()?.counters_by_device()?;
    ensure!(
        seen.iter().all(|one| one.bytes < BRING_UP_BYTES),
        "the other driver's descriptor was executed: {seen:?}"
    );
    start(guest, 2)?;
    expect_all_copy(guest)?;
    stop(guest)?;
    guest.ok("rmmod ptdma_migrator")?;
    Ok(String::new())
}
