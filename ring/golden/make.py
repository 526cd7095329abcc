#!/usr/bin/env python3
"""Golden vectors of "ring format 1", made without a line of the Rust code.

Written from docs/ring-format-1.md, on the reference xxHash library by way of PyPI's `xxhash`. To make them again:

    pip install xxhash && python3 ring/golden/make.py > ring/golden/vectors.txt

The output has to be the file as it is: a difference means that clients would move. ring/tests/golden.rs compares the
crate with every line of it. A line is a word for its kind, then its fields, separated by spaces:

    identity ADDRESS BYTES                  the canonical bytes of a server
    point    ADDRESS REPLICA HASH           one point of a server
    key      IP BYTES HASH                  a client
    ring     NAME POINTS_PER_WEIGHT         a ring follows, up to the next line of this kind
    member   ADDRESS WEIGHT                 a server in it
    digest   BYTES DIGEST                   what is hashed for the digest, and the digest
    points   COUNT HASH                     xxh3-64, seed 0, over each point's hash and identity in ring order
    owner    POSITION ADDRESS HASH          who owns a position of the hash space, by which point
    pick     IP ADDRESS...                  all servers in the order in which a client meets them
    share    ADDRESS COUNT                  how many of the 2^64 positions a server owns
"""

import bisect
import ipaddress

import xxhash

SPACE = 1 << 64


def canonical_ip(text):
    ip = ipaddress.ip_address(text)
    return bytes(10) + b"\xff\xff" + ip.packed if ip.version == 4 else ip.packed


def canonical_server(text):
    host, _, port = text.rpartition(":")
    return canonical_ip(host.strip("[]")) + int(port).to_bytes(2, "big")


def point(identity, replica):
    return xxhash.xxh3_64_intdigest(identity, seed=replica)


def key(ip):
    return xxhash.xxh3_64_intdigest(canonical_ip(ip), seed=0)


class Ring:
    def __init__(self, points_per_weight, members):
        self.points_per_weight = points_per_weight
        self.members = sorted((canonical_server(addr), weight, addr) for addr, weight in members.items())
        self.points = sorted(
            (point(identity, replica), identity, addr)
            for identity, weight, addr in self.members
            for replica in range(weight * points_per_weight)
        )
        self.hashes = [hash for hash, _, _ in self.points]

    def at(self, position):
        """The first point at or after the position, around the end."""
        return bisect.bisect_left(self.hashes, position) % len(self.points)

    def successors(self, position):
        start = self.at(position)
        walk = self.points[start:] + self.points[:start]
        return list(dict.fromkeys(addr for _, _, addr in walk))

    def shares(self):
        counts = {addr: 0 for _, _, addr in self.members}
        before = self.hashes[-1] - SPACE
        for hash, _, addr in self.points:
            counts[addr] += hash - before
            before = hash
        return counts

    def digest_bytes(self):
        head = b"ring" + b"".join(n.to_bytes(4, "big") for n in (1, self.points_per_weight, len(self.members)))
        return head + b"".join(identity + weight.to_bytes(4, "big") for identity, weight, _ in self.members)


SERVERS = [
    "0.0.0.0:1",
    "10.0.0.1:1",
    "10.0.0.1:80",
    "10.0.0.1:65535",
    "10.0.0.2:80",
    "192.0.2.255:443",
    "255.255.255.255:65535",
    "[::]:1",
    "[::1]:8080",
    "[::ffff:10.0.0.1]:80",
    "[2001:db8::1]:1",
    "[2001:db8::1]:443",
    "[2001:db8:0:1:2:3:4:5]:65535",
    "[fe80::1]:53",
    "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
]

REPLICAS = [0, 1, 2, 255, 256, 1023, 1024, 65535, 65536, 262143, 16777215]

CLIENTS = [
    "0.0.0.0",
    "10.0.0.1",
    "127.0.0.1",
    "192.0.2.7",
    "::ffff:192.0.2.7",
    "198.51.100.23",
    "203.0.113.255",
    "255.255.255.255",
    "::",
    "::1",
    "2001:db8::7",
    "2001:db8:ffff::1",
    "fe80::1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
]

RINGS = {
    "empty": (1024, {}),
    "one": (1, {"10.0.0.1:80": 1}),
    "small": (4, {"10.0.0.9:80": 1, "10.0.0.10:80": 2, "[2001:db8::1]:443": 3, "10.0.0.9:443": 1}),
    "default": (
        1024,
        {f"10.0.{n // 3}.{n % 3 + 1}:{8000 + n}": n % 4 + 1 for n in range(12)}
        | {"[2001:db8::a]:8000": 1, "[2001:db8::b]:8000": 256},
    ),
}


def print_ring(name, ring):
    print("ring", name, ring.points_per_weight)
    for _, weight, addr in ring.members:
        print("member", addr, weight)
    digest_bytes = ring.digest_bytes()
    print("digest", digest_bytes.hex(), xxhash.xxh3_64_hexdigest(digest_bytes, seed=0))
    all_points = b"".join(hash.to_bytes(8, "big") + identity for hash, identity, _ in ring.points)
    print("points", len(ring.points), xxhash.xxh3_64_hexdigest(all_points, seed=0))
    if not ring.points:
        return
    # Both ends of the space, and on, before and after the first, a middle and the last point.
    edges = {0, 1, SPACE - 1, SPACE // 2}
    for hash in (ring.hashes[0], ring.hashes[len(ring.hashes) // 2], ring.hashes[-1]):
        edges |= {hash - 1, hash, hash + 1}
    for position in sorted(edges):
        hash, _, addr = ring.points[ring.at(position)]
        print("owner", f"{position:016x}", addr, f"{hash:016x}")
    for client in CLIENTS:
        print("pick", client, *ring.successors(key(client)))
    for addr, count in ring.shares().items():
        print("share", addr, count)


def main():
    for server in SERVERS:
        identity = canonical_server(server)
        print("identity", server, identity.hex())
        for replica in REPLICAS:
            print("point", server, replica, f"{point(identity, replica):016x}")
    for client in CLIENTS:
        print("key", client, canonical_ip(client).hex(), f"{key(client):016x}")
    for name, (points_per_weight, members) in RINGS.items():
        print_ring(name, Ring(points_per_weight, members))


if __name__ == "__main__":
    main()
