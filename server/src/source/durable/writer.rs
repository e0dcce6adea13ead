//! The writer: the one thread that changes a data directory.
//!
//! Does: takes what publishers submitted since its last round, makes one commit of it for each partition, and answers once
//! the commit is where the policy wants it. While it syncs, the next round gathers: so many publishers share a sync, and
//! nobody waits for a timer. Owns: the queue's end, and the thread. Keeps: what is not durable is neither answered nor read.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{SyncPolicy, commit, disk::Disk, fold::Fold, plan::Plan, store::Store};
use crate::{
    clock::Clock,
    model::Position,
    source::embedded::{Appended, EmbeddedLog, Lost, NewRecord},
    telemetry::{LogCounts, Throttle},
};

/// Batches that may wait for the writer; beyond it the publisher waits.
pub(super) const QUEUE_MAX: usize = 1024;
/// Records of a round, about: a round ends with the batch that reaches it.
const ROUND_RECORDS: usize = 16 << 10;
/// … and bytes.
const ROUND_BYTES: usize = 8 << 20;
/// How often quiet partitions are looked at for what retention wants to go.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What the writer is asked.
#[derive(Debug)]
pub(in crate::source) enum Work {
    /// To append.
    Append(Batch),
    /// To write what waits, sync everything, and end.
    Close,
}

/// Records of one publisher for one partition.
#[derive(Debug)]
pub(in crate::source) struct Batch {
    pub(in crate::source) log: Arc<EmbeddedLog>,
    pub(in crate::source) records: Vec<NewRecord>,
    pub(in crate::source) now_ms: i64,
    pub(in crate::source) lost: Arc<Lost>,
    pub(in crate::source) reply: oneshot::Sender<Vec<Appended>>,
}

impl Batch {
    fn bytes(&self) -> usize {
        let value = |record: &NewRecord| record.change.data.as_ref().map_or(0, bytes::Bytes::len);
        self.records
            .iter()
            .map(|record| record.key.len() + value(record))
            .sum()
    }
}

/// Partitions of a data directory, as far as somebody still has them.
pub(super) type Known = Arc<Mutex<Vec<Weak<EmbeddedLog>>>>;

/// The writer's own state.
pub(super) struct Writer {
    pub(super) queue: mpsc::Receiver<Work>,
    pub(super) policy: SyncPolicy,
    pub(super) disk: Arc<dyn Disk>,
    /// Removed when everything is durable at the end.
    pub(super) running: PathBuf,
    pub(super) known: Known,
    pub(super) counts: Arc<LogCounts>,
    pub(super) clock: Clock,
    pub(super) buffer: Vec<u8>,
    pub(super) warning: Throttle,
}

impl Writer {
    /// Works until it is told to close, or nobody is left who could ask anything.
    pub(super) async fn run(mut self) {
        let mut sync_at = Instant::now();
        let mut look_at = Instant::now() + LOOK_EVERY;
        let mut closing = false;
        while !closing {
            let tick = self
                .policy
                .every()
                .map_or(look_at, |_| look_at.min(sync_at));
            let work = tokio::select! {
                biased;
                () = tokio::time::sleep_until(tick) => None,
                work = self.queue.recv() => Some(work.unwrap_or(Work::Close)),
            };
            closing = work.is_some_and(|work| self.round(work));
            let now = Instant::now();
            if let Some(every) = self.policy.every().filter(|_| now >= sync_at) {
                self.sync_all();
                sync_at = now + every;
            }
            if now >= look_at {
                self.look();
                look_at = now + LOOK_EVERY;
            }
        }
        self.end();
    }

    /// Takes what waits, this first, and commits it. Says whether to close.
    fn round(&mut self, first: Work) -> bool {
        let (mut batches, mut records, mut bytes) = (Vec::new(), 0, 0);
        let mut next = Some(first);
        while let Some(work) = next {
            let Work::Append(batch) = work else {
                self.commit_all(batches);
                return true;
            };
            records += batch.records.len();
            bytes += batch.bytes();
            batches.push(batch);
            let has_room = records < ROUND_RECORDS && bytes < ROUND_BYTES;
            next = has_room.then(|| self.queue.try_recv().ok()).flatten();
        }
        self.commit_all(batches);
        false
    }

    /// One commit for each partition, in the order in which their first batches came.
    fn commit_all(&mut self, mut batches: Vec<Batch>) {
        while let Some(log) = batches.first().map(|batch| batch.log.clone()) {
            let (ours, others) = batches
                .into_iter()
                .partition(|batch| Arc::ptr_eq(&batch.log, &log));
            batches = others;
            if let Some(store) = log.store() {
                self.commit(&log, store, ours);
            }
        }
    }

    fn commit(&mut self, log: &EmbeddedLog, store: &Store, batches: Vec<Batch>) {
        let now_ms = batches.last().map_or(0, |batch| batch.now_ms);
        let (mut answers, mut channels) = (Vec::new(), Vec::new());
        let plan = {
            let mut state = log.state();
            let mut plan = Plan::new(&state, now_ms);
            if let Some(ttl) = log.settings.row_ttl {
                plan.expire(ttl, &state);
            }
            for batch in batches {
                channels.extend(
                    batch
                        .records
                        .iter()
                        .map(|new| (batch.lost.clone(), new.change.channel.clone())),
                );
                let appended = batch
                    .records
                    .into_iter()
                    .map(|new| plan.add(log, &mut state, new, &batch.lost));
                answers.push((batch.reply, appended.collect::<Vec<_>>()));
            }
            plan
        };
        let head = log.head();
        if let Err(error) = self.store(log, store, plan, now_ms) {
            self.warn(store, "records can't be stored", &error);
            channels
                .into_iter()
                .for_each(|(lost, channel)| lost.add(channel));
            let is_old = |at: &Position| at.offset <= head;
            for appended in answers.iter_mut().flat_map(|(_, appended)| appended) {
                if !matches!(appended, Appended::Duplicate(at) if is_old(at)) {
                    *appended = Appended::NotStored;
                }
            }
        }
        for (reply, appended) in answers {
            // Who asked may have gone.
            drop(reply.send(appended));
        }
    }

    /// Writes a plan, makes it as durable as the policy asks, and only then carries it out.
    fn store(
        &mut self,
        log: &EmbeddedLog,
        store: &Store,
        plan: Plan,
        now_ms: i64,
    ) -> io::Result<()> {
        if plan.entries.is_empty() {
            return Ok(());
        }
        commit::encode(&mut self.buffer, &plan.entries);
        let head = commit::head(&self.buffer).map_err(io::Error::other)?;
        let rolled = store.write(&self.buffer, &head)?;
        if self.policy == SyncPolicy::Commit {
            let began = Instant::now();
            store.sync()?;
            self.counts.syncs.note(began.elapsed());
        }
        store.settle(&head);
        self.counts.commits.add(1);
        log.carry_out(|state| plan.carry_out(state));
        if rolled {
            self.retire(log, store, now_ms);
        }
        Ok(())
    }

    fn retire(&mut self, log: &EmbeddedLog, store: &Store, now_ms: i64) {
        if let Err(error) = store.retire(now_ms, || Fold::of(&log.state())) {
            self.warn(store, "retention can't remove what is old", &error);
        }
    }

    fn each_known(&self) -> Vec<Arc<EmbeddedLog>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().filter_map(Weak::upgrade).collect()
    }

    fn look(&mut self) {
        let now_ms = self.clock.wall_ms();
        for log in self.each_known() {
            if let Some(store) = log.store() {
                self.retire(&log, store, now_ms);
            }
        }
    }

    fn sync_all(&mut self) {
        for log in self.each_known() {
            let (Some(store), began) = (log.store(), Instant::now()) else {
                continue;
            };
            match store.sync() {
                Ok(true) => self.counts.syncs.note(began.elapsed()),
                Ok(false) => {}
                Err(error) => self.warn(store, "records can't be synced", &error),
            }
        }
    }

    /// Whoever still asks is told no; then everything is made durable, and the directory says so.
    fn end(&mut self) {
        self.queue.close();
        self.sync_all();
        let all = self.each_known();
        let mut stores = all.iter().filter_map(|log| log.store());
        if !stores.all(Store::is_sound) {
            return;
        }
        if let Err(error) = self.disk.remove(&self.running) {
            tracing::warn!(%error, "the data directory can't be marked as left in order");
        }
    }

    fn warn(&mut self, store: &Store, what: &str, error: &io::Error) {
        self.counts.failures.add(1);
        if let Some(kept_back) = self.warning.pass(self.clock.now()) {
            tracing::error!(at = %store.dir().display(), %error, kept_back, "{what}");
        }
    }
}
