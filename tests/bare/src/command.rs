//! The commands that the guest takes, one a line.

/// What the guest is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Every processor copies lists through all channels.
    Run {
        /// By interrupt, or else polled.
        interrupts: bool,
        /// Rounds of three lists.
        rounds: u32,
    },
    /// Channels out of service come back, by a reset of their functions.
    Revive,
    /// Every channel is shut down, and the machine ends.
    End,
}

impl Command {
    /// Reads `polled ROUNDS`, `interrupts ROUNDS`, `revive` or `end`.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let command = match (words.next()?, words.next()) {
            (way @ ("polled" | "interrupts"), Some(rounds)) => Self::Run {
                interrupts: way == "interrupts",
                rounds: rounds.parse().ok()?,
            },
            ("revive", None) => Self::Revive,
            ("end", None) => Self::End,
            _ => return None,
        };
        words.next().is_none().then_some(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_and_nothing_else() {
        let run = |interrupts, rounds| Some(Command::Run { interrupts, rounds });
        assert_eq!(Command::parse("polled 3"), run(false, 3));
        assert_eq!(Command::parse(" interrupts  12 "), run(true, 12));
        assert_eq!(Command::parse("revive"), Some(Command::Revive));
        assert_eq!(Command::parse("end"), Some(Command::End));
        for bad in [
            "",
            "run",
            "polled",
            "polled x",
            "polled 1 2",
            "end 1",
            "polled -1",
        ] {
            assert_eq!(Command::parse(bad), None, "{bad}");
        }
    }
}
