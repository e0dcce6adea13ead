//! A full disk and a failing one: who publishes is told, nothing that was acknowledged goes, and it heals.

use std::sync::atomic::AtomicBool;

use super::*;

async fn a_fault_passes(name: &str, fault: impl Fn(&Faulty) -> &AtomicBool) {
    let place = Place::new(name);
    let (engine, log) = place.open();
    publish(&log, "a", "1").await;
    fault(&place.disk).store(true, SeqCst);
    let lost = Arc::<Lost>::default();
    let refused = submit_of(&log, vec![record("a", Some("2"), Some("x"))], 1000, &lost).await;
    assert_eq!(refused, [Appended::NotStored]);
    let refused = submit(&log, vec![record("b", Some("2"), None)], 1000).await;
    assert_eq!(refused, [Appended::NotStored]);
    assert_eq!(
        (offsets(&read(&log)), log.head(), rows(&log).len()),
        (vec![1], Offset::new(1), 1)
    );
    assert_eq!(engine.counts().failures.get(), 2);

    fault(&place.disk).store(false, SeqCst);
    // The same publisher's next record of the channel would overtake the one that failed.
    let late = submit_of(&log, vec![record("a", Some("3"), None)], 1000, &lost).await;
    assert_eq!(late, [Appended::AfterFailed]);
    let again = submit(&log, vec![record("a", Some("2"), Some("x"))], 1000).await;
    assert!(
        matches!(&again[0], Appended::At(at) if at.offset == Offset::new(2)),
        "{again:?}"
    );
    let before = read(&log);
    engine.close();
    let (_engine, log) = place.open();
    assert_eq!(
        (read(&log), rows(&log)),
        (before, vec![("a".into(), "2".into())])
    );
}

#[tokio::test]
async fn a_full_disk_refuses_until_there_is_room() {
    a_fault_passes("full", |disk| &disk.full).await;
}

#[tokio::test]
async fn a_sync_that_fails_is_not_taken_for_one_that_succeeded() {
    a_fault_passes("broken", |disk| &disk.broken).await;
}

#[tokio::test]
async fn a_disk_that_is_full_from_the_start_takes_the_stream_when_there_is_room() {
    let place = Place::new("full-at-birth");
    let (_engine, log) = place.open();
    place.disk.full.store(true, SeqCst);
    assert_eq!(
        submit(&log, vec![record("a", Some("1"), None)], 0).await,
        [Appended::NotStored]
    );
    place.disk.full.store(false, SeqCst);
    assert_eq!(publish(&log, "a", "1").await, 1);
    assert_eq!(offsets(&read(&log)), [1]);
}

#[tokio::test]
async fn a_node_that_ends_on_a_failing_disk_loses_nothing_that_was_acknowledged() {
    let place = Place::new("ends-broken");
    let (engine, log) = place.open();
    publish(&log, "a", "1").await;
    place.disk.full.store(true, SeqCst);
    assert_eq!(
        submit(&log, vec![record("a", Some("2"), None)], 0).await,
        [Appended::NotStored]
    );
    place.disk.broken.store(true, SeqCst);
    engine.close();
    assert!(place.dir.join(RUNNING).exists(), "it did not end in order");
    place.disk.full.store(false, SeqCst);
    place.disk.broken.store(false, SeqCst);
    let (_engine, found) = place.open();
    assert_eq!(
        (offsets(&read(&found)), found.epoch()),
        (vec![1], log.epoch())
    );
}
