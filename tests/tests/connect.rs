//! Servers that do not answer: the next one of the ring gets the client, and what failed is counted.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage};
use tests::{Balancer, Server, Setup, loopback, wait};
use wire::control::{Change, PoolValues};
use wire::health::{CheckKind, OnDown};
use wire::report::{EndReason, HealthState};

/// A number of a client whose server is the wanted one.
fn client_of(balancer: &Balancer, wanted: SocketAddr) -> u32 {
    (0..).find(|number| balancer.explain(loopback::client(*number)).server == Some(wanted)).expect("it has clients")
}

#[test]
fn a_refusing_server_leaves_its_clients_to_the_next_of_the_ring() {
    let refusing = Server::refusing();
    let servers = Server::several(3);
    let balancer = Balancer::of(servers.iter().chain([&refusing]));
    let mut failures = 0;
    for number in 0..200 {
        let report = balancer.explain(loopback::client(number));
        let its = report.server == Some(refusing.address());
        let expected = if its { report.next[0] } else { report.server.expect("a server") };
        assert_eq!(balancer.client_number(number).server(), expected, "client {number}");
        failures += u64::from(its);
    }
    assert!(failures > 0);
    let listed = balancer.listed(refusing.address());
    assert_eq!((listed.connect_failures, listed.connect_timeouts, listed.total), (failures, 0, 0));
    assert_eq!(balancer.service().total, 200);
}

#[test]
fn a_server_that_comes_back_gets_its_own_clients_again() {
    let servers = Server::several(4);
    let balancer = Balancer::of(&servers);
    let before = balancer.served(0..100);
    servers[1].die();
    let meanwhile = balancer.served(0..100);
    for (old, new) in before.iter().zip(&meanwhile) {
        assert_eq!(old == new, *old != servers[1].address(), "{old} and {new}");
        assert_ne!(*new, servers[1].address());
    }
    servers[1].listen();
    // It may have been left out for a while, since so many connects failed in a row.
    wait::until("it is up", || balancer.listed(servers[1].address()).health.state == HealthState::Up);
    assert_eq!(balancer.served(0..100), before);
}

#[test]
fn two_refuse_and_the_third_serves() {
    let [first, second] = [Server::refusing(), Server::refusing()];
    let serving = Server::start();
    let balancer = Balancer::of([&first, &second, &serving]);
    for number in 0..20 {
        assert_eq!(balancer.client_number(number).server(), serving.address());
    }
    assert_eq!(balancer.listed(serving.address()).total, 20);
}

#[test]
fn three_refuse_and_the_client_is_closed() {
    let refusing: Vec<Server> = (0..4).map(|_| Server::refusing()).collect();
    let balancer = Balancer::of(&refusing);
    // However often they fail, all are asked.
    let values = PoolValues { eject_failures: Some(0), ..PoolValues::default() };
    balancer.change(Change::SetPool { pool: "default".to_owned(), values }, false).expect("it is set");
    for number in 0..10 {
        balancer.client_number(number).assert_ended();
    }
    balancer.wait_for_ends(EndReason::ConnectFailed, 10);
    let failures: u64 = balancer.list().servers.iter().map(|server| server.connect_failures).sum();
    assert_eq!(failures, 30, "three tries each");
    assert!(balancer.list().servers.iter().all(|server| server.active == 0 && server.ended.is_empty()));
}

#[test]
fn the_only_server_refuses_and_the_client_is_closed() {
    let refusing = Server::refusing();
    let balancer = Balancer::of([&refusing]);
    balancer.client().assert_ended();
    balancer.wait_for_ends(EndReason::ConnectFailed, 1);
    assert_eq!(balancer.listed(refusing.address()).connect_failures, 1, "nobody is tried twice");
    refusing.listen();
    assert_eq!(balancer.client().server(), refusing.address());
}

/// A listener whose queue is full and that accepts nobody: the kernel drops what else comes, so a connect to it is
/// never answered.
struct Full {
    listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Full {
    fn new() -> Self {
        let descriptor =
            socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        let address = SocketAddr::new(loopback::fresh(), 0);
        socket::bind(descriptor.as_raw_fd(), &SockaddrStorage::from(address)).expect("bound");
        socket::listen(&descriptor, Backlog::new(0).expect("a number")).expect("it listens");
        let listener = TcpListener::from(descriptor);
        let address = listener.local_addr().expect("an address");
        // A queue of length 0 holds one. Where a kernel is more generous, the next connect finds out.
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, std::time::Duration::from_millis(500)) {
            queued.push(stream);
            assert!(queued.len() < 100, "the queue is never full");
        }
        Self { listener, _queued: queued }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("an address")
    }
}

#[test]
fn a_connect_without_an_answer_times_out_and_the_next_server_is_taken() {
    let (full, server) = (Full::new(), Server::start());
    let balancer = Setup::new().options("--connect-timeout 200ms").start();
    balancer.add_all([&server]);
    balancer.add(full.address());
    let number = client_of(&balancer, full.address());
    let client = balancer.client_number(number);
    client.send(b"hello");
    assert_eq!(client.server(), server.address());
    assert_eq!(client.receive(5), b"hello", "what it said meanwhile is there");
    let listed = balancer.listed(full.address());
    assert_eq!((listed.connect_failures, listed.connect_timeouts, listed.active), (0, 1, 0));
}

#[test]
fn nobody_answers_and_the_client_is_closed() {
    let full = Full::new();
    let balancer = Setup::new().options("--connect-timeout 200ms").start();
    balancer.add(full.address());
    balancer.client().assert_ended();
    balancer.wait_for_ends(EndReason::ConnectFailed, 1);
    assert_eq!(balancer.listed(full.address()).connect_timeouts, 1);
}

#[test]
fn a_session_that_still_connects_costs_no_time_and_ends_with_its_server() {
    let full = Full::new();
    let balancer = Setup::new().options("--connect-timeout 1h").start();
    balancer.add(full.address());
    let clients: Vec<_> = (0..5).map(|number| balancer.client_number(number)).collect();
    balancer.wait_for_sessions(5);
    balancer.assert_quiet();
    // A client that goes while it waits is noticed when there is a server for it, or when the time is over.
    assert_eq!(balancer.listed(full.address()).active, 5);
    assert_eq!(balancer.remove_now(full.address()).sessions, 5);
    clients.iter().for_each(tests::Client::assert_ended);
    balancer.wait_for_ends(EndReason::Removed, 5);
    wait::until("the server is gone", || balancer.list().servers.is_empty());
}

#[test]
fn a_client_that_resets_while_its_server_is_connected_gives_its_place_back_at_once() {
    let full = Full::new();
    // Later than any test waits.
    let balancer = Setup::new().options("--connect-timeout 10m").start();
    balancer.add(full.address());
    for words in [&b""[..], b"hello", &[7; 100_000]] {
        let client = balancer.client();
        client.stream().set_nonblocking(true).expect("set");
        let mut stream = client.stream();
        let _ = stream.write(words);
        balancer.wait_for_sessions(1);
        balancer.assert_quiet();
        client.reset();
        balancer.wait_for_sessions(0);
    }
    balancer.wait_for_ends(EndReason::ClientReset, 3);
    let listed = balancer.listed(full.address());
    assert_eq!(
        (listed.connect_failures, listed.connect_timeouts, listed.active),
        (0, 0, 0),
        "the server is not to blame"
    );
    // One that has only said its last may still want the answer.
    let client = balancer.client();
    client.send(b"hello");
    client.shut();
    balancer.wait_for_sessions(1);
    balancer.assert_quiet();
    assert_eq!(balancer.service().active, 1);
}

#[test]
fn a_client_of_a_server_that_is_removed_while_it_connects_goes_to_the_next() {
    let (full, server) = (Full::new(), Server::start());
    let balancer = Setup::new().options("--connect-timeout 2s").start();
    balancer.add_all([&server]);
    balancer.add(full.address());
    let client = balancer.client_number(client_of(&balancer, full.address()));
    balancer.wait_for_sessions(1);
    assert_eq!(balancer.remove(full.address()).sessions, 1);
    assert_eq!(client.server(), server.address());
    assert_eq!(client.exchange(b"x"), b"x");
    assert_eq!(balancer.list().servers.len(), 1, "nothing is left of the other");
}

#[test]
fn a_client_that_connects_to_a_server_which_is_closed_for_others_goes_to_the_next() {
    let (full, server) = (Full::new(), Server::start());
    let balancer = Setup::new().options("--connect-timeout 1h").start();
    balancer.add_all([&server]);
    balancer.add(full.address());
    let number = client_of(&balancer, full.address());
    let removed = balancer.client_number(number);
    balancer.wait_for_sessions(1);
    balancer.remove_now(full.address());
    assert_eq!(removed.server(), server.address());

    balancer.add(full.address());
    let down = balancer.client_number(number);
    balancer.wait_for_sessions(2);
    let values = PoolValues {
        check: Some(CheckKind::Tcp),
        check_interval_ms: Some(20),
        check_timeout_ms: Some(100),
        on_down: Some(OnDown::Close),
        ..PoolValues::default()
    };
    balancer.change(Change::SetPool { pool: "default".to_owned(), values }, false).expect("it is set");
    assert_eq!(down.server(), server.address());
    for client in [&removed, &down] {
        assert_eq!(client.exchange(b"x"), b"x");
    }
    let listed = balancer.listed(full.address());
    assert_eq!(
        (listed.active, listed.connect_failures, listed.connect_timeouts),
        (0, 0, 0),
        "no client has found it out"
    );
}
