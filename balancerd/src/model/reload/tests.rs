//! What a file comes to, through the model.

use proptest::prelude::*;
use wire::control::{Change, PoolValues, ServerValues};
use wire::difference::Subject;
use wire::report::ServerState;
use wire::settings::{AdminState, LoadFactor, Policy, Protocol, SendProxy, ServerSettings, ServiceSettings};

use crate::event;
use crate::model::tests::*;
use crate::model::*;

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
    let prepared = prepare(model.said(), &model.settings(), file, model.starting(), &model.passed_over())?;
    let settings = Arc::clone(&prepared.settings);
    let effects = model.adopt(prepared, false, now);
    assert_eq!(model.settings(), *settings, "what is saved is what holds");
    Ok(effects)
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
    assert_eq!(
        model.wanted_listeners(wire::settings::Transport::Tcp).map(|(_, service)| service).collect::<Vec<_>>(),
        [one]
    );
    assert_eq!(row(&model, its).expect("it leaves").state, ServerState::Leaving);
    assert_eq!((model.server_address(second), model.servers[second].traffic.active), (other_its, 1));
    model.session_ended(one, client(1).ip(), Some(first), true, EndReason::ClientClosed, now);
    model.session_ended(other, client(1).ip(), Some(second), true, EndReason::ClientClosed, now);
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
fn a_source_by_command_and_a_transparent_pool_of_the_file_are_refused_with_both_named() {
    let now = event::now();
    let mut model = started(&two_pools(), now);
    let set = |source: &[&str]| {
        let source = source.iter().map(|text| text.parse().expect("an address")).collect();
        let values = PoolValues { source: Some(source), ..PoolValues::default() };
        Request::Change { change: Change::SetPool { pool: "other".to_owned(), values }, dry_run: false }
    };
    changed(&mut model, &set(&["10.0.0.8", "10.0.0.9"]), now);
    let mut file = two_pools();
    file.pools.get_mut("other").expect("a pool").server_side.transparent = true;
    let refusal = reload(&mut model, file.clone(), now).expect_err("they exclude each other").to_string();
    for words in ["pool other has transparent", "10.0.0.8, 10.0.0.9", "`balancerctl pool set other --source none`"] {
        assert!(refusal.contains(words), "{refusal}");
    }
    changed(&mut model, &set(&[]), now);
    reload(&mut model, file, now).expect("as it was told to");
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
fn who_starts_slowly_does_so_by_a_file_as_by_a_command() {
    let now = event::now();
    let [ordinary, drained] =
        [AdminState::Ready, AdminState::Drain].map(|state| ServerSettings { state, ..ServerSettings::default() });
    let backup = ServerSettings { backup: true, ..ordinary };
    for policy in [Policy::ConsistentHash, Policy::RoundRobin] {
        for other in [None, Some(ordinary), Some(backup)] {
            for before in [None, Some(ordinary), Some(drained), Some(backup)] {
                for after in [ordinary, backup] {
                    let mut file = settings("127.0.0.1:80", POINTS);
                    let pool = file.pools.get_mut("default").expect("a pool");
                    (pool.policy, pool.slow_start_ms) = (policy, 64_000);
                    pool.servers.extend(other.map(|other| (address(1), other)));
                    pool.servers.extend(before.map(|before| (address(2), before)));
                    let (mut by_command, mut by_file) = (started(&file, now), started(&file, now));
                    let change = match before {
                        None => Change::Add { pool: "default".to_owned(), server: address(2), settings: after },
                        Some(_) => {
                            let (state, backup) = (Some(after.state), Some(after.backup));
                            let values = ServerValues { state, backup, ..ServerValues::default() };
                            Change::Set { pool: "default".to_owned(), server: address(2), values }
                        }
                    };
                    changed(&mut by_command, &Request::Change { change, dry_run: false }, now);
                    let pool = file.pools.get_mut("default").expect("a pool");
                    pool.servers.insert(address(2), after);
                    reload(&mut by_file, file, now).expect("sound");
                    let case = format!("{policy:?}, beside {other:?}: {before:?} -> {after:?}");
                    assert_eq!(by_file.starting(), by_command.starting(), "{case}");
                    assert_eq!(list(&by_file).servers, list(&by_command).servers, "{case}");
                    let comes_up = before.is_none_or(|before| before == drained);
                    assert_eq!(!by_file.starting().is_empty(), comes_up && other.is_some(), "{case}");
                }
            }
        }
    }
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
    assert!(prepare(&said, &present, said.clone(), Starting::new(), &PassedOver::new()).is_err());
    // The file says something new of a service whose pool a command has removed.
    let mut before = said.clone();
    before.services.get_mut("other").expect("a service").listen = vec!["127.0.0.1:89".parse().expect("an address")];
    let (goes, left_out) = what_goes_with(&said, &before, &present);
    let names: Vec<String> = left_out.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["pool other", "service poolless", "service taken", "server 127.0.0.1:80 of pool default"]);
    assert!(goes.services.contains_key("good") && goes.pools["default"].servers.contains_key(&address(9)));
    assert!(prepare(&said, &goes, said.clone(), Starting::new(), &PassedOver::new()).is_ok());
}

#[test]
fn what_commands_made_of_a_pool_gives_way_to_what_the_file_says_of_its_service_at_a_start() {
    let mut before = two_pools();
    before.services.get_mut("other").expect("a service").protocol = Protocol::Udp;
    let mut present = before.clone();
    present.pools.get_mut("other").expect("a pool").flows.one_way = true;
    let mut service = before.services["other"].clone();
    service.listen = vec!["127.0.0.1:85".parse().expect("an address")];
    present.services.insert("more".to_owned(), service);
    assert_eq!(what_goes_with(&before, &before, &present), (present.clone(), Vec::new()));
    let mut said = before.clone();
    said.services.get_mut("other").expect("a service").protocol = Protocol::TcpAndUdp;
    let refusal =
        prepare(&before, &present, said.clone(), Starting::new(), &PassedOver::new()).expect_err("TCP goes both ways");
    assert!(
        refusal.to_string().starts_with("one_way: pool other is one-way, and service other speaks TCP"),
        "{refusal}"
    );
    let (goes, left_out) = what_goes_with(&said, &before, &present);
    assert_eq!(left_out, [Subject::Pool { pool: "other".to_owned() }]);
    assert!(prepare(&said, &goes, said.clone(), Starting::new(), &PassedOver::new()).is_ok());
    assert!(goes.services.contains_key("more") && !goes.pools["other"].flows.one_way);
}

#[test]
fn a_service_speaks_something_else_after_a_reload() {
    let now = event::now();
    let mut model = started(&two_pools(), now);
    for protocol in [Protocol::Udp, Protocol::TcpAndUdp, Protocol::Tcp] {
        let mut file = two_pools();
        file.services.get_mut("other").expect("a service").protocol = protocol;
        reload(&mut model, file.clone(), now).expect("sound");
        assert_eq!(model.settings(), file);
    }
}

#[test]
fn a_pool_is_changed_only_to_what_its_services_can_speak() {
    let now = event::now();
    let mut file = two_pools();
    file.services.get_mut("other").expect("a service").protocol = Protocol::Udp;
    let mut model = started(&file, now);
    let set = |pool: &str, values| Request::Change {
        change: Change::SetPool { pool: pool.to_owned(), values },
        dry_run: false,
    };
    let one_way = PoolValues { one_way: Some(true), ..PoolValues::default() };
    let refusal = refused(&mut model, &set("default", one_way.clone()), now).to_string();
    assert!(refusal.starts_with("one_way: pool default is one-way, and service default speaks TCP"), "{refusal}");
    let v1 = PoolValues { send_proxy: Some(Some(SendProxy::V1)), ..PoolValues::default() };
    let refusal = refused(&mut model, &set("other", v1), now).to_string();
    assert!(refusal.starts_with("send_proxy: pool other gives v1, and service other speaks UDP"), "{refusal}");
    changed(&mut model, &set("other", one_way), now);
    assert!(model.settings().pools["other"].flows.one_way);
    // The same address, for the other transport.
    let listen = file.services["other"].listen.clone();
    let add = |settings| {
        let change = Change::AddService { service: "more".to_owned(), settings };
        Request::Change { change, dry_run: false }
    };
    let refusal = refused(&mut model, &add(ServiceSettings::new(listen.clone(), "other")), now).to_string();
    assert!(refusal.starts_with("one_way: "), "{refusal}");
    let udp = ServiceSettings { protocol: Protocol::Udp, ..ServiceSettings::new(listen.clone(), "other") };
    assert!(matches!(refused(&mut model, &add(udp), now), Refusal::AddressTaken { .. }));
    changed(&mut model, &add(ServiceSettings::new(listen, "default")), now);
}
