//! Texts that say given settings, in all the ways in which people write them.

use std::net::SocketAddr;

use proptest::prelude::*;
use wire::Settings;
use wire::difference::Subject;
use wire::settings::{PoolSettings, ServerSettings};

use crate::edit::values::{Values, bare, inline, key_text, new_pool, new_server, service_values};

/// Whose line it is: it stays as it is if nothing is changed on its owner.
#[derive(Debug, Clone)]
pub(super) enum Owner {
    Nobody,
    Of(Subject),
    /// Of a pool with all that is in it.
    AllOf(String),
}

/// The ways to write a pool.
#[derive(Debug, Clone, Copy)]
pub(super) enum Style {
    OneLine,
    Lines { comma: bool },
    Tables { gap: bool },
    TablesAlone,
    Dotted,
    Braces,
}

pub(super) fn any_style() -> impl Strategy<Value = Style> {
    prop_oneof![
        Just(Style::OneLine),
        any::<bool>().prop_map(|comma| Style::Lines { comma }),
        any::<bool>().prop_map(|gap| Style::Tables { gap }),
        Just(Style::TablesAlone),
        Just(Style::Dotted),
        Just(Style::Braces),
    ]
}

#[derive(Debug, Default)]
pub(super) struct Text(pub(super) Vec<(String, Option<Owner>)>);

impl Text {
    fn line(&mut self, owner: &Owner, text: impl Into<String>) {
        self.0.push((text.into(), Some(owner.clone())));
    }

    /// `key = value` of each on a line of its own, some with a comment.
    fn values(&mut self, owner: &Owner, begin: &str, values: &Values) {
        for (index, (key, value)) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let comment = if index % 2 == 0 { "  # so it is" } else { "" };
            self.line(owner, format!("{begin}{key}   =  {}{comment}", bare(value)));
        }
    }

    pub(super) fn whole(&self, newline: &str) -> String {
        self.0.iter().map(|(line, _)| format!("{line}{newline}")).collect()
    }
}

/// A pool, and what of it stands before the first heading.
fn render_pool(name: &str, pool: &PoolSettings, style: Style, top: &mut Text, text: &mut Text) {
    let subject = Subject::Pool { pool: name.to_owned() };
    let (owner, all) = (Owner::Of(subject), Owner::AllOf(name.to_owned()));
    let key = key_text(name);
    let mut values = new_pool(pool);
    values.reverse();
    let server = |(address, server): (&SocketAddr, &ServerSettings)| {
        let owner = Owner::Of(Subject::Server { pool: name.to_owned(), server: *address });
        (owner, new_server(*address, server))
    };
    let servers: Vec<(Owner, Values)> = pool.servers.iter().map(server).collect();
    let inlined = || servers.iter().map(|(_, one)| inline(one, "")).collect::<Vec<_>>().join(" , ");
    match style {
        Style::Dotted => {
            top.values(&owner, &format!("pool.{key} . "), &values);
            top.line(&all, format!("pool.{key}.servers=[ {} ] # all", inlined()));
        }
        Style::Braces => {
            values.retain(|(_, value)| value.is_some());
            let inner = inline(&values, "");
            let inner = inner.trim_start_matches('{').trim_end_matches('}');
            text.line(&all, format!("[pool]  # {name}"));
            text.line(&all, format!("{key} = {{ {inner}, servers = [{}] }}", inlined()));
        }
        Style::OneLine => {
            text.line(&owner, format!("# the pool {name}"));
            text.line(&owner, format!("[pool.{key}] # {name}"));
            text.line(&all, format!("  servers = [{}]", inlined()));
            text.values(&owner, "  ", &values);
        }
        Style::Lines { comma } => {
            text.line(&owner, format!("[ pool . {key} ]"));
            text.values(&owner, "", &values);
            text.line(&owner, "servers = [".to_owned());
            for (index, (owner, one)) in servers.iter().enumerate() {
                if index % 2 == 1 {
                    text.line(owner, format!("\t# number {index}"));
                }
                let is_last = index + 1 == servers.len();
                let comma = if is_last && !comma { "" } else { "," };
                text.line(if is_last { &all } else { owner }, format!("\t{}{comma} # {index}", inline(one, " ")));
            }
            text.line(&owner, "]");
        }
        Style::Tables { .. } | Style::TablesAlone => {
            let gap = matches!(style, Style::Tables { gap: true });
            // Only a pool that is as usual, and has servers, can do without its own heading.
            let plain = PoolSettings { servers: pool.servers.clone(), ..PoolSettings::default() };
            if !matches!(style, Style::TablesAlone) || *pool != plain || servers.is_empty() {
                text.line(&owner, format!("[pool.{key}]"));
                text.values(&owner, "", &values);
            }
            for (index, (owner, one)) in servers.iter().enumerate() {
                if gap {
                    text.line(&Owner::AllOf(name.to_owned()), "");
                }
                text.line(owner, format!("# number {index}"));
                text.line(owner, format!("[[pool.{key}.servers]]"));
                text.values(owner, "  ", one);
            }
        }
    }
    text.line(&all, "");
}

pub(super) fn render(settings: &Settings, styles: &[Style]) -> Text {
    let (mut top, mut text) = (Text::default(), Text::default());
    top.line(&Owner::Nobody, "# Balancers, 2026");
    top.line(&Owner::Nobody, "");
    if let Some(limit) = settings.max_sessions {
        text.line(&Owner::Of(Subject::Balancer), "[balancer]");
        text.line(&Owner::Of(Subject::Balancer), format!("max_sessions = {limit} # all"));
    }
    let mut braces = false;
    for ((name, pool), style) in settings.pools.iter().zip(styles) {
        // There can be one table [pool], and none of dotted keys beside it.
        let style = match style {
            Style::Braces if braces || styles.iter().any(|style| matches!(style, Style::Dotted)) => Style::OneLine,
            style => *style,
        };
        braces |= matches!(style, Style::Braces);
        render_pool(name, pool, style, &mut top, &mut text);
    }
    for (name, service) in &settings.services {
        let owner = Owner::Of(Subject::Service { service: name.clone() });
        text.line(&owner, format!("[service.{}]", key_text(name)));
        text.values(&owner, "", &service_values(service));
    }
    text.line(&Owner::Nobody, "");
    text.line(&Owner::Nobody, "# the end");
    top.0.extend(text.0);
    top
}
