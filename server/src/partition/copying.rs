//! Keeps a partition's copy on the node's disk: writes it again and again, and at the end; reads it when nothing else can be known.
//!
//! Owns: when it was written last, and the writing that is under way. Never knows: what is in it. Keeps: of a node one copy is
//! written at a time; reading the log, and answering, never wait for the disk.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinHandle, spawn_blocking},
};

use super::Partition;
use crate::{
    cache::copies::{Copied, CopyError, CopyOf},
    clock::Clock,
    model::{Epoch, Moment, Offset},
};

/// How a partition's views are copied.
#[derive(Clone, Debug)]
pub struct Copying {
    /// Where to.
    pub place: CopyOf,
    /// How often, where they have changed.
    pub every: Duration,
    /// Who has it writes: all of a node share it.
    pub turn: Arc<Semaphore>,
}

/// What there is to see of a partition's copy.
#[derive(Clone, Debug, serde::Serialize)]
pub struct CopyReport {
    /// How long ago this process wrote it last, in milliseconds; none where it has not.
    pub written_ms: Option<u64>,
    /// How long it is.
    pub bytes: u64,
    /// Why it could not be written last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// What a copy is of: where reading was, and of how many views.
type Of = (Epoch, Offset, usize);
type Written = Result<u64, CopyError>;

pub(super) struct Copier {
    copying: Copying,
    /// Not before this.
    due: Moment,
    last: Option<Of>,
    writing: Option<JoinHandle<Written>>,
    written_at: Option<Moment>,
    bytes: u64,
    failed: Option<String>,
}

impl Copier {
    pub(super) fn new(copying: Copying, now: Moment) -> Self {
        Self {
            due: now.plus(copying.every),
            copying,
            last: None,
            writing: None,
            written_at: None,
            bytes: 0,
            failed: None,
        }
    }

    /// Begins to write a copy when it is time, it is nobody else's turn, and there is something to be copied that has not been.
    pub(super) fn look(&mut self, partition: &Partition, clock: Clock) {
        let now = clock.now();
        if let Some(writing) = &mut self.writing {
            let Some(written) = writing.now_or_never() else {
                return;
            };
            self.writing = None;
            self.note(written.ok(), now);
        }
        if now < self.due {
            return;
        }
        if let Ok(turn) = self.copying.turn.clone().try_acquire_owned() {
            self.due = now.plus(self.copying.every);
            self.begin(partition, clock, turn);
        }
    }

    /// The same, whether it is time or not: what was read will not be read on for a while.
    pub(super) fn look_now(&mut self, partition: &Partition, clock: Clock) {
        self.due = Moment::default();
        self.look(partition, clock);
    }

    fn begin(&mut self, partition: &Partition, clock: Clock, turn: OwnedSemaphorePermit) {
        let other = |of: &Of| self.last.as_ref() != Some(of);
        let Some(of) = partition.copyable().filter(other) else {
            return;
        };
        let Some(copied) = partition.copied(clock.now(), clock.wall_ms()) else {
            return;
        };
        self.last = Some(of);
        let place = self.copying.place.clone();
        self.writing = Some(spawn_blocking(move || {
            let _turn = turn;
            place.write(&copied)
        }));
    }

    fn note(&mut self, written: Option<Written>, now: Moment) {
        match written {
            Some(Ok(bytes)) => {
                (self.written_at, self.bytes, self.failed) = (Some(now), bytes, None);
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "views were not copied to the disk: the copy before, if any, stays");
                (self.last, self.failed) = (None, Some(error.to_string()));
            }
            None => self.last = None,
        }
    }

    /// Reads what an earlier process left.
    pub(super) async fn read(&self) -> Option<Copied> {
        let place = self.copying.place.clone();
        let read = spawn_blocking(move || place.read()).await.ok()?;
        let refused = |error: &CopyError| {
            tracing::warn!(%error, "the copy of views on the disk is of no use");
        };
        read.inspect_err(refused).ok().flatten()
    }

    /// Reading has ended: what has changed since the last copy is copied, before this returns.
    pub(super) async fn finish(&mut self, partition: &Partition, clock: Clock) {
        self.wait(clock).await;
        if let Ok(turn) = self.copying.turn.clone().acquire_owned().await {
            self.begin(partition, clock, turn);
        }
        self.wait(clock).await;
    }

    async fn wait(&mut self, clock: Clock) {
        if let Some(writing) = self.writing.take() {
            let written = writing.await;
            self.note(written.ok(), clock.now());
        }
    }

    pub(super) fn report(&self, now: Moment) -> CopyReport {
        let since = |at| u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX);
        CopyReport {
            written_ms: self.written_at.map(since),
            bytes: self.bytes,
            failed: self.failed.clone(),
        }
    }
}
