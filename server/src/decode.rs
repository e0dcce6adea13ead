//! `Record → Change`: what a record means, and the verdict on one that means nothing.
//!
//! Does: reads channel, row and event time from where the stream's configuration says, and the value as JSON. Owns: nothing. Never
//! knows: partitions, views, sockets. Keeps: I9. A record that can't be decoded is poison: it is skipped and counted.

mod event_time;

use std::{borrow::Cow, collections::HashMap};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

pub use event_time::{Pointer, Said, TimePart};

use crate::model::{Change, Channel, Record, RowId, check_channel_name, names};

/// Where in a record's key a name stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPart {
    /// The whole key, as text.
    Whole,
    /// A JSON pointer (RFC 6901) into the key.
    Pointer(String),
}

/// Why a record means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Poison {
    /// The key has no text at the place that names the channel or the row.
    #[error("the key has no name at {0}")]
    Key(String),
    /// The key's name is not allowed as a channel or row.
    #[error("the key's name is not allowed: {0}")]
    Name(#[from] crate::model::NameError),
    /// The value is not JSON.
    #[error("the value is not JSON")]
    Value,
}

/// How a stream's records are read.
#[derive(Debug)]
pub struct Decoder {
    stream: String,
    channel: KeyPart,
    row: Option<KeyPart>,
    /// Names that have been seen: a channel's name is allocated once, not once a record.
    known: HashMap<String, Channel>,
    trusted: bool,
    time: Option<TimePart>,
    untimed: u64,
}

/// Names kept at most; beyond it the memory starts afresh.
const KNOWN_MAX: usize = 100_000;

impl Decoder {
    /// A decoder for `stream`. The values of a `trusted` log were validated when they entered it.
    #[must_use]
    pub fn new(stream: &str, channel: KeyPart, row: Option<KeyPart>, trusted: bool) -> Self {
        Self {
            stream: stream.to_owned(),
            channel,
            row,
            known: HashMap::new(),
            trusted,
            time: None,
            untimed: 0,
        }
    }

    /// The same, with event times that stand there.
    #[must_use]
    pub fn timed(self, time: Option<TimePart>) -> Self {
        Self { time, ..self }
    }

    /// Records whose event time was not where it should be, or was no time.
    #[must_use]
    pub const fn untimed(&self) -> u64 {
        self.untimed
    }

    /// The same since they were taken last.
    #[must_use]
    pub const fn take_untimed(&mut self) -> u64 {
        std::mem::replace(&mut self.untimed, 0)
    }

    /// A decoder by the same rules, which has seen nothing yet.
    #[must_use]
    pub fn another(&self) -> Self {
        Self {
            stream: self.stream.clone(),
            channel: self.channel.clone(),
            row: self.row.clone(),
            known: HashMap::new(),
            trusted: self.trusted,
            time: self.time.clone(),
            untimed: 0,
        }
    }

    /// Forgets a channel's name, which will hardly be seen again.
    pub fn forget(&mut self, channel: &Channel) {
        self.known.remove(channel.name());
        names::give_back(&mut self.known);
    }

    /// What the record means.
    ///
    /// # Errors
    /// [`Poison`], when it means nothing.
    pub fn decode(&mut self, record: &Record) -> Result<Change, Poison> {
        let Pair(name, row) = self.names(record)?;
        let data = record
            .value
            .clone()
            .map(|value| self.checked(value))
            .transpose()?;
        let (channel, row) = (self.channel_named(&name)?, RowId::new(&row)?);
        Ok(Change {
            channel,
            row,
            data,
            ts_ms: self.time_of(record),
        })
    }

    /// When it happened: as the record says where it should, else as its publisher said, else when the log took it.
    fn time_of(&mut self, record: &Record) -> i64 {
        let said = self.time.as_ref().map(|time| time.of(record));
        if let Some(Said::At(ms)) = said {
            return ms;
        }
        self.untimed += u64::from(said == Some(Said::NoTime));
        record.event_time_ms.unwrap_or(record.append_time_ms)
    }

    /// Whether the record means something; nothing of it is kept.
    ///
    /// # Errors
    /// [`Poison`], just where [`Decoder::decode`] gives one.
    pub fn check(&self, record: &Record) -> Result<(), Poison> {
        let Pair(name, row) = self.names(record)?;
        if let Some(value) = &record.value {
            self.check_value(value)?;
        }
        check_channel_name(&name)?;
        RowId::new(&row)?;
        Ok(())
    }

    /// The names of its channel and row, as they stand in the key.
    fn names<'a>(&self, record: &'a Record) -> Result<Pair<'a>, Poison> {
        let text =
            std::str::from_utf8(&record.key).map_err(|_| Poison::Key("the whole key".into()))?;
        match (&self.channel, &self.row) {
            (KeyPart::Pointer(channel), Some(KeyPart::Pointer(row)))
                if channel == "/0" && row == "/1" =>
            {
                pair(text)
            }
            (channel, row) => {
                let json: Value = serde_json::from_str(text).unwrap_or(Value::Null);
                let row = row
                    .as_ref()
                    .map_or(Ok(String::new()), |row| part(row, text, &json))?;
                Ok(Pair(part(channel, text, &json)?.into(), row.into()))
            }
        }
    }

    fn check_value(&self, value: &[u8]) -> Result<(), Poison> {
        if !self.trusted {
            serde_json::from_slice::<&serde_json::value::RawValue>(value)
                .map_err(|_| Poison::Value)?;
        }
        Ok(())
    }

    fn checked(&self, value: Bytes) -> Result<Bytes, Poison> {
        self.check_value(&value)?;
        Ok(if self.trusted {
            value
        } else {
            without_line_breaks(value)
        })
    }

    fn channel_named(&mut self, name: &str) -> Result<Channel, Poison> {
        if let Some(channel) = self.known.get(name) {
            return Ok(channel.clone());
        }
        check_channel_name(name)?;
        let channel = Channel::new(&self.stream, name)?;
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(name.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// The keys of Tidegate's own publishing, `["channel","row"]`: mostly without escapes, so nothing is copied.
#[derive(Deserialize)]
struct Pair<'a>(#[serde(borrow)] Cow<'a, str>, #[serde(borrow)] Cow<'a, str>);

fn pair(text: &str) -> Result<Pair<'_>, Poison> {
    serde_json::from_str(text).map_err(|_| Poison::Key("/0 and /1".into()))
}

fn part(part: &KeyPart, text: &str, json: &Value) -> Result<String, Poison> {
    match part {
        KeyPart::Whole => Ok(text.to_owned()),
        KeyPart::Pointer(pointer) => match json.pointer(pointer) {
            Some(Value::String(name)) => Ok(name.clone()),
            Some(Value::Number(number)) => Ok(number.to_string()),
            _ => Err(Poison::Key(pointer.clone())),
        },
    }
}

/// JSON without the line breaks that may stand between its tokens: an event stream ends a field at each. Inside strings
/// JSON has none (RFC 8259, section 7).
#[must_use]
pub fn without_line_breaks(json: Bytes) -> Bytes {
    if memchr::memchr2(b'\n', b'\r', &json).is_some() {
        json.iter()
            .copied()
            .filter(|&byte| byte != b'\n' && byte != b'\r')
            .collect()
    } else {
        json
    }
}

/// The key of a record that is published through Tidegate.
#[must_use]
pub fn own_key(channel: &str, row: &str) -> Bytes {
    // Two strings always have a JSON form.
    serde_json::to_vec(&(channel, row))
        .unwrap_or_default()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Offset;

    fn record(key: &str, value: Option<&str>) -> Record {
        Record {
            offset: Offset::new(1),
            key: key.to_owned().into(),
            value: value.map(|value| value.to_owned().into()),
            event_time_ms: None,
            append_time_ms: 5,
            expired: false,
        }
    }

    #[test]
    fn own_keys_read_back() {
        let mut decoder = Decoder::new(
            "s",
            KeyPart::Pointer("/0".into()),
            Some(KeyPart::Pointer("/1".into())),
            true,
        );
        for (channel, row) in [("JFK", "B6"), ("a/b", ""), ("ü\"", "\\\"")] {
            let mut record = record("", None);
            record.key = own_key(channel, row);
            let change = decoder.decode(&record).unwrap();
            assert_eq!(
                (change.channel.name(), change.row.as_str(), change.ts_ms),
                (channel, row, 5)
            );
        }
    }

    #[test]
    fn keys_of_others() {
        let check = |channel: KeyPart, row: Option<KeyPart>, key: &str| {
            let change =
                Decoder::new("s", channel, row, false).decode(&record(key, Some("{\n}")))?;
            assert_eq!(change.data.unwrap(), "{}");
            Ok::<_, Poison>((
                change.channel.name().to_owned(),
                change.row.as_str().to_owned(),
            ))
        };
        assert_eq!(
            check(KeyPart::Whole, None, "abc"),
            Ok(("abc".into(), String::new()))
        );
        let id = || KeyPart::Pointer("/id".into());
        assert_eq!(
            check(id(), None, r#"{"id":7}"#),
            Ok(("7".into(), String::new()))
        );
        assert_eq!(
            check(id(), None, r#"{"no":7}"#),
            Err(Poison::Key("/id".into()))
        );
        assert!(matches!(
            check(id(), None, r#"{"id":"a b"}"#),
            Err(Poison::Name(_))
        ));
        assert!(matches!(
            check(KeyPart::Whole, Some(id()), "x"),
            Err(Poison::Key(_))
        ));
    }

    #[test]
    fn event_times_are_what_the_record_says_else_its_publisher_else_the_log() {
        let time = TimePart::InValue(Pointer::new("/ts"));
        let mut decoder = Decoder::new("s", KeyPart::Whole, None, false).timed(Some(time));
        let mut at = |value, published| {
            let record = Record {
                event_time_ms: published,
                ..record("k", value)
            };
            decoder.decode(&record).unwrap().ts_ms
        };
        assert_eq!(at(Some(r#"{"ts":7}"#), Some(9)), 7);
        assert_eq!(at(Some(r#"{"ts":"1970-01-01T00:00:01Z"}"#), None), 1000);
        assert_eq!(at(Some(r#"{"ts":"soon"}"#), Some(9)), 9);
        assert_eq!(at(Some("{}"), None), 5);
        assert_eq!(at(None, Some(9)), 9);
        assert_eq!(decoder.untimed(), 2, "a tombstone has no place for one");
    }

    #[test]
    fn a_value_that_is_not_json_is_poison() {
        let mut decoder = Decoder::new("s", KeyPart::Whole, None, false);
        let broken = record("k", Some("{"));
        assert_eq!(decoder.decode(&broken), Err(Poison::Value));
        assert_eq!(decoder.check(&broken), Err(Poison::Value));
        assert_eq!(decoder.check(&record("k", Some("{}"))), Ok(()));
        let name = decoder.check(&record("a b", None));
        assert!(matches!(name, Err(Poison::Name(_))), "{name:?}");
    }
}
