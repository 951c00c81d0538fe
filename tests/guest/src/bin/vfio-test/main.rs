//! What the suite `vfio` runs in the test machine: a program on `ptdma-vfio`.
//!
//! `vfio-test serve ADDRESS...` opens the functions and does what `vfio-test ask WORDS...` asks of
//! it, one at a time, so that the host can inject faults in between. Each answer is a line; it
//! begins with `ok` or the asker ends with status 1. `vfio-test errors` provokes errors.

#![forbid(unsafe_code)]

mod errors;
mod guests;
mod serve;
mod work;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Where the server listens.
const SOCKET: &str = "/vfio-test.sock";

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["serve", addresses @ ..] => serve::run(addresses).map(|()| String::new()),
        ["ask", words @ ..] => ask(words),
        ["errors", rest @ ..] => errors::run(rest),
        ["take", addresses @ ..] => take(addresses),
        ["give-back", addresses @ ..] => give_back(addresses),
        ["list"] => list(),
        ["as-user", words @ ..] => as_user(words),
        _ => Err("serve, ask, errors, take, give-back, as-user or list?".into()),
    };
    match result {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn ask(words: &[&str]) -> Result<String, Failure> {
    let mut stream = UnixStream::connect(SOCKET)?;
    stream.write_all(words.join(" ").as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.strip_prefix("ok ") {
        Some(rest) => Ok(rest.to_owned()),
        None => Err(answer.into()),
    }
}

/// Runs this program as a user without rights, of a group of the same number.
fn as_user(words: &[&str]) -> Result<String, Failure> {
    /// Any that is not root.
    const USER: u32 = 1000;
    let output = Command::new("/proc/self/exe")
        .args(words)
        .uid(USER)
        .gid(USER)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("{}: {text}", output.status).into())
    }
}

/// Prints `address driver-before driver-now` for each.
fn take(addresses: &[&str]) -> Result<String, Failure> {
    let mut lines = Vec::new();
    for text in addresses {
        let before = ptdma_vfio::take(text.parse()?)?;
        lines.push(format!("{text} {}", before.as_deref().unwrap_or("none")));
    }
    Ok(lines.join("\n"))
}

fn give_back(addresses: &[&str]) -> Result<String, Failure> {
    let mut lines = Vec::new();
    for text in addresses {
        let now = ptdma_vfio::give_back(text.parse()?)?;
        lines.push(format!("{text} {}", now.as_deref().unwrap_or("none")));
    }
    Ok(lines.join("\n"))
}

fn list() -> Result<String, Failure> {
    let lines = ptdma_vfio::list()?.into_iter().map(|found| {
        let driver = found.driver.as_deref().unwrap_or("none").to_owned();
        format!(
            "{} {driver} group {:?} node {:?}",
            found.address, found.group, found.node
        )
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}
