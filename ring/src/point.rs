//! The sorted array of points, and the merges that put the points of one server in or take them out. It knows owners as
//! ranks in a list that somebody else keeps, sorted; it knows no server and no weight.

use crate::index::Index;
use crate::room::Room;

/// The points of a ring, sorted by (hash, owner). Hashes and owners are two arrays, so that a search touches hashes only
/// and a merge is a plain move of memory.
#[derive(Clone, Debug)]
pub(crate) struct Points {
    hashes: Vec<u64>,
    /// By point: the rank of the server it belongs to.
    owners: Vec<u32>,
    index: Index,
    /// Where the two arrays go when they are full.
    next: (Room<u64>, Room<u32>),
}

impl Points {
    /// From (hash, owner) pairs in any order: the one full sort, for a whole ring at once. The pairs are gone through
    /// twice: making hashes again is quicker than keeping them.
    ///
    /// Hashes are spread evenly, so their high bits say nearly where they go: pairs are dealt into parts that fit a near
    /// cache, and each part into buckets of about one. What is left is a step or two to the side. Hashes that are not
    /// spread are sorted all the same, only not as fast.
    pub(crate) fn sorted(pairs: impl Iterator<Item = (u64, u32)> + Clone) -> Self {
        let mut count = 0;
        pairs.clone().for_each(|_| count += 1);
        let parts = (count / PART).next_power_of_two();
        // One part has no bits; a shift by all 64 would be none.
        let part = |hash: u64| (hash >> 1 >> (u64::BITS - 1 - parts.ilog2())) as usize;
        let mut ends = vec![0; parts];
        pairs.clone().for_each(|(hash, _)| ends[part(hash)] += 1);
        ends.iter_mut().fold(0, |before, end| {
            let start = before;
            before + std::mem::replace(end, start)
        });
        // With room for the first servers that come; what is not used of it stays untouched.
        let (mut hashes, mut owners) = (vec![0; with_spare(count)], vec![0; with_spare(count)]);
        hashes.truncate(count);
        owners.truncate(count);
        pairs.for_each(|(hash, owner)| {
            let end = &mut ends[part(hash)];
            (hashes[*end], owners[*end]) = (hash, owner);
            *end += 1;
        });
        let mut sorter = Sorter::default();
        let mut start = 0;
        for end in ends {
            sorter.sort(&mut hashes[start..end], &mut owners[start..end], parts.ilog2());
            start = end;
        }
        let index = Index::of(&hashes);
        Self { hashes, owners, index, next: (Room::none(), Room::none()) }
    }

    /// The sorted hashes.
    pub(crate) fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// The owners, in the order of the hashes.
    pub(crate) fn owners(&self) -> &[u32] {
        &self.owners
    }

    /// The position of the first point whose hash is at or after this one, around the end; `None` when there are none.
    #[inline]
    pub(crate) fn at_or_after(&self, hash: u64) -> Option<usize> {
        let at = self.lower_bound(hash)?;
        Some(if at == self.hashes.len() { 0 } else { at })
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        let arrays = self.hashes.capacity() * size_of::<u64>() + self.owners.capacity() * size_of::<u32>();
        arrays + self.next.0.heap_bytes() + self.next.1.heap_bytes() + self.index.heap_bytes()
    }

    /// Those whose owner has a rank in `ranks`, where it stands at its rank of now. The order of the owners stays.
    pub(crate) fn of_ranks(&self, ranks: &[Option<u32>]) -> Self {
        let points = self.hashes.iter().zip(&self.owners);
        let (hashes, owners): (Vec<u64>, Vec<u32>) =
            points.filter_map(|(hash, owner)| Some((*hash, ranks[*owner as usize]?))).unzip();
        let index = Index::of(&hashes);
        Self { hashes, owners, index, next: (Room::none(), Room::none()) }
    }

    /// Makes room for a new owner of this rank: the ranks from it on move up by one.
    pub(crate) fn open_rank(&mut self, rank: u32) {
        for owner in &mut self.owners {
            *owner += u32::from(*owner >= rank);
        }
    }

    /// Closes the rank of an owner that has no points left: the ranks after it move down by one.
    pub(crate) fn close_rank(&mut self, rank: u32) {
        for owner in &mut self.owners {
            *owner -= u32::from(*owner > rank);
        }
    }

    /// Where points of an owner would go: the position of the first point after each. Their hashes are sorted.
    pub(crate) fn gaps(&self, owner: u32, hashes: &[u64]) -> Vec<usize> {
        let before_owner = |at: usize, hash| self.hashes[at] == hash && self.owners[at] < owner;
        let gap = |&hash: &u64| {
            let mut at = self.lower_bound(hash).unwrap_or(0);
            while at < self.hashes.len() && before_owner(at, hash) {
                at += 1;
            }
            at
        };
        hashes.iter().map(gap).collect()
    }

    /// Where points of an owner are, in their order. Their hashes are sorted, and each is there.
    pub(crate) fn positions(&self, owner: u32, hashes: &[u64]) -> Vec<usize> {
        let mut positions: Vec<usize> = Vec::with_capacity(hashes.len());
        for &hash in hashes {
            let mut at = self.lower_bound(hash).expect("a ring with a point of an owner is not empty");
            // An owner's own equal hashes lie side by side: the next of them is after the one just found.
            if let Some(last) = positions.last() {
                at = at.max(last + 1);
            }
            while self.owners[at] != owner {
                at += 1;
            }
            debug_assert_eq!(self.hashes[at], hash, "the point is there");
            positions.push(at);
        }
        positions
    }

    /// Merges points of one owner in. Their hashes are sorted. Linear, in place.
    pub(crate) fn insert(&mut self, owner: u32, hashes: &[u64]) {
        let gaps = self.gaps(owner, hashes);
        fill_gaps(&mut self.hashes, &mut self.next.0, &gaps, |nth| hashes[nth]);
        fill_gaps(&mut self.owners, &mut self.next.1, &gaps, |_| owner);
        self.index.inserted(hashes, &self.hashes);
    }

    /// Takes points of one owner out. Their hashes are sorted, and each is there. Linear, in place.
    pub(crate) fn remove(&mut self, owner: u32, hashes: &[u64]) {
        let gaps = self.positions(owner, hashes);
        close_gaps(&mut self.hashes, &mut self.next.0, &gaps);
        close_gaps(&mut self.owners, &mut self.next.1, &gaps);
        self.index.removed(hashes, &self.hashes);
    }

    /// The position of the first point at or after this hash, the number of points when it lies after all of them.
    #[inline]
    fn lower_bound(&self, hash: u64) -> Option<usize> {
        let start = self.index.start(hash)?;
        let rest = &self.hashes[start..];
        Some(start + rest.iter().position(|point| *point >= hash).unwrap_or(rest.len()))
    }
}

/// How many points are sorted at a time, about: with what sorting needs they fit the cache next to the core.
const PART: usize = 4096;

/// Sorts one part after the other, in memory that is kept.
#[derive(Default)]
struct Sorter {
    pairs: Vec<(u64, u32)>,
    /// By bucket: where its next pair goes.
    places: Vec<usize>,
}

impl Sorter {
    /// Sorts pairs whose hashes have the same `bits` high bits: into buckets by the bits that follow, two buckets for each
    /// pair, then each pair to its place among its neighbours.
    fn sort(&mut self, hashes: &mut [u64], owners: &mut [u32], bits: u32) {
        let more = (hashes.len() * 2).next_power_of_two().ilog2();
        let bucket = |hash: u64| ((hash << bits) >> 1 >> (u64::BITS - 1 - more)) as usize;
        self.places.clear();
        self.places.resize(1 << more, 0);
        for hash in hashes.iter() {
            self.places[bucket(*hash)] += 1;
        }
        let fullest = self.places.iter().copied().max().unwrap_or_default();
        self.pairs.clear();
        self.pairs.extend(hashes.iter().copied().zip(owners.iter().copied()));
        if fullest > 32 {
            // Hashes that are not spread: steps to the side would be many.
            self.pairs.sort_unstable();
            for (nth, pair) in self.pairs.iter().enumerate() {
                (hashes[nth], owners[nth]) = *pair;
            }
            return;
        }
        self.places.iter_mut().fold(0, |before, place| {
            let start = before;
            before + std::mem::replace(place, start)
        });
        for (hash, owner) in &self.pairs {
            let place = &mut self.places[bucket(*hash)];
            (hashes[*place], owners[*place]) = (*hash, *owner);
            *place += 1;
        }
        for from in 1..hashes.len() {
            let pair = (hashes[from], owners[from]);
            let mut to = from;
            while to > 0 && (hashes[to - 1], owners[to - 1]) > pair {
                (hashes[to], owners[to]) = (hashes[to - 1], owners[to - 1]);
                to -= 1;
            }
            (hashes[to], owners[to]) = pair;
        }
    }
}

/// The capacity of an array of so many points: an eighth more, since doubling would keep too much memory.
fn with_spare(points: usize) -> usize {
    points + points / 8
}

/// Puts a value before each of the positions `gaps` (ascending), the nth being `value(nth)`. Every run between two gaps
/// moves once: from the back, or to the next memory when this is full.
fn fill_gaps<V: Copy + Default>(values: &mut Vec<V>, next: &mut Room<V>, gaps: &[usize], value: impl Fn(usize) -> V) {
    if gaps.is_empty() {
        return;
    }
    let (mut end, len) = (values.len(), values.len() + gaps.len());
    if len > values.capacity() {
        let mut grown = next.take(len, with_spare(len));
        let mut start = 0;
        for (nth, &gap) in gaps.iter().enumerate() {
            grown.extend_from_slice(&values[start..gap]);
            grown.push(value(nth));
            start = gap;
        }
        grown.extend_from_slice(&values[start..]);
        *values = grown;
        return;
    }
    values.resize(len, value(0));
    for (nth, &gap) in gaps.iter().enumerate().rev() {
        values.copy_within(gap..end, gap + nth + 1);
        values[gap + nth] = value(nth);
        end = gap;
    }
    // The last sixteenth is the time to make the next memory ready.
    let capacity = values.capacity();
    if len > capacity - capacity / 16 {
        next.prepare(with_spare(capacity), gaps.len(), capacity - len);
    }
}

/// Takes the values at the positions `gaps` (ascending, each once) out. Every run between two gaps moves once.
fn close_gaps<V: Copy + Default>(values: &mut Vec<V>, next: &mut Room<V>, gaps: &[usize]) {
    for (nth, &gap) in gaps.iter().enumerate() {
        let end = gaps.get(nth + 1).copied().unwrap_or(values.len());
        values.copy_within(gap + 1..end, gap - nth);
    }
    values.truncate(values.len() - gaps.len());
    // Far from full it is not kept.
    if values.len() < values.capacity() - values.capacity() / 8 {
        *next = Room::none();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(points: &Points) -> Vec<(u64, u32)> {
        points.hashes.iter().copied().zip(points.owners.iter().copied()).collect()
    }

    /// Few enough values that every pair of owners collides, an owner also with itself, and at both ends of the space.
    const COLLIDING: [&[u64]; 4] = [
        &[0, 5, 5, 9, u64::MAX],
        &[0, 0, 5, 7, u64::MAX, u64::MAX],
        &[5, 9, 9, u64::MAX],
        &[0, 5, 7, 9, 9, 9, u64::MAX],
    ];

    fn all() -> Vec<(u64, u32)> {
        let mut all: Vec<(u64, u32)> =
            (0..).zip(COLLIDING).flat_map(|(owner, hashes)| hashes.iter().map(move |hash| (*hash, owner))).collect();
        all.sort_unstable();
        all
    }

    fn orders() -> Vec<Vec<u32>> {
        let mut orders = vec![vec![]];
        for _ in 0..COLLIDING.len() {
            orders = orders
                .into_iter()
                .flat_map(|order: Vec<u32>| {
                    let rest: Vec<u32> = (0..COLLIDING.len() as u32).filter(|owner| !order.contains(owner)).collect();
                    rest.into_iter().map(move |owner| [order.as_slice(), &[owner]].concat())
                })
                .collect();
        }
        assert_eq!(orders.len(), 24);
        orders
    }

    #[test]
    fn equal_hashes_are_decided_by_rank_whatever_the_order_of_insertion() {
        for order in orders() {
            let mut points = Points::sorted(std::iter::empty());
            for owner in &order {
                points.insert(*owner, COLLIDING[*owner as usize]);
            }
            assert_eq!(pairs(&points), all(), "{order:?}");
            assert_eq!(pairs(&points), pairs(&Points::sorted(all().into_iter())));
            // The owner of a hash that several have is the lowest of them, also around the end.
            for (hash, owner) in [(0, 0), (5, 0), (6, 1), (8, 0), (9, 0), (10, 0), (u64::MAX, 0)] {
                let at = points.at_or_after(hash).unwrap();
                assert_eq!(points.owners[at], owner, "hash {hash}");
            }
        }
    }

    #[test]
    fn equal_hashes_are_decided_by_rank_whatever_the_order_of_removal() {
        for order in orders() {
            let mut points = Points::sorted(all().into_iter());
            let mut left = all();
            for owner in &order {
                points.remove(*owner, COLLIDING[*owner as usize]);
                left.retain(|pair| pair.1 != *owner);
                assert_eq!(pairs(&points), left, "{order:?}");
            }
            assert_eq!(points.at_or_after(0), None);
        }
    }

    #[test]
    fn any_pairs_are_sorted() {
        let mixed = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        // Spread; in few places with equal hashes; all near one end, near the other, and all the same.
        let kinds: [fn(u64) -> u64; 5] = [|n| n, |n| (n % 13) << 55, |n| n % 1000, |n| u64::MAX - n % 1000, |_| 7];
        for kind in kinds {
            for count in [0, 1, 2, 3, 100, 5000, 20_000] {
                let mut pairs: Vec<(u64, u32)> = (0..count).map(|n| (kind(mixed(n)), mixed(n) as u32 % 50)).collect();
                let points = Points::sorted(pairs.iter().copied());
                pairs.sort_unstable();
                assert!(self::pairs(&points) == pairs, "{count}");
            }
        }
    }

    #[test]
    fn ranks_open_and_close() {
        let mut points = Points::sorted(vec![(1, 0), (2, 1), (3, 2), (4, 1)].into_iter());
        points.open_rank(1);
        assert_eq!(points.owners, [0, 2, 3, 2]);
        points.insert(1, &[2]);
        assert_eq!(pairs(&points), [(1, 0), (2, 1), (2, 2), (3, 3), (4, 2)]);
        points.remove(2, &[2, 4]);
        points.close_rank(2);
        assert_eq!(pairs(&points), [(1, 0), (2, 1), (3, 2)]);
    }

    #[test]
    fn arrays_that_outgrow_their_memory_stay_sorted() {
        let hash = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut points = Points::sorted(std::iter::empty());
        let mut all = Vec::new();
        // One, a few and many at a time, so that memory is used up with and without notice.
        for (step, count) in [1, 3, 40, 7, 300, 2, 5].into_iter().cycle().take(200).enumerate() {
            let mut new: Vec<u64> = (0..count).map(|n| hash(step as u64 * 1000 + n)).collect();
            new.sort_unstable();
            points.insert(step as u32, &new);
            all.extend(new.iter().map(|hash| (*hash, step as u32)));
        }
        all.sort_unstable();
        assert!(pairs(&points) == all);
        assert!(all.iter().enumerate().all(|(at, (hash, _))| points.at_or_after(*hash) == Some(at)));
        assert!(points.hashes.capacity() <= all.len() + all.len() / 4, "an eighth at a time, and not twice as much");
    }

    #[test]
    fn nothing_put_in_or_taken_out_changes_nothing() {
        let mut points = Points::sorted(vec![(1, 0)].into_iter());
        points.insert(0, &[]);
        points.remove(0, &[]);
        assert_eq!(pairs(&points), [(1, 0)]);
    }
}
