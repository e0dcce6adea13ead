//! The broker and Redis are gone at the same time.
//!
//! Does: takes both away, and sees to it that nodes stay ready, that who comes meanwhile gets what is resident, as old as it is,
//! and that nobody is busy with nothing. Owns: nothing. Never knows: what a view holds; the judge looks at that.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::ensure;
use tidegate::model::Mode;
use tokio::time::{Instant, sleep};

use crate::{
    fleet::{
        client::{Character, Client},
        history::Manner,
        message::Message,
        nodes::Usage,
        scene::Ms,
        world::World,
    },
    http,
};

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);
/// Of a second, what a process may be busy that has nothing to do but its clients' coming and going.
const BUSY_MS: Ms = 900;
/// What a process may grow in an outage.
const GROWN_KIB: u64 = 64 * 1024;
/// What two clocks that tick in milliseconds may differ by.
const TICK_MS: Ms = 2;

/// What a node said of a view while all was well.
struct Seen {
    node: usize,
    channel: usize,
    asked: Ms,
    age_ms: Ms,
}

pub(super) async fn both(world: &mut World, lasts: Duration) -> anyhow::Result<()> {
    let seen = resident(world).await?;
    let before = usages(world)?;
    let began = Instant::now();
    world.store()?.one()?.kill()?;
    world.kafka.kill()?;
    let gone = world.clock.now();
    sleep(lasts).await;
    busy(world, &before, began.elapsed())?;
    let newcomers = come(world, &seen);
    for view in &seen {
        still_served(world, view, gone).await?;
    }
    for (node, client) in newcomers {
        welcomed(world, node, &client).await;
    }
    for node in 0..world.nodes.len() {
        if !world.nodes[node].is_ready().await {
            world.blame(format!("node {node} is not ready while all is down"));
        }
    }
    world.store()?.one()?.restart().await?;
    world.kafka.restart().await
}

/// Every view on every node, so that all are resident; live.
async fn resident(world: &World) -> anyhow::Result<Vec<Seen>> {
    let mut seen = Vec::new();
    let views = (0..world.scene.channels.len())
        .filter(|channel| world.scene.stream_of(*channel).mode == Mode::View);
    for channel in views {
        for node in 0..world.nodes.len() {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let asked = world.clock.now();
                let found = ask(world, node, channel).await?;
                if let Some((true, Some(age_ms))) = found {
                    seen.push(Seen {
                        node,
                        channel,
                        asked,
                        age_ms,
                    });
                    break;
                }
                ensure!(
                    Instant::now() < deadline,
                    "a view is not live although nothing fails: {found:?}"
                );
                sleep(LOOK).await;
            }
        }
    }
    Ok(seen)
}

/// Whether a view is live, and its age; none when it is not given.
async fn ask(
    world: &World,
    node: usize,
    channel: usize,
) -> anyhow::Result<Option<(bool, Option<Ms>)>> {
    let path = format!("/v1/view/{}", world.scene.channels[channel].0);
    let answer = http::get(world.nodes[node].address, &path).await?;
    if answer.status != 200 {
        return Ok(None);
    }
    match Message::view(&answer.body, channel) {
        Ok(Message::View { live, age_ms, .. }) => Ok(Some((live, age_ms))),
        other => anyhow::bail!("no view: {other:?}"),
    }
}

/// A node gives the view, and says that it is not live, and how old.
async fn still_served(world: &mut World, seen: &Seen, gone: Ms) -> anyhow::Result<()> {
    let name = world.scene.channels[seen.channel].0.clone();
    let of = format!("node {}, {name}, while all is down", seen.node);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let asked = world.clock.now();
        let found = ask(world, seen.node, seen.channel).await?;
        let answered = world.clock.now();
        match found {
            Some((true, _)) if Instant::now() < deadline => sleep(LOOK).await,
            Some((false, Some(age_ms))) => {
                // The newest proof is older than the outage, and no older than the one that was seen before.
                let least = asked - gone - TICK_MS;
                let most = answered - seen.asked + seen.age_ms + TICK_MS;
                if !(least..=most).contains(&age_ms) {
                    let right = format!("{least} to {most} ms");
                    world.blame(format!("{of}: said to be {age_ms} ms old, and is {right}"));
                }
                return Ok(());
            }
            other => {
                world.blame(format!("{of}: {other:?} instead of a stale view"));
                return Ok(());
            }
        }
    }
}

/// Who comes to a node for each of its views, without a token.
fn come(world: &mut World, seen: &[Seen]) -> Vec<(usize, Arc<Client>)> {
    let mut newcomers = Vec::new();
    for view in seen {
        let addresses: Vec<SocketAddr> = vec![world.nodes[view.node].address];
        let client = world.come(addresses, |number, _| Character {
            number,
            manner: Manner::WebSocket,
            channels: vec![view.channel],
            is_steady: true,
            dawdles: false,
            max_rate: None,
        });
        newcomers.push((view.node, client));
    }
    newcomers
}

/// Who came has a view.
async fn welcomed(world: &mut World, node: usize, client: &Client) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let lacks = client.find(|channel, held| {
            let partitions = world.scene.partitions_of(channel).len();
            let has_all = held.joined && held.token.positions().len() == partitions;
            (!has_all).then_some(channel)
        });
        let Some(channel) = lacks else { return };
        if Instant::now() > deadline {
            let name = &world.scene.channels[channel].0;
            let text = format!("who came to node {node} for {name} got no view while all was down");
            return world.blame(text);
        }
        sleep(LOOK).await;
    }
}

fn usages(world: &World) -> anyhow::Result<Vec<Usage>> {
    let processes = world.nodes.iter().chain(&world.materializers);
    processes.map(|process| process.usage()).collect()
}

/// Says what each process used, and who was busy or grew.
fn busy(world: &mut World, before: &[Usage], span: Duration) -> anyhow::Result<()> {
    let after = usages(world)?;
    let seconds = Ms::try_from(span.as_secs().max(1))?;
    let mut texts = Vec::new();
    for (process, (before, after)) in before.iter().zip(&after).enumerate() {
        let busy_ms = (after.busy_ms - before.busy_ms) / seconds;
        let grown_kib = after.resident_kib.saturating_sub(before.resident_kib);
        texts.push(format!("{busy_ms} ms +{grown_kib} KiB"));
        if busy_ms > BUSY_MS || grown_kib > GROWN_KIB {
            world.blame(format!(
                "process {process} is busy for {busy_ms} ms of a second while all is down, and grew by {grown_kib} KiB"
            ));
        }
    }
    let texts = texts.join(", ");
    world.figures.push(format!(
        "all down: each process's time in a second, and growth: {texts}"
    ));
    Ok(())
}
