//! How a pool picks a server: what each policy promises, seen by who serves whom.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use tests::config::{pool, service, weighted};
use tests::questions::{served_at, state};
use tests::{Balancer, Client, Server, Setup, loopback, wait};
use wire::Change;
use wire::control::{PoolValues, Removal, ServerValues};
use wire::report::{EndReason, Skip, SkippedReport};
use wire::settings::{AdminState, Policy};

fn addresses<'a>(servers: impl IntoIterator<Item = &'a Server>) -> Vec<SocketAddr> {
    servers.into_iter().map(Server::address).collect()
}

/// So many servers, in the order of their addresses.
fn in_order(count: usize) -> Vec<Server> {
    let mut servers = Server::several(count);
    servers.sort_by_key(Server::address);
    servers
}

/// A balancer of one service `web` whose pool has these keys, and these servers of these weights.
fn balancer(keys: &str, servers: &[Server], weights: &[u32]) -> Balancer {
    let servers = servers.iter().map(Server::address).zip(weights.iter().copied());
    Setup::new().config(&(service("web", loopback::free(), "web") + &weighted("web", keys, servers))).start()
}

fn equal(keys: &str, servers: &[Server]) -> Balancer {
    balancer(keys, servers, &vec![1; servers.len()])
}

fn policy(policy: Policy) -> String {
    format!("policy = \"{policy}\"")
}

fn counted(served: impl IntoIterator<Item = SocketAddr>) -> BTreeMap<SocketAddr, u64> {
    let mut counts = BTreeMap::new();
    for server in served {
        *counts.entry(server).or_default() += 1;
    }
    counts
}

/// Clients that hold their sessions, and who serves them, one after the other.
fn held(balancer: &Balancer, clients: impl IntoIterator<Item = u32>) -> Vec<(Client, SocketAddr)> {
    let held = |number| {
        let client = balancer.client_number(number);
        let server = client.server();
        (client, server)
    };
    clients.into_iter().map(held).collect()
}

#[test]
fn round_robin_comes_back_to_the_first_after_the_last() {
    let servers = Server::several(5);
    let balancer = equal(&policy(Policy::RoundRobin), &servers);
    let served = served_at(balancer.address(), 0..20);
    assert_eq!(counted(served[..5].iter().copied()).len(), 5, "each once: {served:?}");
    assert!((5..20).all(|number| served[number] == served[number - 5]), "{served:?}");
    // Whether sessions are held, and whose client it is, makes no difference.
    let kept = held(&balancer, [7; 10]);
    assert_eq!(kept.iter().map(|(_, server)| *server).collect::<Vec<_>>(), served[..10]);
}

/// The order of nginx's smooth weighted round robin, as `ngx_http_upstream_get_peer` finds it.
fn nginx(weights: &[u32], count: usize) -> Vec<usize> {
    let (mut current, total) =
        (vec![0i64; weights.len()], weights.iter().map(|weight| i64::from(*weight)).sum::<i64>());
    let mut order = Vec::new();
    for _ in 0..count {
        let mut best = 0;
        for (at, weight) in weights.iter().enumerate() {
            current[at] += i64::from(*weight);
            if current[at] > current[best] {
                best = at;
            }
        }
        current[best] -= total;
        order.push(best);
    }
    order
}

#[test]
fn weights_are_interleaved_as_nginx_does() {
    assert_eq!(nginx(&[5, 1, 1], 7), [0, 0, 1, 0, 2, 0, 0], "its own example");
    for weights in [&[5, 1, 1][..], &[1, 2, 3, 4], &[3, 3, 1], &[1, 7], &[6, 4, 2]] {
        let servers = in_order(weights.len());
        let balancer = balancer(&policy(Policy::RoundRobin), &servers, weights);
        let turns = 2 * weights.iter().sum::<u32>();
        let expected: Vec<_> = nginx(weights, turns as usize).into_iter().map(|at| servers[at].address()).collect();
        assert_eq!(served_at(balancer.address(), 0..turns), expected, "{weights:?}");
    }
}

#[test]
fn a_server_that_drains_loses_its_turns_and_nobody_else_does() {
    let servers = Server::several(4);
    let balancer = equal(&policy(Policy::RoundRobin), &servers);
    let gone = servers[1].address();
    balancer.set("web", gone, state(AdminState::Drain));
    let served = served_at(balancer.address(), 0..9);
    assert!((3..9).all(|number| served[number] == served[number - 3]) && !served.contains(&gone), "{served:?}");
    balancer.set("web", gone, state(AdminState::Ready));
    let served = served_at(balancer.address(), 0..12);
    assert_eq!(counted(served[..4].iter().copied()).len(), 4);
    assert!((4..12).all(|number| served[number] == served[number - 4]), "{served:?}");
}

#[test]
fn services_that_share_a_pool_share_its_turns() {
    let servers = Server::several(3);
    let (one, two) = (loopback::free(), loopback::free());
    let text = service("one", one, "web") + &service("two", two, "web");
    let balancer = Setup::new().config(&(text + &pool("web", &policy(Policy::RoundRobin), &servers))).start();
    let served: Vec<_> = (0..12).map(|number| Client::connect([one, two][number % 2]).server()).collect();
    assert!((3..12).all(|number| served[number] == served[number - 3]), "{served:?}");
    assert_eq!(balancer.pools()[0].services, ["one", "two"]);
}

#[test]
fn least_connections_fills_up_who_has_the_fewest() {
    let servers = Server::several(3);
    let balancer = equal(&policy(Policy::LeastConnections), &servers);
    let mut kept = held(&balancer, [1; 30]);
    let counts = counted(kept.iter().map(|(_, server)| *server));
    assert!(counts.len() == 3 && counts.values().all(|count| *count == 10), "{counts:?}");

    // Those of one server leave: the next ones are all for it, until it has as many as the others.
    let emptied = servers[1].address();
    kept.retain(|(_, server)| *server != emptied);
    balancer.wait_for_sessions(20);
    let more = held(&balancer, 0..10);
    assert!(more.iter().all(|(_, server)| *server == emptied));
    let further = counted(held(&balancer, 0..3).into_iter().map(|(_, server)| server));
    assert_eq!(further.len(), 3);
}

#[test]
fn least_connections_counts_by_weight() {
    let servers = Server::several(3);
    let balancer = balancer(&policy(Policy::LeastConnections), &servers, &[1, 2, 3]);
    let counts = counted(held(&balancer, 0..60).iter().map(|(_, server)| *server));
    assert_eq!(servers.iter().map(|server| counts[&server.address()]).collect::<Vec<_>>(), [10, 20, 30]);
}

#[test]
fn drawn_servers_are_drawn_by_weight() {
    for (name, weights) in [(Policy::WeightedRandom, [3, 1, 0]), (Policy::RandomTwoChoices, [3, 1, 0])] {
        let servers = Server::several(3);
        let balancer = balancer(&policy(name), &servers, &weights);
        // One after the other: a session that has not ended yet counts for two choices.
        let counts = counted((0..400).flat_map(|number| {
            let served = served_at(balancer.address(), number..number + 1);
            balancer.wait_for_all_sessions(0);
            served
        }));
        let share = |at: usize| counts.get(&servers[at].address()).copied().unwrap_or_default() as f64 / 400.0;
        assert!(share(2) == 0.0 && share(0) > share(1) && share(1) > 0.1, "{name}: {counts:?}");
        assert_eq!(balancer.explain_at("web", loopback::client(1), 0).server, None, "nobody knows before");
    }
}

#[test]
fn of_two_drawn_servers_the_one_with_fewer_sessions_is_taken() {
    let servers = Server::several(2);
    let balancer = equal(&policy(Policy::RandomTwoChoices), &servers);
    let kept = held(&balancer, 0..60);
    let counts = counted(kept.iter().map(|(_, server)| *server));
    // Of two servers both are drawn half of the time or more, and each such draw closes the gap.
    assert!(counts.values().all(|count| (20..=40).contains(count)), "{counts:?}");
}

#[test]
fn with_the_port_in_the_key_one_client_spreads_as_explained() {
    let servers = Server::several(4);
    let balancer = equal("key = \"client-ip-port\"", &servers);
    let kept = held(&balancer, [5; 100]);
    assert_eq!(counted(kept.iter().map(|(_, server)| *server)).len(), 4);
    for (client, server) in &kept {
        let own = client.stream().local_addr().expect("an address");
        let report = balancer.explain_at("web", own.ip(), own.port());
        assert_eq!((report.server, report.key), (Some(*server), Some(own.to_string())));
    }
}

#[test]
fn a_subnet_is_kept_together() {
    let servers = Server::several(4);
    let balancer = equal("key = \"client-subnet\"", &servers);
    let networks: Vec<SocketAddr> = (0..40)
        .map(|network| {
            let served = served_at(balancer.address(), network << 8..(network << 8) + 4);
            let last = balancer.client_number((network << 8) + 255).server();
            assert!(served.iter().all(|server| *server == last), "network {network}: {served:?}");
            last
        })
        .collect();
    assert_eq!(counted(networks).len(), 4, "different ones spread");
    let picks = |addresses: &[&str]| -> Vec<_> {
        let ips = addresses.iter().map(|text| text.parse::<IpAddr>().expect("an address"));
        ips.map(|ip| balancer.explain_at("web", ip, 0).hash).collect()
    };
    let six = picks(&["2001:db8::1", "2001:db8:0:ff::1", "2001:db8:0:100::1"]);
    assert!(six[0] == six[1] && six[1] != six[2], "a /56: {six:?}");
    let mapped = picks(&["10.1.2.3", "::ffff:10.1.2.99", "10.1.3.3"]);
    assert!(mapped[0] == mapped[1] && mapped[1] != mapped[2], "{mapped:?}");

    let values =
        PoolValues { key: Some(wire::settings::HashKey::ClientSubnet { ipv4: 16, ipv6: 32 }), ..PoolValues::default() };
    balancer.change(Change::SetPool { pool: "web".to_owned(), values }, false).expect("it is set");
    let wide = picks(&["10.1.2.3", "10.1.3.3", "10.2.3.3"]);
    assert!(wide[0] == wide[1] && wide[1] != wide[2], "{wide:?}");
}

#[test]
fn no_server_has_more_than_the_bounded_load_lets_it_have() {
    let (servers, weights) = (Server::several(4), [1, 1, 1, 3]);
    let balancer = balancer("max_load = 1.25", &servers, &weights);
    let mut active: BTreeMap<SocketAddr, u64> = BTreeMap::new();
    let mut kept = Vec::new();
    // Of few addresses, so that many come to the same servers.
    for sessions in 0..120u64 {
        let bound = |weight: u32| (1250 * (sessions + 1) * u64::from(weight)).div_ceil(1000 * 6).max(1);
        let number = sessions as u32 % 3;
        let explained = balancer.explain_at("web", loopback::client(number), 0);
        let (client, server) = held(&balancer, [number]).remove(0);
        assert_eq!(explained.server, Some(server), "session {sessions}");
        let at = servers.iter().position(|other| other.address() == server).expect("one of them");
        let count = active.entry(server).or_default();
        *count += 1;
        assert!(*count <= bound(weights[at]), "session {sessions}: {count} of {}", bound(weights[at]));
        for skipped in explained.skipped {
            let at = servers.iter().position(|other| other.address() == skipped.server).expect("one of them");
            assert_eq!(skipped.reason, Skip::Loaded);
            assert!(active.get(&skipped.server).copied().unwrap_or_default() >= bound(weights[at]));
        }
        kept.push(client);
    }
    let listed = balancer.list_pool("web").servers;
    let expected = |server| active.get(&server).copied().unwrap_or_default();
    assert!(listed.iter().all(|report| report.active == expected(report.server)), "{listed:?}");
    assert!(listed.iter().map(|report| report.overflows).sum::<u64>() > 0);
    for client in &kept {
        assert_eq!(client.exchange(b"x"), b"x");
    }
}

#[test]
fn backups_that_serve_are_bounded_as_well_and_turn_nobody_away() {
    let servers = Server::several(3);
    for keys in ["max_load = 1.25".to_owned(), policy(Policy::LeastConnections)] {
        let balancer = equal(&keys, &servers);
        let backup = ServerValues { backup: Some(true), ..ServerValues::default() };
        for server in &servers {
            balancer.set("web", server.address(), backup);
        }
        // Of one address, so that on a ring all would come to the same one.
        let mut kept = held(&balancer, [5; 30]);
        let counts = counted(kept.iter().map(|(_, server)| *server));
        assert!(counts.len() == 3 && counts.values().all(|count| *count <= 13), "{keys}: {counts:?}");
        let emptied = kept[0].1;
        kept.retain(|(_, server)| *server != emptied);
        balancer.wait_for_sessions(kept.len() as u64);
        let more = held(&balancer, [5; 4]);
        assert!(more.iter().all(|(_, server)| *server == emptied), "{keys}: there is room");
    }
}

#[test]
fn an_overflow_goes_to_the_next_on_the_ring_is_counted_and_comes_back_when_there_is_room() {
    let servers = Server::several(3);
    let balancer = equal("max_load = 1", &servers);
    let explained = balancer.explain_at("web", loopback::client(9), 0);
    let order: Vec<SocketAddr> = explained.server.into_iter().chain(explained.next).collect();
    assert_eq!(order.len(), 3);
    // One of three may have one of the first three sessions, and so on.
    let mut kept = held(&balancer, [9; 6]);
    assert_eq!(kept.iter().map(|(_, server)| *server).collect::<Vec<_>>(), [order.clone(), order.clone()].concat());
    let overflows = |at: usize| balancer.listed_in("web", order[at]).expect("it is there").overflows;
    assert_eq!([overflows(0), overflows(1), overflows(2)], [4, 2, 0]);
    kept.retain(|(_, server)| *server != order[0]);
    balancer.wait_for_sessions(4);
    assert_eq!(held(&balancer, [9])[0].1, order[0], "there is room at its own");
}

#[test]
fn a_server_with_its_most_sessions_is_passed_over_and_comes_back() {
    let servers = Server::several(3);
    let balancer = equal("", &servers);
    let explained = balancer.explain_at("web", loopback::client(4), 0);
    let (own, next) = (explained.server.expect("a server"), explained.next[0]);
    let values =
        |limit| ServerValues { max_sessions: Some(std::num::NonZeroU64::new(limit)), ..ServerValues::default() };
    balancer.set("web", own, values(2));
    let mut kept = held(&balancer, [4; 4]);
    assert_eq!(kept.iter().map(|(_, server)| *server).collect::<Vec<_>>(), [own, own, next, next]);
    let listed = balancer.listed_in("web", own).expect("it is there");
    assert_eq!((listed.active, listed.max_sessions, listed.overflows), (2, Some(2), 2));
    let explained = balancer.explain_at("web", loopback::client(4), 0);
    assert_eq!(explained.server, Some(next));
    assert!(explained.skipped.iter().any(|skipped| skipped.server == own && skipped.reason == Skip::Full));
    drop(kept.remove(0));
    balancer.wait_for_sessions(3);
    assert_eq!(held(&balancer, [4])[0].1, own);
    balancer.wait_for_sessions(3);
    balancer.set("web", own, values(0));
    let more = held(&balancer, [4; 3]);
    assert!(more.iter().all(|(_, server)| *server == own), "no limit any more");
}

#[test]
fn the_session_limit_of_a_server_holds_under_every_policy() {
    for name in Policy::ALL {
        let servers = Server::several(3);
        let listen = loopback::free();
        let lines =
            servers.iter().map(|server| format!("{{ address = \"{}\", max_sessions = 2 }}, ", server.address()));
        let text = format!("[pool.web]\npolicy = \"{name}\"\nservers = [{}]\n", lines.collect::<String>());
        let balancer = Setup::new().config(&(service("web", listen, "web") + &text)).start();
        let kept = held(&balancer, [3; 6]);
        let counts = counted(kept.iter().map(|(_, server)| *server));
        assert!(counts.len() == 3 && counts.values().all(|count| *count == 2), "{name}: {counts:?}");
        balancer.client_number(3).assert_ended();
        wait::until("it is counted", || balancer.ended(EndReason::Full) == 1);
        let (last, free) = (kept.len() - 1, kept[5].1);
        let kept: Vec<_> = kept.into_iter().take(last).collect();
        balancer.wait_for_sessions(5);
        assert_eq!(held(&balancer, [3])[0].1, free, "{name}");
        for (client, _) in &kept {
            assert_eq!(client.exchange(b"x"), b"x");
        }
    }
}

#[test]
fn a_full_pool_goes_on_with_its_backups_and_closes_clients_as_full_when_those_are_full_too_under_every_policy() {
    for name in Policy::ALL {
        let (servers, backup) = (Server::several(2), Server::start());
        let one = |server: &Server, keys| format!("{{ address = \"{}\", max_sessions = 1{keys} }}, ", server.address());
        let lines = servers.iter().map(|server| one(server, "")).collect::<String>() + &one(&backup, ", backup = true");
        let text = format!("[pool.web]\npolicy = \"{name}\"\nservers = [{lines}]\n");
        let balancer = Setup::new().config(&(service("web", loopback::free(), "web") + &text)).start();
        let mut kept = held(&balancer, 0..2);
        assert_eq!(counted(kept.iter().map(|(_, server)| *server)).len(), 2, "{name}");
        let explained = balancer.explain_at("web", loopback::client(2), 0);
        assert_eq!(explained.server, Some(backup.address()), "{name}");
        let full = |skipped: &SkippedReport| skipped.reason == Skip::Full;
        assert_eq!(explained.skipped.iter().filter(|skipped| full(skipped)).count(), 2, "{name}: {explained:?}");
        kept.extend(held(&balancer, [2]));
        assert_eq!(kept[2].1, backup.address(), "{name}");
        let explained = balancer.explain_at("web", loopback::client(3), 0);
        assert_eq!((explained.server, explained.next.len(), explained.skipped.len()), (None, 0, 3), "{name}");
        balancer.client_number(3).assert_ended();
        balancer.wait_for_ends(EndReason::Full, 1);
        assert_eq!(balancer.ended(EndReason::NoServer), 0, "{name}");
        balancer.wait_for_log("every server that takes clients is full");
        let (left, free) = kept.remove(0);
        drop(left);
        balancer.wait_for_sessions(2);
        assert_eq!(held(&balancer, [4])[0].1, free, "{name}: a server that is no backup has room again");
        for (client, _) in &kept {
            assert_eq!(client.exchange(b"x"), b"x");
        }
    }
}

#[test]
fn a_server_that_refuses_leaves_its_clients_to_others_under_every_policy() {
    for name in Policy::ALL {
        let (servers, refusing) = (Server::several(2), Server::refusing());
        let listen = loopback::free();
        let all = servers.iter().chain([&refusing]);
        let balancer = Setup::new().config(&(service("web", listen, "web") + &pool("web", &policy(name), all))).start();
        let served = served_at(listen, 0..30);
        assert!(served.iter().all(|server| addresses(&servers).contains(server)), "{name}");
        assert!(balancer.listed_in("web", refusing.address()).expect("it is there").connect_failures > 0, "{name}");
        balancer.wait_for_ends(EndReason::ClientClosed, 30);
    }
}

/// Who gets these clients.
fn picks(balancer: &Balancer) -> Vec<Option<SocketAddr>> {
    (0..300).map(|number| balancer.explain_at("web", loopback::client(number), 0).server).collect()
}

#[test]
fn a_server_that_comes_gets_its_clients_little_by_little_and_nobody_else_moves() {
    let servers = Server::several(4);
    let new = servers[3].address();
    let slow = equal("slow_start = \"3s\"", &servers[..3]);
    let at_once = equal("", &servers);
    let before = picks(&slow);
    assert!(slow.list_pool("web").servers.iter().all(|report| report.ramp == 1.0), "at the start nobody is new");
    slow.add_to("web", new);
    let (mut last, mut ramp) = (before.clone(), 0.0);
    wait::until("it has all of its weight", || {
        let now = picks(&slow);
        for ((old, previous), now) in before.iter().zip(&last).zip(&now) {
            assert!(now == old || *now == Some(new), "{old:?} to {now:?}");
            assert!(previous == now || *now == Some(new), "nobody goes back");
        }
        last = now;
        let reports = slow.list_pool("web").servers;
        assert!(reports.iter().all(|report| report.server == new || report.ramp == 1.0));
        let of = reports.iter().find(|report| report.server == new).expect("it is there").ramp;
        assert!(of >= ramp && of <= 1.0, "{ramp} to {of}");
        ramp = of;
        ramp == 1.0
    });
    assert_eq!((picks(&slow), slow.digest()), (picks(&at_once), at_once.digest()), "as if it had always been there");
}

#[test]
fn a_server_that_starts_slowly_has_few_clients_at_first_under_every_policy() {
    for name in Policy::ALL {
        let servers = Server::several(2);
        let balancer = equal(&format!("{}\nslow_start = \"20h\"", policy(name)), &servers[..1]);
        let new = servers[1].address();
        balancer.add_to("web", new);
        let listed = balancer.listed_in("web", new).expect("it is there");
        assert!(listed.ramp < 0.05 && listed.share < 0.1, "{name}: {listed:?}");
        let counts = counted(held(&balancer, 0..60).into_iter().map(|(_, server)| server));
        assert!(counts.get(&new).copied().unwrap_or_default() < 15, "{name}: {counts:?}");
        // One that was in maintenance comes up as well, one whose weight changes does not.
        balancer.set("web", servers[0].address(), tests::questions::weight(3));
        assert_eq!(balancer.listed_in("web", servers[0].address()).expect("it is there").ramp, 1.0);
        balancer.set("web", servers[0].address(), state(AdminState::Maintenance));
        balancer.set("web", servers[0].address(), state(AdminState::Ready));
        assert!(balancer.listed_in("web", servers[0].address()).expect("it is there").ramp < 0.05, "{name}");
    }
}

#[test]
fn a_slow_start_goes_on_where_it_was_when_a_file_is_read() {
    let servers = Server::several(3);
    let keys = "slow_start = \"20h\"";
    let balancer = balancer(keys, &servers[..2], &[1, 1]);
    let (listen, new) = (balancer.address(), servers[2].address());
    let before = picks(&balancer);
    let file = |weights: [u32; 3]| {
        let servers = servers.iter().map(Server::address).zip(weights);
        service("web", listen, "web") + &weighted("web", keys, servers)
    };
    balancer.configure(&file([1, 1, 1]));
    balancer.reload().expect("it is taken");
    for weights in [[1, 1, 1], [1, 2, 1], [1, 1, 1]] {
        balancer.configure(&file(weights));
        balancer.reload().expect("it is taken");
        let listed = balancer.listed_in("web", new).expect("it is there");
        assert!(listed.ramp < 0.05 && listed.share < 0.05, "{weights:?}: {listed:?}");
        let its = picks(&balancer).into_iter().filter(|server| *server == Some(new)).count();
        assert!(its < 30, "{weights:?}: {its} of 300");
    }
    for (old, now) in before.iter().zip(picks(&balancer)) {
        assert!(now == *old || now == Some(new), "{old:?} to {now:?}");
    }
    assert_eq!(balancer.diff(None).expect("it would be taken").changes, []);
}

#[test]
fn the_sessions_that_were_there_before_count_under_a_new_policy_and_after_a_reload() {
    let servers = Server::several(3);
    let balancer = equal("", &servers[..2]);
    let listen = balancer.address();
    let kept = held(&balancer, 0..30);
    let of = |server: &Server| kept.iter().filter(|(_, its)| *its == server.address()).count();
    let values = PoolValues { policy: Some(Policy::LeastConnections), ..PoolValues::default() };
    balancer.change(Change::SetPool { pool: "web".to_owned(), values }, false).expect("it is set");
    let gap = of(&servers[0]).abs_diff(of(&servers[1]));
    let fewer = if of(&servers[0]) < of(&servers[1]) { &servers[0] } else { &servers[1] };
    let more = held(&balancer, 0..gap as u32);
    assert!(more.iter().all(|(_, server)| *server == fewer.address()), "until both have as many");
    let each = (kept.len() + more.len()) / 2;
    let text = service("web", listen, "web") + &pool("web", "", &servers);
    balancer.configure(&text);
    balancer.reload().expect("it is taken");
    let filled = held(&balancer, 0..each as u32);
    assert!(filled.iter().all(|(_, server)| *server == servers[2].address()), "the new one has the fewest");
    assert_eq!(counted(held(&balancer, 0..3).into_iter().map(|(_, server)| server)).len(), 3);
}

#[test]
fn a_bounded_load_counts_the_sessions_that_were_there_before() {
    let servers = Server::several(2);
    let balancer = equal("", &servers);
    let own = balancer.explain_at("web", loopback::client(1), 0).server.expect("a server");
    let kept = held(&balancer, [1; 10]);
    assert!(kept.iter().all(|(_, server)| *server == own));
    let values = PoolValues { max_load: Some("1".parse().ok()), ..PoolValues::default() };
    balancer.change(Change::SetPool { pool: "web".to_owned(), values }, false).expect("it is set");
    let more = held(&balancer, [1; 10]);
    assert!(more.iter().all(|(_, server)| *server != own), "its own has all that it may have");
}

#[test]
fn the_first_server_of_a_pool_has_all_of_its_weight_at_once() {
    let servers = Server::several(1);
    let balancer = equal("slow_start = \"20h\"", &[]);
    balancer.add_to("web", servers[0].address());
    assert_eq!(balancer.listed_in("web", servers[0].address()).expect("it is there").ramp, 1.0);
    assert_eq!(balancer.client().server(), servers[0].address());
}

#[test]
fn a_slow_start_ends_when_the_pool_has_none_any_more() {
    let servers = Server::several(2);
    let at_once = equal("", &servers);
    for by_command in [true, false] {
        let balancer = equal("slow_start = \"20h\"", &servers[..1]);
        balancer.add_to("web", servers[1].address());
        if by_command {
            let values = PoolValues { slow_start_ms: Some(0), ..PoolValues::default() };
            balancer.change(Change::SetPool { pool: "web".to_owned(), values }, false).expect("it is set");
        } else {
            let web = service("web", balancer.address(), "web");
            balancer.configure(&(web + &pool("web", "", &servers[..1])));
            balancer.reload().expect("it is taken");
        }
        wait::until("it has all of its weight", || {
            balancer.listed_in("web", servers[1].address()).expect("it is there").ramp == 1.0
        });
        assert_eq!(balancer.digest(), at_once.digest());
    }
}

#[test]
fn a_server_that_is_removed_while_it_starts_leaves_no_trace() {
    let servers = Server::several(3);
    let balancer = equal("slow_start = \"20h\"", &servers[..2]);
    let before = (picks(&balancer), balancer.digest());
    balancer.add_to("web", servers[2].address());
    balancer.remove_from("web", servers[2].address(), Removal::Now);
    assert_eq!((picks(&balancer), balancer.digest()), before);
}
