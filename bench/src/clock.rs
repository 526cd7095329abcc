//! The benchmark's clock: the only place that reads the time or waits by it.
//!
//! The daemon takes the time as an argument and waits for conditions; a measurement needs the real clock, and a child
//! process that is starting offers nothing to wait on but another try.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// The time between two tries of something that another process has to get ready.
const RETRY: Duration = Duration::from_millis(10);

/// The present moment.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// The date, in UTC: `2026-11-21`.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "a report says when it was measured")]
pub fn today() -> String {
    let mut text = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    text.truncate("2026-11-21".len());
    text
}

/// Waits until `at`.
#[expect(clippy::disallowed_methods, reason = "a benchmark makes its changes at even times")]
pub fn wait_until(at: Instant) {
    thread::sleep(at.saturating_duration_since(now()));
}

/// Waits so long.
#[expect(clippy::disallowed_methods, reason = "a slow reader is slow by the clock")]
pub fn pause(duration: Duration) {
    thread::sleep(duration);
}

/// Calls `attempt` until it succeeds, for at most `limit`.
///
/// # Errors
/// The last failure.
#[expect(clippy::disallowed_methods, reason = "another program's start gives no event to wait for")]
pub fn retry<T, E>(limit: Duration, mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let deadline = now() + limit;
    loop {
        match attempt() {
            Err(_) if now() < deadline => thread::sleep(RETRY),
            result => return result,
        }
    }
}
