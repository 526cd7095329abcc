//! What the model tells of itself. Nothing here changes anything.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use wire::address::canonical;
use wire::control::{Change, MAX_LISTED_SESSIONS, Refusal};
use wire::difference::{Difference, differences};
use wire::event::EventsReport;
use wire::report::{
    DigestReport, EndReason, ExplainReport, HealthState, Hex, ListReport, PoolReport, ServerState, SettingsReport,
    Skip, SkippedReport, StatusReport,
};
use wire::settings::{DEFAULT_POOL, Policy, PoolSettings, Settings};

use super::picker::Picker;
use super::pool::{Bound, Pool, key_of, key_text};
use super::sharing::deviations_of;
use super::{Effect, Model, PoolId, ServerId, SessionFilter, milliseconds};

/// How many servers behind the picked one `explain` names.
const EXPLAINED_SUCCESSORS: usize = 2;

impl Model {
    pub(super) fn status(&self, now: Instant) -> StatusReport {
        let vitals = &self.vitals;
        let services = self.services.iter().map(|(id, service)| {
            let waiting = self.waiting(id, now).map(|(why, _)| why);
            service.report(waiting)
        });
        StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: vitals.pid,
            uptime_ms: milliseconds(now - vitals.started),
            phase: self.phase(),
            services: services.collect(),
            servers: self.servers.values().filter(|server| server.leaving.is_none()).count() as u64,
            digest: self.whole_digest(),
            session_limit: self.session_limit() as u64,
            state_file: vitals.state_file.clone(),
            log: vitals.log.clone(),
            unsaved: vitals.unsaved.clone(),
            longest_turn_us: u64::try_from(vitals.longest_turn.as_micros()).unwrap_or(u64::MAX),
            log_lines_dropped: vitals.log_lines_dropped,
            port_shortages: self.port_shortages,
            config_file: vitals.config_file.clone(),
            reload_failure: vitals.reload_failure.clone(),
            last_reload: vitals.last_reload.clone(),
            deviations: self.deviations(),
        }
    }

    /// The part of the settings that a change is about: the server, the pool without its servers, the service.
    pub(crate) fn part_of(&self, change: &Change) -> Settings {
        let (mut part, mut server_of) = (Settings::default(), None);
        let (pool, service) = match change {
            Change::Add { pool, server, .. }
            | Change::Remove { pool, server, .. }
            | Change::Set { pool, server, .. } => {
                server_of = Some(canonical(*server));
                (Some(pool), None)
            }
            Change::AddPool { pool, .. } | Change::RemovePool { pool } | Change::SetPool { pool, .. } => {
                (Some(pool), None)
            }
            Change::AddService { service, .. } | Change::RemoveService { service } => (None, Some(service)),
            _ => (None, None),
        };
        if let Some(pool) = pool.and_then(|name| self.pool_named(name).ok()).map(|id| &self.pools[id]) {
            let member = server_of.and_then(|address| pool.members.get(&address)).map(|id| &self.servers[*id]);
            let member = member.filter(|server| server.leaving.is_none());
            let servers = member.map(|server| (server.address, server.settings)).into_iter().collect();
            part.pools.insert(pool.name.clone(), PoolSettings { servers, ..pool.settings.clone() });
        }
        if let Some(service) = service.and_then(|name| self.service_named(name).ok()).map(|id| &self.services[id]) {
            part.services.insert(service.name.clone(), service.settings.clone());
        }
        part
    }

    /// The list of a pool. Of a large ring it is completed beside the loop, with the effect that says so.
    pub(super) fn list(&self, name: &str, now: Instant) -> Result<(ListReport, Vec<Effect>), Refusal> {
        let id = self.pool_named(name)?;
        let pool = &self.pools[id];
        if pool.serving().ring().is_some_and(|ring| self.is_large(ring)) {
            let report = self.list_with(pool, &HashMap::new(), Vec::new(), now);
            return Ok((report, vec![Effect::CompleteList(id)]));
        }
        let said = self.said_and_present(pool);
        let deviations = said.map_or_else(Vec::new, |(said, now)| deviations_of(name, &said, &now));
        Ok((self.list_with(pool, &pool.shares(&self.servers), deviations, now), Vec::new()))
    }

    fn list_with(
        &self,
        pool: &Pool,
        shares: &HashMap<SocketAddr, f64>,
        deviations: Vec<Difference>,
        now: Instant,
    ) -> ListReport {
        let mut servers: Vec<_> = pool
            .members
            .values()
            .map(|id| &self.servers[*id])
            .map(|server| server.report(shares.get(&server.address).copied().unwrap_or_default(), now))
            .collect();
        // The map gives the order of addresses; a stable sort keeps it within each half.
        servers.sort_by_key(|report| report.state == ServerState::Leaving);
        ListReport {
            pool: pool.name.clone(),
            settings: pool.settings.clone(),
            digest: pool.digest(&self.servers),
            deviations,
            servers,
        }
    }

    pub(super) fn pool_reports(&self) -> Vec<PoolReport> {
        let mut reports: Vec<PoolReport> = self
            .pools
            .iter()
            .filter(|(_, pool)| !pool.leaving)
            .map(|(id, pool)| PoolReport {
                pool: pool.name.clone(),
                settings: pool.settings.clone(),
                services: self.services_of(id),
                servers: pool.members.values().filter(|id| self.servers[**id].leaving.is_none()).count() as u64,
                eligible: pool.up() as u64,
                active: pool.members.values().map(|id| self.servers[*id].traffic.active).sum(),
                digest: pool.digest(&self.servers),
            })
            .collect();
        reports.sort_by(|one, other| one.pool.cmp(&other.pool));
        reports
    }

    fn services_of(&self, pool: PoolId) -> Vec<String> {
        let its = self.services.values().filter(|service| service.pool == pool && !service.leaving);
        let mut names: Vec<String> = its.map(|service| service.name.clone()).collect();
        names.sort();
        names
    }

    pub(super) fn settings_report(&self) -> SettingsReport {
        let file = self.vitals.config_file.clone();
        SettingsReport { said: file.as_ref().map(|_| Settings::clone(&self.said)), file, now: self.settings() }
    }

    pub(super) fn events(&self, since: u64) -> EventsReport {
        let (events, dropped) = self.journal.since(since);
        EventsReport {
            pid: self.vitals.pid,
            started: self.vitals.started_at.clone(),
            next: self.journal.last() + 1,
            dropped,
            events,
        }
    }

    /// What commands have changed of what the file says; nothing without a file.
    fn deviations(&self) -> Vec<Difference> {
        if self.vitals.config_file.is_some() { differences(&self.said, &self.settings()) } else { Vec::new() }
    }

    pub(super) fn digest(&self, name: &str) -> Result<DigestReport, Refusal> {
        let id = self.pool_named(name)?;
        let settings = &self.pools[id].settings;
        Ok(DigestReport {
            pool: name.to_owned(),
            policy: settings.policy,
            key: settings.key.to_string(),
            max_load: settings.max_load.map(|factor| factor.to_string()),
            digest: self.digest_of(id),
            ring_format: ring::FORMAT,
            points_per_weight: settings.points_per_weight.get(),
        })
    }

    /// Of one pool it is that pool's; of several all of theirs, in the order of their names.
    fn whole_digest(&self) -> Hex {
        let mut digests: Vec<(&str, Hex)> = self
            .pools
            .iter()
            .filter(|(_, pool)| !pool.leaving)
            .map(|(id, pool)| (pool.name.as_str(), self.digest_of(id)))
            .collect();
        digests.sort_by_key(|(name, _)| *name);
        match digests.as_slice() {
            [] => Hex(0),
            [(_, only)] => *only,
            // Multiplying by an odd number before each addition makes the order count.
            all => Hex(all.iter().fold(0, |sum: u64, (_, one)| sum.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ one.0)),
        }
    }

    pub(super) fn session_filter(
        &self,
        service: Option<&str>,
        pool: Option<&str>,
        server: Option<SocketAddr>,
        limit: u32,
    ) -> Result<SessionFilter, Refusal> {
        Ok(SessionFilter {
            service: service.map(|name| self.service_named(name)).transpose()?,
            pool: pool.map(|name| self.pool_named(name)).transpose()?,
            server: server.map(canonical),
            limit: limit.min(MAX_LISTED_SESSIONS) as usize,
        })
    }

    pub(super) fn explain(&self, client: SocketAddr, service: Option<&str>) -> Result<ExplainReport, Refusal> {
        let client = canonical(client);
        let (pool, refused) = match service {
            Some(name) => {
                let service = &self.services[self.service_named(name)?];
                (service.pool, (!service.lets_in(client.ip())).then_some(EndReason::Denied))
            }
            None => (self.pool_named(DEFAULT_POOL)?, None),
        };
        let pool = &self.pools[pool];
        let hashes = pool.settings.policy == Policy::ConsistentHash;
        let key = key_of(pool.settings.key, client);
        let serving = pool.serving();
        let (mut takers, mut crowded) = self.ranked(pool, serving, key);
        let overflows = takers.is_empty() && !pool.backups_serve() && pool.backups.picked() > 0;
        let mut draws = serving.draws();
        if overflows {
            let (backups, full) = self.ranked(pool, &pool.backups, key);
            takers = backups;
            crowded.extend(full);
            draws = pool.backups.draws();
        }
        let address = |id: &ServerId| self.servers[*id].address;
        let mut order = takers.iter().map(address);
        Ok(ExplainReport {
            client: client.ip(),
            service: service.map(ToOwned::to_owned),
            refused,
            pool: pool.name.clone(),
            policy: pool.settings.policy,
            key: hashes.then(|| key_text(pool.settings.key, client)),
            hash: hashes.then(|| Hex(key.hash())),
            point: serving.ring().and_then(|ring| ring.point_of(key)).map(Hex),
            server: if draws { None } else { order.next() },
            next: order.take(if draws { usize::MAX } else { EXPLAINED_SUCCESSORS }).collect(),
            skipped: self.skipped(pool, &crowded, pool.backups_serve() || overflows),
        })
    }

    /// Those of a picker that a client would get, one after the other, and those that have no room for it.
    fn ranked(&self, pool: &Pool, picker: &Picker, key: ring::Key) -> (Vec<ServerId>, Vec<ServerId>) {
        let mut upcoming = picker.upcoming(key);
        upcoming.retain(|id| picker.uses_all() || self.servers[*id].is_up());
        let first = Bound::new(pool.factor(), picker, &[], &self.servers);
        let anybody = upcoming.iter().any(|id| first.has_room(&self.servers[*id]));
        let second = if anybody { None } else { Bound::of_takers(pool.factor(), picker, &[], &self.servers) };
        let bound = second.unwrap_or(first);
        upcoming.into_iter().partition(|id| bound.has_room(&self.servers[*id]))
    }

    fn skipped(&self, pool: &Pool, crowded: &[ServerId], backups_serve: bool) -> Vec<SkippedReport> {
        let of_state = pool.members.values().filter_map(|id| {
            let server = &self.servers[*id];
            let reason = match (server.state(), server.health.state()) {
                (ServerState::Drain, _) => Skip::Drain,
                (ServerState::Leaving, _) => Skip::Leaving,
                (ServerState::Maintenance, _) => Skip::Maintenance,
                (ServerState::Ready, _) if pool.serving().uses_all() => return None,
                (ServerState::Ready, HealthState::Down) => Skip::Down,
                (ServerState::Ready, HealthState::Ejected) => Skip::Ejected,
                (ServerState::Ready, HealthState::Up) if server.settings.backup && !backups_serve => Skip::Backup,
                (ServerState::Ready, HealthState::Up) => return None,
            };
            Some(SkippedReport { server: server.address, reason })
        });
        let of_load = crowded.iter().map(|id| {
            let server = &self.servers[*id];
            SkippedReport { server: server.address, reason: if server.is_full() { Skip::Full } else { Skip::Loaded } }
        });
        of_state.chain(of_load).collect()
    }
}
