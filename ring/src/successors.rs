//! The servers in the order in which a key meets them on its way around the ring: for whoever needs the next one when the
//! first does not answer.

use crate::ring::{Member, Ring};

/// How many servers are remembered without memory from the heap. Whoever asks for more than a few walks the whole ring.
const INLINE: usize = 8;

/// The servers of a ring, each once, in ring order from a key; see [`Ring::successors`].
#[derive(Clone, Debug)]
pub struct Successors<'a, T> {
    ring: &'a Ring<T>,
    /// The position of the next point to look at.
    at: usize,
    /// How many servers are still to come. When it is 0 the rest of the points holds nothing new.
    left: usize,
    seen: Seen,
}

impl<'a, T> Successors<'a, T> {
    /// From the point at this position on; `None` when there are no points.
    pub(crate) fn new(ring: &'a Ring<T>, at: Option<usize>) -> Self {
        Self { ring, at: at.unwrap_or(0), left: ring.len(), seen: Seen::Few { ranks: [0; INLINE], len: 0 } }
    }
}

impl<'a, T> Iterator for Successors<'a, T> {
    type Item = &'a Member<T>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let owners = self.ring.owners();
        loop {
            let rank = owners[self.at];
            self.at = if self.at + 1 == owners.len() { 0 } else { self.at + 1 };
            if self.seen.insert(rank, self.ring.len()) {
                self.left -= 1;
                return Some(&self.ring.members()[rank as usize]);
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<T> ExactSizeIterator for Successors<'_, T> {}

/// The ranks that were handed out: a short list first, then a bit for each server.
#[derive(Clone, Debug)]
enum Seen {
    Few { ranks: [u32; INLINE], len: usize },
    Many(Vec<u64>),
}

impl Seen {
    /// Remembers a rank, out of so many; whether it is new.
    fn insert(&mut self, rank: u32, servers: usize) -> bool {
        match self {
            Self::Few { ranks, len } => {
                if ranks[..*len].contains(&rank) {
                    return false;
                }
                if *len < INLINE {
                    ranks[*len] = rank;
                    *len += 1;
                } else {
                    let mut bits = vec![0; servers.div_ceil(64)];
                    for rank in ranks.iter().chain([&rank]) {
                        set_bit(&mut bits, *rank);
                    }
                    *self = Self::Many(bits);
                }
                true
            }
            Self::Many(bits) => set_bit(bits, rank),
        }
    }
}

/// Sets the bit of a rank; whether it was clear.
fn set_bit(bits: &mut [u64], rank: u32) -> bool {
    let (word, bit) = (&mut bits[rank as usize / 64], 1 << (rank % 64));
    let clear = *word & bit == 0;
    *word |= bit;
    clear
}
