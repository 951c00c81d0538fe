//! The kernel's own tests of memory management that migrate, or whose pages may be migrated
//! meanwhile, with a migrator at work.
//!
//! Left out, and why: `hmm-tests`, `memory-failure` and `gup_longterm` need modules that this
//! kernel is built without (`test_hmm`, `hwpoison_inject`, `gup_test`); `khugepaged` needs swap, and
//! gives up when pages migrate while it collapses them; `uffd-stress` and `uffd-unit-tests` did not
//! end within 160 s of an emulated machine that is compacted meanwhile; the parts on XFS need a
//! disk; `protection_keys`, `mseal`, `mdwe`, `mlock` and others look at mappings, not at pages.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::migration::{COPIED, activate, deactivate};
use super::mover::get;
use super::{Check, DEBUG, FAST, Suite};
use crate::machine::{Guest, Options};

/// The longest takes two minutes on an idle machine.
const LIMIT: Duration = Duration::from_secs(400);

/// Attempts at merging with nothing beside it; pages that the test has just filled can be on
/// their way to a list of the kernel's, which is reason enough to be passed over.
const ATTEMPTS_ALONE: u32 = 3;
/// The migrator delays each batch by 20 ms, and compaction has a few under way.
const SETTLE: Duration = Duration::from_secs(1);

pub(super) const SUITES: &[Suite] = &[SELFTESTS, SELFTESTS_DEBUG];

const SELFTESTS: Suite = Suite {
    name: "selftests",
    about: "the kernel's own tests of migration, with a migrator at work",
    kernels: FAST,
    machine: || Options {
        devices: 0,
        // The migration test uses all processors but two.
        cpus: 4,
        modules: vec!["testmig"],
        selftests: true,
        ..Options::default()
    },
    checks: &[
        Check::new("rmap", |guest| selftest(guest, "rmap")),
        Check::new("compaction", |guest| compacted(guest, "compaction_test")),
        // Each takes 20 seconds.
        Check::new("migrate-anon", |guest| {
            selftest(guest, "migration -t private_anon")
        }),
        Check::new("migrate-shared", |guest| {
            selftest(guest, "migration -t shared_anon")
        }),
        Check::new("migrate-thp", |guest| {
            selftest(guest, "migration -t private_anon_thp")
        }),
        Check::new("mkdirty", |guest| {
            compacted_but(guest, "mkdirty", &[FORCED_WRITES])
        }),
        Check::new("mremap", |guest| {
            compacted_but(guest, "mremap_test", &[TWO_GIGABYTES])
        }),
        Check::new("ksm", |guest| {
            let command = "cd /bin && ksm_functional_tests";
            merged(guest, command, &[FORCED_WRITES])
        }),
        // What others have left merged is separated first, or the settings are refused.
        Check::new("ksm-across-nodes", |guest| {
            let command = "echo 2 > /sys/kernel/mm/ksm/run; ksm_tests -N -m 1";
            merged(guest, command, &[])
        }),
        Check::new("ksm-within-nodes", |guest| {
            let command = "echo 2 > /sys/kernel/mm/ksm/run; ksm_tests -N -m 0";
            merged(guest, command, &[])
        }),
        Check::new("thp-stress", |guest| {
            compacted(guest, "transhuge-stress -d 5 64")
        }),
        // Not beside compaction: they look twice at what they expect to stay, whether a folio
        // is whole or a page table entry is of a page.
        Check::new("thp-split", |guest| selftest(guest, "split_huge_page_test")),
        Check::new("cow", |guest| selftest(guest, "cow")),
        Check::new("soft-offline", |guest| {
            compacted(guest, "hugetlb-soft-offline")
        }),
        // A hundred rounds of sixteen readers.
        Check::soak("folio-split-race", |guest| {
            compacted(guest, "folio_split_race_test")
        }),
        Check::soak("migrate-all", |guest| {
            guest.ok("echo 32 > /proc/sys/vm/nr_hugepages")?;
            let note = selftest(guest, "migration")?;
            guest.ok("echo 0 > /proc/sys/vm/nr_hugepages")?;
            Ok(note)
        }),
    ],
};

/// The rest of them takes too long with the debug kernel's checks.
const SELFTESTS_DEBUG: Suite = Suite {
    name: "selftests-debug",
    about: "the kernel's own test of migration, with a migrator at work",
    kernels: DEBUG,
    machine: || Options {
        devices: 0,
        cpus: 4,
        modules: vec!["testmig"],
        selftests: true,
        ..Options::default()
    },
    checks: &[Check::new("migrate-anon", |guest| {
        selftest(guest, "migration -t private_anon")
    })],
};

/// A part of a test that cannot pass in this machine, whoever copies.
#[derive(Clone, Copy)]
struct Excused {
    /// In the line of its result.
    result: &'static str,
    because: &'static str,
}

const FORCED_WRITES: Excused = Excused {
    result: "write",
    because: "here only a debugger may force a write through /proc/PID/mem",
};
const TWO_GIGABYTES: Excused = Excused {
    result: "2GB mremap",
    because: "the machine has less memory",
};

/// A test that hardly migrates by itself, while all memory is compacted again and again.
fn compacted(guest: &mut Guest, command: &str) -> Result<String> {
    compacted_but(guest, command, &[])
}

/// The same, where parts cannot pass.
fn compacted_but(guest: &mut Guest, command: &str, excused: &[Excused]) -> Result<String> {
    let compaction = guest.start(
        "while :; do echo 1 > /proc/sys/vm/compact_memory; sleep 0.2; done",
        LIMIT,
    )?;
    let note = selftest_but(guest, command, excused);
    guest.kill(&compaction)?;
    note
}

/// A test of merging. The kernel passes over a page that is isolated or locked when it is
/// looked at, and the tests give it two looks: what fails while pages migrate has to pass
/// when nothing is compacted beside it, once what was under way has ended.
fn merged(guest: &mut Guest, command: &str, excused: &[Excused]) -> Result<String> {
    let beside = match compacted_but(guest, command, excused) {
        Ok(said) => return Ok(said),
        Err(beside) => beside,
    };
    let mut alone = Err(beside);
    for _ in 0..ATTEMPTS_ALONE {
        if alone.is_ok() {
            break;
        }
        // Whatever the migrator did in it has to be clean all the same.
        deactivate(guest)?;
        std::thread::sleep(SETTLE);
        alone = selftest_but(guest, command, excused);
    }
    Ok(format!("{}; not so while memory was compacted", alone?))
}

fn selftest(guest: &mut Guest, command: &str) -> Result<String> {
    selftest_but(guest, command, &[])
}

fn selftest_but(guest: &mut Guest, command: &str, excused: &[Excused]) -> Result<String> {
    activate(guest, "copy")?;
    let before = get(guest, COPIED)?;
    let out = guest.sh_within(command, LIMIT)?;
    let copied = get(guest, COPIED)?.saturating_sub(before);
    ensure!(!out.timed_out, "`{command}` does not end: {}", out.text);
    let said = summary(&out.text, out.code, excused)
        .with_context(|| format!("`{command}`: exit status {}\n{}", out.code, out.text))?;
    deactivate(guest)?;
    Ok(format!("{said}, {copied} folios"))
}

/// The kernel's tests speak TAP; a test that does not run has not passed.
fn summary(text: &str, code: i32, excused: &[Excused]) -> Result<String> {
    let planned: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("1..")?.trim().parse().ok())
        .context("it names no plan")?;
    let lines = |word: &'static str| text.lines().filter(move |line| line.starts_with(word));
    let skipped = lines("ok ").filter(|line| line.contains("# SKIP")).count();
    let passed = lines("ok ").count().saturating_sub(skipped);
    let mut reasons = Vec::new();
    for line in lines("not ok ") {
        let Some(known) = excused.iter().find(|known| line.contains(known.result)) else {
            bail!("failed: {line}");
        };
        reasons.push(known.because);
    }
    ensure!(passed > 0, "nothing passed");
    ensure!(
        passed + skipped + reasons.len() == planned,
        "{planned} were planned, {passed} passed and {skipped} were skipped"
    );
    ensure!(code == 0 || !reasons.is_empty(), "a bad exit status");
    let mut said = format!("{passed} passed, {skipped} skipped");
    if let Some(reason) = reasons.first() {
        said.push_str(&format!(", {} cannot: {reason}", reasons.len()));
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted_and_only_known_failures_are_excused() -> Result<()> {
        let text = "TAP version 13\n1..3\nok 1 a\nok 2 # SKIP b\nok 3 c\n";
        assert_eq!(summary(text, 0, &[])?, "2 passed, 1 skipped");
        assert!(summary(text, 1, &[]).is_err(), "a bad exit status");
        assert!(
            summary("TAP version 13\nok 1 a\n", 0, &[]).is_err(),
            "no plan"
        );
        assert!(
            summary("1..2\nok 1 a\n", 0, &[]).is_err(),
            "one did not run"
        );
        assert!(
            summary("1..1\nok 1 # SKIP a\n", 0, &[]).is_err(),
            "none passed"
        );

        let text = "1..2\nok 1 a\nnot ok 2 write() failed\nBail out!\n";
        assert!(summary(text, 1, &[]).is_err());
        assert!(summary(text, 1, &[TWO_GIGABYTES]).is_err());
        let said = summary(text, 1, &[FORCED_WRITES])?;
        assert!(
            said.starts_with("1 passed, 0 skipped, 1 cannot: "),
            "{said}"
        );
        Ok(())
    }
}
