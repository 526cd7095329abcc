//! balancerctl: starts, stops and steers a balancer. This file only parses, runs and gives the exit code; `cli.rs` has
//! the command line, `command.rs` what each command does.

mod address;
mod check;
mod cli;
mod command;
mod compare;
mod default_pool;
mod demo;
mod edit;
mod events;
mod failure;
mod import;
mod leave;
mod output;
mod pages;
mod quantity;
mod reach;
mod save;
mod start;
mod text;

use std::process::ExitCode;

use clap::Parser;
use command::Verdict;
use nix::sys::signal::{SigSet, Signal};

fn main() -> ExitCode {
    // A file that is as long as it may become is an error of the write, which is told, and not the end of this program in
    // the middle of it. A reader that goes is one, too: SIGPIPE is ignored by Rust's runtime.
    let mut at_writes = SigSet::empty();
    at_writes.add(Signal::SIGXFSZ);
    let _ = at_writes.thread_block();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error),
    };
    let output = output::Output::new(cli.json);
    match command::run(&cli, &output) {
        Ok(Verdict::Done) => ExitCode::SUCCESS,
        Ok(Verdict::Different | Verdict::NotReady) => ExitCode::FAILURE,
        Err(failure) if failure.reader_gone() => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.code())
        }
    }
}
