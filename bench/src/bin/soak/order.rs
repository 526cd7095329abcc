//! What is to happen in a session. The client draws it and says it to the server in the first bytes.

use fastrand::Rng;

/// Bytes of an order.
pub(crate) const LENGTH: usize = 48;

const MAGIC: u64 = 0x6b61_6f73_2d72_6472;

/// How a session ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The client says all, then that it has, and then the server ends.
    ClientFirst,
    /// The server says all, then that it has, and then the client ends.
    ServerFirst,
    /// The client resets when it has so many bytes.
    ClientResets(u64),
    /// The server resets when it has sent so many bytes.
    ServerResets(u64),
}

/// An order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Order {
    /// The number of the session.
    pub(crate) session: u64,
    /// Bytes that the client says.
    pub(crate) up: u64,
    /// Bytes that the server says.
    pub(crate) down: u64,
    /// The server gives back what it gets, instead of bytes of its own.
    pub(crate) echo: bool,
    /// The client, or the server, reads in small pieces and pauses between them.
    pub(crate) client_is_slow: bool,
    pub(crate) server_is_slow: bool,
    /// Nothing but an administrator may cut it short.
    pub(crate) strict: bool,
    pub(crate) end: End,
}

impl Order {
    /// Draws one.
    pub(crate) fn draw(session: u64, strict: bool, rng: &mut Rng) -> Self {
        let size = |rng: &mut Rng| match rng.u32(0..100) {
            0..10 => 0,
            10..60 => rng.u64(1..4_000),
            60..88 => rng.u64(4_000..260_000),
            88..97 => rng.u64(260_000..3_000_000),
            _ => rng.u64(3_000_000..16_000_000),
        };
        let (up, down) = (size(rng), size(rng));
        let order = Self {
            session,
            up,
            down,
            echo: false,
            client_is_slow: false,
            server_is_slow: false,
            strict,
            end: End::ClientFirst,
        };
        let slow = rng.u32(0..100) < 6;
        match rng.u32(0..100) {
            // A slow reader of much holds a session for seconds.
            _ if slow => {
                let (up, down) = (up.min(300_000), down.min(300_000));
                Self { up, down, client_is_slow: rng.bool(), server_is_slow: rng.bool(), ..order }
            }
            0..30 => Self { down: up, echo: true, ..order },
            30..60 => order,
            60..80 => Self { end: End::ServerFirst, ..order },
            80..90 => Self { end: End::ClientResets(rng.u64(0..=down)), ..order },
            // The first byte is there, or it would be a failure of the server that the balancer is to hold against it.
            _ => Self { down: down.max(1), end: End::ServerResets(rng.u64(1..=down.max(1))), ..order },
        }
    }

    /// As the first bytes of a session.
    pub(crate) fn encode(&self) -> [u8; LENGTH] {
        let (kind, after) = match self.end {
            End::ClientFirst => (0, 0),
            End::ServerFirst => (1, 0),
            End::ClientResets(after) => (2, after),
            End::ServerResets(after) => (3, after),
        };
        let flags = [self.echo, self.client_is_slow, self.server_is_slow, self.strict];
        let flags = flags.iter().rev().fold(0, |bits, flag| bits << 1 | u64::from(*flag));
        let mut bytes = [0; LENGTH];
        let words = [MAGIC, self.session, self.up, self.down, flags << 2 | kind, after];
        for (place, word) in bytes.chunks_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// From the first bytes of a session; nothing when they are none.
    pub(crate) fn decode(bytes: &[u8; LENGTH]) -> Option<Self> {
        let word = |index: usize| u64::from_le_bytes(bytes[index * 8..][..8].try_into().expect("eight bytes"));
        let (flags, after) = (word(4), word(5));
        let end = match flags & 3 {
            0 => End::ClientFirst,
            1 => End::ServerFirst,
            2 => End::ClientResets(after),
            _ => End::ServerResets(after),
        };
        let flag = |bit: u32| flags >> (2 + bit) & 1 == 1;
        (word(0) == MAGIC && flags < 64).then_some(Self {
            session: word(1),
            up: word(2),
            down: word(3),
            echo: flag(0),
            client_is_slow: flag(1),
            server_is_slow: flag(2),
            strict: flag(3),
            end,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_as_it_was_written() {
        let mut rng = Rng::with_seed(1);
        for session in 0..1000 {
            let order = Order::draw(session, session % 2 == 0, &mut rng);
            assert_eq!(Order::decode(&order.encode()), Some(order));
        }
        assert_eq!(Order::decode(&[0; LENGTH]), None);
    }
}
