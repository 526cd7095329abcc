//! What is to be checked, and when: each address once, for whoever has it in a pool with the same checks and headers. A server joins a
//! target and leaves it; the times between two checks are its owner's affair.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slotmap::SlotMap;
use wire::connection::ServerSide;
use wire::health::CheckSettings;
use wire::settings::{PoolSettings, SendProxy};

use super::ServerId;

slotmap::new_key_type! {
    /// Something that is checked, as long as a server needs it.
    pub(crate) struct TargetId;
}

/// Where, and how.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Order {
    pub(crate) address: SocketAddr,
    pub(crate) settings: Arc<CheckSettings>,
    /// How its connections leave: see [`side_of_checks`].
    pub(crate) side: Arc<ServerSide>,
    /// The header that its servers get first, if they do.
    pub(crate) send_proxy: Option<SendProxy>,
}

/// How the checks of a pool leave whose clients' connections are so: from the same addresses, by the same routes. They are
/// nobody's, and so never from a client's address.
pub(super) fn side_of_checks(side: &ServerSide) -> Arc<ServerSide> {
    let ServerSide { source, mark, device, .. } = side.clone();
    Arc::new(ServerSide { source, mark, device, ..ServerSide::default() })
}

/// Whether the servers of a pool are to be checked in another way than before.
pub(super) fn checked_otherwise(before: &PoolSettings, after: &PoolSettings) -> bool {
    before.health != after.health
        || before.send_proxy != after.send_proxy
        || side_of_checks(&before.server_side) != side_of_checks(&after.server_side)
}

/// All that is checked.
#[derive(Debug, Default)]
pub(super) struct Checks {
    targets: SlotMap<TargetId, Target>,
    by_order: HashMap<Order, TargetId>,
    /// Those whose check does not run, by when it is to begin.
    due: BTreeSet<(Instant, TargetId)>,
}

#[derive(Debug)]
struct Target {
    order: Order,
    servers: BTreeSet<ServerId>,
    /// When its next check begins; nothing while one runs.
    next: Option<Instant>,
}

impl Checks {
    /// A server is to be checked so; `present` is how it was until now. What of it does not change, stays. A new target is
    /// checked within `delay` for the first time.
    pub(super) fn assign(
        &mut self,
        server: ServerId,
        present: Option<TargetId>,
        order: Option<Order>,
        delay: impl FnOnce() -> Duration,
        now: Instant,
    ) -> Option<TargetId> {
        if let Some(id) = present {
            if order.as_ref() == Some(&self.targets[id].order) {
                return present;
            }
            let target = &mut self.targets[id];
            target.servers.remove(&server);
            if target.servers.is_empty() {
                self.forget(id);
            }
        }
        let order = order?;
        let id = match self.by_order.get(&order) {
            Some(id) => *id,
            None => {
                let next = now + delay();
                let servers = BTreeSet::new();
                let id = self.targets.insert(Target { order: order.clone(), servers, next: Some(next) });
                self.by_order.insert(order, id);
                self.due.insert((next, id));
                id
            }
        };
        self.targets[id].servers.insert(server);
        Some(id)
    }

    fn forget(&mut self, id: TargetId) {
        let Some(target) = self.targets.remove(id) else { return };
        self.by_order.remove(&target.order);
        if let Some(next) = target.next {
            self.due.remove(&(next, id));
        }
    }

    /// When the next check is to begin.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// A check that is to begin now, if there is one. It counts as running until [`Checks::done`].
    pub(super) fn begin(&mut self, now: Instant) -> Option<(TargetId, Order)> {
        let first = self.due.first().copied().filter(|(at, _)| *at <= now)?;
        self.due.remove(&first);
        let target = &mut self.targets[first.1];
        target.next = None;
        Some((first.1, target.order.clone()))
    }

    /// The servers that a check was for; nobody when all have gone meanwhile.
    pub(super) fn servers(&self, id: TargetId) -> Option<(&Order, impl Iterator<Item = ServerId>)> {
        self.targets.get(id).map(|target| (&target.order, target.servers.iter().copied()))
    }

    /// A check has ended: the next one begins at this time.
    pub(super) fn done(&mut self, id: TargetId, next: Instant) {
        if let Some(target) = self.targets.get_mut(id).filter(|target| target.next.is_none()) {
            target.next = Some(next);
            self.due.insert((next, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use slotmap::SlotMap as Servers;

    use super::*;
    use crate::event;

    fn order(port: u16, interval_ms: u64) -> Order {
        let settings = CheckSettings { interval_ms, ..CheckSettings::default() };
        let (address, side) = (([10, 0, 0, 1], port).into(), Arc::default());
        Order { address, settings: Arc::new(settings), side, send_proxy: None }
    }

    #[test]
    fn the_same_address_with_the_same_checks_is_checked_once() {
        let now = event::now();
        let mut servers = Servers::<ServerId, ()>::with_key();
        let [one, two, three] = [(); 3].map(|()| servers.insert(()));
        let mut checks = Checks::default();
        let join = |checks: &mut Checks, server, order| {
            checks.assign(server, None, Some(order), || Duration::from_secs(1), now).expect("a target")
        };
        let first = join(&mut checks, one, order(80, 2000));
        assert_eq!(join(&mut checks, two, order(80, 2000)), first);
        let other = join(&mut checks, three, order(80, 3000));
        assert_ne!(other, first);
        let later = now + Duration::from_secs(1);
        assert_eq!((checks.next_due(), checks.begin(now)), (Some(later), None));
        let mut begun: Vec<TargetId> = std::iter::from_fn(|| checks.begin(later)).map(|(id, _)| id).collect();
        begun.sort();
        assert_eq!(begun, [first, other]);
        assert_eq!(checks.next_due(), None, "both run");
        assert_eq!(checks.servers(first).expect("there").1.collect::<Vec<_>>(), [one, two]);

        checks.done(first, later);
        checks.done(first, later + Duration::from_secs(9));
        assert_eq!(checks.next_due(), Some(later), "it is done once");
        assert_eq!(checks.assign(one, Some(first), None, || Duration::ZERO, now), None);
        assert_eq!(checks.assign(two, Some(first), Some(order(81, 2000)), || Duration::ZERO, now), {
            let moved = checks.by_order.get(&order(81, 2000)).copied();
            assert!(moved.is_some());
            moved
        });
        assert!(checks.servers(first).is_none(), "nobody needs it");
        checks.done(first, later);
        assert_eq!(checks.due.len(), 1);
    }

    #[test]
    fn those_who_are_told_something_else_first_are_checked_apart() {
        let now = event::now();
        let mut servers = Servers::<ServerId, ()>::with_key();
        let mut checks = Checks::default();
        let v2 = |crc32c| Some(SendProxy::V2 { crc32c, unique_id: false });
        let kinds = [None, Some(SendProxy::V1), v2(false), v2(true)];
        let mut join = |send_proxy| {
            let order = Order { send_proxy, ..order(80, 2000) };
            checks.assign(servers.insert(()), None, Some(order), || Duration::ZERO, now).expect("a target")
        };
        let targets = kinds.map(&mut join);
        assert_eq!(BTreeSet::from(targets).len(), kinds.len());
        assert_eq!(kinds.map(join), targets);
    }

    #[test]
    fn those_who_are_reached_by_another_way_are_checked_apart() {
        let now = event::now();
        let mut servers = Servers::<ServerId, ()>::with_key();
        let mut checks = Checks::default();
        let from = |last| ServerSide { source: vec![[10, 0, 0, last].into()], ..ServerSide::default() };
        let by = |device: &str| ServerSide { device: Some(device.to_owned()), ..ServerSide::default() };
        let marked = ServerSide { mark: NonZeroU32::new(1), ..ServerSide::default() };
        let ways = [ServerSide::default(), from(1), from(2), by("lo"), by("eth0"), marked];
        let mut join = |side: &ServerSide| {
            let order = Order { side: side_of_checks(side), ..order(80, 2000) };
            checks.assign(servers.insert(()), None, Some(order), || Duration::ZERO, now).expect("a target")
        };
        let targets = ways.each_ref().map(&mut join);
        assert_eq!(BTreeSet::from(targets).len(), ways.len());
        // What is for clients alone makes no difference.
        let of_clients = |side: ServerSide| ServerSide { transparent: true, fast_open: true, replay: 9, ..side };
        assert_eq!(ways.map(of_clients).each_ref().map(join), targets);
    }

    #[test]
    fn what_does_not_change_keeps_its_time() {
        let now = event::now();
        let server = Servers::<ServerId, ()>::with_key().insert(());
        let mut checks = Checks::default();
        let first = checks.assign(server, None, Some(order(80, 2000)), || Duration::from_secs(1), now);
        let again = checks.assign(server, first, Some(order(80, 2000)), || unreachable!("it is there"), now);
        assert_eq!(again, first);
        assert_eq!(checks.next_due(), Some(now + Duration::from_secs(1)));
    }
}
