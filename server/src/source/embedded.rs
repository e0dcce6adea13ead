//! The embedded engine: a partitioned log in memory, with the cache of its views beside it.
//!
//! The epoch changes with each start, since nothing survives it. Records go by bytes and age; the folded rows stay. An
//! append folds under the same short lock, so that a publisher who has its answer finds the record in every view that is
//! read later.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{Fetch, Source, SourceError};
use crate::{
    cache::{CachedView, MemoryCache, ViewMax},
    model::{Change, Channel, Epoch, Mode, Offset, Position, Record},
};

/// Repeats of an `id` are known within the last so many.
pub const ID_WINDOW: usize = 100_000;
/// … and within so long.
pub const ID_WINDOW_AGE_MS: i64 = 10 * 60 * 1000;
/// What a record costs beside its key and value, about.
const RECORD_OVERHEAD: usize = 96;

/// How long records are kept. Whichever limit is reached first.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
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
}

/// One partition's log and the cache of its views.
#[derive(Debug)]
pub struct EmbeddedLog {
    partition: u32,
    epoch: Epoch,
    settings: LogSettings,
    /// Bytes that the node's memory allows it, where that is less than its retention.
    room: AtomicUsize,
    state: Mutex<State>,
    head: watch::Sender<Offset>,
}

#[derive(Debug, Default)]
struct State {
    records: VecDeque<Record>,
    bytes: usize,
    start: Offset,
    head: Offset,
    ids: IdWindow,
    cache: MemoryCache,
}

/// The ids of the last records.
#[derive(Debug, Default)]
struct IdWindow {
    seen: HashMap<Arc<str>, Offset>,
    order: VecDeque<(i64, Arc<str>)>,
}

impl IdWindow {
    fn insert(&mut self, id: Arc<str>, offset: Offset, now_ms: i64) {
        self.seen.insert(id.clone(), offset);
        self.order.push_back((now_ms, id));
        self.expire(now_ms);
    }
    fn expire(&mut self, now_ms: i64) {
        while self.order.len() > ID_WINDOW
            || self
                .order
                .front()
                .is_some_and(|(at, _)| now_ms - at > ID_WINDOW_AGE_MS)
        {
            let Some((_, id)) = self.order.pop_front() else {
                return;
            };
            self.seen.remove(&id);
        }
    }
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
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self, offset: Offset) -> Position {
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

    /// Takes records in order, under one lock, and tells for each what became of it.
    pub fn append(&self, batch: Vec<NewRecord>, now_ms: i64) -> Vec<Appended> {
        let mut state = self.state();
        let before = state.head;
        let answers = batch
            .into_iter()
            .map(|new| self.append_one(&mut state, new, now_ms))
            .collect();
        self.retain(&mut state, now_ms);
        let head = state.head;
        drop(state);
        if head != before {
            self.head.send_replace(head);
        }
        answers
    }

    fn append_one(&self, state: &mut State, new: NewRecord, now_ms: i64) -> Appended {
        state.ids.expire(now_ms);
        if let Some(&offset) = new.id.as_ref().and_then(|id| state.ids.seen.get(id)) {
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
        let offset = Offset::new(state.head.number() + 1);
        state.head = offset;
        match self.settings.mode {
            Mode::View => state.cache.apply(&change, offset),
            Mode::Events => state.cache.touch(&change.channel, offset),
        }
        if let Some(id) = new.id {
            state.ids.insert(id, offset, now_ms);
        }
        let record = Record {
            offset,
            key: new.key,
            value: change.data,
            event_time_ms: new.event_time_ms,
            append_time_ms: now_ms,
        };
        state.bytes += weight(&record);
        state.records.push_back(record);
        Appended::At(self.at(offset))
    }

    fn retain(&self, state: &mut State, now_ms: i64) {
        let oldest = now_ms.saturating_sub(
            i64::try_from(self.settings.retention.age.as_millis()).unwrap_or(i64::MAX),
        );
        let most = self.most_bytes();
        let expired = |state: &State| {
            state.bytes > most
                || state
                    .records
                    .front()
                    .is_some_and(|record| record.append_time_ms < oldest)
        };
        while expired(state) {
            let Some(record) = state.records.pop_front() else {
                return;
            };
            state.bytes -= weight(&record);
            state.start = record.offset;
        }
    }

    fn most_bytes(&self) -> usize {
        let room = self.room.load(Ordering::Relaxed);
        self.settings.retention.bytes.min(room)
    }

    /// What the node's memory allows it from now on: the oldest records go at once.
    pub fn set_room(&self, bytes: usize) {
        self.room.store(bytes, Ordering::Relaxed);
        let (mut state, most) = (self.state(), self.most_bytes());
        while state.bytes > most {
            let Some(record) = state.records.pop_front() else {
                return;
            };
            state.bytes -= weight(&record);
            state.start = record.offset;
        }
    }

    /// Reads what follows `after` (without it: from the earliest record), about `bytes` at most, at least one record.
    #[must_use]
    pub fn read(&self, after: Option<Offset>, bytes: usize) -> Fetch {
        let state = self.state();
        let after = after.unwrap_or(state.start);
        let first = state
            .records
            .partition_point(|record| record.offset <= after);
        let (mut room, mut records) = (bytes, Vec::new());
        for record in state.records.range(first..) {
            if !records.is_empty() && room < weight(record) {
                break;
            }
            room = room.saturating_sub(weight(record));
            records.push(record.clone());
        }
        let upto = records
            .last()
            .map_or(state.head.max(after), |record| record.offset);
        Fetch {
            epoch: self.epoch.clone(),
            start: state.start,
            records,
            upto,
            head: state.head,
        }
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

    /// The last change of every channel, and the head at the same moment.
    #[must_use]
    pub fn manifest(&self) -> (HashMap<Channel, Offset>, Offset) {
        let state = self.state();
        (
            state
                .cache
                .manifest()
                .map(|(channel, at)| (channel.clone(), at))
                .collect(),
            state.head,
        )
    }

    /// Newest offset, earliest offset's predecessor, records and bytes held.
    #[must_use]
    pub fn extent(&self) -> (Offset, Offset, usize, usize) {
        let state = self.state();
        (state.head, state.start, state.records.len(), state.bytes)
    }

    /// Drops every record up to `upto`, as age would: for tests of what has gone.
    pub fn trim(&self, upto: Offset) {
        let mut state = self.state();
        while state
            .records
            .front()
            .is_some_and(|record| record.offset <= upto)
        {
            if let Some(record) = state.records.pop_front() {
                state.bytes -= weight(&record);
                state.start = record.offset;
            }
        }
    }
}

fn weight(record: &Record) -> usize {
    record.key.len() + record.value.as_ref().map_or(0, Bytes::len) + RECORD_OVERHEAD
}

/// The engine of a process: the logs of all its streams. Two gateways of one process may share it.
#[derive(Debug, Default)]
pub struct Engine {
    logs: Mutex<HashMap<String, Vec<Arc<EmbeddedLog>>>>,
}

impl Engine {
    /// The logs of a stream, made at first asking; `epoch` names each.
    pub fn logs(
        &self,
        stream: &str,
        partitions: u32,
        settings: LogSettings,
        epoch: impl Fn() -> Epoch,
    ) -> Vec<Arc<EmbeddedLog>> {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || {
            (0..partitions)
                .map(|partition| EmbeddedLog::new(partition, epoch(), settings))
                .collect()
        };
        logs.entry(stream.to_owned()).or_insert_with(made).clone()
    }
}

/// What an operator may do to a node's reading of a stream, to see `stale`, `catching_up` and healing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hindrance {
    /// Fetches fail.
    pub paused: bool,
    /// Records are handed out only this long after the log took them.
    pub delay: Duration,
}

/// A node's reader of one partition.
pub struct EmbeddedSource {
    log: Arc<EmbeddedLog>,
    head: watch::Receiver<Offset>,
    hindrance: watch::Receiver<Hindrance>,
    wall_ms: Box<dyn Fn() -> i64 + Send + Sync>,
}

impl EmbeddedSource {
    /// A reader; `wall_ms` tells the time, by which a delay is measured.
    #[must_use]
    pub fn new(
        log: Arc<EmbeddedLog>,
        hindrance: watch::Receiver<Hindrance>,
        wall_ms: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Self {
        Self {
            head: log.head.subscribe(),
            log,
            hindrance,
            wall_ms: Box::new(wall_ms),
        }
    }
}

/// Takes from a fetch what a delayed reader may not see yet. The head stays: so the reader knows that it is behind.
#[must_use]
pub fn delayed(mut fetch: Fetch, after: Option<Offset>, delay: Duration, now_ms: i64) -> Fetch {
    let newest = now_ms.saturating_sub(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
    let seen = fetch
        .records
        .partition_point(|record| record.append_time_ms <= newest);
    if seen < fetch.records.len() {
        fetch.records.truncate(seen);
        fetch.upto = fetch
            .records
            .last()
            .map_or(after.unwrap_or(fetch.start), |record| record.offset);
    }
    fetch
}

impl Source for EmbeddedSource {
    async fn fetch(&mut self, after: Option<Offset>, bytes: usize) -> Result<Fetch, SourceError> {
        let hindrance = *self.hindrance.borrow_and_update();
        if hindrance.paused {
            return Err(SourceError::Paused);
        }
        self.head.borrow_and_update();
        let fetch = self.log.read(after, bytes);
        Ok(if hindrance.delay.is_zero() {
            fetch
        } else {
            delayed(fetch, after, hindrance.delay, (self.wall_ms)())
        })
    }

    async fn changed(&mut self) {
        let delay = self.hindrance.borrow().delay;
        // An error means that the log or the operator's end is gone: the caller's own timer goes on.
        tokio::select! {
            biased;
            changed = self.hindrance.changed() => if changed.is_err() { std::future::pending().await },
            changed = self.head.changed(), if delay.is_zero() => if changed.is_err() { std::future::pending().await },
            () = tokio::time::sleep(delay.min(Duration::from_millis(50))), if !delay.is_zero() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RowId;

    fn log(bytes: usize, age: Duration) -> Arc<EmbeddedLog> {
        let view_max = ViewMax {
            rows: 3,
            bytes: 1000,
        };
        let settings = LogSettings {
            mode: Mode::View,
            retention: Retention { bytes, age },
            view_max,
        };
        EmbeddedLog::new(0, Epoch::new("e1").unwrap(), settings)
    }

    fn record(row: &str, data: Option<&str>, id: Option<&str>) -> NewRecord {
        let change = Change {
            channel: "s/c".parse().unwrap(),
            row: RowId::new(row).unwrap(),
            data: data.map(|data| data.to_owned().into()),
            ts_ms: 0,
        };
        NewRecord {
            key: format!("[\"c\",\"{row}\"]").into(),
            change,
            event_time_ms: None,
            id: id.map(Into::into),
        }
    }

    fn offsets(fetch: &Fetch) -> Vec<u64> {
        fetch
            .records
            .iter()
            .map(|record| record.offset.number())
            .collect()
    }

    #[test]
    fn what_is_appended_is_read_in_order() {
        let log = log(1 << 20, Duration::from_secs(60));
        log.append(
            vec![record("a", Some("1"), None), record("b", Some("2"), None)],
            1000,
        );
        log.append(vec![record("a", None, None)], 1001);
        assert_eq!(offsets(&log.read(None, 1 << 20)), [1, 2, 3]);
        assert_eq!(offsets(&log.read(Some(Offset::new(1)), 1)), [2]);
        let end = log.read(Some(Offset::new(3)), 1);
        assert_eq!(
            (offsets(&end).len(), end.upto, end.head),
            (0, Offset::new(3), Offset::new(3))
        );
        assert_eq!(log.view("s/c").0.rows.len(), 1);
    }

    #[test]
    fn a_repeated_id_is_dropped_within_its_window() {
        let log = log(1 << 20, Duration::from_secs(60));
        let first = log
            .append(vec![record("a", Some("1"), Some("x"))], 0)
            .remove(0);
        let Appended::At(at) = first else {
            panic!("{first:?}")
        };
        assert_eq!(
            log.append(vec![record("a", Some("2"), Some("x"))], 1),
            [Appended::Duplicate(at)]
        );
        assert!(matches!(
            log.append(
                vec![record("a", Some("2"), Some("x"))],
                ID_WINDOW_AGE_MS + 1
            )[..],
            [Appended::At(_)]
        ));
    }

    #[test]
    fn records_go_by_bytes_and_age_and_rows_stay() {
        let log = log(250, Duration::from_secs(1));
        log.append(
            vec![
                record("a", Some("1"), None),
                record("b", Some("2"), None),
                record("c", Some("3"), None),
            ],
            0,
        );
        let fetch = log.read(None, 1 << 20);
        assert_eq!((offsets(&fetch), fetch.start), (vec![2, 3], Offset::new(1)));
        log.append(vec![record("a", Some("4"), None)], 2000);
        assert_eq!(offsets(&log.read(None, 1 << 20)), [4]);
        assert_eq!(log.view("s/c").0.rows.len(), 3);
    }

    #[test]
    fn a_full_view_refuses_new_rows_and_takes_the_others() {
        let log = log(1 << 20, Duration::from_secs(60));
        let answers = log.append(
            ["a", "b", "c", "d", "a"]
                .map(|row| record(row, Some("1"), None))
                .to_vec(),
            0,
        );
        assert_eq!(answers[3], Appended::ViewFull);
        assert!(matches!(answers[4], Appended::At(_)));
    }

    #[test]
    fn a_delayed_reader_sees_the_head_but_not_what_is_too_new() {
        let log = log(1 << 20, Duration::from_secs(60));
        log.append(vec![record("a", Some("1"), None)], 1000);
        log.append(vec![record("a", Some("2"), None)], 2000);
        let fetch = delayed(log.read(None, 1 << 20), None, Duration::from_secs(1), 2500);
        assert_eq!(
            (offsets(&fetch), fetch.upto, fetch.head),
            (vec![1], Offset::new(1), Offset::new(2))
        );
        let after = Some(Offset::new(1));
        let fetch = delayed(
            log.read(after, 1 << 20),
            after,
            Duration::from_secs(1),
            2500,
        );
        assert_eq!((offsets(&fetch).len(), fetch.upto), (0, Offset::new(1)));
    }
}
