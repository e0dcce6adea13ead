//! Whether a stream has all partitions of its topic: what is in one that nobody reads would be missing in silence.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};

use super::{KafkaCluster, KafkaError, KafkaSource, Recent};
use crate::{
    model::{Epoch, Offset},
    source::{Fetch, Source, SourceError, Wanted},
};

/// Between two looks at how many partitions a topic has …
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// … and after one that failed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How many partitions a topic should have, and has: one look serves all of its readers and appenders.
#[derive(Debug)]
pub struct Shape {
    pub(super) cluster: Arc<KafkaCluster>,
    pub(super) topic: Arc<str>,
    expected: u32,
    seen: Mutex<Option<Seen>>,
    /// One looks, the others wait for what it sees.
    looking: Semaphore,
}

/// What was seen at the last look; none found where nobody answered.
#[derive(Debug)]
struct Seen {
    at: Instant,
    found: Option<u32>,
    /// Why nothing may be read, if nothing may.
    why: Option<String>,
}

impl Seen {
    fn holds(&self) -> bool {
        let long = if self.found.is_some() {
            LOOK_EVERY
        } else {
            LOOK_AGAIN
        };
        self.at.elapsed() < long
    }
}

impl Shape {
    /// Nothing is asked yet.
    #[must_use]
    pub fn new(cluster: Arc<KafkaCluster>, topic: &str, expected: u32) -> Self {
        Self {
            cluster,
            topic: topic.into(),
            expected,
            seen: Mutex::default(),
            looking: Semaphore::new(1),
        }
    }

    /// Whether it has as many as it should, as far as that is known.
    pub(super) async fn is_right(&self) -> bool {
        if let Some(right) = self.seen() {
            return right;
        }
        let _turn = self.looking.acquire().await;
        if let Some(right) = self.seen() {
            return right;
        }
        let asked = self.cluster.partitions(&self.topic).await;
        let seen = Seen {
            at: Instant::now(),
            found: asked.as_ref().ok().copied(),
            why: self.flaw(&asked),
        };
        let found = seen.found;
        let before = self.lock().replace(seen);
        if before.is_none_or(|before| before.found != found) {
            self.tell(asked);
        }
        found == Some(self.expected)
    }

    /// What the last look says, as long as it holds.
    fn seen(&self) -> Option<bool> {
        let seen = self.lock();
        let seen = seen.as_ref().filter(|seen| seen.holds())?;
        Some(seen.found == Some(self.expected))
    }

    /// Why nothing may be read, in words for operators.
    fn flaw(&self, asked: &Result<u32, KafkaError>) -> Option<String> {
        match asked {
            Err(error) => Some(error.to_string()),
            Ok(found) if *found != self.expected => Some(format!(
                "the topic {} has {found} partitions, and streams[].partitions is {}: its views are stale until both agree",
                self.topic, self.expected
            )),
            Ok(_) => None,
        }
    }

    /// What the last look found wrong.
    fn why(&self) -> Option<String> {
        self.lock().as_ref()?.why.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, asked: Result<u32, KafkaError>) {
        match asked {
            Err(error) => {
                tracing::warn!(%error, topic = %self.topic, "the topic can't be read");
            }
            Ok(found) if found != self.expected => tracing::error!(
                topic = %self.topic, partitions = found, configured = self.expected,
                "the topic has another number of partitions than streams[].partitions: its views are stale until both agree"
            ),
            Ok(_) => {}
        }
    }
}

/// A reader that reads nothing while its topic has another number of partitions than it should.
pub struct Whole {
    source: KafkaSource,
    shape: Arc<Shape>,
    refused: bool,
}

impl Whole {
    /// A reader of one of the partitions.
    #[must_use]
    pub fn new(shape: Arc<Shape>, partition: u32, recent: Arc<Recent>) -> Self {
        let source = KafkaSource::new(shape.cluster.clone(), &shape.topic, partition);
        Self {
            source: source.beside(recent),
            shape,
            refused: false,
        }
    }

    /// What reads the partition.
    pub(super) const fn source(&mut self) -> &mut KafkaSource {
        &mut self.source
    }

    /// The topic.
    pub(super) fn topic(&self) -> &Arc<str> {
        &self.shape.topic
    }
}

impl Source for Whole {
    async fn fetch(&mut self, after: Option<Offset>, bytes: usize) -> Result<Fetch, SourceError> {
        self.look().await?;
        self.source.fetch(after, bytes).await
    }

    async fn begin(&mut self, wanted: Wanted) -> Result<Option<Offset>, SourceError> {
        self.look().await?;
        self.source.begin(wanted).await
    }

    async fn look(&mut self) -> Result<(), SourceError> {
        self.refused = true;
        if !self.shape.is_right().await {
            return Err(SourceError::Unavailable);
        }
        self.refused = false;
        Ok(())
    }

    fn rest(&mut self) {
        self.source.rest();
    }

    fn resume(&mut self, epoch: &Epoch, at: Offset, lineage: Option<&str>) {
        self.source.resume(epoch, at, lineage);
    }

    fn failure(&self) -> Option<String> {
        if self.refused {
            self.shape.why()
        } else {
            self.source.failure()
        }
    }

    fn another(&self) -> Option<Self> {
        Some(Self {
            source: self.source.another()?,
            shape: self.shape.clone(),
            refused: false,
        })
    }

    async fn changed(&mut self) {
        if self.refused {
            // There may be records, but none that may be read: the caller's own timer goes on.
            return std::future::pending().await;
        }
        self.source.changed().await;
    }
}
