//! Only partitions that somebody needs are read: real brokers, a real Redis, real sockets.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tidegate::{
    clock::Clock,
    config::Config,
    gateway::Gateway,
    model::Offset,
    source::{
        Source, Wanted,
        kafka::{ClusterSettings, KafkaCluster, KafkaSource, Security},
    },
    streams::partition_of,
};
use tidegate_tests::{
    gateway::{Node, SOON, Setup, found},
    http,
    services::{kafka::Kafka, redis::Redis},
    websocket::Client,
};

const PARTITIONS: u32 = 3;

/// A node that reads this topic, as a stream with these lines beside.
fn reads(kafka: &Kafka, topic: &str, more: &str) -> Setup {
    let source = format!(
        "source = {{ kind = \"kafka\", brokers = [\"{}\"], topic = \"{topic}\" }}",
        kafka.address()
    );
    let setup = Setup::new().open().session("heartbeat = \"300ms\"");
    let lines = format!("freshness_slo = \"1s\"\nlinger = \"1s\"\n{more}\n{source}");
    setup.stream("trades", &lines)
}

fn events(partitions: u32) -> String {
    format!("mode = \"events\"\npartitions = {partitions}")
}

/// A channel's name whose records are in this partition.
fn name_in(partition: u32) -> anyhow::Result<String> {
    let mut names = (0..).map(|number| format!("C{number}"));
    let found = names.find(|name| partition_of(name, "", PARTITIONS) == partition);
    found.context("names without end")
}

/// Writes these values to a channel.
async fn produce(
    kafka: &Kafka,
    (topic, partition): (&str, u32),
    channel: &str,
    values: &[u32],
) -> anyhow::Result<()> {
    let key = json!([channel, "r"]).to_string();
    let values: Vec<String> = values.iter().map(u32::to_string).collect();
    let records = values
        .iter()
        .map(|value| (key.as_str(), Some(value.as_str())));
    let partition = i32::try_from(partition)?;
    kafka.produce(topic, partition, records, &[]).await?;
    Ok(())
}

async fn partitions(node: &Node) -> anyhow::Result<Vec<Value>> {
    let page = http::get(node.gateway.admin_address(), "/inspect/partitions").await?;
    let partitions = page.json()?["partitions"].clone();
    partitions.as_array().cloned().context("a list")
}

async fn partition(node: &Node, number: u32) -> anyhow::Result<Value> {
    let all = partitions(node).await?;
    let found = all.into_iter().find(|found| found["partition"] == number);
    found.context("a partition")
}

fn is_resting(partition: &Value) -> bool {
    partition["task"]["resting_ms"].is_u64()
}

async fn rests(node: &Node, number: u32) -> anyhow::Result<Value> {
    found("the partition rests", async || {
        let partition = partition(node, number).await?;
        Ok(is_resting(&partition).then_some(partition))
    })
    .await
}

async fn all_rest(node: &Node) -> anyhow::Result<Vec<Value>> {
    found("all partitions rest", async || {
        let all = partitions(node).await?;
        Ok(all.iter().all(is_resting).then_some(all))
    })
    .await
}

/// The samples of a metric, without its labels.
async fn metric(node: &Node, name: &str) -> anyhow::Result<Vec<String>> {
    let scrape = http::get(node.gateway.admin_address(), "/metrics").await?;
    let lines = scrape.body.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
    });
    let values = lines.filter_map(|line| line.rsplit(' ').next());
    Ok(values.map(str::to_owned).collect())
}

async fn next(client: &mut Client, op: &str) -> anyhow::Result<Value> {
    client.find(|message| message["op"] == op).await
}

async fn follower(node: &Node, channel: &str, options: Value) -> anyhow::Result<Client> {
    let mut client = Client::connect(node).await?;
    client
        .subscribe(&format!("trades/{channel}"), options)
        .await?;
    Ok(client)
}

/// The next events, in order, and the token behind the last of them. A gap among them is an error.
async fn receive(client: &mut Client, count: usize) -> anyhow::Result<(Vec<Value>, Value)> {
    let (mut seen, mut token) = (Vec::new(), Value::Null);
    while seen.len() < count {
        let news = |message: &Value| message["op"] == "update" || message["op"] == "gap";
        let message = client.find(news).await?;
        ensure!(message["op"] == "update", "{message}");
        seen.push(message["data"].clone());
        token = message["position"].clone();
    }
    Ok((seen, token))
}

#[tokio::test]
async fn what_nobody_needs_is_not_read_and_a_join_wakes_its_partition_alone() -> anyhow::Result<()>
{
    let kafka = Kafka::shared().await?;
    kafka
        .create_topic("need-one", i32::try_from(PARTITIONS)?, &[])
        .await?;
    for at in 0..PARTITIONS {
        produce(kafka, ("need-one", at), &name_in(at)?, &[1, 2, 3]).await?;
    }
    let node = reads(kafka, "need-one", &events(PARTITIONS)).start()?;
    for resting in all_rest(&node).await? {
        ensure!(resting["freshness"].is_null(), "{resting}");
    }
    ensure!(metric(&node, "tidegate_partition_resting").await? == ["1", "1", "1"]);
    ensure!(
        metric(&node, "tidegate_view_live_streams").await? == ["1"],
        "nothing that is read is stale"
    );
    ensure!(
        metric(&node, "tidegate_source_lag_records")
            .await?
            .is_empty()
    );

    let mut client = follower(&node, &name_in(1)?, json!({})).await?;
    client.heartbeat().await?;
    produce(kafka, ("need-one", 1), &name_in(1)?, &[4]).await?;
    ensure!(
        receive(&mut client, 1).await?.0 == [json!(4)],
        "from now on"
    );
    for at in [0, 2] {
        let task = partition(&node, at).await?["task"].clone();
        ensure!(
            task["fetches"] == 0 && task["records"] == 0 && task["wakings"] == 0,
            "{task}"
        );
    }
    let woken = partition(&node, 1).await?;
    ensure!(woken["task"]["wakings"] == 1, "{woken}");
    ensure!(woken["freshness"]["state"] == "live", "{woken}");
    ensure!(metric(&node, "tidegate_source_lag_records").await? == ["0"]);
    drop(client);

    let rested = rests(&node, 1).await?;
    ensure!(rested["tail"]["updates"] == 0, "it holds no tail: {rested}");
    // What is written meanwhile is not read, however long the other one is followed.
    produce(kafka, ("need-one", 1), &name_in(1)?, &[5]).await?;
    let mut other = follower(&node, &name_in(2)?, json!({})).await?;
    produce(kafka, ("need-one", 2), &name_in(2)?, &[6]).await?;
    receive(&mut other, 1).await?;
    other.heartbeat().await?;
    let still = partition(&node, 1).await?;
    ensure!(
        still["task"]["fetches"] == rested["task"]["fetches"],
        "{still}"
    );
    drop(other);
    node.drain().await
}

#[tokio::test]
async fn who_comes_back_gets_every_event_that_the_log_has_and_is_told_of_others()
-> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("need-back", 1, &[]).await?;
    let node = reads(kafka, "need-back", &events(1)).start()?;
    let mut client = follower(&node, "C", json!({})).await?;
    client.heartbeat().await?;
    produce(kafka, ("need-back", 0), "C", &[1]).await?;
    let (_, token) = receive(&mut client, 1).await?;
    drop(client);
    rests(&node, 0).await?;

    produce(kafka, ("need-back", 0), "C", &[2, 3, 4, 5]).await?;
    let mut client = follower(&node, "C", json!({"from": token})).await?;
    let (seen, newer) = receive(&mut client, 4).await?;
    ensure!(seen == [json!(2), json!(3), json!(4), json!(5)], "{seen:?}");
    produce(kafka, ("need-back", 0), "C", &[6]).await?;
    ensure!(receive(&mut client, 1).await?.0 == [json!(6)]);
    client.heartbeat().await?;
    drop(client);
    rests(&node, 0).await?;

    // Who comes for the newest ones gets what the tail would have had.
    let mut client = follower(&node, "C", json!({"history": 2})).await?;
    ensure!(receive(&mut client, 2).await?.0 == [json!(5), json!(6)]);
    drop(client);
    rests(&node, 0).await?;

    // Another node, which begins by the time, knows the token too; the log no longer does.
    let other = reads(kafka, "need-back", &events(1)).start()?;
    let mut client = follower(&other, "C", json!({"from": newer})).await?;
    ensure!(receive(&mut client, 1).await?.0 == [json!(6)]);
    drop(client);
    kafka.delete_records("need-back", 0, 6).await?;
    let mut client = follower(&node, "C", json!({"from": newer})).await?;
    let gap = next(&mut client, "gap").await?;
    ensure!(gap["reason"] == "too_old", "{gap}");
    drop(client);
    node.drain().await?;
    other.drain().await
}

#[tokio::test]
async fn a_channel_that_is_spread_needs_all_of_its_partitions() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka
        .create_topic("need-spread", i32::try_from(PARTITIONS)?, &[])
        .await?;
    let spread = format!("{}\nplacement = \"spread\"", events(PARTITIONS));
    let node = reads(kafka, "need-spread", &spread).start()?;
    all_rest(&node).await?;
    let mut client = follower(&node, "C", json!({})).await?;
    client.heartbeat().await?;
    for (at, value) in (0..PARTITIONS).zip(1..) {
        produce(kafka, ("need-spread", at), "C", &[value]).await?;
    }
    receive(&mut client, 3).await?;
    ensure!(metric(&node, "tidegate_partition_wakings_total").await? == ["1", "1", "1"]);
    ensure!(metric(&node, "tidegate_partition_resting").await? == ["0", "0", "0"]);
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn an_eager_stream_is_read_whole_also_from_a_reload_on() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka
        .create_topic("need-eager", i32::try_from(PARTITIONS)?, &[])
        .await?;
    let by_need = reads(kafka, "need-eager", &events(PARTITIONS));
    let eager = format!("{}\neager = true", events(PARTITIONS));
    let eager = reads(kafka, "need-eager", &eager);
    let all_read = async |node: &Node| {
        found("all partitions are read", async || {
            let all = partitions(node).await?;
            let read = |one: &Value| one["freshness"]["state"] == "live" && !is_resting(one);
            Ok(all.iter().all(read).then_some(()))
        })
        .await
    };
    let node = eager.start()?;
    all_read(&node).await?;
    node.drain().await?;

    let written = Arc::new(Mutex::new(by_need));
    let node = Setup::start_reloadable(written.clone())?;
    all_rest(&node).await?;
    *written.lock().expect("no panic") = eager;
    let admin = node.gateway.admin_address();
    let reloaded = http::post(admin, "/reload", &[]).await?;
    ensure!(reloaded.status == 200, "{reloaded:?}");
    all_read(&node).await?;
    node.drain().await
}

/// A stream whose views come from a cache, and who folds them into it.
struct Cached {
    node: Node,
    materializer: Gateway,
    redis: Redis,
}

impl Cached {
    async fn of(kafka: &Kafka, topic: &str) -> anyhow::Result<Self> {
        let redis = Redis::start(&[]).await?;
        let folds = format!(
            "roles = [\"materializer\"]\n[admin]\naddress = \"127.0.0.1:0\"\n[cache]\nredis = [\"{}\"]\n\
             [materializer]\ngroup = \"{topic}\"\nsession_timeout = \"6s\"\n[[streams]]\nname = \"trades\"\n\
             source = {{ kind = \"kafka\", brokers = [\"{}\"], topic = \"{topic}\" }}\n",
            redis.url(),
            kafka.address(),
        );
        let config = Config::from_toml(&folds, std::iter::empty())?;
        let materializer = Gateway::start(&config, None)?;
        let node = reads(kafka, topic, "")
            .env("TIDEGATE_CACHE_REDIS", &json!([redis.url()]).to_string())
            .start()?;
        Ok(Self {
            node,
            materializer,
            redis,
        })
    }

    async fn is_folded(&self, upto: u64) -> anyhow::Result<()> {
        let admin: SocketAddr = self.materializer.admin_address();
        found("the materializer has come so far", async || {
            let page = http::get(admin, "/inspect/materializer").await?.json()?;
            let applied = page["streams"][0]["partitions"][0]["applied"].as_u64();
            Ok((applied >= Some(upto)).then_some(()))
        })
        .await
    }

    async fn end(self) -> anyhow::Result<()> {
        self.node.drain().await?;
        let drained = self.materializer.drain().await;
        ensure!((drained.left, drained.tasks) == (0, 0), "{drained:?}");
        drop(self.redis);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_from_the_cache_goes_on_where_it_rested_and_is_the_last_known_without_the_log()
-> anyhow::Result<()> {
    let mut kafka = Kafka::start().await?;
    kafka.create_topic("need-view", 1, &[]).await?;
    produce(&kafka, ("need-view", 0), "C", &[1]).await?;
    let cached = Cached::of(&kafka, "need-view").await?;
    let node = &cached.node;
    rests(node, 0).await?;
    cached.is_folded(1).await?;
    let mut client = follower(node, "C", json!({})).await?;
    let snapshot = next(&mut client, "snapshot").await?;
    ensure!(snapshot["rows"]["r"]["data"] == 1, "{snapshot}");
    let token = client.heartbeat().await?["position"].clone();
    drop(client);
    rests(node, 0).await?;

    // Nobody was told what came meanwhile; who returns gets it behind his token.
    produce(&kafka, ("need-view", 0), "C", &[2]).await?;
    cached.is_folded(2).await?;
    let mut client = Client::connect(node).await?;
    let answer = client.subscribe("trades/C", json!({"from": token})).await?;
    ensure!(answer["outcome"] == "resumed", "{answer}");
    ensure!(receive(&mut client, 1).await?.0 == [json!(2)]);
    client.heartbeat().await?;
    drop(client);
    rests(node, 0).await?;

    // A view that is asked for once wakes it, too.
    produce(&kafka, ("need-view", 0), "C", &[3]).await?;
    cached.is_folded(3).await?;
    let view = http::get(node.gateway.address(), "/v1/view/trades/C").await?;
    ensure!(view.status == 200, "{view:?}");
    ensure!(view.json()?["rows"]["r"]["data"] == 3, "{view:?}");
    rests(node, 0).await?;

    // Without the log the last that is known is better than nothing, and says what it is.
    kafka.kill()?;
    let mut client = follower(node, "C", json!({})).await?;
    let snapshot = next(&mut client, "snapshot").await?;
    ensure!(snapshot["rows"]["r"]["data"] == 3, "{snapshot}");
    let stale =
        |message: &Value| message["op"] == "freshness" && message["reason"] == "source_unavailable";
    client.find(stale).await?;
    kafka.restart().await?;
    produce(&kafka, ("need-view", 0), "C", &[4]).await?;
    ensure!(receive(&mut client, 1).await?.0 == [json!(4)]);
    client.heartbeat().await?;
    drop(client);
    cached.end().await
}

fn source(kafka: &Kafka, topic: &str) -> KafkaSource {
    let cluster = KafkaCluster::new(ClusterSettings {
        brokers: vec![kafka.address()],
        security: Security::default(),
        timeout: SOON,
    });
    KafkaSource::new(Arc::new(cluster), topic, 0)
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_log_is_begun_by_the_times_of_its_records_or_where_somebody_resumes() -> anyhow::Result<()>
{
    let kafka = Kafka::shared().await?;
    kafka.create_topic("need-times", 1, &[]).await?;
    let now_ms = Clock::start().wall_ms();
    let minutes = [120_i64, 110, 100, 5, 4];
    for ago in minutes {
        let time_ms = now_ms - ago * 60_000;
        kafka.produce_at("need-times", 0, "k", "1", time_ms).await?;
    }
    let mut source = source(kafka, "need-times");
    let mut begin = async |age: Duration, behind: Option<u64>, newest: u64| {
        let wanted = Wanted {
            age,
            behind: behind.map(Offset::new),
            newest,
        };
        let at = source.begin(wanted).await?;
        anyhow::Ok(at.context("a place")?.number())
    };
    ensure!(begin(10 * MINUTE, None, 100).await? == 3, "two are so new");
    ensure!(begin(MINUTE, None, 100).await? == 5, "none is");
    ensure!(begin(1000 * MINUTE, None, 1).await? == 0, "all are");
    ensure!(begin(10 * MINUTE, Some(1), 100).await? == 1);
    ensure!(
        begin(10 * MINUTE, Some(1), 3).await? == 2,
        "the newest three offsets"
    );
    ensure!(begin(10 * MINUTE, Some(9), 100).await? == 3);
    kafka.delete_records("need-times", 0, 2).await?;
    ensure!(
        begin(10 * MINUTE, Some(0), 100).await? == 2,
        "no more is left"
    );
    Ok(())
}

#[tokio::test]
async fn a_log_that_went_back_while_it_was_not_read_is_another_epoch() -> anyhow::Result<()> {
    let mut kafka = Kafka::start().await?;
    kafka.create_topic("need-lost", 1, &[]).await?;
    produce(&kafka, ("need-lost", 0), "C", &[1, 2, 3]).await?;
    let mut source = source(&kafka, "need-lost");
    let old = source.fetch(None, 1 << 20).await?;
    ensure!(old.upto == Offset::new(3), "{old:?}");
    source.rest();
    kafka.kill()?;
    kafka.lose("need-lost", 0)?;
    kafka.restart().await?;
    // Beyond the old place: by offsets alone nobody would notice.
    produce(&kafka, ("need-lost", 0), "C", &[11, 12, 13, 14, 15]).await?;
    let wanted = Wanted {
        age: 10 * MINUTE,
        behind: None,
        newest: 100,
    };
    let at = found("the broker answers", async || {
        Ok(source.begin(wanted).await.ok())
    })
    .await?;
    ensure!(at == Some(Offset::BEFORE_ALL), "{at:?}");
    let new = source.fetch(at, 1 << 20).await?;
    ensure!(new.epoch != old.epoch, "{new:?}");
    ensure!(new.records.len() == 5, "{new:?}");
    Ok(())
}
