//! What balancerd and the programs that steer it say to each other, and where they meet.
//!
//! [`address`] checks and compares addresses, [`control`] holds the requests and responses, [`report`] what the daemon
//! tells of itself, [`frame`] the codec (it does no I/O), [`client`] the blocking client that balancerctl and the tests
//! use, [`place`] the paths that both programs must agree on, [`settings`] what a balancer is set to, [`health`],
//! [`dns`], [`connection`] and [`flow`] the parts of that which say how servers are checked, how sockets are and how
//! datagrams go, [`difference`] in what two settings differ, [`event`] what has happened to servers, [`quantity`] how
//! people write times and sizes, [`printable`] what a terminal is spared, [`logfmt`] how values stand in a line of the log. Nothing here knows how a request is carried out: that is balancerd's model.

pub mod address;
pub mod client;
pub mod connection;
pub mod control;
pub mod difference;
pub mod dns;
mod encoding;
pub mod event;
pub mod flow;
pub mod frame;
pub mod health;
mod logfmt;
mod named;
pub mod place;
mod printable;
pub mod quantity;
pub mod report;
pub mod settings;

pub use client::{Client, ClientError};
pub use control::{Change, Refusal, Request, Response};
pub use encoding::EncodingError;
pub use frame::{Decoder, FrameError, VERSION};
pub use logfmt::logfmt;
pub use place::{Environment, PlaceError, Places};
pub use printable::printable;
pub use settings::Settings;
