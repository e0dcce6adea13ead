//! What goes by number, bytes and age, and what never goes: rows.

use super::*;

fn held(place: &Place) -> u64 {
    place
        .segments()
        .iter()
        .map(|path| fs::metadata(path).unwrap().len())
        .sum()
}

#[tokio::test]
async fn records_go_and_rows_stay_through_restarts() {
    let mut place = Place::new("rows");
    place.settings.retention.records = Some(80);
    let (engine, log) = place.open();
    for number in 0..500 {
        let row = if number < 20 {
            format!("early-{number}")
        } else {
            "late".into()
        };
        publish(&log, &row, &number.to_string()).await;
    }
    let (_, start, records, _) = log.extent();
    assert!((80..=91).contains(&records), "{records}");
    assert_eq!(start.number(), 500 - records as u64);
    let (view, manifest) = (rows(&log), log.manifest().0);
    assert_eq!(view.len(), 21);
    engine.close();
    let (_engine, log) = place.open();
    assert_eq!(
        (rows(&log), log.manifest().0, log.head()),
        (view, manifest, Offset::new(500))
    );
    assert_eq!(log.extent().1, start);
    assert_eq!(publish(&log, "late", "1").await, 501);
}

#[tokio::test]
async fn bytes_are_bounded_by_the_bound_and_one_segment() {
    let mut place = Place::new("bytes");
    place.settings.retention.bytes = 64 << 10;
    let (_engine, log) = place.open();
    let data = format!("\"{}\"", "x".repeat(1000));
    for _ in 0..300 {
        publish(&log, "a", &data).await;
    }
    let (least, segment) = (64 << 10, 10 << 10);
    assert!(
        (least..least + segment).contains(&held(&place)),
        "{}",
        held(&place)
    );
    assert_eq!(log.extent().3 as u64, held(&place));
}

#[tokio::test]
async fn age_takes_the_last_segment_too() {
    let mut place = Place::new("age");
    place.settings.retention.age = Duration::from_secs(1);
    let (engine, log) = place.open();
    publish(&log, "a", "1").await;
    engine.close();
    let (_engine, log) = place.open();
    let store = log.store().unwrap();
    store
        .retire(1000 + 1001, || fold::Fold::of(&log.state()))
        .unwrap();
    assert_eq!(
        (log.extent().2, rows(&log).len(), place.segments().len()),
        (0, 1, 1)
    );
    assert_eq!(publish(&log, "b", "2").await, 2);
}

#[tokio::test]
async fn a_damaged_fold_is_an_error_and_not_a_view_without_its_rows() {
    let mut place = Place::new("fold");
    place.settings.retention.records = Some(8);
    let (engine, log) = place.open();
    for number in 0..40 {
        publish(&log, &number.to_string(), "1").await;
    }
    engine.close();
    let path = place.partition().join(fold::NAME);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(
        matches!(place.try_open(&place.dir), Err(DataError::Corrupt { path: named, .. }) if named == path)
    );
    // Without it the log does not reach back to its birth.
    fs::remove_file(&path).unwrap();
    assert!(matches!(
        place.try_open(&place.dir),
        Err(DataError::Missing { .. })
    ));
    fs::write(&path, whole).unwrap();
    assert_eq!(rows(&place.open().1).len(), 40);
}

#[tokio::test]
async fn what_memory_no_longer_holds_is_read_from_the_files() {
    let mut place = Place::new("cold");
    (place.settings.retention.records, place.hot_bytes) = (Some(400), 2000);
    let (engine, log) = place.open();
    for number in 1..=300 {
        publish(&log, "a", &number.to_string()).await;
    }
    for log in [log, place_again(&place, &engine)] {
        let all: Vec<u64> = (1..=300).collect();
        let mut found = Vec::new();
        while found.len() < all.len() {
            let after = Offset::new(found.last().copied().unwrap_or(0));
            let fetch = log.read(Some(after), 700).unwrap();
            assert_eq!(
                (fetch.start, fetch.head),
                (Offset::BEFORE_ALL, Offset::new(300))
            );
            assert_eq!(
                Some(fetch.upto),
                fetch.records.last().map(|record| record.offset)
            );
            found.extend(offsets(&fetch.records));
        }
        assert_eq!(found, all);
        // A reader that begins is given what memory holds, as the beginning of what it knows.
        let newest = log.read(None, 1 << 20).unwrap();
        assert!(newest.records.len() < 50 && !newest.records.is_empty());
        assert_eq!(newest.start.number() + 1, newest.records[0].offset.number());
    }
}

fn place_again(place: &Place, engine: &Engine) -> Arc<EmbeddedLog> {
    engine.close();
    let (engine, log) = place.open();
    engine.close();
    log
}

#[tokio::test]
async fn rows_whose_time_is_over_are_deleted_on_disk_too() {
    let mut place = Place::new("ttl");
    place.settings.row_ttl = Some(Duration::from_millis(1));
    let (engine, log) = place.open();
    publish(&log, "a", "1").await;
    publish(&log, "b", "1").await;
    log.expire(1001);
    submit(&log, Vec::new(), 1001).await;
    assert_eq!(rows(&log).len(), 2, "not before their time is over");
    log.expire(1002);
    submit(&log, Vec::new(), 1002).await;
    assert_eq!((rows(&log).len(), log.expired()), (0, 2));
    engine.close();
    let (_engine, log) = place.open();
    assert_eq!((rows(&log).len(), log.head()), (0, Offset::new(4)));
}
