//! Local APICs, interrupts, and the start of further processors.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use core::time::Duration;

use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

use crate::{console, memory, time, trial};

/// Processors that take part.
pub(crate) const MAX_PROCESSORS: usize = 4;

/// Vectors: the timer, a call from another processor, then one for each function.
const TIMER: u8 = 0x30;
const CALL: u8 = 0x31;
pub(crate) const FIRST_FUNCTION: u8 = 0x40;
const SPURIOUS: u8 = 0xff;
/// Vectors below are exceptions.
const FIRST_INTERRUPT: u64 = 32;

/// Where the local APIC of each processor is, unless somebody has moved it.
const APIC: usize = 0xfee0_0000;
/// Its registers.
const ID: usize = 0x20;
const END_OF_INTERRUPT: usize = 0xb0;
const SPURIOUS_VECTOR: usize = 0xf0;
const COMMAND: usize = 0x300;
const COMMAND_TO: usize = 0x310;
const TIMER_VECTOR: usize = 0x320;
const TIMER_COUNT: usize = 0x380;
const TIMER_LEFT: usize = 0x390;
const TIMER_DIVISOR: usize = 0x3e0;

/// Software enable, in the register of the spurious vector.
const ENABLE: u32 = 1 << 8;
/// The timer counts again and again.
const PERIODIC: u32 = 1 << 17;
/// Divides the timer's clock by 16.
const BY_16: u32 = 3;
/// Commands: initialize, start, and to all but the sender.
const INIT: u32 = 0x4500;
const START: u32 = 0x4600;
const PENDING: u32 = 1 << 12;
const OTHERS: u32 = 3 << 18;

/// Where further processors start: a page below the first MiB that no firmware table is in.
pub(crate) const TRAMPOLINE: u64 = 0x8000;
/// A sleeper that nobody wakes looks again after this time.
const TICK: Duration = Duration::from_millis(1);

unsafe extern "C" {
    static interrupt_entries: [[u8; 16]; 256];
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static ap_tables: u8;
    static ap_stack: u8;
}

fn apic(register: usize) -> *mut u32 {
    core::ptr::with_exposed_provenance_mut(APIC + register)
}

fn read(register: usize) -> u32 {
    // SAFETY: every processor has its local APIC mapped there, uncached.
    unsafe { apic(register).read_volatile() }
}

fn write(register: usize, value: u32) {
    // SAFETY: as for `read`; no register of it breaks Rust's rules.
    unsafe { apic(register).write_volatile(value) }
}

/// Processors that run.
static STARTED: AtomicUsize = AtomicUsize::new(0);
/// Whether something has happened since a processor last went to sleep.
static WOKEN: [AtomicBool; MAX_PROCESSORS] = [const { AtomicBool::new(false) }; MAX_PROCESSORS];
/// Interrupts of functions that were taken.
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// Number of this processor's local APIC.
pub(crate) fn id() -> u8 {
    (read(ID) >> 24) as u8
}

/// How many processors run.
pub(crate) fn count() -> usize {
    STARTED.load(Ordering::Acquire)
}

/// Interrupts of functions since the last call.
pub(crate) fn take_interrupts() -> u32 {
    TAKEN.swap(0, Ordering::Relaxed)
}

/// An entry of the interrupt descriptor table.
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    low: u16,
    selector: u16,
    kind: u16,
    middle: u16,
    high: u32,
    reserved: u32,
}

static GATES: spin::Once<[Gate; 256]> = spin::Once::new();

/// Sets up interrupts on this processor; called by each.
fn set_up() {
    /// The 64-bit code segment of `boot.s`.
    const CODE: u16 = 0x08;
    /// A present interrupt gate: interrupts are off in it.
    const INTERRUPT_GATE: u16 = 0x8e00;
    let gates = GATES.call_once(|| {
        let entries = (&raw const interrupt_entries).expose_provenance() as u64;
        core::array::from_fn(|vector| {
            let at = entries + 16 * vector as u64;
            Gate {
                low: at as u16,
                selector: CODE,
                kind: INTERRUPT_GATE,
                middle: (at >> 16) as u16,
                high: (at >> 32) as u32,
                reserved: 0,
            }
        })
    });
    let pointer = DescriptorTablePointer {
        limit: (size_of_val(gates) - 1) as u16,
        base: VirtAddr::from_ptr(gates),
    };
    // SAFETY: the table is a static with an entry for each vector, whose code saves what it uses.
    unsafe { lidt(&pointer) };
    write(SPURIOUS_VECTOR, ENABLE | u32::from(SPURIOUS));
    write(TIMER_DIVISOR, BY_16);
    // Measured by each: it has 1 ms to itself.
    write(TIMER_VECTOR, 1 << 16 | u32::from(TIMER));
    write(TIMER_COUNT, u32::MAX);
    time::stall(TICK);
    let count = u32::MAX - read(TIMER_LEFT);
    write(TIMER_VECTOR, PERIODIC | u32::from(TIMER));
    write(TIMER_COUNT, count.max(1));
    x86_64::instructions::interrupts::enable();
}

/// Sets this processor up as the first.
pub(crate) fn first() {
    mask_old_controllers();
    STARTED.store(1, Ordering::Release);
    set_up();
}

/// The two 8259 controllers of a PC would interrupt with vectors of exceptions.
fn mask_old_controllers() {
    for port in [0x21, 0xa1] {
        // SAFETY: the masks of a PC's interrupt controllers, which nobody else here uses.
        unsafe { x86_64::instructions::port::Port::<u8>::new(port).write(0xff) };
    }
}

/// Starts another processor, as the specification of its interface says: INIT, then START, twice
/// if the first is not heard. Returns whether it has come up.
pub(crate) fn start(apic_id: u8) -> bool {
    /// Deep enough for a batch and all lists of a run.
    const STACK_LEN: usize = 256 << 10;
    let number = count();
    if number >= MAX_PROCESSORS {
        return false;
    }
    let Some(stack) = memory::take(STACK_LEN) else {
        return false;
    };
    let stack_end = stack.expose_provenance().get() + STACK_LEN;
    copy_trampoline(stack_end as u32);
    command(apic_id, INIT);
    time::stall(Duration::from_millis(10));
    for _ in 0..2 {
        command(apic_id, START | (TRAMPOLINE / memory::PAGE) as u32);
        for _ in 0..200 {
            time::stall(Duration::from_millis(1));
            if count() > number {
                return true;
            }
        }
    }
    false
}

fn command(to: u8, what: u32) {
    write(COMMAND_TO, u32::from(to) << 24);
    write(COMMAND, what);
    while read(COMMAND) & PENDING != 0 {
        core::hint::spin_loop();
    }
}

fn copy_trampoline(stack_end: u32) {
    let start = &raw const ap_trampoline;
    let offset = |of: *const u8| of.addr() - start.addr();
    let target = core::ptr::with_exposed_provenance_mut::<u8>(TRAMPOLINE as usize);
    for at in 0..offset(&raw const ap_trampoline_end) {
        // SAFETY: the code between the two labels of `boot.s`.
        let byte = unsafe { start.wrapping_add(at).read() };
        // SAFETY: a page below the first MiB that is mapped and that nobody else uses.
        unsafe { target.wrapping_add(at).write_volatile(byte) };
    }
    let tables = memory::tables() as u32;
    for (label, value) in [
        (&raw const ap_tables, tables),
        (&raw const ap_stack, stack_end),
    ] {
        let field = target.wrapping_add(offset(label)).cast::<u32>();
        // SAFETY: a 4-byte field of the copy, on a multiple of 4.
        unsafe { field.write_volatile(value) };
    }
}

/// A further processor arrives here, on its own stack.
#[unsafe(no_mangle)]
extern "C" fn processor_main() -> ! {
    // In time: `start` waits for it, and starts no other before.
    let number = STARTED.load(Ordering::Acquire);
    set_up();
    STARTED.store(number + 1, Ordering::Release);
    trial::serve(number)
}

/// Has all processors look again.
pub(crate) fn wake_all() {
    for woken in &WOKEN {
        woken.store(true, Ordering::Release);
    }
    if count() > 1 {
        crate::lock::without_interrupts(|| {
            while read(COMMAND) & PENDING != 0 {
                core::hint::spin_loop();
            }
            write(COMMAND, OTHERS | 1 << 14 | u32::from(CALL));
        });
    }
}

/// Sleeps until something happens, or until a time; whether something happened.
pub(crate) fn sleep_until(number: usize, latest_ns: u64) -> bool {
    let Some(woken) = WOKEN.get(number) else {
        return false;
    };
    loop {
        x86_64::instructions::interrupts::disable();
        // With interrupts off, so that none comes between the look and the sleep.
        let over = woken.swap(false, Ordering::Acquire);
        if over || time::now_ns() >= latest_ns {
            x86_64::instructions::interrupts::enable();
            return over;
        }
        x86_64::instructions::interrupts::enable_and_hlt();
    }
}

/// Every interrupt and exception arrives here, from `boot.s`, with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn interrupt_main(vector: u64, error: u64, at: u64) {
    if vector < FIRST_INTERRUPT {
        let address = x86_64::registers::control::Cr2::read_raw();
        console::fatal(format_args!(
            "exception {vector} (error {error:#x}) at {at:#x}, address {address:#x}"
        ));
    }
    let vector = vector as u8;
    if vector == SPURIOUS {
        return;
    }
    if vector >= FIRST_FUNCTION {
        TAKEN.fetch_add(1, Ordering::Relaxed);
        trial::on_interrupt(usize::from(vector - FIRST_FUNCTION));
        wake_all();
    }
    write(END_OF_INTERRUPT, 0);
}
