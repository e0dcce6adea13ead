//! What a batch writes: the last change of each row, by channel.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::header::{DecimalOffset, Header};
use crate::model::{Change, RowId};

/// Most rows of a batch, deletes included. A batch holds up the whole server while it is written: this is some tens of ms.
pub const BATCH_ROWS_MAX: usize = 10_000;
/// Most bytes of a batch, names and data together.
pub const BATCH_BYTES_MAX: usize = 8 << 20;

/// A row as the cache has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedRow {
    /// The offset of the change that it comes from.
    pub offset: DecimalOffset,
    /// Event time, else append time, in milliseconds since 1970.
    pub ts_ms: i64,
    /// JSON text.
    pub data: Bytes,
}

impl CachedRow {
    /// Its text in the cache: offset, time and data, a space between.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("{} {} ", self.offset, self.ts_ms).into_bytes();
        text.extend_from_slice(&self.data);
        text
    }
    /// Reads what [`CachedRow::to_bytes`] made.
    pub(super) fn from_bytes(bytes: &Bytes) -> Option<Self> {
        let mut parts = bytes.splitn(3, |&b| b == b' ');
        let offset = std::str::from_utf8(parts.next()?).ok()?;
        let ts_ms = std::str::from_utf8(parts.next()?).ok()?;
        Some(Self {
            offset: offset.parse().ok()?,
            ts_ms: ts_ms.parse().ok()?,
            data: bytes.slice_ref(parts.next()?),
        })
    }
}

/// What changed in one channel.
#[derive(Clone, Debug)]
pub(super) struct ChannelChanges {
    pub(super) last_change: DecimalOffset,
    /// None deletes the row.
    pub(super) rows: BTreeMap<RowId, Option<CachedRow>>,
}

/// Changes in the order of their log, folded to the last one of each row.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    channels: BTreeMap<String, ChannelChanges>,
    range: Option<(DecimalOffset, DecimalOffset)>,
    rows: usize,
    bytes: usize,
}

impl Batch {
    /// Adds the next change of the log.
    pub fn fold(&mut self, change: &Change, offset: &DecimalOffset) {
        let first = self
            .range
            .take()
            .map_or_else(|| offset.clone(), |(first, _)| first);
        self.range = Some((first, offset.clone()));
        let name = change.channel.name();
        if !self.channels.contains_key(name) {
            self.bytes += name.len();
        }
        let channel = self
            .channels
            .entry(name.to_owned())
            .or_insert_with(|| ChannelChanges {
                last_change: offset.clone(),
                rows: BTreeMap::new(),
            });
        channel.last_change = offset.clone();
        let row = change.data.as_ref().map(|data| CachedRow {
            offset: offset.clone(),
            ts_ms: change.ts_ms,
            data: data.clone(),
        });
        let id = change.row.as_str().len();
        let weight = |row: &Option<CachedRow>| id + row.as_ref().map_or(0, |row| row.data.len());
        self.bytes += weight(&row);
        match channel.rows.insert(change.row.clone(), row) {
            Some(old) => self.bytes -= weight(&old),
            None => self.rows += 1,
        }
    }
    /// Rows that it writes or deletes.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }
    /// Bytes of names and data.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
    /// Whether it is time to write it: half of what a batch may be, so that what belongs together still fits.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.rows >= BATCH_ROWS_MAX / 2 || self.bytes >= BATCH_BYTES_MAX / 2
    }
    pub(super) const fn channels(&self) -> &BTreeMap<String, ChannelChanges> {
        &self.channels
    }

    /// Why it can't be written between these headers, if so.
    pub(super) fn misfit(&self, expected: Option<&Header>, header: &Header) -> Option<String> {
        if self.rows > BATCH_ROWS_MAX || self.bytes > BATCH_BYTES_MAX {
            return Some(format!(
                "a batch of {} rows and {} bytes is beyond {BATCH_ROWS_MAX} rows or {BATCH_BYTES_MAX} bytes",
                self.rows, self.bytes
            ));
        }
        if let Some(seen) = expected {
            if (&seen.generation, &seen.epoch) != (&header.generation, &header.epoch) {
                return Some("a batch goes on in its generation and epoch".to_owned());
            }
            if header.applied < seen.applied {
                return Some(format!(
                    "applied would go back from {} to {}",
                    seen.applied, header.applied
                ));
            }
        }
        let (first, last) = self.range.as_ref()?;
        let behind = expected.is_none_or(|seen| *first > seen.applied);
        (!behind || *last > header.applied).then(|| {
            format!(
                "changes {first} to {last} are not those that lead to {}",
                header.applied
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(channel: &str, row: &str, data: Option<&str>) -> Change {
        Change {
            channel: channel.parse().unwrap(),
            row: RowId::new(row).unwrap(),
            data: data.map(|data| data.to_owned().into()),
            ts_ms: 7,
        }
    }

    fn at(offset: &str) -> DecimalOffset {
        offset.parse().unwrap()
    }

    #[test]
    fn a_batch_has_the_last_change_of_each_row() {
        let mut batch = Batch::default();
        batch.fold(&change("s/a", "1", Some("\"old\"")), &at("1"));
        batch.fold(&change("s/a", "2", Some("2")), &at("2"));
        batch.fold(&change("s/a", "1", Some("\"new\"")), &at("3"));
        batch.fold(&change("s/a", "2", None), &at("4"));
        let channel = &batch.channels()["a"];
        let rows: Vec<_> = channel
            .rows
            .iter()
            .map(|(id, row)| (id.as_str(), row.as_ref().map(CachedRow::to_bytes)))
            .collect();
        assert_eq!(rows, [("1", Some(b"3 7 \"new\"".to_vec())), ("2", None)]);
        assert_eq!(channel.last_change, at("4"));
        assert_eq!((batch.rows(), batch.bytes()), (2, 1 + 1 + 5 + 1));
    }

    #[test]
    fn rows_are_read_as_they_were_written() {
        let row = CachedRow {
            offset: at(&"7".repeat(129)),
            ts_ms: -5,
            data: Bytes::from_static(b"{\"a\": \"b c\"}"),
        };
        assert_eq!(CachedRow::from_bytes(&row.to_bytes().into()), Some(row));
        for bad in ["", "1", "1 2", "x 2 {}", "1 y {}", "01 2 {}"] {
            assert_eq!(CachedRow::from_bytes(&Bytes::from(bad)), None, "{bad}");
        }
    }
}
