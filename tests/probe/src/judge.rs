//! Compares answers with how the model was set.

use ptdma_model::Forks;
use ptdma_probe::{Answer, Consent, Question};

/// What came of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    /// Answers that are wrong, or missing though nothing stands in the way.
    pub wrong: Vec<String>,
    /// Questions with the one right answer.
    pub exact: usize,
    /// Questions with several answers left, the right one among them.
    pub among: usize,
    /// Questions that could not be asked, rightly.
    pub unknown: usize,
}

/// The words of one answer, as a report has them, and the reason if there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// Words that are left.
    pub left: Vec<String>,
    /// Why there are none.
    pub unknown: Option<String>,
}

impl From<Answer> for Words {
    fn from(answer: Answer) -> Self {
        Self {
            left: answer.words().map(|word| word.to_string()).collect(),
            unknown: match answer {
                Answer::Unknown(why) => Some(why.to_owned()),
                _ => None,
            },
        }
    }
}

/// Whether a question of the model may stay open on this machine, because every step behaves the
/// same on several answers: what of HALT cannot be told where HALT tells little.
fn may_be_among(key: &str) -> bool {
    matches!(key, "halt" | "idle_stop" | "control_write")
}

/// The word that the probe should have for a setting of the model.
fn wanted(key: &str, setting: &str, entries: u64) -> String {
    match (key, setting) {
        ("ring", "any") => format!("any:{entries}"),
        ("late", "no") => "no".into(),
        ("late", _) => "yes".into(),
        // A function that comes back later does come back.
        ("reset", away) if away.starts_with("away") => "works".into(),
        _ => setting.to_owned(),
    }
}

/// Compares all answers of a function that was probed with `consent`, on a platform that can
/// refuse a write, if `refuses`.
#[must_use]
pub fn judge(
    forks: Forks,
    consent: Consent,
    refuses: bool,
    entries: u64,
    answer: impl Fn(Question) -> Words,
) -> Judged {
    let mut judged = Judged::default();
    for (question, setting) in Forks::QUESTIONS.iter().zip(forks.answers()) {
        let Some(asked) = Question::ALL.iter().find(|q| q.key() == question.key) else {
            judged.wrong.push(format!("{} is not asked", question.key));
            continue;
        };
        let words = answer(*asked);
        let right = wanted(question.key, &setting, entries);
        let has = words.left.contains(&right);
        let resets = forks.answers().contains(&"absent".to_owned())
            || forks.answers().contains(&"lost".to_owned());
        let excused = match question.key {
            "reset" => !consent.reset,
            // A hang could not be ended.
            "engine" => !consent.reset || resets,
            "head" | "code" => !refuses,
            _ => false,
        };
        let open = match question.key {
            "run" => !refuses,
            key => may_be_among(key),
        };
        match (words.left.len(), words.unknown) {
            (1, _) if has => judged.exact += 1,
            (2.., _) if has && open => judged.among += 1,
            (0, Some(why)) if excused && !why.is_empty() => judged.unknown += 1,
            (_, unknown) => judged.wrong.push(format!(
                "{}={setting}: {:?} {unknown:?}",
                question.key, words.left
            )),
        }
    }
    judged
}
