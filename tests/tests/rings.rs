//! Rings that take their time are made beside the traffic, and beside other questions.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::unix::net::UnixStream;

use tests::balancer::WAIT;
use tests::config::{service, weighted};
use tests::load;
use tests::questions::{state, weight};
use tests::{Balancer, Server, Setup, loopback, wait};
use wire::control::{PoolValues, ServerValues};
use wire::frame::{Decoder, RESPONSE_LIMIT, frame, greeting};
use wire::health::CheckKind;
use wire::report::{ChangeReport, HealthState};
use wire::settings::{AdminState, DEFAULT_POOL, Policy, ServerSettings};
use wire::{Change, Refusal, Request, Response};

/// A weight whose points are more than a change in the loop may bring. Greater ones only take longer.
const HEAVY: u32 = 40;

fn set(server: SocketAddr, values: ServerValues) -> Change {
    Change::Set { pool: DEFAULT_POOL.to_owned(), server, values }
}

fn set_pool(values: PoolValues) -> Change {
    Change::SetPool { pool: DEFAULT_POOL.to_owned(), values }
}

/// A balancer with these servers, one of them heavy.
fn heavy(servers: &[Server]) -> Balancer {
    let balancer = Balancer::of(&servers[1..]);
    balancer.add_weighted(servers[0].address(), HEAVY);
    balancer
}

/// A connection with a request that is under way.
struct Asked(UnixStream);

impl Asked {
    /// Sends a request; it has come to the balancer then.
    fn new(balancer: &Balancer, request: &Request) -> Self {
        let mut stream = UnixStream::connect(balancer.socket()).expect("it listens");
        let bytes = [greeting(), frame(request).expect("it fits")].concat();
        stream.write_all(&bytes).expect("it reads");
        // What is asked later is read later.
        drop(balancer.status());
        Self(stream)
    }

    fn change(balancer: &Balancer, change: Change) -> Self {
        Self::new(balancer, &Request::Change { change, dry_run: false })
    }

    fn answer(mut self) -> Response {
        let mut decoder = Decoder::new(RESPONSE_LIMIT);
        let mut chunk = [0; 4096];
        loop {
            if let Some(response) = decoder.next().expect("an answer") {
                return response;
            }
            let count = self.0.read(&mut chunk).expect("the balancer is there");
            assert!(count > 0, "closed without an answer");
            decoder.push(&chunk[..count]);
        }
    }
}

#[test]
fn large_changes_under_load_are_what_their_dry_runs_said_and_no_request_fails() {
    let servers = Server::several(3);
    let balancer = Balancer::of(&servers);
    let [one, two] = [servers[0].address(), servers[1].address()];
    let points = |points| set_pool(PoolValues { points_per_weight: NonZeroU32::new(points), ..PoolValues::default() });
    let policy = |policy| set_pool(PoolValues { policy: Some(policy), ..PoolValues::default() });
    let settings = ServerSettings { weight: HEAVY, ..ServerSettings::default() };
    let changes = [
        set(one, weight(HEAVY)),
        set(one, state(AdminState::Drain)),
        set(one, state(AdminState::Ready)),
        Change::Remove { pool: DEFAULT_POOL.to_owned(), server: one, how: WAIT },
        Change::Add { pool: DEFAULT_POOL.to_owned(), server: one, settings },
        set(two, weight(50)),
        points(500),
        policy(Policy::RoundRobin),
        policy(Policy::ConsistentHash),
        points(1024),
        set(one, weight(1)),
        set(two, weight(1)),
    ];
    let digest = balancer.digest();
    let places = [(balancer.address(), servers.iter().map(Server::address).collect())];
    load::during(&places, |load| {
        for change in changes {
            let foretold = balancer.change(change.clone(), true).expect("it can be");
            let done = balancer.change(change, false).expect("it can be");
            let sessions = foretold.sessions;
            assert_eq!(foretold, ChangeReport { dry_run: true, sessions, ..done.clone() });
            assert_eq!(Some(balancer.digest()), done.digest);
            load.pass(20);
        }
    });
    assert_eq!(balancer.digest(), digest, "back where it began");
}

#[test]
fn changes_that_come_while_a_ring_is_made_are_carried_out_after_it_in_their_order() {
    let servers = Server::several(3);
    let balancer = heavy(&servers);
    let [light, other] = [servers[1].address(), servers[2].address()];
    for _ in 0..2 {
        let weights = [HEAVY, 3, HEAVY - 1, 7, 1];
        let asked: Vec<Asked> =
            weights.iter().map(|number| Asked::change(&balancer, set(light, weight(*number)))).collect();
        let removed = Asked::change(&balancer, tests::balancer::remove(other, WAIT));
        let refused = Asked::change(&balancer, set(other, weight(2)));
        for asked in asked {
            assert!(matches!(asked.answer(), Response::Changed(_)));
        }
        assert!(matches!(removed.answer(), Response::Changed(_)));
        assert_eq!(refused.answer(), Response::Refused(Refusal::NotThere { server: other }));
        assert_eq!(balancer.listed(light).weight, 1, "the last of them holds");
        balancer.add(other);
    }
    // What cannot be is refused, as always.
    let twice = Change::Add { pool: DEFAULT_POOL.to_owned(), server: light, settings: ServerSettings::default() };
    assert_eq!(balancer.change(twice, false), Err(Refusal::AlreadyThere { server: light, weight: 1 }));
}

#[test]
fn who_has_gone_while_its_change_waited_changes_nothing_and_a_ring_that_is_being_made_is_finished() {
    let servers = Server::several(3);
    let balancer = heavy(&servers);
    let [light, other] = [servers[1].address(), servers[2].address()];
    // Those who have asked until now have been let go.
    balancer.assert_quiet();
    let (mut waited, descriptors) = (0, balancer.descriptors());
    // Whether the second was still waiting when it went is not for a test to say: until it was.
    wait::until("a change has waited and was dropped", || {
        let large = Asked::change(&balancer, set(light, weight(HEAVY)));
        let waiting = Asked::change(&balancer, set(other, weight(9)));
        drop((large, waiting));
        // Behind both of them.
        balancer.change(set(light, state(AdminState::Ready)), false).expect("it can be");
        assert_eq!(balancer.listed(light).weight, HEAVY);
        let dropped = balancer.log().matches("who asked for it has gone").count() > waited;
        assert_eq!(balancer.listed(other).weight, if dropped { 1 } else { 9 });
        waited += usize::from(dropped);
        for server in [light, other] {
            balancer.change(set(server, weight(1)), false).expect("it can be");
        }
        dropped
    });
    wait::until("their connections are given up", || balancer.descriptors() <= descriptors);
}

#[test]
fn one_that_only_sends_no_more_is_still_told() {
    let servers = Server::several(2);
    let balancer = heavy(&servers);
    let light = servers[1].address();
    let large = Asked::change(&balancer, set(light, weight(HEAVY)));
    let waiting = Asked::change(&balancer, set(light, weight(2)));
    waiting.0.shutdown(std::net::Shutdown::Write).expect("it is open");
    assert!(matches!(large.answer(), Response::Changed(_)));
    assert!(matches!(waiting.answer(), Response::Changed(_)));
    assert_eq!(balancer.listed(light).weight, 2);
}

#[test]
fn a_stop_while_a_ring_is_made_goes_on_with_the_sessions_and_refuses_the_change() {
    let servers = Server::several(2);
    let mut balancer = heavy(&servers);
    let client = balancer.client();
    let served = client.server();
    let light = servers[1].address();
    let large = Asked::change(&balancer, set(light, weight(HEAVY)));
    let waiting = Asked::change(&balancer, set(light, weight(3)));
    let stop = balancer.call(&Request::Stop { now: false, drain_ms: Some(60_000) });
    assert!(matches!(stop, Response::Stopping(_)));
    // Which of them came first is not for a test to say; but none is left without an answer.
    for asked in [large, waiting] {
        match asked.answer() {
            Response::Changed(report) => assert!(!report.dry_run),
            other => assert_eq!(other, Response::Refused(Refusal::Stopping)),
        }
    }
    assert_eq!(client.exchange(b"x"), b"x", "{served} has it still");
    drop(client);
    assert!(balancer.wait_for_end().success());
}

#[test]
fn a_file_that_is_read_while_a_ring_is_made_comes_after_it_and_leaves_what_it_does_not_say() {
    let servers = Server::several(3);
    let listen = loopback::free();
    let text = |listen, weights: [u32; 3]| {
        let servers = servers.iter().map(Server::address).zip(weights);
        service("web", listen, DEFAULT_POOL) + &weighted(DEFAULT_POOL, "", servers)
    };
    let balancer = Setup::new().config(&text(listen, [HEAVY, 1, 1])).start();
    balancer.configure(&text(listen, [HEAVY, 1, 50]));
    let large = Asked::change(&balancer, set(servers[1].address(), weight(HEAVY)));
    let reload = Asked::new(&balancer, &Request::Reload { instead: None, dry_run: false });
    let small = Asked::change(&balancer, set(servers[0].address(), weight(HEAVY - 1)));
    assert!(matches!(large.answer(), Response::Changed(_)));
    let Response::Reloaded(report) = reload.answer() else { panic!("it is taken") };
    assert_eq!(report.changes.len(), 1, "{report:?}");
    assert!(matches!(small.answer(), Response::Changed(_)));
    let weights = servers.iter().map(|server| balancer.listed(server.address()).weight);
    assert_eq!(weights.collect::<Vec<_>>(), [HEAVY - 1, HEAVY, 50]);
    let digest = balancer.digest();
    let fresh = Setup::new().config(&text(loopback::free(), [HEAVY - 1, HEAVY, 50])).start();
    assert_eq!(fresh.digest(), digest, "the ring is a function of who is in it");
}

#[test]
fn a_server_that_comes_up_in_a_large_ring_starts_slowly_and_its_list_is_whole() {
    let servers = Server::several(3);
    let balancer = Balancer::of(&servers[1..]);
    // More points than a ring has that changes in the loop.
    balancer.add_weighted(servers[0].address(), 100);
    let values = PoolValues {
        check: Some(CheckKind::Tcp),
        check_interval_ms: Some(20),
        eject_failures: Some(0),
        slow_start_ms: Some(3_600_000),
        ..PoolValues::default()
    };
    balancer.change(set_pool(values), false).expect("it is set");
    let digest = balancer.digest();
    let row = || balancer.listed(servers[0].address());
    let sum = || balancer.list().servers.iter().map(|row| row.share).sum::<f64>();
    assert!(row().share > 0.9 && (sum() - 1.0).abs() < 1e-9);
    servers[0].refuse();
    wait::until("it is down", || row().health.state == HealthState::Down);
    assert!(row().share == 0.0 && (sum() - 1.0).abs() < 1e-9);
    servers[0].listen();
    wait::until("it has the first part of its weight", || row().share > 0.0);
    // 1 of 64 parts of 100, beside 2; no list has seen more of it.
    assert!((0.3..0.6).contains(&row().share) && row().ramp == 1.0 / 64.0, "{:?}", row());
    assert!((sum() - 1.0).abs() < 1e-9);
    assert!(balancer.served(0..50).contains(&servers[0].address()));
    let quick = PoolValues { slow_start_ms: Some(600), ..PoolValues::default() };
    balancer.change(set_pool(quick), false).expect("it is set");
    wait::until("it has all of its weight", || row().ramp == 1.0);
    assert_eq!(balancer.digest(), digest);
    assert!(row().share > 0.9);
}
