//! The kernel's own tests of migration, from the source package that the kernel is
//! built from: `tools/testing/selftests/mm`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::key::Key;
use crate::step::{self, Step};
use crate::{groups, kernel, paths, tools};

/// Those that migrate, or whose pages may be migrated meanwhile.
const PROGRAMS: &[&str] = &[
    "compaction_test",
    "cow",
    "folio_split_race_test",
    "hugetlb-soft-offline",
    "ksm_functional_tests",
    "ksm_tests",
    "migration",
    "mkdirty",
    "mremap_test",
    "rmap",
    "split_huge_page_test",
    "transhuge-stress",
];
/// Linked with each program.
const COMMON: &[&str] = &["vm_util.c", "hugepage_settings.c"];
/// What the folder's Makefile finds out about this machine, into a header of this name: that
/// there is no liburing, without which some checks of `cow` are skipped.
const FOUND_OUT: &str = "local_config.h_gen";
/// As the folder's Makefile has them, but static.
const FLAGS: &[&str] = &[
    "-O2",
    "-static",
    "-s",
    "-D_GNU_SOURCE=",
    "-U_FORTIFY_SOURCE",
];
const LIBRARIES: &[&str] = &["-lnuma", "-lrt", "-lpthread", "-lm"];
/// Exporting the headers runs a script for each of a thousand.
const HEADERS_LIMIT: Duration = Duration::from_secs(180);
const COMPILE_LIMIT: Duration = Duration::from_secs(60);
/// Part of the key: change it when the recipe below changes what comes out.
const RECIPE: &str = "selftests-mm-2";

/// Builds the programs, or takes them from the cache.
pub(super) fn build() -> Result<Vec<PathBuf>> {
    let tree = kernel::unpacked_tree()?;
    let sources = tree.join("tools/testing/selftests/mm");
    let mut key = Key::new(RECIPE);
    key.tree(&sources)?;
    for flag in FLAGS.iter().chain(PROGRAMS) {
        key.text(flag);
    }
    let folder = paths::make_dir("selftests")?.join(key.finish());
    let built = PROGRAMS.iter().map(|name| folder.join(name)).collect();
    if folder.join("done").is_file() {
        return Ok(built);
    }
    fs::create_dir_all(&folder)?;
    let _lock = step::lock(&folder.join("lock"))?;
    if folder.join("done").is_file() {
        return Ok(built);
    }
    let log = folder.join("log");
    let headers = headers(&tree, &folder, &log)?;
    let found_out = folder.join("found-out");
    fs::create_dir_all(&found_out)?;
    fs::write(found_out.join(FOUND_OUT), "")?;
    for name in PROGRAMS {
        let mut command = Command::new("gcc");
        command
            .args(FLAGS)
            .arg("-I..")
            .arg("-I../../../include")
            // One includes a header of the kernel by its place in the tree.
            .arg("-I../../../..")
            .arg("-I")
            .arg(&found_out)
            .arg("-isystem")
            .arg(&headers)
            .arg("-o")
            .arg(folder.join(name))
            .arg(format!("{name}.c"))
            .args(COMMON)
            .args(LIBRARIES)
            .current_dir(&sources);
        tools::equip(&mut command)?;
        Step::new(&format!("selftest {name}"), COMPILE_LIMIT, &log).run(&mut command)?;
    }
    fs::write(folder.join("done"), "")?;
    Ok(built)
}

/// The headers that this kernel has for user space; the machine's are of another one.
fn headers(tree: &Path, folder: &Path, log: &Path) -> Result<PathBuf> {
    let out = folder.join("headers");
    fs::create_dir_all(&out)?;
    let mut command = groups::bound_command("make");
    command
        .arg("-s")
        .arg("-C")
        .arg(tree)
        .arg(format!("O={}", out.display()))
        .arg("headers")
        .env("LC_ALL", "C")
        .env_remove("MAKEFLAGS")
        .env_remove("ARCH");
    tools::equip(&mut command)?;
    Step::new("kernel headers for user space", HEADERS_LIMIT, log)
        .run(&mut command)
        .context("the selftests need the kernel's headers")?;
    Ok(out.join("usr/include"))
}
