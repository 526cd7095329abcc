//! balancerctl: starts, stops and steers a balancer. This file only parses, runs and gives the exit code; `cli.rs` has
//! the command line, `command.rs` what each command does.

mod address;
mod cli;
mod command;
mod demo;
mod failure;
#[cfg_attr(not(test), expect(dead_code, reason = "no command uses it yet"))]
mod import;
mod output;
mod pages;
mod quantity;
mod start;
mod text;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let output = output::Output::new(cli.json);
    match command::run(&cli, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.reader_gone() => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.code())
        }
    }
}
