//! Events that may come a thousand times a second and are worth one log line: the first at once, the rest as a number.

use std::time::{Duration, Instant};

/// How long after a line the next one of its kind may follow.
const PAUSE: Duration = Duration::from_secs(10);

/// One kind of event.
#[derive(Debug, Default)]
pub(crate) struct Repeated {
    quiet_until: Option<Instant>,
    suppressed: u64,
}

impl Repeated {
    /// The event came. Whether to log it; if not, it is counted.
    pub(crate) fn on_event(&mut self, now: Instant) -> bool {
        if self.quiet_until.is_some() {
            self.suppressed += 1;
            return false;
        }
        self.quiet_until = Some(now + PAUSE);
        true
    }

    /// When [`Repeated::expire`] has something to say.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.quiet_until
    }

    /// After the pause: how many events were not logged, if any. Extra calls say nothing.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<u64> {
        if self.quiet_until? > now {
            return None;
        }
        let suppressed = std::mem::take(&mut self.suppressed);
        // While it goes on, the number comes once a pause; after a pause without an event the next is logged at once.
        self.quiet_until = (suppressed > 0).then_some(now + PAUSE);
        (suppressed > 0).then_some(suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::now;

    #[test]
    fn the_first_is_logged_and_the_rest_are_counted() {
        let start = now();
        let mut repeated = Repeated::default();
        assert!(repeated.on_event(start));
        for _ in 0..7 {
            assert!(!repeated.on_event(start + PAUSE / 2));
        }
        assert_eq!(repeated.expire(start + PAUSE / 2), None);
        assert_eq!(repeated.next_deadline(), Some(start + PAUSE));
        assert_eq!(repeated.expire(start + PAUSE), Some(7));
        assert_eq!(repeated.expire(start + PAUSE), None);
        assert!(!repeated.on_event(start + PAUSE));
        assert_eq!(repeated.expire(start + 2 * PAUSE), Some(1));
        assert_eq!(repeated.expire(start + 3 * PAUSE), None);
        assert_eq!(repeated.next_deadline(), None, "nothing to wait for when it is over");
        assert!(repeated.on_event(start + 3 * PAUSE), "a new one is logged at once");
    }
}
