//! PROXY protocol headers: who a client is, from balancers before this one and to servers behind it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use tests::config::{pool, service};
use tests::program::{Program, run, text};
use tests::programs::installed;
use tests::proxies::{haproxy, nginx, nginx_stream};
use tests::server::{echo, say_name};
use tests::{Balancer, Client, Server, Setup, loopback, wait};
use wire::Change;
use wire::report::{EndReason, HealthState};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The client that plays the balancer before this one: headers are taken of it and of nobody else.
const PROXY: u32 = 1_000_000;

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// A line of version 1.
fn line(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let family = if source.is_ipv4() { 4 } else { 6 };
    let (from, to) = (source.ip(), destination.ip());
    format!("PROXY TCP{family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

/// A header of version 2 with this command and family.
fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).expect("short").to_be_bytes();
    [&SIGNATURE[..], &[0x20 | command, family], &length, block].concat()
}

/// A header of version 2 for TCP with these vectors behind its addresses.
fn tcp(source: SocketAddr, destination: SocketAddr, vectors: &[u8]) -> Vec<u8> {
    let octets = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let family = if source.is_ipv4() { 0x11 } else { 0x21 };
    binary(1, family, &[octets(source), octets(destination), ports, vectors.to_vec()].concat())
}

fn vector(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &u16::try_from(value.len()).expect("short").to_be_bytes(), value].concat()
}

/// CRC32c, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// With a vector of the checksum at the end.
fn checked(source: SocketAddr, destination: SocketAddr, vectors: &[u8]) -> Vec<u8> {
    let mut header = tcp(source, destination, &[vectors, &vector(3, &[0; 4])].concat());
    let (at, sum) = (header.len() - 4, crc32c(&header));
    header[at..].copy_from_slice(&sum.to_be_bytes());
    header
}

/// Reads a header of either version, byte by byte.
fn read_header(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let (mut header, mut byte) = (Vec::new(), [0]);
    while !header.ends_with(b"\n") || header.starts_with(b"\r") && header.len() < SIGNATURE.len() {
        stream.read_exact(&mut byte)?;
        header.push(byte[0]);
    }
    if header.starts_with(b"\r") {
        let mut fixed = [0; 4];
        stream.read_exact(&mut fixed)?;
        let mut block = vec![0; usize::from(u16::from_be_bytes([fixed[2], fixed[3]]))];
        stream.read_exact(&mut block)?;
        header.extend_from_slice(&fixed);
        header.extend_from_slice(&block);
    }
    Ok(header)
}

/// Servers that read a header, say their names and the header, and give back everything behind it.
fn told() -> Server {
    Server::with(|mut stream, name| {
        let header = read_header(stream)?;
        let mut said = String::new();
        header.iter().for_each(|byte| write!(said, "{byte:02x}").expect("text"));
        say_name(stream, name)?;
        stream.write_all(format!("{said}\n").as_bytes())?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                count => stream.write_all(&buffer[..count])?,
            }
        }
    })
}

/// The header that a server of [`told`] was given, after its name.
fn header_of(client: &Client) -> Vec<u8> {
    let mut text = Vec::new();
    loop {
        match client.receive(1)[0] {
            b'\n' => break,
            byte => text.push(byte),
        }
    }
    let digits = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("digits");
    text.chunks(2).map(digits).collect()
}

/// A balancer of one service `web` that believes [`PROXY`], with these further keys of the service and of the pool.
fn behind(keys: &str, of_pool: &str, servers: &[Server]) -> (Balancer, impl Fn(&str, &str) -> String + use<>) {
    let listen = loopback::free();
    let servers: Vec<SocketAddr> = servers.iter().map(Server::address).collect();
    let text = move |keys: &str, of_pool: &str| {
        let servers = servers.iter().map(|address| (*address, 1));
        service("web", listen, "web").trim_end().to_owned()
            + &format!("\n{keys}\n")
            + &tests::config::weighted("web", of_pool, servers)
    };
    let accept = format!("accept_proxy = [\"{}\"]\n", loopback::client(PROXY));
    let text = move |keys: &str, of_pool: &str| text(&format!("{accept}{keys}"), of_pool);
    (Setup::new().config(&text(keys, of_pool)).start(), text)
}

/// A connection of the balancer before this one, which says this.
fn relayed(balancer: &Balancer, said: &[u8]) -> Client {
    let client = balancer.client_number(PROXY);
    client.send(said);
    client
}

/// Waits until so many sessions have ended for this reason.
fn wait_for_ended(balancer: &Balancer, reason: EndReason, count: u64) {
    wait::until(&format!("{count} ended: {reason}"), || balancer.ended(reason) == count);
}

/// Descriptors that it has when nobody is there, and no control connection of before is on its way out.
fn idle_descriptors(balancer: &Balancer) -> usize {
    balancer.assert_quiet();
    balancer.descriptors()
}

#[test]
fn the_address_of_the_header_decides_the_server_and_is_the_clients() {
    let servers = Server::several(4);
    let (balancer, _) = behind("", "", &servers);
    let descriptors = idle_descriptors(&balancer);
    let mut used = Vec::new();
    for number in 0..40u16 {
        let sources = [address(&format!("192.0.2.{number}:1000")), address(&format!("[2001:db8::{number}]:1000"))];
        for source in sources {
            let destination = if source.is_ipv4() { address("198.51.100.1:80") } else { address("[2001:db8::]:80") };
            let its = balancer.explain_at("web", source.ip(), 0).server.expect("a server");
            for header in [line(source, destination), tcp(source, destination, b""), checked(source, destination, b"")]
            {
                let client = relayed(&balancer, &[&header[..], b"words"].concat());
                assert_eq!(client.server(), its, "{source}");
                assert_eq!(client.receive(5), b"words");
                let listed = balancer.sessions(Some(its)).remove(0);
                assert_eq!((listed.client, listed.connected, listed.bytes_in), (source, true, 5));
                client.shut();
                assert_eq!(client.rest().expect("an end"), b"");
                balancer.wait_for_sessions(0);
            }
            used.push(its);
        }
    }
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), 4, "not all at the server of the one address that they come from");
    balancer.wait_for_ends(EndReason::ClientClosed, 240);
    wait::until("its descriptors are back", || balancer.descriptors() <= descriptors);
}

#[test]
fn an_ipv4_mapped_address_is_the_ipv4_one() {
    let servers = Server::several(3);
    let (balancer, _) = behind("", "", &servers);
    for number in 0..10 {
        let plain = address(&format!("192.0.2.{number}:7"));
        let mapped = address(&format!("[::ffff:192.0.2.{number}]:7"));
        let its = balancer.explain_at("web", plain.ip(), 0).server.expect("a server");
        for header in [line(mapped, address("[::1]:80")), tcp(mapped, address("[::1]:80"), b"")] {
            let client = relayed(&balancer, &header);
            assert_eq!(client.server(), its);
            assert_eq!(balancer.sessions(None).remove(0).client, plain);
            drop(client);
            balancer.wait_for_sessions(0);
        }
    }
}

#[test]
fn a_connection_of_the_balancer_before_is_its_own() {
    let servers = Server::several(3);
    let (balancer, _) = behind("", "", &servers);
    let its = balancer.explain_at("web", loopback::client(PROXY), 0).server.expect("a server");
    let unix = [1; 216];
    let headers = [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 192.0.2.1 192.0.2.2 1 2\r\n".to_vec(),
        binary(0, 0x00, b""),
        binary(0, 0x11, &[1; 12]),
        binary(0, 0x00, &vector(0xe0, b"for nobody")),
        binary(1, 0x00, b""),
        binary(1, 0x31, &unix),
    ];
    for header in &headers {
        let client = relayed(&balancer, &[&header[..], b"words"].concat());
        assert_eq!(client.server(), its);
        assert_eq!(client.receive(5), b"words");
        let from = client.stream().local_addr().expect("connected");
        assert_eq!(balancer.sessions(None).remove(0).client, from);
        drop(client);
        balancer.wait_for_sessions(0);
    }
}

#[test]
fn vectors_are_skipped_and_a_wrong_checksum_is_none() {
    let servers = Server::several(2);
    let (balancer, _) = behind("", "", &servers);
    let (source, destination) = (address("192.0.2.1:1"), address("192.0.2.2:2"));
    let its = balancer.explain_at("web", source.ip(), 0).server.expect("a server");
    let vectors = [vector(1, b"h2"), vector(2, b"example.org"), vector(0x20, &[0; 700]), vector(4, b"")].concat();
    let header = checked(source, destination, &vectors);
    assert_eq!(relayed(&balancer, &header).server(), its);
    for at in [16, 28, header.len() - 1] {
        let mut wrong = header.clone();
        wrong[at] ^= 1;
        relayed(&balancer, &wrong).assert_ended();
    }
    wait_for_ended(&balancer, EndReason::BadHeader, 3);
}

#[test]
fn a_header_is_looked_for_where_it_is_configured_and_nowhere_else() {
    let servers = Server::several(3);
    let (balancer, text) = behind("", "", &servers);
    let header = line(address("192.0.2.1:1"), address("192.0.2.2:2"));
    for number in 0..10 {
        let client = balancer.client_number(number);
        client.send(&header);
        let its = balancer.explain_at("web", loopback::client(number), 0).server.expect("a server");
        assert_eq!(client.server(), its);
        assert_eq!(client.receive(header.len()), header, "they are the client's own words");
    }
    let accepted = || servers.iter().map(Server::accepted).sum::<usize>();
    assert_eq!(accepted(), 10);
    relayed(&balancer, b"GET / HTTP/1.1\r\n\r\n").assert_ended();
    wait_for_ended(&balancer, EndReason::BadHeader, 1);
    assert_eq!(accepted(), 10, "no server has seen it");
    balancer.wait_for_log("did not begin with the PROXY protocol header");

    // A reload says whom to believe, and disturbs nobody.
    let (stays, waits) = (relayed(&balancer, &header), balancer.client_number(PROXY));
    let its = stays.server();
    balancer.configure(&text("", "").replace("accept_proxy", "#"));
    balancer.reload().expect("it is taken");
    let client = relayed(&balancer, &header);
    assert_eq!(Some(client.server()), balancer.explain_at("web", loopback::client(PROXY), 0).server);
    assert_eq!(client.receive(header.len()), header);
    assert_eq!(stays.exchange(b"still"), b"still");
    // Who came before is asked for what it was to say then.
    waits.send(&header);
    assert_eq!(waits.server(), its);
    balancer.configure(&text("", ""));
    balancer.reload().expect("it is taken");
    assert_eq!(relayed(&balancer, &header).server(), its);
}

#[test]
fn a_header_may_be_split_at_every_byte() {
    let servers = Server::several(3);
    let (balancer, _) = behind("", "", &servers);
    let (four, six) = (address("192.0.2.9:65535"), address("[2001:db8::9]:1"));
    let to = |source: SocketAddr| if source.is_ipv4() { address("192.0.2.2:2") } else { address("[::1]:2") };
    for (header, source) in [
        (line(four, to(four)), four),
        (line(six, to(six)), six),
        (checked(four, to(four), &vector(5, b"id")), four),
        (tcp(six, to(six), b""), six),
    ] {
        let its = balancer.explain_at("web", source.ip(), 0).server.expect("a server");
        for at in 0..=header.len() {
            let client = balancer.client_number(PROXY);
            client.send(&header[..at]);
            // An answer comes from a turn in which that was read.
            let _ = balancer.status();
            client.send(&[&header[at..], b"words"].concat());
            assert_eq!(client.server(), its, "at {at}");
            assert_eq!(client.receive(5), b"words");
        }
        // And all of them in one connection.
        let client = balancer.client_number(PROXY);
        for byte in &header {
            client.send(&[*byte]);
            let _ = balancer.status();
        }
        client.send(b"words");
        assert_eq!(client.server(), its);
        assert_eq!(client.receive(5), b"words");
    }
}

#[test]
fn long_first_words_behind_a_header_come_whole() {
    let server = Server::start();
    let (balancer, _) = behind("", "", std::slice::from_ref(&server));
    let header = tcp(address("192.0.2.1:1"), address("192.0.2.2:2"), &vector(4, &[0; 3000]));
    for size in [0, 1, 1000, 1065, 1066, 4096, 100_000, 2_000_000] {
        let words = tests::noise::Noise::new().bytes(size);
        let client = balancer.client_number(PROXY);
        let all = [&header[..], &words].concat();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                client.send(&all);
                client.shut();
            });
            assert_eq!(client.server(), server.address());
            assert!(client.rest().expect("an end") == words, "{size} bytes");
        });
    }
}

#[test]
fn what_is_truncated_or_too_long_or_none_is_closed_and_counted() {
    let server = Server::start();
    let (balancer, _) = behind("", "", std::slice::from_ref(&server));
    let descriptors = idle_descriptors(&balancer);
    let header = checked(address("192.0.2.1:1"), address("192.0.2.2:2"), b"");
    let mut bad = 0;
    for truncated in [&header[..1], &header[..12], &header[..16], &header[..header.len() - 1], b"PROXY TCP4 1.1.1.1"] {
        let client = relayed(&balancer, truncated);
        client.shut();
        client.assert_ended();
        bad += 1;
    }
    let mut huge = SIGNATURE.to_vec();
    huge.extend([0x21, 0x11, 0xff, 0xff]);
    for wrong in [
        // They are closed at once, without their end.
        [b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat(),
        huge,
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 99999\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n".to_vec(),
        binary(2, 0x11, &[0; 12]),
        binary(1, 0x11, &[0; 11]),
        binary(1, 0x41, &[0; 12]),
        tcp(address("192.0.2.1:1"), address("192.0.2.2:2"), b"\x01\xff"),
        vec![0; 100_000],
    ] {
        let client = balancer.client_number(PROXY);
        // It may be closed while it is being said.
        let _ = client.stream().write_all(&wrong);
        client.assert_ended();
        bad += 1;
    }
    wait_for_ended(&balancer, EndReason::BadHeader, bad);
    // Those who only look whether somebody listens have done nothing wrong, and those who reset have reset.
    drop(balancer.client_number(PROXY));
    wait_for_ended(&balancer, EndReason::ClientClosed, 1);
    let client = relayed(&balancer, b"PROXY");
    wait::until("it waits", || balancer.sessions(None).len() == 1);
    client.reset();
    wait_for_ended(&balancer, EndReason::ClientReset, 1);
    assert_eq!((server.accepted(), balancer.service().active), (0, 0));
    wait::until("its descriptors are back", || balancer.descriptors() <= descriptors);
    let table = String::from_utf8(balancer.ctl("service list").stdout).expect("text");
    assert!(table.contains(&format!(" {bad}\n")) && table.contains("PROXY header of"), "{table}");
}

#[test]
fn a_header_that_does_not_come_in_time_is_not_waited_for() {
    let server = Server::start();
    let (balancer, _) = behind("proxy_timeout = \"300ms\"", "", std::slice::from_ref(&server));
    let silent = balancer.client_number(PROXY);
    silent.assert_ended();
    wait_for_ended(&balancer, EndReason::HeaderTimeout, 1);
    // Who says a little now and then has no more time than others: it would take as long as its bytes.
    let slow = balancer.client_number(PROXY);
    slow.send(b"PROXY UNKNOWN ");
    let mut sent = 0;
    wait::until("it is closed", || {
        sent += 1;
        assert!(sent < 90, "a line has no more bytes");
        let _ = slow.stream().write_all(b"x");
        wait::a_moment();
        balancer.ended(EndReason::HeaderTimeout) == 2
    });
    slow.assert_ended();
    assert_eq!(server.accepted(), 0);
    assert_eq!(relayed(&balancer, &line(address("192.0.2.1:1"), address("192.0.2.2:2"))).server(), server.address());
    balancer.wait_for_sessions(0);
    balancer.assert_quiet();
}

#[test]
fn lists_and_limits_mean_the_client_of_the_header() {
    let server = Server::start();
    let keys = "deny = [\"192.0.2.0/24\"]\nsessions_per_client = 2";
    let (balancer, text) = behind(keys, "", std::slice::from_ref(&server));
    let from = |source: &str| relayed(&balancer, &line(address(source), address("192.0.2.2:2")));
    from("192.0.2.7:1").assert_ended();
    wait_for_ended(&balancer, EndReason::Denied, 1);
    let clients = [from("198.51.100.1:1"), from("198.51.100.1:2"), from("198.51.100.2:1")];
    for client in &clients {
        assert_eq!(client.server(), server.address());
    }
    from("198.51.100.1:3").assert_ended();
    wait_for_ended(&balancer, EndReason::ClientLimit, 1);
    // Nothing of it is the balancer's before.
    let its_own = [relayed(&balancer, b"PROXY UNKNOWN\r\n"), relayed(&balancer, b"PROXY UNKNOWN\r\n")];
    for client in &its_own {
        assert_eq!(client.server(), server.address());
    }
    relayed(&balancer, b"PROXY UNKNOWN\r\n").assert_ended();
    let explained = balancer.explain_at("web", address("192.0.2.7:1").ip(), 0);
    assert_eq!(explained.refused, Some(EndReason::Denied));
    // Those that a reload denies are ended by what their headers said.
    balancer.configure(&text("deny = [\"198.51.100.2\"]", ""));
    balancer.reload().expect("it is taken");
    clients[2].assert_ended();
    for client in clients[..2].iter().chain(&its_own) {
        assert_eq!(client.exchange(b"stays"), b"stays");
    }
}

#[test]
fn those_who_wait_are_listed_and_can_be_ended() {
    let server = Server::start();
    let (balancer, _) = behind("proxy_timeout = \"1h\"", "", std::slice::from_ref(&server));
    let header = line(address("192.0.2.1:1"), address("192.0.2.2:2"));
    let waiting = [relayed(&balancer, b"PROXY "), relayed(&balancer, b"")];
    balancer.wait_for_sessions(2);
    let served = relayed(&balancer, &header);
    assert_eq!(served.server(), server.address());
    wait::until("all are listed", || balancer.sessions(None).len() == 3);
    let listed = balancer.sessions(None);
    for client in &waiting {
        let from = client.stream().local_addr().expect("connected");
        let session = listed.iter().find(|session| session.client == from).expect("it is listed");
        assert_eq!((session.server, session.connected, session.pool.as_str()), (None, false, "web"));
    }
    assert_eq!(balancer.sessions(Some(server.address())).len(), 1);
    let table = String::from_utf8(balancer.ctl("sessions").stdout).expect("text");
    assert_eq!(table.matches("waiting for its header").count(), 2, "{table}");
    balancer.assert_quiet();

    let first = waiting[0].stream().local_addr().expect("connected");
    let number = listed.iter().find(|session| session.client == first).expect("it is listed").session;
    let output = balancer.ctl(&format!("kill {number}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    waiting[0].assert_ended();
    wait_for_ended(&balancer, EndReason::Killed, 1);
    assert_eq!(served.exchange(b"x"), b"x");
    assert!(!balancer.ctl(&format!("kill {number}")).status.success(), "it is gone");
    let numbers = || balancer.sessions(None).into_iter().map(|session| session.session).collect::<BTreeSet<_>>();
    let before = numbers();
    waiting[1].send(&header);
    assert_eq!(waiting[1].server(), server.address());
    assert_eq!(numbers(), before, "who is introduced keeps the number");
}

#[test]
fn those_who_wait_outlive_their_service_and_are_waited_for_at_the_end() {
    let server = Server::start();
    let (mut balancer, _) = behind("proxy_timeout = \"1h\"", "", std::slice::from_ref(&server));
    let header = line(address("192.0.2.1:1"), address("192.0.2.2:2"));
    let late = [relayed(&balancer, b"PROXY "), relayed(&balancer, b"PROXY "), relayed(&balancer, b"PROXY ")];
    balancer.wait_for_sessions(3);
    balancer.change(Change::RemoveService { service: "web".to_owned() }, false).expect("it is removed");
    late[0].send(&header[6..]);
    assert_eq!(late[0].server(), server.address());
    balancer.signal(Signal::SIGTERM);
    balancer.wait_for_log("stopping");
    late[1].send(&header[6..]);
    assert_eq!(late[1].server(), server.address());
    for client in &late[..2] {
        client.shut();
        assert_eq!(client.rest().expect("an end"), b"");
    }
    assert_eq!(balancer.has_ended(), None, "one is left");
    balancer.signal(Signal::SIGTERM);
    assert!(balancer.wait_for_end().success());
    late[2].assert_ended();
}

#[test]
fn those_who_say_nothing_keep_nobody_out() {
    let server = Server::start();
    let (one, two) = (loopback::free(), loopback::free());
    let accept = format!("accept_proxy = \"{}\"\nproxy_timeout = \"1h\"\n[pool", loopback::client(PROXY));
    let text = service("two", two, "web") + &service("one", one, "web") + &pool("web", "", [&server]);
    let balancer = Setup::new().config(&text.replace("[pool", &accept)).descriptors(400).start();
    let limit = balancer.status().session_limit;
    let descriptors = idle_descriptors(&balancer);
    let silent: Vec<Client> = (0..1000).map(|_| Client::connect_from(loopback::client(PROXY), one)).collect();
    let most = limit / 4;
    wait::until("the first have gone", || balancer.ended_at("one", EndReason::HeaderTimeout) == 1000 - most);
    assert_eq!(balancer.service_named("one").active, most);
    balancer.assert_quiet();
    let header = line(address("192.0.2.1:1"), address("192.0.2.2:2"));
    for number in 0..20 {
        assert_eq!(Client::connect_from(loopback::client(number), two).server(), server.address());
        assert_eq!(Client::connect_from(loopback::client(number), one).server(), server.address());
        let client = Client::connect_from(loopback::client(PROXY), one);
        client.send(&header);
        assert_eq!(client.server(), server.address(), "nor one that says who it is");
    }
    drop(silent);
    balancer.wait_for_all_sessions(0);
    wait::until("its descriptors are back", || balancer.descriptors() <= descriptors);
}

#[test]
fn a_server_gets_the_header_first_whether_the_client_speaks_or_not() {
    let server = told();
    let listen = loopback::free();
    let text = |keys: &str| service("web", listen, "web") + &pool("web", keys, [&server]);
    let balancer = Setup::new().config(&text("send_proxy = \"v1\"")).start();
    let reread = |keys: &str| {
        balancer.configure(&text(keys));
        balancer.reload().expect("it is taken");
    };
    let stays = balancer.client_number(1);
    assert_eq!(stays.server(), server.address());
    let mut bytes_in = 0;
    for (keys, is_line) in [("send_proxy = \"v1\"", true), ("send_proxy = \"v2\"", false)] {
        reread(keys);
        for words in [&b""[..], b"first words", &[7; 100_000]] {
            let client = balancer.client_number(2);
            if !words.is_empty() {
                client.send(words);
            }
            assert_eq!(client.server(), server.address());
            let source = client.stream().local_addr().expect("connected");
            let expected = if is_line { line(source, listen) } else { tcp(source, listen, b"") };
            assert_eq!(header_of(&client), expected);
            assert_eq!(client.receive(words.len()), words);
            assert_eq!(client.exchange(b"more"), b"more");
            bytes_in += words.len() as u64 + 4;
            client.shut();
            assert_eq!(client.rest().expect("an end"), b"");
        }
    }
    drop(header_of(&stays));
    assert_eq!(stays.exchange(b"stays"), b"stays", "a reload disturbs nobody");
    balancer.wait_for_sessions(1);
    assert_eq!(balancer.service().bytes_in, bytes_in + 5, "a header is nothing of the client");
    let server = balancer.list_pool("web").servers.remove(0);
    assert_eq!(server.bytes_in, bytes_in + 5);
}

#[test]
fn bulk_behind_a_header_comes_whole_and_the_header_counts_as_none() {
    let server = told();
    let listen = loopback::free();
    let text = service("web", listen, "web") + &pool("web", "send_proxy = \"v2\"", [&server]);
    let balancer = Setup::new().config(&text).start();
    // The same again without splicing, which has no other order.
    for keys in ["", "splice = false\n"] {
        let before = balancer.service().bytes_in;
        balancer.configure(&text.replacen("\n\n", &format!("\n{keys}\n"), 1));
        balancer.reload().expect("it is taken");
        let words = tests::noise::Noise::new().bytes(8_000_000);
        let client = balancer.client_number(1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                client.send(&words);
                client.shut();
            });
            assert_eq!(client.server(), server.address());
            let source = client.stream().local_addr().expect("connected");
            assert_eq!(header_of(&client), tcp(source, listen, b""));
            assert!(client.rest().expect("an end") == words, "every byte, in order");
        });
        balancer.wait_for_sessions(0);
        assert_eq!(balancer.service().bytes_in - before, words.len() as u64);
    }
}

#[test]
fn a_header_has_a_checksum_and_an_id_of_its_own_if_asked() {
    let server = told();
    let listen = loopback::free();
    let keys = "send_proxy = \"v2\"\nsend_proxy_crc32c = true\nsend_proxy_unique_id = true";
    let text = service("web", listen, "web") + &pool("web", keys, [&server]);
    let balancer = Setup::new().config(&text).start();
    let mut ids = Vec::new();
    for number in 0..20 {
        let client = balancer.client_number(number);
        assert_eq!(client.server(), server.address());
        let header = header_of(&client);
        let source = client.stream().local_addr().expect("connected");
        let start = tcp(source, listen, b"");
        assert_eq!(header[16..28], start[16..]);
        assert_eq!(header[28], 5);
        let length = usize::from(header[30]);
        let id = header[31..31 + length].to_vec();
        assert!((10..=128).contains(&length) && id.is_ascii());
        assert_eq!(header, checked(source, listen, &vector(5, &id)));
        let session = balancer.sessions(None).into_iter().find(|session| session.client == source).expect("listed");
        assert!(id.ends_with(format!("-{}", session.session).as_bytes()), "it is the number that people know it by");
        ids.push(id);
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 20);
}

#[test]
fn what_came_goes_on() {
    let server = told();
    let keys = "send_proxy = \"v2\"\nsend_proxy_unique_id = true";
    let (balancer, text) = behind("", keys, std::slice::from_ref(&server));
    let (source, destination) = (address("192.0.2.1:1"), address("203.0.113.5:443"));
    let client = relayed(&balancer, &tcp(source, destination, &vector(5, b"from before")));
    assert_eq!(client.server(), server.address());
    assert_eq!(header_of(&client), tcp(source, destination, &vector(5, b"from before")));
    // The next has both families: as IPv6.
    balancer.configure(&text("", "send_proxy = \"v1\""));
    balancer.reload().expect("it is taken");
    for (header, expected) in [
        (line(source, destination), line(source, destination)),
        (
            tcp(address("[2001:db8::1]:1"), address("[::ffff:203.0.113.5]:443"), b""),
            line(address("[2001:db8::1]:1"), address("[::ffff:203.0.113.5]:443")),
        ),
    ] {
        let client = relayed(&balancer, &header);
        assert_eq!(client.server(), server.address());
        assert_eq!(header_of(&client), expected);
    }
    let client = relayed(&balancer, &binary(0, 0, b""));
    assert_eq!(client.server(), server.address());
    let own = client.stream().local_addr().expect("connected");
    assert_eq!(header_of(&client), line(own, balancer.address_of("web")), "its own connection");
}

#[test]
fn the_next_server_gets_a_whole_header_of_its_own() {
    let refusing = Server::refusing();
    let servers = [told(), told()];
    let listen = loopback::free();
    let all = [&refusing, &servers[0], &servers[1]];
    let text = service("web", listen, "web") + &pool("web", "send_proxy = \"v1\"", all);
    let balancer = Setup::new().config(&text).start();
    let (mut retried, mut bytes) = (0, 0);
    for number in 0..60 {
        let explained = balancer.explain_at("web", loopback::client(number), 0);
        retried += u64::from(explained.server == Some(refusing.address()));
        let client = balancer.client_number(number);
        if number % 2 == 0 {
            client.send(b"words");
            bytes += 5;
        }
        let serves = client.server();
        assert!(serves != refusing.address());
        let source = client.stream().local_addr().expect("connected");
        assert_eq!(header_of(&client), line(source, listen), "client {number} at {serves}");
        if number % 2 == 0 {
            assert_eq!(client.receive(5), b"words");
        }
    }
    assert!(retried > 0);
    let failed = balancer.listed_in("web", refusing.address()).expect("it is there").connect_failures;
    assert_eq!((failed, balancer.service().bytes_in), (retried, bytes));
}

#[test]
fn over_ipv6_headers_have_ipv6_addresses() {
    let server = told();
    let listen = loopback::free_at("::1".parse().expect("an address"));
    let text = service("web", listen, "web") + &pool("web", "send_proxy = \"v2\"", [&server]);
    let balancer = Setup::new().config(&text).start();
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    assert_eq!(header_of(&client), tcp(client.stream().local_addr().expect("connected"), listen, b""));

    // The wildcard of IPv6 takes clients of IPv4 as such.
    let wildcard = SocketAddr::new("::".parse().expect("an address"), loopback::free().port());
    let text = service("web", wildcard, "web") + &pool("web", "send_proxy = \"v1\"", [&server]);
    let balancer = Setup::new().config(&text).start();
    let to = SocketAddr::new("127.0.0.1".parse().expect("an address"), balancer.address_of("web").port());
    let client = Client::connect(to);
    assert_eq!(client.server(), server.address());
    assert_eq!(header_of(&client), line(client.stream().local_addr().expect("connected"), to));
}

#[test]
fn one_balancer_behind_another_gives_clients_to_the_same_servers() {
    let servers = Server::several(5);
    let listen = loopback::free();
    let inner = |accept: &str| {
        format!("{}accept_proxy = \"{accept}\"\n\n", service("web", listen, "web").trim_end().to_owned() + "\n")
            + &pool("web", "", &servers)
    };
    // It connects from the loopback address that the kernel takes.
    let inner = Setup::new().config(&inner("127.0.0.0/8")).start();
    for keys in ["send_proxy = \"v1\"", "send_proxy = \"v2\"\nsend_proxy_crc32c = true"] {
        let outer = loopback::free();
        let weighted = tests::config::weighted("web", keys, [(listen, 1)]);
        let outer = Setup::new().config(&(service("web", outer, "web") + &weighted)).start();
        for number in 0..30 {
            let client = outer.client_number(number);
            assert_eq!(Some(client.server()), inner.explain_at("web", loopback::client(number), 0).server);
            assert_eq!(client.exchange(b"both ways"), b"both ways");
        }
    }
    assert_eq!(inner.ended(EndReason::BadHeader), 0);
}

#[test]
fn what_commands_set_holds_at_once_and_after_a_restart() {
    let servers = [told(), told()];
    let mut balancer = Balancer::of(&servers);
    let listen = loopback::free();
    let do_it = |balancer: &Balancer, line: &str| {
        let output = balancer.ctl(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let (ip, port, proxy) = (listen.ip(), listen.port(), loopback::client(PROXY));
    do_it(&balancer, &format!("service add web {ip} {port} --accept-proxy {proxy} --proxy-timeout 500ms"));
    do_it(&balancer, "pool set default --send-proxy v2 --send-proxy-crc32c");
    let (source, destination) = (address("192.0.2.1:1"), address("203.0.113.5:443"));
    let check = |balancer: &Balancer| {
        let client = Client::connect_from(proxy, listen);
        client.send(&line(source, destination));
        assert_eq!(Some(client.server()), balancer.explain_at("web", source.ip(), 0).server);
        assert_eq!(header_of(&client), checked(source, destination, b""));
        Client::connect_from(proxy, listen).assert_ended();
        let settings = balancer.service_named("web").settings;
        assert_eq!((settings.accept_proxy.len(), settings.proxy_timeout_ms), (1, 500));
    };
    check(&balancer);
    balancer.restart();
    check(&balancer);
    do_it(&balancer, "pool set default --send-proxy v1");
    let client = Client::connect_from(proxy, listen);
    client.send(&line(source, destination));
    let _ = client.server();
    assert_eq!(header_of(&client), line(source, destination));
}

/// A server that closes connections without a header, answers HTTP, and the headers that did not name a client.
fn strict() -> (Server, Arc<Mutex<Vec<Vec<u8>>>>) {
    let headers = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&headers);
    let server = Server::with(move |mut stream, _| {
        let header = read_header(stream)?;
        if header.starts_with(b"PROXY UNKNOWN") || header.starts_with(&[&SIGNATURE[..], &[0x20]].concat()) {
            seen.lock().expect("no panic").push(header);
        } else if !header.starts_with(b"PROXY ") && !header.starts_with(&SIGNATURE) {
            return Ok(());
        }
        // The whole question, lest the answer be followed by a reset.
        match stream.read(&mut [0; 1024])? {
            0 => Ok(()),
            _ => stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"),
        }
    });
    (server, headers)
}

#[test]
fn checks_begin_with_a_header_that_names_nobody() {
    let (server, headers) = strict();
    let [with, without] = [loopback::free(), loopback::free()];
    let http = "check = \"http\"\ncheck_interval = \"20ms\"\neject_failures = 0\n";
    let text = |keys: &str| {
        let (with, without) = (service("with", with, "with"), service("without", without, "without"));
        with + &without + &pool("with", &format!("{http}{keys}"), [&server]) + &pool("without", http, [&server])
    };
    let balancer = Setup::new().config(&text("send_proxy = \"v1\"")).start();
    let health = |pool: &str| balancer.listed_in(pool, server.address()).expect("it is there").health;
    let wait_for = |pool: &str, state| wait::until(&format!("{pool}: {state}"), || health(pool).state == state);
    let wait_for_header = |header: &[u8]| {
        let last = || headers.lock().expect("no panic").last().is_some_and(|last| *last == header);
        wait::until(&format!("checks begin with {}", header.escape_ascii()), last);
    };
    // What the server is told first makes two checks of the one: only those who know it find it up.
    wait_for("without", HealthState::Down);
    wait_for_header(b"PROXY UNKNOWN\r\n");
    let passed = || health("with").passed;
    wait::until("it passes", || passed() > 2);

    // A reload, and a command.
    balancer.configure(&text("send_proxy = \"v2\""));
    balancer.reload().expect("it is taken");
    wait_for_header(&binary(0, 0, b""));
    let set = |line: &str| {
        let output = balancer.ctl(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    set("pool set with --send-proxy v2 --send-proxy-crc32c --send-proxy-unique-id");
    let mut header = binary(0, 0, &vector(3, &[0; 4]));
    let (at, sum) = (header.len() - 4, crc32c(&header));
    header[at..].copy_from_slice(&sum.to_be_bytes());
    wait_for_header(&header);
    // It is enough for a connect.
    set("pool set with --send-proxy v1 --check tcp");
    wait_for_header(b"PROXY UNKNOWN\r\n");
    let before = passed();
    wait::until("it passes", || passed() > before + 2);
    let report = health("with");
    assert_eq!((report.state, report.failed), (HealthState::Up, 0));
    assert_eq!(report.last_check.expect("one").result, "connected");

    set("pool set with --send-proxy none --check http");
    wait_for("with", HealthState::Down);
    set("pool set without --send-proxy v2");
    wait_for("without", HealthState::Up);
}

/// nginx that wants a header and answers with what it said.
fn nginx_behind(program: &Path) -> Program {
    Program::start(8080, |address, directory| {
        let said = "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port";
        nginx(
            program,
            directory,
            "",
            &format!(
                "http {{ access_log off; {}
                     server {{ listen {address} proxy_protocol; location / {{ return 200 \"{said}\"; }} }}
                 }}",
                temporary(directory)
            ),
        )
    })
}

fn temporary(directory: &Path) -> String {
    let path = directory.display();
    ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {path}/{kind}; "))
        .collect()
}

/// HAProxy that wants a header and answers with what it said.
fn haproxy_behind(program: &Path) -> Program {
    Program::start(8080, |address, directory| {
        let said = "%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_unique_id]";
        let text = format!(
            "frontend web\n mode http\n bind {address} accept-proxy\n \
             http-request return status 200 content-type text/plain lf-string \"{said}\""
        );
        haproxy(program, directory, &text)
    })
}

/// What curl gets from there.
fn get(curl: &Path, to: SocketAddr, from: Option<IpAddr>) -> String {
    let mut command = Command::new(curl);
    command.args(["--silent", "--show-error", "--fail", "--globoff", "--write-out", "\n%{local_ip} %{local_port}"]);
    if let Some(from) = from {
        command.arg("--interface").arg(from.to_string());
    }
    text(&run(command.arg(format!("http://{to}/")))).to_owned()
}

#[test]
fn nginx_and_haproxy_understand_the_headers_that_they_get() {
    let Some([program, other, curl]) = installed(["nginx", "haproxy", "curl"]) else { return };
    let servers = [nginx_behind(&program), haproxy_behind(&other)];
    for (server, takes_id) in servers.iter().zip([false, true]) {
        for keys in [
            "send_proxy = \"v1\"",
            "send_proxy = \"v2\"",
            "send_proxy = \"v2\"\nsend_proxy_crc32c = true",
            "send_proxy = \"v2\"\nsend_proxy_crc32c = true\nsend_proxy_unique_id = true",
        ] {
            for ip in [loopback::fresh(), "::1".parse().expect("an address")] {
                let listen = loopback::free_at(ip);
                let of_pool = format!("check = \"http\"\ncheck_interval = \"20ms\"\n{keys}");
                let text =
                    service("web", listen, "web") + &tests::config::weighted("web", &of_pool, [(server.address(), 1)]);
                let balancer = Setup::new().config(&text).start();
                let from = ip.is_ipv4().then(|| loopback::client(7));
                let said = get(&curl, listen, from);
                let (told, own) = said.split_once('\n').expect("two lines");
                let expected = format!("{own} {} {}", listen.ip(), listen.port());
                let rest = told.strip_prefix(&expected).unwrap_or_else(|| panic!("{keys}: {told} is not {expected}"));
                let has_id = takes_id && keys.contains("unique_id");
                assert_eq!(rest.trim().is_empty(), !has_id, "{keys}: {told}");
                let health = || balancer.listed_in("web", server.address()).expect("it is there").health;
                wait::until("checks are done", || health().passed + health().failed > 0);
                assert_eq!(health().failed, 0, "{keys}: {:?}", health());
                balancer.wait_for_sessions(0);
            }
        }
    }
}

/// Whether what a header says comes from the program that relays at `front` to the server that clients get by their own
/// addresses.
fn assert_introduced(balancer: &Balancer, front: SocketAddr, servers: &[Server]) {
    let mut used = Vec::new();
    for number in 0..30 {
        let client = Client::connect_from(loopback::client(number), front);
        client.send(b"words");
        let its = client.server();
        assert_eq!(Some(its), balancer.explain_at("web", loopback::client(number), 0).server, "client {number}");
        assert_eq!(client.receive(5), b"words");
        let own = client.stream().local_addr().expect("connected");
        assert!(balancer.sessions(Some(its)).iter().any(|session| session.client == own));
        used.push(its);
    }
    assert!(servers.iter().all(|server| used.contains(&server.address())));
    assert_eq!(balancer.ended(EndReason::BadHeader) + balancer.ended(EndReason::HeaderTimeout), 0);
}

/// A balancer that believes this machine, where the programs before it are.
fn balancer_behind(servers: &[Server]) -> (Balancer, SocketAddr) {
    let listen = loopback::free();
    let text = service("web", listen, "web").trim_end().to_owned() + "\naccept_proxy = [\"127.0.0.1\"]\n\n";
    (Setup::new().config(&(text + &pool("web", "", servers))).start(), listen)
}

#[test]
fn haproxy_says_who_its_clients_are() {
    let Some([program]) = installed(["haproxy"]) else { return };
    let servers = Server::several(3);
    let (balancer, listen) = balancer_behind(&servers);
    for how in [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id",
        // Its checks are LOCAL, and say nothing.
        "send-proxy-v2 check inter 50ms",
        "send-proxy check inter 50ms",
    ] {
        let front = Program::start(8080, |address, directory| {
            let text = format!(
                "listen web\n mode tcp\n unique-id-format %[uuid()]\n bind {address}\n server one {listen} {how}"
            );
            haproxy(&program, directory, &text)
        });
        let before = balancer.service().total;
        assert_introduced(&balancer, front.address(), &servers);
        if how.contains("check") {
            wait::until("it has checked some times", || balancer.service().total > before + 35);
        }
        assert_eq!(balancer.ended(EndReason::BadHeader), 0, "{how}");
    }
}

#[test]
fn nginx_says_who_its_clients_are() {
    let Some([program]) = installed(["nginx"]) else { return };
    let Some(stream) = nginx_stream() else { return };
    let servers = Server::several(3);
    let (balancer, listen) = balancer_behind(&servers);
    let front = Program::start(8080, |address, directory| {
        let text = format!("stream {{ server {{ listen {address}; proxy_pass {listen}; proxy_protocol on; }} }}");
        nginx(&program, directory, &stream, &text)
    });
    assert_introduced(&balancer, front.address(), &servers);
}

#[test]
fn between_two_of_haproxy_what_one_says_comes_to_the_other() {
    let Some([program, curl]) = installed(["haproxy", "curl"]) else { return };
    let server = haproxy_behind(&program);
    let listen = loopback::free();
    let keys = "send_proxy = \"v2\"\nsend_proxy_crc32c = true\nsend_proxy_unique_id = true";
    let text = service("web", listen, "web").trim_end().to_owned() + "\naccept_proxy = [\"127.0.0.1\"]\n\n";
    let text = text + &tests::config::weighted("web", keys, [(server.address(), 1)]);
    let _balancer = Setup::new().config(&text).start();
    let front = Program::start(8080, |address, directory| {
        let text = format!(
            "listen web\n mode tcp\n unique-id-format id-%cp\n bind {address}\n \
             server one {listen} send-proxy-v2 proxy-v2-options crc32c,unique-id"
        );
        haproxy(&program, directory, &text)
    });
    let said = get(&curl, front.address(), Some(loopback::client(9)));
    let (told, own) = said.split_once('\n').expect("two lines");
    let port = own.split(' ').next_back().expect("a port");
    let to = front.address();
    assert_eq!(told, format!("{own} {} {} id-{port}", to.ip(), to.port()));
}

#[test]
fn nothing_is_left_of_any_of_them() {
    let servers = [told(), told()];
    let (balancer, _) = behind("proxy_timeout = \"200ms\"", "send_proxy = \"v2\"", &servers);
    let descriptors = idle_descriptors(&balancer);
    let header = line(address("192.0.2.1:1"), address("192.0.2.2:2"));
    for round in 0..10 {
        let clients: Vec<Client> = (0..30).map(|_| balancer.client_number(PROXY)).collect();
        for (number, client) in clients.into_iter().enumerate() {
            match number % 6 {
                0 => drop(client),
                1 => client.reset(),
                2 => client.send(b"PROXY TCP4 "),
                3 => client.send(b"no header"),
                4 => {
                    client.send(&header);
                    let _ = client.server();
                }
                _ => {
                    client.send(&header[..round]);
                    client.stream().shutdown(Shutdown::Write).expect("half closed");
                }
            }
        }
    }
    wait::until("all have ended", || balancer.service().ended.values().sum::<u64>() == 300);
    assert_eq!((balancer.service().active, balancer.service().total), (0, 300));
    wait::until("no server has one", || servers.iter().all(|server| server.living() == 0));
    wait::until("its descriptors are back", || balancer.descriptors() <= descriptors);
    balancer.assert_quiet();
}

#[test]
fn a_server_that_speaks_first_is_heard_and_gets_the_header_once() {
    // An echo server takes the header for words, and gives it back behind its name.
    let server = Server::with(echo);
    let listen = loopback::free();
    let text = service("web", listen, "web") + &pool("web", "send_proxy = \"v1\"", [&server]);
    let balancer = Setup::new().config(&text).start();
    let client = balancer.client_number(3);
    assert_eq!(client.server(), server.address());
    let expected = line(client.stream().local_addr().expect("connected"), listen);
    assert_eq!(client.receive(expected.len()), expected);
    assert_eq!(client.exchange(b"words"), b"words");
}

/// A server that keeps what each connection says until its end.
fn listening_to() -> (Server, Arc<Mutex<Vec<Vec<u8>>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&heard);
    let server = Server::with(move |mut stream, _| {
        let mut words = Vec::new();
        stream.read_to_end(&mut words)?;
        notes.lock().expect("alive").push(words);
        Ok(())
    });
    (server, heard)
}

#[test]
fn checks_begin_with_a_header_only_where_clients_go() {
    let ((server, at_server), (elsewhere, at_elsewhere)) = (listening_to(), listening_to());
    let entry = |more: &str| format!("servers = [{{ address = \"{}\"{more} }}]\n", server.address());
    let keys = "check = \"send\"\ncheck_send = \"hello\"\ncheck_interval = \"20ms\"\nsend_proxy = \"v1\"\n";
    let listen = loopback::free();
    let text = |more: &str| service("web", listen, "web") + &format!("[pool.web]\n{keys}{}", entry(more));
    let balancer = Setup::new().config(&text("")).start();
    let all_are = |heard: &Mutex<Vec<Vec<u8>>>, words: &[u8]| {
        heard.lock().expect("alive").clear();
        wait::until("checks go on", || heard.lock().expect("alive").len() >= 3);
        // One may have been under way.
        assert!(heard.lock().expect("alive")[1..].iter().all(|said| said == words), "{heard:?}");
    };
    all_are(&at_server, b"PROXY UNKNOWN\r\nhello");
    balancer.configure(&text(&format!(", check_address = \"{}\"", elsewhere.address())));
    balancer.reload().expect("taken");
    all_are(&at_elsewhere, b"hello");
    balancer.configure(&text(&format!(", check_address = \"{}\"", server.address())));
    balancer.reload().expect("taken");
    all_are(&at_server, b"PROXY UNKNOWN\r\nhello");
}
