//! What compiled objects hold, so that two builds can be told to be the same code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use object::{
    Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionFlags, SymbolIndex, elf,
};

use crate::key::Key;

/// Sections that hold line numbers of the source: they change with every line that is put
/// above them, and none of it is executed.
const LINE_NUMBERS: &[&str] = &["__bug_table", "__dyndbg", "printk_index"];

/// What a folder of objects defines, needs and consists of.
#[derive(Debug, Default)]
pub(super) struct Objects {
    /// By path below the folder.
    digests: BTreeMap<String, String>,
    defined: BTreeSet<String>,
    needed: BTreeSet<String>,
}

impl Objects {
    /// Reads the objects below `root`, of which `names` are the paths; those that this
    /// build has not made are left out.
    pub(super) fn read(root: &Path, names: &[String]) -> Result<Self> {
        let mut all = Self::default();
        for name in names {
            let path = root.join(name);
            let Ok(bytes) = fs::read(&path) else {
                continue;
            };
            all.add(name, &bytes)
                .with_context(|| format!("cannot read {}", path.display()))?;
        }
        Ok(all)
    }

    fn add(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let file = object::File::parse(bytes)?;
        for symbol in file.symbols() {
            let Ok(symbol_name) = symbol.name() else {
                continue;
            };
            if symbol_name.is_empty() || !symbol.is_global() {
                continue;
            }
            if symbol.is_undefined() {
                self.needed.insert(symbol_name.to_owned());
            } else {
                self.defined.insert(symbol_name.to_owned());
            }
        }
        self.digests.insert(name.to_owned(), digest(&file)?);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.digests.len()
    }

    /// The objects that are not the same code in both, or only in one.
    pub(super) fn differing(&self, other: &Self) -> Vec<String> {
        let names: BTreeSet<&String> = self.digests.keys().chain(other.digests.keys()).collect();
        names
            .into_iter()
            .filter(|name| self.digests.get(*name) != other.digests.get(*name))
            .cloned()
            .collect()
    }

    /// What these need and only `later` ones define: they do not link by themselves.
    pub(super) fn missing(&self, later: &Self) -> Vec<String> {
        self.needed
            .iter()
            .filter(|name| !self.defined.contains(*name) && later.defined.contains(*name))
            .cloned()
            .collect()
    }
}

/// A digest of all that is loaded, with what it refers to. Labels that the compiler
/// numbers through do not enter into it: a place in the object is a section and an offset.
fn digest(file: &object::File<'_>) -> Result<String> {
    let mut key = Key::new("object");
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else {
            continue;
        };
        let name = section.name()?;
        if !sh_flags.contains(elf::SHF_ALLOC) || LINE_NUMBERS.contains(&name) {
            continue;
        }
        key.text(name)
            .text(&format!("{sh_flags:?} {}", section.size()));
        key.bytes(section.data()?);
        for (offset, relocation) in section.relocations() {
            let target = match relocation.target() {
                RelocationTarget::Symbol(index) => place(file, index)?,
                other => format!("{other:?}"),
            };
            key.text(&format!(
                "{offset:x} {:?} {target} {:x}",
                relocation.flags(),
                relocation.addend()
            ));
        }
    }
    Ok(key.finish())
}

fn place(file: &object::File<'_>, index: SymbolIndex) -> Result<String> {
    let symbol = file.symbol_by_index(index)?;
    match symbol.section_index() {
        Some(section) => {
            let section = file.section_by_index(section)?;
            Ok(format!("{}+{:x}", section.name()?, symbol.address()))
        }
        None => Ok(symbol.name()?.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The object of a C text.
    fn compiled(folder: &Path, name: &str, text: &str) -> Result<Objects> {
        let source = folder.join("x.c");
        fs::write(&source, text)?;
        let status = Command::new("gcc")
            .args(["-O2", "-c", "-o"])
            .arg(folder.join(name))
            .arg(&source)
            .status()?;
        anyhow::ensure!(status.success(), "gcc: {status}");
        Objects::read(folder, &[name.to_owned()])
    }

    #[test]
    fn code_and_what_it_refers_to_count_and_lines_do_not() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let folder = folder.path();
        let call = "void a(void); void b(void); void f(void) { a(); }";
        let first = compiled(folder, "x.o", call)?;
        let moved = compiled(folder, "x.o", &format!("\n\n/* lines */\n{call}"))?;
        assert_eq!(first.len(), 1);
        assert!(first.differing(&moved).is_empty());
        // The same bytes: only the relocation tells them apart.
        let other = compiled(folder, "x.o", &call.replace("{ a(", "{ b("))?;
        assert_eq!(first.differing(&other), ["x.o"]);
        let none = Objects::default();
        assert_eq!(first.differing(&none), ["x.o"]);

        let numbered = |line: u32| {
            format!(
                "__attribute__((section(\"__bug_table\"))) int line = {line};\n\
                 void f(void) {{ }}"
            )
        };
        let first = compiled(folder, "x.o", &numbered(3))?;
        let second = compiled(folder, "x.o", &numbered(4))?;
        assert!(first.differing(&second).is_empty());
        Ok(())
    }

    #[test]
    fn a_function_of_a_later_patch_is_missed() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let folder = folder.path();
        let user = compiled(folder, "x.o", "void a(void); void f(void) { a(); }")?;
        let later = compiled(folder, "x.o", "void a(void) { }")?;
        assert_eq!(user.missing(&later), ["a"]);
        assert!(user.missing(&user).is_empty());
        assert!(later.missing(&user).is_empty());
        Ok(())
    }
}
