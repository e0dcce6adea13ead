//! What the tests of the cache have in common: a log of changes, and its fold in memory to compare with.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use tidegate::{
    cache::{
        MemoryCache,
        redis::{
            Batch, CachedRow, DecimalOffset, Flipped, Generation, Header, Page, RedisCache,
            RedisOptions, Walk, Wrote,
        },
    },
    model::{Change, Channel, Epoch, Offset, RowId},
};
use tidegate_tests::services::redis::Redis;

pub(crate) const STREAM: &str = "departures";

pub(crate) fn cache_of(redis: &Redis) -> anyhow::Result<RedisCache> {
    Ok(RedisCache::new(
        &RedisOptions::single(&redis.url()),
        STREAM,
    )?)
}

pub(crate) fn channel(name: &str) -> Channel {
    Channel::new(STREAM, name).expect("tests name channels well")
}

pub(crate) fn offset(number: u64) -> DecimalOffset {
    Offset::new(number).into()
}

pub(crate) fn change(name: &str, row: &str, data: Option<&str>) -> Change {
    Change {
        channel: channel(name),
        row: RowId::new(row).expect("tests name rows well"),
        data: data.map(|data| data.to_owned().into()),
        ts_ms: 1_373_493_600_000,
    }
}

/// A header of a complete fold up to there.
pub(crate) fn header(generation: &Generation, applied: u64) -> Header {
    Header {
        epoch: Epoch::new("e1").expect("it is an epoch"),
        generation: generation.clone(),
        fold_id: "f1".to_owned(),
        applied: offset(applied),
        lineage: "3".to_owned(),
        proven_ms: 1_700_000_000_000,
        since: offset(0),
        settled: offset(0),
        complete: true,
        written_at_ms: 1_700_000_000_000,
    }
}

pub(crate) fn batch(changes: &[(u64, Change)]) -> Batch {
    let mut batch = Batch::default();
    for (at, change) in changes {
        batch.fold(change, &offset(*at));
    }
    batch
}

/// Writes the first batch of a new generation and makes it the current one.
pub(crate) async fn begin(
    cache: &RedisCache,
    partition: u32,
    applied: u64,
    changes: &[(u64, Change)],
) -> anyhow::Result<Header> {
    let header = header(&Generation::random(), applied);
    let wrote = cache
        .write(partition, None, &header, &batch(changes))
        .await?;
    anyhow::ensure!(wrote == Wrote::Written, "{wrote:?}");
    let current = cache.header(partition).await?;
    let flipped = cache.flip(partition, current.as_ref(), &header).await?;
    anyhow::ensure!(flipped == Flipped::Flipped, "{flipped:?}");
    Ok(header)
}

/// The view as it stands, which must be whole and of one generation.
pub(crate) async fn view(
    cache: &RedisCache,
    partition: u32,
    name: &str,
) -> anyhow::Result<(Walk, BTreeMap<RowId, CachedRow>)> {
    let header = cache
        .header(partition)
        .await?
        .context("there is no header")?;
    let (mut walk, mut rows) = (Walk::default(), BTreeMap::new());
    while !walk.is_whole() {
        let name = channel(name);
        let page = cache.page(partition, &header.generation, &name, walk.after());
        let Page::Page(page) = page.await? else {
            bail!("no page of {name}");
        };
        walk.take(&page)
            .map_err(|turned| anyhow::anyhow!("{turned:?}"))?;
        rows.extend(page.rows);
    }
    Ok((walk, rows))
}

/// The whole manifest.
pub(crate) async fn manifest(
    cache: &RedisCache,
    partition: u32,
) -> anyhow::Result<BTreeMap<String, DecimalOffset>> {
    let header = cache
        .header(partition)
        .await?
        .context("there is no header")?;
    let mut channels = BTreeMap::new();
    loop {
        let after = channels
            .last_key_value()
            .map(|(name, _): (&String, _)| name.clone());
        let page = cache
            .manifest(partition, &header.generation, after.as_deref())
            .await?;
        let Page::Page(page) = page else {
            bail!("no manifest");
        };
        channels.extend(page.channels);
        if !page.more {
            return Ok(channels);
        }
    }
}

/// A view of the memory's fold, in the words of the cache.
pub(crate) fn expected(memory: &MemoryCache, name: &str) -> BTreeMap<RowId, CachedRow> {
    let rows = memory.view(&channel(name)).map(|view| view.rows.clone());
    let row = |(id, row): (RowId, tidegate::model::Row)| {
        let row = CachedRow {
            offset: row.offset.into(),
            ts_ms: row.ts_ms,
            data: row.data,
        };
        (id, row)
    };
    rows.unwrap_or_default().into_iter().map(row).collect()
}
