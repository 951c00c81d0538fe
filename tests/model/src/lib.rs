//! One emulated PTDMA function, or sixteen: the device that every test of this tree runs on.
//!
//! The same model stands behind the host tests and the demo (memory of [`BusSpace`], handles used
//! as [`ptdma::io::RegisterIo`]) and behind the virtual machines (the vfio-user server brings its
//! own [`BusMemory`]), where Linux drivers that were not written here judge it.
//!
//! # A first copy
//!
//! ```
//! use ptdma::descriptor::{CommandWord, Descriptor};
//! use ptdma::io::{RegisterIo, RingMemory};
//! use ptdma::regs::{QueueControl, Register};
//! use ptdma_model::{Access, BusRing, BusSpace, Model, ModelConfig, StepOutcome};
//!
//! let bus = BusSpace::new();
//! let model = Model::new(ModelConfig::default(), bus.clone());
//! let mut ring = BusRing::new(&bus, 32)?;
//! let src = bus.alloc(4096, 4096, Access::ReadWrite)?;
//! let dst = bus.alloc(4096, 4096, Access::ReadWrite)?;
//! src.write(0, b"hello")?;
//!
//! let control = QueueControl::empty().with_size(5).with_base_high(ring.base().high());
//! model.write(Register::Head, ring.base().low());
//! ring.store(0, &Descriptor::copy(CommandWord::COPY, src.addr(), dst.addr(), 4096));
//! ring.publish();
//! model.write(Register::Tail, ring.base().low() + 32);
//! model.write(Register::Control, (control | QueueControl::RUN).bits());
//!
//! assert!(matches!(model.step(), StepOutcome::Completed { .. }));
//! let mut seen = [0; 5];
//! dst.read(0, &mut seen)?;
//! assert_eq!(&seen, b"hello");
//! assert_eq!(model.counters().bytes, 4096);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How it behaves
//!
//! Facts are in [`ptdma::regs`]; what follows is this model's choice where nobody outside AMD
//! knows, so a driver must not depend on it:
//!
//! - **Ring**: SIZE gives the entries; the ring is taken to be aligned to its own size (both AMD
//!   drivers allocate it so), so its base is head with the low bits cleared, and head wraps by
//!   mask. A tail in another window, a head that is no multiple of 32, or a ring that would cross
//!   4 GiB is answered with error 11 instead of walking memory for ever.
//! - **Forks**: what has several likely answers is a switch of [`Forks`], in [`forks`]. What follows
//!   is the default, [`Forks::TODAY`].
//! - **RUN and HALT**: RUN reads 1 while the engine is to walk. HALT reads 1 when it does not walk
//!   *and* no descriptor is in flight, so "RUN is 0 and HALT is 1" is the proof that it stopped; a
//!   halt asked for in the middle of a descriptor takes effect after it. The engine stops when it
//!   drained the ring, and needs RUN again. RUN with an empty ring latches nothing.
//! - **Interrupt status** latches whether enabled or not: COMPLETION for IOC, EMPTY when drained,
//!   STOPPED when the engine stopped by itself (drained, SOC, error) or was stopped with work left.
//!   All bits of one descriptor latch in one go. A message is sent when `status & enable` goes from
//!   zero to non-zero, whichever of the two was written.
//! - **Errors**: the engine stops with head at the failing descriptor, the code in the status
//!   register and ERROR latched. The code is gone at the next RUN.
//! - **Head** may be written at any time; written during a descriptor, the written value wins over
//!   the engine's own advance.
//! - **Copies** go in ascending order. Where source and destination overlap, the engine moves
//!   [`bus::BURST_LEN_BYTES`] at a time, so an overlap "upwards" repeats data as a burst engine
//!   would: well defined, and not `memmove`.
#![forbid(unsafe_code)]

pub mod bus;
mod bus_space;
mod counters;
mod decode;
mod engine;
pub mod fault;
pub mod forks;
mod interrupt;
mod model;
mod region;
mod ring;
pub mod simulation;
mod state;
pub mod tape;
mod timing;

pub use bus::{BusError, BusMemory, CopyError, Side};
pub use bus_space::{Access, AllocError, BusBuffer, BusSpace};
pub use counters::{Counters, RegisterCounts};
pub use engine::EngineThread;
pub use fault::{Fault, FaultId, FaultKind, Trigger};
pub use forks::Forks;
pub use interrupt::InterruptLine;
pub use model::{Model, ModelConfig, StepOutcome};
pub use ring::BusRing;
pub use simulation::{SimulatedFunction, Simulation, SimulationConfig};
pub use timing::Timing;
