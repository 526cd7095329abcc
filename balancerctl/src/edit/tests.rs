//! Edited texts say what they should, and what nothing was changed on is as it was.

use std::net::IpAddr;
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32, NonZeroU64};

use proptest::prelude::*;
use toml::{Table, Value as Toml};
use wire::connection::{ClientSide, ServerSide, SocketSettings};
use wire::dns::{DnsCheck, RecordType};
use wire::flow::{FlowPolicy, FlowSettings, HeaderScope, OnLoss, OnReturn, PathMtu};
use wire::health::{
    CheckKind, CheckSettings, CheckText, EjectionSettings, HealthSettings, HttpCheck, InitialHealth, OnDown,
    StatusRange, WhenAllDown,
};
use wire::quantity;
use wire::settings::{
    AdminState, DEFAULT_PROXY_TIMEOUT_MS, HashKey, LoadFactor, Policy, PoolSettings, Protocol, SendProxy,
    ServerSettings, ServiceSettings,
};

use super::values::OF_CONSISTENT_HASH;
use super::*;

/// What a text says, read without a word about mistakes.
fn read(text: &str) -> Settings {
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
    assert!(table.keys().all(|key| pool.uses_flow_key(key)), "{table:?}");
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

/// Whose line it is: it stays as it is if nothing is changed on its owner.
#[derive(Debug, Clone)]
enum Owner {
    Nobody,
    Of(Subject),
    /// Of a pool with all that is in it.
    AllOf(String),
}

/// The ways to write a pool.
#[derive(Debug, Clone, Copy)]
enum Style {
    OneLine,
    Lines { comma: bool },
    Tables { gap: bool },
    TablesAlone,
    Dotted,
    Braces,
}

fn any_style() -> impl Strategy<Value = Style> {
    prop_oneof![
        Just(Style::OneLine),
        any::<bool>().prop_map(|comma| Style::Lines { comma }),
        any::<bool>().prop_map(|gap| Style::Tables { gap }),
        Just(Style::TablesAlone),
        Just(Style::Dotted),
        Just(Style::Braces),
    ]
}

#[derive(Debug, Default)]
struct Text(Vec<(String, Option<Owner>)>);

impl Text {
    fn line(&mut self, owner: &Owner, text: impl Into<String>) {
        self.0.push((text.into(), Some(owner.clone())));
    }

    /// `key = value` of each on a line of its own, some with a comment.
    fn values(&mut self, owner: &Owner, begin: &str, values: &Values) {
        for (index, (key, value)) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let comment = if index % 2 == 0 { "  # so it is" } else { "" };
            self.line(owner, format!("{begin}{key}   =  {}{comment}", bare(value)));
        }
    }

    fn whole(&self, newline: &str) -> String {
        self.0.iter().map(|(line, _)| format!("{line}{newline}")).collect()
    }
}

/// A pool, and what of it stands before the first heading.
fn render_pool(name: &str, pool: &PoolSettings, style: Style, top: &mut Text, text: &mut Text) {
    let subject = Subject::Pool { pool: name.to_owned() };
    let (owner, all) = (Owner::Of(subject), Owner::AllOf(name.to_owned()));
    let key = key_text(name);
    let mut values = new_pool(pool);
    values.reverse();
    let server = |(address, server): (&SocketAddr, &ServerSettings)| {
        let owner = Owner::Of(Subject::Server { pool: name.to_owned(), server: *address });
        (owner, new_server(*address, server))
    };
    let servers: Vec<(Owner, Values)> = pool.servers.iter().map(server).collect();
    let inlined = || servers.iter().map(|(_, one)| inline(one, "")).collect::<Vec<_>>().join(" , ");
    match style {
        Style::Dotted => {
            top.values(&owner, &format!("pool.{key} . "), &values);
            top.line(&all, format!("pool.{key}.servers=[ {} ] # all", inlined()));
        }
        Style::Braces => {
            values.retain(|(_, value)| value.is_some());
            let inner = inline(&values, "");
            let inner = inner.trim_start_matches('{').trim_end_matches('}');
            text.line(&all, format!("[pool]  # {name}"));
            text.line(&all, format!("{key} = {{ {inner}, servers = [{}] }}", inlined()));
        }
        Style::OneLine => {
            text.line(&owner, format!("# the pool {name}"));
            text.line(&owner, format!("[pool.{key}] # {name}"));
            text.line(&all, format!("  servers = [{}]", inlined()));
            text.values(&owner, "  ", &values);
        }
        Style::Lines { comma } => {
            text.line(&owner, format!("[ pool . {key} ]"));
            text.values(&owner, "", &values);
            text.line(&owner, "servers = [".to_owned());
            for (index, (owner, one)) in servers.iter().enumerate() {
                if index % 2 == 1 {
                    text.line(owner, format!("\t# number {index}"));
                }
                let is_last = index + 1 == servers.len();
                let comma = if is_last && !comma { "" } else { "," };
                text.line(if is_last { &all } else { owner }, format!("\t{}{comma} # {index}", inline(one, " ")));
            }
            text.line(&owner, "]");
        }
        Style::Tables { .. } | Style::TablesAlone => {
            let gap = matches!(style, Style::Tables { gap: true });
            // Only a pool that is as usual, and has servers, can do without its own heading.
            let plain = PoolSettings { servers: pool.servers.clone(), ..PoolSettings::default() };
            if !matches!(style, Style::TablesAlone) || *pool != plain || servers.is_empty() {
                text.line(&owner, format!("[pool.{key}]"));
                text.values(&owner, "", &values);
            }
            for (index, (owner, one)) in servers.iter().enumerate() {
                if gap {
                    text.line(&Owner::AllOf(name.to_owned()), "");
                }
                text.line(owner, format!("# number {index}"));
                text.line(owner, format!("[[pool.{key}.servers]]"));
                text.values(owner, "  ", one);
            }
        }
    }
    text.line(&all, "");
}

fn render(settings: &Settings, styles: &[Style]) -> Text {
    let (mut top, mut text) = (Text::default(), Text::default());
    top.line(&Owner::Nobody, "# Balancers, 2026");
    top.line(&Owner::Nobody, "");
    if let Some(limit) = settings.max_sessions {
        text.line(&Owner::Of(Subject::Balancer), "[balancer]");
        text.line(&Owner::Of(Subject::Balancer), format!("max_sessions = {limit} # all"));
    }
    let mut braces = false;
    for ((name, pool), style) in settings.pools.iter().zip(styles) {
        // There can be one table [pool], and none of dotted keys beside it.
        let style = match style {
            Style::Braces if braces || styles.iter().any(|style| matches!(style, Style::Dotted)) => Style::OneLine,
            style => *style,
        };
        braces |= matches!(style, Style::Braces);
        render_pool(name, pool, style, &mut top, &mut text);
    }
    for (name, service) in &settings.services {
        let owner = Owner::Of(Subject::Service { service: name.clone() });
        text.line(&owner, format!("[service.{}]", key_text(name)));
        text.values(&owner, "", &service_values(service));
    }
    text.line(&Owner::Nobody, "");
    text.line(&Owner::Nobody, "# the end");
    top.0.extend(text.0);
    top
}

fn any_server() -> impl Strategy<Value = ServerSettings> {
    let state = prop::sample::select(AdminState::ALL.as_slice());
    let checked = prop::option::of(Just("10.0.1.1:81".parse().expect("an address")));
    (0u32..3, state, prop::option::of(1u64..3), any::<bool>(), checked).prop_map(
        |(weight, state, limit, backup, check_address)| ServerSettings {
            weight,
            state,
            max_sessions: limit.and_then(NonZeroU64::new),
            backup,
            check_address,
        },
    )
}

fn any_check() -> impl Strategy<Value = CheckSettings> {
    // Some that are no text, and some that look like the end of one.
    const TEXTS: [&[u8]; 6] =
        [b"", b"PING\r\n", b"\0\xff", b"hex:", b"\" # ' , }\n", "\u{fc}\t\\\"\"\"\n\n# x\r\n".as_bytes()];
    let text = || {
        let text = prop::sample::select(TEXTS.as_slice());
        text.prop_map(|bytes| CheckText::new(bytes).expect("short"))
    };
    let ranges: Vec<StatusRange> = ["200-399", "204", "5xx"].map(|text| text.parse().expect("statuses")).to_vec();
    let paths = prop::sample::select(vec!["/", "/'\"\\#"]);
    let http =
        (prop::sample::select(vec!["GET", "HEAD"]), paths, any::<bool>(), prop::sample::subsequence(ranges, 1..4));
    let kind = prop_oneof![
        Just(CheckKind::Tcp),
        (text(), text()).prop_map(|(send, expect)| CheckKind::Send { send, expect }),
        (text(), text()).prop_map(|(send, expect)| CheckKind::Udp { send, expect }),
        (prop::sample::select(vec![".", "a.example."]), prop::sample::select(RecordType::ALL.as_slice()))
            .prop_map(|(name, records)| CheckKind::Dns(DnsCheck { name: name.to_owned(), records })),
        http.prop_map(|(method, path, has_host, status)| CheckKind::Http(HttpCheck {
            method: method.to_owned(),
            path: path.to_owned(),
            host: has_host.then(|| "a.example".to_owned()),
            status,
        })),
    ];
    let interval = || prop::option::of(prop::sample::select(vec![10u64, 90_061_001]));
    let number = || prop::sample::select(vec![2u32, 100]).prop_map(|number| NonZeroU32::new(number).expect("not 0"));
    let port = prop::option::of(Just(NonZeroU16::MAX));
    let times = (prop::sample::select(vec![2000u64, 1500]), interval(), interval());
    let initial = prop::sample::select(InitialHealth::ALL.as_slice());
    (kind, times, prop::sample::select(vec![1000u64, 999]), number(), number(), port, initial).prop_map(
        |(kind, (interval_ms, undecided_interval_ms, down_interval_ms), timeout_ms, rise, fall, port, initial)| {
            CheckSettings {
                kind,
                interval_ms,
                undecided_interval_ms,
                down_interval_ms,
                timeout_ms,
                rise,
                fall,
                port,
                initial,
            }
        },
    )
}

fn any_health() -> impl Strategy<Value = HealthSettings> {
    // No file says how servers are checked that are not.
    let check = prop_oneof![Just(CheckSettings::default()), any_check()];
    let time = || prop::sample::select(vec![1_000u64, 60_000]);
    let when = prop::sample::select(WhenAllDown::ALL.as_slice());
    let on_down = prop::sample::select(OnDown::ALL.as_slice());
    (check, 4u32..6, time(), time(), 49u8..51, when, on_down).prop_map(
        |(check, failures, time_ms, max_time_ms, max_percent, when_all_down, on_down)| HealthSettings {
            check,
            ejection: EjectionSettings { failures, time_ms, max_time_ms, max_percent },
            when_all_down,
            on_down,
        },
    )
}

fn any_socket() -> impl Strategy<Value = SocketSettings> {
    let keepalive = prop::sample::select(vec![0u64, 60_000, 1500]);
    let limit = || {
        prop::option::of(
            prop::sample::select(vec![4096u32, 65_537]).prop_map(|bytes| NonZeroU32::new(bytes).expect("not 0")),
        )
    };
    (keepalive, limit(), any::<bool>(), limit(), limit()).prop_map(
        |(keepalive_ms, user_timeout_ms, has_congestion, send_buffer, receive_buffer)| SocketSettings {
            keepalive_ms,
            user_timeout_ms,
            congestion: has_congestion.then(|| "bbr".to_owned()),
            send_buffer,
            receive_buffer,
        },
    )
}

fn any_time() -> impl Strategy<Value = NonZeroU64> {
    prop::sample::select(vec![1000u64, 60_000, 45 * 86_400_000 + 1])
        .prop_map(|time| NonZeroU64::new(time).expect("not 0"))
}

fn any_client_side() -> impl Strategy<Value = ClientSide> {
    let some = || prop::option::of(any_time());
    let plain = Just(ClientSide::default());
    let other = (some(), any_time(), some(), 4095u32..4097, some(), 0u32..2, any_socket()).prop_map(
        |(idle_timeout_ms, half_closed_timeout_ms, max_age_ms, backlog, defer_accept_ms, fast_open, socket)| {
            ClientSide {
                idle_timeout_ms,
                half_closed_timeout_ms,
                max_age_ms,
                backlog: NonZeroU32::new(backlog).expect("not 0"),
                defer_accept_ms,
                fast_open,
                socket,
            }
        },
    );
    prop_oneof![plain, other]
}

fn any_server_side() -> impl Strategy<Value = ServerSide> {
    let addresses: Vec<IpAddr> =
        ["10.0.2.1", "10.0.2.2", "2001:db8::2"].map(|text| text.parse().expect("an address")).to_vec();
    // Where connections come from is said once.
    let origin = prop_oneof![
        Just((Vec::new(), true)),
        prop::sample::subsequence(addresses, 0..=3).prop_map(|source| (source, false)),
    ];
    let devices = prop::option::of(prop::sample::select(vec!["eth0", "a'\"\\#"]));
    let mark = prop::option::of(1u32..3);
    let replay = prop::sample::select(vec![0u32, 1500, 65_536]);
    let plain = Just(ServerSide::default());
    let other = (prop::option::of(any_time()), 2u8..5, replay, origin, any::<bool>(), mark, devices, any_socket())
        .prop_map(|(connect_timeout_ms, tries, replay, (source, transparent), fast_open, mark, device, socket)| {
            ServerSide {
                connect_timeout_ms,
                tries: NonZeroU8::new(tries).expect("not 0"),
                replay,
                source,
                transparent,
                fast_open,
                mark: mark.and_then(NonZeroU32::new),
                device: device.map(ToOwned::to_owned),
                socket,
            }
        });
    prop_oneof![plain, other]
}

fn any_pool() -> impl Strategy<Value = PoolSettings> {
    let addresses = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "[2001:db8::1]:80", "10.0.0.4:8080"];
    let addresses: Vec<SocketAddr> = addresses.iter().map(|text| text.parse().expect("an address")).collect();
    let keys = vec![
        HashKey::ClientIp,
        HashKey::ClientIpPort,
        HashKey::ClientSubnet { ipv4: 24, ipv6: 56 },
        HashKey::ClientSubnet { ipv4: 16, ipv6: 48 },
    ];
    (
        prop::sample::select(vec![Policy::ConsistentHash, Policy::ConsistentHash, Policy::RoundRobin]),
        prop::sample::select(keys),
        prop::option::of(1000u32..1003),
        prop::sample::select(vec![1024u32, 512]),
        prop::sample::select(vec![0u64, 1500]),
        prop::sample::select(vec![
            None,
            Some(SendProxy::V1),
            Some(SendProxy::V2 { crc32c: false, unique_id: false }),
            Some(SendProxy::V2 { crc32c: true, unique_id: true }),
        ]),
        any_health(),
        any_server_side(),
        prop::collection::btree_map(prop::sample::select(addresses), any_server(), 0..5),
    )
        .prop_flat_map(|values| (Just(values), any_flow_policy(), any::<bool>()))
        .prop_map(
            |(
                (policy, key, load, points, slow_start_ms, send_proxy, health, server_side, servers),
                flows,
                is_plain,
            )| {
                let usual = PoolSettings::default();
                // What means nothing cannot be said.
                let has_header = matches!(send_proxy, Some(SendProxy::V2 { .. }));
                let flows = FlowPolicy {
                    send_proxy_in: if has_header { flows.send_proxy_in } else { HeaderScope::default() },
                    ..flows
                };
                if is_plain {
                    PoolSettings { servers, ..usual }
                } else if policy == Policy::ConsistentHash {
                    let points_per_weight = NonZeroU32::new(points).expect("not 0");
                    let max_load = load.and_then(LoadFactor::from_thousandths);
                    PoolSettings {
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
                } else {
                    PoolSettings { policy, slow_start_ms, send_proxy, health, server_side, flows, servers, ..usual }
                }
            },
        )
}

fn any_flow_policy() -> impl Strategy<Value = FlowPolicy> {
    let on_loss = prop::sample::select(OnLoss::ALL.as_slice());
    let on_return = prop::sample::select(OnReturn::ALL.as_slice());
    let send_proxy_in = prop::sample::select(HeaderScope::ALL.as_slice());
    let path_mtu = prop::sample::select(PathMtu::ALL.as_slice());
    let flows = (any::<bool>(), any::<bool>(), on_loss, on_return, send_proxy_in, path_mtu);
    flows.prop_map(|(one_way, per_datagram, on_loss, on_return, send_proxy_in, path_mtu)| match one_way {
        true => FlowPolicy { one_way, per_datagram, send_proxy_in, path_mtu, ..FlowPolicy::default() },
        false => FlowPolicy { one_way, per_datagram, on_loss, on_return, send_proxy_in, path_mtu },
    })
}

fn any_flows() -> impl Strategy<Value = FlowSettings> {
    let some = || (0u32..3).prop_map(NonZeroU32::new);
    let timeout_ms =
        prop::sample::select(vec![FlowSettings::default().timeout_ms, NonZeroU64::MIN.saturating_add(1499)]);
    let accept_proxy_in = prop::sample::select(HeaderScope::ALL.as_slice());
    (timeout_ms, some(), some(), accept_proxy_in).prop_map(|(timeout_ms, requests, answers, accept_proxy_in)| {
        FlowSettings { timeout_ms, requests, answers, accept_proxy_in }
    })
}

/// Without what means nothing, which cannot be said.
fn sayable(mut service: ServiceSettings) -> ServiceSettings {
    let usual = ServiceSettings::new(Vec::new(), "");
    if !service.uses("splice") {
        let SocketSettings { send_buffer, receive_buffer, .. } = service.client_side.socket;
        let socket = SocketSettings { send_buffer, receive_buffer, ..SocketSettings::default() };
        service.client_side = ClientSide { socket, ..usual.client_side };
        (service.splice, service.proxy_timeout_ms) = (usual.splice, usual.proxy_timeout_ms);
    }
    if !service.uses("answers") {
        service.flows = usual.flows;
    }
    if !service.uses("accept_proxy_in") {
        service.flows.accept_proxy_in = usual.flows.accept_proxy_in;
    }
    service
}

fn any_service() -> impl Strategy<Value = ServiceSettings> {
    let addresses = vec!["127.0.0.1:80".parse().expect("an address"), "[::1]:80".parse().expect("an address")];
    let networks: Vec<ipnet::IpNet> =
        vec!["10.0.0.0/8".parse().expect("a network"), "::/0".parse().expect("a network")];
    let proxies = prop_oneof![
        Just((Vec::new(), DEFAULT_PROXY_TIMEOUT_MS)),
        Just((networks[..1].to_vec(), DEFAULT_PROXY_TIMEOUT_MS)),
        Just((networks.clone(), 1500))
    ];
    (
        prop::sample::subsequence(addresses, 1..3),
        prop::sample::subsequence(networks, 0..3),
        0u32..2,
        proxies,
        any_client_side(),
        prop::sample::select(Protocol::ALL.as_slice()),
        any_flows(),
    )
        .prop_map(|(listen, deny, limit, (accept_proxy, proxy_timeout_ms), client_side, protocol, flows)| {
            sayable(ServiceSettings {
                protocol,
                deny,
                accept_proxy,
                proxy_timeout_ms,
                sessions_per_client: NonZeroU32::new(limit),
                splice: limit == 0,
                client_side,
                flows,
                ..ServiceSettings::new(listen, "a")
            })
        })
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let name = || prop::sample::select(vec!["a".to_owned(), "b.c".to_owned(), "d".to_owned()]);
    (
        prop::option::of(1u64..3),
        prop::collection::btree_map(name(), any_service(), 0..3),
        prop::collection::btree_map(name(), any_pool(), 0..4),
    )
        .prop_map(|(limit, services, pools)| Settings {
            max_sessions: limit.and_then(NonZeroU64::new),
            services,
            pools,
        })
}

fn is_untouched(owner: &Owner, changes: &[Difference]) -> bool {
    let touches = |subject: &Subject| match owner {
        Owner::Nobody => false,
        Owner::Of(owner @ Subject::Server { pool, .. }) => {
            let pool_is_gone =
                changes.iter().any(|one| one.key.is_none() && one.subject == Subject::Pool { pool: pool.clone() });
            subject == owner || pool_is_gone
        }
        Owner::Of(owner) => subject == owner,
        Owner::AllOf(name) => {
            matches!(subject, Subject::Pool { pool } | Subject::Server { pool, .. } if pool == name)
        }
    };
    !changes.iter().any(|one| touches(&one.subject))
}

fn check(said: &Settings, now: &Settings, styles: &[Style], newline: &str) {
    let rendered = render(said, styles);
    let text = rendered.whole(newline);
    assert_eq!(&read(&text), said, "the test renders what it should:\n{text}");
    let edited = edit(&text, said, now).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(&read(&edited), now, "from:\n{text}\nto:\n{edited}");
    let changes = differences(said, now);
    let mut lines = edited.split_inclusive(newline);
    for (line, owner) in &rendered.0 {
        if owner.as_ref().is_some_and(|owner| is_untouched(owner, &changes)) {
            let line = format!("{line}{newline}");
            assert!(lines.any(|other| other == line), "{line:?} is gone from:\n{text}\nto:\n{edited}");
        }
    }
    if changes.is_empty() {
        assert_eq!(edited, text);
    }
}

proptest! {
    #[test]
    fn every_text_comes_to_say_what_holds(
        said in any_settings(),
        now in any_settings(),
        styles in prop::collection::vec(any_style(), 4),
        windows in any::<bool>(),
    ) {
        check(&said, &now, &styles, if windows { "\r\n" } else { "\n" });
    }

    #[test]
    fn a_few_changes_leave_the_rest(
        said in any_settings(),
        other in any_settings(),
        styles in prop::collection::vec(any_style(), 4),
        choice in 0..4,
    ) {
        let mut now = said.clone();
        match choice {
            0 => now.pools = other.pools,
            1 => now.services = other.services,
            2 => now.max_sessions = other.max_sessions,
            _ => {
                for (pool, other) in now.pools.values_mut().zip(other.pools.into_values()) {
                    pool.servers = other.servers;
                }
            }
        }
        check(&said, &now, &styles, "\n");
    }
}

const FILE: &str = "\
# The web, owned by Ada.

[service.web]
listen = \"0.0.0.0:80\"
pool = \"web\"          # see below

[pool.web]
# policy = \"round-robin\"
servers = [
    # rack 1
    { address = \"10.0.0.1:80\", weight = 2 },  # the big one
    # rack 2
    { address = \"10.0.0.2:80\" },
]
# That is all.
";

#[test]
fn a_person_recognises_the_file() {
    let said = read(FILE);
    let mut now = said.clone();
    let pool = now.pools.get_mut("web").expect("a pool");
    pool.max_load = LoadFactor::from_thousandths(1250);
    pool.servers.first_entry().expect("a server").get_mut().weight = 3;
    pool.servers.pop_last();
    let settings = ServerSettings { state: AdminState::Drain, ..ServerSettings::default() };
    pool.servers.insert("10.0.0.3:80".parse().expect("an address"), settings);
    let expected = "\
# The web, owned by Ada.

[service.web]
listen = \"0.0.0.0:80\"
pool = \"web\"          # see below

[pool.web]
# policy = \"round-robin\"
servers = [
    # rack 1
    { address = \"10.0.0.1:80\", weight = 3 },  # the big one
    { address = \"10.0.0.3:80\", state = \"drain\" },
]
max_load = 1.25
# That is all.
";
    assert_eq!(edit(FILE, &said, &now).expect("it can be edited"), expected);
}

#[test]
fn another_kind_of_check_takes_the_keys_of_the_old_one_along() {
    let text = "\
[pool.web]
check = \"send\"
check_send_hex = \"50 49 4e 47\"  # PING
check_interval = \"5s\"
servers = []
";
    let said = read(text);
    let with = |kind: CheckKind| {
        let mut now = said.clone();
        let check = &mut now.pools.get_mut("web").expect("a pool").health.check;
        // What goes without checks is what nobody asks for.
        *check =
            if kind == CheckKind::None { CheckSettings::default() } else { CheckSettings { kind, ..check.clone() } };
        edit(text, &said, &now).expect("it can be edited")
    };
    assert_eq!(with(CheckKind::None), "[pool.web]\ncheck = \"none\"\nservers = []\n");
    let http = HttpCheck { path: "/health".to_owned(), ..HttpCheck::default() };
    assert_eq!(
        with(CheckKind::Http(http)),
        "[pool.web]\ncheck = \"http\"\ncheck_interval = \"5s\"\nservers = []\ncheck_path = \"/health\"\n"
    );
    let text = |text: &[u8]| CheckText::new(text).expect("short");
    let send = |send: &[u8], expect: &[u8]| CheckKind::Send { send: text(send), expect: text(expect) };
    assert_eq!(
        with(send(b"PONG\r\n", b"\0")),
        "[pool.web]\ncheck = \"send\"\ncheck_interval = \"5s\"\nservers = []\ncheck_send = \"PONG\\r\\n\"\n\
         check_expect_hex = \"00\"\n",
        "text takes the place of digits"
    );
    let tcp = "[pool.web]\ncheck = \"tcp\"\nservers = []\n";
    let mut now = read(tcp);
    now.pools.get_mut("web").expect("a pool").health.check.kind =
        CheckKind::Udp { send: CheckText::default(), expect: CheckText::default() };
    assert_eq!(
        edit(tcp, &read(tcp), &now).expect("it can be edited"),
        "[pool.web]\ncheck = \"udp\"\nservers = []\ncheck_send = \"\"\n"
    );
    assert_eq!(
        with(CheckKind::Udp { send: CheckText::default(), expect: CheckText::default() }),
        "[pool.web]\ncheck = \"udp\"\ncheck_interval = \"5s\"\nservers = []\ncheck_send = \"\"\n",
        "what would be missing is said"
    );
    assert_eq!(
        with(CheckKind::Dns(DnsCheck { records: RecordType::A, ..DnsCheck::default() })),
        "[pool.web]\ncheck = \"dns\"\ncheck_interval = \"5s\"\nservers = []\ncheck_dns_type = \"A\"\n"
    );
}

#[test]
fn a_file_can_be_made_from_nothing() {
    let now = read(FILE);
    let expected = "\
[pool.web]
policy = \"consistent-hash\"
servers = [
    { address = \"10.0.0.1:80\", weight = 2 },
    { address = \"10.0.0.2:80\" },
]

[service.web]
listen = \"0.0.0.0:80\"
protocol = \"tcp\"
pool = \"web\"
";
    assert_eq!(edit("", &Settings::default(), &now).expect("it can be edited"), expected);
}

#[test]
fn tables_between_braces_stay_between_braces() {
    let text = "pool = { a = { servers = [] } }\nservice = {}";
    let said = read(text);
    let mut now =
        read("[pool.b]\nservers = [{ address = \"10.0.0.1:80\" }]\n[service.x]\nlisten = \"[::]:80\"\npool = \"b\"");
    now.pools.insert("a".to_owned(), PoolSettings { slow_start_ms: 1000, ..PoolSettings::default() });
    let edited = edit(text, &said, &now).expect("it can be edited");
    assert_eq!(read(&edited), now);
    assert_eq!(
        edited,
        "pool = { a = { servers = [], slow_start = \"1s\" }, b = { policy = \"consistent-hash\", servers = \
         [{ address = \"10.0.0.1:80\" }] } }\n\
         service = { x = { listen = \"[::]:80\", protocol = \"tcp\", pool = \"b\" } }"
    );
}

#[test]
fn several_keys_come_between_empty_braces() {
    let mut now = read("pool = { a = {} }");
    let pool = now.pools.get_mut("a").expect("a pool");
    pool.slow_start_ms = 1000;
    pool.policy = Policy::RoundRobin;
    pool.servers.insert("10.0.0.1:80".parse().expect("an address"), ServerSettings::default());
    let edited = edit("pool = { a = {} }", &read("pool = { a = {} }"), &now).expect("it can be edited");
    let servers = "servers = [{ address = \"10.0.0.1:80\" }]";
    assert_eq!(edited, format!("pool = {{ a = {{ policy = \"round-robin\", slow_start = \"1s\", {servers} }} }}"));
}

#[test]
fn a_pool_outlives_the_last_line_of_its_own() {
    let text = "[[pool.a.servers]]\naddress = \"10.0.0.1:80\"\n";
    let said = read(text);
    let mut now = said.clone();
    let pool = now.pools.get_mut("a").expect("a pool");
    pool.servers.clear();
    assert_eq!(edit(text, &said, &now).expect("it can be edited"), "[pool.a]\n");
    let pool = now.pools.get_mut("a").expect("a pool");
    pool.slow_start_ms = 1000;
    pool.servers.insert("10.0.0.2:80".parse().expect("an address"), ServerSettings::default());
    assert_eq!(
        edit(text, &said, &now).expect("it can be edited"),
        "[pool.a]\nslow_start = \"1s\"\nservers = [\n    { address = \"10.0.0.2:80\" },\n]\n"
    );
}

#[test]
fn what_is_not_there_is_named() {
    let (said, now) = (read(FILE), Settings::default());
    let error = edit("[pool]\n", &said, &now).expect_err("it is not there");
    assert_eq!(error.to_string(), "pool web is not found in it");
    assert!(matches!(edit("a = = b", &said, &now), Err(EditError::NoToml(_))));
}
