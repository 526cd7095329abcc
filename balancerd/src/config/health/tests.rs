//! What a file says of the health of servers.

use std::num::{NonZeroU16, NonZeroU32};

use wire::dns::{DnsCheck, RecordType};
use wire::health::{
    CheckKind, CheckSettings, CheckText, EjectionSettings, HealthSettings, HttpCheck, InitialHealth, OF_CHECKS, OF_DNS,
    OF_HTTP, OF_SEND, OnDown, WhenAllDown,
};

use crate::config::tests::{SERVICE, good, wrong_pool, wrong_server};

/// The health of a pool of these lines.
fn health(lines: &str) -> HealthSettings {
    good(&format!("{SERVICE}[pool.web]\n{lines}\n")).settings.pools["web"].health.clone()
}

/// The check of a pool of these lines.
fn check(lines: &str) -> CheckKind {
    health(lines).check.kind
}

#[test]
fn the_health_of_a_pool_is_read() {
    let number = |number| NonZeroU32::new(number).expect("not 0");
    let expected = HealthSettings {
        check: CheckSettings {
            kind: CheckKind::Tcp,
            interval_ms: 5_000,
            undecided_interval_ms: Some(500),
            down_interval_ms: Some(86_400_000),
            timeout_ms: 10,
            rise: number(1),
            fall: number(100),
            port: NonZeroU16::new(8081),
            initial: InitialHealth::Down,
        },
        ejection: EjectionSettings { failures: 0, time_ms: 20_000, max_time_ms: 20_000, max_percent: 100 },
        when_all_down: WhenAllDown::UseAll,
        on_down: OnDown::Close,
    };
    let lines = r#"
        check = "tcp"
        check_interval = "5s"
        check_undecided_interval = "500ms"
        check_down_interval = "1day"
        check_timeout = "10ms"
        check_rise = 1
        check_fall = 100
        check_port = 8081
        check_initial = "down"
        eject_failures = 0
        eject_time = "20s"
        eject_max_time = "20s"
        eject_max_percent = 100
        when_all_down = "use-all"
        on_down = "close"
    "#;
    assert_eq!(health(lines), expected);
    assert_eq!(health(""), HealthSettings::default());
    assert_eq!(health("check = \"none\""), HealthSettings::default());
}

#[test]
fn what_a_check_sends_and_expects_is_text_or_digits() {
    let text = |bytes: &[u8]| CheckText::new(bytes).expect("short");
    let send = |send: &[u8], expect: &[u8]| CheckKind::Send { send: text(send), expect: text(expect) };
    for (lines, kind) in [
        ("check_send = \"PING\\r\\n\"\ncheck_expect = '+PONG'", send(b"PING\r\n", b"+PONG")),
        ("check_send_hex = \"00 ff\"\ncheck_expect_hex = \"0D0A\"", send(b"\x00\xff", b"\r\n")),
        ("check_expect = \"SSH-\"", send(b"", b"SSH-")),
        ("check_send_hex = \"01\"", send(b"\x01", b"")),
    ] {
        assert_eq!(check(&format!("check = \"send\"\n{lines}")), kind, "{lines}");
    }
    let long = "x".repeat(1024);
    assert_eq!(check(&format!("check = \"send\"\ncheck_send = \"{long}\"")), send(long.as_bytes(), b""));
    for (lines, error) in [
        ("check = \"send\"", "5:1: pool.web.check: \"send\" needs check_send, check_expect or both".to_owned()),
        (
            "check = \"send\"\ncheck_send_hex = \"00\"\ncheck_send = \"x\"",
            "7:1: pool.web.check_send: check_send_hex says the same already; give one of the two".to_owned(),
        ),
        (
            "check = \"send\"\ncheck_expect = \"x\"\ncheck_expect_hex = \"00\"",
            "7:1: pool.web.check_expect_hex: check_expect says the same already; give one of the two".to_owned(),
        ),
        (
            "check = \"send\"\ncheck_send = \"\"",
            "6:14: pool.web.check_send: expected a text of 1 to 1024 bytes, found \"\"".to_owned(),
        ),
        (
            &format!("check = \"send\"\ncheck_send = \"{long}x\""),
            format!("6:14: pool.web.check_send: expected a text of 1 to 1024 bytes, found \"{}...\"", &long[..64]),
        ),
        (
            "check = \"send\"\ncheck_expect_hex = \"0\"",
            "6:20: pool.web.check_expect_hex: expected 1 to 1024 pairs of hexadecimal digits such as \"0d 0a\", \
             found \"0\""
                .to_owned(),
        ),
    ] {
        assert_eq!(wrong_pool(&format!("[pool.web]\n{lines}\n")), error, "{lines}");
    }
}

#[test]
fn a_check_by_datagrams_has_something_to_send_which_may_be_empty() {
    let text = |bytes: &[u8]| CheckText::new(bytes).expect("short");
    let udp = |send: &[u8], expect: &[u8]| CheckKind::Udp { send: text(send), expect: text(expect) };
    for (lines, kind) in [
        ("check_send = \"PING\"\ncheck_expect = '+PONG'", udp(b"PING", b"+PONG")),
        ("check_send_hex = \"00 ff\"", udp(b"\x00\xff", b"")),
        ("check_send = \"\"", udp(b"", b"")),
        ("check_send = \"\"\ncheck_expect_hex = \"00\"", udp(b"", b"\0")),
    ] {
        assert_eq!(check(&format!("check = \"udp\"\n{lines}")), kind, "{lines}");
    }
    let needs = "5:1: pool.web.check: \"udp\" needs check_send; \"\" is an empty datagram";
    for (lines, error) in [
        ("", needs.to_owned()),
        ("check_expect = \"x\"", needs.to_owned()),
        (
            &*format!("check_send = \"{}\"", "x".repeat(1025)),
            format!("6:14: pool.web.check_send: expected a text of 0 to 1024 bytes, found \"{}...\"", "x".repeat(64)),
        ),
        (
            "check_send = \"\"\ncheck_expect = \"\"",
            "7:16: pool.web.check_expect: expected a text of 1 to 1024 bytes, found \"\"".to_owned(),
        ),
    ] {
        assert_eq!(wrong_pool(&format!("[pool.web]\ncheck = \"udp\"\n{lines}\n")), error, "{lines}");
    }
}

#[test]
fn a_check_by_dns_has_a_name_and_a_type() {
    assert_eq!(check("check = \"dns\""), CheckKind::Dns(DnsCheck::default()));
    let dns = DnsCheck { name: "www.example.com.".to_owned(), records: RecordType::Aaaa };
    let lines = "check = \"dns\"\ncheck_dns_name = \"www.example.com.\"\ncheck_dns_type = \"AAAA\"";
    assert_eq!(check(lines), CheckKind::Dns(dns));
    for (line, error) in [
        (
            "check_dns_name = \"a..b\"",
            "6:18: pool.web.check_dns_name: expected the name of a domain such as \"www.example.com\" or \".\", found \"a..b\"",
        ),
        (
            "check_dns_type = \"ANY\"",
            "6:18: pool.web.check_dns_type: expected one of \"A\", \"NS\", \"CNAME\", \"SOA\", \"PTR\", \"MX\", \"TXT\", \
             \"AAAA\", \"SRV\", found \"ANY\"",
        ),
    ] {
        assert_eq!(wrong_pool(&format!("[pool.web]\ncheck = \"dns\"\n{line}\n")), error, "{line}");
    }
}

#[test]
fn a_check_by_http_has_a_method_a_path_a_host_and_statuses() {
    assert_eq!(check("check = \"http\""), CheckKind::Http(HttpCheck::default()));
    let statuses = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a status")).collect();
    let http = HttpCheck {
        method: "HEAD".to_owned(),
        path: "/health?x=1".to_owned(),
        host: Some("www.example.com".to_owned()),
        status: statuses(&["200", "204-206", "300-399"]),
    };
    let lines = "check = \"http\"\ncheck_method = \"HEAD\"\ncheck_path = \"/health?x=1\"\n\
                 check_host = \"www.example.com\"\ncheck_status = [200, \"204-206\", \"3xx\"]";
    assert_eq!(check(lines), CheckKind::Http(http));
    for (value, status) in [("204", "204"), ("\"2xx\"", "200-299")] {
        let kind = check(&format!("check = \"http\"\ncheck_status = {value}"));
        assert_eq!(kind, CheckKind::Http(HttpCheck { status: statuses(&[status]), ..HttpCheck::default() }));
    }
    let many = vec!["200"; 17].join(", ");
    for (line, error) in [
        (
            "check_method = \"get\"",
            "16: pool.web.check_method: expected a method such as \"GET\" or \"HEAD\", in capital letters, found \"get\"",
        ),
        (
            "check_path = \"health\"",
            "14: pool.web.check_path: expected a path such as \"/health\", without blanks, found \"health\"",
        ),
        (
            "check_host = \"a b\"",
            "14: pool.web.check_host: expected the name of a host such as \"www.example.com\", found \"a b\"",
        ),
        (
            "check_status = 99",
            "16: pool.web.check_status: expected a status from 100 to 599, or several as \"2xx\" or \"200-399\", found 99",
        ),
        (
            "check_status = [200, \"6xx\"]",
            "22: pool.web.check_status[1]: expected a status from 100 to 599, or several as \"2xx\" or \"200-399\", found \"6xx\"",
        ),
        (
            "check_status = []",
            "16: pool.web.check_status: the list is empty; no status would pass; for 200 to 399 leave the key out",
        ),
        (&format!("check_status = [{many}]"), "16: pool.web.check_status: 17 are more than there may be, 16"),
    ] {
        assert_eq!(wrong_pool(&format!("[pool.web]\ncheck = \"http\"\n{line}\n")), format!("6:{error}"), "{line}");
    }
}

#[test]
fn values_of_health_have_bounds() {
    let interval = "expected a time from 10ms to 1day such as \"2s\" or \"500ms\", found";
    for (line, error) in [
        ("check_interval = \"9ms\"", format!("18: pool.web.check_interval: {interval} \"9ms\"")),
        ("check_interval = \"25h\"", format!("18: pool.web.check_interval: {interval} \"25h\"")),
        ("check_interval = 2", format!("18: pool.web.check_interval: {interval} 2")),
        (
            "check_interval = \"10500us\"",
            "18: pool.web.check_interval: expected a time in whole milliseconds, found \"10500us\"".to_owned(),
        ),
        ("check_undecided_interval = \"0s\"", format!("28: pool.web.check_undecided_interval: {interval} \"0s\"")),
        ("check_down_interval = \"2days\"", format!("23: pool.web.check_down_interval: {interval} \"2days\"")),
        (
            "check_timeout = \"61m\"",
            "17: pool.web.check_timeout: expected a time from 10ms to 1h such as \"2s\" or \"500ms\", found \"61m\""
                .to_owned(),
        ),
        ("check_rise = 0", "14: pool.web.check_rise: expected an integer from 1 to 100, found 0".to_owned()),
        ("check_fall = 101", "14: pool.web.check_fall: expected an integer from 1 to 100, found 101".to_owned()),
        ("check_port = 0", "14: pool.web.check_port: expected an integer from 1 to 65535, found 0".to_owned()),
        (
            "check_initial = \"ready\"",
            "17: pool.web.check_initial: expected one of \"up\", \"down\", found \"ready\"".to_owned(),
        ),
        (
            "eject_failures = 1000001",
            "18: pool.web.eject_failures: expected an integer from 0 to 1000000, found 1000001".to_owned(),
        ),
        ("eject_time = \"5ms\"", format!("14: pool.web.eject_time: {interval} \"5ms\"")),
        ("eject_max_time = \"25h\"", format!("18: pool.web.eject_max_time: {interval} \"25h\"")),
        (
            "eject_max_percent = 101",
            "21: pool.web.eject_max_percent: expected an integer from 0 to 100, found 101".to_owned(),
        ),
        (
            "when_all_down = \"use_all\"",
            "17: pool.web.when_all_down: expected one of \"refuse\", \"use-all\", found \"use_all\"; did you mean \
             \"use-all\"?"
                .to_owned(),
        ),
        ("on_down = true", "11: pool.web.on_down: expected one of \"keep\", \"close\", found true".to_owned()),
        (
            "eject_time = \"1m\"\neject_max_time = \"59s\"",
            "18: pool.web.eject_max_time: 59s is below eject_time, which is 1m".to_owned(),
        ),
        (
            "eject_time = \"10m\"",
            "14: pool.web.eject_time: 10m is above eject_max_time, which is 1m unless the file says more".to_owned(),
        ),
        (
            "eject_max_time = \"999ms\"",
            "18: pool.web.eject_max_time: 999ms is below eject_time, which is 1s".to_owned(),
        ),
    ] {
        let lines = line.lines().count() + 5;
        let text = wrong_pool(&format!("[pool.web]\ncheck = \"tcp\"\n{line}\n"));
        assert_eq!(text, format!("{lines}:{error}"), "{line}");
    }
    assert_eq!(
        wrong_pool("[pool.web]\ncheck = \"https\"\ncheck_send = \"x\"\n"),
        "5:9: pool.web.check: expected one of \"none\", \"tcp\", \"send\", \"http\", \"udp\", \"dns\", found \"https\"; did you mean \
         \"http\"?"
    );
    assert_eq!(
        wrong_server("{ address = \"10.0.0.1:80\", backup = 1 }"),
        "5:48: pool.web.servers[0].backup: expected true or false, found 1"
    );
    assert_eq!(
        wrong_server("{ address = \"10.0.0.1:80\", check_address = \"10.0.0.1:0\" }"),
        "5:55: pool.web.servers[0].check_address: 10.0.0.1:0 cannot be a server: port 0 cannot be connected to"
    );
}

#[test]
fn keys_of_checks_go_with_their_kind() {
    let of_send =
        ["check_send = \"x\"", "check_send_hex = \"00\"", "check_expect = \"x\"", "check_expect_hex = \"00\""];
    let of_http = ["check_method = \"GET\"", "check_path = \"/\"", "check_host = \"a\"", "check_status = 200"];
    let of_dns = ["check_dns_name = \"a\"", "check_dns_type = \"A\""];
    let of_any = [
        "check_interval = \"2s\"",
        "check_undecided_interval = \"1s\"",
        "check_down_interval = \"3s\"",
        "check_timeout = \"1s\"",
        "check_rise = 2",
        "check_fall = 3",
        "check_port = 81",
        "check_initial = \"up\"",
    ];
    // A key that goes with so and so many kinds, in a pool whose check is another.
    let refused = |kind: &str, line: &str, wanted: &str| {
        let key = line.split_once(' ').expect("a key").0;
        let (check, is) = match kind {
            "" => ("", "none"),
            "send" => ("check_expect = \"x\"\ncheck = \"send\"", "send"),
            "udp" => ("check_send = \"\"\ncheck = \"udp\"", "udp"),
            kind => (&*format!("check = \"{kind}\""), kind),
        };
        assert_eq!(
            wrong_pool(&format!("[pool.web]\n{line}\n{check}\n")),
            format!("5:1: pool.web.{key}: it goes with {wanted}, and the check of this pool is \"{is}\"")
        );
    };
    for kind in ["", "none", "tcp", "http", "dns"] {
        of_send.iter().for_each(|line| refused(kind, line, "check = \"send\" or \"udp\""));
    }
    for kind in ["", "none", "tcp", "send", "udp", "dns"] {
        of_http.iter().for_each(|line| refused(kind, line, "check = \"http\""));
    }
    for kind in ["", "none", "tcp", "send", "http", "udp"] {
        of_dns.iter().for_each(|line| refused(kind, line, "check = \"dns\""));
    }
    for kind in ["", "none"] {
        of_any.iter().for_each(|line| refused(kind, line, "a check"));
    }
    let keys = [of_send.as_slice(), &of_http, &of_dns, &of_any].concat();
    let keys: Vec<&str> = keys.iter().filter_map(|line| line.split(' ').next()).collect();
    let of_kinds = OF_SEND.iter().chain(&OF_HTTP).chain(&OF_DNS);
    let all = of_kinds.chain(&OF_CHECKS);
    assert!(all.clone().eq(&keys), "a test for each");
}
