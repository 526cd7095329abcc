//! How long connections last, where they come from and where they go on to, as services and pools say.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::{NonZeroU8, NonZeroU64};
use std::process::Command;
use std::sync::{Arc, Mutex};

use tests::questions::weight;
use tests::{Balancer, Client, DatagramServer, Server, wait};
use wire::connection::ClientSide;
use wire::control::{Change, PoolValues};
use wire::report::{DropReason, EndReason};
use wire::settings::ServiceSettings;

/// A second service on the pool `default`, whose clients' connections are so; where it listens.
fn service(balancer: &Balancer, client_side: ClientSide) -> SocketAddr {
    let listen = SocketAddr::new(balancer.address().ip(), 0);
    let settings = ServiceSettings { client_side, ..ServiceSettings::new(vec![listen], "default") };
    balancer.change(Change::AddService { service: "other".to_owned(), settings }, false).expect("added");
    balancer.service_named("other").addresses[0]
}

fn set_pool(balancer: &Balancer, values: PoolValues) {
    balancer.change(Change::SetPool { pool: "default".to_owned(), values }, false).expect("it is set");
}

fn wait_for_ends(balancer: &Balancer, reason: EndReason, count: u64) {
    let ended = || balancer.service_named("other").ended.get(&reason).copied().unwrap_or_default();
    wait::until(&format!("{count} end with {reason}"), || ended() == count);
}

fn milliseconds(count: u64) -> NonZeroU64 {
    NonZeroU64::new(count).expect("it is not 0")
}

#[test]
fn a_session_that_is_half_closed_ends_before_an_idle_one() {
    // The server goes on after the end of its client, and says nothing.
    let server = Server::with(|stream, name| {
        tests::server::say_name(stream, name)?;
        let _ = (&*stream).read_to_end(&mut Vec::new())?;
        tests::server::held(stream)
    });
    let balancer = Balancer::of([&server]);
    let side = ClientSide { half_closed_timeout_ms: milliseconds(150), ..ClientSide::default() };
    let address = service(&balancer, side);
    let (idle, half) = (Client::connect(address), Client::connect(address));
    assert_eq!((idle.server(), half.server()), (server.address(), server.address()));
    half.shut();
    wait_for_ends(&balancer, EndReason::HalfClosedTimeout, 1);
    half.assert_ended();
    idle.send(b"still here");
    assert_eq!(balancer.service_named("other").active, 1);
    wait::until("the server is let go", || server.living() == 1);
}

#[test]
fn the_time_of_a_half_closed_session_begins_anew_with_what_moves() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let side = ClientSide { half_closed_timeout_ms: milliseconds(3_600_000), ..ClientSide::default() };
    let client = Client::connect(service(&balancer, side));
    assert_eq!(client.server(), server.address());
    client.send(b"the last words");
    client.shut();
    assert_eq!(client.rest().expect("an orderly end"), b"the last words");
    wait_for_ends(&balancer, EndReason::ClientClosed, 1);
}

#[test]
fn a_service_has_an_idle_timeout_of_its_own() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let side = ClientSide { idle_timeout_ms: Some(milliseconds(100)), ..ClientSide::default() };
    let address = service(&balancer, side);
    let (idle, other) = (Client::connect(address), balancer.client());
    assert_eq!((idle.server(), other.server()), (server.address(), server.address()));
    wait_for_ends(&balancer, EndReason::IdleTimeout, 1);
    idle.assert_ended();
    assert_eq!(other.exchange(b"another service"), b"another service");
}

#[test]
fn a_session_ends_when_it_is_old_however_busy_it_is() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let side = ClientSide { max_age_ms: Some(milliseconds(300)), ..ClientSide::default() };
    let client = Client::connect(service(&balancer, side));
    assert_eq!(client.server(), server.address());
    wait::until("it ends", || {
        let mut stream = client.stream();
        std::io::Write::write_all(&mut stream, b"x").is_err() || stream.read(&mut [0; 64]).is_ok_and(|count| count == 0)
    });
    wait_for_ends(&balancer, EndReason::MaxAge, 1);
}

/// A listener that takes no connection: its queue is full.
fn deaf() -> (TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).expect("a number")).expect("it listens");
    let address = listener.local_addr().expect("bound");
    let fill = (0..3).filter_map(|_| TcpStream::connect_timeout(&address, std::time::Duration::from_millis(200)).ok());
    let queued = fill.collect();
    (listener, queued)
}

#[test]
fn a_pool_has_a_connect_timeout_and_tries_of_its_own() {
    let (deaf, _queued) = deaf();
    let deaf = deaf.local_addr().expect("bound");
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    balancer.add(deaf);
    let values = PoolValues {
        connect_timeout_ms: Some(Some(milliseconds(50))),
        eject_failures: Some(0),
        ..PoolValues::default()
    };
    set_pool(&balancer, values);
    let its: Vec<u32> = (0..)
        .filter(|number| balancer.explain(tests::loopback::client(*number)).server == Some(deaf))
        .take(2)
        .collect();
    assert_eq!(balancer.client_number(its[0]).server(), server.address());
    assert_eq!(balancer.listed(deaf).connect_timeouts, 1);
    set_pool(&balancer, PoolValues { tries: NonZeroU8::new(1), ..PoolValues::default() });
    balancer.client_number(its[1]).assert_ended();
    wait::until("it is counted", || balancer.ended(EndReason::ConnectFailed) == 1);
}

#[test]
fn connections_come_from_the_sources_in_turn() {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let peers = Arc::clone(&seen);
    let server = Server::with(move |stream, name| {
        peers.lock().expect("alive").insert(stream.peer_addr()?.ip());
        tests::server::echo(stream, name)
    });
    let balancer = Balancer::of([&server]);
    let sources: Vec<IpAddr> = (1..4).map(|last| IpAddr::from([127, 9, 9, last])).collect();
    set_pool(&balancer, PoolValues { source: Some(sources.clone()), ..PoolValues::default() });
    for number in 0..6 {
        assert_eq!(balancer.client_number(number).server(), server.address());
    }
    assert_eq!(*seen.lock().expect("alive"), sources.into_iter().collect::<BTreeSet<_>>());

    // One that this machine does not have is no shortage of ports, and no fault of the server.
    set_pool(&balancer, PoolValues { source: Some(vec![IpAddr::from([192, 0, 2, 1])]), ..PoolValues::default() });
    for _ in 0..6 {
        balancer.client().assert_ended();
    }
    wait::until("they are counted", || balancer.ended(EndReason::NoSource) == 6);
    let listed = balancer.listed(server.address());
    assert_eq!((listed.connect_failures, listed.health.ejections), (0, 0));
    assert_eq!((balancer.status().port_shortages, balancer.ended(EndReason::Shortage)), (0, 0));
    balancer.wait_for_log("source=192.0.2.1");
    assert!(balancer.log().contains("the pool's source is not an address of this machine"));
    assert!(!balancer.log().contains("no free source port"));
}

#[test]
fn a_source_that_is_not_here_is_named_by_checks_and_for_datagrams_too() {
    let server = DatagramServer::start();
    let keys = "source = \"192.0.2.1\"\ncheck = \"udp\"\ncheck_send = \"x\"\ncheck_interval = \"100ms\"";
    let balancer = Balancer::of_datagrams("", keys, [&server]);
    balancer.wait_for_log("a check was left out: the pool's source is not an address of this machine");
    let client = balancer.datagrams();
    client.send(b"x");
    wait::until("it is counted", || balancer.dropped(DropReason::NoSource) == 1);
    assert_eq!((balancer.dropped(DropReason::Shortage), balancer.status().port_shortages, server.count()), (0, 0, 0));
    let lines = balancer.log();
    let its = lines.lines().filter(|line| line.contains("source=192.0.2.1")).count();
    assert_eq!(its, 2, "one of checks and one of datagrams, since repeated ones are counted: {lines}");
}

#[test]
fn silent_peers_are_asked_whether_they_are_there_on_both_sides() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let values = PoolValues { connect_timeout_ms: Some(Some(milliseconds(100))), ..PoolValues::default() };
    set_pool(&balancer, values);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    let has_timer = |to: SocketAddr| {
        let filter = format!("( dst {to} )");
        let output = Command::new("ss").args(["-Htno", &filter]).output().expect("ss runs");
        String::from_utf8_lossy(&output.stdout).contains("keepalive")
    };
    wait::until("the server is asked, some time after the connect", || has_timer(server.address()));
    let own = client.stream().local_addr().expect("connected");
    assert!(has_timer(own), "the client from the beginning");
}

#[test]
fn times_of_connects_and_first_bytes_are_told() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    for number in 0..50 {
        assert_eq!(balancer.client_number(number).server(), server.address());
    }
    balancer.wait_for_sessions(0);
    let timing = balancer.listed(server.address()).timing;
    let (connect, first) = (timing.connect.expect("some"), timing.first_byte.expect("some"));
    assert_eq!((connect.count, first.count), (50, 50));
    assert!(connect.p50_us > 0 && connect.p50_us <= connect.p90_us && connect.p90_us <= connect.p99_us);
    let round_trip = timing.round_trip.expect("a sample");
    assert!((1..50).contains(&round_trip.count) && timing.segments > 0, "{timing:?}");
}

/// A server that reads what its client says, of which it keeps a copy, and then resets the connection or answers.
fn after_reading(count: usize, answers: bool) -> (Server, Arc<Mutex<Vec<Vec<u8>>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let copies = Arc::clone(&heard);
    let server = Server::with(move |mut stream: &TcpStream, name| {
        let mut words = vec![0; count];
        stream.read_exact(&mut words)?;
        copies.lock().expect("alive").push(words);
        if answers {
            return tests::server::echo(stream, name);
        }
        tests::client::reset(stream);
        Ok(())
    });
    (server, heard)
}

#[test]
fn what_a_client_said_goes_to_another_server_if_the_first_resets_before_it_answers() {
    let words: Vec<u8> = (0..30_000u32).map(|n| n as u8).collect();
    let (bad, heard_by_bad) = after_reading(words.len(), false);
    let (good, heard_by_good) = after_reading(words.len(), true);
    let balancer = Balancer::of([&bad, &good]);
    let its = || {
        let number =
            (0..).find(|number| balancer.explain(tests::loopback::client(*number)).server == Some(bad.address()));
        balancer.client_number(number.expect("it has clients"))
    };
    set_pool(&balancer, PoolValues { eject_failures: Some(0), ..PoolValues::default() });
    let lost = its();
    lost.send(&words);
    lost.assert_ended();
    balancer.wait_for_ends(EndReason::ServerReset, 1);

    set_pool(&balancer, PoolValues { replay: Some(64 * 1024), ..PoolValues::default() });
    let client = its();
    client.send(&words);
    assert_eq!(client.server(), good.address());
    assert_eq!(client.exchange(b"and on"), b"and on");
    assert_eq!(*heard_by_bad.lock().expect("alive"), [words.clone(), words.clone()]);
    assert_eq!(heard_by_good.lock().expect("alive").as_slice(), std::slice::from_ref(&words));
    assert_eq!(balancer.listed(bad.address()).replays, 1);

    // More than is kept is lost, as without it.
    set_pool(&balancer, PoolValues { replay: Some(20_000), ..PoolValues::default() });
    let lost = its();
    lost.send(&words);
    lost.assert_ended();
    balancer.wait_for_ends(EndReason::ServerReset, 2);
    drop(client);
    balancer.wait_for_sessions(0);
    assert!(balancer.list().servers.iter().all(|row| row.active == 0));
}

#[test]
fn the_end_of_a_client_goes_with_its_words_and_all_servers_may_break() {
    let (first, _) = after_reading(5, false);
    let (second, _) = after_reading(5, false);
    let balancer = Balancer::of([&first, &second]);
    let values = PoolValues { replay: Some(1000), eject_failures: Some(0), ..PoolValues::default() };
    set_pool(&balancer, values);
    let client = balancer.client();
    client.send(b"hello");
    client.shut();
    client.assert_ended();
    balancer.wait_for_ends(EndReason::ServerReset, 1);
    assert_eq!(balancer.list().servers.iter().map(|row| row.replays).sum::<u64>(), 2);

    let (third, heard) = after_reading(5, true);
    balancer.add(third.address());
    let client = balancer.client_number(7);
    client.send(b"hello");
    client.shut();
    let answer = String::from_utf8(client.rest().expect("an orderly end")).expect("text");
    assert_eq!(answer, format!("{}\n", third.address()));
    assert_eq!(heard.lock().expect("alive").len(), 1);
}

#[test]
fn a_server_that_ends_in_order_is_no_server_that_broke() {
    // It says at once that it has nothing to say, and resets when it has heard the client.
    let server = Server::with(|mut stream: &TcpStream, _| {
        stream.shutdown(Shutdown::Write)?;
        stream.read_exact(&mut [0; 5])?;
        tests::client::reset(stream);
        Ok(())
    });
    let balancer = Balancer::of([&server]);
    let (good, heard) = after_reading(5, true);
    balancer.add(good.address());
    balancer.set("default", good.address(), weight(0));
    set_pool(&balancer, PoolValues { replay: Some(1000), ..PoolValues::default() });
    let client = balancer.client();
    client.assert_ended();
    balancer.set("default", good.address(), weight(1));
    client.send(b"hello");
    balancer.wait_for_ends(EndReason::ServerReset, 1);
    assert_eq!(balancer.listed(server.address()).replays, 0, "its client was told that it has ended");
    assert!(heard.lock().expect("alive").is_empty());
}
