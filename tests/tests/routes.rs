//! Which way connections take: from the client's own address, from several of ours, by a mark or a device; and that checks
//! take the same; words that come with the SYN, and clients that are let in when they speak.
//!
//! Where it takes more than loopback, clients, balancer and servers are hosts of their own, which are network namespaces:
//!
//! ```text
//! clients 10.1.0.2-9 ── 10.1.0.1 balancer 10.2.0.1 ── 10.2.0.2 servers 10.9.0.1
//!                                         10.3.0.1 ── 10.3.0.2
//! ```

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt};
use tests::config::{datagram_pool, datagrams, pool, service, weighted};
use tests::datagrams::named;
use tests::noise::Noise;
use tests::{Balancer, Client, DatagramClient, DatagramServer, Server, Setup, namespace, wait};
use wire::report::{EndReason, HealthState};

/// The addresses of those who came to a server.
type Callers = Arc<Mutex<BTreeSet<IpAddr>>>;

/// A server at this address of the host `servers` that gives back what it gets, and notes who comes.
fn server_at(ip: &str) -> (Server, Callers) {
    let callers = Callers::default();
    let seen = Arc::clone(&callers);
    let ip: IpAddr = ip.parse().expect("an address");
    let server = namespace::at("servers", move || {
        Server::at(ip, move |stream: &TcpStream, name| {
            seen.lock().expect("alive").insert(stream.peer_addr()?.ip());
            tests::server::echo(stream, name)
        })
    });
    (server, callers)
}

fn take(callers: &Callers) -> BTreeSet<IpAddr> {
    std::mem::take(&mut *callers.lock().expect("alive"))
}

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

/// The hosts.
fn hosts() {
    // A host has two ways to the servers, and answers may come by the other.
    for which in ["all", "default"] {
        namespace::set(&format!("ipv4/conf/{which}/rp_filter"), "0");
    }
    namespace::hosts(&["clients", "servers"]);
    for (net, host) in [(1, "clients"), (2, "servers"), (3, "servers")] {
        namespace::run(&format!("ip link add way{net} type veth peer name way{net} netns {host}"));
        namespace::run(&format!("ip address add 10.{net}.0.1/24 dev way{net}"));
        namespace::run(&format!("ip link set way{net} up"));
        namespace::run(&format!("ip -n {host} link set way{net} up"));
    }
    for last in 2..10 {
        namespace::run(&format!("ip -n clients address add 10.1.0.{last}/24 dev way1"));
    }
    namespace::run("ip -n servers address add 10.2.0.2/24 dev way2");
    namespace::run("ip -n servers address add 10.3.0.2/24 dev way3");
    namespace::run("ip -n servers address add 10.9.0.1/32 dev lo");
    namespace::run("ip -n servers route add default via 10.2.0.1");
}

/// A balancer between them, whose pool has these keys and that server.
fn between(keys: &str, server: &Server) -> Balancer {
    let listen = SocketAddr::from(([10, 1, 0, 1], 80));
    Setup::new().config(&text(listen, keys, server)).start()
}

fn text(listen: SocketAddr, keys: &str, server: &Server) -> String {
    service("web", listen, "web") + &weighted("web", keys, [(server.address(), 1)])
}

/// A connection of the client with this address.
fn client_from(from: &str, balancer: &Balancer) -> Client {
    let (from, to) = (from.parse().expect("an address"), balancer.address());
    namespace::at("clients", move || Client::connect_from(from, to))
}

/// Checks that go on at once.
const CHECKED: &str = "check = \"tcp\"\ncheck_interval = \"20ms\"\ncheck_timeout = \"500ms\"\neject_failures = 0\n";

fn wait_for(balancer: &Balancer, server: &Server, state: HealthState) {
    let health = || balancer.listed_in("web", server.address()).expect("it is there").health;
    wait::until(&format!("it is {state}"), || {
        let health = health();
        health.state == state && health.passed + health.failed >= 3
    });
}

#[test]
fn a_transparent_pool_shows_its_servers_the_clients_themselves() {
    namespace::inside("a_transparent_pool_shows_its_servers_the_clients_themselves", || {
        hosts();
        // What the servers answer to the clients is for us.
        namespace::run("ip rule add iif way2 lookup 100");
        namespace::run("ip route add local 10.1.0.0/24 dev lo table 100");
        let (server, callers) = server_at("10.2.0.2");
        let balancer = between("transparent = true", &server);
        let froms = ["10.1.0.2", "10.1.0.3", "10.1.0.9"];
        let clients = froms.map(|from| client_from(from, &balancer));
        let bytes = Noise::new().bytes(3_000_000);
        for client in &clients {
            assert_eq!(client.server(), server.address());
            assert!(client.exchange(&bytes) == bytes, "answers come back through us");
        }
        assert_eq!(take(&callers), addresses(&froms));
        // Both ends come through.
        let [ends, resets, stays] = clients;
        ends.shut();
        assert_eq!(ends.rest().expect("an end in order"), b"");
        resets.reset();
        wait::until("both have ended", || server.living() == 1);

        // A check is nobody's: it comes from ourselves.
        balancer.configure(&text(balancer.address(), &format!("transparent = true\n{CHECKED}"), &server));
        balancer.reload().expect("taken");
        wait_for(&balancer, &server, HealthState::Up);
        assert_eq!(take(&callers), addresses(&["10.2.0.1"]));

        // And so does everybody where the pool is not transparent any more; who is there stays.
        balancer.configure(&text(balancer.address(), "", &server));
        balancer.reload().expect("taken");
        wait::until("the last check is over", || server.living() == 1);
        take(&callers);
        assert_eq!(client_from("10.1.0.4", &balancer).server(), server.address());
        assert_eq!(take(&callers), addresses(&["10.2.0.1"]));
        assert_eq!(stays.exchange(b"still here"), b"still here");
    });
}

#[test]
fn flows_of_a_transparent_pool_come_from_their_clients_themselves() {
    namespace::inside("flows_of_a_transparent_pool_come_from_their_clients_themselves", || {
        hosts();
        namespace::run("ip rule add iif way2 lookup 100");
        namespace::run("ip route add local 10.1.0.0/24 dev lo table 100");
        let server = namespace::at("servers", || DatagramServer::at(SocketAddr::from(([10, 2, 0, 2], 0)), named));
        let listen = SocketAddr::from(([10, 1, 0, 1], 53));
        let balancer =
            Setup::new().config(&(datagrams(listen, "") + &datagram_pool("transparent = true", [&server]))).start();
        let ips = [2, 3, 9].map(|last| IpAddr::from([10, 1, 0, last]));
        let clients = namespace::at("clients", move || ips.map(|ip| DatagramClient::from(ip, listen)));
        for (client, ip) in clients.iter().zip(ips) {
            for words in [&b"first"[..], b"second"] {
                assert_eq!(client.ask(words), server.address(), "answers come back through us");
            }
            assert_eq!(server.heard().last().map(|heard| heard.from.ip()), Some(ip));
        }
        assert_eq!(balancer.sessions(None).len(), clients.len());
    });
}

#[test]
fn each_datagram_of_a_transparent_one_way_pool_comes_from_its_own_client() {
    namespace::inside("each_datagram_of_a_transparent_one_way_pool_comes_from_its_own_client", || {
        hosts();
        let server = namespace::at("servers", || DatagramServer::at(SocketAddr::from(([10, 2, 0, 2], 0)), named));
        let listen = SocketAddr::from(([10, 1, 0, 1], 53));
        let pool = datagram_pool("one_way = true\ntransparent = true", [&server]);
        let _balancer = Setup::new().config(&(datagrams(listen, "") + &pool)).start();
        let ips = [2, 3, 9, 2].map(|last| IpAddr::from([10, 1, 0, last]));
        let clients = namespace::at("clients", move || ips.map(|ip| DatagramClient::from(ip, listen)));
        for round in 0..3u8 {
            for (number, client) in clients.iter().enumerate() {
                client.send(&[round, number as u8]);
                wait::until("it has come", || server.heard().iter().any(|heard| heard.bytes == [round, number as u8]));
            }
        }
        for heard in server.heard() {
            assert_eq!(heard.from.ip(), ips[usize::from(heard.bytes[1])], "{heard:?}");
        }
        assert_eq!(server.heard().len(), 12);
    });
}

#[test]
fn a_mark_leads_clients_and_checks_by_its_own_route() {
    namespace::inside("a_mark_leads_clients_and_checks_by_its_own_route", || {
        hosts();
        namespace::run("ip route add unreachable 10.9.0.1");
        namespace::run("ip rule add fwmark 7 lookup 7");
        namespace::run("ip route add 10.9.0.1 via 10.2.0.2 table 7");
        let (server, callers) = server_at("10.9.0.1");
        let balancer = between(CHECKED, &server);
        wait_for(&balancer, &server, HealthState::Down);
        client_from("10.1.0.2", &balancer).assert_ended();
        for (keys, state) in
            [("mark = 7", HealthState::Up), ("mark = 8", HealthState::Down), ("mark = 7", HealthState::Up)]
        {
            balancer.configure(&text(balancer.address(), &format!("{keys}\n{CHECKED}"), &server));
            balancer.reload().expect("taken");
            wait_for(&balancer, &server, state);
            let client = client_from("10.1.0.2", &balancer);
            match state {
                HealthState::Up => assert_eq!(client.server(), server.address()),
                _ => client.assert_ended(),
            }
        }
        assert_eq!(take(&callers), addresses(&["10.2.0.1"]));
    });
}

#[test]
fn a_device_is_the_one_that_clients_and_checks_leave_by() {
    namespace::inside("a_device_is_the_one_that_clients_and_checks_leave_by", || {
        hosts();
        namespace::run("ip route add 10.9.0.1 via 10.2.0.2 dev way2 metric 10");
        namespace::run("ip route add 10.9.0.1 via 10.3.0.2 dev way3 metric 20");
        let (server, callers) = server_at("10.9.0.1");
        for (keys, from) in [("", "10.2.0.1"), ("device = \"way3\"", "10.3.0.1"), ("device = \"way2\"", "10.2.0.1")] {
            let balancer = between(&format!("{keys}\n{CHECKED}"), &server);
            wait_for(&balancer, &server, HealthState::Up);
            let client = client_from("10.1.0.2", &balancer);
            assert_eq!(client.server(), server.address());
            assert_eq!(client.exchange(b"hello"), b"hello");
            assert_eq!(take(&callers), addresses(&[from]), "{keys}");
            drop(balancer);
            wait::until("nobody is left", || server.living() == 0);
            take(&callers);
        }
        // One that is not there is our fault, and not the server's.
        let balancer = between(&format!("device = \"nowhere\"\n{CHECKED}"), &server);
        client_from("10.1.0.2", &balancer).assert_ended();
        wait::until("it is counted", || balancer.ended(EndReason::Shortage) == 1);
        balancer.wait_for_log("a check was left out");
        let row = balancer.listed_in("web", server.address()).expect("it is there");
        assert_eq!((row.health.state, row.health.failed, row.connect_failures), (HealthState::Up, 0, 0), "{row:?}");
        assert_eq!(take(&callers), BTreeSet::new());
    });
}

#[test]
fn checks_come_from_the_sources_in_turn() {
    let callers = Callers::default();
    let seen = Arc::clone(&callers);
    let server = Server::with(move |stream, _| {
        seen.lock().expect("alive").insert(stream.peer_addr()?.ip());
        Ok(())
    });
    let keys = |sources: &str| format!("source = [{sources}]\n{CHECKED}");
    let listen = tests::loopback::free();
    let balancer = Setup::new().config(&text(listen, &keys("\"127.9.9.1\", \"127.9.9.2\""), &server)).start();
    wait_for(&balancer, &server, HealthState::Up);
    assert_eq!(take(&callers), addresses(&["127.9.9.1", "127.9.9.2"]));
    // They change with what the pool is set to, and a shortage of ours is no failure.
    let output = balancer.ctl("pool set web --source 127.9.9.3");
    assert!(output.status.success(), "{output:?}");
    wait::until("the old ones are not used any more", || take(&callers) == addresses(&["127.9.9.3"]));
    let output = balancer.ctl("pool set web --source 192.0.2.1");
    assert!(output.status.success(), "{output:?}");
    balancer.wait_for_log("a check was left out");
    let health = balancer.listed_in("web", server.address()).expect("it is there").health;
    assert_eq!((health.state, health.failed), (HealthState::Up, 0));
}

/// A counter of this namespace in `/proc/net/netstat`.
fn counted(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/net/netstat").expect("the counters");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let value = names.zip(values).find_map(|(its, value)| (its == name).then_some(value));
    value.expect("the kernel has it").parse().expect("a number")
}

/// A client whose first words go with its SYN, if it may.
fn first_words_at_once(to: SocketAddr, words: &[u8]) -> TcpStream {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    setsockopt(&socket, sockopt::TcpFastOpenConnect, &true).expect("set");
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).expect("connected, or about to be");
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(wait::LIMIT)).expect("set");
    stream.write_all(words).expect("sent");
    stream
}

/// What a server that says its name and gives back the words gives.
fn assert_served(mut stream: &TcpStream, server: &Server, words: &[u8]) {
    let expected = [format!("{}\n", server.address()).as_bytes(), words].concat();
    let mut got = vec![0; expected.len()];
    stream.read_exact(&mut got).expect("an answer");
    assert!(got == expected, "{}", got.escape_ascii());
}

#[test]
fn words_that_come_with_the_syn_go_on_with_the_syn() {
    namespace::inside("words_that_come_with_the_syn_go_on_with_the_syn", || {
        // For those who ask for it: clients, and listeners.
        namespace::set("ipv4/tcp_fastopen", "3");
        let listen = tests::loopback::free();
        let plain = Server::start();
        let keys = |service: &str, pool: &str, server: &Server| {
            format!("[service.web]\nlisten = \"{listen}\"\npool = \"web\"\n{service}\n\n")
                + &weighted("web", pool, [(server.address(), 1)])
        };
        let balancer = Setup::new().config(&keys("fast_open = 16", "", &plain)).start();
        let [active, passive] = ["TCPFastOpenActive", "TCPFastOpenPassive"].map(|name| move || counted(name));
        // The first one gets the cookie that the next ones show.
        assert_served(&first_words_at_once(listen, b"hello"), &plain, b"hello");
        assert_eq!((active(), passive()), (0, 0));
        for count in 1..4 {
            assert_served(&first_words_at_once(listen, b"hello"), &plain, b"hello");
            assert_eq!((active(), passive()), (count, count), "the words came with the SYN");
        }
        balancer.configure(&keys("", "", &plain));
        balancer.reload().expect("taken");
        assert_served(&first_words_at_once(listen, b"hello"), &plain, b"hello");
        assert_eq!(passive(), 3, "it takes them no more");

        // Towards servers: 0x400 is every listener that begins from now on, for the server of the test does not ask.
        namespace::set("ipv4/tcp_fastopen", "1027");
        let quick = Server::start();
        balancer.configure(&keys("", "fast_open = true", &quick));
        balancer.reload().expect("taken");
        let bytes = Noise::new().bytes(300_000);
        for count in 0..4 {
            let before = (active(), passive());
            // It has spoken by the time at which it is accepted.
            balancer.signal(Signal::SIGSTOP);
            let client = Client::connect(listen);
            client.send(b"hello");
            balancer.signal(Signal::SIGCONT);
            assert_served(client.stream(), &quick, b"hello");
            let more = u64::from(count > 0);
            assert_eq!((active(), passive()), (before.0 + more, before.1 + more), "client {count}");
            assert!(client.exchange(&bytes) == bytes);
            client.shut();
            assert_eq!(client.rest().expect("an end in order"), b"");
        }
        // Who says nothing is connected all the same.
        let before = active();
        assert_eq!(Client::connect(listen).server(), quick.address());
        assert_eq!(active(), before);
    });
}

#[test]
fn a_server_that_was_quick_and_is_gone_leaves_its_clients_to_the_next() {
    namespace::inside("a_server_that_was_quick_and_is_gone_leaves_its_clients_to_the_next", || {
        namespace::set("ipv4/tcp_fastopen", "1027");
        namespace::run("ip link add way type veth peer name nobody");
        namespace::run("ip link set way up");
        namespace::run("ip link set nobody up");
        namespace::run("ip address add 10.77.1.1/24 dev way");
        namespace::run("ip address add 10.77.0.1/32 dev lo");
        namespace::run("ip neighbour replace 10.77.0.1 lladdr 02:00:00:00:00:01 dev way nud permanent");
        let quick = Server::start_at("10.77.0.1".parse().expect("an address"));
        let other = Server::start();
        let listen = tests::loopback::free();
        let keys = "fast_open = true\nconnect_timeout = \"300ms\"\neject_failures = 0\npolicy = \"round-robin\"";
        let text = service("web", listen, "web") + &weighted("web", keys, [(quick.address(), 1), (other.address(), 1)]);
        let balancer = Setup::new().config(&text).start();
        let speak = || {
            balancer.signal(Signal::SIGSTOP);
            let client = Client::connect(listen);
            client.send(b"hello");
            balancer.signal(Signal::SIGCONT);
            client
        };
        let before = counted("TCPFastOpenActive");
        for _ in 0..6 {
            let client = speak();
            assert!([quick.address(), other.address()].contains(&client.server()));
            assert_eq!(client.receive(5), b"hello");
        }
        assert!(counted("TCPFastOpenActive") > before, "their words go with the SYN");
        balancer.wait_for_sessions(0);
        quick.refuse();
        for _ in 0..4 {
            let client = speak();
            assert_eq!(client.server(), other.address(), "refused");
            assert_eq!(client.receive(5), b"hello");
        }
        namespace::run("ip route delete local 10.77.0.1 dev lo table local");
        namespace::run("ip route add 10.77.0.1/32 dev way");
        for _ in 0..4 {
            let client = speak();
            assert_eq!(client.server(), other.address(), "not answered");
            assert_eq!(client.receive(5), b"hello");
        }
    });
}

#[test]
fn a_client_that_says_nothing_is_no_session_where_accepts_are_deferred() {
    let server = Server::start();
    let listen = tests::loopback::free();
    let text = |seconds: u64| {
        format!("[service.web]\nlisten = \"{listen}\"\npool = \"web\"\ndefer_accept = \"{seconds}s\"\n\n")
            + &weighted("web", "", [(server.address(), 1)])
    };
    let balancer = Setup::new().config(&text(60)).start();
    let silent: Vec<Client> = (0..20).map(|_| Client::connect(listen)).collect();
    let speaks = Client::connect(listen);
    speaks.send(b"hello");
    assert_eq!(speaks.server(), server.address());
    assert_eq!(speaks.receive(5), b"hello");
    wait::a_moment();
    assert_eq!(balancer.service().total, 1, "those who say nothing are not there");
    assert_eq!(server.accepted(), 1);
    for client in &silent {
        client.send(b"now");
        assert_eq!(client.server(), server.address());
        assert_eq!(client.receive(3), b"now");
    }
    assert_eq!(balancer.service().total, 21);

    // After that time it is let in without a word.
    balancer.configure(&text(1));
    balancer.reload().expect("taken");
    let client = Client::connect(listen);
    wait::a_moment();
    assert_eq!(client.server(), server.address());
    assert_eq!(balancer.service().total, 22);
}

#[test]
fn a_service_with_freebind_listens_at_an_address_that_comes_later_and_without_it_the_start_says_what_to_do() {
    namespace::inside(
        "a_service_with_freebind_listens_at_an_address_that_comes_later_and_without_it_the_start_says_what_to_do",
        || {
            for ip in ["192.0.2.77", "2001:db8::77"] {
                let listen = SocketAddr::new(ip.parse().expect("an address"), 80);
                let server = Server::start();
                let other = DatagramServer::start();
                let text = |keys: &str| {
                    let pools = pool("web", "", [&server]) + &datagram_pool("", [&other]);
                    let udp = datagrams(listen, keys);
                    format!("[service.web]\nlisten = \"{listen}\"\npool = \"web\"\n{keys}\n{udp}{pools}")
                };
                let output = Setup::new().config(&text("")).run();
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(!output.status.success(), "{said}");
                for word in [ip, "freebind", "net.ipv4.ip_nonlocal_bind"] {
                    assert!(said.contains(word), "{word}: {said}");
                }
                let balancer = Setup::new().config(&text("freebind = true")).start();
                let added = SocketAddr::new(listen.ip(), 81);
                let line = |option: &str| format!("service add more {} 81 --pool web{option}", added.ip());
                let refused = balancer.ctl(&line(""));
                assert!(String::from_utf8_lossy(&refused.stderr).contains("freebind"), "{refused:?}");
                assert!(balancer.ctl(&line(" --freebind")).status.success());
                let device = if listen.is_ipv4() { "32 dev lo" } else { "128 dev lo nodad" };
                namespace::run(&format!("ip addr add {ip}/{device}"));
                // The kernel may take a moment until it has routes for it.
                let came = |to| wait::for_some("the address is there", || Client::try_from(listen.ip(), to).ok());
                for to in [listen, added] {
                    assert_eq!(came(to).server(), server.address(), "{to}");
                }
                assert_eq!(DatagramClient::from(listen.ip(), listen).ask(b"x"), other.address());
            }
        },
    );
}
