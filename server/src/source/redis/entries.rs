//! Entries of a stream → records.
//!
//! An entry's fields: `k` the key, `v` the value (none deletes), `t` when it happened, in milliseconds since 1970, `i` its publisher's
//! name for it. Others mean nothing. One without a key means nothing either, which whoever decodes it says.

use bytes::Bytes;
use redis::Value;

use crate::{model::Record, source::recent::Named};

/// Entries as they were read.
#[derive(Default)]
pub(super) struct Entries {
    pub(super) records: Vec<Record>,
    /// Those that have names.
    pub(super) ids: Vec<Named>,
    /// Their bytes, about.
    pub(super) bytes: usize,
    /// The id of the first that has no offset, where there is one: nothing behind it was read.
    pub(super) misfit: Option<String>,
}

/// Reads an answer of XRANGE; none where it is no such.
pub(super) fn read(answer: Value) -> Option<Entries> {
    let Value::Array(all) = answer else {
        return None;
    };
    let mut entries = Entries {
        records: Vec::with_capacity(all.len()),
        ..Entries::default()
    };
    for entry in all {
        let Value::Array(parts) = entry else {
            return None;
        };
        let mut parts = parts.into_iter();
        let (Some(Value::BulkString(id)), Some(Value::Array(fields))) =
            (parts.next(), parts.next())
        else {
            return None;
        };
        let Some(offset) = super::offset_of(&id) else {
            entries.misfit = Some(String::from_utf8_lossy(&id).into_owned());
            break;
        };
        let mut record = Record {
            offset,
            key: Bytes::new(),
            value: None,
            event_time_ms: None,
            append_time_ms: super::time_of(offset),
            expired: false,
        };
        take_fields(fields, &mut record, &mut entries);
        entries.bytes += record.key.len() + record.value.as_ref().map_or(0, Bytes::len);
        entries.records.push(record);
    }
    Some(entries)
}

fn take_fields(fields: Vec<Value>, record: &mut Record, entries: &mut Entries) {
    let mut fields = fields.into_iter();
    while let (Some(Value::BulkString(name)), Some(Value::BulkString(value))) =
        (fields.next(), fields.next())
    {
        match name.as_slice() {
            b"k" => record.key = value.into(),
            b"v" => record.value = Some(value.into()),
            b"t" => {
                record.event_time_ms = std::str::from_utf8(&value)
                    .ok()
                    .and_then(|text| text.parse().ok())
            }
            b"i" => {
                if let Ok(id) = std::str::from_utf8(&value) {
                    entries.ids.push(Named {
                        offset: record.offset,
                        id: id.into(),
                        at_ms: record.append_time_ms,
                    });
                }
            }
            _ => entries.bytes += value.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Offset;

    fn entry(id: &str, fields: &[&str]) -> Value {
        let bulk = |text: &&str| Value::BulkString(text.as_bytes().to_vec());
        Value::Array(vec![
            bulk(&id),
            Value::Array(fields.iter().map(bulk).collect()),
        ])
    }

    #[test]
    fn fields_are_a_records_parts() {
        let all = Value::Array(vec![
            entry(
                "7-1",
                &[
                    "k",
                    "[\"a\",\"b\"]",
                    "v",
                    "1",
                    "t",
                    "-5",
                    "i",
                    "me",
                    "x",
                    "y",
                ],
            ),
            entry("8-0", &["k", "[\"a\",\"b\"]", "t", "soon"]),
            entry("8-1", &["other", "1"]),
        ]);
        let read = read(all).unwrap();
        let [first, second, third] = &read.records[..] else {
            panic!("{:?}", read.records);
        };
        assert_eq!(
            (&first.key[..], first.value.as_deref()),
            (&b"[\"a\",\"b\"]"[..], Some(&b"1"[..]))
        );
        assert_eq!((first.event_time_ms, first.append_time_ms), (Some(-5), 7));
        assert_eq!((second.value.as_ref(), second.event_time_ms), (None, None));
        assert!(third.key.is_empty() && third.value.is_none());
        assert_eq!(read.ids.len(), 1);
        assert_eq!(
            (&*read.ids[0].id, read.ids[0].offset),
            ("me", Offset::new(7 << 22 | 1))
        );
        assert!(read.misfit.is_none());
    }

    #[test]
    fn nothing_is_read_behind_an_entry_without_an_offset() {
        let ids = ["1-0", "1-4194304", "2-0"];
        let all = ids.iter().map(|id| entry(id, &["k", "k"])).collect();
        let read = read(Value::Array(all)).unwrap();
        assert_eq!(
            (read.records.len(), read.misfit.as_deref()),
            (1, Some("1-4194304"))
        );
    }

    #[test]
    fn what_is_no_list_of_entries_is_refused() {
        for wrong in [
            Value::Nil,
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![Value::Array(vec![Value::BulkString(b"1-0".to_vec())])]),
        ] {
            assert!(read(wrong).is_none());
        }
    }
}
