//! Signals: each means what it means elsewhere, or nothing, and none ends a balancer in the middle of its sessions.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use tests::{Balancer, Client, Server, Setup, programs, wait};
use wire::report::{EndReason, Phase};

fn serving(setup: Setup) -> (Balancer, Server, Client) {
    let (balancer, server) = (setup.start(), Server::start());
    balancer.add_all([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    (balancer, server, client)
}

/// Sets the length that a file of a process may have, in bytes.
fn limit_files(pid: u32, bytes: u64) {
    let status = Command::new("prlimit").args([format!("--pid={pid}"), format!("--fsize={bytes}:unlimited")]).status();
    assert!(status.expect("prlimit runs").success());
}

#[test]
fn a_signal_that_means_nothing_ends_nothing() {
    let (mut balancer, server, client) = serving(Setup::new().options("--log-level debug"));
    for signal in [
        Signal::SIGALRM,
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGIO,
        Signal::SIGPIPE,
        Signal::SIGXFSZ,
        Signal::SIGSTKFLT,
        Signal::SIGPWR,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGHUP,
    ] {
        balancer.signal(signal);
        balancer.wait_for_log(signal.as_str());
        assert_eq!(client.exchange(b"still here"), b"still here", "{signal}");
        assert_eq!(balancer.client().server(), server.address(), "{signal}");
    }
    balancer.wait_for_log("SIGUSR2 does nothing");
    client.shut();
    assert_eq!(client.rest().expect("an end in order"), b"");
    balancer.signal(Signal::SIGTERM);
    assert_eq!(balancer.wait_for_end().code(), Some(0));
}

#[test]
fn sigquit_is_an_orderly_end_however_often_it_comes() {
    let (mut balancer, _server, client) = serving(Setup::new());
    balancer.signal(Signal::SIGQUIT);
    wait::until("it takes no more", || balancer.status().phase == Phase::Stopping);
    balancer.signal(Signal::SIGQUIT);
    balancer.wait_for_log("it stops already");
    assert_eq!(client.exchange(b"still here"), b"still here");
    client.shut();
    assert_eq!(client.rest().expect("an end in order"), b"");
    assert_eq!(balancer.wait_for_end().code(), Some(0));
    assert!(!balancer.socket().exists(), "nothing is left");
}

#[test]
fn sigterm_after_sigquit_ends_at_once() {
    let (mut balancer, _server, client) = serving(Setup::new());
    balancer.signal(Signal::SIGQUIT);
    wait::until("it takes no more", || balancer.status().phase == Phase::Stopping);
    balancer.signal(Signal::SIGTERM);
    client.assert_ended();
    assert_eq!(balancer.wait_for_end().code(), Some(0));
}

#[test]
fn sigusr1_opens_the_log_again() {
    let setup = Setup::new();
    let (log, old) = (setup.directory().join("log"), setup.directory().join("log.1"));
    let (balancer, _server, client) = serving(setup.options(&format!("--log {}", log.display())));
    wait::until("it logs", || fs::read_to_string(&log).is_ok_and(|text| text.contains("carried out")));
    fs::rename(&log, &old).expect("moved");
    balancer.signal(Signal::SIGUSR1);
    wait::until("the new file is there", || fs::read_to_string(&log).is_ok_and(|text| text.contains("SIGUSR1")));
    assert!(!fs::read_to_string(&old).expect("there").contains("SIGUSR1"), "no line goes to the old file");
    assert_eq!(client.exchange(b"still here"), b"still here");
}

#[test]
fn a_log_at_the_limit_of_its_size_loses_lines_and_nobody_is_disturbed() {
    let setup = Setup::new();
    let log = setup.directory().join("log");
    let (balancer, server, client) = serving(setup.options(&format!("--log {} --log-level debug", log.display())));
    limit_files(balancer.pid(), 4096);
    wait::until("lines are lost", || {
        assert_eq!(balancer.client().server(), server.address());
        balancer.status().log_lines_dropped > 0
    });
    assert!(fs::metadata(&log).expect("there").len() <= 4096);
    assert_eq!(client.exchange(b"still here"), b"still here");
    // Whoever rotates it gets all of them again.
    fs::remove_file(&log).expect("there");
    balancer.signal(Signal::SIGUSR1);
    wait::until("the new file is there", || fs::read_to_string(&log).is_ok_and(|text| text.contains("SIGUSR1")));
    assert_eq!(balancer.ended(EndReason::Fault), 0);
}

#[test]
fn balancerctl_tells_that_a_file_is_as_long_as_it_may_become() {
    let setup = Setup::new();
    let to = setup.directory().join("saved.toml");
    let (balancer, _server, _client) = serving(setup);
    let line = "ulimit -f 0; exec \"$0\" \"$@\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).arg(&programs::programs().balancerctl).arg("save").arg(&to);
    let output = shell.arg("--socket").arg(balancer.socket()).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("File too large"), "{output:?}");
    assert!(!to.exists(), "nothing is left");
}
