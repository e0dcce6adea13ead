//! The scripts that run inside Redis, and what they say.

use redis::{Pipeline, Script, Value, cmd};

use super::{
    error::LogError,
    keys::{Keys, LAYOUT},
};
use crate::{
    cache::redis::{RedisError, RedisFault},
    model::{Epoch, Offset},
};

/// A script with its text: the name is its hash.
pub(super) struct Known {
    pub(super) script: Script,
    pub(super) text: &'static str,
}

/// All of them.
pub(super) struct Scripts {
    pub(super) look: Known,
    pub(super) append: Known,
    pub(super) share: Known,
}

impl Known {
    fn new(text: &'static str) -> Self {
        Self {
            script: Script::new(text),
            text,
        }
    }
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            look: Known::new(concat!(
                include_str!("common.lua"),
                include_str!("look.lua")
            )),
            append: Known::new(concat!(
                include_str!("common.lua"),
                include_str!("append.lua")
            )),
            share: Known::new(include_str!("share.lua")),
        }
    }
}

/// What a reader knows of the log, for the script to prove it.
#[derive(Clone, Debug, Default)]
pub(super) struct Claim {
    /// The log's name.
    pub(super) epoch: Option<Epoch>,
    /// How far it has been read …
    pub(super) at: Option<Offset>,
    /// … and whether that is an entry, which must still be there.
    pub(super) is_entry: bool,
}

impl Claim {
    /// What both scripts begin with.
    pub(super) fn arguments(&self) -> [String; 5] {
        let epoch = self.epoch.as_ref().map(|epoch| epoch.as_str().to_owned());
        let at = self.at.filter(|at| *at > Offset::BEFORE_ALL);
        [
            LAYOUT.to_owned(),
            fresh_name(),
            epoch.unwrap_or_default(),
            at.map(super::id_of).unwrap_or_default(),
            u8::from(self.is_entry).to_string(),
        ]
    }
}

/// A name that no log ever had.
fn fresh_name() -> String {
    // Without random numbers the start has failed long before.
    let random = getrandom::u64().unwrap_or(0);
    let more = getrandom::u32().unwrap_or(0);
    format!("r{random:016x}{more:08x}")
}

/// Which log it is, and from where to where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) epoch: Epoch,
    /// Just before the earliest entry that the log still has.
    pub(super) start: Offset,
    /// The newest entry that it ever had …
    pub(super) head: Offset,
    /// … and the newest that it still has, where it has one.
    pub(super) newest: Option<Offset>,
    /// Entries that it ever had …
    pub(super) added: u64,
    /// … and those of them that it no longer has: the first ones.
    pub(super) gone: u64,
}

/// Reads, and looks then: so what was read is of the log that was seen, and who goes on finds the rest. No transaction, since a full
/// server takes none. All of it is sent at once, on one connection.
pub(super) fn reading(
    script: &Known,
    by_text: bool,
    keys: &Keys,
    claim: &Claim,
    range: Option<(&str, usize)>,
) -> Pipeline {
    let mut commands = redis::pipe();
    commands.ignore_errors();
    if let Some((from, count)) = range {
        let mut range = cmd("XRANGE");
        range
            .arg(&keys.log)
            .arg(from)
            .arg("+")
            .arg("COUNT")
            .arg(count);
        commands.add_command(range);
    }
    let (name, what) = if by_text {
        ("EVAL", script.text)
    } else {
        ("EVALSHA", script.script.get_hash())
    };
    let mut look = cmd(name);
    look.arg(what).arg(2).arg(&keys.log).arg(&keys.epoch);
    look.arg(&claim.arguments());
    commands.add_command(look);
    commands
}

/// What a script answered: a word, and texts.
pub(super) struct Answer {
    pub(super) word: String,
    texts: std::vec::IntoIter<String>,
    at: String,
    key: String,
}

impl Answer {
    /// What it says, or what is wrong.
    pub(super) fn of(value: Value, at: &str, key: &str) -> Result<Self, LogError> {
        let error = |fault, what: String| Err(RedisError::new(fault, at, Some(key), what).into());
        let Value::Array(parts) = value else {
            return error(
                RedisFault::Damaged,
                "a script answers by no list".to_owned(),
            );
        };
        let mut texts: Vec<_> = parts.into_iter().map(text).collect();
        if texts.is_empty() {
            return error(
                RedisFault::Damaged,
                "a script answers by nothing".to_owned(),
            );
        }
        let word = texts.remove(0);
        let first = texts.first().cloned().unwrap_or_default();
        match word.as_str() {
            "layout" => {
                let what =
                    format!("its layout is {first:?}, and this version reads and writes {LAYOUT}");
                error(RedisFault::OtherLayout, what)
            }
            "foreign" => error(
                RedisFault::NotOurs,
                "the key for its epoch is something else".to_owned(),
            ),
            "old" => error(
                RedisFault::Refused,
                "its streams do not say how many entries they had: Redis 7.0 or newer is needed"
                    .to_owned(),
            ),
            "cut_off" => error(
                RedisFault::Unavailable,
                "it has lost its replicas, so another server may be the primary by now".to_owned(),
            ),
            _ => Ok(Self {
                word,
                texts: texts.into_iter(),
                at: at.to_owned(),
                key: key.to_owned(),
            }),
        }
    }

    pub(super) fn text(&mut self) -> Result<String, LogError> {
        self.texts
            .next()
            .ok_or_else(|| self.damaged("an answer is cut short"))
    }

    pub(super) fn number(&mut self) -> Result<u64, LogError> {
        let text = self.text()?;
        text.parse().map_err(|_| self.damaged("a number is none"))
    }

    pub(super) fn epoch(&mut self) -> Result<Epoch, LogError> {
        let text = self.text()?;
        Epoch::new(&text).map_err(|_| self.damaged("its epoch is no name"))
    }

    /// Reads what `look.lua` says.
    pub(super) fn seen(mut self) -> Result<Seen, LogError> {
        if self.word != "log" {
            return Err(self.damaged(&format!("a script says {:?}", self.word)));
        }
        let (epoch, last) = (self.epoch()?, self.text()?);
        let (first, newest) = (self.text()?, self.text()?);
        let (length, added) = (self.number()?, self.number()?);
        let head = self.offset(&last)?;
        let start = if added == length {
            Offset::BEFORE_ALL
        } else if first.is_empty() {
            head
        } else {
            super::before(self.offset(&first)?)
        };
        let newest = (!newest.is_empty()).then(|| self.offset(&newest));
        Ok(Seen {
            epoch,
            start,
            head,
            newest: newest.transpose()?,
            added,
            gone: added.saturating_sub(length),
        })
    }

    fn offset(&self, id: &str) -> Result<Offset, LogError> {
        super::offset_of(id.as_bytes()).ok_or_else(|| self.damaged(&no_offset(id)))
    }

    pub(super) fn damaged(&self, what: &str) -> LogError {
        RedisError::new(RedisFault::Damaged, &self.at, Some(&self.key), what).into()
    }
}

/// What is wrong with an entry of this id.
pub(super) fn no_offset(id: &str) -> String {
    format!(
        "the id {id} has no place among offsets, which go up to {}-{}",
        super::MS_END - 1,
        super::SEQ_END - 1
    )
}

fn text(value: Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Value::SimpleString(text) => text,
        Value::Int(number) => number.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(texts: &[&str]) -> Result<Answer, LogError> {
        let texts = texts
            .iter()
            .map(|text| Value::BulkString(text.as_bytes().to_vec()));
        Answer::of(
            Value::Array(texts.collect()),
            "127.0.0.1:6379",
            "tg:{s/0}:log",
        )
    }

    fn seen(last: &str, first: &str, length: &str, added: &str) -> Result<Seen, LogError> {
        let newest = if first.is_empty() { "" } else { last };
        answer(&["log", "e", last, first, newest, length, added])?.seen()
    }

    #[test]
    fn a_log_begins_at_its_birth_where_nothing_was_taken_from_it() {
        let at = |number: u64| Offset::new(number << 22);
        let whole = seen("9-0", "3-0", "4", "4").unwrap();
        assert_eq!((whole.start, whole.head), (Offset::BEFORE_ALL, at(9)));
        let trimmed = seen("9-0", "3-0", "4", "6").unwrap();
        assert_eq!(
            (trimmed.start, trimmed.gone),
            (super::super::before(at(3)), 2)
        );
        let emptied = seen("9-0", "", "0", "6").unwrap();
        assert_eq!((emptied.start, emptied.head), (at(9), at(9)));
        let new = seen("0-0", "", "0", "0").unwrap();
        assert_eq!(
            (new.start, new.head),
            (Offset::BEFORE_ALL, Offset::BEFORE_ALL)
        );
    }

    #[test]
    fn what_is_wrong_has_a_kind_and_says_what_to_do() {
        for (word, fault) in [
            ("layout", RedisFault::OtherLayout),
            ("foreign", RedisFault::NotOurs),
            ("old", RedisFault::Refused),
            ("cut_off", RedisFault::Unavailable),
        ] {
            let error = answer(&[word, "2"]).map(|_| ()).unwrap_err();
            assert_eq!(error.fault(), Some(fault));
        }
        let error = seen("18446744073709551615-1", "1-0", "1", "2").unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("key tg:{s/0}:log: the id 18446744073709551615-1")
                && text.contains("XDEL"),
            "{text}"
        );
    }

    #[test]
    fn a_claim_of_nothing_is_empty_and_no_two_names_are_alike() {
        let nothing = Claim::default().arguments();
        assert_eq!(
            (
                nothing[2].as_str(),
                nothing[3].as_str(),
                nothing[4].as_str()
            ),
            ("", "", "0")
        );
        assert_ne!(nothing[1], Claim::default().arguments()[1]);
        assert!(Epoch::new(&nothing[1]).is_ok());
    }
}
