//! balancerctl with a real daemon: what people type, right and wrong.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tests::balancer::{balancerctl, balancerd};
use tests::{Balancer, Client, Process, Server, Setup, config, loopback, wait};
use wire::Response;
use wire::report::{EndReason, StatusReport};

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

/// Checks that it is done, and gives what it said.
fn done(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Checks that it failed with this code, and one line that has these words.
fn assert_failed(output: &Output, code: i32, words: &str) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.starts_with("balancerctl: ") && said.lines().count() == 1 && said.contains(words), "{said}");
    assert_eq!(text(&output.stdout), "", "nothing else");
}

#[test]
fn the_connections_that_commands_set_hold_after_a_restart() {
    let mut balancer = Balancer::start();
    let ip = loopback::free().ip();
    done(
        &balancer
            .ctl("pool set default --connect-timeout 500ms --tries 5 --replay 64KiB --source 127.0.0.8 --source ::1"),
    );
    done(&balancer.ctl(&format!(
        "service add web {ip} 0 --idle-timeout 10m --half-closed-timeout 5s --max-age 1day --keepalive 0s"
    )));
    for (line, code, words) in [
        ("pool set default --source 127.0.0.9 --source ::ffff:127.0.0.9", 1, "source: 127.0.0.9 is there twice"),
        ("pool set default --source none --source 127.0.0.9", 2, "--source none"),
    ] {
        assert_failed(&balancer.ctl(line), code, words);
    }
    let told = "connect timeout 500ms, 5 tries, replay of 64KiB, source 127.0.0.8 ::1";
    let of_service = "web has idle timeout 10m, half-closed timeout 5s, max age 1day, no keepalive";
    for _ in 0..2 {
        let (pools, services) = (balancer.ctl("pool list"), balancer.ctl("service list"));
        assert!(done(&pools).contains(told), "{}", done(&pools));
        assert!(done(&services).contains(of_service), "{}", done(&services));
        balancer.restart();
    }
    done(&balancer.ctl("pool set default --connect-timeout none --tries 3 --replay 0 --source none"));
    assert_eq!(balancer.list().settings.server_side, wire::connection::ServerSide::default());
}

#[test]
fn an_address_that_no_server_can_have_is_refused_by_name() {
    let balancer = Balancer::start();
    for (line, code, words) in [
        ("add 10.0.0.1 0", 1, "port 0"),
        ("add 0.0.0.0 80", 1, "unspecified"),
        ("add :: 80", 1, "unspecified"),
        ("add ::ffff:0.0.0.0 80", 1, "unspecified"),
        ("add 224.0.0.1 80", 1, "multicast"),
        ("add ff02::1 80", 1, "multicast"),
        ("add 255.255.255.255 80", 1, "broadcast"),
        ("add fe80::1 80", 1, "link-local"),
        ("add 10.0.0.1 80 --weight 257", 1, "0 to 256"),
        ("add 10.0.0.1 80 --weight 300", 1, "0 to 256"),
        ("add 10.0.0.1 80 --weight 4294967295", 1, "0 to 256"),
        ("add 10.0.0.256 80", 2, "not an IP address"),
        ("add 10.0.0 80", 2, "not an IP address"),
        ("add 10.0.0.1:80 80", 2, "as two"),
        ("add [::1 80", 2, "not an IP address"),
        ("add a..b 80", 2, "neither an IP address nor a host name"),
        ("add there-is-no-such-host.invalid 80", 2, "cannot be looked up"),
        ("remove 10.0.0.1 80", 1, "is not in the pool"),
        ("remove 10.0.0.1 80 --dry-run", 1, "is not in the pool"),
        ("explain 10.0.0.256", 2, "not an IP address"),
    ] {
        assert_failed(&balancer.ctl(line), code, words);
    }
    assert!(balancer.list().servers.is_empty() && !balancer.file("control.state").exists(), "nothing was changed");
}

#[test]
fn what_cannot_be_understood_is_code_2_and_names_the_word() {
    let balancer = Balancer::start();
    for (line, word) in [
        ("add 10.0.0.1", "<PORT>"),
        ("add 10.0.0.1 http", "'http'"),
        ("add 10.0.0.1 65536", "'65536'"),
        ("add 10.0.0.1 -1", "'-1'"),
        ("add 10.0.0.1 80 --weight x", "'x'"),
        ("add 10.0.0.1 80 --weight=-1", "'-1'"),
        ("add 10.0.0.1 80 90", "'90'"),
        ("add 10.0.0.1 80 --now", "'--now'"),
        ("dance", "'dance'"),
        ("stop --drain soon", "'soon'"),
        ("stop --now --drain 1s", "'--now'"),
    ] {
        let output = balancer.ctl(line);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {said}");
        assert!(said.starts_with("error: ") && said.contains(word) && !said.contains("panicked"), "{line}: {said}");
    }
    assert!(balancer.list().servers.is_empty());
}

#[test]
fn the_balancers_own_address_is_no_server() {
    let balancer = Balancer::start();
    let own = balancer.address();
    assert_failed(&balancer.ctl(&format!("add {} {}", own.ip(), own.port())), 1, "the balancer's own address");
    let all = Setup::new().listen("[::]:0".parse().expect("an address")).start();
    for ip in ["127.0.0.1", "127.9.9.9", "::1", "localhost"] {
        let output = all.ctl(&format!("add {ip} {}", all.address().port()));
        assert_eq!(output.status.code(), Some(1), "{ip}");
        assert!(text(&output.stderr).contains("the balancer's own address"), "{ip}: {}", text(&output.stderr));
    }
    assert!(all.list().servers.is_empty());
}

#[test]
fn a_server_is_added_once_however_it_is_written() {
    let balancer = Balancer::start();
    done(&balancer.ctl("add 10.0.0.1 80 --weight 3"));
    for line in ["add 10.0.0.1 80", "add ::ffff:10.0.0.1 80", "add [::ffff:a00:1] 80 --weight 7"] {
        assert_failed(&balancer.ctl(line), 1, "10.0.0.1:80 is in the pool already, with weight 3");
    }
    done(&balancer.ctl("add 10.0.0.1 81"));
    done(&balancer.ctl("add [2001:db8::1] 80"));
    assert_failed(&balancer.ctl("add 2001:DB8:0::1 80"), 1, "[2001:db8::1]:80 is in the pool already");
    done(&balancer.ctl("remove 2001:db8::1 80"));
    assert_failed(&balancer.ctl("remove [2001:db8::1] 80"), 1, "is not in the pool");
    done(&balancer.ctl("add localhost 82"));
    let servers: Vec<_> = balancer.list().servers.into_iter().map(|report| report.server.to_string()).collect();
    assert!(servers.contains(&"127.0.0.1:82".into()) || servers.contains(&"[::1]:82".into()), "{servers:?}");
    assert_eq!(servers.len(), 3);
}

#[test]
fn what_is_typed_is_what_happens() {
    let servers = Server::several(2);
    let balancer = Balancer::start();
    for server in &servers {
        let line = format!("add {} {} --dry-run", server.address().ip(), server.address().port());
        done(&balancer.ctl(&line));
        assert!(!balancer.ctl("list").stdout.is_empty());
        done(&balancer.ctl(line.trim_end_matches(" --dry-run")));
    }
    let client = balancer.client_number(5);
    let (name, other) = (client.server(), balancer.explain(loopback::client(5)).next[0]);
    let said = balancer.ctl(&format!("explain {}", loopback::client(5)));
    assert!(done(&said).contains(&format!("{} gets {name}", loopback::client(5))), "{}", text(&said.stdout));
    assert!(done(&said).contains(&other.to_string()), "and who is next");

    let list: Value = serde_json::from_str(done(&balancer.ctl("list --json"))).expect("JSON");
    let listed = list["servers"].as_array().expect("servers");
    let its = listed.iter().find(|report| report["server"] == name.to_string()).expect("it is listed");
    assert_eq!((its["active"].as_u64(), its["state"].as_str()), (Some(1), Some("ready")));

    done(&balancer.ctl(&format!("remove {} {}", name.ip(), name.port())));
    assert!(done(&balancer.ctl("list")).contains("leaving"));
    assert_eq!(client.exchange(b"x"), b"x");
    done(&balancer.ctl(&format!("remove {} {} --now", name.ip(), name.port())));
    client.assert_ended();
    balancer.wait_for_ends(EndReason::Removed, 1);
    assert_eq!(balancer.client_number(5).server(), other);
}

#[test]
fn two_balancers_that_agree_print_the_same_digest() {
    let (one, two) = (Balancer::start(), Balancer::start());
    for (balancer, line) in [(&one, "10.0.0.1 80"), (&one, "10.0.0.2 80"), (&two, "10.0.0.2 80"), (&two, "10.0.0.1 80")]
    {
        done(&balancer.ctl(&format!("add {line}")));
    }
    assert_eq!(done(&one.ctl("digest")), done(&two.ctl("digest")));
    done(&two.ctl("add 10.0.0.3 80 --weight 0"));
    assert_eq!(done(&one.ctl("digest")), done(&two.ctl("digest")), "a server without clients changes no client's");
    done(&two.ctl("remove 10.0.0.1 80"));
    assert_ne!(done(&one.ctl("digest")), done(&two.ctl("digest")));
}

#[test]
fn without_a_daemon_every_command_is_code_2() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("none.sock");
    for line in ["list", "status", "digest", "stop", "explain 10.0.0.1", "add 10.0.0.1 80", "remove 10.0.0.1 80"] {
        let output = balancerctl(line).arg("--socket").arg(&socket).output().expect("balancerctl runs");
        assert_failed(&output, 2, "no balancer answers at");
    }
    let output = balancerctl("status").env("BALANCER_SOCKET", &socket).output().expect("balancerctl runs");
    assert_failed(&output, 2, "none.sock");
}

/// A balancer in the background, started as people start it. It is killed when this is dropped.
struct Started {
    directory: TempDir,
}

impl Started {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    fn ctl(&self, line: &str) -> Output {
        let mut command = balancerctl("");
        command.arg("--socket").arg(self.socket()).args(line.split_whitespace());
        command.output().expect("balancerctl runs")
    }

    fn start(&self, options: &str) -> Output {
        self.ctl(&format!("start {} 0 -- {options}", loopback::fresh()))
    }

    fn status(&self) -> Option<StatusReport> {
        match wire::Client::connect(&self.socket()).ok()?.call(&wire::Request::Status).ok()? {
            Response::Status(report) => Some(report),
            other => panic!("an answer to another question: {other:?}"),
        }
    }

    fn address(&self) -> SocketAddr {
        self.status().expect("it runs").services[0].addresses[0]
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(status) = self.status() {
            let _ = kill(Pid::from_raw(status.pid.cast_signed()), Signal::SIGKILL);
        }
    }
}

#[test]
fn start_stop_and_start_again_keep_the_pool() {
    let (started, server) = (Started::new(), Server::start());
    let said = started.start("");
    let (address, pid) = (started.address(), started.status().expect("it runs").pid);
    assert!(done(&said).contains(&format!("listening on {address}, pid {pid}")), "{}", text(&said.stdout));
    done(&started.ctl(&format!("add {} {} --weight 2", server.address().ip(), server.address().port())));
    assert_eq!(Client::connect(address).server(), server.address());

    assert_failed(&started.start(""), 1, &format!("a balancer runs already with pid {pid}"));
    assert_eq!(Client::connect(address).server(), server.address(), "the first is untouched");

    assert!(done(&started.ctl("stop")).contains(&format!("balancer stopped, pid {pid}")));
    wait::until("its files are gone", || !started.socket().exists());
    assert_failed(&started.ctl("stop"), 2, "no balancer answers at");
    done(&started.start(""));
    let again = started.status().expect("it runs");
    assert!(again.pid != pid && again.servers == 1);
    assert_eq!(Client::connect(started.address()).server(), server.address());
    assert!(
        fs::read_to_string(started.directory.path().join("control.log")).expect("a log").contains("balancer started")
    );
}

#[test]
fn a_port_in_use_is_said_in_the_daemons_own_words() {
    let (started, server) = (Started::new(), Server::start());
    let taken = server.address();
    let output = started.ctl(&format!("start {} {}", taken.ip(), taken.port()));
    assert_failed(&output, 1, "the balancer did not start");
    let said = text(&output.stderr);
    assert!(said.contains(&format!("listening on {taken}")) && said.contains("Address already in use"), "{said}");
    assert_eq!(started.status(), None);
    let left: Vec<_> = fs::read_dir(started.directory.path()).expect("the directory").collect();
    assert!(!left.iter().flatten().any(|file| file.file_name() == "control.sock"), "{left:?}");
    done(&started.start(""));
}

#[test]
fn a_start_that_makes_no_sense_is_one_line() {
    let started = Started::new();
    for (line, code, words) in [
        ("start 10.0.0.256 80", 2, "not an IP address"),
        ("start 192.0.2.1 0", 1, "192.0.2.1"),
        ("start 127.0.0.1 0 -- --no-such-option", 1, "'--no-such-option'"),
        ("start 127.0.0.1 0 -- --idle-timeout 0s", 1, "--idle-timeout"),
        ("start 127.0.0.1 0 -- --listen 127.0.0.1:1", 2, "--listen does not go behind"),
    ] {
        assert_failed(&started.ctl(line), code, words);
    }
    assert_eq!(started.status(), None);
}

#[test]
fn a_daemon_in_the_background_has_let_go_of_its_starter() {
    let started = Started::new();
    done(&started.start(""));
    let pid = started.status().expect("it runs").pid;
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).expect("a link");
    assert_eq!(link("cwd"), PathBuf::from("/"));
    for descriptor in 0..3 {
        assert_eq!(link(&format!("fd/{descriptor}")), PathBuf::from("/dev/null"));
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let session = stat.rsplit_once(')').expect("a name").1.split_whitespace().nth(3).expect("a session").to_owned();
    let own = nix::unistd::getsid(None).expect("a session");
    assert_ne!(session, own.to_string(), "a hang-up of the terminal does not reach it");
}

#[test]
fn a_log_in_the_background_is_relative_to_where_it_was_started() {
    let started = Started::new();
    let here = started.directory.path().join("here");
    fs::create_dir_all(here.join("logs")).expect("made");
    let mut command = balancerd(&format!("--listen {}:0 --background --log logs/its.log", loopback::fresh()));
    let output = command.arg("--socket").arg(started.socket()).current_dir(&here).output().expect("balancerd runs");
    done(&output);
    let log = here.join("logs/its.log");
    wait::until("it logs there", || fs::read_to_string(&log).is_ok_and(|text| text.contains("balancer started")));
    assert_eq!(started.status().expect("it runs").log, log.display().to_string());
}

#[test]
fn a_log_that_leads_nowhere_in_the_background_is_refused() {
    let started = Started::new();
    for target in ["stderr", "journald"] {
        let mut command = balancerd(&format!("--listen {}:0 --background --log {target}", loopback::fresh()));
        let output = command.arg("--socket").arg(started.socket()).output().expect("balancerd runs");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let words = format!("--log {target} leads nowhere in the background");
        assert!(said.starts_with("balancerd: ") && said.lines().count() == 1 && said.contains(&words), "{said}");
        assert_eq!(started.status(), None);
        assert_eq!(fs::read_dir(started.directory.path()).expect("the directory").count(), 0, "nothing is left");
    }
}

#[test]
fn stop_waits_for_the_sessions_and_says_so() {
    let (started, server) = (Started::new(), Server::start());
    done(&started.start(""));
    done(&started.ctl(&format!("add {} {}", server.address().ip(), server.address().port())));
    let client = Client::connect(started.address());
    assert_eq!(client.server(), server.address());
    thread::scope(|scope| {
        let stopping = scope.spawn(|| started.ctl("stop"));
        wait::until("it takes no more", || {
            started.status().is_some_and(|status| status.phase == wire::report::Phase::Stopping)
        });
        assert!(!stopping.is_finished());
        assert_eq!(client.exchange(b"to the end"), b"to the end");
        client.shut();
        assert!(done(&stopping.join().expect("it ran")).contains("balancer stopped"));
    });
    wait::until("its files are gone", || !started.socket().exists());
}

#[test]
fn stop_now_closes_the_sessions() {
    let (started, server) = (Started::new(), Server::start());
    done(&started.start(""));
    done(&started.ctl(&format!("add {} {}", server.address().ip(), server.address().port())));
    let client = Client::connect(started.address());
    assert_eq!(client.server(), server.address());
    let said: Value = serde_json::from_str(done(&started.ctl("stop --now --json"))).expect("JSON");
    assert_eq!((said["sessions"].as_u64(), said["ended"].as_bool()), (Some(1), Some(true)));
    client.assert_ended();
    wait::until("its files are gone", || !started.socket().exists());
}

#[test]
fn stop_with_a_drain_time_closes_what_is_left_after_it() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    assert!(done(&balancer.ctl("stop --drain 200ms")).contains("balancer stopped"));
    client.assert_ended();
}

#[test]
fn the_answer_of_a_reader_who_has_gone_is_no_failure() {
    let balancer = Balancer::start();
    for number in 0..50 {
        balancer.add(SocketAddr::new(loopback::client(number), 80));
    }
    let mut command = balancerctl("list");
    let (read, write) = std::io::pipe().expect("a pipe");
    drop(read);
    let mut process = Process::spawn(command.arg("--socket").arg(balancer.socket()).stdout(write));
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn the_demo_works_and_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = balancerctl("demo").env("TMPDIR", directory.path()).output().expect("balancerctl runs");
    assert!(!done(&output).is_empty());
    let left: Vec<_> = fs::read_dir(directory.path()).expect("the directory").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn help_and_version_are_code_0() {
    for line in ["--help", "--version", "help add", "add --help", "completions bash"] {
        assert!(!done(&balancerctl(line).output().expect("balancerctl runs")).is_empty());
    }
}

#[test]
fn a_page_is_printed_whatever_the_environment_sets() {
    for (page, words) in [("man", ".TH balancerd"), ("bash", "complete -F"), ("zsh", "#compdef"), ("fish", "complete")]
    {
        let mut command = balancerd(&format!("--generate {page}"));
        let output = command.env("BALANCER_SOCKET", "x").env("BALANCER_LOG", "debug").output().expect("balancerd runs");
        assert!(done(&output).contains(words), "{page}: {}", text(&output.stdout));
    }
}

#[test]
fn of_many_that_start_at_once_one_starts() {
    let started = Started::new();
    let outputs: Vec<Output> = thread::scope(|scope| {
        let starts: Vec<_> = (0..6).map(|_| scope.spawn(|| started.start(""))).collect();
        starts.into_iter().map(|start| start.join().expect("it ran")).collect()
    });
    let (done, failed): (Vec<_>, Vec<_>) = outputs.iter().partition(|output| output.status.success());
    assert_eq!(done.len(), 1, "{outputs:?}");
    for output in failed {
        assert_failed(output, 1, "a balancer runs already");
    }
    assert!(text(&done[0].stdout).contains(&format!("pid {}", started.status().expect("it runs").pid)));
}

#[test]
fn a_place_that_cannot_be_is_one_line() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("file"), "").expect("written");
    for (socket, code, words) in
        [("file/control.sock".to_owned(), 1, "file"), (format!("{}/control.sock", "x".repeat(120)), 2, "too long")]
    {
        let mut command = balancerctl("start 127.0.0.1 0");
        let output = command.arg("--socket").arg(directory.path().join(socket)).output().expect("balancerctl runs");
        assert_failed(&output, code, words);
    }
}

#[test]
fn stop_does_not_say_that_it_is_done_before_it_is() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    thread::scope(|scope| {
        let stopping = scope.spawn(|| balancer.ctl("stop"));
        wait::until("it takes no more", || balancer.status().phase == wire::report::Phase::Stopping);
        // Others come to the control socket, more than there may be at a time, and say nothing.
        let others: Vec<_> =
            (0..100).map(|_| std::os::unix::net::UnixStream::connect(balancer.socket()).expect("taken")).collect();
        assert_eq!(balancer.service().active, 1);
        wait::a_moment();
        let early = stopping.is_finished();
        drop((others, client));
        assert!(!early, "{}", text(&stopping.join().expect("it ran").stdout));
    });
}

#[test]
fn more_points_than_a_ring_may_have_are_refused_and_nothing_changes() {
    let balancer = Setup::new().options("--points-per-weight 100000000").start();
    assert_failed(&balancer.ctl("add 10.0.0.1 80"), 1, "points and may have");
    assert!(balancer.list().servers.is_empty());
    done(&balancer.ctl("add 10.0.0.1 80 --weight 0"));
}

#[test]
fn a_reader_that_goes_is_no_fault_of_what_is_printed() {
    let (server, file) = (Server::start(), tempfile::NamedTempFile::new().expect("a file"));
    let balancer = Balancer::of([&server]);
    let text = config::service("web", loopback::free(), "web") + &config::pool("web", "", [&server]);
    fs::write(file.path(), text).expect("written");
    let path = file.path().display();
    let daemon = [
        "--generate man",
        "--generate bash",
        "--help",
        "--version",
        &format!("--check {path}"),
        &format!("--check {path} --json"),
    ]
    .map(balancerd);
    let control = [
        "list",
        "list --json",
        "status",
        "status --json",
        "sessions",
        "events",
        "service list",
        "pool list",
        "completions bash",
        "--help",
        "add --help",
    ]
    .map(|line| {
        let mut command = balancerctl(line);
        command.env("BALANCER_SOCKET", balancer.socket());
        command
    });
    for mut command in daemon.into_iter().chain(control) {
        // Nobody reads: the other end is closed before the program begins.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = command.stdout(writer).stderr(Stdio::piped()).output().expect("it runs");
        assert_eq!(
            (output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()),
            (Some(0), ""),
            "{command:?}"
        );
    }
}

#[test]
fn control_characters_of_arguments_reach_no_terminal() {
    let raw = "/nowhere/\u{1b}[31mred\u{7}\u{9b}1m";
    let daemon =
        [vec!["--check", raw], vec!["--listen", raw], vec!["--listen", "127.0.0.1:0", "--log", raw], vec![raw]]
            .map(|words| (balancerd(""), words));
    let control =
        [vec![raw], vec!["add", raw, "80"], vec!["--socket", raw, "status"], vec!["check", raw], vec!["import", raw]]
            .map(|words| (balancerctl(""), words));
    let directory = tempfile::tempdir().expect("a directory");
    for (mut command, words) in daemon.into_iter().chain(control) {
        let socket = directory.path().join("control.sock");
        let output = command.env("BALANCER_SOCKET", socket).args(words).output().expect("it runs");
        assert_ne!(output.status.code(), Some(0), "{command:?}");
        let said = text(&output.stderr);
        assert!(said.contains("red"), "{command:?}: {said:?}");
        assert!(!said.contains(|c: char| c.is_control() && c != '\n'), "{command:?}: {said:?}");
    }
}
