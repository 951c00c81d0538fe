//! A model of the published strategy, to compare with.
//!
//! From its description and from measurements of the stock driver under it: folios are dealt out
//! by *count*, a contiguous block of the list to each channel; scatter tables, one entry per
//! folio, are allocated for every batch and channel; every entry becomes a dmaengine descriptor
//! (an allocation), one callback and one interrupt; the stock driver has one descriptor in flight
//! per channel, whose completion submits the next one from within the interrupt handler, at 3
//! register reads and 6 writes a piece.
//!
//! Nothing of it waits or takes locks here, so its instruction counts are lower than the
//! original's.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use batch_copy::Folio;
use ptdma::descriptor::{CommandWord, Descriptor};
use ptdma::regs::{Interrupts, QueueControl, Register};
use ptdma::{DmaAddr, RegisterIo, RingMemory};

/// Ring entries of the stock driver.
pub const STOCK_ENTRIES: usize = 32;

/// An entry of a scatter table: what a mapped folio looks like.
#[derive(Clone, Copy)]
struct Entry {
    dma_addr: DmaAddr,
    len_bytes: u32,
}

/// A prepared copy of the dmaengine kind.
struct Prepared {
    descriptor: Descriptor,
    callback: Box<dyn FnOnce()>,
}

/// What one channel has to do for one batch.
struct Work {
    pending: Rc<Cell<usize>>,
    queue: RefCell<VecDeque<Box<Prepared>>>,
    in_flight: RefCell<Option<Box<Prepared>>>,
}

/// One queue under the stock driver.
pub struct StockQueue<R, M> {
    regs: R,
    ring: RefCell<M>,
    slot: Cell<usize>,
    run: u32,
    work: RefCell<Option<Rc<Work>>>,
}

impl<R: RegisterIo, M: RingMemory> StockQueue<R, M> {
    /// Programs the function for a ring of [`STOCK_ENTRIES`].
    pub fn new(regs: R, ring: M) -> Self {
        let base = ring.base();
        let size = STOCK_ENTRIES.trailing_zeros();
        let run = QueueControl::RUN
            .with_size(size)
            .with_base_high(base.high())
            .bits();
        regs.write(Register::Control, run & !QueueControl::RUN.bits());
        regs.write(Register::Tail, base.low());
        regs.write(Register::Head, base.low());
        regs.write(Register::InterruptEnable, Interrupts::COMPLETION.bits());
        Self {
            regs,
            ring: RefCell::new(ring),
            slot: Cell::new(0),
            run,
            work: RefCell::new(None),
        }
    }

    /// Hands the next copy to the engine: one read and three writes.
    fn start_next(&self, work: &Work) {
        let Some(prepared) = work.queue.borrow_mut().pop_front() else {
            return;
        };
        let mut ring = self.ring.borrow_mut();
        ring.store(self.slot.get(), &prepared.descriptor);
        self.slot.set((self.slot.get() + 1) % STOCK_ENTRIES);
        ring.publish();
        let tail = ring.base().low() + (self.slot.get() * 32) as u32;
        *work.in_flight.borrow_mut() = Some(prepared);
        let _ = self.regs.read(Register::Control);
        self.regs
            .write(Register::InterruptEnable, Interrupts::COMPLETION.bits());
        self.regs.write(Register::Tail, tail);
        self.regs.write(Register::Control, self.run);
    }

    /// The interrupt handler: two reads and three writes around callback and next submission.
    pub fn interrupt(&self) {
        self.regs.write(Register::InterruptEnable, 0);
        let status = self.regs.read(Register::InterruptStatus);
        let _ = self.regs.read(Register::Status);
        if status == 0 {
            return;
        }
        self.regs.write(Register::InterruptStatus, status);
        let work = self.work.borrow().clone();
        if let Some(work) = work {
            // Errors are not looked at: the callback runs all the same.
            let done = work.in_flight.borrow_mut().take();
            if let Some(done) = done {
                (done.callback)();
            }
            self.start_next(&work);
        }
        self.regs
            .write(Register::InterruptEnable, Interrupts::COMPLETION.bits());
    }
}

/// Starts a batch on all queues. It is over when the returned count, of channels, is zero; until
/// then call [`StockQueue::interrupt`] for every interrupt.
pub fn start<R: RegisterIo, M: RingMemory>(
    queues: &[StockQueue<R, M>],
    folios: &[Folio],
) -> Rc<Cell<usize>> {
    let channels = queues.len().min(folios.len());
    let remaining = Rc::new(Cell::new(channels));
    let share = folios.len().checked_div(channels).unwrap_or(0);
    let extra = folios.len().checked_rem(channels).unwrap_or(0);
    let mut rest = folios;
    for (index, queue) in queues.iter().take(channels).enumerate() {
        let (mine, others) = rest.split_at(share + usize::from(index < extra));
        rest = others;
        let table = |addr: fn(&Folio) -> DmaAddr| -> Vec<Entry> {
            mine.iter()
                .map(|folio| Entry {
                    dma_addr: addr(folio),
                    len_bytes: folio.len_bytes as u32,
                })
                .collect()
        };
        let (src, dst) = (table(|f| f.src), table(|f| f.dst));
        let pending = Rc::new(Cell::new(mine.len()));
        let work = Rc::new(Work {
            pending: Rc::clone(&pending),
            queue: RefCell::new(VecDeque::new()),
            in_flight: RefCell::new(None),
        });
        for (src, dst) in src.iter().zip(&dst) {
            let pending = Rc::clone(&work.pending);
            let remaining = Rc::clone(&remaining);
            let callback = Box::new(move || {
                pending.set(pending.get() - 1);
                if pending.get() == 0 {
                    remaining.set(remaining.get() - 1);
                }
            });
            work.queue.borrow_mut().push_back(Box::new(Prepared {
                descriptor: Descriptor::copy(
                    CommandWord::COPY_IOC,
                    src.dma_addr,
                    dst.dma_addr,
                    src.len_bytes,
                ),
                callback,
            }));
        }
        *queue.work.borrow_mut() = Some(Rc::clone(&work));
        queue.start_next(&work);
    }
    remaining
}
