//! Copies a list of ranges by all PTDMA engines of the machine, and compares every byte.
//!
//! `cargo run -p ptdma-vfio --example copy_list -- [--take] [--polled] [ADDRESS...]`
//!
//! Without addresses: all engines that vfio-pci has. `--take` takes them from other drivers first
//! and gives them back at the end, for which it needs root.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use ptdma_vfio::{CopyRange, Memory, Mover, PciAddress, Waiting};

    const PAGE: u64 = 4096;
    const PAGES: u64 = 256;

    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let named = arguments
        .iter()
        .filter(|argument| !argument.starts_with("--"));
    let mut addresses = named
        .map(|text| text.parse())
        .collect::<Result<Vec<PciAddress>, _>>()?;
    if addresses.is_empty() {
        let all = ptdma_vfio::list()?.into_iter();
        addresses.extend(
            all.filter(|f| has("--take") || f.driver.as_deref() == Some("vfio-pci"))
                .map(|f| f.address),
        );
    }
    if addresses.is_empty() {
        return Err("vfio-pci has no PTDMA function: try --take, as root".into());
    }
    if has("--take") {
        for address in &addresses {
            ptdma_vfio::take(*address)?;
        }
    }

    // The ten lines.
    let mover = Mover::open(&addresses)?;
    let from = mover.space().map(Memory::anonymous(PAGES * PAGE)?)?;
    let to = mover.space().map(Memory::anonymous(PAGES * PAGE)?)?;
    let bytes: Vec<u8> = (0..PAGES * PAGE).map(|n| (n % 251) as u8).collect();
    from.write(0, &bytes)?;
    // Every page, to another place.
    let list = (0..PAGES)
        .map(|page| CopyRange::new(&from, page * PAGE, &to, (page * 37 % PAGES) * PAGE, PAGE))
        .collect::<Result<Vec<_>, _>>()?;
    let waiting = if has("--polled") {
        Waiting::Polled
    } else {
        Waiting::Asleep
    };
    let copied = mover.copy(&list, waiting)?;

    for (page, outcome) in copied.outcomes.iter().enumerate() {
        if !outcome.is_copied() {
            println!("page {page}: {outcome}");
        }
    }
    let mut wrong = 0;
    let mut page_bytes = vec![0; PAGE as usize];
    for (page, expected) in bytes.chunks(PAGE as usize).enumerate() {
        to.read((page as u64 * 37 % PAGES) * PAGE, &mut page_bytes)?;
        wrong += usize::from(page_bytes != expected);
    }
    println!(
        "{} bytes in {} ranges by {} channel(s), {} descriptors, {} doorbells: {} page(s) wrong",
        copied.report.dma_bytes,
        list.len(),
        copied.report.channels,
        copied.report.descriptors,
        copied.report.doorbells,
        wrong
    );
    // The space ends with the mappings: then the functions are free.
    drop((from, to));
    mover.close()?;
    if has("--take") {
        for address in addresses {
            let driver = ptdma_vfio::give_back(address)?;
            println!(
                "{address} is with {} again",
                driver.as_deref().unwrap_or("nobody")
            );
        }
    }
    if wrong > 0 || !copied.is_complete() {
        return Err("not all was copied".into());
    }
    Ok(())
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("PTDMA engines are in x86-64 machines, and VFIO is in Linux");
}
