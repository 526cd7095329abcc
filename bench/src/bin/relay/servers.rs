//! The servers behind every balancer: several ports of one process, with a small answer, one of middle size and a large one.

use std::fmt::Write as _;
use std::fs::File;
use std::net::SocketAddrV4;
use std::path::Path;

use anyhow::{Context as _, Result};
use bench::servers::{self, free_addr};

/// How many servers a balancer has to choose from.
const SERVERS: usize = 3;
/// The size of the answer of middle size.
pub(crate) const MEDIUM_BYTES: u64 = 16_000;
/// The size of the large answer.
pub(crate) const BULK_BYTES: u64 = 10_000_000;

/// The running servers.
pub(crate) struct Servers {
    /// The address of each; never empty.
    pub(crate) addrs: Vec<SocketAddrV4>,
    /// Kept for its end.
    _running: servers::Servers,
}

impl Servers {
    /// Starts the servers with their files in `directory`, and waits until they answer.
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        let addrs = (0..SERVERS).map(|_| free_addr()).collect::<Result<Vec<_>>>()?;
        let mut locations = String::new();
        for (name, size) in [("medium", MEDIUM_BYTES), ("bulk", BULK_BYTES)] {
            let file = File::create(directory.join(name)).with_context(|| format!("create the {name} answer"))?;
            file.set_len(size).with_context(|| format!("size the {name} answer"))?;
            let _ = writeln!(locations, "        location = /{name} {{ root {}; }}", directory.display());
        }
        Ok(Self { _running: servers::Servers::start(directory, &addrs, &locations)?, addrs })
    }
}
