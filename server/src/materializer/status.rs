//! What there is to see of a stream's materializer: its numbers, and how each of its partitions is doing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;

use super::fold::Why;
use crate::{
    source::{Assignment, poisons::Poisons},
    telemetry::MaterializerCounts,
};

/// What a partition's task is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It asks the cache how far it is.
    #[default]
    Looking,
    /// It goes on from there.
    Folding,
    /// It folds the log from its start, beside the current generation.
    Building,
    /// It makes what it built the current generation.
    Flipping,
}

/// How a partition is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PartitionStatus {
    /// What its task is at.
    pub phase: Phase,
    /// Why it is folded from the log's start, while it is.
    pub why: Option<Why>,
    /// The epoch that the cache has, as far as is known.
    pub epoch: Option<String>,
    /// The generation that is written to.
    pub generation: Option<String>,
    /// Everything up to here is in the cache.
    pub applied: u64,
    /// The newest head seen.
    pub head: u64,
    /// When everything that a reader going on from there needs was in the log, in milliseconds since 1970.
    pub proven_ms: Option<i64>,
    /// Folded from the log's birth.
    pub complete: Option<bool>,
    /// What is wrong, while something is.
    pub wrong: Option<String>,
}

/// A stream's materializer in this process.
#[derive(Debug)]
pub struct StreamStatus {
    /// The stream's name.
    pub stream: String,
    /// What is counted of all its partitions.
    pub counts: MaterializerCounts,
    /// What its readers do with records that mean nothing.
    pub poisons: Arc<Poisons>,
    inner: Mutex<Inner>,
}

/// All that a process has.
#[derive(Debug, Default)]
pub struct Statuses(Mutex<BTreeMap<String, Arc<StreamStatus>>>);

impl Statuses {
    /// One more.
    pub fn add(&self, status: Arc<StreamStatus>) {
        self.lock().insert(status.stream.clone(), status);
    }
    /// That of this stream is no more.
    pub fn remove(&self, stream: &str) {
        self.lock().remove(stream);
    }
    /// That of this stream.
    #[must_use]
    pub fn of(&self, stream: &str) -> Option<Arc<StreamStatus>> {
        self.lock().get(stream).cloned()
    }
    /// All of them, in the order of names.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<StreamStatus>> {
        self.lock().values().cloned().collect()
    }
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<StreamStatus>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Inner {
    share: Assignment,
    partitions: BTreeMap<u32, PartitionStatus>,
}

impl StreamStatus {
    pub(super) fn new(stream: &str, poisons: Arc<Poisons>) -> Self {
        Self {
            stream: stream.to_owned(),
            poisons,
            counts: MaterializerCounts::default(),
            inner: Mutex::default(),
        }
    }

    /// The partitions of this process, and which sharing out they come from.
    #[must_use]
    pub fn share(&self) -> Assignment {
        self.lock().share.clone()
    }

    /// How its partitions are doing.
    #[must_use]
    pub fn partitions(&self) -> BTreeMap<u32, PartitionStatus> {
        self.lock().partitions.clone()
    }

    pub(super) fn has(&self, share: Assignment) {
        let mut inner = self.lock();
        inner
            .partitions
            .retain(|number, _| share.partitions.contains(number));
        inner.share = share;
    }

    /// What a task says of its partition; one that is no longer this process's says nothing.
    pub(super) fn note(&self, number: u32, status: PartitionStatus) {
        let mut inner = self.lock();
        if inner.share.partitions.contains(&number) {
            inner.partitions.insert(number, status);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
