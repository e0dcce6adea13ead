//! How many records a second come from a Redis Stream when they are all there: `redis_catch_up [RECORDS] [BYTES] [ROWS]`.
//!
//! Starts a server on one core (this program's last), fills a stream, moves itself to another core (the first), and reads it from its
//! beginning, three times each: by the bare reader, and by a gateway that folds it into its views. Says records a second of wall time,
//! and of its own CPU time.

use std::{io::Write, sync::Arc, time::Duration};

use anyhow::Context;
use tidegate::{
    cache::redis::RedisOptions,
    config::Config,
    gateway::Gateway,
    source::{
        Source,
        redis::{RedisServer, RedisSource},
    },
};
use tidegate_tests::{
    http,
    measure::{Cores, cpu, rate},
    services::redis::Redis,
};
use tokio::time::{Instant, sleep};

const STREAM: &str = "catch-up";
const LOG: &str = "tg:{catch-up/0}:log";
const CHANNELS: usize = 100;
/// Bytes of a fetch, as a partition's task asks.
const FETCH_BYTES: usize = 1 << 20;
const ROUNDS: usize = 3;
/// Records that are written at a time.
const PART: usize = 10_000;
/// Between two looks at how far the views are.
const LOOK: Duration = Duration::from_millis(5);
/// Writes records `ARGV[1]` to `ARGV[2]` of so many bytes, of so many rows and channels.
const FILL: &str = "local value = '{\"text\":\"' .. string.rep('x', ARGV[3] - 11) .. '\"}' \
    for at = ARGV[1], ARGV[2] do local row = at % ARGV[4] \
    redis.call('XADD', KEYS[1], '*', 'k', string.format('[\"C%d\",\"%d\"]', row % ARGV[5], row), 'v', value) end";

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse());
    let records: usize = arguments.next().transpose()?.unwrap_or(300_000);
    let bytes: usize = arguments.next().transpose()?.unwrap_or(800);
    let rows: usize = arguments.next().transpose()?.unwrap_or(1_000);
    let cores = Cores::of_this_process()?;
    cores.take_last()?;
    let redis = Redis::start(&[]).await?;
    fill(&redis, records, bytes, rows).await?;
    cores.take_first()?;
    for _ in 0..ROUNDS {
        let (begun, busy) = (Instant::now(), cpu()?);
        read(&redis, records).await?;
        say("read", records, begun.elapsed(), cpu()? - busy)?;
    }
    for _ in 0..ROUNDS {
        let (begun, busy) = (Instant::now(), cpu()?);
        let node = fold(&redis).await?;
        say("into views", records, begun.elapsed(), cpu()? - busy)?;
        node.drain().await;
    }
    Ok(())
}

async fn fill(redis: &Redis, records: usize, bytes: usize, rows: usize) -> anyhow::Result<()> {
    let (bytes, rows, channels) = (
        bytes.max(11).to_string(),
        rows.to_string(),
        CHANNELS.to_string(),
    );
    for first in (0..records).step_by(PART) {
        let last = (first + PART).min(records) - 1;
        let (first, last) = (first.to_string(), last.to_string());
        redis
            .cli(&[
                "EVAL", FILL, "1", LOG, &first, &last, &bytes, &rows, &channels,
            ])
            .await?;
    }
    Ok(())
}

/// Nothing is done with the records.
async fn read(redis: &Redis, records: usize) -> anyhow::Result<()> {
    let server = RedisServer::new(&RedisOptions::single(&redis.url()))?;
    let mut source = RedisSource::new(Arc::new(server), STREAM, 0);
    let (mut after, mut read) = (None, 0);
    while read < records {
        let fetch = source.fetch(after, FETCH_BYTES).await?;
        read += fetch.records.len();
        after = Some(fetch.upto);
    }
    Ok(())
}

/// A node of one worker, until it has applied them all.
async fn fold(redis: &Redis) -> anyhow::Result<Gateway> {
    let config = format!(
        "admin = {{ address = \"127.0.0.1:0\" }}\nlisten = {{ address = \"127.0.0.1:0\", workers = 1 }}\n\
         [[streams]]\nname = \"{STREAM}\"\nsource = {{ kind = \"redis\", redis = [\"{}\"] }}\n",
        redis.url()
    );
    let node = Gateway::start(&Config::from_toml(&config, std::iter::empty())?, None)?;
    while !has_all(&node).await? {
        sleep(LOOK).await;
    }
    Ok(node)
}

async fn has_all(node: &Gateway) -> anyhow::Result<bool> {
    let page = http::get(node.admin_address(), "/inspect/partitions")
        .await?
        .json()?;
    let task = page.pointer("/partitions/0/task").context("no partition")?;
    Ok(task["fetches"].as_u64() > Some(0) && task["applied"] == task["head"])
}

fn say(what: &str, records: usize, wall: Duration, busy: Duration) -> anyhow::Result<()> {
    let (a_second, of_cpu) = (rate(records, wall), rate(records, busy));
    writeln!(
        std::io::stdout(),
        "{what}: {records} records: {a_second}/s, {of_cpu}/s of CPU time"
    )?;
    Ok(())
}
