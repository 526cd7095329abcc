//! Single changes: checked first, and then made as a whole or, in a dry run, not at all. Each says who moves.

use std::net::SocketAddr;
use std::time::Instant;

use ring::Diff;
use wire::address::{answers_at, canonical};
use wire::control::{Change, MAX_SERVERS, PoolValues, Refusal, Removal, ServerValues};
use wire::report::{ChangeReport, EndReason, Hex};
use wire::settings::{Policy, PoolSettings, ServerSettings, ServiceSettings};

use super::check::{check_name, check_points, check_pool, check_room, check_server, check_service, points_of};
use super::pool::{Pool, refusal};
use super::reload::{MOST_MOVES, move_report};
use super::server::{Ramp, Server};
use super::service::Service;
use super::{Effect, Model, PoolId, ServerId};

type Changed = Result<(ChangeReport, Vec<Effect>), Refusal>;

impl Model {
    pub(super) fn change(&mut self, change: &Change, dry_run: bool, now: Instant) -> Changed {
        let mut report = ChangeReport {
            change: change.clone(),
            dry_run,
            moved: 0.0,
            moves: Vec::new(),
            sessions: 0,
            digest: None,
            unsaved: None,
        };
        let effects = match change {
            Change::Add { pool, server, settings } => {
                let pool = self.pool_named(pool)?;
                self.add(pool, canonical(*server), *settings, &mut report, now)?
            }
            Change::Remove { pool, server, how } => {
                let pool = self.pool_named(pool)?;
                self.remove(pool, canonical(*server), *how, &mut report, now)?
            }
            Change::Set { pool, server, values } => {
                let pool = self.pool_named(pool)?;
                self.set(pool, canonical(*server), values, &mut report, now)?
            }
            Change::AddPool { pool, settings } => self.add_pool(pool, settings, &mut report)?,
            Change::RemovePool { pool } => self.remove_pool(pool, &mut report, now)?,
            Change::SetPool { pool, values } => self.set_pool(pool, values, &mut report, now)?,
            Change::AddService { service, settings } => self.add_service(service, settings, dry_run)?,
            Change::RemoveService { service } => {
                let id = self.service_named(service)?;
                report.sessions = self.services[id].traffic.active;
                self.services[id].leaving = !dry_run;
                vec![Effect::Save, Effect::Unlisten(id)]
            }
            Change::Kill { session } => {
                report.sessions = 1;
                vec![Effect::EndSession(*session)]
            }
            Change::KillAll { pool, server } => {
                let pool = self.pool_named(pool)?;
                let id = self.member(pool, canonical(*server))?;
                report.sessions = self.servers[id].traffic.active;
                vec![Effect::EndSessions(id, EndReason::Killed)]
            }
        };
        Ok((report, if dry_run { Vec::new() } else { effects }))
    }

    fn member(&self, pool: PoolId, server: SocketAddr) -> Result<ServerId, Refusal> {
        self.pools[pool].members.get(&server).copied().ok_or(Refusal::NotThere { server })
    }

    fn add(
        &mut self,
        pool: PoolId,
        address: SocketAddr,
        settings: ServerSettings,
        report: &mut ChangeReport,
        now: Instant,
    ) -> Result<Vec<Effect>, Refusal> {
        check_server(address, &settings)?;
        if self.services.values().filter(|service| !service.leaving).any(|service| {
            service.settings.listen.iter().any(|own| answers_at(*own, address))
                || service.addresses.iter().any(|own| answers_at(*own, address))
        }) {
            return Err(Refusal::Itself { server: address });
        }
        let known = self.pools[pool].members.get(&address).copied();
        match known.map(|id| &self.servers[id]) {
            Some(entry) if entry.leaving.is_none() => {
                return Err(Refusal::AlreadyThere { server: address, weight: entry.settings.weight });
            }
            None if self.pools[pool].members.len() >= MAX_SERVERS => return Err(Refusal::TooManyServers),
            _ => {}
        }
        self.check_points_of(pool, None, &settings)?;
        report.sessions = known.map_or(0, |id| self.servers[id].traffic.active);
        self.tell_moves(pool, address, settings.ready_weight(), report)?;
        if !report.dry_run {
            let id = self.put(pool, address, settings, Some(now));
            self.sync(id);
        }
        Ok(vec![Effect::Save])
    }

    fn remove(
        &mut self,
        pool: PoolId,
        address: SocketAddr,
        how: Removal,
        report: &mut ChangeReport,
        now: Instant,
    ) -> Result<Vec<Effect>, Refusal> {
        let id = self.member(pool, address)?;
        let entry = &self.servers[id];
        report.sessions = entry.traffic.active;
        // Another grade may be asked for while it leaves, the same as before may not.
        if entry.leaving.is_some_and(|leave| leave.how == how) && how != Removal::Now {
            return Err(Refusal::Leaving { server: address, sessions: entry.traffic.active });
        }
        self.tell_moves(pool, address, 0, report)?;
        let mut effects = vec![Effect::Save];
        if how == Removal::Now {
            effects.push(Effect::EndSessions(id, EndReason::Removed));
        }
        if !report.dry_run {
            self.servers[id].leave(how, now);
            self.sync(id);
            self.timers.retain(|(_, other)| *other != id);
            if how != (Removal::Wait { limit_ms: None }) && how != Removal::Now {
                self.timers.insert((now, id));
            }
            self.forget_if_gone(id);
        }
        Ok(effects)
    }

    fn set(
        &mut self,
        pool: PoolId,
        address: SocketAddr,
        values: &ServerValues,
        report: &mut ChangeReport,
        now: Instant,
    ) -> Result<Vec<Effect>, Refusal> {
        let id = self.member(pool, address)?;
        let entry = &self.servers[id];
        report.sessions = entry.traffic.active;
        if entry.leaving.is_some() {
            return Err(Refusal::Leaving { server: address, sessions: entry.traffic.active });
        }
        if *values == ServerValues::default() {
            return Err(Refusal::NothingToSet);
        }
        let before = entry.settings;
        let settings = ServerSettings {
            weight: values.weight.unwrap_or(before.weight),
            state: values.state.unwrap_or(before.state),
            max_sessions: values.max_sessions.unwrap_or(before.max_sessions),
        };
        check_server(address, &settings)?;
        self.check_points_of(pool, Some(&before), &settings)?;
        self.tell_moves(pool, address, settings.ready_weight(), report)?;
        if !report.dry_run {
            self.put(pool, address, settings, Some(now));
            self.sync(id);
        }
        Ok(vec![Effect::Save])
    }

    fn add_pool(
        &mut self,
        name: &str,
        settings: &PoolSettings,
        report: &mut ChangeReport,
    ) -> Result<Vec<Effect>, Refusal> {
        check_name(name)?;
        check_pool(settings)?;
        if self.pool_named(name).is_ok() {
            return Err(Refusal::PoolThere { pool: name.to_owned() });
        }
        if let Some((server, one)) = settings.servers.first_key_value() {
            // A pool is made empty: its servers come by `add`, each with its own answer.
            check_server(*server, one)?;
            return Err(Refusal::BadValue {
                key: "servers".to_owned(),
                fault: "a pool is made without servers; add them one by one".to_owned(),
            });
        }
        check_room(self.pools.len() + 1, 0)?;
        let pool = Pool::new(name, settings);
        report.digest = Some(pool.digest(&self.servers));
        if !report.dry_run {
            self.pools.insert(pool);
        }
        Ok(vec![Effect::Save])
    }

    fn remove_pool(&mut self, name: &str, report: &mut ChangeReport, now: Instant) -> Result<Vec<Effect>, Refusal> {
        let id = self.pool_named(name)?;
        if let Some(service) = self.services.values().find(|service| service.pool == id && !service.leaving) {
            return Err(Refusal::PoolInUse { pool: name.to_owned(), service: service.name.clone() });
        }
        report.sessions = self.pools[id].members.values().map(|server| self.servers[*server].traffic.active).sum();
        if !report.dry_run {
            self.take_pool(id, now);
        }
        Ok(vec![Effect::Save])
    }

    /// Takes a pool away. It stays out of sight until the last session of its servers has ended.
    pub(super) fn take_pool(&mut self, id: PoolId, now: Instant) {
        self.pools[id].leaving = true;
        for server in self.pools[id].members.values().copied().collect::<Vec<_>>() {
            if self.servers[server].leaving.is_none() {
                self.servers[server].leave(Removal::Wait { limit_ms: None }, now);
                self.sync(server);
            }
            self.forget_if_gone(server);
        }
        self.forget_pool_if_gone(id);
    }

    fn set_pool(
        &mut self,
        name: &str,
        values: &PoolValues,
        report: &mut ChangeReport,
        now: Instant,
    ) -> Result<Vec<Effect>, Refusal> {
        let id = self.pool_named(name)?;
        if *values == PoolValues::default() {
            return Err(Refusal::NothingToSet);
        }
        let before = self.pools[id].settings.clone();
        let settings = PoolSettings {
            policy: values.policy.unwrap_or(before.policy),
            key: values.key.unwrap_or(before.key),
            max_load: values.max_load.unwrap_or(before.max_load),
            points_per_weight: values.points_per_weight.unwrap_or(before.points_per_weight),
            slow_start_ms: values.slow_start_ms.unwrap_or(before.slow_start_ms),
            send_proxy: values.send_proxy.unwrap_or(before.send_proxy),
            ..PoolSettings::default()
        };
        check_pool(&settings)?;
        check_points(&settings, self.points(id, &settings))?;
        report.sessions = self.pools[id].picker.active();
        if before.policy != settings.policy || before.points_per_weight != settings.points_per_weight {
            let mut after = Pool::new(name, &settings);
            after.members.clone_from(&self.pools[id].members);
            after.rebuild(&self.servers, None)?;
            if let (Some(old), Some(new)) = (self.pools[id].picker.ring(), after.picker.ring()) {
                tell_diff(&old.diff(new), report);
            }
            report.digest = Some(after.digest(&self.servers));
            if !report.dry_run {
                self.pools[id] = after;
            }
        } else if !report.dry_run {
            self.pools[id].settings = settings;
        }
        if !report.dry_run && values.slow_start_ms.is_some() {
            self.start_anew(id, now);
        }
        report.digest.get_or_insert_with(|| self.digest_of(id));
        Ok(vec![Effect::Save])
    }

    fn add_service(&mut self, name: &str, settings: &ServiceSettings, dry_run: bool) -> Result<Vec<Effect>, Refusal> {
        check_name(name)?;
        if self.service_named(name).is_ok() {
            return Err(Refusal::ServiceThere { service: name.to_owned() });
        }
        let pool = self.pool_named(&settings.pool)?;
        check_room(0, self.wanted_listeners().count() + settings.listen.len())?;
        let others = self.services.values().filter(|service| !service.leaving);
        // As they were asked for, and with the ports that the kernel chose.
        let taken: Vec<(SocketAddr, &str)> = others
            .flat_map(|service| {
                let addresses = service.settings.listen.iter().chain(&service.addresses);
                addresses.map(|listen| (*listen, service.name.as_str()))
            })
            .collect();
        check_service(settings, &taken)?;
        for pool in self.pools.values() {
            for &server in pool.members.keys() {
                if let Some(listen) = settings.listen.iter().find(|listen| answers_at(**listen, server)) {
                    return Err(Refusal::ListensAtServer { listen: *listen, server, pool: pool.name.clone() });
                }
            }
        }
        if dry_run {
            return Ok(Vec::new());
        }
        let id = self.services.insert(Service::new(name, settings.clone(), pool));
        Ok(vec![Effect::Save, Effect::Listen(id)])
    }

    /// Gives a server of a pool, a new one or one that is there, these settings. It does not leave any more; where it comes
    /// up `slowly`, from now on, it gets its weight little by little. [`Model::sync`] puts it in its place.
    pub(super) fn put(
        &mut self,
        pool: PoolId,
        address: SocketAddr,
        settings: ServerSettings,
        slowly: Option<Instant>,
    ) -> ServerId {
        let entries = &mut self.pools[pool].members;
        let is_new = !entries.contains_key(&address);
        let id = *entries.entry(address).or_insert_with(|| self.servers.insert(Server::new(pool, address, settings)));
        let entry = &mut self.servers[id];
        let was_eligible = !is_new && entry.is_eligible();
        (entry.settings, entry.leaving) = (settings, None);
        let has_others = self.pools[pool].picker.len() > usize::from(was_eligible);
        if !entry.is_eligible() {
            entry.ramp = None;
        } else if let Some(now) = slowly.filter(|_| !was_eligible && has_others) {
            self.start_slowly(id, now);
        }
        id
    }

    /// A server comes up where others are: its weight grows, if the pool is set to that.
    fn start_slowly(&mut self, id: ServerId, now: Instant) {
        let server = &mut self.servers[id];
        let Some(time) = self.pools[server.pool].slow_start() else { return };
        if server.is_eligible() {
            let ramp = Ramp { since: now, part: 1 };
            server.ramp = Some(ramp);
            self.ramps.insert((ramp.next(time), id));
        }
    }

    /// The time of a slow start is another one, or there is none any more: those under way are looked at.
    pub(super) fn start_anew(&mut self, pool: PoolId, now: Instant) {
        let its = self.pools[pool].members.values().copied();
        self.ramps.extend(its.filter(|id| self.servers[*id].ramp.is_some()).map(|id| (now, id)));
    }

    /// Puts a server where it belongs. That there is room for its points was checked.
    pub(super) fn sync(&mut self, id: ServerId) {
        let server = &self.servers[id];
        let synced = self.pools[server.pool].sync(id, server);
        debug_assert_eq!(synced, Ok(()));
    }

    /// Whether the ring of a pool has room for a server of these settings, in place of `before`: for all of its points,
    /// eligible or not.
    fn check_points_of(
        &self,
        id: PoolId,
        before: Option<&ServerSettings>,
        settings: &ServerSettings,
    ) -> Result<(), Refusal> {
        let pool = &self.pools[id].settings;
        if pool.policy != Policy::ConsistentHash {
            return Ok(());
        }
        let others = self.points(id, pool) - before.map_or(0, |before| points_of(pool, before));
        check_points(pool, others + points_of(pool, settings))
    }

    /// Points that the servers of a pool have if all are eligible.
    fn points(&self, id: PoolId, settings: &PoolSettings) -> u64 {
        let members = self.pools[id].members.values().map(|id| &self.servers[*id]);
        members.filter(|server| server.leaving.is_none()).map(|server| points_of(settings, &server.settings)).sum()
    }

    /// Who moves when a server gets this weight, once it has started, and the digest of the pool then.
    fn tell_moves(
        &self,
        pool: PoolId,
        server: SocketAddr,
        weight: u32,
        report: &mut ChangeReport,
    ) -> Result<(), Refusal> {
        report.digest = Some(self.pools[pool].digest_with(&self.servers, &[(server, weight)]));
        let Some(ring) = self.pools[pool].picker.ring() else { return Ok(()) };
        tell_diff(&ring.plan(server.into(), weight).map_err(|error| refusal(&error))?, report);
        Ok(())
    }

    pub(super) fn digest_of(&self, pool: PoolId) -> Hex {
        self.pools[pool].digest(&self.servers)
    }
}

fn tell_diff(diff: &Diff, report: &mut ChangeReport) {
    report.moved = diff.moved.fraction();
    report.moves = diff.moves.iter().take(MOST_MOVES).map(move_report).collect();
}
