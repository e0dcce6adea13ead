//! The embedded engine of a node: in memory, or on its data directory, with the streams that it keeps.

use std::sync::Arc;

use super::{StartError, short_random};
use crate::{
    clock::Clock,
    config::{self, Config, EmbeddedConfig, StreamConfig},
    model::Epoch,
    source::{
        durable::{DataDir, Files, KeptStream, SyncPolicy},
        embedded::Engine,
    },
};

/// The engine of a node that was given none.
pub(super) fn open(config: &EmbeddedConfig) -> Result<Arc<Engine>, StartError> {
    let Some(dir) = &config.dir else {
        return Ok(Arc::default());
    };
    let policy = match config.sync {
        config::Sync::Commit => SyncPolicy::Commit,
        config::Sync::Interval => SyncPolicy::Interval(config.sync_every),
        config::Sync::Never => SyncPolicy::Never,
    };
    let data = DataDir::open(dir, policy, Arc::new(Files), new_epoch)?;
    Ok(Arc::new(Engine::on(data)))
}

/// The streams that publishing created before, where it may create them.
pub(super) fn kept(config: &Config, engine: &Engine) -> Result<Vec<StreamConfig>, StartError> {
    let is_configured = |name: &str| config.streams.iter().any(|stream| stream.name == name);
    let mut all = engine.kept()?;
    all.retain(|kept| !is_configured(&kept.name));
    if !config.creates_streams {
        for kept in all.drain(..) {
            tracing::warn!(
                stream = kept.name,
                "the data directory keeps a stream that is not configured: it is not served"
            );
        }
    }
    let revived = |kept: KeptStream| StreamConfig {
        mode: kept.mode,
        placement: kept.placement,
        partitions: kept.partitions,
        slow_consumer: StreamConfig::slow_consumer_of(kept.mode),
        ..config.stream_defaults.named(&kept.name)
    };
    Ok(all.into_iter().map(revived).collect())
}

/// A name that no log had before.
pub(super) fn new_epoch() -> Epoch {
    let random = short_random().ok().and_then(|name| Epoch::new(&name).ok());
    // Without random numbers the start has failed long before.
    let by_time = || Epoch::new(&format!("w{}", Clock::start().wall_ms())).ok();
    random
        .or_else(by_time)
        .unwrap_or_else(|| unreachable!("letters and digits are an epoch"))
}
