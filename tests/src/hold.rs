//! Holds calls of a balancer at the C library, as a disk, a directory service or a reader does that hangs: a library is
//! loaded before it, which has such a call wait for as long as the test wants, and notes which thread made it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::{Setup, programs};

/// The library's source. Its head says how it is steered.
const SOURCE: &str = include_str!("hold.c");

/// The calls that can be held, by the names that they have there.
pub const CALLS: [&str; 18] = [
    "open",
    "stat",
    "access",
    "rename",
    "unlink",
    "mkdir",
    "chmod",
    "readlink",
    "realpath",
    "opendir",
    "fsync",
    "flock",
    "inotify_add_watch",
    "names",
    "write",
    "close",
    "connect",
    "send",
];

/// The way to the library of one balancer.
#[derive(Debug)]
pub struct Hold(PathBuf);

/// A call that was held, or still is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// It was made by the first thread of the process, which runs the loop.
    pub by_loop: bool,
    /// The name of it.
    pub call: String,
    /// What it was about: mostly a path.
    pub what: String,
}

impl Hold {
    /// A balancer that is started so can be held. `None`, which is said, where there is no C compiler.
    ///
    /// # Panics
    /// When the library cannot be made.
    #[must_use]
    pub fn prepare(setup: Setup) -> Option<(Self, Setup)> {
        let [compiler] = programs::installed(["cc"])?;
        let directory = setup.directory().join("hold");
        fs::create_dir(&directory).expect("a directory");
        let (source, library) = (directory.join("hold.c"), directory.join("hold.so"));
        fs::write(&source, SOURCE).expect("written");
        let mut command = Command::new(compiler);
        command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl");
        assert!(command.status().expect("it runs").success(), "{command:?}");
        let setup = setup.environment("LD_PRELOAD", library).environment("HOLD", &directory);
        Some((Self(directory), setup))
    }

    /// Holds every call of this name from now on, and no other.
    ///
    /// # Panics
    /// When there is no such name, or it cannot be written down.
    pub fn begin(&self, call: &str) {
        assert!(CALLS.contains(&call), "{call} can be held");
        // Moved there: the library reads it all the time.
        let new = self.0.join("calls.new");
        fs::write(&new, format!("{call}\n")).expect("written");
        fs::rename(&new, self.0.join("calls")).expect("moved");
    }

    /// Lets all go on.
    ///
    /// # Panics
    /// When nothing was held.
    pub fn end(&self) {
        fs::remove_file(self.0.join("calls")).expect("there");
    }

    /// What was held so far.
    ///
    /// # Panics
    /// When a note of it makes no sense.
    #[must_use]
    pub fn held(&self) -> Vec<Held> {
        let text = fs::read_to_string(self.0.join("held")).unwrap_or_default();
        let held = |line: &str| {
            let (who, rest) = line.split_once(' ').expect("who");
            let (call, what) = rest.split_once(' ').expect("a call");
            Held { by_loop: who == "loop", call: call.to_owned(), what: what.to_owned() }
        };
        text.lines().map(held).collect()
    }
}
