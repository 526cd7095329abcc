//! The logic of the balancer: no sockets, no clock, no logging, and no randomness but from a seed.
//!
//! After the start, [`Model::apply`] and [`Model::adopt`] are the only functions that change services, pools and servers:
//! one for a single change, whoever asks, the other for a whole file. The other functions that take `&mut self` are news
//! from the sockets and the clock: they count, say who is up, and what was removed goes with the last of its sessions.

mod access;
mod blueprint;
mod change;
mod check;
mod checks;
mod clients;
mod flow;
mod growth;
mod health;
mod journal;
mod merge;
mod networks;
mod picker;
mod policy;
mod pool;
mod reload;
mod remake;
mod report;
mod server;
mod service;
mod sharing;
mod timing;
mod traffic;
mod watching;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::Ring;
use slotmap::SlotMap;
use wire::connection::{ClientSide, ServerSide};
use wire::control::{Refusal, Request, Response};
use wire::report::{EndReason, HealthState, LastReload, Phase, StoppingReport, Waiting};
use wire::settings::{PoolSettings, SendProxy, Settings, Transport};

pub(crate) use access::AccessByService;
use change::Halt;
use checks::Checks;
pub(crate) use checks::{Order, TargetId};
pub(crate) use flow::Handling;
pub(crate) use health::CheckResult;
use health::Trouble;
use journal::Journal;
#[cfg(test)]
pub(crate) use merge::merge;
pub(crate) use networks::Networks;
use pool::Pool;
pub(crate) use reload::{PassedOver, Prepared, Starting, prepare, what_goes_with};
use remake::{POINTS_IN_THE_LOOP, RING_IN_THE_LOOP};
pub(crate) use remake::{Remade, Remake};
use server::Server;
use service::Service;
pub(crate) use sharing::Sharing;
pub(crate) use timing::Line;
pub(crate) use traffic::Direction;

slotmap::new_key_type! {
    /// A service, until it was removed and its last session has ended.
    pub(crate) struct ServiceId;
    /// A pool, until it was removed and the last of its servers is gone.
    pub(crate) struct PoolId;
    /// A server, until it was removed and its last session has ended.
    pub(crate) struct ServerId;
}

/// A longer drain than a year is one without an end.
const LONGEST_DRAIN: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The least time between two steps of slow starts, for each million points of the ring: a step is a change of the ring,
/// which takes a millisecond for so many, and a thousand servers may start at once.
const RAMP_PAUSE: Duration = Duration::from_millis(10);
const RAMP_PAUSE_POINTS: usize = 1 << 20;

/// Steps of slow starts at a time where the policy has no ring: each costs next to nothing.
const MOST_RAMPS: usize = 256;

/// Services, pools, servers, and what is counted of them.
#[derive(Debug)]
pub(crate) struct Model {
    services: SlotMap<ServiceId, Service>,
    pools: SlotMap<PoolId, Pool>,
    servers: SlotMap<ServerId, Server>,
    max_sessions: Option<NonZeroU64>,
    /// What the arguments and the file said when they were read.
    said: Arc<Settings>,
    /// Sessions alive.
    active: u64,
    /// Those of them that are flows.
    flows: u64,
    /// Numbers that were given to sessions, flows or not.
    numbered: u64,
    /// When which server that leaves within a time has to be looked at.
    timers: BTreeSet<(Instant, ServerId)>,
    /// When which server that starts slowly gets its next part.
    ramps: BTreeSet<(Instant, ServerId)>,
    next_ramp: Option<Instant>,
    /// Pools whose ring is to be made anew, since servers are to have other parts of their weights in it.
    growing: BTreeSet<PoolId>,
    /// Rings that were replaced as a whole.
    old_rings: Vec<Arc<Ring<ServerId>>>,
    /// What is checked, and when.
    checks: Checks,
    /// When which ejected server is let in again.
    readmissions: BTreeSet<(Instant, ServerId)>,
    /// What followed from news of the servers' health.
    news: Vec<Effect>,
    /// What was told of it.
    journal: Journal,
    port_shortages: u64,
    /// Who gets whom may be another one for flows that are there.
    picks_changed: bool,
    /// Points by which a ring becomes another one in the loop, and those that it has; a change of more is a [`Remake`].
    points_in_the_loop: usize,
    ring_in_the_loop: usize,
    rng: fastrand::Rng,
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
    /// The same as the log writes times.
    pub(crate) started_at: String,
    pub(crate) session_limit: usize,
    pub(crate) drain_timeout: Duration,
    pub(crate) config_file: Option<String>,
    pub(crate) reload_failure: Option<String>,
    /// The last reload, if there was one.
    pub(crate) last_reload: Option<LastReload>,
    pub(crate) state_file: String,
    pub(crate) log: String,
    pub(crate) unsaved: Option<String>,
    pub(crate) longest_turn: Duration,
    pub(crate) log_lines_dropped: u64,
}

/// What the daemon has to do after a request was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Write the settings to the state file, and answer then.
    Save,
    /// End the sessions of a server.
    EndSessions(ServerId, EndReason),
    /// End so many sessions of a server, those that are idle for longest.
    EndIdlest(ServerId, u64, EndReason),
    /// End one session, by its number.
    EndSession(u64),
    /// End the sessions of a service whose clients it lets in no more.
    EndUnwelcome(ServiceId),
    /// Listen for a service, with what was bound before it was applied.
    Listen(ServiceId),
    /// Listen no more for a service.
    Unlisten(ServiceId),
    /// Times are others now: look at all sessions.
    LookAtSessions,
    /// Tell that the health of a server has changed, and have it [recorded](Model::record).
    Tell(HealthNews),
    /// Put the live sessions into the answer.
    ListSessions(SessionFilter),
    /// Put into the list of a pool what it still lacks, and answer then.
    CompleteList(PoolId),
    /// Take no new sessions, and end when the last one has ended or this time has come.
    Stop(Instant),
}

/// Which sessions are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionFilter {
    pub(crate) service: Option<ServiceId>,
    pub(crate) pool: Option<PoolId>,
    pub(crate) server: Option<SocketAddr>,
    pub(crate) limit: usize,
}

impl SessionFilter {
    /// Whether those of a service with a server are meant.
    pub(crate) fn takes(&self, service: ServiceId, server: ServerId, model: &Model) -> bool {
        self.service.is_none_or(|meant| service == meant)
            && self.pool.is_none_or(|meant| model.pool_of(server) == meant)
            && self.server.is_none_or(|meant| model.server_address(server) == meant)
    }
}

/// How long a session may last; nothing is what the balancer was started with, or for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) connect: Option<Duration>,
    pub(crate) idle: Option<Duration>,
    pub(crate) half_closed: Option<Duration>,
    pub(crate) max_age: Option<Duration>,
}

/// The health of a server is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HealthNews {
    pub(crate) pool: String,
    pub(crate) server: SocketAddr,
    pub(crate) before: HealthState,
    pub(crate) state: HealthState,
    /// Why, when it is not up.
    pub(crate) reason: String,
    /// For how long, when it is ejected.
    pub(crate) back_off: Option<Duration>,
    /// Servers of the pool that are up now, and all that take part.
    pub(crate) up: (usize, usize),
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
    /// A model without services and pools. `seed` is for the policies that draw.
    pub(crate) fn new(seed: u64, vitals: Vitals) -> Self {
        Self {
            services: SlotMap::with_key(),
            pools: SlotMap::with_key(),
            servers: SlotMap::with_key(),
            max_sessions: None,
            said: Arc::default(),
            active: 0,
            flows: 0,
            numbered: 0,
            timers: BTreeSet::new(),
            ramps: BTreeSet::new(),
            next_ramp: None,
            growing: BTreeSet::new(),
            old_rings: Vec::new(),
            checks: Checks::default(),
            readmissions: BTreeSet::new(),
            news: Vec::new(),
            journal: Journal::default(),
            port_shortages: 0,
            picks_changed: false,
            points_in_the_loop: POINTS_IN_THE_LOOP,
            ring_in_the_loop: RING_IN_THE_LOOP,
            rng: fastrand::Rng::with_seed(seed),
            stop_at: None,
            vitals,
        }
    }

    /// What holds now: what a state file has to keep, and what a reload starts from.
    pub(crate) fn settings(&self) -> Settings {
        let services = self.services.values().filter(|service| !service.leaving);
        let pools = self.pools.values().filter(|pool| !pool.leaving);
        Settings {
            max_sessions: self.max_sessions,
            services: services.map(|service| (service.name.clone(), service.settings.clone())).collect(),
            pools: pools.map(|pool| (pool.name.clone(), self.pool_settings(pool))).collect(),
        }
    }

    /// What the arguments and the file said when they were read.
    pub(crate) fn said(&self) -> &Arc<Settings> {
        &self.said
    }

    /// Whether a pool is set to this; without a copy of its servers.
    fn is_set_to(&self, pool: &Pool, settings: &PoolSettings) -> bool {
        let members = pool.members.values().map(|id| &self.servers[*id]).filter(|server| server.leaving.is_none());
        let servers = members.map(|server| (&server.address, &server.settings));
        pool.settings == settings.without_servers() && servers.eq(&settings.servers)
    }

    fn pool_settings(&self, pool: &Pool) -> PoolSettings {
        let members = pool.members.values().map(|id| &self.servers[*id]).filter(|server| server.leaving.is_none());
        let servers = members.map(|server| (server.address, server.settings)).collect();
        PoolSettings { servers, ..pool.settings.clone() }
    }

    /// Carries out a request, or refuses it and changes nothing. A reload is none of these: [`prepare`] and
    /// [`Model::adopt`] are its two halves.
    ///
    /// # Errors
    /// When the loop has no time for it: nothing has changed, and the request is to be applied again with what was `remade`
    /// of the [`Remake`], and no other change in between.
    pub(crate) fn apply(
        &mut self,
        request: &Request,
        remade: Option<Remade>,
        now: Instant,
    ) -> Result<(Response, Vec<Effect>), Box<Remake>> {
        let result = match request {
            Request::Status => Ok((Response::Status(self.status(now)), Vec::new())),
            Request::List { pool } => self.list(pool, now).map(|(report, effects)| (Response::List(report), effects)),
            Request::Explain { client, port, service } => self
                .explain(SocketAddr::new(*client, *port), service.as_deref())
                .map(|report| (Response::Explained(report), Vec::new())),
            Request::Digest { pool } => self.digest(pool).map(|report| (Response::Digest(report), Vec::new())),
            Request::Pools => Ok((Response::Pools(self.pool_reports()), Vec::new())),
            Request::Settings => Ok((Response::Settings(self.settings_report()), Vec::new())),
            Request::Events { since } => Ok((Response::Events(self.events(*since)), Vec::new())),
            Request::Sessions { service, pool, server, limit } => self
                .session_filter(service.as_deref(), pool.as_deref(), *server, *limit)
                .map(|filter| (Response::Sessions(Vec::new()), vec![Effect::ListSessions(filter)])),
            Request::Stop { now: at_once, drain_ms } => {
                let drain = if *at_once { Some(Duration::ZERO) } else { drain_ms.map(Duration::from_millis) };
                Ok(self.stop(drain, now))
            }
            Request::Change { .. } if self.phase() == Phase::Stopping => Err(Refusal::Stopping),
            Request::Change { change, dry_run } => match self.change(change, *dry_run, remade, now) {
                Ok((report, effects)) => Ok((Response::Changed(report), effects)),
                Err(Halt::Refused(refusal)) => Err(refusal),
                Err(Halt::Remake(remake)) => return Err(remake),
            },
            Request::Reload { .. } => Err(Refusal::NoFile),
        };
        Ok(result.unwrap_or_else(|refusal| (Response::Refused(refusal), Vec::new())))
    }

    /// The rings that were replaced as a whole. To give their memory back takes longer than the loop has time for.
    pub(crate) fn take_old_rings(&mut self) -> Vec<Arc<Ring<ServerId>>> {
        std::mem::take(&mut self.old_rings)
    }

    /// Why a service takes no further client now, if it does not, and when it does again if that is known.
    pub(crate) fn waiting(&self, service: ServiceId, now: Instant) -> Option<(Waiting, Option<Instant>)> {
        if self.is_full() {
            return Some((Waiting::BalancerFull, None));
        }
        let stopping = (Waiting::Stopping, None);
        let Some(service) = self.services.get(service) else { return Some(stopping) };
        service.waiting(now).or((self.phase() == Phase::Stopping).then_some(stopping))
    }

    /// Whether there are as many sessions as there may be.
    pub(crate) fn is_full(&self) -> bool {
        self.max_sessions.is_some_and(|limit| self.active >= limit.get()) || self.has_all_sockets()
    }

    /// Sessions that there may be at a time.
    pub(crate) fn session_limit(&self) -> usize {
        let wanted = self.max_sessions.map_or(usize::MAX, |limit| usize::try_from(limit.get()).unwrap_or(usize::MAX));
        self.vitals.session_limit.min(wanted)
    }

    /// The number of the next session, flow or not. None is given twice.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.numbered += 1;
        self.numbered
    }

    /// The server for a client of a service that is none of those `tried`, and its address.
    pub(crate) fn pick(
        &mut self,
        service: ServiceId,
        client: SocketAddr,
        tried: &[ServerId],
    ) -> Option<(ServerId, SocketAddr)> {
        let pool = self.pools.get_mut(self.services[service].pool)?;
        let pick = pool.pick(client, tried, &self.servers, &mut self.rng);
        for passed in pick.passed {
            self.servers[passed].overflows += 1;
        }
        let id = pick.server?;
        Some((id, self.servers[id].address))
    }

    /// Whether a service has no server for a client only since all of them that take clients are full.
    pub(crate) fn servers_are_full(&self, service: ServiceId) -> bool {
        let pool = self.services.get(service).and_then(|service| self.pools.get(service.pool));
        pool.is_some_and(Pool::picks_anybody)
    }

    /// A client came to a service. Why it is sent away, if it is; either way it counts as a session that ends.
    pub(crate) fn session_began(&mut self, service: ServiceId, client: IpAddr, now: Instant) -> Result<(), EndReason> {
        self.active += 1;
        self.services[service].admit(client, now)
    }

    /// Whether clients of a service may have waited in the kernel's queue since a limit kept them there: it has one, or the
    /// balancer has hardly any room left.
    pub(crate) fn makes_clients_wait(&self, service: ServiceId) -> bool {
        self.services[service].has_limit() || self.active + 1 >= self.vitals.session_limit as u64
    }

    /// A client was accepted that had gone by then: it takes no turn, no place, and none of its address's sessions.
    pub(crate) fn came_and_went(&mut self, service: ServiceId, reason: EndReason) {
        self.services[service].came_and_went(reason);
    }

    /// How long the header of a connection to a service from this address may take, if it has to begin with one.
    pub(crate) fn header_time(&self, service: ServiceId, peer: IpAddr) -> Option<Duration> {
        self.services[service].header_time(peer)
    }

    /// Somebody came to a service whose header will say who it is. It counts as a session.
    pub(crate) fn newcomer_began(&mut self, service: ServiceId, now: Instant) {
        self.active += 1;
        self.services[service].admit_newcomer(now);
    }

    /// Who a newcomer is. Why it is sent away, if it is; from now on it is a session of that client either way.
    pub(crate) fn newcomer_is(&mut self, service: ServiceId, client: IpAddr) -> Result<(), EndReason> {
        self.services[service].let_in(client)
    }

    /// A newcomer ended before it was known who it is.
    pub(crate) fn newcomer_ended(&mut self, service: ServiceId, reason: EndReason) {
        self.active -= 1;
        self.services[service].ended_outside(reason);
        self.forget_service_if_gone(service);
    }

    /// A session is connecting to a server: the server does not go while it has the session.
    pub(crate) fn connect_began(&mut self, server: ServerId) {
        self.servers[server].traffic.began();
        self.on_load(server);
    }

    /// The server answered the connect of a session.
    pub(crate) fn connect_done(&mut self, server: ServerId, after: Duration, now: Instant) {
        let entry = &mut self.servers[server];
        entry.traffic.total += 1;
        entry.timing.connected(after, now);
    }

    /// The server did not answer as it should; the session is no longer its own.
    pub(crate) fn connect_failed(&mut self, server: ServerId, failure: ConnectFailure, now: Instant) {
        let entry = &mut self.servers[server];
        let trouble = match failure {
            ConnectFailure::Refused => {
                entry.connect_failures += 1;
                Trouble::ConnectFailed
            }
            ConnectFailure::TimedOut => {
                entry.connect_timeouts += 1;
                Trouble::ConnectTimedOut
            }
        };
        entry.traffic.left();
        self.on_load(server);
        self.on_trouble(server, trouble, now);
        self.forget_if_gone(server);
    }

    /// A session waits no longer for the server to answer, which says nothing about that.
    pub(crate) fn connect_given_up(&mut self, server: ServerId) {
        self.servers[server].traffic.left();
        self.on_load(server);
        self.forget_if_gone(server);
    }

    /// The server broke before it said anything, and the session goes on with another one.
    pub(crate) fn session_moved_on(&mut self, server: ServerId, now: Instant) {
        let entry = &mut self.servers[server];
        entry.traffic.left();
        entry.replays += 1;
        self.on_load(server);
        self.on_trouble(server, Trouble::Reset, now);
        self.forget_if_gone(server);
    }

    /// Bytes of a session reached the other side.
    pub(crate) fn relayed(&mut self, service: ServiceId, server: ServerId, direction: Direction, bytes: usize) {
        self.services[service].traffic.relayed(direction, bytes);
        self.servers[server].traffic.relayed(direction, bytes);
    }

    /// The first byte of a server reached its client.
    pub(crate) fn answered(&mut self, server: ServerId, after: Duration, now: Instant) {
        let entry = &mut self.servers[server];
        entry.health.on_success();
        entry.timing.answered(after, now);
    }

    /// A session of a client ended; `server` is the one it had at that moment, if it had one, and whether that had
    /// `answered` with anything.
    pub(crate) fn session_ended(
        &mut self,
        service: ServiceId,
        client: IpAddr,
        server: Option<ServerId>,
        answered: bool,
        reason: EndReason,
        now: Instant,
    ) {
        self.active -= 1;
        let turned_away = server.is_none() && matches!(reason, EndReason::Denied | EndReason::ClientLimit);
        match turned_away {
            true => self.services[service].ended_outside(reason),
            false => self.services[service].ended(client, reason),
        }
        self.forget_service_if_gone(service);
        if let Some(server) = server {
            self.servers[server].traffic.ended(reason);
            self.on_load(server);
            match reason {
                EndReason::ServerReset | EndReason::ServerLost if !answered => {
                    self.on_trouble(server, Trouble::Reset, now);
                }
                EndReason::ClientClosed | EndReason::ServerClosed => self.servers[server].health.on_success(),
                _ => {}
            }
            self.forget_if_gone(server);
        }
    }

    fn forget_service_if_gone(&mut self, service: ServiceId) {
        if self.services[service].is_gone() {
            self.services.remove(service);
        }
    }

    /// Whether a service lets a client in.
    pub(crate) fn lets_in(&self, service: ServiceId, client: IpAddr) -> bool {
        self.services.get(service).is_none_or(|service| service.lets_in(client))
    }

    /// Whether new sessions of a service may splice.
    pub(crate) fn may_splice(&self, service: ServiceId) -> bool {
        self.services.get(service).is_none_or(|service| service.settings.splice)
    }

    /// A connection could not be accepted.
    pub(crate) fn accept_failed(&mut self, service: ServiceId) {
        self.services[service].accept_failures += 1;
    }

    /// How long a session of a service may last at a server.
    pub(crate) fn times(&self, service: ServiceId, server: ServerId) -> Times {
        let client = self.services.get(service).map(|service| &service.settings.client_side);
        let server = self.servers.get(server).map(|server| &self.pools[server.pool].settings.server_side);
        let time = |limit: NonZeroU64| Duration::from_millis(limit.get());
        Times {
            connect: server.and_then(|side| side.connect_timeout_ms).map(time),
            idle: client.and_then(|side| side.idle_timeout_ms).map(time),
            half_closed: client.map(|side| time(side.half_closed_timeout_ms)),
            max_age: client.and_then(|side| side.max_age_ms).map(time),
        }
    }

    /// How the clients of a service connect.
    pub(crate) fn client_side(&self, service: ServiceId) -> Option<&ClientSide> {
        self.services.get(service).map(|service| &service.settings.client_side)
    }

    /// How connections to a server are made.
    pub(crate) fn server_side(&self, server: ServerId) -> &ServerSide {
        &self.pools[self.servers[server].pool].settings.server_side
    }

    /// Servers that a client of a service may be connected to, one after the other.
    pub(crate) fn tries(&self, service: ServiceId) -> usize {
        let pool = self.services.get(service).and_then(|service| self.pools.get(service.pool));
        pool.map_or(0, |pool| usize::from(pool.settings.server_side.tries.get()))
    }

    /// A connect found no free port: that is no fault of the server.
    pub(crate) fn port_shortage(&mut self) {
        self.port_shortages += 1;
    }

    /// What the line of a session to its server was like at the end.
    pub(crate) fn sampled(&mut self, server: ServerId, line: Line, now: Instant) {
        self.servers[server].timing.sampled(line, now);
    }

    /// A service began or ceased to accept.
    pub(crate) fn accepting(&mut self, service: ServiceId, accepting: bool) {
        if let Some(service) = self.services.get_mut(service) {
            service.accepting = accepting;
        }
    }

    /// The addresses that services are to listen on with a transport, as the settings have them.
    pub(crate) fn wanted_listeners(&self, transport: Transport) -> impl Iterator<Item = (SocketAddr, ServiceId)> {
        let services = self
            .services
            .iter()
            .filter(move |(_, service)| !service.leaving && service.settings.protocol.has(transport));
        services.flat_map(|(id, service)| service.settings.listen.iter().map(move |listen| (*listen, id)))
    }

    /// Services listen there, with the ports that the kernel chose, and nowhere else. One that was removed goes with the
    /// last of its listeners or of its sessions, whichever is later.
    pub(crate) fn listening(&mut self, mut addresses: HashMap<ServiceId, Vec<SocketAddr>>) {
        for (id, service) in &mut self.services {
            service.addresses = addresses.remove(&id).unwrap_or_default();
            service.addresses.sort_unstable();
            // With both transports it is there twice.
            service.addresses.dedup();
            service.open = !service.addresses.is_empty();
        }
        self.services.retain(|_, service| !service.is_gone());
    }

    /// The address of a server, for a log line.
    pub(crate) fn server_address(&self, server: ServerId) -> SocketAddr {
        self.servers[server].address
    }

    /// The pool of a server.
    pub(crate) fn pool_of(&self, server: ServerId) -> PoolId {
        self.servers[server].pool
    }

    /// The name of a service.
    pub(crate) fn service_name(&self, service: ServiceId) -> &str {
        &self.services[service].name
    }

    /// The name of a server's pool.
    pub(crate) fn pool_name(&self, server: ServerId) -> &str {
        &self.pools[self.servers[server].pool].name
    }

    /// The pool that serves a service, and its name, as long as it is there.
    pub(crate) fn serving(&self, service: ServiceId) -> Option<(PoolId, &str)> {
        let id = self.services[service].pool;
        self.pools.get(id).map(|pool| (id, pool.name.as_str()))
    }

    /// The header that a server gets before the first words of a client, if it gets one.
    pub(crate) fn send_proxy(&self, server: ServerId) -> Option<SendProxy> {
        self.pools[self.servers[server].pool].settings.send_proxy
    }

    /// Whether new sessions are taken.
    pub(crate) fn phase(&self) -> Phase {
        if self.stop_at.is_some() { Phase::Stopping } else { Phase::Running }
    }

    /// The earliest time at which [`Model::expire`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let ramp = self.ramps.first().map(|(at, _)| self.next_ramp.map_or(*at, |next| next.max(*at)));
        let readmission = self.readmissions.first().map(|(at, _)| *at);
        let news = if self.news.is_empty() { None } else { Some(self.vitals.started) };
        [timer, ramp, readmission, news].into_iter().flatten().min()
    }

    /// Does what is due: closes sessions of those who leave within a time, and lets those who start slowly grow.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        while let Some(timer) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&timer);
            effects.extend(self.thin_out(timer.1, now));
        }
        if self.next_ramp.is_none_or(|next| next <= now) {
            self.next_ramp = None;
            for _ in 0..MOST_RAMPS {
                let Some(ramp) = self.ramps.first().copied().filter(|(at, _)| *at <= now) else { break };
                self.ramps.remove(&ramp);
                if self.grows_beside(ramp.1) {
                    continue;
                }
                let points = self.grow(ramp.1, now);
                self.next_ramp = Some(now + RAMP_PAUSE * (1 + (points / RAMP_PAUSE_POINTS) as u32));
                if points > 0 {
                    break;
                }
            }
        }
        while let Some(due) = self.readmissions.first().copied().filter(|(at, _)| *at <= now) {
            self.readmissions.remove(&due);
            self.readmit(due.1, now);
        }
        effects.append(&mut self.news);
        effects
    }

    /// Closes what is due of a server that leaves within a time.
    fn thin_out(&mut self, id: ServerId, now: Instant) -> Option<Effect> {
        let server = self.servers.get(id)?;
        let (count, next) = server.leaving?.due(server.traffic.active, now);
        if let Some(next) = next {
            self.timers.insert((next, id));
        }
        match count {
            0 => None,
            all if all == server.traffic.active => Some(Effect::EndSessions(id, EndReason::Removed)),
            some => Some(Effect::EndIdlest(id, some, EndReason::Removed)),
        }
    }

    fn on_load(&mut self, server: ServerId) {
        let entry = &self.servers[server];
        let pool = &mut self.pools[entry.pool];
        let picker = if entry.settings.backup { &mut pool.backups } else { &mut pool.picker };
        picker.on_load(server, entry.traffic.active);
    }

    /// A removed server goes with its last session, and its pool with the last of them.
    fn forget_if_gone(&mut self, id: ServerId) {
        let Some(server) = self.servers.get(id) else { return };
        if server.leaving.is_none() || server.traffic.active > 0 {
            return;
        }
        let (pool, address, target) = (server.pool, server.address, server.target);
        self.checks.assign(id, target, None, || Duration::ZERO, self.vitals.started);
        self.pools[pool].members.remove(&address);
        self.servers.remove(id);
        self.forget_pool_if_gone(pool);
    }

    fn forget_pool_if_gone(&mut self, id: PoolId) {
        if self.pools.get(id).is_some_and(|pool| pool.leaving && pool.members.is_empty()) {
            self.pools.remove(id);
        }
    }

    fn pool_named(&self, name: &str) -> Result<PoolId, Refusal> {
        let found = self.pools.iter().find(|(_, pool)| !pool.leaving && pool.name == name);
        found.map(|(id, _)| id).ok_or_else(|| Refusal::NoPool { pool: name.to_owned() })
    }

    fn service_named(&self, name: &str) -> Result<ServiceId, Refusal> {
        let found = self.services.iter().find(|(_, service)| !service.leaving && service.name == name);
        found.map(|(id, _)| id).ok_or_else(|| Refusal::NoService { service: name.to_owned() })
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
            sessions: self.active,
            drain_ms: milliseconds(at.saturating_duration_since(now)),
        };
        (Response::Stopping(report), vec![Effect::Stop(at)])
    }
}

/// A time as reports have it.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
