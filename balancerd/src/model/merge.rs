//! Commands and file together: a three-way merge. What a file says anew wins; what it says as before leaves what commands
//! have changed. Pure, and the same at a reload and at a start.

use std::collections::BTreeMap;

use wire::connection::{ClientSide, ServerSide, SocketSettings};
use wire::difference::keys_of_both;
use wire::flow::{FlowPolicy, FlowSettings};
use wire::health::{CheckSettings, EjectionSettings, HealthSettings};
use wire::settings::{PoolSettings, ServerSettings, ServiceSettings, Settings};

/// What holds when `file` is read: `before` is what it said the last time, `present` what holds until now.
pub(crate) fn merge(before: &Settings, present: &Settings, file: &Settings) -> Settings {
    Settings {
        max_sessions: value(before.max_sessions, present.max_sessions, file.max_sessions),
        services: entries(&before.services, &present.services, &file.services, service),
        pools: entries(&before.pools, &present.pools, &file.pools, pool),
    }
}

fn service(before: &ServiceSettings, present: &ServiceSettings, file: &ServiceSettings) -> ServiceSettings {
    let list = |get: fn(&ServiceSettings) -> &Vec<ipnet::IpNet>| cloned(get(before), get(present), get(file));
    ServiceSettings {
        protocol: value(before.protocol, present.protocol, file.protocol),
        listen: cloned(&before.listen, &present.listen, &file.listen),
        pool: cloned(&before.pool, &present.pool, &file.pool),
        max_sessions: value(before.max_sessions, present.max_sessions, file.max_sessions),
        sessions_per_second: value(before.sessions_per_second, present.sessions_per_second, file.sessions_per_second),
        sessions_per_client: value(before.sessions_per_client, present.sessions_per_client, file.sessions_per_client),
        allow: list(|service| &service.allow),
        deny: list(|service| &service.deny),
        accept_proxy: list(|service| &service.accept_proxy),
        proxy_timeout_ms: value(before.proxy_timeout_ms, present.proxy_timeout_ms, file.proxy_timeout_ms),
        splice: value(before.splice, present.splice, file.splice),
        client_side: client_side(&before.client_side, &present.client_side, &file.client_side),
        flows: flows(before.flows, present.flows, file.flows),
        client_subnet_ipv6: value(before.client_subnet_ipv6, present.client_subnet_ipv6, file.client_subnet_ipv6),
        freebind: value(before.freebind, present.freebind, file.freebind),
        allow_file: cloned(&before.allow_file, &present.allow_file, &file.allow_file),
        deny_file: cloned(&before.deny_file, &present.deny_file, &file.deny_file),
    }
}

fn pool(before: &PoolSettings, present: &PoolSettings, file: &PoolSettings) -> PoolSettings {
    PoolSettings {
        policy: value(before.policy, present.policy, file.policy),
        key: value(before.key, present.key, file.key),
        max_load: value(before.max_load, present.max_load, file.max_load),
        points_per_weight: value(before.points_per_weight, present.points_per_weight, file.points_per_weight),
        slow_start_ms: value(before.slow_start_ms, present.slow_start_ms, file.slow_start_ms),
        send_proxy: value(before.send_proxy, present.send_proxy, file.send_proxy),
        health: health(&before.health, &present.health, &file.health),
        server_side: server_side(&before.server_side, &present.server_side, &file.server_side),
        flows: flow_policy(before.flows, present.flows, file.flows),
        servers: entries(&before.servers, &present.servers, &file.servers, server),
    }
}

fn health(before: &HealthSettings, present: &HealthSettings, file: &HealthSettings) -> HealthSettings {
    HealthSettings {
        check: check(&before.check, &present.check, &file.check),
        ejection: ejection(before.ejection, present.ejection, file.ejection),
        when_all_down: value(before.when_all_down, present.when_all_down, file.when_all_down),
        on_down: value(before.on_down, present.on_down, file.on_down),
    }
}

fn check(before: &CheckSettings, present: &CheckSettings, file: &CheckSettings) -> CheckSettings {
    CheckSettings {
        // What it does is one value with all that belongs to it.
        kind: cloned(&before.kind, &present.kind, &file.kind),
        interval_ms: value(before.interval_ms, present.interval_ms, file.interval_ms),
        undecided_interval_ms: value(
            before.undecided_interval_ms,
            present.undecided_interval_ms,
            file.undecided_interval_ms,
        ),
        down_interval_ms: value(before.down_interval_ms, present.down_interval_ms, file.down_interval_ms),
        timeout_ms: value(before.timeout_ms, present.timeout_ms, file.timeout_ms),
        rise: value(before.rise, present.rise, file.rise),
        fall: value(before.fall, present.fall, file.fall),
        port: value(before.port, present.port, file.port),
        initial: value(before.initial, present.initial, file.initial),
    }
}

fn ejection(before: EjectionSettings, present: EjectionSettings, file: EjectionSettings) -> EjectionSettings {
    EjectionSettings {
        failures: value(before.failures, present.failures, file.failures),
        time_ms: value(before.time_ms, present.time_ms, file.time_ms),
        max_time_ms: value(before.max_time_ms, present.max_time_ms, file.max_time_ms),
        max_percent: value(before.max_percent, present.max_percent, file.max_percent),
    }
}

fn server(before: &ServerSettings, present: &ServerSettings, file: &ServerSettings) -> ServerSettings {
    ServerSettings {
        weight: value(before.weight, present.weight, file.weight),
        state: value(before.state, present.state, file.state),
        max_sessions: value(before.max_sessions, present.max_sessions, file.max_sessions),
        backup: value(before.backup, present.backup, file.backup),
        check_address: value(before.check_address, present.check_address, file.check_address),
    }
}

fn flows(before: FlowSettings, present: FlowSettings, file: FlowSettings) -> FlowSettings {
    FlowSettings {
        timeout_ms: value(before.timeout_ms, present.timeout_ms, file.timeout_ms),
        requests: value(before.requests, present.requests, file.requests),
        answers: value(before.answers, present.answers, file.answers),
        accept_proxy_in: value(before.accept_proxy_in, present.accept_proxy_in, file.accept_proxy_in),
    }
}

fn flow_policy(before: FlowPolicy, present: FlowPolicy, file: FlowPolicy) -> FlowPolicy {
    FlowPolicy {
        one_way: value(before.one_way, present.one_way, file.one_way),
        per_datagram: value(before.per_datagram, present.per_datagram, file.per_datagram),
        on_loss: value(before.on_loss, present.on_loss, file.on_loss),
        on_return: value(before.on_return, present.on_return, file.on_return),
        send_proxy_in: value(before.send_proxy_in, present.send_proxy_in, file.send_proxy_in),
        path_mtu: value(before.path_mtu, present.path_mtu, file.path_mtu),
    }
}

fn client_side(before: &ClientSide, present: &ClientSide, file: &ClientSide) -> ClientSide {
    ClientSide {
        idle_timeout_ms: value(before.idle_timeout_ms, present.idle_timeout_ms, file.idle_timeout_ms),
        half_closed_timeout_ms: value(
            before.half_closed_timeout_ms,
            present.half_closed_timeout_ms,
            file.half_closed_timeout_ms,
        ),
        max_age_ms: value(before.max_age_ms, present.max_age_ms, file.max_age_ms),
        backlog: value(before.backlog, present.backlog, file.backlog),
        defer_accept_ms: value(before.defer_accept_ms, present.defer_accept_ms, file.defer_accept_ms),
        fast_open: value(before.fast_open, present.fast_open, file.fast_open),
        socket: socket(&before.socket, &present.socket, &file.socket),
    }
}

fn server_side(before: &ServerSide, present: &ServerSide, file: &ServerSide) -> ServerSide {
    ServerSide {
        connect_timeout_ms: value(before.connect_timeout_ms, present.connect_timeout_ms, file.connect_timeout_ms),
        tries: value(before.tries, present.tries, file.tries),
        replay: value(before.replay, present.replay, file.replay),
        source: cloned(&before.source, &present.source, &file.source),
        transparent: value(before.transparent, present.transparent, file.transparent),
        fast_open: value(before.fast_open, present.fast_open, file.fast_open),
        mark: value(before.mark, present.mark, file.mark),
        device: cloned(&before.device, &present.device, &file.device),
        socket: socket(&before.socket, &present.socket, &file.socket),
    }
}

fn socket(before: &SocketSettings, present: &SocketSettings, file: &SocketSettings) -> SocketSettings {
    SocketSettings {
        keepalive_ms: value(before.keepalive_ms, present.keepalive_ms, file.keepalive_ms),
        user_timeout_ms: value(before.user_timeout_ms, present.user_timeout_ms, file.user_timeout_ms),
        congestion: cloned(&before.congestion, &present.congestion, &file.congestion),
        send_buffer: value(before.send_buffer, present.send_buffer, file.send_buffer),
        receive_buffer: value(before.receive_buffer, present.receive_buffer, file.receive_buffer),
    }
}

fn value<T: PartialEq + Copy>(before: T, present: T, file: T) -> T {
    if file == before { present } else { file }
}

fn cloned<T: PartialEq + Clone>(before: &T, present: &T, file: &T) -> T {
    value(before, present, file).clone()
}

/// An entry that the file changed is the file's, value by value; one that is new or gone in it, as a whole.
fn entries<K: Ord + Clone, T: PartialEq + Clone>(
    before: &BTreeMap<K, T>,
    present: &BTreeMap<K, T>,
    file: &BTreeMap<K, T>,
    both: impl Fn(&T, &T, &T) -> T,
) -> BTreeMap<K, T> {
    let merged = |name: &K| match (before.get(name), present.get(name), file.get(name)) {
        (before, present, file) if before == file => present.cloned(),
        (Some(before), Some(present), Some(file)) => Some(both(before, present, file)),
        (_, _, file) => file.cloned(),
    };
    keys_of_both(present, file).into_iter().filter_map(|name| Some((name.clone(), merged(name)?))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::settings::AdminState;

    use super::*;
    use crate::model::tests::any_settings;

    proptest! {
        #[test]
        fn an_unchanged_file_changes_nothing(file in any_settings(), present in any_settings()) {
            prop_assert_eq!(merge(&file, &present, &file), present);
        }

        #[test]
        fn without_commands_the_file_holds(before in any_settings(), file in any_settings()) {
            prop_assert_eq!(merge(&before, &before, &file), file);
        }

        #[test]
        fn to_read_a_file_twice_is_to_read_it_once(a in any_settings(), b in any_settings(), c in any_settings()) {
            let once = merge(&a, &b, &c);
            prop_assert_eq!(merge(&c, &once, &c), once);
        }

        #[test]
        fn every_value_is_the_files_or_the_commands(a in any_settings(), b in any_settings(), c in any_settings()) {
            for (name, pool) in &merge(&a, &b, &c).pools {
                let sources = [b.pools.get(name), c.pools.get(name)];
                let from = || sources.into_iter().flatten();
                prop_assert!(from().any(|source| source.policy == pool.policy));
                for (address, server) in &pool.servers {
                    let weights = from().filter_map(|source| source.servers.get(address)).map(|it| it.weight);
                    prop_assert!(weights.collect::<Vec<_>>().contains(&server.weight));
                }
            }
        }
    }

    fn one(weight: u32, state: AdminState) -> Settings {
        let server = ServerSettings { weight, state, ..ServerSettings::default() };
        let servers = [(([10, 0, 0, 1], 80).into(), server)].into();
        let pool = PoolSettings { servers, ..PoolSettings::default() };
        Settings { pools: [("web".to_owned(), pool)].into(), ..Settings::default() }
    }

    #[test]
    fn values_of_one_server_are_merged_each_by_itself() {
        let (before, present) = (one(1, AdminState::Ready), one(1, AdminState::Drain));
        assert_eq!(merge(&before, &present, &one(5, AdminState::Ready)), one(5, AdminState::Drain));
    }

    #[test]
    fn a_server_that_a_command_removed_comes_back_only_when_the_file_says_something_new_of_it() {
        let (before, mut present) = (one(1, AdminState::Ready), one(1, AdminState::Ready));
        present.pools.get_mut("web").expect("a pool").servers.clear();
        assert_eq!(merge(&before, &present, &before), present);
        assert_eq!(merge(&before, &present, &one(2, AdminState::Ready)), one(2, AdminState::Ready));
    }
}
