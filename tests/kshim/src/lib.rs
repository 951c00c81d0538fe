//! A machine for the Rust of the kernel module: the module's own exports on top, its own [`Mmio`]
//! and rings, and below them a kernel and functions of plain memory.
//!
//! The engines copy when time passes. Each function sees memory at bus addresses of its own, as
//! behind an IOMMU, and an engine refuses what was not mapped for it.

#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;
use std::rc::Rc;

use ptdma::descriptor::{CommandWord, DESCRIPTOR_LEN_BYTES};
use ptdma::regs::{BAR_LEN_BYTES, Interrupts, QueueControl, Register};
use ptdma::{Mmio, RegisterIo};
use ptdma_kshim::abi::{
    ChannelSetup, Folio, MAX_ROUND_FOLIOS, Outcome, Piece, Round, RoundResult, Segment, Settings,
};
use ptdma_kshim::exports::{
    ptdma_rs_batch_run, ptdma_rs_channel_up, ptdma_rs_interrupt, ptdma_rs_scratch_bytes,
    ptdma_rs_scratch_init, ptdma_rs_settings_default, ptdma_rs_settings_set, ptdma_rs_system_bytes,
    ptdma_rs_system_init,
};
use ptdma_kshim::host::{self, Kernel};
use ptdma_kshim::{Scratch, System};

/// Bytes of each folio: a base page.
pub const FOLIO_BYTES: usize = 4096;

/// Bus address of every ring: aligned for the longest one, below all domains.
const RING_BASE: u64 = 0x10_0000;

/// Bytes of bus addresses that a function has for itself. A number that no physical address here
/// comes to.
const DOMAIN_BYTES: u64 = 1 << 40;

/// What each look at the clock takes, in nanoseconds: a clock that stands still would have a batch
/// count its turns.
const LOOK_NS: u64 = 100;

/// Where physical memory begins: zero would hide a forgotten address.
const MEMORY_BASE: u64 = 0x1000_0000;

/// One function: its registers, its ring, and the engine between them.
struct Function {
    registers: Mmio,
    ring: *mut [u32; DESCRIPTOR_LEN_BYTES / 4],
    entries: usize,
    /// It hangs at the descriptor of that number.
    hangs_at: Cell<Option<u64>>,
    executed: Cell<u64>,
}

impl Function {
    /// A function whose memory is leaked: tests make a handful.
    fn new(entries: usize) -> (Self, ChannelSetup) {
        let bar: *mut u32 = vec![0_u32; BAR_LEN_BYTES / 4].leak().as_mut_ptr();
        let bar = NonNull::new(bar).expect("memory").cast::<u8>();
        let ring: *mut [u32; 8] = vec![[0_u32; 8]; entries].leak().as_mut_ptr();
        let setup = ChannelSetup {
            bar: bar.as_ptr(),
            ring: ring.cast(),
            ring_dma: RING_BASE,
            ring_bytes: (entries * DESCRIPTOR_LEN_BYTES) as u64,
            ring_entries: entries as u32,
            node: -1,
            port: -1,
            fresh: 1,
        };
        // SAFETY: BAR_LEN_BYTES bytes, 4-byte aligned, never freed; this handle plays the device,
        // on the one thread that drives it.
        let registers = unsafe { Mmio::new(bar) };
        let function = Self {
            registers,
            ring,
            entries,
            hangs_at: Cell::new(None),
            executed: Cell::new(0),
        };
        (function, setup)
    }

    fn slot(&self, register: Register) -> usize {
        let offset = u64::from(self.registers.read(register)).wrapping_sub(RING_BASE);
        (offset as usize / DESCRIPTOR_LEN_BYTES) % self.entries
    }

    fn descriptor(&self, slot: usize) -> [u32; 8] {
        // SAFETY: within the ring's memory, which is never freed.
        let place = unsafe { self.ring.add(slot) };
        // SAFETY: valid and aligned; the driver writes to it on this thread alone.
        unsafe { place.read_volatile() }
    }

    /// Executes what is between head and tail. Whether a descriptor of that asks for an interrupt.
    fn run(&self, mut copy: impl FnMut([u32; 8])) -> bool {
        let control = QueueControl::from_bits_retain(self.registers.read(Register::Control));
        let runs = control.contains(QueueControl::RUN);
        let (mut head, tail) = (self.slot(Register::Head), self.slot(Register::Tail));
        let mut asked = false;
        while runs && head != tail && self.hangs_at.get() != Some(self.executed.get()) {
            let words = self.descriptor(head);
            copy(words);
            asked |= words[0] & CommandWord::IOC.bits() != 0;
            self.executed.set(self.executed.get() + 1);
            head = (head + 1) % self.entries;
        }
        let address = RING_BASE + (head * DESCRIPTOR_LEN_BYTES) as u64;
        self.registers.write(Register::Head, address as u32);
        let rests = !runs || head == tail;
        let halt = if rests {
            control | QueueControl::HALT
        } else {
            control - QueueControl::HALT
        };
        self.registers.write(Register::Control, halt.bits());
        let status = if asked {
            Interrupts::COMPLETION
        } else {
            Interrupts::empty()
        };
        self.show(status);
        asked
    }

    /// Memory holds what the driver writes, and a one clears a bit of the real register: what the
    /// driver has written is no status.
    fn show(&self, status: Interrupts) {
        self.registers
            .write(Register::InterruptStatus, status.bits());
    }
}

impl Function {
    /// Completes what is before the tail without a look at it, so that the engine costs nothing.
    /// Whether the last descriptor asks for an interrupt.
    fn skip(&self) -> bool {
        let tail = self.registers.read(Register::Tail);
        if self.registers.read(Register::Head) == tail {
            return false;
        }
        self.registers.write(Register::Head, tail);
        let last = (self.slot(Register::Tail) + self.entries - 1) % self.entries;
        let asks = self.descriptor(last)[0] & CommandWord::IOC.bits() != 0;
        self.show(if asks {
            Interrupts::COMPLETION
        } else {
            Interrupts::empty()
        });
        asks
    }
}

/// What is below the library: the kernel, the functions, and memory.
struct Board {
    system: &'static System,
    /// Time passes by what the library does, so that every run is the same.
    now_ns: Cell<u64>,
    functions: RefCell<Vec<Function>>,
    /// Physical memory from [`MEMORY_BASE`] on; none if engines need not copy.
    memory: RefCell<Vec<u8>>,
    /// Channels are up, and find nothing more out about their engines.
    up: Cell<bool>,
    /// Folios that cannot be mapped.
    refuses: RefCell<BTreeSet<u32>>,
    /// The channel that each part is mapped for, by folio and offset.
    mapped: RefCell<BTreeMap<(u32, u64), u32>>,
}

/// Where the bus addresses of a channel begin.
const fn domain(chan: u32) -> u64 {
    (chan as u64 + 1) * DOMAIN_BYTES
}

const fn translate(chan: u32, piece: &Piece) -> Segment {
    Segment {
        src: piece.src + domain(chan),
        dst: piece.dst + domain(chan),
        len: piece.len,
    }
}

impl Board {
    fn copies(&self) -> bool {
        !self.memory.borrow().is_empty()
    }

    /// As `mapping.c` does: maps nothing twice, and keeps what it has mapped.
    fn map_one(&self, chan: u32, piece: &Piece) -> Option<Segment> {
        if self.refuses.borrow().contains(&piece.folio) {
            return None;
        }
        let mut mapped = self.mapped.borrow_mut();
        let by = *mapped.entry((piece.folio, piece.offset)).or_insert(chan);
        (by == chan).then(|| translate(chan, piece))
    }

    /// Does what a descriptor says, for the engine of a channel.
    fn copy(&self, chan: u32, words: [u32; 8]) {
        let at = |low: u32, high: u32| u64::from(low) | u64::from(high & 0xffff) << 32;
        let (src, dst) = (at(words[2], words[3]), at(words[4], words[5]));
        if src < MEMORY_BASE {
            // Inside the ring, to find out what the engine does.
            return;
        }
        let offset = |bus: u64| {
            let offset = bus.checked_sub(domain(chan) + MEMORY_BASE);
            offset.expect("an address of the channel's own") as usize
        };
        let (src, dst, len) = (offset(src), offset(dst), words[1] as usize);
        let mut memory = self.memory.borrow_mut();
        memory.copy_within(src..src + len, dst);
    }

    /// Lets every engine do what it has. Whether that of `wanted` has interrupted.
    fn run(&self, wanted: Option<u32>) -> bool {
        let mut found = false;
        let copies = self.copies();
        for (chan, function) in (0_u32..).zip(&*self.functions.borrow()) {
            let asked = if copies || !self.up.get() {
                function.run(|words| self.copy(chan, words))
            } else {
                function.skip()
            };
            if asked {
                found |= wanted == Some(chan);
                let _ = ptdma_rs_interrupt(self.system, chan);
                function.show(Interrupts::empty());
            }
        }
        found
    }
}

impl Kernel for Board {
    #[inline]
    fn map(&self, chan: u32, pieces: &[Piece], segments: &mut [Segment]) -> usize {
        let mut done = 0;
        if !self.copies() {
            for (segment, piece) in segments.iter_mut().zip(pieces) {
                *segment = translate(chan, piece);
            }
            return pieces.len();
        }
        for (segment, piece) in segments.iter_mut().zip(pieces) {
            let Some(answer) = self.map_one(chan, piece) else {
                break;
            };
            *segment = answer;
            done += 1;
        }
        done
    }

    fn now_ns(&self) -> u64 {
        self.now_ns.set(self.now_ns.get() + LOOK_NS);
        self.now_ns.get()
    }

    fn wait(&self, chan: u32, timeout_ns: u64) -> bool {
        let interrupted = self.run(Some(chan));
        if !interrupted {
            self.now_ns.set(self.now_ns.get() + timeout_ns);
        }
        interrupted
    }

    fn nap(&self, ns: u64) {
        let _ = self.run(None);
        self.now_ns.set(self.now_ns.get() + ns);
    }

    fn yield_now(&self) {
        let _ = self.run(None);
    }

    fn prove_stopped(&self, chan: u32) -> bool {
        // Cut off: it does nothing any more.
        let functions = self.functions.borrow();
        let function = functions.get(chan as usize);
        function.is_some_and(|function| {
            function.hangs_at.set(Some(function.executed.get()));
            true
        })
    }
}

/// What became of a round.
pub struct Ended {
    /// What the library returned.
    pub rc: i32,
    /// An `enum ptdma_outcome` for each folio.
    pub outcomes: Vec<u8>,
    /// Its counts.
    pub result: RoundResult,
}

impl Ended {
    /// Whether the engines copied folio number `index`.
    #[must_use]
    pub fn is_dma(&self, index: usize) -> bool {
        self.outcomes.get(index) == Some(&(Outcome::Dma as u8))
    }
}

/// The module's library with channels up, on functions of plain memory.
pub struct Machine {
    board: Rc<Board>,
    scratch: *mut Scratch,
    folios: Vec<Folio>,
    outcomes: Vec<u8>,
}

/// Memory of C's for the library, zeroed, aligned to 64. Leaked: tests make a handful.
fn allocate(bytes: usize) -> *mut u8 {
    #[derive(Clone, Copy)]
    #[repr(align(64))]
    struct Line(#[allow(dead_code, reason = "room")] [u8; 64]);
    let lines = vec![Line([0; 64]); bytes.div_ceil(64)];
    lines.leak().as_mut_ptr().cast()
}

impl Machine {
    /// A machine with `channels` channels, and `folios` scattered base pages to be moved. `copies`:
    /// whether engines move bytes, and the kernel keeps account of mappings. This thread has its
    /// kernel from now on.
    ///
    /// # Panics
    ///
    /// If a channel does not come up.
    #[must_use]
    pub fn new(channels: u32, folios: usize, copies: bool) -> Self {
        let system: *mut System = allocate(ptdma_rs_system_bytes()).cast();
        // SAFETY: as large and aligned as it has to be, and never moved.
        unsafe { ptdma_rs_system_init(system) };
        // SAFETY: made just now, and never freed.
        let system = unsafe { &*system };
        let scratch: *mut Scratch = allocate(ptdma_rs_scratch_bytes()).cast();
        // SAFETY: as large and aligned as it has to be.
        unsafe { ptdma_rs_scratch_init(scratch) };
        // Each page, on both sides, with a hole of a page behind it.
        let pages = 4 * folios.min(MAX_ROUND_FOLIOS);
        let at = |page: usize| MEMORY_BASE + (page * FOLIO_BYTES) as u64;
        let machine = Self {
            board: Rc::new(Board {
                system,
                now_ns: Cell::new(0),
                functions: RefCell::default(),
                memory: RefCell::new(vec![0; if copies { pages * FOLIO_BYTES } else { 0 }]),
                up: Cell::new(false),
                refuses: RefCell::default(),
                mapped: RefCell::default(),
            }),
            scratch,
            folios: (0..folios)
                .map(|index| Folio {
                    src: at(2 * index),
                    dst: at(pages / 2 + 2 * index),
                    len: FOLIO_BYTES as u64,
                })
                .collect(),
            outcomes: vec![Outcome::NotAttempted as u8; folios],
        };
        let kernel: Rc<dyn Kernel> = machine.board.clone();
        host::boot(kernel);
        let mut settings = Settings::default();
        ptdma_rs_settings_default(&mut settings);
        for chan in 0..channels {
            let (function, setup) = Function::new(settings.ring_entries as usize);
            machine.board.functions.borrow_mut().push(function);
            // SAFETY: the memory in `setup` is never freed, and no channel of that number is up.
            let rc = unsafe { ptdma_rs_channel_up(system, chan, &setup) };
            assert_eq!(rc, 0, "channel {chan}");
        }
        machine.board.up.set(true);
        settings.nr_dma_chan = channels;
        let rc = ptdma_rs_settings_set(system, &settings);
        assert_eq!(rc, 0, "{settings:?}");
        machine
    }

    /// Has the mapping of these folios fail from now on.
    pub fn refuse(&self, folios: &[u32]) {
        *self.board.refuses.borrow_mut() = folios.iter().copied().collect();
    }

    /// Has the engine of a channel hang when it has executed `more` further descriptors.
    pub fn hang(&self, chan: usize, more: u64) {
        if let Some(function) = self.board.functions.borrow().get(chan) {
            function.hangs_at.set(Some(function.executed.get() + more));
        }
    }

    /// Fills the sources with data of their own, and clears the destinations.
    pub fn refill(&self) {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut memory = self.board.memory.borrow_mut();
        let half = memory.len() / 2;
        let (sources, destinations) = memory.split_at_mut(half);
        destinations.fill(0);
        for word in sources.chunks_exact_mut(8) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            // No byte of a source is zero.
            word.copy_from_slice(&(state | 0x0101_0101_0101_0101).to_le_bytes());
        }
    }

    /// Copies the folios, as the module does with a round.
    #[inline(never)]
    pub fn round(&mut self) -> (i32, RoundResult) {
        self.board.mapped.borrow_mut().clear();
        let round = Round {
            folios: self.folios.as_ptr(),
            outcomes: self.outcomes.as_mut_ptr(),
            nr: self.folios.len() as u32,
            only: -1,
            src_node: -1,
            dst_node: -1,
            may_sleep: 1,
            repair: 0,
        };
        let mut result = RoundResult::default();
        // SAFETY: the scratch was made, and is used for this round alone; the kernel below takes any
        // batch; folios and outcomes have `nr` entries; the folios are this machine's own.
        let rc = unsafe {
            ptdma_rs_batch_run(
                self.board.system,
                NonNull::dangling().as_ptr(),
                self.scratch,
                &round,
                &mut result,
            )
        };
        (rc, result)
    }

    /// Copies the folios from new data, and compares memory with what the library reports.
    ///
    /// # Panics
    ///
    /// If a folio is said to be copied and is not, or something else was written.
    pub fn checked_round(&mut self) -> Ended {
        self.refill();
        self.outcomes.fill(Outcome::Dma as u8);
        let (rc, result) = self.round();
        let ended = Ended {
            rc,
            outcomes: self.outcomes.clone(),
            result,
        };
        let memory = self.board.memory.borrow();
        let page = |addr: u64| {
            let start = (addr - MEMORY_BASE) as usize;
            memory.get(start..start + FOLIO_BYTES).expect("in memory")
        };
        for (index, folio) in self.folios.iter().enumerate() {
            if ended.is_dma(index) {
                assert!(page(folio.src) == page(folio.dst), "folio {index} differs");
            } else if ended.outcomes.get(index) == Some(&(Outcome::NotAttempted as u8)) {
                let untouched = page(folio.dst).iter().all(|byte| *byte == 0);
                assert!(untouched, "folio {index} was written");
            }
            let hole = page(folio.dst + FOLIO_BYTES as u64);
            assert!(hole.iter().all(|byte| *byte == 0), "behind folio {index}");
        }
        ended
    }
}
