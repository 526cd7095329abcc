//! What is counted of the sessions of a service, and of a server.

use wire::report::{DatagramReport, DropReason, EndReason, Ended};

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
    /// Made with the first datagram: most servers never have one.
    datagrams: Option<Box<Datagrams>>,
}

/// What is counted of datagrams; in before out.
#[derive(Debug, Default)]
struct Datagrams {
    passed: [u64; 2],
    dropped: [[u64; DropReason::ALL.len()]; 2],
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

    /// Datagrams went on, with so many bytes together.
    pub(super) fn passed(&mut self, direction: Direction, datagrams: usize, bytes: usize) {
        self.relayed(direction, bytes);
        self.datagrams.get_or_insert_default().passed[direction as usize] += datagrams as u64;
    }

    /// Datagrams did not go on.
    pub(super) fn dropped(&mut self, direction: Direction, datagrams: usize, reason: DropReason) {
        self.datagrams.get_or_insert_default().dropped[direction as usize][reason as usize] += datagrams as u64;
    }

    pub(super) fn datagrams(&self) -> DatagramReport {
        let Some(datagrams) = &self.datagrams else { return DatagramReport::default() };
        let [datagrams_in, datagrams_out] = datagrams.passed;
        let [dropped_in, dropped_out] = datagrams
            .dropped
            .map(|counts| DropReason::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect());
        DatagramReport { datagrams_in, datagrams_out, dropped_in, dropped_out }
    }

    pub(super) fn ended_by_reason(&self) -> Ended {
        EndReason::ALL.into_iter().zip(self.ended).filter(|(_, count)| *count > 0).collect()
    }
}
