//! A way for another thread to end the loop's wait. mio's own waker: it stays edge-triggered and coexists with the
//! level-triggered registrations.

use std::io;
use std::sync::Arc;

use super::{Key, Poller};

/// Wakes the loop; it then finds an event for the key that the waker was made with.
/// Several threads share one: mio has no more for a poller.
#[derive(Debug, Clone)]
pub(crate) struct Waker(Arc<mio::Waker>);

impl Waker {
    /// A waker for the loop of `poller`.
    pub(crate) fn new(poller: &Poller, key: Key) -> io::Result<Self> {
        mio::Waker::new(poller.registry(), mio::Token(key.0 as usize)).map(|waker| Self(Arc::new(waker)))
    }

    /// Ends the wait under way, or the next one. A failure is not told: writing to an eventfd that is not full has none.
    pub(crate) fn wake(&self) {
        let _ = self.0.wake();
    }
}
