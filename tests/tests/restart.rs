//! The end of a balancer and the next beginning: the state file, crashes and signals.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixStream};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use tests::balancer::add;
use tests::{Balancer, Client, Server, Setup, client, loopback, namespace, process, wait};
use wire::control::Change;
use wire::frame::{Decoder, RESPONSE_LIMIT, frame, greeting};
use wire::report::{EndReason, Phase};
use wire::{Refusal, Request, Response};

fn addresses(balancer: &Balancer) -> Vec<(SocketAddr, u32)> {
    balancer.list().servers.into_iter().map(|server| (server.server, server.weight)).collect()
}

#[test]
fn a_crash_loses_no_server() {
    let servers = Server::several(3);
    let mut balancer = Balancer::start();
    for (server, weight) in servers.iter().zip([1, 256, 0]) {
        balancer.add_weighted(server.address(), weight);
    }
    balancer.add("[2001:db8::1]:443".parse().expect("an address"));
    balancer.remove("[2001:db8::1]:443".parse().expect("an address"));
    let (before, digest, client) = (addresses(&balancer), balancer.digest(), balancer.client());
    let name = client.server();
    assert!(servers.iter().any(|server| server.address() == name));
    for _ in 0..3 {
        balancer.restart();
        assert_eq!((addresses(&balancer), balancer.digest()), (before.clone(), digest));
    }
    client.assert_ended();
}

#[test]
fn a_change_that_was_answered_is_in_the_file() {
    let mut balancer = Balancer::start();
    for number in 0..30 {
        let server = SocketAddr::new(loopback::client(number), 80);
        balancer.add(server);
        balancer.crash();
        balancer.restart();
        assert_eq!(addresses(&balancer).len(), number as usize + 1, "{server} is there");
    }
}

#[test]
fn a_file_that_people_wrote_is_read() {
    let setup = Setup::new();
    let text = "version = 1\n\n[[server]]\naddress = \"[2001:db8::1]:443\" # ours\nweight = 3\n";
    fs::write(setup.directory().join("control.state"), text).expect("written");
    let balancer = setup.start();
    assert_eq!(addresses(&balancer), [("[2001:db8::1]:443".parse().expect("an address"), 3)]);
}

#[test]
fn a_server_where_the_balancer_listens_by_now_is_left_out_and_the_others_serve() {
    let server = Server::start();
    let listen = loopback::free();
    let setup = Setup::new().listen(listen);
    let row = |address| format!("[[server]]\naddress = \"{address}\"\nweight = 1\n");
    let text = format!("version = 1\n{}{}", row(listen), row(server.address()));
    fs::write(setup.directory().join("control.state"), text).expect("written");
    let balancer = setup.start();
    balancer.wait_for_log("left out");
    assert_eq!(balancer.list().servers.iter().map(|row| row.server).collect::<Vec<_>>(), [server.address()]);
    assert_eq!(balancer.client().server(), server.address());
}

#[test]
fn a_broken_file_is_an_error_that_names_it_and_stays_as_it_is() {
    let listen = SocketAddr::new(loopback::fresh(), 9999);
    let setup = Setup::new().listen(listen);
    let path = setup.directory().join("control.state");
    let with = |server: &str| format!("version = 1\n[[server]]\naddress = \"{server}\"\nweight = 1\n");
    for (text, words) in [
        (String::new(), "version"),
        ("version = 1\n[[server]]\naddress = 7\n".into(), "line 3"),
        ("version = 99\n".into(), "version 99"),
        (
            with("10.0.0.1:80").replace("version = 1", "version = 3").replace("weight = 1", "pool = \"default\""),
            "cut off",
        ),
        (
            "version = 3\n[[server]]\npool = \"default\"\naddress = \"10.0.0.1:80\"\n\n[server.now]\nweigth = 1\n"
                .into(),
            "line 7",
        ),
        ("\u{0}\u{1}".into(), "control.state"),
        (with("0.0.0.0:80"), "0.0.0.0:80"),
        (with("10.0.0.1:80").replace("= 1\n[[", "= 1\nmore = 2\n[["), "more"),
        (with("10.0.0.1:80").replace("weight = 1", "weight = 257"), "257"),
        ([with("10.0.0.1:80"), with("10.0.0.1:80").replace("version = 1\n", "")].concat(), "10.0.0.1:80"),
    ] {
        fs::write(&path, &text).expect("written");
        let inode = fs::metadata(&path).expect("it is there").ino();
        let output = setup.run();
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{text:?}: {said}");
        assert!(said.contains("control.state") && said.contains(words), "{text:?}: {said}");
        assert_eq!(fs::read_to_string(&path).expect("still there"), text);
        assert_eq!(fs::metadata(&path).expect("it is there").ino(), inode);
        assert!(!setup.directory().join("control.sock").exists() && !setup.directory().join("control.pid").exists());
    }
}

#[test]
fn what_a_start_leaves_out_of_the_state_file_is_said_and_kept_beside_it() {
    let server = Server::start();
    let setup = Setup::new();
    let path = setup.directory().join("control.state");
    let row = |pool: &str, address: SocketAddr| {
        let now = "[server.now]\nweight = 1\nstate = \"ready\"\nbackup = false\n";
        format!("[[server]]\npool = \"{pool}\"\naddress = \"{address}\"\n\n{now}\n")
    };
    let gone = "192.0.2.1:80".parse().expect("an address");
    let text = format!("version = 3\n\n{}{}[end]\nrows = 2\n", row("default", server.address()), row("gone", gone));
    fs::write(&path, &text).expect("written");
    let mut balancer = setup.start();
    assert!(balancer.log().contains("left out of the state file"), "{}", balancer.log());
    assert!(balancer.log().contains("192.0.2.1:80"), "{}", balancer.log());
    assert_eq!(balancer.client().server(), server.address());
    let old = balancer.file("control.state.old");
    assert_eq!(fs::read_to_string(&old).expect("it is kept"), text);
    assert!(!fs::read_to_string(&path).expect("there").contains("192.0.2.1"));
    // A start that replaces nothing leaves both as they are.
    balancer.restart();
    assert_eq!(fs::read_to_string(&old).expect("it is kept"), text);
}

#[test]
fn two_balancers_cannot_share_a_state_file() {
    let one = Setup::new().socket("x/a.sock");
    let state = format!("--state {}", one.directory().display());
    let one = one.options(&state).start();
    let two = one.setup().clone().socket("y/a.sock").listen(Setup::new().address());
    let said = String::from_utf8(two.run().stderr).expect("text");
    assert!(said.contains("a.state.lock") && said.contains("a balancer runs already"), "{said}");
}

#[test]
fn what_cannot_be_saved_is_said_and_holds_until_the_end() {
    let (server, other) = (Server::start(), Server::start());
    let setup = Setup::new();
    let state = setup.directory().join("state");
    let mut balancer = setup.options(&format!("--state {}", state.display())).start();
    balancer.add_all([&server]);
    let before = balancer.client();
    assert_eq!(before.server(), server.address());

    // Where the new file is to be written there is a directory.
    let way = state.join("control.state.new");
    fs::create_dir(&way).expect("made");
    let unsaved = balancer.add(other.address()).unsaved.expect("it cannot be saved");
    assert!(unsaved.contains("control.state cannot be written"), "{unsaved}");
    assert_eq!(balancer.status().unsaved, Some(unsaved));
    let output = balancer.ctl("remove 127.0.0.1 1");
    assert_eq!(output.status.code(), Some(1), "a refusal is a refusal all the same");
    assert_eq!(balancer.remove(server.address()).unsaved.as_deref(), balancer.status().unsaved.as_deref());
    assert_eq!(balancer.client().server(), other.address(), "it holds");
    assert_eq!(before.exchange(b"x"), b"x");
    balancer.restart();
    assert_eq!(addresses(&balancer), [(server.address(), 1)], "what was saved last");

    let output = balancer.ctl(&format!("add {} {}", other.address().ip(), other.address().port()));
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("this holds only until the balancer ends"), "{said}");
    fs::remove_dir(&way).expect("removed");
    assert_eq!(balancer.remove(server.address()).unsaved, None, "the next change is saved again");
    assert_eq!(balancer.status().unsaved, None);
    balancer.restart();
    assert_eq!(addresses(&balancer), [(other.address(), 1)]);
}

#[test]
fn what_could_not_be_saved_is_saved_later_by_itself() {
    let setup = Setup::new();
    let state = setup.directory().join("state");
    let mut balancer = setup.options(&format!("--state {}", state.display())).start();
    fs::rename(&state, state.with_extension("away")).expect("moved");
    let server = "10.0.0.1:80".parse().expect("an address");
    assert!(balancer.add(server).unsaved.is_some());
    fs::rename(state.with_extension("away"), &state).expect("moved back");
    wait::until("it is saved", || balancer.status().unsaved.is_none());
    balancer.restart();
    assert_eq!(addresses(&balancer), [(server, 1)]);
}

#[test]
fn what_could_not_be_saved_is_saved_at_the_end() {
    let server = Server::start();
    let mut balancer = Balancer::start();
    // Where the new file is to be written there is a directory.
    let way = balancer.file("control.state.new");
    fs::create_dir(&way).expect("made");
    assert!(balancer.add(server.address()).unsaved.is_some());
    assert!(!balancer.file("control.state").exists());
    fs::remove_dir(&way).expect("removed");
    balancer.signal(Signal::SIGTERM);
    assert_gone(&mut balancer);
    balancer.restart();
    assert_eq!(addresses(&balancer), [(server.address(), 1)]);
    assert_eq!(balancer.client().server(), server.address());
}

#[test]
fn an_end_with_a_pool_that_cannot_be_saved_says_so_and_is_code_1() {
    let (server, other) = (Server::start(), Server::start());
    let mut balancer = Balancer::of([&server]);
    let way = balancer.file("control.state.new");
    fs::create_dir(&way).expect("made");
    assert!(balancer.add(other.address()).unsaved.is_some());
    balancer.signal(Signal::SIGTERM);
    assert_eq!(balancer.wait_for_end().code(), Some(1), "{}", balancer.log());
    let log = balancer.log();
    let words = ["the pool as it was last could not be saved", "control.state cannot be written"];
    let why = |line: &str| line.contains("balancer stopped") && words.iter().all(|words| line.contains(words));
    assert!(log.lines().any(why), "{log}");
    assert!(!balancer.socket().exists() && !balancer.file("control.pid").exists());
    fs::remove_dir(&way).expect("removed");
    balancer.restart();
    assert_eq!(addresses(&balancer), [(server.address(), 1)], "what was saved last");
}

/// After its end the balancer has left nothing but its pool.
fn assert_gone(balancer: &mut Balancer) {
    assert_eq!(balancer.wait_for_end().code(), Some(0), "{}", balancer.log());
    assert!(!balancer.socket().exists() && !balancer.file("control.pid").exists());
    assert!(balancer.file("control.state").exists());
}

#[test]
fn sigterm_lets_the_sessions_end_and_takes_no_more() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let server = Server::start();
        let mut balancer = Balancer::of([&server]);
        let client = balancer.client();
        assert_eq!(client.server(), server.address());
        balancer.signal(signal);
        wait::until("it takes no more", || balancer.status().phase == Phase::Stopping);
        assert!(!balancer.service().accepting);
        let refused = Client::try_from(loopback::client(1), balancer.address()).expect_err("nobody listens");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let change = add("10.0.0.1:80".parse().expect("an address"), 1);
        assert_eq!(balancer.change(change, false), Err(Refusal::Stopping));
        balancer.assert_quiet();
        assert_eq!(client.exchange(b"to the end"), b"to the end");
        assert_eq!(balancer.has_ended(), None);
        drop(client);
        assert_gone(&mut balancer);
        balancer.restart();
        assert_eq!(balancer.client().server(), server.address());
    }
}

#[test]
fn a_second_sigterm_ends_it_at_once() {
    let server = Server::start();
    let mut balancer = Balancer::of([&server]);
    let clients: Vec<Client> = (0..5).map(|number| balancer.client_number(number)).collect();
    for client in &clients {
        assert_eq!(client.server(), server.address());
    }
    balancer.signal(Signal::SIGTERM);
    wait::until("it takes no more", || balancer.status().phase == Phase::Stopping);
    balancer.signal(Signal::SIGTERM);
    assert_gone(&mut balancer);
    clients.iter().for_each(Client::assert_ended);
}

#[test]
fn the_drain_time_ends_what_is_left() {
    let server = Server::start();
    let mut balancer = Setup::new().options("--drain-timeout 300ms --log-level debug").start();
    balancer.add_all([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    balancer.signal(Signal::SIGTERM);
    assert_gone(&mut balancer);
    client.assert_ended();
    assert!(balancer.log().contains("reason=shutdown"), "{}", balancer.log());
}

#[test]
fn a_sigterm_after_a_stop_command_does_not_cut_the_drain_and_the_next_one_does() {
    let server = Server::start();
    let mut balancer = Balancer::of([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    let output = balancer.ctl("stop --drain 60s --no-wait");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(client.exchange(b"after the command"), b"after the command");
    balancer.signal(Signal::SIGTERM);
    balancer.wait_for_log("told to stop by a signal");
    // Who answers has dealt with the signal before.
    assert_eq!((balancer.status().phase, balancer.service().active), (Phase::Stopping, 1));
    assert_eq!(client.exchange(b"after the signal"), b"after the signal");
    balancer.signal(Signal::SIGTERM);
    assert_gone(&mut balancer);
    client.assert_ended();
}

/// Clients that come on and on, from several threads, until nobody listens.
fn storm(to: SocketAddr) {
    for thread in 0..4 {
        std::thread::spawn(move || {
            let mut numbers = (0..50_000).cycle().map(|number| thread * 50_000 + number);
            numbers.find(|number| !client::knock(loopback::client(*number), to))
        });
    }
}

#[test]
fn a_stop_ends_though_clients_come_on_and_their_connects_fail_at_once() {
    let server = Server::start();
    let mut balancer = Setup::new().options("--drain-timeout 1s").start();
    balancer.add_all([&server]);
    let Some(_tracer) = balancer.fail("connect", "ENETUNREACH") else { return };
    storm(balancer.address());
    wait::until("the clients come", || balancer.ended(EndReason::ConnectFailed) > 100);
    balancer.signal(Signal::SIGTERM);
    assert_gone(&mut balancer);
    assert_eq!(server.accepted(), 0);
}

#[test]
fn a_second_sigterm_is_heard_though_clients_come_on_and_their_connects_fail_at_once() {
    let server = Server::start();
    let mut balancer = Setup::new().options("--drain-timeout 1h").start();
    balancer.add_all([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    let Some(_tracer) = balancer.fail("connect", "ENETUNREACH") else { return };
    storm(balancer.address());
    wait::until("the clients come", || balancer.ended(EndReason::ConnectFailed) > 100);
    balancer.signal(Signal::SIGTERM);
    balancer.wait_for_log("told to stop by a signal");
    assert_eq!(balancer.status().phase, Phase::Stopping);
    assert_eq!(client.exchange(b"who is there is served"), b"who is there is served");
    balancer.signal(Signal::SIGTERM);
    assert_gone(&mut balancer);
    client.assert_ended();
    assert_eq!(server.accepted(), 1);
}

#[test]
fn who_waits_to_be_accepted_when_it_stops_is_served() {
    let server = Server::start();
    let mut balancer = Balancer::of([&server]);
    // A process that stands still accepts nobody; the kernel takes the connections for it.
    balancer.signal(Signal::SIGSTOP);
    let clients: Vec<Client> = (0..30).map(|number| balancer.client_number(number)).collect();
    balancer.signal(Signal::SIGTERM);
    balancer.signal(Signal::SIGCONT);
    for client in clients {
        assert_eq!(client.server(), server.address());
        assert_eq!(client.exchange(b"x"), b"x");
    }
    assert_gone(&mut balancer);
}

#[test]
fn other_signals_harm_nobody() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let ignored = u64::from_str_radix(&process::status(balancer.pid(), "SigIgn"), 16).expect("a mask");
    assert_ne!(ignored & 1 << (Signal::SIGPIPE as u32 - 1), 0, "SIGPIPE is ignored: {ignored:x}");
    balancer.signal(Signal::SIGHUP);
    balancer.wait_for_log("SIGHUP");
    balancer.signal(Signal::SIGPIPE);
    assert_eq!(balancer.client().server(), server.address());
}

#[test]
fn several_stops_at_once_all_end_well() {
    for round in 0..10 {
        let server = Server::start();
        let balancer = Balancer::of([&server]);
        let stop = || balancer.ctl("stop");
        let outputs = std::thread::scope(|scope| {
            let stops: Vec<_> = (0..4).map(|_| scope.spawn(stop)).collect();
            stops.into_iter().map(|stop| stop.join().expect("it runs")).collect::<Vec<_>>()
        });
        for output in outputs {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            // Who comes when it has ended hears that there is none, which is no other end.
            let came_late = output.status.code() == Some(2) && said.contains("no balancer answers");
            assert!(output.status.success() || came_late, "round {round}: {output:?}");
        }
    }
}

#[test]
fn who_waits_for_a_file_when_it_stops_hears_that_it_stops() {
    let server = Server::start();
    let listen = loopback::free();
    let text = tests::config::service("web", listen, "web") + &tests::config::pool("web", "", [&server]);
    for _ in 0..20 {
        let balancer = Setup::new().config(&text).start();
        let client = Client::connect(listen);
        assert_eq!(client.server(), server.address());
        std::thread::scope(|scope| {
            let reloads: Vec<_> = (0..4).map(|_| scope.spawn(|| balancer.reload())).collect();
            drop(balancer.call(&Request::Stop { now: false, drain_ms: None }));
            for reload in reloads {
                // Each is answered: taken before, or refused for the true reason.
                if let Err(refusal) = reload.join().expect("an answer") {
                    assert_eq!(refusal, wire::Refusal::Stopping);
                }
            }
        });
    }
}

#[test]
fn a_health_script_learns_from_the_exit_code_whether_clients_are_served() {
    let server = Server::start();
    let mut balancer = Balancer::of([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    let ready = |balancer: &Balancer| {
        let output = balancer.ctl("status --ready --timeout 20s");
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    assert_eq!(ready(&balancer), (Some(0), "ready: 1 service accepts clients\n".to_owned()));
    // One that stands still answers nobody, and nobody waits for ever.
    balancer.signal(Signal::SIGSTOP);
    let output = balancer.ctl("status --ready --timeout 300ms");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("did not answer in time"), "{output:?}");
    balancer.signal(Signal::SIGCONT);
    drop(balancer.call(&Request::Stop { now: false, drain_ms: None }));
    assert_eq!(ready(&balancer), (Some(1), "not ready: the balancer is stopping\n".to_owned()));
    let json = balancer.ctl("status --ready --json");
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!((&json["ready"], &json["phase"]), (&false.into(), &"stopping".into()));
    assert_eq!(balancer.ctl("status").status.code(), Some(0), "a status is a status");
    drop(client);
    balancer.wait_for_end();
    assert_eq!(balancer.ctl("status --ready").status.code(), Some(2));
}

#[test]
fn stop_is_answered_at_once_and_closes_the_connection_at_the_end() {
    let server = Server::start();
    let mut balancer = Balancer::of([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    let mut control = wire::Client::connect(balancer.socket()).expect("it listens");
    match control.call(&Request::Stop { now: false, drain_ms: None }).expect("it answers") {
        Response::Stopping(report) => {
            assert_eq!((report.pid, report.sessions, report.drain_ms), (balancer.pid(), 1, 30_000));
        }
        other => panic!("an answer to another question: {other:?}"),
    }
    // A later order shortens the time.
    match balancer.call(&Request::Stop { now: false, drain_ms: Some(3_600_000) }) {
        Response::Stopping(report) => assert_eq!(report.drain_ms, 3_600_000),
        other => panic!("an answer to another question: {other:?}"),
    }
    assert_eq!(client.exchange(b"x"), b"x");
    drop(balancer.call(&Request::Stop { now: true, drain_ms: None }));
    control.wait_for_end(Some(wait::LIMIT)).expect("it ends");
    client.assert_ended();
    assert_gone(&mut balancer);
}

#[test]
fn who_ends_many_is_answered_though_a_stop_ends_them_before() {
    const SESSIONS: u64 = 700;
    let server = Server::start();
    let mut balancer = Balancer::of([&server]);
    let clients: Vec<Client> = (0..SESSIONS).map(|_| balancer.client()).collect();
    assert!(clients.iter().all(|client| client.server() == server.address()));
    // Both lie there when it looks again, one behind the other: it takes one connection in a turn.
    balancer.signal(Signal::SIGSTOP);
    let change = Change::KillAll { pool: "default".to_owned(), server: server.address() };
    let orders = [Request::Change { change, dry_run: false }, Request::Stop { now: true, drain_ms: None }];
    let mut peers = orders.map(|order| {
        let mut peer = UnixStream::connect(balancer.socket()).expect("connected");
        peer.set_read_timeout(Some(wait::LIMIT)).expect("set");
        peer.write_all(&[greeting(), frame(&order).expect("short")].concat()).expect("taken");
        peer
    });
    balancer.signal(Signal::SIGCONT);
    let mut answer = Vec::new();
    peers[0].read_to_end(&mut answer).expect("an end in order");
    let mut decoder: Decoder<Response> = Decoder::new(RESPONSE_LIMIT);
    decoder.push(&answer);
    match decoder.next().expect("an answer") {
        Some(Response::Changed(report)) => assert_eq!(report.sessions, SESSIONS),
        other => panic!("it ends without an answer: {other:?}"),
    }
    clients.iter().for_each(Client::assert_ended);
    assert_gone(&mut balancer);
}

#[test]
fn a_session_that_ends_in_order_while_it_stops_is_counted_so() {
    let server = Server::start();
    let mut balancer = Setup::new().options("--log-level debug").start();
    balancer.add_all([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    balancer.signal(Signal::SIGTERM);
    wait::until("it takes no more", || balancer.status().phase == Phase::Stopping);
    client.shut();
    assert_eq!(client.rest().expect("an end in order"), b"");
    assert_gone(&mut balancer);
    assert!(balancer.log().contains(&format!("reason={}", EndReason::ClientClosed)), "{}", balancer.log());
}

#[test]
fn a_service_manager_is_told_when_it_serves_that_it_lives_and_when_it_stops() {
    let setup = Setup::new();
    let path = setup.directory().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(wait::LIMIT)).expect("set");
    let mut balancer = setup.environment("NOTIFY_SOCKET", path).environment("WATCHDOG_USEC", "400000").start();
    let next = || {
        let mut news = [0; 512];
        let count = manager.recv(&mut news).expect("news");
        String::from_utf8(news[..count].to_vec()).expect("text").trim().to_owned()
    };
    assert_eq!(next(), "READY=1");
    for _ in 0..3 {
        assert_eq!(next(), "WATCHDOG=1");
    }
    balancer.signal(Signal::SIGTERM);
    wait::until("it says that it stops", || next() == "STOPPING=1");
    assert_eq!(balancer.wait_for_end().code(), Some(0));
}

#[test]
fn a_link_that_somebody_laid_where_others_may_write_is_not_followed() {
    for (name, options) in [("control.state", ""), ("control.pid", ""), ("control.state.lock", ""), ("log", "--log {}")]
    {
        let setup = Setup::new();
        let elsewhere = tempfile::NamedTempFile::new().expect("a file");
        let link = setup.directory().join(name);
        symlink(elsewhere.path(), &link).expect("made");
        fs::set_permissions(setup.directory(), fs::Permissions::from_mode(0o1777)).expect("set");
        let output = setup.clone().options(&options.replace("{}", &link.display().to_string())).run();
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(name) && said.contains("is a symbolic link in a directory that others may write"),
            "{said}"
        );
        assert_eq!(fs::read(elsewhere.path()).expect("there"), b"", "{name}");
    }
}

#[test]
fn everybody_who_waits_at_a_stop_is_let_in_however_many_they_are() {
    const WAITING: u32 = 5000;
    namespace::inside("everybody_who_waits_at_a_stop_is_let_in_however_many_they_are", || {
        namespace::set("core/somaxconn", "8192");
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raised");
        // The kernel takes connections for them, and nobody reads from those.
        let deaf: Vec<TcpListener> = (0..4).map(|_| tests::server::place(loopback::fresh())).collect();
        for socket in &deaf {
            nix::sys::socket::listen(socket, nix::sys::socket::Backlog::new(4000).expect("a number")).expect("listens");
        }
        let listen = loopback::free();
        let address = |socket: &TcpListener| (socket.local_addr().expect("bound"), 1);
        let text = format!("[service.web]\nlisten = \"{listen}\"\npool = \"web\"\nbacklog = 6000\n\n")
            + &tests::config::weighted("web", "policy = \"round-robin\"", deaf.iter().map(address));
        let balancer = Setup::new().config(&text).start();
        assert!(balancer.status().session_limit > u64::from(WAITING), "there are descriptors");
        balancer.signal(Signal::SIGSTOP);
        let clients: Vec<Client> =
            (0..WAITING).map(|number| Client::connect_from(loopback::client(number), listen)).collect();
        balancer.signal(Signal::SIGTERM);
        balancer.signal(Signal::SIGCONT);
        wait::until("it stops", || balancer.status().phase != Phase::Running);
        assert_eq!(balancer.service().total, u64::from(WAITING));
        drop(clients);
    });
}
