//! What reads the partitions of a stream of Kafka, for a node that serves them and for a materializer that folds them; and what
//! appends to them.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::factory::{Ground, Reader};
use crate::{
    cache::redis::GuardedCache,
    config::{KafkaConfig, MaterializerConfig, StreamConfig},
    materializer::StreamStatus,
    model::{Generations, PoisonRule},
    partition::FoldSettings,
    source::{log::Log, poisons::Poisons},
    upstream::Upstreams,
};

/// A partition's reader, how this node folds what it reads, and where it is published to.
pub(super) struct Behind {
    pub(super) fold: FoldSettings,
    pub(super) reader: Reader,
    pub(super) log: Log,
}

/// What is done with records that mean nothing by all readers of a stream in one role. Where a cache holds the views, nodes pass
/// over what is to be put aside: whoever folds for all of them does that, once.
pub(super) fn poison_rule(config: &StreamConfig, cached: bool) -> PoisonRule {
    match config.poison {
        PoisonRule::Quarantine if cached => PoisonRule::Skip,
        rule => rule,
    }
}

/// A topic, and what every partition of it needs to be read and written.
#[cfg(feature = "kafka")]
pub(super) struct Topic {
    config: StreamConfig,
    shape: Arc<crate::source::kafka::Shape>,
    ward: crate::source::kafka::Ward,
    fold: FoldSettings,
    settings: crate::source::kafka::AppenderSettings,
    /// Once told, the tasks of its appenders append what they had taken.
    stop: CancellationToken,
}

#[cfg(feature = "kafka")]
impl Topic {
    /// What of a stream is not a partition's own. Of one with its views in a `cached` fold partitions that are added are not taken up.
    pub(super) fn new(
        (config, kafka): (&StreamConfig, &KafkaConfig),
        cached: bool,
        poisons: &Arc<Poisons>,
        upstreams: &Upstreams,
        stop: &CancellationToken,
        spawn: impl Fn(BoxFuture<'static, ()>),
    ) -> Result<Arc<Self>, String> {
        use crate::{
            model::{Mode, Placement},
            source::kafka::{AppenderSettings, Shape},
        };

        let cluster = cluster(config, kafka, upstreams)?;
        let ward = ward((config, kafka), &cluster, poisons, &spawn);
        let shape = Shape::new(cluster, &kafka.topic, config.generations);
        let folded_elsewhere = cached && config.mode == Mode::View;
        let grows = config.placement == Placement::ByChannel && !folded_elsewhere;
        let shape = if grows { shape.growing() } else { shape };
        Ok(Arc::new(Self {
            config: config.clone(),
            shape: Arc::new(shape),
            ward,
            fold: FoldSettings {
                compaction: compaction(kafka),
                accepts_incomplete: kafka.incomplete_history,
                needs_tombstones: false,
            },
            settings: AppenderSettings {
                delivery_timeout: kafka.publish_timeout,
                ..AppenderSettings::default()
            },
            stop: stop.clone(),
        }))
    }

    /// What is behind one of its partitions. The task of its appender goes to `spawn`.
    pub(super) fn behind(&self, number: u32, spawn: impl Fn(BoxFuture<'static, ()>)) -> Behind {
        use crate::{
            model::Mode,
            source::kafka::{KafkaAppender, Recent, Sifted},
        };

        let (config, shape) = (&self.config, &self.shape);
        let recent = Recent::new(config.mode == Mode::Events);
        let decoder = super::factory::decoder(config, false);
        let ward = self.ward.clone();
        let reader = Sifted::new(shape.clone(), number, recent.clone(), decoder, ward);
        let log = written_by_others(config).map_or_else(
            || {
                let stop = self.stop.clone();
                let (appender, task) =
                    KafkaAppender::beside(shape, number, recent, self.settings, stop);
                spawn(Box::pin(task));
                Log::Kafka(appender)
            },
            Log::Foreign,
        );
        Behind {
            fold: FoldSettings {
                needs_tombstones: config.generations.is_later(number),
                ..self.fold
            },
            reader: Reader::Kafka(Box::new(reader)),
            log,
        }
    }

    /// Whether partitions that are added are taken up.
    pub(super) fn grows(&self) -> bool {
        self.shape.grows()
    }

    /// Waits until it has more partitions than are known.
    pub(super) async fn grown(&self) -> Generations {
        self.shape.grown().await
    }

    /// They have been taken up.
    pub(super) fn adopt(&self, generations: Generations) {
        self.shape.adopt(generations);
    }
}

/// What the readers of a stream have in common about records that mean nothing.
#[cfg(feature = "kafka")]
fn ward(
    (config, kafka): (&StreamConfig, &KafkaConfig),
    cluster: &Arc<crate::source::kafka::KafkaCluster>,
    poisons: &Arc<Poisons>,
    spawn: impl Fn(BoxFuture<'static, ()>),
) -> crate::source::kafka::Ward {
    use crate::source::kafka::{AppenderSettings, DeadLetters, Ward};

    let settings = AppenderSettings {
        delivery_timeout: kafka.publish_timeout,
        ..AppenderSettings::default()
    };
    let topic = config.dead_letter.as_deref();
    let letters = topic.and_then(|topic| {
        let (name, scales) = (&config.name, poisons.scales());
        let (letters, task) = DeadLetters::new(cluster.clone(), name, topic, settings, scales)?;
        spawn(Box::pin(task));
        Some(letters)
    });
    Ward {
        stream: config.name.as_str().into(),
        poisons: poisons.clone(),
        letters,
    }
}

/// Whether what is configured can be made; what can't be is told.
#[cfg(feature = "kafka")]
pub(super) fn check(kafka: &KafkaConfig) -> Result<(), String> {
    security(kafka).map(drop)
}

/// How the brokers are spoken to.
#[cfg(feature = "kafka")]
fn security(kafka: &KafkaConfig) -> Result<crate::source::kafka::Security, String> {
    use crate::{
        config::SaslMechanism,
        source::kafka::{Sasl, Scram, Security, Tls},
    };

    let tls = kafka.security.tls.as_ref().map(|tls| {
        let identity = tls.identity.as_ref();
        let identity = identity.map(|(chain, key)| (chain.as_slice(), key.as_slice()));
        Tls::new(tls.ca_pem.as_deref(), identity)
    });
    let sasl = kafka.security.sasl.as_ref().map(|sasl| Sasl {
        user: sasl.user.clone(),
        password: sasl.password.clone(),
        scram: match sasl.mechanism {
            SaslMechanism::Plain => None,
            SaslMechanism::Scram256 => Some(Scram::Sha256),
            SaslMechanism::Scram512 => Some(Scram::Sha512),
        },
    });
    let tls = tls.transpose().map_err(|error| error.to_string())?;
    Ok(Security { tls, sasl })
}

#[cfg(feature = "kafka")]
const fn compaction(kafka: &KafkaConfig) -> crate::source::compaction::Compaction {
    crate::source::compaction::Compaction {
        after: kafka.compacts_after,
        tombstones_kept: kafka.tombstones_kept,
    }
}

/// Why a stream whose log others may write can't be published to from here, where it can't: what is written here must read back as what
/// it was.
pub(super) fn written_by_others(config: &StreamConfig) -> Option<&'static str> {
    use crate::model::Placement;

    if config.placement == Placement::Spread {
        Some(
            "others spread its rows over its partitions, each in its own way; write to its log itself",
        )
    } else if !config.reads_own_keys() {
        Some(
            "what is published here has the key [\"channel\",\"row\"], and this stream reads its channel or row from elsewhere; write to its log itself",
        )
    } else {
        None
    }
}

/// There is none: the configuration has been refused before.
#[cfg(not(feature = "kafka"))]
pub(super) enum Topic {}

#[cfg(not(feature = "kafka"))]
impl Topic {
    pub(super) fn new(
        _: (&StreamConfig, &KafkaConfig),
        _: bool,
        _: &Arc<Poisons>,
        _: &Upstreams,
        _: &CancellationToken,
        _: impl Fn(BoxFuture<'static, ()>),
    ) -> Result<Arc<Self>, String> {
        Err("this program was built without Kafka".to_owned())
    }

    pub(super) fn behind(&self, _: u32, _: impl Fn(BoxFuture<'static, ()>)) -> Behind {
        match *self {}
    }

    pub(super) fn grows(&self) -> bool {
        match *self {}
    }

    pub(super) async fn grown(&self) -> Generations {
        match *self {}
    }

    pub(super) fn adopt(&self, _: Generations) {
        match *self {}
    }
}

/// The same.
#[cfg(not(feature = "kafka"))]
pub(super) fn check(_: &KafkaConfig) -> Result<(), String> {
    Ok(())
}

/// Folds a stream into the cache behind its breaker, as far as its group gives this process partitions.
#[cfg(feature = "kafka")]
pub(super) fn materialize(
    (stream, kafka): (&StreamConfig, &KafkaConfig),
    cache: Arc<GuardedCache>,
    settings: &MaterializerConfig,
    (ground, stop): (&Ground, &CancellationToken),
) -> Option<Arc<StreamStatus>> {
    use crate::{
        materializer::{self, FoldSettings, Materializer},
        source::kafka::{GroupMember, GroupSettings, Recent, Shape, Sifted},
    };

    let poisons = Poisons::new(stream.poison);

    let below = materializer::Ground {
        cache,
        settings: FoldSettings {
            fold_id: stream.fold_id(),
            compaction: compaction(kafka),
            placing: stream.placing(),
        },
        poisons: poisons.clone(),
        clock: ground.clock,
    };
    // What it is made of has been checked by `check`.
    let refused = |error: &String| tracing::error!(stream = stream.name, error, "not folded");
    let cluster = cluster(stream, kafka, &ground.upstreams);
    let cluster = cluster.inspect_err(refused).ok()?;
    let shape = Arc::new(Shape::new(
        cluster.clone(),
        &kafka.topic,
        stream.generations,
    ));
    let group = GroupSettings {
        group: format!("{}.{}", settings.group, stream.name),
        topic: kafka.topic.clone(),
        partitions: stream.partitions,
        session_timeout: settings.session_timeout,
    };
    let (member, given) = GroupMember::new(cluster.clone(), group);
    let (tasks, handle) = (&ground.tasks, &ground.handle);
    let spawn = |task| drop(tasks.spawn_on(task, handle));
    let ward = ward((stream, kafka), &cluster, &poisons, spawn);
    let described = stream.clone();
    let open = move |number| {
        let decoder = super::factory::decoder(&described, false);
        Sifted::new(
            shape.clone(),
            number,
            Recent::new(false),
            decoder,
            ward.clone(),
        )
    };
    let described = stream.clone();
    let decoder = move || super::factory::decoder(&described, false);
    let materializer = Materializer::new(&stream.name, below, open, decoder);
    let status = materializer.status();
    tasks.spawn_on(member.run(stop.clone()), handle);
    tasks.spawn_on(materializer.run(given, stop.clone()), handle);
    Some(status)
}

/// Never called: the configuration has been refused before.
#[cfg(not(feature = "kafka"))]
pub(super) fn materialize(
    _: (&StreamConfig, &KafkaConfig),
    _: Arc<GuardedCache>,
    _: &MaterializerConfig,
    _: (&Ground, &CancellationToken),
) -> Option<Arc<StreamStatus>> {
    None
}

/// The cluster of a stream, behind the stream's breaker.
#[cfg(feature = "kafka")]
fn cluster(
    config: &StreamConfig,
    kafka: &KafkaConfig,
    upstreams: &Upstreams,
) -> Result<Arc<crate::source::kafka::KafkaCluster>, String> {
    use crate::source::kafka::{ClusterSettings, KafkaCluster};

    let settings = ClusterSettings {
        brokers: kafka.brokers.clone(),
        security: security(kafka)?,
        timeout: kafka.timeout,
    };
    let name = format!("kafka:{}", config.name);
    Ok(Arc::new(KafkaCluster::among(upstreams, &name, settings)))
}
