//! What each command does: nearly always one request, and its answer printed.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use wire::control::{Change, FileText};
use wire::report::{
    ChangeReport, Phase, PoolReport, ServiceReport, SessionReport, StatusReport, StoppingReport, Waiting,
};
use wire::settings::DEFAULT_POOL;
use wire::{Client, ClientError, Environment, Request, Response};

use crate::address::{find, find_server};
use crate::cli::file::{CompareArgs, DiffArgs};
use crate::cli::pool::PoolCommand;
use crate::cli::server::{KillArgs, RemoveArgs, ServerArgs, SessionsArgs};
use crate::cli::service::{ServiceAddArgs, ServiceCommand};
use crate::cli::{Cli, Command, StartArgs, StatusArgs, StopArgs, milliseconds};
use crate::compare::{Side, compare, of_balancer};
use crate::failure::Failure;
use crate::import::{Converted, convert};
use crate::leave::{self, Gone};
use crate::output::Output;
use crate::reach::Reach;
use crate::start::{Origin, Start};
use crate::{check, default_pool, demo, events, pages, save, text};

/// How much longer than its drain time a balancer may take to end. It closes what is left at that time, so a second
/// would do; a machine that is short of everything gets more.
const END_GRACE_MS: u64 = 30_000;

/// The socket of root's balancer.
const SYSTEM_SOCKET: &str = "/run/balancer/control.sock";

/// What came of a command that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is done, and that is all.
    Done,
    /// It found a difference, which its exit code says.
    Different,
    /// A service does not accept, which its exit code says.
    NotReady,
}

/// What is printed for `stop --json`.
#[derive(Debug, Serialize)]
struct Stopped {
    /// `None`: it had ended before it answered.
    #[serde(flatten)]
    report: Option<StoppingReport>,
    ended: bool,
}

/// What is printed for `service list --json`, `pool list --json` and `sessions --json`: an object, as of every command.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Listed {
    Services(Vec<ServiceReport>),
    Pools(Vec<PoolReport>),
    Sessions(Vec<SessionReport>),
}

/// What is printed for `import --json`.
#[derive(Debug, Serialize)]
struct Imported {
    toml: String,
    notes: Vec<String>,
}

/// Does what the command line says.
///
/// # Errors
/// When it is not done; nothing is printed about that yet.
pub(crate) fn run(cli: &Cli, output: &Output) -> Result<Verdict, Failure> {
    if let Command::Compare(arguments) = &cli.command {
        return compare_with(arguments, cli.reach(), output);
    }
    if let Command::Status(StatusArgs { ready: true }) = &cli.command {
        return is_ready(cli.reach(), output);
    }
    run_plain(cli, output).map(|()| Verdict::Done)
}

fn run_plain(cli: &Cli, output: &Output) -> Result<(), Failure> {
    let reach = cli.reach();
    match &cli.command {
        Command::Start(arguments) => start(arguments, reach, output),
        Command::Stop(arguments) => stop(arguments, reach, output),
        Command::Add(arguments) => {
            let server = named_server(&arguments.server, output)?;
            let (pool, settings) = (arguments.pool.pool.clone(), arguments.settings());
            change(Change::Add { pool, server, settings }, arguments.dry_run, reach, output)
        }
        Command::Remove(arguments) => remove(arguments, reach, output),
        Command::Set(arguments) => {
            let server = named_server(&arguments.server, output)?;
            let (pool, values) = (arguments.pool.pool.clone(), arguments.values());
            change(Change::Set { pool, server, values }, arguments.dry_run, reach, output)
        }
        Command::List(arguments) => default_pool::list(arguments, reach, output),
        Command::Service(command) => service(command, reach, output),
        Command::Pool(command) => pool(command, reach, output),
        Command::Sessions(arguments) => sessions(arguments, reach, output),
        Command::Events(arguments) => events::events(&mut connect(reach)?, arguments, output),
        Command::Kill(arguments) => kill(arguments, reach, output),
        Command::Status(_) => {
            let report = status(reach)?;
            show(output, &text::status(&report), &report)
        }
        Command::Explain(arguments) => default_pool::explain(arguments, reach, output),
        Command::Digest(arguments) => match ask(reach, &Request::Digest { pool: arguments.pool.clone() })? {
            Response::Digest(report) => show(output, &text::digest(&report), &report),
            _ => Err(Failure::Unexpected),
        },
        Command::Check(arguments) => check::check(&arguments.file, output),
        Command::Reload(arguments) => {
            reload(&Request::Reload { instead: None, dry_run: arguments.dry_run }, reach, output)
        }
        Command::Diff(arguments) => diff(arguments, reach, output),
        Command::Save(arguments) => {
            let saved = save::save(&mut connect(reach)?, arguments.file.as_deref(), arguments.dry_run, output)?;
            show(output, &text::saved(&saved), &saved)
        }
        Command::Import(arguments) => import_from(&arguments.file, output),
        // It has an exit code of its own, see `run`.
        Command::Compare(_) => unreachable!("it was taken before"),
        Command::Demo => demo::run(output),
        Command::Completions { shell } => pages::completions(*shell, output),
        Command::Man { out } => pages::man(out, output),
    }
}

/// The server that was typed; what else it could have meant is said.
fn named_server(arguments: &ServerArgs, output: &Output) -> Result<SocketAddr, Failure> {
    let (server, note) = find_server(&arguments.addr, arguments.port)?;
    note.iter().for_each(|note| output.note(note));
    Ok(server)
}

fn status(reach: Reach<'_>) -> Result<StatusReport, Failure> {
    match ask(reach, &Request::Status)? {
        Response::Status(report) => Ok(report),
        _ => Err(Failure::Unexpected),
    }
}

/// What is printed for `status --ready --json`.
#[derive(Debug, Serialize)]
struct Ready<'a> {
    ready: bool,
    phase: Phase,
    /// Those that do not accept.
    services: Vec<NotReady<'a>>,
}

#[derive(Debug, Serialize)]
struct NotReady<'a> {
    service: &'a str,
    waiting: Option<Waiting>,
}

/// Whether every service accepts clients. A balancer without a service is not ready for any.
fn is_ready(reach: Reach<'_>, output: &Output) -> Result<Verdict, Failure> {
    let report = status(reach)?;
    let there = report.services.iter().filter(|service| !service.leaving);
    let services: Vec<_> = there
        .clone()
        .filter(|service| !service.accepting)
        .map(|service| NotReady { service: &service.name, waiting: service.waiting })
        .collect();
    let count = there.count();
    let ready = report.phase == Phase::Running && count > 0 && services.is_empty();
    let idle: Vec<&str> = services.iter().map(|idle| idle.service).collect();
    output.text(text::readiness(report.phase, count, &idle))?;
    output.value(&Ready { ready, phase: report.phase, services })?;
    Ok(if ready { Verdict::Done } else { Verdict::NotReady })
}

fn remove(arguments: &RemoveArgs, reach: Reach<'_>, output: &Output) -> Result<(), Failure> {
    let server = named_server(&arguments.server, output)?;
    let pool = &arguments.pool.pool;
    let order = Change::Remove { pool: pool.clone(), server, how: arguments.how() };
    if !arguments.wait {
        return change(order, arguments.dry_run, reach, output);
    }
    let mut client = connect(reach)?;
    let report = changed(&mut client, order, false, output)?;
    output.text(text::change(&report))?;
    leave::wait(&mut client, pool, server, output)?;
    output.value(&Gone { report, gone: true })
}

fn service(command: &ServiceCommand, reach: Reach<'_>, output: &Output) -> Result<(), Failure> {
    match command {
        ServiceCommand::Add(arguments) => add_service(arguments, reach, output),
        ServiceCommand::Remove(arguments) => {
            change(Change::RemoveService { service: arguments.name.clone() }, arguments.dry_run, reach, output)
        }
        ServiceCommand::List(arguments) => {
            let services = status(reach)?.services;
            let text = if arguments.wide { text::wide_services(&services) } else { text::services(&services) };
            show(output, &text, &Listed::Services(services))
        }
    }
}

fn add_service(arguments: &ServiceAddArgs, reach: Reach<'_>, output: &Output) -> Result<(), Failure> {
    let found = find(&arguments.addr)?;
    found.note.iter().for_each(|note| output.note(note));
    let settings = arguments.settings((found.ip, arguments.port).into())?;
    change(Change::AddService { service: arguments.name.clone(), settings }, arguments.dry_run, reach, output)
}

fn pool(command: &PoolCommand, reach: Reach<'_>, output: &Output) -> Result<(), Failure> {
    match command {
        PoolCommand::Add(arguments) => {
            let (pool, settings) = (arguments.name.clone(), arguments.settings()?);
            change(Change::AddPool { pool, settings }, arguments.dry_run, reach, output)
        }
        PoolCommand::Remove(arguments) => {
            change(Change::RemovePool { pool: arguments.name.clone() }, arguments.dry_run, reach, output)
        }
        PoolCommand::Set(arguments) => {
            let (pool, values) = (arguments.name.clone(), arguments.values()?);
            change(Change::SetPool { pool, values }, arguments.dry_run, reach, output)
        }
        PoolCommand::List => match ask(reach, &Request::Pools)? {
            Response::Pools(pools) => show(output, &text::pools(&pools), &Listed::Pools(pools)),
            _ => Err(Failure::Unexpected),
        },
    }
}

fn sessions(arguments: &SessionsArgs, reach: Reach<'_>, output: &Output) -> Result<(), Failure> {
    let SessionsArgs { service, pool, server, limit } = arguments;
    let (service, pool) = (service.clone(), pool.clone());
    match ask(reach, &Request::Sessions { service, pool, server: *server, limit: *limit })? {
        Response::Sessions(sessions) => show(output, &text::sessions(&sessions, *limit), &Listed::Sessions(sessions)),
        _ => Err(Failure::Unexpected),
    }
}

fn kill(arguments: &KillArgs, reach: Reach<'_>, output: &Output) -> Result<(), Failure> {
    let order = match (arguments.session, arguments.server) {
        (Some(session), _) => Change::Kill { session },
        (None, Some(server)) => {
            let pool = arguments.pool.as_deref().unwrap_or(DEFAULT_POOL).to_owned();
            Change::KillAll { pool, server }
        }
        (None, None) => unreachable!("the command line has one of them"),
    };
    change(order, arguments.dry_run, reach, output)
}

fn diff(arguments: &DiffArgs, reach: Reach<'_>, output: &Output) -> Result<(), Failure> {
    let text = check::read(&arguments.file)?;
    let name = match arguments.file.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => arguments.file.display().to_string(),
    };
    reload(&Request::Reload { instead: Some(FileText { name, text }), dry_run: true }, reach, output)
}

fn reload(request: &Request, reach: Reach<'_>, output: &Output) -> Result<(), Failure> {
    match ask(reach, request)? {
        Response::Reloaded(report) => {
            warn_unsaved(report.unsaved.as_deref(), output);
            show(output, &text::reloaded(&report), &report)
        }
        _ => Err(Failure::Unexpected),
    }
}

fn import_from(file: &Path, output: &Output) -> Result<(), Failure> {
    let text = check::read(file)?;
    let Converted { toml, notes } =
        convert(&text).map_err(|source| Failure::Import { path: file.to_path_buf(), source })?;
    notes.iter().for_each(|note| output.note(note));
    output.text(toml.trim_end())?;
    output.value(&Imported { toml, notes })
}

fn compare_with(arguments: &CompareArgs, reach: Reach<'_>, output: &Output) -> Result<Verdict, Failure> {
    let other = Side::find(&arguments.other)?;
    let settings = of_balancer(&mut connect(reach)?)?;
    let compared = compare(&Side { name: "this balancer".to_owned(), settings }, &other)?;
    show(output, &text::compared(&compared), &compared)?;
    Ok(if compared.equal { Verdict::Done } else { Verdict::Different })
}

/// Asks the balancer that `socket` means; a refusal is a failure.
///
/// # Errors
/// When it cannot be asked, or refuses.
pub(crate) fn ask(reach: Reach<'_>, request: &Request) -> Result<Response, Failure> {
    accepted(connect(reach)?.call(request)?)
}

/// The balancer that `socket` means.
///
/// # Errors
/// When it cannot be reached.
pub(crate) fn connect(reach: Reach<'_>) -> Result<Client, Failure> {
    let environment = Environment::current();
    // Nothing of the state is needed here. With a directory for it given, only the socket's place can be wrong.
    let path = wire::place::socket_path(reach.socket, &environment)?;
    Client::connect(&path).map(|client| client.within(reach.timeout)).map_err(|error| {
        let meant = reach.socket.is_some() || environment.root;
        hint(error, meant, Path::new(SYSTEM_SOCKET))
    })
}

/// A user who does not name a balancer and has none probably means that of the system.
fn hint(error: ClientError, meant: bool, system: &Path) -> Failure {
    match error {
        ClientError::NoDaemon(tried) if !meant && seems_there(system) => {
            Failure::OtherBalancer { tried, other: system.to_path_buf() }
        }
        error => error.into(),
    }
}

/// Root's directory is closed to others: what may not be looked at counts as there.
fn seems_there(path: &Path) -> bool {
    path.metadata().map_or_else(|error| error.kind() == io::ErrorKind::PermissionDenied, |_| true)
}

/// A refusal is a failure.
pub(crate) fn accepted(response: Response) -> Result<Response, Failure> {
    match response {
        Response::Refused(refusal) => Err(Failure::Refused(refusal)),
        response => Ok(response),
    }
}

/// Prints an answer for whoever reads.
///
/// # Errors
/// When standard output takes no more.
pub(crate) fn show(output: &Output, text: &str, report: &impl Serialize) -> Result<(), Failure> {
    output.text(text)?;
    output.value(report)
}

fn change(change: Change, dry_run: bool, reach: Reach<'_>, output: &Output) -> Result<(), Failure> {
    let report = changed(&mut connect(reach)?, change, dry_run, output)?;
    show(output, &text::change(&report), &report)
}

fn changed(client: &mut Client, change: Change, dry_run: bool, output: &Output) -> Result<ChangeReport, Failure> {
    match accepted(client.call(&Request::Change { change, dry_run })?)? {
        Response::Changed(report) => {
            warn_unsaved(report.unsaved.as_deref(), output);
            Ok(report)
        }
        _ => Err(Failure::Unexpected),
    }
}

fn warn_unsaved(reason: Option<&str>, output: &Output) {
    if let Some(reason) = reason {
        output.note(format_args!("warning: this holds only until the balancer ends: {reason}"));
    }
}

fn start(arguments: &StartArgs, reach: Reach<'_>, output: &Output) -> Result<(), Failure> {
    let origin = match (&arguments.config, &arguments.addr, arguments.port) {
        (Some(file), ..) => Origin::File(absolute(file)),
        (None, Some(addr), Some(port)) => {
            let found = find(addr)?;
            found.note.iter().for_each(|note| output.note(note));
            Origin::Listen((found.ip, port).into())
        }
        _ => unreachable!("the command line has a file, or an address and a port"),
    };
    let order = Start {
        origin,
        socket: reach.socket.map(absolute),
        state: arguments.state.as_deref().map(absolute),
        options: &arguments.options,
    };
    let started = order.run()?;
    started.warnings.lines().for_each(|warning| output.note(warning));
    show(output, &text::started(&started), &started)
}

/// A daemon has another working directory than the one who starts it. Where this one is gone, the daemon says so.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

fn stop(arguments: &StopArgs, reach: Reach<'_>, output: &Output) -> Result<(), Failure> {
    let drain_ms = arguments.drain.map(milliseconds);
    let mut client = connect(reach)?;
    let stopping = match client.call(&Request::Stop { now: arguments.now, drain_ms }) {
        // Somebody else has stopped it, and the last moment of that was now.
        Err(ClientError::Ended(_)) => {
            output.text("balancer stopped: another stop was before this one")?;
            return output.value(&Stopped { report: None, ended: true });
        }
        called => called?,
    };
    let Response::Stopping(report) = accepted(stopping)? else { return Err(Failure::Unexpected) };
    output.text(text::stopping(&report, arguments.now))?;
    if !arguments.no_wait {
        let drain_ms = if arguments.now { 0 } else { report.drain_ms };
        wait_for_end(client, report.pid, drain_ms.saturating_add(END_GRACE_MS))?;
        output.text(format_args!("balancer stopped, pid {}", report.pid))?;
    }
    output.value(&Stopped { report: Some(report), ended: !arguments.no_wait })
}

/// Waits until the balancer that was told to stop has ended.
///
/// # Errors
/// When it has not within the limit.
pub(crate) fn wait_for_end(client: Client, pid: u32, limit_ms: u64) -> Result<(), Failure> {
    client.wait_for_end(Some(Duration::from_millis(limit_ms))).map_err(|error| match error {
        ClientError::TimedOut(_) => Failure::StillThere { pid, limit_ms },
        error => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_without_a_balancer_hears_of_the_systems() {
        let directory = tempfile::tempdir().expect("a directory");
        let none = || ClientError::NoDaemon("/run/user/7/balancer/control.sock".into());
        let absent = directory.path().join("absent");
        assert!(matches!(hint(none(), false, directory.path()), Failure::OtherBalancer { .. }));
        assert!(matches!(hint(none(), true, directory.path()), Failure::Client(_)), "another was named");
        assert!(matches!(hint(none(), false, &absent), Failure::Client(_)), "there is none");
    }

    #[test]
    fn stop_is_one_flat_object() {
        let report = Some(StoppingReport { pid: 7, sessions: 2, drain_ms: 30_000 });
        let stopped = Stopped { report, ended: true };
        assert_eq!(
            serde_json::to_string(&stopped).expect("text"),
            r#"{"pid":7,"sessions":2,"drain_ms":30000,"ended":true}"#
        );
    }
}
