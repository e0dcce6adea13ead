use super::*;
use crate::source::kafka::appender::{NewKafkaRecord, Producer};
use proptest::prelude::*;

const PRODUCER: Producer = Producer {
    id: 7,
    epoch: 0,
    sequence: 0,
};

fn channel() -> crate::model::Channel {
    "s/c".parse().unwrap()
}

fn new(key: &str, value: Option<&str>) -> NewKafkaRecord {
    NewKafkaRecord {
        channel: channel(),
        key: key.to_owned().into(),
        value: value.map(|value| value.to_owned().into()),
        time_ms: None,
        happened_ms: None,
        id: Some("an id".into()),
        headers: Vec::new(),
    }
}

/// A batch of these, at `base`, with other attributes.
fn batch(records: &[NewKafkaRecord], base: i64, attributes: u16) -> Vec<u8> {
    let mut bytes = encode(records, &PRODUCER, 1000).to_vec();
    bytes[..8].copy_from_slice(&base.to_be_bytes());
    bytes[21..23].copy_from_slice(&attributes.to_be_bytes());
    let sum = crc32c::crc32c(&bytes[SUMMED..]);
    bytes[17..21].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// A batch of these, as a fetch at `base` brings it.
pub(in crate::source::kafka) fn at(records: &[NewKafkaRecord], base: i64) -> Bytes {
    batch(records, base, 0).into()
}

fn offsets(bytes: Vec<u8>, from: i64, aborted: &[AbortedTransaction]) -> (Vec<u64>, Option<i64>) {
    let mut found = Read::default();
    let reached = read(bytes.into(), from, aborted, &mut found).unwrap();
    let offsets = found.records.iter().map(|record| record.offset.number());
    (offsets.collect(), reached.map(|reached| reached.next))
}

/// A marker's record: its key has a version and a kind.
fn marker(kind: u8) -> NewKafkaRecord {
    NewKafkaRecord {
        channel: channel(),
        key: Bytes::copy_from_slice(&[0, 0, 0, kind]),
        value: Some(Bytes::from_static(&[0; 6])),
        time_ms: None,
        happened_ms: None,
        id: None,
        headers: Vec::new(),
    }
}

#[test]
fn what_was_written_reads_back() {
    let written = [
        new(r#"["c","r"]"#, Some("{}")),
        new("", None),
        NewKafkaRecord {
            time_ms: Some(5),
            ..new("k", Some(""))
        },
    ];
    let mut found = Read::default();
    let bytes = batch(&written, 40, 0).into();
    let reached = read(bytes, 0, &[], &mut found).unwrap().unwrap();
    assert_eq!(reached.next, 43);
    let read: Vec<_> = found
        .records
        .iter()
        .map(|record| {
            let value = record.value.as_deref();
            (
                record.offset.number(),
                &record.key[..],
                value,
                record.event_time_ms,
            )
        })
        .collect();
    assert_eq!(
        read,
        [
            (
                41,
                br#"["c","r"]"#.as_slice(),
                Some(b"{}".as_slice()),
                Some(1000)
            ),
            (42, b"", None, Some(1000)),
            (43, b"k", Some(b"".as_slice()), Some(5)),
        ]
    );
}

#[test]
fn records_before_the_place_asked_for_are_passed_over_and_a_cut_batch_is_left() {
    let two = [new("a", None), new("b", None)];
    let mut bytes = batch(&two, 10, 0);
    bytes.extend(batch(&two, 12, 0));
    let whole = bytes.len();
    bytes.extend(&batch(&two, 14, 0)[..70]);
    assert_eq!(
        offsets(bytes.clone(), 11, &[]),
        (vec![12, 13, 14], Some(14))
    );
    assert_eq!(offsets(bytes[whole..].to_vec(), 14, &[]), (vec![], None));
}

#[test]
fn what_was_aborted_never_comes_and_is_passed() {
    let one = [new("a", None)];
    let aborted = AbortedTransaction::default()
        .with_producer_id(7.into())
        .with_first_offset(1);
    let mut bytes = batch(&one, 0, TRANSACTIONAL);
    bytes.extend(batch(&[marker(1)], 0, TRANSACTIONAL | CONTROL));
    bytes.extend(batch(&one, 1, TRANSACTIONAL));
    bytes.extend(batch(&[marker(0)], 2, TRANSACTIONAL | CONTROL));
    bytes.extend(batch(&one, 3, TRANSACTIONAL));
    bytes.extend(batch(&one, 4, 0));
    bytes.extend(batch(&[marker(1)], 5, TRANSACTIONAL | CONTROL));
    assert_eq!(offsets(bytes, 0, &[aborted]), (vec![1, 4, 5], Some(6)));
}

#[test]
fn the_logs_own_time_is_no_event_time() {
    let mut found = Read::default();
    let bytes = batch(&[new("a", None)], 0, APPEND_TIME).into();
    read(bytes, 0, &[], &mut found).unwrap();
    let times = |record: &Record| (record.event_time_ms, record.append_time_ms);
    assert_eq!(times(&found.records[0]), (None, 1000));
    // What the publisher said is, whatever the log's own time.
    let mut told = new("a", None);
    told.happened_ms = Some(-5);
    for (attributes, at) in [(0, 1000), (APPEND_TIME, 1000)] {
        let mut found = Read::default();
        read(
            batch(&[told.clone()], 0, attributes).into(),
            0,
            &[],
            &mut found,
        )
        .unwrap();
        assert_eq!(times(&found.records[0]), (Some(-5), at));
    }
}

#[test]
fn ids_come_back_and_the_headers_of_others_are_passed_over() {
    let mut found = Read::default();
    let mut without = new("b", None);
    without.id = None;
    let mut long = new("c", None);
    long.id = Some("x".repeat(ID_MAX + 1).into());
    let bytes = batch(&[new("a", None), without, long], 4, 0).into();
    read(bytes, 0, &[], &mut found).unwrap();
    let id = Named {
        offset: offset_of(4),
        id: "an id".into(),
        at_ms: 1000,
    };
    assert_eq!((found.ids, found.records.len()), (vec![id], 3));
    let check = |headers: &[u8], expect: Option<&str>| {
        let said = said(Headers {
            rest: Bytes::copy_from_slice(headers),
            left: None,
        });
        assert_eq!(said.id.as_deref(), expect, "{headers:?}");
    };
    check(b"", None);
    check(b"\x04\x04id\x02x\x16tidegate-id\x02y", Some("y"));
    check(b"\x02\x16tidegate-id\x01", None);
    check(b"\x02\x16tidegate-id\x02\xff", None);
    check(b"\xfe\xff\xff\xff\x0f\x16tidegate-id\x02y\x02", Some("y"));
    check(b"\x02\x16tide", None);
}

#[test]
fn a_flipped_bit_is_noticed() {
    let good = batch(&[new("a", Some("value"))], 0, 0);
    for at in 16..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(
            read(bad.into(), 0, &[], &mut Read::default()).is_err(),
            "{at}"
        );
    }
}

proptest! {
    #[test]
    fn bytes_from_outside_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        codec in 0u16..8,
        count in any::<u16>(),
    ) {
        let mut whole = batch(&[new("a", None)], 0, codec);
        whole.truncate(HEAD);
        whole.extend(&bytes);
        whole[59..61].copy_from_slice(&count.to_be_bytes());
        let length = u32::try_from(whole.len() - UNCOUNTED).unwrap();
        whole[8..12].copy_from_slice(&length.to_be_bytes());
        let sum = crc32c::crc32c(&whole[SUMMED..]);
        whole[17..21].copy_from_slice(&sum.to_be_bytes());
        drop(read(whole.into(), 0, &[], &mut Read::default()));
        drop(read(bytes.into(), 0, &[], &mut Read::default()));
    }
}
