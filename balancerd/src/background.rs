//! Going to the background: the only file that knows daemonize.
//!
//! daemonize is unmaintained (RUSTSEC-2025-0069) and the owner's choice; `deny.toml` gives the reason. Of it only
//! `execute` is used, with the defaults: two forks, a session of its own, `/` as working directory, umask 027 and the
//! standard streams on `/dev/null`. What it lacks, the parent that waits until the daemon serves, is here: the daemon
//! holds one end of a pipe and says how its start went.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, anyhow, bail};
use daemonize::{Daemonize, Outcome};
use nix::fcntl::OFlag;

/// What the daemon says when it serves; anything else is an error for its parent to print.
const READY: &str = "ready";

/// Where to tell how the start went.
#[derive(Debug)]
pub(crate) struct Starter(File);

/// Which of the two processes this is.
#[derive(Debug)]
pub(crate) enum Half {
    /// The one that was started: the daemon serves, and this one may end.
    Parent,
    /// The daemon.
    Daemon(Starter),
}

/// Splits the process. Call it before there is any thread, epoll instance or log.
///
/// # Errors
/// In the parent: what the daemon said, if it did not come to serve.
pub(crate) fn enter() -> Result<Half> {
    let (reading, writing): (OwnedFd, OwnedFd) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("a pipe")?;
    match Daemonize::new().execute() {
        Outcome::Child(child) => {
            let mut starter = Starter(writing.into());
            match child {
                Ok(_) => Ok(Half::Daemon(starter)),
                Err(error) => {
                    starter.say(&format!("going to the background failed: {error}"));
                    Err(error.into())
                }
            }
        }
        Outcome::Parent(parent) => {
            drop(writing);
            parent.context("going to the background failed")?;
            let mut said = String::new();
            File::from(reading).read_to_string(&mut said).context("waiting for the daemon")?;
            match said.as_str() {
                READY => Ok(Half::Parent),
                "" => bail!("the daemon ended before it served"),
                _ => Err(anyhow!(said)),
            }
        }
    }
}

impl Starter {
    /// The daemon serves.
    pub(crate) fn ready(mut self) {
        self.say(READY);
    }

    /// The daemon ends without having served.
    pub(crate) fn failed(mut self, error: &anyhow::Error) {
        self.say(&format!("{error:#}"));
    }

    fn say(&mut self, text: &str) {
        // The parent may have been killed; the daemon goes its way all the same.
        let _ = self.0.write_all(text.as_bytes());
    }
}
