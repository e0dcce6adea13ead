//! A Redis that is not fit, not there, or not ours: each is told apart, in time, and nothing is written by half.

use std::time::Duration;

use anyhow::ensure;
use tidegate::cache::redis::{Batch, RedisCache, RedisError, RedisFault, RedisOptions, Wrote};
use tidegate_tests::services::redis::Redis;
use tokio::time::Instant;

use crate::common::{STREAM, batch, begin, cache_of, change, channel, header, view};

/// How long a call may take here.
const TIMEOUT: Duration = Duration::from_millis(500);
/// What a time-out may take longer on a machine that is busy.
const BUSY: Duration = Duration::from_secs(5);

fn hurried(url: &str) -> anyhow::Result<RedisCache> {
    let options = RedisOptions {
        timeout: TIMEOUT,
        ..RedisOptions::single(url)
    };
    Ok(RedisCache::new(&options, STREAM)?)
}

/// That this is what is wrong, and that the message says so and where.
fn is(error: &RedisError, fault: RedisFault, parts: &[&str]) -> anyhow::Result<()> {
    ensure!(error.fault() == fault, "{:?}: {error}", error.fault());
    let text = error.to_string();
    ensure!(parts.iter().all(|part| text.contains(part)), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_replica_is_read_only() -> anyhow::Result<()> {
    let primary = Redis::start(&[]).await?;
    let rows = [(1, change("JFK", "a", Some("1")))];
    let current = begin(&cache_of(&primary)?, 0, 10, &rows).await?;
    let replica = Redis::replica_of(&primary).await?;
    let cache = cache_of(&replica)?;
    let error = cache.check().await.unwrap_err();
    is(
        &error,
        RedisFault::ReadOnly,
        &[&replica.address(), "role is slave", "primary"],
    )?;
    let next = header(&current.generation, 20);
    let changes = batch(&[(11, change("JFK", "a", None))]);
    let error = cache
        .write(0, Some(&current), &next, &changes)
        .await
        .unwrap_err();
    is(
        &error,
        RedisFault::ReadOnly,
        &[&replica.address(), "tg:{departures/0}"],
    )?;
    ensure!(
        view(&cache, 0, "JFK").await?.1.len() == 1,
        "reading a replica works"
    );
    Ok(())
}

#[tokio::test]
async fn a_full_server_writes_nothing_of_a_batch_and_is_still_read() -> anyhow::Result<()> {
    let redis = Redis::start(&["--maxmemory", "16mb"]).await?;
    let cache = cache_of(&redis)?;
    ensure!(cache.check().await?.unseen.is_empty());
    let mut seen = begin(&cache, 0, 10, &[(1, change("JFK", "a", Some("1")))]).await?;
    let big = "x".repeat(1 << 20);
    let error = loop {
        let at: u64 = seen.applied.as_str().parse()?;
        let next = header(&seen.generation, at + 1);
        let changes = batch(&[(at + 1, change("JFK", &at.to_string(), Some(&big)))]);
        match cache.write(0, Some(&seen), &next, &changes).await {
            Ok(wrote) => ensure!(wrote == Wrote::Written, "{wrote:?}"),
            Err(error) => break error,
        }
        seen = next;
        ensure!(at < 100, "it is never full");
    };
    is(&error, RedisFault::Full, &[&redis.address(), "maxmemory"])?;
    ensure!(cache.header(0).await? == Some(seen.clone()));
    let (walk, rows) = view(&cache, 0, "JFK").await?;
    ensure!(walk.last_change() == Some(&seen.applied) && rows.len() > 2);
    redis.cli(&["config", "set", "maxmemory", "64mb"]).await?;
    let at: u64 = seen.applied.as_str().parse()?;
    let changes = batch(&[(at + 1, change("JFK", "b", Some("1")))]);
    let wrote = cache
        .write(0, Some(&seen), &header(&seen.generation, at + 1), &changes)
        .await?;
    ensure!(wrote == Wrote::Written, "room heals it");
    Ok(())
}

#[tokio::test]
async fn a_server_that_evicts_is_refused() -> anyhow::Result<()> {
    for policy in ["allkeys-lru", "volatile-ttl"] {
        let redis = Redis::start(&["--maxmemory-policy", policy]).await?;
        let error = cache_of(&redis)?.check().await.unwrap_err();
        is(
            &error,
            RedisFault::Evicting,
            &[&redis.address(), policy, "noeviction"],
        )?;
    }
    let redis = Redis::start(&[]).await?;
    let checked = cache_of(&redis)?.check().await?;
    ensure!(
        checked.versions.len() == 1 && checked.unseen.is_empty(),
        "{checked:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_is_told_and_not_shown() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    redis
        .cli(&["config", "set", "requirepass", "right-one"])
        .await?;
    for url in [
        redis.url(),
        format!("redis://:s3cret-guess@{}", redis.address()),
    ] {
        let error = hurried(&url)?.header(0).await.unwrap_err();
        is(&error, RedisFault::WrongPassword, &[&redis.address()])?;
        ensure!(!error.to_string().contains("s3cret-guess"), "{error}");
    }
    let login = Some((String::new(), "right-one".to_owned()));
    let options = RedisOptions {
        login,
        ..RedisOptions::single(&redis.url())
    };
    ensure!(
        RedisCache::new(&options, STREAM)?
            .header(0)
            .await?
            .is_none()
    );
    Ok(())
}

#[tokio::test]
async fn another_layout_and_keys_of_others_are_left_alone() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let current = begin(&cache, 0, 10, &[]).await?;
    redis
        .cli(&["hset", "tg:{departures/0}", "layout", "2"])
        .await?;
    redis
        .cli(&["hset", "tg:{departures/1}", "colour", "blue"])
        .await?;
    redis
        .cli(&["set", "tg:{departures/2}", "something"])
        .await?;
    let before = redis.cli(&["debug", "digest"]).await?;
    let next = header(&current.generation, 20);
    for (partition, fault, said) in [
        (
            0,
            RedisFault::OtherLayout,
            "its layout is \"2\", and this version reads and writes 1",
        ),
        (1, RedisFault::NotOurs, "something else"),
        (2, RedisFault::NotOurs, "WRONGTYPE"),
    ] {
        let key = format!("tg:{{departures/{partition}}}");
        let parts = [said, &key];
        is(&cache.header(partition).await.unwrap_err(), fault, &parts)?;
        is(
            &cache
                .write(partition, None, &next, &Batch::default())
                .await
                .unwrap_err(),
            fault,
            &parts,
        )?;
        let page = cache
            .page(partition, &next.generation, &channel("JFK"), None)
            .await;
        is(&page.unwrap_err(), fault, &parts)?;
        is(
            &cache
                .manifest(partition, &next.generation, None)
                .await
                .unwrap_err(),
            fault,
            &parts,
        )?;
        is(
            &cache.flip(partition, None, &next).await.unwrap_err(),
            fault,
            &parts,
        )?;
        is(
            &cache.sweep(partition, Duration::ZERO).await.unwrap_err(),
            fault,
            &parts,
        )?;
        is(&cache.drop_all(partition).await.unwrap_err(), fault, &parts)?;
    }
    ensure!(redis.cli(&["debug", "digest"]).await? == before);
    Ok(())
}

#[tokio::test]
async fn what_is_no_header_and_no_row_is_damaged_and_nothing_else() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let current = begin(&cache, 0, 10, &[(1, change("JFK", "a", Some("1")))]).await?;
    let generation = &current.generation;
    let rows = format!("tg:{{departures/0}}:{generation}:rows:JFK");
    redis.cli(&["hset", &rows, "=a", "nonsense"]).await?;
    let page = cache.page(0, generation, &channel("JFK"), None).await;
    is(
        &page.unwrap_err(),
        RedisFault::Damaged,
        &["a row", "rebuild"],
    )?;
    let field = format!("header:{generation}");
    redis
        .cli(&["hset", "tg:{departures/0}", &field, "{\"epoch\":1}"])
        .await?;
    is(
        &cache.header(0).await.unwrap_err(),
        RedisFault::Damaged,
        &["header"],
    )?;
    let next = header(generation, 20);
    let wrote = cache
        .write(0, Some(&current), &next, &Batch::default())
        .await;
    is(&wrote.unwrap_err(), RedisFault::Damaged, &["header"])?;
    Ok(())
}

#[tokio::test]
async fn a_server_that_hangs_costs_its_callers_the_time_out_and_heals() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let cache = hurried(&redis.url())?;
    let current = begin(&cache, 0, 10, &[(1, change("JFK", "a", Some("1")))]).await?;
    redis.freeze()?;
    let began = Instant::now();
    let next = header(&current.generation, 20);
    let changes = batch(&[(11, change("JFK", "b", Some("1")))]);
    let name = channel("JFK");
    let (wrote, page, checked) = tokio::join!(
        cache.write(0, Some(&current), &next, &changes),
        cache.page(0, &current.generation, &name, None),
        cache.check(),
    );
    // The second time it is the new connection that hangs.
    let header_then = cache.header(0).await;
    ensure!(
        began.elapsed() < 2 * TIMEOUT + BUSY,
        "{:?}",
        began.elapsed()
    );
    for error in [
        wrote.unwrap_err(),
        page.unwrap_err(),
        checked.unwrap_err(),
        header_then.unwrap_err(),
    ] {
        is(
            &error,
            RedisFault::Unavailable,
            &[&redis.address(), "no answer within 500 ms"],
        )?;
    }
    redis.thaw()?;
    // What was sent before may have been written: the header says, and a replay is harmless.
    let there = healed(&cache).await?;
    if there == current {
        ensure!(cache.write(0, Some(&current), &next, &changes).await? == Wrote::Written);
    } else {
        ensure!(there == next);
        let again = cache.write(0, Some(&current), &next, &changes).await?;
        ensure!(again == Wrote::Conflict(Some(next.clone())), "{again:?}");
    }
    ensure!(view(&cache, 0, "JFK").await?.1.len() == 2);
    Ok(())
}

async fn healed(cache: &RedisCache) -> anyhow::Result<tidegate::cache::redis::Header> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match cache.header(0).await {
            Ok(found) => return found.ok_or_else(|| anyhow::anyhow!("the header is gone")),
            Err(error) => ensure!(
                error.fault() == RedisFault::Unavailable && Instant::now() < until,
                "{error}"
            ),
        }
    }
}

#[tokio::test]
async fn a_server_that_was_killed_heals_by_itself() -> anyhow::Result<()> {
    let mut redis = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]).await?;
    let cache = hurried(&redis.url())?;
    let current = begin(&cache, 0, 10, &[(1, change("JFK", "a", Some("1")))]).await?;
    redis.kill()?;
    let error = cache.header(0).await.unwrap_err();
    is(&error, RedisFault::Unavailable, &[&redis.address()])?;
    redis.restart().await?;
    ensure!(healed(&cache).await? == current);
    let next = header(&current.generation, 20);
    let changes = batch(&[(11, change("JFK", "a", None))]);
    ensure!(cache.write(0, Some(&current), &next, &changes).await? == Wrote::Written);
    redis.cli(&["script", "flush"]).await?;
    ensure!(
        view(&cache, 0, "JFK").await?.1.is_empty(),
        "scripts come back by themselves"
    );
    Ok(())
}
