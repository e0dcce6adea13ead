//! The materializers of a process: one for each stream that the cache holds, with its membership of the group that shares the
//! stream's partitions out.
//!
//! Owns: what ends them. Keeps: a stream that comes or goes with a reload is folded from then on, or no longer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::sync::CancellationToken;

use super::{StartError, factory::Ground};
use crate::{
    config::{CacheConfig, Config, MaterializerConfig, Role, StreamConfig},
    materializer::Statuses,
    upstream::{Limits, Upstreams},
};

/// The breaker before the cache.
const REDIS: &str = "redis:cache";

/// What makes and ends a process's materializers.
pub(super) struct Materializers {
    is_one: bool,
    cache: CacheConfig,
    settings: MaterializerConfig,
    ground: Ground,
    upstreams: Arc<Upstreams>,
    statuses: Arc<Statuses>,
    ends: Mutex<BTreeMap<String, CancellationToken>>,
}

impl Materializers {
    /// For this process, of which none runs yet.
    pub(super) fn new(config: &Config, ground: Ground, upstreams: Arc<Upstreams>) -> Self {
        Self {
            is_one: config.roles.contains(&Role::Materializer),
            cache: config.cache.clone(),
            settings: config.materializer.clone(),
            ground,
            upstreams,
            statuses: Arc::default(),
            ends: Mutex::default(),
        }
    }

    /// What there is to see of them.
    pub(super) fn statuses(&self) -> Arc<Statuses> {
        self.statuses.clone()
    }

    /// Folds a stream from now on, if that is this process's to do and the cache holds it.
    pub(super) fn begin(&self, stream: &StreamConfig) -> Result<(), StartError> {
        let Some(kafka) = stream
            .cacheable()
            .filter(|_| self.is_one && self.cache.is_there())
        else {
            return Ok(());
        };
        let limits = Limits {
            time_out: self.cache.timeout,
            ..Limits::default()
        };
        let redis = self.upstreams.open(REDIS, limits);
        let stop = self.ground.stop.child_token();
        let status = super::kafka::materialize(
            (stream, kafka),
            (&self.cache, redis),
            &self.settings,
            (&self.ground, &stop),
        )?;
        self.statuses.add(status);
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.insert(stream.name.clone(), stop);
        Ok(())
    }

    /// Folds a stream no longer.
    pub(super) fn end(&self, stream: &str) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stop) = ends.remove(stream) {
            stop.cancel();
            self.statuses.remove(stream);
        }
    }
}
