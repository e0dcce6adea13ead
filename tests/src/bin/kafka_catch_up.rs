//! How many records a second come from a Kafka partition when they are all there: `kafka_catch_up [RECORDS] [BYTES] [ROWS]`.
//!
//! Starts a broker on one core (this program's last), fills a partition, moves itself to another core (the first), and reads it from
//! its beginning, three times each: by the bare reader, and by a gateway that folds it into its views. Says records a second of wall
//! time, and of its own CPU time.

use std::{io::Write, sync::Arc, time::Duration};

use anyhow::Context;
use tidegate::{
    config::Config,
    gateway::Gateway,
    source::{
        Source,
        kafka::{ClusterSettings, KafkaCluster, KafkaSource, Security},
    },
};
use tidegate_tests::{
    http,
    measure::{Cores, cpu, rate},
    services::kafka::Kafka,
};
use tokio::time::{Instant, sleep};

const TOPIC: &str = "catch-up";
const CHANNELS: usize = 100;
/// Bytes of a fetch, as a partition's task asks.
const FETCH_BYTES: usize = 1 << 20;
const ROUNDS: usize = 3;
/// Between two looks at how far the views are.
const LOOK: Duration = Duration::from_millis(5);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse());
    let records: usize = arguments.next().transpose()?.unwrap_or(300_000);
    let bytes: usize = arguments.next().transpose()?.unwrap_or(800);
    let rows: usize = arguments.next().transpose()?.unwrap_or(1_000);
    let cores = Cores::of_this_process()?;
    cores.take_last()?;
    let kafka = Kafka::start().await?;
    fill(&kafka, records, bytes, rows).await?;
    cores.take_first()?;
    for _ in 0..ROUNDS {
        let (begun, busy) = (Instant::now(), cpu()?);
        read(&kafka, records).await?;
        say("read", records, begun.elapsed(), cpu()? - busy)?;
    }
    for _ in 0..ROUNDS {
        let (begun, busy) = (Instant::now(), cpu()?);
        let node = fold(&kafka, records).await?;
        say("into views", records, begun.elapsed(), cpu()? - busy)?;
        node.drain().await;
    }
    Ok(())
}

async fn fill(kafka: &Kafka, records: usize, bytes: usize, rows: usize) -> anyhow::Result<()> {
    kafka.create_topic(TOPIC, 1, &[]).await?;
    let value = format!("{{\"text\":\"{}\"}}", "x".repeat(bytes.saturating_sub(11)));
    let keys: Vec<_> = (0..rows)
        .map(|row| format!("[\"C{}\",\"{row}\"]", row % CHANNELS))
        .collect();
    let mut left = records;
    while left > 0 {
        let part = left.min(50_000);
        let first = records - left;
        let filling =
            (first..first + part).map(|at| (keys[at % rows].as_str(), Some(value.as_str())));
        let linger = [("linger.ms", "5")];
        kafka.produce(TOPIC, 0, filling, &linger).await?;
        left -= part;
    }
    Ok(())
}

/// Nothing is done with the records.
async fn read(kafka: &Kafka, records: usize) -> anyhow::Result<()> {
    let cluster = Arc::new(KafkaCluster::new(ClusterSettings {
        brokers: vec![kafka.address()],
        security: Security::default(),
        timeout: Duration::from_secs(5),
    }));
    let mut source = KafkaSource::new(cluster, TOPIC, 0);
    let (mut after, mut read) = (None, 0);
    while read < records {
        let fetch = source.fetch(after, FETCH_BYTES).await?;
        read += fetch.records.len();
        after = Some(fetch.upto);
    }
    Ok(())
}

/// A node of one worker, until it has applied them all.
async fn fold(kafka: &Kafka, records: usize) -> anyhow::Result<Gateway> {
    let config = format!(
        "admin = {{ address = \"127.0.0.1:0\" }}\nlisten = {{ address = \"127.0.0.1:0\", workers = 1 }}\n\
         [[streams]]\nname = \"{TOPIC}\"\nsource = {{ kind = \"kafka\", brokers = [\"{}\"] }}\n",
        kafka.address()
    );
    let node = Gateway::start(&Config::from_toml(&config, std::iter::empty())?, None)?;
    while applied(&node).await? < records as u64 {
        sleep(LOOK).await;
    }
    Ok(node)
}

async fn applied(node: &Gateway) -> anyhow::Result<u64> {
    let page = http::get(node.admin_address(), "/inspect/partitions").await?;
    let partitions: serde_json::Value = serde_json::from_str(&page.body)?;
    let applied = partitions.pointer("/partitions/0/tail/applied");
    Ok(applied
        .context("no partition")?
        .as_u64()
        .unwrap_or_default())
}

fn say(what: &str, records: usize, wall: Duration, busy: Duration) -> anyhow::Result<()> {
    let (a_second, of_cpu) = (rate(records, wall), rate(records, busy));
    writeln!(
        std::io::stdout(),
        "{what}: {records} records: {a_second}/s, {of_cpu}/s of CPU time"
    )?;
    Ok(())
}
