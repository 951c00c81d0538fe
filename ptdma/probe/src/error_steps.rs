//! A copy that fails while it moves data: its destination cannot be written.

use ptdma::descriptor::CommandWord;
use ptdma::regs::{Interrupts, Register};
use ptdma::{DmaAddr, ErrorCode};

use crate::answer::Answer;
use crate::ask::COPY_LEN_BYTES;
use crate::halt::Event;
use crate::pattern;
use crate::platform::Platform;
use crate::queue::{LIMIT_NS, Queue};
use crate::report::Stop;

/// Which of the copies fails, and how many there are.
const BAD: usize = 1;
const COUNT: usize = 4;

/// What a failing copy has shown.
pub(crate) struct Found {
    pub(crate) head: Answer,
    pub(crate) behind: Answer,
    pub(crate) code: Answer,
    pub(crate) order: Answer,
    pub(crate) halt: Option<bool>,
}

impl Found {
    pub(crate) const fn cannot(why: &'static str) -> Self {
        let why = Answer::Unknown(why);
        Self {
            head: why,
            behind: why,
            code: why,
            order: why,
            halt: None,
        }
    }
}

/// The word for where head stays, if descriptor `bad` of `count` failed.
pub(crate) fn word_of_head(head: Option<usize>, bad: usize, count: usize) -> Answer {
    match head {
        Some(at) if at == bad => Answer::is("at"),
        Some(at) if at == count => Answer::is("tail"),
        Some(at) if at == bad.saturating_add(1) => Answer::is("past"),
        _ => Answer::Unknown("head is at none of the places that are known"),
    }
}

/// Has the engine run four copies, of which the second is refused.
pub(crate) fn ask<P: Platform>(
    queue: &mut Queue<'_, P>,
    refusing: DmaAddr,
    seed: u64,
) -> Result<Found, Stop> {
    let len = u64::from(COPY_LEN_BYTES);
    pattern::spoil_target(queue.p, seed, 0, 0, len * COUNT as u64);
    queue.clear_status();
    let first = queue.next_slot();
    for n in 0..COUNT {
        let at = len * n as u64;
        let dst = if n == BAD { refusing } else { queue.target(at) };
        let src = queue.source(at);
        queue.put(CommandWord::COPY, src, dst, COPY_LEN_BYTES);
    }
    queue.go_from_rest();
    // Head is read before the interrupt status: whoever sees that head has passed the failing copy
    // must find the error there.
    let start = queue.now();
    let mut late_error = false;
    let failed = loop {
        let over = queue.now().wrapping_sub(start) >= LIMIT_NS;
        let passed = queue.head_from(first).is_some_and(|at| at > BAD);
        let error = queue.interrupts().contains(Interrupts::ERROR);
        late_error |= passed && !error;
        if error {
            break true;
        }
        if over {
            break false;
        }
        if queue.head_from(first) == Some(COUNT) && late_error {
            // Everything is over, and the error does not show.
            let shown = (0..crate::queue::REST_LOOKS)
                .any(|_| queue.interrupts().contains(Interrupts::ERROR));
            break shown;
        }
    };
    if !failed {
        if queue.head_from(first) != Some(COUNT) {
            return Err(Stop::NotStopped);
        }
        queue.halts.follow(Event::Drained);
        return Ok(Found::cannot(
            "a copy to memory that must not be written ended without an error",
        ));
    }
    queue.settle_head();
    queue.halts.follow(Event::Error);
    let head = word_of_head(queue.head_from(first), BAD, COUNT);
    let halt = queue.look_at_control()?;

    let arrived = |queue: &Queue<'_, P>, n: usize| {
        let at = len * n as u64;
        pattern::has_arrived(&*queue.p, seed, at, at, len)
    };
    let untouched = |queue: &Queue<'_, P>, n: usize| {
        let at = len * n as u64;
        pattern::is_untouched(&*queue.p, seed, at, at, len)
    };
    let behind = if !arrived(queue, 0) {
        Answer::is("copy_before_is_missing")
    } else if (BAD + 1..COUNT).all(|n| untouched(queue, n)) {
        Answer::is("waits")
    } else if (BAD + 1..COUNT).all(|n| arrived(queue, n)) {
        Answer::is("runs")
    } else {
        Answer::is("runs_in_part")
    };

    let code = |queue: &Queue<'_, P>| {
        let status = queue.read(Register::Status);
        ErrorCode::from_status(status).raw()
    };
    let (once, twice) = (code(queue), code(queue));
    queue.recover();
    // A good copy, which RUN is written for.
    let (src, dst) = (queue.source(0), queue.target(0));
    queue.put(CommandWord::COPY, src, dst, COPY_LEN_BYTES);
    queue.go();
    queue.wait_drained()?;
    let later = code(queue);
    let code = match (once, twice, later) {
        (0, ..) => Answer::Unknown("the status register had no code"),
        (_, 0, _) => Answer::is("read"),
        (once, twice, later) if once == twice && twice == later => Answer::is("kept"),
        (once, twice, 0) if once == twice => Answer::is("run"),
        _ => Answer::Unknown("the code changed by itself"),
    };
    let order = match head {
        Answer::Is(word) if word.text == "at" => Answer::is("head_stays"),
        _ if late_error => Answer::is("after"),
        _ => Answer::is("before"),
    };
    Ok(Found {
        head,
        behind,
        code,
        order,
        halt: Some(halt),
    })
}
