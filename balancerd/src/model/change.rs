//! Single changes: checked first, and then made as a whole or, in a dry run, not at all. Each says who moves. Where that
//! takes longer than the loop has time for, a change ends behind its checks with what its ring is made from, and begins
//! anew when that is there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::Ring;
use wire::address::{answers_at, canonical};
use wire::control::{Change, MAX_SERVERS, PoolValues, Refusal, Removal, ServerValues};
use wire::report::{ChangeReport, EndReason, Hex, MoveReport};
use wire::settings::{Policy, PoolSettings, ServerSettings, ServiceSettings};

use super::access::Access;
use super::check::{
    Taken, check_name, check_points, check_pool, check_room, check_server, check_service, check_together, listeners,
    points_of,
};
use super::checks::checked_otherwise;
use super::picker::{Picker, points};
use super::pool::Pool;
use super::remake::{MOST_MOVES, Remade, Remake, Step, moves_between, moves_of_one};
use super::server::{RAMP_PARTS, Ramp, Server};
use super::service::Service;
use super::{Effect, Model, PoolId, ServerId};

/// Why a change is not made.
#[derive(Debug)]
pub(super) enum Halt {
    Refused(Refusal),
    /// It takes a ring that is to be made first.
    Remake(Box<Remake>),
}

impl From<Refusal> for Halt {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A change that is being made.
struct Work {
    report: ChangeReport,
    /// Its ring, if somebody has made it.
    remade: Option<Remade>,
    now: Instant,
}

impl Model {
    pub(super) fn change(
        &mut self,
        change: &Change,
        dry_run: bool,
        remade: Option<Remade>,
        now: Instant,
    ) -> Result<(ChangeReport, Vec<Effect>), Halt> {
        let report = ChangeReport {
            change: change.clone(),
            dry_run,
            moved: 0.0,
            moves: Vec::new(),
            sessions: 0,
            digest: None,
            unsaved: None,
        };
        let mut work = Work { report, remade, now };
        let effects = match change {
            Change::Add { pool, server, settings } => {
                let pool = self.pool_named(pool)?;
                self.add(pool, canonical(*server), *settings, &mut work)?
            }
            Change::Remove { pool, server, how } => {
                let pool = self.pool_named(pool)?;
                self.remove(pool, canonical(*server), *how, &mut work)?
            }
            Change::Set { pool, server, values } => {
                let pool = self.pool_named(pool)?;
                self.set(pool, canonical(*server), values, &mut work)?
            }
            Change::AddPool { pool, settings } => self.add_pool(pool, settings, &mut work)?,
            Change::RemovePool { pool } => self.remove_pool(pool, &mut work)?,
            Change::SetPool { pool, values } => self.set_pool(pool, values, &mut work)?,
            Change::AddService { service, settings } => self.add_service(service, settings, dry_run)?,
            Change::RemoveService { service } => {
                let id = self.service_named(service)?;
                work.report.sessions = self.services[id].traffic.active;
                self.services[id].leaving = !dry_run;
                vec![Effect::Save, Effect::Unlisten(id)]
            }
            Change::Kill { session } => {
                work.report.sessions = 1;
                vec![Effect::EndSession(*session)]
            }
            Change::KillAll { pool, server } => {
                let pool = self.pool_named(pool)?;
                let id = self.member(pool, canonical(*server))?;
                work.report.sessions = self.servers[id].traffic.active;
                vec![Effect::EndSessions(id, EndReason::Killed)]
            }
        };
        Ok((work.report, if dry_run { Vec::new() } else { effects }))
    }

    fn member(&self, pool: PoolId, server: SocketAddr) -> Result<ServerId, Refusal> {
        self.pools[pool].members.get(&server).copied().ok_or(Refusal::NotThere { server })
    }

    fn add(
        &mut self,
        pool: PoolId,
        address: SocketAddr,
        settings: ServerSettings,
        work: &mut Work,
    ) -> Result<Vec<Effect>, Halt> {
        check_server(address, &settings)?;
        let services = || self.services.values().filter(|service| !service.leaving);
        let would_come_back = |by: &Service| {
            let mut its = services().filter(|other| other.settings.protocol.overlaps(by.settings.protocol));
            its.any(|service| service.answers_at(address))
        };
        if services().any(|service| service.pool == pool && would_come_back(service)) {
            return Err(Refusal::Itself { server: address }.into());
        }
        let known = self.pools[pool].members.get(&address).copied();
        match known.map(|id| &self.servers[id]) {
            Some(entry) if entry.leaving.is_none() => {
                return Err(Refusal::AlreadyThere { server: address, weight: entry.settings.weight }.into());
            }
            None if self.pools[pool].members.len() >= MAX_SERVERS => return Err(Refusal::TooManyServers.into()),
            _ => {}
        }
        self.check_points_of(pool, None, &settings)?;
        work.report.sessions = known.map_or(0, |id| self.servers[id].traffic.active);
        self.tell_moves(pool, address, Some(settings), work)?;
        if !work.report.dry_run {
            let id = self.put(pool, address, settings, true, work.now);
            self.place_with(id, work);
        }
        Ok(vec![Effect::Save])
    }

    fn remove(
        &mut self,
        pool: PoolId,
        address: SocketAddr,
        how: Removal,
        work: &mut Work,
    ) -> Result<Vec<Effect>, Halt> {
        let id = self.member(pool, address)?;
        let entry = &self.servers[id];
        work.report.sessions = entry.traffic.active;
        // Another grade may be asked for while it leaves, the same as before may not.
        if entry.leaving.is_some_and(|leave| leave.how == how) && how != Removal::Now {
            return Err(Refusal::Leaving { server: address, sessions: entry.traffic.active }.into());
        }
        self.tell_moves(pool, address, None, work)?;
        let mut effects = vec![Effect::Save];
        if how == Removal::Now {
            effects.push(Effect::EndSessions(id, EndReason::Removed));
        }
        if !work.report.dry_run {
            self.servers[id].leave(how, work.now);
            self.place_with(id, work);
            self.timers.retain(|(_, other)| *other != id);
            if how != (Removal::Wait { limit_ms: None }) && how != Removal::Now {
                self.timers.insert((work.now, id));
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
        work: &mut Work,
    ) -> Result<Vec<Effect>, Halt> {
        let id = self.member(pool, address)?;
        let entry = &self.servers[id];
        work.report.sessions = entry.traffic.active;
        if entry.leaving.is_some() {
            return Err(Refusal::Leaving { server: address, sessions: entry.traffic.active }.into());
        }
        if *values == ServerValues::default() {
            return Err(Refusal::NothingToSet.into());
        }
        let before = entry.settings;
        let settings = values.over(&before);
        check_server(address, &settings)?;
        self.check_points_of(pool, Some(&before), &settings)?;
        self.tell_moves(pool, address, Some(settings), work)?;
        if !work.report.dry_run {
            self.put(pool, address, settings, true, work.now);
            self.place_with(id, work);
        }
        Ok(vec![Effect::Save])
    }

    fn add_pool(&mut self, name: &str, settings: &PoolSettings, work: &mut Work) -> Result<Vec<Effect>, Halt> {
        check_name(name)?;
        check_pool(settings)?;
        if self.pool_named(name).is_ok() {
            return Err(Refusal::PoolThere { pool: name.to_owned() }.into());
        }
        if let Some((server, one)) = settings.servers.first_key_value() {
            // A pool is made empty: its servers come by `add`, each with its own answer.
            check_server(*server, one)?;
            return Err(Refusal::BadValue {
                key: "servers".to_owned(),
                fault: "a pool is made without servers; add them one by one".to_owned(),
            }
            .into());
        }
        check_room(self.pools.len() + 1, 0)?;
        let pool = Pool::new(name, settings);
        work.report.digest = Some(pool.digest(&self.servers));
        if !work.report.dry_run {
            self.pools.insert(pool);
        }
        Ok(vec![Effect::Save])
    }

    fn remove_pool(&mut self, name: &str, work: &mut Work) -> Result<Vec<Effect>, Halt> {
        let id = self.pool_named(name)?;
        if let Some(service) = self.services.values().find(|service| service.pool == id && !service.leaving) {
            return Err(Refusal::PoolInUse { pool: name.to_owned(), service: service.name.clone() }.into());
        }
        work.report.sessions = self.pools[id].members.values().map(|server| self.servers[*server].traffic.active).sum();
        if !work.report.dry_run {
            self.take_pool(id, work.now);
        }
        Ok(vec![Effect::Save])
    }

    /// Takes a pool away. It stays out of sight until the last session of its servers has ended.
    pub(super) fn take_pool(&mut self, id: PoolId, now: Instant) {
        self.picks_changed = true;
        let pool = &mut self.pools[id];
        pool.leaving = true;
        for picker in [&mut pool.picker, &mut pool.backups] {
            let old = std::mem::replace(picker, Picker::new(&pool.settings));
            self.old_rings.extend(old.into_ring().filter(|ring| !ring.is_empty()));
        }
        for server in self.pools[id].members.values().copied().collect::<Vec<_>>() {
            if self.servers[server].leaving.is_none() {
                self.servers[server].leave(Removal::Wait { limit_ms: None }, now);
                self.watch(server, now);
            }
            self.forget_if_gone(server);
        }
        self.forget_pool_if_gone(id);
    }

    fn set_pool(&mut self, name: &str, values: &PoolValues, work: &mut Work) -> Result<Vec<Effect>, Halt> {
        let id = self.pool_named(name)?;
        if *values == PoolValues::default() {
            return Err(Refusal::NothingToSet.into());
        }
        let before = self.pools[id].settings.clone();
        let settings = values.over(&before);
        let times_differ = before.server_side != settings.server_side;
        check_pool(&settings)?;
        for service in self.services.values().filter(|service| service.pool == id && !service.leaving) {
            check_together((&service.name, &service.settings), (name, &settings))?;
        }
        check_points(&settings, self.points(id, &settings))?;
        work.report.sessions = self.pools[id].serving().active();
        if before.policy != settings.policy || before.points_per_weight != settings.points_per_weight {
            self.rebuild_pool(id, settings, work)?;
        } else if !work.report.dry_run {
            self.pools[id].settings = settings;
        }
        let after = &self.pools[id].settings;
        if !work.report.dry_run && checked_otherwise(&before, after) {
            self.watch_all(id, work.now);
        }
        // Flows that were to stay may be to move now.
        self.picks_changed |= !work.report.dry_run;
        if !work.report.dry_run && values.slow_start_ms.is_some() {
            self.start_anew(id, work.now);
        }
        work.report.digest.get_or_insert_with(|| self.digest_of(id));
        let mut effects = vec![Effect::Save];
        if times_differ {
            effects.push(Effect::LookAtSessions);
        }
        Ok(effects)
    }

    /// Another policy for a pool, or another ring of all of its servers.
    fn rebuild_pool(&mut self, id: PoolId, settings: PoolSettings, work: &mut Work) -> Result<(), Halt> {
        let mut after = Pool::new(&self.pools[id].name, &settings);
        after.members.clone_from(&self.pools[id].members);
        work.report.digest = Some(after.digest_with(&self.servers, &[]));
        if let Some(mut remade) = work.remade.take() {
            (work.report.moved, work.report.moves) = remade.take_moves();
            if !work.report.dry_run {
                self.pools[id].settings = settings;
                self.take_ring(id, remade, work.now);
            }
            return Ok(());
        }
        let before = &self.pools[id];
        let has_ring = settings.policy == Policy::ConsistentHash;
        let of_old = before.picker.ring().map_or(0, |ring| ring.points().len());
        if has_ring && of_old.max(before.points_at(&self.servers, settings.points_per_weight)) > self.points_in_the_loop
        {
            let after = before.blueprint(false, &self.servers, settings.points_per_weight);
            return Err(self.remake(id, Step::Another(after), work));
        }
        after.rebuild(&self.servers, None)?;
        if let (Some(old), Some(new)) = (before.picker.ring(), after.picker.ring()) {
            (work.report.moved, work.report.moves) = moves_between(old, new, &before.passed_over(false, &self.servers));
        }
        if !work.report.dry_run {
            let before = std::mem::replace(&mut self.pools[id], after);
            self.old_rings.extend(before.picker.into_ring());
        }
        Ok(())
    }

    fn add_service(&mut self, name: &str, settings: &ServiceSettings, dry_run: bool) -> Result<Vec<Effect>, Refusal> {
        check_name(name)?;
        if self.service_named(name).is_ok() {
            return Err(Refusal::ServiceThere { service: name.to_owned() });
        }
        let pool = self.pool_named(&settings.pool)?;
        let others = self.services.values().filter(|service| !service.leaving);
        check_room(0, others.map(|service| listeners(&service.settings)).sum::<usize>() + listeners(settings))?;
        let others = self.services.values().filter(|service| !service.leaving);
        // As they were asked for, and with the ports that the kernel chose.
        let taken: Vec<Taken<'_>> = others
            .flat_map(|service| {
                let (protocol, name) = (service.settings.protocol, service.name.as_str());
                let addresses = service.settings.listen.iter().chain(&service.addresses);
                addresses.map(move |listen| Taken { listen: *listen, protocol, service: name })
            })
            .collect();
        check_service(settings, &taken)?;
        for (key, file) in [("allow_file", &settings.allow_file), ("deny_file", &settings.deny_file)] {
            if file.is_some() {
                let fault = "it is set in the configuration file alone, with which it is read".to_owned();
                return Err(Refusal::BadValue { key: key.to_owned(), fault });
            }
        }
        check_together((name, settings), (&settings.pool, &self.pools[pool].settings))?;
        let mut overlapping = self
            .services
            .values()
            .filter(|service| !service.leaving)
            .filter(|service| service.settings.protocol.overlaps(settings.protocol));
        let speaking: Vec<PoolId> = overlapping.clone().map(|service| service.pool).chain([pool]).collect();
        for pool in self.pools.iter().filter(|(id, _)| speaking.contains(id)).map(|(_, pool)| pool) {
            for &server in pool.members.keys() {
                if let Some(listen) = settings.listen.iter().find(|listen| answers_at(**listen, server)) {
                    return Err(Refusal::ListensAtServer { listen: *listen, server, pool: pool.name.clone() });
                }
            }
        }
        let is_one_of_ours = |server: &&SocketAddr| overlapping.any(|service| service.answers_at(**server));
        if let Some(server) = self.pools[pool].members.keys().find(is_one_of_ours) {
            return Err(Refusal::Itself { server: *server });
        }
        if dry_run {
            return Ok(Vec::new());
        }
        let access = Access::new(settings);
        let id = self.services.insert(Service::new(name, settings.clone(), pool, access));
        Ok(vec![Effect::Save, Effect::Listen(id)])
    }

    /// Gives a server of a pool, a new one or one that is there, these settings. It does not leave any more; where it comes
    /// up `slowly`, it gets its weight little by little. [`Model::place`] puts it in its place.
    pub(super) fn put(
        &mut self,
        pool: PoolId,
        address: SocketAddr,
        settings: ServerSettings,
        slowly: bool,
        now: Instant,
    ) -> ServerId {
        let slowly = if slowly { self.comes_up_within(pool, address) } else { None };
        let its_pool = &mut self.pools[pool];
        let check = &its_pool.settings.health.check;
        let new = || self.servers.insert(Server::new(pool, address, settings, check, now));
        let id = *its_pool.members.entry(address).or_insert_with(new);
        let entry = &mut self.servers[id];
        (entry.settings, entry.leaving) = (settings, None);
        if !entry.takes_part() {
            (entry.ramp, entry.waits) = (None, None);
        } else if let Some(time) = slowly {
            self.start_slowly(id, time, now);
        }
        id
    }

    /// How long the weight of a server would grow if it came up now: one comes up where others are, in a pool that is set
    /// to that.
    fn comes_up_within(&self, pool: PoolId, address: SocketAddr) -> Option<Duration> {
        let pool = &self.pools[pool];
        let takes_part = pool.members.get(&address).is_some_and(|id| self.servers[*id].takes_part());
        pool.slow_start().filter(|_| !takes_part && pool.len() > 0)
    }

    /// The weight of a server grows over this time, from now on.
    pub(super) fn start_slowly(&mut self, id: ServerId, time: Duration, now: Instant) {
        let ramp = Ramp { since: now, part: 1 };
        let server = &mut self.servers[id];
        (server.ramp, server.waits) = (Some(ramp), None);
        self.ramps.insert((ramp.next(time), id));
    }

    /// The time of a slow start is another one, or there is none any more: those under way are looked at.
    pub(super) fn start_anew(&mut self, pool: PoolId, now: Instant) {
        let its = self.pools[pool].members.values().copied();
        self.ramps.extend(its.filter(|id| self.servers[*id].ramp.is_some()).map(|id| (now, id)));
    }

    /// Puts a server where it belongs. That there is room for its points was checked.
    pub(super) fn place(&mut self, id: ServerId) {
        self.picks_changed = true;
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

    /// Who moves when a server of a pool gets these settings, or goes, once it has started, while who is not up stays so; and
    /// the digest of the pool then. Halts where the ring that comes of it is to be made first: that of the backups is made
    /// here, for they are few.
    fn tell_moves(
        &self,
        pool: PoolId,
        server: SocketAddr,
        settings: Option<ServerSettings>,
        work: &mut Work,
    ) -> Result<(), Halt> {
        let its_pool = &self.pools[pool];
        let settings = settings.unwrap_or(ServerSettings { weight: 0, ..ServerSettings::default() });
        let weight = |of_backups| if settings.backup == of_backups { settings.ready_weight() } else { 0 };
        work.report.digest = Some(its_pool.digest_with(&self.servers, &[(server, settings)]));
        let Some(ring) = its_pool.picker.ring() else { return Ok(()) };
        let points = points(ring.points_per_weight(), weight(false), RAMP_PARTS);
        let known = its_pool.members.get(&server).copied();
        let changes = points.abs_diff(ring.point_count(server.into())) as usize;
        let is_large = changes > self.points_in_the_loop || changes > 0 && self.is_large(ring);
        if is_large && work.remade.is_none() {
            let step = Step::Server { address: server, weight: weight(false), id: known.unwrap_or_default() };
            return Err(self.remake(pool, step, work));
        }
        let is_up = known.map_or(its_pool.newcomers_are_up(), |id| self.servers[id].is_up());
        let was_up = |picker: &Picker| usize::from(is_up && known.is_some_and(|id| picker.has(id)));
        let up = |picker: &Picker, weight| picker.up() - was_up(picker) + usize::from(is_up && weight > 0);
        let backups_will_serve = up(&its_pool.picker, weight(false)) == 0 && up(&its_pool.backups, weight(true)) > 0;
        let report = &mut work.report;
        match (its_pool.backups_serve(), backups_will_serve) {
            (false, false) => {
                (report.moved, report.moves) = match &mut work.remade {
                    Some(remade) => remade.take_moves(),
                    None => moves_of_one(ring, server, weight(false), &its_pool.passed_over(false, &self.servers))?,
                };
            }
            (true, true) => {
                if let Some(ring) = its_pool.backups.ring() {
                    let passed = its_pool.passed_over(true, &self.servers);
                    (report.moved, report.moves) = moves_of_one(ring, server, weight(true), &passed)?;
                }
            }
            // All go from the one to the backups, or from those to it.
            (from_backups, _) => {
                report.moved = 1.0;
                let shares = its_pool.backups.shares(|id| self.servers[id].is_up());
                let one = |(backup, share): (SocketAddr, f64)| match from_backups {
                    true => MoveReport { from: Some(backup), to: Some(server), share },
                    false => MoveReport { from: Some(server), to: Some(backup), share },
                };
                report.moves = shares.into_iter().filter(|(_, share)| *share > 0.0).take(MOST_MOVES).map(one).collect();
            }
        }
        Ok(())
    }

    /// What the ring is made from that a change needs.
    fn remake(&self, id: PoolId, step: Step, work: &Work) -> Halt {
        let pool = &self.pools[id];
        let (before, passed) = (pool.picker.ring().map(Arc::clone), pool.passed_over(false, &self.servers));
        let mut starting = self.starting_in(id);
        if let Step::Server { address, weight, .. } = step {
            if weight == 0 {
                starting.remove(&address);
            } else if self.comes_up_within(id, address).is_some() {
                starting.insert(address, 1);
            }
        }
        Halt::Remake(Box::new(Remake { before, step, passed, starting, dry_run: work.report.dry_run }))
    }

    /// Puts a server where it belongs, with the ring that was made for that or without.
    fn place_with(&mut self, id: ServerId, work: &mut Work) {
        let pool = self.servers[id].pool;
        if let Some(remade) = work.remade.take() {
            self.swap_ring(pool, remade, work.now);
        }
        self.place(id);
        self.watch(id, work.now);
        self.rescue(pool, work.now);
    }

    /// Gives a pool the ring that was made for other settings of it.
    fn take_ring(&mut self, id: PoolId, remade: Remade, now: Instant) {
        self.take_parts(id, &remade.starting, now);
        self.rebuild(id, remade.ring);
    }

    /// Gives a pool the ring that was made of its own, and puts those in their place who start slowly.
    pub(super) fn swap_ring(&mut self, id: PoolId, remade: Remade, now: Instant) {
        self.picks_changed = true;
        let changed = self.take_parts(id, &remade.starting, now);
        let old = remade.ring.and_then(|ring| self.pools[id].picker.swap_ring(ring));
        self.old_rings.extend(old);
        changed.into_iter().for_each(|server| self.place(server));
    }

    /// Whether a ring has so many points that it becomes another one beside the loop.
    pub(super) fn is_large(&self, ring: &Ring<ServerId>) -> bool {
        ring.points().len() > self.ring_in_the_loop
    }

    pub(super) fn digest_of(&self, pool: PoolId) -> Hex {
        self.pools[pool].digest(&self.servers)
    }
}
