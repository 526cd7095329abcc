//! The harness of the black-box tests: starts the two programs, servers and clients, and waits for conditions.
//!
//! A test is meant to be three lines: a [`Balancer`] with some [`Server`]s, what a [`Client`] does, and *who* was
//! given which bytes. Nothing here sleeps: [`wait`] is the one place that looks again until something is true. Each
//! balancer and each server has a loopback address of its own ([`loopback`]), so tests that run side by side never
//! meet, and everything ends with the value that stands for it, on a panic too.

pub mod balancer;
pub mod client;
pub mod config;
pub mod datagrams;
pub mod hold;
pub mod load;
pub mod loopback;
pub mod namespace;
pub mod noise;
pub mod process;
pub mod program;
pub mod programs;
pub mod proxies;
pub mod questions;
pub mod server;
pub mod unprivileged;
pub mod wait;

pub use balancer::{Balancer, Setup};
pub use client::Client;
pub use datagrams::{DatagramClient, DatagramServer};
pub use process::Process;
pub use server::Server;

/// Sizes around which buffers begin, end and wrap.
pub const SIZES: [usize; 14] =
    [0, 1, 2, 3, 1447, 1448, 4096, 65_535, 65_536, 65_537, 131_072, 1_000_003, 2_097_152, 5_000_011];
