//! Redis alone serves a fleet: logs, cache, and the leases by which materializers share partitions.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context;
use serde_json::{Value, json};
use tidegate::{
    cache::redis::{RedisCache, RedisOptions},
    source::{
        Assignment,
        redis::{MemberSettings, RedisMember, RedisServer},
    },
};
use tidegate_tests::{
    gateway::{Node, Setup, found},
    http,
    services::redis::Redis,
    websocket::Client,
    wire::{self, BEARER},
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::common::{LOG, at, next, on, partition, server};

/// A stream of four partitions whose views are in a cache on the same server.
fn fleet(redis: &Redis, session: &str) -> Setup {
    on(&at(redis), "partitions = 4", "")
        .env("TIDEGATE_CACHE_REDIS", &json!([redis.url()]).to_string())
        .env("TIDEGATE_MATERIALIZER_SESSION_TIMEOUT", session)
}

fn materializer(setup: Setup) -> anyhow::Result<Node> {
    setup.env("TIDEGATE_ROLES", "[\"materializer\"]").start()
}

async fn publish(node: &Node, channel: &str, row: &str, data: &str) -> anyhow::Result<()> {
    let record = format!(r#"{{"channel":"{channel}","row":"{row}","data":{data}}}"#);
    let json = ("content-type", "application/json");
    found("the record is taken", async || {
        let path = "/v1/publish/board";
        let answer = wire::ask(
            node.gateway.address(),
            "POST",
            path,
            &[BEARER, json],
            &*record,
        )
        .await;
        Ok((answer.status() == 200).then_some(()))
    })
    .await
}

/// What operators see of a materializer's partitions.
async fn folded(node: &Node) -> anyhow::Result<Vec<Value>> {
    let page = http::get(node.gateway.admin_address(), "/inspect/materializer").await?;
    let partitions = page.json()?["streams"][0]["partitions"].clone();
    Ok(partitions.as_array().cloned().unwrap_or_default())
}

#[tokio::test]
async fn nodes_serve_what_materializers_fold_and_one_that_leaves_is_followed_by_the_other()
-> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let setup = fleet(&redis, "2s");
    let (node, other) = (setup.start()?, setup.start()?);
    for number in 0..40 {
        publish(&node, &format!("c{number}"), "x", &number.to_string()).await?;
    }
    let (first, second) = (
        materializer(fleet(&redis, "2s"))?,
        materializer(fleet(&redis, "2s"))?,
    );
    let mut client = Client::connect(&other).await?;
    for number in 0..40 {
        client
            .subscribe(&format!("board/c{number}"), json!({}))
            .await?;
        let snapshot = next(&mut client, "snapshot").await?;
        assert_eq!(snapshot["rows"]["x"]["data"], number, "{snapshot}");
    }
    client.heartbeat().await?;
    let seen = partition(&other, 0).await?;
    assert!(seen["task"]["cache"].is_object(), "{seen}");
    found("each has half of them", async || {
        let both = (folded(&first).await?.len(), folded(&second).await?.len());
        Ok((both == (2, 2)).then_some(()))
    })
    .await?;
    first.drain().await?;
    publish(&node, "c7", "x", "700").await?;
    let update = next(&mut client, "update").await?;
    assert_eq!(
        (&update["channel"], &update["data"]),
        (&json!("board/c7"), &json!(700))
    );
    let cache = RedisCache::new(&RedisOptions::single(&redis.url()), "board")?;
    found("the other has all and is as far as the logs", async || {
        let all = folded(&second).await?;
        let done = all
            .iter()
            .all(|one| one["applied"] == one["head"] && one["complete"] == true);
        Ok((all.len() == 4 && done).then_some(()))
    })
    .await?;
    for number in 0..4 {
        let report = cache.verify(number).await?;
        assert_eq!(report.found, 0, "{report:?}");
    }
    drop(client);
    for node in [node, other, second] {
        node.drain().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_lost_everything_is_folded_anew_and_nodes_go_on() -> anyhow::Result<()> {
    let mut redis = Redis::start(&[]).await?;
    let setup = fleet(&redis, "2s");
    let (node, folds) = (setup.start()?, materializer(fleet(&redis, "2s"))?);
    publish(&node, "JFK", "x", "1").await?;
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/JFK", json!({})).await?;
    assert_eq!(next(&mut client, "snapshot").await?["rows"]["x"]["data"], 1);
    client.heartbeat().await?;
    redis.kill()?;
    redis.restart().await?;
    publish(&node, "JFK", "y", "2").await?;
    // By a snapshot of the new log, or by an update behind that.
    client
        .find(|message| message["rows"]["y"]["data"] == 2 || message["data"] == 2)
        .await?;
    client.heartbeat().await?;
    let mut late = Client::connect(&node).await?;
    late.subscribe("board/JFK", json!({})).await?;
    let snapshot = next(&mut late, "snapshot").await?;
    assert_eq!(
        snapshot["rows"].as_object().map(serde_json::Map::len),
        Some(1),
        "{snapshot}"
    );
    assert_eq!(snapshot["rows"]["y"]["data"], 2);
    assert_eq!(redis.cli(&["XLEN", "tg:{board/3}:log"]).await?, "1");
    assert_eq!(redis.cli(&["EXISTS", LOG]).await?, "0");
    drop((client, late));
    node.drain().await?;
    folds.drain().await
}

/// A member in a task of its own.
struct Member {
    has: watch::Receiver<Assignment>,
    stop: CancellationToken,
    task: JoinSet<()>,
}

impl Member {
    async fn leave(&mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        Ok(self.task.join_next().await.context("it has ended")??)
    }
}

fn member(server: &std::sync::Arc<RedisServer>) -> Member {
    let settings = MemberSettings {
        group: "tests".to_owned(),
        stream: "board".to_owned(),
        partitions: 7,
        session_timeout: Duration::from_secs(1),
    };
    let (member, has) = RedisMember::new(server.clone(), settings);
    let stop = CancellationToken::new();
    let mut task = JoinSet::new();
    task.spawn(member.run(stop.clone()));
    Member { has, stop, task }
}

/// Waits until these have so many each, together all, and none twice.
async fn share(members: &[&Member], expected: &[usize]) -> anyhow::Result<()> {
    found("all is shared", async || {
        let shares: Vec<_> = members
            .iter()
            .map(|member| member.has.borrow().partitions.clone())
            .collect();
        let mut counts: Vec<_> = shares.iter().map(Vec::len).collect();
        counts.sort_unstable();
        let all: BTreeSet<_> = shares.iter().flatten().collect();
        Ok((counts == expected && all.len() == 7).then_some(()))
    })
    .await
}

#[tokio::test]
async fn members_share_all_partitions_and_who_leaves_dies_or_hangs_loses_his() -> anyhow::Result<()>
{
    let redis = Redis::start(&[]).await?;
    let options = RedisOptions {
        timeout: Duration::from_millis(300),
        ..RedisOptions::single(&redis.url())
    };
    let server = server(&options)?;
    let mut first = member(&server);
    share(&[&first], &[7]).await?;
    let (mut second, mut third) = (member(&server), member(&server));
    share(&[&first, &second, &third], &[2, 2, 3]).await?;
    // One leaves, and the others have his at once.
    third.leave().await?;
    assert_eq!(*third.has.borrow(), Assignment::default());
    share(&[&first, &second], &[3, 4]).await?;
    // One dies without a word.
    second.task.abort_all();
    share(&[&first], &[7]).await?;
    // One that can't be heard has nothing, and knows it.
    let mut has = first.has.clone();
    redis.freeze()?;
    found("it has nothing", async || {
        Ok((*has.borrow_and_update() == Assignment::default()).then_some(()))
    })
    .await?;
    redis.thaw()?;
    share(&[&first], &[7]).await?;
    // What is left of them goes with the last.
    first.leave().await?;
    found("nothing is left", async || {
        Ok((redis.cli(&["KEYS", "*"]).await?.is_empty()).then_some(()))
    })
    .await
}
