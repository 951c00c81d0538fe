//! Arguments.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use ptdma_model::Forks;

use crate::fault::FaultSpec;

/// Base page: the smallest folio.
pub(crate) const PAGE_LEN_BYTES: usize = 4096;

/// Moves a file through emulated AMD PTDMA channels and verifies every byte.
///
/// The engines, registers and interrupts are emulated (each engine is a thread); the driver and
/// the batch planner are the crates that a kernel module or firmware links. Throughput says
/// nothing about hardware; the counts do.
#[derive(Debug, Parser)]
#[command(name = "ptdma-demo", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// File to move; pseudo-random data if none is given
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,

    /// How much data to generate without --input, such as 64M
    #[arg(long, value_name = "SIZE", default_value = "128M", value_parser = size)]
    pub(crate) size: usize,

    /// Folio size, a power of two from 4K to 2M; with --mix, the largest
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = folio_size)]
    pub(crate) folio_size: usize,

    /// Folios of all sizes from 4K up to the folio size, at random
    #[arg(long)]
    pub(crate) mix: bool,

    /// Where the folios lie: each alone, or one behind the other
    #[arg(long, value_enum, default_value_t = Scatter::Scattered)]
    pub(crate) scatter: Scatter,

    /// PTDMA channels
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) channels: u8,

    /// Ring entries of each channel, a power of two from 2 to 8192
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = ring)]
    pub(crate) ring: usize,

    /// Bytes per batch: one call of the migrator. The kernel's default is 2M (512 base pages)
    #[arg(long, value_name = "SIZE", default_value = "2M", value_parser = size)]
    pub(crate) batch: usize,

    /// Batches in flight at once, each from a thread of its own
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub(crate) batches: u8,

    /// Who copies
    #[arg(long, value_enum, default_value_t = PolicyName::Engines)]
    pub(crate) policy: PolicyName,

    /// How a batch waits for its engines
    #[arg(long, value_enum, default_value_t = WaitName::Interrupt)]
    pub(crate) wait: WaitName,

    /// Kind of engine: a name, answers that differ from it, or both, as listed below
    #[arg(long, value_name = "NAME[,QUESTION=ANSWER...]", default_value_t = Forks::TODAY)]
    pub(crate) machine: Forks,

    /// Inject a fault, may be repeated; words as listed below
    #[arg(long, value_name = "KIND[@TRIGGER][:channel=N]")]
    pub(crate) fault: Vec<FaultSpec>,

    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How folios lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scatter {
    /// In random order, so that hardly any two are neighbours on both sides
    Scattered,
    /// In order: neighbours become one descriptor
    Contiguous,
}

/// Who copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PolicyName {
    /// Engines, always, and all of them
    Engines,
    /// As the cost model decides: the CPU copies small batches
    Auto,
    /// As auto, and the CPU copies a share while it would otherwise wait
    Hybrid,
    /// The CPU alone
    Cpu,
}

/// How to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WaitName {
    /// Poll without a pause; interrupts stay off
    Poll,
    /// Sleep until an interrupt
    Interrupt,
    /// Poll for a moment, then sleep
    SpinThenSleep,
}

const EXAMPLES: &str = "\
Faults:
  KIND     error=CODE  partial=BYTES  stall  stall=MICROSECONDS  hang  lost-interrupt
           spurious-interrupt  gone  unmapped  head=VALUE  no-halt  corrupt
  TRIGGER  N (descriptor N of each channel)  every=N  chance=PERMILLION  always; default 0
  channel  the one channel that has it; default all

Examples:
  ptdma-demo --input some.file --folio-size 2M --channels 16
  ptdma-demo --mix --folio-size 1M --batches 8 --policy hybrid
  ptdma-demo --fault error=19@chance=1000 --fault hang@5:channel=3

Machines, and questions with their answers:
  --machine sibling  --machine sibling,halt=never  --machine head=past

Exit code: 0 verified; 1 bytes differ or were lost, or the result could not be written; 2 bad
arguments, or an input that cannot be read or is empty; 3 the machine could not be set up.";

impl Args {
    /// Checks what clap cannot: arguments that do not go together.
    pub(crate) fn check(&self) -> Result<(), clap::Error> {
        let bad = |text: String| Err(Self::command().error(ErrorKind::ValueValidation, text));
        if self.batch < self.folio_size {
            return bad(format!(
                "--batch {} is smaller than one folio of {}",
                self.batch, self.folio_size
            ));
        }
        if self.input.is_none() && self.size == 0 {
            return bad("--size is zero: there is nothing to move".to_owned());
        }
        for fault in &self.fault {
            if let Some(channel) = fault.channel
                && channel >= usize::from(self.channels)
            {
                return bad(format!(
                    "a fault on channel {channel}, but there are {} (0 to {})",
                    self.channels,
                    self.channels - 1
                ));
            }
        }
        Ok(())
    }
}

/// Parses 4096, 4K, 2M, 1G.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.chars().last() {
        Some('k' | 'K') => (&text[..text.len() - 1], 10),
        Some('m' | 'M') => (&text[..text.len() - 1], 20),
        Some('g' | 'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: usize = digits
        .parse()
        .map_err(|_| format!("'{text}' is no size: write 4096, 4K, 2M or 1G"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("'{text}' is too large"))
}

fn folio_size(text: &str) -> Result<usize, String> {
    let bytes = size(text)?;
    if bytes.is_power_of_two() && (PAGE_LEN_BYTES..=2 << 20).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!(
            "'{text}' is no folio size: a power of two from 4K to 2M"
        ))
    }
}

fn ring(text: &str) -> Result<usize, String> {
    let entries: usize = text.parse().map_err(|_| format!("'{text}' is no number"))?;
    if entries.is_power_of_two() && (ptdma::MIN_ENTRIES..=ptdma::MAX_ENTRIES).contains(&entries) {
        Ok(entries)
    } else {
        Err(format!(
            "a ring has a power of two of entries, from {} to {}",
            ptdma::MIN_ENTRIES,
            ptdma::MAX_ENTRIES
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("4K"), Ok(4096));
        assert_eq!(size("2m"), Ok(2 << 20));
        assert!(size("x").is_err() && size("").is_err() && size("99999999999G").is_err());
        assert!(folio_size("4K").is_ok() && folio_size("2M").is_ok());
        assert!(folio_size("2K").is_err() && folio_size("4M").is_err());
        assert!(folio_size("12K").is_err());
        assert!(ring("33").is_err() && ring("8192").is_ok());
    }

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }
}
