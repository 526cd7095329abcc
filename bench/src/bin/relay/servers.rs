//! The servers behind every balancer: one nginx HTTP process that listens on several ports.
//!
//! One process, so that it makes no difference which port a balancer picks for which client.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::client;
use crate::process::Process;

/// Where Debian's nginx puts the program, which is not on everybody's search path.
pub(crate) const NGINX: &str = "/usr/sbin/nginx";
/// How many servers a balancer has to choose from.
const SERVERS: usize = 3;
/// The size of the large answer.
pub(crate) const BULK_BYTES: u64 = 10_000_000;

/// The running servers.
pub(crate) struct Servers {
    /// The address of each; never empty.
    pub(crate) addrs: Vec<SocketAddrV4>,
    /// Kept for its end.
    _process: Process,
}

impl Servers {
    /// Starts the servers with their files in `directory`, and waits until they answer.
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        let addrs = (0..SERVERS).map(|_| free_addr()).collect::<Result<Vec<_>>>()?;
        let bulk = File::create(directory.join("bulk")).context("create the large answer")?;
        bulk.set_len(BULK_BYTES).context("size the large answer")?;
        let path = directory.join("servers.conf");
        fs::write(&path, configuration(directory, &addrs)).context("write the servers' configuration")?;
        let mut process = Process::start(directory, "servers", NGINX, nginx_arguments(directory, &path))?;
        client::await_answer(addrs[0], &mut process).context("start the servers")?;
        Ok(Self { addrs, _process: process })
    }
}

/// An address of the loopback interface that nobody listens on at the moment.
pub(crate) fn free_addr() -> Result<SocketAddrV4> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, listener.local_addr().context("find a free port")?.port()))
}

/// The arguments that run nginx with the configuration at `path` and none of the system's files.
pub(crate) fn nginx_arguments(directory: &Path, path: &Path) -> Vec<String> {
    let directory = directory.display();
    ["-p", &format!("{directory}/"), "-e", "stderr", "-c", &path.display().to_string()].map(str::to_owned).to_vec()
}

/// nginx's configuration as one worker in the foreground, up to its `events`.
///
/// `user root` only matters for root, where a worker would otherwise give up the right to read `directory`.
pub(crate) fn nginx_head(pid: &Path) -> String {
    format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {};\nerror_log stderr crit;\n\
         events {{ worker_connections 19000; }}\n",
        pid.display()
    )
}

fn configuration(directory: &Path, addrs: &[SocketAddrV4]) -> String {
    let mut text = nginx_head(&directory.join("servers.pid"));
    let directory = directory.display();
    text.push_str("http {\n    access_log off;\n    sendfile on;\n    keepalive_timeout 1h;\n");
    text.push_str("    keepalive_requests 1000000000;\n    open_file_cache max=10;\n");
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(text, "    {kind}_temp_path {directory}/{kind};");
    }
    text.push_str("    server {\n");
    for addr in addrs {
        let _ = writeln!(text, "        listen {addr} backlog=4096;");
    }
    text.push_str("        location = / { return 200 \"ok\\n\"; }\n");
    let _ = writeln!(text, "        location = /bulk {{ root {directory}; }}");
    text.push_str("    }\n}\n");
    text
}
