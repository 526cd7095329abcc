//! Services, pools and servers of the soak, and the configuration file that says them, a little differently each time.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use bench::servers::free_port;
use fastrand::Rng;

use crate::findings::Findings;
use crate::server::{self, Conduct};

/// Where services listen.
pub(crate) const FRONT: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A pool, and the service that it serves, which has its name.
pub(crate) struct Pool {
    pub(crate) name: &'static str,
    pub(crate) listen: SocketAddr,
    policy: &'static str,
    /// It is well and always there: never removed, drained or limited. So a client can always be served.
    pub(crate) anchor: SocketAddr,
    /// They come and go.
    pub(crate) spares: Vec<SocketAddr>,
    /// All of its servers are well: each client has to be served.
    pub(crate) is_strict: bool,
}

/// Servers that come and go in a strict pool, beside one that is in all of them.
const SPARES: usize = 3;

/// Starts the servers and finds addresses for the services.
pub(crate) fn pools(seed: u64, findings: &Arc<Findings>) -> Result<Vec<Pool>> {
    let mut next = 1;
    let mut start = |conduct| {
        next += 1;
        server::start(Ipv4Addr::new(127, 2, 0, next), conduct, seed ^ u64::from(next), findings)
    };
    let shared = start(Conduct::Well)?;
    let mut pools = Vec::new();
    for policy in ["consistent-hash", "round-robin", "least-connections"] {
        let listen = SocketAddr::from((FRONT, free_port(FRONT)?));
        let anchor = start(Conduct::Well)?;
        let mut spares = vec![shared];
        for _ in 0..SPARES {
            spares.push(start(Conduct::Well)?);
        }
        pools.push(Pool { name: policy, listen, policy, anchor, spares, is_strict: true });
    }
    let listen = SocketAddr::from((FRONT, free_port(FRONT)?));
    let (anchor, conducts) = (start(Conduct::Well)?, [Conduct::Silent, Conduct::Resetting, Conduct::Flapping]);
    let spares = conducts.into_iter().map(&mut start).collect::<Result<_>>()?;
    pools.push(Pool { name: "rough", listen, policy: "consistent-hash", anchor, spares, is_strict: false });
    Ok(pools)
}

/// A file as it is at the start and at the end, or another one that is drawn.
pub(crate) fn file(pools: &[Pool], mut rng: Option<&mut Rng>) -> String {
    let mut text = String::new();
    let mut draws = |share: u32| rng.as_mut().is_some_and(|rng| rng.u32(0..100) < share);
    for Pool { name, listen, policy, anchor, spares, .. } in pools {
        let _ = writeln!(text, "[service.{name}]\nlisten = \"{listen}\"\npool = \"{name}\"");
        if draws(30) {
            // Further clients wait, and each has its turn.
            text.push_str("max_sessions = 8\n");
        }
        if draws(20) {
            text.push_str("sessions_per_second = 50\n");
        }
        let _ = writeln!(text, "splice = {}\n", !draws(30));
        let _ = writeln!(text, "[pool.{name}]\npolicy = \"{policy}\"\ncheck = \"tcp\"\ncheck_interval = \"200ms\"");
        if draws(20) {
            text.push_str("slow_start = \"1s\"\n");
        }
        let _ = writeln!(text, "servers = [\n    {{ address = \"{anchor}\", weight = {} }},", 1 + u8::from(draws(30)));
        for spare in spares {
            if !draws(20) {
                let (weight, state) = (1 + u8::from(draws(30)), if draws(10) { "drain" } else { "ready" });
                let _ = writeln!(text, "    {{ address = \"{spare}\", weight = {weight}, state = \"{state}\" }},");
            }
        }
        text.push_str("]\n\n");
    }
    text
}
