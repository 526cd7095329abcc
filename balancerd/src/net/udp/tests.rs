//! The flows with real sockets and a made-up clock: thousands of random steps beside a shadow that says who is to receive
//! each datagram. A seed that fails is printed, and plays the same again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, UdpSocket};
use std::num::NonZeroU32;
use std::time::Duration;

use ring::{Identity, Member, Ring};
use wire::control::{Change, Removal, Request, Response};
use wire::flow::OnReturn;
use wire::report::{ListReport, StatusReport};
use wire::settings::{HashKey, PoolSettings, Protocol, ServerSettings, ServiceSettings, Settings};

use super::*;
use crate::event::{self, Events, Poller};
use crate::model::Effect;
use crate::model::tests::started;
use crate::net::listen::Place;
use crate::source::Source;

const POINTS: NonZeroU32 = NonZeroU32::new(64).expect("64 is not 0");
const TIMEOUT: Duration = Duration::from_secs(60);
const SERVERS: usize = 5;
const CLIENTS: usize = 12;

/// A flow as the shadow has it: its server, and when something moved.
#[derive(Debug, Clone, Copy)]
struct Shadow {
    server: usize,
    moved: Instant,
    /// The address that its server sees, once it has seen one.
    seen_as: Option<SocketAddr>,
}

struct World {
    rng: fastrand::Rng,
    now: Instant,
    poller: Poller,
    events: Events,
    scratch: Vec<u8>,
    model: Model,
    flows: Flows,
    asked: [SocketAddr; 2],
    servers: Vec<UdpSocket>,
    clients: Vec<UdpSocket>,
    /// Those that are in the pool.
    eligible: BTreeSet<usize>,
    shadow: BTreeMap<(usize, usize), Shadow>,
    follows: bool,
    sent: u64,
    no_server: u64,
}

fn socket(host: u8) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, host), 0)).expect("bound");
    socket.set_nonblocking(true).expect("set");
    socket
}

fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("bound")
}

impl World {
    fn new(seed: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        let now = event::now();
        let (poller, mut flows) = (Poller::new().expect("epoll"), Flows::new(|id| Source::Flow(id).key()));
        let place = Place { address: (Ipv4Addr::UNSPECIFIED, 0).into(), only_ipv6: false, freebind: false };
        let listener = DatagramListener::bind(place, false).expect("bound");
        let port = listener.address().port();
        let id = flows.listeners_mut().insert(listener);
        let follows = seed % 2 == 1;
        let mut pool =
            PoolSettings { points_per_weight: POINTS, key: HashKey::ClientIpPort, ..PoolSettings::default() };
        pool.flows.on_return = if follows { OnReturn::Move } else { OnReturn::Stay };
        let service = ServiceSettings {
            protocol: Protocol::Udp,
            ..ServiceSettings::new(vec![(Ipv4Addr::UNSPECIFIED, port).into()], "default")
        };
        let settings = Settings {
            services: [("default".to_owned(), service)].into(),
            pools: [("default".to_owned(), pool)].into(),
            ..Settings::default()
        };
        let model = started(&settings, now);
        let (_, service) = model.wanted_listeners(Transport::Udp).next().expect("a service");
        flows.listeners_mut()[id].serve(service);
        let clients = (0..CLIENTS).map(|at| socket(3 + (at % 4) as u8)).collect();
        let mut world = Self {
            rng,
            now,
            poller,
            events: Events::with_capacity(64),
            scratch: vec![0; 65_536],
            model,
            flows,
            asked: [1, 2].map(|host| (Ipv4Addr::new(127, 0, 0, host), port).into()),
            servers: (0..SERVERS).map(|_| socket(1)).collect(),
            clients,
            eligible: BTreeSet::new(),
            shadow: BTreeMap::new(),
            follows,
            sent: 0,
            no_server: 0,
        };
        world.with(|flows, cx| flows.settle_listeners(|id| Source::DatagramListener(id).key(), cx).expect("epoll"));
        world
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Flows, &mut Context<'_>) -> T) -> T {
        let cx =
            &mut Context { poller: &self.poller, model: &mut self.model, scratch: &mut self.scratch, now: self.now };
        act(&mut self.flows, cx)
    }

    /// Turns of the loop until nothing is ready. What goes over loopback has arrived when it is sent.
    fn run(&mut self) {
        loop {
            let was_quiet = !self.serve();
            if self.model.take_picks_changed() {
                self.flows.look_at_all();
            }
            self.with(Flows::expire);
            self.with(Flows::look);
            if was_quiet && self.flows.next_deadline(self.now).is_none_or(|at| at > self.now) {
                return;
            }
        }
    }

    /// The part of a turn in which the sockets are served that are ready. Whether there were any.
    fn serve(&mut self) -> bool {
        self.poller.wait(&mut self.events, Some(Duration::ZERO)).expect("a wait");
        let events: Vec<(Key, Ready)> = self.events.iter().collect();
        for (key, ready) in &events {
            match Source::of(*key) {
                Some(Source::DatagramListener(id)) => self.with(|flows, cx| flows.receive_from(id, cx)),
                Some(Source::Flow(id)) => self.with(|flows, cx| flows.ready(id, *ready, cx)),
                other => panic!("{other:?}"),
            }
        }
        !events.is_empty()
    }

    /// Whom the policy has for a client: by a ring that the test makes.
    fn picked(&self, client: usize) -> Option<usize> {
        let members = self.eligible.iter().map(|at| Member {
            identity: Identity::from(address(&self.servers[*at])),
            weight: 1,
            tag: *at,
        });
        let ring = Ring::build(POINTS, members).expect("a small ring");
        let peer = address(&self.clients[client]);
        ring.pick(ring::Key::of_addr(peer)).map(|member| member.tag)
    }

    /// The shadow of what a change of the pool does to the flows at once.
    fn follow_pool(&mut self) {
        for key in self.shadow.keys().copied().collect::<Vec<_>>() {
            if !self.eligible.contains(&self.shadow[&key].server) {
                self.follow(key);
            }
        }
    }

    /// The shadow of a flow goes to whom the policy has for it.
    fn follow(&mut self, key: (usize, usize)) {
        let Some(picked) = self.picked(key.0) else { return };
        let Some(flow) = self.shadow.get_mut(&key).filter(|flow| flow.server != picked) else { return };
        (flow.server, flow.seen_as) = (picked, None);
    }

    fn change(&mut self, change: Change) {
        let request = Request::Change { change, dry_run: false };
        let (response, effects) = self.model.apply(&request, None, self.now).expect("a small ring");
        assert!(matches!(response, Response::Changed(_)), "{response:?}");
        for effect in effects {
            match effect {
                Effect::EndSessions(server, reason) => self.flows.leave_server(server, reason),
                Effect::EndSession(number) => self.with(|flows, cx| flows.end_number(number, EndReason::Killed, cx)),
                _ => {}
            }
        }
    }

    /// What everybody has received since the last time: who, from whom, and what.
    fn received(sockets: &[UdpSocket]) -> Vec<(usize, SocketAddr, Vec<u8>)> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 65_536]);
        for (at, socket) in sockets.iter().enumerate() {
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                all.push((at, from, buffer[..length].to_vec()));
            }
        }
        all
    }

    fn payload(&mut self) -> Vec<u8> {
        self.sent += 1;
        let mut bytes = self.sent.to_be_bytes().to_vec();
        bytes.resize(8 + self.rng.usize(0..1400), self.sent as u8);
        if self.rng.u8(0..20) == 0 {
            bytes.clear();
        }
        bytes
    }

    /// A client sends some datagrams, one by one or as a train, and its server answers some.
    fn talk(&mut self) {
        let (client, asked) = (self.rng.usize(0..CLIENTS), self.rng.usize(0..2));
        let parts: Vec<Vec<u8>> = if self.rng.u8(0..4) == 0 {
            let size = self.rng.usize(1..1200);
            (0..self.rng.usize(2..20)).map(|at| vec![at as u8; size]).collect()
        } else {
            (0..self.rng.usize(1..4)).map(|_| self.payload()).collect()
        };
        let is_train = parts.len() > 1 && !parts[0].is_empty() && parts.iter().all(|part| part.len() == parts[0].len());
        let bytes = parts.concat();
        if is_train {
            let route = Some(datagram::Route { to: self.asked[asked], from: None, is_ipv6: false });
            let train = Train::new(&bytes, Some(parts[0].len()));
            assert_eq!(
                send_all(&self.clients[client], route, &[], train, &mut false, usize::MAX).datagrams,
                parts.len()
            );
        } else {
            for part in &parts {
                self.clients[client].send_to(part, self.asked[asked]).expect("sent");
            }
        }
        if self.follows {
            self.follow((client, asked));
        }
        let flow = self.shadow.get(&(client, asked)).map(|flow| flow.server);
        self.run();
        let received = Self::received(&self.servers);
        let Some(server) = flow.or_else(|| self.picked(client)) else {
            assert_eq!(received, [], "nobody is there to receive it");
            self.no_server += parts.len() as u64;
            return;
        };
        let all: Vec<_> = received.iter().map(|(to, _, bytes)| (*to, bytes.clone())).collect();
        let expected: Vec<_> = parts.into_iter().map(|part| (server, part)).collect();
        assert_eq!(all, expected, "its own server has them all, in order, and nobody else has one");
        let seen_as = received[0].1;
        assert!(received.iter().all(|(_, from, _)| *from == seen_as), "one flow has one address");
        let before = self.shadow.get(&(client, asked)).and_then(|flow| flow.seen_as);
        assert!(before.is_none_or(|before| before == seen_as), "a flow that stays keeps its address");
        let others = self.shadow.iter().filter(|(key, _)| **key != (client, asked));
        assert!(others.filter_map(|(_, flow)| flow.seen_as).all(|other| other != seen_as), "and that is its own");
        self.shadow.insert((client, asked), Shadow { server, moved: self.now, seen_as: Some(seen_as) });
        let answers: Vec<Vec<u8>> = (0..self.rng.usize(0..4)).map(|_| self.payload()).collect();
        for answer in &answers {
            self.servers[server].send_to(answer, seen_as).expect("sent");
        }
        self.run();
        let expected: Vec<_> = answers.into_iter().map(|answer| (client, self.asked[asked], answer)).collect();
        assert_eq!(Self::received(&self.clients), expected, "who asked has the answers, from where it asked");
    }

    /// Somebody else sends to the address of a flow.
    fn spoof(&mut self) {
        let Some((_, flow)) = self.shadow.iter().find(|(_, flow)| flow.seen_as.is_some()) else { return };
        let (server, to) = (flow.server, flow.seen_as.expect("it was looked for"));
        self.servers[(server + 1) % SERVERS].send_to(b"spoofed", to).expect("sent");
        self.run();
        assert_eq!(Self::received(&self.clients), [], "an answer of nobody's server");
    }

    fn step(&mut self) {
        match self.rng.u8(0..20) {
            0..12 => self.talk(),
            12 => self.spoof(),
            13 | 14 => {
                let server = self.rng.usize(0..SERVERS);
                let (pool, address) = ("default".to_owned(), address(&self.servers[server]));
                if self.eligible.remove(&server) {
                    let how = if self.rng.bool() { Removal::Now } else { Removal::Wait { limit_ms: None } };
                    self.change(Change::Remove { pool, server: address, how });
                    // With nobody to go on with, they end where the server goes at once.
                    if how == Removal::Now && self.eligible.is_empty() {
                        self.shadow.retain(|_, flow| flow.server != server);
                    }
                } else {
                    self.eligible.insert(server);
                    let settings = ServerSettings::default();
                    self.change(Change::Add { pool, server: address, settings });
                }
                self.run();
                self.follow_pool();
            }
            15 | 16 => {
                self.now += Duration::from_secs(self.rng.u64(1..45));
                self.run();
                let now = self.now;
                self.shadow.retain(|_, flow| flow.moved + TIMEOUT > now);
            }
            _ => {
                let filter = SessionFilter { service: None, pool: None, server: None, limit: 100 };
                let reports = self.flows.list(&filter, &self.model, self.now);
                let Some(report) = reports.first() else { return };
                let ended = self.shadow.iter().find(|((client, _), flow)| {
                    address(&self.clients[*client]) == report.client
                        && flow.moved <= self.now
                        && Some(address(&self.servers[flow.server])) == report.server
                        && milliseconds(self.now - flow.moved) == report.idle_ms
                });
                let key = *ended.expect("the shadow has it").0;
                let twin = (key.0, 1 - key.1);
                let is_twin = |twin: &Shadow| twin.moved == self.shadow[&key].moved;
                if self.shadow.get(&twin).is_some_and(is_twin) {
                    // Two of one client that moved at the same time look alike.
                    return;
                }
                self.change(Change::Kill { session: report.session });
                self.shadow.remove(&key);
            }
        }
    }

    fn check(&mut self) {
        assert_eq!(self.flows.len(), self.shadow.len());
        let request = |request: &Request, model: &mut Model, now| model.apply(request, None, now).expect("a report").0;
        let Response::Status(StatusReport { services, .. }) = request(&Request::Status, &mut self.model, self.now)
        else {
            panic!("a status")
        };
        assert_eq!(services[0].active, self.shadow.len() as u64);
        let dropped = services[0].datagrams.dropped_in.get(&DropReason::NoServer).copied().unwrap_or(0);
        assert_eq!(dropped, self.no_server);
        let list = Request::List { pool: "default".to_owned() };
        let Response::List(ListReport { servers, .. }) = request(&list, &mut self.model, self.now) else {
            panic!("a list")
        };
        for (at, socket) in self.servers.iter().enumerate() {
            let report = servers.iter().find(|report| report.server == address(socket));
            let flows = self.shadow.values().filter(|flow| flow.server == at).count() as u64;
            assert_eq!(report.map_or(0, |report| report.active), flows, "flows of server {at}");
            assert!(report.is_some() || !self.eligible.contains(&at));
        }
    }
}

#[test]
fn each_datagram_comes_to_who_is_to_have_it_whatever_changes() {
    let seeds = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).map_or(0..8, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let played = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for step in 0..700 {
                let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    world.step();
                    world.check();
                }));
                if let Err(fault) = played {
                    eprintln!("seed {seed}, step {step}: SEED={seed} plays it again");
                    std::panic::resume_unwind(fault);
                }
            }
            world.now += 2 * TIMEOUT;
            world.run();
            world.shadow.clear();
            world.check();
        });
        assert!(played.is_ok(), "seed {seed}");
    }
}

#[test]
fn an_icmp_error_is_met_once_and_takes_the_flow_to_the_next_server() {
    let mut world = World::new(0);
    let gone = address(&world.servers.remove(0));
    world.change(Change::Add { pool: "default".to_owned(), server: gone, settings: ServerSettings::default() });
    let asked = world.asked[0];
    for round in 1..=3 {
        world.clients[0].send_to(b"anybody?", asked).expect("sent");
        // It would never come to an end if the error stayed.
        world.run();
        let list = Request::List { pool: "default".to_owned() };
        let Response::List(report) = world.model.apply(&list, None, world.now).expect("a list").0 else {
            panic!("a list")
        };
        assert_eq!(report.servers[0].connect_failures, round);
        assert_eq!((report.servers[0].active, world.flows.len()), (1, 1), "with nobody else it stays");
    }
    let next = address(&world.servers[0]);
    world.change(Change::Add { pool: "default".to_owned(), server: next, settings: ServerSettings::default() });
    world.clients[0].send_to(b"and now?", asked).expect("sent");
    world.run();
    world.clients[0].send_to(b"hello", asked).expect("sent");
    world.run();
    let received = World::received(&world.servers[..1]);
    assert_eq!(received.last().map(|(_, _, bytes)| bytes.as_slice()), Some(&b"hello"[..]));
}

/// Flows of a server, as the list of its pool has them.
fn active(world: &mut World, server: &UdpSocket) -> usize {
    let list = Request::List { pool: "default".to_owned() };
    let Response::List(report) = world.model.apply(&list, None, world.now).expect("a list").0 else { panic!("a list") };
    let report = report.servers.iter().find(|report| report.server == address(server));
    report.map_or(0, |report| usize::try_from(report.active).expect("few"))
}

#[test]
fn the_many_flows_of_a_server_leave_it_a_part_in_a_turn_and_those_whose_clients_send_something_at_once() {
    const ADDRESSES: u8 = 30;
    let flows = CLIENTS * usize::from(ADDRESSES);
    assert!(flows > FLOWS_PER_TURN);
    for how in [Removal::Now, Removal::Wait { limit_ms: None }] {
        let mut world = World::new(0);
        world.model.vitals.session_limit = 2 * flows;
        let [first, second] = [0, 1].map(|at| world.servers[at].try_clone().expect("another name of it"));
        let pool = || "default".to_owned();
        world.change(Change::Add { pool: pool(), server: address(&first), settings: ServerSettings::default() });
        for host in 1..=ADDRESSES {
            let asked = SocketAddr::new(Ipv4Addr::new(127, 0, 1, host).into(), world.asked[0].port());
            for client in &world.clients {
                client.send_to(b"before", asked).expect("sent");
            }
            world.run();
            assert_eq!(World::received(&world.servers).len(), CLIENTS);
        }
        world.change(Change::Add { pool: pool(), server: address(&second), settings: ServerSettings::default() });
        world.run();
        assert_eq!(
            (active(&mut world, &first), active(&mut world, &second)),
            (flows, 0),
            "they stay with who is there"
        );

        world.change(Change::Remove { pool: pool(), server: address(&first), how });
        if world.model.take_picks_changed() {
            world.flows.look_at_all();
        }
        world.with(Flows::look);
        assert_eq!(active(&mut world, &second), FLOWS_PER_TURN, "{how:?}");
        let is_at_first = |flow: &Flow<_>| world.model.server_address(flow.server) == address(&first);
        let (_, waits) = world.flows.table.iter().find(|(_, flow)| is_at_first(flow)).expect("one that waits");
        let key = waits.key;
        let client = world.clients.iter().find(|client| address(client) == key.peer).expect("one of them");
        client.send_to(b"meanwhile", key.asked).expect("sent");
        assert!(world.serve());
        let received: Vec<_> = World::received(&world.servers).into_iter().map(|(at, _, bytes)| (at, bytes)).collect();
        assert_eq!(received, [(1, b"meanwhile".to_vec())], "{how:?}: nothing comes to the one that is removed");
        assert_eq!(active(&mut world, &second), FLOWS_PER_TURN + 1);
        world.run();
        assert_eq!((active(&mut world, &first), active(&mut world, &second)), (0, flows), "{how:?}");
        assert_eq!(world.flows.ended(), 0);
        let (done, done_then) = world.flows.ends();
        assert_eq!((done, done_then), if how == Removal::Now { (flows as u64, flows as u64) } else { (0, 0) });
    }
}

#[test]
fn flows_that_are_killed_end_though_their_server_is_lost_meanwhile() {
    let mut world = World::new(0);
    let [first, second] = [0, 1].map(|at| address(&world.servers[at]));
    let pool = || "default".to_owned();
    world.change(Change::Add { pool: pool(), server: first, settings: ServerSettings::default() });
    for client in &world.clients {
        client.send_to(b"before", world.asked[0]).expect("sent");
    }
    world.run();
    assert_eq!(World::received(&world.servers).len(), CLIENTS);
    world.change(Change::Add { pool: pool(), server: second, settings: ServerSettings::default() });
    world.change(Change::KillAll { pool: pool(), server: first });
    world.change(Change::Remove { pool: pool(), server: first, how: Removal::Now });
    // One speaks before its turn has come: that begins another flow.
    world.clients[0].send_to(b"after", world.asked[0]).expect("sent");
    assert!(world.serve());
    assert_eq!((world.flows.ended(), world.flows.len()), (1, CLIENTS));
    world.run();
    assert_eq!((world.flows.ended(), world.flows.len()), (CLIENTS as u64, 1), "each was counted as one that ends");
    let received: Vec<_> = World::received(&world.servers).into_iter().map(|(at, _, bytes)| (at, bytes)).collect();
    assert_eq!(received, [(1, b"after".to_vec())]);
}

#[test]
fn an_answer_that_is_under_way_when_a_better_server_comes_back_still_comes() {
    // Odd: flows follow.
    let mut world = World::new(1);
    let own = world.rng.usize(0..SERVERS);
    world.eligible = [own, (own + 1) % SERVERS].into();
    let client = (0..CLIENTS).find(|client| world.picked(*client) == Some(own)).expect("one of a dozen");
    let servers = [own, (own + 1) % SERVERS];
    let [own_address, other_address] = servers.map(|at| address(&world.servers[at]));
    let add = |server| Change::Add { pool: "default".to_owned(), server, settings: ServerSettings::default() };
    world.change(add(other_address));
    world.clients[client].send_to(b"question", world.asked[0]).expect("sent");
    world.run();
    let asker = World::received(&world.servers)[0].1;
    world.change(add(own_address));
    world.run();
    world.servers[servers[1]].send_to(b"answer", asker).expect("sent");
    world.run();
    assert_eq!(World::received(&world.clients), [(client, world.asked[0], b"answer".to_vec())]);
    world.clients[client].send_to(b"the next", world.asked[0]).expect("sent");
    world.run();
    let received: Vec<_> = World::received(&world.servers).into_iter().map(|(at, _, bytes)| (at, bytes)).collect();
    assert_eq!(received, [(own, b"the next".to_vec())], "it goes on with its own");
}
