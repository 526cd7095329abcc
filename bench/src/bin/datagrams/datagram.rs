//! A datagram of the load: whose it is, and whether it came as it was sent.
//!
//! Every byte follows from the label and the length, so that a datagram that was cut, merged with another one or
//! changed anywhere has no label any more.

/// The shortest datagram: the label, and some of the pattern that confirms it.
pub(crate) const LEAST_BYTES: usize = 24;
/// The pattern is made of words of so many bytes, and so every length is a multiple of it.
pub(crate) const WORD: usize = 8;

const ANSWER: u64 = 1 << 32;

/// Which datagram it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    /// The measurement: what is left of an earlier one belongs to nobody.
    pub(crate) run: u32,
    pub(crate) flow: u32,
    /// Its number in its flow, from 0. An answer has that of its question.
    pub(crate) sequence: u32,
    pub(crate) way: Way,
}

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From a client to a server.
    Question,
    /// From a server to a client.
    Answer,
}

impl Label {
    /// Makes all of `bytes` this datagram.
    ///
    /// # Panics
    /// When the length is none of a datagram of the load.
    pub(crate) fn write(self, bytes: &mut [u8]) {
        assert!(bytes.len() >= LEAST_BYTES && bytes.len().is_multiple_of(WORD), "no length of a datagram");
        let words = self.words();
        let mut pattern = Pattern::of(words, bytes.len());
        let (head, body) = bytes.split_at_mut(2 * WORD);
        head[..WORD].copy_from_slice(&words[0].to_le_bytes());
        head[WORD..].copy_from_slice(&words[1].to_le_bytes());
        for chunk in body.chunks_exact_mut(WORD) {
            chunk.copy_from_slice(&pattern.word().to_le_bytes());
        }
    }

    /// The label of a datagram; none of one that is not as it was written.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < LEAST_BYTES || !bytes.len().is_multiple_of(WORD) {
            return None;
        }
        let mut words = bytes.chunks_exact(WORD).map(|chunk| u64::from_le_bytes(chunk.try_into().expect("so long")));
        let head = [words.next()?, words.next()?];
        let mut pattern = Pattern::of(head, bytes.len());
        // All are compared, not only those up to the first difference: that is what a processor does fast.
        let differences = words.fold(0, |differences, word| differences | (word ^ pattern.word()));
        (differences == 0).then_some(Self {
            run: (head[0] >> 32) as u32,
            flow: head[0] as u32,
            sequence: head[1] as u32,
            way: if head[1] & ANSWER == 0 { Way::Question } else { Way::Answer },
        })
    }

    fn words(self) -> [u64; 2] {
        let answer = if self.way == Way::Answer { ANSWER } else { 0 };
        [u64::from(self.run) << 32 | u64::from(self.flow), u64::from(self.sequence) | answer]
    }
}

/// What follows the label, word by word.
struct Pattern(u64);

impl Pattern {
    fn of(label: [u64; 2], length: usize) -> Self {
        // The steps of splitmix64, so that labels that differ in one bit have nothing in common.
        let mix = |value: u64| {
            let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            value ^ (value >> 31)
        };
        Self(mix(mix(label[0]) ^ mix(label[1]).wrapping_add(length as u64)))
    }

    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label = Label { run: 7, flow: u32::MAX, sequence: u32::MAX - 1, way: Way::Answer };

    fn datagram(label: Label, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        label.write(&mut bytes);
        bytes
    }

    #[test]
    fn a_datagram_says_which_it_is() {
        for label in [LABEL, Label { way: Way::Question, run: 0, flow: 0, sequence: 0 }] {
            for length in [LEAST_BYTES, 64, 1200] {
                assert_eq!(Label::read(&datagram(label, length)), Some(label));
            }
        }
    }

    #[test]
    fn one_changed_bit_is_seen_wherever_it_is() {
        let whole = datagram(LABEL, 64);
        for bit in 0..64 * 8 {
            let mut changed = whole.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Label::read(&changed), None, "bit {bit}");
        }
    }

    #[test]
    fn a_datagram_that_was_cut_or_merged_has_no_label() {
        let [one, other] = [datagram(LABEL, 64), datagram(Label { sequence: 1, ..LABEL }, 64)];
        for length in 0..one.len() {
            assert_eq!(Label::read(&one[..length]), None, "{length} bytes");
        }
        assert_eq!(Label::read(&[one.clone(), other.clone()].concat()), None);
        assert_eq!(Label::read(&[&one[..32], &other[32..]].concat()), None);
    }
}
