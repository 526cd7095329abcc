//! Pipes of the kernel, through which bulk goes from socket to socket without being copied, and the pool that lends them.
//! A direction of a session (`pipe`) has one only while something is in it.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};
use tracing::debug;

/// Pipes at most, where descriptors and memory allow more. Only directions whose sink is behind hold one.
pub(crate) const MOST_KERNEL_PIPES: usize = 1024;

/// The largest pipe, in bytes, and the most that an unprivileged user may have. A page that a server sends from a file
/// takes a place of its own, so that the places of a small pipe are soon used up: bulk through 1 MiB costs a third less
/// than through 256 KiB.
const LARGEST: usize = 1024 * 1024;

/// The smallest pipe that is worth its two descriptors, in bytes: what the kernel gives unasked.
const SMALLEST: usize = 64 * 1024;

/// A new pipe has this part of the room that is left, so that the first are large and there are still some for many.
const SHARE: usize = 16;

/// The room of all pipes together, in bytes, where the kernel sets no limit.
const MOST_ROOM: usize = 256 * 1024 * 1024;

/// How long no pipe is made after one could not be.
const PAUSE: Duration = Duration::from_secs(5);

/// Pipes that nobody has needed for so long are closed.
const SPARE_FOR: Duration = Duration::from_secs(1);

/// One pipe.
#[derive(Debug)]
pub(super) struct KernelPipe {
    read: OwnedFd,
    write: OwnedFd,
    /// What it is counted as in the room of all, in bytes.
    size: u32,
}

impl KernelPipe {
    /// Takes in what the source has, at most so much, into an empty pipe. None is the end.
    pub(super) fn fill(&self, source: &TcpStream, most: usize) -> io::Result<usize> {
        Ok(splice(source, None, &self.write, None, most, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?)
    }

    /// Gives so much of what is in it to the sink, or less.
    pub(super) fn drain(&self, sink: &TcpStream, count: usize) -> io::Result<usize> {
        Ok(splice(&self.read, None, sink, None, count, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?)
    }

    /// Copies out what is in it, which is so much.
    pub(super) fn read_back(&self, count: usize) -> io::Result<Vec<u8>> {
        let (mut bytes, mut filled) = (vec![0; count], 0);
        while filled < count {
            match rustix::io::read(&self.read, &mut bytes[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => filled += more,
            }
        }
        Ok(bytes)
    }
}

/// The pool. It lends no more pipes than it may, makes them when they are needed, and closes what was not needed for a
/// while. Who gets none copies.
#[derive(Debug)]
pub(crate) struct KernelPipes {
    /// Empty, the last one used on top: its places are still in the caches.
    idle: Vec<KernelPipe>,
    /// Idle ones and lent ones.
    count: usize,
    most: usize,
    /// Bytes that further pipes may be large.
    room: usize,
    /// No pipe is made until then.
    paused_until: Option<Instant>,
    /// The fewest that were idle since the last look.
    spare: usize,
    /// When it is looked whether there are spare ones.
    look_at: Option<Instant>,
    /// The kernel does not splice between sockets here.
    refused: bool,
}

impl KernelPipes {
    /// A pool of at most so many pipes, with the room that the kernel lets this user have.
    pub(crate) fn new(most: usize) -> Self {
        Self::with_room(most, room())
    }

    fn with_room(most: usize, room: usize) -> Self {
        Self {
            idle: Vec::new(),
            count: 0,
            most: most.min(MOST_KERNEL_PIPES),
            room,
            paused_until: None,
            spare: 0,
            look_at: None,
            refused: false,
        }
    }

    /// An empty pipe, if there is one to be had.
    pub(super) fn take(&mut self, now: Instant) -> Option<KernelPipe> {
        if self.refused {
            return None;
        }
        if let Some(pipe) = self.idle.pop() {
            self.spare = self.spare.min(self.idle.len());
            return Some(pipe);
        }
        self.spare = 0;
        if self.count >= self.most || self.room < SMALLEST || self.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        match make(self.room) {
            Ok(pipe) => {
                self.count += 1;
                self.room -= pipe.size as usize;
                Some(pipe)
            }
            Err(error) => {
                debug!(%error, pipes = self.count, "no further kernel pipe: bulk that finds none is copied");
                self.paused_until = Some(now + PAUSE);
                None
            }
        }
    }

    /// Takes back an empty pipe.
    pub(super) fn put(&mut self, pipe: KernelPipe, now: Instant) {
        self.idle.push(pipe);
        self.look_at.get_or_insert(now + SPARE_FOR);
    }

    /// Closes a pipe that is not empty.
    pub(super) fn discard(&mut self, pipe: KernelPipe) {
        self.count -= 1;
        self.room += pipe.size as usize;
        drop(pipe);
    }

    /// The kernel has said that it does not splice here: no pipe is lent any more.
    pub(super) fn on_refusal(&mut self, error: &io::Error) {
        if error.raw_os_error() == Some(nix::libc::ENOMEM) {
            debug!(%error, "the kernel is short of memory: what it does not splice now is copied");
            return;
        }
        debug!(%error, "the kernel does not splice here: all bulk is copied");
        self.refused = true;
    }

    #[cfg(test)]
    pub(super) fn lent_and_idle(&self) -> (usize, usize) {
        (self.count - self.idle.len(), self.idle.len())
    }

    /// The earliest time at which [`KernelPipes::expire`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.look_at
    }

    /// Closes the pipes that nobody has needed for a while.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.look_at.is_none_or(|at| now < at) {
            return;
        }
        // Those at the bottom have not been taken. A pipe that is lent comes back by `put`.
        for pipe in self.idle.drain(..self.spare.min(self.idle.len())).collect::<Vec<_>>() {
            self.discard(pipe);
        }
        self.spare = self.idle.len();
        self.look_at = (!self.idle.is_empty()).then(|| now + SPARE_FOR);
    }
}

/// Whether an error of splice says that it cannot be done, and nothing of the two sockets.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    use nix::libc::{EINVAL, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM};
    matches!(error.raw_os_error(), Some(EINVAL | ENOSYS | EOPNOTSUPP | ENOMEM | EPERM))
}

/// A new pipe, as large as its part of what is left.
fn make(left: usize) -> io::Result<KernelPipe> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let wanted = (left / SHARE).clamp(SMALLEST, LARGEST);
    let largest = 1 << wanted.ilog2();
    let size = match fcntl_setpipe_size(&write, largest) {
        Ok(size) => size,
        // The user has used up its limit: it is as large as it is.
        Err(_) => fcntl_getpipe_size(&write)?,
    };
    if size < SMALLEST {
        return Err(io::Error::other(format!("a pipe of {size} bytes is all that the kernel gives")));
    }
    Ok(KernelPipe { read, write, size: u32::try_from(size).unwrap_or(u32::MAX) })
}

/// Half of what the kernel lets the pipes of an unprivileged user hold together: the other half is for the user's other
/// programs.
fn room() -> usize {
    let pages = std::fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft");
    let pages = pages.ok().and_then(|text| text.trim().parse::<usize>().ok()).unwrap_or_default();
    if pages == 0 { MOST_ROOM } else { (pages / 2).saturating_mul(page_size()).min(MOST_ROOM) }
}

fn page_size() -> usize {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| usize::try_from(size).ok()).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event;

    #[test]
    fn there_are_no_more_than_may_be_and_a_closed_one_makes_room() {
        let (mut pipes, now) = (KernelPipes::with_room(2, MOST_ROOM), event::now());
        let (first, second) = (pipes.take(now).expect("one"), pipes.take(now).expect("another"));
        assert!(pipes.take(now).is_none());
        pipes.put(first, now);
        let first = pipes.take(now).expect("it is back");
        pipes.discard(second);
        let third = pipes.take(now).expect("a new one");
        assert!(pipes.take(now).is_none());
        drop((first, third));
    }

    #[test]
    fn the_room_is_shared_out_in_large_pipes_and_then_in_ever_smaller_ones() {
        let room = 32 * LARGEST;
        let (mut pipes, now) = (KernelPipes::with_room(MOST_KERNEL_PIPES, room), event::now());
        let all: Vec<KernelPipe> = std::iter::from_fn(|| pipes.take(now)).collect();
        let sizes: Vec<usize> = all.iter().map(|pipe| pipe.size as usize).collect();
        assert!(sizes.is_sorted_by(|one, next| one >= next), "{sizes:?}");
        assert!(sizes.iter().sum::<usize>() <= room);
        assert_eq!((sizes.first(), sizes.last()), (Some(&LARGEST), Some(&SMALLEST)));
        assert!(all.len() > 90, "{}", all.len());
        all.into_iter().for_each(|pipe| pipes.discard(pipe));
        assert_eq!((pipes.room, pipes.lent_and_idle()), (room, (0, 0)));
    }

    #[test]
    fn what_nobody_has_needed_for_a_while_is_closed() {
        let (mut pipes, start) = (KernelPipes::with_room(9, MOST_ROOM), event::now());
        let later = |rounds| start + SPARE_FOR * rounds;
        let three = [(); 3].map(|()| pipes.take(start).expect("a pipe"));
        assert_eq!(pipes.next_deadline(), None);
        three.into_iter().for_each(|pipe| pipes.put(pipe, start));
        assert_eq!(pipes.next_deadline(), Some(later(1)));
        pipes.expire(later(1));
        assert_eq!(pipes.lent_and_idle(), (0, 3), "they were needed");
        // One of them is, in the time that follows.
        let one = pipes.take(later(1)).expect("idle");
        pipes.put(one, later(1));
        pipes.expire(later(2));
        assert_eq!(pipes.lent_and_idle(), (0, 1));
        pipes.expire(later(3));
        assert_eq!((pipes.lent_and_idle(), pipes.next_deadline()), ((0, 0), None));
    }

    #[test]
    fn a_kernel_that_refuses_is_not_asked_again() {
        let (mut pipes, now) = (KernelPipes::with_room(9, MOST_ROOM), event::now());
        let refusal = io::Error::from_raw_os_error(nix::libc::EINVAL);
        assert!(is_refusal(&refusal) && !is_refusal(&io::ErrorKind::ConnectionReset.into()));
        // Short of memory it is for a moment.
        let shortage = io::Error::from_raw_os_error(nix::libc::ENOMEM);
        assert!(is_refusal(&shortage));
        pipes.on_refusal(&shortage);
        let pipe = pipes.take(event::now()).expect("it is asked again");
        pipes.put(pipe, event::now());
        pipes.on_refusal(&refusal);
        assert!(pipes.take(now).is_none());
    }
}
