//! The log in memory.

use super::*;
use crate::model::RowId;

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
