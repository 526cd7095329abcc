//! The numbers that people and headers know sessions and flows by: from 1 up, in the order in which they began, none twice
//! in the life of a balancer. Keys of slots are not for people: they are long, and an old one differs from a new one by
//! a generation.

use std::collections::BTreeMap;

/// Who has which number. A tree and no table: none of its changes moves all that is in it.
#[derive(Debug)]
pub(super) struct Numbers<I>(BTreeMap<u64, I>);

impl<I: Copy> Numbers<I> {
    pub(super) fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// One begins with a number that the model gave.
    pub(super) fn insert(&mut self, number: u64, id: I) {
        let before = self.0.insert(number, id);
        debug_assert!(before.is_none(), "{number} is given once");
    }

    /// It has ended.
    pub(super) fn remove(&mut self, number: u64) {
        self.0.remove(&number);
    }

    /// Whose number it is, if they live.
    pub(super) fn find(&self, number: u64) -> Option<I> {
        self.0.get(&number).copied()
    }
}
