//! Parts of the stream that lost their channel.

use heapless::Vec;

use crate::plan::Stretch;

/// Lists of which each has room for one part of every lane. A lane that is stopped loses up to two
/// bursts and its rest. They are neighbours, which become one part, unless the lane had adopted
/// another part in between.
const LISTS: usize = 2;

/// Parts of the stream that nobody has, up to two for each lane.
#[derive(Debug)]
pub(crate) struct Orphans<const N: usize> {
    lists: [Vec<Stretch, N>; LISTS],
}

impl<const N: usize> Orphans<N> {
    pub(crate) const fn new() -> Self {
        Self {
            lists: [const { Vec::new() }; LISTS],
        }
    }

    pub(crate) fn clear(&mut self) {
        for list in &mut self.lists {
            list.clear();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        // The first one is filled first, and emptied last.
        self.lists.first().is_none_or(Vec::is_empty)
    }

    /// Bytes of all of them.
    pub(crate) fn len_bytes(&self) -> u64 {
        let all = self.lists.iter().flatten();
        all.fold(0, |sum, part| sum.wrapping_add(part.len_bytes()))
    }

    /// Adds a part, to a neighbour if there is one.
    ///
    /// # Errors
    ///
    /// Gives it back if there is no room.
    pub(crate) fn push(&mut self, part: Stretch) -> Result<(), Stretch> {
        for known in self.lists.iter_mut().flatten() {
            if known.end == part.start {
                known.end = part.end;
                return Ok(());
            }
            if part.end == known.start {
                known.start = part.start;
                return Ok(());
            }
        }
        match self.lists.iter_mut().find(|list| !list.is_full()) {
            Some(list) => list.push(part),
            None => Err(part),
        }
    }

    /// Takes the newest part out.
    pub(crate) fn pop(&mut self) -> Option<Stretch> {
        let mut lists = self.lists.iter_mut().rev();
        lists.find_map(Vec::pop)
    }
}
