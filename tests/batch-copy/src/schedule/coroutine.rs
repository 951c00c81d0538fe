//! Turns: coroutines that are resumed one at a time, and may give their turn up wherever they are.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ptr;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

/// Deep enough for a batch in a debug build, with room for a panic's way out.
const STACK_LEN_BYTES: usize = 512 << 10;

/// Whose turn it is.
#[derive(Debug)]
pub(super) struct Turn {
    yielder: Cell<*const Yielder<(), ()>>,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            yielder: Cell::new(ptr::null()),
        }
    }
}

impl Turn {
    /// Gives the turn up. Returns `false` at once if no coroutine runs, or one that panics.
    pub(super) fn give_up(&self) -> bool {
        let yielder = self.yielder.get();
        if yielder.is_null() || std::thread::panicking() {
            return false;
        }
        // SAFETY: the pointer was set by the coroutine that runs now, when it was entered or after
        // it was resumed, and is null whenever none runs: `Player::resume` clears it. The yielder
        // lives as long as the coroutine's function, which we are called by.
        let this = unsafe { &*yielder };
        this.suspend(());
        self.yielder.set(yielder);
        true
    }
}

/// Stacks that are not in use.
#[derive(Default)]
pub(super) struct Stacks(Vec<DefaultStack>);

/// Somebody who takes turns.
pub(super) struct Player(Option<Coroutine<(), (), (), DefaultStack>>);

impl Player {
    /// `play` takes its first turn when it is resumed.
    pub(super) fn new(
        stacks: &mut Stacks,
        turn: std::rc::Rc<super::world::World>,
        play: impl FnOnce() + 'static,
    ) -> Self {
        let stack = stacks
            .0
            .pop()
            .unwrap_or_else(|| DefaultStack::new(STACK_LEN_BYTES).expect("memory for a stack"));
        Self(Some(Coroutine::with_stack(
            stack,
            move |yielder: &Yielder<(), ()>, ()| {
                turn.turn.yielder.set(yielder);
                play();
            },
        )))
    }

    /// Lets it go on until it gives the turn up. Returns whether it is through.
    pub(super) fn resume(&mut self, turn: &Turn, stacks: &mut Stacks) -> bool {
        let Some(coroutine) = &mut self.0 else {
            return true;
        };
        let result = coroutine.resume(());
        turn.yielder.set(ptr::null());
        if let CoroutineResult::Yield(()) = result {
            return false;
        }
        if let Some(coroutine) = self.0.take() {
            stacks.0.push(coroutine.into_stack());
        }
        true
    }
}
