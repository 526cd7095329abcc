//! What differs: from the configuration file, between two files, between two balancers.

use std::net::SocketAddr;

use wire::difference::{Difference, visible};
use wire::report::{PoolMovesReport, ReloadReport};

use super::change::moves;
use super::{Align, rows, table};
use crate::compare::{Compared, PoolCompared, Sides};
use crate::quantity::share;
use crate::save::Saved;

/// What commands changed of what the file says; nothing where nothing differs.
pub(super) fn deviations(deviations: &[Difference]) -> Option<String> {
    let line = |one: &Difference| {
        let none = "nothing";
        let said = one.from.as_deref().map_or(none, visible);
        let what = match (&one.key, &one.from, &one.to) {
            (Some(key), _, Some(value)) => format!("{key} is {}, the file says {said}", visible(value)),
            (Some(key), _, None) => format!("{key} is not set, the file says {said}"),
            (None, None, _) => "was added, the file does not have it".to_owned(),
            (None, Some(_), _) => "was removed, the file has it".to_owned(),
        };
        (one.subject.to_string(), what)
    };
    let lines: Vec<(String, String)> = deviations.iter().map(line).collect();
    let heading = "not as in the configuration file; `balancerctl save` writes it there:";
    (!lines.is_empty()).then(|| format!("{heading}\n{}", rows(&lines)))
}

/// The answer to `reload` and `diff`.
pub(crate) fn reloaded(report: &ReloadReport) -> String {
    let (file, dry_run) = (&report.file, report.dry_run);
    let mut paragraphs = Vec::new();
    paragraphs.push(match (report.changes.is_empty(), dry_run) {
        (true, true) => format!("{file} would change nothing"),
        (true, false) => format!("{file} was read and changes nothing"),
        (false, true) => format!("{file} would change this:\n{}", lines(&report.changes)),
        (false, false) => format!("{file} was read and changed this:\n{}", lines(&report.changes)),
    });
    paragraphs.extend(report.pools.iter().flat_map(|pool| who_moves(pool, dry_run)));
    if !report.deviations.is_empty() {
        let stays = if dry_run { "would stay" } else { "stays" };
        paragraphs.push(format!("what commands changed {stays} as it is:\n{}", lines(&report.deviations)));
    }
    if dry_run {
        paragraphs.push("nothing was changed".to_owned());
    }
    paragraphs.join("\n\n")
}

fn lines(differences: &[Difference]) -> String {
    let lines: Vec<String> = differences.iter().map(|one| format!("  {one}")).collect();
    lines.join("\n")
}

fn who_moves(pool: &PoolMovesReport, dry_run: bool) -> Vec<String> {
    let moved = if dry_run { "would move" } else { "moved" };
    let mut paragraphs = vec![format!("pool {}: {} of the clients {moved}", pool.pool, share(pool.moved))];
    if !pool.moves.is_empty() {
        paragraphs.push(moves(&pool.moves));
    }
    paragraphs
}

/// The answer to `save`.
pub(crate) fn saved(saved: &Saved) -> String {
    let file = saved.file.display();
    if saved.changes.is_empty() {
        return format!("{file} says already what the balancer is set to");
    }
    let changes = lines(&saved.changes);
    if saved.dry_run {
        format!("{file} would get this:\n{changes}\n\nnothing was written")
    } else {
        format!("{file} got this:\n{changes}")
    }
}

/// The answer to `compare`.
pub(crate) fn compared(compared: &Compared) -> String {
    let first = if compared.equal {
        format!("{} and {} agree on every client", compared.this, compared.other)
    } else {
        format!("{} and {} differ", compared.this, compared.other)
    };
    if compared.pools.is_empty() {
        return format!("{first}; neither has a pool");
    }
    let columns = [
        ("POOL", Align::Left),
        ("POLICY", Align::Left),
        ("KEY", Align::Left),
        ("MAX LOAD", Align::Left),
        ("BACKUPS", Align::Left),
        ("DIGEST", Align::Left),
        ("CLIENTS ELSEWHERE", Align::Right),
    ];
    let line = |pool: &PoolCompared| {
        [
            pool.pool.clone(),
            sides(&pool.policy),
            sides(&pool.key),
            sides(&pool.max_load),
            backups(&pool.backups),
            if pool.digest.same() { "same" } else { "different" }.to_owned(),
            pool.elsewhere.map_or_else(|| "cannot be said".to_owned(), share),
        ]
    };
    format!("{first}\n\n{}", table(columns, compared.pools.iter().map(line)))
}

/// How many backups both have; that they are other ones is said.
fn backups(backups: &Sides<Vec<SocketAddr>>) -> String {
    let one = |side: &Option<Vec<SocketAddr>>| side.as_ref().map_or(0, Vec::len);
    let (this, other) = (one(&backups.this), one(&backups.other));
    match backups.same() {
        true if this == 0 => "none".to_owned(),
        true => this.to_string(),
        false if this == other => format!("{this}, other ones"),
        false => format!("{this} / {other}"),
    }
}

/// What both have, or what the one and the other have.
fn sides<T: PartialEq + std::fmt::Display>(sides: &Sides<T>) -> String {
    let one = |side: &Option<T>| side.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    if sides.same() { one(&sides.this) } else { format!("{} / {}", one(&sides.this), one(&sides.other)) }
}

#[cfg(test)]
mod tests {
    use wire::difference::Subject;
    use wire::report::MoveReport;

    use super::*;

    fn weight() -> Difference {
        let server = "10.0.0.1:80".parse().expect("an address");
        Difference {
            subject: Subject::Server { pool: "web".into(), server },
            key: Some("weight".into()),
            from: Some("1".into()),
            to: Some("2".into()),
        }
    }

    #[test]
    fn a_diff_tells_changes_moves_and_what_stays() {
        let [a, b] = ["10.0.0.1:80", "10.0.0.2:80"].map(|text| text.parse().expect("an address"));
        let mut report = ReloadReport {
            dry_run: true,
            file: "new.toml".into(),
            changes: vec![weight()],
            deviations: vec![Difference {
                subject: Subject::Pool { pool: "web".into() },
                key: Some("max_load".into()),
                from: None,
                to: Some("1.25".into()),
            }],
            pools: vec![PoolMovesReport {
                pool: "web".into(),
                moved: 0.25,
                moves: vec![MoveReport { from: Some(b), to: Some(a), share: 0.25 }],
            }],
            unsaved: None,
        };
        let expected = "\
new.toml would change this:
  server 10.0.0.1:80 of pool web: weight 1 -> 2

pool web: 25.00% of the clients would move

FROM         TO            SHARE
10.0.0.2:80  10.0.0.1:80  25.00%

what commands changed would stay as it is:
  pool web: max_load none -> 1.25

nothing was changed";
        assert_eq!(reloaded(&report), expected);
        report.changes.clear();
        report.pools.clear();
        report.deviations.clear();
        assert_eq!(reloaded(&report), "new.toml would change nothing\n\nnothing was changed");
        report.dry_run = false;
        assert_eq!(reloaded(&report), "new.toml was read and changes nothing");
    }

    #[test]
    fn backups_are_counted() {
        let [a, b] = ["10.0.0.1:80", "10.0.0.2:80"].map(|text| text.parse().expect("an address"));
        let told = |this: Option<Vec<SocketAddr>>, other| backups(&Sides { this, other });
        assert_eq!(told(Some(vec![]), Some(vec![])), "none");
        assert_eq!(told(Some(vec![a]), Some(vec![a])), "1");
        assert_eq!(told(Some(vec![a]), Some(vec![b])), "1, other ones");
        assert_eq!(told(Some(vec![a, b]), None), "2 / 0");
    }

    #[test]
    fn a_save_tells_what_it_wrote() {
        let mut report = Saved { file: "/etc/b.toml".into(), dry_run: true, changes: vec![weight()] };
        let line = "  server 10.0.0.1:80 of pool web: weight 1 -> 2";
        assert_eq!(saved(&report), format!("/etc/b.toml would get this:\n{line}\n\nnothing was written"));
        report.dry_run = false;
        assert_eq!(saved(&report), format!("/etc/b.toml got this:\n{line}"));
        report.changes.clear();
        assert_eq!(saved(&report), "/etc/b.toml says already what the balancer is set to");
    }
}
