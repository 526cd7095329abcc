//! What happens to the health of servers: `events`. It asks once, or with `--follow` again and again over one
//! connection; each event is a line.

use std::thread;
use std::time::Duration;

use serde::Serialize;
use wire::event::{EventsReport, HealthEvent};
use wire::{Client, ClientError, Request, Response};

use crate::cli::server::EventsArgs;
use crate::command::accepted;
use crate::failure::Failure;
use crate::output::Output;
use crate::text;

/// Between two questions of who follows.
const PAUSE: Duration = Duration::from_millis(500);

/// What is printed of each event for `--json`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    started: &'a str,
    #[serde(flatten)]
    event: &'a HealthEvent,
}

/// What is printed before the events for `--json`, if some are missing.
#[derive(Debug, Serialize)]
struct Missing<'a> {
    started: &'a str,
    dropped: u64,
}

/// Why events cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EventsError {
    /// The number is of an event that has not been.
    #[error(
        "there is no event {number} yet, the last one is {last}: numbers begin again with each start of a balancer, and \
         this one was started at {started}"
    )]
    NotYet {
        /// The number asked for.
        number: u64,
        /// The last there is; 0 for none.
        last: u64,
        /// When the balancer was started.
        started: String,
    },
    /// The connection ended while events were followed.
    #[error("the balancer has ended, or has closed the connection; event {last} was the last that it told")]
    Ended {
        /// The last event.
        last: u64,
    },
}

/// Prints the events that there are, and with `--follow` those that come, until the balancer ends.
///
/// # Errors
/// When the balancer cannot be asked, there is no event of the number yet, or it ends while it is followed.
pub(crate) fn events(client: &mut Client, arguments: &EventsArgs, output: &Output) -> Result<(), Failure> {
    let report = ask(client, arguments.since)?;
    let mut last = report.next.saturating_sub(1);
    if arguments.since > last {
        return Err(EventsError::NotYet { number: arguments.since, last, started: report.started }.into());
    }
    print(&report, output)?;
    if !arguments.follow {
        return if report.next == 1 { output.text("there was no event yet") } else { Ok(()) };
    }
    loop {
        // Nobody unparks this thread: it is a pause.
        thread::park_timeout(PAUSE);
        let report = ask(client, last).map_err(|failure| match failure {
            Failure::Client(ClientError::Closed(_) | ClientError::Ended(_)) => EventsError::Ended { last }.into(),
            failure => failure,
        })?;
        print(&report, output)?;
        last = report.next.saturating_sub(1);
    }
}

fn ask(client: &mut Client, since: u64) -> Result<EventsReport, Failure> {
    match accepted(client.call(&Request::Events { since })?)? {
        Response::Events(report) => Ok(report),
        _ => Err(Failure::Unexpected),
    }
}

fn print(report: &EventsReport, output: &Output) -> Result<(), Failure> {
    let started = report.started.as_str();
    if report.dropped > 0 {
        output.text(text::dropped_events(report.dropped))?;
        output.value(&Missing { started, dropped: report.dropped })?;
    }
    for event in &report.events {
        output.text(text::event(event))?;
        output.value(&Line { started, event })?;
    }
    Ok(())
}
