//! Appending: in order, each batch once, whatever the server does meanwhile.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tidegate::{
    cache::redis::RedisOptions,
    model::{Change, RowId},
    source::{
        Recent,
        embedded::{Appended, Lost, NewRecord},
        redis::{RedisAppender, RedisAppenderSettings},
    },
};
use tidegate_tests::{
    gateway::{found, pace},
    services::redis::Redis,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::common::{LOG, read, server, source};

fn record(row: &str, data: &str) -> anyhow::Result<NewRecord> {
    Ok(NewRecord {
        key: format!("[\"JFK\",\"{row}\"]").into(),
        change: Change {
            channel: "board/JFK".parse()?,
            row: RowId::new(row)?,
            data: Some(data.to_owned().into()),
            ts_ms: 0,
        },
        event_time_ms: None,
        id: None,
    })
}

fn appender(
    redis: &Redis,
    settings: RedisAppenderSettings,
) -> anyhow::Result<(RedisAppender, JoinSet<()>)> {
    let options = RedisOptions {
        timeout: Duration::from_millis(300),
        ..RedisOptions::single(&redis.url())
    };
    let (appender, task) = RedisAppender::beside(
        server(&options)?,
        ("board", 0),
        Recent::new(false),
        settings,
        CancellationToken::new(),
    );
    let mut tasks = JoinSet::new();
    tasks.spawn(task);
    Ok((appender, tasks))
}

fn is_at(appended: &Appended) -> bool {
    matches!(appended, Appended::At(_))
}

#[tokio::test]
async fn what_a_server_took_without_answering_in_time_is_there_once_and_in_order()
-> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let (appender, mut task) = appender(&redis, RedisAppenderSettings::default())?;
    let lost = Arc::<Lost>::default();
    let submit = |row: &str, data: &str| {
        let answer = appender.try_submit(vec![record(row, data)?], &lost);
        anyhow::Ok(answer.map_err(|refused| anyhow::anyhow!("{refused:?}"))?)
    };
    assert!(submit("a", "0")?.await?.iter().all(is_at));
    redis.freeze()?;
    let answers = (1..=20).map(|number| submit("a", &number.to_string()));
    let answers = answers.collect::<anyhow::Result<Vec<_>>>()?;
    // It has what was sent before it hung, and takes it when it goes on.
    pace(700).await;
    redis.thaw()?;
    for answer in answers {
        assert!(answer.await?.iter().all(is_at));
    }
    let (values, _) = read(&mut source(&redis)?, None).await?;
    let expected: Vec<_> = (0..=20).map(|number| number.to_string()).collect();
    assert_eq!(values, expected);
    drop(appender);
    task.join_next().await.context("it has ended")??;
    Ok(())
}

#[tokio::test]
async fn who_is_given_up_does_not_come_in_behind_what_was_taken_later() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let settings = RedisAppenderSettings {
        delivery_timeout: Duration::from_millis(400),
        ..RedisAppenderSettings::default()
    };
    let (appender, mut task) = appender(&redis, settings)?;
    let submit = |row: &str, data: &str| {
        let answer = appender.try_submit(vec![record(row, data)?], &Arc::default());
        anyhow::Ok(answer.map_err(|refused| anyhow::anyhow!("{refused:?}"))?)
    };
    assert!(submit("a", "first")?.await?.iter().all(is_at));
    redis.freeze()?;
    assert_eq!(submit("a", "given up")?.await?, [Appended::Unavailable]);
    redis.thaw()?;
    found("the next one is taken", async || {
        let Ok(answer) = submit("a", "later") else {
            return Ok(None);
        };
        Ok(answer.await?.iter().all(is_at).then_some(()))
    })
    .await?;
    let (values, _) = read(&mut source(&redis)?, None).await?;
    let later = values.iter().position(|value| value == "later");
    let given_up = values.iter().rposition(|value| value == "given up");
    assert!(given_up < later, "{values:?}");
    assert!(
        values.iter().filter(|value| *value == "given up").count() <= 1,
        "{values:?}"
    );
    drop(appender);
    task.join_next().await.context("it has ended")??;
    Ok(())
}

#[tokio::test]
async fn a_batch_of_any_size_is_appended_behind_ids_of_the_future() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    // A clock that went back, and a millisecond that is nearly full.
    redis
        .cli(&["XADD", LOG, "4000000000000-4194300", "k", "x", "v", "x"])
        .await?;
    let (appender, mut task) = appender(&redis, RedisAppenderSettings::default())?;
    let records = (0..5000).map(|number| record("a", &number.to_string()));
    let records = records.collect::<anyhow::Result<Vec<_>>>()?;
    let answer = appender.try_submit(records, &Arc::default());
    let answer = answer
        .map_err(|refused| anyhow::anyhow!("{refused:?}"))?
        .await?;
    let offsets: Vec<_> = answer
        .iter()
        .filter_map(|appended| match appended {
            Appended::At(position) => Some(position.offset),
            _ => None,
        })
        .collect();
    assert!(offsets.len() == 5000 && offsets.is_sorted_by(|a, b| a < b));
    let (values, fetch) = read(&mut source(&redis)?, None).await?;
    assert_eq!((values.len(), fetch.head), (5001, offsets[4999]));
    drop(appender);
    task.join_next().await.context("it has ended")??;
    Ok(())
}
