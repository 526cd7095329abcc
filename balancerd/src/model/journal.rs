//! What has happened to the health of servers, the last of it: for whoever asks later. It is the log's line in another
//! form, and made in the same moment. It knows neither the time, which it is told as text, nor who asks.

use std::collections::VecDeque;

use wire::event::HealthEvent;
use wire::report::HealthState;

use super::{HealthNews, milliseconds};

/// Events that are kept: some 300 kB with ordinary reasons. Whoever asks every half a second misses none unless more
/// servers than that change at once, and is told then how many.
const MOST_EVENTS: usize = 1024;

/// The events that are kept, and the number of the last.
#[derive(Debug, Default)]
pub(super) struct Journal {
    events: VecDeque<HealthEvent>,
    last: u64,
}

impl Journal {
    /// Adds what has happened at a `time`, as the log writes it. The oldest goes where there is no room.
    pub(super) fn record(&mut self, news: &HealthNews, time: String) {
        self.last += 1;
        if self.events.len() == MOST_EVENTS {
            self.events.pop_front();
        }
        let (up, of) = news.up;
        self.events.push_back(HealthEvent {
            number: self.last,
            time,
            pool: news.pool.clone(),
            server: news.server,
            from: news.before,
            to: news.state,
            reason: (news.state != HealthState::Up).then(|| news.reason.clone()),
            out_ms: news.back_off.map(milliseconds),
            up: up as u64,
            of: of as u64,
        });
    }

    /// The number of the last event; 0 when there was none.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The events after a number, and how many there were before them that are not kept any more.
    pub(super) fn since(&self, number: u64) -> (Vec<HealthEvent>, u64) {
        let before = self.last - self.events.len() as u64;
        let known = usize::try_from(number.saturating_sub(before)).unwrap_or(usize::MAX);
        (self.events.iter().skip(known).cloned().collect(), before.saturating_sub(number))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn news(state: HealthState) -> HealthNews {
        HealthNews {
            pool: "web".to_owned(),
            server: "10.0.0.1:80".parse().expect("an address"),
            before: HealthState::Up,
            state,
            reason: "connection refused".to_owned(),
            back_off: None,
            up: (2, 3),
        }
    }

    fn with(events: u64) -> Journal {
        let mut journal = Journal::default();
        for number in 1..=events {
            journal.record(&news(HealthState::Down), format!("at {number}"));
        }
        journal
    }

    /// The numbers of the events after one, and how many are not kept.
    fn numbers(journal: &Journal, since: u64) -> (Vec<u64>, u64) {
        let (events, dropped) = journal.since(since);
        assert!(events.iter().all(|event| event.time == format!("at {}", event.number)));
        (events.iter().map(|event| event.number).collect(), dropped)
    }

    #[test]
    fn only_later_ones_are_told() {
        let journal = with(3);
        assert_eq!(numbers(&journal, 0), (vec![1, 2, 3], 0));
        assert_eq!(numbers(&journal, 2), (vec![3], 0));
        assert_eq!(numbers(&journal, 3), (vec![], 0));
        assert_eq!(numbers(&journal, u64::MAX), (vec![], 0));
        assert_eq!((journal.last(), Journal::default().last()), (3, 0));
        assert_eq!(numbers(&Journal::default(), 0), (vec![], 0));
    }

    #[test]
    fn the_oldest_go_and_are_counted() {
        let most = MOST_EVENTS as u64;
        let full = with(most);
        assert_eq!(numbers(&full, 0), ((1..=most).collect(), 0));
        let more = with(most + 10);
        assert_eq!((more.events.len(), more.last()), (MOST_EVENTS, most + 10));
        let kept: Vec<u64> = (11..=most + 10).collect();
        assert_eq!(numbers(&more, 0), (kept.clone(), 10));
        assert_eq!(numbers(&more, 4), (kept.clone(), 6), "who knows of four misses six");
        assert_eq!(numbers(&more, 10), (kept, 0));
        assert_eq!(numbers(&more, most + 9), (vec![most + 10], 0));
    }

    #[test]
    fn an_event_says_what_the_log_says() {
        let mut journal = Journal::default();
        let back_off = Some(Duration::from_secs(1));
        journal.record(&HealthNews { back_off, ..news(HealthState::Ejected) }, String::new());
        journal.record(&HealthNews { before: HealthState::Ejected, ..news(HealthState::Up) }, String::new());
        let (events, _) = journal.since(0);
        let told: Vec<_> = events.iter().map(|one| (one.from, one.to, one.reason.as_deref(), one.out_ms)).collect();
        let expected = [
            (HealthState::Up, HealthState::Ejected, Some("connection refused"), Some(1000)),
            (HealthState::Ejected, HealthState::Up, None, None),
        ];
        assert_eq!(told, expected, "what was the reason before is none for being up");
        assert_eq!((events[0].up, events[0].of), (2, 3));
    }
}
