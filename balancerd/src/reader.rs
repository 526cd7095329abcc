//! Reads the configuration file: at the start, and beside the loop by a thread, which looks whether it has changed, too. The
//! thread may hang, as the file may lie on a disk or a network that does, and nothing else waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use wire::control::{FileText, Refusal};
use wire::settings::{DEFAULT_POOL, DEFAULT_SERVICE, PoolSettings, ServiceSettings, Settings};

use crate::config::Config;
use crate::config::file::{self, File};
use crate::config::list;
use crate::event::{Waker, Watch};
use crate::model::Networks;

/// How often a watched file is looked at: a part of its path may change where the kernel has no news of it, as with what is
/// mounted over it or lies on another machine.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The thread, and the way to it.
#[derive(Debug)]
pub(crate) struct Reader {
    tasks: Sender<Task>,
    results: Receiver<Done>,
}

/// Where a text is.
#[derive(Debug)]
pub(crate) enum Text {
    /// In a file.
    File(PathBuf),
    /// Here.
    Given(FileText),
}

/// What a text says, with the lists that it names.
#[derive(Debug)]
pub(crate) struct Readout {
    pub(crate) file: File,
    /// The networks of each list that was read, by its path.
    pub(crate) lists: BTreeMap<String, Networks>,
}

#[derive(Debug)]
enum Task {
    /// To read a text, and the lists that it names and those that are named now. The number is that of the result.
    Read(u64, Text, BTreeSet<String>),
    /// To watch a file. What the task has is closed.
    Watch(PathBuf, Option<Watch>),
    /// To watch none.
    Forget(Option<Watch>),
    /// To close what a file was watched by.
    Close(Watch),
}

/// What the thread has to tell.
#[derive(Debug)]
pub(crate) enum Done {
    /// The text of this number was read, or not.
    Read(u64, Result<Box<Readout>, Refusal>),
    /// The watched file has news by this from now on.
    Watching(Watch),
    /// The watched file has changed.
    Changed,
}

impl Reader {
    /// Starts the thread. It wakes the loop after each result, and ends with the process. `own` is what the arguments say,
    /// and `read` is the file that was read before, as it was then.
    pub(crate) fn start(own: Settings, read: Option<(PathBuf, Option<Signature>)>, waker: Waker) -> io::Result<Self> {
        let (tasks, incoming) = mpsc::channel();
        let (outgoing, results) = mpsc::channel();
        thread::Builder::new().name("config".to_owned()).spawn(move || {
            let tell = |done| {
                let is_told = outgoing.send(done).is_ok();
                waker.wake();
                is_told
            };
            run(&own, read, &incoming, tell);
        })?;
        Ok(Self { tasks, results })
    }

    /// Orders a text to be read, and the lists that are named now with those that it names.
    pub(crate) fn read(&self, number: u64, text: Text, lists: BTreeSet<String>) {
        // The thread lives as long as this end of the channel.
        let _ = self.tasks.send(Task::Read(number, text, lists));
    }

    /// Orders a file to be watched from now on, in place of any other, and closes what it was watched by.
    pub(crate) fn watch(&self, file: PathBuf, before: Option<Watch>) {
        let _ = self.tasks.send(Task::Watch(file, before));
    }

    /// Orders that no file is watched any more.
    pub(crate) fn forget(&self, before: Option<Watch>) {
        let _ = self.tasks.send(Task::Forget(before));
    }

    /// Closes what a file was watched by.
    pub(crate) fn close(&self, watch: Option<Watch>) {
        if let Some(watch) = watch {
            let _ = self.tasks.send(Task::Close(watch));
        }
    }

    /// The next result, if one is there.
    pub(crate) fn result(&self) -> Option<Done> {
        self.results.try_recv().ok()
    }
}

/// The lists that services name.
pub(crate) fn lists_of(settings: &Settings) -> BTreeSet<String> {
    let services = settings.services.values();
    services.flat_map(|service| [&service.allow_file, &service.deny_file]).flatten().cloned().collect()
}

/// A file that is watched.
struct Watched {
    path: PathBuf,
    /// What it was like when it was read or looked at for the last time.
    seen: Option<Signature>,
    /// The kernel tells news of it.
    has_news: bool,
}

/// What tells one state of a file from another: device, inode, size, and the times of its last changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signature([i64; 7]);

impl Signature {
    /// `None`: there is no such file.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let it = fs::metadata(path).ok()?;
        let (device, inode, size) = (it.dev().cast_signed(), it.ino().cast_signed(), it.size().cast_signed());
        Some(Self([device, inode, size, it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec()]))
    }
}

fn run(
    own: &Settings,
    mut last_read: Option<(PathBuf, Option<Signature>)>,
    tasks: &Receiver<Task>,
    tell: impl Fn(Done) -> bool,
) {
    let mut watched: Option<Watched> = None;
    loop {
        let task = match &watched {
            Some(_) => tasks.recv_timeout(LOOK_EVERY),
            None => tasks.recv().map_err(RecvTimeoutError::from),
        };
        let goes_on = match task {
            Ok(Task::Read(number, text, lists)) => {
                if let Text::File(path) = &text {
                    // Before it is read: what changes while it is read is another state.
                    let seen = Signature::of(path);
                    if let Some(watched) = watched.as_mut().filter(|watched| watched.path == *path) {
                        watched.seen = seen;
                    }
                    last_read = Some((path.clone(), seen));
                }
                let read = caught(|| read(&text, &lists, own), |fault| Refusal::BadFile { fault });
                tell(Done::Read(number, read))
            }
            Ok(Task::Watch(path, before)) => {
                drop(before);
                let read = last_read.as_ref().filter(|(read, _)| *read == path);
                let seen = read.map_or_else(|| Signature::of(&path), |(_, seen)| *seen);
                watched.insert(Watched { path, seen, has_news: false }).look(&tell)
            }
            Ok(Task::Forget(before)) => {
                drop(before);
                watched = None;
                true
            }
            Ok(Task::Close(watch)) => {
                drop(watch);
                true
            }
            Err(RecvTimeoutError::Timeout) => watched.as_mut().is_none_or(|watched| watched.look(&tell)),
            Err(RecvTimeoutError::Disconnected) => false,
        };
        if !goes_on {
            return;
        }
    }
}

impl Watched {
    /// Asks the kernel for news where there are none, or where the path may lead elsewhere now, and says what has changed.
    /// Whether anybody listens.
    fn look(&mut self, tell: &impl Fn(Done) -> bool) -> bool {
        let seen = Signature::of(&self.path);
        let has_changed = std::mem::replace(&mut self.seen, seen) != seen;
        if (has_changed || !self.has_news)
            && let Ok(watch) = Watch::new(&self.path)
        {
            self.has_news = true;
            if !tell(Done::Watching(watch)) {
                return false;
            }
        }
        !has_changed || tell(Done::Changed)
    }
}

fn read(text: &Text, lists: &BTreeSet<String>, own: &Settings) -> Result<Box<Readout>, Refusal> {
    let file = match text {
        Text::File(path) => with_own(file::read(path).map_err(|error| bad(&error))?, own, &path.display().to_string())?,
        Text::Given(given) => {
            let file = file::parse(&given.name, &given.text).map_err(|error| bad(&error))?;
            with_own(file, own, &given.name)?
        }
    };
    let named = lists_of(&file.settings);
    let mut all = BTreeMap::new();
    for path in named.union(lists) {
        match networks(path) {
            Ok(networks) => drop(all.insert(path.clone(), networks)),
            // Where nobody needs it any more, nobody misses it.
            Err(refusal) if named.contains(path) => return Err(refusal),
            Err(_) => {}
        }
    }
    Ok(Box::new(Readout { file, lists: all }))
}

/// A fault costs what it was in, not every later order.
pub(crate) fn caught<T>(
    work: impl FnOnce() -> Result<T, Refusal>,
    refusal: impl FnOnce(String) -> Refusal,
) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(refusal("a fault in the balancer, which its log has more of".to_owned())))
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
