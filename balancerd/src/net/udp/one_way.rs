//! Servers that do not answer: one socket for each, shared by all who send there. There are no flows, so nothing is kept of
//! a client, and each datagram goes where the policy says at that moment.

use std::net::UdpSocket;

use nix::sys::socket::{setsockopt, sockopt};
use slotmap::SecondaryMap;

use crate::model::{Model, ServerId};

/// What is kept of answers that nobody waits for; the kernel makes it as small as may be.
const ANSWERS: usize = 1;

/// The sockets.
///
/// They are not at the poller: that a server is not there comes back as the error of the next call.
#[derive(Debug, Default)]
pub(super) struct OneWay {
    sockets: SecondaryMap<ServerId, Lane>,
}

/// The way to one server.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) socket: UdpSocket,
    /// Trains are refused on it.
    pub(super) singly: bool,
}

impl OneWay {
    pub(super) fn get_mut(&mut self, server: ServerId) -> Option<&mut Lane> {
        self.sockets.get_mut(server)
    }

    pub(super) fn insert(&mut self, server: ServerId, socket: UdpSocket) {
        let _ = setsockopt(&socket, sockopt::RcvBuf, &ANSWERS);
        self.sockets.insert(server, Lane { socket, singly: false });
    }

    /// Closes the sockets of servers that are gone, and of those whose connections are to be made anew.
    pub(super) fn tidy(&mut self, model: &Model) {
        self.sockets.retain(|server, _| model.is_one_way(server));
    }
}
