//! Where to start looking: for each value of a hash's high bits, the position of the first point that has them or
//! greater ones. It turns the search of a sorted array into one read and the few compares that remain.
//!
//! Measured in ns, throughput and latency, random keys: at 100 servers of 1024 points a binary search 33 and 83, one to two
//! buckets per point 9.0 and 29, two to four 7.1 and 30; at 1000 servers 185 and 360, 29 and 97, 42 and 170. So one to
//! two it is. Compares without branches were no quicker at 100 servers and far slower at 1000, where the guessing of
//! branches is what lets the reads of memory overlap; one array of (hash, owner) was slower than two.

use crate::room::Room;

/// The index over a sorted list of hashes. It holds positions only; its owner keeps the hashes.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    /// A bucket is a hash shifted right by this.
    shift: u32,
    /// By bucket: how many points lie in the buckets before it. Empty when there are no points.
    starts: Vec<u32>,
    /// Where `starts` goes when there have to be twice as many.
    next: Room<u32>,
}

impl Index {
    /// The index over these hashes, which are sorted. Linear.
    pub(crate) fn of(hashes: &[u64]) -> Self {
        let mut index = Self { shift: u64::BITS - 1, starts: Vec::new(), next: Room::none() };
        index.rebuild(hashes);
        index
    }

    /// The position to start at when looking for the first point at or after this hash; `None` when there are no points.
    #[inline]
    pub(crate) fn start(&self, hash: u64) -> Option<usize> {
        self.starts.get((hash >> self.shift) as usize).map(|start| *start as usize)
    }

    /// Follows the insertion of the sorted `new` hashes; `all` are the hashes with them. Linear.
    pub(crate) fn inserted(&mut self, new: &[u64], all: &[u64]) {
        if self.fits(all.len()) {
            self.shift_starts(new, |start, count| start + count);
            // The last quarter before there are twice as many buckets.
            let full = 1 << (u64::BITS - self.shift);
            if all.len() > full / 4 * 3 && self.starts.capacity() < 2 * full {
                self.next.prepare(2 * full, new.len(), full - all.len());
            }
        } else {
            self.rebuild(all);
        }
    }

    /// Follows the removal of the sorted `old` hashes; `all` are the hashes without them. Linear.
    pub(crate) fn removed(&mut self, old: &[u64], all: &[u64]) {
        if self.fits(all.len()) {
            self.shift_starts(old, |start, count| start - count);
        } else {
            self.next = Room::none();
            self.rebuild(all);
        }
    }

    /// Counts anew, in memory that is there: new memory costs more than the counting.
    fn rebuild(&mut self, hashes: &[u64]) {
        self.starts.clear();
        if hashes.is_empty() {
            return;
        }
        self.shift = shift_for(hashes.len());
        let buckets = 1 << (u64::BITS - self.shift);
        if self.starts.capacity() < buckets {
            self.starts = self.next.take(buckets, buckets);
        }
        self.starts.resize(buckets, 0);
        // Each bucket's number goes to the next one, then they are summed up. No branch depends on the hashes: they are
        // random, and the processor would guess every second bucket wrong.
        let (starts, shift) = (self.starts.as_mut_slice(), self.shift);
        for hash in hashes {
            if let Some(next) = starts.get_mut((hash >> shift) as usize + 1) {
                *next += 1;
            }
        }
        let mut before = 0;
        for start in starts {
            before += *start;
            *start = before;
        }
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.starts.capacity() * size_of::<u32>() + self.next.heap_bytes()
    }

    /// Whether an index over so many points has as many buckets as this one.
    fn fits(&self, points: usize) -> bool {
        points > 0 && !self.starts.is_empty() && shift_for(points) == self.shift
    }

    /// Moves each start by the number of the sorted `hashes` in the buckets before it. In place and without a look at
    /// the points: a third of the time that counting anew takes.
    fn shift_starts(&mut self, hashes: &[u64], by: impl Fn(u32, u32) -> u32) {
        let buckets = self.starts.len();
        for (count, at) in (1..).zip(0..hashes.len()) {
            let from = (hashes[at] >> self.shift) as usize + 1;
            let to = hashes.get(at + 1).map_or(buckets, |next| (next >> self.shift) as usize + 1);
            for start in &mut self.starts[from..to] {
                *start = by(*start, count);
            }
        }
    }
}

/// The shift for so many points, at least one, that gives one to two buckets per point: a function of their number only.
fn shift_for(points: usize) -> u32 {
    // One point needs two buckets as well: a shift by all 64 bits is none.
    u64::BITS - points.next_power_of_two().ilog2().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(count: u64) -> Vec<u64> {
        let mut hashes: Vec<u64> = (0..count).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        hashes.sort_unstable();
        hashes
    }

    fn assert_starts(index: &Index, hashes: &[u64]) {
        for (bucket, start) in index.starts.iter().enumerate() {
            let before = hashes.partition_point(|hash| ((hash >> index.shift) as usize) < bucket);
            assert_eq!(*start as usize, before, "bucket {bucket} of {}", index.starts.len());
        }
    }

    #[test]
    fn a_start_is_the_number_of_points_in_the_buckets_before() {
        for count in [1, 2, 3, 100, 1000] {
            let hashes = spread(count);
            assert_starts(&Index::of(&hashes), &hashes);
        }
        let edges = [0, 0, 1, u64::MAX - 1, u64::MAX, u64::MAX];
        assert_starts(&Index::of(&edges), &edges);
        assert_eq!(Index::of(&[]).start(u64::MAX), None);
    }

    #[test]
    fn following_a_change_is_building_anew() {
        let mut all = spread(700);
        let mut index = Index::of(&all);
        // 700 to 900 keeps the number of buckets, 900 to 1900 does not, and back again.
        for count in [900, 1900, 1000, 700] {
            let next = spread(count);
            let (inserted, removed): (Vec<u64>, Vec<u64>) = (
                next.iter().copied().filter(|hash| all.binary_search(hash).is_err()).collect(),
                all.iter().copied().filter(|hash| next.binary_search(hash).is_err()).collect(),
            );
            if inserted.is_empty() {
                index.removed(&removed, &next);
            } else {
                index.inserted(&inserted, &next);
            }
            assert_eq!(index.starts, Index::of(&next).starts);
            all = next;
        }
        index.removed(&all, &[]);
        assert_eq!(index.start(0), None);
        index.inserted(&[5], &[5]);
        assert_starts(&index, &[5]);
    }
}
