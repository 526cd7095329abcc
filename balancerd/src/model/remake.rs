//! A ring that takes longer to make than the loop has time for: what it is made from, and what comes of it. The model
//! gives the one where it would have to make it, somebody with more time makes the other, and the same change is applied
//! with it. See [`Model::apply`](super::Model::apply).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ring::{Diff, Identity, Member, Move, Ring};
use wire::control::Refusal;
use wire::report::MoveReport;

use super::ServerId;
use super::blueprint::{Blueprint, refusal};
use super::picker::points;
use super::server::RAMP_PARTS;

/// Points by which a ring may become another one in the loop: a weight that grows by 4, or a ring of 4 servers of weight 1.
pub(super) const POINTS_IN_THE_LOOP: usize = 4096;

/// Points that a ring has at most which becomes another one in the loop: 64 servers of weight 1. All of them are moved, in
/// a tenth of a millisecond. A million take a millisecond where they are in the caches, and several where they are not or
/// their memory has to grow.
pub(super) const RING_IN_THE_LOOP: usize = 1 << 16;

/// Moves of a pool that a report tells.
pub(super) const MOST_MOVES: usize = 100;

/// Servers of which so many get another part in a ring one after the other; for more of them it is made anew, which takes
/// twenty times as long as one merge.
const MOST_MERGES: usize = 16;

/// What a ring is to be made from.
#[derive(Debug)]
pub(crate) struct Remake {
    /// The ring of now, if the pool has one.
    pub(super) before: Option<Arc<Ring<ServerId>>>,
    pub(super) step: Step,
    /// The servers that are passed over, since they are not up.
    pub(super) passed: BTreeSet<SocketAddr>,
    /// The servers that are in the new ring in part, and their parts.
    pub(super) starting: BTreeMap<SocketAddr, u32>,
    /// Only what it would move is wanted.
    pub(super) dry_run: bool,
}

/// What makes another ring of it.
#[derive(Debug)]
pub(super) enum Step {
    /// A server gets this weight, of which it has its part of those that are starting; 0 takes it out. One that is new has
    /// no id yet.
    Server { address: SocketAddr, weight: u32, id: ServerId },
    /// Servers get other parts of their weights.
    Parts(BTreeMap<SocketAddr, u32>),
    /// Another one takes its place.
    Another(Blueprint<ServerId>),
}

/// A ring that was made, and what it moves.
#[derive(Debug)]
pub(crate) struct Remade {
    /// Nothing in a dry run.
    pub(super) ring: Option<Ring<ServerId>>,
    pub(super) starting: BTreeMap<SocketAddr, u32>,
    moved: f64,
    moves: Vec<MoveReport>,
}

impl Remake {
    /// Makes the ring. Of a million points it takes some tenths of a second where all are other ones, and some milliseconds
    /// where those of a server are.
    ///
    /// # Errors
    /// When there would be too many points, which the model has checked before.
    pub(crate) fn make(self) -> Result<Remade, Refusal> {
        let Self { before, step, passed, starting, dry_run } = self;
        let ((moved, moves), ring) = match (step, before) {
            (Step::Server { address, weight, id }, Some(before)) => {
                let moves = moves_of_one(&before, address, weight, &passed)?;
                let part = starting.get(&address).copied().unwrap_or(RAMP_PARTS);
                (moves, if dry_run { None } else { Some(with(&before, address, weight, part, id)?) })
            }
            (Step::Parts(parts), Some(before)) => (Moves::default(), Some(with_parts(&before, &parts)?)),
            (Step::Server { .. } | Step::Parts(_), None) => unreachable!("a server changes a ring that is there"),
            (Step::Another(after), before) => {
                let after = after.build()?;
                (before.map(|before| moves_between(&before, &after, &passed)).unwrap_or_default(), Some(after))
            }
        };
        let ring = ring.filter(|_| !dry_run);
        Ok(Remade { ring, starting, moved, moves })
    }
}

/// The ring where a server has this part of a weight.
fn with(
    before: &Ring<ServerId>,
    address: SocketAddr,
    weight: u32,
    part: u32,
    id: ServerId,
) -> Result<Ring<ServerId>, Refusal> {
    let mut ring = before.clone();
    let points = points(ring.points_per_weight(), weight, part);
    ring.set_partial(address.into(), weight, points, id).map_err(|error| refusal(&error))?;
    Ok(ring)
}

/// The ring where servers have these parts of their weights, and the others what they have.
fn with_parts(before: &Ring<ServerId>, parts: &BTreeMap<SocketAddr, u32>) -> Result<Ring<ServerId>, Refusal> {
    let per_weight = before.points_per_weight();
    let points_of = |member: &Member<ServerId>| match parts.get(&member.identity.addr()) {
        Some(part) => points(per_weight, member.weight, *part),
        None => before.point_count(member.identity),
    };
    if parts.len() > MOST_MERGES {
        let members = before.members().iter().map(|member| (*member, points_of(member)));
        return Ring::build_partial(per_weight, members).map_err(|error| refusal(&error));
    }
    let mut ring = before.clone();
    for member in parts.keys().filter_map(|address| before.member(Identity::from(*address))) {
        let set = ring.set_partial(member.identity, member.weight, points_of(member), member.tag);
        set.map_err(|error| refusal(&error))?;
    }
    Ok(ring)
}

impl Remade {
    /// What it moves, once.
    pub(super) fn take_moves(&mut self) -> Moves {
        (self.moved, std::mem::take(&mut self.moves))
    }
}

/// The part of all keys that moves, and from whom to whom.
pub(super) type Moves = (f64, Vec<MoveReport>);

/// What moves until a server has all of a weight, or is gone, while those who are `passed` over are. One that is among them
/// has nobody.
///
/// # Errors
/// When there would be too many points.
pub(super) fn moves_of_one<T: Clone>(
    ring: &Ring<T>,
    address: SocketAddr,
    weight: u32,
    passed: &BTreeSet<SocketAddr>,
) -> Result<Moves, Refusal> {
    let plan = |ring: &Ring<T>| ring.plan(address.into(), weight).map_err(|error| refusal(&error));
    if passed.is_empty() {
        return plan(ring).map(|diff| told(&diff));
    }
    // All points count for the limit.
    plan(ring)?;
    if passed.contains(&address) {
        return Ok(Moves::default());
    }
    plan(&ring.among(|member| !passed.contains(&member.identity.addr()))).map(|diff| told(&diff))
}

/// What moves between two rings, while those who are `passed` over are.
pub(super) fn moves_between<T: Clone, U: Clone>(
    one: &Ring<T>,
    other: &Ring<U>,
    passed: &BTreeSet<SocketAddr>,
) -> Moves {
    if passed.is_empty() {
        return told(&one.diff(other));
    }
    let one = one.among(|member| !passed.contains(&member.identity.addr()));
    told(&one.diff(&other.among(|member| !passed.contains(&member.identity.addr()))))
}

/// A difference as reports have it.
fn told(diff: &Diff) -> Moves {
    let one = |step: &Move| MoveReport {
        from: step.from.map(|identity| identity.addr()),
        to: step.to.map(|identity| identity.addr()),
        share: step.share.fraction(),
    };
    (diff.moved.fraction(), diff.moves.iter().take(MOST_MOVES).map(one).collect())
}

#[cfg(test)]
mod tests;
