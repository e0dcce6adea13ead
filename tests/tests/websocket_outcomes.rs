//! How a subscription begins: each row of the resume table, through a real socket.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets something else than it expects ends there"
)]

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tidegate::{model::Offset, source::embedded::Engine};
use tidegate_tests::{
    gateway::{Node, Setup},
    websocket::{Client, offset},
    wire::get,
};

/// A delay that no test outlives.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// A node whose tails and records are tiny.
fn tiny() -> Setup {
    Setup::new()
        .open()
        .limits("record_bytes = \"1KiB\"")
        .stream("board", "mode = \"view\"\ntail = { bytes = \"1KiB\" }")
        .stream("trades", "mode = \"events\"\ntail = { bytes = \"1KiB\" }")
}

/// Publishes events `from..upto`, one by one; gives the last position.
fn publish_events(node: &Node, channel: &str, numbers: std::ops::Range<u64>) -> String {
    numbers
        .map(|n| node.publish(channel, "", &n.to_string()).unwrap())
        .last()
        .unwrap()
}

async fn expect_events(client: &mut Client, numbers: std::ops::Range<u64>) -> anyhow::Result<()> {
    for n in numbers {
        let update = client.expect("update").await?;
        assert_eq!(update["data"], n, "{update}");
    }
    Ok(())
}

/// Nothing waits for this client: the next thing that it hears is the answer to its ping.
async fn expect_nothing(client: &mut Client) -> anyhow::Result<()> {
    client.send(&json!({"op": "ping"})).await?;
    client.expect("pong").await?;
    Ok(())
}

fn with_offset(position: &str, offset: u64) -> String {
    let (log, _) = position.rsplit_once(':').unwrap();
    format!("{log}:{offset}")
}

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
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn who_returns_with_a_token_gets_every_event_that_it_missed() -> anyhow::Result<()> {
    let node = Setup::new().open().events("trades").start()?;
    let mut client = Client::connect(&node).await?;
    let outcome = client.subscribe("trades/ACME", json!({})).await?;
    assert_eq!(outcome, json!({"outcome": "started"}));
    publish_events(&node, "trades/ACME", 0..5);
    expect_events(&mut client, 0..2).await?;
    let last = client.expect("update").await?;
    assert_eq!(last["data"], 2);
    drop(client);
    publish_events(&node, "trades/other", 100..105);
    publish_events(&node, "trades/ACME", 5..40);
    let mut client = Client::connect(&node).await?;
    let outcome = client
        .subscribe("trades/ACME", json!({"from": last["position"]}))
        .await?;
    assert_eq!(outcome, json!({"outcome": "resumed"}));
    expect_events(&mut client, 3..40).await?;
    expect_nothing(&mut client).await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn who_returns_to_a_view_gets_its_net_change() -> anyhow::Result<()> {
    let node = Setup::new().open().view("board").start()?;
    let token = node.publish("board/JFK", "A", "1")?;
    node.publish("board/JFK", "B", "1")?;
    node.publish("board/JFK", "A", "2")?;
    let gone = node.publish("board/JFK", "B", "null")?;
    let mut client = Client::connect(&node).await?;
    let outcome = client
        .subscribe("board/JFK", json!({"from": token}))
        .await?;
    assert_eq!(outcome, json!({"outcome": "resumed"}));
    let update = client.expect("update").await?;
    assert_eq!((&update["row"], &update["data"]), (&json!("A"), &json!(2)));
    let update = client.expect("update").await?;
    assert_eq!(
        (&update["row"], &update["deleted"]),
        (&json!("B"), &json!(true))
    );
    assert_eq!(update["position"], gone);
    expect_nothing(&mut client).await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_token_that_the_tail_has_passed_gets_a_snapshot_that_says_so() -> anyhow::Result<()> {
    let node = tiny().start()?;
    let token = node.publish("board/JFK", "A", "1")?;
    for n in 0..50 {
        let position = node.publish("board/JFK", "B", &n.to_string())?;
        node.applied("board", &position).await?;
    }
    let mut client = Client::connect(&node).await?;
    let outcome = client
        .subscribe("board/JFK", json!({"from": token}))
        .await?;
    assert_eq!(outcome, json!({"outcome": "snapshot", "reason": "too_old"}));
    let snapshot = client.expect("snapshot").await?;
    assert_eq!(snapshot["rows"]["A"]["data"], 1);
    assert_eq!(snapshot["rows"]["B"]["data"], 49);
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_token_that_the_tail_has_passed_gets_the_rows_that_changed_after_it() -> anyhow::Result<()>
{
    let node = tiny().start()?;
    let large = format!("\"{}\"", "x".repeat(900));
    for row in ["A", "B"] {
        node.publish("board/JFK", row, &large)?;
    }
    let mut first = Client::connect(&node).await?;
    first.subscribe("board/JFK", json!({})).await?;
    let token = node.publish("board/JFK", "C", "1")?;
    first
        .find(|message| message["op"] == "update" && message["position"] == token)
        .await?;
    drop(first);
    let gone = node.publish("board/JFK", "C", "null")?;
    let mut last = String::new();
    for n in 0..50 {
        last = node.publish("board/JFK", "D", &n.to_string())?;
        node.applied("board", &last).await?;
    }
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(&node).await?;
        let from = json!({"from": token});
        let outcome = client.subscribe("board/JFK", from).await?;
        assert_eq!(outcome, json!({"outcome": "resumed"}));
        let update = client.expect("update").await?;
        assert_eq!(
            (&update["row"], &update["deleted"], &update["position"]),
            (&json!("C"), &json!(true), &json!(gone))
        );
        let update = client.expect("update").await?;
        assert_eq!(
            (&update["row"], &update["data"], &update["position"]),
            (&json!("D"), &json!(49), &json!(last))
        );
        let beat = client.heartbeat().await?;
        assert_eq!(offset(&beat), offset(&update));
        assert!(beat["proved_at_ms"].is_u64(), "{beat}");
        clients.push(client);
    }
    let next = node.publish("board/JFK", "E", "1")?;
    for client in &mut clients {
        let update = client.expect("update").await?;
        assert_eq!(update["position"], next);
    }
    drop(clients);
    node.drain().await
}

#[tokio::test]
async fn a_row_that_nobody_changes_goes_for_who_follows_who_returns_and_who_looks()
-> anyhow::Result<()> {
    let node = Setup::new()
        .open()
        .stream("board", "mode = \"view\"\nrow_ttl = \"1s\"")
        .start()?;
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/JFK", json!({})).await?;
    client.expect("snapshot").await?;
    let token = node.publish("board/JFK", "B6", r#"{"gate":"12"}"#)?;
    let update = client.expect("update").await?;
    assert_eq!(update["position"], token);
    let gone = client.expect("update").await?;
    assert_eq!(
        (&gone["row"], &gone["deleted"]),
        (&json!("B6"), &json!(true))
    );
    assert_eq!(offset(&gone), offset(&update) + 1);
    let mut returning = Client::connect(&node).await?;
    let from = json!({"from": token});
    let outcome = returning.subscribe("board/JFK", from).await?;
    assert_eq!(outcome, json!({"outcome": "resumed"}));
    assert_eq!(returning.expect("update").await?, gone);
    let view = get(node.gateway.address(), "/v1/view/board/JFK")
        .await
        .json();
    assert_eq!(
        (&view["rows"], &view["position"]),
        (&json!({}), &gone["position"])
    );
    drop((client, returning));
    node.drain().await
}

#[tokio::test]
async fn an_old_token_of_a_quiet_channel_has_missed_nothing() -> anyhow::Result<()> {
    let node = tiny().start()?;
    for stream in ["board", "trades"] {
        let token = node.publish(&format!("{stream}/quiet"), "A", "1")?;
        for n in 0..50 {
            let position = node.publish(&format!("{stream}/busy"), "B", &n.to_string())?;
            node.applied(stream, &position).await?;
        }
        let mut client = Client::connect(&node).await?;
        let outcome = client
            .subscribe(&format!("{stream}/quiet"), json!({"from": token}))
            .await?;
        assert_eq!(outcome, json!({"outcome": "resumed"}), "{stream}");
        expect_nothing(&mut client).await?;
    }
    node.drain().await
}

#[tokio::test]
async fn a_token_of_another_epoch_is_never_mistaken_for_one_of_this() -> anyhow::Result<()> {
    let node = tiny().start()?;
    node.publish("board/JFK", "A", "1")?;
    let head = publish_events(&node, "trades/ACME", 0..3);
    let mut client = Client::connect(&node).await?;
    let outcome = client
        .subscribe("board/JFK", json!({"from": "0.zzzz:5"}))
        .await?;
    assert_eq!(
        outcome,
        json!({"outcome": "snapshot", "reason": "epoch_changed"})
    );
    let snapshot = client.expect("snapshot").await?;
    assert_eq!(snapshot["rows"]["A"]["data"], 1);
    let outcome = client
        .subscribe("trades/ACME", json!({"from": "0.zzzz:5"}))
        .await?;
    assert_eq!(outcome, json!({"outcome": "resumed"}));
    let gap = client.expect("gap").await?;
    assert_eq!(
        (&gap["from"], &gap["to"], &gap["reason"]),
        (&json!("0.zzzz:5"), &json!(head), &json!("epoch_changed"))
    );
    publish_events(&node, "trades/ACME", 3..4);
    expect_events(&mut client, 3..4).await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_token_beyond_the_head_is_of_a_log_that_went_back() -> anyhow::Result<()> {
    let node = tiny().start()?;
    let board = with_offset(&node.publish("board/JFK", "A", "1")?, 999);
    let trades = with_offset(&publish_events(&node, "trades/ACME", 0..3), 999);
    let mut client = Client::connect(&node).await?;
    let outcome = client
        .subscribe("board/JFK", json!({"from": board}))
        .await?;
    let changed = json!({"outcome": "snapshot", "reason": "epoch_changed"});
    if outcome == json!({"outcome": "catching_up"}) {
        let late = client.expect("outcome").await?;
        assert_eq!(late["reason"], "epoch_changed", "{late}");
    } else {
        assert_eq!(outcome, changed);
    }
    client.expect("snapshot").await?;
    client
        .subscribe("trades/ACME", json!({"from": trades}))
        .await?;
    let gap = client.find(|message| message["op"] == "gap").await?;
    assert_eq!(
        (&gap["from"], &gap["reason"]),
        (&json!(trades), &json!("epoch_changed"))
    );
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_node_behind_the_token_catches_up_and_says_one_outcome() -> anyhow::Result<()> {
    let engine = Arc::<Engine>::default();
    let setup = Setup::new()
        .open()
        .limits("resume_hold = \"1m\"")
        .view("board")
        .events("trades");
    let (ahead, behind) = (setup.start_on(&engine)?, setup.start_on(&engine)?);
    for stream in ["board", "trades"] {
        behind.hinder(stream, false, FOR_EVER)?;
        let channel = format!("{stream}/c");
        ahead.publish(&channel, "A", "1")?;
        let mut first = Client::connect(&ahead).await?;
        first.subscribe(&channel, json!({})).await?;
        let token = ahead.publish(&channel, "B", "2")?;
        first
            .find(|message| message["op"] == "update" && message["position"] == token)
            .await?;
        let mut second = Client::connect(&behind).await?;
        let outcome = second.subscribe(&channel, json!({"from": token})).await?;
        assert_eq!(outcome, json!({"outcome": "catching_up"}), "{stream}");
        let missed = ahead.publish(&channel, "C", "3")?;
        behind.hinder(stream, false, Duration::ZERO)?;
        let outcome = second.expect("outcome").await?;
        assert_eq!(
            outcome,
            json!({"op": "outcome", "channel": channel, "outcome": "resumed"})
        );
        let update = second.expect("update").await?;
        assert_eq!(update["position"], missed);
        expect_nothing(&mut second).await?;
    }
    behind.drain().await?;
    ahead.drain().await
}

#[tokio::test]
async fn a_node_that_stays_behind_says_when_to_come_again() -> anyhow::Result<()> {
    let engine = Arc::<Engine>::default();
    let setup = Setup::new()
        .open()
        .limits("resume_hold = \"300ms\"")
        .view("board");
    let (ahead, behind) = (setup.start_on(&engine)?, setup.start_on(&engine)?);
    behind.hinder("board", false, FOR_EVER)?;
    let token = ahead.publish("board/JFK", "A", "1")?;
    let mut client = Client::connect(&behind).await?;
    let outcome = client
        .subscribe("board/JFK", json!({"from": token}))
        .await?;
    assert_eq!(outcome, json!({"outcome": "catching_up"}));
    let refused = client.expect("outcome").await?;
    assert_eq!(refused["error"]["code"], "retry_later", "{refused}");
    assert!(refused["error"]["retry_after_ms"].is_u64(), "{refused}");
    behind.hinder("board", false, Duration::ZERO)?;
    behind.applied("board", &token).await?;
    let outcome = client
        .subscribe("board/JFK", json!({"from": token}))
        .await?;
    assert_eq!(outcome, json!({"outcome": "resumed"}));
    drop(client);
    behind.drain().await?;
    ahead.drain().await
}

#[tokio::test]
async fn history_gives_the_last_events_of_the_tail_first() -> anyhow::Result<()> {
    let node = Setup::new().open().events("trades").start()?;
    let last = publish_events(&node, "trades/ACME", 0..10);
    node.applied("trades", &last).await?;
    let mut client = Client::connect(&node).await?;
    let outcome = client
        .subscribe("trades/ACME", json!({"history": 3}))
        .await?;
    assert_eq!(outcome, json!({"outcome": "started"}));
    publish_events(&node, "trades/ACME", 10..12);
    expect_events(&mut client, 7..12).await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn earliest_replays_what_the_log_has() -> anyhow::Result<()> {
    let node = tiny().start()?;
    let last = publish_events(&node, "trades/ACME", 0..30);
    node.applied("trades", &last).await?;
    node.stream("trades")?.partitions[0]
        .log
        .embedded()
        .unwrap()
        .trim(Offset::new(10));
    let mut client = Client::connect(&node).await?;
    let outcome = client
        .subscribe("trades/ACME", json!({"from": "earliest"}))
        .await?;
    assert_eq!(outcome, json!({"outcome": "started"}));
    publish_events(&node, "trades/ACME", 30..31);
    expect_events(&mut client, 10..31).await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_replay_beyond_its_bound_begins_with_a_gap() -> anyhow::Result<()> {
    let node = tiny().limits("replay_records = 10").start()?;
    let last = publish_events(&node, "trades/ACME", 0..30);
    node.applied("trades", &last).await?;
    let mut client = Client::connect(&node).await?;
    let outcome = client
        .subscribe("trades/ACME", json!({"from": "earliest"}))
        .await?;
    assert_eq!(outcome, json!({"outcome": "started"}));
    let gap = client.expect("gap").await?;
    assert_eq!(gap["to"], with_offset(&last, 20), "{gap}");
    expect_events(&mut client, 20..30).await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn events_older_than_the_tail_come_from_the_log() -> anyhow::Result<()> {
    let node = tiny().start()?;
    let first = publish_events(&node, "trades/ACME", 0..1);
    let last = publish_events(&node, "trades/ACME", 1..100);
    node.applied("trades", &last).await?;
    let mut client = Client::connect(&node).await?;
    let outcome = client
        .subscribe("trades/ACME", json!({"from": first}))
        .await?;
    assert_eq!(outcome, json!({"outcome": "resumed"}));
    expect_events(&mut client, 1..100).await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn events_that_the_log_has_lost_are_a_gap_and_nothing_else_is_missed() -> anyhow::Result<()> {
    let node = tiny().start()?;
    let first = publish_events(&node, "trades/ACME", 0..1);
    let last = publish_events(&node, "trades/ACME", 1..100);
    node.applied("trades", &last).await?;
    node.stream("trades")?.partitions[0]
        .log
        .embedded()
        .unwrap()
        .trim(Offset::new(50));
    let mut client = Client::connect(&node).await?;
    let outcome = client
        .subscribe("trades/ACME", json!({"from": first}))
        .await?;
    assert_eq!(outcome, json!({"outcome": "resumed"}));
    publish_events(&node, "trades/ACME", 100..101);
    let gap = client.expect("gap").await?;
    assert_eq!(
        (&gap["from"], &gap["reason"]),
        (&json!(first), &json!("too_old"))
    );
    let end = gap["to"].as_str().unwrap().rsplit_once(':').unwrap().1;
    expect_events(&mut client, end.parse()?..101).await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_second_subscription_is_not_answered_by_the_first_ones_join() -> anyhow::Result<()> {
    let node = Setup::new().open().events("trades").start()?;
    let first = publish_events(&node, "trades/ACME", 0..1);
    let last = publish_events(&node, "trades/ACME", 1..5);
    node.applied("trades", &last).await?;
    for _ in 0..20 {
        let mut client = Client::connect(&node).await?;
        client
            .send(&json!([
                {"id": 1, "op": "subscribe", "channel": "trades/ACME"},
                {"id": 2, "op": "unsubscribe", "channel": "trades/ACME"},
                {"id": 3, "op": "subscribe", "channel": "trades/ACME", "from": first},
            ]))
            .await?;
        let answer = client.find(|message| message["id"] == 3).await?;
        assert_eq!(answer["ok"], json!({"outcome": "resumed"}));
        expect_events(&mut client, 1..5).await?;
    }
    node.drain().await
}

/// A view spread over four partitions, and its rows as a client has them.
fn spread() -> Setup {
    Setup::new().open().stream(
        "board",
        "mode = \"view\"\npartitions = 4\nplacement = \"spread\"",
    )
}

async fn snapshots(client: &mut Client) -> anyhow::Result<(Vec<Value>, String)> {
    let (mut parts, mut token) = (Vec::new(), Vec::new());
    while parts.len() < 4 {
        let snapshot = client.expect("snapshot").await?;
        token.push(snapshot["position"].as_str().unwrap().to_owned());
        parts.push(snapshot);
    }
    token.sort();
    Ok((parts, token.join(",")))
}

#[tokio::test]
async fn a_spread_view_comes_as_a_snapshot_of_each_partition() -> anyhow::Result<()> {
    let node = spread().start()?;
    for n in 0..40 {
        node.publish("board/all", &format!("row-{n}"), &n.to_string())?;
    }
    let mut client = Client::connect(&node).await?;
    let outcome = client.subscribe("board/all", json!({})).await?;
    assert_eq!(outcome, json!({"outcome": "snapshot", "reason": "new"}));
    let (parts, _) = snapshots(&mut client).await?;
    let rows: usize = parts
        .iter()
        .map(|part| part["rows"].as_object().unwrap().len())
        .sum();
    assert_eq!(rows, 40);
    let beat = client.heartbeat().await?;
    assert_eq!(beat["position"].as_str().unwrap().split(',').count(), 4);
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_vector_resumes_in_each_of_its_partitions() -> anyhow::Result<()> {
    let node = spread().start()?;
    for n in 0..40 {
        node.publish("board/all", &format!("row-{n}"), "0")?;
    }
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/all", json!({})).await?;
    let (_, token) = snapshots(&mut client).await?;
    drop(client);
    for n in 0..40 {
        node.publish("board/all", &format!("row-{n}"), "1")?;
    }
    let mut client = Client::connect(&node).await?;
    let outcome = client
        .subscribe("board/all", json!({"from": token}))
        .await?;
    assert_eq!(outcome, json!({"outcome": "resumed"}));
    let mut newest = [0; 4];
    for _ in 0..40 {
        let update = client.expect("update").await?;
        let partition: usize = update["position"].as_str().unwrap()[..1].parse()?;
        assert!(offset(&update) > newest[partition], "{update}");
        newest[partition] = offset(&update);
    }
    expect_nothing(&mut client).await?;
    // A partition that the token does not name is new to the client.
    let mut client = Client::connect(&node).await?;
    let (rest, _) = token.rsplit_once(',').unwrap();
    let outcome = client.subscribe("board/all", json!({"from": rest})).await?;
    assert_eq!(outcome, json!({"outcome": "snapshot", "reason": "new"}));
    let snapshot = client.find(|message| message["op"] == "snapshot").await?;
    assert!(snapshot["position"].as_str().unwrap().starts_with("3."));
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn tokens_that_are_no_tokens_of_the_stream_are_refused() -> anyhow::Result<()> {
    let node = spread().start()?;
    let mut client = Client::connect(&node).await?;
    for bad in [
        "",
        "x",
        "0",
        "0.",
        "0.e",
        "0.e:",
        "0.e:-1",
        "0.e:1,",
        "0.e:1,0.e:2",
        "4.e:1",
        "99999.e:1",
        "0.é:1",
        "0.e:99999999999999999999999",
    ] {
        let answer = client
            .try_subscribe("board/all", json!({"from": bad}))
            .await?;
        assert_eq!(answer["error"]["code"], "bad_token", "{bad:?}: {answer}");
    }
    client.subscribe("board/all", json!({})).await?;
    drop(client);
    node.drain().await
}
