//! The logic of the balancer: no sockets, no clock, no randomness, no logging.
//!
//! After the start, [`Model::apply`] is the only function that changes services, pools and servers, whoever asks. The
//! other functions that take `&mut self` are news from the sockets: they count, and a server that was removed goes with
//! the last of its sessions.

mod policy;
mod pool;
mod server;
mod service;
mod traffic;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use slotmap::SlotMap;
use wire::control::{Change, MAX_SERVERS, MAX_WEIGHT, Refusal, Request, Response, check_address};
use wire::report::{
    ChangeReport, DigestReport, EndReason, ExplainReport, Hex, ListReport, MoveReport, Phase, SkippedReport,
    StatusReport, StoppingReport,
};

use pool::Pool;
use server::Server;
use service::Service;
pub(crate) use traffic::Direction;

slotmap::new_key_type! {
    /// A service, as long as it exists.
    pub(crate) struct ServiceId;
    /// A pool, as long as it exists.
    pub(crate) struct PoolId;
    /// A server, until it was removed and its last session has ended.
    pub(crate) struct ServerId;
}

/// The pool that commands mean.
pub(crate) const DEFAULT_POOL: &str = "default";

/// How many servers behind the picked one `explain` names.
const EXPLAINED_SUCCESSORS: usize = 2;

/// A longer drain than a year is one without an end.
const LONGEST_DRAIN: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Services, pools, servers, and what is counted of them.
#[derive(Debug)]
pub(crate) struct Model {
    services: SlotMap<ServiceId, Service>,
    pools: SlotMap<PoolId, Pool>,
    servers: SlotMap<ServerId, Server>,
    default_pool: PoolId,
    /// When the sessions that are left are closed, once it was told to stop.
    stop_at: Option<Instant>,
    /// What the process around the model knows of itself. The daemon keeps it up to date; the model only reports it.
    pub(crate) vitals: Vitals,
}

/// Facts of the process that `status` shows.
#[derive(Debug, Clone)]
pub(crate) struct Vitals {
    pub(crate) pid: u32,
    pub(crate) started: Instant,
    pub(crate) session_limit: usize,
    pub(crate) drain_timeout: Duration,
    pub(crate) state_file: String,
    pub(crate) log: String,
    pub(crate) unsaved: Option<String>,
    pub(crate) longest_turn: Duration,
    pub(crate) log_lines_dropped: u64,
}

/// What the daemon has to do after a request was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Write the pool to the state file, and answer then.
    Save,
    /// End the sessions of a server.
    EndSessions(ServerId, EndReason),
    /// Take no new sessions, and end when the last one has ended or this time has come.
    Stop(Instant),
}

/// A server as the state file keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) server: SocketAddr,
    pub(crate) weight: u32,
}

/// How a connect came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectFailure {
    /// The server refused it, or the way to it failed.
    Refused,
    /// Nothing came back in time.
    TimedOut,
}

impl Model {
    /// A model with the pool `default`, empty.
    pub(crate) fn new(points_per_weight: NonZeroU32, vitals: Vitals) -> Self {
        let mut pools = SlotMap::with_key();
        let default_pool = pools.insert(Pool::new(DEFAULT_POOL, points_per_weight));
        Self { services: SlotMap::with_key(), pools, servers: SlotMap::with_key(), default_pool, stop_at: None, vitals }
    }

    /// Adds a service on the default pool.
    pub(crate) fn add_service(&mut self, name: &str, listen: SocketAddr) -> ServiceId {
        self.services.insert(Service::new(name, listen, self.default_pool))
    }

    /// The service is bound: `listen` has the port that the kernel chose for port 0.
    pub(crate) fn listening(&mut self, service: ServiceId, listen: SocketAddr) {
        self.services[service].listen = listen;
    }

    /// Fills the empty default pool with what the state file kept.
    pub(crate) fn restore(&mut self, kept: &[Kept]) -> Result<(), Refusal> {
        for &Kept { server, weight } in kept {
            let server = canonical(server);
            self.check_addition(server, weight)?;
            let id = self.servers.insert(Server::new(server, weight));
            self.pools[self.default_pool].members.insert(server, id);
        }
        self.pools[self.default_pool].rebuild(&self.servers)
    }

    /// What the state file has to keep of the default pool.
    pub(crate) fn kept(&self) -> Vec<Kept> {
        let members = self.pools[self.default_pool].members.values().map(|id| &self.servers[*id]);
        members
            .filter(|server| !server.leaving)
            .map(|server| Kept { server: server.address, weight: server.weight })
            .collect()
    }

    /// Carries out a request, or refuses it and changes nothing.
    pub(crate) fn apply(&mut self, request: &Request, now: Instant) -> (Response, Vec<Effect>) {
        match request {
            Request::Status => (Response::Status(self.status(now)), Vec::new()),
            Request::List => (Response::List(self.list()), Vec::new()),
            Request::Explain { client } => (Response::Explained(self.explain(*client)), Vec::new()),
            Request::Digest => (Response::Digest(self.digest()), Vec::new()),
            Request::Stop { now: at_once, drain_ms } => {
                let drain = if *at_once { Some(Duration::ZERO) } else { drain_ms.map(Duration::from_millis) };
                self.stop(drain, now)
            }
            Request::Change { .. } if self.phase() == Phase::Stopping => {
                (Response::Refused(Refusal::Stopping), Vec::new())
            }
            Request::Change { change, dry_run } => match self.change(change, *dry_run) {
                Ok((report, effects)) => (Response::Changed(report), effects),
                Err(refusal) => (Response::Refused(refusal), Vec::new()),
            },
        }
    }

    /// The server for a client of a service that is none of those `tried`, and its address.
    pub(crate) fn pick(
        &self,
        service: ServiceId,
        client: IpAddr,
        tried: &[ServerId],
    ) -> Option<(ServerId, SocketAddr)> {
        let ring = &self.pools[self.services[service].pool].ring;
        let key = ring::Key::of_ip(client);
        let id = match tried {
            [] => ring.pick(key)?.tag,
            _ => ring.successors(key).map(|member| member.tag).find(|id| !tried.contains(id))?,
        };
        Some((id, self.servers[id].address))
    }

    /// A session began.
    pub(crate) fn session_began(&mut self, service: ServiceId) {
        self.services[service].traffic.began();
        self.services[service].traffic.total += 1;
    }

    /// A session is connecting to a server: the server does not go while it has the session.
    pub(crate) fn connect_began(&mut self, server: ServerId) {
        self.servers[server].traffic.began();
    }

    /// The server answered the connect of a session.
    pub(crate) fn connect_done(&mut self, server: ServerId) {
        self.servers[server].traffic.total += 1;
    }

    /// The server did not answer as it should; the session is no longer its own.
    pub(crate) fn connect_failed(&mut self, server: ServerId, failure: ConnectFailure) {
        let entry = &mut self.servers[server];
        match failure {
            ConnectFailure::Refused => entry.connect_failures += 1,
            ConnectFailure::TimedOut => entry.connect_timeouts += 1,
        }
        entry.traffic.left();
        self.forget_if_gone(server);
    }

    /// Bytes of a session reached the other side.
    pub(crate) fn relayed(&mut self, service: ServiceId, server: ServerId, direction: Direction, bytes: usize) {
        self.services[service].traffic.relayed(direction, bytes);
        self.servers[server].traffic.relayed(direction, bytes);
    }

    /// A session ended; `server` is the one it had at that moment, if it had one.
    pub(crate) fn session_ended(&mut self, service: ServiceId, server: Option<ServerId>, reason: EndReason) {
        self.services[service].traffic.ended(reason);
        if let Some(server) = server {
            self.servers[server].traffic.ended(reason);
            self.forget_if_gone(server);
        }
    }

    /// A connection could not be accepted.
    pub(crate) fn accept_failed(&mut self, service: ServiceId) {
        self.services[service].accept_failures += 1;
    }

    /// The service began or ceased to accept.
    pub(crate) fn accepting(&mut self, service: ServiceId, accepting: bool) {
        self.services[service].accepting = accepting;
    }

    /// The address of a server, for a log line.
    pub(crate) fn server_address(&self, server: ServerId) -> SocketAddr {
        self.servers[server].address
    }

    /// Whether new sessions are taken.
    pub(crate) fn phase(&self) -> Phase {
        if self.stop_at.is_some() { Phase::Stopping } else { Phase::Running }
    }

    fn change(&mut self, change: &Change, dry_run: bool) -> Result<(ChangeReport, Vec<Effect>), Refusal> {
        let before = self.pools[self.default_pool].ring.clone();
        let mut after = before.clone();
        let (id, effects) = match *change {
            Change::Add { server, weight } => {
                let server = canonical(server);
                self.check_addition(server, weight)?;
                // A dry run needs no entry: the tag of a ring that is thrown away is never looked up.
                let id = match self.pools[self.default_pool].members.get(&server) {
                    Some(id) => *id,
                    None if dry_run => ServerId::default(),
                    None => self.servers.insert(Server::new(server, weight)),
                };
                if let Err(error) = after.set(server.into(), weight, id) {
                    self.forget_unless_member(id);
                    return Err(pool::refusal(&error));
                }
                if !dry_run {
                    let entry = &mut self.servers[id];
                    (entry.weight, entry.leaving) = (weight, false);
                    self.pools[self.default_pool].members.insert(server, id);
                }
                (id, vec![Effect::Save])
            }
            Change::Remove { server, now } => {
                let server = canonical(server);
                let id = *self.pools[self.default_pool].members.get(&server).ok_or(Refusal::NotThere { server })?;
                let entry = &mut self.servers[id];
                if entry.leaving && !now {
                    return Err(Refusal::Leaving { server, sessions: entry.traffic.active });
                }
                after.remove(server.into());
                entry.leaving |= !dry_run;
                let mut effects = vec![Effect::Save];
                if now {
                    effects.push(Effect::EndSessions(id, EndReason::Removed));
                }
                (id, effects)
            }
        };
        let diff = before.diff(&after);
        let moves = diff.moves.iter().map(|step| MoveReport {
            from: step.from.map(|identity| identity.addr()),
            to: step.to.map(|identity| identity.addr()),
            share: step.share.fraction(),
        });
        let report = ChangeReport {
            change: change.clone(),
            dry_run,
            moved: diff.moved.fraction(),
            moves: moves.collect(),
            sessions: self.servers.get(id).map_or(0, |server| server.traffic.active),
            digest: Hex(after.digest().value()),
            unsaved: None,
        };
        if dry_run {
            return Ok((report, Vec::new()));
        }
        self.pools[self.default_pool].ring = after;
        self.forget_if_gone(id);
        Ok((report, effects))
    }

    fn check_addition(&self, server: SocketAddr, weight: u32) -> Result<(), Refusal> {
        check_address(server).map_err(|fault| Refusal::Unaddressable { server, fault })?;
        if weight > MAX_WEIGHT {
            return Err(Refusal::WeightTooLarge { weight });
        }
        if self.services.values().any(|service| service.answers_at(server)) {
            return Err(Refusal::Itself { server });
        }
        let member = self.pools[self.default_pool].members.get(&server).map(|id| &self.servers[*id]);
        match member {
            Some(entry) if !entry.leaving => return Err(Refusal::AlreadyThere { server, weight: entry.weight }),
            None if self.servers.len() >= MAX_SERVERS => return Err(Refusal::TooManyServers),
            _ => {}
        }
        // Before the ring is copied: a copy that is thrown away can be a large one.
        self.pools[self.default_pool].check_room(weight)
    }

    /// A removed server goes with its last session.
    fn forget_if_gone(&mut self, id: ServerId) {
        let Some(server) = self.servers.get(id) else { return };
        if server.leaving && server.traffic.active == 0 {
            self.pools[self.default_pool].members.remove(&server.address);
            self.servers.remove(id);
        }
    }

    fn forget_unless_member(&mut self, id: ServerId) {
        let Some(server) = self.servers.get(id) else { return };
        if !self.pools[self.default_pool].members.contains_key(&server.address) {
            self.servers.remove(id);
        }
    }

    /// A time that is given replaces an earlier one; without one the earlier stands.
    fn stop(&mut self, drain: Option<Duration>, now: Instant) -> (Response, Vec<Effect>) {
        let at = match (drain, self.stop_at) {
            (None, Some(at)) => at,
            (drain, _) => now + drain.unwrap_or(self.vitals.drain_timeout).min(LONGEST_DRAIN),
        };
        self.stop_at = Some(at);
        let report = StoppingReport {
            pid: self.vitals.pid,
            sessions: self.services.values().map(|service| service.traffic.active).sum(),
            drain_ms: milliseconds(at.saturating_duration_since(now)),
        };
        (Response::Stopping(report), vec![Effect::Stop(at)])
    }

    fn status(&self, now: Instant) -> StatusReport {
        let vitals = &self.vitals;
        StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: vitals.pid,
            uptime_ms: milliseconds(now - vitals.started),
            phase: self.phase(),
            services: self.services.values().map(|service| service.report(&self.pools[service.pool].name)).collect(),
            servers: self.servers.values().filter(|server| !server.leaving).count() as u64,
            digest: self.digest().digest,
            session_limit: vitals.session_limit as u64,
            state_file: vitals.state_file.clone(),
            log: vitals.log.clone(),
            unsaved: vitals.unsaved.clone(),
            longest_turn_us: u64::try_from(vitals.longest_turn.as_micros()).unwrap_or(u64::MAX),
            log_lines_dropped: vitals.log_lines_dropped,
        }
    }

    fn list(&self) -> ListReport {
        let pool = &self.pools[self.default_pool];
        let shares = pool.shares();
        let mut servers: Vec<_> = pool
            .members
            .values()
            .map(|id| &self.servers[*id])
            .map(|server| server.report(shares.get(&server.address).copied().unwrap_or_default()))
            .collect();
        // The map gives the order of addresses; a stable sort keeps it within each half.
        servers.sort_by_key(|report| report.state == wire::report::ServerState::Leaving);
        ListReport { pool: pool.name.clone(), digest: Hex(pool.ring.digest().value()), servers }
    }

    fn explain(&self, client: IpAddr) -> ExplainReport {
        let pool = &self.pools[self.default_pool];
        let client = client.to_canonical();
        let key = ring::Key::of_ip(client);
        let mut order = pool.ring.successors(key).map(|member| member.identity.addr());
        let skipped = pool.members.values().map(|id| &self.servers[*id]).filter(|server| !server.is_eligible());
        ExplainReport {
            client,
            hash: Hex(key.hash()),
            point: pool.ring.point_of(key).map(Hex),
            server: order.next(),
            next: order.take(EXPLAINED_SUCCESSORS).collect(),
            skipped: skipped.map(|server| SkippedReport { server: server.address, state: server.state() }).collect(),
        }
    }

    fn digest(&self) -> DigestReport {
        let pool = &self.pools[self.default_pool];
        DigestReport {
            pool: pool.name.clone(),
            digest: Hex(pool.ring.digest().value()),
            ring_format: ring::FORMAT,
            points_per_weight: pool.ring.points_per_weight().get(),
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The address as it is compared and hashed: IPv4 in its own form, without the scope and flow of IPv6.
fn canonical(server: SocketAddr) -> SocketAddr {
    SocketAddr::new(server.ip().to_canonical(), server.port())
}

#[cfg(test)]
mod tests;
