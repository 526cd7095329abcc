//! Reports as people read them: a table with a header line, or a few rows of a word and what it is. Programs get the
//! reports themselves. What is short is here; `change` tells of changes and who moves, `list` has the tables of
//! servers, services, pools and sessions, `datagram` what is told of datagrams, `event` what has happened to servers,
//! `explain` why a client gets its server, `difference` what differs from files and others.

mod change;
mod datagram;
mod difference;
mod event;
mod explain;
mod list;

use comfy_table::{CellAlignment, Table, presets};
use wire::report::{DigestReport, Ended, LastReload, Phase, ServiceReport, StatusReport, StoppingReport};
use wire::settings::{HashKey, Policy};

use crate::quantity::{count, size, time};
use crate::start::Started;

pub(crate) use change::change;
pub(crate) use difference::{compared, reloaded, saved};
pub(crate) use event::{dropped_events, event};
pub(crate) use explain::explain;
pub(crate) use list::{list, pools, services, sessions, wide_list, wide_services};

/// Names that are shown before they are only counted.
const OTHERS_SHOWN: usize = 8;

/// A column: its heading, and whether numbers stand in it.
pub(crate) type Column = (&'static str, Align);

/// Where the text of a column stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A column, and what of one thing stands in it.
type Cell<'a, T> = (Column, Box<dyn Fn(&T) -> String + 'a>);

/// A table without borders, two blanks between its columns, no wrapping: the same in a terminal and in a file.
pub(crate) fn table<const N: usize>(columns: [Column; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    table_of(&columns, rows.into_iter().map(Vec::from))
}

/// As [`table`], for columns that are not always the same; a row has as many cells.
fn table_of(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(columns.iter().map(|(heading, _)| *heading));
    for row in rows {
        table.add_row(row);
    }
    for (index, (column, (_, align))) in table.column_iter_mut().zip(columns).enumerate() {
        column.set_padding((if index == 0 { 0 } else { 2 }, 0));
        column.set_cell_alignment(match align {
            Align::Left => CellAlignment::Left,
            Align::Right => CellAlignment::Right,
        });
    }
    table.trim_fmt()
}

/// The table of these columns, with a row for each thing.
fn table_of_cells<T>(cells: &[Cell<'_, T>], things: &[T]) -> String {
    let columns: Vec<Column> = cells.iter().map(|(column, _)| *column).collect();
    table_of(&columns, things.iter().map(|thing| cells.iter().map(|(_, text)| text(thing)).collect()))
}

/// A value, where it is not the usual one.
fn other<T: PartialEq>(value: T, usual: &T) -> Option<T> {
    (value != *usual).then_some(value)
}

/// Rows of a word and what it is.
fn rows<W: AsRef<str>>(rows: &[(W, String)]) -> String {
    let width = rows.iter().map(|(word, _)| word.as_ref().chars().count()).max().unwrap_or(0);
    // Further lines of a text are below its first.
    let below = format!("\n{:width$}  ", "");
    let lines = rows
        .iter()
        .map(|(word, text)| format!("{:width$}  {}", word.as_ref(), text.replace('\n', &below)).trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

/// Things with commas between them.
fn listed(things: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    let texts: Vec<String> = things.into_iter().map(|thing| thing.to_string()).collect();
    texts.join(", ")
}

/// What others there are, and how one of them is shown.
pub(crate) fn others(names: &[String], of_what: &str, command: &str) -> String {
    let (shown, rest) = names.split_at(names.len().min(OTHERS_SHOWN));
    let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    format!("other {of_what}: {}{more}; `balancerctl {command}` shows one", listed(shown))
}

/// The answer to `status`.
pub(crate) fn status(report: &StatusReport) -> String {
    let phase = match report.phase {
        Phase::Running => "running",
        Phase::Stopping => "stopping: it takes no new clients and ends when the last session has ended",
    };
    let unsaved = report.unsaved.as_ref().map(|reason| format!(" (does not have the pool as it is: {reason})"));
    let mut lines = vec![
        ("balancerd", format!("version {}, pid {}", report.version, report.pid)),
        ("phase", phase.to_owned()),
        ("uptime", time(report.uptime_ms)),
        ("servers", report.servers.to_string()),
        ("digest", report.digest.to_string()),
        ("session limit", report.session_limit.to_string()),
    ];
    lines.extend(report.config_file.as_ref().map(|file| ("config file", file.clone())));
    lines.extend(last_reload(report).map(|what| ("last reload", what)));
    lines.extend([
        ("state file", format!("{}{}", report.state_file, unsaved.unwrap_or_default())),
        ("log", report.log.clone()),
        ("longest turn", format!("{:.1} ms", report.longest_turn_us as f64 / 1000.0)),
        ("log lines dropped", report.log_lines_dropped.to_string()),
    ]);
    if report.port_shortages > 0 {
        lines.push(("connects without a port", report.port_shortages.to_string()));
    }
    let mut paragraphs = vec![rows(&lines)];
    let mut cells: Vec<Cell<'_, ServiceReport>> = vec![
        (("SERVICE", Align::Left), Box::new(|service| service.name.clone())),
        (("LISTEN", Align::Left), Box::new(|service| listed(&service.addresses))),
        (("POOL", Align::Left), Box::new(|service| service.settings.pool.clone())),
        (("ACCEPTING", Align::Left), Box::new(list::accepting)),
        (("ACTIVE", Align::Right), Box::new(|service| service.active.to_string())),
        (("TOTAL", Align::Right), Box::new(|service| service.total.to_string())),
        (("IN", Align::Right), Box::new(|service| size(service.bytes_in))),
        (("OUT", Align::Right), Box::new(|service| size(service.bytes_out))),
        (("FAILED", Align::Right), Box::new(|service| service.accept_failures.to_string())),
    ];
    if list::any_speaks_udp(&report.services) {
        cells.insert(1, list::protocol());
    }
    paragraphs.push(table_of_cells(&cells, &report.services));
    for service in &report.services {
        if !service.ended.is_empty() {
            paragraphs.push(format!("sessions of {} that ended: {}", service.name, ended(&service.ended)));
        }
        let lines = datagram::of_service(service);
        if !lines.is_empty() {
            paragraphs.push(lines.join("\n"));
        }
    }
    paragraphs.extend(difference::deviations(&report.deviations));
    paragraphs.join("\n\n")
}

fn ended(ended: &Ended) -> String {
    listed(ended.iter().map(|(reason, sessions)| format!("{sessions} {reason}")))
}

/// The answer to `digest`.
pub(crate) fn digest(report: &DigestReport) -> String {
    let mut text = format!(
        "{}  pool {}, ring format {}, {} points per weight",
        report.digest, report.pool, report.ring_format, report.points_per_weight
    );
    // What nobody has set goes without saying, as it did before it could be set.
    if report.policy != Policy::ConsistentHash {
        text.push_str(&format!(", policy {}", report.policy));
    } else if report.key != HashKey::ClientIp.to_string() {
        text.push_str(&format!(", key {}", report.key));
    }
    if let Some(factor) = &report.max_load {
        text.push_str(&format!(", max load {factor}"));
    }
    text
}

/// The answer to `start`.
pub(crate) fn started(started: &Started) -> String {
    let status = &started.status;
    let listen = listed(status.services.iter().flat_map(|service| &service.addresses));
    let servers = match (status.servers, &status.config_file) {
        (0, _) => "none yet; add one with `balancerctl add ADDR PORT`".to_owned(),
        (servers, None) => format!("{servers}, from the state file; `balancerctl list` shows them"),
        (servers, Some(_)) => format!("{servers}; `balancerctl pool list` shows their pools"),
    };
    let mut lines = vec![("servers", servers)];
    lines.extend(status.config_file.as_ref().map(|file| ("config", file.clone())));
    lines.extend([
        ("socket", started.socket.display().to_string()),
        ("state", status.state_file.clone()),
        ("log", status.log.clone()),
    ]);
    format!("balancer started: listening on {listen}, pid {}\n{}", status.pid, rows(&lines))
}

/// What `stop` says while it waits.
pub(crate) fn stopping(report: &StoppingReport, now: bool) -> String {
    let alive = count(report.sessions, "session");
    match (report.sessions, now) {
        (0, _) => "balancer is stopping; it has no sessions".to_owned(),
        (_, true) => format!("balancer is stopping; {alive} are closed"),
        (_, false) => format!("balancer is stopping; {alive} may go on for {}", time(report.drain_ms)),
    }
}

/// Whether all of so many services accept clients, and those that do not.
pub(crate) fn readiness(phase: Phase, services: usize, idle: &[&str]) -> String {
    match (phase, services) {
        (Phase::Stopping, _) => "not ready: the balancer is stopping".to_owned(),
        _ if !idle.is_empty() => format!("not ready: {} does not accept", idle.join(", ")),
        (Phase::Running, 0) => "not ready: there is no service".to_owned(),
        (Phase::Running, 1) => "ready: 1 service accepts clients".to_owned(),
        (Phase::Running, count) => format!("ready: {count} services accept clients"),
    }
}

/// When the file was read again for the last time, and what came of it.
fn last_reload(report: &StatusReport) -> Option<String> {
    let LastReload { at, by, changes } = report.last_reload.as_ref()?;
    let outcome = match (changes, &report.reload_failure) {
        (Some(0), _) => "taken, nothing has changed".to_owned(),
        (Some(1), _) => "taken, 1 change".to_owned(),
        (Some(count), _) => format!("taken, {count} changes"),
        (None, Some(failure)) => format!("failed: {failure}"),
        (None, None) => "failed".to_owned(),
    };
    Some(format!("{at} by {by}: {outcome}"))
}

#[cfg(test)]
mod tests {
    use wire::report::{DatagramReport, DropReason, EndReason, Hex};
    use wire::settings::{Protocol, ServiceSettings};

    use super::*;

    pub(super) fn service() -> ServiceReport {
        let listen = vec!["[::]:80".parse().expect("an address")];
        ServiceReport {
            name: "tcp".into(),
            settings: ServiceSettings::new(listen.clone(), "default"),
            addresses: listen,
            leaving: false,
            accepting: true,
            waiting: None,
            active: 1,
            total: 2,
            bytes_in: 3,
            bytes_out: 4,
            accept_failures: 5,
            ended: Ended::from([(EndReason::ClientClosed, 1)]),
            datagrams: DatagramReport::default(),
            receive_overflows: 0,
            allowed_networks: 0,
            denied_networks: 0,
            proxy_networks: 0,
        }
    }

    fn report() -> StatusReport {
        StatusReport {
            version: "0.1.0".into(),
            pid: 7,
            uptime_ms: 61_000,
            phase: Phase::Running,
            services: vec![service()],
            servers: 3,
            digest: Hex(7),
            session_limit: 100,
            state_file: "/tmp/b.state".into(),
            log: "/tmp/b.log".into(),
            unsaved: Some("the disk is full".into()),
            longest_turn_us: 1234,
            log_lines_dropped: 0,
            port_shortages: 0,
            config_file: None,
            reload_failure: None,
            last_reload: None,
            deviations: Vec::new(),
        }
    }

    #[test]
    fn a_status_names_reasons() {
        let text = super::status(&report());
        for part in ["pid 7", "1 min 1 s", "(does not have the pool as it is: the disk is full)", "1.2 ms", "[::]:80"] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        assert!(text.ends_with("sessions of tcp that ended: 1 client-closed"), "{text}");
        assert!(!text.contains("config file") && !text.contains("last reload"), "{text}");
    }

    #[test]
    fn a_status_tells_of_datagrams_where_there_are_some() {
        assert!(!super::status(&report()).contains("PROTOCOL"), "all is TCP");
        let mut dns = ServiceReport { name: "dns".into(), ..service() };
        dns.settings.protocol = Protocol::Udp;
        dns.datagrams = DatagramReport {
            datagrams_in: 10,
            datagrams_out: 9,
            dropped_in: [(DropReason::NoServer, 3), (DropReason::Denied, 1)].into(),
            dropped_out: [(DropReason::TooLong, 2)].into(),
        };
        dns.receive_overflows = 5;
        let text = super::status(&StatusReport { services: vec![dns, service()], ..report() });
        let expected = "
SERVICE  PROTOCOL  LISTEN   POOL     ACCEPTING  ACTIVE  TOTAL   IN  OUT  FAILED
dns      udp       [::]:80  default  yes             1      2  3 B  4 B       5
tcp      tcp       [::]:80  default  yes             1      2  3 B  4 B       5

sessions of dns that ended: 1 client-closed

datagrams of dns: 10 in, 9 out
dropped on the way in: 3 no-server, 1 denied
dropped on the way out: 2 too-long
dropped by the kernel before they were read: 5

sessions of tcp that ended: 1 client-closed";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn a_status_names_the_file_and_why_it_was_not_read() {
        let (file, failure) = (Some("/etc/b.toml".into()), Some("line 3 is wrong".into()));
        let last = |changes| Some(LastReload { at: "2026-12-01T11:45:51Z".into(), by: "watch".into(), changes });
        let failed = StatusReport { config_file: file, reload_failure: failure, last_reload: last(None), ..report() };
        let text = super::status(&failed);
        let expected = "\nconfig file        /etc/b.toml\n\
            last reload        2026-12-01T11:45:51Z by watch: failed: line 3 is wrong\n";
        assert!(text.contains(expected), "{text}");
        let text = super::status(&StatusReport { last_reload: last(Some(3)), ..report() });
        assert!(text.contains("\nlast reload        2026-12-01T11:45:51Z by watch: taken, 3 changes\n"), "{text}");
    }

    #[test]
    fn a_digest_says_what_it_depends_on() {
        let mut report = DigestReport {
            pool: "default".into(),
            policy: Policy::ConsistentHash,
            key: "client-ip".into(),
            max_load: None,
            digest: Hex(7),
            ring_format: 1,
            points_per_weight: 1024,
        };
        let plain = "0000000000000007  pool default, ring format 1, 1024 points per weight";
        assert_eq!(digest(&report), plain);
        report.key = "client-ip-port".into();
        report.max_load = Some("1.25".into());
        assert_eq!(digest(&report), format!("{plain}, key client-ip-port, max load 1.25"));
        report.policy = Policy::RoundRobin;
        report.max_load = None;
        assert_eq!(digest(&report), format!("{plain}, policy round-robin"));
    }
}
