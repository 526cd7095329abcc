//! What a change moves: the exact part of the hash space that has one owner in one ring and another in the next. Of two
//! rings it is found by walking both arrays of points side by side; for the change of one server, plan.rs finds it from
//! the points of that server. Nothing is sampled.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::identity::Identity;
use crate::ring::Ring;
use crate::share::Share;

/// What changes its server between two rings; see [`Ring::diff`] and [`Ring::plan`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diff {
    /// The part of the hash space that changes its server: the sum of the moves.
    pub moved: Share,
    /// From whom to whom: each pair once, the largest share first, equal ones by identity.
    pub moves: Vec<Move>,
}

/// A part of the hash space that goes from one server to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// Who had it; `None` when the first ring is empty.
    pub from: Option<Identity>,
    /// Who has it then; `None` when the second ring is empty.
    pub to: Option<Identity>,
    /// How much of the hash space. Never nothing.
    pub share: Share,
}

impl Diff {
    /// From one ring to the other. Linear in the points of both.
    pub(crate) fn between<T, U>(from: &Ring<T>, to: &Ring<U>) -> Self {
        // Owners are compared as ranks in the second ring: who is not in it, and nobody, gets a rank of its own.
        let absent = to.len();
        let nobody = absent + 1;
        let rank_in_to: Vec<usize> =
            from.members().iter().map(|member| to.rank(member.identity).unwrap_or(absent)).collect();

        let mut counts: HashMap<(Option<u32>, Option<u32>), u128> = HashMap::new();
        let (mut old, mut new) = (Walk::new(from), Walk::new(to));
        // The values before this one are dealt with. It ends at 2^64, which is why it is a u128.
        let mut start: u128 = 0;
        while start <= u128::from(u64::MAX) {
            let last = old.arc_end().min(new.arc_end());
            let (had, has) = (old.owner(), new.owner());
            if had.map_or(nobody, |rank| rank_in_to[rank as usize]) != has.map_or(nobody, |rank| rank as usize) {
                *counts.entry((had, has)).or_default() += u128::from(last) + 1 - start;
            }
            start = u128::from(last) + 1;
            old.skip_through(last);
            new.skip_through(last);
        }

        Self::of(
            counts
                .into_iter()
                .map(|((had, has), count)| Move {
                    from: had.map(|rank| from.members()[rank as usize].identity),
                    to: has.map(|rank| to.members()[rank as usize].identity),
                    share: Share::of_values(count),
                })
                .collect(),
        )
    }

    /// Of the change of one server: `arcs` are the numbers of hash values that it exchanges with others, in any order,
    /// each other as often as it likes. `pair` says who gives to whom.
    pub(crate) fn of_one<W: Ord + Copy>(
        mut arcs: Vec<(W, u128)>,
        pair: impl Fn(W) -> (Option<Identity>, Option<Identity>),
    ) -> Self {
        arcs.sort_unstable_by_key(|(other, _)| *other);
        let of_each = arcs.chunk_by(|a, b| a.0 == b.0);
        Self::of(
            of_each
                .map(|arcs| {
                    let (from, to) = pair(arcs[0].0);
                    Move { from, to, share: Share::of_values(arcs.iter().map(|(_, count)| count).sum()) }
                })
                .collect(),
        )
    }

    /// Of moves in any order, each pair once.
    fn of(mut moves: Vec<Move>) -> Self {
        moves.sort_unstable_by_key(|one| (Reverse(one.share), one.from, one.to));
        Self { moved: moves.iter().map(|one| one.share).sum(), moves }
    }
}

/// One ring, walked from the hash 0 to the end of the space.
struct Walk<'a> {
    hashes: &'a [u64],
    owners: &'a [u32],
    /// The first point that is not behind yet.
    at: usize,
}

impl<'a> Walk<'a> {
    fn new<T>(ring: &'a Ring<T>) -> Self {
        Self { hashes: ring.hashes(), owners: ring.owners(), at: 0 }
    }

    /// The last hash that belongs with the current place to one owner: the point's own, or the end of the space.
    fn arc_end(&self) -> u64 {
        self.hashes.get(self.at).copied().unwrap_or(u64::MAX)
    }

    /// The rank of who owns the current place: after the last point it is the first point's owner.
    fn owner(&self) -> Option<u32> {
        self.owners.get(self.at).or(self.owners.first()).copied()
    }

    /// Leaves every point up to this hash behind; of several with one hash only the first ever owned anything.
    fn skip_through(&mut self, hash: u64) {
        while self.at < self.hashes.len() && self.hashes[self.at] <= hash {
            self.at += 1;
        }
    }
}
