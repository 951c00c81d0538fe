//! A program that holds functions, and does one thing after the other with them.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use ptdma::Notify;
use ptdma_vfio::{
    Function, FunctionHandle, Mapping, Memory, Monotonic, Mover, Options, PciAddress, Setup, Space,
    VfioChannel, Waiting,
};

use rustix::event::{PollFd, PollFlags, poll};

use crate::work::Pair;
use crate::{Failure, SOCKET};

/// Bytes of a pair: a list has some hundred ranges.
const PAIR_LEN_BYTES: u64 = 2 << 20;

/// How long a batch lasts at most when engines are to fail in time.
const BUDGET: Duration = Duration::from_secs(4);
/// How long an engine may stand still: long beside a copy on a busy host, short beside a check.
const HANG: Duration = Duration::from_millis(400);

/// What an engine that is driven by hand copies.
const LONE_LEN_BYTES: u64 = 64 << 10;
const LONE_BYTE: u8 = 0x5a;

/// A function that is driven by hand, beside those of the mover.
struct Lone {
    channel: VfioChannel,
    handle: FunctionHandle,
    from: Mapping,
    to: Option<Mapping>,
    memory: Option<Memory>,
}

struct Held {
    space: Space,
    mover: Option<Mover>,
    pair: Option<Pair>,
    addresses: Vec<PciAddress>,
    lone: Option<Lone>,
    seed: u64,
}

pub(crate) fn run(addresses: &[&str]) -> Result<(), Failure> {
    let addresses = addresses
        .iter()
        .map(|text| text.parse())
        .collect::<Result<Vec<PciAddress>, _>>()?;
    let space = Space::new()?;
    let mover = Mover::open_in(&space, &addresses, Setup::default())?;
    let pair = Pair::new(&space, "anonymous", PAIR_LEN_BYTES)?;
    let mut held = Held {
        space,
        mover: Some(mover),
        pair: Some(pair),
        addresses,
        lone: None,
        seed: 0,
    };
    let _ = std::fs::remove_file(SOCKET);
    let listener = UnixListener::bind(SOCKET)?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut request = String::new();
        stream.read_to_string(&mut request)?;
        let words: Vec<&str> = request.split_whitespace().collect();
        let answer = match held.perform(&words) {
            Ok(answer) => format!("ok {answer}"),
            Err(error) => format!("error: {error}"),
        };
        // The asker may have been killed.
        let _ = stream.write_all(answer.as_bytes());
        if words.first() == Some(&"end") {
            break;
        }
    }
    Ok(())
}

fn waiting(word: &str) -> Result<Waiting, Failure> {
    match word {
        "polled" => Ok(Waiting::Polled),
        "asleep" => Ok(Waiting::Asleep),
        _ => Err(format!("polled or asleep, not {word}").into()),
    }
}

fn options() -> Options {
    let mut options = Options::default();
    options.budget_ns = Monotonic::ticks(BUDGET);
    options.hang_ns = Monotonic::ticks(HANG);
    options
}

impl Held {
    fn perform(&mut self, words: &[&str]) -> Result<String, Failure> {
        match words {
            ["copy", how, rest @ ..] => self.copy(waiting(how)?, rest),
            ["kinds", how] => self.kinds(waiting(how)?),
            ["threads", count, rounds, how] => {
                self.threads(count.parse()?, rounds.parse()?, waiting(how)?)
            }
            ["guest", how] => {
                let mover = self.mover.as_ref().ok_or("no mover")?;
                crate::guests::copy(&self.space, mover, waiting(how)?)
            }
            ["channels"] => self.channels(),
            ["target"] => {
                let pair = self.pair.as_ref().ok_or("no memory")?;
                Ok(format!("target={}", pair.target()))
            }
            ["revive"] => self.revive(),
            ["lone", address] => self.lone(address.parse()?),
            ["hang"] => self.hang(),
            ["unmap"] => self.unmap(),
            ["settle"] => self.settle(),
            ["lone-end"] => self.lone_end(),
            ["in-use"] => self.in_use(),
            ["release"] => self.release(),
            ["end"] => self.end(),
            _ => Err(format!("{words:?}?").into()),
        }
    }

    fn mover(&self) -> Result<&Mover, Failure> {
        self.mover.as_ref().ok_or_else(|| "closed".into())
    }

    fn copy(&mut self, how: Waiting, rest: &[&str]) -> Result<String, Failure> {
        self.seed += 1;
        let mut options = options();
        options.repair = rest.contains(&"repair");
        let pair = self.pair.as_ref().ok_or("no memory")?;
        let verdict = pair.copy(self.mover()?, how, &options, self.seed)?;
        Ok(verdict.to_string())
    }

    /// The same with each kind of memory; whole, or it fails.
    fn kinds(&mut self, how: Waiting) -> Result<String, Failure> {
        let mut said = Vec::new();
        for kind in ["anonymous", "memfd", "huge", "memfd-huge"] {
            self.seed += 1;
            let pair = Pair::new(&self.space, kind, PAIR_LEN_BYTES)
                .map_err(|error| format!("{kind}: {error}"))?;
            let verdict = pair.copy(self.mover()?, how, &options(), self.seed)?;
            if verdict.by_engines != verdict.ranges {
                return Err(format!("{kind}: {verdict}").into());
            }
            said.push(format!("{kind}={}", verdict.bytes));
        }
        Ok(said.join(" "))
    }

    fn threads(&mut self, count: u64, rounds: u64, how: Waiting) -> Result<String, Failure> {
        let space = &self.space;
        let mover = self.mover()?;
        let failed = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..count)
                .map(|thread| {
                    scope.spawn(move || -> Result<u64, String> {
                        let pair = Pair::new(space, "memfd", PAIR_LEN_BYTES / 4)
                            .map_err(|error| error.to_string())?;
                        let mut bytes = 0;
                        for round in 0..rounds {
                            let seed = 1000 * (thread + 1) + round;
                            let verdict = pair
                                .copy(mover, how, &options(), seed)
                                .map_err(|error| error.to_string())?;
                            if verdict.by_engines != verdict.ranges {
                                return Err(format!("thread {thread}: {verdict}"));
                            }
                            bytes += verdict.bytes;
                        }
                        Ok(bytes)
                    })
                })
                .collect();
            let mut bytes = 0;
            for thread in threads {
                bytes += thread.join().map_err(|_| "a thread panicked")??;
            }
            Ok::<u64, String>(bytes)
        })?;
        Ok(format!("bytes={failed}"))
    }

    fn channels(&self) -> Result<String, Failure> {
        let channels = self.mover()?.channels();
        let active = channels.iter().filter(|channel| channel.in_service).count();
        let sum = |of: fn(&ptdma_vfio::ChannelState) -> u64| channels.iter().map(of).sum::<u64>();
        Ok(format!(
            "active={active} of={} interrupts={} hangs={} stops={}",
            channels.len(),
            sum(|channel| channel.stats.interrupts),
            sum(|channel| channel.stats.hangs),
            sum(|channel| channel.stats.stops),
        ))
    }

    fn revive(&self) -> Result<String, Failure> {
        let mover = self.mover()?;
        let mut revived = 0;
        for (number, channel) in mover.channels().iter().enumerate() {
            if !channel.in_service {
                mover.revive(number)?;
                revived += 1;
            }
        }
        Ok(format!("revived={revived}"))
    }

    /// Opens one more function, to be driven by hand.
    fn lone(&mut self, address: PciAddress) -> Result<String, Failure> {
        let function = Function::open(&self.space, address)?;
        let (channel, handle) = function.into_channel(32)?;
        let from = self.space.map(Memory::anonymous(LONE_LEN_BYTES)?)?;
        let to = self.space.map(Memory::anonymous(LONE_LEN_BYTES)?)?;
        from.write(0, &vec![LONE_BYTE; LONE_LEN_BYTES as usize])?;
        let traits = channel.traits().to_string().replace(' ', "-");
        self.lone = Some(Lone {
            channel,
            handle,
            from,
            to: Some(to),
            memory: None,
        });
        Ok(traits)
    }

    /// Has the engine, which the host has made hang, copy to a destination that is mapped.
    fn hang(&mut self) -> Result<String, Failure> {
        let lone = self.lone.as_mut().ok_or("no lone function")?;
        let to = lone.to.as_ref().ok_or("its destination is unmapped")?;
        let request = lone
            .channel
            .prep_copy(lone.from.addr(), to.addr(), LONE_LEN_BYTES)?;
        lone.channel.submit(&request, Notify::Silent)?;
        lone.channel.issue_pending(Notify::Silent);
        std::thread::sleep(HANG);
        let progress = lone.channel.poll()?;
        if lone.channel.outstanding() != 1 || progress.failure.is_some() {
            return Err(format!("the engine does not hang: {progress:?}").into());
        }
        if count_of(to, LONE_BYTE)? > 0 {
            return Err("the engine has written already".into());
        }
        Ok("hangs".into())
    }

    /// Unmaps the destination of the engine that hangs.
    fn unmap(&mut self) -> Result<String, Failure> {
        let lone = self.lone.as_mut().ok_or("no lone function")?;
        let to = lone.to.take().ok_or("its destination is unmapped")?;
        lone.memory = Some(to.unmap()?);
        Ok("unmapped".into())
    }

    /// Waits for the engine, which the host has let go on, and counts what it has written.
    fn settle(&mut self) -> Result<String, Failure> {
        let lone = self.lone.as_mut().ok_or("no lone function")?;
        let deadline = Instant::now() + BUDGET;
        let mut failure = None;
        while lone.channel.outstanding() > 0 {
            if Instant::now() > deadline {
                return Err("the engine still hangs".into());
            }
            let progress = lone.channel.poll()?;
            failure = failure.or(progress.failure);
            std::thread::sleep(Duration::from_millis(1));
        }
        let memory = match (&lone.to, &lone.memory) {
            (Some(mapping), _) => mapping,
            (None, Some(memory)) => memory,
            (None, None) => return Err("no destination".into()),
        };
        let code = failure.map_or("none".to_owned(), |failure| failure.code.raw().to_string());
        Ok(format!(
            "written={} code={code}",
            count_of(memory, LONE_BYTE)?
        ))
    }

    fn lone_end(&mut self) -> Result<String, Failure> {
        let lone = self.lone.take().ok_or("no lone function")?;
        lone.handle.shut_down(lone.channel)?;
        Ok("closed".into())
    }

    /// The functions are open here: they cannot be opened or given back.
    fn in_use(&self) -> Result<String, Failure> {
        let address = *self.addresses.first().ok_or("no functions")?;
        let opened = Function::open(&self.space, address).err();
        let given = ptdma_vfio::give_back(address).err();
        match (opened, given) {
            (Some(error @ ptdma_vfio::Error::InUse(_)), Some(ptdma_vfio::Error::InUse(_))) => {
                Ok(error.to_string())
            }
            others => Err(format!("no errors of the right kind: {others:?}").into()),
        }
    }

    /// Waits until somebody wants the first function back.
    fn release(&self) -> Result<String, Failure> {
        let handle = self.mover()?.function(0).ok_or("no function")?;
        let event = handle.release_request().ok_or("no such interrupt")?;
        let limit = rustix::event::Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&event, PollFlags::IN)];
        match poll(&mut fds, Some(&limit))? {
            0 => Err("nobody asks".into()),
            _ => Ok("asked".into()),
        }
    }

    fn end(&mut self) -> Result<String, Failure> {
        self.pair = None;
        let mover = self.mover.take().ok_or("closed")?;
        mover.close()?;
        Ok("closed".into())
    }
}

/// How many bytes of memory have a value.
fn count_of(memory: &Memory, value: u8) -> Result<usize, Failure> {
    let mut bytes = vec![0; memory.len_bytes() as usize];
    memory.read(0, &mut bytes)?;
    Ok(bytes.into_iter().filter(|byte| *byte == value).count())
}
