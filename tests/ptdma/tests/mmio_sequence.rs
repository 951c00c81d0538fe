//! The exact register accesses of bring-up and of a burst, on a recording mock.

use ptdma::descriptor::CommandWord;
use ptdma::regs::{Interrupts, Register as R};
use ptdma::{
    Anomaly, BringUpError, Channel, ChannelConfig, Cookie, DmaAddr, ErrorHead, Fault, Notify,
    RequestError, Restart, RingError, Signalling, SubmitError,
};
use ptdma_tests::recorder::{Event, Recorder, RecordingRing};

const BASE: u64 = 0x12_3454_0000;
const BASE_LOW: u32 = 0x3454_0000;
const BASE_HIGH: u32 = 0x12 << 16;

fn channel(
    recorder: &Recorder,
    entries: usize,
    signalling: Signalling,
) -> Channel<Recorder, RecordingRing> {
    told(recorder, entries, signalling, Restart::ByRun)
}

fn told(
    recorder: &Recorder,
    entries: usize,
    signalling: Signalling,
    restart: Restart,
) -> Channel<Recorder, RecordingRing> {
    let mut config = ChannelConfig::default();
    config.signalling = signalling;
    config.error_head = ErrorHead::AtFailing;
    config.restart = restart;
    match Channel::bring_up(recorder.clone(), recorder.ring(BASE, entries), config) {
        Ok(channel) => channel,
        Err((e, ..)) => panic!("{e}"),
    }
}

fn submit(channel: &mut Channel<Recorder, RecordingRing>, count: usize) -> Vec<Cookie> {
    (0..count as u64)
        .map(|i| {
            let at = 0x10_0000 + i * 0x2000;
            let request = channel
                .prep_copy(DmaAddr::new(at), DmaAddr::new(at + 0x1000), 0x1000)
                .unwrap();
            channel.submit(&request, Notify::Silent).unwrap()
        })
        .collect()
}

fn mmio(events: &[Event]) -> Vec<Event> {
    events.iter().copied().filter(Event::is_mmio).collect()
}

#[test]
fn bring_up_is_the_sequence_proved_on_silicon() {
    let recorder = Recorder::new();
    let _channel = channel(&recorder, 32, Signalling::Interrupts);
    let size = 4 << 3;
    assert_eq!(
        recorder.take(),
        [
            Event::Read(R::Version),
            Event::Read(R::Control),
            Event::Read(R::Head),
            Event::Read(R::Tail),
            Event::Write(R::Config, 1),
            Event::Write(R::QueuePriority, 6),
            Event::Write(R::CommandTimeout, 0),
            Event::Write(R::ClockGate, 0x1001),
            Event::Write(R::RequestId, 0),
            Event::Write(R::InterruptEnable, 0),
            Event::Write(R::Control, 0),
            Event::Read(R::QueueInterruptStatus),
            Event::Read(R::Status),
            Event::Write(R::InterruptStatus, 0xf),
            Event::Write(R::Control, size),
            Event::Write(R::Tail, BASE_LOW),
            Event::Write(R::Head, BASE_LOW),
            Event::Write(R::Control, size | BASE_HIGH),
            Event::Read(R::Head),
            Event::Read(R::Control),
            Event::Write(R::InterruptEnable, 3),
            // It shows later on whether the function was reset.
            Event::Read(R::InterruptEnable),
        ]
    );
}

/// Nobody knows whether an error is latched whose interrupt is off.
#[test]
fn a_polled_channel_has_errors_latched_and_no_completions() {
    let recorder = Recorder::new();
    let _channel = channel(&recorder, 8192, Signalling::Polled);
    let events = recorder.take();
    assert!(events.contains(&Event::Write(R::InterruptEnable, 2)));
    assert!(!events.contains(&Event::Write(R::InterruptEnable, 3)));
    assert!(events.contains(&Event::Write(R::Control, (12 << 3) | BASE_HIGH)));
}

/// The stores, control to know that the function was not reset, one fence, the tail, control with
/// RUN; one read when polled.
#[test]
fn a_polled_burst_of_any_length_is_four_accesses() {
    for (entries, burst) in [(32, 1), (32, 31), (512, 511), (8192, 8191)] {
        let recorder = Recorder::new();
        let mut channel = channel(&recorder, entries, Signalling::Polled);
        recorder.take();
        let cookies = submit(&mut channel, burst);
        channel.issue_pending(Notify::Silent);
        let events = recorder.take();
        assert_eq!(events.len(), burst + 4);
        for (slot, event) in events[..burst].iter().enumerate() {
            let Event::Store(at, descriptor) = event else {
                panic!("{event:?}")
            };
            assert_eq!(*at, slot);
            assert_eq!(descriptor.command(), CommandWord::COPY);
        }
        let tail = BASE_LOW + burst as u32 * 32;
        let size = (entries.trailing_zeros() - 1) << 3;
        assert_eq!(
            events[burst..],
            [
                Event::Read(R::Control),
                Event::Publish,
                Event::Write(R::Tail, tail),
                Event::Write(R::Control, 1 | size | BASE_HIGH),
            ]
        );
        recorder.set(R::Head, tail);
        let progress = channel.poll().unwrap();
        assert_eq!(progress.retired, burst as u64);
        assert!(cookies.iter().all(|c| c.is_before(progress.done_before)));
        assert_eq!(recorder.take(), [Event::Read(R::Head)]);
        // Nothing in flight: not even a read.
        channel.issue_pending(Notify::Silent);
        assert_eq!(channel.poll().unwrap().retired, 0);
        assert_eq!(recorder.take(), []);
    }
}

/// With work in flight RUN is written only to an engine that has drained, and not at a failure.
#[test]
fn a_burst_on_a_busy_channel_looks_before_it_starts_the_engine() {
    let tail = |n: u32| Event::Write(R::Tail, BASE_LOW + n * 32);
    let run = Event::Write(R::Control, 1 | (4 << 3) | BASE_HIGH);
    let recorder = Recorder::new();
    let mut channel = channel(&recorder, 32, Signalling::Polled);
    submit(&mut channel, 2);
    channel.issue_pending(Notify::Silent);
    recorder.take();
    // It runs: leave it alone.
    submit(&mut channel, 2);
    channel.issue_pending(Notify::Silent);
    assert_eq!(mmio(&recorder.take()), [tail(4), Event::Read(R::Head)]);
    // It has drained before the tail arrived.
    recorder.set(R::Head, BASE_LOW + 4 * 32);
    submit(&mut channel, 1);
    channel.issue_pending(Notify::Silent);
    let looks = [R::Head, R::Control, R::InterruptStatus].map(Event::Read);
    let events = mmio(&recorder.take());
    assert_eq!(events[0], tail(5));
    assert_eq!(events[1..4], looks);
    // It may have been in the new work, and failed before RUN.
    assert_eq!(events[4..], [run, Event::Read(R::InterruptStatus)]);
    // It has failed, and its head may be anywhere.
    recorder.set(R::Head, BASE_LOW + 5 * 32);
    recorder.set(R::InterruptStatus, 0b10);
    submit(&mut channel, 1);
    channel.issue_pending(Notify::Silent);
    let events = mmio(&recorder.take());
    assert_eq!(events[0], tail(6));
    assert_eq!(events[1..], looks);
}

/// An engine of which nothing is known is not raced to a failure: RUN is off while the tail moves.
#[test]
fn an_unknown_engine_has_run_off_while_its_tail_moves() {
    let tail = |n: u32| Event::Write(R::Tail, BASE_LOW + n * 32);
    let control = (4 << 3) | BASE_HIGH;
    let (stop, run) = (
        Event::Write(R::Control, control),
        Event::Write(R::Control, 1 | control),
    );
    let recorder = Recorder::new();
    let mut channel = told(&recorder, 32, Signalling::Polled, Restart::Unknown);
    submit(&mut channel, 2);
    channel.issue_pending(Notify::Silent);
    recorder.take();
    // It is at work.
    submit(&mut channel, 1);
    channel.issue_pending(Notify::Silent);
    let looks = [R::Control, R::Head].map(Event::Read);
    let events = mmio(&recorder.take());
    assert_eq!(events[..2], looks);
    // Again behind the tail, for it may have drained in between.
    assert_eq!(events[2..], [tail(3), Event::Read(R::Head)]);
    // It has drained.
    recorder.set(R::Head, BASE_LOW + 3 * 32);
    submit(&mut channel, 1);
    channel.issue_pending(Notify::Silent);
    let events = mmio(&recorder.take());
    assert_eq!(events[..2], looks);
    assert_eq!(events[2], Event::Read(R::InterruptStatus));
    assert_eq!(events[3..], [stop, tail(4), run]);
    // It is idle.
    recorder.set(R::Head, BASE_LOW + 4 * 32);
    assert_eq!(channel.poll().unwrap().retired, 4);
    recorder.take();
    submit(&mut channel, 1);
    channel.issue_pending(Notify::Silent);
    assert_eq!(
        mmio(&recorder.take()),
        [Event::Read(R::Control), stop, tail(5), run]
    );
}

#[test]
fn an_interrupt_driven_burst_is_five_accesses() {
    let recorder = Recorder::new();
    let mut channel = channel(&recorder, 512, Signalling::Interrupts);
    recorder.take();
    submit(&mut channel, 511);
    channel.issue_pending(Notify::Interrupt);
    let events = recorder.take();
    let flagged: Vec<usize> = events
        .iter()
        .filter_map(|e| match e {
            Event::Store(slot, d) if d.command().contains(CommandWord::IOC) => Some(*slot),
            Event::StoreCommand(slot, CommandWord::COPY_IOC) => Some(*slot),
            _ => None,
        })
        .collect();
    assert_eq!(flagged, [510], "one interrupt, at the end");
    let tail = BASE_LOW + 511 * 32;
    recorder.set(R::Head, tail);
    let progress = channel.handle_interrupt().unwrap();
    assert_eq!((progress.retired, progress.anomaly), (511, None));
    assert_eq!(mmio(&events).len(), 3);
    assert_eq!(
        recorder.take(),
        [
            // Not ERROR: that bit says that the queue stands at a failed descriptor.
            Event::Write(R::InterruptStatus, 0b1101),
            Event::Read(R::Head)
        ]
    );
    let spurious = channel.handle_interrupt().unwrap();
    assert_eq!(spurious.anomaly, Some(Anomaly::SpuriousInterrupt));
    assert_eq!(channel.stats().spurious_interrupts, 1);
}

/// One read, and four where the poll takes the whole picture: ever more rarely, but for ever.
#[test]
fn polls_are_one_read_while_nothing_is_wrong() {
    let recorder = Recorder::new();
    let mut channel = channel(&recorder, 32, Signalling::Polled);
    submit(&mut channel, 1);
    channel.issue_pending(Notify::Silent);
    recorder.take();
    let picture = [R::Control, R::Head, R::InterruptStatus, R::Tail].map(Event::Read);
    let mut pictures = 0;
    for _ in 0..100_000 {
        assert_eq!(channel.poll().unwrap().retired, 0);
        let events = recorder.take();
        if events != [Event::Read(R::Head)] {
            assert_eq!(events, picture);
            pictures += 1;
        }
    }
    assert_eq!(pictures, 10 + 23);
}

/// An engine that goes on by the tail: RUN for the first burst, then the tail alone, in flight or
/// not.
#[test]
fn a_burst_for_an_engine_that_goes_on_by_the_tail_is_one_write() {
    let recorder = Recorder::new();
    let mut channel = told(&recorder, 32, Signalling::Polled, Restart::ByTail);
    submit(&mut channel, 2);
    recorder.take();
    channel.issue_pending(Notify::Silent);
    let tail = |n: u32| Event::Write(R::Tail, BASE_LOW + n * 32);
    let run = Event::Write(R::Control, 1 | (4 << 3) | BASE_HIGH);
    assert_eq!(
        mmio(&recorder.take()),
        [Event::Read(R::Control), tail(2), run]
    );
    submit(&mut channel, 3);
    channel.issue_pending(Notify::Silent);
    assert_eq!(mmio(&recorder.take()), [tail(5)]);
    recorder.set(R::Head, BASE_LOW + 5 * 32);
    assert_eq!(channel.poll().unwrap().retired, 5);
    assert_eq!(mmio(&recorder.take()), [Event::Read(R::Head)]);
    submit(&mut channel, 1);
    channel.issue_pending(Notify::Silent);
    assert_eq!(mmio(&recorder.take()), [tail(6)]);
}

/// Where the head stays after an error is not known: progress is believed without an error only.
#[test]
fn progress_of_an_unknown_engine_is_looked_at_further() {
    let recorder = Recorder::new();
    let ring = recorder.ring(BASE, 32);
    let Ok(mut channel) = Channel::bring_up(recorder.clone(), ring, ChannelConfig::default())
    else {
        panic!("not brought up")
    };
    submit(&mut channel, 2);
    channel.issue_pending(Notify::Silent);
    recorder.take();
    recorder.set(R::Head, BASE_LOW + 32);
    assert_eq!(channel.poll().unwrap().retired, 1);
    // A reset would have cleared the status.
    let looks = [R::Head, R::InterruptStatus, R::InterruptEnable].map(Event::Read);
    assert_eq!(recorder.take(), looks);
    recorder.set(R::Head, BASE_LOW + 64);
    assert_eq!(channel.poll_head(), Some(channel.next_cookie()));
    assert_eq!(recorder.take(), looks);
}

#[test]
fn the_failed_descriptor_is_skipped_and_the_rest_started() {
    let recorder = Recorder::new();
    let mut channel = channel(&recorder, 32, Signalling::Interrupts);
    let cookies = submit(&mut channel, 5);
    channel.issue_pending(Notify::Interrupt);
    recorder.take();
    let at = |n: u32| BASE_LOW + n * 32;
    recorder.set(R::Head, at(2));
    recorder.set(R::InterruptStatus, 0);
    recorder.script(R::InterruptStatus, 0b10);
    recorder.set(R::Status, 19);
    recorder.script(R::Control, 0b10 | (4 << 3) | BASE_HIGH);
    let progress = channel.handle_interrupt().unwrap();
    let failure = progress.failure.unwrap();
    assert_eq!((failure.cookie, failure.code.raw()), (cookies[2], 19));
    assert_eq!(progress.retired, 3);
    assert_eq!(progress.done_before, cookies[3]);
    let run = 1 | (4 << 3) | BASE_HIGH;
    assert_eq!(
        recorder.take(),
        [
            Event::Write(R::InterruptStatus, 0b1101),
            Event::Read(R::Head),
            Event::Read(R::InterruptStatus),
            Event::Read(R::Status),
            Event::Read(R::Control),
            Event::Read(R::Head),
            // It is the driver that takes RUN, whatever the error has done to it.
            Event::Write(R::Control, run & !1),
            // The head is at rest, and final.
            Event::Read(R::Head),
            Event::Read(R::Head),
            Event::Publish,
            Event::Write(R::Tail, at(5)),
            Event::Write(R::Head, at(3)),
            Event::Read(R::Head),
            Event::Write(R::InterruptStatus, 0xf),
            Event::Read(R::InterruptEnable),
            Event::Write(R::Control, run),
        ]
    );
}

#[test]
fn bring_up_refuses_what_cannot_work() {
    let gone = Recorder::new();
    gone.set(R::Version, u32::MAX);
    let error = |recorder: &Recorder, base, entries| {
        let ring = recorder.ring(base, entries);
        match Channel::bring_up(recorder.clone(), ring, ChannelConfig::default()) {
            Ok(_) => panic!("brought up"),
            Err((e, ..)) => e,
        }
    };
    assert_eq!(error(&gone, BASE, 32), BringUpError::DeviceGone);
    assert_eq!(gone.take(), [Event::Read(R::Version)]);

    let fine = Recorder::new();
    assert!(matches!(
        error(&fine, BASE, 48),
        BringUpError::Ring(RingError::Entries { entries: 48 })
    ));
    assert!(matches!(
        error(&fine, BASE + 512, 32),
        BringUpError::Ring(RingError::Misaligned { .. })
    ));
    assert!(matches!(
        error(&fine, 1 << 48, 32),
        BringUpError::Ring(RingError::Range(_))
    ));
    assert_eq!(fine.take(), [], "a bad ring must not reach the device");

    // A previous owner's engine that does not halt, whether RUN was taken away or not.
    for control in [0, 1] {
        let busy = Recorder::new();
        busy.set(R::Control, control);
        busy.set(R::Head, 32);
        assert!(matches!(
            error(&busy, BASE, 32),
            BringUpError::StillRunning { .. }
        ));
        assert_patient(&busy.take());
    }

    // A head register that does not hold what is written.
    let deaf = Recorder::new();
    // The first look is at whose queue it was.
    deaf.script(R::Head, 0);
    deaf.script(R::Head, 0x40);
    assert!(matches!(
        error(&deaf, BASE, 32),
        BringUpError::NotAccepted { reads: 0x40, .. }
    ));
}

/// As long as the longest copy takes, even if a read takes 100 ns only, and no more than 2.5 ms
/// if it takes a microsecond.
fn assert_patient(events: &[Event]) {
    let looks = events.iter().filter(|e| **e == Event::Read(R::Control));
    let looks = looks.count();
    assert!((1440..=2500).contains(&looks), "{looks} looks");
}

/// A channel on a function that says that its first descriptor failed with code 19.
fn failed(recorder: &Recorder) -> Channel<Recorder, RecordingRing> {
    let mut channel = channel(recorder, 32, Signalling::Interrupts);
    submit(&mut channel, 2);
    channel.issue_pending(Notify::Interrupt);
    recorder.set(R::InterruptStatus, Interrupts::ERROR.bits());
    recorder.set(R::Status, 19);
    recorder.take();
    channel
}

/// HALT is not needed where an engine has reported an error: its head has to come to rest.
#[test]
fn the_interrupt_handler_waits_for_a_head_to_rest_but_not_for_long() {
    let at = |n: u32| BASE_LOW + n * 32;
    let slow = Recorder::new();
    let mut channel = failed(&slow);
    for look in 0..1400 {
        slow.script(R::Head, at(look / 50 % 2));
    }
    slow.set(R::Head, at(1));
    let failure = channel.handle_interrupt().unwrap().failure.unwrap();
    assert_eq!((failure.cookie.number(), failure.code.raw()), (1, 19));

    let never = Recorder::new();
    let mut channel = failed(&never);
    for look in 0..10_000 {
        never.script(R::Head, at(look / 50 % 2));
    }
    assert!(matches!(
        channel.handle_interrupt(),
        Err(Fault::WillNotHalt { .. })
    ));
    assert_patient(&never.take());
}

#[test]
fn nothing_of_a_refused_copy_reaches_the_ring() {
    let recorder = Recorder::new();
    let mut channel = channel(&recorder, 4, Signalling::Polled);
    recorder.take();
    let low = DmaAddr::new(0);
    let high = DmaAddr::new(DmaAddr::LIMIT);
    assert!(matches!(
        channel.prep_copy(low, high, 8),
        Err(RequestError::Destination(_))
    ));
    // A request checked against wider limits is caught at the ring.
    let wide = ptdma::CopyRequest::new(
        low,
        DmaAddr::new(1 << 40),
        1 << 30,
        ptdma::Limits::with_max_len_bytes(1 << 30),
    )
    .unwrap();
    assert!(matches!(
        channel.submit(&wide, Notify::Silent),
        Err(SubmitError::Request(RequestError::TooLong { .. }))
    ));
    assert_eq!(recorder.take(), []);
    submit(&mut channel, 3);
    let request = channel.prep_copy(low, DmaAddr::new(1 << 40), 4096).unwrap();
    assert_eq!(
        channel.submit(&request, Notify::Silent),
        Err(SubmitError::RingFull { capacity: 3 })
    );
}

#[test]
fn all_ones_and_garbage_are_told_apart() {
    let recorder = Recorder::new();
    let mut channel = channel(&recorder, 32, Signalling::Polled);
    submit(&mut channel, 2);
    channel.issue_pending(Notify::Silent);
    recorder.set(R::Head, u32::MAX);
    let fault = channel.poll().unwrap_err();
    assert_eq!(fault, Fault::BadHead { raw: u32::MAX });
    recorder.take();
    assert_eq!(channel.poll().unwrap_err(), fault, "the fault stays");
    assert_eq!(recorder.take(), [], "and costs no access");

    let recorder = Recorder::new();
    let mut gone = self::channel(&recorder, 32, Signalling::Polled);
    submit(&mut gone, 2);
    gone.issue_pending(Notify::Silent);
    recorder.set(R::Head, u32::MAX);
    recorder.set(R::Version, u32::MAX);
    assert_eq!(gone.poll().unwrap_err(), Fault::DeviceGone);
}

#[test]
fn cookies_pass_the_end_of_64_bits() {
    let recorder = Recorder::new();
    let mut config = ChannelConfig::default();
    config.first_cookie = Cookie::new(u64::MAX - 1);
    let Ok(mut channel) = Channel::bring_up(recorder.clone(), recorder.ring(BASE, 4), config)
    else {
        panic!("not brought up")
    };
    // u64::MAX - 1 falls on slot 2: that is where head and tail start.
    let cookies = submit(&mut channel, 3);
    assert_eq!(cookies.map_numbers(), [u64::MAX - 1, u64::MAX, 0]);
    channel.issue_pending(Notify::Silent);
    recorder.set(R::Head, BASE_LOW + 32);
    let progress = channel.poll().unwrap();
    assert_eq!(
        (progress.retired, progress.done_before),
        (3, Cookie::new(1))
    );
}

trait Numbers {
    fn map_numbers(&self) -> Vec<u64>;
}

impl Numbers for Vec<Cookie> {
    fn map_numbers(&self) -> Vec<u64> {
        self.iter().map(|c| c.number()).collect()
    }
}
