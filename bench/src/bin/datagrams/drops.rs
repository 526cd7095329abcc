//! What the kernel dropped at our own sockets, because we did not take it in time: that is no fault of a balancer.

use std::fs;

use anyhow::{Context as _, Result};

/// Datagrams dropped so far at all sockets that have one of `ports`.
pub(crate) fn at(ports: &[u16]) -> Result<u64> {
    let text = fs::read_to_string("/proc/self/net/udp").context("read what the kernel dropped")?;
    Ok(text.lines().skip(1).filter_map(row).filter(|(port, _)| ports.contains(port)).map(|(_, drops)| drops).sum())
}

/// The local port and the drops of a row: `sl local_address rem_address … drops`.
fn row(line: &str) -> Option<(u16, u64)> {
    let mut fields = line.split_whitespace();
    let (_, port) = fields.nth(1)?.split_once(':')?;
    Some((u16::from_str_radix(port, 16).ok()?, fields.last()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_its_port_and_its_drops() {
        let line =
            "  123: 0100007F:1F90 00000000:0000 07 00000000:00000000 00:00000000 00000000  0  0 12 2 00000000 42";
        assert_eq!(row(line), Some((8080, 42)));
        assert_eq!(row("sl"), None);
    }
}
