//! The model with plain values and a made-up clock.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::num::{NonZeroU16, NonZeroU32};

use proptest::prelude::*;
use wire::address::AddressFault;
use wire::control::{Change, MAX_SERVERS, Removal, ServerValues};
use wire::dns::DnsCheck;
use wire::flow::{FlowPolicy, FlowSettings, HeaderScope, OnLoss, OnReturn, PathMtu};
use wire::health::{
    CheckKind, CheckSettings, CheckText, EjectionSettings, HealthSettings, HttpCheck, OnDown, WhenAllDown,
};
use wire::report::{
    ChangeReport, ExplainReport, HealthState, ListReport, ServerReport, ServerState, Skip, SkippedReport,
};
use wire::settings::{AdminState, HashKey, LoadFactor, Policy, Protocol, SendProxy, ServerSettings, ServiceSettings};

use super::*;
use crate::event;

pub(super) const POINTS: NonZeroU32 = NonZeroU32::new(64).expect("64 is not 0");

pub(crate) fn vitals(now: Instant) -> Vitals {
    Vitals {
        pid: 7,
        started: now,
        started_at: String::new(),
        session_limit: 100,
        drain_timeout: Duration::from_secs(30),
        config_file: None,
        reload_failure: None,
        last_reload: None,
        state_file: "state".to_owned(),
        log: "stderr".to_owned(),
        unsaved: None,
        longest_turn: Duration::ZERO,
        log_lines_dropped: 0,
    }
}

pub(super) fn settings(listen: &str, points_per_weight: NonZeroU32) -> Settings {
    let service = ServiceSettings::new(vec![listen.parse().expect("an address")], "default");
    Settings {
        services: [("default".to_owned(), service)].into(),
        pools: [("default".to_owned(), PoolSettings { points_per_weight, ..PoolSettings::default() })].into(),
        ..Settings::default()
    }
}

impl Model {
    /// Applies a request; a ring that takes longer is made at once.
    fn applied(&mut self, request: &Request, now: Instant) -> (Response, Vec<Effect>) {
        self.apply(request, None, now).unwrap_or_else(|remake| {
            let remade = remake.make().expect("it was checked");
            self.apply(request, Some(remade), now).expect("its ring is made")
        })
    }
}

/// A model that was just started with these settings.
pub(crate) fn started(settings: &Settings, now: Instant) -> Model {
    let mut model = Model::new(1, vitals(now));
    let prepared = prepare(settings, settings, settings.clone(), Starting::new(), &PassedOver::new()).expect("sound");
    model.adopt(prepared, true, now);
    model
}

pub(super) fn model() -> (Model, ServiceId, Instant) {
    let now = event::now();
    let model = started(&settings("0.0.0.0:80", POINTS), now);
    let service = model.service_named("default").expect("a service");
    (model, service, now)
}

pub(super) fn address(number: u8) -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, number), 8080).into()
}

pub(super) fn client(number: u32) -> SocketAddr {
    (Ipv4Addr::from(0xc0a8_0000 | number), 40_000).into()
}

pub(super) fn explain(model: &mut Model, client: SocketAddr, now: Instant) -> ExplainReport {
    let request = Request::Explain { client: client.ip(), port: client.port(), service: None };
    let Response::Explained(report) = model.applied(&request, now).0 else { panic!("{request}") };
    report
}

pub(super) fn add(server: SocketAddr, weight: u32) -> Request {
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

pub(super) fn set(server: SocketAddr, values: ServerValues) -> Request {
    Request::Change { change: Change::Set { pool: "default".to_owned(), server, values }, dry_run: false }
}

pub(super) fn state(state: AdminState) -> ServerValues {
    ServerValues { state: Some(state), ..ServerValues::default() }
}

/// The report of a change that is expected to be made.
pub(super) fn changed(model: &mut Model, request: &Request, now: Instant) -> (ChangeReport, Vec<Effect>) {
    match model.applied(request, now) {
        (Response::Changed(report), effects) => (report, effects),
        other => panic!("{request} gave {other:?}"),
    }
}

pub(super) fn refused(model: &mut Model, request: &Request, now: Instant) -> Refusal {
    match model.applied(request, now) {
        (Response::Refused(refusal), effects) if effects.is_empty() => refusal,
        other => panic!("{request} gave {other:?}"),
    }
}

pub(super) fn list(model: &Model) -> ListReport {
    list_at(model, model.vitals.started)
}

/// The list of the pool `default`, completed if it has to be.
pub(super) fn list_at(model: &Model, now: Instant) -> ListReport {
    let (mut report, effects) = model.list("default", now).expect("the pool default");
    if let [Effect::CompleteList(pool)] = effects[..] {
        model.sharing(pool).expect("its ring is large").complete(&mut report);
    }
    report
}

pub(super) fn row(model: &Model, server: SocketAddr) -> Option<ServerReport> {
    list(model).servers.into_iter().find(|row| row.server == server)
}

/// A session of a client, from its beginning to the server's answer.
pub(super) fn connect(model: &mut Model, service: ServiceId, client: SocketAddr) -> ServerId {
    let now = model.vitals.started;
    model.session_began(service, client.ip(), now).expect("nobody is kept out");
    let (server, _) = model.pick(service, client, &[]).expect("a server");
    model.connect_began(server);
    model.connect_done(server, Duration::ZERO, now);
    server
}

pub(super) fn picks(model: &mut Model, service: ServiceId) -> Vec<Option<SocketAddr>> {
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
        model.session_ended(service, client(0).ip(), Some(server), true, EndReason::ClientClosed, now);
    }
    assert_eq!(row(&model, address), None);
    assert_eq!(refused(&mut model, &remove(address, false), now), Refusal::NotThere { server: address });
}

#[test]
fn a_newcomer_is_a_session_of_nobody_until_it_is_known_who_it_is() {
    let (mut model, service, now) = model();
    changed(&mut model, &add(address(1), 1), now);
    model.services[service].settings.sessions_per_client = NonZeroU32::new(1);
    model.services[service].settings.accept_proxy = vec!["192.0.2.0/24".parse().expect("a network")];
    model.services[service].access = access::Access::new(&model.services[service].settings);
    model.services[service].settings.proxy_timeout_ms = 700;
    let ip = |text: &str| text.parse().expect("an address");
    assert_eq!(model.header_time(service, ip("192.0.2.7")), Some(Duration::from_millis(700)));
    assert_eq!(model.header_time(service, ip("192.0.3.7")), None);
    for _ in 0..3 {
        model.newcomer_began(service, now);
    }
    assert_eq!(model.newcomer_is(service, client(1).ip()), Ok(()));
    assert_eq!(model.newcomer_is(service, client(1).ip()), Err(EndReason::ClientLimit));
    model.session_ended(service, client(1).ip(), None, false, EndReason::ClientLimit, now);
    model.newcomer_ended(service, EndReason::HeaderTimeout);
    assert_eq!(model.session_began(service, client(1).ip(), now), Err(EndReason::ClientLimit), "it has its one");
    model.session_ended(service, client(1).ip(), None, false, EndReason::ClientLimit, now);
    model.session_ended(service, client(1).ip(), None, false, EndReason::NoServer, now);
    assert_eq!(model.session_began(service, client(1).ip(), now), Ok(()), "and that has ended");
    let report = model.status(now).services.remove(0);
    assert_eq!((report.active, report.total), (1, 5));
    let ended = [(EndReason::ClientLimit, 2), (EndReason::HeaderTimeout, 1), (EndReason::NoServer, 1)];
    assert_eq!(report.ended, ended.into());
}

#[test]
fn newcomers_take_their_turns_and_places_and_a_removed_service_waits_for_them() {
    let (mut model, service, now) = model();
    model.services[service].settings.max_sessions = NonZeroU64::new(2);
    model.newcomer_began(service, now);
    assert_eq!(model.waiting(service, now), None);
    model.newcomer_began(service, now);
    assert_eq!(model.waiting(service, now), Some((Waiting::ServiceFull, None)));
    model.newcomer_ended(service, EndReason::BadHeader);
    model.services[service].settings.sessions_per_second = NonZeroU32::new(1);
    model.newcomer_began(service, now);
    model.newcomer_ended(service, EndReason::BadHeader);
    assert!(matches!(model.waiting(service, now), Some((Waiting::Rate, Some(_)))));
    let name = model.service_name(service).to_owned();
    changed(&mut model, &Request::Change { change: Change::RemoveService { service: name }, dry_run: false }, now);
    model.listening(HashMap::new());
    assert!(model.services.contains_key(service));
    assert_eq!(model.newcomer_is(service, client(1).ip()), Ok(()));
    model.session_ended(service, client(1).ip(), None, false, EndReason::NoServer, now);
    assert!(!model.services.contains_key(service));
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
        model.connect_failed(server, ConnectFailure::Refused, now);
        tried.push(server);
        seen.push(address);
    }
    model.session_ended(service, client(0).ip(), None, true, EndReason::ConnectFailed, now);
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
    assert!(matches!(
        prepare(&full, &full, full.clone(), Starting::new(), &PassedOver::new()),
        Err(Refusal::TooManyServers)
    ));
}

#[test]
fn only_what_would_come_back_to_the_listener_is_the_balancer_itself() {
    let own = |listen: &str, server: &str| {
        let now = event::now();
        let mut model = started(&settings(listen, POINTS), now);
        let add = dry(add(server.parse().expect("an address"), 1));
        matches!(model.applied(&add, now).0, Response::Refused(Refusal::Itself { .. }))
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
    assert_eq!(model.applied(&stop(Some(5000)), now).1, [Effect::Stop(now + 5 * second)]);
    assert_eq!(model.phase(), Phase::Stopping);
    let (response, effects) = model.applied(&stop(None), now + second);
    assert_eq!(effects, [Effect::Stop(now + 5 * second)]);
    assert!(matches!(response, Response::Stopping(StoppingReport { drain_ms: 4000, .. })));
    assert_eq!(model.applied(&stop(Some(9000)), now).1, [Effect::Stop(now + 9 * second)]);
    assert_eq!(refused(&mut model, &add(address(2), 1), now), Refusal::Stopping);
    assert!(matches!(model.applied(&stop(Some(u64::MAX)), now).0, Response::Stopping(_)), "no overflow");
    let at_once = Request::Stop { now: true, drain_ms: None };
    assert_eq!(model.applied(&at_once, now + second).1, [Effect::Stop(now + second)]);
}

fn any_server() -> impl Strategy<Value = ServerSettings> {
    let state = prop::sample::select(AdminState::ALL.as_slice());
    let limit = prop::option::of((1u64..3).prop_map(|n| NonZeroU64::new(n).expect("not 0")));
    let check_address = prop::option::of((1u8..3).prop_map(|n| ([10, 0, 1, n], 81).into()));
    (0u32..3, state, limit, any::<bool>(), check_address).prop_map(
        |(weight, state, max_sessions, backup, check_address)| ServerSettings {
            weight,
            state,
            max_sessions,
            backup,
            check_address,
        },
    )
}

fn any_health() -> impl Strategy<Value = HealthSettings> {
    const TEXTS: [&[u8]; 4] = [b"", b"PING\r\n", b"\0\xff", b"hex:"];
    let text = || prop::sample::select(TEXTS.as_slice());
    let text = move || text().prop_map(|bytes| CheckText::new(bytes).expect("short"));
    let kind = prop_oneof![
        Just(CheckKind::None),
        Just(CheckKind::Tcp),
        (text(), text()).prop_map(|(send, expect)| CheckKind::Send { send, expect }),
        prop::option::of(Just("a.example".to_owned()))
            .prop_map(|host| CheckKind::Http(HttpCheck { host, ..HttpCheck::default() })),
        (text(), text()).prop_map(|(send, expect)| CheckKind::Udp { send, expect }),
        Just(CheckKind::Dns(DnsCheck::default())),
    ];
    let down = prop::sample::select([None, Some(1000)].as_slice());
    let port = prop::option::of(Just(NonZeroU16::MAX));
    let when = prop::sample::select(WhenAllDown::ALL.as_slice());
    let on_down = prop::sample::select(OnDown::ALL.as_slice());
    (kind, down, port, 0u32..2, when, on_down).prop_map(|(kind, down, port, failures, when_all_down, on_down)| {
        HealthSettings {
            check: CheckSettings { kind, down_interval_ms: down, port, ..CheckSettings::default() },
            ejection: EjectionSettings { failures, ..EjectionSettings::default() },
            when_all_down,
            on_down,
        }
    })
}

fn any_pool() -> impl Strategy<Value = PoolSettings> {
    let servers = prop::collection::btree_map((1u8..5).prop_map(|n| ([10, 0, 0, n], 80).into()), any_server(), 0..4);
    let key = prop_oneof![
        Just(HashKey::ClientIp),
        Just(HashKey::ClientIpPort),
        Just(HashKey::ClientSubnet { ipv4: 24, ipv6: 56 })
    ];
    let load = prop::option::of(Just(LoadFactor::from_thousandths(1250).expect("in range")));
    (servers, prop::sample::select(Policy::ALL.as_slice()), key, load, any_health(), any_flow_policy()).prop_map(
        |(servers, policy, key, max_load, health, flows)| {
            // Nothing in it decides who gets whom.
            let send_proxy = max_load.map(|_| SendProxy::V2 { crc32c: true, unique_id: false });
            PoolSettings { policy, key, max_load, send_proxy, servers, health, flows, ..PoolSettings::default() }
        },
    )
}

/// Not one-way: that goes with few services.
fn any_flow_policy() -> impl Strategy<Value = FlowPolicy> {
    let on_loss = prop::sample::select(OnLoss::ALL.as_slice());
    let on_return = prop::sample::select(OnReturn::ALL.as_slice());
    let send_proxy_in = prop::sample::select(HeaderScope::ALL.as_slice());
    let path_mtu = prop::sample::select(PathMtu::ALL.as_slice());
    let flows = (any::<bool>(), on_loss, on_return, send_proxy_in, path_mtu);
    flows.prop_map(|(per_datagram, on_loss, on_return, send_proxy_in, path_mtu)| FlowPolicy {
        one_way: false,
        per_datagram,
        on_loss,
        on_return,
        send_proxy_in,
        path_mtu,
    })
}

fn any_flows() -> impl Strategy<Value = FlowSettings> {
    let some = || prop::option::of((1u32..3).prop_map(|n| NonZeroU32::new(n).expect("not 0")));
    let accept_proxy_in = prop::sample::select(HeaderScope::ALL.as_slice());
    let timeout = (100u64..102).prop_map(|n| NonZeroU64::new(n).expect("not 0"));
    (timeout, some(), some(), accept_proxy_in).prop_map(|(timeout_ms, requests, answers, accept_proxy_in)| {
        FlowSettings { timeout_ms, requests, answers, accept_proxy_in }
    })
}

/// Any settings of a few services, pools and servers.
pub(crate) fn any_settings() -> impl Strategy<Value = Settings> {
    let name = || prop::sample::select(["a", "b", "c"].as_slice()).prop_map(str::to_owned);
    let protocol = prop::sample::select(Protocol::ALL.as_slice());
    let service = (1u16..4, name(), any::<bool>(), protocol, any_flows());
    let service = service.prop_map(|(port, pool, limited, protocol, flows)| ServiceSettings {
        protocol,
        flows,
        sessions_per_second: limited.then_some(NonZeroU32::MIN),
        deny: vec!["192.0.2.0/24".parse().expect("a network")],
        accept_proxy: limited.then(|| "192.0.2.7/32".parse().expect("a network")).into_iter().collect(),
        proxy_timeout_ms: if limited { 700 } else { 5000 },
        splice: !limited,
        ..ServiceSettings::new(vec![([127, 0, 0, 1], port).into()], &pool)
    });
    let services = prop::collection::btree_map(name(), service, 0..3);
    let pools = prop::collection::btree_map(name(), any_pool(), 0..3);
    (services, pools).prop_map(|(services, pools)| Settings { max_sessions: None, services, pools })
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
                    let (response, _) = model.applied(&add(server, weight), now);
                    let fresh = !weights.contains_key(&server);
                    prop_assert_eq!(matches!(response, Response::Changed(_)), fresh);
                    weights.entry(server).or_insert(weight);
                }
                Step::Remove(number, at_once) => {
                    let server = address(number);
                    let (_, effects) = model.applied(&remove(server, at_once), now);
                    weights.remove(&server);
                    for effect in effects {
                        if let Effect::EndSessions(id, reason) = effect {
                            for gone in sessions.extract_if(.., |session| *session == id) {
                                model.session_ended(service, client(0).ip(), Some(gone), true, reason, now);
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
                        model.session_ended(service, client(0).ip(), None, true, EndReason::NoServer, now);
                        ended += 1;
                    }
                }
                Step::Fail(number) => {
                    if let Some((server, _)) = model.pick(service, client(number), &[]) {
                        model.connect_began(server);
                        model.connect_failed(server, ConnectFailure::TimedOut, now);
                    }
                }
                Step::End(at, reason) => {
                    if !sessions.is_empty() {
                        let server = sessions.swap_remove(at.index(sessions.len()));
                        model.session_ended(service, client(0).ip(), Some(server), true, EndReason::ALL[reason], now);
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
                let is_up = row.health.state == HealthState::Up;
                prop_assert_eq!(row.share > 0.0, row.state == ServerState::Ready && is_up);
            }
        }
    }
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
