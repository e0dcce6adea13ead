//! What reads the partitions of a stream of Kafka.

use tokio::sync::watch;

use super::factory;
use crate::{
    clock::Clock,
    config::{KafkaConfig, StreamConfig},
    partition::FoldSettings,
    source::embedded::Hindrance,
};

#[cfg(feature = "kafka")]
pub(super) type Reader = crate::source::hindered::Hindered<crate::source::kafka::Whole>;

/// A reader of each partition, and how this node folds what it reads.
#[cfg(feature = "kafka")]
pub(super) fn readers(
    config: &StreamConfig,
    kafka: &KafkaConfig,
    clock: Clock,
    hindrance: &watch::Sender<Hindrance>,
) -> impl Iterator<Item = (FoldSettings, factory::Reader)> {
    use std::sync::Arc;

    use crate::source::{
        hindered::Hindered,
        kafka::{ClusterSettings, KafkaCluster, Security, Whole},
    };

    let cluster = Arc::new(KafkaCluster::new(ClusterSettings {
        brokers: kafka.brokers.clone(),
        security: Security::default(),
        timeout: kafka.timeout,
    }));
    let fold = fold(kafka);
    (0..config.partitions).map(move |number| {
        let source = Whole::new(cluster.clone(), &kafka.topic, number, config.partitions);
        let reader = Hindered::new(source, hindrance.subscribe(), clock);
        (fold, factory::Reader::Kafka(Box::new(reader)))
    })
}

/// None: the configuration has been refused before.
#[cfg(not(feature = "kafka"))]
pub(super) fn readers(
    _: &StreamConfig,
    _: &KafkaConfig,
    _: Clock,
    _: &watch::Sender<Hindrance>,
) -> impl Iterator<Item = (FoldSettings, factory::Reader)> {
    std::iter::empty()
}

#[cfg(feature = "kafka")]
const fn fold(kafka: &KafkaConfig) -> FoldSettings {
    FoldSettings {
        compacts_after: kafka.compacts_after,
        tombstones_kept: kafka.tombstones_kept,
        accepts_incomplete: kafka.incomplete_history,
    }
}
