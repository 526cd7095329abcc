//! Reads the configuration file and looks whether it has changed, beside the loop: a thread that may hang, as the file may lie
//! on a disk or a network that does, and that nothing else waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use wire::control::{FileText, Refusal};
use wire::settings::Settings;

use crate::config::file::File;
use crate::event::{Waker, Watch};
use crate::loader;
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
                tell(Done::Read(number, read(&text, &lists, own)))
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

/// A fault costs what it was in, not every later order.
fn read(text: &Text, lists: &BTreeSet<String>, own: &Settings) -> Result<Box<Readout>, Refusal> {
    let work = || {
        let file = match text {
            Text::File(path) => loader::read(path, own)?,
            Text::Given(given) => loader::parse(given, own)?,
        };
        let named = lists_of(&file.settings);
        let mut all = BTreeMap::new();
        for path in named.union(lists) {
            match loader::networks(path) {
                Ok(networks) => drop(all.insert(path.clone(), networks)),
                // Where nobody needs it any more, nobody misses it.
                Err(refusal) if named.contains(path) => return Err(refusal),
                Err(_) => {}
            }
        }
        Ok(Box::new(Readout { file, lists: all }))
    };
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Refusal::BadFile { fault: "a fault in the balancer, which its log has more of".to_owned() })
    })
}
