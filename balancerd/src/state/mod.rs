//! The state file: what commands have changed, so that a restart has it. Written whole and atomically; [`kept`] has what
//! is in it.

mod kept;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::fcntl::OFlag;
use wire::Settings;

use crate::event::Waker;
use crate::planted;
pub(crate) use kept::Kept;

/// A file longer than this is none of ours: a server takes some 50 bytes.
const LENGTH_LIMIT: u64 = 64 * 1024 * 1024;

/// For the daemon and its group alone.
const MODE: u32 = 0o640;

/// Why the state file is of no use. It is left as it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// It could not be read.
    #[error("the state file {} cannot be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// What it says makes no sense.
    #[error("the state file {} is broken, so the balancer does not start: {fault}; mend it, or move it away to start with an empty pool", .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong, and in which line.
        fault: String,
    },
}

/// Reads the file. One that is not there keeps nothing.
pub(crate) fn load(path: &Path) -> Result<Kept, StateError> {
    let read = |source| StateError::Read { path: path.to_path_buf(), source };
    let broken = |fault| StateError::Broken { path: path.to_path_buf(), fault };
    let mut file = match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
        opened => opened.map_err(read)?,
    };
    let length = match file.metadata().map_err(read)? {
        found if !found.is_file() => return Err(broken("it is no regular file".to_owned())),
        found => found.len(),
    };
    if length > LENGTH_LIMIT {
        return Err(broken(format!("it has {length} bytes, which no state file has")));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(read)?;
    let text = String::from_utf8(bytes)
        .map_err(|error| broken(format!("byte {} is no UTF-8", error.utf8_error().valid_up_to())))?;
    Kept::parse(&text).map_err(broken)
}

/// Opens the file to read it, and waits for nobody where it is a pipe.
fn open(path: &Path) -> io::Result<File> {
    let flags = planted::flags(path)? | OFlag::O_NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    let file = opened.map_err(|error| planted::told(path, error))?;
    planted::check(path, &file)?;
    Ok(file)
}

/// Where the text lies that a start found and was about to replace.
pub(crate) fn old_place(path: &Path) -> PathBuf {
    beside(path, ".old")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Keeps the text of the file beside it, in place of the one that was kept before, if there is such a file.
pub(crate) fn keep_old(path: &Path) -> io::Result<()> {
    let mut text = Vec::new();
    match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?.read_to_end(&mut text)?,
    };
    write(&old_place(path), &text)
}

/// Writes the file: a crash at any moment leaves the old or the new one.
pub(crate) fn store(path: &Path, kept: &Kept) -> io::Result<()> {
    write(path, kept.text().map_err(io::Error::other)?.as_bytes())
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let new = beside(path, ".new");
    // Whatever a crash left there, or somebody laid there, is not written through: the file is always a fresh one.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // The name itself is safe only when its directory is.
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Writes the state file beside the loop, which waits for no disk. The only thread of the daemon that touches it.
#[derive(Debug)]
pub(crate) struct Saver {
    desk: Arc<Desk>,
    results: Receiver<Saved>,
    ordered: u64,
    settled: u64,
}

/// Where the order lies that is to be carried out next. A later one takes its place: written is always the whole pool.
#[derive(Debug, Default)]
struct Desk {
    order: Mutex<Option<Order>>,
    laid: Condvar,
}

#[derive(Debug)]
struct Order {
    number: u64,
    said: Arc<Settings>,
    present: Arc<Settings>,
}

/// The file was written, or not; every order up to this number is settled by it.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) number: u64,
    pub(crate) result: Result<(), String>,
}

impl Saver {
    /// Starts the thread. It wakes the loop after each result, and ends with the process.
    pub(crate) fn start(path: PathBuf, waker: Waker) -> io::Result<Self> {
        let desk = Arc::new(Desk::default());
        let (outgoing, results) = mpsc::channel();
        let its_desk = Arc::clone(&desk);
        thread::Builder::new().name("state".to_owned()).spawn(move || run(&path, &its_desk, &outgoing, &waker))?;
        Ok(Self { desk, results, ordered: 0, settled: 0 })
    }

    /// Orders the file to be written. The number is that of the result to wait for, or of a later one.
    pub(crate) fn save(&mut self, said: Arc<Settings>, present: Arc<Settings>) -> u64 {
        self.ordered += 1;
        *self.desk.order() = Some(Order { number: self.ordered, said, present });
        self.desk.laid.notify_one();
        self.ordered
    }

    /// The next result, if one is there.
    pub(crate) fn result(&mut self) -> Option<Saved> {
        let saved = self.results.try_recv().ok()?;
        self.settled = saved.number;
        Some(saved)
    }

    /// Whether an order is not settled yet.
    pub(crate) fn is_busy(&self) -> bool {
        self.settled < self.ordered
    }
}

impl Desk {
    /// A thread that panicked while it held the lock left an order that is whole, or none.
    fn order(&self) -> MutexGuard<'_, Option<Order>> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Order {
        let mut order = self.order();
        loop {
            match order.take() {
                Some(order) => return order,
                None => order = self.laid.wait(order).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

fn run(path: &Path, desk: &Desk, results: &Sender<Saved>, waker: &Waker) {
    loop {
        let order = desk.take();
        let kept = Kept::between(&order.said, &order.present);
        let result = store(path, &kept).map_err(|error| format!("{} cannot be written: {error}", path.display()));
        if results.send(Saved { number: order.number, result }).is_err() {
            return;
        }
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use wire::settings::{DEFAULT_POOL, PoolSettings, ServerSettings};

    use super::*;

    fn settings(servers: &[(&str, u32)]) -> Settings {
        let server = |&(address, weight): &(&str, u32)| {
            (address.parse().expect("an address"), ServerSettings { weight, ..ServerSettings::default() })
        };
        let servers = servers.iter().map(server).collect();
        let pool = PoolSettings { servers, ..PoolSettings::default() };
        Settings { pools: [(DEFAULT_POOL.to_owned(), pool)].into(), ..Settings::default() }
    }

    fn kept(servers: &[(&str, u32)]) -> Kept {
        Kept::between(&settings(&[]), &settings(servers))
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s.state");
        assert_eq!(load(&path).expect("none"), Kept::default());
        for all in [kept(&[]), kept(&[("10.0.0.1:80", 1), ("[2001:db8::1]:443", 256)])] {
            store(&path, &all).expect("stored");
            assert_eq!(load(&path).expect("loaded"), all);
        }
        assert!(!directory.path().join("s.state.new").exists());
    }

    #[test]
    fn a_broken_file_is_an_error_that_names_it_and_the_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s.state");
        for (bytes, said) in [
            (b"".as_slice(), "missing field `version`"),
            (b"version = 4\n", "version 4"),
            (b"version = 3\n", "cut off"),
            (b"version = 1\n[[server]]\naddress = \"10.0.0.1\"\nweight = 1\n", "line 3"),
            (b"version = 1\n[[server]]\naddress = \"10.0.0.1:80\"\nweight = -1\n", "line 4"),
            (b"version = 1\nservers = []\n", "servers"),
            (b"version = 1\n[[ser", "line 2"),
            (b"version = 1 # \xff", "byte 14"),
        ] {
            fs::write(&path, bytes).expect("written");
            let error = load(&path).expect_err("broken").to_string();
            assert!(error.contains(said) && error.contains("s.state"), "{error}");
            assert_eq!(fs::read(&path).expect("still there"), bytes);
        }
        assert!(matches!(load(directory.path()), Err(StateError::Broken { .. })), "a directory");
    }

    /// Waits for the result that settles everything.
    fn finish(saver: &mut Saver) -> Saved {
        loop {
            let saved = saver.results.recv().expect("the thread lives");
            saver.settled = saved.number;
            if !saver.is_busy() {
                return saved;
            }
        }
    }

    #[test]
    fn the_last_of_many_orders_is_what_stays_and_a_failure_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s.state");
        let pollers = [(); 2].map(|()| crate::event::Poller::new().expect("epoll"));
        let waker = |at: usize| Waker::new(&pollers[at], crate::event::Key(0)).expect("a waker");
        let mut saver = Saver::start(path.clone(), waker(0)).expect("a thread");
        for weight in 1..=50 {
            saver.save(Arc::new(settings(&[])), Arc::new(settings(&[("10.0.0.1:80", weight)])));
        }
        let last = finish(&mut saver);
        assert_eq!((last.number, last.result), (50, Ok(())));
        assert_eq!(load(&path).expect("loaded"), kept(&[("10.0.0.1:80", 50)]));

        let mut saver = Saver::start(directory.path().join("none/s.state"), waker(1)).expect("a thread");
        saver.save(Arc::default(), Arc::default());
        let error = finish(&mut saver).result.expect_err("no directory");
        assert!(error.contains("none/s.state"), "{error}");
    }
}
