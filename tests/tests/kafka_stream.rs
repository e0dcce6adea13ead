//! A stream that a node reads from Kafka and folds by itself: real broker, real sockets.

use serde_json::{Value, json};
use tidegate_tests::{
    gateway::{Node, Setup, found},
    http,
    services::kafka::Kafka,
    websocket::Client,
};

/// A node that reads this topic as a view.
fn reads(kafka: &Kafka, topic: &str, more: &str) -> Setup {
    let source = format!(
        "source = {{ kind = \"kafka\", brokers = [\"{}\"], topic = \"{topic}\"{more} }}",
        kafka.address()
    );
    let setup = Setup::new().open().session("heartbeat = \"300ms\"");
    setup.stream(
        "board",
        &format!("mode = \"view\"\nfreshness_slo = \"1s\"\n{source}"),
    )
}

async fn produce(kafka: &Kafka, topic: &str, rows: &[(&str, Option<&str>)]) -> anyhow::Result<()> {
    let rows = rows.iter().map(|(row, value)| (*row, *value));
    kafka.produce(topic, 0, rows, &[]).await?;
    Ok(())
}

/// Skips what else comes until the next message of this channel with this `op`.
async fn next(client: &mut Client, op: &str) -> anyhow::Result<Value> {
    client.find(|message| message["op"] == op).await
}

async fn stale(client: &mut Client, reason: &str) -> anyhow::Result<Value> {
    let is = |message: &Value| message["op"] == "freshness" && message["reason"] == reason;
    client.find(is).await
}

/// The node's only partition, as operators see it.
async fn partition(node: &Node) -> anyhow::Result<Value> {
    let at = node.gateway.admin_address();
    let page = http::get(at, "/inspect/partitions").await?.json()?;
    Ok(page["partitions"][0].clone())
}

const B6: &str = r#"["JFK","B6"]"#;
const DL: &str = r#"["JFK","DL"]"#;

#[tokio::test]
async fn a_view_is_what_the_topic_comes_to_and_follows_it() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("follows", 1, &[]).await?;
    let rows = [
        (B6, Some("1")),
        (DL, Some("2")),
        (B6, Some("3")),
        ("no json", Some("4")),
        (DL, None),
    ];
    produce(kafka, "follows", &rows).await?;
    let node = reads(kafka, "follows", "").start()?;
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/JFK", json!({})).await?;
    let snapshot = next(&mut client, "snapshot").await?;
    assert_eq!(snapshot["rows"]["B6"]["data"], 3, "{snapshot}");
    assert_eq!(
        snapshot["rows"].as_object().map(serde_json::Map::len),
        Some(1)
    );
    client.heartbeat().await?;
    produce(kafka, "follows", &[(DL, Some("5")), (B6, None)]).await?;
    let update = next(&mut client, "update").await?;
    assert_eq!((&update["row"], &update["data"]), (&json!("DL"), &json!(5)));
    let deleted = next(&mut client, "update").await?;
    assert_eq!(
        (&deleted["row"], &deleted["deleted"]),
        (&json!("B6"), &json!(true))
    );
    // Another node, which never saw the first two lives of B6, goes on where the client was cut.
    let other = reads(kafka, "follows", "").start()?;
    found("the other node has read the topic", async || {
        let here = other.stream("board")?.partitions[0].tail.here();
        Ok(here.epoch.is_some().then_some(()))
    })
    .await?;
    produce(kafka, "follows", &[(B6, Some("6"))]).await?;
    let mut again = Client::connect(&other).await?;
    let from = json!({"from": deleted["position"]});
    again.subscribe("board/JFK", from).await?;
    let update = next(&mut again, "update").await?;
    assert_eq!((&update["row"], &update["data"]), (&json!("B6"), &json!(6)));
    again.heartbeat().await?;
    drop((client, again));
    node.drain().await?;
    other.drain().await
}

#[tokio::test]
async fn a_broker_that_is_gone_makes_views_stale_and_one_that_is_back_heals_them()
-> anyhow::Result<()> {
    let mut kafka = Kafka::start().await?;
    kafka.create_topic("heals", 1, &[]).await?;
    produce(&kafka, "heals", &[(B6, Some("1"))]).await?;
    let node = reads(&kafka, "heals", "").start()?;
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/JFK", json!({})).await?;
    next(&mut client, "snapshot").await?;
    client.heartbeat().await?;
    kafka.kill()?;
    stale(&mut client, "source_unavailable").await?;
    // Who comes now gets what is known, and how old it is.
    let mut late = Client::connect(&node).await?;
    late.subscribe("board/JFK", json!({})).await?;
    let snapshot = next(&mut late, "snapshot").await?;
    assert_eq!(snapshot["rows"]["B6"]["data"], 1, "{snapshot}");
    stale(&mut late, "source_unavailable").await?;
    kafka.restart().await?;
    produce(&kafka, "heals", &[(B6, Some("2"))]).await?;
    for client in [&mut client, &mut late] {
        let update = next(client, "update").await?;
        assert_eq!(update["data"], 2, "{update}");
        client.heartbeat().await?;
    }
    drop((client, late));
    node.drain().await
}

#[tokio::test]
async fn a_default_stands_in_until_the_log_can_be_read() -> anyhow::Result<()> {
    let mut kafka = Kafka::start().await?;
    kafka.create_topic("default", 1, &[]).await?;
    produce(&kafka, "default", &[(B6, Some("1"))]).await?;
    kafka.kill()?;
    let source = format!("kind = \"kafka\", brokers = [\"{}\"]", kafka.address());
    let stream = format!(
        "mode = \"view\"\nfreshness_slo = \"1s\"\ndefault = {{ note = \"soon\" }}\n\
         source = {{ {source}, topic = \"default\" }}"
    );
    let setup = Setup::new().open().session("heartbeat = \"300ms\"");
    let node = setup.stream("board", &stream).start()?;
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/JFK", json!({})).await?;
    let snapshot = next(&mut client, "snapshot").await?;
    assert_eq!(snapshot["rows"], json!({"note": {"data": "soon", "ts": 0}}));
    let told = stale(&mut client, "source_unavailable").await?;
    assert_eq!(told["state"], "unavailable", "{told}");
    // Who has something better keeps it.
    let mut returns = Client::connect(&node).await?;
    let token = json!({"id": 1, "op": "subscribe", "channel": "board/JFK", "from": "0.another:7"});
    returns.send(&token).await?;
    let refused = returns
        .find(|message| message.get("error").is_some())
        .await?;
    assert_eq!(refused["error"]["code"], "retry_later", "{refused}");
    kafka.restart().await?;
    let snapshot = next(&mut client, "snapshot").await?;
    assert_eq!(snapshot["rows"]["B6"]["data"], 1, "{snapshot}");
    assert_eq!(
        snapshot["rows"].as_object().map(serde_json::Map::len),
        Some(1)
    );
    client.heartbeat().await?;
    drop((client, returns));
    node.drain().await
}

#[tokio::test]
async fn a_topic_that_has_lost_its_beginning_is_no_whole_view_unless_that_is_accepted()
-> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("trimmed", 1, &[]).await?;
    produce(kafka, "trimmed", &[(B6, Some("1")), (DL, Some("2"))]).await?;
    kafka.delete_records("trimmed", 0, 1).await?;
    let node = reads(kafka, "trimmed", "").start()?;
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/JFK", json!({})).await?;
    let snapshot = next(&mut client, "snapshot").await?;
    assert!(snapshot["rows"].get("B6").is_none(), "{snapshot}");
    stale(&mut client, "incomplete_history").await?;
    let accepts = reads(kafka, "trimmed", ", history = \"incomplete\"").start()?;
    let mut client = Client::connect(&accepts).await?;
    client.subscribe("board/JFK", json!({})).await?;
    next(&mut client, "snapshot").await?;
    client.heartbeat().await?;
    drop(client);
    node.drain().await?;
    accepts.drain().await
}

#[tokio::test]
async fn partitions_that_nobody_reads_are_not_passed_over_in_silence() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    // A number that is no multiple can't be taken up.
    kafka.create_topic("wider", 3, &[]).await?;
    produce(kafka, "wider", &[(B6, Some("1"))]).await?;
    let source = format!("kind = \"kafka\", brokers = [\"{}\"]", kafka.address());
    let stream =
        format!("mode = \"view\"\npartitions = 2\nsource = {{ {source}, topic = \"wider\" }}");
    let node = Setup::new().open().stream("board", &stream).start()?;
    let mut client = Client::connect(&node).await?;
    client
        .send(&json!({"id": 1, "op": "subscribe", "channel": "board/JFK"}))
        .await?;
    let refused = client
        .find(|message| message.get("error").is_some())
        .await?;
    assert_eq!(refused["error"]["code"], "retry_later", "{refused}");
    // What waits there and may not be read makes no hot loop of it.
    let task = partition(&node).await?["task"].clone();
    let failed = task["failed_fetches"].as_u64();
    assert!(
        failed.is_some_and(|failed| 0 < failed && failed < 100),
        "{task}"
    );
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn the_page_of_operators_has_nothing_of_a_log_that_is_elsewhere_and_all_of_the_partition()
-> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("foreign", 1, &[]).await?;
    let node = reads(kafka, "foreign", "").start()?;
    let inspected = found("the partition has been read", async || {
        let partition = partition(&node).await?;
        Ok((partition["task"]["fetches"].as_u64() > Some(0)).then_some(partition))
    })
    .await?;
    assert_eq!(inspected["log"], Value::Null);
    node.drain().await
}
