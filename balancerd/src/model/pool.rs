//! A pool: a named set of servers and the policy that picks among those that are eligible.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use ring::{Digest, Identity, Key, Member, Ring};
use slotmap::SlotMap;
use wire::connection::ServerSide;
use wire::control::Refusal;
use wire::health::{CheckKind, CheckSettings, InitialHealth, WhenAllDown};
use wire::report::Hex;
use wire::settings::{HashKey, LoadFactor, Policy, PoolSettings, ServerSettings};

use super::ServerId;
use super::blueprint::{Blueprint, refusal};
use super::checks::side_of_checks;
use super::picker::{Picker, Standing, points};
use super::policy::capacity;
use super::server::{RAMP_PARTS, Server};

/// A pool.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) name: String,
    /// What it is set to. The servers stand in `members`.
    pub(super) settings: PoolSettings,
    /// How its servers are checked, as the settings have it.
    pub(super) check: Arc<CheckSettings>,
    /// How checks leave.
    pub(super) check_side: Arc<ServerSide>,
    /// It was removed, and is gone when the last of its servers is.
    pub(super) leaving: bool,
    /// Every server, the leaving ones too.
    pub(super) members: BTreeMap<SocketAddr, ServerId>,
    /// Those that take part and are no backups.
    pub(super) picker: Picker,
    /// The backups that take part: they serve while nobody else is up, or all others are full.
    pub(super) backups: Picker,
}

/// A pick, and what was in its way.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) server: Option<ServerId>,
    /// Those that would have been it, had they not had as many sessions as they may have. Of least connections, and where
    /// all are full, only the first one: the others are not looked at.
    pub(super) passed: Vec<ServerId>,
}

impl Pool {
    /// An empty pool. Servers in the settings are no members yet.
    pub(super) fn new(name: &str, settings: &PoolSettings) -> Self {
        let settings = settings.without_servers();
        let (picker, backups) = (Picker::new(&settings), Picker::new(&settings));
        let check = Arc::new(settings.health.check.clone());
        let check_side = side_of_checks(&settings.server_side);
        Self {
            name: name.to_owned(),
            settings,
            check,
            check_side,
            leaving: false,
            members: BTreeMap::new(),
            picker,
            backups,
        }
    }

    /// Those that serve now, as far as that does not depend on how many sessions they have: the backups while there are
    /// some and nobody else.
    pub(super) fn serving(&self) -> &Picker {
        if self.backups_serve() { &self.backups } else { &self.picker }
    }

    /// Whether the backups serve.
    pub(super) fn backups_serve(&self) -> bool {
        self.picker.picked() == 0 && self.backups.picked() > 0
    }

    /// Whether a server that comes is up before it was checked.
    pub(super) fn newcomers_are_up(&self) -> bool {
        self.check.kind == CheckKind::None || self.check.initial == InitialHealth::Up
    }

    /// Servers that take part, up or not.
    pub(super) fn len(&self) -> usize {
        self.picker.len() + self.backups.len()
    }

    /// Servers that take part and are up.
    pub(super) fn up(&self) -> usize {
        self.picker.up() + self.backups.up()
    }

    /// How long a server that comes up starts slowly, if it does.
    pub(super) fn slow_start(&self) -> Option<Duration> {
        (self.settings.slow_start_ms > 0).then(|| Duration::from_millis(self.settings.slow_start_ms))
    }

    /// The server for a client, of those that are not among the `tried`: a backup where each of the others is down, was
    /// tried, or is full.
    pub(super) fn pick(
        &mut self,
        client: SocketAddr,
        tried: &[ServerId],
        servers: &SlotMap<ServerId, Server>,
        rng: &mut fastrand::Rng,
    ) -> Pick {
        let key = key_of(self.settings.key, client);
        let mut pick = self.pick_of(false, key, tried, servers, rng);
        if pick.server.is_none() && self.backups.picked() > 0 {
            let of_backups = self.pick_of(true, key, tried, servers, rng);
            pick.server = of_backups.server;
            pick.passed.extend(of_backups.passed);
        }
        pick
    }

    /// Whether a server takes part and is picked, with room for another session or without.
    pub(super) fn picks_anybody(&self) -> bool {
        self.picker.picked() + self.backups.picked() > 0
    }

    fn pick_of(
        &mut self,
        backups: bool,
        key: Key,
        tried: &[ServerId],
        servers: &SlotMap<ServerId, Server>,
        rng: &mut fastrand::Rng,
    ) -> Pick {
        let factor = self.factor();
        let picker = if backups { &mut self.backups } else { &mut self.picker };
        // A ring would be walked around for nothing.
        if all_tried(picker, tried) {
            return Pick::default();
        }
        let first = pick_within(picker, Bound::new(factor, picker, tried, servers), key, tried, servers, rng);
        if first.server.is_some() || first.passed.is_empty() {
            return first;
        }
        match Bound::of_takers(factor, picker, tried, servers) {
            Some(bound) => pick_within(picker, bound, key, tried, servers, rng),
            None => first,
        }
    }

    /// The bound of the load, if the policy has one.
    pub(super) fn factor(&self) -> Option<u32> {
        self.settings.max_load.filter(|_| self.picker.ring().is_some()).map(LoadFactor::thousandths)
    }

    /// Puts a server where it belongs: among those that may be picked, with its weight, or not.
    pub(super) fn sync(&mut self, id: ServerId, server: &Server) -> Result<(), Refusal> {
        let standing = standing(server);
        let (its, other) = match server.settings.backup {
            true => (&mut self.backups, &mut self.picker),
            false => (&mut self.picker, &mut self.backups),
        };
        let synced = other.set(server.address, id, None).and_then(|()| its.set(server.address, id, standing));
        self.open_or_close();
        synced.map_err(|error| refusal(&error))
    }

    /// With nobody up, all are used, if that is wanted; the backups only if there are no others.
    pub(super) fn open_or_close(&mut self) {
        let open = self.settings.health.when_all_down == WhenAllDown::UseAll && self.up() == 0;
        self.picker.use_all(open);
        self.backups.use_all(open && self.picker.len() == 0);
    }

    /// Makes both pickers anew from the members, and gives the old ones. `ring` is that of the servers that are no backups,
    /// if somebody has made it already.
    pub(super) fn rebuild(
        &mut self,
        servers: &SlotMap<ServerId, Server>,
        ring: Option<Ring<ServerId>>,
    ) -> Result<[Picker; 2], Refusal> {
        let picker = self.picker_of(false, servers, ring)?;
        let backups = self.picker_of(true, servers, None)?;
        let old = [std::mem::replace(&mut self.picker, picker), std::mem::replace(&mut self.backups, backups)];
        self.open_or_close();
        Ok(old)
    }

    pub(super) fn picker_of(
        &self,
        backups: bool,
        servers: &SlotMap<ServerId, Server>,
        ring: Option<Ring<ServerId>>,
    ) -> Result<Picker, Refusal> {
        let ring = match (self.settings.policy, ring) {
            (Policy::ConsistentHash, Some(ring)) => Some(ring),
            (Policy::ConsistentHash, None) => {
                let blueprint = self.blueprint(backups, servers, self.settings.points_per_weight);
                Some(blueprint.build()?)
            }
            _ => None,
        };
        let its = self.members.iter().filter(|(_, id)| servers[**id].settings.backup == backups);
        let standings = its.filter_map(|(address, id)| Some((*address, *id, standing(&servers[*id])?)));
        Picker::of(&self.settings, ring, standings).map_err(|error| refusal(&error))
    }

    /// What the ring of the backups, or of the others, is made from.
    pub(super) fn blueprint(
        &self,
        backups: bool,
        servers: &SlotMap<ServerId, Server>,
        points_per_weight: NonZeroU32,
    ) -> Blueprint<ServerId> {
        Blueprint { points_per_weight, members: self.eligible(servers, backups).collect() }
    }

    /// How many points the ring of those has that are no backups.
    pub(super) fn points_at(&self, servers: &SlotMap<ServerId, Server>, points_per_weight: NonZeroU32) -> usize {
        let members = self.eligible(servers, false);
        members.map(|(member, part)| points(points_per_weight, member.weight, part) as usize).sum()
    }

    /// Those that take part, backups or the others, up or not, and the part of its weight that each has.
    fn eligible(
        &self,
        servers: &SlotMap<ServerId, Server>,
        backups: bool,
    ) -> impl Iterator<Item = (Member<ServerId>, u32)> {
        let its = self.members.values().map(|id| (*id, &servers[*id]));
        let its = its.filter(move |(_, server)| server.takes_part() && server.settings.backup == backups);
        its.map(|(id, server)| {
            let member = Member { identity: server.address.into(), weight: server.settings.weight, tag: id };
            (member, server.ramp.map_or(RAMP_PARTS, |ramp| ramp.part))
        })
    }

    /// The share of new clients that each server gets; those that get none are left out.
    pub(super) fn shares(&self, servers: &SlotMap<ServerId, Server>) -> HashMap<SocketAddr, f64> {
        self.serving().shares(|id| servers[id].is_up()).into_iter().collect()
    }

    /// The servers that the picker of the backups, or that of the others, passes over, or would if they were in it, since
    /// they are not up.
    pub(super) fn passed_over(&self, backups: bool, servers: &SlotMap<ServerId, Server>) -> BTreeSet<SocketAddr> {
        let picker = if backups { &self.backups } else { &self.picker };
        if picker.uses_all() {
            return BTreeSet::new();
        }
        let passed = self.members.iter().filter(|(_, id)| !servers[**id].is_up());
        passed.map(|(address, _)| *address).collect()
    }

    /// One number for what decides who gets whom, as far as servers and weights do. Who is up does not count.
    pub(super) fn digest(&self, servers: &SlotMap<ServerId, Server>) -> Hex {
        match (self.picker.ring(), self.backups.len()) {
            (Some(ring), 0) => Hex(ring.digest().value()),
            _ => self.digest_with(servers, &[]),
        }
    }

    /// The digest when these servers have these settings, whatever they have now, and nobody starts slowly any more.
    pub(super) fn digest_with(
        &self,
        servers: &SlotMap<ServerId, Server>,
        other: &[(SocketAddr, ServerSettings)],
    ) -> Hex {
        let now = self.members.values().map(|id| &servers[*id]).filter(|server| server.takes_part());
        let now = now.map(|server| (server.address, server.settings));
        let now = now.filter(|(address, _)| other.iter().all(|(changed, _)| changed != address));
        let all: Vec<_> = now.chain(other.iter().copied()).collect();
        let of = |backup| {
            let its = all.iter().filter(|(_, settings)| settings.backup == backup);
            let its = its.map(|(address, settings)| (Identity::from(*address), settings.ready_weight()));
            Digest::of_servers(self.settings.points_per_weight, its.filter(|(_, weight)| *weight > 0)).value()
        };
        let has_backups = all.iter().any(|(_, settings)| settings.backup && settings.ready_weight() > 0);
        Hex(if has_backups { of(false) ^ of(true).rotate_left(32) } else { of(false) })
    }
}

/// Whether nobody is picked but those who were tried, if anybody is.
fn all_tried(picker: &Picker, tried: &[ServerId]) -> bool {
    tried.iter().filter(|id| picker.weight_of(**id) > 0).count() == picker.picked()
}

fn pick_within(
    picker: &mut Picker,
    bound: Bound,
    key: Key,
    tried: &[ServerId],
    servers: &SlotMap<ServerId, Server>,
    rng: &mut fastrand::Rng,
) -> Pick {
    let mut passed = Vec::new();
    let all = picker.uses_all();
    let may = |id: ServerId| {
        let server = &servers[id];
        if !(all || server.is_up()) || tried.contains(&id) {
            return false;
        }
        let room = bound.has_room(server);
        if !room {
            passed.push(id);
        }
        room
    };
    let server = picker.pick(key, rng, |id| servers[id].traffic.active, may);
    Pick { server, passed }
}

fn standing(server: &Server) -> Option<Standing> {
    let part = server.ramp.map_or(RAMP_PARTS, |ramp| ramp.part);
    server.takes_part().then_some(Standing {
        weight: server.settings.weight,
        part,
        active: server.traffic.active,
        limit: server.settings.max_sessions,
        up: server.is_up(),
    })
}

/// What a server may carry: its own limit, and its part of all sessions times a factor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    factor: Option<u32>,
    active: u64,
    weight: u64,
}

impl Bound {
    /// What decides at this moment whether a server has room for one more session. The bound of the load is a part of the
    /// sessions of those who are left, so the `tried` do not count.
    pub(super) fn new(
        factor: Option<u32>,
        picker: &Picker,
        tried: &[ServerId],
        servers: &SlotMap<ServerId, Server>,
    ) -> Self {
        Self::without(factor, picker, tried.iter().copied(), servers)
    }

    /// The same where that leaves nobody, since some have as many sessions as they may have: of those alone who have not.
    /// Nothing where nobody is left.
    pub(super) fn of_takers(
        factor: Option<u32>,
        picker: &Picker,
        tried: &[ServerId],
        servers: &SlotMap<ServerId, Server>,
    ) -> Option<Self> {
        factor?;
        let out = picker.ids().filter(|id| servers[*id].is_full() || tried.contains(id));
        let bound = Self::without(factor, picker, out, servers);
        (bound.weight > 0).then_some(bound)
    }

    fn without(
        factor: Option<u32>,
        picker: &Picker,
        out: impl Iterator<Item = ServerId>,
        servers: &SlotMap<ServerId, Server>,
    ) -> Self {
        let (mut active, mut weight) = (picker.active(), picker.weight());
        // Those who are not picked are no part of the sums.
        for (id, its) in out.map(|id| (id, picker.weight_of(id))).filter(|(_, its)| *its > 0) {
            weight -= its;
            active -= servers[id].traffic.active;
        }
        Self { factor, active, weight }
    }

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

#[cfg(test)]
mod tests;
