//! Many networks, and whether an address is in one of them: ranges that do not overlap, in their order, so that it costs
//! some steps of a search, however many there are.

use std::net::IpAddr;

use ipnet::IpNet;

/// Networks of both families.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Networks {
    /// The first and the last address of each range.
    ipv4: Vec<(u32, u32)>,
    /// The same of IPv6.
    ipv6: Vec<(u128, u128)>,
    /// Networks that it was made of.
    count: usize,
}

impl Networks {
    /// These networks. One may be within another one, or be there twice.
    pub(crate) fn of(networks: &[IpNet]) -> Self {
        let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
        for network in networks {
            match network {
                IpNet::V4(its) => ipv4.push((its.network().to_bits(), its.broadcast().to_bits())),
                IpNet::V6(its) => ipv6.push((its.network().to_bits(), its.broadcast().to_bits())),
            }
        }
        Self { ipv4: disjoint(ipv4), ipv6: disjoint(ipv6), count: networks.len() }
    }

    /// Whether an address is in one of them. An IPv4 address is in networks of IPv4 alone.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => is_within(&self.ipv4, address.to_bits()),
            IpAddr::V6(address) => is_within(&self.ipv6, address.to_bits()),
        }
    }

    /// Networks that it was made of.
    pub(crate) fn count(&self) -> usize {
        self.count
    }
}

/// The same addresses in ranges that do not overlap, in their order.
fn disjoint<T: Copy + Ord>(mut ranges: Vec<(T, T)>) -> Vec<(T, T)> {
    ranges.sort_unstable();
    let mut disjoint: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match disjoint.last_mut() {
            Some((_, end)) if first <= *end => *end = last.max(*end),
            _ => disjoint.push((first, last)),
        }
    }
    disjoint
}

fn is_within<T: Copy + Ord>(ranges: &[(T, T)], address: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= address);
    after.checked_sub(1).is_some_and(|at| address <= ranges[at].1)
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::time::Instant;

    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nobody_is_in_no_network_and_everybody_in_that_of_all() {
        let (four, six): (IpAddr, IpAddr) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
        let of = |texts: &[&str]| {
            Networks::of(&texts.iter().map(|text| text.parse().expect("a network")).collect::<Vec<_>>())
        };
        assert!(!of(&[]).contains(four) && !of(&[]).contains(six));
        assert!(of(&["0.0.0.0/0"]).contains(four) && !of(&["0.0.0.0/0"]).contains(six));
        assert!(of(&["::/0"]).contains(six) && !of(&["::/0"]).contains(four));
        assert!(of(&["255.255.255.255/32"]).contains(Ipv4Addr::BROADCAST.into()));
    }

    fn any_network() -> impl Strategy<Value = IpNet> {
        // Close to each other, so that they overlap.
        let ipv4 = (0u32..512, 20u8..=32).prop_map(|(bits, length)| {
            IpNet::V4(Ipv4Net::new(Ipv4Addr::from_bits(bits << 4), length).expect("a length").trunc())
        });
        let ipv6 = (0u128..512, 116u8..=128).prop_map(|(bits, length)| {
            IpNet::V6(Ipv6Net::new(Ipv6Addr::from_bits(bits << 4), length).expect("a length").trunc())
        });
        prop_oneof![ipv4, ipv6]
    }

    proptest! {
        #[test]
        fn an_address_is_within_just_when_a_network_has_it(
            networks in prop::collection::vec(any_network(), 0..40),
            addresses in prop::collection::vec(0u32..9000, 60),
        ) {
            let all = Networks::of(&networks);
            for bits in addresses {
                let both = [Ipv4Addr::from_bits(bits).into(), Ipv6Addr::from_bits(bits.into()).into()];
                for address in both {
                    let expected = networks.iter().any(|network| network.contains(&address));
                    prop_assert_eq!(all.contains(address), expected, "{}", address);
                }
            }
        }
    }

    /// Prints nanoseconds of a look: `cargo test --release -p balancerd networks -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    #[expect(clippy::disallowed_methods, reason = "a measurement")]
    fn nanoseconds_of_a_look() {
        let network = |n: u32| IpNet::V4(Ipv4Net::new(Ipv4Addr::from_bits(n * 512), 24).expect("a length"));
        for count in [1, 100, 10_000, 100_000, 1_000_000] {
            let networks: Vec<IpNet> = (0..count).map(network).collect();
            let all = Networks::of(&networks);
            let mut address = 0_u32;
            let mut time = |rounds: u32, look: &dyn Fn(IpAddr) -> bool| {
                let start = Instant::now();
                for _ in 0..rounds {
                    address = address.wrapping_add(2_654_435_761);
                    black_box(look(Ipv4Addr::from_bits(address).into()));
                }
                start.elapsed().as_nanos() as f64 / f64::from(rounds)
            };
            let searched = time(200_000, &|address| all.contains(address));
            let one_by_one = time(200, &|address| networks.iter().any(|network| network.contains(&address)));
            println!("{count:>9} networks: {searched:>8.1} ns, one by one {one_by_one:>12.1} ns");
        }
    }
}
