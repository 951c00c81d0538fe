//! What benchmarks share: instructions by callgrind, and tables in a Markdown document, `README.md`
//! of this crate.
//!
//! A benchmark writes its table between two markers, or compares its table with what stands
//! there. So no figure of a table is copied by hand, and CI notices a table that is out of date.

mod callgrind;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

pub use callgrind::{callgrind, has_callgrind};

/// The document with the tables of this tree.
pub const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");

/// How far a count of instructions may be from the document, as a share of the document's.
///
/// The counts contain functions of the C library, which chooses them by processor. What a change
/// of the code adds within this is bounded by the limits that the benchmarks have themselves.
const TOLERANCE: f64 = 0.1;

/// What a benchmark does with its table besides printing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Print,
    /// `--write`: puts the table into the document.
    Write,
    /// `--check`: fails if the document has other figures.
    Check,
}

impl Mode {
    /// Reads the mode from a benchmark's arguments.
    pub fn of(args: &[String]) -> Self {
        let has = |flag: &str| args.iter().any(|arg| arg == flag);
        if has("--write") {
            Self::Write
        } else if has("--check") {
            Self::Check
        } else {
            Self::Print
        }
    }
}

/// Puts the table `name` into `document`, or compares it with what the document has.
///
/// # Errors
///
/// The document cannot be read or written, has no markers for `name`, or (with
/// [`Mode::Check`]) has other figures.
pub fn publish(document: &Path, name: &str, table: &str, mode: Mode) -> Result<()> {
    if mode == Mode::Print {
        return Ok(());
    }
    let text = std::fs::read_to_string(document)
        .with_context(|| format!("cannot read {}", document.display()))?;
    let (before, old, after) = split(&text, name)
        .with_context(|| format!("{} has no markers for {name}", document.display()))?;
    if mode == Mode::Write {
        let new = format!("{before}\n{}\n{after}", table.trim_end());
        return std::fs::write(document, new)
            .with_context(|| format!("cannot write {}", document.display()));
    }
    compare(old, table).with_context(|| {
        format!(
            "table {name} of {} is out of date; run the benchmark with --write",
            document.display()
        )
    })
}

/// What stands before, between and behind the markers of `name`. The markers are no part of what
/// stands between them.
fn split<'a>(text: &'a str, name: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let start = text.find(&format!("<!-- begin {name}:"))?;
    let begin = start + text.get(start..)?.find("-->")? + "-->".len();
    let end = begin + text.get(begin..)?.find(&format!("<!-- end {name} -->"))?;
    Some((text.get(..begin)?, text.get(begin..end)?, text.get(end..)?))
}

/// Compares two tables word by word. Whole numbers and words must be equal.
fn compare(old: &str, new: &str) -> Result<()> {
    let (old, new) = (words(old), words(new));
    for (a, b) in old.iter().zip(&new) {
        if a != b && !close(a, b) {
            bail!("the document has {a}, the benchmark {b}");
        }
    }
    ensure!(
        old.len() == new.len(),
        "the document has {} words, the benchmark {}",
        old.len(),
        new.len()
    );
    Ok(())
}

/// The words of a table, without its lines and without the spaces that align its columns.
fn words(table: &str) -> Vec<&str> {
    table
        .split(|c: char| c.is_whitespace() || c == '|')
        .filter(|word| word.chars().any(|c| !matches!(c, '-' | ':')))
        .collect()
}

/// Whether both are numbers with a fraction, which counts of instructions are, and near each other.
fn close(old: &str, new: &str) -> bool {
    let fraction = |word: &str| word.contains('.').then(|| word.parse::<f64>().ok())?;
    fraction(old)
        .zip(fraction(new))
        .is_some_and(|(old, new)| (old - new).abs() <= old.abs() * TOLERANCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Title\n<!-- begin a: by x -->\n| n | i |\n|---|---|\n| 12 | 40.5 |\n\
                        <!-- end a -->\ntail\n";

    #[test]
    fn a_table_is_replaced_and_nothing_else() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("README.md");
        std::fs::write(&file, TEXT)?;
        let table = "| n  | i    |\n|----|------|\n| 13 | 41.0 |\n";
        publish(&file, "a", table, Mode::Print)?;
        assert_eq!(std::fs::read_to_string(&file)?, TEXT);
        assert!(publish(&file, "a", table, Mode::Check).is_err());
        publish(&file, "a", table, Mode::Write)?;
        publish(&file, "a", table, Mode::Check)?;
        let text = std::fs::read_to_string(&file)?;
        assert!(text.starts_with("# Title\n<!-- begin a: by x -->\n| n  | i    |\n"));
        assert!(text.ends_with("| 13 | 41.0 |\n<!-- end a -->\ntail\n"));
        assert!(publish(&file, "b", table, Mode::Write).is_err());
        Ok(())
    }

    #[test]
    fn counts_are_exact_and_instructions_near() {
        let table = "| 12 | 40.5 | 1+2 |";
        assert!(compare(table, "|12|40.5|1+2|\n").is_ok());
        assert!(compare(table, "| 12 | 44.5 | 1+2 |").is_ok());
        assert!(compare(table, "| 12 | 44.6 | 1+2 |").is_err());
        assert!(compare(table, "| 13 | 40.5 | 1+2 |").is_err());
        assert!(compare(table, "| 12 | 40.5 | 1+3 |").is_err());
        assert!(compare(table, "| 12 | 40.5 |").is_err());
        assert!(compare(table, "| 12 | 40.5 | 1+2 | 0 |").is_err());
    }

    #[test]
    fn the_document_has_a_place_for_each_table() -> Result<()> {
        let text = std::fs::read_to_string(DOCUMENT)?;
        for name in ["burst", "batches", "module"] {
            assert!(split(&text, name).is_some(), "{name}");
        }
        Ok(())
    }
}
