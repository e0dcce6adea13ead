//! The Redis that a stream's partitions are in: one server, a cluster, or whoever is the primary.
//!
//! Does: lets calls out through the stream's breaker, and has scripts learnt where they are not known. Owns: the connection that all calls
//! share. Keeps: what is read at a time is bounded, so that no partition's answer waits behind many others'.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{ErrorKind, FromRedisValue, ServerErrorKind, Value};
use tokio::{sync::Semaphore, time::Instant};

use super::{
    entries::{self, Entries},
    error::LogError,
    keys::Keys,
    route::Servers,
    script::{Answer, Claim, Known, Scripts, Seen, reading},
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
    pub(super) servers: Servers,
    pub(super) prefix: String,
    pub(super) upstream: Arc<Upstream>,
    pub(super) scripts: Scripts,
    reads: Semaphore,
    /// The longest that a call takes.
    pub(super) timeout: Duration,
    /// When any of them answered last.
    answered: Mutex<Option<Instant>>,
}

impl fmt::Debug for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisServer")
            .field("at", &self.servers.at())
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
            servers: Servers::new(options)?,
            timeout: options.timeout,
            answered: Mutex::default(),
            prefix: options.prefix.clone(),
            upstream: upstreams.open(name, limits),
            scripts: Scripts::new(),
            reads: Semaphore::new(READS_MAX),
        })
    }

    /// Whether its partitions lie on servers of their own.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        self.servers.is_cluster()
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
            Ok(_) => {
                *self.answered() = Some(Instant::now());
                Verdict::Answered
            }
            Err(error) if error.fault() != Some(RedisFault::Unavailable) => Verdict::Declined,
            Err(_) if self.answers_others() => Verdict::Declined,
            Err(error) => Verdict::Failed(error.to_string()),
        });
        result
    }

    /// Whether another server of the cluster answered while a call of now may have waited: then the breaker would hold up the partitions
    /// that are there.
    fn answers_others(&self) -> bool {
        let answered = *self.answered();
        self.is_cluster() && answered.is_some_and(|at| at.elapsed() < self.timeout)
    }

    fn answered(&self) -> MutexGuard<'_, Option<Instant>> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
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
        let answer = self.ask(async {
            let mut route = self.servers.route(&keys.log);
            loop {
                let link = route.link()?;
                let answer = link.call(Some(&keys.log), &range).await;
                let answer = answer.map_err(LogError::from);
                if !route.goes_on(&answer) {
                    return answer;
                }
            }
        });
        let (answer, at) = (answer.await?, self.servers.at());
        entries_of(answer, at, keys)
    }

    async fn step(
        &self,
        keys: &Keys,
        claim: &Claim,
        range: Option<(&str, usize)>,
    ) -> Result<(Seen, Entries), LogError> {
        let mut route = self.servers.route(&keys.log);
        loop {
            let link = route.link()?;
            let stepped = self.step_at(&link, keys, claim, range).await;
            if !route.goes_on(&stepped) {
                return stepped;
            }
        }
    }

    async fn step_at(
        &self,
        link: &Link,
        keys: &Keys,
        claim: &Claim,
        range: Option<(&str, usize)>,
    ) -> Result<(Seen, Entries), LogError> {
        let mut by_text = false;
        loop {
            let commands = reading(&self.scripts.look, by_text, keys, claim, range);
            let mut answers = link.together(&keys.log, &commands).await?.into_iter();
            let read = range.and_then(|_| answers.next());
            let looked = match answers.next() {
                Some(Err(error)) if is_unknown_script(&error) && !by_text => {
                    by_text = true;
                    continue;
                }
                looked => settled(looked, link, keys)?,
            };
            let seen = Answer::of(looked, link.at(), &keys.log)?.seen()?;
            let entries = match read {
                None => Entries::default(),
                read => entries_of(settled(read, link, keys)?, link.at(), keys)?,
            };
            return Ok((seen, entries));
        }
    }

    /// Runs a script about keys that lie together, and reads its answer.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        known: &Known,
        keys: &[String],
        words: &[&[u8]],
    ) -> Result<T, LogError> {
        let mut route = self.servers.route(&keys[0]);
        loop {
            let link = route.link()?;
            let ran = link.script(&keys[0], &known.script, known.text, keys, words);
            let ran = ran.await.map_err(LogError::from);
            if ran.as_ref().err().and_then(LogError::fault) == Some(RedisFault::ReadOnly) {
                link.forsake();
            }
            if !route.goes_on(&ran) {
                return ran;
            }
        }
    }
}

fn settled(
    answer: Option<redis::RedisResult<Value>>,
    link: &Link,
    keys: &Keys,
) -> Result<Value, LogError> {
    let key = Some(keys.log.as_str());
    let damaged = || RedisError::new(RedisFault::Damaged, link.at(), key, "an answer lacks");
    answer.ok_or_else(damaged)?.map_err(|error| {
        let error = RedisError::of(&error, link.at(), key);
        if error.fault() == RedisFault::ReadOnly {
            // Who is the primary is asked anew.
            link.forsake();
        }
        error.into()
    })
}

fn entries_of(answer: Value, at: &str, keys: &Keys) -> Result<Entries, LogError> {
    let what = "what it reads are no entries";
    let damaged = || RedisError::new(RedisFault::Damaged, at, Some(&keys.log), what);
    Ok(entries::read(answer).ok_or_else(damaged)?)
}

fn is_unknown_script(error: &redis::RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}
