//! What a service and a pool are set to as far as their connections are concerned: times, tries, and options of the
//! sockets. A part of [`settings`](crate::settings). Times are milliseconds, sizes are bytes.

use std::net::IpAddr;
use std::num::{NonZeroU8, NonZeroU32, NonZeroU64};

use serde::{Deserialize, Serialize};

/// Addresses that connections to servers come from at most.
pub const MAX_SOURCES: usize = 64;

/// Servers that a client's connect goes to at most, whatever is set.
pub const MAX_TRIES: u8 = 16;

/// Bytes of a client that are kept for another server at most.
pub const MAX_REPLAY: u32 = 1024 * 1024;

/// The connections of a service's clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientSide {
    /// With nothing moving either way a session ends after this; nothing is what the balancer was started with.
    pub idle_timeout_ms: Option<NonZeroU64>,
    /// The same when one side has ended already.
    pub half_closed_timeout_ms: NonZeroU64,
    /// However busy it is, a session ends after this, give or take a tenth; nothing is never.
    pub max_age_ms: Option<NonZeroU64>,
    /// Connections that wait in the kernel for their accept; `net.core.somaxconn` caps it.
    pub backlog: NonZeroU32,
    /// A client that has not said anything is accepted after this; nothing is at once. Rounded to seconds.
    pub defer_accept_ms: Option<NonZeroU64>,
    /// Connections whose first words come with their SYN that may be pending; 0 is none.
    pub fast_open: u32,
    /// Options of the sockets.
    pub socket: SocketSettings,
}

impl Default for ClientSide {
    fn default() -> Self {
        Self {
            idle_timeout_ms: None,
            half_closed_timeout_ms: NonZeroU64::new(60_000).expect("it is not 0"),
            max_age_ms: None,
            backlog: NonZeroU32::new(4096).expect("it is not 0"),
            defer_accept_ms: None,
            fast_open: 0,
            socket: SocketSettings::default(),
        }
    }
}

/// The connections to a pool's servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerSide {
    /// For a server to answer a connect; nothing is what the balancer was started with.
    pub connect_timeout_ms: Option<NonZeroU64>,
    /// Servers that a client's connect goes to.
    pub tries: NonZeroU8,
    /// So many bytes of a client are kept until its server has said something: if that resets before, they go to another
    /// one. 0 is never.
    pub replay: u32,
    /// Addresses that connections come from, in turn; empty leaves it to the kernel.
    pub source: Vec<IpAddr>,
    /// They come from the client's address. Takes CAP_NET_ADMIN, and routes that lead answers back here.
    pub transparent: bool,
    /// First words go with the SYN to a server that is known to take them.
    pub fast_open: bool,
    /// The mark for routing and filters. Takes CAP_NET_ADMIN.
    pub mark: Option<NonZeroU32>,
    /// The network device that they leave by.
    pub device: Option<String>,
    /// Options of the sockets.
    pub socket: SocketSettings,
}

impl Default for ServerSide {
    fn default() -> Self {
        Self {
            connect_timeout_ms: None,
            tries: NonZeroU8::new(3).expect("it is not 0"),
            replay: 0,
            source: Vec::new(),
            transparent: false,
            fast_open: false,
            mark: None,
            device: None,
            socket: SocketSettings::default(),
        }
    }
}

/// Options of a socket, either side. Nothing is what the kernel does by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SocketSettings {
    /// A peer that is silent for so long is asked whether it is still there; 0 is never. It is given up after six questions,
    /// each a sixth of that after the other.
    pub keepalive_ms: u64,
    /// A peer that does not acknowledge what was sent for so long is given up.
    pub user_timeout_ms: Option<NonZeroU32>,
    /// The congestion control, such as `bbr`.
    pub congestion: Option<String>,
    /// The send buffer.
    pub send_buffer: Option<NonZeroU32>,
    /// The receive buffer.
    pub receive_buffer: Option<NonZeroU32>,
}

impl Default for SocketSettings {
    fn default() -> Self {
        Self { keepalive_ms: 60_000, user_timeout_ms: None, congestion: None, send_buffer: None, receive_buffer: None }
    }
}
