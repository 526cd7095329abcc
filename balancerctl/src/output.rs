//! Where a command's answer goes: text for people or one line of JSON for programs, never both.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;
use wire::printable;

use crate::failure::Failure;

/// Standard output and standard error, and who reads them.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// An output for programs if `json`, otherwise for people.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// A line, or several, for people.
    ///
    /// # Errors
    /// When standard output takes no more: [`Failure::Output`].
    pub(crate) fn text(&self, text: impl Display) -> Result<(), Failure> {
        if self.json {
            return Ok(());
        }
        print(printable(&text.to_string()))
    }

    /// For people, the beginning of a line, or what is written over it.
    ///
    /// # Errors
    /// As [`Output::text`].
    pub(crate) fn part(&self, text: impl Display) -> Result<(), Failure> {
        if self.json {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        write!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(Failure::Output)
    }

    /// A line that somebody else has made for whoever reads.
    ///
    /// # Errors
    /// As [`Output::text`].
    pub(crate) fn both(&self, text: impl Display) -> Result<(), Failure> {
        print(text)
    }

    /// Whether programs read it.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// The one line for programs.
    ///
    /// # Errors
    /// As [`Output::text`].
    pub(crate) fn value(&self, value: &impl Serialize) -> Result<(), Failure> {
        if !self.json {
            return Ok(());
        }
        print(serde_json::to_string(value).expect("reports have no maps with keys that are not text"))
    }

    /// A line on standard error that changes nothing about the answer. Nobody is told when it cannot be written.
    pub(crate) fn note(&self, text: impl Display) {
        let _ = writeln!(io::stderr(), "balancerctl: {}", printable(&text.to_string()));
    }

    /// Says why a command failed: one line on standard error, and for programs one on standard output.
    pub(crate) fn failure(&self, failure: &Failure) {
        if failure.begins_with_its_place() {
            let _ = writeln!(io::stderr(), "{}", printable(&failure.to_string()));
        } else {
            self.note(failure);
        }
        // The failure is what counts now, not whether somebody still reads.
        let _ = self.value(&failure.report());
    }
}

/// Says why a command line makes no sense, or what was asked for of it. The program ends with that.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    // clap's own colours stay where there is nothing else that is none of ours.
    if error.use_stderr() && std::env::args_os().any(|word| word.to_string_lossy().contains(char::is_control)) {
        let _ = write!(io::stderr(), "{}", printable(&text));
    } else {
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// `println!` would panic when the reader has gone, as `head` does.
fn print(text: impl Display) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(Failure::Output)
}
