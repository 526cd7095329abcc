//! One direction of a session: what was read on one side and is to be written on the other.

use std::io;
use std::net::{Shutdown, TcpStream};

use rustix::net::{RecvFlags, SendFlags};

use crate::net::is_transient;

/// What is read of a client before its server has answered the connect: a small request, and no more than ten thousand
/// sessions that wait for a dead server can afford. The rest stays in the kernel.
const FIRST_WORDS: usize = 4 * 1024;

/// One direction.
#[derive(Debug)]
pub(super) struct Pipe {
    flow: Flow,
    /// What was read and could not be written yet. No buffer while there is none.
    rest: Vec<u8>,
    /// How much of `rest` is written.
    sent: usize,
    /// How much of `rest`, at its start, did not come from the source: a header for the sink.
    lead: usize,
}

/// How far a direction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Bytes may come.
    Open,
    /// The end was read. The sink is to be told when the rest is written.
    Ended,
    /// Nothing more will be read or written, and the sink was told or is gone.
    Done,
}

/// What one step of a direction came to.
#[derive(Debug)]
pub(super) enum Step {
    /// So many bytes reached the sink; the others, if any, are kept.
    Moved(usize),
    /// The source has ended. The sink is told by [`Pipe::pass_on_the_end`].
    Ended,
    /// The source broke.
    SourceBroke(io::Error),
    /// The sink broke: what it was to get is dropped.
    SinkBroke(io::Error),
}

impl Pipe {
    pub(super) fn new() -> Self {
        Self { flow: Flow::Open, rest: Vec::new(), sent: 0, lead: 0 }
    }

    /// With first words of its source that were read already.
    pub(super) fn with(words: Vec<u8>) -> Self {
        Self { rest: words, ..Self::new() }
    }

    /// Whether it would read: back-pressure is that it does not while there is a rest.
    pub(super) fn wants_read(&self) -> bool {
        self.flow == Flow::Open && self.rest.is_empty()
    }

    /// Whether it waits for its sink.
    pub(super) fn wants_write(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Whether all that came has been written and no more comes. The sink may still have to be told.
    pub(super) fn is_finished(&self) -> bool {
        self.flow == Flow::Done || self.has_end_to_pass_on()
    }

    /// Whether the sink is to be told of the end now.
    pub(super) fn has_end_to_pass_on(&self) -> bool {
        self.flow == Flow::Ended && self.rest.is_empty()
    }

    /// Bytes that are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.rest.len() - self.sent
    }

    #[cfg(test)]
    pub(super) fn buffer_capacity(&self) -> usize {
        self.rest.capacity()
    }

    /// Reads once into `scratch` and writes once.
    pub(super) fn pump(&mut self, source: &TcpStream, sink: &TcpStream, scratch: &mut [u8]) -> Step {
        debug_assert!(self.wants_read());
        match receive(source, scratch) {
            Ok(0) => {
                self.flow = Flow::Ended;
                Step::Ended
            }
            Ok(count) => self.write(sink, &scratch[..count]),
            Err(error) if is_transient(&error) => Step::Moved(0),
            Err(error) => {
                // There is no rest, or it would not have been read from; so there is nothing left to do.
                self.flow = Flow::Done;
                Step::SourceBroke(error)
            }
        }
    }

    fn write(&mut self, sink: &TcpStream, bytes: &[u8]) -> Step {
        match send(sink, bytes) {
            Ok(count) => {
                self.keep(&bytes[count..]);
                Step::Moved(count)
            }
            Err(error) if is_transient(&error) => {
                self.keep(bytes);
                Step::Moved(0)
            }
            Err(error) => {
                self.abandon();
                Step::SinkBroke(error)
            }
        }
    }

    /// Reads the first words and keeps them, while there is no sink yet. An end is left to be read again.
    pub(super) fn take_in(&mut self, source: &TcpStream, scratch: &mut [u8]) -> io::Result<()> {
        let limit = scratch.len().min(FIRST_WORDS);
        match receive(source, &mut scratch[..limit]) {
            Ok(count) => self.keep(&scratch[..count]),
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Puts a header before the first words, in place of an earlier one, whatever was written of that: it is for a sink
    /// that has taken nothing of the source.
    pub(super) fn lead_with(&mut self, header: &[u8]) {
        debug_assert!(self.sent <= self.lead, "a word of the source has one sink");
        if header.is_empty() && self.lead == 0 {
            return;
        }
        let words = &self.rest[self.lead..];
        self.rest = [header, words].concat();
        (self.sent, self.lead) = (0, header.len());
    }

    /// Offers what is kept to a sink that may not be connected yet, or may turn out broken: what it does not take stays
    /// here for the next one. Bytes of the source that it took; nothing when it took nothing at all.
    pub(super) fn offer(&mut self, sink: &TcpStream) -> io::Result<Option<usize>> {
        match send(sink, &self.rest[self.sent..]) {
            Ok(0) => Ok(None),
            Ok(count) => Ok(Some(self.advance(count))),
            Err(error) if is_transient(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.rest = bytes.to_vec();
    }

    /// So many more bytes of the rest are written. How many of them came from the source.
    fn advance(&mut self, count: usize) -> usize {
        let before = self.sent.max(self.lead);
        self.sent += count;
        let own = self.sent.max(self.lead) - before;
        if self.sent == self.rest.len() {
            (self.rest, self.sent, self.lead) = (Vec::new(), 0, 0);
        }
        own
    }

    /// Writes once of what is kept.
    pub(super) fn flush(&mut self, sink: &TcpStream) -> Step {
        debug_assert!(self.wants_write());
        match self.offer(sink) {
            Ok(count) => Step::Moved(count.unwrap_or_default()),
            Err(error) => {
                self.abandon();
                Step::SinkBroke(error)
            }
        }
    }

    /// Gives the direction up: its sink takes nothing more.
    pub(super) fn abandon(&mut self) {
        *self = Self { flow: Flow::Done, ..Self::new() };
    }

    /// Tells the sink that no more comes, if it is time.
    pub(super) fn pass_on_the_end(&mut self, sink: &TcpStream) {
        if self.has_end_to_pass_on() {
            // An error here says that the sink is gone already; reading from it will tell.
            let _ = sink.shutdown(Shutdown::Write);
            self.flow = Flow::Done;
        }
    }
}

/// recv(2), and send(2) below: the two calls that a relay is made of. Straight into the kernel: those of libc are
/// cancellation points, which costs them atomic operations in a process that has more than one thread.
pub(super) fn receive(source: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let (count, _) = rustix::net::recv(source, buffer, RecvFlags::empty())?;
    Ok(count)
}

fn send(sink: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(sink, bytes, SendFlags::NOSIGNAL)?)
}
