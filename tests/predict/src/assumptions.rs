//! What a prediction starts from: fitted costs, assumed ones, and measured values in their place.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::costs::{ASSUMED, Costs, Hypothesis, Origin};
use crate::published::FolioSize;

/// The version of the report of measured values that this crate reads. It changes whenever a
/// field gets another meaning or goes.
pub const SCHEMA: &str = "ptdma-measured/1";

/// The version of the report of `ptdma probe` that this crate reads. Its part `measured` is a
/// report of measured values.
pub const PROBE_SCHEMA: &str = "ptdma-probe/1";

/// Who moved the folios of a measured cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Who {
    /// The kernel without offload.
    Cpu,
    /// The published driver.
    Published,
    /// This tree's driver.
    Ours,
}

/// A measured throughput of `move_pages`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredCell {
    /// Who.
    pub who: Who,
    /// Channels in use; 0 for the CPU.
    pub channels: usize,
    /// Folio size.
    pub folio: FolioSize,
    /// Folios of the call.
    pub folios: u64,
    /// GB/s.
    pub gb_per_s: f64,
}

/// A report of measured values.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// [`SCHEMA`].
    pub schema: String,
    /// Which machine, in words.
    pub machine: String,
    /// Which hypothesis holds, if that was found out.
    pub hypothesis: Option<Hypothesis>,
    /// Costs, by the names of [`Costs`]; those that are missing stay as they are.
    #[serde(default)]
    pub costs: serde_json::Map<String, Value>,
    /// Cells, to be shown beside the predicted ones.
    #[serde(default)]
    pub cells: Vec<MeasuredCell>,
}

/// Everything that a prediction needs.
#[derive(Clone, Debug, Serialize)]
pub struct Assumptions {
    /// What things cost.
    pub costs: Costs,
    /// Where each cost comes from.
    pub origins: BTreeMap<String, Origin>,
    /// The hypotheses that are run.
    pub hypotheses: Vec<Hypothesis>,
    /// The machine of the measured values.
    pub machine: Option<String>,
    /// Measured cells.
    pub measured: Vec<MeasuredCell>,
}

impl Default for Assumptions {
    fn default() -> Self {
        let costs = Costs::default();
        let origin = |name: &String| {
            let assumed = ASSUMED.iter().any(|(other, _)| other == name);
            let origin = if assumed {
                Origin::Assumed
            } else {
                Origin::Fitted
            };
            (name.clone(), origin)
        };
        let origins = fields(&costs).keys().map(origin).collect();
        Self {
            costs,
            origins,
            hypotheses: Hypothesis::BOTH.to_vec(),
            machine: None,
            measured: Vec::new(),
        }
    }
}

fn fields(costs: &Costs) -> serde_json::Map<String, Value> {
    match serde_json::to_value(costs) {
        Ok(Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    }
}

/// A number that a cost may have: times and rates are neither negative nor endless.
fn number(name: &str, value: &Value) -> anyhow::Result<f64> {
    let number = value
        .as_f64()
        .with_context(|| format!("{name} is no number"))?;
    let rate = name.contains("gb_per_s");
    ensure!(
        number.is_finite() && number >= 0.0 && !(rate && number == 0.0),
        "{name} cannot be {number}"
    );
    ensure!(
        name != "before_share" || number <= 1.0,
        "before_share is a share: {number} is more than 1"
    );
    Ok(number)
}

impl Assumptions {
    /// Puts costs in the place of those that are there.
    ///
    /// # Errors
    ///
    /// If there is no cost of that name, or its value cannot be.
    pub fn replace(
        &mut self,
        costs: &serde_json::Map<String, Value>,
        origin: Origin,
    ) -> anyhow::Result<()> {
        let mut all = fields(&self.costs);
        for (name, value) in costs {
            match (all.get_mut(name), value) {
                (Some(Value::Object(sizes)), Value::Object(new)) => {
                    for (size, value) in new {
                        ensure!(sizes.contains_key(size), "{name} has no size {size:?}");
                        number(name, value)?;
                        sizes.insert(size.clone(), value.clone());
                    }
                }
                (Some(old @ Value::Number(_)), value) => {
                    number(name, value)?;
                    *old = value.clone();
                }
                (Some(_), _) => bail!("{name} is a value for each folio size"),
                (None, _) => bail!("there is no cost {name:?}"),
            }
            self.origins.insert(name.clone(), origin);
        }
        self.costs = serde_json::from_value(Value::Object(all))?;
        Ok(())
    }

    /// Takes `NAME=VALUE` of the command line; `other_ns.2M=9000` for one folio size.
    ///
    /// # Errors
    ///
    /// As [`replace`](Self::replace).
    pub fn set(&mut self, text: &str) -> anyhow::Result<()> {
        let (name, value) = text
            .split_once('=')
            .with_context(|| format!("{text:?} is not NAME=VALUE"))?;
        let value: f64 = value
            .parse()
            .with_context(|| format!("{value:?} is no number"))?;
        let mut costs = serde_json::Map::new();
        match name.split_once('.') {
            Some((name, size)) => {
                let mut sizes = serde_json::Map::new();
                sizes.insert(size.to_owned(), value.into());
                costs.insert(name.to_owned(), sizes.into());
            }
            None => {
                costs.insert(name.to_owned(), value.into());
            }
        }
        self.replace(&costs, Origin::Assumed)
    }

    /// Takes a report of measured values, or that of a probe, which holds one.
    ///
    /// # Errors
    ///
    /// If it is no such report, of another version, or holds a value that cannot be.
    pub fn measure(&mut self, report: &str) -> anyhow::Result<()> {
        let mut named: Value = serde_json::from_str(report)?;
        if named.get("schema").and_then(Value::as_str) == Some(PROBE_SCHEMA) {
            named = named.get_mut("measured").map_or(Value::Null, Value::take);
        }
        let schema = named.get("schema").and_then(Value::as_str);
        ensure!(
            schema == Some(SCHEMA),
            "the report's schema is {}, this program reads {SCHEMA}",
            schema.unwrap_or("not named")
        );
        let report: Measured = serde_json::from_value(named)?;
        for cell in &report.cells {
            number("gb_per_s of a cell", &cell.gb_per_s.into())?;
        }
        self.replace(&report.costs, Origin::Measured)?;
        if let Some(hypothesis) = report.hypothesis {
            self.hypotheses = vec![hypothesis];
        }
        self.machine = Some(report.machine);
        self.measured = report.cells;
        Ok(())
    }

    /// The measured throughput of such a call.
    #[must_use]
    pub fn measured(
        &self,
        who: Who,
        channels: usize,
        folio: FolioSize,
        folios: u64,
    ) -> Option<f64> {
        let mut cells = self.measured.iter();
        cells
            .find(|c| {
                c.who == who && c.channels == channels && c.folio == folio && c.folios == folios
            })
            .map(|c| c.gb_per_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(report: &str) -> anyhow::Result<Assumptions> {
        let mut all = Assumptions::default();
        all.measure(report)?;
        Ok(all)
    }

    #[test]
    fn the_example_is_read_and_every_value_arrives() {
        let all = measured(include_str!("../data/measured-example.json")).unwrap();
        let example: Measured =
            serde_json::from_str(include_str!("../data/measured-example.json")).unwrap();
        let costs = fields(&all.costs);
        assert!(!example.costs.is_empty() && !example.cells.is_empty());
        for (name, value) in &example.costs {
            assert_eq!(all.origins[name], Origin::Measured);
            match value {
                Value::Object(sizes) => {
                    for (size, value) in sizes {
                        assert_eq!(costs[name][size].as_f64(), value.as_f64());
                    }
                }
                value => assert_eq!(costs[name].as_f64(), value.as_f64()),
            }
        }
        assert_eq!(all.hypotheses, [example.hypothesis.unwrap()]);
        assert_eq!(all.measured, example.cells);
        // What was not measured stays.
        assert_eq!(all.origins["wake_ns"], Origin::Assumed);
        assert_eq!(
            all.costs.other(FolioSize::BASE),
            Costs::default().other(FolioSize::BASE)
        );
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let with = |rest: &str| {
            let text = format!(r#"{{"schema": "{SCHEMA}", "machine": "m", {rest}}}"#);
            format!("{:#}", measured(&text).unwrap_err())
        };
        for (rest, reason) in [
            (r#""costs": {"speed": 1}"#, "no cost \"speed\""),
            (r#""costs": {"read_ns": -1}"#, "cannot be -1"),
            (r#""costs": {"port_gb_per_s": 0}"#, "cannot be 0"),
            (r#""costs": {"read_ns": "fast"}"#, "no number"),
            (r#""costs": {"other_ns": 5}"#, "each folio size"),
            (r#""costs": {"other_ns": {"3M": 5}}"#, "no size \"3M\""),
            (r#""costs": {"before_share": 2}"#, "more than 1"),
            (r#""speed": 1"#, "unknown field"),
        ] {
            let error = with(rest);
            assert!(error.contains(reason), "{rest}: {error}");
        }
        let probe = format!(
            r#"{{"schema": "{PROBE_SCHEMA}", "functions": [], "measured": {{"schema": "{SCHEMA}",
               "machine": "m", "costs": {{"read_ns": 700, "port_gb_per_s": 12.5}}}}}}"#
        );
        let all = measured(&probe).unwrap();
        assert_eq!(all.costs.read_ns, 700.0);
        assert_eq!(all.origins["port_gb_per_s"], Origin::Measured);
        assert_eq!(all.hypotheses.len(), 2, "a probe does not tell them apart");
        let empty = format!(r#"{{"schema": "{PROBE_SCHEMA}"}}"#);
        assert!(measured(&empty).is_err());
        let other = r#"{"schema": "ptdma-measured/2", "machine": "m"}"#;
        let error = measured(other).unwrap_err().to_string();
        assert!(error.contains("ptdma-measured/2"), "{error}");
        assert!(measured("{").is_err());
    }

    #[test]
    fn a_value_of_the_command_line_is_one_cost() {
        let mut all = Assumptions::default();
        all.set("descriptor_ns=100").unwrap();
        all.set("other_ns.2M=9000").unwrap();
        assert_eq!(all.costs.descriptor_ns, 100.0);
        assert_eq!(all.costs.other(FolioSize::HUGE), 9_000.0);
        assert!(all.set("descriptor_ns").is_err() && all.set("descriptor_ns=x").is_err());
    }
}
