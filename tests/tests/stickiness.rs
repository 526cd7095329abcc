//! Each client at the same server, whatever else changes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tests::balancer::{WAIT, remove};
use tests::{Balancer, Client, Server, Setup, loopback};

/// Clients enough that each of ten servers has some.
const CLIENTS: u32 = 300;

fn counted(served: &[SocketAddr]) -> BTreeMap<SocketAddr, usize> {
    let mut counts = BTreeMap::new();
    for server in served {
        *counts.entry(*server).or_default() += 1;
    }
    counts
}

#[test]
fn a_client_comes_to_the_same_server_again_as_explained() {
    let servers = Server::several(5);
    let balancer = Balancer::of(&servers);
    let first = balancer.served(0..CLIENTS);
    assert_eq!(counted(&first).len(), 5, "each has some of them");
    assert_eq!(balancer.served(0..CLIENTS), first);
    for (number, server) in (0..).zip(&first) {
        let report = balancer.explain(loopback::client(number));
        assert_eq!(report.server, Some(*server));
        assert!(report.next.len() == 2 && !report.next.contains(server), "{report:?}");
    }
}

#[test]
fn the_source_port_decides_nothing() {
    let servers = Server::several(8);
    let balancer = Balancer::of(&servers);
    let connections: Vec<Client> = (0..100).map(|_| balancer.client_number(7)).collect();
    let served: Vec<SocketAddr> = connections.iter().map(Client::server).collect();
    assert_eq!(counted(&served).len(), 1, "{served:?}");
}

#[test]
fn a_restart_moves_nobody() {
    let servers = Server::several(5);
    let mut balancer = Balancer::of(&servers);
    let (before, digest) = (balancer.served(0..CLIENTS), balancer.digest());
    balancer.restart();
    assert_eq!(balancer.digest(), digest);
    assert_eq!(balancer.served(0..CLIENTS), before);
}

#[test]
fn two_balancers_agree_whatever_the_order_of_their_servers() {
    let servers = Server::several(6);
    let (one, two) = (Balancer::of(&servers), Balancer::of(servers.iter().rev()));
    // A server that came and went leaves no trace.
    let passing = Server::start();
    two.add(passing.address());
    assert_ne!(one.digest(), two.digest());
    two.remove(passing.address());
    assert_eq!(one.digest(), two.digest());
    assert_eq!(one.served(0..CLIENTS), two.served(0..CLIENTS));
}

#[test]
fn another_number_of_points_is_another_ring_and_another_digest() {
    let servers = Server::several(6);
    let one = Balancer::of(&servers);
    let two = Setup::new().options("--points-per-weight 100").start();
    two.add_all(&servers);
    assert_ne!(one.digest(), two.digest());
}

#[test]
fn a_server_that_goes_moves_its_own_clients_and_nobody_else() {
    let servers = Server::several(5);
    let balancer = Balancer::of(&servers);
    let before = balancer.served(0..CLIENTS);
    let gone = servers[2].address();
    let successors: Vec<_> = (0..CLIENTS).map(|number| balancer.explain(loopback::client(number)).next[0]).collect();
    let report = balancer.remove(gone);
    let after = balancer.served(0..CLIENTS);
    let moved = before.iter().filter(|server| **server == gone).count();
    assert!(moved > 0);
    for ((number, (old, new)), successor) in before.iter().zip(&after).enumerate().zip(successors) {
        let expected = if *old == gone { successor } else { *old };
        assert_eq!(*new, expected, "client {number}");
    }
    assert!(report.moves.iter().all(|step| step.from == Some(gone)), "{report:?}");
    assert!((report.moved - 0.2).abs() < 0.1, "about a fifth: {}", report.moved);
    balancer.add(gone);
    assert_eq!(balancer.served(0..CLIENTS), before, "with it they come back");
}

#[test]
fn a_server_that_comes_takes_clients_for_itself_only() {
    let servers = Server::several(4);
    let balancer = Balancer::of(&servers);
    let before = balancer.served(0..CLIENTS);
    let new = Server::start();
    let report = balancer.add(new.address());
    let after = balancer.served(0..CLIENTS);
    let changed: Vec<_> = before.iter().zip(&after).filter(|(old, new)| old != new).collect();
    assert!(!changed.is_empty());
    assert!(changed.iter().all(|(_, to)| **to == new.address()), "{changed:?}");
    assert!(report.moves.iter().all(|step| step.to == Some(new.address())), "{report:?}");
}

#[test]
fn what_a_dry_run_says_is_what_happens() {
    let servers = Server::several(4);
    let balancer = Balancer::of(&servers);
    let (server, digest) = (servers[0].address(), balancer.digest());
    let change = remove(server, WAIT);
    let said = balancer.change(change.clone(), true).expect("it would be removed");
    assert!(said.dry_run);
    assert_eq!(balancer.digest(), digest, "nothing was changed");
    let done = balancer.change(change, false).expect("it is removed");
    assert_eq!((said.moved, said.moves, said.digest), (done.moved, done.moves, done.digest));
    assert_eq!(Some(balancer.digest()), done.digest);
}

#[test]
fn weight_gives_a_share_in_proportion() {
    let servers = Server::several(3);
    let balancer = Balancer::start();
    for (server, weight) in servers.iter().zip([1, 2, 0]) {
        balancer.add_weighted(server.address(), weight);
    }
    let counts = counted(&balancer.served(0..1000));
    let of = |server: &Server| counts.get(&server.address()).copied().unwrap_or_default();
    assert_eq!(of(&servers[2]), 0, "a server of weight 0 has no clients");
    // 1024 points of weight 1 put the share within some percent of a third; 1000 clients scatter by 15 around it.
    assert!((233..433).contains(&of(&servers[0])), "{counts:?}");
    let shares: f64 = balancer.list().servers.iter().map(|server| server.share).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");
}

#[test]
fn a_client_is_the_same_in_the_ipv6_form_of_its_address() {
    let servers = Server::several(8);
    let balancer = Balancer::of(&servers);
    for number in 0..50 {
        let std::net::IpAddr::V4(four) = loopback::client(number) else { panic!("clients are IPv4") };
        let six = balancer.explain(four.to_ipv6_mapped().into());
        assert_eq!(six, balancer.explain(four.into()));
    }
}

#[test]
fn with_many_servers_the_shares_stay_even() {
    let balancer = Balancer::start();
    for number in 0..100 {
        balancer.add(SocketAddr::new(loopback::client(number), 9));
    }
    let servers = balancer.list().servers;
    assert_eq!(servers.len(), 100);
    assert!(servers.iter().all(|server| (0.008..0.012).contains(&server.share)), "{servers:?}");
}
