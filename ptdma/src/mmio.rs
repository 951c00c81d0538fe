//! Real registers: the one place that knows `volatile-register`.
//!
//! The module is for `x86_64` alone, the only machines with the engine. Their order of uncached and
//! ordinary accesses is what [`crate::io::RegisterIo`] asks for, without a fence.
//!
//! The register block is never a Rust reference as a whole. A device's registers may change or have
//! side effects under any read that the compiler would like to invent. Each access goes from a raw
//! pointer to one field.

use core::mem::{offset_of, size_of};
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

use volatile_register::{RO, RW};

use crate::io::RegisterIo;
use crate::regs::{BAR_LEN_BYTES, Register};

/// BAR 2 as memory. Gaps have no known registers and are never touched.
#[repr(C)]
struct RegisterBlock {
    queue_priority: RW<u32>,
    request_id: RW<u32>,
    command_timeout: RW<u32>,
    _gap_0c: [u32; 1],
    version: RO<u32>,
    _gap_14: [u32; 11],
    irq_mask: RW<u32>,
    _gap_44: [u32; 111],
    irq_status: RW<u32>,
    _gap_204: [u32; 895],
    control: RW<u32>,
    tail: RW<u32>,
    head: RW<u32>,
    interrupt_enable: RW<u32>,
    interrupt_status: RW<u32>,
    _gap_1014: [u32; 59],
    status: RW<u32>,
    queue_interrupt_status: RW<u32>,
    dma_status: RW<u32>,
    dma_read_status: RW<u32>,
    dma_write_status: RW<u32>,
    abort: RW<u32>,
    axi_cache: RW<u32>,
    _gap_111c: [u32; 1],
    config: RW<u32>,
    _gap_1124: [u32; 5048],
    clock_gate: RW<u32>,
}

const _: () = {
    assert!(size_of::<RegisterBlock>() == BAR_LEN_BYTES);
    assert!(offset_of!(RegisterBlock, queue_priority) == Register::QueuePriority.offset());
    assert!(offset_of!(RegisterBlock, request_id) == Register::RequestId.offset());
    assert!(offset_of!(RegisterBlock, command_timeout) == Register::CommandTimeout.offset());
    assert!(offset_of!(RegisterBlock, version) == Register::Version.offset());
    assert!(offset_of!(RegisterBlock, irq_mask) == Register::IrqMask.offset());
    assert!(offset_of!(RegisterBlock, irq_status) == Register::IrqStatus.offset());
    assert!(offset_of!(RegisterBlock, control) == Register::Control.offset());
    assert!(offset_of!(RegisterBlock, tail) == Register::Tail.offset());
    assert!(offset_of!(RegisterBlock, head) == Register::Head.offset());
    assert!(offset_of!(RegisterBlock, interrupt_enable) == Register::InterruptEnable.offset());
    assert!(offset_of!(RegisterBlock, interrupt_status) == Register::InterruptStatus.offset());
    assert!(offset_of!(RegisterBlock, status) == Register::Status.offset());
    assert!(
        offset_of!(RegisterBlock, queue_interrupt_status)
            == Register::QueueInterruptStatus.offset()
    );
    assert!(offset_of!(RegisterBlock, dma_status) == Register::DmaStatus.offset());
    assert!(offset_of!(RegisterBlock, dma_read_status) == Register::DmaReadStatus.offset());
    assert!(offset_of!(RegisterBlock, dma_write_status) == Register::DmaWriteStatus.offset());
    assert!(offset_of!(RegisterBlock, abort) == Register::Abort.offset());
    assert!(offset_of!(RegisterBlock, axi_cache) == Register::AxiCache.offset());
    assert!(offset_of!(RegisterBlock, config) == Register::Config.offset());
    assert!(offset_of!(RegisterBlock, clock_gate) == Register::ClockGate.offset());
};

/// The registers of a function, mapped into this address space.
#[derive(Debug)]
pub struct Mmio {
    block: NonNull<RegisterBlock>,
}

// SAFETY: the pointer is to device registers, which belong to no thread: an access is one
// self-contained bus transaction from any CPU. The constructor's contract keeps them mapped.
unsafe impl Send for Mmio {}
// SAFETY: as for Send; concurrent accesses are ordered by the bus, there is no cached state here.
unsafe impl Sync for Mmio {}

impl Mmio {
    /// Takes BAR 2 of a PTDMA function, mapped uncached at `bar`.
    ///
    /// # Safety
    ///
    /// The caller promises, for as long as this value exists:
    ///
    /// - `bar` is 4-byte aligned and maps at least [`BAR_LEN_BYTES`] bytes of BAR 2 of a PTDMA
    ///   function (PCI 1022:1498), as uncached device memory. Memory that merely looks like
    ///   registers is fine too, for tests: nothing but volatile accesses is made. Then one thread
    ///   alone uses it, for a volatile access to memory is not atomic.
    /// - Nobody else drives the function's queue.
    /// - **What the engine does to memory.** The engine may read the source and overwrite the
    ///   destination of every copy that is submitted to a channel on these registers. That lasts
    ///   until its cookie is retired, or until the channel has proved its engine stopped and has
    ///   dropped it. Nobody uses that memory otherwise meanwhile, and its type takes any bytes. (A
    ///   channel's other methods are safe on the strength of this promise: bus addresses are
    ///   numbers, and no borrow follows them.)
    ///
    /// The driver promises to access only the registers of [`Register`], 32 bits at a time.
    #[must_use]
    pub unsafe fn new(bar: NonNull<u8>) -> Self {
        Self { block: bar.cast() }
    }
}

/// A shared reference to one register cell of the block.
macro_rules! cell {
    ($mmio:expr, $field:ident) => {{
        let block = $mmio.block.as_ptr();
        // SAFETY: `new` was promised a mapping of BAR_LEN_BYTES, the size of the block (asserted
        // above), aligned to 4 and valid while `self` lives. The field is within it. The reference
        // covers this one register cell, whose `UnsafeCell` keeps the compiler from assuming that
        // it does not change.
        unsafe { &(*block).$field }
    }};
}

/// Calls the access for the one field that a register is. Writable fields only.
macro_rules! for_field {
    ($mmio:expr, $register:expr, $version:expr, |$cell:ident| $access:expr) => {
        match $register {
            Register::QueuePriority => {
                let $cell = cell!($mmio, queue_priority);
                $access
            }
            Register::RequestId => {
                let $cell = cell!($mmio, request_id);
                $access
            }
            Register::CommandTimeout => {
                let $cell = cell!($mmio, command_timeout);
                $access
            }
            Register::Version => $version,
            Register::IrqMask => {
                let $cell = cell!($mmio, irq_mask);
                $access
            }
            Register::IrqStatus => {
                let $cell = cell!($mmio, irq_status);
                $access
            }
            Register::Control => {
                let $cell = cell!($mmio, control);
                $access
            }
            Register::Tail => {
                let $cell = cell!($mmio, tail);
                $access
            }
            Register::Head => {
                let $cell = cell!($mmio, head);
                $access
            }
            Register::InterruptEnable => {
                let $cell = cell!($mmio, interrupt_enable);
                $access
            }
            Register::InterruptStatus => {
                let $cell = cell!($mmio, interrupt_status);
                $access
            }
            Register::Status => {
                let $cell = cell!($mmio, status);
                $access
            }
            Register::QueueInterruptStatus => {
                let $cell = cell!($mmio, queue_interrupt_status);
                $access
            }
            Register::DmaStatus => {
                let $cell = cell!($mmio, dma_status);
                $access
            }
            Register::DmaReadStatus => {
                let $cell = cell!($mmio, dma_read_status);
                $access
            }
            Register::DmaWriteStatus => {
                let $cell = cell!($mmio, dma_write_status);
                $access
            }
            Register::Abort => {
                let $cell = cell!($mmio, abort);
                $access
            }
            Register::AxiCache => {
                let $cell = cell!($mmio, axi_cache);
                $access
            }
            Register::Config => {
                let $cell = cell!($mmio, config);
                $access
            }
            Register::ClockGate => {
                let $cell = cell!($mmio, clock_gate);
                $access
            }
        }
    };
}

impl RegisterIo for Mmio {
    #[inline]
    fn read(&self, register: Register) -> u32 {
        let value = for_field!(self, register, cell!(self, version).read(), |cell| cell
            .read());
        // A volatile read alone does not keep the compiler from moving ordinary loads of copied
        // data before it; x86 itself keeps that order.
        fence(Ordering::Acquire);
        value
    }

    #[inline]
    fn write(&self, register: Register, value: u32) {
        for_field!(self, register, (), |cell| {
            // SAFETY: any value may be written to these registers without breaking Rust's rules.
            // The caller of `new` has promised to allow what the engine then does to memory.
            unsafe { cell.write(value) }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_register_is_one_cell() {
        let mut bar = std::vec![0_u32; BAR_LEN_BYTES / 4];
        let base = NonNull::new(bar.as_mut_ptr()).unwrap();
        // SAFETY: `bar` is 4-byte aligned, has BAR_LEN_BYTES bytes and outlives `mmio`.
        let mmio = unsafe { Mmio::new(base.cast()) };
        for (i, r) in (1..).zip(Register::ALL) {
            mmio.write(r, i);
        }
        for (i, r) in (1..).zip(Register::ALL) {
            // The version register is read-only.
            let expected = if r == Register::Version { 0 } else { i };
            assert_eq!(mmio.read(r), expected, "{r:?}");
        }
        for r in Register::ALL
            .into_iter()
            .filter(|r| *r != Register::Version)
        {
            bar[r.offset() / 4] = 0;
        }
        assert!(bar.iter().all(|word| *word == 0), "a gap was written");
    }
}
