//! When something happened, as a record itself says: a number of milliseconds since 1970, or a date and time as text (RFC 3339).

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::model::Record;

/// The farthest time that a date can be in a browser, either way, in milliseconds.
const FARTHEST_MS: i64 = 8_640_000_000_000_000;

/// Where in a record its event time stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimePart {
    /// The whole key, as text.
    Key,
    /// A JSON pointer (RFC 6901) into the key.
    InKey(Pointer),
    /// The same into the value; a tombstone has none.
    InValue(Pointer),
}

/// A JSON pointer, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer(Vec<String>);

impl Pointer {
    /// Takes a pointer apart.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let parts = text.split('/').skip(1);
        // In this order, as RFC 6901 says: ~01 is ~1.
        Self(
            parts
                .map(|part| part.replace("~1", "/").replace("~0", "~"))
                .collect(),
        )
    }
}

/// What a place says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// There can be no such place: the record is a tombstone.
    Nothing,
    /// It is not there, or it is no time.
    NoTime,
    /// This, in milliseconds since 1970.
    At(i64),
}

impl TimePart {
    /// When it happened, as the record's key or value says.
    #[must_use]
    pub fn read(&self, key: &[u8], value: Option<&[u8]>) -> Said {
        let found = match (self, value) {
            (Self::Key, _) => std::str::from_utf8(key).ok().and_then(time),
            (Self::InKey(pointer), _) => find(key, pointer),
            (Self::InValue(pointer), Some(value)) => find(value, pointer),
            (Self::InValue(_), None) => return Said::Nothing,
        };
        found.map_or(Said::NoTime, Said::At)
    }

    /// The same of a record.
    #[must_use]
    pub fn of(&self, record: &Record) -> Said {
        self.read(&record.key, record.value.as_deref())
    }
}

/// The time at a place in JSON. Nothing else of it is kept.
fn find(json: &[u8], Pointer(parts): &Pointer) -> Option<i64> {
    let mut json = serde_json::Deserializer::from_slice(json);
    At(parts).deserialize(&mut json).ok().flatten()
}

/// The time at the end of what is left of a pointer.
struct At<'p>(&'p [String]);

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = Option<i64>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Option<i64>, D::Error> {
        json.deserialize_any(self)
    }
}

impl At<'_> {
    fn here(&self, time: impl FnOnce() -> Option<i64>) -> Option<i64> {
        self.0.is_empty().then(time).flatten()
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = Option<i64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Option<i64>, E> {
        Ok(self.here(|| possible(number)))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Option<i64>, E> {
        Ok(self.here(|| possible(i64::try_from(number).ok()?)))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Option<i64>, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Option<i64>, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Option<i64>, E> {
        Ok(None)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Option<i64>, E> {
        Ok(self.here(|| time(text)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<i64>, A::Error> {
        let mut found = None;
        while let Some(name) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            match self.0.split_first() {
                // Of several of the same name the last counts, as elsewhere.
                Some((part, rest)) if *part == name => found = map.next_value_seed(At(rest))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Option<i64>, A::Error> {
        let place = self.0.split_first();
        let place = place.and_then(|(part, rest)| Some((index(part)?, rest)));
        let mut found = None;
        for at in 0_usize.. {
            let more = match place {
                Some((index, rest)) if index == at => {
                    let here = seq.next_element_seed(At(rest))?;
                    found = here.flatten();
                    here.is_some()
                }
                _ => seq.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(found)
    }
}

/// A place in an array, as RFC 6901 writes it.
fn index(part: &str) -> Option<usize> {
    let odd = part.starts_with('+') || (part.starts_with('0') && part.len() > 1);
    (!odd).then(|| part.parse().ok()).flatten()
}

fn possible(ms: i64) -> Option<i64> {
    (-FARTHEST_MS..=FARTHEST_MS).contains(&ms).then_some(ms)
}

/// Milliseconds since 1970, as a number or as a date and time.
fn time(text: &str) -> Option<i64> {
    let number = text.parse().ok();
    number.or_else(|| rfc3339(text)).and_then(possible)
}

/// A date and time such as `2013-07-10T22:00:00.5+02:00`, to the millisecond before it.
fn rfc3339(text: &str) -> Option<i64> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(at.unix_timestamp_nanos().div_euclid(1_000_000)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_milliseconds_or_a_date_and_time() {
        for (text, ms) in [
            ("0", 0),
            ("-1", -1),
            ("1373493600000", 1_373_493_600_000),
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59.999Z", -1),
            ("2013-07-10T22:00:00Z", 1_373_493_600_000),
            ("2013-07-11T00:00:00.25+02:00", 1_373_493_600_250),
            ("2013-07-10 17:30:00.1234567-04:30", 1_373_493_600_123),
            ("2000-02-29t12:00:00z", 951_825_600_000),
            ("2100-01-01T00:00:00Z", 4_102_444_800_000),
            ("0000-01-01T00:00:00Z", -62_167_219_200_000),
            ("9999-12-31T23:59:59Z", 253_402_300_799_000),
        ] {
            assert_eq!(time(text), Some(ms), "{text}");
        }
        for text in [
            "",
            "now",
            "1.5",
            "9223372036854775807",
            "2013-07-10",
            "2013-07-10T22:00:00",
            "2013-07-10T22:00Z",
            "2013-13-10T22:00:00Z",
            "2013-02-29T22:00:00Z",
            "2013-07-10T24:00:00Z",
            "2013-07-10T22:00:00.Z",
            "2013-07-10T22:00:00.5",
            "2013-07-10T22:00:00+0200",
            "2013-07-10T22:00:00+24:00",
            "2013-07-10T22:00:00Z ",
            "+013-07-10T22:00:00Z",
            "2013-07-1ü",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
    }

    #[test]
    fn they_are_read_where_the_pointer_says() {
        let at = |pointer: &str, json: &str| find(json.as_bytes(), &Pointer::new(pointer));
        let json = r#"{"a":[1,{"b/c":"2013-07-10T22:00:00Z","~":7}],"t":1,"t":5,"s":"x","f":1.5,"n":null}"#;
        for (pointer, ms) in [
            ("/a/0", 1),
            ("/a/1/b~1c", 1_373_493_600_000),
            ("/a/1/~0", 7),
            ("/t", 5),
        ] {
            assert_eq!(at(pointer, json), Some(ms), "{pointer}");
        }
        for pointer in ["/a", "/a/2", "/a/x", "/s", "/f", "/n", "/none", "/t/0"] {
            assert_eq!(at(pointer, json), None, "{pointer}");
        }
        assert_eq!(at("/t", r#"{"t":1"#), None);
        assert_eq!(at("/t", "7"), None);
    }

    proptest! {
        #[test]
        fn what_is_no_time_is_none_and_harms_nobody(text in "[0-9TZ:+.\\-é ]{0,40}", json in any::<Vec<u8>>()) {
            let ms = time(&text);
            prop_assert!(ms.is_none_or(|ms| possible(ms).is_some()));
            find(&json, &Pointer::new("/a/0"));
        }

        #[test]
        fn a_place_is_found_where_a_pointer_into_the_whole_finds_it(
            keys in proptest::collection::vec("[ab/~]{1,2}", 1..4),
            pointer in "(/[ab01]{1,2}|/~0|/~1){1,3}",
        ) {
            let nested = keys.iter().rev().fold(serde_json::json!(7), |inner, key| {
                serde_json::json!({ key.as_str(): [inner, 8], "other": 9 })
            });
            let found = nested.pointer(&pointer).and_then(serde_json::Value::as_i64);
            let text = nested.to_string();
            prop_assert_eq!(find(text.as_bytes(), &Pointer::new(&pointer)), found);
        }
    }

    #[test]
    fn a_tombstone_says_nothing_by_its_value_and_something_by_its_key() {
        let pointer = || Pointer::new("/0");
        assert_eq!(
            TimePart::InValue(pointer()).read(b"[1]", None),
            Said::Nothing
        );
        assert_eq!(TimePart::InKey(pointer()).read(b"[1]", None), Said::At(1));
        assert_eq!(TimePart::Key.read(b"12", None), Said::At(12));
        assert_eq!(TimePart::Key.read(b"\xff", None), Said::NoTime);
        assert_eq!(
            TimePart::InValue(pointer()).read(b"1", Some(b"{}")),
            Said::NoTime
        );
    }
}
