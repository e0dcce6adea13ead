//! What is wrong with a server or a key: named, and the matter of nobody else.

use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tidegate::{
    cache::redis::RedisOptions,
    source::redis::{MemberSettings, RedisMember, RedisSource},
};
use tidegate_tests::{
    gateway::found,
    services::redis::Redis,
    websocket::Client,
    wire::{self, BEARER},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::common::{
    B6, LOG, add, at, failure, follower, next, on, partition, read, server, source, stale,
};

#[tokio::test]
async fn what_is_wrong_with_a_key_or_a_server_is_told_apart() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let expect = |text: &str, parts: &[&str]| {
        for part in parts {
            assert!(text.contains(part), "{text} lacks {part}");
        }
    };
    redis.cli(&["SET", LOG, "a word"]).await?;
    expect(
        &failure(&mut source(&redis)?).await?,
        &[LOG, "WRONGTYPE", "use another prefix, or delete the key"],
    );
    redis.cli(&["DEL", LOG]).await?;

    redis
        .cli(&["HSET", "tg:{board/0}:log:epoch", "layout", "2"])
        .await?;
    expect(
        &failure(&mut source(&redis)?).await?,
        &["its layout is \"2\"", "prefix of its own"],
    );
    redis.cli(&["DEL", "tg:{board/0}:log:epoch"]).await?;
    redis
        .cli(&["HSET", "tg:{board/0}:log:epoch", "mine", "1"])
        .await?;
    expect(
        &failure(&mut source(&redis)?).await?,
        &["the key for its epoch is something else"],
    );
    redis.cli(&["DEL", "tg:{board/0}:log:epoch"]).await?;

    let replica = Redis::replica_of(&redis).await?;
    expect(
        &failure(&mut source(&replica)?).await?,
        &["it is a replica of 127.0.0.1", "name the primary"],
    );
    drop(replica);

    for id in ["1-4194304", "18446744073709551615-1"] {
        redis.cli(&["XADD", LOG, "1-1", "k", B6, "v", "1"]).await?;
        redis.cli(&["XADD", LOG, id, "k", B6, "v", "2"]).await?;
        let failed = failure(&mut source(&redis)?).await?;
        expect(&failed, &[&format!("the id {id} has no place"), "XDEL"]);
        redis.cli(&["DEL", LOG]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_user_needs_what_the_page_says_and_who_lacks_it_is_told() -> anyhow::Result<()> {
    let page = include_str!("../../../docs/reference/redis-streams.md");
    let rights = page.lines().find_map(|line| {
        line.trim()
            .strip_prefix("ACL SETUSER tidegate on >PASSWORD ")
    });
    let rights = rights.ok_or_else(|| anyhow::anyhow!("the page has no list"))?;
    let redis = Redis::with_tls_and_user(&format!("tidegate on >secret {rights}")).await?;
    let login = |user: &str, password: &str| -> anyhow::Result<RedisOptions> {
        Ok(RedisOptions {
            login: Some((user.to_owned(), password.to_owned())),
            ca_pem: Some(redis.ca()?),
            timeout: Duration::from_secs(5),
            ..RedisOptions::single(&redis.url())
        })
    };
    add(&redis, B6, Some("1")).await?;
    let open = |options: RedisOptions| anyhow::Ok(RedisSource::new(server(&options)?, "board", 0));
    let mut fit = open(login("tidegate", "secret")?)?;
    assert_eq!(read(&mut fit, None).await?.0, ["1"]);
    // A materializer's leases take a little more.
    let more = page
        .lines()
        .find_map(|line| line.trim().strip_prefix("+zadd "));
    let more = more.context("the page has no list for materializers")?;
    let mut command = vec!["ACL", "SETUSER", "tidegate", "+zadd"];
    command.extend(more.split(' '));
    redis.cli(&command).await?;
    let settings = MemberSettings {
        group: "tests".to_owned(),
        stream: "board".to_owned(),
        partitions: 3,
        session_timeout: Duration::from_secs(10),
    };
    let (member, has) = RedisMember::new(server(&login("tidegate", "secret")?)?, settings);
    let stop = CancellationToken::new();
    let mut belongs = JoinSet::new();
    belongs.spawn(member.run(stop.clone()));
    found("it has all", async || {
        Ok((has.borrow().partitions == [0, 1, 2]).then_some(()))
    })
    .await?;
    stop.cancel();
    belongs.join_next().await.context("it has ended")??;
    let wrong = failure(&mut open(login("tidegate", "wrong")?)?).await?;
    assert!(wrong.contains("set the user and the password"), "{wrong}");
    for lacks in ["evalsha", "eval", "xrange", "xinfo|stream", "hmget", "info"] {
        redis.cli(&["SCRIPT", "FLUSH"]).await?;
        let mut rules = format!("on >secret {rights}");
        rules.push_str(&format!(" -{lacks}"));
        let mut command = vec!["ACL", "SETUSER", "lacking", "reset"];
        command.extend(rules.split(' '));
        redis.cli(&command).await?;
        let failed = failure(&mut open(login("lacking", "secret")?)?).await?;
        assert!(
            failed.contains("docs/reference/redis-streams.md lists"),
            "{lacks}: {failed}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_hangs_or_is_gone_makes_views_stale_and_they_heal() -> anyhow::Result<()> {
    let mut redis = Redis::start(&[]).await?;
    add(&redis, B6, Some("1")).await?;
    let node = on(&at(&redis), "", ", timeout = \"300ms\"").start()?;
    let (mut client, _) = follower(&node).await?;
    redis.freeze()?;
    stale(&mut client, "source_unavailable").await?;
    redis.thaw()?;
    client.heartbeat().await?;
    add(&redis, B6, Some("2")).await?;
    assert_eq!(next(&mut client, "update").await?["data"], 2);
    // A server that comes back without anything: clients are told so.
    redis.kill()?;
    stale(&mut client, "source_unavailable").await?;
    let seen = partition(&node, 0).await?;
    let message = seen["task"]["failing"]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(message.contains("redis"), "{seen}");
    redis.restart().await?;
    let snapshot = next(&mut client, "snapshot").await?;
    assert_eq!(snapshot["rows"], json!({}), "{snapshot}");
    add(&redis, B6, Some("3")).await?;
    assert_eq!(next(&mut client, "update").await?["data"], 3);
    client.heartbeat().await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_partition_whose_key_is_something_else_is_the_matter_of_no_other() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    redis.cli(&["SET", "tg:{board/0}:log", "a word"]).await?;
    let node = on(&at(&redis), "partitions = 4", "").start()?;
    // JFK is in 3.
    let (mut client, _) = follower(&node).await?;
    let publish = async |channel: &str| {
        let record = format!(r#"{{"channel":"{channel}","row":"x","data":1}}"#);
        let json = ("content-type", "application/json");
        let path = "/v1/publish/board";
        wire::ask(
            node.gateway.address(),
            "POST",
            path,
            &[BEARER, json],
            record,
        )
        .await
    };
    assert_eq!(publish("JFK").await.status(), 200);
    assert_eq!(next(&mut client, "update").await?["data"], 1);
    client.heartbeat().await?;
    let failing = found("the other says what is wrong", async || {
        let seen = partition(&node, 0).await?;
        Ok(seen["task"]["failing"]["message"]
            .as_str()
            .map(str::to_owned))
    })
    .await?;
    assert!(failing.contains("WRONGTYPE"), "{failing}");
    // One of its channels can't be written to, at once.
    let elsewhere = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let mut refused = 0;
    for channel in elsewhere {
        let answer = publish(channel).await;
        if answer.status() != 200 {
            assert_eq!(answer.json()["code"], "unavailable", "{}", answer.text());
            refused += 1;
        }
    }
    assert!(0 < refused && refused < elsewhere.len(), "{refused}");
    redis.cli(&["DEL", "tg:{board/0}:log"]).await?;
    found("it heals", async || {
        let seen = partition(&node, 0).await?;
        Ok(seen["task"]["failing"].is_null().then_some(()))
    })
    .await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_full_server_refuses_publishes_and_is_read_all_the_same() -> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    let node = on(&at(&redis), "", "").start()?;
    let (mut client, _) = follower(&node).await?;
    let publish = async |data: &str| {
        let record = format!(r#"{{"channel":"JFK","row":"x","data":{data}}}"#);
        let json = ("content-type", "application/json");
        wire::ask(
            node.gateway.address(),
            "POST",
            "/v1/publish/board",
            &[BEARER, json],
            record,
        )
        .await
    };
    assert_eq!(publish("1").await.status(), 200);
    assert_eq!(next(&mut client, "update").await?["data"], 1);
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]).await?;
    let refused = publish("2").await;
    assert_eq!(refused.json()["code"], "overloaded", "{}", refused.text());
    client.heartbeat().await?;
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]).await?;
    assert_eq!(publish("3").await.status(), 200);
    assert_eq!(next(&mut client, "update").await?["data"], 3);
    assert_eq!(redis.cli(&["XLEN", LOG]).await?, "2");
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn rows_of_a_log_that_lost_its_beginning_are_not_whole_unless_that_is_accepted()
-> anyhow::Result<()> {
    let redis = Redis::start(&[]).await?;
    for number in ["1", "2", "3"] {
        add(&redis, &format!("[\"JFK\",\"{number}\"]"), Some(number)).await?;
    }
    redis.cli(&["XTRIM", LOG, "MAXLEN", "2"]).await?;
    let node = on(&at(&redis), "", "").start()?;
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/JFK", json!({})).await?;
    let snapshot = next(&mut client, "snapshot").await?;
    assert_eq!(
        snapshot["rows"].as_object().map(serde_json::Map::len),
        Some(2)
    );
    stale(&mut client, "incomplete_history").await?;
    let accepts = on(&at(&redis), "", ", history = \"incomplete\"").start()?;
    let (accepting, _) = follower(&accepts).await?;
    drop((client, accepting));
    node.drain().await?;
    accepts.drain().await
}
