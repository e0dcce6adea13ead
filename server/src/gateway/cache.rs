//! The cache that a configuration asks for.

use std::{sync::Arc, time::Duration};

use crate::{
    cache::redis::{GuardedCache, RedisCache, RedisError, RedisOptions, Topology},
    config::{CacheConfig, StreamConfig},
    partition::{Backing, FenceSettings, FoldSettings},
    upstream::{Limits, Upstreams},
};

/// What the breaker before the cache is called: all streams' caches are on the same servers.
const UPSTREAM: &str = "redis:cache";
/// A call's own time-out says more than that of the breaker, which comes a little later.
const GRACE: Duration = Duration::from_millis(100);

/// Makes the caches of streams.
pub(super) struct Caches(Option<RedisOptions>);

impl Caches {
    /// As configured.
    pub(super) fn of_config(config: &CacheConfig) -> Self {
        Self(config.is_there().then(|| config.into()))
    }

    /// Whether a cache holds a stream's views.
    pub(super) const fn has(&self, stream: &StreamConfig) -> bool {
        self.0.is_some() && stream.is_cacheable()
    }

    /// The cache that holds a stream's views, where one does.
    pub(super) fn of(
        &self,
        stream: &StreamConfig,
        upstreams: &Upstreams,
    ) -> Option<Arc<GuardedCache>> {
        let options = self.0.as_ref().filter(|_| stream.is_cacheable())?;
        let refused =
            |error: &RedisError| tracing::error!(%error, stream = stream.name, "no cache");
        let cache = RedisCache::new(options, &stream.name)
            .inspect_err(refused)
            .ok()?;
        let limits = Limits {
            time_out: options.timeout + GRACE,
            ..Limits::default()
        };
        let upstream = upstreams.open(UPSTREAM, limits);
        Some(Arc::new(GuardedCache::new(cache, upstream)))
    }
}

/// Whether a cache can be as configured.
pub(super) fn check(config: &CacheConfig) -> Result<(), RedisError> {
    if config.is_there() {
        RedisCache::new(&config.into(), "any")?;
    }
    Ok(())
}

/// What stands behind a partition whose log is elsewhere.
pub(super) fn backing(config: &StreamConfig, fold: FoldSettings, cached: bool) -> Backing {
    if cached {
        FenceSettings {
            fold,
            fold_id: config.fold_id().into(),
            alone_max: config.folds_alone().into(),
        }
        .into()
    } else {
        fold.into()
    }
}

impl From<&CacheConfig> for RedisOptions {
    fn from(config: &CacheConfig) -> Self {
        let topology = match &config.sentinel {
            Some(primary) => Topology::Sentinel {
                primary: primary.clone(),
            },
            None if config.cluster => Topology::Cluster,
            None => Topology::Single,
        };
        let login = |password: &String| (config.user.clone(), password.clone());
        Self {
            servers: config.redis.clone(),
            topology,
            login: config.password.as_ref().map(login),
            ca_pem: config.ca_pem.clone(),
            timeout: config.timeout,
            prefix: config.prefix.clone(),
        }
    }
}
