//! Servers that are taken out of use, in every grade, and what becomes of their sessions.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::thread;

use serde_json::Value;
use tests::balancer::{WAIT, remove};
use tests::config::{pool, service};
use tests::questions::{state, weight};
use tests::{Balancer, Client, DatagramClient, DatagramServer, Server, Setup, loopback, wait};
use wire::control::{Removal, ServerValues};
use wire::report::{EndReason, ServerState, SessionReport, Skip};
use wire::settings::{AdminState, DEFAULT_POOL, ServerSettings};
use wire::{Change, Refusal, Request, Response};

/// Clients of a balancer that hold their sessions, and who serves each.
fn held(balancer: &Balancer, count: u32) -> Vec<(Client, SocketAddr)> {
    let held = |number| {
        let client = balancer.client_number(number);
        let server = client.server();
        (client, server)
    };
    (0..count).map(held).collect()
}

fn assert_alive<'a>(clients: impl IntoIterator<Item = &'a (Client, SocketAddr)>) {
    for (client, server) in clients {
        let bytes = server.to_string().into_bytes();
        assert_eq!(client.exchange(&bytes), bytes);
    }
}

fn kill_all(server: SocketAddr) -> Change {
    Change::KillAll { pool: DEFAULT_POOL.to_owned(), server }
}

/// The client that a session is of.
fn is_of(session: &SessionReport, client: &Client) -> bool {
    session.client == client.stream().local_addr().expect("its own")
}

#[test]
fn a_server_out_of_use_keeps_its_sessions_and_gets_exactly_its_own_clients_back() {
    let out: [(ServerValues, ServerState, Skip); 3] = [
        (state(AdminState::Drain), ServerState::Drain, Skip::Drain),
        (state(AdminState::Maintenance), ServerState::Maintenance, Skip::Maintenance),
        (weight(0), ServerState::Drain, Skip::Drain),
    ];
    for (values, expected, reason) in out {
        let servers = Server::several(3);
        let balancer = Balancer::of(&servers);
        let (digest, clients) = (balancer.digest(), held(&balancer, 60));
        let before: Vec<_> = clients.iter().map(|(_, server)| *server).collect();
        let gone = servers[0].address();
        let its = before.iter().filter(|server| **server == gone).count();
        assert!(its > 0);

        let dry = balancer
            .change(Change::Set { pool: DEFAULT_POOL.to_owned(), server: gone, values }, true)
            .expect("it would be set");
        assert_eq!((dry.dry_run, dry.sessions, balancer.digest()), (true, its as u64, digest));
        let done = balancer.set(DEFAULT_POOL, gone, values);
        assert_eq!((done.moved, &done.moves, done.sessions), (dry.moved, &dry.moves, its as u64));
        assert!(done.moves.iter().all(|step| step.from == Some(gone)));

        let listed = balancer.listed(gone);
        assert_eq!((listed.state, listed.active, listed.share), (expected, its as u64, 0.0));
        let after = balancer.served(0..60);
        for (old, new) in before.iter().zip(&after) {
            assert!(if *old == gone { *new != gone } else { new == old }, "{old} to {new}");
        }
        let explained = balancer.explain(loopback::client(0));
        assert!(explained.skipped.iter().any(|skip| skip.server == gone && skip.reason == reason), "{explained:?}");
        assert_alive(&clients);

        balancer.set(DEFAULT_POOL, gone, ServerValues { weight: Some(1), ..state(AdminState::Ready) });
        assert_eq!((balancer.served(0..60), balancer.digest()), (before, digest));
        assert_alive(&clients);
    }
}

#[test]
fn a_server_in_maintenance_is_not_ready_by_a_weight() {
    let servers = Server::several(2);
    let balancer = Balancer::of(&servers);
    let out = servers[0].address();
    balancer.set(DEFAULT_POOL, out, state(AdminState::Maintenance));
    balancer.set(DEFAULT_POOL, out, weight(200));
    assert!(balancer.served(0..30).iter().all(|server| *server != out));
    let listed = balancer.listed(out);
    assert_eq!((listed.state, listed.weight), (ServerState::Maintenance, 200));
    assert_eq!(servers[0].accepted(), 0);
}

#[test]
fn set_of_nothing_or_of_nobody_changes_nothing() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let set = |server, values| balancer.change(Change::Set { pool: DEFAULT_POOL.to_owned(), server, values }, false);
    let nobody = "10.0.0.1:80".parse().expect("an address");
    assert_eq!(set(server.address(), ServerValues::default()), Err(Refusal::NothingToSet));
    assert_eq!(set(nobody, weight(1)), Err(Refusal::NotThere { server: nobody }));
    assert_eq!(set(server.address(), weight(257)), Err(Refusal::WeightTooLarge { weight: 257 }));
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    balancer.remove(server.address());
    assert_eq!(set(server.address(), weight(2)), Err(Refusal::Leaving { server: server.address(), sessions: 1 }));
    assert_eq!(client.exchange(b"x"), b"x");
}

#[test]
fn sessions_that_are_left_at_the_limit_are_closed_then() {
    let servers = Server::several(2);
    let balancer = Balancer::of(&servers);
    let gone = servers[0].address();
    let (its, others): (Vec<_>, Vec<_>) = held(&balancer, 30).into_iter().partition(|(_, server)| *server == gone);
    let limit = |limit_ms| remove(gone, Removal::Wait { limit_ms: Some(limit_ms) });
    balancer.change(limit(3_600_000), false).expect("it is removed");
    assert_alive(&its);
    let removal = balancer.listed(gone).removal.expect("it leaves");
    assert_eq!((removal.how, removal.sessions), (Removal::Wait { limit_ms: Some(3_600_000) }, its.len() as u64));
    assert!(removal.left_ms.is_some_and(|left| left <= 3_600_000));
    let again = balancer.change(limit(3_600_000), false);
    assert_eq!(again, Err(Refusal::Leaving { server: gone, sessions: its.len() as u64 }));

    balancer.change(limit(300), false).expect("another limit");
    its.iter().for_each(|(client, _)| client.assert_ended());
    balancer.wait_for_ends(EndReason::Removed, its.len() as u64);
    wait::until("it is gone", || balancer.list().servers.len() == 1);
    assert_alive(&others);
}

#[test]
fn over_a_time_sessions_are_closed_little_by_little_the_longest_idle_first() {
    let servers = Server::several(2);
    let balancer = Balancer::of(&servers);
    let gone = servers[0].address();
    let (mut its, others): (Vec<_>, Vec<_>) = held(&balancer, 40).into_iter().partition(|(_, server)| *server == gone);
    assert!(its.len() >= 8, "{}", its.len());
    its.truncate(8);
    balancer.wait_for_sessions((its.len() + others.len()) as u64);
    // The order in which they spoke last is another one than that in which they came.
    let order = [3, 0, 7, 1, 6, 2, 5, 4];
    for at in order {
        assert_alive([&its[at]]);
    }
    let listed = balancer.sessions(Some(gone));
    let place = |session: &SessionReport| order.iter().position(|at| is_of(session, &its[*at].0)).expect("one of them");
    assert_eq!(listed.iter().map(place).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>(), "the longest idle first");

    let time = 2_000;
    let report = balancer.change(remove(gone, Removal::Over { time_ms: time }), false).expect("it is removed");
    assert_eq!(report.sessions, 8);
    wait::until("all of them are closed", || {
        let left: HashSet<usize> = balancer.sessions(Some(gone)).iter().map(place).collect();
        assert!((8 - left.len()..8).all(|place| left.contains(&place)), "the longest idle go first: {left:?}");
        // However slow this machine is, nobody is closed too early.
        if let Some(listed) = balancer.list().servers.into_iter().find(|report| report.server == gone) {
            let left_ms = listed.removal.and_then(|removal| removal.left_ms).expect("a limit");
            assert!((listed.active + 1) * time >= 8 * left_ms, "{} with {left_ms} ms left", listed.active);
        }
        left.is_empty()
    });
    its.iter().for_each(|(client, _)| client.assert_ended());
    wait::until("they are counted", || balancer.ended(EndReason::Removed) == 8);
    wait::until("it is gone", || balancer.list().servers.len() == 1);
    assert_alive(&others);
}

#[test]
fn who_speaks_all_the_time_is_closed_last() {
    let servers = Server::several(1);
    let balancer = Balancer::of(&servers);
    let clients = held(&balancer, 5);
    let (speaker, _) = &clients[0];
    balancer.change(remove(servers[0].address(), Removal::Over { time_ms: 1_500 }), false).expect("it is removed");
    wait::until("the others are closed", || {
        let sessions = balancer.sessions(None);
        if sessions.len() > 1 {
            assert!(sessions.iter().any(|session| is_of(session, speaker)));
            // It may be closed, as the last one, while this is on its way.
            let _ = std::io::Write::write(&mut speaker.stream(), b"x");
        }
        sessions.len() <= 1
    });
    clients[1..].iter().for_each(|(client, _)| client.assert_ended());
    balancer.wait_for_sessions(0);
}

#[test]
fn the_grade_of_a_removal_can_be_changed_until_it_is_done() {
    let servers = Server::several(1);
    let balancer = Balancer::of(&servers);
    let server = servers[0].address();
    let clients = held(&balancer, 6);
    let hour = 3_600_000;
    for how in [WAIT, Removal::Over { time_ms: hour * 24 }, Removal::Wait { limit_ms: Some(hour) }, WAIT] {
        assert_eq!(balancer.change(remove(server, how), true).expect("it would be").sessions, 6);
        balancer.change(remove(server, how), false).expect("it is");
        assert_eq!(balancer.listed(server).removal.expect("it leaves").how, how);
        assert_eq!(balancer.change(remove(server, how), false), Err(Refusal::Leaving { server, sessions: 6 }));
        assert_alive(&clients);
    }
    assert_eq!(balancer.remove_now(server).sessions, 6);
    clients.iter().for_each(|(client, _)| client.assert_ended());
    wait::until("it is gone", || balancer.list().servers.is_empty());
}

#[test]
fn a_server_that_is_added_again_while_it_leaves_keeps_its_sessions() {
    let servers = Server::several(2);
    let balancer = Balancer::of(&servers);
    let (server, clients) = (servers[0].address(), held(&balancer, 20));
    balancer.change(remove(server, Removal::Over { time_ms: 700 }), false).expect("it is removed");
    balancer.add(server);
    let listed = balancer.listed(server);
    assert_eq!((listed.state, listed.removal), (ServerState::Ready, None));
    let alive = balancer.sessions(Some(server)).len();
    wait::a_moment();
    assert_eq!(balancer.sessions(Some(server)).len(), alive, "nobody is closed any more");
    assert_alive(clients.iter().filter(|(_, its)| *its != server));
}

#[test]
fn a_server_without_sessions_goes_at_once_in_every_grade() {
    let server = Server::refusing();
    let balancer = Balancer::start();
    for how in [WAIT, Removal::Wait { limit_ms: Some(60_000) }, Removal::Over { time_ms: 60_000 }, Removal::Now] {
        balancer.add(server.address());
        balancer.change(remove(server.address(), how), false).expect("it is removed");
        assert!(balancer.list().servers.is_empty(), "{how:?}");
    }
}

#[test]
fn a_dry_run_of_every_grade_closes_nobody() {
    let servers = Server::several(2);
    let balancer = Balancer::of(&servers);
    let (digest, clients) = (balancer.digest(), held(&balancer, 20));
    let its = clients.iter().filter(|(_, server)| *server == servers[0].address()).count() as u64;
    for how in [WAIT, Removal::Wait { limit_ms: Some(0) }, Removal::Over { time_ms: 1 }, Removal::Now] {
        let report = balancer.change(remove(servers[0].address(), how), true).expect("it would be removed");
        assert_eq!((report.dry_run, report.sessions), (true, its));
    }
    assert_eq!(balancer.change(kill_all(servers[0].address()), true).expect("they would be").sessions, its);
    assert_alive(&clients);
    assert_eq!((balancer.digest(), balancer.list().servers.len()), (digest, 2));
}

#[test]
fn sessions_lists_who_is_where_with_bytes() {
    let (left, right) = (Server::several(2), Server::several(1));
    let (one, two) = (loopback::free(), loopback::free());
    let text = service("one", one, "left") + &service("two", two, "right");
    let balancer = Setup::new().config(&(text + &pool("left", "", &left) + &pool("right", "", &right))).start();
    let mut clients = Vec::new();
    for number in 0..12u32 {
        let (service, pool) = if number % 3 == 0 { ("two", "right") } else { ("one", "left") };
        let client = balancer.client_at(service, number);
        let server = client.server();
        let bytes = vec![b'x'; 100 * number as usize];
        assert_eq!(client.exchange(&bytes), bytes);
        clients.push((client, server, service, pool, bytes.len() as u64));
    }
    wait::until("all bytes are counted", || {
        balancer.sessions(None).iter().map(|session| session.bytes_out).sum::<u64>()
            == clients.iter().map(|(_, server, .., bytes)| bytes + server.to_string().len() as u64 + 1).sum::<u64>()
    });
    let sessions = balancer.sessions(None);
    assert_eq!(sessions.len(), 12);
    for (client, server, service, pool, bytes) in &clients {
        let session = sessions.iter().find(|session| is_of(session, client)).expect("it is listed");
        assert_eq!((session.service.as_str(), session.pool.as_str()), (*service, *pool));
        assert_eq!((session.server, session.connected), (Some(*server), true));
        let name = server.to_string().len() as u64 + 1;
        assert_eq!((session.bytes_in, session.bytes_out), (*bytes, bytes + name));
        assert!(session.idle_ms <= session.age_ms);
    }
    assert!(sessions.is_sorted_by_key(|session| std::cmp::Reverse(session.idle_ms)), "the longest idle first");
    let count = |service: Option<&str>, pool: Option<&str>, server, limit| {
        let (service, pool) = (service.map(str::to_owned), pool.map(str::to_owned));
        match balancer.call(&Request::Sessions { service, pool, server, limit }) {
            Response::Sessions(sessions) => sessions.len(),
            other => panic!("an answer to another question: {other:?}"),
        }
    };
    let of_first = clients.iter().filter(|(_, server, ..)| *server == left[0].address()).count();
    assert_eq!(count(None, None, Some(left[0].address()), 100), of_first);
    assert_eq!((count(Some("two"), None, None, 100), count(None, Some("left"), None, 100)), (4, 8));
    assert_eq!(count(Some("two"), Some("left"), None, 100), 0);
    assert_eq!((count(None, None, None, 5), count(None, None, None, 0)), (5, 0));

    let output = balancer.ctl(&format!("sessions --server {} --json", right[0].address()));
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = listed.to_string();
    for (client, server, ..) in &clients {
        let own = client.stream().local_addr().expect("its own").to_string();
        assert_eq!(text.contains(&own), *server == right[0].address(), "{text}");
    }
    for (name, refused) in [("service", "sessions --service nobody"), ("pool", "sessions --pool nobody")] {
        let output = balancer.ctl(refused);
        let said = String::from_utf8(output.stderr).expect("text");
        assert!(output.status.code() == Some(1) && said.contains(name), "{refused}: {said}");
    }
}

#[test]
fn kill_ends_one_session_and_no_other() {
    let servers = Server::several(2);
    let balancer = Balancer::of(&servers);
    let mut clients = held(&balancer, 10);
    let (killed, server) = clients.remove(4);
    let session = balancer.sessions(None).into_iter().find(|session| is_of(session, &killed)).expect("it is listed");
    let kill = Change::Kill { session: session.session };
    balancer.change(kill.clone(), true).expect("it would be ended");
    assert_eq!(killed.exchange(b"x"), b"x");
    assert_eq!(balancer.change(kill.clone(), false).expect("it is ended").sessions, 1);
    killed.assert_ended();
    balancer.wait_for_ends(EndReason::Killed, 1);
    assert_eq!(balancer.listed(server).ended, [(EndReason::Killed, 1)].into());
    assert_eq!(balancer.change(kill, false), Err(Refusal::NoSession { session: session.session }));
    assert_alive(&clients);
    assert_eq!(balancer.client_number(4).server(), server, "it may come again");
    for number in [0, u64::MAX, 1 << 40] {
        let refusal = balancer.change(Change::Kill { session: number }, false);
        assert_eq!(refusal, Err(Refusal::NoSession { session: number }));
    }
}

#[test]
fn sessions_are_numbered_from_1_up_and_a_number_means_one_of_them() {
    let (server, resolver) = (Server::start(), DatagramServer::start());
    let (listen, datagrams) = (loopback::free(), loopback::free());
    let text = service("web", listen, "web")
        + &pool("web", "", [&server])
        + &tests::config::datagrams(datagrams, "")
        + &tests::config::datagram_pool("", [&resolver]);
    let balancer = Setup::new().config(&text).options("--log-level debug").start();
    let numbers = || {
        let mut numbers: Vec<u64> = balancer.sessions(None).iter().map(|session| session.session).collect();
        numbers.sort_unstable();
        numbers
    };
    let mut clients: Vec<Client> = Vec::new();
    for number in 1..=3 {
        clients.push(Client::connect_from(loopback::client(number), listen));
        assert_eq!(clients.last().expect("one").server(), server.address());
    }
    let flow = DatagramClient::new(datagrams);
    assert_eq!(flow.ask(b"who"), resolver.address());
    assert_eq!(numbers(), [1, 2, 3, 4], "flows and others are numbered together");
    // Keys of slots that are no numbers: the first slot, as it was and is.
    for number in [0, 5, 1 << 32, (1 << 32) + 1, (1 << 32) + 2, 1 << 30, (1 << 31) + 1] {
        let refusal = balancer.change(Change::Kill { session: number }, false);
        assert_eq!(refusal, Err(Refusal::NoSession { session: number }));
    }
    assert_eq!(numbers(), [1, 2, 3, 4]);
    assert_eq!(balancer.ctl("kill 2").status.code(), Some(0));
    clients.remove(1).assert_ended();
    clients.iter().for_each(|client| assert_eq!(client.exchange(b"x"), b"x"));
    balancer.wait_for_log("session=2");
    assert_eq!(balancer.ctl("kill 4").status.code(), Some(0));
    assert_eq!(numbers(), [1, 3]);
    clients.push(Client::connect_from(loopback::client(2), listen));
    assert_eq!(clients.last().expect("one").server(), server.address());
    assert_eq!(flow.ask(b"who"), resolver.address());
    assert_eq!(numbers(), [1, 3, 5, 6], "a number is not given again");
    let json: Value = serde_json::from_slice(&balancer.ctl("sessions --json").stdout).expect("JSON");
    let mut told: Vec<u64> =
        json["sessions"].as_array().expect("a list").iter().filter_map(|session| session["session"].as_u64()).collect();
    told.sort_unstable();
    assert_eq!(told, [1, 3, 5, 6]);
}

#[test]
fn kill_of_a_server_ends_its_sessions_and_leaves_it_in_the_pool() {
    let servers = Server::several(2);
    let balancer = Balancer::of(&servers);
    let server = servers[0].address();
    let clients = held(&balancer, 30);
    let (its, others): (Vec<_>, Vec<_>) = clients.iter().partition(|(_, name)| *name == server);
    let output = balancer.ctl(&format!("kill --server {server}"));
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    its.iter().for_each(|(client, _)| client.assert_ended());
    balancer.wait_for_ends(EndReason::Killed, its.len() as u64);
    assert_alive(others);
    let before: Vec<_> = clients.iter().map(|(_, server)| *server).collect();
    assert_eq!(balancer.served(0..30), before, "they get it again");
    let nobody = "10.0.0.1:80".parse().expect("an address");
    assert_eq!(balancer.change(kill_all(nobody), false), Err(Refusal::NotThere { server: nobody }));
    assert_eq!(balancer.ctl("kill 12345").status.code(), Some(1));
}

#[test]
fn sessions_of_a_leaving_server_can_be_killed() {
    let servers = Server::several(1);
    let balancer = Balancer::of(&servers);
    let server = servers[0].address();
    let clients = held(&balancer, 5);
    balancer.remove(server);
    assert_eq!(balancer.change(kill_all(server), false).expect("they are ended").sessions, 5);
    clients.iter().for_each(|(client, _)| client.assert_ended());
    wait::until("it is gone", || balancer.list().servers.is_empty());
}

#[test]
fn remove_with_wait_returns_when_the_last_session_has_ended() {
    let servers = Server::several(1);
    let balancer = Balancer::of(&servers);
    let server = servers[0].address();
    let mut clients = held(&balancer, 3);
    let line = format!("remove {} {} --wait", server.ip(), server.port());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| balancer.ctl(&line));
        wait::until("it leaves", || balancer.listed(server).state == ServerState::Leaving);
        assert_alive(&clients);
        while let Some((client, _)) = clients.pop() {
            assert!(!waiting.is_finished(), "there are sessions left");
            assert_eq!(client.exchange(b"x"), b"x");
        }
        let output = waiting.join().expect("no panic");
        let said = String::from_utf8(output.stdout).expect("text");
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains(&format!("{server} is gone")), "{said}");
    });
    assert!(balancer.list().servers.is_empty());
}

#[test]
fn remove_with_wait_says_when_it_waits_in_vain() {
    let servers = Server::several(1);
    let mut balancer = Balancer::of(&servers);
    let server = servers[0].address();
    let clients = held(&balancer, 1);
    let line = format!("remove {} {} --wait", server.ip(), server.port());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| balancer.ctl(&line));
        wait::until("it leaves", || balancer.listed(server).state == ServerState::Leaving);
        balancer.add(server);
        let output = waiting.join().expect("no panic");
        let said = String::from_utf8(output.stderr).expect("text");
        assert!(output.status.code() == Some(1) && said.contains("was added again"), "{said}");
    });
    assert_alive(&clients);
    let socket = balancer.socket().to_owned();
    let waiting = thread::spawn(move || {
        tests::balancer::balancerctl(&line).arg("--socket").arg(socket).output().expect("balancerctl runs")
    });
    wait::until("it leaves", || balancer.listed(server).state == ServerState::Leaving);
    balancer.crash();
    let output = waiting.join().expect("no panic");
    assert_ne!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(String::from_utf8(output.stderr).expect("text").lines().count(), 1);
}

#[test]
fn a_removal_over_a_time_in_one_pool_closes_nobody_in_another() {
    let server = Server::start();
    let (one, two) = (loopback::free(), loopback::free());
    let text = service("one", one, "left") + &service("two", two, "right");
    let balancer = Setup::new().config(&(text + &pool("left", "", [&server]) + &pool("right", "", [&server]))).start();
    let clients: Vec<(Client, Client)> =
        (0..5).map(|number| (balancer.client_at("one", number), balancer.client_at("two", number))).collect();
    for (at_one, at_two) in &clients {
        assert_eq!((at_one.server(), at_two.server()), (server.address(), server.address()));
    }
    let report = balancer.remove_from("left", server.address(), Removal::Over { time_ms: 300 });
    assert_eq!(report.sessions, 5);
    for (at_one, at_two) in &clients {
        at_one.assert_ended();
        assert_eq!(at_two.exchange(b"x"), b"x");
    }
    wait::until("they are counted", || balancer.ended_at("one", EndReason::Removed) == 5);
    assert!(balancer.service_named("two").ended.is_empty());
    let settings = ServerSettings { state: AdminState::Drain, ..ServerSettings::default() };
    let change = Change::Add { pool: "left".to_owned(), server: server.address(), settings };
    balancer.change(change, false).expect("it may come as one that drains");
    assert_eq!(balancer.listed_in("left", server.address()).expect("it is there").state, ServerState::Drain);
    balancer.client_at("one", 0).assert_ended();
}
