//! The servers behind every balancer: several ports of one process, with a small answer and a large one.

use std::fs::File;
use std::net::SocketAddrV4;
use std::path::Path;

use anyhow::{Context as _, Result};
use bench::servers::{self, free_addr};

/// How many servers a balancer has to choose from.
const SERVERS: usize = 3;
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
        let bulk = File::create(directory.join("bulk")).context("create the large answer")?;
        bulk.set_len(BULK_BYTES).context("size the large answer")?;
        let location = format!("        location = /bulk {{ root {}; }}\n", directory.display());
        Ok(Self { _running: servers::Servers::start(directory, &addrs, &location)?, addrs })
    }
}
