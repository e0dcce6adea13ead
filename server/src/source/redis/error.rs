//! Why a log in Redis can't be read or written: what, where, and what to do about it.

use std::time::Duration;

use crate::cache::redis::{RedisError, RedisFault};

/// Why a call came to nothing. The message says what, where, and what to do; never a password.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The breaker lets nobody out for so long.
    #[error("redis has not answered others: nothing is asked for {} ms", .0.as_millis())]
    Shed(Duration),
    /// The server says so, or does not answer.
    #[error("redis at {}{}: {}; {}", .0.at(), of(.0.key()), .0.what(), advice(.0.fault()))]
    Redis(RedisError),
}

fn of(key: Option<&str>) -> String {
    key.map(|key| format!(", key {key}")).unwrap_or_default()
}

const fn advice(fault: RedisFault) -> &'static str {
    match fault {
        RedisFault::Unavailable => "look whether it runs and can be reached from here",
        RedisFault::ReadOnly => "name the primary, or let sentinels or the cluster name it",
        RedisFault::Full => "raise its maxmemory, or let the stream's retention keep less",
        RedisFault::Evicting => "set maxmemory-policy to noeviction",
        RedisFault::WrongPassword => "set the user and the password that its ACL has",
        RedisFault::NoPermission => "give the user what docs/reference/redis-streams.md lists",
        RedisFault::OtherLayout => "use a prefix of its own for each version, or delete the keys",
        RedisFault::NotOurs => "use another prefix, or delete the key",
        RedisFault::Damaged => "take out the entry that is named (XDEL), or delete the key",
        RedisFault::Refused => "take a server that has what is needed",
        RedisFault::Options => "mend the options",
    }
}

impl From<RedisError> for LogError {
    fn from(error: RedisError) -> Self {
        // Of what a script may not do, Redis 7.0 says no more than this.
        let forbidden = error.what().contains("can't run this command")
            || error.what().contains("NOPERM")
            || error.what().contains("no permissions");
        if forbidden && error.fault() != RedisFault::NoPermission {
            let (at, key, what) = (error.at(), error.key(), error.what());
            return Self::Redis(RedisError::new(RedisFault::NoPermission, at, key, what));
        }
        Self::Redis(error)
    }
}

impl LogError {
    /// What is wrong, where the server was asked.
    #[must_use]
    pub const fn fault(&self) -> Option<RedisFault> {
        match self {
            Self::Shed(_) => None,
            Self::Redis(error) => Some(error.fault()),
        }
    }
}
