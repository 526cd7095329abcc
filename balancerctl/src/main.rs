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
mod failure;
mod import;
mod leave;
mod output;
mod pages;
mod quantity;
mod save;
mod start;
mod text;

use std::process::ExitCode;

use clap::Parser;
use command::Verdict;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let output = output::Output::new(cli.json);
    match command::run(&cli, &output) {
        Ok(Verdict::Done) => ExitCode::SUCCESS,
        Ok(Verdict::Different) => ExitCode::FAILURE,
        Err(failure) if failure.reader_gone() => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.code())
        }
    }
}
