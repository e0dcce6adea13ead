//! The cache behind its breaker: one that hangs costs its callers nothing, and is asked again by one probe at a time.

use std::{future::Future, sync::Arc};

use super::{RedisCache, RedisError, RedisFault};
use crate::upstream::{CallError, Upstream, Verdict};

/// Why there is no answer.
pub type AskError = CallError<RedisError>;

/// The cache of a stream, as nodes and materializers ask it.
pub struct GuardedCache {
    cache: RedisCache,
    upstream: Arc<Upstream>,
}

impl GuardedCache {
    /// Puts a breaker before a cache. Caches on the same servers share one.
    #[must_use]
    pub const fn new(cache: RedisCache, upstream: Arc<Upstream>) -> Self {
        Self { cache, upstream }
    }

    /// Asks the cache something.
    ///
    /// # Errors
    /// What the cache says, or that it is not asked at all, since it did not answer before.
    ///
    /// # Cancel safety
    /// What was asked may be done all the same.
    pub async fn ask<'a, T, F>(
        &'a self,
        what: impl FnOnce(&'a RedisCache) -> F,
    ) -> Result<T, AskError>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let result = self.upstream.call(what(&self.cache), verdict).await;
        // Of what fails the breaker tells.
        if let Err(error @ CallError::Declined { .. }) = &result {
            self.upstream.tell_declined(error);
        }
        result
    }

    /// The same, for a loop that has nothing else to do: waits until the breaker lets it.
    ///
    /// # Errors
    /// What the cache says.
    ///
    /// # Cancel safety
    /// What was asked may be done all the same.
    pub async fn ask_patiently<'a, T, F>(
        &'a self,
        what: impl FnOnce(&'a RedisCache) -> F,
    ) -> Result<T, RedisError>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let permit = self.upstream.acquire().await;
        let result = what(&self.cache).await;
        permit.settle(verdict(&result));
        result
    }
}

/// A server that is there and can't do what is asked answers all the same.
fn verdict<T>(result: &Result<T, RedisError>) -> Verdict {
    match result {
        Ok(_) => Verdict::Answered,
        Err(error) if error.fault() == RedisFault::Unavailable => {
            Verdict::Failed(error.to_string())
        }
        Err(_) => Verdict::Declined,
    }
}
