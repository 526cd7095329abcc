//! A whole file at once, in two halves: what it means is prepared without the model, in another thread, for that takes its
//! time; the model then only switches.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use ring::{Member, Ring};
use wire::control::{Refusal, Removal};
use wire::report::{MoveReport, PoolMovesReport, ReloadReport};
use wire::settings::{AdminState, Difference, Policy, PoolSettings, ServiceSettings, Settings, differences};

use super::check::check;
use super::merge::merge;
use super::pool::{Pool, refusal};
use super::server::Server;
use super::service::Service;
use super::{Effect, Model};

/// Moves of a pool that a report tells.
pub(super) const MOST_MOVES: usize = 100;

/// A file that is checked, and all that takes time to make of it.
#[derive(Debug)]
pub(crate) struct Prepared {
    said: Settings,
    pub(crate) settings: Settings,
    /// The rings of the pools whose ring is another one.
    rings: BTreeMap<String, Ring<()>>,
    changes: Vec<Difference>,
    deviations: Vec<Difference>,
    moves: Vec<PoolMovesReport>,
}

/// What it means that a file says `said` now, when it said `before` and `present` holds.
///
/// # Errors
/// When what would hold then cannot be.
pub(crate) fn prepare(before: &Settings, present: &Settings, said: Settings) -> Result<Prepared, Refusal> {
    let settings = merge(before, present, &said);
    check_pools_of_services(&said, &settings)?;
    check(&settings)?;
    let (mut rings, mut moves) = (BTreeMap::new(), Vec::new());
    for (name, pool) in settings.pools.iter().filter(|(_, pool)| pool.policy == Policy::ConsistentHash) {
        let old = present.pools.get(name).filter(|old| old.policy == Policy::ConsistentHash);
        if old.is_some_and(|old| has_the_same_ring(old, pool)) {
            continue;
        }
        let ring = ring_of(pool)?;
        if let Some(old) = old {
            moves.extend(moves_between(name, &ring_of(old)?, &ring));
        }
        rings.insert(name.clone(), ring);
    }
    let changes = differences(present, &settings);
    let deviations = differences(&said, &settings);
    Ok(Prepared { said, settings, rings, changes, deviations, moves })
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

/// Members of the ring of a pool, and their weights.
fn eligible(pool: &PoolSettings) -> impl Iterator<Item = Member<()>> {
    let ready = pool.servers.iter().filter(|(_, server)| server.state == AdminState::Ready && server.weight > 0);
    ready.map(|(address, server)| Member { identity: (*address).into(), weight: server.weight, tag: () })
}

fn ring_of(pool: &PoolSettings) -> Result<Ring<()>, Refusal> {
    Ring::build(pool.points_per_weight, eligible(pool)).map_err(|error| refusal(&error))
}

fn has_the_same_ring(one: &PoolSettings, other: &PoolSettings) -> bool {
    one.points_per_weight == other.points_per_weight && eligible(one).eq(eligible(other))
}

fn moves_between(pool: &str, old: &Ring<()>, new: &Ring<()>) -> Option<PoolMovesReport> {
    let diff = old.diff(new);
    let moved = diff.moved.fraction();
    let moves = diff.moves.iter().take(MOST_MOVES).map(move_report).collect();
    (moved > 0.0).then(|| PoolMovesReport { pool: pool.to_owned(), moved, moves })
}

/// A step of a ring's difference, for people.
pub(super) fn move_report(step: &ring::Move) -> MoveReport {
    MoveReport {
        from: step.from.map(|identity| identity.addr()),
        to: step.to.map(|identity| identity.addr()),
        share: step.share.fraction(),
    }
}

impl Prepared {
    /// What is to be told of it.
    pub(crate) fn report(&self, file: &str, dry_run: bool) -> ReloadReport {
        ReloadReport {
            dry_run,
            file: file.to_owned(),
            changes: self.changes.clone(),
            deviations: self.deviations.clone(),
            pools: self.moves.clone(),
            unsaved: None,
        }
    }
}

impl Model {
    /// Switches to what was prepared from the present settings. Sessions live on; those of servers and services that are
    /// gone as after `remove`. What is as it was is not touched. At the `start` nothing comes up slowly.
    pub(crate) fn adopt(&mut self, prepared: Prepared, start: bool, now: Instant) -> Vec<Effect> {
        let Prepared { said, settings, mut rings, changes, .. } = prepared;
        if changes.is_empty() && said == *self.said && !start {
            return Vec::new();
        }
        self.said = Arc::new(said);
        self.max_sessions = settings.max_sessions;
        for (name, pool) in &settings.pools {
            self.adopt_pool(name, pool, rings.remove(name), start, now);
        }
        let mut effects = vec![Effect::Save];
        for (name, wanted) in &settings.services {
            let pool = self.pool_named(&wanted.pool).expect("the settings were checked");
            match self.service_named(name) {
                Ok(id) if self.services[id].settings == *wanted && self.services[id].pool == pool => {}
                Ok(id) => self.services[id].set(wanted.clone(), pool),
                Err(_) => drop(self.services.insert(Service::new(name, wanted.clone(), pool))),
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
        effects
    }

    fn adopt_pool(&mut self, name: &str, wanted: &PoolSettings, ring: Option<Ring<()>>, start: bool, now: Instant) {
        let known = self.pool_named(name);
        if known.as_ref().is_ok_and(|id| self.pool_settings(&self.pools[*id]) == *wanted) {
            return;
        }
        let id = known.unwrap_or_else(|_| self.pools.insert(Pool::new(name, wanted)));
        self.pools[id].settings = super::pool::without_servers(wanted);
        let had_servers = self.pools[id].picker.len() > 0;
        let members: Vec<_> = self.pools[id].members.iter().map(|(address, server)| (*address, *server)).collect();
        let mut gone = Vec::new();
        for (address, server) in members {
            if !wanted.servers.contains_key(&address) && self.servers[server].leaving.is_none() {
                self.servers[server].leave(Removal::Wait { limit_ms: None }, now);
                gone.push(server);
            }
        }
        for (&address, &settings) in &wanted.servers {
            let server = match self.pools[id].members.get(&address) {
                Some(server) => *server,
                None => {
                    let server = self.servers.insert(Server::new(id, address, settings));
                    self.pools[id].members.insert(address, server);
                    if !start && had_servers {
                        self.start_slowly(server, now);
                    }
                    continue;
                }
            };
            let entry = &mut self.servers[server];
            let was_eligible = entry.is_eligible();
            (entry.settings, entry.leaving) = (settings, None);
            if !was_eligible && had_servers {
                self.start_slowly(server, now);
            }
        }
        match self.pools[id].rebuild(&self.servers, ring) {
            Ok(old) => self.old_rings.extend(old.into_ring()),
            Err(refusal) => debug_assert!(false, "what was checked is refused: {refusal}"),
        }
        for server in gone {
            self.forget_if_gone(server);
        }
    }
}
