//! Membership of a consumer group, against a real broker: who shares, who takes over from whom, and who knows that it has
//! nothing any more.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use tidegate::source::{
    Assignment,
    kafka::{ClusterSettings, GroupMember, GroupSettings, KafkaCluster, Security},
};
use tidegate_tests::{gateway::SOON, services::kafka::Kafka};
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// The shortest session that brokers allow by default.
const SESSION: Duration = Duration::from_secs(6);
const PARTITIONS: u32 = 5;

/// A member that runs.
struct Member {
    has: watch::Receiver<Assignment>,
    stop: CancellationToken,
    task: JoinSet<()>,
}

impl Member {
    fn of(kafka: &Kafka, topic: &str) -> Self {
        let cluster = Arc::new(KafkaCluster::new(ClusterSettings {
            brokers: vec![kafka.address()],
            security: Security::default(),
            timeout: Duration::from_secs(2),
        }));
        let settings = GroupSettings {
            group: format!("tidegate.{topic}"),
            topic: topic.to_owned(),
            partitions: PARTITIONS,
            session_timeout: SESSION,
        };
        let (member, has) = GroupMember::new(cluster, settings);
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(member.run(stop.clone()));
        Self { has, stop, task }
    }

    /// Waits until it has so many partitions.
    async fn count(&mut self, count: usize) -> anyhow::Result<Assignment> {
        let enough = |has: &Assignment| has.generation.is_some() && has.partitions.len() == count;
        let found = timeout(SOON, self.has.wait_for(enough)).await;
        let found = found.map(|found| found.map(|has| has.clone()));
        let now = || format!("{count} partitions; it has {:?}", self.has.borrow());
        Ok(found.with_context(now)??)
    }

    async fn leave(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        let ended = timeout(SOON, self.task.join_next()).await?;
        Ok(ended.context("no task")??)
    }
}

fn all(shares: &[&Assignment]) -> BTreeSet<u32> {
    shares
        .iter()
        .flat_map(|share| share.partitions.clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_share_and_who_leaves_gives_back_at_once() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("shared", 5, &[]).await?;
    let mut first = Member::of(kafka, "shared");
    let alone = first.count(5).await?;
    let mut second = Member::of(kafka, "shared");
    let (more, less) = (first.count(3).await?, second.count(2).await?);
    ensure!(all(&[&more, &less]).len() == 5, "{more:?} {less:?}");
    ensure!(more.generation == less.generation && more.generation > alone.generation);
    first.leave().await?;
    let again = second.count(5).await?;
    ensure!(
        again.generation > less.generation,
        "{again:?} after {less:?}"
    );
    second.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_dies_is_missed_and_the_others_keep_what_they_had() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("missed", 5, &[]).await?;
    let (mut first, mut second) = (Member::of(kafka, "missed"), Member::of(kafka, "missed"));
    let mut third = Member::of(kafka, "missed");
    // Until all three are in one generation.
    let (mut shares, mut members) = (Vec::new(), [&mut first, &mut second, &mut third]);
    while all(&shares.iter().collect::<Vec<_>>()).len() < 5 || shares.len() < 3 {
        shares.clear();
        for member in &mut members {
            let few = |has: &Assignment| (1..=2).contains(&has.partitions.len());
            shares.push(timeout(SOON, member.has.wait_for(few)).await??.clone());
        }
    }
    // It says nothing more, not even that it goes.
    third.task.abort_all();
    let had = (first.has.borrow().clone(), second.has.borrow().clone());
    let both = async { anyhow::Ok((first.has.changed().await?, second.has.changed().await?)) };
    timeout(SOON, both).await??;
    let now = (first.has.borrow().clone(), second.has.borrow().clone());
    ensure!(all(&[&now.0, &now.1]).len() == 5, "{now:?}");
    for (had, now) in [(&had.0, &now.0), (&had.1, &now.1)] {
        ensure!(
            all(&[had]).is_subset(&all(&[now])),
            "{had:?} became {now:?}"
        );
    }
    first.leave().await?;
    second.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_cut_off_knows_that_it_has_nothing_and_comes_back() -> anyhow::Result<()> {
    let mut kafka = Kafka::start().await?;
    kafka.create_topic("cut", 5, &[]).await?;
    let mut member = Member::of(&kafka, "cut");
    let before = member.count(5).await?;
    kafka.kill()?;
    let nothing = |has: &Assignment| *has == Assignment::default();
    timeout(SOON, member.has.wait_for(nothing)).await??;
    kafka.restart().await?;
    let after = member.count(5).await?;
    ensure!(
        after.generation >= before.generation,
        "{after:?} after {before:?}"
    );
    member.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_soon_back_takes_nothing_from_anybody() -> anyhow::Result<()> {
    let kafka = Kafka::start().await?;
    kafka.create_topic("back", 5, &[]).await?;
    let mut member = Member::of(&kafka, "back");
    member.count(5).await?;
    kafka.freeze();
    // Beats go unanswered, and are tried anew; the session is longer.
    tokio::time::sleep(SESSION / 3).await;
    kafka.thaw();
    let mut second = Member::of(&kafka, "back");
    let (more, less) = (member.count(3).await?, second.count(2).await?);
    ensure!(all(&[&more, &less]).len() == 5, "{more:?} {less:?}");
    member.leave().await?;
    second.leave().await
}
