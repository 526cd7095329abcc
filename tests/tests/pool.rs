//! Changes of the pool while clients are there.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use tests::balancer::{WAIT, add, remove};
use tests::noise::Noise;
use tests::{Balancer, Client, Server, loopback, wait};
use wire::Refusal;
use wire::control::Removal;
use wire::report::{EndReason, ServerState, Skip};

#[test]
fn servers_come_and_go_under_load_and_no_request_fails() {
    let (steady, changing) = (Server::several(2), Server::several(3));
    let balancer = Balancer::of(&steady);
    let (over, requests) = (AtomicBool::new(false), AtomicUsize::new(0));
    let known: Vec<_> = steady.iter().chain(&changing).map(Server::address).collect();
    thread::scope(|scope| {
        let stop = StopAtEnd(&over);
        for worker in 0..4u32 {
            let (balancer, over, requests, known) = (&balancer, &over, &requests, &known);
            scope.spawn(move || {
                for round in 0u32.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let client = balancer.client_number(worker * 5000 + round % 5000);
                    assert!(known.contains(&client.server()));
                    let bytes = [worker.to_le_bytes(), round.to_le_bytes()].concat();
                    client.send(&bytes);
                    client.shut();
                    assert_eq!(client.rest().expect("an end in order"), bytes);
                    requests.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for change in 0..50 {
            let (server, before) = (changing[change / 2 % 3].address(), requests.load(Ordering::Relaxed));
            if change % 2 == 0 {
                balancer.add(server)
            } else {
                balancer.remove(server)
            };
            wait::until("requests go on", || requests.load(Ordering::Relaxed) >= before + 20);
        }
        drop(stop);
    });
    balancer.wait_for_ends(EndReason::ClientClosed, requests.load(Ordering::Relaxed) as u64);
    assert!(changing.iter().all(|server| server.accepted() > 0), "each had some of them");
    assert_eq!(balancer.list().servers.len(), 2);
}

/// The load ends when the changes do, or panic.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_session_lives_on_when_its_server_is_removed() {
    let servers = Server::several(2);
    let balancer = Balancer::of(&servers);
    let clients: Vec<Client> = (0..20).map(|number| balancer.client_number(number)).collect();
    let gone = servers[0].address();
    let (staying, others): (Vec<_>, Vec<_>) = clients.into_iter().partition(|client| client.server() == gone);
    assert_eq!(balancer.remove(gone).sessions, staying.len() as u64);
    assert!(!staying.is_empty());

    let listed = balancer.listed(gone);
    assert_eq!((listed.state, listed.active), (ServerState::Leaving, staying.len() as u64));
    assert_eq!(balancer.status().servers, 1);
    let refusal = balancer.change(remove(gone, WAIT), false);
    assert_eq!(refusal, Err(Refusal::Leaving { server: gone, sessions: staying.len() as u64 }));
    assert!(balancer.served(0..20).iter().all(|server| *server == servers[1].address()), "no new ones");

    let bytes = Noise::new().bytes(500_000);
    for client in staying.iter().chain(&others) {
        assert!(client.exchange(&bytes) == bytes);
    }
    drop(staying);
    wait::until("it goes with its last session", || balancer.list().servers.len() == 1);
    for client in &others {
        assert_eq!(client.exchange(b"x"), b"x");
    }
}

#[test]
fn a_leaving_server_that_is_added_again_has_its_old_sessions_and_new_ones() {
    let servers = Server::several(2);
    let balancer = Balancer::of(&servers);
    let clients: Vec<Client> = (0..20).map(|number| balancer.client_number(number)).collect();
    let before: Vec<_> = clients.iter().map(Client::server).collect();
    assert!(before.contains(&servers[0].address()));
    balancer.remove(servers[0].address());
    balancer.add(servers[0].address());
    assert_eq!(balancer.listed(servers[0].address()).state, ServerState::Ready);
    assert_eq!(balancer.served(0..20), before);
    for client in &clients {
        assert_eq!(client.exchange(b"old"), b"old");
    }
}

#[test]
fn with_now_the_sessions_of_a_removed_server_end_and_no_others() {
    let servers = Server::several(2);
    let balancer = Balancer::of(&servers);
    let clients: Vec<Client> = (0..20).map(|number| balancer.client_number(number)).collect();
    let gone = servers[0].address();
    let (ending, others): (Vec<_>, Vec<_>) = clients.into_iter().partition(|client| client.server() == gone);
    assert_eq!(balancer.remove_now(gone).sessions, ending.len() as u64);
    ending.iter().for_each(Client::assert_ended);
    balancer.wait_for_ends(EndReason::Removed, ending.len() as u64);
    assert_eq!(balancer.list().servers.len(), 1);
    for client in &others {
        assert_eq!(client.exchange(b"x"), b"x");
    }
}

#[test]
fn a_leaving_server_can_be_removed_with_its_sessions() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    balancer.remove(server.address());
    assert_eq!(client.exchange(b"x"), b"x");
    assert_eq!(balancer.remove_now(server.address()).sessions, 1);
    client.assert_ended();
    wait::until("the server is gone", || balancer.list().servers.is_empty());
    let refusal = balancer.change(remove(server.address(), Removal::Now), false);
    assert_eq!(refusal, Err(Refusal::NotThere { server: server.address() }));
}

#[test]
fn without_a_server_a_client_is_closed_at_once_and_it_is_logged_once() {
    let balancer = Balancer::start();
    for number in 0..100 {
        balancer.client_number(number).assert_ended();
    }
    balancer.wait_for_ends(EndReason::NoServer, 100);
    assert_eq!(balancer.explain(loopback::client(0)).server, None);
    balancer.wait_for_log("no server is eligible: further clients were closed suppressed=99");
    let log = balancer.log();
    let lines = log.lines().filter(|line| line.contains("no server is eligible")).count();
    assert_eq!(lines, 2, "the first, and the number of the others: {log}");
    let server = Server::start();
    balancer.add(server.address());
    assert_eq!(balancer.client().server(), server.address(), "it goes on");
}

#[test]
fn a_server_of_weight_0_keeps_nobody_and_says_why() {
    let server = Server::start();
    let balancer = Balancer::start();
    balancer.add_weighted(server.address(), 0);
    balancer.client().assert_ended();
    balancer.wait_for_ends(EndReason::NoServer, 1);
    let skipped = balancer.explain(loopback::client(0)).skipped;
    assert_eq!(skipped.len(), 1);
    assert_eq!((skipped[0].server, skipped[0].reason), (server.address(), Skip::Drain));
    assert_eq!(server.accepted(), 0);
}

#[test]
fn many_change_the_pool_at_once_and_each_is_answered_for_its_own() {
    let mut balancer = Balancer::start();
    let servers: Vec<Server> = (0..16).map(|_| Server::refusing()).collect();
    thread::scope(|scope| {
        for server in &servers {
            let balancer = &balancer;
            scope.spawn(move || {
                for _ in 0..10 {
                    let added = balancer.add(server.address());
                    assert_eq!((added.change, added.unsaved), (add(server.address(), 1), None));
                    let removed = balancer.remove(server.address());
                    assert_eq!(removed.change, remove(server.address(), WAIT));
                }
                balancer.add(server.address());
            });
        }
    });
    assert_eq!(balancer.list().servers.len(), 16);
    let digest = balancer.digest();
    balancer.restart();
    assert_eq!(balancer.digest(), digest, "the last of it is what was saved");
}
