//! Finishes long answers beside the loop: a thread that completes the list of a large pool and turns it into bytes.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use wire::control::{Refusal, Response};
use wire::frame::frame;
use wire::report::ListReport;

use crate::event::Waker;
use crate::model::Sharing;
use crate::net::control::ControlId;

/// The thread, and the way to it. Each control connection has one answer in it at most.
#[derive(Debug)]
pub(crate) struct Teller {
    orders: Sender<(ControlId, ListReport, Sharing)>,
    results: Receiver<Told>,
}

/// Whose answer it is, and its bytes; nothing where it is longer than an answer may be.
pub(crate) type Told = (ControlId, Option<Vec<u8>>);

impl Teller {
    /// Starts the thread. It wakes the loop after each answer, and ends with the process.
    pub(crate) fn start(waker: Waker) -> io::Result<Self> {
        let (orders, incoming) = mpsc::channel();
        let (outgoing, results) = mpsc::channel();
        thread::Builder::new().name("answers".to_owned()).spawn(move || {
            for (id, report, sharing) in incoming {
                if outgoing.send((id, frame(&completed(report, sharing)).ok())).is_err() {
                    return;
                }
                waker.wake();
            }
        })?;
        Ok(Self { orders, results })
    }

    /// Orders a list to be completed. Its bytes come later.
    pub(crate) fn order(&self, id: ControlId, report: ListReport, sharing: Sharing) {
        // The thread lives as long as this end of the channel.
        let _ = self.orders.send((id, report, sharing));
    }

    /// The next answer, if one is there.
    pub(crate) fn result(&self) -> Option<Told> {
        self.results.try_recv().ok()
    }
}

/// A fault costs the answer that it was in.
fn completed(mut report: ListReport, sharing: Sharing) -> Response {
    let completed = catch_unwind(AssertUnwindSafe(|| {
        sharing.complete(&mut report);
        report
    }));
    let fault = || "a fault in the balancer, which its log has more of".to_owned();
    completed.map_or_else(|_| Response::Refused(Refusal::NotMade { fault: fault() }), Response::List)
}
