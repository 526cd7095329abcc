//! What keeps two daemons from one place: the locked pid file beside the socket, and the lock beside the state file.
//! Both locks end with the process, however it ends.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use wire::Places;

use crate::planted;

/// The directories that are made are closed to others.
const DIRECTORY_MODE: u32 = 0o750;

/// The pid file and the locks are for the daemon and its group.
const FILE_MODE: u32 = 0o640;

/// The place is this process's own as long as this lives.
#[derive(Debug)]
pub(crate) struct Locks {
    pid: File,
    pid_path: PathBuf,
    _state: File,
}

/// Why the place could not be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Another daemon has it.
    #[error("a balancer runs already{}: it holds {}; stop it first, or give this one a --socket and --state of its own", with_pid(.pid), .path.display())]
    Taken {
        /// The locked file.
        path: PathBuf,
        /// What stands in it.
        pid: String,
    },
    /// The operating system refused.
    #[error("{} cannot be {operation}", .path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl Locks {
    /// Makes the directories that are missing, takes both locks and writes the pid.
    pub(crate) fn take(places: &Places) -> Result<Self, LockError> {
        for path in [&places.socket, &places.state] {
            make_directory_of(path)?;
        }
        let mut pid = lock(&places.pid)?;
        let state = lock(&state_lock(&places.state))?;
        let own = format!("{}\n", std::process::id());
        pid.set_len(0)
            .and_then(|()| pid.rewind())
            .and_then(|()| pid.write_all(own.as_bytes()))
            .map_err(|source| LockError::Io { operation: "written", path: places.pid.clone(), source })?;
        Ok(Self { pid, pid_path: places.pid.clone(), _state: state })
    }
}

impl Drop for Locks {
    /// The pid file goes at an end in order, and its lock only then. A file that is not this one stays: it is a
    /// successor's, who came when the directory had been removed.
    fn drop(&mut self) {
        if is_same(&self.pid, &self.pid_path) {
            let _ = std::fs::remove_file(&self.pid_path);
        }
        let _ = self.pid.unlock();
    }
}

/// Makes the directory of `path`, if it is missing, with those above it.
pub(crate) fn make_directory_of(path: &Path) -> Result<(), LockError> {
    let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) else { return Ok(()) };
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(|source| LockError::Io {
        operation: "made",
        path: directory.to_path_buf(),
        source,
    })
}

fn state_lock(state: &Path) -> PathBuf {
    let mut name = state.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn lock(path: &Path) -> Result<File, LockError> {
    let failed = |operation| {
        let path = path.to_path_buf();
        move |source| LockError::Io { operation, path, source }
    };
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
        options.custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK);
        let opened = options.open(path).map_err(|error| planted::told(path, error));
        let mut file = opened.and_then(|file| planted::check(path, &file).map(|()| file)).map_err(failed("opened"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                return Err(LockError::Taken { path: path.to_path_buf(), pid: pid.trim().to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(failed("locked")(source)),
        }
        // Between the opening and the locking its last owner may have removed it: then this lock is on no path.
        if is_same(&file, path) {
            return Ok(file);
        }
    }
}

fn is_same(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn with_pid(pid: &str) -> String {
    if pid.is_empty() { String::new() } else { format!(" with pid {pid}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(directory: &Path, socket: &str, state: &str) -> Places {
        let (socket, state) = (directory.join(socket), directory.join(state));
        Places::find(Some(&socket), Some(&state), &wire::Environment::default()).expect("places")
    }

    #[test]
    fn a_second_daemon_is_told_the_pid_of_the_first_and_a_third_follows_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let places = places(directory.path(), "new/a.sock", "state");
        let first = Locks::take(&places).expect("free");
        assert_eq!(std::fs::read_to_string(&places.pid).expect("written"), format!("{}\n", std::process::id()));
        let error = Locks::take(&places).expect_err("taken").to_string();
        assert!(error.contains(&format!("with pid {}", std::process::id())), "{error}");
        drop(first);
        assert!(!places.pid.exists());
        drop(Locks::take(&places).expect("free again"));
    }

    #[test]
    fn a_successor_in_a_directory_made_anew_keeps_its_pid_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let places = places(directory.path(), "run/a.sock", "run");
        let first = Locks::take(&places).expect("free");
        std::fs::remove_dir_all(directory.path().join("run")).expect("removed");
        let _second = Locks::take(&places).expect("free, as far as the file system tells");
        drop(first);
        assert!(places.pid.exists());
    }

    #[test]
    fn two_sockets_cannot_share_one_state_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let _first = Locks::take(&places(directory.path(), "x/a.sock", "state")).expect("free");
        let error = Locks::take(&places(directory.path(), "y/a.sock", "state")).expect_err("taken");
        assert!(error.to_string().contains("a.state.lock"), "{error}");
        let _other = Locks::take(&places(directory.path(), "y/b.sock", "state")).expect("another name");
    }
}
