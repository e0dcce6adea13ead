//! Which server is asked for a key.
//!
//! One, or whoever is the primary; in a cluster the one that has the key's slot, over a connection of its own, so that a server which
//! hangs holds nobody up whose keys are elsewhere. Where a key is, servers say when the wrong one is asked. Owns: the connections.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::error::LogError;
use crate::cache::redis::{Link, RedisError, RedisFault, RedisOptions, Topology};

/// Redirections that one call follows.
const REDIRECTIONS: usize = 4;

/// The servers of a stream.
pub(super) struct Servers {
    /// What was configured, as one.
    whole: Arc<Link>,
    /// Of a cluster, each of them.
    cluster: Option<Cluster>,
}

struct Cluster {
    options: RedisOptions,
    /// Who is asked next where nobody is known to have a key.
    next: AtomicUsize,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The server that has a key, by its URL.
    homes: BTreeMap<String, String>,
    links: BTreeMap<String, Arc<Link>>,
}

/// The way of one call.
pub(super) struct Route<'a> {
    servers: &'a Servers,
    key: &'a str,
    left: usize,
    /// The server that was asked last.
    asked: String,
}

impl Servers {
    /// Reads the options. Nothing is sent yet.
    pub(super) fn new(options: &RedisOptions) -> Result<Self, RedisError> {
        let cluster = (options.topology == Topology::Cluster).then(|| Cluster {
            options: RedisOptions {
                topology: Topology::Single,
                ..options.clone()
            },
            next: AtomicUsize::new(0),
            known: Mutex::default(),
        });
        Ok(Self {
            whole: Arc::new(Link::new(options)?),
            cluster,
        })
    }

    pub(super) const fn is_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// Where they are, for messages.
    pub(super) fn at(&self) -> &str {
        self.whole.at()
    }

    /// For a call about this key.
    pub(super) const fn route<'a>(&'a self, key: &'a str) -> Route<'a> {
        Route {
            servers: self,
            key,
            left: REDIRECTIONS,
            asked: String::new(),
        }
    }
}

impl Cluster {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self, key: &str) -> Result<(String, Arc<Link>), RedisError> {
        let mut known = self.known();
        let url = known.homes.get(key).cloned().unwrap_or_else(|| {
            let servers = &self.options.servers;
            let next = self.next.load(Ordering::Relaxed) % servers.len().max(1);
            servers.get(next).cloned().unwrap_or_default()
        });
        let link = match known.links.get(&url) {
            Some(link) => link.clone(),
            None => {
                let options = RedisOptions {
                    servers: vec![url.clone()],
                    ..self.options.clone()
                };
                let link = Arc::new(Link::new(&options)?);
                known.links.insert(url.clone(), link.clone());
                link
            }
        };
        Ok((url, link))
    }

    /// The key is elsewhere.
    fn moved(&self, key: &str, asked: &str, to: &str) {
        let (host, port) = to.rsplit_once(':').unwrap_or((to, "6379"));
        let (scheme, rest) = asked.split_once("://").unwrap_or(("redis", asked));
        let host = if host.is_empty() {
            let (asked, _) = rest.rsplit_once(':').unwrap_or((rest, ""));
            asked.to_owned()
        } else if host.contains(':') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        let url = format!("{scheme}://{host}:{port}");
        self.known().homes.insert(key.to_owned(), url);
    }

    /// Who was asked does not answer: another one may say where the key is now.
    fn forget(&self, key: &str, asked: &str) {
        let mut known = self.known();
        known.homes.remove(key);
        // Servers come and go: of those that nobody needs nothing stays.
        if !known.homes.values().any(|home| home == asked) {
            known.links.remove(asked);
        }
        drop(known);
        self.next.fetch_add(1, Ordering::Relaxed);
    }
}

impl Route<'_> {
    /// The connection to whoever is to be asked now.
    pub(super) fn link(&mut self) -> Result<Arc<Link>, LogError> {
        let Some(cluster) = &self.servers.cluster else {
            return Ok(self.servers.whole.clone());
        };
        let (asked, link) = cluster.link(self.key)?;
        self.asked = asked;
        Ok(link)
    }

    /// Takes what came of that. Whether another one is to be asked.
    pub(super) fn goes_on<T>(&mut self, result: &Result<T, LogError>) -> bool {
        let (Some(cluster), Err(LogError::Redis(error))) = (&self.servers.cluster, result) else {
            return false;
        };
        if let Some(to) = error.moved() {
            cluster.moved(self.key, &self.asked, to);
            self.left = self.left.saturating_sub(1);
            return self.left > 0;
        }
        if matches!(
            error.fault(),
            RedisFault::Unavailable | RedisFault::ReadOnly
        ) {
            cluster.forget(self.key, &self.asked);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers() -> Servers {
        let options = RedisOptions {
            servers: vec!["redis://a:1".to_owned(), "redis://b:2".to_owned()],
            topology: Topology::Cluster,
            ..RedisOptions::single("")
        };
        Servers::new(&options).unwrap()
    }

    fn asks(servers: &Servers, key: &str) -> String {
        let mut route = servers.route(key);
        route.link().unwrap();
        route.asked
    }

    #[test]
    fn a_key_is_asked_for_where_it_was_said_to_be_until_nobody_answers_there() {
        let servers = servers();
        let cluster = servers.cluster.as_ref().unwrap();
        assert_eq!(asks(&servers, "k"), "redis://a:1");
        cluster.moved("k", "redis://a:1", "c:3");
        cluster.moved("l", "redis://a:1", ":4");
        cluster.moved("m", "rediss://a:1", "::1:5");
        assert_eq!(asks(&servers, "k"), "redis://c:3");
        assert_eq!(asks(&servers, "l"), "redis://a:4");
        assert_eq!(asks(&servers, "m"), "rediss://[::1]:5");
        // Others stay where they are.
        cluster.forget("k", "redis://c:3");
        assert_eq!(asks(&servers, "k"), "redis://b:2");
        assert_eq!(asks(&servers, "l"), "redis://a:4");
        assert!(!cluster.known().links.contains_key("redis://c:3"));
    }
}
