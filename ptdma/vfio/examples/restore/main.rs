//! Restores a guest's snapshot, and clones a golden image, both of which lie in memory.
//!
//! `cargo run -p ptdma-vfio --example restore -- ADDRESS...` (functions that vfio-pci has)
//!
//! A snapshot is packed: the pages that were in use, one after the other, and where each belongs. To
//! restore it is a list of one range for each run of pages. A golden image is memory as a guest
//! finds it; each clone is a list of one range for each 2 MiB, and the image is mapped for reading
//! only, so that no engine can damage it. Every byte is compared, the image and the gaps between
//! restored pages too. Then the CPU does the same, to have its counts beside.
//!
//! Zeroing gains nothing: mapping new memory for engines has the kernel allocate and clear it.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod guests;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addresses = std::env::args()
        .skip(1)
        .map(|text| text.parse())
        .collect::<Result<Vec<_>, _>>()?;
    guests::restore_and_clone(&addresses)
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("PTDMA engines are in x86-64 machines, and VFIO is in Linux");
}
