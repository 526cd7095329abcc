//! The policies: how a pool picks a server for a client that no ring binds to one.
//!
//! | policy | for what |
//! |---|---|
//! | [`RoundRobin`] | short sessions of much the same cost: everyone in turn, by weight, evenly spread |
//! | [`LeastConnections`] | sessions that last, or differ: who has the fewest for its weight; a new server is filled at once |
//! | [`TwoChoices`] | the same where many balancers share the servers: by chance enough that they do not all pick one |
//! | [`WeightedRandom`] | the plainest one, and the measure for the others: by weight and chance alone |
//! | [`capacity`] | bounded loads: beside a ring, how many sessions a server may have before the ring goes on |
//!
//! Each holds the eligible servers with their weights and nothing else: no sockets, no clock, no chance but a generator
//! that is handed in. The same calls in the same order give the same picks. `set` puts a server in or changes its weight,
//! `remove` and the weight 0 take it out; a pick is told by `may` who can take this client (not tried already, below its
//! limit), asks it of as few as it can, possibly of one more than once, and gives `None` if nobody may. Weights are up to
//! `u32::MAX`, so those that people give can be scaled for one that is to get its share little by little.

mod bounded;
mod fronts;
mod least;
mod loads;
mod random;
mod round_robin;

pub(crate) use bounded::capacity;
pub(crate) use least::LeastConnections;
pub(crate) use random::{TwoChoices, WeightedRandom};
pub(crate) use round_robin::RoundRobin;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::hint::black_box;
    use std::net::{IpAddr, SocketAddr};
    use std::num::NonZeroU64;
    use std::time::Instant;

    use fastrand::Rng;
    use ring::{Key, Member, POINTS_PER_WEIGHT, Ring};
    use slotmap::{SecondaryMap, SlotMap};

    use super::{LeastConnections, RoundRobin, TwoChoices, WeightedRandom, capacity};
    use crate::model::ServerId;

    const ROUNDS: u32 = 500_000;

    /// Prints nanoseconds for each call: `cargo test --release -p balancerd policy -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn nanoseconds_of_a_pick() {
        println!("{:<44} {:>8} {:>8} {:>8} {:>8}", "servers", 10, 100, 256, 1000);
        print("the ring, a million clients", |servers| {
            let ring = ring(servers);
            let mut client = 0u32;
            time(|| {
                client = client.wrapping_add(2_654_435_761);
                ring.pick(Key::of_ip(IpAddr::from((client & 0xf_ffff).to_be_bytes()))).map(|member| member.tag)
            })
        });
        print("the ring, one in ten is passed over", |servers| {
            let ring = ring(servers);
            let mut client = 0u32;
            time(|| {
                client = client.wrapping_add(2_654_435_761);
                let key = Key::of_ip(IpAddr::from((client & 0xf_ffff).to_be_bytes()));
                ring.successors(key).find(|member| member.tag % 10 > 0).map(|member| member.tag)
            })
        });
        print("round robin, equal weights", |servers| round_robin(servers, |_| 1));
        print("round robin, 4 weights", |servers| round_robin(servers, |n| 1 + n % 4));
        print("round robin, all weights different", |servers| round_robin(servers, |n| 1 + n));
        print("round robin, 256 weights", |servers| round_robin(servers, |n| 1 + n % 256));
        print("round robin, 256 weights, some often", |servers| {
            round_robin(servers, |n| if n % 3 == 0 { 1 } else { 1 + n.wrapping_mul(2_654_435_761) % 256 })
        });
        print("round robin, scaled weights all different", |servers| {
            round_robin(servers, |n| 1 + n.wrapping_mul(2_654_435_761) % 16_384)
        });
        print("round robin, half may not", |servers| {
            let (mut policy, _) = filled(servers, |_| 1);
            let mut asked = 0;
            time(|| {
                policy.pick(|_| {
                    asked += 1;
                    asked % 2 == 0
                })
            })
        });
        print("round robin, nine tenths may not", |servers| {
            let (mut policy, ids) = filled(servers, |n| 1 + n % 4);
            let may: SecondaryMap<ServerId, bool> = ids.iter().zip(0..).map(|(id, n)| (*id, n % 10 == 0)).collect();
            time(|| policy.pick(|id| may[id]))
        });
        print("least connections, pick", |servers| {
            let (mut policy, _, _) = least(servers);
            time(|| policy.pick(|_| true))
        });
        print("least connections, a session comes", |servers| {
            let (mut policy, ids, mut live) = least(servers);
            let mut at = 0;
            time(|| {
                at = (at + 7919) % ids.len();
                live[at] += 1;
                policy.sessions(ids[at], live[at]);
            })
        });
        print("least connections, pick, come, go", |servers| {
            let (mut policy, ids, _) = least(servers);
            let mut live: SecondaryMap<ServerId, u64> = ids.iter().map(|id| (*id, 0)).collect();
            let mut sessions = VecDeque::new();
            time(|| {
                let id = policy.pick(|_| true).expect("everyone may");
                live[id] += 1;
                policy.sessions(id, live[id]);
                sessions.push_back(id);
                if sessions.len() > 3 * servers {
                    let id = sessions.pop_front().expect("there are some");
                    live[id] -= 1;
                    policy.sessions(id, live[id]);
                }
            })
        });
        print("least connections, the first tenth may not", |servers| {
            let (mut policy, _, _) = least(servers);
            time(|| {
                let mut asked = 0;
                policy.pick(|_| {
                    asked += 1;
                    asked > servers / 10
                })
            })
        });
        print("least connections, all but one are full", |servers| {
            let (mut policy, ids, _) = least(servers);
            for id in &ids[1..] {
                policy.set(*id, 1, NonZeroU64::new(1), 1);
            }
            policy.sessions(ids[0], 1_000_000);
            time(|| (policy.passed_over(), policy.pick(|_| true)))
        });
        print("least connections, the first fills up", |servers| {
            let (mut policy, ids, _) = least(servers);
            let mut live = 0;
            policy.set(ids[0], 1, NonZeroU64::new(1), live);
            time(|| {
                live = 1 - live;
                policy.sessions(ids[0], live);
            })
        });
        print("weighted random, nine tenths may not", |servers| {
            let (mut policy, mut rng) = (WeightedRandom::new(), Rng::with_seed(1));
            let ids = ids(servers);
            let may: SecondaryMap<ServerId, bool> = ids.iter().zip(0..).map(|(id, n)| (*id, n % 10 == 0)).collect();
            for id in ids {
                policy.set(id, 1);
            }
            time(|| policy.pick(&mut rng, |id| may[id]))
        });
        print("weighted random", |servers| {
            let (mut policy, mut rng) = (WeightedRandom::new(), Rng::with_seed(1));
            for (n, id) in ids(servers).into_iter().enumerate() {
                policy.set(id, 1 + n as u32 % 4);
            }
            time(|| policy.pick(&mut rng, |_| true))
        });
        print("two choices", |servers| {
            let (mut policy, mut rng) = (TwoChoices::new(), Rng::with_seed(1));
            for (n, id) in ids(servers).into_iter().enumerate() {
                policy.set(id, 1 + n as u32 % 4);
            }
            time(|| policy.pick(&mut rng, |_| 1, |_| true))
        });
        print("capacity", |servers| {
            let total = black_box(servers as u64 * 2);
            let mut sessions = 0;
            time(|| {
                sessions += 1;
                capacity(1250, sessions, 2, total)
            })
        });
    }

    fn print(name: &str, nanoseconds: impl Fn(usize) -> f64) {
        let [ten, hundred, middle, thousand] = [10, 100, 256, 1000].map(nanoseconds);
        println!("{name:<44} {ten:>8.1} {hundred:>8.1} {middle:>8.1} {thousand:>8.1}");
    }

    #[expect(clippy::disallowed_methods, reason = "a measurement")]
    fn time<R>(mut call: impl FnMut() -> R) -> f64 {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            black_box(call());
        }
        start.elapsed().as_nanos() as f64 / f64::from(ROUNDS)
    }

    fn ring(servers: usize) -> Ring<usize> {
        let address = |n: usize| SocketAddr::from(([10, 0, (n / 250) as u8, (n % 250) as u8], 80));
        let member = |n: usize| Member { identity: address(n).into(), weight: 1, tag: n };
        Ring::build(POINTS_PER_WEIGHT, (0..servers).map(member)).expect("few points")
    }

    fn ids(servers: usize) -> Vec<ServerId> {
        let mut keys = SlotMap::with_key();
        (0..servers).map(|_| keys.insert(())).collect()
    }

    fn filled(servers: usize, weight: impl Fn(u32) -> u32) -> (RoundRobin<ServerId>, Vec<ServerId>) {
        let (mut policy, ids) = (RoundRobin::new(), ids(servers));
        for (n, id) in ids.iter().enumerate() {
            policy.set(*id, SocketAddr::from(([10, 0, 0, 1], n as u16)), weight(n as u32));
        }
        (policy, ids)
    }

    fn round_robin(servers: usize, weight: impl Fn(u32) -> u32) -> f64 {
        let (mut policy, _) = filled(servers, weight);
        time(|| policy.pick(|_| true))
    }

    /// The policy filled, the servers, and how many sessions each has.
    fn least(servers: usize) -> (LeastConnections<ServerId>, Vec<ServerId>, Vec<u64>) {
        let (mut policy, ids) = (LeastConnections::new(), ids(servers));
        for (n, id) in ids.iter().enumerate() {
            policy.set(*id, 1 + n as u32 % 4, None, 0);
        }
        let live = vec![0; ids.len()];
        (policy, ids, live)
    }
}
