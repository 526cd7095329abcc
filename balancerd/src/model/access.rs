//! Whom a service lets in, and whose connections begin with a header: its networks, those of its settings and those of files.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use wire::control::Refusal;
use wire::difference::{Difference, Subject};
use wire::settings::{ServiceSettings, Settings};

use super::networks::Networks;

/// The access of each service.
pub(crate) type AccessByService = BTreeMap<String, Access>;

/// The networks of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Access {
    allow: Arc<Networks>,
    deny: Arc<Networks>,
    proxies: Arc<Networks>,
    /// Those of `allow_file`, if it has one.
    allow_file: Option<Arc<Networks>>,
    /// Those of `deny_file`.
    deny_file: Option<Arc<Networks>>,
}

impl Access {
    /// What the settings say; of files there is nothing yet.
    pub(crate) fn new(settings: &ServiceSettings) -> Self {
        let of_file = |path: &Option<String>| path.as_ref().map(|_| Arc::default());
        Self {
            allow: Arc::new(Networks::of(&settings.allow)),
            deny: Arc::new(Networks::of(&settings.deny)),
            proxies: Arc::new(Networks::of(&settings.accept_proxy)),
            allow_file: of_file(&settings.allow_file),
            deny_file: of_file(&settings.deny_file),
        }
    }

    /// Whether a client is let in: where there are networks that are allowed, it is in one of them, and in none that is
    /// denied.
    pub(crate) fn lets_in(&self, client: IpAddr) -> bool {
        let in_file = |file: &Option<Arc<Networks>>| file.as_ref().is_some_and(|networks| networks.contains(client));
        let everybody = self.allow.count() == 0 && self.allow_file.is_none();
        (everybody || self.allow.contains(client) || in_file(&self.allow_file))
            && !self.deny.contains(client)
            && !in_file(&self.deny_file)
    }

    /// Whether the connections of an address begin with a header.
    pub(crate) fn is_proxy(&self, address: IpAddr) -> bool {
        self.proxies.contains(address)
    }

    /// Has what is equal to that of `before` be the same one: who compares them later, in the loop, sees it at once.
    pub(super) fn share(&mut self, before: &Self) {
        let share = |new: &mut Arc<Networks>, old: &Arc<Networks>| {
            if new == old {
                *new = Arc::clone(old);
            }
        };
        share(&mut self.allow, &before.allow);
        share(&mut self.deny, &before.deny);
        share(&mut self.proxies, &before.proxies);
        for (new, old) in [(&mut self.allow_file, &before.allow_file), (&mut self.deny_file, &before.deny_file)] {
            if let (Some(new), Some(old)) = (new, old) {
                share(new, old);
            }
        }
    }

    /// Networks that are allowed, denied, and those of proxies, files included.
    pub(crate) fn counts(&self) -> [u64; 3] {
        let of_file = |file: &Option<Arc<Networks>>| file.as_ref().map_or(0, |networks| networks.count());
        let counts = [
            self.allow.count() + of_file(&self.allow_file),
            self.deny.count() + of_file(&self.deny_file),
            self.proxies.count(),
        ];
        counts.map(|count| count as u64)
    }
}

/// What the services of these settings have for their access. Each file is read once.
///
/// # Errors
/// When a file cannot be read, or has something else than networks.
pub(crate) fn access_of(
    settings: &Settings,
    read: impl Fn(&str) -> Result<Networks, Refusal>,
) -> Result<AccessByService, Refusal> {
    let mut files: BTreeMap<&str, Arc<Networks>> = BTreeMap::new();
    let mut all = AccessByService::new();
    for (name, service) in &settings.services {
        let mut access = Access::new(service);
        for (path, networks) in
            [(&service.allow_file, &mut access.allow_file), (&service.deny_file, &mut access.deny_file)]
        {
            let Some(path) = path else { continue };
            if !files.contains_key(path.as_str()) {
                files.insert(path, Arc::new(read(path)?));
            }
            *networks = files.get(path.as_str()).cloned();
        }
        if let (Some(path), Some(allowed)) = (&service.allow_file, &access.allow_file)
            && allowed.count() == 0
        {
            let fault = format!(
                "{path}: it has no network, which would keep everybody out; to let everybody in leave allow_file out"
            );
            return Err(Refusal::BadFile { fault });
        }
        all.insert(name.clone(), access);
    }
    Ok(all)
}

/// What files say otherwise than before, of services whose settings name the same ones.
pub(super) fn differences_of_files(
    settings: &Settings,
    before: &AccessByService,
    now: &AccessByService,
) -> Vec<Difference> {
    let mut all = Vec::new();
    for (name, service) in &settings.services {
        let (Some(before), Some(now)) = (before.get(name), now.get(name)) else { continue };
        let files = [
            ("allow_file", &service.allow_file, &before.allow_file, &now.allow_file),
            ("deny_file", &service.deny_file, &before.deny_file, &now.deny_file),
        ];
        for (key, path, before, now) in files {
            if let (Some(path), Some(before), Some(now)) = (path, before, now)
                && before != now
            {
                let told = |networks: &Networks| Some(format!("{path} of {} networks", networks.count()));
                all.push(Difference {
                    subject: Subject::Service { service: name.clone() },
                    key: Some(key.to_owned()),
                    from: told(before),
                    to: told(now),
                });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(file: &str) -> AccessByService {
        let mut service = ServiceSettings::new(Vec::new(), "web");
        service.deny_file = Some("/deny.list".to_owned());
        let settings = Settings { services: [("web".to_owned(), service)].into(), ..Settings::default() };
        let read = |_: &str| Ok(Networks::of(&[file.parse().expect("a network")]));
        access_of(&settings, read).expect("it is read")
    }

    #[test]
    fn a_list_that_says_what_it_said_before_is_the_same_one() {
        let before = access("10.0.0.0/8");
        let is_shared = |file: &str| {
            let mut now = access(file).remove("web").expect("a service");
            now.share(&before["web"]);
            let (new, old) = (now.deny_file.expect("a file"), before["web"].deny_file.as_ref().expect("a file"));
            Arc::ptr_eq(&new, old)
        };
        assert!(is_shared("10.0.0.0/8") && !is_shared("10.0.0.0/9"));
    }
}
