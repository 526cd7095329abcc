//! What a list still lacks where its pool is large: the shares that the ring gives, for which each of its points is looked
//! at, and what commands have changed of the file. Taken in the same moment as the rest of the list, and told by somebody
//! who has more time than the loop.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ring::Ring;
use wire::difference::{Difference, Subject, differences};
use wire::report::ListReport;
use wire::settings::Settings;

use super::pool::Pool;
use super::{Model, PoolId, ServerId};

/// What they come from.
#[derive(Debug)]
pub(crate) struct Sharing {
    ring: Arc<Ring<ServerId>>,
    /// Those that are picked, unless all are.
    picked: Option<HashSet<ServerId>>,
    /// What the file said, and what holds of the pool; nothing without a file.
    said: Option<(Arc<Settings>, Settings)>,
}

impl Model {
    /// What the list of a pool with a large ring lacks, now.
    pub(crate) fn sharing(&self, id: PoolId) -> Option<Sharing> {
        let pool = self.pools.get(id)?;
        let serving = pool.serving();
        let ring = Arc::clone(serving.ring().filter(|ring| self.is_large(ring))?);
        let is_up = |id: &ServerId| self.servers[*id].is_up();
        let picked = (serving.picked() < serving.len()).then(|| serving.ids().filter(is_up).collect());
        Some(Sharing { ring, picked, said: self.said_and_present(pool) })
    }

    /// What the file said, and what holds of one pool; nothing without a file. The other pools are not copied.
    pub(super) fn said_and_present(&self, pool: &Pool) -> Option<(Arc<Settings>, Settings)> {
        self.vitals.config_file.as_ref()?;
        let of_it = [(pool.name.clone(), self.pool_settings(pool))].into_iter().collect();
        Some((Arc::clone(&self.said), Settings { pools: of_it, ..Settings::default() }))
    }
}

impl Sharing {
    /// Completes the list that was made in the same moment.
    pub(crate) fn complete(self, report: &mut ListReport) {
        let shares = match &self.picked {
            None => self.ring.shares(),
            Some(picked) => self.ring.shares_among(|member| picked.contains(&member.tag)),
        };
        let shares: HashMap<SocketAddr, f64> =
            shares.into_iter().map(|(identity, share)| (identity.addr(), share.fraction())).collect();
        for row in &mut report.servers {
            row.share = shares.get(&row.server).copied().unwrap_or_default();
        }
        if let Some((said, now)) = &self.said {
            report.deviations = deviations_of(&report.pool, said, now);
        }
    }
}

/// What of a pool holds that the file does not say; `now` has what holds of it, whatever else.
pub(super) fn deviations_of(pool: &str, said: &Settings, now: &Settings) -> Vec<Difference> {
    let is_of_it = |difference: &Difference| match &difference.subject {
        Subject::Pool { pool: its } | Subject::Server { pool: its, .. } => its == pool,
        _ => false,
    };
    differences(said, now).into_iter().filter(is_of_it).collect()
}

#[cfg(test)]
mod tests {
    use wire::control::{Change, PoolValues, Request, ServerValues};
    use wire::health::CheckKind;
    use wire::settings::{DEFAULT_POOL, PoolSettings};

    use crate::model::tests::*;
    use crate::model::{CheckResult, Duration, Instant, Model};

    /// Lets the checks of the next 20 seconds fail for server 2 alone.
    fn take_down(model: &mut Model, now: Instant) {
        let until = now + Duration::from_secs(20);
        while let Some(at) = model.next_check_due().filter(|at| *at <= until) {
            let (target, order) = model.next_check(at).expect("it is due");
            let outcome = if order.address == address(2) { Err(String::new()) } else { Ok(String::new()) };
            model.check_done(target, Some(&CheckResult { outcome, duration: Duration::ZERO }), at);
        }
    }

    #[test]
    fn a_list_that_is_completed_beside_the_loop_is_the_list() {
        let (mut model, _, now) = model();
        for number in 1..6 {
            changed(&mut model, &add(address(number), u32::from(number)), now);
        }
        // A file that says something else of one server and of another pool.
        model.vitals.config_file = Some("balancer.toml".to_owned());
        let mut said = model.settings();
        said.pools.insert("other".to_owned(), PoolSettings::default());
        said.pools.get_mut(DEFAULT_POOL).and_then(|pool| pool.servers.get_mut(&address(3))).expect("there").weight = 9;
        model.said = said.into();
        let checks = PoolValues { check: Some(CheckKind::Tcp), ..PoolValues::default() };
        let checks = Change::SetPool { pool: DEFAULT_POOL.to_owned(), values: checks };
        changed(&mut model, &Request::Change { change: checks, dry_run: false }, now);
        let compare = |model: &mut Model| {
            model.ring_in_the_loop = usize::MAX;
            let whole = list(model);
            model.ring_in_the_loop = 0;
            assert!(model.list(DEFAULT_POOL, now).expect("the pool").0 != whole, "it lacks something");
            assert_eq!(list(model), whole);
            whole
        };
        let all = compare(&mut model);
        assert_eq!(all.deviations.len(), 2, "{:?}", all.deviations);
        take_down(&mut model, now);
        let without = compare(&mut model);
        assert_eq!(without.servers[1].share, 0.0);
        assert!((without.servers.iter().map(|row| row.share).sum::<f64>() - 1.0).abs() < 1e-9);
        assert_ne!(all, without);
    }

    #[test]
    fn what_happens_while_a_list_is_completed_is_not_in_it() {
        let (mut model, _, now) = model();
        for number in 1..4 {
            changed(&mut model, &add(address(number), 1), now);
        }
        model.ring_in_the_loop = 0;
        let whole = list(&model);
        let (mut report, _) = model.list(DEFAULT_POOL, now).expect("the pool");
        let sharing = model.sharing(model.pool_named(DEFAULT_POOL).expect("the pool")).expect("its ring is large");
        model.ring_in_the_loop = usize::MAX;
        changed(&mut model, &set(address(1), ServerValues { weight: Some(4), ..ServerValues::default() }), now);
        changed(&mut model, &add(address(4), 1), now);
        sharing.complete(&mut report);
        assert_eq!(report, whole);
        assert_ne!(list(&model), whole);
    }
}
