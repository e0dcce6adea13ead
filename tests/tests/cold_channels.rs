//! What it costs that many ask for channels which no node has: reads of the cache, and encodings. Alone in its process, since encodings
//! are counted there.

use anyhow::Context;
use serde_json::{Value, json};
use tidegate_tests::{
    gateway::{Node, Setup, found},
    http,
    services::{kafka::Kafka, redis::Redis},
    websocket::Client,
};

const TOPIC: &str = "cold";
const CHANNELS: usize = 100;
/// Each asks for all of them: 10,000 subscriptions.
const CLIENTS: usize = 100;

fn reads(kafka: &Kafka, redis: &Redis) -> Setup {
    let source = format!(
        "source = {{ kind = \"kafka\", brokers = [\"{}\"], topic = \"{TOPIC}\" }}",
        kafka.address()
    );
    Setup::new()
        .open()
        .session("heartbeat = \"300ms\"")
        .stream("board", &source)
        .env("TIDEGATE_CACHE_REDIS", &json!([redis.url()]).to_string())
}

/// What there is to see of the cache of the node's only partition.
async fn cache_of(node: &Node) -> anyhow::Result<Value> {
    let page = http::get(node.gateway.admin_address(), "/inspect/partitions").await?;
    Ok(page.json()?["partitions"][0]["task"]["cache"].clone())
}

/// Parts of snapshots that this process has encoded.
async fn encoded(node: &Node) -> anyhow::Result<u64> {
    let page = http::get(node.gateway.admin_address(), "/metrics").await?;
    let name = "tidegate_frame_encoded_parts_total ";
    let found = page.body.lines().find_map(|line| line.strip_prefix(name));
    Ok(found.context("the metric")?.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_for_cold_channels_cost_one_read_and_one_encoding_of_each()
-> anyhow::Result<()> {
    let (kafka, redis) = (Kafka::start().await?, Redis::start(&[]).await?);
    kafka.create_topic(TOPIC, 1, &[]).await?;
    let keys: Vec<_> = (0..CHANNELS)
        .map(|number| format!(r#"["c{number}","row"]"#))
        .collect();
    let records = keys.iter().map(|key| (key.as_str(), Some("1")));
    kafka.produce(TOPIC, 0, records, &[]).await?;
    let materializer = reads(&kafka, &redis)
        .env("TIDEGATE_ROLES", "[\"materializer\"]")
        .start()?;
    let node = reads(&kafka, &redis).start()?;
    let mut first = Client::connect(&node).await?;
    first.subscribe("board/other", json!({})).await?;
    first.heartbeat().await?;
    found("all of it is folded", async || {
        let cache = cache_of(&node).await?;
        Ok((cache["applied"].as_u64() == Some(CHANNELS as u64)).then_some(()))
    })
    .await?;
    let (loads, parts) = (
        cache_of(&node).await?["loads"].clone(),
        encoded(&node).await?,
    );

    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Client::connect(&node).await?;
        for number in 0..CHANNELS {
            let channel = format!("board/c{number}");
            client
                .send(&json!({"id": number + 1, "op": "subscribe", "channel": channel}))
                .await?;
        }
        clients.push(client);
    }
    for client in &mut clients {
        for _ in 0..CHANNELS {
            let snapshot = client.find(|message| message["op"] == "snapshot").await?;
            assert_eq!(snapshot["rows"]["row"]["data"], 1, "{snapshot}");
        }
    }
    let cache = cache_of(&node).await?;
    let read = cache["loads"].as_u64().zip(loads.as_u64());
    let read = read.map(|(after, before)| after - before);
    assert_eq!(read, Some(CHANNELS as u64), "{cache}");
    assert_eq!(cache["failed_loads"], 0, "{cache}");
    assert_eq!(encoded(&node).await? - parts, CHANNELS as u64);
    drop((first, clients));
    node.drain().await?;
    materializer.drain().await
}
