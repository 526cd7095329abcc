//! A request/response connection: bytes in, bytes out, and what it waits for. Generic over the stream; what the bytes
//! mean is its owner's affair.

use std::io::{self, Read, Write};

use super::is_transient;
use crate::event::Interest;

/// A connection.
#[derive(Debug)]
pub(crate) struct Conn<S> {
    stream: S,
    out: Vec<u8>,
    sent: usize,
    pub(crate) registered: Interest,
}

/// What a read came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// So many bytes are in the buffer.
    Bytes(usize),
    /// Nothing is there now.
    Nothing,
    /// The peer sends no more.
    End,
}

impl<S> Conn<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, out: Vec::new(), sent: 0, registered: Interest::NONE }
    }

    /// What is to be told to the poller: the stream, and the interest it has now.
    pub(crate) fn registration(&mut self) -> (&S, &mut Interest) {
        (&self.stream, &mut self.registered)
    }

    /// Whether bytes wait to be written.
    pub(crate) fn is_writing(&self) -> bool {
        self.sent < self.out.len()
    }

    /// Puts bytes behind those that wait; where none do, without a copy.
    pub(crate) fn send(&mut self, bytes: Vec<u8>) {
        if self.out.is_empty() {
            self.out = bytes;
        } else {
            self.out.extend_from_slice(&bytes);
        }
    }
}

impl<S> Conn<S>
where
    for<'a> &'a S: Read + Write,
{
    /// Reads once.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Input> {
        match (&self.stream).read(buffer) {
            Ok(0) => Ok(Input::End),
            Ok(count) => Ok(Input::Bytes(count)),
            Err(error) if is_transient(&error) => Ok(Input::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Writes once of what waits. How many bytes went.
    pub(crate) fn write(&mut self) -> io::Result<usize> {
        if !self.is_writing() {
            return Ok(0);
        }
        let count = match (&self.stream).write(&self.out[self.sent..]) {
            Ok(count) => count,
            Err(error) if is_transient(&error) => 0,
            Err(error) => return Err(error),
        };
        self.sent += count;
        if !self.is_writing() {
            (self.out, self.sent) = (Vec::new(), 0);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_peer_that_does_not_read_leaves_the_rest_waiting_and_loses_nothing() {
        let (near, mut far) = UnixStream::pair().expect("a pair");
        near.set_nonblocking(true).expect("set");
        let mut conn = Conn::new(near);
        let bytes: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        conn.send(bytes.clone());
        while conn.write().expect("written") > 0 {}
        assert!(conn.is_writing());
        let (mut got, mut chunk) = (Vec::new(), [0; 65536]);
        while got.len() < bytes.len() {
            let count = far.read(&mut chunk).expect("read");
            got.extend_from_slice(&chunk[..count]);
            conn.write().expect("written");
        }
        assert_eq!(got, bytes);
        assert!(!conn.is_writing());
    }
}
