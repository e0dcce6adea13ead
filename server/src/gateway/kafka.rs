//! What reads the partitions of a stream of Kafka.

use super::factory::Reader;
use crate::{
    config::{KafkaConfig, StreamConfig},
    partition::FoldSettings,
};

/// A reader of each partition, and how this node folds what it reads.
#[cfg(feature = "kafka")]
pub(super) fn readers(
    config: &StreamConfig,
    kafka: &KafkaConfig,
) -> impl Iterator<Item = (FoldSettings, Reader)> {
    use std::sync::Arc;

    use crate::source::kafka::{ClusterSettings, KafkaCluster, Security, Shape, Whole};

    let cluster = Arc::new(KafkaCluster::new(ClusterSettings {
        brokers: kafka.brokers.clone(),
        security: Security::default(),
        timeout: kafka.timeout,
    }));
    let shape = Arc::new(Shape::new(cluster, &kafka.topic, config.partitions));
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
