//! Every message that a user may print names its thing, says its numbers, and is one line.

use core::error::Error;
use core::fmt::Display;
use std::string::ToString;

use crate::list::{EntryResult, ListError, ListStatus, ListTimedOut};
use crate::shared::{Cause, Loss, NotIdle, ServiceState};
use crate::{
    Anomaly, BringUpError, Cookie, CopyFailure, DmaAddr, ErrorCode, ErrorHead, Failure, Fault,
    Health, KnownError, NotStopped, PrepError, ProbeError, RangeError, RequestError, Restart,
    RingError, SubmitError, Terminated, WaitError,
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

const CODE: ErrorCode = KnownError::IllegalMemoryAddress.code();
const SEVEN: Cookie = Cookie::new(7);

#[test]
fn errors_of_addresses_and_requests() {
    let start = DmaAddr::new(0x1230);
    let range = RangeError::EndTooHigh {
        start,
        len_bytes: 0x456,
    };
    error_says(&RangeError::Empty { start }, &["0x1230"]);
    error_says(&RangeError::StartTooHigh { start }, &["0x1230", "48"]);
    error_says(&range, &["0x1230", "0x456", "48"]);
    error_says(&RequestError::Source(range), &["source", "0x1230"]);
    error_says(
        &RequestError::Destination(range),
        &["destination", "0x1230"],
    );
    let (src, dst, len_bytes) = (DmaAddr::new(0xa00), DmaAddr::new(0xb00), 0x700);
    for error in [
        RequestError::Overlap {
            src,
            dst,
            len_bytes,
        },
        RequestError::Boundary {
            src,
            dst,
            len_bytes,
        },
    ] {
        error_says(&error, &["0xa00", "0xb00", "0x700"]);
    }
    let error = RequestError::TooLong {
        len_bytes: 0x700,
        max_len_bytes: 0x600,
    };
    error_says(&error, &["0x700", "0x600"]);
    error_says(&SubmitError::Request(error), &["0x700"]);
    error_says(&SubmitError::RingFull { capacity: 31 }, &["31"]);
    error_says(
        &SubmitError::Faulted(Fault::BadHead { raw: 0x99 }),
        &["0x99"],
    );
}

#[test]
fn errors_of_a_channel() {
    let (offset, wrote, reads, control) = (0x1004, 0x55, 0xaa, 0x77);
    error_says(&Fault::DeviceGone, &["device"]);
    error_says(&Fault::Reset, &["function"]);
    error_says(&Fault::BadHead { raw: 0x99 }, &["head", "0x99"]);
    error_says(&Fault::Halted { oldest: SEVEN }, &["#7"]);
    error_says(&Fault::WillNotHalt { code: CODE }, &["11"]);
    error_says(&Fault::NotAccepted { offset, reads }, &["0x1004", "0xaa"]);
    error_says(&Fault::StillRunning { control }, &["0x77"]);
    let not_accepted = BringUpError::NotAccepted {
        offset,
        wrote,
        reads,
    };
    error_says(&BringUpError::DeviceGone, &["device"]);
    error_says(&not_accepted, &["0x1004", "0x55", "0xaa"]);
    error_says(&BringUpError::StillRunning { control }, &["0x77"]);
    let not_stopped = NotStopped {
        control,
        first: SEVEN,
        count: 12,
    };
    error_says(&not_stopped, &["0x77", "#7", "12"]);
    let nothing_moves = ProbeError::NothingMoves {
        control,
        head: 0x20,
        tail: 0x40,
        interrupts: 0x3,
    };
    error_says(&nothing_moves, &["0x77", "0x20", "0x40", "0x3"]);
    error_says(&ProbeError::NotIdle, &["channel"]);
    error_says(&ProbeError::NotRefused, &["engine"]);
    error_says(&ProbeError::Faulted(Fault::Reset), &["function"]);
    error_says(&ProbeError::BringUp(not_accepted), &["0x1004"]);
    error_says(&ProbeError::NotStopped(not_stopped), &["12"]);
    let timed_out = WaitError::TimedOut {
        oldest: SEVEN,
        outstanding: 3,
    };
    error_says(&timed_out, &["#7", "3"]);
    error_says(&WaitError::Faulted(Fault::Reset), &["function"]);
}

#[test]
fn errors_of_a_ring() {
    let base = DmaAddr::new(0x1_0000_0000);
    let entries = RingError::Entries { entries: 33 };
    let misaligned = RingError::Misaligned {
        base,
        align_bytes: 0x400,
    };
    let range = RingError::Range(RangeError::Empty { start: base });
    error_says(&entries, &["33", "2", "8192"]);
    error_says(&misaligned, &["0x100000000", "0x400"]);
    error_says(&RingError::LooksReset { base }, &["0x100000000"]);
    error_says(&range, &["0x100000000"]);
    error_says(&BringUpError::Ring(entries), &["33"]);
}

#[test]
fn what_a_channel_reports() {
    let failure = Failure {
        cookie: SEVEN,
        code: CODE,
    };
    error_says(&failure, &["#7", "11"]);
    let failure_of_any = CopyFailure {
        cookie: SEVEN,
        code: 11,
    };
    error_says(&failure_of_any, &["#7", "11"]);
    for error in [PrepError::Full, PrepError::Rejected, PrepError::Faulted] {
        error_says(&error, &[]);
    }
    for anomaly in [
        Anomaly::SpuriousInterrupt,
        Anomaly::LostInterrupt,
        Anomaly::Restarted,
        Anomaly::Replay,
    ] {
        error_says(&anomaly, &[]);
    }
    for known in KnownError::ALL {
        let code = known.code().raw().to_string();
        says(&known.code(), &[&code, &known.to_string()]);
    }
    let mut terminated = Terminated {
        first_dropped: SEVEN,
        dropped: 5,
        retired: 4,
        failure: None,
    };
    says(&terminated, &["#7", "5", "4"]);
    terminated.failure = Some(failure);
    says(&terminated, &["#7", "5", "4", "11"]);
    for head in [
        ErrorHead::Unknown,
        ErrorHead::AtFailing,
        ErrorHead::PastFailing,
    ] {
        says(&head, &["head"]);
    }
    for restart in [Restart::Unknown, Restart::ByTail, Restart::ByRun] {
        says(&restart, &[]);
    }
    for health in [Health::Alive, Health::Faulted] {
        says(&health, &["channel"]);
    }
}

#[test]
fn what_shared_channels_and_lists_report() {
    error_says(&NotIdle::Absent, &["channel"]);
    error_says(&NotIdle::InService, &["channel"]);
    error_says(&NotIdle::Unproven, &["engine"]);
    error_says(&NotIdle::Held { descriptors: 6 }, &["6"]);
    for state in [
        ServiceState::Active,
        ServiceState::Retired,
        ServiceState::Unproven,
    ] {
        says(&state, &["service"]);
    }
    for (cause, result) in [
        (Cause::Failed(11), EntryResult::Failed(11)),
        (Cause::Dropped, EntryResult::Dropped),
        (Cause::Unproven, EntryResult::Unproven),
    ] {
        let loss = Loss {
            first: SEVEN,
            end: SEVEN.after(2),
            cause,
        };
        says(&loss, &["#7", "#9", &cause.to_string()]);
        says(&result, &[&cause.to_string()]);
    }
    says(&Cause::Failed(11), &["11"]);
    for result in [
        EntryResult::default(),
        EntryResult::Copied,
        EntryResult::Rejected,
    ] {
        says(&result, &[]);
    }
    for status in [ListStatus::Done, ListStatus::Pending] {
        says(&status, &[]);
    }
    error_says(&ListTimedOut, &["deadline"]);
    error_says(&ListError::Empty, &["list"]);
    error_says(&ListError::TooLong, &["2^64"]);
    error_says(&ListError::NoChannel, &["channel"]);
    let results = ListError::Results {
        entries: 5,
        results: 4,
    };
    error_says(&results, &["5", "4"]);
    let start = DmaAddr::new(0x1230);
    let entry = ListError::Entry {
        index: 8,
        error: RequestError::Source(RangeError::Empty { start }),
    };
    error_says(&entry, &["8", "0x1230"]);
}
