//! The lists of folios that benchmarks copy.

use batch_copy::Folio;
use ptdma::DmaAddr;

use crate::memory::Layout;

/// A named list.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// What tables call it.
    pub name: &'static str,
    /// How it lies in memory.
    pub layout: Layout,
    lens: fn() -> Vec<usize>,
}

impl Workload {
    /// The lengths of the folios in bytes.
    #[must_use]
    pub fn lens(&self) -> Vec<usize> {
        (self.lens)()
    }

    /// The folios at made-up addresses, for engines that do not move bytes. Each is aligned to its
    /// size, as a kernel's folios are.
    #[must_use]
    pub fn folios(&self) -> Vec<Folio> {
        let (mut src, mut dst) = (0x10_0000_0000_u64, 0x20_0000_0000_u64);
        let lens = self.lens();
        lens.iter()
            .map(|&len| {
                if self.layout == Layout::Scattered {
                    // A hole of one page.
                    src += 4096;
                    dst += 4096;
                }
                src = src.next_multiple_of(len as u64);
                dst = dst.next_multiple_of(len as u64);
                let folio = Folio::new(DmaAddr::new(src), DmaAddr::new(dst), len as u64);
                src += len as u64;
                dst += len as u64;
                folio
            })
            .collect()
    }
}

/// 4 KiB to 2 MiB, many small and few big ones, as a process's memory is.
fn mixed() -> Vec<usize> {
    let mut lens = Vec::new();
    for round in 0..8 {
        lens.extend([4096; 24]);
        lens.extend([16 << 10; 6]);
        lens.extend([64 << 10; 4]);
        if round % 2 == 0 {
            lens.extend([256 << 10, 1 << 20]);
        } else {
            lens.push(2 << 20);
        }
    }
    lens
}

/// All of them.
pub const WORKLOADS: [Workload; 6] = [
    Workload {
        name: "512 x 4K scattered",
        layout: Layout::Scattered,
        lens: || vec![4096; 512],
    },
    Workload {
        name: "512 x 4K contiguous",
        layout: Layout::Contiguous,
        lens: || vec![4096; 512],
    },
    Workload {
        name: "32 x 4K (compaction)",
        layout: Layout::Scattered,
        lens: || vec![4096; 32],
    },
    Workload {
        name: "1 x 2M",
        layout: Layout::Scattered,
        lens: || vec![2 << 20],
    },
    Workload {
        name: "16 x 2M",
        layout: Layout::Scattered,
        lens: || vec![2 << 20; 16],
    },
    Workload {
        name: "mixed 4K..2M",
        layout: Layout::Scattered,
        lens: mixed,
    },
];
