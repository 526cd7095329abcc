//! What a balancer is set to: services, pools and their servers, as plain values. A configuration file says them, commands
//! change them, and [`difference`](crate::difference) tells two of them apart. Times are milliseconds, shares are
//! thousandths.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::connection::{ClientSide, OF_TCP, ServerSide};
use crate::flow::{FlowPolicy, FlowSettings, OF_FLOWS, OF_MOVES};
use crate::health::HealthSettings;
use crate::named::named;

/// The pool that commands mean when they name none.
pub const DEFAULT_POOL: &str = "default";

/// The service of a balancer that was started with an address and no file.
pub const DEFAULT_SERVICE: &str = "default";

/// Characters that the name of a service or a pool may have at most.
pub const MAX_NAME: usize = 64;

/// Bytes of a configuration file at most: some 150,000 servers.
pub const FILE_LIMIT: usize = 8 * 1024 * 1024;

/// Keys of a pool, as a file calls them, that mean something with the policy `consistent-hash` alone.
pub const OF_CONSISTENT_HASH: [&str; 5] = ["key", "subnet_ipv4", "subnet_ipv6", "max_load", "points_per_weight"];

/// Points that a server of weight 1 has on the ring of a pool that sets no other number.
pub const DEFAULT_POINTS_PER_WEIGHT: NonZeroU32 = NonZeroU32::new(1024).expect("1024 is not 0");

/// Everything that a file can say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Sessions at a time, of all services together.
    pub max_sessions: Option<NonZeroU64>,
    /// The services by name.
    pub services: BTreeMap<String, ServiceSettings>,
    /// The pools by name.
    pub pools: BTreeMap<String, PoolSettings>,
}

/// How long a service waits for the header of a connection that has to begin with one, when nothing else is said.
pub const DEFAULT_PROXY_TIMEOUT_MS: u64 = 5000;

/// The longest that it may wait: a sender has the header at hand, and longer waits only keep places taken.
pub const MAX_PROXY_TIMEOUT_MS: u64 = 60 * 60 * 1000;

/// A service: where clients come, and who serves them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSettings {
    /// What it speaks.
    pub protocol: Protocol,
    /// Where it listens; at least one address.
    pub listen: Vec<SocketAddr>,
    /// The pool that serves it.
    pub pool: String,
    /// Sessions at a time; further clients wait in the kernel's queue.
    pub max_sessions: Option<NonZeroU64>,
    /// New sessions in a second; further clients wait in the kernel's queue.
    pub sessions_per_second: Option<NonZeroU32>,
    /// Sessions at a time of one client, an IPv4 address or an IPv6 network; further ones are closed.
    pub sessions_per_client: Option<NonZeroU32>,
    /// When it is not empty, only clients of these networks are served.
    pub allow: Vec<IpNet>,
    /// Clients of these networks are not served, even if they are allowed.
    pub deny: Vec<IpNet>,
    /// Connections from these networks begin with a PROXY protocol header, which says who the client is; others do not.
    #[serde(default)]
    pub accept_proxy: Vec<IpNet>,
    /// How long such a header may take.
    #[serde(default = "default_proxy_timeout_ms")]
    pub proxy_timeout_ms: u64,
    /// Whether bulk is spliced: moved by the kernel without being copied.
    #[serde(default = "yes")]
    pub splice: bool,
    /// The connections of its clients.
    #[serde(default)]
    pub client_side: ClientSide,
    /// The flows of its clients, where it speaks UDP.
    #[serde(default)]
    pub flows: FlowSettings,
    /// Bits of an IPv6 address that say which client it is, for `sessions_per_client`.
    #[serde(default = "default_client_subnet_ipv6")]
    pub client_subnet_ipv6: u8,
    /// Whether it listens at addresses that this machine does not have yet.
    #[serde(default)]
    pub freebind: bool,
    /// A file of further networks that are allowed.
    #[serde(default)]
    pub allow_file: Option<String>,
    /// A file of further networks that are denied.
    #[serde(default)]
    pub deny_file: Option<String>,
}

/// Bits of an IPv6 address that say which client it is, when nothing else is said: one site gets 64 at least.
pub const DEFAULT_CLIENT_SUBNET_IPV6: u8 = 64;

fn default_client_subnet_ipv6() -> u8 {
    DEFAULT_CLIENT_SUBNET_IPV6
}

fn yes() -> bool {
    true
}

fn default_proxy_timeout_ms() -> u64 {
    DEFAULT_PROXY_TIMEOUT_MS
}

impl ServiceSettings {
    /// A TCP service without limits.
    #[must_use]
    pub fn new(listen: Vec<SocketAddr>, pool: &str) -> Self {
        Self {
            protocol: Protocol::Tcp,
            listen,
            pool: pool.to_owned(),
            max_sessions: None,
            sessions_per_second: None,
            sessions_per_client: None,
            allow: Vec::new(),
            deny: Vec::new(),
            accept_proxy: Vec::new(),
            proxy_timeout_ms: DEFAULT_PROXY_TIMEOUT_MS,
            splice: true,
            client_side: ClientSide::default(),
            flows: FlowSettings::default(),
            client_subnet_ipv6: DEFAULT_CLIENT_SUBNET_IPV6,
            freebind: false,
            allow_file: None,
            deny_file: None,
        }
    }

    /// Whether a key of a file means something beside the others: not that of what it does not speak, or of headers that
    /// nobody sends.
    #[must_use]
    pub fn uses(&self, key: &str) -> bool {
        let is_wanted = |keys: &[&str], has| has || !keys.contains(&key);
        is_wanted(&OF_TCP, self.protocol.has(Transport::Tcp))
            && is_wanted(&OF_FLOWS, self.protocol.has(Transport::Udp))
            && is_wanted(&["proxy_timeout", "accept_proxy_in"], !self.accept_proxy.is_empty())
            && is_wanted(&["client_subnet_ipv6"], self.sessions_per_client.is_some())
    }
}

/// What a service speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    #[default]
    #[serde(rename = "tcp")]
    Tcp,
    /// UDP.
    #[serde(rename = "udp")]
    Udp,
    /// Both, on the same addresses and with the same pool.
    #[serde(rename = "tcp+udp")]
    TcpAndUdp,
}

named!(Protocol, Tcp = "tcp", Udp = "udp", TcpAndUdp = "tcp+udp");

impl Protocol {
    /// What is listened for: one of both, or both.
    #[must_use]
    pub fn transports(self) -> &'static [Transport] {
        match self {
            Self::Tcp => &[Transport::Tcp],
            Self::Udp => &[Transport::Udp],
            Self::TcpAndUdp => &[Transport::Tcp, Transport::Udp],
        }
    }

    /// Whether this is among what is listened for.
    #[must_use]
    pub fn has(self, transport: Transport) -> bool {
        self.transports().contains(&transport)
    }

    /// Whether two services that speak this and that cannot have one address and port.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.transports().iter().any(|transport| other.has(*transport))
    }
}

/// What one listener, or one session, speaks. A flow of datagrams is a session that speaks UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A pool: its policy, and its servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSettings {
    /// How a server is picked.
    pub policy: Policy,
    /// What of a client is hashed; for `consistent-hash`.
    pub key: HashKey,
    /// How much more than its part of all sessions a server may have; for `consistent-hash`.
    pub max_load: Option<LoadFactor>,
    /// Points that a server of weight 1 has on the ring; for `consistent-hash`.
    pub points_per_weight: NonZeroU32,
    /// How long the weight of a server that comes up grows; 0 is not at all.
    pub slow_start_ms: u64,
    /// The PROXY protocol header that its servers get first, if they do.
    #[serde(default)]
    pub send_proxy: Option<SendProxy>,
    /// How it is found out which servers are up, and what follows.
    #[serde(default)]
    pub health: HealthSettings,
    /// The connections to its servers.
    #[serde(default)]
    pub server_side: ServerSide,
    /// How datagrams go to its servers.
    #[serde(default)]
    pub flows: FlowPolicy,
    /// The servers by address.
    pub servers: BTreeMap<SocketAddr, ServerSettings>,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            policy: Policy::ConsistentHash,
            key: HashKey::ClientIp,
            max_load: None,
            points_per_weight: DEFAULT_POINTS_PER_WEIGHT,
            slow_start_ms: 0,
            send_proxy: None,
            health: HealthSettings::default(),
            server_side: ServerSide::default(),
            flows: FlowPolicy::default(),
            servers: BTreeMap::new(),
        }
    }
}

impl PoolSettings {
    /// The pool by itself.
    #[must_use]
    pub fn without_servers(&self) -> Self {
        // Not a clone of the whole: a pool may have very many servers.
        let Self { policy, key, max_load, points_per_weight, slow_start_ms, send_proxy, flows, .. } = *self;
        let (health, server_side) = (self.health.clone(), self.server_side.clone());
        let servers = BTreeMap::new();
        Self {
            policy,
            key,
            max_load,
            points_per_weight,
            slow_start_ms,
            send_proxy,
            health,
            server_side,
            flows,
            servers,
        }
    }

    /// Whether a key of a file means something beside the others: not that of another policy or another kind of check.
    #[must_use]
    pub fn uses(&self, key: &str) -> bool {
        self.hashes_with(key) && self.health.check.kind.uses(key) && self.flows_with(key)
    }

    /// Whether it does beside the policy.
    pub(crate) fn hashes_with(&self, key: &str) -> bool {
        self.policy == Policy::ConsistentHash || !OF_CONSISTENT_HASH.contains(&key)
    }

    /// Whether it does beside what is said of flows: without them none is moved, and only the header of version 2 is one of datagrams.
    pub(crate) fn flows_with(&self, key: &str) -> bool {
        let has_header = matches!(self.send_proxy, Some(SendProxy::V2 { .. }));
        (!self.flows.one_way || !OF_MOVES.contains(&key)) && (has_header || key != "send_proxy_in")
    }
}

/// How a pool picks a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The same client gets the same server.
    ConsistentHash,
    /// In turn, by weight, evenly interleaved.
    RoundRobin,
    /// The one with the fewest sessions for its weight.
    LeastConnections,
    /// Of two drawn by weight, the one with fewer sessions for its weight.
    RandomTwoChoices,
    /// Drawn by weight.
    WeightedRandom,
}

named!(
    Policy,
    ConsistentHash = "consistent-hash",
    RoundRobin = "round-robin",
    LeastConnections = "least-connections",
    RandomTwoChoices = "random-two-choices",
    WeightedRandom = "weighted-random",
);

/// What of a client's address is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HashKey {
    /// The address: all connections of a client go to one server.
    ClientIp,
    /// Address and port: connections of one client spread.
    ClientIpPort,
    /// The network of the address: neighbours go to one server.
    ClientSubnet {
        /// Bits of an IPv4 address that count, 0 to 32.
        ipv4: u8,
        /// Bits of an IPv6 address that count, 0 to 128.
        ipv6: u8,
    },
}

impl HashKey {
    /// Bits of an IPv4 address that count for `client-subnet` when nothing else is said.
    pub const DEFAULT_IPV4: u8 = 24;
    /// Bits of an IPv6 address that count for `client-subnet` when nothing else is said: what one site gets.
    pub const DEFAULT_IPV6: u8 = 56;

    /// The name in files and commands, without the lengths.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ClientIp => "client-ip",
            Self::ClientIpPort => "client-ip-port",
            Self::ClientSubnet { .. } => "client-subnet",
        }
    }
}

impl fmt::Display for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        if let Self::ClientSubnet { ipv4, ipv6 } = self {
            write!(f, " /{ipv4} /{ipv6}")?;
        }
        Ok(())
    }
}

/// Which PROXY protocol header a server gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SendProxy {
    /// A line of text.
    V1,
    /// Bytes.
    V2 {
        /// With a checksum of its own.
        crc32c: bool,
        /// With an id of the session.
        unique_id: bool,
    },
}

impl SendProxy {
    /// The name in files and commands, without what goes along.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 { .. } => "v2",
        }
    }
}

impl fmt::Display for SendProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        if let Self::V2 { crc32c, unique_id } = *self {
            f.write_str(if crc32c { " crc32c" } else { "" })?;
            f.write_str(if unique_id { " unique-id" } else { "" })?;
        }
        Ok(())
    }
}

/// A factor of at least 1 in thousandths: 1.25 is 1250. In JSON it is the number itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LoadFactor(u32);

impl LoadFactor {
    /// The smallest: more than that is needed for anybody to have room.
    pub const MIN: Self = Self(1_000);
    /// The largest: 1000 times the mean bounds nothing.
    pub const MAX: Self = Self(1_000_000);

    /// A factor of so many thousandths, if it is between [`LoadFactor::MIN`] and [`LoadFactor::MAX`].
    #[must_use]
    pub fn from_thousandths(thousandths: u32) -> Option<Self> {
        (Self::MIN.0..=Self::MAX.0).contains(&thousandths).then_some(Self(thousandths))
    }

    /// The nearest factor to this number, if it is in the range.
    #[must_use]
    pub fn from_number(number: f64) -> Option<Self> {
        let thousandths = (number * 1000.0).round();
        let in_range = (f64::from(Self::MIN.0)..=f64::from(Self::MAX.0)).contains(&thousandths);
        in_range.then_some(Self(thousandths as u32))
    }

    /// In thousandths.
    #[must_use]
    pub fn thousandths(self) -> u32 {
        self.0
    }

    /// As a number.
    #[must_use]
    pub fn number(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

impl fmt::Display for LoadFactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

impl FromStr for LoadFactor {
    type Err = LoadFactorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().ok().and_then(Self::from_number).ok_or(LoadFactorError)
    }
}

/// A text that is no factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a load factor is a number from 1 to 1000, such as 1.25")]
pub struct LoadFactorError;

impl Serialize for LoadFactor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_f64(self.number())
        } else {
            serializer.serialize_u32(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for LoadFactor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let factor = if deserializer.is_human_readable() {
            Self::from_number(f64::deserialize(deserializer)?)
        } else {
            Self::from_thousandths(u32::deserialize(deserializer)?)
        };
        factor.ok_or_else(|| de::Error::custom(LoadFactorError))
    }
}

/// A server of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerSettings {
    /// Its weight, 0 to [`MAX_WEIGHT`](crate::control::MAX_WEIGHT); 0 takes no new sessions.
    pub weight: u32,
    /// What people want of it.
    pub state: AdminState,
    /// Sessions at a time; further clients go to another server.
    pub max_sessions: Option<NonZeroU64>,
    /// It serves only while no server of the pool that is no backup is up.
    #[serde(default)]
    pub backup: bool,
    /// Where it is checked; nothing is where it serves.
    #[serde(default)]
    pub check_address: Option<SocketAddr>,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self { weight: 1, state: AdminState::Ready, max_sessions: None, backup: false, check_address: None }
    }
}

impl ServerSettings {
    /// The weight that counts: none for a server that is not ready.
    #[must_use]
    pub fn ready_weight(&self) -> u32 {
        if self.state == AdminState::Ready { self.weight } else { 0 }
    }
}

/// What people want of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdminState {
    /// It takes new sessions.
    Ready,
    /// It takes no new sessions; the existing ones live on.
    Drain,
    /// As `drain`, and it is left alone: nothing checks it.
    Maintenance,
}

named!(AdminState, Ready = "ready", Drain = "drain", Maintenance = "maintenance");

/// Whether a text can name a service or a pool: letters, digits, `.`, `_` and `-`, not more than [`MAX_NAME`].
#[must_use]
pub fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_that_share_a_protocol_overlap() {
        use Protocol::{Tcp, TcpAndUdp, Udp};
        for (one, other, overlaps) in
            [(Tcp, Tcp, true), (Tcp, Udp, false), (Udp, Udp, true), (Tcp, TcpAndUdp, true), (TcpAndUdp, Udp, true)]
        {
            assert_eq!((one.overlaps(other), other.overlaps(one)), (overlaps, overlaps), "{one} and {other}");
        }
    }

    #[test]
    fn a_load_factor_is_its_number_in_json_and_has_bounds() {
        let factor: LoadFactor = "1.25".parse().expect("a factor");
        assert_eq!((factor.thousandths(), serde_json::to_string(&factor).expect("text").as_str()), (1250, "1.25"));
        assert_eq!(serde_json::from_str::<LoadFactor>("1.25").expect("a factor"), factor);
        for wrong in ["0.9", "1001", "-1", "NaN", "x", ""] {
            assert_eq!(wrong.parse::<LoadFactor>(), Err(LoadFactorError), "{wrong}");
        }
    }

    #[test]
    fn names_are_short_and_plain() {
        for good in ["web", "a.b-c_d", "1", &"x".repeat(MAX_NAME)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a b", "ä", "a/b", "a\n", &"x".repeat(MAX_NAME + 1)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
