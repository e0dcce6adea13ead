//! Servers that belong together: what nodes see of a failover.

use serde_json::json;
use tidegate_tests::{
    gateway::{Node, found},
    services::redis::{Cluster, Watched},
    websocket::Client,
    wire::{self, BEARER},
};

use super::common::{follower, next, on, partition};

async fn publish(node: &Node, channel: &str, data: &str) -> wire::Answer {
    let record = format!(r#"{{"channel":"{channel}","row":"x","data":{data}}}"#);
    let json = ("content-type", "application/json");
    wire::ask(
        node.gateway.address(),
        "POST",
        "/v1/publish/board",
        &[BEARER, json],
        record,
    )
    .await
}

/// Publishes until it is taken.
async fn insist(node: &Node, channel: &str, data: &str) -> anyhow::Result<()> {
    found("the record is taken", async || {
        Ok((publish(node, channel, data).await.status() == 200).then_some(()))
    })
    .await
}

#[tokio::test]
async fn behind_sentinels_a_failover_is_another_log_and_everything_goes_on() -> anyhow::Result<()> {
    let mut watched = Watched::start().await?;
    let servers = watched
        .urls()
        .iter()
        .map(|url| format!("{url:?}"))
        .collect::<Vec<_>>()
        .join(", ");
    let servers = format!(
        "redis = [{servers}], sentinel = \"{}\"",
        tidegate_tests::services::redis::Sentinel::NAME
    );
    let setup = on(&servers, "", ", timeout = \"500ms\"");
    let (node, other) = (setup.start()?, setup.start()?);
    let (mut client, _) = follower(&other).await?;
    insist(&node, "JFK", "1").await?;
    let update = next(&mut client, "update").await?;
    assert_eq!(update["data"], 1);
    watched.primary().kill()?;
    watched.until_another_leads().await?;
    insist(&node, "JFK", "2").await?;
    let snapshot = next(&mut client, "snapshot").await?;
    let epoch = |message: &serde_json::Value| {
        let position = message["position"].as_str().unwrap_or_default();
        position.split(':').next().unwrap_or_default().to_owned()
    };
    assert_ne!(epoch(&snapshot), epoch(&update));
    found("the newest row is shown", async || {
        let message = client.next().await?;
        let shown = message["data"] == 2 || message["rows"]["x"]["data"] == 2;
        Ok((shown || snapshot["rows"]["x"]["data"] == 2).then_some(()))
    })
    .await?;
    client.heartbeat().await?;
    drop(client);
    node.drain().await?;
    other.drain().await
}

#[tokio::test]
async fn in_a_cluster_partitions_lie_on_all_servers_and_a_failover_is_theirs_alone()
-> anyhow::Result<()> {
    let mut cluster = Cluster::with_replicas().await?;
    let servers = cluster
        .urls()
        .iter()
        .map(|url| format!("{url:?}"))
        .collect::<Vec<_>>()
        .join(", ");
    let setup = on(
        &format!("redis = [{servers}], cluster = true"),
        "partitions = 12",
        ", timeout = \"500ms\"",
    );
    let (node, other) = (setup.start()?, setup.start()?);
    let mut client = Client::connect(&other).await?;
    let channels: Vec<_> = (0..30).map(|number| format!("c{number}")).collect();
    for channel in &channels {
        client
            .subscribe(&format!("board/{channel}"), json!({}))
            .await?;
    }
    for channel in &channels {
        insist(&node, channel, "1").await?;
    }
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < channels.len() {
        let update = next(&mut client, "update").await?;
        seen.insert(update["channel"].as_str().unwrap_or_default().to_owned());
    }
    let gone = cluster.primary().await?;
    cluster.servers[gone].kill()?;
    cluster.until_another_leads(gone).await?;
    for channel in &channels {
        insist(&node, channel, "2").await?;
    }
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < channels.len() {
        let message = client.next().await?;
        let channel = message["channel"].as_str().unwrap_or_default().to_owned();
        if message["data"] == 2 || message["rows"]["x"]["data"] == 2 {
            seen.insert(channel);
        }
    }
    drop(client);
    node.drain().await?;
    other.drain().await
}

#[tokio::test]
async fn a_server_of_a_cluster_that_hangs_is_the_matter_of_its_own_partitions() -> anyhow::Result<()>
{
    let cluster = Cluster::start().await?;
    let urls = cluster.urls();
    let servers: Vec<_> = urls.iter().map(|url| format!("{url:?}")).collect();
    let servers = format!("redis = [{}], cluster = true", servers.join(", "));
    let node = on(&servers, "partitions = 12", ", timeout = \"1s\"").start()?;
    for number in 0..30 {
        insist(&node, &format!("c{number}"), "1").await?;
    }
    let failed = async |node: &Node| {
        let mut failed = Vec::new();
        for number in 0..12 {
            let task = partition(node, number).await?["task"].clone();
            failed.push(task["failed_fetches"].as_u64().unwrap_or_default());
        }
        anyhow::Ok(failed)
    };
    let before = failed(&node).await?;
    cluster.servers[0].freeze()?;
    // Its partitions fail again and again, for as long as the breaker would take to open.
    let affected = found("some fail", async || {
        let now = failed(&node).await?;
        let all = now.iter().zip(&before).map(|(now, before)| now - before);
        let affected: Vec<_> = all.collect();
        Ok(affected
            .iter()
            .any(|failures| *failures > 3)
            .then_some(affected))
    })
    .await?;
    let fine = affected.iter().filter(|failures| **failures == 0).count();
    assert!((4..=10).contains(&fine), "{affected:?}");
    cluster.servers[0].thaw()?;
    found("all are read again", async || {
        for number in 0..12 {
            if !partition(&node, number).await?["task"]["failing"].is_null() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await?;
    for number in 0..30 {
        insist(&node, &format!("c{number}"), "2").await?;
    }
    node.drain().await
}
