//! One node is behind the others by thousands of records, while clients move between them with their tokens.
//!
//! Does: holds back what a node reads until it is so far behind, then lets it catch up. Owns: nothing. Keeps: nobody believes that a
//! node was far behind that was not: it is counted, and a run without it fails.

use std::time::Duration;

use anyhow::ensure;
use tokio::time::{Instant, sleep};

use crate::{
    fleet::{road::Weather, world::World, writer::write_fast},
    simulation::Dice,
};

/// So many records at least.
const BEHIND: usize = 10_000;
/// So many more are written, since a node may still take some that were under way.
const MORE: usize = 1_000;
/// How long falling behind, or catching up, may take.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);

pub(super) async fn lag(
    world: &mut World,
    (node, stream): (usize, usize),
    lasts: Duration,
) -> anyhow::Result<()> {
    world.weather(node, Weather::Fog);
    let behind = fall_behind(world, node, stream).await;
    sleep(lasts).await;
    world.weather(node, Weather::Fair);
    world.is_back();
    let name = world.scene.streams[stream].name;
    let figure = format!("node {node} was {} records of {name} behind", behind?);
    world.tell(&figure);
    world.figures.push(figure);
    catch_up(world, node, stream).await
}

/// Writes until a node is far behind; by how much.
async fn fall_behind(world: &mut World, node: usize, stream: usize) -> anyhow::Result<usize> {
    let mut dice = Dice::new(world.dice.next());
    write_fast(&world.desk, stream, BEHIND + MORE, &mut dice).await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let behind = behind(world, node, stream).await?;
        if behind >= BEHIND {
            return Ok(behind);
        }
        ensure!(
            Instant::now() < deadline,
            "a node whose road is closed is only {behind} records behind"
        );
        sleep(LOOK).await;
    }
}

/// Waits until a node has what the log has now.
async fn catch_up(world: &mut World, node: usize, stream: usize) -> anyhow::Result<()> {
    let partitions = 0..world.scene.streams[stream].partitions;
    let head = |partition| {
        let truth = world.truth.lock();
        let life = truth.current(stream);
        life.and_then(|life| life.head(partition)).unwrap_or(0)
    };
    let heads: Vec<_> = partitions.map(head).collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let applied = applied(world, node, stream).await?;
        let mut all = applied.iter().zip(&heads);
        if all.all(|(applied, head)| applied >= head) {
            return Ok(());
        }
        if Instant::now() > deadline {
            world.blame(format!(
                "node {node} is at {applied:?} of {heads:?} {PATIENCE:?} after its road was open"
            ));
            return Ok(());
        }
        sleep(LOOK).await;
    }
}

/// Records that the log has and a node has not applied.
async fn behind(world: &World, node: usize, stream: usize) -> anyhow::Result<usize> {
    let applied = applied(world, node, stream).await?;
    let truth = world.truth.lock();
    let life = truth.current(stream);
    let each = (0..).zip(&applied);
    Ok(life.map_or(0, |life| {
        each.map(|(partition, applied)| life.count_behind(partition, *applied))
            .sum()
    }))
}

/// Up to where a node has applied each partition.
async fn applied(world: &World, node: usize, stream: usize) -> anyhow::Result<Vec<u64>> {
    let of = &world.scene.streams[stream];
    let applied = world.nodes[node].applied(of.name).await?;
    ensure!(
        applied.len() == of.partitions as usize,
        "a node knows other partitions: {applied:?}"
    );
    Ok(applied)
}
