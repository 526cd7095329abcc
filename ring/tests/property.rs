//! What holds for every ring, on rings and changes that proptest makes up; it prints the seed of a failing one. Equal
//! hashes of different servers do not occur in rings of this size: their tests are in src/point.rs and src/ring.rs, on
//! points made up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroU32;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::Index;
use ring::{Diff, Identity, Key, MAX_POINTS, MAX_WEIGHT, Member, Move, POINTS_PER_WEIGHT, Ring, RingError, Share};

/// A set of servers with their weights.
type Servers = BTreeMap<Identity, u32>;

fn identity(n: u32) -> Identity {
    let [a, b, c, d] = n.to_be_bytes();
    match n % 3 {
        0 => Identity::from(SocketAddr::from(([10, b, c, d], 8080))),
        1 => Identity::from(SocketAddr::from(([192, 168, a, b], u16::from_be_bytes([c, d])))),
        _ => Identity::from(SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from_be_bytes([c, d])], 443))),
    }
}

fn per_weight(points: u32) -> NonZeroU32 {
    NonZeroU32::new(points).expect("tests ask for at least one")
}

fn build(points_per_weight: NonZeroU32, servers: &Servers) -> Ring<()> {
    let members = servers.iter().map(|(identity, weight)| Member { identity: *identity, weight: *weight, tag: () });
    Ring::build(points_per_weight, members).expect("tests stay within the limits")
}

fn servers(count: impl Into<proptest::collection::SizeRange>, weight: u32) -> impl Strategy<Value = Servers> {
    btree_map((0..1000u32).prop_map(identity), 1..=weight, count)
}

/// A ring of servers with (weight, points).
fn build_partial(points_per_weight: NonZeroU32, servers: &BTreeMap<Identity, (u32, u32)>) -> Ring<()> {
    let members = servers.iter().map(|(&identity, &(weight, points))| (Member { identity, weight, tag: () }, points));
    Ring::build_partial(points_per_weight, members).expect("tests stay within the limits")
}

/// Few points make long arcs and many edges; some more make it a ring.
fn points_per_weight() -> impl Strategy<Value = NonZeroU32> {
    prop_oneof![1..4u32, 4..64u32].prop_map(per_weight)
}

/// Keys where something may go wrong: at, just before and just after points, at both ends, and anywhere.
fn keys(ring: &Ring<()>, random: &[u64]) -> Vec<Key> {
    let at_points = ring.points().flat_map(|(hash, _)| [hash.wrapping_sub(1), hash, hash.wrapping_add(1)]);
    at_points.chain([0, u64::MAX]).chain(random.iter().copied()).map(Key::from).collect()
}

fn picked(ring: &Ring<()>, key: Key) -> Option<Identity> {
    ring.pick(key).map(|member| member.identity)
}

fn points(ring: &Ring<()>) -> Vec<(u64, Identity)> {
    ring.points().map(|(hash, member)| (hash, member.identity)).collect()
}

fn counts(ring: &Ring<()>) -> Vec<u32> {
    ring.members().iter().map(|member| ring.point_count(member.identity)).collect()
}

/// Equal in everything that can be seen.
fn assert_same(a: &Ring<()>, b: &Ring<()>) {
    assert_eq!(a.members(), b.members());
    assert_eq!(counts(a), counts(b));
    assert_eq!(points(a), points(b));
    assert_eq!(a.digest(), b.digest());
    assert!(a == b);
    assert_eq!(a.diff(b), Diff { moved: Share::NONE, moves: Vec::new() });
}

/// The answer by the definition, from every point at once.
fn linear_scan(ring: &Ring<()>, key: Key) -> Option<(u64, Identity)> {
    let at_or_after = ring.points().filter(|(hash, _)| *hash >= key.hash()).map(|(hash, m)| (hash, m.identity)).min();
    at_or_after.or_else(|| ring.points().map(|(hash, member)| (hash, member.identity)).min())
}

proptest! {
    #[test]
    fn pick_is_a_linear_scan(
        servers in servers(0..12, 4),
        ppw in points_per_weight(),
        random in vec(any::<u64>(), 16),
    ) {
        let ring = build(ppw, &servers);
        prop_assert_eq!(ring.points().len() as u32, servers.values().sum::<u32>() * ppw.get());
        for key in keys(&ring, &random).into_iter().step_by(7) {
            let expected = linear_scan(&ring, key);
            prop_assert_eq!(picked(&ring, key), expected.map(|(_, identity)| identity));
            prop_assert_eq!(ring.point_of(key), expected.map(|(hash, _)| hash));
        }
    }

    #[test]
    fn the_order_of_calls_leaves_no_trace(
        servers in servers(1..12, 4),
        ppw in points_per_weight(),
        visits in vec((any::<Index>(), 0..6u32), 0..40),
        last in Just(()).prop_perturb(|(), mut rng| rng.random::<u64>()),
    ) {
        // Servers come, go and change their weights in any order, some that are not in the set at all.
        let mut ring = Ring::new(ppw);
        let known: Vec<Identity> = servers.keys().copied().chain((2000..2004).map(identity)).collect();
        for (which, weight) in visits {
            ring.set(*which.get(&known), weight, ()).unwrap();
        }
        // Then each gets the weight it has in the set, again in some order.
        let mut order = known.clone();
        order.sort_by_key(|identity| identity.point(last as u32));
        for identity in order {
            match servers.get(&identity) {
                Some(weight) => ring.set(identity, *weight, ()).unwrap(),
                None => { ring.remove(identity); }
            }
        }
        assert_same(&ring, &build(ppw, &servers));
        // A ring that went back and forth is still one that can be changed.
        for identity in servers.keys() {
            prop_assert!(ring.remove(*identity));
            prop_assert!(!ring.remove(*identity));
        }
        assert_same(&ring, &Ring::new(ppw));
    }

    #[test]
    fn removing_moves_what_the_server_owned_and_nothing_else(
        servers in servers(1..12, 4),
        ppw in points_per_weight(),
        which in any::<Index>(),
        random in vec(any::<u64>(), 64),
    ) {
        let before = build(ppw, &servers);
        let gone = *which.get(&servers.keys().copied().collect::<Vec<_>>());
        let mut after = before.clone();
        prop_assert!(after.remove(gone));
        for key in keys(&before, &random) {
            let had = picked(&before, key);
            if had == Some(gone) {
                // Its keys go to the next server in ring order.
                prop_assert_eq!(picked(&after, key), before.successors(key).nth(1).map(|member| member.identity));
            } else {
                prop_assert_eq!(picked(&after, key), had);
            }
        }
        let diff = before.diff(&after);
        prop_assert_eq!(diff.moved, before.share(gone));
        prop_assert!(diff.moves.iter().all(|one| one.from == Some(gone) && one.to != Some(gone)));
    }

    #[test]
    fn adding_takes_keys_only_for_the_new_server(
        servers in servers(0..12, 4),
        ppw in points_per_weight(),
        weight in 1..5u32,
        random in vec(any::<u64>(), 64),
    ) {
        let before = build(ppw, &servers);
        let new = identity(5000);
        let mut after = before.clone();
        after.set(new, weight, ()).unwrap();
        for key in keys(&after, &random) {
            let has = picked(&after, key);
            prop_assert!(has == Some(new) || has == picked(&before, key));
        }
        let diff = before.diff(&after);
        prop_assert_eq!(diff.moved, after.share(new));
        prop_assert!(diff.moves.iter().all(|one| one.to == Some(new) && one.from != Some(new)));
    }

    #[test]
    fn a_greater_weight_only_takes_and_a_smaller_one_only_gives(
        servers in servers(2..12, 8),
        ppw in points_per_weight(),
        which in any::<Index>(),
        weight in 1..12u32,
    ) {
        let before = build(ppw, &servers);
        let (changed, old) = which.get(&servers.iter().map(|(id, w)| (*id, *w)).collect::<Vec<_>>()).to_owned();
        let mut after = before.clone();
        after.set(changed, weight, ()).unwrap();
        for one in before.diff(&after).moves {
            prop_assert_eq!(if weight > old { one.to } else { one.from }, Some(changed));
        }
    }

    #[test]
    fn a_plan_is_the_difference_that_setting_makes(
        servers in servers(0..12, 8),
        ppw in points_per_weight(),
        which in any::<Index>(),
        weight in 0..12u32,
    ) {
        let before = build(ppw, &servers);
        // Two that are not there, before and after most that are, and all that are.
        let known: Vec<Identity> = servers.keys().copied().chain([identity(5001), identity(5000)]).collect();
        let changed = *which.get(&known);
        let mut after = before.clone();
        after.set(changed, weight, ()).unwrap();
        prop_assert_eq!(before.plan(changed, weight).unwrap(), before.diff(&after));
        prop_assert_eq!(after.plan(changed, servers.get(&changed).copied().unwrap_or(0)).unwrap(), after.diff(&before));
    }

    #[test]
    fn a_ramp_only_takes_for_its_server_and_ends_as_the_plain_ring(
        servers in servers(0..10, 3),
        ppw in (1..24u32).prop_map(per_weight),
        weight in 1..4u32,
    ) {
        let without = build(ppw, &servers);
        let new = identity(5000);
        let mut ring = without.clone();
        for points in 1..=weight * ppw.get() {
            let before = ring.clone();
            ring.set_partial(new, weight, points, ()).unwrap();
            prop_assert_eq!(ring.point_count(new), points);
            let diff = before.diff(&ring);
            prop_assert!(diff.moves.iter().all(|one| one.to == Some(new) && one.from != Some(new)));
            prop_assert_eq!(before.plan_partial(new, weight, points).unwrap(), diff);
            prop_assert_eq!(without.diff(&ring).moved, ring.share(new));
        }
        let mut whole = without.clone();
        whole.set(new, weight, ()).unwrap();
        assert_same(&ring, &whole);
        // Down again it only gives.
        for points in (0..weight * ppw.get()).rev() {
            let before = ring.clone();
            ring.set_partial(new, weight, points, ()).unwrap();
            let diff = before.diff(&ring);
            prop_assert!(diff.moves.iter().all(|one| one.from == Some(new)));
            prop_assert_eq!(before.plan_partial(new, weight, points).unwrap(), diff);
        }
        assert_same(&ring, &without);
    }

    #[test]
    fn servers_in_part_leave_no_trace_of_the_way_to_them(
        servers in btree_map((0..1000u32).prop_map(identity), (1..6u32, 1..40u32), 1..10),
        ppw in (1..12u32).prop_map(per_weight),
        visits in vec((any::<Index>(), 0..6u32, 0..80u32), 0..40),
    ) {
        let known: Vec<Identity> = servers.keys().copied().collect();
        let mut ring = Ring::new(ppw);
        for (which, weight, points) in visits {
            let changed = *which.get(&known);
            let before = ring.clone();
            ring.set_partial(changed, weight, points, ()).unwrap();
            prop_assert_eq!(ring.point_count(changed), points.min(weight * ppw.get()));
            prop_assert_eq!(before.plan_partial(changed, weight, points).unwrap(), before.diff(&ring));
        }
        for (identity, (weight, points)) in &servers {
            ring.set_partial(*identity, *weight, *points, ()).unwrap();
        }
        let built = build_partial(ppw, &servers);
        assert_same(&ring, &built);

        // In all that is seen it is the ring of the first points of each.
        let all = servers.iter().flat_map(|(identity, (weight, points))| {
            (0..*points.min(&(weight * ppw.get()))).map(|replica| (identity.point(replica), *identity))
        });
        let all: BTreeSet<(u64, Identity)> = all.collect();
        prop_assert_eq!(points(&ring), all.into_iter().collect::<Vec<_>>());
        // It is the ring of those in full, and has its digest, only if all are.
        let full = build(ppw, &servers.iter().map(|(identity, (weight, _))| (*identity, *weight)).collect());
        let complete = servers.values().all(|(weight, points)| *points >= weight * ppw.get());
        prop_assert_eq!(ring == full, complete);
        prop_assert_eq!(ring.digest() == full.digest(), complete);
        for (identity, (weight, _)) in &servers {
            ring.set(*identity, *weight, ()).unwrap();
        }
        assert_same(&ring, &full);
    }

    #[test]
    fn successors_are_the_owners_of_the_points_from_the_key_on_each_once(
        servers in servers(0..40, 3),
        ppw in points_per_weight(),
        random in vec(any::<u64>(), 4),
    ) {
        let ring = build(ppw, &servers);
        let all = points(&ring);
        for key in random.into_iter().chain([0, u64::MAX]).map(Key::from) {
            let start = all.partition_point(|(hash, _)| *hash < key.hash());
            let mut seen = BTreeSet::new();
            let around = all[start..].iter().chain(&all[..start]).map(|(_, identity)| *identity);
            let expected: Vec<Identity> = around.filter(|identity| seen.insert(*identity)).collect();
            let successors = ring.successors(key);
            prop_assert_eq!(successors.len(), servers.len());
            prop_assert_eq!(successors.map(|member| member.identity).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn shares_are_the_arcs_and_add_up(servers in servers(1..12, 4), ppw in points_per_weight()) {
        let ring = build(ppw, &servers);
        let shares = ring.shares();
        prop_assert_eq!(shares.iter().map(|(_, share)| *share).sum::<Share>(), Share::ALL);
        for (identity, share) in &shares {
            prop_assert_eq!(ring.share(*identity), *share);
            // Against an empty ring everything moves, so the moves are the shares, found by the other walk.
            let diff = Ring::<()>::new(ppw).diff(&ring);
            prop_assert_eq!(diff.moved, Share::ALL);
            let to_it = Move { from: None, to: Some(*identity), share: *share };
            prop_assert!(diff.moves.contains(&to_it));
        }
        prop_assert_eq!(ring.share(identity(5000)), Share::NONE);
    }

    #[test]
    fn some_are_a_ring_without_the_others_and_have_its_shares(
        servers in servers(1..12, 4),
        some in any::<u16>(),
        ppw in points_per_weight(),
    ) {
        let ring = build(ppw, &servers);
        let counts: BTreeMap<Identity, bool> =
            servers.keys().enumerate().map(|(nth, identity)| (*identity, some >> nth & 1 == 1)).collect();
        let left = servers.iter().filter(|(identity, _)| counts[identity]).map(|(identity, weight)| (*identity, *weight));
        let without = build(ppw, &left.collect());
        let shares: BTreeMap<_, _> = without.shares().into_iter().collect();
        for (identity, share) in ring.shares_among(|member| counts[&member.identity]) {
            prop_assert_eq!(share, shares.get(&identity).copied().unwrap_or(Share::NONE));
        }
        assert_same(&ring.among(|member| counts[&member.identity]), &without);
    }

    #[test]
    fn diff_turned_around_is_the_same_moves_turned_around(
        one in servers(0..8, 4),
        two in servers(0..8, 4),
        ppw_one in points_per_weight(),
        ppw_two in points_per_weight(),
    ) {
        let (one, two) = (build(ppw_one, &one), build(ppw_two, &two));
        let (there, mut back) = (one.diff(&two), two.diff(&one));
        prop_assert_eq!(there.moved, back.moved);
        prop_assert!(there.moves.windows(2).all(|pair| pair[0].share >= pair[1].share));
        for back in &mut back.moves {
            (back.from, back.to) = (back.to, back.from);
            prop_assert!(there.moves.contains(back));
        }
        prop_assert_eq!(there.moves.len(), back.moves.len());
    }
}

/// The chance of a share at least this far from the expected one, at most: `exp(-distance)`, and this is the distance.
///
/// A ring of `all` points that fall evenly and independently cuts the space into `all` arcs, and by symmetry those of a
/// server with `own` points together are distributed as Beta(own, all - own). That is the distribution of the `own`th
/// smallest of `all - 1` uniform numbers, so with X binomial over `all - 1` trials of chance `share`:
///
/// ```text
/// P(Beta <= share) = P(X >= own)        P(Beta >= share) = P(X <= own - 1)
/// ```
///
/// and by Chernoff's bound in its relative-entropy form (Hoeffding 1963, theorem 1), for `f` on the far side of `share`,
///
/// ```text
/// P(X >= n f), P(X <= n f)  <=  exp(-n KL(f, share)),   KL(f, p) = f ln(f/p) + (1-f) ln((1-f)/(1-p))
/// ```
fn distance(share: f64, own: f64, all: f64) -> f64 {
    let trials = all - 1.0;
    let (least, most) = (own / trials, (own - 1.0) / trials);
    let term = |f: f64, p: f64| if f == 0.0 { 0.0 } else { f * (f / p).ln() };
    let entropy = |f: f64| trials * (term(f, share) + term(1.0 - f, 1.0 - share));
    if share < least {
        entropy(least)
    } else if share > most {
        entropy(most)
    } else {
        0.0
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// 64 rings of at most 30 servers make at most 1920 shares. Were the hash perfectly random, the chance that any of
    /// them lies at a distance of 30 or more on either side is at most 2 * 1920 * exp(-30) = 3.6e-10.
    #[test]
    fn shares_follow_weights(servers in servers(2..30, 20), ppw in (1..256u32).prop_map(per_weight)) {
        let ring = build(ppw, &servers);
        let all = ring.points().len() as f64;
        for (identity, share) in ring.shares() {
            let own = f64::from(servers[&identity] * ppw.get());
            let distance = distance(share.fraction(), own, all);
            prop_assert!(distance < 30.0, "{} owns {} with {} of {} points", identity, share, own, all);
        }
    }
}

#[test]
fn the_bound_on_shares_is_tight_enough_to_notice() {
    // 100 servers of 1024 points: one standard deviation of a share is 3.1 % of it. What is 25 % off is noticed.
    assert!(distance(0.01 * 1.25, 1024.0, 102_400.0) > 25.0);
    assert!(distance(0.01 * 0.75, 1024.0, 102_400.0) > 30.0);
    assert!(distance(0.01 * 1.03, 1024.0, 102_400.0) < 1.0);
}

#[test]
fn shares_of_a_full_ring_follow_weights() {
    // Weights from 1 to 256 at the points per weight of a real pool; the same bound, one ring.
    let servers: Servers = (0..9).map(|n| (identity(n), 1 << n)).collect();
    let ring = build(POINTS_PER_WEIGHT, &servers);
    let all = ring.points().len() as f64;
    for (identity, share) in ring.shares() {
        let own = f64::from(servers[&identity] * POINTS_PER_WEIGHT.get());
        assert!(distance(share.fraction(), own, all) < 30.0, "{identity} owns {share}");
    }
}

#[test]
fn an_empty_ring_has_no_answer() {
    let ring = Ring::<()>::new(POINTS_PER_WEIGHT);
    let key = Key::from(7);
    assert!(ring.is_empty());
    assert_eq!(ring.pick(key), None);
    assert_eq!(ring.point_of(key), None);
    assert_eq!(ring.successors(key).count(), 0);
    assert_eq!(ring.share(identity(1)), Share::NONE);
    assert_eq!(ring.shares(), []);
    assert_eq!(ring.diff(&ring).moved, Share::NONE);
}

#[test]
fn one_server_owns_everything() {
    for points in [1, 2, 1024] {
        let mut ring = Ring::new(per_weight(points));
        ring.set(identity(1), 1, "tag").unwrap();
        for key in [0, 1, u64::MAX / 2, u64::MAX].map(Key::from) {
            assert_eq!(ring.pick(key), Some(&Member { identity: identity(1), weight: 1, tag: "tag" }));
            assert_eq!(ring.successors(key).count(), 1);
        }
        assert_eq!(ring.shares(), [(identity(1), Share::ALL)]);
        let none = Ring::<()>::new(per_weight(points));
        assert_eq!(ring.diff(&none).moves, [Move { from: Some(identity(1)), to: None, share: Share::ALL }]);
    }
}

#[test]
fn a_tag_changes_nothing_but_what_comes_back() {
    let mut ring = Ring::new(per_weight(16));
    ring.set(identity(1), 2, 'a').unwrap();
    ring.set(identity(2), 1, 'b').unwrap();
    let mut other = ring.clone();
    other.set(identity(1), 2, 'c').unwrap();
    assert!(ring == other);
    assert_eq!(ring.digest(), other.digest());
    assert_eq!(other.member(identity(1)).map(|member| member.tag), Some('c'));
    assert_eq!(ring.member(identity(1)).map(|member| member.tag), Some('a'));
}

#[test]
fn other_tags_are_the_same_ring() {
    let servers: Servers = (0..20).map(|n| (identity(n), n % 3 + 1)).collect();
    let mut plain = build(per_weight(16), &servers);
    plain.set_partial(identity(3), 2, 5, ()).unwrap();
    let weights = plain.clone().map_tags(|member| (member.identity, member.weight));
    assert!(weights == plain);
    assert!(weights.members().iter().all(|member| member.tag == (member.identity, member.weight)));
    assert_eq!(weights.point_count(identity(3)), 5);
    assert_same(&weights.map_tags(|_| ()), &plain);
}

#[test]
fn the_limit_counts_a_server_in_part_as_a_whole_one() {
    let mut ring = Ring::new(per_weight(MAX_POINTS as u32 / MAX_WEIGHT));
    ring.set_partial(identity(1), 200, 1, ()).unwrap();
    let error = RingError::Points { identity: identity(2), points: 257 * 65_536 };
    assert_eq!(ring.set_partial(identity(2), 57, 1, ()), Err(error));
    assert_eq!(ring.plan_partial(identity(2), 57, 1), Err(error));
    let members = [(1, 200), (2, 57)].map(|(n, weight)| (Member { identity: identity(n), weight, tag: () }, 1));
    assert_eq!(Ring::build_partial(ring.points_per_weight(), members).unwrap_err(), error);
    // At the limit each has a place for the whole of it, whoever is first.
    ring.set_partial(identity(2), 56, 1, ()).unwrap();
    ring.set_partial(identity(1), 200, 7, ()).unwrap();
    assert_eq!(ring.points().len(), 8);
}

#[test]
fn the_digest_sees_identity_weight_and_points_per_weight() {
    let servers: Servers = [(identity(1), 1), (identity(2), 2)].into();
    let digest = build(per_weight(8), &servers).digest();
    let other_weight: Servers = [(identity(1), 2), (identity(2), 2)].into();
    let other_server: Servers = [(identity(1), 1), (identity(3), 2)].into();
    assert_ne!(digest, build(per_weight(8), &other_weight).digest());
    assert_ne!(digest, build(per_weight(8), &other_server).digest());
    assert_ne!(digest, build(per_weight(16), &servers).digest());
    let partial = |points| build_partial(per_weight(8), &[(identity(1), (1, 8)), (identity(2), (2, points))].into());
    assert_eq!(digest, partial(16).digest());
    assert_ne!(digest, partial(15).digest());
    assert_ne!(partial(14).digest(), partial(15).digest());
    assert_ne!(Ring::<()>::new(per_weight(8)).digest(), Ring::<()>::new(per_weight(16)).digest());
}

#[test]
fn a_refused_change_changes_nothing() {
    // At 65536 points per weight, 256 units of weight fill the ring to the last point; one is taken.
    let mut ring = Ring::new(per_weight(MAX_POINTS as u32 / MAX_WEIGHT));
    ring.set(identity(1), 1, 'a').unwrap();
    let before = ring.clone();

    let points = 257 * 65_536;
    assert_eq!(ring.set(identity(2), 256, 'b'), Err(RingError::Points { identity: identity(2), points }));
    assert_eq!(ring.plan(identity(2), 256), Err(RingError::Points { identity: identity(2), points }));
    let weight = MAX_WEIGHT + 1;
    assert_eq!(ring.plan(identity(1), weight), Err(RingError::Weight { identity: identity(1), weight }));
    assert_eq!(ring.set(identity(1), weight, 'b'), Err(RingError::Weight { identity: identity(1), weight }));
    assert_eq!(ring.members(), before.members());
    assert!(ring.points().eq(before.points()));
}

#[test]
fn the_greatest_numbers_are_refused_and_not_wrapped_around() {
    let servers = |weight| [Member { identity: identity(1), weight, tag: () }];
    let error = Ring::build(NonZeroU32::MAX, servers(256)).unwrap_err();
    assert_eq!(error, RingError::Points { identity: identity(1), points: 256 * u64::from(u32::MAX) });
    let error = Ring::build(NonZeroU32::MAX, servers(u32::MAX)).unwrap_err();
    assert_eq!(error, RingError::Weight { identity: identity(1), weight: u32::MAX });
    assert!(Ring::<()>::new(NonZeroU32::MAX).set(identity(1), 1, ()).is_err());
}

#[test]
fn errors_name_the_server_and_the_limit() {
    let server = Identity::from("10.0.0.1:80".parse::<SocketAddr>().unwrap());
    let errors = [
        RingError::Weight { identity: server, weight: 300 },
        RingError::Points { identity: server, points: 20_000_000 },
        RingError::Twice { identity: server },
    ];
    assert_eq!(
        errors.map(|error| error.to_string()),
        [
            "server 10.0.0.1:80: weight 300 is over the limit of 256",
            "server 10.0.0.1:80: the ring would have 20000000 points, over the limit of 16777216; use smaller weights \
             (only their ratios count) or fewer points per weight",
            "server 10.0.0.1:80 is there twice",
        ]
    );
}

#[test]
fn a_list_to_build_from_has_each_server_once_and_may_hold_weight_0() {
    let member = |n, weight| Member { identity: identity(n), weight, tag: () };
    let twice = Ring::build(per_weight(4), [member(1, 1), member(2, 1), member(1, 1)]);
    assert_eq!(twice.unwrap_err(), RingError::Twice { identity: identity(1) });
    let ring = Ring::build(per_weight(4), [member(1, 1), member(2, 0)]).unwrap();
    assert_eq!(ring.members(), [member(1, 1)]);
}

#[test]
fn thousands_of_servers() {
    let points_per_weight = per_weight(16);
    let all: Servers = (0..4000).map(|n| (identity(n * 3), 1)).collect();
    let ring = build(points_per_weight, &all);
    assert_eq!((ring.len(), ring.points().len()), (4000, 64_000));
    let met: BTreeSet<Identity> = ring.successors(Key::from(1)).map(|member| member.identity).collect();
    assert_eq!(met, all.keys().copied().collect());

    // Through a doubling of the points and back.
    let mut changed = ring.clone();
    for n in 4000..4200 {
        changed.set(identity(n * 3), 1, ()).unwrap();
    }
    let grown: Servers = (0..4200).map(|n| (identity(n * 3), 1)).collect();
    assert_same(&changed, &build(points_per_weight, &grown));
    for n in 4000..4200 {
        assert!(changed.remove(identity(n * 3)));
    }
    assert_same(&changed, &ring);
}

/// A million keys, evenly spread but not in step with anything: the multiples of an odd number.
#[test]
fn diff_agrees_with_picking_a_million_keys() {
    const KEYS: u64 = 1_000_000;
    let before: Servers = (0..20).map(|n| (identity(n), n % 4 + 1)).collect();
    // One goes, one comes, one gets heavier and one lighter.
    let mut after = before.clone();
    after.remove(&identity(3));
    after.insert(identity(100), 2);
    after.insert(identity(4), 4);
    after.insert(identity(7), 1);
    let (before, after) = (build(per_weight(64), &before), build(per_weight(64), &after));

    let mut counted: BTreeMap<(Option<Identity>, Option<Identity>), u64> = BTreeMap::new();
    for n in 0..KEYS {
        let key = Key::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let pair = (picked(&before, key), picked(&after, key));
        if pair.0 != pair.1 {
            *counted.entry(pair).or_default() += 1;
        }
    }
    let diff = before.diff(&after);
    let moves: BTreeMap<_, _> = diff.moves.iter().map(|one| ((one.from, one.to), one.share.fraction())).collect();
    assert!(counted.keys().all(|pair| moves.contains_key(pair)), "nothing moves that the diff does not have");
    // Of independent keys, the number that falls into a share has a standard deviation of at most sqrt(KEYS * share).
    // These are more even than that, so five of them are plenty; keys and rings are always the same ones.
    let close = |share: f64, count: u64| {
        let expected = share * KEYS as f64;
        (expected - count as f64).abs() <= 5.0 * expected.sqrt() + 1.0
    };
    assert!(close(diff.moved.fraction(), counted.values().sum()));
    for (pair, share) in moves {
        let count = counted.get(&pair).copied().unwrap_or(0);
        assert!(close(share, count), "{pair:?}: {count} keys for a share of {share}");
    }
}
