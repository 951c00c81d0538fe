//! What nobody outside AMD knows of the engine, one switch for each question.
//!
//! A fork is a question with several answers. Public sources answer some of them for the sibling,
//! the CCP of version 5, which has the same queue registers; for PTDMA each answer stays possible.
//! A driver has to be right on every one: [`Forks::covering`] lists machines that hold all pairs of
//! answers, and [`Forks::MACHINES`] names machines worth a test in a guest.
//!
//! A machine travels as text, a name and what differs from it:
//!
//! ```
//! use ptdma_model::forks::{ErrorHead, Forks, Halt};
//! let forks: Forks = "sibling,halt=never,head=past".parse()?;
//! assert_eq!((forks.halt, forks.error_head), (Halt::Never, ErrorHead::Past));
//! assert_eq!(forks.to_string(), "sibling,halt=never,head=past");
//! # Ok::<(), ptdma_model::forks::ParseError>(())
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Descriptors of the ring that Linux uses: an engine with a shorter one does not exist, or the
/// stock driver would not work on it.
const STOCK_ENTRIES_LOG2: u8 = 5;
/// Most entries that the SIZE field can stand for without more than 4 GiB of ring.
const MAX_ENTRIES_LOG2: u8 = 26;

/// One enum for each question: its answers with the word for each in the text form.
macro_rules! question {
    (
        $(#[$doc:meta])*
        $name:ident { $($(#[$answer_doc:meta])* $answer:ident = $text:literal,)+ }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$answer_doc])* $answer,)+ }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$answer => $text,)+ })
            }
        }

        impl FromStr for $name {
            type Err = ParseError;
            fn from_str(text: &str) -> Result<Self, ParseError> {
                match text {
                    $($text => Ok(Self::$answer),)+
                    _ => Err(ParseError::Answer(text.to_owned())),
                }
            }
        }
    };
}

question! {
    /// When HALT (bit 1 of control) reads 1. No PTDMA driver reads it.
    Halt {
        /// The engine does not walk and has no descriptor in flight. This model's first guess.
        Standing = "standing",
        /// The engine is not busy now, also between two bursts with RUN set. Source: PSPEmu waits
        /// for HALT after RUN on CCP, and FreeBSD's ccp(4) goes on by the tail alone.
        NotBusy = "not_busy",
        /// Software took RUN away, and the engine obeyed. Source: the name of the bit. A driver
        /// sees 0 after an error and after the ring was drained.
        OnStop = "on_stop",
        /// A descriptor failed. Source: Linux restarts the queue after errors alone. A driver sees
        /// 0 after it took RUN away.
        OnError = "on_error",
        /// The ring was drained. Source: DPDK sets RUN for every burst. A driver sees 0 after an
        /// error or a stop with work left.
        OnDrain = "on_drain",
        /// Never. Source: both PTDMA drivers work on such an engine.
        Never = "never",
    }
}

question! {
    /// Whether HALT reads 1 after RUN was taken away from an idle engine. It matters where HALT is
    /// [`Halt::Standing`] or [`Halt::OnStop`].
    IdleStop {
        /// HALT reads 1.
        Reads = "reads",
        /// HALT stays what it was. A driver that waits for HALT waits in vain, although nothing
        /// runs.
        Nothing = "nothing",
    }
}

question! {
    /// What a write of control does to HALT while it reads 1.
    ControlWrite {
        /// Nothing.
        Keeps = "keeps",
        /// HALT reads 0 until the engine stands still the next time. A driver that takes RUN away
        /// clears its own proof.
        Clears = "clears",
    }
}

question! {
    /// Which events clear RUN, as it reads back. Neither says whether the engine goes on: that is
    /// [`Restart`], and after an error RUN has to be written again in any case.
    Run {
        /// A drained ring and an error. This model's first guess.
        Both = "both",
        /// None: RUN reads as it was written. A driver cannot tell an engine that stands.
        Stays = "stays",
        /// An error. Source: FreeBSD's ccp(4) writes RUN at attach and after errors.
        OnError = "on_error",
        /// A drained ring. Source: DPDK sets RUN for every burst.
        OnDrain = "on_drain",
    }
}

question! {
    /// Whether bits 9:7 of the status register have the job status.
    JobStatus {
        /// They read 0. This model's first guess.
        Absent = "absent",
        /// 0 idle, 1 active and waiting, 2 active, 4 error, 5 preparing to halt. Source: the
        /// status register of CCP in FreeBSD's ccp(4). A driver that compares the whole register
        /// sees an error where none is.
        Filled = "filled",
    }
}

question! {
    /// What a drained queue needs to go on.
    Restart {
        /// RUN again. Source: both PTDMA drivers write it for every start.
        Run = "run",
        /// A new tail. Source: FreeBSD's ccp(4) writes RUN once.
        Tail = "tail",
    }
}

question! {
    /// Where head is after an error.
    ErrorHead {
        /// At the descriptor that failed. Source: FreeBSD's ccp(4), from AMD's manual.
        At = "at",
        /// One past it.
        Past = "past",
        /// At the tail: what lies behind the failed descriptor was not executed. Source: Linux
        /// moves head there itself, so an engine that does so too works with it.
        Tail = "tail",
    }
}

question! {
    /// How long the status register keeps the code of an error.
    ErrorCode {
        /// Until RUN is written.
        ClearedByRun = "run",
        /// Until the next error. A driver sees an old code after a good copy.
        Kept = "kept",
        /// Until it is read. A driver that reads twice sees 0.
        ClearedByRead = "read",
    }
}

question! {
    /// Whether the interrupt status latches a source that is not enabled.
    Latch {
        /// It does.
        Always = "always",
        /// It does not: what happens while the source is off is never seen there. A driver that
        /// polls with all sources off sees no error.
        Enabled = "enabled",
    }
}

question! {
    /// Which descriptors latch COMPLETION.
    Completion {
        /// Those with IOC.
        Ioc = "ioc",
        /// Those with IOC and EOM. Source: Linux sets both in every descriptor.
        IocEom = "ioc_eom",
    }
}

question! {
    /// What becomes of a descriptor for an engine that does not exist.
    UnknownEngine {
        /// It fails with code 1.
        Refused = "refused",
        /// It completes, and nothing is copied.
        Ignored = "ignored",
        /// It is a copy.
        Taken = "taken",
        /// It stays in flight until the function is reset.
        Hangs = "hangs",
    }
}

question! {
    /// What the engine does while its function must not use the bus.
    BusMaster {
        /// Its next access fails: the descriptor ends with a decode error.
        Fails = "fails",
        /// It waits, and goes on where it was once it may use the bus again.
        Holds = "holds",
    }
}

/// A length of time, as software can measure it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Span {
    /// So many reads.
    Reads(u32),
    /// So many microseconds of real time.
    Micros(u32),
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reads(n) => write!(f, "{n}reads"),
            Self::Micros(n) => write!(f, "{n}us"),
        }
    }
}

impl FromStr for Span {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let number = |digits: &str| digits.parse().ok();
        let reads = text.strip_suffix("reads").and_then(number);
        let micros = text.strip_suffix("us").and_then(number);
        reads
            .map(Self::Reads)
            .or(micros.map(Self::Micros))
            .ok_or_else(|| ParseError::Answer(text.to_owned()))
    }
}

/// Whether HALT reads 1 for a while after RUN was written, though the engine works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Late {
    /// It does not.
    No,
    /// It does, for that many reads of control or for that time. Source: such bits of other
    /// engines lag. A driver takes a working engine for one that stands.
    For(Span),
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::For(span) => span.fmt(f),
        }
    }
}

impl FromStr for Late {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "no" => Ok(Self::No),
            _ => text.parse().map(Self::For),
        }
    }
}

/// The function-level reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reset {
    /// It works.
    Works,
    /// The function has none: configuration space does not announce it, and asking for it does
    /// nothing.
    Absent,
    /// The function does not come back: it reads all ones until the power goes off, or until the
    /// faults are cleared. Source: neighbours on the same dies are in Linux's list of functions
    /// whose reset must not be used.
    Lost,
    /// The function reads all ones for so long, then it is as after power-on.
    Away(Span),
}

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.write_str("works"),
            Self::Absent => f.write_str("absent"),
            Self::Lost => f.write_str("lost"),
            Self::Away(span) => write!(f, "away:{span}"),
        }
    }
}

impl FromStr for Reset {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        match (text, text.strip_prefix("away:")) {
            ("works", _) => Ok(Self::Works),
            ("absent", _) => Ok(Self::Absent),
            ("lost", _) => Ok(Self::Lost),
            (_, Some(span)) => span.parse().map(Self::Away),
            _ => Err(ParseError::Answer(text.to_owned())),
        }
    }
}

/// The longest ring. DPDK uses 8192 descriptors on silicon, Linux 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RingLimit {
    /// What the SIZE field can say.
    No,
    /// SIZE reads back as at most two to this power.
    ReadsBack(u8),
    /// SIZE reads back as written, and head wraps after at most two to this power. A driver's
    /// descriptors behind that are never executed, those before are executed again.
    Wraps(u8),
}

impl RingLimit {
    /// The limit as a power of two; the SIZE field's own if there is none.
    pub(crate) fn log2(self) -> u8 {
        match self {
            Self::No => u8::MAX,
            Self::ReadsBack(log2) | Self::Wraps(log2) => log2,
        }
    }
}

impl fmt::Display for RingLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("any"),
            Self::ReadsBack(log2) => write!(f, "reads_back:{}", 1u64 << log2),
            Self::Wraps(log2) => write!(f, "wraps:{}", 1u64 << log2),
        }
    }
}

impl FromStr for RingLimit {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let log2 = |digits: &str| {
            let entries: u64 = digits.parse().ok()?;
            let log2 = entries.is_power_of_two().then(|| entries.ilog2() as u8)?;
            (1..=MAX_ENTRIES_LOG2).contains(&log2).then_some(log2)
        };
        let limit = match (text, text.split_once(':')) {
            ("any", _) => Some(Self::No),
            (_, Some(("reads_back", n))) => log2(n).map(Self::ReadsBack),
            (_, Some(("wraps", n))) => log2(n).map(Self::Wraps),
            _ => None,
        };
        limit.ok_or_else(|| ParseError::Answer(text.to_owned()))
    }
}

/// Why a text is no machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// No machine has this name.
    #[error("no machine is called '{0}'")]
    Machine(String),
    /// No question has this name, or there is no '='.
    #[error("'{0}' is no question: write name=answer")]
    Question(String),
    /// The question does not have this answer.
    #[error("'{0}' is no answer to its question")]
    Answer(String),
}

/// The switches of one engine, and the table of the questions.
macro_rules! forks {
    ($($(#[$doc:meta])* $field:ident: $kind:ident = $key:literal [$($answer:literal),+],)+) => {
        /// An answer to every question: what one kind of silicon may be like.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct Forks { $($(#[$doc])* pub $field: $kind,)+ }

        impl Forks {
            /// Every question, with the answers that tests have to cover.
            pub const QUESTIONS: &'static [Question] = &[
                $(Question { key: $key, answers: &[$($answer),+] },)+
            ];

            /// Answers one question.
            ///
            /// # Errors
            ///
            /// [`ParseError`] if there is no such question or answer.
            pub fn set(&mut self, key: &str, answer: &str) -> Result<(), ParseError> {
                match key {
                    $($key => self.$field = answer.parse()?,)+
                    _ => return Err(ParseError::Question(key.to_owned())),
                }
                Ok(())
            }

            /// The answers as text, in the order of [`Self::QUESTIONS`].
            #[must_use]
            pub fn answers(&self) -> Vec<String> {
                vec![$(self.$field.to_string(),)+]
            }
        }
    };
}

/// A question of [`Forks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its name in the text form.
    pub key: &'static str,
    /// Answers to cover. A question whose answers have a number has one representative of each
    /// kind here.
    pub answers: &'static [&'static str],
}

forks! {
    /// When HALT reads 1.
    halt: Halt = "halt" ["standing", "not_busy", "on_stop", "on_error", "on_drain", "never"],
    /// Whether HALT reads 1 after RUN was taken away from an idle engine.
    idle_stop: IdleStop = "idle_stop" ["reads", "nothing"],
    /// What a write of control does to HALT.
    control_write: ControlWrite = "control_write" ["keeps", "clears"],
    /// Whether HALT reads 1 for a while after RUN was written. The 400 reads of the list are more
    /// than a driver looks in one go, and few enough for a test.
    late: Late = "late" ["no", "400reads"],
    /// What clears RUN.
    run: Run = "run" ["both", "stays", "on_error", "on_drain"],
    /// Whether the status register has the job status.
    job_status: JobStatus = "job" ["absent", "filled"],
    /// What a drained queue needs to go on.
    restart: Restart = "restart" ["run", "tail"],
    /// Where head is after an error.
    error_head: ErrorHead = "head" ["at", "past", "tail"],
    /// How long the code of an error stays.
    error_code: ErrorCode = "code" ["run", "kept", "read"],
    /// Whether the interrupt status latches what is not enabled.
    latch: Latch = "latch" ["always", "enabled"],
    /// Which descriptors latch COMPLETION.
    completion: Completion = "completion" ["ioc", "ioc_eom"],
    /// What becomes of a descriptor for an unknown engine.
    unknown_engine: UnknownEngine = "engine" ["refused", "ignored", "taken", "hangs"],
    /// The function-level reset.
    reset: Reset = "reset" ["works", "absent", "lost", "away:400reads"],
    /// What the engine does without the bus.
    bus_master: BusMaster = "bus_master" ["fails", "holds"],
    /// The longest ring. Shorter ones than Linux uses are not in the list.
    ring: RingLimit = "ring" ["any", "reads_back:32", "wraps:32"],
}

/// A machine with a name.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Its name in the text form.
    pub name: &'static str,
    /// What it is like.
    pub forks: Forks,
    /// What it is good for.
    pub about: &'static str,
}

/// Pairs of answers that no machine has, and why.
pub const EXCLUSIONS: &[([(&str, &str); 2], &str)] = &[(
    [("halt", "never"), ("late", "400reads")],
    "a HALT that never reads 1 cannot read 1 late",
)];

impl Forks {
    /// The model's default.
    pub const TODAY: Self = Self {
        halt: Halt::Standing,
        idle_stop: IdleStop::Reads,
        control_write: ControlWrite::Keeps,
        late: Late::No,
        run: Run::Both,
        job_status: JobStatus::Absent,
        restart: Restart::Run,
        error_head: ErrorHead::At,
        error_code: ErrorCode::ClearedByRun,
        latch: Latch::Always,
        completion: Completion::Ioc,
        unknown_engine: UnknownEngine::Refused,
        reset: Reset::Works,
        bus_master: BusMaster::Fails,
        ring: RingLimit::No,
    };

    /// As [`TODAY`](Self::TODAY), but a drained queue goes on by the tail alone.
    pub const LENIENT: Self = Self {
        run: Run::OnError,
        restart: Restart::Tail,
        ..Self::TODAY
    };

    /// The likeliest silicon: all that is known of CCP.
    pub const SIBLING: Self = Self {
        halt: Halt::NotBusy,
        run: Run::OnError,
        job_status: JobStatus::Filled,
        restart: Restart::Tail,
        bus_master: BusMaster::Holds,
        ..Self::TODAY
    };

    /// What the stock Linux driver relies on, and nothing else: every other answer is the worse.
    pub const LINUX_ONLY: Self = Self {
        halt: Halt::Never,
        idle_stop: IdleStop::Nothing,
        control_write: ControlWrite::Clears,
        late: Late::No,
        run: Run::Stays,
        job_status: JobStatus::Filled,
        restart: Restart::Run,
        error_head: ErrorHead::Tail,
        error_code: ErrorCode::ClearedByRead,
        latch: Latch::Enabled,
        completion: Completion::IocEom,
        unknown_engine: UnknownEngine::Hangs,
        reset: Reset::Absent,
        bus_master: BusMaster::Fails,
        ring: RingLimit::Wraps(STOCK_ENTRIES_LOG2),
    };

    /// Every machine with a name.
    pub const MACHINES: &'static [Machine] = &[
        Machine {
            name: "today",
            forks: Self::TODAY,
            about: "this model's first guess",
        },
        Machine {
            name: "lenient",
            forks: Self::LENIENT,
            about: "goes on by the tail alone",
        },
        Machine {
            name: "sibling",
            forks: Self::SIBLING,
            about: "all that is known of CCP: the likeliest silicon",
        },
        Machine {
            name: "linux_only",
            forks: Self::LINUX_ONLY,
            about: "what the stock driver relies on, and the worse answer to all else",
        },
        Machine {
            name: "dpdk",
            forks: Self {
                halt: Halt::OnDrain,
                run: Run::OnDrain,
                idle_stop: IdleStop::Nothing,
                error_code: ErrorCode::Kept,
                ..Self::TODAY
            },
            about: "halts when drained, as DPDK's code reads, and in no other case",
        },
        Machine {
            name: "stopper",
            forks: Self {
                halt: Halt::OnStop,
                run: Run::Stays,
                ..Self::TODAY
            },
            about: "HALT answers a stop and nothing else",
        },
        Machine {
            name: "deaf",
            forks: Self {
                halt: Halt::OnError,
                idle_stop: IdleStop::Nothing,
                run: Run::OnError,
                restart: Restart::Tail,
                ..Self::TODAY
            },
            about: "taking RUN away does not read back as HALT",
        },
        Machine {
            name: "silent",
            forks: Self {
                halt: Halt::Never,
                unknown_engine: UnknownEngine::Ignored,
                ..Self::SIBLING
            },
            about: "the sibling without HALT; unknown engines are ignored",
        },
        Machine {
            name: "lagging",
            forks: Self {
                late: Late::For(Span::Reads(400)),
                error_code: ErrorCode::Kept,
                control_write: ControlWrite::Clears,
                ..Self::SIBLING
            },
            about: "HALT still reads 1 long after RUN, and old codes stay",
        },
        Machine {
            name: "slow_halt",
            forks: Self {
                late: Late::For(Span::Micros(200)),
                ..Self::TODAY
            },
            about: "HALT reads 1 for 200 microseconds after RUN",
        },
        Machine {
            name: "past",
            forks: Self {
                error_head: ErrorHead::Past,
                completion: Completion::IocEom,
                ..Self::SIBLING
            },
            about: "the sibling with head past the descriptor that failed",
        },
        Machine {
            name: "flushed",
            forks: Self {
                error_head: ErrorHead::Tail,
                run: Run::Stays,
                ..Self::SIBLING
            },
            about: "the sibling with head at the tail after an error",
        },
        Machine {
            name: "forgetful",
            forks: Self {
                error_code: ErrorCode::ClearedByRead,
                latch: Latch::Enabled,
                ..Self::SIBLING
            },
            about: "codes go when read, and status latches only what is enabled",
        },
        Machine {
            name: "no_reset",
            forks: Self {
                reset: Reset::Absent,
                ..Self::SIBLING
            },
            about: "no function-level reset",
        },
        Machine {
            name: "one_way",
            forks: Self {
                reset: Reset::Lost,
                unknown_engine: UnknownEngine::Hangs,
                ..Self::SIBLING
            },
            about: "does not come back from a reset; an unknown engine hangs",
        },
        Machine {
            name: "short_ring",
            forks: Self {
                ring: RingLimit::ReadsBack(STOCK_ENTRIES_LOG2),
                unknown_engine: UnknownEngine::Taken,
                ..Self::SIBLING
            },
            about: "SIZE reads back as 32 entries; an unknown engine copies",
        },
        Machine {
            name: "false_ring",
            forks: Self {
                ring: RingLimit::Wraps(STOCK_ENTRIES_LOG2),
                ..Self::SIBLING
            },
            about: "takes any SIZE, and wraps after 32 entries",
        },
    ];

    /// What a machine of this name is like.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let machine = Self::MACHINES.iter().find(|m| m.name == name)?;
        Some(machine.forks)
    }

    /// Why there can be no such machine: the stock driver would not work on it, or two of its
    /// answers contradict each other. None: it makes sense.
    #[must_use]
    pub fn objection(&self) -> Option<&'static str> {
        if self.ring.log2() < STOCK_ENTRIES_LOG2 {
            return Some("the stock driver's ring has 32 entries");
        }
        if self.halt == Halt::Never && self.late != Late::No {
            return Some(EXCLUSIONS[0].1);
        }
        None
    }

    /// This machine with each of its answers changed alone to each of the others, as far as that
    /// makes sense.
    #[must_use]
    pub fn deviations(&self) -> Vec<Self> {
        let mut all = Vec::new();
        for question in Self::QUESTIONS {
            for answer in question.answers {
                let mut other = *self;
                // The table's own words: the tests parse each of them.
                if other.set(question.key, answer).is_ok()
                    && other != *self
                    && other.objection().is_none()
                {
                    all.push(other);
                }
            }
        }
        all
    }

    /// Machines that together hold every pair of answers that makes sense. Always the same ones,
    /// in the same order.
    ///
    /// Greedy: each machine begins with the first pair that is still missing; then each question
    /// in turn gets the answer that adds most of the missing pairs.
    #[must_use]
    pub fn covering() -> Vec<Self> {
        let mut missing = Pairs::sensible();
        let mut machines = Vec::new();
        while let Some(row) = missing.next_row() {
            let mut forks = Self::TODAY;
            for (question, &answer) in Self::QUESTIONS.iter().zip(&row) {
                let parsed = forks.set(question.key, question.answers[answer]);
                debug_assert_eq!(parsed, Ok(()), "the table's own words");
            }
            missing.remove(&row);
            machines.push(forks);
        }
        machines
    }
}

/// Number of pairs of answers that make sense: what [`Forks::covering`] covers.
#[must_use]
pub fn sensible_pairs() -> usize {
    Pairs::sensible().left.len()
}

/// Pairs of answers that no machine has yet: (question, answer) twice, the lower question first.
struct Pairs {
    left: std::collections::BTreeSet<[(usize, usize); 2]>,
}

impl Pairs {
    fn sensible() -> Self {
        let mut left = std::collections::BTreeSet::new();
        for (q, first) in Forks::QUESTIONS.iter().enumerate() {
            for (r, second) in Forks::QUESTIONS.iter().enumerate().skip(q + 1) {
                for a in 0..first.answers.len() {
                    for b in 0..second.answers.len() {
                        let pair = [(q, a), (r, b)];
                        if !excluded(pair) {
                            left.insert(pair);
                        }
                    }
                }
            }
        }
        Self { left }
    }

    /// The answers of the next machine; none if no pair is missing.
    fn next_row(&self) -> Option<Vec<usize>> {
        let [(q, a), (r, b)] = *self.left.first()?;
        let mut row: Vec<Option<usize>> = vec![None; Forks::QUESTIONS.len()];
        row[q] = Some(a);
        row[r] = Some(b);
        for (s, question) in Forks::QUESTIONS.iter().enumerate() {
            if row[s].is_some() {
                continue;
            }
            let chosen = (0..question.answers.len())
                .filter(|&c| row_pairs(&row, (s, c)).all(|pair| !excluded(pair)))
                // The first of the best: `max_by_key` takes the last.
                .rev()
                .max_by_key(|&c| {
                    row_pairs(&row, (s, c))
                        .filter(|pair| self.left.contains(pair))
                        .count()
                });
            // An exclusion leaves every question an answer: each names one of several.
            row[s] = chosen.or(Some(0));
        }
        row.into_iter().collect()
    }

    fn remove(&mut self, row: &[usize]) {
        for (r, &b) in row.iter().enumerate() {
            for (q, &a) in row.iter().enumerate().take(r) {
                self.left.remove(&[(q, a), (r, b)]);
            }
        }
    }
}

/// The pairs that an answer makes with those already chosen.
fn row_pairs(
    row: &[Option<usize>],
    new: (usize, usize),
) -> impl Iterator<Item = [(usize, usize); 2]> {
    row.iter().enumerate().filter_map(move |(q, a)| {
        let other = (q, (*a)?);
        Some(if other < new {
            [other, new]
        } else {
            [new, other]
        })
    })
}

fn excluded(pair: [(usize, usize); 2]) -> bool {
    let words = pair.map(|(q, a)| {
        let question = &Forks::QUESTIONS[q];
        (question.key, question.answers[a])
    });
    EXCLUSIONS.iter().any(|(no, _)| *no == words)
}

impl Default for Forks {
    fn default() -> Self {
        Self::TODAY
    }
}

/// The machine with a name that is nearest, and what differs.
impl fmt::Display for Forks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = self.answers();
        let differing = |machine: &Machine| {
            let theirs = machine.forks.answers();
            let words = Self::QUESTIONS.iter().zip(own.iter().zip(theirs));
            words
                .filter(|(_, (own, theirs))| *own != theirs)
                .map(|(question, (own, _))| (question.key, own.clone()))
                .collect::<Vec<_>>()
        };
        let nearest = Self::MACHINES.iter().map(|m| (m.name, differing(m)));
        if let Some((name, differences)) = nearest.min_by_key(|(_, d)| d.len()) {
            f.write_str(name)?;
            for (key, answer) in differences {
                write!(f, ",{key}={answer}")?;
            }
        }
        Ok(())
    }
}

/// A name and what differs from it. Without a name, the default.
impl FromStr for Forks {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut forks = Self::default();
        for (n, word) in text.split(',').map(str::trim).enumerate() {
            match word.split_once('=') {
                Some((key, answer)) => forks.set(key.trim(), answer.trim())?,
                None if n == 0 => {
                    forks =
                        Self::named(word).ok_or_else(|| ParseError::Machine(word.to_owned()))?;
                }
                None => return Err(ParseError::Question(word.to_owned())),
            }
        }
        Ok(forks)
    }
}

impl TryFrom<String> for Forks {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<Forks> for String {
    fn from(forks: Forks) -> Self {
        forks.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_answer_parses_and_prints() {
        for (n, question) in Forks::QUESTIONS.iter().enumerate() {
            for answer in question.answers {
                let mut forks = Forks::TODAY;
                forks.set(question.key, answer).unwrap();
                assert_eq!(forks.answers()[n], *answer);
                assert_eq!(forks.to_string().parse(), Ok(forks), "{forks}");
            }
        }
    }

    #[test]
    fn machines_have_names_of_their_own_and_make_sense() {
        let names: BTreeSet<_> = Forks::MACHINES.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), Forks::MACHINES.len());
        let kinds: BTreeSet<_> = Forks::MACHINES.iter().map(|m| m.forks.answers()).collect();
        assert_eq!(kinds.len(), Forks::MACHINES.len());
        for machine in Forks::MACHINES {
            assert_eq!(machine.forks.objection(), None, "{}", machine.name);
            assert_eq!(machine.forks.to_string(), machine.name);
            assert_eq!(machine.name.parse(), Ok(machine.forks));
        }
        assert!(Forks::MACHINES.len() >= 16);
    }

    #[test]
    fn text_forms() {
        let forks: Forks = " sibling , halt=never, head = past ".parse().unwrap();
        assert_eq!(forks.halt, Halt::Never);
        assert_eq!(forks.error_head, ErrorHead::Past);
        assert_eq!(forks.restart, Restart::Tail);
        // "silent" is as near, and comes later.
        assert_eq!(forks.to_string(), "sibling,halt=never,head=past");
        let forks: Forks = "late=50us,reset=away:7reads,ring=wraps:64".parse().unwrap();
        assert_eq!(forks.late, Late::For(Span::Micros(50)));
        assert_eq!(forks.reset, Reset::Away(Span::Reads(7)));
        assert_eq!(forks.ring, RingLimit::Wraps(6));
        assert_eq!(forks.to_string().parse(), Ok(forks));
        for bad in [
            "",
            "nobody",
            "today,sibling",
            "halt",
            "halt=",
            "halt=maybe",
            "colour=red",
            "late=5",
            "late=us",
            "reset=away",
            "ring=wraps:33",
            "ring=wraps:1",
            "ring=wraps:0",
            "today,",
        ] {
            assert!(bad.parse::<Forks>().is_err(), "{bad}");
        }
        let json = serde_json::to_string(&Forks::SIBLING).unwrap();
        assert_eq!(json, "\"sibling\"");
        assert_eq!(
            serde_json::from_str::<Forks>(&json).unwrap(),
            Forks::SIBLING
        );
        assert!(serde_json::from_str::<Forks>("\"x\"").is_err());
    }

    #[test]
    fn every_sensible_pair_is_covered_and_no_other() {
        let machines = Forks::covering();
        let mut seen = BTreeSet::new();
        for machine in &machines {
            assert_eq!(machine.objection(), None, "{machine}");
            let answers = machine.answers();
            for (q, a) in answers.iter().enumerate() {
                for (r, b) in answers.iter().enumerate().skip(q + 1) {
                    seen.insert((q, a.clone(), r, b.clone()));
                }
            }
        }
        // Counted here by themselves, not by the code under test.
        let mut wanted = 0;
        for (q, first) in Forks::QUESTIONS.iter().enumerate() {
            for (r, second) in Forks::QUESTIONS.iter().enumerate().skip(q + 1) {
                for a in first.answers {
                    for b in second.answers {
                        let words = [(first.key, *a), (second.key, *b)];
                        let sensible = EXCLUSIONS.iter().all(|(no, _)| *no != words);
                        let has = seen.contains(&(q, (*a).to_owned(), r, (*b).to_owned()));
                        assert_eq!(has, sensible, "{words:?}");
                        wanted += usize::from(sensible);
                    }
                }
            }
        }
        assert_eq!(wanted, sensible_pairs());
        assert_eq!(machines, Forks::covering());
        // The two longest questions alone need 24.
        assert!((24..48).contains(&machines.len()), "{}", machines.len());
    }

    #[test]
    fn exclusions_are_objections() {
        for (pair, why) in EXCLUSIONS {
            let mut forks = Forks::TODAY;
            for (key, answer) in pair {
                forks.set(key, answer).unwrap();
            }
            assert_eq!(forks.objection(), Some(*why));
        }
        let short: Forks = "ring=wraps:16".parse().unwrap();
        assert!(short.objection().is_some());
    }

    #[test]
    fn deviations_differ_in_one_answer() {
        for base in [Forks::TODAY, Forks::SIBLING] {
            let all = base.deviations();
            let answers: usize = Forks::QUESTIONS.iter().map(|q| q.answers.len() - 1).sum();
            assert_eq!(all.len(), answers);
            for other in all {
                let changed = base.answers().into_iter().zip(other.answers());
                assert_eq!(changed.filter(|(a, b)| a != b).count(), 1);
            }
        }
    }
}
