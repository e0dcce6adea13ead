//! A commit: the records that are written, and made durable, together. Its form on disk, without any file.
//!
//! 32 bytes of head (little endian: mark `TGC1`, length of the body, CRC32C of everything behind it, number of records, offset
//! of the first, append time), then the records: lengths of key, value and id, the event time, and the three. Offsets within a
//! partition are dense, so only the first is written. Keeps: nothing is allocated for a length that the bytes at hand do
//! not have, and nothing is believed whose checksum is wrong.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};

use crate::model::{Offset, Record};

/// Bytes of a commit's head.
pub(super) const HEAD: usize = 32;
/// What each begins with.
const MARK: [u8; 4] = *b"TGC1";
/// Where the checksum stands.
const CHECKSUM_AT: usize = 8;
/// Where what it covers begins.
const COVERED_FROM: usize = 12;
/// In the place of a value's length: a tombstone.
const TOMBSTONE: u32 = u32::MAX;
/// In the place of an event time: none was given.
const NO_TIME: i64 = i64::MIN;

/// A record and its publisher's name for it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) id: Option<Arc<str>>,
}

/// What a commit's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Bytes of the whole commit, the head included.
    pub(super) length: u64,
    /// The offset of its first record.
    pub(super) first: Offset,
    /// The offset of its last.
    pub(super) last: Offset,
    /// When the log took it.
    pub(super) at_ms: i64,
}

/// Why bytes are no commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flaw {
    #[error("it ends in the middle")]
    Short,
    #[error("it does not begin as one does")]
    Mark,
    #[error("its checksum is wrong")]
    Checksum,
}

/// Writes a commit of these entries, one at least, in place of what `out` holds.
pub(super) fn encode(out: &mut Vec<u8>, entries: &[Entry]) {
    out.clear();
    out.resize(HEAD, 0);
    for Entry { record, id } in entries {
        let value = record.value.as_deref();
        let id = id.as_deref().unwrap_or("").as_bytes();
        out.put_u32_le(length(&record.key));
        out.put_u32_le(value.map_or(TOMBSTONE, length));
        out.put_u32_le(length(id));
        out.put_i64_le(record.event_time_ms.unwrap_or(NO_TIME));
        out.put_slice(&record.key);
        out.put_slice(value.unwrap_or_default());
        out.put_slice(id);
    }
    let (first, at_ms) = entries.first().map_or((0, 0), |entry| {
        (entry.record.offset.number(), entry.record.append_time_ms)
    });
    let body = length(&out[HEAD..]);
    let mut head = &mut out[..HEAD];
    head.put_slice(&MARK);
    head.put_u32_le(body);
    head.put_u32_le(0);
    head.put_u32_le(u32::try_from(entries.len()).unwrap_or(u32::MAX));
    head.put_u64_le(first);
    head.put_i64_le(at_ms);
    let checksum = crc32c::crc32c(&out[COVERED_FROM..]);
    out[CHECKSUM_AT..COVERED_FROM].copy_from_slice(&checksum.to_le_bytes());
}

/// Lengths are far below 4 GiB: a record has `limits.record_bytes` at most, a commit a few MiB beside the largest record.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX - 1)
}

/// Reads a head; whether its commit is whole is not looked at.
pub(super) fn head(bytes: &[u8]) -> Result<Head, Flaw> {
    let mut bytes = bytes.get(..HEAD).ok_or(Flaw::Short)?;
    if !bytes.starts_with(&MARK) {
        return Err(Flaw::Mark);
    }
    bytes.advance(MARK.len());
    let (body, _, count) = (bytes.get_u32_le(), bytes.get_u32_le(), bytes.get_u32_le());
    let (first, at_ms) = (bytes.get_u64_le(), bytes.get_i64_le());
    let last = (first
        .checked_add(u64::from(count))
        .filter(|_| first > 0 && count > 0))
    .ok_or(Flaw::Mark)?
        - 1;
    Ok(Head {
        length: HEAD as u64 + u64::from(body),
        first: Offset::new(first),
        last: Offset::new(last),
        at_ms,
    })
}

/// Reads the commit that these bytes begin with, its records copied, so that none of them pins the others.
pub(super) fn decode(bytes: &[u8]) -> Result<(Head, Vec<Entry>), Flaw> {
    let head = check(bytes)?;
    let mut body = &bytes[HEAD..usize::try_from(head.length).map_err(|_| Flaw::Short)?];
    let mut entries = Vec::new();
    for offset in head.first.number()..=head.last.number() {
        entries.push(entry(&mut body, Offset::new(offset), head.at_ms).ok_or(Flaw::Checksum)?);
    }
    Ok((head, entries))
}

/// The head of the commit that these bytes begin with, if it is whole and its checksum right.
pub(super) fn check(bytes: &[u8]) -> Result<Head, Flaw> {
    let head = head(bytes)?;
    let whole = usize::try_from(head.length)
        .ok()
        .and_then(|length| bytes.get(..length));
    let whole = whole.ok_or(Flaw::Short)?;
    let told = u32::from_le_bytes([whole[8], whole[9], whole[10], whole[11]]);
    if crc32c::crc32c(&whole[COVERED_FROM..]) == told {
        Ok(head)
    } else {
        Err(Flaw::Checksum)
    }
}

/// Whether a whole commit begins anywhere in these bytes.
pub(super) fn any_in(bytes: &[u8]) -> bool {
    let starts = bytes.windows(MARK.len()).enumerate();
    starts
        .filter(|(_, mark)| *mark == MARK)
        .any(|(at, _)| check(&bytes[at..]).is_ok())
}

fn entry(body: &mut &[u8], offset: Offset, append_time_ms: i64) -> Option<Entry> {
    let (key, value, id) = (
        body.try_get_u32_le().ok()?,
        body.try_get_u32_le().ok()?,
        body.try_get_u32_le().ok()?,
    );
    let time = body.try_get_i64_le().ok()?;
    let key = take(body, key)?;
    let value = if value == TOMBSTONE {
        None
    } else {
        Some(take(body, value)?)
    };
    let id = std::str::from_utf8(take(body, id)?).ok()?;
    Some(Entry {
        record: Record {
            offset,
            key: Bytes::copy_from_slice(key),
            value: value.map(Bytes::copy_from_slice),
            event_time_ms: (time != NO_TIME).then_some(time),
            append_time_ms,
            // Of this life of the log only: the file does not tell it apart.
            expired: false,
        },
        id: (!id.is_empty()).then(|| id.into()),
    })
}

/// Takes so many bytes off the front.
pub(super) fn take<'a>(bytes: &mut &'a [u8], count: u32) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(usize::try_from(count).ok()?)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = Entry> {
        let bytes = |max| prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from);
        let time = prop::option::of(any::<i32>().prop_map(i64::from));
        let id = prop::option::of("[a-zé]{1,9}".prop_map(Into::into));
        (bytes(40), prop::option::of(bytes(100)), time, id).prop_map(
            |(key, value, event_time_ms, id)| {
                let (offset, append_time_ms) = (Offset::BEFORE_ALL, 7);
                let record = Record {
                    offset,
                    key,
                    value,
                    event_time_ms,
                    append_time_ms,
                    expired: false,
                };
                Entry { record, id }
            },
        )
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let numbered = |(first, mut entries): (u64, Vec<Entry>)| {
            for (offset, entry) in (first..).zip(&mut entries) {
                entry.record.offset = Offset::new(offset);
            }
            entries
        };
        (1..u64::MAX >> 1, prop::collection::vec(entry(), 1..6)).prop_map(numbered)
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_whole_or_not_at_all(entries in entries(), cut in any::<prop::sample::Index>(), flip in any::<u8>()) {
            let mut bytes = Vec::new();
            encode(&mut bytes, &entries);
            let (head, read) = decode(&bytes).unwrap();
            prop_assert_eq!(head.length, bytes.len() as u64);
            prop_assert_eq!(&read, &entries);
            let at = cut.index(bytes.len());
            prop_assert!(decode(&bytes[..at]).is_err());
            prop_assert!(any_in(&[&[1, 2, 3], &bytes[..]].concat()));
            bytes[at] ^= flip.max(1);
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes).is_err());
            let marked = [&MARK[..], &bytes].concat();
            prop_assert!(decode(&marked).is_err());
        }
    }
}
