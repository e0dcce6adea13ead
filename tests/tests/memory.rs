//! The node's memory budget, step by step: tails shrink, then logs, then nothing new is taken, then the largest outboxes go.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets something else than it expects ends there"
)]

use serde_json::json;
use tidegate_tests::{
    gateway::{Node, Setup, until},
    websocket::{Client, Connect},
};

const MIB: u64 = 1 << 20;
/// 90 % of the budget: beyond it something is shed.
const HIGH: u64 = 16 * MIB / 10 * 9;

fn setup(lines: &str) -> Setup {
    Setup::new()
        .open()
        .stream("s", &format!("mode = \"events\"\n{lines}"))
        .limits("memory = \"16MiB\"")
        .session("outbox = { bytes = \"64MiB\", frames = 100000 }")
}

fn value(n: u64) -> String {
    format!("[{n},\"{}\"]", "x".repeat(500_000))
}

/// Publishes so many values of half a megabyte.
async fn fill(node: &Node, count: u64) -> anyhow::Result<Vec<String>> {
    let mut positions = Vec::new();
    for n in 0..count {
        let position = node.publish("s/a", "", &value(n))?;
        node.applied("s", &position).await?;
        positions.push(position);
    }
    Ok(positions)
}

#[tokio::test]
async fn tails_shrink_first_and_who_needed_what_is_gone_is_told() -> anyhow::Result<()> {
    let node = setup(
        "tail = { bytes = \"64MiB\" }\nsource = { kind = \"embedded\", retention = { bytes = \"1MiB\" } }",
    );
    let node = node.start()?;
    let positions = fill(&node, 30).await?;
    let memory = &node.gateway.app().counts.memory;
    until("the tail has shrunk", || {
        memory.shed_tails.get() > 0 && memory.tails.get() + memory.logs.get() < HIGH
    })
    .await?;
    assert_eq!(memory.shed_logs.get(), 0, "logs have not given yet");
    assert_eq!(memory.short.get(), 0);
    let mut client = Client::connect(&node).await?;
    let answer = client
        .subscribe("s/a", json!({"from": positions[0]}))
        .await?;
    assert_eq!(answer["outcome"], "resumed");
    let gap = client.expect("gap").await?;
    assert_eq!(gap["reason"], "too_old");
    node.publish("s/a", "", "1")?;
    client.find(|message| message["data"] == 1).await?;
    Ok(())
}

#[tokio::test]
async fn then_logs_shrink_and_publishing_goes_on() -> anyhow::Result<()> {
    let node = setup(
        "tail = { bytes = \"1MiB\" }\nsource = { kind = \"embedded\", retention = { bytes = \"64MiB\" } }",
    );
    let node = node.start()?;
    fill(&node, 60).await?;
    let memory = &node.gateway.app().counts.memory;
    until("the log has shrunk", || {
        memory.shed_logs.get() > 0 && memory.tails.get() + memory.logs.get() < HIGH
    })
    .await?;
    node.publish("s/a", "", "1")?;
    assert_eq!(memory.refused_publishes.get(), 0);
    Ok(())
}

#[tokio::test]
async fn then_nothing_new_is_taken_and_the_largest_outbox_goes() -> anyhow::Result<()> {
    let node = setup("").start()?;
    let mut honest = Client::connect(&node).await?;
    honest.subscribe("s/others", json!({})).await?;
    let app = node.gateway.app().clone();
    let memory = &app.counts.memory;
    let (mut refused_join, mut published) = (None, 0);
    for _ in 0..20 {
        // It never reads.
        let mut slow = Connect::new().receive_buffer(2048).hello(&node).await?;
        if slow.try_subscribe("s/a", json!({})).await?["ok"].is_null() {
            continue;
        }
        let refusal = loop {
            match node.publish("s/a", "", &value(published)) {
                Ok(position) => node.applied("s", &position).await?,
                Err(refusal) => break refusal.to_string(),
            }
            published += 1;
            anyhow::ensure!(published < 10_000, "memory is never short");
        };
        assert!(refusal.contains("Overloaded"), "{refusal}");
        assert!(refusal.contains("limits.memory"), "{refusal}");
        let mut cold = Client::connect(&node).await?;
        let answer = cold.try_subscribe("s/b", json!({})).await?;
        if answer["ok"].is_null() {
            refused_join = Some(answer["error"].clone());
            break;
        }
        // The node had shed meanwhile: once more.
    }
    let error = refused_join.expect("a cold join was refused while memory was short");
    assert_eq!(error["code"], "retry_later", "{error}");
    assert!(error["retry_after_ms"].as_u64() > Some(0));
    until("the slow one is closed", || memory.closed.get() > 0).await?;
    until("memory is there again", || {
        memory.short.get() == 0 && memory.outboxes.get() < MIB
    })
    .await?;
    node.publish("s/others", "", "1")?;
    assert_eq!(honest.expect("update").await?["data"], 1);
    assert!(memory.refused_publishes.get() > 0 && memory.refused_joins.get() > 0);
    Ok(())
}

#[tokio::test]
async fn what_is_held_is_told_by_metrics() -> anyhow::Result<()> {
    let node = setup("").start()?;
    fill(&node, 2).await?;
    let memory = &node.gateway.app().counts.memory;
    until("it has been looked at", || {
        memory.tails.get() > 2_000_000 && memory.logs.get() > 1_000_000
    })
    .await?;
    let text = tidegate_tests::http::get(node.gateway.admin_address(), "/metrics")
        .await?
        .body;
    for line in [
        "tidegate_memory_limit_bytes 16777216",
        "tidegate_memory_held_bytes{use=\"outboxes\"} 0",
        "tidegate_memory_shed_total{step=\"tails\"} 0",
        "tidegate_memory_shed_total{step=\"connections\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    Ok(())
}
