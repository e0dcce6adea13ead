//! What reads the partitions of a stream of Kafka, for a node that serves them and for a materializer that folds them; and what
//! appends to them.

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
    source::log::Log,
    upstream::Upstream,
};

/// A partition's reader, how this node folds what it reads, and where it is published to.
pub(super) struct Behind {
    pub(super) fold: FoldSettings,
    pub(super) reader: Reader,
    pub(super) log: Log,
}

/// What is behind each partition. The tasks of the appenders go to `spawn`; once told to stop, they append what they had taken.
#[cfg(feature = "kafka")]
pub(super) fn partitions(
    config: &StreamConfig,
    kafka: &KafkaConfig,
    stop: &CancellationToken,
    spawn: impl Fn(futures_util::future::BoxFuture<'static, ()>),
) -> Vec<Behind> {
    use crate::{
        model::Mode,
        source::kafka::{AppenderSettings, KafkaAppender, Recent, Shape, Whole},
    };

    let shape = Arc::new(Shape::new(cluster(kafka), &kafka.topic, config.partitions));
    let fold = FoldSettings {
        compacts_after: kafka.compacts_after,
        tombstones_kept: kafka.tombstones_kept,
        accepts_incomplete: kafka.incomplete_history,
    };
    let settings = AppenderSettings {
        delivery_timeout: kafka.publish_timeout,
        ..AppenderSettings::default()
    };
    let foreign = written_by_others(config);
    let behind = |number: u32| {
        let recent = Recent::new(config.mode == Mode::Events);
        let reader = Whole::new(shape.clone(), number, recent.clone());
        let log = foreign.map_or_else(
            || {
                let (appender, task) =
                    KafkaAppender::beside(&shape, number, recent, settings, stop.clone());
                spawn(Box::pin(task));
                Log::Kafka(appender)
            },
            Log::Foreign,
        );
        Behind {
            fold,
            reader: Reader::Kafka(Box::new(reader)),
            log,
        }
    };
    (0..config.partitions).map(behind).collect()
}

/// Why a stream can't be published to from here, where it can't: what is written here must read back as what it was.
#[cfg(feature = "kafka")]
fn written_by_others(config: &StreamConfig) -> Option<&'static str> {
    use crate::{config::Selector, model::Placement};

    let is = |selector: &Selector, pointer: &str| *selector == Selector::Key(pointer.to_owned());
    let own_keys =
        is(&config.channel, "/0") && config.row.as_ref().is_some_and(|row| is(row, "/1"));
    if config.placement == Placement::Spread {
        Some(
            "others spread its rows over the partitions of its topic, each in its own way; write to the topic itself",
        )
    } else if !own_keys {
        Some(
            "what is published here has the key [\"channel\",\"row\"], and this stream reads its channel or row from elsewhere; write to the topic itself",
        )
    } else {
        None
    }
}

/// None: the configuration has been refused before.
#[cfg(not(feature = "kafka"))]
pub(super) fn partitions(
    _: &StreamConfig,
    _: &KafkaConfig,
    _: &CancellationToken,
    _: impl Fn(futures_util::future::BoxFuture<'static, ()>),
) -> Vec<Behind> {
    Vec::new()
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
        source::kafka::{GroupMember, GroupSettings, Recent, Shape, Whole},
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
    let open = move |number| Whole::new(shape.clone(), number, Recent::new(false));
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
