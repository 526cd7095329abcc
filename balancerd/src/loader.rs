//! Prepares what a text says and makes large rings beside the loop, which has no time for them: a thread that gets one order
//! at a time and gives back what only has to be switched to. It waits for no disk: `reader` has read the text.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use ring::Ring;
use wire::control::{FileText, Refusal};
use wire::settings::{DEFAULT_POOL, DEFAULT_SERVICE, PoolSettings, ServiceSettings, Settings};

use crate::config::Config;
use crate::config::file::{self, File};
use crate::config::list;
use crate::event::Waker;
use crate::model::{AccessByService, Networks, PassedOver, Prepared, Remade, Remake, ServerId, Starting, prepare};
use crate::reader::{Readout, Signature};

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

/// A fault costs what it was in, not every later order.
fn caught<T>(work: impl FnOnce() -> Result<T, Refusal>, refusal: impl FnOnce(String) -> Refusal) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(refusal("a fault in the balancer, which its log has more of".to_owned())))
}

fn carry_out(order: Order) -> Result<(Prepared, bool), Refusal> {
    let Order { readout, before, present, starting, passed, access, .. } = order;
    let Readout { file: File { settings, watch }, lists } = *readout;
    // All that is named was read, but for what a command has named meanwhile.
    let list = |path: &str| lists.get(path).map_or_else(|| networks(path), |networks| Ok(networks.clone()));
    let prepared = prepare(&before, &present, settings, starting, &passed)?.with_lists(&access, list)?;
    Ok((prepared, watch))
}

/// What the file says, together with what the arguments say.
///
/// # Errors
/// When it cannot be read, or makes no sense.
pub(crate) fn read(path: &Path, own: &Settings) -> Result<File, Refusal> {
    with_own(file::read(path).map_err(|error| bad(&error))?, own, &path.display().to_string())
}

/// The same of a text that is here.
///
/// # Errors
/// When it makes no sense.
pub(crate) fn parse(given: &FileText, own: &Settings) -> Result<File, Refusal> {
    with_own(file::parse(&given.name, &given.text).map_err(|error| bad(&error))?, own, &given.name)
}

/// The networks of a list that a service names.
///
/// # Errors
/// When it cannot be read, or has something else.
pub(crate) fn networks(path: &str) -> Result<Networks, Refusal> {
    list::read(Path::new(path)).map(|networks| Networks::of(&networks)).map_err(|error| bad(&error))
}

fn bad(error: &file::FileError) -> Refusal {
    Refusal::BadFile { fault: error.to_string() }
}

fn with_own(mut file: File, own: &Settings, name: &str) -> Result<File, Refusal> {
    for (service, settings) in &own.services {
        if file.settings.services.insert(service.clone(), settings.clone()).is_some() {
            let fault = format!("{name}: service {service} is given by --listen already; leave one of them out");
            return Err(Refusal::BadFile { fault });
        }
    }
    for (pool, settings) in &own.pools {
        file.settings.pools.entry(pool.clone()).or_insert_with(|| settings.clone());
    }
    Ok(file)
}

/// What arguments and file say at the start, and what the arguments say beside the file at each reload.
#[derive(Debug)]
pub(crate) struct Said {
    /// Arguments and file.
    pub(crate) settings: Settings,
    /// Whether the file is to be watched.
    pub(crate) watch: bool,
    /// The file was there.
    pub(crate) has_file: bool,
    /// The file that is to be read, as it was before.
    pub(crate) read: Option<(PathBuf, Option<Signature>)>,
    /// What the arguments add to the file.
    pub(crate) own: Settings,
}

/// Reads what the balancer is to serve at its start.
///
/// # Errors
/// When the file cannot be read or makes no sense, or nothing says what to serve.
pub(crate) fn said_at_start(config: &Config) -> Result<Said, Refusal> {
    let arguments = said_by_arguments(config.listen, config.points_per_weight);
    let Some(path) = &config.file else {
        return Ok(Said { settings: arguments.clone(), watch: false, has_file: false, read: None, own: arguments });
    };
    let own = if config.file_may_be_missing { Settings::default() } else { arguments.clone() };
    let seen = Some((path.clone(), Signature::of(path)));
    match file::read(path) {
        Err(error) if config.file_may_be_missing && error.is_missing() => {
            if config.listen.is_none() {
                let fault = format!(
                    "{}: it is not there, and without --listen nothing else says what to serve",
                    path.display()
                );
                return Err(Refusal::BadFile { fault });
            }
            Ok(Said { settings: arguments, watch: false, has_file: false, read: seen, own })
        }
        read => {
            let File { settings, watch } =
                with_own(read.map_err(|error| bad(&error))?, &own, &path.display().to_string())?;
            Ok(Said { settings, watch, has_file: true, read: seen, own })
        }
    }
}

/// What the arguments say: a service on the pool `default`, if there is an address to listen at.
fn said_by_arguments(listen: Option<SocketAddr>, points_per_weight: NonZeroU32) -> Settings {
    let mut settings = Settings::default();
    if let Some(listen) = listen {
        let service = ServiceSettings::new(vec![listen], DEFAULT_POOL);
        settings.services.insert(DEFAULT_SERVICE.to_owned(), service);
        let pool = PoolSettings { points_per_weight, ..PoolSettings::default() };
        settings.pools.insert(DEFAULT_POOL.to_owned(), pool);
    }
    settings
}
