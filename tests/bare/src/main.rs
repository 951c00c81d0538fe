//! A guest without an operating system, as a hypervisor of the first kind would use the crates.
//!
//! It has page tables, interrupts and processors of its own, and no allocator. It takes commands
//! on the serial line, one a line, and answers with one; see `README.md`.

#![no_std]
#![no_main]

mod console;
mod functions;
mod lock;
mod memory;
mod processors;
mod time;
mod trial;

use core::arch::global_asm;

use heapless::{String, Vec};
use ptdma_bare::acpi;
use ptdma_bare::command::Command;

use console::print;
use memory::StartInfo;

global_asm!(include_str!("boot.s"), options(att_syntax));

/// Entered from `boot.s`, on the first processor, with paging on and interrupts off.
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64) -> ! {
    console::init();
    let Some(start) = StartInfo::read(start_info) else {
        console::fatal(format_args!("no start information at {start_info:#x}"));
    };
    memory::init(start.memory_end);
    memory::map(start.memory_end, processors::TRAMPOLINE);
    time::measure();
    processors::first();
    let mut others: Vec<u8, { processors::MAX_PROCESSORS }> = Vec::new();
    let own = processors::id();
    let tables = acpi::processors(start.acpi_root, memory::physical_byte, |apic| {
        if apic != own {
            // Those beyond are left alone.
            let _ = others.push(apic);
        }
    });
    if let Err(error) = tables {
        console::fatal(format_args!("ACPI: {error:?}"));
    }
    for apic in others {
        if !processors::start(apic) {
            print(format_args!("processor {apic} does not start\n"));
        }
    }
    let functions = trial::set_up(functions::find());
    print(format_args!(
        "ready processors={} functions={functions}\n",
        processors::count()
    ));
    let mut line = String::<64>::new();
    loop {
        let Some(byte) = console::byte() else {
            // The tick of the timer ends it.
            processors::sleep_until(0, time::now_ns() + 1_000_000);
            continue;
        };
        if byte != b'\n' {
            // What is too long is no command, and is told so at its end.
            let _ = line.push(char::from(byte));
            continue;
        }
        match Command::parse(&line) {
            Some(Command::Run { interrupts, rounds }) => trial::run(interrupts, rounds),
            Some(Command::Revive) => trial::revive(),
            Some(Command::End) => console::end(trial::shut_down()),
            None => print(format_args!("unknown command: {line}\n")),
        }
        line.clear();
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    console::fatal(format_args!("{info}"))
}
