//! Many functions that copy lists of ranges for many threads.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use batch_copy::{
    Batch, Channels, Host, Interval, NotIdle, Options, Outcome, OverlapCheck, Piece, Polling,
    PtdmaQueue, Rescue, ServiceState, SharedChannel, SharedStats, SpinThenSleep, Wait,
};
use ptdma::Clock;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::address::PciAddress;
use crate::error::Error;
use crate::function::{Function, FunctionHandle, VfioChannel};
use crate::list::{Copied, CopyRange, ListCopier};
use crate::space::Space;
use crate::time::{Bell, Monotonic, ThreadLock, after};

/// Most functions of a mover. A two-socket EPYC has 16.
pub const MAX_CHANNELS: usize = 16;

/// Descriptors of a ring, by default: 2 MiB in pages of 4 KiB at one doorbell, in 16 KiB of memory.
const RING_ENTRIES: usize = 512;

/// How long the driver waits for a queue to stop. The longest descriptor takes 144 us, and a
/// register access may trap into a busy hypervisor.
const STOP: Duration = Duration::from_millis(20);

/// How long a batch polls before it sleeps: as long as going to sleep and waking up take.
const SPIN: Duration = Duration::from_micros(20);

/// How late an interrupt may be before it counts as lost.
const OVERDUE: Duration = Duration::from_millis(10);

/// How long batches may take to release a channel that is out of service: they poll it
/// whenever they wake.
const LET_GO: Duration = Duration::from_secs(2);

/// Pause between two polls for that.
const LET_GO_POLL: Duration = Duration::from_millis(1);

type Queue = PtdmaQueue<crate::hardware::Bar, crate::hardware::Ring, Monotonic>;
type SharedPort = ThreadLock<SharedChannel<Queue>>;

fn queue(channel: VfioChannel, node: Option<u16>) -> Queue {
    PtdmaQueue::new(channel, node).with_clock(Monotonic, Monotonic::ticks(STOP))
}

/// How a thread waits for its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Polls the engines without a pause: the shortest latency, and a busy CPU.
    Polled,
    /// Polls for 20 us, then sleeps until an interrupt. Where an interrupt is 10 ms late, or the
    /// function has none, the batch polls the engines.
    Asleep,
}

/// How a mover is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setup {
    /// Descriptors of each ring, 512 by default; rounded up to a power of two.
    pub ring_entries: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            ring_entries: RING_ENTRIES,
        }
    }
}

/// How a channel of a mover is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelState {
    /// Its function.
    pub address: PciAddress,
    /// The function's NUMA node, if the firmware names one.
    pub node: Option<u16>,
    /// Whether batches use it. If not, [`Mover::revive`] may bring it back.
    pub in_service: bool,
    /// What it has done.
    pub stats: SharedStats,
}

/// Functions that copy together, for any number of threads at a time.
///
/// Dropping it stops the engines and closes the functions.
pub struct Mover {
    shared: Arc<Shared>,
    space: Space,
    listener: Option<Listener>,
    // A batch is 5.5 KiB.
    #[allow(clippy::vec_box)]
    batches: Mutex<Vec<Box<Batch<MAX_CHANNELS>>>>,
    /// Channels that were taken out and could not be brought back yet, by number.
    parked: Mutex<Vec<(usize, VfioChannel)>>,
}

struct Shared {
    channels: Channels<Queue, SharedPort, MAX_CHANNELS>,
    handles: Vec<FunctionHandle>,
    bell: Bell,
}

/// The thread that hears interrupts.
struct Listener {
    thread: JoinHandle<()>,
    stop: OwnedFd,
}

impl fmt::Debug for Mover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mover")
            .field("functions", &self.shared.handles)
            .finish_non_exhaustive()
    }
}

impl Mover {
    /// Opens functions that vfio-pci has ([`take`](crate::take)), in a space of their own.
    ///
    /// # Errors
    ///
    /// As [`Function::open`] and [`Function::into_channel`].
    pub fn open(addresses: &[PciAddress]) -> Result<Self, Error> {
        Self::open_in(&Space::new()?, addresses, Setup::default())
    }

    /// Opens functions in a space that is there.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_in(space: &Space, addresses: &[PciAddress], setup: Setup) -> Result<Self, Error> {
        let functions = addresses
            .iter()
            .map(|address| Function::open(space, *address))
            .collect::<Result<Vec<_>, _>>()?;
        Self::new(space, functions, setup)
    }

    /// Brings functions of `space` up, all of them or none.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyFunctions`], or one of [`Function::into_channel`].
    pub fn new(space: &Space, functions: Vec<Function>, setup: Setup) -> Result<Self, Error> {
        let mut shared = Shared {
            channels: Channels::new(),
            handles: Vec::new(),
            bell: Bell::default(),
        };
        if functions.len() > MAX_CHANNELS {
            return Err(Error::TooManyFunctions { most: MAX_CHANNELS });
        }
        for function in functions {
            let (channel, handle) = match function.into_channel(setup.ring_entries) {
                Ok(parts) => parts,
                Err(error) => {
                    // Why one did not come up counts for more than how the others went down.
                    let _ = shared.close();
                    return Err(error);
                }
            };
            let port = ThreadLock::new(SharedChannel::new(queue(channel, handle.node())));
            shared.handles.push(handle);
            // Not more than MAX_CHANNELS, so there is room.
            let _ = shared.channels.add(port);
        }
        let mut mover = Self {
            shared: Arc::new(shared),
            space: space.clone(),
            listener: None,
            batches: Mutex::new(Vec::new()),
            parked: Mutex::new(Vec::new()),
        };
        // Without one, the mover is dropped, which stops its engines.
        mover.listener = Some(Listener::start(&mover.shared)?);
        Ok(mover)
    }

    /// The space that its functions are in: memory for them is mapped here.
    #[must_use]
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// How its channels are, by number.
    #[must_use]
    pub fn channels(&self) -> Vec<ChannelState> {
        let channels = &self.shared.channels;
        let states = self.shared.handles.iter().enumerate();
        states
            .map(|(number, handle)| ChannelState {
                address: handle.address(),
                node: handle.node(),
                in_service: channels.service(number) == Some(ServiceState::Active),
                stats: channels.channel_stats(number).unwrap_or_default(),
            })
            .collect()
    }

    /// The function of a channel, for its eventfds, or a reset.
    #[must_use]
    pub fn function(&self, number: usize) -> Option<&FunctionHandle> {
        self.shared.handles.get(number)
    }

    /// Copies a list of ranges by all channels that are in service, and returns when each range is
    /// accounted for. Any number of threads may do so at a time.
    ///
    /// # Errors
    ///
    /// Nothing was copied: [`Error::Unmapped`] for a range of another space, [`Error::BadList`]
    /// for a destination that overlaps another range. What fails later is in the outcomes.
    ///
    /// An outcome that [is quarantined](Outcome::is_quarantined) is of a function that neither
    /// halted nor could be reset: it may still read the source and write the destination, until
    /// [`revive`](Self::revive) has reset it or the mappings are unmapped.
    pub fn copy(&self, list: &[CopyRange<'_>], waiting: Waiting) -> Result<Copied, Error> {
        self.copy_with(list, waiting, &Options::default())
    }

    /// As [`copy`](Self::copy), with options: which channels, how long, and whether the CPU copies
    /// what engines do not ([`Options::repair`]).
    ///
    /// # Errors
    ///
    /// As [`copy`](Self::copy).
    pub fn copy_with(
        &self,
        list: &[CopyRange<'_>],
        waiting: Waiting,
        options: &Options,
    ) -> Result<Copied, Error> {
        let foreign = |range: &CopyRange<'_>| !range.is_in(&self.space);
        if let Some(range) = list.iter().position(foreign) {
            return Err(Error::Unmapped { range });
        }
        match waiting {
            Waiting::Polled => self.run(list, Polling(Monotonic), options),
            Waiting::Asleep => {
                let ear = self.shared.bell.listen();
                let ticks = Monotonic::ticks;
                let wait = SpinThenSleep::new(Monotonic, ear, ticks(SPIN), ticks(OVERDUE));
                self.run(list, wait, options)
            }
        }
    }

    fn run(
        &self,
        list: &[CopyRange<'_>],
        wait: impl Wait,
        options: &Options,
    ) -> Result<Copied, Error> {
        let folios: Vec<_> = list.iter().map(CopyRange::folio).collect();
        // A source and a destination for each.
        let mut intervals = vec![Interval::default(); folios.len().saturating_mul(2)];
        let mut outcomes = vec![Outcome::Dma; folios.len()];
        let mut host = Host::new(wait)
            .with_cpu(ListCopier(list))
            .with_rescue(Quiesce(&self.shared));
        let mut batch = self.batch();
        let report = batch.run(
            &self.shared.channels,
            &folios[..],
            OverlapCheck::Sorted(&mut intervals),
            options,
            &mut host,
            &mut outcomes,
        );
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        batches.push(batch);
        drop(batches);
        Ok(Copied {
            report: report.map_err(Error::BadList)?,
            outcomes,
        })
    }

    fn batch(&self) -> Box<Batch<MAX_CHANNELS>> {
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        batches.pop().unwrap_or_default()
    }

    /// Resets the function of a channel that fell out of service (its engine hung, or the function
    /// was reset or gone for a while), and puts it back. A channel that is in service is left as
    /// it is.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchChannel`]; [`Error::NotReset`] or [`Error::BringUp`] if the function does not
    /// come back, and [`Error::Busy`] if batches keep hold of the channel: try again later.
    pub fn revive(&self, number: usize) -> Result<(), Error> {
        let handle = self.function(number).ok_or(Error::NoSuchChannel(number))?;
        let channels = &self.shared.channels;
        // Held throughout: one thread at a time revives.
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        if channels.service(number) == Some(ServiceState::Active) {
            return Ok(());
        }
        let proof = handle.reset()?;
        channels.confirm_stopped(number);
        let mut channel = match parked.iter().position(|(of, _)| *of == number) {
            Some(index) => parked.swap_remove(index).1,
            None => self.shared.take(number)?.into_channel(),
        };
        if let Err((error, _)) = channel.recover(proof) {
            parked.push((number, channel));
            return Err(Error::BringUp(handle.address(), error));
        }
        if let Err(queue) = channels.put(number, queue(channel, handle.node())) {
            // Never: the place was emptied above, and nobody else fills it.
            parked.push((number, queue.into_channel()));
            return Err(Error::Busy(handle.address()));
        }
        Ok(())
    }

    /// Stops the engines and closes the functions, as dropping does, and says how that went.
    ///
    /// # Errors
    ///
    /// The first of what went wrong; everything else was closed all the same.
    pub fn close(mut self) -> Result<(), Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        if let Some(listener) = self.listener.take() {
            listener.end();
        }
        let mut result = self.shared.close();
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, channel) in parked.drain(..) {
            let closed = match self.shared.handles.get(number) {
                Some(handle) => handle.shut_down(channel),
                None => Ok(()),
            };
            result = result.and(closed);
        }
        result
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        // There is nobody to tell; `close` tells.
        let _ = self.end();
    }
}

impl Shared {
    /// Takes a channel away that is out of service, once batches have taken note of that.
    fn take(&self, number: usize) -> Result<Queue, Error> {
        let address = |handle: &FunctionHandle| Error::Busy(handle.address());
        let deadline = after(LET_GO);
        loop {
            match self.channels.take(number) {
                Ok(queue) => return Ok(queue),
                Err(NotIdle::Held { .. }) if Instant::now() < deadline => {
                    self.bell.ring();
                    std::thread::sleep(LET_GO_POLL);
                }
                Err(_) => {
                    let handle = self.handles.get(number);
                    return Err(handle.map_or(Error::NoSuchChannel(number), address));
                }
            }
        }
    }

    /// Stops all engines and tears the channels down.
    fn close(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for (number, handle) in self.handles.iter().enumerate() {
            if !self.channels.retire(number, Monotonic.now()) {
                match handle.reset() {
                    Ok(_proof) => self.channels.confirm_stopped(number),
                    Err(error) => {
                        result = result.and(Err(error));
                        continue;
                    }
                }
            }
            let closed = match self.channels.take(number) {
                Ok(queue) => handle.shut_down(queue.into_channel()),
                // It is parked.
                Err(NotIdle::Absent) => Ok(()),
                Err(_) => Err(Error::Busy(handle.address())),
            };
            result = result.and(closed);
        }
        result
    }

    /// Whether a channel's engine has stopped for certain, by a reset if need be.
    fn stops(&self, number: usize) -> bool {
        // Another batch may have asked before, and the reset of a channel that has been brought
        // back since would cost it its work.
        if self.channels.service(number) == Some(ServiceState::Retired) {
            return true;
        }
        self.handles
            .get(number)
            .is_some_and(|handle| handle.reset().is_ok())
    }
}

/// The last resort about an engine that does not halt: a reset of its function.
struct Quiesce<'a>(&'a Shared);

impl Rescue for Quiesce<'_> {
    fn prove_stopped(&mut self, channel: usize) -> bool {
        self.0.stops(channel)
    }

    fn quarantined(&mut self, _channel: usize, _piece: &Piece) {
        // The range's outcome says so. Its memory stays mapped, and so nobody else's, until its
        // owner unmaps it; and that is a proof again.
    }
}

impl Listener {
    fn start(shared: &Arc<Shared>) -> Result<Self, Error> {
        let failed = |e| Error::system("make an eventfd", e);
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed)?;
        let ours = stop
            .try_clone()
            .map_err(|e| Error::system("duplicate a descriptor", e))?;
        let shared = Arc::clone(shared);
        let thread = std::thread::Builder::new()
            .name("ptdma-interrupts".to_owned())
            .spawn(move || listen(&shared, &ours))
            .map_err(|e| Error::system("start the thread that hears interrupts", e))?;
        Ok(Self { thread, stop })
    }

    fn end(self) {
        // A counter of one is never too full to be written.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        // It does not panic; if it did, it is over, too.
        let _ = self.thread.join();
    }
}

/// Serves interrupts until `stop` is rung.
fn listen(shared: &Shared, stop: &OwnedFd) {
    let numbered = shared.handles.iter().enumerate();
    let heard: Vec<_> = numbered
        .filter_map(|(number, handle)| Some((number, handle.interrupt()?)))
        .collect();
    let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
    fds.extend(
        heard
            .iter()
            .map(|(_, event)| PollFd::new(event, PollFlags::IN)),
    );
    loop {
        if let Err(error) = poll(&mut fds, None) {
            if error != rustix::io::Errno::INTR {
                // No memory for the call; batches find out by themselves what engines have done.
                std::thread::sleep(OVERDUE);
            }
            continue;
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        if ready.next() == Some(true) {
            return;
        }
        let mut rang = false;
        for ((number, event), ready) in heard.iter().zip(ready) {
            let mut count = [0; 8];
            // Emptied before the engine is asked, or an interrupt between the two would be lost.
            if ready && rustix::io::read(event.as_fd(), &mut count).is_ok() {
                shared.channels.interrupt(*number, Monotonic.now());
                rang = true;
            }
        }
        if rang {
            shared.bell.ring();
        }
    }
}
