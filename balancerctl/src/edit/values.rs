//! What services, pools and servers are set to, as the keys of a configuration file and their values.

use std::net::SocketAddr;

use toml_edit::{Array, Key, Value};
use wire::connection::{ClientSide, OF_TCP, ServerSide, SocketSettings};
use wire::dns::DnsCheck;
use wire::flow::{FlowPolicy, FlowSettings, OF_FLOWS, OF_MOVES};
use wire::health::{CheckKind, CheckText, HealthSettings, HttpCheck, OF_CHECKS, OF_DNS, OF_HTTP, OF_SEND};
use wire::quantity;
use wire::settings::{
    AdminState, DEFAULT_CLIENT_SUBNET_IPV6, DEFAULT_PROXY_TIMEOUT_MS, HashKey, OF_CONSISTENT_HASH, PoolSettings,
    SendProxy, ServerSettings, ServiceSettings,
};

/// Keys of a pool that have a place beside some others alone.
pub(super) fn bound_keys() -> impl Iterator<Item = &'static str> {
    let of_checks = OF_CHECKS.into_iter().chain(OF_SEND).chain(OF_HTTP).chain(OF_DNS);
    OF_CONSISTENT_HASH.into_iter().chain(of_checks).chain(OF_MOVES).chain(["send_proxy_in"])
}

/// Keys of a service that have a place beside some others alone.
pub(super) fn bound_service_keys() -> impl Iterator<Item = &'static str> {
    OF_TCP.into_iter().chain(OF_FLOWS)
}

pub(super) type Values = Vec<(&'static str, Option<Value>)>;

pub(super) fn integer(number: impl Into<u64>) -> Value {
    Value::from(i64::try_from(number.into()).unwrap_or(i64::MAX))
}

pub(super) fn server_values(server: &ServerSettings) -> Values {
    vec![
        ("weight", Some(integer(server.weight))),
        ("state", Some(server.state.name().into())),
        ("max_sessions", server.max_sessions.map(|limit| integer(limit.get()))),
        ("backup", Some(server.backup.into())),
        ("check_address", server.check_address.map(|address| address.to_string().into())),
    ]
}

pub(super) fn pool_values(pool: &PoolSettings) -> Values {
    let lengths = match pool.key {
        HashKey::ClientSubnet { ipv4, ipv6 } => Some((ipv4, ipv6)),
        _ => None,
    };
    let (has_checksum, has_unique_id) = match pool.send_proxy {
        Some(SendProxy::V2 { crc32c, unique_id }) => (crc32c, unique_id),
        Some(SendProxy::V1) | None => (false, false),
    };
    let mut values = vec![
        ("policy", Some(pool.policy.name().into())),
        ("key", Some(pool.key.name().into())),
        ("subnet_ipv4", lengths.map(|(ipv4, _)| integer(ipv4))),
        ("subnet_ipv6", lengths.map(|(_, ipv6)| integer(ipv6))),
        ("max_load", pool.max_load.map(|factor| factor.number().into())),
        ("points_per_weight", Some(integer(pool.points_per_weight.get()))),
        ("slow_start", Some(time(pool.slow_start_ms))),
        ("send_proxy", pool.send_proxy.map(|how| how.name().into())),
        ("send_proxy_crc32c", has_checksum.then(|| true.into())),
        ("send_proxy_unique_id", has_unique_id.then(|| true.into())),
    ];
    values.extend(health_values(&pool.health));
    values.extend(server_side_values(&pool.server_side));
    values.extend(flow_policy_values(pool.flows));
    values
}

fn flow_policy_values(flows: FlowPolicy) -> Values {
    vec![
        ("one_way", Some(flows.one_way.into())),
        ("per_datagram", Some(flows.per_datagram.into())),
        ("flows_on_loss", Some(flows.on_loss.name().into())),
        ("flows_on_return", Some(flows.on_return.name().into())),
        ("send_proxy_in", Some(flows.send_proxy_in.name().into())),
        ("path_mtu", Some(flows.path_mtu.name().into())),
    ]
}

/// What is as usual is not said.
fn flow_values(flows: FlowSettings) -> Values {
    let usual = FlowSettings::default();
    let says_scope = flows.accept_proxy_in != usual.accept_proxy_in;
    vec![
        ("flow_timeout", (flows.timeout_ms != usual.timeout_ms).then(|| time(flows.timeout_ms.get()))),
        ("requests", flows.requests.map(|number| integer(number.get()))),
        ("answers", flows.answers.map(|number| integer(number.get()))),
        ("accept_proxy_in", says_scope.then(|| flows.accept_proxy_in.name().into())),
    ]
}

fn server_side_values(side: &ServerSide) -> Values {
    let mut values = vec![
        ("connect_timeout", side.connect_timeout_ms.map(|limit| time(limit.get()))),
        ("tries", Some(integer(side.tries.get()))),
        ("replay", Some(size(side.replay))),
        ("source", one_or_many(&side.source)),
        ("transparent", Some(side.transparent.into())),
        ("fast_open", Some(side.fast_open.into())),
        ("mark", side.mark.map(|mark| integer(mark.get()))),
        ("device", side.device.as_deref().map(quoted)),
    ];
    values.extend(socket_values(&side.socket));
    values
}

/// What is as usual is not said.
fn client_side_values(side: &ClientSide) -> Values {
    let usual = ClientSide::default();
    let half_closed = side.half_closed_timeout_ms;
    let mut values = vec![
        ("idle_timeout", side.idle_timeout_ms.map(|limit| time(limit.get()))),
        ("half_closed_timeout", (half_closed != usual.half_closed_timeout_ms).then(|| time(half_closed.get()))),
        ("max_age", side.max_age_ms.map(|limit| time(limit.get()))),
        ("backlog", (side.backlog != usual.backlog).then(|| integer(side.backlog.get()))),
        ("defer_accept", side.defer_accept_ms.map(|limit| time(limit.get()))),
        ("fast_open", (side.fast_open != usual.fast_open).then(|| integer(side.fast_open))),
    ];
    let is_said = |key: &str| key != "keepalive" || side.socket.keepalive_ms != usual.socket.keepalive_ms;
    values.extend(socket_values(&side.socket).into_iter().map(|(key, value)| (key, value.filter(|_| is_said(key)))));
    values
}

fn socket_values(socket: &SocketSettings) -> Values {
    vec![
        ("keepalive", Some(time(socket.keepalive_ms))),
        ("user_timeout", socket.user_timeout_ms.map(|limit| time(limit.get().into()))),
        ("congestion", socket.congestion.as_deref().map(Value::from)),
        ("send_buffer", socket.send_buffer.map(|bytes| size(bytes.get()))),
        ("receive_buffer", socket.receive_buffer.map(|bytes| size(bytes.get()))),
    ]
}

fn health_values(health: &HealthSettings) -> Values {
    let HealthSettings { check, ejection, when_all_down, on_down } = health;
    let (send, expect) = check.kind.texts().unzip();
    let is_empty_datagram = matches!(&check.kind, CheckKind::Udp { send, .. } if send.is_empty());
    let http = if let CheckKind::Http(http) = &check.kind { Some(http) } else { None };
    let dns = if let CheckKind::Dns(dns) = &check.kind { Some(dns) } else { None };
    let text = |text: Option<&CheckText>| text.filter(|text| !text.is_empty()).and_then(CheckText::text).map(quoted);
    let hex = |text: Option<&CheckText>| text.filter(|text| text.text().is_none()).map(|text| text.hex().into());
    vec![
        ("check", Some(check.kind.name().into())),
        ("check_send", if is_empty_datagram { Some("".into()) } else { text(send) }),
        ("check_send_hex", hex(send)),
        ("check_expect", text(expect)),
        ("check_expect_hex", hex(expect)),
        ("check_method", http.map(|http| http.method.as_str().into())),
        ("check_path", http.map(|http| http.path.as_str().into())),
        ("check_host", http.and_then(|http| http.host.as_deref()).map(Value::from)),
        ("check_status", http.and_then(|http| one_or_many(&http.status))),
        ("check_dns_name", dns.map(|dns| dns.name.as_str().into())),
        ("check_dns_type", dns.map(|dns| dns.records.name().into())),
        ("check_interval", Some(time(check.interval_ms))),
        ("check_undecided_interval", check.undecided_interval_ms.map(time)),
        ("check_down_interval", check.down_interval_ms.map(time)),
        ("check_timeout", Some(time(check.timeout_ms))),
        ("check_rise", Some(integer(check.rise.get()))),
        ("check_fall", Some(integer(check.fall.get()))),
        ("check_port", check.port.map(|port| integer(port.get()))),
        ("check_initial", Some(check.initial.name().into())),
        ("eject_failures", Some(integer(ejection.failures))),
        ("eject_time", Some(time(ejection.time_ms))),
        ("eject_max_time", Some(time(ejection.max_time_ms))),
        ("eject_max_percent", Some(integer(ejection.max_percent))),
        ("when_all_down", Some(when_all_down.name().into())),
        ("on_down", Some(on_down.name().into())),
    ]
}

fn time(milliseconds: u64) -> Value {
    quantity::time(milliseconds).into()
}

fn size(bytes: u32) -> Value {
    quantity::size(bytes.into()).into()
}

/// A text on one line, whatever is in it. What JSON escapes TOML escapes the same way.
fn quoted(text: &str) -> Value {
    let quoted = serde_json::to_string(text).ok().and_then(|quoted| quoted.parse().ok());
    quoted.unwrap_or_else(|| text.into())
}

pub(super) fn service_values(service: &ServiceSettings) -> Values {
    let says_timeout = service.proxy_timeout_ms != DEFAULT_PROXY_TIMEOUT_MS;
    let mut values = vec![
        ("listen", one_or_many(&service.listen)),
        ("protocol", Some(service.protocol.name().into())),
        ("pool", Some(service.pool.as_str().into())),
        ("max_sessions", service.max_sessions.map(|limit| integer(limit.get()))),
        ("sessions_per_second", service.sessions_per_second.map(|limit| integer(limit.get()))),
        ("sessions_per_client", service.sessions_per_client.map(|limit| integer(limit.get()))),
        (
            "client_subnet_ipv6",
            (service.client_subnet_ipv6 != DEFAULT_CLIENT_SUBNET_IPV6).then(|| integer(service.client_subnet_ipv6)),
        ),
        ("freebind", service.freebind.then(|| true.into())),
        ("allow", many(&service.allow)),
        ("allow_file", service.allow_file.as_deref().map(Into::into)),
        ("deny", many(&service.deny)),
        ("deny_file", service.deny_file.as_deref().map(Into::into)),
        ("accept_proxy", many(&service.accept_proxy)),
        ("proxy_timeout", says_timeout.then(|| time(service.proxy_timeout_ms))),
        ("splice", (!service.splice).then(|| false.into())),
    ];
    values.extend(client_side_values(&service.client_side));
    values.extend(flow_values(service.flows));
    // What has no place in a file beside the others.
    values.iter_mut().filter(|(key, _)| !service.uses(key)).for_each(|(_, value)| *value = None);
    values
}

fn many(things: &[impl ToString]) -> Option<Value> {
    (!things.is_empty()).then(|| things.iter().map(ToString::to_string).collect::<Array>().into())
}

fn one_or_many(things: &[impl ToString]) -> Option<Value> {
    if let [one] = things { Some(one.to_string().into()) } else { many(things) }
}

/// The values of a new server: what goes without saying is not said.
pub(super) fn new_server(address: SocketAddr, server: &ServerSettings) -> Values {
    let usual = ServerSettings::default();
    vec![
        ("address", Some(address.to_string().into())),
        ("weight", (server.weight != usual.weight).then(|| integer(server.weight))),
        ("state", (server.state != AdminState::Ready).then(|| server.state.name().into())),
        ("max_sessions", server.max_sessions.map(|limit| integer(limit.get()))),
        ("backup", server.backup.then(|| true.into())),
        ("check_address", server.check_address.map(|address| address.to_string().into())),
    ]
}

/// As [`new_server`], without the servers.
pub(super) fn new_pool(pool: &PoolSettings) -> Values {
    let mut values = pool_values(pool);
    values.retain(|(key, value)| {
        let is_said = value.as_ref().is_some_and(|value| *key == "policy" || !is_usual(key, value));
        is_said && pool.uses(key)
    });
    values
}

/// Whether a pool of which a file says nothing has this value: that of a check, once there is one.
pub(super) fn is_usual(key: &str, value: &Value) -> bool {
    let mut usual = PoolSettings::default();
    let said = |usual: PoolSettings| pool_values(&usual).into_iter().find(|(other, _)| *other == key)?.1;
    if OF_HTTP.contains(&key) {
        usual.health.check.kind = CheckKind::Http(HttpCheck::default());
    }
    if OF_DNS.contains(&key) {
        usual.health.check.kind = CheckKind::Dns(DnsCheck::default());
    }
    said(usual).is_some_and(|usual| bare(&usual) == bare(value))
}

/// `key = value` of each, on one line.
pub(super) fn inline(values: &Values, gap: &str) -> String {
    let pairs = values.iter().filter_map(|(key, value)| value.as_ref().map(|value| format!("{key} = {}", bare(value))));
    format!("{{{gap}{}{gap}}}", pairs.collect::<Vec<_>>().join(", "))
}

pub(super) fn bare(value: &Value) -> String {
    value.to_string().trim().to_owned()
}

/// A name as a key.
pub(super) fn key_text(name: &str) -> String {
    Key::new(name).display_repr().into_owned()
}
