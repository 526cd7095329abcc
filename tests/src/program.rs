//! Programs that are not ours, run beside a balancer.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::{Process, loopback, wait};

/// Runs a program to its end.
///
/// # Panics
/// When it fails.
pub fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} ended with {}: {errors}{out}", output.status);
    output
}

/// What a program said.
///
/// # Panics
/// When it is no text.
#[must_use]
pub fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("text")
}

/// A server program that listens, with its directory. It is killed when this is dropped.
#[derive(Debug)]
pub struct Program {
    address: SocketAddr,
    directory: TempDir,
    process: Process,
}

impl Program {
    /// Runs it at a port that is its own, for the address is; `command` is told where, and a directory.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(port: u16, command: impl FnOnce(SocketAddr, &Path) -> Command) -> Self {
        Self::start_when(port, command, |address| is_bound("tcp", address, "0A"))
    }

    /// The same for one that takes datagrams.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_datagrams(port: u16, command: impl FnOnce(SocketAddr, &Path) -> Command) -> Self {
        Self::start_when(port, command, |address| is_bound("udp", address, "07"))
    }

    fn start_when(
        port: u16,
        command: impl FnOnce(SocketAddr, &Path) -> Command,
        is_there: impl Fn(SocketAddr) -> bool,
    ) -> Self {
        let address = SocketAddr::new(loopback::fresh(), port);
        let directory = tempfile::tempdir().expect("a directory");
        let mut command = command(address, directory.path());
        let output = fs::File::create(directory.path().join("output")).expect("a file");
        let errors = output.try_clone().expect("a copy");
        let mut process = Process::spawn(command.stdin(Stdio::null()).stdout(output).stderr(errors));
        wait::until("the program listens", || {
            if let Some(status) = process.ended() {
                let said = fs::read_to_string(directory.path().join("output")).unwrap_or_default();
                panic!("{command:?} ended with {status}: {said}");
            }
            is_there(address)
        });
        Self { address, directory, process }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// Asks the kernel and not the program, which may take a connection that says nothing for a client.
fn is_bound(table: &str, address: SocketAddr, state: &str) -> bool {
    let SocketAddr::V4(address) = address else { panic!("programs listen on IPv4") };
    // proc_net_tcp: the address as one number of this machine, the port, and the state of a listener: 0A, or 07 where there
    // are no connections.
    let number = u32::from_ne_bytes(address.ip().octets());
    let wanted = format!("{number:08X}:{:04X} 00000000:0000 {state}", address.port());
    fs::read_to_string(format!("/proc/net/{table}")).expect("the table").contains(&wanted)
}
