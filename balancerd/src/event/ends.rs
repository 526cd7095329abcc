//! Sessions, or flows, that are to end or to leave their server, and whose turn has not come yet: a server may have many
//! thousands of them, and the loop has time for some of them in a turn. Why each is to end is known where it is.

use std::collections::VecDeque;

/// Those who wait, in the order in which they were told.
#[derive(Debug)]
pub(crate) struct Ends<K> {
    waiting: VecDeque<K>,
    /// Those whose turn has come.
    done: u64,
}

impl<K> Ends<K> {
    /// None.
    pub(crate) fn new() -> Self {
        Self { waiting: VecDeque::new(), done: 0 }
    }

    /// One more. It may end by itself before its turn comes.
    pub(crate) fn push(&mut self, one: K) {
        self.waiting.push_back(one);
    }

    /// The next one, whose turn has come.
    pub(crate) fn pop(&mut self) -> Option<K> {
        let one = self.waiting.pop_front()?;
        self.done += 1;
        Some(one)
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Those whose turn has come since the start.
    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    /// As many of them as there are when the turn of the last who waits now has come.
    pub(crate) fn done_then(&self) -> u64 {
        self.done + self.waiting.len() as u64
    }
}
