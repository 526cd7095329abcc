//! The ring itself: the sorted list of servers, their points, and every question one can ask of them. A change is one
//! merge; it either happens as a whole or not at all.

use std::num::NonZeroU32;

use crate::diff::Diff;
use crate::digest::Digest;
use crate::error::RingError;
use crate::identity::Identity;
use crate::key::Key;
use crate::plan;
use crate::point::Points;
use crate::share::Share;
use crate::successors::Successors;

/// The points per weight of a pool that sets no other number. With 100 servers of weight 1 the fullest owns 1.084 of the
/// mean share, measured over many sets (`docs/ring-format-1.md` has the table).
///
/// Every point that a server has depends on this number. Rings with different numbers send most clients to different
/// servers, so it never changes for a pool unless somebody asks for that; it is part of the [`Digest`].
pub const POINTS_PER_WEIGHT: NonZeroU32 = NonZeroU32::new(1024).expect("1024 is not 0");

/// The most points that a ring may have: 2^24, which are 16384 servers of weight 1 at 1024 points per weight. Such a ring
/// takes some 340 MB and stalls its owner for tens of milliseconds with each change; beyond that a mistaken weight
/// would take the machine down, not only the pool.
pub const MAX_POINTS: usize = 1 << 24;

/// The greatest weight of a server. Only ratios count, and 1:256 is finer than a share can follow at 1024 points per weight
/// (`docs/ring-format-1.md`); a greater number is a mistake, or in need of dividing.
pub const MAX_WEIGHT: u32 = 256;

/// A server in a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member<T> {
    /// Who it is.
    pub identity: Identity,
    /// Its relative share, from 1 to [`MAX_WEIGHT`]. 0 stands for "not in the ring" where a member is handed in.
    pub weight: u32,
    /// What the owner of the ring wants back from a pick. No part of equality, digest or differences of rings.
    pub tag: T,
}

/// A consistent-hash ring: a function of the points per weight and the set of (identity, weight), and of nothing else.
///
/// A server may also be there in part, with only the first of its points ([`set_partial`](Self::set_partial)); the ring is
/// then a function of the set of (identity, weight, points).
///
/// `T` is the tag that comes back from a pick. Cloning copies the arrays, so a change can be tried on a copy and compared
/// with [`diff`](Self::diff).
#[derive(Clone, Debug)]
pub struct Ring<T> {
    points_per_weight: NonZeroU32,
    /// Sorted by identity; a point's owner is a rank in it.
    members: Vec<Member<T>>,
    /// By rank: how many points the server has, which are its first replicas. From 1 to what its weight gives.
    counts: Vec<u32>,
    points: Points,
}

impl<T> Ring<T> {
    /// An empty ring. [`POINTS_PER_WEIGHT`] is the number to give, unless a pool is set to another one.
    #[must_use]
    pub fn new(points_per_weight: NonZeroU32) -> Self {
        Self { points_per_weight, members: Vec::new(), counts: Vec::new(), points: Points::sorted(std::iter::empty()) }
    }

    /// A ring of many servers at once, with one sort instead of a merge each: for start and reload. Members of weight 0
    /// are left out, as [`set`](Self::set) does. Their order does not matter.
    ///
    /// # Errors
    ///
    /// When a server is there twice, a weight is over [`MAX_WEIGHT`], or there would be more than [`MAX_POINTS`] points;
    /// the error names the server.
    pub fn build(
        points_per_weight: NonZeroU32,
        members: impl IntoIterator<Item = Member<T>>,
    ) -> Result<Self, RingError> {
        Self::build_partial(points_per_weight, members.into_iter().map(|member| (member, u32::MAX)))
    }

    /// A ring of many servers at once, each with so many of its points as [`set_partial`](Self::set_partial) would give it:
    /// for a reload while servers ramp.
    ///
    /// # Errors
    ///
    /// Those of [`build`](Self::build); a server counts for the limit with all the points of its weight.
    pub fn build_partial(
        points_per_weight: NonZeroU32,
        members: impl IntoIterator<Item = (Member<T>, u32)>,
    ) -> Result<Self, RingError> {
        let mut members: Vec<(Member<T>, u32)> = members.into_iter().collect();
        members.sort_unstable_by_key(|(member, _)| member.identity);
        if let Some(pair) = members.windows(2).find(|pair| pair[0].0.identity == pair[1].0.identity) {
            return Err(RingError::Twice { identity: pair[0].0.identity });
        }
        members.retain(|(member, points)| member.weight > 0 && *points > 0);
        let mut total = 0;
        for (member, points) in &mut members {
            total = checked_total(points_per_weight, total, member.identity, member.weight)?;
            *points = replicas(points_per_weight, member.weight).min(*points);
        }

        let (members, counts): (Vec<Member<T>>, Vec<u32>) = members.into_iter().unzip();
        let points_of = |(rank, (member, count)): (u32, (&Member<T>, &u32))| {
            let identity = member.identity;
            (0..*count).map(move |replica| (identity.point(replica), rank))
        };
        let points = Points::sorted((0..).zip(members.iter().zip(&counts)).flat_map(points_of));
        Ok(Self { points_per_weight, members, counts, points })
    }

    /// Puts a server in with all the points of its weight, or changes its weight and tag; weight 0 takes it out. One
    /// merge, linear in the points of the ring, some milliseconds at most for a million; a change of weight adds or removes
    /// only the points that make the difference. [`plan`](Self::plan) says beforehand what it moves.
    ///
    /// # Errors
    ///
    /// When the weight is over [`MAX_WEIGHT`], or the ring would have more than [`MAX_POINTS`] points if each server had all
    /// of its weight. Nothing has changed then, the tag included.
    pub fn set(&mut self, identity: Identity, weight: u32, tag: T) -> Result<(), RingError> {
        self.set_partial(identity, weight, u32::MAX, tag)
    }

    /// As [`set`](Self::set), but with only so many points, which are the first replicas of the server: for one that
    /// comes up and is to get its share little by little. More than its weight has are all of them, and then the ring is
    /// the one that [`set`](Self::set) gives; 0 takes the server out. More points only take keys for it, fewer only give
    /// keys of it away; no key moves between two others.
    ///
    /// # Errors
    ///
    /// Those of [`set`](Self::set). The limit counts the points that the weight has: a ramp that could begin can end.
    pub fn set_partial(&mut self, identity: Identity, weight: u32, points: u32, tag: T) -> Result<(), RingError> {
        let change = self.change(identity, weight, points)?;
        let rank = match change.place {
            Ok(rank) if change.after == 0 => {
                self.take_out(rank);
                return Ok(());
            }
            Err(_) if change.after == 0 => return Ok(()),
            Ok(rank) => {
                self.members[rank] = Member { identity, weight, tag };
                self.counts[rank] = change.after;
                rank
            }
            Err(rank) => {
                self.members.insert(rank, Member { identity, weight, tag });
                self.counts.insert(rank, change.after);
                self.points.open_rank(rank as u32);
                rank
            }
        };
        match change.points() {
            Changed::Added(hashes) => self.points.insert(rank as u32, &hashes),
            Changed::Removed(hashes) => self.points.remove(rank as u32, &hashes),
        }
        Ok(())
    }

    /// What [`set`](Self::set) with this server and weight would move, weight 0 being its removal: exactly what
    /// [`diff`](Self::diff) says of the ring before and after. Nothing is changed or copied, and only the points that
    /// would come or go are looked at: for `k` of them O(k log k), some 0.2 ms for 1024 in a ring of a million.
    ///
    /// # Errors
    ///
    /// Those of [`set`](Self::set).
    pub fn plan(&self, identity: Identity, weight: u32) -> Result<Diff, RingError> {
        self.plan_partial(identity, weight, u32::MAX)
    }

    /// What [`set_partial`](Self::set_partial) would move, as [`plan`](Self::plan) does for [`set`](Self::set).
    ///
    /// # Errors
    ///
    /// Those of [`set`](Self::set).
    pub fn plan_partial(&self, identity: Identity, weight: u32, points: u32) -> Result<Diff, RingError> {
        let change = self.change(identity, weight, points)?;
        let (Ok(rank) | Err(rank)) = change.place;
        let arcs = match change.points() {
            Changed::Added(hashes) => plan::of_adding(&self.points, change.place, &hashes),
            Changed::Removed(hashes) => plan::of_removing(&self.points, rank as u32, &hashes),
        };
        Ok(Diff::of_one(arcs, |other| {
            let other = other.map(|rank| self.members[rank as usize].identity);
            if change.before < change.after { (other, Some(identity)) } else { (Some(identity), other) }
        }))
    }

    /// Takes a server out; whether it was there. One merge, linear in the points of the ring.
    pub fn remove(&mut self, identity: Identity) -> bool {
        let place = self.place(identity);
        if let Ok(rank) = place {
            self.take_out(rank);
        }
        place.is_ok()
    }

    /// The same ring with other tags. The points stay where they are, so it costs nothing but the list of servers: a ring
    /// can be built by somebody who does not know the tags yet.
    #[must_use]
    pub fn map_tags<U>(self, mut tag: impl FnMut(&Member<T>) -> U) -> Ring<U> {
        let Self { points_per_weight, members, counts, points } = self;
        let with_tag =
            |member: Member<T>| Member { identity: member.identity, weight: member.weight, tag: tag(&member) };
        Ring { points_per_weight, members: members.into_iter().map(with_tag).collect(), counts, points }
    }

    /// The ring of those servers alone that `count`: whoever picks from the whole ring and passes over the others picks what
    /// this one gives. Linear in the points, without a sort.
    #[must_use]
    pub fn among(&self, count: impl Fn(&Member<T>) -> bool) -> Self
    where
        T: Clone,
    {
        let counts: Vec<bool> = self.members.iter().map(count).collect();
        let mut next = 0..;
        let ranks: Vec<Option<u32>> = counts.iter().map(|counts| if *counts { next.next() } else { None }).collect();
        let left = |rank: &usize| counts[*rank];
        Self {
            points_per_weight: self.points_per_weight,
            members: (0..counts.len()).filter(left).map(|rank| self.members[rank].clone()).collect(),
            counts: (0..counts.len()).filter(left).map(|rank| self.counts[rank]).collect(),
            points: self.points.of_ranks(&ranks),
        }
    }

    /// The server a key belongs to: the owner of the first point whose hash is at or after the key's, around the end.
    /// `None` when the ring is empty. Allocates nothing; some ten nanoseconds at 100 servers.
    #[inline]
    #[must_use]
    pub fn pick(&self, key: Key) -> Option<&Member<T>> {
        let at = self.points.at_or_after(key.hash())?;
        Some(&self.members[self.points.owners()[at] as usize])
    }

    /// The servers in the order in which the key meets them on its way around the ring, each once; the first is
    /// [`pick`](Self::pick)'s. When the first is taken out, all its keys go to the second of each.
    ///
    /// The first few cost no memory from the heap. Going through all of them looks at most points of the ring.
    #[must_use]
    pub fn successors(&self, key: Key) -> Successors<'_, T> {
        Successors::new(self, self.points.at_or_after(key.hash()))
    }

    /// The hash of the point that decides for a key, for explanations. `None` when the ring is empty.
    #[must_use]
    pub fn point_of(&self, key: Key) -> Option<u64> {
        self.points.at_or_after(key.hash()).map(|at| self.hashes()[at])
    }

    /// The exact part of the hash space whose server differs between this ring and another, and from whom to whom.
    /// Linear in the points of both. Rings may differ in the points per weight; tags are not compared.
    #[must_use]
    pub fn diff<U>(&self, other: &Ring<U>) -> Diff {
        Diff::between(self, other)
    }

    /// One number for all that the ring decides: equal digests mean equal picks for every key. Linear in the servers, some
    /// microseconds for a thousand.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let servers = self.members.iter().map(|member| (member.identity, member.weight));
        let partial = self.members.iter().zip(&self.counts);
        let partial = partial.filter(|(member, count)| **count < self.replicas(member.weight));
        Digest::of(self.points_per_weight, servers, partial.map(|(member, count)| (member.identity, *count)))
    }

    /// The exact part of the hash space that a server owns; nothing when it is not in the ring. Linear in the points.
    #[must_use]
    pub fn share(&self, identity: Identity) -> Share {
        let Some(rank) = self.rank(identity) else { return Share::NONE };
        let arcs = self.arcs().filter(|(owner, _)| *owner as usize == rank);
        Share::of_values(arcs.map(|(_, values)| values).sum())
    }

    /// Every server with the exact part of the hash space that it owns, in the order of [`members`](Self::members), in one
    /// walk. The shares of a ring that is not empty add up to [`Share::ALL`].
    #[must_use]
    pub fn shares(&self) -> Vec<(Identity, Share)> {
        let mut counts = vec![0; self.members.len()];
        for (owner, values) in self.arcs() {
            counts[owner as usize] += values;
        }
        let shares = counts.into_iter().map(Share::of_values);
        self.members.iter().map(|member| member.identity).zip(shares).collect()
    }

    /// As [`shares`](Self::shares) when only the servers that `count` are picked and the others passed over, each key going
    /// on to the next of those in the order of [`successors`](Self::successors): the shares of a ring without the others.
    /// They have nothing; when nobody counts, nobody has anything.
    #[must_use]
    pub fn shares_among(&self, count: impl Fn(&Member<T>) -> bool) -> Vec<(Identity, Share)> {
        let counts: Vec<bool> = self.members.iter().map(count).collect();
        let mut values = vec![0; self.members.len()];
        let mut passed = 0;
        for (owner, reach) in self.arcs() {
            passed += reach;
            if counts[owner as usize] {
                values[owner as usize] += std::mem::take(&mut passed);
            }
        }
        // What the last points leave goes around the end to the first that counts.
        if let Some(first) = self.owners().iter().find(|owner| counts[**owner as usize]) {
            values[*first as usize] += passed;
        }
        let shares = values.into_iter().map(Share::of_values);
        self.members.iter().map(|member| member.identity).zip(shares).collect()
    }

    /// The servers, sorted by identity.
    #[must_use]
    pub fn members(&self) -> &[Member<T>] {
        &self.members
    }

    /// The member with this identity.
    #[must_use]
    pub fn member(&self, identity: Identity) -> Option<&Member<T>> {
        self.rank(identity).map(|rank| &self.members[rank])
    }

    /// How many points this server has: `weight * points_per_weight`, fewer when it is there in part, none when it is
    /// not there.
    #[must_use]
    pub fn point_count(&self, identity: Identity) -> u32 {
        self.rank(identity).map_or(0, |rank| self.counts[rank])
    }

    /// How many servers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is no server.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The points as (hash, owner), sorted by hash, equal hashes by identity. Its `len()` is their number.
    pub fn points(&self) -> impl ExactSizeIterator<Item = (u64, &Member<T>)> {
        let owners = self.owners().iter().map(|rank| &self.members[*rank as usize]);
        self.hashes().iter().copied().zip(owners)
    }

    /// The points per weight that the ring was made with.
    #[must_use]
    pub fn points_per_weight(&self) -> NonZeroU32 {
        self.points_per_weight
    }

    /// Bytes on the heap that the ring holds.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let servers = self.members.capacity() * size_of::<Member<T>>() + self.counts.capacity() * size_of::<u32>();
        self.points.heap_bytes() + servers
    }

    /// The hashes of the points, sorted.
    pub(crate) fn hashes(&self) -> &[u64] {
        self.points.hashes()
    }

    /// The ranks of the points' owners, in the order of the hashes.
    pub(crate) fn owners(&self) -> &[u32] {
        self.points.owners()
    }

    /// The place of a server in the sorted list, if it is there.
    pub(crate) fn rank(&self, identity: Identity) -> Option<usize> {
        self.place(identity).ok()
    }

    /// The place of a server in the sorted list, or where it would go.
    fn place(&self, identity: Identity) -> Result<usize, usize> {
        self.members.binary_search_by_key(&identity, |member| member.identity)
    }

    /// What giving a server this weight and so many points means, if the limits allow it.
    fn change(&self, identity: Identity, weight: u32, points: u32) -> Result<Change, RingError> {
        let place = self.place(identity);
        let others = self.members.iter().filter(|member| member.identity != identity);
        let others = others.map(|member| self.replicas(member.weight) as usize).sum();
        checked_total(self.points_per_weight, others, identity, weight)?;
        let before = place.map_or(0, |rank| self.counts[rank]);
        Ok(Change { identity, place, before, after: self.replicas(weight).min(points) })
    }

    /// The number of points that a server of this weight has in full.
    fn replicas(&self, weight: u32) -> u32 {
        replicas(self.points_per_weight, weight)
    }

    fn take_out(&mut self, rank: usize) {
        let member = self.members.remove(rank);
        let count = self.counts.remove(rank);
        let hashes = sorted_hashes(member.identity, 0..count);
        self.points.remove(rank as u32, &hashes);
        self.points.close_rank(rank as u32);
    }

    /// By point: the rank of its owner and the number of hash values from after the point before it to the point itself.
    /// The first point's reach from after the last one, around the end. Of several points with one hash the first has the
    /// values and the others none.
    fn arcs(&self) -> impl Iterator<Item = (u32, u128)> {
        let hashes = self.hashes();
        let around =
            hashes.first().zip(hashes.last()).map(|(first, last)| u128::from(u64::MAX - last) + 1 + u128::from(*first));
        let between = hashes.windows(2).map(|pair| u128::from(pair[1] - pair[0]));
        self.owners().iter().copied().zip(around.into_iter().chain(between))
    }
}

/// What becomes of one server.
struct Change {
    identity: Identity,
    /// Its rank, or the one it would get.
    place: Result<usize, usize>,
    /// How many points it has.
    before: u32,
    /// How many it gets.
    after: u32,
}

/// The hashes of the points that come or go, sorted. It is never both.
enum Changed {
    Added(Vec<u64>),
    Removed(Vec<u64>),
}

impl Change {
    fn points(&self) -> Changed {
        if self.before < self.after {
            Changed::Added(sorted_hashes(self.identity, self.before..self.after))
        } else {
            Changed::Removed(sorted_hashes(self.identity, self.after..self.before))
        }
    }
}

/// Rings are equal when they decide alike: the same points per weight, servers, weights and numbers of points. Tags are not
/// compared.
impl<T, U> PartialEq<Ring<U>> for Ring<T> {
    fn eq(&self, other: &Ring<U>) -> bool {
        self.points_per_weight == other.points_per_weight
            && self.counts == other.counts
            && self.members.len() == other.members.len()
            && self.members.iter().zip(&other.members).all(|(a, b)| (a.identity, a.weight) == (b.identity, b.weight))
    }
}

impl<T> Eq for Ring<T> {}

/// The number of points of a ring that has `others` without this server, if the limits allow it.
fn checked_total(
    points_per_weight: NonZeroU32,
    others: usize,
    identity: Identity,
    weight: u32,
) -> Result<usize, RingError> {
    if weight > MAX_WEIGHT {
        return Err(RingError::Weight { identity, weight });
    }
    let points = others as u64 + u64::from(weight) * u64::from(points_per_weight.get());
    if points > MAX_POINTS as u64 {
        return Err(RingError::Points { identity, points });
    }
    Ok(points as usize)
}

/// The number of points that a server of this weight has in full. The weight is not over the limit of the points.
fn replicas(points_per_weight: NonZeroU32, weight: u32) -> u32 {
    weight * points_per_weight.get()
}

/// The hashes of some of a server's points, sorted.
fn sorted_hashes(identity: Identity, replicas: std::ops::Range<u32>) -> Vec<u64> {
    let mut hashes: Vec<u64> = replicas.map(|replica| identity.point(replica)).collect();
    hashes.sort_unstable();
    hashes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::Move;
    use std::net::SocketAddr;

    fn identity(n: u8) -> Identity {
        Identity::from(SocketAddr::from(([10, 0, 0, n], 80)))
    }

    /// A ring of points made up: no two servers with equal hashes are known.
    fn ring_of(servers: &[u8], pairs: &[(u64, u32)]) -> Ring<()> {
        let members = servers.iter().map(|n| Member { identity: identity(*n), weight: 1, tag: () }).collect();
        let counts = vec![1; servers.len()];
        Ring { points_per_weight: POINTS_PER_WEIGHT, members, counts, points: Points::sorted(pairs.iter().copied()) }
    }

    #[test]
    fn of_equal_hashes_the_lower_identity_owns_the_arc_and_the_others_nothing() {
        let (one, two, three) = (identity(1), identity(2), identity(3));
        let ring = ring_of(&[1, 2, 3], &[(u64::MAX, 2), (20, 2), (10, 1), (u64::MAX, 1), (20, 1), (10, 0)]);
        let owners = [(0, one), (10, one), (11, two), (20, two), (21, two), (u64::MAX, two)];
        for (position, owner) in owners {
            assert_eq!(ring.pick(Key::from(position)).map(|member| member.identity), Some(owner), "{position}");
        }
        let space = u128::from(u64::MAX) + 1;
        let shares: Vec<_> = ring.shares().into_iter().map(|(identity, share)| (identity, share.count())).collect();
        assert_eq!(shares, [(one, 11), (two, space - 11), (three, 0)]);
        for (identity, count) in shares {
            assert_eq!(ring.share(identity).count(), count);
        }
        let met = |key| ring.successors(Key::from(key)).map(|member| member.identity).collect::<Vec<_>>();
        assert_eq!(met(15), [two, three, one]);
        assert_eq!(met(u64::MAX), [two, three, one]);
        assert_eq!(met(0), [one, two, three]);

        // Without the owner of an arc, it goes to the next of the equal ones; without one of the others, nothing moves.
        let move_of = |from, to, count| Move { from: Some(from), to: Some(to), share: Share::of_values(count) };
        let without_one = ring_of(&[2, 3], &[(10, 0), (20, 0), (20, 1), (u64::MAX, 0), (u64::MAX, 1)]);
        assert_eq!(ring.diff(&without_one).moves, [move_of(one, two, 11)]);
        let without_two = ring_of(&[1, 3], &[(10, 0), (20, 1), (u64::MAX, 1)]);
        assert_eq!(ring.diff(&without_two).moves, [move_of(two, three, space - 11)]);
        let without_three = ring_of(&[1, 2], &[(10, 0), (10, 1), (20, 1), (u64::MAX, 1)]);
        assert_eq!(ring.diff(&without_three).moves, []);
    }

    #[test]
    fn a_ring_of_one_hash_belongs_to_the_lowest_identity() {
        for hash in [0, 7, u64::MAX] {
            let ring = ring_of(&[1, 2], &[(hash, 1), (hash, 0), (hash, 0)]);
            assert_eq!(ring.share(identity(1)), Share::ALL);
            assert_eq!(ring.share(identity(2)), Share::NONE);
            assert_eq!(ring.successors(Key::from(9)).count(), 2);
        }
    }

    #[test]
    fn the_last_point_and_the_greatest_weight_fit() {
        let identity = identity(1);
        let total = |others, weight| checked_total(POINTS_PER_WEIGHT, others, identity, weight);
        assert_eq!(total(0, MAX_WEIGHT), Ok(262_144));
        assert_eq!(total(0, MAX_WEIGHT + 1), Err(RingError::Weight { identity, weight: MAX_WEIGHT + 1 }));
        assert_eq!(total(MAX_POINTS - 1024, 1), Ok(MAX_POINTS));
        let points = MAX_POINTS as u64 + 1;
        assert_eq!(total(MAX_POINTS - 1023, 1), Err(RingError::Points { identity, points }));
    }
}
