//! What a healthy guest's kernel log must not contain.

use std::sync::LazyLock;

use regex::RegexSet;

/// Beginnings of reports that the kernel only prints when something is wrong.
static REPORTS: LazyLock<Option<RegexSet>> = LazyLock::new(|| {
    RegexSet::new([
        r"\bBUG:",
        r"\bWARNING:",
        r"\bOops\b",
        r"Kernel panic",
        r"KASAN:",
        r"UBSAN:",
        r"DMA-API: .*(device driver|debugging out of memory|exceeded)",
        r"general protection fault",
        r"unable to handle (kernel|page fault)",
        r"kernel BUG at",
        r"possible (circular|recursive) locking",
        r"inconsistent lock state",
        r"suspicious RCU usage",
        r"sleeping function called from invalid context",
        r"scheduling while atomic",
        r"INFO: task .* blocked for more than",
        r"rcu: INFO: rcu_.* (detected|self-detected) stall",
        r"soft lockup",
        r"refcount_t:",
        r"list_(add|del) corruption",
        r"Bad page (state|map)",
        r"kernel BUG at mm/page_table_check",
        r"pagealloc: (single bit error|memory corruption)",
        r"unregister_netdevice: waiting",
        r"DMAR: .*\[fault reason",
        r"AMD-Vi: Event logged",
        r"irq \d+: nobody cared",
        // Our module: of an engine that refuses what it should, as all of ours do.
        r"ptdma_migrator .* does not refuse a wrong descriptor",
    ])
    .ok()
});

/// The stock `ptdma` driver's own bug, which KASAN reports whoever uses its channels: it writes to
/// a descriptor that may have been completed and freed (`suite/stock.rs` has the story).
const STOCK_DRIVER: &str = "BUG: KASAN: slab-use-after-free in pt_cmd_callback+* [ptdma]";

/// The lines that begin a report, less the stock driver's own and the `expected` ones: a line is expected when it contains
/// the parts of an entry, which stand between asterisks, in their order.
///
/// Name the kind of report and where it happened, not only a driver: every report about that
/// driver's memory, locks or DMA names it too.
pub(crate) fn splats<'a>(log: &'a str, expected: &[&str]) -> Vec<&'a str> {
    log.lines()
        .filter(|line| {
            // A broken pattern must not make every log look clean.
            REPORTS.as_ref().is_none_or(|set| set.is_match(line))
        })
        .filter(|line| !matches(line, STOCK_DRIVER))
        .filter(|line| !expected.iter().any(|known| matches(line, known)))
        .collect()
}

fn matches(line: &str, pattern: &str) -> bool {
    let mut rest = line;
    pattern.split('*').all(|part| match rest.split_once(part) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_found_and_ordinary_lines_are_not() {
        assert!(REPORTS.is_some(), "the patterns are valid");
        let log = "[    0.1] Linux version 7.3.4\n\
                   [    1.0] BUG: KASAN: slab-use-after-free in x+0x1\n\
                   [    1.1] ptdma 0000:21:00.0: PTDMA error: ERR_CMD (0x13)\n\
                   [    1.2] WARNING: possible circular locking dependency detected\n\
                   [    1.3] DMA-API: preallocated 65536 debug entries\n\
                   [    1.4] DMA-API: ptdma 0000:21:00.0: device driver frees DMA memory with wrong function\n";
        let found = splats(log, &[]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(
            splats(log, &["KASAN", "circular", "wrong function"]).len(),
            0
        );
    }

    #[test]
    fn the_stock_drivers_bug_is_of_its_kind_and_place() {
        let of = |line: &str| splats(line, &[]).len();
        let known = "[ 1.0] BUG: KASAN: slab-use-after-free in pt_cmd_callback+0x1/0x2 [ptdma]";
        assert_eq!(of(known), 0);
        for other in [
            "BUG: KASAN: slab-use-after-free in pt_cmd_callback+0x1/0x2 [ptdma_migrator]",
            "BUG: KASAN: slab-use-after-free in pt_issue_pending+0x1/0x2 [ptdma]",
            "BUG: KASAN: slab-out-of-bounds in pt_cmd_callback+0x1/0x2 [ptdma]",
            "BUG: KASAN: slab-use-after-free in pt_cmd_callback+0x1/0x2",
        ] {
            assert_eq!(of(other), 1, "{other}");
        }
    }
}
