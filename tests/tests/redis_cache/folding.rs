//! Batches: compare-and-set, replays, zombies, generations.

use std::{collections::BTreeMap, time::Duration};

use anyhow::ensure;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tidegate::{
    cache::{
        MemoryCache,
        redis::{Batch, Flipped, Generation, Lost, Page, RedisCache, RedisFault, Wrote},
    },
    model::{Change, Offset},
};
use tidegate_tests::services::redis::Redis;

use crate::common::{
    batch, begin, cache_of, change, channel, expected, header, manifest, offset, view,
};

#[tokio::test]
async fn what_is_written_is_read_back() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    ensure!(cache.header(0).await?.is_none());
    let ids = ["", "!", "=", "a b", "\0\u{1}", "ä", "row"];
    let mut changes: Vec<_> = (1..)
        .zip(ids.map(|id| change("JFK", id, Some("{\"gate\": \"B 2\"}"))))
        .collect();
    changes.push((8, change("JFK-2", "x", Some("1"))));
    changes.push((9, change("JFK-2", "x", None)));
    let written = begin(&cache, 0, 12, &changes).await?;
    ensure!(cache.header(0).await? == Some(written.clone()));
    let (walk, rows) = view(&cache, 0, "JFK").await?;
    let mut names: Vec<_> = ids.to_vec();
    names.sort_unstable();
    ensure!(rows.keys().map(|id| id.as_str()).eq(names));
    ensure!(
        rows.values()
            .all(|row| row.data == "{\"gate\": \"B 2\"}" && row.ts_ms == 1_373_493_600_000)
    );
    ensure!(walk.last_change() == Some(&offset(7)) && walk.fence() == Some(&offset(12)));
    let (walk, rows) = view(&cache, 0, "JFK-2").await?;
    ensure!(rows.is_empty() && walk.last_change() == Some(&offset(9)));
    let (walk, rows) = view(&cache, 0, "JF").await?;
    ensure!(rows.is_empty() && walk.last_change().is_none());
    let named = BTreeMap::from([
        ("JFK".to_owned(), offset(7)),
        ("JFK-2".to_owned(), offset(9)),
    ]);
    ensure!(manifest(&cache, 0).await? == named);
    ensure!(cache.header(1).await?.is_none());
    Ok(())
}

#[tokio::test]
async fn offsets_of_129_digits_are_kept_and_ordered() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let long = |digit: &str| digit.repeat(129).parse().unwrap();
    let mut first = header(&Generation::random(), 0);
    first.applied = long("7");
    let mut changes = Batch::default();
    changes.fold(&change("JFK", "a", Some("1")), &long("6"));
    ensure!(cache.write(0, None, &first, &changes).await? == Wrote::Written);
    ensure!(cache.flip(0, None, &first).await? == Flipped::Flipped);
    let (walk, rows) = view(&cache, 0, "JFK").await?;
    ensure!(walk.fence() == Some(&long("7")) && walk.last_change() == Some(&long("6")));
    ensure!(rows.into_values().all(|row| row.offset == long("6")));
    let back = header(&first.generation, u64::MAX);
    let error = cache
        .write(0, Some(&first), &back, &Batch::default())
        .await
        .unwrap_err();
    ensure!(error.fault() == RedisFault::Refused, "{error}");
    Ok(())
}

#[tokio::test]
async fn a_conflict_says_the_header_and_writes_nothing() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let first = begin(&cache, 0, 10, &[(1, change("JFK", "a", Some("1")))]).await?;
    let second = header(&first.generation, 20);
    let changes = batch(&[
        (11, change("JFK", "a", Some("2"))),
        (12, change("LHR", "b", Some("3"))),
    ]);
    ensure!(cache.write(0, Some(&first), &second, &changes).await? == Wrote::Written);
    let before = redis.cli(&["debug", "digest"]).await?;
    let third = header(&first.generation, 30);
    let late = batch(&[
        (21, change("JFK", "a", None)),
        (22, change("CDG", "c", Some("4"))),
    ]);
    let conflict = Wrote::Conflict(Some(second.clone()));
    // A replay of the second batch, a zombie that last saw the first, and one that thinks there is nothing.
    ensure!(cache.write(0, Some(&first), &second, &changes).await? == conflict);
    let zombie = batch(&[(11, change("JFK", "a", None))]);
    ensure!(cache.write(0, Some(&first), &third, &zombie).await? == conflict);
    ensure!(cache.write(0, None, &third, &late).await? == conflict);
    ensure!(redis.cli(&["debug", "digest"]).await? == before);
    ensure!(cache.write(0, Some(&second), &third, &late).await? == Wrote::Written);
    let (_, rows) = view(&cache, 0, "JFK").await?;
    ensure!(rows.is_empty());
    Ok(())
}

#[tokio::test]
async fn of_two_writers_one_wins_each_batch_and_nothing_is_done_twice() -> anyhow::Result<()> {
    const BATCHES: u64 = 100;
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let first = begin(&cache, 0, 0, &[]).await?;
    let writer = |name: &'static str| {
        let (cache, mut seen) = (&cache, first.clone());
        async move {
            let (mut won, mut lost) = (0, 0);
            loop {
                let at: u64 = seen.applied.as_str().parse()?;
                if at == BATCHES {
                    return anyhow::Ok((won, lost));
                }
                let next = header(&seen.generation, at + 1);
                let row = change("JFK", &at.to_string(), Some(&format!("\"{name}\"")));
                match cache
                    .write(0, Some(&seen), &next, &batch(&[(at + 1, row)]))
                    .await?
                {
                    Wrote::Written => (won, seen) = (won + 1, next),
                    Wrote::Conflict(Some(there)) => (lost, seen) = (lost + 1, there),
                    other => anyhow::bail!("{other:?}"),
                }
            }
        }
    };
    let (a, b) = tokio::try_join!(writer("a"), writer("b"))?;
    ensure!(a.0 + b.0 == BATCHES && a.1 + b.1 > 0, "{a:?} {b:?}");
    let (_, rows) = view(&cache, 0, "JFK").await?;
    ensure!(rows.len() as u64 == BATCHES);
    Ok(())
}

#[tokio::test]
async fn a_generation_is_folded_beside_the_current_one_and_flipped_to() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let old = begin(&cache, 0, 10, &[(1, change("JFK", "old", Some("1")))]).await?;
    let building = header(&Generation::random(), 5);
    let rows = batch(&[(1, change("JFK", "new", Some("2")))]);
    ensure!(cache.write(0, None, &building, &rows).await? == Wrote::Written);
    let home = cache.home(0).await?;
    ensure!(home.current == Some(old.clone()) && home.of(&building.generation) == Some(&building));
    let of_the_building = cache
        .page(0, &building.generation, &channel("JFK"), None)
        .await?;
    ensure!(of_the_building == Page::Elsewhere(Some(old.clone())));
    // The old one goes on meanwhile: a flip on what was seen before is a conflict.
    let later = header(&old.generation, 11);
    ensure!(
        cache
            .write(0, Some(&old), &later, &Batch::default())
            .await?
            == Wrote::Written
    );
    ensure!(cache.flip(0, Some(&old), &building).await? == Flipped::Conflict(Some(later.clone())));
    let never = header(&building.generation, 6);
    ensure!(cache.flip(0, Some(&later), &never).await? == Flipped::Conflict(Some(later.clone())));
    ensure!(cache.flip(0, Some(&later), &building).await? == Flipped::Flipped);
    let (_, rows) = view(&cache, 0, "JFK").await?;
    ensure!(rows.keys().map(|id| id.as_str()).eq(["new"]));
    // Who writes to the old one is told so, and readers of the old one too.
    let zombie = header(&old.generation, 12);
    ensure!(
        cache
            .write(0, Some(&later), &zombie, &Batch::default())
            .await?
            == Wrote::Conflict(None)
    );
    let page = cache
        .page(0, &old.generation, &channel("JFK"), None)
        .await?;
    ensure!(page == Page::Elsewhere(Some(building.clone())));
    swept(&cache, 0, Duration::from_secs(3600)).await?;
    ensure!(cache.home(0).await?.dropped.is_empty());
    let left = redis.cli(&["keys", "*"]).await?;
    ensure!(!left.contains(old.generation.as_str()), "{left}");
    ensure!(view(&cache, 0, "JFK").await?.1.len() == 1);
    Ok(())
}

async fn swept(cache: &RedisCache, partition: u32, quiet: Duration) -> anyhow::Result<usize> {
    let mut channels = 0;
    loop {
        let swept = cache.sweep(partition, quiet).await?;
        channels += swept.channels;
        if !swept.more {
            return Ok(channels);
        }
    }
}

#[tokio::test]
async fn generations_that_nobody_goes_on_with_are_cleared_away_in_pieces() -> anyhow::Result<()> {
    const CHANNELS: u64 = 600;
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let current = begin(&cache, 0, 10, &[(1, change("JFK", "a", Some("1")))]).await?;
    let left = header(&Generation::random(), CHANNELS);
    let rows: Vec<_> = (1..=CHANNELS)
        .map(|at| (at, change(&format!("c{at}"), "a", Some("1"))))
        .collect();
    ensure!(cache.write(0, None, &left, &batch(&rows)).await? == Wrote::Written);
    ensure!(swept(&cache, 0, Duration::from_secs(3600)).await? == 0);
    ensure!(cache.home(0).await?.beside.len() == 1);
    ensure!(swept(&cache, 0, Duration::ZERO).await? as u64 == CHANNELS);
    ensure!(
        redis.cli(&["dbsize"]).await? == "4",
        "home, manifest, rows, ids"
    );
    let next = header(&left.generation, CHANNELS + 1);
    ensure!(
        cache
            .write(0, Some(&left), &next, &Batch::default())
            .await?
            == Wrote::Conflict(None)
    );
    ensure!(cache.header(0).await? == Some(current));
    cache.drop_all(0).await?;
    ensure!(cache.header(0).await?.is_none());
    swept(&cache, 0, Duration::ZERO).await?;
    ensure!(redis.cli(&["dbsize"]).await? == "1", "the home");
    Ok(())
}

#[tokio::test]
async fn lost_keys_are_lost_and_never_empty() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let rows = [
        (1, change("JFK", "a", Some("1"))),
        (2, change("LHR", "b", Some("1"))),
        (3, change("LHR", "b", None)),
    ];
    let name = |g: &Generation, what: &str| format!("tg:{{departures/0}}:{g}:{what}");
    for (key, lost) in [
        ("rows:JFK", Lost::Channel("JFK".to_owned())),
        ("ids:JFK", Lost::Channel("JFK".to_owned())),
        ("rows:LHR", Lost::Channel("LHR".to_owned())),
        ("manifest", Lost::Manifest),
    ] {
        let current = begin(&cache, 0, 10, &rows).await?;
        let next = header(&current.generation, 20);
        let touched = batch(&[
            (11, change("JFK", "a", Some("2"))),
            (12, change("LHR", "b", Some("2"))),
        ]);
        ensure!(redis.cli(&["del", &name(&current.generation, key)]).await? == "1");
        let before = redis.cli(&["debug", "digest"]).await?;
        ensure!(
            cache.write(0, Some(&current), &next, &touched).await? == Wrote::Lost(lost.clone()),
            "{key}"
        );
        ensure!(redis.cli(&["debug", "digest"]).await? == before);
        let gone = if let Lost::Channel(name) = &lost {
            name
        } else {
            "JFK"
        };
        let page = cache
            .page(0, &current.generation, &channel(gone), None)
            .await?;
        ensure!(page == Page::Lost(current.clone()), "{key}: {page:?}");
        let whole = cache.manifest(0, &current.generation, None).await?;
        ensure!(matches!(whole, Page::Lost(_)) == (lost == Lost::Manifest));
        // A channel that is not concerned goes on.
        if lost != Lost::Manifest {
            let other = batch(&[(11, change("CDG", "a", Some("2")))]);
            ensure!(cache.write(0, Some(&current), &next, &other).await? == Wrote::Written);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_cache_that_went_back_conflicts_with_its_writer() -> anyhow::Result<()> {
    let mut redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let first = begin(&cache, 0, 10, &[(1, change("JFK", "a", Some("1")))]).await?;
    let backup = redis.back_up().await?;
    let second = header(&first.generation, 20);
    let rows = batch(&[(11, change("JFK", "a", Some("2")))]);
    ensure!(cache.write(0, Some(&first), &second, &rows).await? == Wrote::Written);
    redis.go_back_to(&backup).await?;
    let third = header(&first.generation, 30);
    let wrote = loop {
        match cache
            .write(0, Some(&second), &third, &Batch::default())
            .await
        {
            Err(error) if error.fault() == RedisFault::Unavailable => {}
            other => break other?,
        }
    };
    ensure!(wrote == Wrote::Conflict(Some(first.clone())), "{wrote:?}");
    let again = cache.write(0, Some(&first), &second, &rows).await?;
    ensure!(again == Wrote::Written);
    Ok(())
}

#[tokio::test]
async fn a_batch_beyond_its_bound_or_out_of_place_is_refused() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let first = begin(&cache, 0, 10, &[]).await?;
    let next = header(&first.generation, 20);
    let big = "x".repeat(9 << 20);
    for changes in [
        batch(&[(11, change("JFK", "a", Some(&big)))]),
        batch(&[(10, change("JFK", "a", Some("1")))]),
        batch(&[(21, change("JFK", "a", Some("1")))]),
    ] {
        let error = cache
            .write(0, Some(&first), &next, &changes)
            .await
            .unwrap_err();
        ensure!(error.fault() == RedisFault::Refused, "{error}");
    }
    ensure!(cache.header(0).await? == Some(first));
    Ok(())
}

#[tokio::test]
async fn the_widest_batch_goes_through() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let rows: Vec<_> = (1..=10_000)
        .map(|at| (at, change("JFK", &format!("r{at}"), Some("1"))))
        .collect();
    let first = begin(&cache, 0, 10_000, &rows).await?;
    let half = |at| at <= 5_000;
    let data = |at| if half(at) { None } else { Some("2") };
    let rows: Vec<_> = (1..=10_000)
        .map(|at| (10_000 + at, change("JFK", &format!("r{at}"), data(at))))
        .collect();
    let next = header(&first.generation, 20_000);
    ensure!(cache.write(0, Some(&first), &next, &batch(&rows)).await? == Wrote::Written);
    let (_, rows) = view(&cache, 0, "JFK").await?;
    ensure!(rows.len() == 5_000 && rows.values().all(|row| row.data == "2"));
    Ok(())
}

/// Batches of changes of few rows in few channels.
fn batches() -> impl Strategy<Value = Vec<Vec<(u8, u8, Option<u8>)>>> {
    let change = (0..4_u8, 0..6_u8, prop::option::weighted(0.7, 0..9_u8));
    prop::collection::vec(prop::collection::vec(change, 0..20), 1..12)
}

#[test]
fn random_batches_make_the_views_that_memory_has() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let redis = runtime.block_on(Redis::start(&[]))?;
    let cache = cache_of(&redis)?;
    let partition = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config {
        cases: 60,
        failure_persistence: None,
        ..Config::default()
    });
    runner.run(&batches(), |batches| {
        partition.set(partition.get() + 1);
        let same = runtime.block_on(fold_both(&cache, partition.get(), &batches));
        same.map_err(|error| TestCaseError::fail(error.to_string()))
    })?;
    Ok(())
}

async fn fold_both(
    cache: &RedisCache,
    partition: u32,
    batches: &[Vec<(u8, u8, Option<u8>)>],
) -> anyhow::Result<()> {
    let mut memory = MemoryCache::default();
    let (mut seen, mut at) = (begin(cache, partition, 0, &[]).await?, 0);
    for changes in batches {
        let mut folded = Batch::default();
        for (name, row, data) in changes {
            at += 1;
            let data = data.map(|data| data.to_string());
            let change: Change = change(&format!("c{name}"), &row.to_string(), data.as_deref());
            folded.fold(&change, &offset(at));
            memory.apply(&change, Offset::new(at));
        }
        let next = header(&seen.generation, at);
        let wrote = cache.write(partition, Some(&seen), &next, &folded).await?;
        ensure!(wrote == Wrote::Written, "{wrote:?}");
        seen = next;
    }
    for name in ["c0", "c1", "c2", "c3"] {
        let (walk, rows) = view(cache, partition, name).await?;
        ensure!(rows == expected(&memory, name), "{name}");
        let last = memory
            .view(&channel(name))
            .map(|view| view.last_change.into());
        ensure!(walk.last_change() == last.as_ref(), "{name}");
    }
    let known = memory
        .manifest()
        .map(|(channel, last)| (channel.name().to_owned(), last.into()));
    ensure!(manifest(cache, partition).await? == known.collect());
    Ok(())
}
