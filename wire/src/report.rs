//! What the daemon tells of itself. These types are also the shape of `balancerctl --json`: a change of a field is a
//! change that users notice. Shares are fractions of 1, times are milliseconds, sizes are bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::control::Change;

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
}

impl EndReason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::ClientClosed,
        Self::ServerClosed,
        Self::ClientReset,
        Self::ServerReset,
        Self::ClientLost,
        Self::ServerLost,
        Self::ConnectFailed,
        Self::NoServer,
        Self::Shortage,
        Self::IdleTimeout,
        Self::Removed,
        Self::Shutdown,
        Self::Fault,
    ];

    /// The name as it stands in logs, in JSON and in the documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ClientClosed => "client-closed",
            Self::ServerClosed => "server-closed",
            Self::ClientReset => "client-reset",
            Self::ServerReset => "server-reset",
            Self::ClientLost => "client-lost",
            Self::ServerLost => "server-lost",
            Self::ConnectFailed => "connect-failed",
            Self::NoServer => "no-server",
            Self::Shortage => "shortage",
            Self::IdleTimeout => "idle-timeout",
            Self::Removed => "removed",
            Self::Shutdown => "shutdown",
            Self::Fault => "fault",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Sessions that ended, by reason; a reason that never came is absent.
pub type Ended = BTreeMap<EndReason, u64>;

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
    /// Servers in the pool, those that are leaving not counted.
    pub servers: u64,
    /// The digest of the pool.
    pub digest: Hex,
    /// Sessions that there may be at a time; the descriptor limit sets it.
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
    /// Where it listens.
    pub listen: SocketAddr,
    /// The pool that serves it.
    pub pool: String,
    /// Whether it accepts at this moment: it does not at the session limit, out of descriptors, or when stopping.
    pub accepting: bool,
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
}

/// The pool and its servers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListReport {
    /// Its name.
    pub pool: String,
    /// Its digest.
    pub digest: Hex,
    /// Its servers in the order of their addresses, and behind them those that are leaving.
    pub servers: Vec<ServerReport>,
}

/// Whether a server takes new sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerState {
    /// It does.
    Ready,
    /// Its weight is 0: it does not; the sessions that it has live on.
    Drain,
    /// It was removed: it does not, and it is gone when its last session has ended.
    Leaving,
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Leaving => "leaving",
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
    /// Whether it takes new sessions.
    pub state: ServerState,
    /// The exact share of the ring that it owns.
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
    /// Sessions that ended, by reason.
    pub ended: Ended,
}

/// What a change did or would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangeReport {
    /// The change.
    pub change: Change,
    /// Nothing was changed: this is what would happen.
    pub dry_run: bool,
    /// The share of all clients that get another server from now on.
    pub moved: f64,
    /// From whom to whom, the largest share first. `null` is "no server".
    pub moves: Vec<MoveReport>,
    /// Live sessions of the server that the change is about.
    pub sessions: u64,
    /// The digest of the pool after the change.
    pub digest: Hex,
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
    /// The hash of its address.
    pub hash: Hex,
    /// The first point of the ring at or after the hash, going round: it decides.
    pub point: Option<Hex>,
    /// The server that the client gets.
    pub server: Option<SocketAddr>,
    /// Who is tried next, in order, when that server does not answer.
    pub next: Vec<SocketAddr>,
    /// Servers that own no part of the ring, and why.
    pub skipped: Vec<SkippedReport>,
}

/// A server that no client gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedReport {
    /// The server.
    pub server: SocketAddr,
    /// Its state, which is the reason.
    pub state: ServerState,
}

/// The number that two balancers compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestReport {
    /// The pool.
    pub pool: String,
    /// Equal digests: every client gets the same server.
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
    fn names_of_reasons_are_those_in_json() {
        for reason in EndReason::ALL {
            assert_eq!(serde_json::to_string(&reason).expect("a name"), format!("\"{reason}\""));
        }
        let all: Vec<usize> = EndReason::ALL.iter().map(|reason| *reason as usize).collect();
        assert_eq!(all, (0..EndReason::ALL.len()).collect::<Vec<_>>());
    }

    #[test]
    fn a_large_number_survives_json() {
        let text = serde_json::to_string(&Hex(u64::MAX - 1)).expect("text");
        assert_eq!(text, "\"fffffffffffffffe\"");
        assert_eq!(serde_json::from_str::<Hex>(&text).expect("the number"), Hex(u64::MAX - 1));
    }
}
