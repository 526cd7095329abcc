//! The man page and the completions, made from the definitions in `arguments.rs`.

use std::io;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::arguments::{Arguments, Page};

/// The files that the page names, and what they are.
const FILES: [(&str, &str); 4] = [
    ("/run/balancer/control.sock", "The control socket of root's balancer."),
    ("$XDG_RUNTIME_DIR/balancer/control.sock", "The control socket of another user's balancer."),
    ("/var/lib/balancer/control.state", "The servers that commands added to root's balancer."),
    ("$XDG_STATE_HOME/balancer/control.state", "The servers that commands added to another user's balancer."),
];

/// The signals that mean something, and what.
const SIGNALS: [(&str, &str); 5] = [
    (
        "SIGTERM, SIGINT",
        "End in order: no new sessions, the others may go on for the drain time. The second one ends at once.",
    ),
    ("SIGQUIT", "End in order, however often it comes. A SIGTERM after it ends at once."),
    ("SIGHUP", "Read the configuration file again."),
    ("SIGUSR1", "Open the log again. It is not needed to rotate a log, which follows its name by itself."),
    ("SIGUSR2", "Nothing but a line in the log: it is kept for an upgrade without a pause."),
];

/// A page.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn page(page: Page) -> Result<Vec<u8>> {
    match page {
        Page::Man => man().context("the man page"),
        Page::Bash => Ok(completions(clap_complete::Shell::Bash)),
        Page::Zsh => Ok(completions(clap_complete::Shell::Zsh)),
        Page::Fish => Ok(completions(clap_complete::Shell::Fish)),
    }
}

/// Into memory first: the generator panics when its writer fails.
fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "balancerd", &mut bytes);
    bytes
}

fn man() -> io::Result<Vec<u8>> {
    let mut command = Arguments::command();
    let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    // They have a section of their own; clap_mangen would put them under EXTRA.
    command = command.after_help("");
    let man =
        Man::new(command).manual("Balancer").section("8").source(concat!("balancerd ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut rest = Roff::new();
    rest.control("SH", ["EXAMPLES"]).control("nf", []);
    for line in examples.lines().filter(|line| *line != "Examples:") {
        rest.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
    }
    rest.control("fi", []).control("SH", ["FILES"]);
    for (path, what) in FILES {
        rest.control("TP", []).text([roman(path)]).text([roman(what)]);
    }
    rest.control("SH", ["SIGNALS"]);
    for (signal, what) in SIGNALS {
        rest.control("TP", []).text([roman(signal)]).text([roman(what)]);
    }
    rest.control("SH", ["SEE ALSO"]).text([roman("balancerctl(1)")]);
    rest.to_writer(&mut page)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_of_section_8_and_shows_the_examples() {
        let page = String::from_utf8(man().expect("made")).expect("text");
        assert!(page.contains(".TH balancerd 8"), "{page}");
        assert!(page.contains(".SH EXAMPLES") && page.contains("balancerd \\-\\-listen 0.0.0.0:80"), "{page}");
        assert!(!page.contains(".SH EXTRA"), "{page}");
        assert!(page.contains(".SH SIGNALS") && page.contains("SIGUSR1"), "{page}");
    }

    #[test]
    fn every_shell_has_completions() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            assert!(String::from_utf8(completions(shell)).expect("text").contains("idle-timeout"), "{shell}");
        }
    }
}
