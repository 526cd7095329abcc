//! Why a ring refused a change. The ring is then as it was before.

use std::fmt;

use crate::identity::Identity;
use crate::ring::{MAX_POINTS, MAX_WEIGHT};

/// Why a ring refused a server. Each names the server that was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingError {
    /// The weight is over [`MAX_WEIGHT`].
    Weight {
        /// The server.
        identity: Identity,
        /// The weight asked for.
        weight: u32,
    },
    /// With this server the ring would have more than [`MAX_POINTS`] points.
    Points {
        /// The server.
        identity: Identity,
        /// The number of points the ring would have.
        points: u64,
    },
    /// The list to build from has this server twice: which of the weights holds would depend on the order.
    Twice {
        /// The server.
        identity: Identity,
    },
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weight { identity, weight } => {
                write!(f, "server {identity}: weight {weight} is over the limit of {MAX_WEIGHT}")
            }
            Self::Points { identity, points } => write!(
                f,
                "server {identity}: the ring would have {points} points, over the limit of {MAX_POINTS}; \
                 use smaller weights (only their ratios count) or fewer points per weight"
            ),
            Self::Twice { identity } => write!(f, "server {identity} is there twice"),
        }
    }
}

impl std::error::Error for RingError {}
