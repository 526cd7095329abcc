//! What a file says of connections.

use std::num::{NonZeroU8, NonZeroU32, NonZeroU64};

use wire::connection::{ClientSide, ServerSide, SocketSettings};

use crate::config::tests::{SERVICE, good, wrong_pool, wrong_service};

/// The client side of a service with these lines.
fn client_side(lines: &str) -> ClientSide {
    good(&format!("{SERVICE}{lines}\n[pool.web]\n")).settings.services["web"].client_side.clone()
}

/// The server side of a pool of these lines.
fn server_side(lines: &str) -> ServerSide {
    good(&format!("{SERVICE}[pool.web]\n{lines}\n")).settings.pools["web"].server_side.clone()
}

#[test]
fn the_connections_of_clients_are_read() {
    let small = |number| NonZeroU32::new(number).expect("not 0");
    let expected = ClientSide {
        idle_timeout_ms: NonZeroU64::new(600_000),
        half_closed_timeout_ms: NonZeroU64::new(100).expect("not 0"),
        max_age_ms: NonZeroU64::new(365 * 86_400_000),
        backlog: small(65_535),
        defer_accept_ms: NonZeroU64::new(5000),
        fast_open: 256,
        socket: SocketSettings {
            keepalive_ms: 0,
            user_timeout_ms: NonZeroU32::new(30_000),
            congestion: Some("bbr".to_owned()),
            send_buffer: NonZeroU32::new(65_536),
            receive_buffer: NonZeroU32::new(4096),
        },
    };
    let lines = r#"
        idle_timeout = "10m"
        half_closed_timeout = "100ms"
        max_age = "365days"
        backlog = 65535
        defer_accept = "5s"
        fast_open = 256
        keepalive = "0s"
        user_timeout = "30s"
        congestion = "bbr"
        send_buffer = "64KiB"
        receive_buffer = 4096
    "#;
    assert_eq!(client_side(lines), expected);
    assert_eq!(client_side(""), ClientSide::default());
}

#[test]
fn the_connections_to_servers_are_read() {
    let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect();
    let expected = ServerSide {
        connect_timeout_ms: NonZeroU64::new(10),
        tries: NonZeroU8::new(16).expect("not 0"),
        replay: 1 << 20,
        source: addresses(&["10.0.0.8", "10.0.0.9", "2001:db8::8"]),
        transparent: false,
        fast_open: true,
        mark: NonZeroU32::new(u32::MAX),
        device: Some("eth0.100".to_owned()),
        socket: SocketSettings {
            keepalive_ms: 32_400_000,
            user_timeout_ms: NonZeroU32::new(3_600_000),
            congestion: Some("tcp_x-2".to_owned()),
            send_buffer: NonZeroU32::new(64 << 20),
            receive_buffer: NonZeroU32::new(1_000_000),
        },
    };
    let lines = r#"
        connect_timeout = "10ms"
        tries = 16
        replay = "1MiB"
        source = ["10.0.0.8", "::ffff:10.0.0.9", "2001:db8::8"]
        transparent = false
        fast_open = true
        mark = 0xffff_ffff
        device = "eth0.100"
        keepalive = "9h"
        user_timeout = "1h"
        congestion = "tcp_x-2"
        send_buffer = "64MiB"
        receive_buffer = "1MB"
    "#;
    assert_eq!(server_side(lines), expected);
    assert_eq!(server_side(""), ServerSide::default());
    assert_eq!(server_side("source = \"10.0.0.8\"").source, addresses(&["10.0.0.8"]));
    assert!(server_side("transparent = true").transparent);
    for (line, bytes) in [("0", 0), ("1023", 1023), ("\"0B\"", 0), ("\"4 KiB\"", 4096), ("\"5kB\"", 5000)] {
        assert_eq!(server_side(&format!("replay = {line}")).replay, bytes, "{line}");
    }
}

#[test]
fn values_of_the_connections_of_clients_have_bounds() {
    let session = "expected a time from 100ms to 365days such as \"1h\" or \"90s\", found";
    let buffer = "expected a size from 4KiB to 64MiB such as \"64KiB\", found";
    let keepalive = "expected a time from 1s to 9h such as \"30s\", or \"0s\" for never, found";
    for (line, error) in [
        ("idle_timeout = \"99ms\"", format!("16: service.web.idle_timeout: {session} \"99ms\"")),
        ("idle_timeout = \"366days\"", format!("16: service.web.idle_timeout: {session} \"366days\"")),
        ("idle_timeout = 60", format!("16: service.web.idle_timeout: {session} 60")),
        ("half_closed_timeout = \"0s\"", format!("23: service.web.half_closed_timeout: {session} \"0s\"")),
        ("max_age = \"never\"", format!("11: service.web.max_age: {session} \"never\"")),
        (
            "max_age = \"100500us\"",
            "11: service.web.max_age: expected a time in whole milliseconds, found \"100500us\"".to_owned(),
        ),
        ("backlog = 0", "11: service.web.backlog: expected an integer from 1 to 65535, found 0".to_owned()),
        ("backlog = 65536", "11: service.web.backlog: expected an integer from 1 to 65535, found 65536".to_owned()),
        (
            "defer_accept = \"999ms\"",
            "16: service.web.defer_accept: expected a time from 1s to 1m such as \"5s\", found \"999ms\"".to_owned(),
        ),
        (
            "defer_accept = \"1500ms\"",
            "16: service.web.defer_accept: expected whole seconds such as \"5s\", found \"1500ms\"".to_owned(),
        ),
        (
            "defer_accept = \"61s\"",
            "16: service.web.defer_accept: expected a time from 1s to 1m such as \"5s\", found \"61s\"".to_owned(),
        ),
        ("fast_open = 65536", "13: service.web.fast_open: expected an integer from 0 to 65535, found 65536".to_owned()),
        ("fast_open = true", "13: service.web.fast_open: expected an integer from 0 to 65535, found true".to_owned()),
        ("keepalive = \"999ms\"", format!("13: service.web.keepalive: {keepalive} \"999ms\"")),
        ("keepalive = \"10h\"", format!("13: service.web.keepalive: {keepalive} \"10h\"")),
        ("keepalive = false", format!("13: service.web.keepalive: {keepalive} false")),
        (
            "user_timeout = \"99ms\"",
            "16: service.web.user_timeout: expected a time from 100ms to 1h such as \"30s\" or \"500ms\", found \"99ms\""
                .to_owned(),
        ),
        (
            "congestion = \"b b r\"",
            "14: service.web.congestion: expected the name of a congestion control such as \"bbr\", found \"b b r\""
                .to_owned(),
        ),
        ("send_buffer = 4095", format!("15: service.web.send_buffer: {buffer} 4095")),
        ("send_buffer = \"64mb\"", format!("15: service.web.send_buffer: {buffer} \"64mb\"")),
        ("receive_buffer = \"65MiB\"", format!("18: service.web.receive_buffer: {buffer} \"65MiB\"")),
    ] {
        assert_eq!(wrong_service(line), format!("4:{error}"), "{line}");
    }
}

#[test]
fn values_of_the_connections_to_servers_have_bounds() {
    let timeout = "expected a time from 10ms to 1h such as \"3s\" or \"500ms\", found";
    let replay = "expected a size from 0B to 1MiB such as \"64KiB\", found";
    let source = "expected an IP address such as \"10.0.0.8\", found";
    let device = "expected the name of a network device such as \"eth0\", of 1 to 15 bytes, found";
    let many: Vec<String> = (1..=65).map(|last| format!("\"10.0.0.{last}\"")).collect();
    for (line, error) in [
        ("connect_timeout = \"9ms\"", format!("5:19: pool.web.connect_timeout: {timeout} \"9ms\"")),
        ("connect_timeout = \"61m\"", format!("5:19: pool.web.connect_timeout: {timeout} \"61m\"")),
        ("tries = 0", "5:9: pool.web.tries: expected an integer from 1 to 16, found 0".to_owned()),
        ("tries = 17", "5:9: pool.web.tries: expected an integer from 1 to 16, found 17".to_owned()),
        ("replay = \"1025KiB\"", format!("5:10: pool.web.replay: {replay} \"1025KiB\"")),
        ("replay = -1", format!("5:10: pool.web.replay: {replay} -1")),
        ("replay = true", format!("5:10: pool.web.replay: {replay} true")),
        (
            "source = []",
            "5:10: pool.web.source: the list is empty; to leave it to the kernel leave the key out".to_owned(),
        ),
        ("source = \"web.example\"", format!("5:10: pool.web.source: {source} \"web.example\"")),
        (
            "source = \"10.0.0.8:0\"",
            format!("5:10: pool.web.source: {source} \"10.0.0.8:0\"; the kernel chooses the port"),
        ),
        ("source = [\"10.0.0.8\", 10]", format!("5:23: pool.web.source[1]: {source} 10")),
        (
            "source = \"0.0.0.0\"",
            "5:10: pool.web.source: no connection can come from 0.0.0.0: it is not the address of one host".to_owned(),
        ),
        (
            "source = [\"::1\", \"ff02::1\"]",
            "5:18: pool.web.source[1]: no connection can come from ff02::1: it is not the address of one host".to_owned(),
        ),
        (
            "source = [\"10.0.0.8\",\n\"::ffff:10.0.0.8\"]",
            "6:1: pool.web.source[1]: 10.0.0.8 is there already, in line 5".to_owned(),
        ),
        (
            &format!("source = [{}]", many.join(", ")),
            "5:10: pool.web.source: 65 are more than there may be, 64".to_owned(),
        ),
        ("transparent = 1", "5:15: pool.web.transparent: expected true or false, found 1".to_owned()),
        (
            "transparent = true\nsource = \"10.0.0.8\"",
            "6:1: pool.web.source: transparent and source do not go together: both say where connections come from"
                .to_owned(),
        ),
        (
            "source = \"10.0.0.8\"\ntransparent = true",
            "6:1: pool.web.transparent: transparent and source do not go together: both say where connections come from"
                .to_owned(),
        ),
        ("fast_open = 5", "5:13: pool.web.fast_open: expected true or false, found 5".to_owned()),
        ("mark = 0", "5:8: pool.web.mark: expected an integer from 1 to 4294967295, found 0".to_owned()),
        (
            "mark = 4294967296",
            "5:8: pool.web.mark: expected an integer from 1 to 4294967295, found 4294967296".to_owned(),
        ),
        ("device = \"a/b\"", format!("5:10: pool.web.device: {device} \"a/b\"")),
        ("device = \"\"", format!("5:10: pool.web.device: {device} \"\"")),
        ("device = \"a234567890123456\"", format!("5:10: pool.web.device: {device} \"a234567890123456\"")),
        (
            "user_timeout = \"61m\"",
            "5:16: pool.web.user_timeout: expected a time from 100ms to 1h such as \"30s\" or \"500ms\", found \"61m\""
                .to_owned(),
        ),
    ] {
        assert_eq!(wrong_pool(&format!("[pool.web]\n{line}\n")), error, "{line}");
    }
    let both = "transparent = false\nsource = [\"10.0.0.8\"]";
    assert_eq!(server_side(both).source.len(), 1, "what is not so may be said");
}
