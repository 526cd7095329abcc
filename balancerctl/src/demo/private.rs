//! A balancer of the demonstration's own, in a temporary directory. It ends with its owner.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use wire::{Client, ClientError, Request};

use super::DemoError;
use crate::failure::Failure;
use crate::start::{Origin, Start, Started};

/// How long a balancer without sessions to wait for may take to end before it is killed.
const END_LIMIT: Duration = Duration::from_secs(5);

/// The longest directory that leaves room for the name of a socket in it: 107 bytes are the kernel's limit.
const DIRECTORY_LIMIT: usize = 80;

/// A balancer, and the directory that everything of it is in.
#[derive(Debug)]
pub(super) struct PrivateBalancer {
    started: Started,
    directory: TempDir,
}

impl PrivateBalancer {
    /// Starts one that listens on a free port of this machine alone.
    ///
    /// # Errors
    /// When there is no directory for it, or it does not start.
    pub(super) fn start() -> Result<Self, Failure> {
        let parent = Some(std::env::temp_dir()).filter(|path| path.as_os_str().len() <= DIRECTORY_LIMIT);
        let parent = parent.unwrap_or_else(|| PathBuf::from("/tmp"));
        let directory =
            tempfile::Builder::new().prefix("balancer-demo-").tempdir_in(parent).map_err(DemoError::Directory)?;
        let socket = Some(directory.path().join("demo.sock"));
        let origin = Origin::Listen(([127, 0, 0, 1], 0).into());
        let started = Start { origin, socket, state: None, options: &[] }.run()?;
        Ok(Self { started, directory })
    }

    /// How it started.
    pub(super) fn started(&self) -> &Started {
        &self.started
    }

    /// Where it keeps everything.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn end(&self) -> Result<(), ClientError> {
        let mut client = Client::connect(&self.started.socket)?;
        client.call(&Request::Stop { now: true, drain_ms: None })?;
        client.wait_for_end(Some(END_LIMIT))
    }
}

impl Drop for PrivateBalancer {
    fn drop(&mut self) {
        match self.end() {
            Ok(()) | Err(ClientError::NoDaemon(_)) => {}
            // It is there and does not end when asked.
            Err(_) => {
                if let Ok(pid) = i32::try_from(self.started.status.pid) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
    }
}
