//! Whom a pool gives clients to, through the model.

use wire::control::{Change, PoolValues, ServerValues};
use wire::report::{Skip, SkippedReport};
use wire::settings::{HashKey, LoadFactor, Policy};

use crate::model::tests::*;
use crate::model::*;

fn set_pool(values: PoolValues) -> Request {
    Request::Change { change: Change::SetPool { pool: "default".to_owned(), values }, dry_run: false }
}

fn policy(policy: Policy) -> Request {
    set_pool(PoolValues { policy: Some(policy), ..PoolValues::default() })
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
    model.session_ended(service, client(0).ip(), Some(first), true, EndReason::ClientClosed, now);
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
fn what_backups_carry_counts_as_it_does_of_others() {
    let backup = ServerValues { backup: Some(true), ..ServerValues::default() };
    let bounded = PoolValues { max_load: Some(LoadFactor::from_thousandths(1250)), ..PoolValues::default() };
    let least = PoolValues { policy: Some(Policy::LeastConnections), ..PoolValues::default() };
    for values in [bounded, least] {
        let (mut model, service, now) = model();
        changed(&mut model, &set_pool(values), now);
        for number in 1..5 {
            changed(&mut model, &add(address(number), 1), now);
            changed(&mut model, &set(address(number), backup), now);
        }
        let sessions: Vec<ServerId> = (0..100).map(|_| connect(&mut model, service, client(7))).collect();
        let active = |model: &Model| list(model).servers.iter().map(|row| row.active).collect::<Vec<_>>();
        assert!(active(&model).iter().all(|active| *active <= 32), "{:?}", active(&model));
        // One of them loses what it has: it is the one for the next.
        let emptied = sessions[0];
        for _ in sessions.iter().filter(|session| **session == emptied) {
            model.session_ended(service, client(7).ip(), Some(emptied), true, EndReason::ClientClosed, now);
        }
        let next: Vec<ServerId> = (0..10).map(|_| connect(&mut model, service, client(7))).collect();
        assert_eq!(next, [emptied; 10], "{:?}", active(&model));
    }
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
    model.session_ended(service, client(7).ip(), Some(first), true, EndReason::ClientClosed, now);
    assert_eq!(model.pick(service, client(7), &[]).map(|(_, address)| address), Some(its));
}

#[test]
fn of_full_servers_least_connections_counts_the_one_that_would_have_been_picked() {
    let (mut model, service, now) = model();
    changed(&mut model, &policy(Policy::LeastConnections), now);
    let limit = |limit| ServerValues { max_sessions: Some(NonZeroU64::new(limit)), ..ServerValues::default() };
    for number in 1..4 {
        changed(&mut model, &add(address(number), 1), now);
        changed(&mut model, &set(address(number), limit(if number < 3 { 1 } else { 3 })), now);
    }
    changed(&mut model, &add(address(4), 1), now);
    let backup = ServerValues { backup: Some(true), ..ServerValues::default() };
    changed(&mut model, &set(address(4), backup), now);
    let overflows = |model: &Model| [1, 2, 3].map(|number| row(model, address(number)).expect("there").overflows);
    let sessions: Vec<ServerId> = (0..5).map(|number| connect(&mut model, service, client(number))).collect();
    let servers: Vec<SocketAddr> = sessions.iter().map(|session| model.server_address(*session)).collect();
    assert_eq!(servers, [1, 2, 3, 3, 3].map(address));
    assert_eq!(overflows(&model), [2, 0, 0], "once for each client that went on");
    let picked = |model: &mut Model, tried: &[ServerId]| model.pick(service, client(5), tried).map(|(_, its)| its);
    assert_eq!(picked(&mut model, &[]), Some(address(4)), "all others are full");
    assert_eq!(picked(&mut model, &[sessions[0]]), Some(address(4)));
    let tried = [sessions[0], sessions[1], sessions[2]];
    assert_eq!(model.pick(service, client(5), &tried).map(|(_, address)| address), Some(address(4)));
    assert_eq!(overflows(&model), [3, 0, 0]);
    changed(&mut model, &set(address(2), limit(2)), now);
    assert_eq!(model.pick(service, client(5), &[]).map(|(_, server)| server), Some(address(2)), "it has room now");
    assert_eq!(overflows(&model), [4, 0, 0]);
    model.session_ended(service, client(0).ip(), Some(sessions[0]), true, EndReason::ClientClosed, now);
    assert_eq!(model.pick(service, client(5), &[]).map(|(_, server)| server), Some(address(1)));
    assert_eq!(overflows(&model), [4, 0, 0]);
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
                model.connect_failed(server, ConnectFailure::Refused, now);
                tried.push(server);
            }
            assert!(served, "client {number}, dead {dead}");
        }
        let active = |number| row(&model, address(number)).expect("there").active;
        assert_eq!((active(1), active(2) + active(3)), if dead { (0, 200) } else { (5, 195) });
        assert!(active(2).abs_diff(active(3)) <= 60, "the bound holds among those who are left");
    }
}
