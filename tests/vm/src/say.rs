//! What the harness says: macros of the usual names that survive a reader who has gone.
//!
//! Those of the standard library panic then, in the middle of a test and with machines running.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

/// The first thing that kept standard output from taking something.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

macro_rules! print {
    ($($words:tt)*) => { $crate::say::out(format_args!($($words)*)) };
}

macro_rules! println {
    ($($words:tt)*) => { $crate::say::out(format_args!("{}\n", format_args!($($words)*))) };
}

macro_rules! eprintln {
    ($($words:tt)*) => { $crate::say::note(format_args!($($words)*)) };
}

/// Writes to standard output; what is lost is remembered.
pub(crate) fn out(words: fmt::Arguments<'_>) {
    let written = write(&mut io::stdout().lock(), words);
    if let Err(error) = written {
        let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
        lost.get_or_insert(error);
    }
}

/// Writes a line to standard error, if anybody takes it.
pub(crate) fn note(words: fmt::Arguments<'_>) {
    let _closed = writeln!(io::stderr(), "{words}");
}

/// Why something that was said on standard output is lost, if it is. A reader that has gone away
/// is no such reason: it has seen enough.
pub(crate) fn lost() -> Option<io::Error> {
    LOST.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn write(to: &mut impl Write, words: fmt::Arguments<'_>) -> io::Result<()> {
    match to.write_fmt(words).and_then(|()| to.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_reader_is_quiet_and_a_full_disk_is_an_error() {
        let (reader, mut writer) = io::pipe().unwrap();
        drop(reader);
        assert!(write(&mut writer, format_args!("words")).is_ok());
        let mut full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        assert!(write(&mut full, format_args!("words")).is_err());
    }
}
