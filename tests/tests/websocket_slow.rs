//! Who reads slowly: it gets the newest, or is told what is gone; nobody else notices.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets something else than it expects ends there"
)]

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tidegate_tests::{
    gateway::{Node, Setup, until},
    websocket::{Client, Closed, Connect, offset},
};
use tokio::time::Instant;

/// Small outboxes, small records; who drains less than 1 KiB in the time is closed.
fn small(drain_over: &str) -> Setup {
    Setup::new()
        .open()
        .session("heartbeat = \"1s\"")
        .session("outbox = { bytes = \"64KiB\", frames = 1000 }")
        .session(&format!(
            "drain_rate_min = {{ bytes = \"1KiB\", over = \"{drain_over}\" }}"
        ))
        .limits("record_bytes = \"4KiB\"")
}

async fn reluctant(node: &Node, channel: &str, options: Value) -> anyhow::Result<Client> {
    let mut client = Connect::new().receive_buffer(2048).hello(node).await?;
    client.subscribe(channel, options).await?;
    Ok(client)
}

/// Whether some client's socket has taken no more, since `before` counted those on the fast path.
fn blocks(node: &Node, before: u64) -> bool {
    let mut workers = node.gateway.app().workers.iter();
    blocked(node) > before || workers.any(|worker| worker.blocked_now.get() > 0)
}

fn blocked(node: &Node) -> u64 {
    let workers = node.gateway.app().workers.iter();
    workers.map(|worker| worker.blocked.get()).sum()
}

fn value(n: u64) -> String {
    format!("[{n},\"{}\"]", "x".repeat(2000))
}

/// Publishes numbers until some client's socket takes no more, and then so many more; gives how many there were.
async fn flood(
    node: &Node,
    channel: &str,
    row: impl Fn(u64) -> String,
    more: u64,
) -> anyhow::Result<u64> {
    let (before, deadline) = (blocked(node), Instant::now() + Duration::from_secs(20));
    let mut n = 0;
    while !blocks(node, before) {
        anyhow::ensure!(Instant::now() < deadline, "nobody blocks after {n}");
        let last = node.publish(channel, &row(n), &value(n))?;
        node.applied(channel.split_once('/').unwrap().0, &last)
            .await?;
        n += 1;
    }
    for _ in 0..more {
        node.publish(channel, &row(n), &value(n))?;
        n += 1;
    }
    Ok(n)
}

#[tokio::test]
async fn a_slow_reader_of_a_view_ends_on_the_newest_and_never_goes_back() -> anyhow::Result<()> {
    let node = small("30s").view("board").start()?;
    let mut client = reluctant(&node, "board/JFK", json!({})).await?;
    client.expect("snapshot").await?;
    let mut quick = Client::connect(&node).await?;
    quick.subscribe("board/JFK", json!({})).await?;
    quick.expect("snapshot").await?;
    let count = flood(&node, "board/JFK", |n| format!("row-{}", n % 10), 500).await?;
    // Who reads is not held up by who does not.
    quick
        .find(|message| message["data"][0] == count - 1)
        .await?;
    let (mut rows, mut last, mut received) = (BTreeMap::new(), 0, 0);
    while last < count {
        let update = client.expect("update").await?;
        assert!(offset(&update) > last, "{last} {}", offset(&update));
        last = offset(&update);
        rows.insert(
            update["row"].to_string(),
            update["data"][0].as_u64().unwrap(),
        );
        received += 1;
    }
    assert!(received < count - 400, "conflated: {received} of {count}");
    let expected: Vec<u64> = (count - 10..count).collect();
    let mut newest: Vec<u64> = rows.into_values().collect();
    newest.sort_unstable();
    assert_eq!(newest, expected);
    drop((client, quick));
    node.drain().await
}

#[tokio::test]
async fn a_view_that_outgrows_the_outbox_begins_again_and_ends_on_the_newest() -> anyhow::Result<()>
{
    let node = small("30s").view("board").start()?;
    let mut client = reluctant(&node, "board/JFK", json!({})).await?;
    client.expect("snapshot").await?;
    // 300 rows of 2 KB are more than 64 KiB.
    let count = flood(&node, "board/JFK", |n| format!("row-{}", n % 300), 900).await?;
    let mut rows = BTreeMap::new();
    let mut last = 0;
    while last < count {
        let message = client
            .find(|message| message["op"] == "update" || message["op"] == "snapshot")
            .await?;
        if message["op"] == "snapshot" {
            for (row, value) in message["rows"].as_object().unwrap() {
                rows.insert(row.clone(), value["data"][0].as_u64().unwrap());
            }
        } else {
            let row = message["row"].as_str().unwrap().to_owned();
            rows.insert(row, message["data"][0].as_u64().unwrap());
        }
        assert!(offset(&message) >= last || message["more"] == true);
        last = last.max(offset(&message));
    }
    let mut newest: Vec<u64> = rows.into_values().collect();
    newest.sort_unstable();
    assert_eq!(newest, (count - 300..count).collect::<Vec<_>>());
    let beat = client.heartbeat().await?;
    assert_eq!(offset(&beat), count);
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_view_resumes_with_more_changes_than_an_outbox_holds() -> anyhow::Result<()> {
    let node = small("30s").view("board").start()?;
    let token = node.publish("board/JFK", "row-0", "0")?;
    let rows = (0..200).map(|n| (format!("row-{n}"), value(n)));
    let positions = node.publish_all("board/JFK", rows)?;
    node.applied("board", positions.last().unwrap()).await?;
    let mut client = Client::connect(&node).await?;
    let outcome = client
        .subscribe("board/JFK", json!({"from": token}))
        .await?;
    assert_eq!(outcome, json!({"outcome": "resumed"}));
    for n in 0..200 {
        let update = client.expect("update").await?;
        assert_eq!(update["data"][0], n);
    }
    let beat = client.heartbeat().await?;
    assert_eq!(beat["position"], positions[199]);
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn what_a_slow_reader_of_events_got_and_what_it_is_told_is_gone_are_all() -> anyhow::Result<()>
{
    let node = small("30s").events("trades").start()?;
    let mut client = reluctant(&node, "trades/ACME", json!({})).await?;
    let count = flood(&node, "trades/ACME", |_| String::new(), 500).await?;
    let (mut at, mut received, mut dropped) = (0, 0, 0);
    while at < count {
        let message = client
            .find(|message| message["op"] == "update" || message["op"] == "gap")
            .await?;
        if message["op"] == "update" {
            assert_eq!(offset(&message), at + 1);
            assert_eq!(message["data"][0], at);
            (at, received) = (at + 1, received + 1);
            continue;
        }
        assert_eq!(message["reason"], "slow_consumer");
        let number = |field: &str| {
            let position = message[field].as_str().unwrap().rsplit_once(':').unwrap();
            position.1.parse::<u64>().unwrap()
        };
        assert_eq!(number("from"), at, "{message}");
        let gone = message["dropped"].as_u64().unwrap();
        assert_eq!(number("to") - number("from"), gone, "{message}");
        (at, dropped) = (number("to"), dropped + gone);
    }
    assert_eq!(received + dropped, count);
    assert!(dropped > 300, "{dropped} of {count}");
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn whose_policy_is_to_disconnect_is_closed_and_resumes() -> anyhow::Result<()> {
    let node = small("30s").events("trades").start()?;
    let options = json!({"policy": "disconnect"});
    let mut client = reluctant(&node, "trades/ACME", options).await?;
    let count = flood(&node, "trades/ACME", |_| String::new(), 500).await?;
    let mut last = Value::Null;
    let closed = loop {
        match client.frame().await? {
            tokio_tungstenite::tungstenite::Message::Text(text) => {
                let message: Value = serde_json::from_str(&text)?;
                if message["op"] == "update" {
                    last = message["position"].clone();
                }
            }
            tokio_tungstenite::tungstenite::Message::Close(frame) => break frame.unwrap(),
            _ => {}
        }
    };
    assert_eq!(u16::from(closed.code), 4000);
    let mut client = Client::connect(&node).await?;
    client
        .subscribe("trades/ACME", json!({"from": last}))
        .await?;
    client
        .find(|message| message["data"][0] == count - 1)
        .await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn who_drains_nothing_at_all_is_closed() -> anyhow::Result<()> {
    let node = small("500ms").view("board").start()?;
    let mut client = reluctant(&node, "board/JFK", json!({})).await?;
    let mut other = Client::connect(&node).await?;
    other.subscribe("board/LGA", json!({})).await?;
    flood(&node, "board/JFK", |n| format!("row-{}", n % 10), 0).await?;
    let workers = node.gateway.app().workers.clone();
    let connected = || {
        workers
            .iter()
            .map(|worker| worker.websocket.get())
            .sum::<u64>()
    };
    until("the slow one is closed", || connected() == 1).await?;
    // What it had not read is still in its socket; then comes the end.
    let end = client.closed().await;
    assert!(
        end.is_err() || end.is_ok_and(|Closed { code, .. }| code == 4000),
        "closed as a slow consumer, as far as its socket could be told"
    );
    node.publish("board/LGA", "A", "1")?;
    other.find(|message| message["op"] == "update").await?;
    drop(other);
    node.drain().await
}

#[tokio::test]
async fn a_rate_bounds_the_flushes_and_the_last_value_arrives() -> anyhow::Result<()> {
    let node = Setup::new().open().view("board").start()?;
    let mut client = Client::connect(&node).await?;
    client
        .subscribe("board/JFK", json!({"max_rate": 5}))
        .await?;
    client.expect("snapshot").await?;
    let began = Instant::now();
    let mut count = 0u64;
    // As fast as the node applies them, for about a second.
    while began.elapsed() < Duration::from_secs(1) {
        let last = node.publish("board/JFK", "A", &count.to_string())?;
        node.applied("board", &last).await?;
        count += 1;
    }
    let mut received = 0u32;
    loop {
        let update = client.expect("update").await?;
        received += 1;
        if update["data"] == count - 1 {
            break;
        }
    }
    let most = began.elapsed().as_millis() / 200 + 2;
    assert!(u128::from(received) <= most, "{received} of {count}");
    assert!(received >= 2, "{received} of {count}");
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_worker_that_falls_off_the_tail_loses_no_event_and_no_row() -> anyhow::Result<()> {
    let node = Setup::new()
        .open()
        .limits("record_bytes = \"1KiB\"")
        .stream("board", "mode = \"view\"\ntail = { bytes = \"1KiB\" }")
        .stream("trades", "mode = \"events\"\ntail = { bytes = \"1KiB\" }")
        .start()?;
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/JFK", json!({})).await?;
    client.expect("snapshot").await?;
    client.subscribe("trades/ACME", json!({})).await?;
    let batch = |n: u64| (0..100).map(move |at| (format!("row-{at}"), (n * 100 + at).to_string()));
    for n in 0..5 {
        node.publish_all("board/JFK", batch(n))?;
        node.publish_all("trades/ACME", batch(n))?;
    }
    let (mut rows, mut next) = (BTreeMap::<String, u64>::new(), 0);
    let whole =
        |rows: &BTreeMap<String, u64>| rows.len() == 100 && rows.values().min() == Some(&400);
    while next < 500 || !whole(&rows) {
        let message = client.next().await?;
        match (message["op"].as_str(), message["channel"].as_str()) {
            (Some("snapshot"), _) => {
                for (row, value) in message["rows"].as_object().unwrap() {
                    rows.insert(row.clone(), value["data"].as_u64().unwrap());
                }
            }
            (Some("update"), Some("board/JFK")) => {
                let row = message["row"].as_str().unwrap().to_owned();
                rows.insert(row, message["data"].as_u64().unwrap());
            }
            (Some("update"), _) => {
                assert_eq!(message["data"], next, "each event once, in order");
                next += 1;
            }
            (Some("gap"), _) => panic!("the log has all of them: {message}"),
            _ => {}
        }
    }
    drop(client);
    node.drain().await
}
