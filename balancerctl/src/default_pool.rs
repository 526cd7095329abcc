//! Commands that only look and name no pool or service: they mean the pool `default`, and where there is none, all there
//! are. What changes something means one pool, always.

use serde::Serialize;
use wire::report::{ExplainReport, ListReport};
use wire::settings::DEFAULT_POOL;
use wire::{Client, Refusal, Request, Response};

use crate::address::find_client;
use crate::cli::{ExplainArgs, ListArgs};
use crate::command::{accepted, connect, show};
use crate::failure::Failure;
use crate::output::Output;
use crate::reach::Reach;
use crate::text;

/// What is printed of all of them: an object, as of every command.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum All {
    Lists(Vec<ListReport>),
    Explained(Vec<ExplainReport>),
}

/// Lists the servers of a pool.
///
/// # Errors
/// When the balancer cannot be asked, or refuses: there is no such pool, or none at all.
pub(crate) fn list(arguments: &ListArgs, reach: Reach<'_>, output: &Output) -> Result<(), Failure> {
    let text = if arguments.wide { text::wide_list } else { text::list };
    let mut client = connect(reach)?;
    let named = arguments.pool.as_deref();
    let Some(report) = list_of(&mut client, named.unwrap_or(DEFAULT_POOL), named.is_none())? else {
        let mut all = Vec::new();
        for pool in pools(&mut client)? {
            // One that has gone meanwhile is none.
            all.extend(list_of(&mut client, &pool, true)?);
        }
        let texts: Vec<String> = all.iter().map(text).collect();
        return show_all(&texts, &All::Lists(all), output);
    };
    output.text(text(&report))?;
    if named.is_none() && report.servers.is_empty() && !output.is_json() {
        let others: Vec<String> = pools(&mut client)?.into_iter().filter(|pool| pool != DEFAULT_POOL).collect();
        tell_others(&others, "pools", "list --pool NAME", output)?;
    }
    output.value(&report)
}

/// The list of a pool; nothing if there is none and there `may` be none.
fn list_of(client: &mut Client, pool: &str, may: bool) -> Result<Option<ListReport>, Failure> {
    match client.call(&Request::List { pool: pool.to_owned() })? {
        Response::List(report) => Ok(Some(report)),
        Response::Refused(Refusal::NoPool { .. }) if may => Ok(None),
        other => accepted(other).and(Err(Failure::Unexpected)),
    }
}

fn pools(client: &mut Client) -> Result<Vec<String>, Failure> {
    match accepted(client.call(&Request::Pools)?)? {
        Response::Pools(pools) => Ok(pools.into_iter().map(|report| report.pool).collect()),
        _ => Err(Failure::Unexpected),
    }
}

/// Tells which server a client gets of a service.
///
/// # Errors
/// When the balancer cannot be asked, or refuses: there is no such service, or none at all.
pub(crate) fn explain(arguments: &ExplainArgs, reach: Reach<'_>, output: &Output) -> Result<(), Failure> {
    let (found, port) = find_client(&arguments.client)?;
    found.note.iter().for_each(|note| output.note(note));
    let mut client = connect(reach)?;
    let of = |service: Option<String>| Request::Explain { client: found.ip, port, service };
    let named = arguments.service.is_some();
    let Some(report) = explained(&mut client, &of(arguments.service.clone()), !named)? else {
        let mut all = Vec::new();
        for service in services(&mut client)? {
            all.extend(explained(&mut client, &of(Some(service)), true)?);
        }
        let texts: Vec<String> = all.iter().map(text::explain).collect();
        return show_all(&texts, &All::Explained(all), output);
    };
    output.text(text::explain(&report))?;
    if !named && report.server.is_none() && report.next.is_empty() && !output.is_json() {
        tell_others(&services(&mut client)?, "services", "explain CLIENT --service NAME", output)?;
    }
    output.value(&report)
}

/// Who gets a client; nothing if there is no such pool or service and there `may` be none.
fn explained(client: &mut Client, request: &Request, may: bool) -> Result<Option<ExplainReport>, Failure> {
    match client.call(request)? {
        Response::Explained(report) => Ok(Some(report)),
        Response::Refused(Refusal::NoPool { .. } | Refusal::NoService { .. }) if may => Ok(None),
        other => accepted(other).and(Err(Failure::Unexpected)),
    }
}

/// The services that another pool serves.
fn services(client: &mut Client) -> Result<Vec<String>, Failure> {
    match accepted(client.call(&Request::Status)?)? {
        Response::Status(report) => {
            let its = report.services.into_iter().filter(|one| !one.leaving && one.settings.pool != DEFAULT_POOL);
            let mut names: Vec<String> = its.map(|service| service.name).collect();
            names.sort();
            Ok(names)
        }
        _ => Err(Failure::Unexpected),
    }
}

/// Prints what is told of all; where there is nobody, there is not even the pool that was meant.
fn show_all(texts: &[String], all: &All, output: &Output) -> Result<(), Failure> {
    if texts.is_empty() {
        return Err(Failure::Refused(Refusal::NoPool { pool: DEFAULT_POOL.to_owned() }));
    }
    show(output, &texts.join("\n\n"), all)
}

/// The pool `default` has nothing to show: names those that may have been meant, and the command that shows one.
fn tell_others(names: &[String], of_what: &str, command: &str, output: &Output) -> Result<(), Failure> {
    if names.is_empty() {
        return Ok(());
    }
    output.text(format_args!("\n{}", text::others(names, of_what, command)))
}
