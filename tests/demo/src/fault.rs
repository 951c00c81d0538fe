//! Faults as words on the command line.

use std::str::FromStr;

use ptdma_model::fault::StallFor;
use ptdma_model::{Fault, FaultKind, Side, Trigger};

/// A fault, and the channel that has it.
#[derive(Clone, Debug)]
pub(crate) struct FaultSpec {
    /// What and when.
    pub(crate) fault: Fault,
    /// The one channel that has it; all, if none is named.
    pub(crate) channel: Option<usize>,
    /// As it was written.
    pub(crate) text: String,
}

impl FromStr for FaultSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (what, channel) = match text.split_once(':') {
            None => (text, None),
            Some((what, place)) => {
                let number = place
                    .strip_prefix("channel=")
                    .and_then(|number| number.parse().ok())
                    .ok_or_else(|| format!("'{place}' is not channel=N"))?;
                (what, Some(number))
            }
        };
        let (kind, trigger) = match what.split_once('@') {
            None => (what, Trigger::At(0)),
            Some((kind, trigger)) => (kind, parse_trigger(trigger)?),
        };
        Ok(Self {
            fault: Fault::new(trigger, parse_kind(kind)?),
            channel,
            text: text.to_owned(),
        })
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("'{text}' is no number"))
}

fn parse_trigger(text: &str) -> Result<Trigger, String> {
    match text.split_once('=') {
        None if text == "always" => Ok(Trigger::Always),
        None => Ok(Trigger::At(number(text)?)),
        Some(("every", n)) => match number(n)? {
            0 => Err("every=0 never happens".to_owned()),
            n => Ok(Trigger::Every { n, offset: n - 1 }),
        },
        Some(("chance", n)) => Ok(Trigger::Chance {
            per_million: number(n)?,
            seed: 1,
        }),
        Some(_) => Err(format!(
            "'{text}' is no trigger: a number, every=N, chance=PERMILLION or always"
        )),
    }
}

fn parse_kind(text: &str) -> Result<FaultKind, String> {
    let ever = |haltable| FaultKind::Stall {
        duration: StallFor::Ever,
        haltable,
    };
    Ok(match text.split_once('=').unwrap_or((text, "")) {
        ("error", code) => match number(if code.is_empty() { "19" } else { code })? {
            code @ 0..=63 => FaultKind::Error { code },
            code => return Err(format!("error code {code}: the field has 6 bits, 0 to 63")),
        },
        ("partial", bytes) => FaultKind::PartialWrite {
            len_bytes: number(if bytes.is_empty() { "100" } else { bytes })?,
            code: 38,
        },
        ("stall", "") => ever(true),
        ("stall", micros) => FaultKind::Stall {
            duration: StallFor::Micros(number(micros)?),
            haltable: true,
        },
        ("hang", "") => ever(false),
        ("lost-interrupt", "") => FaultKind::LostInterrupt,
        ("spurious-interrupt", "") => FaultKind::SpuriousInterrupt,
        ("gone", "") => FaultKind::AllOnes { reads: None },
        ("unmapped", "") => FaultKind::Unmapped {
            side: Side::Destination,
        },
        ("head", value) => FaultKind::HeadGarbage {
            value: number(if value.is_empty() { "305419896" } else { value })?,
            reads: Some(1),
        },
        ("no-halt", "") => FaultKind::IgnoreHalt,
        ("corrupt", "") => FaultKind::SilentCorruption,
        _ => return Err(format!("'{text}' is no fault; --help lists them")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let spec: FaultSpec = "error=20@every=7:channel=3".parse().unwrap();
        assert_eq!(spec.channel, Some(3));
        assert_eq!(spec.fault.kind, FaultKind::Error { code: 20 });
        assert_eq!(spec.fault.trigger, Trigger::Every { n: 7, offset: 6 });
        for good in [
            "hang",
            "stall=50@always",
            "gone@4",
            "head=1",
            "corrupt@chance=5",
        ] {
            assert!(good.parse::<FaultSpec>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "x",
            "error=64",
            "error@",
            "hang:chan=1",
            "stall@every=0",
        ] {
            assert!(bad.parse::<FaultSpec>().is_err(), "{bad}");
        }
    }
}
