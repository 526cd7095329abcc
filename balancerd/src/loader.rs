//! Prepares what a text says and makes large rings beside the loop, which has no time for them: a thread that gets one order
//! at a time and gives back what only has to be switched to. It waits for no disk: `reader` has read the text.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use ring::Ring;
use wire::control::Refusal;
use wire::settings::Settings;

use crate::config::file::File;
use crate::event::Waker;
use crate::model::{AccessByService, PassedOver, Prepared, Remade, Remake, ServerId, Starting, prepare};
use crate::reader::{Readout, caught, networks};

/// The thread, and the way to it.
#[derive(Debug)]
pub(crate) struct Loader {
    orders: Sender<Task>,
    results: Receiver<Loaded>,
}

/// What the thread is told.
#[derive(Debug)]
enum Task {
    /// To prepare what a text says.
    Load(Box<Order>),
    /// To make the ring of a change. The number is that of the order.
    Remake(u64, Box<Remake>),
    /// To give memory back.
    Discard(Vec<Arc<Ring<ServerId>>>),
}

/// What a text says, and what it meets.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) number: u64,
    pub(crate) readout: Box<Readout>,
    /// What was said until now.
    pub(crate) before: Arc<Settings>,
    /// What holds now.
    pub(crate) present: Settings,
    /// Who starts slowly now.
    pub(crate) starting: Starting,
    /// Who is passed over now.
    pub(crate) passed: PassedOver,
    /// What services have for their access now.
    pub(crate) access: AccessByService,
}

/// What came of an order.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The number of the order.
    pub(crate) number: u64,
    pub(crate) outcome: Outcome,
}

/// It is of the kind that was ordered.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// What is to be switched to, and whether the file is to be watched.
    File(Result<(Prepared, bool), Refusal>),
    /// The ring of a change.
    Ring(Result<Remade, Refusal>),
}

impl Loader {
    /// Starts the thread. It wakes the loop after each result, and ends with the process.
    pub(crate) fn start(waker: Waker) -> io::Result<Self> {
        let (orders, incoming) = mpsc::channel::<Task>();
        let (outgoing, results) = mpsc::channel();
        thread::Builder::new().name("rings".to_owned()).spawn(move || {
            for task in incoming {
                let loaded = match task {
                    Task::Load(order) => {
                        let number = order.number;
                        Loaded {
                            number,
                            outcome: Outcome::File(caught(|| carry_out(*order), |fault| Refusal::BadFile { fault })),
                        }
                    }
                    Task::Remake(number, remake) => Loaded {
                        number,
                        outcome: Outcome::Ring(caught(|| remake.make(), |fault| Refusal::NotMade { fault })),
                    },
                    Task::Discard(rings) => {
                        drop(rings);
                        continue;
                    }
                };
                if outgoing.send(loaded).is_err() {
                    return;
                }
                waker.wake();
            }
        })?;
        Ok(Self { orders, results })
    }

    /// Orders what a text says to be prepared. Its result comes later.
    pub(crate) fn order(&self, order: Order) {
        // The thread lives as long as this end of the channel.
        let _ = self.orders.send(Task::Load(Box::new(order)));
    }

    /// Orders the ring of a change to be made. It comes later.
    pub(crate) fn remake(&self, number: u64, remake: Box<Remake>) {
        let _ = self.orders.send(Task::Remake(number, remake));
    }

    /// Gives rings away whose memory nobody needs any more.
    pub(crate) fn discard(&self, rings: Vec<Arc<Ring<ServerId>>>) {
        let _ = self.orders.send(Task::Discard(rings));
    }

    /// The next result, if one is there.
    pub(crate) fn result(&self) -> Option<Loaded> {
        self.results.try_recv().ok()
    }
}

fn carry_out(order: Order) -> Result<(Prepared, bool), Refusal> {
    let Order { readout, before, present, starting, passed, access, .. } = order;
    let Readout { file: File { settings, watch }, lists } = *readout;
    // All that is named was read, but for what a command has named meanwhile.
    let list = |path: &str| lists.get(path).map_or_else(|| networks(path), |networks| Ok(networks.clone()));
    let prepared = prepare(&before, &present, settings, starting, &passed)?.with_lists(&access, list)?;
    Ok((prepared, watch))
}
