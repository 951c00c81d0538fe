//! A modelled function as the probe's platform.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ptdma::DmaAddr;
use ptdma::io::{Clock, RegisterIo};
use ptdma::regs::Register;
use ptdma_model::{
    Access, BusBuffer, BusRing, BusSpace, EngineThread, Forks, Model, ModelConfig, Timing,
};
use ptdma_probe::{Platform, ResetOutcome};

/// Length of either buffer: what all measurements take.
const ROOM_LEN_BYTES: usize = 2 << 20;
/// Entries of the ring: the most that a driver has used on silicon.
const RING_ENTRIES: usize = 8192;
/// How fast the engine is: a whole ring of the longest copies lasts longer than the 400 reads of
/// a late HALT, on a busy machine too.
const BYTES_PER_SECOND: u64 = 2_000_000_000;

/// Real time, since the engine is a thread.
#[derive(Clone, Copy, Debug)]
pub struct Wall(Instant);

impl Clock for Wall {
    fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The registers. Who polls them lets the engine's thread run now and then, which may have no
/// processor of its own.
#[derive(Clone, Debug)]
pub struct Registers {
    model: Model,
    reads: Arc<AtomicU32>,
}

impl RegisterIo for Registers {
    fn read(&self, register: Register) -> u32 {
        /// Reads between two pauses: some microseconds, as long as a busy engine's copy.
        const READS: u32 = 32;
        if self.reads.fetch_add(1, Ordering::Relaxed) % READS == READS - 1 {
            std::thread::sleep(Duration::from_micros(1));
        }
        self.model.read(register)
    }

    fn write(&self, register: Register, value: u32) {
        if register == Register::Control {
            // As if somebody else had the processor: an engine that goes on by the tail is done
            // with short work by then.
            std::thread::sleep(Duration::from_micros(100));
        }
        self.model.write(register, value);
    }
}

/// A modelled function whose engine is a thread, and memory for the probe.
#[derive(Debug)]
pub struct Bench {
    // Dropped first: the engine works until then.
    _engine: EngineThread,
    /// The function.
    pub model: Model,
    registers: Registers,
    ring: BusRing,
    source: BusBuffer,
    target: BusBuffer,
    refusing: Option<BusBuffer>,
    across: BusBuffer,
    clock: Wall,
    interrupts: Arc<AtomicU32>,
}

impl Bench {
    /// A function of a kind.
    ///
    /// # Panics
    ///
    /// If the bus or the system has no room.
    #[must_use]
    pub fn new(forks: Forks) -> Self {
        let bus = BusSpace::new();
        let config = ModelConfig {
            forks,
            auto_step: 0,
            timing: Timing {
                bytes_per_second: BYTES_PER_SECOND,
                ..Timing::default()
            },
        };
        let model = Model::new(config, bus.clone());
        let interrupts = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&interrupts);
        model.on_interrupt(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        let alloc = |len, access| bus.alloc(len, 4096, access).expect("the bus is large");
        let across = DmaAddr::new((7 << 32) - 4096);
        Self {
            ring: BusRing::new(&bus, RING_ENTRIES).expect("a ring fits"),
            source: alloc(ROOM_LEN_BYTES, Access::ReadOnly),
            target: alloc(ROOM_LEN_BYTES, Access::ReadWrite),
            refusing: Some(alloc(4096, Access::ReadOnly)),
            across: bus
                .map_at(across, 8192, Access::ReadWrite)
                .expect("nothing is there"),
            clock: Wall(Instant::now()),
            interrupts,
            _engine: model.spawn_engine().expect("a thread"),
            registers: Registers {
                model: model.clone(),
                reads: Arc::default(),
            },
            model,
        }
    }

    /// The same without memory that refuses writes, as on a machine without an IOMMU.
    #[must_use]
    pub fn without_iommu(mut self) -> Self {
        self.refusing = None;
        self
    }
}

fn read(buffer: &BusBuffer, at: u64, into: &mut [u8]) {
    buffer.read(at as usize, into).expect("in bounds");
}

fn write(buffer: &BusBuffer, at: u64, bytes: &[u8]) {
    buffer.write(at as usize, bytes).expect("in bounds");
}

impl Platform for Bench {
    type Regs = Registers;
    type Ring = BusRing;
    type Clock = Wall;

    fn parts(&mut self) -> (&Registers, &mut BusRing) {
        (&self.registers, &mut self.ring)
    }
    fn regs(&self) -> &Registers {
        &self.registers
    }
    fn clock(&self) -> Wall {
        self.clock
    }
    fn source(&self) -> DmaAddr {
        self.source.addr()
    }
    fn target(&self) -> DmaAddr {
        self.target.addr()
    }
    fn room_len_bytes(&self) -> u64 {
        ROOM_LEN_BYTES as u64
    }
    fn write_source(&mut self, at: u64, bytes: &[u8]) {
        write(&self.source, at, bytes);
    }
    fn write_target(&mut self, at: u64, bytes: &[u8]) {
        write(&self.target, at, bytes);
    }
    fn read_target(&self, at: u64, into: &mut [u8]) {
        read(&self.target, at, into);
    }
    fn refusing(&self) -> Option<DmaAddr> {
        self.refusing.as_ref().map(BusBuffer::addr)
    }
    fn across_4_gib(&self) -> Option<DmaAddr> {
        Some(self.across.addr())
    }
    fn read_across(&self, at: u64, into: &mut [u8]) {
        read(&self.across, at, into);
    }
    fn write_across(&mut self, at: u64, bytes: &[u8]) {
        write(&self.across, at, bytes);
    }
    fn set_bus_master(&mut self, on: bool) -> bool {
        self.model.set_bus_master(on);
        true
    }
    fn take_interrupt(&mut self, limit_ns: u64) -> Option<bool> {
        let end = Instant::now() + Duration::from_nanos(limit_ns);
        loop {
            if self.interrupts.swap(0, Ordering::SeqCst) > 0 {
                return Some(true);
            }
            if Instant::now() >= end {
                return Some(false);
            }
            std::thread::yield_now();
        }
    }
    fn reset(&mut self) -> ResetOutcome {
        /// How long the kernel waits for a function, in looks.
        const LOOKS: u32 = 5_000;
        if !self.model.function_reset() {
            return ResetOutcome::Absent;
        }
        for _ in 0..LOOKS {
            if self.model.answers() {
                return ResetOutcome::Works;
            }
            self.model.miss();
        }
        ResetOutcome::Lost
    }
}
