//! A pool: a named set of servers and the policy that picks among those that are eligible.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use ipnet::IpNet;
use ring::{Digest, Identity, Key, Member, Ring, RingError};
use slotmap::SlotMap;
use wire::control::Refusal;
use wire::report::Hex;
use wire::settings::{HashKey, LoadFactor, Policy, PoolSettings};

use super::ServerId;
use super::picker::{Picker, Standing, points};
use super::policy::capacity;
use super::remake::Blueprint;
use super::server::{RAMP_PARTS, Server};

/// A pool.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) name: String,
    /// What it is set to. The servers stand in `members`.
    pub(super) settings: PoolSettings,
    /// It was removed, and is gone when the last of its servers is.
    pub(super) leaving: bool,
    /// Every server, the leaving ones too.
    pub(super) members: BTreeMap<SocketAddr, ServerId>,
    /// The eligible ones.
    pub(super) picker: Picker,
}

/// A pick, and what was in its way.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) server: Option<ServerId>,
    /// Those that would have been it, had they not had as many sessions as they may have.
    pub(super) passed: Vec<ServerId>,
}

impl Pool {
    /// An empty pool. Servers in the settings are no members yet.
    pub(super) fn new(name: &str, settings: &PoolSettings) -> Self {
        let settings = settings.without_servers();
        let picker = Picker::new(&settings);
        Self { name: name.to_owned(), settings, leaving: false, members: BTreeMap::new(), picker }
    }

    /// How long a server that comes up starts slowly, if it does.
    pub(super) fn slow_start(&self) -> Option<Duration> {
        (self.settings.slow_start_ms > 0).then(|| Duration::from_millis(self.settings.slow_start_ms))
    }

    /// The server for a client, of those that are not among the `tried`.
    pub(super) fn pick(
        &mut self,
        client: SocketAddr,
        tried: &[ServerId],
        servers: &SlotMap<ServerId, Server>,
        rng: &mut fastrand::Rng,
    ) -> Pick {
        let key = key_of(self.settings.key, client);
        let first = self.pick_within(self.bound(tried, servers), key, tried, servers, rng);
        if first.server.is_some() || first.passed.is_empty() {
            return first;
        }
        match self.bound_of_takers(tried, servers) {
            Some(bound) => self.pick_within(bound, key, tried, servers, rng),
            None => first,
        }
    }

    fn pick_within(
        &mut self,
        bound: Bound,
        key: Key,
        tried: &[ServerId],
        servers: &SlotMap<ServerId, Server>,
        rng: &mut fastrand::Rng,
    ) -> Pick {
        let mut passed = Vec::new();
        let may = |id: ServerId| {
            if tried.contains(&id) {
                return false;
            }
            let room = bound.has_room(&servers[id]);
            if !room {
                passed.push(id);
            }
            room
        };
        let server = self.picker.pick(key, rng, |id| servers[id].traffic.active, may);
        Pick { server, passed }
    }

    /// What decides at this moment whether a server has room for one more session. The bound of the load is a part of the
    /// sessions of those who are left, so the `tried` do not count.
    pub(super) fn bound(&self, tried: &[ServerId], servers: &SlotMap<ServerId, Server>) -> Bound {
        self.bound_without(tried.iter().copied(), servers)
    }

    /// The same where that leaves nobody, since some have as many sessions as they may have: of those alone who have not.
    /// Nothing where nobody is left.
    pub(super) fn bound_of_takers(&self, tried: &[ServerId], servers: &SlotMap<ServerId, Server>) -> Option<Bound> {
        self.settings.max_load?;
        let out = self.members.values().copied().filter(|id| servers[*id].is_full() || tried.contains(id));
        let bound = self.bound_without(out, servers);
        (bound.weight > 0).then_some(bound)
    }

    fn bound_without(&self, out: impl Iterator<Item = ServerId>, servers: &SlotMap<ServerId, Server>) -> Bound {
        let factor = self.settings.max_load.filter(|_| self.picker.ring().is_some()).map(LoadFactor::thousandths);
        let (mut active, mut weight) = (self.picker.active(), self.picker.weight());
        // Those who are not eligible are no part of the sums.
        for (id, its) in out.map(|id| (id, self.picker.weight_of(id))).filter(|(_, its)| *its > 0) {
            weight -= its;
            active -= servers[id].traffic.active;
        }
        Bound { factor, active, weight }
    }

    /// Puts a server where it belongs: among those that may be picked, with its weight, or not.
    pub(super) fn sync(&mut self, id: ServerId, server: &Server) -> Result<(), Refusal> {
        self.picker.set(server.address, id, standing(server)).map_err(|error| refusal(&error))
    }

    /// Makes the picker anew from the members, and gives the old one. `ring` is that of the eligible ones, if somebody has
    /// made it already.
    pub(super) fn rebuild(
        &mut self,
        servers: &SlotMap<ServerId, Server>,
        ring: Option<Ring<()>>,
    ) -> Result<Picker, Refusal> {
        let ring = match (self.settings.policy, ring) {
            (Policy::ConsistentHash, Some(ring)) => Some(ring.map_tags(|member| self.members[&member.identity.addr()])),
            (Policy::ConsistentHash, None) => {
                let per_weight = self.settings.points_per_weight;
                let members = self.eligible(servers).map(|(member, part)| {
                    let points = points(per_weight, member.weight, part);
                    (member, points)
                });
                Some(Ring::build_partial(per_weight, members).map_err(|error| refusal(&error))?)
            }
            _ => None,
        };
        let standings = self.members.iter().filter_map(|(address, id)| Some((*address, *id, standing(&servers[*id])?)));
        let picker = Picker::of(&self.settings, ring, standings).map_err(|error| refusal(&error))?;
        Ok(std::mem::replace(&mut self.picker, picker))
    }

    /// What a ring of the eligible servers is made from.
    pub(super) fn blueprint(&self, servers: &SlotMap<ServerId, Server>, points_per_weight: NonZeroU32) -> Blueprint {
        let bare = |member: Member<ServerId>| Member { identity: member.identity, weight: member.weight, tag: () };
        let members = self.eligible(servers).map(|(member, part)| (bare(member), part)).collect();
        Blueprint { points_per_weight, members }
    }

    /// How many points a ring of the eligible servers has.
    pub(super) fn points_at(&self, servers: &SlotMap<ServerId, Server>, points_per_weight: NonZeroU32) -> usize {
        let points =
            self.eligible(servers).map(|(member, part)| points(points_per_weight, member.weight, part) as usize);
        points.sum()
    }

    /// The eligible servers, and the part of its weight that each has.
    fn eligible(&self, servers: &SlotMap<ServerId, Server>) -> impl Iterator<Item = (Member<ServerId>, u32)> {
        let eligible = self.members.values().map(|id| (*id, &servers[*id])).filter(|(_, server)| server.is_eligible());
        eligible.map(|(id, server)| {
            let member = Member { identity: server.address.into(), weight: server.settings.weight, tag: id };
            (member, server.ramp.map_or(RAMP_PARTS, |ramp| ramp.part))
        })
    }

    /// The share of new clients that each eligible server gets.
    pub(super) fn shares(&self, servers: &SlotMap<ServerId, Server>) -> HashMap<SocketAddr, f64> {
        if let Some(ring) = self.picker.ring() {
            return ring.shares().into_iter().map(|(identity, share)| (identity.addr(), share.fraction())).collect();
        }
        let all = self.picker.weight().max(1) as f64;
        let weights = self.members.values().map(|id| (servers[*id].address, self.picker.weight_of(*id) as f64));
        weights.map(|(address, weight)| (address, weight / all)).collect()
    }

    /// One number for what decides who gets whom, as far as servers and weights do.
    pub(super) fn digest(&self, servers: &SlotMap<ServerId, Server>) -> Hex {
        if let Some(ring) = self.picker.ring() {
            return Hex(ring.digest().value());
        }
        self.digest_with(servers, &[])
    }

    /// The digest when these servers have these weights, whatever they have now, and nobody starts slowly any more.
    pub(super) fn digest_with(&self, servers: &SlotMap<ServerId, Server>, other: &[(SocketAddr, u32)]) -> Hex {
        let now = self.eligible(servers).map(|(member, _)| (member.identity, member.weight));
        let now = now.filter(|(identity, _)| other.iter().all(|(address, _)| Identity::from(*address) != *identity));
        let other = other.iter().map(|(address, weight)| (Identity::from(*address), *weight));
        Hex(Digest::of_servers(self.settings.points_per_weight, now.chain(other)).value())
    }
}

fn standing(server: &Server) -> Option<Standing> {
    let part = server.ramp.map_or(RAMP_PARTS, |ramp| ramp.part);
    server.is_eligible().then_some(Standing { weight: server.settings.weight, part, active: server.traffic.active })
}

/// What a server may carry: its own limit, and its part of all sessions times a factor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    factor: Option<u32>,
    active: u64,
    weight: u64,
}

impl Bound {
    /// Whether a server may take one more session.
    pub(super) fn has_room(&self, server: &Server) -> bool {
        !server.is_full() && !self.is_loaded(server)
    }

    /// Whether a server has what the bound of the load leaves it.
    pub(super) fn is_loaded(&self, server: &Server) -> bool {
        self.factor.is_some_and(|factor| {
            server.traffic.active >= capacity(factor, self.active, server.scaled_weight(), self.weight)
        })
    }
}

/// What of a client is hashed, as a position in the hash space.
pub(super) fn key_of(key: HashKey, client: SocketAddr) -> Key {
    match key {
        HashKey::ClientIp => Key::of_ip(client.ip()),
        HashKey::ClientIpPort => Key::of_addr(client),
        HashKey::ClientSubnet { ipv4, ipv6 } => Key::of_ip(subnet_of(client.ip(), ipv4, ipv6).network()),
    }
}

/// What of a client is hashed, for people.
pub(super) fn key_text(key: HashKey, client: SocketAddr) -> String {
    let ip = client.ip().to_canonical();
    match key {
        HashKey::ClientIp => ip.to_string(),
        HashKey::ClientIpPort => SocketAddr::new(ip, client.port()).to_string(),
        HashKey::ClientSubnet { ipv4, ipv6 } => subnet_of(ip, ipv4, ipv6).to_string(),
    }
}

fn subnet_of(ip: IpAddr, ipv4: u8, ipv6: u8) -> IpNet {
    let ip = ip.to_canonical();
    // A length that is none for the family is refused where it is set.
    IpNet::new(ip, if ip.is_ipv4() { ipv4 } else { ipv6 }).map_or(ip.into(), |network| network.trunc())
}

/// What a ring's error is to whoever asked for the change.
pub(super) fn refusal(error: &RingError) -> Refusal {
    match *error {
        RingError::Points { points, .. } => Refusal::TooManyPoints { points, limit: ring::MAX_POINTS as u64 },
        RingError::Weight { weight, .. } => Refusal::WeightTooLarge { weight },
        RingError::Twice { .. } => unreachable!("the members of a pool are a map"),
    }
}

#[cfg(test)]
mod tests;
