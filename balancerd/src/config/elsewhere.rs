//! Words of other balancers (HAProxy, nginx, Envoy, Traefik), and what says the same in this file. Only messages use them:
//! `section` those of keys, `value` those of values. No such word is accepted.

/// What the key is in this file.
pub(super) fn key(word: &str) -> Option<&'static str> {
    Some(match word {
        "frontend" | "frontends" | "listener" | "listeners" | "virtual_server" | "entryPoints" => {
            "a section [service.NAME]"
        }
        "backend" | "backends" | "upstream" | "upstreams" | "cluster" | "clusters" | "default_backend"
        | "use_backend" | "proxy_pass" => "a section [pool.NAME] with servers, and pool = \"NAME\" of a service",
        "bind" | "bind_on" | "listen_addr" | "listen_address" => "listen of a [service.NAME]",
        "global" | "defaults" | "stream" => "the section [balancer]; services and pools have their own settings",
        "balance" | "lb_policy" | "lb_algo" | "method" | "algorithm" | "strategy" | "load_balancing" => {
            "policy of a [pool.NAME]"
        }
        "hash" | "hash-type" | "hash_key" => "policy = \"consistent-hash\" with key, of a [pool.NAME]",
        "maxconn" | "max_conns" | "max_connections" | "limit_conn" | "fullconn" | "worker_connections" => {
            "max_sessions: of [balancer], of a [service.NAME], or of a server"
        }
        "maxconnrate" | "rate-limit" | "rate_limit" | "maxsessrate" => "sessions_per_second of a [service.NAME]",
        "timeout" | "timeouts" | "proxy_read_timeout" => {
            "connect_timeout of a [pool.NAME], and idle_timeout, half_closed_timeout and flow_timeout of a [service.NAME]"
        }
        "timeout_connect" | "proxy_connect_timeout" => "connect_timeout of a [pool.NAME]",
        "timeout_client" | "timeout_server" | "timeout_tunnel" | "proxy_timeout" => "idle_timeout of a [service.NAME]",
        "max_fails" | "fall" | "unhealthy_threshold" => {
            "check_fall for checks, and eject_failures for failures of clients, of a [pool.NAME]"
        }
        "fail_timeout" | "base_ejection_time" => "eject_time of a [pool.NAME]",
        "rise" | "healthy_threshold" => "check_rise of a [pool.NAME]",
        "inter" | "health_check_interval" | "interval" => "check_interval of a [pool.NAME]",
        "option" | "health_check" | "health_checks" | "httpchk" | "healthCheck" => "check of a [pool.NAME]",
        "retries" | "proxy_next_upstream_tries" | "max_connect_attempts" => "tries of a [pool.NAME]",
        "mode" => "protocol of a [service.NAME]",
        "weight" => "weight of a server, { address = \"10.0.0.1:80\", weight = 2 }",
        "server" | "forward_to" | "endpoints" | "lb_endpoints" | "loadBalancer" => "servers of a [pool.NAME]",
        "addr" | "host" | "ip" | "url" | "socket_address" => "address of a server, \"10.0.0.1:80\"",
        "disabled" => "state = \"maintenance\" of a server",
        "down" => "state = \"maintenance\" of a server",
        "slowstart" => "slow_start of a [pool.NAME]",
        "send-proxy" | "send-proxy-v2" => "send_proxy = \"v1\" or \"v2\" of a [pool.NAME]",
        "accept-proxy" | "proxy_protocol" => "accept_proxy of a [service.NAME], or send_proxy of a [pool.NAME]",
        "acl" | "tcp-request" => "allow and deny of a [service.NAME]",
        _ => return None,
    })
}

/// The name that a value has in this file, if that is among the names that are allowed there.
pub(super) fn value<'n>(word: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let ours = match word {
        "roundrobin" | "rr" | "round_robin" | "ROUND_ROBIN" | "static-rr" | "wrr" => "round-robin",
        "leastconn" | "least_conn" | "lc" | "wlc" | "least_request" | "LEAST_REQUEST" => "least-connections",
        "source" | "ip_hash" | "hash" | "sh" | "mh" | "maglev" | "MAGLEV" | "ring_hash" | "RING_HASH" => {
            "consistent-hash"
        }
        "src" | "remote_addr" | "$remote_addr" | "$binary_remote_addr" => "client-ip",
        "maint" | "disabled" | "offline" => "maintenance",
        "enabled" | "online" | "active" => "ready",
        _ => return None,
    };
    names.into_iter().find(|name| *name == ours)
}

#[cfg(test)]
mod tests {
    use wire::settings::{AdminState, HashKey, Policy};

    use super::*;

    #[test]
    fn what_is_said_for_a_value_is_allowed() {
        let policies = || Policy::ALL.map(Policy::name);
        for (word, ours) in [
            ("roundrobin", "round-robin"),
            ("leastconn", "least-connections"),
            ("least_conn", "least-connections"),
            ("source", "consistent-hash"),
            ("ip_hash", "consistent-hash"),
        ] {
            assert_eq!(value(word, policies()), Some(ours), "{word}");
        }
        assert_eq!(value("maint", AdminState::ALL.map(AdminState::name)), Some("maintenance"));
        assert_eq!(value("src", [HashKey::ClientIp.name()]), Some("client-ip"));
        assert_eq!(value("source", ["tcp", "udp"]), None, "it is no name of that key");
    }
}
