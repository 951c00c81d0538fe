//! The demo as a program: exit codes, JSON, faults reported and survived, corruption noticed.

use std::io::Write;

use assert_cmd::Command;
use predicates::str::{contains, is_match};
use serde_json::Value;

fn demo(words: &[&str]) -> Command {
    let mut command = Command::cargo_bin("ptdma-demo").expect("the demo was built");
    command
        .args(words)
        .timeout(std::time::Duration::from_secs(120));
    command
}

fn json(words: &[&str]) -> Value {
    let output = demo(words).arg("--json").output().expect("it runs");
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

/// A file whose length is no whole number of pages.
fn input(len: usize) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    let data: Vec<u8> = (0..len).map(|i| (i * 7 + i / 256) as u8).collect();
    file.write_all(&data).expect("room for it");
    file
}

#[test]
fn a_file_arrives_whole_in_every_folio_size() {
    let file = input(3_000_001);
    let path = file.path().to_str().expect("a name in UTF-8");
    for folio_size in ["4K", "64K", "2M"] {
        let result = json(&["--input", path, "--folio-size", folio_size]);
        assert_eq!(result["verified"], true, "{folio_size}");
        assert_eq!(result["input_bytes"], 3_000_001);
        assert_eq!(result["channels"].as_array().map(Vec::len), Some(16));
        assert_eq!(result["folios_left"], 0);
    }
}

#[test]
fn the_counts_are_those_of_the_design() {
    // 512 scattered folios of 4 KiB on 16 channels: one burst and one interrupt each. On a machine
    // so busy that an engine thread gets no turn for 100 ms its interrupt seems lost, and looking
    // for it costs reads: such a run proves nothing, another may.
    let sixteen = || {
        let result = json(&["--size", "2M", "--batches", "1"]);
        let count = |name: &str| result["sum"][name].as_u64().expect("a count");
        assert_eq!(count("descriptors"), 512);
        assert_eq!(count("doorbells"), 16);
        assert!(count("interrupts") <= 16);
        count("mmio_reads") + count("mmio_writes")
    };
    // Four accesses a channel: one that tells whether it was reset, tail, RUN, head; and the one
    // interrupt is acknowledged.
    assert!((0..5).any(|_| sixteen() <= 4 * 16 + 1));
    // One folio of 2 MiB: all channels, equal parts.
    let result = json(&["--size", "2M", "--folio-size", "2M", "--batches", "1"]);
    for channel in result["channels"].as_array().expect("channels") {
        assert_eq!(channel["bytes"], (2 << 20) / 16);
    }
    // Neighbours become one descriptor per channel.
    let result = json(&["--size", "2M", "--scatter", "contiguous", "--batches", "1"]);
    assert_eq!(result["sum"]["descriptors"], 16);
}

#[test]
fn every_option_ends_verified() {
    for words in [
        &["--mix", "--folio-size", "1M"][..],
        &["--policy", "hybrid", "--folio-size", "2M", "--batch", "8M"],
        &["--policy", "auto", "--batch", "32K"],
        &["--policy", "cpu"],
        &["--wait", "poll", "--machine", "lenient"],
        &["--wait", "spin-then-sleep", "--batches", "8"],
        &["--ring", "2", "--channels", "3"],
        &["--ring", "8192", "--batch", "8M", "--channels", "1"],
    ] {
        demo(words)
            .args(["--size", "8M"])
            .assert()
            .success()
            .stdout(contains("VERIFIED"));
    }
}

#[test]
fn faults_are_reported_and_survived() {
    for (fault, text) in [
        ("error=19@every=40", "copied by the CPU"),
        ("partial=100@10", "copied by the CPU"),
        // Two batches may find it at the same time, and each resets the function.
        ("hang@5:channel=3", "[12] functions reset"),
        ("gone@20:channel=1", "bytes moved to other channels"),
        ("head@2", "faults fired"),
        ("lost-interrupt@every=2", "faults fired"),
        ("spurious-interrupt@every=9", "faults fired"),
        ("unmapped@every=30", "copied by the CPU"),
    ] {
        demo(&["--size", "8M", "--fault", fault])
            .assert()
            .success()
            .stdout(is_match(text).expect("a good pattern"))
            .stdout(contains("VERIFIED"));
    }
}

/// The check itself: an engine that corrupts silently must be found out.
#[test]
fn silent_corruption_fails_the_run() {
    demo(&["--size", "4M", "--fault", "corrupt@3:channel=0"])
        .assert()
        .code(1)
        .stdout(contains("NOT VERIFIED"));
}

#[test]
fn bad_arguments_exit_with_2_and_say_what_to_do() {
    for (words, text) in [
        (&["--folio-size", "3K"][..], "a power of two from 4K to 2M"),
        (&["--channels", "17"], "17"),
        (&["--channels", "0"], "0"),
        (&["--ring", "100"], "a power of two"),
        (&["--fault", "bang"], "--help lists them"),
        (
            &["--fault", "hang:channel=5", "--channels", "4"],
            "channel 5",
        ),
        (
            &["--batch", "4K", "--folio-size", "64K"],
            "smaller than one folio",
        ),
        (&["--size", "0"], "nothing to move"),
        (&["--nonsense"], "--nonsense"),
    ] {
        demo(words).assert().code(2).stderr(contains(text));
    }
    demo(&["--help"])
        .assert()
        .success()
        .stdout(contains("Faults:"));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    demo(&["--input", "no/such/file"])
        .assert()
        .code(2)
        .stderr(contains("no/such/file"));
}

/// What cannot be moved is no difference of bytes, and nothing is not verified.
#[test]
fn an_input_that_is_none_is_a_bad_argument() {
    let empty = input(0);
    let path = empty.path().to_str().expect("a name in UTF-8");
    for arguments in [&["--input", path][..], &["--input", path, "--json"]] {
        demo(arguments)
            .assert()
            .code(2)
            .stderr(contains("nothing to move"));
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().to_str().expect("a name in UTF-8");
    demo(&["--input", path])
        .assert()
        .code(2)
        .stderr(contains("reading the input"));
}

/// Standard output that is closed is a quiet end; one that takes nothing is an error.
#[test]
fn nobody_to_read_the_result_is_no_panic() {
    use std::process::{Command, Stdio};
    for format in [&[][..], &["--json"]] {
        let run = |stdout: Stdio, stderr: Stdio| {
            let output = Command::new(env!("CARGO_BIN_EXE_ptdma-demo"))
                .args(["--size", "2M", "--channels", "2"])
                .args(format)
                .stdout(stdout)
                .stderr(stderr)
                .spawn()
                .and_then(std::process::Child::wait_with_output)
                .expect("it runs");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!said.contains("panicked"), "{said}");
            (output.status.code(), said)
        };
        let full = || {
            let file = std::fs::File::options().write(true).open("/dev/full");
            Stdio::from(file.expect("/dev/full"))
        };
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        assert_eq!(run(writer.into(), Stdio::piped()), (Some(0), String::new()));
        let (code, said) = run(full(), Stdio::piped());
        assert_eq!(code, Some(1));
        assert!(said.contains("writing the result"), "{said}");
        assert_eq!(run(full(), full()).0, Some(1));
    }
}
