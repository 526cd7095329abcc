//! What the benchmark programs share: the load and its clients, programs that they start and end, servers to relay to, and
//! tables of medians. What is measured, and how, is in each program.

pub mod client;
pub mod clock;
pub mod interrupt;
pub mod load;
pub mod paced;
pub mod placement;
pub mod process;
pub mod response;
pub mod rounds;
pub mod servers;
pub mod tables;
