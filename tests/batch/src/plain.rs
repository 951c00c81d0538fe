//! A function made of plain memory whose engine is infinitely fast: what is left is what the CPU
//! does, so that instructions can be counted.

use std::cell::Cell;
use std::rc::Rc;

use ptdma::descriptor::{CommandWord, Descriptor};
use ptdma::regs::{Interrupts, Register};
use ptdma::{DmaAddr, RegisterIo, RingMemory};

/// Registers of a function that completes everything at the doorbell. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct PlainRegisters {
    head: Rc<Cell<u32>>,
    interrupts: Rc<Cell<u64>>,
}

impl PlainRegisters {
    /// Interrupts since the last call: one per doorbell, as if its last descriptor asked for it.
    #[must_use]
    pub fn take_interrupts(&self) -> u64 {
        self.interrupts.take()
    }
}

impl RegisterIo for PlainRegisters {
    #[inline]
    fn read(&self, register: Register) -> u32 {
        match register {
            Register::Head => self.head.get(),
            Register::InterruptStatus => Interrupts::COMPLETION.bits(),
            Register::Version => (1 << 15) | 5,
            _ => 0,
        }
    }

    #[inline]
    fn write(&self, register: Register, value: u32) {
        match register {
            Register::Head => self.head.set(value),
            Register::Tail => {
                self.head.set(value);
                self.interrupts.set(self.interrupts.get() + 1);
            }
            _ => {}
        }
    }
}

/// A ring in plain memory.
#[derive(Debug)]
pub struct PlainRing {
    slots: Box<[[u64; 4]]>,
}

impl PlainRing {
    /// Bus address of every ring of this kind: aligned for the longest one.
    const BASE: DmaAddr = DmaAddr::new(0x1_0010_0000);

    /// A ring of `entries` slots.
    #[must_use]
    pub fn new(entries: usize) -> Self {
        Self {
            slots: vec![[0; 4]; entries].into(),
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
    }

    #[inline]
    fn store_command(&mut self, slot: usize, command: CommandWord) {
        if let Some(place) = self.slots.get_mut(slot) {
            let [first, ..] = place;
            *first = *first & !u64::from(u32::MAX) | u64::from(command.bits());
        }
    }

    fn publish(&mut self) {
        // As a compiler barrier would: the stores are observed.
        std::hint::black_box(&self.slots);
    }
}
