//! What each command does: nearly always one request, and its answer printed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use wire::control::Change;
use wire::report::StoppingReport;
use wire::{Client, ClientError, Environment, Request, Response};

use crate::address::{find, find_client, find_server};
use crate::cli::{Cli, Command, StartArgs, StopArgs};
use crate::failure::Failure;
use crate::output::Output;
use crate::start::Start;
use crate::{demo, pages, text};

/// How much longer than its drain time a balancer may take to end. It closes what is left at that time, so a second
/// would do; a machine that is short of everything gets more.
const END_GRACE_MS: u64 = 30_000;

/// The socket of root's balancer.
const SYSTEM_SOCKET: &str = "/run/balancer/control.sock";

/// What is printed for `stop --json`.
#[derive(Debug, Serialize)]
struct Stopped {
    #[serde(flatten)]
    report: StoppingReport,
    ended: bool,
}

/// Does what the command line says.
///
/// # Errors
/// When it is not done; nothing is printed about that yet.
pub(crate) fn run(cli: &Cli, output: &Output) -> Result<(), Failure> {
    let socket = cli.socket.as_deref();
    match &cli.command {
        Command::Start(arguments) => start(arguments, socket, output),
        Command::Stop(arguments) => stop(arguments, socket, output),
        Command::Add(arguments) => {
            let (server, note) = find_server(&arguments.server.addr, arguments.server.port)?;
            note.iter().for_each(|note| output.note(note));
            change(Change::Add { server, weight: arguments.weight }, arguments.dry_run, socket, output)
        }
        Command::Remove(arguments) => {
            let (server, note) = find_server(&arguments.server.addr, arguments.server.port)?;
            note.iter().for_each(|note| output.note(note));
            change(Change::Remove { server, now: arguments.now }, arguments.dry_run, socket, output)
        }
        Command::List => match ask(socket, &Request::List)? {
            Response::List(report) => show(output, &text::list(&report), &report),
            _ => Err(Failure::Unexpected),
        },
        Command::Status => match ask(socket, &Request::Status)? {
            Response::Status(report) => show(output, &text::status(&report), &report),
            _ => Err(Failure::Unexpected),
        },
        Command::Explain(arguments) => {
            let found = find_client(&arguments.client)?;
            found.note.iter().for_each(|note| output.note(note));
            match ask(socket, &Request::Explain { client: found.ip })? {
                Response::Explained(report) => show(output, &text::explain(&report), &report),
                _ => Err(Failure::Unexpected),
            }
        }
        Command::Digest => match ask(socket, &Request::Digest)? {
            Response::Digest(report) => show(output, &text::digest(&report), &report),
            _ => Err(Failure::Unexpected),
        },
        Command::Demo => demo::run(output),
        Command::Completions { shell } => pages::completions(*shell, output),
        Command::Man { out } => pages::man(out, output),
    }
}

/// Asks the balancer that `socket` means; a refusal is a failure.
///
/// # Errors
/// When it cannot be asked, or refuses.
pub(crate) fn ask(socket: Option<&Path>, request: &Request) -> Result<Response, Failure> {
    accepted(connect(socket)?.call(request)?)
}

fn connect(socket: Option<&Path>) -> Result<Client, Failure> {
    let environment = Environment::current();
    // Nothing of the state is needed here. With a directory for it given, only the socket's place can be wrong.
    let path = wire::place::socket_path(socket, &environment)?;
    Client::connect(&path).map_err(|error| {
        let meant = socket.is_some() || environment.root;
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

fn accepted(response: Response) -> Result<Response, Failure> {
    match response {
        Response::Refused(refusal) => Err(Failure::Refused(refusal)),
        response => Ok(response),
    }
}

fn show(output: &Output, text: &str, report: &impl Serialize) -> Result<(), Failure> {
    output.text(text)?;
    output.value(report)
}

fn change(change: Change, dry_run: bool, socket: Option<&Path>, output: &Output) -> Result<(), Failure> {
    match ask(socket, &Request::Change { change, dry_run })? {
        Response::Changed(report) => {
            if let Some(reason) = &report.unsaved {
                output.note(format_args!("warning: this holds only until the balancer ends: {reason}"));
            }
            show(output, &text::change(&report), &report)
        }
        _ => Err(Failure::Unexpected),
    }
}

fn start(arguments: &StartArgs, socket: Option<&Path>, output: &Output) -> Result<(), Failure> {
    let found = find(&arguments.addr)?;
    found.note.iter().for_each(|note| output.note(note));
    let listen = (found.ip, arguments.port).into();
    let order = Start {
        listen,
        socket: socket.map(absolute),
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

fn stop(arguments: &StopArgs, socket: Option<&Path>, output: &Output) -> Result<(), Failure> {
    let drain_ms = arguments.drain.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let mut client = connect(socket)?;
    let stopping = client.call(&Request::Stop { now: arguments.now, drain_ms })?;
    let Response::Stopping(report) = accepted(stopping)? else { return Err(Failure::Unexpected) };
    output.text(text::stopping(&report, arguments.now))?;
    if !arguments.no_wait {
        let drain_ms = if arguments.now { 0 } else { report.drain_ms };
        wait_for_end(client, report.pid, drain_ms.saturating_add(END_GRACE_MS))?;
        output.text(format_args!("balancer stopped, pid {}", report.pid))?;
    }
    output.value(&Stopped { report, ended: !arguments.no_wait })
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
        let stopped = Stopped { report: StoppingReport { pid: 7, sessions: 2, drain_ms: 30_000 }, ended: true };
        assert_eq!(
            serde_json::to_string(&stopped).expect("text"),
            r#"{"pid":7,"sessions":2,"drain_ms":30000,"ended":true}"#
        );
    }
}
