//! How a node leaves.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets something else than it expects ends there"
)]

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use tidegate_tests::{
    gateway::Setup,
    websocket::{Client, Connect},
};
use tokio::time::Instant;

#[tokio::test]
async fn everybody_is_told_when_to_come_back_and_the_node_leaves_nothing() -> anyhow::Result<()> {
    let node = Setup::new().open().view("board").start()?;
    let mut readers = tokio::task::JoinSet::new();
    for n in 0..20 {
        let mut client = Client::connect(&node).await?;
        if n % 4 > 0 {
            client.subscribe("board/a", json!({})).await?;
            client.expect("snapshot").await?;
        }
        readers.spawn(async move {
            let bye = client.find(|message| message["op"] == "bye").await?;
            assert_eq!(bye["code"], "draining", "{bye}");
            let after = bye["reconnect_after_ms"].as_u64().unwrap();
            let closed = client.closed().await?;
            anyhow::Ok((after, closed.code))
        });
    }
    let began = Instant::now();
    node.drain().await?;
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    let mut spread = BTreeSet::new();
    while let Some(reader) = readers.join_next().await {
        let (after, code) = reader??;
        assert_eq!(code, 1012);
        assert!((1000..5000).contains(&after), "{after}");
        spread.insert(after);
    }
    assert!(spread.len() > 10, "spread: {spread:?}");
    Ok(())
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_hold_the_node_up() -> anyhow::Result<()> {
    let node = Setup::new()
        .open()
        .env("TIDEGATE_SESSION_DRAIN_DEADLINE", "1s")
        .view("board")
        .start()?;
    let mut client = Connect::new().receive_buffer(2048).hello(&node).await?;
    client.subscribe("board/a", json!({})).await?;
    let rows = (0..500).map(|n| (format!("row-{n}"), format!("\"{}\"", "x".repeat(20_000))));
    let positions = node.publish_all("board/a", rows)?;
    node.applied("board", positions.last().unwrap()).await?;
    let began = Instant::now();
    let drained = node.gateway.drain().await;
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    assert_eq!((drained.left, drained.tasks), (1, 0));
    Ok(())
}
