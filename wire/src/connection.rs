//! What a service and a pool are set to as far as their connections are concerned: times, tries, and options of the
//! sockets. A part of [`settings`](crate::settings). Times are milliseconds, sizes are bytes.

use std::net::IpAddr;
use std::num::{NonZeroU8, NonZeroU32, NonZeroU64};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// Keys of a service, as a file calls them, that mean something where it speaks TCP alone.
pub const OF_TCP: [&str; 11] = [
    "proxy_timeout",
    "splice",
    "idle_timeout",
    "half_closed_timeout",
    "max_age",
    "backlog",
    "defer_accept",
    "fast_open",
    "keepalive",
    "user_timeout",
    "congestion",
];

/// Addresses that connections to servers come from at most.
pub const MAX_SOURCES: usize = 64;

/// Servers that a client's connect goes to at most, whatever is set.
pub const MAX_TRIES: u8 = 16;

/// Bytes of a client that are kept for another server at most.
pub const MAX_REPLAY: u32 = 1024 * 1024;

/// How long a server may be given to answer a connect.
pub const CONNECT_TIMEOUT_MS: RangeInclusive<u64> = 10..=60 * 60 * 1000;

/// How long a session may be given: to be idle, half-closed or not, or to live at all.
pub const SESSION_TIME_MS: RangeInclusive<u64> = 100..=365 * 24 * 60 * 60 * 1000;

/// How long a peer may be silent until it is asked, if it is asked at all. The kernel takes 32767 seconds at most.
pub const KEEPALIVE_MS: RangeInclusive<u64> = 1000..=9 * 60 * 60 * 1000;

/// How long a peer may take to acknowledge what was sent.
pub const USER_TIMEOUT_MS: RangeInclusive<u64> = 100..=60 * 60 * 1000;

/// How long a client may be waited for that has not said anything.
pub const DEFER_ACCEPT_MS: RangeInclusive<u64> = 1000..=60 * 1000;

/// Connections that wait in the kernel for their accept at most, whatever is set.
pub const MAX_BACKLOG: u32 = 65_535;

/// Connections whose first words came with their SYN that are pending at most, whatever is set.
pub const MAX_FAST_OPEN: u32 = 65_535;

/// The sizes that a buffer of a socket may have, in bytes.
pub const BUFFER: RangeInclusive<u64> = 4 * 1024..=64 * 1024 * 1024;

/// Bytes of the name of a network device, or of a congestion control, at most: what the kernel has room for.
const MAX_KERNEL_NAME: usize = 15;

/// Whether a text can be the name of a network device: 1 to 15 bytes without blanks, slashes or control characters.
#[must_use]
pub fn is_device(text: &str) -> bool {
    let is_wrong = |letter: char| letter == '/' || letter.is_whitespace() || letter.is_control();
    (1..=MAX_KERNEL_NAME).contains(&text.len()) && !text.contains(is_wrong)
}

/// Whether a text can be the name of a congestion control: 1 to 15 letters, digits, `_` and `-`.
#[must_use]
pub fn is_congestion(text: &str) -> bool {
    let is_right = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=MAX_KERNEL_NAME).contains(&text.len()) && text.bytes().all(is_right)
}

/// Whether connections can come from an address: whether it is one host's.
#[must_use]
pub fn is_source(address: IpAddr) -> bool {
    let address = address.to_canonical();
    !address.is_unspecified() && !address.is_multicast()
}

/// The connections of a service's clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[serde(deny_unknown_fields)]
pub struct ClientSide {
    /// With nothing moving either way a session ends after this; nothing is what the balancer was started with.
    pub idle_timeout_ms: Option<NonZeroU64>,
    /// The same when one side has ended already.
    pub half_closed_timeout_ms: NonZeroU64,
    /// However busy it is, a session ends after this, give or take a tenth; nothing is never.
    pub max_age_ms: Option<NonZeroU64>,
    /// Connections that wait in the kernel for their accept; `net.core.somaxconn` caps it.
    pub backlog: NonZeroU32,
    /// A client that has not said anything is accepted after this, in whole seconds; nothing is at once.
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
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
#[serde(deny_unknown_fields)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
#[serde(deny_unknown_fields)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_the_kernel_may_have() {
        for good in ["lo", "eth0.100", "wg-berlin", "ü", "a23456789012345"] {
            assert!(is_device(good), "{good}");
        }
        for bad in ["", "a/b", "a b", "a\tb", "a\0b", "a234567890123456", "üüüüüüüü"] {
            assert!(!is_device(bad), "{bad:?}");
        }
        for good in ["bbr", "reno", "tcp_x-2", "a23456789012345"] {
            assert!(is_congestion(good), "{good}");
        }
        for bad in ["", "b r", "bbr\0", "ü", "a.b", "a234567890123456"] {
            assert!(!is_congestion(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_source_is_one_host() {
        let is = |text: &str| is_source(text.parse().expect("an address"));
        assert!(is("10.0.0.1") && is("127.0.0.1") && is("2001:db8::1"));
        for bad in ["0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "ff02::1", "::ffff:224.0.0.1"] {
            assert!(!is(bad), "{bad}");
        }
    }
}
