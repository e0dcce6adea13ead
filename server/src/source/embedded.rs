//! The embedded engine: a partitioned log in memory, with the cache of its views beside it.
//!
//! Records go by number, bytes and age; the folded rows stay. An append folds under the same short lock, so that a publisher
//! who has its answer finds the record in every view that is read later. Where rows have a time to live, the log writes the
//! tombstones of those whose time is over itself, so that every node and everybody who resumes meets them as ordinary
//! records. By itself the log is gone with the process, and its epoch changes with each start. With a data directory,
//! records take the way of `durable.rs`: they are appended here once they are stored, and memory holds only the newest.

mod engine;
mod expiry;
mod reader;
mod state;

pub use engine::{Engine, LogSpec};
pub(super) use expiry::Expiry;
pub use reader::EmbeddedSource;
pub(super) use state::IdWindow;
pub(super) use state::State;
pub use state::{ID_WINDOW, ID_WINDOW_AGE_MS};

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Fetch, SourceError,
    durable::{Batch, Store, Work},
};
use crate::{
    cache::{CachedView, ViewMax},
    model::{Change, Channel, Epoch, Mode, Offset, Position, Record},
};

/// Rows deleted in one go, since their time was over: the lock is held no longer.
pub(super) const EXPIRED_BATCH: usize = 1024;

/// How long records are kept. Whichever limit is reached first.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Records of a partition; none: as many as the other limits allow.
    pub records: Option<usize>,
    /// Bytes of a partition's records.
    pub bytes: usize,
    /// Since the log took them.
    pub age: Duration,
}

/// What a partition's log is told of its stream.
#[derive(Clone, Copy, Debug)]
pub struct LogSettings {
    /// Whether rows are folded.
    pub mode: Mode,
    /// How long records are kept.
    pub retention: Retention,
    /// How large a view may become.
    pub view_max: ViewMax,
    /// Rows of a view whose last change is older than this are deleted.
    pub row_ttl: Option<Duration>,
}

/// A record as a publisher gives it. `key` is what logs compact by; `change` is what it says.
#[derive(Clone, Debug)]
pub struct NewRecord {
    /// `["channel","row"]`.
    pub key: Bytes,
    /// Its meaning. `ts_ms` counts only where `event_time_ms` is set.
    pub change: Change,
    /// The producer's time.
    pub event_time_ms: Option<i64>,
    /// The publisher's name for it: repeats are dropped.
    pub id: Option<Arc<str>>,
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is in the log, here.
    At(Position),
    /// It is a repeat of the record here.
    Duplicate(Position),
    /// The view has no room for it.
    ViewFull,
    /// The disk did not take it; it may later.
    NotStored,
    /// An earlier one of its channel was not stored: so this one is not either, to keep their order.
    AfterFailed,
    /// The log elsewhere did not say in time that it has it, which it may all the same.
    Unavailable,
    /// This node may not write to the log elsewhere.
    Denied,
    /// It is larger than the log elsewhere takes.
    TooLarge,
    /// The log elsewhere does not take such a record.
    Unfit,
    /// Too many wait for the log elsewhere: it was not tried.
    Overloaded,
    /// The log elsewhere has not answered others: for so long nothing is tried, nor was this.
    NotTried(Duration),
}

/// What becomes of a batch: at once in memory, later on disk.
#[derive(Debug)]
pub enum Submitted {
    /// This, of each record in order.
    Done(Vec<Appended>),
    /// It will be told. When nobody is left to tell, the log has been closed.
    Waiting(oneshot::Receiver<Vec<Appended>>),
}

/// The channels of which a record of one publisher was not stored: what it submitted behind that one is not stored either.
#[derive(Debug, Default)]
pub struct Lost(Mutex<HashSet<Channel>>);

impl Lost {
    fn channels(&self) -> MutexGuard<'_, HashSet<Channel>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(super) fn add(&self, channel: Channel) {
        self.channels().insert(channel);
    }
    pub(super) fn has(&self, channel: &Channel) -> bool {
        let channels = self.channels();
        !channels.is_empty() && channels.contains(channel)
    }
}

/// One partition's log and the cache of its views.
#[derive(Debug)]
pub struct EmbeddedLog {
    partition: u32,
    epoch: Epoch,
    pub(super) settings: LogSettings,
    /// Bytes that the node's memory allows it, where that is less than its own bound.
    room: AtomicUsize,
    state: Mutex<State>,
    head: watch::Sender<Offset>,
    disk: Option<(Store, mpsc::Sender<Work>)>,
}

impl EmbeddedLog {
    /// An empty log. `epoch` must never have been used for this partition before.
    #[must_use]
    pub fn new(partition: u32, epoch: Epoch, settings: LogSettings) -> Arc<Self> {
        Arc::new(Self {
            partition,
            epoch,
            settings,
            room: AtomicUsize::new(usize::MAX),
            state: Mutex::default(),
            head: watch::Sender::new(Offset::BEFORE_ALL),
            disk: None,
        })
    }

    /// A log whose records are in these files, with what memory holds of it.
    pub(super) fn durable(
        partition: u32,
        epoch: Epoch,
        settings: LogSettings,
        state: State,
        disk: (Store, mpsc::Sender<Work>),
    ) -> Arc<Self> {
        Arc::new(Self {
            partition,
            epoch,
            settings,
            room: AtomicUsize::new(usize::MAX),
            head: watch::Sender::new(state.head),
            state: Mutex::new(state),
            disk: Some(disk),
        })
    }

    /// Its files, if it has any.
    pub(super) fn store(&self) -> Option<&Store> {
        self.disk.as_ref().map(|(store, _)| store)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn at(&self, offset: Offset) -> Position {
        Position {
            partition: self.partition,
            epoch: self.epoch.clone(),
            offset,
        }
    }

    /// Its identity.
    #[must_use]
    pub const fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Takes records in order: at once in memory, or, where the log has files, by way of the writer. Waits only for room in
    /// its queue. `lost` is the publisher's own.
    pub async fn submit(
        self: &Arc<Self>,
        records: Vec<NewRecord>,
        now_ms: i64,
        lost: &Arc<Lost>,
    ) -> Submitted {
        let Some((_, writer)) = &self.disk else {
            return Submitted::Done(self.append(records, now_ms));
        };
        let (reply, answer) = oneshot::channel();
        let (log, lost) = (self.clone(), lost.clone());
        // A writer that is gone drops the batch, and so the asker is told.
        drop(
            writer
                .send(Work::Append(Batch {
                    log,
                    records,
                    now_ms,
                    lost,
                    reply,
                }))
                .await,
        );
        Submitted::Waiting(answer)
    }

    /// Takes into memory what is stored, and tells the readers.
    pub(super) fn carry_out(&self, plan: impl FnOnce(&mut State)) {
        let mut state = self.state();
        let before = state.head;
        plan(&mut state);
        let hot = self.store().map_or(usize::MAX, |store| store.hot_bytes);
        state.keep_newest(hot.min(self.room.load(Ordering::Relaxed)));
        let head = state.head;
        self.forget_quiet(&mut state, before);
        drop(state);
        self.head.send_replace(head);
    }

    /// Takes records in order, under one lock, and tells for each what became of it. For logs without files.
    pub fn append(&self, batch: Vec<NewRecord>, now_ms: i64) -> Vec<Appended> {
        let mut state = self.state();
        let before = state.head;
        self.expire_rows(&mut state, now_ms);
        let answers = batch
            .into_iter()
            .map(|new| self.append_one(&mut state, new, now_ms))
            .collect();
        self.retain(&mut state, now_ms);
        let head = state.head;
        self.forget_quiet(&mut state, before);
        drop(state);
        if head != before {
            self.head.send_replace(head);
        }
        answers
    }

    fn append_one(&self, state: &mut State, new: NewRecord, now_ms: i64) -> Appended {
        if let Some(offset) = new.id.as_ref().and_then(|id| state.ids.known(id, now_ms)) {
            return Appended::Duplicate(self.at(offset));
        }
        let mut change = new.change;
        change.ts_ms = new.event_time_ms.unwrap_or(now_ms);
        let full = |view: &CachedView| view.would_exceed(&change, self.settings.view_max);
        if self.settings.mode == Mode::View {
            let view = state.cache.view(&change.channel);
            if view.map_or_else(|| full(&CachedView::default()), full) {
                return Appended::ViewFull;
            }
        }
        let offset = self.fold(state, &new.key, &change, now_ms);
        if let Some(id) = new.id {
            state.ids.insert(id, offset, now_ms);
        }
        state.push(Record {
            offset,
            key: new.key,
            value: change.data,
            event_time_ms: new.event_time_ms,
            append_time_ms: now_ms,
            expired: false,
        });
        Appended::At(self.at(offset))
    }

    /// Gives a change the next offset, and folds it.
    fn fold(&self, state: &mut State, key: &Bytes, change: &Change, now_ms: i64) -> Offset {
        let offset = Offset::new(state.head.number() + 1);
        state.head = offset;
        match self.settings.mode {
            Mode::View => {
                let old = state.cache.apply(change, offset).map(|row| row.offset);
                if self.settings.row_ttl.is_some() {
                    state.expiry.note(old, offset, (key, change), now_ms);
                }
            }
            Mode::Events => state.cache.touch(&change.channel, offset),
        }
        offset
    }

    /// Deletes rows whose time is over, by ordinary records; a batch at most, so that the lock is held for a moment only.
    /// Whoever reads the log or appends to it asks for that.
    pub fn expire(self: &Arc<Self>, now_ms: i64) {
        let Some(ttl) = self.settings.row_ttl else {
            return;
        };
        let mut state = self.state();
        if let Some((_, writer)) = &self.disk {
            let is_due = state.expiry.due(ttl, now_ms).next().is_some();
            drop(state);
            if is_due {
                self.ask_to_expire(writer, now_ms);
            }
            return;
        }
        let before = state.head;
        self.expire_rows(&mut state, now_ms);
        let head = state.head;
        if head == before {
            return;
        }
        self.retain(&mut state, now_ms);
        drop(state);
        self.head.send_replace(head);
    }

    /// A batch without records makes the writer look for rows whose time is over; when its queue is full, the next reader asks.
    fn ask_to_expire(self: &Arc<Self>, writer: &mpsc::Sender<Work>, now_ms: i64) {
        let batch = Batch {
            log: self.clone(),
            records: Vec::new(),
            now_ms,
            lost: Arc::default(),
            reply: oneshot::channel().0,
        };
        drop(writer.try_send(Work::Append(batch)));
    }

    fn expire_rows(&self, state: &mut State, now_ms: i64) {
        let Some(ttl) = self.settings.row_ttl else {
            return;
        };
        let due: Vec<_> = state.expiry.due(ttl, now_ms).take(EXPIRED_BATCH).collect();
        for (key, tombstone) in due {
            let offset = self.fold(state, &key, &tombstone, now_ms);
            state.expired += 1;
            state.push(Record {
                offset,
                key,
                value: None,
                event_time_ms: None,
                append_time_ms: now_ms,
                expired: true,
            });
        }
    }

    fn retain(&self, state: &mut State, now_ms: i64) {
        let keep = &self.settings.retention;
        let oldest = now_ms.saturating_sub(i64::try_from(keep.age.as_millis()).unwrap_or(i64::MAX));
        let records = keep.records.unwrap_or(usize::MAX);
        let most = keep.bytes.min(self.room.load(Ordering::Relaxed));
        state.drop_while(|state, record| {
            state.bytes > most || state.records.len() > records || record.append_time_ms < oldest
        });
    }

    /// Channels without rows go some time after the last of their records, or names that are used once would stay for ever.
    fn forget_quiet(&self, state: &mut State, before: Offset) {
        let start = self.start(state);
        let records = state.head.number() - before.number();
        let records = usize::try_from(records).unwrap_or(usize::MAX);
        state.cache.forget_quiet(start, records);
    }

    /// What the node's memory allows it from now on: the oldest records go at once. What has files stays in them.
    pub fn set_room(&self, bytes: usize) {
        self.room.store(bytes, Ordering::Relaxed);
        self.state().keep_newest(bytes);
    }

    /// Bytes that it holds in memory.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.state().bytes
    }

    /// Rows of its views, and what they hold in memory, about.
    #[must_use]
    pub fn rows(&self) -> (usize, usize) {
        let state = self.state();
        (state.cache.rows(), state.cache.weight())
    }

    /// Reads what follows `after` (without it: from the earliest record that memory holds), about `bytes` at most, at least
    /// one record.
    ///
    /// # Errors
    /// [`SourceError::Unavailable`]: the records are in files that can't be read.
    pub fn read(&self, after: Option<Offset>, bytes: usize) -> Result<Fetch, SourceError> {
        let state = self.state();
        let Some(after) = after else {
            // Records that only the disk has are read by those who ask for them.
            let start = state.start;
            return Ok(Fetch {
                start,
                ..self.fetched(start, &state, state.read(start, bytes))
            });
        };
        let Some(store) = self.store().filter(|_| after < state.start) else {
            return Ok(self.fetched(after, &state, state.read(after, bytes)));
        };
        drop(state);
        let records = store.read(after, bytes).map_err(|error| {
            tracing::error!(%error, "stored records can't be read");
            SourceError::Unavailable
        })?;
        Ok(self.fetched(after, &self.state(), records))
    }

    fn fetched(&self, after: Offset, state: &State, records: Vec<Record>) -> Fetch {
        Fetch {
            epoch: self.epoch.clone(),
            start: self.start(state),
            when: None,
            lineage: None,
            upto: records
                .last()
                .map_or(state.head.max(after), |record| record.offset),
            records,
            head: state.head,
        }
    }

    /// Just before the earliest record, in memory or on disk.
    fn start(&self, state: &State) -> Offset {
        self.store().and_then(Store::start).unwrap_or(state.start)
    }

    /// The view of a channel and the log's head at the same moment.
    #[must_use]
    pub fn view(&self, channel: &str) -> (CachedView, Offset) {
        let state = self.state();
        (
            state.cache.view(channel).cloned().unwrap_or_default(),
            state.head,
        )
    }

    /// The last change of every channel, and the offset after which no other channel has changed.
    #[must_use]
    pub fn manifest(&self) -> (HashMap<Channel, Offset>, Offset) {
        let state = self.state();
        (
            state
                .cache
                .manifest()
                .map(|(channel, at)| (channel.clone(), at))
                .collect(),
            state.cache.forgotten(),
        )
    }

    /// Keeps those of some channels that the log still knows.
    pub fn retain_known(&self, channels: &mut Vec<Channel>) {
        let state = self.state();
        channels.retain(|channel| state.cache.view(channel).is_some());
    }

    /// Newest offset, earliest offset's predecessor, records and bytes held.
    #[must_use]
    pub fn extent(&self) -> (Offset, Offset, usize, usize) {
        let state = self.state();
        let (records, bytes) = self
            .store()
            .map_or((state.records.len(), state.bytes), Store::size);
        (state.head, self.start(&state), records, bytes)
    }

    /// The newest offset.
    #[must_use]
    pub fn head(&self) -> Offset {
        self.state().head
    }

    /// Rows that were deleted since their time was over.
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.state().expired
    }

    /// Drops every record up to `upto`, as age would: for tests of what has gone.
    pub fn trim(&self, upto: Offset) {
        self.state().drop_while(|_, record| record.offset <= upto);
    }
}

#[cfg(test)]
mod tests;
