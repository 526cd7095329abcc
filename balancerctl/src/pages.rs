//! Completion scripts and man pages, made from the definitions in `cli.rs`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use serde::Serialize;

use crate::cli::{Cli, Shell};
use crate::failure::Failure;
use crate::output::Output;

/// The program and version that stand at the foot of each page.
const SOURCE: &str = concat!("balancerctl ", env!("CARGO_PKG_VERSION"));

#[derive(Debug, Serialize)]
struct Script {
    shell: &'static str,
    script: String,
}

#[derive(Debug, Serialize)]
struct Written {
    written: Vec<PathBuf>,
}

/// Prints the completion script for `shell`.
///
/// # Errors
/// When it cannot be printed.
pub(crate) fn completions(shell: Shell, output: &Output) -> Result<(), Failure> {
    let (generator, name) = match shell {
        Shell::Bash => (clap_complete::Shell::Bash, "bash"),
        Shell::Zsh => (clap_complete::Shell::Zsh, "zsh"),
        Shell::Fish => (clap_complete::Shell::Fish, "fish"),
    };
    // Into memory first: the generator panics when its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(generator, &mut Cli::command(), "balancerctl", &mut script);
    let script = String::from_utf8(script).expect("made from text");
    output.text(script.trim_end())?;
    output.value(&Script { shell: name, script })
}

/// Writes `balancerctl.1` and a page for each command into `directory`.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn man(directory: &Path, output: &Output) -> Result<(), Failure> {
    let failed = |path: &Path, source| Failure::Page { path: path.to_path_buf(), source };
    fs::create_dir_all(directory).map_err(|source| failed(directory, source))?;
    let mut written = Vec::new();
    for (name, page) in pages() {
        let path = directory.join(name);
        fs::write(&path, page).map_err(|source| failed(&path, source))?;
        output.text(path.display())?;
        written.push(path);
    }
    output.value(&Written { written })
}

/// Every page with its file name.
fn pages() -> Vec<(String, Vec<u8>)> {
    // Without `balancerctl help`: its page would say nothing.
    let mut main = Cli::command().disable_help_subcommand(true);
    main.build();
    let mut commands = Vec::new();
    collect(&main, "balancerctl".to_owned(), &mut commands);
    commands
        .into_iter()
        .map(|command| {
            let mut page = Vec::new();
            let man = Man::new(command.clone()).manual("Balancer").section("1").source(SOURCE);
            write_page(&man, &command, &mut page).expect("memory takes everything");
            (man.get_filename(), page)
        })
        .collect()
}

/// A command and those below it, each under its own name: `balancerctl-pool-add`.
fn collect(command: &clap::Command, name: String, all: &mut Vec<clap::Command>) {
    let below = command.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help");
    let below: Vec<_> = below.map(|one| (one, format!("{name}-{}", one.get_name()))).collect();
    all.push(command.clone().display_name(name));
    below.into_iter().for_each(|(command, name)| collect(command, name, all));
}

fn write_page(man: &Man, command: &clap::Command, page: &mut Vec<u8>) -> io::Result<()> {
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(page)?;
    }
    let mut rest = Roff::new();
    if let Some(examples) = command.get_after_help() {
        rest.control("SH", ["EXAMPLES"]).control("nf", []);
        let text = examples.to_string();
        let lines = text.lines().filter(|line| *line != "Examples:" && !line.starts_with("Exit codes:"));
        for line in lines.collect::<Vec<_>>().join("\n").trim_end().lines() {
            rest.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
        }
        rest.control("fi", []);
    }
    for (heading, paragraphs) in COMMON {
        rest.control("SH", [heading]);
        for (term, text) in paragraphs {
            rest.control("TP", []).text([roman(*term)]).text([roman(*text)]);
        }
    }
    rest.control("SH", ["SEE ALSO"]).text([roman("balancerctl(1), balancerd(8)")]);
    rest.to_writer(page)
}

/// A heading, and the terms below it with what they mean.
type Section = (&'static str, &'static [(&'static str, &'static str)]);

/// What every page ends with.
const COMMON: [Section; 3] = [
    (
        "EXIT STATUS",
        &[
            ("0", "Done."),
            ("1", "Refused; standard error says why."),
            ("2", "The balancer cannot be reached, or the command not understood."),
        ],
    ),
    ("ENVIRONMENT", &[("BALANCER_SOCKET", "The control socket where --socket is not given.")]),
    (
        "FILES",
        &[
            ("/run/balancer/control.sock", "The control socket of root's balancer."),
            ("$XDG_RUNTIME_DIR/balancer/control.sock", "The control socket of another user's balancer."),
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_examples() {
        let pages = pages();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in [
            "balancerctl.1",
            "balancerctl-start.1",
            "balancerctl-add.1",
            "balancerctl-demo.1",
            "balancerctl-pool-add.1",
        ] {
            assert!(names.contains(&name), "{name} in {names:?}");
        }
        assert!(!names.iter().any(|name| name.contains("help") || name.contains("-man")), "{names:?}");
        for (name, page) in &pages {
            let page = String::from_utf8_lossy(page);
            for section in [".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", ".SH EXAMPLES", ".SH \"EXIT STATUS\""] {
                assert!(page.contains(section), "{section} in {name}:\n{page}");
            }
        }
    }
}
