//! How many records a second a materializer folds when they are all there: `materialize_catch_up [RECORDS] [BYTES] [ROWS]…`.
//!
//! Starts a broker and Redis on one core (this program's last), fills a partition for each count of rows, moves itself to another
//! core (the first), and folds each, from nothing. Says records and written rows a second of wall time, and records a second of
//! its own CPU time.

use std::{io::Write, time::Duration};

use anyhow::Context;
use tidegate::{
    cache::redis::{Header, RedisCache, RedisOptions},
    config::Config,
    gateway::Gateway,
};
use tidegate_tests::{
    http,
    measure::{Cores, cpu, rate},
    services::{kafka::Kafka, redis::Redis},
};
use tokio::time::{Instant, sleep};

/// Between two looks at how far the fold is.
const LOOK: Duration = Duration::from_millis(5);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<usize> = std::env::args()
        .skip(1)
        .map(|argument| argument.parse())
        .collect::<Result<_, _>>()?;
    let records = arguments.first().copied().unwrap_or(300_000);
    let bytes = arguments.get(1).copied().unwrap_or(800);
    let rows = arguments
        .get(2..)
        .filter(|rows| !rows.is_empty())
        .unwrap_or(&[1_000, 50_000]);
    let cores = Cores::of_this_process()?;
    cores.take_last()?;
    let (kafka, redis) = (Kafka::start().await?, Redis::start(&[]).await?);
    for &rows in rows {
        fill(&kafka, records, bytes, rows).await?;
    }
    cores.take_first()?;
    for &rows in rows {
        fold(&kafka, &redis, records, rows).await?;
    }
    Ok(())
}

fn topic(rows: usize) -> String {
    format!("rows-{rows}")
}

async fn fill(kafka: &Kafka, records: usize, bytes: usize, rows: usize) -> anyhow::Result<()> {
    let topic = topic(rows);
    kafka.create_topic(&topic, 1, &[]).await?;
    let value = format!("{{\"text\":\"{}\"}}", "x".repeat(bytes.saturating_sub(11)));
    let keys: Vec<_> = (0..rows)
        .map(|row| format!("[\"C{}\",\"{row}\"]", row % 100))
        .collect();
    let mut left = records;
    while left > 0 {
        let part = left.min(50_000);
        let first = records - left;
        let filling =
            (first..first + part).map(|at| (keys[at % rows].as_str(), Some(value.as_str())));
        kafka
            .produce(&topic, 0, filling, &[("linger.ms", "5")])
            .await?;
        left -= part;
    }
    Ok(())
}

async fn fold(kafka: &Kafka, redis: &Redis, records: usize, rows: usize) -> anyhow::Result<()> {
    let (topic, url) = (topic(rows), redis.url());
    let config = format!(
        "roles = [\"materializer\"]\nadmin = {{ address = \"127.0.0.1:0\" }}\nlisten = {{ workers = 1 }}\n\
         cache = {{ redis = [\"{url}\"] }}\n[[streams]]\nname = \"{topic}\"\n\
         source = {{ kind = \"kafka\", brokers = [\"{}\"] }}\n",
        kafka.address()
    );
    let config = Config::from_toml(&config, std::iter::empty())?;
    let cache = RedisCache::new(&RedisOptions::single(&url), &topic)?;
    let (begun, busy) = (Instant::now(), cpu()?);
    let node = Gateway::start(&config, None)?;
    let end = records.to_string();
    let is_behind = |header: Header| header.applied.as_str() != end;
    while cache.header(0).await?.is_none_or(is_behind) {
        sleep(LOOK).await;
    }
    let (wall, busy) = (begun.elapsed(), cpu()? - busy);
    let page = http::get(node.admin_address(), "/metrics").await?.body;
    let count = |what: &str| {
        let name = format!("tidegate_materializer_{what}_total{{stream=\"{topic}\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&name));
        anyhow::Ok(line.context("no such number")?.parse::<usize>()?)
    };
    let (written, batches) = (count("rows")?, count("batches")?);
    writeln!(
        std::io::stdout(),
        "{records} records of {rows} rows: {} records/s, {} rows written/s ({written} in {batches} batches); {} records/s of CPU time",
        rate(records, wall),
        rate(written, wall),
        rate(records, busy)
    )?;
    node.drain().await;
    Ok(())
}
