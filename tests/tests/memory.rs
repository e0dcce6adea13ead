//! The node's memory budget, step by step: views that nobody follows go, tails shrink, then logs, then nothing new is taken,
//! then the largest outboxes go. Rows count, and stay.

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

/// A node with views, small tails and logs.
fn views() -> anyhow::Result<Node> {
    let stream = "tail = { bytes = \"1MiB\" }\nview_max = { bytes = \"64MiB\" }\n\
                  source = { kind = \"embedded\", retention = { bytes = \"1MiB\" } }";
    Setup::new()
        .open()
        .stream("v", stream)
        .limits("memory = \"16MiB\"")
        .start()
}

/// Publishes rows of half a megabyte until no more are taken; gives how many were. The last ones wait for the budget to be
/// looked at, so that they do not carry it far beyond its bound.
async fn fill_with_rows(node: &Node, channel: &str) -> anyhow::Result<u64> {
    let memory = &node.gateway.app().counts.memory;
    for row in 0..100 {
        match node.publish(channel, &row.to_string(), &value(row)) {
            Ok(position) => node.applied("v", &position).await?,
            Err(refusal) => {
                let refusal = refusal.to_string();
                assert!(refusal.contains("Overloaded"), "{refusal}");
                assert!(refusal.contains("limits.memory"), "{refusal}");
                return Ok(row);
            }
        }
        if row >= 20 {
            let counted = || memory.rows.get() > (row + 1) * 500_000;
            until("the row is counted", counted).await?;
        }
    }
    anyhow::bail!("rows are never too many")
}

#[tokio::test]
async fn of_too_many_rows_only_deletes_are_taken_and_nobody_is_closed() -> anyhow::Result<()> {
    let node = views()?;
    let mut client = Client::connect(&node).await?;
    client.subscribe("v/small", json!({})).await?;
    client.expect("snapshot").await?;
    let rows = fill_with_rows(&node, "v/large").await?;
    let memory = &node.gateway.app().counts.memory;
    assert!(memory.rows.get() > 8 * MIB, "{}", memory.rows.get());
    // What the rows leave is enough for who joins.
    let mut cold = Client::connect(&node).await?;
    cold.subscribe("v/small", json!({})).await?;
    for row in 0..rows / 2 {
        node.publish("v/large", &row.to_string(), "null")?;
    }
    until("memory is there again", || memory.full.get() == 0).await?;
    node.publish("v/small", "1", "1")?;
    for client in [&mut client, &mut cold] {
        client.find(|message| message["data"] == 1).await?;
    }
    assert_eq!((memory.closed.get(), memory.refused_joins.get()), (0, 0));
    Ok(())
}

#[tokio::test]
async fn views_that_nobody_follows_go_and_come_again() -> anyhow::Result<()> {
    let node = views()?;
    for channel in ["v/followed", "v/looked-at"] {
        let position = node.publish(channel, "1", "1")?;
        node.applied("v", &position).await?;
    }
    let mut client = Client::connect(&node).await?;
    client.subscribe("v/followed", json!({})).await?;
    client.expect("snapshot").await?;
    let look = async || {
        let path = "/v1/view/v/looked-at";
        tidegate_tests::http::get(node.gateway.address(), path).await
    };
    let before = look().await?.body;
    fill_with_rows(&node, "v/large").await?;
    let memory = &node.gateway.app().counts.memory;
    until("what nobody follows has gone", || memory.evicted.get() > 0).await?;
    assert_eq!(memory.evicted.get(), 1, "the other one is followed");
    let path = "/inspect/partitions?stream=v";
    let inspected = tidegate_tests::http::get(node.gateway.admin_address(), path).await?;
    let inspected: serde_json::Value = serde_json::from_str(&inspected.body)?;
    let sum = |field: &str| -> u64 {
        let partitions = inspected["partitions"].as_array().into_iter().flatten();
        partitions
            .filter_map(|partition| partition.pointer(field)?.as_u64())
            .sum()
    };
    assert_eq!((sum("/task/views"), sum("/task/evicted")), (1, 1));
    assert!(sum("/task/view_bytes") > 0);
    assert!(sum("/log/row_bytes") > 8 * MIB && sum("/log/rows") > 10);
    let rows = |body: &str| {
        serde_json::from_str::<serde_json::Value>(body).map(|view| view["rows"].clone())
    };
    assert_eq!(rows(&look().await?.body)?, rows(&before)?);
    Ok(())
}
