//! The control requests and their responses. A request *is* the command: the daemon's model applies it as it stands.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::report::{ChangeReport, DigestReport, ExplainReport, ListReport, StatusReport, StoppingReport};

/// The largest weight of a server.
pub const MAX_WEIGHT: u32 = 256;

/// Servers that a pool may have, whatever their weight: more than its ring has room for, and few enough that a list of
/// them is one answer.
pub const MAX_SERVERS: usize = 65_536;

/// What a program may ask of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// How the daemon is: answered by [`Response::Status`].
    Status,
    /// The pool with its servers: answered by [`Response::List`].
    List,
    /// Change the pool, or only say what the change would do: answered by [`Response::Changed`].
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
    },
    /// The number that two balancers compare: answered by [`Response::Digest`].
    Digest,
    /// End the daemon: answered by [`Response::Stopping`] at once; the connection closes when it has ended.
    Stop {
        /// Close every session now.
        now: bool,
        /// How long sessions may go on, in milliseconds. Without it the daemon's own setting holds, or the time that
        /// an earlier request gave.
        drain_ms: Option<u64>,
    },
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status => f.write_str("status"),
            Self::List => f.write_str("list"),
            Self::Change { change, dry_run } => write!(f, "{change}{}", if *dry_run { " dry-run" } else { "" }),
            Self::Explain { client } => write!(f, "explain {client}"),
            Self::Digest => f.write_str("digest"),
            Self::Stop { now: true, .. } => f.write_str("stop now"),
            Self::Stop { drain_ms: Some(limit), .. } => write!(f, "stop drain_ms={limit}"),
            Self::Stop { .. } => f.write_str("stop"),
        }
    }
}

/// A change of the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Put a server into the pool.
    Add {
        /// Its address and port.
        server: SocketAddr,
        /// Its weight, 0 to [`MAX_WEIGHT`]; 0 takes no new sessions.
        weight: u32,
    },
    /// Take a server out of the pool: no new sessions for it, the existing ones live on.
    Remove {
        /// Its address and port.
        server: SocketAddr,
        /// Close its sessions too.
        now: bool,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add { server, weight } => write!(f, "add {server} weight={weight}"),
            Self::Remove { server, now } => write!(f, "remove {server}{}", if *now { " now" } else { "" }),
        }
    }
}

impl Change {
    /// The server that the change is about.
    #[must_use]
    pub fn server(&self) -> SocketAddr {
        match *self {
            Self::Add { server, .. } | Self::Remove { server, .. } => server,
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
}

/// What is wrong with an address that no server can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressFault {
    /// Port 0.
    PortZero,
    /// `0.0.0.0` or `::`.
    Unspecified,
    /// Another address in 0.0.0.0/8.
    ThisNetwork,
    /// fe80::/10: it means nothing without an interface, and an identity has none.
    LinkLocal,
    /// A multicast group.
    Multicast,
    /// The broadcast address.
    Broadcast,
}

/// Checks that a server can have this address.
///
/// # Errors
/// Says which rule it breaks.
pub fn check_address(server: SocketAddr) -> Result<(), AddressFault> {
    let ip = server.ip().to_canonical();
    if server.port() == 0 {
        Err(AddressFault::PortZero)
    } else if ip.is_unspecified() {
        Err(AddressFault::Unspecified)
    } else if matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 0) {
        Err(AddressFault::ThisNetwork)
    } else if matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        Err(AddressFault::LinkLocal)
    } else if ip.is_multicast() {
        Err(AddressFault::Multicast)
    } else if matches!(ip, IpAddr::V4(v4) if v4.is_broadcast()) {
        Err(AddressFault::Broadcast)
    } else {
        Ok(())
    }
}

impl fmt::Display for AddressFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PortZero => "port 0 cannot be connected to",
            Self::Unspecified => "it is the unspecified address, which names no host",
            Self::ThisNetwork => "addresses of 0.0.0.0/8 name no host",
            Self::LinkLocal => "it is link-local and names a host only together with an interface",
            Self::Multicast => "it is a multicast group, not one host",
            Self::Broadcast => "it is the broadcast address, not one host",
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyThere { server, weight } => write!(
                f,
                "{server} is in the pool already, with weight {weight}; to change its weight, remove it and add it again"
            ),
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
            Self::NotPermitted { uid } => write!(
                f,
                "user {uid} may not steer this balancer; be root, the user it runs as, or a member of its socket's group"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_no_server_can_have_are_named() {
        for (address, fault) in [
            ("10.0.0.1:0", Err(AddressFault::PortZero)),
            ("0.0.0.0:80", Err(AddressFault::Unspecified)),
            ("[::]:80", Err(AddressFault::Unspecified)),
            ("[::ffff:0.0.0.0]:80", Err(AddressFault::Unspecified)),
            ("0.1.2.3:80", Err(AddressFault::ThisNetwork)),
            ("[fe80::1]:80", Err(AddressFault::LinkLocal)),
            ("224.0.0.1:80", Err(AddressFault::Multicast)),
            ("[ff02::1]:80", Err(AddressFault::Multicast)),
            ("255.255.255.255:80", Err(AddressFault::Broadcast)),
            ("10.0.0.1:80", Ok(())),
            ("[2001:db8::1]:65535", Ok(())),
            ("127.0.0.1:1", Ok(())),
        ] {
            assert_eq!(check_address(address.parse().expect("an address")), fault, "{address}");
        }
    }
}
