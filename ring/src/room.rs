//! The memory that an array moves to when it has outgrown its own, made ready a little with each change before: the first
//! touch of new memory costs several times what a change does, and all at once it would be a stall. The arrays of points and
//! their index have one each.

use std::mem;

/// Memory for a greater array. A clone starts without.
#[derive(Debug)]
pub(crate) struct Room<V>(Vec<V>);

impl<V: Copy + Default> Room<V> {
    /// No memory yet.
    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }

    /// Makes room for `len` values in all, and touches a part of it: all will be touched when, after the `added` values
    /// that just came, `left` more have come to the array that is in use.
    pub(crate) fn prepare(&mut self, len: usize, added: usize, left: usize) {
        if self.0.capacity() < len {
            self.0 = Vec::with_capacity(len);
        }
        let untouched = len.saturating_sub(self.0.len());
        let step = untouched * added / (left + added) + 1;
        self.0.resize(self.0.len() + step.min(untouched), V::default());
    }

    /// An empty list: of what was prepared, if at least `least` values fit, or else new with this capacity.
    pub(crate) fn take(&mut self, least: usize, capacity: usize) -> Vec<V> {
        let mut values = mem::take(&mut self.0);
        if values.capacity() < least {
            return Vec::with_capacity(capacity);
        }
        values.clear();
        values
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.0.capacity() * size_of::<V>()
    }
}

impl<V: Copy + Default> Clone for Room<V> {
    fn clone(&self) -> Self {
        Self::none()
    }
}
