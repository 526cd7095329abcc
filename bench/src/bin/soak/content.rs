//! The bytes of a session: a function of its number, their direction and their offset, so that whoever gets them knows
//! whether they are the right ones, in the right place.

/// A direction of a session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

/// What one side has sent so far, or the other has got.
pub(crate) struct Stream {
    seed: u64,
    offset: u64,
    expected: Vec<u8>,
}

impl Stream {
    /// The stream of a session, at its beginning.
    pub(crate) fn new(session: u64, way: Way) -> Self {
        let seed = mix(session.wrapping_mul(2).wrapping_add(u64::from(way == Way::Down)));
        Self { seed, offset: 0, expected: Vec::new() }
    }

    /// Bytes so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next so many bytes.
    pub(crate) fn next(&mut self, count: usize) -> &[u8] {
        let (first, skipped) = (self.offset / 8, (self.offset % 8) as usize);
        self.expected.clear();
        let words = (skipped + count).div_ceil(8) as u64;
        for index in first..first + words {
            self.expected.extend_from_slice(&mix(self.seed.wrapping_add(index.wrapping_mul(GOLDEN))).to_le_bytes());
        }
        self.offset += count as u64;
        &self.expected[skipped..skipped + count]
    }

    /// Takes these as the next bytes; the offset of the first that is wrong, if one is.
    pub(crate) fn check(&mut self, bytes: &[u8]) -> Option<u64> {
        let begin = self.offset;
        let expected = self.next(bytes.len());
        if bytes == expected {
            return None;
        }
        bytes.iter().zip(expected).position(|(got, wanted)| got != wanted).map(|at| begin + at as u64)
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_are_the_same_stream() {
        let whole = Stream::new(7, Way::Up).next(1000).to_vec();
        for piece in [1, 3, 8, 17, 1000] {
            let mut stream = Stream::new(7, Way::Up);
            for part in whole.chunks(piece) {
                assert_eq!(stream.check(part), None);
            }
            assert_eq!(stream.offset(), 1000);
        }
    }

    #[test]
    fn a_byte_that_is_wrong_missing_twice_there_or_anothers_is_found() {
        let whole = Stream::new(7, Way::Up).next(1000).to_vec();
        let mut wrong = whole.clone();
        wrong[500] ^= 1;
        assert_eq!(Stream::new(7, Way::Up).check(&wrong), Some(500));
        let missing = [&whole[..300], &whole[301..]].concat();
        assert!(Stream::new(7, Way::Up).check(&missing).is_some_and(|at| at >= 300));
        let twice = [&whole[..300], &whole[292..]].concat();
        assert!(Stream::new(7, Way::Up).check(&twice).is_some_and(|at| at >= 300));
        assert!(Stream::new(8, Way::Up).check(&whole).is_some());
        assert!(Stream::new(7, Way::Down).check(&whole).is_some());
    }
}
