//! What joins are answered, by a partition over a log of its own.

use std::time::Duration;

use super::{
    tail::{TailMax, Wake},
    *,
};
use crate::{
    cache::ViewMax,
    decode::{KeyPart, own_key},
    model::{Change, RowId},
    protocol::SnapshotReason,
    source::embedded::{Appended, EmbeddedLog, LogSettings, NewRecord, Retention},
};

/// A log, a partition whose tail holds next to nothing, and where its answers go.
struct Bench {
    log: Arc<EmbeddedLog>,
    partition: Partition,
    mailbox: Arc<Mailbox>,
    micros: u64,
    wall_ms: i64,
}

impl Bench {
    /// A tail of about so many updates, with a view of `s/c` that somebody looks at already.
    fn new(tail: usize) -> Self {
        Self::keeping(tail, None)
    }

    /// The same, with a log that keeps so many records.
    fn keeping(tail: usize, records: Option<usize>) -> Self {
        let settings = LogSettings {
            mode: Mode::View,
            retention: Retention {
                records,
                bytes: usize::MAX,
                age: Duration::from_secs(1 << 30),
            },
            view_max: ViewMax {
                rows: usize::MAX,
                bytes: usize::MAX,
            },
            row_ttl: Some(Duration::from_secs(60)),
        };
        let log = EmbeddedLog::new(0, Epoch::new("e").unwrap(), settings);
        let part = |pointer: &str| KeyPart::Pointer(pointer.into());
        let settings = Settings {
            stream: "s".into(),
            partition: 0,
            mode: Mode::View,
            is_later: false,
            replay_records: 10,
            hold: Duration::from_secs(1),
        };
        let tail = Tail::new(TailMax {
            bytes: tail * 280,
            age: Duration::from_secs(1 << 20),
        });
        let decoder = Decoder::new("s", part("/0"), Some(part("/1")), true);
        let mut bench = Self {
            partition: Partition::new(settings, decoder, log.clone(), tail),
            log,
            mailbox: Mailbox::new(Arc::<Wake>::default()),
            micros: 1,
            wall_ms: 0,
        };
        bench.read();
        bench.join(From::Now);
        bench
    }

    fn now(&mut self) -> Moment {
        self.micros += 1;
        Moment::from_micros(self.micros)
    }

    fn read(&mut self) {
        let (asked, now) = (self.now(), self.now());
        let fetch = self.log.read(self.partition.next_after(), 1 << 20).unwrap();
        self.partition.take(&fetch, asked, now);
    }

    /// Sets or deletes a row of `s/c`, and reads it; gives its offset.
    fn set(&mut self, row: &str, data: Option<&str>) -> u64 {
        self.set_in("c", row, data)
    }

    fn set_in(&mut self, name: &str, row: &str, data: Option<&str>) -> u64 {
        let change = Change {
            channel: format!("s/{name}").parse().unwrap(),
            row: RowId::new(row).unwrap(),
            data: data.map(|data| data.to_owned().into()),
            ts_ms: 0,
        };
        let new = NewRecord {
            key: own_key(name, row),
            change,
            event_time_ms: Some(7),
            id: None,
        };
        let Appended::At(position) = self.log.append(vec![new], self.wall_ms).remove(0) else {
            panic!("the log takes everything")
        };
        self.read();
        position.offset.number()
    }

    fn join(&mut self, from: From) -> Begin {
        self.join_to("c", from)
    }

    fn join_to(&mut self, name: &str, from: From) -> Begin {
        let now = self.now();
        let join = Join {
            seat: 0,
            channel: format!("s/{name}").parse().unwrap(),
            from,
            arrived: now,
            members: vec![1],
            reply: self.mailbox.clone(),
            told: false,
        };
        self.partition.join(join, now);
        match self.mailbox.take().remove(0).answer {
            Answer::Begin(begin) => begin,
            other => panic!("{other:?}"),
        }
    }

    fn return_from(&mut self, offset: u64) -> Begin {
        self.return_to("c", offset)
    }

    fn return_to(&mut self, name: &str, offset: u64) -> Begin {
        let position = self.partition.at(Offset::new(offset)).unwrap();
        self.join_to(name, From::After(position))
    }

    /// So many channels get a row that somebody looks at, lose it again, and are never named again.
    fn invent(&mut self, names: std::ops::Range<usize>) {
        for number in names {
            let name = format!("x{number}");
            self.set_in(&name, "a", Some("1"));
            self.join_to(&name, From::Now);
            self.set_in(&name, "a", None);
        }
    }
}

/// Offset, row and data of each update.
fn told(begin: &Begin) -> Vec<(u64, String, Option<String>)> {
    let text = |bytes: &bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let one = |shared: &Arc<Shared>| {
        let (offset, change) = (shared.update.position.offset, &shared.update.change);
        let row = change.row.as_str().to_owned();
        (offset.number(), row, change.data.as_ref().map(text))
    };
    begin.updates.iter().map(one).collect()
}

/// A value that makes the view large enough for its changes to be the shorter answer.
fn large(name: &str) -> String {
    format!("\"{name}{}\"", "x".repeat(2000))
}

#[test]
fn who_is_older_than_the_tail_gets_the_rows_that_changed_and_went_in_order() {
    let mut bench = Bench::new(1);
    bench.set("unchanged", Some(&large("u")));
    let p = bench.set("gone", Some("1"));
    let gone = bench.set("gone", None);
    bench.set("back", None);
    bench.set("a", Some("1"));
    let b = bench.set("b", Some("2"));
    let back = bench.set("back", Some("3"));
    let a = bench.set("a", Some("4"));
    assert!(bench.partition.tail.floor() > Offset::new(p));
    let begin = bench.return_from(p);
    assert_eq!(begin.outcome, Outcome::Resumed);
    assert!(begin.snapshot.is_none());
    assert_eq!(begin.at.offset, Offset::new(a));
    let row = |offset, row: &str, data: Option<&str>| (offset, row.into(), data.map(str::to_owned));
    assert_eq!(
        told(&begin),
        [
            row(gone, "gone", None),
            row(b, "b", Some("2")),
            row(back, "back", Some("3")),
            row(a, "a", Some("4"))
        ]
    );
    assert_eq!(bench.partition.answers().of(Way::Changes), 1);
}

#[test]
fn those_who_return_from_different_positions_share_the_updates_and_get_what_followed_them() {
    let mut bench = Bench::new(2);
    bench.set("unchanged", Some(&large("u")));
    let first = bench.set("a", Some("1"));
    let second = bench.set("b", Some("2"));
    for _ in 0..3 {
        bench.set("c", Some("3"));
    }
    let (one, other) = (bench.return_from(first), bench.return_from(second));
    assert_eq!((one.updates.len(), other.updates.len()), (2, 1));
    assert!(Arc::ptr_eq(&one.updates[1], &other.updates[0]));
    let d = bench.set("d", Some("4"));
    let late = bench.return_from(first);
    assert!(Arc::ptr_eq(&one.updates[0], &late.updates[0]));
    assert_eq!(told(&late).last().unwrap().0, d);
    // The tail no longer reaches back to the list: the next one takes from it what has not changed since.
    for _ in 0..5 {
        bench.set("d", Some("5"));
    }
    let later = bench.return_from(first);
    assert!(Arc::ptr_eq(&one.updates[0], &later.updates[0]));
    assert_eq!(told(&later).len(), 3);
}

#[test]
fn a_view_that_has_forgotten_deletes_answers_older_tokens_with_itself() {
    let mut bench = Bench::new(1);
    bench.set("unchanged", Some(&large("u").repeat(20)));
    let p = bench.set("a", Some("1"));
    let deletes: Vec<u64> = (0..70).map(|n| bench.set(&format!("r{n}"), None)).collect();
    bench.set("a", Some("2"));
    let begin = bench.return_from(p);
    assert_eq!(begin.outcome, Outcome::Snapshot(SnapshotReason::TooOld));
    assert_eq!(bench.partition.answers().of(Way::TooOld), 1);
    let begin = bench.return_from(deletes[10]);
    assert_eq!(begin.outcome, Outcome::Resumed);
    assert_eq!(begin.updates.len(), 60);
}

#[test]
fn a_view_that_is_shorter_than_its_changes_comes_whole() {
    let mut bench = Bench::new(1);
    let p = bench.set("a", Some("1"));
    for n in 0..10 {
        bench.set("a", Some(&n.to_string()));
        bench.set("b", Some(&n.to_string()));
    }
    let begin = bench.return_from(p);
    assert_eq!(begin.outcome, Outcome::Snapshot(SnapshotReason::TooOld));
}

#[test]
fn rows_that_were_read_from_the_cache_count_from_there_on() {
    let mut bench = Bench::new(1);
    let p = bench.set("a", Some("1"));
    bench.set("unchanged", Some(&large("u")));
    // As a node does that starts later: it knows nothing of what was deleted before.
    let tail = Tail::new(TailMax {
        bytes: 1,
        age: Duration::from_secs(1 << 20),
    });
    let (settings, part) = (bench.partition.settings.clone(), |pointer: &str| {
        KeyPart::Pointer(pointer.into())
    });
    let decoder = Decoder::new("s", part("/0"), Some(part("/1")), true);
    bench.partition = Partition::new(settings, decoder, bench.log.clone(), tail);
    bench.read();
    bench.read();
    let begin = bench.return_from(p);
    assert_eq!(begin.outcome, Outcome::Snapshot(SnapshotReason::TooOld));
    let fence = begin.at.offset.number();
    bench.set("a", None);
    bench.set("b", Some("1"));
    assert_eq!(
        bench.return_from(p).outcome,
        Outcome::Snapshot(SnapshotReason::TooOld)
    );
    let begin = bench.return_from(fence);
    assert_eq!(begin.outcome, Outcome::Resumed);
    assert_eq!(begin.updates.len(), 2);
}

#[test]
fn a_row_whose_time_is_over_leaves_like_one_that_was_deleted_and_is_no_sign_of_a_producer() {
    let mut bench = Bench::new(1);
    bench.set("a", Some("1"));
    bench.set("b", Some("1"));
    bench.wall_ms = 30_000;
    let p = bench.set("unchanged", Some(&large("u")));
    let spoke_at = bench.partition.health.last_record_at;
    bench.log.expire(60_001);
    bench.read();
    assert_eq!(bench.partition.health.last_record_at, spoke_at);
    assert_eq!(bench.partition.resident(), (1, 1));
    let last = bench.set("c", Some("1"));
    assert!(bench.partition.health.last_record_at > spoke_at);
    let begin = bench.return_from(p);
    let rows: Vec<_> = told(&begin)
        .into_iter()
        .map(|(at, row, _)| (at, row))
        .collect();
    assert_eq!(begin.outcome, Outcome::Resumed);
    let expected = [(last - 2, "a"), (last - 1, "b"), (last, "c")];
    assert_eq!(rows, expected.map(|(at, row)| (at, row.to_owned())));
}

#[test]
fn a_view_that_nobody_asked_for_can_be_evicted_and_comes_again() {
    let mut bench = Bench::new(100);
    bench.set("a", Some("1"));
    bench.set("b", Some("2"));
    bench.set("a", None);
    let snapshot = bench.join(From::Now).snapshot.expect("the view");
    let held = bench.partition.held();
    let channels: [Channel; 1] = ["s/c".parse().unwrap()];
    let encoded = snapshot.part(0).json.len();
    assert_eq!(held.encodings.bytes(), encoded);
    assert!(held.views.bytes() > 0);
    let now = bench.now();
    assert_eq!(bench.partition.unasked(now), []);
    assert_eq!(bench.partition.evict(&channels, now), 0);
    let later = now.plus(SHARED_KEPT * 2);
    bench.micros = u64::try_from(later.since(Moment::default()).as_micros()).unwrap();
    assert_eq!(bench.partition.unasked(later), channels);
    assert_eq!(bench.partition.evict(&channels, later), 1);
    assert_eq!((bench.partition.evicted(), held.views.bytes()), (1, 0));
    assert_eq!(
        held.encodings.bytes(),
        encoded,
        "its reader still has the encoding"
    );
    drop(snapshot);
    assert_eq!(held.encodings.bytes(), 0);
    bench.set("c", Some("3"));
    let again = bench.join(From::Now).snapshot.expect("the view");
    let rows: Vec<_> = again.rows().iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(rows, ["b", "c"]);
    assert!(held.views.bytes() > 0);
}

#[test]
fn what_readers_share_goes_with_an_eviction_and_a_source_that_fails_keeps_its_views() {
    let mut bench = Bench::new(100);
    bench.set("a", Some("1"));
    let snapshot = bench.join(From::Now).snapshot.expect("the view");
    snapshot.part(0);
    drop(snapshot);
    let held = bench.partition.held();
    assert!(held.encodings.bytes() > 0, "kept for who joins next");
    let later = bench.now().plus(SHARED_KEPT * 2);
    bench.partition.fail(SourceError::Unavailable);
    assert_eq!(bench.partition.unasked(later), []);
    assert_eq!(bench.partition.evict(&[], later), 0);
    assert_eq!(held.encodings.bytes(), 0);
    assert!(held.views.bytes() > 0);
}

/// A name in a log of a hundred records and a tail of a few, and so many others that it is forgotten.
fn forgotten(name: &str) -> (Bench, u64, u64) {
    let mut bench = Bench::keeping(5, Some(100));
    bench.set("lasting", Some("1"));
    let set = bench.set_in(name, "a", Some("1"));
    bench.join_to(name, From::Now);
    let gone = bench.set_in(name, "a", None);
    bench.invent(0..3_000);
    let channel: Channel = format!("s/{name}").parse().unwrap();
    assert!(!bench.partition.last_change.contains_key(&channel));
    (bench, set, gone)
}

#[test]
fn channels_that_were_emptied_do_not_stay_and_those_with_rows_do() {
    let (mut bench, ..) = forgotten("once");
    let held = |bench: &Bench| {
        let partition = &bench.partition;
        assert_eq!(partition.names.len(), partition.last_change.len());
        (partition.last_change.len(), partition.resident().0)
    };
    // What is kept in any case, what the log still has, and what is about to be looked at.
    const MOST: usize = 1_024 + 100 + 100;
    let (names, views) = held(&bench);
    assert!(
        names <= MOST && views <= MOST,
        "{names} names, {views} views"
    );
    bench.invent(3_000..6_000);
    let (names, views) = held(&bench);
    assert!(
        names <= MOST && views <= MOST,
        "{names} names, {views} views"
    );
    assert_eq!(bench.partition.resident().1, 1);
    let begin = bench.join(From::Now);
    assert_eq!(begin.snapshot.unwrap().rows().len(), 1);
}

#[test]
fn who_returns_to_a_channel_that_was_forgotten_loses_the_rows_that_went() {
    let (mut bench, set, _) = forgotten("once");
    let begin = bench.return_to("once", set);
    assert_eq!(
        begin.outcome,
        Outcome::Snapshot(SnapshotReason::TooOld),
        "the row went after its token"
    );
    assert!(begin.snapshot.unwrap().rows().is_empty());
    let newest = bench.partition.progress().0.number();
    let begin = bench.return_to("once", newest);
    assert_eq!(
        (begin.outcome, begin.snapshot.is_none()),
        (Outcome::Resumed, true)
    );
    // A long-poll with the old token is answered.
    let channel = "s/once".parse().unwrap();
    let last = bench.partition.last_change(&channel).unwrap();
    assert!(last.offset.number() > set);
}

#[test]
fn a_channel_that_comes_back_does_not_remember_what_it_was_before() {
    let (mut bench, set, _) = forgotten("once");
    bench.join_to("once", From::Now);
    let again = bench.set_in("once", "b", Some(&large("again")));
    bench.invent(3_000..3_050);
    let begin = bench.return_to("once", set);
    assert_eq!(begin.outcome, Outcome::Snapshot(SnapshotReason::TooOld));
    let snapshot = begin.snapshot.unwrap();
    let rows: Vec<_> = snapshot
        .rows()
        .keys()
        .map(|row| row.as_str().to_owned())
        .collect();
    assert_eq!(rows, ["b"]);
    assert!(snapshot.position().offset.number() >= again);
}
