//! Comments of the libraries are made of sentences of at most 25 words: see `CONTRIBUTING.md`.
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

/// Most words of a sentence. What is longer has more than one fact in it.
const MOST_WORDS: usize = 25;

/// Folders whose comments are read, from the root of the tree.
const FOLDERS: [&str; 3] = ["ptdma/src", "batch-copy/src", "kshim/rust/src"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the tree") {
        let path = entry.expect("a folder of the tree").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// What a line says, if it is a comment.
fn comment(line: &str) -> Option<&str> {
    let text = line.trim_start().strip_prefix("//")?;
    Some(text.trim_start_matches(['/', '!']).trim())
}

/// The paragraphs of a file's comments, with the number of their first line. Code, headings and
/// tables are none; an item of a list is one.
fn paragraphs(file: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let (mut in_code, mut goes_on) = (false, false);
    for (number, line) in file.lines().enumerate() {
        let text = comment(line).unwrap_or_default();
        if text.starts_with("```") {
            in_code = !in_code;
        }
        let is_prose = !in_code && !text.starts_with("```") && !text.starts_with(['#', '|']);
        if text.is_empty() || !is_prose {
            goes_on = false;
            continue;
        }
        match found.last_mut() {
            Some((_, paragraph)) if goes_on && !text.starts_with("- ") => {
                paragraph.push(' ');
                paragraph.push_str(text);
            }
            _ => found.push((number + 1, text.trim_start_matches("- ").to_owned())),
        }
        goes_on = true;
    }
    found
}

/// Words of each sentence. A colon and a semicolon end one: what follows is a fact of its own.
fn sentences(paragraph: &str) -> Vec<Vec<&str>> {
    let mut found = vec![Vec::new()];
    for word in paragraph.split_whitespace() {
        if let Some(sentence) = found.last_mut() {
            sentence.push(word);
        }
        if word
            .trim_end_matches([')', '*', '_', '"'])
            .ends_with(['.', '!', '?', ':', ';'])
        {
            found.push(Vec::new());
        }
    }
    found
}

#[test]
fn no_sentence_is_longer_than_its_reader_s_breath() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    for folder in FOLDERS {
        sources(&root.join(folder), &mut files);
    }
    assert!(files.len() > 50, "the libraries have more files than that");
    let mut long = String::new();
    for path in files {
        let file = fs::read_to_string(&path).expect("a file of the tree");
        let shown = path.strip_prefix(&root).unwrap_or(&path).display();
        for (line, paragraph) in paragraphs(&file) {
            for sentence in sentences(&paragraph) {
                if sentence.len() > MOST_WORDS {
                    let (count, text) = (sentence.len(), sentence.join(" "));
                    long += &format!("{shown}:{line}: {count} words: {text}\n");
                }
            }
        }
    }
    assert!(long.is_empty(), "write two sentences of each:\n{long}");
}

#[test]
fn a_long_sentence_is_found() {
    let words = |count: usize| vec!["word"; count].join(" ");
    let file = format!(
        "/// One.\n/// {}.\n///\n/// {} `a.b`: two.\nfn f() {{}}\n",
        words(20),
        words(26)
    );
    let counts: Vec<usize> = paragraphs(&file)
        .iter()
        .flat_map(|(_, paragraph)| sentences(paragraph))
        .map(|sentence| sentence.len())
        .filter(|&count| count != 0)
        .collect();
    assert_eq!(counts, [1, 20, 27, 1]);
}
