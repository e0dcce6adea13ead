//! How fast the cache in Redis is written and read, through the real client: `cargo bench -p tidegate-tests --bench redis_cache`.

use std::time::Duration;

use anyhow::{bail, ensure};
use tidegate::{
    cache::redis::{Batch, Generation, Header, Page, RedisCache, RedisOptions, Walk, Wrote},
    model::{Change, Channel, Epoch, Offset, RowId},
};
use tidegate_tests::services::redis::Redis;
use tokio::time::Instant;

const ROWS: u64 = 50_000;
const BATCH: u64 = 1_000;
const DATA_BYTES: usize = 800;

fn header(generation: &Generation, applied: u64) -> anyhow::Result<Header> {
    Ok(Header {
        epoch: Epoch::new("e1")?,
        generation: generation.clone(),
        fold_id: "bench".to_owned(),
        applied: Offset::new(applied).into(),
        lineage: String::new(),
        proven_ms: 0,
        since: Offset::BEFORE_ALL.into(),
        settled: Offset::BEFORE_ALL.into(),
        complete: true,
        written_at_ms: 0,
    })
}

/// Writes all rows, a batch at a time.
async fn write(
    cache: &RedisCache,
    channels: u64,
    mut seen: Option<Header>,
) -> anyhow::Result<(Header, Duration)> {
    let data = format!("\"{}\"", "x".repeat(DATA_BYTES - 2));
    let generation = seen
        .as_ref()
        .map_or_else(Generation::random, |seen| seen.generation.clone());
    let before: u64 = seen
        .as_ref()
        .map_or(Ok(0), |seen| seen.applied.as_str().parse())?;
    let began = Instant::now();
    for first in (0..ROWS).step_by(usize::try_from(BATCH)?) {
        let mut batch = Batch::default();
        for row in first..first + BATCH {
            let change = Change {
                channel: Channel::new("s", &format!("c{}", row % channels))?,
                row: RowId::new(&format!("row{row}"))?,
                data: Some(data.clone().into()),
                ts_ms: 0,
            };
            batch.fold(&change, &Offset::new(before + row + 1).into());
        }
        let next = header(&generation, before + first + BATCH)?;
        let wrote = cache.write(0, seen.as_ref(), &next, &batch).await?;
        ensure!(wrote == Wrote::Written, "{wrote:?}");
        seen = Some(next);
    }
    let Some(seen) = seen else {
        bail!("nothing was written")
    };
    Ok((seen, began.elapsed()))
}

async fn read(cache: &RedisCache, seen: &Header, channels: u64) -> anyhow::Result<(u64, Duration)> {
    let (mut pages, began) = (0, Instant::now());
    for number in 0..channels {
        let (mut walk, channel) = (Walk::default(), Channel::new("s", &format!("c{number}"))?);
        while !walk.is_whole() {
            let page = cache
                .page(0, &seen.generation, &channel, walk.after())
                .await?;
            let Page::Page(page) = page else {
                bail!("no page")
            };
            walk.take(&page)
                .map_err(|turned| anyhow::anyhow!("{turned:?}"))?;
            pages += 1;
        }
    }
    Ok((pages, began.elapsed()))
}

#[allow(clippy::print_stdout, reason = "figures are what it is for")]
fn say(channels: u64, what: &str, count: u64, unit: &str, took: Duration) {
    let seconds = took.as_secs_f64();
    println!(
        "{channels:4} channels, {what}: {:8.0} {unit}/s ({seconds:.2} s)",
        count as f64 / seconds
    );
}

fn main() -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            for channels in [1, 100] {
                let redis = Redis::start(&[]).await?;
                let cache = RedisCache::new(&RedisOptions::single(&redis.url()), "s")?;
                let (seen, took) = write(&cache, channels, None).await?;
                say(channels, "written anew ", ROWS, "rows", took);
                let (seen, took) = write(&cache, channels, Some(seen)).await?;
                say(channels, "written again", ROWS, "rows", took);
                cache.flip(0, None, &seen).await?;
                let (pages, took) = read(&cache, &seen, channels).await?;
                say(channels, "read         ", pages, "pages", took);
                say(channels, "read         ", ROWS, "rows", took);
            }
            Ok(())
        })
}
