//! The serial line, and the end of the machine.

use core::fmt::{self, Write};

use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550};
use x86_64::instructions::port::Port;

use crate::lock::without_interrupts;

/// The first serial port of a PC.
const PORT: u16 = 0x3f8;
/// Where the harness puts QEMU's `isa-debug-exit`: a number written here ends the emulator with
/// twice that number and one as its status.
const EXIT_PORT: u16 = 0xf4;
/// Exit statuses 33 and 35: no status of QEMU's own.
const EXIT_GOOD: u32 = 0x10;
const EXIT_BAD: u32 = 0x11;

static LINE: Mutex<Option<Uart16550<PioBackend>>> = Mutex::new(None);

/// Sets the line up. Without one nothing is said, and the harness sees that.
pub(crate) fn init() {
    // SAFETY: a PC has its first serial port there, and nobody else in this guest uses it.
    let Ok(mut line) = (unsafe { Uart16550::new_port(PORT) }) else {
        return;
    };
    if line.init(Config::default()).is_ok() {
        *LINE.lock() = Some(line);
    }
}

/// Writes to the line, all of it before anybody else.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    without_interrupts(|| {
        if let Some(line) = LINE.lock().as_mut() {
            // The line takes everything.
            let _ = Out(line).write_fmt(text);
        }
    });
}

/// A byte from the line, if there is one.
pub(crate) fn byte() -> Option<u8> {
    without_interrupts(|| LINE.lock().as_mut()?.try_receive_byte().ok())
}

/// Ends the machine.
pub(crate) fn end(good: bool) -> ! {
    let status = if good { EXIT_GOOD } else { EXIT_BAD };
    let mut port = Port::new(EXIT_PORT);
    loop {
        // SAFETY: nothing but the emulator's exit is at that port.
        unsafe { port.write(status) };
        x86_64::instructions::hlt();
    }
}

/// A panic, or an exception: says so, whatever was being said, and ends the machine.
pub(crate) fn fatal(text: fmt::Arguments<'_>) -> ! {
    // SAFETY: the machine ends here. Who holds the lock never goes on.
    unsafe { LINE.force_unlock() };
    print(format_args!("\nFATAL: {text}\n"));
    end(false)
}

struct Out<'a>(&'a mut Uart16550<PioBackend>);

impl Write for Out<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.send_bytes_exact(text.as_bytes());
        Ok(())
    }
}
