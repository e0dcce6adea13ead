//! The materializers of a process: one for each stream that the cache holds, with its membership of the group that shares the
//! stream's partitions out.
//!
//! Owns: what ends them. Keeps: a stream that comes or goes with a reload is folded from then on, or no longer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::sync::CancellationToken;

use super::{cache::Caches, factory::Ground};
use crate::{
    config::{Config, MaterializerConfig, Role, SourceConfig, StreamConfig},
    materializer::Statuses,
};

/// What makes and ends a process's materializers.
pub(super) struct Materializers {
    is_one: bool,
    caches: Caches,
    settings: MaterializerConfig,
    ground: Ground,
    statuses: Arc<Statuses>,
    ends: Mutex<BTreeMap<String, CancellationToken>>,
}

impl Materializers {
    /// For this process, of which none runs yet.
    pub(super) fn new(config: &Config, ground: Ground) -> Self {
        Self {
            is_one: config.roles.contains(&Role::Materializer),
            caches: Caches::of_config(&config.cache),
            settings: config.materializer.clone(),
            ground,
            statuses: Arc::default(),
            ends: Mutex::default(),
        }
    }

    /// What there is to see of them.
    pub(super) fn statuses(&self) -> Arc<Statuses> {
        self.statuses.clone()
    }

    /// Folds a stream from now on, if that is this process's to do and the cache holds it.
    pub(super) fn begin(&self, stream: &StreamConfig) {
        if !self.is_one {
            return;
        }
        let stop = self.ground.stop.child_token();
        let below = (&self.ground, &stop);
        let cache = self.caches.of(stream, &self.ground.upstreams);
        let begun = cache.and_then(|cache| match &stream.source {
            SourceConfig::Embedded { .. } => None,
            SourceConfig::Kafka(kafka) => {
                super::kafka::materialize((stream, kafka), cache, &self.settings, below)
            }
            SourceConfig::Redis(redis) => {
                super::redis::materialize((stream, redis), cache, &self.settings, below)
            }
        });
        if let Some(status) = begun {
            self.statuses.add(status);
            let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
            ends.insert(stream.name.clone(), stop);
        }
    }

    /// Minds another rule for records that mean nothing, where it folds the stream.
    pub(super) fn alter(&self, stream: &StreamConfig) {
        if let Some(status) = self.statuses.of(&stream.name) {
            status.poisons.set_rule(stream.poison);
        }
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
