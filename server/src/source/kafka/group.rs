//! Membership of a consumer group: which partitions of a topic this process has, while others of the group have the rest.
//!
//! Does: joins, takes part in sharing out, says that it is there, leaves. Owns: a connection to the group's coordinator. Never
//! knows: records; it commits no offsets and reads none, since where a partition goes on is said elsewhere.
//! Keeps: who was not heard for the session's time counts as having nothing, here as at the coordinator: so one that hung knows
//! it first. Failing costs a try a second at most, and a member that ends leaves.
//!
//! This is Kafka's classic protocol: members join, the coordinator makes one of them the leader, which shares out for all. A
//! rebalance takes nothing from anybody before it is over: for a moment two may believe that they have a partition, so it is of
//! use only for work that bears that. What a partition's share goes by is told in the form of Kafka's own consumers, so
//! `kafka-consumer-groups.sh --describe --members` shows it.

mod coordinator;
mod share;
mod words;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{
    coordinator::{Coordinator, Failed, Membership},
    words::Verdict,
};
use super::{KafkaCluster, KafkaError, backoff::Backoff};
use crate::source::Assignment;

/// So many heartbeats are sent in a session's time …
const BEATS: u32 = 10;
/// … and one at least so often, since it is by its answer that a member learns of a rebalance.
const BEAT_MAX: Duration = Duration::from_secs(3);
/// What the coordinator gives a member that is in no generation.
const NO_GENERATION: i32 = -1;

/// A group, and what it shares.
#[derive(Clone, Debug)]
pub struct GroupSettings {
    /// Its name.
    pub group: String,
    /// The topic whose partitions are shared …
    pub topic: String,
    /// … and how many it has.
    pub partitions: u32,
    /// After which silence a member counts as gone. The brokers have bounds for it, 6 s to 30 min by default.
    pub session_timeout: Duration,
}

/// A member of a group.
pub struct GroupMember {
    cluster: Arc<KafkaCluster>,
    settings: GroupSettings,
    coordinator: Option<Coordinator>,
    now: Membership,
    /// It has joined, and nobody has said since that it must do so again.
    joined: bool,
    lease: Lease,
    backoff: Backoff,
}

/// What others may rely on, and until when.
struct Lease {
    told: watch::Sender<Assignment>,
    until: Instant,
}

impl GroupMember {
    /// A member, and what it has; nothing yet.
    #[must_use]
    pub fn new(
        cluster: Arc<KafkaCluster>,
        settings: GroupSettings,
    ) -> (Self, watch::Receiver<Assignment>) {
        let (told, has) = watch::channel(Assignment::default());
        let lease = Lease {
            told,
            until: Instant::now(),
        };
        let member = Self {
            cluster,
            settings,
            coordinator: None,
            now: Membership {
                generation: NO_GENERATION,
                ..Membership::default()
            },
            joined: false,
            lease,
            backoff: Backoff::default(),
        };
        (member, has)
    }

    /// Belongs to the group until it is stopped; then it has nothing, and leaves.
    pub async fn run(mut self, stop: CancellationToken) {
        let ended = stop.run_until_cancelled(Box::pin(self.belong())).await;
        debug_assert!(ended.is_none(), "it belongs until it is stopped");
        self.lease.lose();
        self.leave().await;
    }

    async fn belong(&mut self) {
        loop {
            match self.round().await {
                Ok(()) => self.backoff = Backoff::default(),
                Err(failed) => self.failed(failed).await,
            }
        }
    }

    /// Joins where that is to be done, else waits and says that it is there.
    async fn round(&mut self) -> Result<(), Failed> {
        let coordinator = match self.coordinator.take().filter(|found| !found.is_busy()) {
            Some(coordinator) => coordinator,
            None => {
                let finding = Coordinator::find(&self.cluster, &self.settings.group);
                self.lease.watch(finding).await?
            }
        };
        let coordinator = self.coordinator.insert(coordinator);
        if self.joined {
            self.lease.watch(sleep(beat(&self.settings))).await;
            let (asked, patience) = (Instant::now(), self.cluster.settings.timeout);
            let beating = coordinator.beat(&self.settings, patience, &self.now);
            self.lease.watch(beating).await?;
            self.lease.renew(asked + self.settings.session_timeout);
            self.lease.give(&self.now);
            return Ok(());
        }
        // The coordinator answers when all have joined, so as late as it lets them.
        let patience = self.settings.session_timeout + self.cluster.settings.timeout;
        let joining = coordinator.join(&self.settings, patience, &mut self.now);
        self.lease.watch(joining).await?;
        self.joined = true;
        tracing::info!(
            group = self.settings.group, member = self.now.member, generation = self.now.generation,
            partitions = ?self.now.share, "partitions are shared out"
        );
        // The coordinator counts silence from its answer on, which was later than this.
        self.lease
            .renew(Instant::now() + self.settings.session_timeout);
        self.lease.give(&self.now);
        Ok(())
    }

    async fn failed(&mut self, failed: Failed) {
        match failed {
            Failed::Refused(Verdict::Fine | Verdict::Rejoin) => {
                self.joined = false;
                if self.backoff.is_clear() {
                    // The first time at once: the others wait for it.
                    return self.backoff.fail();
                }
            }
            Failed::Refused(Verdict::Forgotten) => {
                tracing::warn!(
                    group = self.settings.group,
                    "this member was given up by its group: it joins anew"
                );
                (self.joined, self.now) = (
                    false,
                    Membership {
                        generation: NO_GENERATION,
                        ..Membership::default()
                    },
                );
                self.lease.lose();
            }
            Failed::Refused(Verdict::Elsewhere) => self.coordinator = None,
            Failed::Refused(Verdict::Wrong(error)) => self.complain(&KafkaError::Refused(error)),
            Failed::Error(error) => self.complain(&error),
        }
        self.backoff.fail();
        self.lease.watch(self.backoff.over()).await;
    }

    /// Once for an outage.
    fn complain(&mut self, error: &KafkaError) {
        self.coordinator = None;
        if self.backoff.is_clear() {
            tracing::warn!(%error, group = self.settings.group, "the group's coordinator can't be asked");
        }
    }

    async fn leave(&mut self) {
        if self.now.member.is_empty() {
            return;
        }
        let patience = self.cluster.settings.timeout;
        let leaving = async {
            let mut coordinator = match self.coordinator.take().filter(|found| !found.is_busy()) {
                Some(coordinator) => coordinator,
                None => Coordinator::find(&self.cluster, &self.settings.group).await?,
            };
            coordinator
                .leave(&self.settings, patience, &self.now.member)
                .await
        };
        if let Err(error) = leaving.await {
            tracing::debug!(%error, group = self.settings.group, "could not leave: the others wait for this member's silence");
        }
    }
}

impl Lease {
    /// Does something; whoever is not heard of in time meanwhile has nothing.
    async fn watch<T>(&mut self, doing: impl Future<Output = T>) -> T {
        let mut doing = std::pin::pin!(doing);
        if self.told.borrow().generation.is_some() {
            tokio::select! {
                biased;
                done = &mut doing => return done,
                () = sleep_until(self.until) => self.lose(),
            }
        }
        doing.await
    }

    fn renew(&mut self, until: Instant) {
        self.until = self.until.max(until);
    }

    fn give(&self, now: &Membership) {
        let has = Assignment {
            generation: Some(now.generation),
            partitions: now.share.clone(),
        };
        self.told.send_if_modified(|told| {
            let differs = *told != has;
            *told = has;
            differs
        });
    }

    fn lose(&self) {
        let nothing = |told: &mut Assignment| {
            let had = std::mem::take(told);
            had != Assignment::default()
        };
        self.told.send_if_modified(nothing);
    }
}

/// Between two heartbeats.
fn beat(settings: &GroupSettings) -> Duration {
    (settings.session_timeout / BEATS).min(BEAT_MAX)
}
