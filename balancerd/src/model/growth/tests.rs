//! Slow starts in rings that are made beside the loop, through the model.

use proptest::prelude::*;
use wire::control::{Change, PoolValues, ServerValues};
use wire::health::{CheckKind, WhenAllDown};
use wire::settings::{AdminState, Policy, ServerSettings};

use crate::model::tests::*;
use crate::model::*;

const SECOND: Duration = Duration::from_secs(1);

fn set_pool(values: PoolValues) -> Request {
    Request::Change { change: Change::SetPool { pool: "default".to_owned(), values }, dry_run: false }
}

/// So many servers that are checked and get a part of their weight in 50 seconds each when they come up, in rings that are all large.
fn slow(servers: u8) -> (Model, ServiceId, Instant) {
    let (mut model, service, now) = model();
    let values = PoolValues { check: Some(CheckKind::Tcp), slow_start_ms: Some(3_200_000), ..PoolValues::default() };
    for number in 1..=servers {
        changed(&mut model, &add(address(number), 1), now);
    }
    changed(&mut model, &set_pool(values), now);
    (model.points_in_the_loop, model.ring_in_the_loop) = (0, 0);
    (model, service, now)
}

/// Lets the checks of the 20 seconds from `at` come to what `passes` says; the time behind them.
fn check(model: &mut Model, at: Instant, passes: impl Fn(SocketAddr) -> bool) -> Instant {
    let until = at + 20 * SECOND;
    while let Some(at) = model.next_check_due().filter(|at| *at <= until) {
        let (target, order) = model.next_check(at).expect("it is due");
        let outcome = if passes(order.address) { Ok("connected".to_owned()) } else { Err("refused".to_owned()) };
        model.check_done(target, Some(&CheckResult { outcome, duration: Duration::ZERO }), at);
    }
    until
}

/// Makes the next ring for those who start slowly, if there is one; whether there was.
fn make(model: &mut Model, now: Instant) -> bool {
    let Some((pool, remake)) = model.next_growth(now) else { return false };
    model.grown(pool, remake.make().expect("it was checked"), now, now);
    true
}

fn ring(model: &Model) -> Arc<Ring<ServerId>> {
    Arc::clone(model.pools.values().next().and_then(|pool| pool.picker.ring()).expect("a ring"))
}

/// The points of the ring that the settings and parts of the servers give, and those of the one that is there.
fn points(model: &Model) -> [Vec<(u64, ServerId)>; 2] {
    let pool = model.pools.values().next().expect("a pool");
    let made = pool.picker_of(false, &model.servers, None).expect("it was checked");
    [made.ring().expect("a ring"), pool.picker.ring().expect("a ring")]
        .map(|ring| ring.points().map(|(hash, member)| (hash, member.tag)).collect())
}

fn parts(model: &Model) -> Vec<f64> {
    list(model).servers.iter().map(|row| row.ramp * 64.0).collect()
}

/// Passes the time until all have their weight; how many rings that took.
fn grow_up(model: &mut Model, mut now: Instant) -> usize {
    let mut rings = 0;
    while let Some(due) = [model.next_deadline(), model.next_growth_due()].into_iter().flatten().min() {
        now = now.max(due);
        model.expire(now);
        rings += usize::from(make(model, now));
        assert!(rings < 1000, "it has no end");
    }
    rings
}

#[test]
fn a_server_that_comes_up_waits_for_its_ring_and_grows_with_rings_that_are_made_beside_the_loop() {
    let (mut model, service, start) = slow(4);
    let before = picks(&mut model, service);
    let whole = ring(&model);
    let down = check(&mut model, start, |server| server != address(2));
    let without = picks(&mut model, service);
    let up = check(&mut model, down, |_| true);
    let news = model.expire(up);
    assert!(matches!(&news[..], [Effect::Tell(_), Effect::Tell(HealthNews { up: (4, 4), .. })]), "{news:?}");
    assert_eq!(picks(&mut model, service), without, "it waits");
    assert!(Arc::ptr_eq(&whole, &ring(&model)), "nothing was moved in the loop");
    assert_eq!(model.next_growth_due().map(|due| due <= up), Some(true));
    assert!(make(&mut model, up));
    let its = |model: &Model| ring(model).point_count(address(2).into());
    assert_eq!((its(&model), parts(&model)), (POINTS.get() / 64, vec![64.0, 1.0, 64.0, 64.0]));
    let first = picks(&mut model, service);
    assert!(first.iter().zip(&without).all(|(one, other)| one == other || *one == Some(address(2))));
    assert_eq!(whole.point_count(address(2).into()), POINTS.get(), "the old one is as it was, for whoever has it");
    assert_eq!(model.take_old_rings().len(), 1);
    let rings = grow_up(&mut model, up);
    assert_eq!((rings, parts(&model)), (63, vec![64.0; 4]));
    assert_eq!(picks(&mut model, service), before);
    assert_eq!(model.take_old_rings().len(), 63);
}

#[test]
fn all_that_come_up_in_a_moment_wait_for_one_ring() {
    let (mut model, _, start) = slow(40);
    let down = check(&mut model, start, |server| server == address(1));
    let up = check(&mut model, down, |_| true);
    model.expire(up);
    assert!(make(&mut model, up));
    assert!(!make(&mut model, up + SECOND / 100), "the next is not at once");
    assert_eq!(points(&model)[0], points(&model)[1]);
    let ring = ring(&model);
    assert!((2..=40).all(|number| ring.point_count(address(number).into()) < POINTS.get()));
    assert!(model.servers.values().all(Server::is_up));
}

#[test]
fn who_waits_serves_when_nobody_else_does() {
    for when_all_down in [WhenAllDown::Refuse, WhenAllDown::UseAll] {
        let (mut model, service, start) = slow(2);
        let when_all_down = Some(when_all_down);
        changed(&mut model, &set_pool(PoolValues { when_all_down, ..PoolValues::default() }), start);
        let down = check(&mut model, start, |server| server != address(2));
        let up = check(&mut model, down, |_| true);
        assert!(picks(&mut model, service).iter().all(|server| *server == Some(address(1))));
        let other = check(&mut model, up, |server| server != address(1));
        assert!(picks(&mut model, service).iter().all(|server| *server == Some(address(2))));
        grow_up(&mut model, other);
        assert!(picks(&mut model, service).iter().all(|server| *server == Some(address(2))));
        assert_eq!(parts(&model), [64.0; 2]);
    }
}

#[test]
fn who_comes_up_again_while_its_ring_is_made_waits_for_the_next() {
    let (mut model, service, start) = slow(3);
    let down = check(&mut model, start, |server| server != address(2));
    let up = check(&mut model, down, |_| true);
    let (pool, remake) = model.next_growth(up).expect("it came up");
    let down = check(&mut model, up, |server| server != address(2));
    let again = check(&mut model, down, |_| true);
    model.grown(pool, remake.make().expect("checked"), up, again);
    assert!(picks(&mut model, service).iter().all(|server| *server != Some(address(2))));
    assert!(make(&mut model, again + 5 * 41 * SECOND));
    assert!(model.servers.values().all(Server::is_up));
    assert_eq!(points(&model)[0], points(&model)[1]);
}

#[test]
fn who_becomes_a_backup_while_it_waits_or_grows_grows_up_as_one() {
    let backup = Some(true);
    let set = Change::Set {
        pool: "default".to_owned(),
        server: address(2),
        values: ServerValues { backup, ..ServerValues::default() },
    };
    let request = Request::Change { change: set, dry_run: false };
    for grows in [false, true] {
        let (mut model, _, start) = slow(4);
        let down = check(&mut model, start, |server| server != address(2));
        let up = check(&mut model, down, |_| true);
        if grows {
            assert!(make(&mut model, up));
        }
        let remake = model.apply(&request, None, up).expect_err("it leaves the ring");
        model.apply(&request, Some(remake.make().expect("checked")), up).expect("its ring is made");
        let ramp = model.servers.values().find_map(|server| server.ramp);
        assert_eq!(ramp.map(|ramp| ramp.part), grows.then_some(1), "what it has it keeps");
        grow_up(&mut model, up);
        let server = model.servers.values().find(|server| server.settings.backup).expect("it is one");
        assert!(server.is_up() && server.ramp.is_none());
    }
}

#[test]
fn a_ring_that_cannot_be_made_keeps_nobody_waiting() {
    let (mut model, service, start) = slow(4);
    let before = picks(&mut model, service);
    let down = check(&mut model, start, |server| server != address(2));
    let up = check(&mut model, down, |_| true);
    let (pool, _) = model.next_growth(up).expect("it came up");
    model.growth_failed(pool, up);
    assert_eq!(picks(&mut model, service), before);
    assert!(model.next_growth_due().is_some_and(|due| due > up), "not at once again");
}

#[test]
fn a_pool_without_a_slow_start_or_a_ring_lets_those_in_who_wait() {
    let other_policy = PoolValues { policy: Some(Policy::RoundRobin), ..PoolValues::default() };
    let at_once = PoolValues { slow_start_ms: Some(0), ..PoolValues::default() };
    for values in [other_policy, at_once] {
        let (mut model, service, start) = slow(4);
        let down = check(&mut model, start, |server| server != address(2));
        let up = check(&mut model, down, |_| true);
        model.points_in_the_loop = usize::MAX;
        changed(&mut model, &set_pool(values), up);
        grow_up(&mut model, up);
        assert_eq!(parts(&model), [64.0; 4]);
        assert!(picks(&mut model, service).contains(&Some(address(2))));
    }
}

/// What may happen while servers grow.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "there are few")]
enum Step {
    /// Checks of so many seconds, and who passes them.
    Check(u32, u8),
    Pass(u64),
    Begin,
    End,
    Change(Change),
}

fn any_step() -> impl Strategy<Value = Step> {
    let pool = || "default".to_owned();
    let server = || (1u8..7).prop_map(address);
    let admin = prop::sample::select([AdminState::Ready, AdminState::Drain].as_slice());
    let values = (prop::option::of(0u32..5), prop::option::of(admin), prop::option::weighted(0.2, any::<bool>()))
        .prop_map(|(weight, state, backup)| ServerValues { weight, state, backup, ..ServerValues::default() });
    let set = (server(), values).prop_map(move |(server, values)| Change::Set { pool: pool(), server, values });
    let slow = prop::sample::select([0u64, 30_000, 64_000].as_slice()).prop_map(move |time| Change::SetPool {
        pool: pool(),
        values: PoolValues { slow_start_ms: Some(time), ..PoolValues::default() },
    });
    let add = (server(), 1u32..5).prop_map(move |(server, weight)| Change::Add {
        pool: pool(),
        server,
        settings: ServerSettings { weight, ..ServerSettings::default() },
    });
    prop_oneof![
        4 => (1u32..9, any::<u8>()).prop_map(|(seconds, who)| Step::Check(seconds, who)),
        3 => (1u64..5000).prop_map(Step::Pass),
        4 => Just(Step::Begin),
        4 => Just(Step::End),
        2 => set.prop_map(Step::Change),
        1 => slow.prop_map(Step::Change),
        1 => add.prop_map(Step::Change),
    ]
}

proptest! {
    #[test]
    fn the_ring_is_that_of_the_servers_and_their_parts_and_all_grow_up(steps in prop::collection::vec(any_step(), 1..60)) {
        let (mut model, service, mut now) = slow(4);
        let mut making = None;
        for step in steps {
            match step {
                Step::Check(seconds, who) => {
                    let until = now + seconds * SECOND;
                    while let Some(at) = model.next_check_due().filter(|at| *at <= until) {
                        now = now.max(at);
                        let (target, order) = model.next_check(now).expect("it is due");
                        let passes = (1..7).any(|number| order.address == address(number) && who >> number & 1 == 1);
                        let outcome = if passes { Ok(String::new()) } else { Err("refused".to_owned()) };
                        model.check_done(target, Some(&CheckResult { outcome, duration: Duration::ZERO }), now);
                    }
                    now = until;
                }
                Step::Pass(time) => {
                    now += Duration::from_millis(time);
                    model.expire(now);
                }
                Step::Begin if making.is_none() => {
                    making = model.next_growth(now).map(|(pool, remake)| (pool, remake, now));
                }
                // Changes wait while a ring is made.
                Step::Change(change) if making.is_none() => {
                    let request = Request::Change { change, dry_run: false };
                    if let Err(remake) = model.apply(&request, None, now) {
                        let remade = remake.make().expect("it was checked");
                        model.apply(&request, Some(remade), now).expect("its ring is made");
                    }
                }
                Step::End => if let Some((pool, remake, asked)) = making.take() {
                    model.grown(pool, remake.make().expect("it was checked"), asked, now);
                },
                Step::Begin | Step::Change(_) => {}
            }
            let [expected, given] = points(&model);
            prop_assert!(expected == given);
            let up: HashMap<_, _> = model.servers.values().map(|server| (server.address, server.is_up())).collect();
            prop_assert!(picks(&mut model, service).into_iter().flatten().all(|server| up[&server]));
        }
        if let Some((pool, remake, asked)) = making {
            model.grown(pool, remake.make().expect("it was checked"), asked, now);
        }
        grow_up(&mut model, now);
        prop_assert!(model.servers.values().all(|server| server.ramp.is_none() && server.waits.is_none()));
    }
}
