//! What happens to a log: it is deleted and made anew, loses its beginning, takes transactions that are aborted.
//!
//! Does: that, and tells the truth of it first. Owns: nothing.

use std::time::Duration;

use tokio::time::sleep;

use crate::{fleet::world::World, services::kafka::Outcome};

/// Deletes a stream's topic, and makes it anew.
pub(super) async fn anew(world: &World, stream: usize, lasts: Duration) -> anyhow::Result<()> {
    world.hold(stream).await?;
    let name = world.scene.streams[stream].name;
    world.kafka.delete_topic(name).await?;
    world.truth.lock().end(stream, world.clock.now());
    sleep(lasts).await;
    world.make_topic(stream).await
}

/// Deletes the older half of each partition.
pub(super) async fn trim(world: &World, stream: usize) -> anyhow::Result<()> {
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
pub(super) async fn transactions(
    world: &mut World,
    stream: usize,
    lasts: Duration,
) -> anyhow::Result<()> {
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
