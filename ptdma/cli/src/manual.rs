//! The manual page, from the same words as `--help`.

use anyhow::Result;
use clap::CommandFactory;
use clap_mangen::Man;

use crate::{Arguments, say};

/// The section of commands for administrators.
const SECTION: &str = "8";

/// Prints the page of the command, with a section for each of its own commands.
pub(crate) fn run() -> Result<bool> {
    say::print(String::from_utf8(page()?)?.trim_end())?;
    Ok(true)
}

fn page() -> Result<Vec<u8>> {
    let command = Arguments::command();
    let mut page = Vec::new();
    let man = Man::new(command.clone()).section(SECTION);
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    for part in command.get_subcommands().filter(|part| !part.is_hide_set()) {
        page.extend(format!(".SH \"PTDMA {}\"\n", part.get_name().to_uppercase()).bytes());
        if let Some(about) = part.get_about() {
            page.extend(format!("{about}.\n").bytes());
        }
        for argument in part.get_arguments() {
            let name = match argument.get_long() {
                Some(long) => format!("\\-\\-{long}"),
                None => argument.get_id().to_string().to_uppercase(),
            };
            let help = argument.get_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            page.extend(format!(".TP\n\\fB{name}\\fR\n{help}\n").bytes());
        }
    }
    page.extend(
        b".SH \"EXIT STATUS\"\n0: done. 1: something failed, stayed behind, or was refused. \
          2: a wrong command line.\n",
    );
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_section() -> Result<()> {
        let page = String::from_utf8(page()?)?;
        for name in ["STATUS", "MOVE", "BENCH", "SELFTEST"] {
            assert!(page.contains(&format!(".SH \"PTDMA {name}\"")), "{page}");
        }
        assert!(!page.contains("MANUAL"), "{page}");
        assert!(page.contains("\\-\\-range"), "{page}");
        Ok(())
    }
}
