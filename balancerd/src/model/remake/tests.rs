//! A change whose ring was made beside the loop, through the model.

use std::net::Ipv4Addr;
use std::num::{NonZeroU32, NonZeroU64};

use proptest::prelude::*;
use wire::control::{Change, PoolValues, Removal, ServerValues};
use wire::report::ServerState;
use wire::settings::{AdminState, Policy, ServerSettings};

use crate::event;
use crate::model::tests::*;
use crate::model::*;

/// What may happen to a pool.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "there are few")]
enum Step {
    Change(Change, bool),
    Connect(u32),
    End,
    /// So many milliseconds pass.
    Pass(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let pool = || "default".to_owned();
    let server = || (1u8..8).prop_map(address);
    let admin = || prop::sample::select([AdminState::Ready, AdminState::Drain, AdminState::Maintenance].as_slice());
    let how = prop_oneof![
        3 => Just(Removal::Wait { limit_ms: None }),
        1 => Just(Removal::Now),
        1 => Just(Removal::Over { time_ms: 5000 })
    ];
    let add = (server(), 0u32..5, admin()).prop_map(move |(server, weight, state)| Change::Add {
        pool: pool(),
        server,
        settings: ServerSettings { weight, state, ..ServerSettings::default() },
    });
    let remove = (server(), how).prop_map(move |(server, how)| Change::Remove { pool: pool(), server, how });
    let backup = prop::option::weighted(0.2, any::<bool>());
    let values = (prop::option::of(0u32..5), prop::option::of(admin()), backup)
        .prop_map(|(weight, state, backup)| ServerValues { weight, state, backup, ..ServerValues::default() });
    let set = (server(), values).prop_map(move |(server, values)| Change::Set { pool: pool(), server, values });
    let policy = prop::sample::select([Policy::ConsistentHash, Policy::ConsistentHash, Policy::RoundRobin].as_slice());
    let values = (prop::option::of(policy), prop::option::of(1u32..4), prop::option::of(0u64..3));
    let set_pool = values.prop_map(move |(policy, points, seconds)| {
        let points_per_weight = points.and_then(NonZeroU32::new);
        let slow_start_ms = seconds.map(|seconds| seconds * 1000);
        Change::SetPool {
            pool: pool(),
            values: PoolValues { policy, points_per_weight, slow_start_ms, ..PoolValues::default() },
        }
    });
    let change = prop_oneof![4 => add, 2 => remove, 4 => set, 2 => set_pool];
    prop_oneof![
        6 => (change, prop::bool::weighted(0.2)).prop_map(|(change, dry_run)| Step::Change(change, dry_run)),
        2 => (0u32..50).prop_map(Step::Connect),
        1 => Just(Step::End),
        2 => (1u64..1500).prop_map(Step::Pass),
    ]
}

/// All that may differ where it should not: who is there, the ring, and what is due.
fn everything(model: &mut Model, service: ServiceId, now: Instant) -> impl PartialEq + std::fmt::Debug + use<> {
    let rings: Vec<Vec<(u64, ServerId)>> = model
        .pools
        .values()
        .filter_map(|pool| pool.picker.ring())
        .map(|ring| ring.points().map(|(hash, member)| (hash, member.tag)).collect())
        .collect();
    let sums: Vec<(u64, u64)> = model.pools.values().map(|pool| (pool.picker.active(), pool.picker.weight())).collect();
    let due = (model.timers.clone(), model.ramps.clone(), model.next_ramp);
    let list = list_at(model, now);
    (model.settings(), list, rings, sums, due, model.starting(), picks(model, service))
}

proptest! {
    #[test]
    fn a_ring_that_was_made_beside_the_loop_leaves_what_one_made_in_it_does(
        steps in prop::collection::vec(any_step(), 1..40)
    ) {
        let mut now = event::now();
        let settings = settings("0.0.0.0:80", POINTS);
        let (mut inside, mut beside) = (started(&settings, now), started(&settings, now));
        (inside.points_in_the_loop, beside.points_in_the_loop) = (usize::MAX, 0);
        let service = inside.service_named("default").expect("a service");
        let mut sessions = Vec::new();
        for step in steps {
            match step {
                Step::Change(change, dry_run) => {
                    let request = Request::Change { change, dry_run };
                    let expected = inside.apply(&request, None, now).expect("made in the loop");
                    let given = match beside.apply(&request, None, now) {
                        Ok(given) => given,
                        Err(remake) => {
                            let remade = remake.make().expect("it was checked");
                            prop_assert_eq!(remade.ring.is_none(), dry_run);
                            beside.apply(&request, Some(remade), now).expect("its ring is made")
                        }
                    };
                    prop_assert_eq!(&given, &expected, "{}", request);
                    for effect in given.1 {
                        if let Effect::EndSessions(id, reason) = effect {
                            for gone in sessions.extract_if(.., |session| *session == id) {
                                inside.session_ended(service, client(0).ip(), Some(gone), true, reason, now);
                                beside.session_ended(service, client(0).ip(), Some(gone), true, reason, now);
                            }
                        }
                    }
                }
                Step::Connect(number) => {
                    if inside.pick(service, client(number), &[]).is_some() {
                        beside.pick(service, client(number), &[]);
                        let session = connect(&mut inside, service, client(number));
                        prop_assert_eq!(connect(&mut beside, service, client(number)), session);
                        sessions.push(session);
                    }
                }
                Step::End => if let Some(session) = sessions.pop() {
                    inside.session_ended(service, client(0).ip(), Some(session), true, EndReason::ClientClosed, now);
                    beside.session_ended(service, client(0).ip(), Some(session), true, EndReason::ClientClosed, now);
                },
                Step::Pass(time) => {
                    now += Duration::from_millis(time);
                    prop_assert_eq!(inside.expire(now), beside.expire(now));
                }
            }
            prop_assert_eq!(everything(&mut inside, service, now), everything(&mut beside, service, now));
        }
    }
}

#[test]
fn a_change_that_cannot_be_is_refused_before_its_ring_is_made() {
    let (mut model, _, now) = model();
    changed(&mut model, &add(address(1), 1), now);
    model.points_in_the_loop = 0;
    let refused = [
        add(address(1), 5),
        add(address(2), 257),
        set(address(1), ServerValues { weight: Some(257), ..ServerValues::default() }),
        set(address(2), state(AdminState::Drain)),
    ];
    for request in refused {
        let given = model.apply(&request, None, now);
        assert!(matches!(given, Ok((Response::Refused(_), _))), "{request} gave {given:?}");
    }
    assert!(model.apply(&add(address(2), 5), None, now).is_err());
    let stop = Request::Stop { now: false, drain_ms: None };
    model.apply(&stop, None, now).expect("it takes no ring");
    assert!(matches!(model.apply(&add(address(2), 5), None, now), Ok((Response::Refused(Refusal::Stopping), _))));
}

#[test]
fn a_large_ring_becomes_another_one_beside_the_loop_and_stays_where_nobody_moves() {
    let (mut model, _, now) = model();
    for number in 1..4 {
        changed(&mut model, &add(address(number), 1), now);
    }
    model.ring_in_the_loop = 3 * POINTS.get() as usize;
    changed(&mut model, &add(address(4), 1), now);
    let limit = ServerValues { max_sessions: Some(NonZeroU64::new(7)), ..ServerValues::default() };
    changed(&mut model, &set(address(1), limit), now);
    let ring =
        |model: &Model| Arc::clone(model.pools.values().next().and_then(|pool| pool.picker.ring()).expect("one"));
    let before = ring(&model);
    let remove = Change::Remove { pool: "default".to_owned(), server: address(1), how: Removal::Now };
    let requests = [
        add(address(5), 1),
        set(address(2), ServerValues { weight: Some(2), ..ServerValues::default() }),
        set(address(3), state(AdminState::Drain)),
        Request::Change { change: remove, dry_run: false },
    ];
    for request in requests {
        let Request::Change { change, .. } = request.clone() else { unreachable!() };
        let dry = Request::Change { change, dry_run: true };
        for request in [dry, request] {
            let old = ring(&model);
            let remake = model.apply(&request, None, now).expect_err("of many points");
            let remade = remake.make().expect("checked");
            let (response, _) = model.apply(&request, Some(remade), now).expect("its ring is made");
            assert!(matches!(response, Response::Changed(_)), "{response:?}");
            let is_dry = matches!(request, Request::Change { dry_run: true, .. });
            assert_eq!(Arc::ptr_eq(&old, &ring(&model)), is_dry, "{request}");
        }
    }
    assert_eq!(model.take_old_rings().len(), 4, "somebody else takes each of them apart");
    assert_eq!(before.len(), 4, "and nothing was changed in them");
    assert!(list(&model).servers.iter().all(|row| is_on_ring(&model, row.server) == (row.state == ServerState::Ready)));
}

/// Whether the ring of the pool has a server, and knows it.
fn is_on_ring(model: &Model, server: SocketAddr) -> bool {
    let pool = &model.pools[model.pool_named("default").expect("a pool")];
    let member = pool.picker.ring().and_then(|ring| ring.member(server.into()));
    member.is_some_and(|member| member.tag == pool.members[&server])
}

#[test]
fn slow_starts_and_sessions_go_on_while_a_ring_is_made() {
    let (mut model, service, now) = model();
    let second = Duration::from_secs(1);
    let slowly = PoolValues { slow_start_ms: Some(64_000), ..PoolValues::default() };
    let slowly = Change::SetPool { pool: "default".to_owned(), values: slowly };
    changed(&mut model, &Request::Change { change: slowly, dry_run: false }, now);
    for number in 1..4 {
        changed(&mut model, &add(address(number), 1), now);
    }
    model.points_in_the_loop = 0;
    let request = add(address(4), 3);
    let remake = model.apply(&request, None, now).expect_err("it takes a ring");
    // Meanwhile.
    for at in 1..=20 {
        model.expire(now + at * second);
    }
    let before = row(&model, address(2)).expect("there").ramp;
    assert!(before > 0.25, "{before}");
    connect(&mut model, service, client(1));
    let later = now + 20 * second;
    let (response, _) = model.apply(&request, Some(remake.make().expect("checked")), later).expect("its ring is made");
    let Response::Changed(report) = response else { panic!("{response:?}") };
    assert_eq!(row(&model, address(4)).expect("there").ramp, 1.0 / 64.0, "it begins now");
    assert_eq!(list(&model).servers.iter().map(|row| row.active).sum::<u64>(), 1);
    let old = model.take_old_rings();
    assert_eq!(old.iter().map(|ring| ring.len()).collect::<Vec<_>>(), [3], "somebody else takes the old one apart");
    // What had grown meanwhile has grown at once, and all grow up.
    while let Some(due) = model.next_deadline().filter(|due| *due <= later + second) {
        model.expire(due.max(later));
    }
    let ramp = row(&model, address(2)).expect("there").ramp;
    assert!(ramp >= before, "{ramp} after {before}");
    while let Some(due) = model.next_deadline() {
        assert!(due <= later + 65 * second);
        model.expire(due);
    }
    assert!(list(&model).servers.iter().all(|row| row.ramp == 1.0));
    assert_eq!(Some(list(&model).digest), report.digest);
}

#[test]
fn a_pool_that_is_removed_gives_its_ring_away_whole() {
    let (mut model, service, now) = model();
    for number in 1..5 {
        changed(&mut model, &add(address(number), 1), now);
    }
    let session = connect(&mut model, service, client(1));
    let id = model.pool_named("default").expect("a pool");
    model.take_pool(id, now);
    assert_eq!(model.take_old_rings().iter().map(|ring| ring.len()).collect::<Vec<_>>(), [4]);
    assert_eq!((model.servers.len(), model.pools.len()), (1, 1), "who has a session stays for it");
    model.session_ended(service, client(1).ip(), Some(session), true, EndReason::ClientClosed, now);
    assert_eq!((model.servers.len(), model.pools.len()), (0, 0));
}

/// Prints milliseconds: `cargo test --release -p balancerd milliseconds -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn milliseconds_of_changes_and_reports() {
    for count in [1000u32, 10_000] {
        let now = event::now();
        let mut file = settings("0.0.0.0:80", ring::POINTS_PER_WEIGHT);
        let server = |number| (Ipv4Addr::from(0x0a00_0000 + number), 80).into();
        let servers = (0..count).map(|number| (server(number), ServerSettings::default()));
        file.pools.get_mut("default").expect("a pool").servers = servers.collect();
        let mut model = started(&file, now);
        let weight = |weight| set(server(500), ServerValues { weight: Some(weight), ..ServerValues::default() });
        println!("{count} servers");
        for to in [2, 5, 9, 17, 33] {
            (model.points_in_the_loop, model.ring_in_the_loop) = (usize::MAX, usize::MAX);
            let mut times = [0, 1].map(|_| Vec::new());
            for _ in 0..15 {
                for (times, weight) in times.iter_mut().zip([weight(to), weight(1)]) {
                    times.push(time(|| model.apply(&weight, None, now).expect("in the loop")).1);
                }
            }
            print(&format!("weight 1 to {to} in the loop"), &mut times[0]);
            print("and back", &mut times[1]);
        }
        let points = PoolValues { points_per_weight: NonZeroU32::new(1000), ..PoolValues::default() };
        let points = Change::SetPool { pool: "default".to_owned(), values: points };
        for (what, request) in [
            ("weight 1 to 2", weight(2)),
            ("weight 1 to 256", weight(256)),
            ("all points", Request::Change { change: points, dry_run: false }),
        ] {
            (model.points_in_the_loop, model.ring_in_the_loop) = (POINTS_IN_THE_LOOP, RING_IN_THE_LOOP);
            let (remake, before) = time(|| model.apply(&request, None, now).expect_err("beside the loop"));
            let (remade, beside) = time(|| remake.make().expect("checked"));
            let (_, after) = time(|| model.apply(&request, Some(remade), now).expect("with the ring"));
            print(&format!("{what}, before its ring is made"), &mut [before]);
            print(&format!("{what}, while it is made"), &mut [beside]);
            print(&format!("{what}, with it"), &mut [after]);
        }
        let mut report = |what: &str, report: fn(&mut Model)| {
            print(what, &mut (0..15).map(|_| time(|| report(&mut model)).1).collect::<Vec<_>>());
        };
        report("list, in the loop", |model| drop(model.list("default", model.vitals.started)));
        report("sharing, in the loop", |model| drop(model.sharing(model.pool_named("default").expect("a pool"))));
        report("list, all of it", |model| drop(list(model)));
        let answer = Response::List(list(&model));
        let mut report = |what: &str, report: fn(&mut Model)| {
            print(what, &mut (0..15).map(|_| time(|| report(&mut model)).1).collect::<Vec<_>>());
        };
        print("list, as bytes", &mut (0..15).map(|_| time(|| wire::frame::frame(&answer)).1).collect::<Vec<_>>());
        report("digest", |model| drop(model.digest("default")));
        report("status", |model| drop(model.status(model.vitals.started)));
        report("explain", |model| drop(explain(model, client(1), model.vitals.started)));
    }
}

fn time<T>(call: impl FnOnce() -> T) -> (T, Duration) {
    let begin = event::now();
    let result = call();
    (result, event::now() - begin)
}

fn print(what: &str, times: &mut [Duration]) {
    times.sort();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let (least, median) = (milliseconds(times[0]), milliseconds(times[times.len() / 2]));
    println!("{what:<40} least {least:>8.3} median {median:>8.3}");
}
