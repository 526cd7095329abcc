//! nginx as the servers behind every balancer, and free addresses.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::client;
use crate::process::Process;

/// Where Debian's nginx puts the program, which is not on everybody's search path.
pub const NGINX: &str = "/usr/sbin/nginx";
/// Where Debian's libnginx-mod-stream puts the module.
pub const NGINX_STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// The connections of an nginx that relays or answers connections.
pub const NGINX_CONNECTIONS: usize = 19_000;

/// The running servers: one nginx HTTP process, so that it makes no difference which one a balancer picks.
///
/// A `GET /` has an answer of three bytes.
pub struct Servers {
    /// Kept for its end.
    _process: Process,
}

impl Servers {
    /// Starts servers that listen at `addrs`, with their files in `directory`, and waits until they answer. `locations` are
    /// further ones in nginx's language.
    ///
    /// # Errors
    /// When nginx does not start or does not answer.
    pub fn start(directory: &Path, addrs: &[SocketAddrV4], locations: &str) -> Result<Self> {
        let path = directory.join("servers.conf");
        fs::write(&path, configuration(directory, addrs, locations)).context("write the servers' configuration")?;
        let mut process = Process::start(directory, "servers", NGINX, nginx_arguments(directory, &path))?;
        for addr in addrs {
            let ip = if addr.ip().is_unspecified() { Ipv4Addr::LOCALHOST } else { *addr.ip() };
            client::await_answer(SocketAddrV4::new(ip, addr.port()), &mut process).context("start the servers")?;
        }
        Ok(Self { _process: process })
    }
}

/// An address of the loopback interface that nobody listens on at the moment.
///
/// # Errors
/// When there is none.
pub fn free_addr() -> Result<SocketAddrV4> {
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, free_port(Ipv4Addr::LOCALHOST)?))
}

/// A port of `ip` that nobody listens on at the moment; with the unspecified address, at none of this machine's addresses.
///
/// # Errors
/// When there is none.
pub fn free_port(ip: Ipv4Addr) -> Result<u16> {
    let listener = TcpListener::bind((ip, 0)).context("find a free port")?;
    Ok(listener.local_addr().context("find a free port")?.port())
}

/// An address of the loopback interface to which nobody takes datagrams at the moment.
///
/// # Errors
/// When there is none.
pub fn free_udp_addr() -> Result<SocketAddrV4> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, socket.local_addr().context("find a free port")?.port()))
}

/// The arguments that run nginx with the configuration at `path` and none of the system's files.
#[must_use]
pub fn nginx_arguments(directory: &Path, path: &Path) -> Vec<String> {
    let directory = directory.display();
    ["-p", &format!("{directory}/"), "-e", "stderr", "-c", &path.display().to_string()].map(str::to_owned).to_vec()
}

/// nginx's configuration as one worker in the foreground, up to its `events`, which `events` is the rest of.
///
/// `user root` only matters for root, where a worker would otherwise give up the right to read `directory`.
#[must_use]
pub fn nginx_head(pid: &Path, connections: usize, events: &str) -> String {
    format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {};\nerror_log stderr crit;\n\
         events {{ worker_connections {connections}; {events} }}\n",
        pid.display()
    )
}

/// nginx's configuration as a balancer of these servers by the client's address, behind its head; `settings` are those of
/// where it listens.
#[must_use]
pub fn nginx_balancer(servers: &[SocketAddrV4], settings: &str) -> String {
    let servers: String = servers.iter().map(|server| format!(" server {server};")).collect();
    format!(
        "stream {{\n    access_log off;\n    upstream servers {{ hash $remote_addr consistent;{servers} }}\n    \
         server {{ proxy_pass servers; {settings} }}\n}}\n"
    )
}

fn configuration(directory: &Path, addrs: &[SocketAddrV4], locations: &str) -> String {
    let mut text = nginx_head(&directory.join("servers.pid"), NGINX_CONNECTIONS, "");
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
    text.push_str(locations);
    text.push_str("    }\n}\n");
    text
}
