//! What the ring of a pool is made from, and the ring. Pools, files that are read again and changes beside the loop make
//! theirs of it.

use std::num::NonZeroU32;

use ring::{Member, Ring, RingError};
use wire::control::Refusal;

use super::picker::points;

/// All that decides what a ring is.
#[derive(Debug)]
pub(super) struct Blueprint<T> {
    pub(super) points_per_weight: NonZeroU32,
    /// The servers, and the part of its weight that each has.
    pub(super) members: Vec<(Member<T>, u32)>,
}

impl<T> Blueprint<T> {
    /// The ring.
    ///
    /// # Errors
    /// When there would be too many points.
    pub(super) fn build(self) -> Result<Ring<T>, Refusal> {
        let Self { points_per_weight, members } = self;
        let members = members.into_iter().map(|(member, part)| {
            let points = points(points_per_weight, member.weight, part);
            (member, points)
        });
        Ring::build_partial(points_per_weight, members).map_err(|error| refusal(&error))
    }
}

/// What a ring's error is to whoever asked for the change.
pub(super) fn refusal(error: &RingError) -> Refusal {
    match *error {
        RingError::Points { points, .. } => Refusal::TooManyPoints { points, limit: ring::MAX_POINTS as u64 },
        RingError::Weight { weight, .. } => Refusal::WeightTooLarge { weight },
        RingError::Twice { .. } => unreachable!("the members of a pool are a map"),
    }
}
