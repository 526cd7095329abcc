//! `balancerctl save`: what commands changed gets into the file, and nothing else of it changes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Output;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tests::balancer::balancerctl;
use tests::loopback;
use wire::{Client, Request, Response};

/// A balancer in the background that was started with a file. It is killed when this is dropped.
struct WithFile {
    directory: TempDir,
}

impl WithFile {
    /// Starts it with this text; `LISTEN` stands for an address of its own.
    fn start(text: &str) -> Self {
        let started = Self { directory: tempfile::tempdir().expect("a directory") };
        let text = text.replace("LISTEN", &format!("{}:0", loopback::fresh()));
        fs::write(started.file(), text).expect("written");
        done(&started.ctl(&format!("start --config {}", started.file().display())));
        started
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("b.toml")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file()).expect("text")
    }

    fn ctl(&self, line: &str) -> Output {
        let socket = self.directory.path().join("control.sock");
        balancerctl(line).arg("--socket").arg(socket).output().expect("balancerctl runs")
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&done(&self.ctl(&format!("{line} --json")))).expect("JSON")
    }
}

impl Drop for WithFile {
    fn drop(&mut self) {
        let client = Client::connect(&self.directory.path().join("control.sock"));
        if let Ok(Response::Status(status)) = client.and_then(|mut client| client.call(&Request::Status)) {
            let _ = kill(Pid::from_raw(status.pid.cast_signed()), Signal::SIGKILL);
        }
    }
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn refused(output: &Output, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(words), "{said}");
}

const FILE: &str = "\
# The web, owned by Ada.

[service.web]
listen = 'LISTEN'   # everybody
pool = \"web\"

[pool.web]
slow_start = '1m'  # they need it
servers = [
    # rack 1
    { address = \"10.0.0.1:80\", weight = 2 },
    { address = \"10.0.0.2:80\" },  # the small one
]

# The tools.
[service.api]
listen = ['LISTEN']
pool = \"api\"
[pool.api]
policy = \"round-robin\"

[[pool.api.servers]]
address = \"10.0.1.1:80\"
";

#[test]
fn the_file_gets_what_commands_changed_and_keeps_the_rest() {
    let started = WithFile::start(FILE);
    let before = started.text();
    done(&started.ctl("save"));
    assert_eq!(started.text(), before, "nothing differs");

    for line in [
        "set 10.0.0.1 80 --pool web --weight 3",
        "remove 10.0.0.2 80 --pool web",
        "add 10.0.0.3 80 --pool web --state drain",
        "add 10.0.1.2 80 --pool api --max-sessions 9",
        "pool set web --max-load 1.25",
    ] {
        done(&started.ctl(line));
    }
    assert_eq!(started.json("status")["deviations"].as_array().expect("a list").len(), 5);
    let dry = done(&started.ctl("save --dry-run"));
    assert!(dry.contains("weight 2 -> 3") && dry.contains("nothing was written"), "{dry}");
    assert_eq!(started.text(), before);
    done(&started.ctl("save"));
    let expected = before
        .replace("weight = 2 }", "weight = 3 }")
        .replace("{ address = \"10.0.0.2:80\" },  # the small one", "{ address = \"10.0.0.3:80\", state = \"drain\" },")
        .replace("# The tools", "#The tools")
        .replace("]\n\n#The tools", "]\nmax_load = 1.25\n\n# The tools")
        + "\n[[pool.api.servers]]\naddress = \"10.0.1.2:80\"\nmax_sessions = 9\n";
    assert_eq!(started.text(), expected);
    assert_eq!(started.json("status")["deviations"], Value::Array(Vec::new()), "file and balancer are one");
    done(&started.ctl(&format!("compare {}", started.file().display())));
}

#[test]
fn another_check_takes_the_keys_of_the_old_one_out_of_the_file() {
    let text = FILE.replace("slow_start = '1m'  # they need it", "check = 'send'\ncheck_expect = 'OK' # so it is");
    let started = WithFile::start(&text);
    let before = started.text();
    done(&started.ctl("pool set web --check http --check-path /health --check-interval 1m"));
    done(&started.ctl("set 10.0.0.2 80 --pool web --backup true --check-address 10.0.0.2:81"));
    let list = done(&started.ctl("list --pool web"));
    assert!(list.contains("check http GET /health, check every 1m") && list.contains("ready (backup)"), "{list}");
    assert!(list.contains("check is http, the file says send"), "{list}");
    done(&started.ctl("save"));
    let expected = before
        .replace("check = 'send'\ncheck_expect = 'OK' # so it is\n", "check = \"http\"\n")
        .replace("\"10.0.0.2:80\" }", "\"10.0.0.2:80\", backup = true, check_address = \"10.0.0.2:81\" }")
        .replace("# The tools", "#The tools")
        .replace("]\n\n#The tools", "]\ncheck_path = \"/health\"\ncheck_interval = \"1m\"\n\n# The tools");
    assert_eq!(started.text(), expected);
    done(&started.ctl("pool set web --check none"));
    done(&started.ctl("save"));
    let none = expected
        .replace("check = \"http\"", "check = \"none\"")
        .replace("check_path = \"/health\"\ncheck_interval = \"1m\"\n", "");
    assert_eq!(started.text(), none);
    assert_eq!(started.json("status")["deviations"], Value::Array(Vec::new()), "file and balancer are one");
}

#[test]
fn an_edit_that_is_not_loaded_is_not_overwritten() {
    let started = WithFile::start(FILE);
    done(&started.ctl("set 10.0.0.1 80 --pool web --weight 3"));
    let edited = started.text().replace("1m", "2m");
    fs::write(started.file(), &edited).expect("written");
    refused(&started.ctl("save"), "does not say any more what the balancer read from it");
    fs::write(started.file(), "nonsense").expect("written");
    refused(&started.ctl("save"), "b.toml");
    fs::write(started.file(), &edited).expect("written");
    done(&started.ctl("reload"));
    done(&started.ctl("save"));
    assert_eq!(started.text(), edited.replace("weight = 2 }", "weight = 3 }"));
}

#[test]
fn a_link_stays_a_link_and_a_mode_a_mode() {
    let started = WithFile::start(FILE);
    let real = started.directory.path().join("real.toml");
    fs::rename(started.file(), &real).expect("renamed");
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).expect("changed");
    symlink("real.toml", started.file()).expect("linked");
    done(&started.ctl("set 10.0.0.1 80 --pool web --weight 3"));
    done(&started.ctl("save"));
    assert!(started.file().symlink_metadata().expect("there").is_symlink());
    assert_eq!(real.metadata().expect("there").permissions().mode() & 0o777, 0o640);
    assert!(fs::read_to_string(real).expect("text").contains("weight = 3"));
}

#[test]
fn what_no_file_can_say_is_refused() {
    let started = WithFile::start(FILE);
    let before = started.text();
    done(&started.ctl("pool add spare"));
    refused(&started.ctl("save"), "no file can say what the balancer is set to: pool.spare: no service uses this pool");
    assert_eq!(started.text(), before);
    done(&started.ctl(&format!("service add spare {} 0 --pool spare --deny 10.0.0.0/8", loopback::fresh())));
    done(&started.ctl("save"));
    assert!(started.text().starts_with(&before), "it is behind the rest");
    assert_eq!(started.json("status")["deviations"], Value::Array(Vec::new()));
}

/// Numbers that look as if by chance, always the same ones.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[test]
fn whatever_commands_do_the_file_comes_to_say_it() {
    let styles = [
        FILE.to_owned(),
        FILE.replace('\n', "\r\n"),
        "pool.web.servers = [{address='10.0.0.1:80'}, { address = '10.0.0.2:80' }]\npool.api = { servers = [ ] }\n\
         [service]\nweb = { listen = 'LISTEN', pool = 'web' }\napi = { listen = 'LISTEN', pool = 'api' }"
            .to_owned(),
        "service = { web = { listen = 'LISTEN', pool = 'web' }, api = { listen = 'LISTEN', pool = 'api' } }\n\
         pool = { web = { servers = [ { address = '10.0.0.2:80' } ] }, api = {} }\n"
            .to_owned(),
        "[[pool.web.servers]]\naddress = '10.0.0.1:80'\n[[pool.api.servers]]\naddress = '10.0.0.1:80'\n\
         [service.web]\nlisten = 'LISTEN'\npool = 'web'\n[service.api]\nlisten = 'LISTEN'\npool = 'api'\n"
            .to_owned(),
    ];
    for (seed, style) in styles.iter().enumerate() {
        let (started, mut chance) = (WithFile::start(style), Chance(seed as u64));
        for _ in 0..8 {
            for _ in 0..chance.below(6) {
                let pool = ["web", "api"][chance.below(2) as usize];
                let (server, number) = (format!("10.0.0.{} 80 --pool {pool}", chance.below(5) + 1), chance.below(4));
                let line = match chance.below(11) {
                    0 | 1 => format!("add {server} --weight {number}"),
                    2 => format!("remove {server}"),
                    3 => format!("set {server} --weight {number}"),
                    4 => format!("set {server} --state {}", ["ready", "drain", "maintenance"][number as usize % 3]),
                    5 => format!("set {server} --max-sessions {}", ["none", "7"][number as usize % 2]),
                    6 => format!("set {server} --backup {}", number % 2 == 0),
                    7 => format!("set {server} --check-address {}", ["none", "127.0.0.9:81"][number as usize % 2]),
                    8 => format!(
                        "pool set {pool} {}",
                        [
                            "--check none --check-interval 1m --eject-failures 0",
                            "--check tcp --check-interval 1m --check-down-interval 2m --check-port 81 --on-down close",
                            "--check send --check-send-hex 00ff --check-expect \"#' --check-down-interval none",
                            "--check http --check-path /up?'x --check-status 2xx,304 --check-initial down",
                        ][number as usize]
                    ),
                    9 => format!(
                        "pool set {pool} {}",
                        [
                            "--connect-timeout 1500ms --tries 5",
                            "--connect-timeout none --replay 64KiB --source 127.0.0.8 --source ::1",
                            "--replay 1500 --source 127.0.0.9",
                            "--tries 3 --replay 0 --source none",
                        ][number as usize]
                    ),
                    _ => format!(
                        "pool set {pool} {}",
                        [
                            "--policy consistent-hash --max-load 1.5",
                            "--policy weighted-random",
                            "--slow-start 1500ms",
                            "--policy consistent-hash --key client-subnet --subnet-ipv4 16 --max-load none",
                        ][number as usize]
                    ),
                };
                // Some are refused, such as a server that is there already.
                let output = started.ctl(&line);
                assert!(matches!(output.status.code(), Some(0 | 1)), "{line}: {output:?}");
            }
            let before = started.text();
            let output = started.ctl("save");
            assert!(output.status.success(), "{}\n{before}", String::from_utf8_lossy(&output.stderr));
            let after = started.text();
            let status = started.json("status");
            assert_eq!(status["deviations"], Value::Array(Vec::new()), "{before}\n{after}");
            done(&started.ctl(&format!("compare {}", started.file().display())));
        }
    }
}

#[test]
fn what_commands_say_of_datagrams_is_saved_and_what_has_no_place_then_is_taken_out() {
    let address = loopback::free();
    let (ip, port) = (address.ip(), address.port());
    let text = format!(
        "[service.dns]\nlisten = \"{address}\"\npool = \"dns\"\nsplice = false  # so it was\nidle_timeout = \"10m\"\n\n\
         [pool.dns]\n# the servers come by command\n"
    );
    let balancer = WithFile::start(&text);
    done(&balancer.ctl("service remove dns"));
    let add = format!("service add dns {ip} {port} --pool dns --protocol udp --answers 1 --flow-timeout 5s");
    done(&balancer.ctl(&add));
    // The other half of the port is free.
    done(&balancer.ctl(&format!("service add dns-tcp {ip} {port} --pool dns")));
    refused(
        &balancer.ctl(&format!("service add more {ip} {port} --pool dns --protocol udp")),
        "service dns listens at",
    );
    refused(&balancer.ctl("pool set dns --one-way"), "pool dns is one-way");
    done(
        &balancer
            .ctl("pool set dns --flows-on-loss keep --send-proxy v2 --send-proxy-in first-datagram --path-mtu report"),
    );
    refused(&balancer.ctl("pool set dns --send-proxy v1"), "pool dns gives v1, and service dns speaks UDP");
    done(&balancer.ctl("save"));
    let expected = format!(
        "[service.dns]\nlisten = \"{address}\"\npool = \"dns\"\nprotocol = \"udp\"\nflow_timeout = \"5s\"\nanswers = 1\n\n\
         [pool.dns]\nsend_proxy = \"v2\"\nflows_on_loss = \"keep\"\nsend_proxy_in = \"first-datagram\"\npath_mtu = \"report\"\n\
         # the servers come by command\n\n\
         [service.dns-tcp]\nlisten = \"{address}\"\nprotocol = \"tcp\"\npool = \"dns\"\n"
    );
    assert_eq!(balancer.text(), expected);
    let status = balancer.json("status");
    assert_eq!(status["deviations"], Value::Array(Vec::new()));
    let flows = &status["services"][0]["settings"]["flows"];
    assert_eq!((&flows["timeout_ms"], &flows["answers"]), (&Value::from(5000), &Value::from(1)));
    let list = done(&balancer.ctl("service list"));
    assert!(list.contains("PROTOCOL") && list.contains("dns has flow timeout 5s, flows of 1 answer"), "{list}");
    // Both at one time, by reload: one service in place of two.
    fs::write(
        balancer.file(),
        format!("[service.dns]\nlisten = \"{address}\"\nprotocol = \"tcp+udp\"\npool = \"dns\"\n[pool.dns]\n"),
    )
    .expect("written");
    let changes = done(&balancer.ctl("reload"));
    for line in ["service dns: protocol udp -> tcp+udp", "service dns: answers 1 -> none", "service dns-tcp: gone"] {
        assert!(changes.contains(line), "{line} in:\n{changes}");
    }
}
