//! One PCI function: a model, and what makes it a device on a bus.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use ptdma_model::forks::Reset;
use ptdma_model::{Counters, EngineThread, Forks, Model, ModelConfig};
use rustix::io::Errno;
use serde::Serialize;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR2_REGION_INDEX, VFIO_PCI_BAR5_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_NUM_REGIONS,
};

use crate::config_space::{
    ConfigSpace, Effect, LEN_BYTES, MSIX_BAR_LEN_BYTES, REGISTER_BAR_LEN_BYTES,
};
use crate::guest_memory::{GuestMemory, MapRequest};
use crate::interrupts::Interrupts;

/// Number of regions that a PCI device has in vfio.
pub const NUM_REGIONS: u32 = VFIO_PCI_NUM_REGIONS;

/// Length of a region in bytes; 0 if the function does not have it.
#[must_use]
pub fn region_len_bytes(region: u32) -> u64 {
    match region {
        VFIO_PCI_BAR2_REGION_INDEX => u64::from(REGISTER_BAR_LEN_BYTES),
        VFIO_PCI_BAR5_REGION_INDEX => u64::from(MSIX_BAR_LEN_BYTES),
        VFIO_PCI_CONFIG_REGION_INDEX => LEN_BYTES as u64,
        _ => 0,
    }
}

/// State of a function for people and scripts.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FunctionStatus {
    /// The index in the name of its socket.
    pub index: usize,
    /// Whether a client is connected.
    pub connected: bool,
    /// Whether it answers on the bus (see [`ptdma_model::FaultKind::AllOnes`]).
    pub answers: bool,
    /// Whether its queue is set up (see [`Model::programmed`]).
    pub programmed: bool,
    /// What kind of engine it is.
    pub machine: Forks,
    /// Whether it may use the bus, as its command register says.
    pub bus_master: bool,
    /// Number of maps that the client has made.
    pub maps: usize,
    /// Bytes that they cover.
    pub mapped_bytes: u64,
    /// What the model counted.
    pub counters: Counters,
}

/// One PCI function with its engine thread.
#[derive(Debug)]
pub struct Function {
    index: usize,
    model: Model,
    memory: Arc<GuestMemory>,
    interrupts: Arc<Interrupts>,
    config: Mutex<ConfigSpace>,
    /// BAR 5: written by clients that do not emulate the table themselves, never looked at.
    msix_table: Mutex<Box<[u8; MSIX_BAR_LEN_BYTES as usize]>>,
    engine: Mutex<Option<EngineThread>>,
    connected: AtomicBool,
}

impl Function {
    /// A function just powered on.
    ///
    /// # Errors
    ///
    /// If the system has no thread to give for the engine.
    pub fn new(index: usize, config: ModelConfig) -> std::io::Result<Self> {
        let memory = Arc::new(GuestMemory::new());
        let interrupts = Arc::new(Interrupts::new());
        let model = Model::new(config, Arc::clone(&memory));
        let sink = Arc::clone(&interrupts);
        model.on_interrupt(move || sink.signal());
        model.set_bus_master(false);
        let engine = model.spawn_engine()?;
        Ok(Self {
            index,
            model,
            memory,
            interrupts,
            config: Mutex::new(power_on(&config.forks)),
            msix_table: Mutex::new(Box::new([0; MSIX_BAR_LEN_BYTES as usize])),
            engine: Mutex::new(Some(engine)),
            connected: AtomicBool::new(false),
        })
    }

    /// The index in the name of its socket.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// The model, for counters and faults.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// State for people and scripts.
    #[must_use]
    pub fn status(&self) -> FunctionStatus {
        self.status_with(self.model.counters())
    }

    /// As [`status`](Self::status), and counts from zero again.
    #[must_use]
    pub fn take_status(&self) -> FunctionStatus {
        self.status_with(self.model.take_counters())
    }

    fn status_with(&self, counters: Counters) -> FunctionStatus {
        let (maps, mapped_bytes) = self.memory.size();
        FunctionStatus {
            index: self.index,
            connected: self.connected.load(Ordering::Relaxed),
            answers: self.model.answers(),
            programmed: self.model.programmed(),
            machine: self.model.forks(),
            bus_master: self.config.lock().bus_master(),
            maps,
            mapped_bytes,
            counters,
        }
    }

    /// A client came.
    pub fn connect(&self) {
        self.connected.store(true, Ordering::Relaxed);
    }

    /// The client went away: nothing of it is used any more when this returns, nor is anything of
    /// it executed later, whether the function can be reset or not.
    pub fn disconnect(&self) {
        self.power_cycle();
        self.interrupts.clear();
        self.memory.unmap_all();
        self.connected.store(false, Ordering::Relaxed);
    }

    /// Stops the engine thread for good.
    pub fn stop(&self) {
        let engine = self.engine.lock().take();
        drop(engine);
    }

    /// Reads from a region.
    ///
    /// # Errors
    ///
    /// `EINVAL` outside of the regions.
    pub fn region_read(&self, region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        check_region(region, offset, buf.len())?;
        match region {
            VFIO_PCI_BAR2_REGION_INDEX => self.model.read_bytes(offset, buf),
            // A function that is gone does not answer here either.
            _ if !self.model.answers() => {
                buf.fill(0xff);
                self.model.miss();
            }
            VFIO_PCI_CONFIG_REGION_INDEX => self.config.lock().read(offset, buf),
            _ => {
                let table = self.msix_table.lock();
                let at = usize::try_from(offset).unwrap_or(usize::MAX);
                for (to, from) in buf.iter_mut().zip(table.iter().skip(at)) {
                    *to = *from;
                }
            }
        }
        Ok(())
    }

    /// Writes to a region.
    ///
    /// # Errors
    ///
    /// `EINVAL` outside of the regions.
    pub fn region_write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        check_region(region, offset, data.len())?;
        match region {
            VFIO_PCI_BAR2_REGION_INDEX => self.model.write_bytes(offset, data),
            _ if !self.model.answers() => {}
            VFIO_PCI_CONFIG_REGION_INDEX => {
                let mut config = self.config.lock();
                let effect = config.write(offset, data);
                let bus_master = config.bus_master();
                drop(config);
                match effect {
                    Effect::None => self.model.set_bus_master(bus_master),
                    Effect::FunctionReset => self.reset(),
                }
            }
            _ => {
                let mut table = self.msix_table.lock();
                let at = usize::try_from(offset).unwrap_or(usize::MAX);
                for (to, from) in table.iter_mut().skip(at).zip(data) {
                    *to = *from;
                }
            }
        }
        Ok(())
    }

    /// Function-level reset. Unless the function ignores it, the engine does not touch memory when
    /// this returns. Maps and interrupt descriptors are the client's and stay.
    pub fn reset(&self) {
        if !self.model.function_reset() {
            log::info!("function {} has no reset, or is gone", self.index);
            return;
        }
        self.put_back();
    }

    /// Reset of the whole machine, which no function can ignore.
    pub fn power_cycle(&self) {
        self.model.power_cycle();
        self.put_back();
    }

    /// Everything but the queue, as after power-on.
    fn put_back(&self) {
        *self.config.lock() = power_on(&self.model.forks());
        self.model.set_bus_master(false);
        self.interrupts.clear_pending();
    }

    /// Makes it another kind of engine from now on.
    pub fn set_machine(&self, machine: Forks) {
        self.model.set_forks(machine);
        self.config.lock().set_resets(resets(&machine));
    }

    /// Adds a map of the client's memory.
    ///
    /// # Errors
    ///
    /// See [`GuestMemory::map`].
    pub fn map(&self, request: MapRequest) -> Result<(), Errno> {
        self.memory.map(request)
    }

    /// Removes maps; waits for accesses in progress.
    ///
    /// # Errors
    ///
    /// See [`GuestMemory::unmap`].
    pub fn unmap(&self, addr: u64, len_bytes: u64) -> Result<u64, Errno> {
        self.memory.unmap(addr, len_bytes)
    }

    /// Removes all maps; waits for accesses in progress.
    pub fn unmap_all(&self) {
        self.memory.unmap_all();
    }

    /// Sets up interrupts.
    ///
    /// # Errors
    ///
    /// See [`Interrupts::set`].
    pub fn set_irqs(
        &self,
        flags: u32,
        index: u32,
        start: u32,
        count: u32,
        data: &[u8],
        fds: Vec<File>,
    ) -> Result<(), Errno> {
        self.interrupts.set(flags, index, start, count, data, fds)
    }
}

/// Configuration space after power-on.
fn power_on(machine: &Forks) -> ConfigSpace {
    ConfigSpace::new(resets(machine))
}

/// Whether the function announces a function-level reset.
fn resets(machine: &Forks) -> bool {
    machine.reset != Reset::Absent
}

fn check_region(region: u32, offset: u64, len: usize) -> Result<(), Errno> {
    let end = offset.checked_add(len as u64).ok_or(Errno::INVAL)?;
    if end <= region_len_bytes(region) {
        Ok(())
    } else {
        Err(Errno::INVAL)
    }
}
