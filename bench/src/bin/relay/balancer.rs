//! The balancers under comparison: how each is configured and started.
//!
//! All do the same work: one thread, TCP relayed as it comes, the server picked by consistent hashing of the client's
//! address, no log. Apart from that each has its defaults.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench::process::Process;
use bench::servers::{NGINX_CONNECTIONS, NGINX_STREAM_MODULE};
use bench::{client, clock, servers};
use clap::ValueEnum;

use crate::servers::Servers;

/// Where Debian's haproxy puts the program, which is not on everybody's search path.
pub(crate) const HAPROXY: &str = "/usr/sbin/haproxy";
/// The sessions HAProxy takes; it refuses to start when the usual limit of 20000 descriptors is too low for them.
const HAPROXY_SESSIONS: usize = 9000;

/// A way from the clients to the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// No balancer: the clients talk to the first server.
    Direct,
    /// HAProxy: `mode tcp`, `balance source`, `hash-type consistent`, `option splice-auto`.
    Haproxy,
    /// HAProxy with `option splice-request` and `option splice-response` as well: it splices from the start.
    HaproxySplice,
    /// nginx `stream`: `hash $remote_addr consistent`.
    Nginx,
    /// A bare relay to the first server, the program `floor` beside this one: what no balancer on this machine goes below
    /// unless it calls the kernel less often.
    Floor,
    /// The daemon of this project.
    Balancerd,
    /// Another build of the daemon: that of `--before`.
    Before,
}

impl Kind {
    /// The name in the tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::HaproxySplice => "haproxy-splice",
            Self::Nginx => "nginx",
            Self::Floor => "floor",
            Self::Balancerd => "balancerd",
            Self::Before => "before",
        }
    }
}

/// The programs of this project.
pub(crate) struct Programs {
    pub(crate) balancerd: PathBuf,
    pub(crate) balancerctl: PathBuf,
    pub(crate) floor: PathBuf,
    /// Where another build of both is.
    pub(crate) before: Option<PathBuf>,
}

impl Programs {
    /// The program that `kind` needs and that is not there.
    pub(crate) fn missing(&self, kind: Kind) -> Option<PathBuf> {
        let needed = match kind {
            Kind::Direct => Vec::new(),
            Kind::Haproxy | Kind::HaproxySplice => vec![PathBuf::from(HAPROXY)],
            Kind::Nginx => vec![PathBuf::from(NGINX_STREAM_MODULE)],
            Kind::Floor => vec![self.floor.clone()],
            Kind::Balancerd | Kind::Before => self.ours(kind).to_vec(),
        };
        needed.into_iter().find(|path| !path.exists())
    }

    /// balancerd and balancerctl of this build, or of the other one.
    fn ours(&self, kind: Kind) -> [PathBuf; 2] {
        match &self.before {
            Some(before) if kind == Kind::Before => [before.join("balancerd"), before.join("balancerctl")],
            _ => [self.balancerd.clone(), self.balancerctl.clone()],
        }
    }
}

/// A running balancer with the servers behind it.
pub(crate) struct Balancer {
    pub(crate) kind: Kind,
    /// Where the clients connect.
    pub(crate) addr: SocketAddrV4,
    /// None for [`Kind::Direct`].
    pub(crate) process: Option<Process>,
}

impl Balancer {
    /// Starts a balancer of `kind` with its files in a new folder of `directory`, and waits until it answers.
    pub(crate) fn start(kind: Kind, directory: &Path, servers: &Servers, programs: &Programs) -> Result<Self> {
        if kind == Kind::Direct {
            return Ok(Self { kind, addr: servers.addrs[0], process: None });
        }
        let addr = servers::free_addr()?;
        let directory = directory.join(format!("{}-{}", kind.name(), addr.port()));
        fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
        let mut process = match kind {
            Kind::Direct => unreachable!("returned above"),
            Kind::Haproxy => start_haproxy(&directory, addr, servers, false),
            Kind::HaproxySplice => start_haproxy(&directory, addr, servers, true),
            Kind::Nginx => start_nginx(&directory, addr, servers),
            Kind::Floor => {
                let arguments = [addr, servers.addrs[0]].map(|addr| addr.to_string());
                Process::start(&directory, "floor", &programs.floor, arguments)
            }
            Kind::Balancerd | Kind::Before => start_balancerd(&directory, addr, servers, &programs.ours(kind)),
        }?;
        client::await_answer(addr, &mut process).with_context(|| format!("start {}", kind.name()))?;
        Ok(Self { kind, addr, process: Some(process) })
    }

    /// What comes of `work`, and the processor time that is spent on it; none without a balancer.
    pub(crate) fn spend<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Option<Duration>)> {
        let spent = || self.process.as_ref().map(Process::processor_time).transpose();
        let before = spent()?;
        let done = work()?;
        Ok((done, spent()?.zip(before).map(|(after, before)| after.saturating_sub(before))))
    }
}

/// `splice-auto` alone is decided when HAProxy's task of a session wakes up, which that of a mere relay seldom does: version
/// 2.6 then copies all of a transfer. `always` makes it splice from the first byte.
fn start_haproxy(directory: &Path, addr: SocketAddrV4, servers: &Servers, always: bool) -> Result<Process> {
    let mut text = format!("global\n    nbthread 1\n    maxconn {HAPROXY_SESSIONS}\n");
    // By default a quarter of maxconn, two descriptors each.
    text.push_str("    maxpipes 64\n");
    text.push_str("defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n");
    text.push_str("    option splice-auto\n");
    if always {
        text.push_str("    option splice-request\n    option splice-response\n");
    }
    let _ = writeln!(text, "frontend clients\n    bind {addr}\n    default_backend servers");
    text.push_str("backend servers\n    balance source\n    hash-type consistent\n");
    for (index, server) in servers.addrs.iter().enumerate() {
        let _ = writeln!(text, "    server s{index} {server}");
    }
    let path = directory.join("haproxy.cfg");
    fs::write(&path, text).context("write HAProxy's configuration")?;
    Process::start(directory, "haproxy", HAPROXY, ["-db", "-f", &path.display().to_string()])
}

fn start_nginx(directory: &Path, addr: SocketAddrV4, servers: &Servers) -> Result<Process> {
    let mut text = format!("load_module {NGINX_STREAM_MODULE};\n");
    text.push_str(&servers::nginx_head(&directory.join("nginx.pid"), NGINX_CONNECTIONS, ""));
    let settings = format!("listen {addr} backlog=4096; proxy_timeout 1h;");
    text.push_str(&servers::nginx_balancer(&servers.addrs, &settings));
    let path = directory.join("nginx.conf");
    fs::write(&path, text).context("write nginx's configuration")?;
    Process::start(directory, "nginx", servers::NGINX, servers::nginx_arguments(directory, &path))
}

fn start_balancerd(
    directory: &Path,
    addr: SocketAddrV4,
    servers: &Servers,
    [balancerd, balancerctl]: &[PathBuf; 2],
) -> Result<Process> {
    let socket = directory.join("control.sock");
    let arguments = [
        "--listen",
        &addr.to_string(),
        "--socket",
        &socket.display().to_string(),
        "--state",
        &directory.display().to_string(),
    ];
    let mut process = Process::start(directory, "balancerd", balancerd, arguments)?;
    for server in &servers.addrs {
        clock::retry(client::START_LIMIT, || {
            process.check()?;
            add(balancerctl, &socket, *server)
        })?;
    }
    Ok(process)
}

fn add(balancerctl: &Path, socket: &Path, server: SocketAddrV4) -> Result<()> {
    let output = Command::new(balancerctl)
        .arg("--socket")
        .arg(socket)
        .args(["add", &server.ip().to_string(), &server.port().to_string()])
        .output()
        .with_context(|| format!("run {}", balancerctl.display()))?;
    let answer = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "balancerctl add {server}: {}", answer.trim());
    Ok(())
}
