//! Servers by their load, the least first: the queues of [`LeastConnections`].
//!
//! [`LeastConnections`]: super::LeastConnections

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Where one is that is not there.
const NOWHERE: u32 = u32::MAX;

/// Servers by their load.
#[derive(Debug, Clone)]
pub(super) struct Loads<T> {
    /// A heap: none comes before its [parent], but the first one if it is `late`.
    heap: Vec<Entry<T>>,
    /// The first one has changed and is to go down to its place. That waits until somebody needs the order: a pick is
    /// mostly followed by a session of the picked one, and so it goes down once for both.
    late: bool,
    /// Where in the heap each slot is: a server that moves tells it here, which costs no look-up by its id.
    places: Vec<u32>,
}

/// A server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<T> {
    pub(super) id: T,
    /// Its live sessions and one more.
    pub(super) load: u64,
    pub(super) weight: u32,
    /// Its number, another one for each server.
    pub(super) slot: u32,
    /// When it was picked last, by the clock of the policy; different for each server.
    pub(super) picked: u64,
}

/// A server that comes next in the search for one who may.
struct Candidate<'a, T> {
    entry: &'a Entry<T>,
    place: usize,
}

impl<T: Copy> Loads<T> {
    /// Without servers.
    pub(super) fn new() -> Self {
        Self { heap: Vec::new(), late: false, places: Vec::new() }
    }

    /// All of them, in no order.
    pub(super) fn entries(&self) -> &[Entry<T>] {
        &self.heap
    }

    /// The one with the least load.
    pub(super) fn first(&mut self) -> Option<&Entry<T>> {
        self.catch_up();
        self.heap.first()
    }

    /// The first one of those behind the first who may; they are asked in their order. A server comes after its parent, so
    /// only the children of those who were asked can be next.
    pub(super) fn search(&mut self, mut may: impl FnMut(T) -> bool) -> Option<&Entry<T>> {
        self.catch_up();
        let candidate = |place: usize| self.heap.get(place).map(|entry| Candidate { entry, place });
        let mut candidates: BinaryHeap<_> = children(0).filter_map(candidate).collect();
        while let Some(Candidate { entry, place }) = candidates.pop() {
            if may(entry.id) {
                return Some(entry);
            }
            candidates.extend(children(place).filter_map(candidate));
        }
        None
    }

    /// Puts one in whose slot is not there.
    pub(super) fn insert(&mut self, entry: Entry<T>) {
        self.catch_up();
        let slot = entry.slot as usize;
        if slot >= self.places.len() {
            self.places.resize(slot + 1, NOWHERE);
        }
        let place = self.heap.len();
        self.heap.push(entry);
        self.sift_up(place);
    }

    /// Takes one out, if it is there.
    pub(super) fn remove(&mut self, slot: u32) -> Option<Entry<T>> {
        if self.place(slot)? == 0 {
            // It goes, wherever it would go down to.
            self.late = false;
        } else {
            self.catch_up();
        }
        let place = self.place(slot)?;
        let entry = self.heap.swap_remove(place);
        self.places[slot as usize] = NOWHERE;
        if place < self.heap.len() {
            self.restore(place);
        }
        Some(entry)
    }

    /// Changes one, if it is there.
    pub(super) fn change(&mut self, slot: u32, change: impl FnOnce(&mut Entry<T>)) {
        let Some(mut place) = self.place(slot) else { return };
        if place == 0 {
            change(&mut self.heap[0]);
            self.late = true;
            return;
        }
        if self.late {
            self.catch_up();
            place = self.places[slot as usize] as usize;
        }
        change(&mut self.heap[place]);
        self.restore(place);
    }

    fn place(&self, slot: u32) -> Option<usize> {
        self.places.get(slot as usize).filter(|place| **place != NOWHERE).map(|place| *place as usize)
    }

    /// Lets the first one go down to its place, if it has to.
    fn catch_up(&mut self) {
        if self.late {
            self.late = false;
            self.sift_down(0);
        }
    }

    /// Brings a server whose load has changed to its place.
    fn restore(&mut self, place: usize) {
        if place > 0 && self.heap[place].before(&self.heap[parent(place)]) {
            self.sift_up(place);
        } else {
            self.sift_down(place);
        }
    }

    fn sift_up(&mut self, mut place: usize) {
        let entry = self.heap[place];
        while place > 0 && entry.before(&self.heap[parent(place)]) {
            self.put(self.heap[parent(place)], place);
            place = parent(place);
        }
        self.put(entry, place);
    }

    fn sift_down(&mut self, mut place: usize) {
        let entry = self.heap[place];
        loop {
            let mut next = 2 * place + 1;
            let Some(mut child) = self.heap.get(next) else { break };
            if let Some(second) = self.heap.get(next + 1) {
                // No branch: which one is nobody's guess.
                next += usize::from(second.before(child));
                child = &self.heap[next];
            }
            if !child.before(&entry) {
                break;
            }
            self.put(*child, place);
            place = next;
        }
        self.put(entry, place);
    }

    fn put(&mut self, entry: Entry<T>, place: usize) {
        self.heap[place] = entry;
        self.places[entry.slot as usize] = place as u32;
    }
}

fn parent(place: usize) -> usize {
    (place - 1) / 2
}

fn children(place: usize) -> std::ops::RangeInclusive<usize> {
    2 * place + 1..=2 * place + 2
}

impl<T> Entry<T> {
    pub(super) fn before(&self, other: &Self) -> bool {
        self.order(other).is_lt()
    }

    pub(super) fn order(&self, other: &Self) -> Ordering {
        let crosswise = |one: &Self, two: &Self| u128::from(one.load) * u128::from(two.weight);
        (crosswise(self, other), self.picked).cmp(&(crosswise(other, self), other.picked))
    }
}

/// The greatest is the one with the least load, as the heap of the standard library wants it.
impl<T> Ord for Candidate<'_, T> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.entry.order(self.entry)
    }
}

impl<T> PartialOrd for Candidate<'_, T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Candidate<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Candidate<'_, T> {}
