//! What a node shows that starts while nothing answers: the copies on its disk. A real broker, a real Redis, both gone.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tidegate_tests::{
    gateway::{Node, Setup, found, until_told},
    http,
    services::{kafka::Kafka, redis::Redis},
    websocket::Client,
};

const TOPIC: &str = "copied";
const B6: &str = r#"["JFK","B6"]"#;
const DL: &str = r#"["JFK","DL"]"#;

/// A node that reads the topic, and keeps its copies here.
fn reads(kafka: &Kafka, copies: &Path) -> Setup {
    let source = format!(
        "kind = \"kafka\", brokers = [\"{}\"], topic = \"{TOPIC}\"",
        kafka.address()
    );
    let stream = format!(
        "mode = \"view\"\nfreshness_slo = \"1s\"\neager = true\nsource = {{ {source} }}\n\
         default = {{ B6 = \"default\" }}"
    );
    Setup::new()
        .open()
        .session("heartbeat = \"300ms\"")
        .stream("board", &stream)
        .env("TIDEGATE_COPIES_DIR", &copies.display().to_string())
        .env("TIDEGATE_COPIES_EVERY", "1s")
}

async fn subscribe(
    node: &Node,
    channel: &str,
    from: Option<&str>,
) -> anyhow::Result<(Client, Value)> {
    let mut client = Client::connect(node).await?;
    let mut wish = json!({"id": 1, "op": "subscribe", "channel": channel});
    if let Some(from) = from {
        wish["from"] = from.into();
    }
    client.send(&wish).await?;
    let tells = |message: &Value| message["op"] == "snapshot" || message.get("error").is_some();
    let told = client.find(tells).await?;
    Ok((client, told))
}

/// Its rows, without their times.
fn rows(snapshot: &Value) -> Value {
    let rows = snapshot["rows"].as_object().into_iter().flatten();
    rows.map(|(id, row)| (id.clone(), row["data"].clone()))
        .collect()
}

/// What operators are told of the node's only partition.
async fn task(node: &Node) -> anyhow::Result<Value> {
    let at = node.gateway.admin_address();
    let page = http::get(at, "/inspect/partitions").await?.json()?;
    Ok(page["partitions"][0]["task"].clone())
}

/// What `/v1/view` says of a channel, once it is so.
async fn view(node: &Node, channel: &str, freshness: &str) -> anyhow::Result<Value> {
    let address = node.gateway.address();
    let path = format!("/v1/view/{channel}");
    found(&format!("{channel} is {freshness}"), async || {
        let view = http::get(address, &path).await?.json()?;
        Ok((view["freshness"]["state"] == freshness).then_some(view))
    })
    .await
}

fn copy_of(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to.join("board"))?;
    fs::copy(from.join("board/0.views"), to.join("board/0.views"))?;
    Ok(())
}

#[tokio::test]
async fn who_starts_while_the_broker_is_gone_shows_what_it_copied_and_heals() -> anyhow::Result<()>
{
    let mut kafka = Kafka::start().await?;
    kafka.create_topic(TOPIC, 1, &[]).await?;
    kafka.produce(TOPIC, 0, [(B6, Some("1"))], &[]).await?;
    let disk = tempfile::tempdir()?;
    let (ended, crashed) = (disk.path().join("ended"), disk.path().join("crashed"));
    let node = reads(&kafka, &ended).start()?;
    until_told("its view is copied", async || {
        task(&node)
            .await
            .is_ok_and(|task| task["copy"]["bytes"].as_u64() > Some(0))
    })
    .await?;
    copy_of(&ended, &crashed)?;
    kafka.produce(TOPIC, 0, [(DL, Some("2"))], &[]).await?;
    until_told("it has read the second row", async || {
        task(&node).await.is_ok_and(|task| task["rows"] == 2)
    })
    .await?;
    let (mut client, _) = subscribe(&node, "board/JFK", None).await?;
    let newest = client.heartbeat().await?["position"].clone();
    let newest = newest.as_str().expect("a position").to_owned();
    drop(client);
    // In order, so the newest is copied.
    node.drain().await?;
    kafka.kill()?;

    let after_crash = reads(&kafka, &crashed).start()?;
    let (_, older) = subscribe(&after_crash, "board/JFK", None).await?;
    assert_eq!(rows(&older), json!({"B6": 1}), "{older}");
    let (_, refused) = subscribe(&after_crash, "board/JFK", Some(&newest)).await?;
    assert_eq!(refused["error"]["code"], "retry_later", "{refused}");
    after_crash.drain().await?;

    let node = reads(&kafka, &ended).start()?;
    let (mut client, snapshot) = subscribe(&node, "board/JFK", None).await?;
    assert_eq!(rows(&snapshot), json!({"B6": 1, "DL": 2}), "{snapshot}");
    assert_eq!(snapshot["position"], newest);
    let told = client.find(|message| message["op"] == "freshness").await?;
    assert_eq!(
        (&told["state"], &told["reason"]),
        (&json!("stale"), &json!("source_unavailable"))
    );
    assert!(told["age_ms"].as_u64() > Some(0), "{told}");
    let (_, unknown) = subscribe(&node, "board/LAX", None).await?;
    assert_eq!(unknown["error"]["code"], "retry_later", "{unknown}");
    let seen = view(&node, "board/JFK", "stale").await?;
    assert_eq!(rows(&seen), json!({"B6": 1, "DL": 2}));

    kafka.restart().await?;
    kafka.produce(TOPIC, 0, [(B6, None)], &[]).await?;
    let gone = |message: &Value| {
        message["row"] == "B6" || (message["op"] == "snapshot" && rows(message) == json!({"DL": 2}))
    };
    let healed = client.find(gone).await?;
    let epoch = |position: &str| position.split(':').next().unwrap_or_default().to_owned();
    let position = healed["position"].as_str().expect("a position");
    assert_eq!(epoch(position), epoch(&newest), "it is the same log");
    client.heartbeat().await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn who_starts_while_broker_and_cache_are_gone_shows_what_it_copied() -> anyhow::Result<()> {
    let mut kafka = Kafka::start().await?;
    let mut redis = Redis::start(&[]).await?;
    kafka.create_topic(TOPIC, 1, &[]).await?;
    kafka.produce(TOPIC, 0, [(B6, Some("1"))], &[]).await?;
    let disk = tempfile::tempdir()?;
    let cached = || {
        reads(&kafka, disk.path())
            .env("TIDEGATE_CACHE_REDIS", &json!([redis.url()]).to_string())
            .env("TIDEGATE_CACHE_TIMEOUT", "500ms")
            .env("TIDEGATE_ROLES", "[\"gateway\", \"materializer\"]")
    };
    let outage = cached();
    let node = cached().start()?;
    let (mut client, snapshot) = subscribe(&node, "board/JFK", None).await?;
    assert_eq!(rows(&snapshot), json!({"B6": 1}), "{snapshot}");
    client.heartbeat().await?;
    drop(client);
    node.drain().await?;
    kafka.kill()?;
    redis.kill()?;

    let node = outage.start()?;
    let (client, snapshot) = subscribe(&node, "board/JFK", None).await?;
    assert_eq!(rows(&snapshot), json!({"B6": 1}), "{snapshot}");
    view(&node, "board/JFK", "stale").await?;
    redis.restart().await?;
    kafka.restart().await?;
    view(&node, "board/JFK", "live").await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_spoilt_copy_is_none() -> anyhow::Result<()> {
    let mut kafka = Kafka::start().await?;
    kafka.create_topic(TOPIC, 1, &[]).await?;
    kafka.produce(TOPIC, 0, [(B6, Some("1"))], &[]).await?;
    let disk = tempfile::tempdir()?;
    let node = reads(&kafka, disk.path()).start()?;
    view(&node, "board/JFK", "live").await?;
    node.drain().await?;
    kafka.kill()?;
    let file = disk.path().join("board/0.views");
    let mut bytes = fs::read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes)?;
    let node = reads(&kafka, disk.path()).start()?;
    let (_, snapshot) = subscribe(&node, "board/JFK", None).await?;
    assert_eq!(rows(&snapshot), json!({"B6": "default"}), "{snapshot}");
    node.drain().await
}
