//! Settings of every kind that a file can say.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32, NonZeroU64};

use proptest::prelude::*;
use wire::Settings;
use wire::connection::{ClientSide, ServerSide, SocketSettings};
use wire::dns::{DnsCheck, RecordType};
use wire::flow::{FlowPolicy, FlowSettings, HeaderScope, OnLoss, OnReturn, PathMtu};
use wire::health::{
    CheckKind, CheckSettings, CheckText, EjectionSettings, HealthSettings, HttpCheck, InitialHealth, OnDown,
    StatusRange, WhenAllDown,
};
use wire::settings::{
    AdminState, DEFAULT_CLIENT_SUBNET_IPV6, DEFAULT_PROXY_TIMEOUT_MS, HashKey, LoadFactor, Policy, PoolSettings,
    Protocol, SendProxy, ServerSettings, ServiceSettings,
};

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
                client_subnet_ipv6: if limit == 0 { DEFAULT_CLIENT_SUBNET_IPV6 } else { 48 },
                freebind: limit == 1,
                allow_file: (limit == 1).then(|| "/etc/balancer/allow.list".to_owned()),
                deny_file: (limit == 1).then(|| "/etc/balancer/deny.list".to_owned()),
                splice: limit == 0,
                client_side,
                flows,
                ..ServiceSettings::new(listen, "a")
            })
        })
}

pub(super) fn any_settings() -> impl Strategy<Value = Settings> {
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
