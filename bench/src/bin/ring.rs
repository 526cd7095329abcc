//! The ring of this project beside the rings that people use: `cargo run --release -p bench --bin ring`.
//!
//! Each is used the way its documentation shows, with a comparable number of points, on the same servers and the same
//! client addresses (IPv4, hashed within the lookup by each in its own way). Rounds are interleaved, so that a noisy
//! machine is noisy to all of them, and the median is shown. Three more tables say what the points per weight and large
//! weights do, and what each change costs: `-- points`, `-- weights` and `-- changes`. `docs/ring-format-1.md` quotes all.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use hashring::HashRing;
use maglev::{ConsistentHasher, Maglev};
use pingora_ketama::{Bucket, Continuum};
use ring::{Identity, Key, Member, POINTS_PER_WEIGHT, Ring};

/// Measure consistent-hash rings side by side.
#[derive(Parser)]
struct Arguments {
    /// The sizes of the pools, in servers of weight 1.
    #[arg(long, global = true, value_delimiter = ',', default_values_t = [10, 100, 1000])]
    servers: Vec<u32>,
    /// How many rounds to take the median of.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Lookups in a round, of each kind.
    #[arg(long, default_value_t = 200_000)]
    lookups: u32,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand)]
enum What {
    /// How even the shares are, by points per weight.
    Points,
    /// What large weights cost.
    Weights,
    /// What each change costs at most, on the way past a power of two of the points and back.
    Changes,
    /// Print the resident bytes of one ring; the benchmark runs itself with this.
    #[command(hide = true)]
    Memory {
        /// Which ring, by its name in the table.
        name: String,
        /// The size of the pool.
        count: u32,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.what {
        None => compare(&arguments),
        Some(What::Points) => points(&arguments.servers),
        Some(What::Weights) => weights(&arguments.servers),
        Some(What::Changes) => changes(&arguments.servers),
        Some(What::Memory { name, count }) => memory(name, *count),
    }
}

// The rings.

/// A ring that is measured. Servers are addresses; a pick gives the number in the address back.
trait Contender: Sized {
    const NAME: &'static str;
    /// Points or table entries for so many servers.
    fn points(servers: usize) -> usize;
    fn build(servers: &[SocketAddr]) -> Self;
    fn pick(&self, client: Ipv4Addr) -> u32;
    /// Adds the last of `servers`, which are all of them then.
    fn add(&mut self, servers: &[SocketAddr]);
    /// Removes `gone`; `servers` are those that are left.
    fn remove(&mut self, servers: &[SocketAddr], gone: SocketAddr);
}

impl Contender for Ring<SocketAddr> {
    const NAME: &'static str = "ring (ours)";

    fn points(servers: usize) -> usize {
        servers * POINTS_PER_WEIGHT.get() as usize
    }

    fn build(servers: &[SocketAddr]) -> Self {
        let members = servers.iter().map(|addr| Member { identity: Identity::from(*addr), weight: 1, tag: *addr });
        Ring::build(POINTS_PER_WEIGHT, members).expect("the sizes of a benchmark are within the limits")
    }

    #[inline]
    fn pick(&self, client: Ipv4Addr) -> u32 {
        number(&self.pick(Key::of_ip(client.into())).expect("there are servers").tag)
    }

    fn add(&mut self, servers: &[SocketAddr]) {
        let new = servers[servers.len() - 1];
        self.set(Identity::from(new), 1, new).expect("the sizes of a benchmark are within the limits");
    }

    fn remove(&mut self, _: &[SocketAddr], gone: SocketAddr) {
        self.remove(Identity::from(gone));
    }
}

/// nginx's ring. It cannot change: adding and removing are building anew. A weight is 160 points, by
/// default and as in nginx.
struct Ketama<const WEIGHT: u32>(Continuum);

impl<const WEIGHT: u32> Contender for Ketama<WEIGHT> {
    const NAME: &'static str = if WEIGHT == 1 { "pingora-ketama" } else { "pingora-ketama, weight 6" };

    fn points(servers: usize) -> usize {
        servers * 160 * WEIGHT as usize
    }

    fn build(servers: &[SocketAddr]) -> Self {
        let buckets: Vec<Bucket> = servers.iter().map(|addr| Bucket::new(*addr, WEIGHT)).collect();
        Self(Continuum::new(&buckets))
    }

    #[inline]
    fn pick(&self, client: Ipv4Addr) -> u32 {
        number(&self.0.node(&client.octets()).expect("there are servers"))
    }

    fn add(&mut self, servers: &[SocketAddr]) {
        *self = Self::build(servers);
    }

    fn remove(&mut self, servers: &[SocketAddr], _: SocketAddr) {
        *self = Self::build(servers);
    }
}

/// What the documentation of hashring puts in its ring for virtual nodes.
#[derive(Clone, Copy, PartialEq, Hash, Debug)]
struct VirtualNode {
    addr: SocketAddr,
    id: usize,
}

impl VirtualNode {
    /// As many as our ring has points.
    fn all_of(addr: SocketAddr) -> impl Iterator<Item = VirtualNode> {
        (0..POINTS_PER_WEIGHT.get() as usize).map(move |id| VirtualNode { addr, id })
    }
}

impl Contender for HashRing<VirtualNode> {
    const NAME: &'static str = "hashring";

    fn points(servers: usize) -> usize {
        servers * POINTS_PER_WEIGHT.get() as usize
    }

    fn build(servers: &[SocketAddr]) -> Self {
        let mut ring = HashRing::new();
        ring.batch_add(servers.iter().copied().flat_map(VirtualNode::all_of).collect());
        ring
    }

    #[inline]
    fn pick(&self, client: Ipv4Addr) -> u32 {
        number(&self.get(&client).expect("there are servers").addr)
    }

    fn add(&mut self, servers: &[SocketAddr]) {
        self.batch_add(VirtualNode::all_of(servers[servers.len() - 1]).collect());
    }

    fn remove(&mut self, _: &[SocketAddr], gone: SocketAddr) {
        for node in VirtualNode::all_of(gone) {
            self.remove(&node);
        }
    }
}

/// The table of the Maglev paper. It cannot change: adding and removing are building anew with the same capacity.
struct MaglevTable(Maglev<SocketAddr>);

impl MaglevTable {
    /// The paper's smaller table, or a hundred entries per server, which is the crate's default. Both are about primes.
    fn capacity(servers: usize) -> usize {
        (servers * 100).max(65_537)
    }
}

impl Contender for MaglevTable {
    const NAME: &'static str = "maglev";

    fn points(servers: usize) -> usize {
        Self::capacity(servers)
    }

    fn build(servers: &[SocketAddr]) -> Self {
        Self(Maglev::with_capacity(servers.iter().copied(), Self::capacity(servers.len())))
    }

    #[inline]
    fn pick(&self, client: Ipv4Addr) -> u32 {
        number(self.0.get(&client).expect("there are servers"))
    }

    fn add(&mut self, servers: &[SocketAddr]) {
        self.0 = Maglev::with_capacity(servers.iter().copied(), self.0.capacity());
    }

    fn remove(&mut self, servers: &[SocketAddr], _: SocketAddr) {
        self.0 = Maglev::with_capacity(servers.iter().copied(), self.0.capacity());
    }
}

// What is measured.

/// The table of all rings at all sizes.
fn compare(arguments: &Arguments) -> Result<()> {
    let mut table = table([
        "servers",
        "ring",
        "points",
        "lookup ns",
        "latency ns",
        "build ms",
        "add ms",
        "remove ms",
        "memory MB",
        "max/mean",
        "disruption",
    ]);
    for &count in &arguments.servers {
        let mut rows: [Box<dyn Row>; 5] = [
            Box::new(Measured::<Ring<SocketAddr>>::new(count)),
            Box::new(Measured::<Ketama<1>>::new(count)),
            Box::new(Measured::<Ketama<6>>::new(count)),
            Box::new(Measured::<HashRing<VirtualNode>>::new(count)),
            Box::new(Measured::<MaglevTable>::new(count)),
        ];
        for round in 0..arguments.rounds {
            for row in &mut rows {
                row.round(round as u64, arguments.lookups);
            }
        }
        for row in &mut rows {
            table.add_row(row.finish()?);
        }
    }
    println!("{table}");
    println!(
        "lookup: independent ones, the client's address hashed in each; latency: each waits for the one before.\n\
         Medians of {} interleaved rounds, for these two of each round's fastest 20000; what takes seconds runs less often.\n\
         memory: growth of the resident set. max/mean: the fullest server's share of {KEYS_PER_SERVER} keys per server or more,\n\
         mean over server sets. disruption: keys that change their server although it stays, when another is removed.",
        arguments.rounds
    );
    Ok(())
}

/// A row of the table in the making.
trait Row {
    fn round(&mut self, seed: u64, lookups: u32);
    fn finish(&mut self) -> Result<Vec<String>>;
}

struct Measured<C> {
    servers: Vec<SocketAddr>,
    ring: C,
    lookup: Vec<f64>,
    latency: Vec<f64>,
    build: Vec<f64>,
    add: Vec<f64>,
    remove: Vec<f64>,
}

/// The nanoseconds that one kind of operation may take in all rounds together; the first round is always run.
const BUDGET: f64 = 1.5e9;
/// So many that the sampling adds little to the unevenness that is measured: one standard deviation is 1.6 %, that of 1024
/// points 3.1 %. The exact figures of our ring are those of the `points` table.
const KEYS_PER_SERVER: u32 = 4_000;

impl<C: Contender> Measured<C> {
    fn new(count: u32) -> Self {
        let servers = server_set(0, count);
        let ring = C::build(&servers);
        Self { servers, ring, lookup: vec![], latency: vec![], build: vec![], add: vec![], remove: vec![] }
    }

    /// The fullest server's part of the mean, and the part of the keys that move without need when one server goes.
    fn balance_and_disruption(&self, set: u64) -> (f64, f64) {
        let mut servers = server_set(set, self.servers.len() as u32);
        let mut ring = C::build(&servers);
        let keys = (KEYS_PER_SERVER * servers.len() as u32).max(1_000_000);
        let picks = |ring: &C| (0..keys).map(|n| ring.pick(client(set, n))).collect::<Vec<u32>>();
        let before = picks(&ring);
        let gone = servers.swap_remove(servers.len() / 2);
        // Where a list is built from, the order stays as it was but for the one.
        servers.sort_by_key(|addr| server_order(set, addr));
        ring.remove(&servers, gone);
        let after = picks(&ring);

        let moved = before.iter().zip(&after).filter(|(had, has)| had != has && **had != number(&gone)).count();
        let mut sorted = before;
        sorted.sort_unstable();
        let fullest = sorted.chunk_by(|a, b| a == b).map(<[u32]>::len).max().expect("there are keys");
        let mean = f64::from(keys) / (servers.len() + 1) as f64;
        (fullest as f64 / mean, moved as f64 / f64::from(keys))
    }
}

impl<C: Contender> Row for Measured<C> {
    fn round(&mut self, seed: u64, lookups: u32) {
        let ring = &self.ring;
        // Other keys first: what is measured is a ring in use, not one that the rows before pushed out of the caches.
        black_box((0..lookups).fold(0, |sum: u32, n| sum.wrapping_add(ring.pick(client(!seed, n)))));
        self.lookup.push(each(lookups, |chunk| {
            black_box(chunk.fold(0, |sum: u32, n| sum.wrapping_add(ring.pick(client(seed, n)))));
        }));
        self.latency.push(each(lookups, |chunk| {
            black_box(chunk.fold(0, |last, n| ring.pick(client(seed, n ^ last))));
        }));

        if spare(&self.build) {
            self.build.push(timed(|| C::build(&self.servers)).0);
        }
        if spare(&self.remove) {
            let new = SocketAddr::from(([192, 0, 2, seed as u8], 80));
            self.servers.push(new);
            self.add.push(timed(|| self.ring.add(&self.servers)).0);
            self.servers.pop();
            self.remove.push(timed(|| self.ring.remove(&self.servers, new)).0);
        }
    }

    fn finish(&mut self) -> Result<Vec<String>> {
        let count = self.servers.len();
        let sets = (1000 / count).clamp(1, 10) as u64;
        let (mut balance, mut disruption) = (0.0, 0.0);
        for set in 0..sets {
            let (fullest, moved) = self.balance_and_disruption(set);
            balance += fullest / sets as f64;
            disruption += moved / sets as f64;
        }
        Ok(vec![
            count.to_string(),
            C::NAME.to_owned(),
            C::points(count).to_string(),
            format!("{:.1}", median(&mut self.lookup)),
            format!("{:.1}", median(&mut self.latency)),
            format!("{:.2}", median(&mut self.build) / 1e6),
            format!("{:.3}", median(&mut self.add) / 1e6),
            format!("{:.3}", median(&mut self.remove) / 1e6),
            format!("{:.2}", resident_megabytes(C::NAME, count)?),
            format!("{balance:.3}"),
            format!("{:.3} %", disruption * 100.0),
        ])
    }
}

/// How even the shares are, by points per weight: exact shares, over many sets of servers.
fn points(sizes: &[u32]) -> Result<()> {
    let mut table = table(["servers", "points per weight", "sets", "mean max/mean", "best", "worst", "mean min/mean"]);
    for &count in sizes {
        let sets = (10_000 / count).clamp(20, 200);
        for points_per_weight in [128_u32, 160, 256, 512, 1024, 2048] {
            let points_per_weight = points_per_weight.try_into().context("a number of points")?;
            let mut fullest = Vec::new();
            let mut emptiest = Vec::new();
            for set in 0..sets {
                let servers = server_set(u64::from(set), count);
                let ring = Ring::build(points_per_weight, members(&servers, 1))?;
                let shares = ring.shares().into_iter().map(|(_, share)| share.fraction() * f64::from(count));
                let (least, most) = shares
                    .fold((f64::MAX, 0.0), |(least, most): (f64, f64), share| (least.min(share), most.max(share)));
                fullest.push(most);
                emptiest.push(least);
            }
            let mean = |values: &[f64]| values.iter().sum::<f64>() / f64::from(sets);
            table.add_row([
                count.to_string(),
                points_per_weight.to_string(),
                sets.to_string(),
                format!("{:.3}", mean(&fullest)),
                format!("{:.3}", fullest.iter().copied().fold(f64::MAX, f64::min)),
                format!("{:.3}", fullest.iter().copied().fold(0.0, f64::max)),
                format!("{:.3}", mean(&emptiest)),
            ]);
        }
    }
    println!("{table}");
    Ok(())
}

/// What large weights cost: the same servers with weight 1, 10 and 100.
fn weights(sizes: &[u32]) -> Result<()> {
    let mut table = table(["servers", "weight", "points", "memory MB", "build ms", "add ms", "remove ms", "pick ns"]);
    for &count in sizes {
        for weight in [1, 10, 100] {
            let servers = server_set(0, count);
            let (build, built) = timed(|| Ring::build(POINTS_PER_WEIGHT, members(&servers, weight)));
            let mut ring = match built {
                Ok(ring) => ring,
                Err(error) => {
                    println!("{count} servers of weight {weight}: {error}");
                    continue;
                }
            };
            let megabytes = ring.heap_bytes() as f64 / 1e6;
            let points = ring.points().len();
            let (mut add, mut remove, mut pick) = (vec![], vec![], vec![]);
            for round in 0..9 {
                let new = Identity::from(SocketAddr::from(([192, 0, 2, round], 80)));
                add.push(timed(|| ring.set(new, weight, ())).0);
                remove.push(timed(|| ring.remove(new)).0);
                // The pick alone: the key is there already.
                pick.push(each(200_000, |chunk| {
                    black_box(chunk.filter(|n| ring.pick(Key::from(mix(u64::from(*n)))).is_some()).count());
                }));
            }
            table.add_row([
                count.to_string(),
                weight.to_string(),
                points.to_string(),
                format!("{megabytes:.1}"),
                format!("{:.1}", build / 1e6),
                format!("{:.2}", median(&mut add) / 1e6),
                format!("{:.2}", median(&mut remove) / 1e6),
                format!("{:.1}", median(&mut pick)),
            ]);
        }
    }
    println!("{table}");
    Ok(())
}

/// What each change costs: a pool grows by a tenth or a hundred servers, its new servers become heavier and lighter again, and it shrinks
/// back. The first change of each size meets memory that is new to the ring, and one of them a greater index.
fn changes(sizes: &[u32]) -> Result<()> {
    const ROUNDS: usize = 5;
    let mut table = table(["servers", "build ms", "what", "median ms", "worst ms", "worst median ms"]);
    for &count in sizes {
        let more = (count / 10).clamp(10, 100);
        let mut servers = server_set(0, count + more);
        let new = servers.split_off(count as usize);
        let steps = ["plan add", "add", "plan heavier", "heavier", "lighter", "plan remove", "remove", "digest"];
        // By step and server, what each round took.
        let mut taken = vec![vec![Vec::new(); new.len()]; steps.len()];
        let mut build = Vec::new();
        for _ in 0..ROUNDS {
            let (nanoseconds, ring) = timed(|| Ring::build(POINTS_PER_WEIGHT, members(&servers, 1)));
            build.push(nanoseconds);
            let mut ring = ring?;
            for (step, what) in steps.iter().enumerate() {
                for (nth, addr) in new.iter().enumerate() {
                    let new = Identity::from(*addr);
                    let nanoseconds = match *what {
                        "plan add" => timed(|| ring.plan(new, 1)).0,
                        "plan heavier" => timed(|| ring.plan(new, 2)).0,
                        "plan remove" => timed(|| ring.plan(new, 0)).0,
                        "heavier" => timed(|| ring.set(new, 2, ())).0,
                        "remove" => timed(|| ring.remove(new)).0,
                        "digest" => timed(|| ring.digest()).0,
                        _ => timed(|| ring.set(new, 1, ())).0,
                    };
                    taken[step][nth].push(nanoseconds);
                }
            }
        }
        let build = median(&mut build) / 1e6;
        for (what, taken) in steps.iter().zip(&mut taken) {
            let mut all: Vec<f64> = taken.iter().flatten().copied().collect();
            // Of the same change in all rounds: what somebody else's work cost once is not in it.
            let worst_median = taken.iter_mut().map(|rounds| median(rounds)).fold(0.0, f64::max);
            table.add_row([
                count.to_string(),
                format!("{build:.2}"),
                (*what).to_owned(),
                format!("{:.3}", median(&mut all) / 1e6),
                format!("{:.3}", all.last().context("there are changes")? / 1e6),
                format!("{:.3}", worst_median / 1e6),
            ]);
        }
    }
    println!("{table}");
    Ok(())
}

/// The megabytes that a ring takes: measured in a process of its own, where nothing else was freed before.
fn resident_megabytes(name: &str, count: usize) -> Result<f64> {
    // Blocks of more than 16 KiB as mappings of their own: what a build frees leaves the resident set at once.
    let output = Command::new(std::env::current_exe()?)
        .args(["memory", name, &count.to_string()])
        .env("MALLOC_MMAP_THRESHOLD_", "16384")
        .output()
        .context("running itself to measure memory")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let bytes: f64 = text.trim().parse().with_context(|| format!("{} for {name} printed {text:?}", output.status))?;
    Ok(bytes / 1e6)
}

/// Prints the bytes that one ring adds to the resident set of this process, as the mean of some.
fn memory(name: &str, count: u32) -> Result<()> {
    fn growth<C: Contender>(count: u32) -> Result<f64> {
        let servers = server_set(0, count);
        let copies = (1000 / count).clamp(1, 50);
        let before = resident_bytes()?;
        let rings: Vec<C> = (0..copies).map(|_| C::build(&servers)).collect();
        let after = resident_bytes()?;
        black_box(&rings);
        Ok((after - before) / f64::from(copies))
    }
    let growth = match name {
        <Ring<SocketAddr>>::NAME => growth::<Ring<SocketAddr>>(count),
        Ketama::<1>::NAME => growth::<Ketama<1>>(count),
        Ketama::<6>::NAME => growth::<Ketama<6>>(count),
        <HashRing<VirtualNode>>::NAME => growth::<HashRing<VirtualNode>>(count),
        MaglevTable::NAME => growth::<MaglevTable>(count),
        _ => bail!("no ring of the name {name}"),
    };
    println!("{:.0}", growth?);
    Ok(())
}

/// The resident set of this process, in bytes.
fn resident_bytes() -> Result<f64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = statm.split(' ').nth(1).context("/proc/self/statm has a second field")?.parse()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.context("the size of a page")?;
    Ok(pages * page as f64)
}

// What it is measured on.

/// A set of servers, 10.0.0.0/8, in an order without meaning. Another number gives another set.
fn server_set(set: u64, count: u32) -> Vec<SocketAddr> {
    // An odd multiplier visits each of the 2^24 addresses once.
    let start = mix(set) as u32;
    let addr = |n: u32| start.wrapping_add(n.wrapping_mul(0x9e_3779)) & 0xff_ffff;
    let mut servers: Vec<SocketAddr> =
        (0..count).map(|n| SocketAddr::from((Ipv4Addr::from(0x0a00_0000 | addr(n)), 8080))).collect();
    servers.sort_by_key(|addr| server_order(set, addr));
    servers
}

fn server_order(set: u64, addr: &SocketAddr) -> u64 {
    mix(set ^ u64::from(number(addr)))
}

/// The nth of a stream of client addresses.
#[inline]
fn client(seed: u64, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(mix(seed << 32 | u64::from(n)) as u32)
}

/// What a pick is reduced to, the same for all rings: the address as a number.
#[inline]
fn number(addr: &SocketAddr) -> u32 {
    match addr {
        SocketAddr::V4(v4) => v4.ip().to_bits(),
        SocketAddr::V6(_) => 0,
    }
}

fn members(servers: &[SocketAddr], weight: u32) -> impl Iterator<Item = Member<()>> {
    servers.iter().map(move |addr| Member { identity: Identity::from(*addr), weight, tag: () })
}

/// splitmix64's last step: the numbers of a count, in disorder.
#[inline]
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

// Time and print.

/// Runs it; the nanoseconds it took and what it gave.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures time, here and nowhere else")]
fn timed<R>(work: impl FnOnce() -> R) -> (f64, R) {
    let start = Instant::now();
    let result = black_box(work());
    (start.elapsed().as_nanos() as f64, result)
}

/// The nanoseconds that each of so many takes: of the fastest chunk of them, because others use this machine as well and
/// only a short stretch runs undisturbed.
fn each(count: u32, mut chunk: impl FnMut(Range<u32>)) -> f64 {
    const CHUNK: u32 = 20_000;
    let starts = (0..count.max(CHUNK)).step_by(CHUNK as usize);
    let taken = starts.map(|start| timed(|| chunk(start..start + CHUNK)).0 / f64::from(CHUNK));
    taken.fold(f64::MAX, f64::min)
}

/// Whether one more of these operations fits the budget.
fn spare(taken: &[f64]) -> bool {
    taken.iter().sum::<f64>() < BUDGET
}

fn median(taken: &mut [f64]) -> f64 {
    taken.sort_unstable_by(f64::total_cmp);
    taken[taken.len() / 2]
}

fn table<const COLUMNS: usize>(header: [&str; COLUMNS]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
