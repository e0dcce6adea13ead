//! Folds the partitions of a stream into the cache, by compare-and-set: a role of the same program.
//!
//! Does: keeps a task for each partition that this process was given, ends those of partitions that it has no more. A task reads
//! its partition from where the cache says that the fold is, folds what it reads to the last write per row, and writes that with
//! the next header, if the header there is still the one that it saw last. Owns: the tasks. Never knows: clients, sessions, views
//! as nodes serve them; who shares partitions out, and how.
//! Keeps: the cache alone says where to go on, so crashes, repeats, two who fold one partition, and a cache that went back are
//! harmless. A row never comes from a fold whose rules, log or keys are not those of its header: where it can't be gone on from,
//! the log is folded from its start beside what is there, and takes its place in one step. `tests/model/materializer.py` is this
//! algorithm as a simulation. A source or cache that fails costs a try a second at most, and nothing needs a restart.

mod again;
mod fold;
mod status;
mod task;

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{Id, JoinError, JoinSet},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use self::{
    fold::Fold,
    task::{Door, Task},
};
pub use self::{
    fold::{FoldSettings, Why},
    status::{PartitionStatus, Phase, Statuses, StreamStatus},
};
use crate::{
    cache::redis::GuardedCache,
    clock::Clock,
    decode::Decoder,
    source::{Assignment, Source, poisons::Poisons},
};

/// Before a task that should not have ended is begun anew.
const ANEW: Duration = Duration::from_secs(1);

/// What all partitions of a stream are folded by.
pub struct Ground {
    /// Where the fold is kept.
    pub cache: Arc<GuardedCache>,
    /// What the fold depends on.
    pub settings: FoldSettings,
    /// What its readers do with records that mean nothing.
    pub poisons: Arc<Poisons>,
    /// The node's clock.
    pub clock: Clock,
}

/// The materializer of one stream in this process.
pub struct Materializer<S, D> {
    ground: Ground,
    /// A reader of a partition, and what its records mean.
    open: S,
    decoder: D,
    status: Arc<StreamStatus>,
    tasks: JoinSet<()>,
    /// The task of each partition, and what ends it.
    ends: HashMap<u32, (Id, CancellationToken)>,
}

impl<R, S, D> Materializer<S, D>
where
    R: Source,
    S: Fn(u32) -> R,
    D: Fn() -> Decoder,
{
    /// A materializer, which has no partitions yet.
    #[must_use]
    pub fn new(stream: &str, ground: Ground, open: S, decoder: D) -> Self {
        Self {
            status: Arc::new(StreamStatus::new(stream, ground.poisons.clone())),
            ground,
            open,
            decoder,
            tasks: JoinSet::new(),
            ends: HashMap::new(),
        }
    }

    /// What there is to see of it.
    #[must_use]
    pub fn status(&self) -> Arc<StreamStatus> {
        self.status.clone()
    }

    /// Folds what it is given, until it is stopped or nobody gives any more.
    pub async fn run(mut self, mut given: watch::Receiver<Assignment>, stop: CancellationToken) {
        loop {
            let share = given.borrow_and_update().clone();
            self.keep(&share);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = given.changed() => if changed.is_err() { break },
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended).await,
            }
        }
        self.keep(&Assignment::default());
        while self.tasks.join_next().await.is_some() {}
    }

    /// Begins and ends tasks so that there is one for each of these.
    fn keep(&mut self, share: &Assignment) {
        self.status.has(share.clone());
        self.ends.retain(|number, (_, end)| {
            let stays = share.partitions.contains(number);
            if !stays {
                end.cancel();
            }
            stays
        });
        for &number in &share.partitions {
            if !self.ends.contains_key(&number) {
                self.begin(number);
            }
        }
    }

    fn begin(&mut self, number: u32) {
        let Ground {
            cache,
            settings,
            clock,
            poisons: _,
        } = &self.ground;
        let task = Task {
            number,
            fold: Fold::new(number, settings.clone(), (self.decoder)(), clock.wall_ms()),
            source: (self.open)(number),
            door: Door::new(cache.clone(), *clock),
            status: self.status.clone(),
            unread: None,
        };
        let end = CancellationToken::new();
        let told = end.clone();
        let run = async move {
            // What was on its way when it ends is written or not, and whoever goes on sees which.
            told.run_until_cancelled(Box::pin(task.run())).await;
        };
        let id = self.tasks.spawn(run).id();
        self.ends.insert(number, (id, end));
    }

    /// A task has ended: as it was told, or because something in it is broken.
    async fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let Err(error) = ended else {
            return;
        };
        tracing::error!(%error, stream = self.status.stream, "a partition's task broke: it begins anew");
        self.ends.retain(|_, (id, _)| *id != error.id());
        sleep(ANEW).await;
    }
}
