//! The balancers under comparison: how each is configured and started.
//!
//! Both do the same work: one thread, datagrams relayed as they come over a socket for each flow, the server picked by
//! consistent hashing of the client's address, no log. Apart from that each has its defaults.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bench::process::Process;
use bench::servers::{NGINX, NGINX_STREAM_MODULE, free_udp_addr, nginx_arguments, nginx_balancer, nginx_head};
use clap::ValueEnum;

use crate::servers::{RECEIVE_BUFFER, Servers};

/// nginx takes one for a flow and one for its socket; it warns when there are fewer descriptors, and starts.
const NGINX_CONNECTIONS: usize = 40_000;
/// How long a flow may be idle: longer than any measurement but `idle`, and short enough that those of former
/// measurements do not pile up.
const TIMEOUT: &str = "30s";
/// The same for `idle`.
const IDLE_TIMEOUT: &str = "1h";

/// A way from the clients to the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// No balancer: the clients talk to the first server.
    Direct,
    /// nginx `stream`: `hash $remote_addr consistent`.
    Nginx,
    /// nginx with `multi_accept on`: it takes all datagrams that wait, not one for each event.
    NginxMulti,
    /// The daemon of this project.
    Balancerd,
    /// The daemon with a pool that is `one_way`: no flows, one socket for each server.
    BalancerdOneWay,
    /// Another build of the daemon: that of `--before`.
    Before,
}

impl Kind {
    /// The name in the tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx",
            Self::NginxMulti => "nginx-multi",
            Self::Balancerd => "balancerd",
            Self::BalancerdOneWay => "balancerd-one-way",
            Self::Before => "before",
        }
    }

    /// Whether clients get answers.
    pub(crate) fn answers(self) -> bool {
        self != Self::BalancerdOneWay
    }
}

/// The programs of this project.
pub(crate) struct Programs {
    pub(crate) balancerd: PathBuf,
    /// Another build of it.
    pub(crate) before: Option<PathBuf>,
}

impl Programs {
    /// The program that `kind` needs and that is not there.
    pub(crate) fn missing(&self, kind: Kind) -> Option<PathBuf> {
        let needed = match kind {
            Kind::Direct => None,
            Kind::Nginx | Kind::NginxMulti => Some(PathBuf::from(NGINX_STREAM_MODULE)),
            Kind::Balancerd | Kind::BalancerdOneWay | Kind::Before => Some(self.ours(kind).clone()),
        };
        needed.filter(|path| !path.exists())
    }

    fn ours(&self, kind: Kind) -> &PathBuf {
        self.before.as_ref().filter(|_| kind == Kind::Before).unwrap_or(&self.balancerd)
    }
}

/// How the flows of a workload end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// When nothing has moved for a while.
    Idle,
    /// The same, but not as long as the workload lasts.
    Late,
    /// With the first answer.
    Answered,
}

impl Ending {
    fn timeout(self) -> &'static str {
        if self == Self::Late { IDLE_TIMEOUT } else { TIMEOUT }
    }
}

/// A running balancer with the servers behind it.
pub(crate) struct Balancer {
    pub(crate) kind: Kind,
    /// Where the clients send to.
    pub(crate) addr: SocketAddrV4,
    /// None for [`Kind::Direct`].
    pub(crate) process: Option<Process>,
}

impl Balancer {
    /// Starts a balancer of `kind` with its files in a new folder of `directory`. It may take a moment to listen.
    pub(crate) fn start(
        kind: Kind,
        directory: &Path,
        servers: &Servers,
        programs: &Programs,
        ending: Ending,
    ) -> Result<Self> {
        if kind == Kind::Direct {
            return Ok(Self { kind, addr: servers.addrs[0], process: None });
        }
        let addr = free_udp_addr()?;
        let directory = directory.join(format!("{}-{}", kind.name(), addr.port()));
        fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
        let process = match kind {
            Kind::Direct => unreachable!("returned above"),
            Kind::Nginx | Kind::NginxMulti => {
                let path = directory.join("nginx.conf");
                let text = nginx_file(&directory, addr, &servers.addrs, ending, kind == Kind::NginxMulti);
                fs::write(&path, text).context("write nginx's configuration")?;
                Process::start(&directory, "nginx", NGINX, nginx_arguments(&directory, &path))
            }
            Kind::Balancerd | Kind::BalancerdOneWay | Kind::Before => {
                let path = directory.join("balancer.toml");
                let text = balancerd_file(addr, &servers.addrs, ending, kind == Kind::BalancerdOneWay);
                fs::write(&path, text).context("write balancerd's file")?;
                start_balancerd(&directory, programs.ours(kind), &path)
            }
        }
        .with_context(|| format!("start {}", kind.name()))?;
        Ok(Self { kind, addr, process: Some(process) })
    }

    /// The processor time spent so far, and how long it waited for a processor; none without a balancer.
    pub(crate) fn scheduled(&self) -> Result<Option<(Duration, Duration)>> {
        self.process.as_ref().map(Process::scheduled).transpose()
    }
}

/// The listener gets the buffer that the sockets of the load have: with the usual one nginx loses a burst that the others
/// do not.
fn nginx_file(directory: &Path, addr: SocketAddrV4, servers: &[SocketAddrV4], ending: Ending, multi: bool) -> String {
    let mut text = format!("load_module {NGINX_STREAM_MODULE};\n");
    let events = if multi { "multi_accept on;" } else { "" };
    text.push_str(&nginx_head(&directory.join("nginx.pid"), NGINX_CONNECTIONS, events));
    let responses = if ending == Ending::Answered { "proxy_responses 1;" } else { "" };
    let timeout = ending.timeout();
    let settings = format!("listen {addr} udp rcvbuf={RECEIVE_BUFFER}; proxy_timeout {timeout}; {responses}");
    text + &nginx_balancer(servers, &settings)
}

fn balancerd_file(addr: SocketAddrV4, servers: &[SocketAddrV4], ending: Ending, one_way: bool) -> String {
    let mut text = format!("[service.bench]\nlisten = \"{addr}\"\nprotocol = \"udp\"\npool = \"servers\"\n");
    let _ = writeln!(text, "flow_timeout = \"{}\"", ending.timeout());
    if ending == Ending::Answered {
        text.push_str("answers = 1\n");
    }
    text.push_str("\n[pool.servers]\npolicy = \"consistent-hash\"\n");
    if one_way {
        text.push_str("one_way = true\n");
    }
    text.push_str("servers = [\n");
    for server in servers {
        let _ = writeln!(text, "    {{ address = \"{server}\" }},");
    }
    text.push_str("]\n");
    text
}

fn start_balancerd(directory: &Path, program: &Path, file: &Path) -> Result<Process> {
    let text = |path: &Path| path.display().to_string();
    let socket = directory.join("control.sock");
    let arguments = ["--config", &text(file), "--socket", &text(&socket), "--state", &text(directory)];
    Process::start(directory, "balancerd", program, arguments)
}
