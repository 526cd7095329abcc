//! What a check by DNS asks for: a name and a type of records. A part of [`health`](crate::health); the bytes of question
//! and answer are the daemon's affair.

use serde::{Deserialize, Serialize};

use crate::named::named;

/// Bytes of a name at most, as a question has it (RFC 1035, 2.3.4).
const MAX_NAME: usize = 255;

/// Bytes of a part of a name at most.
const MAX_LABEL: usize = 63;

/// A check by DNS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsCheck {
    /// The name that is asked for, such as `www.example.com`, with or without a dot at its end; `.` is the root.
    pub name: String,
    /// The records of it that are asked for.
    #[serde(rename = "type")]
    pub records: RecordType,
}

impl Default for DnsCheck {
    fn default() -> Self {
        Self { name: ".".to_owned(), records: RecordType::Ns }
    }
}

impl DnsCheck {
    /// Whether a text can be a name: parts of 1 to 63 letters, digits, `-` and `_` with dots between them, or `.` alone.
    #[must_use]
    pub fn is_name(text: &str) -> bool {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let is_label = |label: &str| (1..=MAX_LABEL).contains(&label.len()) && label.bytes().all(is_plain);
        // Each part with its length before it, and the length 0 of the root.
        let length = text.strip_suffix('.').unwrap_or(text).len() + 2;
        text == "." || length <= MAX_NAME && labels(text).all(is_label)
    }

    /// The parts of the name; of the root there are none.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        labels(&self.name)
    }
}

fn labels(name: &str) -> impl Iterator<Item = &str> {
    let is_root = name == ".";
    name.strip_suffix('.').unwrap_or(name).split('.').filter(move |_| !is_root)
}

/// A type of records (RFC 1035, 3596, 2782).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum RecordType {
    /// An IPv4 address.
    A,
    /// The servers of a zone.
    Ns,
    /// Another name of the same.
    Cname,
    /// The beginning of a zone.
    Soa,
    /// The name of an address.
    Ptr,
    /// Who takes mail.
    Mx,
    /// Text.
    Txt,
    /// An IPv6 address.
    Aaaa,
    /// Who has a service.
    Srv,
}

named!(
    RecordType,
    A = "A",
    Ns = "NS",
    Cname = "CNAME",
    Soa = "SOA",
    Ptr = "PTR",
    Mx = "MX",
    Txt = "TXT",
    Aaaa = "AAAA",
    Srv = "SRV",
);

impl RecordType {
    /// The number in questions.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::A => 1,
            Self::Ns => 2,
            Self::Cname => 5,
            Self::Soa => 6,
            Self::Ptr => 12,
            Self::Mx => 15,
            Self::Txt => 16,
            Self::Aaaa => 28,
            Self::Srv => 33,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_a_question_can_have() {
        let long = [["x".repeat(63).as_str(); 3].join("."), "x".repeat(61)].join(".");
        assert_eq!(long.len(), 253);
        for good in [".", "com", "com.", "www.example.com", "_dns.a-b.example.", "7.0.0.127.in-addr.arpa", &long] {
            assert!(DnsCheck::is_name(good), "{good}");
        }
        assert!(DnsCheck::is_name(&format!("{long}.")) && !DnsCheck::is_name(&format!("{long}x")));
        for bad in ["", "..", "a..b", ".a", "a b", "ä.example", "a\0", &"x".repeat(64)] {
            assert!(!DnsCheck::is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_name_has_its_parts() {
        for (name, parts) in [(".", &[][..]), ("com", &["com"]), ("www.example.", &["www", "example"])] {
            let check = DnsCheck { name: name.to_owned(), ..DnsCheck::default() };
            assert_eq!(check.labels().collect::<Vec<_>>(), parts, "{name}");
        }
    }
}
