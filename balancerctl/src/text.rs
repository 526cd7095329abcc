//! Reports as people read them: a table with a header line, or a few rows of a word and what it is. Programs get the
//! reports themselves.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use wire::control::Change;
use wire::report::{
    ChangeReport, DigestReport, Ended, ExplainReport, ListReport, MoveReport, Phase, ServerState, StatusReport,
    StoppingReport,
};

use crate::quantity::{count, share, size, time};
use crate::start::Started;

/// Servers that `explain` names before it only counts them.
const NEXT_SHOWN: usize = 4;

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

/// A table without borders, two blanks between its columns, no wrapping: the same in a terminal and in a file.
pub(crate) fn table<const N: usize>(columns: [Column; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(columns.map(|(heading, _)| heading));
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

/// Rows of a word and what it is.
fn rows(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(word, _)| word.len()).max().unwrap_or(0);
    let lines = rows.iter().map(|(word, text)| format!("{word:width$}  {text}").trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

/// The answer to `list`.
pub(crate) fn list(report: &ListReport) -> String {
    if report.servers.is_empty() {
        return format!("pool {} has no servers; add one with `balancerctl add ADDR PORT`", report.pool);
    }
    let columns = [
        ("SERVER", Align::Left),
        ("WEIGHT", Align::Right),
        ("STATE", Align::Left),
        ("SHARE", Align::Right),
        ("ACTIVE", Align::Right),
        ("TOTAL", Align::Right),
        ("IN", Align::Right),
        ("OUT", Align::Right),
        ("FAILED", Align::Right),
    ];
    let line = |server: &wire::report::ServerReport| {
        [
            server.server.to_string(),
            server.weight.to_string(),
            server.state.to_string(),
            share(server.share),
            server.active.to_string(),
            server.total.to_string(),
            size(server.bytes_in),
            size(server.bytes_out),
            server.connect_failures.saturating_add(server.connect_timeouts).to_string(),
        ]
    };
    table(columns, report.servers.iter().map(line))
}

/// The answer to `status`.
pub(crate) fn status(report: &StatusReport) -> String {
    let phase = match report.phase {
        Phase::Running => "running",
        Phase::Stopping => "stopping: it takes no new clients and ends when the last session has ended",
    };
    let unsaved = report.unsaved.as_ref().map(|reason| format!(" (does not have the pool as it is: {reason})"));
    let mut text = rows(&[
        ("balancerd", format!("version {}, pid {}", report.version, report.pid)),
        ("phase", phase.to_owned()),
        ("uptime", time(report.uptime_ms)),
        ("servers", report.servers.to_string()),
        ("digest", report.digest.to_string()),
        ("session limit", report.session_limit.to_string()),
        ("state file", format!("{}{}", report.state_file, unsaved.unwrap_or_default())),
        ("log", report.log.clone()),
        ("longest turn", format!("{:.1} ms", report.longest_turn_us as f64 / 1000.0)),
        ("log lines dropped", report.log_lines_dropped.to_string()),
    ]);
    let columns = [
        ("SERVICE", Align::Left),
        ("LISTEN", Align::Left),
        ("POOL", Align::Left),
        ("ACCEPTING", Align::Left),
        ("ACTIVE", Align::Right),
        ("TOTAL", Align::Right),
        ("IN", Align::Right),
        ("OUT", Align::Right),
        ("FAILED", Align::Right),
    ];
    let line = |service: &wire::report::ServiceReport| {
        [
            service.name.clone(),
            service.listen.to_string(),
            service.pool.clone(),
            if service.accepting { "yes" } else { "no" }.to_owned(),
            service.active.to_string(),
            service.total.to_string(),
            size(service.bytes_in),
            size(service.bytes_out),
            service.accept_failures.to_string(),
        ]
    };
    let _ = write!(text, "\n\n{}", table(columns, report.services.iter().map(line)));
    for service in report.services.iter().filter(|service| !service.ended.is_empty()) {
        let _ = write!(text, "\n\nsessions of {} that ended: {}", service.name, ended(&service.ended));
    }
    text
}

fn ended(ended: &Ended) -> String {
    let reasons: Vec<String> = ended.iter().map(|(reason, sessions)| format!("{sessions} {reason}")).collect();
    reasons.join(", ")
}

/// The answer to `add` and `remove`.
pub(crate) fn change(report: &ChangeReport) -> String {
    let server = report.change.server();
    let moved = moved(report);
    let mut text = match (&report.change, report.dry_run) {
        (Change::Add { weight, .. }, true) => format!("adding {server} with weight {weight}: {moved}"),
        (Change::Add { weight, .. }, false) => format!("added {server} with weight {weight}; {moved}"),
        (Change::Remove { .. }, true) => format!("removing {server}: {moved}"),
        (Change::Remove { .. }, false) => format!("removed {server}; {moved}"),
    };
    if report.dry_run && !report.moves.is_empty() {
        let name = |server: Option<_>| server.map_or_else(|| "no server".to_owned(), |server| format!("{server}"));
        let columns = [("FROM", Align::Left), ("TO", Align::Left), ("SHARE", Align::Right)];
        let moves = report.moves.iter().map(|one| [name(one.from), name(one.to), share(one.share)]);
        let _ = write!(text, "\n\n{}\n", table(columns, moves));
    }
    let _ = write!(text, "\n{}", sessions(report));
    text
}

/// What a change does to new clients.
fn moved(report: &ChangeReport) -> String {
    let moved = share(report.moved);
    match (report.moves.first(), report.dry_run) {
        // The ring is empty before or after: that is all clients at once.
        (Some(MoveReport { from: None, .. }), true) => "it would get every client, as the only server".to_owned(),
        (Some(MoveReport { from: None, .. }), false) => "it gets every client, as the only server".to_owned(),
        (Some(MoveReport { to: None, .. }), true) => "no server would be left to take clients".to_owned(),
        (Some(MoveReport { to: None, .. }), false) => "no server is left to take clients".to_owned(),
        (_, true) => format!("{moved} of the clients would move"),
        (_, false) => format!("{moved} of the clients moved"),
    }
}

/// What a change does to sessions that are alive.
fn sessions(report: &ChangeReport) -> String {
    let alive = report.sessions;
    match (&report.change, report.dry_run) {
        (Change::Add { .. }, true) => "no live session would be touched; nothing was changed".to_owned(),
        (Change::Add { .. }, false) => "live sessions stay where they are".to_owned(),
        (Change::Remove { .. }, true) if report.sessions == 0 => {
            "it has no live sessions; nothing was changed".to_owned()
        }
        (Change::Remove { now: false, .. }, true) => {
            format!("its sessions would go on until they end: {alive} alive; nothing was changed")
        }
        (Change::Remove { now: true, .. }, true) => {
            format!("its sessions would be closed: {alive} alive; nothing was changed")
        }
        (Change::Remove { .. }, false) if report.sessions == 0 => "it had no live sessions".to_owned(),
        (Change::Remove { now: false, .. }, false) => {
            format!("its sessions go on until they end: {alive} alive")
        }
        (Change::Remove { now: true, .. }, false) => format!("its sessions were closed: {alive}"),
    }
}

/// The answer to `explain`.
pub(crate) fn explain(report: &ExplainReport) -> String {
    let (first, point) = match (report.server, report.point) {
        (Some(server), Some(point)) => (
            format!("{} gets {server}", report.client),
            format!("{point}, the first at or after the hash, is of {server}"),
        ),
        _ => (format!("{} gets no server", report.client), "none: no server of the pool takes clients".to_owned()),
    };
    let mut next: Vec<String> = report.next.iter().take(NEXT_SHOWN).map(ToString::to_string).collect();
    if report.next.len() > NEXT_SHOWN {
        next.push(format!("{} more", report.next.len() - NEXT_SHOWN));
    }
    let next = match next.as_slice() {
        [] => "nobody".to_owned(),
        names => format!("{}, if it does not answer", names.join(", then ")),
    };
    let mut lines = vec![("hash", report.hash.to_string()), ("point", point), ("next", next)];
    for skipped in &report.skipped {
        let reason = match skipped.state {
            ServerState::Ready => "it owns no part of the ring",
            ServerState::Drain => "drain: its weight is 0",
            ServerState::Leaving => "leaving: it was removed",
        };
        lines.push(("skipped", format!("{}, {reason}", skipped.server)));
    }
    format!("{first}\n\n{}", rows(&lines))
}

/// The answer to `digest`.
pub(crate) fn digest(report: &DigestReport) -> String {
    format!(
        "{}  pool {}, ring format {}, {} points per weight",
        report.digest, report.pool, report.ring_format, report.points_per_weight
    )
}

/// The answer to `start`.
pub(crate) fn started(started: &Started) -> String {
    let status = &started.status;
    let listen: Vec<String> = status.services.iter().map(|service| service.listen.to_string()).collect();
    let servers = match status.servers {
        0 => "none yet; add one with `balancerctl add ADDR PORT`".to_owned(),
        servers => format!("{servers}, from the state file; `balancerctl list` shows them"),
    };
    format!(
        "balancer started: listening on {}, pid {}\n{}",
        listen.join(", "),
        status.pid,
        rows(&[
            ("servers", servers),
            ("socket", started.socket.display().to_string()),
            ("state", status.state_file.clone()),
            ("log", status.log.clone()),
        ])
    )
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

#[cfg(test)]
mod tests {
    use wire::report::{EndReason, Hex, ServerReport, ServiceReport, SkippedReport};

    use super::*;

    fn server(address: &str, weight: u32, state: ServerState, active: u64, bytes: u64) -> ServerReport {
        ServerReport {
            server: address.parse().expect("an address"),
            weight,
            state,
            share: if weight == 0 { 0.0 } else { 0.25 },
            active,
            total: active * 10,
            bytes_in: bytes,
            bytes_out: bytes * 1000,
            connect_failures: 1,
            connect_timeouts: 2,
            ended: Ended::new(),
        }
    }

    #[test]
    fn a_list_is_a_table_that_fits_a_terminal() {
        let servers = vec![
            server("10.0.0.1:80", 1, ServerState::Ready, 3, 2048),
            server("192.168.100.200:8080", 16, ServerState::Drain, 1234, 1 << 21),
        ];
        let text = list(&ListReport { pool: "default".into(), digest: Hex(7), servers });
        let expected = "\
SERVER                WEIGHT  STATE   SHARE  ACTIVE  TOTAL       IN      OUT  FAILED
10.0.0.1:80                1  ready  25.00%       3     30  2.0 KiB  2.0 MiB       3
192.168.100.200:8080      16  drain  25.00%    1234  12340  2.0 MiB  2.0 GiB       3";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_empty_pool_says_what_to_do() {
        let text = list(&ListReport { pool: "default".into(), digest: Hex(7), servers: Vec::new() });
        assert_eq!(text, "pool default has no servers; add one with `balancerctl add ADDR PORT`");
    }

    fn report(change: Change, dry_run: bool, moves: Vec<MoveReport>, sessions: u64) -> ChangeReport {
        let moved = moves.iter().map(|one| one.share).sum();
        ChangeReport { change, dry_run, moved, moves, sessions, digest: Hex(7), unsaved: None }
    }

    #[test]
    fn a_dry_run_shows_who_would_move() {
        let [a, b] = ["10.0.0.1:80", "10.0.0.2:80"].map(|address| address.parse().expect("an address"));
        let c = "10.0.0.3:80".parse().expect("an address");
        let moves = vec![
            MoveReport { from: Some(a), to: Some(b), share: 0.3 },
            MoveReport { from: Some(a), to: Some(c), share: 0.0333 },
        ];
        let remove = report(Change::Remove { server: a, now: false }, true, moves, 1);
        let expected = "\
removing 10.0.0.1:80: 33.33% of the clients would move

FROM         TO            SHARE
10.0.0.1:80  10.0.0.2:80  30.00%
10.0.0.1:80  10.0.0.3:80   3.33%

its sessions would go on until they end: 1 alive; nothing was changed";
        assert_eq!(change(&remove), expected);
    }

    #[test]
    fn the_first_and_the_last_server_are_said_to_be() {
        let server = "10.0.0.1:80".parse().expect("an address");
        let come = vec![MoveReport { from: None, to: Some(server), share: 1.0 }];
        let gone = vec![MoveReport { from: Some(server), to: None, share: 1.0 }];
        let add = change(&report(Change::Add { server, weight: 1 }, false, come, 0));
        assert!(add.contains("it gets every client, as the only server"), "{add}");
        let remove = change(&report(Change::Remove { server, now: true }, true, gone, 0));
        assert!(remove.contains("no server would be left to take clients"), "{remove}");
        assert!(remove.contains("10.0.0.1:80  no server  100.00%"), "{remove}");
    }

    #[test]
    fn a_change_says_what_it_did() {
        let server = "10.0.0.1:80".parse().expect("an address");
        let add = report(Change::Add { server, weight: 2 }, false, Vec::new(), 0);
        assert_eq!(
            change(&add),
            "added 10.0.0.1:80 with weight 2; 0.00% of the clients moved\nlive sessions stay where they are"
        );
        let last = |now, sessions| {
            let text = change(&report(Change::Remove { server, now }, false, Vec::new(), sessions));
            text.lines().last().map(str::to_owned).unwrap_or_default()
        };
        assert_eq!(last(false, 0), "it had no live sessions");
        assert_eq!(last(false, 2), "its sessions go on until they end: 2 alive");
        assert_eq!(last(true, 2), "its sessions were closed: 2");
    }

    #[test]
    fn an_explanation_names_everybody() {
        let address = |text: &str| text.parse().expect("an address");
        let mut report = ExplainReport {
            client: "192.0.2.7".parse().expect("an address"),
            hash: Hex(1),
            point: Some(Hex(2)),
            server: Some(address("10.0.0.1:80")),
            next: vec![address("10.0.0.2:80"), address("10.0.0.3:80")],
            skipped: vec![SkippedReport { server: address("10.0.0.4:80"), state: ServerState::Drain }],
        };
        let expected = "\
192.0.2.7 gets 10.0.0.1:80

hash     0000000000000001
point    0000000000000002, the first at or after the hash, is of 10.0.0.1:80
next     10.0.0.2:80, then 10.0.0.3:80, if it does not answer
skipped  10.0.0.4:80, drain: its weight is 0";
        assert_eq!(explain(&report), expected);
        report.server = None;
        report.point = None;
        report.next.clear();
        assert!(explain(&report).starts_with("192.0.2.7 gets no server\n"));
    }

    #[test]
    fn a_status_names_reasons() {
        let status = StatusReport {
            version: "0.1.0".into(),
            pid: 7,
            uptime_ms: 61_000,
            phase: Phase::Running,
            services: vec![ServiceReport {
                name: "tcp".into(),
                listen: "[::]:80".parse().expect("an address"),
                pool: "default".into(),
                accepting: true,
                active: 1,
                total: 2,
                bytes_in: 3,
                bytes_out: 4,
                accept_failures: 5,
                ended: Ended::from([(EndReason::ClientClosed, 1)]),
            }],
            servers: 3,
            digest: Hex(7),
            session_limit: 100,
            state_file: "/tmp/b.state".into(),
            log: "/tmp/b.log".into(),
            unsaved: Some("the disk is full".into()),
            longest_turn_us: 1234,
            log_lines_dropped: 0,
        };
        let text = super::status(&status);
        for part in ["pid 7", "1 min 1 s", "(does not have the pool as it is: the disk is full)", "1.2 ms", "[::]:80"] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        assert!(text.ends_with("sessions of tcp that ended: 1 client-closed"), "{text}");
    }
}
