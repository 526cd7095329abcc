//! The command line of what has to do with configuration files.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The file
    pub(crate) file: PathBuf,
}

pub(super) const CHECK_EXAMPLES: &str = "\
Examples:
  balancerctl check /etc/balancer.toml    Could a balancer be started with it?
  balancerctl check new.toml --json       What it says, with every default filled in";

/// Arguments of `reload`.
#[derive(Debug, Args)]
pub(crate) struct ReloadArgs {
    /// Change nothing, only tell what would change
    #[arg(long)]
    pub(crate) dry_run: bool,
}

pub(super) const RELOAD_EXAMPLES: &str = "\
Examples:
  balancerctl reload --dry-run            What would change, and who would move?
  balancerctl reload                      Do it";

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The file; - is standard input
    pub(crate) file: PathBuf,
}

pub(super) const DIFF_EXAMPLES: &str = "\
Examples:
  balancerctl diff new.toml               What would change, and who would move?
  sed 's/round-robin/consistent-hash/' /etc/balancer.toml | balancerctl diff -
                                          Without a file";

/// Arguments of `save`.
#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// The file; without it the one that the balancer was started with
    pub(crate) file: Option<PathBuf>,

    /// Write nothing, only tell what would be written
    #[arg(long)]
    pub(crate) dry_run: bool,
}

pub(super) const SAVE_EXAMPLES: &str = "\
Examples:
  balancerctl save --dry-run              What differs from the file?
  balancerctl save                        Write it there
  balancerctl save copy.toml              Into a copy of the file";

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The control socket of another balancer, or a configuration file
    pub(crate) other: PathBuf,
}

pub(super) const COMPARE_EXAMPLES: &str = "\
Examples:
  balancerctl compare /tmp/b/control.sock
                                          With another balancer on this machine
  balancerctl compare /etc/balancer.toml  With what a file says
  balancerctl compare other.toml > /dev/null && echo the same
                                          In a script";

/// Arguments of `import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The file of the older balancer: TOML with a section frontend, bind_on and frontend.backend, or that of Convey, with
    /// sections frontends.NAME and backends.NAME
    pub(crate) file: PathBuf,
}

pub(super) const IMPORT_EXAMPLES: &str = "\
Examples:
  balancerctl import old.toml > /etc/balancer.toml
  balancerctl import old.toml | balancerctl diff -

Formats that can be imported, both TOML:
  [frontend] with bind_on, [[frontend.backend]] with forward_to
  [frontends.NAME] with listen_addr and backend, [backends.NAME] with servers (Convey)";
