//! What a pool of a configuration file says of the health of its servers: which keys go together, and what they come to.
//! `settings` calls it.

use toml::Spanned;
use toml::de::DeValue;
use wire::dns::DnsCheck;
use wire::health::{
    CheckKind, CheckSettings, CheckText, EjectionSettings, HealthSettings, HttpCheck, MAX_STATUSES, OF_CHECKS, OF_DNS,
    OF_HTTP, OF_SEND, StatusRange,
};
use wire::quantity::time as human;

use super::section::{Faults, Section};
use super::value;

/// Reads the health of a pool.
pub(super) fn read(pool: &Section<'_, '_>, faults: &mut Faults<'_>) -> HealthSettings {
    let default = HealthSettings::default();
    HealthSettings {
        check: read_check(pool, faults),
        ejection: read_ejection(pool, faults),
        when_all_down: pool.take("when_all_down", value::when_all_down, faults).unwrap_or(default.when_all_down),
        on_down: pool.take("on_down", value::on_down, faults).unwrap_or(default.on_down),
    }
}

fn read_check(pool: &Section<'_, '_>, faults: &mut Faults<'_>) -> CheckSettings {
    let default = CheckSettings::default();
    let kind = pool.take("check", value::check_kind, faults);
    // A datagram may be empty, if that is said; a connection says something or nothing.
    let sent = if kind == Some("udp") { value::check_datagram } else { value::check_text };
    let send = read_text(pool, ["check_send", "check_send_hex"], sent, faults);
    let expect = read_text(pool, ["check_expect", "check_expect_hex"], value::check_text, faults);
    let http = read_http(pool, faults);
    let dns = read_dns(pool, faults);
    // What a wrong kind was to be is not known, and so not what goes with it.
    if kind.is_some() || pool.value("check").is_none() {
        check_keys(pool, kind.unwrap_or(default.kind.name()), faults);
    }
    CheckSettings {
        kind: match kind {
            Some("tcp") => CheckKind::Tcp,
            Some("send") => CheckKind::Send { send, expect },
            Some("http") => CheckKind::Http(http),
            Some("udp") => CheckKind::Udp { send, expect },
            Some("dns") => CheckKind::Dns(dns),
            _ => CheckKind::None,
        },
        interval_ms: pool.take("check_interval", value::interval, faults).unwrap_or(default.interval_ms),
        undecided_interval_ms: pool.take("check_undecided_interval", value::interval, faults),
        down_interval_ms: pool.take("check_down_interval", value::interval, faults),
        timeout_ms: pool.take("check_timeout", value::timeout, faults).unwrap_or(default.timeout_ms),
        rise: pool.take("check_rise", value::in_a_row, faults).unwrap_or(default.rise),
        fall: pool.take("check_fall", value::in_a_row, faults).unwrap_or(default.fall),
        port: pool.take("check_port", value::port, faults),
        initial: pool.take("check_initial", value::initial_health, faults).unwrap_or(default.initial),
    }
}

/// Bytes that may be there as text or in hexadecimal digits.
fn read_text(
    pool: &Section<'_, '_>,
    [as_text, as_hex]: [&'static str; 2],
    text: fn(&DeValue<'_>) -> Result<CheckText, String>,
    faults: &mut Faults<'_>,
) -> CheckText {
    let text = pool.take(as_text, text, faults);
    let hex = pool.take(as_hex, value::check_hex, faults);
    if let (Some(one), Some(other)) = (pool.place(as_text), pool.place(as_hex)) {
        faults.note(one.max(other), || {
            let (second, first) = if one > other { (as_text, as_hex) } else { (as_hex, as_text) };
            format!("{}: {first} says the same already; give one of the two", pool.path.key(second))
        });
    }
    text.or(hex).unwrap_or_default()
}

fn read_http(pool: &Section<'_, '_>, faults: &mut Faults<'_>) -> HttpCheck {
    let default = HttpCheck::default();
    pool.not_empty("check_status", "no status would pass; for 200 to 399 leave the key out", faults);
    let status: Vec<StatusRange> =
        pool.list("check_status", value::status, faults).into_iter().map(Spanned::into_inner).collect();
    if let Some(value) = pool.value("check_status").filter(|_| status.len() > MAX_STATUSES) {
        faults.note(value.span().start, || {
            format!("{}: {} are more than there may be, {MAX_STATUSES}", pool.path.key("check_status"), status.len())
        });
    }
    HttpCheck {
        method: pool.take("check_method", value::check_method, faults).unwrap_or(default.method),
        path: pool.take("check_path", value::check_path, faults).unwrap_or(default.path),
        host: pool.take("check_host", value::check_host, faults),
        status: if status.is_empty() { default.status } else { status },
    }
}

fn read_dns(pool: &Section<'_, '_>, faults: &mut Faults<'_>) -> DnsCheck {
    let default = DnsCheck::default();
    DnsCheck {
        name: pool.take("check_dns_name", value::check_dns_name, faults).unwrap_or(default.name),
        records: pool.take("check_dns_type", value::check_dns_type, faults).unwrap_or(default.records),
    }
}

/// Whether the keys of checks go with the kind.
fn check_keys(pool: &Section<'_, '_>, kind: &str, faults: &mut Faults<'_>) {
    let is = format!("the check of this pool is \"{kind}\"");
    let is_there = |key: &&str| pool.value(key).is_some();
    let needed = match kind {
        "send" if !OF_SEND.iter().any(is_there) => Some("check_send, check_expect or both"),
        "udp" if !["check_send", "check_send_hex"].iter().any(is_there) => {
            Some("check_send; \"\" is an empty datagram")
        }
        _ => None,
    };
    if let Some(needed) = needed {
        faults.note(pool.place("check").unwrap_or(pool.at), || {
            format!("{}: \"{kind}\" needs {needed}", pool.path.key("check"))
        });
    }
    if kind != "send" && kind != "udp" {
        pool.refuse(&OF_SEND, &format!("check = \"send\" or \"udp\", and {is}"), faults);
    }
    if kind != "http" {
        pool.refuse(&OF_HTTP, &format!("check = \"http\", and {is}"), faults);
    }
    if kind != "dns" {
        pool.refuse(&OF_DNS, &format!("check = \"dns\", and {is}"), faults);
    }
    if kind == "none" {
        pool.refuse(&OF_CHECKS, &format!("a check, and {is}"), faults);
    }
}

fn read_ejection(pool: &Section<'_, '_>, faults: &mut Faults<'_>) -> EjectionSettings {
    let default = EjectionSettings::default();
    let time = pool.take_spanned("eject_time", value::interval, faults);
    let max_time = pool.take_spanned("eject_max_time", value::interval, faults);
    let time_ms = time.as_ref().map_or(default.time_ms, |time| *time.get_ref());
    let max_time_ms = max_time.as_ref().map_or(default.max_time_ms, |time| *time.get_ref());
    // What a wrong one was to be is not known.
    let both_are_known = [
        time.is_some() == pool.value("eject_time").is_some(),
        max_time.is_some() == pool.value("eject_max_time").is_some(),
    ];
    if max_time_ms < time_ms && both_are_known == [true; 2] {
        let (time, max_time) = (human(time_ms), human(max_time_ms));
        match (pool.value("eject_max_time"), pool.value("eject_time")) {
            (Some(value), _) => faults.note(value.span().start, || {
                format!("{}: {max_time} is below eject_time, which is {time}", pool.path.key("eject_max_time"))
            }),
            (None, value) => faults.note(value.map_or(pool.at, |value| value.span().start), || {
                format!(
                    "{}: {time} is above eject_max_time, which is {max_time} unless the file says more",
                    pool.path.key("eject_time")
                )
            }),
        }
    }
    EjectionSettings {
        failures: pool.take("eject_failures", value::failures, faults).unwrap_or(default.failures),
        time_ms,
        max_time_ms,
        max_percent: pool.take("eject_max_percent", value::percent, faults).unwrap_or(default.max_percent),
    }
}

#[cfg(test)]
mod tests;
