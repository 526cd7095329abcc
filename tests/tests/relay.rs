//! The relay: every byte comes to the one it was for, in order, and slow peers slow down only each other.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::mpsc;
use std::thread;

use tests::noise::Noise;
use tests::{Balancer, Client, SIZES, Server, Setup, loopback, process, server, wait};
use wire::report::EndReason;

#[test]
fn every_byte_comes_back_from_the_server_that_said_its_name() {
    let (server, mut noise) = (Server::start(), Noise::new());
    let balancer = Balancer::of([&server]);
    for size in SIZES {
        let (client, bytes) = (balancer.client(), noise.bytes(size));
        assert_eq!(client.server(), server.address());
        assert!(client.exchange(&bytes) == bytes, "{size} bytes");
        client.shut();
        assert_eq!(client.rest().expect("an end in order"), b"");
    }
    balancer.wait_for_ends(EndReason::ClientClosed, SIZES.len() as u64);
    let (bytes, names) = (SIZES.iter().sum::<usize>(), SIZES.len() * (server.address().to_string().len() + 1));
    let service = balancer.service();
    assert_eq!((service.bytes_in, service.bytes_out), (bytes as u64, (bytes + names) as u64));
}

#[test]
fn one_way_alone_is_exact_too() {
    let (got, all) = mpsc::channel();
    let receiver = Server::with(move |mut stream, _| {
        let mut bytes = Vec::new();
        let end = stream.read_to_end(&mut bytes);
        let _ = got.send((bytes, end.is_ok()));
        Ok(())
    });
    let inward = Balancer::of([&receiver]);
    let mut noise = Noise::new();
    for size in SIZES {
        let bytes = noise.bytes(size);
        inward.client().send(&bytes);
        let (received, in_order) = all.recv_timeout(wait::LIMIT).expect("a session");
        assert!(in_order && received == bytes, "{size} bytes in");
    }

    let sent = noise.bytes(SIZES.into_iter().max().expect("some"));
    let source = sent.clone();
    let sender = Server::with(move |mut stream, _| {
        let mut size = [0; 8];
        stream.read_exact(&mut size)?;
        stream.write_all(&source[..usize::from_le_bytes(size)])
    });
    let outward = Balancer::of([&sender]);
    for size in SIZES {
        let client = outward.client();
        client.send(&size.to_le_bytes());
        assert!(client.rest().expect("an end in order") == sent[..size], "{size} bytes out");
    }
}

#[test]
fn ten_thousand_questions_and_answers_on_one_connection() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    for number in 0..10_000u32 {
        client.send(&number.to_le_bytes());
        assert_eq!(client.receive(4), number.to_le_bytes());
    }
}

const BULK: usize = 100 * 1024 * 1024;
const PIECE: usize = 256 * 1024;

fn write_noise(mut to: impl Write, seed: u64) -> io::Result<()> {
    let mut noise = Noise::of(seed);
    (0..BULK / PIECE).try_for_each(|_| to.write_all(&noise.bytes(PIECE)))
}

fn read_noise(mut from: impl Read, seed: u64) -> io::Result<()> {
    let (mut noise, mut piece) = (Noise::of(seed), vec![0; PIECE]);
    for number in 0..BULK / PIECE {
        from.read_exact(&mut piece)?;
        assert!(piece == noise.bytes(PIECE), "piece {number} is as it was sent");
    }
    assert_eq!(from.read(&mut piece)?, 0, "nothing behind it");
    Ok(())
}

/// Waits until bytes have moved and then move no more, and checks that the balancer does nothing meanwhile.
fn wait_for_stall(balancer: &Balancer) {
    let moved = || {
        let service = balancer.service();
        service.bytes_in + service.bytes_out
    };
    let mut before = 0;
    wait::until("the slow reader stalls the transfer", || {
        let stalled = before > 1_000_000 && moved() == before;
        before = moved();
        wait::a_moment();
        stalled
    });
    assert!(before < BULK as u64 - 1, "most of it waits where it comes from");
    balancer.assert_quiet();
}

/// What a session may cost in the balancer, at the very most.
const MOST_MEMORY_KIB: u64 = 8 * 1024;

#[test]
fn a_slow_client_stalls_its_server_and_loses_nothing() {
    let seed = Noise::new().number();
    let server = Server::with(move |stream, _| write_noise(stream, seed));
    let balancer = Balancer::of([&server]);
    let memory = process::most_memory_kib(balancer.pid());
    let client = balancer.client();
    wait_for_stall(&balancer);
    read_noise(client.stream(), seed).expect("all of it");
    let grown = process::most_memory_kib(balancer.pid()) - memory;
    assert!(grown < MOST_MEMORY_KIB, "{grown} KiB for a session that stands still");
}

#[test]
fn a_slow_server_stalls_its_client_and_loses_nothing() {
    let seed = Noise::new().number();
    let (go, gate) = mpsc::channel::<()>();
    let (result, results) = mpsc::channel();
    let gate = std::sync::Mutex::new(gate);
    let server = Server::with(move |stream, _| {
        gate.lock().expect("one session").recv_timeout(wait::LIMIT).map_err(io::Error::other)?;
        let _ = result.send(read_noise(stream, seed));
        Ok(())
    });
    let balancer = Balancer::of([&server]);
    let memory = process::most_memory_kib(balancer.pid());
    let client = balancer.client();
    thread::scope(|scope| {
        scope.spawn(|| {
            write_noise(client.stream(), seed).expect("taken at last");
            client.shut();
        });
        wait_for_stall(&balancer);
        go.send(()).expect("the server waits");
        results.recv_timeout(wait::LIMIT).expect("it read").expect("all of it");
    });
    let grown = process::most_memory_kib(balancer.pid()) - memory;
    assert!(grown < MOST_MEMORY_KIB, "{grown} KiB for a session that stands still");
}

#[test]
fn a_stalled_session_does_not_hold_up_another() {
    let (stuck, server) = (Server::with(|stream, _| write_noise(stream, 1)), Server::start());
    let balancer = Balancer::of([&stuck, &server]);
    let of = |wanted: &Server| {
        (0..).find(|number| balancer.explain(loopback::client(*number)).server == Some(wanted.address()))
    };
    let _stalled: Vec<Client> = (0..4).map(|_| balancer.client_number(of(&stuck).expect("a client"))).collect();
    let client = balancer.client_number(of(&server).expect("a client"));
    assert_eq!(client.server(), server.address());
    let bytes = Noise::new().bytes(3_000_000);
    assert!(client.exchange(&bytes) == bytes);
}

#[test]
fn a_thousand_clients_at_once_each_have_their_own_bytes() {
    let servers = Server::several(10);
    let balancer = Balancer::of(&servers);
    balancer.wait_for_sessions(0);
    let descriptors = balancer.descriptors();
    let clients: Vec<Client> = (0..1000).map(|number| balancer.client_number(number)).collect();
    balancer.wait_for_sessions(1000);
    let mut noise = Noise::new();
    for (number, client) in (0..).zip(&clients) {
        let bytes = noise.bytes(1 + number as usize * 7);
        client.send(&bytes);
        assert_eq!(Some(client.server()), balancer.explain(loopback::client(number)).server);
        assert!(client.receive(bytes.len()) == bytes, "client {number}");
    }
    assert!(servers.iter().all(|server| server.living() > 0), "each has some of them");
    assert_eq!(servers.iter().map(Server::living).sum::<usize>(), 1000);
    assert_eq!(balancer.list().servers.iter().map(|server| server.active).sum::<u64>(), 1000);
    drop(clients);
    balancer.wait_for_ends(EndReason::ClientClosed, 1000);
    wait::until("every descriptor is given back", || balancer.descriptors() <= descriptors);
    balancer.assert_quiet();
}

#[test]
fn ipv6_from_end_to_end() {
    let localhost = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let server = Server::start_at(localhost);
    let balancer = Setup::new().listen(SocketAddr::new(localhost, 0)).start();
    balancer.add(server.address());
    let (client, bytes) = (balancer.client(), Noise::new().bytes(1_000_000));
    assert_eq!(client.server(), server.address());
    assert!(client.exchange(&bytes) == bytes);
    assert_eq!(balancer.explain(localhost).server, Some(server.address()));
}

#[test]
fn the_wildcard_of_ipv6_takes_both_families_and_knows_an_ipv4_client_by_its_own_address() {
    let mut servers = Server::several(3);
    servers.push(Server::start_at(IpAddr::V6(Ipv6Addr::LOCALHOST)));
    let balancer = Setup::new().listen("[::]:0".parse().expect("an address")).start();
    balancer.add_all(&servers);
    let port = balancer.address().port();
    for number in 0..100 {
        let (to, from) = (SocketAddr::new(loopback::fresh(), port), loopback::client(number));
        let server = Client::connect_from(from, to).server();
        assert_eq!(Some(server), balancer.explain(from).server);
    }
    let six = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let server = Client::connect(SocketAddr::new(six, port)).server();
    assert_eq!(Some(server), balancer.explain(six).server);
}

#[test]
fn a_client_that_speaks_before_its_server_is_connected_is_heard() {
    let server = Server::refusing();
    let other = Server::with(|mut stream, name| {
        let mut question = [0; 8];
        stream.read_exact(&mut question)?;
        stream.write_all(&question)?;
        server::say_name(stream, name)
    });
    let balancer = Balancer::of([&server, &other]);
    for number in 0..20 {
        let client = balancer.client_number(number);
        client.send(b"question");
        assert_eq!(client.receive(8), b"question");
        assert_eq!(client.server(), other.address());
    }
}
