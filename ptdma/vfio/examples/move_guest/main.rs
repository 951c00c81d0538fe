//! Moves a guest's memory to another NUMA node while its CPU writes to it, as a VMM would.
//!
//! `cargo run -p ptdma-vfio --example move_guest -- ADDRESS...` (functions that vfio-pci has)
//!
//! The kernel cannot migrate pages that are pinned for engines, so the memory is *replaced*. It is
//! a memfd. A second one is made on the other node, and engines copy. The mapping that the guest's
//! CPU uses is write-protected, so each write to a page that was copied is noticed, and the page is
//! copied again in the next round. Once a round leaves few pages, the CPU pauses, the last pages
//! are copied, and the new file takes the old one's place at the same address. Every byte is
//! compared, in the pause and at the end. Then the CPU does the same, back to the first node, to
//! have its counts beside.
//!
//! It needs two NUMA nodes and Linux 5.19 (write protection of shared memory). Users other than
//! root need `vm.unprivileged_userfaultfd` set to 1.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod dirty;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod migrate;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addresses = std::env::args()
        .skip(1)
        .map(|text| text.parse())
        .collect::<Result<Vec<_>, _>>()?;
    migrate::there_and_back(&addresses)
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("PTDMA engines are in x86-64 machines, and VFIO is in Linux");
}
