//! A function made of plain memory whose engine is infinitely fast: what is left is what the CPU
//! does, so that instructions can be counted.

use std::cell::Cell;
use std::rc::Rc;

use ptdma::descriptor::{CommandWord, Descriptor};
use ptdma::regs::{Interrupts, QueueControl, Register};
use ptdma::{DmaAddr, RegisterIo, RingMemory};

/// Registers of a function that completes everything at the doorbell. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct PlainRegisters {
    head: Rc<Cell<u32>>,
    control: Rc<Cell<u32>>,
    /// Whether a descriptor that was stored and not executed asks for an interrupt.
    asked: Rc<Cell<bool>>,
    interrupts: Rc<Cell<u64>>,
}

impl PlainRegisters {
    /// Interrupts since the last call: one for a doorbell that covered a descriptor which asks for
    /// one. (Several that complete at once raise one: the status they set is one bit.)
    #[must_use]
    pub fn take_interrupts(&self) -> u64 {
        self.interrupts.take()
    }

    /// The ring of this function, of `entries` slots.
    #[must_use]
    pub fn ring(&self, entries: usize) -> PlainRing {
        PlainRing {
            slots: vec![[0; 4]; entries].into(),
            asked: Rc::clone(&self.asked),
        }
    }
}

impl RegisterIo for PlainRegisters {
    #[inline]
    fn read(&self, register: Register) -> u32 {
        match register {
            Register::Head => self.head.get(),
            Register::Control => {
                let control = QueueControl::from_bits_retain(self.control.get());
                let halted = if control.contains(QueueControl::RUN) {
                    QueueControl::empty()
                } else {
                    QueueControl::HALT
                };
                (control | halted).bits()
            }
            Register::InterruptStatus => Interrupts::COMPLETION.bits(),
            Register::Version => (1 << 15) | 5,
            _ => 0,
        }
    }

    #[inline]
    fn write(&self, register: Register, value: u32) {
        match register {
            Register::Head => self.head.set(value),
            Register::Control => self.control.set(value),
            Register::Tail => {
                self.head.set(value);
                if self.asked.take() {
                    self.interrupts.set(self.interrupts.get() + 1);
                }
            }
            _ => {}
        }
    }
}

/// A ring in plain memory.
#[derive(Debug)]
pub struct PlainRing {
    slots: Box<[[u64; 4]]>,
    asked: Rc<Cell<bool>>,
}

impl PlainRing {
    /// Bus address of every ring of this kind: aligned for the longest one.
    const BASE: DmaAddr = DmaAddr::new(0x1_0010_0000);

    /// Has the function notice what a descriptor asks for. It does so here and not when it
    /// executes it, because here the compiler knows that of most commands: the driver is not
    /// charged for looking at all of them.
    #[inline(always)]
    fn note(&self, command: u32) {
        if command & CommandWord::IOC.bits() != 0 {
            self.asked.set(true);
        }
    }
}

impl RingMemory for PlainRing {
    fn base(&self) -> DmaAddr {
        Self::BASE
    }

    fn entries(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    fn store(&mut self, slot: usize, descriptor: &Descriptor) {
        if let Some(place) = self.slots.get_mut(slot) {
            // As the ring in coherent memory does.
            *place = descriptor.to_quads();
        }
        self.note(descriptor.command.get());
    }

    #[inline]
    fn store_command(&mut self, slot: usize, command: CommandWord) {
        if let Some(place) = self.slots.get_mut(slot) {
            let [first, ..] = place;
            *first = *first & !u64::from(u32::MAX) | u64::from(command.bits());
        }
        self.note(command.bits());
    }

    fn publish(&mut self) {
        // As a compiler barrier would: the stores are observed.
        std::hint::black_box(&self.slots);
    }
}
