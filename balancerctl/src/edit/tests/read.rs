//! What a text says, read by plain code of its own, so that what the edits write is not judged by themselves.

use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32, NonZeroU64};

use toml::{Table, Value as Toml};
use wire::Settings;
use wire::connection::{ClientSide, ServerSide, SocketSettings};
use wire::dns::{DnsCheck, RecordType};
use wire::flow::{FlowPolicy, FlowSettings, HeaderScope, OnLoss, OnReturn, PathMtu};
use wire::health::{
    CheckKind, CheckSettings, CheckText, EjectionSettings, HealthSettings, HttpCheck, InitialHealth, OnDown,
    StatusRange, WhenAllDown,
};
use wire::quantity;
use wire::settings::{
    AdminState, DEFAULT_CLIENT_SUBNET_IPV6, DEFAULT_PROXY_TIMEOUT_MS, HashKey, LoadFactor, OF_CONSISTENT_HASH, Policy,
    PoolSettings, Protocol, SendProxy, ServerSettings, ServiceSettings,
};

/// What a text says, read without a word about mistakes.
pub(super) fn read(text: &str) -> Settings {
    let table: Table = text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"));
    let sections = |name: &str| -> Vec<(String, Table)> {
        let all = table.get(name).and_then(Toml::as_table).cloned().unwrap_or_default();
        all.into_iter().map(|(name, one)| (name, one.as_table().cloned().expect("a section"))).collect()
    };
    Settings {
        max_sessions: table
            .get("balancer")
            .and_then(|balancer| limit(balancer.as_table().expect("a table"), "max_sessions")),
        services: sections("service").into_iter().map(|(name, one)| (name, service(&one))).collect(),
        pools: sections("pool").into_iter().map(|(name, one)| (name, pool(&one))).collect(),
    }
}

fn number(table: &Table, key: &str) -> Option<u64> {
    table.get(key).map(|value| value.as_integer().expect("an integer").try_into().expect("not negative"))
}

fn limit(table: &Table, key: &str) -> Option<NonZeroU64> {
    number(table, key).and_then(NonZeroU64::new)
}

fn word<'t>(table: &'t Table, key: &str) -> Option<&'t str> {
    table.get(key).map(|value| value.as_str().expect("a text"))
}

fn texts(table: &Table, key: &str) -> Vec<String> {
    match table.get(key) {
        None => Vec::new(),
        Some(Toml::String(one)) => vec![one.clone()],
        Some(value) => {
            value.as_array().expect("a list").iter().map(|one| one.as_str().expect("a text").to_owned()).collect()
        }
    }
}

fn service(table: &Table) -> ServiceSettings {
    let small = |key: &str| number(table, key).and_then(|number| NonZeroU32::new(number as u32));
    let networks = |key: &str| texts(table, key).iter().map(|one| one.parse().expect("a network")).collect();
    let usual = FlowSettings::default();
    let service = ServiceSettings {
        protocol: one_of(table, "protocol", &Protocol::ALL, Protocol::name),
        listen: texts(table, "listen").iter().map(|one| one.parse().expect("an address")).collect(),
        pool: word(table, "pool").expect("a pool").to_owned(),
        max_sessions: limit(table, "max_sessions"),
        sessions_per_second: small("sessions_per_second"),
        sessions_per_client: small("sessions_per_client"),
        allow: networks("allow"),
        deny: networks("deny"),
        accept_proxy: networks("accept_proxy"),
        proxy_timeout_ms: match word(table, "proxy_timeout") {
            Some(time) => {
                assert!(table.contains_key("accept_proxy"), "{table:?}");
                humantime::parse_duration(time).expect("a time").as_millis() as u64
            }
            None => DEFAULT_PROXY_TIMEOUT_MS,
        },
        splice: table.get("splice").is_none_or(|splice| splice.as_bool().expect("true or false")),
        client_side: client_side(table),
        flows: FlowSettings {
            timeout_ms: time_limit(table, "flow_timeout").unwrap_or(usual.timeout_ms),
            requests: small("requests"),
            answers: small("answers"),
            accept_proxy_in: scope(table, "accept_proxy_in"),
        },
        client_subnet_ipv6: number(table, "client_subnet_ipv6")
            .map_or(DEFAULT_CLIENT_SUBNET_IPV6, |length| length as u8),
        freebind: table.get("freebind").is_some_and(|freebind| freebind.as_bool().expect("true or false")),
        allow_file: word(table, "allow_file").map(ToOwned::to_owned),
        deny_file: word(table, "deny_file").map(ToOwned::to_owned),
    };
    assert!(table.keys().all(|key| service.uses(key)), "{table:?}");
    service
}

fn scope(table: &Table, key: &str) -> HeaderScope {
    one_of(table, key, &HeaderScope::ALL, HeaderScope::name)
}

fn pool(table: &Table) -> PoolSettings {
    let usual = PoolSettings::default();
    let policy = word(table, "policy")
        .map_or(usual.policy, |name| Policy::ALL.into_iter().find(|policy| policy.name() == name).expect("a policy"));
    if policy != Policy::ConsistentHash {
        assert!(OF_CONSISTENT_HASH.iter().all(|key| !table.contains_key(*key)), "{table:?}");
    }
    let key = match word(table, "key") {
        Some("client-subnet") => HashKey::ClientSubnet {
            ipv4: number(table, "subnet_ipv4").map_or(HashKey::DEFAULT_IPV4, |length| length as u8),
            ipv6: number(table, "subnet_ipv6").map_or(HashKey::DEFAULT_IPV6, |length| length as u8),
        },
        other => {
            assert!(!table.contains_key("subnet_ipv4") && !table.contains_key("subnet_ipv6"), "{table:?}");
            if other == Some("client-ip-port") { HashKey::ClientIpPort } else { HashKey::ClientIp }
        }
    };
    let flag = |key: &str| table.get(key).is_some_and(|value| value.as_bool().expect("a flag"));
    let send_proxy = match word(table, "send_proxy") {
        Some("v2") => {
            Some(SendProxy::V2 { crc32c: flag("send_proxy_crc32c"), unique_id: flag("send_proxy_unique_id") })
        }
        other => {
            assert!(!flag("send_proxy_crc32c") && !flag("send_proxy_unique_id"), "{table:?}");
            other.map(|_| SendProxy::V1)
        }
    };
    let factor = |value: &Toml| value.as_float().or(value.as_integer().map(|number| number as f64));
    let servers = table.get("servers").map(|servers| servers.as_array().expect("a list").clone()).unwrap_or_default();
    let pool = PoolSettings {
        policy,
        key,
        max_load: table.get("max_load").and_then(factor).and_then(LoadFactor::from_number),
        points_per_weight: number(table, "points_per_weight")
            .map_or(usual.points_per_weight, |points| NonZeroU32::new(points as u32).expect("not 0")),
        slow_start_ms: milliseconds(table, "slow_start").unwrap_or(0),
        send_proxy,
        health: health(table),
        server_side: server_side(table),
        flows: FlowPolicy {
            one_way: flag("one_way"),
            per_datagram: flag("per_datagram"),
            on_loss: one_of(table, "flows_on_loss", &OnLoss::ALL, OnLoss::name),
            on_return: one_of(table, "flows_on_return", &OnReturn::ALL, OnReturn::name),
            send_proxy_in: scope(table, "send_proxy_in"),
            path_mtu: one_of(table, "path_mtu", &PathMtu::ALL, PathMtu::name),
        },
        servers: servers.iter().map(|server| read_server(server.as_table().expect("a table"))).collect(),
    };
    assert!(table.keys().all(|key| pool.uses(key)), "{table:?}");
    pool
}

fn time_limit(table: &Table, key: &str) -> Option<NonZeroU64> {
    milliseconds(table, key).and_then(NonZeroU64::new)
}

fn bytes(table: &Table, key: &str) -> Option<u32> {
    word(table, key).map(|text| quantity::parse_size(text).expect("a size") as u32)
}

fn client_side(table: &Table) -> ClientSide {
    let usual = ClientSide::default();
    ClientSide {
        idle_timeout_ms: time_limit(table, "idle_timeout"),
        half_closed_timeout_ms: time_limit(table, "half_closed_timeout").unwrap_or(usual.half_closed_timeout_ms),
        max_age_ms: time_limit(table, "max_age"),
        backlog: number(table, "backlog")
            .map_or(usual.backlog, |number| NonZeroU32::new(number as u32).expect("not 0")),
        defer_accept_ms: time_limit(table, "defer_accept"),
        fast_open: number(table, "fast_open").map_or(usual.fast_open, |pending| pending as u32),
        socket: socket(table),
    }
}

fn server_side(table: &Table) -> ServerSide {
    let usual = ServerSide::default();
    let flag = |key: &str| table.get(key).is_some_and(|value| value.as_bool().expect("true or false"));
    ServerSide {
        connect_timeout_ms: time_limit(table, "connect_timeout"),
        tries: number(table, "tries").map_or(usual.tries, |tries| NonZeroU8::new(tries as u8).expect("not 0")),
        replay: bytes(table, "replay").unwrap_or(usual.replay),
        source: texts(table, "source").iter().map(|one| one.parse().expect("an address")).collect(),
        transparent: flag("transparent"),
        fast_open: flag("fast_open"),
        mark: number(table, "mark").and_then(|mark| NonZeroU32::new(mark as u32)),
        device: word(table, "device").map(ToOwned::to_owned),
        socket: socket(table),
    }
}

fn socket(table: &Table) -> SocketSettings {
    SocketSettings {
        keepalive_ms: milliseconds(table, "keepalive").unwrap_or(SocketSettings::default().keepalive_ms),
        user_timeout_ms: milliseconds(table, "user_timeout").and_then(|time| NonZeroU32::new(time as u32)),
        congestion: word(table, "congestion").map(ToOwned::to_owned),
        send_buffer: bytes(table, "send_buffer").and_then(NonZeroU32::new),
        receive_buffer: bytes(table, "receive_buffer").and_then(NonZeroU32::new),
    }
}

fn milliseconds(table: &Table, key: &str) -> Option<u64> {
    word(table, key).map(|time| humantime::parse_duration(time).expect("a time").as_millis() as u64)
}

/// One of these, by its name.
fn one_of<T: Copy + Default>(table: &Table, key: &str, all: &[T], name: fn(T) -> &'static str) -> T {
    let find = |word| all.iter().copied().find(|one| name(*one) == word).expect("one of them");
    word(table, key).map(find).unwrap_or_default()
}

fn health(table: &Table) -> HealthSettings {
    let usual = HealthSettings::default();
    let kind = check_kind(table);
    let misplaced = table.keys().find(|key| !kind.uses(key));
    assert_eq!(misplaced, None, "{table:?}");
    let in_a_row = |key: &str| number(table, key).and_then(|number| NonZeroU32::new(number as u32));
    HealthSettings {
        check: CheckSettings {
            kind,
            interval_ms: milliseconds(table, "check_interval").unwrap_or(usual.check.interval_ms),
            undecided_interval_ms: milliseconds(table, "check_undecided_interval"),
            down_interval_ms: milliseconds(table, "check_down_interval"),
            timeout_ms: milliseconds(table, "check_timeout").unwrap_or(usual.check.timeout_ms),
            rise: in_a_row("check_rise").unwrap_or(usual.check.rise),
            fall: in_a_row("check_fall").unwrap_or(usual.check.fall),
            port: number(table, "check_port").and_then(|port| NonZeroU16::new(port as u16)),
            initial: one_of(table, "check_initial", &InitialHealth::ALL, InitialHealth::name),
        },
        ejection: EjectionSettings {
            failures: number(table, "eject_failures").map_or(usual.ejection.failures, |failures| failures as u32),
            time_ms: milliseconds(table, "eject_time").unwrap_or(usual.ejection.time_ms),
            max_time_ms: milliseconds(table, "eject_max_time").unwrap_or(usual.ejection.max_time_ms),
            max_percent: number(table, "eject_max_percent").map_or(usual.ejection.max_percent, |part| part as u8),
        },
        when_all_down: one_of(table, "when_all_down", &WhenAllDown::ALL, WhenAllDown::name),
        on_down: one_of(table, "on_down", &OnDown::ALL, OnDown::name),
    }
}

fn check_kind(table: &Table) -> CheckKind {
    let bytes = |key: &str| {
        let digits = word(table, &format!("{key}_hex"));
        assert!(digits.is_none() || !table.contains_key(key), "in one form: {table:?}");
        let text = word(table, key).map(|text| CheckText::new(text).expect("short"));
        text.or(digits.map(|digits| CheckText::from_hex(digits).expect("digits"))).unwrap_or_default()
    };
    let usual = HttpCheck::default();
    let status: Vec<StatusRange> =
        texts(table, "check_status").iter().map(|text| text.parse().expect("statuses")).collect();
    match word(table, "check") {
        None | Some("none") => CheckKind::None,
        Some("tcp") => CheckKind::Tcp,
        Some("send") => CheckKind::Send { send: bytes("check_send"), expect: bytes("check_expect") },
        Some("http") => CheckKind::Http(HttpCheck {
            method: word(table, "check_method").map_or(usual.method, ToOwned::to_owned),
            path: word(table, "check_path").map_or(usual.path, ToOwned::to_owned),
            host: word(table, "check_host").map(ToOwned::to_owned),
            status: if status.is_empty() { usual.status } else { status },
        }),
        Some("udp") => CheckKind::Udp { send: bytes("check_send"), expect: bytes("check_expect") },
        Some("dns") => {
            let usual = DnsCheck::default();
            CheckKind::Dns(DnsCheck {
                name: word(table, "check_dns_name").map_or(usual.name, ToOwned::to_owned),
                records: word(table, "check_dns_type").map_or(usual.records, |name| {
                    RecordType::ALL.into_iter().find(|records| records.name() == name).expect("a type")
                }),
            })
        }
        Some(other) => panic!("{other} is no check"),
    }
}

fn read_server(table: &Table) -> (SocketAddr, ServerSettings) {
    let state = word(table, "state").map_or(AdminState::Ready, |name| {
        AdminState::ALL.into_iter().find(|state| state.name() == name).expect("a state")
    });
    let weight = number(table, "weight").map_or(1, |weight| weight as u32);
    let address = word(table, "address").expect("an address").parse().expect("an address");
    let backup = table.get("backup").is_some_and(|backup| backup.as_bool().expect("true or false"));
    let check_address = word(table, "check_address").map(|address| address.parse().expect("an address"));
    (address, ServerSettings { weight, state, max_sessions: limit(table, "max_sessions"), backup, check_address })
}
