//! A whole file at once, in two halves: what it means is prepared without the model, in another thread, for that takes its
//! time; the model then only switches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ring::{Member, Ring};
use wire::address::{answers_at, collide};
use wire::control::{Refusal, Removal};
use wire::difference::{Difference, Subject, differences};
use wire::report::{PoolMovesReport, ReloadReport};
use wire::settings::{Policy, PoolSettings, ServiceSettings, Settings};

use super::access::{Access, AccessByService, access_of, differences_of_files};
use super::blueprint::Blueprint;
use super::check::{Taken, check, check_pool, check_service, check_together, is_a_circle, taken_by};
use super::checks::checked_otherwise;
use super::merge::merge;
use super::networks::Networks;
use super::picker::Picker;
use super::pool::Pool;
use super::remake::moves_between;
use super::server::{RAMP_PARTS, Ramp};
use super::service::Service;
use super::{Effect, Model, PoolId, ServerId};

/// Servers that start slowly, by pool: the part of their weight that they have.
pub(crate) type Starting = BTreeMap<String, BTreeMap<SocketAddr, u32>>;

/// Servers that are passed over on a ring, since they are not up, by pool.
pub(crate) type PassedOver = BTreeMap<String, BTreeSet<SocketAddr>>;

/// A file that is checked, and all that takes time to make of it.
#[derive(Debug)]
pub(crate) struct Prepared {
    said: Settings,
    pub(crate) settings: Arc<Settings>,
    /// The rings of the pools whose ring is another one.
    rings: BTreeMap<String, Ring<()>>,
    /// Those who start slowly in these rings.
    starting: Starting,
    /// What holds then is what held before.
    is_same: bool,
    changes: Vec<Difference>,
    deviations: Vec<Difference>,
    moves: Vec<PoolMovesReport>,
    access: AccessByService,
}

/// What it means that a file says `said` now, when it said `before` and `present` holds, with those who are `starting`
/// and those who are `passed` over.
///
/// # Errors
/// When what would hold then cannot be.
pub(crate) fn prepare(
    before: &Settings,
    present: &Settings,
    said: Settings,
    mut starting: Starting,
    passed: &PassedOver,
) -> Result<Prepared, Refusal> {
    let settings = merge(before, present, &said);
    check_pools_of_services(&said, &settings)?;
    check_origins(&said, &settings)?;
    check(&settings).map_err(|refusal| with_both(&said, &settings, refusal))?;
    let (mut rings, mut moves) = (BTreeMap::new(), Vec::new());
    let (whole, nobody) = (BTreeMap::new(), BTreeSet::new());
    for (name, pool) in settings.pools.iter().filter(|(_, pool)| pool.policy == Policy::ConsistentHash) {
        let old = present.pools.get(name).filter(|old| old.policy == Policy::ConsistentHash);
        if old.is_some_and(|old| has_the_same_ring(old, pool)) {
            continue;
        }
        let mut ring = ring_of(pool, &whole)?;
        if let Some(old) = old {
            let passed = passed.get(name).unwrap_or(&nobody);
            let (moved, its) = moves_between(&ring_of(old, &whole)?, &ring, passed);
            if moved > 0.0 {
                moves.push(PoolMovesReport { pool: name.clone(), moved, moves: its });
            }
        }
        let parts = parts(present.pools.get(name), pool, &starting.remove(name).unwrap_or_default());
        if !parts.is_empty() {
            ring = ring_of(pool, &parts)?;
            starting.insert(name.clone(), parts);
        }
        rings.insert(name.clone(), ring);
    }
    starting.retain(|name, _| rings.contains_key(name));
    let changes = differences(present, &settings);
    let deviations = differences(&said, &settings);
    let access = settings.services.iter().map(|(name, service)| (name.clone(), Access::new(service))).collect();
    let (settings, is_same) = (Arc::new(settings), changes.is_empty());
    Ok(Prepared { said, settings, rings, starting, is_same, changes, deviations, moves, access })
}

/// What of `present` goes with a file that says `said`, and what was left out for it, as text: for a start, which must not
/// fail for something that a command has made. While the balancer runs, a file that does not go with it is refused.
pub(crate) fn what_goes_with(said: &Settings, before: &Settings, present: &Settings) -> (Settings, Vec<Subject>) {
    let mut settings = merge(before, present, said);
    let mut left_out = Vec::new();
    let is_said = |name: &String, service: &ServiceSettings| said.services.get(name) == Some(service);
    let (its, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        settings.services.into_iter().partition(|(name, service)| is_said(name, service));
    settings.services = its;
    // A pool that a command had removed is there again for a service of the file.
    for (name, service) in &settings.services {
        let Some(pool) = said.pools.get(&service.pool) else { continue };
        // What a command made of it may not go with the service, or no more with itself.
        let servers = match settings.pools.get(&service.pool) {
            Some(present) if check_pool(present).is_err() || !go_together(name, service, present) => &present.servers,
            Some(_) => continue,
            None => &pool.servers,
        };
        let restored = PoolSettings { servers: servers.clone(), ..pool.without_servers() };
        settings.pools.insert(service.pool.clone(), restored);
        left_out.push(Subject::Pool { pool: service.pool.clone() });
    }
    for (name, service) in others {
        let taken: Vec<Taken<'_>> = settings.services.iter().flat_map(|(name, other)| taken_by(name, other)).collect();
        let mut servers = said.pools.values().flat_map(|pool| pool.servers.keys());
        let is_a_server = servers.any(|server| service.listen.iter().any(|listen| answers_at(*listen, *server)));
        let has_its_pool = settings.pools.get(&service.pool).is_some_and(|pool| go_together(&name, &service, pool));
        if has_its_pool && check_service(&service, &taken).is_ok() && !is_a_server {
            settings.services.insert(name, service);
        } else {
            settings.services.extend(said.services.get_key_value(&name).map(|(name, it)| (name.clone(), it.clone())));
            left_out.push(Subject::Service { service: name });
        }
    }
    let services = Settings { pools: BTreeMap::new(), ..settings.clone() };
    let listening: Vec<Taken<'_>> = services.services.iter().flat_map(|(name, its)| taken_by(name, its)).collect();
    for (name, pool) in &mut settings.pools {
        pool.servers.retain(|server, _| {
            let goes = !is_a_circle(&services, name, *server, &listening);
            if !goes {
                left_out.push(Subject::Server { pool: name.clone(), server: *server });
            }
            goes
        });
    }
    (settings, left_out)
}

fn go_together(name: &str, service: &ServiceSettings, pool: &PoolSettings) -> bool {
    check_together((name, service), (&service.pool, pool)).is_ok()
}

/// Names both of two services that would listen at one address, and says which of them a command has made.
fn with_both(said: &Settings, settings: &Settings, refusal: Refusal) -> Refusal {
    let Refusal::AddressTaken { listen, service: one } = &refusal else { return refusal };
    let protocol = settings.services.get(one).map(|service| service.protocol);
    let shares = |other: &ServiceSettings| protocol.is_none_or(|protocol| protocol.overlaps(other.protocol));
    let others = settings.services.iter().filter(|(name, other)| *name != one && shares(other));
    let mut its = others.filter(|(_, other)| other.listen.iter().any(|address| collide(*address, *listen)));
    let Some((other, _)) = its.next() else { return refusal };
    let is_said = |name: &String| said.services.get(name) == settings.services.get(name);
    if is_said(one) && is_said(other) {
        return refusal;
    }
    let by_command = if is_said(one) { other } else { one };
    let fault = format!(
        "services {one} and {other} would both listen at {listen}; {by_command} does so by a command: remove it, or give the other one another address"
    );
    Refusal::BadFile { fault }
}

/// Whether every service has its pool. Each by itself, file and commands were right, so it is said how they are not
/// together.
fn check_pools_of_services(said: &Settings, settings: &Settings) -> Result<(), Refusal> {
    let has_pool = |service: &ServiceSettings| settings.pools.contains_key(&service.pool);
    let Some((name, service)) = settings.services.iter().find(|(_, service)| !has_pool(service)) else { return Ok(()) };
    let pool = &service.pool;
    let fault = if said.pools.contains_key(pool) {
        format!("service {name} is to be served by pool {pool}, which a command has removed; add that again")
    } else {
        format!(
            "service {name}, which a command has made or changed, is served by pool {pool}, which the file does not have; remove the service, or keep the pool"
        )
    };
    Err(Refusal::BadFile { fault })
}

/// Whether no pool has its connections come from two kinds of places, one of which a command has said and the other one the
/// file.
fn check_origins(said: &Settings, settings: &Settings) -> Result<(), Refusal> {
    let has_both = |pool: &PoolSettings| pool.server_side.transparent && !pool.server_side.source.is_empty();
    let its = settings.pools.iter().find(|(name, pool)| has_both(pool) && !said.pools.get(*name).is_some_and(has_both));
    let Some((name, pool)) = its else { return Ok(()) };
    let source = pool.server_side.source.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let fault = format!(
        "pool {name} has transparent = true in the file, and a command has set its source to {source}; both say where connections come from: `balancerctl pool set {name} --source none`, or leave transparent out of the file"
    );
    Err(Refusal::BadFile { fault })
}

/// Members of the ring of a pool, that of the backups aside, and their weights.
fn eligible(pool: &PoolSettings) -> impl Iterator<Item = Member<()>> {
    let servers = pool.servers.iter().filter(|(_, server)| !server.backup);
    let weights = servers.map(|(address, server)| (*address, server.ready_weight()));
    let eligible = weights.filter(|(_, weight)| *weight > 0);
    eligible.map(|(address, weight)| Member { identity: address.into(), weight, tag: () })
}

/// The ring of a pool in which these servers have parts of their weights, and the others all of theirs.
fn ring_of(pool: &PoolSettings, parts: &BTreeMap<SocketAddr, u32>) -> Result<Ring<()>, Refusal> {
    let part = |member: &Member<()>| parts.get(&member.identity.addr()).copied().unwrap_or(RAMP_PARTS);
    let members = eligible(pool).map(|member| (member, part(&member))).collect();
    Blueprint { points_per_weight: pool.points_per_weight, members }.build()
}

/// Who starts slowly in a ring: those who do already, and those who come up where others are. A backup is up already: one
/// that becomes an ordinary server does not come up.
fn parts(
    present: Option<&PoolSettings>,
    pool: &PoolSettings,
    starting: &BTreeMap<SocketAddr, u32>,
) -> BTreeMap<SocketAddr, u32> {
    let Some(present) = present.filter(|_| pool.slow_start_ms > 0) else { return BTreeMap::new() };
    let took_part = |address: &SocketAddr| present.servers.get(address).is_some_and(|server| server.ready_weight() > 0);
    let has_others = present.servers.keys().any(took_part);
    let part = |member: Member<()>| {
        let address = member.identity.addr();
        let comes_up = has_others && !took_part(&address);
        Some((address, if comes_up { 1 } else { *starting.get(&address)? }))
    };
    eligible(pool).filter_map(part).collect()
}

fn has_the_same_ring(one: &PoolSettings, other: &PoolSettings) -> bool {
    one.points_per_weight == other.points_per_weight && eligible(one).eq(eligible(other))
}

impl Prepared {
    /// Reads the lists of networks that services name. `before` is what services had.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(crate) fn with_lists(
        mut self,
        before: &AccessByService,
        read: impl Fn(&str) -> Result<Networks, Refusal>,
    ) -> Result<Self, Refusal> {
        self.access = access_of(&self.settings, read)?;
        for (name, access) in &mut self.access {
            if let Some(before) = before.get(name) {
                access.share(before);
            }
        }
        self.changes.extend(differences_of_files(&self.settings, before, &self.access));
        self.is_same &= self.changes.is_empty();
        Ok(self)
    }

    /// What is to be told of it, once.
    pub(crate) fn take_report(&mut self, file: &str, dry_run: bool) -> ReloadReport {
        ReloadReport {
            dry_run,
            file: file.to_owned(),
            changes: std::mem::take(&mut self.changes),
            deviations: std::mem::take(&mut self.deviations),
            pools: std::mem::take(&mut self.moves),
            unsaved: None,
        }
    }
}

impl Model {
    /// The servers of pools with a ring that are passed over, or would be if they were on it, since they are not up.
    pub(crate) fn passed_over(&self) -> PassedOver {
        let pools = self.pools.values().filter(|pool| pool.picker.ring().is_some());
        let passed = pools.map(|pool| (pool.name.clone(), pool.passed_over(false, &self.servers)));
        passed.filter(|(_, servers)| !servers.is_empty()).collect()
    }

    /// What each service has for its access.
    pub(crate) fn access(&self) -> AccessByService {
        let services = self.services.values().filter(|service| !service.leaving);
        services.map(|service| (service.name.clone(), service.access.clone())).collect()
    }

    /// Switches to what was prepared from the present settings. Sessions live on; those of servers and services that are
    /// gone as after `remove`, and those of clients that are not let in any more end. What is as it was is not touched. At
    /// the `start` nothing comes up slowly.
    pub(crate) fn adopt(&mut self, prepared: Prepared, start: bool, now: Instant) -> Vec<Effect> {
        let Prepared { said, settings, mut rings, mut starting, is_same, mut access, .. } = prepared;
        if is_same && said == *self.said && !start {
            return Vec::new();
        }
        self.said = Arc::new(said);
        self.max_sessions = settings.max_sessions;
        let (mut effects, mut times_differ) = (vec![Effect::Save], false);
        for (name, pool) in &settings.pools {
            let known = self.pool_named(name).map(|id| &self.pools[id].settings.server_side);
            times_differ |= known.is_ok_and(|known| *known != pool.server_side);
            let ring = rings.remove(name).map(|ring| (ring, starting.remove(name).unwrap_or_default()));
            self.adopt_pool(name, pool, ring, start, now);
        }
        for (name, wanted) in &settings.services {
            let pool = self.pool_named(&wanted.pool).expect("the settings were checked");
            let access = access.remove(name).unwrap_or_else(|| Access::new(wanted));
            match self.service_named(name) {
                Ok(id) if self.services[id].is_set_to(wanted, pool, &access) => {}
                Ok(id) => {
                    if self.services[id].access != access {
                        effects.push(Effect::EndUnwelcome(id));
                    }
                    let before = &self.services[id].settings;
                    times_differ |= before.client_side != wanted.client_side || before.flows != wanted.flows;
                    self.services[id].set(wanted.clone(), pool, access);
                    self.picks_changed = true;
                }
                Err(_) => drop(self.services.insert(Service::new(name, wanted.clone(), pool, access))),
            }
        }
        let gone: Vec<_> = self
            .services
            .iter()
            .filter(|(_, service)| !service.leaving && !settings.services.contains_key(&service.name))
            .map(|(id, _)| id)
            .collect();
        for id in gone {
            self.services[id].leaving = true;
            effects.push(Effect::Unlisten(id));
        }
        let gone: Vec<_> = self
            .pools
            .iter()
            .filter(|(_, pool)| !pool.leaving && !settings.pools.contains_key(&pool.name))
            .map(|(id, _)| id)
            .collect();
        for id in gone {
            self.take_pool(id, now);
        }
        // Once, however many of them are other ones: it goes through all sessions.
        if times_differ {
            effects.push(Effect::LookAtSessions);
        }
        effects
    }

    fn adopt_pool(
        &mut self,
        name: &str,
        wanted: &PoolSettings,
        ring: Option<(Ring<()>, BTreeMap<SocketAddr, u32>)>,
        start: bool,
        now: Instant,
    ) {
        let known = self.pool_named(name);
        if known.as_ref().is_ok_and(|id| self.is_set_to(&self.pools[*id], wanted)) {
            return;
        }
        let is_new = known.is_err();
        let id = known.unwrap_or_else(|_| self.pools.insert(Pool::new(name, wanted)));
        let before = std::mem::replace(&mut self.pools[id].settings, wanted.without_servers());
        // A ring that is the same, or another policy with other servers: only those are put in their place who changed. At
        // the start there is no ring yet, and to build it is quicker than to put one server in after the other.
        let keeps_picker = ring.is_none() && before.policy == wanted.policy && !is_new;
        let members: Vec<_> = self.pools[id].members.iter().map(|(address, server)| (*address, *server)).collect();
        let (mut gone, mut changed) = (Vec::new(), Vec::new());
        // Both are sorted: side by side nobody is searched for.
        let mut its = wanted.servers.keys().peekable();
        for (address, server) in &members {
            while its.next_if(|other| *other < address).is_some() {}
            if its.peek() != Some(&address) && self.servers[*server].leaving.is_none() {
                self.servers[*server].leave(Removal::Wait { limit_ms: None }, now);
                gone.push(*server);
            }
        }
        let mut members = members.into_iter().peekable();
        for (&address, &settings) in &wanted.servers {
            while members.next_if(|(other, _)| *other < address).is_some() {}
            let known = members.next_if(|(other, _)| *other == address).map(|(_, server)| server);
            if known.is_some_and(|it| self.servers[it].settings == settings && self.servers[it].leaving.is_none()) {
                continue;
            }
            changed.push(self.put(id, address, settings, !start, now));
        }
        if keeps_picker {
            changed.iter().chain(&gone).for_each(|server| self.place(*server));
        } else {
            let ring = ring.map(|(ring, starting)| {
                self.take_parts(id, &starting, now);
                ring.map_tags(|member| self.pools[id].members[&member.identity.addr()])
            });
            self.rebuild(id, ring);
        }
        if before.slow_start_ms != wanted.slow_start_ms {
            self.start_anew(id, now);
        }
        if checked_otherwise(&before, wanted) {
            self.watch_all(id, now);
        } else {
            changed.iter().chain(&gone).for_each(|server| self.watch(*server, now));
        }
        self.rescue(id, now);
        for server in gone {
            self.forget_if_gone(server);
        }
    }

    /// Makes the picker of a pool anew from its servers, with their ring if that is there. That there is room for it was
    /// checked.
    pub(super) fn rebuild(&mut self, id: PoolId, ring: Option<Ring<ServerId>>) {
        self.picks_changed = true;
        match self.pools[id].rebuild(&self.servers, ring) {
            Ok(old) => {
                let rings = old.into_iter().filter_map(Picker::into_ring);
                self.old_rings.extend(rings.filter(|ring| !ring.is_empty()));
            }
            Err(refusal) => debug_assert!(false, "what was checked is refused: {refusal}"),
        }
    }

    /// Sets who starts slowly in a pool to those who do so in its new ring. Whose part is another one than when it was made
    /// gets at once what has come since. Those who have another part now. Backups are in no such ring, and keep theirs.
    pub(super) fn take_parts(
        &mut self,
        pool: PoolId,
        starting: &BTreeMap<SocketAddr, u32>,
        now: Instant,
    ) -> Vec<ServerId> {
        let time = self.pools[pool].slow_start();
        let mut changed = Vec::new();
        for (address, id) in &self.pools[pool].members {
            let server = &mut self.servers[*id];
            let part = starting.get(address).copied();
            if server.settings.backup || server.ramp.map(|ramp| ramp.part) == part {
                continue;
            }
            let since = |part| time.and_then(|time| now.checked_sub(time * part / RAMP_PARTS)).unwrap_or(now);
            let before = server.ramp.map(|ramp| ramp.since);
            server.ramp = part.map(|part| Ramp { since: before.unwrap_or_else(|| since(part)), part });
            if server.ramp.is_some() {
                self.ramps.insert((now, *id));
            }
            changed.push(*id);
        }
        changed
    }
}

#[cfg(test)]
mod tests;
