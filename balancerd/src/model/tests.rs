//! The model with plain values and a made-up clock.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;

use proptest::prelude::*;
use wire::address::AddressFault;
use wire::control::{Change, MAX_SERVERS, PoolValues, Removal, ServerValues};
use wire::report::{ChangeReport, ExplainReport, ListReport, ServerReport, ServerState, Skip, SkippedReport};
use wire::settings::{AdminState, HashKey, LoadFactor, Policy, ServerSettings, ServiceSettings};

use super::*;
use crate::event;

const POINTS: NonZeroU32 = NonZeroU32::new(64).expect("64 is not 0");

fn vitals(now: Instant) -> Vitals {
    Vitals {
        pid: 7,
        started: now,
        session_limit: 100,
        drain_timeout: Duration::from_secs(30),
        config_file: None,
        reload_failure: None,
        state_file: "state".to_owned(),
        log: "stderr".to_owned(),
        unsaved: None,
        longest_turn: Duration::ZERO,
        log_lines_dropped: 0,
    }
}

fn settings(listen: &str, points_per_weight: NonZeroU32) -> Settings {
    let service = ServiceSettings::new(vec![listen.parse().expect("an address")], "default");
    Settings {
        services: [("default".to_owned(), service)].into(),
        pools: [("default".to_owned(), PoolSettings { points_per_weight, ..PoolSettings::default() })].into(),
        ..Settings::default()
    }
}

/// A model that was just started with these settings.
fn started(settings: &Settings, now: Instant) -> Model {
    let mut model = Model::new(1, vitals(now));
    let prepared = prepare(settings, settings, settings.clone(), Starting::new()).expect("sound");
    model.adopt(prepared, true, now);
    model
}

fn model() -> (Model, ServiceId, Instant) {
    let now = event::now();
    let model = started(&settings("0.0.0.0:80", POINTS), now);
    let service = model.service_named("default").expect("a service");
    (model, service, now)
}

fn address(number: u8) -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, number), 8080).into()
}

fn client(number: u32) -> SocketAddr {
    (Ipv4Addr::from(0xc0a8_0000 | number), 40_000).into()
}

fn explain(model: &mut Model, client: SocketAddr, now: Instant) -> ExplainReport {
    let request = Request::Explain { client: client.ip(), port: client.port(), service: None };
    let Response::Explained(report) = model.apply(&request, now).0 else { panic!("{request}") };
    report
}

fn add(server: SocketAddr, weight: u32) -> Request {
    let settings = ServerSettings { weight, ..ServerSettings::default() };
    Request::Change { change: Change::Add { pool: "default".to_owned(), server, settings }, dry_run: false }
}

fn remove(server: SocketAddr, now: bool) -> Request {
    let how = if now { Removal::Now } else { WAIT };
    Request::Change { change: Change::Remove { pool: "default".to_owned(), server, how }, dry_run: false }
}

fn dry(request: Request) -> Request {
    match request {
        Request::Change { change, .. } => Request::Change { change, dry_run: true },
        other => other,
    }
}

const WAIT: Removal = Removal::Wait { limit_ms: None };

/// The servers of the pool default that a restart would have, and their weights.
fn servers(model: &Model) -> HashMap<SocketAddr, u32> {
    let pool = &model.settings().pools["default"];
    pool.servers.iter().map(|(address, server)| (*address, server.weight)).collect()
}

/// The report of a change that is expected to be made.
fn changed(model: &mut Model, request: &Request, now: Instant) -> (ChangeReport, Vec<Effect>) {
    match model.apply(request, now) {
        (Response::Changed(report), effects) => (report, effects),
        other => panic!("{request} gave {other:?}"),
    }
}

fn refused(model: &mut Model, request: &Request, now: Instant) -> Refusal {
    match model.apply(request, now) {
        (Response::Refused(refusal), effects) if effects.is_empty() => refusal,
        other => panic!("{request} gave {other:?}"),
    }
}

fn list(model: &Model) -> ListReport {
    model.list("default", model.vitals.started).expect("the pool default")
}

fn row(model: &Model, server: SocketAddr) -> Option<ServerReport> {
    list(model).servers.into_iter().find(|row| row.server == server)
}

/// A session of a client, from its beginning to the server's answer.
fn connect(model: &mut Model, service: ServiceId, client: SocketAddr) -> ServerId {
    let now = model.vitals.started;
    model.session_began(service, client.ip(), now).expect("nobody is kept out");
    let (server, _) = model.pick(service, client, &[]).expect("a server");
    model.connect_began(server);
    model.connect_done(server);
    server
}

fn picks(model: &mut Model, service: ServiceId) -> Vec<Option<SocketAddr>> {
    (0..500).map(|number| model.pick(service, client(number), &[]).map(|(_, address)| address)).collect()
}

#[test]
fn an_empty_pool_has_no_server_for_anybody() {
    let (mut model, service, now) = model();
    assert_eq!(model.pick(service, client(1), &[]), None);
    let report = explain(&mut model, client(1), now);
    assert_eq!((report.server, report.point, report.next), (None, None, vec![]));
}

#[test]
fn an_addition_takes_clients_for_itself_alone_and_says_how_many() {
    let (mut model, service, now) = model();
    let (report, effects) = changed(&mut model, &add(address(1), 1), now);
    assert_eq!((report.moved, effects), (1.0, vec![Effect::Save]));
    assert_eq!((report.moves[0].from, report.moves[0].to), (None, Some(address(1))));
    let before = picks(&mut model, service);
    let (report, _) = changed(&mut model, &add(address(2), 1), now);
    let after = picks(&mut model, service);
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
    assert!(moved.clone().all(|(_, after)| *after == Some(address(2))));
    assert!((report.moved - 0.5).abs() < 0.2, "{}", report.moved);
    assert!((moved.count() as f64 / 500.0 - report.moved).abs() < 0.15);
    assert_eq!(row(&model, address(2)).expect("there").share, report.moved);
}

#[test]
fn a_dry_run_says_what_the_change_then_does_and_changes_nothing() {
    let (mut model, service, now) = model();
    for number in 1..5 {
        changed(&mut model, &add(address(number), u32::from(number)), now);
    }
    connect(&mut model, service, client(3));
    for request in [add(address(9), 3), remove(address(2), false), remove(address(3), true)] {
        let (listed, kept) = (list(&model), model.settings());
        let (foretold, effects) = changed(&mut model, &dry(request.clone()), now);
        assert_eq!(effects, []);
        assert_eq!((list(&model), model.settings()), (listed, kept));
        assert_eq!(model.servers.len(), list(&model).servers.len(), "no entry is left behind");
        let (done, _) = changed(&mut model, &request, now);
        assert_eq!(ChangeReport { dry_run: false, ..foretold }, done);
    }
}

#[test]
fn a_removed_server_lives_until_its_last_session_ends() {
    let (mut model, service, now) = model();
    changed(&mut model, &add(address(1), 1), now);
    changed(&mut model, &add(address(2), 1), now);
    let clients: Vec<SocketAddr> = (0..50).map(client).collect();
    let sessions: Vec<ServerId> = clients.iter().map(|client| connect(&mut model, service, *client)).collect();
    let (gone, _) = model.pick(service, clients[0], &[]).expect("a server");
    let its = sessions.iter().filter(|server| **server == gone).count() as u64;

    let address = model.server_address(gone);
    let (report, effects) = changed(&mut model, &remove(address, false), now);
    assert_eq!((report.sessions, effects), (its, vec![Effect::Save]));
    let leaving = row(&model, address).expect("still listed");
    assert_eq!((leaving.state, leaving.active, leaving.share), (ServerState::Leaving, its, 0.0));
    assert!(clients.iter().all(|client| model.pick(service, *client, &[]).expect("the other").0 != gone));
    assert_eq!(servers(&model).len(), 1, "it is not kept for a restart");

    assert_eq!(refused(&mut model, &remove(address, false), now), Refusal::Leaving { server: address, sessions: its });
    let (_, effects) = changed(&mut model, &remove(address, true), now);
    assert_eq!(effects, [Effect::Save, Effect::EndSessions(gone, EndReason::Removed)]);
    for server in sessions.into_iter().filter(|server| *server == gone) {
        assert!(row(&model, address).is_some());
        model.session_ended(service, client(0).ip(), Some(server), EndReason::ClientClosed);
    }
    assert_eq!(row(&model, address), None);
    assert_eq!(refused(&mut model, &remove(address, false), now), Refusal::NotThere { server: address });
}

#[test]
fn a_leaving_server_that_is_added_again_comes_back_with_its_sessions() {
    let (mut model, service, now) = model();
    changed(&mut model, &add(address(1), 1), now);
    let server = connect(&mut model, service, client(1));
    changed(&mut model, &remove(address(1), false), now);
    let (report, _) = changed(&mut model, &add(address(1), 5), now);
    assert_eq!(report.sessions, 1);
    let back = row(&model, address(1)).expect("there");
    assert_eq!((back.state, back.weight, back.active, back.total), (ServerState::Ready, 5, 1, 1));
    assert_eq!(model.pick(service, client(1), &[]), Some((server, address(1))));
}

#[test]
fn an_idle_server_goes_at_once() {
    let (mut model, _, now) = model();
    changed(&mut model, &add(address(1), 1), now);
    changed(&mut model, &remove(address(1), false), now);
    assert_eq!(list(&model).servers, []);
    assert!(model.servers.is_empty());
}

#[test]
fn weight_0_drains() {
    let (mut model, service, now) = model();
    let (report, _) = changed(&mut model, &add(address(1), 0), now);
    assert_eq!((report.moved, report.moves.len()), (0.0, 0));
    assert_eq!(row(&model, address(1)).expect("there").state, ServerState::Drain);
    assert_eq!(model.pick(service, client(1), &[]), None);
    let report = explain(&mut model, client(1), now);
    assert_eq!(report.skipped, [SkippedReport { server: address(1), reason: Skip::Drain }]);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let (mut model, _, now) = model();
    changed(&mut model, &add(address(1), 2), now);
    let before = (list(&model), model.settings());
    let parse = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let (zero, own, other) = (parse("10.0.0.1:0"), parse("127.0.0.1:80"), parse("10.0.0.2:80"));
    for (request, refusal) in [
        (add(address(1), 3), Refusal::AlreadyThere { server: address(1), weight: 2 }),
        (add(parse("[::ffff:10.0.0.1]:8080"), 3), Refusal::AlreadyThere { server: address(1), weight: 2 }),
        (remove(address(2), true), Refusal::NotThere { server: address(2) }),
        (add(zero, 1), Refusal::Unaddressable { server: zero, fault: AddressFault::PortZero }),
        (add(own, 1), Refusal::Itself { server: own }),
        (add(other, 257), Refusal::WeightTooLarge { weight: 257 }),
    ] {
        assert_eq!(refused(&mut model, &request, now), refusal);
        assert_eq!(refused(&mut model, &dry(request), now), refusal);
        assert_eq!((list(&model), model.settings()), before);
    }
}

#[test]
fn a_ring_that_would_be_too_large_is_refused_and_no_entry_is_left() {
    let now = event::now();
    let mut model = started(&settings("0.0.0.0:80", NonZeroU32::new(1 << 20).expect("not 0")), now);
    changed(&mut model, &add(address(1), 1), now);
    for request in [dry(add(address(2), 256)), add(address(2), 256)] {
        assert!(matches!(refused(&mut model, &request, now), Refusal::TooManyPoints { .. }));
        assert_eq!((model.servers.len(), list(&model).servers.len()), (1, 1));
    }
}

#[test]
fn a_failed_connect_moves_on_and_is_counted() {
    let (mut model, service, now) = model();
    for number in 1..4 {
        changed(&mut model, &add(address(number), 1), now);
    }
    let order = explain(&mut model, client(5), now);
    let (mut tried, mut seen) = (Vec::new(), Vec::new());
    model.session_began(service, client(5).ip(), now).expect("let in");
    while let Some((server, address)) = model.pick(service, client(5), &tried) {
        model.connect_began(server);
        model.connect_failed(server, ConnectFailure::Refused);
        tried.push(server);
        seen.push(address);
    }
    model.session_ended(service, client(0).ip(), None, EndReason::ConnectFailed);
    let foretold: Vec<SocketAddr> = order.server.into_iter().chain(order.next).collect();
    assert_eq!(seen, foretold);
    for number in 1..4 {
        let row = row(&model, address(number)).expect("there");
        assert_eq!((row.connect_failures, row.active, row.total), (1, 0, 0));
    }
    let report = model.status(now).services.remove(0);
    assert_eq!((report.active, report.total), (0, 1));
    assert_eq!(report.ended, [(EndReason::ConnectFailed, 1)].into());
}

#[test]
fn what_is_restored_is_the_same_pool() {
    let (mut first, service, now) = model();
    for number in [5, 3, 9, 1] {
        changed(&mut first, &add(address(number), u32::from(number)), now);
    }
    changed(&mut first, &add(address(7), 0), now);
    let mut second = started(&first.settings(), first.vitals.started);
    let other = second.service_named("default").expect("a service");
    assert_eq!(list(&second), list(&first));
    assert_eq!(picks(&mut second, other), picks(&mut first, service));
}

#[test]
fn a_pool_has_a_limit_of_servers() {
    let now = event::now();
    let server = |number: usize| -> SocketAddr { (Ipv4Addr::from(0x0a00_0000 + number as u32), 80).into() };
    let drained = ServerSettings { weight: 0, ..ServerSettings::default() };
    let mut full = settings("0.0.0.0:81", POINTS);
    let pool = full.pools.get_mut("default").expect("a pool");
    pool.servers = (0..MAX_SERVERS).map(|number| (server(number), drained)).collect();
    let mut model = started(&full, now);
    assert_eq!(refused(&mut model, &add(server(MAX_SERVERS), 0), now), Refusal::TooManyServers);
    full.pools.get_mut("default").expect("a pool").servers.insert(server(MAX_SERVERS), drained);
    assert!(matches!(prepare(&full, &full, full.clone(), Starting::new()), Err(Refusal::TooManyServers)));
}

#[test]
fn only_what_would_come_back_to_the_listener_is_the_balancer_itself() {
    let own = |listen: &str, server: &str| {
        let now = event::now();
        let mut model = started(&settings(listen, POINTS), now);
        let add = dry(add(server.parse().expect("an address"), 1));
        matches!(model.apply(&add, now).0, Response::Refused(Refusal::Itself { .. }))
    };
    for (listen, server) in [
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("0.0.0.0:80", "127.0.0.1:80"),
        ("[::]:80", "[::1]:80"),
        ("[::]:80", "127.0.0.9:80"),
    ] {
        assert!(own(listen, server), "{listen} answers at {server}");
    }
    for (listen, server) in [
        ("0.0.0.0:80", "[::1]:80"),
        ("0.0.0.0:80", "127.0.0.1:81"),
        ("10.0.0.1:80", "127.0.0.1:80"),
        ("0.0.0.0:80", "10.0.0.2:80"),
    ] {
        assert!(!own(listen, server), "{listen} does not answer at {server}");
    }
}

#[test]
fn stopping_takes_no_changes_and_a_later_word_wins_only_if_it_gives_a_time() {
    let (mut model, _, now) = model();
    changed(&mut model, &add(address(1), 1), now);
    let stop = |drain_ms| Request::Stop { now: false, drain_ms };
    let second = Duration::from_secs(1);
    assert_eq!(model.apply(&stop(Some(5000)), now).1, [Effect::Stop(now + 5 * second)]);
    assert_eq!(model.phase(), Phase::Stopping);
    let (response, effects) = model.apply(&stop(None), now + second);
    assert_eq!(effects, [Effect::Stop(now + 5 * second)]);
    assert!(matches!(response, Response::Stopping(StoppingReport { drain_ms: 4000, .. })));
    assert_eq!(model.apply(&stop(Some(9000)), now).1, [Effect::Stop(now + 9 * second)]);
    assert_eq!(refused(&mut model, &add(address(2), 1), now), Refusal::Stopping);
    assert!(matches!(model.apply(&stop(Some(u64::MAX)), now).0, Response::Stopping(_)), "no overflow");
    let at_once = Request::Stop { now: true, drain_ms: None };
    assert_eq!(model.apply(&at_once, now + second).1, [Effect::Stop(now + second)]);
}

/// What may happen to a model, in any order.
#[derive(Debug, Clone)]
enum Step {
    Add(u8, u32),
    Remove(u8, bool),
    Connect(u32),
    Fail(u32),
    End(prop::sample::Index, usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u8..8, 0u32..4).prop_map(|(server, weight)| Step::Add(server, weight)),
        (1u8..8, any::<bool>()).prop_map(|(server, now)| Step::Remove(server, now)),
        (0u32..50).prop_map(Step::Connect),
        (0u32..50).prop_map(Step::Fail),
        (any::<prop::sample::Index>(), 0..EndReason::ALL.len()).prop_map(|(at, reason)| Step::End(at, reason)),
    ]
}

proptest! {
    /// Against a shadow that knows nothing of rings: who is there, with which weight, and who has which session.
    #[test]
    fn counts_and_members_hold_whatever_happens(steps in prop::collection::vec(any_step(), 0..80)) {
        let (mut model, service, now) = model();
        let mut weights: HashMap<SocketAddr, u32> = HashMap::new();
        let mut sessions: Vec<ServerId> = Vec::new();
        let (mut began, mut ended) = (0, 0);
        for step in steps {
            match step {
                Step::Add(number, weight) => {
                    let server = address(number);
                    let (response, _) = model.apply(&add(server, weight), now);
                    let fresh = !weights.contains_key(&server);
                    prop_assert_eq!(matches!(response, Response::Changed(_)), fresh);
                    weights.entry(server).or_insert(weight);
                }
                Step::Remove(number, at_once) => {
                    let server = address(number);
                    let (_, effects) = model.apply(&remove(server, at_once), now);
                    weights.remove(&server);
                    for effect in effects {
                        if let Effect::EndSessions(id, reason) = effect {
                            for gone in sessions.extract_if(.., |session| *session == id) {
                                model.session_ended(service, client(0).ip(), Some(gone), reason);
                                ended += 1;
                            }
                        }
                    }
                }
                Step::Connect(number) => {
                    began += 1;
                    if model.pick(service, client(number), &[]).is_some() {
                        sessions.push(connect(&mut model, service, client(number)));
                    } else {
                        model.session_began(service, client(5).ip(), now).expect("let in");
                        model.session_ended(service, client(0).ip(), None, EndReason::NoServer);
                        ended += 1;
                    }
                }
                Step::Fail(number) => {
                    if let Some((server, _)) = model.pick(service, client(number), &[]) {
                        model.connect_began(server);
                        model.connect_failed(server, ConnectFailure::TimedOut);
                    }
                }
                Step::End(at, reason) => {
                    if !sessions.is_empty() {
                        let server = sessions.swap_remove(at.index(sessions.len()));
                        model.session_ended(service, client(0).ip(), Some(server), EndReason::ALL[reason]);
                        ended += 1;
                    }
                }
            }
            let eligible = weights.values().any(|weight| *weight > 0);
            prop_assert_eq!(model.pick(service, client(1), &[]).is_some(), eligible);
            prop_assert_eq!(&servers(&model), &weights);
            let report = model.status(now).services.remove(0);
            prop_assert_eq!(report.active, sessions.len() as u64);
            prop_assert_eq!(report.total, began);
            prop_assert_eq!(report.ended.values().sum::<u64>(), ended);
            for row in list(&model).servers {
                let active = sessions.iter().filter(|id| model.server_address(**id) == row.server).count();
                prop_assert_eq!(row.active, active as u64);
                prop_assert!(row.state != ServerState::Leaving || active > 0);
                prop_assert_eq!(row.share > 0.0, row.state == ServerState::Ready);
            }
        }
    }
}

fn set(server: SocketAddr, values: ServerValues) -> Request {
    Request::Change { change: Change::Set { pool: "default".to_owned(), server, values }, dry_run: false }
}

fn state(state: AdminState) -> ServerValues {
    ServerValues { state: Some(state), ..ServerValues::default() }
}

fn set_pool(values: PoolValues) -> Request {
    Request::Change { change: Change::SetPool { pool: "default".to_owned(), values }, dry_run: false }
}

fn policy(policy: Policy) -> Request {
    set_pool(PoolValues { policy: Some(policy), ..PoolValues::default() })
}

#[test]
fn who_is_not_ready_gets_nobody_and_gets_its_own_back() {
    let (mut model, service, now) = model();
    for number in 1..5 {
        changed(&mut model, &add(address(number), 1), now);
    }
    let before = picks(&mut model, service);
    for out in [AdminState::Drain, AdminState::Maintenance] {
        let foretold = changed(&mut model, &dry(set(address(2), state(out))), now).0;
        let (report, effects) = changed(&mut model, &set(address(2), state(out)), now);
        assert_eq!((report.moved, report.digest), (foretold.moved, foretold.digest));
        assert_eq!(effects, [Effect::Save]);
        let after = picks(&mut model, service);
        for (before, after) in before.iter().zip(&after) {
            assert_ne!(*after, Some(address(2)));
            assert!(before == after || *before == Some(address(2)), "only its own clients move");
        }
        let report = explain(&mut model, client(1), now);
        let reason = if out == AdminState::Drain { Skip::Drain } else { Skip::Maintenance };
        assert_eq!(report.skipped, [SkippedReport { server: address(2), reason }]);
        changed(&mut model, &set(address(2), state(AdminState::Ready)), now);
        assert_eq!(picks(&mut model, service), before);
    }
    assert_eq!(refused(&mut model, &set(address(2), ServerValues::default()), now), Refusal::NothingToSet);
    assert_eq!(
        refused(&mut model, &set(address(9), state(AdminState::Drain)), now),
        Refusal::NotThere { server: address(9) }
    );
}

#[test]
fn round_robin_goes_through_the_servers_and_comes_back_to_the_first() {
    let (mut model, service, now) = model();
    for number in 1..4 {
        changed(&mut model, &add(address(number), 1), now);
    }
    changed(&mut model, &policy(Policy::RoundRobin), now);
    let order: Vec<SocketAddr> = picks(&mut model, service).into_iter().take(7).flatten().collect();
    assert_eq!(order, [1, 2, 3, 1, 2, 3, 1].map(address));
    let next = explain(&mut model, client(1), now);
    assert_eq!((next.policy, next.hash, next.key), (Policy::RoundRobin, None, None));
    let foretold = next.server.expect("a server");
    assert_eq!(model.pick(service, client(1), &[]).map(|(_, address)| address), Some(foretold));
}

#[test]
fn least_connections_goes_to_the_emptiest_for_its_weight() {
    let (mut model, service, now) = model();
    changed(&mut model, &policy(Policy::LeastConnections), now);
    changed(&mut model, &add(address(1), 1), now);
    changed(&mut model, &add(address(2), 3), now);
    let sessions: Vec<ServerId> = (0..40).map(|number| connect(&mut model, service, client(number))).collect();
    assert_eq!(
        (row(&model, address(1)).expect("there").active, row(&model, address(2)).expect("there").active),
        (10, 30)
    );
    let first = sessions[0];
    let its = model.server_address(first);
    model.session_ended(service, client(0).ip(), Some(first), EndReason::ClientClosed);
    assert_eq!(model.pick(service, client(1), &[]).map(|(_, address)| address), Some(its), "there is room again");
}

#[test]
fn no_server_holds_more_than_the_bound_and_what_it_passes_on_is_counted() {
    let (mut model, service, now) = model();
    for number in 1..5 {
        changed(&mut model, &add(address(number), 1), now);
    }
    let factor = LoadFactor::from_thousandths(1250);
    changed(&mut model, &set_pool(PoolValues { max_load: Some(factor), ..PoolValues::default() }), now);
    for count in 1..=100u64 {
        // One client only: without the bound all would go to one server.
        connect(&mut model, service, client(7));
        let most = list(&model).servers.iter().map(|row| row.active).max().expect("servers");
        assert!(most <= (count * 1250).div_ceil(4000), "{most} of {count}");
    }
    let order = explain(&mut model, client(7), now);
    let overflows: u64 = list(&model).servers.iter().map(|row| row.overflows).sum();
    assert!(overflows >= 60, "{overflows}");
    assert!(order.skipped.iter().all(|skipped| skipped.reason == Skip::Loaded), "{order:?}");
}

#[test]
fn a_full_server_passes_its_clients_on_and_takes_them_back() {
    let (mut model, service, now) = model();
    for number in 1..4 {
        changed(&mut model, &add(address(number), 1), now);
    }
    let (first, its) = model.pick(service, client(7), &[]).expect("a server");
    let next = explain(&mut model, client(7), now).next[0];
    let limit = ServerValues { max_sessions: Some(NonZeroU64::new(1)), ..ServerValues::default() };
    changed(&mut model, &set(its, limit), now);
    assert_eq!(connect(&mut model, service, client(7)), first);
    assert_eq!(model.pick(service, client(7), &[]).map(|(_, address)| address), Some(next));
    let explained = explain(&mut model, client(7), now);
    assert_eq!(explained.skipped, [SkippedReport { server: its, reason: Skip::Full }]);
    assert_eq!(row(&model, its).expect("there").overflows, 1);
    model.session_ended(service, client(7).ip(), Some(first), EndReason::ClientClosed);
    assert_eq!(model.pick(service, client(7), &[]).map(|(_, address)| address), Some(its));
}

#[test]
fn neighbours_share_a_server_by_their_network_and_connections_spread_by_their_port() {
    let (mut model, service, now) = model();
    for number in 1..9 {
        changed(&mut model, &add(address(number), 1), now);
    }
    let key = |key| set_pool(PoolValues { key: Some(key), ..PoolValues::default() });
    let mut of = |key_: HashKey, clients: &mut dyn Iterator<Item = SocketAddr>| {
        changed(&mut model, &key(key_), now);
        clients
            .filter_map(|client| model.pick(service, client, &[]))
            .map(|(_, address)| address)
            .collect::<BTreeSet<_>>()
    };
    let network = HashKey::ClientSubnet { ipv4: 24, ipv6: 56 };
    let mut neighbours = (0..200u8).map(|number| SocketAddr::from(([192, 0, 2, number], 4000)));
    assert_eq!(of(network, &mut neighbours.clone()).len(), 1);
    assert!(of(HashKey::ClientIp, &mut neighbours).len() > 4);
    let mut ports = (4000..4200).map(|port| SocketAddr::from(([192, 0, 2, 1], port)));
    assert_eq!(of(HashKey::ClientIp, &mut ports.clone()).len(), 1);
    assert!(of(HashKey::ClientIpPort, &mut ports).len() > 4);
}

#[test]
fn a_slow_start_takes_clients_little_by_little_and_moves_nobody_else() {
    let (mut model, service, now) = model();
    let second = Duration::from_secs(1);
    for number in 1..4 {
        changed(&mut model, &add(address(number), 1), now);
    }
    let before = picks(&mut model, service);
    changed(&mut model, &set_pool(PoolValues { slow_start_ms: Some(64_000), ..PoolValues::default() }), now);
    let (report, _) = changed(&mut model, &add(address(9), 1), now);
    let mut shares = Vec::new();
    for at in 0..=70 {
        while model.next_deadline().is_some_and(|due| due <= now + at * second) {
            let due = model.next_deadline().expect("something is due");
            assert_eq!(model.expire(due.max(now + at * second)), []);
        }
        let after = picks(&mut model, service);
        assert!(before.iter().zip(&after).all(|(before, after)| before == after || *after == Some(address(9))));
        shares.push(row(&model, address(9)).expect("there").share);
    }
    assert!(shares.is_sorted(), "{shares:?}");
    assert!(shares[0] > 0.0 && shares[0] < 0.03 && shares[32] > 0.08 && shares[32] < 0.18, "{shares:?}");
    assert_eq!(shares.last(), Some(&report.moved));
    assert_eq!(Some(list(&model).digest), report.digest, "at the end it is a ring as any other");
    assert_eq!((row(&model, address(9)).expect("there").ramp, model.next_deadline()), (1.0, None));
}

#[test]
fn a_removal_within_a_time_closes_what_is_left_and_another_grade_may_follow() {
    let (mut model, service, now) = model();
    changed(&mut model, &add(address(1), 1), now);
    let server = connect(&mut model, service, client(1));
    connect(&mut model, service, client(2));
    let remove = |how| Request::Change {
        change: Change::Remove { pool: "default".to_owned(), server: address(1), how },
        dry_run: false,
    };
    let over = Removal::Over { time_ms: 10_000 };
    changed(&mut model, &remove(over), now);
    assert_eq!(refused(&mut model, &remove(over), now), Refusal::Leaving { server: address(1), sessions: 2 });
    assert_eq!(model.expire(now), []);
    let half = model.next_deadline().expect("a time");
    assert_eq!(half, now + Duration::from_secs(5));
    assert_eq!(model.expire(half), [Effect::EndIdlest(server, 1, EndReason::Removed)]);
    changed(&mut model, &remove(Removal::Wait { limit_ms: Some(1000) }), half);
    assert_eq!(model.expire(half), []);
    let end = model.next_deadline().expect("a time");
    assert_eq!(end, half + Duration::from_secs(1));
    assert_eq!(model.expire(end), [Effect::EndSessions(server, EndReason::Removed)]);
}

fn two_pools() -> Settings {
    let mut settings = settings("127.0.0.1:80", POINTS);
    let servers =
        |range: std::ops::Range<u8>| range.map(|number| (address(number), ServerSettings::default())).collect();
    settings.pools.get_mut("default").expect("a pool").servers = servers(1..4);
    let other = PoolSettings { policy: Policy::RoundRobin, servers: servers(3..6), ..PoolSettings::default() };
    settings.pools.insert("other".to_owned(), other);
    let service = ServiceSettings::new(vec!["127.0.0.1:81".parse().expect("an address")], "other");
    settings.services.insert("other".to_owned(), service);
    settings
}

/// What a reload of this file comes to.
fn reload(model: &mut Model, file: Settings, now: Instant) -> Result<Vec<Effect>, Refusal> {
    let prepared = prepare(model.said(), &model.settings(), file, model.starting())?;
    Ok(model.adopt(prepared, false, now))
}

#[test]
fn a_file_that_says_nothing_new_changes_nothing() {
    let now = event::now();
    let file = two_pools();
    let mut model = started(&file, now);
    let service = model.service_named("default").expect("a service");
    connect(&mut model, service, client(1));
    changed(&mut model, &set(address(1), state(AdminState::Drain)), now);
    let before = format!("{model:?}");
    assert_eq!(reload(&mut model, file, now), Ok(vec![]));
    assert_eq!(format!("{model:?}"), before, "not the least thing");
}

#[test]
fn a_reload_changes_all_that_differs_and_lets_sessions_live() {
    let now = event::now();
    let mut model = started(&two_pools(), now);
    let (one, other) = (model.service_named("default").expect("one"), model.service_named("other").expect("another"));
    let (first, second) = (connect(&mut model, one, client(1)), connect(&mut model, other, client(1)));
    let (its, other_its) = (model.server_address(first), model.server_address(second));
    let mut file = two_pools();
    file.services.remove("other");
    file.pools.remove("other");
    file.services.get_mut("default").expect("a service").max_sessions = NonZeroU64::new(5);
    let pool = file.pools.get_mut("default").expect("a pool");
    pool.servers.remove(&its);
    pool.servers.insert(address(8), ServerSettings { weight: 3, ..ServerSettings::default() });
    assert_eq!(reload(&mut model, file.clone(), now), Ok(vec![Effect::Save, Effect::Unlisten(other)]));
    assert_eq!(model.settings(), file);
    assert_eq!(model.wanted_listeners().map(|(_, service)| service).collect::<Vec<_>>(), [one]);
    assert_eq!(row(&model, its).expect("it leaves").state, ServerState::Leaving);
    assert_eq!((model.server_address(second), model.servers[second].traffic.active), (other_its, 1));
    model.session_ended(one, client(1).ip(), Some(first), EndReason::ClientClosed);
    model.session_ended(other, client(1).ip(), Some(second), EndReason::ClientClosed);
    assert_eq!(model.services.len(), 2, "clients may still come");
    model.listening([(one, vec!["127.0.0.1:80".parse().expect("an address")])].into());
    assert_eq!((model.services.len(), model.pools.len(), model.servers.len()), (1, 1, 3), "nothing is left behind");
}

#[test]
fn a_file_that_cannot_be_is_refused_and_names_what_is_wrong() {
    let now = event::now();
    let mut model = started(&two_pools(), now);
    let before = format!("{model:?}");
    let wrong = |change: fn(&mut Settings)| {
        let mut file = two_pools();
        change(&mut file);
        file
    };
    for (file, refusal) in [
        (
            wrong(|file| {
                let taken = file.services["default"].listen.clone();
                file.services.get_mut("other").expect("a service").listen = taken;
            }),
            Refusal::AddressTaken {
                listen: "127.0.0.1:80".parse().expect("an address"),
                service: "default".to_owned(),
            },
        ),
        (
            wrong(|file| {
                let heavy = ServerSettings { weight: 257, ..ServerSettings::default() };
                file.pools.get_mut("other").expect("a pool").servers.insert(address(9), heavy);
            }),
            Refusal::WeightTooLarge { weight: 257 },
        ),
        (
            wrong(|file| {
                let own = file.services["other"].listen[0];
                file.pools.get_mut("default").expect("a pool").servers.insert(own, ServerSettings::default());
            }),
            Refusal::Itself { server: "127.0.0.1:81".parse().expect("an address") },
        ),
    ] {
        assert_eq!(reload(&mut model, file, now), Err(refusal));
        assert_eq!(format!("{model:?}"), before);
    }
}

proptest! {
    /// A reload comes to the same picks as a start with what it means, whatever was there before.
    #[test]
    fn a_reload_comes_to_what_a_start_comes_to(
        weights in prop::collection::vec((1u8..12, 0u32..4), 0..12),
        others in prop::collection::vec((1u8..12, 0u32..4), 0..12),
        by_ring in any::<bool>(),
    ) {
        let now = event::now();
        let file = |weights: &[(u8, u32)]| {
            let mut file = settings("127.0.0.1:80", POINTS);
            let pool = file.pools.get_mut("default").expect("a pool");
            pool.policy = if by_ring { Policy::ConsistentHash } else { Policy::RoundRobin };
            let server = |&(number, weight): &(u8, u32)| {
                (address(number), ServerSettings { weight, ..ServerSettings::default() })
            };
            pool.servers = weights.iter().map(server).collect();
            file
        };
        let mut model = started(&file(&weights), now);
        reload(&mut model, file(&others), now).expect("sound");
        let mut fresh = started(&file(&others), now);
        let (one, other) = (model.service_named("default").expect("one"), fresh.service_named("default").expect("one"));
        prop_assert_eq!(list(&model).servers, list(&fresh).servers);
        let (model_picks, fresh_picks) = (picks(&mut model, one), picks(&mut fresh, other));
        if by_ring {
            prop_assert_eq!(model_picks, fresh_picks);
        } else {
            let count = |picks: &[Option<SocketAddr>]| picks.iter().flatten().collect::<BTreeSet<_>>().len();
            prop_assert_eq!(count(&model_picks), count(&fresh_picks));
        }
    }
}

#[test]
fn file_and_commands_that_do_not_go_together_are_refused_with_both_named() {
    let now = event::now();
    let mut model = started(&two_pools(), now);
    let settings = ServiceSettings::new(vec!["127.0.0.1:82".parse().expect("an address")], "other");
    let add = Request::Change { change: Change::AddService { service: "more".to_owned(), settings }, dry_run: false };
    changed(&mut model, &add, now);
    let mut file = two_pools();
    file.pools.remove("other");
    file.services.remove("other");
    let refusal = reload(&mut model, file, now).expect_err("more has no pool then").to_string();
    assert!(refusal.contains("service more, which a command has made") && refusal.contains("pool other"), "{refusal}");
}

#[test]
fn a_bound_of_the_load_freezes_nobody_out_while_one_server_has_room() {
    for dead in [false, true] {
        let (mut model, service, now) = model();
        for number in 1..4 {
            changed(&mut model, &add(address(number), 1), now);
        }
        let factor = LoadFactor::from_thousandths(1250);
        changed(&mut model, &set_pool(PoolValues { max_load: Some(factor), ..PoolValues::default() }), now);
        if !dead {
            let limit = ServerValues { max_sessions: Some(NonZeroU64::new(5)), ..ServerValues::default() };
            changed(&mut model, &set(address(1), limit), now);
        }
        for number in 0..200 {
            let (mut tried, mut served) = (Vec::new(), false);
            model.session_began(service, client(number).ip(), now).expect("let in");
            while let Some((server, its)) = model.pick(service, client(number), &tried) {
                model.connect_began(server);
                served = !dead || its != address(1);
                if served {
                    break;
                }
                model.connect_failed(server, ConnectFailure::Refused);
                tried.push(server);
            }
            assert!(served, "client {number}, dead {dead}");
        }
        let active = |number| row(&model, address(number)).expect("there").active;
        assert_eq!((active(1), active(2) + active(3)), if dead { (0, 200) } else { (5, 195) });
        assert!(active(2).abs_diff(active(3)) <= 60, "the bound holds among those who are left");
    }
}

#[test]
fn many_that_come_with_a_file_start_slowly_together() {
    let now = event::now();
    let mut file = settings("127.0.0.1:80", POINTS);
    let pool = file.pools.get_mut("default").expect("a pool");
    pool.slow_start_ms = 64_000;
    pool.servers = (1..4).map(|number| (address(number), ServerSettings::default())).collect();
    let mut model = started(&file, now);
    let service = model.service_named("default").expect("a service");
    let before = picks(&mut model, service);
    let pool = file.pools.get_mut("default").expect("a pool");
    pool.servers.extend((4..10).map(|number| (address(number), ServerSettings::default())));
    let said = reload(&mut model, file.clone(), now).expect("sound");
    assert_eq!(said, [Effect::Save]);
    let moved = |after: &[Option<SocketAddr>]| before.iter().zip(after).filter(|(was, is)| was != is).count();
    let after = picks(&mut model, service);
    assert!(moved(&after) < 40, "{}", moved(&after));
    // A further reload leaves them where they are.
    let half = now + Duration::from_secs(32);
    while model.next_deadline().is_some_and(|due| due <= half) {
        let due = model.next_deadline().expect("something is due");
        model.expire(due);
    }
    let parts = |model: &Model| list(model).servers.iter().map(|row| row.ramp).collect::<Vec<_>>();
    let halfway = parts(&model);
    assert!(halfway[3..].iter().all(|part| (0.4..0.6).contains(part)), "{halfway:?}");
    file.pools.get_mut("default").expect("a pool").servers.insert(address(20), ServerSettings::default());
    reload(&mut model, file.clone(), half).expect("sound");
    assert_eq!(parts(&model)[..9], halfway[..9]);
    while let Some(due) = model.next_deadline() {
        model.expire(due);
    }
    let fresh = started(&file, now);
    assert_eq!((list(&model).digest, model.starting()), (list(&fresh).digest, Starting::new()));
}

#[test]
fn a_value_that_no_ring_depends_on_makes_no_ring() {
    let now = event::now();
    let mut file = two_pools();
    let mut model = started(&file, now);
    model.take_old_rings();
    let pool = file.pools.get_mut("default").expect("a pool");
    pool.max_load = LoadFactor::from_thousandths(2000);
    pool.servers.get_mut(&address(1)).expect("a server").max_sessions = NonZeroU64::new(9);
    reload(&mut model, file.clone(), now).expect("sound");
    assert!(model.take_old_rings().is_empty());
    assert_eq!(model.settings(), file);
    file.pools.get_mut("default").expect("a pool").servers.remove(&address(1));
    reload(&mut model, file, now).expect("sound");
    assert_eq!(model.take_old_rings().len(), 1);
}

#[test]
fn what_commands_made_gives_way_to_the_file_at_a_start() {
    let said = two_pools();
    let mut present = said.clone();
    let service = |listen: &str, pool: &str| ServiceSettings::new(vec![listen.parse().expect("an address")], pool);
    present.services.remove("other");
    present.pools.remove("other");
    for (name, its) in [
        ("taken", service("127.0.0.1:81", "other")),
        ("poolless", service("127.0.0.1:83", "gone")),
        ("good", service("127.0.0.1:84", "other")),
    ] {
        present.services.insert(name.to_owned(), its);
    }
    let pool = present.pools.get_mut("default").expect("a pool");
    let own = "127.0.0.1:80".parse().expect("an address");
    pool.servers.insert(own, ServerSettings::default());
    pool.servers.insert(address(9), ServerSettings::default());
    assert!(prepare(&said, &present, said.clone(), Starting::new()).is_err());
    // The file says something new of a service whose pool a command has removed.
    let mut before = said.clone();
    before.services.get_mut("other").expect("a service").listen = vec!["127.0.0.1:89".parse().expect("an address")];
    let (goes, left_out) = what_goes_with(&said, &before, &present);
    let names: Vec<String> = left_out.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["pool other", "service poolless", "service taken", "server 127.0.0.1:80 of pool default"]);
    assert!(goes.services.contains_key("good") && goes.pools["default"].servers.contains_key(&address(9)));
    assert!(prepare(&said, &goes, said.clone(), Starting::new()).is_ok());
}
