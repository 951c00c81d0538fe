//! What is shown.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;

use ptdma::{EngineTraits, ProbeError};
use ptdma_uefi::table::Align::{Left, Right};
use ptdma_uefi::table::{CONSOLE_WIDTH, Table, wrapped};
use uefi::prelude::*;
use uefi::{boot, print, println, system};

use crate::bench::{Bench, Function, Lost};

/// How each step went. The bytes are those of whole buffers, gaps included.
const COURSE: Table<7> = Table([
    ("who", 10, Left),
    ("list", 11, Left),
    ("channels", 8, Right),
    ("descriptors", 11, Right),
    ("bytes right", 12, Right),
    ("wrong", 8, Right),
    ("not copied", 10, Right),
]);

/// A line for each function.
const FUNCTIONS: Table<7> = Table([
    ("function", 12, Left),
    ("bridge", 6, Right),
    ("ring", 4, Right),
    ("descriptors", 11, Right),
    ("bytes", 10, Right),
    ("errors", 6, Right),
    ("verdict", 24, Left),
]);

const _: () = {
    assert!(COURSE.width() < CONSOLE_WIDTH);
    assert!(FUNCTIONS.width() < CONSOLE_WIDTH);
};

/// Prints a line of the course.
pub(crate) fn course(cells: &[&dyn Display; 7]) {
    let mut line = String::new();
    if COURSE.row(&mut line, *cells).is_ok() {
        print!("{line}");
    }
}

/// Prints the headings of the course.
pub(crate) fn course_head() {
    let mut line = String::new();
    if COURSE.head(&mut line).is_ok() {
        print!("{line}");
    }
}

/// Prints the table of functions.
pub(crate) fn table(bench: &Bench) {
    let mut text = String::from("\n");
    let mut written = FUNCTIONS.head(&mut text);
    for function in &bench.functions {
        let stats = &function.stats;
        written = written.and_then(|()| {
            FUNCTIONS.row(
                &mut text,
                [
                    &function.location,
                    &function.location.bridge,
                    &function.capacity,
                    &stats.submitted,
                    &stats.submitted_bytes,
                    &stats.failed,
                    &state(function),
                ],
            )
        });
    }
    // Writing to a string does not fail.
    let _ = written;
    print!("{text}");
    for function in &bench.functions {
        if let Some(code) = function.first_code {
            println!("first failure of {}: {code}", function.location);
        }
        if function.stats.replays > 0 {
            let replays = function.stats.replays;
            println!(
                "unclear errors of {}: {replays}, copied again",
                function.location
            );
        }
    }
    engines(bench);
}

/// Says what the engines are like: once for all that are alike.
fn engines(bench: &Bench) {
    let mut told: Vec<EngineTraits> = Vec::new();
    for function in &bench.functions {
        let Some(traits) = function.traits.filter(|traits| !told.contains(traits)) else {
            continue;
        };
        told.push(traits);
        let mut text = String::from("engine of");
        for other in &bench.functions {
            if other.traits == Some(traits) {
                text.push_str(&format!(" {}", other.location));
            }
        }
        text.push_str(&format!(": {traits}"));
        let mut lines = String::new();
        if wrapped(&mut lines, &text).is_ok() {
            print!("{lines}");
        }
    }
}

/// What is to be said of one function.
fn state(function: &Function) -> String {
    match function.lost {
        Some(Lost::NoRegisters) => "no registers (BAR 2)".into(),
        Some(Lost::NoMemory) => "no memory for a ring".into(),
        Some(Lost::BringUp(error)) => format!("{error}"),
        Some(Lost::Silent(ProbeError::NothingMoves { .. })) => "does not start".into(),
        Some(Lost::Silent(error)) => format!("{error}"),
        Some(Lost::Unproved(why)) => format!("{why}; memory kept"),
        None if function.wrong > 0 => format!("WRONG: {} bytes", function.wrong),
        None if function.resets > 0 => "hung; works after reset".into(),
        None if function.stops > 0 => "hung; works after a stop".into(),
        None if function.stats.failed > 0 => "failed some, rest right".into(),
        None => "right".into(),
    }
}

/// Whether the machine's engines can be trusted, and why not.
pub(crate) fn verdict(bench: &Bench) -> (bool, String) {
    let total = bench.functions.len();
    let whole = |function: &&Function| {
        let well = function.lost.is_none() && function.stats.failed == 0;
        well && function.stops == 0 && function.wrong == 0
    };
    let good = bench.functions.iter().filter(whole).count();
    let wrong = bench.wrong;
    let mut text = format!("{good} of {total} function(s) are in order; {wrong} wrong byte(s)");
    if bench.untried > 0 {
        text.push_str(&format!("; {} list(s) not tried", bench.untried));
    }
    if bench.kept > 0 {
        text.push_str(&format!(
            ".\n{} bytes are kept from whatever starts next: an engine may still write them",
            bench.kept
        ));
    }
    (good == total && wrong == 0 && bench.untried == 0, text)
}

/// Says how it ended and waits for a key, a minute at most.
pub(crate) fn end(good: bool, text: &str) -> Status {
    println!("\nPTDMA {}: {text}.", if good { "OK" } else { "NOT OK" });
    println!("Any key goes back to the firmware.");
    for _ in 0..SECONDS * LOOKS {
        if matches!(system::with_stdin(|keys| keys.read_key()), Ok(Some(_))) {
            break;
        }
        boot::stall(core::time::Duration::from_millis(1000 / LOOKS));
    }
    if good {
        Status::SUCCESS
    } else {
        Status::ABORTED
    }
}

/// Long enough to read a screen or to take a photograph; not for ever, so that a server that was
/// started by mistake from this drive goes on.
const SECONDS: u64 = 60;
/// Looks at the keyboard in a second.
const LOOKS: u64 = 10;
