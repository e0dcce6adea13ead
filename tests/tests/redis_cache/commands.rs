//! `tidegate cache`, as an operator has it.

use anyhow::ensure;
use tidegate::cache::redis::{Generation, Wrote};
use tidegate_tests::{
    binary::{command, run},
    services::redis::Redis,
};

use crate::common::{batch, begin, cache_of, change, header};

/// What a command says, what it complains of, and whether it was content.
async fn says(redis: &Redis, arguments: &[&str]) -> anyhow::Result<(String, String, bool)> {
    let (url, mut all) = (redis.url(), vec!["cache"]);
    all.extend_from_slice(arguments);
    all.extend(["--redis", &url]);
    let output = run(command(&all), b"").await?;
    let text = |bytes| String::from_utf8(bytes);
    Ok((
        text(output.stdout)?,
        text(output.stderr)?,
        output.status.success(),
    ))
}

#[tokio::test]
async fn verify_says_a_line_for_each_partition_and_rebuild_drops_them() -> anyhow::Result<()> {
    const STREAM: [&str; 2] = ["--stream", "departures"];
    let redis = Redis::start(&[]).await?;
    let cache = cache_of(&redis)?;
    let (_, complaint, good) = says(&redis, &["verify", STREAM[0], STREAM[1]]).await?;
    ensure!(
        !good && complaint.contains("nothing of the stream departures"),
        "{complaint}"
    );
    let rows = [
        (1, change("JFK", "a", Some("12"))),
        (2, change("JFK", "b", Some("34"))),
        (3, change("LHR", "a", Some("5"))),
    ];
    let first = begin(&cache, 0, 10, &rows).await?;
    let second = begin(&cache, 1, 7, &rows[..1]).await?;
    let left = header(&Generation::random(), 1);
    ensure!(cache.write(1, None, &left, &batch(&rows[..1])).await? == Wrote::Written);
    let (said, complaint, good) = says(&redis, &["verify", STREAM[0], STREAM[1]]).await?;
    let expected = format!(
        "partition 0: good: 2 channels, 3 rows, 5 bytes; epoch e1, applied 10, generation {}, 0 beside, 0 dropped\n\
         partition 1: good: 1 channels, 1 rows, 2 bytes; epoch e1, applied 7, generation {}, 1 beside, 0 dropped\n",
        first.generation, second.generation
    );
    ensure!(
        good && said == expected && complaint.is_empty(),
        "{said}{complaint}"
    );

    let key = format!("tg:{{departures/0}}:{}:rows:JFK", first.generation);
    redis.cli(&["hset", &key, "=b", "99 0 {]"]).await?;
    let key = format!("tg:{{departures/0}}:{}:rows:LHR", first.generation);
    redis.cli(&["del", &key]).await?;
    let (said, complaint, good) = says(
        &redis,
        &["verify", STREAM[0], STREAM[1], "--partitions", "3"],
    )
    .await?;
    ensure!(
        !good && complaint.contains("not good: partition 0\n"),
        "{complaint}"
    );
    for part in [
        "partition 0: BAD: 2 channels, 2 rows",
        "3 wrong: channel JFK: row \"b\" is newer than the channel; channel JFK: row \"b\" is no JSON; channel LHR: keys are lost",
        "partition 1: good",
        "partition 2: nothing to read yet",
    ] {
        ensure!(said.contains(part), "{said}");
    }

    let (_, complaint, good) = says(&redis, &["rebuild", STREAM[0], STREAM[1]]).await?;
    ensure!(
        !good && complaint.contains("--yes") && cache.header(0).await?.is_some(),
        "{complaint}"
    );
    let (said, _, good) = says(&redis, &["rebuild", STREAM[0], STREAM[1], "--yes"]).await?;
    ensure!(
        good && said
            == "partition 0: dropped, 2 channels deleted\npartition 1: dropped, 2 channels deleted\n",
        "{said}"
    );
    ensure!(redis.cli(&["dbsize"]).await? == "2" && cache.header(0).await?.is_none());
    Ok(())
}

#[tokio::test]
async fn verify_says_what_is_wrong_with_the_server() -> anyhow::Result<()> {
    let redis = Redis::start(&["--maxmemory-policy", "allkeys-lru"]).await?;
    begin(&cache_of(&redis)?, 0, 10, &[]).await?;
    let (said, complaint, good) = says(&redis, &["verify", "--stream", "departures"]).await?;
    ensure!(
        !good && said.contains("allkeys-lru") && said.contains("partition 0: good"),
        "{said}"
    );
    ensure!(complaint.contains("not good: the server"), "{complaint}");
    redis
        .cli(&["config", "set", "requirepass", "right-one"])
        .await?;
    let (said, complaint, good) = says(&redis, &["verify", "--stream", "departures"]).await?;
    ensure!(
        !good && said.contains("set the user and the password"),
        "{said}{complaint}"
    );
    Ok(())
}
