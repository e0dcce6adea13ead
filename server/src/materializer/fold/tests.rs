//! The fold against a log and a cache that are lists here: what is asked, in which order, and what the headers say.

mod together;

use bytes::Bytes;

use super::*;
use crate::{
    cache::redis::{BATCH_ROWS_MAX, Lost},
    decode::{KeyPart, own_key},
    model::Epoch,
};

/// So long the log keeps tombstones, in milliseconds.
const KEPT: i64 = 60_000;
/// Younger records are not compacted, in milliseconds.
const LAG: i64 = 10_000;

/// A log: row and append time of each record, from offset 1 on.
struct Log {
    epoch: &'static str,
    start: u64,
    records: Vec<(u64, String, i64)>,
    head: u64,
}

impl Log {
    fn new() -> Self {
        Self {
            epoch: "e1",
            start: 0,
            records: Vec::new(),
            head: 0,
        }
    }

    fn append(&mut self, row: &str, time_ms: i64) {
        self.head += 1;
        self.records.push((self.head, row.to_owned(), time_ms));
    }

    fn fetch(&self, after: Option<Offset>, count: usize) -> Fetch {
        let after = after.map_or(self.start, Offset::number).max(self.start);
        let behind = self.records.iter().filter(|(offset, ..)| *offset > after);
        let records: Vec<_> = behind.take(count).map(record).collect();
        let upto = records
            .last()
            .map_or(self.head.max(after), |last| last.offset.number());
        Fetch {
            epoch: Epoch::new(self.epoch).unwrap(),
            start: Offset::new(self.start),
            records,
            upto: Offset::new(upto),
            head: Offset::new(self.head),
            when: None,
            lineage: Some("7".into()),
        }
    }
}

fn record((offset, row, time_ms): &(u64, String, i64)) -> Record {
    Record {
        offset: Offset::new(*offset),
        key: own_key("c", row),
        value: Some(Bytes::from(offset.to_string())),
        event_time_ms: None,
        append_time_ms: *time_ms,
        expired: false,
    }
}

/// Of 16 partitions the one into which the tests' channel belongs.
const HERE: u32 = 7;

fn fold(now_ms: i64) -> Fold {
    let settings = FoldSettings {
        fold_id: "f".to_owned(),
        compaction: Compaction {
            after: Duration::from_millis(LAG.unsigned_abs()),
            tombstones_kept: Duration::from_millis(KEPT.unsigned_abs()),
        },
        placing: Placing::among(crate::model::Generations::single(16)),
    };
    let part = |pointer: &str| KeyPart::Pointer(pointer.to_owned());
    let decoder = Decoder::new("s", part("/0"), Some(part("/1")), false);
    Fold::new(HERE, settings, decoder, now_ms)
}

fn take(fold: &mut Fold, log: &Log, count: usize, now_ms: i64) {
    let when = ReadAt {
        sent_ms: now_ms,
        answered_ms: now_ms + 1,
    };
    fold.took(log.fetch(fold.after(), count), when);
}

/// Writes what is handed out, to the header that is given.
fn write(fold: &mut Fold, now_ms: i64) -> Header {
    let writing = fold.hand_out(now_ms).expect("something to write");
    fold.wrote(Wrote::Written);
    writing.header
}

/// A fold that has built and flipped, and the header that is there then.
fn settled(log: &Log, now_ms: i64) -> (Fold, Header) {
    let mut fold = fold(now_ms);
    fold.looked(None, now_ms);
    take(&mut fold, log, 100, now_ms);
    let header = write(&mut fold, now_ms);
    fold.flipped(&Flipped::Flipped, now_ms);
    (fold, header)
}

fn offset(number: u64) -> DecimalOffset {
    Offset::new(number).into()
}

#[test]
fn an_empty_cache_is_built_from_the_logs_start_and_flipped_to() {
    let mut log = Log::new();
    log.append("a", 1_000);
    log.append("b", 1_000);
    log.append("a", 1_500);
    let mut fold = fold(2_000);
    assert_eq!(fold.step(), Step::Look);
    fold.looked(None, 2_000);
    assert_eq!(
        (fold.step(), fold.after(), fold.building()),
        (Step::Fold, None, Some(Why::Empty))
    );
    assert!(fold.resume().is_none());
    take(&mut fold, &log, 2, 2_000);
    let writing = fold.hand_out(2_000).unwrap();
    assert_eq!((writing.expected, writing.batch.rows()), (None, 2));
    assert!(fold.hand_out(2_000).is_none(), "one at a time");
    let first = writing.header;
    assert_eq!(
        (&first.applied, &first.since, &first.settled),
        (&offset(2), &offset(3), &offset(0))
    );
    assert!(first.complete && first.lineage == "7" && first.fold_id == "f");
    fold.wrote(Wrote::Written);
    assert_eq!(fold.step(), Step::Fold, "the log's end was not reached");
    take(&mut fold, &log, 2, 2_100);
    let second = write(&mut fold, 2_100);
    assert_eq!(
        (&second.applied, &second.since, second.proven_ms),
        (&offset(3), &offset(3), 2_100)
    );
    assert_eq!(second.generation, first.generation);
    assert_eq!(fold.to_flip(), Some((None, second.clone())));
    fold.flipped(&Flipped::Flipped, 2_200);
    assert_eq!((fold.step(), fold.building()), (Step::Fold, None));
    assert_eq!(fold.after(), Some(Offset::new(3)));
    let tally = fold.take_tally();
    assert_eq!(
        (
            tally.records,
            tally.rows,
            tally.batches,
            tally.refolds,
            tally.flips
        ),
        (3, 3, 2, 1, 1)
    );
}

#[test]
fn who_begins_goes_on_where_the_cache_is() {
    let mut log = Log::new();
    log.append("a", 1_000);
    let (_, there) = settled(&log, 2_000);
    log.append("b", 2_000);
    let mut other = fold(3_000);
    other.looked(Some(there.clone()), 3_000);
    assert_eq!(other.resume(), Some(&there));
    assert!(other.resume().is_none(), "told once");
    take(&mut other, &log, 100, 3_000);
    let writing = other.hand_out(3_000).unwrap();
    assert_eq!(
        (writing.expected, &writing.header.applied),
        (Some(there.clone()), &offset(2))
    );
    assert_eq!(writing.header.generation, there.generation);
    assert_eq!(
        (&writing.header.since, writing.header.complete),
        (&there.since, true)
    );
}

#[test]
fn what_is_read_ahead_is_written_to_what_was_on_its_way() {
    let mut log = Log::new();
    for row in ["a", "b", "c"] {
        log.append(row, 1_000);
    }
    let mut fold = fold(2_000);
    fold.looked(None, 2_000);
    take(&mut fold, &log, 1, 2_000);
    let first = fold.hand_out(2_000).unwrap();
    assert_eq!(fold.after(), Some(Offset::new(1)));
    take(&mut fold, &log, 1, 2_000);
    take(&mut fold, &log, 1, 2_000);
    fold.wrote(Wrote::Written);
    let second = fold.hand_out(2_000).unwrap();
    assert_eq!(
        (second.expected, second.batch.rows()),
        (Some(first.header), 2)
    );
    assert_eq!(second.header.applied, offset(3));
}

#[test]
fn a_conflict_goes_on_from_what_is_there_and_drops_what_was_read() {
    let mut log = Log::new();
    log.append("a", 1_000);
    let (mut fold, mine) = settled(&log, 2_000);
    log.append("b", 2_000);
    log.append("c", 2_000);
    take(&mut fold, &log, 1, 3_000);
    assert!(fold.hand_out(3_000).is_some());
    take(&mut fold, &log, 1, 3_000);
    let theirs = Header {
        applied: offset(2),
        ..mine
    };
    fold.wrote(Wrote::Conflict(Some(theirs.clone())));
    assert_eq!((fold.step(), fold.take_tally().conflicts), (Step::Look, 1));
    fold.looked(Some(theirs.clone()), 3_000);
    assert_eq!(
        (fold.resume().cloned(), fold.after()),
        (Some(theirs), Some(Offset::new(2)))
    );
}

#[test]
fn while_it_is_built_an_answer_that_was_lost_is_found_written() {
    let mut log = Log::new();
    log.append("a", 1_000);
    log.append("b", 1_000);
    let mut fold = fold(2_000);
    fold.looked(None, 2_000);
    take(&mut fold, &log, 1, 2_000);
    let written = fold.hand_out(2_000).unwrap().header;
    fold.failed();
    assert_eq!((fold.step(), fold.after()), (Step::Fold, None));
    take(&mut fold, &log, 1, 2_000);
    assert!(fold.hand_out(2_100).is_some());
    fold.wrote(Wrote::Conflict(Some(written.clone())));
    assert_eq!(
        (fold.after(), fold.resume()),
        (Some(Offset::new(1)), Some(&written))
    );
    take(&mut fold, &log, 1, 2_000);
    let last = write(&mut fold, 2_000);
    // The flip was done too, and its answer was lost.
    fold.failed();
    assert_eq!(fold.step(), Step::Flip);
    fold.flipped(&Flipped::Conflict(Some(last)), 2_000);
    assert_eq!((fold.step(), fold.building()), (Step::Fold, None));
    // Somebody dropped what was built: nothing is written to it any more.
    let mut dropped = self::fold(2_000);
    dropped.looked(None, 2_000);
    take(&mut dropped, &log, 1, 2_000);
    write(&mut dropped, 2_000);
    take(&mut dropped, &log, 1, 2_000);
    assert!(dropped.hand_out(2_000).is_some());
    dropped.wrote(Wrote::Conflict(None));
    assert_eq!(dropped.step(), Step::Look);
}

#[test]
fn another_log_a_log_that_was_cut_other_rules_and_lost_keys_are_folded_anew_beside() {
    let mut log = Log::new();
    for row in ["a", "b", "c"] {
        log.append(row, 1_000);
    }
    let because = |change: &dyn Fn(&mut Log, &mut Fold, &mut Header)| {
        let mut log = Log {
            records: log.records.clone(),
            ..log
        };
        let (mut fold, mut header) = settled(&log, 2_000);
        change(&mut log, &mut fold, &mut header);
        if fold.step() == Step::Fold {
            take(&mut fold, &log, 100, 3_000);
        }
        assert_eq!(fold.step(), Step::Look);
        fold.looked(Some(header.clone()), 3_000);
        let why = fold.building();
        assert_eq!(fold.after(), None);
        log.append("d", 3_000);
        take(&mut fold, &log, 100, 3_000);
        let built = write(&mut fold, 3_000);
        assert_ne!(built.generation, header.generation);
        assert_eq!(fold.to_flip().map(|(base, _)| base), Some(Some(header)));
        (why, built.complete)
    };
    let epoch = because(&|log, _, _| log.epoch = "e2");
    assert_eq!(epoch, (Some(Why::Epoch), true));
    let cut = because(&|log, _, _| {
        log.append("z", 3_000);
        log.start = 4;
    });
    assert_eq!(cut, (Some(Why::Truncated), false));
    let lost = because(&|log, fold, _| {
        log.append("z", 3_000);
        take(fold, log, 100, 3_000);
        assert!(fold.hand_out(3_000).is_some());
        fold.wrote(Wrote::Lost(Lost::Manifest));
    });
    assert_eq!(lost, (Some(Why::Lost), true));
    let rules = because(&|_, fold, header| {
        *fold = self::fold(3_000);
        header.fold_id = "g".to_owned();
    });
    assert_eq!(rules, (Some(Why::FoldId), true));
}

#[test]
fn who_comes_later_than_tombstones_are_kept_folds_anew() {
    let mut log = Log::new();
    log.append("a", 1_000);
    let (_, there) = settled(&log, 2_000);
    for (now_ms, anew) in [(2_000 + KEPT - 2, false), (2_000 + KEPT, true)] {
        let mut fold = fold(now_ms);
        fold.looked(Some(there.clone()), now_ms);
        take(&mut fold, &log, 100, now_ms);
        assert_eq!(fold.step() == Step::Look, anew);
    }
}

#[test]
fn a_fold_that_is_too_slow_ends_incomplete_and_is_tried_anew_after_pauses_that_double() {
    let mut log = Log::new();
    log.append("a", 1_000);
    log.append("b", 1_000);
    let mut now = 2_000;
    let mut fold = fold(now);
    fold.looked(None, now);
    for pause in [KEPT, 2 * KEPT] {
        take(&mut fold, &log, 1, now);
        assert!(write(&mut fold, now).complete);
        now += KEPT;
        take(&mut fold, &log, 100, now);
        let slow = write(&mut fold, now);
        assert!(!slow.complete && slow.since == offset(2) && slow.settled == offset(2));
        assert_eq!(slow.proven_ms, now);
        fold.flipped(&Flipped::Flipped, now);
        let until = now + pause;
        while now + KEPT / 2 < until {
            now += KEPT / 2;
            take(&mut fold, &log, 100, now);
            assert_eq!(fold.step(), Step::Fold, "not yet");
            write(&mut fold, now);
        }
        now = until;
        take(&mut fold, &log, 100, now);
        assert_eq!(fold.step(), Step::Look);
        fold.looked(Some(slow), now);
        assert_eq!(fold.building(), Some(Why::TooSlow));
    }
    take(&mut fold, &log, 100, now);
    assert!(write(&mut fold, now).complete);
}

#[test]
fn rows_of_compacted_history_are_no_state_before_the_head_that_was_there() {
    let mut log = Log::new();
    log.append("a", 1_000);
    log.append("b", 1_000);
    let mut fold = fold(1_000);
    fold.looked(None, 1_000);
    take(&mut fold, &log, 1, 1_000 + LAG - 2);
    assert_eq!(write(&mut fold, 1_000).settled, offset(0));
    log.append("c", 1_000 + LAG);
    take(&mut fold, &log, 1, 1_000 + LAG);
    assert_eq!(write(&mut fold, 1_000).settled, offset(3));
}

#[test]
fn a_proof_alone_is_written_now_and_then() {
    let mut log = Log::new();
    log.append("a", 1_000);
    let (mut fold, _) = settled(&log, 2_000);
    let every = i64::try_from(PROOF_EVERY.as_millis()).unwrap();
    take(&mut fold, &log, 100, 2_000 + every - 1);
    assert!(fold.hand_out(0).is_none() && !fold.is_behind());
    take(&mut fold, &log, 100, 2_000 + every);
    let header = write(&mut fold, 2_000 + every);
    assert_eq!(
        (&header.applied, header.proven_ms),
        (&offset(1), 2_000 + every)
    );
}

#[test]
fn a_fetch_that_is_more_than_a_batch_is_written_in_pieces_that_fit() {
    let mut log = Log::new();
    let count = 2 * BATCH_ROWS_MAX + 7;
    for number in 0..count {
        log.append(&number.to_string(), 1_000);
    }
    let mut fold = fold(2_000);
    fold.looked(None, 2_000);
    take(&mut fold, &log, count, 2_000);
    let (mut applied, mut rows, mut expected) = (0, 0, None);
    while fold.step() == Step::Fold {
        assert!(!fold.has_room() || !fold.is_behind());
        let writing = fold.hand_out(2_000).unwrap();
        assert_eq!(writing.expected, expected);
        assert!(writing.batch.rows() <= BATCH_ROWS_MAX && writing.batch.rows() > 0);
        let upto = Offset::try_from(&writing.header.applied).unwrap().number();
        assert_eq!(upto - applied, writing.batch.rows() as u64);
        (applied, rows) = (upto, rows + writing.batch.rows());
        expected = Some(writing.header);
        fold.wrote(Wrote::Written);
    }
    assert_eq!((rows, applied, fold.step()), (count, log.head, Step::Flip));
}

#[test]
fn what_means_nothing_or_belongs_elsewhere_is_passed_over_and_counted() {
    let mut log = Log::new();
    for row in ["a", "b", "c"] {
        log.append(row, 1_000);
    }
    let mut fold = fold(2_000);
    fold.looked(None, 2_000);
    let mut fetch = log.fetch(None, 100);
    fetch.records[0].key = Bytes::from_static(b"no json");
    // Of 16 partitions it is in 3.
    fetch.records[1].key = own_key("JFK", "b");
    let when = ReadAt {
        sent_ms: 2_000,
        answered_ms: 2_000,
    };
    fold.took(fetch, when);
    let writing = fold.hand_out(2_000).unwrap();
    assert_eq!(
        (writing.batch.rows(), &writing.header.applied),
        (1, &offset(3))
    );
    let tally = fold.take_tally();
    assert_eq!((tally.poisoned, tally.misplaced), (1, 1));
}
