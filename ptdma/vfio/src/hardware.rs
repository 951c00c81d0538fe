//! What `ptdma` asks of a platform: registers and ring memory, each with its owner.
//!
//! Why this is safe: an engine reaches what is mapped in its space, and nothing else; the IOMMU
//! sees to that. What is mapped there is [`Memory`](crate::Memory), all accesses to which allow for
//! a writer at any time. So whatever a channel is told to copy, and whatever its engine makes of
//! it, no Rust value changes behind its owner's back.

use std::fmt;
use std::sync::Arc;

use ptdma::descriptor::CommandWord;
use ptdma::regs::Register;
use ptdma::{CoherentRing, Descriptor, DmaAddr, FunctionQuiesced, Mmio, RegisterIo, RingMemory};

use crate::error::Error;
use crate::function::Device;
use crate::space::Mapping;

/// The registers of a function, which they keep open.
pub struct Bar {
    mmio: Mmio,
    _device: Arc<Device>,
}

impl fmt::Debug for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mmio.fmt(f)
    }
}

impl Bar {
    pub(crate) fn new(device: Arc<Device>) -> Self {
        // SAFETY: the device maps at least BAR_LEN_BYTES of BAR 2 of a PTDMA function, page
        // aligned and uncached, as long as it lives, which this value sees to. One process at a
        // time has the function, this one has it open once, and a `Function` makes one `Bar`. What
        // the engine may overwrite is mapped in its space, so it is `Memory` (see the module).
        let mmio = unsafe { Mmio::new(device.bar().start()) };
        Self {
            mmio,
            _device: device,
        }
    }
}

impl RegisterIo for Bar {
    #[inline]
    fn read(&self, register: Register) -> u32 {
        self.mmio.read(register)
    }

    #[inline]
    fn write(&self, register: Register, value: u32) {
        self.mmio.write(register, value);
    }
}

/// The memory of a ring, mapped for the engine.
#[derive(Debug)]
pub struct Ring {
    ring: CoherentRing,
    mapping: Mapping,
}

impl Ring {
    pub(crate) fn new(mapping: Mapping, entries: usize) -> Result<Self, Error> {
        let needed = (entries as u64).saturating_mul(size_of::<Descriptor>() as u64);
        if needed > mapping.len_bytes() {
            return Err(Error::OutOfBounds {
                offset: 0,
                len_bytes: needed,
                size: mapping.len_bytes(),
            });
        }
        // SAFETY: the mapping is page aligned, has room for `entries` descriptors, is mapped to
        // read and to write at its address (`map_ring`), and is of this value alone; its address
        // is given to nobody. It is dropped with this value, and a channel never drops its memory
        // before its engine was proved stopped. x86-64 machines snoop.
        let ring = unsafe { CoherentRing::new(mapping.as_ptr(), mapping.addr(), entries) };
        Ok(Self { ring, mapping })
    }

    pub(crate) fn into_mapping(self) -> Mapping {
        self.mapping
    }
}

impl RingMemory for Ring {
    fn base(&self) -> DmaAddr {
        self.ring.base()
    }

    fn entries(&self) -> usize {
        self.ring.entries()
    }

    #[inline]
    fn store(&mut self, slot: usize, descriptor: &Descriptor) {
        self.ring.store(slot, descriptor);
    }

    #[inline]
    fn store_command(&mut self, slot: usize, command: CommandWord) {
        self.ring.store_command(slot, command);
    }

    #[inline]
    fn publish(&mut self) {
        self.ring.publish();
    }
}

/// States that a function was reset, for which its owner has just seen the kernel succeed.
pub(crate) fn quiesced_by_reset((): ()) -> FunctionQuiesced {
    // SAFETY: the kernel has completed a reset of the function, the caller says. Its queue has no
    // ring and does not run until it is brought up again.
    unsafe { FunctionQuiesced::by_owner() }
}
