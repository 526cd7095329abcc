//! A question of DNS to bytes, and whether bytes answer it (RFC 1035, 4.1). No sockets, and of an answer no more than a check
//! wants to know: whose it is, and its rcode.

use std::fmt;

use wire::dns::DnsCheck;

/// Bytes before the question.
const HEADER: usize = 12;

/// It is an answer.
const QR: u16 = 0x8000;

/// What kind of question it is; 0 is the usual one.
const OPCODE: u16 = 0x7800;

/// Recursion is desired: a resolver may refuse to tell what it only happens to know.
const RD: u16 = 0x0100;

/// The class of the internet.
const IN: u16 = 1;

/// A question with its id.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    id: u16,
    bytes: Vec<u8>,
}

/// How an answer turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rcode(u8);

impl Rcode {
    /// Whether the server did its work: it told what it found, or that there is no such name. One that failed (SERVFAIL),
    /// does not want to (REFUSED) or does not understand is of no use to its clients either.
    pub(super) fn is_good(self) -> bool {
        matches!(self.0, 0 | 3)
    }
}

impl fmt::Display for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 10] = [
            "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET",
            "NOTAUTH",
        ];
        match NAMES.get(usize::from(self.0)) {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Why bytes are no answer to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("it ends too soon")]
    Short,
    #[error("its id is another")]
    OtherId,
    #[error("it is no answer")]
    NotAnAnswer,
    #[error("its question is another")]
    OtherQuestion,
}

impl Question {
    pub(super) fn new(check: &DnsCheck, id: u16) -> Self {
        let mut bytes = Vec::with_capacity(64);
        for field in [id, RD, 1, 0, 0, 0] {
            bytes.extend(field.to_be_bytes());
        }
        for label in check.labels() {
            bytes.push(label.len() as u8);
            bytes.extend(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend(check.records.number().to_be_bytes());
        bytes.extend(IN.to_be_bytes());
        Self { id, bytes }
    }

    /// What is sent.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The rcode of the answer to this question, if these bytes are one.
    pub(super) fn answered(&self, bytes: &[u8]) -> Result<Rcode, NoAnswer> {
        let (header, rest) = bytes.split_at_checked(HEADER).ok_or(NoAnswer::Short)?;
        let [id, flags, questions] = [0, 2, 4].map(|at| u16::from_be_bytes([header[at], header[at + 1]]));
        if id != self.id {
            return Err(NoAnswer::OtherId);
        }
        if flags & QR == 0 || flags & OPCODE != 0 {
            return Err(NoAnswer::NotAnAnswer);
        }
        let rcode = Rcode((flags & 0x000f) as u8);
        // Who could not make sense of the question need not repeat it.
        if questions == 0 && !rcode.is_good() {
            return Ok(rcode);
        }
        let asked = &self.bytes[HEADER..];
        if questions == 1 && rest.len() < asked.len() {
            return Err(NoAnswer::Short);
        }
        // Capital letters are as good; the lengths in between, the type and the class are no letters.
        let is_same = questions == 1 && rest[..asked.len()].eq_ignore_ascii_case(asked);
        if is_same { Ok(rcode) } else { Err(NoAnswer::OtherQuestion) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::dns::RecordType;

    use super::*;

    fn question(name: &str, records: RecordType) -> Question {
        assert!(DnsCheck::is_name(name));
        Question::new(&DnsCheck { name: name.to_owned(), records }, 0xbeef)
    }

    /// An answer with this rcode and a record, as a server says it.
    fn answer(question: &Question, rcode: u8) -> Vec<u8> {
        let mut bytes = question.bytes().to_vec();
        bytes[2..8].copy_from_slice(&[0x81, 0x80 | rcode, 0, 1, 0, 1]);
        bytes.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x7f\0\0\x01");
        bytes
    }

    #[test]
    fn a_question_is_as_the_rfc_has_it() {
        assert_eq!(
            question("www.example.com", RecordType::Aaaa).bytes(),
            b"\xbe\xef\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03com\0\0\x1c\0\x01"
        );
        assert_eq!(
            question("www.example.com.", RecordType::Aaaa).bytes(),
            question("www.example.com", RecordType::Aaaa).bytes()
        );
        assert_eq!(question(".", RecordType::Ns).bytes(), b"\xbe\xef\x01\0\0\x01\0\0\0\0\0\0\0\0\x02\0\x01");
    }

    #[test]
    fn the_rcode_of_the_answer_is_told() {
        let asked = question("www.example.com", RecordType::A);
        for (rcode, name, is_good) in [
            (0, "NOERROR", true),
            (1, "FORMERR", false),
            (2, "SERVFAIL", false),
            (3, "NXDOMAIN", true),
            (4, "NOTIMP", false),
            (5, "REFUSED", false),
            (9, "NOTAUTH", false),
            (15, "15", false),
        ] {
            let found = asked.answered(&answer(&asked, rcode)).expect("an answer");
            assert_eq!((found.to_string().as_str(), found.is_good()), (name, is_good));
        }
        let mut shouted = answer(&asked, 0);
        shouted[HEADER..HEADER + 16].make_ascii_uppercase();
        assert_eq!(asked.answered(&shouted), Ok(Rcode(0)));
    }

    #[test]
    fn what_is_not_about_the_question_is_no_answer() {
        let asked = question("www.example.com", RecordType::A);
        let with = |at: usize, byte: u8| {
            let mut bytes = answer(&asked, 0);
            bytes[at] = byte;
            asked.answered(&bytes)
        };
        assert_eq!(asked.answered(asked.bytes()), Err(NoAnswer::NotAnAnswer), "it came back");
        assert_eq!(with(1, 0xee), Err(NoAnswer::OtherId));
        assert_eq!(with(2, 0x81 | 0x28), Err(NoAnswer::NotAnAnswer), "an update");
        assert_eq!(with(5, 0), Err(NoAnswer::OtherQuestion));
        assert_eq!(with(5, 2), Err(NoAnswer::OtherQuestion));
        assert_eq!(with(HEADER + 1, b'v'), Err(NoAnswer::OtherQuestion));
        assert_eq!(with(asked.bytes().len() - 3, 28), Err(NoAnswer::OtherQuestion), "another type");
        assert_eq!(with(asked.bytes().len() - 1, 3), Err(NoAnswer::OtherQuestion), "another class");
        assert_eq!(asked.answered(b"\xbe\xef\x80\x01\0\0\0\0\0\0\0\0"), Ok(Rcode(1)), "who did not understand");
        assert_eq!(asked.answered(b"\xbe\xef\x80\0\0\0\0\0\0\0\0\0"), Err(NoAnswer::OtherQuestion));
    }

    #[test]
    fn each_truncation_is_no_answer() {
        for name in [".", "www.example.com"] {
            let asked = question(name, RecordType::A);
            let whole = answer(&asked, 0);
            for length in 0..asked.bytes().len() {
                assert_eq!(asked.answered(&whole[..length]), Err(NoAnswer::Short), "{length} of {name}");
            }
            // What stands behind the question is not looked at.
            for length in asked.bytes().len()..=whole.len() {
                assert_eq!(asked.answered(&whole[..length]), Ok(Rcode(0)), "{length} of {name}");
            }
        }
    }

    proptest! {
        #[test]
        fn garbage_is_no_answer(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let asked = question("www.example.com", RecordType::A);
            // With the right id by chance it may be a failure that repeats no question.
            prop_assert!(!asked.answered(&bytes).is_ok_and(Rcode::is_good));
        }

        #[test]
        fn one_wrong_bit_is_no_answer_or_another_rcode(bit in 0usize..33 * 8) {
            let asked = question("www.example.com", RecordType::A);
            let mut bytes = answer(&asked, 0);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (at, letter) = (bit / 8, 1 << (bit % 8) == 0x20u8 && bytes[bit / 8].is_ascii_alphabetic());
            let flags_that_count_nothing = at == 2 && bit % 8 < 3 || at == 3 && bit % 8 > 3 || (6..12).contains(&at);
            match asked.answered(&bytes) {
                Ok(Rcode(0)) => prop_assert!(flags_that_count_nothing || letter, "bit {bit}"),
                Ok(_) => prop_assert!(at == 3 && bit % 8 < 4, "bit {bit}"),
                Err(_) => prop_assert!(!flags_that_count_nothing, "bit {bit}"),
            }
        }
    }
}
