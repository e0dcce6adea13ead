//! Pages: views and manifests larger than a reply, read while they are written to.

use std::collections::BTreeMap;

use anyhow::{bail, ensure};
use tidegate::{
    cache::redis::{
        Batch, CALLS_MAX, CachedRow, DecimalOffset, Generation, Header, PAGE_BYTES_MAX,
        PAGE_CHANNELS_MAX, PAGE_ROWS_MAX, Page, RedisCache, Turned, Walk, Wrote,
    },
    model::{Change, RowId},
};
use tidegate_tests::services::redis::Redis;

use crate::common::{batch, begin, cache_of, change, channel, header, manifest, offset, view};

const ROWS: u64 = 50_000;
/// Rows of a batch that fills the view.
const STEP: u64 = 5_000;

fn id(number: u64) -> String {
    format!("r{number:06}")
}

fn fill(first: u64, last: u64) -> Vec<(u64, Change)> {
    let row = |at| {
        (
            at,
            change(
                "JFK",
                &id(at),
                Some(&format!("{{\"at\":{at},\"text\":\"{:80}\"}}", "")),
            ),
        )
    };
    (first..=last).map(row).collect()
}

async fn filled(cache: &RedisCache) -> anyhow::Result<Header> {
    let mut seen = begin(cache, 0, STEP, &fill(1, STEP)).await?;
    for step in 1..ROWS / STEP {
        let (first, last) = (step * STEP + 1, (step + 1) * STEP);
        let next = header(&seen.generation, last);
        let wrote = cache
            .write(0, Some(&seen), &next, &batch(&fill(first, last)))
            .await?;
        ensure!(wrote == Wrote::Written, "{wrote:?}");
        seen = next;
    }
    Ok(seen)
}

/// A change of any row, there or not, in an order that looks like none: upserts and deletes.
fn any_change(at: u64) -> Change {
    let row = id(at.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (ROWS * 2));
    let data = (!at.is_multiple_of(3)).then(|| format!("{{\"at\":{at}}}"));
    change("JFK", &row, data.as_deref())
}

fn apply(rows: &mut BTreeMap<RowId, CachedRow>, at: u64, change: &Change) {
    match &change.data {
        Some(data) => {
            let row = CachedRow {
                offset: offset(at),
                ts_ms: change.ts_ms,
                data: data.clone(),
            };
            rows.insert(change.row.clone(), row);
        }
        None => drop(rows.remove(&change.row)),
    }
}

#[tokio::test]
async fn a_large_view_read_while_it_changes_is_the_fold_at_its_last_page() -> anyhow::Result<()> {
    const CHANGES: u64 = 40;
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let mut seen = filled(&cache).await?;
    let (mut walk, mut rows, mut log) = (Walk::default(), BTreeMap::new(), Vec::new());
    while !walk.is_whole() {
        let first = ROWS + 1 + log.len() as u64;
        let changes: Vec<_> = (first..first + CHANGES)
            .map(|at| (at, any_change(at)))
            .collect();
        let next = header(&seen.generation, first + CHANGES - 1);
        let wrote = cache.write(0, Some(&seen), &next, &batch(&changes)).await?;
        ensure!(wrote == Wrote::Written, "{wrote:?}");
        (seen, _) = (next, log.extend(changes));
        let page = cache
            .page(0, &seen.generation, &channel("JFK"), walk.after())
            .await?;
        let Page::Page(page) = page else {
            bail!("no page")
        };
        ensure!(page.header == seen && page.rows.len() <= PAGE_ROWS_MAX);
        walk.take(&page)
            .map_err(|turned| anyhow::anyhow!("{turned:?}"))?;
        rows.extend(page.rows);
    }
    ensure!(log.len() as u64 > ROWS / PAGE_ROWS_MAX as u64 * CHANGES);
    let before_changes = rows.clone();
    for (at, change) in &log {
        if Some(&offset(*at)) > walk.row_base(&change.row) {
            apply(&mut rows, *at, change);
        }
    }
    ensure!(rows != before_changes, "the changes made no difference");
    let mut fold = BTreeMap::new();
    fill(1, ROWS)
        .iter()
        .chain(&log)
        .for_each(|(at, change)| apply(&mut fold, *at, change));
    ensure!(walk.fence() == Some(&seen.applied));
    ensure!(rows == fold);
    ensure!(view(&cache, 0, "JFK").await?.1 == fold);
    Ok(())
}

#[tokio::test]
async fn readers_and_a_writer_at_once_never_see_half_a_batch() -> anyhow::Result<()> {
    const BATCHES: u64 = 150;
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    // Each batch gives all rows its own number, so whoever sees two numbers in one page saw half a batch.
    let rows = |at: u64| {
        let row = |r: u64| {
            (
                at * 10 + r,
                change("JFK", &r.to_string(), Some(&at.to_string())),
            )
        };
        batch(&(0..10).map(row).collect::<Vec<_>>())
    };
    let first = begin(&cache, 0, 9, &[]).await?;
    let write = async {
        let mut seen = first.clone();
        for at in 1..=BATCHES {
            let next = header(&seen.generation, at * 10 + 9);
            let wrote = cache.write(0, Some(&seen), &next, &rows(at)).await?;
            ensure!(wrote == Wrote::Written, "{wrote:?}");
            seen = next;
        }
        Ok(())
    };
    let read = async {
        let (mut pages, mut newest) = (0_u64, offset(0));
        while newest != offset(BATCHES * 10 + 9) {
            let page = cache
                .page(0, &first.generation, &channel("JFK"), None)
                .await?;
            let Page::Page(page) = page else {
                bail!("no page")
            };
            ensure!(page.header.applied >= newest, "it went back");
            newest = page.header.applied;
            let data: Vec<_> = page.rows.iter().map(|(_, row)| row.data.clone()).collect();
            let number = newest.as_str().strip_suffix('9').unwrap_or_default();
            ensure!(
                data.iter().all(|data| *data == number),
                "{number}: {data:?}"
            );
            pages += 1;
        }
        Ok(pages)
    };
    let (_, pages) = tokio::try_join!(write, read)?;
    ensure!(pages > 10, "{pages}");
    Ok(())
}

#[tokio::test]
async fn a_flip_between_two_pages_is_told() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let old = begin(&cache, 0, 3_000, &fill(1, 3_000)).await?;
    let mut walk = Walk::default();
    let page = cache
        .page(0, &old.generation, &channel("JFK"), None)
        .await?;
    let Page::Page(page) = page else {
        bail!("no page")
    };
    ensure!(page.more && page.rows.len() == PAGE_ROWS_MAX);
    ensure!(walk.take(&page).is_ok());
    let new = begin(&cache, 0, 2_000, &fill(1, 2_000)).await?;
    let page = cache
        .page(0, &old.generation, &channel("JFK"), walk.after())
        .await?;
    ensure!(page == Page::Elsewhere(Some(new.clone())));
    let page = cache
        .page(0, &new.generation, &channel("JFK"), walk.after())
        .await?;
    let Page::Page(page) = page else {
        bail!("no page")
    };
    ensure!(walk.take(&page) == Err(Turned::OtherGeneration));
    Ok(())
}

#[tokio::test]
async fn pages_are_bounded_in_bytes_and_a_row_may_be_larger() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let (big, small) = (
        "x".repeat(PAGE_BYTES_MAX + 1),
        "y".repeat(PAGE_BYTES_MAX / 3),
    );
    let rows = [
        ("a", &big),
        ("b", &small),
        ("c", &small),
        ("d", &small),
        ("e", &big),
        ("f", &small),
    ];
    let rows: Vec<_> = (1..)
        .zip(rows)
        .map(|(at, (row, data))| (at, change("JFK", row, Some(data))))
        .collect();
    let current = begin(&cache, 0, 10, &rows).await?;
    let (mut walk, mut pages) = (Walk::default(), Vec::new());
    while !walk.is_whole() {
        let page = cache
            .page(0, &current.generation, &channel("JFK"), walk.after())
            .await?;
        let Page::Page(page) = page else {
            bail!("no page")
        };
        ensure!(walk.take(&page).is_ok());
        pages.push(
            page.rows
                .iter()
                .map(|(id, _)| id.as_str())
                .collect::<String>(),
        );
    }
    ensure!(pages == ["a", "bc", "d", "e", "f"], "{pages:?}");
    Ok(())
}

#[tokio::test]
async fn a_large_manifest_is_read_by_pages() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let most = PAGE_CHANNELS_MAX as u64 + 500;
    // Names of which one is the beginning of another, with letters on both sides of the space's.
    let name = |at: u64| {
        ["", "!", "-", "~"].map(|end| format!("c{}{end}", at / 4))[(at % 4) as usize].clone()
    };
    let mut seen: Option<Header> = None;
    let generation = Generation::random();
    for step in 0..=most / 2_000 {
        let (first, last) = (step * 2_000 + 1, most.min((step + 1) * 2_000));
        let rows: Vec<_> = (first..=last)
            .map(|at| (at, change(&name(at), "", Some("1"))))
            .collect();
        let next = header(&generation, last);
        ensure!(cache.write(0, seen.as_ref(), &next, &batch(&rows)).await? == Wrote::Written);
        seen = Some(next);
    }
    let Some(seen) = seen else { bail!("no header") };
    cache.flip(0, None, &seen).await?;
    let known: BTreeMap<String, DecimalOffset> =
        (1..=most).map(|at| (name(at), offset(at))).collect();
    ensure!(known.len() as u64 == most && manifest(&cache, 0).await? == known);
    let (walk, rows) = view(&cache, 0, &name(5)).await?;
    ensure!(rows.len() == 1 && walk.last_change() == Some(&offset(5)));
    let again = header(&generation, most + 1);
    let rows = batch(&[(most + 1, change(&name(5), "", Some("2")))]);
    ensure!(cache.write(0, Some(&seen), &again, &rows).await? == Wrote::Written);
    ensure!(manifest(&cache, 0).await?[&name(5)] == offset(most + 1));
    ensure!(
        cache
            .write(
                0,
                Some(&again),
                &header(&generation, most + 2),
                &Batch::default()
            )
            .await?
            == Wrote::Written
    );
    Ok(())
}

#[tokio::test]
async fn many_more_calls_than_the_connection_takes_are_all_answered() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let current = begin(&cache, 0, 2_000, &fill(1, 2_000)).await?;
    let name = channel("JFK");
    let calls = (0..10 * CALLS_MAX).map(|_| cache.page(0, &current.generation, &name, None));
    for page in futures_util::future::join_all(calls).await {
        let Page::Page(page) = page? else {
            bail!("no page")
        };
        ensure!(page.header == current && page.rows.len() == PAGE_ROWS_MAX);
    }
    let clients = redis.cli(&["client", "list"]).await?;
    ensure!(
        clients.lines().count() == 2,
        "one connection, and the asker's: {clients}"
    );
    Ok(())
}
