//! The fence join: views come from Redis, what follows from Kafka; real ones. What a materializer would write, these tests write.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tidegate::{
    cache::redis::{Batch, Flipped, Generation, Header, RedisCache, RedisOptions, Wrote},
    config::StreamConfig,
    model::{Change, Channel, Epoch, Offset, RowId},
    source::{
        Source,
        kafka::{ClusterSettings, KafkaCluster, KafkaSource, Security},
    },
};
use tidegate_tests::{
    gateway::{Node, Setup, found},
    http,
    services::{kafka::Kafka, redis::Redis},
    websocket::Client,
};

/// A topic of one partition, its cache, and what has been folded of it.
struct Fold<'a> {
    kafka: &'a Kafka,
    topic: &'static str,
    redis: Redis,
    cache: RedisCache,
    header: Header,
}

impl<'a> Fold<'a> {
    /// An empty topic, and no fold yet.
    async fn new(kafka: &'a Kafka, topic: &'static str) -> anyhow::Result<Self> {
        kafka.create_topic(topic, 1, &[]).await?;
        let redis = Redis::start(&[]).await?;
        let cache = RedisCache::new(&RedisOptions::single(&redis.url()), "board")?;
        let header = Header {
            epoch: epoch(kafka, topic).await?,
            generation: Generation::random(),
            fold_id: StreamConfig::default().fold_id(),
            applied: Offset::BEFORE_ALL.into(),
            lineage: String::new(),
            proven_ms: now_ms(),
            since: Offset::BEFORE_ALL.into(),
            settled: Offset::BEFORE_ALL.into(),
            complete: true,
            written_at_ms: now_ms(),
        };
        Ok(Self {
            kafka,
            topic,
            redis,
            cache,
            header,
        })
    }

    /// Writes to the topic: the offset of each record.
    async fn log(&self, records: &[(&str, &str, Option<&str>)]) -> anyhow::Result<Vec<u64>> {
        let keys: Vec<_> = records
            .iter()
            .map(|(channel, row, _)| json!([channel, row]).to_string())
            .collect();
        let values = records.iter().map(|(_, _, value)| *value);
        let rows = keys.iter().map(String::as_str).zip(values);
        let offsets = self.kafka.produce(self.topic, 0, rows, &[]).await?;
        Ok(offsets
            .into_iter()
            .map(|at| at.unsigned_abs() + 1)
            .collect())
    }

    /// Folds records that the topic has, each at its offset.
    async fn fold(
        &mut self,
        records: &[(&str, &str, Option<&str>)],
        offsets: &[u64],
    ) -> anyhow::Result<()> {
        let begins = self.header.applied == Offset::BEFORE_ALL.into();
        let (before, mut batch) = (self.header.clone(), Batch::default());
        for ((channel, row, value), at) in records.iter().zip(offsets) {
            let change = Change {
                channel: Channel::new("board", channel)?,
                row: RowId::new(row)?,
                data: value.map(|value| value.to_owned().into()),
                ts_ms: 0,
            };
            self.header.applied = Offset::new(*at).into();
            batch.fold(&change, &self.header.applied);
        }
        self.header.proven_ms = now_ms();
        let expected = (!begins).then_some(&before);
        let wrote = self.cache.write(0, expected, &self.header, &batch).await?;
        ensure!(wrote == Wrote::Written, "{wrote:?}");
        if begins {
            self.flip().await?;
        }
        Ok(())
    }

    async fn flip(&self) -> anyhow::Result<()> {
        let current = self.cache.header(0).await?;
        let flipped = self.cache.flip(0, current.as_ref(), &self.header).await?;
        ensure!(flipped == Flipped::Flipped, "{flipped:?}");
        Ok(())
    }

    /// Writes to the topic and folds it.
    async fn both(&mut self, records: &[(&str, &str, Option<&str>)]) -> anyhow::Result<u64> {
        let offsets = self.log(records).await?;
        self.fold(records, &offsets).await?;
        offsets.last().copied().context("nothing was written")
    }

    /// A node that reads it.
    fn node(&self, more: &str) -> anyhow::Result<Node> {
        let source = format!(
            "source = {{ kind = \"kafka\", brokers = [\"{}\"], topic = \"{}\"{more} }}",
            self.kafka.address(),
            self.topic
        );
        let setup = Setup::new().open().session("heartbeat = \"300ms\"");
        setup
            .env(
                "TIDEGATE_CACHE_REDIS",
                &json!([self.redis.url()]).to_string(),
            )
            .env("TIDEGATE_CACHE_TIMEOUT", "500ms")
            .env("TIDEGATE_LIMITS_RECORD_BYTES", "16KiB")
            .stream(
                "board",
                &format!("freshness_slo = \"1s\"\ntail = {{ bytes = \"16KiB\" }}\n{source}"),
            )
            .start()
    }
}

/// What its source calls the topic's log.
async fn epoch(kafka: &Kafka, topic: &str) -> anyhow::Result<Epoch> {
    let cluster = KafkaCluster::new(ClusterSettings {
        brokers: vec![kafka.address()],
        security: Security::default(),
        timeout: Duration::from_secs(10),
    });
    let mut source = KafkaSource::new(Arc::new(cluster), topic, 0);
    found("the topic can be read", async || {
        Ok(source.fetch(None, 1).await.ok().map(|fetch| fetch.epoch))
    })
    .await
}

fn now_ms() -> i64 {
    tidegate::clock::Clock::start().wall_ms()
}

/// What the node's only partition says of its cache.
async fn cache_of(node: &Node) -> anyhow::Result<Value> {
    let page = http::get(node.gateway.admin_address(), "/inspect/partitions").await?;
    Ok(page.json()?["partitions"][0]["task"]["cache"].clone())
}

async fn next(client: &mut Client, op: &str) -> anyhow::Result<Value> {
    client.find(|message| message["op"] == op).await
}

async fn subscribe(node: &Node, channel: &str, how: Value) -> anyhow::Result<(Client, Value)> {
    let mut client = Client::connect(node).await?;
    client.subscribe(channel, how).await?;
    let snapshot = next(&mut client, "snapshot").await?;
    Ok((client, snapshot))
}

/// The rows of a snapshot.
fn rows(snapshot: &Value) -> Value {
    let rows = snapshot["rows"].as_object().cloned().unwrap_or_default();
    rows.into_iter()
        .map(|(id, row)| (id, row["data"].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[tokio::test]
async fn a_view_comes_from_the_cache_and_what_follows_from_the_log() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    let mut fold = Fold::new(kafka, "fence-basic").await?;
    let first = [
        ("JFK", "B6", Some("1")),
        ("JFK", "DL", Some("2")),
        ("LGA", "AA", Some("3")),
    ];
    let at = fold.both(&first).await?;
    // What was folded is nowhere but in the cache.
    kafka
        .delete_records(fold.topic, 0, i64::try_from(at)?)
        .await?;
    // The cache is behind the log: these two come from there.
    let behind = [("JFK", "B6", None), ("JFK", "UA", Some("4"))];
    let offsets = fold.log(&behind).await?;
    let node = fold.node("")?;
    let (mut client, snapshot) = subscribe(&node, "board/JFK", json!({})).await?;
    assert_eq!(rows(&snapshot), json!({"DL": 2, "UA": 4}), "{snapshot}");
    client.heartbeat().await?;
    fold.log(&[("JFK", "DL", Some("5"))]).await?;
    let update = next(&mut client, "update").await?;
    assert_eq!((&update["row"], &update["data"]), (&json!("DL"), &json!(5)));
    let (mut other, snapshot) = subscribe(&node, "board/LGA", json!({})).await?;
    assert_eq!(rows(&snapshot), json!({"AA": 3}));
    other.heartbeat().await?;
    // Nothing was ever written to this one: it is empty, and follows what is written.
    let (mut third, snapshot) = subscribe(&node, "board/EWR", json!({})).await?;
    assert_eq!(rows(&snapshot), json!({}));
    fold.fold(&behind, &offsets).await?;
    fold.both(&[("EWR", "UA", Some("6"))]).await?;
    let update = next(&mut third, "update").await?;
    assert_eq!((&update["row"], &update["data"]), (&json!("UA"), &json!(6)));
    let (_, snapshot) = subscribe(&node, "board/EWR", json!({})).await?;
    assert_eq!(rows(&snapshot), json!({"UA": 6}));
    drop((client, other, third));
    node.drain().await
}

#[tokio::test]
async fn a_cache_that_is_gone_costs_resident_views_nothing_and_heals_by_itself()
-> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    let mut fold = Fold::new(kafka, "fence-gone").await?;
    fold.both(&[("JFK", "B6", Some("1")), ("LGA", "AA", Some("2"))])
        .await?;
    let node = fold.node(", folds_alone = 0")?;
    let (mut client, _) = subscribe(&node, "board/JFK", json!({})).await?;
    client.heartbeat().await?;
    fold.redis.kill()?;
    found("the node knows that its cache is gone", async || {
        Ok((cache_of(&node).await?["answers"] == false).then_some(()))
    })
    .await?;
    fold.log(&[("JFK", "B6", Some("3"))]).await?;
    let update = next(&mut client, "update").await?;
    assert_eq!(update["data"], 3);
    client.heartbeat().await?;
    let mut late = Client::connect(&node).await?;
    late.send(&json!({"id": 1, "op": "subscribe", "channel": "board/LGA"}))
        .await?;
    let refused = late.find(|message| message.get("error").is_some()).await?;
    assert_eq!(refused["error"]["code"], "retry_later", "{refused}");
    // Who asks for what is resident has it all the same.
    let (_, snapshot) = subscribe(&node, "board/JFK", json!({})).await?;
    assert_eq!(rows(&snapshot), json!({"B6": 3}));
    fold.redis.restart().await?;
    fold.cache = RedisCache::new(&RedisOptions::single(&fold.redis.url()), "board")?;
    // Redis came back with its data or without: this one without, and is folded anew, elsewhere than before.
    fold.header.generation = Generation::random();
    fold.header.applied = Offset::BEFORE_ALL.into();
    let all = [
        ("JFK", "B6", Some("1")),
        ("LGA", "AA", Some("2")),
        ("JFK", "B6", Some("3")),
    ];
    fold.fold(&all, &[1, 2, 3]).await?;
    late.subscribe("board/LGA", json!({})).await?;
    let snapshot = next(&mut late, "snapshot").await?;
    assert_eq!(rows(&snapshot), json!({"AA": 2}));
    late.heartbeat().await?;
    drop((client, late));
    node.drain().await
}

#[tokio::test]
async fn a_large_view_is_read_page_by_page_and_then_followed() -> anyhow::Result<()> {
    const ROWS: usize = 2_500;
    let kafka = Kafka::shared().await?;
    let mut fold = Fold::new(kafka, "fence-large").await?;
    let names: Vec<_> = (0..ROWS).map(|number| format!("r{number:04}")).collect();
    let records: Vec<_> = names
        .iter()
        .map(|name| ("JFK", name.as_str(), Some("1")))
        .collect();
    fold.both(&records).await?;
    let node = fold.node("")?;
    fold.log(&[("JFK", "r0001", None), ("JFK", "r1700", Some("2"))])
        .await?;
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/JFK", json!({})).await?;
    let mut found = std::collections::BTreeMap::new();
    loop {
        let part = next(&mut client, "snapshot").await?;
        found.extend(rows(&part).as_object().cloned().unwrap_or_default());
        if part["more"] != true {
            break;
        }
    }
    let expected = names.iter().filter(|name| *name != "r0001");
    let expected: std::collections::BTreeMap<_, _> = expected
        .map(|name| (name.clone(), json!(if name == "r1700" { 2 } else { 1 })))
        .collect();
    assert_eq!(found, expected);
    client.heartbeat().await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_fold_that_is_not_whole_is_told_and_the_whole_one_takes_its_place() -> anyhow::Result<()>
{
    let kafka = Kafka::shared().await?;
    let mut fold = Fold::new(kafka, "fence-incomplete").await?;
    fold.header.complete = false;
    fold.both(&[("JFK", "B6", Some("1"))]).await?;
    let node = fold.node("")?;
    let (mut client, snapshot) = subscribe(&node, "board/JFK", json!({})).await?;
    let stale = |message: &Value| message["reason"] == "incomplete_history";
    client.find(stale).await?;
    fold.header.complete = true;
    fold.header.generation = Generation::random();
    fold.header.applied = Offset::BEFORE_ALL.into();
    fold.fold(&[("JFK", "B6", Some("1"))], &[1]).await?;
    let whole = next(&mut client, "snapshot").await?;
    assert_ne!(whole["position"], snapshot["position"]);
    client.heartbeat().await?;
    // Who has a token of the other fold does not go on from there.
    let (_, again) = subscribe(&node, "board/JFK", json!({"from": snapshot["position"]})).await?;
    assert_eq!(again["position"], whole["position"]);
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn rows_of_another_fold_or_another_topic_are_not_served() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    let mut fold = Fold::new(kafka, "fence-other").await?;
    fold.header.fold_id = "another".to_owned();
    fold.both(&[("JFK", "B6", Some("1"))]).await?;
    let node = fold.node("")?;
    let mut client = Client::connect(&node).await?;
    let refused = async |client: &mut Client| {
        client
            .send(&json!({"id": 1, "op": "subscribe", "channel": "board/JFK"}))
            .await?;
        let refused = client
            .find(|message| message.get("error").is_some())
            .await?;
        ensure!(refused["error"]["code"] == "retry_later", "{refused}");
        Ok(())
    };
    refused(&mut client).await?;
    fold.header.fold_id = StreamConfig::default().fold_id();
    fold.header.generation = Generation::random();
    fold.header.applied = Offset::BEFORE_ALL.into();
    fold.fold(&[("JFK", "B6", Some("2"))], &[1]).await?;
    client.subscribe("board/JFK", json!({})).await?;
    assert_eq!(
        rows(&next(&mut client, "snapshot").await?),
        json!({"B6": 2})
    );
    client.heartbeat().await?;
    // The topic is made anew. What the cache has is of the old one until it is folded anew.
    kafka.delete_topic(fold.topic).await?;
    found("the topic is gone and can be made anew", async || {
        Ok(kafka.create_topic(fold.topic, 1, &[]).await.ok())
    })
    .await?;
    let offsets = fold.log(&[("JFK", "DL", Some("3"))]).await?;
    let old = fold.header.epoch.clone();
    fold.header.epoch = found("another epoch", async || {
        Ok(Some(epoch(kafka, fold.topic).await?).filter(|epoch| *epoch != old))
    })
    .await?;
    let at = node.gateway.admin_address();
    found("the node reads the new topic", async || {
        let page = http::get(at, "/inspect/partitions").await?.json()?;
        let reads = page["partitions"][0]["epoch"] == fold.header.epoch.as_str();
        Ok(reads.then_some(()))
    })
    .await?;
    // Asked for behind that, so what comes before the answer was sent while the cache had only the old topic's fold.
    client.send(&json!({"op": "ping"})).await?;
    loop {
        let message = client.next().await?;
        let told = |epoch: &Epoch| {
            message["position"]
                .as_str()
                .is_some_and(|at| at.contains(epoch.as_str()))
        };
        assert!(!told(&fold.header.epoch), "of the new topic: {message}");
        if message["op"] == "pong" {
            break;
        }
    }
    fold.header.generation = Generation::random();
    fold.header.applied = Offset::BEFORE_ALL.into();
    fold.fold(&[("JFK", "DL", Some("3"))], &offsets).await?;
    let snapshot = next(&mut client, "snapshot").await?;
    assert_eq!(rows(&snapshot), json!({"DL": 3}), "{snapshot}");
    client.heartbeat().await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn who_returns_to_another_node_gets_what_it_missed_or_a_reason() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    let mut fold = Fold::new(kafka, "fence-return").await?;
    fold.both(&[
        ("JFK", "B6", Some("1")),
        ("LGA", "AA", Some("2")),
        ("JFK", "DL", Some("3")),
    ])
    .await?;
    let first = fold.node("")?;
    let (mut quiet, at_lga) = subscribe(&first, "board/LGA", json!({})).await?;
    let (mut busy, at_jfk) = subscribe(&first, "board/JFK", json!({})).await?;
    quiet.heartbeat().await?;
    busy.heartbeat().await?;
    fold.both(&[("JFK", "B6", None)]).await?;
    // This node begins where the cache is: behind both tokens.
    let other = fold.node("")?;
    let mut client = Client::connect(&other).await?;
    let quiet = client
        .subscribe("board/LGA", json!({"from": at_lga["position"]}))
        .await?;
    assert_eq!(quiet["outcome"], "resumed", "{quiet}");
    let busy = client
        .subscribe("board/JFK", json!({"from": at_jfk["position"]}))
        .await?;
    assert_eq!(busy["outcome"], "snapshot", "{busy}");
    assert_eq!(
        rows(&next(&mut client, "snapshot").await?),
        json!({"DL": 3})
    );
    client.heartbeat().await?;
    drop(client);
    first.drain().await?;
    other.drain().await
}

#[tokio::test]
async fn what_the_tail_no_longer_has_is_read_from_the_log() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    let mut fold = Fold::new(kafka, "fence-behind").await?;
    fold.both(&[
        ("JFK", "B6", Some("0")),
        ("LGA", "AA", Some("0")),
        ("LGA", "UA", Some("0")),
    ])
    .await?;
    let node = fold.node("")?;
    let (mut client, _) = subscribe(&node, "board/JFK", json!({})).await?;
    // Nobody folds these. Far more than the tail holds follows, of another channel.
    fold.log(&[
        ("LGA", "AA", Some("1")),
        ("LGA", "UA", None),
        ("LGA", "DL", Some("2")),
    ])
    .await?;
    let many: Vec<_> = (0..2_000).map(|_| ("JFK", "B6", Some("3"))).collect();
    fold.log(&many).await?;
    fold.log(&[("JFK", "B6", Some("4")), ("LGA", "DL", Some("5"))])
        .await?;
    client
        .find(|message| message["data"] == 4 || message["rows"]["B6"]["data"] == 4)
        .await?;
    let (mut late, snapshot) = subscribe(&node, "board/LGA", json!({})).await?;
    assert_eq!(rows(&snapshot), json!({"AA": 1, "DL": 5}), "{snapshot}");
    late.heartbeat().await?;
    let cache = cache_of(&node).await?;
    assert_eq!(cache["backfilled"], 1, "{cache}");
    drop((client, late));
    node.drain().await
}

#[tokio::test]
async fn while_the_cache_is_gone_a_short_log_is_folded_in_its_place() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    let mut fold = Fold::new(kafka, "fence-alone").await?;
    let first = [
        ("LGA", "AA", Some("1")),
        ("LGA", "UA", Some("1")),
        ("LGA", "AA", Some("2")),
        ("LGA", "UA", None),
    ];
    fold.both(&first).await?;
    fold.redis.kill()?;
    // A node that begins now knows no more than the one that was there before.
    let node = fold.node("")?;
    let (mut client, snapshot) = subscribe(&node, "board/LGA", json!({})).await?;
    assert_eq!(rows(&snapshot), json!({"AA": 2}), "{snapshot}");
    client.heartbeat().await?;
    let (_, nothing) = subscribe(&node, "board/EWR", json!({})).await?;
    assert_eq!(rows(&nothing), json!({}));
    fold.log(&[("LGA", "UA", Some("3")), ("EWR", "B6", Some("4"))])
        .await?;
    let update = next(&mut client, "update").await?;
    assert_eq!((&update["row"], &update["data"]), (&json!("UA"), &json!(3)));
    let (_, snapshot) = subscribe(&node, "board/EWR", json!({})).await?;
    assert_eq!(rows(&snapshot), json!({"B6": 4}));
    let cache = cache_of(&node).await?;
    assert_eq!(
        (&cache["folded_alone"], &cache["loads"]),
        (&json!(2), &json!(0)),
        "{cache}"
    );
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_log_that_lost_its_beginning_is_no_substitute_for_the_cache() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    let mut fold = Fold::new(kafka, "fence-not-alone").await?;
    let at = fold.both(&[("LGA", "AA", Some("1"))]).await?;
    fold.log(&[("LGA", "UA", Some("2"))]).await?;
    kafka
        .delete_records(fold.topic, 0, i64::try_from(at)?)
        .await?;
    fold.redis.kill()?;
    let node = fold.node("")?;
    let mut client = Client::connect(&node).await?;
    client
        .send(&json!({"id": 1, "op": "subscribe", "channel": "board/LGA"}))
        .await?;
    let refused = client
        .find(|message| message.get("error").is_some())
        .await?;
    assert_eq!(refused["error"]["code"], "retry_later", "{refused}");
    fold.redis.restart().await?;
    drop(client);
    node.drain().await
}
