//! A ring that takes longer to make than the loop has time for: what it is made from, and what comes of it. The model
//! gives the one where it would have to make it, somebody with more time makes the other, and the same change is applied
//! with it. See [`Model::apply`](super::Model::apply).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;

use ring::{Diff, Identity, Member, Ring};
use wire::control::Refusal;
use wire::report::MoveReport;

use super::picker::points;
use super::pool::refusal;
use super::reload::{MOST_MOVES, move_report};
use super::server::RAMP_PARTS;

/// Points by which a ring may become another one in the loop, if `Model` is not told otherwise. So many cost it 2 ms in a
/// ring of a million points: the ring of 8 servers of weight 1, or a weight that grows by as much.
pub(super) const POINTS_IN_THE_LOOP: usize = 8192;

/// What a ring is to be made from.
#[derive(Debug)]
pub(crate) struct Remake {
    /// The ring of now, if the pool has one.
    pub(super) before: Option<Blueprint>,
    pub(super) step: Step,
    /// The servers that are in the new ring in part, and their parts.
    pub(super) starting: BTreeMap<SocketAddr, u32>,
    /// Only what it would move is wanted.
    pub(super) dry_run: bool,
}

/// What makes another ring of it.
#[derive(Debug)]
pub(super) enum Step {
    /// A server gets this weight, of which it has its part of those that are starting; 0 takes it out.
    Server(SocketAddr, u32),
    /// Another one takes its place.
    Another(Blueprint),
}

/// All that decides what a ring is.
#[derive(Debug)]
pub(super) struct Blueprint {
    pub(super) points_per_weight: NonZeroU32,
    /// The servers, and the part of its weight that each has.
    pub(super) members: Vec<(Member<()>, u32)>,
}

/// A ring that was made, and what it moves.
#[derive(Debug)]
pub(crate) struct Remade {
    /// Nothing in a dry run.
    pub(super) ring: Option<Ring<()>>,
    pub(super) starting: BTreeMap<SocketAddr, u32>,
    moved: f64,
    moves: Vec<MoveReport>,
}

impl Remake {
    /// Makes the ring. Of a million points it takes some tenths of a second.
    ///
    /// # Errors
    /// When there would be too many points, which the model has checked before.
    pub(crate) fn make(self) -> Result<Remade, Refusal> {
        let Self { before, step, starting, dry_run } = self;
        let before = before.map(Blueprint::build).transpose()?;
        let (diff, ring) = match (step, before) {
            (Step::Server(address, weight), Some(mut ring)) => {
                let identity = Identity::from(address);
                let part = starting.get(&address).copied().unwrap_or(RAMP_PARTS);
                // What is told is what moves until the server has all of its weight.
                let diff = ring.plan(identity, weight).map_err(|error| refusal(&error))?;
                let points = points(ring.points_per_weight(), weight, part);
                ring.set_partial(identity, weight, points, ()).map_err(|error| refusal(&error))?;
                (Some(diff), ring)
            }
            (Step::Server(..), None) => unreachable!("a server changes a ring that is there"),
            (Step::Another(after), before) => {
                let after = after.build()?;
                (before.map(|before| before.diff(&after)), after)
            }
        };
        let (moved, moves) = diff.as_ref().map(told).unwrap_or_default();
        Ok(Remade { ring: (!dry_run).then_some(ring), starting, moved, moves })
    }
}

impl Remade {
    /// What it moves, once.
    pub(super) fn take_moves(&mut self) -> (f64, Vec<MoveReport>) {
        (self.moved, std::mem::take(&mut self.moves))
    }
}

impl Blueprint {
    fn build(self) -> Result<Ring<()>, Refusal> {
        let Self { points_per_weight, members } = self;
        let members = members.into_iter().map(|(member, part)| {
            let points = points(points_per_weight, member.weight, part);
            (member, points)
        });
        Ring::build_partial(points_per_weight, members).map_err(|error| refusal(&error))
    }
}

/// A difference as reports have it.
pub(super) fn told(diff: &Diff) -> (f64, Vec<MoveReport>) {
    (diff.moved.fraction(), diff.moves.iter().take(MOST_MOVES).map(move_report).collect())
}

#[cfg(test)]
mod tests;
