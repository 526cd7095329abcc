//! Flows begin, go on with another server and end as services, pools and people say, and nothing is left of them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use tests::balancer::WAIT;
use tests::config::{datagram_pool, datagrams, weighted};
use tests::datagrams::{named, sockets_towards};
use tests::questions::state;
use tests::{Balancer, DatagramClient, DatagramServer, Server, Setup, loopback, process, wait};
use wire::control::{Change, PoolValues, Removal};
use wire::flow::OnLoss;
use wire::report::{DropReason, EndReason, HealthState};
use wire::settings::AdminState;
use wire::{Request, Response};

/// A sender that never pauses for an answer, and gets none: numbers its datagrams while a test does something.
struct Sender {
    is_over: AtomicBool,
    sent: AtomicUsize,
}

impl Sender {
    /// The number of the next datagram, at the least.
    fn now(&self) -> usize {
        self.sent.load(Ordering::SeqCst) + 1
    }
}

/// Does this while a client sends numbers all the time.
fn while_sending(client: &DatagramClient, work: impl FnOnce(&Sender)) {
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let sender = Sender { is_over: AtomicBool::new(false), sent: AtomicUsize::new(0) };
    thread::scope(|scope| {
        let over = Over(&sender.is_over);
        scope.spawn(|| {
            for number in 1_usize.. {
                if sender.is_over.load(Ordering::SeqCst) {
                    break;
                }
                client.send(&number.to_be_bytes());
                sender.sent.store(number, Ordering::SeqCst);
                thread::park_timeout(std::time::Duration::from_micros(300));
            }
        });
        work(&sender);
        drop(over);
    });
}

fn numbers(server: &DatagramServer) -> Vec<usize> {
    server.words().iter().map(|word| usize::from_be_bytes(word[..].try_into().expect("a number"))).collect()
}

/// Two servers that answer nothing, a balancer, and a client that has the first.
fn one_of_two(keys: &str) -> ([DatagramServer; 2], Balancer, DatagramClient) {
    let servers = [DatagramServer::silent(), DatagramServer::silent()];
    let balancer = Balancer::of_datagrams("", keys, &servers);
    let client = balancer.datagrams_of(balancer.clients_of(servers[0].address(), 1)[0]);
    (servers, balancer, client)
}

#[test]
fn flows_of_a_removed_server_go_on_with_the_next_at_once_even_if_their_sender_never_pauses() {
    for how in [WAIT, Removal::Wait { limit_ms: Some(60_000) }, Removal::Now, Removal::Over { time_ms: 300 }] {
        let ([first, second], balancer, client) = one_of_two("");
        while_sending(&client, |sender| {
            let _ = first.wait_for(50);
            assert_eq!(second.count(), 0);
            balancer.remove_from("default", first.address(), how);
            if matches!(how, Removal::Over { .. }) {
                wait::until("its flow has left", || balancer.list().servers.len() == 1);
            }
            let next = sender.now();
            let heard = second.count();
            let _ = second.wait_for(heard + 50);
            // One was on its way while the answer to the command was.
            let late: Vec<_> = numbers(&first).into_iter().filter(|number| *number > next).collect();
            assert!(late.is_empty(), "{how:?}: nothing comes to the removed one: {late:?}");
        });
        let all: Vec<_> = [numbers(&first), numbers(&second)].concat();
        assert!(all.iter().copied().eq(1..=all.len()), "{how:?}: each came once and in order, and none was lost");
        assert_eq!((balancer.service().total, balancer.service().active), (1, 1), "{how:?}: it is the same flow");
        assert_eq!(balancer.list().servers.len(), 1, "{how:?}");
        assert_eq!(sockets_towards(first.address()), 0);
    }
}

#[test]
fn flows_of_a_server_that_checks_find_down_go_on_with_the_next() {
    let tcp = Server::several(2);
    let servers: Vec<_> = tcp.iter().map(|server| DatagramServer::at(server.address(), |_, _| Vec::new())).collect();
    let keys = "check = \"tcp\"\ncheck_interval = \"20ms\"\ncheck_fall = 2";
    let balancer = Balancer::of_datagrams("", keys, &servers);
    let number = balancer.clients_of(servers[0].address(), 1)[0];
    let client = balancer.datagrams_of(number);
    while_sending(&client, |sender| {
        let _ = servers[0].wait_for(50);
        tcp[0].refuse();
        wait::until("it is down", || balancer.listed(servers[0].address()).health.state == HealthState::Down);
        wait::until("its flow has moved", || balancer.listed(servers[0].address()).active == 0);
        let next = sender.now();
        let heard = servers[1].count();
        let _ = servers[1].wait_for(heard + 50);
        assert!(numbers(&servers[0]).iter().all(|number| *number <= next));
        // It comes back: a flow under way stays where it is, a new one has its own again.
        tcp[0].listen();
        wait::until("it is up", || balancer.listed(servers[0].address()).health.state == HealthState::Up);
        let (before, heard) = (servers[0].count(), servers[1].count());
        let _ = servers[1].wait_for(heard + 50);
        assert_eq!(servers[0].count(), before);
        balancer.datagrams_of(number).send(&0_usize.to_be_bytes());
        let _ = servers[0].who_said(&0_usize.to_be_bytes());
    });
    assert_eq!(balancer.service().total, 2);
    assert_eq!(balancer.listed(servers[0].address()).flows_moved, 1);
}

#[test]
fn flows_stay_with_a_lost_server_where_a_pool_says_so() {
    let servers = [DatagramServer::start(), DatagramServer::start()];
    let service = "flow_timeout = \"700ms\"";
    let balancer = Balancer::of_datagrams(service, "flows_on_loss = \"keep\"", &servers);
    let [first, second] = [servers[0].address(), servers[1].address()];
    let number = balancer.clients_of(first, 1)[0];
    let client = balancer.datagrams_of(number);
    assert_eq!(client.ask(b"before"), first);
    balancer.remove(first);
    for round in 0..10 {
        assert_eq!(client.ask(format!("still {round}").as_bytes()), first, "its flow stays");
        assert_eq!(balancer.datagrams_of(number).ask(b"new"), second, "a new one does not");
    }
    assert_eq!(balancer.list().servers.len(), 2);
    wait::until("it leaves with its last flow, when that is idle", || balancer.list().servers.len() == 1);
    assert_eq!(client.ask(b"afterwards"), second);

    // Removed with its sessions, there is nothing to stay with.
    balancer.add(first);
    assert_eq!(balancer.datagrams_of(number).ask(b"again"), first);
    let kept = balancer.datagrams_of(number);
    assert_eq!(kept.ask(b"again"), first);
    balancer.remove_now(first);
    assert_eq!(balancer.list().servers.len(), 1);
    assert!(balancer.ended(EndReason::Removed) >= 1);
    assert_eq!(kept.ask(b"a new flow"), second);
}

/// What of a server is gone and comes back: its check.
fn checked(keys: &str) -> (Vec<Server>, Vec<DatagramServer>, Balancer) {
    let tcp = Server::several(3);
    let servers: Vec<_> = tcp.iter().map(|server| DatagramServer::at(server.address(), named)).collect();
    let keys = format!("check = \"tcp\"\ncheck_interval = \"20ms\"\ncheck_fall = 1\ncheck_rise = 1\n{keys}");
    let balancer = Balancer::of_datagrams("", &keys, &servers);
    (tcp, servers, balancer)
}

#[test]
fn a_server_that_is_back_gets_exactly_its_own_clients() {
    for (keys, follows) in [("", false), ("flows_on_return = \"move\"", true)] {
        let (tcp, servers, balancer) = checked(keys);
        let clients: Vec<_> = (0..90).map(|number| balancer.datagrams_of(number)).collect();
        let ask = |words: &str| clients.iter().map(|client| client.ask(words.as_bytes())).collect::<Vec<_>>();
        let own = ask("own");
        let lost = servers[0].address();
        assert!(own.contains(&lost));
        tcp[0].refuse();
        wait::until("it is down", || balancer.listed(lost).health.state == HealthState::Down);
        // An answer that is under way while its flow moves is lost.
        wait::until("its flows have moved", || balancer.listed(lost).active == 0);
        let meanwhile = ask("meanwhile");
        for (before, now) in own.iter().zip(&meanwhile) {
            assert!(if *before == lost { *now != lost } else { now == before }, "only its own clients move");
        }
        tcp[0].listen();
        wait::until("it is up", || balancer.listed(lost).health.state == HealthState::Up);
        assert_eq!(balancer.listed(lost).active, 0, "{keys}: an answer may still be under way");
        assert_eq!(ask("under way"), if follows { own.clone() } else { meanwhile }, "{keys}");
        let its = own.iter().filter(|server| **server == lost).count() as u64;
        assert_eq!(balancer.listed(lost).active, if follows { its } else { 0 }, "{keys}");
        let new: Vec<_> = (0..90).map(|number| balancer.datagrams_of(number).ask(b"new")).collect();
        assert_eq!(new, own, "{keys}: new flows go where they went before");
        assert_eq!(balancer.service().total, 180);
        clients.iter().for_each(DatagramClient::assert_nothing_more);
    }
}

#[test]
fn a_closed_port_counts_against_its_server_and_its_clients_go_on_with_the_next() {
    let mut servers = DatagramServer::several(3);
    let balancer =
        Balancer::of_datagrams("", "eject_failures = 3\neject_time = \"1h\"\neject_max_time = \"1h\"", &servers);
    let lost = servers[0].address();
    let clients: Vec<_> =
        balancer.clients_of(lost, 20).into_iter().map(|number| balancer.datagrams_of(number)).collect();
    clients.iter().for_each(|client| assert_eq!(client.ask(b"before"), lost));
    servers[0].stop();
    for client in &clients {
        assert_ne!(client.ask_until_answered(b"after"), lost);
        assert_ne!(client.ask(b"and on"), lost);
    }
    let listed = balancer.listed(lost);
    assert!(listed.connect_failures >= 3, "{listed:?}");
    assert_eq!((listed.health.state, listed.active), (HealthState::Ejected, 0));
    assert!(listed.datagrams.dropped_in[&DropReason::Unreachable] >= 3);
    let service = balancer.service();
    assert_eq!((service.active, service.total), (20, 20), "the flows are the same");
    balancer.wait_for_log("datagrams for a server came back");
    balancer.assert_quiet();
}

#[test]
fn a_lone_server_that_was_away_is_asked_again_when_it_is_there() {
    let mut server = DatagramServer::start();
    let balancer = Balancer::of_datagrams("", "eject_failures = 0", [&server]);
    let client = balancer.datagrams();
    assert_eq!(client.ask(b"before"), server.address());
    server.stop();
    for round in 1..=5 {
        client.send(b"lost");
        wait::until("it is counted", || balancer.listed(server.address()).connect_failures >= round);
    }
    balancer.assert_quiet();
    server.run();
    assert_eq!(client.ask(b"after"), server.address());
    client.assert_nothing_more();
    assert_eq!(balancer.service().total, 1);
}

#[test]
fn an_answer_of_a_long_flow_speaks_for_its_server_as_that_of_a_new_one_does() {
    let mut servers = DatagramServer::several(2);
    let pool = "eject_failures = 3\neject_time = \"1h\"\neject_max_time = \"1h\"\nflows_on_loss = \"keep\"";
    let balancer = Balancer::of_datagrams("", pool, &servers);
    let client = balancer.datagrams();
    let its = client.ask(b"before");
    let server = servers.iter_mut().find(|server| server.address() == its).expect("one of them");
    for round in 1..=5 {
        server.stop();
        client.send(b"lost");
        wait::until("it is counted", || balancer.listed(its).connect_failures == round);
        server.run();
        assert_eq!(client.ask(b"after"), its);
    }
    assert_eq!(balancer.listed(its).health.ejections, 0, "there were never three failures in a row");
    assert_eq!(balancer.service().total, 1);
}

#[test]
fn servers_that_are_all_away_cost_no_time_though_a_sender_never_pauses() {
    let mut servers = DatagramServer::several(3);
    let balancer = Balancer::of_datagrams("", "eject_failures = 0", &servers);
    let client = balancer.datagrams();
    let _ = client.ask(b"before");
    servers.iter_mut().for_each(DatagramServer::stop);
    while_sending(&client, |sender| {
        let ticks = process::cpu_ticks(balancer.pid());
        let first = sender.now();
        wait::until("many are lost", || sender.now() > first + 1000);
        // An ICMP error moves a flow once; it does not go round and round.
        assert!(process::cpu_ticks(balancer.pid()) - ticks < 100, "{}", process::cpu_ticks(balancer.pid()) - ticks);
    });
    balancer.assert_quiet();
    servers.iter_mut().for_each(DatagramServer::run);
    assert!(servers.iter().any(|server| server.address() == client.ask_until_answered(b"after")));
    assert_eq!(balancer.service().active, 1);
}

#[test]
fn a_flow_is_complete_with_its_last_answer() {
    let server = DatagramServer::start();
    let balancer = Balancer::of_datagrams("answers = 1", "", [&server]);
    let clients: Vec<_> = (0..25).map(|number| balancer.datagrams_of(number)).collect();
    for round in 0..2 {
        for client in &clients {
            assert_eq!(client.ask(format!("question {round}").as_bytes()), server.address());
        }
    }
    balancer.wait_for_ends(EndReason::Complete, 50);
    assert_eq!((balancer.service().active, balancer.service().total), (0, 50));
    assert_eq!(sockets_towards(server.address()), 0);

    // A second answer is nobody's.
    let server = DatagramServer::with(|name, bytes| [named(name, bytes), named(name, b"twice")].concat());
    let balancer = Balancer::of_datagrams("answers = 1", "", [&server]);
    let client = balancer.datagrams();
    assert_eq!(client.ask(b"once"), server.address());
    balancer.wait_for_ends(EndReason::Complete, 1);
    client.assert_nothing_more();
}

#[test]
fn a_flow_that_has_all_its_questions_still_gets_its_answers_and_another_one_follows_it() {
    let server = DatagramServer::silent();
    let balancer = Balancer::of_datagrams("requests = 2\nflow_timeout = \"500ms\"", "", [&server]);
    let client = balancer.datagrams();
    let words: Vec<_> = (0..5).map(|number| format!("question {number}").into_bytes()).collect();
    words.iter().for_each(|words| client.send(words));
    let heard = server.wait_for(5);
    assert_eq!(server.words(), words);
    let askers: Vec<SocketAddr> = heard.iter().map(|heard| heard.from).collect();
    assert!(askers[0] == askers[1] && askers[2] == askers[3]);
    assert_eq!(askers.iter().collect::<BTreeSet<_>>().len(), 3);
    // All of them, the last first.
    for heard in heard.iter().rev() {
        server.send(heard.from, &heard.bytes);
        assert_eq!(client.receive(), heard.bytes);
    }
    wait::until("they have ended", || balancer.service().active == 0);
    let ended = balancer.service().ended;
    assert_eq!(ended, [(EndReason::Complete, 2), (EndReason::IdleTimeout, 1)].into());
}

#[test]
fn idle_flows_end_and_busy_ones_do_not() {
    let server = DatagramServer::start();
    let text = |timeout: &str| {
        datagrams(loopback::free(), &format!("flow_timeout = \"{timeout}\"")) + &datagram_pool("", [&server])
    };
    let balancer = Setup::new().config(&text("300ms")).start();
    let (idle, busy, talker) = (balancer.datagrams(), balancer.datagrams(), balancer.datagrams());
    assert_eq!(idle.ask(b"once"), server.address());
    talker.send(b"said by a client whose server speaks");
    let asker = server.who_said(b"said by a client whose server speaks");
    let _ = talker.receive();
    wait::until("the idle one has ended", || {
        assert_eq!(busy.ask(b"still"), server.address());
        // Answers alone keep a flow.
        server.send(asker, b"news");
        assert_eq!(talker.receive(), b"news");
        balancer.ended(EndReason::IdleTimeout) == 1
    });
    assert_eq!((balancer.service().active, balancer.service().total), (2, 3));
    let ended = balancer.log().matches("flow ended").count();
    assert_eq!(ended, 0, "single flows are not logged at info");
    balancer.wait_for_ends(EndReason::IdleTimeout, 3);
    assert_eq!(sockets_towards(server.address()), 0);
    // It begins anew.
    assert_eq!(idle.ask(b"again"), server.address());
    assert_eq!(balancer.service().total, 4);
}

#[test]
fn a_shorter_timeout_holds_for_flows_that_are_there() {
    let server = DatagramServer::start();
    let listen = loopback::free();
    let text = |keys: &str| datagrams(listen, keys) + &datagram_pool("", [&server]);
    let balancer = Setup::new().config(&text("flow_timeout = \"1h\"")).start();
    assert_eq!(balancer.datagrams().ask(b"once"), server.address());
    balancer.configure(&text("flow_timeout = \"100ms\""));
    balancer.reload().expect("taken");
    balancer.wait_for_ends(EndReason::IdleTimeout, 1);
    balancer.assert_quiet();
}

/// Asks, and says whether it was dropped for this reason: answers come in the order of questions.
fn assert_refused(balancer: &Balancer, client: &DatagramClient, reason: DropReason) {
    let before = balancer.dropped(reason);
    client.send(b"refused");
    wait::until("it is counted", || balancer.dropped(reason) == before + 1);
    client.assert_nothing_more();
}

#[test]
fn at_a_limit_new_flows_are_refused_and_counted_and_the_old_ones_go_on() {
    let server = DatagramServer::start();
    let cases = [
        ("max_sessions = 3", DropReason::Full),
        ("sessions_per_client = 3", DropReason::ClientLimit),
        ("sessions_per_second = 3", DropReason::Rate),
    ];
    for (keys, reason) in cases {
        let balancer = Balancer::of_datagrams(&format!("flow_timeout = \"1s\"\n{keys}"), "", [&server]);
        let clients: Vec<_> = (0..3).map(|_| balancer.datagrams_of(1)).collect();
        clients.iter().for_each(|client| assert_eq!(client.ask(b"first"), server.address()));
        let late = balancer.datagrams_of(1);
        let heard = server.count();
        if reason == DropReason::Rate {
            // In the next second there is room again; until then there is none.
            assert_eq!(late.ask_until_answered(b"late"), server.address());
        } else {
            assert_refused(&balancer, &late, reason);
            assert_eq!(server.count(), heard, "{keys}: nothing of it comes to the server");
            for client in &clients {
                assert_eq!(client.ask(b"still"), server.address(), "{keys}");
            }
            if reason == DropReason::ClientLimit {
                assert_eq!(balancer.datagrams_of(2).ask(b"of another"), server.address());
            }
            wait::until("there is room", || balancer.service().active == 0);
            assert_eq!(late.ask(b"at last"), server.address(), "{keys}");
        }
    }
}

#[test]
fn flows_of_a_full_pool_go_to_its_backups_and_are_dropped_as_full_when_those_are_full_too() {
    let (server, backup) = (DatagramServer::start(), DatagramServer::start());
    let one =
        |server: &DatagramServer, keys| format!("{{ address = \"{}\", max_sessions = 1{keys} }}", server.address());
    for keys in ["", "policy = \"round-robin\"", "flows_on_return = \"move\""] {
        let servers = format!("[{}, {}]", one(&server, ""), one(&backup, ", backup = true"));
        let text = datagrams(loopback::free(), "flow_timeout = \"1s\"");
        let pool = format!("[pool.default]\n{keys}\nservers = {servers}\n");
        let balancer = Setup::new().config(&(text + &pool)).start();
        let clients: Vec<_> = (0..3).map(|number| balancer.datagrams_of(number)).collect();
        assert_eq!((clients[0].ask(b"one"), clients[1].ask(b"two")), (server.address(), backup.address()), "{keys}");
        assert_refused(&balancer, &clients[2], DropReason::Full);
        assert_eq!(balancer.dropped(DropReason::NoServer), 0);
        assert_eq!((clients[0].ask(b"one"), clients[1].ask(b"two")), (server.address(), backup.address()), "{keys}");
        wait::until("there is room", || balancer.service().active == 0);
        assert_eq!(clients[2].ask(b"three"), server.address(), "{keys}");
    }
}

#[test]
fn a_rate_refuses_more_than_so_many_new_flows_in_a_second() {
    let server = DatagramServer::start();
    let balancer = Balancer::of_datagrams("sessions_per_second = 5", "", [&server]);
    let clients: Vec<_> = (0..200).map(|number| balancer.datagrams_of(number)).collect();
    clients.iter().for_each(|client| client.send(b"all at once"));
    wait::until("each is taken or counted", || {
        let service = balancer.service();
        service.total + balancer.dropped(DropReason::Rate) == 200
    });
    let total = balancer.service().total;
    assert!((5..=20).contains(&total), "{total} flows began in a moment");
    assert_eq!(server.wait_for(usize::try_from(total).expect("few")).len() as u64, total);
    balancer.wait_for_log("a datagram could begin no flow");
}

#[test]
fn who_is_not_let_in_begins_no_flow_and_who_is_let_in_no_more_has_none() {
    let server = DatagramServer::start();
    let listen = loopback::free();
    let text = |keys: &str| datagrams(listen, keys) + &datagram_pool("", [&server]);
    let lists = format!("allow = [\"127.16.0.0/12\"]\ndeny = [\"{}\"]", loopback::client(2));
    let balancer = Setup::new().config(&text(&lists)).start();
    let (welcome, other) = (balancer.datagrams_of(1), balancer.datagrams_of(3));
    assert_eq!((welcome.ask(b"one"), other.ask(b"other")), (server.address(), server.address()));
    assert_refused(&balancer, &balancer.datagrams_of(2), DropReason::Denied);
    assert_refused(&balancer, &balancer.datagrams(), DropReason::Denied);
    assert_eq!(server.count(), 2);
    balancer.configure(&text(&format!("deny = [\"{}\"]", loopback::client(1))));
    balancer.reload().expect("taken");
    balancer.wait_for_ends(EndReason::Denied, 1);
    assert_refused(&balancer, &welcome, DropReason::Denied);
    assert_eq!(other.ask(b"still"), server.address());
    assert_eq!(balancer.service().total, 2);
}

#[test]
fn without_a_server_datagrams_are_dropped_and_counted() {
    let server = DatagramServer::start();
    let balancer = Balancer::of_datagrams("", "", &[]);
    let client = balancer.datagrams();
    assert_refused(&balancer, &client, DropReason::NoServer);
    assert_eq!(balancer.service().total, 0);
    balancer.wait_for_log("no server is eligible");
    balancer.add(server.address());
    assert_eq!(client.ask(b"now"), server.address());
    balancer.remove(server.address());
    wait::until("its flow has nobody to go on with", || balancer.service().active <= 1);
    balancer.add(server.address());
    assert_eq!(client.ask_until_answered(b"again"), server.address());
}

#[test]
fn flows_are_listed_killed_and_left_alone_by_a_drain() {
    let servers = DatagramServer::several(2);
    let balancer = Balancer::of_datagrams("", "", &servers);
    let number = balancer.clients_of(servers[0].address(), 1)[0];
    let clients = [balancer.datagrams_of(number), balancer.datagrams_of(number)];
    for client in &clients {
        assert_eq!(client.ask(b"twelve bytes"), servers[0].address());
    }
    let listed = balancer.sessions(Some(servers[0].address()));
    assert_eq!(
        listed.iter().map(|flow| flow.client).collect::<BTreeSet<_>>(),
        clients.iter().map(DatagramClient::address).collect()
    );
    let name = format!("{}\n", servers[0].address()).len() as u64;
    for flow in &listed {
        assert_eq!((flow.datagrams_in, flow.datagrams_out, flow.bytes_in, flow.bytes_out), (1, 1, 12, 12 + name));
        assert_eq!((flow.service.as_str(), flow.server), ("udp", Some(servers[0].address())));
    }
    let said = balancer.ctl("sessions --json");
    assert!(
        said.status.success() && String::from_utf8_lossy(&said.stdout).contains("\"transport\":\"udp\""),
        "{said:?}"
    );

    // A drain takes no flow away and lets none begin.
    balancer.set("default", servers[0].address(), state(AdminState::Drain));
    clients.iter().for_each(|client| assert_eq!(client.ask(b"drained"), servers[0].address()));
    let new = balancer.datagrams_of(number);
    assert_eq!(new.ask(b"new"), servers[1].address());

    let killed = listed.iter().find(|flow| flow.client == clients[0].address()).expect("listed").session;
    balancer.change(Change::Kill { session: killed }, false).expect("it is there");
    balancer.change(Change::Kill { session: killed }, false).expect_err("it is not there any more");
    balancer.wait_for_ends(EndReason::Killed, 1);
    assert_eq!(clients[0].ask(b"a new flow"), servers[1].address());
    assert_eq!(clients[1].ask(b"the old one"), servers[0].address());
    let all = Change::KillAll { pool: "default".to_owned(), server: servers[1].address() };
    balancer.change(all, false).expect("done");
    balancer.wait_for_ends(EndReason::Killed, 3);
    assert_eq!(balancer.service().active, 1);
    assert_eq!(clients[1].ask(b"the old one"), servers[0].address());
}

#[test]
fn a_command_that_ends_many_flows_is_answered_when_the_last_has_ended() {
    const FLOWS: u32 = 700;
    let servers = DatagramServer::several(2);
    let [first, second] = [servers[0].address(), servers[1].address()];
    let text = datagrams(loopback::free(), "") + &datagram_pool("", [&servers[0]]);
    let balancer = Setup::new().config(&text).start();
    let clients: Vec<_> = (0..FLOWS).map(|number| balancer.datagrams_of(number)).collect();
    let ask = |words: &[u8], from: SocketAddr| clients.iter().for_each(|client| assert_eq!(client.ask(words), from));
    ask(b"before", first);
    balancer.add(second);
    let removed =
        balancer.change(Change::Remove { pool: "default".to_owned(), server: first, how: Removal::Now }, false);
    assert_eq!(removed.expect("done").sessions, u64::from(FLOWS));
    assert_eq!(balancer.list().servers.len(), 1);
    assert_eq!(balancer.listed(second).active, u64::from(FLOWS));
    ask(b"on", second);
    let killed = balancer.change(Change::KillAll { pool: "default".to_owned(), server: second }, false);
    assert_eq!(killed.expect("done").sessions, u64::from(FLOWS));
    assert_eq!((balancer.service().active, balancer.ended(EndReason::Killed)), (0, u64::from(FLOWS)));
    assert_eq!(balancer.service().total, u64::from(FLOWS));
}

#[test]
fn flows_go_on_where_another_listener_hears_their_address_and_end_where_none_does() {
    let server = DatagramServer::start();
    let listen = loopback::free();
    let text = |listen: SocketAddr| datagrams(listen, "") + &datagram_pool("", [&server]);
    let balancer = Setup::new().config(&text(listen)).start();
    let client = DatagramClient::new(listen);
    assert_eq!(client.ask(b"first"), server.address());
    let flows = || balancer.sessions(None).into_iter().map(|flow| flow.session).collect::<Vec<_>>();
    let before = flows();

    balancer.reload().expect("nothing to do");
    assert_eq!(client.ask(b"a file that says the same"), server.address());
    assert_eq!(flows(), before);

    for ip in ["0.0.0.0", "::"] {
        let all = SocketAddr::new(ip.parse().expect("an address"), listen.port());
        balancer.configure(&text(all));
        balancer.reload().expect("taken");
        assert_eq!(balancer.service().addresses, [all]);
        assert_eq!(client.ask(b"by the wildcard"), server.address());
        server.send(server.heard()[0].from, b"by itself");
        assert_eq!(client.receive(), b"by itself");
        assert_eq!(flows(), before, "{ip}");
        balancer.configure(&text(listen));
        balancer.reload().expect("taken");
        assert_eq!(client.ask(b"and back"), server.address());
        assert_eq!(flows(), before, "{ip}");
    }
    let other = loopback::free();
    balancer.configure(&text(other));
    balancer.reload().expect("taken");
    balancer.wait_for_ends(EndReason::Unlistened, 1);
    assert_eq!(client.asking(other).ask(b"there"), server.address());
    assert_eq!(balancer.service().total, 2);
}

#[test]
fn reloads_disturb_no_flow() {
    let servers = DatagramServer::several(3);
    let listen = loopback::free();
    let text = |limit: u32| datagrams(listen, &format!("max_sessions = {limit}")) + &datagram_pool("", &servers);
    let balancer = Setup::new().config(&text(1000)).start();
    let clients: Vec<_> = (0..50).map(|number| balancer.datagrams_of(number)).collect();
    let ask = |words: String| clients.iter().map(|client| client.ask(words.as_bytes())).collect::<Vec<_>>();
    let before = ask("before".to_owned());
    for round in 0..20 {
        balancer.configure(&text(1000 + round / 2));
        balancer.reload().expect("taken");
        assert_eq!(ask(format!("round {round}")), before);
    }
    assert_eq!((balancer.service().total, balancer.service().active), (50, 50));
    assert!(balancer.service().datagrams.dropped_in.is_empty());
}

#[test]
fn out_of_descriptors_flows_are_refused_old_ones_go_on_and_nothing_stays_behind() {
    let server = DatagramServer::start();
    let balancer = Balancer::of_datagrams("flow_timeout = \"2s\"", "", [&server]);
    let idle = balancer.descriptors();
    let old = balancer.datagrams();
    assert_eq!(old.ask(b"before"), server.address());
    // Room for the control connection that counts, and for ten flows.
    process::leave_descriptors(balancer.pid(), 11);
    let clients: Vec<_> = (0..100).map(|number| balancer.datagrams_of(number)).collect();
    clients.iter().for_each(|client| client.send(b"begin"));
    let listed = wait::for_some("all are accounted for", || {
        let status = wire::Client::connect(balancer.socket()).ok()?.call(&Request::Status).ok()?;
        let Response::Status(status) = status else { return None };
        let service = &status.services[0];
        let short = service.datagrams.dropped_in.get(&DropReason::Shortage).copied().unwrap_or_default();
        (service.total + short == 101).then_some((service.total, short))
    });
    assert!(listed.0 > 5 && listed.1 > 50, "{listed:?}");
    assert_eq!(old.ask(b"still"), server.address());
    process::limit_descriptors(balancer.pid(), process::MOST_DESCRIPTORS);
    assert_eq!(balancer.datagrams().ask(b"there is room"), server.address());
    assert_eq!(balancer.listed(server.address()).connect_failures, 0, "it is no fault of the server");
    wait::until("all have ended", || balancer.service().active == 0);
    wait::until("all are closed", || balancer.descriptors() <= idle);
    balancer.wait_for_log("short of descriptors");
    balancer.assert_quiet();
}

#[test]
fn flows_take_half_of_the_sockets_that_there_may_be_and_leave_the_rest_to_others() {
    let tcp = Server::start();
    let server = DatagramServer::at(tcp.address(), named);
    let text = datagrams(loopback::free(), "").replace("\"udp\"", "\"tcp+udp\"") + &datagram_pool("", [&server]);
    let balancer = Setup::new().config(&text).descriptors(200).start();
    let limit = usize::try_from(balancer.status().session_limit).expect("small");
    // A flow has one socket, a session by TCP two.
    let (flows, beyond) = (limit, 10);
    let clients: Vec<_> = (0..flows + beyond).map(|_| balancer.datagrams()).collect();
    clients.iter().for_each(|client| client.send(b"begin"));
    wait::until("all are accounted for", || {
        balancer.service().total + balancer.dropped(DropReason::Full) == (flows + beyond) as u64
    });
    assert_eq!(balancer.service().total, flows as u64);
    let streams: Vec<_> = (0..limit / 2).map(|_| balancer.client()).collect();
    streams.iter().for_each(|stream| assert_eq!(stream.server(), tcp.address()));
    for client in &clients[..flows] {
        assert_eq!(client.answer(), (server.address(), b"begin".to_vec()));
        assert_eq!(client.ask(b"still"), server.address());
    }
}

#[test]
fn what_the_kernel_has_no_room_for_is_counted_and_the_flow_goes_on() {
    // With a header before each, it goes by a call that answers to commands do not use.
    let server = DatagramServer::with(|name, bytes| named(name, &bytes[28..]));
    let balancer = Balancer::of_datagrams("", "send_proxy = \"v2\"", [&server]);
    let client = balancer.datagrams();
    assert_eq!(client.ask(b"before"), server.address());
    for error in ["EAGAIN", "ENOBUFS"] {
        let Some(tracer) = balancer.fail("sendmsg", error) else { return };
        let before = balancer.dropped(DropReason::SendBufferFull);
        (0..20).for_each(|_| client.send(b"lost"));
        wait::until("they are counted", || balancer.dropped(DropReason::SendBufferFull) == before + 20);
        balancer.assert_quiet();
        drop(tracer);
        assert_eq!(client.ask_until_answered(b"after"), server.address());
    }
    assert_eq!(balancer.listed(server.address()).health.ejections, 0, "it is no fault of the server");
    assert_eq!(balancer.service().total, 1);
    assert!(!server.words().iter().any(|words| words.ends_with(b"lost")));
}

#[test]
fn flows_that_were_to_stay_move_when_they_may() {
    let servers = [DatagramServer::start(), DatagramServer::start()];
    let balancer = Balancer::of_datagrams("", "flows_on_loss = \"keep\"", &servers);
    let [first, second] = [servers[0].address(), servers[1].address()];
    let client = balancer.datagrams_of(balancer.clients_of(first, 1)[0]);
    assert_eq!(client.ask(b"before"), first);
    balancer.remove(first);
    assert_eq!(client.ask(b"it stays"), first);
    let values = PoolValues { flows_on_loss: Some(OnLoss::Move), ..PoolValues::default() };
    balancer.change(Change::SetPool { pool: "default".to_owned(), values }, false).expect("it is set");
    assert_eq!(client.ask(b"it moves"), second);
    assert_eq!(balancer.list().servers.len(), 1);
    assert_eq!(balancer.service().total, 1);
}

/// Memory that a process has now, in KiB.
fn memory_kib(pid: u32) -> u64 {
    process::status(pid, "VmRSS").split_whitespace().next().and_then(|number| number.parse().ok()).expect("a size")
}

#[test]
fn ten_thousand_flows_come_and_go_and_nothing_is_left_of_them() {
    let server = DatagramServer::silent();
    let listen = loopback::free();
    let text =
        |timeout: &str| datagrams(listen, &format!("flow_timeout = \"{timeout}\"")) + &datagram_pool("", [&server]);
    let balancer = Setup::new().config(&text("1h")).descriptors(50_000).start();
    // A user whose limit of descriptors cannot be raised has fewer.
    let count = u32::try_from(balancer.status().session_limit).expect("some").min(10_000);
    if count < 10_000 {
        println!("{count} flows only: there may be {} sessions", balancer.status().session_limit);
    }
    let idle = balancer.descriptors();
    let mut after_wave = Vec::new();
    for wave in 1..=3 {
        for number in 0..count {
            balancer.datagrams_of(number).send(&number.to_be_bytes());
            if number % 200 == 199 {
                let _ = server.wait_for(usize::try_from((wave - 1) * count + number + 1).expect("few"));
            }
        }
        wait::until("all are there", || balancer.service().active == u64::from(count));
        let said: BTreeSet<_> = server
            .heard()
            .split_off(usize::try_from((wave - 1) * count).expect("few"))
            .into_iter()
            .map(|heard| heard.bytes)
            .collect();
        assert!(said.len() == usize::try_from(count).expect("few"), "each has said its own");
        balancer.assert_quiet();
        balancer.configure(&text("100ms"));
        balancer.reload().expect("taken");
        wait::until("all have ended", || balancer.service().active == 0);
        wait::until("all are closed", || balancer.descriptors() <= idle);
        balancer.configure(&text("1h"));
        balancer.reload().expect("taken");
        after_wave.push(memory_kib(balancer.pid()));
    }
    assert_eq!(balancer.service().ended, [(EndReason::IdleTimeout, 3 * u64::from(count))].into());
    assert!(after_wave[2] < after_wave[0] + 2000, "memory does not grow from wave to wave: {after_wave:?}");
    assert_eq!(sockets_towards(server.address()), 0);
    balancer.assert_quiet();
}

#[test]
fn a_balancer_that_stops_lets_flows_go_on_and_none_begin_until_its_time_is_over() {
    let server = DatagramServer::start();
    let mut balancer = Balancer::of_datagrams("", "", [&server]);
    let client = balancer.datagrams();
    assert_eq!(client.ask(b"before"), server.address());
    let Response::Stopping(report) = balancer.call(&Request::Stop { now: false, drain_ms: Some(1500) }) else {
        panic!("it stops")
    };
    assert_eq!(report.sessions, 1);
    let late = balancer.datagrams();
    late.send(b"late");
    assert_eq!(client.ask(b"still"), server.address());
    assert_eq!(client.ask(b"and on"), server.address());
    late.assert_nothing_more();
    assert!(!server.words().contains(&b"late".to_vec()));
    assert!(balancer.wait_for_end().success());

    // With no flow there is nothing to wait for, and one that ends is the last.
    let mut balancer = Balancer::of_datagrams("answers = 1", "", [&server]);
    let client = balancer.datagrams();
    assert_eq!(client.ask(b"complete"), server.address());
    balancer.wait_for_ends(EndReason::Complete, 1);
    let _ = balancer.call(&Request::Stop { now: false, drain_ms: Some(3_600_000) });
    assert!(balancer.wait_for_end().success());
}

#[test]
fn a_server_that_reads_nothing_and_a_client_that_reads_nothing_hold_nobody_up() {
    let servers = [DatagramServer::start(), DatagramServer::start()];
    let [deaf, other] = &servers;
    // Nobody reads there: what comes is lost in the kernel.
    let silent = std::net::UdpSocket::bind((loopback::fresh(), 0)).expect("a port");
    let own = silent.local_addr().expect("bound");
    let text = datagrams(loopback::free(), "")
        + &weighted("default", "", [(own, 1), (deaf.address(), 1), (other.address(), 1)]);
    let balancer = Setup::new().config(&text).start();
    let of_silent = balancer.datagrams_of(balancer.clients_of(own, 1)[0]);
    let of_other = balancer.datagrams_of(balancer.clients_of(other.address(), 1)[0]);
    let reads_nothing = balancer.datagrams_of(balancer.clients_of(deaf.address(), 1)[0]);
    for round in 0..2000 {
        of_silent.send(&[1; 1400]);
        reads_nothing.send(&[2; 1400]);
        if round % 20 == 0 {
            assert_eq!(of_other.ask(b"beside"), other.address());
        }
    }
    assert_eq!(of_other.ask(b"beside"), other.address());
    let _ = deaf.wait_for(1000);
    assert_eq!(balancer.service().active, 3);
    balancer.assert_quiet();
}

#[test]
fn a_flow_that_has_had_more_than_one_may_have_now_is_followed_by_another() {
    let server = DatagramServer::start();
    let listen = loopback::free();
    let text = |keys: &str| datagrams(listen, keys) + &datagram_pool("", [&server]);
    let balancer = Setup::new().config(&text("")).start();
    let client = balancer.datagrams();
    for round in 0..5 {
        assert_eq!(client.ask(format!("before {round}").as_bytes()), server.address());
    }
    balancer.configure(&text("requests = 3"));
    balancer.reload().expect("taken");
    for round in 0..3 {
        assert_eq!(client.ask(format!("after {round}").as_bytes()), server.address());
    }
    assert_eq!(balancer.service().total, 2);
    let service = balancer.service();
    assert_eq!((service.datagrams.datagrams_in, service.datagrams.dropped_in.len()), (8, 0));
}

#[test]
fn each_datagram_of_a_train_is_counted_that_is_for_several_flows_and_finds_no_room() {
    let server = DatagramServer::silent();
    // With a header before each, it goes by a call that answers to commands do not use.
    let balancer = Balancer::of_datagrams("requests = 3", "send_proxy = \"v2\"", [&server]);
    let client = balancer.datagrams();
    client.send(b"before");
    let _ = server.wait_for(1);
    let Some(tracer) = balancer.fail("sendmsg", "EAGAIN") else { return };
    client.send_train(&vec![vec![7; 100]; 10]);
    wait::until("they are counted", || balancer.dropped(DropReason::SendBufferFull) == 10);
    drop(tracer);
    wait::until("it goes on", || {
        client.send(b"after");
        server.words().iter().any(|words| words.ends_with(b"after"))
    });
}

#[test]
fn flows_of_a_lost_server_begin_anew_where_there_was_no_descriptor_to_go_on() {
    let servers = [DatagramServer::start(), DatagramServer::start()];
    let balancer = Balancer::of_datagrams("", "", &servers);
    let [first, second] = [servers[0].address(), servers[1].address()];
    let clients: Vec<_> =
        balancer.clients_of(first, 10).into_iter().map(|number| balancer.datagrams_of(number)).collect();
    clients.iter().for_each(|client| assert_eq!(client.ask(b"before"), first));
    // Room for the control connection, which makes the change.
    process::leave_descriptors(balancer.pid(), 1);
    balancer.remove(first);
    for client in &clients {
        assert_eq!(client.ask_until_answered(b"after"), second);
    }
    process::limit_descriptors(balancer.pid(), process::MOST_DESCRIPTORS);
    assert_eq!((balancer.service().active, balancer.list().servers.len()), (10, 1));
    balancer.assert_quiet();
}

#[test]
fn datagrams_that_wait_when_a_balancer_is_told_to_stop_still_begin_flows_and_later_ones_do_not() {
    let server = DatagramServer::start();
    let mut balancer = Balancer::of_datagrams("answers = 1", "", [&server]);
    balancer.signal(Signal::SIGSTOP);
    balancer.signal(Signal::SIGTERM);
    let clients: Vec<_> = (0..150).map(|number| balancer.datagrams_of(number)).collect();
    clients.iter().for_each(|client| client.send(b"waits"));
    balancer.signal(Signal::SIGCONT);
    clients.iter().for_each(|client| assert_eq!(client.answer(), (server.address(), b"waits".to_vec())));
    assert!(balancer.wait_for_end().success());

    let server = DatagramServer::silent();
    let mut balancer = Balancer::of_datagrams("", "", [&server]);
    balancer.signal(Signal::SIGSTOP);
    balancer.signal(Signal::SIGTERM);
    let (early, late) = (balancer.datagrams(), balancer.datagrams());
    early.send(b"early");
    balancer.signal(Signal::SIGCONT);
    let _ = server.wait_for(1);
    wait::until("what waited is served", || balancer.service().active == 1);
    // Told again, it lets nobody in.
    let _ = balancer.call(&Request::Stop { now: false, drain_ms: Some(3_600_000) });
    assert_refused(&balancer, &late, DropReason::Stopping);
    let _ = balancer.call(&Request::Stop { now: true, drain_ms: None });
    assert!(balancer.wait_for_end().success());
    assert_eq!(server.words(), [b"early".to_vec()]);
}

#[test]
fn datagrams_that_wait_when_a_balancer_is_told_to_stop_still_go_to_servers_that_do_not_answer() {
    let server = DatagramServer::silent();
    let mut balancer = Balancer::of_datagrams("", "one_way = true", [&server]);
    let client = balancer.datagrams();
    client.send(b"the first");
    let _ = server.wait_for(1);
    // Others have listeners with less room.
    let count = if geteuid().is_root() { 8000 } else { 200 };
    balancer.signal(Signal::SIGSTOP);
    balancer.signal(Signal::SIGTERM);
    (0..count).for_each(|number: u32| client.send(&number.to_be_bytes()));
    balancer.signal(Signal::SIGCONT);
    assert!(balancer.wait_for_end().success());
    let _ = server.wait_for(usize::try_from(count).expect("few") + 1);
}
