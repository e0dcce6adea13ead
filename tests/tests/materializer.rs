//! Materializers: a real topic is folded into a real Redis, by one process or several, which are killed, stopped for a while and
//! woken, while Redis is emptied, set back, taken away. What counts is always the same: the cache is the fold of the topic.

#[path = "materializer/board.rs"]
mod board;

use std::{collections::BTreeSet, process::ExitStatus};

use anyhow::{Context, ensure};
use board::{Board, STREAM, changes, count, given, until};
use serde_json::json;
use tidegate::{cache::redis::Header, telemetry};
use tidegate_tests::{
    binary::{self, command},
    http,
};

fn one(channel: &str, row: &str, value: u32) -> (String, String, Option<serde_json::Value>) {
    (channel.to_owned(), row.to_owned(), Some(value.into()))
}

fn gone(channel: &str, row: &str) -> (String, String, Option<serde_json::Value>) {
    (channel.to_owned(), row.to_owned(), None)
}

/// What `tidegate cache verify` says.
async fn verified(board: &Board) -> anyhow::Result<(ExitStatus, String)> {
    let url = board.redis.url();
    let verify = command(&["cache", "verify", "--redis", &url, "--stream", STREAM]);
    let output = binary::run(verify, b"").await?;
    Ok((output.status, String::from_utf8(output.stdout)?))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_is_the_fold_of_the_topic_and_follows_it() -> anyhow::Result<()> {
    let mut board = Board::new("folded", 3).await?;
    board.write(&changes(0..40, 50, 1)).await?;
    board.write(&changes(10..20, 25, 2)).await?;
    let deletes: Vec<_> = (0..50).map(|row| gone("C3", &format!("r{row}"))).collect();
    board.write(&deletes).await?;
    board
        .kafka
        .produce("folded", 0, [("no json", Some("1"))], &[])
        .await?;
    let node = board.here("")?;
    board.is_folded().await?;
    for header in board.headers().await? {
        ensure!(
            header.complete && header.fold_id.contains("$key/0"),
            "{header:?}"
        );
        ensure!(header.lineage == "0", "{header:?}");
    }
    let before = board.headers().await?;
    board.write(&changes(35..45, 50, 3)).await?;
    board
        .write(&[gone("C1", "r1"), one("C1", "new", 7)])
        .await?;
    board.is_folded().await?;
    for (before, now) in before.iter().zip(board.headers().await?) {
        ensure!(now.generation == before.generation && now.applied > before.applied);
    }
    let (status, said) = verified(&board).await?;
    ensure!(
        status.success() && said.matches(": good: ").count() == 3,
        "{said}"
    );
    let admin = node.admin_address();
    ensure!(given(admin).await? == BTreeSet::from([0, 1, 2]));
    until("the numbers are told", async || {
        let told = (
            count(admin, "poisoned_records_total").await?,
            count(admin, "flips_total").await?,
        );
        Ok((told == (1, 3)).then_some(()))
    })
    .await?;
    let told = http::get(admin, "/metrics").await?.body;
    let ours = telemetry::ALL
        .iter()
        .filter(|metric| metric.name.starts_with("materializer_"));
    for name in ours.map(|metric| metric.full_name()) {
        ensure!(
            told.contains(&format!("\n{name}{{stream=\"{STREAM}\"")),
            "{name}"
        );
    }
    let page = http::get(admin, "/inspect/materializer").await?.json()?;
    let partition = &page["streams"][0]["partitions"][0];
    ensure!(
        partition["phase"] == "folding" && partition["complete"] == true,
        "{page}"
    );
    ensure!(
        partition["applied"] == partition["head"] && partition["wrong"].is_null(),
        "{page}"
    );
    // Nobody is served here.
    ensure!(http::get(admin, "/inspect/streams").await?.json()?["streams"] == json!([]));
    let drained = node.drain().await;
    ensure!((drained.left, drained.tasks) == (0, 0), "{drained:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_killed_is_taken_over_from_and_one_that_slept_changes_nothing()
-> anyhow::Result<()> {
    let mut board = Board::new("taken", 4).await?;
    board.write(&changes(0..20, 50, 1)).await?;
    let mut first = board.process().await?;
    let second = board.process().await?;
    let (a, b) = (first.has(2).await?, second.has(2).await?);
    ensure!(a.is_disjoint(&b), "{a:?} {b:?}");
    board.is_folded().await?;
    // It dies amid what follows.
    board.write(&changes(0..20, 200, 2)).await?;
    first.child.start_kill()?;
    board.write(&changes(5..25, 100, 3)).await?;
    second.has(4).await?;
    board.is_folded().await?;
    let generations = |headers: &[Header]| -> Vec<String> {
        headers
            .iter()
            .map(|header| header.generation.to_string())
            .collect()
    };
    let before = generations(&board.headers().await?);
    // The other one sleeps past its session, and a third takes all. Then it wakes amid its work, and believes that it has them.
    board.write(&changes(0..20, 100, 4)).await?;
    second.signal("STOP").await?;
    let third = board.process().await?;
    third.has(4).await?;
    board.write(&changes(0..10, 100, 5)).await?;
    board.write(&[gone("C1", "r1"), gone("C2", "r2")]).await?;
    board.is_folded().await?;
    second.signal("CONT").await?;
    let (b, c) = (second.has(2).await?, third.has(2).await?);
    ensure!(b.is_disjoint(&c), "{b:?} {c:?}");
    board.write(&changes(15..25, 10, 6)).await?;
    board.is_folded().await?;
    ensure!(
        generations(&board.headers().await?) == before,
        "nothing was folded anew"
    );
    ensure!(third.count("refolds_total").await? == 0);
    // Who is told to go leaves at once.
    second.signal("TERM").await?;
    third.has(4).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_was_emptied_or_went_back_or_lost_keys_is_mended() -> anyhow::Result<()> {
    let mut board = Board::new("mended", 1).await?;
    board.write(&changes(0..10, 20, 1)).await?;
    let node = board.here("")?;
    board.is_folded().await?;
    let first = board.headers().await?.remove(0);
    let backup = board.redis.back_up().await?;
    board.write(&changes(0..5, 20, 2)).await?;
    board.write(&[gone("C9", "r0")]).await?;
    board.is_folded().await?;
    // An older copy: it goes on from there.
    board.redis.go_back_to(&backup).await?;
    board.is_folded().await?;
    let header = board.headers().await?.remove(0);
    ensure!(header.generation == first.generation && header.applied > first.applied);
    // Nothing at all: it is folded anew.
    board.redis.cli(&["flushall"]).await?;
    board.is_folded().await?;
    let anew = board.headers().await?.remove(0);
    ensure!(anew.generation != first.generation && anew.complete);
    // A channel's rows are gone; the next batch that touches it finds out.
    let rows = format!("tg:{{{STREAM}/0}}:{}:rows:C3", anew.generation);
    ensure!(board.redis.cli(&["del", &rows]).await? == "1");
    board.write(&[one("C3", "r7", 9)]).await?;
    board.is_folded().await?;
    let again = board.headers().await?.remove(0);
    ensure!(again.generation != anew.generation);
    // And of a channel that nobody touches, the materializer itself finds out.
    let ids = format!("tg:{{{STREAM}/0}}:{}:ids:C7", again.generation);
    ensure!(board.redis.cli(&["del", &ids]).await? == "1");
    until("it is folded anew", async || {
        Ok((board.headers().await?[0].generation != again.generation).then_some(()))
    })
    .await?;
    board.is_folded().await?;
    let admin = node.admin_address();
    until("the numbers are told", async || {
        let lost = count(admin, "lost_batches_total").await?;
        Ok((lost == 2 && count(admin, "refolds_total").await? == 4).then_some(()))
    })
    .await?;
    // What was dropped is cleared away.
    until("nothing is left of older generations", async || {
        let home = board.cache.home(0).await?;
        Ok((home.dropped.is_empty() && home.beside.is_empty()).then_some(()))
    })
    .await?;
    node.drain().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_gone_and_back_is_caught_up_with() -> anyhow::Result<()> {
    let mut board = Board::new("gone-and-back", 2).await?;
    board.write(&changes(0..10, 20, 1)).await?;
    let node = board.here("")?;
    board.is_folded().await?;
    board.redis.kill()?;
    board.write(&changes(0..5, 20, 2)).await?;
    let admin = node.admin_address();
    until("the breaker is open", async || {
        let page = http::get(admin, "/inspect/breakers").await?.json()?;
        let mut breakers = page["breakers"].as_array().into_iter().flatten();
        let open = breakers.any(|it| it["name"] == "redis:cache" && it["state"] == "open");
        Ok(open.then_some(()))
    })
    .await?;
    until("operators see what is wrong", async || {
        let page = http::get(admin, "/inspect/materializer").await?.json()?;
        let wrong = page["streams"][0]["partitions"][0]["wrong"].clone();
        Ok(wrong.is_string().then_some(()))
    })
    .await?;
    // It kept nothing.
    board.redis.restart().await?;
    board.is_folded().await?;
    // And one that hangs.
    board.redis.freeze()?;
    board.write(&changes(3..8, 20, 3)).await?;
    let failed = async || {
        let page = http::get(admin, "/metrics").await?.body;
        let name = "tidegate_upstream_calls_total{upstream=\"redis:cache\",outcome=\"failed\"} ";
        let line = page.lines().find_map(|line| line.strip_prefix(name));
        anyhow::Ok(line.context("no calls")?.parse::<u64>()?)
    };
    let before = failed().await?;
    until("calls fail", async || {
        Ok((failed().await? > before).then_some(()))
    })
    .await?;
    board.redis.thaw()?;
    board.is_folded().await?;
    node.drain().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn other_rules_and_another_topic_of_the_same_name_are_folded_anew() -> anyhow::Result<()> {
    let mut board = Board::new("anew", 1).await?;
    board
        .write(&[one("C1", "a", 1), one("C1", "b", 2), one("C2", "a", 3)])
        .await?;
    let node = board.here("")?;
    board.is_folded().await?;
    let first = board.headers().await?.remove(0);
    node.drain().await;
    // Each channel is one row now.
    board.rows = [("C1", 2), ("C2", 3)]
        .map(|(channel, value)| ((channel.to_owned(), String::new()), json!(value)))
        .into();
    let node = board.here("row = \"none\"")?;
    board.is_folded().await?;
    let second = board.headers().await?.remove(0);
    ensure!(second.generation != first.generation && second.fold_id != first.fold_id);
    ensure!(second.epoch == first.epoch);
    board.kafka.delete_topic("anew").await?;
    board.kafka.create_topic("anew", 1, &[]).await?;
    board.rows.clear();
    board.write(&[one("C3", "", 4)]).await?;
    board.is_folded().await?;
    let third = board.headers().await?.remove(0);
    ensure!(third.epoch != second.epoch && third.generation != second.generation);
    node.drain().await;
    // A materializer that begins later is not misled by what is there.
    let node = board.here("row = \"none\"")?;
    board.write(&[one("C4", "", 5)]).await?;
    board.is_folded().await?;
    ensure!(board.headers().await?[0].generation == third.generation);
    node.drain().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_lost_its_beginning_is_told_for_what_it_is() -> anyhow::Result<()> {
    let mut board = Board::new("beginning", 1).await?;
    board.write(&[one("C1", "a", 1), one("C2", "b", 2)]).await?;
    board.kafka.delete_records("beginning", 0, 1).await?;
    board.rows.remove(&("C1".to_owned(), "a".to_owned()));
    let node = board.here("")?;
    board.is_folded().await?;
    let header = board.headers().await?.remove(0);
    ensure!(
        !header.complete && header.since == header.applied,
        "{header:?}"
    );
    node.drain().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_may_be_a_gateway_and_a_materializer() -> anyhow::Result<()> {
    let mut board = Board::new("both", 1).await?;
    board.write(&[one("C1", "a", 1)]).await?;
    let text = board.config("").replace(
        "roles = [\"materializer\"]",
        "roles = [\"gateway\", \"materializer\"]",
    );
    let text = text.replace("[listen]\n", "[listen]\naddress = \"127.0.0.1:0\"\n")
        + "[access]\nanonymous = { channels = [\"board/*\"], can = [\"subscribe\"] }\n";
    let config = tidegate::config::Config::from_toml(&text, std::iter::empty())?;
    let node = tidegate::gateway::Gateway::start(&config, None)?;
    board.is_folded().await?;
    ensure!(node.serves());
    let address = node.address();
    until("the view is served", async || {
        let view = http::get(address, "/v1/view/board/C1").await?;
        Ok((view.status == 200 && view.json()?["rows"]["a"]["data"] == 1).then_some(()))
    })
    .await?;
    node.drain().await;
    Ok(())
}

/// The first partition, as the operators of a materializer see it.
async fn folded(admin: std::net::SocketAddr) -> anyhow::Result<serde_json::Value> {
    let page = http::get(admin, "/inspect/materializer").await?.json()?;
    Ok(page["streams"][0]["partitions"][0].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fold_halts_before_what_means_nothing_or_puts_it_aside() -> anyhow::Result<()> {
    let mut board = Board::new("halted", 1).await?;
    board.write(&[one("C1", "a", 1)]).await?;
    let bad = [(r#"["C1","b"]"#, Some("{"))];
    board.kafka.produce("halted", 0, bad, &[]).await?;
    let node = board.here("poison = \"halt\"")?;
    let admin = node.admin_address();
    // It never came to the end, so nothing takes the place of nothing.
    let stopped = async |admin, offset: u64| {
        until("it stops", async || {
            let partition = folded(admin).await?;
            Ok((partition["stopped"]["offset"] == offset).then_some(partition))
        })
        .await
    };
    let partition = stopped(admin, 2).await?;
    until("operators see why", async || {
        let wrong = folded(admin).await?["wrong"].clone();
        let wrong = wrong.as_str().unwrap_or_default();
        Ok((wrong.contains("offset 2") && wrong.contains("the value is not JSON")).then_some(()))
    })
    .await?;
    ensure!(board.cache.header(0).await?.is_none(), "{partition}");
    let path = format!("/streams/{STREAM}/skip?partition=0&offset=2");
    let passed = http::post(admin, &path, &[]).await?;
    ensure!(passed.status == 200 && passed.json()?["materializer"] == true);
    board.is_folded().await?;
    // Amid its work, too: its header is just before the record.
    board.write(&[one("C1", "a", 2)]).await?;
    board.kafka.produce("halted", 0, bad, &[]).await?;
    board.is_folded().await?;
    stopped(admin, 4).await?;
    let rows = board.rows.clone();
    board.write(&[one("C1", "c", 3)]).await?;
    ensure!(board.headers().await?[0].applied == tidegate::model::Offset::new(3).into());
    ensure!(board.cached().await? == Some(rows));
    ensure!(count(admin, "stopped_partitions").await? == 1);
    node.drain().await;
    // The next one has another rule.
    board.kafka.create_topic("halted-dead", 1, &[]).await?;
    let rule = "poison = \"quarantine\"\ndead_letter = \"halted-dead\"";
    let node = board.here(rule)?;
    board.is_folded().await?;
    let letters = board.kafka.read("halted-dead", 0).await?;
    ensure!(
        letters.len() == 1 && letters[0].key == b"halted/0/3",
        "{letters:?}"
    );
    let admin = node.admin_address();
    until("the numbers are told", async || {
        Ok((count(admin, "quarantined_records_total").await? == 1).then_some(()))
    })
    .await?;
    node.drain().await;
    // Where a cache is shared, nodes leave that to it.
    let text = board
        .config(&format!("{rule}\neager = true"))
        .replace("\"materializer\"", "\"gateway\"");
    let text = text.replace("[listen]\n", "[listen]\naddress = \"127.0.0.1:0\"\n")
        + "[access]\nanonymous = { channels = [\"board/*\"], can = [\"subscribe\"] }\n";
    let config = tidegate::config::Config::from_toml(&text, std::iter::empty())?;
    let node = tidegate::gateway::Gateway::start(&config, None)?;
    board.kafka.produce("halted", 0, bad, &[]).await?;
    board.write(&[one("C1", "d", 4)]).await?;
    let admin = node.admin_address();
    until("the node has passed it", async || {
        let page = http::get(admin, "/inspect/partitions").await?.json()?;
        let task = &page["partitions"][0]["task"];
        Ok((task["applied"] == 7).then_some(()))
    })
    .await?;
    ensure!(board.kafka.read("halted-dead", 0).await?.len() == 1);
    node.drain().await;
    Ok(())
}
