//! Views as clients see them: snapshots in parts, rows that go, order.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tidegate_tests::{
    gateway::Setup,
    websocket::{Client, offset},
};

#[tokio::test]
async fn a_large_view_comes_in_numbered_parts_and_no_update_comes_between() -> anyhow::Result<()> {
    let node = Setup::new().open().view("board").start()?;
    let value = |n: usize| format!("\"{n}:{}\"", "x".repeat(2000));
    let rows = (0..200).map(|n| (format!("row-{n:03}"), value(n)));
    node.publish_all("board/large", rows)?;
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/large", json!({})).await?;
    let mut seen: BTreeMap<String, Value> = BTreeMap::new();
    let position = loop {
        let part = client.expect("snapshot").await?;
        let number = part["part"].as_u64().unwrap();
        if number < 3 {
            node.publish("board/large", "row-000", &number.to_string())?;
        }
        for (row, value) in part["rows"].as_object().unwrap() {
            assert!(seen.insert(row.clone(), value["data"].clone()).is_none());
        }
        assert_eq!(part["more"] == true, part["position"].is_null(), "{number}");
        if part["more"] != true {
            assert!(number >= 7, "400 KB in parts of 48 KiB: {number}");
            break offset(&part);
        }
    };
    assert_eq!(seen.len(), 200);
    let mut last = position;
    loop {
        let update = client.expect("update").await?;
        assert!(offset(&update) > last);
        last = offset(&update);
        if update["data"] == 2 {
            break;
        }
    }
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_row_that_is_deleted_goes_from_screens_and_snapshots() -> anyhow::Result<()> {
    let node = Setup::new().open().view("board").start()?;
    node.publish("board/JFK", "A", "1")?;
    node.publish("board/JFK", "B", "1")?;
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/JFK", json!({})).await?;
    client.expect("snapshot").await?;
    node.publish("board/JFK", "A", "null")?;
    let update = client.expect("update").await?;
    assert_eq!(
        (&update["row"], &update["deleted"]),
        (&json!("A"), &json!(true))
    );
    assert!(update.get("data").is_none());
    let mut other = Client::connect(&node).await?;
    other.subscribe("board/JFK", json!({})).await?;
    // One encoding serves those who join a little later: then what followed comes behind it.
    let mut rows: BTreeMap<String, Value> = BTreeMap::new();
    let snapshot = other.expect("snapshot").await?;
    for (row, value) in snapshot["rows"].as_object().unwrap() {
        rows.insert(row.clone(), value["data"].clone());
    }
    if rows.contains_key("A") {
        let update = other.expect("update").await?;
        assert_eq!(update["deleted"], true);
        rows.remove("A");
    }
    assert_eq!(rows.into_keys().collect::<Vec<_>>(), ["B"]);
    drop((client, other));
    node.drain().await
}

#[tokio::test]
async fn updates_arrive_in_the_order_of_the_log_each_once() -> anyhow::Result<()> {
    let node = Setup::new().open().listen("").events("trades").start()?;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = Client::connect(&node).await?;
        client.subscribe("trades/a", json!({})).await?;
        client.subscribe("trades/b", json!({})).await?;
        clients.push(client);
    }
    for n in 0..500 {
        let channel = if n % 3 == 0 { "trades/a" } else { "trades/b" };
        node.publish(channel, "", &n.to_string())?;
    }
    for client in &mut clients {
        let (mut seen, mut last) = (0, BTreeMap::<String, u64>::new());
        while seen < 500 {
            let update = client.expect("update").await?;
            let channel = update["channel"].as_str().unwrap().to_owned();
            let before = last.insert(channel, offset(&update));
            assert!(before.is_none_or(|before| before < offset(&update)));
            assert_eq!(update["data"].as_u64().unwrap() + 1, offset(&update));
            seen += 1;
        }
    }
    drop(clients);
    node.drain().await
}

#[tokio::test]
async fn a_text_is_forwarded_byte_for_byte() -> anyhow::Result<()> {
    let node = Setup::new().open().view("board").start()?;
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/JFK", json!({})).await?;
    client.expect("snapshot").await?;
    let data = r#"{"b":1.0,"a":[1e400,"\u00e9 é \ud83d\ude00"],"a":12345678901234567890123}"#;
    node.publish("board/JFK", "ü \"quoted\"", data)?;
    let text = loop {
        let frame = client.frame().await?;
        let text = frame.to_text()?.to_owned();
        if text.contains("\"update\"") {
            break text;
        }
    };
    assert!(text.contains(data), "{text}");
    assert!(text.contains(r#""row":"ü \"quoted\"""#), "{text}");
    drop(client);
    node.drain().await
}
