//! What can be wrong with the cache: what, where, and what to do about it.

use std::{fmt, time::Duration};

use redis::{ErrorKind, ServerErrorKind};

/// What is wrong. Each kind asks for something else to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RedisFault {
    /// It does not answer, not in time, or is not ready to. Whether a write was done is not known: the header says.
    Unavailable,
    /// It is a replica.
    ReadOnly,
    /// Its `maxmemory` is reached.
    Full,
    /// It evicts keys when it is full.
    Evicting,
    /// The user or the password is wrong, or missing.
    WrongPassword,
    /// The user may not do this.
    NoPermission,
    /// The keys are of another version's layout.
    OtherLayout,
    /// A key with one of our names is not one of ours.
    NotOurs,
    /// What stands in a key is not what the layout says.
    Damaged,
    /// What was asked for is beyond a bound, or makes no sense.
    Refused,
    /// The options make no sense.
    Options,
}

impl RedisFault {
    /// Its name in metrics and states.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::ReadOnly => "read_only",
            Self::Full => "full",
            Self::Evicting => "evicting",
            Self::WrongPassword => "wrong_password",
            Self::NoPermission => "no_permission",
            Self::OtherLayout => "other_layout",
            Self::NotOurs => "not_ours",
            Self::Damaged => "damaged",
            Self::Refused => "refused",
            Self::Options => "options",
        }
    }

    /// Whether waiting may mend it. What else is wrong stays so until an operator does something, though asking again is
    /// harmless.
    #[must_use]
    pub const fn may_pass(self) -> bool {
        matches!(self, Self::Unavailable | Self::ReadOnly | Self::Full)
    }

    const fn advice(self) -> &'static str {
        match self {
            Self::Unavailable => "look whether it runs and can be reached from here",
            Self::ReadOnly => "name the primary, or let sentinels or the cluster name it",
            Self::Full => "raise its maxmemory, or give it fewer rows to hold",
            Self::Evicting => {
                "set maxmemory-policy to noeviction: rows that go unnoticed would be missing from views"
            }
            Self::WrongPassword => "set the user and the password that its ACL has",
            Self::NoPermission => "give the user what docs/reference/cache-layout.md lists",
            Self::OtherLayout => "use a prefix of its own for each version, or delete the keys",
            Self::NotOurs => "use another prefix, or delete the key",
            Self::Damaged => "fold the partition anew: tidegate cache rebuild",
            Self::Refused => "ask for less at a time",
            Self::Options => "mend the options",
        }
    }
}

/// Something is wrong with the cache. The message says what, where, and what to do; never a password.
#[derive(Clone, Debug, thiserror::Error)]
#[error("redis at {at}{}: {what}; {}", Of(key.as_deref()), fault.advice())]
pub struct RedisError {
    fault: RedisFault,
    at: String,
    key: Option<String>,
    what: String,
    /// Another server of the cluster has the key.
    moved: Option<String>,
}

struct Of<'a>(Option<&'a str>);

impl fmt::Display for Of<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |key| write!(f, ", key {key}"))
    }
}

impl RedisError {
    /// What is wrong.
    #[must_use]
    pub const fn fault(&self) -> RedisFault {
        self.fault
    }
    /// What is wrong, in words.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }
    /// Where: addresses.
    #[must_use]
    pub fn at(&self) -> &str {
        &self.at
    }
    /// Which other server of its cluster has the key, as `host:port`, where it says so. The host is empty where it is the one that was asked.
    pub(crate) fn moved(&self) -> Option<&str> {
        self.moved.as_deref()
    }
    /// Of which key.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
    pub(crate) fn new(
        fault: RedisFault,
        at: &str,
        key: Option<&str>,
        what: impl Into<String>,
    ) -> Self {
        Self {
            fault,
            at: at.to_owned(),
            key: key.map(str::to_owned),
            what: what.into(),
            moved: None,
        }
    }
    pub(crate) fn late(at: &str, key: Option<&str>, time: Duration) -> Self {
        let what = format!("no answer within {} ms", time.as_millis());
        Self::new(RedisFault::Unavailable, at, key, what)
    }
    pub(crate) fn of(error: &redis::RedisError, at: &str, key: Option<&str>) -> Self {
        let is_moved = error.kind() == ErrorKind::Server(ServerErrorKind::Moved);
        let moved = error.redirect_node().filter(|_| is_moved);
        Self {
            moved: moved.map(|(address, _)| address.to_owned()),
            ..Self::new(fault_of(error), at, key, one_line(&error.to_string()))
        }
    }
}

/// The longest part of a server's own words that a message repeats, in characters.
const WORDS_MAX: usize = 300;

fn one_line(text: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(WORDS_MAX).map(visible).collect()
}

fn fault_of(error: &redis::RedisError) -> RedisFault {
    match error.kind() {
        ErrorKind::AuthenticationFailed => RedisFault::WrongPassword,
        ErrorKind::Server(ServerErrorKind::ReadOnly) => RedisFault::ReadOnly,
        ErrorKind::Server(ServerErrorKind::NoPerm) => RedisFault::NoPermission,
        ErrorKind::UnexpectedReturnType => RedisFault::Damaged,
        ErrorKind::InvalidClientConfig => RedisFault::Options,
        ErrorKind::Server(_) | ErrorKind::Extension => fault_of_code(error.code().unwrap_or("")),
        _ => RedisFault::Unavailable,
    }
}

/// Words that a server's answer begins with, where the client library has no kind for them.
fn fault_of_code(code: &str) -> RedisFault {
    match code {
        "OOM" => RedisFault::Full,
        "WRONGPASS" | "NOAUTH" => RedisFault::WrongPassword,
        "WRONGTYPE" => RedisFault::NotOurs,
        "ERR" => RedisFault::Damaged,
        _ => RedisFault::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: &str, detail: &str) -> RedisError {
        let error = redis::make_extension_error(code.to_owned(), Some(detail.to_owned()));
        RedisError::of(&error, "127.0.0.1:6379", Some("tg:{s/0}"))
    }

    #[test]
    fn servers_words_have_kinds() {
        for (code, fault) in [
            ("OOM", RedisFault::Full),
            ("NOAUTH", RedisFault::WrongPassword),
            ("WRONGPASS", RedisFault::WrongPassword),
            ("WRONGTYPE", RedisFault::NotOurs),
            ("MISCONF", RedisFault::Unavailable),
            ("BUSY", RedisFault::Unavailable),
        ] {
            assert_eq!(server(code, "so it is").fault(), fault, "{code}");
        }
    }

    #[test]
    fn a_message_says_what_where_and_what_to_do() {
        let text = server(
            "OOM",
            "command not allowed\r\nwhen used memory > 'maxmemory'",
        )
        .to_string();
        assert!(
            text.starts_with("redis at 127.0.0.1:6379, key tg:{s/0}: "),
            "{text}"
        );
        assert!(text.contains("maxmemory'; raise its maxmemory"), "{text}");
        assert!(!text.contains(['\r', '\n']));
    }
}
