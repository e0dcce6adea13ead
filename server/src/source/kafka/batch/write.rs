//! A batch for an append.

use bytes::{BufMut, Bytes, BytesMut};

use super::{FORMAT, HEAD, ID, SUMMED, TS, UNCOUNTED};
use crate::source::kafka::appender::{NewKafkaRecord, Producer};

/// A batch of records, at least one, under a producer's name and number. `now_ms` is the time of those that have none.
pub(in super::super) fn encode(
    records: &[NewKafkaRecord],
    producer: &Producer,
    now_ms: i64,
) -> Bytes {
    let time = |record: &NewKafkaRecord| record.time_ms.unwrap_or(now_ms);
    let base_time = records.first().map_or(now_ms, time);
    let max_time = records.iter().map(time).max().unwrap_or(now_ms);
    let last = i32::try_from(records.len()).unwrap_or(i32::MAX) - 1;
    let mut batch =
        BytesMut::with_capacity(HEAD + records.iter().map(NewKafkaRecord::size).sum::<usize>());
    batch.put_i64(0); // the broker's to say
    batch.put_i32(0); // the length, below
    batch.put_i32(-1);
    batch.put_u8(FORMAT);
    batch.put_u32(0); // the checksum, below
    batch.put_i16(0);
    batch.put_i32(last);
    batch.put_i64(base_time);
    batch.put_i64(max_time);
    batch.put_i64(producer.id);
    batch.put_i16(producer.epoch);
    batch.put_i32(producer.sequence);
    batch.put_i32(last + 1);
    for (at, record) in (0..).zip(records) {
        put_record(&mut batch, record, time(record) - base_time, at);
    }
    let length = u32::try_from(batch.len() - UNCOUNTED).unwrap_or(u32::MAX);
    batch[8..UNCOUNTED].copy_from_slice(&length.to_be_bytes());
    let sum = crc32c::crc32c(&batch[SUMMED..]);
    batch[SUMMED - 4..SUMMED].copy_from_slice(&sum.to_be_bytes());
    batch.freeze()
}

fn put_record(batch: &mut BytesMut, record: &NewKafkaRecord, time: i64, at: i64) {
    let mut body = BytesMut::with_capacity(record.size());
    body.put_u8(0);
    put_varint(&mut body, time);
    put_varint(&mut body, at);
    put_part(&mut body, Some(&record.key));
    put_part(&mut body, record.value.as_deref());
    let happened = record.happened_ms.map(|ms| ms.to_string());
    let own = [(ID, record.id.as_deref()), (TS, happened.as_deref())];
    let own = own
        .iter()
        .filter_map(|(name, value)| Some((*name, Some((*value)?.as_bytes()))));
    let others = record.headers.iter();
    let others = others.map(|(name, value)| (&name[..], value.as_deref()));
    let count = own.clone().count() + record.headers.len();
    put_varint(&mut body, i64::try_from(count).unwrap_or(0));
    for (name, value) in own.chain(others) {
        put_part(&mut body, Some(name));
        put_part(&mut body, value);
    }
    put_part(batch, Some(&body));
}

fn put_part(batch: &mut BytesMut, part: Option<&[u8]>) {
    match part {
        None => put_varint(batch, -1),
        Some(part) => {
            put_varint(batch, i64::try_from(part.len()).unwrap_or(i64::MAX));
            batch.put_slice(part);
        }
    }
}

fn put_varint(batch: &mut BytesMut, number: i64) {
    let mut zigzag = ((number << 1) ^ (number >> 63)).cast_unsigned();
    while zigzag > 0x7f {
        batch.put_u8(low_bits(zigzag) | 0x80);
        zigzag >>= 7;
    }
    batch.put_u8(low_bits(zigzag));
}

fn low_bits(number: u64) -> u8 {
    u8::try_from(number & 0x7f).unwrap_or_default()
}
