//! What a data directory keeps through restarts, cuts, damage and full disks. The helpers are here.

use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use super::{directory::MARK, disk::faulty::Faulty, *};
use crate::{
    cache::ViewMax,
    model::{Change, Record, RowId},
    source::embedded::{Appended, Engine, LogSettings, Lost, NewRecord, Retention, Submitted},
};

mod damage;
mod faults;
mod retention;

/// A directory of a test's own, and its disk.
struct Place {
    dir: PathBuf,
    disk: Arc<Faulty>,
    policy: SyncPolicy,
    settings: LogSettings,
    hot_bytes: usize,
    epochs: AtomicUsize,
}

impl Place {
    fn new(name: &str) -> Self {
        static PLACES: AtomicUsize = AtomicUsize::new(0);
        let (process, number) = (std::process::id(), PLACES.fetch_add(1, SeqCst));
        let dir = format!("tidegate-durable-{process}-{number}-{name}");
        let dir = std::env::temp_dir().join(dir);
        drop(fs::remove_dir_all(&dir));
        let retention = Retention {
            records: None,
            bytes: 1 << 20,
            age: Duration::from_secs(3600),
        };
        let view_max = ViewMax {
            rows: 1000,
            bytes: 1 << 20,
        };
        let settings = LogSettings {
            mode: Mode::View,
            retention,
            view_max,
            row_ttl: None,
        };
        Self {
            dir,
            disk: Arc::default(),
            policy: SyncPolicy::Commit,
            settings,
            hot_bytes: 1 << 20,
            epochs: AtomicUsize::new(0),
        }
    }

    fn epoch(&self) -> Epoch {
        Epoch::new(&format!("e{}", self.epochs.fetch_add(1, SeqCst))).unwrap()
    }

    fn try_open(&self, dir: &Path) -> Result<(Engine, Arc<EmbeddedLog>), DataError> {
        let data = DataDir::open(dir, self.policy, self.disk.clone(), || self.epoch())?;
        let engine = Engine::on(data);
        let spec = LogSpec {
            stream: "s",
            partitions: 1,
            placement: Placement::ByChannel,
            settings: self.settings,
            hot_bytes: self.hot_bytes,
        };
        let log = engine.logs(&spec, || self.epoch())?.remove(0);
        Ok((engine, log))
    }

    fn open(&self) -> (Engine, Arc<EmbeddedLog>) {
        self.try_open(&self.dir).unwrap()
    }

    /// The directory as a loss of power would leave it now, had everything written reached the device.
    fn copy(&self, name: &str) -> PathBuf {
        let to = self.dir.with_extension(name);
        drop(fs::remove_dir_all(&to));
        copy(&self.dir, &to);
        to
    }

    fn partition(&self) -> PathBuf {
        self.dir.join("streams/s/0")
    }

    fn segments(&self) -> Vec<PathBuf> {
        let mut paths = recovery::paths_in(&self.partition()).unwrap();
        paths.retain(|path| path.extension().is_some_and(|end| end == "log"));
        paths.sort();
        paths
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).unwrap();
        }
    }
}

fn record(row: &str, data: Option<&str>, id: Option<&str>) -> NewRecord {
    NewRecord {
        key: format!("[\"c\",\"{row}\"]").into(),
        change: Change {
            channel: "s/c".parse().unwrap(),
            row: RowId::new(row).unwrap(),
            data: data.map(|data| data.to_owned().into()),
            ts_ms: 0,
        },
        event_time_ms: None,
        id: id.map(Into::into),
    }
}

async fn submit(log: &Arc<EmbeddedLog>, records: Vec<NewRecord>, now_ms: i64) -> Vec<Appended> {
    submit_of(log, records, now_ms, &Arc::default()).await
}

async fn submit_of(
    log: &Arc<EmbeddedLog>,
    records: Vec<NewRecord>,
    now_ms: i64,
    lost: &Arc<Lost>,
) -> Vec<Appended> {
    match log.submit(records, now_ms, lost).await {
        Submitted::Done(appended) => appended,
        Submitted::Waiting(answer) => answer.await.unwrap(),
    }
}

/// Publishes one record, which must be stored, and gives its offset.
async fn publish(log: &Arc<EmbeddedLog>, row: &str, data: &str) -> u64 {
    match &submit(log, vec![record(row, Some(data), None)], 1000).await[..] {
        [Appended::At(at)] => at.offset.number(),
        other => panic!("{other:?}"),
    }
}

fn read(log: &EmbeddedLog) -> Vec<Record> {
    log.read(Some(Offset::BEFORE_ALL), 1 << 30).unwrap().records
}

fn offsets(records: &[Record]) -> Vec<u64> {
    records
        .iter()
        .map(|record| record.offset.number())
        .collect()
}

fn rows(log: &EmbeddedLog) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    log.view("s/c")
        .0
        .rows
        .iter()
        .map(|(id, row)| (id.as_str().to_owned(), text(&row.data)))
        .collect()
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let place = Place::new("restart");
    let (engine, log) = place.open();
    let batch = vec![
        record("a", Some("1"), Some("x")),
        record("b", Some("2"), None),
        record("b", None, None),
    ];
    let answers = submit(&log, batch, 1000).await;
    assert!(
        matches!(&answers[2], Appended::At(at) if at.offset == Offset::new(3)),
        "{answers:?}"
    );
    let (before, view, epoch) = (read(&log), rows(&log), log.epoch().clone());
    engine.close();
    let (_engine, log) = place.open();
    assert_eq!(
        (read(&log), rows(&log), log.epoch()),
        (before, view, &epoch)
    );
    assert_eq!(log.manifest().0.len(), 1);
    // The ids came back as well.
    let again = submit(&log, vec![record("a", Some("9"), Some("x"))], 1001).await;
    assert!(
        matches!(&again[0], Appended::Duplicate(at) if at.offset == Offset::new(1)),
        "{again:?}"
    );
    assert_eq!(publish(&log, "a", "3").await, 4);
}

#[tokio::test]
async fn a_record_is_answered_and_read_only_behind_its_sync_and_those_that_wait_share_one() {
    let place = Place::new("sync");
    let (_engine, log) = place.open();
    publish(&log, "a", "0").await;
    let before = place.disk.synced.load(SeqCst);
    let mut waiting = Vec::new();
    place.disk.held.store(true, SeqCst);
    let (begun, lost) = (place.disk.begun.load(SeqCst), Arc::default());
    for number in 1..=10 {
        let batch = vec![record("a", Some(&number.to_string()), None)];
        let Submitted::Waiting(answer) = log.submit(batch, 1000, &lost).await else {
            panic!("answered at once");
        };
        waiting.push(answer);
        // The first is alone in its commit; the others come while it syncs.
        while place.disk.begun.load(SeqCst) == begun {
            tokio::task::yield_now().await;
        }
    }
    assert!(waiting.iter_mut().all(|answer| answer.try_recv().is_err()));
    assert_eq!(
        (offsets(&read(&log)), log.head()),
        (vec![1], Offset::new(1))
    );
    place.disk.held.store(false, SeqCst);
    for answer in waiting {
        assert!(matches!(&answer.await.unwrap()[..], [Appended::At(_)]));
    }
    assert_eq!(place.disk.synced.load(SeqCst) - before, 2);
    assert_eq!(
        (read(&log).len(), rows(&log)),
        (11, vec![("a".into(), "10".into())])
    );
}

#[tokio::test]
async fn a_stream_has_no_directory_before_its_first_record() {
    let place = Place::new("unborn");
    let (engine, log) = place.open();
    assert!(engine.kept().unwrap().is_empty() && !place.partition().exists());
    publish(&log, "a", "1").await;
    let kept = KeptStream {
        name: "s".into(),
        mode: Mode::View,
        placement: Placement::ByChannel,
        partitions: 1,
    };
    assert_eq!(engine.kept().unwrap(), [kept]);
}

#[tokio::test]
async fn under_a_weak_policy_an_unclean_end_gives_a_new_epoch_and_a_clean_one_does_not() {
    for policy in [
        SyncPolicy::Never,
        SyncPolicy::Interval(Duration::from_millis(5)),
    ] {
        let mut place = Place::new(policy.word());
        place.policy = policy;
        let (engine, log) = place.open();
        publish(&log, "a", "1").await;
        publish(&log, "a", "2").await;
        let (epoch, copy) = (log.epoch().clone(), place.copy("unclean"));
        engine.close();
        let (engine, log) = place.open();
        assert_eq!((log.epoch(), log.head()), (&epoch, Offset::new(2)));
        engine.close();
        // The last commit was torn, and what follows it was written before: under these policies that may be.
        let path = copy.join("streams/s/0/00000000000000000001.log");
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        let (engine, log) = place.try_open(&copy).unwrap();
        assert_ne!(log.epoch(), &epoch);
        assert!(log.head() < Offset::new(2));
        let renewed = log.epoch().clone();
        engine.close();
        assert_eq!(place.try_open(&copy).unwrap().1.epoch(), &renewed);
        fs::remove_dir_all(copy).unwrap();
    }
}

#[tokio::test]
async fn under_the_default_policy_an_unclean_end_keeps_the_epoch() {
    let place = Place::new("keeps");
    let (_engine, log) = place.open();
    publish(&log, "a", "1").await;
    let copy = place.copy("crash");
    assert!(copy.join(RUNNING).exists());
    let (_other, found) = place.try_open(&copy).unwrap();
    assert_eq!((found.epoch(), found.head()), (log.epoch(), log.head()));
    fs::remove_dir_all(copy).unwrap();
}

#[tokio::test]
async fn a_copy_that_is_said_to_be_restored_begins_a_new_epoch_with_what_it_has() {
    let place = Place::new("restored");
    let (engine, log) = place.open();
    publish(&log, "a", "1").await;
    engine.close();
    fs::write(place.dir.join(RUNNING), "restored\n").unwrap();
    let (_engine, found) = place.open();
    assert_ne!(found.epoch(), log.epoch());
    assert_eq!(
        (offsets(&read(&found)), rows(&found)),
        (vec![1], rows(&log))
    );
}

#[tokio::test]
async fn with_an_interval_the_sync_follows_by_itself() {
    let mut place = Place::new("interval");
    place.policy = SyncPolicy::Interval(Duration::from_millis(1));
    let (_engine, log) = place.open();
    publish(&log, "a", "1").await;
    let before = place.disk.synced.load(SeqCst);
    publish(&log, "a", "2").await;
    while place.disk.synced.load(SeqCst) == before {
        tokio::task::yield_now().await;
    }
}
