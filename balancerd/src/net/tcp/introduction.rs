//! What a server is told of a client before its first words: the PROXY protocol header of a session.

use std::net::SocketAddr;

use wire::settings::SendProxy;

use super::session::Session;
use crate::net::proxy::{Addresses, encode};

/// What is known of a client's connection and goes on in headers. Most sessions need none.
#[derive(Debug, Default)]
pub(super) struct Origin {
    /// The address that the client asked for, where a header said so; otherwise its socket knows.
    pub(super) destination: Option<SocketAddr>,
    /// What identifies the connection: from its header, or as it was told to the first server.
    pub(super) unique_id: Option<Box<[u8]>>,
}

/// Gives sessions their headers.
#[derive(Debug)]
pub(super) struct Introductions {
    /// Of this run of the balancer.
    run: u64,
}

impl Introductions {
    pub(super) fn new() -> Self {
        Self { run: fastrand::u64(..) }
    }

    /// Puts the header before what the client has said, in place of one that was meant for another server.
    pub(super) fn introduce(&self, session: &mut Session, how: Option<SendProxy>) {
        let header = how.map_or_else(Vec::new, |how| self.header(session, how));
        session.lead_with(&header);
    }

    fn header(&self, session: &mut Session, how: SendProxy) -> Vec<u8> {
        let known = session.origin.as_ref().and_then(|origin| origin.destination);
        let destination = known.or_else(|| session.client.stream.local_addr().ok());
        let addresses = destination.map(|destination| Addresses { source: session.peer, destination });
        let unique_id = match how {
            SendProxy::V2 { unique_id: true, .. } => {
                let number = session.number;
                let origin = session.origin.get_or_insert_default();
                Some(&**origin.unique_id.get_or_insert_with(|| self.unique_id(number)))
            }
            _ => None,
        };
        encode(how, addresses, unique_id)
    }

    /// Text, since logs show it: the run, and the number of the session.
    fn unique_id(&self, number: u64) -> Box<[u8]> {
        format!("{:016x}-{number}", self.run).into_bytes().into()
    }
}
