//! What happens to the leader among brokers, to Redis and to materializers.
//!
//! Does: kills, freezes, empties, wakes. Owns: nothing.

use std::time::Duration;

use anyhow::ensure;
use tokio::time::{Instant, sleep};

use super::Fault;
use crate::fleet::world::{MATERIALIZERS, World};

/// How long partitions may take to move.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);

/// What happens to the broker that leads a stream's first partition.
pub(super) async fn leader(
    fault: Fault,
    world: &mut World,
    stream: usize,
    lasts: Duration,
) -> anyhow::Result<()> {
    let topic = world.scene.streams[stream].name;
    let broker = world.kafka.leader_of(topic, 0).await?;
    world.tell(&format!("  broker {broker}"));
    if fault == Fault::LeaderKill {
        world.kafka.kill_one(broker)?;
    } else {
        world.kafka.freeze_one(broker);
    }
    let moved = world.kafka.until_it_leads_nothing(broker).await;
    world.is_back();
    sleep(lasts).await;
    world.kafka.thaw();
    moved?;
    // Also waits for one that had been frozen to have all again.
    world.kafka.restart().await
}

/// What happens to Redis.
pub(super) async fn redis(fault: Fault, world: &mut World, lasts: Duration) -> anyhow::Result<()> {
    let store = world.store()?;
    match fault {
        Fault::CacheFreeze | Fault::LongCacheFreeze => {
            let redis = store.primary().await?;
            redis.freeze()?;
            sleep(lasts).await;
            // Its replica may have taken its place: then it learns that it leads nothing any more.
            redis.thaw()?;
            store.settle().await?;
        }
        Fault::CacheFailover => store.fail_over(lasts).await?,
        Fault::CacheEmpty => {
            store.primary().await?.cli(&["flushall"]).await?;
        }
        Fault::CacheOlder => {
            let redis = store.one()?;
            let backup = redis.back_up().await?;
            sleep(lasts).await;
            redis.go_back_to(&backup).await?;
        }
        _ => {
            let redis = store.one()?;
            redis.kill()?;
            sleep(lasts).await;
            redis.restart().await?;
        }
    }
    Ok(())
}

/// What happens to a materializer.
pub(super) async fn materializer(
    fault: Fault,
    world: &mut World,
    number: usize,
    lasts: Duration,
) -> anyhow::Result<()> {
    ensure!(
        !world.materializers.is_empty(),
        "a fleet without a cache has no materializer"
    );
    let process = number % MATERIALIZERS;
    match fault {
        Fault::MaterializerKill => {
            world.materializers[process].kill()?;
            sleep(lasts).await;
            world.materializers[process].start().await?;
        }
        Fault::MaterializerFreeze => {
            world.materializers[process].freeze();
            let moved = others_have_all(world, process).await;
            sleep(lasts).await;
            // It goes on with what it was amid, of partitions that others write by now.
            world.materializers[process].thaw();
            moved?;
        }
        _ => {
            world.materializers[process].freeze();
            sleep(lasts).await;
            world.materializers[process].thaw();
        }
    }
    Ok(())
}

/// Waits until others than this one have been given every partition.
async fn others_have_all(world: &World, process: usize) -> anyhow::Result<()> {
    let views = world.scene.streams.iter().filter(|of| of.is_compacted());
    let mut wanted: Vec<(&str, u64)> = views
        .flat_map(|of| (0..of.partitions).map(|partition| (of.name, partition.into())))
        .collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut given = Vec::new();
        for other in (0..MATERIALIZERS).filter(|other| *other != process) {
            given.extend(world.materializers[other].given().await?);
        }
        wanted.retain(|(stream, partition)| {
            !given
                .iter()
                .any(|(of, number)| (of.as_str(), *number) == (*stream, *partition))
        });
        if wanted.is_empty() {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "nobody took the partitions of a materializer that does nothing: {wanted:?}"
        );
        sleep(LOOK).await;
    }
}
