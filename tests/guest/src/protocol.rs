//! The messages.

use serde::{Deserialize, Serialize};

/// From the host to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Run a command with `/bin/sh -c` in a process group of its own.
    Run {
        /// Chosen by the host, unique within a boot.
        id: u64,
        /// The shell text.
        command: String,
        /// After this many milliseconds the whole process group is killed.
        timeout_ms: u64,
    },
    /// Kill the process group of a running command, which then replies.
    Kill {
        /// The id of the `Run` request.
        id: u64,
    },
    /// Power the machine off after a sync.
    PowerOff,
}

/// From the guest to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Reply {
    /// User space is up; sent once, before anything else.
    Hello {
        /// `uname -r`.
        release: String,
        /// Milliseconds since the guest's kernel started.
        uptime_ms: u64,
    },
    /// A command has ended.
    Done {
        /// The id of the `Run` request.
        id: u64,
        /// Exit status; 128 + n when signal n ended it, 124 after a time-out.
        code: i32,
        /// Standard output and standard error, as they came.
        output: String,
        /// Output beyond [`OUTPUT_LIMIT_BYTES`] was dropped.
        truncated: bool,
        /// The time limit ended the command.
        timed_out: bool,
    },
    /// The request could not be understood or started.
    Refused {
        /// The id of the request, 0 if it could not be read.
        id: u64,
        /// What was wrong.
        reason: String,
    },
}

/// How much output of one command is kept: enough for a kernel log, small beside
/// the guest's memory.
pub const OUTPUT_LIMIT_BYTES: usize = 4 << 20;

/// Exit status of a command that ran out of time, as `timeout(1)` reports it.
pub const TIMED_OUT_CODE: i32 = 124;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire_on_one_line() {
        let request = Request::Run {
            id: 7,
            command: "printf 'a\\nb'\nexit 3".into(),
            timeout_ms: 1500,
        };
        let line = serde_json::to_string(&request).expect("serializable");
        assert!(!line.contains('\n'), "{line}");
        assert_eq!(
            serde_json::from_str::<Request>(&line).expect("own output"),
            request
        );

        let reply = Reply::Done {
            id: 7,
            code: 3,
            output: "a\nb".into(),
            truncated: false,
            timed_out: false,
        };
        let line = serde_json::to_string(&reply).expect("serializable");
        assert!(!line.contains('\n'), "{line}");
        assert_eq!(
            serde_json::from_str::<Reply>(&line).expect("own output"),
            reply
        );
    }
}
