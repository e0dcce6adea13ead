//! What is called live is live; whoever is not is told so, and why.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets something else than it expects ends there"
)]

use std::time::Duration;

use serde_json::{Value, json};
use tidegate_tests::{
    gateway::{Node, Setup},
    websocket::{Client, offset},
};
use tokio::time::Instant;

/// Until which a client that reads must know of staleness, after the objective is broken.
const KNOWN_WITHIN: Duration = Duration::from_secs(2);
const SLO: Duration = Duration::from_millis(500);

/// A view that is stale after half a second, with a heartbeat each 300 ms.
fn quick() -> Setup {
    Setup::new()
        .open()
        .session("heartbeat = \"300ms\"")
        .stream("board", "mode = \"view\"\nfreshness_slo = \"500ms\"")
}

async fn subscriber(node: &Node, channel: &str) -> anyhow::Result<Client> {
    let mut client = Client::connect(node).await?;
    client.subscribe(channel, json!({})).await?;
    Ok(client)
}

async fn freshness(client: &mut Client) -> anyhow::Result<Value> {
    client.find(|message| message["op"] == "freshness").await
}

#[tokio::test]
async fn the_first_heartbeat_follows_the_snapshot_at_once_with_a_proof() -> anyhow::Result<()> {
    // With the heartbeat of 25 s none but the first can come within the test's patience.
    let node = Setup::new().open().view("board").start()?;
    let position = node.publish("board/JFK", "A", "1")?;
    let mut client = Client::connect(&node).await?;
    let asked = node.gateway.app().clock.now().millis();
    client.subscribe("board/JFK", json!({})).await?;
    let snapshot = client.next().await?;
    assert_eq!(snapshot["op"], "snapshot", "{snapshot}");
    let beat = client.next().await?;
    assert_eq!(beat["op"], "heartbeat", "{beat}");
    assert_eq!(beat["position"], position);
    let proved = beat["proved_at_ms"].as_u64().unwrap();
    assert!(proved >= asked, "a proof of after the join: {asked} {beat}");
    assert!(proved <= node.gateway.app().clock.now().millis());
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_pause_is_told_in_time_and_nothing_is_proved_until_it_ends() -> anyhow::Result<()> {
    let node = quick().start()?;
    node.publish("board/JFK", "A", "1")?;
    let mut client = subscriber(&node, "board/JFK").await?;
    client.heartbeat().await?;
    node.hinder("board", true, Duration::ZERO)?;
    let paused = Instant::now();
    let paused_ms = node.gateway.app().clock.now().millis();
    let stale = client.find(|message| message["op"] == "freshness").await?;
    assert!(
        paused.elapsed() < SLO + KNOWN_WITHIN,
        "{:?}",
        paused.elapsed()
    );
    assert_eq!(
        (&stale["state"], &stale["reason"], &stale["channel"]),
        (&json!("stale"), &json!("paused"), &json!("board/JFK"))
    );
    assert!(stale["age_ms"].as_u64().unwrap() >= 500, "{stale}");
    // Heartbeat after heartbeat the news is repeated instead, and its age grows.
    let mut age = 0;
    for _ in 0..3 {
        let next = client.next().await?;
        assert_eq!(next["op"], "freshness", "{next}");
        assert!(next["age_ms"].as_u64().unwrap() > age);
        age = next["age_ms"].as_u64().unwrap();
    }
    // Who comes now is told, too, behind its snapshot.
    let mut late = subscriber(&node, "board/JFK").await?;
    let told = freshness(&mut late).await?;
    assert_eq!(
        (&told["state"], &told["reason"]),
        (&json!("stale"), &json!("paused"))
    );
    // So is who comes to a channel that nobody here had.
    let mut other = subscriber(&node, "board/LGA").await?;
    let told = freshness(&mut other).await?;
    assert_eq!(
        (&told["state"], &told["reason"]),
        (&json!("stale"), &json!("paused"))
    );
    let resumed_ms = node.gateway.app().clock.now().millis();
    node.hinder("board", false, Duration::ZERO)?;
    for client in [&mut client, &mut late, &mut other] {
        let beat = client.heartbeat().await?;
        let proved = beat["proved_at_ms"].as_u64().unwrap();
        assert!(proved >= resumed_ms && proved > paused_ms, "{beat}");
    }
    drop((client, late, other));
    node.drain().await
}

#[tokio::test]
async fn no_proof_is_newer_than_the_pause() -> anyhow::Result<()> {
    let node = quick().start()?;
    let mut client = subscriber(&node, "board/JFK").await?;
    client.heartbeat().await?;
    node.hinder("board", true, Duration::ZERO)?;
    // The fetch that was under way may still succeed.
    let paused_ms = node.gateway.app().clock.now().millis() + 50;
    loop {
        let message = client.next().await?;
        if message["op"] == "freshness" {
            break;
        }
        if message["op"] == "heartbeat" {
            assert!(message["proved_at_ms"].as_u64().unwrap() <= paused_ms);
        }
    }
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_node_that_falls_behind_calls_its_views_lagging() -> anyhow::Result<()> {
    let node = quick().start()?;
    node.publish("board/JFK", "A", "1")?;
    let mut client = subscriber(&node, "board/JFK").await?;
    client.heartbeat().await?;
    node.hinder("board", false, Duration::from_secs(3600))?;
    let hidden = node.publish("board/JFK", "A", "2")?;
    let stale = freshness(&mut client).await?;
    assert_eq!(
        (&stale["state"], &stale["reason"]),
        (&json!("stale"), &json!("lagging"))
    );
    node.hinder("board", false, Duration::ZERO)?;
    let update = client.expect("update").await?;
    assert_eq!(update["position"], hidden);
    let beat = client.heartbeat().await?;
    assert_eq!(beat["position"], hidden);
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_dead_producer_behind_a_healthy_log_is_told() -> anyhow::Result<()> {
    let node = Setup::new()
        .open()
        .session("heartbeat = \"300ms\"")
        .stream("board", "mode = \"view\"\nexpect_every = \"400ms\"")
        .start()?;
    node.publish("board/JFK", "A", "1")?;
    let mut client = subscriber(&node, "board/JFK").await?;
    let stale = freshness(&mut client).await?;
    assert_eq!(
        (&stale["state"], &stale["reason"]),
        (&json!("stale"), &json!("producer_silent"))
    );
    let position = node.publish("board/JFK", "A", "2")?;
    client.expect("update").await?;
    let beat = client.heartbeat().await?;
    assert_eq!(beat["position"], position);
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn heartbeats_advance_a_quiet_channel() -> anyhow::Result<()> {
    let node = quick().start()?;
    node.publish("board/quiet", "A", "1")?;
    let mut client = subscriber(&node, "board/quiet").await?;
    client.heartbeat().await?;
    let mut last = String::new();
    for n in 0..20 {
        last = node.publish("board/busy", "B", &n.to_string())?;
    }
    let beat = client
        .find(|message| message["op"] == "heartbeat" && message["position"] == last)
        .await?;
    assert_eq!(offset(&beat), 21);
    // The position is good for resuming: nothing was missed.
    let mut again = Client::connect(&node).await?;
    let outcome = again
        .subscribe("board/quiet", json!({"from": beat["position"]}))
        .await?;
    assert_eq!(outcome, json!({"outcome": "resumed"}));
    drop((client, again));
    node.drain().await
}

#[tokio::test]
async fn heartbeats_come_also_under_traffic() -> anyhow::Result<()> {
    let node = quick().start()?;
    let mut client = subscriber(&node, "board/JFK").await?;
    let (mut beats, mut newest, mut n) = (0, 0, 0);
    let until = Instant::now() + Duration::from_secs(10);
    while beats < 3 {
        assert!(Instant::now() < until);
        node.publish("board/JFK", "A", &n.to_string())?;
        n += 1;
        let message = client.next().await?;
        if message["op"] == "heartbeat" {
            // It leaves behind the data that makes it true.
            assert!(offset(&message) <= newest, "{message} at {newest}");
            beats += 1;
        } else if message["op"] == "update" {
            newest = offset(&message);
        }
    }
    drop(client);
    node.drain().await
}
