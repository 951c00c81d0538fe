//! What a batch calls.

use std::cell::Cell;
use std::rc::Rc;

use batch_copy::{
    CPU_CHUNK_BYTES, CpuCopier, CpuCopyError, Folio, FolioSource, MapError, Mapper, Piece, Rescue,
    Segment, Wait, WaitFor, Wake,
};
use ptdma::DmaAddr;

use super::engine::{DOMAIN_LEN_BYTES, OUT_OF_REACH};
use super::world::{Quarantined, World, scramble};

/// Who sleeps, and until when.
#[derive(Default)]
pub(super) struct Bed {
    pub(super) until_ns: Cell<Option<u64>>,
    pub(super) heard: Cell<u64>,
}

pub(super) struct FuzzWait {
    pub(super) world: Rc<World>,
    pub(super) interrupts: bool,
    /// Every batch has a clock of its own, which began at another moment.
    pub(super) epoch_ns: u64,
    pub(super) bed: Rc<Bed>,
}

impl Wait for FuzzWait {
    fn now_ns(&self) -> u64 {
        self.world.tick();
        // It may go back by a little.
        let back = self.world.below(4);
        (self.world.now_ns.get() - back).wrapping_add(self.epoch_ns)
    }

    fn wants_interrupts(&self) -> bool {
        self.interrupts
    }

    fn wait(&mut self, wait: &WaitFor) -> Wake {
        let world = &self.world;
        world.tick_or_panic();
        let now_ns = world.now_ns.get();
        if !self.interrupts {
            // Others have their turn while it spins.
            if world.one_in(2) {
                world.turn.give_up();
            }
            return Wake::Poll;
        }
        let lasts_ns = if wait.announced { 20_000 } else { 300 };
        let until_ns = now_ns
            .saturating_add(lasts_ns)
            .min(wait.latest_ns.saturating_sub(self.epoch_ns));
        self.bed.until_ns.set(Some(until_ns));
        while world.bell.get() == self.bed.heard.get() && world.now_ns.get() < until_ns {
            if world.wrong.borrow().is_some() {
                break;
            }
            world.turn.give_up();
        }
        self.bed.until_ns.set(None);
        let woken = self.bed.heard.replace(world.bell.get()) != world.bell.get();
        match (wait.announced, woken) {
            (_, true) => Wake::Interrupted,
            (true, false) => Wake::Overdue,
            (false, false) => Wake::Poll,
        }
    }
}

/// Translates 64 bytes at a time; some of these are refused, out of reach, or somewhere else when
/// asked again.
pub(super) struct FuzzMapper {
    pub(super) world: Rc<World>,
    /// One block in so many is refused; 0: none.
    pub(super) refuse_one_in: u64,
    /// Whether a block that one channel is refused is refused to all.
    pub(super) for_all: bool,
    /// Whether an answer ends at the end of a block.
    pub(super) splits: bool,
}

/// What a mapper decides about at a time.
const BLOCK_LEN_BYTES: u64 = 64;

impl FuzzMapper {
    fn of_block(&self, channel: usize, src: u64) -> u64 {
        let channel = if self.for_all { 0 } else { channel as u64 + 1 };
        scramble(self.world.seed ^ (src / BLOCK_LEN_BYTES) << 8 ^ channel)
    }

    fn is_refused(&self, channel: usize, src: u64) -> bool {
        self.refuse_one_in != 0
            && self
                .of_block(channel, src)
                .is_multiple_of(self.refuse_one_in)
    }
}

impl Mapper for FuzzMapper {
    fn map(&mut self, channel: usize, piece: &Piece) -> Result<Segment, MapError> {
        let world = Rc::clone(&self.world);
        world.tick_or_panic();
        if world.manners.lies && world.one_in(20) {
            world.trouble.set(true);
            let len_bytes = match world.below(4) {
                0 => return Err(MapError),
                1 => piece.len_bytes.div_ceil(2),
                2 => u64::MAX,
                _ => piece.len_bytes,
            };
            let apart = world.one_of(&[0, 8, OUT_OF_REACH]);
            return Ok(Segment {
                src: DmaAddr::new(piece.src.get() + apart),
                dst: piece.dst,
                len_bytes,
            });
        }
        let src = piece.src.get();
        let end = src + piece.len_bytes;
        let mut len_bytes = 0;
        let mut at = src;
        while at < end && (!self.splits || at == src) && !self.is_refused(channel, at) {
            let to = (at / BLOCK_LEN_BYTES + 1) * BLOCK_LEN_BYTES;
            len_bytes = to.min(end) - src;
            at = to;
        }
        if len_bytes == 0 {
            world.trouble.set(true);
            if self.of_block(channel, src) & 0x100 == 0 {
                return Err(MapError);
            }
            // Mapped, and out of the channel's reach.
            return Ok(Segment {
                src: DmaAddr::new(src | OUT_OF_REACH),
                dst: piece.dst,
                len_bytes: ((src / BLOCK_LEN_BYTES + 1) * BLOCK_LEN_BYTES).min(end) - src,
            });
        }
        let base = (channel as u64 + 1) * DOMAIN_LEN_BYTES;
        Ok(Segment {
            src: DmaAddr::new(src + base),
            dst: DmaAddr::new(piece.dst.get() + base),
            len_bytes,
        })
    }

    fn map_chunk(
        &mut self,
        channel: usize,
        pieces: impl Iterator<Item = Piece>,
        segments: &mut [Segment],
    ) -> usize {
        let world = Rc::clone(&self.world);
        // A mapper may stop where it likes; nothing at all would be a refusal.
        let most = 1 + world.below(2 * segments.len() as u64) as usize;
        let mut answered = 0;
        for (segment, piece) in segments.iter_mut().zip(pieces).take(most) {
            match self.map(channel, &piece) {
                Ok(mapped) => *segment = mapped,
                Err(MapError) => break,
            }
            // Answers behind one for a part of its piece are for nothing.
            answered += 1;
        }
        if world.manners.lies && world.one_in(40) {
            world.trouble.set(true);
            let made_up = Segment {
                src: DmaAddr::new(OUT_OF_REACH),
                dst: DmaAddr::new(OUT_OF_REACH),
                len_bytes: BLOCK_LEN_BYTES,
            };
            segments
                .iter_mut()
                .skip(answered)
                .for_each(|s| *s = made_up);
            answered = world.below(100) as usize;
        }
        answered
    }
}

/// A list of folios that is looked up with care.
pub(super) struct FuzzList {
    pub(super) world: Rc<World>,
    pub(super) folios: Rc<Vec<Folio>>,
    pub(super) lies: Cell<bool>,
}

impl FolioSource for FuzzList {
    fn folio(&self, index: usize) -> Option<Folio> {
        self.world.tick_or_panic();
        let folio = self.folios.get(index).copied();
        if self.lies.get() && self.world.one_in(60) {
            self.world.trouble.set(true);
            return match self.world.below(3) {
                0 => None,
                1 => {
                    folio.map(|folio| Folio::new(folio.src, folio.dst, folio.len_bytes.div_ceil(2)))
                }
                _ => self.folios.first().copied(),
            };
        }
        folio
    }
}

pub(super) struct FuzzCpu {
    pub(super) world: Rc<World>,
    pub(super) fails_one_in: u64,
}

impl CpuCopier for FuzzCpu {
    fn copy(&mut self, piece: &Piece) -> Result<(), CpuCopyError> {
        let world = &self.world;
        world.tick_or_panic();
        if piece.len_bytes == 0 || piece.len_bytes > CPU_CHUNK_BYTES {
            world.is_wrong(|| format!("the CPU is to copy {} bytes", piece.len_bytes));
        }
        if world.one_in(self.fails_one_in) {
            world.trouble.set(true);
            return Err(CpuCopyError);
        }
        let (src, dst) = (piece.src.get() as usize, piece.dst.get() as usize);
        let len = piece.len_bytes as usize;
        let mut memory = world.memory.borrow_mut();
        if src + len > memory.len() || dst + len > memory.len() {
            return Err(CpuCopyError);
        }
        memory.copy_within(src..src + len, dst);
        Ok(())
    }
}

pub(super) struct FuzzRescue {
    pub(super) world: Rc<World>,
}

impl Rescue for FuzzRescue {
    fn prove_stopped(&mut self, channel: usize) -> bool {
        let world = &self.world;
        world.tick();
        let works = world.manners.resets_work && !world.one_in(4);
        if works {
            world.note(|| format!("channel {channel} is reset as a last resort"));
            world.reset(channel);
        }
        // Others may have their turn before the batch hears of it.
        world.tick();
        works
    }

    fn quarantined(&mut self, channel: usize, piece: &Piece) {
        self.world.tick();
        self.world.quarantined.borrow_mut().push(Quarantined {
            channel,
            dst: piece.dst.get() as usize,
            len_bytes: piece.len_bytes as usize,
        });
    }
}
