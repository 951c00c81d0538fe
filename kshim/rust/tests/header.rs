//! `include/ptdma_kshim.h` says in C what `src/abi.rs` and `src/exports.rs` say in Rust.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ptdma_kshim::abi;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Names of Rust types and what they are called in C.
const NAMES: &[(&str, &str)] = &[
    ("System", "ptdma_system"),
    ("Scratch", "ptdma_scratch"),
    ("Batch", "ptdma_batch"),
    ("Folio", "ptdma_folio"),
    ("Piece", "ptdma_piece"),
    ("Segment", "ptdma_segment"),
    ("Outcome", "ptdma_outcome"),
    ("RoundResult", "ptdma_result"),
    ("Settings", "ptdma_settings"),
    ("ChannelSetup", "ptdma_channel_setup"),
    ("ChannelService", "ptdma_service"),
    ("Round", "ptdma_round"),
    ("LockKind", "ptdma_lock_kind"),
    ("Engine", "ptdma_engine"),
    ("EngineRestart", "ptdma_restart"),
    ("EngineErrorHead", "ptdma_error_head"),
    ("ChannelStats", "ptdma_channel_stats"),
    ("Event", "ptdma_event"),
    ("RawLock", "ptdma_lock"),
];

/// What cbindgen calls types, and what the kernel does. An enum's width is fixed, so it is passed
/// as an integer; C's own `enum` would be an int.
const TYPES: &[(&str, &str)] = &[
    ("uint8_t", "u8"),
    ("uint16_t", "u16"),
    ("uint32_t", "u32"),
    ("uint64_t", "u64"),
    ("int32_t", "s32"),
    ("uintptr_t", "size_t"),
];

/// Enums, the integers they are passed as, and the beginning of their constants' names.
const ENUMS: &[(&str, &str, &str)] = &[
    ("ptdma_outcome", "u8", "PTDMA_OUTCOME_"),
    ("ptdma_service", "u32", "PTDMA_SERVICE_"),
    ("ptdma_lock_kind", "u32", "PTDMA_LOCK_"),
    ("ptdma_restart", "u8", "PTDMA_RESTART_"),
    ("ptdma_error_head", "u8", "PTDMA_ERROR_HEAD_"),
    ("ptdma_event", "u32", "PTDMA_EVENT_"),
];

fn generate() -> String {
    let mut config = cbindgen::Config {
        language: cbindgen::Language::C,
        style: cbindgen::Style::Tag,
        documentation: false,
        no_includes: true,
        ..cbindgen::Config::default()
    };
    config.enumeration.rename_variants = cbindgen::RenameRule::ScreamingSnakeCase;
    for (rust, c) in NAMES {
        config.export.rename.insert((*rust).into(), (*c).into());
        config.export.include.push((*rust).into());
    }
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in ["abi.rs", "exports.rs", "system.rs", "batch.rs"] {
        builder = builder.with_src(root().join("src").join(file));
    }
    let imports = Path::new(env!("CARGO_TARGET_TMPDIR")).join("imports.rs");
    fs::write(&imports, imports_as_exports()).expect("a temporary file");
    builder = builder.with_src(imports);
    let mut out = Vec::new();
    builder
        .generate()
        .expect("the sources parse")
        .write(&mut out);
    String::from_utf8(out).expect("text")
}

/// What `src/kernel.rs` imports, as functions that cbindgen prints.
fn imports_as_exports() -> String {
    let kernel = fs::read_to_string(root().join("src/kernel.rs")).expect("kernel.rs");
    let (_, block) = kernel.split_once("unsafe extern \"C\" {").expect("imports");
    let (block, _) = block
        .split_once("\n    }\n")
        .expect("an end of the imports");
    let functions: Vec<&str> = block.split_terminator(';').collect();
    functions
        .iter()
        .map(|one| one.trim())
        .filter(|one| !one.is_empty())
        .map(|one| {
            let rest = one.strip_prefix("pub(super) ").expect("an import");
            let rest = rest.strip_prefix("safe ").unwrap_or(rest);
            format!("#[unsafe(no_mangle)] pub extern \"C\" {rest} {{ loop {{}} }}\n")
        })
        .collect()
}

/// Words and punctuation, without comments, preprocessor lines and white space.
fn tokens(text: &str) -> Vec<String> {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, comment)) = rest.split_once("/*") {
        plain.push_str(before);
        rest = comment.split_once("*/").expect("comments end").1;
    }
    plain.push_str(rest);
    let mut tokens: Vec<String> = Vec::new();
    for line in plain.lines().filter(|line| !line.starts_with('#')) {
        let mut joined = false;
        for c in line.chars() {
            let word = c.is_alphanumeric() || c == '_';
            match tokens.last_mut() {
                Some(last) if joined && word => last.push(c),
                _ if c.is_whitespace() => {}
                _ => tokens.push(c.into()),
            }
            joined = word;
        }
    }
    tokens
}

/// Declarations, one string each.
fn declarations(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let (mut depth, mut open) = (0, Vec::new());
    for token in tokens(text) {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            ";" if depth == 0 => {
                found.insert(open.join(" ").replace(", }", " }"));
                open.clear();
                continue;
            }
            _ => {}
        }
        open.push(token);
    }
    assert!(open.is_empty(), "{open:?}");
    found
}

/// What cbindgen has written, in the kernel's words.
fn in_kernel_words(made: &str) -> String {
    let mut enum_prefix = None;
    let mut text = String::new();
    for line in made.lines() {
        let trimmed = line.trim();
        if ["#", "typedef", ": uint"]
            .iter()
            .any(|begin| trimmed.starts_with(begin))
        {
            continue;
        }
        if let Some(name) = trimmed.strip_prefix("enum ") {
            enum_prefix = ENUMS.iter().find(|(e, ..)| *e == name).map(|e| e.2);
            assert!(enum_prefix.is_some(), "an enum without a prefix: {name}");
        } else if trimmed.starts_with('}') {
            enum_prefix = None;
        }
        match enum_prefix {
            Some(prefix) if trimmed.contains('=') => text.push_str(prefix),
            _ => {}
        }
        text.push_str(trimmed);
        text.push('\n');
    }
    let mut words = tokens(&text);
    for i in 0..words.len() {
        if let Some((_, kernel)) = TYPES.iter().find(|(c, _)| *c == words[i]) {
            words[i] = (*kernel).into();
        }
        let bare = i == 0 || (words[i - 1] != "enum");
        if let Some((_, integer, _)) = ENUMS.iter().find(|(e, ..)| bare && *e == words[i]) {
            words[i] = (*integer).into();
        }
    }
    words.join(" ")
}

#[test]
fn the_header_is_in_step() {
    let header = header();
    let kept = declarations(&header);
    let mut made = declarations(&in_kernel_words(&generate()));
    // Its contents are C's own affair.
    made.retain(|item| !item.starts_with("struct ptdma_batch {"));
    made.insert("struct ptdma_batch".into());
    let missing: Vec<_> = made.difference(&kept).collect();
    let surplus: Vec<_> = kept.difference(&made).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "the header lacks {missing:#?} and has {surplus:#?}"
    );
    for (name, value) in [
        ("MAX_CHANNELS", abi::MAX_CHANNELS),
        ("MAX_ROUND_FOLIOS", abi::MAX_ROUND_FOLIOS),
        ("DESCRIPTOR_BYTES", abi::DESCRIPTOR_BYTES),
        ("BAR_BYTES", abi::BAR_BYTES),
        ("EVENTS", abi::EVENTS),
    ] {
        let defined = header.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            let found = words.next() == Some("#define")
                && words.next() == Some(format!("PTDMA_{name}").as_str());
            let value = words.next()?;
            let number = match value.strip_prefix("0x") {
                Some(hex) => usize::from_str_radix(hex, 16),
                None => value.parse(),
            };
            found.then(|| number.expect("a number"))
        });
        assert_eq!(defined, Some(value), "PTDMA_{name}");
    }
}

fn header() -> String {
    fs::read_to_string(root().join("../include/ptdma_kshim.h")).expect("kshim/include")
}

fn list(file: &str) -> BTreeSet<String> {
    fs::read_to_string(root().join(file))
        .expect("a list of symbols")
        .lines()
        .map(|line| line.split('#').next().unwrap_or("").trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

#[test]
fn the_lists_of_symbols_are_in_step() {
    let words = |text: &str, prefix: &str| -> BTreeSet<String> {
        text.split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| word.len() > prefix.len() && word.starts_with(prefix))
            .map(str::to_owned)
            .collect()
    };
    let exports = fs::read_to_string(root().join("src/exports.rs")).expect("exports.rs");
    assert_eq!(list("exports.list"), words(&exports, "ptdma_rs_"));
    let services: BTreeSet<String> = list("imports.list")
        .into_iter()
        .filter(|name| name.starts_with("ptdma_k_"))
        .collect();
    assert_eq!(services, words(&header(), "ptdma_k_"));
    let kernel = fs::read_to_string(root().join("src/kernel.rs")).expect("kernel.rs");
    assert_eq!(services, words(&kernel, "ptdma_k_"));
}
