//! Alone in its process, since what it counts is counted for the whole process.

use std::sync::atomic::Ordering;

use serde_json::json;
use tidegate::frame::{PARTS_ENCODED, UPDATES_ENCODED};
use tidegate_tests::{gateway::Setup, websocket::Client};

#[tokio::test]
async fn an_update_is_encoded_once_for_fifty_subscribers() -> anyhow::Result<()> {
    let node = Setup::new().open().view("board").start()?;
    node.publish("board/JFK", "A", "0")?;
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = Client::connect(&node).await?;
        client.subscribe("board/JFK", json!({})).await?;
        client.expect("snapshot").await?;
        clients.push(client);
    }
    assert_eq!(PARTS_ENCODED.load(Ordering::Relaxed), 1);
    let before = UPDATES_ENCODED.load(Ordering::Relaxed);
    for n in 1..=20 {
        node.publish("board/JFK", "A", &n.to_string())?;
        for client in &mut clients {
            assert_eq!(client.expect("update").await?["data"], n);
        }
    }
    assert_eq!(UPDATES_ENCODED.load(Ordering::Relaxed) - before, 20);
    drop(clients);
    node.drain().await
}
