//! The configuration file read again: all of it or nothing, and nobody notices.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::thread;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use tests::config::{pool, service, weighted};
use tests::load;
use tests::questions::lines;
use tests::unprivileged::Unprivileged;
use tests::{Balancer, Client, Server, Setup, loopback, wait};
use wire::control::{FileText, Removal};
use wire::report::{EndReason, ServerState, StatusReport};
use wire::settings::FILE_LIMIT;
use wire::{Refusal, Request, Response};

/// What the log says when a file was taken.
const READ: &str = "configuration file read";

fn addresses<'a>(servers: impl IntoIterator<Item = &'a Server>) -> Vec<SocketAddr> {
    servers.into_iter().map(Server::address).collect()
}

/// One service `web` at `listen`, and its pool.
fn web(listen: SocketAddr, keys: &str, servers: &[Server]) -> String {
    service("web", listen, "web") + &pool("web", keys, servers)
}

/// A balancer of one service `web` with its pool.
fn configured(keys: &str, servers: &[Server]) -> (Balancer, SocketAddr) {
    let listen = loopback::free();
    (Setup::new().config(&web(listen, keys, servers)).start(), listen)
}

fn listens(address: SocketAddr) -> bool {
    Client::try_from(loopback::client(0), address).is_ok()
}

fn times_read(balancer: &Balancer) -> usize {
    balancer.log().matches(READ).count()
}

/// What must not change by itself.
fn timeless(status: StatusReport) -> StatusReport {
    StatusReport { uptime_ms: 0, longest_turn_us: 0, last_reload: None, ..status }
}

/// The state file: which one it is, and when it was written.
fn state_file(balancer: &Balancer) -> Option<(u64, i64, i64)> {
    let data = fs::metadata(balancer.file("control.state")).ok()?;
    Some((data.ino(), data.mtime(), data.mtime_nsec()))
}

#[test]
fn everything_changes_at_once_under_load_and_no_request_fails() {
    let servers = Server::several(6);
    let [web, api, old, new] = [(); 4].map(|()| loopback::free());
    let first = [service("web", web, "web"), service("api", api, "api"), service("old", old, "old")].concat()
        + &weighted("web", "", [(servers[0].address(), 1), (servers[1].address(), 2)])
        + &pool("api", "policy = \"round-robin\"", [&servers[2]])
        + &pool("old", "", [&servers[3]]);
    let second = [service("web", web, "web"), service("api", api, "other"), service("new", new, "other")].concat()
        + &weighted("web", "policy = \"least-connections\"", [(servers[1].address(), 7), (servers[4].address(), 1)])
        + &pool("other", "key = \"client-ip-port\"", [&servers[2], &servers[5]]);
    let balancer = Setup::new().config(&first).start();
    let kept: Vec<Client> = [web, api, old].into_iter().map(Client::connect).collect();
    let names: Vec<SocketAddr> = kept.iter().map(Client::server).collect();
    assert_eq!(names[1..], [servers[2].address(), servers[3].address()]);
    let places =
        [(web, addresses([&servers[0], &servers[1], &servers[4]])), (api, addresses([&servers[2], &servers[5]]))];
    let requests = load::during(&places, |load| {
        for round in 0..20 {
            load.pass(20);
            let (text, there, gone) = if round % 2 == 0 { (&second, new, old) } else { (&first, old, new) };
            balancer.configure(text);
            let report = balancer.reload().expect("it is taken");
            assert!(!report.changes.is_empty() && report.deviations.is_empty(), "{report:?}");
            assert!(listens(there) && !listens(gone));
            for (client, number) in kept.iter().zip(0u32..) {
                let bytes = [number.to_le_bytes(), u32::to_le_bytes(round)].concat();
                assert_eq!(client.exchange(&bytes), bytes);
            }
        }
    });
    let said = balancer.settings();
    assert_eq!(said.said.as_ref(), Some(&said.now));
    balancer.wait_for_all_sessions(3);
    let total = |name| balancer.service_named(name).total;
    assert_eq!(total("web") + total("api"), requests as u64 + 2);
    drop(kept);
    balancer.wait_for_all_sessions(0);
    let closed = [(EndReason::ClientClosed, requests as u64 + 2)].into();
    let mut ended = balancer.service_named("web").ended;
    for (reason, count) in balancer.service_named("api").ended {
        *ended.entry(reason).or_default() += count;
    }
    assert_eq!(ended, closed, "nothing ended for another reason");
}

#[test]
fn a_file_that_may_be_missing_is_used_as_soon_as_it_is_there_and_then_alone() {
    let servers = Server::several(2);
    let setup = Setup::new();
    let option = format!("--config-if-exists {}", setup.config_path().display());
    let mut balancer = setup.options(&option).start();
    let by_argument = balancer.address();
    assert!(listens(by_argument), "without the file the address of the arguments holds");
    assert_eq!((balancer.status().config_file, balancer.status().last_reload), (None, None));
    let refusal = balancer.reload().expect_err("there is no file yet");
    let last = balancer.status().last_reload.expect("one, which failed");
    assert_eq!((last.by.as_str(), last.changes), ("command", None));
    assert!(refusal.to_string().contains("balancer.toml: it cannot be opened"), "{refusal}");
    assert!(listens(by_argument));

    let listen = loopback::free();
    balancer.configure(&web(listen, "", &servers[..1]));
    balancer.reload().expect("the file is there now");
    assert!(!listens(by_argument), "the file holds alone");
    let last = balancer.status().last_reload.expect("one, which was taken");
    assert!(last.changes.is_some_and(|changes| changes > 0) && last.at.ends_with('Z'), "{last:?}");
    assert_eq!(Client::connect(listen).server(), servers[0].address());
    let path = balancer.setup().config_path();
    assert_eq!(balancer.status().config_file.map(PathBuf::from), Some(path.clone()));

    // A file that has been used and is gone is a mistake, not a wish for what the arguments say.
    fs::remove_file(&path).expect("removed");
    balancer.reload().expect_err("the file is gone");
    assert_eq!(Client::connect(listen).server(), servers[0].address());

    balancer.configure(&web(listen, "", &servers[1..]));
    balancer.crash();
    balancer.restart();
    assert_eq!(Client::connect(listen).server(), servers[1].address());
    assert!(!listens(by_argument), "the file holds alone after a start, too");
}

#[test]
fn a_file_that_may_be_missing_must_be_right_when_it_is_there() {
    let setup = Setup::new();
    fs::write(setup.config_path(), "[balancer]\nnonsense = 1\n").expect("written");
    let option = format!("--config-if-exists {}", setup.config_path().display());
    let setup = setup.options(&option);
    let output = setup.run();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("balancer.toml:2:"), "{output:?}");
}

#[test]
fn a_file_that_did_not_change_changes_nothing() {
    let servers = Server::several(3);
    let (balancer, _) = configured("max_load = 1.5", &servers);
    let clients: Vec<Client> = (0..10).map(|number| balancer.client_number(number)).collect();
    for client in &clients {
        assert!(addresses(&servers).contains(&client.server()));
        assert_eq!(client.exchange(b"counted"), b"counted");
    }
    balancer.set("web", servers[0].address(), tests::questions::weight(3));
    wait::until("all bytes are counted", || balancer.service().bytes_in == 70);
    let seen = || {
        let sessions: Vec<_> =
            balancer.sessions(None).into_iter().map(|it| (it.session, it.server, it.bytes_in)).collect();
        (timeless(balancer.status()), balancer.timeless_list("web"), balancer.pools(), sessions, state_file(&balancer))
    };
    let before = seen();
    assert!(before.4.is_some());
    for _ in 0..3 {
        let report = balancer.reload().expect("it is taken");
        assert_eq!((report.changes, report.pools), (vec![], vec![]));
        assert_eq!(lines(&report.deviations).len(), 1);
    }
    // Other blanks and another order are the same file.
    let text = fs::read_to_string(balancer.setup().config_path()).expect("text");
    balancer.configure(&format!("# the same\n\n{}", text.replace(" = ", "=")));
    assert_eq!(balancer.reload().expect("it is taken").changes, []);
    assert_eq!(seen(), before);
    for client in &clients {
        assert_eq!(client.exchange(b"x"), b"x");
    }
}

#[test]
fn a_broken_file_changes_nothing_and_its_fault_is_told_everywhere_until_a_good_one() {
    let servers = Server::several(2);
    let (balancer, listen) = configured("", &servers);
    let good = web(listen, "", &servers);
    let client = balancer.client_number(1);
    let name = client.server();
    let path = balancer.setup().config_path();
    let before = (balancer.settings(), balancer.descriptors(), balancer.service());
    for (text, place, words) in [
        (good.replace("[pool.web]\n", "[pool.web]\npolcy = \"round-robin\"\n"), ":6:1", "policy"),
        (good.replace("weight = 1", "weight = 257"), ":8:", "weight"),
        (good.replace("pool = \"web\"", "pool = \"wbe\""), ":3:", "wbe"),
        (good.replace(&listen.to_string(), "localhost"), ":2:", "listen"),
        (format!("{good}\n[pool.lonely]\n"), "", "lonely"),
        (format!("{good}\n[pool"), ":", ""),
    ] {
        assert_ne!(text, good);
        balancer.configure(&text);
        let refusal = balancer.reload().expect_err("it is refused");
        let said = refusal.to_string();
        assert!(matches!(refusal, Refusal::BadFile { .. }), "{refusal:?}");
        assert!(said.contains(&format!("{}{place}", path.display())) && said.contains(words), "{text}: {said}");
        // Both servers have the weight that none may have.
        assert_eq!(said.lines().count(), if words == "weight" { 2 } else { 1 }, "{said}");
        assert!(said.lines().all(|line| line.starts_with(&path.display().to_string())), "{said}");
        assert_eq!(balancer.status().reload_failure.as_ref(), Some(&said));
        balancer.wait_for_log(&format!("error={}", wire::logfmt(&said)));
        let output = balancer.ctl("reload");
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(String::from_utf8(output.stderr).expect("text"), format!("balancerctl: {said}\n"));
        let status = balancer.ctl("status").stdout;
        let status = String::from_utf8(status).expect("text");
        assert!(said.lines().all(|line| status.contains(line)), "{status}");
    }
    let service = balancer.service();
    assert_eq!((balancer.settings(), service), (before.0, before.2));
    assert_eq!(client.exchange(b"x"), b"x");
    assert_eq!(balancer.client_number(1).server(), name);
    balancer.configure(&good);
    assert_eq!(balancer.reload().expect("it is taken").changes, []);
    assert_eq!(balancer.status().reload_failure, None);
    wait::until("every descriptor is given back", || balancer.descriptors() <= before.1);
}

#[test]
fn a_dry_run_and_a_diff_of_a_broken_file_are_no_failed_reload() {
    let servers = Server::several(1);
    let (balancer, listen) = configured("", &servers);
    balancer.configure("nonsense");
    balancer.diff(None).expect_err("it would be refused");
    let refusal = balancer.diff(Some("[service")).expect_err("it would be refused");
    assert!(refusal.to_string().contains("other.toml:1:"), "{refusal}");
    assert_eq!(balancer.status().reload_failure, None);
    // It is only looked at, whatever is asked.
    let instead = FileText { name: "x".to_owned(), text: web(listen, "slow_start = \"1s\"", &servers) };
    let _ = balancer.call(&Request::Reload { instead: Some(instead), dry_run: false });
    assert_eq!(balancer.list_pool("web").settings.slow_start_ms, 0);
    assert_eq!(balancer.client().server(), servers[0].address());
}

#[test]
fn what_is_no_file_is_one_error_each_and_changes_nothing() {
    let servers = Server::several(1);
    let (balancer, listen) = configured("", &servers);
    let path = balancer.setup().config_path();
    let good = web(listen, "", &servers);
    let before = balancer.settings();
    let big = [good.as_bytes(), &vec![b'#'; FILE_LIMIT]].concat();
    let latin = [good.as_bytes(), b"# gr\xfc\xdfe\n"].concat();
    let put = |bytes: &[u8]| fs::write(&path, bytes).expect("written");
    let ways: [(&str, &dyn Fn()); 7] = [
        ("director", &|| fs::create_dir(&path).expect("made")),
        ("service", &|| put(b"")),
        ("8388608 bytes", &|| put(&big)),
        ("UTF-8", &|| put(&latin)),
        ("regular file", &|| mkfifo(&path, Mode::from_bits_truncate(0o600)).expect("made")),
        ("o such file", &|| {}),
        ("o such file", &|| symlink(path.with_extension("nowhere"), &path).expect("made")),
    ];
    for (words, make) in ways {
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
        make();
        let said = balancer.reload().expect_err("it is refused").to_string();
        assert!(said.contains("balancer.toml") && said.contains(words), "{words}: {said}");
        // Both servers have the weight that none may have.
        assert_eq!(said.lines().count(), if words == "weight" { 2 } else { 1 }, "{said}");
        assert!(said.lines().all(|line| line.starts_with(&path.display().to_string())), "{said}");
        assert_eq!(balancer.status().reload_failure, Some(said));
        assert_eq!(balancer.settings(), before);
        assert_eq!(balancer.client().server(), servers[0].address());
    }
    fs::remove_file(&path).expect("removed");
    balancer.configure(&good);
    balancer.reload().expect("it is taken");
    assert_eq!(balancer.status().reload_failure, None);
}

#[test]
fn a_file_that_may_not_be_read_is_one_error_and_changes_nothing() {
    let servers = Server::several(1);
    let listen = loopback::free();
    let setup = Setup::new().config(&web(listen, "", &servers));
    let Some(balancer) = Unprivileged::start(&setup) else { return };
    let before = balancer.call(&Request::Settings);
    fs::set_permissions(setup.config_path(), fs::Permissions::from_mode(0o000)).expect("set");
    for _ in 0..2 {
        let Response::Refused(refusal) = balancer.call(&Request::Reload { instead: None, dry_run: false }) else {
            panic!("it is refused")
        };
        let said = refusal.to_string();
        assert!(said.contains("balancer.toml") && said.contains("ermission denied"), "{said}");
        assert_eq!(balancer.call(&Request::Settings), before);
        assert_eq!(Client::connect(listen).server(), servers[0].address());
    }
    fs::set_permissions(setup.config_path(), fs::Permissions::from_mode(0o600)).expect("set");
    let answer = balancer.call(&Request::Reload { instead: None, dry_run: false });
    assert!(matches!(answer, Response::Reloaded(_)), "{answer:?}");
}

#[test]
fn without_a_file_a_reload_is_refused() {
    let balancer = Balancer::start();
    assert_eq!(balancer.reload(), Err(Refusal::NoFile));
    assert_eq!(balancer.ctl("reload").status.code(), Some(1));
    balancer.signal(Signal::SIGHUP);
    balancer.wait_for_log("there is no file to read again");
    assert_eq!(balancer.status().reload_failure, None);
}

#[test]
fn when_a_listener_cannot_be_bound_nothing_at_all_is_taken() {
    let servers = Server::several(2);
    let (balancer, listen) = configured("", &servers[..1]);
    let other_program = TcpListener::bind((loopback::fresh(), 0)).expect("bound");
    let theirs = other_program.local_addr().expect("an address");
    let (before, descriptors, free) = (balancer.settings(), balancer.descriptors(), loopback::free());
    for (wrong, words) in [
        (theirs, "another program listens there"),
        ("192.0.2.1:8080".parse().expect("an address"), "this machine does not have that address"),
    ] {
        let text = service("free", free, "web") + &service("taken", wrong, "web") + &web(listen, "", &servers);
        balancer.configure(&text);
        let said = balancer.reload().expect_err("it is refused").to_string();
        assert!(said.contains(words) && said.contains(&wrong.to_string()) && said.lines().count() == 1, "{said}");
        assert_eq!(balancer.status().reload_failure, Some(said));
        assert_eq!(balancer.settings(), before);
        assert!(!listens(free));
        assert_eq!(balancer.status().services.len(), 1);
    }
    wait::until("every descriptor is given back", || balancer.descriptors() <= descriptors);
    drop(other_program);
    balancer.configure(&(service("taken", theirs, "web") + &web(listen, "", &servers)));
    balancer.reload().expect("it is free now");
    assert!(addresses(&servers).contains(&Client::connect(theirs).server()));
}

#[test]
fn an_option_that_the_kernel_does_not_take_is_refused_before_a_client_meets_it() {
    let servers = Server::several(1);
    let listen = loopback::free();
    let congestion = "congestion = \"nobodys\"";
    let of_service = service("web", listen, "web").trim_end().to_owned() + "\n" + congestion + "\n";
    for (text, whose) in
        [(of_service + &pool("web", "", &servers), "service web"), (web(listen, congestion, &servers), "pool web")]
    {
        let balancer = Setup::new().config(&web(listen, "", &servers)).start();
        balancer.configure(&text);
        let said = balancer.reload().expect_err("it is refused").to_string();
        assert!(said.contains(&format!("{whose}: congestion: no such file or directory")), "{said}");
        assert_eq!(Client::connect(listen).server(), servers[0].address());
    }
}

#[test]
fn sessions_of_a_server_and_of_a_service_that_go_with_the_file_live_on() {
    let servers = Server::several(2);
    let (web_at, second) = (loopback::free(), loopback::free());
    let first = service("second", second, "web") + &web(web_at, "", &servers);
    let balancer = Setup::new().config(&first).start();
    let descriptors = balancer.descriptors();
    let clients: Vec<Client> =
        (0..20).map(|number| balancer.client_at(["web", "second"][number as usize % 2], number)).collect();
    let gone = servers[0].address();
    let (staying, others): (Vec<_>, Vec<_>) = clients.into_iter().partition(|client| client.server() == gone);
    balancer.configure(&web(web_at, "", &servers[1..]));
    balancer.reload().expect("it is taken");
    let listed = balancer.listed_in("web", gone).expect("it is there as long as its sessions");
    assert_eq!((listed.state, listed.active), (ServerState::Leaving, staying.len() as u64));
    assert!(balancer.service_named("second").leaving && !listens(second));
    for client in staying.iter().chain(&others) {
        assert_eq!(client.exchange(b"x"), b"x");
    }
    assert_eq!(balancer.client_at("web", 0).server(), servers[1].address());
    drop((staying, others));
    wait::until("they are gone", || balancer.status().services.len() == 1);
    wait::until("it is gone", || balancer.listed_in("web", gone).is_none());
    wait::until("every descriptor is given back", || balancer.descriptors() < descriptors);
}

#[test]
fn a_pool_without_sessions_that_goes_with_the_file_goes_at_once() {
    let servers = Server::several(3);
    let (web_at, second) = (loopback::free(), loopback::free());
    let first = service("second", second, "other") + &pool("other", "", &servers[1..]) + &web(web_at, "", &servers);
    let balancer = Setup::new().config(&first).start();
    balancer.configure(&web(web_at, "", &servers));
    balancer.reload().expect("it is taken");
    assert_eq!((balancer.pools().len(), balancer.status().services.len()), (1, 1));
    assert!(addresses(&servers).contains(&balancer.client_at("web", 0).server()));
    balancer.configure(&first);
    balancer.reload().expect("it is taken");
    assert!(addresses(&servers[1..]).contains(&Client::connect(second).server()));
}

#[test]
fn sighup_reads_the_file_again() {
    let servers = Server::several(2);
    let (balancer, listen) = configured("", &servers[..1]);
    balancer.configure(&web(listen, "", &servers[1..]));
    balancer.signal(Signal::SIGHUP);
    balancer.wait_for_log(READ);
    assert_eq!(balancer.client().server(), servers[1].address());
    balancer.configure("nonsense");
    balancer.signal(Signal::SIGHUP);
    wait::until("the fault is told", || balancer.status().reload_failure.is_some());
    assert_eq!(balancer.client().server(), servers[1].address());
    balancer.configure(&web(listen, "", &servers[..1]));
    balancer.signal(Signal::SIGHUP);
    wait::until("it is taken", || balancer.status().reload_failure.is_none());
    assert_eq!(balancer.client().server(), servers[0].address());
}

#[test]
fn a_sighup_during_a_reload_is_not_lost() {
    let listen = loopback::free();
    // So many that reading takes its time.
    let many = |weight| {
        let many = (0..2000).map(|number| (SocketAddr::new(loopback::client(number), 9), weight));
        service("web", listen, "web") + &weighted("web", "points_per_weight = 4", many)
    };
    let balancer = Setup::new().config(&many(1)).start();
    for round in 1..6 {
        balancer.configure(&many(2 * round));
        balancer.signal(Signal::SIGHUP);
        // It may come before that file is read, while it is, or after it: what holds in the end is what lies there now.
        balancer.configure(&many(2 * round + 1));
        balancer.signal(Signal::SIGHUP);
        wait::until("the second file is taken", || balancer.list_pool("web").servers[0].weight == 2 * round + 1);
    }
}

#[test]
fn ports_that_the_kernel_chose_stay_over_reloads() {
    let servers = Server::several(2);
    let any = SocketAddr::new(loopback::fresh(), 0);
    let text = |servers: &[Server]| {
        [service("one", any, "web"), service("two", any, "web")].concat() + &pool("web", "", servers)
    };
    let balancer = Setup::new().config(&text(&servers[..1])).start();
    let before = [balancer.address_of("one"), balancer.address_of("two")];
    assert_ne!(before[0], before[1]);
    balancer.configure(&text(&servers[1..]));
    balancer.reload().expect("it is taken");
    assert_eq!([balancer.address_of("one"), balancer.address_of("two")], before);
    assert_eq!(Client::connect(before[1]).server(), servers[1].address());
    balancer.configure(&(service("two", any, "web") + &pool("web", "", &servers)));
    balancer.reload().expect("it is taken");
    assert_eq!(balancer.address_of("two"), before[1]);
    assert!(!listens(before[0]) && listens(before[1]));
}

/// A balancer that watches its file, the servers of its pool, and the text of that file with other servers.
fn watching(servers: &[Server]) -> (Balancer, impl Fn(&[Server]) -> String + use<>) {
    let listen = loopback::free();
    let text = move |servers: &[Server]| format!("[balancer]\nwatch = true\n{}", web(listen, "", servers));
    (Setup::new().config(&text(servers)).start(), text)
}

#[test]
fn a_watched_file_is_read_when_it_is_written_in_place_and_when_it_is_replaced() {
    let servers = Server::several(3);
    let (balancer, text) = watching(&servers[..1]);
    let path = balancer.setup().config_path();
    let serves = |server: &Server| {
        wait::until("the new server serves", || balancer.client().server() == server.address());
    };
    fs::write(&path, text(&servers[1..2])).expect("written");
    serves(&servers[1]);
    balancer.configure(&text(&servers[2..]));
    serves(&servers[2]);
    // A link that is exchanged, as of a volume.
    let target = path.with_extension("target");
    fs::write(&target, text(&servers[..1])).expect("written");
    symlink(&target, path.with_extension("link")).expect("made");
    fs::rename(path.with_extension("link"), &path).expect("moved");
    serves(&servers[0]);
    // A broken one in between is told, and changes nothing.
    balancer.configure("nonsense");
    wait::until("its fault is told", || balancer.status().reload_failure.is_some());
    assert_eq!(balancer.client().server(), servers[0].address());
    balancer.configure(&text(&servers[1..2]));
    serves(&servers[1]);
    assert_eq!(balancer.status().reload_failure, None);
}

#[test]
fn changes_within_a_moment_are_taken_together() {
    let servers = Server::several(5);
    let (balancer, text) = watching(&servers[..1]);
    // Nothing is noticed while it stands still, so all of it is noticed in one moment.
    balancer.signal(Signal::SIGSTOP);
    for server in servers.chunks(1) {
        balancer.configure(&text(server));
        fs::write(balancer.setup().config_path(), text(server)).expect("written");
    }
    balancer.signal(Signal::SIGCONT);
    balancer.wait_for_log(READ);
    wait::a_moment();
    assert_eq!(times_read(&balancer), 1, "{}", balancer.log());
    assert_eq!(balancer.client().server(), servers[4].address(), "the last one");
}

#[test]
fn a_directory_link_on_the_way_to_a_watched_file_may_be_switched() {
    let servers = Server::several(2);
    let listen = loopback::free();
    let setup = Setup::new();
    let top = setup.directory().to_owned();
    for (at, server) in servers.iter().enumerate() {
        let release = top.join(format!("r{at}"));
        fs::create_dir(&release).expect("made");
        let text = format!("[balancer]\nwatch = true\n{}", web(listen, "", std::slice::from_ref(server)));
        fs::write(release.join("a.toml"), text).expect("written");
    }
    symlink("r0", top.join("current")).expect("linked");
    // The file itself is a link through that one, as a mounted directory of settings has them.
    symlink("current/a.toml", top.join("balancer.toml")).expect("linked");
    let option = format!("--config {}", top.join("balancer.toml").display());
    let balancer = setup.options(&option).start();
    for at in [1, 0, 1] {
        symlink(format!("r{at}"), top.join("next")).expect("linked");
        fs::rename(top.join("next"), top.join("current")).expect("switched");
        wait::until("it is noticed", || Client::connect(listen).server() == servers[at].address());
    }
    balancer.assert_quiet();
}

#[test]
fn watching_is_turned_off_and_on_by_what_the_file_says() {
    let servers = Server::several(3);
    let (balancer, text) = watching(&servers[..1]);
    let off = text(&servers[1..2]).replace("watch = true", "watch = false");
    balancer.configure(&off);
    wait::until("it is read", || times_read(&balancer) == 1);
    assert_eq!(balancer.client().server(), servers[1].address());
    balancer.configure(&text(&servers[2..]));
    wait::a_moment();
    assert_eq!((balancer.client().server(), times_read(&balancer)), (servers[1].address(), 1), "it is left alone");
    balancer.reload().expect("it is taken");
    assert_eq!(balancer.client().server(), servers[2].address());
    balancer.configure(&text(&servers[..1]));
    wait::until("it is read", || balancer.client().server() == servers[0].address());
}

#[test]
fn what_else_happens_in_the_directory_of_a_watched_file_is_no_reload() {
    let servers = Server::several(2);
    let (balancer, _) = watching(&servers[..1]);
    for _ in 0..5 {
        balancer.add_to("web", servers[1].address());
        balancer.remove_from("web", servers[1].address(), Removal::Now);
    }
    wait::a_moment();
    assert_eq!((times_read(&balancer), balancer.status().reload_failure), (0, None));
    balancer.assert_quiet();
}

#[test]
fn a_hundred_reloads_at_once_under_load_lose_no_request_and_no_descriptor() {
    let servers = Server::several(4);
    let (listen, second, moving) = (loopback::free(), loopback::free(), loopback::free());
    let texts: Vec<String> = (0..4)
        .map(|round| {
            let more = if round % 2 == 0 { service("moving", moving, "web") } else { String::new() };
            more + &service("second", second, "web") + &web(listen, "", &servers[round..])
        })
        .collect();
    let balancer = Setup::new().config(&texts[1]).start();
    let kept = balancer.client_at("web", 1);
    let name = kept.server();
    assert!(addresses(&servers).contains(&name));
    let descriptors = balancer.descriptors();
    let requests = load::during(&[(listen, addresses(&servers)), (second, addresses(&servers))], |load| {
        load.pass(20);
        thread::scope(|scope| {
            for worker in 0..5 {
                let (balancer, texts) = (&balancer, &texts);
                scope.spawn(move || {
                    for round in 0..20 {
                        let new = balancer.file(&format!("new.{worker}"));
                        fs::write(&new, &texts[(worker + round) % 4]).expect("written");
                        fs::rename(new, balancer.setup().config_path()).expect("moved");
                        balancer.reload().expect("it is taken");
                        balancer.signal(Signal::SIGHUP);
                    }
                });
            }
        });
        load.pass(20);
    });
    balancer.configure(&texts[1]);
    balancer.reload().expect("it is taken");
    let settings = balancer.settings();
    assert_eq!(settings.said.as_ref(), Some(&settings.now));
    assert_eq!(kept.exchange(b"x"), b"x");
    assert!(!listens(moving));
    balancer.wait_for_all_sessions(1);
    let total = balancer.service_named("web").total + balancer.service_named("second").total;
    assert_eq!(total, requests as u64 + 1);
    wait::until("every descriptor is given back", || balancer.descriptors() <= descriptors);
}

#[test]
fn commands_during_a_reload_are_carried_out_after_it_and_hold() {
    let server = Server::start();
    let listen = loopback::free();
    // So many that reading takes its time.
    let many = |weight| {
        let many = (0..2000).map(|number| (SocketAddr::new(loopback::client(number), 9), weight));
        service("web", listen, "web") + &weighted("web", "points_per_weight = 4", many)
    };
    let balancer = Setup::new().config(&many(2)).start();
    for round in 2..8 {
        balancer.configure(&many(round % 2 + 1));
        thread::scope(|scope| {
            let reload = scope.spawn(|| balancer.reload().expect("it is taken"));
            let (pool, added) = ("web", server.address());
            if round % 2 == 0 {
                balancer.add_to(pool, added);
            } else {
                balancer.remove_from(pool, added, Removal::Now);
            }
            assert_eq!(balancer.listed_in(pool, added).is_some(), round % 2 == 0, "what was answered holds");
            assert!(reload.join().expect("no panic").changes.len() >= 2000);
            assert_eq!(balancer.listed_in(pool, added).is_some(), round % 2 == 0, "and goes on to hold");
        });
        let listed = balancer.list_pool("web").servers;
        let weights = listed.iter().filter(|report| report.server != server.address()).map(|report| report.weight);
        assert!(weights.into_iter().all(|weight| weight == round % 2 + 1));
    }
}

#[test]
fn a_reload_while_the_balancer_stops_is_refused() {
    let servers = Server::several(2);
    let (mut balancer, listen) = configured("", &servers[..1]);
    let client = balancer.client();
    assert_eq!(client.server(), servers[0].address());
    balancer.configure(&(service("more", loopback::free(), "web") + &web(listen, "", &servers)));
    let stopping = balancer.call(&Request::Stop { now: false, drain_ms: Some(60_000) });
    assert!(matches!(stopping, Response::Stopping(_)));
    assert_eq!(balancer.reload(), Err(Refusal::Stopping));
    balancer.signal(Signal::SIGHUP);
    balancer.wait_for_log("the configuration file is not read");
    assert_eq!(balancer.list_pool("web").servers.len(), 1);
    assert_eq!(client.exchange(b"x"), b"x");
    drop(client);
    assert!(balancer.wait_for_end().success());
}

#[test]
fn a_stop_during_a_reload_ends_the_balancer_and_answers_both() {
    let listen = loopback::free();
    let many = |weight| {
        let many = (0..2000).map(|number| (SocketAddr::new(loopback::client(number), 9), weight));
        service("web", listen, "web") + &weighted("web", "points_per_weight = 4", many)
    };
    let mut balancer = Setup::new().config(&many(1)).start();
    balancer.configure(&many(2));
    let mut reloading = wire::Client::connect(balancer.socket()).expect("it listens");
    let mut stopping = wire::Client::connect(balancer.socket()).expect("it listens");
    thread::scope(|scope| {
        let reload = scope.spawn(move || reloading.call(&Request::Reload { instead: None, dry_run: false }));
        let stopped = stopping.call(&Request::Stop { now: true, drain_ms: None }).expect("an answer");
        assert!(matches!(stopped, Response::Stopping(_)), "{stopped:?}");
        // Which of the two came first is not for a test to say.
        match reload.join().expect("no panic") {
            Ok(Response::Reloaded(_) | Response::Refused(Refusal::Stopping)) | Err(_) => {}
            other => panic!("{other:?}"),
        }
    });
    assert!(balancer.wait_for_end().success());
}

#[test]
fn a_removal_over_a_time_goes_on_when_the_file_is_read() {
    let servers = Server::several(3);
    let (balancer, listen) = configured("", &servers);
    let clients: Vec<Client> = (0..30).map(|number| balancer.client_number(number)).collect();
    let gone = servers[0].address();
    let its = clients.iter().filter(|client| client.server() == gone).count() as u64;
    assert!(its > 0);
    let how = Removal::Over { time_ms: 24 * 3_600_000 };
    balancer.remove_from("web", gone, how);
    for weight in [1, 1, 5] {
        let servers = servers.iter().map(Server::address).zip([1, weight, 1]);
        balancer.configure(&(service("web", listen, "web") + &weighted("web", "", servers)));
        balancer.reload().expect("it is taken");
        let listed = balancer.listed_in("web", gone).expect("it is there");
        assert_eq!((listed.state, listed.active), (ServerState::Leaving, its));
        assert_eq!(listed.removal.map(|removal| removal.how), Some(how));
    }
    for client in &clients {
        assert_eq!(client.exchange(b"x"), b"x");
    }
}

#[test]
fn an_address_that_moves_from_one_service_to_another_refuses_nobody() {
    let (left, right) = (Server::several(2), Server::several(2));
    let (contested, other) = (loopback::free(), loopback::free());
    let pools = pool("left", "", &left) + &pool("right", "", &right);
    let first = service("one", contested, "left") + &service("two", other, "right") + &pools;
    let second = service("one", other, "left") + &service("two", contested, "right") + &pools;
    // Its name changes, and a further address comes.
    let third = format!("[service.three]\nlisten = [\"{contested}\", \"{other}\"]\npool = \"right\"\n")
        + &pool("right", "", &right);
    let balancer = Setup::new().config(&first).start();
    let kept = Client::connect(contested);
    assert!(addresses(&left).contains(&kept.server()));
    let all = addresses(left.iter().chain(&right));
    load::during(&[(contested, all.clone()), (other, all)], |load| {
        for text in [&second, &first, &third].into_iter().cycle().take(15) {
            load.pass(20);
            balancer.configure(text);
            balancer.reload().expect("it is taken");
            let expected = addresses(if text == &first { &left } else { &right });
            assert!(expected.contains(&Client::connect(contested).server()));
            assert_eq!(kept.exchange(b"x"), b"x");
        }
    });
}

#[test]
fn an_address_that_becomes_a_wildcard_and_back_is_taken() {
    let servers = Server::several(2);
    let narrow = loopback::free();
    let wide = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), narrow.port());
    let balancer = Setup::new().config(&web(narrow, "", &servers)).start();
    let kept = Client::connect(narrow);
    assert!(addresses(&servers).contains(&kept.server()));
    for (listen, also) in [(wide, true), (narrow, false), (wide, true)] {
        balancer.configure(&web(listen, "", &servers));
        balancer.reload().expect("it is taken");
        assert!(addresses(&servers).contains(&Client::connect(narrow).server()));
        assert_eq!(listens(SocketAddr::new(loopback::fresh(), narrow.port())), also);
        assert_eq!(kept.exchange(b"x"), b"x");
    }
}

/// Who gets each of a thousand clients.
fn picks(balancer: &Balancer) -> Vec<Option<SocketAddr>> {
    (0..1000).map(|number| balancer.explain_at("web", loopback::client(number), 0).server).collect()
}

#[test]
fn diff_tells_the_share_that_moves_when_the_file_is_read() {
    let servers = Server::several(6);
    let (balancer, listen) = configured("", &servers[..4]);
    let file: PathBuf = balancer.file("other.toml");
    let weights = |weights: [u32; 6]| {
        let servers = servers.iter().map(Server::address).zip(weights).filter(|(_, weight)| *weight > 0);
        service("web", listen, "web") + &weighted("web", "", servers)
    };
    for text in [
        web(listen, "", &servers[..5]),
        web(listen, "", &servers[1..]),
        weights([0, 1, 5, 1, 0, 1]),
        weights([1, 1, 1, 1, 1, 1]),
        web(listen, "slow_start = \"1s\"", &servers),
    ] {
        let (before, settings) = (picks(&balancer), balancer.settings());
        fs::write(&file, &text).expect("written");
        let output = balancer.ctl(&format!("diff {} --json", file.display()));
        let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let said = balancer.diff(Some(&text)).expect("it would be taken");
        assert!(said.dry_run);
        let share = said.pools.first().map_or(0.0, |pool| pool.moved);
        assert!((told["pools"][0]["moved"].as_f64().unwrap_or_default() - share).abs() < 1e-9, "{told}");
        assert_eq!((balancer.settings(), picks(&balancer)), (settings, before.clone()), "nothing was changed");

        balancer.configure(&text);
        let done = balancer.reload().expect("it is taken");
        assert_eq!((&done.changes, &done.pools), (&said.changes, &said.pools));
        let after = picks(&balancer);
        let moved = before.iter().zip(&after).filter(|(old, new)| old != new);
        let (share, moves) = done.pools.first().map_or((0.0, vec![]), |pool| (pool.moved, pool.moves.clone()));
        let total: f64 = moves.iter().map(|step| step.share).sum();
        assert!((total - share).abs() < 1e-9, "{total} {share}");
        for (from, to) in moved.clone() {
            assert!(moves.iter().any(|step| step.from == *from && step.to == *to), "{from:?} to {to:?}: {moves:?}");
        }
        // A thousand clients scatter by 16 around a half.
        let seen = moved.count() as f64 / 1000.0;
        assert!((seen - share).abs() < 0.08, "{seen} of the clients moved, {share} was told");
        assert_eq!(share == 0.0, seen == 0.0);
    }
}

#[test]
fn a_watched_file_whose_directory_was_replaced_is_watched_again() {
    let servers = Server::several(2);
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("etc");
    let (path, listen) = (place.join("b.toml"), loopback::free());
    let write = |server: &Server| {
        fs::create_dir_all(&place).expect("a directory");
        let text = format!(
            "[balancer]\nwatch = true\n[service.web]\nlisten = \"{listen}\"\npool = \"web\"\n[pool.web]\nservers = [{{ address = \"{}\" }}]\n",
            server.address()
        );
        fs::write(&path, text).expect("written");
    };
    write(&servers[0]);
    let options = format!("--config {}", path.display());
    let balancer = Setup::new().options(&options).start();
    assert_eq!(Client::connect(listen).server(), servers[0].address());
    fs::remove_dir_all(&place).expect("removed");
    balancer.wait_for_log("has gone");
    write(&servers[1]);
    tests::wait::until("the new file is taken", || Client::connect(listen).server() == servers[1].address());
}
