//! The command: what it writes, and how it ends.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const PICTURES: [&str; 5] = [
    "channels.svg",
    "folio-count.svg",
    "latency.svg",
    "movers.svg",
    "compaction.svg",
];

fn dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn own(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn command(out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptdma-predict"));
    command.arg("--out").arg(out);
    command
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    output
}

#[test]
fn it_writes_tables_and_pictures_that_say_predicted() {
    let out = dir("all");
    let output = run(&mut command(&out));
    let printed = String::from_utf8(output.stdout).unwrap();
    let tables = fs::read_to_string(out.join("tables.txt")).unwrap();
    assert!(printed.starts_with(&tables));
    // No colour and no bar where there is no terminal.
    assert!(!printed.contains('\u{1b}') && output.stderr.is_empty());
    for title in ["1. ", "1b. ", "2. ", "3. ", "3b. ", "4. ", "5. "] {
        let line = tables.lines().find(|l| l.starts_with(title)).unwrap();
        assert!(line.contains("predicted"), "{line}");
    }
    assert!(tables.contains("ASSUMED") && tables.contains("MISS 1M, 1 channel"));
    // Columns line up: the lines of a table have one length.
    let tables: Vec<_> = tables
        .split("\n\n")
        .filter(|t| t.starts_with('|'))
        .collect();
    assert!(tables.len() >= 9, "{}", tables.len());
    for table in tables {
        let mut lengths: Vec<_> = table.lines().map(|l| l.chars().count()).collect();
        lengths.dedup();
        assert_eq!(lengths.len(), 1, "{table}");
    }
    for name in PICTURES {
        let svg = fs::read_to_string(out.join(name)).unwrap();
        assert!(
            svg.starts_with("<svg") && svg.ends_with("</svg>\n"),
            "{name}"
        );
        assert!(svg.contains("predicted"), "{name}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}");
    }
    let json = fs::read_to_string(out.join("predict.json")).unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["schema"], "ptdma-predict/1");
    assert_eq!(json["kind"], "predicted");
    assert_eq!(json["channels"].as_array().unwrap().len(), 36);
    // The pictures of the documentation are of today.
    for name in ["channels.svg", "latency.svg"] {
        let kept = fs::read(own("pictures").join(name)).unwrap();
        let drawn = fs::read(out.join(name)).unwrap();
        assert!(kept == drawn, "{name} was drawn anew: keep it in pictures/");
    }
}

#[test]
fn json_is_the_same_on_standard_output() {
    let out = dir("json");
    let output = run(command(&out).arg("--json"));
    let file = fs::read(out.join("predict.json")).unwrap();
    assert!(output.stdout == file && !file.is_empty());
}

#[test]
fn measured_values_take_the_place_of_assumptions() {
    let out = dir("measured");
    let example = own("data/measured-example.json");
    run(command(&out).arg("--measured").arg(example));
    let tables = fs::read_to_string(out.join("tables.txt")).unwrap();
    let line = |name: &str| tables.lines().find(|l| l.contains(name)).unwrap();
    let descriptor = line("descriptor_ns");
    assert!(descriptor.contains("320") && descriptor.contains("measured"));
    assert!(line("wake_ns").contains("ASSUMED"));
    assert!(line("hypotheses about").contains(": translation ("));
    // The measured cell stands beside the predicted one, in the table and in the picture.
    assert!(tables.contains("ours measured") && tables.contains("23.60"));
    let svg = fs::read_to_string(out.join("channels.svg")).unwrap();
    assert!(svg.contains("ours, measured"));
}

#[test]
fn a_report_that_cannot_be_is_an_error_and_no_panic() {
    let (out, path) = (dir("refused"), dir("refused.json"));
    fs::write(&path, r#"{"schema": "ptdma-measured/0", "machine": "m"}"#).unwrap();
    let refused = |command: &mut Command, reason: &str| {
        let output = command.output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(
            errors.contains(reason) && !errors.contains("panicked"),
            "{errors}"
        );
    };
    refused(
        command(&out).arg("--measured").arg(&path),
        "ptdma-measured/1",
    );
    refused(
        command(&out).args(["--set", "speed=1"]),
        "no cost \"speed\"",
    );
    refused(
        command(&out).args(["--measured", "nowhere.json"]),
        "nowhere.json",
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_panic() {
    let mut child = command(&dir("pipe"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The reader goes before the first line comes.
    let mut reader = BufReader::with_capacity(16, child.stdout.take().unwrap());
    let first = reader.fill_buf().map(<[u8]>::len).unwrap();
    drop(reader);
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(first > 0 && output.status.success(), "{errors}");
    assert!(errors.is_empty(), "{errors}");
}
