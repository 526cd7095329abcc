//! The blocking control client: balancerctl and the tests steer a daemon with it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::control::{Request, Response};
use crate::encoding::EncodingError;
use crate::frame::{Decoder, FrameError, RESPONSE_LIMIT, VERSION, frame, greeting};

/// How long an answer may take that waits for nothing. The daemon answers within milliseconds.
const AT_ONCE: Duration = Duration::from_secs(5);

/// How long an answer may take that waits for the state file, a configuration file or a ring.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    decoder: Decoder<Response>,
    path: PathBuf,
    /// How long one answer may take, if somebody has said so.
    timeout: Option<Duration>,
}

/// Why a daemon could not be asked. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no balancer answers at {}; start one with `balancerctl start ADDR PORT`, or name its socket with --socket PATH", .0.display())]
    NoDaemon(PathBuf),
    /// The socket may not be opened.
    #[error("permission to use {} is missing; run as root, as the user that the balancer runs as, or join the socket's group", .0.display())]
    NotPermitted(PathBuf),
    /// The daemon speaks another version.
    #[error(
        "the balancer at {} speaks version {theirs} of the control protocol, this program version {VERSION}; use the balancerctl that was installed with it", .path.display()
    )]
    Version {
        /// The socket.
        path: PathBuf,
        /// What the daemon speaks.
        theirs: u16,
    },
    /// The answer is none.
    #[error("what answers at {} is not a balancer: {source}", .path.display())]
    Garbled {
        /// The socket.
        path: PathBuf,
        /// What is wrong with the answer.
        source: FrameError,
    },
    /// The request could not be written down.
    #[error("the request cannot be sent: {0}")]
    Request(#[from] EncodingError),
    /// The daemon went away before it answered.
    #[error("the balancer at {} closed the connection without an answer; its log says why", .0.display())]
    Closed(PathBuf),
    /// The daemon has ended before it answered, and does not listen any more.
    #[error("the balancer at {} closed the connection without an answer, and has ended; its log says why", .0.display())]
    Ended(PathBuf),
    /// The daemon did not answer in time.
    #[error("the balancer at {} did not answer in time: its process may be halted, or the machine overloaded; --timeout gives it longer", .0.display())]
    TimedOut(PathBuf),
    /// Anything else that the operating system said.
    #[error("talking to the balancer at {} failed: {source}", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl Client {
    /// Connects to the daemon at `path`.
    ///
    /// # Errors
    /// When nobody listens there, or this user may not connect.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| failure(path, source))?;
        Ok(Self { stream, decoder: Decoder::new(RESPONSE_LIMIT), path: path.to_path_buf(), timeout: None })
    }

    /// With so much time for each answer. `None`: as much as the request takes at most, where nothing hangs.
    #[must_use]
    pub fn within(self, timeout: Option<Duration>) -> Self {
        Self { timeout, ..self }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// When the daemon cannot be asked or its answer cannot be read. A refusal is an answer, not an error.
    pub fn call(&mut self, request: &Request) -> Result<Response, ClientError> {
        self.patience(Some(self.timeout.unwrap_or(usual_time(request))))?;
        let mut bytes = if self.decoder.greeted() { Vec::new() } else { greeting() };
        bytes.extend(frame(request)?);
        // A daemon that refuses to talk answers and closes without reading: its answer says more than this error.
        let sent = self.stream.write_all(&bytes);
        match self.answer() {
            Err(ClientError::Closed(_)) => {
                if let Err(ClientError::NoDaemon(path)) = Self::connect(&self.path) {
                    return Err(ClientError::Ended(path));
                }
                sent.map_err(|source| failure(&self.path, source))?;
                Err(ClientError::Closed(self.path.clone()))
            }
            answer => answer,
        }
    }

    /// Waits until the daemon closes the connection, as it does when it ends.
    ///
    /// # Errors
    /// When it has not within `limit`, or the connection breaks in another way.
    pub fn wait_for_end(mut self, limit: Option<Duration>) -> Result<(), ClientError> {
        self.patience(limit)?;
        loop {
            match self.stream.read(&mut [0; 512]) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(failure(&self.path, error)),
            }
        }
    }

    fn answer(&mut self) -> Result<Response, ClientError> {
        let mut chunk = [0; 16 * 1024];
        loop {
            match self.decoder.next() {
                Ok(Some(response)) => return Ok(response),
                Ok(None) => {}
                Err(FrameError::Version { theirs }) => {
                    return Err(ClientError::Version { path: self.path.clone(), theirs });
                }
                Err(source) => return Err(ClientError::Garbled { path: self.path.clone(), source }),
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ClientError::Closed(self.path.clone())),
                Ok(count) => self.decoder.push(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failure(&self.path, error)),
            }
        }
    }

    fn patience(&self, limit: Option<Duration>) -> Result<(), ClientError> {
        self.stream
            .set_read_timeout(limit)
            .and_then(|()| self.stream.set_write_timeout(limit))
            .map_err(|source| failure(&self.path, source))
    }
}

/// How long the answer to a request takes at most, where nothing hangs.
fn usual_time(request: &Request) -> Duration {
    match request {
        Request::Change { .. } | Request::Reload { .. } => ANSWER_TIMEOUT,
        _ => AT_ONCE,
    }
}

fn failure(path: &Path, source: io::Error) -> ClientError {
    let path = path.to_path_buf();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoDaemon(path),
        io::ErrorKind::PermissionDenied => ClientError::NotPermitted(path),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::TimedOut(path),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => ClientError::Closed(path),
        _ => ClientError::Io { path, source },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// A daemon that answers one connection with `bytes` after it has read something. It listens as long as what comes last
    /// is there.
    fn answering(bytes: Vec<u8>) -> (tempfile::TempDir, PathBuf, UnixListener) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).expect("a socket");
        let kept = listener.try_clone().expect("a descriptor");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            drop(listener);
            let mut seen = [0; 512];
            assert!(stream.read(&mut seen).expect("a request") > 0);
            stream.write_all(&bytes).expect("an answer is taken");
        });
        (directory, path, kept)
    }

    fn ask(bytes: Vec<u8>) -> Result<Response, ClientError> {
        let (_directory, path, _listens) = answering(bytes);
        Client::connect(&path)?.call(&Request::Status)
    }

    #[test]
    fn an_answer_is_given() {
        let refused = Response::Refused(crate::control::Refusal::Stopping);
        let bytes = [greeting(), frame(&refused).expect("short")].concat();
        assert_eq!(ask(bytes).expect("an answer"), refused);
    }

    #[test]
    fn another_version_says_which() {
        let mut bytes = greeting();
        bytes[8] = 7;
        assert!(matches!(ask(bytes), Err(ClientError::Version { theirs: 7, .. })));
    }

    #[test]
    fn a_daemon_that_has_ended_is_no_silent_one() {
        let (_directory, path, listens) = answering(Vec::new());
        let mut client = Client::connect(&path).expect("it listens");
        drop(listens);
        // The thread's own has gone before it reads the request.
        assert!(matches!(client.call(&Request::Status), Err(ClientError::Ended(_))));
    }

    #[test]
    fn silence_and_nonsense_are_told_apart() {
        assert!(matches!(ask(Vec::new()), Err(ClientError::Closed(_))));
        assert!(matches!(ask(b"HTTP/1.1 400 Bad Request\r\n".to_vec()), Err(ClientError::Garbled { .. })));
    }

    #[test]
    fn no_daemon_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("none");
        assert!(matches!(Client::connect(&path), Err(ClientError::NoDaemon(at)) if at == path));
        drop(UnixListener::bind(&path).expect("a socket"));
        assert!(matches!(Client::connect(&path), Err(ClientError::NoDaemon(_))), "a stale socket");
    }
}
