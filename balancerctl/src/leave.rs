//! Waiting for a removed server to be gone: `remove --wait`. It asks for the list again and again, which shows how many
//! sessions are left.

use std::io::{IsTerminal, stdout};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use serde::Serialize;
use wire::report::{ChangeReport, ListReport, ServerReport, ServerState};
use wire::{Client, ClientError, Refusal, Request, Response};

use crate::failure::Failure;
use crate::output::Output;
use crate::quantity::{count, time};

/// Between two looks: short beside a session, long beside a request.
const PAUSE: Duration = Duration::from_millis(250);

/// What is printed for `remove --wait --json`.
#[derive(Debug, Serialize)]
pub(crate) struct Gone {
    #[serde(flatten)]
    pub(crate) report: ChangeReport,
    pub(crate) gone: bool,
}

/// Why a server was waited for in vain.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaveError {
    /// The balancer ended, and every session with it.
    #[error("the balancer ended while the last sessions of {0} were waited for; they have ended with it")]
    BalancerEnded(SocketAddr),
    /// Somebody added it again.
    #[error("{0} was added again while its last sessions were waited for")]
    AddedAgain(SocketAddr),
}

/// Where a removed server is.
#[derive(Debug, PartialEq)]
enum Place<'a> {
    Gone,
    Leaving(&'a ServerReport),
    Back,
}

/// Waits until the server has left the pool, and says how far it is.
///
/// # Errors
/// When the balancer ends before, or the server is added again.
pub(crate) fn wait(client: &mut Client, pool: &str, server: SocketAddr, output: &Output) -> Result<(), Failure> {
    let mut progress = Progress { on_terminal: stdout().is_terminal(), shown: String::new() };
    let mut waited = Duration::ZERO;
    loop {
        let response = client.call(&Request::List { pool: pool.to_owned() }).map_err(|error| match error {
            ClientError::Closed(_) | ClientError::Ended(_) | ClientError::NoDaemon(_) => {
                LeaveError::BalancerEnded(server).into()
            }
            error => Failure::from(error),
        });
        let report = match response? {
            Response::List(report) => report,
            // With the pool went the last that could be seen of it.
            Response::Refused(Refusal::NoPool { .. }) => break,
            Response::Refused(refusal) => return Err(Failure::Refused(refusal)),
            _ => return Err(Failure::Unexpected),
        };
        match place(&report, server) {
            Place::Gone => break,
            Place::Back => {
                progress.end(output)?;
                return Err(LeaveError::AddedAgain(server).into());
            }
            Place::Leaving(report) => progress.show(&left(report, waited), output)?,
        }
        // Nobody unparks this thread: it is a pause.
        thread::park_timeout(PAUSE);
        waited += PAUSE;
    }
    progress.end(output)?;
    output.text(format_args!("{server} is gone"))
}

fn place(report: &ListReport, server: SocketAddr) -> Place<'_> {
    match report.servers.iter().filter(|one| one.server == server).min_by_key(|one| one.state == ServerState::Leaving) {
        None => Place::Gone,
        Some(one) if one.state == ServerState::Leaving => Place::Leaving(one),
        Some(_) => Place::Back,
    }
}

/// Sessions that are left, and the time: that which is left, if there is a limit, otherwise that which has gone by.
fn left(server: &ServerReport, waited: Duration) -> String {
    let sessions = format!("{} left", count(server.active, "session"));
    match server.removal.and_then(|removal| removal.left_ms) {
        Some(left) => format!("{sessions}, {} at most", time(left.div_ceil(1000) * 1000)),
        None if waited.as_secs() > 0 => format!("{sessions}, {} so far", time(waited.as_secs() * 1000)),
        None => sessions,
    }
}

/// A line that is written over on a terminal; elsewhere a line for each number of sessions.
struct Progress {
    on_terminal: bool,
    shown: String,
}

impl Progress {
    fn show(&mut self, text: &str, output: &Output) -> Result<(), Failure> {
        let key = if self.on_terminal { text } else { text.split(',').next().unwrap_or(text) };
        if key == self.shown {
            return Ok(());
        }
        if self.on_terminal {
            let width = self.shown.len();
            output.part(format_args!("\r{text:width$}"))?;
        } else {
            output.text(text)?;
        }
        key.clone_into(&mut self.shown);
        Ok(())
    }

    fn end(&self, output: &Output) -> Result<(), Failure> {
        if self.on_terminal && !self.shown.is_empty() { output.part("\n") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use wire::control::Removal;
    use wire::report::{Ended, Hex, RemovalReport};
    use wire::settings::PoolSettings;

    use super::*;

    fn server(state: ServerState, left_ms: Option<u64>) -> ServerReport {
        let how = Removal::Wait { limit_ms: left_ms };
        ServerReport {
            server: "10.0.0.1:80".parse().expect("an address"),
            weight: 1,
            max_sessions: None,
            ramp: 1.0,
            state,
            backup: false,
            health: wire::report::HealthReport::default(),
            share: 0.0,
            active: 3,
            total: 10,
            bytes_in: 0,
            bytes_out: 0,
            connect_failures: 0,
            connect_timeouts: 0,
            timing: wire::report::TimingReport::default(),
            overflows: 0,
            replays: 0,
            removal: Some(RemovalReport { how, sessions: 5, left_ms }),
            ended: Ended::new(),
            datagrams: wire::report::DatagramReport::default(),
            flows_moved: 0,
        }
    }

    fn list(servers: Vec<ServerReport>) -> ListReport {
        let settings = PoolSettings::default();
        ListReport { pool: "default".into(), settings, digest: Hex(7), deviations: Vec::new(), servers }
    }

    #[test]
    fn a_server_is_gone_leaving_or_back() {
        let address = "10.0.0.1:80".parse().expect("an address");
        let leaving = server(ServerState::Leaving, None);
        assert_eq!(place(&list(Vec::new()), address), Place::Gone);
        assert_eq!(place(&list(vec![leaving.clone()]), address), Place::Leaving(&leaving));
        assert_eq!(place(&list(vec![server(ServerState::Drain, None)]), address), Place::Back);
    }

    #[test]
    fn what_is_left_is_sessions_and_time() {
        let left = |left_ms, waited| left(&server(ServerState::Leaving, left_ms), Duration::from_millis(waited));
        assert_eq!(left(None, 500), "3 sessions left");
        assert_eq!(left(None, 61_750), "3 sessions left, 1 min 1 s so far");
        assert_eq!(left(Some(61_900), 61_750), "3 sessions left, 1 min 2 s at most");
    }
}
