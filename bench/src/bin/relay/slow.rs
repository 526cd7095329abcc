//! Clients that ask for much and read slowly: what they have not read stays in the kernel and in the balancer.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bench::client;

/// How much a client reads at once, and how often it does: 40 kB a second at most, of an answer of 10 MB.
const PORTION: usize = 2048;
pub(crate) const PAUSE: Duration = Duration::from_millis(50);

/// The clients, each with an answer under way.
pub(crate) struct SlowReaders {
    clients: Vec<Client>,
}

struct Client {
    stream: TcpStream,
    /// Bytes of the answer.
    read: u64,
}

impl SlowReaders {
    /// Connects clients to `addr`, each of which has had a small answer and asked for the large one.
    pub(crate) fn open(addr: SocketAddrV4, count: usize) -> Result<Self> {
        let open = |index| Client::open(addr, index).with_context(|| format!("slow client {index}"));
        Ok(Self { clients: (0..count).map(open).collect::<Result<_>>()? })
    }

    /// Lets every client read a portion, if there is one.
    pub(crate) fn read(&mut self) -> Result<()> {
        let mut portion = [0; PORTION];
        for client in &mut self.clients {
            match client.stream.read(&mut portion) {
                Ok(0) => bail!("a slow client's connection ended"),
                Ok(count) => client.read += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("read slowly"),
            }
        }
        Ok(())
    }

    /// Fails unless every client has had something.
    pub(crate) fn check(&self) -> Result<()> {
        let idle = self.clients.iter().filter(|client| client.read == 0).count();
        ensure!(idle == 0, "{idle} of {} slow clients had nothing to read", self.clients.len());
        Ok(())
    }
}

impl Client {
    fn open(addr: SocketAddrV4, index: usize) -> Result<Self> {
        let mut stream = client::exchange(index, addr)?;
        stream.write_all(client::BULK).context("ask for the large answer")?;
        stream.set_nonblocking(true).context("read without waiting")?;
        Ok(Self { stream, read: 0 })
    }
}
