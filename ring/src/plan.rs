//! What the points of one server would move if they came or went, found from their own neighbours: no ring is copied and
//! no array walked. The ring asks, and makes a `Diff` of the answer.
//!
//! A point owns the hash values from after the point before it to its own. A point that comes therefore takes its values
//! from the first point after it, and one that goes leaves them to the first after it that stays. What needs care are
//! points side by side that come or go together, equal hashes, and the two ends of the array.

use crate::point::Points;

/// A number of hash values, and who gives them to a point that comes or gets those of one that goes: the rank of another
/// server, `None` when there is no other point. The number is never 0.
type Arc = (Option<u32>, u128);

/// From whom points would take their values. Their hashes are sorted. Their owner is the rank that it has, or else the
/// one that it would get; the ranks in the answer are those before it gets it.
pub(crate) fn of_adding(points: &Points, place: Result<usize, usize>, hashes: &[u64]) -> Vec<Arc> {
    let (old, owners) = (points.hashes(), points.owners());
    let last = hashes.last().max(old.last()).copied().unwrap_or_default();
    let (Ok(owner) | Err(owner)) = place;
    let own = place.ok().map(|rank| rank as u32);
    let mut arcs = Vec::with_capacity(hashes.len());
    for (nth, gap) in points.gaps(owner as u32, hashes).into_iter().enumerate() {
        let from = owners.get(gap).or(owners.first()).copied();
        // The point before it will be an old one or another new one.
        let (old, new) = (gap.checked_sub(1).map(|at| old[at]), nth.checked_sub(1).map(|nth| hashes[nth]));
        let count = reach(old.max(new), hashes[nth], last);
        if count > 0 && (from.is_none() || from != own) {
            arcs.push((from, count));
        }
    }
    arcs
}

/// To whom points would leave their values. They are there, belong to the owner of this rank, and their hashes are sorted.
pub(crate) fn of_removing(points: &Points, owner: u32, hashes: &[u64]) -> Vec<Arc> {
    let (all, owners) = (points.hashes(), points.owners());
    let last = all.last().copied().unwrap_or_default();
    let positions = points.positions(owner, hashes);
    // What follows the end of the array is the first point that stays.
    let first_to_stay = positions.iter().zip(0..).take_while(|(position, nth)| *position == nth).count();
    let mut next = all.len();
    let mut heir = owners.get(first_to_stay).copied();
    let mut arcs = Vec::with_capacity(positions.len());
    for &at in positions.iter().rev() {
        // Side by side with the one after it that goes as well: both leave to the same.
        if at + 1 != next {
            heir = Some(owners[at + 1]);
        }
        next = at;
        let count = reach(at.checked_sub(1).map(|at| all[at]), all[at], last);
        if count > 0 && heir != Some(owner) {
            arcs.push((heir, count));
        }
    }
    arcs
}

/// The number of hash values of a point: from after the hash before it, if there is one, or from after the last one around
/// the end.
fn reach(before: Option<u64>, hash: u64, last: u64) -> u128 {
    match before {
        Some(before) => u128::from(hash - before),
        None => u128::from(u64::MAX - last) + 1 + u128::from(hash),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Few values, so that equal hashes, neighbours and both ends of the space come up in every combination.
    const HASHES: [u64; 4] = [0, 1, 9, u64::MAX];

    /// Who owns the hash values up to and with each of `HASHES`, by the definition: the first point at or after.
    fn owners(points: &[(u64, u32)]) -> [Option<u32>; 4] {
        HASHES.map(|hash| {
            let at_or_after = points.iter().filter(|point| point.0 >= hash).min();
            at_or_after.or_else(|| points.iter().min()).map(|point| point.1)
        })
    }

    /// What the points of owner 1 exchange with the others, by the definition.
    fn exchanged(with: &[(u64, u32)], without: &[(u64, u32)]) -> BTreeMap<Option<u32>, u128> {
        // The values that end with each of the hashes; what follows the last one, nothing, is in none.
        let counts = [1, 1, 8, u128::from(u64::MAX) - 9];
        let mut expected = BTreeMap::new();
        for ((has, other), count) in owners(with).into_iter().zip(owners(without)).zip(counts) {
            if has != other {
                assert_eq!(has, Some(1));
                *expected.entry(other).or_default() += count;
            }
        }
        expected
    }

    fn summed(arcs: Vec<Arc>) -> BTreeMap<Option<u32>, u128> {
        let mut sums = BTreeMap::new();
        for (other, count) in arcs {
            assert_ne!(count, 0);
            *sums.entry(other).or_default() += count;
        }
        sums
    }

    /// Every multiset of at most two of each hash, sorted.
    fn multisets() -> Vec<Vec<u64>> {
        let choose = |mut n: usize| {
            let mut hashes = Vec::new();
            for hash in HASHES {
                hashes.extend(std::iter::repeat_n(hash, n % 3));
                n /= 3;
            }
            hashes
        };
        (0..81).map(choose).collect()
    }

    #[test]
    fn every_small_change_is_what_the_definition_says() {
        let owned = |owner: u32, hashes: &[u64]| hashes.iter().map(|hash| (*hash, owner)).collect::<Vec<_>>();
        // The others have one of each hash or none: owner 0 before owner 1 in ties, owner 2 after it.
        let others: Vec<Vec<(u64, u32)>> = (0..81)
            .map(|mut n: usize| {
                let mut others = Vec::new();
                for hash in HASHES {
                    others.extend([None, Some((hash, 0)), Some((hash, 2))][n % 3]);
                    n /= 3;
                }
                others
            })
            .collect();
        for others in &others {
            for kept in multisets().into_iter().step_by(7) {
                for changed in multisets() {
                    let without = [owned(1, &kept), others.clone()].concat();
                    let with = [owned(1, &changed), without.clone()].concat();
                    let expected = exchanged(&with, &without);
                    let added = of_adding(&Points::sorted(without.iter().copied()), Ok(1), &changed);
                    assert_eq!(summed(added), expected, "{without:?} and {changed:?}");
                    let removed = of_removing(&Points::sorted(with.into_iter()), 1, &changed);
                    assert_eq!(summed(removed), expected, "{without:?} and {changed:?}");
                    // As a new server: the ranks from its own on are not moved up yet.
                    if kept.is_empty() {
                        let before = without.iter().map(|(hash, owner)| (*hash, owner / 2));
                        let added = of_adding(&Points::sorted(before), Err(1), &changed);
                        let added = added.into_iter().map(|(other, count)| (other.map(|rank| rank * 2), count));
                        assert_eq!(summed(added.collect()), expected, "new: {without:?} and {changed:?}");
                    }
                }
            }
        }
    }
}
