//! HAProxy and nginx as a test wants them: in front of a balancer, behind one, or beside it.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Where Debian has the part of nginx that relays TCP.
const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// HAProxy with one thread and these sections.
///
/// # Panics
/// When its file cannot be written.
#[must_use]
pub fn haproxy(program: &Path, directory: &Path, text: &str) -> Command {
    let head = "global\n nbthread 1\n maxconn 1000\ndefaults\n timeout connect 5s\n timeout client 60s\n \
                timeout server 60s\n";
    fs::write(directory.join("haproxy.cfg"), format!("{head}{text}\n")).expect("written");
    let mut command = Command::new(program);
    command.args(["-db", "-f"]).arg(directory.join("haproxy.cfg"));
    command
}

/// nginx in one process; `head` stands before everything else, `text` behind it.
///
/// # Panics
/// When its file cannot be written.
#[must_use]
pub fn nginx(program: &Path, directory: &Path, head: &str, text: &str) -> Command {
    let path = directory.display();
    let head = format!(
        "{head} daemon off; master_process off; pid {path}/pid; error_log stderr warn; worker_rlimit_nofile 1024;
         events {{ worker_connections 512; }}"
    );
    fs::write(directory.join("nginx.conf"), format!("{head}\n{text}\n")).expect("written");
    let mut command = Command::new(program);
    command.arg("-p").arg(directory).arg("-c").arg(directory.join("nginx.conf")).args(["-e", "stderr"]);
    command
}

/// What nginx has to be told first if it is to relay TCP, or `None`, which is said, where it cannot. Where the environment
/// has `CI` it must be able to.
///
/// # Panics
/// When it cannot where it must.
#[must_use]
pub fn nginx_stream() -> Option<String> {
    if Path::new(STREAM).exists() {
        return Some(format!("load_module {STREAM};"));
    }
    println!("skipped: {STREAM} is not there");
    assert!(std::env::var_os("CI").is_none(), "{STREAM} is not there");
    None
}
