//! The log's file, for the thread that writes it: it follows its name, so that it can be rotated, and is opened without
//! waiting for anybody.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tracing::warn;

use crate::planted;

/// A log file is for the daemon and its group.
const MODE: u32 = 0o640;

/// A file that follows its name.
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    /// It is to be opened again, wherever its name leads.
    again: Arc<AtomicBool>,
    /// Why the name could not be followed the last time: the same is said once.
    fault: Option<String>,
}

impl LogFile {
    /// Opens it, and makes it where it is not there. `again` has it opened anew before the next line.
    pub(super) fn open(path: &Path, again: Arc<AtomicBool>) -> io::Result<Self> {
        Ok(Self { path: path.to_path_buf(), file: open(path)?, again, fault: None })
    }

    fn is_current(&self) -> bool {
        match (self.file.metadata(), std::fs::metadata(&self.path)) {
            (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
            _ => false,
        }
    }

    /// Goes to the file that has the name now. One that cannot be opened leaves the old one.
    fn follow(&mut self) {
        self.fault = match open(&self.path) {
            Ok(fresh) => {
                self.file = fresh;
                None
            }
            Err(error) => {
                let fault = error.to_string();
                if self.fault.as_ref() != Some(&fault) {
                    // It goes to the old file, by this thread.
                    warn!(file = %self.path.display(), error = fault, "the log cannot be opened again: its lines go to the old file");
                }
                Some(fault)
            }
        };
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.again.swap(false, Ordering::Relaxed) || !self.is_current() {
            self.follow();
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Opens the file to write behind its end. A pipe that nobody reads, or a terminal without a carrier, lets others wait until
/// somebody comes. A pipe is opened for both here: so it keeps lines for a reader that comes later, or again, as many as it has
/// room for, and nobody waits.
fn open(path: &Path) -> io::Result<File> {
    let flags = planted::flags(path)? | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(MODE).custom_flags(flags.bits());
    let file = match options.open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => options.read(true).open(path),
        Ok(file) if file.metadata()?.file_type().is_fifo() => options.read(true).open(path),
        opened => opened,
    };
    let file = file.map_err(|error| planted::told(path, error))?;
    planted::check(path, &file)?;
    if !file.metadata()?.file_type().is_file() {
        // The thread may wait: lines that find no room meanwhile are counted.
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?) - OFlag::O_NONBLOCK;
        fcntl(&file, FcntlArg::F_SETFL(flags))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_renamed_log_file_is_followed_by_a_new_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, old) = (directory.path().join("log"), directory.path().join("log.1"));
        let mut file = LogFile::open(&path, Arc::default()).expect("opened");
        file.write_all(b"one\n").expect("written");
        std::fs::rename(&path, &old).expect("renamed");
        file.write_all(b"two\n").expect("written");
        assert_eq!(std::fs::read(&old).expect("there"), b"one\n");
        assert_eq!(std::fs::read(&path).expect("there"), b"two\n");
    }

    #[test]
    fn a_pipe_keeps_its_lines_for_a_reader_also_when_it_is_opened_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let again = Arc::new(AtomicBool::new(false));
        let mut file = LogFile::open(&path, Arc::clone(&again)).expect("opened");
        for line in [b"one\n", b"two\n"] {
            file.write_all(line).expect("written");
            again.store(true, Ordering::Relaxed);
        }
        let mut lines = [0; 16];
        let count = File::open(&path).expect("opened").read(&mut lines).expect("read");
        assert_eq!(&lines[..count], b"one\ntwo\n");
        file.write_all(b"a reader that has gone is no fault\n").expect("written");
    }

    #[test]
    fn a_log_that_cannot_be_opened_again_goes_on_where_it_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, old) = (directory.path().join("log"), directory.path().join("log.1"));
        let mut file = LogFile::open(&path, Arc::default()).expect("opened");
        std::fs::rename(&path, &old).expect("renamed");
        std::fs::create_dir(&path).expect("in the way");
        file.write_all(b"one\n").expect("written");
        assert!(file.fault.is_some());
        std::fs::remove_dir(&path).expect("removed");
        file.write_all(b"two\n").expect("written");
        assert_eq!((std::fs::read(&old).expect("there"), file.fault), (b"one\n".to_vec(), None));
        assert_eq!(std::fs::read(&path).expect("there"), b"two\n");
    }
}
