//! What goes wrong: each fault by its name, how it begins and how it is healed.
//!
//! Does: carries faults out. Owns: nothing. Never knows: what clients see of it. What a fault may cause needs no list of its own: no
//! fault permits anything but bad news, another epoch where the truth has one, and gaps where events are gone; the judge holds
//! every run to the same.

use std::{fmt, time::Duration};

use anyhow::{Context, ensure};
use tokio::time::sleep;

use super::{
    road::Weather,
    scene::{Ms, TOMBSTONES_KEPT_MS},
    world::{MATERIALIZERS, NODES, World},
};
use crate::services::{kafka::Outcome, redis::Redis};

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A node crashes, and is started again.
    NodeKill,
    /// A node stops doing anything for a while, and goes on.
    NodeFreeze,
    /// A node does so for longer than the log keeps tombstones.
    NodeSleep,
    /// A node drains, and is started again.
    NodeDrain,
    /// The broker loses its power, and is started again.
    BrokerKill,
    /// The broker stops doing anything for a while.
    BrokerFreeze,
    /// An operator pauses a stream on a node.
    Pause,
    /// An operator delays a stream on a node.
    Delay,
    /// The road from a node to the broker is slow.
    RoadSlow,
    /// Nothing passes on the road from a node to the broker.
    RoadFog,
    /// Connections on the road from a node to the broker are reset.
    RoadStorm,
    /// A topic is deleted, and made anew.
    TopicAnew,
    /// A log of events loses its oldest records while a node sleeps.
    Retention,
    /// A log of a view does.
    RetentionOfView,
    /// Transactions, of which some are aborted.
    Transactions,
    /// Redis loses its power and all that it held, and is started again.
    CacheKill,
    /// Redis stops doing anything for a while.
    CacheFreeze,
    /// Redis is emptied.
    CacheEmpty,
    /// Redis goes back to what it held a while ago.
    CacheOlder,
    /// A materializer crashes, and is started again.
    MaterializerKill,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::NodeKill,
        Self::NodeFreeze,
        Self::NodeSleep,
        Self::NodeDrain,
        Self::BrokerKill,
        Self::BrokerFreeze,
        Self::Pause,
        Self::Delay,
        Self::RoadSlow,
        Self::RoadFog,
        Self::RoadStorm,
        Self::TopicAnew,
        Self::Retention,
        Self::RetentionOfView,
        Self::Transactions,
        Self::CacheKill,
        Self::CacheFreeze,
        Self::CacheEmpty,
        Self::CacheOlder,
        Self::MaterializerKill,
    ];
    /// The first so many of them need no cache.
    const WITHOUT_CACHE: usize = 15;

    /// Those that a fleet can meet, with a cache or without.
    #[must_use]
    pub fn of(cache: bool) -> &'static [Self] {
        if cache {
            &Self::ALL
        } else {
            &Self::ALL[..Self::WITHOUT_CACHE]
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NodeKill => "node-kill",
            Self::NodeFreeze => "node-freeze",
            Self::NodeSleep => "node-sleep",
            Self::NodeDrain => "node-drain",
            Self::BrokerKill => "broker-kill",
            Self::BrokerFreeze => "broker-freeze",
            Self::Pause => "pause",
            Self::Delay => "delay",
            Self::RoadSlow => "road-slow",
            Self::RoadFog => "road-fog",
            Self::RoadStorm => "road-storm",
            Self::TopicAnew => "topic-anew",
            Self::Retention => "retention",
            Self::Transactions => "transactions",
            Self::CacheKill => "cache-kill",
            Self::CacheFreeze => "cache-freeze",
            Self::CacheEmpty => "cache-empty",
            Self::CacheOlder => "cache-older",
            Self::MaterializerKill => "materializer-kill",
            Self::RetentionOfView => "retention-of-view",
        }
    }

    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }

    /// How long it lasts, in milliseconds.
    fn lasts(self, world: &mut World) -> Ms {
        let (least, most) = match self {
            Self::NodeKill | Self::NodeDrain => (200, 2500),
            Self::NodeSleep => (TOMBSTONES_KEPT_MS + 1000, TOMBSTONES_KEPT_MS + 2000),
            Self::TopicAnew => (200, 1500),
            Self::Retention | Self::RetentionOfView => (2000, 4000),
            _ => (1500, 6000),
        };
        least
            + Ms::try_from(world.dice.below(usize::try_from(most - least).unwrap_or(1)))
                .unwrap_or(0)
    }

    /// Lets it happen to a node, or a stream, and heals it.
    pub(super) async fn occur(self, world: &mut World) -> anyhow::Result<()> {
        let node = world.dice.below(NODES);
        // Of the streams the last has events.
        let streams = world.scene.streams.len();
        let stream = match self {
            Self::Retention => streams - 1,
            Self::RetentionOfView => world.dice.below(streams - 1),
            _ => world.dice.below(streams),
        };
        let lasts = self.lasts(world);
        let at = world.clock.now();
        world.tell(&format!("{} (node {node}, stream {stream})", self.name()));
        self.happen(
            world,
            node,
            stream,
            Duration::from_millis(u64::try_from(lasts)?),
        )
        .await?;
        world.occurred.push(Occurred {
            fault: self,
            node,
            stream,
            from: at,
            until: world.clock.now(),
        });
        Ok(())
    }

    async fn happen(
        self,
        world: &mut World,
        node: usize,
        stream: usize,
        lasts: Duration,
    ) -> anyhow::Result<()> {
        let name = world.scene.streams[stream].name;
        match self {
            Self::NodeKill => {
                world.nodes[node].kill()?;
                sleep(lasts).await;
                world.nodes[node].start().await?;
            }
            Self::NodeFreeze | Self::NodeSleep => {
                world.nodes[node].freeze();
                sleep(lasts).await;
                world.nodes[node].thaw();
            }
            Self::NodeDrain => {
                world.nodes[node].drain().await?;
                sleep(lasts).await;
                world.nodes[node].start().await?;
            }
            Self::BrokerKill => {
                world.kafka.kill()?;
                sleep(lasts).await;
                world.kafka.restart().await?;
            }
            Self::BrokerFreeze => {
                world.kafka.freeze();
                sleep(lasts).await;
                world.kafka.thaw();
            }
            Self::Pause => {
                world.nodes[node].hinder(name, "pause").await?;
                sleep(lasts).await;
                world.nodes[node].hinder(name, "resume").await?;
            }
            Self::Delay => {
                world.nodes[node].hinder(name, "delay?ms=700").await?;
                sleep(lasts).await;
                world.nodes[node].hinder(name, "resume").await?;
            }
            Self::RoadSlow => {
                storm(
                    world,
                    node,
                    Weather::Slow(Duration::from_millis(250)),
                    lasts,
                )
                .await
            }
            Self::RoadFog => storm(world, node, Weather::Fog, lasts).await,
            Self::RoadStorm => storm(world, node, Weather::Storm, lasts).await,
            Self::TopicAnew => anew(world, stream, lasts).await?,
            Self::Retention | Self::RetentionOfView => {
                world.nodes[node].freeze();
                sleep(lasts / 2).await;
                trim(world, stream).await?;
                world.nodes[node].thaw();
                sleep(lasts / 2).await;
                // A view without its beginning stays so: what an operator can do is to write the topic anew.
                anew(world, stream, Duration::from_millis(100)).await?;
            }
            Self::Transactions => transactions(world, stream, lasts).await?,
            Self::MaterializerKill => {
                let process = node % MATERIALIZERS;
                let materializers = &mut world.materializers;
                ensure!(
                    !materializers.is_empty(),
                    "a fleet without a cache has no materializer"
                );
                materializers[process].kill()?;
                sleep(lasts).await;
                materializers[process].start().await?;
            }
            Self::CacheKill | Self::CacheFreeze | Self::CacheEmpty | Self::CacheOlder => {
                let redis = world.redis.as_mut();
                self.happen_to(
                    redis.context("a fleet without a cache has no Redis")?,
                    lasts,
                )
                .await?;
            }
        }
        Ok(())
    }

    async fn happen_to(self, redis: &mut Redis, lasts: Duration) -> anyhow::Result<()> {
        match self {
            Self::CacheFreeze => {
                redis.freeze()?;
                sleep(lasts).await;
                redis.thaw()?;
            }
            Self::CacheEmpty => {
                redis.cli(&["flushall"]).await?;
            }
            Self::CacheOlder => {
                let backup = redis.back_up().await?;
                sleep(lasts).await;
                redis.go_back_to(&backup).await?;
            }
            _ => {
                redis.kill()?;
                sleep(lasts).await;
                redis.restart().await?;
            }
        }
        Ok(())
    }
}

async fn storm(world: &World, node: usize, weather: Weather, lasts: Duration) {
    world.roads[node].set(weather);
    sleep(lasts).await;
    world.roads[node].set(Weather::Fair);
}

async fn anew(world: &World, stream: usize, lasts: Duration) -> anyhow::Result<()> {
    world.hold(stream).await?;
    let name = world.scene.streams[stream].name;
    world.kafka.delete_topic(name).await?;
    world.truth.lock().end(stream, world.clock.now());
    sleep(lasts).await;
    world.make_topic(stream).await
}

/// Deletes the older half of each partition.
async fn trim(world: &World, stream: usize) -> anyhow::Result<()> {
    let of = &world.scene.streams[stream];
    for partition in 0..of.partitions {
        let head = {
            let truth = world.truth.lock();
            truth
                .current(stream)
                .and_then(|life| life.head(partition))
                .unwrap_or(0)
        };
        let upto = head / 2;
        // Before it is done, so that nobody sees what the truth does not know.
        world.truth.lock().trim(stream, partition, upto);
        let number = i32::try_from(partition)?;
        world
            .kafka
            .delete_records(of.name, number, i64::try_from(upto)?)
            .await?;
    }
    Ok(())
}

/// Writes transactions to a stream for a while; every other one is aborted.
async fn transactions(world: &mut World, stream: usize, lasts: Duration) -> anyhow::Result<()> {
    let until = tokio::time::Instant::now() + lasts;
    let mut aborts = true;
    while tokio::time::Instant::now() < until {
        let scene = world.scene.clone();
        let of = &scene.streams[stream];
        let channel = of.channels.start + world.dice.below(of.channels.len());
        let partition = scene.partition_of(channel, 0);
        let mut records = Vec::new();
        for row in (0..of.rows)
            .filter(|&row| scene.partition_of(channel, row) == partition)
            .take(4)
        {
            let (_, value) = world.desk.value(&mut world.dice);
            records.push((scene.key(channel, row), value));
        }
        let records: Vec<_> = records
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        let outcome = if aborts {
            Outcome::Abort
        } else {
            Outcome::Commit
        };
        aborts = !aborts;
        world
            .kafka
            .transaction(of.name, i32::try_from(partition)?, &records, outcome)
            .await?;
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// A fault that there was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Occurred {
    pub(super) fault: Fault,
    pub(super) node: usize,
    pub(super) stream: usize,
    pub(super) from: Ms,
    pub(super) until: Ms,
}

impl Occurred {
    /// Whether a node can't see a stream's log while it lasts.
    pub(super) fn hides(&self, node: usize, stream: usize) -> bool {
        match self.fault {
            Fault::BrokerKill | Fault::BrokerFreeze => true,
            Fault::RoadFog | Fault::RoadStorm => node == self.node,
            Fault::Pause => (node, stream) == (self.node, self.stream),
            _ => false,
        }
    }
}

impl fmt::Display for Occurred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            fault,
            node,
            stream,
            from,
            until,
        } = self;
        write!(
            f,
            "t={from}..{until} {} (node {node}, stream {stream})",
            fault.name()
        )
    }
}
