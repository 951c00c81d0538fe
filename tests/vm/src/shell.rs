//! `cargo vm shell`: one machine, commands from the terminal.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;

use crate::machine::{Guest, Options};
use crate::{build, run_dir, toolchain};

/// A command typed by hand may take its time.
const COMMAND_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Boots, runs one command or a loop of them, powers off.
pub(crate) fn run(options: Options, command: Option<&str>) -> Result<bool> {
    toolchain::require_for_modules(&options.modules)?;
    if options.devices > 0 {
        build::server()?;
    }
    let logs = run_dir::logs()?;
    let mut guest = Guest::boot(options, &logs)?;
    let clean = match command {
        Some(command) => one(&mut guest, command)? == 0,
        None => {
            eprintln!(
                "{} after {:.1} s; console: {}\nEach line runs in a shell of its own; end with Ctrl-D.",
                guest.release(),
                guest.booted_after().as_secs_f64(),
                guest.logs().join("console.log").display()
            );
            repeat(&mut guest)?;
            true
        }
    };
    if guest.alive() {
        guest.shut_down()?;
    }
    Ok(clean)
}

fn repeat(guest: &mut Guest) -> Result<()> {
    let prompt = std::io::stdin().is_terminal();
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if prompt {
            print!("guest# ");
            std::io::stdout().flush()?;
        }
        let Some(line) = lines.next() else {
            return Ok(());
        };
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let code = one(guest, &line)?;
        if code != 0 {
            eprintln!("[exit status {code}]");
        }
    }
}

fn one(guest: &mut Guest, command: &str) -> Result<i32> {
    let out = guest.sh_within(command, COMMAND_LIMIT)?;
    print!("{}", out.text);
    std::io::stdout().flush()?;
    Ok(out.code)
}
