//! How many records a second a reader of one Kafka partition yields when they are all there: `kafka_catch_up [RECORDS] [BYTES]`.
//!
//! Starts a broker, fills a partition, reads it from its beginning, three times; says records a second of wall time, and of
//! this process's own CPU time, since the broker has the same cores.

use std::{io::Write, time::Duration};

use anyhow::Context;
use nix::sys::resource::{UsageWho, getrusage};
use tidegate::source::{
    Source,
    kafka::{ClusterSettings, KafkaCluster, KafkaSource, Security},
};
use tidegate_tests::services::kafka::Kafka;
use tokio::time::Instant;

/// Bytes of a fetch, as a partition's task asks.
const FETCH_BYTES: usize = 1 << 20;
const ROUNDS: usize = 3;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse());
    let records: usize = arguments.next().transpose()?.unwrap_or(300_000);
    let bytes: usize = arguments.next().transpose()?.unwrap_or(800);
    let kafka = Kafka::start().await?;
    kafka.create_topic("catch-up", 1, &[]).await?;
    let value = format!("\"{}\"", "x".repeat(bytes.saturating_sub(2)));
    let keys: Vec<_> = (0..1000)
        .map(|row| format!("[\"channel\",\"{row}\"]"))
        .collect();
    let mut left = records;
    while left > 0 {
        let part = left.min(50_000);
        let filling = (0..part).map(|at| (keys[at % keys.len()].as_str(), Some(value.as_str())));
        kafka
            .produce("catch-up", 0, filling, &[("linger.ms", "5")])
            .await?;
        left -= part;
    }
    let cluster = std::sync::Arc::new(KafkaCluster::new(ClusterSettings {
        brokers: vec![kafka.address()],
        security: Security::default(),
        timeout: Duration::from_secs(5),
    }));
    for _ in 0..ROUNDS {
        let (begun, busy) = (Instant::now(), cpu()?);
        let mut source = KafkaSource::new(cluster.clone(), "catch-up", 0);
        let (mut after, mut read) = (None, 0);
        while read < records {
            let fetch = source.fetch(after, FETCH_BYTES).await?;
            read += fetch.records.len();
            after = Some(fetch.upto);
        }
        let (wall, busy) = (begun.elapsed(), cpu()? - busy);
        let rate = |time: Duration| {
            Duration::from_secs(1).as_nanos() * read as u128 / time.as_nanos().max(1)
        };
        writeln!(
            std::io::stdout(),
            "{read} records of {bytes} bytes: {}/s, {}/s of CPU time",
            rate(wall),
            rate(busy)
        )?;
    }
    Ok(())
}

/// CPU time of this process so far.
fn cpu() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("the CPU time")?;
    let of = |time: nix::sys::time::TimeVal| {
        Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()).cast_unsigned())
    };
    Ok(of(usage.user_time()) + of(usage.system_time()))
}
