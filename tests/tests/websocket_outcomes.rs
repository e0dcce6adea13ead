//! How a subscription begins: each row of the resume table, through a real socket.

use serde_json::json;
use tidegate_tests::{gateway::Setup, websocket::Client};

#[tokio::test]
async fn a_new_subscriber_of_a_view_gets_a_snapshot() -> anyhow::Result<()> {
    let node = Setup::new().open().view("board").start()?;
    let position = node.publish("board/JFK", "B6", r#"{"gate":"12"}"#)?;
    let mut client = Client::connect(&node).await?;
    let outcome = client.subscribe("board/JFK", json!({})).await?;
    assert_eq!(outcome, json!({"outcome": "snapshot", "reason": "new"}));
    let snapshot = client.expect("snapshot").await?;
    assert_eq!(snapshot["rows"]["B6"]["data"], json!({"gate": "12"}));
    assert_eq!(snapshot["position"], position);
    let position = node.publish("board/JFK", "B6", r#"{"gate":"13"}"#)?;
    let update = client.expect("update").await?;
    assert_eq!(update["data"], json!({"gate": "13"}));
    assert_eq!(update["position"], position);
    node.drain().await
}
