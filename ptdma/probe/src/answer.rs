//! Questions, and what an answer looks like.

use core::fmt;

/// An answer in one word, and a number where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// The word.
    pub text: &'static str,
    /// The number.
    pub number: Option<u64>,
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            None => f.write_str(self.text),
            Some(number) => write!(f, "{}:{number}", self.text),
        }
    }
}

/// What was found out about a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This was seen.
    Is(Word),
    /// One of several that behave the same: bit `n` stands for word `n`.
    Among {
        /// All words of the question.
        words: &'static [&'static str],
        /// Which of them are left.
        mask: u8,
    },
    /// Nothing, for this reason.
    Unknown(&'static str),
}

impl Answer {
    pub(crate) const fn is(text: &'static str) -> Self {
        Self::Is(Word { text, number: None })
    }

    pub(crate) const fn number(text: &'static str, number: u64) -> Self {
        Self::Is(Word {
            text,
            number: Some(number),
        })
    }

    /// The words that are left; none if nothing is known.
    pub fn words(&self) -> impl Iterator<Item = Word> + '_ {
        let (one, words, mask) = match *self {
            Self::Is(word) => (Some(word), &[][..], 0),
            Self::Among { words, mask } => (None, words, mask),
            Self::Unknown(_) => (None, &[][..], 0),
        };
        let left = words.iter().enumerate().filter_map(move |(n, text)| {
            let bit = 1_u8.checked_shl(n as u32)?;
            (mask & bit != 0).then_some(Word { text, number: None })
        });
        one.into_iter().chain(left)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Unknown(why) = self {
            return write!(f, "unknown: {why}");
        }
        for (n, word) in self.words().enumerate() {
            if n > 0 {
                f.write_str(" or ")?;
            }
            word.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Answer {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        struct Words<'a>(&'a Answer);
        impl serde::Serialize for Words<'_> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                struct Shown(Word);
                impl serde::Serialize for Shown {
                    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                        s.collect_str(&self.0)
                    }
                }
                serializer.collect_seq(self.0.words().map(Shown))
            }
        }
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Self::Is(word) => map.serialize_entry("is", &format_args!("{word}"))?,
            Self::Among { .. } => map.serialize_entry("among", &Words(self))?,
            Self::Unknown(why) => map.serialize_entry("unknown", why)?,
        }
        map.end()
    }
}

macro_rules! questions {
    ($($name:ident = $key:literal, $text:literal;)+) => {
        /// A question that no public source answers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Question { $(#[doc = $text] $name,)+ }

        impl Question {
            /// All of them, in the order of reports.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Its name in reports. Where the device model has a switch for the question, the
            /// names are the same.
            #[must_use]
            pub const fn key(self) -> &'static str {
                match self { $(Self::$name => $key,)+ }
            }

            /// The question for people.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

questions! {
    Restart = "restart", "What a drained queue needs to go on";
    Plain = "plain", "A descriptor without IOC and EOM";
    Ring = "ring", "The longest ring";
    Halt = "halt", "When HALT reads 1";
    IdleStop = "idle_stop", "HALT after RUN was taken from an idle engine";
    ControlWrite = "control_write", "A write of control while HALT reads 1";
    Late = "late", "HALT reads 1 for a while after RUN";
    Run = "run", "What clears RUN";
    Job = "job", "The job status in bits 9:7 of the status";
    Head = "head", "Where head is after a failing copy";
    Behind = "behind", "What lies behind a failing copy";
    Code = "code", "How long the code of an error stays";
    ErrorOrder = "error_order", "ERROR, once head has passed a failing copy";
    Latch = "latch", "Interrupt status of a source that is off";
    Completion = "completion", "Which descriptors latch COMPLETION";
    Enable = "enable", "The interrupt enable register";
    Rearm = "rearm", "The next interrupt after status was cleared";
    BusMaster = "bus_master", "The engine without bus mastering";
    Longest = "longest", "The longest copy tried, in bytes";
    Alignment = "alignment", "Addresses and lengths that are odd";
    Boundary = "boundary", "A copy across a multiple of 4 GiB";
    Arrival = "arrival", "Bytes of a copy that head has passed";
    Reset = "reset", "The function-level reset";
    Pointers = "pointers", "Head and tail after a reset";
    Engine = "engine", "A descriptor for an unknown engine";
    RefusedHead = "refused_head", "Where head is after a refused descriptor";
}

/// How many questions there are.
pub(crate) const COUNT: usize = Question::ALL.len();

/// Why a question has no answer yet.
pub(crate) const NOT_ASKED: Answer = Answer::Unknown("an earlier step ended the probe");
