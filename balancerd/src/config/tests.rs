//! The configuration file as a whole: what is read from it, and each mistake with its exact words.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::Path;
use std::{fs, io};

use wire::control::MAX_SERVERS;
use wire::settings::{
    AdminState, HashKey, LoadFactor, Policy, PoolSettings, Protocol, SendProxy, ServerSettings, ServiceSettings,
};

use super::file::{File, FileError, parse, read};
use super::settings;

/// The example that is installed.
const EXAMPLE: &str = include_str!("../../../packaging/balancer.toml");

/// A service, whose pool is another section.
pub(super) const SERVICE: &str = "[service.web]\nlisten = \"0.0.0.0:80\"\npool = \"web\"\n";

pub(super) fn good(text: &str) -> File {
    parse("b.toml", text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The error of a file, without the file's name.
pub(super) fn wrong(text: &str) -> String {
    let error = parse("b.toml", text).expect_err(text).to_string();
    assert!(!error.contains('\n'), "{error}");
    error.strip_prefix("b.toml:").expect("the file's name").to_owned()
}

/// The error of a file with a service `web` in its first three lines, and the pool of it.
pub(super) fn wrong_pool(pool: &str) -> String {
    wrong(&format!("{SERVICE}{pool}"))
}

/// The error of a file whose service has a further line, the fourth.
pub(super) fn wrong_service(line: &str) -> String {
    wrong(&format!("{SERVICE}{line}\n[pool.web]\n"))
}

/// The error of a pool, `[pool.web]` in the fourth line, whose servers are in the fifth.
pub(super) fn wrong_server(server: &str) -> String {
    wrong_pool(&format!("[pool.web]\nservers = [{server}]\n"))
}

#[test]
fn everything_that_a_file_can_say_is_read() {
    let file = good(
        r#"
        [balancer]
        max_sessions = 10000
        watch = true

        [service.web]
        listen = ["0.0.0.0:80", "[::1]:80"]
        protocol = "tcp"
        pool = "web"
        max_sessions = 1_000
        sessions_per_second = 0x64
        sessions_per_client = 10
        client_subnet_ipv6 = 56
        freebind = true
        allow = ["10.0.0.0/8"]
        allow_file = "/etc/balancer/allow.list"
        deny = "10.1.2.3"
        deny_file = "/etc/balancer/deny.list"
        accept_proxy = ["10.0.0.0/24", "::1"]
        proxy_timeout = "1s 500ms"
        splice = false

        [service.db]
        listen = "127.0.0.1:5432"
        pool = "db"

        [pool.web]
        policy = "consistent-hash"
        key = "client-subnet"
        subnet_ipv4 = 16
        max_load = 1.25
        points_per_weight = 512
        slow_start = "1m 30s"
        send_proxy = "v2"
        send_proxy_unique_id = true
        servers = [
            { address = "10.0.0.1:8080", weight = 2, state = "drain", max_sessions = 100 },
            { address = "[::ffff:10.0.0.2]:8080" },
        ]

        [pool.db]
        policy = "least-connections"
        send_proxy = "v1"
        [[pool.db.servers]]
        address = "10.0.0.3:5432"
        [[pool.db.servers]]
        address = "10.0.0.4:5432"
        weight = 0
        "#,
    );
    assert!(file.watch);
    assert_eq!(file.settings.max_sessions, NonZeroU64::new(10000));
    let listen = ["0.0.0.0:80", "[::1]:80"].map(|text| text.parse().expect("an address")).to_vec();
    let web = ServiceSettings {
        protocol: Protocol::Tcp,
        max_sessions: NonZeroU64::new(1000),
        sessions_per_second: NonZeroU32::new(100),
        sessions_per_client: NonZeroU32::new(10),
        allow: vec!["10.0.0.0/8".parse().expect("a network")],
        deny: vec!["10.1.2.3/32".parse().expect("a network")],
        accept_proxy: ["10.0.0.0/24", "::1/128"].map(|text| text.parse().expect("a network")).to_vec(),
        proxy_timeout_ms: 1500,
        splice: false,
        client_subnet_ipv6: 56,
        freebind: true,
        allow_file: Some("/etc/balancer/allow.list".to_owned()),
        deny_file: Some("/etc/balancer/deny.list".to_owned()),
        ..ServiceSettings::new(listen, "web")
    };
    let db = ServiceSettings::new(vec!["127.0.0.1:5432".parse().expect("an address")], "db");
    assert_eq!(file.settings.services, [("db".to_owned(), db), ("web".to_owned(), web)].into());
    let server = |address: &str, settings| (address.parse().expect("an address"), settings);
    let first = ServerSettings {
        weight: 2,
        state: AdminState::Drain,
        max_sessions: NonZeroU64::new(100),
        ..ServerSettings::default()
    };
    let web = PoolSettings {
        policy: Policy::ConsistentHash,
        key: HashKey::ClientSubnet { ipv4: 16, ipv6: 56 },
        max_load: LoadFactor::from_thousandths(1250),
        points_per_weight: NonZeroU32::new(512).expect("not 0"),
        slow_start_ms: 90_000,
        send_proxy: Some(SendProxy::V2 { crc32c: false, unique_id: true }),
        servers: [server("10.0.0.1:8080", first), server("10.0.0.2:8080", ServerSettings::default())].into(),
        ..PoolSettings::default()
    };
    let idle = ServerSettings { weight: 0, ..ServerSettings::default() };
    let db = PoolSettings {
        policy: Policy::LeastConnections,
        send_proxy: Some(SendProxy::V1),
        servers: [server("10.0.0.3:5432", ServerSettings::default()), server("10.0.0.4:5432", idle)].into(),
        ..PoolSettings::default()
    };
    assert_eq!(file.settings.pools, [("db".to_owned(), db), ("web".to_owned(), web)].into());
}

#[test]
fn what_is_left_out_has_its_default() {
    let file = good(&format!("{SERVICE}[pool.web]\n"));
    assert!(!file.watch);
    assert_eq!(file.settings.max_sessions, None);
    let service = ServiceSettings::new(vec!["0.0.0.0:80".parse().expect("an address")], "web");
    assert_eq!(file.settings.services, [("web".to_owned(), service)].into());
    assert_eq!(file.settings.pools, [("web".to_owned(), PoolSettings::default())].into());
}

#[test]
fn a_summary_counts_and_json_has_it_all() {
    let file = good(EXAMPLE);
    assert_eq!(file.summary(), "1 service, 1 pool, 2 servers");
    let json = serde_json::to_string(&file.settings).expect("text");
    assert_eq!(serde_json::from_str::<wire::Settings>(&json).expect("settings"), file.settings);
}

#[test]
fn a_load_factor_may_be_an_integer_and_names_of_every_policy_are_read() {
    let pool = |text: &str| good(&format!("{SERVICE}[pool.web]\n{text}")).settings.pools["web"].clone();
    assert_eq!(pool("max_load = 2").max_load, LoadFactor::from_thousandths(2000));
    for policy in Policy::ALL {
        assert_eq!(pool(&format!("policy = \"{policy}\"")).policy, policy);
    }
    for (name, key) in [("client-ip", HashKey::ClientIp), ("client-ip-port", HashKey::ClientIpPort)] {
        assert_eq!(pool(&format!("key = \"{name}\"")).key, key);
    }
}

#[test]
fn unknown_keys_and_sections_are_told_with_the_nearest() {
    assert_eq!(
        wrong_pool("[pool.web]\npolcy = \"round-robin\"\n"),
        "5:1: pool.web.polcy: unknown key; did you mean \"policy\"? Keys here: policy, key, subnet_ipv4, subnet_ipv6, \
         max_load, points_per_weight, slow_start, send_proxy, send_proxy_crc32c, send_proxy_unique_id, check, \
         check_send, check_send_hex, check_expect, check_expect_hex, \
         check_method, check_path, check_host, check_status, check_dns_name, check_dns_type, check_interval, check_undecided_interval, \
         check_down_interval, check_timeout, check_rise, check_fall, check_port, check_initial, eject_failures, \
         eject_time, eject_max_time, eject_max_percent, when_all_down, on_down, connect_timeout, tries, replay, source, \
         transparent, fast_open, mark, device, keepalive, user_timeout, congestion, send_buffer, receive_buffer, one_way, \
         per_datagram, flows_on_loss, flows_on_return, send_proxy_in, path_mtu, servers"
    );
    assert_eq!(
        wrong("[servce.web]\n"),
        "1:2: servce: unknown key; did you mean \"service\"? Keys here: balancer, service, pool"
    );
    assert_eq!(wrong("frontends2 = 1\n"), "1:1: frontends2: unknown key. Keys here: balancer, service, pool");
    assert_eq!(wrong("frontend = 1\n"), "1:1: frontend: unknown key; in this file that is a section [service.NAME]");
    assert_eq!(
        wrong("[balancer]\nWatch = true\n"),
        "2:1: balancer.Watch: unknown key; did you mean \"watch\"? Keys here: max_sessions, watch"
    );
    assert_eq!(
        wrong_server("{ adress = \"10.0.0.1:80\" }"),
        "5:14: pool.web.servers[0].adress: unknown key; did you mean \"address\"? Keys here: address, weight, state, \
         max_sessions, backup, check_address"
    );
    assert_eq!(
        wrong_service("\"tls\\n\" = true"),
        "4:1: service.web.\"tls\\n\": unknown key. Keys here: listen, protocol, pool, max_sessions, sessions_per_second, \
         sessions_per_client, client_subnet_ipv6, freebind, allow, allow_file, deny, deny_file, accept_proxy, \
         proxy_timeout, splice, idle_timeout, half_closed_timeout, max_age, backlog, defer_accept, fast_open, keepalive, user_timeout, congestion, send_buffer, receive_buffer, \
         flow_timeout, requests, answers, accept_proxy_in"
    );
}

#[test]
fn what_is_missing_is_told_at_its_section() {
    assert_eq!(
        wrong("[service.web]\npool = \"web\"\n[pool.web]\n"),
        "1:10: service.web.listen: missing; give where clients connect, an address and a port such as \"0.0.0.0:80\""
    );
    assert_eq!(
        wrong("[service.web]\nlisten = \"0.0.0.0:80\"\n"),
        "1:10: service.web.pool: missing; give the name of the pool that serves it"
    );
    assert_eq!(
        wrong_server("{ weight = 1 }"),
        "5:12: pool.web.servers[0].address: missing; give an IP address and a port such as \"10.0.0.1:8080\""
    );
    // A misspelt key is the mistake, not the one that seems to be missing.
    assert!(
        wrong("[service.web]\nlisten = \"0.0.0.0:80\"\npol = \"web\"\n").starts_with("3:1: service.web.pol: unknown")
    );
}

#[test]
fn a_file_without_a_service_is_an_error() {
    for text in ["", "# nothing\n", "[balancer]\n", "[service]\n", "[pool.web]\n"] {
        assert_eq!(
            wrong(text),
            "1:1: no service is there; a file has a section [service.NAME] with listen and pool",
            "{text}"
        );
    }
}

#[test]
fn addresses_that_cannot_be_bound_together_are_told() {
    let services = |one: &str, other: &str| {
        format!(
            "[service.a]\nlisten = {one}\npool = \"web\"\n[service.b]\nlisten = {other}\npool = \"web\"\n[pool.web]\n"
        )
    };
    assert_eq!(
        wrong(&services("\"0.0.0.0:80\"", "\"0.0.0.0:80\"")),
        "5:10: service.b.listen: 0.0.0.0:80 is an address of service \"a\" already, in line 2"
    );
    assert_eq!(
        wrong(&services("\"0.0.0.0:80\"", "[\"127.0.0.1:81\", \"127.0.0.1:80\"]")),
        "5:27: service.b.listen: 127.0.0.1:80 cannot be bound beside 0.0.0.0:80 of service \"a\" in line 2, which takes \
         its connections"
    );
    assert_eq!(
        wrong(&services("\"[::1]:80\"", "\"[::]:80\"")),
        "5:10: service.b.listen: [::]:80 cannot be bound beside [::1]:80 of service \"a\" in line 2, which takes its \
         connections"
    );
    good(&services("\"0.0.0.0:80\"", "\"[::1]:80\""));
    good(&services("\"127.0.0.1:80\"", "\"127.0.0.2:80\""));
    good(&services("\"127.0.0.1:0\"", "\"127.0.0.1:0\""));
    assert_eq!(
        wrong(&services("[\"127.0.0.1:80\", \"127.0.0.1:80\"]", "\"127.0.0.1:81\"")),
        "2:27: service.a.listen: 127.0.0.1:80 is an address of this service already, in line 2"
    );
    assert_eq!(
        wrong(&services("[\"127.0.0.1:0\", \"127.0.0.1:0\"]", "\"127.0.0.1:81\"")),
        "2:26: service.a.listen: 127.0.0.1:0 is an address of this service already, in line 2"
    );
}

#[test]
fn services_and_pools_belong_together() {
    assert_eq!(
        wrong("[service.web]\nlisten = \"0.0.0.0:80\"\npool = \"wbe\"\n[pool.web]\n[pool.db]\n"),
        "3:8: service.web.pool: there is no pool \"wbe\"; did you mean \"web\"?"
    );
    assert_eq!(
        wrong("[service.web]\nlisten = \"0.0.0.0:80\"\npool = \"blue\"\n[pool.web]\n[pool.db]\n"),
        "3:8: service.web.pool: there is no pool \"blue\". Pools here: db, web"
    );
    assert_eq!(wrong(SERVICE), "3:8: service.web.pool: there is no pool \"web\"; a pool is a section [pool.NAME]");
    assert_eq!(wrong_pool("[pool.web]\n[pool.db]\n"), "5:7: pool.db: no service uses this pool");
}

#[test]
fn names_are_checked() {
    let rule = "a name has letters, digits, \".\", \"_\" and \"-\", 64 at most";
    assert_eq!(
        wrong("[service.\"a b\"]\nlisten = \"0.0.0.0:80\"\npool = \"web\"\n[pool.web]\n"),
        format!("1:10: service.\"a b\": {rule}")
    );
    assert_eq!(wrong_pool("[pool.web]\n[pool.\"\"]\n"), format!("5:7: pool.\"\": {rule}"));
    let long = "x".repeat(65);
    let text = format!("[pool.{long}]\n[service.web]\nlisten = \"0.0.0.0:80\"\npool = \"{long}\"\n");
    assert_eq!(wrong(&text), format!("1:7: pool.\"{}...\": {rule}", "x".repeat(64)));
    good("[service.\"a.b\"]\nlisten = \"0.0.0.0:80\"\npool = \"a.b\"\n[pool.\"a.b\"]\n");
}

#[test]
fn values_of_another_type_or_range_are_told() {
    for (line, error) in [
        (
            "max_sessions = 0",
            "16: service.web.max_sessions: expected an integer from 1 to 9223372036854775807, found 0; for no limit leave the key out",
        ),
        (
            "max_sessions = -1",
            "16: service.web.max_sessions: expected an integer from 1 to 9223372036854775807, found -1",
        ),
        (
            "max_sessions = 9223372036854775808",
            "16: service.web.max_sessions: expected an integer from 1 to 9223372036854775807, found 9223372036854775808",
        ),
        (
            "max_sessions = \"5\"",
            "16: service.web.max_sessions: expected an integer from 1 to 9223372036854775807, found \"5\"",
        ),
        (
            "sessions_per_second = 0",
            "23: service.web.sessions_per_second: expected an integer from 1 to 4294967295, found 0; for no limit leave the key out",
        ),
        (
            "sessions_per_client = 4294967296",
            "23: service.web.sessions_per_client: expected an integer from 1 to 4294967295, found 4294967296",
        ),
        (
            "protocol = \"dtls\"",
            "12: service.web.protocol: expected one of \"tcp\", \"udp\", \"tcp+udp\", found \"dtls\"",
        ),
        (
            "protocol = \"UDP\"",
            "12: service.web.protocol: expected one of \"tcp\", \"udp\", \"tcp+udp\", found \"UDP\"; did you mean \"udp\"?",
        ),
        ("splice = \"no\"", "10: service.web.splice: expected true or false, found \"no\""),
        (
            "allow = []",
            "9: service.web.allow: the list is empty; that would keep everybody out; to let everybody in leave the key out",
        ),
        (
            "deny = [\"10.0.0.0/8\", \"10.0.0.1/8\"]",
            "23: service.web.deny[1]: 10.0.0.1/8 has bits set behind its prefix; the network is 10.0.0.0/8, the one address 10.0.0.1",
        ),
        (
            "deny = \"10.0.0.0/33\"",
            "8: service.web.deny: expected a network such as \"10.0.0.0/8\" or an address, found \"10.0.0.0/33\"",
        ),
        (
            "deny = \"everybody\"",
            "8: service.web.deny: expected a network such as \"10.0.0.0/8\" or an address, found \"everybody\"",
        ),
        (
            "proxy_timeout = \"0s\"\naccept_proxy = \"10.0.0.1\"",
            "17: service.web.proxy_timeout: expected more than no time, found \"0s\"",
        ),
        (
            "proxy_timeout = \"2h\"\naccept_proxy = \"10.0.0.1\"",
            "17: service.web.proxy_timeout: expected a time up to 1h such as \"5s\" or \"500ms\", found \"2h\"",
        ),
        (
            "proxy_timeout = \"1s\"",
            "1: service.web.proxy_timeout: it goes with accept_proxy, the networks whose connections begin with a PROXY protocol header",
        ),
        (
            "accept_proxy = [\"10.0.0.0/8\", true]",
            "31: service.web.accept_proxy[1]: expected a network such as \"10.0.0.0/8\" or an address, found true",
        ),
        ("deny = 10.0", "8: service.web.deny: expected a network such as \"10.0.0.0/8\" or an address, found 10.0"),
    ] {
        assert_eq!(wrong_service(line), format!("4:{error}"), "{line}");
    }
    for (line, error) in [
        (
            "policy = \"roundrobin\"",
            "10: pool.web.policy: expected one of \"consistent-hash\", \"round-robin\", \"least-connections\", \"random-two-choices\", \"weighted-random\", found \"roundrobin\"; did you mean \"round-robin\"?",
        ),
        (
            "policy = true",
            "10: pool.web.policy: expected one of \"consistent-hash\", \"round-robin\", \"least-connections\", \"random-two-choices\", \"weighted-random\", found true",
        ),
        (
            "key = \"source\"",
            "7: pool.web.key: expected one of \"client-ip\", \"client-ip-port\", \"client-subnet\", found \"source\"",
        ),
        (
            "subnet_ipv4 = 33\nkey = \"client-subnet\"",
            "15: pool.web.subnet_ipv4: expected an integer from 0 to 32, found 33",
        ),
        (
            "subnet_ipv6 = 129\nkey = \"client-subnet\"",
            "15: pool.web.subnet_ipv6: expected an integer from 0 to 128, found 129",
        ),
        ("max_load = 0.9", "12: pool.web.max_load: expected a number from 1 to 1000 such as 1.25, found 0.9"),
        ("max_load = 1001", "12: pool.web.max_load: expected a number from 1 to 1000 such as 1.25, found 1001"),
        ("max_load = nan", "12: pool.web.max_load: expected a number from 1 to 1000 such as 1.25, found nan"),
        ("max_load = \"1.25\"", "12: pool.web.max_load: expected a number from 1 to 1000 such as 1.25, found \"1.25\""),
        ("points_per_weight = 0", "21: pool.web.points_per_weight: expected an integer from 1 to 16777216, found 0"),
        (
            "slow_start = 30",
            "14: pool.web.slow_start: expected a time up to 1day such as \"30s\" or \"1m 30s\", found 30",
        ),
        (
            "slow_start = \"30\"",
            "14: pool.web.slow_start: expected a time up to 1day such as \"30s\" or \"1m 30s\", found \"30\"",
        ),
        (
            "slow_start = \"25h\"",
            "14: pool.web.slow_start: expected a time up to 1day such as \"30s\" or \"1m 30s\", found \"25h\"",
        ),
        ("slow_start = \"10us\"", "14: pool.web.slow_start: expected a time in whole milliseconds, found \"10us\""),
        (
            "slow_start = 07:32:00",
            "14: pool.web.slow_start: expected a time up to 1day such as \"30s\" or \"1m 30s\", found the time 07:32:00",
        ),
        (
            "send_proxy = \"v3\"",
            "14: pool.web.send_proxy: expected one of \"v1\", \"v2\", found \"v3\"; did you mean \"v1\"?",
        ),
        ("send_proxy = 2", "14: pool.web.send_proxy: expected one of \"v1\", \"v2\", found 2"),
        ("send_proxy_crc32c = true", "1: pool.web.send_proxy_crc32c: it goes with send_proxy = \"v2\""),
        (
            "send_proxy_unique_id = true\nsend_proxy = \"v1\"",
            "1: pool.web.send_proxy_unique_id: it goes with send_proxy = \"v2\"",
        ),
        (
            "send_proxy_crc32c = 1\nsend_proxy = \"v2\"",
            "21: pool.web.send_proxy_crc32c: expected true or false, found 1",
        ),
        (
            "servers = \"10.0.0.1:80\"",
            "11: pool.web.servers: expected an array of tables such as [{ address = \"10.0.0.1:8080\", weight = 1 }], found \"10.0.0.1:80\"",
        ),
    ] {
        assert_eq!(wrong_pool(&format!("[pool.web]\n{line}\n")), format!("5:{error}"), "{line}");
    }
    let server = "{ address = \"10.0.0.1:8080\", weight = 1 }";
    for (text, error) in [
        ("\"10.0.0.1:80\"", format!("12: pool.web.servers[0]: expected a table such as {server}, found \"10.0.0.1:80\"")),
        ("{ address = \"10.0.0.1:80\", weight = 257 }", "48: pool.web.servers[0].weight: expected an integer from 0 to 256, found 257".to_owned()),
        ("{ address = \"10.0.0.1:80\", weight = -1 }", "48: pool.web.servers[0].weight: expected an integer from 0 to 256, found -1".to_owned()),
        ("{ address = \"10.0.0.1:80\", state = \"down\" }", "47: pool.web.servers[0].state: expected one of \"ready\", \"drain\", \"maintenance\", found \"down\"".to_owned()),
        ("{ address = \"10.0.0.1:80\", max_sessions = 0 }", "54: pool.web.servers[0].max_sessions: expected an integer from 1 to 9223372036854775807, found 0; for no limit leave the key out".to_owned()),
    ] {
        assert_eq!(wrong_server(text), format!("5:{error}"), "{text}");
    }
    assert_eq!(wrong("service = [1]\n"), "1:1: service: expected a table with a name, [service.NAME], found an array");
    assert_eq!(
        wrong("[service]\nlisten = \"0.0.0.0:80\"\n"),
        "2:1: service.listen: expected a table with a name, [service.NAME], found \"0.0.0.0:80\""
    );
    assert_eq!(
        wrong("[[service.web]]\nlisten = \"0.0.0.0:80\"\n"),
        "1:11: service.web: expected a table with a name, [service.NAME], found an array"
    );
    assert_eq!(wrong("balancer = 1\n"), "1:1: balancer: expected a table, found 1");
    assert_eq!(wrong("[balancer]\nwatch = 1\n"), "2:9: balancer.watch: expected true or false, found 1");
    assert_eq!(
        wrong("[service.web]\nlisten = []\npool = \"web\"\n[pool.web]\n"),
        "2:10: service.web.listen: the list is empty; give an address and a port such as \"0.0.0.0:80\""
    );
    assert_eq!(
        wrong("[service.web]\nlisten = \"0.0.0.0:80\"\npool = 1\n[pool.web]\n"),
        "3:8: service.web.pool: expected the name of a pool, found 1"
    );
}

#[test]
fn addresses_are_told_with_what_is_wrong_with_them() {
    let expected = "pool.web.servers[0].address: expected an IP address and a port such as \"10.0.0.1:8080\", found";
    for (address, error) in [
        ("10.0.0.1", format!("{expected} \"10.0.0.1\"; the port is missing")),
        ("::1", format!("{expected} \"::1\"; the port is missing, and IPv6 addresses with one stand in brackets")),
        ("web.example:80", format!("{expected} \"web.example:80\"; names of hosts are not looked up")),
        ("10.0.0.1:65536", format!("{expected} \"10.0.0.1:65536\"")),
        ("10.0.0.1:0", "pool.web.servers[0].address: 10.0.0.1:0 cannot be a server: port 0 cannot be connected to".to_owned()),
        ("[fe80::1%2]:80", "pool.web.servers[0].address: [fe80::1%2]:80 cannot be a server: it is link-local and names a host only together with an interface".to_owned()),
        ("[2001:db8::1%2]:80", "pool.web.servers[0].address: [2001:db8::1%2]:80 cannot be a server: only link-local addresses have an interface".to_owned()),
    ] {
        assert_eq!(wrong_server(&format!("{{ address = \"{address}\" }}")), format!("5:24: {error}"), "{address}");
    }
    assert_eq!(
        wrong("[service.web]\nlisten = [\":80\"]\npool = \"web\"\n[pool.web]\n"),
        "2:11: service.web.listen[0]: expected an IP address and a port such as \"0.0.0.0:80\", found \":80\""
    );
}

#[test]
fn keys_that_make_no_sense_together_are_told() {
    for key in ["key = \"client-ip\"", "max_load = 1.25", "points_per_weight = 1024", "subnet_ipv4 = 24"] {
        let name = key.split_once(' ').expect("a key").0;
        assert_eq!(
            wrong_pool(&format!("[pool.web]\n{key}\npolicy = \"round-robin\"\n")),
            format!(
                "5:1: pool.web.{name}: it goes with policy = \"consistent-hash\", and the policy of this pool is \
                 \"round-robin\""
            )
        );
    }
    assert_eq!(
        wrong_pool("[pool.web]\nsubnet_ipv6 = 48\n"),
        "5:1: pool.web.subnet_ipv6: it goes with key = \"client-subnet\", and the key of this pool is \"client-ip\""
    );
}

#[test]
fn services_of_different_protocols_may_have_one_address() {
    let services = |one: &str, other: &str| {
        format!(
            "[service.a]\nlisten = \"0.0.0.0:53\"\nprotocol = \"{one}\"\npool = \"web\"\n\
             [service.b]\nlisten = \"127.0.0.1:53\"\nprotocol = \"{other}\"\npool = \"web\"\n[pool.web]\n"
        )
    };
    good(&services("tcp", "udp"));
    good(&services("udp", "tcp"));
    for (one, other) in [("udp", "udp"), ("tcp+udp", "tcp"), ("udp", "tcp+udp")] {
        assert_eq!(
            wrong(&services(one, other)),
            "6:10: service.b.listen: 127.0.0.1:53 cannot be bound beside 0.0.0.0:53 of service \"a\" in line 2, which \
             takes its connections"
        );
    }
}

#[test]
fn a_server_may_be_a_backup_and_be_checked_elsewhere() {
    let server = |text: &str| {
        let file = good(&format!("{SERVICE}[pool.web]\nservers = [{text}]\n"));
        *file.settings.pools["web"].servers.first_key_value().expect("a server").1
    };
    let plain = server("{ address = \"10.0.0.1:80\", backup = false }");
    assert_eq!(plain, ServerSettings::default());
    // Also where the balancer itself listens: a check ends by itself.
    for (address, canonical) in [("[::ffff:10.0.0.9]:81", "10.0.0.9:81"), ("127.0.0.1:80", "127.0.0.1:80")] {
        let text = format!("{{ address = \"10.0.0.1:80\", backup = true, check_address = \"{address}\" }}");
        let check_address = Some(canonical.parse().expect("an address"));
        assert_eq!(server(&text), ServerSettings { backup: true, check_address, ..plain });
    }
}

#[test]
fn a_server_is_in_its_pool_once_and_is_not_the_balancer() {
    assert_eq!(
        wrong_server("{ address = \"10.0.0.1:8080\" },\n  { address = \"[::ffff:10.0.0.1]:8080\" }"),
        "6:15: pool.web.servers[1].address: 10.0.0.1:8080 is in this pool already, in line 5"
    );
    assert_eq!(
        wrong_server("{ address = \"127.0.0.1:80\" }"),
        "5:24: pool.web.servers[0].address: 127.0.0.1:80 is the balancer itself, which listens on 0.0.0.0:80 for service \
         \"web\" in line 2; it would connect to itself for ever"
    );
    good(&format!("{SERVICE}[pool.web]\nservers = [{{ address = \"127.0.0.1:81\" }}, {{ address = \"[::1]:80\" }}]\n"));
}

#[test]
fn a_server_may_have_a_port_of_the_balancer_that_speaks_something_else_there() {
    let text = |one: &str, other: &str| {
        format!(
            "[service.one]\nlisten = \"0.0.0.0:53\"\npool = \"one\"\nprotocol = \"{one}\"\n\
             [service.other]\nlisten = \"0.0.0.0:54\"\npool = \"other\"\nprotocol = \"{other}\"\n\
             [pool.one]\n[pool.other]\nservers = [{{ address = \"127.0.0.1:53\" }}]\n"
        )
    };
    good(&text("udp", "tcp"));
    good(&text("tcp", "udp"));
    for (one, other) in [("udp", "tcp+udp"), ("tcp+udp", "tcp"), ("udp", "udp")] {
        assert!(wrong(&text(one, other)).contains("127.0.0.1:53 is the balancer itself"), "{one} and {other}");
    }
}

#[test]
fn with_both_protocols_a_port_is_given() {
    let text = |protocol: &str| {
        format!("[service.web]\nlisten = \"127.0.0.1:0\"\npool = \"web\"\nprotocol = \"{protocol}\"\n[pool.web]\n")
    };
    good(&text("tcp"));
    good(&text("udp"));
    let words = "2:10: service.web.listen: with protocol = \"tcp+udp\" a port has to be given: for port 0 the system would \
                 choose two";
    assert_eq!(wrong(&text("tcp+udp")), words);
}

#[test]
fn a_pool_has_limits() {
    let servers = |count: usize| -> String {
        (0..count).map(|number| format!("{{address = \"10.{}.{}.1:80\"}},", number / 256, number % 256)).collect()
    };
    let text = |pool: &str| format!("{SERVICE}[pool.web]\n{pool}\n");
    let many = servers(MAX_SERVERS);
    good(&text(&format!("policy = \"round-robin\"\nservers = [{many}]")));
    assert_eq!(
        wrong(&text(&format!("servers = [{many}{{address = \"10.0.0.2:80\"}}]"))),
        "5:11: pool.web.servers: 65537 servers are more than a pool may have, 65536"
    );
    assert_eq!(
        wrong(&text(&format!("servers = [{}]", servers(16385)))),
        "4:7: pool.web: its ring would have 16778240 points, 1024 for each of 16385 of weight, and may have 16777216; give \
         the servers smaller weights in the same proportion, or fewer points_per_weight"
    );
    good(&text(&format!("servers = [{}]", servers(16384))));
}

#[test]
fn what_is_no_toml_is_told_in_the_same_form() {
    assert_eq!(wrong("[service.web]\nlisten = 0.0.0.0:80\n"), "2:13: this is no TOML: invalid float");
    assert_eq!(wrong("a = 1\na = 2\n"), "2:1: this is no TOML: duplicate key");
    assert_eq!(wrong("[service.web"), "1:13: this is no TOML: unclosed table, expected `]`");
    assert!(wrong(&format!("{}a = 1", "a.".repeat(100_000))).starts_with("1:1: this is no TOML: recursion limit"));
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
    let lines = [
        ("[pool.web]", ""),
        ("max_load = 0", "2:12: pool.web.max_load: "),
        ("policy = \"x\"", "3:10: pool.web.policy: "),
        ("[balancer]", ""),
        ("watch = 1", "5:9: balancer.watch: "),
        ("[service.web]", ""),
        ("pool = \"webb\"", "7:8: service.web.pool: "),
        ("listen = 1", "8:10: service.web.listen: "),
    ];
    let mut text = lines.map(|(line, _)| format!("{line}\n"));
    for (index, (_, error)) in lines.into_iter().enumerate().filter(|(_, (_, error))| !error.is_empty()) {
        let error_now = parse("b.toml", &text.concat()).expect_err("mistakes").to_string();
        let told: Vec<&str> = error_now.lines().map(|line| line.strip_prefix("b.toml:").expect("the name")).collect();
        let expected = lines[index..].iter().map(|(_, error)| *error).filter(|error| !error.is_empty());
        assert_eq!(told.len(), expected.clone().count(), "{error_now}");
        assert!(told.iter().zip(expected).all(|(told, expected)| told.starts_with(expected)), "{error_now}");
        // The others have their lines still.
        text[index] = if error.contains("service.web.pool") { "pool = \"web\"\n" } else { "\n" }.to_owned();
    }
}

#[test]
fn of_many_mistakes_twenty_are_told() {
    let keys = |count: usize| (0..count).map(|key| format!("zz{key} = 1\n")).collect::<String>();
    let told = |count| {
        let text = format!("{SERVICE}[pool.web]\n{}", keys(count));
        parse("b.toml", &text).expect_err("mistakes").to_string()
    };
    assert_eq!(told(20).lines().count(), 20);
    let many = told(5000);
    let lines: Vec<&str> = many.lines().collect();
    assert_eq!(lines.len(), 21);
    assert!(
        lines[0].starts_with("b.toml:5:1: pool.web.zz0: ") && lines[19].starts_with("b.toml:24:1: pool.web.zz19: ")
    );
    assert_eq!(lines[20], "b.toml: it has more mistakes; these are the first 20");
}

#[test]
fn words_of_other_balancers_get_what_says_the_same() {
    for (line, ours) in [
        ("balance = \"leastconn\"", "policy of a [pool.NAME]"),
        ("max_fails = 3", "check_fall for checks, and eject_failures"),
        ("fail_timeout = \"10s\"", "eject_time of a [pool.NAME]"),
        ("weight = 3", "weight of a server"),
        ("timeout = \"3s\"", "connect_timeout of a [pool.NAME]"),
        ("maxconn = 3", "max_sessions: of [balancer]"),
        ("bind = \"*:80\"", "listen of a [service.NAME]"),
    ] {
        let error = wrong_pool(&format!("[pool.web]\n{line}\n"));
        assert!(error.contains(&format!(": unknown key; in this file that is {ours}")), "{error}");
    }
    for (word, ours) in
        [("leastconn", "least-connections"), ("source", "consistent-hash"), ("ip_hash", "consistent-hash")]
    {
        let error = wrong_pool(&format!("[pool.web]\npolicy = \"{word}\"\n"));
        assert!(error.ends_with(&format!("found \"{word}\"; in this file that is \"{ours}\"")), "{error}");
    }
    for section in ["backend", "upstream"] {
        let error = parse("b.toml", &format!("{SERVICE}[{section}.web]\n")).expect_err("a mistake").to_string();
        let told = format!("{section}: unknown key; in this file that is a section [pool.NAME]");
        assert!(error.contains(&told), "{error}");
    }
}

#[test]
fn the_example_is_valid_and_explains_every_key() {
    good(EXAMPLE);
    let words: Vec<&str> = EXAMPLE.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').collect();
    for key in [settings::ROOT, settings::BALANCER, settings::SERVICE, settings::POOL, settings::SERVER].concat() {
        assert!(words.contains(&key), "the example does not mention {key}");
    }
}

fn refused(path: &Path) -> String {
    let error = read(path).expect_err("it is of no use").to_string();
    error.strip_prefix(&path.display().to_string()).expect("the file's name").to_owned()
}

#[test]
fn what_is_no_readable_file_is_told_and_never_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    assert_eq!(refused(directory.path()), ": it is a directory, not a regular file");
    assert_eq!(refused(&path("missing")), ": it cannot be opened: No such file or directory (os error 2)");
    assert_eq!(refused(Path::new("/dev/zero")), ": it is a device, not a regular file");
    nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
    assert_eq!(refused(&path("pipe")), ": it is a pipe, not a regular file");
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).expect("a socket");
    assert_eq!(refused(&path("socket")), ": it is a socket, not a regular file");
    fs::write(path("empty"), "").expect("written");
    assert!(refused(&path("empty")).starts_with(":1:1: no service is there"));
    fs::write(path("latin"), b"# ok\n# \xfcber\n").expect("written");
    assert_eq!(refused(&path("latin")), ":2:3: byte 7 of the file, 0xfc, is not UTF-8");
    let huge = fs::File::create(path("huge")).expect("created");
    huge.set_len(8 * 1024 * 1024 + 1).expect("grown");
    assert_eq!(refused(&path("huge")), ": it has more than 8388608 bytes, which no configuration has");
    fs::write(path("good"), format!("{SERVICE}[pool.web]\n")).expect("written");
    std::os::unix::fs::symlink(path("good"), path("link")).expect("linked");
    assert_eq!(read(&path("link")).expect("read").settings.services.len(), 1);
}

#[test]
fn a_file_without_permission_is_told() {
    if nix::unistd::geteuid().is_root() {
        return;
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o000)).expect("set");
    let error = read(file.path()).expect_err("not readable");
    assert!(
        matches!(&error, FileError::Open { source, .. } if source.kind() == io::ErrorKind::PermissionDenied),
        "{error}"
    );
}

#[test]
fn a_file_can_be_read_in_another_thread() {
    let result = std::thread::spawn(|| parse("b.toml", "")).join().expect("no panic");
    assert!(result.is_err());
}
