//! How streams come to be: a [`StreamConfig`] → logs, partitions, and the tasks that drive them.
//!
//! Owns: nothing that it makes: the handles go to the directory of streams, the tasks to the gateway's tracker.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    cache::{self, Caches},
    copies::Keepsakes,
    engine::new_epoch,
    kafka::{self, Topic},
    redis,
};
use crate::{
    cache::{ViewMax, redis::GuardedCache},
    clock::Clock,
    config::{self, Config, Selector, SourceConfig, StreamConfig},
    decode::{Decoder, KeyPart, Pointer, TimePart},
    model::{self, Generations, Placing},
    partition::{
        Backing, Cached, Misplaced, Partition, Reads, Settings,
        tail::{Tail, TailMax},
        task::{self, Beside, Request},
    },
    source::{
        Source,
        durable::DataError,
        embedded::{EmbeddedLog, EmbeddedSource, Engine, LogSettings, LogSpec, Retention},
        hindered::{Hindered, Hindrance},
        log::Log,
        poisons::Poisons,
        redis::RedisSource,
    },
    streams::{PartitionHandle, Stream, StreamOptions, Streams},
    telemetry::LogCounts,
    upstream::Upstreams,
};

/// Streams that publishing may create.
const CREATED_MAX: usize = 1000;

/// Why a stream can't be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The data directory can't be used.
    #[error("embedded.dir: {0}")]
    Data(#[from] DataError),
    /// What its source is to be made of does not fit together.
    #[error("the source of the stream {stream}: {why}")]
    Source {
        /// Which stream.
        stream: String,
        /// Why.
        why: String,
    },
}

/// What makes streams.
pub(super) struct Factory {
    engine: Arc<Engine>,
    streams: Arc<Streams>,
    clock: Clock,
    handle: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
    defaults: StreamConfig,
    caches: Caches,
    keepsakes: Keepsakes,
    upstreams: Arc<Upstreams>,
    replay_records: usize,
    hold: Duration,
    creating: Mutex<()>,
    made: Mutex<BTreeMap<String, Made>>,
    growths: mpsc::Sender<Growth>,
    grown: Mutex<Option<mpsc::Receiver<Growth>>>,
}

/// A stream that was made or prepared here, also one that has ended: the engine still has its logs.
struct Made {
    config: StreamConfig,
    /// What its partitions are read from, as long as somebody watches whether they become more: until the stream ends.
    topic: Weak<Topic>,
    /// Ends its tasks.
    stop: CancellationToken,
}

/// What stands behind one partition: its rows, where it is written, and what reads it.
type PartitionBehind = (Backing, Log, Reader);

/// What all partitions of a stream have in common.
struct Laid<'a> {
    config: &'a StreamConfig,
    misplaced: &'a Arc<Misplaced>,
    cached: Option<Arc<GuardedCache>>,
}

/// A stream's topic has more partitions than are known.
pub(super) struct Growth {
    pub(super) stream: String,
    pub(super) generations: Generations,
    /// They have been taken up; dropped where they can't be.
    pub(super) done: oneshot::Sender<()>,
}

/// Growths that may wait to be taken up: each stream has one at a time.
const GROWTHS: usize = 64;

/// Where the tasks of streams run, who counts them, and what ends them.
#[derive(Clone)]
pub(super) struct Ground {
    pub(super) clock: Clock,
    pub(super) handle: Handle,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    /// Where what streams need outside of the process is guarded.
    pub(super) upstreams: Arc<Upstreams>,
}

/// What reads a partition.
pub(super) enum Reader {
    Embedded(EmbeddedSource),
    #[cfg(feature = "kafka")]
    Kafka(Box<crate::source::kafka::Sifted>),
    Redis(Box<RedisSource>),
}

/// A partition that is ready to run.
struct Start {
    partition: Partition,
    source: Reader,
    beside: Beside,
    requests: mpsc::Receiver<Request>,
}

impl Factory {
    /// For streams that are kept in this engine and found in this directory.
    pub(super) fn new(
        config: &Config,
        engine: Arc<Engine>,
        streams: Arc<Streams>,
        ground: Ground,
        keepsakes: Keepsakes,
    ) -> Self {
        let Ground {
            clock,
            handle,
            tasks,
            stop,
            upstreams,
        } = ground;
        let (growths, grown) = mpsc::channel(GROWTHS);
        Self {
            engine,
            streams,
            clock,
            handle,
            tasks,
            stop,
            defaults: config.stream_defaults.clone(),
            caches: Caches::of_config(&config.cache),
            keepsakes,
            upstreams,
            replay_records: config.limits.replay_records,
            hold: config.limits.resume_hold,
            creating: Mutex::default(),
            made: Mutex::default(),
            growths,
            grown: Mutex::new(Some(grown)),
        }
    }

    /// Where growths come that are to be taken up; for one, once.
    pub(super) fn take_growths(&self) -> Option<mpsc::Receiver<Growth>> {
        self.grown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// What the engine counts.
    pub(super) fn log_counts(&self) -> Arc<LogCounts> {
        self.engine.counts()
    }

    /// A stream that nobody configured.
    pub(super) fn create(&self, name: &str) -> Option<Arc<Stream>> {
        model::check_stream_name(name).ok()?;
        let _one_at_a_time = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = self.streams.get(name) {
            return Some(stream);
        }
        if self.streams.all().len() >= CREATED_MAX {
            return None;
        }
        let made = self.make(&self.defaults.named(name));
        made.inspect_err(
            |error| tracing::error!(stream = name, %error, "a stream can't be created"),
        )
        .ok()
    }

    /// A stream as configured, running.
    pub(super) fn make(&self, config: &StreamConfig) -> Result<Arc<Stream>, MakeError> {
        let stop = self.stop.child_token();
        let cached = self.caches.of(config, &self.upstreams);
        let poisons = Poisons::new(kafka::poison_rule(config, cached.is_some()));
        let (behind, topic) = self.behind(config, cached.is_some(), &poisons, &stop)?;
        let misplaced = Arc::new(Misplaced::of(config.placing()));
        let laid = Laid {
            config,
            misplaced: &misplaced,
            cached,
        };
        let (partitions, starts): (Vec<_>, Vec<_>) = (0u32..)
            .zip(behind)
            .map(|(number, behind)| self.partition(&laid, number, behind))
            .unzip();
        let stream = Arc::new(Stream {
            name: config.name.clone(),
            mode: config.mode,
            placement: config.placement,
            generations: config.generations,
            may_grow: topic.as_ref().is_some_and(|topic| topic.grows()),
            options: ArcSwap::from_pointee(options(config)),
            partitions,
            misplaced,
            hindrance: watch::Sender::default(),
            poisons,
            event_time: time_part(config),
            canary: Arc::default(),
        });
        for start in starts {
            self.run(start, self.reads(config), &stream.hindrance, &stop);
        }
        if let Some(topic) = &topic {
            self.watch(&config.name, topic, &stop);
        }
        let made = Made {
            config: config.clone(),
            topic: topic.as_ref().map_or_else(Weak::new, Arc::downgrade),
            stop,
        };
        self.all_made().insert(config.name.clone(), made);
        Ok(self.streams.add(stream))
    }

    /// What stands behind the partitions of a stream, and the topic, where they are one's.
    fn behind(
        &self,
        config: &StreamConfig,
        cached: bool,
        poisons: &Arc<Poisons>,
        stop: &CancellationToken,
    ) -> Result<(Vec<PartitionBehind>, Option<Arc<Topic>>), MakeError> {
        match &config.source {
            SourceConfig::Embedded { retention } => {
                let behind = |log: Arc<EmbeddedLog>| {
                    let source = EmbeddedSource::new(log.clone(), self.clock);
                    let reader = Reader::Embedded(source);
                    (Backing::from(log.clone()), Log::Embedded(log), reader)
                };
                let logs = self.logs(config, retention)?;
                Ok((logs.into_iter().map(behind).collect(), None))
            }
            SourceConfig::Kafka(kafka) => {
                let described = (config, kafka);
                let spawn = |task| self.spawn(task);
                let topic = Topic::new(described, cached, poisons, &self.upstreams, stop, spawn);
                let topic = topic.map_err(unmade(config))?;
                let numbers = 0..config.partitions;
                let behind =
                    numbers.map(|number| self.behind_topic(config, cached, &topic, number));
                Ok((behind.collect(), Some(topic)))
            }
            SourceConfig::Redis(redis) => {
                let spawn = |task| self.spawn(task);
                let all = redis::partitions((config, redis), &self.upstreams, stop, spawn);
                let behind = |one: kafka::Behind| {
                    let backing = cache::backing(config, one.fold, cached);
                    (backing, one.log, one.reader)
                };
                let all = all.map_err(unmade(config))?;
                Ok((all.into_iter().map(behind).collect(), None))
            }
        }
    }

    fn behind_topic(
        &self,
        config: &StreamConfig,
        cached: bool,
        topic: &Topic,
        number: u32,
    ) -> PartitionBehind {
        let behind = topic.behind(number, |task| self.spawn(task));
        let backing = cache::backing(config, behind.fold, cached);
        (backing, behind.log, behind.reader)
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(self.tasks.spawn_on(task, &self.handle));
    }

    /// Tells of each growth of a topic, one after the other, until the stream ends.
    fn watch(&self, stream: &str, topic: &Arc<Topic>, stop: &CancellationToken) {
        let (topic, growths, name) = (topic.clone(), self.growths.clone(), stream.to_owned());
        let watch = async move {
            loop {
                let generations = topic.grown().await;
                let (done, is_done) = oneshot::channel();
                let stream = name.clone();
                let growth = Growth {
                    stream,
                    generations,
                    done,
                };
                // Whoever takes them up goes last, when the node leaves.
                if growths.send(growth).await.is_err() || is_done.await.is_err() {
                    return;
                }
            }
        };
        let stop = stop.clone();
        self.spawn(Box::pin(async move {
            stop.run_until_cancelled(watch).await;
        }));
    }

    /// Runs the partitions that a stream has got beside those that it had. What it has grown into is in the directory from now on;
    /// none where it is gone. Nothing of it is read before it is [adopted](Factory::adopt).
    pub(super) fn grow(&self, name: &str, generations: Generations) -> Option<Arc<Stream>> {
        let before = self.streams.get(name)?;
        let (config, topic, stop) = {
            let made = self.all_made();
            let made = made.get(name)?;
            let topic = made.topic.upgrade()?;
            (made.config.clone(), topic, made.stop.clone())
        };
        // Another stream may have that name by now.
        if !generations
            .counts()
            .starts_with(before.generations.counts())
        {
            return None;
        }
        before.misplaced.place(Placing::among(generations));
        let cached = self.caches.of(&config, &self.upstreams);
        let laid = Laid {
            config: &config,
            misplaced: &before.misplaced,
            cached: cached.clone(),
        };
        let known = u32::try_from(before.partitions.len()).unwrap_or(u32::MAX);
        let (later, starts): (Vec<_>, Vec<_>) = (known..generations.newest())
            .map(|number| {
                let behind = self.behind_topic(&config, cached.is_some(), &topic, number);
                self.partition(&laid, number, behind)
            })
            .unzip();
        let stream = Arc::new(before.grown(generations, later));
        for start in starts {
            self.run(start, self.reads(&config), &stream.hindrance, &stop);
        }
        self.streams.replace(stream.clone()).then_some(stream)
    }

    /// Everybody who follows the stream follows all of it: it is read and written again.
    pub(super) fn adopt(&self, name: &str, generations: Generations) {
        if let Some(topic) = self
            .all_made()
            .get(name)
            .and_then(|made| made.topic.upgrade())
        {
            topic.adopt(generations);
        }
    }

    /// Opens the logs of streams that are to be made, so that making them can't fail. Blocks while it reads their files.
    pub(super) fn prepare(&self, streams: &[StreamConfig]) -> Result<(), MakeError> {
        for config in streams {
            match &config.source {
                SourceConfig::Embedded { retention } => drop(self.logs(config, retention)?),
                SourceConfig::Kafka(kafka) => kafka::check(kafka).map_err(unmade(config))?,
                SourceConfig::Redis(redis) => redis::check(redis).map_err(unmade(config))?,
            }
            let made = Made {
                config: config.clone(),
                topic: Weak::new(),
                stop: self.stop.child_token(),
            };
            self.all_made().insert(config.name.clone(), made);
        }
        Ok(())
    }

    fn all_made(&self) -> MutexGuard<'_, BTreeMap<String, Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The streams whose logs were ever opened here, as they were made.
    pub(super) fn made(&self) -> BTreeMap<String, StreamConfig> {
        let made = self.all_made();
        let configs = made
            .iter()
            .map(|(name, made)| (name.clone(), made.config.clone()));
        configs.collect()
    }

    /// Gives a running stream its options anew.
    pub(super) async fn alter(&self, config: &StreamConfig) {
        let Some(stream) = self.streams.get(&config.name) else {
            return;
        };
        stream.options.store(Arc::new(options(config)));
        let cached = self.caches.has(config);
        stream.poisons.set_rule(kafka::poison_rule(config, cached));
        for partition in &stream.partitions {
            partition.tail.bound(tail_max(config));
            let read = Request::Read(self.reads(config));
            // A partition that has ended reads nothing more.
            drop(partition.requests.send(read).await);
        }
        if let Some(made) = self.all_made().get_mut(&config.name) {
            made.config = config.clone();
        }
    }

    /// Ends a stream's tasks; its logs stay with the engine.
    pub(super) fn end(&self, name: &str) {
        if let Some(made) = self.all_made().get(name) {
            made.stop.cancel();
        }
    }

    /// The stream's logs, as the engine has them, or new ones.
    fn logs(
        &self,
        config: &StreamConfig,
        retention: &config::Retention,
    ) -> Result<Vec<Arc<EmbeddedLog>>, DataError> {
        let spec = LogSpec {
            stream: &config.name,
            partitions: config.partitions,
            placement: config.placement,
            settings: log_settings(config, retention),
            hot_bytes: config.tail.bytes,
        };
        self.engine.logs(&spec, new_epoch)
    }

    fn partition(
        &self,
        laid: &Laid<'_>,
        number: u32,
        (backing, log, source): PartitionBehind,
    ) -> (PartitionHandle, Start) {
        let config = laid.config;
        let tail = Tail::new(tail_max(config));
        let (requests, taken) = mpsc::channel(task::REQUESTS_MAX);
        let settings = Settings {
            stream: config.name.clone(),
            partition: number,
            mode: config.mode,
            is_later: config.generations.is_later(number),
            replay_records: self.replay_records,
            hold: self.hold,
        };
        let decoder = decoder(config, log.embedded().is_some());
        let partition = Partition::new(settings, decoder, backing, tail.clone());
        let mut partition = partition.placed(laid.misplaced.clone());
        if let Some(rows) = config.default_rows() {
            partition = partition.with_default(&rows);
        }
        let copying = self.keepsakes.of(config, number);
        if copying.is_some() {
            partition = partition.with_copy();
        }
        #[cfg(feature = "seeded-bugs")]
        let partition = partition.with_bug(config.seeded_bug);
        let start = Start {
            partition,
            source,
            beside: Beside {
                cached: laid.cached.clone().map(|cache| Cached {
                    cache,
                    partition: number,
                }),
                copying,
            },
            requests: taken,
        };
        let handle = PartitionHandle {
            tail,
            requests,
            log,
            held: start.partition.held(),
        };
        (handle, start)
    }

    fn run(
        &self,
        start: Start,
        reads: Reads,
        hindrance: &watch::Sender<Hindrance>,
        stop: &CancellationToken,
    ) {
        let Start {
            partition,
            source,
            beside,
            requests,
        } = start;
        let hand = hindrance.subscribe();
        match source {
            Reader::Embedded(source) => {
                let source = Hindered::new(source, hand, self.clock);
                self.drive((partition, source, requests), beside, reads, stop);
            }
            #[cfg(feature = "kafka")]
            Reader::Kafka(source) => {
                let source = Hindered::new(*source, hand, self.clock);
                self.drive((partition, source, requests), beside, reads, stop);
            }
            Reader::Redis(source) => {
                let source = Hindered::new(*source, hand, self.clock);
                self.drive((partition, source, requests), beside, reads, stop);
            }
        }
    }

    /// How the stream's partitions are read.
    fn reads(&self, config: &StreamConfig) -> Reads {
        Reads {
            prove_every: proof_every(config.freshness_slo),
            linger: config.lingers(self.caches.has(config)),
        }
    }

    fn drive(
        &self,
        (partition, source, requests): (Partition, impl Source, mpsc::Receiver<Request>),
        beside: Beside,
        reads: Reads,
        stop: &CancellationToken,
    ) {
        let run = task::run(
            partition,
            source,
            beside,
            requests,
            self.clock,
            reads,
            stop.clone(),
        );
        self.tasks.spawn_on(run, &self.handle);
    }
}

pub(super) fn unmade(config: &StreamConfig) -> impl FnOnce(String) -> MakeError {
    let stream = config.name.clone();
    |why| MakeError::Source { stream, why }
}

/// How often a partition must be proved, so that a proof is never old because nobody asked.
fn proof_every(freshness_slo: Duration) -> Duration {
    (freshness_slo / 5).clamp(Duration::from_millis(20), Duration::from_secs(1))
}

fn options(config: &StreamConfig) -> StreamOptions {
    StreamOptions {
        freshness_slo: config.freshness_slo,
        expect_every: config.expect_every,
        policy: config.slow_consumer,
    }
}

fn tail_max(config: &StreamConfig) -> TailMax {
    TailMax {
        bytes: config.tail.bytes,
        age: config.tail.age,
    }
}

fn log_settings(config: &StreamConfig, retention: &config::Retention) -> LogSettings {
    LogSettings {
        mode: config.mode,
        retention: Retention {
            records: retention.records,
            bytes: retention.bytes,
            age: retention.age,
        },
        view_max: ViewMax {
            rows: config.view_max.rows,
            bytes: config.view_max.bytes,
        },
        row_ttl: config.row_ttl,
    }
}

/// `own`: nobody but this program has written the records.
pub(super) fn decoder(config: &StreamConfig, own: bool) -> Decoder {
    Decoder::new(
        &config.name,
        key_part(&config.channel),
        config.row.as_ref().map(key_part),
        own,
    )
    .timed(time_part(config))
}

/// Where records say when it happened.
fn time_part(config: &StreamConfig) -> Option<TimePart> {
    Some(match config.event_time.as_ref()? {
        Selector::Key(pointer) if pointer.is_empty() => TimePart::Key,
        Selector::Key(pointer) => TimePart::InKey(Pointer::new(pointer)),
        Selector::Value(pointer) => TimePart::InValue(Pointer::new(pointer)),
        // The configuration refuses these.
        Selector::Header(_) => return None,
    })
}

fn key_part(selector: &Selector) -> KeyPart {
    match selector {
        Selector::Key(pointer) if pointer.is_empty() => KeyPart::Whole,
        Selector::Key(pointer) => KeyPart::Pointer(pointer.clone()),
        // The configuration refuses these for channels and rows.
        Selector::Header(name) | Selector::Value(name) => KeyPart::Pointer(name.clone()),
    }
}
