//! What a pool picks with: its policy over the servers that are eligible, and how much they carry.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;

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
    standings: SparseSecondaryMap<ServerId, (SocketAddr, Standing)>,
    /// How many of them are up.
    up: usize,
    /// Those that are not up are picked like the others.
    all: bool,
    /// The sum of the scaled weights of those that are picked.
    weight: u64,
    /// The sum of their sessions.
    active: u64,
    /// How many of them have room for another session.
    with_room: usize,
}

#[derive(Debug)]
enum Kind {
    /// Shared with whoever makes another one of it beside the loop.
    Ring(Arc<Ring<ServerId>>),
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
    /// Sessions that it may have.
    pub(super) limit: Option<NonZeroU64>,
    /// Whether it is up. One that is not has its place on a ring, where it is passed over, so that it finds its clients
    /// again without a change of the ring; with another policy it has none.
    pub(super) up: bool,
}

impl Standing {
    fn has_room(self) -> bool {
        self.limit.is_none_or(|limit| self.active < limit.get())
    }

    fn scaled(self) -> u32 {
        self.weight * self.part
    }
}

impl Picker {
    /// One without servers.
    pub(super) fn new(settings: &PoolSettings) -> Self {
        let kind = match settings.policy {
            Policy::ConsistentHash => Kind::Ring(Arc::new(Ring::new(settings.points_per_weight))),
            Policy::RoundRobin => Kind::RoundRobin(RoundRobin::new()),
            Policy::LeastConnections => Kind::Least(LeastConnections::new()),
            Policy::RandomTwoChoices => Kind::TwoChoices(TwoChoices::new()),
            Policy::WeightedRandom => Kind::Random(WeightedRandom::new()),
        };
        Self { kind, standings: SparseSecondaryMap::new(), up: 0, all: false, weight: 0, active: 0, with_room: 0 }
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
            picker.kind = Kind::Ring(Arc::new(ring));
        }
        for (address, id, standing) in servers {
            if has_ring {
                picker.note(address, id, Some(standing));
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
        if let Kind::Ring(ring) = &mut self.kind {
            let before = self.standings.get(id).map(|(_, before)| (before.weight, before.part));
            match standing {
                Some(now) if before == Some((now.weight, now.part)) => {}
                // Somebody may have made the ring with it already.
                Some(now) if has(ring, address, id, now) => {}
                Some(now) => {
                    let points = points(ring.points_per_weight(), now.weight, now.part);
                    Arc::make_mut(ring).set_partial(address.into(), now.weight, points, id)?;
                }
                None if before.is_some() && ring.member(address.into()).is_some() => {
                    Arc::make_mut(ring).remove(address.into());
                }
                None => {}
            }
        } else {
            let picked = |standing: Option<Standing>| standing.filter(|standing| standing.up || self.all);
            let before = picked(self.standings.get(id).map(|(_, before)| *before));
            let now = picked(standing);
            let decides = |standing: Standing| (standing.scaled(), standing.limit);
            if before.map(decides) != now.map(decides) {
                self.place(address, id, now);
            }
        }
        self.note(address, id, standing);
        Ok(())
    }

    /// Puts a server where it belongs in a policy that has no ring.
    fn place(&mut self, address: SocketAddr, id: ServerId, standing: Option<Standing>) {
        match (&mut self.kind, standing) {
            (Kind::Ring(_), _) => {}
            (Kind::RoundRobin(turns), Some(standing)) => turns.set(id, address, standing.scaled()),
            (Kind::RoundRobin(turns), None) => turns.remove(id),
            (Kind::Least(heap), Some(standing)) => heap.set(id, standing.scaled(), standing.limit, standing.active),
            (Kind::Least(heap), None) => heap.remove(id),
            (Kind::TwoChoices(choices), Some(standing)) => choices.set(id, standing.scaled()),
            (Kind::TwoChoices(choices), None) => choices.remove(id),
            (Kind::Random(random), Some(standing)) => random.set(id, standing.scaled()),
            (Kind::Random(random), None) => random.remove(id),
        }
    }

    fn note(&mut self, address: SocketAddr, id: ServerId, standing: Option<Standing>) {
        let before = match standing {
            Some(standing) => self.standings.insert(id, (address, standing)),
            None => self.standings.remove(id),
        };
        let sums = |standing: Option<Standing>| {
            let its = standing.filter(|standing| standing.up || self.all);
            its.map_or((0, 0, 0), |standing| {
                (u64::from(standing.scaled()), standing.active, usize::from(standing.has_room()))
            })
        };
        let before = before.map(|(_, before)| before);
        let ((old_weight, old_active, had_room), (weight, active, has_room)) = (sums(before), sums(standing));
        self.weight = self.weight + weight - old_weight;
        self.active = self.active + active - old_active;
        self.with_room = self.with_room + has_room - had_room;
        let up = |standing: Option<Standing>| usize::from(standing.is_some_and(|standing| standing.up));
        self.up = self.up + up(standing) - up(before);
    }

    /// Lets those that are not up be picked like the others, or not.
    pub(super) fn use_all(&mut self, all: bool) {
        if self.all == all {
            return;
        }
        self.all = all;
        (self.weight, self.active, self.with_room) = (0, 0, 0);
        let standings: Vec<_> =
            self.standings.iter().map(|(id, (address, standing))| (id, *address, *standing)).collect();
        for (id, address, standing) in standings {
            let its = Some(standing).filter(|standing| standing.up || all);
            self.place(address, id, its);
            self.weight += its.map_or(0, |its| u64::from(its.scaled()));
            self.active += its.map_or(0, |its| its.active);
            self.with_room += usize::from(its.is_some_and(Standing::has_room));
        }
    }

    /// Whether one that is not up is picked, too.
    pub(super) fn uses_all(&self) -> bool {
        self.all
    }

    /// How many of them are up.
    pub(super) fn up(&self) -> usize {
        self.up
    }

    /// How many of them are picked.
    pub(super) fn picked(&self) -> usize {
        if self.all { self.standings.len() } else { self.up }
    }

    /// A server has another number of sessions now.
    pub(super) fn on_load(&mut self, id: ServerId, active: u64) {
        let Some((_, standing)) = self.standings.get_mut(id) else { return };
        let had_room = standing.has_room();
        let before = std::mem::replace(&mut standing.active, active);
        if standing.up || self.all {
            self.active = self.active + active - before;
            self.with_room = self.with_room + usize::from(standing.has_room()) - usize::from(had_room);
            if let Kind::Least(heap) = &mut self.kind {
                heap.sessions(id, active);
            }
        }
    }

    /// A server that `may` be picked; `load` is how many sessions one has. Where all that are picked are full, one of them
    /// is asked, and none picked: a look at each would cost as much as the pool is large, for every client that comes.
    pub(super) fn pick(
        &mut self,
        key: Key,
        rng: &mut fastrand::Rng,
        load: impl Fn(ServerId) -> u64,
        mut may: impl FnMut(ServerId) -> bool,
    ) -> Option<ServerId> {
        if self.with_room == 0 {
            self.ask_one(key, rng, may);
            return None;
        }
        match &mut self.kind {
            Kind::Ring(ring) => {
                let first = ring.pick(key)?.tag;
                if may(first) {
                    return Some(first);
                }
                ring.successors(key).skip(1).map(|member| member.tag).find(|id| may(*id))
            }
            Kind::RoundRobin(turns) => turns.pick(may),
            Kind::Least(heap) => {
                // Asked although it is full, so that who counts those that are passed over hears of it.
                if let Some(full) = heap.passed_over() {
                    may(full);
                }
                heap.pick(may)
            }
            Kind::TwoChoices(choices) => choices.pick(rng, load, may),
            Kind::Random(random) => random.pick(rng, may),
        }
    }

    /// Asks the one that would be picked if each had room, so that whoever counts those that are passed over hears of it.
    fn ask_one(&mut self, key: Key, rng: &mut fastrand::Rng, mut may: impl FnMut(ServerId) -> bool) {
        let mut ask = |id| {
            may(id);
            true
        };
        match &mut self.kind {
            Kind::Ring(ring) => {
                if let Some(first) = ring.pick(key) {
                    ask(first.tag);
                }
            }
            Kind::RoundRobin(turns) => {
                turns.pick(ask);
            }
            Kind::Least(heap) => {
                if let Some(full) = heap.passed_over() {
                    ask(full);
                }
            }
            Kind::TwoChoices(choices) => {
                choices.pick(rng, |_| 0, ask);
            }
            Kind::Random(random) => {
                random.pick(rng, ask);
            }
        }
    }

    /// The share of new clients that each of those that are picked gets, `up` being who is up: exact of a ring, otherwise by
    /// weight.
    pub(super) fn shares(&self, up: impl Fn(ServerId) -> bool) -> Vec<(SocketAddr, f64)> {
        if let Kind::Ring(ring) = &self.kind {
            let shares = match self.picked() == self.len() {
                true => ring.shares(),
                false => ring.shares_among(|member| up(member.tag)),
            };
            return shares.into_iter().map(|(identity, share)| (identity.addr(), share.fraction())).collect();
        }
        let picked = self.standings.values().filter(|(_, standing)| standing.up || self.all);
        let part = |standing: &Standing| f64::from(standing.scaled()) / self.weight.max(1) as f64;
        picked.map(|(address, standing)| (*address, part(standing))).collect()
    }

    /// The ring, for whoever has more time to take it apart than the loop.
    pub(super) fn into_ring(self) -> Option<Arc<Ring<ServerId>>> {
        if let Kind::Ring(ring) = self.kind { Some(ring) } else { None }
    }

    /// Takes a ring in place of its own, and gives that one away. A server that has another standing in it is to be
    /// [set](Self::set) then: that costs no merge.
    pub(super) fn swap_ring(&mut self, ring: Ring<ServerId>) -> Option<Arc<Ring<ServerId>>> {
        let Kind::Ring(own) = &mut self.kind else { return None };
        Some(std::mem::replace(own, Arc::new(ring)))
    }

    /// Those that would be picked from now on, one after the other, if each could not take the client; for a policy that
    /// draws, all that it draws from. A ring has those that are not up among them.
    pub(super) fn upcoming(&self, key: Key) -> Vec<ServerId> {
        match &self.kind {
            Kind::Ring(ring) => ring.successors(key).map(|member| member.tag).collect(),
            Kind::RoundRobin(turns) => turns.upcoming(self.standings.len()),
            Kind::Least(heap) => heap.upcoming(self.standings.len()),
            Kind::TwoChoices(_) | Kind::Random(_) => {
                let its = self.standings.iter().filter(|(_, (_, standing))| standing.up || self.all);
                its.map(|(id, _)| id).collect()
            }
        }
    }

    /// Whether a pick is a matter of luck.
    pub(super) fn draws(&self) -> bool {
        matches!(self.kind, Kind::TwoChoices(_) | Kind::Random(_)) && self.picked() > 1
    }

    /// The ring, if the policy has one.
    pub(super) fn ring(&self) -> Option<&Arc<Ring<ServerId>>> {
        if let Kind::Ring(ring) = &self.kind { Some(ring) } else { None }
    }

    /// Sessions of all servers that are picked.
    pub(super) fn active(&self) -> u64 {
        self.active
    }

    /// The sum of the scaled weights of all servers that are picked.
    pub(super) fn weight(&self) -> u64 {
        self.weight
    }

    /// The scaled weight of one of them; nothing when it is not picked.
    pub(super) fn weight_of(&self, id: ServerId) -> u64 {
        let its = self.standings.get(id).filter(|(_, standing)| standing.up || self.all);
        its.map_or(0, |(_, standing)| u64::from(standing.scaled()))
    }

    /// Whether a server is in it, up or not.
    pub(super) fn has(&self, id: ServerId) -> bool {
        self.standings.contains_key(id)
    }

    /// Those that are in it, up or not.
    pub(super) fn ids(&self) -> impl Iterator<Item = ServerId> {
        self.standings.keys()
    }

    /// How many there are, up or not.
    pub(super) fn len(&self) -> usize {
        self.standings.len()
    }
}

/// Whether a server is on the ring as its standing says.
fn has(ring: &Ring<ServerId>, address: SocketAddr, id: ServerId, standing: Standing) -> bool {
    let points = points(ring.points_per_weight(), standing.weight, standing.part);
    let member = ring.member(address.into()).map(|member| (member.weight, member.tag));
    member == Some((standing.weight, id)) && ring.point_count(address.into()) == points
}

/// Points on the ring that a part of a weight, of [`RAMP_PARTS`], is worth; at least one.
pub(super) fn points(points_per_weight: NonZeroU32, weight: u32, part: u32) -> u32 {
    let all = u64::from(weight) * u64::from(points_per_weight.get());
    let points = (all * u64::from(part)).div_ceil(u64::from(RAMP_PARTS));
    u32::try_from(points).unwrap_or(u32::MAX)
}
