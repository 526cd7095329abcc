//! The control socket: who may speak, frames in and out, and patience with whoever is slow. It knows nothing of what
//! the requests mean.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::AT_FDCWD;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket, sockopt,
};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::Uid;
use slotmap::SlotMap;
use tracing::{debug, warn};
use wire::control::{Refusal, Request, Response};
use wire::frame::{Decoder, REQUEST_LIMIT, frame, greeting};

use super::Context;
use super::asker::Asker;
use super::conn::{Conn, Input};
use crate::event::{Interest, Key, Ready, Repeated};

slotmap::new_key_type! {
    /// A control connection, as long as it lives.
    pub(crate) struct ControlId;
}

/// Control connections at a time. At the limit the one that has been quiet for longest, and is owed no answer, gives way
/// to the newcomer, so that silent ones never lock an operator out.
pub(crate) const MOST_CONNECTIONS: usize = 32;

/// How long a peer may take over the rest of a frame, or over reading its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the listener stays away when the system is short of descriptors.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// Connections that wait for their accept.
const BACKLOG: i32 = 64;

/// Who may use the socket: its owner, its group and nobody else.
const SOCKET_MODE: Mode = Mode::from_bits_truncate(0o660);

/// The control socket and its connections.
pub(crate) struct Control {
    listener: UnixListener,
    path: PathBuf,
    /// The device and inode of the socket in the file system: a successor's is not removed by mistake.
    inode: (u64, u64),
    group: u32,
    registered: Interest,
    short_until: Option<Instant>,
    peers: SlotMap<ControlId, Peer>,
    key: fn(ControlId) -> Key,
    /// Strangers that were refused, connections that found no room, and those that could not be accepted.
    strangers: Repeated,
    crowd: Repeated,
    shortage: Repeated,
}

/// A connection and how far it is.
struct Peer {
    asker: Asker,
    conn: Conn<UnixStream>,
    decoder: Decoder<Request>,
    stage: Stage,
    /// Its close is to be the news that the daemon has ended.
    held: bool,
    /// The last time that it did something.
    active: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The next request is read and taken. A whole one may be waiting already.
    Taking { more: bool },
    /// A request is being carried out: nothing is read until its answer is there.
    Asked,
    /// The answer is on its way, and the connection is closed behind it.
    Closing,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// A daemon answers there.
    #[error("a balancer runs already at {}, with pid {pid}; stop it first, or give this one a --socket of its own", .path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
        /// Its process.
        pid: i32,
    },
    /// Something that is no socket is there.
    #[error("{} is there and is not a socket; move it away, or give another --socket", .0.display())]
    NotASocket(PathBuf),
    /// The operating system refused.
    #[error("the control socket {} cannot be made", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl Control {
    /// Makes the socket, in place of a dead daemon's. The caller holds the lock of the pid file, so nobody else does
    /// the same at this moment. `key` says what a connection is called at the poller.
    pub(crate) fn bind(path: &Path, key: fn(ControlId) -> Key) -> Result<Self, ControlError> {
        let failed = |source: io::Error| ControlError::Io { path: path.to_path_buf(), source };
        clear_the_way(path)?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let descriptor: OwnedFd =
            socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(|errno| failed(errno.into()))?;
        let address = UnixAddr::new(path).map_err(|errno| failed(errno.into()))?;
        bind(descriptor.as_raw_fd(), &address).map_err(|errno| failed(errno.into()))?;
        // Nobody can connect before listen(), so nobody connects before the mode is right.
        // Where others may write they may have laid a link there since the bind: the mode of what it leads to stays.
        fchmodat(AT_FDCWD, path, SOCKET_MODE, FchmodatFlags::NoFollowSymlink).map_err(|errno| failed(errno.into()))?;
        listen(&descriptor, Backlog::new(BACKLOG).map_err(|errno| failed(errno.into()))?)
            .map_err(|errno| failed(errno.into()))?;
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Self {
            listener: UnixListener::from(descriptor),
            path: path.to_path_buf(),
            inode: (metadata.dev(), metadata.ino()),
            group: metadata.gid(),
            registered: Interest::NONE,
            short_until: None,
            peers: SlotMap::with_key(),
            key,
            strangers: Repeated::default(),
            crowd: Repeated::default(),
            shortage: Repeated::default(),
        })
    }

    /// The listener is ready: takes one connection, if the peer may speak.
    pub(crate) fn accept(&mut self, cx: &mut Context<'_>) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {
                return;
            }
            Err(error) => {
                if self.shortage.on_event(cx.now) {
                    warn!(%error, "a control connection could not be accepted");
                }
                self.short_until = Some(cx.now + SHORTAGE_PAUSE);
                return;
            }
        };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let refusal = self.refusal(&stream);
        // Whoever may not speak displaces nobody.
        if self.peers.len() >= MOST_CONNECTIONS && (refusal.is_some() || !self.make_room()) {
            if self.crowd.on_event(cx.now) {
                warn!("too many control connections: a new one is closed");
            }
            return;
        }
        let credentials = getsockopt(&stream, sockopt::PeerCredentials);
        let asker = credentials.map_or(Asker::new(u32::MAX, 0), |peer| Asker::new(peer.uid(), peer.pid()));
        let mut peer = Peer {
            asker,
            conn: Conn::new(stream),
            decoder: Decoder::new(REQUEST_LIMIT),
            stage: Stage::Taking { more: false },
            held: false,
            active: cx.now,
        };
        peer.conn.send(greeting());
        if let Some(refusal) = refusal {
            if self.strangers.on_event(cx.now) {
                let Asker { uid, pid, program } = &peer.asker;
                warn!(%refusal, uid, pid, program, "a control connection was refused");
            }
            peer.answer(framed(&Response::Refused(refusal)));
            peer.stage = Stage::Closing;
        }
        let id = self.peers.insert(peer);
        self.write(id, cx);
    }

    /// Closes the connection that has been quiet for longest, of those that are owed nothing. Whether there was one.
    fn make_room(&mut self) -> bool {
        let idle = self.peers.iter().filter(|(_, peer)| !peer.is_owed_something());
        let Some(quietest) = idle.min_by_key(|(_, peer)| peer.active).map(|(id, _)| id) else { return false };
        debug!("too many control connections: the quietest is closed");
        self.peers.remove(quietest).is_some()
    }

    /// A connection is ready. Gives the request that is to be carried out; [`Control::answer`] then answers it.
    pub(crate) fn ready(&mut self, id: ControlId, ready: Ready, cx: &mut Context<'_>) -> Option<Request> {
        let peer = self.peers.get_mut(id)?;
        if ready.writable && peer.conn.is_writing() {
            self.write(id, cx);
        }
        let peer = self.peers.get_mut(id)?;
        let request = match peer.take(ready, cx) {
            Ok(request) => request,
            Err(gone) => {
                debug!(reason = %gone, "a control connection was closed");
                self.peers.remove(id);
                return None;
            }
        };
        self.settle(id, cx);
        request
    }

    /// Answers the request that a connection waits for, if it is still there.
    pub(crate) fn answer(&mut self, id: ControlId, response: &Response, cx: &mut Context<'_>) {
        if self.peers.contains_key(id) {
            self.answer_bytes(id, framed(response), cx);
        }
    }

    /// The same with an answer that is a frame already; nothing is one that is too long.
    pub(crate) fn answer_bytes(&mut self, id: ControlId, bytes: Option<Vec<u8>>, cx: &mut Context<'_>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        // What was read behind the request is taken up now, one request a turn: the socket would not report it again.
        peer.stage = Stage::Taking { more: peer.decoder.pending() > 0 };
        peer.active = cx.now;
        peer.answer(bytes);
        self.write(id, cx);
    }

    /// Keeps a connection until the daemon ends: its close tells the peer so.
    pub(crate) fn hold(&mut self, id: ControlId) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.held = true;
        }
    }

    /// Tells the poller whether the listener accepts.
    /// When epoll has no room for it, it stays away for a while.
    pub(crate) fn settle_listener(&mut self, key: Key, cx: &mut Context<'_>) -> io::Result<()> {
        let wanted = if self.short_until.is_some() { Interest::NONE } else { Interest::READ };
        cx.poller.set(&self.listener, key, &mut self.registered, wanted).inspect_err(|_| {
            self.short_until = Some(cx.now + SHORTAGE_PAUSE);
        })
    }

    /// Whether nobody is there any more to read an answer. One that only sends no more still is.
    pub(crate) fn has_gone(&mut self, id: ControlId) -> bool {
        let Some(peer) = self.peers.get_mut(id) else { return true };
        let (stream, _) = peer.conn.registration();
        let mut told = [PollFd::new(stream.as_fd(), PollFlags::empty())];
        let is_told = poll(&mut told, PollTimeout::ZERO).is_ok_and(|count| count > 0);
        let has_gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        is_told && told[0].revents().is_some_and(|told| told.intersects(has_gone))
    }

    /// Who is there.
    pub(crate) fn asker(&self, id: ControlId) -> Option<&Asker> {
        self.peers.get(id).map(|peer| &peer.asker)
    }

    /// Closes one connection.
    pub(crate) fn close(&mut self, id: ControlId) {
        self.peers.remove(id);
    }

    /// The earliest time at which [`Control::expire`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let impatient = self.peers.values().filter(|peer| peer.tries_patience()).map(|peer| peer.active + PATIENCE);
        let told = [&self.strangers, &self.crowd, &self.shortage].into_iter().filter_map(Repeated::next_deadline);
        impatient.chain(self.short_until).chain(told).min()
    }

    /// Closes those who took too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.peers.retain(|_, peer| {
            let keep = !peer.tries_patience() || peer.active + PATIENCE > now;
            if !keep {
                debug!("a control connection took too long and was closed");
            }
            keep
        });
        if self.short_until.is_some_and(|until| until <= now) {
            self.short_until = None;
        }
        if let Some(suppressed) = self.strangers.expire(now) {
            warn!(suppressed, "further control connections were refused");
        }
        if let Some(suppressed) = self.crowd.expire(now) {
            warn!(suppressed, "too many control connections: further new ones were closed");
        }
        if let Some(suppressed) = self.shortage.expire(now) {
            warn!(suppressed, "further control connections could not be accepted");
        }
    }

    fn write(&mut self, id: ControlId, cx: &mut Context<'_>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        match peer.conn.write() {
            Ok(0) => {}
            Ok(_) => peer.active = cx.now,
            Err(error) => {
                debug!(%error, "a control connection broke");
                self.peers.remove(id);
                return;
            }
        }
        if peer.stage == Stage::Closing && !peer.conn.is_writing() {
            self.peers.remove(id);
            return;
        }
        self.settle(id, cx);
    }

    fn settle(&mut self, id: ControlId, cx: &mut Context<'_>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let wanted = peer.interest();
        let (stream, registered) = peer.conn.registration();
        if let Err(error) = cx.poller.set(stream, (self.key)(id), registered, wanted) {
            warn!(%error, "a control connection could not be polled and was closed");
            self.peers.remove(id);
        }
    }

    /// The mode of the socket and its directory keeps others out already; this does too where somebody changed them.
    fn refusal(&self, stream: &UnixStream) -> Option<Refusal> {
        let Ok(peer) = getsockopt(stream, sockopt::PeerCredentials) else {
            return Some(Refusal::NotPermitted { uid: u32::MAX });
        };
        let known = peer.uid() == 0 || peer.uid() == Uid::effective().as_raw() || peer.gid() == self.group;
        let permitted = known || supplementary_groups(peer.pid()).contains(&self.group);
        (!permitted).then_some(Refusal::NotPermitted { uid: peer.uid() })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let own = fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.inode);
        if own {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Peer {
    /// Reads if it may, and gives a request if a whole one is there. The error says why the connection is over.
    fn take(&mut self, ready: Ready, cx: &mut Context<'_>) -> Result<Option<Request>, String> {
        let Stage::Taking { more } = self.stage else { return Ok(None) };
        if self.conn.is_writing() {
            return Ok(None);
        }
        if !more && ready.readable {
            match self.conn.read(cx.scratch) {
                Ok(Input::Bytes(count)) => {
                    self.active = cx.now;
                    self.decoder.push(&cx.scratch[..count]);
                }
                Ok(Input::Nothing) => {}
                Ok(Input::End) => return Err("the peer closed it".to_owned()),
                Err(error) => return Err(error.to_string()),
            }
        }
        let request = self.decoder.next().map_err(|error| error.to_string())?;
        self.stage = if request.is_some() { Stage::Asked } else { Stage::Taking { more: false } };
        Ok(request)
    }

    fn answer(&mut self, bytes: Option<Vec<u8>>) {
        match bytes {
            Some(bytes) => self.conn.send(bytes),
            None => {
                warn!("an answer is too long to be sent: its connection is closed");
                self.stage = Stage::Closing;
            }
        }
    }

    /// | stage | bytes to write | waits for |
    /// |---|---|---|
    /// | any | some | writable |
    /// | taking, a whole request may be in the buffer | none | writable, which it is: its next turn comes at once |
    /// | taking | none | readable |
    /// | asked | none | nothing: the answer comes from within |
    fn interest(&self) -> Interest {
        match self.stage {
            _ if self.conn.is_writing() => Interest::WRITE,
            Stage::Taking { more: true } => Interest::WRITE,
            Stage::Taking { more: false } => Interest::READ,
            Stage::Asked | Stage::Closing => Interest::NONE,
        }
    }

    /// Whether to close it would break a promise.
    fn is_owed_something(&self) -> bool {
        self.held || self.stage == Stage::Asked
    }

    /// Whether it is in the middle of something that only the peer can bring on. Between requests it may be silent.
    fn tries_patience(&self) -> bool {
        self.conn.is_writing() || self.stage != Stage::Asked && self.decoder.pending() > 0
    }
}

/// An answer as a frame; nothing when it is too long for one.
fn framed(response: &Response) -> Option<Vec<u8>> {
    frame(response).inspect_err(|error| warn!(%error, "an answer could not be written down")).ok()
}

/// Removes the socket of a dead daemon.
fn clear_the_way(path: &Path) -> Result<(), ControlError> {
    let failed = |source: io::Error| ControlError::Io { path: path.to_path_buf(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if found.mode() & nix::libc::S_IFMT != nix::libc::S_IFSOCK => {
            return Err(ControlError::NotASocket(path.to_path_buf()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(living) => {
            let pid = getsockopt(&living, sockopt::PeerCredentials).map_or(0, |peer| peer.pid());
            Err(ControlError::Taken { path: path.to_path_buf(), pid })
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

/// The further groups of a process. Empty when it is gone, which refuses it.
fn supplementary_groups(pid: i32) -> Vec<u32> {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return Vec::new() };
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    groups.unwrap_or_default().split_whitespace().filter_map(|group| group.parse().ok()).collect()
}
