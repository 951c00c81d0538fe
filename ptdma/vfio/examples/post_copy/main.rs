//! Moves a guest's memory to another NUMA node by post-copy: the guest runs on the new memory at
//! once, and pages arrive as it touches them.
//!
//! `cargo run -p ptdma-vfio --example post_copy -- ADDRESS...` (functions that vfio-pci has)
//!
//! The new memory is a memfd. Mapping it for engines has the kernel allocate its pages, so each
//! first touch by the guest is a *minor* fault of its own mapping: the page is there, with the wrong
//! content. Userfaultfd hands that fault to a handler, which has engines copy 64 KiB around the
//! page through the other mapping, and lets the guest go on (`UFFDIO_CONTINUE`). Between two faults
//! the handler copies what nobody has touched yet. The guest checks each word that it reads; every
//! byte is compared at the end. Then the CPU does the same, back to the first node, to have its
//! counts beside.
//!
//! It needs two NUMA nodes and Linux 5.14 (minor faults of shared memory). Users other than root
//! need `vm.unprivileged_userfaultfd` set to 1, unless Linux is 5.11 or newer.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod arrive;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod faults;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addresses = std::env::args()
        .skip(1)
        .map(|text| text.parse())
        .collect::<Result<Vec<_>, _>>()?;
    arrive::there_and_back(&addresses)
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("PTDMA engines are in x86-64 machines, and VFIO is in Linux");
}
