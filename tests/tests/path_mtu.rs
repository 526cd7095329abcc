//! Who sends what is longer than the way to a server takes is told so, or has it go in fragments, as is said.
//!
//! The way: a host with clients, the balancer, a router, and behind it, by a link that takes less, a host with servers.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use nix::errno::Errno;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, ip_mtu, ipv6_mtu, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use tests::config::{datagram_pool, datagrams};
use tests::datagrams::send_train;
use tests::noise::Noise;
use tests::unprivileged::Unprivileged;
use tests::{DatagramServer, Setup, namespace, wait};
use wire::report::DropReason;

/// What the links take, with all headers, and the one behind the router.
const USUAL: u32 = 1500;
const NARROW: u32 = 1300;

/// Bytes of a datagram that the usual links take, and the narrow one does not.
const LONG: usize = 1400;

/// What goes before a pool's other keys.
const REPORT: &str = "path_mtu = \"report\"\n";

/// Makes the hosts, with addresses for so many balancers and servers: what kernels have learnt of the way of one is not
/// known of another's.
fn hosts(count: usize) {
    namespace::hosts(&["clients", "router", "servers"]);
    namespace::run("ip link add near type veth peer name far netns clients");
    namespace::run("ip link add far type veth peer name near netns router");
    namespace::run("ip -n router link add far type veth peer name near netns servers");
    namespace::run(&format!("ip -n router link set far mtu {NARROW}"));
    namespace::run(&format!("ip -n servers link set near mtu {NARROW}"));
    for (host, device, net, last) in [
        ("-n clients", "far", 1, 2),
        ("", "near", 1, 1),
        ("", "far", 2, 1),
        ("-n router", "near", 2, 2),
        ("-n router", "far", 3, 1),
        ("-n servers", "near", 3, 2),
    ] {
        namespace::run(&format!("ip {host} link set {device} up"));
        let more = if (net, last) == (1, 1) || (net, last) == (3, 2) { 10..10 + count } else { 0..0 };
        for last in more.chain([last]) {
            namespace::run(&format!("ip {host} addr add 10.7.{net}.{last}/24 dev {device}"));
            namespace::run(&format!("ip {host} addr add fd07:{net}::{last}/64 dev {device} nodad"));
        }
    }
    for ip in ["ip", "ip -6"] {
        let (to_servers, by, back) = match ip {
            "ip" => ("10.7.3.0/24", "10.7.2.2", "10.7.3.1"),
            _ => ("fd07:3::/64", "fd07:2::2", "fd07:3::1"),
        };
        namespace::run(&format!("{ip} route add {to_servers} via {by}"));
        namespace::run(&format!("{ip} -n servers route add default via {back}"));
    }
    namespace::at("router", || {
        namespace::set("ipv4/ip_forward", "1");
        namespace::set("ipv6/conf/all/forwarding", "1");
    });
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

use Family::{V4, V6};

/// An address of a net.
fn ip(family: Family, net: u8, last: usize) -> IpAddr {
    match family {
        V4 => format!("10.7.{net}.{last}").parse().expect("an address"),
        V6 => format!("fd07:{net}::{last}").parse().expect("an address"),
    }
}

/// The server with this number.
fn server(family: Family, number: usize) -> DatagramServer {
    let address = SocketAddr::new(ip(family, 3, 10 + number), 4000);
    namespace::at("servers", move || DatagramServer::at(address, |_, _| Vec::new()))
}

/// Where the balancer with this number listens.
fn front(family: Family, number: usize) -> SocketAddr {
    SocketAddr::new(ip(family, 1, 10 + number), 4000)
}

/// All addresses of the balancer.
fn everywhere(family: Family) -> SocketAddr {
    let ip = if family == V4 { "0.0.0.0" } else { "::" };
    SocketAddr::new(ip.parse().expect("an address"), 4000)
}

fn setup(listen: SocketAddr, service: &str, pool: &str, server: &DatagramServer) -> Setup {
    Setup::new().config(&(datagrams(listen, service) + &datagram_pool(pool, [server])))
}

/// A client. Its datagrams go whole or not at all, unless it is said otherwise.
struct Client(UdpSocket);

impl Client {
    fn of(balancer: SocketAddr) -> Self {
        let client = Self::as_usual(balancer);
        match balancer {
            SocketAddr::V4(_) => set_ip_mtu_discover(&client.0, Ipv4PathMtuDiscovery::DO).expect("set"),
            SocketAddr::V6(_) => set_ipv6_mtu_discover(&client.0, Ipv6PathMtuDiscovery::DO).expect("set"),
        }
        client
    }

    /// One whose datagrams go in fragments where the way is known to take less.
    fn as_usual(balancer: SocketAddr) -> Self {
        let family = if balancer.is_ipv4() { V4 } else { V6 };
        let socket = namespace::at("clients", || UdpSocket::bind((ip(family, 1, 2), 0)).expect("bound"));
        socket.connect(balancer).expect("there is a way");
        Self(socket)
    }

    fn headers(&self) -> usize {
        if self.0.local_addr().expect("bound").is_ipv4() { 28 } else { 48 }
    }

    /// What its kernel has learnt that the way takes, with all headers.
    fn mtu(&self) -> u32 {
        let is_ipv4 = self.headers() == 28;
        if is_ipv4 { ip_mtu(&self.0) } else { ipv6_mtu(&self.0) }.expect("it is connected")
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes)
    }

    fn send_train(&self, train: &[Vec<u8>]) {
        send_train(&self.0, self.0.peer_addr().expect("connected"), train);
    }

    /// Sends this until the kernel knows that it is too long. What the way takes.
    fn learn(&self, bytes: &[u8]) -> u32 {
        wait::until("its kernel knows that it is too long", || {
            self.send(bytes).is_err_and(|error| error.raw_os_error() == Some(Errno::EMSGSIZE as i32))
        });
        self.clear();
        self.mtu()
    }

    /// The news of what is too long comes with the next call as well, which then sends nothing.
    fn clear(&self) {
        let _ = self.0.take_error();
    }

    /// Sends this until the server has heard `words`.
    fn send_until_heard(&self, bytes: &[u8], server: &DatagramServer, words: &[u8]) {
        wait::until("the server hears it", || {
            // What was too long before may be told with this one.
            let _ = self.send(bytes);
            server.words().iter().any(|heard| heard == words)
        });
    }
}

/// A header of the PROXY protocol, version 2, of datagrams over IPv4.
fn header() -> Vec<u8> {
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x12\x00\x0c".as_slice(), &[192, 0, 2, 1, 192, 0, 2, 2, 0x10, 0, 0x20, 0]].concat()
}

#[test]
fn who_sends_what_is_too_long_learns_what_is_not() {
    namespace::inside("who_sends_what_is_too_long_learns_what_is_not", || {
        let headed = "accept_proxy = \"10.7.1.0/24\"";
        // What the way takes is what the narrow link does: with another header of IP, and without what goes before a
        // datagram.
        let cases = [
            (V4, V4, "", "", 1300),
            (V6, V6, "", "", 1300),
            (V4, V6, "", "", 1280),
            (V6, V4, "", "", 1320),
            (V4, V4, "", "one_way = true", 1300),
            (V6, V6, "", "one_way = true", 1300),
            (V4, V4, "", "per_datagram = true", 1300),
            (V4, V4, "", "send_proxy = \"v2\"", 1300 - 28),
            (V4, V4, "", "send_proxy = \"v2\"\nsend_proxy_in = \"first-datagram\"", 1300 - 28),
            (V4, V4, "", "send_proxy = \"v2\"\none_way = true", 1300 - 28),
            (V4, V4, headed, "", 1300 + 28),
            // Nobody has to send less: what is still too long then goes in fragments.
            (V6, V6, "", "send_proxy = \"v2\"", 1280),
        ];
        hosts(2 * cases.len());
        let mut noise = Noise::new();
        for (number, (family, server_family, service, pool, mtu)) in cases.into_iter().enumerate() {
            let case = format!("case {number}");
            let server = server(server_family, number);
            let balancer = setup(everywhere(family), service, &format!("{REPORT}{pool}"), &server).start();
            let before = if service == headed { header() } else { Vec::new() };
            let long = [&before[..], &noise.bytes(LONG)].concat();
            // From this one's the balancer learns of the way. The other one asks another address: its kernel knows
            // nothing yet.
            let _ = Client::of(front(family, 2 * number)).learn(&long);
            let client = Client::of(front(family, 2 * number + 1));
            let dropped = balancer.dropped(DropReason::TooLong);
            client.send(&long).expect("sent");
            wait::until("its kernel is told", || client.mtu() != USUAL);
            assert_eq!((client.mtu(), balancer.dropped(DropReason::TooLong)), (mtu, dropped + 1), "{case}");
            assert_eq!(client.learn(&long), mtu, "{case}");
            let words = noise.bytes(mtu as usize - client.headers() - before.len());
            let said = [&before[..], &words].concat();
            client.send(&said).expect("sent");
            wait::until(&case, || server.words().iter().any(|heard| heard.ends_with(&words)));
            assert!(server.words().iter().all(|heard| heard.len() < LONG), "{case}: nothing longer came");
            // One byte more is too long for its kernel.
            assert_eq!(client.learn(&[&said[..], b"x"].concat()), mtu, "{case}");
        }
    });
}

#[test]
fn one_datagram_that_is_lost_on_the_way_is_told_of() {
    namespace::inside("one_datagram_that_is_lost_on_the_way_is_told_of", || {
        let headed = "accept_proxy = \"10.7.1.0/24\"";
        let cases = [
            (V4, V4, "", "", 1300),
            (V6, V6, "", "", 1300),
            (V6, V4, "", "per_datagram = true", 1320),
            (V4, V4, "", "send_proxy = \"v2\"", 1300 - 28),
            (V4, V4, headed, "", 1300 + 28),
        ];
        hosts(cases.len());
        for (number, (client, server_family, service, pool, mtu)) in cases.into_iter().enumerate() {
            let server = server(server_family, number);
            let balancer = setup(front(client, number), service, &format!("{REPORT}{pool}"), &server).start();
            let client = Client::of(balancer.address());
            let before = if service == headed { header() } else { Vec::new() };
            client.send(&[&before[..], b"short"].concat()).expect("sent");
            client.send(&[&before[..], &[7; LONG]].concat()).expect("sent");
            wait::until("its kernel is told", || client.mtu() != USUAL);
            assert_eq!((client.mtu(), server.wait_for(1).len()), (mtu, 1), "case {number}");
        }
    });
}

#[test]
fn who_sends_in_fragments_goes_on_in_fragments() {
    namespace::inside("who_sends_in_fragments_goes_on_in_fragments", || {
        // The last says whether the socket that hears them hears both families.
        let cases = [
            (V4, V4, "", false),
            (V6, V6, "", false),
            (V4, V6, "", false),
            (V6, V4, "", true),
            (V4, V4, "", true),
            (V4, V4, "one_way = true", false),
        ];
        hosts(cases.len());
        for (number, (client, server_family, keys, hears_both)) in cases.into_iter().enumerate() {
            let server = server(server_family, number);
            let listen = if hears_both { everywhere(V6) } else { front(client, number) };
            let balancer = setup(listen, "", &format!("{REPORT}{keys}"), &server).start();
            // It has its kernel do as most do: once that is told, it sends in fragments.
            let client = Client::as_usual(front(client, number));
            let words = Noise::new().bytes(LONG);
            client.send_until_heard(&words, &server, &words);
            assert!((1280..=1320).contains(&client.mtu()), "case {number}");
            // So does what is longer than any link takes.
            let words = Noise::new().bytes(20_000);
            let before = balancer.dropped(DropReason::TooLong);
            client.send(&words).expect("sent");
            assert_eq!(server.who_said(&words).is_ipv4(), server_family == V4, "case {number}");
            assert_eq!(balancer.dropped(DropReason::TooLong), before, "case {number}");
        }
    });
}

#[test]
fn a_balancer_that_hears_both_families_tells_clients_of_both() {
    namespace::inside("a_balancer_that_hears_both_families_tells_clients_of_both", || {
        hosts(2);
        let server = server(V4, 0);
        let _balancer = setup(everywhere(V6), "", REPORT, &server).start();
        for (family, mtu) in [(V4, 1300), (V6, 1320)] {
            // Each address is one of it: from there the word comes.
            for number in 0..2 {
                let client = Client::of(front(family, number));
                assert_eq!((client.mtu(), client.learn(&[7; LONG])), (USUAL, mtu));
            }
        }
    });
}

#[test]
fn what_is_too_long_goes_in_fragments_where_nothing_is_said() {
    namespace::inside("what_is_too_long_goes_in_fragments_where_nothing_is_said", || {
        hosts(3);
        for (number, (family, keys)) in [(V4, ""), (V6, ""), (V4, "one_way = true")].into_iter().enumerate() {
            let server = server(family, number);
            let balancer = setup(front(family, number), "", keys, &server).start();
            let client = Client::of(balancer.address());
            let words = Noise::new().bytes(LONG);
            client.send_until_heard(&words, &server, &words);
            assert_eq!((client.mtu(), balancer.dropped(DropReason::TooLong)), (USUAL, 0), "{family:?} {keys}");
        }
    });
}

#[test]
fn what_nobody_has_to_shorten_goes_in_fragments() {
    namespace::inside("what_nobody_has_to_shorten_goes_in_fragments", || {
        // With the header before it, it is too long for the narrow link.
        let words = Noise::new().bytes(1280 - 48);
        let keys = ["", "one_way = true"];
        hosts(keys.len());
        for (number, keys) in keys.into_iter().enumerate() {
            let server = server(V6, number);
            let pool = format!("{REPORT}send_proxy = \"v2\"\n{keys}");
            let balancer = setup(front(V6, number), "", &pool, &server).start();
            let client = Client::of(balancer.address());
            wait::until("the server hears it", || {
                client.send(&words).expect("sent");
                server.words().iter().any(|heard| heard.len() == 52 + words.len() && heard.ends_with(&words))
            });
            assert_eq!((client.mtu(), balancer.dropped(DropReason::TooLong)), (USUAL, 0), "{keys}");
        }
    });
}

#[test]
fn what_fits_of_a_train_goes_on() {
    namespace::inside("what_fits_of_a_train_goes_on", || {
        hosts(2);
        let mut noise = Noise::new();
        for (family, mtu) in [(V4, 1300), (V6, 1300)] {
            let server = server(family, 0);
            let balancer = setup(everywhere(family), "", REPORT, &server).start();
            // The balancer knows the way from one client; the other one asks another address, and does not know it yet.
            assert_eq!(Client::of(front(family, 0)).learn(&[7; LONG]), mtu);
            let client = Client::of(front(family, 1));
            let before = balancer.dropped(DropReason::TooLong);
            let mut train: Vec<_> = (0..5).map(|at| noise.bytes(if at < 4 { LONG } else { 500 })).collect();
            client.send_train(&train);
            wait::until("the last one arrives", || server.words() == train[4..]);
            assert_eq!(balancer.dropped(DropReason::TooLong), before + 4);
            wait::until("it is told", || client.mtu() == mtu);
            client.clear();
            // What fits goes as a train again.
            server.join_trains();
            let calls = server.calls();
            train.iter_mut().for_each(|bytes| bytes.truncate(mtu as usize - client.headers()));
            client.send_train(&train);
            wait::until("all of it arrives", || server.words()[1..] == train);
            assert_eq!(server.calls(), calls + 1);
        }
    });
}

#[test]
fn without_the_capability_what_is_too_long_goes_in_fragments_and_the_log_says_so() {
    let test = "without_the_capability_what_is_too_long_goes_in_fragments_and_the_log_says_so";
    namespace::inside(test, || {
        hosts(2);
        for (number, keys) in ["", "one_way = true"].into_iter().enumerate() {
            let server = server(V4, number);
            let front = front(V4, number);
            let setup = setup(front, "", &format!("{REPORT}{keys}"), &server);
            let Some(balancer) = Unprivileged::start(&setup) else { return };
            for _ in 0..3 {
                let (client, words) = (Client::of(front), Noise::new().bytes(LONG));
                client.send_until_heard(&words, &server, &words);
                assert_eq!(client.mtu(), USUAL, "{keys}");
            }
            let log = balancer.log();
            assert_eq!(log.matches("takes the capability CAP_NET_RAW").count(), 1, "{keys}: {log}");
        }
    });
}

#[test]
fn a_pool_is_set_to_report_and_back() {
    namespace::inside("a_pool_is_set_to_report_and_back", || {
        hosts(2);
        let server = server(V4, 0);
        let balancer = setup(everywhere(V4), "", "", &server).start();
        let mut noise = Noise::new();
        let mut goes_in_fragments = |client: &Client| {
            let words = noise.bytes(LONG);
            client.send_until_heard(&words, &server, &words);
            assert_eq!((client.mtu(), balancer.dropped(DropReason::TooLong)), (USUAL, 0));
        };
        let [before, other] = [0, 1].map(|number| Client::of(front(V4, number)));
        goes_in_fragments(&before);
        assert!(balancer.ctl("pool set default --path-mtu report").status.success());
        // The flow of this one is there already. That of the other one begins, and is not told as long as it sends what
        // fits.
        goes_in_fragments(&before);
        other.send_until_heard(b"short", &server, b"short");
        assert!(balancer.ctl("pool set default --path-mtu fragment").status.success());
        goes_in_fragments(&other);
        assert!(balancer.ctl("pool set default --path-mtu report").status.success());
        assert_eq!(other.learn(&[7; LONG]), NARROW);
    });
}
