//! What differs between two settings, value by value, as texts that a file would have.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::connection::{ClientSide, ServerSide, SocketSettings};
use crate::flow::{FlowPolicy, FlowSettings};
use crate::health::{CheckKind, CheckText, HealthSettings, OF_CHECKS};
use crate::quantity::{size, time};
use crate::settings::{PoolSettings, ServerSettings, ServiceSettings, Settings};

/// Networks of a list that are told one by one; of more it is told how many there are.
pub const MOST_NETWORKS: usize = 16;

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
            // What belonged to another kind of check is gone now, and that is told.
            let is_off = |key: &str| new.health.check.kind == CheckKind::None && OF_CHECKS.contains(&key);
            for ((key, was), (_, is)) in pool_values(old).into_iter().zip(pool_values(new)) {
                if new.hashes_with(key) && !is_off(key) && new.flows_with(key) {
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
        ("client_subnet_ipv6", Some(service.client_subnet_ipv6.to_string())),
        ("freebind", Some(service.freebind.to_string())),
        ("allow", networks(&service.allow)),
        ("allow_file", service.allow_file.clone()),
        ("deny", networks(&service.deny)),
        ("deny_file", service.deny_file.clone()),
        ("accept_proxy", networks(&service.accept_proxy)),
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

/// Networks, or of a long list how many there are, and a number that differs where they do.
fn networks(networks: &[IpNet]) -> Option<String> {
    if networks.len() <= MOST_NETWORKS {
        return list(networks);
    }
    let mut hash = DefaultHasher::new();
    networks.hash(&mut hash);
    Some(format!("{} networks ({:08x})", networks.len(), hash.finish() as u32))
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
    use std::num::{NonZeroU32, NonZeroU64};

    use super::*;
    use crate::dns::DnsCheck;
    use crate::flow::{HeaderScope, OnLoss, OnReturn, PathMtu};
    use crate::settings::{HashKey, LoadFactor, Policy, Protocol, SendProxy};

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
}
