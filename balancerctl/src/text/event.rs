//! An event as a line, in the words and the style of balancerd's log.

use wire::event::HealthEvent;
use wire::logfmt;
use wire::report::HealthState;

use crate::quantity::count;

/// One event.
pub(crate) fn event(event: &HealthEvent) -> String {
    let HealthEvent { number, time, pool, server, from, to, reason, out_ms, up, of } = event;
    let what = match to {
        HealthState::Up => "server is up",
        HealthState::Down => "server is down",
        HealthState::Ejected => "server is ejected: its clients fail",
    };
    let reason = reason.as_ref().map_or_else(String::new, |reason| format!(" reason={}", logfmt(reason)));
    let out = out_ms.map_or_else(String::new, |out| format!(" out_ms={out}"));
    let pool = logfmt(pool);
    format!("{time} {what} number={number} pool={pool} server={server} from={from}{reason}{out} up={up} of={of}")
}

/// What stands in the place of events that are missing.
pub(crate) fn dropped_events(dropped: u64) -> String {
    format!("{} before these: dropped, the balancer does not keep so many", count(dropped, "event"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_that_of_the_log_with_a_number() {
        let ejected = HealthEvent {
            number: 7,
            time: "2026-11-21T20:53:08.123456Z".into(),
            pool: "web".into(),
            server: "10.0.0.1:80".parse().expect("an address"),
            from: HealthState::Up,
            to: HealthState::Ejected,
            reason: Some("5 failed connects in a row".into()),
            out_ms: Some(1000),
            up: 2,
            of: 3,
        };
        assert_eq!(
            event(&ejected),
            "2026-11-21T20:53:08.123456Z server is ejected: its clients fail number=7 pool=web server=10.0.0.1:80 \
             from=up reason=\"5 failed connects in a row\" out_ms=1000 up=2 of=3"
        );
        let (from, to) = (HealthState::Ejected, HealthState::Up);
        let up = HealthEvent { from, to, reason: None, out_ms: None, up: 3, ..ejected };
        assert_eq!(
            event(&up),
            "2026-11-21T20:53:08.123456Z server is up number=7 pool=web server=10.0.0.1:80 from=ejected up=3 of=3"
        );
    }

    #[test]
    fn a_line_stays_one_whatever_a_server_says() {
        let odd = HealthEvent {
            number: 1,
            time: String::new(),
            pool: "web".into(),
            server: "[::1]:80".parse().expect("an address"),
            from: HealthState::Up,
            to: HealthState::Down,
            reason: Some("\"a\nb\u{1b}[2J\"".into()),
            out_ms: None,
            up: 0,
            of: 1,
        };
        assert!(event(&odd).chars().all(|one| !one.is_control()), "{}", event(&odd));
    }
}
