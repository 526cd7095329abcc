//! Checks find out who is up before clients do, clients who fail tell of the rest, and nobody who could be served is
//! refused.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU16;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use tests::balancer::balancerctl;
use tests::program::Program;
use tests::programs::installed;
use tests::{Balancer, DatagramServer, Process, Server, loopback, namespace, wait};
use wire::control::{Change, PoolValues, ServerValues};
use wire::dns::{DnsCheck, RecordType};
use wire::health::{CheckKind, CheckText, HttpCheck, InitialHealth, OnDown, WhenAllDown};
use wire::report::{EndReason, HealthReport, HealthState, Skip};
use wire::settings::{AdminState, ServerSettings};

fn set_pool(balancer: &Balancer, values: PoolValues) {
    balancer.change(Change::SetPool { pool: "default".to_owned(), values }, false).expect("it is set");
}

fn set(balancer: &Balancer, server: &Server, values: ServerValues) {
    let change = Change::Set { pool: "default".to_owned(), server: server.address(), values };
    balancer.change(change, false).expect("it is set");
}

/// Checks often, and ejections out of the way.
fn often(kind: CheckKind) -> PoolValues {
    PoolValues {
        check: Some(kind),
        check_interval_ms: Some(20),
        check_timeout_ms: Some(500),
        eject_failures: Some(0),
        ..PoolValues::default()
    }
}

fn health(balancer: &Balancer, server: &Server) -> HealthReport {
    balancer.listed(server.address()).health
}

fn wait_for(balancer: &Balancer, server: &Server, state: HealthState) {
    wait::until(&format!("{} is {state}", server.address()), || health(balancer, server).state == state);
}

/// Waits until a server was checked so often more.
fn wait_for_checks(balancer: &Balancer, server: &Server, count: u64) {
    let checks = || {
        let health = health(balancer, server);
        health.passed + health.failed
    };
    let before = checks();
    wait::until("checks go on", || checks() >= before + count);
}

#[test]
fn a_server_that_stops_listening_is_known_before_a_client_comes() {
    let servers = Server::several(4);
    let balancer = Balancer::of(&servers);
    let before = balancer.served(0..100);
    set_pool(&balancer, often(CheckKind::Tcp));
    wait_for_checks(&balancer, &servers[1], 2);
    assert_eq!(health(&balancer, &servers[1]).last_check.expect("one").result, "connected");
    let staying = (0..).map(|number| balancer.client_number(number)).find(|it| it.server() == servers[1].address());
    let staying = staying.expect("it has clients");
    servers[1].refuse();
    wait_for(&balancer, &servers[1], HealthState::Down);
    let report = health(&balancer, &servers[1]);
    assert_eq!(report.reason.as_deref(), Some("connection refused"));
    assert!(report.failed >= 3 && !report.last_check.expect("one").passed);
    let meanwhile = balancer.served(0..100);
    for (old, new) in before.iter().zip(&meanwhile) {
        assert_eq!(old == new, *old != servers[1].address(), "{old} and {new}");
    }
    assert_eq!(balancer.listed(servers[1].address()).connect_failures, 0, "no client has met it");
    assert_eq!(staying.exchange(b"still here"), b"still here");
    servers[1].listen();
    wait_for(&balancer, &servers[1], HealthState::Up);
    assert_eq!(balancer.served(0..100), before, "exactly its own clients return");
    for words in ["server is down", "server is up"] {
        balancer.wait_for_log(words);
    }
    assert_eq!(balancer.log().matches("server is down").count(), 1, "one line for each change");
}

/// What `balancerctl events` says, behind the time of each line.
fn events(balancer: &Balancer, options: &str) -> Vec<String> {
    let output = balancer.ctl(&format!("events {options}"));
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let lines = text.lines().filter(|line| *line != "there was no event yet");
    lines.map(|line| line.split_once(' ').expect("a time").1.to_owned()).collect()
}

/// The same for programs: each line is an object.
fn event_values(text: &[u8]) -> Vec<Value> {
    let lines = std::str::from_utf8(text).expect("text").lines();
    lines.map(|line| serde_json::from_str(line).expect("an object in a line")).collect()
}

#[test]
fn each_change_is_an_event_that_others_can_take() {
    let servers = Server::several(2);
    let mut balancer = Balancer::of(&servers);
    set_pool(&balancer, often(CheckKind::Tcp));
    assert_eq!(balancer.ctl("events").stdout, b"there was no event yet\n");
    assert!(balancer.ctl("events --json").stdout.is_empty());
    let server = servers[1].address();
    let down = |number: u32| {
        let words = "from=up reason=\"connection refused\" up=1 of=2";
        format!("server is down number={number} pool=default server={server} {words}")
    };
    let up = |number: u32| format!("server is up number={number} pool=default server={server} from=down up=2 of=2");
    servers[1].refuse();
    wait::until("one event", || events(&balancer, "") == [down(1)]);
    servers[1].listen();
    wait::until("two events", || events(&balancer, "") == [down(1), up(2)]);
    assert_eq!(events(&balancer, "--since 1"), [up(2)]);
    assert_eq!(events(&balancer, "--since 2"), Vec::<String>::new());

    let said = event_values(&balancer.ctl("events --json").stdout);
    assert_eq!(said.len(), 2);
    let expected = [
        json!({"number": 1, "pool": "default", "server": server, "from": "up", "to": "down",
               "reason": "connection refused", "out_ms": null, "up": 1, "of": 2}),
        json!({"number": 2, "pool": "default", "server": server, "from": "down", "to": "up",
               "reason": null, "out_ms": null, "up": 2, "of": 2}),
    ];
    balancer.wait_for_log("server is up");
    let log = balancer.log();
    for (event, expected) in said.iter().zip(expected) {
        let mut rest = event.clone();
        let fields = rest.as_object_mut().expect("an object");
        let (time, started) = (fields.remove("time").expect("it has one"), fields.remove("started").expect("one"));
        assert_eq!(rest, expected);
        let words = format!("server is {}", event["to"].as_str().expect("text"));
        let line = log.lines().find(|line| line.contains(&words)).expect("it is in the log");
        let logged = line.split_once(' ').expect("a time").0;
        let (time, started) = (time.as_str().expect("text"), started.as_str().expect("text"));
        assert!(started < logged && logged <= time && time.len() == logged.len(), "{started}, {logged}, {time}");
    }

    let (told, faults) = (balancer.file("told"), balancer.file("faults"));
    let open = |path| fs::File::create(path).expect("a file");
    let mut follow = balancerctl("events --since 1 --follow --json");
    follow.arg("--socket").arg(balancer.socket()).stdin(Stdio::null()).stdout(open(&told)).stderr(open(&faults));
    let mut follow = Process::spawn(&mut follow);
    let numbers = || -> Vec<u64> {
        let values = event_values(&fs::read(&told).expect("it is there"));
        values.iter().filter_map(|event| event["number"].as_u64()).collect()
    };
    wait::until("it tells what has been", || numbers() == [2]);
    servers[1].refuse();
    wait::until("it tells what comes", || numbers() == [2, 3]);
    assert_eq!(events(&balancer, "--since 2"), [down(3)]);

    balancer.restart();
    assert_eq!(follow.wait().code(), Some(1));
    let fault = fs::read_to_string(&faults).expect("text");
    assert!(fault.ends_with("event 3 was the last that it told\n"), "{fault}");
    assert_eq!(event_values(&fs::read(&told).expect("it is there"))[2]["error"], "ended");
    let again = balancer.ctl("events --since 3000");
    let fault = String::from_utf8(again.stderr).expect("text");
    assert!(again.status.code() == Some(1) && fault.contains("there is no event 3000 yet"), "{fault}");
    wait::until("numbers begin again", || events(&balancer, "") == [down(1)]);
}

#[test]
fn sessions_of_a_server_that_goes_down_end_where_the_pool_says_so() {
    let servers = Server::several(2);
    let balancer = Balancer::of(&servers);
    set_pool(&balancer, PoolValues { on_down: Some(OnDown::Close), ..often(CheckKind::Tcp) });
    let clients: Vec<_> = (0..20).map(|number| balancer.client_number(number)).collect();
    let (its, others): (Vec<_>, Vec<_>) =
        clients.into_iter().partition(|client| client.server() == servers[0].address());
    assert!(!its.is_empty() && !others.is_empty());
    servers[0].refuse();
    balancer.wait_for_ends(EndReason::ServerDown, its.len() as u64);
    its.iter().for_each(tests::Client::assert_ended);
    for client in &others {
        assert_eq!(client.exchange(b"still here"), b"still here");
    }
}

/// A server that answers each connection with what the second value is made of as long as the flag is set.
fn answering(good: &'static [u8], bad: &'static [u8]) -> (Server, Arc<AtomicBool>) {
    let is_good = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&is_good);
    let server = Server::with(move |mut stream: &TcpStream, _: SocketAddr| {
        // The whole question, lest the answer be followed by a reset.
        let _ = stream.read(&mut [0; 1024])?;
        stream.write_all(if flag.load(Ordering::SeqCst) { good } else { bad })
    });
    (server, is_good)
}

#[test]
fn the_status_of_an_answer_decides() {
    let (server, is_good) =
        answering(b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n");
    let balancer = Balancer::of([&server]);
    set_pool(&balancer, often(CheckKind::Http(HttpCheck::default())));
    wait_for_checks(&balancer, &server, 3);
    assert_eq!(health(&balancer, &server).state, HealthState::Up);
    is_good.store(false, Ordering::SeqCst);
    wait_for(&balancer, &server, HealthState::Down);
    assert_eq!(health(&balancer, &server).reason.as_deref(), Some("status 503"));
    balancer.client().assert_ended();
    balancer.wait_for_ends(EndReason::NoServer, 1);
    is_good.store(true, Ordering::SeqCst);
    wait_for(&balancer, &server, HealthState::Up);
}

#[test]
fn what_is_expected_must_come() {
    let (server, is_good) = answering(b"noise and +PONG\r\n", b"-LOADING\r\n");
    let balancer = Balancer::of([&server]);
    set_pool(&balancer, often(CheckKind::Send { send: text("PING\r\n"), expect: text("+PONG") }));
    wait_for_checks(&balancer, &server, 3);
    assert_eq!(health(&balancer, &server).state, HealthState::Up);
    is_good.store(false, Ordering::SeqCst);
    wait_for(&balancer, &server, HealthState::Down);
    let reason = health(&balancer, &server).reason;
    assert_eq!(reason.as_deref(), Some("\"-LOADING\\r\\n\" came without what is expected"));
}

#[test]
fn who_accepts_and_says_nothing_or_never_stops_is_down() {
    let silent = Server::silent();
    let endless = Server::with(|mut stream: &TcpStream, _| {
        loop {
            stream.write_all(&[b'x'; 4096])?;
        }
    });
    let abrupt = Server::with(|stream: &TcpStream, _| {
        tests::client::reset(stream);
        Ok::<(), io::Error>(())
    });
    let balancer = Balancer::of([&silent, &endless, &abrupt]);
    set_pool(&balancer, PoolValues { check_timeout_ms: Some(50), ..often(CheckKind::Http(HttpCheck::default())) });
    for server in [&silent, &endless, &abrupt] {
        wait_for(&balancer, server, HealthState::Down);
        wait_for_checks(&balancer, server, 2);
    }
    let reason = health(&balancer, &endless).reason.expect("a reason");
    assert!(reason.contains("instead of HTTP"), "{reason}");
    set_pool(&balancer, PoolValues { check: Some(CheckKind::None), ..PoolValues::default() });
    wait_for(&balancer, &silent, HealthState::Up);
}

#[test]
fn a_new_server_serves_at_once_or_after_its_first_pass() {
    let first = Server::start();
    let balancer = Balancer::of([&first]);
    set_pool(&balancer, PoolValues { check_initial: Some(InitialHealth::Down), ..often(CheckKind::Tcp) });
    let late = Server::refusing();
    balancer.add(late.address());
    assert_eq!(health(&balancer, &late).state, HealthState::Down, "nothing has passed");
    assert!(balancer.served(0..50).iter().all(|server| *server == first.address()));
    wait_for_checks(&balancer, &late, 3);
    let skipped = balancer.explain(tests::loopback::client(1)).skipped;
    assert_eq!((skipped[0].server, skipped[0].reason), (late.address(), Skip::Down));
    late.listen();
    wait_for(&balancer, &late, HealthState::Up);
    let got: BTreeSet<_> = balancer.served(0..50).into_iter().collect();
    assert_eq!(got.len(), 2);
    assert_eq!(balancer.listed(late.address()).connect_failures, 0);
}

fn text(text: &str) -> CheckText {
    CheckText::new(text).expect("short")
}

/// Waits until the last check of a server passed or failed with these words.
fn wait_for_result(balancer: &Balancer, server: SocketAddr, expected: Result<&str, &str>) {
    wait::until(&format!("a check says {expected:?}"), || {
        let last = balancer.listed(server).health.last_check;
        last.is_some_and(|last| if last.passed { Ok(&*last.result) } else { Err(&*last.result) } == expected)
    });
}

/// Checks by datagrams, which do not wait for long.
fn often_by_datagrams(kind: CheckKind) -> PoolValues {
    PoolValues { check_timeout_ms: Some(100), ..often(kind) }
}

#[test]
fn a_server_of_datagrams_is_known_by_its_answers() {
    // The port of a server for connections is free for datagrams.
    let server = Server::start();
    let (address, balancer) = (server.address(), Balancer::of([&server]));
    let before = balancer.descriptors();
    let says = |answer: &'static [u8]| {
        DatagramServer::at(address, move |_, asked| {
            assert_eq!(asked, b"PING");
            vec![answer.to_vec()]
        })
    };
    let good = says(b"noise and +PONG");
    set_pool(&balancer, often_by_datagrams(CheckKind::Udp { send: text("PING"), expect: text("+PONG") }));
    wait_for_checks(&balancer, &server, 3);
    assert_eq!(health(&balancer, &server).state, HealthState::Up);
    wait_for_result(&balancer, address, Ok("the expected answer"));
    drop(good);
    wait_for(&balancer, &server, HealthState::Down);
    assert_eq!(health(&balancer, &server).reason.as_deref(), Some("connection refused"));
    let silent = DatagramServer::at(address, |_, _| Vec::new());
    wait_for_result(&balancer, address, Err("what is expected did not come within 100ms"));
    drop(silent);
    let wrong = says(b"-LOADING");
    wait_for_result(&balancer, address, Err("\"-LOADING\" came without what is expected"));
    assert_eq!(health(&balancer, &server).state, HealthState::Down);
    drop(wrong);
    let _good = says(b"+PONG");
    wait_for(&balancer, &server, HealthState::Up);
    assert_eq!(server.accepted(), 0, "no check connects");
    set_pool(&balancer, PoolValues { check: Some(CheckKind::None), ..PoolValues::default() });
    wait::until("nothing is left behind", || balancer.descriptors() <= before);
}

#[test]
fn silence_passes_where_no_datagram_is_expected_and_a_closed_port_does_not() {
    let server = Server::start();
    let (address, balancer) = (server.address(), Balancer::of([&server]));
    let before = balancer.descriptors();
    let silent = DatagramServer::at(address, |_, asked| {
        assert_eq!(asked, b"");
        Vec::new()
    });
    set_pool(&balancer, often_by_datagrams(CheckKind::Udp { send: text(""), expect: text("") }));
    wait_for_result(&balancer, address, Ok("no error within 100ms"));
    drop(silent);
    set_pool(&balancer, PoolValues { check_timeout_ms: Some(3_600_000), ..PoolValues::default() });
    wait_for(&balancer, &server, HealthState::Down);
    assert_eq!(health(&balancer, &server).reason.as_deref(), Some("connection refused"), "it waits for nothing");
    let _open = DatagramServer::at(address, |_, _| vec![Vec::new()]);
    wait_for(&balancer, &server, HealthState::Up);
    wait_for_result(&balancer, address, Ok("an answer"));
    set_pool(&balancer, PoolValues { check: Some(CheckKind::None), ..PoolValues::default() });
    wait::until("nothing is left behind", || balancer.descriptors() <= before);
}

#[test]
fn the_rcode_of_an_answer_decides_and_garbage_is_none() {
    let server = Server::start();
    let (address, balancer) = (server.address(), Balancer::of([&server]));
    let answering = |flags: [u8; 2]| {
        DatagramServer::at(address, move |_, asked| {
            let mut answer = asked.to_vec();
            answer[2..4].copy_from_slice(&flags);
            vec![answer]
        })
    };
    let noerror = answering([0x81, 0x80]);
    set_pool(&balancer, often_by_datagrams(CheckKind::Dns(DnsCheck::default())));
    wait_for_result(&balancer, address, Ok("rcode NOERROR"));
    drop(noerror);
    let servfail = answering([0x81, 0x82]);
    wait_for(&balancer, &server, HealthState::Down);
    wait_for_result(&balancer, address, Err("rcode SERVFAIL"));
    drop(servfail);
    let garbage = DatagramServer::at(address, |_, _| vec![b"\xff".repeat(11)]);
    let quoted = "\\xff".repeat(11);
    wait_for_result(&balancer, address, Err(&format!("\"{quoted}\" came instead of the answer: it ends too soon")));
    drop(garbage);
    let _nxdomain = answering([0x81, 0x83]);
    wait_for(&balancer, &server, HealthState::Up);
    wait_for_result(&balancer, address, Ok("rcode NXDOMAIN"));
}

#[test]
fn dnsmasq_is_up_as_long_as_it_answers_the_question() {
    let Some([dnsmasq]) = installed(["dnsmasq"]) else { return };
    let server = Program::start(5353, |address, _| {
        let mut command = Command::new(&dnsmasq);
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
        ]);
        command.args(["--log-facility=-", "--pid-file=", "--local=/example/", "--address=/www.example/192.0.2.1"]);
        // Whom it becomes if root runs this test.
        command.arg("--user=nobody");
        command.args([format!("--port={}", address.port()), format!("--listen-address={}", address.ip())]);
        command
    });
    let (address, balancer) = (server.address(), Balancer::start());
    balancer.add(address);
    let ask = |name: &str| {
        let dns = DnsCheck { name: name.to_owned(), records: RecordType::A };
        set_pool(&balancer, PoolValues { check_timeout_ms: Some(5_000), ..often(CheckKind::Dns(dns)) });
    };
    let wait_for = |state| wait::until("its health is another", || balancer.listed(address).health.state == state);
    ask("www.example");
    wait_for_result(&balancer, address, Ok("rcode NOERROR"));
    ask("nobody.example");
    wait_for_result(&balancer, address, Ok("rcode NXDOMAIN"));
    assert_eq!(balancer.listed(address).health.state, HealthState::Up);
    // It has nobody to ask for other names.
    ask(".");
    wait_for_result(&balancer, address, Err("rcode REFUSED"));
    wait_for(HealthState::Down);
    ask("www.example");
    wait_for(HealthState::Up);
    drop(server);
    wait_for(HealthState::Down);
    assert_eq!(balancer.listed(address).health.reason.as_deref(), Some("connection refused"));
}

#[test]
fn who_is_not_reached_is_down_though_no_answer_is_expected() {
    namespace::inside("who_is_not_reached_is_down_though_no_answer_is_expected", || {
        namespace::run("ip link add here type veth peer name there");
        namespace::run("ip link set here up");
        namespace::run("ip link set there up");
        namespace::run("ip address add 10.9.9.1/24 dev here");
        // That a neighbour does not answer is known after three questions, a second apart if nobody says something else.
        namespace::run("ip ntable change name arp_cache dev here retrans 20");
        let [gone, cut_off, ours] =
            ["10.9.9.2:53", "192.0.2.1:53", "127.0.0.1:40000"].map(|text| text.parse().expect("an address"));
        namespace::run("ip route add unreachable 192.0.2.0/24");
        let balancer = Balancer::start();
        for server in [gone, cut_off, ours] {
            balancer.add(server);
        }
        // Where there is one port alone, the check of that port begins there, and would hear what it says itself.
        namespace::set("ipv4/ip_local_port_range", "40000 40000");
        let kind = CheckKind::Udp { send: text("hello"), expect: text("") };
        set_pool(&balancer, PoolValues { check_timeout_ms: Some(10_000), check_interval_ms: Some(200), ..often(kind) });
        for (server, reason) in
            [(gone, "no route to host"), (cut_off, "no route to host"), (ours, "connection refused")]
        {
            wait::until("it is down", || balancer.listed(server).health.state == HealthState::Down);
            assert_eq!(balancer.listed(server).health.reason.as_deref(), Some(reason), "{server}");
        }
        namespace::set("ipv4/ip_local_port_range", "32768 60999");
    });
}

#[test]
fn a_server_of_datagrams_may_be_checked_by_connections_at_another_port() {
    let ip = loopback::fresh();
    let (elsewhere, there) = (Server::start_at(ip), loopback::free_at(ip));
    let _serving = DatagramServer::at(there, |_, _| Vec::new());
    let balancer = Balancer::start();
    balancer.add(there);
    let port = NonZeroU16::new(elsewhere.address().port());
    set_pool(&balancer, PoolValues { check_port: Some(port), ..often(CheckKind::Tcp) });
    wait_for_result(&balancer, there, Ok("connected"));
    elsewhere.refuse();
    wait::until("it is down", || balancer.listed(there).health.state == HealthState::Down);
}

#[test]
fn a_server_in_two_pools_is_checked_once_and_one_in_maintenance_not_at_all() {
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    let server = Server::with(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let balancer = Balancer::of([&server]);
    set_pool(&balancer, often(CheckKind::Tcp));
    let settings = balancer.list().settings;
    balancer.change(Change::AddPool { pool: "other".to_owned(), settings }, false).expect("made");
    let add = |pool: &str| Change::Add {
        pool: pool.to_owned(),
        server: server.address(),
        settings: ServerSettings::default(),
    };
    balancer.change(add("other"), false).expect("added");
    wait_for_checks(&balancer, &server, 10);
    let of_other = balancer.list_pool("other").servers.remove(0).health;
    assert!(of_other.passed >= 9, "its results are those of both: {of_other:?}");
    let both = health(&balancer, &server).passed + of_other.passed;
    assert!((accepted.load(Ordering::SeqCst) as u64) < both, "each connection was for both");

    set(&balancer, &server, ServerValues { state: Some(AdminState::Maintenance), ..ServerValues::default() });
    balancer
        .change(
            Change::Set {
                pool: "other".to_owned(),
                server: server.address(),
                values: ServerValues { state: Some(AdminState::Maintenance), ..ServerValues::default() },
            },
            false,
        )
        .expect("set");
    wait::until("the last check is over", || server.living() == 0);
    let before = server.accepted();
    balancer.assert_quiet();
    assert_eq!(server.accepted(), before);
}

#[test]
fn a_check_may_look_elsewhere() {
    let (serving, watching) = (Server::start(), Server::start());
    let balancer = Balancer::of([&serving]);
    let address = ServerValues { check_address: Some(Some(watching.address())), ..ServerValues::default() };
    set(&balancer, &serving, address);
    set_pool(&balancer, often(CheckKind::Tcp));
    wait_for_checks(&balancer, &serving, 2);
    assert!(watching.accepted() > 0 && serving.accepted() == 0);
    watching.refuse();
    wait_for(&balancer, &serving, HealthState::Down);
}

#[test]
fn when_all_are_down_all_are_used_if_the_pool_says_so_and_backups_come_first() {
    let servers = Server::several(2);
    let balancer = Balancer::of(&servers);
    let backup = Server::start();
    let change = Change::Add {
        pool: "default".to_owned(),
        server: backup.address(),
        settings: ServerSettings { backup: true, ..ServerSettings::default() },
    };
    balancer.change(change, false).expect("added");
    // What is checked is closed, while what serves is open: all are down, and all could serve.
    let closed = Server::refusing();
    set_pool(&balancer, PoolValues { when_all_down: Some(WhenAllDown::UseAll), ..often(CheckKind::Tcp) });
    let elsewhere = || ServerValues { check_address: Some(Some(closed.address())), ..ServerValues::default() };
    let got = || balancer.served(0..40).into_iter().collect::<BTreeSet<_>>();
    let both: BTreeSet<_> = servers.iter().map(Server::address).collect();
    assert_eq!(got(), both);
    for server in &servers {
        set(&balancer, server, elsewhere());
        wait_for(&balancer, server, HealthState::Down);
    }
    assert_eq!(got(), [backup.address()].into());
    set(&balancer, &backup, elsewhere());
    wait_for(&balancer, &backup, HealthState::Down);
    assert_eq!(got(), both, "all that are no backups");
    set_pool(&balancer, PoolValues { when_all_down: Some(WhenAllDown::Refuse), ..PoolValues::default() });
    balancer.client().assert_ended();
}

#[test]
fn a_server_that_resets_its_clients_is_left_out_for_a_while() {
    let resetting = Server::with(|mut stream: &TcpStream, _| {
        stream.read_exact(&mut [0])?;
        tests::client::reset(stream);
        Ok::<(), io::Error>(())
    });
    let servers = Server::several(3);
    let balancer = Balancer::of(servers.iter().chain([&resetting]));
    set_pool(
        &balancer,
        PoolValues { eject_time_ms: Some(3_600_000), eject_max_time_ms: Some(3_600_000), ..PoolValues::default() },
    );
    let its: Vec<u32> = (0..)
        .filter(|number| balancer.explain(tests::loopback::client(*number)).server == Some(resetting.address()))
        .take(6)
        .collect();
    for number in &its[..5] {
        let client = balancer.client_number(*number);
        client.send(b"hello");
        client.assert_ended();
    }
    wait_for(&balancer, &resetting, HealthState::Ejected);
    let report = health(&balancer, &resetting);
    assert_eq!((report.ejections, report.reason.as_deref()), (1, Some("5 resets before the first byte in a row")));
    let explained = balancer.explain(tests::loopback::client(its[5]));
    assert!(explained.skipped.iter().any(|skipped| skipped.reason == Skip::Ejected), "{explained:?}");
    assert_eq!(balancer.client_number(its[5]).server(), explained.server.expect("another"));
    balancer.wait_for_log("server is ejected");
    let [event] = &event_values(&balancer.ctl("events --json").stdout)[..] else { panic!("one event") };
    assert_eq!(
        [&event["from"], &event["to"], &event["reason"], &event["out_ms"], &event["up"], &event["of"]],
        [&json!("up"), &json!("ejected"), &json!(report.reason), &json!(3_600_000), &json!(3), &json!(4)]
    );
}

#[test]
fn a_server_that_comes_and_goes_all_the_time_costs_no_client() {
    let servers = Server::several(3);
    let balancer = Balancer::of(&servers);
    set_pool(&balancer, PoolValues { eject_failures: Some(3), eject_time_ms: Some(10), ..often(CheckKind::Tcp) });
    let before = balancer.descriptors();
    for round in 0..20 {
        if round % 2 == 0 {
            servers[0].refuse();
        } else {
            servers[0].listen();
        }
        for number in 0..20 {
            assert_ne!(balancer.client_number(number).server(), balancer.address());
        }
        wait_for_checks(&balancer, &servers[0], 1);
    }
    assert_eq!(balancer.ended(EndReason::ConnectFailed) + balancer.ended(EndReason::NoServer), 0);
    set_pool(&balancer, PoolValues { check: Some(CheckKind::None), ..PoolValues::default() });
    wait::until("nothing is left behind", || balancer.descriptors() <= before);
}

#[test]
fn checks_of_many_dead_servers_leave_no_descriptor_and_hurt_nobody() {
    let alive = Server::start();
    let balancer = Balancer::of([&alive]);
    let before = balancer.descriptors();
    let dead: Vec<Server> = (0..100).map(|_| Server::refusing()).collect();
    set_pool(&balancer, often(CheckKind::Tcp));
    balancer.add_all(&dead);
    wait::until("all are known to be down", || {
        balancer.list().servers.iter().filter(|row| row.health.state == HealthState::Down).count() == 100
    });
    assert!(balancer.served(0..100).iter().all(|server| *server == alive.address()));
    assert_eq!(balancer.list().servers.iter().map(|row| row.connect_failures).sum::<u64>(), 0);
    for server in &dead {
        balancer.remove_now(server.address());
    }
    set_pool(&balancer, PoolValues { check: Some(CheckKind::None), ..PoolValues::default() });
    wait::until("nothing is left behind", || balancer.descriptors() <= before);
    balancer.assert_quiet();
}

#[test]
fn health_outlives_a_reload() {
    let servers = Server::several(2);
    let [one, two] = [servers[0].address(), servers[1].address()];
    let text = |weight: u32| {
        format!(
            "[service.default]\nlisten = \"LISTEN\"\npool = \"web\"\n[pool.web]\ncheck = \"tcp\"\ncheck_interval = \"20ms\"\n\
             servers = [{{ address = \"{one}\", weight = {weight} }}, {{ address = \"{two}\" }}]\n"
        )
    };
    let setup = tests::Setup::new();
    let listen = setup.address().to_string();
    let balancer = setup.config(&text(1).replace("LISTEN", &listen)).start();
    servers[0].refuse();
    let row = |address| {
        let rows = balancer.list_pool("web").servers;
        rows.into_iter().find(|row| row.server == address).expect("listed")
    };
    wait::until("it is down", || row(one).health.state == HealthState::Down);
    let before = row(one).health;
    balancer.configure(&text(3).replace("LISTEN", &balancer.address().to_string()));
    balancer.reload().expect("read");
    let after = row(one);
    assert_eq!((after.weight, after.health.state), (3, HealthState::Down));
    assert!(after.health.failed >= before.failed && after.health.since_ms >= before.since_ms);
    assert!(balancer.served(0..20).iter().all(|server| *server == two));
}
