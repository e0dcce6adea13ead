//! What reads the partitions of a stream of Redis, for a node that serves them and for a materializer that folds them; and what appends
//! to them.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::{
    factory::{Ground, Reader},
    kafka::Behind,
};
use crate::{
    cache::redis::{GuardedCache, RedisOptions},
    config::{MaterializerConfig, RedisConfig, StreamConfig},
    materializer::{self, Materializer, StreamStatus},
    model::Mode,
    partition::FoldSettings,
    source::{
        Recent,
        compaction::Compaction,
        log::Log,
        poisons::Poisons,
        redis::{
            Ears, MemberSettings, RedisAppender, RedisAppenderSettings, RedisMember, RedisServer,
            RedisSource, Retention,
        },
    },
    upstream::Upstreams,
};

/// What is behind each partition. The tasks of ears and appenders go to `spawn`; once told to stop, these append what they had taken.
pub(super) fn partitions(
    (config, redis): (&StreamConfig, &RedisConfig),
    upstreams: &Upstreams,
    stop: &CancellationToken,
    spawn: impl Fn(BoxFuture<'static, ()>),
) -> Result<Vec<Behind>, String> {
    let server = server((config, redis), upstreams)?;
    let ears = listen(&server, config.partitions, stop, &spawn);
    let settings = RedisAppenderSettings {
        delivery_timeout: redis.publish_timeout,
        retention: Retention {
            records: redis.records,
            age: redis.age,
        },
        ..RedisAppenderSettings::default()
    };
    let foreign = super::kafka::written_by_others(config);
    let behind = |(number, ears): (u32, Arc<Ears>)| {
        let recent = Recent::new(config.mode == Mode::Events);
        let reader = RedisSource::new(server.clone(), &config.name, number);
        let reader = reader.beside(recent.clone(), &ears);
        let log = foreign.map_or_else(
            || {
                let place = (config.name.as_str(), number);
                let (appender, task) =
                    RedisAppender::beside(server.clone(), place, recent, settings, stop.clone());
                spawn(Box::pin(task));
                Log::Redis(appender)
            },
            Log::Foreign,
        );
        Behind {
            fold: FoldSettings {
                compaction: Compaction::NEVER,
                accepts_incomplete: redis.incomplete_history,
                needs_tombstones: false,
            },
            reader: Reader::Redis(Box::new(reader)),
            log,
        }
    };
    Ok((0..).zip(ears).map(behind).collect())
}

/// Whether what is configured can be made; what can't be is told.
pub(super) fn check(redis: &RedisConfig) -> Result<(), String> {
    let made = RedisServer::new(&(&*redis.servers).into());
    made.map(drop).map_err(|error| error.to_string())
}

/// Folds a stream into the cache behind its breaker, as far as leases give this process partitions.
pub(super) fn materialize(
    (stream, redis): (&StreamConfig, &RedisConfig),
    cache: Arc<GuardedCache>,
    settings: &MaterializerConfig,
    (ground, stop): (&Ground, &CancellationToken),
) -> Option<Arc<StreamStatus>> {
    // What it is made of has been checked by `check`.
    let refused = |error: &String| tracing::error!(stream = stream.name, error, "not folded");
    let server = server((stream, redis), &ground.upstreams);
    let server = server.inspect_err(refused).ok()?;
    let (tasks, handle) = (&ground.tasks, &ground.handle);
    let spawn = |task| drop(tasks.spawn_on(task, handle));
    let ears = listen(&server, stream.partitions, stop, spawn);
    let below = materializer::Ground {
        cache,
        settings: materializer::FoldSettings {
            fold_id: stream.fold_id(),
            compaction: Compaction::NEVER,
            placing: stream.placing(),
        },
        poisons: Poisons::new(stream.poison),
        clock: ground.clock,
    };
    let shared = MemberSettings {
        group: settings.group.clone(),
        stream: stream.name.clone(),
        partitions: stream.partitions,
        session_timeout: settings.session_timeout,
    };
    let (member, given) = RedisMember::new(server.clone(), shared);
    let name = stream.name.clone();
    let open = move |number: u32| {
        let reader = RedisSource::new(server.clone(), &name, number);
        let ears = usize::try_from(number).ok().and_then(|at| ears.get(at));
        ears.cloned().into_iter().fold(reader, |reader, ears| {
            reader.beside(Recent::new(false), &ears)
        })
    };
    let described = stream.clone();
    let decoder = move || super::factory::decoder(&described, false);
    let materializer = Materializer::new(&stream.name, below, open, decoder);
    let status = materializer.status();
    tasks.spawn_on(member.run(stop.clone()), handle);
    tasks.spawn_on(materializer.run(given, stop.clone()), handle);
    Some(status)
}

/// The servers of a stream, behind the stream's breaker. The cache's is `redis:cache`, which no stream may take from it.
fn server(
    (config, redis): (&StreamConfig, &RedisConfig),
    upstreams: &Upstreams,
) -> Result<Arc<RedisServer>, String> {
    let name = format!("redis-streams:{}", config.name);
    let options = RedisOptions::from(&*redis.servers);
    let server = RedisServer::among(upstreams, &name, &options);
    server.map(Arc::new).map_err(|error| error.to_string())
}

/// What wakes the reader of each partition. Keys of several slots can't be waited for together.
fn listen(
    server: &Arc<RedisServer>,
    partitions: u32,
    stop: &CancellationToken,
    spawn: impl Fn(BoxFuture<'static, ()>),
) -> Vec<Arc<Ears>> {
    let ears = || {
        let ears = Ears::new();
        spawn(Box::pin(ears.clone().run(server.clone(), stop.clone())));
        ears
    };
    if server.is_cluster() {
        (0..partitions).map(|_| ears()).collect()
    } else {
        let shared = ears();
        (0..partitions).map(|_| shared.clone()).collect()
    }
}
