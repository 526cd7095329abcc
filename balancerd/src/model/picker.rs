//! What a pool picks with: its policy over the servers that are eligible, and how much they carry.

use std::net::SocketAddr;
use std::num::NonZeroU32;

use ring::{Key, Ring, RingError};
use slotmap::SparseSecondaryMap;
use wire::settings::{Policy, PoolSettings};

use super::ServerId;
use super::policy::{LeastConnections, RoundRobin, TwoChoices, WeightedRandom};
use super::server::RAMP_PARTS;

/// A policy and the servers that it picks among.
#[derive(Debug)]
pub(super) struct Picker {
    kind: Kind,
    /// Who is in it, and how. Sparse: a pool has few of all servers.
    standings: SparseSecondaryMap<ServerId, Standing>,
    /// The sum of the scaled weights.
    weight: u64,
    /// The sum of the sessions.
    active: u64,
}

#[derive(Debug)]
enum Kind {
    Ring(Ring<ServerId>),
    RoundRobin(RoundRobin<ServerId>),
    Least(LeastConnections<ServerId>),
    TwoChoices(TwoChoices<ServerId>),
    Random(WeightedRandom<ServerId>),
}

/// How an eligible server takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// Its whole weight.
    pub(super) weight: u32,
    /// The part of it that it has now, of [`RAMP_PARTS`].
    pub(super) part: u32,
    /// Sessions alive.
    pub(super) active: u64,
}

impl Standing {
    fn scaled(self) -> u32 {
        self.weight * self.part
    }
}

impl Picker {
    /// One without servers.
    pub(super) fn new(settings: &PoolSettings) -> Self {
        let kind = match settings.policy {
            Policy::ConsistentHash => Kind::Ring(Ring::new(settings.points_per_weight)),
            Policy::RoundRobin => Kind::RoundRobin(RoundRobin::new()),
            Policy::LeastConnections => Kind::Least(LeastConnections::new()),
            Policy::RandomTwoChoices => Kind::TwoChoices(TwoChoices::new()),
            Policy::WeightedRandom => Kind::Random(WeightedRandom::new()),
        };
        Self { kind, standings: SparseSecondaryMap::new(), weight: 0, active: 0 }
    }

    /// One of many servers at once. `ring` has them all, as their standings say, if it is to be one.
    pub(super) fn of(
        settings: &PoolSettings,
        ring: Option<Ring<ServerId>>,
        servers: impl Iterator<Item = (SocketAddr, ServerId, Standing)>,
    ) -> Result<Self, RingError> {
        let mut picker = Self::new(settings);
        let has_ring = ring.is_some();
        if let Some(ring) = ring {
            picker.kind = Kind::Ring(ring);
        }
        for (address, id, standing) in servers {
            if has_ring {
                picker.note(id, Some(standing));
            } else {
                picker.set(address, id, Some(standing))?;
            }
        }
        Ok(picker)
    }

    /// Lets a server take part so, or no more.
    pub(super) fn set(
        &mut self,
        address: SocketAddr,
        id: ServerId,
        standing: Option<Standing>,
    ) -> Result<(), RingError> {
        let before = self.standings.get(id).copied();
        let unchanged = |now: Standing| before.is_some_and(|was| (was.weight, was.part) == (now.weight, now.part));
        match (&mut self.kind, standing) {
            (_, Some(standing)) if unchanged(standing) => {}
            (_, None) if before.is_none() => {}
            (Kind::Ring(ring), Some(standing)) => {
                ring.set_partial(
                    address.into(),
                    standing.weight,
                    points(ring.points_per_weight(), standing.weight, standing.part),
                    id,
                )?;
            }
            (Kind::Ring(ring), None) => drop(ring.remove(address.into())),
            (Kind::RoundRobin(turns), Some(standing)) => turns.set(id, address, standing.scaled()),
            (Kind::RoundRobin(turns), None) => turns.remove(id),
            (Kind::Least(heap), Some(standing)) => heap.set(id, standing.scaled(), standing.active),
            (Kind::Least(heap), None) => heap.remove(id),
            (Kind::TwoChoices(choices), Some(standing)) => choices.set(id, standing.scaled()),
            (Kind::TwoChoices(choices), None) => choices.remove(id),
            (Kind::Random(random), Some(standing)) => random.set(id, standing.scaled()),
            (Kind::Random(random), None) => random.remove(id),
        }
        self.note(id, standing);
        Ok(())
    }

    fn note(&mut self, id: ServerId, standing: Option<Standing>) {
        let before = match standing {
            Some(standing) => self.standings.insert(id, standing),
            None => self.standings.remove(id),
        };
        let sums = |standing: Option<Standing>| {
            standing.map_or((0, 0), |standing| (u64::from(standing.scaled()), standing.active))
        };
        let ((old_weight, old_active), (weight, active)) = (sums(before), sums(standing));
        self.weight = self.weight + weight - old_weight;
        self.active = self.active + active - old_active;
    }

    /// A server has another number of sessions now.
    pub(super) fn on_load(&mut self, id: ServerId, active: u64) {
        let Some(standing) = self.standings.get_mut(id) else { return };
        self.active = self.active + active - standing.active;
        standing.active = active;
        if let Kind::Least(heap) = &mut self.kind {
            heap.sessions(id, active);
        }
    }

    /// A server that `may` be picked; `load` is how many sessions one has.
    pub(super) fn pick(
        &mut self,
        key: Key,
        rng: &mut fastrand::Rng,
        load: impl Fn(ServerId) -> u64,
        mut may: impl FnMut(ServerId) -> bool,
    ) -> Option<ServerId> {
        match &mut self.kind {
            Kind::Ring(ring) => {
                let first = ring.pick(key)?.tag;
                if may(first) {
                    return Some(first);
                }
                ring.successors(key).skip(1).map(|member| member.tag).find(|id| may(*id))
            }
            Kind::RoundRobin(turns) => turns.pick(may),
            Kind::Least(heap) => heap.pick(may),
            Kind::TwoChoices(choices) => choices.pick(rng, load, may),
            Kind::Random(random) => random.pick(rng, may),
        }
    }

    /// The ring, for whoever has more time to take it apart than the loop.
    pub(super) fn into_ring(self) -> Option<Ring<ServerId>> {
        if let Kind::Ring(ring) = self.kind { Some(ring) } else { None }
    }

    /// Those that would be picked from now on, one after the other, if each could not take the client; for a policy that
    /// draws, all that it draws from.
    pub(super) fn upcoming(&self, key: Key) -> Vec<ServerId> {
        match &self.kind {
            Kind::Ring(ring) => ring.successors(key).map(|member| member.tag).collect(),
            Kind::RoundRobin(turns) => turns.upcoming(self.standings.len()),
            Kind::Least(heap) => heap.upcoming(self.standings.len()),
            Kind::TwoChoices(_) | Kind::Random(_) => self.standings.keys().collect(),
        }
    }

    /// Whether a pick is a matter of luck.
    pub(super) fn draws(&self) -> bool {
        matches!(self.kind, Kind::TwoChoices(_) | Kind::Random(_)) && self.standings.len() > 1
    }

    /// The ring, if the policy has one.
    pub(super) fn ring(&self) -> Option<&Ring<ServerId>> {
        if let Kind::Ring(ring) = &self.kind { Some(ring) } else { None }
    }

    /// Sessions of all servers in it.
    pub(super) fn active(&self) -> u64 {
        self.active
    }

    /// The sum of the scaled weights of all servers in it.
    pub(super) fn weight(&self) -> u64 {
        self.weight
    }

    /// The scaled weight of one of them.
    pub(super) fn weight_of(&self, id: ServerId) -> u64 {
        self.standings.get(id).map_or(0, |standing| u64::from(standing.scaled()))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.standings.len()
    }
}

/// Points on the ring that a part of a weight, of [`RAMP_PARTS`], is worth; at least one.
pub(super) fn points(points_per_weight: NonZeroU32, weight: u32, part: u32) -> u32 {
    let all = u64::from(weight) * u64::from(points_per_weight.get());
    let points = (all * u64::from(part)).div_ceil(u64::from(RAMP_PARTS));
    u32::try_from(points).unwrap_or(u32::MAX)
}
