//! The fold of a partition as a file: what retention needs before it lets records go.
//!
//! A view's rows outlive the records that made them. So before segments are removed, the whole fold is written beside
//! them: every channel with its last change and its rows, the ids that are still known, and the offset up to which all
//! that holds. A start reads it and folds what follows. One file, replaced whole; a checksum over everything.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};

use super::commit::take;
use crate::{
    cache::{CachedView, MemoryCache},
    model::{Channel, Offset, Row, RowId, Rows},
    source::embedded::State,
};

/// Its name.
pub(super) const NAME: &str = "fold";
const MARK: [u8; 8] = *b"TGFOLD01";
/// Mark and checksum.
const HEAD: usize = MARK.len() + 4;

/// An id that a record was published with, and where and when it went into the log.
pub(super) type KnownId = (i64, Arc<str>, Offset);

/// What the file holds.
#[derive(Debug, Default)]
pub(super) struct Fold {
    /// Everything up to here is folded.
    pub(super) upto: Offset,
    /// In the order of their times.
    pub(super) ids: Vec<KnownId>,
    /// Channels and what is known of them.
    pub(super) cache: MemoryCache,
}

impl Fold {
    /// Of everything that this state holds. Cheap: rows are persistent maps.
    pub(super) fn of(state: &State) -> Self {
        Self {
            upto: state.head,
            ids: state.ids.all().collect(),
            cache: state.cache.clone(),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEAD];
        out.put_u64_le(self.upto.number());
        out.put_u64_le(self.ids.len() as u64);
        for (at_ms, id, offset) in &self.ids {
            out.put_i64_le(*at_ms);
            out.put_u64_le(offset.number());
            put(&mut out, id.as_bytes());
        }
        for (channel, view) in self.cache.views() {
            put(&mut out, channel.as_bytes());
            out.put_u64_le(view.last_change.number());
            out.put_u64_le(view.rows.len() as u64);
            for (id, row) in &view.rows {
                put(&mut out, id.as_str().as_bytes());
                out.put_i64_le(row.ts_ms);
                out.put_u64_le(row.offset.number());
                put(&mut out, &row.data);
            }
        }
        let checksum = crc32c::crc32c(&out[HEAD..]);
        out[..MARK.len()].copy_from_slice(&MARK);
        out[MARK.len()..HEAD].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// None when the bytes are not a whole fold.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, mut rest) = bytes.split_at_checked(HEAD)?;
        let told = head.strip_prefix(&MARK)?;
        if crc32c::crc32c(rest).to_le_bytes() != *told {
            return None;
        }
        let bytes = &mut rest;
        let mut fold = Self {
            upto: offset(bytes)?,
            ..Self::default()
        };
        for _ in 0..bytes.try_get_u64_le().ok()? {
            let (at_ms, offset) = (bytes.try_get_i64_le().ok()?, offset(bytes)?);
            fold.ids.push((at_ms, text(bytes)?.into(), offset));
        }
        while !bytes.is_empty() {
            let channel: Channel = text(bytes)?.parse().ok()?;
            fold.cache.put(channel, view(bytes)?);
        }
        Some(fold)
    }
}

fn view(bytes: &mut &[u8]) -> Option<CachedView> {
    let last_change = offset(bytes)?;
    let (mut rows, mut size) = (Rows::new(), 0);
    for _ in 0..bytes.try_get_u64_le().ok()? {
        let id = RowId::new(text(bytes)?).ok()?;
        let (ts_ms, offset) = (bytes.try_get_i64_le().ok()?, offset(bytes)?);
        let count = bytes.try_get_u32_le().ok()?;
        let data = Bytes::copy_from_slice(take(bytes, count)?);
        size += id.as_str().len() + data.len();
        rows.insert(
            id,
            Row {
                data,
                ts_ms,
                offset,
            },
        );
    }
    Some(CachedView {
        rows,
        bytes: size,
        last_change,
    })
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

fn text<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    let count = bytes.try_get_u32_le().ok()?;
    std::str::from_utf8(take(bytes, count)?).ok()
}

fn offset(bytes: &mut &[u8]) -> Option<Offset> {
    bytes.try_get_u64_le().ok().map(Offset::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Change;

    #[test]
    fn a_fold_reads_back_and_a_damaged_one_does_not() {
        let mut cache = MemoryCache::default();
        let rows = [
            ("a", "1", Some("[1]")),
            ("a", "2", Some("2")),
            ("a", "1", None),
            ("b", "", Some("\"é\"")),
        ];
        for (at, (channel, row, data)) in (1..).zip(rows) {
            let change = Change {
                channel: Channel::new("s", channel).unwrap(),
                row: RowId::new(row).unwrap(),
                data: data.map(Into::into),
                ts_ms: 5,
            };
            cache.apply(&change, Offset::new(at));
        }
        let fold = Fold {
            upto: Offset::new(4),
            ids: vec![(9, "x".into(), Offset::new(3))],
            cache,
        };
        let bytes = fold.encode();
        let read = Fold::decode(&bytes).unwrap();
        assert_eq!((read.upto, &read.ids), (fold.upto, &fold.ids));
        for channel in ["s/a", "s/b"] {
            let (was, is) = (
                fold.cache.view(channel).unwrap(),
                read.cache.view(channel).unwrap(),
            );
            assert_eq!((is.bytes, is.last_change), (was.bytes, was.last_change));
            assert!(is.rows == was.rows, "{channel}");
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x20;
            assert!(Fold::decode(&flipped).is_none(), "{at}");
            assert!(Fold::decode(&bytes[..at]).is_none(), "{at}");
        }
    }
}
