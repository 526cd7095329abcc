//! The changes of one pool, one request each.

use std::net::SocketAddr;
use std::num::NonZeroU32;

use wire::control::{Change, MAX_WEIGHT, PoolValues, Removal, Request, ServerValues};
use wire::settings::{AdminState, Policy, ServerSettings};

use crate::layout::{Layout, Ports, pool_name};

/// What is done to the pool again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing: what the same time costs without.
    None,
    /// A further server.
    Add,
    /// One server less.
    Remove,
    /// A server's weight to 2, and back to 1.
    Weight,
    /// A server's weight to the largest, and back to 1.
    WeightLargest,
    /// What that would move, and nothing more.
    WeightLargestDry,
    /// A further server of the largest weight, and its removal.
    AddLargest,
    /// A server drains, and is ready again.
    Drain,
    /// The same of one of the largest weight.
    DrainLargest,
    /// Other points for each weight, and back.
    Points,
    /// Another policy, and back.
    Policy,
}

impl Kind {
    /// Every kind.
    pub(crate) const ALL: [Self; 11] = [
        Self::None,
        Self::Add,
        Self::Remove,
        Self::Weight,
        Self::Drain,
        Self::WeightLargest,
        Self::WeightLargestDry,
        Self::AddLargest,
        Self::DrainLargest,
        Self::Points,
        Self::Policy,
    ];

    /// The name in the tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "(no change)",
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Weight => "weight 1 to 2 and back",
            Self::WeightLargest => "weight 1 to 256 and back",
            Self::WeightLargestDry => "weight 1 to 256, dry run",
            Self::AddLargest => "add of weight 256 and remove",
            Self::Drain => "drain and ready",
            Self::DrainLargest => "drain and ready at 256",
            Self::Points => "points 1024 to 1000 and back",
            Self::Policy => "policy and back",
        }
    }

    /// Change number `number` of the first pool; every second one takes back the one before, where that is possible.
    pub(crate) fn request(self, number: usize, layout: &Layout, ports: Ports) -> Option<Request> {
        let pool = pool_name(0);
        let servers = &layout.pools[0];
        // Far apart on purpose: neighbours in the file are neighbours in memory.
        let server = |number: usize| SocketAddr::V4(servers[number * 7 % servers.len()]);
        let set = |values| Change::Set { pool: pool.clone(), server: server(number / 2), values };
        let weight = |weight| set(ServerValues { weight: Some(weight), ..ServerValues::default() });
        let state = |state| set(ServerValues { state: Some(state), ..ServerValues::default() });
        let set_pool = |values| Change::SetPool { pool: pool.clone(), values };
        let points = |points| {
            let points_per_weight = NonZeroU32::new(points);
            set_pool(PoolValues { points_per_weight, ..PoolValues::default() })
        };
        let policy = |policy| set_pool(PoolValues { policy: Some(policy), ..PoolValues::default() });
        let forth = number.is_multiple_of(2);
        let change = match self {
            Self::None => return None,
            Self::Add => {
                Change::Add { pool, server: ports.server(1, number).into(), settings: ServerSettings::default() }
            }
            Self::Remove => Change::Remove { pool, server: server(number), how: Removal::Wait { limit_ms: None } },
            Self::Weight => weight(if forth { 2 } else { 1 }),
            Self::WeightLargest => weight(if forth { MAX_WEIGHT } else { 1 }),
            Self::WeightLargestDry => weight(MAX_WEIGHT),
            Self::AddLargest => {
                let server = ports.server(1, number / 2).into();
                let settings = ServerSettings { weight: MAX_WEIGHT, ..ServerSettings::default() };
                if forth {
                    Change::Add { pool, server, settings }
                } else {
                    Change::Remove { pool, server, how: Removal::Wait { limit_ms: None } }
                }
            }
            Self::Drain => state(if forth { AdminState::Drain } else { AdminState::Ready }),
            Self::DrainLargest => {
                let values = match number {
                    0 => ServerValues { weight: Some(MAX_WEIGHT), ..ServerValues::default() },
                    _ if forth => ServerValues { state: Some(AdminState::Ready), ..ServerValues::default() },
                    _ => ServerValues { state: Some(AdminState::Drain), ..ServerValues::default() },
                };
                Change::Set { pool, server: server(0), values }
            }
            Self::Points => points(if forth { 1000 } else { 1024 }),
            Self::Policy => policy(if forth { Policy::RoundRobin } else { Policy::ConsistentHash }),
        };
        Some(Request::Change { change, dry_run: self == Self::WeightLargestDry })
    }

    /// How many servers the pool has after so many changes.
    pub(crate) fn servers_after(self, changes: usize, before: usize) -> usize {
        match self {
            Self::Add => before + changes,
            Self::Remove => before - changes,
            Self::AddLargest => before + changes % 2,
            _ => before,
        }
    }
}

/// What a reload finds in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reload {
    /// There is none: what the same time costs without.
    None,
    /// The same as before.
    Unchanged,
    /// Another server in the place of one, in every pool.
    EveryPool,
    /// Other servers in the place of all.
    EveryServer,
}

impl Reload {
    /// Every kind.
    pub(crate) const ALL: [Self; 4] = [Self::None, Self::Unchanged, Self::EveryPool, Self::EveryServer];

    /// The name in the tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "(no reload)",
            Self::Unchanged => "unchanged file",
            Self::EveryPool => "one server of each pool",
            Self::EveryServer => "all servers",
        }
    }

    /// What the file says at the reload.
    pub(crate) fn of(self, layout: &Layout) -> Layout {
        match self {
            Self::None | Self::Unchanged => layout.clone(),
            Self::EveryPool => layout.with_every_pool_changed(),
            Self::EveryServer => layout.with_other_servers(),
        }
    }
}
