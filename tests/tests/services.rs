//! Many services and many pools: who serves whom, and how they come and go.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Output;

use serde_json::Value;
use tests::config::{pool, service};
use tests::load;
use tests::questions::served_at;
use tests::unprivileged::Unprivileged;
use tests::{Balancer, Client, Server, Setup, loopback, wait};
use wire::control::{PoolValues, Removal};
use wire::report::{EndReason, Phase, Waiting};
use wire::settings::{DEFAULT_POOL, Policy, PoolSettings, ServiceSettings};
use wire::{Change, Refusal, Request, Response};

fn add_service(name: &str, listen: &[SocketAddr], pool: &str) -> Change {
    Change::AddService { service: name.to_owned(), settings: ServiceSettings::new(listen.to_vec(), pool) }
}

fn remove_service(name: &str) -> Change {
    Change::RemoveService { service: name.to_owned() }
}

fn add_pool(name: &str) -> Change {
    Change::AddPool { pool: name.to_owned(), settings: PoolSettings::default() }
}

fn remove_pool(name: &str) -> Change {
    Change::RemovePool { pool: name.to_owned() }
}

fn addresses(servers: &[Server]) -> Vec<SocketAddr> {
    servers.iter().map(Server::address).collect()
}

fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8(output.stderr.clone()).expect("text"))
}

/// Whether somebody listens there.
fn listens(address: SocketAddr) -> bool {
    Client::try_from(loopback::client(0), address).is_ok()
}

#[test]
fn services_on_one_pool_share_its_servers_and_each_client_keeps_its_own() {
    let servers = Server::several(4);
    let (one, two) = (loopback::free(), loopback::free());
    let balancer = Setup::new()
        .config(&[service("one", one, "web"), service("two", two, "web"), pool("web", "", &servers)].concat())
        .start();
    let served = served_at(one, 0..60);
    assert_eq!(served_at(two, 0..60), served, "the same client, the same server");
    assert!(addresses(&servers).iter().all(|server| served.contains(server)));
    wait::until("all have ended", || balancer.status().services.iter().all(|service| service.active == 0));
    let totals: Vec<_> = balancer.status().services.into_iter().map(|service| (service.name, service.total)).collect();
    assert_eq!(totals, [("one".to_owned(), 60), ("two".to_owned(), 60)]);
    assert_eq!(balancer.list_pool("web").servers.iter().map(|server| server.total).sum::<u64>(), 120);
    assert_eq!(balancer.pools()[0].services, ["one", "two"]);
}

#[test]
fn services_on_different_pools_never_meet() {
    let (left, right) = (Server::several(2), Server::several(2));
    let (one, two) = (loopback::free(), loopback::free());
    let text = [service("one", one, "left"), service("two", two, "right")].concat()
        + &pool("left", "", &left)
        + &pool("right", "", &right);
    let balancer = Setup::new().config(&text).start();
    let clients: Vec<(Client, Client)> =
        (0..40).map(|number| (balancer.client_at("one", number), balancer.client_at("two", number))).collect();
    for (number, (at_one, at_two)) in (0u32..).zip(&clients) {
        assert!(addresses(&left).contains(&at_one.server()));
        assert!(addresses(&right).contains(&at_two.server()));
        let bytes = number.to_le_bytes();
        at_one.send(&bytes);
        assert_eq!(at_two.exchange(b"else"), b"else");
        assert_eq!(at_one.receive(4), bytes);
    }
    balancer.remove_from("left", left[0].address(), Removal::Now);
    balancer.remove_from("left", left[1].address(), Removal::Now);
    for (at_one, at_two) in &clients {
        at_one.assert_ended();
        assert_eq!(at_two.exchange(b"x"), b"x");
    }
    balancer.client_at("one", 0).assert_ended();
    wait::until("it is counted", || balancer.ended_at("one", EndReason::NoServer) == 1);
    assert!(balancer.service_named("two").ended.is_empty());
}

#[test]
fn a_service_with_two_addresses_is_one_service() {
    let servers = Server::several(3);
    let (one, two) = (loopback::free(), loopback::free());
    let text = format!("[service.web]\nlisten = [\"{one}\", \"{two}\"]\npool = \"web\"\n{}", pool("web", "", &servers));
    let balancer = Setup::new().config(&text).start();
    assert_eq!(served_at(one, 0..30), served_at(two, 0..30));
    let report = balancer.service_named("web");
    let mut expected = vec![one, two];
    expected.sort_unstable();
    assert_eq!((report.addresses, report.total, report.accepting), (expected, 60, true));

    // One address of it goes: the other one stays open, and so do the sessions that came by the first.
    let kept = Client::connect_from(loopback::client(1), one);
    let name = kept.server();
    balancer.configure(&(service("web", two, "web") + &pool("web", "", &servers)));
    balancer.reload().expect("it is taken");
    assert!(!listens(one));
    let report = balancer.service_named("web");
    assert_eq!((report.addresses, report.accepting, report.waiting), (vec![two], true, None));
    assert_eq!(kept.exchange(b"x"), b"x");
    assert_eq!(Client::connect_from(loopback::client(1), two).server(), name);
}

/// An IPv4 wildcard with a port that is free everywhere.
fn wildcards() -> (SocketAddr, SocketAddr) {
    let port = loopback::free_at(Ipv6Addr::UNSPECIFIED.into()).port();
    ((Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into())
}

#[test]
fn wildcards_of_both_families_stand_in_one_service() {
    let servers = Server::several(3);
    let (four, six) = wildcards();
    let text =
        format!("[service.web]\nlisten = [\"{four}\", \"{six}\"]\npool = \"web\"\n{}", pool("web", "", &servers));
    let balancer = Setup::new().config(&text).start();
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let client = Client::connect_from(ip, SocketAddr::new(ip, four.port()));
        assert_eq!(Some(client.server()), balancer.explain_at("web", ip, 0).server, "{ip}");
        let sessions = balancer.sessions(None);
        assert!(sessions.iter().any(|session| session.client == client.stream().local_addr().expect("its own")));
        assert_eq!(client.exchange(b"x"), b"x");
    }
    assert_eq!(balancer.service_named("web").addresses, [four, six]);
}

#[test]
fn wildcards_of_both_families_may_be_two_services() {
    let (left, right) = (Server::start(), Server::start());
    let (four, six) = wildcards();
    let text = service("four", four, "left") + &service("six", six, "right");
    let balancer = Setup::new().config(&(text + &pool("left", "", [&left]) + &pool("right", "", [&right]))).start();
    let port = four.port();
    assert_eq!(Client::connect((Ipv4Addr::LOCALHOST, port).into()).server(), left.address());
    assert_eq!(Client::connect((Ipv6Addr::LOCALHOST, port).into()).server(), right.address());
    balancer.change(remove_service("four"), false).expect("it is removed");
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(), "the other one does not take them over");
    assert_eq!(Client::connect((Ipv6Addr::LOCALHOST, port).into()).server(), right.address());
}

#[test]
fn an_ipv6_wildcard_alone_takes_ipv4_clients_as_what_they_are() {
    let servers = Server::several(4);
    let (_, six) = wildcards();
    let balancer = Setup::new().config(&(service("web", six, "web") + &pool("web", "", &servers))).start();
    for number in 0..20 {
        let ip = loopback::client(number);
        let client = Client::connect_from(ip, (Ipv4Addr::LOCALHOST, six.port()).into());
        assert_eq!(Some(client.server()), balancer.explain_at("web", ip, 0).server);
        assert_eq!(balancer.sessions(None).iter().filter(|session| session.client.ip() == ip).count(), 1);
    }
}

#[test]
fn a_service_comes_and_goes_while_another_serves() {
    let servers = Server::several(3);
    let balancer = Balancer::of(&servers);
    let (second, known) = (loopback::free(), addresses(&servers));
    let requests = load::during(&[(balancer.address(), known.clone())], |load| {
        for round in 0..10 {
            load.pass(20);
            balancer.change(add_service("second", &[second], DEFAULT_POOL), false).expect("it is added");
            let client = Client::connect_from(loopback::client(round), second);
            assert_eq!(Some(client.server()), balancer.explain(loopback::client(round)).server);
            load.pass(20);
            let report = balancer.change(remove_service("second"), false).expect("it is removed");
            assert_eq!(report.sessions, 1);
            assert_eq!(client.exchange(b"lives on"), b"lives on");
            assert!(!listens(second));
            drop(client);
            wait::until("it goes with its last session", || balancer.status().services.len() == 1);
        }
    });
    balancer.wait_for_ends(EndReason::ClientClosed, requests as u64);
}

#[test]
fn a_removed_service_is_shown_until_its_last_session_has_ended() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let descriptors = balancer.descriptors();
    let second = loopback::free();
    balancer.change(add_service("second", &[second], DEFAULT_POOL), false).expect("it is added");
    let clients: Vec<Client> = (0..5).map(|number| Client::connect_from(loopback::client(number), second)).collect();
    for client in &clients {
        assert_eq!(client.server(), server.address());
    }
    let dry = balancer.change(remove_service("second"), true).expect("it would be removed");
    assert_eq!((dry.dry_run, dry.sessions), (true, 5));
    assert!(!balancer.service_named("second").leaving);
    balancer.change(remove_service("second"), false).expect("it is removed");
    let report = balancer.service_named("second");
    assert!(report.leaving && !report.accepting && report.active == 5, "{report:?}");
    assert_eq!(report.waiting, Some(Waiting::Stopping));
    let again = balancer.change(remove_service("second"), false);
    assert_eq!(again, Err(Refusal::NoService { service: "second".to_owned() }));

    // A new one of that name and address is another one.
    balancer.change(add_service("second", &[second], DEFAULT_POOL), false).expect("it is added");
    assert_eq!(Client::connect(second).server(), server.address());
    let all: Vec<_> = balancer.status().services.into_iter().filter(|service| service.name == "second").collect();
    assert_eq!(all.iter().filter(|service| service.leaving).map(|service| service.active).collect::<Vec<_>>(), [5]);
    assert_eq!(all.len(), 2);
    for client in &clients {
        assert_eq!(client.exchange(b"x"), b"x");
    }
    drop(clients);
    balancer.change(remove_service("second"), false).expect("it is removed");
    wait::until("both are gone", || balancer.status().services.len() == 1);
    wait::until("every descriptor is given back", || balancer.descriptors() <= descriptors);
}

#[test]
fn who_waits_in_the_queue_of_a_service_that_is_removed_is_served() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let second = loopback::free();
    balancer.change(add_service("second", &[second], DEFAULT_POOL), false).expect("it is added");
    balancer.signal(nix_signal("SIGSTOP"));
    let waiting: Vec<Client> = (0..50).map(|number| Client::connect_from(loopback::client(number), second)).collect();
    let mut control = wire::Client::connect(balancer.socket()).expect("it listens");
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            control.call(&Request::Change { change: remove_service("second"), dry_run: false }).expect("an answer")
        });
        balancer.signal(nix_signal("SIGCONT"));
        assert!(matches!(asked.join().expect("an answer"), Response::Changed(_)));
    });
    for client in &waiting {
        assert_eq!(client.server(), server.address());
        assert_eq!(client.exchange(b"x"), b"x");
    }
}

fn nix_signal(name: &str) -> nix::sys::signal::Signal {
    name.parse().expect("a signal")
}

#[test]
fn services_and_pools_made_by_command_survive_a_restart() {
    let servers = Server::several(2);
    let mut balancer = Balancer::of([&servers[0]]);
    let second = loopback::free();
    balancer.change(add_pool("other"), false).expect("it is made");
    balancer.add_to("other", servers[1].address());
    balancer.change(add_service("second", &[second], "other"), false).expect("it is added");
    let values = PoolValues { policy: Some(Policy::RoundRobin), ..PoolValues::default() };
    balancer.change(Change::SetPool { pool: "other".to_owned(), values }, false).expect("it is set");
    let before = balancer.settings().now;
    balancer.restart();
    let mut after = balancer.settings().now;
    after.services.insert("default".to_owned(), before.services["default"].clone());
    assert_eq!(after, before);
    assert_eq!(Client::connect(second).server(), servers[1].address());
    assert_eq!(balancer.client().server(), servers[0].address());
    balancer.change(remove_service("second"), false).expect("it is removed");
    balancer.change(remove_pool("other"), false).expect("it is removed");
    balancer.restart();
    assert_eq!((balancer.pools().len(), balancer.status().services.len()), (1, 1));
    assert!(!listens(second));
}

#[test]
fn without_any_service_it_lives_on_and_takes_new_ones() {
    let server = Server::start();
    let setup = Setup::new().listen(loopback::free());
    let balancer = setup.start();
    balancer.add(server.address());
    let kept = balancer.client();
    assert_eq!(kept.server(), server.address());
    balancer.change(remove_service("default"), false).expect("it is removed");
    assert!(!listens(balancer.address()));
    assert_eq!(kept.exchange(b"x"), b"x");
    drop(kept);
    wait::until("it is gone", || balancer.status().services.is_empty());
    assert!(balancer.ctl("status").status.success() && balancer.ctl("service list").status.success());
    balancer.change(add_service("default", &[balancer.address()], DEFAULT_POOL), false).expect("it is added");
    assert_eq!(balancer.client().server(), server.address());
}

#[test]
fn a_port_that_the_kernel_chooses_is_shown() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let any = SocketAddr::new(loopback::fresh(), 0);
    balancer.change(add_service("second", &[any], DEFAULT_POOL), false).expect("it is added");
    let address = balancer.address_of("second");
    assert!(address.ip() == any.ip() && address.port() != 0);
    assert_eq!(Client::connect(address).server(), server.address());
    assert_eq!(balancer.service_named("second").settings.listen, [any], "what was asked for");
}

#[test]
fn an_address_with_a_port_that_the_kernel_chose_is_taken_too() {
    let balancer = Balancer::start();
    let taken = Refusal::AddressTaken { listen: balancer.address(), service: "default".to_owned() };
    for dry_run in [true, false] {
        let answer = balancer.change(add_service("two", &[balancer.address()], DEFAULT_POOL), dry_run);
        assert_eq!(answer, Err(taken.clone()));
    }
}

#[test]
fn an_address_that_cannot_be_is_one_error_and_changes_nothing() {
    let server = Server::start();
    let balancer = Setup::new().listen(loopback::free()).start();
    balancer.add(server.address());
    let other_program = TcpListener::bind((loopback::fresh(), 0)).expect("bound");
    let theirs = other_program.local_addr().expect("an address");
    let (own, free) = (balancer.address(), loopback::free());
    let before = (balancer.settings(), balancer.descriptors(), balancer.timeless_list("default"));
    let not_ours: SocketAddr = "192.0.2.1:8080".parse().expect("an address");
    for (name, listen, pool, words) in [
        ("default", vec![free], "default", "there is a service default already"),
        ("two", vec![own], "default", "service default listens at"),
        ("two", vec![theirs], "default", "another program listens there"),
        ("two", vec![not_ours], "default", "this machine does not have that address"),
        ("two", vec![free, not_ours], "default", "192.0.2.1:8080"),
        ("two", vec![free, theirs], "default", "another program listens there"),
        ("two", vec![free, free], "default", &free.to_string()),
        ("two", vec![server.address()], "default", &server.address().to_string()),
        ("two", vec![free], "nobody", "there is no pool nobody"),
        ("two", vec![], "default", "listen"),
        ("a b", vec![free], "default", "cannot be a name"),
        ("", vec![free], "default", "cannot be a name"),
        (&"x".repeat(65), vec![free], "default", "cannot be a name"),
    ] {
        for dry_run in [true, false] {
            let answer = balancer.change(add_service(name, &listen, pool), dry_run);
            // What only the operating system can say is not asked by a dry run.
            if dry_run && answer.is_ok() {
                continue;
            }
            let refusal = answer.expect_err("it is refused").to_string();
            assert!(refusal.contains(words) && refusal.lines().count() == 1, "{name} {listen:?}: {refusal}");
            assert!(!listens(free), "nothing was left open");
        }
    }
    assert_eq!((balancer.settings(), balancer.timeless_list("default")), (before.0, before.2));
    wait::until("every descriptor is given back", || balancer.descriptors() <= before.1);
    assert_eq!(balancer.status().services.len(), 1);
    assert!(!balancer.log().contains("service add two"), "nothing of it was carried out");
    assert_eq!(balancer.client().server(), server.address());
    drop(other_program);
    balancer.change(add_service("two", &[theirs], "default"), false).expect("it is free now");
    assert_eq!(Client::connect(theirs).server(), server.address());
}

#[test]
fn who_looks_and_names_no_pool_sees_the_default_one_and_all_where_there_is_none() {
    let [one, two] = [loopback::free(), loopback::free()];
    let [first, second] = [Server::start(), Server::start()];
    let text = [
        service("web", one, "web"),
        service("api", two, "api"),
        pool("web", "policy = \"round-robin\"", [&first]),
        pool("api", "", [&second]),
    ];
    let balancer = Setup::new().config(&text.concat()).start();
    let done = |line: &str| {
        let output = balancer.ctl(line);
        assert_eq!(said(&output), (Some(0), String::new()), "{line}");
        String::from_utf8(output.stdout).expect("text")
    };
    let json = |line: &str| serde_json::from_str::<Value>(&done(&format!("{line} --json"))).expect("JSON");
    let list = done("list");
    let at = |words: &str| list.find(words).unwrap_or_else(|| panic!("{words} is not in {list}"));
    assert!(at("pool api: ") < at(&second.address().to_string()));
    assert!(at(&second.address().to_string()) < at("pool web: "));
    assert!(at("pool web: ") < at(&first.address().to_string()));
    let lists = json("list");
    let names: Vec<_> = lists["lists"].as_array().expect("lists").iter().map(|list| &list["pool"]).collect();
    assert_eq!(names, ["api", "web"]);
    assert!(done("list --wide").contains("CHECKS PASSED"));
    let explained = done("explain 192.0.2.7");
    assert!(explained.contains(&format!("192.0.2.7 gets {}", second.address())), "{explained}");
    assert!(explained.contains("service  web, which pool web serves"), "{explained}");
    assert_eq!(json("explain 192.0.2.7")["explained"][1]["service"], "web");

    // What changes something never guesses.
    let (code, told) = said(&balancer.ctl("add 10.0.0.1 80"));
    assert!(code == Some(1) && told.contains("there is no pool default"), "{told}");

    done("pool add default");
    let list = done("list");
    assert!(list.contains("pool default has no servers") && !list.contains("pool web"), "{list}");
    assert!(list.contains("other pools: api, web; `balancerctl list --pool NAME` shows one"), "{list}");
    assert_eq!(json("list")["pool"], "default");
    let explained = done("explain 192.0.2.7");
    assert!(explained.contains("other services: api, web; `balancerctl explain CLIENT --service NAME`"), "{explained}");
    done(&format!("add {} {}", first.address().ip(), first.address().port()));
    assert!(!done("list").contains("other pools"), "there is something to see");

    // With nobody there is nothing to show.
    let balancer = Balancer::start();
    balancer.change(remove_service("default"), false).expect("removed");
    balancer.change(remove_pool("default"), false).expect("removed");
    for line in ["list", "explain 192.0.2.7"] {
        let (code, told) = said(&balancer.ctl(line));
        assert!(code == Some(1) && told.contains("there is no pool default"), "{told}");
    }
}

#[test]
fn an_address_that_cannot_be_is_one_line_of_balancerctl_and_code_1() {
    let balancer = Setup::new().listen(loopback::free()).start();
    let own = balancer.address();
    let other_program = TcpListener::bind((loopback::fresh(), 0)).expect("bound");
    let theirs = other_program.local_addr().expect("an address");
    for (line, words) in [
        (format!("service add two {} {}", own.ip(), own.port()), "service default listens at"),
        (format!("service add two {} {}", theirs.ip(), theirs.port()), "another program listens there"),
        ("service add two 192.0.2.1 8080".to_owned(), "this machine does not have that address"),
        (format!("service add two {} 8080 --pool nobody", own.ip()), "there is no pool nobody"),
        ("service remove two".to_owned(), "there is no service two"),
        ("pool remove default".to_owned(), "pool default serves service default"),
        ("pool remove two".to_owned(), "there is no pool two"),
        ("pool add default".to_owned(), "there is a pool default already"),
        ("list --pool two".to_owned(), "there is no pool two"),
    ] {
        let (code, said) = said(&balancer.ctl(&line));
        assert_eq!(code, Some(1), "{line}: {said}");
        assert!(said.starts_with("balancerctl: ") && said.lines().count() == 1 && said.contains(words), "{said}");
    }
    assert_eq!(balancer.status().services.len(), 1);
}

#[test]
fn a_port_without_the_right_to_bind_it_is_one_error_and_changes_nothing() {
    let server = Server::start();
    let first = loopback::free();
    let setup = Setup::new().config(&(service("web", first, "web") + &pool("web", "", [&server])));
    let Some(balancer) = Unprivileged::start(&setup) else { return };
    let Response::Status(before) = balancer.call(&Request::Status) else { panic!("a status") };
    let low = SocketAddr::new(loopback::fresh(), 80);
    let change = add_service("low", &[low], "web");
    let Response::Refused(refusal) = balancer.call(&Request::Change { change, dry_run: false }) else {
        panic!("it is refused")
    };
    assert!(refusal.to_string().contains("CAP_NET_BIND_SERVICE"), "{refusal}");
    let text = service("web", first, "web") + &service("low", low, "web") + &pool("web", "", [&server]);
    std::fs::write(setup.config_path(), text).expect("written");
    let Response::Refused(refusal) = balancer.call(&Request::Reload { instead: None, dry_run: false }) else {
        panic!("it is refused")
    };
    assert!(refusal.to_string().contains("CAP_NET_BIND_SERVICE"), "{refusal}");
    let Response::Status(after) = balancer.call(&Request::Status) else { panic!("a status") };
    assert_eq!((after.services, after.phase), (before.services, Phase::Running));
    assert_eq!(after.reload_failure, Some(refusal.to_string()));
    assert!(!listens(low));
    assert_eq!(Client::connect(first).server(), server.address());
}

#[test]
fn a_pool_that_serves_a_service_stays() {
    let balancer = Balancer::start();
    let in_use = |pool: &str, service: &str| Refusal::PoolInUse { pool: pool.to_owned(), service: service.to_owned() };
    assert_eq!(balancer.change(remove_pool("default"), false), Err(in_use("default", "default")));
    balancer.change(add_pool("web"), false).expect("it is made");
    assert_eq!(balancer.change(add_pool("web"), false), Err(Refusal::PoolThere { pool: "web".to_owned() }));
    balancer.change(add_service("web", &[loopback::free()], "web"), false).expect("it is added");
    for dry_run in [true, false] {
        assert_eq!(balancer.change(remove_pool("web"), dry_run), Err(in_use("web", "web")));
    }
    balancer.change(remove_service("web"), false).expect("it is removed");
    balancer.change(remove_pool("web"), true).expect("it could be removed");
    assert_eq!(balancer.pools().len(), 2);
    balancer.change(remove_pool("web"), false).expect("it is removed");
    assert_eq!(balancer.change(remove_pool("web"), false), Err(Refusal::NoPool { pool: "web".to_owned() }));
    assert_eq!(balancer.pools().len(), 1);
}

#[test]
fn a_pool_with_live_sessions_goes_with_the_last_of_them_and_leaks_nothing() {
    let servers = Server::several(3);
    let balancer = Balancer::start();
    balancer.wait_for_sessions(0);
    let descriptors = balancer.descriptors();
    let address = loopback::free();
    for round in 0..3 {
        balancer.change(add_pool("web"), false).expect("it is made");
        for server in &servers {
            balancer.add_to("web", server.address());
        }
        balancer.change(add_service("web", &[address], "web"), false).expect("it is added");
        let clients: Vec<Client> =
            (0..20).map(|number| Client::connect_from(loopback::client(number), address)).collect();
        let names: Vec<SocketAddr> = clients.iter().map(Client::server).collect();
        assert!(names.iter().all(|name| addresses(&servers).contains(name)));
        balancer.change(remove_service("web"), false).expect("it is removed");
        let report = balancer.change(remove_pool("web"), false).expect("it is removed");
        assert_eq!(report.sessions, 20, "round {round}");
        let answer = balancer.call(&Request::List { pool: "web".to_owned() });
        assert_eq!(answer, Response::Refused(Refusal::NoPool { pool: "web".to_owned() }));
        assert_eq!(balancer.sessions(None).len(), 20, "they are listed still");
        for client in &clients {
            assert_eq!(client.exchange(b"lives on"), b"lives on");
        }
        drop(clients);
    }
    wait::until("all of it is gone", || balancer.status().services.len() == 1);
    assert_eq!((balancer.pools().len(), balancer.sessions(None)), (1, vec![]));
    wait::until("every descriptor is given back", || balancer.descriptors() <= descriptors);
}

#[test]
fn a_new_pool_of_the_name_of_a_removed_one_has_none_of_its_servers() {
    let (old, new) = (Server::start(), Server::start());
    let balancer = Balancer::start();
    let address = loopback::free();
    balancer.change(add_pool("web"), false).expect("it is made");
    balancer.add_to("web", old.address());
    balancer.change(add_service("web", &[address], "web"), false).expect("it is added");
    let kept = Client::connect(address);
    assert_eq!(kept.server(), old.address());
    balancer.change(remove_service("web"), false).expect("it is removed");
    balancer.change(remove_pool("web"), false).expect("it is removed");

    balancer.change(add_pool("web"), false).expect("it is made");
    assert!(balancer.list_pool("web").servers.is_empty());
    balancer.add_to("web", new.address());
    balancer.change(add_service("web", &[address], "web"), false).expect("it is added");
    for number in 0..20 {
        assert_eq!(Client::connect_from(loopback::client(number), address).server(), new.address());
    }
    assert_eq!(kept.exchange(b"x"), b"x");
    drop(kept);
    wait::until("the old service is gone", || balancer.status().services.len() == 2);
    assert_eq!(balancer.list_pool("web").servers.len(), 1);
}

#[test]
fn a_server_may_be_in_two_pools_and_leaves_one_of_them() {
    let server = Server::start();
    let (one, two) = (loopback::free(), loopback::free());
    let text = service("one", one, "left") + &service("two", two, "right");
    let balancer = Setup::new().config(&(text + &pool("left", "", [&server]) + &pool("right", "", [&server]))).start();
    let (at_one, at_two) = (Client::connect(one), Client::connect(two));
    assert_eq!((at_one.server(), at_two.server()), (server.address(), server.address()));
    assert_eq!(balancer.remove_from("left", server.address(), Removal::Now).sessions, 1);
    at_one.assert_ended();
    assert_eq!(at_two.exchange(b"x"), b"x");
    assert!(balancer.listed_in("left", server.address()).is_none());
    assert_eq!(balancer.listed_in("right", server.address()).expect("it is there").active, 1);
}

#[test]
fn pool_set_changes_the_policy_and_a_wrong_value_changes_nothing() {
    let servers = Server::several(3);
    let balancer = Balancer::of(&servers);
    let kept = balancer.client_number(1);
    let name = kept.server();
    let set = |values| balancer.change(Change::SetPool { pool: DEFAULT_POOL.to_owned(), values }, false);
    let report = set(PoolValues { policy: Some(Policy::RoundRobin), ..PoolValues::default() }).expect("it is set");
    assert_eq!(report.sessions, 1);
    let served: Vec<_> = (0..6).map(|_| balancer.client_number(1).server()).collect();
    assert_eq!(served[..3], served[3..], "in turn");
    assert!(addresses(&servers).iter().all(|server| served.contains(server)));
    let before = balancer.settings();
    assert_eq!(set(PoolValues::default()), Err(Refusal::NothingToSet));
    let refusal = balancer
        .change(Change::SetPool { pool: "nobody".to_owned(), values: PoolValues::default() }, false)
        .expect_err("it is refused");
    assert_eq!(refusal, Refusal::NoPool { pool: "nobody".to_owned() });
    assert_eq!(balancer.settings(), before);
    set(PoolValues { policy: Some(Policy::ConsistentHash), ..PoolValues::default() }).expect("it is set");
    assert_eq!(balancer.client_number(1).server(), name, "as before");
    assert_eq!(kept.exchange(b"x"), b"x");
}

#[test]
fn balancerctl_makes_a_pool_and_a_service_and_lists_them_by_name() {
    let servers = Server::several(2);
    let balancer = Balancer::of([&servers[0]]);
    let (address, other) = (loopback::free(), servers[1].address());
    for line in [
        "pool add web --policy round-robin".to_owned(),
        format!("add {} {} --pool web --weight 3 --max-sessions 9", other.ip(), other.port()),
        format!("service add web {} {} --pool web", address.ip(), address.port()),
    ] {
        let output = balancer.ctl(&line);
        assert_eq!(said(&output), (Some(0), String::new()), "{line}");
    }
    assert_eq!(Client::connect(address).server(), other);
    let json = |line: &str| -> Value { serde_json::from_slice(&balancer.ctl(line).stdout).expect("JSON") };
    let list = json("list --pool web --json");
    assert_eq!((list["pool"].as_str(), list["servers"].as_array().map(Vec::len)), (Some("web"), Some(1)));
    let listed = &list["servers"][0];
    assert_eq!(listed["server"].as_str(), Some(other.to_string().as_str()));
    assert_eq!((listed["weight"].as_u64(), listed["max_sessions"].as_u64()), (Some(3), Some(9)));
    let table = String::from_utf8(balancer.ctl("list --pool web").stdout).expect("text");
    assert!(table.contains(&other.to_string()) && !table.contains(&servers[0].address().to_string()), "{table}");
    for (line, names) in [("pool list", ["default", "web"]), ("service list", ["default", "web"])] {
        let table = String::from_utf8(balancer.ctl(line).stdout).expect("text");
        assert!(names.iter().all(|name| table.contains(name)), "{table}");
    }
    for line in ["service remove web", "pool remove web"] {
        assert_eq!(said(&balancer.ctl(line)), (Some(0), String::new()), "{line}");
    }
    assert!(!listens(address));
}
