//! "Ring format 1" against golden vectors that another program made, on the reference hash library: ring/golden/make.py
//! says what each line holds. When this fails, clients would move to other servers: the code is wrong, not the file.

#![expect(clippy::unwrap_used, reason = "what a test cannot go on without fails it")]

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::str::FromStr;

use ring::{Identity, Key, Member, Ring};
use xxhash_rust::xxh3::xxh3_64;

const VECTORS: &str = include_str!("../golden/vectors.txt");

fn parse<V: FromStr>(text: &str) -> V {
    text.parse().unwrap_or_else(|_| panic!("not understood: {text}"))
}

fn identity(text: &str) -> Identity {
    Identity::from(parse::<SocketAddr>(text))
}

fn key(ip: &str) -> Key {
    Key::of_ip(parse::<IpAddr>(ip))
}

fn position(hex: &str) -> u64 {
    u64::from_str_radix(hex, 16).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The fields of all lines of a kind. Their number is asserted: a file cut short must not pass.
fn lines_of(kind: &str) -> Vec<Vec<&'static str>> {
    let lines: Vec<Vec<&str>> = VECTORS.lines().map(|line| line.split(' ').collect()).collect();
    lines.into_iter().filter(|fields: &Vec<&str>| fields[0] == kind).collect()
}

#[test]
fn identities_and_points_are_those_of_the_format() {
    let identities = lines_of("identity");
    assert_eq!(identities.len(), 15);
    for fields in identities {
        assert_eq!(hex(identity(fields[1]).as_bytes()), fields[2], "{fields:?}");
    }
    let points = lines_of("point");
    assert_eq!(points.len(), 15 * 11);
    for fields in points {
        assert_eq!(identity(fields[1]).point(parse(fields[2])), position(fields[3]), "{fields:?}");
    }
}

#[test]
fn keys_are_those_of_the_format() {
    let keys = lines_of("key");
    assert_eq!(keys.len(), 14);
    for fields in keys {
        assert_eq!(key(fields[1]).hash(), position(fields[3]), "{fields:?}");
    }
}

#[test]
fn whole_rings_are_those_of_the_format() {
    let mut checked = 0;
    for section in VECTORS.split("\nring ").skip(1) {
        let lines: Vec<Vec<&str>> = section.lines().map(|line| line.split(' ').collect()).collect();
        let points_per_weight: NonZeroU32 = parse(lines[0][1]);
        let members: Vec<Member<()>> = lines
            .iter()
            .filter(|fields| fields[0] == "member")
            .map(|fields| Member { identity: identity(fields[1]), weight: parse(fields[2]), tag: () })
            .collect();

        // The whole at once, and one after the other from the last to the first with every weight on the way.
        let built = Ring::build(points_per_weight, members.clone()).unwrap();
        let mut grown = Ring::new(points_per_weight);
        for weight in [256, 1] {
            for member in members.iter().rev() {
                grown.set(member.identity, weight.min(member.weight), ()).unwrap();
            }
        }
        for member in &members {
            grown.set(member.identity, member.weight, ()).unwrap();
        }
        for ring in [built, grown] {
            assert_eq!(ring.members(), members, "the file lists them in the order of their bytes");
            checked += lines[1..].iter().filter(|fields| holds(&ring, fields)).count();
        }
    }
    assert_eq!(checked, 2 * 102, "lines about rings that were checked, for each of the two ways to one");
}

/// Checks one line about a ring; whether there was something to check.
fn holds(ring: &Ring<()>, fields: &[&str]) -> bool {
    match *fields {
        ["member", ..] => return false,
        ["digest", bytes, digest] => {
            assert_eq!(ring.digest().to_string(), digest);
            let hashed: Vec<u8> =
                (0..bytes.len()).step_by(2).map(|at| u8::from_str_radix(&bytes[at..at + 2], 16).unwrap()).collect();
            assert_eq!(xxh3_64(&hashed), ring.digest().value(), "the bytes in the file are those that were hashed");
        }
        ["points", count, digest] => {
            let mut bytes = Vec::new();
            for (hash, member) in ring.points() {
                bytes.extend_from_slice(&hash.to_be_bytes());
                bytes.extend_from_slice(member.identity.as_bytes());
            }
            assert_eq!(ring.points().len(), parse(count));
            assert_eq!(xxh3_64(&bytes), position(digest), "every point, in order");
        }
        ["owner", at, owner, hash] => {
            let key = Key::from(position(at));
            assert_eq!(ring.pick(key).unwrap().identity, identity(owner), "{fields:?}");
            assert_eq!(ring.point_of(key), Some(position(hash)), "{fields:?}");
        }
        ["pick", ip, ref servers @ ..] => {
            let expected: Vec<Identity> = servers.iter().map(|server| identity(server)).collect();
            let met: Vec<Identity> = ring.successors(key(ip)).map(|member| member.identity).collect();
            assert_eq!(met, expected, "{fields:?}");
            assert_eq!(ring.pick(key(ip)).unwrap().identity, expected[0]);
        }
        ["share", server, count] => assert_eq!(ring.share(identity(server)).count(), parse(count), "{fields:?}"),
        _ => panic!("a kind of line that nobody checks: {fields:?}"),
    }
    true
}
