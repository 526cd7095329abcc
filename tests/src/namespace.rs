//! A test in user, network and mount namespaces of its own, where it may do as root does and harms nobody: take ports
//! away, make sockets small, lose packets, fill a disk.
//!
//! The test runs again there, in a process of its own: namespaces are changed for a whole process, and this one has the
//! threads of other tests.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::programs::{installed, programs};

/// Set where the test is inside.
const MARK: &str = "TESTS_NAMESPACE";

/// Does the work of the test with this path (`module::name`, or `name` at the root of its file) inside. It is skipped,
/// and says so, where this user may not have namespaces or there are no programs for them.
///
/// # Panics
/// When the test fails inside.
pub fn inside(test: &str, work: impl FnOnce()) {
    if std::env::var_os(MARK).is_some() {
        run("ip link set lo up");
        return work();
    }
    let Some([unshare, _]) = installed(["unshare", "ip"]) else { return };
    let separate = || {
        let mut command = Command::new(&unshare);
        command.args(["--user", "--map-root-user", "--net", "--mount", "--"]).stdin(Stdio::null());
        command
    };
    let probe = separate().arg("true").output().expect("unshare runs");
    if !probe.status.success() {
        println!("skipped: no namespaces for this user: {}", String::from_utf8_lossy(&probe.stderr).trim());
        return;
    }
    let built = programs().balancerd.parent().expect("in a directory");
    let mut again = separate();
    again.arg(std::env::current_exe().expect("this program has a path")).args(["--exact", test, "--nocapture"]);
    let output = again.env(MARK, "1").env("BALANCER_PROGRAMS", built).output().expect("unshare runs");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("inside:\n{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{test} fails in its namespaces, {}", output.status);
}

/// Where further network namespaces have their names.
const NAMES: &str = "/run/netns";

/// Makes further network namespaces, for the hosts around that of the test. In each of them the loopback device is up.
///
/// # Panics
/// When there can be none.
pub fn hosts(names: &[&str]) {
    // Names that nobody else sees.
    run("mount -t tmpfs none /run");
    for name in names {
        run(&format!("ip netns add {name}"));
        run(&format!("ip -n {name} link set lo up"));
    }
}

/// Does this at a host: the sockets that are made there stay there.
///
/// # Panics
/// When it does.
pub fn at<T: Send>(host: &str, work: impl FnOnce() -> T + Send) -> T {
    let place = File::open(Path::new(NAMES).join(host)).expect("a host");
    // A thread of its own, which does not come back from there.
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(place, CloneFlags::CLONE_NEWNET).expect("it is there");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs a program with arguments that white space separates.
///
/// # Panics
/// When it fails.
pub fn run(line: &str) {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().expect("a program"));
    // Debian has `ip` where a user's search path does not end.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = command.args(words).env("PATH", path).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Sets a value below `/proc/sys/net`, which each network namespace has for itself.
///
/// # Panics
/// When it cannot be set.
pub fn set(name: &str, value: &str) {
    let path = Path::new("/proc/sys/net").join(name);
    fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
