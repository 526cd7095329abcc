//! One direction of a session: what was read on one side and is to be written on the other.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags};

use super::kernel_pipes::{KernelPipe, KernelPipes, is_refusal};
use super::way::Way;
use crate::net::is_transient;

/// What is read of a client before its server has answered the connect: a small request, and no more than ten thousand
/// sessions that wait for a dead server can afford. The rest stays in the kernel.
const FIRST_WORDS: usize = 4 * 1024;

/// What one step of splicing takes in at most, and so what a direction keeps at most. Measured with eight streams: half of it
/// costs a third more of the processor, twice as much a tenth less.
const MOST_SPLICED: usize = 512 * 1024;

/// What one step of splicing may take in however many sessions are ready: no less than one of copying.
const LEAST_SPLICED: usize = 64 * 1024;

/// What the steps of one turn are to take in together: a session with something small to say waits for that long. It is
/// shared by all that are ready.
const SPLICED_IN_A_TURN: usize = 4 * 1024 * 1024;

/// How long something may stay in a kernel pipe. After that the pipe is for others, and a buffer keeps the bytes.
const STALL: Duration = Duration::from_secs(1);

/// What the bytes of a step go through.
pub(super) struct Through<'a> {
    /// What it holds is worth nothing after the step.
    pub(super) scratch: &'a mut [u8],
    pub(super) kernel_pipes: &'a mut KernelPipes,
    /// What one step of splicing takes in at most: see [`spliced_in_a_step`].
    pub(super) most_spliced: usize,
}

/// What one step of splicing takes in at most, in a turn in which so many are ready.
pub(super) fn spliced_in_a_step(ready: usize) -> usize {
    (SPLICED_IN_A_TURN / ready.max(1)).clamp(LEAST_SPLICED, MOST_SPLICED)
}

/// One direction.
#[derive(Debug)]
pub(super) struct Pipe {
    flow: Flow,
    way: Way,
    rest: Rest,
    /// What came of the source, as long as another sink may have to get all of it again.
    record: Option<Box<Record>>,
}

/// All that a source has said.
#[derive(Debug)]
struct Record {
    bytes: Vec<u8>,
    /// More than so much is not kept, and so nothing is.
    most: usize,
    /// It has said its last.
    ended: bool,
}

/// What was read and could not be written yet.
#[derive(Debug)]
enum Rest {
    /// All but the first `sent` bytes of a buffer, of which the first `lead` did not come from the source: a header for
    /// the sink. No buffer while there is nothing.
    Buffer { bytes: Vec<u8>, sent: usize, lead: usize },
    /// So many bytes in a kernel pipe, never none, and since when.
    Kernel { pipe: KernelPipe, count: u32, since: Instant },
}

impl Rest {
    const NOTHING: Self = Self::of(Vec::new());

    /// What came from the source, and nothing else.
    const fn of(bytes: Vec<u8>) -> Self {
        Self::Buffer { bytes, sent: 0, lead: 0 }
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Self::Buffer { bytes, .. } if bytes.is_empty())
    }
}

/// How far a direction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Bytes may come.
    Open,
    /// The end was read. The sink is to be told when the rest is written.
    Ended,
    /// The sink has been told the end of the source, behind all bytes.
    Told,
    /// Nothing more will be read or written: the source or the sink broke.
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
    /// A direction that splices when it is bulk, if it may.
    pub(super) fn new(may_splice: bool) -> Self {
        Self { flow: Flow::Open, way: Way::new(may_splice), rest: Rest::NOTHING, record: None }
    }

    /// With first words of its source that were read already.
    pub(super) fn with(words: Vec<u8>, may_splice: bool) -> Self {
        Self { rest: Rest::of(words), ..Self::new(may_splice) }
    }

    /// Whether it would read: back-pressure is that it does not while there is a rest.
    pub(super) fn wants_read(&self) -> bool {
        self.flow == Flow::Open && self.rest.is_nothing()
    }

    /// Whether more may come of its source.
    pub(super) fn is_open(&self) -> bool {
        self.flow == Flow::Open
    }

    /// Whether it waits for its sink.
    pub(super) fn wants_write(&self) -> bool {
        !self.rest.is_nothing()
    }

    /// Whether all that came has been written and no more comes. The sink may still have to be told.
    pub(super) fn is_finished(&self) -> bool {
        self.flow == Flow::Done || self.is_complete()
    }

    /// Whether the sink has, or gets by an orderly close, all that the source said and its own end behind it.
    pub(super) fn is_complete(&self) -> bool {
        self.flow == Flow::Told || self.has_end_to_pass_on()
    }

    /// Whether the sink is to be told of the end now.
    pub(super) fn has_end_to_pass_on(&self) -> bool {
        self.flow == Flow::Ended && self.rest.is_nothing()
    }

    /// When what is kept has been in a kernel pipe for too long, if it is in one.
    pub(super) fn stalls_at(&self) -> Option<Instant> {
        match &self.rest {
            Rest::Kernel { since, .. } => Some(*since + STALL),
            Rest::Buffer { .. } => None,
        }
    }

    /// Bytes that are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        match &self.rest {
            Rest::Buffer { bytes, sent, .. } => bytes.len() - sent,
            Rest::Kernel { count, .. } => *count as usize,
        }
    }

    #[cfg(test)]
    pub(super) fn buffer_capacity(&self) -> usize {
        match &self.rest {
            Rest::Buffer { bytes, .. } => bytes.capacity(),
            Rest::Kernel { .. } => 0,
        }
    }

    #[cfg(test)]
    pub(super) fn way(&self) -> Way {
        self.way
    }

    /// Reads once and writes once. There is no rest.
    pub(super) fn pump(
        &mut self,
        source: &TcpStream,
        sink: &TcpStream,
        through: &mut Through<'_>,
        now: Instant,
    ) -> Step {
        debug_assert!(self.wants_read());
        if matches!(self.way, Way::Splice { .. })
            && self.record.is_none()
            && let Some(pipe) = through.kernel_pipes.take(now)
        {
            self.splice(source, sink, pipe, through, now)
        } else {
            self.copy(source, sink, through.scratch)
        }
    }

    fn copy(&mut self, source: &TcpStream, sink: &TcpStream, scratch: &mut [u8]) -> Step {
        match receive(source, scratch) {
            Ok(count) => {
                self.way.on_step(count);
                self.remember(&scratch[..count]);
                if count == 0 { self.end() } else { self.write(sink, &scratch[..count]) }
            }
            Err(error) => self.on_read_failed(error),
        }
    }

    fn splice(
        &mut self,
        source: &TcpStream,
        sink: &TcpStream,
        pipe: KernelPipe,
        through: &mut Through<'_>,
        now: Instant,
    ) -> Step {
        // The pipe is empty: that there is nothing to be had now can only mean the source. And it may be that splice alone has
        // nothing, or takes it for the end: it goes no further than to an urgent byte, whatever is behind it. A read knows.
        match pipe.fill(source, through.most_spliced) {
            Ok(0) => {
                through.kernel_pipes.put(pipe, now);
                self.copy(source, sink, through.scratch)
            }
            Ok(count) => {
                self.way.on_step(count);
                let count = u32::try_from(count).expect("no more than was asked for");
                self.rest = Rest::Kernel { pipe, count, since: now };
                self.flush(sink, through.kernel_pipes, now)
            }
            Err(error) => {
                through.kernel_pipes.put(pipe, now);
                if is_refusal(&error) {
                    through.kernel_pipes.on_refusal(&error);
                } else if !is_transient(&error) {
                    return self.on_read_failed(error);
                }
                self.copy(source, sink, through.scratch)
            }
        }
    }

    /// Keeps all that comes, up to so much, for another sink. The first words may be there already.
    pub(super) fn record(&mut self, most: usize) {
        let Rest::Buffer { bytes, lead, .. } = &self.rest else { return };
        let bytes = bytes[*lead..].to_vec();
        self.record = (bytes.len() <= most).then(|| Box::new(Record { bytes, most, ended: false }));
    }

    /// The sink has answered: no other will have to get what it got.
    pub(super) fn forget(&mut self) {
        self.record = None;
    }

    /// Whether another sink can get all that came.
    pub(super) fn has_record(&self) -> bool {
        self.record.is_some()
    }

    /// Begins anew, for another sink.
    pub(super) fn replay(&mut self) {
        let Some(record) = &self.record else { return };
        self.flow = if record.ended { Flow::Ended } else { Flow::Open };
        self.rest = Rest::of(record.bytes.clone());
    }

    fn remember(&mut self, bytes: &[u8]) {
        let Some(record) = &mut self.record else { return };
        if record.bytes.len() + bytes.len() > record.most {
            self.record = None;
        } else {
            record.bytes.extend_from_slice(bytes);
        }
    }

    fn end(&mut self) -> Step {
        self.flow = Flow::Ended;
        if let Some(record) = &mut self.record {
            record.ended = true;
        }
        Step::Ended
    }

    fn on_read_failed(&mut self, error: io::Error) -> Step {
        if is_transient(&error) {
            return Step::Moved(0);
        }
        // There is no rest, or it would not have been read from; so there is nothing left to do.
        self.flow = Flow::Done;
        Step::SourceBroke(error)
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
                // There was no rest.
                self.flow = Flow::Done;
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
        let Rest::Buffer { bytes, sent, lead } = &mut self.rest else {
            debug_assert!(false, "nothing is spliced before the first words are out");
            return;
        };
        debug_assert!(*sent <= *lead, "a word of the source has one sink");
        if header.is_empty() && *lead == 0 {
            return;
        }
        *bytes = [header, &bytes[*lead..]].concat();
        (*sent, *lead) = (0, header.len());
    }

    /// Offers the first words, with what leads them, to a sink that may not be connected yet, or may turn out broken: what
    /// it does not take stays here for the next one. Bytes of the source that it took; nothing when it took nothing at
    /// all.
    pub(super) fn offer(&mut self, sink: &TcpStream) -> io::Result<Option<usize>> {
        match self.show(sink)? {
            0 => Ok(None),
            count => Ok(Some(self.taken(count))),
        }
    }

    /// The same, but all of it stays here until it is said that it was [taken](Self::taken). Bytes that the sink took.
    pub(super) fn show(&self, sink: &TcpStream) -> io::Result<usize> {
        let Rest::Buffer { bytes, sent, .. } = &self.rest else { return Ok(0) };
        match send(sink, &bytes[*sent..]) {
            Err(error) if is_transient(&error) => Ok(0),
            result => result,
        }
    }

    /// So many bytes of what is kept were taken by the sink. Those of the source among them.
    pub(super) fn taken(&mut self, count: usize) -> usize {
        let Rest::Buffer { bytes, sent, lead } = &mut self.rest else { return 0 };
        let before = (*sent).max(*lead);
        *sent += count;
        let own = (*sent).max(*lead) - before;
        if *sent == bytes.len() {
            self.rest = Rest::NOTHING;
        }
        own
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.rest = Rest::of(bytes.to_vec());
    }

    /// Writes once of what is kept.
    pub(super) fn flush(&mut self, sink: &TcpStream, kernel_pipes: &mut KernelPipes, now: Instant) -> Step {
        debug_assert!(self.wants_write());
        let moved = match &mut self.rest {
            Rest::Buffer { .. } => self.offer(sink).map(Option::unwrap_or_default),
            Rest::Kernel { pipe, count, .. } => match pipe.drain(sink, *count as usize) {
                Ok(sent) => {
                    *count -= u32::try_from(sent).expect("no more than was asked for");
                    if *count == 0 {
                        self.free(kernel_pipes, now);
                    }
                    Ok(sent)
                }
                Err(error) if is_transient(&error) => Ok(0),
                Err(error) if is_refusal(&error) => {
                    kernel_pipes.on_refusal(&error);
                    self.take_back(kernel_pipes, now).map(|()| 0)
                }
                Err(error) => Err(error),
            },
        };
        match moved {
            Ok(count) => Step::Moved(count),
            Err(error) => {
                self.abandon(kernel_pipes);
                Step::SinkBroke(error)
            }
        }
    }

    /// Copies what stays in a kernel pipe for too long into a buffer, and gives the pipe back.
    pub(super) fn take_back(&mut self, kernel_pipes: &mut KernelPipes, now: Instant) -> io::Result<()> {
        if let Rest::Kernel { pipe, count, .. } = &self.rest {
            let bytes = pipe.read_back(*count as usize)?;
            self.free(kernel_pipes, now);
            self.rest = Rest::of(bytes);
            self.way.on_stall();
        }
        Ok(())
    }

    /// Gives back the kernel pipe, which is empty now.
    fn free(&mut self, kernel_pipes: &mut KernelPipes, now: Instant) {
        if let Rest::Kernel { pipe, .. } = std::mem::replace(&mut self.rest, Rest::NOTHING) {
            kernel_pipes.put(pipe, now);
        }
    }

    /// Gives the direction up: its sink takes nothing more.
    pub(super) fn abandon(&mut self, kernel_pipes: &mut KernelPipes) {
        self.flow = Flow::Done;
        if let Rest::Kernel { pipe, .. } = std::mem::replace(&mut self.rest, Rest::NOTHING) {
            kernel_pipes.discard(pipe);
        }
    }

    /// Tells the sink that no more comes, if it is time.
    pub(super) fn pass_on_the_end(&mut self, sink: &TcpStream) {
        if self.has_end_to_pass_on() {
            // An error here says that the sink is gone already; reading from it will tell.
            let _ = sink.shutdown(Shutdown::Write);
            self.flow = Flow::Told;
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
