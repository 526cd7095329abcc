//! What a balancer is set to: services, pools and their servers, as plain values. A configuration file says them, commands
//! change them, and [`differences`] tells two of them apart. Times are milliseconds, shares are thousandths.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::connection::{ClientSide, OF_TCP, ServerSide, SocketSettings};
use crate::flow::{FlowPolicy, FlowSettings, OF_FLOWS, OF_MOVES};
use crate::health::{CheckKind, CheckText, HealthSettings, OF_CHECKS};
use crate::quantity::{size, time};

/// The pool that commands mean when they name none.
pub const DEFAULT_POOL: &str = "default";

/// The service of a balancer that was started with an address and no file.
pub const DEFAULT_SERVICE: &str = "default";

/// Characters that the name of a service or a pool may have at most.
pub const MAX_NAME: usize = 64;

/// Bytes of a configuration file at most: some 150,000 servers.
pub const FILE_LIMIT: usize = 8 * 1024 * 1024;

/// Points that a server of weight 1 has on the ring of a pool that sets no other number.
pub const DEFAULT_POINTS_PER_WEIGHT: NonZeroU32 = NonZeroU32::new(1024).expect("1024 is not 0");

/// Everything that a file can say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Sessions at a time of one client address; further ones are closed.
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

impl Protocol {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::TcpAndUdp];

    /// The name in files, commands and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::TcpAndUdp => "tcp+udp",
        }
    }

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

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
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

    /// Whether a key of a file about flows means something beside the others: without flows none is moved, and only the
    /// header of version 2 is one of datagrams.
    #[must_use]
    pub fn uses_flow_key(&self, key: &str) -> bool {
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

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 5] =
        [Self::ConsistentHash, Self::RoundRobin, Self::LeastConnections, Self::RandomTwoChoices, Self::WeightedRandom];

    /// The name in files, commands and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ConsistentHash => "consistent-hash",
            Self::RoundRobin => "round-robin",
            Self::LeastConnections => "least-connections",
            Self::RandomTwoChoices => "random-two-choices",
            Self::WeightedRandom => "weighted-random",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

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

impl AdminState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Ready, Self::Drain, Self::Maintenance];

    /// The name in files, commands and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maintenance => "maintenance",
        }
    }
}

impl fmt::Display for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a text can name a service or a pool: letters, digits, `.`, `_` and `-`, not more than [`MAX_NAME`].
#[must_use]
pub fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(allowed)
}

/// One value that differs between two settings, as text for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Whose value it is.
    pub subject: Subject,
    /// Which one, as a file calls it; nothing when the subject as a whole came or went.
    pub key: Option<String>,
    /// What it was; nothing when there was none.
    pub from: Option<String>,
    /// What it is; nothing when there is none.
    pub to: Option<String>,
}

/// What a value belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// The balancer as a whole.
    Balancer,
    /// A pool.
    Pool {
        /// Its name.
        pool: String,
    },
    /// A server of a pool.
    Server {
        /// The pool.
        pool: String,
        /// The server.
        server: SocketAddr,
    },
    /// A service.
    Service {
        /// Its name.
        service: String,
    },
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Balancer => f.write_str("balancer"),
            Self::Pool { pool } => write!(f, "pool {pool}"),
            Self::Server { pool, server } => write!(f, "server {server} of pool {pool}"),
            Self::Service { service } => write!(f, "service {service}"),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = "none";
        match (&self.key, &self.from, &self.to) {
            (Some(key), from, to) => write!(
                f,
                "{}: {key} {} -> {}",
                self.subject,
                from.as_deref().map_or(none, visible),
                to.as_deref().map_or(none, visible)
            ),
            (None, None, _) => write!(f, "{}: new", self.subject),
            (None, Some(_), _) => write!(f, "{}: gone", self.subject),
        }
    }
}

/// A value of a [`Difference`] for people: nothing at all is hard to see.
#[must_use]
pub fn visible(value: &str) -> &str {
    if value.is_empty() { "\"\"" } else { value }
}

/// Keys of a pool that mean nothing with another policy than `consistent-hash`, and that a file has only with that one.
const OF_CONSISTENT_HASH: [&str; 3] = ["key", "max_load", "points_per_weight"];

/// Every value that differs: the balancer's own, then pools with their servers, then services, each by name. Of what is
/// new or gone one line stands for all; of a pool that is, so do its servers' lines. What the policy of a pool makes no
/// use of, in the settings that it comes to, is no difference, and neither is how servers are checked that are not, or what
/// a service is set to for a protocol that it does not speak.
#[must_use]
pub fn differences(from: &Settings, to: &Settings) -> Vec<Difference> {
    let mut found = Found { subject: Subject::Balancer, all: Vec::new() };
    found.value("max_sessions", number(from.max_sessions), number(to.max_sessions));
    for name in keys_of_both(&from.pools, &to.pools) {
        let (old, new) = (from.pools.get(name), to.pools.get(name));
        found.subject = Subject::Pool { pool: name.clone() };
        if found.both(old, new).is_some_and(|(old, new)| old == new) {
            continue;
        }
        let (empty, old_settings, new_settings) = (BTreeMap::new(), old, new);
        if let (Some(old), Some(new)) = (old_settings, new_settings) {
            let checks = &new.health.check.kind;
            let is_off = |key: &str| *checks == CheckKind::None && OF_CHECKS.contains(&key);
            let counts = |key: &str| {
                (new.policy == Policy::ConsistentHash || !OF_CONSISTENT_HASH.contains(&key))
                    && !is_off(key)
                    && new.uses_flow_key(key)
            };
            for ((key, was), (_, is)) in pool_values(old).into_iter().zip(pool_values(new)) {
                if counts(key) {
                    found.value(key, was, is);
                }
            }
        }
        let (old, new) = (old.map_or(&empty, |pool| &pool.servers), new.map_or(&empty, |pool| &pool.servers));
        for server in keys_of_both(old, new) {
            found.subject = Subject::Server { pool: name.clone(), server: *server };
            if let Some((old, new)) = found.both(old.get(server), new.get(server)) {
                for ((key, was), (_, is)) in server_values(old).into_iter().zip(server_values(new)) {
                    found.value(key, was, is);
                }
            }
        }
    }
    for name in keys_of_both(&from.services, &to.services) {
        found.subject = Subject::Service { service: name.clone() };
        if let Some((old, new)) = found.both(from.services.get(name), to.services.get(name)) {
            for ((key, was), (_, is)) in service_values(old).into_iter().zip(service_values(new)) {
                if new.uses(key) {
                    found.value(key, was, is);
                }
            }
        }
    }
    found.all
}

/// A value as a file would have it, under its key; nothing for one that is not set.
type Values<const COUNT: usize> = [(&'static str, Option<String>); COUNT];

fn server_values(server: &ServerSettings) -> Values<5> {
    [
        ("weight", Some(server.weight.to_string())),
        ("state", Some(server.state.to_string())),
        ("max_sessions", number(server.max_sessions)),
        ("backup", Some(server.backup.to_string())),
        ("check_address", number(server.check_address)),
    ]
}

fn pool_values(pool: &PoolSettings) -> Vec<(&'static str, Option<String>)> {
    let mut values = vec![
        ("policy", Some(pool.policy.to_string())),
        ("key", Some(pool.key.to_string())),
        ("max_load", number(pool.max_load)),
        ("points_per_weight", Some(pool.points_per_weight.to_string())),
        ("slow_start", Some(time(pool.slow_start_ms))),
        ("send_proxy", pool.send_proxy.map(|how| how.to_string())),
    ];
    values.extend(health_values(&pool.health));
    values.extend(server_side_values(&pool.server_side));
    values.extend(flow_policy_values(pool.flows));
    values
}

fn flow_policy_values(flows: FlowPolicy) -> Values<6> {
    [
        ("one_way", Some(flows.one_way.to_string())),
        ("per_datagram", Some(flows.per_datagram.to_string())),
        ("flows_on_loss", Some(flows.on_loss.to_string())),
        ("flows_on_return", Some(flows.on_return.to_string())),
        ("send_proxy_in", Some(flows.send_proxy_in.to_string())),
        ("path_mtu", Some(flows.path_mtu.to_string())),
    ]
}

fn flow_values(flows: FlowSettings) -> Values<4> {
    [
        ("flow_timeout", Some(time(flows.timeout_ms.get()))),
        ("requests", number(flows.requests)),
        ("answers", number(flows.answers)),
        ("accept_proxy_in", Some(flows.accept_proxy_in.to_string())),
    ]
}

fn server_side_values(side: &ServerSide) -> Vec<(&'static str, Option<String>)> {
    let mut values = vec![
        ("connect_timeout", side.connect_timeout_ms.map(|limit| time(limit.get()))),
        ("tries", Some(side.tries.to_string())),
        ("replay", Some(size(side.replay.into()))),
        ("source", list(&side.source)),
        ("transparent", Some(side.transparent.to_string())),
        ("fast_open", Some(side.fast_open.to_string())),
        ("mark", number(side.mark)),
        ("device", side.device.clone()),
    ];
    values.extend(socket_values(&side.socket));
    values
}

fn client_side_values(side: &ClientSide) -> Vec<(&'static str, Option<String>)> {
    let mut values = vec![
        ("idle_timeout", side.idle_timeout_ms.map(|limit| time(limit.get()))),
        ("half_closed_timeout", Some(time(side.half_closed_timeout_ms.get()))),
        ("max_age", side.max_age_ms.map(|limit| time(limit.get()))),
        ("backlog", Some(side.backlog.to_string())),
        ("defer_accept", side.defer_accept_ms.map(|limit| time(limit.get()))),
        ("fast_open", Some(side.fast_open.to_string())),
    ];
    values.extend(socket_values(&side.socket));
    values
}

fn socket_values(socket: &SocketSettings) -> [(&'static str, Option<String>); 5] {
    [
        ("keepalive", Some(time(socket.keepalive_ms))),
        ("user_timeout", socket.user_timeout_ms.map(|limit| time(limit.get().into()))),
        ("congestion", socket.congestion.clone()),
        ("send_buffer", socket.send_buffer.map(|bytes| size(bytes.get().into()))),
        ("receive_buffer", socket.receive_buffer.map(|bytes| size(bytes.get().into()))),
    ]
}

fn health_values(health: &HealthSettings) -> Vec<(&'static str, Option<String>)> {
    let HealthSettings { check, ejection, when_all_down, on_down } = health;
    let nothing = (CheckText::default(), CheckText::default());
    let (send, expect) = check.kind.texts().unwrap_or((&nothing.0, &nothing.1));
    let is_empty_datagram = matches!(check.kind, CheckKind::Udp { .. }) && send.is_empty();
    let text = |text: &CheckText| text.text().filter(|text| !text.is_empty()).map(ToOwned::to_owned);
    let hex = |text: &CheckText| text.text().is_none().then(|| text.hex());
    let http = if let CheckKind::Http(http) = &check.kind { Some(http) } else { None };
    let dns = if let CheckKind::Dns(dns) = &check.kind { Some(dns) } else { None };
    vec![
        ("check", Some(check.kind.name().to_owned())),
        ("check_send", if is_empty_datagram { Some(String::new()) } else { text(send) }),
        ("check_send_hex", hex(send)),
        ("check_expect", text(expect)),
        ("check_expect_hex", hex(expect)),
        ("check_method", http.map(|http| http.method.clone())),
        ("check_path", http.map(|http| http.path.clone())),
        ("check_host", http.and_then(|http| http.host.clone())),
        ("check_status", http.and_then(|http| list(&http.status))),
        ("check_dns_name", dns.map(|dns| dns.name.clone())),
        ("check_dns_type", number(dns.map(|dns| dns.records))),
        ("check_interval", Some(time(check.interval_ms))),
        ("check_undecided_interval", check.undecided_interval_ms.map(time)),
        ("check_down_interval", check.down_interval_ms.map(time)),
        ("check_timeout", Some(time(check.timeout_ms))),
        ("check_rise", Some(check.rise.to_string())),
        ("check_fall", Some(check.fall.to_string())),
        ("check_port", number(check.port)),
        ("check_initial", Some(check.initial.name().to_owned())),
        ("eject_failures", Some(ejection.failures.to_string())),
        ("eject_time", Some(time(ejection.time_ms))),
        ("eject_max_time", Some(time(ejection.max_time_ms))),
        ("eject_max_percent", Some(ejection.max_percent.to_string())),
        ("when_all_down", Some(when_all_down.name().to_owned())),
        ("on_down", Some(on_down.name().to_owned())),
    ]
}

fn service_values(service: &ServiceSettings) -> Vec<(&'static str, Option<String>)> {
    let mut values = vec![
        ("protocol", Some(service.protocol.to_string())),
        ("listen", list(&service.listen)),
        ("pool", Some(service.pool.clone())),
        ("max_sessions", number(service.max_sessions)),
        ("sessions_per_second", number(service.sessions_per_second)),
        ("sessions_per_client", number(service.sessions_per_client)),
        ("allow", list(&service.allow)),
        ("deny", list(&service.deny)),
        ("accept_proxy", list(&service.accept_proxy)),
        ("proxy_timeout", Some(time(service.proxy_timeout_ms))),
        ("splice", Some(service.splice.to_string())),
    ];
    values.extend(client_side_values(&service.client_side));
    values.extend(flow_values(service.flows));
    values
}

fn number(value: Option<impl fmt::Display>) -> Option<String> {
    value.map(|value| value.to_string())
}

fn list(values: &[impl fmt::Display]) -> Option<String> {
    let texts: Vec<String> = values.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

/// The keys that either of two maps has, each once, in their order.
#[must_use]
pub fn keys_of_both<'a, K: Ord, A, B>(one: &'a BTreeMap<K, A>, other: &'a BTreeMap<K, B>) -> BTreeSet<&'a K> {
    one.keys().chain(other.keys()).collect()
}

struct Found {
    subject: Subject,
    all: Vec<Difference>,
}

impl Found {
    /// Both, if both are there; what came or went is noted.
    fn both<'a, T>(&mut self, from: Option<&'a T>, to: Option<&'a T>) -> Option<(&'a T, &'a T)> {
        let there = |value: Option<&T>| value.map(|_| "there".to_owned());
        match (from, to) {
            (Some(from), Some(to)) => return Some((from, to)),
            (None, None) => {}
            _ => {
                self.all.push(Difference {
                    subject: self.subject.clone(),
                    key: None,
                    from: there(from),
                    to: there(to),
                });
            }
        }
        None
    }

    fn value(&mut self, key: &str, from: Option<String>, to: Option<String>) {
        if from != to {
            self.all.push(Difference { subject: self.subject.clone(), key: Some(key.to_owned()), from, to });
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::flow::{HeaderScope, OnLoss, OnReturn, PathMtu};

    use super::*;
    use crate::dns::DnsCheck;

    fn settings() -> Settings {
        let servers = ["10.0.0.1:80", "10.0.0.2:80"].map(|text| text.parse().expect("an address"));
        let servers = servers.into_iter().map(|address| (address, ServerSettings::default())).collect();
        let pool = PoolSettings { servers, ..PoolSettings::default() };
        let service = ServiceSettings::new(vec!["127.0.0.1:80".parse().expect("an address")], "web");
        Settings {
            max_sessions: None,
            services: [("web".to_owned(), service)].into(),
            pools: [("web".to_owned(), pool)].into(),
        }
    }

    #[test]
    fn equal_settings_have_no_differences() {
        assert_eq!(differences(&settings(), &settings()), []);
    }

    #[test]
    fn each_value_that_differs_is_told_once_with_both_values() {
        let mut changed = settings();
        changed.max_sessions = NonZeroU64::new(100);
        let pool = changed.pools.get_mut("web").expect("a pool");
        pool.policy = Policy::RoundRobin;
        pool.send_proxy = Some(SendProxy::V2 { crc32c: true, unique_id: false });
        pool.server_side.replay = 4096;
        pool.server_side.source = ["10.0.0.8", "::1"].map(|text| text.parse().expect("an address")).to_vec();
        pool.server_side.socket.keepalive_ms = 0;
        pool.servers.pop_first();
        pool.servers.first_entry().expect("a server").get_mut().weight = 7;
        pool.servers.insert("[2001:db8::1]:80".parse().expect("an address"), ServerSettings::default());
        let service = changed.services.get_mut("web").expect("a service");
        service.deny.push("192.0.2.0/24".parse().expect("a network"));
        service.accept_proxy.push("192.0.2.7/32".parse().expect("a network"));
        service.proxy_timeout_ms = 1500;
        service.client_side.idle_timeout_ms = NonZeroU64::new(600_000);
        service.client_side.socket.send_buffer = NonZeroU32::new(65_536);
        let texts: Vec<String> = differences(&settings(), &changed).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "balancer: max_sessions none -> 100",
                "pool web: policy consistent-hash -> round-robin",
                "pool web: send_proxy none -> v2 crc32c",
                "pool web: replay 0B -> 4KiB",
                "pool web: source none -> 10.0.0.8, ::1",
                "pool web: keepalive 1m -> 0s",
                "server 10.0.0.1:80 of pool web: gone",
                "server 10.0.0.2:80 of pool web: weight 1 -> 7",
                "server [2001:db8::1]:80 of pool web: new",
                "service web: deny none -> 192.0.2.0/24",
                "service web: accept_proxy none -> 192.0.2.7/32",
                "service web: proxy_timeout 5s -> 1s 500ms",
                "service web: idle_timeout none -> 10m",
                "service web: send_buffer none -> 64KiB",
            ]
        );
    }

    #[test]
    fn what_a_policy_makes_no_use_of_is_no_difference() {
        let mut changed = settings();
        let pool = changed.pools.get_mut("web").expect("a pool");
        pool.policy = Policy::RoundRobin;
        pool.key = HashKey::ClientIpPort;
        pool.max_load = LoadFactor::from_thousandths(1250);
        pool.slow_start_ms = 1000;
        let texts = |from: &Settings, to: &Settings| -> Vec<String> {
            differences(from, to).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            texts(&settings(), &changed),
            ["pool web: policy consistent-hash -> round-robin", "pool web: slow_start 0s -> 1s"]
        );
        let key = "pool web: key client-ip-port -> client-ip".to_owned();
        assert!(texts(&changed, &settings()).contains(&key), "it does now");
    }

    #[test]
    fn what_is_said_of_datagrams_is_told_where_there_are_any() {
        let texts = |from: &Settings, to: &Settings| -> Vec<String> {
            differences(from, to).iter().map(ToString::to_string).collect()
        };
        let mut of_tcp = settings();
        let service = of_tcp.services.get_mut("web").expect("a service");
        service.flows.answers = NonZeroU32::new(1);
        service.flows.accept_proxy_in = HeaderScope::FirstDatagram;
        let pool = of_tcp.pools.get_mut("web").expect("a pool");
        pool.flows.send_proxy_in = HeaderScope::FirstDatagram;
        assert_eq!(texts(&settings(), &of_tcp), Vec::<String>::new());
        let mut of_udp = of_tcp.clone();
        let service = of_udp.services.get_mut("web").expect("a service");
        service.protocol = Protocol::Udp;
        service.splice = false;
        service.client_side.idle_timeout_ms = NonZeroU64::new(600_000);
        service.client_side.socket.receive_buffer = NonZeroU32::new(65_536);
        service.flows.timeout_ms = NonZeroU64::new(1500).expect("not 0");
        service.flows.requests = NonZeroU32::new(2);
        let pool = of_udp.pools.get_mut("web").expect("a pool");
        pool.flows.per_datagram = true;
        pool.flows.on_loss = OnLoss::Keep;
        pool.flows.on_return = OnReturn::Move;
        pool.flows.path_mtu = PathMtu::Report;
        assert_eq!(
            texts(&settings(), &of_udp),
            [
                "pool web: per_datagram false -> true",
                "pool web: flows_on_loss move -> keep",
                "pool web: flows_on_return stay -> move",
                "pool web: path_mtu fragment -> report",
                "service web: protocol tcp -> udp",
                "service web: receive_buffer none -> 64KiB",
                "service web: flow_timeout 1m -> 1s 500ms",
                "service web: requests none -> 2",
                "service web: answers none -> 1",
            ]
        );
        let mut one_way = of_udp.clone();
        one_way.services.get_mut("web").expect("a service").accept_proxy.push("::1/128".parse().expect("a network"));
        let pool = one_way.pools.get_mut("web").expect("a pool");
        pool.send_proxy = Some(SendProxy::V2 { crc32c: false, unique_id: false });
        pool.flows = FlowPolicy { one_way: true, per_datagram: true, ..pool.flows };
        (pool.flows.on_loss, pool.flows.on_return) = (OnLoss::Move, OnReturn::Stay);
        assert_eq!(
            texts(&of_udp, &one_way),
            [
                "pool web: send_proxy none -> v2",
                "pool web: one_way false -> true",
                "service web: accept_proxy none -> ::1/128",
            ]
        );
        assert_eq!(
            texts(&settings(), &one_way).last().expect("some"),
            "service web: accept_proxy_in each-datagram -> first-datagram"
        );
    }

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
    fn how_servers_are_checked_that_are_not_is_no_difference() {
        let mut off = settings();
        off.pools.get_mut("web").expect("a pool").health.check.interval_ms = 7000;
        assert_eq!(differences(&settings(), &off), []);
        let mut on = off.clone();
        on.pools.get_mut("web").expect("a pool").health.check.kind = CheckKind::Tcp;
        let texts: Vec<String> = differences(&settings(), &on).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["pool web: check none -> tcp", "pool web: check_interval 2s -> 7s"]);
        let texts: Vec<String> = differences(&on, &settings()).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["pool web: check tcp -> none"]);
    }

    #[test]
    fn what_a_check_by_datagrams_does_is_told() {
        let of = |kind: CheckKind| {
            let mut changed = settings();
            changed.pools.get_mut("web").expect("a pool").health.check.kind = kind;
            changed
        };
        let text = |text: &str| CheckText::new(text).expect("short");
        let udp = of(CheckKind::Udp { send: text("ping"), expect: text("") });
        let empty = of(CheckKind::Udp { send: text(""), expect: text("\0") });
        let dns = of(CheckKind::Dns(DnsCheck::default()));
        for (from, to, expected) in [
            (&settings(), &udp, &["check none -> udp", "check_send none -> ping"][..]),
            (&udp, &empty, &["check_send ping -> \"\"", "check_expect_hex none -> 00"]),
            (&settings(), &empty, &["check none -> udp", "check_send none -> \"\"", "check_expect_hex none -> 00"]),
            (
                &udp,
                &dns,
                &[
                    "check udp -> dns",
                    "check_send ping -> none",
                    "check_dns_name none -> .",
                    "check_dns_type none -> NS",
                ],
            ),
        ] {
            let texts: Vec<String> = differences(from, to).iter().map(ToString::to_string).collect();
            assert_eq!(texts, expected.iter().map(|text| format!("pool web: {text}")).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_pool_that_is_gone_takes_its_servers_along() {
        let texts: Vec<String> =
            differences(&settings(), &Settings::default()).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "pool web: gone",
                "server 10.0.0.1:80 of pool web: gone",
                "server 10.0.0.2:80 of pool web: gone",
                "service web: gone"
            ]
        );
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
