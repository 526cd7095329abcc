//! At the limits: descriptors run out, and come back.

use nix::sys::signal::Signal;
use tests::process::{MOST_DESCRIPTORS, leave_descriptors, limit_descriptors};
use tests::{Balancer, Client, Server, Setup, process, wait};
use wire::report::EndReason;

/// With this limit of descriptors there may be [`SESSIONS`].
const DESCRIPTORS: u64 = 100;
const SESSIONS: u64 = 17;

fn limited(servers: &[Server]) -> Balancer {
    let balancer = Setup::new().descriptors(DESCRIPTORS).start();
    balancer.add_all(servers);
    assert_eq!(balancer.status().session_limit, SESSIONS);
    balancer
}

#[test]
fn clients_above_the_limit_wait_and_are_served_when_others_leave() {
    let servers = Server::several(2);
    let balancer = limited(&servers);
    let descriptors = balancer.descriptors();
    let mut clients: Vec<Client> = (0..60).map(|number| balancer.client_number(number)).collect();
    balancer.wait_for_sessions(SESSIONS);
    assert!(!balancer.service().accepting);
    balancer.assert_quiet();
    let served = || servers.iter().map(Server::living).sum::<usize>() as u64;
    wait::until("the servers have their clients", || served() >= SESSIONS);
    assert_eq!(served(), SESSIONS, "the others wait");
    assert!(balancer.descriptors() as u64 <= DESCRIPTORS);
    balancer.wait_for_log("the session limit is reached");

    // Each client leaves when it was served. All of them are, though there is room for 17 of them at a time.
    for (number, client) in (0u32..).zip(clients.drain(..)) {
        let name = client.server();
        assert!(servers.iter().any(|server| server.address() == name));
        assert_eq!(client.exchange(&number.to_le_bytes()), number.to_le_bytes());
    }
    balancer.wait_for_ends(EndReason::ClientClosed, 60);
    wait::until("it accepts again", || balancer.service().accepting);
    wait::until("every descriptor is given back", || balancer.descriptors() <= descriptors);
    assert_eq!(balancer.service().accept_failures, 0, "the limit comes before the shortage");
}

#[test]
fn an_operator_gets_through_at_the_limit() {
    let servers = Server::several(1);
    let balancer = limited(&servers);
    let clients: Vec<Client> = (0..30).map(|number| balancer.client_number(number)).collect();
    balancer.wait_for_sessions(SESSIONS);
    // More connections than there are descriptors for, all of them silent.
    let silent: Vec<_> =
        (0..100).map(|_| std::os::unix::net::UnixStream::connect(balancer.socket()).expect("taken")).collect();
    assert_eq!(balancer.remove_now(servers[0].address()).sessions, SESSIONS);
    drop((clients, silent));
    wait::until("everybody is gone", || balancer.service().active == 0);
}

#[test]
fn the_limit_is_logged_when_it_is_reached_one_client_at_a_time() {
    let servers = Server::several(1);
    for descriptors in [DESCRIPTORS, DESCRIPTORS + 2] {
        let balancer = Setup::new().descriptors(descriptors).start();
        balancer.add_all(&servers);
        let limit = balancer.status().session_limit;
        let clients: Vec<Client> = (1..=limit)
            .map(|number| {
                let client = balancer.client();
                assert_eq!(client.server(), servers[0].address());
                balancer.wait_for_sessions(number);
                client
            })
            .collect();
        let _waiting = balancer.client();
        balancer.wait_for_log("the session limit is reached");
        drop(clients);
    }
}

#[test]
fn no_session_at_all_is_an_error_at_the_start() {
    let output = Setup::new().descriptors(64).run();
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("a limit of 64 descriptors allows no session"), "{said}");
}

#[test]
fn out_of_descriptors_before_the_limit_it_pauses_and_goes_on() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let before = balancer.client();
    assert_eq!(before.server(), server.address());
    // Nothing can be opened any more, not even by a control connection: the log tells, and later the counts.
    limit_descriptors(balancer.pid(), 0);
    let waiting: Vec<Client> = (0..10).map(|number| balancer.client_number(number)).collect();
    balancer.wait_for_log("a client could not be accepted");
    assert_eq!(before.exchange(b"x"), b"x", "who is there is served");
    let ticks = process::cpu_ticks(balancer.pid());
    wait::a_moment();
    let ticks = process::cpu_ticks(balancer.pid()) - ticks;
    assert!(ticks <= 20, "{ticks} ticks of a second: it spins");
    limit_descriptors(balancer.pid(), MOST_DESCRIPTORS);
    for client in &waiting {
        assert_eq!(client.server(), server.address(), "it waited and was not turned away");
    }
    let service = balancer.service();
    assert!(service.accept_failures > 0 && service.ended.is_empty(), "{service:?}");
}

#[test]
fn a_client_without_a_descriptor_for_its_server_is_closed_and_counted() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    // When this connection was answered twice, those before it are closed.
    let mut control = wire::Client::connect(balancer.socket()).expect("it listens");
    for _ in 0..2 {
        control.call(&wire::Request::Status).expect("it answers");
    }
    // One is left: it goes to the client, and there is none for the server.
    leave_descriptors(balancer.pid(), 1);
    balancer.client().assert_ended();
    limit_descriptors(balancer.pid(), MOST_DESCRIPTORS);
    balancer.wait_for_ends(EndReason::Shortage, 1);
    balancer.wait_for_log("short of descriptors, ports or memory");
    assert_eq!(balancer.client().server(), server.address());
}

#[test]
fn an_idle_balancer_does_nothing_while_sessions_are_open() {
    let servers = Server::several(3);
    let balancer = Balancer::of(&servers);
    let clients: Vec<Client> = (0..50).map(|number| balancer.client_number(number)).collect();
    for client in &clients {
        let name = client.server();
        assert!(servers.iter().any(|server| server.address() == name));
    }
    balancer.wait_for_sessions(50);
    balancer.assert_quiet();
}

#[test]
fn an_epoll_without_room_for_the_listener_is_a_pause_and_not_the_end() {
    let servers = Server::several(1);
    let mut balancer = limited(&servers);
    let name = servers[0].address();
    let mut clients: Vec<Client> = (0..SESSIONS as u32).map(|number| balancer.client_number(number)).collect();
    for client in &clients {
        assert_eq!(client.server(), name);
    }
    balancer.wait_for_sessions(SESSIONS);
    wait::until("the listener has left epoll", || !balancer.service().accepting);
    let waiting = balancer.client_number(SESSIONS as u32);

    let Some(mut tracer) = balancer.fail("epoll_ctl", "ENOSPC") else { return };
    drop(clients.pop());
    balancer.wait_for_log("epoll has no room for a listener");
    wait::until("the server is let go", || servers[0].living() as u64 == SESSIONS - 1);
    for client in &clients {
        assert_eq!(client.exchange(b"who is there is served"), b"who is there is served");
    }
    assert_eq!(balancer.has_ended(), None);
    tracer.signal(Signal::SIGINT);
    let _ = tracer.wait();
    assert_eq!(waiting.server(), name);
    assert_eq!(waiting.exchange(b"served at last"), b"served at last");
    balancer.wait_for_sessions(SESSIONS);
    drop((clients, waiting));
    wait::until("it accepts again", || balancer.service().accepting);
    assert_eq!(balancer.client().server(), name);
}
