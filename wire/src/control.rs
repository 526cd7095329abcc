//! The control requests and their responses. A request *is* the command: the daemon's model applies it as it stands.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32, NonZeroU64};

use serde::{Deserialize, Serialize};

use crate::address::AddressFault;
use crate::connection::ServerSide;
use crate::flow::{FlowPolicy, HeaderScope, OnLoss, OnReturn, PathMtu};
use crate::health::{CheckKind, CheckSettings, EjectionSettings, HealthSettings, InitialHealth, OnDown, WhenAllDown};
use crate::report::{
    ChangeReport, DigestReport, ExplainReport, ListReport, PoolReport, ReloadReport, SessionReport, SettingsReport,
    StatusReport, StoppingReport,
};
use crate::settings::{
    AdminState, HashKey, LoadFactor, MAX_NAME, Policy, PoolSettings, SendProxy, ServerSettings, ServiceSettings,
};

/// The largest weight of a server.
pub const MAX_WEIGHT: u32 = 256;

/// Servers that a pool may have, whatever their weight: more than its ring has room for, and few enough that a list of
/// them is one answer.
pub const MAX_SERVERS: usize = 65_536;

/// Sessions that one answer lists at most.
pub const MAX_LISTED_SESSIONS: u32 = 100_000;

/// Pools that there may be, and services as well: more than anybody has, and few enough to be looked through.
pub const MAX_POOLS: usize = 4096;

/// Addresses that all services together may listen at. Each takes a descriptor.
pub const MAX_LISTENERS: usize = 4096;

/// What a program may ask of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "there is one for each control connection at most")]
pub enum Request {
    /// How the daemon is: answered by [`Response::Status`].
    Status,
    /// A pool with its servers: answered by [`Response::List`].
    List {
        /// Its name.
        pool: String,
    },
    /// Change services, pools or servers, or only say what the change would do: answered by [`Response::Changed`].
    Change {
        /// What is to change.
        change: Change,
        /// Only say what would happen; nothing is changed.
        dry_run: bool,
    },
    /// Which server a client gets, and why: answered by [`Response::Explained`].
    Explain {
        /// The client's address.
        client: IpAddr,
        /// Its port, for a pool that hashes that too; 0 when it is not known.
        port: u16,
        /// The service that it comes to. Without it the pool `default` is meant, and no service is asked.
        service: Option<String>,
    },
    /// The number that two balancers compare: answered by [`Response::Digest`].
    Digest {
        /// The pool.
        pool: String,
    },
    /// End the daemon: answered by [`Response::Stopping`] at once; the connection closes when it has ended.
    Stop {
        /// Close every session now.
        now: bool,
        /// How long sessions may go on, in milliseconds. Without it the daemon's own setting holds, or the time that
        /// an earlier request gave.
        drain_ms: Option<u64>,
    },
    /// All pools: answered by [`Response::Pools`].
    Pools,
    /// Live sessions, the longest idle first: answered by [`Response::Sessions`].
    Sessions {
        /// Only those of this service.
        service: Option<String>,
        /// Only those of this pool.
        pool: Option<String>,
        /// Only those of this server.
        server: Option<SocketAddr>,
        /// So many at most, and at most [`MAX_LISTED_SESSIONS`].
        limit: u32,
    },
    /// Read the configuration file again, or only say what that would do: answered by [`Response::Reloaded`].
    Reload {
        /// Another text than the file's. It is never carried out, only looked at.
        instead: Option<FileText>,
        /// Only say what would happen; nothing is changed.
        dry_run: bool,
    },
    /// What the balancer is set to, and what the file says: answered by [`Response::Settings`].
    Settings,
}

/// The text of a configuration file, and what errors are to call it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileText {
    /// The name.
    pub name: String,
    /// The text.
    pub text: String,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status => f.write_str("status"),
            Self::List { pool } => write!(f, "list {pool}"),
            Self::Change { change, dry_run } => write!(f, "{change}{}", if *dry_run { " dry-run" } else { "" }),
            Self::Explain { client, .. } => write!(f, "explain {client}"),
            Self::Digest { pool } => write!(f, "digest {pool}"),
            Self::Stop { now: true, .. } => f.write_str("stop now"),
            Self::Stop { drain_ms: Some(limit), .. } => write!(f, "stop drain_ms={limit}"),
            Self::Stop { .. } => f.write_str("stop"),
            Self::Pools => f.write_str("pools"),
            Self::Sessions { .. } => f.write_str("sessions"),
            Self::Reload { instead: Some(file), .. } => write!(f, "diff {}", file.name),
            Self::Reload { dry_run, .. } => write!(f, "reload{}", if *dry_run { " dry-run" } else { "" }),
            Self::Settings => f.write_str("settings"),
        }
    }
}

/// A change of services, pools or servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Put a server into a pool.
    Add {
        /// The pool.
        pool: String,
        /// Its address and port.
        server: SocketAddr,
        /// How it is to be.
        settings: ServerSettings,
    },
    /// Take a server out of a pool: no new sessions for it.
    Remove {
        /// The pool.
        pool: String,
        /// Its address and port.
        server: SocketAddr,
        /// What becomes of its sessions.
        how: Removal,
    },
    /// Change what a server is set to.
    Set {
        /// The pool.
        pool: String,
        /// Its address and port.
        server: SocketAddr,
        /// The values that are to change.
        values: ServerValues,
    },
    /// Make a pool.
    AddPool {
        /// Its name.
        pool: String,
        /// How it is to be, servers included.
        settings: PoolSettings,
    },
    /// Take a pool that no service uses away. Its sessions live on.
    RemovePool {
        /// Its name.
        pool: String,
    },
    /// Change what a pool is set to.
    SetPool {
        /// Its name.
        pool: String,
        /// The values that are to change.
        values: PoolValues,
    },
    /// Listen for a further service.
    AddService {
        /// Its name.
        service: String,
        /// How it is to be.
        settings: ServiceSettings,
    },
    /// Listen no more for a service. Its sessions live on.
    RemoveService {
        /// Its name.
        service: String,
    },
    /// End one session.
    Kill {
        /// Its number, from the list of sessions.
        session: u64,
    },
    /// End all sessions of a server. It stays in the pool.
    KillAll {
        /// The pool.
        pool: String,
        /// The server.
        server: SocketAddr,
    },
}

/// What becomes of the sessions of a server that is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Removal {
    /// They live on; those that are left at the limit are closed then.
    Wait {
        /// The limit; without it they live as long as they like.
        limit_ms: Option<u64>,
    },
    /// They are closed now.
    Now,
    /// They are closed evenly over a time, the longest idle first.
    Over {
        /// The time.
        time_ms: u64,
    },
}

/// Values of a server that are to change; what is nothing stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerValues {
    /// Its weight.
    pub weight: Option<u32>,
    /// Its administrative state.
    pub state: Option<AdminState>,
    /// Its session limit; the inner nothing is no limit.
    pub max_sessions: Option<Option<NonZeroU64>>,
    /// Whether it serves only while the others are down.
    pub backup: Option<bool>,
    /// Where it is checked; the inner nothing is where it serves.
    pub check_address: Option<Option<SocketAddr>>,
}

/// Values of a pool that are to change; what is nothing stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolValues {
    /// Its policy.
    pub policy: Option<Policy>,
    /// What is hashed.
    pub key: Option<HashKey>,
    /// The bound of the load; the inner nothing is no bound.
    pub max_load: Option<Option<LoadFactor>>,
    /// Points that a server of weight 1 has.
    pub points_per_weight: Option<NonZeroU32>,
    /// How long the weight of a server that comes up grows.
    pub slow_start_ms: Option<u64>,
    /// The PROXY protocol header that servers get; the inner nothing is none.
    pub send_proxy: Option<Option<SendProxy>>,
    /// What a check does.
    pub check: Option<CheckKind>,
    /// From one check to the next.
    pub check_interval_ms: Option<u64>,
    /// The same while results say something else than what holds; the inner nothing is the usual one.
    pub check_undecided_interval_ms: Option<Option<u64>>,
    /// The same while a server is down; the inner nothing is the usual one.
    pub check_down_interval_ms: Option<Option<u64>>,
    /// How long a check may take.
    pub check_timeout_ms: Option<u64>,
    /// Passes in a row that bring a server up.
    pub check_rise: Option<NonZeroU32>,
    /// Failures in a row that take it down.
    pub check_fall: Option<NonZeroU32>,
    /// The port that is checked; the inner nothing is the server's own.
    pub check_port: Option<Option<NonZeroU16>>,
    /// What holds until there is a first result.
    pub check_initial: Option<InitialHealth>,
    /// Failures of clients in a row that take a server out for a while.
    pub eject_failures: Option<u32>,
    /// For how long at first.
    pub eject_time_ms: Option<u64>,
    /// For how long at most.
    pub eject_max_time_ms: Option<u64>,
    /// How many of the servers may be out, in percent.
    pub eject_max_percent: Option<u8>,
    /// What clients get when no server is up.
    pub when_all_down: Option<WhenAllDown>,
    /// What becomes of the sessions of a server that goes down.
    pub on_down: Option<OnDown>,
    /// For a server to answer a connect; the inner nothing is what the balancer was started with.
    pub connect_timeout_ms: Option<Option<NonZeroU64>>,
    /// Servers that a client's connect goes to.
    pub tries: Option<NonZeroU8>,
    /// Bytes of a client that are kept for another server.
    pub replay: Option<u32>,
    /// Addresses that connections come from.
    pub source: Option<Vec<IpAddr>>,
    /// Whether its servers do not answer datagrams.
    pub one_way: Option<bool>,
    /// Whether a server is picked for each datagram.
    pub per_datagram: Option<bool>,
    /// What becomes of the flows of a server that is lost.
    pub flows_on_loss: Option<OnLoss>,
    /// What becomes of flows when a server comes (back).
    pub flows_on_return: Option<OnReturn>,
    /// Which datagrams have a header.
    pub send_proxy_in: Option<HeaderScope>,
    /// What becomes of datagrams that are too long.
    pub path_mtu: Option<PathMtu>,
}

impl ServerValues {
    /// The settings that follow from these.
    #[must_use]
    pub fn over(&self, before: &ServerSettings) -> ServerSettings {
        ServerSettings {
            weight: self.weight.unwrap_or(before.weight),
            state: self.state.unwrap_or(before.state),
            max_sessions: self.max_sessions.unwrap_or(before.max_sessions),
            backup: self.backup.unwrap_or(before.backup),
            check_address: self.check_address.unwrap_or(before.check_address),
        }
    }
}

impl PoolValues {
    /// The settings that follow from these, the servers as they are.
    #[must_use]
    pub fn over(&self, before: &PoolSettings) -> PoolSettings {
        let HealthSettings { check, ejection, when_all_down, on_down } = &before.health;
        PoolSettings {
            policy: self.policy.unwrap_or(before.policy),
            key: self.key.unwrap_or(before.key),
            max_load: self.max_load.unwrap_or(before.max_load),
            points_per_weight: self.points_per_weight.unwrap_or(before.points_per_weight),
            slow_start_ms: self.slow_start_ms.unwrap_or(before.slow_start_ms),
            send_proxy: self.send_proxy.unwrap_or(before.send_proxy),
            health: HealthSettings {
                check: CheckSettings {
                    kind: self.check.clone().unwrap_or_else(|| check.kind.clone()),
                    interval_ms: self.check_interval_ms.unwrap_or(check.interval_ms),
                    undecided_interval_ms: self.check_undecided_interval_ms.unwrap_or(check.undecided_interval_ms),
                    down_interval_ms: self.check_down_interval_ms.unwrap_or(check.down_interval_ms),
                    timeout_ms: self.check_timeout_ms.unwrap_or(check.timeout_ms),
                    rise: self.check_rise.unwrap_or(check.rise),
                    fall: self.check_fall.unwrap_or(check.fall),
                    port: self.check_port.unwrap_or(check.port),
                    initial: self.check_initial.unwrap_or(check.initial),
                },
                ejection: EjectionSettings {
                    failures: self.eject_failures.unwrap_or(ejection.failures),
                    time_ms: self.eject_time_ms.unwrap_or(ejection.time_ms),
                    max_time_ms: self.eject_max_time_ms.unwrap_or(ejection.max_time_ms),
                    max_percent: self.eject_max_percent.unwrap_or(ejection.max_percent),
                },
                when_all_down: self.when_all_down.unwrap_or(*when_all_down),
                on_down: self.on_down.unwrap_or(*on_down),
            },
            server_side: ServerSide {
                connect_timeout_ms: self.connect_timeout_ms.unwrap_or(before.server_side.connect_timeout_ms),
                tries: self.tries.unwrap_or(before.server_side.tries),
                replay: self.replay.unwrap_or(before.server_side.replay),
                source: self.source.clone().unwrap_or_else(|| before.server_side.source.clone()),
                ..before.server_side.clone()
            },
            flows: FlowPolicy {
                one_way: self.one_way.unwrap_or(before.flows.one_way),
                per_datagram: self.per_datagram.unwrap_or(before.flows.per_datagram),
                on_loss: self.flows_on_loss.unwrap_or(before.flows.on_loss),
                on_return: self.flows_on_return.unwrap_or(before.flows.on_return),
                send_proxy_in: self.send_proxy_in.unwrap_or(before.flows.send_proxy_in),
                path_mtu: self.path_mtu.unwrap_or(before.flows.path_mtu),
            },
            servers: before.servers.clone(),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add { pool, server, settings } => {
                write!(f, "add {server} pool={pool} weight={}", settings.weight)?;
                if settings.state != AdminState::Ready {
                    write!(f, " state={}", settings.state)?;
                }
                settings.max_sessions.map_or(Ok(()), |limit| write!(f, " max_sessions={limit}"))?;
                if settings.backup {
                    f.write_str(" backup")?;
                }
                settings.check_address.map_or(Ok(()), |address| write!(f, " check_address={address}"))
            }
            Self::Remove { pool, server, how } => {
                write!(f, "remove {server} pool={pool}")?;
                match how {
                    Removal::Wait { limit_ms: None } => Ok(()),
                    Removal::Wait { limit_ms: Some(limit) } => write!(f, " limit_ms={limit}"),
                    Removal::Now => f.write_str(" now"),
                    Removal::Over { time_ms } => write!(f, " over_ms={time_ms}"),
                }
            }
            Self::Set { pool, server, values } => {
                write!(f, "set {server} pool={pool}")?;
                values.weight.map_or(Ok(()), |weight| write!(f, " weight={weight}"))?;
                values.state.map_or(Ok(()), |state| write!(f, " state={state}"))?;
                match values.max_sessions {
                    None => Ok(()),
                    Some(None) => f.write_str(" max_sessions=none"),
                    Some(Some(limit)) => write!(f, " max_sessions={limit}"),
                }?;
                values.backup.map_or(Ok(()), |backup| write!(f, " backup={backup}"))?;
                match values.check_address {
                    None => Ok(()),
                    Some(None) => f.write_str(" check_address=none"),
                    Some(Some(address)) => write!(f, " check_address={address}"),
                }
            }
            Self::AddPool { pool, .. } => write!(f, "pool add {pool}"),
            Self::RemovePool { pool } => write!(f, "pool remove {pool}"),
            Self::SetPool { pool, .. } => write!(f, "pool set {pool}"),
            Self::AddService { service, .. } => write!(f, "service add {service}"),
            Self::RemoveService { service } => write!(f, "service remove {service}"),
            Self::Kill { session } => write!(f, "kill {session}"),
            Self::KillAll { pool, server } => write!(f, "kill {server} pool={pool}"),
        }
    }
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Status`].
    Status(StatusReport),
    /// To [`Request::List`].
    List(ListReport),
    /// To [`Request::Change`].
    Changed(ChangeReport),
    /// To [`Request::Explain`].
    Explained(ExplainReport),
    /// To [`Request::Digest`].
    Digest(DigestReport),
    /// To [`Request::Stop`].
    Stopping(StoppingReport),
    /// The request was understood and is not carried out; nothing has changed.
    Refused(Refusal),
    /// To [`Request::Pools`].
    Pools(Vec<PoolReport>),
    /// To [`Request::Sessions`].
    Sessions(Vec<SessionReport>),
    /// To [`Request::Reload`].
    Reloaded(ReloadReport),
    /// To [`Request::Settings`].
    Settings(SettingsReport),
}

/// Why a request is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The server is in the pool already.
    AlreadyThere {
        /// The server.
        server: SocketAddr,
        /// The weight it has.
        weight: u32,
    },
    /// The server is not in the pool.
    NotThere {
        /// The server.
        server: SocketAddr,
    },
    /// The server has been removed already and only its last sessions are there.
    Leaving {
        /// The server.
        server: SocketAddr,
        /// Its sessions that are alive.
        sessions: u64,
    },
    /// No server can have this address.
    Unaddressable {
        /// The address asked for.
        server: SocketAddr,
        /// What is wrong with it.
        fault: AddressFault,
    },
    /// The address is one that this balancer listens on: it would connect to itself for ever.
    Itself {
        /// The address asked for.
        server: SocketAddr,
    },
    /// The weight is above [`MAX_WEIGHT`].
    WeightTooLarge {
        /// The weight asked for.
        weight: u32,
    },
    /// The pool has [`MAX_SERVERS`] servers.
    TooManyServers,
    /// The ring would have more points than it may.
    TooManyPoints {
        /// Points it would have.
        points: u64,
        /// Points it may have.
        limit: u64,
    },
    /// The daemon is about to end and takes no more changes.
    Stopping,
    /// The program that asks may not: it is neither the daemon's user nor root nor in the socket's group.
    NotPermitted {
        /// The user id that asks.
        uid: u32,
    },
    /// There is no such pool.
    NoPool {
        /// The name asked for.
        pool: String,
    },
    /// There is such a pool already.
    PoolThere {
        /// Its name.
        pool: String,
    },
    /// The pool serves a service.
    PoolInUse {
        /// The pool.
        pool: String,
        /// One of the services.
        service: String,
    },
    /// There is no such service.
    NoService {
        /// The name asked for.
        service: String,
    },
    /// There is such a service already.
    ServiceThere {
        /// Its name.
        service: String,
    },
    /// The name cannot be one of a service or a pool.
    BadName {
        /// The name asked for.
        name: String,
    },
    /// The value of a setting cannot be.
    BadValue {
        /// The key, as a file calls it.
        key: String,
        /// What is wrong.
        fault: String,
    },
    /// Another service listens there.
    AddressTaken {
        /// The address asked for.
        listen: SocketAddr,
        /// The service that has it, or would.
        service: String,
    },
    /// A service would listen where one of its, or another pool's, servers is.
    ListensAtServer {
        /// The address asked for.
        listen: SocketAddr,
        /// The server.
        server: SocketAddr,
        /// Its pool.
        pool: String,
    },
    /// The operating system lets nobody listen there.
    NotBound {
        /// What it said, and what to do.
        fault: String,
    },
    /// There is no such session any more.
    NoSession {
        /// The number asked for.
        session: u64,
    },
    /// The balancer was started without a configuration file.
    NoFile,
    /// The configuration file cannot be used.
    BadFile {
        /// Where and why.
        fault: String,
    },
    /// Nothing was asked to change.
    NothingToSet,
    /// There are [`MAX_POOLS`] pools.
    TooManyPools,
    /// The services listen at [`MAX_LISTENERS`] addresses, or there are as many services.
    TooManyListeners,
    /// What the change takes could not be made beforehand.
    NotMade {
        /// Why.
        fault: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyThere { server, weight } => {
                write!(f, "{server} is in the pool already, with weight {weight}; `balancerctl set` changes it")
            }
            Self::NotThere { server } => write!(f, "{server} is not in the pool; `balancerctl list` shows what is"),
            Self::Leaving { server, sessions } => write!(
                f,
                "{server} has been removed and is gone when its last sessions end, {sessions} now; remove it with --now to close them"
            ),
            Self::Unaddressable { server, fault } => write!(f, "{server} cannot be a server: {fault}"),
            Self::Itself { server } => {
                write!(f, "{server} is the balancer's own address; it would connect to itself for ever")
            }
            Self::WeightTooLarge { weight } => write!(f, "weight {weight} is too large; give 0 to {MAX_WEIGHT}"),
            Self::TooManyServers => {
                write!(f, "the pool has {MAX_SERVERS} servers, which is the limit; remove one first")
            }
            Self::TooManyPoints { points, limit } => write!(
                f,
                "the ring would have {points} points and may have {limit}; give the servers smaller weights in the same proportion"
            ),
            Self::Stopping => f.write_str("the balancer is stopping and takes no more changes"),
            Self::NoPool { pool } => {
                write!(f, "there is no pool {pool}; `balancerctl pool list` shows those there are")
            }
            Self::PoolThere { pool } => write!(f, "there is a pool {pool} already"),
            Self::PoolInUse { pool, service } => write!(f, "pool {pool} serves service {service}; remove that first"),
            Self::NoService { service } => {
                write!(f, "there is no service {service}; `balancerctl service list` shows those there are")
            }
            Self::ServiceThere { service } => write!(f, "there is a service {service} already"),
            Self::BadName { name } => write!(
                f,
                "{name:?} cannot be a name; a name has 1 to {MAX_NAME} letters, digits, dots, dashes and underscores"
            ),
            Self::BadValue { key, fault } => write!(f, "{key}: {fault}"),
            Self::AddressTaken { listen, service } => write!(f, "service {service} listens at {listen}"),
            Self::ListensAtServer { listen, server, pool } => write!(
                f,
                "a service at {listen} would be server {server} of pool {pool}; it would connect to itself for ever"
            ),
            Self::NotBound { fault } | Self::BadFile { fault } | Self::NotMade { fault } => f.write_str(fault),
            Self::NoSession { session } => write!(f, "there is no session {session}; it may have ended by now"),
            Self::NoFile => {
                f.write_str("the balancer was started without a configuration file; start it with --config")
            }
            Self::NothingToSet => f.write_str("nothing was said to be changed"),
            Self::TooManyPools => write!(f, "there are {MAX_POOLS} pools, which is the limit; remove one first"),
            Self::TooManyListeners => {
                write!(f, "services listen at {MAX_LISTENERS} addresses, which is the limit; remove one first")
            }
            Self::NotPermitted { uid } => write!(
                f,
                "user {uid} may not steer this balancer; be root, the user it runs as, or a member of its socket's group"
            ),
        }
    }
}
