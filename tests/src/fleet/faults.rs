//! What goes wrong: each fault by its name, what it needs of a fleet, how long it lasts.
//!
//! Does: lets faults occur, and heals them. Owns: nothing. Never knows: what clients see of it. What a fault may cause needs no
//! list of its own: no fault permits anything but bad news, another epoch where the truth has one, and gaps where events are
//! gone; the judge holds every run to the same.

mod lag;
mod logs;
mod outage;
mod processes;

use std::{fmt, time::Duration};

use anyhow::Context;
use tokio::time::sleep;

use super::{
    Cache, Plan,
    road::{Road, Weather},
    scene::{Ms, TOMBSTONES_KEPT_MS},
    world::{MATERIALIZERS, NODES, World},
};

/// What is long.
const LONG_MS: Ms = 30_000;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A node crashes, and is started again.
    NodeKill,
    /// A node stops doing anything for a while, and goes on.
    NodeFreeze,
    /// A node does so for longer than the log keeps tombstones.
    NodeSleep,
    /// A node does so for half a minute.
    LongNodeFreeze,
    /// A node drains, and is started again.
    NodeDrain,
    /// The broker loses its power, and is started again.
    BrokerKill,
    /// The broker stops doing anything for a while.
    BrokerFreeze,
    /// The broker does so for half a minute.
    LongBrokerFreeze,
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
    /// A node falls behind the others by ten thousand records.
    Lag,
    /// A topic is deleted, and made anew.
    TopicAnew,
    /// A log of events loses its oldest records while a node sleeps.
    Retention,
    /// A log of a view does.
    RetentionOfView,
    /// The broker that leads a partition loses its power, and is started again when the others lead all.
    LeaderKill,
    /// The broker that leads a partition stops doing anything, until the others lead all and for a while.
    LeaderFreeze,
    /// Transactions, of which some are aborted.
    Transactions,
    /// Redis loses its power and all that it held, and is started again.
    CacheKill,
    /// Redis stops doing anything for a while.
    CacheFreeze,
    /// Redis does so for half a minute.
    LongCacheFreeze,
    /// A primary loses its power, and is started again when its replica has taken its place.
    CacheFailover,
    /// Redis is emptied.
    CacheEmpty,
    /// Redis goes back to what it held a while ago.
    CacheOlder,
    /// The road from a node or a materializer to Redis is slow.
    CacheSlow,
    /// Nothing passes on the road from a node or a materializer to Redis.
    CacheFog,
    /// Connections on the road from a node or a materializer to Redis are reset.
    CacheStorm,
    /// A materializer crashes, and is started again.
    MaterializerKill,
    /// A materializer stops doing anything, and goes on when the other has long had its partitions.
    MaterializerFreeze,
    /// A materializer stops doing anything for half a minute.
    LongMaterializerFreeze,
    /// The broker and Redis are killed together, and both are started again.
    BothDown,
}

/// What a fleet must have for a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// What every fleet has.
    Nodes,
    /// Several brokers.
    Brokers,
    /// A cache, and so materializers.
    Cache,
    /// A cache that is one server.
    OneRedis,
    /// A cache whose servers have replicas.
    Replicas,
}

impl Fault {
    /// All of them, by their names.
    const ALL: [(Self, &'static str, Needs); 33] = [
        (Self::NodeKill, "node-kill", Needs::Nodes),
        (Self::NodeFreeze, "node-freeze", Needs::Nodes),
        (Self::NodeSleep, "node-sleep", Needs::Nodes),
        (Self::LongNodeFreeze, "long-node-freeze", Needs::Nodes),
        (Self::NodeDrain, "node-drain", Needs::Nodes),
        (Self::BrokerKill, "broker-kill", Needs::Nodes),
        (Self::BrokerFreeze, "broker-freeze", Needs::Nodes),
        (Self::LongBrokerFreeze, "long-broker-freeze", Needs::Nodes),
        (Self::Pause, "pause", Needs::Nodes),
        (Self::Delay, "delay", Needs::Nodes),
        (Self::RoadSlow, "road-slow", Needs::Nodes),
        (Self::RoadFog, "road-fog", Needs::Nodes),
        (Self::RoadStorm, "road-storm", Needs::Nodes),
        (Self::Lag, "lag", Needs::Nodes),
        (Self::TopicAnew, "topic-anew", Needs::Nodes),
        (Self::Retention, "retention", Needs::Nodes),
        (Self::RetentionOfView, "retention-of-view", Needs::Nodes),
        (Self::LeaderKill, "leader-kill", Needs::Brokers),
        (Self::LeaderFreeze, "leader-freeze", Needs::Brokers),
        (Self::Transactions, "transactions", Needs::Nodes),
        (Self::CacheKill, "cache-kill", Needs::OneRedis),
        (Self::CacheFreeze, "cache-freeze", Needs::Cache),
        (Self::LongCacheFreeze, "long-cache-freeze", Needs::Cache),
        (Self::CacheFailover, "cache-failover", Needs::Replicas),
        (Self::CacheEmpty, "cache-empty", Needs::Cache),
        (Self::CacheOlder, "cache-older", Needs::OneRedis),
        (Self::CacheSlow, "cache-slow", Needs::OneRedis),
        (Self::CacheFog, "cache-fog", Needs::OneRedis),
        (Self::CacheStorm, "cache-storm", Needs::OneRedis),
        (Self::MaterializerKill, "materializer-kill", Needs::Cache),
        (
            Self::MaterializerFreeze,
            "materializer-freeze",
            Needs::Cache,
        ),
        (
            Self::LongMaterializerFreeze,
            "long-materializer-freeze",
            Needs::Cache,
        ),
        (Self::BothDown, "both-down", Needs::OneRedis),
    ];

    /// Those that a fleet can meet; the long ones, or the others.
    #[must_use]
    pub fn of(plan: &Plan, long: bool) -> Vec<Self> {
        let all = Self::ALL.into_iter();
        let can = all.filter(|(fault, _, needs)| needs.has(plan) && fault.is_long() == long);
        can.map(|(fault, ..)| fault).collect()
    }

    /// Whether it lasts half a minute, so that nobody wants it at random.
    fn is_long(self) -> bool {
        self.name().starts_with("long-")
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        let mut all = Self::ALL.iter();
        all.find(|(fault, ..)| *fault == self)
            .map_or("", |(_, name, _)| name)
    }

    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|(_, known, _)| *known == name)
            .map(|(fault, ..)| fault)
    }

    /// How long it lasts, in milliseconds.
    fn lasts(self, world: &mut World) -> Ms {
        let (least, most) = match self {
            Self::NodeKill | Self::NodeDrain => (200, 2500),
            Self::NodeSleep => (TOMBSTONES_KEPT_MS + 1000, TOMBSTONES_KEPT_MS + 2000),
            Self::TopicAnew => (200, 1500),
            Self::Retention | Self::RetentionOfView => (2000, 4000),
            Self::BothDown => (3000, 6000),
            long if long.is_long() => (LONG_MS, LONG_MS + 1),
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
        let from = world.clock.now();
        world.tell(&format!("{} (node {node}, stream {stream})", self.name()));
        let lasts = Duration::from_millis(u64::try_from(lasts)?);
        self.happen(world, (node, stream), lasts)
            .await
            .with_context(|| self.name())?;
        let until = world.clock.now();
        world.occurred.push(Occurred {
            fault: self,
            node,
            stream,
            from,
            back: world.back.take().unwrap_or(until),
            until,
        });
        Ok(())
    }

    async fn happen(
        self,
        world: &mut World,
        (node, stream): (usize, usize),
        lasts: Duration,
    ) -> anyhow::Result<()> {
        let name = world.scene.streams[stream].name;
        match self {
            Self::NodeKill => {
                world.nodes[node].kill()?;
                sleep(lasts).await;
                world.nodes[node].start().await?;
            }
            Self::NodeFreeze | Self::NodeSleep | Self::LongNodeFreeze => {
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
            Self::BrokerFreeze | Self::LongBrokerFreeze => {
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
            Self::RoadSlow => storm(&world.roads[node], Weather::SLOW, lasts).await,
            Self::RoadFog => storm(&world.roads[node], Weather::Fog, lasts).await,
            Self::RoadStorm => storm(&world.roads[node], Weather::Storm, lasts).await,
            Self::CacheSlow => storm([road_to_cache(world)?], Weather::SLOW, lasts).await,
            Self::CacheFog => storm([road_to_cache(world)?], Weather::Fog, lasts).await,
            Self::CacheStorm => storm([road_to_cache(world)?], Weather::Storm, lasts).await,
            Self::Lag => lag::lag(world, (node, stream), lasts).await?,
            Self::LeaderKill | Self::LeaderFreeze => {
                processes::leader(self, world, stream, lasts).await?;
            }
            Self::TopicAnew => logs::anew(world, stream, lasts).await?,
            Self::Retention | Self::RetentionOfView => {
                world.nodes[node].freeze();
                sleep(lasts / 2).await;
                logs::trim(world, stream).await?;
                world.nodes[node].thaw();
                sleep(lasts / 2).await;
                // A view without its beginning stays so: what an operator can do is to write the topic anew.
                logs::anew(world, stream, Duration::from_millis(100)).await?;
            }
            Self::Transactions => logs::transactions(world, stream, lasts).await?,
            Self::MaterializerKill | Self::MaterializerFreeze | Self::LongMaterializerFreeze => {
                processes::materializer(self, world, node, lasts).await?;
            }
            Self::BothDown => outage::both(world, lasts).await?,
            Self::CacheKill
            | Self::CacheFreeze
            | Self::LongCacheFreeze
            | Self::CacheFailover
            | Self::CacheEmpty
            | Self::CacheOlder => processes::redis(self, world, lasts).await?,
        }
        Ok(())
    }
}

impl Needs {
    /// Whether the fleet of a plan has it.
    fn has(self, plan: &Plan) -> bool {
        match self {
            Self::Nodes => true,
            Self::Brokers => plan.brokers > 1,
            Self::Cache => plan.cache.is_some(),
            Self::OneRedis => plan.cache == Some(Cache::One),
            Self::Replicas => {
                matches!(plan.cache, Some(Cache::Sentinel | Cache::Cluster))
            }
        }
    }
}

/// The road of any process.
fn road_to_cache(world: &mut World) -> anyhow::Result<&Road> {
    let process = world.dice.below(NODES + MATERIALIZERS);
    world.tell(&format!("  of process {process}"));
    world.store()?.road(process)
}

async fn storm(roads: impl IntoIterator<Item = &Road> + Clone, weather: Weather, lasts: Duration) {
    roads.clone().into_iter().for_each(|road| road.set(weather));
    sleep(lasts).await;
    roads.into_iter().for_each(|road| road.set(Weather::Fair));
}

/// A fault that there was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Occurred {
    pub(super) fault: Fault,
    pub(super) node: usize,
    pub(super) stream: usize,
    pub(super) from: Ms,
    /// Since when it takes nothing away any more.
    pub(super) back: Ms,
    pub(super) until: Ms,
}

impl Occurred {
    /// Whether a node can't see a stream's log until it is [`Occurred::back`].
    pub(super) fn hides(&self, node: usize, stream: usize) -> bool {
        match self.fault {
            Fault::BrokerKill
            | Fault::BrokerFreeze
            | Fault::LongBrokerFreeze
            | Fault::LeaderKill
            | Fault::LeaderFreeze
            | Fault::BothDown => true,
            Fault::RoadFog | Fault::RoadStorm | Fault::Lag => node == self.node,
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
            ..
        } = self;
        write!(
            f,
            "t={from}..{until} {} (node {node}, stream {stream})",
            fault.name()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_name_of_its_own() {
        for (fault, name, _) in Fault::ALL {
            assert_eq!(Fault::named(name), Some(fault));
            assert_eq!(fault.name(), name);
        }
    }
}
