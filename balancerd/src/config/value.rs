//! Readers of single values of the configuration file: each takes what TOML has and gives one of our values, or one line
//! that says what was expected and what was found. Which key a value belongs to, and where it is, `section` adds.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32, NonZeroU64};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use toml::de::DeValue;
use wire::address::{self, check_address};
use wire::connection::{
    BUFFER, CONNECT_TIMEOUT_MS, DEFER_ACCEPT_MS, KEEPALIVE_MS, MAX_BACKLOG, MAX_FAST_OPEN, MAX_REPLAY, MAX_TRIES,
    SESSION_TIME_MS, USER_TIMEOUT_MS, is_congestion, is_device, is_source,
};
use wire::control::MAX_WEIGHT;
use wire::dns::{DnsCheck, RecordType};
use wire::flow::{FLOW_TIMEOUT_MS, HeaderScope, OnLoss, OnReturn, PathMtu};
use wire::health::{
    CheckKind, CheckText, HttpCheck, InitialHealth, MAX_CHECK_TEXT, MAX_EJECT_FAILURES, MAX_IN_A_ROW, MAX_TIME_MS,
    MAX_TIMEOUT_MS, MIN_TIME_MS, OnDown, StatusRange, WhenAllDown,
};
use wire::quantity::{parse_size, size, time as human};
use wire::settings::{
    AdminState, HashKey, LoadFactor, MAX_NAME, MAX_PROXY_TIMEOUT_MS, Policy, Protocol, SendProxy, is_name,
};

use super::elsewhere;

/// Characters of a value of the file that a message shows.
pub(super) const SHOWN: usize = 64;

/// The longest slow start: whoever gives more has mistaken the unit.
const MAX_SLOW_START_MS: u64 = 24 * 60 * 60 * 1000;

/// Names that a message lists; there may be thousands.
const LISTED: usize = 16;

pub(super) fn flag(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| unexpected("true or false", value))
}

/// The file of a list of networks. It is the same one wherever the balancer was started.
pub(super) fn list_file(value: &DeValue<'_>) -> Result<String, String> {
    let path = value.as_str().filter(|path| path.starts_with('/') && !path.contains('\0'));
    path.map(str::to_owned)
        .ok_or_else(|| unexpected("the whole path of a file, such as \"/etc/balancer/deny.list\"", value))
}

/// An address to listen on. Port 0 lets the kernel choose.
pub(super) fn listen_address(value: &DeValue<'_>) -> Result<SocketAddr, String> {
    address(value, "0.0.0.0:80")
}

/// An address that a server can have, IPv4-mapped ones as IPv4.
pub(super) fn server_address(value: &DeValue<'_>) -> Result<SocketAddr, String> {
    let address = address(value, "10.0.0.1:8080")?;
    check_address(address).map_err(|fault| format!("{address} cannot be a server: {fault}"))?;
    if matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0) {
        return Err(format!("{address} cannot be a server: only link-local addresses have an interface"));
    }
    Ok(address::canonical(address))
}

fn address(value: &DeValue<'_>, example: &str) -> Result<SocketAddr, String> {
    let expected = format!("an IP address and a port such as \"{example}\"");
    let text = value.as_str().ok_or_else(|| unexpected(&expected, value))?;
    text.parse().map_err(|_| {
        let hint = match text.parse() {
            Ok(IpAddr::V4(_)) => "; the port is missing",
            Ok(IpAddr::V6(_)) => "; the port is missing, and IPv6 addresses with one stand in brackets",
            Err(_) if text.starts_with(|first: char| first.is_alphabetic()) && !text.contains("::") => {
                "; names of hosts are not looked up"
            }
            Err(_) => "",
        };
        unexpected(&expected, value) + hint
    })
}

/// A network, or an address for itself; IPv4-mapped ones as IPv4.
pub(super) fn network(value: &DeValue<'_>) -> Result<IpNet, String> {
    let expected = "a network such as \"10.0.0.0/8\" or an address";
    let text = value.as_str().ok_or_else(|| unexpected(expected, value))?;
    network_of(text).map_err(|fault| fault.unwrap_or_else(|| unexpected(expected, value)))
}

/// The same of a text; the fault is left out where it is none at all.
pub(super) fn network_of(text: &str) -> Result<IpNet, Option<String>> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_canonical().into());
    }
    let network: IpNet = text.parse().map_err(|_| None)?;
    if network.addr() != network.network() {
        return Err(Some(format!(
            "{network} has bits set behind its prefix; the network is {}, the one address {}",
            network.trunc(),
            network.addr()
        )));
    }
    Ok(canonical(network))
}

/// Clients are told apart by their canonical addresses, and no such address is in a network of IPv4-mapped ones.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let mapped = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    mapped.and_then(|(address, length)| Ipv4Net::new(address, length).ok()).map_or(network, IpNet::V4)
}

/// A name as [`is_name`] has it.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if is_name(name) {
        return Ok(());
    }
    Err(format!("a name has letters, digits, \".\", \"_\" and \"-\", {MAX_NAME} at most"))
}

/// The name of a pool; whether it is there is another question.
pub(super) fn pool_name(value: &DeValue<'_>) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| unexpected("the name of a pool", value))
}

pub(super) fn protocol(value: &DeValue<'_>) -> Result<Protocol, String> {
    choice(value, &Protocol::ALL.map(|protocol| (protocol.name(), protocol)))
}

pub(super) fn policy(value: &DeValue<'_>) -> Result<Policy, String> {
    choice(value, &Policy::ALL.map(|policy| (policy.name(), policy)))
}

/// A key by its name, with the default lengths.
pub(super) fn hash_key(value: &DeValue<'_>) -> Result<HashKey, String> {
    let subnet = HashKey::ClientSubnet { ipv4: HashKey::DEFAULT_IPV4, ipv6: HashKey::DEFAULT_IPV6 };
    choice(value, &[HashKey::ClientIp, HashKey::ClientIpPort, subnet].map(|key| (key.name(), key)))
}

pub(super) fn admin_state(value: &DeValue<'_>) -> Result<AdminState, String> {
    choice(value, &AdminState::ALL.map(|state| (state.name(), state)))
}

/// A version of the header, with nothing that goes along.
pub(super) fn send_proxy(value: &DeValue<'_>) -> Result<SendProxy, String> {
    let versions = [SendProxy::V1, SendProxy::V2 { crc32c: false, unique_id: false }];
    choice(value, &versions.map(|version| (version.name(), version)))
}

pub(super) fn load_factor(value: &DeValue<'_>) -> Result<LoadFactor, String> {
    let number = match value {
        DeValue::Float(float) => float.as_str().parse().ok(),
        DeValue::Integer(_) => whole(value).map(|number| number as f64),
        _ => None,
    };
    number.and_then(LoadFactor::from_number).ok_or_else(|| {
        let (least, most) = (LoadFactor::MIN, LoadFactor::MAX);
        unexpected(&format!("a number from {least} to {most} such as 1.25"), value)
    })
}

/// A time in milliseconds; 0 is not at all.
pub(super) fn slow_start(value: &DeValue<'_>) -> Result<u64, String> {
    let most = human(MAX_SLOW_START_MS);
    time(value, 0..=MAX_SLOW_START_MS, &format!("a time up to {most} such as \"30s\" or \"1m 30s\""))
}

/// The time between checks, or of an ejection, in milliseconds.
pub(super) fn interval(value: &DeValue<'_>) -> Result<u64, String> {
    span(value, MIN_TIME_MS..=MAX_TIME_MS, "\"2s\" or \"500ms\"")
}

/// The time that a check may take, in milliseconds.
pub(super) fn timeout(value: &DeValue<'_>) -> Result<u64, String> {
    span(value, MIN_TIME_MS..=MAX_TIMEOUT_MS, "\"2s\" or \"500ms\"")
}

/// The time that a PROXY protocol header may take, in milliseconds, not 0: no header comes in no time.
pub(super) fn proxy_timeout(value: &DeValue<'_>) -> Result<u64, String> {
    let most = human(MAX_PROXY_TIMEOUT_MS);
    let expected = format!("a time up to {most} such as \"5s\" or \"500ms\"");
    match time(value, 0..=MAX_PROXY_TIMEOUT_MS, &expected)? {
        0 => Err(unexpected("more than no time", value)),
        time => Ok(time),
    }
}

fn span(value: &DeValue<'_>, range: RangeInclusive<u64>, example: &str) -> Result<u64, String> {
    let expected = format!("a time from {} to {} such as {example}", human(*range.start()), human(*range.end()));
    time(value, range, &expected)
}

fn time(value: &DeValue<'_>, range: RangeInclusive<u64>, expected: &str) -> Result<u64, String> {
    let expected = || unexpected(expected, value);
    let time = value.as_str().and_then(|text| humantime::parse_duration(text).ok()).ok_or_else(expected)?;
    if time > Duration::from_millis(*range.end()) {
        return Err(expected());
    }
    if time.subsec_nanos() % 1_000_000 != 0 {
        return Err(unexpected("a time in whole milliseconds", value));
    }
    u64::try_from(time.as_millis()).ok().filter(|time| range.contains(time)).ok_or_else(expected)
}

/// The time that a connect may take, in milliseconds.
pub(super) fn connect_timeout(value: &DeValue<'_>) -> Result<NonZeroU64, String> {
    non_zero_span(value, CONNECT_TIMEOUT_MS, "\"3s\" or \"500ms\"")
}

/// The time that a session may be idle, or live, in milliseconds.
pub(super) fn session_time(value: &DeValue<'_>) -> Result<NonZeroU64, String> {
    non_zero_span(value, SESSION_TIME_MS, "\"1h\" or \"90s\"")
}

/// The time that a flow may be idle, in milliseconds.
pub(super) fn flow_timeout(value: &DeValue<'_>) -> Result<NonZeroU64, String> {
    non_zero_span(value, FLOW_TIMEOUT_MS, "\"60s\" or \"500ms\"")
}

pub(super) fn on_loss(value: &DeValue<'_>) -> Result<OnLoss, String> {
    choice(value, &OnLoss::ALL.map(|what| (what.name(), what)))
}

pub(super) fn on_return(value: &DeValue<'_>) -> Result<OnReturn, String> {
    choice(value, &OnReturn::ALL.map(|what| (what.name(), what)))
}

pub(super) fn header_scope(value: &DeValue<'_>) -> Result<HeaderScope, String> {
    choice(value, &HeaderScope::ALL.map(|scope| (scope.name(), scope)))
}

pub(super) fn path_mtu(value: &DeValue<'_>) -> Result<PathMtu, String> {
    choice(value, &PathMtu::ALL.map(|what| (what.name(), what)))
}

/// The time that is waited for a client's first words, in milliseconds. The kernel counts it in seconds.
pub(super) fn defer_accept(value: &DeValue<'_>) -> Result<NonZeroU64, String> {
    match non_zero_span(value, DEFER_ACCEPT_MS, "\"5s\"")? {
        time if time.get() % 1000 == 0 => Ok(time),
        _ => Err(unexpected("whole seconds such as \"5s\"", value)),
    }
}

/// The time that a peer may be silent until it is asked, in milliseconds; 0 is for ever.
pub(super) fn keepalive(value: &DeValue<'_>) -> Result<u64, String> {
    let (least, most) = (human(*KEEPALIVE_MS.start()), human(*KEEPALIVE_MS.end()));
    let expected = format!("a time from {least} to {most} such as \"30s\", or \"0s\" for never");
    match time(value, 0..=*KEEPALIVE_MS.end(), &expected)? {
        time if time == 0 || KEEPALIVE_MS.contains(&time) => Ok(time),
        _ => Err(unexpected(&expected, value)),
    }
}

/// The time that a peer may take to acknowledge, in milliseconds.
pub(super) fn user_timeout(value: &DeValue<'_>) -> Result<NonZeroU32, String> {
    let time = non_zero_span(value, USER_TIMEOUT_MS, "\"30s\" or \"500ms\"")?;
    NonZeroU32::try_from(time).map_err(|_| unexpected("a shorter time", value))
}

fn non_zero_span(value: &DeValue<'_>, range: RangeInclusive<u64>, example: &str) -> Result<NonZeroU64, String> {
    NonZeroU64::new(span(value, range, example)?).ok_or_else(|| unexpected("more than no time", value))
}

/// Connections that wait for their accept.
pub(super) fn backlog(value: &DeValue<'_>) -> Result<NonZeroU32, String> {
    non_zero(value, u64::from(MAX_BACKLOG))
}

/// Connections with first words that are pending; 0 is none.
pub(super) fn fast_open(value: &DeValue<'_>) -> Result<u32, String> {
    integer(value, 0..=u64::from(MAX_FAST_OPEN)).map(|pending| pending as u32)
}

/// Servers that a connect goes to.
pub(super) fn tries(value: &DeValue<'_>) -> Result<NonZeroU8, String> {
    let number = non_zero(value, u64::from(MAX_TRIES))?;
    NonZeroU8::try_from(number).map_err(|_| unexpected("a smaller integer", value))
}

/// Bytes that are kept for another server; 0 is none.
pub(super) fn replay(value: &DeValue<'_>) -> Result<u32, String> {
    bytes(value, 0..=u64::from(MAX_REPLAY))
}

/// Bytes of a buffer of a socket.
pub(super) fn buffer(value: &DeValue<'_>) -> Result<NonZeroU32, String> {
    let bytes = bytes(value, BUFFER)?;
    NonZeroU32::new(bytes).ok_or_else(|| unexpected("more than nothing", value))
}

/// A number of bytes, as an integer or with a unit.
fn bytes(value: &DeValue<'_>, range: RangeInclusive<u64>) -> Result<u32, String> {
    let number = match value {
        DeValue::String(text) => parse_size(text),
        DeValue::Integer(_) => whole(value).and_then(|number| u64::try_from(number).ok()),
        _ => None,
    };
    let number = number.filter(|number| range.contains(number)).and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| {
        let (least, most) = (size(*range.start()), size(*range.end()));
        unexpected(&format!("a size from {least} to {most} such as \"64KiB\""), value)
    })
}

/// An address that connections can come from, an IPv4-mapped one as IPv4.
pub(super) fn source(value: &DeValue<'_>) -> Result<IpAddr, String> {
    let expected = "an IP address such as \"10.0.0.8\"";
    let text = value.as_str().ok_or_else(|| unexpected(expected, value))?;
    let address = text.parse::<IpAddr>().map_err(|_| match text.parse::<SocketAddr>() {
        Ok(_) => unexpected(expected, value) + "; the kernel chooses the port",
        Err(_) => unexpected(expected, value),
    })?;
    match is_source(address) {
        true => Ok(address.to_canonical()),
        false => Err(format!("no connection can come from {address}: it is not the address of one host")),
    }
}

/// A mark for routing.
pub(super) fn mark(value: &DeValue<'_>) -> Result<NonZeroU32, String> {
    non_zero(value, u64::from(u32::MAX))
}

pub(super) fn device(value: &DeValue<'_>) -> Result<String, String> {
    text(value, is_device, "the name of a network device such as \"eth0\", of 1 to 15 bytes")
}

pub(super) fn congestion(value: &DeValue<'_>) -> Result<String, String> {
    text(value, is_congestion, "the name of a congestion control such as \"bbr\"")
}

/// The name of a kind of check.
pub(super) fn check_kind(value: &DeValue<'_>) -> Result<&'static str, String> {
    choice(value, &CheckKind::NAMES.map(|name| (name, name)))
}

/// What a check sends or expects, as text.
pub(super) fn check_text(value: &DeValue<'_>) -> Result<CheckText, String> {
    let expected = || unexpected(&format!("a text of 1 to {MAX_CHECK_TEXT} bytes"), value);
    let text = value.as_str().and_then(CheckText::new);
    text.filter(|text| !text.is_empty()).ok_or_else(expected)
}

/// What a check sends in a datagram, which may be empty.
pub(super) fn check_datagram(value: &DeValue<'_>) -> Result<CheckText, String> {
    let expected = || unexpected(&format!("a text of 0 to {MAX_CHECK_TEXT} bytes"), value);
    value.as_str().and_then(CheckText::new).ok_or_else(expected)
}

/// The same in hexadecimal digits.
pub(super) fn check_hex(value: &DeValue<'_>) -> Result<CheckText, String> {
    let expected =
        || unexpected(&format!("1 to {MAX_CHECK_TEXT} pairs of hexadecimal digits such as \"0d 0a\""), value);
    let text = value.as_str().and_then(CheckText::from_hex);
    text.filter(|text| !text.is_empty()).ok_or_else(expected)
}

pub(super) fn check_method(value: &DeValue<'_>) -> Result<String, String> {
    text(value, HttpCheck::is_method, "a method such as \"GET\" or \"HEAD\", in capital letters")
}

pub(super) fn check_path(value: &DeValue<'_>) -> Result<String, String> {
    text(value, HttpCheck::is_path, "a path such as \"/health\", without blanks")
}

pub(super) fn check_host(value: &DeValue<'_>) -> Result<String, String> {
    text(value, HttpCheck::is_host, "the name of a host such as \"www.example.com\"")
}

pub(super) fn check_dns_name(value: &DeValue<'_>) -> Result<String, String> {
    text(value, DnsCheck::is_name, "the name of a domain such as \"www.example.com\" or \".\"")
}

pub(super) fn check_dns_type(value: &DeValue<'_>) -> Result<RecordType, String> {
    choice(value, &RecordType::ALL.map(|records| (records.name(), records)))
}

fn text(value: &DeValue<'_>, is_right: fn(&str) -> bool, expected: &str) -> Result<String, String> {
    value.as_str().filter(|text| is_right(text)).map(str::to_owned).ok_or_else(|| unexpected(expected, value))
}

/// Statuses, as a number or a text.
pub(super) fn status(value: &DeValue<'_>) -> Result<StatusRange, String> {
    let text = match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(_) => whole(value).map(|number| number.to_string()),
        _ => None,
    };
    let range = text.and_then(|text| text.parse().ok());
    range.ok_or_else(|| unexpected("a status from 100 to 599, or several as \"2xx\" or \"200-399\"", value))
}

/// So many results in a row.
pub(super) fn in_a_row(value: &DeValue<'_>) -> Result<NonZeroU32, String> {
    non_zero(value, u64::from(MAX_IN_A_ROW))
}

pub(super) fn port(value: &DeValue<'_>) -> Result<NonZeroU16, String> {
    let number = integer(value, 1..=u64::from(u16::MAX))?;
    u16::try_from(number).ok().and_then(NonZeroU16::new).ok_or_else(|| unexpected("a smaller integer", value))
}

pub(super) fn initial_health(value: &DeValue<'_>) -> Result<InitialHealth, String> {
    choice(value, &InitialHealth::ALL.map(|health| (health.name(), health)))
}

/// Failures of clients; 0 is never.
pub(super) fn failures(value: &DeValue<'_>) -> Result<u32, String> {
    integer(value, 0..=u64::from(MAX_EJECT_FAILURES)).map(|failures| failures as u32)
}

pub(super) fn percent(value: &DeValue<'_>) -> Result<u8, String> {
    integer(value, 0..=100).map(|percent| percent as u8)
}

pub(super) fn when_all_down(value: &DeValue<'_>) -> Result<WhenAllDown, String> {
    choice(value, &WhenAllDown::ALL.map(|when| (when.name(), when)))
}

pub(super) fn on_down(value: &DeValue<'_>) -> Result<OnDown, String> {
    choice(value, &OnDown::ALL.map(|what| (what.name(), what)))
}

/// A limit: not 0, which would let nobody in.
pub(super) fn limit_64(value: &DeValue<'_>) -> Result<NonZeroU64, String> {
    // What TOML calls an integer goes so far, and the state file is TOML as well.
    let number = integer(value, 1..=i64::MAX as u64).map_err(|fault| fault + no_limit(value))?;
    NonZeroU64::new(number).ok_or_else(|| unexpected("more than 0", value))
}

/// As [`limit_64`], for smaller ones.
pub(super) fn limit_32(value: &DeValue<'_>) -> Result<NonZeroU32, String> {
    non_zero(value, u64::from(u32::MAX)).map_err(|fault| fault + no_limit(value))
}

fn no_limit(value: &DeValue<'_>) -> &'static str {
    if whole(value) == Some(0) { "; for no limit leave the key out" } else { "" }
}

pub(super) fn points_per_weight(value: &DeValue<'_>) -> Result<NonZeroU32, String> {
    non_zero(value, ring::MAX_POINTS as u64)
}

pub(super) fn weight(value: &DeValue<'_>) -> Result<u32, String> {
    integer(value, 0..=u64::from(MAX_WEIGHT)).map(|weight| weight as u32)
}

/// A length of the prefix of an IPv4 address.
pub(super) fn prefix_ipv4(value: &DeValue<'_>) -> Result<u8, String> {
    integer(value, 0..=32).map(|length| length as u8)
}

/// A length of the prefix of an IPv6 address.
pub(super) fn prefix_ipv6(value: &DeValue<'_>) -> Result<u8, String> {
    integer(value, 0..=128).map(|length| length as u8)
}

fn non_zero(value: &DeValue<'_>, most: u64) -> Result<NonZeroU32, String> {
    let number = integer(value, 1..=most)?;
    u32::try_from(number).ok().and_then(NonZeroU32::new).ok_or_else(|| unexpected("a smaller integer", value))
}

fn integer(value: &DeValue<'_>, range: RangeInclusive<u64>) -> Result<u64, String> {
    let number = whole(value).and_then(|number| u64::try_from(number).ok());
    number
        .filter(|number| range.contains(number))
        .ok_or_else(|| unexpected(&format!("an integer from {} to {}", range.start(), range.end()), value))
}

fn whole(value: &DeValue<'_>) -> Option<i128> {
    value.as_integer().and_then(|integer| i128::from_str_radix(integer.as_str(), integer.radix()).ok())
}

fn choice<T: Copy>(value: &DeValue<'_>, choices: &[(&'static str, T)]) -> Result<T, String> {
    let text = value.as_str();
    if let Some((_, chosen)) = text.and_then(|text| choices.iter().find(|(name, _)| *name == text)) {
        return Ok(*chosen);
    }
    let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let expected = if names.len() == 1 { names.concat() } else { format!("one of {}", names.join(", ")) };
    let ours = choices.iter().map(|(name, _)| *name);
    let near = text.and_then(|text| nearest(text, ours.clone()));
    let meant = match (near, text.and_then(|text| elsewhere::value(text, ours))) {
        (Some(near), _) => format!("; did you mean \"{near}\"?"),
        (None, Some(ours)) => format!("; in this file that is \"{ours}\""),
        (None, None) => String::new(),
    };
    Err(unexpected(&expected, value) + &meant)
}

/// The words for a value that is not what was expected.
pub(super) fn unexpected(expected: &str, value: &DeValue<'_>) -> String {
    let found = match value {
        DeValue::String(text) => shown(text),
        DeValue::Integer(integer) => shortened(&integer.to_string()),
        DeValue::Float(float) => shortened(float.as_str()),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(datetime) => format!("the time {datetime}"),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    };
    format!("expected {expected}, found {found}")
}

/// A text of the file in a message: in quotes, on one line, and not longer than [`SHOWN`] characters.
pub(super) fn shown(text: &str) -> String {
    format!("{:?}", shortened(text))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Names in a message: all, or the first of very many.
pub(super) fn listed(names: &[&str]) -> String {
    let (first, more) = names.split_at(names.len().min(LISTED));
    let text = first.join(", ");
    if more.is_empty() { text } else { format!("{text} and {} more", more.len()) }
}

/// The name that was probably meant: the one with the fewest slips of the keyboard between (Damerau-Levenshtein), if
/// there are few for its length. Capitals are no slip.
pub(super) fn nearest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    if word.len() > SHOWN {
        return None;
    }
    let word = word.to_lowercase();
    let most = (word.chars().count() / 3).max(1);
    let slips = |name: &str| strsim::damerau_levenshtein(&word, &name.to_lowercase());
    names
        .map(|name| (slips(name), name))
        .filter(|(slips, _)| *slips <= most)
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_near() {
        let names = ["policy", "key", "max_load", "points_per_weight", "slow_start", "servers"];
        for (word, name) in [
            ("polcy", Some("policy")),
            ("Policy", Some("policy")),
            ("max-load", Some("max_load")),
            ("point_per_weight", Some("points_per_weight")),
            ("server", Some("servers")),
            ("kye", Some("key")),
            ("weight", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, names.into_iter()), name, "{word}");
        }
        assert_eq!(nearest(&"x".repeat(1 << 20), names.into_iter()), None);
    }

    #[test]
    fn networks_of_mapped_addresses_are_ipv4() {
        let read = |text: &str| network(&DeValue::String(text.to_owned().into())).map(|network| network.to_string());
        for (text, network) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.1.2.3", "10.1.2.3/32"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(network));
        }
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..18).map(|number| number.to_string()).collect();
        let text = listed(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(text.ends_with("14, 15 and 2 more"), "{text}");
        assert_eq!(listed(&["a", "b"]), "a, b");
    }
}
