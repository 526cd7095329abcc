//! balancerctl from outside, against a daemon that says what the test wants.

mod fake;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use fake::Fake;
use nix::unistd::geteuid;
use serde_json::{Value, json};
use wire::control::Change;
use wire::report::{ChangeReport, DigestReport, ExplainReport, Hex, ListReport, Phase, StatusReport, StoppingReport};
use wire::{Refusal, Request, Response};

/// A command line, and an environment without anything of this machine's.
fn balancerctl(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balancerctl"));
    command.args(line.split_whitespace()).env_remove("BALANCER_SOCKET").stdin(Stdio::null());
    command
}

fn run(line: &str, socket: &Path) -> Output {
    balancerctl(line).arg("--socket").arg(socket).output().expect("balancerctl runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

/// Checks that a command failed as it should: with this code and one line that has these words.
fn assert_failed(output: &Output, code: i32, words: &str) {
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert!(errors.starts_with("balancerctl: ") && errors.contains(words), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

fn assert_done(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

fn value(output: &Output) -> Value {
    assert_eq!(text(&output.stdout).lines().count(), 1, "one line: {}", text(&output.stdout));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn server() -> SocketAddr {
    "10.0.0.1:80".parse().expect("an address")
}

fn changed(change: Change, dry_run: bool, unsaved: Option<String>) -> Response {
    let moves = Vec::new();
    Response::Changed(ChangeReport { change, dry_run, moved: 0.25, moves, sessions: 2, digest: Hex(7), unsaved })
}

fn status() -> Response {
    Response::Status(StatusReport {
        version: "0.1.0".into(),
        pid: 4711,
        uptime_ms: 5,
        phase: Phase::Running,
        services: Vec::new(),
        servers: 0,
        digest: Hex(7),
        session_limit: 100,
        state_file: "/tmp/s.state".into(),
        log: "/tmp/s.log".into(),
        unsaved: None,
        longest_turn_us: 9,
        log_lines_dropped: 0,
    })
}

#[test]
fn without_a_daemon_every_command_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("s");
    for line in
        ["list", "status", "digest", "stop", "explain 10.0.0.7", "add 10.0.0.1 80", "remove ::1 80 --now --dry-run"]
    {
        assert_failed(&run(line, &socket), 2, "start one with `balancerctl start ADDR PORT`");
        let output = run(&format!("{line} --json"), &socket);
        assert_failed(&output, 2, "no balancer answers");
        assert_eq!(value(&output)["error"], "no-daemon");
    }
}

#[test]
fn a_refusal_is_exit_code_1() {
    let refused = Response::Refused(Refusal::AlreadyThere { server: server(), weight: 3 });
    let fake = Fake::answering(&refused);
    assert_failed(&run("add 10.0.0.1 80", &fake.socket()), 1, "is in the pool already, with weight 3");

    let fake = Fake::answering(&refused);
    let output = run("add 10.0.0.1 80 --json", &fake.socket());
    assert_failed(&output, 1, "is in the pool already");
    let value = value(&output);
    assert_eq!(value["refused"], json!({"already-there": {"server": "10.0.0.1:80", "weight": 3}}));
    assert!(value["message"].as_str().expect("text").starts_with("10.0.0.1:80 is in the pool already"));

    let fake = Fake::answering(&Response::Refused(Refusal::NotThere { server: server() }));
    assert_failed(&run("remove 10.0.0.1 80", &fake.socket()), 1, "is not in the pool");
}

#[test]
fn who_is_no_daemon_of_this_version_is_exit_code_2() {
    let fake = Fake::of_version(7);
    assert_failed(&run("list", &fake.socket()), 2, "speaks version 7");
    let fake = Fake::saying(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    assert_failed(&run("list", &fake.socket()), 2, "is not a balancer");
    let fake = Fake::saying(b"");
    assert_failed(&run("list", &fake.socket()), 2, "closed the connection without an answer");
    let fake = Fake::answering(&Response::Digest(DigestReport {
        pool: "default".into(),
        digest: Hex(7),
        ring_format: 1,
        points_per_weight: 1024,
    }));
    assert_failed(&run("list", &fake.socket()), 2, "an answer to another question");
}

#[test]
fn a_socket_that_may_not_be_opened_is_exit_code_2() {
    let fake = Fake::answering(&status());
    fs::set_permissions(fake.directory(), fs::Permissions::from_mode(0o755)).expect("changed");
    fs::set_permissions(fake.socket(), fs::Permissions::from_mode(0o000)).expect("changed");
    let mut command = balancerctl("status");
    command.arg("--socket").arg(fake.socket());
    if geteuid().is_root() {
        // Root may open everything; somebody else may not. 65534 is nobody.
        command.uid(65534).gid(65534);
    }
    match command.output() {
        Ok(output) => assert_failed(&output, 2, "permission to use"),
        Err(error) => eprintln!("not tested: nobody may run {}: {error}", env!("CARGO_BIN_EXE_balancerctl")),
    }
}

#[test]
fn what_no_server_can_have_needs_no_daemon_to_be_refused() {
    for (line, code, words) in [
        ("add 10.0.0.1 0", 1, "port 0"),
        ("remove 10.0.0.1 0", 1, "port 0"),
        ("add 0.0.0.0 80", 1, "unspecified"),
        ("add 224.0.0.1 80", 1, "multicast"),
        ("add 255.255.255.255 80", 1, "broadcast"),
        ("add fe80::1 80", 1, "link-local"),
        ("add fe80::1%lo 80", 2, "has a zone"),
        ("add 10.0.0.1:80 80", 2, "as two"),
        ("add 300.0.0.1 80", 2, "is not an IP address"),
        ("add http://web 80", 2, "neither an IP address nor a host name"),
        ("add name.invalid 80", 2, "cannot be looked up"),
        ("explain 10.0.0", 2, "is not an IP address"),
        ("start 10.0.0 80", 2, "is not an IP address"),
    ] {
        assert_failed(&run(line, Path::new("/nonexistent/s")), code, words);
    }
}

#[test]
fn a_change_is_sent_as_it_was_typed() {
    let v6: SocketAddr = "[2001:db8::1]:80".parse().expect("an address");
    for (line, change, dry_run) in [
        ("add 10.0.0.1 80", Change::Add { server: server(), weight: 1 }, false),
        ("add ::ffff:10.0.0.1 80 --weight 7", Change::Add { server: server(), weight: 7 }, false),
        ("add [2001:db8::1] 80 --dry-run", Change::Add { server: v6, weight: 1 }, true),
        ("remove 2001:db8::1 80", Change::Remove { server: v6, now: false }, false),
        ("remove 10.0.0.1 80 --now --dry-run", Change::Remove { server: server(), now: true }, true),
    ] {
        let fake = Fake::answering(&changed(change.clone(), dry_run, None));
        let output = run(line, &fake.socket());
        assert_done(&output);
        assert_eq!(fake.request(), Request::Change { change, dry_run }, "{line}");
        assert!(text(&output.stdout).contains("25.00% of the clients"), "{}", text(&output.stdout));
        assert_eq!(text(&output.stderr), "");
    }
}

#[test]
fn a_change_that_is_not_saved_is_a_warning() {
    let change = Change::Add { server: server(), weight: 1 };
    let fake = Fake::answering(&changed(change, false, Some("the disk is full".into())));
    let output = run("add 10.0.0.1 80 --json", &fake.socket());
    assert_done(&output);
    assert!(text(&output.stderr).starts_with("balancerctl: warning: "), "{}", text(&output.stderr));
    assert_eq!(value(&output)["unsaved"], "the disk is full");
}

#[test]
fn reports_are_printed_as_they_are_for_programs() {
    let list = ListReport { pool: "default".into(), digest: Hex(255), servers: Vec::new() };
    let explain = ExplainReport {
        client: "10.0.0.7".parse().expect("an address"),
        hash: Hex(1),
        point: Some(Hex(2)),
        server: Some(server()),
        next: Vec::new(),
        skipped: Vec::new(),
    };
    for (line, response, expected) in [
        ("list", Response::List(list), json!({"pool": "default", "digest": "00000000000000ff", "servers": []})),
        (
            "explain 10.0.0.7:51234",
            Response::Explained(explain),
            json!({
                "client": "10.0.0.7", "hash": "0000000000000001", "point": "0000000000000002",
                "server": "10.0.0.1:80", "next": [], "skipped": []
            }),
        ),
    ] {
        let fake = Fake::answering(&response);
        let output = run(&format!("{line} --json"), &fake.socket());
        assert_done(&output);
        assert_eq!(value(&output), expected);
    }
}

#[test]
fn the_environment_names_the_socket_and_the_option_has_precedence() {
    let fake = Fake::answering(&status());
    let output = balancerctl("status").env("BALANCER_SOCKET", fake.socket()).output().expect("balancerctl runs");
    assert_done(&output);
    assert!(text(&output.stdout).contains("pid 4711"), "{}", text(&output.stdout));
    let fake = Fake::answering(&status());
    let output = balancerctl("status --socket /nonexistent/s").env("BALANCER_SOCKET", fake.socket()).output();
    assert_failed(&output.expect("balancerctl runs"), 2, "/nonexistent/s");
}

#[test]
fn stop_waits_until_the_daemon_has_ended() {
    let stopping = |drain_ms| Response::Stopping(StoppingReport { pid: 4711, sessions: 2, drain_ms });
    let fake = Fake::ending(&stopping(1500));
    let output = run("stop --drain 1500ms", &fake.socket());
    assert_done(&output);
    assert_eq!(fake.request(), Request::Stop { now: false, drain_ms: Some(1500) });
    assert_eq!(
        text(&output.stdout),
        "balancer is stopping; 2 sessions may go on for 1 s\nbalancer stopped, pid 4711\n"
    );
    let fake = Fake::ending(&stopping(0));
    let output = run("stop --now --json", &fake.socket());
    assert_done(&output);
    assert_eq!(fake.request(), Request::Stop { now: true, drain_ms: None });
    assert_eq!(value(&output), json!({"pid": 4711, "sessions": 2, "drain_ms": 0, "ended": true}));
    // This one never ends.
    let fake = Fake::answering(&stopping(30_000));
    let output = run("stop --no-wait --json", &fake.socket());
    assert_done(&output);
    assert_eq!(value(&output)["ended"], false);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = balancerctl("completions bash");
    let output = command.stdout(writer).stderr(Stdio::piped()).spawn().expect("balancerctl runs").wait_with_output();
    let output = output.expect("it ends");
    assert_done(&output);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_path_that_cannot_be_a_socket_is_named() {
    let long = format!("/tmp/{}", "x".repeat(110));
    assert_failed(&run("list", Path::new(&long)), 2, "is too long for a socket");
    let output = balancerctl("list").env("BALANCER_SOCKET", "").output().expect("balancerctl runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("unset BALANCER_SOCKET"), "{}", text(&output.stderr));
}

/// `start` of a balancerctl that has the script `balancerd` of this directory in its PATH, and none beside itself.
fn start(line: &str, socket: &Path, says: &str, exit: i32) -> (Output, String) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let program = directory.path().join("balancerctl");
    // A link, not a copy: a file that was just written cannot be run while another test forks.
    fs::hard_link(env!("CARGO_BIN_EXE_balancerctl"), &program).expect("linked");
    let arguments = directory.path().join("arguments");
    let mut command = Command::new(program);
    command.arg("--socket").arg(socket).arg("start").args(line.split_whitespace());
    command.env("PATH", format!("{}/tests/cli:/bin:/usr/bin", env!("CARGO_MANIFEST_DIR")));
    command.env("FAKE_ARGUMENTS", &arguments).env("FAKE_SAYS", says).env("FAKE_EXIT", exit.to_string());
    let output = command.output().expect("balancerctl runs");
    (output, fs::read_to_string(arguments).unwrap_or_default())
}

#[test]
fn start_reports_the_daemon_that_it_started() {
    let fake = Fake::answering(&status());
    let socket = fake.socket();
    let (output, arguments) = start("::1 0 --state /tmp/x -- --idle-timeout 10m", &socket, "", 0);
    assert_done(&output);
    let expected = ["--background", "--listen", "[::1]:0", "--socket", socket.to_str().expect("text"), "--state"];
    assert_eq!(
        arguments.lines().collect::<Vec<_>>(),
        [expected.as_slice(), &["/tmp/x", "--idle-timeout", "10m"]].concat()
    );
    assert!(text(&output.stdout).contains("pid 4711") && text(&output.stdout).contains("/tmp/s.log"));
}

#[test]
fn start_passes_on_why_the_daemon_did_not() {
    let (output, _) = start("127.0.0.1 80", Path::new("/tmp/none/s"), "balancerd: 127.0.0.1:80 is in use", 1);
    assert_failed(&output, 1, "the balancer did not start: 127.0.0.1:80 is in use");
    let (output, _) = start("127.0.0.1 80", Path::new("/tmp/none/s"), "", 3);
    assert_failed(&output, 1, "said nothing");
    let (output, arguments) = start("127.0.0.1 80 -- --listen=x", Path::new("/tmp/none/s"), "", 0);
    assert_failed(&output, 2, "does not go behind `--`");
    assert_eq!(arguments, "", "nothing was run");
}

#[test]
fn start_without_balancerd_says_where_it_looked() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let program = directory.path().join("balancerctl");
    fs::hard_link(env!("CARGO_BIN_EXE_balancerctl"), &program).expect("linked");
    let output = Command::new(program).args(["start", "::1", "0", "--socket", "/tmp/none/s"]).env("PATH", "").output();
    let output = output.expect("balancerctl runs");
    assert_failed(&output, 2, "balancerd is neither ");
    assert!(text(&output.stderr).contains(&directory.path().display().to_string()));
}

#[test]
fn pages_and_completions_are_generated() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = balancerctl("man --out").arg(directory.path()).output().expect("balancerctl runs");
    assert_done(&output);
    let page = fs::read_to_string(directory.path().join("balancerctl-add.1")).expect("a page");
    assert!(page.contains(".SH EXAMPLES"), "{page}");
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef balancerctl"), ("fish", "complete -c balancerctl")]
    {
        let output = balancerctl(&format!("completions {shell}")).output().expect("balancerctl runs");
        assert_done(&output);
        assert!(text(&output.stdout).contains(word), "{shell}");
    }
}

#[test]
fn help_teaches() {
    let output = balancerctl("--help").output().expect("balancerctl runs");
    assert_done(&output);
    for word in ["Examples:", "balancerctl demo", "BALANCER_SOCKET", "Exit codes:"] {
        assert!(text(&output.stdout).contains(word), "{word} in {}", text(&output.stdout));
    }
}
