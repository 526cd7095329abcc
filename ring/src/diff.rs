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

        let mut counts = Counts::new(from.len(), to.len());
        let (mut old, mut new) = (Walk::new(from), Walk::new(to));
        // The values before this one are dealt with. It ends at 2^64, which is why it is a u128.
        let mut start: u128 = 0;
        while start <= u128::from(u64::MAX) {
            let last = old.arc_end().min(new.arc_end());
            let (had, has) = (old.owner(), new.owner());
            if had.map_or(nobody, |rank| rank_in_to[rank as usize]) != has.map_or(nobody, |rank| rank as usize) {
                counts.add((had, has), u128::from(last) + 1 - start);
            }
            start = u128::from(last) + 1;
            old.skip_through(last);
            new.skip_through(last);
        }

        Self::of(
            counts
                .into_pairs()
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

/// Who had something and who has it then, as ranks in the two rings.
type Pair = (Option<u32>, Option<u32>);

/// Pairs of servers that a table has room for: 64 MiB of counts. Beyond that most pairs exchange nothing.
const MOST_CELLS: usize = 1 << 22;

/// How many hash values each pair of servers exchanges. A table where it is not too large: two rings without a common
/// server have nearly every pair, and to hash each of their points took longer than to build both.
enum Counts {
    Table { cells: Vec<u128>, rows: usize, columns: usize },
    Sparse(HashMap<Pair, u128>),
}

impl Counts {
    fn new(from: usize, to: usize) -> Self {
        // The last of each is nobody.
        let (rows, columns) = (from + 1, to + 1);
        match rows.checked_mul(columns) {
            Some(cells) if cells <= MOST_CELLS => Self::Table { cells: vec![0; cells], rows, columns },
            _ => Self::Sparse(HashMap::new()),
        }
    }

    fn add(&mut self, pair: Pair, count: u128) {
        match self {
            Self::Table { cells, rows, columns } => {
                let row = pair.0.map_or(*rows - 1, |rank| rank as usize);
                let column = pair.1.map_or(*columns - 1, |rank| rank as usize);
                cells[row * *columns + column] += count;
            }
            Self::Sparse(counts) => *counts.entry(pair).or_default() += count,
        }
    }

    /// The pairs that exchange something.
    fn into_pairs(self) -> Vec<(Pair, u128)> {
        match self {
            Self::Table { cells, rows, columns } => {
                let rank = |at: usize, of: usize| (at + 1 < of).then_some(at as u32);
                let pairs = cells.into_iter().enumerate().filter(|(_, count)| *count > 0);
                pairs.map(|(at, count)| ((rank(at / columns, rows), rank(at % columns, columns)), count)).collect()
            }
            Self::Sparse(counts) => counts.into_iter().collect(),
        }
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
