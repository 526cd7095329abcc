//! The consistent-hash ring: which server a key belongs to, as a function of the *set* of servers and their weights.
//!
//! A server owns points in the space of 64-bit hashes, `weight` times [`POINTS_PER_WEIGHT`] of them, made from its address
//! and port alone. A key belongs to the server of the first point at or after it, around the end. Points are sorted by
//! (hash, server), so the order in which servers came and went, the machine and the version of the program leave no trace
//! in a ring: balancers that hold the same set agree on every client without talking. What exactly is hashed is written
//! down as "ring format 1" in `docs/ring-format-1.md`, with golden vectors in `ring/golden/`.
//!
//! This crate knows no sockets, pools or health: whoever holds the ring puts in the servers that are eligible. It has no
//! dependency beyond the hash, no clock, no randomness and no state of its own.
//!
//! ```
//! use std::net::{IpAddr, SocketAddr};
//! use ring::{Identity, Key, POINTS_PER_WEIGHT, Ring};
//!
//! let mut ring = Ring::new(POINTS_PER_WEIGHT);
//! for (tag, addr) in ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"].into_iter().enumerate() {
//!     ring.set(Identity::from(addr.parse::<SocketAddr>()?), 1, tag)?;
//! }
//! let key = Key::of_ip("192.0.2.7".parse::<IpAddr>()?);
//! let server = ring.pick(key).expect("the ring has servers");
//! assert_eq!(ring.successors(key).next(), Some(server));
//!
//! // What would removing it move? Its own share, and nothing else.
//! assert_eq!(ring.plan(server.identity, 0)?.moved, ring.share(server.identity));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod diff;
mod digest;
mod error;
mod identity;
mod index;
mod key;
mod plan;
mod point;
mod ring;
mod room;
mod share;
mod successors;

pub use diff::{Diff, Move};
pub use digest::{Digest, FORMAT};
pub use error::RingError;
pub use identity::Identity;
pub use key::Key;
pub use ring::{MAX_POINTS, MAX_WEIGHT, Member, POINTS_PER_WEIGHT, Ring};
pub use share::Share;
pub use successors::Successors;
