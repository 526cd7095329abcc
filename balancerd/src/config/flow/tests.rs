//! What a file says of datagrams, and what of it does not go together.

use std::num::{NonZeroU32, NonZeroU64};

use wire::flow::{FlowPolicy, FlowSettings, HeaderScope, OnLoss, OnReturn, PathMtu};
use wire::settings::Protocol;

use crate::config::tests::{SERVICE, good, wrong, wrong_pool, wrong_service};

#[test]
fn what_a_file_says_of_datagrams_is_read() {
    let file = good(
        r#"
        [service.dns]
        listen = "0.0.0.0:53"
        protocol = "tcp+udp"
        pool = "dns"
        splice = false
        accept_proxy = "10.0.0.5"
        accept_proxy_in = "first-datagram"
        flow_timeout = "1s 500ms"
        requests = 2
        answers = 1

        [service.syslog]
        listen = "0.0.0.0:514"
        protocol = "udp"
        pool = "syslog"
        max_sessions = 5
        receive_buffer = "1MiB"

        [pool.dns]
        per_datagram = true
        flows_on_loss = "keep"
        flows_on_return = "move"
        send_proxy = "v2"
        send_proxy_in = "first-datagram"
        path_mtu = "fragment"

        [pool.syslog]
        one_way = true
        path_mtu = "report"
        "#,
    );
    let of = |name: &str| &file.settings.services[name];
    assert_eq!((of("dns").protocol, of("syslog").protocol), (Protocol::TcpAndUdp, Protocol::Udp));
    let flows = FlowSettings {
        timeout_ms: NonZeroU64::new(1500).expect("not 0"),
        requests: NonZeroU32::new(2),
        answers: NonZeroU32::new(1),
        accept_proxy_in: HeaderScope::FirstDatagram,
    };
    assert_eq!((of("dns").flows, of("syslog").flows), (flows, FlowSettings::default()));
    let policy = FlowPolicy {
        one_way: false,
        per_datagram: true,
        on_loss: OnLoss::Keep,
        on_return: OnReturn::Move,
        send_proxy_in: HeaderScope::FirstDatagram,
        path_mtu: PathMtu::Fragment,
    };
    assert_eq!(file.settings.pools["dns"].flows, policy);
    let policy = FlowPolicy { one_way: true, path_mtu: PathMtu::Report, ..FlowPolicy::default() };
    assert_eq!(file.settings.pools["syslog"].flows, policy);
}

#[test]
fn values_of_flows_are_told() {
    for (line, error) in [
        (
            "flow_timeout = \"50ms\"",
            "4:16: service.web.flow_timeout: expected a time from 100ms to 1day such as \"60s\" or \"500ms\", found \"50ms\"",
        ),
        (
            "requests = 0",
            "4:12: service.web.requests: expected an integer from 1 to 4294967295, found 0; for no limit leave the key out",
        ),
        ("answers = -1", "4:11: service.web.answers: expected an integer from 1 to 4294967295, found -1"),
        (
            "accept_proxy_in = \"first\"\naccept_proxy = \"::1\"",
            "4:19: service.web.accept_proxy_in: expected one of \"each-datagram\", \"first-datagram\", found \"first\"",
        ),
        (
            "accept_proxy_in = \"first-datagram\"",
            "4:1: service.web.accept_proxy_in: it goes with accept_proxy, the networks whose connections begin with a PROXY protocol header",
        ),
    ] {
        assert_eq!(wrong_service(&format!("{line}\nprotocol = \"udp\"")), error);
    }
    for (line, error) in [
        ("one_way = 1", "5:11: pool.web.one_way: expected true or false, found 1"),
        ("per_datagram = \"yes\"", "5:16: pool.web.per_datagram: expected true or false, found \"yes\""),
        (
            "flows_on_loss = \"stay\"",
            "5:17: pool.web.flows_on_loss: expected one of \"move\", \"keep\", found \"stay\"",
        ),
        (
            "flows_on_return = \"mov\"",
            "5:19: pool.web.flows_on_return: expected one of \"stay\", \"move\", found \"mov\"; did you mean \"move\"?",
        ),
        (
            "path_mtu = \"raport\"",
            "5:12: pool.web.path_mtu: expected one of \"fragment\", \"report\", found \"raport\"; did you mean \"report\"?",
        ),
        ("send_proxy_in = \"each-datagram\"", "5:1: pool.web.send_proxy_in: it goes with send_proxy = \"v2\""),
        (
            "send_proxy_in = \"each-datagram\"\nsend_proxy = \"v1\"",
            "5:1: pool.web.send_proxy_in: it goes with send_proxy = \"v2\"",
        ),
    ] {
        assert_eq!(wrong_pool(&format!("[pool.web]\n{line}\n")), error);
    }
}

#[test]
fn keys_of_one_protocol_are_none_of_the_other() {
    for line in ["flow_timeout = \"1s\"", "requests = 1", "answers = 1", "accept_proxy_in = \"first-datagram\""] {
        let key = line.split_once(' ').expect("a key").0;
        let line = format!("{line}\naccept_proxy = \"::1\"");
        let words = "it goes with protocol = \"udp\" or \"tcp+udp\", and the protocol of this service is \"tcp\"";
        assert_eq!(wrong_service(&line), format!("4:1: service.web.{key}: {words}"));
        good(&format!("{SERVICE}protocol = \"tcp+udp\"\n{line}\n[pool.web]\n"));
    }
    for line in [
        "splice = true",
        "idle_timeout = \"1h\"",
        "half_closed_timeout = \"1m\"",
        "max_age = \"1day\"",
        "backlog = 5",
        "defer_accept = \"5s\"",
        "fast_open = 0",
        "keepalive = \"0s\"",
        "user_timeout = \"30s\"",
        "congestion = \"bbr\"",
        "proxy_timeout = \"5s\"\naccept_proxy = \"::1\"",
    ] {
        let key = line.split_once(' ').expect("a key").0;
        let words = "it goes with protocol = \"tcp\" or \"tcp+udp\", and the protocol of this service is \"udp\"";
        let more = if key == "idle_timeout" { "; for flows give flow_timeout" } else { "" };
        let text = format!("{line}\nprotocol = \"udp\"");
        assert_eq!(wrong_service(&text), format!("4:1: service.web.{key}: {words}{more}"));
        good(&format!("{SERVICE}protocol = \"tcp+udp\"\n{line}\n[pool.web]\n"));
    }
    assert!(wrong_service("splice = true\nprotocol = \"upd\"").starts_with("5:12: service.web.protocol: "));
}

#[test]
fn a_pool_that_does_not_suit_what_its_service_speaks_is_told_with_the_line_of_that() {
    let text = |service: &str, pool: &str| format!("{SERVICE}{service}\n[pool.web]\n{pool}\n");
    assert_eq!(
        wrong(&text("protocol = \"tcp+udp\"", "one_way = true")),
        "6:1: pool.web.one_way: this pool serves service \"web\", which speaks TCP, in line 4; one_way is for \
         protocol = \"udp\" alone"
    );
    assert_eq!(
        wrong(&text("", "one_way = true")),
        "6:1: pool.web.one_way: this pool serves service \"web\", which speaks TCP, in line 1; one_way is for \
         protocol = \"udp\" alone"
    );
    assert_eq!(
        wrong(&text("protocol = \"udp\"", "send_proxy = \"v1\"")),
        "6:1: pool.web.send_proxy: this pool serves service \"web\", which speaks UDP, in line 4; in datagrams there is \
         \"v2\" alone"
    );
    assert_eq!(
        wrong(&text("protocol = \"udp\"\nanswers = 1", "one_way = true")),
        "7:1: pool.web.one_way: this pool serves service \"web\", which has answers in line 5; with one_way there are no \
         flows that could be complete"
    );
    good(&text("protocol = \"udp\"", "one_way = true"));
    good(&text("", "send_proxy = \"v1\""));
    good(&text("protocol = \"udp\"\nanswers = 1", "one_way = false"));
    assert_eq!(
        wrong(&text("protocol = \"udp\"", "flows_on_loss = \"keep\"\none_way = true")),
        "6:1: pool.web.flows_on_loss: it goes with flows, and a pool with one_way has none"
    );
    assert_eq!(
        wrong(&text("protocol = \"udp\"", "send_proxy = \"v2\"\nsend_proxy_in = \"first-datagram\"\none_way = true")),
        "7:1: pool.web.send_proxy_in: a pool with one_way has no flows, and so no first datagrams; give \"each-datagram\""
    );
    // A pool may stand before its service, whose mistake is told alone.
    let swapped = format!("[pool.web]\none_way = true\n{SERVICE}protocol = \"upd\"\n");
    assert!(wrong(&swapped).starts_with("6:12: service.web.protocol: "), "{}", wrong(&swapped));
}
