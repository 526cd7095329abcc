//! What a pool is set to as far as the health of its servers is concerned: how they are checked, what failing clients
//! mean, and what follows when one is down. A part of [`settings`](crate::settings). Times are milliseconds.

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::dns::DnsCheck;
use crate::named::named;

/// Bytes that a check sends, or expects, at most.
pub const MAX_CHECK_TEXT: usize = 1024;

/// Ranges of statuses that a check accepts at most.
pub const MAX_STATUSES: usize = 16;

/// The shortest interval, timeout and ejection: what is shorter asks for nothing but checks.
pub const MIN_TIME_MS: u64 = 10;

/// The longest interval and ejection: whoever gives more has mistaken the unit.
pub const MAX_TIME_MS: u64 = 24 * 60 * 60 * 1000;

/// The longest that a check may take: it holds a descriptor for that time.
pub const MAX_TIMEOUT_MS: u64 = 60 * 60 * 1000;

/// Results in a row that are waited for at most.
pub const MAX_IN_A_ROW: u32 = 100;

/// Failures of clients in a row that are waited for at most.
pub const MAX_EJECT_FAILURES: u32 = 1_000_000;

/// Keys of a pool that mean nothing without checks, and that a file has only with them.
pub const OF_CHECKS: [&str; 8] = [
    "check_interval",
    "check_undecided_interval",
    "check_down_interval",
    "check_timeout",
    "check_rise",
    "check_fall",
    "check_port",
    "check_initial",
];

/// Keys of a pool that mean something for the checks `send` and `udp` alone.
pub const OF_SEND: [&str; 4] = ["check_send", "check_send_hex", "check_expect", "check_expect_hex"];

/// Keys of a pool that mean something for the check `http` alone.
pub const OF_HTTP: [&str; 4] = ["check_method", "check_path", "check_host", "check_status"];

/// Keys of a pool that mean something for the check `dns` alone.
pub const OF_DNS: [&str; 2] = ["check_dns_name", "check_dns_type"];

/// The health of a pool's servers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[serde(deny_unknown_fields)]
pub struct HealthSettings {
    /// How they are checked.
    pub check: CheckSettings,
    /// What failing clients mean.
    pub ejection: EjectionSettings,
    /// Whether clients are refused when no server is up.
    pub when_all_down: WhenAllDown,
    /// What becomes of the sessions of a server that goes down.
    pub on_down: OnDown,
}

/// Active checks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
#[serde(deny_unknown_fields)]
pub struct CheckSettings {
    /// What is done to find out.
    pub kind: CheckKind,
    /// From one check to the next.
    pub interval_ms: u64,
    /// The same while results say something else than what holds; nothing is `interval_ms`.
    pub undecided_interval_ms: Option<u64>,
    /// The same while the server is down; nothing is `interval_ms`.
    pub down_interval_ms: Option<u64>,
    /// How long one may take.
    pub timeout_ms: u64,
    /// Passes in a row that bring a server up.
    pub rise: NonZeroU32,
    /// Failures in a row that take it down.
    pub fall: NonZeroU32,
    /// The port that is checked; nothing is the server's own.
    pub port: Option<NonZeroU16>,
    /// What holds until there is a first result.
    pub initial: InitialHealth,
}

impl Default for CheckSettings {
    fn default() -> Self {
        Self {
            kind: CheckKind::None,
            interval_ms: 2_000,
            undecided_interval_ms: None,
            down_interval_ms: None,
            timeout_ms: 1_000,
            rise: NonZeroU32::new(2).expect("2 is not 0"),
            fall: NonZeroU32::new(3).expect("3 is not 0"),
            port: None,
            initial: InitialHealth::Up,
        }
    }
}

/// What a check does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckKind {
    /// There are no checks: servers are up unless clients fail.
    #[default]
    None,
    /// It connects.
    Tcp,
    /// It connects, sends something if there is something to be sent, and looks for something in what comes.
    Send {
        /// What is sent.
        send: CheckText,
        /// What must come.
        expect: CheckText,
    },
    /// It asks by HTTP/1.1.
    Http(HttpCheck),
    /// It sends a datagram and looks for something in those that come.
    Udp {
        /// What is sent, which may be nothing: then the datagram is empty.
        send: CheckText,
        /// What must come; when that is nothing, silence is as good.
        expect: CheckText,
    },
    /// It asks by DNS, in a datagram.
    Dns(DnsCheck),
}

impl CheckKind {
    /// The names in files, commands and JSON.
    pub const NAMES: [&'static str; 6] = ["none", "tcp", "send", "http", "udp", "dns"];

    /// The name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tcp => "tcp",
            Self::Send { .. } => "send",
            Self::Http(_) => "http",
            Self::Udp { .. } => "udp",
            Self::Dns(_) => "dns",
        }
    }

    /// What is sent and what is expected, where the check is about that.
    #[must_use]
    pub fn texts(&self) -> Option<(&CheckText, &CheckText)> {
        match self {
            Self::Send { send, expect } | Self::Udp { send, expect } => Some((send, expect)),
            Self::None | Self::Tcp | Self::Http(_) | Self::Dns(_) => None,
        }
    }

    /// Whether a pool whose check this is makes use of a key, as a file calls it.
    #[must_use]
    pub fn uses(&self, key: &str) -> bool {
        let is_wanted = |keys: &[&str], wanted: bool| wanted || !keys.contains(&key);
        is_wanted(&OF_CHECKS, *self != Self::None)
            && is_wanted(&OF_SEND, self.texts().is_some())
            && is_wanted(&OF_HTTP, matches!(self, Self::Http(_)))
            && is_wanted(&OF_DNS, matches!(self, Self::Dns(_)))
    }
}

/// A check by HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpCheck {
    /// The method, such as `GET`.
    pub method: String,
    /// The path, from its `/` on.
    pub path: String,
    /// The host that is asked for; nothing is the address of the server.
    pub host: Option<String>,
    /// The statuses that pass.
    pub status: Vec<StatusRange>,
}

impl Default for HttpCheck {
    fn default() -> Self {
        Self { method: "GET".to_owned(), path: "/".to_owned(), host: None, status: vec![StatusRange::USUAL] }
    }
}

impl HttpCheck {
    /// Whether a text can be a method: capital letters.
    #[must_use]
    pub fn is_method(text: &str) -> bool {
        (1..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_uppercase())
    }

    /// Whether a text can be a path: from a `/` on, without anything that would end the line.
    #[must_use]
    pub fn is_path(text: &str) -> bool {
        text.starts_with('/') && text.len() <= MAX_CHECK_TEXT && text.bytes().all(|byte| byte.is_ascii_graphic())
    }

    /// Whether a text can be a host: what a header can have.
    #[must_use]
    pub fn is_host(text: &str) -> bool {
        (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
    }
}

/// Statuses from one to another; as text `200`, `200-399` or `2xx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StatusRange {
    first: u16,
    last: u16,
}

impl StatusRange {
    /// Success, and being sent elsewhere.
    pub const USUAL: Self = Self { first: 200, last: 399 };

    /// Whether a status is one of them.
    #[must_use]
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

impl FromStr for StatusRange {
    type Err = StatusRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let status = |text: &str| {
            let number = text.parse().ok().filter(|number| (100..=599).contains(number));
            number.filter(|_| text.len() == 3).ok_or(StatusRangeError)
        };
        let (first, last) = match (text.split_once('-'), text.strip_suffix("xx")) {
            (Some((first, last)), _) => (status(first)?, status(last)?),
            (None, Some(hundred)) => {
                let first = status(&format!("{hundred}00"))?;
                (first, first + 99)
            }
            (None, None) => (status(text)?, status(text)?),
        };
        if first <= last { Ok(Self { first, last }) } else { Err(StatusRangeError) }
    }
}

/// A text that names no statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("statuses are 100 to 599, written as 200, 200-399 or 2xx")]
pub struct StatusRangeError;

impl Serialize for StatusRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Bytes that are written as text where they are one, and in hexadecimal digits otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct CheckText(Vec<u8>);

impl CheckText {
    /// These bytes, if they are not too many.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Option<Self> {
        let bytes = bytes.into();
        (bytes.len() <= MAX_CHECK_TEXT).then_some(Self(bytes))
    }

    /// From pairs of hexadecimal digits, with or without spaces between them.
    #[must_use]
    pub fn from_hex(digits: &str) -> Option<Self> {
        let digits: Vec<u8> = digits.bytes().filter(|byte| *byte != b' ').collect();
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let bytes = digits.chunks(2).map(|pair| match *pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        });
        Self::new(bytes.collect::<Option<Vec<u8>>>()?)
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text, if they are one that people can read: with line ends and tabs, without other control characters.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        let text = std::str::from_utf8(&self.0).ok()?;
        let is_plain = |symbol: char| !symbol.is_control() || matches!(symbol, '\r' | '\n' | '\t');
        text.chars().all(is_plain).then_some(text)
    }

    /// The hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// In JSON and in TOML a text, or else `hex:` and digits.
impl Serialize for CheckText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.text().filter(|text| !text.starts_with(HEX)) {
            Some(text) => serializer.serialize_str(text),
            None => serializer.serialize_str(&format!("{HEX}{}", self.hex())),
        }
    }
}

impl<'de> Deserialize<'de> for CheckText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = match text.strip_prefix(HEX) {
            Some(digits) => Self::from_hex(digits),
            None => Self::new(text),
        };
        parsed.ok_or_else(|| de::Error::custom("too long, or no hexadecimal digits"))
    }
}

const HEX: &str = "hex:";

/// What holds of a server that was not checked yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitialHealth {
    /// It serves at once.
    #[default]
    Up,
    /// It serves after its first pass.
    Down,
}

named!(InitialHealth, Up = "up", Down = "down");

/// When a server whose clients fail is left out for a while: connects that it does not answer, and resets before its
/// first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[serde(deny_unknown_fields)]
pub struct EjectionSettings {
    /// Failures in a row; 0 is never.
    pub failures: u32,
    /// For how long at first; twice as long each time that it fails again.
    pub time_ms: u64,
    /// For how long at most.
    pub max_time_ms: u64,
    /// Never more than this part of the pool's servers are out, in percent.
    pub max_percent: u8,
}

impl Default for EjectionSettings {
    fn default() -> Self {
        Self { failures: 5, time_ms: 1_000, max_time_ms: 60_000, max_percent: 50 }
    }
}

/// What clients get when no server is up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenAllDown {
    /// They are closed.
    #[default]
    Refuse,
    /// All servers that people want ready are used as if they were up.
    UseAll,
}

named!(WhenAllDown, Refuse = "refuse", UseAll = "use-all");

/// What becomes of the sessions of a server that checks find down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDown {
    /// They live on, as long as they can.
    #[default]
    Keep,
    /// They are closed, so that their clients come again and get another server.
    Close,
}

named!(OnDown, Keep = "keep", Close = "close");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_written_as_people_do() {
        for (text, contains, lacks, again) in
            [("200", 200, 201, "200"), ("200-399", 399, 400, "200-399"), ("2xx", 299, 300, "200-299")]
        {
            let range: StatusRange = text.parse().expect("statuses");
            assert!(range.contains(contains) && !range.contains(lacks), "{text}");
            assert_eq!(range.to_string(), again);
        }
        for wrong in ["", "20", "099", "600", "6xx", "x", "300-200", "200-", "-", "+200", "2xxx"] {
            assert_eq!(wrong.parse::<StatusRange>(), Err(StatusRangeError), "{wrong}");
        }
    }

    #[test]
    fn a_check_makes_use_of_its_own_keys() {
        let text = CheckText::default;
        let kinds = [
            CheckKind::None,
            CheckKind::Tcp,
            CheckKind::Send { send: text(), expect: text() },
            CheckKind::Http(HttpCheck::default()),
            CheckKind::Udp { send: text(), expect: text() },
            CheckKind::Dns(DnsCheck::default()),
        ];
        assert_eq!(kinds.each_ref().map(CheckKind::name), CheckKind::NAMES);
        let users = |key: &str| kinds.each_ref().map(|kind| kind.uses(key));
        for (key, expected) in [
            ("policy", [true; 6]),
            ("check", [true; 6]),
            ("eject_time", [true; 6]),
            ("check_rise", [false, true, true, true, true, true]),
            ("check_expect_hex", [false, false, true, false, true, false]),
            ("check_status", [false, false, false, true, false, false]),
            ("check_dns_name", [false, false, false, false, false, true]),
        ] {
            assert_eq!(users(key), expected, "{key}");
        }
    }

    #[test]
    fn bytes_come_back_from_json_whatever_they_are() {
        for bytes in [&b""[..], b"PING\r\n", b"\x00\xff", b"hex:00", "ü".as_bytes()] {
            let text = CheckText::new(bytes).expect("few");
            let json = serde_json::to_string(&text).expect("text");
            assert_eq!(serde_json::from_str::<CheckText>(&json).expect("bytes"), text, "{json}");
            assert_eq!(CheckText::from_hex(&text.hex()), Some(text));
        }
        assert_eq!(CheckText::from_hex("0"), None);
        assert_eq!(CheckText::from_hex("0g"), None);
        assert_eq!(CheckText::from_hex("50 49").as_ref().map(CheckText::bytes), Some(&b"PI"[..]));
        assert_eq!(CheckText::new(vec![0; MAX_CHECK_TEXT + 1]), None);
    }

    #[test]
    fn what_would_end_a_line_of_a_request_is_no_part_of_it() {
        assert!(HttpCheck::is_path("/health?x=1") && HttpCheck::is_method("GET") && HttpCheck::is_host("a.example:80"));
        for wrong in ["", "x", "/a b", "/\r\n", "/ü"] {
            assert!(!HttpCheck::is_path(wrong), "{wrong:?}");
        }
        assert!(!HttpCheck::is_host("a\r\nb") && !HttpCheck::is_host("") && !HttpCheck::is_method("get x"));
    }
}
