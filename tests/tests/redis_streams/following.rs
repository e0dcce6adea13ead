//! A stream that nodes follow: views and events, publishing through one and reading on another.

use serde_json::{Value, json};
use tidegate_tests::{
    gateway::{Node, Setup, found},
    services::redis::Redis,
    websocket::Client,
    wire::{self, Answer, BEARER},
};

use super::common::{B6, DL, LOG, add, at, follower, next, on, partition};

async fn publish(node: &Node, record: &str) -> Answer {
    let (at, json) = (node.gateway.address(), ("content-type", "application/json"));
    wire::ask(at, "POST", "/v1/publish/board", &[BEARER, json], record).await
}

fn record(channel: &str, row: &str, data: &str, id: &str) -> String {
    format!(
        r#"{{"channel":"{channel}","row":"{row}","ts":1373493600000,"data":{data},"id":"{id}"}}"#
    )
}

#[tokio::test]
async fn a_view_is_what_others_wrote_and_is_resumed_on_another_node() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    for (key, value) in [
        (B6, Some("1")),
        (DL, Some("2")),
        (B6, Some("3")),
        ("no json", Some("4")),
        (DL, None),
    ] {
        add(&redis, key, value).await?;
    }
    let setup = on(&at(&redis), "", "");
    let (node, other) = (setup.start()?, setup.start()?);
    let (mut client, snapshot) = follower(&node).await?;
    assert_eq!(snapshot["rows"]["B6"]["data"], 3, "{snapshot}");
    assert_eq!(
        snapshot["rows"].as_object().map(serde_json::Map::len),
        Some(1)
    );
    add(&redis, DL, Some("5")).await?;
    add(&redis, B6, None).await?;
    let update = next(&mut client, "update").await?;
    assert_eq!((&update["row"], &update["data"]), (&json!("DL"), &json!(5)));
    let deleted = next(&mut client, "update").await?;
    assert_eq!(
        (&deleted["row"], &deleted["deleted"]),
        (&json!("B6"), &json!(true))
    );
    // Cut, and back at the other node, which then has what came meanwhile.
    drop(client);
    add(&redis, B6, Some("6")).await?;
    let mut again = Client::connect(&other).await?;
    again
        .subscribe("board/JFK", json!({"from": deleted["position"]}))
        .await?;
    let update = next(&mut again, "update").await?;
    assert_eq!((&update["row"], &update["data"]), (&json!("B6"), &json!(6)));
    again.heartbeat().await?;
    let seen = partition(&node, 0).await?;
    assert_eq!(seen["task"]["poisoned"], 1, "{seen}");
    drop(again);
    node.drain().await?;
    other.drain().await
}

#[tokio::test]
async fn what_one_node_publishes_another_shows_and_a_repeat_is_no_second_one() -> anyhow::Result<()>
{
    let redis = Redis::start(&[]).await?;
    let setup = on(&at(&redis), "partitions = 4", "");
    let (node, other) = (setup.start()?, setup.start()?);
    let (mut client, _) = follower(&other).await?;
    let first = publish(&node, &record("JFK", "B6", r#"{"gate": "A1"}"#, "a")).await;
    assert_eq!(first.status(), 200, "{}", first.text());
    let deleted = publish(&node, &record("JFK", "B6", "null", "b")).await;
    let repeat = publish(&node, &record("JFK", "B6", r#"{"gate": "A1"}"#, "a"))
        .await
        .json();
    assert_eq!(repeat["position"], first.json()["position"], "{repeat}");
    assert_eq!(repeat["duplicate"], true, "{repeat}");
    let update = next(&mut client, "update").await?;
    assert_eq!(update["position"], first.json()["position"]);
    assert_eq!(
        (&update["data"]["gate"], &update["ts"]),
        (&json!("A1"), &json!(1_373_493_600_000_i64))
    );
    let update = next(&mut client, "update").await?;
    assert_eq!(
        (&update["position"], &update["deleted"]),
        (&deleted.json()["position"], &json!(true))
    );
    // Of four partitions JFK is in 3. The other node knows what it has read.
    assert_eq!(redis.cli(&["XLEN", "tg:{board/3}:log"]).await?, "2");
    let repeat = publish(&other, &record("JFK", "B6", "null", "b"))
        .await
        .json();
    assert_eq!(repeat["duplicate"], true, "{repeat}");
    drop(client);
    node.drain().await?;
    other.drain().await
}

/// A node whose stream is of events, which it reads by need.
fn events(redis: &Redis, source: &str) -> Setup {
    on(&at(redis), "mode = \"events\"", source)
}

#[tokio::test]
async fn events_are_followed_replayed_and_a_log_keeps_what_its_retention_says() -> anyhow::Result<()>
{
    let redis = Redis::start(&[]).await?;
    let setup = events(&redis, ", retention = { records = 200 }");
    let (node, other) = (setup.start()?, setup.start()?);
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/JFK", json!({})).await?;
    let mut positions = Vec::new();
    for number in 0..3 {
        let answer = publish(
            &other,
            &record("JFK", "x", &number.to_string(), &format!("e{number}")),
        )
        .await;
        positions.push(answer.json()["position"].clone());
        let update = next(&mut client, "update").await?;
        assert_eq!(
            (&update["data"], &update["position"]),
            (&json!(number), &positions[number])
        );
    }
    drop(client);
    // On a node that has not read it yet.
    let late = setup.start()?;
    let mut back = Client::connect(&late).await?;
    back.subscribe("board/JFK", json!({"from": positions[0]}))
        .await?;
    for number in 1..3 {
        assert_eq!(next(&mut back, "update").await?["data"], number);
    }
    for number in 0..600 {
        let answer = publish(&other, &record("JFK", "x", "0", &format!("f{number}"))).await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    let length: usize = redis.cli(&["XLEN", LOG]).await?.parse()?;
    assert!((200..=400).contains(&length), "{length}");
    // Who comes back with a token from before that is told what he missed.
    drop(back);
    let fresh = setup.start()?;
    let mut late_one = Client::connect(&fresh).await?;
    late_one
        .subscribe("board/JFK", json!({"from": positions[0]}))
        .await?;
    let gap = next(&mut late_one, "gap").await?;
    assert_eq!(gap["reason"], "too_old", "{gap}");
    drop(late_one);
    for node in [node, other, late, fresh] {
        node.drain().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_hundred_partitions_are_woken_over_two_connections() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let node = on(&at(&redis), "partitions = 100", "").start()?;
    let mut client = Client::connect(&node).await?;
    for number in 0..50 {
        client
            .subscribe(&format!("board/c{number}"), json!({}))
            .await?;
    }
    for number in 0..50 {
        let answer = publish(
            &node,
            &record(
                &format!("c{number}"),
                "x",
                &number.to_string(),
                &format!("{number}"),
            ),
        )
        .await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 50 {
        let update = next(&mut client, "update").await?;
        seen.insert(update["data"].as_u64());
    }
    let blocked = found("somebody waits for all", async || {
        let list = redis.cli(&["CLIENT", "LIST"]).await?;
        let waiting = list.lines().filter(|line| line.contains("flags=b")).count();
        Ok((waiting > 0).then(|| (waiting, list.lines().count())))
    })
    .await?;
    // One that blocks, one that calls, one that ends what blocks, and the one that asked.
    assert!(blocked.0 == 1 && blocked.1 <= 4, "{blocked:?}");
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn operators_see_the_partition_and_its_breaker() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    add(&redis, B6, Some("1")).await?;
    let node = on(&at(&redis), "", "").start()?;
    let (client, _) = follower(&node).await?;
    let seen = partition(&node, 0).await?;
    assert_eq!(
        (&seen["log"], &seen["task"]["failing"]),
        (&Value::Null, &Value::Null),
        "{seen}"
    );
    assert_eq!(seen["task"]["applied"], seen["task"]["head"], "{seen}");
    let metrics = tidegate_tests::http::get(node.gateway.admin_address(), "/metrics").await?;
    let metrics = metrics.body;
    assert!(
        metrics.contains("upstream=\"redis-streams:board\""),
        "{metrics}"
    );
    drop(client);
    node.drain().await
}
