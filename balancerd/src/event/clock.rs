//! The one place that reads the clock. Everything else takes the time as an argument.

use std::time::Instant;

/// The time now. The daemon asks once a turn.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
