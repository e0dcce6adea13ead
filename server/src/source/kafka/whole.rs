//! Whether a stream has all partitions of its topic: what is in one that nobody reads would be missing in silence.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use super::{KafkaCluster, KafkaError, KafkaSource, Recent};
use crate::{
    model::{Epoch, Generations, Offset},
    source::{Fetch, Source, SourceError, Wanted},
};

/// Between two looks at how many partitions a topic has …
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// … and after one that failed, or found too few.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How many partitions a topic should have, and has: one look serves all of its readers and appenders.
#[derive(Debug)]
pub struct Shape {
    pub(super) cluster: Arc<KafkaCluster>,
    pub(super) topic: Arc<str>,
    /// What is known of its partitions, and taken up.
    expected: Mutex<Generations>,
    /// Whether more of them are taken up.
    grows: bool,
    /// More of them were found, which are to be taken up.
    growth: watch::Sender<Option<Generations>>,
    seen: Mutex<Option<Seen>>,
    /// One looks, the others wait for what it sees.
    looking: Semaphore,
}

/// What was seen at the last look; none found where nobody answered.
#[derive(Debug)]
struct Seen {
    at: Instant,
    /// So long it counts.
    holds_for: Duration,
    found: Option<u32>,
    /// Why nothing may be read, if nothing may.
    why: Option<String>,
}

impl Seen {
    fn holds(&self) -> bool {
        self.at.elapsed() < self.holds_for
    }
}

impl Shape {
    /// Nothing is asked yet. Another number of partitions than the newest of these is one too many, or too few.
    #[must_use]
    pub fn new(cluster: Arc<KafkaCluster>, topic: &str, expected: Generations) -> Self {
        Self {
            cluster,
            topic: topic.into(),
            expected: Mutex::new(expected),
            grows: false,
            growth: watch::Sender::default(),
            seen: Mutex::default(),
            looking: Semaphore::new(1),
        }
    }

    /// The same, but that partitions which are added are taken up: whoever does that waits for [`Shape::grown`].
    #[must_use]
    pub fn growing(self) -> Self {
        Self {
            grows: true,
            ..self
        }
    }

    /// Whether they are.
    #[must_use]
    pub const fn grows(&self) -> bool {
        self.grows
    }

    /// Waits until the topic has more partitions than are known. Nothing is read or appended until they have been
    /// [taken up](Shape::adopt).
    pub async fn grown(&self) -> Generations {
        let mut growth = self.growth.subscribe();
        let known = self.expected().counts().len();
        let more =
            |found: &Option<Generations>| found.is_some_and(|found| found.counts().len() > known);
        match growth.wait_for(more).await.map(|found| *found) {
            Ok(Some(found)) => found,
            // It has its sender, and waits for more than none.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// What was found has been taken up: everybody who needs it follows all of it.
    pub fn adopt(&self, generations: Generations) {
        *lock(&self.expected) = generations;
    }

    fn expected(&self) -> Generations {
        *lock(&self.expected)
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
        // A broker that has not heard of a growth yet may have been asked.
        let enough = |found: &u32| *found >= self.expected().newest();
        let seen = Seen {
            at: Instant::now(),
            holds_for: if asked.as_ref().is_ok_and(enough) {
                LOOK_EVERY
            } else {
                LOOK_AGAIN
            },
            found: asked.as_ref().ok().copied(),
            why: self.flaw(&asked),
        };
        let found = seen.found;
        let before = lock(&self.seen).replace(seen);
        if before.is_none_or(|before| before.found != found) {
            self.tell(asked);
        }
        if let Some(grown) = found.and_then(|found| self.grown_to(found)) {
            self.growth.send_replace(Some(grown));
        }
        found == Some(self.expected().newest())
    }

    /// What it has grown into, if it has so many partitions and that can be taken up.
    fn grown_to(&self, found: u32) -> Option<Generations> {
        self.expected().grown(found).filter(|_| self.grows)
    }

    /// What the last look says, as long as it holds.
    fn seen(&self) -> Option<bool> {
        let seen = lock(&self.seen);
        let seen = seen.as_ref().filter(|seen| seen.holds())?;
        Some(seen.found == Some(self.expected().newest()))
    }

    /// Why nothing may be read, in words for operators.
    fn flaw(&self, asked: &Result<u32, KafkaError>) -> Option<String> {
        let (topic, expected) = (&self.topic, self.expected());
        match asked {
            Err(error) => Some(error.to_string()),
            Ok(found) if *found == expected.newest() => None,
            Ok(found) if self.grown_to(*found).is_some() => Some(format!(
                "the topic {topic} has {found} partitions, and had {}: they are just being taken up",
                expected.newest()
            )),
            Ok(found) => Some(format!(
                "the topic {topic} has {found} partitions, and streams[].partitions is {}: its views are stale until {}",
                expected.newest(),
                self.cure(*found, expected)
            )),
        }
    }

    /// What heals a topic that has another number of partitions, and can't be taken up as it is.
    fn cure(&self, found: u32, expected: Generations) -> &'static str {
        if found < expected.newest() {
            "both agree"
        } else if !self.grows {
            "both agree: of a stream that is spread, or has its views in a cache, partitions that are added are not taken up"
        } else {
            "it has a multiple of that"
        }
    }

    /// What the last look found wrong.
    fn why(&self) -> Option<String> {
        lock(&self.seen).as_ref()?.why.clone()
    }

    fn tell(&self, asked: Result<u32, KafkaError>) {
        let expected = self.expected();
        match asked {
            Err(error) => {
                tracing::warn!(%error, topic = %self.topic, "the topic can't be read");
            }
            Ok(found) if found == expected.newest() => {}
            Ok(found) if self.grown_to(found).is_some() => tracing::info!(
                topic = %self.topic, partitions = found, before = expected.newest(),
                "partitions were added to the topic"
            ),
            Ok(found) => tracing::error!(
                topic = %self.topic, partitions = found, configured = ?expected.counts(),
                heals = self.cure(found, expected),
                "the topic has another number of partitions than streams[].partitions: its views are stale"
            ),
        }
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A reader that reads nothing while its topic has another number of partitions than are known.
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
