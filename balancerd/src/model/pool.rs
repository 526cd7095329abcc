//! A pool: a named set of servers and the ring of those that are eligible.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::num::NonZeroU32;

use ring::{Member, Ring, RingError};
use slotmap::SlotMap;
use wire::control::Refusal;

use super::ServerId;
use super::server::Server;

/// A pool.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) name: String,
    /// Every server, the leaving ones too.
    pub(super) members: BTreeMap<SocketAddr, ServerId>,
    /// The eligible ones.
    pub(super) ring: Ring<ServerId>,
}

impl Pool {
    pub(super) fn new(name: &str, points_per_weight: NonZeroU32) -> Self {
        Self { name: name.to_owned(), members: BTreeMap::new(), ring: Ring::new(points_per_weight) }
    }

    /// Whether the ring has room for a further server of this weight.
    pub(super) fn check_room(&self, weight: u32) -> Result<(), Refusal> {
        let points =
            self.ring.points().len() as u64 + u64::from(weight) * u64::from(self.ring.points_per_weight().get());
        let limit = ring::MAX_POINTS as u64;
        if points > limit { Err(Refusal::TooManyPoints { points, limit }) } else { Ok(()) }
    }

    /// Makes the ring anew from the members, with one sort: for many servers at once.
    pub(super) fn rebuild(&mut self, servers: &SlotMap<ServerId, Server>) -> Result<(), Refusal> {
        let eligible = self.members.values().filter(|id| servers[**id].is_eligible()).map(|id| Member {
            identity: servers[*id].address.into(),
            weight: servers[*id].weight,
            tag: *id,
        });
        self.ring = Ring::build(self.ring.points_per_weight(), eligible).map_err(|error| refusal(&error))?;
        Ok(())
    }

    /// The share of the ring that each eligible server owns.
    pub(super) fn shares(&self) -> HashMap<SocketAddr, f64> {
        self.ring.shares().into_iter().map(|(identity, share)| (identity.addr(), share.fraction())).collect()
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
