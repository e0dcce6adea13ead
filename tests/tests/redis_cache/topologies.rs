//! TLS with an ACL, and a cluster.

use std::time::Duration;

use anyhow::ensure;
use tidegate::cache::redis::{Generation, RedisCache, RedisFault, RedisOptions, Topology, Wrote};
use tidegate_tests::services::redis::{Cluster, Redis, Sentinel};
use tokio::time::Instant;

use crate::common::{STREAM, batch, begin, change, header, manifest, view};

/// The rules of a user as the reference page lists them.
fn documented_rules() -> anyhow::Result<String> {
    let page = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/reference/cache-layout.md"
    );
    let page = std::fs::read_to_string(page)?;
    let rules = page.lines().find_map(|line| {
        line.trim()
            .strip_prefix("ACL SETUSER tidegate on >PASSWORD ")
    });
    Ok(rules
        .ok_or_else(|| anyhow::anyhow!("the page lists no rules"))?
        .to_owned())
}

#[tokio::test]
async fn a_user_of_an_acl_needs_only_what_the_page_lists_and_tls_is_checked() -> anyhow::Result<()>
{
    let rules = documented_rules()?;
    let redis = Redis::with_tls_and_user(&format!("tidegate on >s3cret {rules}")).await?;
    let options = RedisOptions {
        login: Some(("tidegate".to_owned(), "s3cret".to_owned())),
        ca_pem: Some(redis.ca()?),
        ..RedisOptions::single(&redis.url())
    };
    let cache = RedisCache::new(&options, STREAM)?;
    ensure!(cache.check().await?.unseen.is_empty());
    let current = begin(&cache, 0, 10, &[(1, change("JFK", "a", Some("1")))]).await?;
    ensure!(view(&cache, 0, "JFK").await?.1.len() == 1 && manifest(&cache, 0).await?.len() == 1);
    let next = header(&current.generation, 20);
    let changes = batch(&[(11, change("JFK", "a", None))]);
    ensure!(cache.write(0, Some(&current), &next, &changes).await? == Wrote::Written);
    ensure!(cache.partitions().await? == [0]);
    cache.drop_all(0).await?;
    while cache.sweep(0, Duration::ZERO).await?.more {}
    ensure!(redis.cli(&["dbsize"]).await? == "1");

    let of_others = RedisCache::new(
        &RedisOptions {
            prefix: "other".to_owned(),
            ..options.clone()
        },
        STREAM,
    )?;
    let error = of_others.header(0).await.unwrap_err();
    ensure!(error.fault() == RedisFault::NoPermission, "{error}");
    let stranger = Redis::with_tls_and_user(&format!("tidegate on >s3cret {rules}")).await?;
    let wrong_authority = RedisOptions {
        ca_pem: Some(stranger.ca()?),
        ..options.clone()
    };
    let error = RedisCache::new(&wrong_authority, STREAM)?
        .header(0)
        .await
        .unwrap_err();
    ensure!(
        error.fault() == RedisFault::Unavailable && error.to_string().contains("ertificate"),
        "{error}"
    );
    let wrong_password = RedisOptions {
        login: Some(("tidegate".to_owned(), "no".to_owned())),
        ..options
    };
    let error = RedisCache::new(&wrong_password, STREAM)?
        .header(0)
        .await
        .unwrap_err();
    ensure!(error.fault() == RedisFault::WrongPassword, "{error}");
    Ok(())
}

#[tokio::test]
async fn partitions_spread_over_a_cluster_and_stay_whole() -> anyhow::Result<()> {
    const PARTITIONS: u32 = 24;
    let cluster = Cluster::start().await?;
    let options = RedisOptions {
        servers: cluster.urls(),
        topology: Topology::Cluster,
        ..RedisOptions::single("")
    };
    let cache = RedisCache::new(&options, STREAM)?;
    ensure!(cache.check().await?.versions.len() == 3);
    for partition in 0..PARTITIONS {
        let rows: Vec<_> = (1..=50)
            .map(|at| {
                (
                    at,
                    change(&format!("c{}", at % 7), &at.to_string(), Some("1")),
                )
            })
            .collect();
        let current = begin(&cache, partition, 50, &rows).await?;
        let next = header(&current.generation, 60);
        let changes = batch(&[
            (51, change("c1", "1", None)),
            (52, change("new{x}", "", Some("2"))),
        ]);
        ensure!(
            cache
                .write(partition, Some(&current), &next, &changes)
                .await?
                == Wrote::Written
        );
        ensure!(view(&cache, partition, "c1").await?.1.len() == 7);
        ensure!(view(&cache, partition, "new{x}").await?.1.len() == 1);
        ensure!(manifest(&cache, partition).await?.len() == 8);
        let left = header(&Generation::random(), 1);
        ensure!(
            cache
                .write(partition, None, &left, &batch(&rows[..1]))
                .await?
                == Wrote::Written
        );
        while cache.sweep(partition, Duration::ZERO).await?.more {}
    }
    for server in &cluster.servers {
        ensure!(
            server.cli(&["dbsize"]).await? != "0",
            "all partitions are on one server"
        );
    }
    Ok(())
}

#[tokio::test]
async fn sentinels_lead_to_the_new_primary() -> anyhow::Result<()> {
    let mut primary = Redis::start(&[]).await?;
    let replica = Redis::replica_of(&primary).await?;
    let sentinel = Sentinel::of(&primary).await?;
    let options = RedisOptions {
        servers: vec![sentinel.url()],
        topology: Topology::Sentinel {
            primary: Sentinel::NAME.to_owned(),
        },
        ..RedisOptions::single("")
    };
    let cache = RedisCache::new(&options, STREAM)?;
    let current = begin(&cache, 0, 10, &[(1, change("JFK", "a", Some("1")))]).await?;
    primary.until(&["wait", "1", "1000"], "1").await?;
    primary.kill()?;
    sentinel.until_primary_is(&replica).await?;
    let next = header(&current.generation, 20);
    let changes = batch(&[(11, change("JFK", "b", Some("1")))]);
    let until = Instant::now() + Duration::from_secs(20);
    let wrote = loop {
        match cache.write(0, Some(&current), &next, &changes).await {
            Ok(wrote) => break wrote,
            Err(error) => ensure!(
                error.fault().may_pass() && Instant::now() < until,
                "{error}"
            ),
        }
    };
    ensure!(wrote == Wrote::Written, "{wrote:?}");
    ensure!(view(&cache, 0, "JFK").await?.1.len() == 2);
    Ok(())
}
