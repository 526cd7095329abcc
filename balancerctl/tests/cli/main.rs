//! balancerctl from outside, against a daemon that says what the test wants.

mod fake;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use fake::Fake;
use nix::unistd::geteuid;
use serde_json::{Value, json};
use wire::control::{Change, FileText, PoolValues, Removal, ServerValues};
use wire::event::{EventsReport, HealthEvent};
use wire::health::{CheckKind, CheckText, HttpCheck, OnDown};
use wire::report::{
    ChangeReport, DigestReport, Ended, ExplainReport, HealthState, Hex, ListReport, Phase, ReloadReport, ServerReport,
    ServerState, SettingsReport, StatusReport, StoppingReport,
};
use wire::settings::{
    AdminState, HashKey, LoadFactor, Policy, PoolSettings, SendProxy, ServerSettings, ServiceSettings,
};
use wire::{Refusal, Request, Response, Settings};

/// A command line, and an environment without anything of this machine's.
fn balancerctl(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balancerctl"));
    command.args(line.split_whitespace()).env_remove("BALANCER_SOCKET").stdin(Stdio::null());
    command
}

fn run(line: &str, socket: &Path) -> Output {
    balancerctl(line).arg("--socket").arg(socket).output().expect("balancerctl runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

/// Checks that a command failed as it should: with this code and one line that has these words.
fn assert_failed(output: &Output, code: i32, words: &str) {
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert!(errors.starts_with("balancerctl: ") && errors.contains(words), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

fn assert_done(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

fn value(output: &Output) -> Value {
    assert_eq!(text(&output.stdout).lines().count(), 1, "one line: {}", text(&output.stdout));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn server() -> SocketAddr {
    "10.0.0.1:80".parse().expect("an address")
}

fn changed(change: Change, dry_run: bool, unsaved: Option<String>) -> Response {
    let moves = Vec::new();
    Response::Changed(ChangeReport { change, dry_run, moved: 0.25, moves, sessions: 2, digest: Some(Hex(7)), unsaved })
}

fn status() -> Response {
    Response::Status(StatusReport {
        version: "0.1.0".into(),
        pid: 4711,
        uptime_ms: 5,
        phase: Phase::Running,
        services: Vec::new(),
        servers: 0,
        digest: Hex(7),
        session_limit: 100,
        state_file: "/tmp/s.state".into(),
        log: "/tmp/s.log".into(),
        unsaved: None,
        longest_turn_us: 9,
        log_lines_dropped: 0,
        port_shortages: 0,
        config_file: None,
        reload_failure: None,
        last_reload: None,
        deviations: Vec::new(),
    })
}

#[test]
fn without_a_daemon_every_command_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("s");
    for line in [
        "list",
        "status",
        "digest",
        "stop",
        "explain 10.0.0.7",
        "add 10.0.0.1 80",
        "remove ::1 80 --now --dry-run",
        "remove ::1 80 --wait",
        "set ::1 80 --weight 3",
        "pool list",
        "pool set web --max-load none",
        "service add web 0.0.0.0 80",
        "sessions",
        "events",
        "events --since 7 --follow",
        "kill 7",
        "reload",
        "save",
    ] {
        assert_failed(&run(line, &socket), 2, "start one with `balancerctl start ADDR PORT`");
        let output = run(&format!("{line} --json"), &socket);
        assert_failed(&output, 2, "no balancer answers");
        assert_eq!(value(&output)["error"], "no-daemon");
    }
}

#[test]
fn a_refusal_is_exit_code_1() {
    let refused = Response::Refused(Refusal::AlreadyThere { server: server(), weight: 3 });
    let fake = Fake::answering(&refused);
    assert_failed(&run("add 10.0.0.1 80", &fake.socket()), 1, "is in the pool already, with weight 3");

    let fake = Fake::answering(&refused);
    let output = run("add 10.0.0.1 80 --json", &fake.socket());
    assert_failed(&output, 1, "is in the pool already");
    let value = value(&output);
    assert_eq!(value["refused"], json!({"already-there": {"server": "10.0.0.1:80", "weight": 3}}));
    assert!(value["message"].as_str().expect("text").starts_with("10.0.0.1:80 is in the pool already"));

    let fake = Fake::answering(&Response::Refused(Refusal::NotThere { server: server() }));
    assert_failed(&run("remove 10.0.0.1 80", &fake.socket()), 1, "is not in the pool");
}

#[test]
fn who_is_no_daemon_of_this_version_is_exit_code_2() {
    let fake = Fake::of_version(7);
    assert_failed(&run("list", &fake.socket()), 2, "speaks version 7");
    let fake = Fake::saying(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    assert_failed(&run("list", &fake.socket()), 2, "is not a balancer");
    let fake = Fake::saying(b"");
    assert_failed(&run("list", &fake.socket()), 2, "closed the connection without an answer");
    let fake = Fake::answering(&Response::Digest(DigestReport {
        pool: "default".into(),
        policy: Policy::ConsistentHash,
        key: "client-ip".into(),
        max_load: None,
        digest: Hex(7),
        ring_format: 1,
        points_per_weight: 1024,
    }));
    assert_failed(&run("list", &fake.socket()), 2, "an answer to another question");
}

#[test]
fn a_socket_that_may_not_be_opened_is_exit_code_2() {
    let fake = Fake::answering(&status());
    fs::set_permissions(fake.directory(), fs::Permissions::from_mode(0o755)).expect("changed");
    fs::set_permissions(fake.socket(), fs::Permissions::from_mode(0o000)).expect("changed");
    let mut command = balancerctl("status");
    command.arg("--socket").arg(fake.socket());
    if geteuid().is_root() {
        // Root may open everything; somebody else may not. 65534 is nobody.
        command.uid(65534).gid(65534);
    }
    match command.output() {
        Ok(output) => assert_failed(&output, 2, "permission to use"),
        Err(error) => eprintln!("not tested: nobody may run {}: {error}", env!("CARGO_BIN_EXE_balancerctl")),
    }
}

#[test]
fn what_no_server_can_have_needs_no_daemon_to_be_refused() {
    for (line, code, words) in [
        ("add 10.0.0.1 0", 1, "port 0"),
        ("remove 10.0.0.1 0", 1, "port 0"),
        ("add 0.0.0.0 80", 1, "unspecified"),
        ("add 224.0.0.1 80", 1, "multicast"),
        ("add 255.255.255.255 80", 1, "broadcast"),
        ("add fe80::1 80", 1, "link-local"),
        ("add fe80::1%lo 80", 2, "has a zone"),
        ("add 10.0.0.1:80 80", 2, "as two"),
        ("add 300.0.0.1 80", 2, "is not an IP address"),
        ("add http://web 80", 2, "neither an IP address nor a host name"),
        ("add name.invalid 80", 2, "cannot be looked up"),
        ("explain 10.0.0", 2, "is not an IP address"),
        ("start 10.0.0 80", 2, "is not an IP address"),
    ] {
        assert_failed(&run(line, Path::new("/nonexistent/s")), code, words);
    }
}

fn add(server: SocketAddr, weight: u32) -> Change {
    Change::Add { pool: "default".into(), server, settings: ServerSettings { weight, ..ServerSettings::default() } }
}

fn remove(server: SocketAddr, how: Removal) -> Change {
    Change::Remove { pool: "default".into(), server, how }
}

#[test]
fn a_change_is_sent_as_it_was_typed() {
    let v6: SocketAddr = "[2001:db8::1]:80".parse().expect("an address");
    let wait = |limit_ms| Removal::Wait { limit_ms };
    let limited = ServerSettings {
        weight: 0,
        state: AdminState::Drain,
        max_sessions: 5.try_into().ok(),
        ..ServerSettings::default()
    };
    let set = |values| Change::Set { pool: "web".into(), server: server(), values };
    let none = ServerValues::default();
    let elsewhere = "10.0.0.1:81".parse().expect("an address");
    let status = ["2xx", "304"].map(|text| text.parse().expect("statuses")).to_vec();
    let health = HttpCheck { path: "/health".into(), status, ..HttpCheck::default() };
    for (line, change, dry_run) in [
        ("add 10.0.0.1 80", add(server(), 1), false),
        ("add ::ffff:10.0.0.1 80 --weight 7", add(server(), 7), false),
        ("add [2001:db8::1] 80 --dry-run", add(v6, 1), true),
        (
            "add 10.0.0.1 80 --pool web --weight 0 --state drain --max-sessions 5",
            Change::Add { pool: "web".into(), server: server(), settings: limited },
            false,
        ),
        ("remove 2001:db8::1 80", remove(v6, wait(None)), false),
        ("remove 10.0.0.1 80 --now --dry-run", remove(server(), Removal::Now), true),
        ("remove 10.0.0.1 80 --over 10m", remove(server(), Removal::Over { time_ms: 600_000 }), false),
        ("remove 10.0.0.1 80 --limit 1500ms", remove(server(), wait(Some(1500))), false),
        ("set 10.0.0.1 80 --pool web --weight 3", set(ServerValues { weight: Some(3), ..none }), false),
        (
            "set 10.0.0.1 80 --pool web --state maintenance --max-sessions none",
            set(ServerValues { state: Some(AdminState::Maintenance), max_sessions: Some(None), ..none }),
            false,
        ),
        (
            "add 10.0.0.1 80 --backup --check-address [::ffff:10.0.0.1]:81",
            Change::Add {
                pool: "default".into(),
                server: server(),
                settings: ServerSettings { backup: true, check_address: Some(elsewhere), ..ServerSettings::default() },
            },
            false,
        ),
        (
            "set 10.0.0.1 80 --pool web --backup true --check-address 10.0.0.1:81",
            set(ServerValues { backup: Some(true), check_address: Some(Some(elsewhere)), ..none }),
            false,
        ),
        (
            "set 10.0.0.1 80 --pool web --backup false --check-address none",
            set(ServerValues { backup: Some(false), check_address: Some(None), ..none }),
            false,
        ),
        (
            "pool set web --check http --check-path /health --check-status 2xx,304 --check-down-interval none --on-down close",
            Change::SetPool {
                pool: "web".into(),
                values: PoolValues {
                    check: Some(CheckKind::Http(health.clone())),
                    check_down_interval_ms: Some(None),
                    on_down: Some(OnDown::Close),
                    ..PoolValues::default()
                },
            },
            false,
        ),
        (
            "pool set web --connect-timeout none --tries 5 --replay 64KiB --source 10.0.0.8 --source ::ffff:10.0.0.9",
            Change::SetPool {
                pool: "web".into(),
                values: PoolValues {
                    connect_timeout_ms: Some(None),
                    tries: 5.try_into().ok(),
                    replay: Some(65_536),
                    source: Some(vec![[10, 0, 0, 8].into(), [10, 0, 0, 9].into()]),
                    ..PoolValues::default()
                },
            },
            false,
        ),
        (
            "pool set web --source none",
            Change::SetPool {
                pool: "web".into(),
                values: PoolValues { source: Some(Vec::new()), ..PoolValues::default() },
            },
            false,
        ),
        (
            "pool set web --key client-subnet --subnet-ipv4 16 --max-load 1.25 --slow-start 30s --send-proxy v2 \
             --send-proxy-unique-id --dry-run",
            Change::SetPool {
                pool: "web".into(),
                values: PoolValues {
                    key: Some(HashKey::ClientSubnet { ipv4: 16, ipv6: 56 }),
                    max_load: Some(LoadFactor::from_thousandths(1250)),
                    slow_start_ms: Some(30_000),
                    send_proxy: Some(Some(SendProxy::V2 { crc32c: false, unique_id: true })),
                    ..PoolValues::default()
                },
            },
            true,
        ),
    ] {
        let fake = Fake::answering(&changed(change.clone(), dry_run, None));
        let output = run(line, &fake.socket());
        assert_done(&output);
        assert_eq!(fake.request(), Request::Change { change, dry_run }, "{line}");
        assert!(text(&output.stdout).contains("25.00% of the clients"), "{}", text(&output.stdout));
        assert_eq!(text(&output.stderr), "");
    }
    let listen = vec!["[::]:25".parse().expect("an address")];
    let mut long = ServiceSettings::new(listen.clone(), "web");
    long.client_side.idle_timeout_ms = 86_400_000.try_into().ok();
    long.client_side.half_closed_timeout_ms = 5000.try_into().expect("not 0");
    long.client_side.max_age_ms = 604_800_000.try_into().ok();
    long.client_side.socket.keepalive_ms = 0;
    let mail = ServiceSettings {
        sessions_per_client: 20.try_into().ok(),
        client_subnet_ipv6: 48,
        freebind: true,
        deny: vec!["10.0.0.0/8".parse().expect("a network"), "192.0.2.1/32".parse().expect("a network")],
        accept_proxy: vec!["10.0.0.5/32".parse().expect("a network")],
        proxy_timeout_ms: 500,
        ..ServiceSettings::new(listen, "web")
    };
    let round_robin = PoolSettings { policy: Policy::RoundRobin, ..PoolSettings::default() };
    let of_v1 = PoolSettings { send_proxy: Some(SendProxy::V1), ..PoolSettings::default() };
    let mut checked = PoolSettings::default();
    checked.health.check.kind =
        CheckKind::Send { send: CheckText::default(), expect: CheckText::new("220").expect("short") };
    checked.health.check.port = 8081.try_into().ok();
    let mut far = PoolSettings::default();
    far.server_side.connect_timeout_ms = 10_000.try_into().ok();
    for (line, change) in [
        (
            "service add mail :: 25 --pool web --sessions-per-client 20 --client-subnet-ipv6 48 --freebind --deny 10.0.0.0/8 --deny 192.0.2.1 \
             --accept-proxy 10.0.0.5 --proxy-timeout 500ms",
            Change::AddService { service: "mail".into(), settings: mail },
        ),
        (
            "service add mail :: 25 --pool web --idle-timeout 1d --half-closed-timeout 5s --max-age 1week --keepalive 0s",
            Change::AddService { service: "mail".into(), settings: long },
        ),
        ("service remove mail", Change::RemoveService { service: "mail".into() }),
        ("pool add web --policy round-robin", Change::AddPool { pool: "web".into(), settings: round_robin }),
        ("pool add old --send-proxy v1", Change::AddPool { pool: "old".into(), settings: of_v1 }),
        (
            "pool add mail --check send --check-expect 220 --check-port 8081",
            Change::AddPool { pool: "mail".into(), settings: checked },
        ),
        ("pool add far --connect-timeout 10s", Change::AddPool { pool: "far".into(), settings: far }),
        ("pool remove web", Change::RemovePool { pool: "web".into() }),
        ("kill 4711", Change::Kill { session: 4711 }),
        ("kill --server 10.0.0.1:80", Change::KillAll { pool: "default".into(), server: server() }),
        ("kill --server 10.0.0.1:80 --pool web", Change::KillAll { pool: "web".into(), server: server() }),
    ] {
        let fake = Fake::answering(&changed(change.clone(), false, None));
        assert_done(&run(line, &fake.socket()));
        assert_eq!(fake.request(), Request::Change { change, dry_run: false }, "{line}");
    }
}

#[test]
fn what_is_asked_is_sent_as_it_was_typed() {
    let (service, pool) = (Some("web".to_owned()), Some("web".to_owned()));
    let client = "192.0.2.7".parse().expect("an address");
    for (line, request) in [
        ("list", Request::List { pool: "default".into() }),
        ("list --pool web", Request::List { pool: "web".into() }),
        ("list --pool web --wide", Request::List { pool: "web".into() }),
        ("digest --pool web", Request::Digest { pool: "web".into() }),
        ("pool list", Request::Pools),
        ("service list", Request::Status),
        ("sessions", Request::Sessions { service: None, pool: None, server: None, limit: 100 }),
        (
            "sessions --service web --pool web --server [::ffff:10.0.0.1]:80 --limit 7",
            Request::Sessions { service: service.clone(), pool, server: Some(server()), limit: 7 },
        ),
        ("explain 192.0.2.7:5000 --service web", Request::Explain { client, port: 5000, service }),
        ("events", Request::Events { since: 0 }),
        ("events --since 7 --follow", Request::Events { since: 7 }),
        ("reload", Request::Reload { instead: None, dry_run: false }),
        ("reload --dry-run", Request::Reload { instead: None, dry_run: true }),
    ] {
        let fake = Fake::answering(&Response::Refused(Refusal::Stopping));
        assert_failed(&run(line, &fake.socket()), 1, "is stopping");
        assert_eq!(fake.request(), request, "{line}");
    }
}

#[test]
fn a_change_that_is_not_saved_is_a_warning() {
    let fake = Fake::answering(&changed(add(server(), 1), false, Some("the disk is full".into())));
    let output = run("add 10.0.0.1 80 --json", &fake.socket());
    assert_done(&output);
    assert!(text(&output.stderr).starts_with("balancerctl: warning: "), "{}", text(&output.stderr));
    assert_eq!(value(&output)["unsaved"], "the disk is full");
}

fn list(servers: Vec<ServerReport>) -> ListReport {
    let settings = PoolSettings::default();
    ListReport { pool: "default".into(), settings, digest: Hex(255), deviations: Vec::new(), servers }
}

#[test]
fn reports_are_printed_as_they_are_for_programs() {
    let explain = ExplainReport {
        client: "10.0.0.7".parse().expect("an address"),
        service: None,
        refused: None,
        pool: "default".into(),
        policy: Policy::ConsistentHash,
        key: Some("10.0.0.7".into()),
        hash: Some(Hex(1)),
        point: Some(Hex(2)),
        server: Some(server()),
        next: Vec::new(),
        skipped: Vec::new(),
    };
    for (line, response, expected) in [
        (
            "list",
            Response::List(list(Vec::new())),
            json!({
                "pool": "default", "digest": "00000000000000ff", "deviations": [], "servers": [],
                "settings": {
                    "policy": "consistent-hash", "key": "client-ip", "max_load": null, "points_per_weight": 1024,
                    "slow_start_ms": 0, "send_proxy": null, "servers": {},
                    "health": {
                        "check": {
                            "kind": "none", "interval_ms": 2000, "undecided_interval_ms": null,
                            "down_interval_ms": null, "timeout_ms": 1000, "rise": 2, "fall": 3, "port": null,
                            "initial": "up"
                        },
                        "ejection": {"failures": 5, "time_ms": 1000, "max_time_ms": 60000, "max_percent": 50},
                        "when_all_down": "refuse", "on_down": "keep"
                    },
                    "server_side": {
                        "connect_timeout_ms": null, "tries": 3, "replay": 0, "source": [], "transparent": false,
                        "fast_open": false, "mark": null, "device": null,
                        "socket": {
                            "keepalive_ms": 60_000, "user_timeout_ms": null, "congestion": null, "send_buffer": null,
                            "receive_buffer": null
                        }
                    },
                    "flows": {
                        "one_way": false, "per_datagram": false, "on_loss": "move", "on_return": "stay",
                        "send_proxy_in": "each-datagram", "path_mtu": "fragment"
                    }
                }
            }),
        ),
        (
            "explain 10.0.0.7:51234",
            Response::Explained(explain),
            json!({
                "client": "10.0.0.7", "service": null, "refused": null, "pool": "default",
                "policy": "consistent-hash", "key": "10.0.0.7", "hash": "0000000000000001",
                "point": "0000000000000002", "server": "10.0.0.1:80", "next": [], "skipped": []
            }),
        ),
        ("pool list", Response::Pools(Vec::new()), json!({"pools": []})),
        ("service list", status(), json!({"services": []})),
        ("sessions", Response::Sessions(Vec::new()), json!({"sessions": []})),
    ] {
        let fake = Fake::answering(&response);
        let output = run(&format!("{line} --json"), &fake.socket());
        assert_done(&output);
        assert_eq!(value(&output), expected);
    }
}

/// An answer with these events, of one that began at a time.
fn events(numbers: std::ops::Range<u64>, dropped: u64) -> Response {
    let event = |number| HealthEvent {
        number,
        time: "2026-11-21T20:53:08.123456Z".into(),
        pool: "web".into(),
        server: server(),
        from: HealthState::Down,
        to: HealthState::Up,
        reason: None,
        out_ms: None,
        up: 2,
        of: 2,
    };
    let next = numbers.end;
    Response::Events(EventsReport {
        pid: 7,
        started: "then".into(),
        next,
        dropped,
        events: numbers.map(event).collect(),
    })
}

#[test]
fn events_that_are_missing_are_not_hidden() {
    let fake = Fake::answering(&events(13..14, 12));
    let output = run("events", &fake.socket());
    assert_done(&output);
    assert_eq!(
        text(&output.stdout),
        "12 events before these: dropped, the balancer does not keep so many\n\
         2026-11-21T20:53:08.123456Z server is up number=13 pool=web server=10.0.0.1:80 from=down up=2 of=2\n"
    );
    let fake = Fake::answering(&events(13..14, 12));
    let output = run("events --json", &fake.socket());
    assert_done(&output);
    let said: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    assert_eq!(said[0], json!({"started": "then", "dropped": 12}));
    assert_eq!(
        said[1..],
        [json!({
            "started": "then", "number": 13, "time": "2026-11-21T20:53:08.123456Z", "pool": "web",
            "server": "10.0.0.1:80", "from": "down", "to": "up", "reason": null, "out_ms": null, "up": 2, "of": 2
        })]
    );
}

#[test]
fn who_follows_asks_for_what_is_new_until_the_balancer_ends() {
    let fake = Fake::answering_each(&[events(5..8, 0), events(8..8, 0), events(9..11, 1)]);
    let mut command = balancerctl("events --since 4 --follow");
    let mut child = command
        .arg("--socket")
        .arg(fake.socket())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs");
    let asked: Vec<Request> = (0..3).map(|_| fake.request()).collect();
    assert_eq!(asked, [4, 7, 7].map(|since| Request::Events { since }));
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines().take(6);
    let lines: Vec<String> = lines.map(|line| line.expect("text")).collect();
    assert!(lines[3].starts_with("1 event before these: dropped"), "{lines:?}");
    assert!(lines[5].contains("number=10 "), "{lines:?}");
    child.kill().and_then(|()| child.wait()).expect("it ends");

    let fake = Fake::ending(&events(1..3, 0));
    let output = run("events --follow", &fake.socket());
    assert_failed(&output, 1, "event 2 was the last that it told");
}

#[test]
fn an_event_that_has_not_been_is_of_another_balancer() {
    for options in ["", " --follow"] {
        let fake = Fake::answering(&events(3..3, 0));
        let output = run(&format!("events --since 3 --json{options}"), &fake.socket());
        assert_failed(&output, 1, "there is no event 3 yet, the last one is 2: numbers begin again");
        assert_eq!(value(&output)["error"], "no-event");
    }
    let fake = Fake::answering(&events(3..3, 0));
    assert_done(&run("events --since 2", &fake.socket()));
}

fn leaving(active: u64) -> Response {
    Response::List(list(vec![ServerReport {
        server: server(),
        weight: 1,
        max_sessions: None,
        ramp: 1.0,
        state: ServerState::Leaving,
        backup: false,
        health: wire::report::HealthReport::default(),
        share: 0.0,
        active,
        total: 9,
        bytes_in: 0,
        bytes_out: 0,
        connect_failures: 0,
        connect_timeouts: 0,
        timing: wire::report::TimingReport::default(),
        overflows: 0,
        replays: 0,
        removal: None,
        ended: Ended::new(),
        datagrams: wire::report::DatagramReport::default(),
        flows_moved: 0,
    }]))
}

#[test]
fn remove_waits_until_the_server_is_gone() {
    let removed = changed(remove(server(), Removal::Wait { limit_ms: None }), false, None);
    let answers = [removed.clone(), leaving(2), leaving(2), leaving(1), Response::List(list(Vec::new()))];
    let fake = Fake::answering_each(&answers);
    let output = run("remove 10.0.0.1 80 --wait", &fake.socket());
    assert_done(&output);
    assert_eq!(
        text(&output.stdout),
        "removed 10.0.0.1:80; 25.00% of the clients moved\nits sessions go on until they end: 2 alive\n\
         2 sessions left\n1 session left\n10.0.0.1:80 is gone\n"
    );
    let fake = Fake::answering_each(&answers);
    let output = run("remove 10.0.0.1 80 --wait --json", &fake.socket());
    assert_done(&output);
    assert_eq!(value(&output)["gone"], true);
    assert_eq!(value(&output)["sessions"], 2);

    let fake = Fake::ending(&removed);
    let output = run("remove 10.0.0.1 80 --wait", &fake.socket());
    assert_failed(&output, 1, "the balancer ended while the last sessions of 10.0.0.1:80 were waited for");
    let Response::List(mut back) = leaving(2) else { unreachable!("it is a list") };
    back.servers[0].state = ServerState::Ready;
    let fake = Fake::answering_each(&[removed, Response::List(back)]);
    assert_failed(&run("remove 10.0.0.1 80 --wait", &fake.socket()), 1, "was added again");
}

#[test]
fn diff_sends_the_text_and_not_the_path() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("new.toml");
    fs::write(&path, "# a text\n").expect("written");
    let report = ReloadReport {
        dry_run: true,
        file: "new.toml".into(),
        changes: Vec::new(),
        deviations: Vec::new(),
        pools: Vec::new(),
        unsaved: None,
    };
    let fake = Fake::answering(&Response::Reloaded(report.clone()));
    let output = run(&format!("diff {}", path.display()), &fake.socket());
    assert_done(&output);
    assert_eq!(text(&output.stdout), "new.toml would change nothing\n\nnothing was changed\n");
    let sent = |name: &str, text: &str| {
        let instead = Some(FileText { name: name.into(), text: text.into() });
        Request::Reload { instead, dry_run: true }
    };
    assert_eq!(fake.request(), sent(path.to_str().expect("text"), "# a text\n"));

    let fake = Fake::answering(&Response::Reloaded(report));
    let file = fs::File::open(&path).expect("it is there");
    let output = balancerctl("diff - --json").arg("--socket").arg(fake.socket()).stdin(file).output();
    let output = output.expect("balancerctl runs");
    assert_done(&output);
    assert_eq!(value(&output)["changes"], json!([]));
    assert_eq!(fake.request(), sent("standard input", "# a text\n"));

    for (path, words) in [("/nonexistent/f", "cannot be read"), ("/", "cannot be read")] {
        assert_failed(&run(&format!("diff {path}"), &fake.socket()), 2, words);
    }
    fs::write(&path, b"\xff").expect("written");
    assert_failed(&run(&format!("diff {}", path.display()), &fake.socket()), 1, "is not UTF-8");
}

#[test]
fn the_environment_names_the_socket_and_the_option_has_precedence() {
    let fake = Fake::answering(&status());
    let output = balancerctl("status").env("BALANCER_SOCKET", fake.socket()).output().expect("balancerctl runs");
    assert_done(&output);
    assert!(text(&output.stdout).contains("pid 4711"), "{}", text(&output.stdout));
    let fake = Fake::answering(&status());
    let output = balancerctl("status --socket /nonexistent/s").env("BALANCER_SOCKET", fake.socket()).output();
    assert_failed(&output.expect("balancerctl runs"), 2, "/nonexistent/s");
}

#[test]
fn stop_waits_until_the_daemon_has_ended() {
    let stopping = |drain_ms| Response::Stopping(StoppingReport { pid: 4711, sessions: 2, drain_ms });
    let fake = Fake::ending(&stopping(1500));
    let output = run("stop --drain 1500ms", &fake.socket());
    assert_done(&output);
    assert_eq!(fake.request(), Request::Stop { now: false, drain_ms: Some(1500) });
    assert_eq!(
        text(&output.stdout),
        "balancer is stopping; 2 sessions may go on for 1 s\nbalancer stopped, pid 4711\n"
    );
    let fake = Fake::ending(&stopping(0));
    let output = run("stop --now --json", &fake.socket());
    assert_done(&output);
    assert_eq!(fake.request(), Request::Stop { now: true, drain_ms: None });
    assert_eq!(value(&output), json!({"pid": 4711, "sessions": 2, "drain_ms": 0, "ended": true}));
    // This one never ends.
    let fake = Fake::answering(&stopping(30_000));
    let output = run("stop --no-wait --json", &fake.socket());
    assert_done(&output);
    assert_eq!(value(&output)["ended"], false);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = balancerctl("completions bash");
    let output = command.stdout(writer).stderr(Stdio::piped()).spawn().expect("balancerctl runs").wait_with_output();
    let output = output.expect("it ends");
    assert_done(&output);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_path_that_cannot_be_a_socket_is_named() {
    let long = format!("/tmp/{}", "x".repeat(110));
    assert_failed(&run("list", Path::new(&long)), 2, "is too long for a socket");
    let output = balancerctl("list").env("BALANCER_SOCKET", "").output().expect("balancerctl runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("unset BALANCER_SOCKET"), "{}", text(&output.stderr));
}

/// A balancerctl that has the script `balancerd` of this directory in its PATH, and none beside itself. Gives what came
/// of it, and the arguments of each run of the script.
fn with_daemon(line: &str, socket: &Path, said: Said<'_>) -> (Output, String) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let program = directory.path().join("balancerctl");
    // A link, not a copy: a file that was just written cannot be run while another test forks.
    fs::hard_link(env!("CARGO_BIN_EXE_balancerctl"), &program).expect("linked");
    let arguments = directory.path().join("arguments");
    let mut command = Command::new(program);
    command.arg("--socket").arg(socket).args(line.split_whitespace());
    command.env("PATH", format!("{}/tests/cli:/bin:/usr/bin", env!("CARGO_MANIFEST_DIR")));
    command.env("FAKE_ARGUMENTS", &arguments).env("FAKE_SAYS", said.errors).env("FAKE_EXIT", said.exit.to_string());
    command.env("FAKE_PRINTS", said.prints);
    let output = command.output().expect("balancerctl runs");
    (output, fs::read_to_string(arguments).unwrap_or_default())
}

/// What the script says and does.
#[derive(Debug, Clone, Copy, Default)]
struct Said<'a> {
    prints: &'a str,
    errors: &'a str,
    exit: i32,
}

fn start(line: &str, socket: &Path, errors: &str, exit: i32) -> (Output, String) {
    with_daemon(&format!("start {line}"), socket, Said { errors, exit, ..Said::default() })
}

fn settings(weight: u32) -> Settings {
    let servers = [(server(), ServerSettings { weight, ..ServerSettings::default() })].into();
    let pools = [("default".to_owned(), PoolSettings { servers, ..PoolSettings::default() })].into();
    Settings { pools, ..Settings::default() }
}

#[test]
fn check_passes_on_what_the_daemon_says() {
    let nowhere = Path::new("/nonexistent/s");
    let said = Said { prints: "f.toml is valid", ..Said::default() };
    let (output, arguments) = with_daemon("check f.toml", nowhere, said);
    assert_done(&output);
    assert_eq!((text(&output.stdout), arguments.as_str()), ("f.toml is valid\n", "--check\nf.toml\n"));
    let (output, arguments) = with_daemon("check f.toml --json", nowhere, Said { prints: "{}", ..said });
    assert_done(&output);
    assert_eq!((text(&output.stdout), arguments.as_str()), ("{}\n", "--check\nf.toml\n--json\n"));
    let wrong = Said { errors: "f.toml:3:1: unknown key", exit: 1, ..Said::default() };
    let (output, _) = with_daemon("check f.toml", nowhere, wrong);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "f.toml:3:1: unknown key\n", "an editor finds the place");
    let (output, _) = with_daemon("check f.toml --json", nowhere, wrong);
    assert_eq!(value(&output), json!({"error": "bad-file", "message": "f.toml:3:1: unknown key"}));
}

fn set_to(settings: Settings) -> Response {
    Response::Settings(SettingsReport { file: None, said: None, now: settings })
}

#[test]
fn compare_finds_who_goes_elsewhere() {
    let (one, other) = (Fake::answering(&set_to(settings(1))), Fake::answering(&set_to(settings(1))));
    let output = run(&format!("compare {}", other.socket().display()), &one.socket());
    assert_done(&output);
    assert!(text(&output.stdout).contains("agree on every client"), "{}", text(&output.stdout));
    assert_eq!((one.request(), other.request()), (Request::Settings, Request::Settings));

    let file = tempfile::NamedTempFile::new().expect("a file");
    let prints = serde_json::to_string(&settings(0)).expect("text");
    let said = Said { prints: &prints, ..Said::default() };
    let one = Fake::answering(&set_to(settings(1)));
    let (output, arguments) = with_daemon(&format!("compare {} --json", file.path().display()), &one.socket(), said);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    assert!(arguments.starts_with("--check\n"), "{arguments}");
    let value = value(&output);
    assert_eq!(value["equal"], false);
    assert_eq!(value["pools"][0]["elsewhere"], 1.0);
    assert_eq!(value["pools"][0]["moves"], json!([{"this": "10.0.0.1:80", "other": null, "share": 1.0}]));
}

#[test]
fn save_leaves_a_file_alone_that_was_edited() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_str().expect("text").to_owned();
    let report = SettingsReport { file: Some(path.clone()), said: Some(settings(1)), now: settings(2) };
    let prints = serde_json::to_string(&settings(7)).expect("text");
    let fake = Fake::answering(&Response::Settings(report.clone()));
    let (output, _) = with_daemon("save", &fake.socket(), Said { prints: &prints, ..Said::default() });
    assert_failed(&output, 1, "does not say any more what the balancer read from it");

    let same = serde_json::to_string(&settings(1)).expect("text");
    let fake = Fake::answering(&Response::Settings(report.clone()));
    let (output, _) = with_daemon("save", &fake.socket(), Said { prints: &same, ..Said::default() });
    assert_failed(&output, 1, "cannot be edited: server 10.0.0.1:80 of pool default is not found in it");

    fs::write(&path, "pool.default.servers = [{ address = '10.0.0.1:80', weight = 1 }]\n").expect("written");
    let fake = Fake::answering(&Response::Settings(report.clone()));
    let (output, _) = with_daemon("save --json", &fake.socket(), Said { prints: &same, ..Said::default() });
    // The script says of the new text what it says of the old one.
    assert_failed(&output, 1, "is written in a way that this program cannot edit");
    assert_eq!(value(&output)["error"], "cannot-edit");
    let text_of = fs::read_to_string(&path).expect("text");
    assert_eq!(text_of, "pool.default.servers = [{ address = '10.0.0.1:80', weight = 1 }]\n");

    let none = SettingsReport { file: None, said: None, now: settings(2) };
    let fake = Fake::answering(&Response::Settings(none.clone()));
    assert_failed(&run("save", &fake.socket()), 1, "was started without a configuration file");
    let fake = Fake::answering(&Response::Settings(none));
    assert_failed(&run(&format!("save {path}"), &fake.socket()), 1, "is there already");
}

#[test]
fn import_prints_the_file_and_notes_apart() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let line = format!("import {}", file.path().display());
    let nowhere = Path::new("/nonexistent/s");
    fs::write(
        file.path(),
        "[frontend]\nbind_on = \"0.0.0.0:80\"\n[[frontend.backend]]\nforward_to = \"10.0.0.1:80\"\n",
    )
    .expect("written");
    let output = run(&line, nowhere);
    assert_done(&output);
    assert!(text(&output.stdout).contains("10.0.0.1:80"), "{}", text(&output.stdout));
    let output = run(&format!("{line} --json"), nowhere);
    assert!(value(&output)["toml"].as_str().expect("text").contains("[service."));
    fs::write(file.path(), "x = 1\n").expect("written");
    assert_failed(&run(&line, nowhere), 1, file.path().to_str().expect("text"));
}

#[test]
fn start_reports_the_daemon_that_it_started() {
    let fake = Fake::answering(&status());
    let socket = fake.socket();
    let (output, arguments) = start("::1 0 --state /tmp/x -- --idle-timeout 10m", &socket, "", 0);
    assert_done(&output);
    let expected = ["--background", "--listen", "[::1]:0", "--socket", socket.to_str().expect("text"), "--state"];
    assert_eq!(
        arguments.lines().collect::<Vec<_>>(),
        [expected.as_slice(), &["/tmp/x", "--idle-timeout", "10m"]].concat()
    );
    assert!(text(&output.stdout).contains("pid 4711") && text(&output.stdout).contains("/tmp/s.log"));
}

#[test]
fn start_has_the_file_found_from_anywhere() {
    let fake = Fake::answering(&status());
    let (output, arguments) = start("--config f.toml", &fake.socket(), "", 0);
    assert_done(&output);
    let file = std::env::current_dir().expect("a directory").join("f.toml");
    assert!(arguments.starts_with(&format!("--background\n--config\n{}\n", file.display())), "{arguments}");
}

#[test]
fn start_passes_on_why_the_daemon_did_not() {
    let (output, _) = start("127.0.0.1 80", Path::new("/tmp/none/s"), "balancerd: 127.0.0.1:80 is in use", 1);
    assert_failed(&output, 1, "the balancer did not start: 127.0.0.1:80 is in use");
    let (output, _) = start("127.0.0.1 80", Path::new("/tmp/none/s"), "", 3);
    assert_failed(&output, 1, "said nothing");
    let (output, arguments) = start("127.0.0.1 80 -- --listen=x", Path::new("/tmp/none/s"), "", 0);
    assert_failed(&output, 2, "does not go behind `--`");
    assert_eq!(arguments, "", "nothing was run");
}

#[test]
fn start_without_balancerd_says_where_it_looked() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let program = directory.path().join("balancerctl");
    fs::hard_link(env!("CARGO_BIN_EXE_balancerctl"), &program).expect("linked");
    let output = Command::new(program).args(["start", "::1", "0", "--socket", "/tmp/none/s"]).env("PATH", "").output();
    let output = output.expect("balancerctl runs");
    assert_failed(&output, 2, "balancerd is neither ");
    assert!(text(&output.stderr).contains(&directory.path().display().to_string()));
}

#[test]
fn pages_and_completions_are_generated() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = balancerctl("man --out").arg(directory.path()).output().expect("balancerctl runs");
    assert_done(&output);
    let page = fs::read_to_string(directory.path().join("balancerctl-add.1")).expect("a page");
    assert!(page.contains(".SH EXAMPLES"), "{page}");
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef balancerctl"), ("fish", "complete -c balancerctl")]
    {
        let output = balancerctl(&format!("completions {shell}")).output().expect("balancerctl runs");
        assert_done(&output);
        assert!(text(&output.stdout).contains(word), "{shell}");
    }
}

#[test]
fn help_teaches() {
    let output = balancerctl("--help").output().expect("balancerctl runs");
    assert_done(&output);
    for word in ["Examples:", "balancerctl demo", "BALANCER_SOCKET", "Exit codes:"] {
        assert!(text(&output.stdout).contains(word), "{word} in {}", text(&output.stdout));
    }
}
