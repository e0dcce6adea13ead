//! Record batches, format 2: read from what a fetch brought, and written for an append.
//!
//! Reading passes over what is not a record of the log's meaning (markers, aborted transactions) and still knows how far it
//! came. Every length is checked before it is used, every batch's checksum too, and what is unpacked has a bound.

mod packed;
mod write;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::{Buf, Bytes};
use kafka_protocol::messages::fetch_response::AbortedTransaction;

use super::{KafkaError, offset_of, recent::Named};
use crate::model::Record;

pub(super) use write::encode;

/// Bytes of a batch before its records.
const HEAD: usize = 61;
/// Of these the length field counts none.
const UNCOUNTED: usize = 12;
/// Where the part begins that the checksum covers.
const SUMMED: usize = 21;
/// The only format there is since Kafka 0.11.
const FORMAT: u8 = 2;

/// The header that carries a publisher's own name of a record. Others' headers named `id` may mean anything.
const ID: &[u8] = b"tidegate-id";
/// The header that says when it happened, in milliseconds since 1970. A record's own time is when it was published: retention and
/// compaction go by that, and brokers refuse what is too far from now.
const TS: &[u8] = b"tidegate-ts";
/// Longest id of a record that is looked at, in bytes.
const ID_MAX: usize = 128;

const CODEC: u16 = 0b111;
const APPEND_TIME: u16 = 1 << 3;
const TRANSACTIONAL: u16 = 1 << 4;
const CONTROL: u16 = 1 << 5;

/// Of a marker's key: the transaction was aborted.
const ABORTED: i16 = 0;

/// How far a reading came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    /// Kafka's offset behind all that was read.
    pub(super) next: i64,
    /// The leader epoch of the last batch.
    pub(super) leader_epoch: i32,
}

/// Transactions that were aborted: which of them have begun where the reading is.
struct Aborted {
    coming: Vec<(i64, i64)>,
    open: HashSet<i64>,
}

impl Aborted {
    fn new(told: &[AbortedTransaction]) -> Self {
        let mut coming: Vec<_> = told
            .iter()
            .map(|aborted| (aborted.first_offset, aborted.producer_id.0))
            .collect();
        coming.sort_unstable_by(|a, b| b.cmp(a));
        Self {
            coming,
            open: HashSet::new(),
        }
    }
    fn reach(&mut self, offset: i64) {
        while let Some((_, producer)) = self.coming.pop_if(|(first, _)| *first <= offset) {
            self.open.insert(producer);
        }
    }
}

/// One batch's head.
struct Batch {
    base: i64,
    last: i64,
    leader_epoch: i32,
    attributes: u16,
    base_time: i64,
    max_time: i64,
    producer: i64,
    count: usize,
    records: Bytes,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) records: Vec<Record>,
    /// Of those that publishers gave an id.
    pub(super) ids: Vec<Named>,
}

/// Reads the records from Kafka's offset `from` on; none when there is no whole batch. The keys share the fetch's memory,
/// the values do not, since rows outlive it.
pub(super) fn read(
    mut bytes: Bytes,
    from: i64,
    aborted: &[AbortedTransaction],
    read: &mut Read,
) -> Result<Option<Reached>, KafkaError> {
    let (mut aborted, mut reached) = (Aborted::new(aborted), None);
    while let Some(batch) = next_batch(&mut bytes)? {
        aborted.reach(batch.last);
        let producer = batch.producer;
        if batch.attributes & CONTROL != 0 {
            if marks_abort(&batch)? {
                aborted.open.remove(&producer);
            }
        } else if batch.attributes & TRANSACTIONAL == 0 || !aborted.open.contains(&producer) {
            read_batch(&batch, from, read)?;
        }
        reached = Some(Reached {
            next: batch.last + 1,
            leader_epoch: batch.leader_epoch,
        });
    }
    Ok(reached)
}

const fn malformed(what: &'static str) -> KafkaError {
    KafkaError::Malformed(what)
}

/// Takes a whole batch off the front; what is cut at the end is left.
fn next_batch(bytes: &mut Bytes) -> Result<Option<Batch>, KafkaError> {
    let Some(length) = bytes.get(8..UNCOUNTED) else {
        return Ok(None);
    };
    let length = i32::from_be_bytes([length[0], length[1], length[2], length[3]]);
    let whole = usize::try_from(length)
        .ok()
        .and_then(|length| length.checked_add(UNCOUNTED))
        .filter(|whole| *whole >= HEAD)
        .ok_or(malformed("a batch's length"))?;
    if bytes.len() < whole {
        return Ok(None);
    }
    let mut batch = bytes.split_to(whole);
    let sum = crc32c::crc32c(&batch[SUMMED..]);
    let base = batch.get_i64();
    batch.advance(4);
    let leader_epoch = batch.get_i32();
    if batch.get_u8() != FORMAT {
        return Err(malformed("a record of a format older than Kafka 0.11"));
    }
    if batch.get_u32() != sum {
        return Err(malformed("a batch's checksum"));
    }
    let attributes = batch.get_u16();
    let last = i64::from(batch.get_i32());
    let (base_time, max_time, producer) = (batch.get_i64(), batch.get_i64(), batch.get_i64());
    batch.advance(6);
    let count = usize::try_from(batch.get_i32()).map_err(|_| malformed("a batch's count"))?;
    let last = base
        .checked_add(last)
        .filter(|last| (0..i64::MAX).contains(last) && *last >= base)
        .ok_or(malformed("a batch's offsets"))?;
    Ok(Some(Batch {
        base,
        last,
        leader_epoch,
        attributes,
        base_time,
        max_time,
        producer,
        count,
        records: batch,
    }))
}

/// Whether a control batch ends an aborted transaction.
fn marks_abort(batch: &Batch) -> Result<bool, KafkaError> {
    let mut aborts = false;
    each(batch, |_, _, record| {
        let key = record.key.unwrap_or_default();
        aborts = key.get(2..4) == Some(ABORTED.to_be_bytes().as_slice());
    })?;
    Ok(aborts)
}

fn read_batch(batch: &Batch, from: i64, read: &mut Read) -> Result<(), KafkaError> {
    let by_log = batch.attributes & APPEND_TIME != 0;
    each(batch, |offset, time, record| {
        if offset < from {
            return;
        }
        let said = said(record.headers);
        let time = if by_log { batch.max_time } else { time };
        let (offset, at_ms) = (offset_of(offset), time.max(0));
        if let Some(id) = said.id {
            read.ids.push(Named { offset, id, at_ms });
        }
        read.records.push(Record {
            offset,
            key: record.key.unwrap_or_default(),
            value: record.value.map(|value| Bytes::copy_from_slice(&value)),
            event_time_ms: said
                .happened_ms
                .or_else(|| (!by_log && time >= 0).then_some(time)),
            append_time_ms: at_ms,
            expired: false,
        });
    })
}

/// What Tidegate's own publishing says in a record's headers.
#[derive(Debug, Default)]
struct Said {
    id: Option<Arc<str>>,
    happened_ms: Option<i64>,
}

/// Reads what Tidegate said in the headers. Those that can't be read are no reason to lose the record.
fn said(headers: Headers) -> Said {
    let mut said = Said::default();
    for (name, value) in headers {
        let text = || {
            value
                .as_deref()
                .and_then(|value| std::str::from_utf8(value).ok())
        };
        match &name[..] {
            ID => {
                said.id = text()
                    .filter(|id| (1..=ID_MAX).contains(&id.len()))
                    .map(Arc::from)
            }
            TS => said.happened_ms = text().and_then(|ms| ms.parse().ok()),
            _ => {}
        }
    }
    said
}

/// A record as it is in its batch.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    pub(super) key: Option<Bytes>,
    pub(super) value: Option<Bytes>,
    pub(super) headers: Headers,
}

/// A record's headers, read one after the other; those behind one that can't be read are not told.
#[derive(Clone, Debug)]
pub(super) struct Headers {
    rest: Bytes,
    left: Option<usize>,
}

impl Iterator for Headers {
    type Item = (Bytes, Option<Bytes>);

    fn next(&mut self) -> Option<Self::Item> {
        let left = match self.left {
            Some(left) => left,
            None => size(&mut self.rest).ok().flatten().unwrap_or(0),
        };
        self.left = Some(left.checked_sub(1)?);
        let (Ok(Some(name)), Ok(value)) = (part(&mut self.rest), part(&mut self.rest)) else {
            self.left = Some(0);
            return None;
        };
        Some((name, value))
    }
}

/// The records at these offsets of Kafka's, as they are in what a fetch brought.
pub(super) fn raw(
    mut bytes: Bytes,
    wanted: &HashSet<i64>,
) -> Result<HashMap<i64, Raw>, KafkaError> {
    let mut found = HashMap::new();
    while let Some(batch) = next_batch(&mut bytes)? {
        if batch.attributes & CONTROL == 0 {
            each(&batch, |offset, _, record| {
                if wanted.contains(&offset) {
                    found.insert(offset, record);
                }
            })?;
        }
    }
    Ok(found)
}

/// Calls with each record's offset and time, and with the record.
fn each(batch: &Batch, mut take: impl FnMut(i64, i64, Raw)) -> Result<(), KafkaError> {
    let mut rest = packed::unpack(batch.attributes & CODEC, &batch.records)?;
    for _ in 0..batch.count {
        let length = size(&mut rest)?.ok_or(malformed("a record's length"))?;
        let mut record = cut(&mut rest, length)?;
        if !record.has_remaining() {
            return Err(malformed("an empty record"));
        }
        record.advance(1);
        let time = varint(&mut record)?;
        let at = varint(&mut record)?;
        let offset = batch
            .base
            .checked_add(at)
            .filter(|offset| *offset >= batch.base && *offset <= batch.last)
            .ok_or(malformed("a record's offset"))?;
        let key = part(&mut record)?;
        let value = part(&mut record)?;
        let headers = Headers {
            rest: record,
            left: None,
        };
        let raw = Raw {
            key,
            value,
            headers,
        };
        take(offset, batch.base_time.saturating_add(time), raw);
    }
    Ok(())
}

/// A length and so many bytes; none where it is negative.
fn part(bytes: &mut Bytes) -> Result<Option<Bytes>, KafkaError> {
    size(bytes)?.map(|length| cut(bytes, length)).transpose()
}

fn size(bytes: &mut Bytes) -> Result<Option<usize>, KafkaError> {
    Ok(usize::try_from(varint(bytes)?).ok())
}

fn cut(bytes: &mut Bytes, length: usize) -> Result<Bytes, KafkaError> {
    if length > bytes.len() {
        return Err(malformed("a length beyond its batch"));
    }
    Ok(bytes.split_to(length))
}

/// A signed number in as few bytes as it needs: seven bits each, zigzag.
fn varint(bytes: &mut Bytes) -> Result<i64, KafkaError> {
    let mut number = 0u64;
    for (at, &byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            bytes.advance(at + 1);
            return Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed());
        }
    }
    Err(malformed("a number"))
}

#[cfg(test)]
pub(super) mod tests;
