//! A daemon that says what a test wants, on a socket of its own.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use tempfile::TempDir;
use wire::frame::{REQUEST_LIMIT, frame, greeting};
use wire::{Decoder, Request, Response};

/// The socket, and the requests that came.
pub(crate) struct Fake {
    directory: TempDir,
    requests: Receiver<Request>,
}

impl Fake {
    /// Answers one connection: `greeting` first, and each of `responses` to one request. It closes the connection when
    /// the other end does, or behind the last response if `ends`.
    fn start(mut greeting: Vec<u8>, responses: Vec<Vec<u8>>, ends: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("s")).expect("a socket");
        let (sender, requests) = mpsc::channel();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut decoder = Decoder::new(REQUEST_LIMIT);
            for response in responses {
                if let Some(request) = read(&mut stream, &mut decoder) {
                    // Nobody may be interested.
                    let _ = sender.send(request);
                }
                let _ = stream.write_all(&[std::mem::take(&mut greeting), response].concat());
            }
            if !ends {
                let _ = stream.read(&mut [0; 16]);
            }
        });
        Self { directory, requests }
    }

    /// A daemon that gives this answer.
    pub(crate) fn answering(response: &Response) -> Self {
        Self::answering_each(std::slice::from_ref(response))
    }

    /// A daemon that gives these answers, one after the other.
    pub(crate) fn answering_each(responses: &[Response]) -> Self {
        Self::start(greeting(), responses.iter().map(|response| frame(response).expect("short")).collect(), false)
    }

    /// A daemon that ends behind this answer.
    pub(crate) fn ending(response: &Response) -> Self {
        Self::start(greeting(), vec![frame(response).expect("short")], true)
    }

    /// A daemon of another version.
    pub(crate) fn of_version(version: u8) -> Self {
        let mut bytes = greeting();
        bytes[8] = version;
        Self::start(bytes, vec![Vec::new()], true)
    }

    /// Something that is no daemon.
    pub(crate) fn saying(bytes: &[u8]) -> Self {
        Self::start(Vec::new(), vec![bytes.to_vec()], true)
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    /// Where it keeps its socket.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What it was asked.
    pub(crate) fn request(&self) -> Request {
        self.requests.recv().expect("a request")
    }
}

fn read(stream: &mut UnixStream, decoder: &mut Decoder<Request>) -> Option<Request> {
    let mut chunk = [0; 1024];
    loop {
        if let Some(request) = decoder.next().expect("a request") {
            return Some(request);
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(count) => decoder.push(&chunk[..count]),
        }
    }
}
