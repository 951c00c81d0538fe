//! Memory in pieces, each of which belongs to its owner or to an engine.

use ptdma::DmaAddr;
use ptdma_model::{Access, BusBuffer, BusSpace};

/// Length of a piece in bytes: short, for there are many, and odd, for hardware does not care.
pub const LEN_BYTES: usize = 36;
/// From one piece to the next; what lies between is nobody's, and never written.
const STRIDE: usize = 40;
/// What lies between pieces.
const GUARD: u8 = 0xee;
/// What an owner writes into a piece that it got back, at both ends.
const CANARY: u8 = 0xc5;

/// Whose a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// Nobody has asked for it yet.
    Unused,
    /// It is the engine's.
    Engine,
    /// It was given back, and refilled.
    Back,
    /// It was kept out of use: an engine may write it for ever.
    Lost,
}

/// Pieces of memory to copy, side by side.
#[derive(Debug)]
pub struct Field {
    src: BusBuffer,
    dst: BusBuffer,
    owners: Vec<Owner>,
    seed: u8,
}

impl Field {
    /// Room for so many pieces.
    ///
    /// # Panics
    ///
    /// If the bus is full.
    #[must_use]
    pub fn new(bus: &BusSpace, pieces: usize, seed: u64) -> Self {
        let alloc = || {
            bus.alloc(pieces * STRIDE, 4096, Access::ReadWrite)
                .expect("the bus is large")
        };
        let (src, dst) = (alloc(), alloc());
        dst.write(0, &vec![GUARD; pieces * STRIDE])
            .expect("own buffer");
        Self {
            src,
            dst,
            owners: vec![Owner::Unused; pieces],
            // Its low bits are enough to tell cases apart.
            seed: seed as u8,
        }
    }

    /// Pieces that nobody has asked for yet.
    #[must_use]
    pub fn unused(&self) -> usize {
        let used = |owner: &&Owner| **owner == Owner::Unused;
        self.owners.iter().filter(used).count()
    }

    /// Bus addresses of a piece, source and destination.
    #[must_use]
    pub fn addrs(&self, piece: usize) -> (DmaAddr, DmaAddr) {
        let at = |buffer: &BusBuffer| DmaAddr::new(buffer.addr().get() + (piece * STRIDE) as u64);
        (at(&self.src), at(&self.dst))
    }

    /// What the source of a piece has while an engine copies it.
    fn words(&self, piece: usize) -> [u8; LEN_BYTES] {
        let n = piece as u32;
        let mut words = [0; LEN_BYTES];
        for (i, word) in (0u32..).zip(&mut words) {
            let mixed = n.wrapping_mul(0x9e37_79b1).rotate_left(i) ^ i.wrapping_mul(0x61);
            *word = mixed as u8 ^ self.seed;
        }
        words
    }

    /// Fills the source, and lets an engine have the piece.
    ///
    /// # Panics
    ///
    /// If the piece was used before.
    pub fn hand_out(&mut self, piece: usize) {
        assert_eq!(self.owners[piece], Owner::Unused, "a fresh piece each time");
        self.src
            .write(piece * STRIDE, &self.words(piece))
            .expect("own buffer");
        self.owners[piece] = Owner::Engine;
    }

    /// Whether the destination has every byte of what was handed out.
    ///
    /// # Panics
    ///
    /// Never: the buffer is its own.
    #[must_use]
    pub fn has_arrived(&self, piece: usize) -> bool {
        let mut seen = [0; LEN_BYTES];
        self.dst
            .read(piece * STRIDE, &mut seen)
            .expect("own buffer");
        seen == self.words(piece)
    }

    /// The owner has the piece back, and uses it for something else at once.
    ///
    /// # Panics
    ///
    /// If an engine did not have it.
    pub fn take_back(&mut self, piece: usize) {
        assert_eq!(self.owners[piece], Owner::Engine, "piece {piece}");
        self.owners[piece] = Owner::Back;
        self.dst
            .write(piece * STRIDE, &[CANARY; LEN_BYTES])
            .expect("own buffer");
        // What an engine that is late would bring.
        self.src
            .write(piece * STRIDE, &[!CANARY; LEN_BYTES])
            .expect("own buffer");
    }

    /// The piece stays out of use.
    pub fn give_up(&mut self, piece: usize) {
        self.owners[piece] = Owner::Lost;
    }

    /// Looks whether anything was written that was not an engine's.
    ///
    /// # Errors
    ///
    /// The first piece that was.
    ///
    /// # Panics
    ///
    /// Never: the buffer is its own.
    pub fn check(&self) -> Result<(), String> {
        let dst = self.dst.to_vec();
        for (piece, owner) in self.owners.iter().enumerate() {
            let (body, guard) = dst[piece * STRIDE..][..STRIDE].split_at(LEN_BYTES);
            let expected = match owner {
                Owner::Unused => Some(GUARD),
                Owner::Back => Some(CANARY),
                Owner::Engine | Owner::Lost => None,
            };
            if let Some(byte) = expected
                && body.iter().any(|b| *b != byte)
            {
                return Err(format!(
                    "WRITTEN AFTER IT WAS GIVEN BACK: piece {piece} ({owner:?})"
                ));
            }
            if guard.iter().any(|b| *b != GUARD) {
                return Err(format!("WRITTEN OUTSIDE of piece {piece}"));
            }
        }
        Ok(())
    }
}
