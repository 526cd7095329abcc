//! What the health of servers means for clients, through the model.

use std::net::Ipv4Addr;

use proptest::prelude::*;
use wire::control::{Change, PoolValues, Removal, ServerValues};
use wire::health::{CheckKind, InitialHealth, OnDown, WhenAllDown};
use wire::report::{HealthState, MoveReport, ServerReport, ServerState, Skip, SkippedReport};
use wire::settings::{AdminState, Policy, ServerSettings};

use crate::model::tests::*;
use crate::model::*;

const SECOND: Duration = Duration::from_secs(1);

fn set_pool(values: PoolValues) -> Request {
    Request::Change { change: Change::SetPool { pool: "default".to_owned(), values }, dry_run: false }
}

/// One that is checked by connects, with so many servers.
fn checked(servers: u8, values: &PoolValues) -> (Model, ServiceId, Instant) {
    let (mut model, service, now) = model();
    changed(&mut model, &set_pool(PoolValues { check: Some(CheckKind::Tcp), ..values.clone() }), now);
    for number in 1..=servers {
        changed(&mut model, &add(address(number), 1), now);
    }
    (model, service, now)
}

/// Lets every check that is due by `until` come to what `passes` says of its address; how many there were.
fn check(model: &mut Model, until: Instant, passes: impl Fn(SocketAddr) -> bool) -> usize {
    let mut count = 0;
    while let Some(at) = model.next_check_due().filter(|at| *at <= until) {
        let (target, order) = model.next_check(at).expect("it is due");
        let outcome = if passes(order.address) { Ok("connected".to_owned()) } else { Err("refused".to_owned()) };
        model.check_done(target, Some(&CheckResult { outcome, duration: Duration::ZERO }), at);
        count += 1;
    }
    count
}

/// What was told of the health of servers since the last time.
fn told(model: &mut Model, now: Instant) -> Vec<(SocketAddr, HealthState)> {
    let effects = model.expire(now).into_iter();
    effects
        .filter_map(|effect| if let Effect::Tell(news) = effect { Some((news.server, news.state)) } else { None })
        .collect()
}

#[test]
fn when_a_server_goes_down_its_clients_alone_move_and_each_comes_back() {
    for policy in [Policy::ConsistentHash, Policy::RoundRobin] {
        let (mut model, service, now) = checked(5, &PoolValues { policy: Some(policy), ..PoolValues::default() });
        let before = picks(&mut model, service);
        let digest = list(&model).digest;
        check(&mut model, now + 9 * SECOND, |server| server != address(2));
        assert_eq!(told(&mut model, now + 9 * SECOND), [(address(2), HealthState::Down)]);
        let after = picks(&mut model, service);
        assert!(after.iter().all(|server| server.is_some_and(|server| server != address(2))));
        let report = explain(&mut model, client(1), now);
        assert_eq!(report.skipped, [SkippedReport { server: address(2), reason: Skip::Down }]);
        if policy == Policy::ConsistentHash {
            for (before, after) in before.iter().zip(&after) {
                assert!(before == after || *before == Some(address(2)), "only its own clients move");
            }
            let (mut without, other, _) = checked(5, &PoolValues::default());
            let gone = Change::Remove { pool: "default".to_owned(), server: address(2), how: Removal::Now };
            changed(&mut without, &Request::Change { change: gone, dry_run: false }, now);
            assert_eq!(picks(&mut without, other), after, "as if it was not there");
            let shares = |model: &Model| {
                list(model).servers.iter().map(|row| (row.server, row.share)).collect::<HashMap<_, _>>()
            };
            let mut shares_now = shares(&model);
            assert_eq!(shares_now.remove(&address(2)), Some(0.0));
            assert_eq!(shares_now, shares(&without));
        }
        check(&mut model, now + 20 * SECOND, |_| true);
        assert_eq!(told(&mut model, now + 20 * SECOND), [(address(2), HealthState::Up)]);
        if policy == Policy::ConsistentHash {
            assert_eq!(picks(&mut model, service), before, "exactly its own clients return");
        }
        assert_eq!(list(&model).digest, digest, "who is up is no part of what two balancers agree on");
    }
}

/// What a change would move, told before and after, made in the loop and beside it, by command and by a file that says the
/// same.
fn moves(model: &mut Model, change: &Change, now: Instant) -> (f64, Vec<MoveReport>) {
    let told = |model: &mut Model, dry_run| {
        let request = Request::Change { change: change.clone(), dry_run };
        let given = model.apply(&request, None, now);
        let given = given.unwrap_or_else(|remake| {
            let remade = remake.make().expect("it was checked");
            model.apply(&request, Some(remade), now).expect("its ring is made")
        });
        let (Response::Changed(report), _) = given else { panic!("{change} gave {given:?}") };
        (report.moved, report.moves)
    };
    let before = model.settings();
    let (starting, passed) = (model.starting(), model.passed_over());
    model.points_in_the_loop = 0;
    let beside = told(model, true);
    model.points_in_the_loop = usize::MAX;
    let inside = told(model, true);
    assert_eq!(told(model, false), inside, "what was told comes");
    assert_eq!(beside, inside, "wherever the ring is made");
    let mut prepared = prepare(&before, &before, model.settings(), starting, &passed).expect("sound");
    let pools = prepared.take_report("file", true).pools;
    let by_file = pools.into_iter().next().map(|pool| (pool.moved, pool.moves)).unwrap_or_default();
    assert_eq!(by_file, inside, "by a file, too");
    inside
}

proptest! {
    #[test]
    fn what_a_change_moves_is_told_as_if_those_who_are_down_were_not_there(
        down in prop::collection::btree_set(1u8..=6, 0..6),
        changes in prop::collection::vec((1u8..=8, 0u32..4, any::<bool>()), 1..6),
        points in prop::option::of(1u32..40),
    ) {
        let (mut model, service, now) = checked(6, &PoolValues::default());
        let (mut without, other, _) = checked(6, &PoolValues::default());
        let at = now + 9 * SECOND;
        check(&mut model, at, |server| !down.iter().any(|number| address(*number) == server));
        check(&mut without, at, |_| true);
        for number in &down {
            let gone = Change::Remove { pool: "default".to_owned(), server: address(*number), how: Removal::Now };
            changed(&mut without, &Request::Change { change: gone, dry_run: false }, at);
        }
        prop_assert_eq!(picks(&mut model, service), picks(&mut without, other));
        let points = points.and_then(std::num::NonZeroU32::new);
        let values = PoolValues { points_per_weight: points, ..PoolValues::default() };
        let pool = points.map(|_| Change::SetPool { pool: "default".to_owned(), values });
        let known = |model: &Model, server| model.settings().pools["default"].servers.contains_key(&server);
        for (number, weight, goes) in changes {
            let (pool, server) = ("default".to_owned(), address(number));
            let values = ServerValues { weight: Some(weight), ..ServerValues::default() };
            let change = match known(&model, server) {
                true if goes => Change::Remove { pool, server, how: Removal::Now },
                true => Change::Set { pool, server, values },
                false => {
                    let settings = ServerSettings { weight, ..ServerSettings::default() };
                    Change::Add { pool, server, settings }
                }
            };
            if down.contains(&number) && known(&model, server) {
                prop_assert_eq!(moves(&mut model, &change, at), (0.0, Vec::new()), "it has nobody");
            } else if !down.contains(&number) {
                prop_assert_eq!(moves(&mut model, &change, at), moves(&mut without, &change, at), "{}", change);
            }
            prop_assert_eq!(picks(&mut model, service), picks(&mut without, other));
        }
        if let Some(change) = pool {
            prop_assert_eq!(moves(&mut model, &change, at), moves(&mut without, &change, at));
        }
    }
}

#[test]
fn with_nobody_up_clients_are_refused_or_all_are_used_as_the_pool_says() {
    for policy in Policy::ALL {
        let (mut model, service, now) = checked(3, &PoolValues { policy: Some(policy), ..PoolValues::default() });
        let at = now + 9 * SECOND;
        check(&mut model, at, |_| false);
        assert_eq!(told(&mut model, at).len(), 3);
        assert_eq!(model.pick(service, client(1), &[]), None);
        let open = PoolValues { when_all_down: Some(WhenAllDown::UseAll), ..PoolValues::default() };
        changed(&mut model, &set_pool(open), at);
        let got: BTreeSet<_> = picks(&mut model, service).into_iter().collect();
        assert_eq!(got, [1, 2, 3].map(|number| Some(address(number))).into(), "{policy}");
        check(&mut model, now + 30 * SECOND, |server| server == address(2));
        let got: BTreeSet<_> = picks(&mut model, service).into_iter().collect();
        assert_eq!(got, [Some(address(2))].into(), "one is up, so it is asked alone");
    }
}

#[test]
fn backups_serve_only_while_nobody_else_is_up() {
    for policy in Policy::ALL {
        let (mut model, service, now) = checked(2, &PoolValues { policy: Some(policy), ..PoolValues::default() });
        for number in [8, 9] {
            let settings = ServerSettings { backup: true, ..ServerSettings::default() };
            let change = Change::Add { pool: "default".to_owned(), server: address(number), settings };
            let (report, _) = changed(&mut model, &Request::Change { change, dry_run: false }, now);
            assert_eq!((report.moved, report.digest), (0.0, Some(list(&model).digest)));
        }
        let got = |model: &mut Model| picks(model, service).into_iter().flatten().collect::<BTreeSet<_>>();
        assert_eq!(got(&mut model), [address(1), address(2)].into());
        let skipped = explain(&mut model, client(1), now).skipped;
        assert_eq!(skipped, [8, 9].map(|number| SkippedReport { server: address(number), reason: Skip::Backup }));
        let (first, _) = model.pick(service, client(1), &[]).expect("a server");
        let (second, _) = model.pick(service, client(1), &[first]).expect("another");
        let (third, its) = model.pick(service, client(1), &[first, second]).expect("all others were tried");
        assert!([address(8), address(9)].contains(&its) && third != second);
        check(&mut model, now + 9 * SECOND, |server| server.to_string().starts_with("10.0.0.8"));
        assert_eq!(got(&mut model), [address(8)].into());
        let row = row(&model, address(8)).expect("there");
        assert!(row.backup && (row.share - 1.0).abs() < 1e-9);
        check(&mut model, now + 20 * SECOND, |server| server == address(2));
        assert_eq!(got(&mut model), [address(2)].into());
    }
}

#[test]
fn a_server_whose_clients_fail_is_left_out_and_never_the_last_one() {
    let (mut model, service, now) = model();
    for number in 1..=3 {
        changed(&mut model, &add(address(number), 1), now);
    }
    let fail = |model: &mut Model, number: u8, times: usize, now: Instant| {
        let id = *model.pools.values().next().expect("the pool").members.get(&address(number)).expect("a member");
        for _ in 0..times {
            model.connect_began(id);
            model.connect_failed(id, ConnectFailure::Refused, now);
        }
        id
    };
    let before = picks(&mut model, service);
    let first = fail(&mut model, 1, 4, now);
    model.answered(first, Duration::ZERO, now);
    fail(&mut model, 1, 4, now);
    assert_eq!(told(&mut model, now), []);
    fail(&mut model, 1, 1, now);
    assert_eq!(told(&mut model, now), [(address(1), HealthState::Ejected)]);
    fail(&mut model, 2, 100, now);
    assert_eq!(told(&mut model, now), [], "half of three is one");
    let health = row(&model, address(1)).expect("there").health;
    assert_eq!((health.reason.as_deref(), health.ejected_ms), (Some("5 failed connects in a row"), Some(1_000)));
    let back = model.next_deadline().expect("a time");
    assert_eq!(back, now + SECOND);
    assert_eq!(told(&mut model, back), [(address(1), HealthState::Up)]);
    assert_eq!(picks(&mut model, service), before);
    fail(&mut model, 1, 1, back);
    assert_eq!(told(&mut model, back), [(address(1), HealthState::Ejected)], "one more is enough");
    assert_eq!(model.next_deadline(), Some(back + 2 * SECOND));

    // Whoever is left out serves when everybody else goes.
    for number in [2, 3] {
        let drain = ServerValues { state: Some(AdminState::Drain), ..ServerValues::default() };
        changed(&mut model, &set(address(number), drain), back);
    }
    assert_eq!(told(&mut model, back), [(address(1), HealthState::Up)]);
    assert_eq!(model.pick(service, client(1), &[]).map(|(_, its)| its), Some(address(1)));
}

#[test]
fn the_last_that_is_up_stays_however_often_its_clients_fail() {
    let (mut model, _, now) = model();
    let values = PoolValues {
        eject_failures: Some(1),
        eject_max_percent: Some(100),
        eject_time_ms: Some(3_600_000),
        eject_max_time_ms: Some(3_600_000),
        ..PoolValues::default()
    };
    changed(&mut model, &set_pool(values), now);
    for number in 1..=2 {
        changed(&mut model, &add(address(number), 1), now);
    }
    let ids: Vec<ServerId> = model.pools.values().next().expect("the pool").members.values().copied().collect();
    for count in 0..1000 {
        for id in &ids {
            model.connect_began(*id);
            model.connect_failed(*id, ConnectFailure::Refused, now + count * SECOND / 1000);
        }
    }
    assert_eq!(told(&mut model, now), [(address(1), HealthState::Ejected)], "not a line for each client");
    assert_eq!(model.readmissions.len(), 1);
    assert_eq!(row(&model, address(2)).expect("there").health.ejections, 0);
}

#[test]
fn resets_before_the_first_byte_count_and_later_ones_do_not() {
    let (mut model, service, now) = model();
    for number in 1..=2 {
        changed(&mut model, &add(address(number), 1), now);
    }
    let (id, its) = model.pick(service, client(1), &[]).expect("a server");
    let mut reset = |answered| {
        connect(&mut model, service, client(1));
        model.session_ended(service, client(1).ip(), Some(id), answered, EndReason::ServerReset, now);
    };
    (0..20).for_each(|_| reset(true));
    (0..5).for_each(|_| reset(false));
    assert_eq!(told(&mut model, now), [(its, HealthState::Ejected)]);
}

#[test]
fn sessions_of_a_server_that_checks_take_down_end_where_the_pool_says_so() {
    let (mut model, service, now) = checked(2, &PoolValues { on_down: Some(OnDown::Close), ..PoolValues::default() });
    let id = connect(&mut model, service, client(1));
    let its = model.server_address(id);
    check(&mut model, now + 9 * SECOND, |server| server != its);
    assert!(model.expire(now + 9 * SECOND).contains(&Effect::EndSessions(id, EndReason::ServerDown)));
}

#[test]
fn a_thousand_servers_are_spread_over_the_interval() {
    let (mut model, _, now) = checked(0, &PoolValues::default());
    for number in 0..1000u32 {
        let server = (Ipv4Addr::from(0x0a00_0000 + number), 80).into();
        changed(&mut model, &add(server, 1), now);
    }
    let mut counts = Vec::new();
    for tenth in 1..=100u32 {
        counts.push(check(&mut model, now + tenth * SECOND / 10, |_| true));
    }
    let (least, most) = (counts.iter().min().expect("some"), counts.iter().max().expect("some"));
    assert!(*least >= 20 && *most <= 90, "{counts:?}");
    assert!((4800..=5300).contains(&counts.iter().sum::<usize>()), "every two seconds: {counts:?}");
}

#[test]
fn a_server_that_is_to_pass_first_does_not_wait_for_a_long_interval() {
    let hour = PoolValues { check_interval_ms: Some(3_600_000), ..PoolValues::default() };
    let first = |initial| {
        let values = PoolValues { check_initial: Some(initial), ..hour.clone() };
        let (mut model, _, now) = checked(20, &values);
        check(&mut model, now + 2 * SECOND, |_| true)
    };
    assert_eq!(first(InitialHealth::Down), 20);
    assert!(first(InitialHealth::Up) < 5, "there is no hurry");
}

#[test]
fn what_is_left_alone_is_not_checked_and_what_is_to_pass_first_waits() {
    let initial = PoolValues { check_initial: Some(InitialHealth::Down), ..PoolValues::default() };
    let (mut model, service, now) = checked(1, &initial);
    assert_eq!(model.pick(service, client(1), &[]), None, "it has not passed yet");
    check(&mut model, now + 2 * SECOND, |_| true);
    assert!(model.pick(service, client(1), &[]).is_some());
    changed(&mut model, &set(address(1), state(AdminState::Maintenance)), now);
    assert_eq!(model.next_check_due(), None);
    changed(&mut model, &set(address(1), state(AdminState::Drain)), now);
    assert!(model.next_check_due().is_some(), "one that drains is checked");
    let elsewhere = ServerValues { check_address: Some(Some(address(77))), ..ServerValues::default() };
    changed(&mut model, &set(address(1), elsewhere), now);
    let (target, order) = model.next_check(now + 2 * SECOND).expect("it is due");
    assert_eq!(order.address, address(77));
    changed(&mut model, &set_pool(PoolValues { check: Some(CheckKind::None), ..PoolValues::default() }), now);
    model.check_done(target, None, now);
    assert_eq!(model.next_check_due(), None);
    changed(&mut model, &set_pool(PoolValues { check: Some(CheckKind::Tcp), ..PoolValues::default() }), now);
    let gone = Change::Remove { pool: "default".to_owned(), server: address(1), how: Removal::Now };
    changed(&mut model, &Request::Change { change: gone, dry_run: false }, now);
    assert_eq!(model.next_check_due(), None, "nothing is left behind");
}

proptest! {
    /// Whatever happens to whom: who is picked is eligible, somebody is picked if anybody is, and nobody loses count of what
    /// servers carry.
    #[test]
    fn who_is_picked_is_up(
        policy in prop::sample::select(Policy::ALL.as_slice()),
        all in any::<bool>(),
        steps in prop::collection::vec((0..8u8, 1..8u8, 0..3u32, any::<bool>()), 1..60),
    ) {
        let when = if all { WhenAllDown::UseAll } else { WhenAllDown::Refuse };
        let values = PoolValues { policy: Some(policy), when_all_down: Some(when), ..PoolValues::default() };
        let (mut model, service, mut now) = checked(0, &values);
        let mut sessions = Vec::new();
        for (what, number, weight, flag) in steps {
            let server = address(number);
            match what {
                0 | 1 => {
                    let settings = ServerSettings { weight, backup: flag, ..ServerSettings::default() };
                    let change = Change::Add { pool: "default".to_owned(), server, settings };
                    let _ = model.apply(&Request::Change { change, dry_run: false }, None, now);
                }
                2 => {
                    let change = Change::Remove { pool: "default".to_owned(), server, how: Removal::Now };
                    let _ = model.apply(&Request::Change { change, dry_run: false }, None, now);
                }
                3 => {
                    let values = ServerValues { weight: Some(weight), backup: Some(flag), ..ServerValues::default() };
                    let _ = model.apply(&set(server, values), None, now);
                }
                4 => {
                    now += 7 * SECOND;
                    check(&mut model, now, |other| other != server);
                }
                5 => {
                    if let Some((id, _)) = model.pick(service, client(number.into()), &[]) {
                        model.connect_began(id);
                        model.session_began(service, client(1).ip(), now).expect("it is let in");
                        sessions.push(id);
                    }
                }
                6 => {
                    if let Some(id) = sessions.pop() {
                        model.session_ended(service, client(1).ip(), Some(id), flag, EndReason::ServerReset, now);
                    }
                }
                _ => {
                    let id = model.pools.values().next().and_then(|pool| pool.members.get(&server).copied());
                    for id in id.into_iter().cycle().take(5) {
                        model.connect_began(id);
                        model.connect_failed(id, ConnectFailure::TimedOut, now);
                    }
                }
            }
            model.expire(now);
            let rows = list(&model).servers;
            let pool = model.pools.values().next().expect("a pool");
            for picker in [&pool.picker, &pool.backups] {
                let picked = picker.ids().filter(|id| picker.weight_of(*id) > 0);
                let active: u64 = picked.map(|id| model.servers[id].traffic.active).sum();
                prop_assert_eq!(picker.active(), active);
            }
            let ready = |backup| rows.iter().filter(move |row| row.state == ServerState::Ready && row.backup == backup);
            let up = |backup| ready(backup).filter(|row| row.health.state == HealthState::Up);
            let addresses = |rows: &mut dyn Iterator<Item = &ServerReport>| rows.map(|row| row.server).collect::<BTreeSet<_>>();
            let mut eligible = addresses(&mut up(false));
            if eligible.is_empty() {
                eligible = addresses(&mut up(true));
            }
            if eligible.is_empty() && all {
                eligible = addresses(&mut ready(false));
                if eligible.is_empty() {
                    eligible = addresses(&mut ready(true));
                }
            }
            for number in 0..20 {
                match model.pick(service, client(number), &[]) {
                    Some((_, server)) => prop_assert!(eligible.contains(&server), "{} of {:?}", server, eligible),
                    None => prop_assert!(eligible.is_empty()),
                }
            }
            let with_share: BTreeSet<_> = rows.iter().filter(|row| row.share > 0.0).map(|row| row.server).collect();
            prop_assert!(with_share.is_subset(&eligible));
            let shares: f64 = rows.iter().map(|row| row.share).sum();
            prop_assert!(eligible.is_empty() || (shares - 1.0).abs() < 1e-9, "{}", shares);
            prop_assert_eq!(list(&model).digest, model.pools.values().next().expect("a pool").digest_with(&model.servers, &[]));
        }
    }
}
