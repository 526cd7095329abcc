//! A balancer under test.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::Arc;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use wire::control::Removal;
use wire::report::{
    ChangeReport, EndReason, ExplainReport, Hex, ListReport, ReloadReport, ServerReport, ServiceReport, StatusReport,
};
use wire::settings::{DEFAULT_POOL, ServerSettings};
use wire::{Change, Refusal, Request, Response};

use crate::process::{self, Process};
use crate::programs::{installed, programs};
use crate::{Client, Server, loopback, wait};

/// A removal that lets the sessions live on.
pub const WAIT: Removal = Removal::Wait { limit_ms: None };

/// The addition of a server to the pool `default`.
#[must_use]
pub fn add(server: SocketAddr, weight: u32) -> Change {
    let settings = ServerSettings { weight, ..ServerSettings::default() };
    Change::Add { pool: DEFAULT_POOL.to_owned(), server, settings }
}

/// The removal of a server from the pool `default`.
#[must_use]
pub fn remove(server: SocketAddr, how: Removal) -> Change {
    Change::Remove { pool: DEFAULT_POOL.to_owned(), server, how }
}

/// How a balancer is to be started.
#[derive(Debug, Clone)]
pub struct Setup {
    directory: Arc<TempDir>,
    socket: PathBuf,
    listen: SocketAddr,
    /// It is started with the configuration file and not with the address.
    configured: bool,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
    descriptors: Option<u64>,
}

/// Writes a file beside its place and moves it there.
fn write_config(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).expect("written");
    fs::rename(&new, path).expect("moved");
}

/// A balancer. It is killed when this is dropped.
#[derive(Debug)]
pub struct Balancer {
    setup: Setup,
    process: Process,
}

impl Setup {
    /// In a directory of its own, on a loopback address of its own, at a port that the kernel chooses.
    ///
    /// # Panics
    /// When there can be no directory.
    #[must_use]
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("balancer-").tempdir().expect("a directory");
        let socket = directory.path().join("control.sock");
        let listen = SocketAddr::new(loopback::fresh(), 0);
        let (arguments, environment) = (Vec::new(), Vec::new());
        Self {
            directory: Arc::new(directory),
            socket,
            listen,
            configured: false,
            arguments,
            environment,
            descriptors: None,
        }
    }

    /// Listens at `address`.
    #[must_use]
    pub fn listen(self, address: SocketAddr) -> Self {
        Self { listen: address, ..self }
    }

    /// With a configuration file of this text, and no address but those in it.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn config(self, text: &str) -> Self {
        write_config(&self.config_path(), text);
        Self { configured: true, ..self }
    }

    /// The configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.directory.path().join("balancer.toml")
    }

    /// With the control socket at this path below the directory.
    #[must_use]
    pub fn socket(self, path: &str) -> Self {
        Self { socket: self.directory.path().join(path), ..self }
    }

    /// With further options, which white space separates.
    #[must_use]
    pub fn options(mut self, line: &str) -> Self {
        self.arguments.extend(line.split_whitespace().map(OsString::from));
        self
    }

    /// With this in its environment.
    #[must_use]
    pub fn environment(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// With this limit of descriptors.
    #[must_use]
    pub fn descriptors(self, limit: u64) -> Self {
        Self { descriptors: Some(limit), ..self }
    }

    /// Where it is to listen.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts it, and waits until it answers.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(self) -> Balancer {
        Balancer::start_as(self)
    }

    /// Starts one that is expected to end by itself, and waits until it has.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn run(&self) -> Output {
        // Apart from the log of one that runs there already.
        let said = self.log_path().with_extension("said");
        let _ = fs::remove_file(&said);
        let status = self.spawn(&said).wait();
        Output { status, stdout: Vec::new(), stderr: fs::read(said).expect("its standard error") }
    }

    fn spawn(&self, log: &Path) -> Process {
        let daemon = &programs().balancerd;
        let mut command = match self.descriptors {
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(format!("ulimit -n {limit}; exec \"$0\" \"$@\"")).arg(daemon);
                shell
            }
            None => Command::new(daemon),
        };
        if self.configured {
            command.arg("--config").arg(self.config_path());
        } else {
            command.arg("--listen").arg(self.listen.to_string());
        }
        command.arg("--socket").arg(&self.socket).args(&self.arguments);
        clean(&mut command);
        command.envs(self.environment.iter().cloned());
        let log = File::options().append(true).create(true).open(log).expect("a file for its words");
        Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log))
    }

    fn log_path(&self) -> PathBuf {
        let name = self.socket.file_name().expect("a name").to_owned();
        self.directory.path().join(name).with_extension("stderr")
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

/// Nothing of this machine's settings reaches a program under test.
fn clean(command: &mut Command) {
    for name in ["BALANCER_SOCKET", "BALANCER_LOG", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "RUST_LOG"] {
        command.env_remove(name);
    }
}

/// balancerd with this command line, split at white space: for what ends, or goes to the background, by itself.
#[must_use]
pub fn balancerd(line: &str) -> Command {
    program(&programs().balancerd, line)
}

/// balancerctl with this command line, split at white space.
#[must_use]
pub fn balancerctl(line: &str) -> Command {
    program(&programs().balancerctl, line)
}

fn program(path: &Path, line: &str) -> Command {
    let mut command = Command::new(path);
    command.args(line.split_whitespace()).stdin(Stdio::null());
    clean(&mut command);
    command
}

impl Balancer {
    /// One with every default.
    #[must_use]
    pub fn start() -> Self {
        Setup::new().start()
    }

    /// One with these servers.
    pub fn of<'a>(servers: impl IntoIterator<Item = &'a Server>) -> Self {
        let balancer = Self::start();
        balancer.add_all(servers);
        balancer
    }

    fn start_as(mut setup: Setup) -> Self {
        let mut process = setup.spawn(&setup.log_path());
        let status = wait::for_some("a balancer starts", || {
            if let Some(status) = process.ended() {
                panic!("the balancer did not start, {status}: {}", read(&setup.log_path()));
            }
            match wire::Client::connect(&setup.socket).ok()?.call(&Request::Status).ok()? {
                Response::Status(status) => Some(status),
                other => panic!("an answer to another question: {other:?}"),
            }
        });
        assert_eq!(status.pid, process.pid(), "the one that was started answers");
        setup.listen = status.services[0].addresses[0];
        Self { setup, process }
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.setup.listen
    }

    /// Its control socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.setup.socket
    }

    /// The directory of all of its files.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.setup.directory.path()
    }

    /// How it was started: another one may be started with the same directory.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// A file of it: `control.state`, `control.pid`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Waits until these words are in its log, which is written by a thread that takes its time.
    ///
    /// # Panics
    /// When they do not come.
    pub fn wait_for_log(&self, words: &str) {
        wait::until(&format!("it logs \"{words}\""), || self.log().contains(words));
    }

    /// What it has logged so far; the last lines may be on their way.
    ///
    /// # Panics
    /// When it is not text.
    #[must_use]
    pub fn log(&self) -> String {
        read(&self.setup.log_path())
    }

    /// Asks it.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn call(&self, request: &Request) -> Response {
        let mut control = wire::Client::connect(&self.setup.socket).expect("it listens");
        control.call(request).expect("it answers")
    }

    /// Asks for a change.
    ///
    /// # Errors
    /// When it is refused.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn change(&self, change: Change, dry_run: bool) -> Result<ChangeReport, Refusal> {
        match self.call(&Request::Change { change, dry_run }) {
            Response::Changed(report) => Ok(report),
            Response::Refused(refusal) => Err(refusal),
            other => panic!("an answer to another question: {other:?}"),
        }
    }

    /// Adds a server of weight 1.
    ///
    /// # Panics
    /// When it is refused.
    pub fn add(&self, server: SocketAddr) -> ChangeReport {
        self.add_weighted(server, 1)
    }

    /// Adds a server.
    ///
    /// # Panics
    /// When it is refused.
    pub fn add_weighted(&self, server: SocketAddr, weight: u32) -> ChangeReport {
        self.change(add(server, weight), false).expect("it is added")
    }

    /// Adds servers of weight 1.
    pub fn add_all<'a>(&self, servers: impl IntoIterator<Item = &'a Server>) {
        for server in servers {
            self.add(server.address());
        }
    }

    /// Removes a server; its sessions live on.
    ///
    /// # Panics
    /// When it is refused.
    pub fn remove(&self, server: SocketAddr) -> ChangeReport {
        self.change(remove(server, WAIT), false).expect("it is removed")
    }

    /// Removes a server with its sessions.
    ///
    /// # Panics
    /// When it is refused.
    pub fn remove_now(&self, server: SocketAddr) -> ChangeReport {
        self.change(remove(server, Removal::Now), false).expect("it is removed")
    }

    /// Replaces its configuration file, as an editor does: by a rename. It is not told.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn configure(&self, text: &str) {
        write_config(&self.setup.config_path(), text);
    }

    /// Lets it read its configuration file again.
    ///
    /// # Errors
    /// When it is refused.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn reload(&self) -> Result<ReloadReport, Refusal> {
        match self.call(&Request::Reload { instead: None, dry_run: false }) {
            Response::Reloaded(report) => Ok(report),
            Response::Refused(refusal) => Err(refusal),
            other => panic!("an answer to another question: {other:?}"),
        }
    }

    /// One of its services.
    ///
    /// # Panics
    /// When there is no answer, or no such service.
    #[must_use]
    pub fn service_named(&self, name: &str) -> ServiceReport {
        let services = self.status().services;
        services.into_iter().find(|service| service.name == name).unwrap_or_else(|| panic!("there is a service {name}"))
    }

    /// How it is.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn status(&self) -> StatusReport {
        match self.call(&Request::Status) {
            Response::Status(report) => report,
            other => panic!("an answer to another question: {other:?}"),
        }
    }

    /// How its one service is.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn service(&self) -> ServiceReport {
        self.status().services.remove(0)
    }

    /// Sessions that ended for this reason.
    #[must_use]
    pub fn ended(&self, reason: EndReason) -> u64 {
        self.service().ended.get(&reason).copied().unwrap_or_default()
    }

    /// Waits until so many sessions have ended for this reason, and none for another.
    ///
    /// # Panics
    /// When it does not come to that.
    pub fn wait_for_ends(&self, reason: EndReason, count: u64) {
        wait::until("the sessions have ended", || self.service().ended.values().sum::<u64>() >= count);
        let ended = self.service().ended;
        assert_eq!(ended, [(reason, count)].into(), "nothing ended for another reason");
    }

    /// Waits until so many sessions are alive.
    ///
    /// # Panics
    /// When it does not come to that.
    pub fn wait_for_sessions(&self, count: u64) {
        wait::until(&format!("{count} sessions are alive"), || self.service().active == count);
    }

    /// Its pool `default`.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn list(&self) -> ListReport {
        self.list_pool(DEFAULT_POOL)
    }

    /// One of its pools, without the times that pass by themselves.
    ///
    /// # Panics
    /// When there is no answer, or no such pool.
    #[must_use]
    pub fn timeless_list(&self, pool: &str) -> ListReport {
        let mut report = self.list_pool(pool);
        for server in &mut report.servers {
            server.health.since_ms = 0;
        }
        report
    }

    /// One of its pools.
    ///
    /// # Panics
    /// When there is no answer, or no such pool.
    #[must_use]
    pub fn list_pool(&self, pool: &str) -> ListReport {
        match self.call(&Request::List { pool: pool.to_owned() }) {
            Response::List(report) => report,
            other => panic!("an answer to another question: {other:?}"),
        }
    }

    /// One server of its pool.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    pub fn listed(&self, server: SocketAddr) -> ServerReport {
        let servers = self.list().servers;
        servers.into_iter().find(|report| report.server == server).unwrap_or_else(|| panic!("{server} is in the pool"))
    }

    /// Whom it would give this client to.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn explain(&self, client: IpAddr) -> ExplainReport {
        match self.call(&Request::Explain { client, port: 0, service: None }) {
            Response::Explained(report) => report,
            other => panic!("an answer to another question: {other:?}"),
        }
    }

    /// The digest of its pool.
    #[must_use]
    pub fn digest(&self) -> Hex {
        self.status().digest
    }

    /// A client's connection, from whatever address the kernel takes.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::connect(self.address())
    }

    /// A connection of the client with this number.
    #[must_use]
    pub fn client_number(&self, number: u32) -> Client {
        Client::connect_from(loopback::client(number), self.address())
    }

    /// Who serves the clients with these numbers, found by connecting.
    #[must_use]
    pub fn served(&self, numbers: std::ops::Range<u32>) -> Vec<SocketAddr> {
        numbers.map(|number| self.client_number(number).server()).collect()
    }

    /// Runs balancerctl on it.
    ///
    /// # Panics
    /// When it cannot be run.
    #[must_use]
    pub fn ctl(&self, line: &str) -> Output {
        balancerctl(line).arg("--socket").arg(&self.setup.socket).output().expect("balancerctl runs")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Has every one of these system calls fail with this error, until the tracer that is given ends. `None`, which is
    /// said, where there is no strace, or the kernel does not let this user trace a process that it did not start.
    ///
    /// # Panics
    /// When the tracer fails otherwise.
    #[must_use]
    pub fn fail(&self, call: &str, error: &str) -> Option<Process> {
        let [strace] = installed(["strace"])?;
        let said = self.file("strace.said");
        let mut command = Command::new(strace);
        command.args(["-f", "-e", &format!("trace={call}"), "-e", &format!("inject={call}:error={error}"), "-o"]);
        command.arg(self.file("strace.calls")).arg("-p").arg(self.pid().to_string());
        let errors = File::create(&said).expect("a file for its words");
        let mut tracer = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors));
        let is_attached = wait::for_some("the tracer is there", || {
            let ended = tracer.ended();
            let words = read(&said);
            assert!(ended.is_none() || words.contains("not permitted"), "{words}");
            if ended.is_some() { Some(false) } else { words.contains("attached").then_some(true) }
        });
        if !is_attached {
            println!("skipped: this user may not trace the balancer");
        }
        is_attached.then_some(tracer)
    }

    /// Kills it as a crash would.
    pub fn crash(&mut self) {
        self.process.kill();
    }

    /// Waits until it has ended by itself.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// How it ended, if it has.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// Starts it again where it was: the same address and files. One that runs crashes before.
    pub fn restart(&mut self) {
        self.crash();
        *self = Self::start_as(self.setup.clone());
    }

    /// Descriptors that it has open.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        process::descriptors(self.pid())
    }

    /// Checks that it does nothing while nothing happens, once what happened before is done with.
    ///
    /// # Panics
    /// When it goes on doing something.
    pub fn assert_quiet(&self) {
        let mut woke = Vec::new();
        while woke.len() < 5 {
            let (sleeps, ticks) = (process::sleeps(self.pid()), process::cpu_ticks(self.pid()));
            wait::a_moment();
            let (sleeps, ticks) = (process::sleeps(self.pid()) - sleeps, process::cpu_ticks(self.pid()) - ticks);
            // A loop that spins on a descriptor makes a hundred ticks of a second, or some thousand sleeps.
            if sleeps <= 5 && ticks <= 5 {
                return;
            }
            woke.push((sleeps, ticks));
        }
        panic!("in each second it woke up so often, and used so many ticks, for nothing: {woke:?}");
    }
}

/// Where a test fails, what the balancer counted and logged says why.
impl Drop for Balancer {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let status = wire::Client::connect(&self.setup.socket).and_then(|mut control| control.call(&Request::Status));
        println!("the balancer at {}: {status:?}", self.setup.listen);
        println!("its log:\n{}", fs::read_to_string(self.setup.log_path()).unwrap_or_default());
    }
}

fn read(path: &Path) -> String {
    String::from_utf8(fs::read(path).expect("its words")).expect("text")
}
