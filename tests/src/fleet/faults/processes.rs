//! What happens to Redis and to materializers.
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

/// What happens to Redis.
pub(super) async fn redis(fault: Fault, world: &mut World, lasts: Duration) -> anyhow::Result<()> {
    let redis = &mut world.store()?.redis;
    match fault {
        Fault::CacheFreeze | Fault::LongCacheFreeze => {
            redis.freeze()?;
            sleep(lasts).await;
            redis.thaw()?;
        }
        Fault::CacheEmpty => {
            redis.cli(&["flushall"]).await?;
        }
        Fault::CacheOlder => {
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
