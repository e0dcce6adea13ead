//! The header of a generation, and the values in it.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::model::{Epoch, Offset};

/// Longest offset in digits: Kinesis has the longest.
const OFFSET_DIGITS_MAX: usize = 129;
/// Longest name of a generation, in bytes.
const GENERATION_MAX: usize = 64;

/// A word that is no offset or no name of a generation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not a decimal number as logs have them.
    #[error("an offset is 1 to {OFFSET_DIGITS_MAX} digits without leading zeros")]
    Offset,
    /// Not a name as generations have them.
    #[error("a generation's name is 1 to {GENERATION_MAX} of a-z, A-Z, 0-9, _ and -")]
    Generation,
}

/// An offset as the cache has it: decimal digits, opaque but for their order. What reads it knows how long its log's offsets are.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DecimalOffset(Arc<str>);

impl DecimalOffset {
    /// Its digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DecimalOffset {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let zeros = text.len() > 1 && text.starts_with('0');
        if digits && !zeros && (1..=OFFSET_DIGITS_MAX).contains(&text.len()) {
            Ok(Self(text.into()))
        } else {
            Err(ValueError::Offset)
        }
    }
}
impl From<Offset> for DecimalOffset {
    fn from(offset: Offset) -> Self {
        Self(offset.to_string().into())
    }
}
impl TryFrom<&DecimalOffset> for Offset {
    type Error = ValueError;
    /// Fails where this node's offsets are shorter.
    fn try_from(text: &DecimalOffset) -> Result<Self, ValueError> {
        let number = text.0.parse().map_err(|_| ValueError::Offset)?;
        Ok(Self::new(number))
    }
}
impl PartialOrd for DecimalOffset {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for DecimalOffset {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let by_length = self.0.len().cmp(&other.0.len());
        by_length.then_with(|| self.0.cmp(&other.0))
    }
}
impl fmt::Display for DecimalOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for DecimalOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a fold in the cache. Random, never used twice: so whoever holds an old one cannot mistake a new one for it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(Arc<str>);

impl Generation {
    /// A new name, from 80 random bits.
    ///
    /// # Panics
    /// When the system has no random numbers, which is not survivable.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; 10];
        getrandom::fill(&mut bytes).expect("the system's random source works");
        Self(
            bytes
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect::<String>()
                .into(),
        )
    }
    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for Generation {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if (1..=GENERATION_MAX).contains(&text.len()) && text.bytes().all(word) {
            Ok(Self(text.into()))
        } else {
            Err(ValueError::Generation)
        }
    }
}
impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a generation of a partition's fold is, and how far it got. Compared as a whole: a batch is written only to the header
/// that its writer saw last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The log's epoch. A header of another epoch than the log's counts as none.
    #[serde(with = "text")]
    pub epoch: Epoch,
    /// The fold's own name.
    #[serde(with = "text")]
    pub generation: Generation,
    /// What the fold depends on beside the log (row, channel, format, …), as one word: another one folds anew.
    pub fold_id: String,
    /// Every record up to this offset is folded in.
    #[serde(with = "text")]
    pub applied: DecimalOffset,
    /// The source's own word for where in the log's history `applied` was read, so that going on proves continuity; empty where
    /// there is none.
    pub lineage: String,
    /// Every tombstone that a reader going on from `applied` needs was in the log at this time, in milliseconds since 1970:
    /// when `applied` was the log's end, else the append time of the record there.
    pub proven_ms: i64,
    /// The log's head at the fold's first read, where the log is compacted, else `0`: of what changed up to there, last
    /// changes are not known.
    #[serde(with = "text")]
    pub since: DecimalOffset,
    /// The log's head when rows were read from compacted history, else `0`: before it the rows may be no state of the log.
    #[serde(with = "text")]
    pub settled: DecimalOffset,
    /// Folded from the log's birth, with every tombstone that this needs; else its views are `incomplete_history`.
    pub complete: bool,
    /// The writer's wall time, in milliseconds since 1970. For people.
    pub written_at_ms: i64,
}

impl Header {
    /// Its text in the cache: JSON with its fields in one order, so that equal headers are equal texts.
    ///
    /// # Panics
    /// Never: a header has nothing that JSON cannot hold.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("a header is numbers and texts")
    }
    /// Reads what [`Header::to_text`] made.
    ///
    /// # Errors
    /// When it is something else, what is wrong with it.
    pub fn from_text(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

/// Values that stand in the header as texts.
mod text {
    use std::borrow::Cow;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    use super::{Epoch, ValueError, fmt};

    pub(super) trait Text: Sized {
        fn read(text: &str) -> Result<Self, String>;
    }
    impl Text for Epoch {
        fn read(text: &str) -> Result<Self, String> {
            Self::new(text).map_err(|_| "no epoch".to_owned())
        }
    }
    impl<T: std::str::FromStr<Err = ValueError>> Text for T {
        fn read(text: &str) -> Result<Self, String> {
            text.parse().map_err(|error: ValueError| error.to_string())
        }
    }

    pub(super) fn serialize<T: fmt::Display, S: Serializer>(
        value: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }
    pub(super) fn deserialize<'a, T: Text, D: Deserializer<'a>>(from: D) -> Result<T, D::Error> {
        let text = Cow::<'a, str>::deserialize(from)?;
        T::read(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            epoch: Epoch::new("e1").unwrap(),
            generation: "a-b".parse().unwrap(),
            fold_id: "v1 \"row\"".to_owned(),
            applied: "9".repeat(129).parse().unwrap(),
            lineage: "7".to_owned(),
            proven_ms: 1_700_000_000_000,
            since: "0".parse().unwrap(),
            settled: "17".parse().unwrap(),
            complete: true,
            written_at_ms: -1,
        }
    }

    #[test]
    fn a_header_is_the_text_that_it_was_read_from() {
        let text = header().to_text();
        let read = Header::from_text(&text).unwrap();
        assert_eq!((read.to_text(), read), (text, header()));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let good = header().to_text();
        for (from, to) in [
            ("\"17\"", "\"017\""),
            ("\"17\"", "17"),
            ("\"a-b\"", "\"a b\""),
            ("\"e1\"", "\"\""),
            ("true", "1"),
            ("{", "{\"more\":1,"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert!(Header::from_text(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn offsets_are_ordered_as_numbers_of_any_length() {
        let of = |text: &str| text.parse::<DecimalOffset>().unwrap();
        let long = "9".repeat(128);
        let ordered = [
            "0",
            "9",
            "10",
            "18446744073709551616",
            &long,
            &("1".to_owned() + &long),
        ];
        assert!(ordered.is_sorted_by(|a, b| of(a) < of(b)));
        assert_eq!(Offset::try_from(&of("42")), Ok(Offset::new(42)));
        assert!(Offset::try_from(&of(&long)).is_err());
        for bad in ["", "01", "-1", "+1", "1e3", " 1", &"1".repeat(130)] {
            assert!(bad.parse::<DecimalOffset>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_generations_are_not_used_twice() {
        assert_ne!(Generation::random(), Generation::random());
        let name = Generation::random();
        assert_eq!(name.as_str().parse::<Generation>(), Ok(name.clone()));
    }
}
