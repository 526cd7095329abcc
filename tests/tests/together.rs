//! Commands and file together: what a command changed holds until the file says something new of just that. Users of
//! HAProxy have asked for it, each story from another side: haproxy/haproxy 199, 953, 1412, 2085 and 2103.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroU64;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::balancer::WAIT;
use tests::config::{pool, service, weighted};
use tests::noise::Noise;
use tests::questions::{lines, served_at, state, weight};
use tests::{Balancer, Client, Server, Setup, loopback, wait};
use wire::control::{PoolValues, ServerValues};
use wire::report::ServerState;
use wire::settings::{AdminState, Policy, ServerSettings, ServiceSettings};
use wire::{Change, Refusal};

/// A file of one service and its pool, whose servers have these weights.
fn file(listen: SocketAddr, servers: &[Server], weights: &[u32]) -> String {
    let servers = servers.iter().map(Server::address).zip(weights.iter().copied());
    service("web", listen, "web") + &weighted("web", "", servers)
}

/// A balancer with these servers, each of weight 1, in its file.
fn configured(servers: &[Server]) -> (Balancer, SocketAddr) {
    let listen = loopback::free();
    (Setup::new().config(&file(listen, servers, &vec![1; servers.len()])).start(), listen)
}

fn settings(balancer: &Balancer, server: &Server) -> Option<ServerSettings> {
    balancer.settings().now.pools["web"].servers.get(&server.address()).copied()
}

fn weight_of(balancer: &Balancer, server: &Server) -> Option<u32> {
    settings(balancer, server).map(|settings| settings.weight)
}

fn weights_of(balancer: &Balancer, servers: &[Server]) -> Vec<Option<u32>> {
    servers.iter().map(|server| weight_of(balancer, server)).collect()
}

/// A crash and a start. What the start makes of file and commands is saved in its own time.
fn restart(balancer: &mut Balancer) {
    balancer.restart();
    wait::until("it is saved", || {
        let kept = fs::read_to_string(balancer.file("control.state")).unwrap_or_default();
        kept.matches("[[").count() <= balancer.status().deviations.len()
    });
}

/// A file is read again in each of these ways; what holds must not depend on which.
fn read_again(balancer: &mut Balancer) -> [fn(&mut Balancer); 2] {
    assert!(balancer.has_ended().is_none());
    [|balancer| drop(balancer.reload().expect("it is taken")), restart]
}

/// haproxy#199: state and weight were lost with every reload unless somebody saved them just before.
#[test]
fn what_a_command_set_survives_reloads_of_an_unchanged_file_and_crashes() {
    let servers = Server::several(3);
    let (mut balancer, _) = configured(&servers);
    let values = ServerValues { max_sessions: Some(NonZeroU64::new(7)), ..weight(5) };
    balancer.set("web", servers[0].address(), values);
    balancer.set("web", servers[1].address(), state(AdminState::Drain));
    let (now, digest) = (balancer.settings(), balancer.digest());
    let expected = ServerSettings { weight: 5, max_sessions: NonZeroU64::new(7), ..ServerSettings::default() };
    assert_eq!(settings(&balancer, &servers[0]), Some(expected));
    for round in 0..4 {
        if round % 2 == 0 {
            balancer.reload().expect("it is taken");
            balancer.signal(Signal::SIGHUP);
            balancer.wait_for_log("configuration file read");
        } else {
            balancer.restart();
        }
        assert_eq!((balancer.settings(), balancer.digest()), (now.clone(), digest));
        let served = served_at(balancer.address(), 0..20);
        assert!(served.iter().all(|server| *server != servers[1].address()), "it drains from the first moment");
    }
}

/// haproxy#1412 and haproxy#2103: the port of the state file came before the port of the file.
#[test]
fn another_port_in_the_file_is_another_server_and_gets_the_clients() {
    for way in 0..2 {
        let servers = Server::several(3);
        let (mut balancer, listen) = configured(&servers[..2]);
        balancer.set("web", servers[0].address(), weight(9));
        balancer.configure(&file(listen, &servers[1..], &[1, 1]));
        read_again(&mut balancer)[way](&mut balancer);
        assert_eq!(weight_of(&balancer, &servers[0]), None);
        assert_eq!(weight_of(&balancer, &servers[2]), Some(1), "nothing of the old one sticks to it");
        let served = served_at(balancer.address(), 0..40);
        assert!(servers[1..].iter().all(|server| served.contains(&server.address())));
        assert!(!served.contains(&servers[0].address()));
        assert_eq!(balancer.deviations(), [""; 0]);
    }
}

#[test]
fn a_value_that_changes_in_the_file_wins_over_the_commands() {
    for way in 0..2 {
        let servers = Server::several(2);
        let (mut balancer, listen) = configured(&servers);
        balancer.set("web", servers[0].address(), weight(5));
        balancer.set("web", servers[1].address(), weight(6));
        balancer.configure(&file(listen, &servers, &[3, 1]));
        read_again(&mut balancer)[way](&mut balancer);
        assert_eq!(weight_of(&balancer, &servers[0]), Some(3));
        assert_eq!(weight_of(&balancer, &servers[1]), Some(6), "of this one the file says the same");
        assert_eq!(balancer.deviations(), [format!("server {} of pool web: weight 1 -> 6", servers[1].address())]);
        // The command is forgotten: the file's old value does not bring it back.
        balancer.configure(&file(listen, &servers, &[1, 1]));
        read_again(&mut balancer)[way](&mut balancer);
        assert_eq!(weight_of(&balancer, &servers[0]), Some(1));
    }
}

/// haproxy#953: all that was changed by command of a server was kept, or all of it was lost.
#[test]
fn another_value_of_the_same_server_keeps_the_commands() {
    for way in 0..2 {
        let servers = Server::several(2);
        let (mut balancer, listen) = configured(&servers);
        balancer.set("web", servers[0].address(), state(AdminState::Maintenance));
        balancer.configure(&file(listen, &servers, &[4, 1]));
        read_again(&mut balancer)[way](&mut balancer);
        let expected = ServerSettings { weight: 4, state: AdminState::Maintenance, ..ServerSettings::default() };
        assert_eq!(settings(&balancer, &servers[0]), Some(expected));
        assert_eq!(balancer.client().server(), servers[1].address());
    }
}

/// haproxy#2085: for a moment after a reload clients came to servers that were out of production.
#[test]
fn a_server_in_maintenance_gets_nobody_while_files_are_read_again() {
    let servers = Server::several(2);
    let (balancer, listen) = configured(&servers);
    balancer.set("web", servers[0].address(), state(AdminState::Maintenance));
    tests::load::during(&[(listen, vec![servers[1].address()])], |load| {
        for round in 0..10 {
            load.pass(20);
            balancer.configure(&file(listen, &servers, &[round % 3 + 2, 1]));
            balancer.reload().expect("it is taken");
        }
    });
    assert_eq!(servers[0].accepted(), 0);
}

#[test]
fn a_server_that_a_command_removed_stays_away_until_the_file_says_something_new_of_it() {
    let servers = Server::several(3);
    let (mut balancer, listen) = configured(&servers);
    balancer.remove_from("web", servers[0].address(), WAIT);
    for weights in [[1, 1, 1], [1, 5, 1], [1, 5, 2]] {
        balancer.configure(&file(listen, &servers, &weights));
        for way in read_again(&mut balancer) {
            way(&mut balancer);
            assert_eq!(weight_of(&balancer, &servers[0]), None);
            assert_eq!(balancer.deviations(), [format!("server {} of pool web: gone", servers[0].address())]);
        }
    }
    balancer.configure(&file(listen, &servers, &[2, 5, 2]));
    balancer.reload().expect("it is taken");
    assert_eq!(weight_of(&balancer, &servers[0]), Some(2));
    assert_eq!(balancer.deviations(), [""; 0]);
}

#[test]
fn a_server_that_went_from_the_file_and_comes_again_is_a_new_one() {
    let servers = Server::several(2);
    let (mut balancer, listen) = configured(&servers);
    balancer.remove_from("web", servers[0].address(), WAIT);
    balancer.set("web", servers[1].address(), weight(8));
    balancer.configure(&(service("web", listen, "web") + &pool("web", "", [])));
    balancer.reload().expect("it is taken");
    assert!(balancer.list_pool("web").servers.is_empty(), "what the file drops goes, whatever commands did to it");
    assert_eq!(balancer.deviations(), [""; 0]);
    balancer.configure(&file(listen, &servers, &[1, 1]));
    balancer.restart();
    assert_eq!(weights_of(&balancer, &servers), [Some(1), Some(1)]);
}

/// haproxy#199 and haproxy#2103: servers made by command were gone after a reload.
#[test]
fn a_server_that_a_command_added_stays_until_the_file_names_it() {
    let servers = Server::several(3);
    let (mut balancer, listen) = configured(&servers[..2]);
    let added = servers[2].address();
    let settings = ServerSettings { weight: 4, ..ServerSettings::default() };
    balancer.change(Change::Add { pool: "web".to_owned(), server: added, settings }, false).expect("it is added");
    for weights in [[1, 1], [2, 1]] {
        balancer.configure(&file(listen, &servers[..2], &weights));
        for way in read_again(&mut balancer) {
            way(&mut balancer);
            assert_eq!(weight_of(&balancer, &servers[2]), Some(4));
            assert_eq!(balancer.deviations(), [format!("server {added} of pool web: new")]);
            assert!(served_at(balancer.address(), 0..40).contains(&added));
        }
    }
    balancer.configure(&file(listen, &servers, &[2, 1, 9]));
    balancer.reload().expect("it is taken");
    assert_eq!(weight_of(&balancer, &servers[2]), Some(9));
    assert_eq!(balancer.deviations(), [""; 0]);
}

#[test]
fn a_command_that_goes_back_to_what_the_file_says_leaves_nothing_behind() {
    let servers = Server::several(2);
    let (mut balancer, listen) = configured(&servers);
    balancer.set("web", servers[0].address(), weight(5));
    balancer.set("web", servers[0].address(), weight(1));
    balancer.remove_from("web", servers[1].address(), WAIT);
    balancer.add_to("web", servers[1].address());
    assert_eq!(balancer.deviations(), [""; 0]);
    let kept = fs::read_to_string(balancer.file("control.state")).expect("text");
    assert!(!kept.contains("[[") && kept.contains("version = 3"), "{kept}");
    balancer.configure(&file(listen, &servers, &[7, 8]));
    balancer.restart();
    assert_eq!(weights_of(&balancer, &servers), [Some(7), Some(8)]);
}

#[test]
fn values_of_a_pool_are_kept_and_lost_each_by_itself() {
    for way in 0..2 {
        let servers = Server::several(2);
        let (mut balancer, listen) = configured(&servers);
        let values =
            PoolValues { policy: Some(Policy::RoundRobin), slow_start_ms: Some(5000), ..PoolValues::default() };
        balancer.change(Change::SetPool { pool: "web".to_owned(), values }, false).expect("it is set");
        balancer.configure(&(service("web", listen, "web") + &pool("web", "slow_start = \"9s\"", &servers)));
        read_again(&mut balancer)[way](&mut balancer);
        let now = balancer.list_pool("web").settings;
        assert_eq!((now.policy, now.slow_start_ms), (Policy::RoundRobin, 9000));
        assert_eq!(balancer.deviations(), ["pool web: policy consistent-hash -> round-robin"]);
        let served: Vec<_> = (0..4).map(|_| balancer.client_number(1).server()).collect();
        assert!(served[0] != served[1] && served[..2] == served[2..], "{served:?}");
    }
}

#[test]
fn a_service_made_by_command_stays_and_one_removed_by_command_stays_away() {
    let servers = Server::several(2);
    let (web, other, more) = (loopback::free(), loopback::free(), loopback::free());
    let text = service("web", web, "web") + &service("other", other, "web") + &pool("web", "", &servers);
    let mut balancer = Setup::new().config(&text).start();
    let settings = ServiceSettings::new(vec![more], "web");
    balancer.change(Change::AddService { service: "more".to_owned(), settings }, false).expect("it is added");
    balancer.change(Change::RemoveService { service: "other".to_owned() }, false).expect("it is removed");
    let known: Vec<_> = servers.iter().map(Server::address).collect();
    for way in read_again(&mut balancer) {
        way(&mut balancer);
        assert!(known.contains(&Client::connect(more).server()) && known.contains(&Client::connect(web).server()));
        assert!(Client::try_from(loopback::client(0), other).is_err());
        assert_eq!(balancer.deviations(), ["service more: new", "service other: gone"]);
    }
    balancer.configure(&text.replace("[service.other]", "[service.other]\nmax_sessions = 5"));
    balancer.reload().expect("it is taken");
    assert!(known.contains(&Client::connect(other).server()));
    assert_eq!(balancer.deviations(), ["service more: new"]);
}

#[test]
fn what_file_and_commands_cannot_be_together_is_refused_as_a_whole() {
    let servers = Server::several(2);
    let (mut balancer, listen) = configured(&servers);
    let more = loopback::free();
    let settings = ServiceSettings::new(vec![more], "web");
    balancer.change(Change::AddService { service: "more".to_owned(), settings }, false).expect("it is added");
    let before = balancer.settings();
    let renamed = service("web", listen, "new") + &pool("new", "", &servers);
    let taken = file(listen, &servers, &[2, 2]) + &service("mine", more, "web");
    let itself =
        file(listen, &servers, &[2, 2]).replace("servers = [", &format!("servers = [ {{ address = \"{more}\" }},"));
    for (text, words) in [(renamed, "more"), (taken, &more.to_string()), (itself, &more.to_string())] {
        balancer.configure(&text);
        let said = balancer.reload().expect_err("it is refused").to_string();
        assert!(said.contains(words) && said.lines().count() == 1, "{said}");
        assert_eq!(balancer.status().reload_failure, Some(said));
        assert_eq!(balancer.settings(), before);
        assert!(servers.iter().any(|server| server.address() == Client::connect(more).server()));
    }
    balancer.configure(&file(listen, &servers, &[1, 1]));
    balancer.restart();
    assert_eq!(balancer.settings(), before);
}

#[test]
fn list_and_status_show_what_deviates() {
    let servers = Server::several(3);
    let (balancer, _) = configured(&servers[..2]);
    let plain = String::from_utf8(balancer.ctl("list --pool web").stdout).expect("text");
    assert!(!plain.contains('*'), "{plain}");
    balancer.set("web", servers[0].address(), weight(5));
    balancer.add_to("web", servers[2].address());
    balancer.remove_from("web", servers[1].address(), WAIT);
    let mut expected = vec![
        format!("server {} of pool web: weight 1 -> 5", servers[0].address()),
        format!("server {} of pool web: gone", servers[1].address()),
        format!("server {} of pool web: new", servers[2].address()),
    ];
    expected.sort_unstable();
    let sorted = |mut lines: Vec<String>| {
        lines.sort_unstable();
        lines
    };
    assert_eq!(sorted(balancer.deviations()), expected);
    assert_eq!(sorted(lines(&balancer.list_pool("web").deviations)), expected);
    assert_eq!(sorted(lines(&balancer.diff(None).expect("it would be taken").deviations)), expected);
    let said = balancer.settings();
    assert_eq!(said.said.expect("a file").pools["web"].servers.len(), 2);
    let list = String::from_utf8(balancer.ctl("list --pool web").stdout).expect("text");
    for server in [&servers[0], &servers[2]] {
        let line = list.lines().find(|line| line.contains(&server.address().to_string())).expect("it is listed");
        assert!(line.contains('*'), "{list}");
    }
    assert!(list.contains(&servers[1].address().to_string()), "what is gone of the file is told: {list}");
    let status: Value = serde_json::from_slice(&balancer.ctl("status --json").stdout).expect("JSON");
    assert_eq!(status["deviations"].as_array().map(Vec::len), Some(3));
    let status = String::from_utf8(balancer.ctl("status").stdout).expect("text");
    assert!(status.contains("file"), "{status}");
}

/// Lines of a file that are comments, in their order.
fn comments(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| Some(line.split_once('#')?.1)).collect()
}

#[test]
fn save_makes_file_and_present_one_and_keeps_comments_and_order() {
    let servers = Server::several(4);
    let listen = loopback::free();
    let at = |number: usize| servers[number].address();
    let text = format!(
        "# ours, since 2019\n[balancer]\nmax_sessions = 1000 # enough\n\n[pool.web] # before its service\n# by hand\n\
         policy = \"round-robin\"\nservers = [\n    # the big one\n    {{ address = \"{}\", weight = 2 }}, # rack 1\n    \
         {{ address = \"{}\" }}, # rack 2\n    {{ address = \"{}\" }}, # rack 3\n]\n\n\
         [service.web] # who else\npool = \"web\"\nlisten = \"{listen}\" # a comment\n# the end\n",
        at(0),
        at(1),
        at(2)
    );
    let mut balancer = Setup::new().config(&text).start();
    let path = balancer.setup().config_path();
    balancer.set("web", at(0), weight(7));
    balancer.set("web", at(1), state(AdminState::Drain));
    balancer.add_to("web", at(3));
    balancer.remove_from("web", at(2), WAIT);
    let values = PoolValues { policy: Some(Policy::LeastConnections), ..PoolValues::default() };
    balancer.change(Change::SetPool { pool: "web".to_owned(), values }, false).expect("it is set");
    let now = balancer.settings().now;

    let output = balancer.ctl("save --dry-run");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_to_string(&path).expect("text"), text, "nothing is written");
    let output = balancer.ctl("save");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let saved = fs::read_to_string(&path).expect("text");
    let kept: Vec<&str> = comments(&text).into_iter().filter(|comment| *comment != " rack 3").collect();
    let found: Vec<&str> = comments(&saved).into_iter().filter(|comment| *comment != " rack 3").collect();
    assert_eq!(found, kept, "{saved}");
    let places: Vec<_> = ["[balancer]", "[pool.web]", "[service.web]"].map(|it| saved.find(it)).into();
    assert!(places.is_sorted() && places.iter().all(Option::is_some), "{saved}");
    wait::until("nothing deviates", || balancer.deviations().is_empty());
    assert_eq!(balancer.diff(Some(&saved)).expect("it would be taken").changes, []);
    assert_eq!(balancer.settings().now, now);

    // The file alone says all of it.
    balancer.crash();
    fs::remove_file(balancer.file("control.state")).expect("removed");
    balancer.restart();
    assert_eq!(balancer.settings().now, now);
    assert_eq!(balancer.deviations(), [""; 0]);
}

#[test]
fn save_leaves_a_file_alone_that_somebody_changed_meanwhile() {
    let servers = Server::several(2);
    let (balancer, listen) = configured(&servers);
    balancer.set("web", servers[0].address(), weight(7));
    let changed = file(listen, &servers, &[1, 3]);
    balancer.configure(&changed);
    let output = balancer.ctl("save");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert_eq!(fs::read_to_string(balancer.setup().config_path()).expect("text"), changed);
    balancer.reload().expect("it is taken");
    assert_eq!(balancer.ctl("save").status.code(), Some(0));
    wait::until("nothing deviates", || balancer.deviations().is_empty());
    assert_eq!(weights_of(&balancer, &servers), [Some(7), Some(3)]);
}

#[test]
fn a_state_file_of_version_1_is_read_beside_a_file() {
    let servers = Server::several(2);
    let setup = Setup::new();
    let listen = loopback::free();
    let text = service("default", listen, "default") + &pool("default", "", &servers[..1]);
    let old = format!("version = 1\n\n[[server]]\naddress = \"{}\"\nweight = 3\n", servers[1].address());
    fs::write(setup.directory().join("control.state"), old).expect("written");
    let mut balancer = setup.config(&text).start();
    let listed = balancer.listed(servers[1].address());
    assert_eq!((listed.weight, listed.state), (3, ServerState::Ready));
    assert!(served_at(listen, 0..40).contains(&servers[1].address()));
    balancer.set("default", servers[1].address(), weight(4));
    let kept = fs::read_to_string(balancer.file("control.state")).expect("text");
    assert!(kept.contains("version = 3"), "{kept}");
    balancer.restart();
    assert_eq!(balancer.listed(servers[1].address()).weight, 4);
}

#[test]
fn a_server_that_leaves_can_be_named_by_the_file_and_is_there_again() {
    let servers = Server::several(2);
    let (balancer, listen) = configured(&servers);
    let clients: Vec<Client> = (0..20).map(|number| balancer.client_number(number)).collect();
    let names: Vec<SocketAddr> = clients.iter().map(Client::server).collect();
    let gone = servers[0].address();
    assert!(names.contains(&gone));
    balancer.remove_from("web", gone, WAIT);
    balancer.configure(&file(listen, &servers, &[2, 1]));
    balancer.reload().expect("it is taken");
    let listed = balancer.listed_in("web", gone).expect("it is there");
    assert_eq!((listed.state, listed.weight, listed.removal), (ServerState::Ready, 2, None));
    for client in &clients {
        assert_eq!(client.exchange(b"x"), b"x");
    }
    let again = Change::Add { pool: "web".to_owned(), server: gone, settings: ServerSettings::default() };
    assert_eq!(balancer.change(again, false), Err(Refusal::AlreadyThere { server: gone, weight: 2 }));
}

#[test]
fn the_service_of_the_command_line_stands_beside_those_of_the_file() {
    let servers = Server::several(3);
    let (own, listen) = (loopback::free(), loopback::free());
    let setup = Setup::new().config(&file(listen, &servers[..1], &[1])).options(&format!("--listen {own}"));
    let mut balancer = setup.start();
    balancer.add(servers[1].address());
    assert_eq!(balancer.deviations(), [format!("server {} of pool default: new", servers[1].address())]);
    balancer.configure(&file(listen, &servers[2..], &[1]));
    for way in read_again(&mut balancer) {
        way(&mut balancer);
        assert_eq!(Client::connect(own).server(), servers[1].address());
        assert_eq!(Client::connect(listen).server(), servers[2].address());
    }
    // The file may say more of the pool, but not of the service.
    let more =
        pool("default", "policy = \"round-robin\"", &servers[..1]) + &service("more", loopback::free(), "default");
    balancer.configure(&(file(listen, &servers[2..], &[1]) + &more));
    balancer.reload().expect("it is taken");
    let served: Vec<_> = (0..4).map(|_| Client::connect(own).server()).collect();
    assert!(served[0] != served[1] && served[..2] == served[2..], "{served:?}");
    balancer.configure(&(file(listen, &servers[2..], &[1]) + &service("default", loopback::free(), "web")));
    let said = balancer.reload().expect_err("it is refused").to_string();
    assert!(said.contains("--listen"), "{said}");
    assert_eq!(Client::connect(listen).server(), servers[2].address());
}

#[test]
fn whatever_happens_each_value_is_the_files_or_a_later_commands() {
    let servers: Vec<Server> = (0..4).map(|_| Server::refusing()).collect();
    let (mut balancer, listen) = configured(&servers);
    let mut noise = Noise::new();
    let mut draw = |below: u64| noise.number() % below;
    let (mut text, mut said, mut now) = ([1u32; 4], [1u32; 4], [1u32; 4]);
    for step in 0..120 {
        let (at, value) = (draw(4) as usize, draw(4) as u32 + 1);
        match draw(4) {
            0 => {
                balancer.set("web", servers[at].address(), weight(value));
                now[at] = value;
            }
            1 => {
                text[at] = value;
                balancer.configure(&file(listen, &servers, &text));
            }
            way => {
                read_again(&mut balancer)[way as usize - 2](&mut balancer);
                for at in 0..4 {
                    if text[at] != said[at] {
                        now[at] = text[at];
                    }
                }
                said = text;
            }
        }
        let held = weights_of(&balancer, &servers);
        assert_eq!(held, now.map(Some), "step {step}");
        let deviations = said.iter().zip(&now).filter(|(said, now)| said != now).count();
        assert_eq!(balancer.deviations().len(), deviations, "step {step}");
    }
}
