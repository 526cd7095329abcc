//! Finishes long answers beside the loop: a thread that completes the list of a large pool, turns an answer into bytes, and
//! gives its memory back.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use wire::control::{Refusal, Response};
use wire::frame::frame;
use wire::report::{ListReport, ReloadReport};

use crate::event::Waker;
use crate::model::Sharing;
use crate::net::control::ControlId;

/// The thread, and the way to it. Each control connection has one answer in it at most.
#[derive(Debug)]
pub(crate) struct Teller {
    orders: Sender<(Option<ControlId>, Long)>,
    results: Receiver<Told>,
}

/// An answer that takes longer than the loop has time for.
#[derive(Debug)]
pub(crate) enum Long {
    /// A list that lacks what is computed of a large ring.
    List(Box<(ListReport, Sharing)>),
    /// What a reload has changed: of a large file it is megabytes.
    Reload(ReloadReport),
}

/// Whose answer it is, and its bytes; nothing where it is longer than an answer may be.
pub(crate) type Told = (ControlId, Option<Vec<u8>>);

impl Teller {
    /// Starts the thread. It wakes the loop after each answer, and ends with the process.
    pub(crate) fn start(waker: Waker) -> io::Result<Self> {
        let (orders, incoming) = mpsc::channel();
        let (outgoing, results) = mpsc::channel();
        thread::Builder::new().name("answers".to_owned()).spawn(move || {
            for (id, long) in incoming {
                // Who has no connection asked for nothing.
                let Some(id) = id else { continue };
                if outgoing.send((id, frame(&completed(long)).ok())).is_err() {
                    return;
                }
                waker.wake();
            }
        })?;
        Ok(Self { orders, results })
    }

    /// Orders an answer to be finished. Its bytes come later.
    pub(crate) fn order(&self, id: ControlId, long: Long) {
        // The thread lives as long as this end of the channel.
        let _ = self.orders.send((Some(id), long));
    }

    /// Gives the memory of what nobody asked for back.
    pub(crate) fn discard(&self, long: Long) {
        let _ = self.orders.send((None, long));
    }

    /// The next answer, if one is there.
    pub(crate) fn result(&self) -> Option<Told> {
        self.results.try_recv().ok()
    }
}

/// A fault costs the answer that it was in.
fn completed(long: Long) -> Response {
    let completed = catch_unwind(AssertUnwindSafe(|| match long {
        Long::List(list) => {
            let (mut report, sharing) = *list;
            sharing.complete(&mut report);
            Response::List(report)
        }
        Long::Reload(report) => Response::Reloaded(report),
    }));
    let fault = || "a fault in the balancer, which its log has more of".to_owned();
    completed.unwrap_or_else(|_| Response::Refused(Refusal::NotMade { fault: fault() }))
}
