//! The kernel's memory for sockets: those of one balancer, by `ss`, and all of TCP, by /proc/net/sockstat.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddrV4;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The unit of `mem` in sockstat on all machines that this runs on.
const PAGE: u64 = 4096;

/// The bytes that the kernel holds for the balancer that listens at `addr`, in its sockets towards clients and towards
/// `servers`: what it has received and the balancer has not read, what the other end has not acknowledged, and what is set
/// aside for more.
pub(crate) fn of_balancer(addr: SocketAddrV4, servers: &[SocketAddrV4]) -> Result<u64> {
    let mut filter = format!("( sport = :{}", addr.port());
    for server in servers {
        let _ = write!(filter, " or dport = :{}", server.port());
    }
    filter.push_str(" )");
    let output = Command::new("ss").args(["-tmnH", "state", "established"]).arg(filter).output().context("run ss")?;
    ensure!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(held(&String::from_utf8_lossy(&output.stdout)))
}

/// The bytes that all TCP sockets of this machine's network namespace hold: clients', balancer's and servers'.
pub(crate) fn of_all() -> Result<u64> {
    let text = fs::read_to_string("/proc/net/sockstat").context("read /proc/net/sockstat")?;
    pages(&text).map(|pages| pages * PAGE).context("no memory of TCP in /proc/net/sockstat")
}

/// The sum of what the sockets in a list of `ss -m` hold: received (`r`), queued to be sent (`w`), set aside (`f`).
///
/// What is set aside may be less than nothing for a moment, while the kernel settles it. `ss` prints its 32 bits unsigned.
fn held(list: &str) -> u64 {
    let fields = |line: &str| {
        let (_, rest) = line.split_once("skmem:(")?;
        let (inner, _) = rest.split_once(')')?;
        let field = |name: &str| inner.split(',').find_map(|field| field.strip_prefix(name)?.parse::<u32>().ok());
        Some(i64::from(field("r")?) + i64::from(field("w")?) + i64::from(field("f")?.cast_signed()))
    };
    list.lines().filter_map(fields).sum::<i64>().try_into().unwrap_or(0)
}

/// The pages of TCP in the text of sockstat.
fn pages(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    line.split_whitespace().skip_while(|word| *word != "mem").nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sockets_hold_is_summed() {
        let list = "ESTAB 0 2 127.0.0.1:1 127.0.0.1:2\n\t skmem:(r768,rb131072,t1,tb87040,f3328,w4096,o0,bl9,d0)\n\
                    ESTAB 0 0 127.0.0.1:3 127.0.0.1:4\n\t skmem:(r1,rb131072,t0,tb87040,f0,w0,o0,bl0,d0)\n";
        assert_eq!(held(list), 768 + 3328 + 4096 + 1);
        assert_eq!(held(""), 0);
    }

    #[test]
    fn memory_set_aside_below_nothing_is_not_four_gigabytes() {
        assert_eq!(held("\t skmem:(r8192,rb131072,t0,tb87040,f4294963200,w0,o0,bl0,d0)\n"), 4096);
    }

    #[test]
    fn the_pages_of_tcp_are_not_those_of_udp() {
        let text = "sockets: used 22\nTCP: inuse 3 orphan 0 tw 99278 alloc 3 mem 64\nUDP: inuse 0 mem 7\n";
        assert_eq!(pages(text), Some(64));
        assert_eq!(pages("UDP: inuse 0 mem 7\n"), None);
    }
}
