//! A fleet of three nodes on a real broker, before the oracle: calm, under a handful of faults, with a cache and a handful of its
//! faults, and a minute of them at random.
//!
//! `make test-full` has every fault in turn, ten minutes at random, several brokers, sentinels, a cluster of Redis, and the bugs that the
//! oracle must find first (`tools/test.sh fleet`).

use std::time::Duration;

use tidegate_tests::fleet::{Cache, Fault, Faults, Plan};
use tokio::sync::Semaphore;

/// One fleet at a time: each takes the whole machine.
static ALONE: Semaphore = Semaphore::const_new(1);

async fn holds(plan: Plan) -> anyhow::Result<()> {
    let _alone = ALONE.acquire().await?;
    let report = plan.run().await?;
    assert!(report.holds(), "{}", report.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_nothing_fails_nobody_sees_anything_wrong() -> anyhow::Result<()> {
    holds(Plan::calm(1, Duration::from_secs(5))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handful_of_faults_is_told_for_what_it_is() -> anyhow::Result<()> {
    let faults = [
        Fault::NodeKill,
        Fault::NodeFreeze,
        Fault::Pause,
        Fault::RoadFog,
        Fault::TopicAnew,
        Fault::Transactions,
        Fault::NodeDrain,
    ];
    let mut plan = Plan::calm(2, Duration::ZERO);
    plan.faults = Faults::InTurn(faults.to_vec());
    holds(plan).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handful_of_faults_of_the_cache_shows_nobody_anything_wrong() -> anyhow::Result<()> {
    let faults = [
        Fault::CacheKill,
        Fault::MaterializerKill,
        Fault::CacheFog,
        Fault::BothDown,
    ];
    let mut plan = Plan::calm(4, Duration::ZERO);
    (plan.cache, plan.faults) = (Some(Cache::One), Faults::InTurn(faults.to_vec()));
    holds(plan).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_of_faults_at_random_shows_nobody_anything_wrong() -> anyhow::Result<()> {
    let mut plan = Plan::calm(3, Duration::from_secs(60));
    plan.faults = Faults::Random;
    holds(plan).await
}
