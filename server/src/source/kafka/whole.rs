//! Whether a stream has all partitions of its topic: what is in one that nobody reads would be missing in silence.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{KafkaCluster, KafkaSource};
use crate::{
    model::Offset,
    source::{Fetch, Source, SourceError},
};

/// Between two looks at how many partitions a topic has.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A reader that gives nothing while the topic has another number of partitions than it was told.
pub struct Whole {
    source: KafkaSource,
    cluster: Arc<KafkaCluster>,
    topic: Arc<str>,
    expected: u32,
    looked: Option<Instant>,
    found: u32,
}

impl Whole {
    /// A reader of one of `expected` partitions.
    #[must_use]
    pub fn new(cluster: Arc<KafkaCluster>, topic: &str, partition: u32, expected: u32) -> Self {
        Self {
            source: KafkaSource::new(cluster.clone(), topic, partition),
            cluster,
            topic: topic.into(),
            expected,
            looked: None,
            found: 0,
        }
    }

    async fn look(&mut self) -> Result<(), SourceError> {
        let is_young = |looked: Instant| looked.elapsed() < LOOK_EVERY;
        if !self.looked.is_some_and(is_young) {
            let found = self.cluster.partitions(&self.topic).await;
            let found = found.map_err(|_| SourceError::Unavailable)?;
            if found != self.found && found != self.expected {
                tracing::error!(
                    topic = %self.topic, partitions = found, configured = self.expected,
                    "the topic has another number of partitions than streams[].partitions: its views are stale until both agree"
                );
            }
            (self.looked, self.found) = (Some(Instant::now()), found);
        }
        if self.found == self.expected {
            Ok(())
        } else {
            Err(SourceError::Unavailable)
        }
    }
}

impl Source for Whole {
    async fn fetch(&mut self, after: Option<Offset>, bytes: usize) -> Result<Fetch, SourceError> {
        let fetch = self.source.fetch(after, bytes).await?;
        self.look().await?;
        Ok(fetch)
    }

    async fn changed(&mut self) {
        self.source.changed().await;
    }
}
