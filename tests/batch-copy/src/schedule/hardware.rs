//! What is behind a channel: the fuzzer's own engine, or a function of the device model.

use std::cell::RefCell;
use std::rc::Rc;

use batch_copy::{ChannelLimits, CopyChannel, CopyProgress, PrepError, Prepared, Segment, Stopped};
use ptdma::Cookie;

use super::engine::{Engine, EngineChannel};
use super::function::{self, Function, Queue};
use super::world::World;

/// The hardware of one channel.
pub(super) enum Hardware {
    Engine(RefCell<Engine>),
    Function(Box<Function>),
}

impl Hardware {
    pub(super) fn engine(&self) -> &RefCell<Engine> {
        match self {
            Self::Engine(engine) => engine,
            Self::Function(_) => panic!("a channel of its own engine"),
        }
    }

    pub(super) fn function(&self) -> &Function {
        match self {
            Self::Function(function) => function,
            Self::Engine(_) => panic!("a channel of a function"),
        }
    }

    /// Has it do something, unless somebody is at it.
    pub(super) fn step(&self, world: &Rc<World>) {
        match self {
            Self::Engine(engine) => {
                if let Ok(mut engine) = engine.try_borrow_mut() {
                    engine.step(world);
                }
            }
            Self::Function(function) => {
                function.step(world);
            }
        }
    }

    /// Whether it goes on by itself. A function is tried.
    pub(super) fn goes_on(&self, world: &World) -> bool {
        match self {
            Self::Engine(engine) => engine.borrow().is_at_work(),
            Self::Function(function) => function.step(world),
        }
    }

    pub(super) fn take_raised(&self) -> bool {
        match self {
            Self::Engine(engine) => std::mem::take(&mut engine.borrow_mut().raised),
            Self::Function(function) => function.take_raised(),
        }
    }

    pub(super) fn reset(&self) {
        match self {
            Self::Engine(engine) => engine.borrow_mut().reset(),
            Self::Function(function) => function.reset(),
        }
    }
}

/// A channel on one of the world's engines or functions.
pub(super) enum FuzzChannel {
    Engine(EngineChannel),
    Queue { number: usize, queue: Box<Queue> },
}

impl FuzzChannel {
    /// Brings a channel back that was taken away.
    pub(super) fn recover(&mut self, world: &World) {
        match self {
            Self::Engine(channel) => channel.recover(),
            Self::Queue { number, queue } => function::recover(world, *number, queue),
        }
    }

    /// It is needed no more.
    pub(super) fn dismantle(self, world: &World) {
        if let Self::Queue { number, queue } = self {
            function::dismantle(world, number, *queue);
        }
    }
}

/// What either kind of channel answers.
macro_rules! either {
    ($self:ident, $channel:ident => $answer:expr) => {
        match $self {
            Self::Engine($channel) => $answer,
            Self::Queue {
                queue: $channel, ..
            } => $answer,
        }
    };
}

impl CopyChannel for FuzzChannel {
    fn limits(&self) -> ChannelLimits {
        either!(self, channel => channel.limits())
    }
    fn next_cookie(&self) -> Cookie {
        either!(self, channel => channel.next_cookie())
    }
    fn free_slots(&self) -> usize {
        either!(self, channel => channel.free_slots())
    }
    fn prep(&mut self, copy: Segment, interrupt: bool) -> Result<Cookie, PrepError> {
        either!(self, channel => channel.prep(copy, interrupt))
    }
    fn prep_all(&mut self, copies: impl Iterator<Item = Segment>, mark: Option<usize>) -> Prepared {
        either!(self, channel => channel.prep_all(copies, mark))
    }
    fn issue_pending(&mut self, interrupt: bool) {
        either!(self, channel => channel.issue_pending(interrupt));
    }
    fn poll(&mut self, now_ns: u64) -> CopyProgress {
        either!(self, channel => channel.poll(now_ns))
    }
    fn poll_head(&mut self, now_ns: u64) -> Option<Cookie> {
        either!(self, channel => channel.poll_head(now_ns))
    }
    fn interrupt(&mut self, now_ns: u64) -> CopyProgress {
        either!(self, channel => channel.interrupt(now_ns))
    }
    fn overdue(&mut self, now_ns: u64) -> CopyProgress {
        either!(self, channel => channel.overdue(now_ns))
    }
    fn terminate(&mut self, now_ns: u64) -> Stopped {
        either!(self, channel => channel.terminate(now_ns))
    }
}
