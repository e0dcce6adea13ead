//! The Redis that a stream's partitions are in: one server, a cluster, or whoever is the primary.
//!
//! Does: lets calls out through the stream's breaker, and has scripts learnt where they are not known. Owns: the connection that all calls
//! share. Keeps: what is read at a time is bounded, so that no partition's answer waits behind many others'.

use std::{fmt, sync::Arc, time::Duration};

use redis::{ErrorKind, ServerErrorKind, Value};
use tokio::sync::Semaphore;

use super::{
    entries::{self, Entries},
    error::LogError,
    keys::Keys,
    script::{Answer, Claim, Scripts, Seen, reading},
};
use crate::{
    cache::redis::{Link, RedisError, RedisFault, RedisOptions},
    clock::Clock,
    model::Offset,
    upstream::{Limits, Upstream, Upstreams, Verdict},
};

/// Answers with records that are under way at a time: the others wait for them, none behind more than these.
const READS_MAX: usize = 8;
/// A call's own time-out says more than that of the breaker, which comes a little later.
const GRACE: Duration = Duration::from_millis(100);

/// The servers of a stream, behind its breaker. Shared by all that read from them or append to them.
pub struct RedisServer {
    pub(super) link: Link,
    pub(super) prefix: String,
    pub(super) upstream: Arc<Upstream>,
    pub(super) scripts: Scripts,
    reads: Semaphore,
}

impl fmt::Debug for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisServer")
            .field("at", &self.link.at())
            .finish_non_exhaustive()
    }
}

impl RedisServer {
    /// Servers behind a breaker of their own; nothing is asked yet.
    ///
    /// # Errors
    /// When the options make no sense.
    pub fn new(options: &RedisOptions) -> Result<Self, RedisError> {
        Self::among(&Upstreams::new(Clock::start()), "redis", options)
    }

    /// Servers whose breaker is listed among these, under this name.
    ///
    /// # Errors
    /// When the options make no sense.
    pub fn among(
        upstreams: &Upstreams,
        name: &str,
        options: &RedisOptions,
    ) -> Result<Self, RedisError> {
        let limits = Limits {
            time_out: options.timeout + GRACE,
            ..Limits::default()
        };
        Ok(Self {
            link: Link::new(options)?,
            prefix: options.prefix.clone(),
            upstream: upstreams.open(name, limits),
            scripts: Scripts::new(),
            reads: Semaphore::new(READS_MAX),
        })
    }

    /// Whether its partitions lie on servers of their own.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        self.link.is_cluster()
    }

    /// For how long nobody is asked, where its breaker lets nobody out now.
    #[must_use]
    pub fn shed(&self) -> Option<Duration> {
        self.upstream.shed_for()
    }

    /// Lets a call out, if the breaker does, and tells it what came of it.
    pub(super) async fn ask<T>(
        &self,
        call: impl Future<Output = Result<T, LogError>>,
    ) -> Result<T, LogError> {
        let permit = self
            .upstream
            .try_acquire()
            .map_err(|refused| LogError::Shed(refused.retry_after))?;
        let result = call.await;
        permit.settle(match &result {
            Ok(_) => Verdict::Answered,
            Err(error) if error.fault() == Some(RedisFault::Unavailable) => {
                Verdict::Failed(error.to_string())
            }
            Err(_) => Verdict::Declined,
        });
        result
    }

    /// Which log it is, proven by what the caller knows of it.
    pub(super) async fn look(&self, keys: &Keys, claim: &Claim) -> Result<Seen, LogError> {
        self.ask(self.step(keys, claim, None))
            .await
            .map(|(seen, _)| seen)
    }

    /// The same with the entries from this id on, `count` at most.
    pub(super) async fn read(
        &self,
        keys: &Keys,
        claim: &Claim,
        from: &str,
        count: usize,
    ) -> Result<(Seen, Entries), LogError> {
        // Nobody closes it.
        let _place = self.reads.acquire().await;
        self.ask(self.step(keys, claim, Some((from, count)))).await
    }

    /// Entries up to `end`, behind `behind`, the newest first.
    pub(super) async fn read_back(
        &self,
        keys: &Keys,
        end: Offset,
        behind: Offset,
        count: usize,
    ) -> Result<Entries, LogError> {
        let mut range = redis::cmd("XREVRANGE");
        range.arg(&keys.log).arg(super::id_of(end));
        range.arg(format!("({}", super::id_of(behind)));
        range.arg("COUNT").arg(count);
        let answer = self.ask(async { Ok(self.link.call(Some(&keys.log), &range).await?) });
        self.entries(answer.await?, keys)
    }

    async fn step(
        &self,
        keys: &Keys,
        claim: &Claim,
        range: Option<(&str, usize)>,
    ) -> Result<(Seen, Entries), LogError> {
        let mut by_text = false;
        loop {
            let commands = reading(&self.scripts.look, by_text, keys, claim, range);
            let mut answers = self.link.together(&keys.log, &commands).await?.into_iter();
            let read = range.and_then(|_| answers.next());
            let looked = match answers.next() {
                Some(Err(error)) if is_unknown_script(&error) && !by_text => {
                    by_text = true;
                    continue;
                }
                looked => self.settled(looked, keys)?,
            };
            let seen = Answer::of(looked, self.link.at(), &keys.log)?.seen()?;
            let entries = match read {
                None => Entries::default(),
                read => self.entries(self.settled(read, keys)?, keys)?,
            };
            return Ok((seen, entries));
        }
    }

    fn settled(
        &self,
        answer: Option<redis::RedisResult<Value>>,
        keys: &Keys,
    ) -> Result<Value, LogError> {
        let damaged = || {
            RedisError::new(
                RedisFault::Damaged,
                self.link.at(),
                Some(&keys.log),
                "an answer lacks",
            )
        };
        answer.ok_or_else(damaged)?.map_err(|error| {
            let error = RedisError::of(&error, self.link.at(), Some(&keys.log));
            if error.fault() == RedisFault::ReadOnly {
                // Who is the primary is asked anew.
                self.link.forsake();
            }
            error.into()
        })
    }

    fn entries(&self, answer: Value, keys: &Keys) -> Result<Entries, LogError> {
        entries::read(answer).ok_or_else(|| {
            RedisError::new(
                RedisFault::Damaged,
                self.link.at(),
                Some(&keys.log),
                "what it reads are no entries",
            )
            .into()
        })
    }
}

fn is_unknown_script(error: &redis::RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}
