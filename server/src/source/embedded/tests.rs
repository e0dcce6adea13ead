//! The log in memory.

use super::*;
use crate::{model::RowId, source::hindered::delayed};

fn log(bytes: usize, age: Duration) -> Arc<EmbeddedLog> {
    let view_max = ViewMax {
        rows: 3,
        bytes: 1000,
    };
    let settings = LogSettings {
        mode: Mode::View,
        retention: Retention {
            records: None,
            bytes,
            age,
        },
        view_max,
        row_ttl: Some(Duration::from_secs(100)),
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
    assert_eq!(offsets(&log.read(None, 1 << 20).unwrap()), [1, 2, 3]);
    assert_eq!(offsets(&log.read(Some(Offset::new(1)), 1).unwrap()), [2]);
    let end = log.read(Some(Offset::new(3)), 1).unwrap();
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
    let fetch = log.read(None, 1 << 20).unwrap();
    assert_eq!((offsets(&fetch), fetch.start), (vec![2, 3], Offset::new(1)));
    log.append(vec![record("a", Some("4"), None)], 2000);
    assert_eq!(offsets(&log.read(None, 1 << 20).unwrap()), [4]);
    assert_eq!(log.view("s/c").0.rows.len(), 3);
}

#[test]
fn records_go_by_their_number() {
    let retention = Retention {
        records: Some(2),
        bytes: 1 << 20,
        age: Duration::from_secs(60),
    };
    let view_max = ViewMax {
        rows: 3,
        bytes: 1000,
    };
    let settings = LogSettings {
        mode: Mode::Events,
        retention,
        view_max,
        row_ttl: None,
    };
    let log = EmbeddedLog::new(0, Epoch::new("e1").unwrap(), settings);
    for number in 0..5 {
        log.append(vec![record("a", Some("1"), None)], number);
    }
    assert_eq!(
        offsets(&log.read(Some(Offset::BEFORE_ALL), 1 << 20).unwrap()),
        [4, 5]
    );
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
    let fetch = delayed(
        log.read(None, 1 << 20).unwrap(),
        None,
        Duration::from_secs(1),
        2500,
    );
    assert_eq!(
        (offsets(&fetch), fetch.upto, fetch.head),
        (vec![1], Offset::new(1), Offset::new(2))
    );
    let after = Some(Offset::new(1));
    let fetch = delayed(
        log.read(after, 1 << 20).unwrap(),
        after,
        Duration::from_secs(1),
        2500,
    );
    assert_eq!((offsets(&fetch).len(), fetch.upto), (0, Offset::new(1)));
}

#[test]
fn a_row_that_nobody_updates_is_deleted_by_an_ordinary_record() {
    let log = log(1 << 20, Duration::from_secs(1000));
    let set = |row, data, now_ms| drop(log.append(vec![record(row, data, None)], now_ms));
    set("a", Some("1"), 0);
    set("b", Some("1"), 10);
    set("c", Some("1"), 20);
    set("c", None, 30);
    set("a", Some("2"), 50_000);
    log.expire(100_010);
    assert_eq!(
        log.extent().0,
        Offset::new(5),
        "not before its time is over"
    );
    log.expire(100_011);
    let written = log.read(Some(Offset::new(5)), 1 << 20).unwrap().records;
    let [tombstone] = &written[..] else {
        panic!("{written:?}")
    };
    assert_eq!(tombstone.key, record("b", None, None).key);
    assert_eq!((&tombstone.value, tombstone.expired), (&None, true));
    assert_eq!(log.view("s/c").0.rows.len(), 1);
    // Whoever appends finds the room of those whose time is over.
    set("d", Some("1"), 200_000);
    assert_eq!(
        offsets(&log.read(Some(Offset::new(6)), 1 << 20).unwrap()),
        [7, 8]
    );
    assert_eq!((log.view("s/c").0.rows.len(), log.expired()), (1, 2));
}

#[test]
fn many_rows_are_deleted_a_batch_at_a_time() {
    let log = log(1 << 20, Duration::from_secs(1000));
    for n in 0..=EXPIRED_BATCH {
        let mut new = record("a", Some("1"), None);
        new.change.channel = format!("s/{n}").parse().unwrap();
        log.append(vec![new], 0);
    }
    for expected in [EXPIRED_BATCH, EXPIRED_BATCH + 1, EXPIRED_BATCH + 1] {
        log.expire(200_000);
        assert_eq!(log.expired(), expected as u64);
    }
}
