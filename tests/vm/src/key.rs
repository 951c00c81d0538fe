//! Content keys: derived things are found again by what they were made from.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Collects what a derived thing depends on.
#[derive(Clone)]
pub(crate) struct Key(Sha256);

impl Key {
    /// Starts a key of one kind of thing; the kind keeps equal inputs of different
    /// kinds apart, and a changed recipe changes the kind's name.
    pub(crate) fn new(kind: &str) -> Self {
        let mut key = Self(Sha256::new());
        key.text(kind);
        key
    }

    /// Adds a text.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// Adds bytes, with their length, so that no two lists of parts run together.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Adds a file's content, not its name.
    pub(crate) fn file(&mut self, path: &Path) -> Result<&mut Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(self.bytes(&bytes))
    }

    /// Adds every file below a folder, with its path relative to the folder.
    pub(crate) fn tree(&mut self, root: &Path) -> Result<&mut Self> {
        for path in files_below(root)? {
            let relative = path.strip_prefix(root).unwrap_or(&path);
            self.text(&relative.to_string_lossy());
            self.file(&path)?;
        }
        Ok(self)
    }

    /// The key as a file name: 80 bits are plenty among a few dozen builds.
    pub(crate) fn finish(&self) -> String {
        self.0
            .clone()
            .finalize()
            .iter()
            .take(10)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// All regular files below a folder, sorted; hidden ones and `target` are left out.
pub(crate) fn files_below(root: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_string_lossy().starts_with('.') || name == "target" {
                continue;
            }
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_together() {
        let of = |parts: &[&str]| {
            let mut key = Key::new("test");
            for part in parts {
                key.text(part);
            }
            key.finish()
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["ab"]), of(&["ab", ""]));
        assert_eq!(of(&["ab", "c"]), of(&["ab", "c"]));
        assert_ne!(Key::new("a").finish(), Key::new("b").finish());
    }

    #[test]
    fn a_tree_is_its_names_and_contents() -> Result<()> {
        let folder = tempfile::tempdir()?;
        fs::create_dir(folder.path().join("sub"))?;
        fs::write(folder.path().join("sub/a"), "1")?;
        let key = |root: &Path| -> Result<String> { Ok(Key::new("t").tree(root)?.finish()) };
        let before = key(folder.path())?;
        fs::create_dir(folder.path().join("target"))?;
        fs::write(folder.path().join("target/b"), "x")?;
        assert_eq!(before, key(folder.path())?, "build output is not content");
        fs::rename(folder.path().join("sub/a"), folder.path().join("sub/b"))?;
        assert_ne!(before, key(folder.path())?, "names count");
        Ok(())
    }
}
