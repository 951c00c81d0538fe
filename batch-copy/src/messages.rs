//! Every message that a user may print names its thing, says its numbers, and is one line.

use core::error::Error;
use core::fmt::Display;
use std::string::ToString;

use ptdma::{DmaAddr, PrepError};

use crate::{
    BadInput, CalibrationError, CpuCopyError, Decision, FailReason, LengthMismatch, MapError,
    Outcome, Reasons, SkipReason,
};

/// A message is a line, not a sentence, and has all of `numbers`.
fn says(value: &dyn Display, numbers: &[&str]) {
    let message = value.to_string();
    assert!(
        !message.trim().is_empty() && !message.ends_with('.'),
        "{message:?}"
    );
    assert!(!message.contains('\n'), "{message:?}");
    // An abbreviation may stand at the beginning, a sentence may not.
    let mut letters = message.chars();
    let (first, second) = (letters.next(), letters.next());
    let is_sentence =
        first.is_some_and(char::is_uppercase) && second.is_some_and(char::is_lowercase);
    assert!(!is_sentence, "{message:?}");
    for number in numbers {
        assert!(message.contains(number), "{message:?} lacks {number:?}");
    }
}

fn error_says(error: &dyn Error, numbers: &[&str]) {
    says(&error.to_string(), numbers);
}

#[test]
fn errors_of_a_batch() {
    error_says(&BadInput::NoChannels, &["channels"]);
    error_says(&BadInput::TooManyFolios { room: 6 }, &["6"]);
    error_says(&BadInput::EmptyFolio { folio: 7 }, &["7"]);
    let out_of_range = BadInput::OutOfRange {
        folio: 7,
        addr: DmaAddr::new(0x1230),
        len_bytes: 0x456,
    };
    error_says(&out_of_range, &["7", "0x1230", "0x456"]);
    let misaligned = BadInput::Misaligned {
        folio: 7,
        align_bytes: 64,
    };
    error_says(&misaligned, &["7", "64"]);
    error_says(&BadInput::OddAlignment { align_bytes: 48 }, &["48"]);
    for other in [7, 9] {
        let overlap = BadInput::Overlap { folio: 7, other };
        error_says(&overlap, &["7", &other.to_string()]);
    }
    error_says(&BadInput::TooManyBytes, &["0x100000000000000"]);
    error_says(&BadInput::ScratchTooSmall { room: 6 }, &["6"]);
    let mismatch = LengthMismatch {
        src_len_bytes: 0x100,
        dst_len_bytes: 0x200,
    };
    error_says(&mismatch, &["0x100", "0x200"]);
    error_says(&MapError, &["folio"]);
    error_says(&CpuCopyError, &["folio"]);
    // It comes from the layer below, and users of this one print it.
    error_says(&PrepError::Full, &["ring"]);
}

#[test]
fn errors_of_a_calibration() {
    let too_short = CalibrationError::ScratchTooShort { len_bytes: 0x1000 };
    error_says(&too_short, &["0x1000", "0x100000"]);
    let input = CalibrationError::Input(BadInput::EmptyFolio { folio: 7 });
    error_says(&input, &["7"]);
    let failed = CalibrationError::Failed(Outcome::Failed(FailReason::Engine(11)));
    error_says(&failed, &["11"]);
    error_says(&CalibrationError::Clock, &["clock"]);
}

#[test]
fn outcomes_and_their_reasons() {
    says(&Outcome::Dma, &["copied"]);
    says(&Outcome::Cpu, &["copied"]);
    for reason in [
        FailReason::Engine(11),
        FailReason::CpuCopy,
        FailReason::Quarantined,
        FailReason::Unaccounted,
    ] {
        says(&reason, &[]);
        says(&Outcome::Failed(reason), &[&reason.to_string()]);
    }
    says(&FailReason::Engine(11), &["11"]);
    for reason in [
        SkipReason::NoChannel,
        SkipReason::Unmapped,
        SkipReason::Rejected,
        SkipReason::Deadline,
        SkipReason::Declined,
    ] {
        says(&reason, &[]);
        says(&Outcome::NotAttempted(reason), &[&reason.to_string()]);
    }
}

#[test]
fn decisions_and_reasons_to_migrate() {
    says(&Decision::Decline, &["CPU"]);
    let engines = Decision::Engines {
        channels: 4,
        cpu_share_bytes: 0x2000,
        expected_ns: 70_123,
    };
    says(&engines, &["4", "8192", "70123"]);
    says(&Reasons::empty(), &["none"]);
    says(&Reasons::all(), &["syscall", "damon"]);
}
