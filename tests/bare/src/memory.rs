//! Physical memory: what the loader says there is, the guest's page tables, and memory to hand out.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use ptdma_uefi::work::Arena;
use spin::Mutex;
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::{PageTable, PageTableFlags as Flags, PhysFrame};

unsafe extern "C" {
    static text_start: u8;
    static text_end: u8;
    static image_end: u8;
}

/// A base page, and what one entry of a page directory maps.
pub(crate) const PAGE: u64 = 4096;
const LARGE: u64 = 2 << 20;
/// Below it, all of memory and of the devices' registers lies: the firmware gives 32-bit
/// addresses to functions that have 32-bit registers for them.
const MAPPED: u64 = 4 << 30;
/// Entries of a table.
const ENTRIES: u64 = 512;

/// What the loader leaves in memory (PVH, `hvm_start_info`).
pub(crate) struct StartInfo {
    /// Where ACPI's root pointer is.
    pub(crate) acpi_root: u64,
    /// One past the last byte of memory below 4 GiB.
    pub(crate) memory_end: u64,
}

/// Marks the structure.
const MAGIC: u32 = 0x336e_c578;
/// Entries of a sensible memory map.
const MAX_MAP: u64 = 128;
/// Ordinary memory.
const RAM: u32 = 1;

/// A byte of physical memory, for those who read what firmware has left there. Of the first page,
/// where the loader keeps its memory map, only before [`map`].
pub(crate) fn physical_byte(at: u64) -> u8 {
    let first = if tables() == 0 { 1 } else { PAGE };
    if !(first..MAPPED).contains(&at) {
        return 0;
    }
    let at = core::ptr::with_exposed_provenance::<u8>(at as usize);
    // SAFETY: all of it is mapped one to one. Volatile, because it is nobody's Rust object.
    unsafe { at.read_volatile() }
}

fn number(at: u64, len: u64) -> u64 {
    (0..len).fold(0, |number, byte| {
        number | u64::from(physical_byte(at + byte)) << (8 * byte)
    })
}

impl StartInfo {
    /// Reads it; `None` if it is none.
    pub(crate) fn read(at: u64) -> Option<Self> {
        if number(at, 4) as u32 != MAGIC {
            return None;
        }
        let (map, entries) = (number(at + 40, 8), number(at + 48, 4).min(MAX_MAP));
        let memory_end = (0..entries)
            .map(|entry| map + 24 * entry)
            .filter(|entry| number(entry + 16, 4) as u32 == RAM)
            .map(|entry| number(entry, 8).saturating_add(number(entry + 8, 8)))
            .filter(|end| *end <= MAPPED)
            .max()?;
        Some(Self {
            acpi_root: number(at + 32, 8),
            memory_end,
        })
    }
}

static TABLES: Mutex<Tables> = Mutex::new(Tables {
    root: PageTable::new(),
    pointers: PageTable::new(),
    directories: [const { PageTable::new() }; 4],
    first: PageTable::new(),
});

/// Where [`TABLES`]' root is, for processors that start later.
static ROOT: AtomicU64 = AtomicU64::new(0);

struct Tables {
    root: PageTable,
    pointers: PageTable,
    directories: [PageTable; 4],
    /// The first 2 MiB, in base pages: the first page is not mapped, and one page of code is.
    first: PageTable,
}

/// Where a static of the image is: virtual and physical addresses are the same.
fn address<T>(of: &T) -> PhysAddr {
    PhysAddr::new((&raw const *of).expose_provenance() as u64)
}

/// Maps memory one to one: code cannot be written, all else cannot be executed, and what is no
/// memory is not cached.
pub(crate) fn map(memory_end: u64, trampoline: u64) {
    let data = Flags::PRESENT | Flags::WRITABLE | Flags::NO_EXECUTE;
    let code = Flags::PRESENT;
    let device = data | Flags::NO_CACHE | Flags::WRITE_THROUGH;
    let table = Flags::PRESENT | Flags::WRITABLE;
    let (text, text_to) = (
        (&raw const text_start).expose_provenance() as u64,
        (&raw const text_end).expose_provenance() as u64,
    );
    let mut tables = TABLES.lock();
    let tables = &mut *tables;
    for page in 1..ENTRIES {
        let at = page * PAGE;
        let flags = if at == trampoline {
            code | Flags::WRITABLE
        } else {
            data
        };
        tables.first[page as usize].set_addr(PhysAddr::new(at), flags);
    }
    for (number, directory) in tables.directories.iter_mut().enumerate() {
        for entry in 0..ENTRIES {
            let at = (number as u64 * ENTRIES + entry) * LARGE;
            let flags = match at {
                _ if (text..text_to).contains(&at) => code,
                _ if at < memory_end.next_multiple_of(LARGE) => data,
                _ => device,
            };
            let flags = flags | Flags::HUGE_PAGE;
            directory[entry as usize].set_addr(PhysAddr::new(at), flags);
        }
        tables.pointers[number].set_addr(address(directory), table);
    }
    tables.directories[0][0].set_addr(address(&tables.first), table);
    tables.root[0].set_addr(address(&tables.pointers), table);
    let root = address(&tables.root);
    ROOT.store(root.as_u64(), Ordering::Relaxed);
    let frame = PhysFrame::containing_address(root);
    // SAFETY: the new tables map everything that the old ones did at the same addresses: the code
    // that runs, its stack, and all statics.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
}

/// Physical address of the page tables.
pub(crate) fn tables() -> u64 {
    ROOT.load(Ordering::Relaxed)
}

/// Memory behind the image that was not handed out yet. Nothing comes back: what engines may still
/// write is never used again, and the guest does not live long.
static FREE: Mutex<(u64, u64)> = Mutex::new((0, 0));

/// Takes note of what there is.
pub(crate) fn init(memory_end: u64) {
    let start = (&raw const image_end).expose_provenance() as u64;
    *FREE.lock() = (start, memory_end);
}

/// Hands out memory, aligned to a page; `None` if there is no more.
pub(crate) fn take(len_bytes: usize) -> Option<NonNull<u8>> {
    let mut free = FREE.lock();
    let (start, end) = *free;
    let next = start.checked_add((len_bytes as u64).next_multiple_of(PAGE))?;
    if next > end {
        return None;
    }
    *free = (next, end);
    NonNull::new(core::ptr::with_exposed_provenance_mut(start as usize))
}

/// Hands out an arena.
pub(crate) fn arena(len_bytes: usize) -> Option<Arena> {
    let start = take(len_bytes)?;
    // SAFETY: memory of this length that is handed out once, aligned to a page, mapped for ever.
    Some(unsafe { Arena::new(start, len_bytes) })
}
