//! balancerd with a configuration file, and the questions it is asked.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bench::process::Process;
use bench::{client, clock};
use wire::Client;
use wire::control::{Request, Response};
use wire::report::StatusReport;

use crate::change::Reload;
use crate::layout::Layout;

/// A running daemon.
pub(crate) struct Daemon {
    pub(crate) process: Process,
    client: Client,
    file: PathBuf,
    policy: String,
}

impl Daemon {
    /// Starts `program` with its files in `directory`, and waits until it answers.
    pub(crate) fn start(program: &Path, directory: &Path, layout: &Layout, policy: &str) -> Result<Self> {
        let (file, socket) = (directory.join("balancer.toml"), directory.join("control.sock"));
        fs::write(&file, layout.balancerd_file(policy)).context("write balancerd's file")?;
        let arguments = ["--config", &text(&file), "--socket", &text(&socket), "--state", &text(directory)];
        let mut process = Process::start(directory, "balancerd", program, arguments)?;
        client::await_answer(layout.listens[0], &mut process).context("start balancerd")?;
        let client = Client::connect(&socket).context("connect to balancerd")?;
        Ok(Self { process, client, file, policy: policy.to_owned() })
    }

    /// Asks for `request`, and how long the answer takes.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<(Response, Duration)> {
        let begin = clock::now();
        let response = self.client.call(request).with_context(|| format!("ask balancerd for {request}"))?;
        let took = clock::now() - begin;
        if let Response::Refused(refusal) = &response {
            bail!("balancerd refuses {request}: {refusal}");
        }
        Ok((response, took))
    }

    /// How it is.
    pub(crate) fn status(&mut self) -> Result<StatusReport> {
        match self.ask(&Request::Status)?.0 {
            Response::Status(status) => Ok(status),
            _ => bail!("balancerd does not answer the question for its status"),
        }
    }

    /// Writes the file for `reload`, so that only the reload is left to do.
    pub(crate) fn prepare(&self, layout: &Layout) -> Result<()> {
        fs::write(&self.file, layout.balancerd_file(&self.policy)).context("write balancerd's file")
    }

    /// Lets it read its file again, and how long the answer takes.
    pub(crate) fn reload(&mut self, reload: Reload) -> Result<Duration> {
        let (response, took) = self.ask(&Request::Reload { instead: None, dry_run: false })?;
        let Response::Reloaded(report) = response else { bail!("balancerd does not say what the reload did") };
        ensure!(
            report.changes.is_empty() == (reload == Reload::Unchanged),
            "{}: a reload with {} changes",
            reload.name(),
            report.changes.len()
        );
        Ok(took)
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
