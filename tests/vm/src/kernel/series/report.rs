//! The table of what each patch does by itself.

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// How one check of one patch went.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "result", content = "note")]
pub(super) enum Verdict {
    Good(String),
    Bad(String),
    /// Not checked, and why.
    Skipped(String),
    /// Does not apply to this row.
    None,
}

impl Verdict {
    /// Good if nothing is listed.
    pub(super) fn nothing_in(list: &[String], good: String, bad: &str) -> Self {
        if list.is_empty() {
            Self::Good(good)
        } else {
            Self::Bad(format!("{bad}: {}", list.join("; ")))
        }
    }

    fn cell(&self) -> String {
        match self {
            Self::Good(note) if note.is_empty() => "ok".into(),
            Self::Good(note) => format!("ok, {note}"),
            Self::Bad(_) => "FAIL".into(),
            Self::Skipped(_) => "SKIPPED".into(),
            Self::None => String::new(),
        }
    }
}

/// One patch, or the source without any.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// 0 is the source as it was unpacked.
    pub(super) number: usize,
    pub(super) subject: String,
    pub(super) applies: Verdict,
    /// `checkpatch --strict`.
    pub(super) style: Verdict,
    /// Builds with the option off.
    pub(super) off: Verdict,
    /// With the option off, the code is that of the source without patches.
    pub(super) same: Verdict,
    /// Builds with the option on.
    pub(super) on: Verdict,
    /// 32-bit builds, and does not have the option.
    pub(super) narrow: Verdict,
    /// The driver builds that the patch is for.
    pub(super) driver: Verdict,
}

impl Row {
    /// A row without any verdict.
    pub(super) fn new(number: usize, subject: &str) -> Self {
        Self {
            number,
            subject: subject.to_owned(),
            applies: Verdict::None,
            style: Verdict::None,
            off: Verdict::None,
            same: Verdict::None,
            on: Verdict::None,
            narrow: Verdict::None,
            driver: Verdict::None,
        }
    }

    fn verdicts(&self) -> [(&'static str, &Verdict); 7] {
        [
            ("applies", &self.applies),
            ("checkpatch", &self.style),
            ("option off", &self.off),
            ("off: same code", &self.same),
            ("option on", &self.on),
            ("32-bit", &self.narrow),
            ("driver", &self.driver),
        ]
    }
}

/// Prints everything; `false` if something is bad.
pub(super) fn print(rows: &[Row], json: bool) -> Result<bool> {
    let all = || rows.iter().flat_map(Row::verdicts);
    let bad = all()
        .filter(|(_, verdict)| matches!(verdict, Verdict::Bad(_)))
        .count();
    let skipped = all()
        .filter(|(_, verdict)| matches!(verdict, Verdict::Skipped(_)))
        .count();
    if json {
        println!("{}", serde_json::to_string_pretty(rows)?);
    } else {
        println!("{}", table(rows));
        for row in rows {
            for (what, verdict) in row.verdicts() {
                match verdict {
                    Verdict::Bad(note) => {
                        println!("FAIL     {} {}, {what}: {note}", row.number, row.subject);
                    }
                    Verdict::Skipped(note) => {
                        println!("SKIPPED  {} {}, {what}: {note}", row.number, row.subject);
                    }
                    Verdict::Good(_) | Verdict::None => {}
                }
            }
        }
    }
    eprintln!(
        "{} patches: {}, {skipped} skipped",
        rows.iter().filter(|row| row.number > 0).count(),
        if bad == 0 {
            "each applies and builds by itself".to_owned()
        } else {
            format!("{bad} checks failed")
        }
    );
    Ok(bad == 0)
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    let mut header = vec![""];
    if let Some(row) = rows.first() {
        header.extend(row.verdicts().map(|(what, _)| what));
    }
    table.set_header(header);
    for row in rows {
        let mut line = vec![format!("{}  {}", row.number, row.subject)];
        line.extend(row.verdicts().map(|(_, verdict)| verdict.cell()));
        table.add_row(line);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(same: Verdict) -> Row {
        Row {
            applies: Verdict::Good(String::new()),
            style: Verdict::Skipped("perl is missing".into()),
            off: Verdict::Good("3 objects".into()),
            same,
            on: Verdict::Good(String::new()),
            ..Row::new(1, "mm: copy")
        }
    }

    #[test]
    fn a_bad_verdict_fails_the_whole_and_a_skip_is_seen() -> Result<()> {
        let differs = Verdict::nothing_in(&["mm/a.o".into()], String::new(), "differs");
        assert_eq!(differs, Verdict::Bad("differs: mm/a.o".into()));
        let good = Verdict::nothing_in(&[], "3 objects".into(), "differs");
        assert!(print(&[row(good.clone())], false)?);
        assert!(!print(&[row(differs)], true)?);
        let text = table(&[row(good)]).to_string();
        assert!(
            text.contains("SKIPPED") && text.contains("ok, 3 objects"),
            "{text}"
        );
        Ok(())
    }
}
