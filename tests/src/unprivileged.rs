//! A balancer that may do no more than any user: for files that it may not read, and ports that it may not bind.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use wire::{Request, Response};

use crate::programs::{installed, programs};
use crate::{Process, Setup, wait};

/// The balancer. It is killed when this is dropped.
#[derive(Debug)]
pub struct Unprivileged {
    _process: Process,
    socket: PathBuf,
    log: PathBuf,
}

impl Unprivileged {
    /// Starts one with the configuration file of this setup, and waits until it answers. `None` where this is root and
    /// there is no program to leave that behind.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(setup: &Setup) -> Option<Self> {
        let daemon = &programs().balancerd;
        let mut command = if nix::unistd::geteuid().is_root() {
            let [setpriv] = installed(["setpriv"])?;
            let mut command = Command::new(setpriv);
            command.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(daemon);
            command
        } else {
            Command::new(daemon)
        };
        let socket = setup.directory().join("control.sock");
        command.arg("--config").arg(setup.config_path()).arg("--socket").arg(&socket);
        let log = setup.directory().join("unprivileged.stderr");
        let words = File::create(&log).expect("a file for its words");
        let process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(words));
        wait::until("it listens", || wire::Client::connect(&socket).is_ok());
        Some(Self { _process: process, socket, log })
    }

    /// What it has logged so far.
    ///
    /// # Panics
    /// When it is not text.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("text")
    }

    /// Asks it.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn call(&self, request: &Request) -> Response {
        let mut control = wire::Client::connect(&self.socket).expect("it listens");
        control.call(request).expect("it answers")
    }
}
