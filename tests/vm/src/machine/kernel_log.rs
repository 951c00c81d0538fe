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
        r"page_table_check",
        r"unregister_netdevice: waiting",
        r"DMAR: .*\[fault reason",
        r"AMD-Vi: Event logged",
        r"irq \d+: nobody cared",
    ])
    .ok()
});

/// The lines that begin a report, less those that contain one of `expected`.
pub(crate) fn splats<'a>(log: &'a str, expected: &[&str]) -> Vec<&'a str> {
    log.lines()
        .filter(|line| {
            // A broken pattern must not make every log look clean.
            REPORTS.as_ref().is_none_or(|set| set.is_match(line))
        })
        .filter(|line| !expected.iter().any(|known| line.contains(known)))
        .collect()
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
}
