//! Engines and ports in one virtual time: what happens next, and when.
//!
//! An engine works off its queue in order. A descriptor has a lead time and then its bytes, in
//! pieces of 64 KiB. A piece occupies its engine for the engine's time and its port for the
//! port's: the port serves pieces in the order in which engines ask. Two engines on one port
//! so share it to equal parts when both want all of it, and do not notice each other when one of
//! them spends its time otherwise.

use std::collections::VecDeque;

use crate::costs::PIECE_BYTES;

/// One descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Its bytes.
    pub bytes: u64,
    /// Time before its first byte, ns.
    pub lead_ns: f64,
    /// Time of the engine for 64 KiB of it, ns.
    pub piece_ns: f64,
    /// When the engine may see it, ns.
    pub ready_ns: f64,
    /// Whose it is.
    pub tag: usize,
}

/// A descriptor has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ended {
    /// When, ns.
    pub at_ns: f64,
    /// Whose it was.
    pub tag: usize,
    /// Which engine.
    pub engine: usize,
    /// Its bytes.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Idle,
    /// The lead time of the first job ends at this time.
    Lead(f64),
    /// A piece of the first job ends at this time; so many bytes are left after it.
    Piece(f64, u64),
}

#[derive(Clone, Debug)]
struct Engine {
    port: usize,
    queue: VecDeque<Job>,
    waiting_bytes: u64,
    phase: Phase,
}

impl Engine {
    fn next_ns(&self) -> Option<f64> {
        match self.phase {
            Phase::Idle => None,
            Phase::Lead(at) | Phase::Piece(at, _) => Some(at),
        }
    }

    fn start(&mut self, now: f64) {
        self.phase = match self.queue.front() {
            Some(job) => Phase::Lead(now.max(job.ready_ns) + job.lead_ns),
            None => Phase::Idle,
        };
    }
}

/// Engines and ports.
#[derive(Clone, Debug)]
pub struct Sim {
    engines: Vec<Engine>,
    /// When each port has served everything that was asked of it.
    port_free_ns: Vec<f64>,
    port_gb_per_s: f64,
    now_ns: f64,
}

impl Sim {
    /// Engines by the port that each one hangs on.
    #[must_use]
    pub fn new(ports: &[usize], port_gb_per_s: f64) -> Self {
        let engine = |&port| Engine {
            port,
            queue: VecDeque::new(),
            waiting_bytes: 0,
            phase: Phase::Idle,
        };
        let count = ports.iter().max().map_or(0, |last| last + 1);
        Self {
            engines: ports.iter().map(engine).collect(),
            port_free_ns: vec![0.0; count],
            port_gb_per_s,
            now_ns: 0.0,
        }
    }

    /// Gives a descriptor to an engine.
    pub fn submit(&mut self, engine: usize, job: Job) {
        let now = self.now_ns;
        let engine = &mut self.engines[engine];
        engine.queue.push_back(job);
        engine.waiting_bytes += job.bytes;
        if matches!(engine.phase, Phase::Idle) {
            engine.start(now);
        }
    }

    /// When something happens next.
    #[must_use]
    pub fn next_ns(&self) -> Option<f64> {
        self.next().map(|(at, _)| at)
    }

    fn next(&self) -> Option<(f64, usize)> {
        let each = self.engines.iter().enumerate();
        each.filter_map(|(index, e)| e.next_ns().map(|at| (at, index)))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
    }

    /// Lets the next thing happen. Returns a descriptor that ended with it.
    pub fn step(&mut self) -> Option<Ended> {
        let (at, index) = self.next()?;
        self.now_ns = self.now_ns.max(at);
        let engine = &mut self.engines[index];
        let job = *engine.queue.front()?;
        let left = match engine.phase {
            Phase::Piece(_, 0) => {
                engine.queue.pop_front();
                engine.waiting_bytes -= job.bytes;
                engine.start(at);
                return Some(Ended {
                    at_ns: at,
                    tag: job.tag,
                    engine: index,
                    bytes: job.bytes,
                });
            }
            Phase::Piece(_, left) => left,
            Phase::Lead(_) | Phase::Idle => job.bytes,
        };
        let piece = left.min(PIECE_BYTES);
        let port_free = &mut self.port_free_ns[engine.port];
        *port_free = port_free.max(at) + piece as f64 / self.port_gb_per_s;
        let engine_ns = job.piece_ns * piece as f64 / PIECE_BYTES as f64;
        engine.phase = Phase::Piece((at + engine_ns).max(*port_free), left - piece);
        None
    }

    /// Runs until nothing is left. Returns when the last descriptor ended.
    pub fn drain(&mut self) -> f64 {
        let mut last = self.now_ns;
        while self.next().is_some() {
            if let Some(ended) = self.step() {
                last = ended.at_ns;
            }
        }
        last
    }

    /// The present time.
    #[must_use]
    pub const fn now_ns(&self) -> f64 {
        self.now_ns
    }

    /// Time goes on to here, if nothing happens before.
    pub fn advance(&mut self, to_ns: f64) {
        self.now_ns = self.now_ns.max(to_ns);
    }

    /// Bytes of the descriptors that each engine has yet to end.
    pub fn waiting(&self) -> impl Iterator<Item = u64> + '_ {
        self.engines.iter().map(|e| e.waiting_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(bytes: u64, lead_ns: f64, piece_ns: f64) -> Job {
        Job {
            bytes,
            lead_ns,
            piece_ns,
            ready_ns: 0.0,
            tag: 0,
        }
    }

    #[test]
    fn an_engine_alone_takes_its_own_time() {
        let mut sim = Sim::new(&[0], 16.0);
        for _ in 0..3 {
            sim.submit(0, job(2 << 20, 500.0, 5_000.0));
        }
        let expected = 3.0 * (500.0 + 32.0 * 5_000.0);
        assert!((sim.drain() - expected).abs() < 1.0);
    }

    #[test]
    fn two_engines_share_a_port_and_two_ports_do_not() {
        // The port needs 4096 ns for a piece, an engine 5000.
        for (ports, expected) in [([0, 0], 2.0 * 4_096.0), ([0, 1], 5_000.0)] {
            let mut sim = Sim::new(&ports, 16.0);
            for engine in 0..2 {
                for _ in 0..8 {
                    sim.submit(engine, job(2 << 20, 0.0, 5_000.0));
                }
            }
            let per_piece = sim.drain() / (8.0 * 32.0);
            assert!((per_piece / expected - 1.0).abs() < 0.01, "{per_piece}");
        }
    }

    #[test]
    fn engines_that_are_slower_than_half_a_port_do_not_notice_each_other() {
        let mut sim = Sim::new(&[0, 0], 16.0);
        for engine in 0..2 {
            for _ in 0..64 {
                sim.submit(engine, job(PIECE_BYTES, 0.0, 10_000.0));
            }
        }
        // The second one waits once, behind the first piece of the first.
        assert!(sim.drain() < 64.0 * 10_000.0 + 4_096.0);
    }

    #[test]
    fn nothing_starts_before_it_is_ready() {
        let mut sim = Sim::new(&[0], 16.0);
        let late = Job {
            ready_ns: 7_000.0,
            ..job(PIECE_BYTES, 1_000.0, 5_000.0)
        };
        sim.submit(0, late);
        assert!((sim.drain() - 13_000.0).abs() < 1e-6);
    }
}
