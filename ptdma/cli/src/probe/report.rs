//! The report for programs.

use std::collections::BTreeMap;
use std::fs;

use ptdma_probe::{Answer, FunctionReport, HaltSeen, Measured, Question, Rate, SCHEMA};
use ptdma_vfio::{Candidate, Error};
use serde::Serialize;

/// The report of measured values that `tests/predict` takes.
const MEASURED_SCHEMA: &str = "ptdma-measured/1";

/// A probe of a machine.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    schema: &'static str,
    machine: Machine,
    pub(super) functions: Vec<Told>,
    /// Functions that copied at the same time.
    pub(super) together: Vec<Together>,
    /// Why not all could copy at the same time.
    pub(super) together_stop: Option<&'static str>,
    /// Values for the drivers.
    settings: BTreeMap<&'static str, u64>,
    /// For the prediction.
    measured: ForPrediction,
}

/// What was probed.
#[derive(Debug, Serialize)]
struct Machine {
    processor: String,
    kernel: String,
    /// Engines of a program reach memory through its IOMMU space.
    translation: bool,
}

/// One function.
#[derive(Debug, Serialize)]
pub(super) struct Told {
    pub(super) address: String,
    node: Option<u16>,
    group: Option<u32>,
    driver: Option<String>,
    version: u32,
    pub(super) ring_entries: u32,
    pub(super) answers: BTreeMap<&'static str, Answer>,
    pub(super) halt: HaltSeen,
    pub(super) measured: Measured,
    /// Why the probe ended early.
    pub(super) stop: Option<String>,
    compared_bytes: u64,
    pub(super) wrong_copies: u32,
}

/// Copies of several functions at once.
#[derive(Debug, Serialize)]
pub(super) struct Together {
    pub(super) functions: Vec<String>,
    pub(super) rate: Rate,
}

#[derive(Debug, Default, Serialize)]
struct ForPrediction {
    schema: &'static str,
    machine: String,
    costs: BTreeMap<&'static str, f64>,
}

fn first_line(path: &str, prefix: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(prefix));
    line.unwrap_or("unknown")
        .trim_start_matches([' ', '\t', ':'])
        .to_owned()
}

fn answers(report: &FunctionReport) -> BTreeMap<&'static str, Answer> {
    let all = Question::ALL.iter();
    all.map(|question| (question.key(), report.answer(*question)))
        .collect()
}

impl Told {
    pub(super) fn new(candidate: &Candidate, report: &FunctionReport) -> Self {
        Self {
            address: candidate.address.to_string(),
            node: candidate.node,
            group: candidate.group,
            driver: candidate.driver.clone(),
            version: report.version,
            ring_entries: report.ring_entries,
            answers: answers(report),
            halt: report.halt,
            measured: report.measured,
            stop: report.stop.map(|stop| stop.text().to_owned()),
            compared_bytes: report.compared_bytes,
            wrong_copies: report.wrong_copies,
        }
    }

    /// A function that could not be opened.
    pub(super) fn unopened(candidate: &Candidate, error: &Error) -> Self {
        Self {
            stop: Some(error.to_string()),
            ..Self::new(candidate, &FunctionReport::unknown())
        }
    }
}

impl Report {
    pub(super) fn new<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> Self {
        Self {
            schema: SCHEMA,
            machine: Machine {
                processor: first_line("/proc/cpuinfo", "model name"),
                kernel: first_line("/proc/sys/kernel/osrelease", ""),
                translation: true,
            },
            functions: Vec::with_capacity(candidates.count()),
            together: Vec::new(),
            together_stop: None,
            settings: BTreeMap::new(),
            measured: ForPrediction::default(),
        }
    }

    /// Whether all functions answered, and copied rightly.
    pub(super) fn is_good(&self) -> bool {
        let whole = |told: &Told| told.stop.is_none() && told.wrong_copies == 0;
        self.functions.iter().all(whole) && self.together_stop.is_none()
    }

    /// What follows for the drivers and for the prediction.
    pub(super) fn conclude(&mut self) {
        let asked = self.functions.iter().filter(|told| told.ring_entries > 0);
        if let Some(least) = asked.map(|told| u64::from(told.ring_entries)).min() {
            self.settings.insert("ring_entries", least);
        }
        let mut costs = BTreeMap::new();
        let mut put = |name, value: Option<f64>| {
            if let Some(value) = value.filter(|value| value.is_finite() && *value > 0.0) {
                costs.insert(name, value);
            }
        };
        put("read_ns", self.median(|m| m.read_ns));
        put("write_ns", self.median(|m| m.write_ns));
        put("descriptor_ns", self.median(|m| m.descriptor_ns));
        // From the message to the thread: without the copy itself.
        put(
            "wake_ns",
            self.median(|m| Some(m.interrupt_ns? - m.lone_copy_ns?)),
        );
        put("engine_gb_per_s", self.median(|m| longest(&m.rates)));
        // The least that two neighbours reach: those that share a port.
        let pairs = self.together.iter().filter(|one| one.functions.len() == 2);
        let longest = pairs
            .clone()
            .map(|one| one.rate.len_bytes)
            .max()
            .unwrap_or(0);
        let least = pairs
            .filter(|one| one.rate.len_bytes == longest)
            .map(|one| one.rate.gb_per_s())
            .min_by(f64::total_cmp);
        put("port_gb_per_s", least);
        self.measured = ForPrediction {
            schema: MEASURED_SCHEMA,
            machine: self.machine.processor.clone(),
            costs,
        };
    }

    fn median(&self, value: impl Fn(&Measured) -> Option<f64>) -> Option<f64> {
        let mut all: Vec<f64> = self
            .functions
            .iter()
            .filter_map(|told| value(&told.measured))
            .collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }
}

/// The rate of the longest copies.
pub(super) fn longest(rates: &[Option<Rate>]) -> Option<f64> {
    rates.iter().flatten().next_back().map(Rate::gb_per_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(address: &str) -> Candidate {
        Candidate {
            address: address.parse().expect("an address"),
            driver: None,
            group: Some(1),
            node: Some(0),
        }
    }

    #[test]
    fn a_report_says_what_programs_read() {
        let one = candidate("0000:21:00.2");
        let mut found = FunctionReport::unknown();
        found.ring_entries = 64;
        found.set(Question::Ring, Answer::Unknown("nobody asked"));
        found.measured.read_ns = Some(500.0);
        let mut report = Report::new(std::iter::once(&one));
        report.functions.push(Told::new(&one, &found));
        report.conclude();
        let json = serde_json::to_value(&report).expect("a report");
        assert_eq!(json["schema"], "ptdma-probe/1");
        assert_eq!(json["settings"]["ring_entries"], 64);
        assert_eq!(json["measured"]["schema"], "ptdma-measured/1");
        assert_eq!(json["measured"]["costs"]["read_ns"], 500.0);
        assert!(json["measured"]["costs"].get("write_ns").is_none());
        let answers = &json["functions"][0]["answers"];
        assert_eq!(answers["ring"]["unknown"], "nobody asked");
        assert_eq!(
            answers.as_object().map(serde_json::Map::len),
            Some(Question::ALL.len())
        );
        assert!(report.is_good());
        report.functions[0].wrong_copies = 1;
        assert!(!report.is_good());
    }
}
