//! Faults of servers, clients, the network and the machine: whoever is not concerned is served meanwhile, and when it is
//! over nothing is left of it: no descriptor, no session that is not counted, no work in a loop that has nothing to do.
//!
//! | fault | held by |
//! |---|---|
//! | a server dies in mid-stream | here; `ends.rs`, in the middle of `bulk.rs` |
//! | it accepts and says nothing | here; to checks: `health.rs` |
//! | it accepts and resets | here; `ends.rs`; that it is left out: `health.rs` |
//! | it never answers a connect | here, when packets are lost; `connect.rs`, when its queue is full |
//! | it comes and goes | here; with checks: `health.rs`; that its clients return: `connect.rs` |
//! | a thousand that are checked are dead | here |
//! | all die and one returns | here; that all may be used then: `health.rs` |
//! | a client never reads, never writes, says one byte and no more | here; its memory: `relay.rs`; its pipes: `bulk.rs` |
//! | ten thousand clients that say nothing | here |
//! | a client resets, or is gone before it is accepted | `ends.rs` |
//! | descriptors run out | `limits.rs`; for bulk: `bulk.rs` |
//! | source ports run out | here |
//! | sockets have hardly any memory | here |
//! | the log's disk is full | here |
//! | the state file's disk fails | `restart.rs` |
//! | the clock jumps | here; `layers.rs`: no other clock than the monotonic one is read; a process that stood still: here |

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage};
use tests::load::{self, Load};
use tests::noise::Noise;
use tests::{Balancer, Client, Server, Setup, client, loopback, namespace, process, programs, server, wait};
use wire::control::{Change, PoolValues};
use wire::health::CheckKind;
use wire::report::{EndReason, HealthState, ServerReport};

/// Clients of the servers that are well, which are watched meanwhile.
const BYSTANDERS: usize = 4;

/// A balancer with servers that are well and one that is not.
struct Scene {
    balancer: Balancer,
    well: Vec<Server>,
    /// Open before the first client came.
    descriptors: usize,
}

impl Scene {
    /// Two servers that are well, and these.
    fn new(setup: Setup, faulty: impl IntoIterator<Item = SocketAddr>) -> Self {
        let (balancer, well) = (setup.start(), Server::several(2));
        balancer.add_all(&well);
        for address in faulty {
            balancer.add(address);
        }
        let descriptors = balancer.descriptors();
        Self { balancer, well, descriptors }
    }

    fn is_well(&self, server: SocketAddr) -> bool {
        self.well.iter().any(|well| well.address() == server)
    }

    /// The clients with a server that is well, or those of the others.
    fn clients(&self, of_well: bool) -> impl Iterator<Item = (u32, SocketAddr)> {
        let server = |number| self.balancer.explain(loopback::client(number)).server.expect("a server");
        (0..).map(move |number| (number, server(number))).filter(move |(_, server)| self.is_well(*server) == of_well)
    }

    /// Does this while clients of the servers that are well come and stay, and have to get what they sent.
    fn meanwhile(&self, work: impl FnOnce(&Load)) {
        let bystanders: Vec<_> = self.clients(true).take(BYSTANDERS).collect();
        let exchanges = load::beside(self.balancer.address(), &bystanders, work);
        assert!(exchanges > 0, "somebody was there");
    }

    /// So many connections of clients whose server is not well.
    fn concerned(&self, count: usize) -> Vec<Client> {
        self.clients(false).take(count).map(|(number, _)| self.balancer.client_number(number)).collect()
    }

    fn set_pool(&self, values: PoolValues) {
        self.balancer.change(Change::SetPool { pool: "default".to_owned(), values }, false).expect("it is set");
    }

    fn wait_for(&self, server: SocketAddr, state: HealthState) {
        wait::until(&format!("{server} is {state}"), || self.balancer.listed(server).health.state == state);
    }

    fn rows(&self) -> Vec<ServerReport> {
        self.balancer.list().servers
    }

    /// Checks that nothing is left of what happened, and that every client which comes now is served.
    fn assert_nothing_is_left(&self) {
        self.set_pool(PoolValues { check: Some(CheckKind::None), ..PoolValues::default() });
        self.balancer.wait_for_sessions(0);
        let service = self.balancer.service();
        assert_eq!(service.total, service.ended.values().sum::<u64>(), "each that began has ended: {service:?}");
        assert!(!service.ended.contains_key(&EndReason::Fault), "{service:?}");
        assert!(self.rows().iter().all(|row| row.active == 0), "no server has any");
        wait::until("every descriptor is given back", || self.balancer.descriptors() <= self.descriptors);
        self.balancer.assert_quiet();
        self.meanwhile(|load| load.pass(4));
    }
}

/// Checks that find out soon.
fn often() -> PoolValues {
    PoolValues {
        check: Some(CheckKind::Tcp),
        check_interval_ms: Some(20),
        check_timeout_ms: Some(200),
        ..PoolValues::default()
    }
}

/// More than the sockets and pipes on the way hold, in bytes.
const MOST_OF_A_REST: u64 = 100_000_000;

/// What a client gets until its connection ends, in order or not.
fn rest(client: &Client) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = client.stream().take(MOST_OF_A_REST).read_to_end(&mut bytes);
    assert!((bytes.len() as u64) < MOST_OF_A_REST, "the end does not come");
    bytes
}

/// A server that says its name and then never ceases to speak.
fn endless(seed: u64) -> Server {
    Server::with(move |mut stream, name| {
        server::say_name(stream, name)?;
        let mut noise = Noise::of(seed);
        loop {
            stream.write_all(&noise.bytes(64 * 1024))?;
        }
    })
}

/// A server that accepts nobody: the kernel takes the connections for it, and nobody ever reads from them.
struct Deaf(TcpListener);

impl Deaf {
    /// Connections that one of them gets from the kernel, at most.
    const QUEUE: i32 = 4000;

    fn new() -> Self {
        let descriptor =
            socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        let address = SocketAddr::new(loopback::fresh(), 0);
        socket::bind(descriptor.as_raw_fd(), &SockaddrStorage::from(address)).expect("bound");
        socket::listen(&descriptor, Backlog::new(Self::QUEUE).expect("a number")).expect("it listens");
        Self(descriptor.into())
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("an address")
    }
}

#[test]
fn a_server_that_dies_in_mid_stream_is_an_end_for_its_clients_alone() {
    let seed = Noise::new().number();
    let dies = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&dies);
    let faulty = Server::with(move |mut stream, name| {
        server::say_name(stream, name)?;
        let mut noise = Noise::of(seed);
        while !told.load(Ordering::Relaxed) {
            stream.write_all(&noise.bytes(64 * 1024))?;
        }
        client::reset(stream);
        Ok(())
    });
    let scene = Scene::new(Setup::new(), [faulty.address()]);
    let clients = scene.concerned(10);
    scene.meanwhile(|load| {
        let begun: Vec<Vec<u8>> = clients
            .iter()
            .map(|client| {
                assert_eq!(client.server(), faulty.address());
                client.receive(200_000)
            })
            .collect();
        load.pass(10);
        faulty.refuse();
        dies.store(true, Ordering::Relaxed);
        for (client, mut bytes) in clients.iter().zip(begun) {
            bytes.extend(rest(client));
            assert!(bytes == Noise::of(seed).bytes(bytes.len()), "what came is how it began");
        }
        load.pass(10);
    });
    assert_eq!(scene.balancer.ended(EndReason::ServerReset), 10);
    faulty.listen();
    scene.assert_nothing_is_left();
}

#[test]
fn a_server_that_accepts_and_says_nothing_holds_up_its_own_clients_alone() {
    let faulty = Server::with(|stream, _| server::held(stream));
    let scene = Scene::new(Setup::new().options("--idle-timeout 5s"), [faulty.address()]);
    let mut clients = scene.concerned(20);
    scene.meanwhile(|load| {
        clients.iter().for_each(|client| client.send(b"is anybody there?"));
        load.pass(20);
        wait::until("it has all of them", || faulty.living() == 20);
        // Half of them give up, and the others wait for longer than they may.
        clients.drain(..10).for_each(Client::reset);
        wait::until("they are gone", || scene.balancer.ended(EndReason::ClientReset) == 10);
        clients.iter().for_each(Client::assert_ended);
        load.pass(20);
    });
    assert_eq!(scene.balancer.ended(EndReason::IdleTimeout), 10);
    scene.assert_nothing_is_left();
}

#[test]
fn a_server_that_accepts_and_resets_costs_its_own_clients_alone() {
    let faulty = Server::with(|stream, _| {
        client::reset(stream);
        Ok(())
    });
    let scene = Scene::new(Setup::new(), [faulty.address()]);
    // It passes its checks all the time.
    scene.set_pool(often());
    let its: Vec<u32> = scene.clients(false).take(10).map(|(number, _)| number).collect();
    scene.meanwhile(|load| {
        for round in 0.. {
            // Each is reset, or has another server while this one is left out.
            for number in &its {
                if let Ok(server) = scene.balancer.client_number(*number).try_server() {
                    assert!(scene.is_well(server), "{server} serves");
                }
            }
            load.pass(2);
            if round >= 20 && scene.balancer.listed(faulty.address()).health.ejections >= 2 {
                break;
            }
        }
    });
    assert!(scene.rows().iter().filter(|row| scene.is_well(row.server)).all(|row| row.health.ejections == 0));
    scene.assert_nothing_is_left();
}

/// Addresses in the namespace: that of the server, which is at the loopback device until it is sent into the void, and
/// that of the device where the void begins.
const LOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const VOID: &str = "10.77.1.1/24";

#[test]
fn a_server_whose_packets_are_lost_is_left_out_and_has_its_sessions_again() {
    namespace::inside("a_server_whose_packets_are_lost_is_left_out_and_has_its_sessions_again", || {
        namespace::run("ip link add void type veth peer name nobody");
        for device in ["void", "nobody"] {
            namespace::run(&format!("ip link set {device} up"));
        }
        namespace::run(&format!("ip address add {VOID} dev void"));
        namespace::run(&format!("ip address add {LOST}/32 dev lo"));
        // Nobody has the hardware address that packets go to then.
        namespace::run(&format!("ip neighbour replace {LOST} lladdr 02:00:00:00:00:01 dev void nud permanent"));

        let faulty = Server::start_at(IpAddr::V4(LOST));
        let scene = Scene::new(Setup::new().options("--connect-timeout 300ms"), [faulty.address()]);
        let its: Vec<u32> = scene.clients(false).take(10).map(|(number, _)| number).collect();
        let kept = scene.balancer.client_number(its[0]);
        assert_eq!(kept.server(), faulty.address());
        scene.meanwhile(|load| {
            namespace::run(&format!("ip route delete local {LOST} dev lo table local"));
            namespace::run(&format!("ip route add {LOST}/32 dev void"));
            kept.send(b"lost and sent again");
            // Nobody knows yet: a client waits, and what it said meanwhile comes to the next server.
            let unlucky = scene.balancer.client_number(its[1]);
            unlucky.send(b"hello");
            assert!(scene.is_well(unlucky.server()));
            assert_eq!(unlucky.receive(5), b"hello");
            let row = scene.balancer.listed(faulty.address());
            assert_eq!((row.connect_failures, row.connect_timeouts), (0, 1));
            load.pass(4);
            // Checks find out, and nobody has to wait any more.
            scene.set_pool(often());
            scene.wait_for(faulty.address(), HealthState::Down);
            for number in &its {
                assert!(scene.is_well(scene.balancer.client_number(*number).server()));
            }
            assert_eq!(scene.balancer.listed(faulty.address()).connect_timeouts, 1);
            load.pass(4);
            namespace::run(&format!("ip route delete {LOST}/32 dev void"));
            namespace::run(&format!("ip route add local {LOST} dev lo table local"));
            scene.wait_for(faulty.address(), HealthState::Up);
            for number in &its {
                assert_eq!(scene.balancer.client_number(*number).server(), faulty.address(), "its own clients return");
            }
            assert_eq!(kept.receive(19), b"lost and sent again");
            load.pass(4);
        });
        drop(kept);
        scene.assert_nothing_is_left();
    });
}

/// Checks that run at a time, at most: `MOST_PROBES`, where there are enough descriptors.
const MOST_CHECKS: usize = 256;

/// Pipes of the kernel that a few sessions may have, generously.
const KERNEL_PIPES: usize = 8;

#[test]
fn a_thousand_dead_servers_cost_checks_and_nobody_who_can_be_served() {
    namespace::inside("a_thousand_dead_servers_cost_checks_and_nobody_who_can_be_served", || {
        namespace::run("ip link add void type veth peer name nobody");
        for device in ["void", "nobody"] {
            namespace::run(&format!("ip link set {device} up"));
        }
        // Packets go out without asking for anybody's hardware address, and nobody takes them.
        namespace::run("ip link set void arp off");
        namespace::run("ip address add 10.77.255.1/16 dev void");
        let lost = (0..500u32).map(|number| SocketAddr::from((Ipv4Addr::from_bits(0x0a4d_0001 + number), 80)));
        // Nobody listens there.
        let refusing = (0..500u32).map(|number| SocketAddr::from((Ipv4Addr::from_bits(0x7f20_0001 + number), 1)));
        let dead: Vec<SocketAddr> = lost.chain(refusing).collect();
        let well = Server::several(2);
        let members = well.iter().map(Server::address).chain(dead).map(|address| (address, 1));
        let text = tests::config::service("web", "127.0.0.9:8000".parse().expect("an address"), "default")
            + &tests::config::weighted("default", "connect_timeout = \"500ms\"", members);
        let balancer = Setup::new().config(&text).start();
        let scene = Scene { descriptors: balancer.descriptors(), balancer, well };
        scene.set_pool(PoolValues {
            check_interval_ms: Some(200),
            check_timeout_ms: Some(500),
            check_fall: std::num::NonZeroU32::new(1),
            ..often()
        });
        let states = |state| scene.rows().iter().filter(|row| row.health.state == state).count();
        let checked = || scene.rows().iter().filter(|row| row.health.last_check.is_some()).count();
        wait::until("all are known", || checked() == 1002);
        assert_eq!((states(HealthState::Up), states(HealthState::Down)), (2, 1000));
        let mut most = 0;
        scene.meanwhile(|load| {
            for _ in 0..20 {
                load.pass(10);
                most = most.max(scene.balancer.descriptors() - scene.descriptors);
            }
        });
        let others = 4 * BYSTANDERS + 2 * KERNEL_PIPES;
        assert!((MOST_CHECKS..=MOST_CHECKS + others).contains(&most), "{most} descriptors");
        let row = scene.rows();
        assert!(row.iter().all(|row| row.connect_failures + row.connect_timeouts == 0), "no client has met one");
        // Everybody is served, whoever it is, and nobody waits.
        for number in 0..100 {
            assert!(scene.is_well(scene.balancer.client_number(number).server()));
        }
        // At a leisurely pace they cost next to nothing.
        scene.set_pool(PoolValues { check_down_interval_ms: Some(Some(2000)), ..PoolValues::default() });
        let before = process::cpu_ticks(scene.balancer.pid());
        for _ in 0..5 {
            wait::a_moment();
        }
        let ticks = process::cpu_ticks(scene.balancer.pid()) - before;
        println!("{most} descriptors at most; 500 checks a second cost {ticks} ticks in 5 s");
        assert!(ticks <= 150, "{ticks} ticks of 500 in 5 s");
        scene.assert_nothing_is_left();
    });
}

/// A server flaps while clients of its own come and go, who may fail, and those of others, who may not.
fn flap(scene: &Scene, faulty: &Server) {
    let its: Vec<u32> = scene.clients(false).take(4).map(|(number, _)| number).collect();
    let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    scene.meanwhile(|load| {
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut noise = Noise::of(1);
                for number in its.iter().cycle() {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let client = scene.balancer.client_number(*number);
                    let bytes = noise.bytes(1000);
                    // Its server may die at any moment; what comes until then is right.
                    let Ok(server) = client.try_server() else { continue };
                    assert!(server == faulty.address() || scene.is_well(server));
                    let _ = client.stream().write_all(&bytes);
                    client.stream().shutdown(std::net::Shutdown::Write).ok();
                    let got = rest(&client);
                    assert!(bytes.starts_with(&got));
                    served.fetch_add(usize::from(got == bytes), Ordering::Relaxed);
                }
            });
            for round in 0..40 {
                match round % 4 {
                    0 => faulty.refuse(),
                    2 => faulty.die(),
                    _ => faulty.listen(),
                }
                load.pass(3);
            }
            over.store(true, Ordering::Relaxed);
        });
    });
    assert!(served.into_inner() > 0, "its clients are served by others, or between two faults");
    // What had to do with no server at all never came.
    for reason in [EndReason::NoServer, EndReason::ConnectFailed] {
        assert_eq!(scene.balancer.ended(reason), 0, "{reason}");
    }
    scene.wait_for(faulty.address(), HealthState::Up);
    for number in &its {
        assert_eq!(scene.balancer.client_number(*number).server(), faulty.address(), "its own clients return");
    }
    scene.assert_nothing_is_left();
}

#[test]
fn a_server_that_flaps_costs_nobody_elses_clients_anything() {
    let faulty = Server::start();
    let scene = Scene::new(Setup::new(), [faulty.address()]);
    flap(&scene, &faulty);
}

#[test]
fn a_server_that_flaps_under_checks_costs_nobody_elses_clients_anything() {
    let faulty = Server::start();
    let scene = Scene::new(Setup::new(), [faulty.address()]);
    scene.set_pool(PoolValues {
        check_undecided_interval_ms: Some(Some(10)),
        eject_failures: Some(2),
        eject_time_ms: Some(10),
        ..often()
    });
    flap(&scene, &faulty);
}

#[test]
fn all_servers_die_and_the_one_that_returns_serves_everybody() {
    let scene = Scene::new(Setup::new(), []);
    scene.set_pool(often());
    let clients: Vec<Client> = (0..10).map(|number| scene.balancer.client_number(number)).collect();
    for client in &clients {
        assert!(scene.is_well(client.server()));
    }
    scene.well.iter().for_each(Server::die);
    clients.iter().for_each(Client::assert_ended);
    wait::until("all are down", || scene.rows().iter().all(|row| row.health.state == HealthState::Down));
    for number in 0..20 {
        scene.balancer.client_number(number).assert_ended();
    }
    let ended = scene.balancer.service().ended;
    assert_eq!(ended, [(EndReason::ServerReset, 10), (EndReason::NoServer, 20)].into());
    scene.well[1].listen();
    scene.wait_for(scene.well[1].address(), HealthState::Up);
    for number in 0..20 {
        let client = scene.balancer.client_number(number);
        assert_eq!(client.server(), scene.well[1].address());
        assert_eq!(client.exchange(b"served again"), b"served again");
    }
    scene.well[0].listen();
    scene.wait_for(scene.well[0].address(), HealthState::Up);
    scene.assert_nothing_is_left();
}

#[test]
fn clients_that_do_not_read_or_write_hold_up_nobody_and_cost_no_time() {
    const EACH: usize = 30;
    let (talker, hearer) = (endless(7), Server::start());
    let scene = Scene::new(Setup::new(), [talker.address(), hearer.address()]);
    let of = |wanted: SocketAddr| -> Vec<Client> {
        let its = scene.clients(false).filter(|(_, server)| *server == wanted).take(EACH);
        its.map(|(number, _)| scene.balancer.client_number(number)).collect()
    };
    let (never_reads, never_writes, one_byte) = (of(talker.address()), of(hearer.address()), of(hearer.address()));
    scene.meanwhile(|load| {
        one_byte.iter().for_each(|client| client.send(b"x"));
        for client in &one_byte {
            assert_eq!(client.server(), hearer.address());
            assert_eq!(client.receive(1), b"x");
        }
        scene.balancer.wait_for_sessions((3 * EACH + BYSTANDERS) as u64);
        load.pass(40);
    });
    scene.balancer.wait_for_sessions(3 * EACH as u64);
    scene.balancer.assert_quiet();
    // After all that time they are sessions like others.
    for client in one_byte.iter().chain(&never_writes) {
        client.send(b"y");
    }
    for client in &one_byte {
        assert_eq!(client.receive(1), b"y");
    }
    assert_eq!(never_reads[0].server(), talker.address());
    assert!(never_reads[0].receive(100_000) == Noise::of(7).bytes(100_000));
    drop((never_reads, never_writes, one_byte));
    scene.assert_nothing_is_left();
}

/// The number of clients, where descriptors allow them: a session takes two of the balancer and one of this process. A
/// machine with a limit of 20,000 has some 9,400 of them.
const SILENT: u64 = 10_000;

/// Descriptors that the other tests of this process have.
const OF_OTHER_TESTS: u64 = 4_000;

/// Bytes of memory that a silent session may cost, generously: of a test's build, with the tables' room to grow.
const MOST_PER_SESSION: u64 = 2_048;

#[test]
fn ten_thousand_clients_that_say_nothing_keep_nobody_from_being_served() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raised");
    let deaf: Vec<Deaf> = (0..6).map(|_| Deaf::new()).collect();
    let scene = Scene::new(Setup::new(), deaf.iter().map(Deaf::address));
    let room = [scene.balancer.status().session_limit - 100, hard - OF_OTHER_TESTS.min(hard / 2)];
    let count = room.into_iter().fold(SILENT, u64::min);
    println!("{count} clients; the limits of descriptors were {soft} and {hard}");
    scene.meanwhile(|load| load.pass(4));
    let memory = process::most_memory_kib(scene.balancer.pid());
    let silent = scene.concerned(usize::try_from(count).expect("few"));
    scene.balancer.wait_for_sessions(count);
    scene.balancer.assert_quiet();
    scene.meanwhile(|load| load.pass(40));
    let grown = (process::most_memory_kib(scene.balancer.pid()) - memory) * 1024;
    assert!(grown <= count * MOST_PER_SESSION, "{grown} bytes for {count} sessions that stand still");
    assert_eq!(scene.rows().iter().map(|row| row.connect_timeouts).sum::<u64>(), 0, "all are connected");
    let its = deaf.iter().map(|deaf| scene.balancer.remove_now(deaf.address()).sessions);
    assert_eq!(its.sum::<u64>(), count);
    assert_eq!(scene.balancer.ended(EndReason::Removed), count);
    silent.iter().for_each(Client::assert_ended);
    wait::until("the servers are gone", || scene.rows().len() == 2);
    scene.assert_nothing_is_left();
}

#[test]
fn ports_that_run_out_are_our_shortage_and_no_fault_of_the_server() {
    const PORTS: usize = 12;
    namespace::inside("ports_that_run_out_are_our_shortage_and_no_fault_of_the_server", || {
        let faulty = Server::start();
        // Nothing is forgiven: one failure of a client, or of a check, would take the server out.
        let scene = Scene::new(Setup::new(), [faulty.address()]);
        scene.set_pool(PoolValues {
            eject_failures: Some(1),
            eject_time_ms: Some(3_600_000),
            eject_max_time_ms: Some(3_600_000),
            check_fall: std::num::NonZeroU32::new(1),
            ..PoolValues::default()
        });
        // Each pair of addresses has so many ports. Servers that are well are other addresses, and clients are, too.
        // And none of them has to wait until it may be used again.
        namespace::set("ipv4/tcp_max_tw_buckets", "0");
        namespace::set("ipv4/ip_local_port_range", &format!("40000 {}", 40_000 + PORTS - 1));
        let its: Vec<u32> = scene.clients(false).take(PORTS + 5).map(|(number, _)| number).collect();
        let (mut clients, mut elsewhere) = (Vec::new(), 0);
        scene.meanwhile(|load| {
            for number in &its {
                let client = scene.balancer.client_number(*number);
                match client.try_server() {
                    Ok(server) if server == faulty.address() => clients.push(client),
                    // There are ports towards the others.
                    Ok(server) => {
                        assert!(clients.len() == PORTS && scene.is_well(server), "{server} serves");
                        elsewhere += 1;
                    }
                    Err(error) => {
                        assert_eq!(clients.len(), PORTS, "the first are served: {error}");
                        client.assert_ended();
                    }
                }
            }
            assert_eq!(clients.len(), PORTS);
            // Checks find no port either.
            scene.set_pool(often());
            scene.balancer.wait_for_log("a check was left out");
            load.pass(20);
        });
        let words = ["short of descriptors, ports or memory: the client was closed", "no free source port"];
        wait::until("it says what it is short of", || {
            let log = scene.balancer.log();
            words.iter().any(|words| log.contains(words))
        });
        assert_eq!(scene.balancer.ended(EndReason::Shortage) + elsewhere, 5, "whoever is closed is so for a shortage");
        assert_eq!(scene.balancer.ended(EndReason::ConnectFailed), 0);
        // One for each of them, wherever it went on to.
        assert_eq!(scene.balancer.status().port_shortages, 5);
        let row = scene.balancer.listed(faulty.address());
        assert_eq!((row.connect_failures, row.connect_timeouts, row.active), (0, 0, PORTS as u64));
        assert_eq!((row.health.state, row.health.ejections, row.health.failed), (HealthState::Up, 0, 0), "{row:?}");
        for client in &clients {
            assert_eq!(client.exchange(b"still here"), b"still here");
        }
        scene.set_pool(PoolValues { check: Some(CheckKind::None), ..PoolValues::default() });
        clients.drain(..5).for_each(Client::reset);
        for number in &its[..5] {
            wait::until("there are ports again", || {
                let client = scene.balancer.client_number(*number);
                client.try_server().is_ok_and(|server| {
                    client.reset();
                    server == faulty.address()
                })
            });
        }
        clients.into_iter().for_each(Client::reset);
        namespace::set("ipv4/ip_local_port_range", "32768 60999");
        scene.assert_nothing_is_left();
    });
}

#[test]
fn sockets_with_hardly_any_memory_lose_nothing() {
    namespace::inside("sockets_with_hardly_any_memory_lose_nothing", || {
        for name in ["ipv4/tcp_rmem", "ipv4/tcp_wmem"] {
            namespace::set(name, "4096 4096 4096");
        }
        let scene = Scene::new(Setup::new(), []);
        let mut noise = Noise::new();
        scene.meanwhile(|load| {
            let pairs: Vec<(Client, Vec<u8>)> =
                (0..20).map(|number| (scene.balancer.client_number(number), noise.bytes(300_000))).collect();
            thread::scope(|scope| {
                for (client, bytes) in &pairs {
                    let scene = &scene;
                    scope.spawn(move || {
                        let server = client.server();
                        assert!(scene.is_well(server));
                        assert!(client.exchange(bytes) == *bytes);
                        client.shut();
                        assert_eq!(client.rest().expect("an end in order"), b"");
                    });
                }
            });
            load.pass(10);
        });
        scene.assert_nothing_is_left();
    });
}

#[test]
fn a_full_disk_of_the_log_costs_lines_and_nothing_else() {
    namespace::inside("a_full_disk_of_the_log_costs_lines_and_nothing_else", || {
        let disk = tempfile::tempdir().expect("a directory");
        let place = disk.path().display();
        namespace::run(&format!("mount -t tmpfs -o size=64k none {place}"));
        let log = disk.path().join("log");
        let scene = Scene::new(Setup::new().options(&format!("--log {} --log-level debug", log.display())), []);
        let said = || std::fs::read_to_string(&log).expect("a log");
        wait::until("it logs", || said().contains("balancer started"));
        let filler = disk.path().join("filler");
        let full = std::fs::write(&filler, vec![0; 1_000_000]).expect_err("full").kind();
        assert_eq!(full, io::ErrorKind::StorageFull);
        let lost = || scene.balancer.status().log_lines_dropped;
        scene.meanwhile(|load| {
            // What the last page of the log has room for, and then a line for each session.
            load.pass(100);
            wait::until("lines are lost, and counted", || lost() > 0);
            load.pass(20);
        });
        scene.assert_nothing_is_left();
        std::fs::remove_file(&filler).expect("removed");
        let number = scene.clients(true).next().expect("one").0;
        wait::until("there is a log again", || {
            let client = scene.balancer.client_number(number);
            assert!(scene.is_well(client.server()));
            let port = client.stream().local_addr().expect("one").port();
            drop(client);
            wait::a_moment();
            said().contains(&format!(":{port} "))
        });
        scene.assert_nothing_is_left();
    });
}

#[test]
fn a_process_that_stood_still_blames_nobody_for_the_time_that_has_passed() {
    let scene = Scene::new(Setup::new().options("--connect-timeout 300ms"), []);
    // One failure would do, and each check has less time than the process stands still.
    scene.set_pool(PoolValues { check_fall: std::num::NonZeroU32::new(1), ..often() });
    let clients: Vec<Client> = (0..10).map(|number| scene.balancer.client_number(number)).collect();
    for client in &clients {
        assert!(scene.is_well(client.server()));
    }
    for _ in 0..3 {
        let checked = || scene.rows().iter().map(|row| row.health.passed).sum::<u64>();
        let before = checked();
        wait::until("checks go on", || checked() >= before + 3);
        scene.balancer.signal(Signal::SIGSTOP);
        let new: Vec<Client> = (10..20).map(|number| scene.balancer.client_number(number)).collect();
        new.iter().for_each(|client| client.send(b"z"));
        wait::a_moment();
        scene.balancer.signal(Signal::SIGCONT);
        for client in &new {
            assert!(scene.is_well(client.server()));
            assert_eq!(client.receive(1), b"z");
        }
        for client in &clients {
            assert_eq!(client.exchange(b"still here"), b"still here");
        }
    }
    for row in scene.rows() {
        assert_eq!((row.health.state, row.health.failed, row.connect_timeouts), (HealthState::Up, 0, 0), "{row:?}");
    }
    drop(clients);
    scene.assert_nothing_is_left();
}

#[test]
fn a_clock_that_jumps_moves_nothing_but_the_stamps_of_the_log() {
    let Some(library) = programs::fake_time() else { return };
    let setup = Setup::new();
    // By how much the clock of the wall is off is read from this file whenever somebody looks at it.
    let offset = setup.config_path().with_file_name("offset");
    let jump = |to: &str| std::fs::write(&offset, to).expect("written");
    jump("+0");
    let setup = (setup.options("--connect-timeout 300ms --idle-timeout 1h"))
        .environment("LD_PRELOAD", library)
        .environment("FAKETIME_TIMESTAMP_FILE", offset.as_os_str())
        .environment("FAKETIME_NO_CACHE", "1")
        .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let scene = Scene::new(setup, []);
    scene.set_pool(often());
    let clients: Vec<Client> = (0..10).map(|number| scene.balancer.client_number(number)).collect();
    for client in &clients {
        assert!(scene.is_well(client.server()));
    }
    let this_year = scene.balancer.log()[..4].parse::<u32>().expect("a line begins with its year");
    for (by, year) in [("+800d", this_year + 2), ("-800d", this_year - 3), ("+0", this_year)] {
        jump(by);
        let checked = || scene.rows().iter().map(|row| row.health.passed).sum::<u64>();
        let before = checked();
        wait::until("checks go on", || checked() >= before + 6);
        for client in &clients {
            assert_eq!(client.exchange(b"still here"), b"still here");
        }
        let new = scene.balancer.client_number(20);
        assert!(scene.is_well(new.server()));
        scene.set_pool(often());
        // Each command is a line of the log.
        let stamped = |line: &str| line[..4].parse().is_ok_and(|stamp: u32| stamp.abs_diff(year) <= 1);
        wait::until("the log has the new time", || scene.balancer.log().lines().last().is_some_and(stamped));
        assert!(scene.balancer.status().uptime_ms < 600_000, "it runs for as long as it does");
    }
    for row in scene.rows() {
        assert_eq!((row.health.state, row.health.failed, row.connect_timeouts), (HealthState::Up, 0, 0), "{row:?}");
    }
    assert_eq!(scene.balancer.service().ended.keys().collect::<Vec<_>>(), [&EndReason::ClientClosed]);
    drop(clients);
    scene.assert_nothing_is_left();
}

#[test]
fn what_came_while_the_process_stood_still_came_in_time() {
    let server = Server::start();
    let balancer = Setup::new().options("--idle-timeout 3s").start();
    balancer.add_all([&server]);
    // More than a turn takes in.
    let clients: Vec<Client> = (0..800).map(|number| balancer.client_number(number)).collect();
    clients.iter().for_each(|client| assert_eq!(client.server(), server.address()));
    balancer.signal(Signal::SIGSTOP);
    // While it waits, and not in the middle of a turn.
    let stat = || std::fs::read_to_string(format!("/proc/{}/stat", balancer.pid())).expect("a process");
    wait::until("it stands still", || stat().contains(") T "));
    clients.iter().for_each(|client| client.send(b"z"));
    (0..4).for_each(|_| wait::a_moment());
    balancer.signal(Signal::SIGCONT);
    clients.iter().for_each(|client| assert_eq!(client.receive(1), b"z"));
    assert_eq!(balancer.service().ended, std::collections::BTreeMap::new());
}
