//! Waiting for a condition: the one place of the tests that reads the clock, and only to give up at last.

use std::os::fd::AsFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long anything may take before it counts as never. No test is about speed, so it is generous.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(3);

/// Looks until there is something, and gives it.
///
/// # Panics
/// When there is nothing for [`LIMIT`]; it says `what` was waited for.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub fn for_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {LIMIT:?} in vain for this: {what}");
        thread::park_timeout(PAUSE);
    }
}

/// Looks until it is true.
///
/// # Panics
/// As [`for_some`].
pub fn until(what: &str, mut look: impl FnMut() -> bool) {
    for_some(what, || look().then_some(()));
}

/// Until another process, which only sleeps, has ended: for what must *not* happen meanwhile. A slow machine makes it
/// longer, never shorter.
///
/// # Panics
/// When there is no `sleep`.
pub fn a_moment() {
    let status = Command::new("sleep").arg("1").status().expect("sleep runs");
    assert!(status.success());
}

/// Whether something is there to be read within a fifth of a second: for what may be lost, and is asked for again then.
#[must_use]
pub fn until_readable(socket: impl AsFd) -> bool {
    let mut descriptors = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut descriptors, PollTimeout::from(200_u8)).is_ok_and(|ready| ready > 0)
}
