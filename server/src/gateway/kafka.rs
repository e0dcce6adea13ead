//! What reads the partitions of a stream of Kafka, for a node that serves them and for a materializer that folds them.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{
    StartError,
    factory::{self, Ground, Reader},
};
use crate::{
    config::{CacheConfig, KafkaConfig, MaterializerConfig, StreamConfig},
    materializer::StreamStatus,
    partition::FoldSettings,
    upstream::Upstream,
};

/// A reader of each partition, and how this node folds what it reads.
#[cfg(feature = "kafka")]
pub(super) fn readers(
    config: &StreamConfig,
    kafka: &KafkaConfig,
) -> impl Iterator<Item = (FoldSettings, Reader)> {
    use crate::source::kafka::{Shape, Whole};

    let shape = Arc::new(Shape::new(cluster(kafka), &kafka.topic, config.partitions));
    let fold = FoldSettings {
        compacts_after: kafka.compacts_after,
        tombstones_kept: kafka.tombstones_kept,
        accepts_incomplete: kafka.incomplete_history,
    };
    (0..config.partitions).map(move |number| {
        let source = Whole::new(shape.clone(), number);
        (fold, Reader::Kafka(Box::new(source)))
    })
}

/// None: the configuration has been refused before.
#[cfg(not(feature = "kafka"))]
pub(super) fn readers(
    _: &StreamConfig,
    _: &KafkaConfig,
) -> impl Iterator<Item = (FoldSettings, Reader)> {
    std::iter::empty()
}

/// What a stream is folded into: the cache, and the breaker before it.
type Below<'a> = (&'a CacheConfig, Arc<Upstream>);

/// Folds a stream into the cache, as far as its group gives this process partitions.
#[cfg(feature = "kafka")]
pub(super) fn materialize(
    (stream, kafka): (&StreamConfig, &KafkaConfig),
    (cache, redis): Below<'_>,
    settings: &MaterializerConfig,
    (ground, stop): (&Ground, &CancellationToken),
) -> Result<Arc<StreamStatus>, StartError> {
    use crate::{
        cache::redis::{RedisCache, RedisOptions},
        materializer::{self, FoldSettings, Materializer},
        source::kafka::{GroupMember, GroupSettings, Shape, Whole},
    };

    let cache = RedisCache::new(&RedisOptions::from(cache), &stream.name);
    let fold = FoldSettings {
        fold_id: stream.fold_id(),
        compacts_after: kafka.compacts_after,
        tombstones_kept: kafka.tombstones_kept,
    };
    let below = materializer::Ground {
        cache: Arc::new(cache.map_err(|error| StartError::Cache(error.to_string()))?),
        redis,
        settings: fold,
        clock: ground.clock,
    };
    let cluster = cluster(kafka);
    let shape = Arc::new(Shape::new(cluster.clone(), &kafka.topic, stream.partitions));
    let (member, given) = GroupMember::new(
        cluster,
        GroupSettings {
            group: format!("{}.{}", settings.group, stream.name),
            topic: kafka.topic.clone(),
            partitions: stream.partitions,
            session_timeout: settings.session_timeout,
        },
    );
    let open = move |number| Whole::new(shape.clone(), number);
    let described = stream.clone();
    let decoder = move || factory::decoder(&described, false);
    let materializer = Materializer::new(&stream.name, below, open, decoder);
    let status = materializer.status();
    let (tasks, handle) = (&ground.tasks, &ground.handle);
    tasks.spawn_on(member.run(stop.clone()), handle);
    tasks.spawn_on(materializer.run(given, stop.clone()), handle);
    Ok(status)
}

/// Never called: the configuration has been refused before.
#[cfg(not(feature = "kafka"))]
pub(super) fn materialize(
    _: (&StreamConfig, &KafkaConfig),
    _: Below<'_>,
    _: &MaterializerConfig,
    _: (&Ground, &CancellationToken),
) -> Result<Arc<StreamStatus>, StartError> {
    Err(StartError::Cache(
        "this program was built without the Cargo feature \"kafka\"".to_owned(),
    ))
}

#[cfg(feature = "kafka")]
fn cluster(kafka: &KafkaConfig) -> Arc<crate::source::kafka::KafkaCluster> {
    use crate::source::kafka::{ClusterSettings, KafkaCluster, Security};

    Arc::new(KafkaCluster::new(ClusterSettings {
        brokers: kafka.brokers.clone(),
        security: Security::default(),
        timeout: kafka.timeout,
    }))
}
