//! Each datagram comes to the one it is for: once, unchanged, in order, and from the address that was asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;

use tests::config::{datagram_pool, datagrams};
use tests::datagrams::{LONGEST, of_named, sockets_towards};
use tests::noise::Noise;
use tests::programs::installed;
use tests::{Balancer, Client, DatagramClient, DatagramServer, Server, Setup, loopback, namespace, wait};
use wire::report::{DropReason, EndReason};
use wire::settings::Transport;

/// Bytes that may be under way at a time, so that no buffer of the kernel is full: it takes more memory than bytes.
const UNDER_WAY: usize = 60_000;

/// A balancer at this address, with these keys of its service and its pool.
fn at(listen: SocketAddr, service: &str, pool: &str, servers: &[DatagramServer]) -> Balancer {
    Setup::new().config(&(datagrams(listen, service) + &datagram_pool(pool, servers))).start()
}

#[test]
fn two_sockets_of_one_address_each_get_their_own_answers() {
    let server = DatagramServer::silent();
    let balancer = Balancer::of_datagrams("", "", [&server]);
    let clients: Vec<_> = (0..2).map(|_| balancer.datagrams_of(1)).collect();
    for round in 0..50 {
        let words = |which: usize| format!("round {round} of {which}").into_bytes();
        clients.iter().enumerate().for_each(|(which, client)| client.send(&words(which)));
        let askers = [server.who_said(&words(0)), server.who_said(&words(1))];
        assert_ne!(askers[0], askers[1], "each flow has a socket of its own");
        // The other way round, so that who sent last is not who is answered.
        for which in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            server.send(askers[which], &words(which));
        }
        for (which, client) in clients.iter().enumerate() {
            assert_eq!(client.receive(), words(which));
        }
    }
    clients.iter().for_each(DatagramClient::assert_nothing_more);
    let service = balancer.service();
    assert_eq!((service.active, service.total), (2, 2));
    assert_eq!((service.datagrams.datagrams_in, service.datagrams.datagrams_out), (100, 100));
    assert!(service.datagrams.dropped_in.is_empty() && service.datagrams.dropped_out.is_empty());
}

#[test]
fn a_thousand_clients_each_get_exactly_their_own() {
    let servers = DatagramServer::several(4);
    let balancer = Balancer::of_datagrams("", "", &servers);
    let clients: Vec<_> = (0..1000).map(|number| balancer.datagrams_of(number / 4)).collect();
    let words = |round: usize, which: usize| format!("round {round} of client {which}").into_bytes();
    let expected: Vec<_> = (0..250).map(|number| balancer.server_of(number)).collect();
    for round in 0..3 {
        for (part, some) in clients.chunks(100).enumerate() {
            let of = |at: usize| (part * 100 + at, words(round, part * 100 + at));
            some.iter().enumerate().for_each(|(at, client)| client.send(&of(at).1));
            for (at, client) in some.iter().enumerate() {
                let (which, said) = of(at);
                assert_eq!(client.answer(), (expected[which / 4], said));
            }
        }
    }
    clients.iter().for_each(DatagramClient::assert_nothing_more);
    for server in &servers {
        let its: Vec<_> = (0..1000).filter(|which| expected[which / 4] == server.address()).collect();
        let mut said: Vec<_> = (0..3).flat_map(|round| its.iter().map(move |which| words(round, *which))).collect();
        let mut heard = server.words();
        said.sort();
        heard.sort();
        assert!(heard == said, "{} hears its own clients, each once", server.address());
        let askers: BTreeSet<_> = server.heard().into_iter().map(|heard| heard.from).collect();
        assert_eq!(askers.len(), its.len(), "each flow has a socket of its own");
    }
    assert_eq!((balancer.service().active, balancer.service().total), (1000, 1000));
}

#[test]
fn datagrams_of_every_size_arrive_once_unchanged_and_in_order() {
    let mut noise = Noise::new();
    let edges = [0, 1, 2, 511, 512, 513, 1199, 1200, 1471, 1472, 1473, 4095, 4096, 8972, 16_383, 16_384, 32_767];
    let mut sizes: Vec<usize> = [32_768, 49_152, LONGEST - 1, LONGEST, 0, 0, 1].into_iter().chain(edges).collect();
    sizes.extend((0..60).map(|_| usize::try_from(noise.number() % (LONGEST as u64 + 1)).expect("small")));
    sizes.extend((0..60).map(|_| usize::try_from(noise.number() % 1500).expect("small")));
    let ipv4 = [IpAddr::V4(Ipv4Addr::LOCALHOST), loopback::fresh()];
    let ipv6 = [IpAddr::V6(Ipv6Addr::LOCALHOST); 2];
    for [front, back] in [ipv4, ipv6, [ipv4[0], ipv6[0]], [ipv6[0], ipv4[1]]] {
        let server = DatagramServer::at(SocketAddr::new(back, 0), |_, bytes| vec![bytes.to_vec()]);
        let servers = [server];
        let balancer = at(loopback::free_of_both(front), "", "", &servers);
        let client = balancer.datagrams();
        let datagrams: Vec<Vec<u8>> = sizes.iter().map(|size| noise.bytes(*size)).collect();
        let mut left = &datagrams[..];
        while !left.is_empty() {
            let mut bytes = 0;
            let fits = |one: &&Vec<u8>| {
                let before = bytes;
                bytes += one.len() + 500;
                before == 0 || bytes < UNDER_WAY
            };
            let (some, others) = left.split_at(left.iter().take(20).take_while(fits).count());
            some.iter().for_each(|datagram| client.send(datagram));
            for datagram in some {
                let answer = client.receive();
                assert!(answer == *datagram, "{} bytes come back as {}", datagram.len(), answer.len());
            }
            left = others;
        }
        client.assert_nothing_more();
        assert!(servers[0].words() == datagrams, "from {front} to {back}: each once and in order");
        let service = balancer.service();
        let count = datagrams.len() as u64;
        assert_eq!((service.datagrams.datagrams_in, service.datagrams.datagrams_out), (count, count));
        let total: usize = datagrams.iter().map(Vec::len).sum();
        assert_eq!((service.bytes_in, service.bytes_out), (total as u64, total as u64));
        assert_eq!(service.total, 1);
    }
}

#[test]
fn what_is_longer_than_the_way_allows_is_counted_and_the_flow_goes_on() {
    // Over IPv6 a datagram may be 20 bytes longer than over IPv4.
    let servers = [DatagramServer::echo()];
    let balancer = at(loopback::free_of_both(Ipv6Addr::LOCALHOST.into()), "", "", &servers);
    let client = balancer.datagrams();
    client.send(&vec![7; LONGEST + 1]);
    client.send(&vec![8; LONGEST + 20]);
    client.send(b"short");
    assert_eq!(client.receive(), b"short");
    assert_eq!(servers[0].words(), [b"short".to_vec()]);
    assert_eq!(balancer.dropped(DropReason::TooLong), 2);

    // And with a header before it that has no room any more.
    let servers = [DatagramServer::silent()];
    let balancer = Balancer::of_datagrams("", "send_proxy = \"v2\"", &servers);
    let client = balancer.datagrams();
    client.send(&vec![7; LONGEST - 27]);
    client.send(&vec![8; LONGEST - 28]);
    assert_eq!(servers[0].wait_for(1)[0].bytes.len(), LONGEST);
    assert_eq!(balancer.dropped(DropReason::TooLong), 1);
    assert_eq!(servers[0].count(), 1);

    let servers = [DatagramServer::at((Ipv6Addr::LOCALHOST, 0).into(), |_, bytes| vec![bytes.to_vec()])];
    let balancer = at(loopback::free_of_both(Ipv6Addr::LOCALHOST.into()), "", "", &servers);
    let longest = Noise::new().bytes(LONGEST + 20);
    let client = balancer.datagrams();
    client.send(&longest);
    assert!(client.receive() == longest, "the longest of all");
}

/// 32 datagrams of one size and a shorter one, each other than the others.
fn train(noise: &mut Noise) -> Vec<Vec<u8>> {
    (0..33).map(|at| noise.bytes(if at < 32 { 1200 } else { 345 })).collect()
}

#[test]
fn trains_arrive_complete_unmerged_and_in_order_whether_they_are_taken_as_one_or_not() {
    let mut noise = Noise::new();
    let wildcards = [SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))];
    let fronts = [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into(), wildcards[0].ip(), wildcards[1].ip()];
    for front in fronts {
        for joins in [false, true] {
            let servers = [DatagramServer::silent()];
            let balancer = at(loopback::free_of_both(front), "", "", &servers);
            let asked = match front {
                IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                ip => ip,
            };
            let client = DatagramClient::new(SocketAddr::new(asked, balancer.address().port()));
            if joins {
                client.join_trains();
                servers[0].join_trains();
            }
            let mut said = Vec::new();
            for round in 1..=10 {
                let words = train(&mut noise);
                client.send_train(&words);
                said.extend(words);
                assert!(servers[0].wait_for(33 * round).len() == 33 * round, "each comes once");
            }
            assert!(servers[0].words() == said, "{front}, {joins}");
            let from = servers[0].heard()[0].from;
            // The answers: first before the flow takes trains as one, then while it does.
            let mut heard = Vec::new();
            let mut said = Vec::new();
            for _ in 0..10 {
                let words = train(&mut noise);
                servers[0].send_train(from, &words);
                said.extend(words);
                while heard.len() < said.len() {
                    heard.extend(client.receive_all());
                }
            }
            assert!(heard == said, "{front}, {joins}: each answer once and in order");
            client.assert_nothing_more();
            let service = balancer.service();
            assert_eq!((service.datagrams.datagrams_in, service.datagrams.datagrams_out), (330, 330));
            assert_eq!(service.total, 1);
            assert!(!joins || servers[0].calls() < 330, "some came together: {}", servers[0].calls());
        }
    }
}

#[test]
fn a_train_is_divided_where_a_flow_may_have_no_more() {
    let server = DatagramServer::silent();
    let balancer = Balancer::of_datagrams("requests = 10\nflow_timeout = \"200ms\"", "", [&server]);
    let words = train(&mut Noise::new());
    balancer.datagrams().send_train(&words);
    let heard = server.wait_for(33);
    assert!(server.words() == words, "all in order");
    let askers: BTreeMap<SocketAddr, usize> = heard.into_iter().fold(BTreeMap::new(), |mut counts, heard| {
        *counts.entry(heard.from).or_default() += 1;
        counts
    });
    let mut counts: Vec<usize> = askers.into_values().collect();
    counts.sort_unstable();
    assert_eq!(counts, [3, 10, 10, 10]);
    wait::until("all have ended", || balancer.service().active == 0);
    let ended = balancer.service().ended;
    assert_eq!(ended, [(EndReason::Complete, 3), (EndReason::IdleTimeout, 1)].into());
}

#[test]
fn answers_come_from_the_address_that_was_asked_at_wildcard_listeners() {
    let ipv4: [IpAddr; 2] = [Ipv4Addr::new(127, 0, 0, 1).into(), Ipv4Addr::new(127, 0, 0, 2).into()];
    let ipv6: IpAddr = Ipv6Addr::LOCALHOST.into();
    let cases = [
        (IpAddr::from(Ipv4Addr::UNSPECIFIED), ipv4.to_vec()),
        (Ipv6Addr::UNSPECIFIED.into(), ipv4.to_vec()),
        (Ipv6Addr::UNSPECIFIED.into(), vec![ipv6]),
    ];
    for (front, asked) in cases {
        let server = DatagramServer::silent();
        let servers = [server];
        let balancer = at(loopback::free_of_both(front), "", "", &servers);
        let port = balancer.address().port();
        let ip = if asked[0].is_ipv4() { loopback::client(1) } else { ipv6 };
        // One socket that asks all of the addresses: each is a flow.
        let first = DatagramClient::from(ip, SocketAddr::new(asked[0], port));
        let clients: Vec<_> = asked.iter().map(|ip| first.asking(SocketAddr::new(*ip, port))).collect();
        for round in 0..20 {
            let words = |which: usize| format!("round {round} at {}", asked[which]).into_bytes();
            clients.iter().enumerate().for_each(|(which, client)| client.send(&words(which)));
            let askers: Vec<_> = (0..clients.len()).map(|which| servers[0].who_said(&words(which))).collect();
            for which in (0..clients.len()).rev() {
                servers[0].send(askers[which], &words(which));
                assert_eq!(clients[which].receive_from(), (SocketAddr::new(asked[which], port), words(which)));
            }
        }
        assert_eq!(balancer.service().active, clients.len() as u64);
        let sessions = balancer.sessions(None);
        assert!(sessions.iter().all(|flow| flow.client == first.address()), "{sessions:?}");
    }
}

#[test]
fn both_protocols_have_one_port_and_one_pool() {
    // Servers of both, at the same addresses.
    let tcp = Server::several(3);
    let udp: Vec<_> = tcp.iter().map(|server| DatagramServer::at(server.address(), tests::datagrams::named)).collect();
    let text = datagrams(loopback::free(), "").replace("\"udp\"", "\"tcp+udp\"") + &datagram_pool("", &udp);
    let balancer = Setup::new().config(&text).start();
    let mut kept = Vec::new();
    for number in 0..40 {
        let (stream, datagrams) = (balancer.client_number(number), balancer.datagrams_of(number));
        let server = balancer.server_of(number);
        assert_eq!((stream.server(), datagrams.ask(b"who?")), (server, server));
        assert_eq!(stream.exchange(b"bytes"), b"bytes");
        kept.push((stream, datagrams));
    }
    assert_eq!((balancer.service().active, balancer.service().total), (80, 80));
    assert_eq!(balancer.service().datagrams.datagrams_in, 40);
    for transport in [Transport::Tcp, Transport::Udp] {
        let sessions = balancer.sessions(None);
        assert_eq!(sessions.iter().filter(|session| session.transport == transport).count(), 40);
    }
    // Each lives by itself.
    let (streams, clients): (Vec<Client>, Vec<DatagramClient>) = kept.into_iter().unzip();
    drop(streams);
    balancer.wait_for_sessions(40);
    clients.iter().zip(0..).for_each(|(client, number)| assert_eq!(client.ask(b"on"), balancer.server_of(number)));

    // Two services may have one address, one for each.
    let one = loopback::free();
    let other = Server::several(1);
    let text = datagrams(one, "")
        + &datagram_pool("", &udp)
        + &tests::config::service("tcp", one, "others")
        + &tests::config::pool("others", "", &other);
    let balancer = Setup::new().config(&text).start();
    assert_eq!(Client::connect(one).server(), other[0].address());
    let answered = DatagramClient::new(one).ask(b"who?");
    assert!(udp.iter().any(|server| server.address() == answered));
    assert_eq!(balancer.service_named("udp").total, 1);
    assert_eq!(balancer.service_named("tcp").total, 1);
}

#[test]
fn an_answer_from_elsewhere_does_not_reach_the_client() {
    let server = DatagramServer::silent();
    let balancer = Balancer::of_datagrams("", "", [&server]);
    let client = balancer.datagrams();
    client.send(b"question");
    let flow = server.who_said(b"question");
    let elsewhere = DatagramServer::at(SocketAddr::new(server.address().ip(), 0), |_, _| Vec::new());
    elsewhere.send(flow, b"of another port");
    DatagramServer::silent().send(flow, b"of another address");
    let same_port = SocketAddr::new(loopback::fresh(), server.address().port());
    DatagramServer::at(same_port, |_, _| Vec::new()).send(flow, b"of another address with the same port");
    client.asking(flow).send(b"of the client itself");
    server.send(flow, b"answer");
    assert_eq!(client.receive(), b"answer");
    client.assert_nothing_more();
    let service = balancer.service();
    assert_eq!((service.total, service.datagrams.datagrams_in, service.datagrams.datagrams_out), (1, 1, 1));
}

#[test]
fn servers_that_do_not_answer_have_one_socket_each_and_no_flows() {
    let servers = [DatagramServer::start(), DatagramServer::start()];
    let balancer = Balancer::of_datagrams("", "one_way = true", &servers);
    let clients: Vec<_> = (0..200).map(|number| (number, balancer.datagrams_of(number))).collect();
    let words = |round: usize, number: u32| format!("round {round} of {number}").into_bytes();
    for round in 0..3 {
        clients.iter().for_each(|(number, client)| client.send(&words(round, *number)));
        for server in &servers {
            let its = || (0..200).filter(|number| balancer.server_of(*number) == server.address());
            let expected: BTreeSet<_> = (0..=round).flat_map(|round| its().map(move |it| words(round, it))).collect();
            let heard: BTreeSet<_> = server.wait_for(expected.len()).into_iter().map(|heard| heard.bytes).collect();
            assert!(heard == expected && server.count() == expected.len(), "{} hears its own", server.address());
            assert_eq!(sockets_towards(server.address()), 1);
            let askers: BTreeSet<_> = server.heard().iter().map(|heard| heard.from).collect();
            assert_eq!(askers.len(), 1, "all come from one socket");
        }
    }
    assert_eq!((balancer.service().active, balancer.service().total), (0, 0));
    assert!(balancer.sessions(None).is_empty());
    assert_eq!(balancer.service().datagrams.datagrams_in, 600);
    clients.iter().for_each(|(_, client)| client.assert_nothing_more());

    // What comes follows a removal at once.
    let [gone, stays] = &servers;
    let before = gone.count();
    balancer.remove(gone.address());
    clients.iter().for_each(|(number, client)| client.send(&words(3, *number)));
    let heard: BTreeSet<_> = stays.wait_for(600 - before + 200).into_iter().map(|heard| heard.bytes).collect();
    assert!((0..200).all(|number| heard.contains(&words(3, number))));
    assert_eq!(gone.count(), before);
    wait::until("its socket is closed", || sockets_towards(gone.address()) == 0);
    balancer.assert_quiet();
}

#[test]
fn answers_that_nobody_waits_for_cost_nothing() {
    // Each question is worth a heap of answers.
    let server = DatagramServer::with(|_, _| vec![vec![0; 1000]; 50]);
    let balancer = Balancer::of_datagrams("", "one_way = true", [&server]);
    let client = balancer.datagrams();
    for round in 1..=20 {
        client.send(b"log this");
        let _ = server.wait_for(round);
    }
    client.assert_nothing_more();
    balancer.assert_quiet();
    assert_eq!(balancer.service().datagrams.datagrams_out, 0);
}

#[test]
fn each_datagram_goes_to_the_next_server_where_a_pool_says_so_and_answers_come_back() {
    let servers = DatagramServer::several(3);
    let keys = "policy = \"round-robin\"\nper_datagram = true";
    let listen = loopback::free_of_both(Ipv4Addr::UNSPECIFIED.into());
    let balancer = at(listen, "", keys, &servers);
    let asked = |last| SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), listen.port()));
    // Two sockets of one address, and each of them asks two addresses.
    let sockets = [1, 2].map(|last| DatagramClient::from(loopback::client(1), asked(last)));
    let clients = [sockets[0].asking(asked(2)), sockets[1].asking(asked(1)), sockets[0].asking(asked(1))];
    let clients: Vec<_> = clients.into_iter().chain([sockets[1].asking(asked(2))]).collect();
    let mut served: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    for round in 0..30 {
        for (which, client) in clients.iter().enumerate() {
            *served.entry(client.ask(format!("round {round} of {which}").as_bytes())).or_default() += 1;
        }
    }
    let expected = servers.iter().map(|server| (server.address(), 40)).collect();
    assert_eq!(served, expected, "in turn");
    clients.iter().for_each(DatagramClient::assert_nothing_more);

    // A train, too, goes to all of them: three parts, each in its order.
    let words = train(&mut Noise::new());
    clients[1].send_train(&words);
    let mut parts: BTreeMap<SocketAddr, Vec<Vec<u8>>> = BTreeMap::new();
    for _ in 0..33 {
        let (server, said) = clients[1].answer();
        parts.entry(server).or_default().push(said);
    }
    assert!(parts.values().all(|part| part.len() == 11), "{:?}", parts.keys());
    for part in parts.values() {
        let places: Vec<_> = part.iter().map(|one| words.iter().position(|other| other == one)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}");
    }
    // A flow of each asker with each server.
    assert_eq!(balancer.service().active, 12);
    balancer.remove(servers[0].address());
    for round in 0..10 {
        assert_ne!(clients[1].ask(format!("after {round}").as_bytes()), servers[0].address());
    }
}

/// A header of version 2 of a datagram, over IPv4.
fn header(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (SocketAddr::V4(source), SocketAddr::V4(destination)) = (source, destination) else { panic!("IPv4") };
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x12\x00\x0c".to_vec();
    header.extend(source.ip().octets().into_iter().chain(destination.ip().octets()));
    header.extend(source.port().to_be_bytes().into_iter().chain(destination.port().to_be_bytes()));
    header
}

#[test]
fn servers_get_a_header_in_each_datagram_or_in_the_first() {
    for (keys, in_each) in [("", true), ("send_proxy_in = \"first-datagram\"", false)] {
        let servers = [DatagramServer::silent(), DatagramServer::silent()];
        let balancer = Balancer::of_datagrams("", &format!("send_proxy = \"v2\"\n{keys}"), &servers);
        let number = balancer.clients_of(servers[0].address(), 1)[0];
        let client = balancer.datagrams_of(number);
        let header = header(client.address(), balancer.address());
        let train = train(&mut Noise::new());
        let with = |words: &[u8], begins: bool| if begins { [&header, words].concat() } else { words.to_vec() };
        client.send_train(&train);
        client.send(b"");
        client.send(b"and on");
        let mut expected: Vec<_> = train.iter().enumerate().map(|(at, one)| with(one, in_each || at == 0)).collect();
        expected.extend([with(b"", in_each), with(b"and on", in_each)]);
        let _ = servers[0].wait_for(35);
        assert!(servers[0].words() == expected, "{keys}");
        // The next server has not had it yet.
        balancer.remove(servers[0].address());
        client.send(b"moved");
        client.send(b"stays");
        let _ = servers[1].wait_for(2);
        assert_eq!(servers[1].words(), [with(b"moved", true), with(b"stays", in_each)]);
        assert_eq!(balancer.service().total, 1);
        let bytes: usize = train.iter().map(Vec::len).sum();
        assert_eq!(balancer.service().bytes_in, bytes as u64 + 6 + 5 + 5, "headers are not counted");
    }
    let server = DatagramServer::silent();
    let balancer = Balancer::of_datagrams("", "send_proxy = \"v2\"\none_way = true", [&server]);
    let clients = [balancer.datagrams(), balancer.datagrams()];
    clients.iter().for_each(|client| client.send(b"log this"));
    let expected: BTreeSet<_> =
        clients.iter().map(|it| [&header(it.address(), balancer.address())[..], b"log this"].concat()).collect();
    assert_eq!(server.wait_for(2).into_iter().map(|heard| heard.bytes).collect::<BTreeSet<_>>(), expected);
}

/// The client that is a balancer before this one.
const PROXY: u32 = 999_999;

#[test]
fn a_header_says_who_the_client_is_in_each_datagram_or_in_the_first() {
    for (keys, in_each) in [("", true), ("accept_proxy_in = \"first-datagram\"", false)] {
        let servers = DatagramServer::several(3);
        let accept = format!("accept_proxy = [\"{}\"]\n{keys}", loopback::client(PROXY));
        let balancer = Balancer::of_datagrams(&accept, "", &servers);
        let said = |client: SocketAddr, words: &[u8]| [&header(client, balancer.address())[..], words].concat();
        for number in 0..30 {
            let client = SocketAddr::new(loopback::client(number), 4000);
            let proxy = balancer.datagrams_of(PROXY);
            let server = balancer.server_of(number);
            proxy.send(&said(client, b"first"));
            assert_eq!(proxy.answer(), (server, b"first".to_vec()));
            proxy.send(&if in_each { said(client, b"second") } else { b"second".to_vec() });
            assert_eq!(proxy.answer(), (server, b"second".to_vec()));
            proxy.send(&if in_each { said(client, b"") } else { Vec::new() });
            assert_eq!(proxy.answer(), (server, Vec::new()));
            assert!(balancer.sessions(Some(server)).iter().any(|flow| flow.client == client));
        }
        let total = balancer.service().total;
        assert_eq!(total, 30);

        // What is none begins no flow, and what is none within a flow goes no further where each has to have one.
        let proxy = balancer.datagrams_of(PROXY);
        let client = SocketAddr::new(loopback::client(7), 4000);
        let whole = said(client, b"");
        let mut of_tcp = whole.clone();
        of_tcp[13] = 0x11;
        let mut of_version_1 = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n".to_vec();
        of_version_1.extend(b"words");
        let bad = [b"words".to_vec(), Vec::new(), whole[..27].to_vec(), whole[..12].to_vec(), of_version_1];
        bad.iter().for_each(|datagram| proxy.send(datagram));
        wait::until("they are counted", || balancer.dropped(DropReason::BadHeader) == bad.len() as u64);
        assert_eq!(balancer.service().total, total);
        proxy.send(&said(client, b"good"));
        assert_eq!(proxy.answer(), (balancer.server_of(7), b"good".to_vec()));
        assert_eq!(balancer.service().total, total + 1);
        proxy.send(b"without");
        if in_each {
            wait::until("it is counted", || balancer.dropped(DropReason::BadHeader) == bad.len() as u64 + 1);
        } else {
            assert_eq!(proxy.answer(), (balancer.server_of(7), b"without".to_vec()));
        }
        proxy.assert_nothing_more();

        // From elsewhere it is not looked for.
        let other = balancer.datagrams_of(3);
        let words = said(client, b"from elsewhere");
        assert_eq!(other.ask(&words), balancer.server_of(3));
        balancer.wait_for_log("did not begin with the PROXY protocol header");
    }
}

#[test]
fn one_balancer_behind_another_gives_clients_to_their_servers_and_answers_back() {
    for keys in ["", "first-datagram"] {
        let servers = DatagramServer::several(3);
        let key = |name: &str| if keys.is_empty() { String::new() } else { format!("{name} = \"{keys}\"\n") };
        let accept = format!("accept_proxy = [\"127.0.0.1\"]\n{}", key("accept_proxy_in"));
        let behind = Balancer::of_datagrams(&accept, "", &servers);
        let listen = loopback::free();
        let pool = format!("send_proxy = \"v2\"\n{}", key("send_proxy_in"));
        let front = Setup::new()
            .config(&(datagrams(listen, "") + &tests::config::weighted("default", &pool, [(behind.address(), 1)])))
            .start();
        let words = train(&mut Noise::new());
        for number in 0..20 {
            let client = front.datagrams_of(number);
            let server = behind.server_of(number);
            assert_eq!(client.ask(b"first"), server);
            assert_eq!(client.ask(b"second"), server);
            client.send_train(&words);
            let answers: Vec<_> = words.iter().map(|_| of_named(&client.receive())).collect();
            assert!(answers.iter().zip(&words).all(|(answer, words)| answer.0 == server && answer.1 == *words));
            assert!(behind.sessions(Some(server)).iter().any(|flow| flow.client == client.address()));
        }
    }
}

#[test]
fn what_a_listener_has_no_room_for_is_counted_and_nothing_spins() {
    let server = DatagramServer::silent();
    let balancer = Balancer::of_datagrams("", "", [&server]);
    let client = balancer.datagrams();
    // It reads nothing meanwhile: what comes is more than any listener has room for.
    balancer.signal(nix::sys::signal::Signal::SIGSTOP);
    let sent = 40_000;
    (0..sent).for_each(|_| client.send(&[1; 1200]));
    balancer.signal(nix::sys::signal::Signal::SIGCONT);
    client.send(b"the last");
    let passed = wait::for_some("all are accounted for", || {
        client.send(b"and one more to say how many were lost");
        let service = balancer.service();
        (service.receive_overflows + service.datagrams.datagrams_in > sent).then_some(service)
    });
    assert!(passed.receive_overflows > 0 && passed.datagrams.datagrams_in > 100, "{passed:?}");
    assert_eq!(passed.total, 1);
    balancer.assert_quiet();
}

/// A network that loses one datagram in ten, and changes the order of some where the kernel can do that. Whether it does.
fn lossy() -> Option<bool> {
    let [_, tc] = installed(["nft", "tc"])?;
    let netem = Command::new(tc).args("qdisc add dev lo root netem delay 1ms reorder 75%".split(' ')).output();
    let reorders = netem.is_ok_and(|output| output.status.success());
    if !reorders {
        println!("no changes of the order: this kernel has no netem");
    }
    namespace::run("nft add table inet lossy");
    namespace::run("nft add chain inet lossy input { type filter hook input priority 0 ; }");
    namespace::run("nft add rule inet lossy input meta l4proto udp numgen random mod 10 0 drop");
    Some(reorders)
}

#[test]
fn over_a_network_that_loses_datagrams_all_that_arrive_are_right_and_come_once() {
    namespace::inside("over_a_network_that_loses_datagrams_all_that_arrive_are_right_and_come_once", || {
        let servers = DatagramServer::several(3);
        let balancer = Balancer::of_datagrams("", "", &servers);
        let Some(reorders) = lossy() else { return };
        let clients: Vec<_> = (0..20).map(|number| balancer.datagrams_of(number)).collect();
        for round in 0..200 {
            clients.iter().for_each(|client| client.send(format!("{round} {}", client.address()).as_bytes()));
        }
        let mut answered = 0;
        for (number, client) in (0..).zip(&clients) {
            let mut rounds: Vec<u32> = Vec::new();
            while wait::until_readable(client) {
                let (server, words) = client.answer();
                let words = String::from_utf8(words).expect("text");
                let (round, asker) = words.split_once(' ').expect("two words");
                assert_eq!((server, asker), (balancer.server_of(number), &client.address().to_string()[..]));
                rounds.push(round.parse().expect("a number"));
            }
            assert!(reorders || rounds.is_sorted(), "client {number}: in order");
            answered += rounds.len();
            assert_eq!(rounds.iter().collect::<BTreeSet<_>>().len(), rounds.len(), "client {number}: each once");
            assert!((50..200).contains(&rounds.len()), "client {number}: {} of 200", rounds.len());
        }
        let service = balancer.service();
        assert_eq!((service.total, service.active), (20, 20));
        assert!(usize::try_from(service.datagrams.datagrams_out).expect("few") > answered, "some were lost behind it");
        assert!(service.datagrams.dropped_in.is_empty() && service.datagrams.dropped_out.is_empty());
    });
}
