//! What the daemon tells of itself. These types are also the shape of `balancerctl --json`: a change of a field is a
//! change that users notice. Shares are fractions of 1, times are milliseconds, sizes are bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::control::{Change, Removal};
use crate::difference::Difference;
use crate::named::named;
use crate::settings::{Policy, PoolSettings, ServiceSettings, Settings, Transport};

/// Why a session ended. Every session ends with exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// Both directions ended in order, the client's first.
    ClientClosed,
    /// Both directions ended in order, the server's first.
    ServerClosed,
    /// The client reset its connection.
    ClientReset,
    /// The server reset its connection.
    ServerReset,
    /// The client's host stopped answering: the kernel gave its connection up.
    ClientLost,
    /// The server's host stopped answering: the kernel gave its connection up.
    ServerLost,
    /// Every server that was tried refused the connection or let it time out.
    ConnectFailed,
    /// No server was eligible.
    NoServer,
    /// The balancer itself was short of descriptors, ports or memory.
    Shortage,
    /// Nothing moved for the idle timeout.
    IdleTimeout,
    /// The server was removed with its sessions.
    Removed,
    /// The balancer stopped.
    Shutdown,
    /// A fault in the balancer; the log has more.
    Fault,
    /// The service's networks do not let the client in.
    Denied,
    /// The client had as many sessions as one may have.
    ClientLimit,
    /// Somebody ended it by command.
    Killed,
    /// Checks found the server down, and the pool closes its sessions then.
    ServerDown,
    /// It had to begin with a PROXY protocol header and did not, or ended within it.
    BadHeader,
    /// The PROXY protocol header that it had to begin with did not come in time.
    HeaderTimeout,
    /// One side had ended, and nothing moved for the half-closed timeout.
    HalfClosedTimeout,
    /// It was as old as a session may be.
    MaxAge,
    /// The flow had as many datagrams as it was to have.
    Complete,
    /// The listener that it came by was closed.
    Unlistened,
    /// Every server that takes clients had as many sessions as it may have.
    Full,
    /// The `source` of the pool is not an address of this machine.
    NoSource,
}

named!(
    EndReason,
    ClientClosed = "client-closed",
    ServerClosed = "server-closed",
    ClientReset = "client-reset",
    ServerReset = "server-reset",
    ClientLost = "client-lost",
    ServerLost = "server-lost",
    ConnectFailed = "connect-failed",
    NoServer = "no-server",
    Shortage = "shortage",
    IdleTimeout = "idle-timeout",
    Removed = "removed",
    Shutdown = "shutdown",
    Fault = "fault",
    Denied = "denied",
    ClientLimit = "client-limit",
    Killed = "killed",
    ServerDown = "server-down",
    BadHeader = "bad-header",
    HeaderTimeout = "header-timeout",
    HalfClosedTimeout = "half-closed-timeout",
    MaxAge = "max-age",
    Complete = "complete",
    Unlistened = "unlistened",
    Full = "full",
    NoSource = "no-source",
);

/// Sessions that ended, by reason; a reason that never came is absent.
pub type Ended = BTreeMap<EndReason, u64>;

/// Why a datagram did not go on. Each that did not is counted with exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DropReason {
    /// It would have begun a flow, and no server was eligible.
    NoServer,
    /// The service's networks do not let the client in.
    Denied,
    /// It would have begun a flow, and the client had as many as one may have.
    ClientLimit,
    /// It would have begun a flow, and the service, all together, or each server had as many as there may be.
    Full,
    /// It would have begun a flow, and the service had as many new ones in this second as it may have.
    Rate,
    /// It would have begun a flow, and the balancer is stopping.
    Stopping,
    /// The balancer was short of descriptors, ports or memory.
    Shortage,
    /// It had to begin with a PROXY protocol header, and did not.
    BadHeader,
    /// It was longer than what it was read into.
    Truncated,
    /// The kernel had no room for it on the way out.
    SendBufferFull,
    /// It was longer than the way allows, or longer than a datagram with its header may be.
    TooLong,
    /// An ICMP error said that the other side is not there.
    Unreachable,
    /// The kernel did not send it for another reason.
    SendFailed,
    /// The `source` of the pool is not an address of this machine.
    NoSource,
}

named!(
    DropReason,
    NoServer = "no-server",
    Denied = "denied",
    ClientLimit = "client-limit",
    Full = "full",
    Rate = "rate",
    Stopping = "stopping",
    Shortage = "shortage",
    BadHeader = "bad-header",
    Truncated = "truncated",
    SendBufferFull = "send-buffer-full",
    TooLong = "too-long",
    Unreachable = "unreachable",
    SendFailed = "send-failed",
    NoSource = "no-source",
);

/// Datagrams: those that went on, and those that did not, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatagramReport {
    /// Those of clients that were sent to servers.
    pub datagrams_in: u64,
    /// Those of servers that were sent to clients.
    pub datagrams_out: u64,
    /// Those of clients that went no further; a reason that never came is absent.
    pub dropped_in: BTreeMap<DropReason, u64>,
    /// Those of servers that went no further.
    pub dropped_out: BTreeMap<DropReason, u64>,
}

/// A 64-bit number that is text of 16 hexadecimal digits in JSON, where numbers are exact only to 2^53.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_u64(self.0) }
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let digits = String::deserialize(deserializer)?;
            u64::from_str_radix(&digits, 16).map(Self).map_err(de::Error::custom)
        } else {
            u64::deserialize(deserializer).map(Self)
        }
    }
}

/// How the daemon is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The version of balancerd.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// How long it has run.
    pub uptime_ms: u64,
    /// Whether it takes new sessions.
    pub phase: Phase,
    /// Its services.
    pub services: Vec<ServiceReport>,
    /// Servers of all pools, those that are leaving not counted.
    pub servers: u64,
    /// One number for all pools: equal ones mean equal pools, by name, and equal picks where policies hash.
    pub digest: Hex,
    /// Sessions that there may be at a time: what descriptors allow, or less if the file says so.
    pub session_limit: u64,
    /// The state file.
    pub state_file: String,
    /// Where the log goes: `stderr`, `journald` or a file.
    pub log: String,
    /// Why the pool as it is now is not in the state file, when it is not.
    pub unsaved: Option<String>,
    /// The longest turn of the loop so far, waiting not counted, in microseconds.
    pub longest_turn_us: u64,
    /// Log lines that were dropped because the log could not be written fast enough.
    pub log_lines_dropped: u64,
    /// Connects that found no free source port: a shortage of this machine, and not a fault of the server.
    pub port_shortages: u64,
    /// The configuration file.
    pub config_file: Option<String>,
    /// Why the last reload failed; nothing when it did not, or there was none.
    pub reload_failure: Option<String>,
    /// What commands have changed of what the file says.
    pub deviations: Vec<Difference>,
    /// The last reload since the start, good or bad; `None`: there was none. Dry runs do not count.
    pub last_reload: Option<LastReload>,
}

/// When the configuration file was read again, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastReload {
    /// The time of day, as the log writes it.
    pub at: String,
    /// What it was read for: `command`, `signal` or `watch`.
    pub by: String,
    /// How many values have changed; `None`: the file was not taken, for the reason in [`StatusReport::reload_failure`].
    pub changes: Option<u64>,
}

/// What the daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It takes new sessions.
    Running,
    /// It takes no new sessions and ends when the last one has ended, or at a limit.
    Stopping,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Its name.
    pub name: String,
    /// What it is set to. A port that the kernel chose is in `addresses`.
    pub settings: ServiceSettings,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    /// It was removed, and is gone when its last session has ended.
    pub leaving: bool,
    /// Whether it accepts at this moment: it does not at a limit, out of descriptors, or when stopping.
    pub accepting: bool,
    /// Why it does not, if it does not: clients wait in the kernel's queue meanwhile.
    pub waiting: Option<Waiting>,
    /// Sessions alive.
    pub active: u64,
    /// Sessions since the start.
    pub total: u64,
    /// Bytes that clients sent and servers took.
    pub bytes_in: u64,
    /// Bytes that servers sent and clients took.
    pub bytes_out: u64,
    /// Times that accepting a connection failed: the client was gone, or the balancer was short of something.
    pub accept_failures: u64,
    /// Sessions that ended, by reason.
    pub ended: Ended,
    /// Its datagrams.
    pub datagrams: DatagramReport,
    /// Datagrams of clients that the kernel had no room for while they waited to be read.
    pub receive_overflows: u64,
    /// Networks that are allowed, those of its file included. `settings` has the first ones of a long list.
    pub allowed_networks: u64,
    /// Networks that are denied, in the same way.
    pub denied_networks: u64,
    /// Networks whose connections begin with a PROXY protocol header.
    pub proxy_networks: u64,
}

/// Why a service does not accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Waiting {
    /// It has as many sessions as it may have.
    ServiceFull,
    /// All services together have as many sessions as they may have.
    BalancerFull,
    /// It had as many new sessions in this second as it may have.
    Rate,
    /// The balancer is stopping, or the service was removed.
    Stopping,
}

/// A pool, without its servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReport {
    /// Its name.
    pub pool: String,
    /// What it is set to. The servers are left out.
    pub settings: PoolSettings,
    /// The services that it serves.
    pub services: Vec<String>,
    /// Its servers, those that are leaving not counted.
    pub servers: u64,
    /// Those of them that take new sessions.
    pub eligible: u64,
    /// Sessions alive.
    pub active: u64,
    /// Its digest.
    pub digest: Hex,
}

/// The pool and its servers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListReport {
    /// Its name.
    pub pool: String,
    /// What it is set to. The servers are left out.
    pub settings: PoolSettings,
    /// Its digest.
    pub digest: Hex,
    /// What commands have changed of what the file says of this pool; nothing without a file.
    pub deviations: Vec<Difference>,
    /// Its servers in the order of their addresses, and behind them those that are leaving.
    pub servers: Vec<ServerReport>,
}

/// Whether a server takes new sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerState {
    /// It does.
    Ready,
    /// It drains, or its weight is 0: it does not; the sessions that it has live on.
    Drain,
    /// It was removed: it does not, and it is gone when its last session has ended.
    Leaving,
    /// It is in maintenance: it does not; the sessions that it has live on.
    Maintenance,
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Leaving => "leaving",
            Self::Maintenance => "maintenance",
        })
    }
}

/// A server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerReport {
    /// Its address and port.
    pub server: SocketAddr,
    /// Its weight.
    pub weight: u32,
    /// Sessions that it may have at a time.
    pub max_sessions: Option<u64>,
    /// The part of its weight that it has now, while it starts slowly; 1 otherwise.
    pub ramp: f64,
    /// Whether it takes new sessions, as far as people have a say.
    pub state: ServerState,
    /// Whether it serves only while every other server is down or full.
    pub backup: bool,
    /// Whether it is up, and how that is known.
    pub health: HealthReport,
    /// The share of new clients that it gets: of a ring exactly, otherwise by weight.
    pub share: f64,
    /// Sessions alive.
    pub active: u64,
    /// Sessions since it was added: those for which it was picked and answered the connect.
    pub total: u64,
    /// Bytes that clients sent and it took.
    pub bytes_in: u64,
    /// Bytes that it sent and clients took.
    pub bytes_out: u64,
    /// Connects that it refused, or that failed on the way to it.
    pub connect_failures: u64,
    /// Connects that it did not answer in time.
    pub connect_timeouts: u64,
    /// How fast it was in the last minutes.
    pub timing: TimingReport,
    /// Clients that went to another server since it had as many sessions as it may have, or as the bounded load allows. By
    /// least connections a client counts at one server only, the one that would have got it.
    pub overflows: u64,
    /// Sessions that went on to another server since it broke before its first byte.
    pub replays: u64,
    /// How it leaves, when it was removed.
    pub removal: Option<RemovalReport>,
    /// Sessions that ended, by reason.
    pub ended: Ended,
    /// Its datagrams.
    pub datagrams: DatagramReport,
    /// Flows that went on with another server.
    pub flows_moved: u64,
}

/// Whether a server is up: for checks and for clients. Only one that is up gets new sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport {
    /// Whether it is.
    pub state: HealthState,
    /// Since when.
    pub since_ms: u64,
    /// Why it is not up, when it is not.
    pub reason: Option<String>,
    /// For how long it is left out still, when it is ejected.
    pub ejected_ms: Option<u64>,
    /// Times that it was ejected.
    pub ejections: u64,
    /// Checks that passed.
    pub passed: u64,
    /// Checks that failed.
    pub failed: u64,
    /// The last check, if there was one.
    pub last_check: Option<CheckReport>,
}

/// The health of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthState {
    #[default]
    /// Nothing speaks against it.
    Up,
    /// Checks say that it is down, or have not said yet that it is up where that is waited for.
    Down,
    /// Its clients failed: it is left out for a while.
    Ejected,
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Ejected => "ejected",
        })
    }
}

/// A check that is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Whether the server passed it.
    pub passed: bool,
    /// What it came to, in words.
    pub result: String,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// How long ago it ended.
    pub ago_ms: u64,
}

/// How fast a server was in the last minutes: two to four of them. Nothing where nobody came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimingReport {
    /// From a connect to its answer.
    pub connect: Option<QuantilesReport>,
    /// From there to the first byte of the server.
    pub first_byte: Option<QuantilesReport>,
    /// The round trip as the kernel knew it at the end of sessions: a sample of them.
    pub round_trip: Option<QuantilesReport>,
    /// Segments that were sent to the server in the sessions of that sample, since it was added.
    pub segments: u64,
    /// Those of them that were sent again.
    pub retransmitted: u64,
}

/// Times in microseconds; half of all, nine in ten, and 99 in 100 were not longer. Exact to some 6 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuantilesReport {
    /// How many there were.
    pub count: u64,
    /// The median.
    pub p50_us: u64,
    /// The 90th percentile.
    pub p90_us: u64,
    /// The 99th percentile.
    pub p99_us: u64,
}

/// How a removed server leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovalReport {
    /// What becomes of its sessions.
    pub how: Removal,
    /// Sessions that it had when it was removed.
    pub sessions: u64,
    /// The time that is left, if there is a limit.
    pub left_ms: Option<u64>,
}

/// A live session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionReport {
    /// Its number: from 1 up, given once in the life of a balancer.
    pub session: u64,
    /// What it speaks: with `udp` it is a flow.
    pub transport: Transport,
    /// The service.
    pub service: String,
    /// The pool.
    pub pool: String,
    /// The client: as its PROXY protocol header says, if it has to begin with one and that has come.
    pub client: SocketAddr,
    /// The server; nothing while the header has not come.
    pub server: Option<SocketAddr>,
    /// Whether the server has answered the connect.
    pub connected: bool,
    /// How long it has lived.
    pub age_ms: u64,
    /// How long nothing has moved.
    pub idle_ms: u64,
    /// Bytes that the client sent and the server took.
    pub bytes_in: u64,
    /// Bytes that the server sent and the client took.
    pub bytes_out: u64,
    /// Datagrams of a flow's client that were sent to its server.
    pub datagrams_in: u64,
    /// Datagrams of its server that were sent to its client.
    pub datagrams_out: u64,
}

/// What a reload did or would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Nothing was changed: this is what would happen.
    pub dry_run: bool,
    /// The file.
    pub file: String,
    /// Every value that changes.
    pub changes: Vec<Difference>,
    /// What commands had changed, and the file leaves so.
    pub deviations: Vec<Difference>,
    /// The pools in which clients move.
    pub pools: Vec<PoolMovesReport>,
    /// Why the change holds only until the daemon ends, when it could not be written to the state file.
    pub unsaved: Option<String>,
}

/// Who moves in a pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolMovesReport {
    /// The pool.
    pub pool: String,
    /// The share of all its clients that get another server from now on.
    pub moved: f64,
    /// From whom to whom, the largest share first; the first hundred of them. `null` is "no server".
    pub moves: Vec<MoveReport>,
}

/// What the balancer is set to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsReport {
    /// The configuration file.
    pub file: Option<String>,
    /// What it said when it was read.
    pub said: Option<Settings>,
    /// What holds now.
    pub now: Settings,
}

/// What a change did or would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangeReport {
    /// The change.
    pub change: Change,
    /// Nothing was changed: this is what would happen.
    pub dry_run: bool,
    /// The share of all clients of the pool that get another server from now on.
    pub moved: f64,
    /// From whom to whom, the largest share first. `null` is "no server".
    pub moves: Vec<MoveReport>,
    /// Live sessions of the server, pool or service that the change is about.
    pub sessions: u64,
    /// The digest of the pool after the change; nothing when it is about no pool.
    pub digest: Option<Hex>,
    /// Why the change holds only until the daemon ends, when it could not be written to the state file.
    pub unsaved: Option<String>,
}

/// Clients that get another server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MoveReport {
    /// The server they had.
    pub from: Option<SocketAddr>,
    /// The server they get.
    pub to: Option<SocketAddr>,
    /// Their share of all clients.
    pub share: f64,
}

/// Which server a client gets, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainReport {
    /// The client, as it is hashed.
    pub client: IpAddr,
    /// The service that it comes to, if one was named.
    pub service: Option<String>,
    /// Why the service does not let it in, if it does not.
    pub refused: Option<EndReason>,
    /// The pool.
    pub pool: String,
    /// Its policy.
    pub policy: Policy,
    /// What of the client is hashed, as text, if the policy hashes.
    pub key: Option<String>,
    /// The hash of that.
    pub hash: Option<Hex>,
    /// The first point of the ring at or after the hash, going round: it decides.
    pub point: Option<Hex>,
    /// The server that the client gets; for a policy that draws, nothing when there are several.
    pub server: Option<SocketAddr>,
    /// Who is tried next, in order, when that server does not answer; for a policy that draws, all that it draws from.
    pub next: Vec<SocketAddr>,
    /// Servers that do not get the client though it may look so, and why.
    pub skipped: Vec<SkippedReport>,
}

/// A server that a client does not get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedReport {
    /// The server.
    pub server: SocketAddr,
    /// The reason.
    pub reason: Skip,
}

/// Why a server does not get a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Skip {
    /// It drains, or its weight is 0.
    Drain,
    /// It was removed.
    Leaving,
    /// It is in maintenance.
    Maintenance,
    /// It has as many sessions as it may have.
    Full,
    /// It has as many sessions as the bounded load allows.
    Loaded,
    /// Checks say that it is down.
    Down,
    /// Its clients failed: it is left out for a while.
    Ejected,
    /// It is a backup, and another server is up.
    Backup,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drain => "drain",
            Self::Leaving => "leaving",
            Self::Maintenance => "maintenance",
            Self::Full => "full",
            Self::Loaded => "loaded",
            Self::Down => "down",
            Self::Ejected => "ejected",
            Self::Backup => "backup",
        })
    }
}

/// The number that two balancers compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestReport {
    /// The pool.
    pub pool: String,
    /// Its policy.
    pub policy: Policy,
    /// What of a client is hashed.
    pub key: String,
    /// The bound of the load.
    pub max_load: Option<String>,
    /// Equal digests: every client gets the same server, as far as the policy is one that hashes.
    pub digest: Hex,
    /// The format of the ring that the digest belongs to.
    pub ring_format: u32,
    /// Points that a server of weight 1 has.
    pub points_per_weight: u32,
}

/// What the daemon still has to do before it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppingReport {
    /// Its process.
    pub pid: u32,
    /// Sessions that are alive.
    pub sessions: u64,
    /// How long they may go on.
    pub drain_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_number_survives_json() {
        let text = serde_json::to_string(&Hex(u64::MAX - 1)).expect("text");
        assert_eq!(text, "\"fffffffffffffffe\"");
        assert_eq!(serde_json::from_str::<Hex>(&text).expect("the number"), Hex(u64::MAX - 1));
    }
}
