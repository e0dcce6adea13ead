//! That a log is the one that was read: what keeps its name, and what gives it another one, for all who read it the same.

use tidegate::{
    model::{Epoch, Offset},
    source::{Fetch, Source, Wanted, redis::RedisSource},
};
use tidegate_tests::services::redis::Redis;

use super::common::{B6, LOG, PLENTY, add, name, read, source};

/// A log with three entries, and a reader who has read them.
async fn begun() -> anyhow::Result<(Redis, RedisSource, Fetch)> {
    let redis = Redis::start(&[]).await?;
    for value in ["1", "2", "3"] {
        add(&redis, B6, Some(value)).await?;
    }
    let mut source = source(&redis)?;
    let (values, fetch) = read(&mut source, None).await?;
    assert_eq!(values, ["1", "2", "3"]);
    assert_eq!((fetch.start, fetch.upto), (Offset::BEFORE_ALL, fetch.head));
    Ok((redis, source, fetch))
}

/// Somebody else, who goes on from where the log was read.
fn another(redis: &Redis, fetch: &Fetch) -> anyhow::Result<RedisSource> {
    let mut another = source(redis)?;
    another.resume(&fetch.epoch, fetch.upto, fetch.lineage.as_deref());
    Ok(another)
}

/// All who come, from wherever, find the same log, which is not the one that was read.
async fn agrees_on_another(
    redis: &Redis,
    source: &mut RedisSource,
    was: &Fetch,
) -> anyhow::Result<Epoch> {
    let mut second = another(redis, was)?;
    let (_, found) = read(source, Some(was.upto)).await?;
    assert_ne!(found.epoch, was.epoch);
    assert!(found.records.is_empty(), "{found:?}");
    assert_eq!(found.upto, found.head);
    let (_, theirs) = read(&mut second, Some(was.upto)).await?;
    assert_eq!(theirs.epoch, found.epoch);
    assert_eq!(name(redis).await?, found.epoch);
    Ok(found.epoch)
}

#[tokio::test]
async fn a_log_keeps_its_name_while_it_is_written_read_trimmed_and_its_connections_are_cut()
-> anyhow::Result<()> {
    let (redis, mut source, mut fetch) = begun().await?;
    let epoch = fetch.epoch.clone();
    for (number, command) in [
        &["CLIENT", "KILL", "TYPE", "normal"][..],
        &["XTRIM", LOG, "MAXLEN", "2"],
        &["XTRIM", LOG, "MAXLEN", "0"],
        &["SCRIPT", "FLUSH"],
        &["DEBUG", "RELOAD"],
    ]
    .into_iter()
    .enumerate()
    {
        let value = format!("{}", number + 4);
        redis.cli(command).await.ok();
        add(&redis, B6, Some(&value)).await?;
        let mut second = another(&redis, &fetch)?;
        let (values, theirs) = read(&mut second, Some(fetch.upto)).await?;
        // A connection that was cut fails once.
        let mine = match read(&mut source, Some(fetch.upto)).await {
            Err(_) => read(&mut another(&redis, &fetch)?, Some(fetch.upto)).await?,
            mine => mine?,
        };
        assert_eq!(
            (values, mine.0),
            (vec![value.clone()], vec![value]),
            "{command:?}"
        );
        assert_eq!(
            (&theirs.epoch, &mine.1.epoch),
            (&epoch, &epoch),
            "{command:?}"
        );
        fetch = theirs;
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_that_is_deleted_is_another_log_before_and_after_it_is_made_anew()
-> anyhow::Result<()> {
    let (redis, mut source, fetch) = begun().await?;
    redis.cli(&["DEL", LOG]).await?;
    let gone = agrees_on_another(&redis, &mut source, &fetch).await?;
    add(&redis, B6, Some("4")).await?;
    assert_eq!(name(&redis).await?, gone);

    // Nobody looks while it is gone.
    let (redis, mut source, fetch) = begun().await?;
    redis.cli(&["DEL", LOG]).await?;
    for value in ["4", "5", "6", "7", "8"] {
        add(&redis, B6, Some(value)).await?;
    }
    agrees_on_another(&redis, &mut source, &fetch).await?;
    // And who was never there knows that it is not the old one, though he knows of no entry of that.
    let (redis, _, fetch) = begun().await?;
    redis.cli(&["DEL", LOG]).await?;
    add(&redis, B6, Some("4")).await?;
    assert_ne!(name(&redis).await?, fetch.epoch);
    Ok(())
}

#[tokio::test]
async fn a_server_that_restarts_with_all_nothing_or_an_older_state_has_another_log()
-> anyhow::Result<()> {
    // With all that it had: nobody can know that.
    let (mut redis, mut source, fetch) = begun().await?;
    let whole = redis.back_up().await?;
    redis.go_back_to(&whole).await?;
    let mut second = another(&redis, &fetch)?;
    source.fetch(Some(fetch.upto), PLENTY).await.ok();
    let (_, found) = read(&mut second, Some(fetch.upto)).await?;
    assert_ne!(found.epoch, fetch.epoch);
    assert_eq!(
        read(&mut self::source(&redis)?, None).await?.0,
        ["1", "2", "3"]
    );

    // With what it had some time ago.
    let (mut redis, _, _) = begun().await?;
    let older = redis.back_up().await?;
    let mut source = self::source(&redis)?;
    add(&redis, B6, Some("4")).await?;
    let (_, fetch) = read(&mut source, None).await?;
    redis.go_back_to(&older).await?;
    add(&redis, B6, Some("another")).await?;
    source.fetch(Some(fetch.upto), PLENTY).await.ok();
    let mut second = another(&redis, &fetch)?;
    let (_, found) = read(&mut second, Some(fetch.upto)).await?;
    assert_ne!(found.epoch, fetch.epoch);
    assert_eq!(name(&redis).await?, found.epoch);

    // With nothing.
    let (mut redis, _, fetch) = begun().await?;
    redis.kill()?;
    redis.restart().await?;
    let mut second = another(&redis, &fetch)?;
    let (values, found) = read(&mut second, Some(fetch.upto)).await?;
    assert_ne!(found.epoch, fetch.epoch);
    assert!(
        values.is_empty() && found.head == Offset::BEFORE_ALL,
        "{found:?}"
    );
    Ok(())
}

#[tokio::test]
async fn an_entry_that_was_read_and_is_missing_makes_it_another_log() -> anyhow::Result<()> {
    // The end of the log was lost, and others wrote on: as of a server that came back without its last second.
    let (redis, mut source, fetch) = begun().await?;
    let last = redis
        .cli(&["XREVRANGE", LOG, "+", "-", "COUNT", "1"])
        .await?;
    let last = last.lines().next().unwrap_or_default().to_owned();
    redis.cli(&["COPY", LOG, "aside:{board/0}"]).await?;
    redis.cli(&["XDEL", "aside:{board/0}", &last]).await?;
    // The number of deletes is forgotten with it: a copy by hand.
    redis.cli(&["DEL", LOG]).await?;
    redis.cli(&["XADD", LOG, "1-1", "k", B6, "v", "1"]).await?;
    let ms: u64 = last.split('-').next().unwrap_or_default().parse()?;
    for seq in 0..4 {
        redis
            .cli(&[
                "XADD",
                LOG,
                &format!("{}-{seq}", ms + 1),
                "k",
                B6,
                "v",
                "new",
            ])
            .await?;
    }
    agrees_on_another(&redis, &mut source, &fetch).await?;
    Ok(())
}

#[tokio::test]
async fn who_is_behind_what_was_trimmed_is_told_where_the_log_begins() -> anyhow::Result<()> {
    let (redis, _, fetch) = begun().await?;
    let mut early = source(&redis)?;
    let (_, all) = read(&mut early, None).await?;
    for number in 4..10 {
        add(&redis, B6, Some(&number.to_string())).await?;
    }
    redis.cli(&["XTRIM", LOG, "MAXLEN", "2"]).await?;
    let answer = early.fetch(Some(all.upto), PLENTY).await?;
    assert_eq!(answer.epoch, fetch.epoch);
    assert!(
        answer.start > all.upto && answer.records.is_empty(),
        "{answer:?}"
    );
    assert_eq!(answer.upto, answer.start);
    let (values, _) = read(&mut early, Some(answer.upto)).await?;
    assert_eq!(values, ["8", "9"]);
    Ok(())
}

#[tokio::test]
async fn events_are_begun_by_age_and_further_back_for_who_waits() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    for number in 1..=300 {
        redis
            .cli(&[
                "XADD",
                LOG,
                &format!("{number}-0"),
                "k",
                B6,
                "v",
                &number.to_string(),
            ])
            .await?;
    }
    let from = |behind: Option<u64>, newest| {
        let redis = &redis;
        async move {
            let mut source = source(redis)?;
            let wanted = Wanted {
                age: std::time::Duration::from_secs(60),
                behind: behind.map(|ms| Offset::new(ms << 22)),
                newest,
            };
            let begun = source.begin(wanted).await?;
            let (values, _) = read(&mut source, begun).await?;
            anyhow::Ok((values.first().cloned(), values.len()))
        }
    };
    // All are older than that.
    assert_eq!(from(None, 10).await?, (None, 0));
    assert_eq!(from(Some(298), 10).await?, (Some("299".to_owned()), 2));
    assert_eq!(from(Some(10), 200).await?, (Some("101".to_owned()), 200));
    assert_eq!(from(Some(0), 1000).await?, (Some("1".to_owned()), 300));
    add(&redis, B6, Some("now")).await?;
    assert_eq!(from(None, 10).await?, (Some("now".to_owned()), 1));
    Ok(())
}
