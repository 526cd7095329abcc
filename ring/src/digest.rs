//! One number for what a ring decides, so that two balancers can see whether they agree. Not a defence against somebody
//! who makes up servers to get equal numbers: the hash is no cryptographic one.

use std::fmt;
use std::num::NonZeroU32;

use xxhash_rust::xxh3::xxh3_64;

use crate::identity::Identity;

/// The version of "ring format", the document that says what is hashed. It is part of every digest.
pub const FORMAT: u32 = 1;

/// Equal for rings of the same servers, weights and points, whatever their tags: they send every key to the same server.
/// Different, but for a chance of 2^-64, for others, and for another number of points per weight and another ring format.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Digest(u64);

impl Digest {
    /// xxh3-64 with seed 0 over, all integers big-endian: the four bytes `ring`, the format as 4 bytes, the points per
    /// weight as 4, the number of servers as 4, and for each server in the order of its identity the 18 bytes of the
    /// identity and 4 of the weight; then for each server that is there in part, in the same order, the 18 bytes of the
    /// identity and 4 of the number of its points ("ring format 1").
    pub(crate) fn of(
        points_per_weight: NonZeroU32,
        servers: impl ExactSizeIterator<Item = (Identity, u32)>,
        partial: impl Iterator<Item = (Identity, u32)>,
    ) -> Self {
        let mut bytes = Vec::with_capacity(16 + 22 * servers.len());
        bytes.extend_from_slice(b"ring");
        bytes.extend_from_slice(&FORMAT.to_be_bytes());
        bytes.extend_from_slice(&points_per_weight.get().to_be_bytes());
        let count = u32::try_from(servers.len()).expect("a server has a point, and points are limited to less");
        bytes.extend_from_slice(&count.to_be_bytes());
        // The number of servers says where the second list begins. Without one, the bytes are those of the first alone.
        for (identity, number) in servers.chain(partial) {
            bytes.extend_from_slice(identity.as_bytes());
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        Self(xxh3_64(&bytes))
    }

    /// The digest that a ring of these servers and weights would have, without building it. Servers of weight 0 are left
    /// out; the order does not matter, and none may be there twice.
    #[must_use]
    pub fn of_servers(points_per_weight: NonZeroU32, servers: impl IntoIterator<Item = (Identity, u32)>) -> Self {
        let mut servers: Vec<(Identity, u32)> = servers.into_iter().filter(|(_, weight)| *weight > 0).collect();
        servers.sort_unstable();
        Self::of(points_per_weight, servers.into_iter(), std::iter::empty())
    }

    /// The number.
    #[must_use]
    pub fn value(self) -> u64 {
        self.0
    }
}

/// The 16 hexadecimal digits of the number.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::{POINTS_PER_WEIGHT, Ring};

    #[test]
    fn the_digest_of_servers_is_that_of_their_ring() {
        let server = |number: u8| Identity::from(SocketAddr::from(([10, 0, 0, number], 80)));
        let servers = [(server(3), 2), (server(1), 1), (server(2), 0)];
        let mut ring = Ring::new(POINTS_PER_WEIGHT);
        for (identity, weight) in servers {
            ring.set(identity, weight, ()).unwrap();
        }
        assert_eq!(Digest::of_servers(POINTS_PER_WEIGHT, servers), ring.digest());
    }
}
