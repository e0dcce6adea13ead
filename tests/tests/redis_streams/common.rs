//! What the tests of Redis Streams have in common.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use serde_json::{Value, json};
use tidegate::{
    cache::redis::RedisOptions,
    model::{Epoch, Offset},
    source::{
        Fetch, Source,
        redis::{RedisServer, RedisSource},
    },
};
use tidegate_tests::{
    gateway::{Node, Setup},
    http,
    services::redis::Redis,
    websocket::Client,
};

/// The log of the only partition of the stream `board`.
pub(crate) const LOG: &str = "tg:{board/0}:log";
pub(crate) const B6: &str = r#"["JFK","B6"]"#;
pub(crate) const DL: &str = r#"["JFK","DL"]"#;
/// What a fetch takes.
pub(crate) const PLENTY: usize = 1 << 20;

pub(crate) fn options(redis: &Redis) -> RedisOptions {
    RedisOptions {
        timeout: Duration::from_secs(5),
        ..RedisOptions::single(&redis.url())
    }
}

pub(crate) fn server(options: &RedisOptions) -> anyhow::Result<Arc<RedisServer>> {
    Ok(Arc::new(RedisServer::new(options)?))
}

/// A reader of the only partition of the stream `board`.
pub(crate) fn source(redis: &Redis) -> anyhow::Result<RedisSource> {
    Ok(RedisSource::new(server(&options(redis))?, "board", 0))
}

/// Adds an entry as others do; none deletes. Gives its id.
pub(crate) async fn add(redis: &Redis, key: &str, value: Option<&str>) -> anyhow::Result<String> {
    let mut command = vec!["XADD", LOG, "*", "k", key];
    command.extend(value.into_iter().flat_map(|value| ["v", value]));
    redis.cli(&command).await
}

/// Reads what follows `after`, to the end; with what the last answer said.
pub(crate) async fn read(
    source: &mut RedisSource,
    mut after: Option<Offset>,
) -> anyhow::Result<(Vec<String>, Fetch)> {
    let mut values = Vec::new();
    loop {
        let fetched = source.fetch(after, PLENTY).await;
        let fetch = fetched
            .ok()
            .with_context(|| source.failure().unwrap_or_default())?;
        let text = |value: &bytes::Bytes| String::from_utf8_lossy(value).into_owned();
        let of =
            |record: &tidegate::model::Record| record.value.as_ref().map_or("-".to_owned(), text);
        values.extend(fetch.records.iter().map(of));
        if fetch.upto >= fetch.head {
            return Ok((values, fetch));
        }
        after = Some(fetch.upto);
    }
}

/// The log's name, as somebody sees it who reads it for the first time.
pub(crate) async fn name(redis: &Redis) -> anyhow::Result<Epoch> {
    Ok(read(&mut source(redis)?, None).await?.1.epoch)
}

/// What the next fetch of a source fails of.
pub(crate) async fn failure(source: &mut RedisSource) -> anyhow::Result<String> {
    let failed = source.fetch(None, PLENTY).await.err();
    failed.context("it does not fail")?;
    source.failure().context("it does not say why")
}

/// A node that has the stream `board` on these servers: `servers` are the keys of its source that say which.
pub(crate) fn on(servers: &str, lines: &str, source: &str) -> Setup {
    let source = format!("source = {{ kind = \"redis\", {servers}{source} }}");
    let setup = Setup::new().open().session("heartbeat = \"300ms\"");
    setup.stream(
        "board",
        &format!("freshness_slo = \"1s\"\n{lines}\n{source}"),
    )
}

pub(crate) fn at(redis: &Redis) -> String {
    format!("redis = [\"{}\"]", redis.url())
}

/// A client that follows channel JFK, with its first snapshot.
pub(crate) async fn follower(node: &Node) -> anyhow::Result<(Client, Value)> {
    let mut client = Client::connect(node).await?;
    client.subscribe("board/JFK", json!({})).await?;
    let snapshot = next(&mut client, "snapshot").await?;
    client.heartbeat().await?;
    Ok((client, snapshot))
}

/// Skips what else comes until the next message with this `op`.
pub(crate) async fn next(client: &mut Client, op: &str) -> anyhow::Result<Value> {
    client.find(|message| message["op"] == op).await
}

pub(crate) async fn stale(client: &mut Client, reason: &str) -> anyhow::Result<Value> {
    let is = |message: &Value| message["op"] == "freshness" && message["reason"] == reason;
    client.find(is).await
}

/// A node's partition, as operators see it.
pub(crate) async fn partition(node: &Node, number: usize) -> anyhow::Result<Value> {
    let page = http::get(node.gateway.admin_address(), "/inspect/partitions").await?;
    Ok(page.json()?["partitions"][number].clone())
}
