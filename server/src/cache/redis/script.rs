//! The scripts that run inside Redis, and their answers.
//!
//! A script is one step for everybody else: it sees header, manifest and rows of one moment. Each takes all keys that it
//! touches as `KEYS`, so that a cluster can check where they are.

use bytes::Bytes;
use redis::{FromRedisValue, ParsingError, Script, Value};

use super::{
    error::{RedisError, RedisFault},
    header::Header,
    keys::LAYOUT,
    link::Link,
};

/// A script with its text: the name is its hash.
pub(super) struct Known {
    script: Script,
    text: &'static str,
}

impl Known {
    fn new(text: &'static str) -> Self {
        Self {
            script: Script::new(text),
            text,
        }
    }

    /// Runs it. What it says of keys that are not ours becomes an error.
    pub(super) async fn run(
        &self,
        link: &Link,
        keys: &[String],
        arguments: &[&[u8]],
    ) -> Result<Answer, RedisError> {
        let (at, key) = (link.at().to_owned(), keys[0].clone());
        let layout = LAYOUT.to_string();
        let mut all = vec![layout.as_bytes()];
        all.extend_from_slice(arguments);
        let parts: Parts = link
            .script(&key, &self.script, self.text, keys, &all)
            .await?;
        let mut answer = Answer {
            word: String::new(),
            at,
            key,
            parts: parts.0.into_iter(),
        };
        answer.word = answer.text()?;
        match answer.word.as_str() {
            "layout" => {
                let found = answer.text()?;
                Err(other_layout(&answer.at, &answer.key, &found))
            }
            "foreign" => Err(not_ours(&answer.at, &answer.key)),
            _ => Ok(answer),
        }
    }
}

pub(super) fn other_layout(at: &str, key: &str, found: &str) -> RedisError {
    let what = format!("its layout is {found:?}, and this version reads and writes {LAYOUT}");
    RedisError::new(RedisFault::OtherLayout, at, Some(key), what)
}

pub(super) fn not_ours(at: &str, key: &str) -> RedisError {
    RedisError::new(
        RedisFault::NotOurs,
        at,
        Some(key),
        "there is something else of this name",
    )
}

/// A script behind what all of them begin with.
macro_rules! known {
    ($file:literal) => {
        Known::new(concat!(include_str!("common.lua"), include_str!($file)))
    };
}

/// All of them.
pub(super) struct Scripts {
    pub(super) write: Known,
    pub(super) page: Known,
    pub(super) manifest: Known,
    pub(super) flip: Known,
    pub(super) drop: Known,
    pub(super) check: Known,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            write: known!("write.lua"),
            page: known!("page.lua"),
            manifest: known!("manifest.lua"),
            flip: known!("flip.lua"),
            drop: known!("drop.lua"),
            check: known!("check.lua"),
        }
    }
}

/// An answer's parts as they came, without a copy of the rows.
struct Parts(Vec<Value>);

impl FromRedisValue for Parts {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        match value {
            Value::Array(parts) => Ok(Self(parts)),
            other => Vec::from_redis_value(other).map(Self),
        }
    }
}

/// What a script answered: a word, and what belongs to it.
pub(super) struct Answer {
    at: String,
    key: String,
    pub(super) word: String,
    parts: std::vec::IntoIter<Value>,
}

impl Answer {
    /// The next part, if there is one more.
    pub(super) fn bytes(&mut self) -> Option<Bytes> {
        match self.parts.next()? {
            Value::BulkString(bytes) => Some(bytes.into()),
            Value::SimpleString(text) => Some(text.into()),
            Value::Int(number) => Some(number.to_string().into()),
            _ => None,
        }
    }
    pub(super) fn text(&mut self) -> Result<String, RedisError> {
        let bytes = self
            .bytes()
            .ok_or_else(|| self.damaged("an answer is cut short"))?;
        String::from_utf8(bytes.into()).map_err(|_| self.damaged("a text is not UTF-8"))
    }
    /// The next part as a header; none where it is empty.
    pub(super) fn header(&mut self) -> Result<Option<Header>, RedisError> {
        let text = self.text()?;
        if text.is_empty() {
            return Ok(None);
        }
        let read = Header::from_text(&text);
        read.map(Some)
            .map_err(|error| self.damaged(&format!("the header is none: {error}")))
    }
    /// The next part as a header that must be there.
    pub(super) fn some_header(&mut self) -> Result<Header, RedisError> {
        let header = self.header()?;
        header.ok_or_else(|| self.damaged("the header is empty"))
    }
    pub(super) fn damaged(&self, what: &str) -> RedisError {
        RedisError::new(RedisFault::Damaged, &self.at, Some(&self.key), what)
    }
    /// The error for a word that the script does not have.
    pub(super) fn unknown(&self) -> RedisError {
        self.damaged(&format!("the script says {:?}", self.word))
    }
}
