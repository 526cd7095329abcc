//! Limits and lists: who gets in, who is turned away for which reason, and who waits and is served when there is room.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::Value;
use tests::config::{datagram_pool, datagrams, pool, service};
use tests::{Balancer, Client, DatagramClient, DatagramServer, Server, Setup, loopback, namespace, wait};
use wire::Change;
use wire::report::{DropReason, EndReason, Waiting};

/// A balancer of one service `web` with these keys, and its pool.
fn limited(keys: &str, servers: &[Server]) -> (Balancer, impl Fn(&str) -> String + use<>) {
    let listen = loopback::free();
    let pool = pool("web", "", servers);
    let text = move |keys: &str| format!("[service.web]\nlisten = \"{listen}\"\npool = \"web\"\n{keys}\n{pool}");
    (Setup::new().config(&text(keys)).start(), text)
}

/// Lets it read another text.
fn reread(balancer: &Balancer, text: &str) {
    balancer.configure(text);
    balancer.reload().expect("it is taken");
}

/// Clients with these numbers that connect and say something, whether they are served or not.
fn arrivals(balancer: &Balancer, numbers: impl IntoIterator<Item = u32>) -> Vec<Client> {
    let arrive = |number: u32| {
        let client = balancer.client_number(number);
        client.send(&number.to_le_bytes());
        client
    };
    numbers.into_iter().map(arrive).collect()
}

/// Checks that a client is served by this server, and gets back what it said.
fn assert_served(client: &Client, number: u32, server: &Server) {
    assert_eq!(client.server(), server.address());
    assert_eq!(client.receive(4), number.to_le_bytes());
}

/// Waits until a service of this name waits for this.
fn wait_for_waiting(balancer: &Balancer, name: &str, waiting: Waiting) {
    wait::until(&format!("{name} waits: {waiting:?}"), || {
        let report = balancer.service_named(name);
        assert!(report.waiting.is_none() || !report.accepting);
        report.waiting == Some(waiting)
    });
}

#[test]
fn clients_above_the_limit_of_a_service_wait_and_are_served_one_by_one() {
    let server = Server::start();
    let (balancer, _) = limited("max_sessions = 2", std::slice::from_ref(&server));
    let mut clients = arrivals(&balancer, 0..6).into_iter().zip(0..);
    wait_for_waiting(&balancer, "web", Waiting::ServiceFull);
    wait::until("two are served", || server.accepted() == 2);
    balancer.assert_quiet();
    assert_eq!((server.accepted(), balancer.service().active), (2, 2));
    let mut served = 0;
    for (client, number) in clients.by_ref() {
        assert_served(&client, number, &server);
        served += 1;
        assert!(server.accepted() <= served + 2, "not more than two at a time");
        drop(client);
    }
    wait::until("nobody waits", || balancer.service().waiting.is_none());
    balancer.wait_for_ends(EndReason::ClientClosed, 6);
    let refused = balancer.service().accept_failures;
    assert_eq!(refused, 0, "who waits is not refused");
}

#[test]
fn a_full_service_keeps_nobody_from_another_one() {
    let server = Server::start();
    let (one, two) = (loopback::free(), loopback::free());
    let text = service("one", one, "web").replace("pool =", "max_sessions = 1\npool =") + &service("two", two, "web");
    let balancer = Setup::new().config(&(text + &pool("web", "", [&server]))).start();
    let full = Client::connect(one);
    assert_eq!(full.server(), server.address());
    let waiting = Client::connect(one);
    wait_for_waiting(&balancer, "one", Waiting::ServiceFull);
    for _ in 0..20 {
        assert_eq!(Client::connect(two).server(), server.address());
    }
    assert!(balancer.service_named("two").accepting);
    assert_eq!(full.exchange(b"x"), b"x");
    drop(full);
    assert_eq!(waiting.server(), server.address());
}

#[test]
fn the_limit_of_all_services_together_holds_and_an_end_at_one_lets_in_at_another() {
    let server = Server::start();
    let (one, two) = (loopback::free(), loopback::free());
    let text = format!("[balancer]\nmax_sessions = 3\n{}{}", service("one", one, "web"), service("two", two, "web"));
    let balancer = Setup::new().config(&(text.clone() + &pool("web", "", [&server]))).start();
    assert_eq!(balancer.status().session_limit, 3);
    let mut clients: Vec<Client> = [one, two, one].into_iter().map(Client::connect).collect();
    for client in &clients {
        assert_eq!(client.server(), server.address());
    }
    let waiting = [Client::connect(two), Client::connect(one)];
    wait_for_waiting(&balancer, "one", Waiting::BalancerFull);
    wait_for_waiting(&balancer, "two", Waiting::BalancerFull);
    balancer.assert_quiet();
    assert_eq!(server.accepted(), 3);
    drop(clients.remove(0));
    wait::until("one of them is let in", || server.accepted() == 4);
    drop(clients.remove(1));
    for client in &waiting {
        assert_eq!(client.server(), server.address());
        assert_eq!(client.exchange(b"x"), b"x");
    }
    // With a higher limit there is room at once.
    let more = [Client::connect(one), Client::connect(two)];
    wait_for_waiting(&balancer, "one", Waiting::BalancerFull);
    reread(&balancer, &(text.replace("= 3", "= 9") + &pool("web", "", [&server])));
    for client in &more {
        assert_eq!(client.server(), server.address());
    }
    assert_eq!(balancer.status().session_limit, 9);
}

#[test]
fn a_higher_limit_lets_in_who_waits_and_a_lower_one_closes_nobody() {
    let server = Server::start();
    let (balancer, text) = limited("max_sessions = 1", std::slice::from_ref(&server));
    let clients = arrivals(&balancer, 0..3);
    assert_served(&clients[0], 0, &server);
    wait_for_waiting(&balancer, "web", Waiting::ServiceFull);
    reread(&balancer, &text("max_sessions = 3"));
    assert_served(&clients[1], 1, &server);
    assert_served(&clients[2], 2, &server);
    reread(&balancer, &text("max_sessions = 1"));
    for client in &clients {
        assert_eq!(client.exchange(b"lives on"), b"lives on");
    }
    let waiting = arrivals(&balancer, 3..4).remove(0);
    let mut clients = clients.into_iter();
    clients.next();
    clients.next();
    balancer.wait_for_sessions(1);
    assert_eq!(server.accepted(), 3, "it waits still");
    clients.next();
    assert_served(&waiting, 3, &server);
    reread(&balancer, &text(""));
    let free = arrivals(&balancer, 4..8);
    for (client, number) in free.iter().zip(4..) {
        assert_served(client, number, &server);
    }
}

#[test]
fn a_place_is_free_again_however_a_session_ends() {
    let server = Server::start();
    let (balancer, _) = limited("max_sessions = 1", std::slice::from_ref(&server));
    for number in 0..12 {
        let client = arrivals(&balancer, [number]).remove(0);
        assert_served(&client, number, &server);
        match number % 4 {
            0 => drop(client),
            1 => client.reset(),
            2 => server.hang_up(),
            _ => {
                let session = balancer.sessions(None)[0].session;
                balancer.change(Change::Kill { session }, false).expect("it is ended");
            }
        }
    }
    balancer.wait_for_sessions(0);
    assert_eq!(balancer.service().total, 12);
}

#[test]
fn who_leaves_while_it_waits_takes_nobodys_place() {
    let server = Server::start();
    let (balancer, _) = limited("max_sessions = 1", std::slice::from_ref(&server));
    let first = arrivals(&balancer, [0]).remove(0);
    assert_served(&first, 0, &server);
    let mut waiting = arrivals(&balancer, 1..20);
    wait_for_waiting(&balancer, "web", Waiting::ServiceFull);
    let last = waiting.pop().expect("the last");
    drop(waiting);
    drop(first);
    assert_served(&last, 19, &server);
    drop(last);
    wait::until("all of them have ended", || balancer.service().ended.values().sum::<u64>() == 20);
}

#[test]
fn not_more_sessions_a_second_than_there_may_be_and_all_are_served() {
    let (rate, count) = (20u64, 50u32);
    let server = Server::start();
    let (balancer, text) = limited(&format!("sessions_per_second = {rate}"), std::slice::from_ref(&server));
    for round in 0..2 {
        // The clock is the balancer's. That a slow machine makes the time longer harms nothing.
        let before = balancer.status().uptime_ms;
        let clients = arrivals(&balancer, 0..count);
        wait_for_waiting(&balancer, "web", Waiting::Rate);
        for (client, number) in clients.iter().zip(0..) {
            assert_served(client, number, &server);
        }
        let time = balancer.status().uptime_ms - before;
        // A tenth of a second's may come at once: two of them.
        let least = u64::from(count - 1) * 1000 / rate - 100;
        assert!(time + 50 >= least, "round {round}: {count} in {time} ms, which takes {least} at least");
        drop(clients);
        balancer.wait_for_sessions(0);
        // What was not used in a quiet time is not saved up.
        wait::a_moment();
    }
    let ended = balancer.service().ended;
    assert_eq!(ended, [(EndReason::ClientClosed, u64::from(2 * count))].into(), "nobody was refused");
    reread(&balancer, &text("sessions_per_second = 1"));
    let clients = arrivals(&balancer, 0..20);
    wait_for_waiting(&balancer, "web", Waiting::Rate);
    balancer.assert_quiet();
    reread(&balancer, &text(""));
    for (client, number) in clients.iter().zip(0..) {
        assert_served(client, number, &server);
    }
}

#[test]
fn a_client_has_so_many_sessions_and_further_ones_are_closed_and_counted() {
    let servers = Server::several(2);
    let (balancer, _) = limited("sessions_per_client = 2", &servers);
    let mut clients: Vec<(Client, SocketAddr)> = Vec::new();
    for number in [1, 2, 1, 2, 3] {
        let client = balancer.client_number(number);
        let server = client.server();
        assert_eq!(Some(server), balancer.explain_at("web", loopback::client(number), 0).server);
        clients.push((client, server));
    }
    let accepted = || servers.iter().map(Server::accepted).sum::<usize>();
    assert_eq!(accepted(), 5);
    for _ in 0..3 {
        balancer.client_number(1).assert_ended();
        balancer.client_number(2).assert_ended();
    }
    wait::until("they are counted", || balancer.ended(EndReason::ClientLimit) == 6);
    assert_eq!((accepted(), balancer.service().active), (5, 5), "no server has seen them");
    for (client, _) in &clients {
        assert_eq!(client.exchange(b"x"), b"x");
    }
    let (left, server) = clients.remove(0);
    drop(left);
    balancer.wait_for_sessions(4);
    let again = balancer.client_number(1);
    assert_eq!(again.server(), server);
    balancer.client_number(1).assert_ended();
    let table = String::from_utf8(balancer.ctl("service list").stdout).expect("text");
    assert!(table.contains("REFUSED"), "{table}");
    assert_eq!(balancer.ended(EndReason::NoServer), 0);
}

#[test]
fn sessions_of_a_client_are_counted_for_each_service_by_itself() {
    let server = Server::start();
    let (one, two) = (loopback::free(), loopback::free());
    let text = [service("one", one, "web"), service("two", two, "web")].concat();
    let text = text.replace("pool =", "sessions_per_client = 1\npool =") + &pool("web", "", [&server]);
    let balancer = Setup::new().config(&text).start();
    let clients = [balancer.client_at("one", 1), balancer.client_at("two", 1)];
    for client in &clients {
        assert_eq!(client.server(), server.address());
    }
    balancer.client_at("one", 1).assert_ended();
    balancer.client_at("two", 1).assert_ended();
    wait::until("they are counted", || {
        balancer.ended_at("one", EndReason::ClientLimit) == 1 && balancer.ended_at("two", EndReason::ClientLimit) == 1
    });
    for client in &clients {
        assert_eq!(client.exchange(b"x"), b"x");
    }
}

#[test]
fn a_limit_for_each_client_counts_the_sessions_that_were_there_before() {
    let server = Server::start();
    let (balancer, text) = limited("", std::slice::from_ref(&server));
    let clients = arrivals(&balancer, [1, 1, 2]);
    for (client, number) in clients.iter().zip([1, 1, 2]) {
        assert_served(client, number, &server);
    }
    reread(&balancer, &text("sessions_per_client = 2"));
    balancer.client_number(1).assert_ended();
    let other = arrivals(&balancer, [2]).remove(0);
    assert_served(&other, 2, &server);
    balancer.client_number(2).assert_ended();
    for client in &clients {
        assert_eq!(client.exchange(b"x"), b"x");
    }
}

#[test]
fn a_limit_for_each_client_that_went_and_came_counts_right() {
    let server = Server::start();
    let (balancer, text) = limited("sessions_per_client = 1", std::slice::from_ref(&server));
    let first = arrivals(&balancer, [1]).remove(0);
    assert_served(&first, 1, &server);
    reread(&balancer, &text(""));
    let second = arrivals(&balancer, [1]).remove(0);
    assert_served(&second, 1, &server);
    drop(first);
    balancer.wait_for_sessions(1);
    reread(&balancer, &text("sessions_per_client = 1"));
    balancer.client_number(1).assert_ended();
    drop(second);
    balancer.wait_for_sessions(0);
    for number in [1, 1, 1] {
        let client = arrivals(&balancer, [number]).remove(0);
        assert_served(&client, number, &server);
        drop(client);
        balancer.wait_for_sessions(0);
    }
}

#[test]
fn a_session_that_fails_gives_its_place_back() {
    let refusing = Server::refusing();
    let (balancer, _) = limited("sessions_per_client = 1\nmax_sessions = 1", std::slice::from_ref(&refusing));
    for _ in 0..10 {
        balancer.client_number(1).assert_ended();
    }
    balancer.wait_for_ends(EndReason::ConnectFailed, 10);
    refusing.listen();
    let client = arrivals(&balancer, [1]).remove(0);
    assert_served(&client, 1, &refusing);
}

#[test]
fn only_who_is_allowed_and_not_denied_gets_in() {
    let server = Server::start();
    // Clients 0 to 255 are one /24.
    let keys = "allow = [\"127.16.0.0/24\", \"127.16.9.9\"]\ndeny = [\"127.16.0.64/26\", \"127.16.0.7\"]";
    let (balancer, text) = limited(keys, std::slice::from_ref(&server));
    let other = |a: u8, b: u8| u32::from(a) << 8 | u32::from(b);
    let (mut served, mut denied) = (0, 0);
    for (number, let_in) in [
        (0, true),
        (6, true),
        (7, false),
        (8, true),
        (63, true),
        (64, false),
        (127, false),
        (128, true),
        (255, true),
        (256, false),
        (other(9, 9), true),
        (other(9, 8), false),
    ] {
        let client = balancer.client_number(number);
        let explained = balancer.explain_at("web", loopback::client(number), 0);
        if let_in {
            assert_eq!(client.server(), server.address(), "{number}");
            assert_eq!((explained.server, explained.refused), (Some(server.address()), None));
            served += 1;
        } else {
            client.assert_ended();
            assert_eq!(explained.refused, Some(EndReason::Denied), "{number}");
            denied += 1;
        }
    }
    wait::until("they are counted", || balancer.ended(EndReason::Denied) == denied);
    assert_eq!(server.accepted(), served);
    balancer.wait_for_sessions(0);
    assert_eq!(balancer.service().ended.values().sum::<u64>(), served as u64 + denied);

    reread(&balancer, &text("deny = \"127.16.0.0/16\""));
    balancer.client_number(0).assert_ended();
    assert_eq!(balancer.client().server(), server.address(), "who is not denied is allowed");
    reread(&balancer, &text(""));
    assert_eq!(balancer.client_number(7).server(), server.address());
}

#[test]
fn networks_of_one_family_say_nothing_of_the_other() {
    let server = Server::start();
    let listen = loopback::free_at(Ipv6Addr::UNSPECIFIED.into());
    let text = |keys: &str| {
        format!("[service.web]\nlisten = \"{listen}\"\npool = \"web\"\n{keys}\n{}", pool("web", "", [&server]))
    };
    let balancer = Setup::new().config(&text("allow = \"::/0\"")).start();
    let [four, six] = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    let connect = |ip| Client::connect(SocketAddr::new(ip, listen.port()));
    for (keys, four_in, six_in) in [
        ("allow = \"::/0\"", false, true),
        ("allow = \"0.0.0.0/0\"", true, false),
        ("deny = \"::/0\"", true, false),
        ("allow = [\"::1\", \"127.0.0.0/8\"]", true, true),
        ("allow = \"::1\"\ndeny = \"::1\"", false, false),
        ("deny = \"::ffff:127.0.0.1\"", false, true),
    ] {
        reread(&balancer, &text(keys));
        for (ip, let_in) in [(four, four_in), (six, six_in)] {
            let client = connect(ip);
            if let_in {
                assert_eq!(client.server(), server.address(), "{keys}: {ip}");
            } else {
                client.assert_ended();
            }
            assert_eq!(balancer.explain_at("web", ip, 0).refused.is_none(), let_in, "{keys}: {ip}");
        }
    }
}

#[test]
fn who_is_turned_away_takes_no_place() {
    let server = Server::start();
    let keys = "max_sessions = 1\nsessions_per_client = 1\ndeny = \"127.16.0.9\"";
    let (balancer, _) = limited(keys, std::slice::from_ref(&server));
    for _ in 0..10 {
        balancer.client_number(9).assert_ended();
    }
    let client = arrivals(&balancer, [1]).remove(0);
    assert_served(&client, 1, &server);
    // At the limit nobody is accepted, and so nobody is turned away: who is denied waits as well.
    let waiting = balancer.client_number(9);
    wait_for_waiting(&balancer, "web", Waiting::ServiceFull);
    drop(client);
    waiting.assert_ended();
    wait::until("they are counted", || balancer.ended(EndReason::Denied) == 11);
}

#[test]
fn limits_that_balancerctl_gives_hold_and_survive_a_restart() {
    let server = Server::start();
    let mut balancer = Balancer::of([&server]);
    let listen = loopback::free();
    let line = format!(
        "service add second {} {} --max-sessions 3 --sessions-per-client 1 --sessions-per-second 500 \
         --allow 127.16.0.0/16 --deny 127.16.0.5",
        listen.ip(),
        listen.port()
    );
    let output = balancer.ctl(&line);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    for _ in 0..2 {
        let client = balancer.client_at("second", 1);
        assert_eq!(client.server(), server.address());
        balancer.client_at("second", 1).assert_ended();
        balancer.client_at("second", 5).assert_ended();
        Client::connect(listen).assert_ended();
        wait::until("they are counted", || {
            balancer.ended_at("second", EndReason::Denied) == 2
                && balancer.ended_at("second", EndReason::ClientLimit) == 1
        });
        let others = [balancer.client_at("second", 2), balancer.client_at("second", 3)];
        for other in &others {
            assert_eq!(other.server(), server.address());
        }
        wait_for_waiting(&balancer, "second", Waiting::ServiceFull);
        let json: Value = serde_json::from_slice(&balancer.ctl("status --json").stdout).expect("JSON");
        let services = json["services"].as_array().expect("services");
        let second = services.iter().find(|service| service["name"] == "second").expect("it is there");
        assert_eq!(second["waiting"], "service-full");
        assert_eq!(second["ended"], serde_json::json!({ "denied": 2, "client-limit": 1 }));
        balancer.restart();
    }
}

#[test]
fn a_reload_ends_the_sessions_of_clients_that_are_let_in_no_more_and_no_others() {
    let server = Server::start();
    let listen = loopback::free();
    let text = |deny: &str| {
        let server = server.address();
        format!(
            "[service.web]\nlisten = \"{listen}\"\npool = \"web\"\n{deny}\n[pool.web]\nservers = [{{ address = \"{server}\" }}]\n"
        )
    };
    let balancer = Setup::new().config(&text("")).start();
    let [stays, goes] = [1, 2].map(|number| Client::connect_from(loopback::client(number), listen));
    for client in [&stays, &goes] {
        assert_eq!(client.server(), server.address());
    }
    balancer.configure(&text(&format!("deny = [\"{}\"]", loopback::client(2))));
    balancer.reload().expect("it is taken");
    goes.assert_ended();
    balancer.wait_for_ends(EndReason::Denied, 1);
    assert_eq!(stays.exchange(b"stays"), b"stays");
}

/// So many clients that have gone before they are accepted, every other one with a reset.
fn gone(balancer: &Balancer, numbers: impl IntoIterator<Item = u32>) {
    for number in numbers {
        let client = balancer.client_number(number);
        if number % 2 == 0 {
            client.reset();
        }
    }
}

#[test]
fn clients_that_have_gone_while_they_waited_take_no_turn_of_the_rate() {
    for keys in ["", "accept_proxy = [\"127.0.0.0/8\"]"] {
        let server = Server::start();
        let (balancer, _) = limited(&format!("sessions_per_second = 1\n{keys}"), std::slice::from_ref(&server));
        let header = if keys.is_empty() { "" } else { "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" };
        let live = || {
            let client = balancer.client_number(1);
            client.send(header.as_bytes());
            client.send(&7_u32.to_le_bytes());
            client
        };
        let first = live();
        assert_served(&first, 7, &server);
        wait_for_waiting(&balancer, "web", Waiting::Rate);
        // With a turn each, the next one would wait for longer than any test does.
        gone(&balancer, 0..100);
        let next = live();
        assert_served(&next, 7, &server);
        let ended = |reason| balancer.ended(reason);
        wait::until("they are counted", || {
            ended(EndReason::ClientReset) + ended(EndReason::ClientClosed) + ended(EndReason::BadHeader) == 100
        });
        assert_eq!(ended(EndReason::ClientReset), 50);
        // One whose end has only just come may be one that listens.
        assert!(server.accepted() < 10, "{}", server.accepted());
    }
}

#[test]
fn clients_that_have_gone_while_they_waited_take_no_place_of_their_address() {
    let server = Server::start();
    let (balancer, _) = limited("sessions_per_client = 1\nmax_sessions = 1", std::slice::from_ref(&server));
    let first = arrivals(&balancer, [3]).remove(0);
    assert_served(&first, 3, &server);
    gone(&balancer, [1; 4]);
    wait::a_moment();
    let live = arrivals(&balancer, [1]).remove(0);
    drop(first);
    assert_served(&live, 1, &server);
    assert_eq!((server.accepted(), balancer.ended(EndReason::ClientLimit)), (2, 0));
    assert_eq!(balancer.ended(EndReason::ClientClosed), 5);
}

#[test]
fn a_client_that_has_ended_its_side_with_a_question_is_served_though_it_waited() {
    let server = Server::start();
    let (balancer, _) = limited("max_sessions = 1", std::slice::from_ref(&server));
    let first = arrivals(&balancer, [3]).remove(0);
    assert_served(&first, 3, &server);
    let asking = arrivals(&balancer, [5]).remove(0);
    asking.shut();
    wait::a_moment();
    drop(first);
    assert_served(&asking, 5, &server);
}

#[test]
fn a_client_of_ipv6_is_its_network_for_sessions_per_client_over_both_transports() {
    namespace::inside("a_client_of_ipv6_is_its_network_for_sessions_per_client_over_both_transports", || {
        let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
        for ip in ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1"] {
            namespace::run(&format!("ip addr add {ip}/128 dev lo nodad"));
        }
        let listen = SocketAddr::new(address("::1"), 80);
        let (server, other) = (Server::start(), DatagramServer::start());
        let text = |keys: &str| {
            let keys = format!("sessions_per_client = 2\n{keys}");
            let pools = pool("web", "", [&server]) + &datagram_pool("", [&other]);
            let udp = datagrams(listen, &keys);
            format!("[service.web]\nlisten = \"{listen}\"\npool = \"web\"\n{keys}\n{udp}{pools}")
        };
        let balancer = Setup::new().config(&text("")).start();
        // The kernel may take a moment until it has routes for them.
        let connect =
            |from: &str| wait::for_some("the address is there", || Client::try_from(address(from), listen).ok());
        let mut clients: Vec<Client> = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(connect).into();
        clients.iter().for_each(|client| assert_eq!(client.server(), server.address()));
        connect("2001:db8::3").assert_ended();
        wait::until("it is counted", || balancer.ended_at("web", EndReason::ClientLimit) == 1);
        let flow = |from: &str| DatagramClient::from(address(from), listen);
        let flows = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(flow);
        flows.iter().for_each(|client| assert_eq!(client.ask(b"x"), other.address()));
        let refused = flow("2001:db8::3");
        refused.send(b"x");
        let dropped = || balancer.service_named("udp").datagrams.dropped_in.get(&DropReason::ClientLimit).copied();
        wait::until("it is counted", || dropped() == Some(1));

        // Those who are there are counted by what holds from then on.
        reread(&balancer, &text("client_subnet_ipv6 = 128"));
        clients.push(connect("2001:db8::3"));
        assert_eq!(clients[3].server(), server.address());
        assert_eq!(refused.ask(b"y"), other.address());
        reread(&balancer, &text("client_subnet_ipv6 = 48"));
        connect("2001:db8:0:1::1").assert_ended();
        wait::until("it is counted", || balancer.ended_at("web", EndReason::ClientLimit) == 2);
        let table = String::from_utf8(balancer.ctl("service list").stdout).expect("text");
        assert!(table.contains("2 (IPv6 /48)"), "{table}");
        drop(clients);
        wait::until("they are gone", || balancer.service_named("web").active == 0);
        assert_eq!(connect("2001:db8::3").server(), server.address());
    });
}

#[test]
fn networks_of_files_hold_are_read_again_and_are_told_by_their_number() {
    let server = Server::start();
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (allow, deny) = (path("allow.list"), path("deny.list"));
    // All of them, and what they deny is but a part.
    let many: String =
        (0..100_000_u32).map(|number| format!("{}/28\n", Ipv4Addr::from_bits(0x1400_0000 + number * 16))).collect();
    let own = |number: u32| loopback::client(number);
    std::fs::write(&allow, "127.0.0.0/8 # here\n10.0.0.0/8, 10.1.0.0/16\n").expect("written");
    std::fs::write(&deny, format!("{many}{}\n", own(1))).expect("written");
    let keys = format!("allow_file = \"{allow}\"\ndeny = \"{}\"\ndeny_file = \"{deny}\"", own(2));
    let (balancer, text) = limited(&keys, std::slice::from_ref(&server));
    let check = |numbers: [bool; 3]| {
        for (number, welcome) in (1..).zip(numbers) {
            let client = balancer.client_number(number);
            match welcome {
                true => assert_eq!(client.server(), server.address()),
                false => client.assert_ended(),
            }
            let refused = balancer.explain_at("web", own(number), 0).refused;
            assert_eq!(refused, (!welcome).then_some(EndReason::Denied), "{number}");
        }
    };
    check([false, false, true]);
    let listed = String::from_utf8(balancer.ctl("service list").stdout).expect("text");
    assert!(
        listed.contains(&format!("the 3 networks of {allow}, but not 100002 networks, those of {deny} among them"))
    );
    assert!(balancer.ctl("status --json").stdout.len() < 10_000);
    assert_eq!(balancer.service().denied_networks, 100_002);

    // Who is let in no more is closed, and what is told of it is short.
    let third = balancer.client_number(3);
    assert_eq!(third.server(), server.address());
    std::fs::write(&deny, format!("{many}{}\n", own(3))).expect("written");
    let changes = balancer.reload().expect("it is taken").changes;
    assert_eq!(changes.len(), 1, "{changes:?}");
    third.assert_ended();
    check([true, false, false]);
    assert!(balancer.reload().expect("it is taken").changes.is_empty(), "nothing is new");
    let saved = balancer.ctl("save --dry-run");
    assert!(saved.stdout.len() < 10_000, "{}", saved.stdout.len());

    for (words, fault) in [
        ("# fine\n10.0.0.0/33\n", ":2:1: expected a network such as 10.0.0.0/8"),
        ("10.0.0.1/8", ":1:1: 10.0.0.1/8 has bits set behind its prefix"),
    ] {
        std::fs::write(&deny, words).expect("written");
        let refusal = balancer.reload().expect_err("it is refused").to_string();
        assert!(refusal.contains(&format!("{deny}{fault}")), "{refusal}");
    }
    std::fs::write(&allow, "# nobody").expect("written");
    std::fs::write(&deny, "").expect("written");
    let refusal = balancer.reload().expect_err("it is refused").to_string();
    assert!(refusal.contains("would keep everybody out"), "{refusal}");
    std::fs::remove_file(&allow).expect("removed");
    let refusal = balancer.reload().expect_err("it is refused").to_string();
    assert!(refusal.contains(&format!("{allow}: it cannot be opened")), "{refusal}");
    check([true, false, false]);
    balancer.configure(&text(&format!("deny_file = \"{deny}\"")));
    balancer.reload().expect("a list of those who are denied may be empty");
    check([true, true, true]);
}

#[test]
fn long_lists_of_the_configuration_file_are_told_by_their_number() {
    let server = Server::start();
    let (balancer, text) = limited("", std::slice::from_ref(&server));
    let lists = |last: u32| {
        let network = |number: u32| format!("\"{}/24\"", Ipv4Addr::from_bits(0x0a00_0000 + number * 256));
        (0..20_000).chain([last]).map(network).collect::<Vec<_>>().join(", ")
    };
    reread(&balancer, &text(&format!("deny = [{}]", lists(30_000))));
    let listed = String::from_utf8(balancer.ctl("service list").stdout).expect("text");
    assert!(listed.contains("web serves everybody but 20001 networks"), "{listed}");
    assert!(balancer.ctl("status --json").stdout.len() < 10_000);
    assert_eq!(balancer.client_number(1).server(), server.address());
    let other = text(&format!("deny = [{}]", lists(40_000)));
    let differs = balancer.diff(Some(&other)).expect("it is valid").changes;
    let [change] = differs.as_slice() else { panic!("{differs:?}") };
    let told = |text: &Option<String>| text.as_ref().is_some_and(|text| text.starts_with("20001 networks ("));
    assert!(told(&change.from) && told(&change.to) && change.from != change.to, "{change:?}");
}
