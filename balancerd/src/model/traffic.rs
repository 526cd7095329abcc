//! What is counted of the sessions of a service, and of a server.

use wire::report::{EndReason, Ended};

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the client to the server.
    In,
    /// From the server to the client.
    Out,
}

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) active: u64,
    pub(super) total: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    ended: [u64; EndReason::ALL.len()],
}

impl Traffic {
    /// A session came.
    pub(super) fn began(&mut self) {
        self.active += 1;
    }

    /// A session went on elsewhere.
    pub(super) fn left(&mut self) {
        self.active = self.active.checked_sub(1).expect("a session that leaves has come");
    }

    /// A session ended.
    pub(super) fn ended(&mut self, reason: EndReason) {
        self.left();
        self.ended[reason as usize] += 1;
    }

    pub(super) fn relayed(&mut self, direction: Direction, bytes: usize) {
        match direction {
            Direction::In => self.bytes_in += bytes as u64,
            Direction::Out => self.bytes_out += bytes as u64,
        }
    }

    pub(super) fn ended_by_reason(&self) -> Ended {
        EndReason::ALL.into_iter().zip(self.ended).filter(|(_, count)| *count > 0).collect()
    }
}
